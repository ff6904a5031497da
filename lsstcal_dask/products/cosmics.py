"""Cosmic rays found by comparing exposures that should be alike (Lupton 2016, Sec. 2.7).

A pixel that lies 6 sigma above the combination is hit; so are those that touch it and lie 3 sigma above, and those
next to these, into which charge has diffused. The combination, made without outliers in every pixel by itself, still
has the faint rims of all tracks: it is made again where there was a hit, without the exposures that were hit.

sigma is that of the noise model at the common value: read noise and the photon noise of the dark charge.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit

from lsstcal_dask.isr.cosmics import single_frame_hits
from lsstcal_dask.products.exposures import Exposures
from lsstcal_dask.statistics.robust import clip_variance_factor

__all__ = ["Recombined", "combine_again", "find_hits", "frames_needed", "hits_in_each"]

_HIGH: Final = 6.0  # sigma of a pixel that tells of a hit
_LOW: Final = 3.0  # of those that touch it


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _above(counts, corner, terms, found):  # type: ignore[no-untyped-def]
    """Class (n, y, x) of every pixel: 2 above `_HIGH` sigma, 1 above `_LOW`, else 0; number of class 2 (n,)."""
    offset, plane, value, inverse, read, per_electron = terms
    n, ny, nx = found.shape
    high, low = np.float32(_HIGH**2), np.float32(_LOW**2)
    seeds = np.zeros(n, np.int64)
    for i in range(n):
        factor, noise, photon = inverse[i], read[i], per_electron
        for y in range(ny):
            row = counts[i, corner[0] + y, corner[1] : corner[1] + nx]
            base, level, signal, kind = plane[y if len(plane) > 1 else 0], offset[i, y], value[y], found[i, y]
            total = 0
            for x in range(nx):
                expected = signal[x] * factor
                away = np.float32(row[x]) - level - base[x] - expected
                variance = noise + photon * max(expected, np.float32(0))
                square = away * away if away > 0 else np.float32(0)
                is_high = square > high * variance
                kind[x] = 2 if is_high else 1 if square > low * variance else 0
                total += 1 if is_high else 0
            seeds[i] += total
    return seeds


@njit(nogil=True, cache=True)
def _grow(kind):  # type: ignore[no-untyped-def]
    """Make hits (2) of what touches a hit and is above the lower limit, and of what touches these, in place."""
    ny, nx = kind.shape
    stack = [(0, 0)]
    stack.pop()
    for y in range(ny):
        for x in range(nx):
            if kind[y, x] == 2:
                stack.append((y, x))
    while stack:
        y, x = stack.pop()
        for v in range(max(y - 1, 0), min(y + 2, ny)):
            for u in range(max(x - 1, 0), min(x + 2, nx)):
                if kind[v, u] == 1:
                    kind[v, u] = 2
                    stack.append((v, u))
                elif kind[v, u] == 0:
                    kind[v, u] = 3


def _terms(exposures: Exposures, value: np.ndarray) -> tuple[Any, ...]:
    """Offset, plane, value without NaN, adu per unit of the product, read variance and adu per electron."""
    transform = exposures.transform
    plane = np.zeros((1, value.shape[1]), np.float32) if transform.plane is None else transform.plane
    return (
        exposures.levels.level,
        plane,
        np.nan_to_num(value),
        (1 / transform.scale).astype(np.float32),
        (exposures.noise**2).astype(np.float32),
        np.float32(1 / transform.gain),
    )


def find_hits(exposures: Exposures, value: np.ndarray) -> np.ndarray:
    """Pixels (n, y, x) bool that a cosmic ray hit, by comparison with the combined ``value`` (y, x).

    Holds one byte for each pixel of the stack.
    """
    data, box = exposures.data, exposures.amplifier.data
    found = np.empty(data.shape, np.uint8)
    seeds = _above(exposures.counts, (box.y0, box.x0), _terms(exposures, value), found)
    for i in np.flatnonzero(seeds):
        _grow(found[i])
    return found >= 2


def hits_in_each(exposures: Exposures, use: np.ndarray) -> np.ndarray:
    """Pixels (n, y, x) bool that a cosmic ray hit, found in every exposure of ``use`` (n,) by itself."""
    offset, plane, _, _, read, per_electron = _terms(exposures, np.zeros(exposures.data.shape[1:], np.float32))
    gain = 1 / per_electron if per_electron > 0 else np.float32(1)
    hits = np.zeros(exposures.data.shape, bool)
    for i in np.flatnonzero(use):
        image = (exposures.data[i] - offset[i][:, None] - plane) * gain
        variance = read[i] * gain**2 + np.maximum(np.median(image), 0)
        hits[i] = single_frame_hits(image, np.full(image.shape, variance), ~np.isfinite(image))
    return hits


@dataclass(frozen=True)
class Recombined:
    """A combination without its cosmic rays."""

    value: np.ndarray  # (y, x) float32
    variance: np.ndarray  # (y, x) float32
    frames: np.ndarray  # (y, x) uint16
    hits: np.ndarray  # (n,) pixels hit in each exposure


def combine_again(
    exposures: Exposures,
    use: np.ndarray,
    hits: np.ndarray,
    combined: tuple[np.ndarray, np.ndarray, np.ndarray],
    k: float,
) -> Recombined:
    """Combine the pixels that were hit again, without the exposures in which they were.

    Parameters
    ----------
    use : (n,) bool, exposures that take part.
    hits : (n, y, x) bool.
    combined : value, variance and frames (y, x) of the combination by clipped means.
    k : its clip, sigma about that value.
    """
    value, variance, frames = (array.copy() for array in combined)
    rows, columns = np.nonzero(hits[use].any(axis=0))
    offset, plane, _, inverse, read, per_electron = _terms(exposures, value)
    data, scale = exposures.data[use][:, rows, columns].astype(np.float64), exposures.transform.scale[use, None]
    base = np.broadcast_to(plane, value.shape)[rows, columns]
    taken = ((data - offset[use][:, rows]) - base) * scale
    spared = ~hits[use][:, rows, columns]
    centre = np.ma.median(np.ma.masked_array(taken, ~spared), axis=0).filled(0.0)
    for _ in range(2):
        expected = np.maximum(centre * inverse[use, None], 0)
        sigma2 = (read[use, None] + per_electron * expected) * scale**2
        kept = spared & ((taken - centre) ** 2 < k**2 * sigma2)
        weight = kept / sigma2
        total = weight.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weight * taken).sum(axis=0) / total
        centre = np.where(total > 0, mean, centre)
    value[rows, columns] = np.where(total > 0, centre, np.nan)
    with np.errstate(divide="ignore"):
        spread = 1 / (total * clip_variance_factor(k))
    variance[rows, columns] = np.where(total > 0, spread, np.nan)
    frames[rows, columns] = kept.sum(axis=0)
    return Recombined(value, variance, frames, hits.sum(axis=(1, 2)))


def frames_needed(exposures: Exposures, use: np.ndarray, value: np.ndarray) -> float:
    """How many times as many exposures a plain mean would need to be as good, cosmic rays and all.

    The variance that exposures really have about the combination ``value`` (y, x), over that of the noise model.
    """
    offset, plane, signal, inverse, read, per_electron = _terms(exposures, value)
    typical = max(float(np.median(signal)), 0.0)  # the mean of a pixel that was hit is not its dark current
    ratios = []
    for i in np.flatnonzero(use):
        away = exposures.data[i] - offset[i][:, None] - plane - signal * inverse[i]
        model = float(read[i] + per_electron * typical * inverse[i])
        ratios.append(float(np.mean(away.astype(np.float64) ** 2)) / model)
    return float(np.mean(ratios)) / (1 - 1 / use.sum())
