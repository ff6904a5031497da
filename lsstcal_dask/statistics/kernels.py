# mypy: allow-untyped-defs
"""Kernels of the robust combination of a stack of exposures of one amplifier (Secs. 2.1, 2.7 and 2.8).

They read the raw counts once, at their own width, and calibrate them on the way: 256 pixels of a row at a
time are laid out as blocks of 64 pixels by N exposures that stay in the cache, where every step is one
vector instruction per eight pixels and no step branches on a pixel.

The median comes from two sorted halves: blocks of up to 16 exposures are sorted in registers, merged by
Batcher's network until two lists are left, and the k-th smallest of lists a and b is the least over
i + j = k of max(a_i, b_j), which needs no further sorting.

Two rules keep the generated code so, and a test reads it: the distance between two rows of a block is a
constant of the compilation (one-dimensional buffers, unsigned indices, which numba does not wrap), and a
value chosen by comparison is not stored where one of the two came from, for LLVM makes that a masked store,
which costs tens of cycles on some processors.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["BLOCK", "DTYPES", "MEDIAN", "MODEL", "SAMPLE", "plan", "run"]

DTYPES: Final = ("uint16", "int32", "float32")
MEDIAN, SAMPLE, MODEL = 0, 1, 2
BLOCK: Final = 16  # exposures sorted in registers, of which a processor with AVX2 has 16
_W: Final = 64  # pixels of a block: 8 vectors of 8, and 32 exposures of it fill half a first-level cache
_STRIP: Final = 256  # pixels read at once from one exposure: shorter runs read slower
_STRIDE: Final = _STRIP + 16  # of an exposure in the buffer; a power of two would crowd one set of the cache
_LANES: Final = 8  # pixels of a vector


@cache
def plan(n: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """How to find the middle of n rows: what to sort, what to merge, what to compare at the end.

    Returns
    -------
    blocks : (b, 2) first row and size, 4, 8 or 16, of the blocks to sort.
    merges : (c, 2) rows to put in order, until two sorted lists are left.
    terms : (t, 3) row i of one list, row j of the other and 0 or 1: the lower or upper middle is the least
        of all max(row i, row j) of its terms. The row before the first of a list is `minus infinity`, row
        ``ceil(n / BLOCK) * BLOCK``.
    """
    first = min(n, _LANES)
    while 2 * first < n:
        first *= 2
    if n > 2 * BLOCK:
        first = max(first, BLOCK)
    blocks: list[tuple[int, int]] = []
    merges: list[tuple[int, int]] = []
    for low, high in ((0, first), (first, n)):
        for start in range(low, high, BLOCK):
            left = min(BLOCK, high - start)
            blocks.append((start, 4 if left <= 4 else 8 if left <= 8 else BLOCK))
        size = BLOCK
        while size < high - low:
            for start in range(low, high, 2 * size):
                _merge(merges, start, 2 * size, 1)
            size *= 2
    bottom = -(-n // BLOCK) * BLOCK
    terms = []
    for which, rank in enumerate((max(n // 2, 1), n // 2 + 1)):
        for i in range(max(0, rank - (n - first)), min(first, rank) + 1):
            j = rank - i
            terms.append((i - 1 if i else bottom, first + j - 1 if j else bottom, which))
    merges = [(i, j) for i, j in merges if j < n]  # rows from n on are +inf, already in place
    return _table(blocks, 2), _table(merges, 2), _table(terms, 3)


def _table(rows: list[Any], columns: int) -> NDArray[np.uint64]:
    return np.array(rows, np.uint64).reshape(-1, columns)


def _merge(pairs: list[tuple[int, int]], low: int, length: int, step: int) -> None:
    """Append the odd-even merge of the two sorted halves of rows ``low + step*i`` of ``length`` rows."""
    if 2 * step >= length:
        pairs.append((low, low + step))
        return
    _merge(pairs, low, length, 2 * step)
    _merge(pairs, low + step, length, 2 * step)
    pairs.extend((i, i + step) for i in range(low + step, low + length - step, 2 * step))


def _jit(function: Callable[..., Any], **wrappers: bool) -> Callable[..., Any]:
    """Compile at the first call: once per machine if a cache folder is writable, else once per process.

    Division by zero gives inf or NaN, as in numpy: a check per pixel would prevent vectors.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, **wrappers}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's own can be written
        return numba.njit(**options)(function)


