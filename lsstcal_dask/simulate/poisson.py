"""Poisson numbers, exact and fast: the shot noise of every pixel (Sec. 6, stage 5).

Means below 10 are inverted, larger ones found by Hoermann's transformed rejection, PTRS (1993, Insurance:
Mathematics and Economics 12, 39). A pixel's try takes one 64-bit word, half of it for each of the two uniform
numbers it needs; four pixels of five then pass a test without a logarithm. The others are judged by the probability
itself, and those that fail try again with further numbers of the same generator. All tests run over many pixels at
once, but for the few where series of the probability do not hold.
"""

import math
from typing import Final

import numpy as np
from numba import njit

from lsstcal_dask.errors import WrongUse

__all__ = ["poisson"]

_INVERTED: Final = 10.0  # means below it
_ABREAST: Final = 256  # pixels tried at once: their numbers stay in the nearest cache
_STEP: Final = 2.0**-32  # between uniform numbers made of half a word
_FACTORIALS: Final = tuple(float(math.factorial(k)) for k in range(10))


def poisson(generator: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """One Poisson number for each mean.

    Parameters
    ----------
    generator : as of `random.stream`; how far it moves depends on the means.
    mean : any shape, float32 or float64.

    Returns
    -------
    Same shape, float32; whole numbers, exact to 2**24.

    Raises
    ------
    WrongUse
        A mean is negative, infinite or no number.
    """
    means = np.ascontiguousarray(mean).reshape(-1)
    drawn = np.empty(means.size, np.float32)
    bad = _draw(generator, generator.bit_generator.random_raw(means.size), means, drawn)
    if bad >= 0:
        raise WrongUse(f"the mean of a Poisson number is {means[bad]}: it must be zero or more, and finite")
    return drawn.reshape(np.shape(mean))


@njit(nogil=True, cache=True, error_model="numpy")
def _draw(generator: np.random.Generator, words: np.ndarray, means: np.ndarray, drawn: np.ndarray) -> int:
    """Fill ``drawn``; -1, or the place of the first mean that is none."""
    left = np.empty(_ABREAST, np.int64)
    open_ = np.empty((5, _ABREAST))  # of those left: mean, two uniform numbers, the number tried, the verdict
    for first in range(0, means.size, _ABREAST):
        mean, word = means[first : first + _ABREAST], words[first : first + _ABREAST]
        row = drawn[first : first + _ABREAST]
        _try_all(mean, word, row)
        n = 0
        for i in range(row.size):  # without a branch, which could not be foreseen
            left[n] = i
            n += row[i] < 0
        large = 0
        for j in range(n):
            i = left[j]
            m = np.float64(mean[i])
            if not 0 <= m < np.inf:
                return first + i
            if m < _INVERTED:
                row[i] = _invert(m, word[i])
                continue
            left[large], open_[0, large] = i, m
            open_[1, large], open_[2, large] = _halves(word[i])
            large += 1
        _finish(generator, left, open_, large, row)
    return -1


@njit(nogil=True, error_model="numpy")
def _finish(generator: np.random.Generator, left: np.ndarray, open_: np.ndarray, n: int, row: np.ndarray) -> None:
    """Judge and try again until none of ``n`` pixels is left."""
    mean, u, v, tried, verdict = open_[0], open_[1], open_[2], open_[3], open_[4]
    while n > 0:
        _judge(mean[:n], u[:n], v[:n], tried[:n], verdict[:n])
        again = 0
        for j in range(n):
            if verdict[j] == 1 or (verdict[j] < 0 and _passes(mean[j], u[j], v[j], tried[j])):
                row[left[j]] = tried[j]
                continue
            left[again], mean[again] = left[j], mean[j]
            u[again], v[again] = generator.random() - 0.5, generator.random()
            again += 1
        n = again


@njit(nogil=True, inline="always")
def _halves(word: int) -> tuple[float, float]:
    """Two uniform numbers: in -1/2 to 1/2, never at its ends, and in 0 to 1."""
    u = np.float64(np.int64(word >> np.uint64(32))) * _STEP + (0.5 * _STEP - 0.5)
    return u, np.float64(np.int64(word & np.uint64(0xFFFFFFFF))) * _STEP


@njit(nogil=True, error_model="numpy")
def _try_all(mean: np.ndarray, word: np.ndarray, row: np.ndarray) -> None:
    """Numbers that PTRS accepts without a logarithm; -1 for the others."""
    for i in range(row.size):
        m = np.float64(mean[i])
        u, v = _halves(word[i])
        b = 0.931 + 2.53 * math.sqrt(m)
        a = -0.059 + 0.02483 * b
        us = 0.5 - abs(u)
        k = math.floor((2 * a / us + b) * u + m + 0.43)
        fine = (us >= 0.07) & (v * (b - 2) <= 0.9277 * (b - 2) - 3.6224) & (m >= _INVERTED) & (m < np.inf)
        row[i] = k if fine else -1.0


@njit(nogil=True, error_model="numpy")
def _invert(mean: float, word: int) -> float:
    """The k at which the summed probability passes a uniform number of 53 bits."""
    u = np.float64(np.int64(word >> np.uint64(11))) * 2.0**-53
    k, chance = 0, math.exp(-mean)
    total = chance
    while u >= total and k < 200:  # beyond, what is left is the rounding of the sum
        k += 1
        chance *= mean / k
        total += chance
    return float(k)


@njit(nogil=True, error_model="numpy")
def _judge(mean: np.ndarray, u: np.ndarray, v: np.ndarray, tried: np.ndarray, verdict: np.ndarray) -> None:
    """PTRS of many pixels: the number it tries, and whether it is one (1), is none (0) or `_passes` must say (-1)."""
    for i in range(mean.size):
        m = mean[i]
        b = 0.931 + 2.53 * math.sqrt(m)
        a = -0.059 + 0.02483 * b
        us = 0.5 - abs(u[i])
        k = math.floor((2 * a / us + b) * u[i] + m + 0.43)
        safe = min(max(k, 10.0), 1e30)
        near = (m - safe) / (m + safe)
        z, r = near * near, 1 / safe
        power = near * (safe - m) + 2 * safe * near * z * _series(z) - _stirling(r)
        x = max(power, -16.0) / 64
        chance = _taylor(x)
        chance *= chance
        chance *= chance
        chance *= chance
        chance *= chance
        chance *= chance
        chance *= chance
        limit = (a + b * us * us) * chance * math.sqrt(r / (2 * math.pi))
        quick = (us >= 0.07) & (v[i] * (b - 2) <= 0.9277 * (b - 2) - 3.6224)
        fine = quick | (v[i] * (1.1239 + 1.1328 / (b - 3.4)) * us * us <= limit)
        known = quick | ((k >= 10) & (z < 0.01) & (power > -16) & (us >= 0.013))
        tried[i] = k
        verdict[i] = (1.0 if fine else 0.0) if known else -1.0


@njit(nogil=True, error_model="numpy")
def _passes(mean: float, u: float, v: float, k: float) -> bool:
    """Whether PTRS accepts ``k``."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    us = 0.5 - abs(u)
    if k < 0 or (us < 0.013 and v > us):
        return False
    return v * (1.1239 + 1.1328 / (b - 3.4)) * us * us <= (a + b * us * us) * _chance(mean, k)


@njit(nogil=True, inline="always")
def _taylor(x: float) -> float:
    """Power of e, for ``x`` from -1/4 to 0 to 1e-12: it vectorises."""
    high = 1 / 120 + x * (1 / 720 + x * (1 / 5040 + x * (1 / 40320 + x * (1 / 362880))))
    return 1 + x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * high))))


@njit(nogil=True, inline="always")
def _series(z: float) -> float:
    """What the inverse hyperbolic tangent of x has beyond x, over x**3; ``z`` is x**2, at most 0.01."""
    return 1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15))))))


@njit(nogil=True, inline="always")
def _stirling(r: float) -> float:
    """Logarithm of a factorial beyond Stirling's formula; ``r`` is one over its argument, at most 0.1."""
    return r * (1 / 12 - r * r * (1 / 360 - r * r * (1 / 1260 - r * r / 1680)))


@njit(nogil=True, error_model="numpy")
def _chance(mean: float, k: float) -> float:
    """Probability of ``k``: Stirling's series, 1e-10 of itself for ``k`` of 10 and better above."""
    if k < 10:
        return math.exp(-mean) * mean**k / _FACTORIALS[int(k)]
    near = (mean - k) / (mean + k)  # log(mean / k) is twice the inverse hyperbolic tangent of it
    z = near * near
    power = k - mean
    power = near * power + 2 * k * near * z * _series(z) if z < 0.01 else k * math.log(mean / k) + power
    r = 1 / k
    return math.exp(power - _stirling(r)) * math.sqrt(r / (2 * math.pi))
