"""The virtual observatory: what it is made of, and the maps of a CCD that its exposures share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate import dark, defects, pixels
from lsstcal_dask.simulate.settings import Settings

__all__ = ["Observatory"]

_SMALL: Final = 2_000_000
"""Pixels of a CCD up to which the maps of many are kept, so that the exposures of a block share them."""


@dataclass(frozen=True)
class Observatory:
    """A camera, the seed of everything random, and every effect."""

    seed: int
    camera: Camera
    settings: Settings = field(default_factory=Settings)

    def corners(self, detector: Detector) -> np.ndarray:
        """Displacement (2, y + 1, x + 1) of the pixels' corners, px; x, then y. Not to be written to."""
        return self.kept(_corners, detector)

    def sensitivity(self, detector: Detector) -> np.ndarray:
        """What defects leave of the quantum efficiency (y, x). Not to be written to."""
        return self.kept(_sensitivity, detector)

    def dark_rate(self, detector: Detector) -> np.ndarray:
        """Charge (y, x) that gathers without light, electron/s: dark current, hot pixels, bright columns."""
        return self.kept(_dark_rate, detector)

    def kept(self, function: Callable[..., np.ndarray], detector: Detector, *what: Any) -> np.ndarray:
        """``function(self, *what, detector)``, remembered for the CCDs that a task works on; not to be written to."""
        small = detector.shape[0] * detector.shape[1] <= _SMALL
        return (_kept_small if small else _kept_large)(function, self, what, detector)


def _corners(site: Observatory, detector: Detector) -> np.ndarray:
    s = site.settings
    return pixels.corners(site.seed, s.tree_rings, s.edge_distortion, s.pixel_jitter, detector)


def _sensitivity(site: Observatory, detector: Detector) -> np.ndarray:
    return defects.sensitivity(site.seed, site.settings.bad_pixels, detector)


def _dark_rate(site: Observatory, detector: Detector) -> np.ndarray:
    s = site.settings
    rate = dark.dark_rate(site.seed, s.dark_current, s.hot_pixels, detector)
    return rate + defects.bright_columns_rate(site.seed, s.bad_pixels, detector)


def _compute(
    function: Callable[..., np.ndarray], site: Observatory, what: tuple[Any, ...], detector: Detector
) -> np.ndarray:
    found = function(site, *what, detector)
    found.flags.writeable = False
    return found


_kept_small = lru_cache(maxsize=96)(_compute)  # of nine CCDs of a test camera, ten maps of 0.5 MB
_kept_large = lru_cache(maxsize=4)(_compute)  # of one LSST CCD: corners 128 MB, the others 64
