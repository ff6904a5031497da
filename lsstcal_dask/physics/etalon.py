"""Interference in the silicon of a CCD and in the glue below it, as an Airy series (Lupton 2016, Sec. 2.9).

Light in silicon between two mirrors, the coating (seen from within) and the gates with glue and support: with r_t, r_b
what both reflect, ``e = exp(-alpha d / cos)`` what is left after one way, ``q = r_t r_b e`` and ``phase = k d``,
``k = 4 pi sqrt(n**2 - sin**2) / wavelength``, the absorbed fraction is

    A = (1 - |r_t|**2) (1 - e) (1 + |r_b|**2 e) / |1 - q exp(i phase)|**2
      = constant + sum over m of Re(harmonic_m exp(i m phase)),   harmonic_m = 2 constant q**m

(Born & Wolf, Sec. 7.6.1; light absorbed where both ways cross, 2e-4, is left out). Each mirror is a pile of layers
between two half spaces, reflected by Airy's formula ``(r + R E) / (1 + r R E)`` from layer to layer, E the phase of a
round trip. The thickness h of the glue is in r_b only: its fringes are 22 nm apart, those of silicon 1 nm. A line of
some width leaves of the harmonic m its Fourier transform at m times the fringes per nm; a beam is an average over
squared sines of incidence, evenly bright between the edges of the pupil.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLLIMATED",
    "PIVOT",
    "PUPIL",
    "REACH",
    "Cone",
    "Mirrors",
    "Series",
    "Tuning",
    "absorbed",
    "empirical_suffices",
    "free_range",
    "group_index",
    "line_factor",
    "series",
    "silicon_absorption",
    "silicon_index",
]

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

_NM: Final = 1e3  # nm in a um
_FOUR_LN2: Final = 4 * np.log(2.0)

# Index and extinction of silicon at 300 K: Green 2008, Solar Energy Materials & Solar Cells 92, 1305, table 1.
_GREEN_NM: Final = np.arange(700.0, 1201.0, 20.0)
# fmt: off
_GREEN_N: Final = np.array([
    3.772, 3.748, 3.727, 3.708, 3.691, 3.675, 3.661, 3.647, 3.635, 3.624, 3.614, 3.604, 3.595, 3.587, 3.579, 3.572,
    3.565, 3.559, 3.553, 3.547, 3.542, 3.537, 3.532, 3.528, 3.524, 3.520,
])
_GREEN_K: Final = np.array([
    1.0528e-2, 9.6257e-3, 8.3620e-3, 7.1970e-3, 6.3933e-3, 5.4113e-3, 4.6134e-3, 3.9439e-3, 3.2781e-3, 2.6821e-3,
    2.1701e-3, 1.7571e-3, 1.3689e-3, 1.0237e-3, 7.4866e-4, 5.0930e-4, 3.2386e-4, 1.8704e-4, 9.3631e-5, 5.3285e-5,
    3.0637e-5, 1.7825e-5, 9.0718e-6, 3.8770e-6, 6.1036e-7, 2.1008e-7,
])
# fmt: on
_HC: Final = 1239.841984  # eV nm
PIVOT: Final = 1000.0
"""Wavelength, nm, about which absorption and dispersion are tuned."""
REACH: Final = 100.0
"""One unit, nm, of the variable of these polynomials."""


def _gap(kelvin: float) -> float:
    """Band gap of silicon, eV: Varshni's formula Thurmond 1975, J. Electrochem. Soc. 122, 1133."""
    return 1.170 - 4.73e-4 * kelvin**2 / (kelvin + 636)


# n**2 = a + b / (l**2 - c) with l in um: what tables rounded to 1e-3 hide has to be smooth, for a phase is n times 28
# wavelengths per um. The term in c is the direct gap at 3.4 eV.
_EDGE2: Final = (_HC / 3.4 / _NM) ** 2
_SMOOTH: Final = np.polynomial.Polynomial.fit(1 / ((_GREEN_NM / _NM) ** 2 - _EDGE2), _GREEN_N**2, 2)


# Index from 300 to 173 K: dn/dT is 1.9e-4 per K at 300 K and 1.2e-4 at 173 K (Frey et al. 2006, Proc. SPIE 6273,
# 62732J, at 1.1 to 1.5 um).
_COLD: Final = -1.57e-4 * 127


def silicon_index(wavelength: Any) -> Floats:
    """Index of silicon at 173 K: that of Green 2008 at 300 K, smooth within 4e-4, less 0.02.

    How it changes with wavelength is known to 5e-4 over 200 nm: `Tuning.dispersion` takes the rest.
    """
    warm = np.sqrt(_SMOOTH(1 / ((np.asarray(wavelength, float) / _NM) ** 2 - _EDGE2)))
    return np.asarray(warm + _COLD)


