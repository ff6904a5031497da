"""Where sun and moon stand above the horizon, which says whether a sky is dark (Lupton 2016, Sec. 2.9)."""

from typing import Any, Final

import erfa
import numpy as np
from numpy.typing import NDArray

__all__ = ["RUBIN", "altitudes"]

Floats = NDArray[np.float64]

RUBIN: Final = (-30.2446, -70.7494)
"""Latitude and longitude (deg, north and east) of the Rubin Observatory."""

_EARTH: Final = 4.2635e-5  # au, its radius at the equator
_MJD: Final = 2400000.5, 40587.0  # of 1970-01-01


def altitudes(time: Any, site: tuple[float, float] = RUBIN) -> tuple[Floats, Floats]:
    """Altitude of sun and moon at some times.

    Parameters
    ----------
    time : (n,) datetime64, UTC.
    site : latitude and longitude, deg, north and east.

    Returns
    -------
    Sun and moon, (n,) deg each, as seen from the place, without refraction; within 0.2 deg, for a place is taken on a
    sphere, and a minute of the clocks of astronomers for none.
    """
    zero, epoch = _MJD
    mjd = epoch + np.asarray(time, "datetime64[ms]").astype(np.int64) / 86_400_000
    turn = erfa.pnm06a(zero, mjd)  # to equator and equinox of date
    sidereal = erfa.gst06a(zero, mjd, zero, mjd)
    latitude, longitude = np.deg2rad(site)
    hour = sidereal + longitude
    zenith = np.stack(
        [np.cos(latitude) * np.cos(hour), np.cos(latitude) * np.sin(hour), np.full_like(hour, np.sin(latitude))], -1
    )
    bodies = -erfa.epv00(zero, mjd)[0]["p"], erfa.moon98(zero, mjd)["p"]
    seen = [np.einsum("...ij,...j->...i", turn, body) - _EARTH * zenith for body in bodies]
    up = [np.sum(one * zenith, axis=-1) / np.linalg.norm(one, axis=-1) for one in seen]
    return np.rad2deg(np.arcsin(up[0])), np.rad2deg(np.arcsin(up[1]))
