"""The night sky on one CCD: airglow, moonlight and stars through air, telescope, filter and silicon (♥2, Sec. 3)."""

from functools import lru_cache
from typing import Any, Final

import numpy as np

from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal, field_to_focal, focal_to_ccd, focal_to_field
from lsstcal_dask.simulate import airglow
from lsstcal_dask.simulate.atmosphere import Air, air, band_average, cloud_extinction
from lsstcal_dask.simulate.dust import dust
from lsstcal_dask.simulate.etalon import Fringing
from lsstcal_dask.simulate.exposure import Exposure, Light, Pointing
from lsstcal_dask.simulate.filters import wavelength_range
from lsstcal_dask.simulate.grids import on_detector
from lsstcal_dask.simulate.moon import moonlight
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import effective_area
from lsstcal_dask.simulate.processes import sky_plane
from lsstcal_dask.simulate.response import response_at, response_map
from lsstcal_dask.simulate.seds import spectra
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.stars import magnitude_at, psf, stars_in
from lsstcal_dask.simulate.throughput import diffuse_weights, focused_share, mesh_step

__all__ = ["band_edges", "cloud_transmission", "night_light", "pointing_of", "sky_place", "star_rates", "true_air"]

_FINE: Final = 0.5  # nm, of bins within the band: those of air and sky have lines
_COARSE: Final = 5.0  # nm, of bins beyond it, where the filter leaks a little
_MARGIN: Final = 60.0  # px beyond the CCD from which a star still reaches it
_FAINTEST: Final = 1.0  # electrons in the exposure, below which a star is left out
_INSTANTS: Final = 8  # of an exposure, over which clouds that pass are averaged
# Ice scatters light, nearly all of it forward, and absorbs none: what a cloud takes from the beam of a star is lost
# to it, but of an even sky only the part that goes back is not made up for by light from other directions.
_SENT_BACK: Final = 0.15
_POINT: Final = 1e-3  # px, width of a star without seeing


@lru_cache(maxsize=16)
def band_edges(band: str) -> np.ndarray:
    """Edges of bins of wavelength (nm) that follow lines within the band of a filter; read-only."""
    first, last = RANGE if band == "none" else wavelength_range(band)
    first, last = max(first, RANGE[0]), min(last, RANGE[1])
    parts = [np.arange(RANGE[0], first - 1, _COARSE), np.arange(first, last, _FINE)]
    parts += [np.arange(last, RANGE[1] - 1, _COARSE), np.array([RANGE[1]])]
    edges = np.unique(np.concatenate(parts))
    edges.flags.writeable = False
    return edges


def pointing_of(exposure: Exposure) -> Pointing:
    """Where the telescope points; only exposures of the sky have it."""
    assert isinstance(exposure.source, Pointing)
    return exposure.source


def night_light(site: Observatory, exposure: Exposure, detector: Detector) -> Light:
    """Expected light of a visit: the sky as a map, the stars as points."""
    edges = band_edges(exposure.filter)
    above = transmission_of(site, exposure, edges)
    rate = _sky(site, exposure, detector, edges, above)
    return Light(rate, _stars(site, exposure, detector, edges, above), site.response(detector))


def transmission_of(site: Observatory, exposure: Exposure, edges: np.ndarray) -> np.ndarray:
    """Of the air, without clouds, in bins of wavelength."""
    if not site.settings.atmosphere.on:
        return np.ones(len(edges) - 1)
    return _transmission(true_air(site, exposure), pointing_of(exposure).airmass, exposure.filter)


def true_air(site: Observatory, exposure: Exposure) -> Air:
    """State of the air in the middle of an exposure."""
    return _air(site.seed, site.settings.atmosphere, _instant(exposure, 0.5))


def _instant(exposure: Exposure, part: float) -> np.datetime64:
    """Time at which that part of the exposure is over."""
    return exposure.time + np.timedelta64(round(1000 * part * exposure.exposure_time), "ms")


@lru_cache(maxsize=64)
def _air(seed: int, settings: Any, time: np.datetime64) -> Air:
    return air(seed, settings, time)


@lru_cache(maxsize=64)
def _transmission(state: Air, airmass: float, band: str) -> np.ndarray:
    found = band_average(state, airmass, band_edges(band))
    found.flags.writeable = False
    return found


