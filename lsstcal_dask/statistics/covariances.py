"""Covariances of the pixels of an image with a mask (Lupton 2016, Secs. 2.2b and 2.12).

What an FFT of the image and of its mask gives (Astier et al. 2019, A&A 629, A36, App. A), summed directly:
of the millions of lags that an FFT makes, the few short ones are wanted.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["covariances"]

_GROUP = 6
"""Lags summed in one pass, for two rows at once: as many sums as registers hold, so that pixels are loaded rarely."""


def covariances(image: NDArray[np.floating], good: NDArray[np.bool_], max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean products of the pixels at every lag, and the pairs of good pixels behind them.

    ``C[dy, dx] = sum(image(p) * image(p + lag)) / pairs`` over the lags (dy, dx) and (dy, -dx).

    Parameters
    ----------
    image : (y, x), any unit, of mean zero; taken as float32.
    good : (y, x), bool; other pixels take part in no pair.
    max_lag : largest lag, pixel; less than either side of the image.

    Returns
    -------
    (max_lag + 1, max_lag + 1) float64, unit of ``image`` squared; NaN where there is no pair.
    (max_lag + 1, max_lag + 1) int64, pairs.

    Examples
    --------
    >>> found, pairs = covariances(np.array([[1.0, -1.0], [1.0, -1.0]]), np.ones((2, 2), bool), 1)
    >>> found.tolist(), pairs.tolist()
    ([[1.0, -1.0], [1.0, -1.0]], [[4, 2], [2, 2]])
    """
    ny, nx = good.shape
    padded, squares = _padded(image, good, max_lag)
    products, pairs = _products(padded, ny, nx, max_lag), _pairs(good, max_lag)
    products[0, 0] = squares
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / pairs, pairs


@njit(nogil=True, cache=True)
def _padded(image, good, max_lag):  # type: ignore[no-untyped-def]
    """Good pixels in float32 with room for every lag around them, zero elsewhere; and the sum of their squares.

    Squares only add up, so their sum needs float64; products of two pixels have either sign.
    """
    ny, nx = good.shape
    squares = 0.0
    padded = np.zeros((ny + ny % 2 + max_lag + 1, nx + 2 * max_lag + _GROUP), np.float32)
    for y in range(ny):
        for x in range(nx):
            value = np.float64(image[y, x]) if good[y, x] else 0.0
            padded[y, x + max_lag] = np.float32(value)
            squares += value * value
    return padded, squares


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
def _twelve(a, b, c, sums):  # type: ignore[no-untyped-def]
    """Fill ``sums`` with those of ``a`` and of ``b`` times ``c`` shifted by 0 to 5 pixels."""
    a0 = a1 = a2 = a3 = a4 = a5 = np.float32(0)
    b0 = b1 = b2 = b3 = b4 = b5 = np.float32(0)
    for x in range(a.size):
        one, two = a[x], b[x]
        c0, c1, c2, c3, c4, c5 = c[x], c[x + 1], c[x + 2], c[x + 3], c[x + 4], c[x + 5]
        a0 += one * c0
        a1 += one * c1
        a2 += one * c2
        a3 += one * c3
        a4 += one * c4
        a5 += one * c5
        b0 += two * c0
        b1 += two * c1
        b2 += two * c2
        b3 += two * c3
        b4 += two * c4
        b5 += two * c5
    sums[0, 0], sums[0, 1], sums[0, 2], sums[0, 3], sums[0, 4], sums[0, 5] = a0, a1, a2, a3, a4, a5
    sums[1, 0], sums[1, 1], sums[1, 2], sums[1, 3], sums[1, 4], sums[1, 5] = b0, b1, b2, b3, b4, b5


@njit(nogil=True, cache=True)
def _products(padded, ny, nx, max_lag):  # type: ignore[no-untyped-def]
    """Sums of products at the lags (0..max_lag, -max_lag..max_lag), those of +dx and -dx added up.

    A row is summed in float32, in many partial sums at once, and the rows in float64. Rows y and y + 1 go together:
    row y + dy is at lag dy of the one and at lag dy - 1 of the other.
    """
    total = np.zeros((max_lag + 2, 2 * max_lag + _GROUP))  # the last row, of a lag too long, is not used
    sums = np.zeros((2, _GROUP), np.float32)
    for y in range(0, ny, 2):
        first, second = padded[y, max_lag : max_lag + nx], padded[y + 1, max_lag : max_lag + nx]
        for dy in range(max_lag + 2):
            other = padded[y + dy]
            for start in range(0 if dy > 1 else max_lag * (1 - dy), 2 * max_lag + 1, _GROUP):
                _twelve(first, second, other[start : start + nx + _GROUP - 1], sums)
                for i in range(_GROUP):
                    total[dy, start + i] += sums[0, i]
                    if dy:
                        total[dy - 1, start + i] += sums[1, i]
    folded = np.zeros((max_lag + 1, max_lag + 1))
    for dy in range(max_lag + 1):
        folded[dy, 0] = total[dy, max_lag]
        for dx in range(1, max_lag + 1):
            folded[dy, dx] = total[dy, max_lag + dx] + (total[dy, max_lag - dx] if dy else 0.0)
    return folded


def _pairs(good: NDArray[np.bool_], max_lag: int) -> np.ndarray:
    """Pairs of good pixels at the lags of `_products`: 64 pixels are the bits of a word."""
    ny, nx = good.shape
    packed = np.packbits(good, axis=1, bitorder="little")
    words = np.zeros((ny + max_lag, 8 * (nx // 64 + 2 + max_lag // 64)), np.uint8)
    words[:ny, : packed.shape[1]] = packed
    line = words.view(np.uint64).ravel()
    count = np.empty((max_lag + 1, max_lag + 1), np.int64)
    for dx in range(max_lag + 1):
        shifted = _shifted(line, dx)
        for dy in range(max_lag + 1):
            down = dy * (len(line) // (ny + max_lag))
            count[dy, dx] = _common(line, shifted[down:])
            if dy and dx:
                count[dy, dx] += _common(shifted, line[down:])
    return count


def _shifted(line: np.ndarray, shift: int) -> np.ndarray:
    """Every bit ``shift`` places earlier; rows end in empty words, so that none reaches into another."""
    jump, rest = divmod(shift, 64)
    later = np.append(line, np.zeros(jump + 1, np.uint64))
    found = later[jump : jump + len(line)] >> np.uint64(rest)
    if rest:
        found |= later[jump + 1 : jump + 1 + len(line)] << np.uint64(64 - rest)
    return found


@njit(nogil=True, cache=True)
def _common(a, b):  # type: ignore[no-untyped-def]
    """Bits set in both of two lines of words; the rest of the longer one does not count."""
    found = np.uint64(0)
    for i in range(min(a.size, b.size)):
        v = a[i] & b[i]  # what follows adds the bits of a word by pairs, fours and eights
        v -= (v >> np.uint64(1)) & np.uint64(0x5555555555555555)
        v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
        v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        found += (v * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return np.int64(found)
