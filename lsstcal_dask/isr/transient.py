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
from scipy.fft import dct

from lsstcal_dask.isr.curves import curve

__all__ = ["Transient", "settle"]

_TIMES: Final = (1.0, 2.0, 4.0, 12.0, 36.0)  # t, rows; what decays at another rate is made of these
_MODELS: Final = np.tri(len(_TIMES))[:, ::-1]  # which are in a model: the slowest, the two slowest ...
_WIDTHS: Final = np.geomspace(1, 1e4, 9)  # of the sizes, over the noise of the mean of a row


@dataclass(frozen=True)
class _Decays:
    """Of size 1, less what the curve takes of them."""

    level: np.ndarray  # (i, y)
    modes: np.ndarray  # (i, k) of the level at rows in use
    level_squares: np.ndarray  # (i * i, y) products of two
    mode_squares: np.ndarray  # (i * i, k)


@dataclass(frozen=True)
class Transient:
    """Of n frames, less what a smooth curve through the same rows takes of it."""

    level: np.ndarray  # (n, y) adu
    modes: np.ndarray  # (n, k) adu, of the level at rows in use
    covariance: np.ndarray  # (n, i, i) adu**2, of the sizes of decays
    decays: _Decays

    def variance(self, left: np.ndarray) -> np.ndarray:
        """Variance (n, y), adu**2, of the level, if of each mode of its error this is ``left`` (n, k).

        Of each decay as much is left in all rows.
        """
        own = self.decays.modes**2
        kept = np.sqrt((left**2 @ own.T) / own.sum(axis=1).clip(1e-300))  # (n, i)
        covariance = kept[:, :, None] * kept[:, None] * self.covariance
        return covariance.reshape(len(left), -1) @ self.decays.level_squares


@lru_cache(maxsize=4)
def _decays(use: bytes, spacing: int) -> _Decays:
    """From the rows in use, (y,) bool, and the rows between the knots of the curve."""
    rows = np.frombuffer(use, bool)
    level = np.exp(-np.arange(len(rows)) / np.array(_TIMES)[:, None])
    level -= curve(level, np.broadcast_to(rows.astype(float), level.shape), spacing, start=False)
    modes = dct(level * rows, norm="ortho", axis=1)
    squares = [(part[:, None] * part).reshape(-1, len(rows)) for part in (level, modes)]
    return _Decays(level, modes, *squares)


def settle(
    modes: np.ndarray, noise: np.ndarray, use: np.ndarray, inverse: np.ndarray | float, spacing: int
) -> Transient:
    """Best estimate of the transient, given the powers of all else.

    Parameters
    ----------
    modes : (n, k) adu, of the residuals of row means about a spline, zero in rows that are not used.
    noise : (n,) adu**2, of a mean.
    use : (y,) bool, rows that are used.
    inverse : (n, k) or one for all, power of all but the transient over that of the noise, inverted.
    spacing : rows between the knots of that spline.
    """
    decays = _decays(use.tobytes(), spacing)
    sizes, covariance = _sizes(modes, noise, decays, np.broadcast_to(inverse, modes.shape))
    return Transient(
        level=sizes @ decays.level,
        modes=sizes @ decays.modes,
        covariance=covariance,
        decays=decays,
    )


def _sizes(modes: np.ndarray, noise: np.ndarray, decays: _Decays, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (n, i) of the decays, adu, and their covariance (n, i, i), averaged over models (m) and widths (w).

    Along the axes of the normal matrix of a model the sizes are independent.
    """
    many, scale = len(decays.level), np.sqrt(noise)[:, None]
    normal = (inverse @ decays.mode_squares.T).reshape(-1, 1, many, many)
    right = (modes * inverse) @ decays.modes.T / scale
    information, axes = np.linalg.eigh(_MODELS[:, :, None] * normal * _MODELS[:, None])  # (n, m, i, i)
    information = np.maximum(information, 0)[..., None]
    axes *= _MODELS[:, :, None]
    seen = np.einsum("nmij,ni->nmj", axes, right)
    variance = _WIDTHS**2 / (1 + _WIDTHS**2 * information)  # (n, m, i, w)
    evidence = 0.5 * (variance * seen[..., None] ** 2 - np.log1p(_WIDTHS**2 * information)).sum(axis=2)
    weight = np.exp(evidence - evidence.max(axis=(1, 2), keepdims=True)) / _WIDTHS
    weight /= weight.sum(axis=(1, 2), keepdims=True)
    each = axes @ (variance * seen[..., None])  # (n, m, i, w), sizes
    sizes = np.einsum("nmiw,nmw->ni", each, weight)
    away = each - sizes[:, None, :, None]
    between = np.einsum("nmiw,nmw,nmkw->nik", away, weight, away, optimize=["einsum_path", (0, 1), (0, 1)])
    scaled = axes * np.sqrt(np.einsum("nmiw,nmw->nmi", variance, weight))[:, :, None]
    within = np.einsum("nmij,nmkj->nik", scaled, scaled)
    return scale * sizes, noise[:, None, None] * (within + between)
