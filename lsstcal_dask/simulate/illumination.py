"""Light sent into the telescope in the dome: flat-field screen, lamp and laser (Lupton 2016, ¶8-¶10)."""

from functools import lru_cache
from typing import Any, Final, Literal, TypeGuard

import numpy as np
from pydantic import Field
from scipy.constants import c, h, k
from scipy.special import ndtr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Projection, Sinusoid
from lsstcal_dask.simulate.optics import EDGE, field_radius, waves
from lsstcal_dask.simulate.random import stream

__all__ = [
    "LampDrift",
    "Laser",
    "Screen",
    "lamp_brightness",
    "lamp_spectrum",
    "laser_centre",
    "laser_line",
    "screen",
]

Array = np.ndarray

_FILAMENT: Final = 3200.0  # K, a quartz-halogen lamp
_LIMITS: Final = (300.0, 1150.0)  # nm, of the lamp
_MODES: Final = 6
_FWHM: Final = float(2 * np.sqrt(2 * np.log(2)))  # of a Gaussian, in units of its rms


class Screen(Effect):
    """How far the screen is from a uniform one at infinity, see `screen`. Made up; of the size usual in domes."""

    gradient: float = Field(0.015, ge=0)  # rms of each component, from the axis to 1.75 degrees
    fall: float = Field(0.02)  # loss from the axis to 1.75 degrees: reflection that is not Lambert's, finite distance
    texture: float = Field(0.004, ge=0)  # rms of the smooth random field
    color: float = Field(0.2, ge=0)  # rms relative change of each part over 400 nm


class Laser(Effect):
    """Tunable laser of screen and projector: the wavelengths it gives against what is asked for."""

    jitter: float = Field(0.1, ge=0)  # nm rms, of the centre of the line from exposure to exposure
    shape: Literal["gaussian", "tophat"] = "gaussian"  # of the line


class LampDrift(Effect):
    """Brightness of lamp and laser from exposure to exposure, relative, whatever they light."""

    scatter: float = Field(1e-3, ge=0)  # rms of the lamp, independent in each exposure
    laser_scatter: float = Field(0.02, ge=0, lt=0.2)  # the same of the laser, whose pulses differ
    drift: float = Field(1e-3, ge=0)  # rms of both, over hours


def screen(seed: int, settings: Screen, camera: Camera, x: Any, y: Any, wavelength: Any) -> Array:
    """Light of the flat-field screen that the focused path brings to a place, relative to its mean over the field.

    1 + gradient . r - fall r**2 + texture(r), r the equivalent field angle over 1.75 degrees; gradient and texture
    change linearly, a little, with wavelength. Divided by its mean over the disc r < 1.

    Parameters
    ----------
    x, y : focal plane position, mm, any shape.
    wavelength : nm, any shape.

    Returns
    -------
    Shape of ``x`` followed by that of ``wavelength``; ones if switched off.
    """
    w = np.asarray(wavelength, float)
    u, v = (angle / EDGE for angle in field_radius(camera, x, y))
    if not settings.on:
        return np.ones(np.broadcast_shapes(u.shape, v.shape) + w.shape)
    widen = (..., *(None,) * w.ndim)
    gray, tilt = _parts(seed, settings, u, v)
    gray_mean, tilt_mean = _means(seed, settings)
    phase = (w - 700) / 400
    return np.asarray((gray[widen] + tilt[widen] * phase) / (gray_mean + tilt_mean * phase))


def _parts(seed: int, settings: Screen, u: Array, v: Array) -> tuple[Array, Array]:
    """The screen at 700 nm, and its change over 400 nm."""
    random = stream(seed, "screen")
    slope, color = settings.gradient * random.normal(size=2), settings.color * random.normal(size=3)
    texture = settings.texture * waves(random, u, v, _MODES, 1.2)
    other = settings.texture * waves(random, u, v, _MODES, 1.2)
    gray = 1 + slope[0] * u + slope[1] * v - settings.fall * (u**2 + v**2) + texture
    return gray, slope[0] * color[0] * u + slope[1] * color[1] * v + color[2] * other


@lru_cache(maxsize=32)
def _means(seed: int, settings: Screen) -> tuple[float, float]:
    """Of both parts over the disc of 1.75 degrees."""
    radius = np.sqrt((np.arange(24) + 0.5) / 24)[:, None]
    turn = 2 * np.pi * np.arange(48) / 48
    gray, tilt = _parts(seed, settings, radius * np.cos(turn), radius * np.sin(turn))
    return float(gray.mean()), float(tilt.mean())


def lamp_spectrum(wavelength: Any) -> Array:
    """Photons per nm of the broadband lamp, of which it sends one in all between 300 and 1150 nm.

    A filament of 3200 K behind a glass that cuts the ultraviolet.

    Parameters
    ----------
    wavelength : nm, any shape; without light outside 300-1150 nm.
    """
    w = np.asarray(wavelength, float)
    inside = (w >= _LIMITS[0]) & (w <= _LIMITS[1])
    return np.where(inside, _filament(np.clip(w, *_LIMITS)) / _lamp_total(), 0.0)


def _filament(w: Array) -> Array:
    """Photons of a black body, unnormalised, through the glass."""
    planck = (w / 700) ** -4 / np.expm1(h * c / (k * _FILAMENT * w * 1e-9))
    return np.asarray(planck * ndtr((w - 330) / 12))


@lru_cache(maxsize=1)
def _lamp_total() -> float:
    w = np.linspace(*_LIMITS, 17001)
    return float(np.trapezoid(_filament(w), w))


def laser_line(settings: Laser, wavelength: Any, centre: float, bandwidth: float) -> Array:
    """Profile of the laser, per nm, of unit area.

    Parameters
    ----------
    wavelength : nm, any shape.
    centre : nm, as `laser_centre` gives it.
    bandwidth : nm, full width at half maximum of a Gaussian or width of a top hat.
    """
    away = np.asarray(wavelength, float) - centre
    if settings.shape == "tophat":
        return np.where(np.abs(away) <= bandwidth / 2, 1 / bandwidth, 0.0)
    sigma = bandwidth / _FWHM
    return np.asarray(np.exp(-0.5 * (away / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)))


def laser_centre(seed: int, settings: Laser, exposure: Exposure) -> float:
    """Wavelength, nm, that the laser really has in an exposure.

    Raises
    ------
    WrongUse
        The light of the exposure is not the laser's.
    """
    source = exposure.source
    if not _is_laser(source):
        raise WrongUse(f"exposure {exposure.name}: its light is not monochromatic: give it a wavelength in nm")
    jitter = settings.jitter if settings.on else 0.0
    return float(source.wavelength + jitter * stream(seed, "laser", exposure=exposure.number).normal())


def _is_laser(source: Any) -> TypeGuard[Lamp | Projection | Sinusoid]:
    narrow = isinstance(source, Lamp) and bool(np.isfinite(source.wavelength))
    return narrow or isinstance(source, Projection | Sinusoid)


def lamp_brightness(seed: int, settings: LampDrift, exposure: Exposure) -> float:
    """Brightness of lamp or laser in an exposure, relative to what was asked for: slow drift and independent part."""
    if not settings.on:
        return 1.0
    days = (exposure.time - np.datetime64("2026-01-01", "ms")) / np.timedelta64(1, "D")
    slow = waves(stream(seed, "lamp drift"), np.asarray(days), np.zeros(()), 12, 12.0)
    quick = stream(seed, "lamp scatter", exposure=exposure.number).normal()
    scatter = settings.laser_scatter if _is_laser(exposure.source) else settings.scatter
    return float(1 + settings.drift * slow + scatter * quick)
