"""Filled pixels against the best prediction there is, and against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.instrument import Amplifier, Box, Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.interpolation import InterpolationConfig, interpolate, predict
from lsstcal_dask.pipeline.closed.interpolation import covariance, patterns
from lsstcal_dask.variables import MASK_BITS

BAD, SATURATED, COSMIC, NO_DATA, FILLED = (
    MASK_BITS[name] for name in ("BAD", "SATURATED", "COSMIC_RAY", "NO_DATA", "INTERPOLATED")
)
NOTHING_LOST = np.zeros((20, 20), bool)


@pytest.mark.parametrize("name", patterns())
def test_nearly_as_good_as_a_gaussian_process_that_sees_all(name):
    """Exact error of our weights, and of the best ones from all good pixels, in the field they are made for."""
    config, wanted = InterpolationConfig(), patterns()[name]
    places = np.argwhere(np.ones_like(wanted)).astype(float)
    full = covariance(places, config.sigma)
    bad = wanted.ravel()
    noisy = full[~bad][:, ~bad] + config.noise * np.eye((~bad).sum())
    cross = full[np.ix_(bad, ~bad)]
    oracle = np.diag(full)[bad] - np.einsum("ij,ji->i", cross, np.linalg.solve(noisy, cross.T))  # knows the mean
    response = []  # of every filled pixel to every good one: the prediction is linear
    for index in np.flatnonzero(~bad):
        image = np.zeros(wanted.size)
        image[index] = 1
        response.append(
            predict(image.reshape(wanted.shape), image.reshape(wanted.shape), wanted, NOTHING_LOST)[0].ravel()[bad]
        )
    weights = np.array(response).T
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)  # of the mean, nothing is lost
    ours = np.diag(full)[bad] - 2 * (weights * cross).sum(axis=1) + np.einsum("ij,jk,ik->i", weights, noisy, weights)
    inside = np.all((places[bad] > 3) & (places[bad] < 16), axis=1)
    assert np.sqrt(ours[inside].mean() / oracle[inside].mean()) <= 1.1
    flat = np.sqrt(np.diag(full)[bad][inside].mean())  # error of the mean level in their place
    assert np.sqrt(ours[inside].mean()) < 0.75 * flat


def test_straight_lines_survive():
    y, x = np.mgrid[:20, :20].astype(float)
    image = 100 + 2 * x - 3 * y
    spoilt = np.where(patterns()["column"], 1e9, image)
    found, _, _ = predict(spoilt, np.ones_like(image), patterns()["column"], NOTHING_LOST)
    np.testing.assert_allclose(found[5:-5, 10], image[5:-5, 10], atol=1e-6)
    np.testing.assert_array_equal(found[:, :10], image[:, :10])


def test_wide_trails_are_bridged_along_the_row():
    image = np.tile(np.arange(20.0), (20, 1))
    wanted = np.zeros((20, 20), bool)
    wanted[:, 5:16] = True
    variance = np.where(np.arange(20) < 10, 4.0, 9.0) * np.ones((20, 1))
    found, errors, done = predict(np.where(wanted, 1e9, image), variance, wanted, NOTHING_LOST)
    np.testing.assert_array_equal(done, wanted)
    np.testing.assert_allclose(found[:, 10], 10)
    np.testing.assert_array_equal(errors[:, 10], 9)


def test_where_nothing_is_good_nothing_changes():
    everything = np.ones((20, 20), bool)
    image = np.full((20, 20), 7.0)
    found, errors, done = predict(image, image, everything, NOTHING_LOST)
    assert not done.any()
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(errors, image)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1e5, 1e5))
def test_a_level_is_kept_whatever_the_pattern(seed, level):
    wanted = np.random.default_rng(seed).random((20, 20)) < 0.3
    image = np.full((20, 20), level)
    found, errors, _ = predict(np.where(wanted, np.nan, image), np.full((20, 20), 2.0), wanted, NOTHING_LOST)
    np.testing.assert_allclose(found, level, rtol=1e-9)
    np.testing.assert_array_equal(errors, 2)


def frame(mask):
    box = Box(0, 6, 0, 6)
    none = Box(0, 0, 0, 0)
    amplifier = Amplifier("A", (6, 6), box, none, none, (0, 0), False, False, 1.0, 5.0)
    detector = Detector("R22_S11", 0, "e2v", "e2v", "", (amplifier,), (6, 6), 0.01, (0.0, 0.0), 0.0)
    image = np.full((1, 6, 8), 10, np.float32)
    image[0][mask[0] & (BAD | SATURATED | COSMIC) > 0] = 1e6
    image[mask & NO_DATA > 0] = np.nan
    return Frame(
        "e1", detector, image, np.full(image.shape, 2, np.float32), np.zeros((1, 6), np.float32), mask, "electron"
    )


def test_flags_say_what_was_filled():
    mask = np.zeros((1, 6, 8), np.uint16)
    mask[0, :, 6:] = NO_DATA
    mask[0, 1, 1], mask[0, 2, 3], mask[0, 4, 4], mask[0, 0, 5] = BAD, SATURATED, COSMIC, BAD | NO_DATA
    mask[0, 5, 0] = MASK_BITS["SUSPECT"]
    before = frame(mask)
    found = interpolate(before)
    filled = np.zeros((1, 6, 8), bool)
    filled[0, [1, 2, 4], [1, 3, 4]] = True
    np.testing.assert_array_equal(found.mask, np.where(filled, mask | FILLED, mask))
    np.testing.assert_allclose(found.image[filled], 10, rtol=1e-6)
    assert np.isnan(found.image[0, 0, 5])
    assert found.image[0, 5, 0] == 10  # suspect pixels are left alone
    assert (found.image.dtype, found.variance.dtype, found.mask.dtype) == (np.float32, np.float32, np.uint16)
    assert before.image[0, 1, 1] == 1e6


def test_what_could_not_be_filled_does_not_say_so_and_no_variance_shrinks():
    everything = np.full((1, 6, 8), SATURATED, np.uint16)
    everything[0, :, 6:] = NO_DATA
    found = interpolate(frame(everything))
    np.testing.assert_array_equal(found.mask, everything)
    bright = np.zeros((1, 6, 8), np.uint16)
    bright[0, :, 6:], bright[0, 2, 3] = NO_DATA, SATURATED
    before = frame(bright)
    before.variance[0, 2, 3] = 150e3
    assert interpolate(before).variance[0, 2, 3] == 150e3
