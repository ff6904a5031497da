"""One CCD of one exposure before and after the corrections."""

from dataclasses import dataclass, replace

import numpy as np

from lsstcal_dask.instrument.camera import Detector

__all__ = ["Frame", "RawFrame"]


@dataclass(frozen=True)
class RawFrame:
    """Counts of one CCD as they were read."""

    exposure: str
    detector: Detector
    dark_time: float  # s
    counts: np.ndarray  # (amplifier, y, x) adu, of ``detector.amplifiers`` in that order, untrimmed


@dataclass(frozen=True)
class Frame:
    """Corrected pixels of one CCD in readout orientation, trimmed, and padded to the camera's image shape."""

    exposure: str
    detector: Detector
    image: np.ndarray  # (amplifier, y, x) float32; NaN where the mask says NO_DATA
    variance: np.ndarray  # (amplifier, y, x) float32, without what is common to a row
    row_variance: np.ndarray  # (amplifier, y) float32
    mask: np.ndarray  # (amplifier, y, x) uint16
    units: str  # of image
    remarks: tuple[tuple[str, str], ...] = ()  # amplifier and what a person should know of it

    def with_(self, **changes: object) -> "Frame":
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]
