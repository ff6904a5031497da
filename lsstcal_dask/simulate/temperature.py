"""Temperature of the CCDs: a set point that is held, but not quite (SCIENCE 2.2, 2.7).

``T = nominal + offset + day + wander of the camera + wander of the CCD + jump``, a pure function of seed, CCD and time.
What follows it: the gain of a channel (`electronics.Gain`, 6.5e-4 per kelvin) and every dark rate (`dark.warming`).
"""

from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.processes import minutes, ornstein_uhlenbeck
from lsstcal_dask.simulate.random import stream

__all__ = ["Temperature", "ccd_temperature", "thermometer"]

_WARMEST: Final = 19.0  # h of UTC: 14 h in Chile
_CELSIUS: Final = 273.15


class Temperature(Effect):
    """How far the CCDs are from the nominal temperature of the camera: 0.1 K rms in all.

    The sizes are plausible, not measured: focal planes are held within some tenths of a kelvin.
    """

    offset: float = Field(0.0, ge=-50, le=50)  # K, of all CCDs at all times
    day: float = Field(0.05, ge=0, le=10)  # K, half the change from day to night
    camera: float = Field(0.07, ge=0, le=10)  # K rms, wander of all CCDs together
    camera_hours: float = Field(24.0, ge=0.1, le=1000)  # its memory
    ccd: float = Field(0.04, ge=0, le=10)  # K rms, of each CCD by itself
    ccd_hours: float = Field(6.0, ge=0.1, le=1000)
    jump: float = Field(0.05, ge=0, le=10)  # K rms: the level that each period has, after work on the cooling
    jump_days: float = Field(7.0, ge=0.1, le=1000)  # its length
    error: float = Field(0.02, ge=0, le=10)  # K rms, of a reading of the thermometer on a CCD


def ccd_temperature(seed: int, settings: Temperature, camera: Camera, detector: Detector, time: np.datetime64) -> float:
    """Temperature of a CCD, K; the camera's nominal one if the effect is off.

    Raises
    ------
    WrongUse
        The time is earlier than 1970.
    """
    if not settings.on:
        return camera.temperature
    now = minutes(time)
    day = settings.day * np.cos(2 * np.pi * (now / 60 % 24 - _WARMEST) / 24)
    together = settings.camera * ornstein_uhlenbeck(seed, "temperature.camera", time, settings.camera_hours)
    alone = settings.ccd * ornstein_uhlenbeck(seed, f"temperature.{detector.id}", time, settings.ccd_hours)
    period = int(now // (1440 * settings.jump_days))
    jump = settings.jump * stream(seed, "temperature.jump", exposure=period).standard_normal()
    return float(camera.temperature + settings.offset + day + together + alone + jump)


def thermometer(seed: int, settings: Temperature, detector: Detector, exposure_number: int, true: float) -> float:
    """What the thermometer on a CCD of temperature ``true`` (K) says in one exposure: deg C, two decimals."""
    random = stream(seed, "thermometer", exposure=exposure_number, detector=detector.id)
    error = settings.error * random.standard_normal() if settings.on else 0.0
    return round(float(true - _CELSIUS + error), 2)
