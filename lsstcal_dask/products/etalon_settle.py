"""Blocks that a fit of `etalon_fit` left on a wrong fringe of the glue or of silicon (Lupton 2016, Sec. 2.9).

Splines can end a fringe off in a corner of a CCD, where the first thickness is known worst, with their neighbours in
between. One fringe of 150 of silicon turns the phases at the ends of the scan by 0.6 rad: chi2 of a block rises little,
but what the blocks between have to bear is plain. Each block, whose tuning and brightness all others tell, is searched
again: the glue by its fringes alone, 22 nm apart, then silicon by those 1 nm apart.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.physics.etalon import PIVOT
from lsstcal_dask.physics.etalon_table import Span, Table, places, span_of, values
from lsstcal_dask.products.etalon_problem import Problem, State
from lsstcal_dask.products.etalon_start import Start

__all__ = ["moves_of"]

Floats = NDArray[np.float64]

_MOST: Final = 4  # fringes by which silicon of a block may be off
_GLUE: Final = 2  # fringes by which its glue may be off
_STEPS: Final = 12  # of the search, in a fringe


def moves_of(problem: Problem, state: State, clear: float) -> Start | None:
    """Thicknesses of the blocks, some moved to where their chi2 is least; None if all stay.

    Parameters
    ----------
    clear : chi2 of a block that a move has to gain; blocks that are so far above the median are searched.
    """
    d, h, tuning = problem.maps(state.vector)
    fringe = [PIVOT / 2e3 / float(n) for n in (problem.mirrors.silicon(PIVOT), problem.mirrors.glue)]
    silicon, glue = (_grid(n, one) for n, one in zip((_MOST, _GLUE), fringe, strict=True))
    table = problem.table(_wider(span_of(d, h), silicon[-1], glue[-1]), tuning)
    residual = problem.residual_of(values(table, places(table.span, d, h)))
    # what all blocks have in common: a mean would follow those that are wrong
    common = np.median(residual[:, problem.blocks.share > 0], axis=1)[:, None]
    now = problem.each(residual - common) * problem.blocks.share
    odd = np.flatnonzero(now > np.median(now) + clear)
    if not odd.size:
        return None
    d_odd, h_odd, left = d[odd], h[odd], problem.blocks.value[:, odd] - common

    def chi2(one: Table, silicon: Floats, glue: Floats) -> Floats:
        found = problem.logarithm(values(one, places(one.span, silicon, glue)))
        return np.asarray(problem.each(left - found) * problem.blocks.share[odd])

    def silicon_with(glue: Floats) -> Floats:
        return np.asarray(d_odd + _best(lambda m: chi2(table, d_odd + m, glue), silicon, clear))

    slow = replace(table, terms=replace(table.terms, harmonics=table.terms.harmonics[:0]))
    h_other = h_odd + _best(lambda m: chi2(slow, d_odd, h_odd + m), glue, clear)
    # fringes of silicon may hide those of the glue: what both say decides
    tried = [(silicon_with(one), one) for one in (h_odd, h_other)]
    left_by = np.array([now[odd], *(chi2(table, *pair) for pair in tried)])
    best = np.argmin(left_by, axis=0) * (now[odd] - left_by.min(axis=0) > clear)
    d[odd], h[odd] = (np.choose(best, [old, *new]) for old, *new in zip((d_odd, h_odd), *tried, strict=True))
    return Start(d, h, tuning) if best.any() else None


def _grid(fringes: int, fringe: float) -> Floats:
    return np.asarray(np.arange(-fringes * _STEPS, fringes * _STEPS + 1) * (fringe / _STEPS), np.float64)


def _wider(span: Span, silicon: float, glue: float) -> Span:
    ends = (span.silicon, silicon), (span.glue, glue)
    return Span(*((one[0] - more, one[1] + more) for one, more in ends))


def _best(chi2: Callable[[float], Floats], grid: Floats, clear: float) -> Floats:
    """Moves (block,) of least chi2, 0 where that does not gain enough; parabolas through three of the grid tell it.

    A fringe that is wrong may cost less than half a step of the grid does.
    """
    tried = np.array([chi2(float(move)) for move in grid])
    low, here, high = tried[:-2], tried[1:-1], tried[2:]
    bend = np.maximum(low - 2 * here + high, 1e-9)
    lowest = (here <= low) & (here <= high)
    least = np.where(lowest, here - (low - high) ** 2 / (8 * bend), np.inf)
    place = (np.argmin(least, axis=0), np.arange(tried.shape[1]))
    move = grid[1:-1][place[0]] + ((low - high) / (2 * bend))[place] * (grid[1] - grid[0])
    gains = tried[len(grid) // 2] - least[place] > clear
    return np.asarray(np.where(gains, move, 0.0), np.float64)
