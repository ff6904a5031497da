"""The energy spectrum of 55Fe X-rays, fitted to the charges of hits (Lupton 2016, Sec. 2.2a)."""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, logit, ndtr

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
_WIDTH: Final = np.array([1.0, _RESOLUTION_WIDTH, *_PRIOR_WIDTH])  # the position has no prior


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

    @property
    def ks_probability(self) -> float:
        """Probability of a larger ``ks`` were the model true."""
        from scipy.stats import kstwo  # noqa: PLC0415 (half a second, and few ask)

        return float(kstwo.sf(self.ks, self.hits))


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
    starts = [_start(1.0, resolution)]
    for _ in range(2):  # the second round has the range centred on the fitted line
        scaled = np.asarray(charges, dtype=np.float64) / peak
        scaled = scaled[(scaled > _RANGE[0]) & (scaled < _RANGE[1])]
        if len(scaled) < MINIMUM:
            counted = f"{len(scaled)} usable 55Fe hits, at least {MINIMUM} needed"
            raise InsufficientInputs(f"{counted}: add 55Fe exposures, or widen the selection")
        theta = _maximise(scaled, resolution, starts)
        scale, peak = peak, peak * (1 + theta[0] / 100)
        starts = [np.array([0.0, *theta[1:]]), _start(0.7, resolution), _start(2.0, resolution)]
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


def _lines(x: Floats, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Density and distribution function (n,) of both lines at ``x``, in units of the first position.

    A line's low tail is the Gaussian convolved with an exponential loss of mean ``tail``. Then come
    the slopes (5, n) of both with ``theta[:5]``.
    """
    sigma, steep = np.exp(theta[1]), np.exp(-theta[4])  # steep: sigma over tail
    kbeta, lossy = expit(theta[2:4])
    energy = np.array([[1.0], [K_BETA / K_ALPHA]])
    z = (x - (1 + theta[0] / 100) * energy) / sigma
    gauss = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    lost = np.exp(z * steep + steep**2 / 2 + log_ndtr(-z - steep))
    change = steep * lost - gauss  # of lost with z, and of the line with lossy
    line, below = gauss + lossy * change, ndtr(z) + lossy * lost
    bend = lossy * steep * change - (1 - lossy) * z * gauss  # of the line with z
    stretch = (z + steep) * lost - gauss  # of lost with steep
    moved, mixed = -energy / (100 * sigma), lossy * (1 - lossy)
    weights, swap = np.array([1 - kbeta, kbeta]), kbeta * (1 - kbeta) * np.array([-1.0, 1.0])
    slopes = np.stack([moved * bend, -z * bend - line, line, mixed * change, -steep * lossy * (lost + steep * stretch)])
    low = np.stack([moved * line, -z * line, below, mixed * lost, -steep * lossy * stretch])[:, :, -2:]
    each = np.stack([weights, weights, swap, weights, weights])[:, None]
    return weights @ line / sigma, weights @ below, (each @ slopes)[:, 0] / sigma, (each @ low)[:, 0]


def _model(x: Floats, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Density and distribution function (n,) of the hits within the fitted range; slopes (6, n) of the density."""
    density, cumulative, slope, cumulative_slope = _lines(np.concatenate([x, _RANGE]), theta)
    density, slope, below = density[:-2], slope[:, :-2], cumulative[-2]
    inside, flat, width = max(cumulative[-1] - below, 1e-9), expit(theta[5]), _RANGE[1] - _RANGE[0]
    wider = (cumulative_slope[:, -1] - cumulative_slope[:, -2])[:, None]
    return (
        (1 - flat) * density / inside + flat / width,
        (1 - flat) * (cumulative[:-2] - below) / inside + flat * (x - _RANGE[0]) / width,
        (1 - flat)
        * np.concatenate([(slope - density * wider / inside) / inside, [flat * (1 / width - density / inside)]]),
    )


def _cost(theta: Floats, scaled: Floats, resolution: float | None) -> tuple[float, Floats]:
    """Minus the logarithm of the likelihood, with the weak priors, and its gradient (6,)."""
    if not (abs(theta[0]) < 20 and -7 < theta[1] < -1.5 and np.all(np.abs(theta[2:]) < 12)):
        return 1e10, np.zeros(6)
    pull = np.zeros(6)
    pull[2:] = (theta[2:] - _PRIOR_CENTRE) / _PRIOR_WIDTH
    if resolution is not None:
        pull[1] = (theta[1] - np.log(resolution)) / _RESOLUTION_WIDTH
    density, _, slope = _model(scaled, theta)
    density = density + 1e-300
    value = np.sum(pull**2) / 2 - np.sum(np.log(density))
    return float(value), pull / _WIDTH - slope @ (1 / density)


def _start(width: float, resolution: float | None) -> Floats:
    """Parameters (6,) of a line at the expected place, its width relative to the resolution."""
    return np.array([0.0, np.log(width * (resolution or 0.02)), *_PRIOR_CENTRE])


def _maximise(scaled: Floats, resolution: float | None, starts: list[Floats]) -> Floats:
    """Best parameters (6,) found from any of the starts."""
    found = [minimize(_cost, s, args=(scaled, resolution), jac=True, options={"gtol": 1e-3}) for s in starts]
    return np.asarray(min(found, key=lambda f: f.fun).x)


def _information(theta: Floats, scaled: Floats, resolution: float | None) -> Floats:
    """Observed information (6, 6): differences of the gradient of the cost."""
    step = np.array([0.02, 0.01, 0.05, 0.05, 0.03, 0.05])
    ends = [[_cost(theta + sign * shift, scaled, resolution)[1] for shift in np.diag(step)] for sign in (1, -1)]
    second = (np.array(ends[0]) - np.array(ends[1])) / (2 * step[:, None])
    return (second + second.T) / 2


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
    )
