"""Checks of linearity on data that did not make the curves: three slopes, each with its error (Lupton 2016, Sec. 2.3).

- flux of objects as a function of the background;
- residual of the PSF's size as a function of brightness and background;
- offset between neighbouring amplifiers in flats of different levels.

If the curves are right each slope is zero; one that is not by more than 4 sigma fails.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.statistics import robust_sigma

__all__ = ["Slope", "amplifier_offsets", "flux_against_background", "remark", "size_against_light"]

LIMIT: Final = 4.0
"""Sigma beyond which a slope is a failure."""

_CLIP: Final = 4.0
_LEAST: Final = 10  # measurements


@dataclass(frozen=True)
class Slope:
    """Relative change per adu or electron of what it is taken against."""

    what: str
    value: float
    error: float
    number: int

    @property
    def sigma(self) -> float:
        """The slope in units of its error."""
        return abs(self.value) / self.error

    @property
    def fails(self) -> bool:
        """Whether it cannot be zero."""
        return bool(self.sigma > LIMIT)


def flux_against_background(flux: Any, error: Any, background: Any, star: Any) -> Slope:
    """Relative change of the flux of the same objects with the background on which they stand.

    Parameters
    ----------
    flux, error : (n,) any unit, of an object in one exposure.
    background : (n,) per pixel.
    star : (n,) which object; its own flux is fitted, so it must have been seen on several backgrounds.

    Raises
    ------
    InsufficientInputs
        Fewer than ten measurements, or no object on two backgrounds.
    """
    flux, error, background = (np.asarray(v, np.float64) for v in (flux, error, background))
    number = np.unique(np.asarray(star), return_inverse=True)[1]
    weight = (flux / error) ** 2
    mean = np.bincount(number, weight * flux) / np.bincount(number, weight)
    return _slope("flux against background", flux / mean[number] - 1, 1 / np.sqrt(weight), [background], number)


def size_against_light(size: Any, error: Any, flux: Any, background: Any) -> tuple[Slope, Slope]:
    """Change of the relative residual of the PSF's size with brightness, and with background.

    Parameters
    ----------
    size, error : (n,) measured over modelled size, less one, and its error.
    flux, background : (n,) of the stars; both slopes are fitted together.

    Raises
    ------
    InsufficientInputs
        Fewer than ten stars, or all are equally bright or on the same background.
    """
    size, error = np.asarray(size, np.float64), np.asarray(error, np.float64)
    columns = [np.asarray(flux, np.float64), np.asarray(background, np.float64)]
    one = np.zeros(len(size), int)
    first = _slope("PSF size against brightness", size, error, columns, one)
    return first, _slope("PSF size against background", size, error, columns[::-1], one)


def amplifier_offsets(level: Any, error: Any) -> list[Slope]:
    """Change of the ratio of neighbouring amplifiers in flats with their level, for each pair of neighbours.

    Parameters
    ----------
    level, error : (exposure, amplifier) linearised signal beside the boundaries, and its error; amplifiers in the
        order in which they lie side by side.

    Raises
    ------
    InsufficientInputs
        Fewer than ten exposures, or all have one level.
    """
    level, error = np.asarray(level, np.float64), np.asarray(error, np.float64)
    found = []
    for i in range(level.shape[1] - 1):
        ratio, mean = level[:, i + 1] / level[:, i], level[:, i : i + 2].mean(axis=1)
        relative = np.hypot(error[:, i + 1] / level[:, i + 1], error[:, i] / level[:, i])
        middle = np.average(ratio, weights=relative**-2.0)
        name = f"amplifier {i + 1} over amplifier {i} against level"
        found.append(_slope(name, ratio / middle - 1, relative, [mean], np.zeros(len(ratio), int)))
    return found


def remark(slope: Slope, who: str) -> str | None:
    """One line on a slope that is not zero; None for one that may be.

    Examples
    --------
    >>> remark(Slope("flux against background", 3e-7, 5e-8, 100), "R22_S11")
    'FAIL: R22_S11: flux against background: slope +3.0e-07 +- 5.0e-08 (6.0 sigma): build linearity again'
    """
    if not slope.fails:
        return None
    return (
        f"FAIL: {who}: {slope.what}: slope {slope.value:+.1e} +- {slope.error:.1e} ({slope.sigma:.1f} sigma): "
        f"build linearity again"
    )


def _slope(what: str, values: np.ndarray, error: np.ndarray, columns: list[np.ndarray], group: np.ndarray) -> Slope:
    """First of the slopes against ``columns``, with a constant for each group; outliers are clipped once.

    The error is that of the given errors, or of the scatter where that is larger.
    """
    use = np.isfinite(values) & np.isfinite(error) & (error > 0)
    if use.sum() < _LEAST:
        raise InsufficientInputs(f"{what}: {use.sum()} measurements, at least {_LEAST} are needed")
    design = np.column_stack([*columns, group[:, None] == np.arange(group.max() + 1)])
    for _ in range(2):
        rows, scale = design[use] / error[use, None], np.abs(design[use]).max(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        parameters, _, rank, _ = np.linalg.lstsq(rows / scale, values[use] / error[use])
        present = np.abs(design[use]).max(axis=0) > 0
        if rank < present.sum():
            raise InsufficientInputs(f"{what}: all measurements have the same level or background: take others")
        pull = (values - design @ (parameters / scale)) / error
        kept = use & (np.abs(pull) < _CLIP * max(float(robust_sigma(pull[use])), 1.0))
        done, use = bool((kept == use).all()), kept
        if done:
            break
    covariance = np.linalg.pinv((rows / scale).T @ (rows / scale))
    freedom = max(len(rows) - int(present.sum()), 1)
    excess = max(1.0, float(np.sqrt(np.sum((pull[use]) ** 2) / freedom)))
    return Slope(
        what, float(parameters[0] / scale[0]), float(np.sqrt(covariance[0, 0]) / scale[0]) * excess, int(use.sum())
    )
