"""Spots of the Collimated Beam Projector on the CCDs (Lupton 2016, Secs. 2.6, 2.8.4, A ¶10).

A spot is a disc of even surface brightness, as large as its hole is magnified at that place of the camera,
with an edge that is blurred by a Gaussian: aberrations, and the core of the diffraction image of the beam
(rms 0.42 lambda f / D). The far wings of that image fall as r0 / (2 pi r**3) with r0 = 2 lambda f / (pi**2 D),
the asymptote of the Airy pattern: they are a halo of that form round each spot.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from scipy.special import erf

from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.instrument.geometry import field_to_focal, focal_to_ccd
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre
from lsstcal_dask.simulate.masks import Mask, mask
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import disc_in_annulus
from lsstcal_dask.simulate.projector import (
    MIRROR,
    Projector,
    Shot,
    directions,
    footprint,
    illumination,
    in_force,
    projection,
    shot,
    telescope_mm,
    transmission,
)

__all__ = ["HALO_CORE", "SPOT", "Response", "beams", "blur_px", "disc_light", "spot_light", "spot_table", "wing_px"]

Response = Callable[[int, int, int, int, np.void], Any]
"""(y0, y1, x0, x1, spot) -> electron/photon in those pixels of the CCD, or one number for all.

The spot is its row of `beams`, with x and y in pixels of the CCD whose image is made, on it or not.
"""

SPOT: Final = np.dtype(
    [
        ("hole", "i4"),
        ("detector", "U16"),  # on whose pixels the centre lies; empty if on none
        ("x_mm", "f8"),  # of the centre, on the focal plane
        ("y_mm", "f8"),
        ("x", "f8"),  # of the centre, CCD pixel; NaN if on none
        ("y", "f8"),
        ("field_x", "f8"),  # rad
        ("field_y", "f8"),
        ("radius", "f8"),  # px
        ("photons", "f8"),  # 1/s, after the primary mirror has caught what it can
        ("wavelength", "f8"),  # nm, true centroid of the line
        ("bandwidth", "f8"),  # nm, full width at half maximum
        ("footprint_x", "f8"),  # m, on the primary mirror
        ("footprint_y", "f8"),
        ("passed", "f8"),  # part of the beam that meets the primary mirror
    ]
)

HALO_CORE: Final = 4.0
"""Widths of the blur by which the core of a halo is larger than the spot's radius."""

_STEP_MM: Final = 1e-3  # of the mask, over which the local magnification is taken
_SHARPEST: Final = 0.25  # px; an edge sharper than this looks the same in the pixels
_EDGE: Final = 6.0  # rms widths of the blur: beyond them the edge has less than 1e-8 of its height left
_NODES: Final = 48  # over 14 rms widths of a Gaussian: exact to 1e-10
_REACH: Final = 600.0  # px from the border of a CCD, within which the halo of a spot beside it is counted


def spot_table(site: Observatory, exposure: Exposure) -> np.ndarray:
    """Where every beam of an exposure goes, and how many photons it brings.

    Returns
    -------
    (hole,) array of dtype `SPOT`; holes whose light misses every CCD are included.

    Raises
    ------
    WrongUse
        The exposure has no projection, its mask is unknown or has fewer holes than were asked for.
    CalibrationError
        A beam is so far off the axis that the camera has no place for it.
    """
    table = beams(site, exposure)
    for detector in site.camera.detectors:
        x, y = focal_to_ccd(detector, table["x_mm"], table["y_mm"])
        inside = (np.abs(x - (detector.shape[1] - 1) / 2) <= detector.shape[1] / 2) & (
            np.abs(y - (detector.shape[0] - 1) / 2) <= detector.shape[0] / 2
        )
        table["detector"][inside], table["x"][inside], table["y"][inside] = detector.name, x[inside], y[inside]
    return table


def beams(site: Observatory, exposure: Exposure) -> np.ndarray:
    """`spot_table` before anyone has looked on which CCD a spot is; raises as it does."""
    seed, camera, settings = site.seed, site.camera, site.settings.projector
    asked, real = projection(exposure), shot(seed, settings, exposure)
    wavelength = laser_centre(seed, site.settings.laser, exposure)
    holes = mask(seed, settings, camera, asked.mask)
    u, v = directions(settings, camera, real, holes.x_mm, holes.y_mm)
    foot = footprint(settings, asked.footprint, real, u, v)
    table = np.zeros(len(holes), SPOT)
    table["hole"], table["x"], table["y"] = holes.hole, np.nan, np.nan
    table["field_x"], table["field_y"] = u, v
    table["x_mm"], table["y_mm"] = field_to_focal(camera, u, v)
    table["wavelength"], table["bandwidth"] = wavelength, asked.bandwidth
    table["footprint_x"], table["footprint_y"] = foot
    table["passed"] = disc_in_annulus(np.hypot(*foot), settings.aperture / 2, *MIRROR)
    table["radius"] = _radius(settings, camera, real, holes)
    light = holes.area * (holes.diameter_um / holes.typical_um) ** 2
    light = light * illumination(settings, camera, holes.x_mm, holes.y_mm)
    sent = asked.rate * lamp_brightness(seed, site.settings.lamp_drift, exposure)
    table["photons"] = sent * float(transmission(seed, settings, wavelength)) * light * table["passed"]
    return table


