"""The virtual observatory: what it is made of, and the maps of a CCD that its exposures share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate import dark, defects, pixels
from lsstcal_dask.simulate.kept import kept
from lsstcal_dask.simulate.response import gray_map
from lsstcal_dask.simulate.settings import Settings

__all__ = ["Observatory"]

_DULL = np.dtype([("y", np.int32), ("x", np.int32), ("factor", np.float32)])


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

    def insensitive(self, detector: Detector) -> np.ndarray:
        """Pixels (n,) with fields ``y``, ``x`` and ``factor``: where `sensitivity` is below 1. Not to be written to."""
        return self.kept(_insensitive, detector)

    def response(self, detector: Detector) -> np.ndarray:
        """Gray response (y, x) of each pixel relative to a mean one. Not to be written to."""
        return gray_map(self.seed, self.settings.quantum_efficiency, detector)

    def dark_rate(self, detector: Detector) -> np.ndarray:
        """Charge (y, x) that gathers without light, electron/s: dark current, hot pixels, bright columns."""
        return self.kept(_dark_rate, detector)

    def kept(self, function: Callable[..., np.ndarray], detector: Detector, *what: Any) -> np.ndarray:
        """``function(self, *what, detector)``, remembered as `kept` says; not to be written to."""
        return kept.get((function, self, what, detector), lambda: function(self, *what, detector))


def _corners(site: Observatory, detector: Detector) -> np.ndarray:
    s = site.settings
    return pixels.corners(site.seed, s.tree_rings, s.edge_distortion, s.pixel_jitter, detector)


def _sensitivity(site: Observatory, detector: Detector) -> np.ndarray:
    return defects.sensitivity(site.seed, site.settings.bad_pixels, detector)


def _insensitive(site: Observatory, detector: Detector) -> np.ndarray:
    factor = _sensitivity(site, detector)
    y, x = np.nonzero(factor < 1)
    return np.array(list(zip(y, x, factor[y, x], strict=True)), _DULL)


def _dark_rate(site: Observatory, detector: Detector) -> np.ndarray:
    s = site.settings
    rate = dark.dark_rate(site.seed, s.dark_current, s.hot_pixels, detector)
    return rate + defects.bright_columns_rate(site.seed, s.bad_pixels, detector)
