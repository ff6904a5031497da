"""What the weather station and the ozone satellite report (¶14): the air's truth with the errors of measurement."""

from typing import Final

import numpy as np
from astropy.table import Table
from pydantic import Field

from lsstcal_dask.simulate import random
from lsstcal_dask.simulate.atmosphere import Atmosphere, air
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.processes import minutes, ornstein_uhlenbeck

__all__ = ["Weather", "weather"]

_WARMEST: Final = 19.0  # h of UTC: 14 h in Chile
_DAY: Final = np.timedelta64(24 * 60, "m")


class Weather(Effect):
    """Instruments, and the weather that only they see.

    Errors: of barometers and thermometers of a mountain weather station; of total ozone columns from space, 2 %
    (OMI and OMPS against ground stations, McPeters et al. 2008). Climate: night temperatures and winds of Cerro
    Pachon, the wind mostly from the north-east.
    """

    pressure_error: float = Field(0.3, ge=0, le=20)  # hPa, rms of one reading
    pressure_offset: float = Field(0.2, ge=0, le=20)  # hPa, rms over barometers: the same for all readings
    ozone_error: float = Field(5.0, ge=0, le=100)  # DU, rms of one overpass
    overpass: float = Field(18.0, ge=0, lt=24)  # h of UTC, once a day; 13.7 h in Chile
    temperature: float = Field(10.0, ge=-40, le=40)  # deg C, mean
    temperature_day: float = Field(3.0, ge=0, le=20)  # deg C, half the change from day to night
    temperature_rms: float = Field(3.0, ge=0, le=20)  # deg C, from day to day
    temperature_hours: float = Field(60.0, ge=0.1, le=1000)
    temperature_error: float = Field(0.2, ge=0, le=10)  # deg C
    wind_east: float = Field(-4.0, ge=-40, le=40)  # m/s, mean, towards the east
    wind_north: float = Field(-4.0, ge=-40, le=40)  # m/s, mean, towards the north
    wind_rms: float = Field(3.0, ge=0, le=20)  # m/s, of each component
    wind_hours: float = Field(3.0, ge=0.1, le=1000)
    wind_error: float = Field(0.3, ge=0, le=10)  # m/s, of each component


def weather(seed: int, settings: Weather, atmosphere: Atmosphere, times: np.ndarray) -> Table:
    """Readings at some times.

    Parameters
    ----------
    times : (n,) datetime64, UTC, in any order; a reading depends on its own time only.

    Returns
    -------
    Table of n rows: ``time`` (UTC), ``pressure`` (hPa), ``ozone`` (DU, of the last overpass, at ``ozone_time``),
    ``temperature`` (deg C), ``wind_speed`` (m/s), ``wind_direction`` (deg, north over east, where it comes from),
    and the standard deviation of each as ``NAME_error``. The truth with errors of zero if the effect is off.

    Raises
    ------
    WrongUse
        A time is earlier than 1970.
    """
    rows = [_reading(seed, settings, atmosphere, time) for time in np.atleast_1d(np.asarray(times, "datetime64[us]"))]
    units = {"pressure": "hPa", "ozone": "DU", "temperature": "deg_C", "wind_speed": "m/s", "wind_direction": "deg"}
    table = Table(rows=rows) if rows else Table(names=("time",), dtype=("datetime64[us]",))
    for name in table.colnames:
        if name.removesuffix("_error") in units:
            table[name].unit = units[name.removesuffix("_error")]
    return table


def _reading(seed: int, settings: Weather, atmosphere: Atmosphere, time: np.datetime64) -> dict[str, object]:
    noise = random.stream(seed, "weather", exposure=round(minutes(time) * 60000)).standard_normal(4)
    size = 1.0 if settings.on else 0.0
    offset = settings.pressure_offset * random.stream(seed, "weather.barometer").standard_normal()
    wind = _wind(seed, settings, time) + size * settings.wind_error * noise[:2]
    speed = float(np.hypot(*wind))
    ozone_time, ozone = _ozone(seed, settings, atmosphere, time)
    return {
        "time": time,
        "pressure": air(seed, atmosphere, time).pressure + size * (offset + settings.pressure_error * noise[2]),
        "pressure_error": size * float(np.hypot(settings.pressure_error, settings.pressure_offset)),
        "ozone": ozone,
        "ozone_error": size * settings.ozone_error,
        "ozone_time": ozone_time,
        "temperature": _temperature(seed, settings, time) + size * settings.temperature_error * noise[3],
        "temperature_error": size * settings.temperature_error,
        "wind_speed": speed,
        "wind_speed_error": size * settings.wind_error,
        "wind_direction": float(np.rad2deg(np.arctan2(*-wind)) % 360),
        "wind_direction_error": min(180.0, size * float(np.rad2deg(settings.wind_error / max(speed, 1e-3)))),
    }


def _ozone(seed: int, settings: Weather, atmosphere: Atmosphere, time: np.datetime64) -> tuple[np.datetime64, float]:
    """Time of the last overpass and its column, DU; now and the truth if the effect is off."""
    if not settings.on:
        return time, air(seed, atmosphere, time).ozone
    passage = time.astype("datetime64[D]") + np.timedelta64(round(settings.overpass * 60), "m")
    passage = passage if passage <= time else passage - _DAY
    error = random.stream(seed, "weather.ozone", exposure=int(minutes(passage))).standard_normal()
    return passage.astype("datetime64[us]"), air(seed, atmosphere, passage).ozone + settings.ozone_error * error


def _temperature(seed: int, settings: Weather, time: np.datetime64) -> float:
    """True temperature, deg C."""
    hour = minutes(time) / 60 % 24
    day = settings.temperature_day * np.cos(2 * np.pi * (hour - _WARMEST) / 24)
    slow = ornstein_uhlenbeck(seed, "weather.temperature", time, settings.temperature_hours)
    return float(settings.temperature + day + settings.temperature_rms * slow)


def _wind(seed: int, settings: Weather, time: np.datetime64) -> np.ndarray:
    """True wind, m/s towards the east and the north."""
    names = ("weather.wind_east", "weather.wind_north")
    change = np.array([ornstein_uhlenbeck(seed, name, time, settings.wind_hours) for name in names])
    return np.array([settings.wind_east, settings.wind_north]) + settings.wind_rms * change
