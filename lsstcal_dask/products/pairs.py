"""Gain of one amplifier from pairs of flats at the same level (Lupton 2016, Sec. 2.2b, c).

The difference of two equal flats has no structure of the sensor, only noise: twice the
shot noise ``mu / g`` and twice the read noise. The brighter-fatter effect moves
part of that variance into covariances of neighbours; their sum keeps all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter
from scipy.optimize import least_squares
from scipy.special import chdtrc, ndtri

from lsstcal_dask.errors import (
    CalibrationError,
    DegenerateSolution,
    InconsistentGeometry,
    InsufficientInputs,
    UnitsError,
)
from lsstcal_dask.statistics import clip_variance_factor, covariances

__all__ = ["CombinedGain", "PairGain", "combine_pairs", "pair_gain", "shot_curve"]

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

UNEQUAL: Final = 0.01
"""Relative difference of the two means above which two flats are not a pair."""

MINIMUM_PIXELS: Final = 1000
"""Good pixels needed: the variance is then known to 4.5 %."""

PLAUSIBLE: Final = (0.3, 10.0)
"""Gains, electron/adu, outside which a result is flagged."""

_CLIP: Final = 4.0  # sigma
_SMOOTH: Final = 5  # px, box that gives the local level of the lamp
_TERMS: Final = 3  # mean ratio and its two gradients, taken from the difference


@dataclass(frozen=True)
class PairGain:
    """What one pair of flats says about an amplifier; means in adu, variances in adu**2.

    ``gain`` is mean over ``variance``: precise, but too high by about ``|a00| mu`` from the
    brighter-fatter effect. ``gain_summed`` takes the sum of the covariances over all lags
    up to ``max_lag``: free of that effect but for longer lags, with an error
    ``sqrt((2 + 4 n) / 2)`` times as large for n half-plane lags (7 times for ``max_lag=3``).

    ``variance`` is of one member, without read noise. ``covariances`` (lag y, lag x) are those of one
    member for lags 0..max_lag, the mean of both diagonals; [0, 0] is ``variance``; ``counts`` are the
    pairs of pixels behind each. ``ratio``
    is the mean of the first member over that of the second, ``gradient`` the relative
    change of the ratio across the image (y, x), both removed. ``plausible`` is false
    for a gain outside 0.3..10 electron/adu.
    """

    gain: float
    gain_error: float
    gain_summed: float
    gain_summed_error: float
    mean: float
    variance: float
    variance_error: float
    covariances: Floats
    covariance_errors: Floats
    counts: Floats
    ratio: float
    gradient: tuple[float, float]
    pixels: int
    clipped: int
    plausible: bool


@dataclass(frozen=True)
class CombinedGain:
    """Gain from several pairs, electron/adu.

    ``method`` is "extrapolated", "summed", "variance" or, of `photon_transfer`, "transfer"; ``slope``
    (1/adu) is the relative change of variance over mean with the mean at zero flux, nan where none was
    fitted. ``chi2`` tests
    whether the pairs agree, with probability ``probability``.
    """

    gain: float
    error: float
    method: str
    slope: float
    slope_error: float
    chi2: float
    dof: int
    probability: float
    pairs: int


def pair_gain(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    read_noise: float,
    *,
    read_noise_error: float = 0.0,
    mask: NDArray[np.generic] | None = None,
    saturation: float = np.inf,
    max_lag: int = 3,
    names: tuple[str, str] = ("first", "second"),
) -> PairGain:
    """Gain of an amplifier from two flats of the same level.

    1. The ratio of the members, a plane in (y, x), is fitted to their difference and divided
       out of both by halves, ``a (1 - c/2)`` and ``b (1 + c/2)``: mean and shot noise
       then change by the same ``1 - c**2/4``, and the read noise by ``1 + c**2/4``.
    2. The difference is divided by the noise expected from the local level of the lamp, so that
       a structured flat has one variance, that of its mean level.
    3. Pixels beyond 4 sigma (cosmic rays) and their neighbours are dropped; the variance
       is corrected by ``1 - 2k phi(k) / (2 Phi(k) - 1)`` and the covariances by its square.

    Errors: ``Var(C00) = 2 V**2 / N`` and ``Var(Cij) = V**2 / N``; in that of the sum the sum stands for V.

    Parameters
    ----------
    first, second : (y, x), adu, bias subtracted and linear.
    read_noise, read_noise_error : adu, of a single frame, white.
    mask : (y, x), bool or bit flags; pixels that are not zero are not used.
    saturation : adu; pixels at or above it in either member are not used.
    max_lag : largest lag of the covariances, pixel.
    names : of the two exposures, for messages.

    Raises
    ------
    InconsistentGeometry
        Members or mask differ in shape.
    UnitsError
        The read noise is not a number of adu.
    InsufficientInputs
        Fewer than 1000 good pixels.
    CalibrationError
        The members differ by more than 1 % in mean, or more than half the pixels are saturated.
    DegenerateSolution
        No light, or no more variance than the read noise.
    """
    who = f"pair {names[0]}, {names[1]}"
    if not (np.isfinite(read_noise) and read_noise >= 0):
        raise UnitsError(f"{who}: read noise {read_noise} adu is not a number: measure it from the overscan")
    good = _good_pixels(first, second, mask, saturation, who)
    first, second = (np.where(good, member, 0.0).astype(np.float64) for member in (first, second))
    level, difference = (first + second) / 2, first - second
    _check_light(first, second, read_noise, good, names)
    good, clipped = _reject(first, second, difference, read_noise, good)
    _check_count(good, who)
    _check_equal(first, second, good, names)

    weight = _weights(level, difference, read_noise, good)
    plane = _fit_plane(difference, level, weight, good)
    residual = difference - plane * level
    level = level - plane * difference / 4  # mean of the members once rescaled
    n = int(np.count_nonzero(good))
    mean = float(np.sum(weight * level) / n)
    noise = float(np.sum(weight * (1 + plane**2 / 4)) / n)  # read variances in the variance
    total, counts = _covariances(np.sqrt(weight / 2) * residual, good, max_lag)
    read = noise * read_noise**2
    if total[0, 0] <= read:
        raise DegenerateSolution(
            f"{who}: variance {total[0, 0]:.4g} adu**2 is not above that of the read noise"
            f" {read_noise:.4g} adu: check that the exposures are flats and the read noise is right"
        )
    summary = _summary(total, counts, (read, 2 * noise * read_noise * read_noise_error), mean)
    centre = float(np.mean(plane))
    return PairGain(
        **summary,
        mean=mean,
        ratio=(1 + centre / 2) / (1 - centre / 2),
        gradient=(float(plane[-1, 0] - plane[0, 0]), float(plane[0, -1] - plane[0, 0])),
        pixels=n,
        clipped=clipped,
        plausible=PLAUSIBLE[0] <= summary["gain"] <= PLAUSIBLE[1],
    )


def _good_pixels(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    mask: NDArray[np.generic] | None,
    saturation: float,
    who: str,
) -> Flags:
    """Pixels to use, after checking shapes and saturation."""
    if first.ndim != 2 or first.shape != second.shape:
        raise InconsistentGeometry(f"{who}: shapes {first.shape} and {second.shape}, expected two equal (y, x)")
    if mask is not None and mask.shape != first.shape:
        raise InconsistentGeometry(f"{who}: the mask {mask.shape} does not fit the images {first.shape}")
    good = np.isfinite(first) & np.isfinite(second)
    if mask is not None:
        good &= mask == 0
    dark = (first < saturation) & (second < saturation)
    if np.count_nonzero(good & ~dark) > np.count_nonzero(good) / 2:
        raise CalibrationError(
            f"{who}: most pixels are at or above saturation, {saturation:.0f} adu: give fainter flats"
        )
    good &= dark
    _check_count(good, who)
    return good


def _check_count(good: Flags, who: str) -> None:
    found = np.count_nonzero(good)
    if found < MINIMUM_PIXELS:
        raise InsufficientInputs(
            f"{who}: {found} good pixels, at least {MINIMUM_PIXELS} needed: check the mask and the frames"
        )


def _check_light(first: Floats, second: Floats, read_noise: float, good: Flags, names: tuple[str, str]) -> None:
    """Refuse members that are not brighter than a bias."""
    faintest = 5 * read_noise / np.sqrt(np.count_nonzero(good))
    for name, member in zip(names, (first, second), strict=True):
        mean = float(np.mean(member[good]))
        if mean <= faintest:
            raise DegenerateSolution(f"{name}: mean {mean:.3g} adu, no light: give flats, bias subtracted")


def _check_equal(first: Floats, second: Floats, good: Flags, names: tuple[str, str]) -> None:
    """Refuse members of unequal level, once cosmic rays are gone (a median would have steps of 1 adu)."""
    a, b = float(np.mean(first[good])), float(np.mean(second[good]))
    if abs(a - b) > UNEQUAL * (a + b) / 2:
        raise CalibrationError(
            f"{names[0]} (mean {a:.1f} adu) and {names[1]} (mean {b:.1f} adu) differ by"
            f" {200 * abs(a - b) / (a + b):.1f} %, more than 1 %: not a pair of equal flats"
        )


def _smooth(image: Floats, good: Flags) -> Floats:
    """Mean of the good pixels in a box around each pixel, not below zero."""
    share = uniform_filter(good.astype(np.float64), _SMOOTH, mode="nearest")
    return np.maximum(uniform_filter(np.where(good, image, 0.0), _SMOOTH, mode="nearest"), 0) / np.maximum(share, 1e-3)


def _inverse_gain(scatter: float, level: float, read_noise: float) -> float:
    """First guess of the variance per adu, kept positive."""
    return max(scatter - read_noise**2, 1e-3 * scatter, 1e-12) / level


def _reject(first: Floats, second: Floats, difference: Floats, read_noise: float, good: Flags) -> tuple[Flags, int]:
    """Good pixels without cosmic rays and their neighbours; how many pixels were over the limit.

    The local level is that of the lower member, which a cosmic ray does not raise.
    """
    level = _smooth(np.minimum(first, second), good)
    centre = np.median(level[good])
    residual = difference - level * float(np.median(difference[good]) / centre)
    slope = _inverse_gain(float(np.median(residual[good] ** 2)) / (2 * 0.4549), centre, read_noise)
    spread = np.sqrt(2 * (read_noise**2 + slope * np.maximum(level, 1e-3 * centre)))
    scaled = residual / spread
    width = np.median(np.abs(scaled[good])) / ndtri(0.75)
    for _ in range(2):  # the second width is not that of a median, noisier by 1.6
        kept = good & (np.abs(scaled) < _CLIP * width)
        width = np.sqrt(np.mean(scaled[kept] ** 2) / clip_variance_factor(_CLIP))
    over = good & (np.abs(scaled) >= _CLIP * width)
    return good & ~binary_dilation(over, np.ones((3, 3), dtype=bool)), int(np.count_nonzero(over))


def _weights(level: Floats, difference: Floats, read_noise: float, good: Flags) -> Floats:
    """Variance at the mean level over the variance at each pixel; zero where not good, mean of order 1."""
    smooth = _smooth(level, good)
    centre = float(np.mean(level[good]))
    ratio = float(np.sum(difference[good]) / np.sum(level[good]))
    scatter = float(np.mean((difference - ratio * level)[good] ** 2)) / 2
    slope = _inverse_gain(scatter, centre, read_noise)
    variance = read_noise**2 + slope * np.maximum(smooth, 1e-3 * centre)
    return np.where(good, (read_noise**2 + slope * centre) / variance, 0.0)


def _fit_plane(difference: Floats, level: Floats, weight: Floats, good: Flags) -> Floats:
    """Relative difference ``c`` (y, x) of the members: a plane, by weighted least squares of ``c * level``.

    The mean of the members is the regressor: its noise is not that of their
    difference, so nothing is attenuated as it would be with either member.
    """
    ny, nx = level.shape
    y = np.linspace(-0.5, 0.5, ny)[:, None]
    x = np.linspace(-0.5, 0.5, nx)[None, :]
    lamp = _smooth(level, good)
    terms = [lamp, lamp * y, lamp * x]
    weighted = [weight * term for term in terms]
    normal = np.array([[np.vdot(w, t) for t in terms] for w in weighted])
    c = np.linalg.solve(normal, [np.vdot(w, difference) for w in weighted])
    plane: Floats = c[0] + c[1] * y + c[2] * x
    return plane


def _covariances(scaled: Floats, good: Flags, max_lag: int) -> tuple[Floats, Floats]:
    """Covariances (lag y, lag x) of the pixels, both diagonals averaged, and the pairs behind each.

    Corrected for the clip and for the terms of the plane, which take ``V / N`` each from every lag.
    """
    found, counts = covariances(scaled, good, max_lag)
    factor = clip_variance_factor(_CLIP)
    n = np.count_nonzero(good)
    variance = found[0, 0] / factor / (1 - _TERMS / n)
    found = np.nan_to_num(found) / factor**2 + _TERMS * variance / n
    found[0, 0] = variance
    return found, np.maximum(counts, 1.0)


def _summary(total: Floats, counts: Floats, read: tuple[float, float], mean: float) -> dict[str, Any]:
    """Gains, variance and covariances with errors; ``read`` is the read variance and its error."""
    covariances = total.copy()
    covariances[0, 0] -= read[0]
    multiplicity = np.full(total.shape, 4.0)  # of a lag in the full plane
    multiplicity[0, :] = multiplicity[:, 0] = 2.0
    multiplicity[0, 0] = 1.0
    n = counts[0, 0]
    errors = total[0, 0] / np.sqrt(counts)
    errors[0, 0] = np.hypot(total[0, 0] * np.sqrt(2 / n), read[1])
    summed = float(np.sum(multiplicity * covariances))
    # The sum is the power at low frequency, which brighter-fatter leaves whole: its error goes with
    # itself, not with the smaller variance of a pixel.
    power = max(summed + read[0], 0.1 * total[0, 0])
    spread = np.sqrt(np.sum((multiplicity / np.sqrt(counts)) ** 2) + 1 / n)  # + 1 / n: C00 has 2 / n
    summed_error = float(np.hypot(power * spread, read[1]))
    gain = mean / float(covariances[0, 0])
    gain_summed = mean / summed if summed > 0 else np.nan
    return {
        "gain": gain,
        "gain_error": gain * float(errors[0, 0] / covariances[0, 0]),
        "gain_summed": gain_summed,
        "gain_summed_error": gain_summed * summed_error / summed,
        "variance": float(covariances[0, 0]),
        "variance_error": float(errors[0, 0]),
        "covariances": covariances,
        "covariance_errors": errors,
        "counts": counts,
    }


def shot_curve(strength: NDArray[np.floating]) -> Floats:
    """Variance over shot noise, ``(exp(2 s) - 1) / (2 s)`` with ``s = a00 mu`` (b = 0, nearest lag alone).

    To first order ``1 + s``; the whole of it keeps the extrapolation to zero flux straight at high flux.

    Examples
    --------
    >>> shot_curve(np.array([0.0, -0.1])).round(4)
    array([1.    , 0.9063])
    """
    strength = np.asarray(strength, dtype=np.float64)
    small = np.abs(strength) < 1e-6
    safe = np.where(small, 1.0, strength)
    return np.where(small, 1 + strength, np.expm1(2 * safe) / (2 * safe))


def combine_pairs(pairs: Sequence[PairGain], *, method: str = "auto") -> CombinedGain:
    """Combine pairs of one amplifier, inverse-variance weighted in variance over mean.

    "extrapolated" fits ``variance / mean = shot_curve(slope mean) / gain``: free of the brighter-fatter
    effect to first order, and the estimate to use. It needs three levels that span a factor
    of two; "auto" takes it where it can and else "summed", of the same merit but noisier.
    "variance" ignores the effect: right only at low flux.

    Errors of the pairs enter as relative errors, which do not depend on the noise they
    describe: weights that did would favour low gains.

    Raises
    ------
    InsufficientInputs
        No pairs, or "extrapolated" with fewer than three levels.
    DegenerateSolution
        A pair has no positive sum of covariances, for "summed".
    CalibrationError
        ``method`` is not one of those above.
    """
    if method not in ("auto", "extrapolated", "summed", "variance"):
        raise CalibrationError(f"method {method!r} is not auto, extrapolated, summed or variance")
    if not pairs:
        raise InsufficientInputs("no pairs of flats: give at least one")
    mean = np.array([p.mean for p in pairs])
    levels = 1 + np.count_nonzero(np.diff(np.sort(mean)) > 0.05 * np.sort(mean)[:-1])
    enough = levels >= 3 and mean.max() >= 2 * mean.min()
    if method == "extrapolated" and not enough:
        raise InsufficientInputs(
            f"{levels} flux levels between {mean.min():.0f} and {mean.max():.0f} adu: extrapolation needs"
            " three that span a factor of two"
        )
    if method == "auto":
        method = "extrapolated" if enough else "summed"
    summed = method == "summed"
    gain = np.array([p.gain_summed if summed else p.gain for p in pairs])
    error = np.array([p.gain_summed_error if summed else p.gain_error for p in pairs])
    if not np.all(np.isfinite(gain)):
        bad = ", ".join(f"{m:.0f}" for m in mean[~np.isfinite(gain)])
        raise DegenerateSolution(f"pairs at {bad} adu: the sum of covariances is not positive: use more pairs")
    return _fit(1 / gain, error / gain, mean, method)


def _fit(inverse: Floats, relative: Floats, mean: Floats, method: str) -> CombinedGain:
    """Weighted mean, or fit of the curve, of the inverse gains."""
    start = np.sum(inverse / relative**2) / np.sum(1 / relative**2)
    scale = float(mean.max())
    free = 2 if method == "extrapolated" else 1

    def curve(p: Floats) -> Floats:
        return p[0] * (shot_curve(p[1] * mean / scale) if free == 2 else np.ones_like(mean))

    guess = np.array([1.0, 0.0])[:free]
    found = least_squares(lambda p: (inverse / start - curve(p)) / relative, guess, method="lm", x_scale=0.1)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    gain = 1 / (start * found.x[0])
    chi2, dof = float(np.sum(found.fun**2)), len(mean) - free
    return CombinedGain(
        gain=float(gain),
        error=float(gain * np.sqrt(covariance[0, 0]) / found.x[0]),
        method=method,
        slope=float(found.x[1] / scale) if free == 2 else np.nan,
        slope_error=float(np.sqrt(covariance[1, 1]) / scale) if free == 2 else np.nan,
        chi2=chi2,
        dof=dof,
        probability=float(chdtrc(dof, chi2)) if dof > 0 else np.nan,
        pairs=len(mean),
    )
