"""Where the lines of the night sky lie and how a band shares its light among them (♥2, SCIENCE 2.8.3).

A family is a set of lines that rise and fall together: a band v' -> v'' of hydroxyl or of oxygen, the lines of an atom.

Hydroxyl: the constants below were fitted to 100 Lambda doublets of 12 bands (658-1047 nm) of the list of Rousselot et
al. (2000, A&A 354, 1134), which rests on the levels measured by Abrams et al. (1994), with those of the ground level
held near Brooke et al. (2016, JQSRT 168, 142); 0.0024 nm rms. Levels are those of a 2Pi state between Hund's cases a
and b with Lambda doubling; lines have the strength of the vector model, tilted from P to R (Herman & Wallis) as Mies's
(1974) are in that list, and so are the shares of the bands from one upper level.
Oxygen: b1Sigma+ (v = 0) to X3Sigma- (v = 1), constants of Huber & Herzberg (1979). Atoms: NIST.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

__all__ = ["BRANCHING", "GUESSED", "SHAPE", "TEMPERATURE", "TILT", "Lines", "line_list", "shares"]

TEMPERATURE: Final = 190.0
"""Usual rotational temperature, K, of the layer at 87 km (Rousselot et al. 2000)."""

TILT: Final = 0.02
"""A line is stronger by exp(2 tilt m), m = J + 1 in a P branch, -J in an R branch, J the upper level's."""

BRANCHING: Final[dict[int, dict[int, float]]] = {
    3: {0: 1.0},
    4: {1: 1.0, 0: 0.0228},
    5: {1: 1.0, 0: 0.02, 2: 27.3},
    6: {2: 1.0, 1: 0.044, 3: 16.4},
    7: {3: 1.0, 2: 0.063, 1: 0.005},
    8: {4: 1.0, 3: 0.104, 2: 0.01},
    9: {5: 1.0, 4: 0.112, 3: 0.012, 2: 0.002},
}
"""Photons of the bands of an upper level over those of its first-named one."""

GUESSED: Final = 0.021
"""Shares below this are no more than a guess: the list ends at bands that fall by five levels."""

# T, A, B (cm-1) and D (1e-3 cm-1) of v = 0 ... 9
_LEVELS: Final = np.array(
    [
        [0.0, -138.1052, 18.53451, 1.90909],
        [3570.3513, -138.3587, 17.82312, 1.84440],
        [6975.0976, -138.5849, 17.12157, 1.79766],
        [10216.1443, -138.8519, 16.42691, 1.76330],
        [13294.6061, -139.0781, 15.73623, 1.73306],
        [16210.5890, -139.2675, 15.04453, 1.70678],
        [18962.9833, -139.3842, 14.34824, 1.68690],
        [21549.1658, -139.4505, 13.63812, 1.67976],
        [23964.6175, -139.3714, 12.90811, 1.69261],
        [26202.4124, -139.0749, 12.14421, 1.73011],
    ]
)
_H: Final = 1.410e-7  # cm-1, of all levels
_P: Final = (-0.178800, 0.020495)  # cm-1 and its change with v: Lambda doubling
_Q: Final = (0.034242, -0.004227)
_MOST: Final = 12  # values of J
_CM: Final = 1.438776877  # cm K, hc/k (CODATA 2018)

_OXYGEN_ORIGIN: Final = 13120.91 - 1556.385  # cm-1
_UPPER_B, _UPPER_D = 1.391250, 5.37e-6
_LOWER_B, _LOWER_D = 1.437678 - 0.015800, 4.84e-6
_SPIN, _ROTATION = 1.984751, -0.008425  # lambda and gamma of X

# Vacuum wavelength (nm) and share of the lines of an atom
_ATOMS: Final = {
    "OI green": ((557.8887, 1.0),),
    "OI red": ((630.2046, 0.756), (636.5536, 0.244)),  # Einstein coefficients of one upper level
    "Na": ((589.1583, 0.6), (589.7558, 0.4)),
    "NI": ((519.9350, 0.6), (520.1706, 0.4)),
}


