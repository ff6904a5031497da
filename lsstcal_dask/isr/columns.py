"""Changes of the columns since the bias, from the parallel overscan (Lupton 2016, Sec. 3.1).

The serial overscan cannot see what changes along the rows. The rows read after the last one can: above the serial
overscan of their own rows they are compared with those of the exposures that made the bias, so that the structure
of single columns, which is in the bias, cancels. What is left is smoothed along the row as the levels of rows are
along the column. Columns into which charge bled are outliers of that smooth curve, and it bridges them.
"""

from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig, parallel_pixels, row_levels
from lsstcal_dask.statistics import robust_sigma

__all__ = ["column_changes"]

_FLOODED: Final = 10.0  # read noises by which the mean of a column must be up to be called flooded
_MOST: Final = 0.5  # of the columns that may be flooded


def column_changes(
    raw: RawFrame, bias: xr.Dataset, config: OverscanConfig
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, str], ...]]:
    """What the columns of a frame are above those of the bias.

    Parameters
    ----------
    raw : counts of one CCD.
    bias : its bias; ``column_level`` (amplifier, x), adu, is compared.
    config : setting of the overscan, the same as that of the bias.

    Returns
    -------
    change, variance : (amplifier, x) float32, adu and adu**2, padded with zeros; zeros where nothing can be told.
    remarks : amplifier and reason, where it cannot.
    """
    amplifiers = raw.detector.amplifiers
    change = np.zeros((2, len(amplifiers), max(a.data.shape[1] for a in amplifiers)), np.float32)
    remarks = []
    for i, amplifier in enumerate(amplifiers):
        nx = amplifier.data.shape[1]
        if "column_level" not in bias:
            remarks.append((amplifier.name, "parallel overscan not used: build bias again, it has no levels of it"))
            continue
        known = bias["column_level"].sel(amplifier=amplifier.name).values[:nx]
        found = _change(parallel_pixels(raw.counts[i][None], amplifier, config)[0] - known[:, None], config)
        if isinstance(found, str):
            remarks.append((amplifier.name, f"parallel overscan not used: {found}"))
        else:
            change[:, i, :nx] = found
    return change[0], change[1], tuple(remarks)


def _change(pixels: np.ndarray, config: OverscanConfig) -> tuple[np.ndarray, np.ndarray] | str:
    """Smooth level (x,) of pixels (x, row) and its variance; or why there is none."""
    if pixels.shape[1] < 2 or not np.isfinite(pixels).all():
        return "there is none, or none in the bias"
    noise = float(robust_sigma(np.diff(pixels, axis=1))) / np.sqrt(2)  # of columns that change slowly, flooded or not
    flooded = float((np.median(pixels, axis=1) > _FLOODED * max(noise, 1.0)).mean())
    if flooded > _MOST:
        return f"{flooded:.0%} of its columns are flooded"
    found = row_levels(pixels[None], config.model_copy(update={"method": "spline", "skip": 0}))
    if not np.isfinite(found.level).all():
        return "too few of its columns are usable"
    return found.level[0], found.variance[0]
