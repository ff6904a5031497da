"""Transmission of the air, and how the air changes with time (SCIENCE 2.13 and 6; ¶12-¶15).

T = gray exp(-X (Rayleigh + aerosol + collisions) - X_O ozone) T_O2 T_H2O, in cells of 0.05 nm. The lines of
oxygen and water are saturated inside a cell (`lines`), so their absorption is not Beer's law on any coarser grid.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate import lines, random
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.processes import Waves, kolmogorov, minutes, night, noon, ornstein_uhlenbeck

__all__ = [
    "REFERENCE_PRESSURE",
    "REFERENCE_WAVELENGTH",
    "Air",
    "Atmosphere",
    "Clouds",
    "air",
    "band_average",
    "cloud_extinction",
    "transmission",
]

REFERENCE_WAVELENGTH: Final = 500.0
"""Where the aerosol depth is given, nm."""

REFERENCE_PRESSURE: Final = 1013.25
"""Of the air for which Rayleigh and oxygen depths are written down, hPa."""

_OZONE_HEIGHT: Final = 22.0  # km above the site
_EARTH: Final = 6371.0  # km

# Ozone, optical depth of 1000 DU: Gaussians of the Chappuis band (depth, centre nm, standard deviation nm), and
# ln depth of the Hartley-Huggins edge in x = (wavelength - 320 nm) / 20 nm: a cubic with a progression of bands,
# even in wavenumber. Fitted to the ozone of libRadtran (300 DU): 0.1 % of transmission above 400 nm; below 350 nm
# 2 % rms, 1 % over 5 nm.
_CHAPPUIS: Final = np.array(
    [
        [0.0091, 470.00, 20.86],
        [0.0125, 485.96, 7.62],
        [0.0208, 504.93, 6.52],
        [0.0765, 542.02, 21.90],
        [0.0739, 572.34, 11.35],
        [0.0539, 599.14, 12.30],
        [0.0670, 615.00, 24.47],
        [0.0386, 655.00, 38.31],
        [0.0081, 746.67, 59.44],
    ]
).T
_HUGGINS: Final = (-0.0185, -0.2132, -3.0083, -0.5574)
_HUGGINS_BANDS: Final = (-0.2146, 1.1248, 278.51, 30619.7)  # size, its growth with x, period and origin in cm-1
# Pairs of oxygen molecules: depth at 733 hPa, centre and standard deviation in nm, fitted to libRadtran.
_COLLISIONS: Final = np.array([[0.0081, 577.0, 4.5], [0.0040, 629.5, 6.0], [0.0092, 1065.0, 11.0]]).T
_COLLISIONS_PRESSURE: Final = 733.0


@dataclass(frozen=True)
class Air:
    """What a column of air holds; all zero is no air."""

    pressure: float = 0.0  # hPa at the telescope
    ozone: float = 0.0  # Dobson units
    water: float = 0.0  # mm of precipitable water
    aerosol: float = 0.0  # optical depth at 500 nm, zenith
    aerosol_index: float = 1.0  # depth goes as wavelength**-index
    cloud: float = 0.0  # mag of gray extinction on the line of sight, whatever the airmass


class Atmosphere(Effect):
    """Air over Cerro Pachon and how it changes.

    Ornstein-Uhlenbeck processes; those of water and aerosol are of the logarithm, so they stay positive. Means:
    pressure from the 784 hPa measured at CTIO, carried up 450 m; ozone of 30 deg S; aerosol of the clean air of
    CTIO (Burke et al. 2010, 2014); water a little drier than LSST's standard atmosphere, which this model fits with
    733 hPa, 320 DU, 4.0 mm, depth 0.045 and index 1.0. The variances are those of a month of nights.
    """

    pressure: float = Field(740.0, ge=300, le=1100)  # hPa
    pressure_rms: float = Field(1.5, ge=0, le=20)  # hPa
    pressure_hours: float = Field(36.0, ge=0.1, le=100)
    ozone: float = Field(260.0, ge=0, le=625)  # DU
    ozone_rms: float = Field(10.0, ge=0, le=50)  # DU; the same all night
    ozone_hours: float = Field(60.0, ge=0.1, le=100)
    water: float = Field(3.0, ge=0, le=20)  # mm
    water_rms: float = Field(0.35, ge=0, le=1)  # of ln water
    water_hours: float = Field(5.0, ge=0.1, le=100)
    aerosol: float = Field(0.04, ge=0, le=1)  # at 500 nm
    aerosol_rms: float = Field(0.30, ge=0, le=1)  # of ln aerosol
    aerosol_hours: float = Field(8.0, ge=0.1, le=100)
    aerosol_index: float = Field(1.2, ge=0, le=4)
    aerosol_index_rms: float = Field(0.2, ge=0, le=1)


class Clouds(Effect):
    """Gray clouds: thin cirrus drawn over the sky by the wind.

    In a cloudy night the extinction is a log-normal field of Kolmogorov structure (a layer thinner than the
    separations): level * exp(contrast g - contrast**2 / 2), g Gaussian of variance 1. Gray structure of this kind at
    0.1-10 deg was found in repeated exposures of CTIO by Burke et al. 2014.
    """

    photometric: float = Field(0.6, ge=0, le=1)  # fraction of nights without a cloud
    level: float = Field(0.15, ge=0, le=5)  # mag, mean over cloudy nights
    level_rms: float = Field(0.7, ge=0, le=1.5)  # of ln level, from night to night
    contrast: float = Field(0.4, ge=0, le=1)  # rms of ln extinction in a night
    inner: float = Field(0.02, gt=0, le=1)  # deg, smallest structure
    outer: float = Field(20.0, gt=1, le=180)  # deg, largest structure
    wind: float = Field(0.12, ge=0, le=1)  # deg/s: 20 m/s at 9 km
    gusts: float = Field(0.3, ge=0, le=1)  # rms of the speed from wave to wave over the wind: clouds change shape
    waves: int = Field(192, ge=16, le=4096)


def air(seed: int, settings: Atmosphere, time: np.datetime64) -> Air:
    """State of the air at a time (UTC), without clouds; no air if the effect is off."""
    if not settings.on:
        return Air()
    pressure = ornstein_uhlenbeck(seed, "atmosphere.pressure", time, settings.pressure_hours)
    ozone = ornstein_uhlenbeck(seed, "atmosphere.ozone", noon(time), settings.ozone_hours)
    water = ornstein_uhlenbeck(seed, "atmosphere.water", time, settings.water_hours)
    aerosol = ornstein_uhlenbeck(seed, "atmosphere.aerosol", time, settings.aerosol_hours)
    index = ornstein_uhlenbeck(seed, "atmosphere.aerosol_index", time, settings.aerosol_hours)
    return Air(
        pressure=settings.pressure + settings.pressure_rms * pressure,
        ozone=max(0.0, settings.ozone + settings.ozone_rms * ozone),
        water=settings.water * float(np.exp(settings.water_rms * water - settings.water_rms**2 / 2)),
        aerosol=settings.aerosol * float(np.exp(settings.aerosol_rms * aerosol - settings.aerosol_rms**2 / 2)),
        aerosol_index=settings.aerosol_index + settings.aerosol_index_rms * index,
    )


def cloud_extinction(
    seed: int, settings: Clouds, time: np.datetime64, x_deg: np.ndarray, y_deg: np.ndarray
) -> np.ndarray:
    """Gray extinction by clouds at one instant, mag on the line of sight, as float64 of the shape of ``x_deg``.

    Parameters
    ----------
    x_deg, y_deg : degrees on the plane of the sky that the wind crosses, any origin that stays fixed in a night.
    """
    x_deg, y_deg = np.broadcast_arrays(np.asarray(x_deg, float), np.asarray(y_deg, float))
    if settings.on:
        level, waves = _clouds(seed, settings, night(time))
        if level > 0:
            field = waves.at(60 * (minutes(time) - minutes(noon(time))), x_deg, y_deg)
            return level * np.exp(settings.contrast * field - settings.contrast**2 / 2)
    return np.zeros(x_deg.shape)


@lru_cache(maxsize=8)
def _clouds(seed: int, settings: Clouds, number: int) -> tuple[float, Waves]:
    """Mean extinction (mag) of a night and its waves of variance 1."""
    draw = random.stream(seed, "clouds", exposure=number)
    if draw.random() < settings.photometric:
        return 0.0, Waves(*np.zeros((5, 0)))
    level = settings.level * np.exp(settings.level_rms * draw.standard_normal() - settings.level_rms**2 / 2)
    heading = draw.uniform(0, 2 * np.pi)
    k, variance = kolmogorov(settings.waves, settings.inner, settings.outer)
    angle = draw.uniform(0, 2 * np.pi, len(k))
    speed = settings.wind * (np.cos(angle - heading) + settings.gusts * draw.standard_normal(len(k)))
    cosine, sine = np.sqrt(variance) * draw.standard_normal((2, len(k)))
    return float(level), Waves(k * np.cos(angle), k * np.sin(angle), k * speed, cosine, sine)


def transmission(air: Air, airmass: float, wavelength: np.ndarray) -> np.ndarray:
    """Fraction of the photons that come through the air.

    Parameters
    ----------
    air : what is on the way.
    airmass : of air that falls off with height as the pressure does; that of ozone, high up, follows from it.
    wavelength : (wavelength,) nm, vacuum, ascending, the middles of bins that meet half-way (the first and last
        are symmetric). One alone is a bin of 0.05 nm. Bins finer than 0.05 nm see cells of that width.

    Returns
    -------
    (wavelength,) mean transmission of each bin.

    Raises
    ------
    WrongUse
        Wavelengths not ascending or beyond 295-1155 nm; airmass under 1 or over 40.
    """
    middle = np.atleast_1d(np.asarray(wavelength, float))
    if len(middle) == 1:
        return band_average(air, airmass, middle[0] + np.array([-0.5, 0.5]) * lines.CELL)
    half = np.diff(middle) / 2
    edges = np.concatenate([middle[:1] - half[:1], middle[:-1] + half, middle[-1:] + half[-1:]])
    return band_average(air, airmass, edges)


def band_average(air: Air, airmass: float, edges: np.ndarray) -> np.ndarray:
    """As `transmission`, between each two of the ``edges`` (bin + 1,) nm: (bin,)."""
    edges = np.asarray(edges, float)
    if not np.all(np.diff(edges) > 0):
        raise WrongUse("atmospheric transmission: wavelengths do not ascend; sort them and drop doubles")
    if edges[0] < lines.START or edges[-1] > lines.STOP:
        raise WrongUse(
            f"atmospheric transmission: {edges[0]:g}-{edges[-1]:g} nm is beyond {lines.START:g}-{lines.STOP:g} nm"
        )
    if not 1 <= airmass <= 40:
        raise WrongUse(f"atmospheric transmission: airmass {airmass} is not in 1 to 40")
    sums = _running_sum(air, float(airmass))
    at = (edges - lines.START) / lines.CELL
    left = np.minimum(at.astype(int), len(sums) - 2)
    value = sums[left] + (at - left) * (sums[left + 1] - sums[left])
    return np.diff(value) / np.diff(at)


@lru_cache(maxsize=4)
def _running_sum(air: Air, airmass: float) -> np.ndarray:
    """Sum of the transmission of all cells before each edge of a cell."""
    out = np.concatenate([[0], np.cumsum(_cells(air, airmass))])
    out.flags.writeable = False
    return out


def _cells(air: Air, airmass: float) -> np.ndarray:
    """Mean transmission of each cell."""
    rayleigh, ozone, pairs, log_wavelength = _continuum()
    pressure = air.pressure / REFERENCE_PRESSURE
    depth = airmass * (pressure * rayleigh + pressure**2 * pairs)
    depth += _layer_airmass(airmass, _OZONE_HEIGHT) * air.ozone / 1000 * ozone
    if air.aerosol:
        depth += airmass * air.aerosol * np.exp(-air.aerosol_index * log_wavelength)
    out = np.exp(-depth - 0.4 * np.log(10) * air.cloud)
    if air.pressure:
        out *= lines.oxygen().transmission(airmass * pressure, pressure, len(out))
    if air.water:
        out *= lines.water().transmission(airmass * air.water, 1.0, len(out))
    return out


@lru_cache(maxsize=1)
def _continuum() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depths of Rayleigh scattering and of pairs of molecules at 1013 hPa, of 1000 DU, and ln(wavelength / 500 nm)."""
    wavelength = lines.centres()
    x = (wavelength - 320) / 20
    size, growth, period, origin = _HUGGINS_BANDS
    bands = size * np.exp(growth * np.minimum(x, 1.6)) * np.cos(2 * np.pi * (1e7 / wavelength - origin) / period)
    ozone = np.where(wavelength < 380, np.exp(np.polyval(_HUGGINS, x) + bands), 0) + _gaussians(_CHAPPUIS, wavelength)
    pairs = _gaussians(_COLLISIONS, wavelength) * (REFERENCE_PRESSURE / _COLLISIONS_PRESSURE) ** 2
    found = _rayleigh(wavelength), ozone, pairs, np.log(wavelength / REFERENCE_WAVELENGTH)
    for part in found:
        part.flags.writeable = False
    return found


def _rayleigh(wavelength: np.ndarray) -> np.ndarray:
    """Zenith depth of 1013.25 hPa of dry air, Bodhaine et al. 1999, Eq. 30."""
    square = (wavelength / 1000) ** 2
    return (
        0.0021520
        * (1.0455996 - 341.29061 / square - 0.90230850 * square)
        / (1 + 0.0027059889 / square - 85.968563 * square)
    )


def _gaussians(parameters: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    return np.sum([a * np.exp(-0.5 * ((wavelength - c) / s) ** 2) for a, c, s in parameters.T], axis=0)


def _layer_airmass(airmass: float, height: float) -> float:
    """Of a thin layer at a height (km), in the direction where a flat atmosphere has this airmass."""
    return float(1 / np.sqrt(1 - (1 - 1 / airmass**2) / (1 + height / _EARTH) ** 2))
