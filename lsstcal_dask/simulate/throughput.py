"""Photons per bin of wavelength that reach a sensor, as a function of focal-plane position (Secs. 0, 2.8)."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.ghosts import ghost, scatter
from lsstcal_dask.simulate.illumination import laser_centre, laser_line
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import mirrors, vignetting
from lsstcal_dask.simulate.settings import RANGE

__all__ = ["LINE_REACH", "diffuse_weights", "focused_share", "laser_bins", "mesh_step"]

LINE_REACH: Final = 1.5
"""Widths of a line of the laser to either side of its centre in which all of it is taken to lie: 4e-4 are not."""

_STEP: Final = 0.125  # of its width, in which a line is followed

Place = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function of focal-plane x and y, mm, of any shape; returns that shape, then wavelength."""


def mesh_step(detector: Detector) -> int:
    """Pixels between the nodes at which light that varies smoothly over a CCD is evaluated."""
    return max(4, min(64, min(detector.shape) // 32))


def laser_bins(site: Observatory, exposure: Exposure) -> tuple[np.ndarray, np.ndarray]:
    """Bins (nm) of the line that the laser really has in an exposure, and the share of its photons in each.

    Raises
    ------
    WrongUse
        The line has no width, or would reach beyond the wavelengths of the model if it lay where it was asked for:
        the jitter of the laser, a fraction of a nm, may carry its faint edge there.
    """
    source: Any = exposure.source
    width, reach = source.bandwidth, LINE_REACH * source.bandwidth
    if not width > 0:
        raise WrongUse(f"exposure {exposure.name}: a line {width:g} nm wide: use more than 0")
    if not RANGE[0] + reach <= source.wavelength <= RANGE[1] - reach:
        raise WrongUse(
            f"exposure {exposure.name}: a line {width:g} nm wide at {source.wavelength:g} nm reaches beyond the model, "
            f"{RANGE[0]:g} to {RANGE[1]:g} nm: use {RANGE[0] + reach:g} to {RANGE[1] - reach:g} nm, or a narrower line"
        )
    centre = laser_centre(site.seed, site.settings.laser, exposure)
    wavelength = centre + width * np.arange(-LINE_REACH + _STEP / 2, LINE_REACH, _STEP)
    share = laser_line(site.settings.laser, wavelength, centre, width)
    return wavelength, share / share.sum()


def focused_share(site: Observatory, band: str, wavelength: np.ndarray) -> Place:
    """Share of the photons in front of the telescope that come to a focus on a pixel."""
    settings, camera = site.settings, site.camera
    glass = mirrors(settings.mirrors, wavelength)

    def share(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        passed = transmission(site.seed, settings.filters, camera, band, wavelength, x, y, None, settings.vignetting)
        return passed * glass * vignetting(settings.vignetting, camera, x, y)[..., None]

    return share


def diffuse_weights(
    site: Observatory, band: str, wavelength: np.ndarray, photons: np.ndarray, uniformity: Place | None = None
) -> Place:
    """Photons of light that fills the field: the focused path, ghosts and scattered light.

    Parameters
    ----------
    photons : (wavelength,) photon/s in each bin that a pixel on the axis would receive without any loss.
    uniformity : of the source, relative; ghosts and scattered light see its mean, which is 1.
    """
    settings, camera, seed = site.settings, site.camera, site.seed
    share = focused_share(site, band, wavelength)
    on_axis = transmission(seed, settings.filters, camera, band, wavelength, 0.0, 0.0, None, settings.vignetting)
    stray = on_axis * mirrors(settings.mirrors, wavelength)

    def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        focused = share(x, y)
        if uniformity is not None:
            focused = focused * uniformity(x, y)
        astray = ghost(seed, settings.ghosts, camera, band, x, y, wavelength, settings.filters)
        astray = astray + scatter(seed, settings.scatter, camera, x, y, wavelength)
        return (focused + astray * stray) * photons

    return weights
