"""Least squares for the crosstalk of one target from the spots that were lit with it (Lupton 2016, Sec. 2.6).

What a target amplifier shows near the moment k at which the spots of some sources are read is

    v(k) = B(k) + sum_s c[s] Q_s(k) + c2[s] Q_s(k)**2 + r(row)

B is a polynomial of order 2 over the patch, and where the target has a spot of its own the wings of that; r is
what the overscan left in a row, Gaussian with known variance. B and r are fitted and eliminated patch by patch, so
an exposure leaves nothing but a small matrix and vector for the sources that were read together. They add up over
exposures in any order, one matrix for all sources that were ever read together: `merge` is associative.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.products.crosstalk_kernels import ADDED, HIDDEN, LEFT, ROUGH, fit_targets
from lsstcal_dask.products.crosstalk_patches import SCALE, Patch

__all__ = ["Normal", "Part", "Solution", "Targets", "add_patch", "enlarged", "merge", "solve"]

_MOST: Final = 1000  # sources in one part: 0.5 GB for the targets of a CCD
_LEAK: Final = 1e-6  # squared part of an undetermined combination that makes a coefficient unmeasured


@dataclass(frozen=True, eq=False)
class Part:
    """Normal equations of sources that were read together, directly or through others; added to in place."""

    index: np.ndarray  # (k,) of the sources, in order
    matrix: np.ndarray  # (target, 2k, 2k) of their linear, then quadratic coefficients, in `SCALE`
    vector: np.ndarray  # (target, 2k)

    @cached_property
    def members(self) -> frozenset[int]:
        """The sources."""
        return frozenset(self.index.tolist())

    def places(self, sources: np.ndarray) -> np.ndarray:
        """(2n,) along the matrix, of linear, then quadratic coefficients of some of its sources."""
        at = np.searchsorted(self.index, sources)
        return np.concatenate([at, at + len(self.index)])


Normal = dict[int, Part]
"""By source: the part it is in, of all targets. A new one is an empty dict."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Target amplifiers of one CCD in one exposure; arrays (target, ...)."""

    source: np.ndarray  # their own places along the amplifiers of the camera
    electrons: np.ndarray  # (target, y, x) float32, raw pixels
    usable: np.ndarray  # (target, y, x) bool; False where they are not light-sensitive
    noise: np.ndarray  # electron, of a pixel in this exposure
    row_variance: np.ndarray  # electron**2
    common: np.ndarray  # electron**2, noise of the bias: the same in every exposure
    own: np.ndarray  # (target, 2) raw index of the centre of their own spot; NaN where they are dark


def add_patch(normal: Normal, patch: Patch, targets: Targets, repeats: int = 1) -> np.ndarray:
    """Add what targets show in a patch to their normal equations.

    Parameters
    ----------
    normal : of these targets, changed in place.
    repeats : exposures in which these sources are lit, all of which will be added.

    Pixels count by the variance of read noise and fitted background, those beyond 3 sigma of the fit less (Huber),
    beyond 6 not at all. The noise of the bias does not average over exposures: each is given ``repeats`` times its
    variance, which is exact where the spots stay and careful where they move.

    Returns
    -------
    (target, 2) coefficient of the source that was not there, and its error: infinite where too little of the patch
    is left; NaN where the fit does not describe it (streaks, edges of ghosts): such patches are not added.
    """
    true, taken = (targets.noise**2 + n * targets.common for n in (1, repeats))
    noise = np.stack([true, taken, targets.row_variance], 1)
    status, value, weight = _fitted(normal, patch, targets, noise)
    sources = np.array(patch.sources)
    for t in np.flatnonzero(status == HIDDEN).tolist():
        other = sources != targets.source[t]
        left = _left(patch, targets.usable[t]) & other
        if left.any():
            again = _fitted(normal, patch.without(left, ~left & other), targets, noise, t)
            status[t], value[t], weight[t] = (found[t] for found in again)
    nothing = (status != ADDED) | (weight == 0)
    weight = np.where(nothing, 1.0, weight)
    share = true / taken  # its error in this exposure alone
    null = np.stack([value / weight, np.where(nothing, np.inf, np.sqrt(share / weight))], 1) / SCALE
    null[status == ROUGH] = np.nan
    return null


def _fitted(normal: Normal, patch: Patch, targets: Targets, noise: np.ndarray, only: int | None = None) -> tuple:
    """What `fit_targets` finds of all targets, or of one whatever is hidden in it."""
    part = _part(normal, patch, len(noise))
    first = np.array([patch.rows.start, patch.columns.start])
    sums = part.matrix, part.vector, part.places(patch.index)[patch.measured], patch.parts
    which = np.arange(len(noise)) if only is None else np.array([only])
    images = targets.electrons, targets.usable
    own = targets.own - first
    return fit_targets(patch.terms, patch.signals, patch.free, images, first, own, noise, sums, which, only is not None)


def _left(patch: Patch, usable: np.ndarray) -> np.ndarray:
    """(k,) bool, sources of whose squared signal enough is left in a target."""
    good = patch.free & usable[patch.rows, patch.columns]
    return np.asarray((patch.signals[:, good] ** 2).sum(1) > LEFT * (patch.signals**2).sum((1, 2)))


