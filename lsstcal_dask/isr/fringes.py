"""Fringes of the night sky taken out of a frame by maps of them: the backup of sky flats (§13; Lupton 2016, Sec. 2.9).

With b the sky of a frame, a polynomial over the CCD, and m_k maps of fringes relative to it, of blocks of pixels,

    image - b sum_k c_k m_k,      image / b - 1 = sum_k c_k m_k + polynomial + noise

c_k of each CCD of each frame by robust regression on the means of blocks without objects. The variance grows by that
of the maps and of the c_k; what the pixels of a block share of it is as said, not independent.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.instrument.geometry import amplifier_to_ccd
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.objects import find_objects
from lsstcal_dask.variables import MASK_BITS, NOTE

__all__ = [
    "DEGREE",
    "Sky",
    "amplitudes",
    "block_counts",
    "block_places",
    "fit_sky",
    "sky_blocks",
    "sky_terms",
    "subtract_fringes",
]

Floats = NDArray[np.float64]

DEGREE: Final = 2
"""Degree of the polynomial that is the sky of a CCD."""

_TURNS: Final = 12
_HUBER: Final = 1.345  # sigma from which a value counts less: 95 % efficient
_LIT: Final = 0.25  # of its pixels that a block needs
_ENOUGH: Final = 10  # values for each number of the sky


def sky_terms(y: Any, x: Any, degree: int = DEGREE) -> Floats:
    """Legendre polynomials (term, place) up to a total degree, at places from -1 to 1 along both sides of a CCD."""
    up, across = (np.polynomial.legendre.legvander(np.ravel(a), degree) for a in (y, x))
    return np.stack([up[:, i] * across[:, j] for i, j in _pairs(degree)])


def _pairs(degree: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]


def fit_sky(value: Floats, terms: Floats) -> Floats:
    """Coefficients (term,) of a smooth sky.

    Parameters
    ----------
    value : (n,) electron.
    terms : (term, n), `sky_terms`.

    Raises
    ------
    InsufficientInputs
        Too few values.
    """
    if value.size < _ENOUGH * len(terms):
        raise InsufficientInputs(
            f"fringes: {value.size} pixels without objects, or blocks of them: too few to tell the background"
        )
    return np.asarray(np.linalg.solve(terms @ terms.T, terms @ value))


def amplitudes(value: Floats, variance: Floats, maps: Floats, terms: Floats) -> tuple[Floats, Floats]:
    """How much of some fringes a sky has, by robust regression.

    Parameters
    ----------
    value, variance : (n,) electron, electron**2, of pixels or blocks without objects.
    maps : (k, n) fringes relative to the sky.
    terms : (term, n) of the sky.

    Returns
    -------
    (k,) coefficients, and their covariance (k, k) for maps without noise.

    Raises
    ------
    InsufficientInputs
        A map is flat; too few values.
    """
    sky = fit_sky(value, terms) @ terms
    if not (np.std(maps, axis=1) > 0).all():
        raise InsufficientInputs("fringes: the fringe frame is flat: nothing to scale")
    columns, relative, weight = np.vstack([maps, terms]), value / sky - 1, sky**2 / variance
    share = np.ones_like(value)
    for _ in range(_TURNS):
        normal = (columns * (weight * share)) @ columns.T
        fitted = np.linalg.solve(normal, columns @ (weight * share * relative))
        pull = np.abs(relative - fitted @ columns) * np.sqrt(weight)
        new = np.minimum(1.0, _HUBER / np.maximum(pull, 1e-12))
        if np.abs(new - share).max() < 1e-3:
            break
        share = new
    # an M-estimator: mean of psi**2 over the square of the mean of its slope
    psi, slope = share * pull, float(np.mean(pull < _HUBER))
    widen = float(np.mean(psi**2)) / slope**2
    bread = np.linalg.inv((columns * weight) @ columns.T)
    k = len(maps)
    return np.asarray(fitted[:k], np.float64), np.asarray(widen * bread[:k, :k], np.float64)


def block_counts(shape: tuple[int, int], step: int) -> tuple[int, int]:
    """Blocks along y and x of an amplifier."""
    return -(-shape[0] // step), -(-shape[1] // step)


def block_places(detector: Detector, counts: tuple[int, int], step: int) -> tuple[Floats, Floats]:
    """Y and x (amplifier, block_y, block_x) of the middles of blocks, from -1 to 1 over the CCD; NaN where none is."""
    out = np.full((2, len(detector.amplifiers), *counts), np.nan)
    for i, amplifier in enumerate(detector.amplifiers):
        own = [_middles(n, step) for n in amplifier.data.shape]
        out[:, i, : len(own[0]), : len(own[1])] = np.stack(_scaled(amplifier, detector, *own))
    return out[0], out[1]


def _middles(length: int, step: int) -> Floats:
    start = np.arange(0, length, step)
    return np.asarray((start + np.minimum(start + step, length) - 1) / 2, np.float64)


def _scaled(amplifier: Amplifier, detector: Detector, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Places (y, x) of rows and columns of an amplifier, from -1 to 1 over the CCD."""
    across, up = amplifier_to_ccd(amplifier, *np.meshgrid(x, y))
    ny, nx = detector.shape
    return np.asarray(2 * up / (ny - 1) - 1, np.float64), np.asarray(2 * across / (nx - 1) - 1, np.float64)