def silicon_absorption(wavelength: Any, kelvin: float = 173.0) -> Floats:
    """Absorption coefficient of silicon, 1/um: that of Green 2008, moved along with the band gap from 300 K."""
    nm = np.asarray(wavelength, float)
    warm = _HC / (_HC / nm - _gap(kelvin) + _gap(300.0))
    k = np.exp(np.interp(warm, _GREEN_NM, np.log(_GREEN_K)))
    return 4 * np.pi * _NM * k / warm


def group_index(index: Any, wavelength: Any) -> Floats:
    """``n - l dn/dl`` of a function of the wavelength (nm), which says how many fringes pass per nm."""
    nm = np.asarray(wavelength, float)
    return np.asarray(index(nm) - nm * (index(nm + 0.5) - index(nm - 0.5)))


def free_range(wavelength: Any, thickness: Any, group: Any) -> Floats:
    """Distance of fringes in wavelength, ``l**2 / (2 n_g d)``, nm.

    Parameters
    ----------
    wavelength : nm.
    thickness : um.
    group : group index of the layer.
    """
    return np.asarray(np.asarray(wavelength, float) ** 2 / (2 * _NM * np.asarray(thickness) * np.asarray(group)))


def empirical_suffices(wavelength: Any, thickness: float, group: Any, step: Any) -> NDArray[np.bool_]:
    """Whether monochromatic flats tell the fringes of a layer for any spectrum: ``free range > 4 step`` (Sec. 2.9).

    Parameters
    ----------
    step : nm, the larger one of the bandwidth and of the distance of wavelengths.

    Examples
    --------
    >>> [bool(empirical_suffices(1000.0, d, n, 1.0)) for d, n in ((100.0, 3.8), (14.0, 1.5))]
    [False, True]
    """
    return free_range(wavelength, thickness, group) > 4 * np.asarray(step, float)


@dataclass(frozen=True)
class Mirrors:
    """Layers on both sides of the silicon: index and thickness (um), outermost first; None is polysilicon.

    The CCD250 of e2v after Guo et al. 2023 (PASP 135, 034503), table 1: films of MgF2 and Ta2O5, gates in oxide, glue.
    """

    coating: tuple[tuple[float, float], ...] = ((1.38, 0.1221), (2.10, 0.0441))
    gates: tuple[tuple[float | None, float], ...] = ((1.45, 0.1), (None, 0.3), (1.45, 1.0))
    glue: float = 1.5
    silicon: Callable[[Any], Floats] = silicon_index
    """Index of silicon, a function of the wavelength (nm)."""


@lru_cache(maxsize=8)
def _gauss(count: int) -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(count)


@dataclass(frozen=True)
class Cone:
    """Directions of a beam: squared sines of incidence of its edges, evenly bright between them."""

    inner: float
    outer: float
    nodes: int = 16

    def rays(self, scale: float = 1.0) -> tuple[Floats, Floats]:
        """Squared sines (node,) and weights of Gauss and Legendre; ``scale`` widens the cone about its middle."""
        if self.nodes == 1:
            return np.array([(self.inner + self.outer) / 2]), np.ones(1)
        nodes, weights = _gauss(self.nodes)
        middle, half = (self.inner + self.outer) / 2, (self.outer - self.inner) / 2
        return middle + scale * half * nodes, weights / 2


_EDGE: Final = 1 / (2 * 1.23)  # sine at the edge of an f/1.23 beam of a telescope without coma
PUPIL: Final = Cone((0.61 * _EDGE) ** 2, _EDGE**2)  # obstructed by 0.61
COLLIMATED: Final = Cone(0.0, 0.0, 1)


@dataclass(frozen=True)
class Tuning:
    """What is not known of the layers of a CCD; polynomials in (wavelength - 1000 nm) / 100 nm."""

    support: float = 1.0  # amplitude that reflects below the glue, over that of polished silicon
    visibility: float = 0.0  # logarithm of the factor of q: what the mirrors reflect more
    absorption: tuple[float, float] = (0.0, 0.0)  # logarithm of the factor of alpha, constant and linear
    dispersion: tuple[float, float] = (0.0, 0.0)  # relative change of the phase, linear and square
    cone: float = 1.0  # width of the cone


def _unit(wavelength: Floats) -> Floats:
    return (wavelength - PIVOT) / REACH


def _fresnel(a: Any, b: Any, sine2: Any, parallel: bool) -> Any:
    """Amplitude reflected from a medium of index a to one of b."""
    cos_a, cos_b = np.sqrt(1 - sine2 / a**2), np.sqrt(1 - sine2 / b**2)
    one, two = (b * cos_a, a * cos_b) if parallel else (a * cos_a, b * cos_b)
    return (one - two) / (one + two)


