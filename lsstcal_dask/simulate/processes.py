"""Random functions of time and of direction: what weather, clouds and airglow have in common (SCIENCE 6).

A process is a pure function of (seed, name, time): any instant can be asked for, in any order.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate import random

__all__ = ["Waves", "kolmogorov", "minutes", "night", "noon", "ornstein_uhlenbeck", "sky_plane"]

_DAY: Final = 1440  # minutes
_NOON: Final = 16 * 60  # minutes of UTC: noon at 70 deg W to 2/3 h, when one night becomes the next
_NODES: Final = 300  # in a correlation time
_MEMORY: Final = 8  # correlation times after which noise is forgotten: exp(-16) of the variance
_BLOCK: Final = 1024  # nodes that are drawn together


def minutes(time: np.datetime64) -> float:
    """Since 1970-01-01, UTC.

    Raises
    ------
    WrongUse
        The time is earlier, or no time.
    """
    found = float((time - np.datetime64(0, "us")) / np.timedelta64(1, "m"))
    if not found >= 0:
        raise WrongUse(f"time {time} of the simulation: use a time after 1970-01-01")
    return found


def night(time: np.datetime64) -> int:
    """Number of the night (from noon to noon in Chile) that holds a time."""
    return max(0, int((minutes(time) - _NOON) // _DAY))


def noon(time: np.datetime64) -> np.datetime64:
    """Noon at which the night of a time begins, UTC."""
    return np.datetime64(night(time) * _DAY + _NOON, "m")


def ornstein_uhlenbeck(seed: int, name: str, time: np.datetime64, hours: float) -> float:
    """Gaussian process of mean 0, variance 1 and covariance exp(-|dt| / ``hours``).

    Exact on 300 nodes in a correlation time: x_k = a x_(k-1) + sqrt(1 - a**2) n_k, written as the sum over the
    noise of the last eight correlation times, so that no chain has to be followed from its start. Linear in between,
    where the variance is smaller by at most 1/600.
    """
    at = minutes(time) * _NODES / (60 * hours) + _MEMORY * _NODES  # the noise before 1970 has numbers, too
    last, part = int(at // 1), at % 1
    noise = _noise(seed, name, last - _MEMORY * _NODES, last + 2)
    weights = _weights()
    # sums, not dot products, whose rounding depends on the processor and its threads
    return float((1 - part) * np.sum(weights * noise[:-1]) + part * np.sum(weights * noise[1:]))


@lru_cache(maxsize=1)
def _weights() -> np.ndarray:
    """Of the noise of each node of the memory, the last one being now."""
    decay = np.exp(-1 / _NODES)
    weights = np.sqrt(1 - decay**2) * decay ** np.arange(_MEMORY * _NODES, -1, -1)
    weights.flags.writeable = False
    return weights


def _noise(seed: int, name: str, start: int, stop: int) -> np.ndarray:
    """Standard normal numbers of the nodes from ``start`` to ``stop``."""
    blocks = [_noise_block(seed, name, block) for block in range(start // _BLOCK, (stop - 1) // _BLOCK + 1)]
    return np.concatenate(blocks)[start % _BLOCK :][: stop - start]


@lru_cache(maxsize=128)
def _noise_block(seed: int, name: str, block: int) -> np.ndarray:
    noise = random.stream(seed, name, exposure=block).standard_normal(_BLOCK)
    noise.flags.writeable = False
    return noise


@dataclass(frozen=True, eq=False)
class Waves:
    """A Gaussian field of mean 0: a sum of plane waves of random phase and amplitude that travel over the sky.

    Attributes
    ----------
    x, y : (wave,) wave numbers, rad/deg.
    frequency : (wave,) rad/s.
    cosine, sine : (wave,) amplitudes.
    """

    x: np.ndarray
    y: np.ndarray
    frequency: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray

    def at(self, seconds: float, x: np.ndarray, y: np.ndarray, duration: float = 0.0) -> np.ndarray:
        """Mean of the field at ``x``, ``y`` (deg) from ``seconds`` on for ``duration`` s."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        out = np.zeros(x.shape)
        phases = -self.frequency * (seconds + duration / 2)
        blur = np.sinc(self.frequency * duration / (2 * np.pi))
        for kx, ky, phase, cosine, sine in zip(
            self.x, self.y, phases, blur * self.cosine, blur * self.sine, strict=True
        ):
            angle = kx * x + ky * y + phase
            out += cosine * np.cos(angle) + sine * np.sin(angle)
        return out


def kolmogorov(count: int, inner: float, outer: float) -> tuple[np.ndarray, np.ndarray]:
    """Wave numbers (rad/deg) and variances (sum 1) of a thin turbulent layer, (wave,).

    The power per unit area of the plane of wave numbers goes as k**(-8/3), so the power per unit of ln k goes as
    k**(-2/3), and the structure function as separation**(2/3) between the ``inner`` and ``outer`` scale (deg).
    """
    step = np.log(outer / inner) / count
    k = 2 * np.pi / outer * np.exp(step * (np.arange(count) + 0.5))
    return k, k ** (-2 / 3) / np.sum(k ** (-2 / 3))


def sky_plane(altitude: float, azimuth: float) -> tuple[float, float]:
    """Place of a direction (deg) on the plane that wind and waves cross: deg from the zenith to the east and north."""
    distance, angle = 90 - altitude, np.deg2rad(azimuth)
    return float(distance * np.sin(angle)), float(distance * np.cos(angle))
