"""The fit of a linearity curve to a ladder of flats and the charge of a photodiode (Lupton 2016, Sec. 2.3; ¶3).

With m the mean signal of an amplifier (adu above the bias) and D the charge of the photodiode,

    m + S(m) = k_i D (1 + drift(time) + t (T - <T>) + s / seconds) + o

k_i one for each group of exposures of the same lamp, filter and range of the picoammeter; S a cubic spline with
S(0) = 0 that may have one corner, a feature of the preamplifier. Scale of S and k go together: k_0 is held at the
median of m / D of the first group, so that S is small and no residual can be made small by making k small. All but
the corner is linear, so this is one weighted least-squares problem. The result is converted to the gauge L'(0) = 1,
``L = (m + S) / (1 + S'(0))``, and so is its covariance.

The relative variance of an exposure is ``c**2 + v**2 / m + e**2 / m**2``: c, v, e follow from the residuals by maximum
likelihood (the -2 sum ln w of SITCOMTN-148), each divided by one less its leverage.

The spline has more knots than any curve needs and a penalty on its second derivative, that of a curve whose slope
wanders as it goes (`bending`). How far it wanders, `Model.bend`, and over which reach it does not change its mind,
`Model.length`, follow from the ladder by the restricted likelihood. So the error holds what the exposures leave open,
and no choice of few knots hides what a spline cannot follow: that is a third of the error of one chosen by
cross-validation.
"""

from dataclasses import dataclass, replace
from math import factorial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.products.bending import Model, log_width, penalty, spline_columns, spline_model

__all__ = [
    "Ladder",
    "Nuisance",
    "Solution",
    "choose_model",
    "clusters",
    "noise_model",
    "solve",
    "steps",
]

Floats = NDArray[np.float64]

_ORDER: Final = 3  # of the drift: Legendre polynomials in time
_BENDS: Final = np.exp(np.linspace(-2.5, 2.5, 11))  # over the expected one, that are tried
_LENGTHS: Final = (0.03, 0.1, 0.3, 1.0)  # of the top, that are tried
_CORNERS: Final = 60  # places tried for a corner
_TURNS: Final = 40  # at most, of the terms of the noise, until
_AGREES: Final = 0.01  # a term changes no variance by more than that
_NEAR: Final = 0.08  # of the top
_HIGHEST: Final = 0.75  # of the top: a corner above it is rather the beginning of saturation
_WORTH: Final = 9.0  # least gain of a corner in chi2 and in cross-validation: its place is one more parameter


