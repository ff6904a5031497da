"""Mirrors, lenses and the pupil: throughput, vignetting and the angle at which light meets a filter (Lupton 2016, ¶10).

Effects of the optics vary over LSSTCam's whole field. So that a camera of a few millimetres shows them too, a camera
that does not reach `EDGE` = 1.75 degrees is seen as if its farthest CCD corner lay there; the angles so stretched are
the *equivalent* field angles that every optical effect of this room takes. LSSTCam's own are not stretched: the
corners of its corner CCDs lie at 2.05 degrees and are as dark as in the sky.
"""

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from pydantic import Field, PositiveFloat
from scipy.special import ndtr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.instrument.geometry import field_to_focal, focal_to_field
from lsstcal_dask.simulate.effect import Effect

__all__ = [
    "EDGE",
    "OBSCURATION",
    "PUPIL_RADIUS",
    "Mirrors",
    "Vignetting",
    "admitted",
    "disc_in_annulus",
    "edge_mm",
    "effective_area",
    "field_radius",
    "incidence",
    "mirrors",
    "pupil_rays",
    "vignetting",
    "waves",
]

Array = np.ndarray

PUPIL_RADIUS: Final = 4.18
"""Of the primary mirror, m."""

OBSCURATION: Final = 0.61
"""Radius of the hole in the pupil over that of the pupil."""

EDGE: Final = 1.75
"""Angle of the nominal edge of the field from the axis, deg."""

_SIN_EDGE: Final = float(np.sin(np.deg2rad(23.6)))  # of the marginal ray of the f/1.23 beam at the filter (¶10)


class Mirrors(Effect):
    """Throughput of three mirrors and three lenses; see `mirrors`."""

    gray: float = Field(1.0, gt=0, le=1)  # what dirt on the mirrors leaves, at every wavelength


class Vignetting(Effect):
    """Two stops whose blurred shadows walk over the pupil with field angle; see `admitted`.

    The defaults fit the vignetting of LSSTCam that imSim's ray trace gives (0.98 at 1.2 degrees, 0.95 at 1.5,
    0.87 at 1.75, 0.5 at 1.94) to 0.6 % rms.
    """

    radius: tuple[PositiveFloat, PositiveFloat] = (8.605, 44.10)  # m, of the openings as seen on the primary mirror
    walk: tuple[float, float] = (2.472, 22.73)  # m/deg, of their centres away from the source
    blur: tuple[PositiveFloat, PositiveFloat] = (1.439, 1.158)  # m, rms of their edges


def effective_area() -> float:
    """Area of the primary mirror that light on the axis can use, m2."""
    return float(np.pi * PUPIL_RADIUS**2 * (1 - OBSCURATION**2))


def mirrors(settings: Mirrors, wavelength: Any) -> Array:
    """Fraction of the light on the axis that three mirrors and three lenses pass, without filter.

    Smooth descriptions of the LSST baseline tables m1, m2, m3 and lens1, lens2, lens3 (lsst/throughputs 1.9),
    fitted over 305-1095 nm to 0.7 % and 0.6 % rms: a silver coating with its absorption below 330 nm; the ripple
    of anti-reflection coatings and the OH band of fused silica at 943 nm.

    Parameters
    ----------
    wavelength : nm, vacuum, any shape.

    Returns
    -------
    Shape of ``wavelength``; ones if switched off.
    """
    w = np.asarray(wavelength, float)
    if not settings.on:
        return np.ones(w.shape)
    mirror = ndtr((w - 328.5) / 8.415) * (0.9494 - 0.0870 * (400 / w) ** 6.610)
    ripple = 1 + 0.0083 * np.cos(2 * np.pi * (1278.7 / w - 0.8868))
    silica = 1 - 0.0346 * np.exp(-0.5 * ((w - 942.6) / 7.01) ** 2)
    lenses = 0.8563 * -np.expm1(-np.maximum(w - 281.7, 0) / 12.30) * ripple * silica
    return np.asarray(settings.gray * np.maximum(mirror, 0) ** 3 * lenses)


