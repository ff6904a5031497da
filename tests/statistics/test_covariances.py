"""Covariances summed directly against what an FFT of image and mask gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.statistics import covariances


def by_fft(image, good, max_lag):
    """Astier et al. 2019, App. A: correlations of the image and of its mask, zero padded, both signs folded."""
    shape = [n + max_lag for n in image.shape]
    power = [np.abs(np.fft.rfft2(part, shape)) ** 2 for part in (np.where(good, image, 0.0), good.astype(float))]
    total, pairs = (np.fft.irfft2(part, shape) for part in power)
    found = np.empty((2, max_lag + 1, max_lag + 1))
    for dy in range(max_lag + 1):
        for dx in range(max_lag + 1):
            lags = {(dy, dx), (dy, -dx)} if dy and dx else {(dy, dx)}
            found[1, dy, dx] = round(sum(pairs[lag] for lag in lags))
            found[0, dy, dx] = sum(total[lag] for lag in lags) / found[1, dy, dx]
    return found


def test_equal_to_the_fft():
    """An LSST amplifier with 5 % of its pixels masked: to 2e-9 of the variance, the rounding of float32."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2002, 512))
    image[1:] += 0.3 * image[:-1]
    good = rng.random(image.shape) > 0.05
    found, pairs = covariances(image, good, 8)
    expected, counted = by_fft(image, good, 8)
    np.testing.assert_array_equal(pairs, counted)
    assert np.abs(found - expected).max() < 2e-9 * expected[0, 0]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 150)),
    lag=st.integers(0, 12),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_shape_lag_and_mask(shape, lag, share, seed):
    rng = np.random.default_rng(seed)
    image, good = rng.normal(size=shape), rng.random(shape) < share
    found, pairs = covariances(image, good, lag)
    for dy in range(lag + 1):
        for dx in range(lag + 1):
            products = []
            for left, right in {(0, dx), (dx, 0)} if dy else {(0, dx)}:
                a = np.s_[: max(shape[0] - dy, 0), left : max(shape[1] - right, 0)]
                b = np.s_[dy:, right : max(shape[1] - left, 0)]
                if dx < shape[1]:
                    products += list((image[a] * image[b])[good[a] & good[b]])
            assert pairs[dy, dx] == len(products)
            if products:
                assert found[dy, dx] == pytest.approx(np.mean(products), abs=1e-5)
            else:
                assert np.isnan(found[dy, dx])


def test_masked_pixels_may_be_anything():
    image, good = np.full((8, 70), np.nan), np.zeros((8, 70), bool)
    image[::2], good[::2] = 3.0, True
    found, pairs = covariances(image, good, 2)
    assert found[[0, 0, 2], [0, 2, 1]] == pytest.approx(9.0)
    assert np.isnan(found[1]).all()
    assert pairs[0].tolist() == [4 * 70, 4 * 69, 4 * 68]