@dataclass(frozen=True, eq=False)
class Ladder:
    """Mean signals of one amplifier in a ladder of flats, and the light of each exposure."""

    signal: Floats  # (n,) adu above the bias
    light: Floats  # (n,) C
    seconds: Floats  # (n,) exposure time
    days: Floats  # (n,) time of the exposure
    temperature: Floats  # (n,) K; NaN where unknown
    group: NDArray[np.int64]  # (n,) exposures that share k
    floor: Floats  # (n,) adu, known error of the signal: read noise and level of the overscan

    def take(self, where: Any) -> "Ladder":
        """Return only some of the exposures."""
        return Ladder(**{name: getattr(self, name)[where] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Nuisance:
    """How large what disturbs the ladder may be, rms: priors, so that nothing is degenerate."""

    leak: float = 0.3  # adu, signal without light of the lamp
    drift: float = 2e-4  # relative, of the photodiode over a day
    temperature: float = 2e-3  # 1/K, of the gain
    shutter: float = 1e-3  # s, by which the detector sees the lamp longer than the photodiode
    bend: float = 0.02  # change of the slope of S from dark to the highest level, to a factor of e


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of a fit."""

    model: Model
    parameters: Floats  # of the spline (and its corner) first
    covariance: Floats
    residual: Floats  # (n,) relative: measured over expected light, less one
    leverage: Floats  # (n,)
    variance: Floats  # (n,) relative, of each exposure by the noise model
    spline: int  # number of parameters of S
    expected: Floats  # (n,) adu: the true signal that the photodiode tells, in the gauge of the fit
    chi2: float

    @property
    def pull(self) -> Floats:
        """Residuals (n,) in units of their errors had the exposure taken no part in the fit."""
        return self.residual / np.sqrt(self.variance * (1 - self.leverage))

    @property
    def score(self) -> float:
        """Sum of squares of what the others predict for each exposure: leave-one-out cross-validation."""
        return float(np.sum(self.residual**2 / self.variance / (1 - self.leverage) ** 2))

    @property
    def _slope(self) -> tuple[float, Floats]:
        """S'(0) in the gauge of the fit, and its gradient (spline,)."""
        gradient = np.zeros(self.spline)
        gradient[0] = 3 / (*self.model.knots, self.model.top)[0]
        return float(gradient[0] * self.parameters[0]), gradient

    def correction(self, level: Any) -> tuple[Floats, Floats]:
        """S (adu) at levels (n,) in the gauge L'(0) = 1, and its covariance (n, n); straight beyond the top."""
        level = np.asarray(level, np.float64)
        columns, (slope, gradient) = spline_columns(self.model, level), self._slope
        true = (level + columns @ self.parameters[: self.spline]) / (1 + slope)
        columns = (columns - true[:, None] * gradient) / (1 + slope)
        return true - level, columns @ self.covariance[: self.spline, : self.spline] @ columns.T

    @property
    def light(self) -> Floats:
        """True signal (n,), adu, that the photodiode tells, in the gauge L'(0) = 1."""
        return self.expected / (1 + self._slope[0])


def clusters(light: Floats, gap: float = 0.01) -> NDArray[np.int64]:
    """Number (n,) of the level that each exposure belongs to: sorted, levels are ``gap`` apart or more."""
    order = np.argsort(light, kind="stable")
    found = np.empty(len(light), np.int64)
    found[order] = np.concatenate([[0], np.cumsum(np.diff(light[order]) > gap * light[order][:-1])])
    return found


def _nuisance(ladder: Ladder, light: Floats, prior: Nuisance) -> list[Floats]:
    """Columns (n,), adu, of what disturbs the ladder, scaled to priors of unit width."""
    columns = [np.ones(len(light)) * prior.leak]
    half = np.ptp(ladder.days) / 2
    if half > 0:
        time, rate = (ladder.days - ladder.days.min()) / half - 1, min(np.pi * half, 1.0)
        for order in range(1, _ORDER + 1):
            width = prior.drift * rate**order / (1.0 if rate == 1 else factorial(order))
            columns.append(light * width * np.polynomial.Legendre.basis(order)(time))
    warm = ladder.temperature
    if np.isfinite(warm).all():
        columns.append(light * prior.temperature * (warm - warm.mean()))
    if (ladder.seconds > 0).all():
        columns.append(light * prior.shutter / ladder.seconds)
    return [column for column in columns if np.abs(column).max() > 0]


@dataclass(frozen=True, eq=False)
class _Problem:
    """The rows of a least-squares problem, each in units of its error, columns of unit length; factored."""

    light: Floats  # (n,) adu, what the photodiode says but for what is fitted
    weight: Floats  # (n,) 1/adu
    design: Floats  # (n, parameter)
    target: Floats  # (row,)
    whole: Floats  # (row, parameter)
    scale: Floats
    q: Floats
    r: Floats
    spline: int

    def gain(self, columns: Floats) -> tuple[Floats, Floats]:
        """By how much chi2 falls with one more column of (n, c) adu, and the parameter of each."""
        rows = np.zeros((len(self.target), columns.shape[1]))
        rows[: len(self.light)] = columns * self.weight[:, None]
        rows -= self.q @ (self.q.T @ rows)
        left = self.target - self.q @ (self.q.T @ self.target)
        norm = np.maximum((rows**2).sum(axis=0), 1e-12 * len(self.light))
        return (left @ rows) ** 2 / norm, (left @ rows) / norm


@dataclass(frozen=True, eq=False)
class _Columns:
    """What a least-squares problem is made of, but for the noise."""

    light: Floats  # (n,) adu
    design: Floats  # (n, parameter)
    prior: Floats  # (row, parameter)
    spline: int


def _columns(ladder: Ladder, model: Model, prior: Nuisance) -> _Columns:
    group = np.unique(ladder.group, return_inverse=True)[1]  # all of one may have been left out
    groups, ratio = int(group.max()) + 1, ladder.signal / ladder.light
    slopes = np.array([np.median(ratio[group == i]) for i in range(groups)])
    light = slopes[group] * ladder.light
    spline, others = spline_columns(model, ladder.signal), _nuisance(ladder, light, prior)
    one_each = light[:, None] * (group[:, None] == np.arange(1, groups))
    design = np.column_stack([-spline, one_each, *others])
    free, total = spline.shape[1] + groups - 1, design.shape[1]
    bent, width = penalty(model), np.eye(total)[free:]
    smooth = np.pad(bent, ((0, 0), (0, total - spline.shape[1])))
    return _Columns(light, design, np.vstack([smooth, width]), spline.shape[1])


def _factored(ladder: Ladder, columns: _Columns, variance: Floats) -> _Problem:
    light, design = columns.light, columns.design
    weight = 1 / np.sqrt(variance) / light
    whole = np.vstack([design * weight[:, None], columns.prior])
    scale = np.sqrt((whole**2).sum(axis=0))
    scale[scale == 0] = 1.0
    q, r = np.linalg.qr(whole / scale)
    target = np.r_[(ladder.signal - light) * weight, np.zeros(len(columns.prior))]
    return _Problem(light, weight, design, target, whole, scale, q, r, columns.spline)


def _problem(ladder: Ladder, model: Model, variance: Floats, prior: Nuisance) -> _Problem:
    return _factored(ladder, _columns(ladder, model, prior), variance)


def solve(ladder: Ladder, model: Model, variance: Floats, prior: Nuisance) -> Solution:
    """Weighted least squares with a given noise: ``variance`` (n,), relative, of each exposure."""
    it = _problem(ladder, model, variance, prior)
    inverse = np.linalg.inv(it.r) / it.scale[:, None]
    parameters = inverse @ (it.q.T @ it.target)
    return Solution(
        model=model,
        parameters=parameters,
        covariance=inverse @ inverse.T,
        residual=(ladder.signal - it.light - it.design @ parameters) / it.light,
        leverage=np.clip((it.q[: len(it.light)] ** 2).sum(axis=1), 0, 0.999),
        variance=variance,
        spline=it.spline,
        expected=it.light + it.design[:, it.spline :] @ parameters[it.spline :],
        chi2=float(np.sum((it.target - it.whole @ parameters) ** 2)),
    )


def noise_model(ladder: Ladder, model: Model, prior: Nuisance, start: Floats) -> Floats:
    """Relative variance (n,) of each exposure, ``c**2 + v**2 / m + e**2 / m**2``, of greatest restricted likelihood.

    The likelihood, ``-2 ln L = sum ln variance + ln det(normal matrix) + chi2``, is greatest where for each of the
    three terms ``sum share pull**2 = sum share (1 - leverage)``, share its part of the variance of an exposure: each
    is multiplied by the ratio of these sums until they agree. The known error of the signal is a lower bound of e.

    Parameters
    ----------
    start : (n,) variances to begin with.
    """
    signal = np.maximum(ladder.signal, 1.0)
    known, columns = (ladder.floor / signal) ** 2, _columns(ladder, model, prior)
    middle = float(np.median(signal))
    parts = np.median(start) * np.array([0.4 + 0 * signal, 0.1 * middle / signal, 1e-3 * (middle / signal) ** 2])
    for _ in range(_TURNS):
        variance = parts.sum(axis=0) + known
        it, share = _factored(ladder, columns, variance), parts / variance
        left = it.target - it.q @ (it.q.T @ it.target)
        free = 1 - (it.q[: len(signal)] ** 2).sum(axis=1)
        ratio = (share @ left[: len(signal)] ** 2) / np.maximum(share @ free, 1e-9)
        parts = parts * np.clip(ratio, 0.1, 10)[:, None]
        if np.abs(np.log(np.maximum(ratio, 1e-9)) * share.max(axis=1)).max() < _AGREES:
            break
    return np.asarray(parts.sum(axis=0) + known)


def choose_model(ladder: Ladder, variance: Floats, prior: Nuisance) -> Solution:
    """Spline as supple as the ladder says, with a corner if cross-validation finds it worth it."""
    top = float(ladder.signal.max())
    smooth = _bent(ladder, spline_model(top), variance, prior)
    corner = _corner(ladder, smooth.model, variance, prior)
    if np.isnan(corner):
        return smooth
    kinked = _bent(ladder, replace(smooth.model, corner=corner), variance, prior)
    return kinked if kinked.score < smooth.score - _WORTH else smooth


def _bent(ladder: Ladder, model: Model, variance: Floats, prior: Nuisance) -> Solution:
    """Solution with bend and length of greatest restricted likelihood, times that of the expected bend.

    The top of the parabola through the best of `_BENDS` and its neighbours is taken.
    """
    trials = np.log(_BENDS)
    models = [[replace(model, bend=prior.bend * bend, length=length) for bend in _BENDS] for length in _LENGTHS]
    costs = np.array([[_likelihood(ladder, one, variance, prior) for one in row] for row in models]) + trials**2
    place = int(costs.min(axis=1).argmin())
    cost, length = costs[place], _LENGTHS[place]
    best = int(np.clip(cost.argmin(), 1, len(cost) - 2))
    (low, middle, high), step = cost[best - 1 : best + 2], trials[1] - trials[0]
    away = (low - high) / 2 / max(low - 2 * middle + high, 1e-9)
    bend = prior.bend * float(np.exp(trials[best] + step * np.clip(away, -1, 1)))
    return solve(ladder, replace(model, bend=bend, length=length), variance, prior)


def _likelihood(ladder: Ladder, model: Model, variance: Floats, prior: Nuisance) -> float:
    """Minus twice the logarithm of the restricted likelihood of a penalty, to a constant: a line has none."""
    it = _problem(ladder, model, variance, prior)
    chi2 = float(np.sum(it.target**2) - np.sum((it.q.T @ it.target) ** 2))
    determinant = 2 * float(np.log(np.abs(np.diag(it.r)) * it.scale).sum())
    return chi2 + determinant + log_width(model)


def _corner(ladder: Ladder, model: Model, variance: Floats, prior: Nuisance) -> float:
    """Level, adu, at which a corner helps that spline most; NaN if it does not help much."""
    places = np.linspace(0.15, _HIGHEST, _CORNERS) * model.top
    columns = -np.maximum(ladder.signal[:, None] - places, 0.0)
    gains, _ = _problem(ladder, model, variance, prior).gain(columns)
    # two levels on either side must be near, or a corner between them is invention
    number = clusters(ladder.signal)
    levels = np.bincount(number, ladder.signal) / np.bincount(number)
    away = (levels[:, None] - places) / model.top
    near = [((side > 0) & (side < _NEAR)).sum(axis=0) >= 2 for side in (away, -away)]
    gains = np.where(near[0] & near[1], gains, 0.0)
    return float(places[gains.argmax()]) if gains.max() > _WORTH else np.nan


def steps(
    ladder: Ladder, found: Solution, order: NDArray[np.int64], allowed: NDArray[np.bool_], prior: Nuisance
) -> tuple[int, float, float]:
    """Where in an order of the exposures the photodiode most likely changed its scale.

    Parameters
    ----------
    order : (n,) exposures; ``allowed`` (n,) says before which places of it that may have been.

    Returns
    -------
    Place in ``order`` of the first exposure after it, the fall of chi2, and the relative step.
    """
    it = _problem(ladder, found.model, found.variance, prior)
    after = np.zeros((len(order), len(order)))
    after[order] = np.tri(len(order)) * it.light[order, None]
    gains, step = it.gain(after)
    gains[~allowed] = gains[:3] = gains[-2:] = 0.0  # an end is no group of its own
    best = int(gains.argmax())
    return best, float(gains[best]), -float(step[best])  # the photodiode says so much more for as much signal
