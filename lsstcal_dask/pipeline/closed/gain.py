"""Closed loop of gains from 55Fe, and of their ratio to those of photon transfer (Sec. 2.2a, b).

A hit knows its charge to 1.4 %. For a scatter of 1e-3 from amplifier to amplifier to be seen, 55Fe must know a gain to
half of that: 800 hits, which an exposure of two seconds has in an amplifier of LSSTCam; fifty of mini9 would be needed.
Photon transfer of that precision takes the fluctuations of 25 pairs; here the twins take them away (see `transfer`).
"""

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.calibration_day import bias_product, gains_of, of_type, one_day, site_of
from lsstcal_dask.pipeline.closed.target import Target, pulls, rms
from lsstcal_dask.pipeline.closed.transfer import Channel, twin_transfer
from lsstcal_dask.products.gain import GainConfig, gain_amplifiers
from lsstcal_dask.simulate import Observatory
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter

__all__ = ["SEEDS", "measure"]

SEEDS = 2
_CCDS = {"lsstcam": ("R22_S11", "R01_S11")}  # of both makers
_SHAPE = (256, 512)  # of a flat: its gain less its twin's is known to 1e-4


def measure(seeds: int, camera: str = "lsstcam", xrays: int = 1, shape: tuple[int, int] = _SHAPE) -> list[Target]:
    """Targets of a CCD of each seed, of both makers in turn, in so many exposures of 55Fe of three seconds."""
    whole = load_camera(camera)
    names = _CCDS.get(camera, tuple(ccd.name for ccd in whole.detectors))
    found = []
    for seed in range(seeds):
        site, ccd = site_of(1000 + seed, whole), whole.detector(names[seed % len(names)])
        found.append(_ccd(site, ccd, xrays, shape))
    off, told, ratio = (np.array([one[i] for one in found]) for i in range(3))
    # what the CCD has in common is not the amplifiers': its temperature, and the energy of a pair of charges
    apart = off - np.nanmean(off, axis=1, keepdims=True)
    share = np.sqrt(1 - 1 / off.shape[1])
    scatter = ratio / np.nanmean(ratio, axis=1, keepdims=True) - 1
    return [
        pulls("2.2", "55Fe, gain in its CCD", apart / told / share)[0],  # their mean is zero by construction
        Target("2.2", "photon transfer over 55Fe: scatter in a CCD", "", 0.0, 1e-3, *rms(scatter / share), seeds),
    ]


def _ccd(site: Observatory, ccd: Detector, xrays: int, shape: tuple[int, int]) -> np.ndarray:
    """Errors of gains of 55Fe, what they are said to be, ratios of photon transfer to them: (3, amplifier)."""
    truth = gains_of(site, ccd)
    raw = one_day(site, ccd, biases=5, xrays=xrays, xray_exposure=3.0)
    products = {"bias": bias_product(site, raw, ccd)}
    made = dict(gain_amplifiers(of_type(raw, "fe55"), ccd, site.camera.temperature, GainConfig(), products))
    value, error = (
        np.array([float(made[a.name][name]) for a in ccd.amplifiers]) / truth
        for name in ("gain_fe55", "gain_fe55_error")
    )
    transfer = np.array([1 + _bias(site.seed, i, ccd, gain, shape) for i, gain in enumerate(truth)])
    return np.array([value - 1, error, transfer / value])


def _bias(seed: int, number: int, ccd: Detector, gain: float, shape: tuple[int, int]) -> float:
    """Relative error of photon transfer of an amplifier without its fluctuations."""
    channel = Channel(ccd.vendor, gain, ccd.amplifiers[number].read_noise / gain)
    return twin_transfer(100_000 + 100 * seed + number, BrighterFatter(error=1e-4), channel, shape).bias
