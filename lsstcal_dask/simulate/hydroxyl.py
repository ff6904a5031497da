"""Lines of the Meinel bands of hydroxyl, which make the night sky bright beyond 600 nm (♥2, SCIENCE 2.9).

OH is made in the levels v = 6 to 9 and falls down by several levels at once. A level X2Pi(v, J) is one of two,
F1 and F2, an eigenvector of the 2 x 2 Hamiltonian H = T + A L.S + B N**2 - D N**4 + H N**6 in the basis
Omega = 3/2, 1/2 (Hill & Van Vleck 1928; Brown et al. 1979): intermediate between Hund's cases a and b.
"""

from functools import lru_cache
from typing import Final

import numpy as np

__all__ = ["UPPER", "band", "term"]

UPPER: Final = (3, 4, 5, 6, 7, 8, 9)
"""Upper vibrational levels with bands at 300-1155 nm; those of v = 2 begin at 1400 nm."""

# T, A, B (cm-1) and D (1e-3 cm-1) of v = 0 ... 9, fitted to 325 peaks of night-sky spectra (UVES at Paranal and
# an OH model to 2.2 um) with a median residual of 0.0025 nm. The two components of Lambda doubling, 0.003-0.05 nm
# apart, are one line.
_CONSTANTS: Final = np.array(
    [
        [0.0, -138.6419, 18.53730, 1.9059],
        [3570.3725, -138.9212, 17.82250, 1.8671],
        [6975.1015, -139.1489, 17.12173, 1.8317],
        [10216.1685, -139.3947, 16.42442, 1.8085],
        [13294.6304, -139.6148, 15.73345, 1.7836],
        [16210.5779, -139.7748, 15.04526, 1.7622],
        [18962.9766, -139.9043, 14.34729, 1.8528],
        [21549.1462, -139.9508, 13.63770, 1.7541],
        [23964.5725, -139.8360, 12.91162, 1.7778],
        [26202.3874, -139.5266, 12.14467, 1.8377],
    ]
)
_H: Final = 1.4e-7  # cm-1
_HERMAN_WALLIS: Final = 0.032  # P lines are brighter than R lines; 135 lines of the UVES sky from J < 5: +- 0.002
_CM: Final = 1.438777  # cm K, hc/k
_OMEGA: Final = np.array([1.5, 0.5])
_LEVELS: Final = 14


def term(v: int) -> tuple[np.ndarray, np.ndarray]:
    """Energies (J, F) in cm-1 and eigenvectors (J, Omega, F) of J = 1/2, 3/2 ...; there is no F1 of J = 1/2."""
    z = (np.arange(_LEVELS) + 1.0) ** 2 - 1
    square = np.empty((_LEVELS, 2, 2))  # N**2
    square[:, 0, 0], square[:, 1, 1] = z, z + 2
    square[:, 0, 1] = square[:, 1, 0] = -np.sqrt(z)
    fourth = square @ square
    origin, coupling, b, d = _CONSTANTS[v]
    rotation = b * square - d * 1e-3 * fourth + _H * fourth @ square
    energy, vector = np.linalg.eigh(coupling * np.diag([0.5, -0.5]) + rotation)
    return origin + energy, vector


@lru_cache(maxsize=256)
def band(upper: int, lower: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Lines of a band of OH whose upper levels have a rotational temperature (K).

    Returns
    -------
    wavelength : (line,) nm, vacuum, ascending.
    share : (line,) of the band's photons, sum 1: wavenumber**3, Boltzmann, Hoenl-London and Herman-Wallis factors
        (exp(2 c m), m = J + 1 in a P branch, -J in an R branch).
    """
    high, above = term(upper)
    low, below = term(lower)
    populations = np.exp(-_CM * (high - high[1, 0]) / temperature)  # of each of the 2 J + 1 states; one zero for all
    found = []
    for step in (-1, 0, 1):  # J'' - J'
        j = np.arange(max(0, -step), min(_LEVELS, _LEVELS - step))
        line = high[j][:, :, None] - low[j + step][:, None, :]
        moment = np.einsum("jof,jo,jog->jfg", above[j], _amplitude(j + 0.5, step), below[j + step])
        strength = moment**2 * np.exp(2 * _HERMAN_WALLIS * step * (j + 1 + step / 2))[:, None, None]
        strength[j == 0, 0], strength[j + step == 0, :, 0] = 0, 0
        found.append((line.ravel(), (strength * populations[j, :, None]).ravel()))
    wavenumber, weight = (np.concatenate(part) for part in zip(*found, strict=True))
    weight *= wavenumber**3
    order = np.argsort(-wavenumber)
    wavelength, share = 1e7 / wavenumber[order], weight[order] / weight.sum()
    wavelength.flags.writeable = share.flags.writeable = False
    return wavelength, share


def _amplitude(j: np.ndarray, step: int) -> np.ndarray:
    """Square root, with sign, of the Hoenl-London factor of an Omega-conserving line from J: (J, Omega)."""
    j = j[:, None]
    if step == 1:  # P
        return np.sqrt(np.maximum((j + 1) ** 2 - _OMEGA**2, 0) / (j + 1))
    if step == -1:  # R
        return np.sqrt(np.maximum(j**2 - _OMEGA**2, 0) / j)
    return _OMEGA * np.sqrt((2 * j + 1) / (j * (j + 1)))
