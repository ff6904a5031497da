"""Optical constants of silicon at 173 K and of the layers around it (¶9, ¶10; §13, backup of fringes).

All wavelengths are vacuum nm. Index and absorption are facts of the literature in compact form; the fits say what
they were fitted to and how closely they follow it.
"""

from typing import Final

import numpy as np

__all__ = ["EPOXY", "MAGNESIUM_FLUORIDE", "SILICA", "TANTALA", "TEMPERATURE", "absorption", "index"]

TEMPERATURE: Final = 173.0
"""K, of a cooled CCD; the index below belongs to it."""

MAGNESIUM_FLUORIDE: Final = 1.38
"""Index of the outer coating, Li 1980; dispersion over 700-1150 nm is below 0.003 and ignored."""
TANTALA: Final = 2.10
"""Index of Ta2O5, the inner coating."""
SILICA: Final = 1.45
"""Index of SiO2, Malitson 1965."""
EPOXY: Final = 1.5
"""Index of the glue that holds the CCD on its support (values of 1.5 to 1.6 are in use)."""

_NM: Final = 1e3  # nm in a um
_HC: Final = 1239.841984  # eV nm
_STRENGTH: Final = 0.69e-4  # cm in a um, and what modern data ask of the strengths below
_BOLTZMANN: Final = 8.617333e-5  # eV/K


def index(wavelength: np.ndarray) -> np.ndarray:
    """Refractive index of silicon at 173 K.

    ``n**2 = 11.6412 + 0.90989 / (l**2 - 0.32800**2) - 0.043842 l**2`` with l in um, fitted to 600-1200 nm of the
    model of Franta et al. (2017, Appl. Surf. Sci. 421, 405) between its tables of 150 K and 200 K: within 7e-4.
    Below 600 nm, where no light reaches the far side of a CCD, it is an extrapolation.
    """
    square = (np.asarray(wavelength, np.float64) / _NM) ** 2
    return np.sqrt(11.6412 + 0.909886 / (square - 0.328001**2) - 0.043842 * square)


def absorption(wavelength: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """Absorption coefficient of silicon, 1/um.

    Indirect transitions that emit or absorb one of two phonons, and the direct one, after Rajkanan, Singh & Shewchun
    (1979, Solid-State Electronics 22, 793), times 0.69: so it agrees at 300 K with the self-consistent table of Green
    (2008, Sol. Energ. Mat. Sol. Cells 92, 1305) within 5 % from 600 to 1000 nm and 12 % to 1080 nm. The form carries
    that to 173 K, where Franta et al. (2017) have 1.3 times more at 900 nm and 1.3 times less at 1000 nm.
    """
    energy = _HC / np.asarray(wavelength, np.float64) + 7.021e-4 * temperature**2 / (1108 + temperature)
    total = 1.052e6 * np.sqrt(np.maximum(energy - 3.2, 0))
    for gap, strength in ((1.1557, 323.1), (2.5, 7237.0)):  # eV, 1/(cm eV**2)
        for phonon, weight in ((0.01827, 5.5), (0.05773, 4.0)):  # eV, 1
            thermal = np.expm1(phonon / (_BOLTZMANN * temperature))
            taken = np.maximum(energy - gap + phonon, 0) ** 2 / thermal
            given = np.maximum(energy - gap - phonon, 0) ** 2 * (1 + 1 / thermal)
            total = total + strength * weight * (taken + given)
    return _STRENGTH * total
