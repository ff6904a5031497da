"""A detector's exposures combined, amplifier after amplifier, as Datasets: what biases and darks share."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.mapping import AmplifierResults, Output, empty_values, output_dims
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import Stack, StackConfig, combine_amplifier
from lsstcal_dask.variables import MASK_BITS

__all__ = ["combine_detector", "stack_outputs", "stack_sizes"]


def combine_detector(
    raw: xr.Dataset,
    detector: Detector,
    shape: tuple[int, int],
    outputs: Mapping[str, Output],
    config: StackConfig,
    transform: Callable[[Amplifier], Transform],
    finish: Callable[[Amplifier, Transform, Stack], tuple[Stack, list[str], dict[str, Any]]],
    more: Callable[[np.ndarray, Amplifier, Stack], dict[str, tuple[str, np.ndarray]]] = lambda counts, amp, stack: {},
) -> AmplifierResults:
    """Combine each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,), of which the missing are left out.
    shape : (ny, nx) of the padded image.
    transform : gives what turns the counts of an amplifier into the product; may raise InsufficientInputs.
    finish : gives the final Stack, remarks and summary of an amplifier.
    more : gives further variables, each a dim (y or x) and values, from the raw counts (n, y, x) of an amplifier.

    Yields
    ------
    Name and Dataset (``outputs``) of an amplifier; one that cannot be made is NaN with a remark.
    One amplifier's raw stack is in memory at a time.
    """
    present = raw["present"].values
    names = [str(name) for name in raw["exposure"].values]
    # Without the coordinates, whose lookups would cost as much as a step of the combination.
    counts = raw["counts"].isel(exposure=np.flatnonzero(present)).variable
    sizes = dict(zip("yx", shape, strict=True))
    places = {str(name): i for i, name in enumerate(raw["amplifier"].values)}
    for amplifier in detector.amplifiers:
        try:
            terms = transform(amplifier)
            own = counts.isel(amplifier=places[amplifier.name]).values
            stack = combine_amplifier(own, amplifier, terms, config)
            stack, remarks, summary = finish(amplifier, terms, stack)
        except InsufficientInputs as error:
            yield amplifier.name, _dead_amplifier(outputs, stack_sizes(raw, shape), str(error))
            continue
        variables = _stack_variables(stack, present, shape)
        for key, (dim, values) in more(own, amplifier, stack).items():
            variables[key] = (dim, _padded(values, (sizes[dim],), np.nan))
        attrs = {"remarks": _left_out(stack, present, names) + remarks, "summary": summary}
        yield amplifier.name, xr.Dataset({key: variables[key] for key in outputs}, attrs=attrs)


def stack_outputs(units: str) -> dict[str, Output]:
    """Variables of a product that is a combined stack, in adu or electron/s."""
    square = f"({units})**2" if "/" in units else f"{units}**2"
    return {
        "image": Output("float32", units),
        "variance": Output("float32", square),
        "mask": Output("uint16"),
        "frames": Output("uint16"),
        "row_variance": Output("float32", square),
        "level": Output("float64", units, per_exposure=True),
        "level_error": Output("float64", units, per_exposure=True),
        "accepted": Output("bool", per_exposure=True),
    }


def stack_sizes(raw: xr.Dataset, shape: tuple[int, int]) -> dict[str, int]:
    """Sizes of the dims of a combined stack; ``shape`` is that of the padded image."""
    return {
        "exposure": raw.sizes["exposure"],
        "amplifier": raw.sizes["amplifier"],
        "y": shape[0],
        "x": shape[1],
    }


def _dead_amplifier(outputs: Mapping[str, Output], sizes: Mapping[str, int], reason: str) -> xr.Dataset:
    """Result of an amplifier that could not be made: NaN, NO_DATA and the reason, never a number."""
    sizes = {dim: size for dim, size in sizes.items() if dim not in ("detector", "amplifier")}
    variables = {}
    for name, output in outputs.items():
        dims = output_dims(name, output, sizes)
        variables[name] = (dims, empty_values(name, output, tuple(sizes[dim] for dim in dims)))
    return xr.Dataset(variables, attrs={"remarks": [reason], "summary": {}})


def _padded(values: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    """``values`` in the lower corner of an array of the padded shape; themselves where they fill it."""
    if values.shape == shape:
        return values
    out = np.empty(shape, values.dtype)
    for axis, size in enumerate(values.shape):
        out[(*(slice(None),) * axis, slice(size, None))] = fill
    out[tuple(slice(size) for size in values.shape)] = values
    return out


def _left_out(stack: Stack, present: np.ndarray, names: list[str]) -> list[str]:
    """Remarks on the exposures left out, of all with these ids (n,)."""
    there = [name for name, here in zip(names, present, strict=True) if here]
    return [f"exposure {there[i]} left out: {why}" for i, why in sorted(stack.reasons.items())]


def _stack_variables(stack: Stack, present: np.ndarray, shape: tuple[int, int]) -> dict[str, Any]:
    """Variables of one amplifier from its Stack, padded to the camera's image shape.

    Parameters
    ----------
    present : (n,) bool, exposures that have a frame of this detector.
    shape : (ny, nx) of the padded image.
    """
    frames = _padded(stack.frames, shape, 0)
    mask = np.zeros(shape, np.uint16)
    if not frames.min():  # most amplifiers have no such pixel, and a comparison of all of them takes longer
        mask[frames == 0] = MASK_BITS["NO_DATA"]

    def spread(values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full(len(present), fill, values.dtype)
        out[present] = values
        return out

    return {
        "image": (("y", "x"), _padded(stack.value, shape, np.nan)),
        "variance": (("y", "x"), _padded(stack.variance, shape, np.nan)),
        "mask": (("y", "x"), mask),
        "frames": (("y", "x"), frames),
        "row_variance": ("y", _padded(stack.row_variance, shape[:1], np.nan)),
        "level": ("exposure", spread(stack.level, np.nan)),
        "level_error": ("exposure", spread(stack.level_error, np.nan)),
        "accepted": ("exposure", spread(stack.accepted, False)),
        "read_noise": stack.read_noise,
        "read_noise_error": stack.read_noise_error,
    }
