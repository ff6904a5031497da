"""Least squares for the crosstalk of one target from the spots that were lit with it (Lupton 2016, Sec. 2.6).

What a target amplifier shows near the moment k at which the spots of some sources are read is

    v(k) = B(k) + sum_s c[s] Q_s(k) + c2[s] Q_s(k)**2 + r(row)

B is a polynomial of order 2 over the patch, and where the target has a spot of its own the wings of that; r is
what the overscan left in a row, Gaussian with known variance. B and r are fitted and eliminated patch by patch, so
an exposure leaves nothing but a small matrix and vector for each set of sources that were read together.
They add up over exposures in any order: `merge` is associative.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

__all__ = ["Normal", "Patch", "Solution", "Stamp", "Target", "add_patch", "enlarged", "merge", "patches", "solve"]

SCALE: Final = 1e5  # electron; matrices hold signals in this unit, so that Q and Q**2 are alike
_HEART: Final = 0.5  # of its level: spots whose parts above it overlap are fitted together
_HUBER: Final = 3.0  # sigma, from which on a pixel counts less
_CUT: Final = 6.0  # sigma, from which on it does not count
_ROUNDS: Final = 3
_ROUGH: Final = 1.3  # mean square of the pulls from which on, beyond its own scatter, a fit is refused
_LOST: Final = 0.5  # of a source's squared signal that must be left in the target
_RIDGE: Final = 1e-9  # of the diagonal: decides between nuisances that cannot be told apart, and moves no fitted value
_LEAK: Final = 1e-6  # squared part of an undetermined combination that makes a coefficient unmeasured
_WINGS: Final = (3, 5)  # powers of 1/r of an even disc whose wings fall as r**-3: the even orders vanish

Normal = dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]
"""By set of sources: matrix (2k, 2k) and vector (2k,) of their linear, then quadratic coefficients, in `SCALE`."""


@dataclass(frozen=True)
class Stamp:
    """The spot of one source in one exposure."""

    source: int  # place of the source along the amplifiers of the camera
    y: int  # raw index of its first pixel
    x: int
    values: np.ndarray  # (y, x) float32, electron; NaN off the spot
    level: float  # electron
    used: bool = True  # False: it hides pixels and is no source

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns in raw pixels."""
        return slice(self.y, self.y + self.values.shape[0]), slice(self.x, self.x + self.values.shape[1])

    @property
    def centre(self) -> tuple[float, float]:
        """Raw index of its centre of light."""
        light = np.nan_to_num(self.values)
        y, x = (light.sum(axis) @ np.arange(light.shape[1 - axis]) / light.sum() for axis in (1, 0))
        return self.y + float(y), self.x + float(x)


@dataclass(frozen=True)
class Patch:
    """Raw pixels about the spots of some sources that are read together."""

    rows: slice
    columns: slice
    sources: tuple[int, ...]  # that are measured here
    signals: np.ndarray  # (y, x, k) of them, `SCALE`
    nuisance: np.ndarray  # (y, x, m): sources beside them, background
    wrong: np.ndarray  # (y, x): the signals half a patch off: a source that was not there
    free: np.ndarray  # (y, x) bool: no pixel of other spots


@dataclass(frozen=True)
class Target:
    """One target amplifier in one exposure."""

    source: int  # its own place along the amplifiers of the camera
    electrons: np.ndarray  # (y, x) float32, light-sensitive pixels
    y: int  # raw index of the first of them
    x: int
    usable: np.ndarray  # (y, x) bool
    noise: float  # electron, of a pixel in this exposure
    row_variance: float  # electron**2
    common: float = 0.0  # electron**2, noise of the bias: the same in every exposure
    own: tuple[float, float] | None = None  # raw index of the centre of its own spot


