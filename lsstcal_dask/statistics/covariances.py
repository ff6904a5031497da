"""Covariances of the pixels of an image with a mask (Lupton 2016, Secs. 2.2b and 2.12).

What an FFT of the image and of its mask gives (Astier et al. 2019, A&A 629, A36, App. A), summed directly:
of the millions of lags that an FFT makes, the few short ones are wanted.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["covariances"]

_GROUP = 9
"""Lags summed in one pass over a pair of rows: a pixel is loaded once for all of them."""


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
    products, pairs = _products(_padded(image, good, max_lag), ny, nx, max_lag), _pairs(good, max_lag)
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / pairs, pairs


@njit(nogil=True, cache=True)
def _padded(image, good, max_lag):  # type: ignore[no-untyped-def]
    """Good pixels in float32 with room for every lag around them, zero elsewhere."""
    ny, nx = good.shape
    padded = np.zeros((ny + max_lag, nx + 2 * max_lag + _GROUP), np.float32)
    for y in range(ny):
        for x in range(nx):
            padded[y, x + max_lag] = np.float32(image[y, x]) if good[y, x] else np.float32(0)
    return padded


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _nine(a, b):  # type: ignore[no-untyped-def]
    """Sums of ``a`` times ``b`` shifted by 0 to 8 pixels."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = np.float32(0)
    for x in range(a.size):
        here = a[x]
        s0 += here * b[x]
        s1 += here * b[x + 1]
        s2 += here * b[x + 2]
        s3 += here * b[x + 3]
        s4 += here * b[x + 4]
        s5 += here * b[x + 5]
        s6 += here * b[x + 6]
        s7 += here * b[x + 7]
        s8 += here * b[x + 8]
    return s0, s1, s2, s3, s4, s5, s6, s7, s8


@njit(nogil=True, cache=True)
def _products(padded, ny, nx, max_lag):  # type: ignore[no-untyped-def]
    """Sums of products at the lags (0..max_lag, -max_lag..max_lag), those of +dx and -dx added up.

    A row is summed in float32, in many partial sums at once, and the rows in float64.
    """
    total = np.zeros((max_lag + 1, 2 * max_lag + _GROUP))
    for y in range(ny):
        row = padded[y, max_lag : max_lag + nx]
        for dy in range(max_lag + 1):
            other = padded[y + dy]
            for first in range(0 if dy else max_lag, 2 * max_lag + 1, _GROUP):
                sums = _nine(row, other[first : first + nx + _GROUP - 1])
                for i in range(_GROUP):
                    total[dy, first + i] += sums[i]
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
