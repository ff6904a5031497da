"""Master dark: the charge that gathers in one second without light (Lupton 2016, Sec. 2.7; §6)."""

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field

from lsstcal_dask.errors import InsufficientInputs, UnitsError
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.linearity import curve as linearity_curve
from lsstcal_dask.mapping import AmplifierResults, map_detectors
from lsstcal_dask.products.combined import combine_detector, stack_outputs, stack_sizes
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.leaks import leak_remarks
from lsstcal_dask.products.stack import CosmicMethod, Stack, StackConfig

__all__ = ["OUTPUTS", "DarkConfig", "check_darks", "dark_amplifiers", "master_dark"]

OUTPUTS = stack_outputs("electron/s")


class DarkConfig(StackConfig):
    """How darks are combined: as any stack, and without cosmic rays."""

    cosmic_rays: CosmicMethod = Field("temporal", description=StackConfig.model_fields["cosmic_rays"].description)


def check_darks(raw: xr.Dataset, config: StackConfig, *, has_bias: bool = True) -> None:
    """Refuse exposures that cannot be darks, by their headers alone.

    Raises
    ------
    InsufficientInputs
        Fewer than ``config.minimum`` exposures, or unequal dark times and no bias.
    UnitsError
        A dark time is missing, zero or negative.
    """
    if raw.sizes["exposure"] < config.minimum:
        raise InsufficientInputs(
            f"dark: {raw.sizes['exposure']} dark exposures, at least {config.minimum} are needed: ingest more, "
            f"or lower [dark] minimum"
        )
    times = raw["dark_time"].values
    for name, seconds in zip(raw["exposure"].values, times, strict=True):
        if not seconds > 0:
            raise UnitsError(f"exposure {name} is of type dark but its dark time is {seconds:g} s: correct its header")
    if not has_bias and np.ptp(times) > 0.01 * times.max():
        raise InsufficientInputs(
            f"dark: without a bias all dark times must be equal, but they go from {times.min():g} to "
            f"{times.max():g} s: ingest bias exposures and build bias first"
        )


def dark_amplifiers(
    raw: xr.Dataset,
    detector: Detector,
    shape: tuple[int, int],
    config: DarkConfig,
    products: dict[str, xr.Dataset],
) -> AmplifierResults:
    """Dark of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` and ``dark_time`` (exposure,).
    shape : (ny, nx) of the padded image.
    products : ``bias`` and ``linearity`` (may be absent) and ``gain`` of this detector, read lazily.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier; one without gain or signal is NaN with a remark.
    """
    present = raw["present"].values
    check_darks(raw.isel(exposure=np.flatnonzero(present)), config, has_bias="bias" in products)
    seconds = raw["dark_time"].values[present]

    def transform(amplifier: Amplifier) -> Transform:
        gain = float(products["gain"]["gain"].sel(amplifier=amplifier.name))
        if not gain > 0:
            raise InsufficientInputs("no gain for this amplifier: see the remarks of 'gain'")
        return Transform(gain / seconds, _bias_part(products, amplifier, "image"), gain)

    def finish(amplifier: Amplifier, terms: Transform, stack: Stack) -> tuple[Stack, list[str], dict[str, Any]]:
        stack = _with_bias_noise(_linear(stack, products, amplifier, terms), products, amplifier, terms)
        stack = _per_second(stack, seconds, detector.row_time)
        area = amplifier.data.shape[0] * amplifier.data.shape[1] * (detector.pixel_mm / 10) ** 2
        minutes = seconds[stack.accepted].sum() / 60
        summary = {
            "median_rate": float(np.nanmedian(stack.value)),
            "method": stack.method,
            "hit_pixels": float(stack.hits[stack.accepted].sum() / (area * minutes)),  # per cm2 and minute
        }
        used = stack.accepted
        rate = stack.value if "bias" in products else np.full((1, 1), np.nan)  # a bias left in has slopes of its own
        leaks, numbers = leak_remarks(rate, stack.level[used], stack.level_error[used])
        return stack, _more_needed(stack) + leaks, summary | numbers

    return combine_detector(raw, detector, shape, OUTPUTS, config, transform, finish)


