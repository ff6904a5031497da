# mypy: allow-untyped-defs
"""Kernels of the robust combination of a stack of exposures of one amplifier (Secs. 2.1, 2.7 and 2.8).

They read the raw counts once, at their own width, and calibrate them on the way: a strip of some cache lines
of every exposure at a time becomes float32 that stay in the first-level cache, in blocks of `LANES` pixels, and
memory is asked for the strips to come. From there on `LANES` pixels are one number, a vector (`vectors`), and
nothing branches on a pixel.

Most pixels have nothing to clip, which one pass over their values tells together with their mean. The others
are picked out and clipped among themselves, a whole vector of them at a time.
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
    number_set,
    numbered,
    permuted,
    put,
    put_counts,
    packed,
    spread,
    sqrt,
    tally,
)

__all__ = ["DTYPES", "LANES", "MEDIAN", "MODEL", "SAMPLE", "STRIP", "Model", "run"]

MEDIAN, SAMPLE, MODEL = 0, 1, 2
STRIP: Final = 64  # a strip has a multiple of so many pixels: whole cache lines, for none may be needed twice
_WIDEST: Final = 4 * STRIP
_CACHE: Final = 4096  # floats of a strip of all exposures that fill half of a first-level cache
_AHEAD: Final = 512  # pixels between those being read and those that memory is asked for
_ENDS: Final = 3  # what is kept of a pixel that waits to be clipped, besides its values


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
def _moments(rows, at, n, pivot, half, shift, one):
    """Count what lies within ``half`` of the pivot, sum it and its square about ``pivot + shift``; its extremes."""
    zero = spread(_F(0))
    count, total, squares, lowest, highest = zero, zero, zero, zero, zero
    for i in range(n):
        d = get(rows, at + _U(i * LANES)) * one - pivot
        kept = abs(d) <= half
        d = (d * one - shift) & kept
        count = tally(count, kept)
        total = d * one + total
        squares += d * d
        lowest, highest = _low(d, lowest), _high(d, highest)
    return (number(count), total, squares), (lowest, highest)


@inlined
def _about_mean(rows, at, n, pivot, half, sums, one):
    """Mean less pivot, sum of squares about the mean, 1/count.

    Where the pivot was too far from the mean for float32 the sums are taken again about the mean.
    """
    count, total, squares = sums
    shift = spread(_F(0))
    far = spread(_F(0.999)) * squares * count < total * total  # false where nothing is left
    if any_set(far):
        shift = choose(far, total / count, shift)
        (_, again, spare), _ = _moments(rows, at, n, pivot, half, shift, one)
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
            d = d & good
            count = tally(count, good)
        total = d * one + total
        squares += d * d
        lowest, highest = _low(d, lowest), _high(d, highest)
    count = number(count) if gaps else spread(_F(n))
    sums = count, total, squares
    offset, squares, each = _about_mean(rows, at, n, pivot, huge, sums, one)
    reach = _reach(pivot, offset, squares, each, k)
    mark = (lowest < offset - reach) | (offset + reach < highest)
    return pivot + offset, _error(squares, count, each, unclip), count, mark, reach


@inlined
def _clip_sample(rows, at, n, k, rounds, unclip, one):
    """Clip at ``k`` sample deviations about the mean, ``rounds`` times; mean, its variance, survivors.

    Intervals only shrink. The pivot is the middle of the interval, so that one comparison tells what is in
    it. A pixel whose survivors stay the same is left alone: the result does not depend on its neighbours.
    """
    pivot, half = get(rows, at + _U(n * LANES)), get(rows, at + _U((n + 1) * LANES))
    for turn in range(rounds):
        sums, (lowest, highest) = _moments(rows, at, n, pivot, half, spread(_F(0)), one)
        offset, squares, each = _about_mean(rows, at, n, pivot, half, sums, one)
        reach = _reach(pivot, offset, squares, each, k)
        changes = (lowest < offset - reach) | (offset + reach < highest)
        if turn == rounds - 1 or not any_set(changes):
            break
        low, high = _high(offset - reach, spread(_F(0)) - half), _low(offset + reach, half)
        pivot = choose(changes, pivot + spread(_F(0.5)) * (low + high), pivot)
        half = choose(changes, spread(_F(0.5)) * (high - low), half)
    return pivot + offset, _error(squares, sums[0], each, unclip), sums[0]


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
def _pick(rows, at, n, ends, index, mine, picked, to):
    """Put lanes, in the order of an index, where the mask is set: n values, centre, half-width and place.

    Only whole vectors are stored, for one that reaches into a second cache line takes several times as long.
    """
    for i in range(_U(0), _U(n * LANES), _U(LANES)):
        v = choose(mine, permuted(get(rows, at + i), index), get(picked, to + i))
        put(picked, to + i, v + spread(_F(0)))  # + 0: else a masked store, several cycles on AMD
    for i in range(_ENDS):
        last = to + _U((n + i) * LANES)
        put(picked, last, choose(mine, permuted(ends[i], index), get(picked, last)))


@inlined
def _finish(picked, at, size, n, method, model, clip, spare, results):
    """Clip the first pixels of a vector that was picked."""
    k, rounds, unclip, one = clip
    where = picked.view(np.uint32)
    if method == SAMPLE:
        centre, error, count = _clip_sample(picked, at, n, k, rounds, unclip, spread(one))
    else:
        centre = get(picked, at + _U(n * LANES))
        centre, error, count = _clip_model(picked, at, centre, model, k, rounds, unclip)
    _store(spare, _U(0), centre, error, count)
    for lane in range(size):
        to = where[at + _U((n + _ENDS - 1) * LANES) + lane]
        results[0][to], results[1][to], results[2][to] = spare[0][lane], spare[1][lane], spare[2][lane]


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
        flats, places, gaps = counts
        terms, start = calibration
        k, rounds, unclip, unit = clip
        limit = k if rounds > 0 else _F(np.inf)
        starts, edges, step = places
        ny, nx = shape
        n = len(edges) - 1
        block = -(-n // BLOCK) * BLOCK
        size = _U(block * LANES)
        rows = np.full(STRIP * block + LANES, _F(np.inf))  # exposures from n on stay +inf
        picked = np.zeros((2 * (n + _ENDS) + 1) * LANES, np.float32)
        rows, picked = rows[_line(rows) :], picked[_line(picked) :]
        many = edges[n]
        begins, levels, factors = np.empty(many, np.uint64), np.empty(many, np.float32), np.empty(many, np.float32)
        runs = np.empty(many, np.uint64)  # place in ``rows``, and whether an exposure is the first there
        offset, plane, scale = terms
        for i in range(n):
            for j in range(edges[i], edges[i + 1]):
                factors[j] = scale[j] / _F(edges[i + 1] - edges[i])
                runs[j] = 2 * LANES * i + (j == edges[i])
        exposures = begins, levels, factors, runs
        waits, found, room = _U(0), _U(0), _U((n + _ENDS) * LANES)
        work = np.full(LANES * (2 * block + 1), _F(np.inf))
        put(work, _U(LANES * 2 * block), spread(_F(-np.inf)))
        lane, zero, one = number(numbered(_U(0))), spread(_F(0)), spread(unit)
        again = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint16)
        sizes = np.empty(n + 1, np.float32)
        for i in range(n):
            sizes[i] = edges[i + 1] - edges[i]
        sizes[n] = starts.size
        for y in range(ny):
            for i in range(many):
                begins[i], levels[i] = starts[i] + y * step, offset[i, y]
            for x0 in range(0, nx, STRIP):
                width, first = min(STRIP, nx - x0), _U(y * nx + x0)
                _load_any(flats, exposures, plane, _U(x0), first, size, rows)
                for x in range(_U(0), _U(width), _U(LANES)):
                    at = x * _U(block)
                    error, reach, mark, place = zero, zero, zero, first + x
                    if method == SAMPLE:
                        centre, error, count, mark, reach = _whole_sample(rows, at, n, gaps, limit, unclip, one)
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
                    mark = mark & (lane < spread(_F(width - x)))
                    last = place + _U(LANES) >= _U(ny * nx)
                    if any_set(mark):
                        ends, chosen = (first_centre, reach, numbered(place)), packed(numbered(_U(0)), mark)
                        index, free = permuted(chosen, numbered(_U(0) - found)), spread(_F(found)) <= lane
                        _pick(rows, at, n, ends, index, free, picked, waits)
                        before, found = found, found + number_set(mark)
                        if found >= _U(LANES):  # of these some begin the other vector
                            index = permuted(chosen, numbered(_U(LANES) - before))
                            _pick(rows, at, n, ends, index, lane == lane, picked, room - waits)
                            _finish(picked, waits, _U(LANES), n, method, model, clip, again, results)
                            waits, found = room - waits, found - _U(LANES)
                    if last:
                        _finish(picked, waits, found, n, method, model, clip, again, results)
                        found = _U(0)

    return run


run = _compile(VERSION)
