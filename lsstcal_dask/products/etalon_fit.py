"""Thickness of silicon and glue fitted to monochromatic flats (¶9; Lupton 2016, Sec. 2.9).

Flats 1 nm wide and 1 nm apart do not sample the fringes of 100 um of silicon, which are as far apart: interpolated
they say nothing of the fringes of a line of the sky. But their wavelengths are measured, their width is known, and
thicknesses vary slowly: two smooth maps per CCD say all of it. With block averages z (wavelength, block)

    z = ln f(wavelength; d(x, y), h(x, y), tuning) + polynomial_block(wavelength) + common(wavelength) + noise

f of `etalon`, d and h cubic splines, a polynomial of degree 2 for every block (gray response, coating), and what is
common to all blocks a polynomial of higher degree plus an error of each flat (photodiode). The latter three are
eliminated, the rest is solved by Gauss and Newton with priors on what tunes the layers.

Gauge: ``d -> d + m wavelength / 2 n`` for all of a CCD is what the dispersion of silicon, known to 5e-4, cannot tell;
it changes nothing at the wavelengths of the scan. `EtalonFit.order_gain` says how well the scan fixes it.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.errors import DegenerateSolution
from lsstcal_dask.physics.etalon import Cone, Mirrors, Tuning, free_range, group_index, silicon_index
from lsstcal_dask.physics.etalon_table import Line, Span, values
from lsstcal_dask.products.etalon_bins import Binned, bin_scan, bin_slices, blocks_of, chosen, split_scan, thinned
from lsstcal_dask.products.etalon_problem import Prior, Problem, State, spline_basis, to_tuning
from lsstcal_dask.products.etalon_settle import moves_of
from lsstcal_dask.products.etalon_start import Blocks, Start, first_thickness

__all__ = [
    "FEWEST",
    "MOST",
    "EtalonFit",
    "Prior",
    "bin_scan",
    "fit_binned",
    "fit_etalon",
    "fit_scan",
    "needed",
    "refine",
]

Floats = NDArray[np.float64]

FEWEST: Final = 24  # wavelengths
_SHORTEST: Final = 25.0  # nm, of a scan: one fringe of the glue
_CLEAR: Final = 25.0  # chi2 that fringes of silicon or glue have to gain
_TURNS: Final = 25
_HOPS: Final = 8  # turns after a move by a fringe
_GLANCE: Final = 2  # turns after a move that only asks what it costs
_ORDERS: Final = 8  # fringes by which the first thickness may be off
MOST: Final = 1024
"""Blocks of which the least squares are made: more do not tell a smooth map of thickness better."""
_EACH: Final = 4.0  # small blocks for each coefficient: with fewer, splines bend between them
_SETTLES: Final = 6  # times that blocks on a wrong fringe are looked for
_NEAR: Final = 0.1  # of chi2: the fit stands still


@dataclass(frozen=True, eq=False)
class EtalonFit:
    """Layers of a CCD as its fringes tell them."""

    silicon: Floats  # (coefficient,) of the spline, um
    glue: Floats
    knots: tuple[Floats, Floats]  # px, along y and x
    tuning: Tuning
    covariance: Floats  # of both sets of coefficients and the seven numbers of the tuning; scaled if chi2 exceeds dof
    chi2: float
    dof: float
    gain: tuple[float, float]  # by which chi2 rises without fringes of silicon, of glue
    order_gain: float  # by which chi2, over its mean, rises with silicon one fringe off and dispersion to match
    cone: Cone
    mirrors: Mirrors

    def thickness(self, y: Any, x: Any) -> tuple[Floats, Floats]:
        """Silicon and glue (y, x), um, on the mesh of rows ``y`` and columns ``x``, px."""
        shape = (len(self.knots[0]) - 4, len(self.knots[1]) - 4)
        up, across = (spline_basis(k, a) for k, a in zip(self.knots, (y, x), strict=True))
        return up @ self.silicon.reshape(shape) @ across.T, up @ self.glue.reshape(shape) @ across.T

    def thickness_at(self, y: Any, x: Any) -> tuple[Floats, Floats]:
        """The same (place,) at some places, px."""
        up, across = (spline_basis(k, a) for k, a in zip(self.knots, (y, x), strict=True))
        columns = np.einsum("pa,pb->pab", up, across).reshape(len(up), -1)
        return columns @ self.silicon, columns @ self.glue

    def error(self, y: Any, x: Any) -> tuple[Floats, Floats]:
        """Standard errors of `thickness` (y, x), um."""
        up, across = (spline_basis(k, a) for k, a in zip(self.knots, (y, x), strict=True))
        columns = np.einsum("ya,xb->yxab", up, across).reshape(-1, len(self.silicon))
        n = len(self.silicon)
        blocks = self.covariance[:n, :n], self.covariance[n : 2 * n, n : 2 * n]
        silicon, glue = (np.sqrt(np.einsum("pa,ab,pb->p", columns, c, columns, optimize=True)) for c in blocks)
        return silicon.reshape(len(up), -1), glue.reshape(len(up), -1)


def fit_etalon(blocks: Blocks, cone: Cone, prior: Prior = Prior(), start: Start | None = None) -> EtalonFit:
    """Fit the thicknesses of silicon and glue of one CCD.

    Raises
    ------
    DegenerateSolution
        Too few wavelengths, a scan shorter than a fringe of the glue, or flats that show fringes of neither layer.
    """
    _check(blocks, prior)
    start = start or first_thickness(blocks, Span(prior.silicon, prior.glue), cone, prior.mirrors, prior.smooth)
    at = chosen(blocks.share, blocks.shape, MOST)
    start = Start(start.silicon[at], start.glue[at], start.tuning)
    problem = Problem(thinned(blocks, at), cone, prior)
    return _result(problem, _glue_order(problem, _solve(problem, problem.state(start))))


def refine(fit: EtalonFit, blocks: Blocks, prior: Prior = Prior()) -> EtalonFit:
    """Fit again from where a fit of larger blocks, over which fringes blur, has ended; on the same CCD, knots nearer.

    Raises
    ------
    DegenerateSolution
        As `fit_etalon`.
    """
    _check(blocks, prior)
    problem = Problem(blocks, fit.cone, replace(prior, scale=min(prior.scale, prior.fine)))
    start = Start(*fit.thickness_at(*blocks.centre), fit.tuning)
    return _result(problem, _settled(problem, problem.state(start)))


def needed(size: tuple[int, int], prior: Prior = Prior()) -> int:
    """Small blocks that tell the thickness of a CCD of so many px along y and x: some for each knot of its splines."""
    knots = [n / min(prior.scale, prior.fine) + 3 for n in size]
    return max(MOST, round(_EACH * knots[0] * knots[1]))


def fit_scan(
    line: Line, value: Any, variance: Any, cone: Cone, steps: tuple[int, int] = (16, 8), prior: Prior = Prior()
) -> tuple[EtalonFit, Blocks]:
    """Fit of a scan (wavelength, y, x) of a CCD: a search on large blocks, the answer on small ones.

    Parameters
    ----------
    steps : px of the blocks: below half the distance of fringes, or the search goes astray where silicon is steep;
        below a twentieth, which blurs 0.4 % of them away.

    Returns
    -------
    The fit and the blocks on which it was made.

    Raises
    ------
    DegenerateSolution, InconsistentGeometry, InsufficientInputs, WrongUse
        As `fit_etalon` and `bin_scan`.
    """
    slices, good = split_scan(line, value, variance)
    most = needed((good.shape[0], good.shape[1]), prior)
    return fit_binned(bin_slices(line, slices, good, steps, most), cone, prior)


def fit_binned(binned: tuple[Binned, Binned], cone: Cone, prior: Prior = Prior()) -> tuple[EtalonFit, Blocks]:
    """`fit_scan` of the sums of the large blocks and of some small ones, `etalon_bins.bin_slices`.

    Raises
    ------
    DegenerateSolution, InsufficientInputs
        As `fit_etalon` and `blocks_of`.
    """
    large, small = (blocks_of(one, prior.model) for one in binned)
    return refine(fit_etalon(large, cone, prior), small, prior), small


def _result(problem: Problem, state: State) -> EtalonFit:
    """The fit at the end of the search, with what it is worth."""
    gain, n = _gains(problem, state), problem.basis.shape[1]
    if max(gain) < _clear(problem, state):
        raise DegenerateSolution(f"etalon: {_missing(problem.blocks, problem.prior)}")
    state, other = _silicon_order(problem, state)
    noise = _noise(problem, state)
    return EtalonFit(
        silicon=state.vector[:n],
        glue=state.vector[n : 2 * n],
        knots=problem.knots,
        tuning=to_tuning(state.vector[2 * n :]),
        covariance=np.asarray(np.linalg.inv(state.normal) * noise),
        chi2=state.chi2,
        dof=problem.dof,
        gain=gain,
        order_gain=(other - state.chi2) / noise,
        cone=problem.cone,
        mirrors=problem.mirrors,
    )


def _check(blocks: Blocks, prior: Prior) -> None:
    nm = blocks.line.wavelength
    if len(nm) < FEWEST or np.ptp(nm) < _SHORTEST:
        raise DegenerateSolution(
            f"etalon: {len(nm)} wavelengths over {np.ptp(nm):.1f} nm do not tell thickness from brightness: "
            f"take at least {FEWEST} over {_SHORTEST:g} nm"
        )


def _missing(blocks: Blocks, prior: Prior) -> str:
    nm, width = blocks.line.wavelength, blocks.line.width
    free = free_range(nm, float(np.mean(prior.silicon)), group_index(silicon_index, nm))
    return (
        f"flats of {nm[0]:.0f} to {nm[-1]:.0f} nm show fringes of neither silicon nor glue: a line {width.mean():.2g} "
        f"nm wide blurs those of silicon, {free.min():.2g} to {free.max():.2g} nm apart, and nothing reflects below "
        "the glue: use a narrower line, or wavelengths beyond 950 nm"
    )


def _solve(problem: Problem, state: State, turns: int = _TURNS) -> State:
    """Levenberg and Marquardt until chi2 stands still."""
    damping = 1e-3
    for _ in range(turns):
        scaled = state.normal + damping * np.diag(np.diag(state.normal))
        step = np.linalg.solve(scaled, state.gradient)
        if step @ state.gradient < _NEAR * _noise(problem, state):
            break
        chi2 = problem.value(state.vector + step)
        if chi2 < state.chi2:
            state, damping = problem.at(state.vector + step), damping / 10
        else:
            damping *= 10
    return state


def _noise(problem: Problem, state: State) -> float:
    """Mean square of the residuals over that which is stated, 1 if it is less."""
    return max(1.0, state.chi2 / problem.dof)


def _clear(problem: Problem, state: State) -> float:
    """chi2 that a move has to gain."""
    return _CLEAR * _noise(problem, state)


def _glue_order(problem: Problem, state: State) -> State:
    """Move the glue by whole fringes as long as chi2 falls."""
    for sign in (-1, 1):
        for _ in range(_ORDERS):
            other = _solve(problem, problem.shifted(state, 1, sign), _HOPS)
            if other.chi2 > state.chi2 - _clear(problem, state):
                break
            state = other
    return _solve(problem, state)


def _silicon_order(problem: Problem, state: State) -> tuple[State, float]:
    """Move silicon by whole fringes as long as chi2 falls; and the chi2 of the best order beside the one it ends on."""
    beside = np.inf
    for sign in (-1, 1):
        for _ in range(_ORDERS):
            other = _solve(problem, problem.shifted(state, 0, sign), _GLANCE)
            if other.chi2 > state.chi2 - _noise(problem, state):
                beside = min(beside, other.chi2)
                break
            beside, state = state.chi2, _solve(problem, other)
    return state, beside


def _settled(problem: Problem, state: State) -> State:
    """Blocks that are fringes off are moved, and the splines fitted again, as long as chi2 falls."""
    for _ in range(_SETTLES):
        clear = _clear(problem, state)
        start = moves_of(problem, state, clear)
        if start is None:
            break
        other = _solve(problem, problem.state(start), _HOPS)
        if other.chi2 > state.chi2 - clear:
            break
        state = other
    return _solve(problem, state)


def _gains(problem: Problem, state: State) -> tuple[float, float]:
    """By how much chi2 rises without the fringes of silicon, and without those of the glue."""
    table, at = problem.between(state.vector)
    flat = replace(table, terms=replace(table.terms, harmonics=table.terms.harmonics[:0]))
    without = problem.total(problem.residual_of(values(flat, at)), state.vector)
    n = problem.basis.shape[1]
    dull = state.vector.copy()
    dull[2 * n] = 0.0
    return without - state.chi2, problem.value(dull) - state.chi2
