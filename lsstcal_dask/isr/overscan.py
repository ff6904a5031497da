"""The electronic offset of each row, from the serial overscan (Lupton 2016, Sec. 3.1).

Row means of the reference pixels are made robust against cosmic rays and bleeding charge: rows are left out that lie
off a cubic spline whose knots are dense at the first rows. The level is a coarser spline, even in its knots, plus the
best estimate of what it leaves: how the amplifier settles, a wander, and what each row does by itself.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.curves import curve, spline
from lsstcal_dask.isr.wander import follow_wander
from lsstcal_dask.statistics.robust import row_medians
from lsstcal_dask.statistics.stacks import lines
from lsstcal_dask.statistics.vectors import LANES, VERSION, compiled, fetch, get, load_counts, spread, sum_of

__all__ = ["OverscanConfig", "RowLevels", "parallel_means", "parallel_pixels", "reference_pixels", "row_levels"]


class OverscanConfig(BaseModel):
    """How the level of each row is found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["spline", "row", "mean", "none"] = "spline"
    skip: int = Field(3, ge=0, description="reference columns next to the data left out: deferred charge")
    clip: float = Field(5.0, gt=2, description="pixels and rows further off than this many sigma are left out")
    knots: int = Field(100, ge=8, description="rows between the knots of the spline")


@dataclass(frozen=True)
class RowLevels:
    """Levels of the rows of n frames of one amplifier."""

    level: np.ndarray  # (n, y) float32, adu; NaN where a frame has no usable row
    variance: np.ndarray  # (n, y) float32, adu**2, of the level: common to the pixels of a row
    read_noise: np.ndarray  # (n,) float64, adu, from the scatter within rows (rounding included)
    rejected: np.ndarray  # (n,) int, rows left out


_COARSE: Final = 2
"""Spacings of the knots of the spline that finds outliers, between those of the one that is left."""

_AHEAD: Final = 24  # rows that are asked of memory before they are needed: they lie far apart


