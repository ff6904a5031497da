"""Moonlight in the night sky (♥2, SCIENCE 2.9): the place of the Moon and the light that the air scatters.

Brightness after Krisciunas & Schaefer 1991, which has an accuracy of 8-23 %; place after the low-precision formulae
of the Astronomical Almanac, good to 0.3 deg (the parallax of up to 1 deg is left out).
"""

from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.physics.units import photons_from_ab
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.processes import minutes

__all__ = ["SITE", "Moon", "moonlight", "place"]

SITE: Final = (-30.2446, -70.7494)
"""Latitude and longitude (deg, east) of the Rubin Observatory."""

_V_BAND: Final = 551.0  # nm
_SUN: Final = 5772.0  # K
_C2: Final = 1.438777e7  # nm K, hc/k

# Longitude and latitude of the Moon, deg: amplitude, phase (deg), and speed (deg/century) of each sine
_LONGITUDE: Final = np.array(
    [
        [6.29, 135.0, 477198.87],
        [-1.27, 259.3, -413335.36],
        [0.66, 235.7, 890534.22],
        [0.21, 269.9, 954397.74],
        [-0.19, 357.5, 35999.05],
        [-0.11, 186.5, 966404.03],
    ]
).T
_LATITUDE: Final = np.array(
    [[5.13, 93.3, 483202.02], [0.28, 228.2, 960400.89], [-0.28, 318.3, 6003.15], [-0.17, 217.6, -407332.21]]
).T


class Moon(Effect):
    """Light of the Moon that the air scatters into the beam."""

    scale: float = Field(1.0, ge=0, le=10)  # of the model's brightness
    extinction: float = Field(0.172, ge=0, le=1)  # mag/airmass in V: that of the model
    blueness: float = Field(2.0, ge=0, le=4)  # bluer than the Sun by wavelength**-blueness: air, less a red Moon


def place(time: np.datetime64) -> tuple[float, float, float]:
    """Altitude and azimuth (deg, north over east) of the Moon over Rubin, and its phase angle (deg, 0 when full)."""
    days = minutes(time) / 1440 - 10957.5  # since J2000
    century = days / 36525
    longitude = 218.32 + 481267.881 * century + _sines(_LONGITUDE, century)
    latitude = _sines(_LATITUDE, century)
    anomaly = np.deg2rad(357.53 + 35999.05 * century)
    sun = 280.460 + 36000.77 * century + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly)
    elongation = np.arccos(np.cos(np.deg2rad(latitude)) * np.cos(np.deg2rad(longitude - sun)))
    x, y, z = _unit(longitude, latitude)
    tilt = np.deg2rad(23.439)
    right_ascension = np.arctan2(y * np.cos(tilt) - z * np.sin(tilt), x)
    declination = np.arcsin(y * np.sin(tilt) + z * np.cos(tilt))
    hour_angle = np.deg2rad(280.46062 + 360.98564737 * days + SITE[1]) - right_ascension
    east, north, up = _horizon(hour_angle, declination)
    azimuth = np.rad2deg(np.arctan2(east, north)) % 360
    return float(np.rad2deg(np.arcsin(up))), float(azimuth), float(180 - np.rad2deg(elongation))


def moonlight(settings: Moon, time: np.datetime64, altitude: float, azimuth: float, edges: np.ndarray) -> np.ndarray:
    """Radiance of scattered moonlight, to be multiplied by the transmission of the air.

    The model is of light seen at the ground; it is divided by the transmission it assumes in V.

    Parameters
    ----------
    altitude, azimuth : where the telescope looks, deg.
    edges : (bin + 1,) nm, vacuum.

    Returns
    -------
    (bin,) photon s-1 m-2 arcsec-2 in each bin; zero while the Moon is down or if the effect is off.
    """
    edges = np.asarray(edges, float)
    moon_altitude, moon_azimuth, phase = place(time)
    if not settings.on or moon_altitude <= 0:
        return np.zeros(len(edges) - 1)
    here = _unit(azimuth, altitude)
    away = np.rad2deg(np.arccos(np.clip(np.dot(here, _unit(moon_azimuth, moon_altitude)), -1, 1)))
    brightness = settings.scale * _nanolamberts(90 - altitude, 90 - moon_altitude, away, phase, settings.extinction)
    brightness *= 10 ** (0.4 * settings.extinction * _airmass(90 - altitude))
    magnitude = (20.7233 - np.log(brightness / 34.08)) / 0.92104  # V mag arcsec-2, which is nearly AB
    middle = (edges[:-1] + edges[1:]) / 2
    return photons_from_ab(np.array(_V_BAND), magnitude) * _colour(middle, settings.blueness) * np.diff(edges)


def _nanolamberts(zenith: float, moon_zenith: float, away: float, phase: float, extinction: float) -> float:
    """V-band surface brightness of the moonlit sky at the ground, Krisciunas & Schaefer 1991, Eqs. 3, 15, 20, 21."""
    size = 10 ** (-0.4 * (3.84 + 0.026 * abs(phase) + 4e-9 * phase**4))
    rayleigh = 10**5.36 * (1.06 + np.cos(np.deg2rad(away)) ** 2)
    scattering = rayleigh + 10 ** (6.15 - away / 40)
    dimming = 10 ** (-0.4 * extinction * _airmass(moon_zenith))
    return float(scattering * size * dimming * (1 - 10 ** (-0.4 * extinction * _airmass(zenith))))


def _airmass(zenith: float) -> float:
    """Of Krisciunas & Schaefer 1991, Eq. 3."""
    return float((1 - 0.96 * np.sin(np.deg2rad(zenith)) ** 2) ** -0.5)


def _colour(wavelength: np.ndarray, blueness: float) -> np.ndarray:
    """Photons per nm over those in V: black body of the Sun and a power law."""

    def photons(at: np.ndarray) -> np.ndarray:
        return at ** -(4 + blueness) / np.expm1(_C2 / (at * _SUN))

    return photons(wavelength) / photons(np.array(_V_BAND))


def _sines(terms: np.ndarray, century: float) -> float:
    size, phase, speed = terms
    return float(np.sum(size * np.sin(np.deg2rad(phase + speed * century))))


def _unit(longitude: float, latitude: float) -> np.ndarray:
    a, b = np.deg2rad([longitude, latitude])
    return np.array([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)])


def _horizon(hour_angle: float, declination: float) -> tuple[float, float, float]:
    """East, north and up components of a direction over Rubin."""
    latitude = np.deg2rad(SITE[0])
    across = np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * across
    return east, north, np.sin(latitude) * np.sin(declination) + np.cos(latitude) * across
