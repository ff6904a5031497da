"""Principal components of the fringes of sky frames (§13, backup; Lupton 2016, Sec. 2.9).

``r_fp = sum_k c_fk m_kp`` for the relative sky r of frame f and pixel p, each with its weight, none where masked; the
coefficients c are common to all CCDs of a frame, the maps m a CCD's own. Solved by turns for c and m (the EM algorithm
for missing data: Roweis 1998, Bailey 2012); what is smooth over a CCD has been taken out before (`fringes.relative`).
How many maps there are is what predicts held-out pixels best.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.errors import InsufficientInputs

__all__ = ["Modes", "choose_modes", "coefficients", "fringe_modes", "maps_of"]

Floats = NDArray[np.float64]

_FEWEST: Final = 10  # frames
_TURNS: Final = 60
_STILL: Final = 1e-5  # change of chi2 at which the turns end
_FOLDS: Final = 5
_TILE: Final = 8  # pixels held out together along a row


@dataclass(frozen=True, eq=False)
class Modes:
    """Maps and what each frame has of them."""

    maps: tuple[Floats, ...]  # (mode, pixel) of each CCD, orthonormal over all of them
    coefficients: Floats  # (frame, mode)
    chi2: float


def _values(data: Any, weight: Any) -> tuple[list[Floats], list[Floats]]:
    weights = [np.asarray(w, float) for w in weight]
    return [np.where(w > 0, np.asarray(d, float), 0.0) for d, w in zip(data, weights, strict=True)], weights


def _products(columns: Floats, weight: Floats) -> Floats:
    """Normal matrices (n, k, k) of columns (m, k), one for each set of weights (m, n)."""
    pairs = np.einsum("mk,ml->mkl", columns, columns).reshape(len(columns), -1)
    return (weight.T @ pairs).reshape(-1, columns.shape[1], columns.shape[1])


def coefficients(maps: Any, data: Any, weight: Any) -> tuple[Floats, Floats]:
    """Coefficients (frame, mode) common to all CCDs, and their covariance (frame, mode, mode).

    Parameters
    ----------
    maps : (mode, pixel) of each CCD.
    data, weight : (frame, pixel) of each CCD, relative sky and 1 / variance, 0 where masked.

    Raises
    ------
    InsufficientInputs
        A frame has no good pixel.
    """
    data, weights = _values(data, weight)
    normal: Any = sum(_products(np.asarray(m).T, w.T) for m, w in zip(maps, weights, strict=True))
    right: Any = sum((w * d) @ m.T for m, d, w in zip(maps, data, weights, strict=True))
    if len(empty := np.flatnonzero(normal[:, 0, 0] <= 0)):
        raise InsufficientInputs(f"fringes: frame {empty[0]} has no good pixel with fringes: leave it out")
    return np.linalg.solve(normal, right[..., None])[..., 0], np.linalg.inv(normal)


def maps_of(c: Any, data: Any, weight: Any) -> tuple[Floats, Floats]:
    """Maps (mode, pixel) of a CCD for coefficients (frame, mode), and their variance; NaN where frames do not tell all.

    Parameters
    ----------
    data, weight : (frame, pixel), as for `fringe_modes`.
    """
    c, weight = np.asarray(c, float), np.asarray(weight, float)
    normal = _products(c, weight)
    right = np.where(weight > 0, weight * np.where(weight > 0, data, 0.0), 0.0).T @ c
    scale = np.trace(normal, axis1=1, axis2=2).max()
    told = np.linalg.eigvalsh(normal)[:, 0] > 1e-9 * scale
    found, variance = np.full((2, *right.shape), np.nan)
    found[told] = np.linalg.solve(normal[told], right[told][..., None])[..., 0]
    variance[told] = np.diagonal(np.linalg.inv(normal[told]), axis1=1, axis2=2)
    return found.T, variance.T


def _maps(c: Floats, data: Floats, weight: Floats) -> Floats:
    """The same maps, zero where they are not told."""
    return np.nan_to_num(maps_of(c, data, weight)[0])


def _start(data: list[Floats], count: int) -> Floats:
    """Coefficients of the largest modes with masked pixels at zero."""
    gram = sum(d @ d.T for d in data)
    values, vectors = np.linalg.eigh(np.asarray(gram))
    return vectors[:, ::-1][:, :count] * np.sqrt(np.maximum(values[::-1][:count], 1e-300))


def _ordered(maps: list[Floats], c: Floats) -> tuple[list[Floats], Floats]:
    """The same products with maps orthonormal over the field, the strongest first."""
    whole = np.concatenate(maps, axis=1)
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    turn, size, mix = np.linalg.svd((c @ u) * s, full_matrices=False)
    ends = np.cumsum([m.shape[1] for m in maps])[:-1]
    return np.split(mix @ v, ends, axis=1), turn * size


def fringe_modes(data: Any, weight: Any, count: int) -> Modes:
    """Find maps of fringes.

    Parameters
    ----------
    data, weight : (frame, pixel) of each CCD, relative sky and 1 / variance, 0 where masked.
    count : of the maps.

    Raises
    ------
    InsufficientInputs
        Fewer than ten frames, or no more frames than maps.
    """
    data, weights = _values(data, weight)
    frames = len(data[0])
    if frames < _FEWEST or count >= frames:
        raise InsufficientInputs(f"fringes: {frames} frames for {count} maps: give at least {max(_FEWEST, count + 1)}")
    c, before = _start(data, count), np.inf
    for _ in range(_TURNS):
        maps = [_maps(c, d, w) for d, w in zip(data, weights, strict=True)]
        c, _ = coefficients(maps, data, weights)
        chi2 = float(sum(np.sum(w * (d - c @ m) ** 2) for d, w, m in zip(data, weights, maps, strict=True)))
        if before - chi2 < _STILL * chi2:
            break
        before = chi2
    maps, c = _ordered(maps, c)
    return Modes(tuple(maps), c, chi2)


def choose_modes(data: Any, weight: Any, most: int = 6, seed: int = 0) -> tuple[int, Floats]:
    """Number of maps by cross-validation: pixels of each frame are held out in turn and predicted from the others.

    Parameters
    ----------
    most : maps that are tried.
    seed : of the choice which pixels are held out.

    Returns
    -------
    The smallest number whose error is within a standard error of the best one, and the weighted mean square errors
    (most,) of 1, 2 ... maps.
    """
    data, weights = _values(data, weight)
    most = min(most, len(data[0]) - 1)
    folds = [_fold(w.shape, np.random.default_rng([seed, i])) for i, w in enumerate(weights)]
    errors = np.zeros((_FOLDS, most))
    for fold in range(_FOLDS):
        kept = [np.where(f == fold, 0.0, w) for f, w in zip(folds, weights, strict=True)]
        for count in range(1, most + 1):
            found = fringe_modes(data, kept, count)
            held = [np.where(f == fold, w, 0.0) for f, w in zip(folds, weights, strict=True)]
            missed = sum(
                np.sum(w * (d - found.coefficients @ m) ** 2) for d, w, m in zip(data, held, found.maps, strict=True)
            )
            errors[fold, count - 1] = float(missed) / sum(float((w > 0).sum()) for w in held)
    mean = errors.mean(axis=0)
    best = int(np.argmin(mean))
    spread = np.std(errors - errors[:, [best]], axis=0, ddof=1) / np.sqrt(_FOLDS)
    return int(np.flatnonzero(mean <= mean[best] + spread)[0]) + 1, mean


def _fold(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each pixel: runs of a few pixels go together, for their noise may be correlated."""
    runs = -(-shape[1] // _TILE)
    return np.repeat(random.integers(0, _FOLDS, (shape[0], runs)), _TILE, axis=1)[:, : shape[1]]
