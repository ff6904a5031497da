"""Closed loop of gains from 55Fe, and of their ratio to those of photon transfer (Sec. 2.2a, b).

A hit knows its charge to 1.4 %. For a scatter of 1e-3 from amplifier to amplifier to be seen, 55Fe must know a gain to
half of that: 800 hits, which an exposure of two seconds has in an amplifier of LSSTCam; fifty of mini9 would be needed.
Photon transfer of that precision takes the fluctuations of 25 pairs; here the twins take them away (see `transfer`).

A trap of the register takes the same few electrons of every hit that passes it, up to 1e-2 of its charge. One that lies
at the beginning of the register is passed by all, and nothing in the hits tells it from a gain, so that 55Fe and photon
transfer differ by as much: amplifiers with a trap are told of by themselves.
"""

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.calibration_day import bias_product, gains_of, of_type, one_day, site_of
from lsstcal_dask.pipeline.closed.target import Target, largest, pulls, rms
from lsstcal_dask.pipeline.closed.transfer import Channel, twin_transfer
from lsstcal_dask.products.gain import GainConfig, gain_amplifiers
from lsstcal_dask.simulate import Observatory
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter
from lsstcal_dask.simulate.truth import at

__all__ = ["SEEDS", "measure"]

SEEDS = 2
_CCDS = {"lsstcam": ("R22_S11", "R01_S11")}  # of both makers
_MORE = 3
_SHAPE = (256, 512)  # of a flat: its gain less its twin's is known to 1e-4


def measure(
    seeds: int, camera: str = "lsstcam", xrays: int = 1, shape: tuple[int, int] = _SHAPE, more: int = _MORE
) -> list[Target]:
    """Targets of a CCD of each seed, of both makers in turn, in so many exposures of 55Fe of three seconds.

    Parameters
    ----------
    more : CCDs of each seed with 55Fe alone.
    """
    whole = load_camera(camera)
    names = _CCDS.get(camera, tuple(ccd.name for ccd in whole.detectors))
    ccds = [(site_of(1000 + i, whole), whole.detector(names[i % len(names)])) for i in range(seeds * (1 + more))]
    found = [_xrays(*one, xrays) for one in ccds]
    off, told, trap = (np.array([one[i] for one in found]) for i in range(3))
    # what the CCD has in common is not the amplifiers': its temperature, and the energy of a pair of charges
    even = np.where(trap > 0, np.nan, off)
    apart = off - np.nanmean(even, axis=1, keepdims=True)
    share = np.sqrt(1 - 1 / np.isfinite(even).sum(axis=1, keepdims=True))
    transfer = np.array(
        [[_bias(site.seed, i, ccd, g, shape) for i, g in enumerate(gains_of(site, ccd))] for site, ccd in ccds[:seeds]]
    )
    ratio = (1 + transfer) / (1 + even[:seeds])
    scatter = (ratio / np.nanmean(ratio, axis=1, keepdims=True) - 1) / share[:seeds]
    targets = [
        pulls("2.2", "55Fe, gain in its CCD", np.where(trap > 0, np.nan, apart) / told / share)[0],  # of mean zero
        Target("2.2", "photon transfer over 55Fe: scatter in a CCD", "", 0.0, 1e-3, *rms(scatter), seeds),
    ]
    if (trap > 0).any():
        worst = largest(np.where(trap > 0, apart, np.nan))
        name = f"55Fe, worst of {int((trap > 0).sum())} amplifiers with a trap of the register"
        targets.append(Target("2.2", name, "", -np.inf, np.inf, *worst, seeds))
    return targets


def _xrays(site: Observatory, ccd: Detector, xrays: int) -> np.ndarray:
    """Errors of gains of 55Fe, what they are said to be, and traps of the register: (3, amplifier)."""
    truth = gains_of(site, ccd)
    raw = one_day(site, ccd, biases=5, xrays=xrays, xray_exposure=3.0)
    products = {"bias": bias_product(site, raw, ccd)}
    made = dict(gain_amplifiers(of_type(raw, "fe55"), ccd, site.camera.temperature, GainConfig(), products))
    value, error = (
        np.array([float(made[a.name][name]) for a in ccd.amplifiers]) / truth
        for name in ("gain_fe55", "gain_fe55_error")
    )
    traps = [len(at(site, "serial_traps", detector=ccd.name, amplifier=a.name)) for a in ccd.amplifiers]
    return np.array([value - 1, error, traps])


def _bias(seed: int, number: int, ccd: Detector, gain: float, shape: tuple[int, int]) -> float:
    """Relative error of photon transfer of an amplifier without its fluctuations."""
    channel = Channel(ccd.vendor, gain, ccd.amplifiers[number].read_noise / gain)
    return twin_transfer(100_000 + 100 * seed + number, BrighterFatter(error=1e-4), channel, shape).bias