def _radius(settings: Projector, camera: Camera, real: Shot, holes: Mask) -> np.ndarray:
    """Radius (px) of a disc with the area of the image of each hole: the magnification depends on the place."""

    def image(dx: float, dy: float) -> np.ndarray:
        u, v = directions(settings, camera, real, holes.x_mm + dx, holes.y_mm + dy)
        return np.stack(field_to_focal(camera, u, v))

    along_x = (image(_STEP_MM, 0) - image(-_STEP_MM, 0)) / (2 * _STEP_MM)
    along_y = (image(0, _STEP_MM) - image(0, -_STEP_MM)) / (2 * _STEP_MM)
    area = np.abs(along_x[0] * along_y[1] - along_x[1] * along_y[0]) * holes.area
    return holes.diameter_um / 2e3 * np.sqrt(area) / camera.detectors[0].pixel_mm


def blur_px(settings: Projector, camera: Camera, wavelength: float) -> float:
    """Rms width (px, one coordinate) of the blur of a spot's edge at a wavelength in nm."""
    settings = in_force(settings)
    core = 0.42 * settings.diffraction * _airy_px(settings, camera, wavelength)
    return float(max(np.hypot(settings.blur, core), _SHARPEST))


def wing_px(settings: Projector, camera: Camera, wavelength: float) -> float:
    """Length r0 (px): at a distance r far from a spot the wings have r0 / (2 pi r**3) of its photons per pixel."""
    settings = in_force(settings)
    return float(2 / np.pi**2 * settings.diffraction * _airy_px(settings, camera, wavelength))


def _airy_px(settings: Projector, camera: Camera, wavelength: float) -> float:
    """Unit of the diffraction image, lambda f / D, in pixels."""
    return wavelength * 1e-9 * telescope_mm(camera) / settings.aperture / camera.detectors[0].pixel_mm


def spot_light(
    settings: Projector,
    camera: Camera,
    detector: Detector,
    spots: np.ndarray,
    response_at: Response | None = None,
) -> np.ndarray:
    """Light that beams of the projector focus on one CCD: their spots and the halos round them.

    Parameters
    ----------
    detector : of the camera.
    spots : of one exposure, as `beams` gives them.
    response_at : electron/photon at pixels of this CCD for the footprint of a spot; default 1. A halo takes the mean
        over its spot.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron/s in a pixel.
    """
    spots = spots.copy()
    spots["detector"] = detector.name
    spots["x"], spots["y"] = x, y = focal_to_ccd(detector, spots["x_mm"], spots["y_mm"])
    response_at = response_at or (lambda y0, y1, x0, x1, spot: 1.0)
    wavelength = float(spots["wavelength"][0])
    sigma, wing = blur_px(settings, camera, wavelength), wing_px(settings, camera, wavelength)
    halo_scale = spots["radius"] + HALO_CORE * sigma
    halo_part = wing / halo_scale
    image = np.zeros(detector.shape, np.float32)
    halos = []
    for i in np.flatnonzero(_distance(detector, x, y) < np.maximum(_REACH, spots["radius"] + _EDGE * sigma)):
        core = spots["photons"][i] * (1 - halo_part[i])
        level = _add_disc(image, (x[i], y[i], float(spots["radius"][i]), sigma), core, _of(response_at, spots[i]))
        halos.append((x[i], y[i], halo_scale[i], level * spots["photons"][i] * wing / (2 * np.pi)))
    if halos and wing > 0:
        _add_halos(image, np.array(halos, np.float32))
    return image


def _of(response_at: Response, spot: np.void) -> Callable[[int, int, int, int], Any]:
    return lambda y0, y1, x0, x1: response_at(y0, y1, x0, x1, spot)


def disc_light(
    detector: Detector, x_mm: np.ndarray, y_mm: np.ndarray, radius_mm: float, photons: np.ndarray, sigma: float
) -> np.ndarray:
    """Photons/s in the pixels of a CCD of discs of even light, on it or not.

    Parameters
    ----------
    x_mm, y_mm : (disc,), where their centres lie on the focal plane.
    radius_mm : of all.
    photons : (disc,), 1/s in each.
    sigma : px, blur of their edges.

    Returns
    -------
    (y, x) float32 over ``detector.shape``.
    """
    image = np.zeros(detector.shape, np.float32)
    x, y = focal_to_ccd(detector, x_mm, y_mm)
    radius = float(radius_mm) / detector.pixel_mm
    for i in np.flatnonzero(_distance(detector, x, y) < radius + _EDGE * sigma):
        _add_disc(image, (float(x[i]), float(y[i]), radius, sigma), float(photons[i]), lambda *_: 1.0)
    return image


