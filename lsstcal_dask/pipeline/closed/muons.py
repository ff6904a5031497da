"""Closed loop of the monitor of gains by muons: how well twenty darks tell, and a change of 5 % (Sec. 2.2e).

A CCD of mini9 sees too few muons at sea level: here thirty times as many, some tens of tracks in an epoch of twenty
darks of 300 s; one of LSSTCam, of thirty times its area, sees as many without help. Four hundred tracks tell a gain to
1 %, and those of all CCDs together a change of 5 %.
"""

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.closed.calibration_day import bias_product, of_type, one_day, site_of
from lsstcal_dask.pipeline.closed.target import Target, mean, pulls
from lsstcal_dask.products.muons import MuonConfig, Tracks, dark_tracks, typical_loss
from lsstcal_dask.simulate.cosmics import CosmicRays

__all__ = ["SEEDS", "measure"]

SEEDS = 18
_RATE = 30.0
_DARKS = 20  # of an epoch


def measure(seeds: int) -> list[Target]:
    """Pulls of the change between two epochs of every CCD, which is none, and what all CCDs together say of 5 %."""
    epochs = [_epochs(seed) for seed in range(seeds)]
    pull = [_change(first, second, 1.0) for first, second in epochs]
    first, second = (_together([one[part] for one in epochs]) for part in (0, 1))
    size, error = _change(first, second, 1.05)
    return [
        *pulls("2.2", "muons, change of a CCD", np.array([[change / told] for change, told in pull])),
        Target("2.2", "muons, error for 400 tracks", "", 0.0, 0.0125, *mean([_error(one) for one in epochs]), seeds),
        Target("2.2", "muons, change of 5 % in all CCDs together", "sigma", 5.0, np.inf, size / error, 1.0, seeds),
    ]


def _epochs(seed: int) -> tuple[Tracks, Tracks]:
    """Tracks of the darks of a CCD, half of them each."""
    camera = load_camera("mini9")
    site, ccd = site_of(2000 + seed, camera, cosmic_rays=CosmicRays(rate=_RATE)), camera.detectors[seed % 9]
    raw = one_day(site, ccd, biases=10, darks=2 * _DARKS)
    products, darks = {"bias": bias_product(site, raw, ccd)}, of_type(raw, "dark")
    halves = (darks.isel(exposure=slice(None, _DARKS)), darks.isel(exposure=slice(_DARKS, None)))
    first, second = (
        _together([dark_tracks(half, a, ccd.pixel_mm, products, MuonConfig()) for a in ccd.amplifiers])
        for half in halves
    )
    return first, second


def _together(parts: list[Tracks]) -> Tracks:
    return Tracks(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("path", "charge")))


def _change(first: Tracks, second: Tracks, gain: float) -> tuple[float, float]:
    """Change of ln(gain) where the second epoch has ``gain`` times that of the first, and its error."""
    (before, a), (after, b) = typical_loss(first), typical_loss(Tracks(second.path, second.charge / gain))
    return float(np.log(before / after)), float(np.hypot(a / before, b / after))


def _error(epochs: tuple[Tracks, Tracks]) -> float:
    """Relative error of an epoch, had it 400 tracks."""
    loss, error = typical_loss(epochs[0])
    return float(error / loss * np.sqrt(len(epochs[0].path) / 400))