SHAPE: Final = ("tilt", "log R/P", "log Q/P", *(f"temperature {level}" for level in BRANCHING))
"""What shapes the bands of hydroxyl: the tilt, the strengths of the R and Q branches over those of Mies against the P
branch, and the rotational temperature (K) of each upper level."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines of all families, one after the other."""

    names: tuple[str, ...]  # of the families
    groups: tuple[str, ...]  # of the families: what else they share their fate with, as the upper level of hydroxyl
    family: np.ndarray  # (line,) number of its family
    wavelength: np.ndarray  # (line,) nm, vacuum
    strength: np.ndarray  # (line,) without what follows
    energy: np.ndarray  # (line,) of its level above the lowest of the family, cm-1
    order: np.ndarray  # (line,) m, see `TILT`
    branch: np.ndarray  # (line,) J'' - J': -1 R, 0 Q, 1 P


@lru_cache(maxsize=1)
def line_list() -> Lines:
    """All families of 300-1155 nm."""
    names, groups, found = [], [], []
    for upper, bands in BRANCHING.items():
        for lower in bands:
            names.append(f"OH {upper}-{lower}")
            groups.append(f"OH {upper}")
            found.append(_hydroxyl_band(upper, lower))
    for name, lines in (("O2 0-1", _oxygen_band()), *((name, np.array(atom).T) for name, atom in _ATOMS.items())):
        names.append(name)
        groups.append(name)
        found.append(np.concatenate([lines, np.zeros((3, lines.shape[1]))]))
    family = np.repeat(np.arange(len(names)), [part.shape[1] for part in found])
    table = np.concatenate(found, axis=1)
    for part in (family, table):
        part.flags.writeable = False
    return Lines(tuple(names), tuple(groups), family, *table)


