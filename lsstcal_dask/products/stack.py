"""One amplifier's stack of exposures, combined robustly: what biases and darks share (Lupton 2016, Secs. 2.1, 2.7).

The frames come as raw counts; overscan, bias plane and scale are applied while
the stack is combined, so it is held once, at the width of the raw integers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.overscan import OverscanConfig, RowLevels, reference_pixels, row_levels
from lsstcal_dask.mapping import Output, empty_values, output_dims
from lsstcal_dask.statistics import Calibration, Noise, clipped_mean, median, median_of_sums
from lsstcal_dask.variables import MASK_BITS

__all__ = [
    "Stack",
    "StackConfig",
    "Transform",
    "combine_amplifier",
    "dead_amplifier",
    "stack_dataset",
    "stack_outputs",
    "stack_sizes",
]

_BLOCK = 32  # pixels on a side of the blocks in which a frame's structure is compared


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


@dataclass(frozen=True)
class Transform:
    """How counts become the quantity that is combined: (counts - level - plane) * scale."""

    scale: np.ndarray  # (n,) units of the product per adu
    plane: np.ndarray | None = None  # (y, x) bias, adu, trimmed to the data box
    gain: float = float("inf")  # electron/adu for the photon noise of the signal; inf: none
    group: np.ndarray | None = None  # (n,) night or the like: levels are compared within one


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
    read_noise: float  # adu
    read_noise_error: float
    method: str
    reasons: dict[int, str]  # why frames were left out


@njit(nogil=True, cache=True)
def _block_means(stack, offset, plane, value, inverse, limits):  # type: ignore[no-untyped-def]
    """Mean residual (n, by, bx) in adu of each frame against ``value * inverse``, and pixels per block (by, bx).

    Residuals are cut to ``limits``: one cosmic ray moves a block by next to nothing, a
    change of the whole block still shows.
    """
    n, ny, nx = stack.shape
    by, bx = (ny + _BLOCK - 1) // _BLOCK, (nx + _BLOCK - 1) // _BLOCK
    total = np.zeros((n, by, bx), np.float32)
    count = np.zeros((by, bx), np.float32)
    for i in range(n):
        limit, factor = limits[i], inverse[i]
        for y in range(ny):
            row, base, signal, level = stack[i, y], plane[y], value[y], offset[i, y]
            for b in range(bx):
                part = np.float32(0)
                for x in range(b * _BLOCK, min((b + 1) * _BLOCK, nx)):
                    residual = np.float32(row[x]) - level - base[x] - signal[x] * factor
                    part += min(max(residual, -limit), limit)
                total[i, y // _BLOCK, b] += part
    for y in range(ny):
        for b in range(bx):
            count[y // _BLOCK, b] += min((b + 1) * _BLOCK, nx) - b * _BLOCK
    return total / count, count


def _noise_without_overscan(stack: np.ndarray) -> float:
    """Read noise (adu) from differences of successive frames, for sensors without reference pixels."""
    difference = stack[1:, ::2].astype(np.float32) - stack[:-1, ::2]
    difference -= np.median(difference, axis=(1, 2), keepdims=True)
    limit = 5 * 1.4826 * np.median(np.abs(difference)) + 1
    return float(np.sqrt(np.mean(difference[np.abs(difference) < limit] ** 2) / 2))


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
    data = np.ascontiguousarray(counts[(slice(None), *amplifier.data.slices)])
    levels = row_levels(reference_pixels(counts, amplifier), config.overscan)
    n = len(counts)
    del counts  # the caller keeps no raw stack either, so its memory is free for what follows
    noise = levels.read_noise
    if np.isnan(noise).all():
        noise = np.full(n, _noise_without_overscan(data))
    if not np.nanmax(noise) > 0:
        raise InsufficientInputs(f"amplifier {amplifier.name} is dead (every pixel reads {data.flat[0]})")
    bad = ~np.isfinite(levels.level).all(axis=1)
    reasons = {int(i): "its overscan has no usable row" for i in np.flatnonzero(bad)}
    reasons |= {int(i): "its reference pixels are all alike: no data" for i in np.flatnonzero(~(noise > 0))}
    accepted = ~bad & (noise > 0)
    model = (levels, noise, transform)
    value, variance, frames, method = _combine(data, accepted, model, config)
    blocks, counted, limits = _residual_blocks(data, value, model)
    found = {i: why for i, why in _misfits(blocks, counted, limits, levels, config.reject).items() if accepted[i]}
    found |= {i: why for i, why in _outlying_levels(blocks, limits, model, config.reject).items() if accepted[i]}
    if len(found) and (accepted.sum() - len(found)) >= config.minimum:
        reasons |= found
        accepted[list(found)] = False
        value, variance, frames, method = _combine(data, accepted, model, config)
        blocks, counted, limits = _residual_blocks(data, value, model)
    level, error = _levels(blocks, counted, noise, levels)
    row = (levels.variance[accepted] * transform.scale[accepted, None] ** 2).mean(axis=0) / accepted.sum()
    if np.isnan(levels.read_noise).all() and accepted.sum() > 1:  # nothing removes the jitter of whole frames
        row = row + np.var(level[accepted] * transform.scale[accepted], ddof=1) / accepted.sum()
    reference = amplifier.data.shape[0] * max(amplifier.overscan.shape[1] - 1 - config.overscan.skip, 0)
    pixels = reference or data[0].size / 2
    read_noise = float(np.sqrt(np.mean(noise[accepted] ** 2)))
    return Stack(
        value,
        variance,
        row.astype(np.float32),
        frames,
        level * transform.scale,
        error * transform.scale,
        accepted,
        read_noise,
        read_noise / np.sqrt(2 * pixels * accepted.sum()),
        method,
        reasons,
    )


def _combine(
    data: np.ndarray, use: np.ndarray, model: tuple[RowLevels, np.ndarray, Transform], config: StackConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    levels, noise, transform = model
    n = int(use.sum())
    if n < config.minimum:
        raise InsufficientInputs(f"{n} usable exposures, at least {config.minimum} are needed: take more")
    if not use.all():
        data = data[use]
    scale = transform.scale[use].astype(np.float32)
    calibration = Calibration(levels.level[use], transform.plane, scale)
    read_variance = noise[use] ** 2
    method = _method(config, float(np.sqrt(read_variance.mean())), n)
    if method == "clipmean":
        model_noise = Noise(read_variance.astype(np.float32), 1 / transform.gain)
        value, variance, frames = clipped_mean(data, calibration, model_noise, k=config.k)
        return value, variance, frames, method
    if method == "median":
        value, frames = median(data, calibration)
    else:
        value, frames = median_of_sums(data, config.group, calibration)
    # The median has pi/2 of the variance of the mean; the lattice of the sums adds 1/12 of its step squared.
    step = config.group if method == "sums" else 1
    per_frame = (read_variance * scale**2).mean() + np.maximum(value, 0) * float(scale.mean()) / transform.gain
    lattice = float(np.mean(scale) ** 2) / 12 / step**2
    # Of few values the median is nearly the mean, so its variance is not yet pi/2 times larger.
    runs = np.maximum(frames / step, 1)
    variance = (np.pi / 2 * per_frame / (runs + np.pi / 2 - 1) / step + lattice).astype(np.float32)
    return value, variance, frames, method


_RUNS = 5
"""Fewest sums whose median is robust: of fewer, two bad frames can spoil the majority."""


def _method(config: StackConfig, sigma: float, n: int) -> str:
    """The method to use: a median of integers is a staircase where their noise is not well above one."""
    if config.method == "auto":
        return "clipmean"
    enough = n // config.group >= _RUNS
    if config.method == "sums" and not enough:
        raise InsufficientInputs(
            f"method sums needs {_RUNS} sums of {config.group}, {_RUNS * config.group} exposures, and there are {n}: "
            f"take more, or use method clipmean"
        )
    return "sums" if config.method == "median" and sigma < 2 and enough else config.method


def _residual_blocks(
    data: np.ndarray, value: np.ndarray, model: tuple[RowLevels, np.ndarray, Transform]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean residual of each frame in blocks (n, by, bx), pixels in a block (by, bx), limit of a pixel (n,); adu."""
    levels, noise, transform = model
    value = np.nan_to_num(value)
    plane = np.zeros_like(value) if transform.plane is None else transform.plane.astype(np.float32)
    inverse = (1 / transform.scale).astype(np.float32)
    offset = np.nan_to_num(levels.level)
    some = (slice(None, None, 5), slice(None, None, 3))
    centre = np.zeros(len(data), np.float32)
    for i in range(len(data)):  # a frame off as a whole must not lose its pixels to the limits
        residual = data[i][some].astype(np.float32) - offset[i][some[0], None] - (plane + value * inverse[i])[some]
        centre[i] = np.median(residual)
    typical = max(float(np.median(value)), 0.0) * inverse / np.float32(transform.gain)
    limits = (6 * np.sqrt(np.nan_to_num(noise) ** 2 + typical)).astype(np.float32)
    blocks, counted = _block_means(data, offset + centre[:, None], plane, value, inverse, limits)
    return blocks + centre[:, None, None], counted, limits