def _reach(camera: Camera) -> float:
    """Equivalent field angles over true ones."""
    true = np.rad2deg(np.hypot(*focal_to_field(camera, max(map(_farthest, camera.detectors)), 0.0)))
    return max(1.0, EDGE / float(true))


def _farthest(detector: Detector) -> float:
    """Distance from the axis to the farthest corner of a CCD, mm."""
    ny, nx = detector.shape
    yaw = math.radians(detector.yaw_deg)
    u, v = nx * detector.pixel_mm / 2, ny * detector.pixel_mm / 2
    wide, tall = (u * math.cos(yaw), u * math.sin(yaw)), (-v * math.sin(yaw), v * math.cos(yaw))
    x, y = detector.center_mm
    return max(
        math.hypot(x + a * wide[0] + b * tall[0], y + a * wide[1] + b * tall[1]) for a in (-1, 1) for b in (-1, 1)
    )


def field_radius(camera: Camera, x_mm: Any, y_mm: Any) -> tuple[Array, Array]:
    """Equivalent field angles (x, y), deg, of a focal plane position in mm.

    The true ones times max(1, 1.75 deg / angle of the camera's farthest CCD corner).
    """
    scale = np.rad2deg(1.0) * _reach(camera)
    u, v = focal_to_field(camera, x_mm, y_mm)
    return u * scale, v * scale


def edge_mm(camera: Camera) -> float:
    """Distance from the axis, mm, at which the equivalent field angle is `EDGE`."""
    x, y = field_to_focal(camera, np.deg2rad(EDGE) / _reach(camera), 0.0)
    return float(np.hypot(x, y))


def pupil_rays(n: int) -> tuple[Array, Array, Array]:
    """Points of the pupil, X, Y in m on the primary mirror, and weights of sum 1, to average over it.

    Rings at the nodes of Gauss and Legendre in the square of the radius, points evenly spaced on each. There are
    about (n / 3)**0.5 rings and at most ``n`` points: 12 = 2 x 6, 27 = 3 x 9, 48 = 4 x 12.

    Raises
    ------
    WrongUse
        Fewer than 4 points.
    """
    if n < 4:
        raise WrongUse(f"{n} rays cannot sample the pupil: use 12 to 48")
    rings = max(1, round((n / 3) ** 0.5))
    nodes, weights = np.polynomial.legendre.leggauss(rings)
    square = OBSCURATION**2 + (1 - OBSCURATION**2) * (nodes + 1) / 2
    around = n // rings
    turn = 2 * np.pi * (np.arange(around) + 0.5 * (np.arange(rings)[:, None] % 2)) / around
    radius = PUPIL_RADIUS * np.sqrt(square)[:, None]
    share = np.repeat(weights / (2 * around), around)
    return (radius * np.cos(turn)).ravel(), (radius * np.sin(turn)).ravel(), share


def admitted(settings: Vignetting, camera: Camera, x: Any, y: Any, X: Any, Y: Any) -> Array:
    """Fraction of the light that meets the primary mirror at (X, Y) m which reaches focal plane position (x, y) mm.

    Each stop passes Phi((radius - distance) / blur) of a ray, the distance on the primary mirror being from the
    centre of its opening: ``walk`` times the equivalent field angle away from the mirror's own. Its average over the
    pupil, divided by that on the axis, is `vignetting`. All arguments broadcast.
    """
    u, v = field_radius(camera, x, y)
    out = np.ones(np.broadcast_shapes(u.shape, v.shape, np.shape(X), np.shape(Y)))
    if settings.on:
        for radius, walk, blur in zip(settings.radius, settings.walk, settings.blur, strict=True):
            out = out * ndtr((radius - np.hypot(X - walk * u, Y - walk * v)) / blur)
    return out


