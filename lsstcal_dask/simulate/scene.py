"""The light of one exposure on one CCD: screen, projector or sky through telescope, filter, silicon (Sec. 2.8)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import focal_to_field
from lsstcal_dask.simulate.dust import dust
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Light, Pointing, Projection
from lsstcal_dask.simulate.filters import transmission as filter_transmission
from lsstcal_dask.simulate.ghosts import spot_ghosts
from lsstcal_dask.simulate.grids import on_detector
from lsstcal_dask.simulate.illumination import lamp_brightness, lamp_spectrum, laser_centre, laser_line, screen
from lsstcal_dask.simulate.night import night_light
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.one_thread import one_thread
from lsstcal_dask.simulate.optics import admitted, incidence, mirrors, pupil_rays
from lsstcal_dask.simulate.projector import footprint, in_force, shot
from lsstcal_dask.simulate.response import response_map
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.spots import spot_light
from lsstcal_dask.simulate.throughput import diffuse_weights, mesh_step

__all__ = ["light"]

_STEP = 2.0  # nm, of bins in which the broadband lamp, which has no lines, is followed
_LINE = 0.125  # of its width, steps in which the line of the laser is followed


@one_thread
def light(site: Observatory, exposure: Exposure, detector: Detector) -> Light:
    """Expected light of an exposure, before defects and pixel sizes.

    Raises
    ------
    WrongUse
        A wavelength is outside the model, a line has no width, the filter is unknown, or the projector's mask has
        too few holes.
    """
    source = exposure.source
    if isinstance(source, Pointing):
        return night_light(site, exposure, detector)
    if isinstance(source, Projection):
        rate = _spots(site, exposure, detector)
    elif isinstance(source, Lamp):
        rate = _screen(site, exposure, detector)
    else:
        rate = np.zeros(detector.shape, np.float32)
    return Light(rate, np.zeros((0, 5)))


def _check(exposure: Exposure, source: Lamp | Projection) -> None:
    wavelength = source.wavelength
    if not RANGE[0] <= wavelength <= RANGE[1]:
        raise WrongUse(
            f"exposure {exposure.name}: wavelength {wavelength:g} nm is outside the model: "
            f"use {RANGE[0]:g} to {RANGE[1]:g} nm"
        )
    if not source.bandwidth > 0:
        raise WrongUse(f"exposure {exposure.name}: a line {source.bandwidth:g} nm wide: use more than 0")


def _line(settings: Any, centre: float, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
    """Bins of a line of the laser (nm) and the share of its photons in each."""
    wavelength = centre + bandwidth * np.arange(-1.5 + _LINE / 2, 1.5, _LINE)
    share = laser_line(settings, wavelength, centre, bandwidth)
    return wavelength, share / share.sum()


def _screen(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Rate (y, x), electron/s, of the flat-field screen."""
    settings, seed, lamp = site.settings, site.seed, exposure.source
    assert isinstance(lamp, Lamp)
    photons = lamp.rate * lamp_brightness(seed, settings.lamp_drift, exposure)
    if np.isfinite(lamp.wavelength):
        _check(exposure, lamp)
        wavelength, share = _line(settings.laser, laser_centre(seed, settings.laser, exposure), lamp.bandwidth)
        seen = _screen_response(site, exposure.filter, detector, wavelength, share)
    else:
        seen = site.kept(_lamp_response, detector, exposure.filter)
    return _with_dust(site, exposure, detector, seen * np.float32(photons))


def _lamp_response(site: Observatory, band: str, detector: Detector) -> np.ndarray:
    """Electrons (y, x) of a photon of the broadband lamp."""
    wavelength = np.arange(RANGE[0] + _STEP / 2, RANGE[1], _STEP)
    return _screen_response(site, band, detector, wavelength, lamp_spectrum(wavelength) * _STEP)


def _screen_response(
    site: Observatory, band: str, detector: Detector, wavelength: np.ndarray, share: np.ndarray
) -> np.ndarray:
    def uniformity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return screen(site.seed, site.settings.screen, site.camera, x, y, wavelength)

    weights = diffuse_weights(site, band, wavelength, share, uniformity)
    return _response(site, detector, wavelength, weights)


def _response(
    site: Observatory,
    detector: Detector,
    wavelength: np.ndarray,
    weights: Callable[[np.ndarray, np.ndarray], np.ndarray],
    beam: tuple[float] | None = None,
) -> np.ndarray:
    settings = site.settings
    return response_map(
        site.seed,
        settings.quantum_efficiency,
        settings.fringing,
        site.camera,
        detector,
        wavelength,
        weights,
        beam=beam,
        step=mesh_step(detector),
    )


def _with_dust(site: Observatory, exposure: Exposure, detector: Detector, rate: np.ndarray) -> np.ndarray:
    """What is left after the motes on filter and window."""

    def left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return dust(site.seed, site.settings.dust, site.camera, exposure.filter, x, y, exposure.time)

    return rate * on_detector(left, detector, max(1, mesh_step(detector) // 4))


def _spots(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Rate (y, x), electron/s, of the projector: its narrow beams are one ray through stops, filter and silicon.

    Beams spread over the primary mirror; those of a CCD are taken to meet it where that of its centre does, which is
    good to 3 cm or 0.2 nm of a filter's edge.
    """
    settings, seed, camera, asked = site.settings, site.seed, site.camera, exposure.source
    assert isinstance(asked, Projection)
    _check(exposure, asked)
    real = shot(seed, settings.projector, exposure)
    wavelength, share = _line(settings.laser, real.wavelength, asked.bandwidth)
    share = share * mirrors(settings.mirrors, wavelength)
    ray = footprint(settings.projector, asked, real, *focal_to_field(camera, *detector.center_mm))
    open_to = _open(site, *ray)

    def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        passed = filter_transmission(
            seed, settings.filters, camera, exposure.filter, wavelength, x, y, ray, settings.vignetting
        )
        return passed * share * open_to(x, y)[..., None]

    angle = float(incidence(camera, 0, 0, *ray))
    response = _response(site, detector, wavelength, weights, (angle,))

    def ghosts(spot: np.void) -> list[tuple[float, float, float, float]]:
        found = spot_ghosts(
            seed,
            settings.ghosts,
            camera,
            exposure.filter,
            spot["x_mm"],
            spot["y_mm"],
            (spot["footprint_x"], spot["footprint_y"]),
            float(spot["wavelength"]),
            settings.filters,
            in_force(settings.projector).aperture / 2,
        )
        return [(float(x), float(y), radius, part) for x, y, radius, part in found]

    rate = spot_light(
        seed,
        settings.projector,
        camera,
        detector,
        exposure,
        lambda y0, y1, x0, x1, spot: response[y0:y1, x0:x1],
        ghosts,
    )
    return _with_dust(site, exposure, detector, rate)


def _open(site: Observatory, ray_x: float, ray_y: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Function of focal-plane position: how much of a ray the stops let through, of what they do on the axis."""
    stops, camera = site.settings.vignetting, site.camera
    rays_x, rays_y, parts = pupil_rays(48)
    axis = float((admitted(stops, camera, 0, 0, rays_x, rays_y) * parts).sum())
    return lambda x, y: admitted(stops, camera, x, y, ray_x, ray_y) / axis
