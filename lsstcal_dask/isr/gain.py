"""From adu to electrons, and the photon noise that comes with them (Lupton 2016, Sec. 2.2)."""

import numpy as np
import xarray as xr

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["apply_gain"]


def apply_gain(frame: Frame, gains: xr.Dataset) -> Frame:
    """Multiply by the gain; add to the variance the Poisson noise of the electrons.

    ``variance = g**2 * variance + max(image, 0)``, image in electrons. An amplifier
    without a gain becomes NaN and NO_DATA.

    Parameters
    ----------
    gains : ``gain`` (amplifier,), electron/adu, of this detector.
    """
    names = [a.name for a in frame.detector.amplifiers]
    gain = gains["gain"].sel(amplifier=names).values.astype(np.float32)[:, None, None]
    bad = ~(gain > 0)
    gain = np.where(bad, np.float32(np.nan), gain)
    image = frame.image * gain
    return frame.with_(
        image=image,
        variance=frame.variance * gain**2 + np.maximum(image, np.float32(0)),
        row_variance=frame.row_variance * gain[..., 0] ** 2,
        mask=frame.mask | np.where(bad, MASK_BITS["NO_DATA"], 0).astype(np.uint16),
        units="electron",
    )
