"""Absorption lines of oxygen and water in the air, and their distribution in fine cells (SCIENCE 2.13, 6).

Lines are narrower (0.002-0.02 nm) than the cells of 0.05 nm on which the atmosphere is computed, so a cell has
no single opacity. It keeps the opacities found in it at 0.001 nm, sorted and averaged in ten groups (a
*k-distribution*): the mean transmission of the cell is then right from weak lines to saturated ones, for any
amount of gas, without the fine spectrum.

Oxygen's lines follow from the constants of the molecule. Water's are made up: a forest with the band strengths
of the air and random positions, the same for every user of the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.special import voigt_profile

__all__ = ["CELL", "GROUPS", "START", "STOP", "Opacity", "centres", "oxygen", "oxygen_glow", "water"]

START: Final = 295.0
STOP: Final = 1155.0
"""First and last wavelength of the cells, nm."""

CELL: Final = 0.05
"""Width of a cell, nm."""

GROUPS: Final = (10, 10, 8, 6, 5, 4, 3, 2, 1, 1)
"""Samples in each group of a cell, from the weakest opacity to the strongest."""

_SAMPLES: Final = sum(GROUPS)
_BOUNDS: Final = np.concatenate([[0], np.cumsum(GROUPS)[:-1]])
_WING: Final = 1.5  # nm, where a line is cut off: 20-30 cm-1, beyond which real lines fall below a Lorentzian
_CM: Final = 1.438777  # cm K, hc/k

# Oxygen b1Sigma+ (v' = 0, 1, 2) and X3Sigma-, cm-1: Huber & Herzberg 1979, Schlapp 1937. Strengths in
# cm-1/(molecule cm-2): near HITRAN's sums over the A, B and gamma bands; gamma lowered to LSST's standard atmosphere.
_ORIGIN: Final = (13120.91, 14525.66, 15902.42)
_UPPER_B: Final = (1.391250, 1.372951, 1.354361)
_UPPER_D: Final = (5.37e-6, 5.43e-6, 5.49e-6)
_BAND: Final = (2.24e-22, 1.5e-23, 6.0e-25)
_B, _D, _SPIN_SPIN, _SPIN_ROTATION = 1.437678, 4.84e-6, 1.984751, -0.008425
_QUANTUM, _ALPHA = 1556.385, 0.015800  # G and the loss of B of v = 1 of the ground state
# Branches PP, PQ, RR and RQ: N' - N, J' - J, strength of a magnetic dipole line. The nuclei have no spin, so only odd
# N exist below and even N above.
_BRANCHES: Final[tuple[tuple[int, int, Callable[[np.ndarray], np.ndarray]], ...]] = (
    (-1, 0, lambda n: n + 1),
    (-1, 1, lambda n: n - 1),
    (1, 0, lambda n: n),
    (1, -1, lambda n: n + 2),
)
_OXYGEN_COLUMN: Final = 4.504e24  # molecules/cm2 above 1013.25 hPa: 0.20946 P / (m g)
_OXYGEN_TEMPERATURE: Final = 255.0  # K, mean of the column
_OXYGEN_WIDTH: Final = 0.055  # cm-1, half width at half maximum at 1013.25 hPa and that temperature

# Humps of water's bands: centre (nm), standard deviation (nm), equivalent width of 1 mm without saturation (nm).
# The strengths up to 1098 nm were set so that 4.8 mm on the line of sight has the equivalent widths of LSST's
# standard atmosphere (MODTRAN, 4.0 mm at airmass 1.2); its growth from airmass 1.0 then follows to 1-8 %. The band
# beyond, where that table ends, is made as strong as that at 940 nm.
_HUMPS: Final = (
    (590.5, 2.0, 0.0156),
    (594.5, 2.5, 0.0099),
    (648.0, 1.4, 0.0079),
    (654.5, 2.2, 0.0059),
    (694.6, 1.2, 0.021),
    (700.5, 3.0, 0.0157),
    (718.6, 1.5, 0.2014),
    (724.5, 1.0, 0.0517),
    (729.0, 3.6, 0.089),
    (790.0, 2.5, 0.007),
    (797.0, 4.0, 0.0141),
    (817.0, 2.2, 0.1499),
    (823.2, 0.9, 0.0831),
    (828.5, 4.0, 0.0779),
    (899.0, 2.0, 0.2754),
    (909.5, 3.0, 0.2597),
    (916.5, 2.2, 0.187),
    (935.0, 3.0, 3.0235),
    (943.0, 3.0, 1.2811),
    (952.5, 4.0, 1.2961),
    (963.0, 5.0, 0.6638),
    (976.0, 5.0, 0.1656),
    (1100.0, 5.0, 0.085),
    (1114.0, 4.0, 1.2),
    (1124.0, 5.0, 1.8),
    (1136.0, 6.0, 2.4),
    (1147.0, 6.0, 1.8),
)
_LINES_PER_NM: Final = 20.0
_SPREAD: Final = 1.5  # standard deviation of the logarithm of the strengths in a hump
_WATER_WIDTH: Final = 0.059  # cm-1, half width at half maximum of a line low over a site at 740 hPa


@dataclass(frozen=True, eq=False)
class Opacity:
    """Distribution of a gas's opacity in the cells.

    Attributes
    ----------
    first : number of the first cell that it covers.
    value : (cell, group) optical depth of a unit column at the reference pressure.
    slope : (cell, group) d ln(value) / d ln(pressure): -1 in the core of a line, +1 in its wings.
    """

    first: int
    value: np.ndarray
    slope: np.ndarray

    def transmission(self, column: float, pressure: float, cells: int) -> np.ndarray:
        """Mean transmission of each of the ``cells`` cells, (cell,).

        Parameters
        ----------
        column : along the line of sight, in units of the opacity.
        pressure : over that of the opacity; the widths of the lines go with it.
        """
        depth = self.value * (1 + self.slope * (pressure - 1))
        depth *= -column
        out = np.ones(cells)
        out[self.first : self.first + len(depth)] += np.expm1(depth, out=depth) @ (np.array(GROUPS) / _SAMPLES)
        return out


def centres() -> np.ndarray:
    """Wavelengths of the middles of the cells, nm, vacuum."""
    return START + CELL * (np.arange(round((STOP - START) / CELL)) + 0.5)


@lru_cache(maxsize=1)
def oxygen() -> Opacity:
    """Of the B, A and gamma bands; a unit column is that above 1013.25 hPa, widths are those of the same air."""
    energy = np.concatenate([_oxygen_band(band)[0] for band in range(3)])
    strength = np.concatenate([_oxygen_band(band)[1] for band in range(3)])
    doppler = energy * 3.0427e-7 * np.sqrt(_OXYGEN_TEMPERATURE / 31.99)  # standard deviation: sqrt(kT/m)/c
    # Curtis & Godson: lines of a well mixed gas are as wide as at half of the pressure at the ground
    return _distribution(energy, strength, _OXYGEN_WIDTH / 2, doppler, (624.0, 776.0))


@lru_cache(maxsize=64)
def oxygen_glow(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Lines of the 0-1 band at 864.5 nm in which oxygen glows; the 0-0 band does not come down to the ground.

    Returns
    -------
    wavelength : (line,) nm, vacuum.
    share : (line,) of the band's photons if its rotational temperature (K) is the given one; sum 1.
    """
    n = np.arange(1.0, 46.0, 2)
    energy, weight = [], []
    for step, shift, factor in _BRANCHES:
        k = (n + step) * (n + step + 1)
        rotation = _UPPER_B[0] * k - _UPPER_D[0] * k**2
        # the lower level of v = 1 is that of v = 0 with the quantum and the shorter rotational constant
        energy.append(_ORIGIN[0] - _QUANTUM + rotation - _ground(n, -shift) + _ALPHA * n * (n + 1))
        weight.append(factor(n) * np.exp(-_CM * rotation / temperature))
    total = np.concatenate(weight)
    wavelength, share = 1e7 / np.concatenate(energy), total / total.sum()
    wavelength.flags.writeable = share.flags.writeable = False
    return wavelength, share


