"""One CCD of one exposure on its way through the corrections."""

from dataclasses import dataclass, replace

import numpy as np

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.variables import MASK_BITS

__all__ = ["Frame", "new_frame"]


@dataclass(frozen=True)
class Frame:
    """Pixels of one CCD in readout orientation; every correction returns a new one."""

    exposure: str
    detector: Detector
    dark_time: float  # s
    raw: np.ndarray  # (amplifier, y, x) counts, untrimmed
    image: np.ndarray  # (amplifier, y, x) float32, trimmed and padded
    variance: np.ndarray  # (amplifier, y, x) float32, without what is common to a row
    row_variance: np.ndarray  # (amplifier, y) float32
    mask: np.ndarray  # (amplifier, y, x) uint16
    units: str  # of image

    def with_(self, **changes: object) -> "Frame":
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


def new_frame(exposure: str, detector: Detector, dark_time: float, raw: np.ndarray, shape: tuple[int, int]) -> Frame:
    """Trim raw counts (amplifier, y, x) of a CCD into padded images; nothing is corrected yet.

    Parameters
    ----------
    raw : counts of ``detector.amplifiers``, in that order.
    shape : (ny, nx) of the padded image.
    """
    count = len(detector.amplifiers)
    image = np.full((count, *shape), np.nan, np.float32)
    mask = np.full((count, *shape), MASK_BITS["NO_DATA"], np.uint16)
    for i, amplifier in enumerate(detector.amplifiers):
        ny, nx = amplifier.data.shape
        image[i, :ny, :nx] = raw[i][amplifier.data.slices]
        mask[i, :ny, :nx] = 0
    zero = np.zeros_like(image)
    return Frame(exposure, detector, dark_time, raw, image, zero, zero[:, :, 0].copy(), mask, "adu")
