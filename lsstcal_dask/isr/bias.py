"""What is subtracted first: the overscan level of each row, then the master bias (Lupton 2016, Sec. 3.1)."""

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels

__all__ = ["bias_jitter", "overscan_levels"]


def overscan_levels(raw: RawFrame, shape: tuple[int, int], config: OverscanConfig) -> tuple[np.ndarray, ...]:
    """Levels of the rows, and what they leave behind.

    Parameters
    ----------
    shape : (ny, nx) of the padded image.

    Returns
    -------
    level : (amplifier, y) float32, adu; NaN for a row without one, or all of an amplifier without a usable row.
    row_variance : (amplifier, y) float32, adu**2, of the level.
    noise : (amplifier,) float32, adu**2: read noise seen in the reference pixels, the nominal one without any.
    """
    count = len(raw.detector.amplifiers)
    level, variance = np.zeros((2, count, shape[0]), np.float32)
    noise = np.empty(count, np.float32)
    for i, amplifier in enumerate(raw.detector.amplifiers):
        ny = amplifier.data.shape[0]
        found = row_levels(reference_pixels(raw.counts[i][None], amplifier), config)
        level[i, :ny], variance[i, :ny] = found.level[0], found.variance[0]
        rms = float(found.read_noise[0])
        noise[i] = (amplifier.read_noise / amplifier.gain if np.isnan(rms) else rms) ** 2
    return level, variance, noise


def bias_jitter(bias: xr.Dataset, detector: Detector) -> np.ndarray:
    """Variance (amplifier, 1) float32, adu**2, of the level of a frame that has no overscan to tell it.

    Parameters
    ----------
    bias : ``level`` (exposure, amplifier), adu: how the levels of the frames in it repeat.
    """
    jitter = np.zeros((len(detector.amplifiers), 1), np.float32)
    for i, amplifier in enumerate(detector.amplifiers):
        if not amplifier.overscan.shape[1]:
            level = bias["level"].sel(amplifier=amplifier.name).values
            jitter[i] = np.nanvar(level, ddof=1) if np.isfinite(level).sum() > 1 else 0
    return jitter