def _extremum(name: str) -> Any:
    """Give the smaller or larger of two float32 that are not NaN, by one instruction.

    Written as a comparison it becomes a masked store wherever one of the two goes back to its place.
    """

    @intrinsic
    def choose(context: Any, a: types.Float, b: types.Float) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            f4 = ir.FloatType()
            function = builder.module.declare_intrinsic(name, [f4], ir.FunctionType(f4, [f4, f4]))
            return builder.call(function, args, fastmath=("nnan",))

        return types.float32(types.float32, types.float32), generate

    return choose


_least, _most = _extremum("llvm.minnum"), _extremum("llvm.maxnum")


def _sorter(size: int) -> Any:
    """Give the function that sorts ``size`` rows of one vector of pixels in registers."""
    pairs: list[tuple[int, int]] = []
    half = 1
    while half < size:
        for low in range(0, size, 2 * half):
            _merge(pairs, low, 2 * half, 1)
        half *= 2

    @intrinsic
    def sort(context: Any, rows: Any, at: Any, work: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), _LANES)
            kind = ir.FunctionType(vector, [vector, vector])
            names = (f"llvm.{name}num.v{_LANES}f32" for name in ("min", "max"))
            least, most = (cgutils.get_or_insert_function(builder.module, kind, name) for name in names)

            def place(array: int, index: int, row: int, stride: int) -> Any:
                data = context.make_array(signature.args[array])(context, builder, args[array]).data
                shifted = builder.add(args[index], ir.Constant(ir.IntType(64), row * stride))
                return builder.bitcast(builder.gep(data, [shifted]), vector.as_pointer())

            v = [builder.load(place(0, 1, row, _STRIDE), align=4) for row in range(size)]
            for i, j in pairs:
                operands = (v[i], v[j])
                v[i] = builder.call(least, operands, fastmath=("nnan",))
                v[j] = builder.call(most, operands, fastmath=("nnan",))
            for row in range(size):
                builder.store(v[row], place(2, 3, row, _W), align=4)
            return context.get_dummy_value()

        return types.void(rows, types.uint64, work, types.uint64), generate

    return sort


