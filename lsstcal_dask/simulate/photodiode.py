"""The photodiode that counts the photons of lamp and laser (Lupton 2016, ¶8-¶10)."""

from typing import Any, Final

import numpy as np
from pydantic import Field
from scipy.constants import c, e, h
from scipy.special import ndtr

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.optics import waves
from lsstcal_dask.simulate.random import stream

__all__ = ["Photodiode", "photodiode_charge", "responsivity"]

Array = np.ndarray

_VOLT_NM: Final = h * c / e * 1e9  # wavelength, nm, of a photon of 1 eV


class Photodiode(Effect):
    """Errors of the photodiode and its electrometer."""

    noise: float = Field(1e-4, ge=0)  # rms relative, of one exposure
    drift: float = Field(2e-4, ge=0)  # rms relative, of its responsivity over days
    dark_current: float = 1e-13  # A, that is counted with the light; as in a record of LSSTCam's with little light
    zero_noise: float = Field(2e-14, ge=0)  # C rms, of the electrometer


def responsivity(wavelength: Any) -> Array:
    """Current for a watt of light on the photodiode, A/W.

    A smooth curve like that of a silicon diode of the kind national laboratories calibrate: quantum efficiency 0.66
    over much of the visible, less in the blue where light is absorbed near the surface and in the infrared where it
    goes through; 0.33 A/W at 633 nm and a peak of about 0.5 A/W near 960 nm. Zero below 190 nm.

    Parameters
    ----------
    wavelength : nm, vacuum, any shape.
    """
    w = np.asarray(wavelength, float)
    blue = 1 - 0.45 * np.exp(-np.maximum(w - 300, 0) / 90)
    red = ndtr((1062 - w) / 42)
    efficiency = np.where(w < 190, 0.0, 0.66 * blue * red)
    return np.asarray(efficiency * w / _VOLT_NM)


def photodiode_charge(seed: int, settings: Photodiode, exposure: Exposure, photons: Any, wavelength: Any) -> float:
    """Charge, C, that the photodiode reports for one exposure.

    sum photons (h c / wavelength) responsivity(wavelength), times 1 + drift + noise, plus dark current and zero noise.

    Parameters
    ----------
    photons : on the diode, at each wavelength: one number for a line, or for a broad lamp the photons of each bin.
    wavelength : nm, vacuum, of the same shape.

    Returns
    -------
    The charge of a perfect photodiode if switched off.

    Raises
    ------
    InconsistentGeometry
        There are not as many wavelengths as numbers of photons.
    """
    light, w = np.asarray(photons, float), np.asarray(wavelength, float)
    if light.shape != w.shape:
        raise InconsistentGeometry(
            f"exposure {exposure.name}: photons of shape {light.shape} at wavelengths of shape {w.shape}: "
            "give one wavelength to each"
        )
    charge = float(np.sum(light * (e * _VOLT_NM / w) * responsivity(w)))
    if not settings.on:
        return charge
    days = (exposure.time - np.datetime64("2026-01-01", "ms")) / np.timedelta64(1, "D")
    slow = float(waves(stream(seed, "photodiode drift"), np.asarray(days), np.zeros(()), 12, 1.0))
    quick, zero = stream(seed, "photodiode", exposure=exposure.number).normal(size=2)
    gained = charge * (1 + settings.drift * slow + settings.noise * quick)
    return float(gained + settings.dark_current * exposure.exposure_time + settings.zero_noise * zero)
