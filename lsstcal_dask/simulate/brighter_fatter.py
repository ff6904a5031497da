"""Brighter-fatter effect: gathered charge moves the boundaries of the pixels around it (Secs. 2.12 and 6, stage 5).

Each of the four boundaries of a pixel moves by its own vector, found from electrostatics and not as the gradient
of a kernel. An electron that drifts through a sensor of thickness T towards its gates at z = 0, in a uniform
field, is pushed aside by the charge of a pixel at depth z_q and by the images of that charge in the gates and in
the entrance window: sum over n of +1 at 2nT + z_q and -1 at 2nT - z_q. Where the drift from T down to an end z_e
leads along a boundary, the boundary moves towards the charge by

    d(x, y) ~ (x, y) / r^2 * sum of [(z - z_i) / sqrt(r^2 + (z - z_i)^2)] from z_e to T,    r^2 = x^2 + y^2,

averaged over the boundary and over the cloud of stored charge. The two kinds of boundary end at their own depths
(channel stops and clocked barriers), hence the anisotropy (Astier & Regnault 2023, A&A 670, A118, whose model
this follows). Far away a ~ r^-3. A boundary is shared: what one pixel loses the next one gains, so sum(a) = 0.
"""

from functools import lru_cache
from itertools import count
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.simulate.effect import Effect

__all__ = [
    "BrighterFatter",
    "area_coefficients",
    "boundary_coefficients",
    "boundary_shifts",
    "margin",
    "quadrants",
    "steps",
    "weights",
]

_LARGEST: Final = 0.45  # pixels that a boundary may move: two of them never pass each other
_IMAGES: Final = 40  # pairs of image charges on each side


class BrighterFatter(Effect):
    """Strength and reach of the effect.

    Area losses are the published medians of LSSTCam (SITCOMTN-148); one for other makers.
    """

    area_loss_e2v: float = Field(3.49e-6, ge=0)  # 1/electron, -a_00
    area_loss_itl: float = Field(1.70e-6, ge=0)  # 1/electron
    area_loss_other: float = Field(2.5e-6, ge=0)  # 1/electron
    strength: float = Field(1.0, ge=0)  # factor on all of it
    reach: int = Field(8, ge=1, le=32)  # pixels to the last boundary that a charge moves, in x and in y
    ceiling: float = Field(150e3, gt=0)  # electrons: what a pixel has beyond blooms and moves no boundary
    error: float = Field(5e-4, gt=0, le=0.1)  # of the variance of a flat, from the finite number of time steps


class _Silicon(NamedTuple):
    """Where charge is and where its drift ends, in units of the pixel."""

    charge: float  # depth of the stored charge
    channel_stop: float  # depth at which a drift along an east or west boundary ends
    barrier: float  # depth at which one along a north or south boundary ends


_THICKNESS: Final = 10.0  # pixels of 10 um
_CLOUD: Final = 0.6  # pixel, width of the square in which charge is stored
# depths that give the two nearest ratios, a_10/a_00 and a_01/a_00, of the sensors that Lage, Bradshaw & Tyson
# 2021 (J. Appl. Phys. 130, 164502) solved in three dimensions, to 3 %; all other coefficients follow
_SILICON: Final = {"e2v": _Silicon(0.10, 0.320, 0.142), "ITL": _Silicon(0.10, 0.234, 0.020)}


def area_coefficients(settings: BrighterFatter, vendor: str) -> np.ndarray:
    """Fractional change of the area of pixel (0, 0) per electron in pixel (i, j): the a_ij.

    Returns
    -------
    (2 reach + 3, 2 reach + 3) float64, 1/electron: row ``reach + 1 + j`` (parallel, y), column
    ``reach + 1 + i`` (serial, x); their sum is zero.
    """
    east, north = boundary_coefficients(settings, vendor)
    area = np.zeros((2 * settings.reach + 3,) * 2)
    area[1:-1, 1:] += east
    area[1:-1, :-1] -= east
    area[1:, 1:-1] += north
    area[:-1, 1:-1] -= north
    return area


