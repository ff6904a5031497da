"""Where charge stops staying in its pixel, seen in images and in ladders of spots (Lupton 2016, Sec. 2.5; ¶7).

A saturated pixel spills, and all pixels of its trail hold the full well: a run of pixels along a column whose scatter
is far below that of as much light. If packets of the serial register hold less than that, trails read as full as
those, and what is too much follows in the order of reading: streaks along rows. A ladder of spots shows a full well
from below: the peak follows the light until it reaches it (DMTN-101).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import njit
from scipy.ndimage import label

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.statistics import robust_sigma

__all__ = [
    "clipped_counts",
    "full_frame",
    "lowest_frame",
    "lowest_level",
    "plateau_runs",
    "register_spills",
    "row_lean",
    "spot_break",
]

_LONG: Final = 8
"""Pixels of a plateau, ends left out: as many of a flat scatter so little once in a million."""

_QUIET: Final = 0.2
"""Scatter of a plateau over the shot noise of its level, at most."""

_SPILL: Final = 0.02
"""Relative excess of the column read after a trail over the one before it that only the register makes."""

_AGREE: Final = 0.02
"""Relative: levels of plateaus that belong to the same full well."""


@njit(nogil=True, cache=True)
def _runs(lines, noise, floor, out):  # type: ignore[no-untyped-def]
    """Plateaus along the second axis of (line, pixel), as level, pixels, variance, level of the line on either side."""
    found, (count, length) = 0, lines.shape
    for i in range(count):
        line, start = lines[i], 0
        while start < length:
            stop = start + 1
            if line[start] > floor:
                limit = max(4 * noise, 0.02 * line[start])  # to either side of the first pixel
                while stop < length and abs(line[stop] - line[start]) < limit:
                    stop += 1
            if stop - start > 4 and found < len(out):
                middle = line[start + 1 : stop - 1]
                out[found, 0], out[found, 1] = middle.mean(), len(middle)
                out[found, 2] = ((middle - middle.mean()) ** 2).mean()
                out[found, 3] = lines[i - 1, start + 1 : stop - 1].mean() if i > 0 else np.nan
                out[found, 4] = lines[i + 1, start + 1 : stop - 1].mean() if i + 1 < count else np.nan
                found += 1
            start = stop
    return found


def plateau_runs(image: np.ndarray, noise: float, gain: float, *, axis: int, floor: float) -> np.ndarray:
    """Plateaus along an axis of an image of one amplifier.

    A plateau is 8 pixels long or more without its two ends, scatters by less than 0.2 of the shot noise of its level
    beside the read noise, and at least one line beside it is 10 % fainter: in a flat that is full all over, columns and
    rows cannot be told apart.

    Parameters
    ----------
    image : (y, x) adu above the bias.
    noise : adu, read noise.
    gain : electron/adu.
    axis : 0 for columns (blooming), 1 for rows (serial register).
    floor : adu, below which no full well lies.

    Returns
    -------
    (n, 4) level, adu; number of pixels; level of the line before and of the line after it, adu.
    """
    lines = np.ascontiguousarray(image.T if axis == 0 else image, np.float32)
    room = np.empty((20_000, 5))
    found = room[: _runs(lines, noise, floor, room)]
    level, pixels, variance, before, after = found.T
    quiet = variance < _QUIET**2 * level / gain + 1.5 * noise**2
    alone = np.fmin(before, after) < 0.9 * level
    return found[(pixels >= _LONG) & quiet & alone][:, [0, 1, 3, 4]]


def full_frame(image: np.ndarray, noise: float, gain: float, floor: float) -> tuple[float, float] | None:
    """Level and scatter, adu, of a flat all of whose pixels are full; None of any other image.

    A plateau without an edge, see `plateau_runs`: pixels scatter by less than 0.2 of the shot noise of their level
    beside the read noise.

    Parameters
    ----------
    image : (y, x) adu above the bias.
    noise, floor : adu; gain : electron/adu.
    """
    level, scatter = float(np.median(image)), float(robust_sigma(image))
    quiet = scatter**2 < _QUIET**2 * max(level, 0.0) / gain + 1.5 * noise**2
    return (level, scatter) if level > floor and quiet else None


def lowest_frame(frames: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Level of the lowest of the full frames that agree, and its error; NaN without any."""
    if not frames:
        return np.nan, np.nan
    levels, scatters = np.array(frames).T
    near = levels <= levels.min() * (1 + _AGREE)
    # what makes frames differ is common to all their pixels; of one frame that is not known
    spread = levels[near].std(ddof=1) if near.sum() > 1 else scatters[near][0]
    return float(levels[near].mean()), float(max(spread, 1e-4 * levels.min()))


def register_spills(columns: np.ndarray) -> bool:
    """Whether trails along columns are cut by the serial register, which puts what is too much in the pixel read next.

    The column after a trail is then brighter than the one before it by the same everywhere; stars are as often brighter
    on one side as on the other.

    Parameters
    ----------
    columns : (n, 4) of `plateau_runs` along columns; those with a full column beside them do not count.
    """
    level, _, before, after = columns.T
    single = np.fmax(before, after) < 0.9 * level
    excess = ((after - before) / level)[single & np.isfinite(before) & np.isfinite(after)]
    return len(excess) >= 3 and bool(np.percentile(excess, 25) > _SPILL)


