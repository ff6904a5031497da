"""Closed loop of photon transfer: gain and brighter-fatter coefficients of exact charge dynamics (Sec. 2.2b).

The bias of a gain is that of its difference to the gain of the twins (see `fluctuations`), whose pixels stand still and
whose gain is that put in but for terms of second order in its error, 1e-6: a few megapixels tell it to 2e-5. Steps of
time are so short that they leave 2e-5 of the variance. Errors are judged on many small amplifiers.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.pipeline.closed.fluctuations import flat_and_twin
from lsstcal_dask.pipeline.closed.target import Target, mean, pulls, ratio
from lsstcal_dask.products.covariance_model import Curve, Model, fisher
from lsstcal_dask.products.pairs import PairGain, pair_gain
from lsstcal_dask.products.transfer import LAGS, photon_transfer
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter, area_coefficients

__all__ = ["SEEDS", "Channel", "Measured", "measure", "twin_transfer"]

SEEDS = 8
LEVELS: Final = np.geomspace(500, 90e3, 12)  # electron
_LARGE: Final = (1024, 512)
_SMALL: Final = (128, 128)
_MANY: Final = 25  # small amplifiers for each large one
_MAKERS: Final = ("e2v", "ITL")


@dataclass(frozen=True)
class Channel:
    """An amplifier and the silicon before it."""

    vendor: str
    gain: float = 1.5  # electron/adu
    noise: float = 3.6  # adu


@dataclass(frozen=True)
class Measured:
    """Photon transfer of an amplifier and of its twin; what is true of it, and the bound of its relative error."""

    channel: Channel
    own: Curve
    twin: Curve
    area: np.ndarray
    bound: float

    @property
    def bias(self) -> float:
        """Gain less that of the twin, relative to the true one."""
        return (self.own.model.gain - self.twin.model.gain) / self.channel.gain


def measure(seeds: int, large: tuple[int, int] = _LARGE, many: int = _MANY) -> list[Target]:
    """Bias of large amplifiers, of both makers in turn; errors of ``many`` small ones for each of them."""
    fine, coarse = BrighterFatter(error=2e-5), BrighterFatter(error=1e-4)
    channels = [Channel(_MAKERS[seed % 2]) for seed in range(seeds)]
    bias = [twin_transfer(seed, fine, one, large).bias for seed, one in enumerate(channels)]
    small = [
        [_errors(twin_transfer(1000 * (seed + 1) + i, coarse, one, _SMALL)) for i in range(many)]
        for seed, one in enumerate(channels)
    ]
    off, told, bound, nearest = np.moveaxis(np.array(small), -1, 0)
    return [
        Target("2.2", "photon transfer, gain: relative bias", "", -2e-4, 2e-4, *mean(bias), seeds),
        Target("2.2", "photon transfer, gain: eta", "", -np.inf, 1.10, *ratio(off, bound), seeds),
        *pulls("2.2", "photon transfer, gain", off / told),
        *pulls("2.2", "photon transfer, a_00", nearest),
    ]


def _errors(one: Measured) -> tuple[float, float, float, float]:
    """Error of the gain, what it is said to be and its bound, relative; pull of a_00."""
    gain, own = one.channel.gain, one.own
    pull = (own.model.area[0, 0] - one.area[0, 0]) / own.error.area[0, 0]
    return own.model.gain / gain - 1, own.error.gain / gain, one.bound, float(pull)


def twin_transfer(seed: int, settings: BrighterFatter, channel: Channel, shape: tuple[int, int]) -> Measured:
    """Photon transfer of pairs of flats (y, x), as a converter counts them, and of their twins with the same noise."""
    random, noise = np.random.default_rng([2, seed]), float(np.sqrt(channel.noise**2 + 1 / 12))
    pairs: tuple[list[PairGain], list[PairGain]] = ([], [])
    for level in LEVELS:
        members = [flat_and_twin(random, settings, channel.vendor, level, shape) for _ in range(2)]
        read = [random.normal(0, channel.noise, shape) for _ in range(2)]
        for which, found in enumerate(pairs):
            first, second = (np.rint(m[which] / channel.gain + r) for m, r in zip(members, read, strict=True))
            found.append(pair_gain(first, second, noise, max_lag=LAGS - 1))
    own, twin = (photon_transfer(found, noise).curve for found in pairs)
    coefficients = area_coefficients(settings, channel.vendor)
    middle = len(coefficients) // 2
    area = coefficients[middle : middle + LAGS, middle : middle + LAGS]
    variance = np.zeros_like(area)
    variance[0, 0] = (channel.gain * noise) ** 2
    model = Model(channel.gain, variance, area, 0 * area)
    counts = np.array([found.counts for found in pairs[0]])
    return Measured(channel, own, twin, area, fisher(LEVELS / channel.gain, counts, model))
