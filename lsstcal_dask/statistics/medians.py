# mypy: allow-untyped-defs
"""Median of the exposures of a vector of pixels (Sec. 2.1), by a sorting network that no pixel makes branch.

It comes from two sorted halves: blocks of up to 16 exposures are sorted in registers, merged by Batcher's
network until two lists are left, and the k-th smallest of lists a and b is the least over i + j = k of
max(a_i, b_j), which needs no further sorting.
"""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numpy.typing import NDArray

from lsstcal_dask.statistics import vectors
from lsstcal_dask.statistics.vectors import (
    LANES,
    LINE,
    address,
    any_set,
    choose,
    either_nan,
    emitted,
    get,
    inlined,
    least,
    most,
    put,
    spread,
)

__all__ = ["BLOCK", "VERSION", "fill", "middle", "plan"]

BLOCK: Final = 16  # exposures sorted in registers, of which a processor with AVX2 has 16
_HALF: Final = 8  # pixels sorted at once: one register each
VERSION: Final = zlib.crc32(Path(__file__).read_bytes(), vectors.VERSION)
"""Changes with this file and `vectors`, of which numba's cache of the kernels knows nothing."""
_U = np.uint64
_F = np.float32


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
        sources = _rows(builder, rows, at, size, at.type(LANES))
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


@inlined
def fill(rows, at, n, sizes):
    """Replace NaN by infinities of alternating sign, which cancel out of the median.

    Returns the sign that the next would have, and the exposures that took part.
    """
    gap = spread(_F(0))
    for i in range(0, n, 2):
        r = at + _U(i * LANES)
        gap = gap | either_nan(get(rows, r), get(rows, r + _U(LANES)))
    sign, count = spread(_F(np.inf)), spread(_F(0))
    if not any_set(gap):
        return sign, spread(sizes[n])
    for i in range(n):
        r = at + _U(i * LANES)
        v = get(rows, r)
        good = v == v  # noqa: PLR0124 - false for NaN alone
        put(rows, r, choose(good, v, sign) + spread(_F(0)))  # + 0: else a masked store, tens of cycles on AMD
        sign = choose(good, sign, spread(_F(0)) - sign)
        count += good & spread(sizes[i])
    return sign, count


@inlined
def middle(rows, at, n, steps, work, sign):
    """Sort, merge, compare; the middle value, or the mean of the middle two of an even number of values."""
    blocks, merges, below, above = steps
    for block in range(len(blocks)):
        first, size = blocks[block, 0], blocks[block, 1]
        r, o = at + first * _U(LANES), first * _U(LANES)
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


@inlined
def _select(work, terms):
    """Give the least of the larger ones of the pairs."""
    found = spread(_F(np.inf))
    for term in range(len(terms)):
        i, j = terms[term, 0] * _U(LANES), terms[term, 1] * _U(LANES)
        found = least(found, most(get(work, i), get(work, j)))
    return found
