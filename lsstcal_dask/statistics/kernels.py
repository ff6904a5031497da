# mypy: allow-untyped-defs
"""Kernels of the robust combination of a stack of exposures of one amplifier (Secs. 2.1, 2.7 and 2.8).

They read the raw counts once, at their own width, and calibrate them on the way: a strip of some cache lines
of every exposure at a time becomes float32 that stay in the first-level cache, in blocks of `LANES` pixels, and
memory is asked for the strips to come. From there on `LANES` pixels are one number, a vector (`vectors`), and
nothing branches on a pixel.

Most pixels have nothing to clip, which one pass over their values tells together with their mean. A vector with
one that has is gone through once more for each round of clipping, and what is found for the others is not used.

A product with ``one``, which is 1, makes a difference or a sum an instruction of the units that multiply: those
that add, compare and find minima are busy, and no bit changes.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.statistics.medians import BLOCK, VERSION, fill, middle
from lsstcal_dask.statistics.vectors import (
    DTYPES,
    LANES,
    any_set,
    choose,
    compiled,
    fetch,
    get,
    inlined,
    load_counts,
    number,
    put,
    put_counts,
    spread,
    sqrt,
    tally,
)

__all__ = ["DTYPES", "LANES", "MEDIAN", "MODEL", "SAMPLE", "STRIP", "Model", "run"]

MEDIAN, SAMPLE, MODEL = 0, 1, 2
STRIP: Final = 64  # a strip has a multiple of so many pixels: whole cache lines, for none may be needed twice
_AHEAD: Final = 512  # pixels between those being read and those that memory is asked for


_U = np.uint64
_F = np.float32


class Model(NamedTuple):
    """Noise of the exposures, unit of the values: variance ``read[n] + poisson[n] centre``."""

    read: NDArray[np.float32]  # (n,); -inf takes no part
    poisson: NDArray[np.float32]  # (n,), or empty: then the weights below are those of the exposures
    weight: NDArray[np.float32]  # (n,), 1/read
    root: NDArray[np.float32]  # (n,), its square root; inf where there is none
    total: np.float32  # sum of the weights
    largest: np.float32  # of the roots
    slack: np.float32  # variance of the first centre


@inlined
def _calibrate(flat, f, o, c, plane, p, rows, at, size, new):
    """Put a strip of one exposure into the blocks of ``rows``, ``size`` floats each, or add it to what is there."""
    for x in range(_U(0), _U(STRIP), _U(LANES)):
        fetch(flat, f + x + _U(_AHEAD))
        v = load_counts(flat, f + x) - spread(o)
        if plane.size:
            v = v - get(plane, p + x)
        to = at + x // _U(LANES) * size
        put(rows, to, v * spread(c) if new else get(rows, to) + v * spread(c))


@inlined
def _calibrate_last(flat, f, o, c, plane, p, rows, at, size, new):
    """Do so pixel by pixel, where a strip reaches beyond the stack."""
    for x in range(_U(0), min(_U(STRIP), _U(flat.size) - f)):
        v = _F(flat[f + x]) - o
        if plane.size:
            v = v - plane[p + x]
        to = at + x // _U(LANES) * size + x % _U(LANES)
        rows[to] = v * c if new else rows[to] + v * c


@inlined
def _load(flat, exposures, plane, x0, p, size, rows):
    """Calibrate a strip of every exposure into ``rows``, averaging the exposures of a run."""
    begins, levels, factors, runs = exposures
    many = _U(len(begins))
    if begins[many - _U(1)] + x0 + _U(STRIP) <= _U(flat.size):
        for i in range(_U(0), many):
            at, new = runs[i] >> _U(1), runs[i] & _U(1)
            _calibrate(flat, begins[i] + x0, levels[i], factors[i], plane, p, rows, at, size, new)
    else:
        for i in range(_U(0), many):
            at, new = runs[i] >> _U(1), runs[i] & _U(1)
            _calibrate_last(flat, begins[i] + x0, levels[i], factors[i], plane, p, rows, at, size, new)


@inlined
def _load_any(flats, exposures, plane, x0, p, size, rows):
    """Do so for counts of any type."""
    if flats[0].size:
        _load(flats[0], exposures, plane, x0, p, size, rows)
    elif flats[1].size:
        _load(flats[1], exposures, plane, x0, p, size, rows)
    else:
        _load(flats[2], exposures, plane, x0, p, size, rows)


@inlined
def _first_centre(rows, at, n, gaps, steps, work, sizes, start, place):
    """Median, or the centre given; the exposures that took part."""
    if start.size:
        return get(start, place), spread(sizes[n])
    sign, count = spread(_F(np.inf)), spread(sizes[n])
    if gaps:
        sign, count = fill(rows, at, n, sizes)
    return middle(rows, at, n, steps, work, sign), count


@inlined
def _low(a, b):
    return choose(a < b, a, b)


@inlined
def _high(a, b):
    return choose(b < a, a, b)


@inlined
def _moments(rows, at, n, pivot, half, one):
    """Count what lies within ``half`` of the pivot, sum it and its square about the pivot; its extremes."""
    count, total, squares = spread(_F(0)), spread(_F(0)), spread(_F(0))
    lowest, highest, nothing = spread(_F(np.inf)), spread(_F(-np.inf)), spread(_F(np.nan))
    for i in range(n):
        d = get(rows, at + _U(i * LANES)) * one - pivot
        kept = abs(d) <= half
        count = choose(kept, count + one, count)
        total, squares = choose(kept, d * one + total, total), choose(kept, d * d + squares, squares)
        d = choose(kept, d, nothing)  # NaN, which is neither less nor more
        lowest, highest = _low(d, lowest), _high(d, highest)
    return (count, total, squares), (lowest, highest)


@inlined
def _moments_again(rows, at, n, pivot, half, shift):
    """Sum what lies within ``half`` of the pivot and its square, about ``pivot + shift``."""
    total, squares = spread(_F(0)), spread(_F(0))
    for i in range(n):
        d = get(rows, at + _U(i * LANES)) - pivot
        d = (d - shift) & (abs(d) <= half)
        total += d
        squares += d * d
    return total, squares


@inlined
def _about_mean(rows, at, n, pivot, half, sums):
    """Mean less pivot, sum of squares about the mean, 1/count.

    Where the pivot was too far from the mean for float32 the sums are taken again about the mean.
    """
    count, total, squares = sums
    shift = spread(_F(0))
    far = spread(_F(0.999)) * squares * count < total * total  # false where nothing is left
    if any_set(far):
        shift = choose(far, total / count, shift)
        again, spare = _moments_again(rows, at, n, pivot, half, shift)
        total, squares = choose(far, again, total), choose(far, spare, squares)
    each = spread(_F(1)) / count
    offset = total * each
    return offset + shift, _high(spread(_F(0)), squares - offset * total), each


@inlined
def _reach(pivot, offset, squares, each, k):
    """Half-width of the interval about the mean, with the roundings of pivot and mean."""
    return spread(k) * sqrt(squares * each) + spread(_F(2.4e-7)) * abs(pivot + offset)


@inlined
def _error(squares, count, each, unclip):
    """Variance of the mean."""
    rest = count - spread(_F(1))
    variance = spread(unclip * unclip) * squares * each * (spread(_F(1)) / rest)
    return choose(spread(_F(0)) < rest, variance, spread(_F(np.nan)))


@inlined
def _whole_sample(rows, at, n, gaps, k, unclip, one):
    """Mean of all values, its variance, their number; where there is something to clip, and to what interval.

    The pivot is the middle one of three values, rarely an outlier.
    """
    zero, huge = spread(_F(0)), spread(_F(3e38))
    a, b, c = get(rows, at), get(rows, at + _U(LANES)), get(rows, at + _U(2 * LANES))
    guess = _high(_low(a, b), _low(_high(a, b), c))
    pivot = choose(abs(guess) < spread(_F(1e30)), guess, zero)
    count, total, squares, lowest, highest = zero, zero, zero, zero, zero
    for i in range(n):
        d = get(rows, at + _U(i * LANES)) * one - pivot
        if gaps:
            good = abs(d) <= huge
            count = choose(good, count + one, count)
            total, squares = choose(good, d * one + total, total), choose(good, d * d + squares, squares)
        else:
            total, squares = d * one + total, d * d + squares
        lowest, highest = _low(d, lowest), _high(d, highest)
    count = count if gaps else spread(_F(n))
    sums = count, total, squares
    offset, squares, each = _about_mean(rows, at, n, pivot, huge, sums)
    reach = _reach(pivot, offset, squares, each, k)
    mark = (lowest < offset - reach) | (offset + reach < highest)
    return pivot + offset, _error(squares, count, each, unclip), count, mark, reach


@inlined
def _clip_sample(rows, at, n, waits, x, k, unclip, one, results, place):
    """Clip once more where ``waits`` says so, in the interval that it tells; what there is to clip then.

    Intervals only shrink. The pivot is the middle of the interval, so that one comparison tells what is in
    it. A pixel whose survivors stay the same is left alone: the result does not depend on its neighbours.
    """
    mark, pivot, half = get(waits, x), get(waits, x + _U(STRIP)), get(waits, x + _U(2 * STRIP))
    sums, (lowest, highest) = _moments(rows, at, n, pivot, half, one)
    offset, squares, each = _about_mean(rows, at, n, pivot, half, sums)
    _store_some(results, place, mark, pivot + offset, _error(squares, sums[0], each, unclip), sums[0])
    reach = _reach(pivot, offset, squares, each, k)
    changes = mark & ((lowest < offset - reach) | (offset + reach < highest))
    low, high = _high(offset - reach, spread(_F(0)) - half), _low(offset + reach, half)
    return changes, pivot + spread(_F(0.5)) * (low + high), spread(_F(0.5)) * (high - low)


@inlined
def _whole_model(rows, at, centre, model, k):
    """Weighted mean of all values, its weight; where it is not sure that all lie within ``k`` sigma of both centres."""
    zero = spread(_F(0))
    total, worst = zero, zero
    for i in range(model.weight.size):
        d = get(rows, at + _U(i * LANES)) - centre
        total += spread(model.weight[i]) * d
        worst = _high(spread(model.root[i]) * abs(d), worst)
    shift = total * spread(_F(1) / model.total)
    sure = worst + spread(model.largest) * abs(shift) < spread(k)
    return centre + shift, sure == zero  # a mask that is set is NaN


@inlined
def _clip_model(rows, at, centre, model, k, rounds, unclip):
    """Weighted mean within ``k`` model sigma of the centre, then of that mean; its variance, survivors.

    The first centre may have a variance of its own, ``slack``.
    """
    zero, one = spread(_F(0)), spread(_F(1))
    count, weights = zero, zero
    for turn in range(rounds + 1):
        level, own = _high(zero, centre), model.slack if turn == 0 else _F(0)
        count, total, weights = zero, zero, zero
        for i in range(model.read.size):
            d = get(rows, at + _U(i * LANES)) - centre
            if model.poisson.size:
                variance = spread(model.read[i]) + spread(model.poisson[i]) * level
                kept = d * d < spread(k * k) * (variance + spread(own))
                weight = one / variance & kept
            else:  # no division: the weights are those of the exposures
                weight = spread(model.weight[i])
                kept = d * d < spread(k * k * (model.read[i] + own))
                weight = weight & kept
            count = tally(count, kept)
            total += weight * (d & kept)
            weights += weight
        centre += total / weights
    count = number(count)
    return centre, choose(zero < count, spread(unclip) / weights, spread(_F(np.nan))), count


@inlined
def _store(results, at, centre, error, count):
    """Write centres, variances of the mean and survivors; the last vector of a row reaches into the next."""
    value, variance, frames = results
    put(value, at, choose(spread(_F(0)) < count, centre, spread(_F(np.nan))))
    put_counts(frames, at, count)
    if variance.size:
        put(variance, at, error)


@inlined
def _store_some(results, at, mask, centre, error, count):
    """Write these where the mask is set; the others stay as they are."""
    value, variance, frames = results
    centre = choose(spread(_F(0)) < count, centre, spread(_F(np.nan)))
    put(value, at, choose(mask, centre, get(value, at)))
    put(variance, at, choose(mask, error, get(variance, at)))
    put_counts(frames, at, choose(mask, count, load_counts(frames, at)))


@inlined
def _wait(waits, x, mark, centre, reach):
    """Note where there is something to clip, and within what interval."""
    put(waits, x, mark)
    put(waits, x + _U(STRIP), centre)
    put(waits, x + _U(2 * STRIP), reach)


@inlined
def _combine(rows, block, width, first, n, gaps, median, method, model, clip, waits, results):
    """Combine a strip as if there were nothing to clip, and note in ``waits`` where there is."""
    k, rounds, unclip, one = clip
    steps, work, sizes, start = median
    for x in range(_U(0), width, _U(LANES)):
        at, place = x * _U(block), first + x
        error, reach, mark = spread(_F(0)), spread(_F(0)), spread(_F(0))
        if method == SAMPLE:
            limit = k if rounds > 0 else _F(np.inf)
            centre, error, count, mark, reach = _whole_sample(rows, at, n, gaps, limit, unclip, spread(one))
            first_centre = centre
        else:
            centre, count = _first_centre(rows, at, n, gaps, steps, work, sizes, start, place)
            first_centre = centre
            if method == MODEL and model.poisson.size:
                centre, error, count = _clip_model(rows, at, centre, model, k, rounds, unclip)
            elif method == MODEL:
                centre, mark = _whole_model(rows, at, centre, model, k)
                error = spread(unclip / model.total)
        _store(results, place, centre, error, count)
        _wait(waits, x, mark, first_centre, reach)


@inlined
def _clip(rows, block, width, first, n, method, model, clip, waits, results):
    """Clip the pixels of a strip that wait; one turn for all vectors that need it, so that none waits for itself."""
    k, rounds, unclip, one = clip
    for _turn in range(rounds if method == SAMPLE else 1):
        for x in range(_U(0), width, _U(LANES)):
            mark, centre = get(waits, x), get(waits, x + _U(STRIP))
            if any_set(mark):
                at, place = x * _U(block), first + x
                if method == SAMPLE:
                    again, centre, half = _clip_sample(rows, at, n, waits, x, k, unclip, spread(one), results, place)
                    _wait(waits, x, again, centre, half)
                else:
                    centre, error, count = _clip_model(rows, at, centre, model, k, rounds, unclip)
                    _store_some(results, place, mark, centre, error, count)


@inlined
def _prepare(edges, scale, many, factors, runs, sizes):
    """Note for each exposure its factor, its place in ``rows`` and whether it is the first there; the sizes of runs."""
    for i in range(len(edges) - 1):
        sizes[i] = edges[i + 1] - edges[i]
        for j in range(edges[i], edges[i + 1]):
            factors[j] = scale[j] / _F(edges[i + 1] - edges[i])
            runs[j] = 2 * LANES * i + (j == edges[i])
    sizes[len(edges) - 1] = many


@inlined
def _line(line):
    """Place where a cache line begins."""
    return (_U(64) - line.ctypes.data % _U(64)) % _U(64) // _U(4)


def _compile(version: int) -> Callable[..., Any]:
    """Give the kernel; its cache on disk notices another ``version`` of its parts, being a closure of it."""

    @compiled
    def run(counts, calibration, steps, model, method, clip, shape, results):
        """Combine one amplifier, strip by strip; `stacks` prepares the arguments."""
        _ = version
        flats, (starts, edges, step), gaps = counts
        (offset, plane, scale), start = calibration
        (ny, nx), n, many = shape, len(edges) - 1, len(starts)
        block = -(-n // BLOCK) * BLOCK
        rows = np.full(STRIP * block + LANES, _F(np.inf))  # exposures from n on stay +inf
        waits = np.zeros(3 * STRIP + LANES, np.float32)
        rows, waits = rows[_line(rows) :], waits[_line(waits) :]
        work = np.full(LANES * (2 * block + 1), _F(np.inf))
        put(work, _U(LANES * 2 * block), spread(_F(-np.inf)))
        begins, levels, factors = np.empty(many, np.uint64), np.empty(many, np.float32), np.empty(many, np.float32)
        runs, sizes = np.empty(many, np.uint64), np.empty(n + 1, np.float32)
        _prepare(edges, scale, many, factors, runs, sizes)
        exposures, median = (begins, levels, factors, runs), (steps, work, sizes, start)
        for y in range(ny):
            for i in range(many):
                begins[i], levels[i] = starts[i] + y * step, offset[i, y]
            for x0 in range(0, nx, STRIP):
                width, first = _U(min(STRIP, nx - x0)), _U(y * nx + x0)
                _load_any(flats, exposures, plane, _U(x0), first, _U(block * LANES), rows)
                _combine(rows, block, width, first, n, gaps, median, method, model, clip, waits, results)
                _clip(rows, block, width, first, n, method, model, clip, waits, results)

    return run


run = _compile(VERSION)
