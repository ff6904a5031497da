"""The raw frames of one amplifier and what calibrates them (Lupton 2016, Secs. 2.1, 2.7)."""

from dataclasses import dataclass
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
    def sigma(self) -> np.ndarray:
        """Noise (n,) of a typical pixel of each frame, in the unit of the product."""
        scale = self.transform.scale
        longest = int(np.argmin(scale))
        frame = self.data[longest][::7, ::7].astype(np.float32)
        signal = frame - self.levels.level[longest][::7, None]
        if self.transform.plane is not None:
            signal -= self.transform.plane[::7, ::7]
        typical = float(np.nan_to_num(max(np.median(signal) * scale[longest], 0.0)))
        return np.sqrt(self.noise**2 * scale**2 + typical * scale / self.transform.gain)

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
        noise = np.full(len(counts), _noise_without_overscan(counts[(slice(None), *amplifier.data.slices)]))
    return Exposures(counts, amplifier, levels, noise, transform)


def _noise_without_overscan(stack: np.ndarray) -> float:
    """Read noise (adu) from differences of successive frames, for sensors without reference pixels."""
    difference = stack[1:, ::2].astype(np.float32) - stack[:-1, ::2]
    difference -= np.median(difference, axis=(1, 2), keepdims=True)
    limit = 5 * 1.4826 * np.median(np.abs(difference)) + 1
    return float(np.sqrt(np.mean(difference[np.abs(difference) < limit] ** 2) / 2))
