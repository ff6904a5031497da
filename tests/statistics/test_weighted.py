"""Weighted sums of slices: hand-computed pixels, numpy in float64, bits that no chunking changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.statistics.weighted import CODES, WIDEST, add_slices, rounding_bound, weighted_sums


def made(rng, slices, spectra, shape, code):
    """Codes and weights of either sign, and the bound of the rounding of their sums."""
    codes = rng.normal(0, 30, (slices, *shape)).astype(code)
    weights = rng.normal(0, 1, (spectra, slices)).astype(np.float32)
    return codes, weights


def exact(codes, weights):
    """Sums in float64, and those of the absolute values."""
    wide = codes.reshape(len(codes), -1).astype(np.float64)
    shape = (len(weights), *codes.shape[1:])
    sums, sizes = weights.astype(float) @ wide, np.abs(weights.astype(float)) @ np.abs(wide)
    return sums.reshape(shape), sizes.reshape(shape)


def test_a_pixel_by_hand():
    codes = np.array([[[3, -4]], [[10, 100]]], np.int16)
    found = weighted_sums(codes, np.array([[2.0, 0.5], [-1.0, 0.0]]))
    assert found.tolist() == [[[11.0, 42.0]], [[-3.0, 4.0]]]
    assert found.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    slices=st.integers(1, 40),
    spectra=st.integers(1, 15),
    size=st.sampled_from([1, 63, 64, 65, 1000, 1025, 4097]),
    code=st.sampled_from(CODES),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_numpy_within_the_bound_of_rounding(slices, spectra, size, code, seed):
    codes, weights = made(np.random.default_rng(seed), slices, spectra, (size,), code)
    sums, sizes = exact(codes, weights)
    assert np.all(np.abs(weighted_sums(codes, weights) - sums) <= rounding_bound(slices) * sizes)


@pytest.mark.parametrize("code", CODES)
def test_bits_depend_neither_on_the_slices_read_at_once_nor_on_the_other_sums(code):
    codes, weights = made(np.random.default_rng(2), 37, 2 * WIDEST + 1, (7, 311), code)
    whole = weighted_sums(codes, weights)
    flat = codes.reshape(37, -1)
    for block in (1, 3, 8, 16):
        sums = np.zeros((len(weights), flat.shape[1]), np.float32)
        for start in range(0, 37, block):
            add_slices(sums, flat[start : start + block], weights[:, start : start + block])
        assert sums.tobytes() == whole.tobytes()
    for k in range(len(weights)):
        assert weighted_sums(codes, weights[k : k + 1]).tobytes() == whole[k].tobytes()
    assert weighted_sums(codes[:, 2:3], weights).tobytes() == whole[:, 2:3].tobytes()


def test_sums_of_many_slices_stay_far_below_the_noise_of_a_flat():
    """Roundings to either side add as sqrt(n): 800 slices of a flat end within u sqrt(800), ten times below 2e-5."""
    codes, _ = made(np.random.default_rng(3), 800, 1, (500,), np.float32)
    codes = 1 + codes / 1000
    found = weighted_sums(codes, np.full((1, 800), 1 / 800))
    error = found[0] / codes.astype(float).mean(axis=0) - 1
    assert np.abs(error - error.mean()).max() < 6 * 2.0**-24 * np.sqrt(800)
    assert np.abs(error).max() < rounding_bound(800)
    assert 4.7e-5 < rounding_bound(800) < 4.8e-5


def test_a_value_that_is_not_a_number_spoils_its_own_pixel_only():
    codes = np.ones((5, 200), np.float32)
    codes[2, 150] = np.nan
    found = weighted_sums(codes, np.ones((2, 5)))
    assert np.flatnonzero(np.isnan(found[0])).tolist() == [150]
    assert np.all(np.delete(found, 150, axis=1) == 5)


@pytest.mark.parametrize(
    ("sums", "codes", "weights", "message"),
    [
        (np.zeros((1, 4), np.float32), np.zeros((2, 4), np.int64), np.zeros((1, 2)), "codes of type int64"),
        (np.zeros((1, 4), np.float32), np.zeros((2, 5), np.int16), np.zeros((1, 2)), "do not belong together"),
        (np.zeros((1, 4), np.float32), np.zeros((2, 4), np.int16), np.zeros((2, 2)), "do not belong together"),
        (np.zeros((1, 4), np.float32), np.zeros((2, 8), np.int16)[:, ::2], np.zeros((1, 2)), "contiguous"),
        (np.zeros((1, 4), np.float64), np.zeros((2, 4), np.int16), np.zeros((1, 2)), "contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(sums, codes, weights, message):
    with pytest.raises(InconsistentGeometry, match=message):
        add_slices(sums, codes, weights)