def row_lean(image: np.ndarray, level: float) -> tuple[float, float]:
    """By how much the middle of a row of the brightest blob moves with its length, and the error; NaN without one.

    What is too much for the serial register lengthens a row in the order of reading, the longer the more: the middles
    of the rows lean. Rows of a blob that only blooms have middles that do not know their length.

    Parameters
    ----------
    image : (y, x) adu above the bias, x in the order of reading.
    level : adu, of the plateaus.
    """
    blobs, count = label(image > 0.5 * level)
    if not count:
        return np.nan, np.nan
    full = np.bincount(blobs.ravel(), (image > 0.97 * level).ravel())
    full[0] = 0
    y, x = np.nonzero(blobs == full.argmax())
    rows = np.unique(y)
    ends = np.array([(x[y == row].min(), x[y == row].max()) for row in rows], float)
    whole = (ends[:, 0] > 0) & (ends[:, 1] < image.shape[1] - 1)
    rows, ends = rows[whole], ends[whole]
    if len(rows) < 6:
        return np.nan, np.nan
    middle, length = ends.mean(axis=1), np.ptp(ends, axis=1)
    if np.ptp(length) < 5:
        return np.nan, np.nan
    about = length - length.mean()
    slope = float(about @ middle / (about @ about))
    left = middle - middle.mean() - slope * about
    return slope, float(np.sqrt((left @ left / (len(rows) - 2) + 1 / 6) / (about @ about)))


def lowest_level(levels: np.ndarray, pixels: np.ndarray, noise: float, least: int = 2) -> tuple[float, float]:
    """Level of the lowest full well that several plateaus agree on, and its error; NaN if there is none.

    The scatter of the plateaus counts as it is: what makes them differ is common to many pixels.

    Parameters
    ----------
    levels, pixels : (n,) of the plateaus.
    least : number of plateaus that must agree, to 2 %.
    """
    for level in np.sort(levels):
        near = (levels >= level) & (levels <= level * (1 + _AGREE))
        if near.sum() >= least:
            mean = float(np.average(levels[near], weights=pixels[near]))
            scatter = float(np.sqrt(np.average((levels[near] - mean) ** 2, weights=pixels[near]) / (near.sum() - 1)))
            return mean, float(np.hypot(scatter, noise / np.sqrt(pixels[near].sum())))
    return np.nan, np.nan


def spot_break(light: np.ndarray, peak: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """Peak at which a spot stops to follow the light, and its error: half a step of the ladder, or less.

    The line through the faint spots says what the peak should be; spots that stay below it by 4 sigma and 1 %, and
    so do all brighter ones, are full, and their peaks are the full well.

    Parameters
    ----------
    light : (n,) any unit, of one spot in exposures of different brightness.
    peak : (n,) mean of the pixels at its centre.
    noise : (n,) of the peaks.

    Raises
    ------
    InsufficientInputs
        Fewer than four spots, or none that is full.
    DegenerateSolution
        The faint spots do not follow the light.
    """
    order = np.argsort(light, kind="stable")
    light, peak, noise = (np.asarray(v, np.float64)[order] for v in (light, peak, noise))
    if len(light) < 4:
        raise InsufficientInputs(f"{len(light)} spots of different brightness, at least 4 are needed: take more")
    faint = peak < 0.6 * peak.max()
    if faint.sum() < 2:
        raise InsufficientInputs("fewer than two spots are fainter than 0.6 of the brightest: take fainter ones")
    ratio, weight = peak[faint] / light[faint], (light[faint] / noise[faint]) ** 2
    slope = float(np.sum(ratio * weight) / np.sum(weight))
    if np.abs(ratio / slope - 1).max() > 0.1:
        raise DegenerateSolution("peaks of faint spots are not proportional to the light: another place or lamp?")
    away = peak - slope * light
    low = away < -np.maximum(4 * noise, 0.01 * slope * light)
    full = len(light) - int(np.argmin(np.append(low[::-1], False)))  # first of the last run of full spots
    if full >= len(light):
        raise InsufficientInputs("no spot is full: take brighter ones")
    beyond, flat = peak[full:], np.ptp(peak[full:]) < 0.02 * peak[full:].mean()
    step = max(beyond[0] - peak[full - 1], 0.0) / 2
    if flat and len(beyond) > 1:
        return float(beyond.mean()), float(max(beyond.std(ddof=1) / np.sqrt(len(beyond)), 1e-3 * beyond.mean()))
    return float(beyond[0] - step), float(max(step, noise[full]))


def clipped_counts(counts: np.ndarray, least: int = 10) -> float:
    """Largest count, if so many pixels have it, and so few the next, that a converter must have cut them; else NaN."""
    top = int(counts.max())
    at = int(np.count_nonzero(counts == top))
    below = int(np.count_nonzero(counts == top - 1))
    return float(top) if at >= least and at > 3 * below else np.nan