_sort4, _sort8, _sort16 = (_sorter(size) for size in (4, 8, 16))


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for calls from other kernels only, without the entries for Python and C that cost time."""
    return _jit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


_U = np.uint64
_F = np.float32
# Rows of a block's scratch: interval kept, sign of the next filling, middle two, centre, survivors, sums.
_HALF, _SHIFT, _BEFORE, _SIGN, _LOWER, _UPPER, _PIVOT, _COUNT, _SUM, _SQUARES = (_U(_W * row) for row in range(10))


@_inner
def _put(line, first, length, value):
    for x in range(_U(length)):
        line[first + x] = value


@_inner
def _low(a, b):
    return a if a < b else b


@_inner
def _high(a, b):
    return b if a < b else a


@_inner
def _calibrate(flat, f, o, c, plane, p, rows, at, width, new):
    """Put a strip of one exposure into ``rows``, or add it to them."""
    if new:
        for x in range(width):
            rows[at + x] = ((_F(flat[f + x]) - o) - plane[p + x]) * c
    else:
        for x in range(width):
            rows[at + x] += ((_F(flat[f + x]) - o) - plane[p + x]) * c


@_inner
def _load(flats, starts, edges, offset, plane, scale, y, nx, strip, rows):
    """Calibrate a strip of row ``y`` of every exposure into ``rows``, averaging the exposures of a run."""
    width, first = _U(min(_STRIP, nx - strip)), y * nx + strip
    p = _U(first if plane.size > nx else strip)
    for run in range(len(edges) - 1):
        at, size = _U(run * _STRIDE), _F(edges[run + 1] - edges[run])
        for i in range(edges[run], edges[run + 1]):
            f, o, c, new = _U(starts[i] + first), offset[i, y], scale[i] / size, i == edges[run]
            if flats[0].size:
                _calibrate(flats[0], f, o, c, plane, p, rows, at, width, new)
            elif flats[1].size:
                _calibrate(flats[1], f, o, c, plane, p, rows, at, width, new)
            else:
                _calibrate(flats[2], f, o, c, plane, p, rows, at, width, new)


@_inner
def _fill(rows, at, n, sizes, s):
    """Replace NaN by infinities of alternating sign, which cancel out of the median; count the others."""
    _put(s, _SIGN, _W, _F(np.inf))
    _put(s, _COUNT, _W, _F(0))
    for first in range(0, n, 4):
        r, sa, sb, sc, sd = at + _U(first * _STRIDE), sizes[first], sizes[first + 1], sizes[first + 2], sizes[first + 3]
        for x in range(_U(_W)):
            sign, m = s[_SIGN + x], s[_COUNT + x]
            a, b = rows[r + x], rows[r + _U(_STRIDE) + x]
            c, d = rows[r + _U(2 * _STRIDE) + x], rows[r + _U(3 * _STRIDE) + x]
            a, sign, m = _filled(a, sign, m, sa)
            b, sign, m = _filled(b, sign, m, sb)
            c, sign, m = _filled(c, sign, m, sc)
            d, sign, m = _filled(d, sign, m, sd)
            rows[r + x], rows[r + _U(_STRIDE) + x] = a, b
            rows[r + _U(2 * _STRIDE) + x], rows[r + _U(3 * _STRIDE) + x] = c, d
            s[_SIGN + x], s[_COUNT + x] = sign, m


@_inner
def _filled(v, sign, count, size):
    good = v == v  # noqa: PLR0124 - false for NaN alone; np.isnan compiles slower
    return (v if good else sign) + _F(0), sign if good else -sign, count + (size if good else _F(0))


@_inner
def _middle(rows, at, n, steps, work, s):
    """Sort, merge, compare; the middle value, or the mean of the middle two of an even number of values."""
    blocks, merges, terms = steps
    for block in range(len(blocks)):
        first, size = blocks[block, 0], blocks[block, 1]
        r, o = at + first * _U(_STRIDE), first * _U(_W)
        for x in range(_U(0), _U(_W), _U(_LANES)):
            if size == _U(4):
                _sort4(rows, r + x, work, o + x)
            elif size == _U(8):
                _sort8(rows, r + x, work, o + x)
            else:
                _sort16(rows, r + x, work, o + x)
    for pair in range(len(merges)):
        i, j = merges[pair, 0] * _U(_W), merges[pair, 1] * _U(_W)
        for x in range(_U(_W)):
            a, b = work[i + x], work[j + x]
            work[i + x] = _least(a, b)
            work[j + x] = _most(a, b)
    _put(s, _LOWER, 2 * _W, _F(np.inf))
    for term in range(len(terms)):
        i, j, k = terms[term, 0] * _U(_W), terms[term, 1] * _U(_W), _LOWER + terms[term, 2] * _U(_W)
        for x in range(_U(_W)):
            s[k + x] = _least(s[k + x], _most(work[i + x], work[j + x]))
    odd = _F(1) if n % 2 == 1 else _F(-1)  # an odd number of NaN leaves the sign negative
    for x in range(_U(_W)):
        lower, upper = s[_LOWER + x], s[_UPPER + x]
        single = upper if odd > 0 else lower
        s[_PIVOT + x] = single if s[_SIGN + x] * odd > 0 else _F(0.5) * (lower + upper)


@_inner
def _add(v, pivot, half, count, total, squares):
    d = v - pivot
    kept = abs(d) <= half
    d = d if kept else _F(0)
    return count + (_F(1) if kept else _F(0)), total + d, squares + d * d


@_inner
def _moments(rows, at, n, s):
    """Sum what lies within the half-width of the pivots."""
    _put(s, _COUNT, 3 * _W, _F(0))
    for first in range(0, n, 4):
        r = at + _U(first * _STRIDE)
        for x in range(_U(_W)):
            half, p = s[_HALF + x], s[_PIVOT + x]
            c, t, q = s[_COUNT + x], s[_SUM + x], s[_SQUARES + x]
            c, t, q = _add(rows[r + x], p, half, c, t, q)
            c, t, q = _add(rows[r + _U(_STRIDE) + x], p, half, c, t, q)
            c, t, q = _add(rows[r + _U(2 * _STRIDE) + x], p, half, c, t, q)
            c, t, q = _add(rows[r + _U(3 * _STRIDE) + x], p, half, c, t, q)
            s[_COUNT + x], s[_SUM + x], s[_SQUARES + x] = c, t, q


@_inner
def _recentre(rows, at, n, s):
    """Take the sums of `_moments` about the mean that they give."""
    for x in range(_U(_W)):
        pivot, half, shift = s[_PIVOT + x], s[_HALF + x], s[_SUM + x] / s[_COUNT + x]
        total, squares = _F(0), _F(0)
        for i in range(n):
            d = rows[at + _U(i * _STRIDE) + x] - pivot
            if abs(d) <= half:
                total += d - shift
                squares += (d - shift) * (d - shift)
        s[_SHIFT + x], s[_SUM + x], s[_SQUARES + x] = shift, total, squares


@_inner
def _clip_sample(rows, at, n, k, rounds, s):
    """Clip at ``k`` sample deviations about the mean, ``rounds`` times; leaves the mean in ``s``.

    Intervals only shrink. The pivot is the middle of the interval, so that one comparison tells what is in
    it; where it was too far from the mean for float32 the sums are taken again about the mean.
    """
    for x in range(_U(_W)):
        a, b, c = rows[at + x], rows[at + _U(_STRIDE) + x], rows[at + _U(2 * _STRIDE) + x]
        guess = _high(_low(a, b), _low(_high(a, b), c))  # rarely an outlier
        s[_PIVOT + x] = guess if abs(guess) < _F(1e30) else _F(0)
        s[_HALF + x] = _F(3e38)
    _put(s, _BEFORE, _W, _F(-1))
    for step in range(rounds + 1):
        _moments(rows, at, n, s)
        far, changed = False, False
        for x in range(_U(_W)):
            count, total = s[_COUNT + x], s[_SUM + x]
            far |= total * total > _F(0.999) * s[_SQUARES + x] * count  # empty pixels are false
            changed |= count != s[_BEFORE + x]
            s[_BEFORE + x] = count
        _put(s, _SHIFT, _W, _F(0))
        if far:
            _recentre(rows, at, n, s)
        if step == rounds or not changed:
            break
        for x in range(_U(_W)):
            pivot, half, total, each = s[_PIVOT + x], s[_HALF + x], s[_SUM + x], _F(1) / s[_COUNT + x]
            shift = s[_SHIFT + x] + total * each
            mean, left = pivot + shift, _high(_F(0), s[_SQUARES + x] - total * each * total)
            reach = k * np.sqrt(left * each) + _F(2.4e-7) * abs(mean)  # two roundings
            low, high = _high(shift - reach, -half), _low(shift + reach, half)
            s[_PIVOT + x] = pivot + _F(0.5) * (low + high)
            s[_HALF + x] = _F(0.5) * (high - low)
    for x in range(_U(_W)):
        shift = s[_SUM + x] / s[_COUNT + x]
        s[_SQUARES + x] = _high(_F(0), s[_SQUARES + x] - shift * s[_SUM + x])
        s[_PIVOT + x] += s[_SHIFT + x] + shift


@_inner
def _clip_model(rows, at, model, k, rounds, s):
    """Weighted mean within ``k`` model sigma of ``s[_PIVOT]``, then of that mean; 1/variance in _SQUARES."""
    for _ in range(rounds + 1):
        _put(s, _COUNT, 3 * _W, _F(0))
        for i in range(model.shape[1]):
            r = at + _U(i * _STRIDE)
            read, poisson = model[0, i], model[1, i]
            for x in range(_U(_W)):
                centre = s[_PIVOT + x]
                variance = read + poisson * _high(_F(0), centre)
                d = rows[r + x] - centre
                kept = d * d < k * k * variance
                weight = _F(1) / variance if kept else _F(0)
                s[_COUNT + x] += _F(1) if kept else _F(0)
                s[_SUM + x] += weight * d if kept else _F(0)
                s[_SQUARES + x] += weight
        for x in range(_U(_W)):
            s[_PIVOT + x] += s[_SUM + x] / s[_SQUARES + x]


@_inner
def _store(s, method, unclip, nx, y, first, value, variance, frames):
    """Write a block's centre, variance of the mean and survivors."""
    width, out = _U(min(_W, nx - first)), _U(y * nx + first)
    for x in range(width):
        count = s[_COUNT + x]
        value[out + x] = s[_PIVOT + x] if count > 0 else _F(np.nan)
        frames[out + x] = np.int32(count)
    if method == SAMPLE:
        for x in range(width):
            count = s[_COUNT + x]
            square = unclip * unclip * s[_SQUARES + x] / ((count - _F(1)) * count)
            variance[out + x] = square if count > 1 else _F(np.nan)
    elif method == MODEL:
        for x in range(width):
            variance[out + x] = unclip / s[_SQUARES + x] if s[_COUNT + x] > 0 else _F(np.nan)


