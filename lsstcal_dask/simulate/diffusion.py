"""Clouds of electrons that spread while they drift to the gates: cosmic rays and X-rays (SCIENCE 6, stage 6).

An electron freed at a distance z from the gates of a fully depleted CCD of thickness t lands after a Gaussian walk
of standard deviation ``sigma x sqrt(z / t)`` along rows and along columns. Every electron lands by itself: how many
of a cloud fall into each column, and of those into each row, are multinomial with the integrals of the Gaussian over
the pixels. Positions are CCD pixels, the centre of the first pixel at (0, 0).
"""

from typing import Final

import numpy as np
from scipy.special import ndtr

__all__ = ["diffuse", "pair_energy"]

_REACH: Final = 6.0  # standard deviations that the pixels around a cloud cover on either side


def pair_energy(temperature: float) -> float:
    """Mean energy, eV, to free an electron in silicon at a temperature in K.

    3.654 eV at 270 K with -1.31e-4/K, as adopted by the analysis of LSST's sensors (eotest).
    """
    return 3.654 * (1 - 1.31e-4 * (temperature - 270.0))


def diffuse(
    random: np.random.Generator,
    shape: tuple[int, int],
    x: np.ndarray,
    y: np.ndarray,
    sigma: np.ndarray,
    electrons: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the electrons of many clouds land.

    Parameters
    ----------
    random : their source.
    shape : (ny, nx) of the CCD; electrons that leave it are lost.
    x, y : (cloud,) px, centres.
    sigma : (cloud,) px, standard deviation along either axis; 0 for a point.
    electrons : (cloud,) integer.

    Returns
    -------
    Flat index of each pixel that was struck, and its electrons; a pixel comes as often as clouds reached it.
    """
    if not len(x):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    reach = max(1, int(np.ceil(_REACH * sigma.max())))
    (left, wide), (low, tall) = (_shares(at, sigma, reach) for at in (x, y))
    columns = random.multinomial(electrons, wide)
    counts = random.multinomial(columns, tall[:, None])
    cloud, j, i = np.nonzero(counts)
    column, row = left[cloud] + j, low[cloud] + i
    inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
    return (row * shape[1] + column)[inside], counts[cloud, j, i][inside]


def _shares(at: np.ndarray, sigma: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel (cloud,) of those around each cloud, and the share (cloud, pixel) of it in each."""
    first = np.floor(at + 0.5).astype(np.int64) - reach
    edges = first[:, None] - 0.5 + np.arange(2 * reach + 2)
    below = ndtr((edges - at[:, None]) / np.maximum(sigma, 1e-9)[:, None])
    share = np.diff(below, axis=1)
    return first, share / share.sum(axis=1, keepdims=True)
