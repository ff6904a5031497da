"""Dust on the filter and on the window of the cryostat: soft rings on every flat (Lupton 2016, Sec. 2.8.2).

The light of a pixel crosses the filter in an annulus 10 cm wide, the window in one 2.3 cm wide: images of the pupil.
A mote takes from a pixel the part of this footprint that it hides. A beam of the Collimated Beam Projector is a disc
of 0.24 m of the primary mirror: it crosses them in a disc so much smaller, at the place of its own in the footprint,
and casts the sharp shadow of a mote where a pupil full of beams casts a soft ring. On a camera that is small the
footprints and motes shrink with its field, see `optics`.
"""

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Final

import numpy as np
from pydantic import Field, PositiveFloat

from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.filters import check_band
from lsstcal_dask.simulate.optics import OBSCURATION, PUPIL_RADIUS, disc_in_annulus, edge_mm
from lsstcal_dask.simulate.random import stream

__all__ = ["Beam", "Dust", "Motes", "dust", "motes"]

Array = np.ndarray

_EDGE_MM: Final = 315.17  # of LSSTCam's field, see `optics.edge_mm`
_RIM: Final = 1.15  # radius of the disc that dust falls on, over that of the field


class Dust(Effect):
    """How much dust there is, in millimetres of LSSTCam. The numbers and sizes are made up."""

    filter_motes: int = Field(30, ge=0)  # on each filter
    filter_size: tuple[PositiveFloat, PositiveFloat] = (1.0, 4.0)  # mm, radii
    filter_beam: float = Field(50.0, gt=0)  # mm, outer radius of the footprint on the filter (Sec. 2.8.2)
    window_motes: int = Field(200, ge=0)
    window_size: tuple[PositiveFloat, PositiveFloat] = (0.1, 0.5)  # mm, radii
    window_beam: float = Field(11.6, gt=0)  # mm, outer radius on the last lens, 28.5 mm before the focus of f/1.23
    opacity: float = Field(0.7, ge=0, le=1)  # of a mote, at every wavelength
    arriving: float = Field(0.2, ge=0, le=1)  # part of the motes that is not there from the beginning
    start: date = date(2026, 7, 1)  # the first of them arrive
    days: float = Field(60.0, gt=0)  # over which they do


@dataclass(frozen=True)
class Motes:
    """Dust on one surface, one entry a mote; lengths over the radius of the field."""

    x: Array
    y: Array
    radius: Array
    arrival: Array  # datetime64[ms]
    beam: float  # outer radius of the footprint of a pixel's light


@dataclass(frozen=True)
class Beam:
    """A beam of the Collimated Beam Projector on the primary mirror, m; its centre may differ from place to place."""

    x: Any
    y: Any
    radius: float


@lru_cache(maxsize=32)
def motes(seed: int, settings: Dust, surface: str) -> Motes:
    """Dust on a surface: the name of a filter, or ``window``. Positions are as seen from the focal plane."""
    window = surface == "window"
    n, size, beam = (
        (settings.window_motes, settings.window_size, settings.window_beam)
        if window
        else (settings.filter_motes, settings.filter_size, settings.filter_beam)
    )
    random = stream(seed, f"dust {surface}")
    distance, turn = _RIM * np.sqrt(random.random(n)), 2 * np.pi * random.random(n)
    radius = size[0] * (size[1] / size[0]) ** random.random(n) / _EDGE_MM
    late = random.random(n) < settings.arriving
    wait = np.where(late, settings.days * random.random(n), -1e5) * 86_400_000
    arrival = np.datetime64(settings.start, "ms") + wait.astype("timedelta64[ms]")
    arrays = distance * np.cos(turn), distance * np.sin(turn), radius, arrival
    for array in arrays:
        array.flags.writeable = False
    return Motes(*arrays, beam / _EDGE_MM)


def dust(
    seed: int,
    settings: Dust,
    camera: Camera,
    band: str,
    x: Any,
    y: Any,
    time: np.datetime64,
    beam: Beam | None = None,
) -> Array:
    """What dust leaves of the light.

    1 - opacity (area of the mote within the footprint) / (area of the footprint), for each mote that has arrived.
    Gray. The edges are as wide as the smaller of mote and beam: call it on a fine mesh.

    Parameters
    ----------
    band : filter in the beam; 'none' has no dust of its own.
    x, y : focal plane position, mm, any shape.
    time : UTC of the exposure.
    beam : of the projector; the whole pupil if None. What it loses beside the primary mirror is taken to be there.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    check_band(band)
    edge = edge_mm(camera)
    through = Beam(0.0, 0.0, 0.0) if beam is None else beam
    u, v, beam_x, beam_y = np.broadcast_arrays(
        np.asarray(x, float) / edge, np.asarray(y, float) / edge, through.x, through.y
    )
    out = np.ones(u.shape)
    if settings.on and u.size:
        for surface in ("window",) if band == "none" else ("window", band):
            found = motes(seed, settings, surface)
            where, annulus = (u, v), (OBSCURATION * found.beam, found.beam)
            if beam is not None:
                scale = found.beam / PUPIL_RADIUS
                where, annulus = (u + scale * beam_x, v + scale * beam_y), (0.0, scale * beam.radius)
            there = (found.arrival <= time) & _near(found, annulus[1], *where)
            for i in np.flatnonzero(there):
                out *= _shadow(found, int(i), settings.opacity, annulus, *where)
    return out


def _near(found: Motes, outer: float, u: Array, v: Array) -> Array:
    """Which motes can throw a shadow on any of the positions."""
    reach = found.radius + outer
    wide = (found.x > u.min() - reach) & (found.x < u.max() + reach)
    return np.asarray(wide & (found.y > v.min() - reach) & (found.y < v.max() + reach))


def _shadow(found: Motes, i: int, opacity: float, annulus: tuple[float, float], u: Array, v: Array) -> Array:
    """Light that one mote leaves in footprints, of these inner and outer radii, about every position."""
    radius, (inner, outer) = float(found.radius[i]), annulus
    distance = np.hypot(u - found.x[i], v - found.y[i])
    out = np.ones(u.shape)
    near = distance < radius + outer
    part = radius**2 / (outer**2 - inner**2)
    out[near] -= opacity * part * disc_in_annulus(distance[near], radius, inner, outer)
    return out
