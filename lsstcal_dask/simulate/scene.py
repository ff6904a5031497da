"""The light of one exposure on one CCD: screen, projector or sky through telescope, filter, silicon (Sec. 2.8)."""

from collections.abc import Callable

import numpy as np

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.beams import beam_light, sinusoid_light
from lsstcal_dask.simulate.dust import dust
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Light, Pointing, Projection, Sinusoid
from lsstcal_dask.simulate.grids import on_detector
from lsstcal_dask.simulate.illumination import lamp_brightness, lamp_spectrum, screen
from lsstcal_dask.simulate.night import night_light
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.one_thread import one_thread
from lsstcal_dask.simulate.response import response_map
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.throughput import diffuse_weights, laser_bins, mesh_step

__all__ = ["light"]

_STEP = 2.0  # nm, of bins in which the broadband lamp, which has no lines, is followed


@one_thread
def light(site: Observatory, exposure: Exposure, detector: Detector) -> Light:
    """Expected light of an exposure, before defects and pixel sizes.

    Raises
    ------
    WrongUse
        A line reaches beyond the model or has no width, the filter is unknown, or the projector's mask has
        too few holes.
    """
    source = exposure.source
    if isinstance(source, Pointing):
        return night_light(site, exposure, detector)
    if isinstance(source, Sinusoid):
        return sinusoid_light(site, exposure, detector)
    if isinstance(source, Projection):
        rate = beam_light(site, exposure, detector)
    elif isinstance(source, Lamp):
        rate = _screen(site, exposure, detector)
    else:
        rate = np.zeros(detector.shape, np.float32)
    return Light(rate, np.zeros((0, 5)))


def _screen(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Rate (y, x), electron/s, of the flat-field screen."""
    settings, seed, lamp = site.settings, site.seed, exposure.source
    assert isinstance(lamp, Lamp)
    photons = lamp.rate * lamp_brightness(seed, settings.lamp_drift, exposure)
    if np.isfinite(lamp.wavelength):
        wavelength, share = laser_bins(site, exposure)
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
        step=mesh_step(detector),
    )


def _with_dust(site: Observatory, exposure: Exposure, detector: Detector, rate: np.ndarray) -> np.ndarray:
    """What is left after the motes on filter and window."""

    def left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return dust(site.seed, site.settings.dust, site.camera, exposure.filter, x, y, exposure.time)

    return rate * on_detector(left, detector, max(1, mesh_step(detector) // 4))
