"""Kernels of the crosstalk of one target: robust least squares of a patch, and what many sources have in common.

Columns lie pixel by pixel, (column, pixel), so that every sum runs along them.
"""

from typing import Final

import numpy as np
from numba import njit

__all__ = ["ADDED", "FEW", "HIDDEN", "LEFT", "ROUGH", "add_expanded", "fit_targets", "stand_ins"]

ADDED: Final = 0
HIDDEN: Final = 1
"""Too little of a signal is left: which sources are measured must be told first."""
FEW: Final = 2
"""Too few pixels."""
ROUGH: Final = 3
"""The fit does not describe the patch."""

LEFT: Final = 0.5
"""Of a source's squared signal that must be left in the target."""

_HUBER: Final = 3.0  # sigma, from which on a pixel counts less
_CUT: Final = 6.0  # sigma, from which on it does not count
_ROUNDS: Final = 3  # at most, until no weight moves by more than
_STILL: Final = 0.01  # of itself: that moves a coefficient by less than so much of its error
_LIMIT: Final = 1.3  # mean square of the pulls from which on, beyond its own scatter, a fit is refused
_RIDGE: Final = 1e-9  # of the diagonal: decides between nuisances that cannot be told apart, and moves no fitted value
_TINY: Final = 1e-300
_FAST = {"contract", "reassoc", "nsz"}  # sums may be taken in any order


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def stand_ins(columns: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover
    """Which (r,) of some columns (q, pixel) stand for all, and the parts (r, q) that these have in each.

    The column of which most is left is the next, all of them of one length, until of none more than ``limit`` is left.
    Modes: the columns at right angles to those before them.
    """
    q, n = columns.shape
    size, left, chosen = np.empty(q), np.empty((q, n)), np.empty(q, np.int64)
    for i in range(q):
        size[i] = np.sqrt(_dot(columns[i], columns[i]))
        factor = 1 / size[i] if size[i] > 0 else 0.0
        for p in range(n):
            left[i, p] = columns[i, p] * factor
    of_modes, mode, r = np.zeros((q, q)), np.empty(n), 0
    while r < q:
        best, top = -1, limit * limit
        for i in range(q):
            total = _dot(left[i], left[i])
            if total > top:
                best, top = i, total
        if best < 0:
            break
        for p in range(n):
            mode[p] = left[best, p] / np.sqrt(top)
        for i in range(q):
            part = _dot(mode, left[i])
            for p in range(n):
                left[i, p] -= part * mode[p]
            of_modes[r, i] = part * size[i]
        chosen[r] = best
        r += 1
    parts = of_modes[:r].copy()
    for a in range(
        r - 1, -1, -1
    ):  # from modes to the columns that were chosen, which are sums of those up to their own
        diagonal = of_modes[a, chosen[a]]
        for i in range(q):
            parts[a, i] /= diagonal
            for b in range(a):
                parts[b, i] -= of_modes[b, chosen[a]] * parts[a, i]
    return chosen[:r].copy(), parts


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def fit_targets(terms, signals, free, images, first, own, noise, sums, which, told):  # type: ignore[no-untyped-def] # pragma: no cover
    """Add what each target shows in a patch to its normal equations.

    Parameters
    ----------
    terms : (column, y, x): signals that are fitted, nuisances, a source that was not there.
    signals : (k, y, x) of the sources; free : (y, x) bool, none of other spots.
    images : electrons and usable (target, y, x); first : place there of the first pixel of the patch.
    own : (target, 2) place in the patch of the centre of the target's own spot; NaN where there is none.
    noise : (target, 3) electron**2, of a pixel without light as it is, as it is weighed, common to a row.
    sums : matrix (target, 2n, 2n) and vector (target, 2n), added to; place (q,) there of the signals that are
        measured, and their parts (r, q) in the first r columns.
    which : targets that are looked at; told : whatever is left of a source in them.

    Returns
    -------
    Status, value and weight of the last column (target,); nothing is added where it is not `ADDED`.
    """
    n = len(noise)
    status, value, weight = np.empty(n, np.int64), np.zeros(n), np.zeros(n)
    matrix, vector, place, parts = sums
    for t in range(n):
        status[t] = FEW
    for t in which:
        at, data, starts, lost = _packed(free, images[0][t], images[1][t], first, signals)
        if lost and not told:
            status[t] = HIDDEN
            continue
        design = _design(terms, at, own[t])
        if len(data) < 2 * len(design):
            continue
        whole, right, chi2 = _robust(design, data, starts, noise[t], len(parts))
        if chi2 > _LIMIT + 6 * np.sqrt(2 / len(data)):
            status[t] = ROUGH
            continue
        last, status[t] = len(right) - 1, ADDED
        reduced, side = _eliminate(whole, right, 0, len(parts), len(parts), last)
        add_expanded(matrix[t], vector[t], place, parts, reduced, side)
        alone, side = _eliminate(whole, right, last, last + 1, 0, last)
        value[t], weight[t] = side[0], alone[0, 0] if alone[0, 0] > 1e-6 * whole[last, last] else 0.0
    return status, value, weight


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def add_expanded(matrix, vector, place, parts, reduced, right):  # type: ignore[no-untyped-def] # pragma: no cover
    """Add normal equations of a few (r, r), (r,), as those of all columns (q,), of which they are ``parts`` (r, q)."""
    r, q = parts.shape
    half, row = np.zeros((r, q)), np.empty(q)
    for a in range(r):
        for b in range(r):
            for i in range(q):
                half[a, i] += reduced[a, b] * parts[b, i]
        for i in range(q):
            vector[place[i]] += right[a] * parts[a, i]
    for i in range(q):
        for j in range(q):
            row[j] = 0.0
        for a in range(r):
            factor = parts[a, i]
            for j in range(q):
                row[j] += factor * half[a, j]
        into = matrix[place[i]]
        for j in range(q):
            into[place[j]] += row[j]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _packed(free, image, usable, first, signals):  # type: ignore[no-untyped-def] # pragma: no cover
    """Flat places and data (pixel,) of the pixels that count, first of each row; is too little left of a signal."""
    ny, nx = free.shape
    at, data, starts = np.empty(ny * nx, np.int64), np.empty(ny * nx), np.empty(ny + 1, np.int64)
    gone = np.empty(ny * nx, np.int64)
    n, m, rows = 0, 0, 0
    for y in range(ny):
        starts[rows] = n
        for x in range(nx):
            yy, xx = y + first[0], x + first[1]
            if free[y, x] and usable[yy, xx]:
                at[n], data[n] = y * nx + x, image[yy, xx]
                n += 1
            else:
                gone[m] = y * nx + x
                m += 1
        rows += n > starts[rows]
    starts[rows] = n
    lost = False
    for k in range(len(signals)):
        flat, dark, whole = signals[k].ravel(), 0.0, 0.0
        for p in range(m):
            dark += flat[gone[p]] ** 2
        if dark > 0:
            for p in range(ny * nx):
                whole += flat[p] ** 2
            lost |= dark >= (1 - LEFT) * whole
    return at[:n], data[:n], starts[: rows + 1], lost


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _design(terms, at, own):  # type: ignore[no-untyped-def] # pragma: no cover
    """Columns (column, pixel) at flat places; before the last one the light round the target's own spot.

    It falls as 1/r**3 and 1/r**5: of an even disc whose wings fall as the first the even orders vanish.
    """
    c, nx = len(terms), terms.shape[2]
    lit = not np.isnan(own[0])
    design = np.empty((c + 2 if lit else c, len(at)))
    for i in range(c):
        term, column = terms[i].ravel(), design[i] if i < c - 1 else design[-1]
        for p in range(len(at)):
            column[p] = term[at[p]]
    if lit:
        for p in range(len(at)):
            y, x = at[p] // nx - own[0], at[p] % nx - own[1]
            square = 100.0 / max(y * y + x * x, 1.0)
            design[c - 1, p] = square * np.sqrt(square)
            design[c, p] = design[c - 1, p] * square
    return design


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _robust(design, data, starts, noise, wanted):  # type: ignore[no-untyped-def] # pragma: no cover
    """Normal equations of generalised least squares after iterated reweighting, and mean square of the pulls.

    Pulls beyond the Huber limit count as the limit: the few pixels that were hit do not make a fit bad.
    """
    (c, n), (true, taken, of_rows) = design.shape, noise
    background, weight, share = np.zeros(n), np.ones(n), np.ones(n)
    smooth, residual = np.empty(n), np.empty(n)
    squares = 0.0
    for turn in range(_ROUNDS + 1):
        moved = False
        for p in range(n):
            before, weight[p] = weight[p], share[p] / (taken + background[p])
            moved |= abs(weight[p] - before) > _STILL * before
        if turn and not moved:
            break
        matrix, vector, sums, total, shrink = _normal(design, data, starts, weight, of_rows)
        if turn == _ROUNDS:
            break
        fit = _solved(matrix, vector)
        for p in range(n):
            smooth[p], residual[p] = 0.0, data[p]
        for i in range(c):
            if wanted <= i < c - 1:
                for p in range(n):
                    smooth[p] += fit[i] * design[i, p]
            for p in range(n):
                residual[p] -= fit[i] * design[i, p]
        squares = 0.0
        for r in range(len(starts) - 1):
            step = shrink[r] * (total[r] - _dot(sums[:, r], fit))
            for p in range(starts[r], starts[r + 1]):
                background[p] = max(smooth[p], 0.0)
                pull = abs(residual[p] - step) / np.sqrt(true + background[p])
                share[p] = 0.0 if pull > _CUT else min(1.0, _HUBER / max(pull, 1e-9))
                squares += min(pull, _HUBER) ** 2
    return matrix, vector, squares / n


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _normal(design, data, starts, weight, of_rows):  # type: ignore[no-untyped-def] # pragma: no cover
    """Weighted normal equations, what rows have in common eliminated; sums of rows (c, r), (r,), and their share."""
    (c, n), rows = design.shape, len(starts) - 1
    matrix, vector = np.empty((c, c)), np.empty(c)
    sums, heavy = np.empty((c, rows)), np.empty(n)
    for i in range(c):
        for p in range(n):
            heavy[p] = weight[p] * design[i, p]
        for j in range(i + 1):
            matrix[i, j] = _dot(heavy, design[j])
        vector[i] = _dot(heavy, data)
        _of_rows(heavy, starts, sums[i])
    total, shrink = np.empty(rows), np.empty(rows)
    _of_rows(weight, starts, shrink)
    for p in range(n):
        heavy[p] = weight[p] * data[p]
    _of_rows(heavy, starts, total)
    for r in range(rows):
        shrink[r] = of_rows / (1 + of_rows * shrink[r])
    for i in range(c):
        vector[i] -= _dot(sums[i] * shrink, total)
        for j in range(i + 1):
            matrix[i, j] -= _dot(sums[i] * shrink, sums[j])
            matrix[j, i] = matrix[i, j]
    return matrix, vector, sums, total, shrink


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _dot(a, b):  # type: ignore[no-untyped-def] # pragma: no cover
    total = 0.0
    for p in range(len(a)):
        total += a[p] * b[p]
    return total


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _of_rows(values, starts, out):  # type: ignore[no-untyped-def] # pragma: no cover
    """Sums (r,) of the pixels of each row."""
    for r in range(len(out)):
        total = 0.0
        for p in range(starts[r], starts[r + 1]):
            total += values[p]
        out[r] = total


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _lower(matrix):  # type: ignore[no-untyped-def] # pragma: no cover
    """Cholesky factor of a matrix with `_RIDGE` on its diagonal; what nothing tells of is taken to be zero."""
    n = len(matrix)
    low = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            left = matrix[i, j]
            for k in range(j):
                left -= low[i, k] * low[j, k]
            if i == j:
                left += _RIDGE * matrix[i, i] + _TINY
                low[i, i] = np.sqrt(left) if left > 0 else np.inf
            else:
                low[i, j] = left / low[j, j]
    return low


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _solved(matrix, vector):  # type: ignore[no-untyped-def] # pragma: no cover
    low, out = _lower(matrix), vector.copy()
    n = len(out)
    for i in range(n):
        for k in range(i):
            out[i] -= low[i, k] * out[k]
        out[i] /= low[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            out[i] -= low[k, i] * out[k]
        out[i] /= low[i, i]
    return out


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)
def _eliminate(matrix, vector, first, last, start, stop):  # type: ignore[no-untyped-def] # pragma: no cover
    """Normal equations of unknowns ``first`` to ``last``, those ``start`` to ``stop`` at their best for each value."""
    n, k = stop - start, last - first
    inner, across = np.empty((n, n)), np.empty((n, k + 1))
    for i in range(n):
        for j in range(n):
            inner[i, j] = matrix[start + i, start + j]
        for j in range(k):
            across[i, j] = matrix[start + i, first + j]
        across[i, k] = vector[start + i]
    low = _lower(inner)
    for i in range(n):
        for m in range(i):
            for j in range(k + 1):
                across[i, j] -= low[i, m] * across[m, j]
        for j in range(k + 1):
            across[i, j] /= low[i, i]
    reduced, right = np.empty((k, k)), np.empty(k)
    for a in range(k):
        right[a] = vector[first + a]
        for i in range(n):
            right[a] -= across[i, a] * across[i, k]
        for b in range(k):
            reduced[a, b] = matrix[first + a, first + b]
            for i in range(n):
                reduced[a, b] -= across[i, a] * across[i, b]
    return reduced, right