@_jit
def run(counts, calibration, steps, model, method, clip, nx, results):
    """Combine one amplifier, strip by strip; `stacks` prepares the arguments."""
    flats, starts, edges, gaps = counts
    offset, plane, scale = calibration
    k, rounds, unclip = clip
    value, variance, frames = results
    n = len(edges) - 1
    padded = -(-n // BLOCK) * BLOCK
    rows = np.empty(_STRIDE * padded, np.float32)
    work = np.empty(_W * (padded + 1), np.float32)
    s = np.empty(10 * _W, np.float32)
    sizes = np.empty(padded, np.float32)
    _put(rows, _U(0), rows.size, _F(np.inf))  # exposures from n on stay +inf
    _put(work, _U(0), work.size, _F(np.inf))
    _put(work, _U(_W * padded), _W, _F(-np.inf))
    _put(sizes, _U(0), padded, _F(0))
    for run in range(n):
        sizes[run] = edges[run + 1] - edges[run]
    for y in range(value.size // nx):
        for strip in range(0, nx, _STRIP):
            _load(flats, starts, edges, offset, plane, scale, y, nx, strip, rows)
            for x in range(strip, min(strip + _STRIP, nx), _W):
                at = _U(x - strip)
                if method == SAMPLE:
                    _clip_sample(rows, at, n, k, rounds, s)
                else:
                    if gaps:
                        _fill(rows, at, n, sizes, s)
                    else:
                        _put(s, _SIGN, _W, _F(np.inf))
                        _put(s, _COUNT, _W, _F(starts.size))
                    _middle(rows, at, n, steps, work, s)
                    if method == MODEL:
                        _clip_model(rows, at, model, k, rounds, s)
                _store(s, method, unclip, nx, y, x, value, variance, frames)
