"""Where the borders of the pixels really are (¶8 -> §11): tree rings, edges, the mid-line, random lithography.

The displacement xi of a corner is its actual minus its ideal place. A pixel is the quadrilateral between its four
corners: `areas` and `centroids` are those of that polygon, exact at any displacement, not an expansion in xi.
Corner (i, j) is the lower left one of pixel (i, j), ideally at x = j - 1/2, y = i - 1/2.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numba
import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream, tiles

__all__ = [
    "EdgeDistortion",
    "PixelJitter",
    "Rings",
    "TreeRings",
    "areas",
    "centroids",
    "corners",
    "rings",
    "rings_truth",
]

_SHORTEST: Final = 12.0  # px, of a ring's period
_FINE: Final = 16  # samples per px of the table of ring displacements: linear between them, 1e-4 of a ring is lost


class TreeRings(Effect):
    """Rings of doping about the centre of the wafer, which lies beyond a corner of the CCD.

    The displacement is radial, a sum of 2 x (15 + 5) waves with periods of 60 +- 10 and 35 +- 10 px whose amplitude
    grows as a constant plus the fourth power of the distance: the model of imSim for DC2 (C. Lage, tree_ring_data),
    made from laboratory flats of the sensors of LSST. An amplitude is that of the pixel area in one wave; the rms of
    the area is sqrt(20) times as large. The growth is counted at the farthest corner of the CCD, so that a small CCD
    has rings too; on a real one it is imSim's B = 4 to 8e-18 %/px**4.
    """

    near: float = Field(2e-5, ge=0)  # fraction of the area, at the centre of the wafer
    far: tuple[float, float] = (1e-4, 2e-4)  # what is added at the farthest corner, uniform between the two
    strong_fraction: float = Field(0.0, ge=0, le=1)  # of CCDs with 10 times the growth (imSim: 0.4)
    outside: float = Field(0.25, ge=0)  # of a CCD side: how far beyond the corner the centre lies, in x and y
    scatter: float = Field(0.025, ge=0)  # of a CCD side: largest departure from that


class EdgeDistortion(Effect):
    """Field lines bent at the edges of the CCD and at the implant between its two halves.

    Exponential in the distance and confined to some 10 px. Amplitudes and lengths are chosen, not measured: 5 % less
    area in the outermost row, 0.7 % more beside the mid-line.
    """

    inward: float = Field(0.3, ge=-1, le=1)  # px, displacement of the edge towards the CCD's middle
    length: float = Field(5.0, ge=2)  # px, of its decay
    midline: float = Field(0.01, ge=-0.5, le=0.5)  # px, away from the mid-line, which stays itself
    midline_length: float = Field(3.0, ge=2)  # px


class PixelJitter(Effect):
    """Corners displaced at random, each from its neighbours' noise only.

    A gradient of one white potential and the curl of another: both displace as much, but only the first changes the
    areas: their rms is ``displacement * sqrt(5 * (1 - curl))``, by default 0.3 %, the intrinsic size of Baumer
    & Roodman (2015).
    """

    displacement: float = Field(1.9e-3, ge=0, le=0.2)  # px, rms of x and of y
    curl: float = Field(0.5, ge=0, le=1)  # part of the variance without effect on the areas


@dataclass(frozen=True, eq=False)
class Rings:
    """The rings of one CCD."""

    center: tuple[float, float]  # x, y in CCD pixels
    period: np.ndarray  # px
    phase: np.ndarray  # rad
    near: float  # area amplitude of a wave at the centre
    far: float  # and what is added to it at `reach`
    reach: float  # px, distance of the farthest corner


@lru_cache(maxsize=256)
def rings(seed: int, tree_rings: TreeRings, detector: Detector) -> Rings:
    """The rings of one CCD, a pure function of its arguments; read-only."""
    random = stream(seed, "tree_rings", detector=detector.id)
    side = np.array(detector.shape[::-1], float)
    corner = random.integers(0, 2, 2)
    away = side * (tree_rings.outside + tree_rings.scatter * random.uniform(-1, 1, 2))
    center = corner * (side - 1) + np.where(corner, away, -away)
    growth = random.uniform(*tree_rings.far) * (10 if random.random() < tree_rings.strong_fraction else 1)
    period = np.maximum(random.normal(np.repeat([60.0, 35.0], [30, 10]), 10.0), _SHORTEST)
    phase = random.uniform(0, 2 * np.pi, len(period))
    period.flags.writeable = phase.flags.writeable = False
    reach = float(np.hypot(*(side - 0.5 - np.minimum(center, side - 1 - center))))
    return Rings((float(center[0]), float(center[1])), period, phase, tree_rings.near, growth, reach)


def rings_truth(seed: int, tree_rings: TreeRings, detector: Detector, r: np.ndarray) -> np.ndarray:
    """Outward displacement (px) at distance ``r`` (px) from the centre: ``(A + B r**4) sum_k P_k/2pi sin(2pi r/P_k)``.

    Its pixel area is ``1 + (1/r) d(r xi)/dr``.
    """
    r = np.asarray(r, np.float64)
    if not tree_rings.on:
        return np.zeros_like(r)
    truth = rings(seed, tree_rings, detector)
    waves = np.zeros_like(r)
    for period, phase in zip(truth.period, truth.phase, strict=True):
        waves += period / (2 * np.pi) * np.sin(2 * np.pi * r / period + phase)
    return (truth.near + truth.far * (r / truth.reach) ** 4) * waves


def corners(
    seed: int, tree_rings: TreeRings, edges: EdgeDistortion, jitter: PixelJitter, detector: Detector
) -> np.ndarray:
    """Displacement of the pixel corners of a CCD.

    Returns
    -------
    (2, ny + 1, nx + 1) float32: x, then y, actual minus ideal corner, px.
    """
    ny, nx = detector.shape
    xi = np.zeros((2, ny + 1, nx + 1), np.float32)
    if tree_rings.on:
        _add_rings(xi, seed, tree_rings, detector)
    if edges.on:
        across, along = _edge_profiles(edges, detector)
        xi[0] += across
        xi[1] += along[:, None]
    if jitter.on:
        for step, share in enumerate((1 - jitter.curl, jitter.curl)):
            if share > 0:
                noise = _potential(seed, detector, step)
                _add_jitter(xi, noise, float(jitter.displacement * np.sqrt(share)), step == 1)
    return xi


def _add_rings(xi: np.ndarray, seed: int, tree_rings: TreeRings, detector: Detector) -> None:
    truth = rings(seed, tree_rings, detector)
    table = rings_truth(seed, tree_rings, detector, np.arange(int(truth.reach + 3) * _FINE) / _FINE)
    _add_radial(xi, table, *truth.center)


@numba.njit(nogil=True, cache=True)
def _add_radial(xi: np.ndarray, table: np.ndarray, x0: float, y0: float) -> None:
    """Add a radial displacement given by its table in steps of 1 / _FINE px."""
    for i in range(xi.shape[1]):
        dy = i - 0.5 - y0
        for j in range(xi.shape[2]):
            dx = j - 0.5 - x0
            r = np.sqrt(dx * dx + dy * dy)
            if r > 0:
                k = int(r * _FINE)
                part = r * _FINE - k
                out = (table[k] * (1 - part) + table[k + 1] * part) / r
                xi[0, i, j] += out * dx
                xi[1, i, j] += out * dy


def _edge_profiles(edges: EdgeDistortion, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Displacement x of each column of corners, y of each row."""

    def both_ends(n: int) -> np.ndarray:
        at = np.arange(n + 1.0)
        return edges.inward * (np.exp(-at / edges.length) - np.exp(-(n - at) / edges.length))

    ny, nx = detector.shape
    across, along = both_ends(nx), both_ends(ny)
    for middle in sorted({a.position[1] for a in detector.amplifiers} - {0}):
        distance = np.arange(ny + 1.0) - middle
        along += edges.midline * np.sign(distance) * np.exp(-np.abs(distance) / edges.midline_length)
    return across.astype(np.float32), along.astype(np.float32)


