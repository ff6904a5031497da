"""The combination of one amplifier against known signals, many seeds at a time."""

import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Box
from lsstcal_dask.products import residuals as module
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import StackConfig, combine_amplifier

SHAPE, OVERSCAN, GAIN, NOISE = (40, 60), 24, 1.6, 5.0


def amplifier(overscan=OVERSCAN):
    ny, nx = SHAPE
    return Amplifier(
        name="A",
        raw_shape=(ny, nx + overscan),
        data=Box(0, nx, 0, ny),
        overscan=Box(nx, nx + overscan, 0, ny) if overscan else Box(0, 0, 0, 0),
        parallel_overscan=Box(0, 0, 0, 0),
        position=(0, 0),
        flip_x=False,
        flip_y=False,
        gain=GAIN,
        read_noise=NOISE * GAIN,
    )


def exposures(seed, seconds, rate):
    """Darks (n, y, x) of a pixel's rate in electron/s, with rows that jitter; rounded counts in adu."""
    rng = np.random.default_rng(seed)
    ny, nx = SHAPE
    counts = np.empty((len(seconds), ny, nx + OVERSCAN))
    for i, time in enumerate(seconds):
        counts[i] = 1000 + rng.normal(0, 3, (ny, 1)) + rng.normal(0, NOISE, counts[i].shape)
        counts[i, :, :nx] += rng.poisson(rate * time, (ny, nx)) / GAIN
    return np.rint(counts).astype(np.uint16)


EQUAL, MIXED = [30.0] * 15, [10.0] * 9 + [200.0] * 6
FEW = ([10.0] * 10 + [900.0] * 2, [5.0] * 5 + [300.0], [30.0, 60.0, 900.0])  # less than three good ones


@pytest.mark.parametrize("rate", [0.02, 40.0])
@pytest.mark.parametrize(
    ("method", "seconds"),
    [("clipmean", EQUAL), ("median", EQUAL), ("sums", EQUAL), ("clipmean", MIXED), ("median", MIXED)]
    + [("clipmean", few) for few in FEW],
)
def test_errors_of_unequal_darks_are_honest(method, rate, seconds):
    transform = Transform(GAIN / np.array(seconds), None, GAIN)
    pixels, rows = [], []
    for seed in range(12):
        found = combine_amplifier(
            exposures(seed, seconds, rate), amplifier(), transform, StackConfig(method=method, reject=100)
        )
        assert found.weight.sum() == pytest.approx(1)
        means = (found.value - rate).mean(axis=1)
        rows.append(means / np.sqrt(found.row_variance + found.variance.mean(axis=1) / SHAPE[1]))
        pixels.append((found.value - rate) / np.sqrt(found.variance + found.row_variance[:, None]))
    assert np.std(pixels) == pytest.approx(1, abs=0.06)
    assert np.std(rows) == pytest.approx(1, abs=0.12)  # 480 rows: 3 %; the spread of chi2


@pytest.mark.parametrize("seconds", FEW)
def test_a_few_good_darks_are_not_lost_among_noisy_ones(seconds):
    transform, truth = Transform(GAIN / np.array(seconds), None, GAIN), 0.5
    found = combine_amplifier(exposures(1, seconds, truth), amplifier(), transform, StackConfig())
    variance = (NOISE * transform.scale) ** 2 * (1 + 1 / 21) + truth / np.array(seconds)
    assert np.std(found.value - truth) < 1.15 / np.sqrt((1 / variance).sum())


@pytest.mark.parametrize("method", ["median", "sums"])
def test_methods_that_unequal_darks_do_not_bear(method):
    seconds = [10.0] * 14 + [900.0]
    transform = Transform(GAIN / np.array(seconds), None, GAIN)
    with pytest.raises(InsufficientInputs, match=f"method {method} needs .*: use method clipmean"):
        combine_amplifier(exposures(1, seconds, 1.0), amplifier(), transform, StackConfig(method=method))


