"""The energy spectrum of 55Fe X-rays, fitted to the charges of hits (Lupton 2016, Sec. 2.2a)."""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, logit, ndtr
from scipy.stats import kstwo

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs

__all__ = ["Spectrum", "find_peak", "fit_spectrum", "kalpha_electrons"]

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.floating]

K_ALPHA, K_BETA = 5889.0, 6490.0
"""Energies of the two lines of 55Fe, eV."""

GAINS: Final = (0.3, 10.0)
"""Gains, electron/adu, within which K-alpha is looked for."""

MINIMUM: Final = 50
"""Hits below which no spectrum is fitted: the position is then known to a few per mille at best."""

_RANGE: Final = (0.75, 1.22)  # part of the spectrum fitted, in units of K-alpha: above the Si escape peak
# The likelihood is told what a spectrum looks like only where the hits say nothing (no tail, no background):
# logit K-beta fraction, logit tail fraction, log(tail length / sigma), logit background fraction.
_PRIOR_CENTRE: Final = np.array([logit(0.12), logit(0.1), np.log(5.0), logit(0.05)])
_PRIOR_WIDTH: Final = np.array([0.7, 1.5, 0.5, 1.5])
_RESOLUTION_WIDTH: Final = 0.3  # of log(sigma), where the resolution is known beforehand


@dataclass(frozen=True)
class Spectrum:
    """The 55Fe spectrum of one amplifier; positions in adu, ``sigma`` of both lines in adu.

    ``fraction_kbeta`` is of the hits in the lines, ``fraction_tail`` those of the lines that
    lost charge, ``tail`` (adu) the mean loss, ``fraction_flat`` the background of all hits.
    ``ks`` is the Kolmogorov-Smirnov distance; of ``ks_probability`` only a small value tells.
    """

    peak: float
    peak_error: float
    sigma: float
    fraction_kbeta: float
    fraction_tail: float
    tail: float
    fraction_flat: float
    hits: int
    ks: float
    ks_probability: float


def kalpha_electrons(temperature_k: float = 173.0) -> float:
    """Electrons freed by a K-alpha X-ray: ``5889 eV / (3.654 eV (1 - 1.31e-4 (T - 270 K)))``.

    >>> round(kalpha_electrons(173.0))
    1591
    """
    return K_ALPHA / (3.654 * (1 - 1.31e-4 * (temperature_k - 270.0)))


def fit_spectrum(charges: Pixels, *, resolution: float | None = None) -> Spectrum:
    """Locate K-alpha in the charges of hits by unbinned maximum likelihood.

    Two Gaussians of one sigma at a fixed ratio 6490/5889, each with a fraction of hits that
    lost an exponential amount of charge, on a flat background, between 0.75 and 1.22 of the
    K-alpha position. The error of the position is that of the observed information.

    Parameters
    ----------
    charges : (n,), adu.
    resolution : expected sigma over position; a hint, to 30 %, that tells a line from a heavy tail.

    Raises
    ------
    InsufficientInputs
        Fewer than 50 hits lie within the range.
    DegenerateSolution
        No line stands out of the background.
    """
    peak = find_peak(charges)
    for widths in ((1.0,), (0.7, 1.0, 2.0)):  # the second round has the range centred on the fitted line
        scaled = np.asarray(charges, dtype=np.float64) / peak
        scaled = scaled[(scaled > _RANGE[0]) & (scaled < _RANGE[1])]
        if len(scaled) < MINIMUM:
            counted = f"{len(scaled)} usable 55Fe hits, at least {MINIMUM} needed"
            raise InsufficientInputs(f"{counted}: add 55Fe exposures, or widen the selection")
        theta = _maximise(scaled, resolution, widths)
        scale, peak = peak, peak * (1 + theta[0] / 100)
    return _describe(theta, scaled, scale, resolution)


def find_peak(charges: Pixels) -> float:
    """Mode of the charges on a logarithmic axis: K-alpha is the highest peak whatever the gain."""
    step, width = 0.004, 0.025
    lowest, highest = (np.log(kalpha_electrons() / gain) for gain in GAINS[::-1])
    edges = np.arange(lowest, highest + step, step)
    counts = np.histogram(np.log(charges[charges > 0]), edges)[0]
    offset = np.arange(-20, 21) * step
    smooth = np.convolve(counts, np.exp(-((offset / width) ** 2) / 2), mode="same")
    return float(np.exp(edges[np.argmax(smooth)] + step / 2))


