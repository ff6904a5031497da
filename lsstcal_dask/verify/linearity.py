"""Checks of linearity, best on data that did not make the curves: slopes with errors (Lupton 2016, Sec. 2.3).

- flux of the same stars as a function of the background on which they stand;
- size of stars as a function of their brightness, and how that changes with the background;
- levels of neighbouring amplifiers in flats of different levels.

If the curves are right each slope is zero; one that is not by more than 4 sigma fails. Only the size against brightness
is not zero before brighter-fatter is corrected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.products.continuity import Edge, solve_steps
from lsstcal_dask.statistics import robust_sigma

__all__ = ["LIMIT", "Seen", "Slope", "amplifier_offsets", "flux_against_background", "size_against_light"]

LIMIT: Final = 4.0
"""Sigma beyond which a slope is a failure."""

_CLIP: Final = 4.0
_LEAST: Final = 10  # measurements
_EXPOSURES: Final = 4  # whose scatter about a line says something
_RANGE: Final = 0.2  # by which the backgrounds must differ, of the highest
_PLANE: Final = 2  # slopes of a plane
_NOTHING: Final = 1e-9


@dataclass(frozen=True)
class Slope:
    """Change per unit of what it is taken against."""

    what: str
    value: float
    error: float
    number: int

    @property
    def sigma(self) -> float:
        """The slope in units of its error."""
        return abs(self.value) / self.error

    @property
    def fails(self) -> bool:
        """Whether it cannot be zero."""
        return bool(self.sigma > LIMIT)


@dataclass(frozen=True, eq=False)
class Seen:
    """Stars as some exposures show them, (n,) each."""

    star: np.ndarray  # number of the star, the same in every exposure
    exposure: np.ndarray  # number of the exposure
    amplifier: np.ndarray  # number of the amplifier
    flux: np.ndarray  # per time, any unit
    error: np.ndarray
    background: np.ndarray  # of its exposure, any unit


def flux_against_background(seen: Seen, amplifiers: int) -> tuple[Slope, np.ndarray, np.ndarray]:
    """Relative change of the flux of the same stars with the background: of the CCD, and of its amplifiers against it.

    ``flux / F_star = 1 + z_exposure + s_amplifier (background - mean)``: a zero point of each exposure takes up its
    air, and what it and the background have in common is the slope of the CCD, whose error is the scatter of the zero
    points about it. Clouds that come with the moon cannot be told from it. The slopes of amplifiers, of mean zero, know
    nothing of the air.

    Parameters
    ----------
    amplifiers : number of them.

    Returns
    -------
    Slope of the CCD; slopes and errors (amplifier,), NaN for one with fewer than ten measurements, or none beside it.

    Raises
    ------
    InsufficientInputs
        Fewer than four exposures, their backgrounds are alike, or too few stars are in several of them.
    """
    what = "flux of stars against background"
    level, place = _levels(what, seen)
    number = np.unique(seen.star, return_inverse=True)[1]
    weight = (seen.flux / seen.error) ** 2
    mean = np.bincount(number, weight * seen.flux) / np.bincount(number, weight)
    again = np.bincount(number)[number] > 1  # a star that is seen once tells nothing
    lit = np.flatnonzero(np.bincount(seen.amplifier[again], minlength=amplifiers) >= _LEAST)
    use = np.isin(seen.amplifier, lit)
    exposure, own = place[:, None] == np.arange(len(level)), seen.amplifier[:, None] == lit
    away = level - level.mean()
    design = np.hstack([exposure, own * away[place][:, None]])
    change = seen.flux / mean[number] - 1
    found, covariance = _fit(what, change[use], 1 / np.sqrt(weight[use]), design[use], number[use])
    turn = _to_common(away, len(lit))
    found, spread = turn @ found, np.sqrt(np.maximum(np.diag(turn @ covariance @ turn.T), 1e-30))
    value, error = np.full((2, amplifiers), np.nan)
    if len(lit) > 1:  # one alone is its own mean
        value[lit], error[lit] = found[len(level) :], spread[len(level) :]
    return _line(what, level, found[: len(level)], spread[: len(level)]), value, error


def _to_common(away: np.ndarray, count: int) -> np.ndarray:
    """Matrix that gives zero points what slopes of ``count`` amplifiers share, which a fit cannot tell from them."""
    turn = np.eye(len(away) + count)
    turn[: len(away), len(away) :] = away[:, None] / count
    turn[len(away) :, len(away) :] -= 1 / count
    return turn


def _levels(what: str, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Background of each exposure, and which exposure (n,) each row is of."""
    number = np.unique(seen.exposure, return_inverse=True)[1]
    level = np.bincount(number, seen.background) / np.maximum(np.bincount(number), 1)
    if len(level) < _EXPOSURES:
        raise InsufficientInputs(f"{what}: {len(level)} exposures of the same stars, at least {_EXPOSURES} are needed")
    if not _differ(level):
        part = f"{100 * np.ptp(level) / level.max():.2g} %" if level.max() > 0 else "less than any light"
        raise InsufficientInputs(f"{what}: backgrounds are alike: they differ by {part}, {100 * _RANGE:g} % are needed")
    return level, number


def _differ(background: np.ndarray) -> bool:
    """Whether backgrounds are so different that a slope with them can be told."""
    return bool(len(background) and np.ptp(background) >= _RANGE * max(background.max(), _NOTHING))