def boundary_coefficients(settings: BrighterFatter, vendor: str) -> tuple[np.ndarray, np.ndarray]:
    """Shifts of the boundaries of pixel (0, 0) per electron in pixels around it.

    Returns
    -------
    east : (2 reach + 1, 2 reach + 2), pixel/electron: shift to +x of the boundary between pixels 0 and 1 of
        row 0; row ``reach + j``, column ``reach + i`` for charge in pixel (i, j), i from -reach to reach + 1.
    north : (2 reach + 2, 2 reach + 1), shift to +y of that between rows 0 and 1, j from -reach to reach + 1.
    """
    right, up = quadrants(settings, vendor)
    right = np.concatenate([right[:0:-1], right])
    up = np.concatenate([up[:0:-1], up])
    return np.concatenate([-right[:, ::-1], right], axis=1), np.concatenate([-up[:, ::-1], up], axis=1).T


def quadrants(settings: BrighterFatter, vendor: str) -> tuple[np.ndarray, np.ndarray]:
    """The same without what follows from symmetry.

    Returns
    -------
    Two (reach + 1, reach + 1), pixel/electron: the attraction [m, d] of an east or a north boundary by a
    pixel whose centre is ``d + 1/2`` from it and ``m`` along it.
    """
    losses = {"e2v": settings.area_loss_e2v, "ITL": settings.area_loss_itl}
    loss = losses.get(vendor, settings.area_loss_other) * settings.strength if settings.on else 0.0
    right, up = _shape(_SILICON.get(vendor, _SILICON["e2v"]), settings.reach)
    return loss * right, loss * up


