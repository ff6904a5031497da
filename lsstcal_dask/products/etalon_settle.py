"""Blocks whose silicon a fit of `etalon_fit` left on the wrong fringe (Lupton 2016, Sec. 2.9).

Splines can end a fringe off in a corner of a CCD, where the first thickness is known worst, with their neighbours in
between. One fringe of 150 turns the phases at the ends of the scan by 0.6 rad: chi2 of a block rises little, but what
the blocks between have to bear is plain. Each block, whose tuning and brightness all others tell, is searched again.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.physics.etalon import PIVOT
from lsstcal_dask.physics.etalon_table import places, span_of, values
from lsstcal_dask.products.etalon_problem import Problem, State
from lsstcal_dask.products.etalon_start import Start

__all__ = ["moves_of"]

Floats = NDArray[np.float64]

_MOST: Final = 4  # fringes by which a block may be off
_STEPS: Final = 12  # of the search, in a fringe


def moves_of(problem: Problem, state: State, clear: float) -> Start | None:
    """Thicknesses of the blocks, silicon of some moved by where their chi2 is least; None if all stay.

    Parameters
    ----------
    clear : chi2 of a block that a move has to gain; blocks that are so far above the median are searched.
    """
    d, h, tuning = problem.maps(state.vector)
    fringe = PIVOT / 2e3 / float(problem.mirrors.silicon(PIVOT))
    grid = np.arange(-_MOST * _STEPS, _MOST * _STEPS + 1) * (fringe / _STEPS)
    span = span_of(np.array([d.min() + grid[0], d.max() + grid[-1]]), h)
    table, value, share = problem.table(span, tuning), problem.blocks.value, problem.blocks.share
    residual = value - problem.logarithm(values(table, places(span, d, h)))
    mean = problem.mean(residual)[:, None]
    now = problem.each(residual - mean) * share
    odd = np.flatnonzero(now > np.median(now) + clear)
    if not odd.size:
        return None
    left = value[:, odd] - mean
    found = [problem.each(left - problem.logarithm(values(table, places(span, d[odd] + m, h[odd])))) for m in grid]
    tried = np.array(found) * share[odd]
    gains = now[odd] - tried.min(axis=0) > clear
    d[odd] += np.where(gains, grid[np.argmin(tried, axis=0)], 0.0)
    return Start(d, h, tuning) if gains.any() else None
