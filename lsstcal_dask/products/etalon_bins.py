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

__all__ = ["Binned", "bin_scan", "bin_slices", "blocks_of", "chosen", "split_scan", "thinned"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Binned:
    """Sums of the good pixels of blocks, over the pixels of a whole block."""

    line: Line
    value: Floats  # (wavelength, block)
    variance: Floats
    share: Floats  # (block,) part of its pixels that are good
    at: NDArray[np.intp]  # (block,) its place among those of the whole CCD
    step: int  # px of a block
    size: tuple[int, int]  # of the CCD along y and x, px


def bin_slices(
    line: Line,
    slices: Iterable[tuple[Any, Any]],
    good: NDArray[np.bool_],
    steps: tuple[int, int],
    most: int = 0,
) -> tuple[Binned, Binned]:
    """Sum blocks of slices, one slice after the other: all large ones, and small ones.

    Takes the room of a slice, and 0.35 GB for the sums of 300 slices of a CCD of LSST in blocks of 16 and 8 px.

    Parameters
    ----------
    line : measured centroids and widths of the flats.
    slices : value and variance (y, x) of each.
    good : (y, x) pixels that are good in all slices.
    steps : px of the large blocks, a whole number of small ones, and of these, a fraction of the distance of fringes.
    most : about so many small blocks are kept, one in each cell, for thickness is smooth between; 0: all.

    Raises
    ------
    WrongUse
        Wavelengths unsorted or repeated; blocks that do not fit each other.
    """
    if np.any(np.diff(line.wavelength) <= 0):
        raise WrongUse("etalon: wavelengths of the flats do not ascend: sort them and drop repeated ones")
    factor, rest = divmod(steps[0], steps[1])
    if rest or not factor:
        raise WrongUse(f"etalon: blocks of {steps[0]} px do not consist of blocks of {steps[1]} px: choose others")
    count = _sums(good, steps[1])
    at = chosen(count.ravel(), (count.shape[0], count.shape[1]), most or count.size)
    coarse, size = _sums(count, factor).ravel(), (good.shape[0], good.shape[1])
    large, small = (np.empty((2, len(line.wavelength), n)) for n in (coarse.size, len(at)))
    for k, pair in enumerate(slices):
        for i, one in enumerate(pair):
            sums = _sums(np.where(good, one, 0.0), steps[1])
            large[i, k], small[i, k] = _sums(sums, factor).ravel(), sums.ravel()[at]
    return (
        _whole(line, large, (coarse, np.arange(coarse.size)), steps[0], size),
        _whole(line, small, (count.ravel()[at], at), steps[1], size),
    )


def _whole(
    line: Line, sums: Floats, blocks: tuple[Floats, NDArray[np.intp]], step: int, size: tuple[int, int]
) -> Binned:
    sums /= step**2
    return Binned(line, sums[0], sums[1], blocks[0] / step**2, blocks[1], step, size)


def chosen(share: Floats, shape: tuple[int, int], most: int) -> NDArray[np.intp]:
    """About so many of the blocks that have a good pixel, one anywhere in each cell of a mesh; all, if they are few.

    Blocks drawn from all over the CCD alike would leave holes as large as splines can bend in.

    Parameters
    ----------
    share : (block,) part of its pixels that are good.
    shape : blocks along y and x.
    """
    if share.size <= most:
        return np.arange(share.size)
    rows = int(np.clip(np.sqrt(most * shape[0] / shape[1]), 1, shape[0]))
    columns = int(np.clip(most // rows, 1, shape[1]))
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(share > 0))
    y, x = np.divmod(drawn, shape[1])
    cell = y * rows // shape[0] * columns + x * columns // shape[1]
    return np.sort(drawn[np.unique(cell, return_index=True)[1]])


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
    count, used = binned.share, binned.share > 0
    level, noise = (a / np.maximum(count, 1e-9) for a in (binned.value, binned.variance))
    if not used.any() or not (level[:, used] > 0).all():
        raise InsufficientInputs("etalon: flats without light or without a good pixel: leave out those wavelengths")
    level[:, ~used] = 1.0
    weight = 1 / (np.median(noise[:, used] / level[:, used] ** 2, axis=1) / binned.step**2 + model**2)
    middles = [_middles(n, binned.step) for n in binned.size]
    up, across = (c.ravel()[binned.at] for c in np.meshgrid(*middles, indexing="ij"))
    whole = len(middles[0]), len(middles[1])
    shape = whole if len(binned.at) == whole[0] * whole[1] else (1, len(binned.at))
    return Blocks(binned.line, np.log(level), weight, count, shape, (up, across), binned.size)


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
    return blocks_of(bin_slices(line, *split_scan(line, value, variance), (step, step))[0], model)


def split_scan(line: Line, value: Any, variance: Any) -> tuple[Iterable[tuple[Any, Any]], NDArray[np.bool_]]:
    """Slices of a scan (wavelength, y, x), and the pixels that are good in all; raises InconsistentGeometry."""
    value = np.asarray(value)
    if value.shape != np.shape(variance) or value.ndim != 3 or len(value) != len(line.wavelength):
        raise InconsistentGeometry(
            f"etalon: {len(line.wavelength)} wavelengths, values {value.shape}, variances {np.shape(variance)}: "
            "give (wavelength, y, x)"
        )
    return zip(value, variance, strict=True), np.isfinite(value).all(axis=0)


def thinned(blocks: Blocks, at: NDArray[np.intp]) -> Blocks:
    """Some of the blocks."""
    y, x = (c[at] for c in blocks.centre)
    return replace(blocks, value=blocks.value[:, at], share=blocks.share[at], shape=(1, len(at)), centre=(y, x))
