"""Master bias: what an amplifier reads without light or time, above its overscan (Lupton 2016, Sec. 2.1; §1)."""

import itertools
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs, UnitsError
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import parallel_means
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.combined import combine_detector, stack_outputs, stack_sizes
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import Stack, StackConfig
from lsstcal_dask.variables import NOTE, nights

__all__ = ["OUTPUTS", "bias_amplifiers", "check_biases", "master_bias"]

OUTPUTS = stack_outputs("adu") | {
    "read_noise": Output("float64", "adu"),
    "read_noise_error": Output("float64", "adu"),
    "column_level": Output("float32", "adu"),
}


def check_biases(raw: xr.Dataset, config: StackConfig) -> None:
    """Refuse exposures that cannot be biases, by their headers alone.

    Raises
    ------
    InsufficientInputs
        Fewer than ``config.minimum`` exposures.
    UnitsError
        An exposure has an exposure time other than zero.
    """
    if raw.sizes["exposure"] < config.minimum:
        raise InsufficientInputs(
            f"bias: {raw.sizes['exposure']} bias exposures, at least {config.minimum} are needed: ingest more"
        )
    for name, seconds in zip(raw["exposure"].values, raw["exposure_time"].values, strict=True):
        if not abs(seconds) < 0.01:  # some controllers report their shortest exposure instead of zero
            raise UnitsError(
                f"exposure {name} is of type bias but its exposure time is {seconds:g} s: "
                f"ingest it with its true type (--type)"
            )


def bias_amplifiers(
    raw: xr.Dataset, detector: Detector, shape: tuple[int, int], config: StackConfig
) -> AmplifierResults:
    """Bias of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,) of one detector.
    shape : (ny, nx) of the padded image.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier; a dead one is NaN with a remark.
    """
    night = nights(raw)[raw["present"].values]

    def transform(_: Amplifier) -> Transform:
        return Transform(np.ones(len(night)), group=night)

    def finish(_: Amplifier, terms: Transform, stack: Stack) -> tuple[Stack, list[str], dict[str, Any]]:
        used = stack.accepted
        remarks = _drift(night[used], stack.level[used], stack.level_error[used])
        if config.method == "median" and stack.method != "median":
            remarks.append(f"{NOTE}noise too low for a median of integers: median of sums instead")
        return stack, remarks, {"read_noise": stack.read_noise, "method": stack.method}

    def columns(counts: np.ndarray, amplifier: Amplifier, stack: Stack) -> dict[str, tuple[str, np.ndarray]]:
        return {"column_level": ("x", parallel_means(counts, amplifier, config.overscan, stack.accepted))}

    return combine_detector(raw, detector, shape, OUTPUTS, config, transform, finish, columns)


def _drift(night_of: np.ndarray, level: np.ndarray, error: np.ndarray) -> list[str]:
    """How the level changed from night to night; a note if its scatter explains that, else a remark."""
    found = []
    groups = [(night, night_of == night) for night in np.unique(night_of)]
    groups = [(night, here) for night, here in groups if here.sum() > 1]
    for (before, a), (after, b) in itertools.pairwise(groups):
        change = level[b].mean() - level[a].mean()
        sigma = float(np.hypot(_mean_error(level[a], error[a]), _mean_error(level[b], error[b])))
        text = f"level changed by {change:+.3f} +- {sigma:.3f} adu from the night of {before} to that of {after}"
        drifted = abs(change) > 4 * sigma
        found.append(f"{text}: build one bias per night with --by-night" if drifted else f"{NOTE}{text}")
    return found


def _mean_error(level: np.ndarray, error: np.ndarray) -> float:
    """Error of a mean level: from the scatter of the frames, but not less than their own errors say."""
    return float(max(level.std(ddof=1), error.mean()) / np.sqrt(len(level)))


def master_bias(raw: xr.Dataset, camera: Camera, config: StackConfig = StackConfig()) -> xr.Dataset:
    """Combine biases, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu, readout orientation; ``present``.
    camera : its camera.
    config : method, clip, overscan.

    Returns
    -------
    Dataset with `OUTPUTS`: ``image`` (detector, amplifier, y, x), adu above the overscan,
    readout orientation, and its ``variance``, ``mask``, ``frames`` and ``row_variance``;
    the ``level`` of each exposure and whether it was ``accepted``; ``read_noise``; ``column_level`` (detector,
    amplifier, x), adu, of the parallel overscan, NaN where there is none.

    Raises
    ------
    InsufficientInputs, UnitsError
        See `check_biases`.
    """
    check_biases(raw, config)
    sizes = stack_sizes(raw, camera.image_shape)
    return map_detectors(
        bias_amplifiers, raw, OUTPUTS, sizes, lambda name: (camera.detector(name), camera.image_shape, config)
    )