def without_overscan(seed, levels, light=0.0):
    rng = np.random.default_rng(seed)
    counts = rng.normal(0, NOISE, (len(levels), *SHAPE)) + np.array(levels)[:, None, None]
    return np.rint(counts + rng.poisson(light, counts.shape) / GAIN).astype(np.uint16)


def test_a_dead_frame_without_overscan_is_left_out():
    counts = without_overscan(1, [5000.0] * 5)
    counts[3] = 0
    found = combine_amplifier(counts, amplifier(0), Transform(np.ones(5)), StackConfig())
    assert found.accepted.tolist() == [True, True, True, False, True]
    assert found.reasons == {3: "its pixels are all alike: no data"}
    assert found.read_noise == pytest.approx(NOISE, rel=0.05)
    assert found.row_variance.max() < 5


@pytest.mark.parametrize("jitter", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("n", [5, 15])
def test_jitter_of_whole_frames_without_overscan_clips_nothing(n, jitter):
    pulls, means = [], []
    for seed in range(40):
        levels = 5000 + np.random.default_rng(seed + 99).normal(0, jitter, n)
        found = combine_amplifier(without_overscan(seed, levels), amplifier(0), Transform(np.ones(n)), StackConfig())
        pulls.append((found.value - found.value.mean()) / np.sqrt(found.variance))
        means.append((found.value.mean() - 5000) / np.sqrt(found.row_variance.mean() + found.variance.mean() / 2400))
    assert np.std(pulls) == pytest.approx(1, abs=0.05)
    assert np.std(means) < 1.6  # the level is the median of n, its variance that of a few


def test_a_frame_far_off_does_not_move_the_level_without_overscan():
    levels = [5000.0, 5003.0, 4998.0, 5001.0, 5500.0, 4999.0]
    found = combine_amplifier(without_overscan(3, levels), amplifier(0), Transform(np.ones(6)), StackConfig())
    assert found.value.mean() == pytest.approx(5000.5, abs=0.5)
    assert found.accepted.tolist() == [True] * 4 + [False, True]
    assert "+499.5 adu" in found.reasons[4]
    assert "light leak" in found.reasons[4]


def test_photon_noise_without_overscan_is_counted_once():
    plane = np.full(SHAPE, 5000, np.float32)
    transform = Transform(np.full(8, GAIN / 30), plane, GAIN)
    found = combine_amplifier(without_overscan(2, [5000.0] * 8, light=1200.0), amplifier(0), transform, StackConfig())
    pull = (found.value - found.value.mean()) / np.sqrt(found.variance)
    assert np.std(pull) == pytest.approx(1, abs=0.06)


def simple_block_means(data, offset, plane, value, inverse, limits):
    """What `_block_means` gives, the obvious way."""
    ny, nx = value.shape
    size = module._BLOCK
    residual = data - offset[:, :, None] - plane - value * inverse[:, None, None]
    residual = np.clip(residual, -limits[:, None, None], limits[:, None, None])
    return np.array(
        [
            [[r[y : y + size, x : x + size].mean() for x in range(0, nx, size)] for y in range(0, ny, size)]
            for r in residual
        ]
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("nx", [5, 32, 33, 64, 70, 82])
@pytest.mark.parametrize("known", [True, False])
def test_block_means_equal_the_simple_ones(dtype, nx, known):
    """Narrower than a vector, of whole blocks and not, up to the last pixel of the counts."""
    rng = np.random.default_rng(3)
    counts = rng.integers(900, 1100, (4, 48, 90)).astype(dtype)
    value = rng.normal(1000, 5, (45, nx)).astype(np.float32)
    offset = rng.normal(0, 3, (4, 45)).astype(np.float32)
    plane = rng.normal(0, 9, (45, nx)).astype(np.float32) if known else np.zeros((1, nx), np.float32)
    inverse = np.array([1, 0.9, 1.1, 1], np.float32)
    limits = np.array([50, 60, 70, 80], np.float32)
    found, counted = module._block_means(counts, (3, 8), offset, plane, value, inverse, limits)
    expected = simple_block_means(counts[:, 3:48, 8 : 8 + nx], offset, plane, value, inverse, limits)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert counted.sum() == value.size