def _compile(version: int) -> Any:
    """Give the kernel; its cache on disk notices another ``version`` of its parts, being a closure of it."""

    @compiled
    def sums(line, starts, step, shape):  # type: ignore[no-untyped-def]
        """Mean (n, y) and sum of squared deviations (n, y) of the pixels of each row.

        Frame i begins at ``starts[i]`` of the line of pixels, its rows are ``step`` apart and at least a vector long.
        Deviations are from the middle pixel of the row: of integers they are exact.
        """
        _ = version
        ny, nx = shape
        mean, squares = np.empty((len(starts), ny)), np.empty((len(starts), ny))
        whole, rest = nx - nx % LANES, nx % LANES
        lane = np.zeros(LANES, np.float32)
        lane[LANES - rest :] = 1.0  # of the last vector, the lanes that were in none before
        last, end = get(lane, np.uint64(0)), np.uint64(nx - LANES)
        for i in range(len(starts)):
            for y in range(ny):
                first = np.uint64(starts[i] + y * step)
                ahead = np.uint64(first + np.uint64(_AHEAD * step))
                for x in range(0, nx, 32):
                    fetch(line, ahead + np.uint64(x))
                fetch(line, ahead + np.uint64(nx - 1))
                c = np.float32(line[first + np.uint64(nx // 2)])
                centre, total, total2 = spread(c), spread(np.float32(0)), spread(np.float32(0))
                for x in range(0, whole, LANES):
                    deviation = load_counts(line, first + np.uint64(x)) - centre
                    total += deviation
                    total2 += deviation * deviation
                if rest:
                    deviation = (load_counts(line, first + end) - centre) * last
                    total += deviation
                    total2 += deviation * deviation
                sum1 = np.float64(sum_of(total))
                mean[i, y] = np.float64(c) + sum1 / nx
                squares[i, y] = np.float64(sum_of(total2)) - sum1 * (sum1 / nx)
        return mean, squares

    return sums


_sums = _compile(VERSION)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _row_moments(line, starts, step, nx, centre, reach):  # type: ignore[no-untyped-def]
    """Mean, sum of squared deviations and number of the pixels of each row within ``reach`` of ``centre``."""
    n, ny = centre.shape
    mean = np.empty((n, ny))
    squares = np.empty((n, ny))
    used = np.empty((n, ny), np.int64)
    for place in range(n * ny):
        i, y = place // ny, place % ny
        first = starts[i] + y * step
        row, c, r = line[first : first + nx], centre[i, y], reach[i]
        total, total2, count = 0.0, 0.0, 0.0
        for x in range(nx):
            deviation = np.float64(row[x]) - c
            kept = abs(deviation) <= r
            deviation = deviation if kept else 0.0
            count += 1.0 if kept else 0.0
            total += deviation
            total2 += deviation * deviation
        used[i, y] = int(count)
        mean[i, y] = c + total / count
        squares[i, y] = total2 - total * (total / count)
    return mean, squares, used


def _all_moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, sum of squared deviations and number (n, y) of the pixels of each row that are not NaN."""
    n, ny, nx = pixels.shape
    if nx >= LANES:
        mean, squares = _sums(*lines(pixels), (ny, nx))
        if not np.isnan(squares.sum()):
            return mean, squares, np.full((n, ny), nx)
    start = pixels[:, :, nx // 2].astype(np.float64)
    return _row_moments(*lines(pixels), nx, start, np.full(n, np.inf))


def _robust_rows(pixels: np.ndarray, clip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row means (n, y) free of outliers, pixels used (n, y), noise of a pixel and its clean rows' count (n,)."""
    nu = pixels.shape[2] - 1
    mean, squares, used = _all_moments(pixels)
    # The median of chi2_nu / nu is (1 - 2 / (9 nu))**3 (Wilson-Hilferty); a few bad rows cannot move it.
    sigma = np.sqrt(row_medians(squares.astype(np.float32)).astype(float) / nu / (1 - 2 / (9 * nu)) ** 3)
    dirty = squares > sigma[:, None] ** 2 * (nu + clip * np.sqrt(2 * nu))
    for i in np.flatnonzero(dirty.any(axis=1)):
        bad = pixels[i][dirty[i]][None]
        centre, reach = np.median(bad, axis=-1), np.array([clip * sigma[i] + 0.5])
        for _ in range(2):
            clipped, _, kept = _row_moments(*lines(bad), nu + 1, centre, reach)
            centre = np.where(kept > 0, clipped, centre)
        mean[i, dirty[i]], used[i, dirty[i]] = clipped[0], kept[0]
    clean = ~dirty
    rows = np.maximum(clean.sum(axis=1), 1)
    sigma = np.sqrt((squares * clean).sum(axis=1) / (rows * nu))
    return mean, used, sigma, clean.sum(axis=1)


def _usable_rows(mean: np.ndarray, weight: np.ndarray, fit: np.ndarray, config: OverscanConfig) -> np.ndarray:
    """Rows (n, y) that lie on a smooth curve such as ``fit``; those under bleeding charge or a cosmic ray do not.

    Where some do not it starts again from the median row and down-weights by Cauchy's law, so that a minority
    of rows, however far off and however many side by side, cannot drag the curve.
    """
    usable = _inliers(mean, weight, fit, config.clip)
    doubtful = np.flatnonzero((~usable).any(axis=1))
    if len(doubtful):
        some, heavy = mean[doubtful], weight[doubtful]
        fit = np.broadcast_to(np.median(some, axis=1)[:, None], some.shape)
        for _ in range(8):
            pull2, spread = _pulls(some, heavy, fit)
            fit = curve(some, heavy / (1 + pull2 / (4 * spread)), config.knots)
        usable[doubtful] = _inliers(some, heavy, fit, config.clip)
    return usable


def _pulls(mean: np.ndarray, weight: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared pulls (n, y) and their robust scale (n, 1): jitter common to every row must not reject rows."""
    pull2 = (mean - fit) ** 2 * weight
    return pull2, np.maximum(1.0, np.median(pull2, axis=1) / 0.455)[:, None]


def _inliers(mean: np.ndarray, weight: np.ndarray, fit: np.ndarray, clip: float) -> np.ndarray:
    some = weight > 0
    if ((mean - fit) ** 2 * weight <= clip**2).all():  # their scale is at least 1
        return some
    pull2, spread = _pulls(mean, weight, fit)
    return some & (pull2 <= clip**2 * spread)


def _smooth(mean: np.ndarray, used: np.ndarray, sigma: np.ndarray, config: OverscanConfig) -> RowLevels:
    enough = used >= 2
    mean = mean if enough.all() else np.where(enough, mean, 0.0)
    own = np.maximum(sigma[:, None], 1e-6) ** 2 / np.maximum(used, 1)
    weight = enough / own
    fit = curve(mean, weight, config.knots)
    good = _usable_rows(mean, weight, fit, config)
    # The trend alone: what is faster is better told from noise by its spectrum, and the start by its shape.
    coarse = _COARSE * config.knots
    fit, unsure, freedom = spline(mean, weight * good, coarse, start=False)
    rows = good.sum(axis=1)
    more, spread = follow_wander(mean - fit, good, own, freedom, coarse)
    level, variance = fit + more, unsure + spread
    level[rows < freedom] = np.nan
    return RowLevels(level.astype(np.float32), variance.astype(np.float32), sigma, mean.shape[1] - rows)


def reference_pixels(counts: np.ndarray, amplifier: Amplifier) -> np.ndarray:
    """Serial reference pixels (..., y, x) beside the data rows of raw counts (..., y, x); no columns if it has none."""
    box = amplifier.overscan
    return counts[..., amplifier.data.y0 : amplifier.data.y1, box.x0 : box.x1]


def parallel_pixels(counts: np.ndarray, amplifier: Amplifier, config: OverscanConfig) -> np.ndarray:
    """Pixels read after the last row, of each data column, above the serial overscan of their rows.

    Parameters
    ----------
    counts : (n, raw y, raw x), adu.
    config : its ``skip`` rows, which hold charge that came late, are left out, as of the columns.

    Returns
    -------
    (n, x, row) float32, adu: to be levelled as rows are; NaN in one row where there is no parallel overscan.
    """
    if not _has_parallel(amplifier, config):
        return np.full((len(counts), amplifier.data.shape[1], 1), np.nan, np.float32)
    below, beside = _parallel_boxes(counts, amplifier, config)
    pixels = below - beside.mean(axis=2, dtype=float)[:, :, None]
    return np.ascontiguousarray(np.swapaxes(pixels, 1, 2), np.float32)


def parallel_means(counts: np.ndarray, amplifier: Amplifier, config: OverscanConfig, use: np.ndarray) -> np.ndarray:
    """Mean (x,) float32, adu, of `parallel_pixels` over their rows and the frames in ``use`` (n,) bool."""
    if not _has_parallel(amplifier, config):
        return np.full(amplifier.data.shape[1], np.nan, np.float32)
    boxes = _parallel_boxes(counts, amplifier, config)
    below, beside = boxes if use.all() else (box[use] for box in boxes)
    return np.asarray(below.mean(axis=(0, 1), dtype=float) - beside.mean(dtype=float), np.float32)


def _has_parallel(amplifier: Amplifier, config: OverscanConfig) -> bool:
    return min(amplifier.parallel_overscan.shape[0], amplifier.overscan.shape[1]) > config.skip


def _parallel_boxes(counts: np.ndarray, amplifier: Amplifier, config: OverscanConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the parallel overscan in use, under the data columns and in the serial overscan, (n, row, x) each."""
    data, box, beside = amplifier.data, amplifier.parallel_overscan, amplifier.overscan
    rows = counts[:, box.y0 + config.skip : box.y1]
    return rows[:, :, data.x0 : data.x1], rows[:, :, beside.x0 + config.skip : beside.x1]


def row_levels(pixels: np.ndarray, config: OverscanConfig = OverscanConfig()) -> RowLevels:
    """Level of every row of a stack of frames of one amplifier (Sec. 3.1).

    Parameters
    ----------
    pixels : (n, y, x) counts of the reference pixels, adu; no columns where the sensor has none.
    config : method and limits.

    Returns
    -------
    RowLevels; zero levels with NaN noise where there are no reference pixels or the method is ``none``.
    """
    n, ny, nx = pixels.shape
    skip = config.skip if nx > 4 * config.skip else 0
    pixels = pixels[:, :, skip:]
    if nx < 2 or config.method == "none":
        zero = np.zeros((n, ny), np.float32)
        return RowLevels(zero, zero, np.full(n, np.nan), np.zeros(n, int))
    mean, used, sigma, _ = _robust_rows(pixels, config.clip)
    if config.method == "spline" and ny > 8:
        return _smooth(mean, used, sigma, config)
    own = sigma[:, None] ** 2 / np.maximum(used, 1)
    if config.method == "mean" or (config.method == "spline" and ny <= 8):
        mean = np.broadcast_to(np.nanmedian(mean, axis=1)[:, None], mean.shape)
        own = np.broadcast_to(1.57 * own.mean(axis=1, keepdims=True) / ny, mean.shape)
    rejected = np.zeros(n, int)
    return RowLevels(mean.astype(np.float32), own.astype(np.float32), sigma, rejected)