def _sky(site: Observatory, exposure: Exposure, detector: Detector, edges: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Rate (y, x), electron/s, of the light that fills the field."""
    settings, camera = site.settings, site.camera
    fine = np.diff(edges) < _COARSE / 2
    # Beyond the band are some 5e-4 of the light, in bins that blur the fringes: without them 4e-6 are lost.
    parts = [(fine, settings.fringing), (~fine, settings.fringing.model_copy(update={"on": False}))]
    rate = np.zeros(detector.shape, np.float32)
    for bins, fringing in parts:
        if bins.any():
            rate += _sky_part(site, exposure, detector, edges, above, bins, fringing)

    def left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return dust(site.seed, settings.dust, camera, exposure.filter, x, y, exposure.time)

    def veiled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 1 - _SENT_BACK * (1 - cloud_transmission(site, exposure, x, y))

    rate = rate * on_detector(left, detector, max(1, mesh_step(detector) // 4))
    return rate * on_detector(veiled, detector, mesh_step(detector))


def _sky_part(
    site: Observatory,
    exposure: Exposure,
    detector: Detector,
    edges: np.ndarray,
    above: np.ndarray,
    bins: np.ndarray,
    fringing: Fringing,
) -> np.ndarray:
    """Rate (y, x) of the light in some of the bins, before dust and clouds."""
    camera, wavelength = site.camera, ((edges[1:] + edges[:-1]) / 2)[bins]
    middle = _radiance(site, exposure, edges, np.zeros(1), np.zeros(1))[0, bins]
    if not middle.any():
        return np.zeros(detector.shape, np.float32)
    pixel = (detector.pixel_mm * camera.plate_scale) ** 2 * effective_area()

    def relative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        here = _radiance(site, exposure, edges, x, y)[..., bins]
        return np.divide(here, middle, out=np.ones_like(here), where=middle > 0)

    weights = diffuse_weights(site, exposure.filter, wavelength, middle * above[bins] * pixel, relative)
    return response_map(
        site.seed,
        site.settings.quantum_efficiency,
        fringing,
        camera,
        detector,
        wavelength,
        weights,
        width=np.diff(edges)[bins],
        step=mesh_step(detector),
    )


def cloud_transmission(site: Observatory, exposure: Exposure, x: Any, y: Any) -> np.ndarray:
    """Of the clouds that pass before places of the focal plane (mm) during an exposure, for the light of a star."""
    place = sky_place(site.camera, pointing_of(exposure), x, y)
    times = [_instant(exposure, (i + 0.5) / _INSTANTS) for i in range(_INSTANTS)]
    each = [10 ** (-0.4 * cloud_extinction(site.seed, site.settings.clouds, time, *place)) for time in times]
    return np.mean(each, axis=0)


def sky_place(camera: Camera, pointing: Pointing, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Degrees from the zenith to the east and north of what a place of the focal plane (mm) sees.

    North on the sky is taken to be north on that plane, which holds near the meridian.
    """
    east, north = (np.rad2deg(angle) for angle in _turned(pointing, *focal_to_field(camera, x, y), -1))
    east0, north0 = sky_plane(pointing.altitude, pointing.azimuth)
    return east0 + east, north0 + north


def _turned(pointing: Pointing, x: Any, y: Any, sense: int) -> tuple[Any, Any]:
    """East and north to the field angles of a turned camera (sense 1), or back (-1)."""
    angle = sense * np.deg2rad(pointing.rotator)
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)


