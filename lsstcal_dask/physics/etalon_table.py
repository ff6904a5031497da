"""The Airy series of `etalon` between nodes of both thicknesses (Lupton 2016, Sec. 2.9).

But for the factor ``exp(i m wave d)`` the terms of the series change slowly with the silicon's thickness d, and with
that of the glue, h, as few harmonics of its fringes: polynomials through Chebyshev's nodes follow them, and a CCD of
any number of pixels costs products of matrices only.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from lsstcal_dask.physics.etalon import Cone, Mirrors, Series, Tuning, series

__all__ = [
    "Line",
    "Places",
    "Span",
    "Table",
    "evaluate",
    "mean_constant",
    "pattern_table",
    "places",
    "slopes",
    "span_of",
    "tabulate",
    "values",
]

Floats = NDArray[np.float64]

_SILICON_NODES: Final = 4
_PERIOD: Final = 0.3  # um of glue, about one fringe
_MARGIN: Final = 0.02  # um
_PHASES: Final = 6  # of the glue, over which the mean is taken: five harmonics cancel


@dataclass(frozen=True, eq=False)
class Line:
    """Elements of a spectrum: lines of a laser, lines of the sky, bins."""

    wavelength: Floats  # (n,) nm, vacuum
    width: Floats  # (n,) nm; 0 for a line of the sky
    shape: str = "gaussian"  # see `etalon.line_factor`


@dataclass(frozen=True)
class Span:
    """Lowest and highest thickness of silicon and glue, um."""

    silicon: tuple[float, float]
    glue: tuple[float, float]


def span_of(silicon: Floats, glue: Floats) -> Span:
    """Span of two maps with a little margin."""
    return Span(*((float(np.min(a)) - _MARGIN, float(np.max(a)) + _MARGIN) for a in (silicon, glue)))


@dataclass(frozen=True, eq=False)
class Table:
    """Terms of the series at nodes of a span: (wavelength, silicon, glue)."""

    terms: Series
    span: Span
    mean: Floats  # (wavelength,) the constant term averaged over the phase of the glue


def _nodes(ends: tuple[float, float], count: int) -> Floats:
    at = np.cos(np.pi * (np.arange(count)[::-1] + 0.5) / count)
    return np.asarray(ends[0] + (ends[1] - ends[0]) * (at + 1) / 2, np.float64)


def _glue_nodes(ends: tuple[float, float]) -> int:
    """Enough for three harmonics: coefficients fall as Bessel functions beyond their phase over half the span."""
    return int(3 * np.pi * (ends[1] - ends[0]) / _PERIOD) + 10


def _lagrange(ends: tuple[float, float], count: int, at: Floats, slope: bool = False) -> Floats:
    """Weights (place, node) of the polynomial through the nodes, or of its slope."""
    scaled = 2 * (np.asarray(at, float).ravel() - ends[0]) / (ends[1] - ends[0]) - 1
    nodes = np.cos(np.pi * (np.arange(count)[::-1] + 0.5) / count)
    inverse = np.linalg.inv(chebyshev.chebvander(nodes, count - 1))
    if not slope:
        return chebyshev.chebvander(scaled, count - 1) @ inverse
    turned = chebyshev.chebder(inverse, axis=0)
    return np.asarray(chebyshev.chebvander(scaled, count - 2) @ turned * 2 / (ends[1] - ends[0]), np.float64)


def mean_constant(line: Line, span: Span, cone: Cone, mirrors: Mirrors, tuning: Tuning) -> Floats:
    """Absorbed fraction (wavelength,) without fringes: mean over the phases of both layers."""
    glue = np.mean(span.glue) + line.wavelength[:, None] / 2e3 / mirrors.glue * np.arange(_PHASES) / _PHASES
    found = series(line.wavelength[:, None], np.mean(span.silicon), glue, cone, mirrors, tuning, orders=0)
    return np.asarray(found.constant.mean(axis=1))


def tabulate(line: Line, span: Span, cone: Cone, mirrors: Mirrors, tuning: Tuning, orders: int = 2) -> Table:
    """Work out the series of each element of a spectrum at the nodes of a span."""
    d, h = _nodes(span.silicon, _SILICON_NODES), _nodes(span.glue, _glue_nodes(span.glue))
    nm, width = (a[:, None, None] for a in (line.wavelength, line.width))
    terms = series(nm, d[:, None], h, cone, mirrors, tuning, width, line.shape, orders)
    return Table(terms, span, mean_constant(line, span, cone, mirrors, tuning))


@dataclass(frozen=True, eq=False)
class Places:
    """Pixels or blocks between the nodes of a span, for tables of any tuning."""

    silicon: Floats  # (place,) um
    weights: tuple[Floats, ...]  # (silicon and glue node, place) of the value; of its change with silicon, with glue


def places(span: Span, silicon: Any, glue: Any) -> Places:
    """Weights of the nodes of a span for thicknesses (place,), um."""
    d, h = (np.asarray(a, float).ravel() for a in (silicon, glue))
    count = _glue_nodes(span.glue)
    across, steep = (_lagrange(span.silicon, _SILICON_NODES, d, slope) for slope in (False, True))
    along, other = (_lagrange(span.glue, count, h, slope) for slope in (False, True))
    pairs = ((across, along), (steep, along), (across, other))
    return Places(d, tuple((a.T[:, None] * b.T[None]).reshape(-1, len(d)) for a, b in pairs))


def _terms(table: Table, weights: Floats) -> Floats:
    """Constant, and real and imaginary parts of the harmonics, (term, wavelength, place): one product of reals."""
    harmonics = [part for one in table.terms.harmonics for part in (one.real, one.imag)]
    terms = np.stack([table.terms.constant, *harmonics])
    found = terms.reshape(-1, len(weights)) @ weights
    return np.asarray(found.reshape(len(terms), len(table.mean), -1))


def _turn(table: Table, at: Places) -> NDArray[np.complex128]:
    """Phase (wavelength, place) of a round trip."""
    return np.asarray(np.exp(1j * table.terms.wave.reshape(-1, 1) * at.silicon))


def values(table: Table, at: Places) -> Floats:
    """Absorbed fraction over what it is without fringes, (wavelength, place): `evaluate` without slopes."""
    terms, turn = _terms(table, at.weights[0]), _turn(table, at)
    found, phase = terms[0], turn
    for real, imaginary in zip(terms[1::2], terms[2::2], strict=True):
        found += real * phase.real - imaginary * phase.imag
        phase = phase * turn
    return found / table.mean[:, None]


def slopes(table: Table, at: Places) -> tuple[Floats, Floats, Floats]:
    """`evaluate` at places whose weights are known."""
    by, turn = [_terms(table, one) for one in at.weights], _turn(table, at)
    (value, across, along), phase = (one[0] for one in by), turn
    wave = table.terms.wave.reshape(-1, 1)
    for m in range(1, len(table.terms.harmonics) + 1):
        part, steep, other = (one[2 * m - 1] * phase.real - one[2 * m] * phase.imag for one in by)
        value += part
        across += steep - m * wave * (by[0][2 * m - 1] * phase.imag + by[0][2 * m] * phase.real)
        along += other
        phase = phase * turn
    mean = table.mean[:, None]
    return value / mean, across / mean, along / mean


def evaluate(table: Table, silicon: Any, glue: Any) -> tuple[Floats, Floats, Floats]:
    """Absorbed fraction over what it is without fringes, and its change with both thicknesses.

    Parameters
    ----------
    silicon, glue : (place,) um.

    Returns
    -------
    Three arrays (wavelength, place): value, 1/um of silicon, 1/um of glue.
    """
    return slopes(table, places(table.span, silicon, glue))


def pattern_table(table: Table, light: Floats, silicon: Floats, glue: Floats) -> Floats:
    """Fringes of a spectrum, ``sum_l light_l f_l / sum_l light_l``, on a mesh of thicknesses.

    Parameters
    ----------
    light : (wavelength,) electrons that each element frees without fringes.
    silicon, glue : (p,), (q,) um.

    Returns
    -------
    (p, q)
    """
    share = light / light.sum() / table.mean
    n, wave = table.terms.constant.shape, table.terms.wave.ravel()
    between = _lagrange(table.span.silicon, n[1], silicon)
    along = _lagrange(table.span.glue, n[2], glue).T
    found = between @ np.tensordot(share, table.terms.constant, 1) @ along
    for m, harmonic in enumerate(table.terms.harmonics, 1):
        turn = np.exp(1j * m * np.outer(silicon, wave)) * share
        for node in range(n[1]):
            found += between[:, node, None] * ((turn @ harmonic[:, node]).real @ along)
    return np.asarray(found)