def vignetting(settings: Vignetting, camera: Camera, x: Any, y: Any) -> Array:
    """Light that reaches a focal plane position (x, y) mm relative to the axis, pupil averaged; any shape."""
    u, v = field_radius(camera, x, y)
    if not settings.on:
        return np.ones(np.broadcast_shapes(u.shape, v.shape))
    angle, passed = _vignetting_table(settings)
    return np.asarray(np.interp(np.hypot(u, v), angle, passed))


@lru_cache(maxsize=8)
def _vignetting_table(settings: Vignetting) -> tuple[Array, Array]:
    """Angles, deg, and `vignetting` there: between them a straight line is good to 2e-6."""
    angle = np.linspace(0, 2.4, 1201)
    X, Y, weight = pupil_rays(1200)
    passed = np.zeros(angle.size)
    for ray_x, ray_y, share in zip(X, Y, weight, strict=True):
        light = np.full(angle.size, share)
        for radius, walk, blur in zip(settings.radius, settings.walk, settings.blur, strict=True):
            light *= ndtr((radius - np.hypot(ray_x - walk * angle, ray_y)) / blur)
        passed += light
    passed /= passed[0]
    angle.flags.writeable = passed.flags.writeable = False
    return angle, passed


def incidence(camera: Camera, x: Any, y: Any, X: Any, Y: Any) -> Array:
    """Angle, deg, at which a ray from pupil point (X, Y) m to focal plane position (x, y) mm meets the filter.

    Its sine grows as the distance from the pupil's centre, to 23.6 degrees at the edge; 14.1 at the hole. The filter
    is curved so that this is the same over the field: the rays averaged in the camera team's curves lie at 18.5
    degrees at the centre and at 18.6 at its edge. All arguments broadcast.
    """
    u, v = field_radius(camera, x, y)
    sine = np.minimum(np.hypot(X, Y) * (_SIN_EDGE / PUPIL_RADIUS), 1.0)
    return np.broadcast_to(np.rad2deg(np.arcsin(sine)), np.broadcast_shapes(u.shape, v.shape, sine.shape))


def waves(random: np.random.Generator, x: Array, y: Array, modes: int, cycles: float) -> Array:
    """A smooth random field: a sum of plane waves of random direction, length and phase.

    Parameters
    ----------
    x, y : position in units of the radius of the field, any shape.
    modes : how many waves.
    cycles : of the shortest wave over the radius.

    Returns
    -------
    Shape of ``x``; its mean square over phases is 1.
    """
    length = 2 * np.pi * cycles * np.sqrt(random.random(modes))
    turn, phase = 2 * np.pi * random.random((2, modes))
    out = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)))
    for k, angle, start in zip(length, turn, phase, strict=True):
        out = out + np.cos(k * (np.cos(angle) * x + np.sin(angle) * y) + start)
    return np.asarray(out * np.sqrt(2 / modes))


def disc_in_annulus(distance: Any, disc: float, inner: float, outer: float) -> Array:
    """Part of the area of a disc that lies within an annulus.

    Parameters
    ----------
    distance : of the disc's centre from that of the annulus, in the unit of the radii, any shape.
    disc, inner, outer : radii.
    """
    inside = _shared(distance, disc, outer) - _shared(distance, disc, inner)
    return np.maximum(inside, 0.0) / (np.pi * disc**2)


def _shared(distance: Any, a: float, b: float) -> Array:
    """Area that two discs of radii a and b have in common: two segments of circle."""
    small = min(a, b)
    distance = np.asarray(distance, float)
    if small <= 0:
        return np.zeros(distance.shape)
    d = np.clip(distance, max(abs(a - b), 1e-9 * small), a + b)
    half_a = np.arccos(np.clip((d**2 + a**2 - b**2) / (2 * d * a), -1, 1))
    half_b = np.arccos(np.clip((d**2 + b**2 - a**2) / (2 * d * b), -1, 1))
    kite = np.sqrt(np.maximum((a + b - d) * (d + a - b) * (d - a + b) * (d + a + b), 0)) / 2
    area = np.where(distance <= abs(a - b), np.pi * small**2, a**2 * half_a + b**2 * half_b - kite)
    return np.where(distance < a + b, area, 0.0)
