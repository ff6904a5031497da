"""Block averages of a scan of monochromatic flats, for `etalon_fit` (Lupton 2016, Sec. 2.9).

A slice goes as soon as its blocks are summed, so that a scan of any number of wavelengths needs the room of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs, WrongUse
from lsstcal_dask.physics.etalon_table import Line
from lsstcal_dask.products.etalon_problem import Prior
from lsstcal_dask.products.etalon_start import Blocks

__all__ = ["Binned", "bin_scan", "bin_slices", "blocks_of", "coarser", "split_scan", "thinned"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Binned:
    """Sums of the good pixels of blocks, over the pixels of a whole block."""

    line: Line
    value: Floats  # (wavelength, block along y, along x)
    variance: Floats
    share: Floats  # (block along y, along x) part of its pixels that are good
    step: int  # px of a block
    size: tuple[int, int]  # of the CCD along y and x, px


def bin_slices(line: Line, slices: Iterable[tuple[Any, Any]], good: NDArray[np.bool_], step: int) -> Binned:
    """Sum blocks of slices, one after the other.

    Parameters
    ----------
    line : measured centroids and widths of the flats.
    slices : value and variance (y, x) of each.
    good : (y, x) pixels that are good in all slices.
    step : px of a block, a fraction of the distance of fringes.

    Raises
    ------
    WrongUse
        Wavelengths unsorted or repeated.
    """
    if np.any(np.diff(line.wavelength) <= 0):
        raise WrongUse("etalon: wavelengths of the flats do not ascend: sort them and drop repeated ones")
    sums = np.array([[_sums(np.where(good, one, 0.0), step) for one in pair] for pair in slices]) / step**2
    return Binned(line, sums[:, 0], sums[:, 1], _sums(good, step) / step**2, step, (good.shape[0], good.shape[1]))


def coarser(binned: Binned, factor: int) -> Binned:
    """The same with blocks of ``factor`` by ``factor`` blocks."""

    def joined(values: Floats) -> Floats:
        return _sums(values, factor) / factor**2

    value, variance = joined(binned.value), joined(binned.variance)
    return replace(binned, value=value, variance=variance, share=joined(binned.share), step=binned.step * factor)


def _sums(values: Any, step: int) -> Floats:
    """Sums over ``step`` by ``step`` elements of the last two axes; the last ones may be smaller."""
    for axis in (-2, -1):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], step), axis=axis, dtype=float)
    return np.asarray(values, np.float64)


def blocks_of(binned: Binned, model: float = Prior.model) -> Blocks:
    """Logarithms of the blocks and what each wavelength weighs.

    Parameters
    ----------
    model : relative error that is added to the noise of a block.

    Raises
    ------
    InsufficientInputs
        No light, or no good pixel.
    """
    count, shape = binned.share.ravel(), binned.share.shape
    used = count > 0
    level, noise = (a.reshape(len(a), -1) / np.maximum(count, 1e-9) for a in (binned.value, binned.variance))
    if not used.any() or not (level[:, used] > 0).all():
        raise InsufficientInputs("etalon: flats without light or without a good pixel: leave out those wavelengths")
    level[:, ~used] = 1.0
    weight = 1 / (np.median(noise[:, used] / level[:, used] ** 2, axis=1) / binned.step**2 + model**2)
    up, across = (c.ravel() for c in np.meshgrid(*(_middles(n, binned.step) for n in binned.size), indexing="ij"))
    return Blocks(binned.line, np.log(level), weight, count, (shape[0], shape[1]), (up, across), binned.size)


def _middles(length: int, step: int) -> Floats:
    start = np.arange(0, length, step)
    return np.asarray((start + np.minimum(start + step, length) - 1) / 2)


def bin_scan(line: Line, value: Any, variance: Any, step: int, model: float = Prior.model) -> Blocks:
    """Average a scan of a CCD over blocks.

    Parameters
    ----------
    value, variance : (wavelength, y, x); NaN where bad.
    line, step, model : as for `bin_slices` and `blocks_of`.

    Raises
    ------
    InconsistentGeometry, WrongUse, InsufficientInputs
        Shapes that differ, wavelengths unsorted or repeated, no light, no good block.
    """
    return blocks_of(bin_slices(line, *split_scan(line, value, variance), step), model)


def split_scan(line: Line, value: Any, variance: Any) -> tuple[Iterable[tuple[Any, Any]], NDArray[np.bool_]]:
    """Slices of a scan (wavelength, y, x), and the pixels that are good in all; raises InconsistentGeometry."""
    value = np.asarray(value)
    if value.shape != np.shape(variance) or value.ndim != 3 or len(value) != len(line.wavelength):
        raise InconsistentGeometry(
            f"etalon: {len(line.wavelength)} wavelengths, values {value.shape}, variances {np.shape(variance)}: "
            "give (wavelength, y, x)"
        )
    return zip(value, variance, strict=True), np.isfinite(value).all(axis=0)


def thinned(blocks: Blocks, most: int) -> Blocks:
    """At most so many of the blocks, spread over the CCD without a pattern; thickness is smooth between them."""
    used = np.flatnonzero(blocks.share > 0)
    chosen = np.sort(np.random.default_rng(0).permutation(used)[:most])
    y, x = (c[chosen] for c in blocks.centre)
    return replace(
        blocks, value=blocks.value[:, chosen], share=blocks.share[chosen], shape=(1, len(chosen)), centre=(y, x)
    )