def _line(what: str, level: np.ndarray, value: np.ndarray, error: np.ndarray) -> Slope:
    """Slope through a few points, whose scatter says how sure it is where that is more than their errors.

    A scatter of few points is itself unsure: the error is as much larger as Student's t of four sigma is than four.
    """
    design = np.stack([level - level.mean(), np.ones_like(level)], axis=1) / error[:, None]
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ (design.T @ (value / error))
    freedom = len(level) - 2
    misfit = float(np.sum((value / error - design @ found) ** 2)) / freedom
    unsure = float(student.isf(normal.sf(LIMIT), freedom)) / LIMIT
    error_of = np.sqrt(inverse[0, 0] * max(1.0, misfit * unsure**2))
    return Slope(what, float(found[0]), float(error_of), len(level))


def size_against_light(
    size: Any, error: Any, peak: Any, exposure: Any, background: Any, place: Any = ()
) -> tuple[Slope, Slope | None]:
    """Change of the size of stars with their brightness; and of that change with the background.

    The size common to the stars of an exposure, a plane over the CCD, is the seeing, and is fitted.

    Parameters
    ----------
    size, error : (n,) any unit; what is common to an exposure does not matter.
    peak : (n,) brightness, any unit.
    exposure : (n,) number of the exposure.
    background : (n,) of the exposure.
    place : (n, 2) on the CCD, or nothing.

    Returns
    -------
    The slope, per unit of the peak, at the mean background; its change per unit of both, or None where the backgrounds
    are alike.

    Raises
    ------
    InsufficientInputs
        Fewer than ten stars, or all are equally bright.
    """
    size, error, peak, background = (np.asarray(v, np.float64) for v in (size, error, peak, background))
    group = np.unique(np.asarray(exposure), return_inverse=True)[1]
    columns = [peak]
    several = _differ(background)
    if several:
        columns.append(peak * (background - background.mean()))
    first = _PLANE if len(place) else 0
    design = np.column_stack([*columns, *(_slopes_over(np.asarray(place, float), group) if first else ())])
    what = "size of stars against brightness"
    found, covariance = _fit(what, size, error, design, group)
    slopes = [
        Slope(name, float(found[i]), float(np.sqrt(covariance[i, i])), len(size))
        for i, name in enumerate((what, f"{what}, change with background")[: len(columns)])
    ]
    return slopes[0], slopes[1] if several else None


def _slopes_over(place: np.ndarray, group: np.ndarray) -> list[np.ndarray]:
    """Columns of a plane of each group."""
    scaled = (place - place.mean(axis=0)) / np.maximum(np.ptp(place, axis=0), 1e-9)
    return [np.where(group == g, scaled[:, axis], 0.0) for g in np.unique(group) for axis in range(_PLANE)]


def amplifier_offsets(
    step: np.ndarray, error: np.ndarray, level: np.ndarray, edges: Sequence[Edge], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the level of each amplifier against its CCD's in flats, with their level.

    Parameters
    ----------
    step, error : (flat, edge) logarithm of the step at a boundary, higher over lower side, and its error; NaN where
        there is none.
    level : (flat, edge) mean signal of both sides.
    edges : the boundaries.
    count : amplifiers.

    Returns
    -------
    Slopes of the logarithm, of mean zero, and errors (amplifier,); NaN for one to which no boundary leads.

    Raises
    ------
    InsufficientInputs
        No boundary has ten flats of different levels.
    """
    slope = np.full((len(edges), 2), np.nan)
    why = "no boundary between amplifiers"
    for i in range(len(edges)):
        one = np.ones(len(step), int)
        try:
            found, covariance = _fit("levels of amplifiers", step[:, i], error[:, i], level[:, i : i + 1], one)
        except InsufficientInputs as reason:
            why = str(reason)
            continue
        slope[i] = found[0], np.sqrt(covariance[0, 0])
    try:
        return solve_steps(count, list(edges), -slope[:, 0], slope[:, 1])
    except DegenerateSolution:
        raise InsufficientInputs(why) from None


def _fit(
    what: str, values: np.ndarray, error: np.ndarray, columns: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of columns (n, k) and their covariance, with a constant for each group; outliers are clipped.

    Errors are those given, or of the scatter where that is larger. Of directions that nothing tells, zero is taken.
    """
    use = np.isfinite(values) & np.isfinite(error) & (error > 0) & np.isfinite(columns).all(axis=1)
    for _ in range(3):
        if use.sum() < _LEAST:
            raise InsufficientInputs(f"{what}: {use.sum()} measurements, at least {_LEAST} are needed")
        target, rows = _within(values[use], columns[use], error[use], group[use])
        scale = np.abs(rows).max(axis=0)
        if scale[0] <= _NOTHING * np.abs(columns[use, 0] / error[use]).max():
            raise InsufficientInputs(f"{what}: all measurements have the same level")
        scale = np.where(scale > 0, scale, 1.0)
        inverse = np.linalg.pinv((rows / scale).T @ (rows / scale), rcond=1e-10, hermitian=True)
        found = inverse @ ((rows / scale).T @ target)
        residual = target - rows / scale @ found
        wild = np.abs(residual) > _CLIP * max(float(robust_sigma(residual)), 1.0)
        if not wild.any():
            break
        use[np.flatnonzero(use)[wild]] = False
    freedom = int(use.sum()) - np.linalg.matrix_rank(rows / scale) - len(np.unique(group[use]))
    excess = max(1.0, float(np.sum(residual[~wild] ** 2)) / max(freedom, 1))
    return found / scale, inverse * excess / np.outer(scale, scale)


def _within(
    values: np.ndarray, columns: np.ndarray, error: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and columns less their weighted mean in each group, over the error: no constant of a group is left."""
    number = np.unique(group, return_inverse=True)[1]
    weight = error**-2.0
    total = np.bincount(number, weight)
    both = np.column_stack([values, columns])
    means = np.stack([np.bincount(number, weight * column) / total for column in both.T], axis=1)
    left = (both - means[number]) / error[:, None]
    return left[:, 0], left[:, 1:]
