"""What darks have in common that is no dark current: light, and charge left by what was exposed before (Sec. 2.7).

Comparing exposures does not see light that leaks into all of them. But dark current is the same all over an
amplifier but for its hot pixels and a faint glow, and it is the same in every exposure: a rate that rises from one
side to the other is light, one that falls or rises from exposure to exposure is persistence, a lamp or a CCD that
warms up.
"""

from itertools import combinations
from typing import Final

import numpy as np

__all__ = ["drift", "leak_remarks", "slope"]

_BLOCKS: Final = 8  # to a side, whose medians tell the slope: no hot pixel moves one
_SIGMA: Final = 5.0
_SHARE: Final = 0.5  # of the median rate: glow, temperature and noise do less
_ORDER: Final = 0.7  # of the pairs of exposures in order, more than those out of it
_FEWEST: Final = 4  # exposures that show an order


def slope(image: np.ndarray) -> tuple[float, float]:
    """Change of an image across its longer way, along both axes together, and its error, in the unit of the image.

    Parameters
    ----------
    image : (y, x), NaN where there is nothing. The error is from the scatter of blocks about the plane.
    """
    rows, columns = (np.array_split(np.arange(n), min(_BLOCKS, n)) for n in image.shape)
    medians = np.array([[_median(image[np.ix_(y, x)]) for x in columns] for y in rows])
    v, u = (np.linspace(-0.5, 0.5, n) if n > 1 else np.zeros(1) for n in medians.shape)
    design = np.stack([np.ones(medians.size), *(a.ravel() for a in np.meshgrid(u, v))], axis=1)
    use = np.isfinite(medians.ravel())
    if use.sum() <= design.shape[1]:
        return np.nan, np.nan
    design, values = design[use], medians.ravel()[use]
    inverse = np.linalg.pinv(design.T @ design)
    found = inverse @ design.T @ values
    left = values - design @ found
    error = np.sqrt(np.diag(inverse)[1:].mean() * (left @ left) / (use.sum() - design.shape[1]))
    return float(np.hypot(*found[1:])), float(error)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


def drift(level: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Change of levels (n,) from the first to the last, its error, and by how much they are in order.

    Returns
    -------
    The order is the share of pairs that rise less that of those that fall: 1 or -1 of levels that only rise or fall.
    """
    known = np.isfinite(level) & np.isfinite(error) & (error > 0)
    level, error = level[known], error[known]
    if len(level) < _FEWEST:
        return np.nan, np.nan, 0.0
    at = np.linspace(-0.5, 0.5, len(level))
    weight = error**-2.0
    at = at - np.average(at, weights=weight)
    size = float((weight * at) @ level / (weight * at**2).sum())
    order = float(np.mean([np.sign(b - a) for a, b in combinations(level, 2)]))
    return size, float((weight * at**2).sum() ** -0.5), order


def leak_remarks(rate: np.ndarray, level: np.ndarray, error: np.ndarray) -> tuple[list[str], dict[str, float | None]]:
    """Remarks on a dark that is not dark current alone, and the numbers behind them.

    Parameters
    ----------
    rate : (y, x) electron/s of the master dark; NaN where nothing is to be said of it.
    level, error : (n,) electron/s of the exposures that entered, in the order in which they were taken.
    """
    middle = _median(rate)
    least = _SHARE * max(middle, 0.0) if np.isfinite(middle) else 0.0
    across, sigma = slope(rate)
    remarks = []
    if across > max(_SIGMA * sigma, least):
        remarks.append(
            f"its rate changes by {across:.3g} electron/s from side to side, {across / sigma:.0f} sigma, and its "
            f"median is {middle:.3g}: light leaks in? cover the camera and take darks again"
        )
    size, sigma, order = drift(level, error)
    if abs(size) > max(_SIGMA * sigma, least) and abs(order) >= _ORDER:
        remarks.append(
            f"its rate {'falls' if size < 0 else 'rises'} by {abs(size):.3g} electron/s from the first exposure to the "
            f"last, {abs(size) / sigma:.0f} sigma: charge left of bright light (wait before darks), or a CCD that warms"
        )
    return remarks, {"slope": across if np.isfinite(across) else None, "drift": size if np.isfinite(size) else None}
