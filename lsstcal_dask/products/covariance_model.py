"""How variance and covariances of a flat grow with its level (Lupton 2016, Sec. 2.2b; Astier et al. 2019).

While charge gathers it moves the boundaries of pixels, so fluctuations damp their own growth. For the spectrum of
the fluctuations, with everything in electrons,

    dC/dmu = 1 + 2 (a + c mu) C,       C(mu) = integral over s from 0 to mu of exp[2 a (mu - s) + c (mu^2 - s^2)],

where a, c = F(a_ij), F(a_ij b_ij): Eq. 18 of A&A 629, A36, of which Eq. 20 is a series cut after four terms. The cut
costs up to 0.1 % of the gain, the integral nothing. In adu, ``C_ij(mu) = C_ij(g mu) / g^2 + n_ij / g^2``.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs

__all__ = ["Curve", "Model", "Points", "fisher", "fit_covariances", "model_covariances"]

Floats = NDArray[np.float64]

LEVELS: Final = 6
"""Flux levels needed: fewer do not tell gain, noise and curvature apart."""

_NOISE_PRIOR: Final = 0.05
"""Relative error of the read variance from overscan as that of the image: their rows are levelled unlike."""

_NODES, _WEIGHTS = (v / 2 for v in np.polynomial.legendre.leggauss(8))
_NODES = _NODES + 0.5  # exact to 1e-14 while exponents stay within +- 2


@dataclass(frozen=True)
class Points:
    """What pairs of flats measured."""

    mean: Floats  # (n,) adu
    covariances: Floats  # (n, lag y, lag x) adu**2, of one member, with the read noise
    counts: Floats  # (n, lag y, lag x) pairs of pixels behind them; [0, 0] is the number of pixels

    def __getitem__(self, keep: NDArray[np.bool_]) -> "Points":
        """Return the pairs chosen by ``keep`` (n,), bool."""
        return Points(self.mean[keep], self.covariances[keep], self.counts[keep])


@dataclass(frozen=True)
class Model:
    """Parameters: gain (electron/adu), and by lag (y, x) noise n (electron**2), a (1/electron), c (1/electron**2)."""

    gain: float
    noise: Floats
    area: Floats
    curvature: Floats


@dataclass(frozen=True)
class Curve:
    """A fitted model with its errors.

    ``covariance`` is that of gain, n, a and, where it was fitted, c, each lag after the other; ``pull`` (n,) is the
    residual of the variances over their errors.
    """

    model: Model
    error: Model
    covariance: Floats
    chi2: float
    dof: int
    pull: Floats


@lru_cache(maxsize=8)
def _transforms(lags: int) -> tuple[Floats, Floats]:
    """Lags (y, x) of one quadrant to frequencies (q, p) of one quadrant, and back to twice as many lags.

    Both are (quadrant, quadrant) matrices of a plane four times as wide as the lags: powers of a reach beyond them.
    """
    size, wide = 4 * lags, 2 * lags - 1
    frequency = np.arange(size // 2 + 1)
    cosine = np.cos(2 * np.pi * np.outer(frequency, np.arange(wide)) / size)
    twice = np.where((frequency == 0) | (frequency == size // 2), 1.0, 2.0) / size
    there = cosine[:, :lags] * np.where(np.arange(lags) == 0, 1.0, 2.0)
    back = (cosine * twice[:, None]).T
    return np.asarray(np.kron(there, there)), np.asarray(np.kron(back, back))


def _at_lags(spectrum: Floats, lags: int) -> Floats:
    """Spectra (n, frequency) at the lags: (n, lag y, lag x), twice as many as there are."""
    wide = 2 * lags - 1
    return np.asarray(spectrum @ _transforms(lags)[1].T).reshape(-1, wide, wide)


def _folded(response: Floats, lags: int) -> Floats:
    """Change (n, lag y, lag x, lag y, lag x) of the first two with a coefficient at the others.

    ``response`` (n, wide, wide) is what one of a single pixel does, and every coefficient stands for the up to four
    pixels at plus and minus its lag.
    """
    lag = np.arange(lags)
    plus, minus = np.add.outer(lag, lag), np.abs(np.subtract.outer(lag, lag))
    once = np.where(lag == 0, 0.5, 1.0)
    rows = (response[:, plus] + response[:, minus]) * once[:, None]
    both = (rows[..., plus] + rows[..., minus]) * once
    return both.transpose(0, 1, 3, 2, 4)


def _growth(mean: Floats, a: Floats, c: Floats) -> tuple[Floats, Floats, Floats]:
    """C (n, frequency), electron**2, at levels (n,), electron, and its derivatives with a and with c."""
    x, y = mean[:, None] * a, mean[:, None] ** 2 * c
    value, with_a, with_c = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        first, second = 1 - node, 1 - node**2
        part = weight * np.exp(2 * first * x + second * y)
        value += part
        with_a += 2 * first * part
        with_c += second * part
    scale = mean[:, None]
    return scale * value, scale**2 * with_a, scale**3 * with_c


def model_covariances(mean: Floats, model: Model) -> Floats:
    """Covariances (n, lag y, lag x), adu**2, of one flat at levels ``mean`` (n,), adu.

    Examples
    --------
    >>> nothing = np.zeros((2, 2))
    >>> model_covariances(np.array([100.0]), Model(2.0, nothing, nothing, nothing)).round(9)[0, 0].tolist()
    [50.0, 0.0]
    """
    lags = len(model.area)
    there, _ = _transforms(lags)
    growth, _, _ = _growth(model.gain * mean, there @ model.area.ravel(), there @ model.curvature.ravel())
    return np.asarray((_at_lags(growth, lags)[:, :lags, :lags] + model.noise) / model.gain**2)


def _variances(spectrum: Floats, counts: Floats) -> Floats:
    """Variances (n, lag, lag) of measured covariances: ``V^2 / N`` for N pairs, and ``2 V^2 / N`` for the variance.

    Of pixels that are correlated V^2 is the sum of the squares of all their covariances, the mean square of the
    ``spectrum`` (n, frequency).
    """
    found = _at_lags(spectrum**2, counts.shape[1])[:, :1, :1] / counts
    found[:, 0, 0] *= 2
    return found


def _linear(points: Points, model: Model, quadratic: bool) -> tuple[Floats, Floats, Floats]:
    """Model (n, lag), its derivatives (n, lag, parameter) and the variances (n, lag) that it says.

    Parameters are ln gain, n / gain**2 in adu**2, a and c.
    """
    lags, g = len(model.area), model.gain
    there, _ = _transforms(lags)
    a, c = there @ model.area.ravel(), there @ model.curvature.ravel()
    mean, count = g * points.mean, lags**2
    growth, with_a, with_c = _growth(mean, a, c)
    rate = mean[:, None] * (1 + 2 * (a + mean[:, None] * c) * growth) - 2 * growth
    value, with_gain = (_at_lags(part / g**2, lags)[:, :lags, :lags] for part in (growth, rate))
    value = value + model.noise / g**2
    slope = np.empty((len(mean), count, 1 + count * (3 if quadratic else 2)))
    slope[:, :, 0] = with_gain.reshape(-1, count)
    slope[:, :, 1 : 1 + count] = np.eye(count)
    for i, part in enumerate([with_a, with_c] if quadratic else [with_a], 1):
        folded = _folded(_at_lags(part / g**2, lags), lags)
        slope[:, :, 1 + i * count : 1 + (i + 1) * count] = folded.reshape(-1, count, count)
    spectrum = (growth + there @ model.noise.ravel()) / g**2
    return value.reshape(-1, count), slope, _variances(spectrum, points.counts).reshape(-1, count)


def _normal(points: Points, model: Model, quadratic: bool, read: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Normal matrix and right side of a Gauss-Newton step; residuals over errors (n, lag), and of the prior."""
    value, slope, variance = _linear(points, model, quadratic)
    residual = points.covariances.reshape(value.shape) - value
    weighted = slope / variance[..., None]
    size = slope.shape[2]
    matrix = slope.reshape(-1, size).T @ weighted.reshape(-1, size)
    right = weighted.reshape(-1, size).T @ residual.ravel()
    prior = max(_NOISE_PRIOR * read**2, 1e-12)
    miss = (read**2 - model.noise[0, 0] / model.gain**2) / prior
    matrix[1, 1] += 1 / prior**2
    right[1] += miss / prior
    return matrix, right, residual / np.sqrt(variance), np.array([miss])


