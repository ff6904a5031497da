"""Closed loop of interpolation and of bleed trails (Sec. 3.5).

- Interpolated pixels against the Gaussian process that makes the image, whose error with all good pixels, and its mean
  known, is the oracle's. Both errors are exact. For single pixels, columns, clusters and narrow trails of a field of
  stars as wide as the configuration says; the target is of these. Of stars 25 % wider and narrower, whose width the
  oracle knows and the predictor does not, it is only told.
- Every pixel that is bad, saturated or hit carries its flag and INTERPOLATED.
- Bled stars, made by the virtual observatory: their footprints against the charge that was spilled.
"""

from dataclasses import replace

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.isr.bleed import bleed_mask
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.interpolation import InterpolationConfig, interpolate, predict
from lsstcal_dask.pipeline.closed.target import Target, mean
from lsstcal_dask.simulate.saturation import Saturation, bloom, full_well
from lsstcal_dask.variables import MASK_BITS

__all__ = ["SEEDS", "covariance", "measure", "patterns"]

SEEDS = 10
SIZE = 20  # px, side of a field
REACH = 6  # px, further than the predictor looks
WIDTHS = (1.0, 0.8, 1.25)  # of the stars, over the configured one
NOISE = 5.5  # electron
_FILLED = ("BAD", "SATURATED", "COSMIC_RAY")


def covariance(places: np.ndarray, sigma: float) -> np.ndarray:
    """Covariance (n, n) of pixels at ``places`` (n, 2) in a field of stars of this width."""
    apart = ((places[:, None] - places) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-apart / (4 * sigma**2)))


def patterns(n: int = SIZE) -> dict[str, np.ndarray]:
    """Pixels (n, n) to be filled: single one, column, pair of columns, cluster, bleed of three columns."""
    found = {name: np.zeros((n, n), bool) for name in ("pixel", "column", "columns", "cluster", "trail")}
    found["pixel"][10, 10] = True
    found["column"][:, 10] = True
    found["columns"][:, 10:12] = True
    found["cluster"][9:12, 9:12] = True
    found["trail"][4:16, 9:12] = True
    return found


def _inside(wanted: np.ndarray) -> np.ndarray:
    """Of the pixels to be filled (n,), those with a whole window around them."""
    y, x = np.nonzero(wanted)
    return np.asarray((y > 3) & (y < SIZE - 4) & (x > 3) & (x < SIZE - 4))


def response(wanted: np.ndarray, config: InterpolationConfig) -> np.ndarray:
    """Weights (filled pixel, good pixel) of the prediction, which is linear: what it makes of one pixel at a time."""
    nothing, good = np.zeros_like(wanted), np.argwhere(~wanted)
    apart = np.abs(good[:, None] - np.argwhere(wanted)).max(axis=2).min(axis=1)
    found = np.zeros((len(good), wanted.sum()))
    for index in np.flatnonzero(apart <= REACH):  # the others have no weight
        image = np.zeros(wanted.shape)
        image[tuple(good[index])] = 1
        found[index] = predict(image, image, wanted, nothing, config)[0][wanted]
    return found.T


