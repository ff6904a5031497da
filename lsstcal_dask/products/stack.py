"""One amplifier's stack of exposures, combined robustly: what biases and darks share (Lupton 2016, Secs. 2.1, 2.7).

The frames come as raw counts; overscan, bias plane and scale are applied while
the stack is combined, so it is held once, at the width of the raw integers.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.products.cosmics import combine_again, find_hits, frames_needed, hits_in_each
from lsstcal_dask.products.exposures import Exposures, Transform, read_exposures
from lsstcal_dask.products.residuals import frame_levels, misfits, residual_blocks
from lsstcal_dask.statistics import Calibration, Noise, clipped_mean, median, median_of_sums

__all__ = ["CosmicMethod", "Stack", "StackConfig", "combine_amplifier"]


CosmicMethod = Literal["clip", "temporal", "single", "none"]


class StackConfig(BaseModel):
    """How the exposures of a stack are combined (Sec. 2.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["auto", "clipmean", "median", "sums"] = Field(
        "auto", description="auto: clipmean; median turns into sums where the noise is too low to sample"
    )
    k: float = Field(4.0, gt=1, description="clip at this many sigma of the noise model about the median")
    group: int = Field(3, ge=2, description="exposures summed before the median, in method sums")
    minimum: int = Field(3, ge=2, description="fewest exposures that make a product")
    reject: float = Field(6.0, gt=3, description="a frame whose structure is this many sigma off is left out")
    overscan: OverscanConfig = OverscanConfig()
    cosmic_rays: CosmicMethod = Field(
        "clip",
        description="clip: pixel by pixel; temporal: tracks with their rims, by comparing exposures; single: in every "
        "exposure by itself; none: a plain mean, which needs many more exposures",
    )


@dataclass(frozen=True)
class Stack:
    """A combined stack of one amplifier, in units of the product."""

    value: np.ndarray  # (y, x) float32
    variance: np.ndarray  # (y, x) float32, without the part common to a row
    row_variance: np.ndarray  # (y,) float32
    frames: np.ndarray  # (y, x) uint16
    level: np.ndarray  # (n,) mean of each frame less the combination
    level_error: np.ndarray  # (n,)
    accepted: np.ndarray  # (n,) bool
    weight: np.ndarray  # (n,) share of each frame in the combination, 1 in all
    read_noise: float  # adu
    read_noise_error: float
    method: str
    reasons: dict[int, str]  # why frames were left out
    hits: np.ndarray  # (n,) pixels of each frame left out for a cosmic ray
    inflation: float  # times as many exposures as without cosmic rays that a plain mean needs; NaN if it was not made


def combine_amplifier(counts: np.ndarray, amplifier: Amplifier, transform: Transform, config: StackConfig) -> Stack:
    """Combine the raw frames of one amplifier.

    Parameters
    ----------
    counts : (n, y, x) raw integers, adu, readout orientation.
    transform : bias plane, scale and gain.
    config : method, clip, overscan.

    Returns
    -------
    Stack, trimmed to the amplifier's data box.

    Raises
    ------
    InsufficientInputs
        Fewer usable frames than ``config.minimum``, or the amplifier is dead (no noise at all).
    """
    exposures = read_exposures(counts, amplifier, transform, config.overscan)
    levels, noise = exposures.levels, exposures.noise
    if not np.nanmax(noise) > 0:
        raise InsufficientInputs(f"amplifier {amplifier.name} is dead (every pixel reads {exposures.data.flat[0]})")
    bad = ~np.isfinite(levels.level).all(axis=1)
    reasons = {int(i): "its overscan has no usable row" for i in np.flatnonzero(bad)}
    reasons |= {int(i): "its pixels are all alike: no data" for i in np.flatnonzero(~(noise > 0))}
    found = _combine(exposures, ~bad & (noise > 0), config)
    residuals = residual_blocks(exposures, found.value)
    odd = {i: why for i, why in misfits(exposures, residuals, config.reject).items() if found.use[i]}
    if odd and found.use.sum() - len(odd) >= config.minimum:
        reasons |= odd
        found = _combine(exposures, found.use & ~np.isin(np.arange(len(noise)), list(odd)), config)
        residuals = residual_blocks(exposures, found.value)
    reasons |= {int(i): "too noisy to be of use to a median" for i in np.flatnonzero(found.idle)}
    found, hits = _without_cosmics(exposures, found, config)
    inflation = frames_needed(exposures, found.use, found.value) if config.cosmic_rays == "none" else float("nan")
    level, error = frame_levels(exposures, residuals)
    shift = 0.0
    if not exposures.rows_known and levels.level.any():  # the levels that were taken out
        shift = float(np.median(level[found.use]))
    level = level - shift
    return Stack(
        value=found.value + np.float32(shift * transform.scale[0]) if shift else found.value,
        variance=found.variance,
        row_variance=_row_variance(exposures, found, level).astype(np.float32),
        frames=found.frames,
        level=level * transform.scale,
        level_error=error * transform.scale,
        accepted=found.use,
        weight=found.weight,
        method=found.method,
        reasons=reasons,
        hits=hits,
        inflation=inflation,
        **_read_noise(exposures, found.use, config),
    )


def _without_cosmics(exposures: Exposures, found: "_Combined", config: StackConfig) -> tuple["_Combined", np.ndarray]:
    """Leave out what cosmic rays hit; how many pixels of each exposure that was.

    Two exposures do not tell which of them was hit: tracks are then found in each by itself.
    """
    if config.cosmic_rays in ("clip", "none") or found.method != "clipmean":
        return found, np.zeros(len(found.use), int)
    if config.cosmic_rays == "single" or found.use.sum() < 3:
        hits = hits_in_each(exposures, found.use)
    else:
        hits = find_hits(exposures, found.value)
    again = combine_again(exposures, found.use, hits, (found.value, found.variance, found.frames), config.k)
    return replace(found, value=again.value, variance=again.variance, frames=again.frames), again.hits


def _row_variance(exposures: Exposures, found: "_Combined", level: np.ndarray) -> np.ndarray:
    """Variance (y,) of the combination that the pixels of a row share."""
    share = found.weight * exposures.transform.scale
    rows = (share[found.use, None] ** 2 * exposures.levels.variance[found.use]).sum(axis=0)
    if not exposures.rows_known and found.use.sum() > 1:  # nothing removes the jitter of whole frames
        # Their middle level, not their mean, for a frame that is far off must not move it.
        rows = rows + np.var(level[found.use], ddof=1) * (share**2).sum() * np.pi / 2
    return rows


def _read_noise(exposures: Exposures, use: np.ndarray, config: StackConfig) -> dict[str, float]:
    """Read noise of the frames in use and its error, adu."""
    amplifier = exposures.amplifier
    reference = amplifier.data.shape[0] * max(amplifier.overscan.shape[1] - 1 - config.overscan.skip, 0)
    pixels = reference or exposures.data[0].size / 2
    noise = float(np.sqrt(np.mean(exposures.noise[use] ** 2)))
    return {"read_noise": noise, "read_noise_error": noise / np.sqrt(2 * pixels * use.sum())}


@dataclass(frozen=True)
class _Combined:
    """What combining gave."""

    value: np.ndarray  # (y, x) float32
    variance: np.ndarray  # (y, x) float32
    frames: np.ndarray  # (y, x) uint16
    use: np.ndarray  # (n,) bool, exposures that entered
    idle: np.ndarray  # (n,) bool, exposures left out for their noise
    weight: np.ndarray  # (n,) share of each exposure, 1 in all
    method: str


def _combine(exposures: Exposures, use: np.ndarray, config: StackConfig) -> _Combined:
    """Combine the exposures in ``use`` (n,) by the configured method."""
    if use.sum() < config.minimum:
        raise InsufficientInputs(f"{use.sum()} usable exposures, at least {config.minimum} are needed: take more")
    transform = exposures.transform
    best, slack = use & _best(np.where(use, exposures.sigma, np.inf)), 0.0
    method = _method(config, exposures, use)
    if best.sum() < config.minimum and not best[use].all():
        if method == "median":
            raise InsufficientInputs(
                f"method median needs {config.minimum} exposures of like noise, and {best.sum()} are much better than "
                f"the others: use method clipmean"
            )
        best = use  # too few for a robust centre: the median of all, with what the noisy ones do to it
        slack = np.pi / 2 * np.mean(exposures.sigma[use] ** 2) / use.sum()
    calibration = Calibration(exposures.levels.level, transform.plane, transform.scale.astype(np.float32))
    data, idle = exposures.data, np.zeros(len(use), bool)
    if method == "clipmean":
        model = Noise((exposures.noise**2).astype(np.float32), 1 / transform.gain)
        rounds, k = 2 if slack else 1, np.inf if config.cosmic_rays == "none" else config.k
        value, variance, frames = clipped_mean(
            data, calibration, model, k=k, iterations=rounds, use=use, start=best, slack=slack
        )
    else:
        if method == "sums":
            value, frames = median_of_sums(data, config.group, calibration, use=use)
        else:
            idle, use = use & ~best, best
            value, frames = median(data, calibration, use=use)
        variance = _median_variance(exposures, use, value, frames, config.group if method == "sums" else 1)
    weight = np.zeros(len(use))
    power = {"clipmean": 2, "median": 1, "sums": 0}[method]  # the median's are the densities at its centre
    weight[use] = 1 / exposures.sigma[use] ** power
    return _Combined(value, variance, frames, use, idle, weight / weight.sum(), method)


def _best(sigma: np.ndarray) -> np.ndarray:
    """The exposures (n,) whose median is least noisy: one among much better ones makes it worse.

    A median of m values of densities ``f_i`` at their common centre has the variance ``m / (2 sum f_i)**2``,
    which is least for the m least noisy of them.
    """
    order = np.argsort(sigma, kind="stable")
    with np.errstate(divide="ignore"):
        gained = np.cumsum(1 / sigma[order])
    best = int(np.argmin(np.arange(1, len(sigma) + 1) / gained**2))
    return sigma <= sigma[order[best]]


def _median_variance(
    exposures: Exposures, use: np.ndarray, value: np.ndarray, frames: np.ndarray, group: int
) -> np.ndarray:
    """Variance (y, x) of a median of means of ``group`` exposures.

    It has pi/2 of the variance of the mean, of few values less, for their median is nearly the mean; the
    lattice of the integers adds 1/12 of its step squared.
    """
    transform = exposures.transform
    scale, read_variance = transform.scale[use], exposures.noise[use] ** 2
    signal = np.maximum(value, np.float32(0)) if np.isfinite(transform.gain) else np.float32(0)
    inverse = np.float32(0) * signal  # mean of 1/sigma: densities add up
    for kind in np.unique(scale):
        same = scale == kind
        part = np.float32(read_variance[same].mean() * kind**2) + signal * np.float32(kind / transform.gain)
        inverse = inverse + np.float32(same.mean()) / np.sqrt(part)
    runs = np.maximum(np.arange(len(scale) + 1) / group, 1)
    share = (np.pi / 2 / (runs + np.pi / 2 - 1) / group).astype(np.float32)
    return share[frames] / np.square(inverse) + np.float32(np.mean(scale) ** 2 / 12 / group**2)


_RUNS = 5
"""Fewest sums whose median is robust: of fewer, two bad frames can spoil the majority."""


def _method(config: StackConfig, exposures: Exposures, use: np.ndarray) -> str:
    """The method to use: a median of integers is a staircase where their noise is not well above one."""
    if config.method == "auto":
        return "clipmean"
    n, scale = int(use.sum()), exposures.transform.scale[use]
    enough, equal = n // config.group >= _RUNS, bool(scale.max() < 1.1 * scale.min())
    if config.method == "sums" and not enough:
        raise InsufficientInputs(
            f"method sums needs {_RUNS} sums of {config.group}, {_RUNS * config.group} exposures, and there are {n}: "
            f"take more, or use method clipmean"
        )
    if config.method == "sums" and not equal:
        raise InsufficientInputs("method sums needs exposures of equal times: use method clipmean")
    coarse = np.sqrt(np.mean(exposures.noise[use] ** 2)) < 2
    return "sums" if config.method == "median" and coarse and enough and equal else config.method
