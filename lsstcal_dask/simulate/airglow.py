"""The night sky's light in space, time and wavelength (♥2, SCIENCE 2.8.3, 2.9 and 6).

Every radiance here is that of a sky seen through no air: what reaches the telescope is radiance x transmission at the
pointing's airmass, extinction and absorption lines included. The image of the sky is

    sum over components  amplitude(x, y, t) zenith_factor (radiance + (T(x, y, t) - T0) change) transmission response

with the components the families of hydroxyl by upper vibrational level, oxygen, three atoms, and the continuum.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate import hydroxyl, random
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.lines import oxygen_glow
from lsstcal_dask.simulate.moon import Moon, moonlight
from lsstcal_dask.simulate.processes import Waves, minutes, night, noon, ornstein_uhlenbeck, sky_plane

__all__ = [
    "COMPONENTS",
    "RAYLEIGH",
    "Airglow",
    "Moon",
    "family_amplitudes",
    "mean_bands",
    "rotational_temperature",
    "sky_components",
    "sky_spectrum",
    "temperature_components",
    "zenith_factor",
]

COMPONENTS: Final = (*(f"OH{v}" for v in hydroxyl.UPPER), "O2", "OI green", "OI red", "Na", "continuum")
"""Names of the components, in the order of every array of them; the continuum does not wave."""

RAYLEIGH: Final = 1e10 / (4 * np.pi) * (np.pi / 648000) ** 2
"""photon s-1 m-2 arcsec-2 in 1 rayleigh."""

# Rayleighs of each band v' -> v'' of OH at the zenith: a model of the sky over Paranal (ESO SkyCalc as kept by GalSim,
# absorption taken out) times 0.75, which brings it to the dark sky that LSST assumes.
_BANDS: Final[dict[int, dict[int, float]]] = {
    3: {0: 3290},
    4: {0: 170, 1: 7500},
    5: {0: 13, 1: 611, 2: 10550},
    6: {1: 68, 2: 1116, 3: 12480},
    7: {1: 9, 2: 139, 3: 2073},
    8: {2: 34, 3: 417, 4: 2458},
    9: {2: 8, 3: 65, 4: 578, 5: 2806},
}
_OXYGEN_BAND: Final = 210.0  # rayleighs, 0-1 band
# Wavelength (nm, vacuum; NIST) and rayleighs of atomic lines
_ATOMS: Final = {
    "OI green": ((557.8887, 250.0),),
    "OI red": ((630.2046, 190.0), (636.5536, 63.0)),
    "Na": ((589.1583, 36.0), (589.7558, 24.0)),
}
# Photon s-1 m-2 nm-1 arcsec-2 of zodiacal light, scattered starlight and the airglow's continuum, between the lines
# of the same model, lowered in the ultraviolet and beyond 850 nm to LSST's dark sky.
_CONTINUUM_NM: Final = (300.0, 330.0, 370.0, 450.0, 520.0, 580.0, 620.0, 680.0, 760.0, 820.0, 870.0, 1150.0)
_CONTINUUM: Final = (0.150, 0.170, 0.150, 0.155, 0.160, 0.220, 0.210, 0.190, 0.250, 0.310, 0.420, 0.400)
_LAYER: Final = 90.0  # km, height of the emission
_EARTH: Final = 6371.0  # km


class Airglow(Effect):
    """Dark night sky: airglow and continuum.

    Waves of 1 deg (2 km at 100 km) with periods of 10-20 min that drift with a wind of 60 km/h: Lupton 2016, ♥2 and
    Sec. 2.9. The amplitude of each component is 1 + waves + slow change; a part of both is common to all of them.
    """

    scale: float = Field(1.0, ge=0, le=10)  # of the emission lines
    continuum: float = Field(1.0, ge=0, le=10)  # scale of the continuum
    continuum_glow: float = Field(0.5, ge=0, le=1)  # part of the continuum that comes from the layer
    temperature: float = Field(190.0, ge=100, le=400)  # K, mean rotational temperature
    temperature_rms: float = Field(4.0, ge=0, le=10)  # K
    wave_rms: float = Field(0.08, ge=0, le=0.12)  # of the mean; at most 0.12: an amplitude is never negative
    slow_rms: float = Field(0.08, ge=0, le=0.12)  # of the mean
    slow_hours: float = Field(2.0, ge=0.1, le=24)
    common: float = Field(0.5, ge=0, le=1)  # part of the variance that all components share
    wavelength: float = Field(1.0, gt=0.05, le=90)  # deg, typical of the waves
    wavelength_spread: float = Field(0.3, ge=0, le=1)  # rms of its logarithm
    shortest_period: float = Field(10.0, ge=1, le=600)  # min
    longest_period: float = Field(20.0, ge=1, le=600)  # min
    wind: float = Field(0.0095, ge=0, le=1)  # deg/s: 60 km/h at 100 km
    waves: int = Field(24, ge=4, le=1024)


def family_amplitudes(
    seed: int,
    settings: Airglow,
    time: np.datetime64,
    x_deg: np.ndarray,
    y_deg: np.ndarray,
    exposure_time: float = 0.0,
) -> np.ndarray:
    """Brightness of each component over its mean, averaged over an exposure.

    Parameters
    ----------
    time : start of the exposure, UTC.
    x_deg, y_deg : (...,) degrees on the plane of the sky, from the zenith to the east and north (`sky_plane`).
    exposure_time : s.

    Returns
    -------
    (component, ...) float64, mean 1; exactly 1 for the continuum, and for all if the effect is off.
    """
    x_deg, y_deg = np.broadcast_arrays(np.asarray(x_deg, float), np.asarray(y_deg, float))
    out = np.ones((len(COMPONENTS), *x_deg.shape))
    if settings.on:
        shared, own = np.sqrt(settings.common), np.sqrt(1 - settings.common)
        together = shared * _change(seed, settings, "common", time, x_deg, y_deg, exposure_time)
        for i, name in enumerate(COMPONENTS[:-1]):
            out[i] += together + own * _change(seed, settings, name, time, x_deg, y_deg, exposure_time)
    return out


def rotational_temperature(
    seed: int,
    settings: Airglow,
    time: np.datetime64,
    x_deg: np.ndarray,
    y_deg: np.ndarray,
    exposure_time: float = 0.0,
) -> np.ndarray:
    """Rotational temperature of the layer, K, of the shape of ``x_deg``; see `family_amplitudes`."""
    x_deg, y_deg = np.broadcast_arrays(np.asarray(x_deg, float), np.asarray(y_deg, float))
    if not settings.on:
        return np.full(x_deg.shape, settings.temperature)
    waves = _waves(seed, settings, "temperature", night(time))
    field = waves.at(_clock(time), x_deg, y_deg, exposure_time)
    return settings.temperature + settings.temperature_rms * field


def mean_bands() -> dict[str, tuple[int, float]]:
    """Component and photon s-1 m-2 arcsec-2, at the zenith without air, of each band of the mean sky, by its name."""
    found = {
        f"OH {upper}-{lower}": (i, size * RAYLEIGH)
        for i, upper in enumerate(hydroxyl.UPPER)
        for lower, size in _BANDS[upper].items()
    }
    found["O2 0-1"] = COMPONENTS.index("O2"), _OXYGEN_BAND * RAYLEIGH
    for name, lines in _ATOMS.items():
        found[name] = COMPONENTS.index(name), sum(size for _, size in lines) * RAYLEIGH
    return found


def sky_components(settings: Airglow, edges: np.ndarray) -> np.ndarray:
    """Mean radiance of each component at the zenith and the mean rotational temperature.

    Parameters
    ----------
    edges : (bin + 1,) nm, vacuum, ascending; lines are far narrower than a bin and belong to one.

    Returns
    -------
    (component, bin) photon s-1 m-2 arcsec-2 in each bin; zero if the effect is off.

    Raises
    ------
    WrongUse
        The edges do not ascend.
    """
    return _components(settings, edges, settings.temperature)


def temperature_components(settings: Airglow, edges: np.ndarray) -> np.ndarray:
    """Change of `sky_components` with rotational temperature, photon s-1 m-2 arcsec-2 K-1: (component, bin)."""
    step = 5.0
    up, down = (_components(settings, edges, settings.temperature + sign * step) for sign in (1, -1))
    return (up - down) / (2 * step)


def zenith_factor(settings: Airglow, altitude: float) -> np.ndarray:
    """Brightness of each component at an altitude (deg) over that at the zenith: (component,).

    A thin layer 90 km up, seen slantwise (van Rhijn 1921); the rest of the continuum is the same everywhere.
    """
    sine = np.cos(np.deg2rad(altitude)) / (1 + _LAYER / _EARTH)
    factor = 1 / np.sqrt(1 - sine**2)
    out = np.full(len(COMPONENTS), factor)
    out[-1] = 1 + settings.continuum_glow * (factor - 1)
    return out


def sky_spectrum(
    seed: int,
    airglow: Airglow,
    moon: Moon,
    time: np.datetime64,
    pointing: tuple[float, float],
    edges: np.ndarray,
    exposure_time: float = 0.0,
) -> np.ndarray:
    """Radiance of the sky in one direction, averaged over an exposure, without the air's absorption.

    Parameters
    ----------
    time : start of the exposure, UTC.
    pointing : altitude and azimuth, deg.
    edges : (bin + 1,) nm, vacuum, ascending.

    Returns
    -------
    (bin,) photon s-1 m-2 arcsec-2 in each bin.
    """
    altitude, azimuth = pointing
    x, y = (np.array(v) for v in sky_plane(altitude, azimuth))
    amplitude = family_amplitudes(seed, airglow, time, x, y, exposure_time) * zenith_factor(airglow, altitude)
    excess = rotational_temperature(seed, airglow, time, x, y, exposure_time) - airglow.temperature
    glow = amplitude @ (sky_components(airglow, edges) + excess * temperature_components(airglow, edges))
    middle = time + np.timedelta64(round(5e5 * exposure_time), "us")
    return glow + moonlight(moon, middle, altitude, azimuth, edges)


def _change(
    seed: int, settings: Airglow, name: str, time: np.datetime64, x: np.ndarray, y: np.ndarray, exposure_time: float
) -> np.ndarray:
    """Waves and slow change of a component, of the mean."""
    middle = time + np.timedelta64(round(5e5 * exposure_time), "us")
    out = np.zeros(x.shape)
    if settings.slow_rms:
        out += settings.slow_rms * ornstein_uhlenbeck(seed, f"airglow.slow.{name}", middle, settings.slow_hours)
    if settings.wave_rms:
        waves = _waves(seed, settings, name, night(time))
        out += settings.wave_rms * waves.at(_clock(time), x, y, exposure_time)
    return out


def _clock(time: np.datetime64) -> float:
    """Seconds since the noon before."""
    return 60 * (minutes(time) - minutes(noon(time)))


@lru_cache(maxsize=64)
def _waves(seed: int, settings: Airglow, name: str, number: int) -> Waves:
    """Gravity waves of variance 1 of a component in a night."""
    draw = random.stream(seed, f"airglow.waves.{name}", exposure=number)
    count = settings.waves
    length = settings.wavelength * np.exp(settings.wavelength_spread * draw.standard_normal(count))
    period = 60 * draw.uniform(settings.shortest_period, settings.longest_period, count)
    angle, heading = draw.uniform(0, 2 * np.pi, count), _heading(seed, number)
    k = 2 * np.pi / length
    frequency = 2 * np.pi / period + k * settings.wind * np.cos(angle - heading)
    cosine, sine = draw.standard_normal((2, count)) / np.sqrt(count)
    return Waves(k * np.cos(angle), k * np.sin(angle), frequency, cosine, sine)


def _heading(seed: int, number: int) -> float:
    """Direction to which the wind of a night blows at the layer, rad."""
    return float(random.stream(seed, "airglow.wind", exposure=number).uniform(0, 2 * np.pi))


def _components(settings: Airglow, edges: np.ndarray, temperature: float) -> np.ndarray:
    edges = np.asarray(edges, float)
    if not np.all(np.diff(edges) > 0):
        raise WrongUse("night sky: the edges of the wavelength bins do not ascend; sort them and drop doubles")
    out = np.zeros((len(COMPONENTS), len(edges) - 1))
    if settings.on:
        for i, (wavelength, brightness) in enumerate(_line_list(temperature)):
            out[i] = settings.scale * np.histogram(wavelength, edges, weights=brightness)[0]
        out[-1] = settings.continuum * np.diff(_continuum_integral(edges))
    return out


@lru_cache(maxsize=8)
def _line_list(temperature: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Wavelengths (nm) and brightness (photon s-1 m-2 arcsec-2) of the lines of each component but the continuum."""
    found = []
    for upper in hydroxyl.UPPER:
        bands = [(hydroxyl.band(upper, lower, temperature), size) for lower, size in _BANDS[upper].items()]
        found.append((np.concatenate([b[0] for b, _ in bands]), np.concatenate([b[1] * s for b, s in bands])))
    wavelength, share = oxygen_glow(temperature)
    found.append((wavelength, _OXYGEN_BAND * share))
    for name in COMPONENTS[len(found) : -1]:
        wavelength, brightness = np.array(_ATOMS[name]).T
        found.append((wavelength, brightness))
    return tuple((wavelength, RAYLEIGH * brightness) for wavelength, brightness in found)


def _continuum_integral(wavelength: np.ndarray) -> np.ndarray:
    """Of the continuum from 300 nm to each wavelength: exact for straight pieces, constant radiance beyond them."""
    nodes, height = np.array(_CONTINUUM_NM), np.array(_CONTINUUM)
    ends = [min(wavelength[0], nodes[0]), max(wavelength[-1], nodes[-1])]
    every = np.unique(np.concatenate([nodes, wavelength, ends]))
    value = np.interp(every, nodes, height)
    sums = np.concatenate([[0], np.cumsum(np.diff(every) * (value[1:] + value[:-1]) / 2)])
    return np.interp(wavelength, every, sums)