def _distance(detector: Detector, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of CCD pixels from the CCD, 0 within."""
    ny, nx = detector.shape
    return np.hypot(np.maximum(np.maximum(-x, x - nx + 1), 0), np.maximum(np.maximum(-y, y - ny + 1), 0))


def _add_disc(
    image: np.ndarray, place: tuple[float, float, float, float], photons: float, response_at: Callable[..., Any]
) -> float:
    """Add a blurred disc (x, y, radius, blur; px) of so many photons; the mean response over it."""
    x, y, radius, sigma = place
    reach = radius + _EDGE * sigma + 1
    (y0, y1), (x0, x1) = (_span(c, reach, n) for c, n in zip((y, x), image.shape, strict=True))
    if y0 >= y1 or x0 >= x1:
        y0, x0 = (int(np.clip(round(c), 0, n - 1)) for c, n in zip((y, x), image.shape, strict=True))
        return float(np.mean(response_at(y0, y0 + 1, x0, x0 + 1)))
    patch = np.empty((y1 - y0, x1 - x0), np.float32)
    profile, start, step = _profile(radius, sigma)
    nodes, weights = np.polynomial.legendre.leggauss(4 if sigma > 0.7 else 8)
    _render(patch, x - x0, y - y0, profile, start, step, nodes / 2, weights / 2)
    response = response_at(y0, y1, x0, x1)
    image[y0:y1, x0:x1] += patch * (np.asarray(response) * (photons / (np.pi * radius**2))).astype(np.float32)
    return float(np.mean(response))


def _span(centre: float, reach: float, n: int) -> tuple[int, int]:
    return max(int(np.floor(centre - reach)), 0), min(int(np.ceil(centre + reach)) + 1, n)


@lru_cache(maxsize=64)
def _profile(radius: float, sigma: float) -> tuple[np.ndarray, float, float]:
    """Disc of height 1 convolved with a Gaussian, across its edge: values, first distance and step.

    At distance r it is the integral over t = -R ... R of ``gauss(t - r) erf(sqrt(R**2 - t**2) / sigma sqrt 2)``,
    the second factor being the part of the Gaussian that lies in the chord at t; t = R sin(angle) makes it smooth.
    """
    start, step = max(radius - _EDGE * sigma, 0.0), sigma / 128
    r = start + step * np.arange(int(np.ceil((radius + _EDGE * sigma - start) / step)) + 1)
    low, high = (np.arcsin(np.clip((r + k * sigma) / radius, -1, 1)) for k in (-_EDGE - 1, _EDGE + 1))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    angle = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * nodes
    sin, cos = np.sin(angle), np.cos(angle)
    gauss = np.exp(-0.5 * ((radius * sin - r[:, None]) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    values = gauss * erf(radius * cos / (np.sqrt(2) * sigma)) * radius * cos
    values = (values @ weights) * (high - low) / 2
    values.flags.writeable = False
    return values, start, step


@njit(cache=True, nogil=True)
def _render(patch, x, y, profile, start, step, nodes, weights):  # type: ignore[no-untyped-def]
    """Mean of a radial profile over each pixel: 1 before its start, 0 after its end, Gauss-Legendre between."""
    last = len(profile) - 1
    end = start + step * last
    for i in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            r = np.sqrt((i - y) ** 2 + (j - x) ** 2)
            if r + 0.7072 < start:
                patch[i, j] = 1.0
            elif r - 0.7072 > end:
                patch[i, j] = 0.0
            else:
                total = 0.0
                for a in range(len(nodes)):
                    for b in range(len(nodes)):
                        at = (np.sqrt((i + nodes[a] - y) ** 2 + (j + nodes[b] - x) ** 2) - start) / step
                        k = int(at)
                        if at < 0:
                            total += weights[a] * weights[b]
                        elif k < last:
                            part = profile[k] + (at - k) * (profile[k + 1] - profile[k])
                            total += weights[a] * weights[b] * part
                patch[i, j] = total


@njit(cache=True, nogil=True)
def _add_halos(image, halos):  # type: ignore[no-untyped-def]
    """Add halos (x, y, scale, strength): ``strength / (r**2 + scale**2)**1.5`` at distance r."""
    squares = np.empty((halos.shape[0], image.shape[1]), np.float32)
    for h in range(halos.shape[0]):
        for j in range(image.shape[1]):
            squares[h, j] = (j - halos[h, 0]) ** 2
    for i in range(image.shape[0]):
        row = image[i]
        for h in range(halos.shape[0]):
            square, strength = squares[h], halos[h, 3]
            rest = np.float32((i - halos[h, 1]) ** 2 + halos[h, 2] ** 2)
            for j in range(row.shape[0]):
                s = square[j] + rest
                row[j] += strength / (s * np.sqrt(s))