def shares(lines: Lines, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each line in the photons of its family, sum 1, and how it changes.

    A line of hydroxyl is as strong as strength exp(2 tilt m + log R/P or Q/P - E / kT) says.

    Parameters
    ----------
    shape : the values of `SHAPE`.

    Returns
    -------
    (line,) and (line, shape).
    """
    own = [np.array([group == f"OH {level}" for group in lines.groups])[lines.family] for level in BRANCHING]
    hydroxyl = np.any(own, axis=0)
    slopes = [2 * lines.order * hydroxyl, (lines.branch < 0) * hydroxyl, (lines.branch == 0) * hydroxyl]
    power = shape[:3] @ np.array(slopes, float)
    for mine, temperature in zip(own, shape[3:], strict=True):
        power = power - np.where(mine, _CM * lines.energy / temperature, 0)
        slopes.append(np.where(mine, _CM * lines.energy / temperature**2, 0))
    weight = lines.strength * np.exp(power)
    share = weight / np.bincount(lines.family, weight)[lines.family]
    means = [np.bincount(lines.family, share * slope)[lines.family] for slope in slopes]
    return share, share[:, None] * (np.array(slopes) - means).T


def _hydroxyl_band(upper: int, lower: int) -> np.ndarray:
    """Lines of a band, both of each Lambda doublet: (wavelength, strength, energy, order, branch), each (line,)."""
    found = []
    for step in (-1, 0, 1):  # J'' - J': R, Q and P branches
        j = np.arange(max(0, -step), _MOST - max(0, step))
        across = _vector_strength(j + 0.5, step)
        for parity in (-1, 1):
            energy, angle = _levels(upper, parity)
            ends, far = _levels(lower, parity if step else -parity)
            for f in (0, 1):
                for g in (0, 1):
                    amplitude = _overlap(angle[j], far[j + step], (f, g), across)
                    wavenumber = energy[j, f] - ends[j + step, g]
                    order = step * (j + 1 + step / 2)
                    real = (j + f > 0) & (j + step + g > 0)  # there is no F1 of J = 1/2
                    above = energy[j, f] - energy[1, 0]
                    branch = np.full(len(j), step)
                    rows = np.stack([1e7 / wavenumber, amplitude**2 * wavenumber**3, above, order, branch])
                    found.append(rows[:, real])
    return np.concatenate(found, axis=1)


def _levels(v: int, parity: int) -> tuple[np.ndarray, np.ndarray]:
    """Energies (J, F), cm-1, and angle (J,) by which case a, Omega = 3/2 and 1/2, is turned into F1 and F2."""
    origin, coupling, b, d = _LEVELS[v]
    p, q = (first + slope * v for first, slope in (_P, _Q))
    x = np.arange(1.0, _MOST + 1)  # J + 1/2
    off = -np.sqrt(x**2 - 1)
    n2 = (x**2 - 1, x**2 + 1, off)  # N**2 in Omega 3/2, 1/2 and between
    n4 = (n2[0] ** 2 + off**2, n2[1] ** 2 + off**2, off * (n2[0] + n2[1]))
    n6 = (n4[0] * n2[0] + n4[2] * off, n4[1] * n2[1] + n4[2] * off, n4[0] * off + n4[2] * n2[1])
    high, low, between = (b * n2[i] - d * 1e-3 * n4[i] + _H * n6[i] for i in (0, 1, 2))
    high, low = high + coupling / 2, low - coupling / 2 + parity * (p + 2 * q) * x / 2
    between = between - parity * q * x * np.sqrt(x**2 - 1) / 2
    middle, half = (high + low) / 2, np.hypot((high - low) / 2, between)
    angle = 0.5 * np.arctan2(2 * between, low - high)
    return origin + np.stack([middle - half, middle + half], axis=1), angle


def _overlap(
    above: np.ndarray, below: np.ndarray, ends: tuple[int, int], strength: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Amplitude of the lines from F1 or F2 to F1 or F2: products of the parts in Omega = 3/2 and 1/2."""

    def parts(angle: np.ndarray, f: int) -> tuple[np.ndarray, np.ndarray]:
        return (np.sin(angle), np.cos(angle)) if f else (np.cos(angle), -np.sin(angle))

    (a, b), (c, d) = parts(above, ends[0]), parts(below, ends[1])
    return a * c * strength[0] + b * d * strength[1]


def _vector_strength(j: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Square roots of the strengths of the lines from J that keep Omega = 3/2 and 1/2."""
    if step == 0:
        root = np.sqrt((2 * j + 1) / (j * (j + 1)))
        return 1.5 * root, 0.5 * root
    top = j + 1 if step > 0 else j
    three, one = (np.sqrt(np.maximum(top**2 - omega**2, 0) / top) for omega in (1.5, 0.5))
    return three, one


def _oxygen_band() -> np.ndarray:
    """Wavelengths and strengths, (2, line), of the 0-1 band of oxygen; the 0-0 band is absorbed on its way down."""
    n = np.arange(1.0, 40.0, 2)  # of the lower level: nuclei without spin leave the odd ones
    found = []
    for up, j, strength in ((-1, 0, n + 1), (-1, -1, n - 1), (1, 0, n), (1, 1, n + 2)):
        k = (n + up) * (n + up + 1)
        above = _UPPER_B * k - _UPPER_D * k**2
        found.append((_OXYGEN_ORIGIN + above - _triplet(n, j), strength * np.exp(-_CM * above / TEMPERATURE)))
    wavenumber, strength = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.stack([1e7 / wavenumber, strength])


def _triplet(n: np.ndarray, component: int) -> np.ndarray:
    """Energy (cm-1) of the level J = N + component of X3Sigma-, where N = J - 1 and J + 1 mix."""

    def rotation(n: np.ndarray) -> np.ndarray:
        return _LOWER_B * n * (n + 1) - _LOWER_D * (n * (n + 1)) ** 2

    if component == 0:
        return rotation(n) + _SPIN * 2 / 3 - _ROTATION
    j = n + component
    below = rotation(j - 1) + _SPIN * (2 / 3 - 2 * j / (2 * j + 1)) + _ROTATION * (j - 1)
    above = rotation(j + 1) + _SPIN * (2 / 3 - 2 * (j + 1) / (2 * j + 1)) - _ROTATION * (j + 2)
    mixed = 2 * _SPIN * np.sqrt(j * (j + 1)) / (2 * j + 1)
    half = np.hypot((above - below) / 2, mixed)
    return (above + below) / 2 + (half if component < 0 else -half)