def _moved(model: Model, step: Floats) -> Model:
    """Model after a step of the parameters of `_linear`."""
    lags = len(model.area)
    parts = [part.reshape(lags, lags) for part in np.split(step[1:], lags**2 * np.arange(1, 3))[:2]]
    rest = step[1 + 2 * lags**2 :]
    gain = model.gain * float(np.exp(np.clip(step[0], -0.5, 0.5)))
    noise = (model.noise / model.gain**2 + parts[0]) * gain**2
    curvature = model.curvature + (rest.reshape(lags, lags) if len(rest) else 0.0)
    return Model(gain, noise, model.area + parts[1], curvature)


def _solve(matrix: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Solution and inverse of the scaled normal equations."""
    scale = np.sqrt(np.diag(matrix))
    inverse = np.linalg.inv(matrix / np.outer(scale, scale)) / np.outer(scale, scale)
    return inverse @ right, inverse


def _noise_bias(points: Points, model: Model, inverse: Floats) -> Floats:
    """Step of the parameters that takes out what their own noise does to them (Box 1971, to second order).

    The model bends: noise of a(k) and c(k) raises its mean by ``mu integral of exp(E) Var(E) / 2``, E the exponent,
    and the fit makes up for it by a lower a_00. On an amplifier of 64 x 128 pixels that is half an error. What the
    noise of ln g adds, by itself and together with theirs, is small.
    """
    lags, g = len(model.area), model.gain
    count, quadratic = lags**2, len(inverse) > 1 + 2 * lags**2
    there, _ = _transforms(lags)
    a, c = there @ model.area.ravel(), there @ model.curvature.ravel()
    blocks = [slice(1 + i * count, 1 + (i + 1) * count) for i in range(1, 3 if quadratic else 2)]
    spread = [[np.sum(there @ inverse[rows, columns] * there, axis=1) for columns in blocks] for rows in blocks]
    mean = g * points.mean[:, None]
    raised = np.zeros((len(mean), len(a)))
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        terms = [2 * (1 - node) * mean, (1 - node**2) * mean**2][: len(blocks)]
        variance = sum(t * u * spread[i][j] for i, t in enumerate(terms) for j, u in enumerate(terms))
        raised += weight * np.exp(2 * (1 - node) * mean * a + (1 - node**2) * mean**2 * c) * variance / 2
    growth, *slopes = _growth(mean[:, 0], a, c)
    pull = a + mean * c
    rate = 1 + 2 * pull * growth
    raised = mean * raised + inverse[0, 0] / 2 * (
        4 * growth - 3 * mean * rate + 2 * mean**2 * (c * growth + pull * rate)
    )
    for power, (block, with_it) in enumerate(zip(blocks, slopes, strict=False)):
        mixed = -2 * with_it + 2 * mean * (mean**power * growth + pull * with_it)
        raised += mixed * (there @ inverse[block, 0])
    shift = _at_lags(raised / g**2, lags)[:, :lags, :lags].reshape(-1, count)
    _, slope, errors = _linear(points, model, quadratic)
    return np.asarray(inverse @ np.einsum("nlp,nl->p", slope, shift / errors))


def fisher(mean: Floats, counts: Floats, model: Model, *, quadratic: bool = False) -> float:
    """Cramer-Rao bound of the relative error of the gain from pairs of flats; arguments as of `Points`."""
    points = Points(mean, model_covariances(mean, model), counts)
    read = float(np.sqrt(model.noise[0, 0])) / model.gain
    matrix, right, _, _ = _normal(points, model, quadratic, read)
    return float(np.sqrt(_solve(matrix, right)[1][0, 0]))


def _start(points: Points, read: float) -> Model:
    """First guess: to first order variance over mean is ``1 / g + a_00 mean`` and C_ij is ``a_ij mean**2``."""
    shot = (points.covariances[:, 0, 0] - read**2) / points.mean
    slope, intercept = np.polyfit(points.mean, shot, 1)
    gain = 1 / intercept if intercept > 0 else 1 / float(np.max(shot))
    area = points.covariances.sum(axis=0) / np.sum(points.mean**2)
    area[0, 0] = min(slope, 0.0)
    noise = np.zeros_like(area)
    noise[0, 0] = (gain * read) ** 2
    return Model(float(gain), noise, area, np.zeros_like(area))


def fit_covariances(points: Points, read_noise: float, *, quadratic: bool = False) -> Curve:
    """Fit gain, n_ij, a_ij and, where asked for, c_ij to the covariances of pairs of flats.

    Weighted least squares by Gauss-Newton steps; the weights are those of the fitted model, for weights from the
    measured variances would favour low ones. The read noise of the overscan holds n_00 to 5 %.

    Parameters
    ----------
    points : pairs of flats.
    read_noise : adu, of a single frame.
    quadratic : whether boundaries move in proportion to the charge alone (c = 0) or also to its square.

    Raises
    ------
    InsufficientInputs
        Fewer than six levels.
    DegenerateSolution
        No gain explains the variances.
    """
    order = np.sort(points.mean)
    levels = 1 + int(np.count_nonzero(np.diff(order) > 0.02 * order[:-1]))
    if levels < LEVELS:
        raise InsufficientInputs(f"{levels} flux levels, at least {LEVELS} needed: take pairs of flats at more levels")
    model, chi2 = _start(points, read_noise), np.inf
    for _ in range(30):
        matrix, right, residual, prior = _normal(points, model, quadratic, read_noise)
        step, inverse = _solve(matrix, right)
        decrement = float(right @ step)
        if not np.isfinite(decrement):
            break
        model = _moved(model, step)
        if decrement < 1e-6:  # a thousandth of an error
            chi2 = float(np.sum(residual**2) + np.sum(prior**2))
            break
    if not (np.isfinite(chi2) and model.gain > 0):
        raise DegenerateSolution(
            "the variances of the flats follow no photon transfer curve: check level and linearity"
        )
    model = _moved(model, _noise_bias(points, model, inverse))
    return _curve(model, inverse, chi2, residual, quadratic)


def _curve(model: Model, inverse: Floats, chi2: float, residual: Floats, quadratic: bool) -> Curve:
    """Errors of the parameters in the units of `Model`."""
    lags = len(model.area)
    count = lags**2
    scale = np.ones(len(inverse))
    scale[0], scale[1 : 1 + count] = model.gain, model.gain**2
    turn = np.diag(scale)
    turn[1 : 1 + count, 0] = 2 * model.noise.ravel()  # n = gain**2 times what was fitted
    covariance = turn @ inverse @ turn.T
    error = np.sqrt(np.diag(covariance))
    parts = [part.reshape(lags, lags) for part in np.split(error[1:], count * np.arange(1, 4))[: 3 if quadratic else 2]]
    parts += [] if quadratic else [np.full((lags, lags), np.nan)]
    dof = residual.size + 1 - len(inverse)
    return Curve(model, Model(float(error[0]), *parts), covariance, chi2, dof, residual[:, 0])
