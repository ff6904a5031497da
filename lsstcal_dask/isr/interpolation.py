"""Values for pixels that have none, from their neighbours (Lupton 2016, Sec. 3.5).

The best linear prediction of a pixel from those around it: with the covariance K between pixels that stars of a
Gaussian profile have, ``exp(-r**2 / (4 sigma**2))``, the noise N of a pixel relative to them, and a mean that is not
known but the same for all of the window,

    value = w . neighbours,    (K + N) w + m = k,    sum(w) = 1

(ordinary kriging). The weights depend on which neighbours are good, and on nothing else: bad columns and single
pixels have a few patterns, and each is solved once. A pixel with hardly a good neighbour, in the middle of a wide
bleed trail, lies on the straight line between the nearest good pixels of its row.

What is filled in is for the eye, and for the charge that moves pixel boundaries. It carries the mask bit INTERPOLATED
and a variance not below that of the pixels it came from, nor below its own; it is no measurement.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["InterpolationConfig", "interpolate", "predict"]

_REACH: Final = 5  # pixels, beyond which a neighbour tells nothing: 3.5 widths of a star
_FEWEST: Final = 4  # good neighbours that make a prediction
_FILLED: Final = MASK_BITS["BAD"] | MASK_BITS["SATURATED"] | MASK_BITS["COSMIC_RAY"]


class InterpolationConfig(BaseModel):
    """What the image is taken to look like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: float = Field(1.5, gt=0.3, le=10, description="px, width of a star's profile: 0.7 arcsec at 0.2 arcsec/px")
    noise: float = Field(
        0.01, gt=0, le=10, description="variance of the noise of a pixel over that of what stars make of the image"
    )


def interpolate(frame: Frame, config: InterpolationConfig = InterpolationConfig()) -> Frame:
    """Fill the pixels that are BAD, SATURATED or hit by a COSMIC_RAY; they are INTERPOLATED then.

    Pixels with NO_DATA stay NaN. Amplifiers are filled each by itself.
    """
    if not (frame.mask & _FILLED).any():
        return frame
    image, variance, mask = frame.image.copy(), frame.variance.copy(), frame.mask.copy()
    for i, amplifier in enumerate(frame.detector.amplifiers):
        ny, nx = amplifier.data.shape
        box = i, slice(0, ny), slice(0, nx)
        lost = mask[box] & MASK_BITS["NO_DATA"] > 0
        wanted = (mask[box] & _FILLED > 0) & ~lost
        if wanted.any():
            filled, errors, done = predict(image[box], variance[box], wanted, lost, config)
            image[box], variance[box] = filled, np.fmax(errors, variance[box])
            mask[box] |= np.where(done & np.isfinite(filled), MASK_BITS["INTERPOLATED"], 0).astype(np.uint16)
    return frame.with_(image=image, variance=variance, mask=mask)


def predict(
    image: np.ndarray,
    variance: np.ndarray,
    wanted: np.ndarray,
    lost: np.ndarray,
    config: InterpolationConfig = InterpolationConfig(),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict pixels of one image (y, x) from those that are neither ``wanted`` nor ``lost``.

    Returns
    -------
    Image and variance, copies, and whether a pixel was predicted: one in whose window and row nothing is good stays as
    it was.
    """
    good = ~(wanted | lost)
    rows, columns = np.nonzero(wanted)
    padded_good = np.pad(good, _REACH)
    values = np.pad(np.where(good, image, 0.0).astype(np.float64), _REACH)
    errors = np.pad(np.where(good, variance, 0.0), _REACH)
    offsets = _offsets()
    near = rows[:, None] + _REACH + offsets[:, 0], columns[:, None] + _REACH + offsets[:, 1]
    there = padded_good[near]
    patterns, pattern_of = np.unique(np.packbits(there, axis=1), axis=0, return_inverse=True)
    image, variance = image.copy(), variance.copy()
    # The mean of the neighbours is taken off first: weights of sum 1 then lose nothing of large levels.
    count = there.sum(axis=1)
    level = (values[near] * there).sum(axis=1) / np.maximum(count, 1)
    order = np.argsort(pattern_of, kind="stable")
    for pattern, at in zip(patterns, np.split(order, np.cumsum(np.bincount(pattern_of))[:-1]), strict=True):
        if count[at[0]] < _FEWEST:
            continue
        weights = _weights(pattern.tobytes(), config.sigma, config.noise)
        found = (values[near[0][at], near[1][at]] - level[at, None]) @ weights + level[at]
        image[rows[at], columns[at]] = found
        variance[rows[at], columns[at]] = errors[near[0][at], near[1][at]].max(axis=1)
    for y in np.unique(rows[count < _FEWEST]):
        _fill_row(image[y], variance[y], good[y], columns[(rows == y) & (count < _FEWEST)])
    done = np.zeros(good.shape, bool)
    done[rows, columns] = (count >= _FEWEST) | good.any(axis=1)[rows]
    return image, variance, done


def _offsets() -> np.ndarray:
    """Places (n, 2) of the neighbours in the window: y, x."""
    y, x = np.mgrid[-_REACH : _REACH + 1, -_REACH : _REACH + 1].reshape(2, -1)
    return np.stack([y, x], axis=1)[(y != 0) | (x != 0)]


@lru_cache(maxsize=16384)  # of 1 kB; the defects of a CCD are those of every exposure
def _weights(pattern: bytes, sigma: float, noise: float) -> np.ndarray:
    """Weights (n,) of the neighbours that a pattern, one bit for each, has."""
    offsets = _offsets()
    there = np.unpackbits(np.frombuffer(pattern, np.uint8), count=len(offsets)).astype(bool)
    chosen = offsets[there].astype(float)
    apart = ((chosen[:, None] - chosen) ** 2).sum(axis=-1)
    n = len(chosen)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = np.exp(-apart / (4 * sigma**2)) + noise * np.eye(n)
    system[n, n] = 0
    right = np.append(np.exp(-(chosen**2).sum(axis=1) / (4 * sigma**2)), 1.0)
    weights = np.zeros(len(offsets))
    weights[there] = np.linalg.solve(system, right)[:n]
    weights.flags.writeable = False
    return weights


def _fill_row(image: np.ndarray, variance: np.ndarray, good: np.ndarray, columns: np.ndarray) -> None:
    """Straight lines between the good pixels of a row, in place; one without any stays as it was."""
    places = np.flatnonzero(good)
    if len(places):
        right = np.minimum(np.searchsorted(places, columns), len(places) - 1)
        left = np.maximum(right - 1, 0)
        image[columns] = np.interp(columns, places, image[places])
        variance[columns] = np.maximum(variance[places[left]], variance[places[right]])