def _part(normal: Normal, together: Patch | Part, targets: int) -> Part:
    """The part of the normal equations that holds these sources; those that hold some of them become one.

    Raises
    ------
    CalibrationError
        It would hold too many.
    """
    first = normal.get(int(together.index[0]))
    if first is not None and together.members <= first.members:
        return first
    old = {id(normal[s]): normal[s] for s in together.members if s in normal}
    members = together.members.union(*(part.members for part in old.values()))
    if len(members) > _MOST:
        raise CalibrationError(
            f"crosstalk: {len(members)} sources are read together, directly or through others, which is more than "
            f"{_MOST}: use masks whose spots stay within the cells of their boards, or leave exposures out"
        )
    n = 2 * len(members)
    whole = Part(np.array(sorted(members)), np.zeros((targets, n, n)), np.zeros((targets, n)))
    for part in old.values():
        _add(whole, part)
    normal.update(dict.fromkeys(members, whole))
    return whole


def _add(whole: Part, part: Part) -> None:
    place = whole.places(part.index)
    whole.matrix[:, place[:, None], place] += part.matrix
    whole.vector[:, place] += part.vector


def _parts(normal: Normal) -> list[Part]:
    return list({id(part): part for part in normal.values()}.values())


def merge(parts: Iterable[Normal]) -> Normal:
    """Sum of the normal equations of disjoint sets of exposures."""
    out: Normal = {}
    for normal in parts:
        for part in _parts(normal):
            _add(_part(out, part, len(part.vector)), part)
    return out


@dataclass(frozen=True)
class Solution:
    """Coefficients of one target, by source; NaN where they are not determined."""

    linear: np.ndarray  # (source,) electron/electron
    linear_error: np.ndarray
    quadratic: np.ndarray  # (source,) 1/electron
    quadratic_error: np.ndarray
    chi2: np.ndarray  # (source,) of the source's coefficients being zero
    freedom: np.ndarray  # (source,) 1, or 2 with a quadratic term
    condition: float  # of the worst set of sources; inf where some are always lit together
    seen: np.ndarray  # (source,) bool: it was lit where this target was dark


def solve(normal: Normal, number: int, quadratic: np.ndarray, limit: float, target: int = 0) -> Solution:
    """Solve the normal equations of one target.

    Parameters
    ----------
    number : of amplifiers of the camera.
    quadratic : (source,) bool, sources with a quadratic term.
    limit : condition number of the normalised matrix beyond which a combination of sources is undetermined: the
        sources in it stay NaN.
    """
    out = {name: np.full(number, np.nan) for name in ("c", "e", "c2", "e2", "chi2")}
    freedom, seen = np.where(quadratic, 2, 1), np.zeros(number, bool)
    worst = 1.0
    for part in _parts(normal):
        k, place = len(part.index), part.index
        active = np.concatenate([np.ones(k, bool), quadratic[place]])
        active &= np.diag(part.matrix[target]) > 0
        if not active.any():
            continue
        seen[place[active[:k]]] = True
        matrix, vector = part.matrix[target][np.ix_(active, active)], part.vector[target, active]
        size = np.sqrt(np.diag(matrix))
        value, mode = np.linalg.eigh(matrix / np.outer(size, size))
        known = value > value[-1] / limit
        worst = max(worst, np.inf if value[0] <= 1e-12 * value[-1] else float(value[-1] / value[0]))
        covariance = (mode[:, known] / value[known]) @ mode[:, known].T / np.outer(size, size)
        result = np.full(2 * k, np.nan)
        error = np.full(2 * k, np.nan)
        result[active], error[active] = covariance @ vector, np.sqrt(np.diag(covariance))
        lost = np.zeros(2 * k, bool)
        lost[active] = (mode[:, ~known] ** 2).sum(1) > _LEAK
        lost[:k] |= lost[k:]
        result[:k][lost[:k]] = error[:k][lost[:k]] = np.nan
        result[k:][lost[:k]] = error[k:][lost[:k]] = np.nan
        unit = np.repeat([SCALE, SCALE**2], k)
        out["c"][place], out["c2"][place] = np.split(result / unit, 2)
        out["e"][place], out["e2"][place] = np.split(error / unit, 2)
        out["chi2"][place] = _evidence(result, covariance, active, k)
    return Solution(out["c"], out["e"], out["c2"], out["e2"], out["chi2"], freedom, worst, seen)


def enlarged(solution: Solution, nulls: np.ndarray) -> tuple[Solution, float]:
    """Errors times the scatter, over their own errors, of sources that were not there, where that exceeds 1 by 6 sigma.

    Parameters
    ----------
    nulls : (n, 2) coefficients and errors that `add_patch` gave.

    Returns
    -------
    The solution, and the factor; 1 if nothing was to be done.
    """
    pulls = nulls[:, 0] / nulls[:, 1]
    if not len(pulls) or not np.mean(pulls**2) > 1 + 6 * np.sqrt(2 / len(pulls)):
        return solution, 1.0
    factor = float(np.sqrt(np.mean(pulls**2)))
    errors = {name: getattr(solution, name) * factor for name in ("linear_error", "quadratic_error")}
    return replace(solution, chi2=solution.chi2 / factor**2, **errors), factor


def _evidence(result: np.ndarray, covariance: np.ndarray, active: np.ndarray, k: int) -> np.ndarray:
    """Chi2 (source,) of all coefficients of a source being zero, whatever those of the others are."""
    whole = np.zeros((2 * k, 2 * k))
    whole[np.ix_(active, active)] = covariance
    at = np.arange(k)
    one, both, two = whole[at, at], whole[at, at + k], whole[at + k, at + k]
    found = np.full(k, np.nan)
    alone, pair = active[:k] & ~active[k:], active[:k] & active[k:]
    c, c2 = result[:k], result[k:]
    found[alone] = c[alone] ** 2 / one[alone]
    top = two * c**2 - 2 * both * c * c2 + one * c2**2
    found[pair] = top[pair] / (one * two - both**2)[pair]
    return found
