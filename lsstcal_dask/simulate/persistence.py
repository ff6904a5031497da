"""Persistence: pixels that were bright give back charge in the exposure that follows (SCIENCE 6, stage 6).

Charge that fills a pixel far enough touches the surface of the silicon, whose states keep a share f of what exceeds
a threshold and release it as exp(-t / tau), t from when the pixel was read. An exposure has no memory but of the one
before it, whose charge is worked out again: a frame is a function of its seed and of the two exposures, in any order.
"""

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.grids import check_image

__all__ = ["Persistence", "released"]


class Persistence(Effect):
    """How much charge stays, and how long. Off by default: it doubles the time that an exposure takes.

    In e2v sensors before their voltages were changed: 10 to 20 adu in the first dark after a flat of more than full
    well, with ``tau`` of 10 to 20 s (DMTN-276; SITCOMTN-148 quotes 30 s). With these numbers a pixel of
    167 000 electrons leaves 67 behind, of which 27 appear in a dark of 15 s begun 5 s later. ITL sensors show none.
    The threshold is illustrative, and so is the proportion to what exceeds it.
    """

    on: bool = False
    e2v: float = Field(1e-3, ge=0, le=1)  # f
    itl: float = Field(0.0, ge=0, le=1)
    other: float = Field(0.0, ge=0, le=1)
    threshold: float = Field(1e5, ge=0)  # electrons
    tau: float = Field(20.0, gt=0)  # s


def released(
    settings: Persistence, detector: Detector, charge: np.ndarray, idle: float, dark_time: float, row_time: float
) -> np.ndarray:
    """Charge that an earlier exposure leaves in the pixels of this one.

    Every pixel waits for its row in both readouts alike: it is read ``idle + dark_time`` after it was read before,
    and emptied when this exposure begins.

    Parameters
    ----------
    charge : (y, x) over ``detector.shape``, electron: of the exposure before, when its readout began.
    idle : s between the end of that exposure and the start of this one.
    dark_time : s of this exposure until its readout begins.
    row_time : s to read a row.

    Returns
    -------
    (y, x) float32, electron, expected.

    Raises
    ------
    InconsistentGeometry
        ``charge`` has not the shape of the CCD.
    """
    check_image(detector, charge)
    share = {"e2v": settings.e2v, "ITL": settings.itl}.get(detector.vendor, settings.other)
    kept = np.float32(share) * np.maximum(charge - np.float32(settings.threshold), np.float32(0))
    for amplifier in detector.amplifiers:
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        wait = row_time * (amplifier.data.y0 + np.arange(ny)[:: -1 if amplifier.flip_y else 1])
        begin, end = np.maximum(idle - wait, 0), idle + dark_time
        given = np.exp(-begin / settings.tau) - np.exp(-np.maximum(end, begin) / settings.tau)
        kept[y0 : y0 + ny, x0 : x0 + nx] *= given[:, None].astype(np.float32)
    return kept
