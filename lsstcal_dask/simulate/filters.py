"""Filters: bands whose edges move with the place on the filter and the angle of the light (Lupton 2016, ¶10, ¶11).

A ray that meets an interference filter at an angle sees it at shorter wavelengths,
lambda(angle) = lambda_0 (1 - sin(angle)**2 / n**2)**0.5: what a pixel receives is the average over the pupil.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import Field
from scipy.special import ndtr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.optics import EDGE, Vignetting, admitted, field_radius, incidence, pupil_rays, waves
from lsstcal_dask.simulate.random import stream

__all__ = ["BANDS", "Filters", "angle_factor", "check_band", "filter_curves", "transmission", "wavelength_range"]

Array = np.ndarray


class Filters(Effect):
    """How much the filters differ from one description for all, see `transmission`."""

    index: float = Field(1.8, gt=1)  # effective refractive index of the coatings (SCIENCE ¶10)
    rays: int = Field(48, ge=4)  # of the pupil average
    gradient: float = Field(1.0, ge=0)  # 1: the edges move from centre to rim as those of the real filters
    wander: float = Field(0.3, ge=0)  # nm rms, smooth random displacement of an edge over the filter
    ripple: float = Field(0.004, ge=0, le=0.1)  # rms, random fast ripple of the plateau
    leak: float = Field(1.0, ge=0)  # 1: out-of-band leaks of the real filters
    floor: float = Field(1e-5, ge=0, le=1e-2)  # transmission of what is blocked
    measurement_noise: float = Field(5e-4, ge=0)  # of the camera team's curves, rms
    moved: float = 0.0  # nm towards the red, all of a filter since the camera team measured its curves


@dataclass(frozen=True)
class _Edge:
    """Half-power wavelength of an edge at normal incidence."""

    wavelength: float  # nm, at the centre of the field
    width: float  # nm, rms of the error function
    square: float  # nm, displacement at 1.75 degrees that grows as the square of the angle
    fourth: float  # nm, as its fourth power

    def at(self, radius2: Array) -> Array:
        """Displacement, nm, at a square of the field angle in units of 1.75 degrees."""
        return np.asarray(self.square * radius2 + self.fourth * radius2**2)


@dataclass(frozen=True)
class _Band:
    """One filter at normal incidence."""

    blue: _Edge
    red: _Edge
    level: tuple[float, ...]  # of the plateau: coefficients of cos(pi k u), u from 0 at the blue edge to 1 at the red
    slope: float  # change of the level from the centre of the field to 1.75 degrees
    leaks: tuple[tuple[float, float, float], ...] = ()  # centre nm, width nm rms, height


FILTERS: Final = "ugrizy"
BANDS: Final = ("none", *FILTERS)
"""Names of what can be in the beam."""

_LAST: Final = 1100.0  # nm, where the plateau of y ends as far as is known
_RIM2: Final = 1.4  # square of the field angle, in units of 1.75 degrees, beyond which a filter does not change

# Fitted to the 189 curves of each filter that lsst/obs_lsst_data holds (scans by Materion, integrated over the beam
# of LSSTCam). Half-power wavelengths agree to 0.06 (u) - 0.2 nm (y) rms over the detectors; transmissions of the band
# to 0.9 % (y) - 2.1 % (u) rms, mostly because real edges are not quite error functions. What y does beyond 1100 nm is
# not in them; it is taken to pass.
_BANDS: Final = {
    "u": _Band(
        _Edge(325.30, 7.45, -1.17, -0.20),
        _Edge(400.27, 6.09, 1.18, -1.35),
        (0.8020, -0.0042, -0.0085, 0.0075, 0.0015),
        0.0879,
    ),
    "g": _Band(
        _Edge(406.04, 3.66, 1.40, -1.93),
        _Edge(560.55, 8.11, 3.18, -3.70),
        (0.9859, -0.0152, -0.0021, -0.0049, 0.0028),
        -0.0239,
        ((358.0, 9.0, 0.0095), (1110.0, 18.0, 0.013)),
    ),
    "r": _Band(
        _Edge(559.87, 4.87, -1.80, -1.16),
        _Edge(703.37, 6.01, 3.10, -3.48),
        (0.9536, 0.0039, -0.0047, 0.0002, -0.0038),
        0.0104,
        ((532.0, 6.0, 0.003),),
    ),
    "i": _Band(
        _Edge(703.43, 7.32, 2.70, -1.45),
        _Edge(832.66, 6.64, 7.14, -3.02),
        (0.9864, 0.0075, 0.0079, 0.0082, 0.0081),
        0.0002,
    ),
    "z": _Band(
        _Edge(834.48, 5.01, -4.21, 0.46),
        _Edge(942.48, 3.98, -0.24, -0.72),
        (0.9886, 0.0153, -0.0061, 0.0115, -0.0026),
        -0.0037,
        ((305.0, 8.0, 0.002), (1152.0, 5.0, 0.018)),
    ),
    "y": _Band(
        _Edge(941.48, 4.96, 2.12, 1.67),
        _Edge(1250.0, 4.0, 0.0, 0.0),
        (0.9941, -0.0040, -0.0036, 0.0, -0.0001),
        -0.0105,
        ((893.0, 9.0, 0.001),),
    ),
}
_NONE: Final = "none"
_MODES: Final = 8  # of the random displacement of an edge
_RIPPLES: Final = 5  # of the random ripple of a plateau
_LIMITS: Final = (300.0, 1150.0)  # nm, of the model


def check_band(band: str) -> None:
    """Raise unless there is such a filter.

    Raises
    ------
    WrongUse
        Naming the filters there are.
    """
    if band not in BANDS:
        raise WrongUse(f"no filter {band!r} in the simulation: use one of {', '.join(BANDS)}")


def wavelength_range(band: str) -> tuple[float, float]:
    """Shortest and longest wavelength, nm, that matter in a band, leaks aside; 300 and 1150 nm without filter.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    check_band(band)
    if band == _NONE:
        return _LIMITS
    blue, red = _BANDS[band].blue, _BANDS[band].red
    low = blue.wavelength * 0.975 - 4 * blue.width - 5  # 23.6 degrees move an edge by 2.5 %
    high = red.wavelength + 4 * red.width + 5
    return max(float(np.floor(low)), _LIMITS[0]), min(float(np.ceil(high)), _LIMITS[1])


