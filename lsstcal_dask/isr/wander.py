"""What a coarse spline leaves of a level that wanders from row to row (Lupton 2016, Sec. 3.1).

The residuals of the row means are a transient at the first rows (`isr.transient`), a wander whose power falls with
frequency, jitter of each row by itself, and the noise of the pixels, whose variance ``v`` is known. In modes of the
cosine transform, k half waves over the n rows, the powers of all but the transient are

    v (a (30 k / n)**-b / (1 + (k / (c n))**6) + j + 1)

How likely each a, b, c and j of a grid is follows from the observed powers (Whittle). The best linear estimate of
wander and jitter keeps of each mode the share (a ... + j) / (a ... + j + 1), the Wiener filter; the shares of all
models are averaged, each with its probability. One of the models, as likely beforehand as all others together, is that
there is nothing but noise. About a constant, of rows fewer than the spacing of the knots of a spline, it is a twentieth
as likely: so few do not refute it, and of a wander nothing would be followed.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from scipy.fft import dct, idct

from lsstcal_dask.isr.transient import settle

__all__ = ["follow_wander"]

_SIZES: Final = np.geomspace(1e-3, 1e3, 15)  # a
_COLOURS: Final = (1.0, 1.5, 2.0, 3.0, 4.0)  # b: 1 is 1/f, 2 a random walk
_ENDS: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, np.inf)  # c: what is faster is not in the wander
_JITTERS: Final = (0.0, *np.geomspace(0.03, 1e3, 16))  # j
_GROWTH: Final = 1.2  # from one block of modes to the next
_UNLIKELY: Final = 1e-6  # models less likely than so many of the likeliest are left out
_FEW: Final = 20  # times as likely as noise alone are all other models, of few rows
_TURNS: Final = 3  # of transient and wander, of frames with rows so few that the slow ones of the two are alike
_FAR: Final = 100.0  # twice the logarithm of how much less likely a model is that is lost in the rounding of the sum
_ROUGH: Final = 1e-5  # more than the rounding of such a number in single precision, relative
_FILLS: Final = 10  # steps towards the values of rows that have no mean


@lru_cache(maxsize=8)
def _blocks(rows: int, first: int) -> np.ndarray:
    """Edges of blocks of modes, in each of which the power hardly changes; modes below ``first`` are in none."""
    edges = [first]
    while edges[-1] < rows:
        edges.append(min(rows, max(edges[-1] + 1, int(_GROWTH * edges[-1]))))
    return np.array(edges)


@lru_cache(maxsize=8)
def _block_of(rows: int, first: int) -> np.ndarray:
    """Block of each mode; what is slower than all of them is as the slowest."""
    many = np.diff(_blocks(rows, first))
    many[0] += first
    return np.repeat(np.arange(len(many)), many)


@dataclass(frozen=True)
class _Models:
    """Powers over that of the noise, of every model; the last is that of noise alone."""

    wander: np.ndarray  # (model, block)
    jitter: np.ndarray  # (model,)
    inverse: np.ndarray  # (model, block + 1) of all power, and twice the logarithm that goes with it
    rough: np.ndarray  # (block + 1, model) float32, the same: good to a thousandth where models are close


@lru_cache(maxsize=8)
def _models(rows: int, first: int) -> _Models:
    edges = _blocks(rows, first)
    middle = np.sqrt(edges[:-1] * (edges[1:] - 1.0))
    a, b, c, jitter = np.array([*product(_SIZES, _COLOURS, _ENDS, _JITTERS), (0.0, 1.0, 1.0, 0.0)]).T
    wander = a[:, None] * (30 * middle / rows) ** -b[:, None] / (1 + (middle / (c[:, None] * rows)) ** 6)
    power = 1 + wander + jitter[:, None]
    constant = np.log(power) @ np.diff(edges)  # of the last model, noise alone, this is zero
    # And with what is known beforehand.
    constant[:-1] += 2 * np.log((len(a) - 1) / (_FEW if first == 1 else 1))
    inverse = np.column_stack([1 / power, constant])
    return _Models(wander, jitter, inverse, np.ascontiguousarray(inverse.T, np.float32))


@dataclass(frozen=True)
class _Parts:
    """What a mode of each frame holds, by the models that its powers make likely."""

    smooth: np.ndarray  # (n, block) share that is wander
    jitter: np.ndarray  # (n, 1) variance of the jitter over that of the noise
    share: np.ndarray  # (n, 1) of what the wander leaves, that is jitter
    wander: np.ndarray  # (n, block) power over that of the noise
    block: np.ndarray  # (k,) block of each mode

    def along(self, values: np.ndarray) -> np.ndarray:
        """Value (n, k) at each mode, of values (n, block)."""
        return values.take(self.block, axis=1, mode="clip")  # without a check of each

    @property
    def inverse(self) -> np.ndarray:
        """Power (n, k) of all but the transient over that of the noise, inverted."""
        return self.along(1 / (1 + self.wander + self.jitter))


def _likely(power: np.ndarray, own: np.ndarray, first: int) -> _Parts:
    """From the squares of the modes (n, k) of each frame and the noise of a mean (n,), adu**2."""
    rows = power.shape[1]
    models, edges = _models(rows, first), _blocks(rows, first)
    power = np.add.reduceat(power, edges[:-1], axis=1) / own[:, None]
    power = np.column_stack([power, np.ones(len(power))])
    # Most models are so far off that only time is lost on them.
    cost = power.astype(np.float32) @ models.rough  # -2 log of how likely each model is
    limit = cost.min(axis=1, keepdims=True) * np.float32(1 + _ROUGH) + np.float32(_FAR)
    near = np.flatnonzero((cost < limit).any(axis=0))
    cost = power @ models.inverse[near].T
    weight = np.exp(-0.5 * (cost - cost.min(axis=1, keepdims=True)))
    likely = np.flatnonzero(weight.max(axis=0) > _UNLIKELY)
    weight = weight[:, likely] / weight.sum(axis=1, keepdims=True)
    likely = near[likely]
    wander, jitter = models.wander[likely], models.jitter[likely, None]
    return _Parts(
        smooth=weight @ (wander * models.inverse[likely, :-1]),
        jitter=weight @ jitter,
        share=weight @ (jitter / (1 + jitter)),
        wander=weight @ wander,
        block=_block_of(rows, first),
    )


def follow_wander(
    residual: np.ndarray, good: np.ndarray, own: np.ndarray, freedom: int, spacing: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best estimate of what the residuals of row means hold besides the noise of pixels, and its variance.

    Parameters
    ----------
    residual : (n, y) adu, of row means about a smooth spline.
    good : (n, y) bool, rows whose mean is to be used; the others are filled with what their neighbours tell.
    own : (n, y) adu**2, variance of each row mean by the noise of its pixels.
    freedom : of that spline: so many modes it has taken out.
    spacing : rows between its knots.

    Returns
    -------
    (n, y) adu, to be added to the spline, and (n, y) adu**2, without the variance of the spline.
    """
    noise = (own * good).sum(axis=1) / np.maximum(good.sum(axis=1), 1)
    some, clean = (noise > 0) & (good.sum(axis=1) > 2 * freedom), good.all(axis=1)
    first = min(freedom, residual.shape[1] // 2)
    if (some & clean).all():
        return _followed(residual, good[0], noise, first, spacing)
    value, variance = np.zeros(residual.shape), np.zeros(residual.shape)
    # Frames without a gap go together.
    for here in (np.flatnonzero(some & clean), *np.flatnonzero(some & ~clean)[:, None]):
        if len(here):
            use = good[here[0]]
            value[here], variance[here] = _followed(residual[here], use, noise[here], first, spacing)
    return value, variance


def _followed(
    residual: np.ndarray, use: np.ndarray, noise: np.ndarray, first: int, spacing: int
) -> tuple[np.ndarray, np.ndarray]:
    """Transient, wander and jitter (n, y), adu, and their variance, of frames with the same rows to be used."""
    seen = np.where(use, residual, 0.0)
    modes = dct(seen, norm="ortho", axis=1)
    # The powers of all else are not known before a transient, however rough, is taken out.
    start = settle(modes, noise, use, np.ones(modes.shape), spacing)
    parts = _likely((modes - start.modes) ** 2, noise, first)
    start = settle(modes, noise, use, parts.inverse, spacing)
    for _ in range(_TURNS if modes.shape[1] < spacing else 0):
        parts = _likely((modes - start.modes) ** 2 + start.power, noise, first)
        start = settle(modes, noise, use, parts.inverse, spacing)
    share, smooth = parts.share, parts.along(parts.smooth)
    if use.all():
        seen, modes, unknown = seen - start.level, modes - start.modes, np.zeros((len(seen), 1))
    else:
        seen, share = seen - start.level * use, share * use
        modes = dct(_filled(seen, use, smooth), norm="ortho", axis=1)
        unknown = parts.jitter * ~use + _unknown(parts.along(parts.wander), use)
    slow = idct(smooth * modes, norm="ortho", axis=1)
    spread = share + (1 - share) ** 2 * (1 + parts.jitter) * smooth.mean(axis=1, keepdims=True)
    left = parts.along((1 - parts.share) * (1 - parts.smooth))
    variance = start.variance(left) + noise[:, None] * (spread + unknown)
    return start.level + slow + share * (seen - slow), variance


def _filled(seen: np.ndarray, use: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Residuals (n, y) whose rows not in use (y,) hold what the smoother makes of them: they then change nothing.

    Conjugate gradients for ``x = S (seen + x)`` in these rows, which the smoother S, symmetric, leaves well posed.
    """

    def smoothed(values: np.ndarray) -> np.ndarray:
        return np.where(use, 0.0, idct(smooth * dct(values, norm="ortho", axis=1), norm="ortho", axis=1))

    x = np.zeros(seen.shape)
    left = smoothed(seen)
    way, square = left, (left**2).sum(axis=1, keepdims=True)
    for _ in range(_FILLS):
        ahead = way - smoothed(way)
        step = square / np.maximum((way * ahead).sum(axis=1, keepdims=True), 1e-300)
        x, left = x + step * way, left - step * ahead
        before, square = square, (left**2).sum(axis=1, keepdims=True)
        way = left + square / np.maximum(before, 1e-300) * way
    return seen + x


def _unknown(wander: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Variance (n, y) of the wander at rows not in use (y,), given the nearest that is, over that of the noise."""
    n, there, y = len(use), np.flatnonzero(use), np.flatnonzero(~use)
    out = np.zeros(wander.shape)
    after = np.minimum(np.searchsorted(there, y), len(there) - 1)
    apart = np.minimum(np.abs(there[after] - y), np.abs(y - there[np.maximum(after - 1, 0)]))
    lag = dct(np.pad(wander[:, 1:], ((0, 0), (1, 1))), type=1, axis=1) / (2 * n)
    out[:, y] = lag[:, :1] - lag[:, apart] ** 2 / np.maximum(lag[:, :1], 1e-300)
    return out
