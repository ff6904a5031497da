"""The raw frames of one amplifier and what calibrates them (Lupton 2016, Secs. 2.1, 2.7)."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.overscan import OverscanConfig, RowLevels, reference_pixels, row_levels

__all__ = ["Exposures", "Transform", "read_exposures"]


@dataclass(frozen=True)
class Transform:
    """How counts become the quantity that is combined: (counts - level - plane) * scale."""

    scale: np.ndarray  # (n,) units of the product per adu
    plane: np.ndarray | None = None  # (y, x) bias, adu, trimmed to the data box
    gain: float = float("inf")  # electron/adu for the photon noise of the signal; inf: none
    group: np.ndarray | None = None  # (n,) night or the like: levels are compared within one


@dataclass(frozen=True)
class Exposures:
    """Raw frames of one amplifier with the level of each row and the noise of each frame."""

    counts: np.ndarray  # (n, y, x) raw integers, adu, readout orientation, contiguous
    amplifier: Amplifier
    levels: RowLevels
    noise: np.ndarray  # (n,) read noise, adu
    transform: Transform

    @property
    def data(self) -> np.ndarray:
        """The light-sensitive pixels (n, y, x), a view."""
        return self.counts[(slice(None), *self.amplifier.data.slices)]

    @cached_property
    def row_variance(self) -> np.ndarray:
        """Mean variance (n,) of the levels of the rows of each frame, adu**2."""
        return self.levels.variance.mean(axis=1)

    @cached_property
    def sigma(self) -> np.ndarray:
        """Noise (n,) of a typical pixel of each frame, in the unit of the product."""
        scale = self.transform.scale
        known = np.isfinite(self.levels.level).all(axis=1) & (self.noise > 0)
        if not known.any() or np.isinf(self.transform.gain):  # no photons
            return self.noise * scale
        longest = int(np.argmin(np.where(known, scale, np.inf)))
        signal = _typical_signal(self.data[longest], self.levels.level[longest], self.transform)
        return np.sqrt(self.noise**2 * scale**2 + signal * scale[longest] * scale / self.transform.gain)

    @property
    def rows_known(self) -> bool:
        """Whether reference pixels took the jitter of whole frames away."""
        return not np.isnan(self.levels.read_noise).all()


def read_exposures(
    counts: np.ndarray, amplifier: Amplifier, transform: Transform, overscan: OverscanConfig
) -> Exposures:
    """Find the row levels and the read noise of raw frames (n, y, x), adu."""
    counts = np.ascontiguousarray(counts)
    levels = row_levels(reference_pixels(counts, amplifier), overscan)
    noise = levels.read_noise
    if np.isnan(noise).all():
        data = counts[(slice(None), *amplifier.data.slices)]
        dead = np.array([frame.min() == frame.max() for frame in data])
        noise = np.zeros(len(counts))
        if (~dead).sum() > 1:
            noise[~dead] = _noise_without_overscan(data[~dead], levels.level[~dead], transform)
        if np.ptp(transform.scale) <= 1e-3 * transform.scale.max():
            levels = replace(levels, level=_frame_offsets(data, ~dead))
    return Exposures(counts, amplifier, levels, noise, transform)


def _typical_signal(frame: np.ndarray, level: np.ndarray, transform: Transform) -> float:
    """Median signal of a frame (y, x) above level (y,) and bias, adu; not negative."""
    signal = frame[::7, ::7].astype(np.float32) - level[::7, None]
    if transform.plane is not None:
        signal -= transform.plane[::7, ::7]
    return max(float(np.median(signal)), 0.0)


def _frame_offsets(data: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Levels (n, y) of whole frames about their median, where no reference pixels tell: they must not clip each other.

    Only of exposures alike: of others the signal differs too.
    """
    offset = np.array([np.median(frame[::5, ::5]) for frame in data])
    offset = np.where(use, offset - np.median(offset[use]), 0.0) if use.any() else np.zeros(len(data))
    return np.repeat(offset[:, None].astype(np.float32), data.shape[1], axis=1)


def _noise_without_overscan(stack: np.ndarray, level: np.ndarray, transform: Transform) -> float:
    """Read noise (adu) from differences of successive frames, less their photon noise."""
    signal = np.mean([_typical_signal(*one, transform) for one in zip(stack, level, strict=True)])
    photons = signal / transform.gain
    difference = stack[1:, ::2].astype(np.float32) - stack[:-1, ::2]
    difference -= np.median(difference, axis=(1, 2), keepdims=True)
    limit = 5 * 1.4826 * np.median(np.abs(difference)) + 1
    variance = np.mean(difference[np.abs(difference) < limit] ** 2) / 2
    return float(np.sqrt(max(variance - photons, 1 / 12)))  # rounding is always left