def _overlapping(stamps: Sequence[Stamp], shape: tuple[int, int]) -> list[list[int]]:
    """Places of stamps whose hearts overlap, directly or through others."""
    parent = list(range(len(stamps)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    owner = np.full(shape, -1)
    for i, stamp in enumerate(stamps):
        heart = stamp.values > _HEART * stamp.level
        part = owner[stamp.box]
        for other in np.unique(part[heart & (part >= 0)]):
            parent[root(i)] = root(int(other))
        part[heart] = i
    found: dict[int, list[int]] = {}
    for i in range(len(stamps)):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def patches(stamps: Sequence[Stamp], shape: tuple[int, int]) -> list[Patch]:
    """Patches of one exposure.

    Parameters
    ----------
    stamps : of all sources that are lit, also those that are of no use.
    shape : (y, x) of the raw amplifiers.
    """
    used = [stamp for stamp in stamps if stamp.used]
    refused = np.zeros(shape, bool)
    for stamp in (stamp for stamp in stamps if not stamp.used):
        refused[stamp.box] |= np.isfinite(stamp.values)
    return [_patch(used, members, refused, shape) for members in _overlapping(used, shape)]


def _patch(stamps: Sequence[Stamp], members: list[int], refused: np.ndarray, shape: tuple[int, int]) -> Patch:
    boxes = [stamps[i].box for i in members]
    rows, columns = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in (0, 1))
    margin = max(4, round(0.25 * max(rows.stop - rows.start, columns.stop - columns.start)))
    rows, columns = (
        slice(max(0, s.start - margin), min(size, s.stop + margin))
        for s, size in zip((rows, columns), shape, strict=True)
    )
    place = rows, columns
    signals = np.stack([_laid(stamps[i], place) for i in members], -1)
    core = (signals != 0).any(axis=-1)
    free = ~refused[place]
    beside = []
    for i in sorted(set(range(len(stamps))) - set(members)):
        if not _meet(stamps[i].box, place):
            continue
        laid = _laid(stamps[i], place)
        if (core & (laid != 0)).any():  # shares pixels with those that are measured
            beside.append(laid)
        else:
            free &= laid == 0
    v, u = np.meshgrid(*(np.linspace(-1, 1, size) for size in core.shape), indexing="ij")
    background = [np.ones_like(u), u, v, u * u, u * v, v * v]
    half = tuple(size // 2 for size in core.shape)
    return Patch(
        rows,
        columns,
        tuple(stamps[i].source for i in members),
        signals,
        np.stack([*beside, *background], -1),
        np.roll(signals.sum(-1), half, (0, 1)),
        free,
    )


def _meet(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _laid(stamp: Stamp, place: tuple[slice, slice]) -> np.ndarray:
    """Signal (y, x) of a source on a patch, `SCALE`; zero off the spot."""
    out = np.zeros(tuple(s.stop - s.start for s in place))
    to, of = [], []
    for box, patch in zip(stamp.box, place, strict=True):
        first, last = max(box.start, patch.start), min(box.stop, patch.stop)
        to.append(slice(first - patch.start, last - patch.start))
        of.append(slice(first - box.start, last - box.start))
    out[tuple(to)] = np.nan_to_num(stamp.values[tuple(of)]) / SCALE
    return out


def add_patch(normal: Normal, patch: Patch, target: Target, repeats: int = 1) -> tuple[float, float] | None:
    """Add what a target shows in a patch to its normal equations.

    Parameters
    ----------
    normal : changed in place.
    repeats : exposures in which these sources are lit, all of which will be added.

    Pixels count by the variance of read noise and fitted background, those beyond 3 sigma of the fit less (Huber),
    beyond 6 not at all. The noise of the bias does not average over exposures: each is given ``repeats`` times its
    variance, which is exact where the spots stay and careful where they move.

    Returns
    -------
    Coefficient of the source that was not there, and its error; None where too little of the patch is left,
    NaN where the fit does not describe it (streaks, edges of ghosts): such patches are not added.
    """
    ny, nx = target.electrons.shape
    rows, columns = (
        slice(max(p.start, first), min(p.stop, first + size))
        for p, first, size in ((patch.rows, target.y, ny), (patch.columns, target.x, nx))
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    ours = tuple(slice(s.start - first, s.stop - first) for s, first in ((rows, target.y), (columns, target.x)))
    of = tuple(slice(s.start - p.start, s.stop - p.start) for s, p in ((rows, patch.rows), (columns, patch.columns)))
    good = target.usable[ours] & patch.free[of]
    signals, wrong = patch.signals[of][good], patch.wrong[of][good]
    left = (signals**2).sum(0) > _LOST * (patch.signals**2).sum((0, 1))
    kept = [i for i, source in enumerate(patch.sources) if left[i] and source != target.source]
    rest = [i for i, source in enumerate(patch.sources) if not left[i] and source != target.source]
    nuisance = [patch.nuisance[of][good], signals[:, rest]]
    y, x = np.nonzero(good)
    if target.own is not None:
        nuisance.append(_wings(y + rows.start - target.own[0], x + columns.start - target.own[1]))
    linear = signals[:, kept]
    design = np.concatenate([linear, linear**2, *nuisance, wrong[:, None]], 1)
    if not kept or len(design) < 2 * design.shape[1]:
        return None
    starts = np.flatnonzero(np.diff(y, prepend=-1))
    wanted, data = 2 * len(kept), target.electrons[ours][good].astype(float)
    noise = target.noise**2 + target.common, target.noise**2 + repeats * target.common
    matrix, vector, chi2 = _robust(design, data, starts, (*noise, target.row_variance), wanted)
    if chi2 > _ROUGH + 6 * np.sqrt(2 / len(data)):
        return np.nan, np.nan
    reduced, right = _eliminate(matrix[:-1, :-1], vector[:-1], np.arange(wanted))
    key = tuple(patch.sources[i] for i in kept)
    _add(normal, key, reduced, right)
    last, at = _eliminate(matrix, vector, np.array([len(vector) - 1]))
    if last[0, 0] <= 1e-6 * matrix[-1, -1]:
        return None
    share = noise[0] / noise[1]  # its error in this exposure alone
    return float(at[0] / last[0, 0] / SCALE), float(np.sqrt(share / last[0, 0]) / SCALE)


def _wings(dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Light (pixel, 2) round a spot at these distances."""
    r = np.maximum(np.hypot(dy, dx), 1.0)
    return np.stack([(10.0 / r) ** power for power in _WINGS], -1)


def _robust(
    design: np.ndarray, data: np.ndarray, starts: np.ndarray, noise: tuple[float, float, float], wanted: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Normal equations of generalised least squares after iterated reweighting, and mean square of the pulls.

    Pulls beyond the Huber limit count as the limit: the few pixels that were hit do not make a fit bad.

    Parameters
    ----------
    design : (pixel, column), pixels row by row; data : (pixel,) electron; starts : first pixel of each row.
    noise : electron**2, of a pixel without light as it is, as it is weighed; common to a row.
    wanted : columns that are signals, not background.
    """
    true, taken, of_rows = noise
    background = np.full(len(data), max(float(np.median(data)), 0.0))
    share = np.ones(len(data))
    rows = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(data)))
    for turn in range(_ROUNDS + 1):
        weight = share / (taken + background)
        heavy = design * weight[:, None]
        matrix, vector = design.T @ heavy, heavy.T @ data
        sums, total = np.add.reduceat(heavy, starts), np.add.reduceat(weight * data, starts)
        shrink = of_rows / (1 + of_rows * np.add.reduceat(weight, starts))
        matrix -= (sums * shrink[:, None]).T @ sums
        vector -= sums.T @ (shrink * total)
        if turn == _ROUNDS:
            break
        fit = np.linalg.solve(matrix + np.diag(_RIDGE * np.diag(matrix) + 1e-300), vector)
        smooth = design[:, wanted:-1] @ fit[wanted:-1]
        residual = data - design @ fit
        residual -= (shrink * (total - sums @ fit))[rows]
        background = np.maximum(smooth, 0.0)
        pull = np.abs(residual) / np.sqrt(true + background)
        share = np.where(pull > _CUT, 0.0, np.minimum(1.0, _HUBER / np.maximum(pull, 1e-9)))
    return matrix, vector, float(np.mean(np.minimum(pull, _HUBER) ** 2))


def _eliminate(matrix: np.ndarray, vector: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of the kept unknowns alone, the others at their best for each value of these."""
    rest = np.setdiff1d(np.arange(len(vector)), keep)
    inner = matrix[np.ix_(rest, rest)]
    inner = inner + np.diag(_RIDGE * np.diag(inner) + 1e-300)
    across = matrix[np.ix_(rest, keep)]
    solved = np.linalg.solve(inner, np.column_stack([across, vector[rest]]))
    reduced = matrix[np.ix_(keep, keep)] - across.T @ solved[:, :-1]
    return (reduced + reduced.T) / 2, vector[keep] - across.T @ solved[:, -1]


def _add(normal: Normal, key: tuple[int, ...], matrix: np.ndarray, vector: np.ndarray) -> None:
    if key in normal:
        matrix, vector = normal[key][0] + matrix, normal[key][1] + vector
    normal[key] = matrix, vector


def merge(parts: Iterable[Normal]) -> Normal:
    """Sum of the normal equations of disjoint sets of exposures."""
    out: Normal = {}
    for part in parts:
        for key, (matrix, vector) in part.items():
            _add(out, key, matrix, vector)
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


def solve(normal: Normal, number: int, quadratic: np.ndarray, limit: float) -> Solution:
    """Solve the normal equations of one target.

    Parameters
    ----------
    number : of amplifiers of the camera.
    quadratic : (source,) bool, sources with a quadratic term.
    limit : condition number of the normalised matrix beyond which a combination of sources is undetermined: the
        sources in it stay NaN.
    """
    out = {name: np.full(number, np.nan) for name in ("c", "e", "c2", "e2", "chi2")}
    freedom = np.where(quadratic, 2, 1)
    worst = 1.0
    for sources, whole, right in _components(normal):
        k = len(sources)
        active = np.concatenate([np.ones(k, bool), quadratic[list(sources)]])
        active &= np.diag(whole) > 0
        matrix, vector = whole[np.ix_(active, active)], right[active]
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
        place = list(sources)
        out["c"][place], out["c2"][place] = np.split(result / unit, 2)
        out["e"][place], out["e2"][place] = np.split(error / unit, 2)
        out["chi2"][place] = _evidence(result, covariance, active, k)
    return Solution(out["c"], out["e"], out["c2"], out["e2"], out["chi2"], freedom, worst)


def enlarged(solution: Solution, nulls: Sequence[tuple[float, float]]) -> tuple[Solution, float]:
    """Errors times the scatter, over their own errors, of sources that were not there, where that exceeds 1 by 6 sigma.

    Parameters
    ----------
    nulls : coefficients and errors that `add_patch` gave.

    Returns
    -------
    The solution, and the factor; 1 if nothing was to be done.
    """
    pulls = np.array([value / error for value, error in nulls])
    if not len(pulls) or not np.mean(pulls**2) > 1 + 6 * np.sqrt(2 / len(pulls)):
        return solution, 1.0
    factor = float(np.sqrt(np.mean(pulls**2)))
    errors = {name: getattr(solution, name) * factor for name in ("linear_error", "quadratic_error")}
    return replace(solution, chi2=solution.chi2 / factor**2, **errors), factor


def _evidence(result: np.ndarray, covariance: np.ndarray, active: np.ndarray, k: int) -> np.ndarray:
    """Chi2 (source,) of all coefficients of a source being zero, whatever those of the others are."""
    place = np.cumsum(active) - 1
    found = np.full(k, np.nan)
    for i in range(k):
        own = [j for j in (i, i + k) if active[j]]
        values = result[own]
        if own and np.isfinite(values).all():
            part = covariance[np.ix_(place[own], place[own])]
            found[i] = values @ np.linalg.solve(part, values)
    return found


def _components(normal: Mapping[tuple[int, ...], tuple[np.ndarray, np.ndarray]]) -> Iterable[tuple]:
    """Sources that were ever measured together, with their matrix and vector."""
    group: dict[int, set[int]] = {}
    for key in normal:
        joined = set(key).union(*(group.get(s, {s}) for s in key))
        for s in joined:
            group[s] = joined
    for sources in {tuple(sorted(members)) for members in group.values()}:
        at = {s: i for i, s in enumerate(sources)}
        k = len(sources)
        matrix, vector = np.zeros((2 * k, 2 * k)), np.zeros(2 * k)
        for key in (key for key in normal if key[0] in at):
            place = np.array([at[s] for s in key])
            place = np.concatenate([place, place + k])
            matrix[np.ix_(place, place)] += normal[key][0]
            vector[place] += normal[key][1]
        yield sources, matrix, vector
