"""Sources of crosstalk: the spots of a camera by source, and the stamps of those that are lit in an exposure."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.products.crosstalk_patches import Stamp

__all__ = ["LitSpots", "levels", "lit_spots", "source_names", "stamps_of"]

_READ: Final = 64_000_000  # bytes of stamps that are read at once


def _sources(camera: Camera) -> list[tuple[str, str]]:
    """Detector and amplifier of each source: detectors in turn, their amplifiers in the order of storage."""
    owned = {d.name: {a.name for a in d.amplifiers} for d in camera.detectors}
    return [(name, a) for name, own in owned.items() for a in camera.amplifier_names if a in own]


def source_names(camera: Camera) -> np.ndarray:
    """(source,) names of all amplifiers of the camera, as ``R22_S11/C10``."""
    return np.array([f"{detector}/{amplifier}" for detector, amplifier in _sources(camera)], dtype=object)


@dataclass(frozen=True)
class LitSpots:
    """Numbers of all spots (exposure, source), and where their stamps are read when they are wanted."""

    exposures: list[str]
    names: np.ndarray  # (source,)
    numbers: dict[str, np.ndarray]  # spot_y, spot_x, spot_level, spot_used: NaN or False where there is none
    stamps: xr.Variable  # (exposure, detector, amplifier, y, x)
    detector: np.ndarray  # (source,) along `stamps`; -1: not there
    amplifier: np.ndarray  # (source,) along `stamps`


def lit_spots(spots: xr.Dataset, camera: Camera) -> LitSpots:
    """What ``spots`` holds, by source; raises InsufficientInputs if it is nothing."""
    there = [[str(name) for name in spots[dim].values] for dim in ("detector", "amplifier")]
    at = [{name: i for i, name in enumerate(own)} for own in there]
    detector, amplifier = np.array(
        [[own.get(name, -1) for own, name in zip(at, key, strict=True)] for key in _sources(camera)]
    ).T
    numbers = {}
    for name in ("spot_y", "spot_x", "spot_level", "spot_used"):
        values = spots[name].values[:, detector, amplifier]
        numbers[name] = np.where(detector < 0, False if values.dtype == bool else np.nan, values)
    if not numbers["spot_used"].any():
        raise InsufficientInputs(
            f"crosstalk: no spots found in {spots.sizes['exposure']} exposures: were they taken with the laser on? "
            f"See the remarks of 'spots'"
        )
    exposures = [str(name) for name in spots["exposure"].values]
    return LitSpots(exposures, source_names(camera), numbers, spots["spot"].variable, detector, amplifier)


def stamps_of(spots: LitSpots, exposure: str) -> list[Stamp]:
    """Stamps of all sources that are lit in an exposure."""
    if exposure not in spots.exposures:
        return []
    i, found = spots.exposures.index(exposure), []
    y, x, level, used = (spots.numbers[name][i] for name in ("spot_y", "spot_x", "spot_level", "spot_used"))
    lit = np.isfinite(level)
    each = int(np.prod(spots.stamps.shape[2:])) * spots.stamps.dtype.itemsize
    step = max(1, _READ // each)
    for first in range(0, spots.stamps.shape[1], step):
        sources = np.flatnonzero(lit & (spots.detector >= first) & (spots.detector < first + step))
        whole = spots.stamps[i, first : first + step].values[spots.detector[sources] - first, spots.amplifier[sources]]
        inside = np.isfinite(whole)
        height, width = (_extent(inside.any(axis=axis)) for axis in (2, 1))
        for k, source in enumerate(sources.tolist()):
            if not height[k]:
                raise CalibrationError(
                    f"spots of {spots.names[source]}, exposure {exposure}: the stamp is missing: build spots again"
                )
            at, cut = (int(y[source]), int(x[source])), whole[k, : height[k], : width[k]]
            found.append(Stamp(source, *at, cut, float(level[source]), bool(used[source])))
    return found


def _extent(filled: np.ndarray) -> list[int]:
    """Number of pixels up to the last of each row (n, pixel) that is filled."""
    size = filled.shape[1]
    return np.where(filled.any(axis=1), size - filled[:, ::-1].argmax(axis=1), 0).tolist()


def levels(spots: LitSpots) -> np.ndarray:
    """Level of the faintest and the brightest spot of each source, electron, and how many it has (3, source)."""
    used = spots.numbers["spot_used"]
    level = spots.numbers["spot_level"]
    faintest = np.where(used, level, np.inf).min(0)
    return np.stack([faintest, np.where(used, level, 0.0).max(0), used.sum(0)])
