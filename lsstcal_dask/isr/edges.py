"""Pixels that are special by where they are: the edge of a sensor, the edge of the field (Lupton 2016, Sec. 2.11)."""

from functools import lru_cache

import numpy as np

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["flag_edges", "position_flags"]


def flag_edges(frame: Frame, edge: int, vignetting_mm: tuple[float, float] | None = None) -> Frame:
    """Flag the outer ``edge`` pixels of the sensor, and what is vignetted: see `instrument.Camera`.

    Pixels that nothing of the pupil reaches have NO_DATA, and are NaN.
    """
    where = frame.detector, frame.mask.shape[1:], edge, vignetting_mm
    flags, bits = position_flags(*where), _bits(*where)
    if not bits:
        return frame
    mask = frame.mask | flags
    if not bits & MASK_BITS["NO_DATA"]:
        return frame.with_(mask=mask)
    lost = mask & MASK_BITS["NO_DATA"] > 0
    image, variance = (np.where(lost, np.float32(np.nan), values) for values in (frame.image, frame.variance))
    return frame.with_(image=image, variance=variance, mask=mask)


@lru_cache(maxsize=4)  # of one LSST CCD 32 MB
def position_flags(
    detector: Detector, shape: tuple[int, int], edge: int, vignetting_mm: tuple[float, float] | None
) -> np.ndarray:
    """Mask bits (amplifier, y, x) uint16, over the padded image: EDGE, VIGNETTED, NO_DATA. Not to be written to."""
    flags = np.zeros((len(detector.amplifiers), *shape), np.uint16)
    for i, amplifier in enumerate(detector.amplifiers):
        ny, nx = amplifier.data.shape
        x, y = amplifier_to_ccd(amplifier, np.arange(nx), np.arange(ny)[:, None])
        rows, columns = detector.shape
        outer = (x < edge) | (x >= columns - edge) | (y < edge) | (y >= rows - edge)
        flags[i, :ny, :nx][outer] |= MASK_BITS["EDGE"]
        if vignetting_mm is not None and _farthest(detector) > vignetting_mm[0]:
            distance = np.hypot(*ccd_to_focal(detector, x, y))
            for bit, radius in zip(("VIGNETTED", "NO_DATA"), vignetting_mm, strict=True):
                flags[i, :ny, :nx][distance > radius] |= MASK_BITS[bit]
    flags.flags.writeable = False
    return flags


@lru_cache(maxsize=4)
def _bits(detector: Detector, shape: tuple[int, int], edge: int, vignetting_mm: tuple[float, float] | None) -> int:
    """Bits of `position_flags` that any pixel has."""
    return int(np.bitwise_or.reduce(position_flags(detector, shape, edge, vignetting_mm), axis=None))


def _farthest(detector: Detector) -> float:
    """Distance, mm, of the farthest corner of a CCD from the axis."""
    ny, nx = detector.shape
    return float(np.max(np.hypot(*ccd_to_focal(detector, np.array([0, nx, 0, nx]), np.array([0, 0, ny, ny])))))