def _misfits(
    blocks: np.ndarray, counted: np.ndarray, limits: np.ndarray, levels: RowLevels, reject: float
) -> dict[int, str]:
    """Frames whose two-dimensional structure is unlike the others', with the reason."""
    if len(blocks) < 3:
        return {}
    level = blocks.mean(axis=(1, 2))
    sigma2 = np.maximum(limits[:, None, None] / 6, 1e-3) ** 2 / counted
    sigma2 = sigma2 + np.nan_to_num(levels.variance.mean(axis=1))[:, None, None]
    chi2 = ((blocks - level[:, None, None]) ** 2 / sigma2).mean(axis=(1, 2))
    freedom = max(blocks[0].size - 1, 1)
    # Pattern noise common to all frames raises their chi2 and its scatter: judge each against the others.
    typical = max(1.0, float(np.median(chi2)))
    scatter = 1.4826 * float(np.median(np.abs(chi2 - np.median(chi2))))
    limit = typical + reject * max(typical * float(np.sqrt(2 / freedom)), scatter)
    return {
        int(i): f"its structure differs from the others' (chi2 {chi2[i]:.1f}, limit {limit:.1f})"
        for i in np.flatnonzero(chi2 > limit)
    }


def _outlying_levels(
    blocks: np.ndarray, limits: np.ndarray, model: tuple[RowLevels, np.ndarray, Transform], reject: float
) -> dict[int, str]:
    """Frames whose level above the overscan is unlike that of the others of their group, with the reason."""
    levels, _, transform = model
    if not (levels.read_noise > 0).any():
        return {}
    level = blocks.mean(axis=(1, 2))
    group = np.zeros(len(level)) if transform.group is None else transform.group
    found = {}
    for one in np.unique(group):
        where = np.flatnonzero(group == one)
        off = level[where] - np.median(level[where])
        spread = max(1.4826 * float(np.median(np.abs(off))), float(np.median(limits)) / 6 * 0.1)
        for i in np.flatnonzero(np.abs(off) > reject * spread) if len(where) > 2 else ():
            found[int(where[i])] = f"its level above the overscan is {off[i]:+.2f} adu off: light leak or idle camera"
    return found


