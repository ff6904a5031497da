"""From adu to electrons, and the photon noise that comes with them (Lupton 2016, Sec. 2.2)."""

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Detector

__all__ = ["gains_of"]


def gains_of(product: xr.Dataset, detector: Detector) -> np.ndarray:
    """Gains (amplifier,) float32, electron/adu, in the order of the detector; NaN where there is none to use.

    Parameters
    ----------
    product : ``gain`` (amplifier,), electron/adu.
    """
    gain = product["gain"].sel(amplifier=[a.name for a in detector.amplifiers]).values.astype(np.float32)
    return np.where(gain > 0, gain, np.float32(np.nan))
