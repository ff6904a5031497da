"""Low-resolution spectrum of the night sky or of a bright star from the calibration telescope (♥2, ¶12).

A slitless spectrograph with two orders: light of wavelength L falls where L belongs, and a part of it again where
2 L belongs. Counts are Poisson; what is delivered is calibrated with small errors of wavelength and flux.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from pydantic import Field, model_validator
from scipy.special import ndtr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["Nuisance", "Spectrograph", "observe", "throughput", "truth"]

_MODES: Final = 48
"""Waves of the flux-calibration error: its rms scatters by about 1/sqrt(2 * 48) from one exposure to the next."""

_REACH: Final = 6.0
"""Standard deviations to which the line spread function is followed: 2e-9 of a line is left out."""

_FWHM: Final = np.sqrt(8 * np.log(2))
_UNITS: Final = "photon s-1 m-2 nm-1"


class Spectrograph(Effect):
    """A 1.2 m telescope with a disperser, after AuxTel and LATISS (Neveu et al. 2024, A&A 684, A21)."""

    resolution: float = Field(200.0, gt=1)  # wavelength / full width at half maximum
    resolution_scatter: float = Field(0.03, ge=0, lt=0.3)  # of its logarithm, from one exposure to the next
    first: float = Field(340.0, gt=300)  # nm, blue edge of the first pixel
    last: float = Field(1060.0, le=1150)  # nm, red edge of the last pixel
    pixel: float = Field(1.0, gt=0)  # nm
    area: float = Field(1.0, gt=0)  # m2, collecting
    second_order: float = Field(0.05, ge=0, le=1)  # second order over first, at the wavelength of the light
    second_order_scatter: float = Field(0.1, ge=0)  # of its logarithm
    wavelength_shift: float = Field(0.1, ge=0)  # nm, standard deviation of the error of the wavelength zero
    wavelength_stretch: float = Field(0.05, ge=0)  # nm, standard deviation of the error at the ends against the middle
    calibration_error: float = Field(0.003, ge=0)  # rms of the relative error of the flux scale
    calibration_scale: float = Field(30.0, gt=0)  # nm, its correlation is exp(-d**2 / 2 scale**2)
    read_noise: float = Field(6.0, ge=0)  # electron
    rows: int = Field(20, ge=1)  # CCD pixels summed across the dispersion

    @model_validator(mode="after")
    def _ordered(self) -> "Spectrograph":
        if self.last - self.first < 2 * self.pixel:
            raise ValueError(f"spectrograph from {self.first:g} to {self.last:g} nm: give room for two pixels")
        return self

    @property
    def edges(self) -> np.ndarray:
        """(pixel + 1,) nm in vacuum, as the wavelength calibration believes."""
        return self.first + self.pixel * np.arange(int((self.last - self.first) / self.pixel + 1e-9) + 1)


@dataclass(frozen=True, eq=False)
class Nuisance:
    """What the user of a spectrum does not know of it."""

    shift: float  # nm: true minus stated wavelength in the middle
    stretch: float  # nm: true minus stated wavelength at the red end, less `shift`
    resolution: float
    second_order: float
    amplitude: float  # of each wave of the flux-calibration error
    waves: np.ndarray  # (wave,) rad/nm
    phases: np.ndarray  # (wave,) rad

    def calibration(self, wavelength: np.ndarray) -> np.ndarray:
        """Delivered over true flux scale (wavelength,)."""
        angle = np.multiply.outer(np.asarray(wavelength, float), self.waves) + self.phases
        return np.asarray(1 + self.amplitude * np.cos(angle).sum(axis=-1))

    def wavelength_error(self, settings: Spectrograph, wavelength: np.ndarray) -> np.ndarray:
        """True minus stated wavelength, nm."""
        middle, half = (settings.edges[0] + settings.edges[-1]) / 2, (settings.edges[-1] - settings.edges[0]) / 2
        return np.asarray(self.shift + self.stretch * (np.asarray(wavelength) - middle) / half)


def throughput(wavelength: np.ndarray) -> np.ndarray:
    """Electrons per photon of telescope, disperser and CCD in the first order: a smooth hump, 0.3 at 600 nm."""
    wavelength = np.asarray(wavelength, float)
    blue = 1 - np.exp(-((np.clip(wavelength - 280, 0, None) / 110) ** 1.5))
    return np.asarray(0.32 * blue / (1 + np.exp((wavelength - 1000) / 40)) + 1e-3)


def truth(seed: int, settings: Spectrograph, exposure_number: int) -> Nuisance:
    """Nuisances of one exposure; none if the spectrograph is switched off."""
    rng = stream(seed, "spectrograph", exposure=exposure_number)
    shift, stretch, sharpness, ghost = rng.standard_normal(4)
    waves = rng.standard_normal(_MODES) / settings.calibration_scale
    phases = rng.uniform(0, 2 * np.pi, _MODES)
    on = float(settings.on)
    return Nuisance(
        shift=on * settings.wavelength_shift * shift,
        stretch=on * settings.wavelength_stretch * stretch,
        resolution=settings.resolution * np.exp(settings.resolution_scatter * sharpness) if on else np.inf,
        second_order=on * settings.second_order * np.exp(settings.second_order_scatter * ghost),
        amplitude=on * settings.calibration_error * np.sqrt(2 / _MODES),
        waves=waves,
        phases=phases,
    )


def observe(
    seed: int,
    settings: Spectrograph,
    exposure_number: int,
    wavelength: np.ndarray,
    photon_density: np.ndarray,
    exposure_time: float,
    background: np.ndarray | None = None,
) -> xr.Dataset:
    """Calibrated spectrum of one exposure.

    Parameters
    ----------
    seed, exposure_number : of the observatory and of the exposure.
    wavelength : (wavelength,) nm in vacuum, ascending, at most a fifth of the resolution element apart.
    photon_density : (wavelength,) photon s-1 m-2 nm-1 at the telescope: the spectrum times the atmosphere; of the
        sky, that in the solid angle of the slit.
    exposure_time : s.
    background : (wavelength,) light that is in the pixels and is subtracted, in the same unit: it leaves noise.

    Returns
    -------
    ``flux`` (wavelength,) and its ``variance`` by photons and readout, from the expected counts, at the stated
    wavelengths of the pixel centres. Switched off: the input, without noise, on its own wavelengths.

    Raises
    ------
    WrongUse
        The exposure time is not positive; the wavelengths are unsorted, too coarse or do not cover the pixels.
    """
    wavelength, density = np.asarray(wavelength, float), np.asarray(photon_density, float)
    if not settings.on:
        return _dataset(wavelength, density.copy(), np.zeros_like(density), exposure_time)
    _check(settings, wavelength, exposure_time)
    nuisance = truth(seed, settings, exposure_number)
    behind = np.zeros_like(density) if background is None else np.asarray(background, float)
    light, dark = _electrons(settings, nuisance, wavelength, np.stack([density, behind])) * exposure_time
    rng = stream(seed, "spectrograph", exposure=exposure_number, step=1)
    read_variance = settings.rows * settings.read_noise**2
    noise = np.sqrt(read_variance) * rng.standard_normal(len(light))
    counts = rng.poisson(light + dark) - dark + noise
    centres = (settings.edges[1:] + settings.edges[:-1]) / 2
    scale = throughput(centres) * settings.area * settings.pixel * exposure_time
    flux = counts / scale * nuisance.calibration(centres)
    return _dataset(centres, flux, (light + dark + read_variance) / scale**2, exposure_time)


def _check(settings: Spectrograph, wavelength: np.ndarray, exposure_time: float) -> None:
    if not exposure_time > 0:
        raise WrongUse(f"spectrum exposed for {exposure_time:g} s: use a positive time")
    steps = np.diff(wavelength)
    if not np.all(steps > 0):
        raise WrongUse("spectrum for the spectrograph: its wavelengths must rise: sort them")
    if np.any(steps > wavelength[1:] / settings.resolution / 5):
        raise WrongUse(f"spectrum for the spectrograph: steps of {steps.max():.3g} nm: use a fifth of its resolution")
    margin = 4 / settings.resolution / _FWHM
    low, high = settings.edges[0] * (1 - margin), settings.edges[-1] * (1 + margin)
    if wavelength[0] > low or wavelength[-1] < high:
        raise WrongUse(
            f"spectrum for the spectrograph from {wavelength[0]:g} to {wavelength[-1]:g} nm: cover "
            f"{low:.1f} to {high:.1f} nm"
        )


def _electrons(settings: Spectrograph, nuisance: Nuisance, wavelength: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Expected electron/s (spectrum, pixel) of both orders of spectra (spectrum, wavelength)."""
    widths = np.zeros_like(wavelength)
    widths[1:] += np.diff(wavelength) / 2
    widths[:-1] += np.diff(wavelength) / 2  # the rule of trapezoids
    first = density * widths * settings.area * throughput(wavelength)
    edges = settings.edges + nuisance.wavelength_error(settings, settings.edges)
    sigma = wavelength / nuisance.resolution / _FWHM
    total = _disperse(first, wavelength, sigma, edges)
    # The second order is dispersed twice as far: seen as light of 2 L, its width doubles too.
    return total + _disperse(nuisance.second_order * first, 2 * wavelength, 2 * sigma, edges)


