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
    put,
    put_counts,
    put_some,
    spread,
    sqrt,
    tally,
)

__all__ = ["DTYPES", "LANES", "MEDIAN", "MODEL", "SAMPLE", "Model", "run"]

MEDIAN, SAMPLE, MODEL = 0, 1, 2
_STRIP: Final = 64  # a strip has a multiple of so many pixels: whole cache lines, for none may be needed twice
_WIDEST: Final = 4 * _STRIP
_CACHE: Final = 4096  # floats of a strip of all exposures that fill half of a first-level cache
_AHEAD: Final = 512  # pixels between those being read and those that memory is asked for
_PICKED: Final = _STRIP + 2 * LANES  # pixels that wait to be clipped, and rubbish behind them


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
def _calibrate(flat, f, o, c, plane, p, rows, at, size, first, last, new):
    """Put vectors of one exposure into the blocks of ``rows``, ``size`` floats each, or add them to what is there."""
    for x in range(first, last, _U(LANES)):
        fetch(flat, f + x + _U(_AHEAD))
        v = load_counts(flat, f + x) - spread(o)
        if plane.size:
            v = v - get(plane, p + x)
        v = v * spread(c)
        to = at + x // _U(LANES) * size
        put(rows, to, v if new else get(rows, to) + v)


@inlined
def _calibrate_last(flat, f, o, c, plane, p, rows, at, size, width, new):
    """Do so pixel by pixel: the last vector would reach beyond the stack."""
    for x in range(_U(0), width):
        v = _F(flat[f + x]) - o
        if plane.size:
            v = v - plane[p + x]
        to = at + x // _U(LANES) * size + x % _U(LANES)
        rows[to] = v * c if new else rows[to] + v * c


@inlined
def _load(flat, edges, begins, levels, factors, plane, strip, size, rows):
    """Calibrate a strip of every exposure into ``rows``, averaging the exposures of a run."""
    x0, width, p = strip
    whole = (width + _U(LANES - 1)) // _U(LANES) * _U(LANES)
    for run in range(_U(0), _U(len(edges) - 1)):
        for i in range(_U(edges[run]), _U(edges[run + _U(1)])):
            f, o, c, at, new = begins[i] + x0, levels[i], factors[i], run * _U(LANES), i == _U(edges[run])
            if f + whole > _U(flat.size):
                _calibrate_last(flat, f, o, c, plane, p, rows, at, size, width, new)
            elif width == _U(_STRIP):  # a loop whose length is known is none
                _calibrate(flat, f, o, c, plane, p, rows, at, size, _U(0), _U(_STRIP), new)
            else:
                _calibrate(flat, f, o, c, plane, p, rows, at, size, _U(0), whole, new)


@inlined
def _load_any(flats, edges, begins, levels, factors, plane, strip, size, rows):
    """Do so for counts of any type."""
    if flats[0].size:
        _load(flats[0], edges, begins, levels, factors, plane, strip, size, rows)
    elif flats[1].size:
        _load(flats[1], edges, begins, levels, factors, plane, strip, size, rows)
    else:
        _load(flats[2], edges, begins, levels, factors, plane, strip, size, rows)


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
def _moments(rows, at, n, step, pivot, half, shift):
    """Count what lies within ``half`` of the pivot, and sum it and its square about ``pivot + shift``."""
    count, total, squares = spread(_F(0)), spread(_F(0)), spread(_F(0))
    for i in range(n):
        d = get(rows, at + _U(i) * step) - pivot
        kept = abs(d) <= half
        d = (d - shift) & kept
        count = tally(count, kept)
        total += d
        squares += d * d
    return number(count), total, squares


