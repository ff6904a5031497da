"""Collimated Beam Projector: its optics and where its beams go (Lupton 2016, Secs. 2.8.4, A ¶10).

A laser lights a mask in the focal plane of a small telescope turned round. Each hole sends out a parallel
beam that meets a patch of the primary mirror, the footprint, and comes to a focus on the camera at the field
angle of its direction, ``telescope / projector`` focal lengths (16.5 for LSST) larger than the hole.

Directions: the pattern is turned about its centre by the rotation (field x towards field y), then carried
from the axis to the field angle of its centre along the great circle. Field angles are arcs, as in
`instrument.geometry`, so the centre lands exactly on the field angle that was asked for.

Wavelength and power of its light are the laser's: see `illumination`.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.instrument.geometry import focal_to_field
from lsstcal_dask.simulate import random
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.exposure import Exposure, Projection
from lsstcal_dask.simulate.optics import OBSCURATION, PUPIL_RADIUS

__all__ = [
    "MIRROR",
    "Projector",
    "Shot",
    "directions",
    "footprint",
    "hole_position",
    "illumination",
    "in_force",
    "pattern_radius",
    "projection",
    "shot",
    "telescope_mm",
    "transmission",
]

_ARCSEC: Final = np.pi / (180 * 3600)
_MODES: Final = 6  # random waves in the transmission
_FLAWS: Final = (
    *("area_scatter", "roll_off", "distortion", "ripple", "pointing_jitter", "rotation_error"),
    *("blur", "diffraction"),
)

MIRROR: Final = (OBSCURATION * PUPIL_RADIUS, PUPIL_RADIUS)
"""Inner and outer radius of the primary mirror, m."""


class Projector(Effect):
    """The projector of the Rubin observatory; switched off it is perfect and every hole of a mask gives the same spot.

    Focal length and aperture are those of SITCOMTN-152. The rest is of the size that such instruments have
    and not a measurement.
    """

    focal_length: float = Field(default=625.0, gt=0)  # mm
    aperture: float = Field(default=0.24, gt=0)  # m, diameter of a beam; the source document has 0.3
    distance: float = Field(default=12.0, ge=0)  # m, from its pupil to the primary mirror
    area_scatter: float = Field(default=0.05, ge=0, lt=1)  # rms of ln(area of a hole)
    roll_off: float = Field(default=0.1, ge=0, lt=1)  # loss of illumination at the edge of the pattern
    roll_off_center: tuple[float, float] = (0.2, -0.1)  # of the brightest point, in radii of the pattern
    distortion: float = Field(default=2e-4, gt=-0.1, lt=0.1)  # relative, at the edge of the pattern
    throughput: float = Field(default=0.75, gt=0, le=1)  # of its optics at their best
    ripple: float = Field(default=0.02, ge=0, lt=0.2)  # rms of slow waves in ln(throughput)
    pointing_jitter: float = Field(default=0.2, ge=0)  # arcsec, rms of an exposure in each coordinate
    rotation_error: float = Field(default=0.005, ge=0)  # deg, rms of an exposure
    diode_share: float = Field(default=1000.0, gt=0)  # photons on the photodiode at the mask, of one in a typical hole
    blur: float = Field(default=0.8, ge=0)  # px, rms in each coordinate by the aberrations of both telescopes
    diffraction: float = Field(default=1.0, ge=0)  # strength; 1 is that of the aperture


@dataclass(frozen=True)
class Shot:
    """Where the projector really pointed in an exposure; where it was to point says its `Projection`."""

    azimuth: float  # deg
    elevation: float  # deg
    rotation: float  # deg


def in_force(settings: Projector) -> Projector:
    """Return the settings, of a perfect projector if they are switched off."""
    return settings if settings.on else settings.model_copy(update=dict.fromkeys(_FLAWS, 0.0))


def projection(exposure: Exposure) -> Projection:
    """What the projector was asked to do; WrongUse if it takes no part in the exposure."""
    if not isinstance(exposure.source, Projection):
        raise WrongUse(f"{exposure.name}: its source is no projector: give a Projection")
    return exposure.source


def shot(seed: int, settings: Projector, exposure: Exposure) -> Shot:
    """Return where the projector really pointed during an exposure."""
    asked, settings = projection(exposure), in_force(settings)
    draws = random.stream(seed, "projector", exposure=exposure.number).standard_normal(3)
    jitter = settings.pointing_jitter / 3600
    return Shot(
        azimuth=asked.azimuth + jitter * draws[0],
        elevation=asked.elevation + jitter * draws[1],
        rotation=asked.rotation + settings.rotation_error * draws[2],
    )


def transmission(seed: int, settings: Projector, wavelength: Any) -> np.ndarray:
    """Throughput of the projector's optics at wavelengths in nm.

    Two aluminium mirrors, whose reflectance dips by 5 % at 825 nm, and a corrector that fades below 350 nm;
    on top of them slow waves (coatings, dust) of random phase, 80 nm and longer, rms ``ripple``.
    """
    wavelength = np.asarray(wavelength, float)
    if not settings.on:
        return np.ones_like(wavelength)
    phase = random.stream(seed, "projector_transmission").uniform(0, 2 * np.pi, _MODES)
    periods = 80.0 * 1.6 ** np.arange(_MODES)  # nm
    waves = np.sum(np.cos(2 * np.pi * wavelength[..., None] / periods + phase), -1) * np.sqrt(2 / _MODES)
    aluminium = 1 - 0.05 * np.exp(-0.5 * ((wavelength - 825) / 45) ** 2)
    corrector = 1 / (1 + np.exp((330 - wavelength) / 12))
    return settings.throughput * aluminium**2 * corrector * np.exp(settings.ripple * waves)


def telescope_mm(camera: Camera) -> float:
    """Focal length, mm, of the telescope the camera sits on."""
    return 1 / (camera.plate_scale * _ARCSEC)


def pattern_radius(settings: Projector, camera: Camera) -> float:
    """Distance on the mask, mm, from its centre to the hole that lights the farthest corner of the camera."""
    reach = max(np.hypot(*d.center_mm) + np.hypot(*d.shape) * d.pixel_mm / 2 for d in camera.detectors)
    return float(np.hypot(*hole_position(settings, camera, reach, 0.0)))


def hole_position(settings: Projector, camera: Camera, x: Any, y: Any) -> tuple[Any, Any]:
    """Place on the mask, mm, of a hole that lights (x, y) mm of the focal plane when the pattern is on the axis.

    For a projector without distortion, as one who designs a mask would have it.
    """
    u, v = focal_to_field(camera, x, y)
    return settings.focal_length * _slope(u, u, v), settings.focal_length * _slope(v, u, v)


def illumination(settings: Projector, camera: Camera, x: Any, y: Any) -> Any:
    """Light on the mask at (x, y) mm, relative to its brightest point."""
    settings, edge = in_force(settings), pattern_radius(settings, camera)
    u, v = np.asarray(x) / edge - settings.roll_off_center[0], np.asarray(y) / edge - settings.roll_off_center[1]
    return np.maximum(1 - settings.roll_off * (u**2 + v**2), 0.0)


def directions(settings: Projector, camera: Camera, real: Shot, x: Any, y: Any) -> tuple[Any, Any]:
    """Field angles, rad, of the beams of holes at (x, y) mm of the mask."""
    settings, x, y = in_force(settings), np.asarray(x, float), np.asarray(y, float)
    bend = settings.distortion / pattern_radius(settings, camera) ** 2
    slope = (1 + bend * (x**2 + y**2)) / settings.focal_length
    cos, sin = np.cos(np.deg2rad(real.rotation)), np.sin(np.deg2rad(real.rotation))
    beam = np.stack([(x * cos - y * sin) * slope, (x * sin + y * cos) * slope, np.ones_like(x * y)])
    return _field(_carry(np.deg2rad(real.azimuth), np.deg2rad(real.elevation)) @ beam.reshape(3, -1), beam.shape[1:])


def _carry(u: float, v: float) -> np.ndarray:
    """Matrix that takes the axis (0, 0, 1) to the field angle (u, v) along the great circle."""
    angle = np.hypot(u, v)
    cx, cy = (u / angle, v / angle) if angle else (1.0, 0.0)
    sin, rise = np.sin(angle), 2 * np.sin(angle / 2) ** 2  # one minus the cosine, without loss of digits
    return np.array(
        [
            [1 - rise * cx * cx, -rise * cx * cy, sin * cx],
            [-rise * cx * cy, 1 - rise * cy * cy, sin * cy],
            [-sin * cx, -sin * cy, 1 - rise],
        ]
    )


def _field(beam: np.ndarray, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Field angles of directions (3, n)."""
    off = np.hypot(beam[0], beam[1])
    angle = np.arctan2(off, beam[2])
    stretch = np.divide(angle, off, out=np.ones_like(off), where=off > 0)
    return (beam[0] * stretch).reshape(shape), (beam[1] * stretch).reshape(shape)


def footprint(settings: Projector, centre: tuple[float, float], real: Shot, u: Any, v: Any) -> tuple[Any, Any]:
    """Where beams of field angles (u, v) rad meet the primary mirror, m from its centre.

    Whatever the pointing and rotation, the beam of the pattern's centre meets ``centre``, in m. All beams cross in
    the pupil of the projector, ``distance`` above the mirror, so the others spread about it.
    """
    u0, v0 = np.deg2rad(real.azimuth), np.deg2rad(real.elevation)
    return (
        centre[0] - settings.distance * (_slope(u, u, v) - _slope(u0, u0, v0)),
        centre[1] - settings.distance * (_slope(v, u, v) - _slope(v0, u0, v0)),
    )


def _slope(component: Any, u: Any, v: Any) -> Any:
    """Component of the tangent of a field angle (u, v), along the coordinate of the one that is given."""
    angle = np.hypot(u, v)
    return np.asarray(component) * np.sinc(angle / np.pi) / np.cos(angle)