@dataclass(frozen=True, eq=False)
class Sky:
    """Means of the blocks of a frame without objects."""

    value: Floats  # (amplifier, block_y, block_x) electron; NaN where too few pixels are good
    variance: Floats
    crowded: Floats  # (amplifier,) part of the good pixels that are under objects; NaN of a dead one


def sky_blocks(frame: Frame, step: int) -> Sky:
    """Look at the sky of a frame between its objects.

    Parameters
    ----------
    step : px of a block.
    """
    counts = block_counts(frame.image.shape[1:], step)
    out = np.full((2, len(frame.detector.amplifiers), *counts), np.nan)
    crowded = np.full(len(out[0]), np.nan)
    for i, amplifier in enumerate(frame.detector.amplifiers):
        ny, nx = amplifier.data.shape
        image, noise = frame.image[i, :ny, :nx], frame.variance[i, :ny, :nx]
        good = (frame.mask[i, :ny, :nx] == 0) & np.isfinite(image) & np.isfinite(noise)
        if not good.any():
            continue
        objects = find_objects(image, good)
        crowded[i] = objects.sum() / good.sum()
        use = good & ~objects
        count = _sums(use, step)
        told = count >= _LIT * _sums(np.ones_like(use), step)
        rows = np.nan_to_num(frame.row_variance[i, :ny, None]) * _sums_along(use, step) ** 2
        sums = _sums(np.where(use, image, 0), step), _sums(np.where(use, noise, 0), step)
        shared = np.add.reduceat(rows, np.arange(0, ny, step), axis=0)
        number = np.maximum(count, 1)
        by, bx = count.shape
        out[0, i, :by, :bx] = np.where(told, sums[0] / number, np.nan)
        out[1, i, :by, :bx] = np.where(told, (sums[1] + shared) / number**2, np.nan)
    return Sky(out[0], out[1], crowded)


def _sums(values: Any, step: int) -> Floats:
    return np.asarray(np.add.reduceat(_sums_along(values, step), np.arange(0, len(values), step), axis=0))


def _sums_along(values: Any, step: int) -> Floats:
    """Sums of ``step`` columns."""
    return np.asarray(np.add.reduceat(values, np.arange(0, np.shape(values)[1], step), axis=1, dtype=float))


