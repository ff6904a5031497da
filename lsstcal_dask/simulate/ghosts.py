"""Ghosts: light that two surfaces reflect on its way to the focal plane, and a scattered floor (Lupton 2016, ¶9, ¶10f).

A ghost is a picture of the pupil far out of focus. Light that would have been focused at p and crossed the pupil at P
(in units of its radius) falls instead on

    centre + walk * p + radius * P,

so one spot of the Collimated Beam Projector, whose beam crosses a small footprint of the pupil, makes a small disc,
and the flat-field screen, which lights every p and P, makes an annulus with edges as wide as ``walk``. Both are made
from one table of surfaces: the ghosts of all spots and footprints add up to that of the screen.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.filters import Filters, transmission
from lsstcal_dask.simulate.optics import (
    EDGE,
    OBSCURATION,
    PUPIL_RADIUS,
    disc_in_annulus,
    edge_mm,
    field_radius,
    waves,
)
from lsstcal_dask.simulate.random import stream

__all__ = ["Ghosts", "Scatter", "ghost", "scatter", "spot_ghosts"]

Array = np.ndarray


class Ghosts(Effect):
    """How much light is in ghosts."""

    fraction: float = Field(0.015, ge=0, le=0.5)  # of all focused light, at 700 nm without filter (SCIENCE 2.8.4)
    filter_edge: float = Field(4.0, ge=0)  # growth of the filter's ghosts where it reflects all instead of little
    color: float = Field(0.2, ge=-0.9)  # growth of all ghosts 400 nm from 700 nm: coatings work best in the middle


class Scatter(Effect):
    """A floor of light scattered in the telescope."""

    level: float = Field(0.004, ge=0)  # of the focused light, at 700 nm
    texture: float = Field(0.2, ge=0)  # rms relative change over the field
    slope: float = -0.5  # power of the wavelength it goes with


@dataclass(frozen=True)
class _Surface:
    """A pair of surfaces; lengths over the radius of the field."""

    radius: float  # of the picture of the pupil
    walk: float  # of the picture against the spot
    centre: tuple[float, float]
    share: float  # of the light in ghosts
    filter: bool  # whether the filter is one of the pair


# Made up. The shares give each picture about the same surface brightness, 1 % of the flat's for the default fraction:
# a larger ghost has more light.
_SURFACES: Final = (
    _Surface(1.15, 0.12, (0.03, -0.02), 0.50, True),
    _Surface(0.80, -0.07, (-0.04, 0.01), 0.30, False),
    _Surface(0.55, 0.05, (0.02, 0.05), 0.15, True),
    _Surface(0.35, 0.03, (-0.01, -0.03), 0.05, False),
)


def ghost(
    seed: int,
    settings: Ghosts,
    camera: Camera,
    band: str,
    x: Any,
    y: Any,
    wavelength: Any,
    filters: Filters = Filters(),
) -> Array:
    """Ghosts of a uniform flat-field screen, relative to its focused light on the axis.

    The field, a disc of 1.75 degrees, is lit evenly. A pair of surfaces turns the disc's every point into an annulus;
    their sum at r is proportional to the area that a disc of radius ``walk`` about r shares with the annulus.

    Parameters
    ----------
    band : filter in the beam: at its edges it reflects more light.
    x, y : focal plane position, mm, any shape.
    wavelength : nm, any shape.
    filters : of the observatory.

    Returns
    -------
    Shape of ``x`` followed by that of ``wavelength``; zeros if switched off.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    edge = edge_mm(camera)
    u, v = np.broadcast_arrays(np.asarray(x, float) / edge, np.asarray(y, float) / edge)
    w = np.asarray(wavelength, float)
    out = np.zeros(u.shape + w.shape)
    strengths = _strengths(seed, settings, camera, band, w, filters)
    for surface, strength in zip(_SURFACES, strengths, strict=True):
        distance = np.hypot(u - surface.centre[0], v - surface.centre[1])
        inside = disc_in_annulus(distance, abs(surface.walk), OBSCURATION * surface.radius, surface.radius)
        density = inside / ((1 - OBSCURATION**2) * surface.radius**2)
        out += density[(..., *(None,) * w.ndim)] * strength
    return out


def spot_ghosts(
    seed: int,
    settings: Ghosts,
    camera: Camera,
    band: str,
    x_spot: Any,
    y_spot: Any,
    footprint: tuple[Any, Any],
    wavelength: float,
    filters: Filters = Filters(),
    *,
    beam: float,
) -> list[tuple[Array, Array, float, float]]:
    """Ghosts of spots of the Collimated Beam Projector: uniform discs.

    Parameters
    ----------
    x_spot, y_spot : focal plane position of the spots, mm, any shape.
    footprint : (X, Y) m, where their beams meet the primary mirror; one for all or one for each.
    wavelength : nm.
    beam : m, radius of the beam.

    Returns
    -------
    For each pair of surfaces x, y (shape of ``x_spot``) and radius of the disc, mm on the focal plane, and its light
    as a fraction of what has passed filter and stops on the spot's own path; empty if switched off.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    edge = edge_mm(camera)
    strengths = _strengths(seed, settings, camera, band, np.asarray(wavelength, float), filters)
    if not settings.on:
        return []
    found = []
    for surface, strength in zip(_SURFACES, strengths, strict=True):
        grow = surface.radius * edge / PUPIL_RADIUS  # mm on the focal plane of a metre of the primary mirror
        x = surface.centre[0] * edge + surface.walk * np.asarray(x_spot, float) + grow * np.asarray(footprint[0])
        y = surface.centre[1] * edge + surface.walk * np.asarray(y_spot, float) + grow * np.asarray(footprint[1])
        found.append((x, y, grow * beam, float(strength)))
    return found


def _strengths(seed: int, settings: Ghosts, camera: Camera, band: str, w: Array, filters: Filters) -> list[Array]:
    """Light of each ghost, as a fraction of the focused light, at every wavelength."""
    reflected = 1 - transmission(seed, filters, camera, band, w, 0.0, 0.0)
    if not settings.on:
        return [np.zeros(w.shape)] * len(_SURFACES)
    coating = settings.fraction * (1 + settings.color * ((w - 700) / 400) ** 2)
    return [s.share * coating * (1 + s.filter * settings.filter_edge * reflected) for s in _SURFACES]


def scatter(seed: int, settings: Scatter, camera: Camera, x: Any, y: Any, wavelength: Any) -> Array:
    """Scattered light of a uniform flat-field screen, relative to its focused light on the axis; smooth.

    Of a spot, light scatters alike wherever it was focused: so much times (the area of a pixel) / (the area of the
    field, a disc of 1.75 degrees) falls into a pixel, and the spots of a whole field add up to that of the screen.

    Parameters
    ----------
    x, y : focal plane position, mm, any shape.
    wavelength : nm, any shape.

    Returns
    -------
    Shape of ``x`` followed by that of ``wavelength``; zeros if switched off.
    """
    w = np.asarray(wavelength, float)
    u, v = (angle / EDGE for angle in field_radius(camera, x, y))
    if not settings.on:
        return np.zeros(np.broadcast_shapes(u.shape, v.shape) + w.shape)
    floor = np.maximum(1 + settings.texture * waves(stream(seed, "scatter"), u, v, 4, 0.7), 0)
    return np.asarray(settings.level * floor[(..., *(None,) * w.ndim)] * (w / 700) ** settings.slope)
