"""Footprints of saturated pixels and of the trails they bleed (Lupton 2016, Secs. 2.5, 3.5; §4).

A pixel that is full spills along its column. What is spilled fills the neighbours to the full well, one after the
other, and the last one at either end in part. At the far end of an amplifier's columns, the mid-line of the CCD,
charge is turned back, and next to the serial register it is lost: a trail never leaves its amplifier.
"""

from typing import Final

import numpy as np
import xarray as xr
from numba import njit
from scipy.ndimage import label

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["bleed_mask", "flag_bleeding", "full_wells", "trail_charges"]

_WELLS: Final = ("well_bloom", "well_serial", "well_adc")
_SIGMA: Final = 4.0
"""Read noises by which a full pixel may read below the full well."""


@njit(nogil=True, cache=True)
def _footprint(image, limit, grow, out):  # type: ignore[no-untyped-def]
    """Mark pixels (y, x) at or above ``limit`` and ``grow`` more at either end of each run along y."""
    ny, nx = image.shape
    for y in range(ny):
        row, flags = image[y], out[y]
        for x in range(nx):
            flags[x] = row[x] >= limit
    for _ in range(grow):
        above = np.zeros(nx, np.bool_)
        for y in range(ny):
            flags = out[y]
            for x in range(nx):
                here = flags[x]
                below = y + 1 < ny and out[y + 1, x]
                flags[x] = here | above[x] | below
                above[x] = here


def bleed_mask(
    image: np.ndarray, well: np.ndarray, noise: np.ndarray | float = 0.0, *, slack: float = 0.01, grow: int = 1
) -> np.ndarray:
    """Pixels that are saturated or hold charge that was spilled: the mask bit SATURATED.

    A pixel is full if it reads ``(1 - slack) well - 4 noise`` or more; the footprint of a run of full pixels is the
    run and ``grow`` pixels beyond either end, which are filled in part.

    Parameters
    ----------
    image : (amplifier, y, x) electron, readout orientation; NaN is not saturated.
    well : (amplifier,) electron, see `full_wells`; NaN or infinite where unknown: nothing is marked.
    noise : (amplifier,) electron, read noise of a pixel.
    slack : relative error of gain, linearity and well together.

    Returns
    -------
    (amplifier, y, x) bool.

    Raises
    ------
    InconsistentGeometry
        As many wells as amplifiers are needed.

    Examples
    --------
    >>> column = np.array([0.0, 30.0, 100.0, 100.0, 20.0, 0.0], np.float32)
    >>> bleed_mask(column[None, :, None], np.array([100.0]))[0, :, 0]
    array([False,  True,  True,  True,  True, False])
    """
    well = np.asarray(well, np.float64)
    if image.ndim != 3 or well.shape != image.shape[:1]:
        raise InconsistentGeometry(
            f"bleed trails: image {image.shape} and wells {well.shape}: pass (amplifier, y, x) and (amplifier,)"
        )
    limits = (1 - slack) * well - _SIGMA * np.broadcast_to(noise, well.shape)
    out = np.zeros(image.shape, np.bool_)
    for part, limit, flags in zip(image, limits, out, strict=True):
        if np.isfinite(limit):
            _footprint(part, np.float32(limit), grow, flags)
    return out


def flag_bleeding(frame: Frame, well: np.ndarray) -> Frame:
    """Flag SATURATED what is full or was spilled into; ``well`` (amplifier,) as for `bleed_mask`; values stay.

    Full pixels read less than the well by their noise: its median is taken for that of an amplifier.
    """
    noise = np.array([_noise(part[::16, ::8]) for part in frame.variance])
    full = bleed_mask(frame.image, well, noise)
    return frame.with_(mask=frame.mask | np.where(full, MASK_BITS["SATURATED"], 0).astype(np.uint16))


def _noise(variance: np.ndarray) -> float:
    """Noise of the median pixel; none of an amplifier without data."""
    known = variance[np.isfinite(variance)]
    return float(np.sqrt(max(np.median(known), 0.0))) if known.size else 0.0


def full_wells(saturation: xr.Dataset, detector: Detector, sigma: float = 0.0) -> np.ndarray:
    """Charge (amplifier,), electron, at which something is full first: pixel, serial register or converter.

    Parameters
    ----------
    saturation : of the detector, with `well_bloom`, `well_serial`, `well_adc` and their errors, as far as there are.
    sigma : errors by which each is lowered, so that what is full is flagged even where a well came out too high.

    Returns
    -------
    NaN where none is known.
    """
    own = saturation.sel(amplifier=[a.name for a in detector.amplifiers])
    found = np.full(len(detector.amplifiers), np.inf)
    for name in (name for name in _WELLS if name in own):
        error = own[f"{name}_error"].values if f"{name}_error" in own else 0.0
        found = np.fmin(found, own[name].values - sigma * np.nan_to_num(error))
    return np.where(np.isfinite(found), found, np.nan)


def trail_charges(image: np.ndarray, footprint: np.ndarray, background: float = 0.0) -> np.ndarray:
    """Charge of each trail of one amplifier: what its pixels hold above the background.

    Charge is only moved along a trail, so this is what the sources that spilled had gathered in it.

    Parameters
    ----------
    image, footprint : (y, x) electron and `bleed_mask`; trails are the sets of pixels that touch by a side.
    background : electron in a pixel without source.

    Returns
    -------
    (trail,) electron, in the order of their first pixels.
    """
    found, count = label(footprint)
    return np.bincount(found.ravel(), (image - background).ravel(), count + 1)[1:]