def subtract_fringes(frame: Frame, product: xr.Dataset) -> Frame:
    """Take the fringes of a product out of a CCD.

    Parameters
    ----------
    product : ``fringe_map`` (mode, amplifier, block_y, block_x), its ``fringe_map_variance``, of this detector, with
        ``block`` (px) among its attributes.

    Returns
    -------
    The frame; pixels whose fringes are not known are as they were, and SUSPECT.

    Raises
    ------
    InconsistentGeometry
        An amplifier is not in the product.
    InsufficientInputs
        Too little sky between objects to tell how strong fringes are.
    """
    maps, noise = _maps(frame, product)
    step, counts = int(product.attrs["block"]), (maps.shape[2], maps.shape[3])
    sky = sky_blocks(frame, step)
    y, x = block_places(frame.detector, counts, step)
    good = np.isfinite(sky.value) & np.isfinite(maps).all(axis=0)
    terms = sky_terms(y[good], x[good])
    try:
        c, covariance = amplitudes(sky.value[good], sky.variance[good], maps[:, good], terms)
    except InsufficientInputs as error:
        raise InsufficientInputs(
            f"exposure {frame.exposure}: {frame.detector.name}: {error}: leave it out with --skip fringes"
        ) from error
    smooth = fit_sky(sky.value[good], terms)
    image, variance, mask = frame.image.copy(), frame.variance.copy(), frame.mask.copy()
    for i, amplifier in enumerate(frame.detector.amplifiers):
        ny, nx = amplifier.data.shape
        level = _sky_of(amplifier, frame.detector, smooth)
        own, unknown = _pixels(maps[:, i], (ny, nx), step)
        spread, _ = _pixels(noise[:, i], (ny, nx), step, power=2)
        share = np.tensordot(c, own, 1)
        doubt = np.tensordot(c**2, np.maximum(spread, 0), 1) + np.einsum("kyx,kl,lyx->yx", own, covariance, own)
        image[i, :ny, :nx] -= (level * share).astype(np.float32)
        variance[i, :ny, :nx] += (level**2 * doubt).astype(np.float32)
        lit = unknown & (mask[i, :ny, :nx] & MASK_BITS["NO_DATA"] == 0)
        mask[i, :ny, :nx] |= lit * np.uint16(MASK_BITS["SUSPECT"])
    told = ", ".join(f"{one:.3g} +- {s:.2g}" for one, s in zip(c, np.sqrt(np.diag(covariance)), strict=True))
    remark = (frame.detector.amplifiers[0].name, f"{NOTE}fringes of its CCD: {told} times the maps taken out")
    return frame.with_(image=image, variance=variance, mask=mask, remarks=(*frame.remarks, remark))


def _maps(frame: Frame, product: xr.Dataset) -> tuple[Floats, Floats]:
    """Maps and their variance (mode, amplifier, block_y, block_x), in the frame's order."""
    known = [str(name) for name in product["amplifier"].values]
    names = [a.name for a in frame.detector.amplifiers]
    if missing := sorted(set(names) - set(known)):
        raise InconsistentGeometry(
            f"exposure {frame.exposure}: {frame.detector.name} {missing[0]}: is not in the maps of fringes: make them "
            "again"
        )
    places = [known.index(name) for name in names]
    maps, noise = (np.asarray(product[name].values, float)[:, places] for name in ("fringe_map", "fringe_map_variance"))
    return maps, noise


def _sky_of(amplifier: Amplifier, detector: Detector, smooth: Floats) -> Floats:
    """Smooth sky (y, x) of an amplifier."""
    ny, nx = amplifier.data.shape
    up = _scaled(amplifier, detector, np.arange(ny, dtype=float), np.zeros(1))[0][:, 0]
    across = _scaled(amplifier, detector, np.zeros(1), np.arange(nx, dtype=float))[1][0]
    rows, columns = (np.polynomial.legendre.legvander(a, DEGREE) for a in (up, across))
    table = np.zeros((DEGREE + 1, DEGREE + 1))
    for value, pair in zip(smooth, _pairs(DEGREE), strict=True):
        table[pair] = value
    return np.asarray(rows @ table @ columns.T)


def _pixels(maps: Floats, shape: tuple[int, int], step: int, power: int = 1) -> tuple[Floats, NDArray[np.bool_]]:
    """Maps of blocks (mode, block_y, block_x) at pixels (mode, y, x), and the pixels (y, x) of which they say nothing.

    Unknown blocks are as the nearest known one. Of variances, which weights square, ``power`` is 2.
    """
    counts = block_counts(shape, step)
    own = maps[:, : counts[0], : counts[1]]
    unknown = ~np.isfinite(own).all(axis=0)
    covered = np.repeat(np.repeat(unknown, step, axis=0), step, axis=1)[: shape[0], : shape[1]]
    if unknown.all():
        return np.zeros((len(maps), *shape)), covered
    if unknown.any():
        nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
        own = own[:, nearest[0], nearest[1]]
    up, across = (_between(n, step) ** power for n in shape)
    return np.einsum("yb,kbc,xc->kyx", up, own, across, optimize=True), covered


@lru_cache(maxsize=16)
def _between(length: int, step: int) -> Floats:
    """Weights (pixel, block) of a smooth curve whose means over blocks are those of the map: read-only.

    Differences of a cubic spline through the running sums at the edges of blocks.
    """
    edges = np.append(np.arange(0, length, step), length)
    sums = np.tril(np.ones((len(edges), len(edges) - 1)), -1) * np.diff(edges)
    found = np.diff(CubicSpline(edges, sums)(np.arange(length + 1.0)), axis=0)
    found.flags.writeable = False
    return np.asarray(found)