@inlined
def _about_mean(rows, at, n, step, pivot, half, sums):
    """Mean less pivot, sum of squares about the mean, 1/count.

    Where the pivot was too far from the mean for float32 the sums are taken again about the mean.
    """
    count, total, squares = sums
    shift = spread(_F(0))
    far = spread(_F(0.999)) * squares * count < total * total  # false where nothing is left
    if any_set(far):
        shift = choose(far, total / count, shift)
        _, again, spare = _moments(rows, at, n, step, pivot, half, shift)
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
def _whole_sample(rows, at, n, gaps, k, unclip):
    """Mean of all values, its variance, their number; where there is something to clip, and to what interval.

    The pivot is the middle one of three values, rarely an outlier.
    """
    zero, huge = spread(_F(0)), spread(_F(3e38))
    a, b, c = get(rows, at), get(rows, at + _U(LANES)), get(rows, at + _U(2 * LANES))
    guess = _high(_low(a, b), _low(_high(a, b), c))
    pivot = choose(abs(guess) < spread(_F(1e30)), guess, zero)
    count, total, squares, lowest, highest = zero, zero, zero, zero, zero
    for i in range(n):
        d = get(rows, at + _U(i * LANES)) - pivot
        if gaps:
            good = abs(d) <= huge
            d = d & good
            count = tally(count, good)
        total += d
        squares += d * d
        lowest, highest = _low(d, lowest), _high(d, highest)
    count = number(count) if gaps else spread(_F(n))
    sums = count, total, squares
    offset, squares, each = _about_mean(rows, at, n, _U(LANES), pivot, huge, sums)
    reach = _reach(pivot, offset, squares, each, k)
    mark = (lowest < offset - reach) | (offset + reach < highest)
    return pivot + offset, _error(squares, count, each, unclip), count, mark, reach


@inlined
def _clip_sample(rows, at, n, step, k, rounds, unclip):
    """Clip at ``k`` sample deviations about the mean, ``rounds`` times; mean, its variance, survivors.

    Intervals only shrink. The pivot is the middle of the interval, so that one comparison tells what is in
    it. A pixel whose survivors stay the same is left alone: the result does not depend on its neighbours.
    """
    pivot, half, before = (
        get(rows, at + _U(n) * step),
        get(rows, at + _U(n + 1) * step),
        get(rows, at + _U(n + 2) * step),
    )
    for turn in range(rounds):
        count, total, squares = _moments(rows, at, n, step, pivot, half, spread(_F(0)))
        sums = count, total, squares
        offset, squares, each = _about_mean(rows, at, n, step, pivot, half, sums)
        changed = count != before
        if turn == rounds - 1 or not any_set(changed):
            break
        reach = _reach(pivot, offset, squares, each, k)
        low, high = _high(offset - reach, spread(_F(0)) - half), _low(offset + reach, half)
        pivot = choose(changed, pivot + spread(_F(0.5)) * (low + high), pivot)
        half = choose(changed, spread(_F(0.5)) * (high - low), half)
        before = count
    return pivot + offset, _error(squares, count, each, unclip), count


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
def _clip_model(rows, at, step, centre, model, k, rounds, unclip):
    """Weighted mean within ``k`` model sigma of the centre, then of that mean; its variance, survivors.

    The first centre may have a variance of its own, ``slack``.
    """
    zero, one = spread(_F(0)), spread(_F(1))
    count, weights = zero, zero
    for turn in range(rounds + 1):
        level, own = _high(zero, centre), model.slack if turn == 0 else _F(0)
        count, total, weights = zero, zero, zero
        for i in range(model.read.size):
            d = get(rows, at + _U(i) * step) - centre
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
def _pick(rows, at, n, mark, terms, picked, found):
    """Put the marked pixels behind those picked before, as columns of n values, centre, half-width, number, place."""
    if not any_set(mark):
        return found
    to = found
    for i in range(_U(0), _U(n)):
        put_some(picked, to, get(rows, at + i * _U(LANES)), mark)
        to += _U(_PICKED)
    centre, reach, count, place = terms
    put_some(picked, to, centre, mark)
    put_some(picked, to + _U(_PICKED), reach, mark)
    put_some(picked, to + _U(2 * _PICKED), count, mark)
    put_some(picked, to + _U(3 * _PICKED), place, mark)
    return found + number_set(mark)