def errors(wanted: np.ndarray, weights: np.ndarray, sigma: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Variances (n,) of the prediction with these weights, and of the oracle's, of the filled pixels without noise."""
    places = np.argwhere(np.ones_like(wanted)).astype(float)
    full, bad = covariance(places, sigma), wanted.ravel()
    noisy = full[~bad][:, ~bad] + noise * np.eye((~bad).sum())
    cross, own = full[np.ix_(bad, ~bad)], np.diag(full)[bad]
    oracle = own - np.einsum("ij,ji->i", cross, np.linalg.solve(noisy, cross.T))
    ours = own - 2 * (weights * cross).sum(axis=1) + np.einsum("ij,jk,ik->i", weights, noisy, weights)
    return ours, oracle


def _predictions(config: InterpolationConfig) -> list[Target]:
    """Errors over the oracle's, of each pattern."""
    targets = []
    for name, wanted in patterns().items():
        weights, inside = response(wanted, config), _inside(wanted)
        for factor in WIDTHS:
            ours, best = errors(wanted, weights, factor * config.sigma, config.noise)
            found = float(np.sqrt(ours[inside].mean() / best[inside].mean()))
            title, high = (name, 1.1) if factor == 1 else (f"{name}, stars {factor:g} as wide as configured", np.inf)
            targets.append(Target("3.5", f"{title}: rms over oracle", "", -np.inf, high, found, 0.0, 1))
    return targets


def unflagged(seed: int, camera: Camera, detector: Detector) -> int:
    """Pixels of a frame that should be INTERPOLATED and are not, or are and should not, or lost their flag."""
    random = np.random.default_rng([seed, 36])
    shape = (len(detector.amplifiers), *camera.image_shape)
    mask = np.zeros(shape, np.uint16)
    for name in _FILLED:
        mask |= np.where(random.random(shape) < 0.01, MASK_BITS[name], 0).astype(np.uint16)
    mask[:, :, 20] |= np.uint16(MASK_BITS["BAD"])
    mask |= np.where(random.random(shape) < 0.01, MASK_BITS["SUSPECT"], 0).astype(np.uint16)
    for part, amplifier in zip(mask, detector.amplifiers, strict=True):
        ny, nx = amplifier.data.shape
        part[ny:], part[:, nx:] = MASK_BITS["NO_DATA"], MASK_BITS["NO_DATA"]
    lost = mask & MASK_BITS["NO_DATA"] > 0
    image = np.where(lost, np.nan, random.normal(300, 17, shape)).astype(np.float32)
    rows = np.zeros(shape[:2], np.float32)
    before = Frame("e1", detector, image, np.full(shape, 300, np.float32), rows, mask, "electron")
    after = interpolate(before)
    wanted = (mask & np.uint16(sum(MASK_BITS[name] for name in _FILLED)) > 0) & ~lost
    expected = mask | np.where(wanted, MASK_BITS["INTERPOLATED"], 0).astype(np.uint16)
    return int((after.mask != expected).sum())


def bled_stars(seed: int, camera: Camera, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Stars on a sky of 300 electrons, before and after those that are too bright have bled: (amplifier, y, x)."""
    random = np.random.default_rng([seed, 37])
    ny, nx = detector.shape
    y, x = np.mgrid[:ny, :nx]
    image = np.full((ny, nx), 300.0)
    for _ in range(8):
        flux, cy, cx = 10 ** random.uniform(6, 7.2), random.uniform(8, ny - 8), random.uniform(8, nx - 8)
        image += flux / (2 * np.pi * 4) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    bled, _ = bloom(seed, Saturation(), detector, image.copy())
    before, after = (split(one, detector, camera, fill=0.0) for one in (image, bled))
    return before, after


def _footprint(seed: int, camera: Camera, detector: Detector) -> tuple[float, float]:
    """Recall of the spilled charge, and precision."""
    names = [a.name for a in detector.amplifiers]
    wells = full_well(seed, Saturation(), detector)
    own = np.array([wells[names.index(name)] for name in camera.amplifier_names])
    before, after = bled_stars(seed, camera, detector)
    noisy = after + np.random.default_rng([seed, 38]).normal(0, NOISE, after.shape)
    found = bleed_mask(noisy.astype(np.float32), own, NOISE)
    gained = np.maximum(after - before, 0)
    right = found & ((gained > 0) | (before >= own[:, None, None]))
    return float(gained[found].sum() / gained.sum()), float(right.sum() / found.sum())


def measure(seeds: int, config: InterpolationConfig = InterpolationConfig()) -> list[Target]:
    """Predictions, flags, and footprints of bleed trails."""
    camera = load_camera("mini9")
    detectors = [d for d in camera.detectors if d.vendor == "e2v"]
    used = [detectors[seed % len(detectors)] for seed in range(1, seeds + 1)]
    one = [replace(d, amplifiers=d.amplifiers[:1]) for d in used]
    wrong = sum(unflagged(seed, camera, d) for seed, d in enumerate(one, 1))
    recall, precision = zip(*(_footprint(seed, camera, d) for seed, d in enumerate(used, 1)), strict=True)
    return [
        *_predictions(config),
        Target("3.5", "pixels with a wrong flag", "", 0.0, 0.0, float(wrong), 0.0, seeds),
        Target("3.5", "bleed trails: recall of spilled charge", "", 0.999, np.inf, *mean(recall), seeds),
        Target("3.5", "bleed trails: precision", "", 0.90, np.inf, *mean(precision), seeds),
    ]
