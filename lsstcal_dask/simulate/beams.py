"""Light of the Collimated Beam Projector on one CCD: spots, their ghosts and what scatters (Lupton 2016, A ¶10).

A beam of the projector is one ray: it meets the primary mirror in its footprint, passes what stops, filter and dust
let through on its way, and is focused. Its ghosts and the light it scatters have come the same way, and end elsewhere:
they are dimmed by what dims the beam, and are seen by the silicon where they land. Fringes (Sec. 2.11) come as the
beams do, to every pixel at once.
"""

from typing import Any, Final

import numpy as np

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal, focal_to_field
from lsstcal_dask.simulate.dust import Beam, dust
from lsstcal_dask.simulate.exposure import Exposure, Light, Sinusoid
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.ghosts import scatter, spot_ghosts
from lsstcal_dask.simulate.grids import on_detector
from lsstcal_dask.simulate.illumination import lamp_brightness
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import admitted, edge_mm, incidence, mirrors, pupil_rays
from lsstcal_dask.simulate.projector import Shot, footprint, in_force, shot
from lsstcal_dask.simulate.response import Weights, response_map
from lsstcal_dask.simulate.sinusoids import fringes, on_pixels, on_squares, plane_wave
from lsstcal_dask.simulate.spots import beams, blur_px, disc_light, spot_light
from lsstcal_dask.simulate.throughput import laser_bins, mesh_step

__all__ = ["beam_light", "passed", "sinusoid_light"]

_POINTS: Final = 16  # of a spot, over which the shadows of motes on its stray light are averaged


