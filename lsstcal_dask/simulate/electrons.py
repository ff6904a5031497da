"""Point sources shot electron by electron into pixels whose boundaries have moved (Sec. 6, stage 5)."""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from lsstcal_dask.simulate.stamps import farther, scale

__all__ = ["EMPTY", "Ground", "land", "moffat", "peak", "sunflower"]

EMPTY: Final = np.zeros((0, 0), np.float32)
_TURN: Final = (5**0.5 - 1) / 2  # the golden ratio's part of a turn
_STAMP: Final = 64  # pixels around a source with nearly all of its light
_LONGEST: Final = 40  # walk, pixels: farther than any corner is displaced


class Ground(NamedTuple):
    """Where pixels are and what they respond; maps are float32, those that are not there have no elements."""

    corners: np.ndarray  # (2, ny + 1, nx + 1), pixel: displacement of corners
    east: np.ndarray  # (ny, nx + 1), pixel: shifts of boundaries
    north: np.ndarray  # (ny + 1, nx)
    response: np.ndarray  # (ny, nx), relative


def peak(points: np.ndarray) -> float:
    """Largest density of electrons of sources (n, 5) as in `exposure.Light`, 1/s/pixel; 0 for none."""
    _, _, rate, fwhm, beta = points.T
    density = rate * (beta - 1) / (np.pi * scale(fwhm, beta) ** 2)
    return float(density.max(initial=0.0))


def moffat(
    source: np.ndarray, inside: np.ndarray, angle: np.ndarray, nearest: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (x, y), pixels, at an angle (rad) from a source and so far that a fraction ``inside`` is nearer.

    Of those positions only that are ``nearest`` pixels away or more.
    """
    x, y, _, fwhm, beta = source
    r = scale(fwhm, beta) * np.sqrt(((1 - inside) * farther(source, nearest)) ** (1 / (1 - beta)) - 1)
    return x + r * np.cos(angle), y + r * np.sin(angle)


def sunflower(source: np.ndarray, n: int, step: int = 0, nearest: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions (x, y), pixels, of ``n`` points that share a source's light evenly, as seeds share a flower's head.

    Those of another step lie between them; as `moffat`, of the light beyond ``nearest`` pixels.
    """
    order = np.arange(n)
    inside, turns = (order + (0.5 + step * _TURN) % 1) / n, (order + step * n) * _TURN
    return moffat(source, inside, 2 * np.pi * turns, nearest)


@njit(nogil=True, cache=True, error_model="numpy")
def land(
    source: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    weight: float,
    chances: np.ndarray,
    ground: Ground,
    but: tuple[int, int, int, int],
    charge: np.ndarray,
    ahead: np.ndarray,
    pad: int,
    factor: float,
) -> None:
    """Add electrons to the moved pixels they fall into, and to the charge of the next step's middle.

    Parameters
    ----------
    source : a row of ``points`` of `exposure.Light`.
    xs, ys : (n,), pixels, where its electrons arrive.
    weight : electrons of each.
    chances : (n,), those are kept whose chance is below the response of their pixel; without elements for all, but
        weighted with it.
    but : first and last row and column, excluded, of pixels in which they are not counted.
    charge : (ny, nx), electrons; changed.
    ahead : the same padded by ``pad``, to which ``factor`` times as much is added; without elements for none.
    """
    left, low = int(np.floor(source[0])) - _STAMP // 2, int(np.floor(source[1])) - _STAMP // 2
    stamp = np.zeros((_STAMP, _STAMP))  # float64: many small parts may add up to much
    for i in range(xs.size):
        x, y = _pixel(xs[i], ys[i], ground.corners, ground.east, ground.north, charge.shape)
        if x < 0 or (but[0] <= y < but[1] and but[2] <= x < but[3]):
            continue
        part = weight
        if ground.response.size:
            if not chances.size:
                part *= ground.response[y, x]
            elif chances[i] >= ground.response[y, x]:
                continue
        if 0 <= x - left < _STAMP and 0 <= y - low < _STAMP:
            stamp[y - low, x - left] += part
        else:
            _add(part, x, y, charge, ahead, pad, factor)
    for j in range(_STAMP):
        for i in range(_STAMP):
            if stamp[j, i] > 0:
                _add(stamp[j, i], left + i, low + j, charge, ahead, pad, factor)


@njit(nogil=True, error_model="numpy")
def _add(weight: float, x: int, y: int, charge: np.ndarray, ahead: np.ndarray, pad: int, factor: float) -> None:
    charge[y, x] += weight
    if ahead.size:
        ahead[y + pad, x + pad] += factor * weight


@njit(nogil=True, error_model="numpy")
def _pixel(
    px: float, py: float, corners: np.ndarray, east: np.ndarray, north: np.ndarray, shape: tuple[int, int]
) -> tuple[int, int]:
    """The pixel (x, y) between whose moved boundaries a position lies, (-1, -1) beside the CCD.

    It is walked to from the pixel that would be there without displacement. Where two boundaries meet at a
    corner, which both or neither of the pixels may own, the walk goes round it and ends where it is then.
    """
    if not (abs(px) < 1e6 and abs(py) < 1e6):
        return -1, -1
    x = min(max(int(np.floor(px + 0.5)), 0), shape[1] - 1)
    y = min(max(int(np.floor(py + 0.5)), 0), shape[0] - 1)
    for _ in range(_LONGEST):
        if px < _wall(py, corners, east, y, x):
            x -= 1
        elif px >= _wall(py, corners, east, y, x + 1):
            x += 1
        elif py < _floor(px, corners, north, y, x):
            y -= 1
        elif py >= _floor(px, corners, north, y + 1, x):
            y += 1
        else:
            break
        if not (0 <= x < shape[1] and 0 <= y < shape[0]):
            return -1, -1
    return x, y


@njit(nogil=True, error_model="numpy")
def _wall(py: float, corners: np.ndarray, east: np.ndarray, y: int, x: int) -> float:
    """Where, in x, the boundary on the left of a pixel is at the height ``py``."""
    at = x - 0.5
    if corners.size:
        low, high = y - 0.5 + corners[1, y, x], y + 0.5 + corners[1, y + 1, x]
        part = min(max((py - low) / (high - low), 0.0), 1.0)
        at += (1 - part) * corners[0, y, x] + part * corners[0, y + 1, x]
    return at + east[y, x] if east.size else at


@njit(nogil=True, error_model="numpy")
def _floor(px: float, corners: np.ndarray, north: np.ndarray, y: int, x: int) -> float:
    """Where, in y, the boundary below a pixel is at the place ``px``."""
    at = y - 0.5
    if corners.size:
        low, high = x - 0.5 + corners[0, y, x], x + 0.5 + corners[0, y, x + 1]
        part = min(max((px - low) / (high - low), 0.0), 1.0)
        at += (1 - part) * corners[1, y, x] + part * corners[1, y, x + 1]
    return at + north[y, x] if north.size else at