def _disperse(light: np.ndarray, at: np.ndarray, sigma: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share ``light`` (spectrum, sample) over even pixels by the integral of a Gaussian; what misses them is lost."""
    step = (edges[-1] - edges[0]) / (len(edges) - 1)
    near = (at + _REACH * sigma > edges[0]) & (at - _REACH * sigma < edges[-1])
    light, at, sigma = light[:, near], at[near], sigma[near]
    reach = int(np.ceil(2 * _REACH * sigma.max(initial=0.0) / step)) + 2
    start = np.floor((at - _REACH * sigma - edges[0]) / step).astype(np.int64)
    places = start[:, None] + np.arange(reach + 1)
    share = np.diff(ndtr((edges[0] + places * step - at[:, None]) / sigma[:, None]), axis=1)
    pixels = places[:, :-1]
    inside = (pixels >= 0) & (pixels < len(edges) - 1)
    pixels, count = pixels[inside], len(edges) - 1
    return np.stack([np.bincount(pixels, (one[:, None] * share)[inside], count) for one in light])


def _dataset(wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray, exposure_time: float) -> xr.Dataset:
    return xr.Dataset(
        {
            "flux": ("wavelength", flux, {"units": _UNITS}),
            "variance": ("wavelength", variance, {"units": f"({_UNITS})**2"}),
        },
        coords={"wavelength": ("wavelength", wavelength, {"units": "nm", "medium": "vacuum"})},
        attrs={"exposure_time": exposure_time},
    )
