"""Closed loop of the master bias: combined frames against their fixed structure (Sec. 2.1).

Frames of some amplifiers of mini9, read noise of 0.4, 1 and 3.6 LSB, 25 and 100 of them; in one of a hundred values a
glitch of 50 sigma. With the level of an exposure wandering, the overscan moves the lattice of integers from frame to
frame (dithering); without it every frame has the same.

eta is the rms error over ``sqrt((sigma**2 + 1/12) / n)``, n the values of a pixel without a glitch: the error of the
level of a row is not granted. Medians are compared with ``sqrt(1.57 sigma**2 / N + 0.083 / n**2)`` LSB, n integers
summed before the median. Both in LSB.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.target import Target, mean, ratio
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import StackConfig, combine_amplifier
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.bias import OverscanDrift
from lsstcal_dask.simulate.electronics import ReadNoise, read_out
from lsstcal_dask.simulate.truth import at

__all__ = ["SEEDS", "measure"]

SEEDS = 6
NOISES = (0.4, 1.0, 3.6)  # LSB
FRAMES = (25, 100)
VENDOR = "e2v"  # CCDs of one vendor have amplifiers of one size
GLITCHES = 0.01  # of all values
GLITCH = 50.0  # sigma
METHODS: tuple["Method", ...] = ("median", "sums")
Method = Literal["clipmean", "median", "sums"]


@dataclass(frozen=True)
class Case:
    """Frames of one seed, and what they should give."""

    detector: Detector
    counts: np.ndarray  # (exposure, amplifier, y, x) of ``detector.amplifiers``
    hit: np.ndarray  # (exposure, amplifier, y, x) bool, over the data box: where glitches are to be
    truth: np.ndarray  # (amplifier, y, x) LSB
    noise: float  # LSB


def make(seed: int, noise: float, frames: int, dither: bool, amplifiers: int = 4) -> Case:
    """Bias frames of the first amplifiers of a CCD, 1 electron/adu."""
    camera = load_camera("mini9")
    alike = [d for d in camera.detectors if d.vendor == VENDOR]
    whole = alike[seed % len(alike)]
    detector = replace(whole, amplifiers=tuple(replace(a, read_noise=noise) for a in whole.amplifiers[:amplifiers]))
    effects = ["bias_structure", "read_noise", "digitisation", *(["overscan_drift"] if dither else [])]
    update = {"read_noise": ReadNoise(scatter=0, scatter_ccd=0, row=0), "overscan_drift": OverscanDrift(on=dither)}
    site = Observatory(seed, camera, Settings().only(effects).model_copy(update=update))
    dark = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
    places = [camera.amplifier_names.index(a.name) for a in detector.amplifiers]
    electronics = site.settings.electronics
    counts = [read_out(seed, electronics, camera, detector, 1 + i, dark)[places] for i in range(frames)]
    truth = [at(site, "bias", detector=whole.name, amplifier=a.name) for a in detector.amplifiers]
    random = np.random.default_rng([seed, frames])
    hit = random.random((frames, *np.shape(truth))) < GLITCHES
    return Case(detector, np.array(counts), hit, np.array(truth), noise)


def combine(case: Case, frames: int, method: Method, *, glitches: bool, clip: float = 4.0) -> tuple[np.ndarray, str]:
    """The bias (amplifier, y, x) of the first frames less the truth, LSB, and the method it was made with."""
    found, config = [], StackConfig(method=method, k=clip)
    for i, amplifier in enumerate(case.detector.amplifiers):
        counts = case.counts[:frames, i].copy()
        if glitches:
            inside = counts[(slice(None), *amplifier.data.slices)]
            inside += (GLITCH * case.noise * case.hit[:frames, i]).astype(counts.dtype)
        stack = combine_amplifier(counts, amplifier, Transform(np.ones(frames)), config)
        found.append(stack.value - case.truth[i])
    return np.array(found), stack.method


def measure(seeds: int, frames: tuple[int, ...] = FRAMES, amplifiers: int = 4, clip: float = 4.0) -> list[Target]:
    """Targets of every read noise, number of frames and method, with and without dithering."""
    targets = []
    for noise, dither in product(NOISES, (True, False)):
        cases = [make(seed, noise, max(frames), dither, amplifiers) for seed in range(1, seeds + 1)]
        for n in frames:
            where = f"{noise:g} LSB, N={n}, {'dithered' if dither else 'one lattice'}"
            targets += _mean_targets(cases, n, where, clip)
            medians = {target.name: target for target in (_median_target(cases, n, where, m) for m in METHODS)}
            targets += medians.values()  # a median of noise too low for it is one of sums
    return targets


def _mean_targets(cases: list[Case], n: int, where: str, clip: float) -> list[Target]:
    """Eta of the clipped mean of frames with glitches, and the bias that these leave."""
    errors = np.array([combine(case, n, "clipmean", glitches=True, clip=clip)[0] for case in cases])
    clean = np.array([combine(case, n, "clipmean", glitches=False, clip=clip)[0] for case in cases])
    left = np.array([n - case.hit[:n].sum(axis=0) for case in cases])
    noise = cases[0].noise
    shift = mean((errors - clean).mean(axis=(1, 2, 3)) / noise)
    return [
        Target("2.1", f"clipmean, {where}: eta", "", -np.inf, 1.05, *ratio(errors, bound(noise, left)), len(cases)),
        Target("2.1", f"clipmean, {where}: bias by glitches", "sigma", -0.05, 0.05, *shift, len(cases)),
    ]


def bound(noise: float, frames: np.ndarray) -> np.ndarray:
    """Error of the mean of so many integers, LSB."""
    return np.asarray(np.sqrt((noise**2 + 1 / 12) / frames))


def _median_target(cases: list[Case], n: int, where: str, method: Method) -> Target:
    made = [combine(case, n, method, glitches=False) for case in cases]
    used = made[0][1]
    group = StackConfig().group if used == "sums" else 1
    expected = np.sqrt(1.57 * cases[0].noise ** 2 / n + 0.083 / group**2)
    found = ratio(np.array([errors for errors, _ in made]), np.array(expected))
    return Target("2.1", f"{used}, {where}: rms over formula", "", -np.inf, 1.05, *found, len(cases))
