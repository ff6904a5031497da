"""Bright point sources: their profile integrated over the pixels around them, whose boundaries move (Sec. 6, stage 5).

Electrons that arrive independently of each other leave a Poisson number in each pixel, whose mean is the integral of
the profile over it. Where there are more electrons than pixels, to draw these numbers is the same, and faster.

A position belongs to the column in which it is before boundaries move; there the moved north and south boundaries
tell its row, and the moved east and west boundaries of that row its pixel. What a boundary sweeps is taken from one
pixel and given to the other: nothing is lost, also where two strips cross.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit

__all__ = ["Stamp", "density", "farther", "half_sizes", "integrable", "moved", "scale", "stamp"]

_SHARPEST: Final = 2.0  # px, full width at half maximum: four nodes integrate it over a pixel to 1e-5 of its flux
_LARGEST: Final = 32  # px, half of a stamp
_PIXEL: Final = 1.0  # times the work of shooting an electron is that of a pixel of a stamp
_SHIFT: Final = 0.45  # px, that a boundary may move
_NODES: Final = tuple(map(tuple, np.polynomial.legendre.leggauss(4)))
_ALONG: Final = tuple(map(tuple, np.polynomial.legendre.leggauss(3)))
_ACROSS: Final = tuple(map(tuple, np.polynomial.legendre.leggauss(2)))


class Stamp(NamedTuple):
    """Pixels around a source."""

    radius: float  # px, scale of the profile
    first: tuple[int, int]  # (y, x)
    shares: np.ndarray  # (ny, nx) float64: parts of its electrons that fall into them while boundaries stand still
    nearest: float  # px: whatever arrives nearer to the source falls into these pixels or beside the CCD
    outside: float  # part of its electrons that arrives there or farther away
    box: tuple[slice, slice]  # its pixels on the CCD


def scale(fwhm: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Scale of a Moffat profile (1 + (r / scale)**2)**-beta, pixels."""
    return fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))


