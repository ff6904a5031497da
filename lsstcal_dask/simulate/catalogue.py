"""What catalogues say of the stars (¶15): magnitudes in three broad bands, and standards in given ones.

The errors of a star are a function of (seed, its id): the same whatever field it is looked up in.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from scipy.special import erf

from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.seds import ab_magnitude, spectra, templates
from lsstcal_dask.simulate.stars import NUMBER_BITS, Stars

__all__ = ["BANDS", "photometric_catalogue", "smooth_passband", "standards", "true_magnitudes"]

BANDS: Final = {
    "g": (395.80, 53.39, 839.65, 123.07, 0.31),
    "bp": (387.20, 59.71, 659.00, 11.99, -0.07),
    "rp": (629.45, 5.27, 918.95, 92.60, 0.04),
}
"""Arguments of `smooth_passband`, fitted to Gaia's G, BP and RP (Riello et al. 2021, A&A 649, A3): synthetic
magnitudes of dwarfs from 3000 to 17 000 K differ by less than 2 mmag."""

_ERROR_AT_20: Final = {"g": 0.006, "bp": 0.108, "rp": 0.052}  # mag, Gaia DR3 at G = 20
_ERROR_SLOPE: Final = 0.3  # dex/mag: with the above 1, 12 and 6 mmag at G = 17, as published
_STANDARD_LIMIT: Final = 19.0  # mag


def smooth_passband(
    wavelength: np.ndarray, blue: float, blue_width: float, red: float, red_width: float, tilt: float
) -> np.ndarray:
    """Passband with two error-function edges (nm) and a straight top that changes by ``tilt`` between them."""
    wavelength = np.asarray(wavelength, float)
    edges = 0.25 * (1 + erf((wavelength - blue) / blue_width)) * (1 - erf((wavelength - red) / red_width))
    return np.asarray(edges * np.clip(1 + tilt * (wavelength - (blue + red) / 2) / (red - blue), 0, None))


def photometric_catalogue(seed: int, settings: Stars, stars: np.ndarray) -> np.ndarray:
    """Gaia-like catalogue of the stars that are bright enough, mean over time.

    Parameters
    ----------
    stars : rows of `stars.STAR`.

    Returns
    -------
    Rows with ``id``, ``ra``, ``dec`` (deg) and, for the bands g, bp, rp, AB magnitudes ``g`` ... with Gaussian
    errors of the flux, and their standard errors ``g_error`` ... (mag). A magnitude is NaN where the measured
    flux is negative. No rows if the stars are switched off.
    """
    magnitudes = stars["magnitude"][:, None] + _colours()[stars["template"]]
    seen = (magnitudes[:, 0] < settings.catalogue_limit) & settings.on
    stars, magnitudes = stars[seen], magnitudes[seen]
    fields: list[Any] = [("id", "i8"), ("ra", "f8"), ("dec", "f8")]
    result = np.zeros(len(stars), fields + [(band + end, "f8") for band in BANDS for end in ("", "_error")])
    for name in ("id", "ra", "dec"):
        result[name] = stars[name]
    for n, (band, at_20) in enumerate(_ERROR_AT_20.items()):
        true = magnitudes[:, n]
        error = np.hypot(settings.catalogue_floor, at_20 * 10 ** (_ERROR_SLOPE * (true - 20)))
        result[band] = true + _as_magnitude(error * _normal(seed, f"catalogue_{band}", stars["id"]))
        result[band + "_error"] = error
    return result


def true_magnitudes(stars: np.ndarray, wavelength: np.ndarray, passbands: Mapping[str, np.ndarray]) -> np.ndarray:
    """AB magnitudes (star, band) above the atmosphere, mean over time, in passbands (wavelength,) electron/photon."""
    grid = spectra(wavelength)
    bands = np.stack([ab_magnitude(grid, wavelength, band) for band in passbands.values()], axis=1)
    return np.asarray(stars["magnitude"][:, None] + bands[stars["template"]])


def standards(
    seed: int, settings: Stars, stars: np.ndarray, wavelength: np.ndarray, passbands: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The standards among some stars: single, stable, brighter than 19 mag, with magnitudes in the given passbands.

    Parameters
    ----------
    stars : rows of `stars.STAR`.
    wavelength : (wavelength,) nm.
    passbands : name -> (wavelength,) electron/photon, of any scale.

    Returns
    -------
    Rows with ``id``, ``ra``, ``dec`` (deg) and for each passband the AB magnitude, of Gaussian error
    ``settings.standard_error``, and that error as ``<name>_error``. No rows if the stars are switched off.
    """
    single = np.array([template.kind in ("star", "white_dwarf") for template in templates()])[stars["template"]]
    good = single & ~stars["is_variable"] & (stars["magnitude"] < _STANDARD_LIMIT) & settings.on
    stars = stars[good]
    stars = stars[_uniform(seed, "is_standard", stars["id"]) < settings.standards]
    fields: list[Any] = [("id", "i8"), ("ra", "f8"), ("dec", "f8")]
    result = np.zeros(len(stars), fields + [(band + end, "f8") for band in passbands for end in ("", "_error")])
    for name in ("id", "ra", "dec"):
        result[name] = stars[name]
    true = true_magnitudes(stars, wavelength, passbands)
    for n, band in enumerate(passbands):
        result[band] = true[:, n] + settings.standard_error * _normal(seed, f"standard_{band}", stars["id"])
        result[band + "_error"] = settings.standard_error
    return result


@cache
def _colours() -> np.ndarray:
    """AB magnitudes (template, band) of the templates in the bands of the catalogue."""
    wavelength = np.arange(300.0, 1150.5)
    grid = spectra(wavelength)
    bands = (smooth_passband(wavelength, *numbers) for numbers in BANDS.values())
    result = np.stack([ab_magnitude(grid, wavelength, band) for band in bands], axis=1)
    result.flags.writeable = False
    return result


def _as_magnitude(error: np.ndarray) -> np.ndarray:
    """Change of a magnitude when its flux is wrong by ``error`` (in units of 1.086 mag); NaN below no flux."""
    flux = 1 - error * np.log(10) / 2.5
    return np.asarray(-2.5 * np.log10(np.where(flux > 0, flux, np.nan)))


def _draw(seed: int, effect: str, ids: np.ndarray, kind: str) -> np.ndarray:
    """One random number per star, drawn cell by cell in the order of the stars in it."""
    cells, numbers = ids >> NUMBER_BITS, ids & ((1 << NUMBER_BITS) - 1)
    result = np.empty(len(ids))
    for cell in np.unique(cells):
        here = cells == cell
        drawn = getattr(stream(seed, effect, tile=int(cell)), kind)(int(numbers[here].max()) + 1)
        result[here] = drawn[numbers[here]]
    return result


def _normal(seed: int, effect: str, ids: np.ndarray) -> np.ndarray:
    return _draw(seed, effect, ids, "standard_normal")


def _uniform(seed: int, effect: str, ids: np.ndarray) -> np.ndarray:
    return _draw(seed, effect, ids, "random")
