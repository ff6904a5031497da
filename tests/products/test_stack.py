"""The combination of one amplifier against known signals, many seeds at a time."""

import numpy as np
import pytest

from lsstcal_dask.instrument.camera import Amplifier, Box
from lsstcal_dask.products import residuals as module
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import StackConfig, combine_amplifier

SHAPE, OVERSCAN, GAIN, NOISE = (40, 60), 24, 1.6, 5.0


def amplifier():
    ny, nx = SHAPE
    return Amplifier(
        name="A",
        raw_shape=(ny, nx + OVERSCAN),
        data=Box(0, nx, 0, ny),
        overscan=Box(nx, nx + OVERSCAN, 0, ny),
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


@pytest.mark.parametrize("method", ["clipmean", "median", "sums"])
@pytest.mark.parametrize("rate", [0.02, 40.0])
@pytest.mark.parametrize("seconds", [[30.0] * 15, [10.0] * 9 + [200.0] * 6])
def test_errors_of_unequal_darks_are_honest(method, rate, seconds):
    if method == "sums" and len(set(seconds)) > 1:
        pytest.skip("sums of unequal exposures have no variance common to them")
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


def simple_block_means(data, offset, value, inverse, limits):
    """What `_block_means` gives, the obvious way."""
    ny, nx = value.shape
    size = module._BLOCK
    residual = data - offset[:, :, None] - value * inverse[:, None, None]
    residual = np.clip(residual, -limits[:, None, None], limits[:, None, None])
    return np.array(
        [
            [[r[y : y + size, x : x + size].mean() for x in range(0, nx, size)] for y in range(0, ny, size)]
            for r in residual
        ]
    )


def test_block_means_equal_the_simple_ones():
    rng = np.random.default_rng(3)
    counts = rng.integers(900, 1100, (4, 50, 90)).astype(np.uint16)
    value = rng.normal(1000, 5, (45, 70)).astype(np.float32)
    offset = rng.normal(0, 3, (4, 45)).astype(np.float32)
    inverse = np.array([1, 0.9, 1.1, 1], np.float32)
    limits = np.array([50, 60, 70, 80], np.float32)
    found, counted = module._block_means(counts, (3, 8), offset, np.zeros_like(value), value, inverse, limits)
    expected = simple_block_means(counts[:, 3:48, 8:78], offset, value, inverse, limits)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert counted.sum() == value.size
