"""Gain of one amplifier from 55Fe X-rays (Lupton 2016, Sec. 2.2a).

An X-ray frees a known number of electrons. Each hit is a Gaussian cloud integrated over pixels;
the charges of all hits make a `spectrum` whose K-alpha line gives the gain.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numba import njit
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
_BOUNDS: Final = (  # px for the first three; narrower clouds are one pixel wherever they fell
    (-1.5, -1.5, 0.08, -np.inf, -np.inf),
    (1.5, 1.5, 2.5, np.inf, np.inf),
)

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
        variance = read_noise**2 + np.maximum(_cloud(parameters), 0) / (gain or 1.0)
        parameters = _minimise(data, variance, parameters)
    model = _cloud(parameters)
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
    share = _cloud(unit)
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


def _cloud(parameters: Floats) -> Floats:
    """Model (n, 7, 7) of (y0, x0, sigma, charge, background)."""
    y0, x0, sigma, charge, background = parameters.T[:, :, None]
    edge = np.arange(-HALF - 0.5, HALF + 1)
    fy, fx = (np.diff(erf((edge - centre) / (sigma * np.sqrt(2))), axis=1) / 2 for centre in (y0, x0))
    return charge[:, None] * fy[:, :, None] * fx[:, None, :] + background[:, None]


# A new user waits for the compiler, so the kernels spare it: they allocate nothing and assign no slices (numba
# would compile the text of error messages for each), and call one another in one place only.
@njit(nogil=True)
def _shares(p, shares):  # type: ignore[no-untyped-def]
    """Write share of a line of pixels in the cloud, and slopes with centre and sigma, to ``shares`` (2, 3, 7)."""
    for axis in range(shares.shape[0]):
        last = shares.shape[2]
        for k in range(last + 1):
            t = (k - last / 2 - p[axis]) / p[2]
            half = math.erf(t / math.sqrt(2.0)) / 2
            density = math.exp(-t * t / 2) / (math.sqrt(2 * math.pi) * p[2])
            if k > 0:
                shares[axis, 0, k - 1] += half
                shares[axis, 1, k - 1] -= density
                shares[axis, 2, k - 1] -= density * t
            if k < last:
                shares[axis, 0, k] = -half
                shares[axis, 1, k] = density
                shares[axis, 2, k] = density * t


@njit(nogil=True)
def _normal(pixels, variance, p, shares, slope, normal):  # type: ignore[no-untyped-def]
    """Chi2 at ``p``; writes the lower half of the normal equations (5, 5) and, as row 5, their right side."""
    _shares(p, shares)
    free = normal.shape[1]
    for i in range(free + 1):
        for j in range(free):
            normal[i, j] = 0.0
    chi2 = 0.0
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            fy, fx = shares[0, 0, y], shares[1, 0, x]
            slope[0] = p[3] * shares[0, 1, y] * fx
            slope[1] = p[3] * fy * shares[1, 1, x]
            slope[2] = p[3] * (shares[0, 2, y] * fx + fy * shares[1, 2, x])
            slope[3] = fy * fx
            slope[4] = 1.0
            slope[5] = pixels[y, x] - p[3] * slope[3] - p[4]
            chi2 += slope[5] ** 2 / variance[y, x]
            for i in range(free + 1):
                for j in range(min(i + 1, free)):
                    normal[i, j] += slope[i] * slope[j] / variance[y, x]
    return chi2


@njit(nogil=True)
def _step(normal, damping, lower):  # type: ignore[no-untyped-def]
    """Solve the damped normal equations by Cholesky; the step is left in the last row of ``lower`` (6, 5)."""
    free = normal.shape[1]
    for i in range(free + 1):
        for j in range(min(i + 1, free)):
            total = normal[i, j]
            if i == j:
                total += damping * max(total, 1e-3) + 1e-9
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            lower[i, j] = math.sqrt(total) if i == j else total / lower[j, j]
    for i in range(free - 1, -1, -1):
        for k in range(i + 1, free):
            lower[free, i] -= lower[k, i] * lower[free, k]
        lower[free, i] /= lower[i, i]


@njit(nogil=True, cache=True, error_model="numpy")
def _fit(data, variance, bounds, best, work):  # type: ignore[no-untyped-def]
    """Levenberg-Marquardt, one hit after the other: ``best`` (n, 5) moves to where chi2 has settled."""
    shares, normal, lower, slope, trial = work
    free = best.shape[1]
    for n in range(data.shape[0]):
        cost, damping, now = np.inf, 1e-2, 0
        for i in range(free):
            trial[i] = best[n, i]
        for turn in range(61):
            chi2 = _normal(data[n], variance[n], trial, shares, slope, normal[1 - now])
            settled = damping > 1e8 or 0 <= cost - chi2 < 1e-5
            if chi2 <= cost:
                for i in range(free):
                    best[n, i] = trial[i]
                damping *= 0.2 if turn > 0 else 1.0
                cost, now = chi2, 1 - now
            else:
                damping *= 10.0
            if settled:
                break
            _step(normal[now], damping, lower)
            for i in range(free):
                trial[i] = min(max(best[n, i] + lower[free, i], bounds[0, i]), bounds[1, i])


def _minimise(data: Floats, variance: Floats, start: Floats) -> Floats:
    """Parameters (n, 5) of least chi2 next to ``start``."""
    best = start.copy()
    free = _PARAMETERS
    sizes = (2, 3, data.shape[1]), (2, free + 1, free), (free + 1, free), (free + 1,), (free,)
    _fit(data, variance, np.array(_BOUNDS), best, tuple(np.zeros(size) for size in sizes))
    return best


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
