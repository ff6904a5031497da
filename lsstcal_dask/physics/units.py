"""Photons from energies and magnitudes, and wavelengths in air and vacuum (SCIENCE section 0).

An energy spectrum is turned into photons once, when it comes in:
S = wavelength F_lambda / (h c) = F_nu / (h wavelength), photon s-1 m-2 nm-1.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import UnitsError

__all__ = [
    "AB_ZERO",
    "CGS",
    "air_to_vacuum",
    "in_air",
    "photons_from_ab",
    "photons_from_flambda",
    "photons_from_fnu",
    "vacuum_to_air",
]

CGS: Final = 0.01
"""W m-2 nm-1 in 1 erg s-1 cm-2 Angstrom-1."""

AB_ZERO: Final = 10 ** (-0.4 * 48.6) * 1e-3
"""F_nu of AB magnitude 0, W m-2 Hz-1 (Oke & Gunn 1983)."""

_H: Final = 6.62607015e-34  # J s, exact (SI 2019)
_C: Final = 299792458.0  # m/s, exact
_NM: Final = 1e-9  # m
_SHORTEST, _LONGEST = 185.0, 3000.0  # nm: where Ciddor's formula holds, and more infrared than any CCD needs


_AIR, _VACUUM = ("air", "awav", "t_air"), ("vacuum", "vac", "wave")


def photons_from_flambda(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Photon flux density of an energy flux density per wavelength.

    Parameters
    ----------
    wavelength : nm.
    flux : W m-2 nm-1; multiply by `CGS` if in erg s-1 cm-2 Angstrom-1.

    Returns
    -------
    photon s-1 m-2 nm-1.

    Raises
    ------
    UnitsError
        A wavelength is not positive.
    """
    return _positive(wavelength) * _NM * np.asarray(flux, float) / (_H * _C)


def photons_from_fnu(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Photon flux density (photon s-1 m-2 nm-1) of an energy flux density per frequency (W m-2 Hz-1).

    Raises
    ------
    UnitsError
        A wavelength (nm) is not positive.
    """
    return np.asarray(flux, float) / (_H * _positive(wavelength))


def photons_from_ab(wavelength: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Photon flux density (photon s-1 m-2 nm-1) of an AB magnitude at a wavelength (nm); see `photons_from_fnu`."""
    return photons_from_fnu(wavelength, AB_ZERO * 10 ** (-0.4 * np.asarray(magnitude, float)))


def vacuum_to_air(wavelength: np.ndarray) -> np.ndarray:
    """Wavelength (nm) in standard air: dry, 15 C, 1013.25 hPa, 450 ppm of CO2 (Ciddor 1996, Eq. 1).

    Raises
    ------
    UnitsError
        A wavelength is beyond 185-3000 nm, as when it is in another unit.
    """
    return _optical(wavelength) / _index(_optical(wavelength))


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Wavelength (nm) in vacuum of one in standard air: inverse of `vacuum_to_air` to rounding.

    Raises
    ------
    UnitsError
        A wavelength is beyond 185-3000 nm, as when it is in another unit.
    """
    given = _optical(wavelength)
    vacuum = given
    for _ in range(4):  # each turn gains five digits: the index changes by 1e-5 of itself
        vacuum = given * _index(vacuum)
    return vacuum


def in_air(meta: Mapping[str, Any], what: str) -> bool | None:
    """Whether the meta of a table, or a FITS header, says that wavelengths are those in air; None where it is silent.

    Raises
    ------
    UnitsError
        It says neither air nor vacuum.
    """
    entries = {str(key).upper(): str(value).strip().lower() for key, value in meta.items()}
    said = next((entries[key] for key in ("MEDIUM", "AIRORVAC", "CTYPE1") if key in entries), None)
    if said is not None and said not in (*_AIR, *_VACUUM):
        raise UnitsError(f"{what}: wavelengths in medium {said!r}: say air or vacuum")
    return None if said is None else said in _AIR


def _index(vacuum: np.ndarray) -> np.ndarray:
    square = (1e3 / vacuum) ** 2  # um-2
    return 1 + 1e-8 * (5792105 / (238.0185 - square) + 167917 / (57.362 - square))


def _positive(wavelength: np.ndarray) -> np.ndarray:
    given = np.asarray(wavelength, float)
    if not np.all(given > 0):
        raise UnitsError(f"wavelength {np.min(given):g} nm of a spectrum: use positive wavelengths in nm")
    return given


def _optical(wavelength: np.ndarray) -> np.ndarray:
    given = np.asarray(wavelength, float)
    if not np.all((given >= _SHORTEST) & (given <= _LONGEST)):
        raise UnitsError(
            f"wavelengths from {np.min(given):g} to {np.max(given):g} nm: between air and vacuum give them in nm, "
            f"{_SHORTEST:g} to {_LONGEST:g}"
        )
    return given