def beam_light(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Rate (y, x) float32, electron/s, of the projector on one CCD.

    Raises
    ------
    WrongUse
        As `laser_bins` and `beams`, or there is no such filter.
    """
    settings, camera = site.settings, site.camera
    wavelength, share = laser_bins(site, exposure)
    spots = beams(site, exposure)
    real = shot(site.seed, settings.projector, exposure)
    response = ray_response(site, exposure, detector, wavelength, share, real)
    aperture = settings.projector.aperture / 2

    def response_at(y0: int, y1: int, x0: int, x1: int, spot: np.void) -> np.ndarray:
        beam = Beam(spot["footprint_x"], spot["footprint_y"], aperture)
        place = ccd_to_focal(detector, np.arange(x0, x1), np.arange(y0, y1)[:, None])
        left = dust(site.seed, settings.dust, camera, exposure.filter, *place, exposure.time, beam)
        return response[y0:y1, x0:x1] * left

    image = spot_light(settings.projector, camera, detector, spots, response_at)
    if settings.ghosts.on or settings.scatter.on:
        image += _stray(site, exposure, detector, spots, (wavelength, share), real)
    return image


def ray_response(
    site: Observatory, exposure: Exposure, detector: Detector, wavelength: np.ndarray, share: np.ndarray, real: Shot
) -> np.ndarray:
    """Electrons (y, x) of a photon that meets the primary mirror where beams of each place do, dust left out."""

    def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return passed(site, exposure.filter, wavelength, x, y, _rays(site, exposure, real, x, y)) * share

    return _silicon(site, exposure, detector, wavelength, weights, real)


def _rays(site: Observatory, exposure: Exposure, real: Shot, x: Any, y: Any) -> tuple[Any, Any]:
    """Where beams focused on (x, y) mm meet the primary mirror, m."""
    centre = exposure.source.footprint  # type: ignore[union-attr]
    return footprint(site.settings.projector, centre, real, *focal_to_field(site.camera, x, y))


def _silicon(
    site: Observatory, exposure: Exposure, detector: Detector, wavelength: np.ndarray, weights: Weights, real: Shot
) -> np.ndarray:
    """Response of a CCD to beams that all enter it at the angle of the one that is focused on its centre.

    Those of its corners meet the primary mirror up to 4 cm away, and enter it at an angle different by 0.2 degrees.
    """
    camera, settings = site.camera, site.settings
    angle = float(incidence(camera, 0, 0, *_rays(site, exposure, real, *detector.center_mm)))
    return response_map(
        site.seed,
        settings.quantum_efficiency,
        settings.fringing,
        camera,
        detector,
        wavelength,
        weights,
        beam=(angle,),
        step=mesh_step(detector),
    )


def passed(site: Observatory, band: str, wavelength: np.ndarray, x: Any, y: Any, rays: tuple[Any, Any]) -> np.ndarray:
    """Part of the photons that mirrors, filter and stops pass on their way from the primary mirror, without dust.

    Parameters
    ----------
    wavelength : (n,) nm.
    x, y : mm, place of the focus, any shape.
    rays : m, of the primary mirror, of that shape or one for all.

    Returns
    -------
    (..., n). Stops are counted relative to what they do to the whole pupil on the axis, as for flats.
    """
    settings, camera = site.settings, site.camera
    pupil_x, pupil_y, parts = pupil_rays(48)
    axis = float((admitted(settings.vignetting, camera, 0, 0, pupil_x, pupil_y) * parts).sum())
    stops = admitted(settings.vignetting, camera, x, y, *rays) / axis
    glass = transmission(site.seed, settings.filters, camera, band, wavelength, x, y, rays, settings.vignetting)
    return glass * mirrors(settings.mirrors, wavelength) * stops[..., None]


def _stray(
    site: Observatory,
    exposure: Exposure,
    detector: Detector,
    spots: np.ndarray,
    line: tuple[np.ndarray, np.ndarray],
    real: Shot,
) -> np.ndarray:
    """Ghosts and scattered light of all spots, electron/s (y, x).

    Silicon sees them with the mean spectrum that the filter passes of all beams: within a line.
    """
    seed, settings, camera, (wavelength, share) = site.seed, site.settings, site.camera, line
    rays = spots["footprint_x"], spots["footprint_y"]
    spectra = passed(site, exposure.filter, wavelength, spots["x_mm"], spots["y_mm"], rays) * share
    photons = spots["photons"] * spectra.sum(axis=1) * _dusty(site, exposure, spots)
    total = photons.sum()
    if not total > 0:
        return np.zeros(detector.shape, np.float32)
    projector = in_force(settings.projector)
    centroid = float(spots["wavelength"][0])
    sigma = blur_px(projector, camera, centroid)
    light = np.zeros(detector.shape, np.float32)
    for x, y, radius, part in spot_ghosts(
        seed,
        settings.ghosts,
        camera,
        exposure.filter,
        spots["x_mm"],
        spots["y_mm"],
        rays,
        centroid,
        settings.filters,
        beam=projector.aperture / 2,
    ):
        light += disc_light(detector, x, y, radius, photons * part, sigma)
    even = total * detector.pixel_mm**2 / (np.pi * edge_mm(camera) ** 2)

    def floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return even * scatter(seed, settings.scatter, camera, x, y, centroid)

    light += on_detector(floor, detector, mesh_step(detector))
    mean = spots["photons"] @ spectra
    return light * _silicon(site, exposure, detector, wavelength, mean / mean.sum(), real)


def _dusty(site: Observatory, exposure: Exposure, spots: np.ndarray) -> np.ndarray:
    """What dust leaves (spot,) of beams that all of a hole lights, whose light then goes astray."""
    camera = site.camera
    order = np.arange(_POINTS)
    reach = np.sqrt((order + 0.5) / _POINTS) * (spots["radius"] * camera.detectors[0].pixel_mm)[:, None]
    turn = order * np.pi * (3 - 5**0.5)  # the golden angle: an even spread over the disc
    x, y = spots["x_mm"][:, None] + reach * np.cos(turn), spots["y_mm"][:, None] + reach * np.sin(turn)
    foot = spots["footprint_x"][:, None], spots["footprint_y"][:, None]
    beam = Beam(*foot, site.settings.projector.aperture / 2)
    return dust(site.seed, site.settings.dust, camera, exposure.filter, x, y, exposure.time, beam).mean(axis=1)


def sinusoid_light(site: Observatory, exposure: Exposure, detector: Detector) -> Light:
    """Expected light of projected fringes: integrated over the pixels as they are, and as if they were squares.

    Only the change of the fringes within a pixel is followed; silicon, filter and dust are those of its middle.

    Raises
    ------
    WrongUse
        As `laser_bins`, there is no such filter, or fringes without a period.
    """
    source, settings, camera = exposure.source, site.settings, site.camera
    assert isinstance(source, Sinusoid)
    wave = plane_wave(source, fringes(site.seed, settings.sinusoids, exposure), detector)
    steady, aperture = Shot(0.0, 0.0, 0.0), settings.projector.aperture / 2
    response = ray_response(site, exposure, detector, *laser_bins(site, exposure), steady)

    def left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        beam = Beam(*_rays(site, exposure, steady, x, y), aperture)
        return dust(site.seed, settings.dust, camera, exposure.filter, x, y, exposure.time, beam)

    photons = source.rate * lamp_brightness(site.seed, settings.lamp_drift, exposure)
    seen = response * on_detector(left, detector, max(1, mesh_step(detector) // 16)) * np.float32(photons)
    square, whole = on_squares(detector.shape, wave), on_pixels(site.corners(detector), wave)
    return Light(seen * square, np.zeros((0, 5)), whole=seen * whole)