@lru_cache(maxsize=1)
def water() -> Opacity:
    """Of the bands from 590 to 1150 nm; a unit column is 1 mm of precipitable water."""
    random = np.random.Generator(np.random.Philox(key=2016))
    found = [_hump(random, *hump) for hump in _HUMPS]
    wavelength, strength = (np.concatenate(part) for part in zip(*found, strict=True))
    return _distribution(1e7 / wavelength, strength, _WATER_WIDTH, np.zeros(len(wavelength)), (570.0, STOP))


def _hump(random: np.random.Generator, centre: float, spread: float, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths (nm) and strengths (cm-1/mm) of the made-up lines of a hump of a band of water."""
    count = max(8, round(_LINES_PER_NM * spread * np.sqrt(2 * np.pi)))
    wavelength = random.normal(centre, spread, count)
    weight = random.lognormal(0, _SPREAD, count)
    return wavelength, strength * 1e7 / centre**2 * weight / weight.sum()


def _oxygen_band(band: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (cm-1) and strengths (cm-1 for the column above 1013.25 hPa) of a band's lines."""
    n = np.arange(1.0, 46.0, 2)
    energy, strength = [], []
    for step, shift, factor in _BRANCHES:
        lower = _ground(n, -shift)
        k = (n + step) * (n + step + 1)
        line = _ORIGIN[band] + _UPPER_B[band] * k - _UPPER_D[band] * k**2 - lower
        energy.append(line)
        strength.append(factor(n) * line * np.exp(-_CM * lower / _OXYGEN_TEMPERATURE))
    total = np.concatenate(strength)
    return np.concatenate(energy), total / total.sum() * _BAND[band] * _OXYGEN_COLUMN


def _ground(n: np.ndarray, component: int) -> np.ndarray:
    """Energy of a level of the ground state, cm-1: ``component`` is J - N (Schlapp 1937)."""
    energy = _B * n * (n + 1) - _D * (n * (n + 1)) ** 2
    if component == 0:
        return energy
    side = 2 * n + 3 if component == 1 else 2 * n - 1
    root = np.sqrt((side * _B) ** 2 + _SPIN_SPIN**2 - 2 * _SPIN_SPIN * _B)
    if component == 1:
        return energy + side * _B - _SPIN_SPIN - root + _SPIN_ROTATION * (n + 1)
    return energy - side * _B - _SPIN_SPIN + root - _SPIN_ROTATION * n


def _distribution(
    energy: np.ndarray, strength: np.ndarray, width: float, doppler: np.ndarray, limits: tuple[float, float]
) -> Opacity:
    """Opacity of lines, all of the half width ``width`` (cm-1), over the cells between two wavelengths (nm)."""
    first, last = (round((limit - START) / CELL) for limit in limits)
    grid = START + CELL * first + CELL / _SAMPLES * (np.arange((last - first) * _SAMPLES) + 0.5)
    spectra = [_spectrum(grid, energy, strength, factor * width, doppler) for factor in (1.0, 1.01)]
    order = np.argsort(spectra[0].reshape(-1, _SAMPLES), axis=1)
    value, wider = (
        np.add.reduceat(np.take_along_axis(s.reshape(-1, _SAMPLES), order, axis=1), _BOUNDS, axis=1) / GROUPS
        for s in spectra
    )
    slope = np.where(value > 0, wider / np.maximum(value, 1e-300) - 1, 0) / 0.01
    value.flags.writeable = slope.flags.writeable = False
    return Opacity(first, value, slope)


def _spectrum(
    grid: np.ndarray, energy: np.ndarray, strength: np.ndarray, width: float, doppler: np.ndarray
) -> np.ndarray:
    """Optical depth of a unit column on a fine ``grid`` (nm)."""
    out = np.zeros(len(grid))
    points = 1e7 / grid
    for line, weight, spread in zip(energy, strength, doppler, strict=True):
        near = slice(*np.searchsorted(grid, 1e7 / line + np.array([-_WING, _WING])))
        out[near] += weight * voigt_profile(points[near] - line, spread, width)
    return out
