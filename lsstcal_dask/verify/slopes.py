"""Acceptance of linearity by its use on visits and flats: the three checks of the source (Lupton 2016, Sec. 2.3).

The numbers are measured of visits and flats, and noted, when a store is verified: see `verify.linearity`.
"""

from typing import Final

import numpy as np

from lsstcal_dask.verify.linearity import LIMIT
from lsstcal_dask.verify.metric import OURS, Case, Measure, Metric

__all__ = ["METRICS"]

_SOURCE: Final = "Lupton 2016, Sec. 2.3: three checks of linearity; 4 sigma from zero fails"
_SIGMAS: Final = (-LIMIT, LIMIT)


def _noted(product: str, key: str) -> Measure:
    def measure(case: Case) -> np.ndarray:
        return case.noted(product, key)

    return measure


def _slope(product: str, name: str, key: str, prose: str, unit: str) -> Metric:
    """A slope that is zero where the curves are right."""
    return Metric(
        product,
        name,
        _noted(product, key),
        _SOURCE,
        prose,
        limits=_SIGMAS,
        unit=unit,
        sparse=True,
        error=_noted(product, f"{key}_error"),
        in_errors=True,
    )


METRICS: Final = (
    _slope(
        "calibrated",
        "star flux against sky",
        "flux_background",
        "relative change of the flux of the same stars with the background, of the CCD; what air and background share "
        "cannot be told from it",
        "1/ke",
    ),
    _slope(
        "calibrated",
        "star flux against sky, amplifier",
        "flux_background_own",
        "the same of an amplifier less that of its CCD, which does not know of the air",
        "1/ke",
    ),
    Metric(
        "calibrated",
        "star size against peak",
        _noted("calibrated", "size_peak"),
        f"{OURS}: brighter-fatter, which nothing corrects yet, adds 0.1 to 0.3 pixel**2 at a peak of 1e5 electron "
        f"(a_00 of 1.7e-6 to 3.5e-6, virtual observatory); a curve that is wrong by a tenth there adds 0.06, so "
        f"that it is hardly seen. To be judged by its error, at 4 sigma, when brighter-fatter is corrected",
        "change of the second moment of stars with their peak: brighter-fatter and what linearity leaves",
        limits=(-0.1, 0.8),
        aim=(-0.02, 0.4),
        unit="pixel**2/100 ke",
        sparse=True,
        error=_noted("calibrated", "size_peak_error"),
    ),
    _slope(
        "calibrated",
        "star size against peak and sky",
        "size_peak_background",
        "how that changes with the background; brighter-fatter does not",
        "pixel**2/100 ke/ke",
    ),
    _slope(
        "linearity",
        "flat levels of amplifiers",
        "flat_level",
        "relative change of the level of an amplifier less that of its CCD, with the level of flats: others than "
        "made the curves, if there are ten",
        "1/100 ke",
    ),
)
