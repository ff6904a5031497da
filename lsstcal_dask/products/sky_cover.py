"""Whether a spectrum of the sky measured the light of a band (♥2, SCIENCE 2.8.3).

A fitted model gives light at all wavelengths. What the spectrograph can see has to be measured; beyond its reach only
the model tells, with its error.
"""

import numpy as np

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.products.sky_model import FINE, Measured

__all__ = ["check_measured", "unmeasured"]


def unmeasured(
    measured: Measured, passband: Surface | Nearby | None, reach: tuple[float, float], resolution: float
) -> float:
    """Bound of the share of a band's light within ``reach`` (nm) where no pixel near has a flux.

    Near is a line's width, wavelength / ``resolution``. What is not measured is taken to be as bright as the brightest
    pixel; transmission is summed with its sign over each stretch: noise about zero cancels.
    """
    at = FINE[(reach[0] <= FINE) & (reach[1] >= FINE)]
    passed = np.ones(len(at))
    if passband is not None:
        passed = np.interp(at, passband.wavelength, passband.at(0.0, 0.0), left=0.0, right=0.0)
    known, flux = measured.wavelength[measured.good], measured.flux[measured.good]
    right = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    away = np.minimum(np.abs(at - known[right - 1]), np.abs(known[right] - at))
    seen = away <= at / resolution
    stretch = np.cumsum(np.diff(seen, prepend=seen[0]) != 0)
    missing = np.abs(np.bincount(stretch, passed * ~seen)).sum() * flux.max()
    light = passed[seen] @ np.interp(at[seen], known, flux)
    return float(missing / (missing + light)) if light > 0 else float(missing > 0)


def check_measured(
    measured: Measured, passband: Surface | Nearby | None, reach: tuple[float, float], resolution: float, limit: float
) -> None:
    """Refuse a spectrum that leaves more than ``limit`` of a band's light unmeasured, see `unmeasured`.

    Raises
    ------
    InsufficientInputs
    """
    share = unmeasured(measured, passband, reach, resolution)
    if share > limit:
        first, last = measured.wavelength[measured.good][[0, -1]]
        band = f"filter {passband.band}" if passband is not None else "no filter"
        raise InsufficientInputs(
            f"sky spectrum {measured.name}: measured from {first:g} to {last:g} nm, it leaves up to {share:.2g} of the "
            f"light of {band} unknown: take it again, or leave it out; or say the spectrograph's [sky] reach"
        )