def _potential(seed: int, detector: Detector, step: int) -> np.ndarray:
    """White noise (ny + 2, nx + 2) on the pixels and on one ring of neighbours outside the CCD."""
    ny, nx = detector.shape
    noise = np.empty((ny + 2, nx + 2), np.float32)
    for tile, rows in tiles(ny + 2):
        random = stream(seed, "pixel_jitter", detector=detector.id, tile=tile, step=step)
        random.standard_normal(dtype=np.float32, out=noise[rows])
    return noise


@numba.njit(nogil=True, cache=True)
def _add_jitter(xi: np.ndarray, noise: np.ndarray, scale: float, curl: bool) -> None:
    """Add the gradient of a potential that lives on pixels, or that gradient turned by 90 degrees.

    The gradient is the transpose of "area of a pixel from its corners", so the turned one changes no area.
    """
    half = np.float32(0.5 * scale)
    for i in range(xi.shape[1]):
        for j in range(xi.shape[2]):
            rise = noise[i, j] - noise[i + 1, j + 1]
            fall = noise[i + 1, j] - noise[i, j + 1]
            x = half * (rise + fall)
            y = half * (rise - fall)
            if curl:
                x, y = -y, x
            xi[0, i, j] += x
            xi[1, i, j] += y


@numba.njit(nogil=True, cache=True)
def areas(xi: np.ndarray) -> np.ndarray:
    """Area of each pixel, px**2: half the cross product of its diagonals (the shoelace formula of a quadrilateral).

    Parameters
    ----------
    xi : (2, ny + 1, nx + 1), as `corners` returns it.

    Returns
    -------
    (ny, nx) float32.
    """
    ny, nx = xi.shape[1] - 1, xi.shape[2] - 1
    out = np.empty((ny, nx), np.float32)
    for i in range(ny):
        for j in range(nx):
            x1 = 1.0 + xi[0, i + 1, j + 1] - xi[0, i, j]
            y1 = 1.0 + xi[1, i + 1, j + 1] - xi[1, i, j]
            x2 = -1.0 + xi[0, i + 1, j] - xi[0, i, j + 1]
            y2 = 1.0 + xi[1, i + 1, j] - xi[1, i, j + 1]
            out[i, j] = 0.5 * (x1 * y2 - x2 * y1)
    return out