@inlined
def _finish(picked, found, most, n, method, model, clip, spare, results):
    """Clip pixels picked until not more than ``most`` are left; give how many are."""
    k, rounds, unclip = clip
    where, step = picked.view(np.uint32), _U(_PICKED)
    while found > most:
        size = min(found, _U(LANES))
        found -= size
        if method == SAMPLE:
            centre, error, count = _clip_sample(picked, found, n, step, k, rounds, unclip)
        else:
            centre = get(picked, found + _U(n) * step)
            centre, error, count = _clip_model(picked, found, step, centre, model, k, rounds, unclip)
        _store(spare, _U(0), centre, error, count)
        for lane in range(size):
            to = where[found + _U(n + 3) * step + lane]
            results[0][to], results[1][to], results[2][to] = spare[0][lane], spare[1][lane], spare[2][lane]
    return found


def _compile(version: int) -> Callable[..., Any]:
    """Give the kernel; its cache on disk notices another ``version`` of its parts, being a closure of it."""

    @compiled
    def run(counts, calibration, steps, model, method, clip, shape, results):
        """Combine one amplifier, strip by strip; `stacks` prepares the arguments."""
        _ = version
        flats, places, gaps = counts
        terms, start = calibration
        k, rounds, unclip = clip
        limit = k if rounds > 0 else _F(np.inf)
        starts, edges, step = places
        ny, nx = shape
        n = len(edges) - 1
        block = -(-n // BLOCK) * BLOCK
        size = _U(block * LANES)
        rows = np.full(_STRIP * block, _F(np.inf))  # exposures from n on stay +inf
        begins, levels, factors = np.empty(edges[n], np.uint64), np.empty(edges[n], np.float32), np.empty(edges[n], np.float32)
        offset, plane, scale = terms
        for i in range(n):
            for j in range(edges[i], edges[i + 1]):
                factors[j] = scale[j] / _F(edges[i + 1] - edges[i])
        picked = np.zeros(_PICKED * (n + 4), np.float32)
        work = np.full(LANES * (2 * block + 1), _F(np.inf))
        put(work, _U(LANES * 2 * block), spread(_F(-np.inf)))
        lane, zero = number(numbered(_U(0))), spread(_F(0))
        again = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint16)
        sizes = np.empty(n + 1, np.float32)
        for i in range(n):
            sizes[i] = edges[i + 1] - edges[i]
        sizes[n] = starts.size
        found = _U(0)
        for y in range(ny):
            for i in range(len(begins)):
                begins[i], levels[i] = starts[i] + y * step, offset[i, y]
            for x0 in range(0, nx, _STRIP):
                width, first = min(_STRIP, nx - x0), _U(y * nx + x0)
                _load_any(flats, edges, begins, levels, factors, plane, (_U(x0), _U(width), first), size, rows)
                for x in range(_U(0), _U(width), _U(LANES)):
                    at = x * _U(block)
                    error, reach, mark, place = zero, zero, zero, first + x
                    if method == SAMPLE:
                        centre, error, count, mark, reach = _whole_sample(rows, at, n, gaps, limit, unclip)
                        first_centre = centre
                    else:
                        centre, count = _first_centre(rows, at, n, gaps, steps, work, sizes, start, place)
                        first_centre = centre
                        if method == MODEL and model.poisson.size:
                            centre, error, count = _clip_model(rows, at, _U(LANES), centre, model, k, rounds, unclip)
                        elif method == MODEL:
                            centre, mark = _whole_model(rows, at, centre, model, k)
                            error = spread(unclip / model.total)
                    mark = mark & (lane < spread(_F(width - x)))
                    ends = first_centre, reach, count, numbered(place)
                    found = _pick(rows, at, n, mark, ends, picked, found)
                    _store(results, place, centre, error, count)
                last = y == ny - 1 and x0 + _STRIP >= nx
                left = _U(0 if last else LANES - 1)
                found = _finish(picked, found, left, n, method, model, clip, again, results)

    return run


run = _compile(VERSION)
