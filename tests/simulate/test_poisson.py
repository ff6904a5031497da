"""Poisson numbers: their distribution at every mean, from the same bits each time."""

import numpy as np
import pytest
from scipy.stats import chi2
from scipy.stats import poisson as law

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.poisson import poisson
from lsstcal_dask.simulate.random import stream

N = 300_000
MEANS = (0.01, 0.3, 3.0, 9.99, 10.0, 11.5, 30.0, 100.0, 1e3, 1e4, 1e5)
FALSE = 1e-4 / len(MEANS)  # chance that a right sampler fails a test


def draw(mean, n=N, tile=0):
    return poisson(stream(7, "test", tile=tile), np.full(n, mean, np.float32 if tile % 2 else np.float64))


@pytest.mark.parametrize("mean", MEANS)
def test_distribution(mean):
    found = draw(mean)
    low, high = law.ppf([20 / N, 1 - 20 / N], mean)
    step = max(1, int((high - low) / 200))
    edges = np.arange(low, high + step, step)  # cells (-inf, low], (low, low + step] ... (.., inf)
    observed = np.bincount(np.searchsorted(edges, found), minlength=len(edges) + 1)
    expected = N * np.diff(np.concatenate([[0], law.cdf(edges, mean), [1]]))
    good = expected > 10
    observed, expected = (np.append(a[good], a[~good].sum()) for a in (observed, expected))
    used = expected > 0
    square = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert chi2.sf(square, used.sum() - 1) > FALSE


@pytest.mark.parametrize("mean", MEANS)
def test_moments(mean):
    mean = float(np.float32(mean))
    off = draw(mean, tile=1).astype(np.float64) - mean
    second, third = mean, mean
    fourth, sixth = mean + 3 * mean**2, mean + 25 * mean**2 + 15 * mean**3
    assert abs(off.mean()) < 4.5 * np.sqrt(second / N)
    assert abs((off**2).mean() - second) < 4.5 * np.sqrt((fourth - second**2) / N)
    assert abs((off**3).mean() - third) < 4.5 * np.sqrt((sixth - third**2) / N)


def test_means_mixed_in_one_row():
    means = np.tile(np.array([0, 0.5, 9, 14, 800], np.float32), (1000, 40))
    found = poisson(stream(1, "test"), means)
    assert found.shape == means.shape
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[means == 0], 0)
    np.testing.assert_array_equal(found, np.round(found))
    for mean in (0.5, 9, 14, 800):
        each = found[means == mean].astype(np.float64)
        assert abs(each.mean() - mean) < 4.5 * np.sqrt(mean / each.size)
        assert abs(each.var() / mean - 1) < 4.5 * np.sqrt((2 + 1 / mean) / each.size)


def test_neighbours_do_not_know_each_other():
    found = draw(3000.0) - 3000.0
    for lag in (1, 2, 255, 256):
        assert abs((found[lag:] * found[:-lag]).mean()) < 4.5 * 3000 / np.sqrt(N)


def test_same_stream_same_numbers():
    np.testing.assert_array_equal(draw(200.0, 5000), draw(200.0, 5000))
    assert (draw(200.0, 5000) != draw(200.0, 5000, tile=2)).any()


@pytest.mark.parametrize("mean", [-1e-6, -5.0, np.nan, np.inf])
def test_what_is_no_mean(mean):
    means = np.full(1000, 100.0, np.float32)
    means[700] = mean
    with pytest.raises(WrongUse, match="mean of a Poisson number is"):
        poisson(stream(1, "test"), means)


def test_empty():
    assert poisson(stream(1, "test"), np.zeros((0, 4), np.float32)).shape == (0, 4)