def _lines(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Density and distribution function of both lines at ``x``, in units of the first position.

    A line's low tail is the Gaussian convolved with an exponential loss of mean ``tail``.
    """
    sigma = np.exp(theta[1])
    tail = sigma * np.exp(theta[4])
    kbeta, lossy = expit(theta[2:4])
    density, cumulative = np.zeros_like(x), np.zeros_like(x)
    for energy, weight in ((K_ALPHA, 1 - kbeta), (K_BETA, kbeta)):
        z = (x - (1 + theta[0] / 100) * energy / K_ALPHA) / sigma
        lost = np.exp(z * sigma / tail + (sigma / tail) ** 2 / 2 + log_ndtr(-z - sigma / tail))
        gauss = np.exp(-(z**2) / 2) / (np.sqrt(2 * np.pi) * sigma)
        density += weight * ((1 - lossy) * gauss + lossy * lost / tail)
        cumulative += weight * (ndtr(z) + lossy * lost)
    return density, cumulative


def _model(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Density and distribution function of the hits within the fitted range."""
    density, cumulative = _lines(np.concatenate([x, _RANGE]), theta)
    below, above = cumulative[-2:]
    inside, flat, width = max(above - below, 1e-9), expit(theta[5]), _RANGE[1] - _RANGE[0]
    return (
        (1 - flat) * density[:-2] / inside + flat / width,
        (1 - flat) * (cumulative[:-2] - below) / inside + flat * (x - _RANGE[0]) / width,
    )


def _cost(theta: Floats, scaled: Floats, resolution: float | None) -> float:
    """Minus the logarithm of the likelihood, with the weak priors."""
    if not (abs(theta[0]) < 20 and -7 < theta[1] < -1.5 and np.all(np.abs(theta[2:]) < 12)):
        return 1e10
    prior = np.sum(((theta[2:] - _PRIOR_CENTRE) / _PRIOR_WIDTH) ** 2) / 2
    if resolution is not None:
        prior += ((theta[1] - np.log(resolution)) / _RESOLUTION_WIDTH) ** 2 / 2
    return float(prior - np.sum(np.log(_model(scaled, theta)[0] + 1e-300)))


def _maximise(scaled: Floats, resolution: float | None, widths: tuple[float, ...]) -> Floats:
    """Best parameters from starts that differ in the width of the line, relative to the resolution."""
    starts = [[0.0, np.log(f * (resolution or 0.02)), *_PRIOR_CENTRE] for f in widths]
    found = [minimize(_cost, s, args=(scaled, resolution), options={"gtol": 1e-3}) for s in starts]
    return np.asarray(min(found, key=lambda f: f.fun).x)


def _information(theta: Floats, scaled: Floats, resolution: float | None) -> Floats:
    """Observed information (6, 6): second differences of the cost."""
    step = np.array([0.02, 0.01, 0.05, 0.05, 0.03, 0.05])
    shift = np.diag(step)

    def mixed(i: int, j: int) -> float:
        signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
        return sum(a * b * _cost(theta + a * shift[i] + b * shift[j], scaled, resolution) for a, b in signs)

    second = np.array([[mixed(i, j) if i <= j else 0.0 for j in range(6)] for i in range(6)])
    return (second + np.triu(second, 1).T) / (4 * np.outer(step, step))


def _describe(theta: Floats, scaled: Floats, scale: float, resolution: float | None) -> Spectrum:
    """Errors and goodness of a fitted spectrum."""
    hits = len(scaled)
    kbeta, lossy, flat = map(float, expit(theta[[2, 3, 5]]))
    sigma, position = scale * np.exp(theta[1]), scale * (1 + theta[0] / 100)
    information = _information(theta, scaled, resolution)
    lines = (1 - flat) * hits
    broad = sigma > 0.1 * position or abs(theta[0]) > 10
    if broad or lines < 5 * np.sqrt(hits) or np.linalg.eigvalsh(information)[0] <= 0:
        raise DegenerateSolution(
            f"no K-alpha line in {hits} hits near {scale:.0f} adu (width {sigma:.0f} adu, {lines:.0f} in the"
            " lines): check that the exposures are of 55Fe, the read noise and the clouds accepted"
        )
    model = _model(np.sort(scaled), theta)[1]
    distance = max(np.max(np.arange(1, hits + 1) / hits - model), np.max(model - np.arange(hits) / hits))
    return Spectrum(
        peak=float(position),
        peak_error=float(scale / 100 * np.sqrt(np.linalg.inv(information)[0, 0])),
        sigma=float(sigma),
        fraction_kbeta=kbeta,
        fraction_tail=lossy,
        tail=float(sigma * np.exp(theta[4])),
        fraction_flat=flat,
        hits=hits,
        ks=float(distance),
        ks_probability=float(kstwo.sf(distance, hits)),
    )