def _radiance(site: Observatory, exposure: Exposure, edges: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Radiance above the air (..., bin), photon s-1 m-2 arcsec-2, seen at places of the focal plane, mm."""
    settings, seed, pointing = site.settings, site.seed, pointing_of(exposure)
    glow, time, seconds = settings.airglow, exposure.time, exposure.exposure_time
    u, v = sky_place(site.camera, pointing, x, y)
    factor = airglow.zenith_factor(glow, pointing.altitude)
    amplitude = airglow.family_amplitudes(seed, glow, time, u, v, seconds)
    amplitude = np.moveaxis(amplitude, 0, -1) * factor
    excess = airglow.rotational_temperature(seed, glow, time, u, v, seconds) - glow.temperature
    found = amplitude @ airglow.sky_components(glow, edges)
    found += (amplitude * excess[..., None]) @ airglow.temperature_components(glow, edges)
    middle = time + np.timedelta64(round(5e5 * seconds), "us")
    return found + moonlight(settings.moon, middle, pointing.altitude, pointing.azimuth, edges)


def _stars(
    site: Observatory, exposure: Exposure, detector: Detector, edges: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """Points (n, 5) of a `Light`: the stars that reach a CCD."""
    settings = site.settings
    stars, x, y = _visible(site, exposure, detector)
    rates = star_rates(site, exposure, detector, edges, above)(stars, x, y)
    band = wavelength_range(exposure.filter) if exposure.filter != "none" else RANGE
    time, airmass = _instant(exposure, 0.5), pointing_of(exposure).airmass
    width, exponent = psf(site.seed, settings.psf, time, airmass, float(np.mean(band)))
    pixels = max(float(width) / (detector.pixel_mm * site.camera.plate_scale), _POINT)
    bright = rates * exposure.exposure_time > _FAINTEST
    columns = (x, y, rates, np.full(len(x), pixels), np.full(len(x), exponent))
    return np.stack(columns, axis=1)[bright]


def _visible(site: Observatory, exposure: Exposure, detector: Detector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stars (rows of `stars.STAR`) whose light reaches a CCD, and their CCD pixels x and y."""
    camera, pointing = site.camera, pointing_of(exposure)
    ny, nx = detector.shape
    corner = ccd_to_focal(detector, [0, nx, 0, nx], [0, 0, ny, ny])
    centre = ccd_to_focal(detector, (nx - 1) / 2, (ny - 1) / 2)
    u0, v0 = (float(a) for a in focal_to_field(camera, *centre))
    u, v = focal_to_field(camera, *corner)
    margin = 1.5 * _MARGIN * detector.pixel_mm * camera.plate_scale  # arcsec, also beyond the corners
    reach = float(np.hypot(u - u0, v - v0).max()) + np.deg2rad(margin / 3600)
    ra, dec = _from_field(pointing, u0, v0)
    stars = stars_in(site.seed, site.settings.stars, ra, dec, float(np.rad2deg(reach)) * 1.01)
    x, y = focal_to_ccd(detector, *field_to_focal(camera, *_to_field(pointing, stars["ra"], stars["dec"])))
    near = (x > -_MARGIN) & (x < nx + _MARGIN) & (y > -_MARGIN) & (y < ny + _MARGIN)
    return stars[near], x[near], y[near]


def _to_field(pointing: Pointing, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Field angles (rad) of places of the sky: arcs from the pointing to the east and north, turned by the rotator."""
    a, d, d0 = np.deg2rad(ra - pointing.ra), np.deg2rad(dec), np.deg2rad(pointing.dec)
    depth = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    east = np.cos(d) * np.sin(a)
    north = np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)
    sine = np.hypot(east, north)
    stretch = np.divide(np.arctan2(sine, depth), sine, out=np.ones_like(sine), where=sine > 0)
    return _turned(pointing, east * stretch, north * stretch, 1)


def _from_field(pointing: Pointing, u: float, v: float) -> tuple[float, float]:
    """Right ascension and declination, deg, of a field angle (rad): `_to_field` inverted."""
    angle = np.hypot(u, v)
    east, north = (part * np.sinc(angle / np.pi) for part in _turned(pointing, u, v, -1))
    depth, d0 = np.cos(angle), np.deg2rad(pointing.dec)
    ra = pointing.ra + np.rad2deg(np.arctan2(east, depth * np.cos(d0) - north * np.sin(d0)))
    return float(ra % 360), float(np.rad2deg(np.arcsin(north * np.cos(d0) + depth * np.sin(d0))))


def star_rates(site: Observatory, exposure: Exposure, detector: Detector, edges: np.ndarray, above: np.ndarray) -> Any:
    """Function of stars and their CCD pixels: electron/s that each frees, its pixel's own response left out."""
    settings, camera = site.settings, site.camera
    wavelength, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    share = focused_share(site, exposure.filter, wavelength)
    templates = spectra(wavelength)

    def rates(stars: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if not len(stars):
            return np.zeros(0)
        on_x, on_y = np.clip(x, 0, detector.shape[1] - 1), np.clip(y, 0, detector.shape[0] - 1)
        place = ccd_to_focal(detector, on_x, on_y)
        quantum = response_at(
            site.seed,
            settings.quantum_efficiency,
            settings.fringing,
            camera,
            detector,
            on_x,
            on_y,
            wavelength,
            width=width,
            pixels=False,
            fine=False,  # stars have no lines as narrow as the fringes
        )
        seen = templates[stars["template"]] * (above * width) * share(*place) * quantum
        magnitude = magnitude_at(stars, _instant(exposure, 0.5))
        gray = dust(site.seed, settings.dust, camera, exposure.filter, *place, exposure.time)
        gray = gray * cloud_transmission(site, exposure, *place)
        return seen.sum(axis=1) * 10 ** (-0.4 * magnitude) * gray * effective_area()

    return rates
