"""Numbers of the pixels of one amplifier, for the metrics of images: scatter against variance, rows, boundaries."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.statistics import clip_variance_factor, robust_sigma
from lsstcal_dask.verify.metric import Case

__all__ = [
    "Plane",
    "chi2_sigma",
    "neighbour_scatter",
    "planes",
    "row_steps",
    "scatter",
    "sky",
]

_CLIP: Final = 4.0  # sigma: what is left out of a scatter
_PIXELS: Final = 1 << 18  # of an amplifier, that tell a scatter to 0.2 %: more are not sorted
_BRIGHT: Final = 1.2  # of the median variance: what is brighter is not sky
_LEAST: Final = 20  # values that make a scatter


@dataclass(frozen=True, eq=False)
class Plane:
    """Pixels of one amplifier, cut to its size."""

    image: np.ndarray  # (y, x), NaN where the mask has any bit
    variance: np.ndarray  # (y, x)
    rows: np.ndarray  # (y,) variance common to a row
    mask: np.ndarray  # (y, x)

    @property
    def good(self) -> np.ndarray:
        """(y, x) bool."""
        return np.isfinite(self.image) & np.isfinite(self.variance) & (self.variance > 0)


def _plane(product: xr.Dataset, amplifier: Amplifier) -> Plane:
    """Pixels of an amplifier of a product with image and mask; without row_variance, as of a flat, rows have none."""
    ny, nx = amplifier.data.shape
    part = product.sel(amplifier=amplifier.name)
    mask = part["mask"].values[:ny, :nx]
    image = np.where(mask == 0, part["image"].values[:ny, :nx], np.float32(np.nan))
    variance = part["variance"].values[:ny, :nx] if "variance" in part else np.full(image.shape, np.float32(np.nan))
    rows = part["row_variance"].values[:ny] if "row_variance" in part else np.zeros(len(image), np.float32)
    return Plane(image, variance, rows, mask)


def planes(case: Case, product: str) -> list[Plane]:
    """Pixels of every amplifier of a case, read once for all the metrics of a product."""
    if product not in case.kept:
        case.kept[product] = [_plane(case.products[product], amplifier) for amplifier in case.detector.amplifiers]
    return case.kept[product]


def scatter(pulls: np.ndarray) -> float:
    """Standard deviation about the median of what lies within 4 of its sigma; 1 of pulls that are as they should be.

    NaN of fewer than 20. Its error is that of a standard deviation, 1/sqrt(2 n), not the 1.6 times that of a median.
    """
    pulls = pulls[np.isfinite(pulls)]
    if pulls.size < _LEAST:
        return float("nan")
    pulls = pulls - np.median(pulls)
    kept = pulls[np.abs(pulls) <= _CLIP * float(robust_sigma(pulls))]
    return float(np.sqrt(np.mean(kept**2) / clip_variance_factor(_CLIP)))


def neighbour_scatter(image: np.ndarray, variance: np.ndarray) -> float:
    """Scatter of the steps from a pixel to its neighbour in the row, over what the variances say.

    Steps do not know of rows, gradients or the sky; the part of the variance that is common to a row is left out.

    Parameters
    ----------
    image, variance : (y, x), NaN where not to be used. Pairs of columns share no pixel; of many rows some are used.
    """
    some = slice(None, None, max(1, image.size // _PIXELS))
    image, variance = image[some], variance[some]
    n = image.shape[1] // 2 * 2
    step, total = image[:, 1:n:2] - image[:, 0:n:2], variance[:, 1:n:2] + variance[:, 0:n:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return scatter((step / np.sqrt(total)).ravel())


def sky(pixels: Plane) -> np.ndarray:
    """Image (y, x) with NaN where the variance says that it is brighter than the sky."""
    good = pixels.good
    if not good.any():
        return np.full_like(pixels.image, np.nan)
    faint = pixels.variance < _BRIGHT * np.median(pixels.variance[good])
    return np.where(good & faint, pixels.image, np.nan)


def row_steps(pixels: Plane) -> np.ndarray:
    """(y - 1,) steps between the levels of neighbouring rows, over what the variances of pixels and rows say.

    The level of a row is the median of its sky, whose variance is pi/2 that of a mean. `row_variance` counts as
    independent from row to row, so that 1 is the most that an honest one leaves.
    """
    image = sky(pixels)
    count = np.isfinite(image).sum(axis=1)
    use = count >= _LEAST
    level, error = np.full(len(image), np.nan), np.full(len(image), np.nan)
    if use.any():
        level[use] = np.nanmedian(image[use], axis=1)
        mean = np.nanmean(np.where(np.isfinite(image[use]), pixels.variance[use], np.nan), axis=1)
        error[use] = np.pi / 2 * mean / count[use] + pixels.rows[use]
    return np.diff(level) / np.sqrt(error[1:] + error[:-1])


def chi2_sigma(chi2: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """Chi2 as Gaussian sigma, two-sided: the cube root of chi2/dof is nearly Gaussian (Wilson & Hilferty 1931).

    Examples
    --------
    >>> chi2_sigma(np.array([10.0, 40.0]), np.array([10.0, 10.0])).round(1)
    array([0.1, 4.1])
    """
    chi2, dof = np.asarray(chi2, np.float64), np.asarray(dof, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = 2 / (9 * dof)
        return np.where(dof > 0, (np.cbrt(chi2 / dof) - (1 - spread)) / np.sqrt(spread), np.nan)
