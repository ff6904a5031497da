"""Poisson numbers, exact and fast: the shot noise of every pixel (Sec. 6, stage 5).

Means below 10 are inverted, larger ones found by Hoermann's transformed rejection, PTRS (1993, Insurance:
Mathematics and Economics 12, 39). A pixel's try takes one 64-bit word, half of it for each of the two uniform
numbers it needs; four pixels of five then pass a test without a logarithm, which runs over many of them at
once. The others are finished one by one with further numbers of the same generator.
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
    for first in range(0, means.size, _ABREAST):
        mean, word = means[first : first + _ABREAST], words[first : first + _ABREAST]
        row = drawn[first : first + _ABREAST]
        _try_all(mean, word, row)
        n = 0
        for i in range(row.size):  # without a branch, which could not be foreseen
            left[n] = i
            n += row[i] < 0
        for j in range(n):
            i = left[j]
            m = np.float64(mean[i])
            if not 0 <= m < np.inf:
                return first + i
            row[i] = _invert(m, word[i]) if m < _INVERTED else _reject(generator, m, word[i])
    return -1


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
def _reject(generator: np.random.Generator, mean: float, word: int) -> float:
    """PTRS to its end; the first try is that of `_try_all`, which found no quick answer."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    scale, quick = 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2)
    u, v = _halves(word)
    while True:
        us = 0.5 - abs(u)
        k = math.floor((2 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= quick:
            return k
        if k >= 0 and (us >= 0.013 or v <= us) and v * scale * us * us <= (a + b * us * us) * _chance(mean, k):
            return k
        u, v = generator.random() - 0.5, generator.random()


@njit(nogil=True, error_model="numpy")
def _chance(mean: float, k: float) -> float:
    """Probability of ``k``: Stirling's series, 1e-10 of itself for ``k`` of 10 and better above."""
    if k < 10:
        return math.exp(-mean) * mean**k / _FACTORIALS[int(k)]
    near = (mean - k) / (mean + k)  # log(mean / k) is twice the inverse hyperbolic tangent of it
    z = near * near
    if z < 0.01:
        series = 1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z / 15)))))
        power = near * (k - mean) + 2 * k * near * z * series
    else:
        power = k * math.log(mean / k) + (k - mean)
    r = 1 / k
    tail = r * (1 / 12 - r * r * (1 / 360 - r * r * (1 / 1260 - r * r / 1680)))
    return math.exp(power - tail) * math.sqrt(r / (2 * math.pi))
