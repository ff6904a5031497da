"""Structure of an image that its noise does not explain, at every scale at once: an a-trous (starlet) transform.

The image is smoothed again and again, each time by a kernel twice as wide; the differences of successive images are
its planes, and what is left is the last. A value of a plane counts where it is well above its own noise, and the
structure is the sum of what counts: faint and wide, bright and narrow, found by one threshold. Starck & Murtagh
(2006), *Astronomical Image and Data Analysis*, give the transform; here the noise follows from the pixels' variances.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.ndimage import convolve1d, map_coordinates

__all__ = ["bin_weighted", "significant", "spread"]

_ROUNDS: Final = 4  # in which what the first left of sharp edges, cut off with the planes that do not count, is found
_KERNEL: Final = (0.0625, 0.25, 0.375, 0.25, 0.0625)  # a cubic B-spline at the integers


def significant(
    values: np.ndarray, variance: np.ndarray, scales: int, limit: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Structure of an image that is not noise.

    Parameters
    ----------
    values : (y, x); NaN where unknown: nothing is found there but what its surroundings say.
    variance : (y, x) of the values, independent from pixel to pixel.
    scales : planes of the transform; what is wider than 2**scales pixels is in the rest, which is judged like a plane.
    limit : threshold in sigma, and as a value: a coefficient counts above both.

    Returns
    -------
    Structure (y, x) float64, zero where there is none, and where it is (y, x) bool.
    """
    known = np.isfinite(values) & np.isfinite(variance)
    if not known.any():
        return np.zeros(values.shape), np.zeros(values.shape, bool)
    image, noise = _filled(values, known), _filled(variance, known)
    support = []
    for plane, share in zip(_planes(image, scales), _noise(scales, image.shape), strict=True):
        support.append(known & (np.abs(plane) > limit[0] * share * np.sqrt(noise)) & (np.abs(plane) > limit[1]))
        noise = _smooth(noise, len(support) - 1)
    where = np.any(support, axis=0)
    found = np.zeros(values.shape)
    for _ in range(_ROUNDS if where.any() else 0):
        rest = _planes(image - found, scales)
        found += sum(np.where(counts, plane, 0.0) for counts, plane in zip(support, rest, strict=True))
    return np.where(where, found, 0.0), where


def bin_weighted(values: np.ndarray, variance: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of blocks of ``size`` by ``size`` pixels, weighted by 1/variance, and their variances; NaN if empty.

    Blocks at the far edges hold what is left.
    """
    known = np.isfinite(values) & np.isfinite(variance) & (variance > 0)
    weight = np.divide(1.0, variance, out=np.zeros(values.shape), where=known)
    total, some = (_block_sums(part, size) for part in (np.where(known, values, 0.0) * weight, weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(some > 0, total / some, np.nan), np.where(some > 0, 1 / some, np.nan)


def spread(blocks: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Image (y, x) of block means (by, bx), straight between the middles of blocks, level beyond the outer ones."""
    rows, columns = ((np.arange(n) + 0.5) / size - 0.5 for n in shape)
    at = np.meshgrid(rows, columns, indexing="ij")
    return np.asarray(map_coordinates(blocks, at, order=1, mode="nearest"))


def _block_sums(values: np.ndarray, size: int) -> np.ndarray:
    rows, columns = (np.arange(0, n, size) for n in values.shape)
    return np.asarray(np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1))


def _smooth(image: np.ndarray, scale: int) -> np.ndarray:
    """Smoothed by the kernel of that scale, mirrored at the edges."""
    kernel = np.zeros(4 * 2**scale + 1)
    kernel[:: 2**scale] = _KERNEL
    return np.asarray(convolve1d(convolve1d(image, kernel, axis=0), kernel, axis=1))


def _planes(image: np.ndarray, scales: int) -> Iterator[np.ndarray]:
    """Differences of successive smoothings, and the last of these: their sum is the image."""
    for scale in range(scales):
        smooth = _smooth(image, scale)
        yield image - smooth
        image = smooth
    yield image


def _filled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unknown pixels take the mean of the known ones about them, from as near as there are any."""
    out, weight = np.where(known, values, 0.0).astype(float), known.astype(float)
    total, scale = out.copy(), 0
    while not (weight > 0).all():
        total, weight = _smooth(total, scale), _smooth(weight, scale)
        here = ~known & (weight > 0) & (out == 0)
        out[here] = total[here] / weight[here]
        scale += 1
    return out


def _noise(scales: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Noise (y, x) of each plane, and of the rest, of an image of white noise of variance one.

    Edges mirror the image: next to one an average holds a value twice, and its noise is up to twice that in the middle.
    """
    (y, y_next), (x, x_next) = (_lines(scales, size) for size in shape)
    for scale in range(scales):  # planes are differences of products of lines
        square = np.outer(y[scale], x[scale]) - 2 * np.outer(y_next[scale], x_next[scale])
        yield np.sqrt(square + np.outer(y[scale + 1], x[scale + 1]))
    yield np.sqrt(np.outer(y[scales], x[scales]))


@lru_cache(maxsize=16)
def _lines(scales: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of smoothing along a line: sums of the squared weights of a value (scale + 1, size), and products with the next.

    Beyond the reach of the widest kernel from both ends all values are alike.
    """
    own = min(size, 8 * 2**scales + 1)
    rows = [np.eye(own)]
    for scale in range(scales):
        kernel = np.zeros(4 * 2**scale + 1)
        kernel[:: 2**scale] = _KERNEL
        rows.append(convolve1d(rows[-1], kernel, axis=0))
    squares = np.array([np.einsum("ij,ij->i", a, a) for a in rows])
    products = np.array([np.einsum("ij,ij->i", a, b) for a, b in itertools.pairwise(rows)]).reshape(scales, own)
    place = np.arange(size)
    place = np.where(place < own // 2, place, np.maximum(own // 2, place - (size - own)))
    return squares[:, place], products[:, place]