@numba.njit(nogil=True, cache=True)
def centroids(xi: np.ndarray) -> np.ndarray:
    """Centre of gravity of each pixel minus the centre of its ideal square, px.

    Parameters
    ----------
    xi : (2, ny + 1, nx + 1), as `corners` returns it.

    Returns
    -------
    (2, ny, nx) float32: x, then y.
    """
    ny, nx = xi.shape[1] - 1, xi.shape[2] - 1
    out = np.empty((2, ny, nx), np.float32)
    for i in range(ny):
        for j in range(nx):
            total, sum_x, sum_y = 0.0, 0.0, 0.0
            for k in range(4):  # around the pixel: lower left, lower right, upper right, upper left
                right, up = (k == 1) | (k == 2), k >= 2
                right_next, up_next = k <= 1, (k == 1) | (k == 2)
                xa = right - 0.5 + xi[0, i + up, j + right]
                ya = up - 0.5 + xi[1, i + up, j + right]
                xb = right_next - 0.5 + xi[0, i + up_next, j + right_next]
                yb = up_next - 0.5 + xi[1, i + up_next, j + right_next]
                cross = xa * yb - xb * ya
                total += cross
                sum_x += cross * (xa + xb)
                sum_y += cross * (ya + yb)
            out[0, i, j] = sum_x / (3 * total)
            out[1, i, j] = sum_y / (3 * total)
    return out