def _pile(media: list[Any], depths: list[Any], wavelength: Any, sine2: Any, parallel: bool, last: Any = 1.0) -> Any:
    """Amplitude reflected by layers of ``depths`` um between the first and the last medium, Airy's formula inwards."""
    total = last * _fresnel(media[-2], media[-1], sine2, parallel)
    for i in range(len(depths) - 1, -1, -1):
        turn = np.exp(4j * np.pi * _NM / wavelength * np.sqrt(media[i + 1] ** 2 - sine2) * depths[i]) * total
        face = _fresnel(media[i], media[i + 1], sine2, parallel)
        total = (face + turn) / (1 + face * turn)
    return total


def _reflections(
    wavelength: Any, sine2: Any, glue: Any, mirrors: Mirrors, support: float
) -> list[tuple[Any, Any]]:  # of both polarisations
    n = mirrors.silicon(wavelength)
    up = [n, *(one for one, _ in mirrors.coating[::-1]), 1.0]
    above = [depth for _, depth in mirrors.coating[::-1]]
    down = [n, *(n if one is None else one for one, _ in mirrors.gates), mirrors.glue, n]
    below = [*(depth for _, depth in mirrors.gates), glue]
    return [
        (_pile(up, above, wavelength, sine2, p), _pile(down, below, wavelength, sine2, p, support))
        for p in (False, True)
    ]


def line_factor(fringes: Any, shape: str = "gaussian") -> Floats:
    """What a line leaves of a fringe: Fourier transform of its profile.

    Parameters
    ----------
    fringes : that pass within its full width at half maximum.
    shape : ``gaussian`` or ``tophat``.
    """
    if shape == "tophat":
        return np.asarray(np.sinc(fringes))
    return np.exp(-((np.pi * np.asarray(fringes, float)) ** 2) / _FOUR_LN2)


@dataclass(frozen=True, eq=False)
class Series:
    """The absorbed fraction of a beam: ``constant + sum_m Re(harmonics[m - 1] exp(i m wave d))``."""

    constant: Floats
    harmonics: Complex  # (order, ...)
    wave: Floats  # 1/um, the mean one of the rays; broadcasts against `constant`


def series(
    wavelength: Any,
    silicon: Any,
    glue: Any,
    cone: Cone,
    mirrors: Mirrors,
    tuning: Tuning,
    width: Any = 0.0,
    shape: str = "gaussian",
    orders: int = 2,
) -> Series:
    """Terms of the Airy series averaged over a beam and a line.

    Parameters
    ----------
    wavelength, silicon, glue, width : nm, um, um, nm; broadcast.
    shape : of the line, see `line_factor`.
    orders : harmonics of the silicon.

    Returns
    -------
    Arrays of the broadcast shape; the factor ``exp(i m wave d)`` is left out, so that they change slowly with d.
    """
    nm, d, h = (np.asarray(a, float) for a in (wavelength, silicon, glue))
    u = _unit(nm)
    stretch = 1 + tuning.dispersion[0] * u + tuning.dispersion[1] * u**2
    factor = np.exp(tuning.visibility)
    passing = np.asarray(width) / free_range(nm, d, group_index(mirrors.silicon, nm))
    alpha = silicon_absorption(nm) * np.exp(tuning.absorption[0] + tuning.absorption[1] * u)
    n, (sines, weights) = mirrors.silicon(nm), cone.rays(tuning.cone)
    middle = (cone.inner + cone.outer) / 2
    wave = 4e3 * np.pi / nm * np.sqrt(n**2 - middle) * stretch
    shaped = np.broadcast_shapes(nm.shape, d.shape, h.shape, passing.shape)
    constant, harmonics = np.zeros(shaped), np.zeros((orders, *shaped), complex)
    for sine2, weight in zip(sines, weights, strict=True):
        left = np.exp(-alpha * d / np.sqrt(1 - sine2 / n**2))
        turn = np.exp(1j * (4e3 * np.pi / nm * np.sqrt(n**2 - sine2) * stretch - wave) * d)
        for top, bottom in _reflections(nm, sine2, h, mirrors, tuning.support):
            power = np.abs(bottom) ** 2
            q = top * bottom * left * factor
            even = (1 - np.abs(top) ** 2) * (1 - left) * (1 + power * left) / (1 - np.abs(q) ** 2) * weight / 2
            constant += even
            for m in range(orders):
                harmonics[m] += 2 * even * (q * turn) ** (m + 1)
    for m in range(orders):
        harmonics[m] *= line_factor((m + 1) * passing, shape)
    return Series(constant, harmonics, np.asarray(wave))


def absorbed(terms: Series, silicon: Any) -> Floats:
    """Absorbed fraction for thicknesses of silicon, um, at which ``terms`` were worked out."""
    phase = np.exp(1j * terms.wave * np.asarray(silicon, float))
    fringes = sum(np.real(one * phase ** (m + 1)) for m, one in enumerate(terms.harmonics))
    return np.asarray(terms.constant + fringes)
