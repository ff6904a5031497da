"""Closed loop of relative gains in a CCD from the continuity of flats (Sec. 2.2d).

The photons of forty flats of 50 ke- tell the gains of a CCD of mini9 to 5e-5, and those of eight the gains of one of
LSSTCam to 2e-5. What is left on small CCDs, 4e-4, are the shadows of dust, which no polynomial follows, and pixels that
differ in size and response, which stay the same from flat to flat: the 64 or 128 pixels along a boundary do not average
them. Without these it is near what the photons say. So the target is that of CCDs of LSSTCam's size, where boundaries
are 512 and 2002 pixels long.
"""

import numpy as np

from lsstcal_dask.instrument import Camera, load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.calibration_day import bias_product, gains_of, of_type, one_day, site_of
from lsstcal_dask.pipeline.closed.target import Target, largest, mean, pulls, rms
from lsstcal_dask.products.continuity import ContinuityConfig, continuity_amplifiers, gain_changes, mean_flats
from lsstcal_dask.simulate import Observatory

__all__ = ["SEEDS", "measure"]

SEEDS = 9
_FLATS = 40
_JUMP = 0.003
_FEW = 8
_EVEN = ("dust", "ghosts", "scatter", "tree_rings", "pixel_jitter", "edge_distortion", "quantum_efficiency")


def measure(seeds: int, large: int = 1, flats: int = _FLATS) -> list[Target]:
    """Gains of small CCDs and of ``large`` of LSSTCam's size, and a jump of one."""
    small = load_camera("mini9")
    whole, even = ([_gains(*_ccd(small, seed, *w), flats) for seed in range(seeds)] for w in ((), _EVEN))
    found = [
        _row("mini9, without dust and pixels all alike: rms error of relative gains", 2e-4, rms(_error(even)), seeds),
        *pulls("2.2", "mini9: relative gains", np.array([e / s for e, s in whole])),
        *_jumps(small, seeds, flats),
    ]
    if large:
        whole_ccds = [_gains(*_ccd(load_camera("raft"), seed), _FEW) for seed in range(large)]
        found.insert(0, _row("LSSTCam's size: rms error of relative gains", 2e-4, rms(_error(whole_ccds)), large))
    return found


def _row(name: str, high: float, found: tuple[float, float], seeds: int) -> Target:
    return Target("2.2", f"continuity, {name}", "", -np.inf, high, *found, seeds)


def _error(found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.array([error for error, _ in found])


def _ccd(camera: Camera, seed: int, *without: str) -> tuple[Observatory, Detector]:
    """Observatory and CCD of a seed, of both makers in turn; of a flat only its mean counts here."""
    return site_of(1000 + seed, camera, "brighter_fatter", *without), camera.detectors[seed % len(camera.detectors)]


def _gains(site: Observatory, ccd: Detector, flats: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of relative gains (amplifier,), relative, and what they are said to be."""
    raw = one_day(site, ccd, biases=10, flats=flats, filters="r", level=50e3)
    truth, products = gains_of(site, ccd), {"bias": bias_product(site, raw, ccd)}
    made = dict(continuity_amplifiers(of_type(raw, "flat"), ccd, None, ContinuityConfig(), products))
    value, error = (
        np.array([float(made[a.name][name]) for a in ccd.amplifiers])
        for name in ("gain_relative", "gain_relative_error")
    )
    return value / (truth / np.exp(np.mean(np.log(truth)))) - 1, error / value


def _jumps(camera: Camera, seeds: int, flats: int) -> list[Target]:
    """A gain that is 0.3 % higher in every other flat, and all the others, which are not; in sigma."""
    seen, quiet = [], []
    for seed in range(seeds):
        site, ccd = _ccd(camera, seed)
        raw = one_day(site, ccd, biases=10, flats=flats, filters="r", level=50e3)
        products, taken = {"bias": bias_product(site, raw, ccd)}, of_type(raw, "flat")
        epochs = [taken.isel(exposure=slice(part, None, 2)) for part in (0, 1)]
        before, after = (mean_flats(epoch, ccd, ContinuityConfig(), products)[0] for epoch in epochs)
        after[5] = after[5] / (1 + _JUMP)
        value, error, _ = gain_changes(before, after, ccd)
        sigma = (value - 1) / error
        seen.append(sigma[5])
        quiet.append(np.delete(sigma, 5))
    return [
        Target("2.2", "continuity, a jump of 0.3 %", "sigma", 5.0, np.inf, *mean(seen), seeds),
        Target(
            "2.2", "continuity, largest of gains that do not jump", "sigma", 0.0, 5.0, *largest(np.array(quiet)), seeds
        ),
    ]
