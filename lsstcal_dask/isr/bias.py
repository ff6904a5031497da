"""Subtraction of the overscan level and of the master bias (Lupton 2016, Sec. 3.1)."""

import numpy as np
import xarray as xr

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels
from lsstcal_dask.variables import MASK_BITS

__all__ = ["subtract_bias", "subtract_overscan"]


def subtract_overscan(frame: Frame, config: OverscanConfig = OverscanConfig()) -> Frame:
    """Subtract the level of each row; the variance becomes the read noise seen in the reference pixels.

    Rows without a level, or all of an amplifier without one usable row of reference pixels,
    become NaN and NO_DATA.
    """
    image, variance = frame.image.copy(), frame.variance.copy()
    row_variance, mask = frame.row_variance.copy(), frame.mask.copy()
    for i, amplifier in enumerate(frame.detector.amplifiers):
        ny = amplifier.data.shape[0]
        found = row_levels(reference_pixels(frame.raw[i][None], amplifier), config)
        noise = float(found.read_noise[0])
        if np.isnan(noise):  # no reference pixels: the nominal noise is all there is
            noise = amplifier.read_noise / amplifier.gain
        image[i, :ny] -= found.level[0][:, None]
        variance[i, :ny] += np.float32(noise**2)
        row_variance[i, :ny] += found.variance[0]
        mask[i, :ny][~np.isfinite(found.level[0])] |= MASK_BITS["NO_DATA"]
    return frame.with_(image=image, variance=variance, row_variance=row_variance, mask=mask)


def subtract_bias(frame: Frame, bias: xr.Dataset) -> Frame:
    """Subtract the master bias (§1), adu, of this detector.

    Parameters
    ----------
    bias : ``image``, ``variance``, ``mask`` (amplifier, y, x), ``row_variance`` (amplifier, y)
        and ``level`` (exposure, amplifier).
    """
    bias = bias.sel(amplifier=[a.name for a in frame.detector.amplifiers])
    jitter = np.zeros((len(frame.detector.amplifiers), 1), np.float32)
    for i, amplifier in enumerate(frame.detector.amplifiers):
        if not amplifier.overscan.shape[1]:  # the level of this frame is only known as well as levels repeat
            level = bias["level"].values[:, i]
            jitter[i] = np.nanvar(level, ddof=1) if np.isfinite(level).sum() > 1 else 0
    return frame.with_(
        image=frame.image - bias["image"].values,
        variance=frame.variance + bias["variance"].values,
        row_variance=frame.row_variance + bias["row_variance"].values + jitter,
        mask=frame.mask | bias["mask"].values,
    )
