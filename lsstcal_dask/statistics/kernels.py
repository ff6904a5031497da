# mypy: allow-untyped-defs
"""Kernels of the robust combination of a stack of exposures of one amplifier (Secs. 2.1, 2.7 and 2.8).

They read the raw counts once, at their own width, and calibrate them on the way: a tile of some thousand
pixels of every exposure at a time is laid out as float32 that stay in the second-level cache, for memory is
read at full speed only in long runs of one exposure. From there on `LANES` pixels are one number, a vector
(`vectors`), and nothing branches on a pixel.

The median comes from two sorted halves: blocks of up to 16 exposures are sorted in registers, merged by
Batcher's network until two lists are left, and the k-th smallest of lists a and b is the least over
i + j = k of max(a_i, b_j), which needs no further sorting.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numpy.typing import NDArray

from lsstcal_dask.statistics.vectors import (
    DTYPES,
    LANES,
    LINE,
    VERSION,
    address,
    any_set,
    choose,
    either_nan,
    emitted,
    get,
    least,
    load_counts,
    most,
    number,
    put,
    spread,
    sqrt,
    tally,
)

__all__ = ["BLOCK", "DTYPES", "LANES", "MEDIAN", "MODEL", "SAMPLE", "plan", "run"]

MEDIAN, SAMPLE, MODEL = 0, 1, 2
BLOCK: Final = 16  # exposures sorted in registers, of which a processor with AVX2 has 16
_HALF: Final = 8  # pixels sorted at once: one register each
_TILE: Final = 4096  # pixels of an exposure in the buffer at most
_CACHE: Final = 65536  # floats of the buffer in use at most: half of a second-level cache
_STRIDE: Final = _TILE + 16  # of an exposure in the buffer; a power of two would crowd one set of the cache


@cache
def plan(n: int) -> tuple[NDArray[np.uint64], ...]:
    """How to find the middle of n rows: what to sort, what to merge, what to compare at the end.

    Returns
    -------
    blocks : (b, 2) first row and size, 4, 8 or 16, of the blocks to sort.
    merges : (c, 3) first row, second row and number, 2 or 16, of equally spaced rows whose sorted halves to
        merge, until two sorted lists are left.
    lower, upper : (t, 2) row i of one list and row j of the other: the lower or upper middle is the least of
        all max(row i, row j). The row before the first of a list is `minus infinity`, row
        ``2 * ceil(n / BLOCK) * BLOCK``.
    """
    first = min(n, _HALF)
    while 2 * first < n:
        first *= 2
    if n > 2 * BLOCK:
        first = max(first, BLOCK)
    blocks: list[tuple[int, int]] = []
    merges: list[tuple[int, int, int]] = []
    for low, high in ((0, first), (first, n)):
        for start in range(low, high, BLOCK):
            left = min(BLOCK, high - start)
            blocks.append((start, 4 if left <= 4 else 8 if left <= 8 else BLOCK))
        size = BLOCK
        while size < high - low:
            for start in range(low, high, 2 * size):
                _merge(merges, start, 2 * size, 1, BLOCK)
            size *= 2
    bottom = -(-n // BLOCK) * BLOCK * 2
    terms: list[list[tuple[int, int]]] = [[], []]
    for pairs, rank in zip(terms, (max(n // 2, 1), n // 2 + 1), strict=True):
        for i in range(max(0, rank - (n - first)), min(first, rank) + 1):
            j = rank - i
            pairs.append((i - 1 if i else bottom, first + j - 1 if j else bottom))
    merges = [(i, j, m) for i, j, m in merges if i + m // 2 * (j - i) < n]  # rows from n on are +inf, in place
    tables = (np.array(table, np.uint64) for table in (blocks, merges, *terms))
    return tuple(table.reshape(-1, columns) for table, columns in zip(tables, (2, 3, 2, 2), strict=True))


def _merge(steps: list[tuple[int, int, int]], low: int, length: int, step: int, block: int = 2) -> None:
    """Append the odd-even merge of the two sorted halves of ``length`` rows from ``low``, every ``step``-th.

    A step is first row, second row and number of equally spaced rows, of which ``block`` are left whole.
    """
    if length == block * step:
        steps.append((low, low + step, block))
        return
    _merge(steps, low, length, 2 * step, block)
    _merge(steps, low + step, length, 2 * step, block)
    steps.extend((i, i + step, 2) for i in range(low + step, low + length - step, 2 * step))


def _network(builder: Any, steps: list[tuple[int, int, int]], sources: list[Any], targets: list[Any]) -> None:
    """Load rows of half a vector, put pairs of them in order, store them."""
    v = [builder.load(source, align=4) for source in sources]
    for i, j, _ in steps:
        v[i], v[j] = least(builder, v[i], v[j]), most(builder, v[i], v[j])
    for row, target in zip(v, targets, strict=True):
        builder.store(row, target, align=4)


def _rows(builder: Any, line: Any, at: Any, count: int, step: Any) -> list[Any]:
    """Give the addresses of rows of half a vector, ``step`` floats apart."""
    kind, size = ir.VectorType(ir.FloatType(), _HALF), at.type
    places = (builder.add(at, builder.mul(step, size(row))) for row in range(count))
    return [address(builder, line, place, kind) for place in places]


def _sorter(size: int) -> Callable[..., Any]:
    """Give the function that sorts ``size`` rows of half a vector in registers, from one line to another."""
    steps: list[tuple[int, int, int]] = []
    half = 1
    while half < size:
        for low in range(0, size, 2 * half):
            _merge(steps, low, 2 * half, 1)
        half *= 2

    @emitted(types.void, LINE, types.uint64, LINE, types.uint64)
    def sort(builder, rows, at, work, to):
        sources = _rows(builder, rows, at, size, at.type(_STRIDE))
        _network(builder, steps, sources, _rows(builder, work, to, size, to.type(LANES)))

    return sort


_sort4, _sort8, _sort16 = (_sorter(size) for size in (4, 8, 16))


@emitted(types.void, LINE, types.uint64, types.uint64)
def _merge16(builder, work, at, step):
    """Merge the sorted halves of 16 rows of half a vector, ``step`` floats apart, in registers."""
    steps: list[tuple[int, int, int]] = []
    _merge(steps, 0, BLOCK, 1)
    places = _rows(builder, work, at, BLOCK, step)
    _network(builder, steps, places, places)


def _jit(function: Callable[..., Any], **wrappers: bool) -> Callable[..., Any]:
    """Compile at the first call: once per machine if a cache folder is writable, else once per process.

    Division by zero gives inf or NaN, as in numpy: a check per pixel would prevent vectors.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, **wrappers}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's own can be written
        return numba.njit(**options)(function)


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of the kernel that calls it: handing over the arrays would cost as much as the work."""
    return _jit(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


_U = np.uint64
_F = np.float32


@_inner
def _calibrate(flat, f, o, c, plane, p, rows, at, width, new):
    """Put a strip of one exposure into ``rows``, or add it to them."""
    whole = width - width % _U(LANES)
    for x in range(_U(0), whole, _U(LANES)):
        v = (load_counts(flat, f + x) - spread(o) - get(plane, p + x)) * spread(c)
        put(rows, at + x, v if new else get(rows, at + x) + v)
    for x in range(whole, width):
        v = ((_F(flat[f + x]) - o) - plane[p + x]) * c
        rows[at + x] = v if new else rows[at + x] + v


@_inner
def _load(flats, places, offset, plane, scale, tile, nx, rows):
    """Calibrate a tile of every exposure into ``rows``, averaging the exposures of a run."""
    starts, edges, step = places
    y0, y1, x0, width, padded = tile
    for run in range(len(edges) - 1):
        size = _F(edges[run + 1] - edges[run])
        for i in range(edges[run], edges[run + 1]):
            c, new = scale[i] / size, i == edges[run]
            for y in range(y0, y1):
                at = _U(run * _STRIDE) + _U(y - y0) * padded
                f, o, p = _U(starts[i] + y * step + x0), offset[i, y], _U((y * nx if plane.size > nx else 0) + x0)
                if flats[0].size:
                    _calibrate(flats[0], f, o, c, plane, p, rows, at, width, new)
                elif flats[1].size:
                    _calibrate(flats[1], f, o, c, plane, p, rows, at, width, new)
                else:
                    _calibrate(flats[2], f, o, c, plane, p, rows, at, width, new)


@_inner
def _fill(rows, at, n, sizes):
    """Replace NaN by infinities of alternating sign, which cancel out of the median.

    Returns the sign that the next would have, and the exposures that took part.
    """
    gap = spread(_F(0))
    for i in range(0, n, 2):
        r = at + _U(i * _STRIDE)
        gap = gap | either_nan(get(rows, r), get(rows, r + _U(_STRIDE)))
    sign, count = spread(_F(np.inf)), spread(_F(0))
    if not any_set(gap):
        return sign, spread(sizes[n])
    for i in range(n):
        r = at + _U(i * _STRIDE)
        v = get(rows, r)
        good = v == v  # noqa: PLR0124 - false for NaN alone
        put(rows, r, choose(good, v, sign) + spread(_F(0)))  # + 0: else a masked store, tens of cycles on AMD
        sign = choose(good, sign, spread(_F(0)) - sign)
        count += good & spread(sizes[i])
    return sign, count


@_inner
def _middle(rows, at, n, steps, work, sign):
    """Sort, merge, compare; the middle value, or the mean of the middle two of an even number of values."""
    blocks, merges, below, above = steps
    for block in range(len(blocks)):
        first, size = blocks[block, 0], blocks[block, 1]
        r, o = at + first * _U(_STRIDE), first * _U(LANES)
        for x in range(_U(0), _U(LANES), _U(_HALF)):
            if size == _U(4):
                _sort4(rows, r + x, work, o + x)
            elif size == _U(8):
                _sort8(rows, r + x, work, o + x)
            else:
                _sort16(rows, r + x, work, o + x)
    for merge in range(len(merges)):
        i, j = merges[merge, 0] * _U(LANES), merges[merge, 1] * _U(LANES)
        if merges[merge, 2] == _U(2):
            a, b = get(work, i), get(work, j)
            put(work, i, least(a, b))
            put(work, j, most(a, b))
        else:
            for x in range(_U(0), _U(LANES), _U(_HALF)):
                _merge16(work, i + x, j - i)
    lower, upper = _select(work, below), _select(work, above)
    odd = _F(1) if n % 2 == 1 else _F(-1)  # an odd number of NaN leaves the sign negative
    single = upper if odd > 0 else lower
    return choose(spread(_F(0)) < sign * spread(odd), single, spread(_F(0.5)) * (lower + upper))


@_inner
def _select(work, terms):
    """Give the least of the larger ones of the pairs."""
    found = spread(_F(np.inf))
    for term in range(len(terms)):
        i, j = terms[term, 0] * _U(LANES), terms[term, 1] * _U(LANES)
        found = least(found, most(get(work, i), get(work, j)))
    return found


@_inner
def _low(a, b):
    return choose(a < b, a, b)


@_inner
def _high(a, b):
    return choose(b < a, a, b)


@_inner
def _moments(rows, at, n, pivot, half, shift):
    """Count what lies within ``half`` of the pivot, and sum it and its square about ``pivot + shift``."""
    count, total, squares = spread(_F(0)), spread(_F(0)), spread(_F(0))
    for i in range(n):
        d = get(rows, at + _U(i * _STRIDE)) - pivot
        kept = abs(d) <= half
        d = (d - shift) & kept
        count = tally(count, kept)
        total += d
        squares += d * d
    return number(count), total, squares


@_inner
def _all_moments(rows, at, n, pivot):
    """Do what `_moments` does where nothing is left out, in half as many instructions."""
    total, squares = spread(_F(0)), spread(_F(0))
    for i in range(n):
        d = get(rows, at + _U(i * _STRIDE)) - pivot
        total += d
        squares += d * d
    return spread(_F(n)), total, squares


@_inner
def _clip_sample(rows, at, n, gaps, k, rounds, unclip):
    """Clip at ``k`` sample deviations about the mean, ``rounds`` times; mean, its variance, survivors.

    Intervals only shrink. The pivot is the middle of the interval, so that one comparison tells what is in
    it; where it was too far from the mean for float32 the sums are taken again about the mean. A pixel whose
    survivors stay the same is left alone: the result does not depend on its neighbours.
    """
    zero, one = spread(_F(0)), spread(_F(1))
    a, b, c = get(rows, at), get(rows, at + _U(_STRIDE)), get(rows, at + _U(2 * _STRIDE))
    guess = _high(_low(a, b), _low(_high(a, b), c))  # rarely an outlier
    pivot = choose(abs(guess) < spread(_F(1e30)), guess, zero)
    half, before = spread(_F(3e38)), spread(_F(-1))
    for step in range(rounds + 1):
        shift = zero
        if step > 0 or gaps:
            count, total, squares = _moments(rows, at, n, pivot, half, zero)
        else:
            count, total, squares = _all_moments(rows, at, n, pivot)
        far = spread(_F(0.999)) * squares * count < total * total  # false where nothing is left
        if any_set(far):
            shift = choose(far, total / count, zero)
            count, total, squares = _moments(rows, at, n, pivot, half, shift)
        each = one / count
        offset = total * each
        squares = _high(zero, squares - offset * total)
        offset += shift
        changed = count != before
        if step == rounds or not any_set(changed):
            break
        reach = spread(k) * sqrt(squares * each) + spread(_F(2.4e-7)) * abs(pivot + offset)  # two roundings
        low, high = _high(offset - reach, zero - half), _low(offset + reach, half)
        pivot = choose(changed, pivot + spread(_F(0.5)) * (low + high), pivot)
        half = choose(changed, spread(_F(0.5)) * (high - low), half)
        before = count
    variance = spread(unclip * unclip) * squares / ((count - one) * count)
    return pivot + offset, choose(one < count, variance, spread(_F(np.nan))), count


@_inner
def _clip_model(rows, at, centre, model, k, rounds, unclip):
    """Weighted mean within ``k`` model sigma of the centre, then of that mean; its variance, survivors.

    The first centre may have a variance of its own, ``slack``.
    """
    read, poisson, weight_of, slack = model
    zero, one = spread(_F(0)), spread(_F(1))
    count, weights = zero, zero
    for step in range(rounds + 1):
        level, own = _high(zero, centre), slack if step == 0 else _F(0)
        count, total, weights = zero, zero, zero
        for i in range(read.size):
            d = get(rows, at + _U(i * _STRIDE)) - centre
            if poisson.size:
                variance = spread(read[i]) + spread(poisson[i]) * level
                kept = d * d < spread(k * k) * (variance + spread(own))
                weight = one / variance & kept
            else:  # no division: the weights are those of the exposures
                weight = spread(weight_of[i])
                kept = d * d < spread(k * k * (read[i] + own))
                weight = weight & kept
            count = tally(count, kept)
            total += weight * (d & kept)
            weights += weight
        centre += total / weights
    count = number(count)
    return centre, choose(zero < count, spread(unclip) / weights, spread(_F(np.nan))), count


@_inner
def _store(line, at, width, first, value, variance, frames):
    """Write the centres, variances of the mean and survivors of a row of a tile."""
    for x in range(width):
        value[first + x] = line[at + x]
        frames[first + x] = np.int32(line[at + _U(2 * _STRIDE) + x])
    if variance.size:
        for x in range(width):
            variance[first + x] = line[at + _U(_STRIDE) + x]


def _compile(version: int) -> Callable[..., Any]:
    """Give the kernel; its cache on disk notices another ``version`` of `vectors`, being a closure of it."""

    @_jit
    def run(counts, calibration, steps, model, method, clip, nx, results):
        """Combine one amplifier, tile by tile; `stacks` prepares the arguments."""
        _ = version
        flats, places, gaps = counts
        offset, plane, scale, start = calibration
        k, rounds, unclip = clip
        value, variance, frames = results
        starts, edges, _ = places
        n = len(edges) - 1
        block = -(-n // BLOCK) * BLOCK
        rows = np.full(_STRIDE * block, _F(np.inf))  # exposures from n on stay +inf
        work = np.full(LANES * (2 * block + 1), _F(np.inf))
        put(work, _U(LANES * 2 * block), spread(_F(-np.inf)))
        line = np.empty(3 * _STRIDE, np.float32)
        sizes = np.empty(n + 1, np.float32)
        for i in range(n):
            sizes[i] = edges[i + 1] - edges[i]
        sizes[n] = starts.size
        room = max(min(_TILE, _CACHE // n), LANES) // LANES * LANES  # pixels of a tile
        ny, whole = value.size // nx, -(-nx // LANES) * LANES
        high = max(room // whole, 1)
        for y0 in range(0, ny, high):
            y1 = min(y0 + high, ny)
            for x0 in range(0, nx, room):
                width = min(room, nx - x0)
                padded = _U(-(-width // LANES) * LANES)
                _load(flats, places, offset, plane, scale, (y0, y1, x0, _U(width), padded), nx, rows)
                for x in range(_U(0), _U(y1 - y0) * padded, _U(LANES)):
                    if method == SAMPLE:
                        centre, error, count = _clip_sample(rows, x, n, gaps, k, rounds, unclip)
                    else:
                        sign, count, error = spread(_F(np.inf)), spread(sizes[n]), spread(_F(0))
                        if start.size:
                            centre = get(start, _U((y0 + x // padded) * nx + x0) + x % padded)
                        else:
                            if gaps:
                                sign, count = _fill(rows, x, n, sizes)
                            centre = _middle(rows, x, n, steps, work, sign)
                        if method == MODEL:
                            centre, error, count = _clip_model(rows, x, centre, model, k, rounds, unclip)
                    centre = choose(spread(_F(0)) < count, centre, spread(_F(np.nan)))
                    put(line, x, centre)
                    put(line, x + _U(_STRIDE), error)
                    put(line, x + _U(2 * _STRIDE), count)
                for y in range(y0, y1):
                    first = _U(y * nx + x0)
                    _store(line, _U(y - y0) * padded, _U(width), first, value, variance, frames)

    return run


run = _compile(VERSION)
