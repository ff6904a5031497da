"""How an amplifier settles in the first rows that it reads (Lupton 2016, Sec. 3.1).

The transient is a sum of decays, ``sum_i a_i exp(-y / t_i)``, whose sizes are beforehand independent Gaussians of one
width w, each w of a grid as likely as 1 / w, the fastest decay any. How likely these are then follows from the rows,
and the best estimates are averaged, each with its probability. A spline with knots close to each other at the first
rows, which may take any values, errs there more. Where no row tells, the width stays within a few times the noise.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numba import njit
from scipy.fft import dct

from lsstcal_dask.isr.curves import curve

__all__ = ["Transient", "settle"]

_TIMES: Final = (1.0, 2.0, 4.0, 12.0, 36.0)  # t, rows; what decays at another rate is made of these
_WIDTHS: Final = np.geomspace(1, 1e4, 9)  # of the sizes, over the noise of the mean of a row


@dataclass(frozen=True)
class _Decays:
    """Of size 1, less what the curve takes of them."""

    level: np.ndarray  # (i, y)
    modes: np.ndarray  # (i, k) of the level at rows in use
    level_products: np.ndarray  # (i i, y) of every two levels
    mode_products: np.ndarray  # (k, i i)
    squares: np.ndarray  # (k, i) of the modes


@dataclass(frozen=True)
class Transient:
    """Of n frames, less what a smooth curve through the same rows takes of it."""

    level: np.ndarray  # (n, y) adu
    modes: np.ndarray  # (n, k) adu, of the level at rows in use
    covariance: np.ndarray  # (n, i, i) adu**2, of the sizes of decays
    decays: _Decays

    @property
    def power(self) -> np.ndarray:
        """Variance (n, k), adu**2, of the modes."""
        return np.asarray(((self.covariance @ self.decays.modes) * self.decays.modes).sum(axis=1))

    def variance(self, left: np.ndarray) -> np.ndarray:
        """Variance (n, y), adu**2, of the level, if of each mode of its error this is ``left`` (n, k).

        Of each decay as much is left in all rows.
        """
        own = self.decays.squares
        kept = np.sqrt((left**2 @ own) / own.sum(axis=0).clip(1e-300))  # (n, i)
        covariance = kept[:, :, None] * kept[:, None] * self.covariance
        return np.asarray(covariance.reshape(len(left), -1) @ self.decays.level_products)


@lru_cache(maxsize=4)
def _decays(use: bytes, spacing: int) -> _Decays:
    """From the rows in use, (y,) bool, and the rows between the knots of the curve."""
    rows = np.frombuffer(use, bool)
    level = np.exp(-np.arange(len(rows)) / np.array(_TIMES)[:, None])
    level -= curve(level, np.broadcast_to(rows.astype(float), level.shape), spacing, start=False)
    modes = dct(level * rows, norm="ortho", axis=1)
    products = np.ascontiguousarray(_products(modes).T)
    return _Decays(level, modes, _products(level), products, np.ascontiguousarray((modes**2).T))


def _products(values: np.ndarray) -> np.ndarray:
    """Of every two rows (i i, k) of the values (i, k)."""
    return (values[:, None] * values).reshape(-1, values.shape[1])


@njit(nogil=True, cache=True)
def _factor(normal, right, width, inverse, seen):  # type: ignore[no-untyped-def]
    """Inverse (i, i) of the Cholesky factor of the matrix (i, i) for sizes of this width, and of it times ``right``.

    The slowest decay comes first: what belongs to fewer decays, without the fastest, is a corner of it.
    """
    many = len(right)
    factor = np.zeros((many, many))
    for a in range(many):
        for b in range(a + 1):
            left = normal[many - 1 - a, many - 1 - b] + (width**-2.0 if a == b else 0.0)
            for c in range(b):
                left -= factor[a, c] * factor[b, c]
            factor[a, b] = np.sqrt(left) if a == b else left / factor[b, b]
        seen[a] = right[many - 1 - a]
        for b in range(a):
            seen[a] -= factor[a, b] * seen[b]
            inverse[a, b] = 0.0
            for c in range(b, a):
                inverse[a, b] -= factor[a, c] * inverse[c, b] / factor[a, a]
        inverse[a, a] = 1 / factor[a, a]
        seen[a] /= factor[a, a]


@njit(nogil=True, cache=True)
def _mean_sizes(normal, right, widths):  # type: ignore[no-untyped-def]
    """Mean (n, i) and covariance (n, i, i) of the sizes, averaged over the decays in a model and over the widths.

    From the normal equations in units of the noise, (n, i, i) and (n, i). A model has all but the fastest decays: it
    is the one without its fastest, more by a row of the factor. What the models before it are worth is discounted as
    soon as one is more likely.
    """
    n, many = right.shape
    mean, spread = np.empty((n, many)), np.empty((n, many, many))
    sizes, second = np.empty(many), np.empty((many, many))  # the slowest decay first, as of the factor
    guess, covariance = np.empty(many), np.empty((many, many))
    inverse, seen = np.empty((many, many)), np.empty(many)
    for f in range(n):
        most, total = -np.inf, 0.0
        _clear(sizes, second)
        for width in widths:
            _factor(normal[f], right[f], width, inverse, seen)
            _clear(guess, covariance)
            evidence = -np.log(width)  # beforehand 1 / width
            for a in range(many):
                evidence += 0.5 * seen[a] ** 2 + np.log(inverse[a, a] / width)
                for b in range(a + 1):
                    guess[b] += inverse[a, b] * seen[a]
                    for c in range(a + 1):
                        covariance[b, c] += inverse[a, b] * inverse[a, c]
                before, most = most, max(most, evidence)
                weight, less = np.exp(evidence - most), np.exp(before - most)
                total = total * less + weight
                for b in range(many):
                    sizes[b] = sizes[b] * less + weight * guess[b]
                    for c in range(many):
                        second[b, c] = second[b, c] * less + weight * (covariance[b, c] + guess[b] * guess[c])
        for b in range(many):
            mean[f, b] = sizes[many - 1 - b] / total
        for b in range(many):
            for c in range(many):
                spread[f, b, c] = second[many - 1 - b, many - 1 - c] / total - mean[f, b] * mean[f, c]
    return mean, spread


@njit(nogil=True, cache=True)
def _clear(line, square):  # type: ignore[no-untyped-def]
    """Fill both (i,) and (i, i) with zeros; loops, for array expressions take seconds to compile."""
    for a in range(len(line)):
        line[a] = 0.0
        for b in range(len(line)):
            square[a, b] = 0.0


def settle(modes: np.ndarray, noise: np.ndarray, use: np.ndarray, inverse: np.ndarray, spacing: int) -> Transient:
    """Best estimate of the transient, given the powers of all else.

    Parameters
    ----------
    modes : (n, k) adu, of the residuals of row means about a spline, zero in rows that are not used.
    noise : (n,) adu**2, of a mean.
    use : (y,) bool, rows that are used.
    inverse : (n, k) power of all but the transient over that of the noise, inverted.
    spacing : rows between the knots of that spline.
    """
    decays = _decays(use.tobytes(), spacing)
    scale, many = np.sqrt(noise)[:, None], len(decays.modes)
    right = (inverse * modes) @ decays.modes.T / scale
    sizes, covariance = _mean_sizes((inverse @ decays.mode_products).reshape(-1, many, many), right, _WIDTHS)
    sizes *= scale
    return Transient(sizes @ decays.level, sizes @ decays.modes, noise[:, None, None] * covariance, decays)