def _levels(
    blocks: np.ndarray, counted: np.ndarray, noise: np.ndarray, levels: RowLevels
) -> tuple[np.ndarray, np.ndarray]:
    level = (blocks * (counted / counted.sum())).sum(axis=(1, 2))
    return level, np.sqrt(noise**2 / counted.sum() + levels.variance.mean(axis=1) / blocks.shape[1])


def stack_outputs(units: str) -> dict[str, Output]:
    """Variables of a product that is a combined stack, in adu or electron/s."""
    square = f"({units})**2" if "/" in units else f"{units}**2"
    return {
        "image": Output("float32", units),
        "variance": Output("float32", square),
        "mask": Output("uint16"),
        "frames": Output("uint16"),
        "row_variance": Output("float32", square),
        "level": Output("float64", units, per_exposure=True),
        "level_error": Output("float64", units, per_exposure=True),
        "accepted": Output("bool", per_exposure=True),
    }


def stack_sizes(raw: xr.Dataset, shape: tuple[int, int]) -> dict[str, int]:
    """Sizes of the dims of a combined stack; ``shape`` is that of the padded image."""
    return {
        "exposure": raw.sizes["exposure"],
        "amplifier": raw.sizes["amplifier"],
        "y": shape[0],
        "x": shape[1],
    }


def dead_amplifier(outputs: Mapping[str, Output], sizes: Mapping[str, int], reason: str) -> xr.Dataset:
    """Result of an amplifier that could not be made: NaN, NO_DATA and the reason, never a number."""
    sizes = {dim: size for dim, size in sizes.items() if dim not in ("detector", "amplifier")}
    variables = {}
    for name, output in outputs.items():
        dims = output_dims(name, output, sizes)
        variables[name] = (dims, empty_values(name, output, tuple(sizes[dim] for dim in dims)))
    return xr.Dataset(variables, attrs={"remarks": [reason], "summary": {}})


def padded(values: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    """``values`` in the lower corner of an array of the padded shape."""
    out = np.full(shape, fill, values.dtype)
    out[tuple(slice(size) for size in values.shape)] = values
    return out


def stack_dataset(stack: Stack, present: np.ndarray, shape: tuple[int, int], names: list[str]) -> xr.Dataset:
    """Dataset of one amplifier from its Stack, padded to the camera's image shape.

    Parameters
    ----------
    present : (n,) bool, exposures that have a frame of this detector.
    shape : (ny, nx) of the padded image.
    names : (n,) exposure ids, for the remarks.
    """
    mask = np.where(stack.frames > 0, 0, MASK_BITS["NO_DATA"]).astype(np.uint16)

    def spread(values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full(len(present), fill, values.dtype)
        out[present] = values
        return out

    there = [name for name, here in zip(names, present, strict=True) if here]
    return xr.Dataset(
        {
            "image": (("y", "x"), padded(stack.value, shape, np.nan)),
            "variance": (("y", "x"), padded(stack.variance, shape, np.nan)),
            "mask": (("y", "x"), padded(mask, shape, MASK_BITS["NO_DATA"])),
            "frames": (("y", "x"), padded(stack.frames.astype(np.uint16), shape, 0)),
            "row_variance": ("y", padded(stack.row_variance, shape[:1], np.nan)),
            "level": ("exposure", spread(stack.level, np.nan)),
            "level_error": ("exposure", spread(stack.level_error, np.nan)),
            "accepted": ("exposure", spread(stack.accepted, False)),
            "read_noise": stack.read_noise,
            "read_noise_error": stack.read_noise_error,
        },
        attrs={"remarks": [f"exposure {there[i]} left out: {why}" for i, why in sorted(stack.reasons.items())]},
    )
