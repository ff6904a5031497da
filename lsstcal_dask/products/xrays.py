"""Gain of one amplifier from 55Fe X-rays (Lupton 2016, Sec. 2.2a).

An X-ray frees a known number of electrons. Each hit is a Gaussian cloud integrated over pixels;
the charges of all hits make a `spectrum` whose K-alpha line gives the gain.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import erf

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs, UnitsError
from lsstcal_dask.products.spectrum import Spectrum, find_peak, fit_spectrum, kalpha_electrons

__all__ = [
    "SCALE_ERROR",
    "Hits",
    "XrayGain",
    "fe55_gain",
    "find_hits",
    "fit_hits",
    "select_hits",
]

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Pixels: TypeAlias = NDArray[np.floating]
Peaks: TypeAlias = NDArray[np.intp]
Mask: TypeAlias = NDArray[np.generic] | None

SCALE_ERROR: Final = 0.011
"""Relative error of the pair energy: common to all amplifiers, hence never part of ``error``."""

HALF: Final = 3
"""Half width of the fitted window: 7 x 7 pixels hold the cloud and enough background."""

_PARAMETERS: Final = 5  # y0, x0, sigma, charge, background
_BOUNDS: Final = ((-1.5, -1.5, 0.08), (1.5, 1.5, 2.5))  # px; narrower clouds are one pixel wherever they fell

FANO: Final = 0.116
"""Variance of the electrons freed over their mean."""


@dataclass(frozen=True)
class Hits:
    """Fitted X-ray hits, one entry each.

    ``y``, ``x`` (n,) pixel; ``sigma`` (n,) pixel, width of the charge cloud;
    ``charge`` (n,) and ``charge_error`` (n,) adu, the error that of measuring the charge
    collected, without its Fano noise; ``background`` (n,) adu; ``chi2`` (n,) for 44 degrees of freedom.
    """

    y: Floats
    x: Floats
    sigma: Floats
    charge: Floats
    charge_error: Floats
    background: Floats
    chi2: Floats

    def __getitem__(self, keep: Flags) -> "Hits":
        """Return the hits chosen by ``keep`` (n,), bool."""
        return Hits(**{name: value[keep] for name, value in vars(self).items()})


@dataclass(frozen=True)
class XrayGain:
    """Gain of one amplifier, electron/adu, from X-rays.

    ``error`` is statistical; ``scale_error`` that of the pair energy, common to all amplifiers.
    ``diffusion_px`` is the median width of the charge clouds.
    """

    gain: float
    error: float
    scale_error: float
    diffusion_px: float
    spectrum: Spectrum


def find_hits(image: Pixels, read_noise: float, *, threshold: float = 5.0, mask: Mask = None) -> Peaks:
    """Pixels (n, 2), as (y, x), of isolated hits: local maxima above ``threshold`` read noises.

    Dropped: windows that leave the image, hold a masked or non-finite pixel, or overlap another's.

    Parameters
    ----------
    image : (y, x), adu, bias subtracted.
    read_noise : adu.
    threshold : height of the brightest pixel above the median of the image, in ``read_noise``.
    mask : (y, x), bool or bit flags; pixels that are not zero are not used.

    Raises
    ------
    InconsistentGeometry
        ``image`` is not (y, x), or ``mask`` has another shape.
    UnitsError
        ``read_noise`` is not a positive number.
    """
    bad = _bad_pixels(image, read_noise, mask)
    if bad.all():
        return np.empty((0, 2), dtype=np.intp)
    level = float(np.median(image[~bad])) + threshold * read_noise
    peaks = _local_maxima(np.where(bad, -np.inf, image), level)
    overlapping = cKDTree(peaks).query_pairs(2 * HALF, p=np.inf, output_type="ndarray")
    alone = np.ones(len(peaks), dtype=bool)
    alone[overlapping.ravel()] = False
    peaks = peaks[alone & np.all((peaks >= HALF) & (peaks < np.array(image.shape) - HALF), axis=1)]
    return peaks[~_windows(bad, peaks).any(axis=(1, 2))]


def _bad_pixels(image: Pixels, read_noise: float, mask: Mask) -> Flags:
    """Pixels not to be used, after checking the arguments all kernels share."""
    if image.ndim != 2:
        raise InconsistentGeometry(f"55Fe image has dimensions {image.shape}, expected one amplifier (y, x)")
    if not (np.isfinite(read_noise) and read_noise > 0):
        raise UnitsError(f"read noise {read_noise} adu is not a positive number: measure it from overscan")
    if mask is not None and mask.shape != image.shape:
        raise InconsistentGeometry(f"mask {mask.shape} does not fit the 55Fe image {image.shape}")
    bad: Flags = ~np.isfinite(image)
    return bad if mask is None else bad | (mask != 0)


def _local_maxima(image: Pixels, level: float) -> Peaks:
    """Pixels above ``level`` and above their eight neighbours; the first of equal ones counts."""
    padded = np.pad(image, 1, constant_values=-np.inf)
    y, x = np.nonzero(padded > level)
    value = padded[y, x]
    highest = np.ones(len(y), dtype=bool)
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        highest &= (value > padded[y - dy, x - dx]) & (value >= padded[y + dy, x + dx])
    return np.stack([y[highest] - 1, x[highest] - 1], axis=1)


def _windows(image: NDArray[np.generic], peaks: Peaks) -> NDArray[np.generic]:
    """Windows (n, 7, 7) around the peaks."""
    offset = np.arange(-HALF, HALF + 1)
    return image[peaks[:, 0, None, None] + offset[:, None], peaks[:, 1, None, None] + offset]


def fit_hits(image: Pixels, peaks: Peaks, read_noise: float, *, gain: float | None = None) -> Hits:
    """Fit a Gaussian cloud integrated over pixels to the window of each hit.

    The shape comes from the fit of ``charge * Ey * Ex + background``, ``E`` differences of
    error functions. The charge is then the sum of the inner 3 x 3 pixels above the level of the
    others, both corrected for the share of the cloud the fit puts in either. The fitted
    amplitude itself would be too high, by about one read noise for a cloud of one pixel:
    its width cannot be negative, so only upward noise of the neighbours fits into it.

    With a ``gain`` the weights are ``1 / (read_noise**2 + model / gain)``, taken from the
    fitted model: weights from noisy pixels would favour the low ones.

    Parameters
    ----------
    image : (y, x), adu, bias subtracted.
    peaks : (n, 2) pixels of `find_hits`.
    read_noise : adu.
    gain : electron/adu, approximate; serves the weights alone.
    """
    data = _windows(image, peaks).astype(np.float64)
    variance = np.full_like(data, read_noise**2)
    parameters = _minimise(data, variance, _start(data))
    for _ in range(2 if gain is not None else 0):  # the weights are settled after two rounds
        variance = read_noise**2 + np.maximum(_cloud(parameters)[0], 0) / (gain or 1.0)
        parameters = _minimise(data, variance, parameters)
    model = _cloud(parameters)[0]
    charge, background, error = _charge(data, parameters)
    return Hits(
        y=peaks[:, 0] + parameters[:, 0],
        x=peaks[:, 1] + parameters[:, 1],
        sigma=parameters[:, 2],
        charge=charge,
        charge_error=error * read_noise,
        background=background,
        chi2=np.sum((data - model) ** 2 / variance, axis=(1, 2)),
    )


def _charge(data: Floats, parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """Charge, background and error of the charge per read noise, each (n,), for fitted shapes."""
    unit = parameters.copy()
    unit[:, 3:] = 1.0, 0.0
    share = _cloud(unit)[0]
    inner, pixels = np.s_[:, HALF - 1 : HALF + 2, HALF - 1 : HALF + 2], 9
    others = (2 * HALF + 1) ** 2 - pixels
    ratio = pixels / others
    sum_in, share_in = data[inner].sum(axis=(1, 2)), share[inner].sum(axis=(1, 2))
    sum_out, share_out = data.sum(axis=(1, 2)) - sum_in, share.sum(axis=(1, 2)) - share_in
    own = share_in - ratio * share_out
    charge = (sum_in - ratio * sum_out) / own
    return charge, (sum_out - charge * share_out) / others, np.sqrt(pixels * (1 + ratio)) / own


def _start(data: Floats) -> Floats:
    """Start from (n, 5) parameters: centroid of the inner pixels, their sum, the level of the rim."""
    background, charge = _sums(data)
    inner = np.maximum(data[:, 2:-2, 2:-2] - background[:, None, None], 0)
    share = np.array([-1.0, 0.0, 1.0]) / np.maximum(inner.sum(axis=(1, 2)), 1e-9)[:, None]
    y0, x0 = np.sum(inner.sum(axis=2) * share, axis=1), np.sum(inner.sum(axis=1) * share, axis=1)
    return np.stack([y0, x0, np.full(len(data), 0.4), charge, background], axis=1)


def _sums(data: NDArray[Any]) -> tuple[Floats, Floats]:
    """Median of the rim (n,) and the sum of the inner 5 x 5 pixels above it (n,)."""
    rim = np.ones(data.shape[1:], dtype=bool)
    rim[1:-1, 1:-1] = False
    background = np.median(data[:, rim], axis=1)
    return background, data[:, 1:-1, 1:-1].sum(axis=(1, 2)) - (~rim).sum() * background


def _shares(centre: Floats, sigma: Floats) -> tuple[Floats, Floats, Floats]:
    """Share of a line of pixels (n, 7) in a Gaussian, and its slopes with centre and sigma."""
    edge = np.arange(-HALF - 0.5, HALF + 1) - centre[:, None]
    t = edge / sigma[:, None]
    density = np.exp(-(t**2) / 2) / (np.sqrt(2 * np.pi) * sigma[:, None])
    share = np.diff(erf(t / np.sqrt(2)), axis=1) / 2
    return share, -np.diff(density, axis=1), -np.diff(density * t, axis=1)


def _cloud(parameters: Floats) -> tuple[Floats, Floats]:
    """Model (n, 7, 7) and its slopes (n, 5, 7, 7) with (y0, x0, sigma, charge, background)."""
    y0, x0, sigma, charge, background = parameters.T
    fy, fy_centre, fy_sigma = (f[:, :, None] for f in _shares(y0, sigma))
    fx, fx_centre, fx_sigma = (f[:, None, :] for f in _shares(x0, sigma))
    q = charge[:, None, None]
    share = fy * fx
    shape = q * fy_centre * fx, q * fy * fx_centre, q * (fy_sigma * fx + fy * fx_sigma)
    slope = np.stack([*shape, share, np.ones_like(share)], axis=1)
    return q * share + background[:, None, None], slope


def _minimise(data: Floats, variance: Floats, start: Floats) -> Floats:
    """Levenberg-Marquardt on all hits at once; a hit leaves when its chi2 has settled."""
    best = start.copy()
    damping = np.full(len(start), 1e-2)
    cost = np.sum((data - _cloud(best)[0]) ** 2 / variance, axis=(1, 2))
    active = np.arange(len(start))
    for _ in range(60):
        if len(active) == 0:
            break
        pixels, weights = data[active], 1 / variance[active]
        trial = best[active] + _step(pixels, weights, best[active], damping[active])
        trial[:, :3] = np.clip(trial[:, :3], *_BOUNDS)
        new = np.sum((pixels - _cloud(trial)[0]) ** 2 * weights, axis=(1, 2))
        gained = cost[active] - new
        better = gained >= 0
        settled = (better & (gained < 1e-5)) | (damping[active] > 1e8)
        best[active[better]] = trial[better]
        cost[active[better]] = new[better]
        damping[active] *= np.where(better, 0.2, 10.0)
        active = active[~settled]
    return best


def _step(data: Floats, weights: Floats, parameters: Floats, damping: Floats) -> Floats:
    """One damped Gauss-Newton step (n, 5)."""
    model, slope = _cloud(parameters)
    flat = slope.reshape(len(slope), _PARAMETERS, -1)
    weighted = flat * weights.reshape(len(slope), 1, -1)
    normal = weighted @ flat.transpose(0, 2, 1)
    diagonal = np.einsum("nii->ni", normal)
    diagonal += damping[:, None] * np.maximum(diagonal, 1e-3) + 1e-9
    gradient = weighted @ (data - model).reshape(len(slope), -1, 1)
    return np.asarray(np.linalg.solve(normal, gradient)[:, :, 0], dtype=np.float64)


def select_hits(hits: Hits, diffusion_px: tuple[float, float] = (0.0, 1.0)) -> Flags:
    """Hits (n,), bool, of one clean cloud: width accepted, ``chi2`` within 5 sigma of its 44 of freedom."""
    freedom = (2 * HALF + 1) ** 2 - _PARAMETERS
    wide = (hits.sigma < diffusion_px[0]) | (hits.sigma > diffusion_px[1])
    return ~wide & (hits.chi2 < freedom + 5 * np.sqrt(2 * freedom))


def fe55_gain(
    images: Pixels,
    read_noise: float,
    temperature_k: float = 173.0,
    *,
    mask: Mask = None,
    diffusion_px: tuple[float, float] = (0.0, 1.0),
) -> XrayGain:
    """Gain of one amplifier from 55Fe exposures: ``kalpha_electrons(temperature_k) / peak``.

    Parameters
    ----------
    images : (n, y, x) or (y, x), adu, bias subtracted.
    read_noise : adu, with the rounding.
    temperature_k : K, of the sensor.
    mask : (y, x), bool or bit flags; pixels that are not zero are not used.
    diffusion_px : widths of the charge clouds accepted, pixel.

    Raises
    ------
    InsufficientInputs
        Too few clean hits.
    DegenerateSolution
        No K-alpha line among them.
    InconsistentGeometry, UnitsError
        As `find_hits`.
    """
    stack = images[None] if images.ndim == 2 else images
    if len(stack) == 0:
        raise InsufficientInputs("no 55Fe exposures: give at least one")
    electrons = kalpha_electrons(temperature_k)
    frames = [(image, find_hits(image, read_noise, mask=mask)) for image in stack]
    # No window leaves its frame, so frames stacked on top of each other are one tall image to the fit.
    tall = np.ascontiguousarray(stack).reshape(-1, stack.shape[2])
    peaks = np.concatenate([found + np.array([i * stack.shape[1], 0]) for i, (_, found) in enumerate(frames)])
    rough = electrons / find_peak(_sums(_windows(tall, peaks))[1])
    hits = fit_hits(tall, peaks, read_noise, gain=rough)
    clean = hits[select_hits(hits, diffusion_px)]
    blur = rough * np.median(clean.charge_error) if len(clean.charge) else 0.0
    spectrum = fit_spectrum(clean.charge, resolution=float(np.hypot(np.sqrt(FANO * electrons), blur) / electrons))
    gain = electrons / spectrum.peak
    error = gain * spectrum.peak_error / spectrum.peak
    return XrayGain(gain, error, gain * SCALE_ERROR, float(np.median(clean.sigma)), spectrum)
