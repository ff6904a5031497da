"""Closed loop of the overscan: levels of rows against the drift that was put in (Sec. 3.1).

Serial overscan of one amplifier, its level that of the virtual observatory's drift, with read noise, what is common to
the pixels of a row, and rounding. The optimal smoother is the Wiener filter that knows all of this: the power of the
wander, the size of the noise of rows, the shape of the transient, and that the level is any. Its errors are those of
`optimal_error`; no estimator of any kind has smaller ones on average, for all is Gaussian. Jumps, which are not, are
left out.

Then five cosmic rays, and a star that bleeds to the end of its 62 rows, whose charge the overscan sees. That no row is
off by more than 0.3 electron is forbidden by the wander, which no row of the star tells: the optimal smoother that is
told which rows these are is off by more.

The amplifier is one of LSSTCam. The same is asked of one of mini9, of 128 rows: there are 12 degrees of freedom of
wander in these, too few to learn its spectrum from one frame. The best that is possible there is what `learned` does,
which knows of what kind all is, but learns the sizes, the colour, and how fast the transient decays.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels
from lsstcal_dask.pipeline.closed.target import Target, mean, ratio
from lsstcal_dask.simulate.bias import OverscanDrift, drift
from lsstcal_dask.simulate.electronics import ReadNoise

__all__ = ["SEEDS", "measure"]

SEEDS = 20
ROW_NOISES = (0.0, ReadNoise().row)  # electron
FRAMES = 4  # of one amplifier, for each seed
PEDESTAL = 25000.0  # adu
STEADY = OverscanDrift(jumps=0.0)
_SMALL = 4  # times as many seeds of an amplifier of few rows
_FEW = 200  # rows
_ANY = 1e4  # adu, prior width of what is not known at all


@dataclass(frozen=True)
class Case:
    """Frames of an amplifier."""

    amplifier: Amplifier
    counts: np.ndarray  # (frame, raw y, raw x)
    level: np.ndarray  # (frame, y) adu, true, of the data rows


def make(seed: int, detector: Detector, row_noise: float, settings: OverscanDrift = STEADY) -> Case:
    """Frames of the first amplifier without light."""
    amplifier = detector.amplifiers[0]
    random = np.random.default_rng([seed, 31])
    rows = slice(amplifier.data.y0, amplifier.data.y1)
    level = np.array([drift(seed, settings, detector, 0, number) for number in range(1, FRAMES + 1)])
    level += row_noise / amplifier.gain * random.standard_normal(level.shape)
    noise = amplifier.read_noise / amplifier.gain * random.standard_normal((FRAMES, *amplifier.raw_shape))
    counts = np.rint(PEDESTAL + level[:, :, None] + noise).astype(np.int32)
    return Case(amplifier, counts, PEDESTAL + level[:, rows])


@lru_cache
def covariance(amplifier: Amplifier, settings: OverscanDrift = STEADY) -> np.ndarray:
    """Covariance (y, y) of the level, adu**2, as `simulate.bias` makes it, constant and transient being any."""
    rows, raw_rows = amplifier.data.shape[0], amplifier.raw_shape[0]
    modes = np.arange(1, min(64, raw_rows - 1) + 1)
    power = modes**-settings.colour / np.sum(modes**-settings.colour)
    y = np.arange(amplifier.data.y0, amplifier.data.y1)
    lag = settings.rows**2 * (power @ np.cos(np.pi / raw_rows * modes[:, None] * np.arange(rows)))
    transient = np.exp(-y / settings.transient_rows)
    apart = np.abs(y[:, None] - y)
    return np.asarray(lag[apart] + _ANY + _ANY * np.outer(transient, transient))


@lru_cache
def _eigenvalues(amplifier: Amplifier) -> np.ndarray:
    return np.maximum(np.linalg.eigvalsh(covariance(amplifier)), 0)


def _mean_noise(amplifier: Amplifier, skip: int) -> float:
    """Variance of the mean of a row, adu**2."""
    noise = (amplifier.read_noise / amplifier.gain) ** 2 + 1 / 12
    return float(noise / (amplifier.overscan.shape[1] - skip))


def optimal_error(amplifier: Amplifier, row_noise: float, skip: int) -> float:
    """Rms error of the optimal smoother, adu: of each eigenvalue of the covariance what the noise leaves of it."""
    own = _mean_noise(amplifier, skip)
    power = _eigenvalues(amplifier) + (row_noise / amplifier.gain) ** 2
    return float(np.sqrt(np.mean(power * own / (power + own))))


@lru_cache(maxsize=1)
def _smoother(amplifier: Amplifier, skip: int) -> np.ndarray:
    """Optimal levels (y,) are this (y, y) times means of rows."""
    k, own = covariance(amplifier), _mean_noise(amplifier, skip)
    return np.asarray(cho_solve(cho_factor(k + own * np.eye(len(k)), overwrite_a=True, check_finite=False), k))


def optimal_level(case: Case, frame: int, skip: int, use: np.ndarray) -> np.ndarray:
    """Level (y,) of a frame above the pedestal, adu, by the optimal smoother from the rows in ``use`` (y,).

    Other rows, if they hold what the smoother makes of them, change nothing.
    """
    smoother, gap = _smoother(case.amplifier, skip), ~use
    means = reference_pixels(case.counts[frame], case.amplifier)[:, skip:].mean(axis=1) - PEDESTAL
    known = smoother[np.ix_(gap, use)] @ means[use]
    means[gap] = np.linalg.solve(np.eye(gap.sum()) - smoother[np.ix_(gap, gap)], known)
    return np.asarray(smoother @ means)


def learned(cases: list[Case], skip: int) -> np.ndarray:
    """Levels (case, frame, y) above the pedestal, adu, by smoothers that learn what they need from the same rows.

    Their mean, each with its probability, over wanders and noises of rows of a tenth to some times those that are
    made, colours from 1/f to beyond a random walk, and transients of a third to three times that length.
    """
    amplifier = cases[0].amplifier
    own = _mean_noise(amplifier, skip)
    pixels = [reference_pixels(case.counts, amplifier)[..., skip:] for case in cases]
    means = np.concatenate(pixels).mean(axis=2) - PEDESTAL
    estimates, chances = [], []
    sizes, noises = STEADY.rows * np.geomspace(0.1, 6, 8), np.sqrt(own) * np.array([0.0, 0.1, 0.3, 1.0, 3.0])
    for size, colour, rows, noise in product(sizes, (1.0, 1.5, 2.0, 3.0), (3.0, 10.0, 30.0), noises):
        settings = {"rows": size, "colour": colour, "transient_rows": rows}
        k = covariance.__wrapped__(amplifier, STEADY.model_copy(update=settings)) + noise**2 * np.eye(means.shape[1])
        root = cholesky(k + own * np.eye(len(k)), lower=True, check_finite=False)
        white = solve_triangular(root, means.T, lower=True, check_finite=False)
        estimates.append((k @ solve_triangular(root.T, white, check_finite=False)).T)
        chances.append(-0.5 * (white**2).sum(axis=0) - np.log(np.diag(root)).sum())
    weight = np.exp(np.array(chances) - np.max(chances, axis=0))
    mean_level = np.einsum("mf,mfy->fy", weight / weight.sum(axis=0), np.array(estimates))
    return mean_level.reshape(len(cases), FRAMES, -1)


def spoil(case: Case, seed: int) -> tuple[Case, np.ndarray]:
    """Five cosmic rays in the overscan and a star that bleeds into it, in each frame; its bled rows (frame, y)."""
    random, counts = np.random.default_rng([seed, 32]), case.counts.copy()
    box, rows = case.amplifier.overscan, case.amplifier.data.shape[0]
    long, bled = max(rows // 32, 4), np.zeros((FRAMES, rows), bool)
    tail = np.rint(2000 * np.exp(-np.arange(box.shape[1]) / 20.0)).astype(np.int32)
    for frame, flags in zip(counts, bled, strict=True):
        part = frame[case.amplifier.data.y0 :, box.x0 : box.x1]
        first = int(random.integers(0, rows - long))
        part[first : first + long] += tail
        flags[first : first + long] = True
        for _ in range(5):
            y, x = random.integers(0, rows - 3), random.integers(0, box.shape[1] - 6)
            part[y : y + 3, x : x + 6] += 3000
    return Case(case.amplifier, counts, case.level), bled


def _errors(case: Case, config: OverscanConfig) -> np.ndarray:
    """Estimated less true levels (frame, y), adu."""
    return row_levels(reference_pixels(case.counts, case.amplifier), config).level - case.level


def measure(seeds: int, camera: str = "raft", config: OverscanConfig = OverscanConfig()) -> list[Target]:
    """Residuals over those of the optimal smoother, and the largest error of a row in spoilt frames."""
    detector, small = (load_camera(name).detectors[0] for name in (camera, "mini9"))
    return [
        *(_residual(seeds, detector, noise, config) for noise in ROW_NOISES),
        _spoilt(seeds, detector, config),
        *(_residual(_SMALL * seeds, small, noise, config) for noise in ROW_NOISES),
    ]


def _residual(seeds: int, detector: Detector, noise: float, config: OverscanConfig) -> Target:
    """Of few rows, with the best that is possible."""
    amplifier = detector.amplifiers[0]
    cases = [make(seed, detector, noise) for seed in range(1, seeds + 1)]
    smoother, rows = np.array(optimal_error(amplifier, noise, config.skip)), amplifier.data.shape[0]
    title, best = f"{noise:g} electron common to a row, {rows} rows: rms over optimal smoother", np.nan
    if rows < _FEW:
        level = learned(cases, config.skip) + PEDESTAL
        best = ratio(level - np.array([case.level for case in cases]), smoother)[0]
    found = ratio(np.array([_errors(case, config) for case in cases]), smoother)
    return Target("3.1", title, "", -np.inf, 1.1, *found, seeds, best)


def _spoilt(seeds: int, detector: Detector, config: OverscanConfig) -> Target:
    """Largest error of a row, and that of the optimal smoother of the same frames that is told which rows are bad."""
    ours, best = [], []
    for seed in range(1, seeds + 1):
        clean = make(seed, detector, 0.0)
        case, bled = spoil(clean, seed)
        gain = case.amplifier.gain
        ours.append(gain * np.abs(_errors(case, config)).max(axis=1).mean())
        levels = [optimal_level(clean, frame, config.skip, ~gap) for frame, gap in enumerate(bled)]
        best.append(gain * np.abs(PEDESTAL + np.array(levels) - case.level).max(axis=1).mean())
    what = "5 cosmic rays and a bleeding star: largest error of a row"
    return Target("3.1", what, "electron", -np.inf, 0.3, *mean(ours), seeds, float(np.mean(best)))
