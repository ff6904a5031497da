"""Does the crosstalk that is stored describe bleed trails and cosmic rays (Lupton 2016, Sec. 2.6)?

Such sources are too few and too irregular to measure coefficients. They give one number: the slope of what
targets show against what the stored coefficients say, 1 if these are right, 0 if there is no such crosstalk.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.ndimage import binary_dilation

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.isr.crosstalk import Entries

__all__ = ["Slope", "crosstalk_slope"]

_SIDE: Final = 4  # px on either side of a pixel of a row that tell its background
_GAP: Final = 2  # px between it and them
_CUT: Final = 5.0  # sigma


@dataclass(frozen=True)
class Slope:
    """Weighted least squares through the origin."""

    value: float
    error: float
    pixels: int

    @property
    def pull(self) -> float:
        """Distance from 1 in errors."""
        return (self.value - 1) / self.error


def crosstalk_slope(
    values: np.ndarray, noise: np.ndarray, entries: Entries, brightest: float, faintest: float = 5000.0
) -> Slope:
    """Slope of one frame of a CCD that is not corrected for crosstalk.

    The background of a target's pixel is the mean of eight others of its row; pixels count where the source
    outshines ``faintest`` and is not saturated, and the target is dark.

    Parameters
    ----------
    values : (amplifier, y, x) electron, raw index; NaN is not used.
    noise : (amplifier,) electron, of a pixel.
    entries : coefficients within the CCD.
    brightest : electron, from which a source is saturated.

    Raises
    ------
    InsufficientInputs
        No source is bright while a target is dark.
    """
    bright = np.nan_to_num(values, nan=np.inf) > faintest / 10
    lit = np.stack([binary_dilation(one, iterations=2) for one in bright])
    signal = np.nan_to_num(values)
    over = signal >= brightest
    model = np.zeros(values.shape)
    source = np.zeros(values.shape, bool)
    for t, s, c, c2 in zip(entries.targets, entries.sources, entries.linear, entries.quadratic, strict=True):
        model[t] += signal[s] * (c + c2 * signal[s])
        source[t] |= signal[s] > faintest
    hidden = lit | over.any(axis=0)[None] & source
    seen, left = _above(signal, hidden), _above(model, hidden)
    used = source & ~hidden & np.isfinite(seen[0])
    sigma = noise[:, None, None] * np.sqrt(1 + 1 / np.maximum(seen[1], 1))
    used &= np.abs(seen[0] - left[0]) < _CUT * sigma + np.abs(left[0])
    weight = np.where(used, 1 / sigma**2, 0.0)
    total = float((weight * np.nan_to_num(left[0]) ** 2).sum())
    if not total > 0:
        raise InsufficientInputs("crosstalk check: no bright pixel is read while a coupled amplifier is dark")
    top = float((weight * np.nan_to_num(left[0]) * np.nan_to_num(seen[0])).sum())
    return Slope(top / total, total**-0.5, int(used.sum()))


def _above(image: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels less the mean of their neighbours along x, and how many these are."""
    total, number = np.zeros(image.shape), np.zeros(image.shape)
    for step in range(_GAP + 1, _GAP + _SIDE + 1):
        for to, of in ((np.s_[..., step:], np.s_[..., :-step]), (np.s_[..., :-step], np.s_[..., step:])):
            good = ~hidden[of]
            total[to] += np.where(good, image[of], 0.0)
            number[to] += good
    with np.errstate(invalid="ignore", divide="ignore"):
        return image - total / number, number