def farther(points: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Part of the electrons of sources (..., 5), as in `exposure.Light`, that arrive farther away than a radius, px."""
    fwhm, beta = points[..., 3], points[..., 4]
    return np.asarray((1 + (radius / scale(fwhm, beta)) ** 2) ** (1 - beta))


def integrable(points: np.ndarray) -> np.ndarray:
    """Whether sources (n, 5) are broad enough."""
    return np.asarray(points[:, 3] >= _SHARPEST)


def half_sizes(points: np.ndarray, seconds: float) -> np.ndarray:
    """Half sizes (n,) of the stamps with which so many seconds cost least; -1 where electrons had better be shot."""
    if not len(points):
        return np.zeros(0, int)
    halves = np.arange(1, _LARGEST + 1)
    electrons = points[:, 2] * seconds
    work = electrons[:, None] * farther(points[:, None], halves - 0.5) + _PIXEL * (2 * halves + 1) ** 2
    worth = (work.min(axis=1) < electrons) & integrable(points)
    return np.where(worth, halves[work.argmin(axis=1)], -1)


def stamp(source: np.ndarray, half: int, corners: np.ndarray, shape: tuple[int, int]) -> Stamp:
    """Pixels up to ``half`` from a source, as far as they are on the CCD; none if none is, or if it is negative.

    Parameters
    ----------
    source : a row of ``points`` of `exposure.Light`.
    corners : (2, ny + 1, nx + 1), pixel, displacement of corners; without elements for none.
    shape : (ny, nx) of the CCD.
    """
    x, y = (int(np.rint(c)) for c in source[:2])
    first = min(max(y - half, 0), shape[0]), min(max(x - half, 0), shape[1])
    last = min(max(y + half + 1, first[0]), shape[0]), min(max(x + half + 1, first[1]), shape[1])
    shares = np.zeros((last[0] - first[0], last[1] - first[1]))
    if half < 0 or not shares.size:
        shares, nearest = shares[:0], _outside(source, corners, shape)
    else:
        _integrate(source, float(scale(source[3], source[4])), first, corners, shares)
        nearest = _inside(source, first, last, corners, shape)
    radius, (ny, nx), (y, x) = float(scale(source[3], source[4])), shares.shape, first
    box = slice(y, y + ny), slice(x, x + nx)
    return Stamp(radius, first, shares, nearest, float(farther(source, nearest)), box)


def _inside(
    source: np.ndarray, first: tuple[int, int], last: tuple[int, int], corners: np.ndarray, shape: tuple[int, int]
) -> float:
    """Distance, px, from a source to the nearest boundary of its stamp beyond which there are pixels."""
    ways = []
    for axis in (0, 1):  # along y, then x
        place = float(source[1 - axis])
        displaced = (
            corners[1 - axis, first[0] : last[0] + 1, first[1] : last[1] + 1] if corners.size else np.zeros((1, 1))
        )
        if first[axis] > 0:
            ways.append(place - (first[axis] - 0.5 + float(displaced.take(0, axis).max())))
        if last[axis] < shape[axis]:
            ways.append(last[axis] - 0.5 + float(displaced.take(-1, axis).min()) - place)
    return max(min(ways, default=np.inf) - _SHIFT, 0.0)


def _outside(source: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> float:
    """Distance, px, from a source to the CCD; 0 on it. The edges of the CCD do not move."""
    ways = []
    for axis in (0, 1):
        place, edge = float(source[1 - axis]), corners[1 - axis] if corners.size else np.zeros((2, 2))
        low, high = -0.5 + float(edge.take(0, axis).min()), shape[axis] - 0.5 + float(edge.take(-1, axis).max())
        ways.append(max(low - place, place - high, 0.0))
    return math.hypot(*ways)


@njit(nogil=True, error_model="numpy")
def density(dx: float, dy: float, r2: float, beta: float) -> float:
    """Moffat profile of one electron, 1/pixel, at a distance from its centre; ``r2`` is its scale squared."""
    far = math.exp(-beta * math.log(1 + (dx * dx + dy * dy) / r2))  # four times as fast as a power
    return (beta - 1) / (np.pi * r2) * far


@njit(nogil=True, cache=True, error_model="numpy")
def _integrate(
    source: np.ndarray, radius: float, first: tuple[int, int], corners: np.ndarray, shares: np.ndarray
) -> None:
    """Fill ``shares`` with the integrals over the quadrilaterals between displaced corners."""
    px, py, beta, r2 = source[0], source[1], source[4], radius * radius
    nodes, weights = _NODES
    for j in range(shares.shape[0]):
        for i in range(shares.shape[1]):
            y, x = first[0] + j, first[1] + i
            ax, ay = _corner(corners, y, x)
            bx, by = _corner(corners, y, x + 1)
            cx, cy = _corner(corners, y + 1, x)
            dx, dy = _corner(corners, y + 1, x + 1)
            total = 0.0
            for m in range(len(nodes)):
                v = (1 + nodes[m]) / 2
                for k in range(len(nodes)):
                    u = (1 + nodes[k]) / 2
                    along_x, along_y = (1 - v) * (bx - ax) + v * (dx - cx), (1 - v) * (by - ay) + v * (dy - cy)
                    up_x, up_y = (1 - u) * (cx - ax) + u * (dx - bx), (1 - u) * (cy - ay) + u * (dy - by)
                    at_x, at_y = (1 - v) * ax + v * cx + u * along_x, (1 - v) * ay + v * cy + u * along_y
                    area = along_x * up_y - along_y * up_x
                    total += weights[m] * weights[k] * area * density(at_x - px, at_y - py, r2, beta)
            shares[j, i] = total / 4


@njit(nogil=True, error_model="numpy")
def _corner(corners: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """Place (x, y) of the lower left corner of a pixel."""
    if corners.size:
        return x - 0.5 + corners[0, y, x], y - 0.5 + corners[1, y, x]
    return x - 0.5, y - 0.5


def moved(source: np.ndarray, at: Stamp, corners: np.ndarray, east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """``at.shares`` when boundaries have moved, by ``east`` and ``north`` as in `electrons.land`; none is negative."""
    if not (east.size and at.shares.size):
        return at.shares
    shares = at.shares.copy()
    _exchange(source, at.radius, at.first, corners, east, north, shares)
    return np.maximum(shares, 0.0)  # the rounding of what was integrated twice


@njit(nogil=True, cache=True, error_model="numpy")
def _exchange(
    source: np.ndarray,
    radius: float,
    first: tuple[int, int],
    corners: np.ndarray,
    east: np.ndarray,
    north: np.ndarray,
    shares: np.ndarray,
) -> None:
    """Give what every boundary has swept to the pixel that gained it."""
    ny, nx = shares.shape
    for j in range(ny + 1):
        for i in range(nx):
            swept = _risen(source, radius, first[0] + j, first[1] + i, corners, north)
            if j > 0:
                shares[j - 1, i] += swept
            if j < ny:
                shares[j, i] -= swept
    for j in range(ny):
        for i in range(nx + 1):
            swept = _widened(source, radius, first[0] + j, first[1] + i, corners, east, north)
            if i > 0:
                shares[j, i - 1] += swept
            if i < nx:
                shares[j, i] -= swept


@njit(nogil=True, error_model="numpy")
def _risen(source: np.ndarray, radius: float, y: int, x: int, corners: np.ndarray, north: np.ndarray) -> float:
    """What the boundary below a pixel has swept, positive upwards."""
    shift = north[y, x]
    if shift == 0:
        return 0.0
    ax, ay = _corner(corners, y, x)
    bx, by = _corner(corners, y, x + 1)
    (nodes, weights), (near, parts) = _ALONG, _ACROSS
    total, r2 = 0.0, radius * radius
    for k in range(len(nodes)):
        t = (1 + nodes[k]) / 2
        at_x, at_y = ax + t * (bx - ax) - source[0], ay + t * (by - ay) - source[1]
        for m in range(len(near)):
            total += weights[k] * parts[m] * density(at_x, at_y + shift * (1 + near[m]) / 2, r2, source[4])
    return shift * (bx - ax) * total / 4


@njit(nogil=True, error_model="numpy")
def _widened(
    source: np.ndarray, radius: float, y: int, x: int, corners: np.ndarray, east: np.ndarray, north: np.ndarray
) -> float:
    """What the boundary on the left of a pixel has swept, positive to the right, in the moved row of that column."""
    shift = east[y, x]
    if shift == 0:
        return 0.0
    ax, ay = _corner(corners, y, x)
    bx, by = _corner(corners, y + 1, x)
    column = x if shift > 0 else x - 1
    start = north[y, column] / (by - ay)
    length = 1 + north[y + 1, column] / (by - ay) - start
    (nodes, weights), (near, parts) = _ALONG, _ACROSS
    total, r2 = 0.0, radius * radius
    for k in range(len(nodes)):
        t = start + length * (1 + nodes[k]) / 2
        at_x, at_y = ax + t * (bx - ax) - source[0], ay + t * (by - ay) - source[1]
        for m in range(len(near)):
            total += weights[k] * parts[m] * density(at_x + shift * (1 + near[m]) / 2, at_y, r2, source[4])
    return shift * (by - ay) * length * total / 4