@lru_cache(maxsize=16)
def _shape(silicon: _Silicon, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """`quadrants` for a_00 = -1."""
    right = _attraction(silicon.charge, silicon.channel_stop, reach)
    up = _attraction(silicon.charge, silicon.barrier, reach)
    loss = 2 * (right[0, 0] + up[0, 0])
    result = right / loss, up / loss
    for one in result:
        one.flags.writeable = False
    return result


def _attraction(depth: float, end: float, reach: int) -> np.ndarray:
    """Mean shift [m, d] of a boundary where drifts stop at ``end``, to a factor."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    spots, shares = np.polynomial.legendre.leggauss(4)
    across = np.arange(reach + 1)[:, None, None, None] + 0.5 - _CLOUD * spots[:, None, None] / 2
    along = np.arange(reach + 1)[:, None, None, None, None] + nodes / 2 - _CLOUD * spots[:, None] / 2
    weight = shares[:, None, None] * shares[:, None] * weights / 8
    r2 = across**2 + along**2
    field = np.zeros(r2.shape)
    for n in range(-_IMAGES, _IMAGES + 1):
        for sign in (1, -1):
            place = 2 * n * _THICKNESS + sign * depth
            high, low = _THICKNESS - place, end - place
            field += sign * (high / np.sqrt(r2 + high * high) - low / np.sqrt(r2 + low * low))
    return np.asarray((field * across / r2 * weight).sum(axis=(-3, -2, -1)))


def steps(settings: BrighterFatter, vendor: str, level: float, peak: float = 0.0) -> np.ndarray:
    """Parts of the exposure that its time steps take.

    The brightest pixels reach ``level`` electrons of diffuse light, and ``peak`` more of stars.

    In a step boundaries stand where the charge at its middle puts them: `weights` says from what it is foreseen.
    Of a fluctuation with wave vector k, a(k) the transform of a_ij, the variance then differs from
    (exp(2 a(k) level) - 1) / (2 a(k)) by a part that falls as the square of the number of steps; there are so many
    that it is at most ``settings.error`` for any a(k). The last step is half as long, because half a step is
    what charge that comes in it is late. In stars ten times the error will do: what matters there is the expected
    charge, whose march is exact to first order (at a peak of 140e3 electrons they grow to 0.2 % as they should).
    """
    size = 64
    spectrum = np.fft.fft2(area_coefficients(settings, vendor), (size, size))
    largest = -float(np.abs(spectrum).max())
    number = max(
        _enough(largest * min(level, settings.ceiling), settings.error),
        _enough(largest * min(level + peak, settings.ceiling), 10 * settings.error),
    )
    parts = np.ones(number)
    parts[number - 1 :] = 1.0 if number == 1 else 0.5
    return parts / parts.sum()


def _enough(largest: float, error: float) -> int:
    """Steps with which no fluctuation that grows less than the largest has a greater error."""
    growths = [part * largest for part in np.linspace(0.125, 1, 8)]
    return next(number for number in count(1) if all(_error(growth, number) <= error for growth in growths))


def weights(this: float, following: float) -> tuple[float, float]:
    """What of the charge of a step is added again to foresee the middle of the following one, from their lengths.

    Of the expected charge it is what half of the following step will bring. Of the rest, which is noise, it is
    what makes up for the half step in which it has not moved boundaries yet.
    """
    return following / this / 2, this / following / 2


def _error(growth: float, number: int) -> float:
    exact = np.expm1(2 * growth) / (2 * growth) if growth else 1.0
    return abs(_variance(growth, number) / exact - 1)


def _variance(growth: float, number: int) -> float:
    """Variance after so many steps, in units of the level, of a fluctuation that grows by ``exp(growth)``."""
    if number == 1:
        return 1.0
    step = 1 / (number - 0.5)
    full, last = weights(1, 1), weights(1, 0.5)
    charge, expected, noise = 1.0, 0.0, 1.0
    total = step / 2  # of what comes in the last step
    for _ in range(number - 1):  # of what came one step before, two ...
        end = charge + growth * step / 2 * (charge + last[0] * expected + last[1] * noise)
        total += step * end * end
        expected = growth * step * (charge + full[0] * expected + full[1] * noise)
        charge, noise = charge + expected, 0.0
    return total


def margin(settings: BrighterFatter) -> int:
    """Pixels by which a charge map must be padded for `boundary_shifts`; a multiple of three."""
    return 3 * -(-(settings.reach + 1) // 3)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def boundary_shifts(
    charge: np.ndarray, right: np.ndarray, up: np.ndarray, first: tuple[int, int], east: np.ndarray, north: np.ndarray
) -> None:
    """Fill ``east`` and ``north`` with the shifts of the boundaries of a rectangle of pixels.

    Parameters
    ----------
    charge : float32, electrons, padded on all sides by `margin`.
    right, up : float32 `quadrants`, [m, d], padded with zeros to `margin` on both axes.
    first : (y, x) of the rectangle's first pixel, in the map before it was padded.
    east : (ny, nx + 1) float32, pixel: of the boundary on the left of each pixel, and of the last one.
    north : (ny + 1, nx) float32, pixel: of the boundary below each pixel, and of the last one.
    """
    n = len(right)
    ny, nx = len(east), north.shape[1]
    line = np.empty(nx + 2 * n, np.float32)
    x = slice(first[1], first[1] + nx + 2 * n)
    for y in range(ny):
        east[y] = 0
        row = first[0] + y + n
        for m in range(n):
            above, below = charge[row + m, x], charge[row - m, x]
            half = np.float32(0.5 if m == 0 else 1.0)
            for i in range(line.size):
                line[i] = half * (above[i] + below[i])
            _add_odd(east[y], line, right[m])
    for y in range(ny + 1):
        north[y] = 0
        row = first[0] + y + n
        for d in range(n):
            above, below = charge[row + d, x], charge[row - 1 - d, x]
            for i in range(line.size):
                line[i] = above[i] - below[i]
            _add_even(north[y], line, up[:, d])
    for map_ in (east, north):
        for y in range(len(map_)):
            row_ = map_[y]
            for i in range(row_.size):
                row_[i] = min(max(row_[i], np.float32(-_LARGEST)), np.float32(_LARGEST))


@njit(nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _add_odd(sums: np.ndarray, line: np.ndarray, taps: np.ndarray) -> None:
    """Add the attraction of the pixels of a row to each side, three at a time: a sum is stored less often."""
    n = taps.size
    for d in range(0, n, 3):
        a, b, c = taps[d], taps[d + 1], taps[d + 2]
        right, left = line[n + d :], line[n - 3 - d :]
        for i in range(sums.size):
            sums[i] += a * (right[i] - left[i + 2]) + b * (right[i + 1] - left[i + 1]) + c * (right[i + 2] - left[i])


@njit(nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _add_even(sums: np.ndarray, line: np.ndarray, taps: np.ndarray) -> None:
    """Add that of the pixels of two rows, above and below; the one in the middle is met twice."""
    n = taps.size
    for m in range(0, n, 3):
        a, b, c = taps[m], taps[m + 1], taps[m + 2]
        a *= np.float32(0.5 if m == 0 else 1.0)
        right, left = line[n + m :], line[n - 2 - m :]
        for i in range(sums.size):
            sums[i] += a * (right[i] + left[i + 2]) + b * (right[i + 1] + left[i + 1]) + c * (right[i + 2] + left[i])