def angle_factor(settings: Filters, angle: Any) -> Array:
    """Wavelength of a feature at an angle of incidence, deg, over that at normal incidence."""
    return np.asarray(np.sqrt(1 - (np.sin(np.deg2rad(angle)) / settings.index) ** 2))


def transmission(
    seed: int,
    settings: Filters,
    camera: Camera,
    band: str,
    wavelength: Any,
    x: Any,
    y: Any,
    rays: tuple[Any, Any] | None = None,
    stops: Vignetting = Vignetting(),
) -> Array:
    """Fraction of the light that the filter passes on its way to a place of the focal plane.

    At normal incidence: a plateau times an error function for each edge, plus leaks and a floor. The edges move
    over the filter by a radial law and a smooth random field. The curve is stretched by `angle_factor` for each ray
    and averaged over the rays that reach the place.

    Parameters
    ----------
    band : one of `BANDS`.
    wavelength : nm, vacuum, any shape.
    x, y : focal plane position, mm, any shape.
    rays : point (X, Y) of the primary mirror, m, that the light comes from, for footprints of the Collimated Beam
        Projector, one for all or one for each place; the whole pupil if None.
    stops : what hides part of the pupil at large field angles, and so changes the average.

    Returns
    -------
    Shape of ``x`` followed by that of ``wavelength``; ones without filter or if switched off.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    check_band(band)
    w = np.asarray(wavelength, float) - settings.moved
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    if band == _NONE or not settings.on:
        return np.ones(x.shape + w.shape)
    angles, weights = _angles(settings, camera, x, y, rays, stops)
    blue, red, level = _place(seed, settings, camera, band, x, y)
    ripple = _ripple(seed, settings, band)
    out = np.zeros(x.shape + w.shape)
    widen = (..., *(None,) * w.ndim)
    for angle, weight in zip(angles, weights, strict=True):
        normal = w / angle_factor(settings, angle)[widen]
        out += weight[widen] * _curve(settings, band, normal, blue[widen], red[widen], level[widen], ripple)
    return out


def _angles(
    settings: Filters, camera: Camera, x: Array, y: Array, rays: tuple[Any, Any] | None, stops: Vignetting
) -> tuple[Array, Array]:
    """Angles of incidence, deg, (n,) or one (1, ...) for each position, and their weights (n, ...) there."""
    if rays is not None:
        return incidence(camera, x, y, *rays)[None], np.ones((1, *x.shape))
    X, Y, share = pupil_rays(settings.rays)
    angles, ring = np.unique(np.round(incidence(camera, 0, 0, X, Y), 9), return_inverse=True)
    weights = np.zeros((angles.size, *x.shape))
    for k in range(angles.size):
        on = ring == k
        light = admitted(stops, camera, x[..., None], y[..., None], X[on], Y[on])
        for one, part in zip(np.moveaxis(light, -1, 0), share[on], strict=True):
            weights[k] += part * one
    total = weights.sum(axis=0)
    return angles, np.divide(weights, total, out=np.full_like(weights, 1 / angles.size), where=total > 0)


def _place(seed: int, settings: Filters, camera: Camera, band: str, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Half-power wavelengths of both edges, nm at normal incidence, and level of the plateau relative to the centre."""
    kind = _BANDS[band]
    u, v = (angle / EDGE for angle in field_radius(camera, x, y))
    radius2 = np.minimum(u**2 + v**2, _RIM2)
    edges = []
    for step, edge in enumerate((kind.blue, kind.red)):
        wander = settings.wander * waves(stream(seed, f"filters {band}", step=step), u, v, _MODES, 1.5)
        edges.append(edge.wavelength + settings.gradient * edge.at(radius2) + wander)
    return edges[0], edges[1], 1 + settings.gradient * kind.slope * radius2