def _linear(stack: Stack, products: dict[str, xr.Dataset], amplifier: Amplifier, terms: Transform) -> Stack:
    """Correct hot pixels, all that is bright in a dark, for the linearity of the amplifier.

    Each exposure had the combined rate for its own time: what linearity adds to each is weighted as the exposures were.
    """
    if "linearity" not in products:
        return stack
    curve = products["linearity"].sel(amplifier=amplifier.name)
    level = curve["linearity_level"].values
    if not np.isfinite(level).any():
        raise InsufficientInputs("no linearity curve for this amplifier: see the remarks of 'linearity'")
    law = linearity_curve(level, curve["linearity_correction"].values)
    added = np.zeros_like(stack.value)
    for scale in np.unique(terms.scale):
        share = stack.weight[terms.scale == scale].sum()
        added += (share * scale * law(stack.value / scale)).astype(np.float32)
    return replace(stack, value=stack.value + added)


def _per_second(stack: Stack, seconds: np.ndarray, row_time: float) -> Stack:
    """Rate of each row, which gathered charge until it was read: exact for any weights of unequal exposures."""
    waited = row_time * np.arange(len(stack.value)) * float((stack.weight / seconds).sum())
    factor = (1 / (1 + waited)).astype(np.float32)
    return replace(
        stack,
        value=stack.value * factor[:, None],
        variance=stack.variance * factor[:, None] ** 2,
        row_variance=stack.row_variance * factor**2,
    )


def _more_needed(stack: Stack) -> list[str]:
    """What leaving cosmic rays in costs."""
    if not np.isfinite(stack.inflation):
        return []
    n = int(stack.accepted.sum())
    return [
        f"made without rejection of cosmic rays: {n} darks are as good as {n / stack.inflation:.1f} without them; "
        f"{int(np.ceil(n * stack.inflation))} would be needed"
    ]


def _bias_part(products: dict[str, xr.Dataset], amplifier: Amplifier, variable: str) -> np.ndarray | None:
    if "bias" not in products:
        return None
    values = products["bias"][variable].sel(amplifier=amplifier.name).values
    values = values[tuple(slice(size) for size in amplifier.data.shape[: values.ndim])]
    if not np.isfinite(values).any():
        raise InsufficientInputs("no bias for this amplifier: see the remarks of 'bias'")
    return np.ascontiguousarray(values, dtype=np.float32)


def _with_bias_noise(
    stack: Stack, products: dict[str, xr.Dataset], amplifier: Amplifier, transform: Transform
) -> Stack:
    """Add the noise of the bias: it is the same in every frame, so no number of darks averages it away."""
    variance = _bias_part(products, amplifier, "variance")
    rows = _bias_part(products, amplifier, "row_variance")
    if variance is None or rows is None:
        return stack
    factor = np.float32((stack.weight * transform.scale).sum() ** 2)
    return replace(stack, variance=stack.variance + factor * variance, row_variance=stack.row_variance + factor * rows)


def master_dark(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: DarkConfig = DarkConfig()
) -> xr.Dataset:
    """Combine darks, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; ``dark_time`` (exposure,), s.
    camera : its camera.
    products : ``gain`` and, unless all dark times are equal, ``bias``, with a detector dim.
    config : method, clip, overscan.

    Returns
    -------
    Dataset with `OUTPUTS`: ``image`` (detector, amplifier, y, x), electron/s, readout orientation,
    with its errors as for `master_bias`.

    Raises
    ------
    InsufficientInputs, UnitsError
        See `check_darks`.
    """
    check_darks(raw, config, has_bias="bias" in products)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), camera.image_shape, config, parts

    return map_detectors(dark_amplifiers, raw, OUTPUTS, stack_sizes(raw, camera.image_shape), arguments)