def _ripple(seed: int, settings: Filters, band: str) -> tuple[Array, Array, Array]:
    """Amplitude, cycles over the band and phase of the fast ripple."""
    random = stream(seed, f"filters {band}", step=2)
    cycles, phase = 6 + 14 * random.random(_RIPPLES), 2 * np.pi * random.random(_RIPPLES)
    return np.full(_RIPPLES, settings.ripple * np.sqrt(2 / _RIPPLES)), cycles, phase


def _curve(
    settings: Filters,
    band: str,
    w: Array,
    blue: Array,
    red: Array,
    level: Array,
    ripple: tuple[Array, Array, Array],
) -> Array:
    """Transmission at normal incidence."""
    kind = _BANDS[band]
    u = (w - kind.blue.wavelength) / (min(kind.red.wavelength, _LAST) - kind.blue.wavelength)
    fast = sum(a * np.cos(2 * np.pi * n * u + start) for a, n, start in zip(*ripple, strict=True))
    plateau = fast + sum(c * np.cos(np.pi * k * np.clip(u, 0, 1)) for k, c in enumerate(kind.level))
    passed = level * plateau * ndtr((w - blue) / kind.blue.width) * ndtr((red - w) / kind.red.width)
    leak = sum(height * np.exp(-0.5 * ((w - at) / width) ** 2) for at, width, height in kind.leaks)
    return np.asarray(np.clip(passed + settings.leak * leak + settings.floor, 0, 1))


def filter_curves(seed: int, settings: Filters, camera: Camera, band: str, wavelength: Any) -> xr.Dataset:
    """What the camera team delivers of a filter (¶11): its transmission for the beam of each detector, as measured.

    Returns
    -------
    ``transmission`` and ``transmission_error`` (detector, wavelength), with the detectors' centres ``x``, ``y``, mm.

    Raises
    ------
    WrongUse
        There is no such filter.
    """
    w = np.asarray(wavelength, float)
    x, y = np.array([detector.center_mm for detector in camera.detectors]).T
    found = transmission(seed, settings.model_copy(update={"moved": 0.0}), camera, band, w, x, y)
    if settings.on and band != _NONE:
        draws = (stream(seed, f"filter curves {band}", detector=d.id).normal(size=w.shape) for d in camera.detectors)
        found = found + settings.measurement_noise * np.stack(list(draws))
    error = np.full(found.shape, settings.measurement_noise if settings.on else 0.0)
    dims = ("detector", "wavelength")
    return xr.Dataset(
        {"transmission": (dims, found, {"units": ""}), "transmission_error": (dims, error, {"units": ""})},
        {
            "detector": [detector.name for detector in camera.detectors],
            "wavelength": ("wavelength", w, {"units": "nm"}),
            "x": ("detector", x, {"units": "mm"}),
            "y": ("detector", y, {"units": "mm"}),
        },
        {"filter": band},
    )
