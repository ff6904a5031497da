"""Combination of exposures: kernels against naive formulae, closed loops of Sec. 2.1, chunking."""

import itertools
import math
import os
import re
import subprocess
import sys
import warnings

import dask
import numba
import numpy as np
import pytest
import xarray as xr
from astropy.stats import sigma_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.statistics import (
    Calibration,
    Noise,
    clip_variance_factor,
    clipped_mean,
    combine,
    median,
    median_of_sums,
    robust_mean,
    robust_sigma,
    vectors,
)
from lsstcal_dask.statistics.robust import row_medians
from lsstcal_dask.statistics.stacks import lines

DTYPES = (np.uint16, np.int32, np.float32)


# --- naive formulae, float64 ---------------------------------------------------------------------------


def calibrated(stack, calibration):
    values = stack.astype(np.float64)
    if calibration is None:
        return values
    plane = 0 if calibration.plane is None else calibration.plane.astype(np.float64)
    return (values - calibration.offset[:, :, None] - plane) * calibration.scale[:, None, None]


def naive_median(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=0), np.isfinite(values).sum(axis=0)


def naive_sums(values, group):
    runs = len(values) // group
    edges = np.arange(runs + 1) * len(values) // runs
    means = np.stack([values[a:b].mean(axis=0) for a, b in itertools.pairwise(edges)])
    sizes = np.diff(edges)[:, None, None]
    return naive_median(means)[0], (np.isfinite(means) * sizes).sum(axis=0)


def naive_model(values, scale, noise, k, iterations):
    centre, _ = naive_median(values)
    scale, read = scale[:, None, None], noise.read_variance[:, None, None]
    for _ in range(iterations + 1):
        var = (read + np.maximum(centre / scale, 0) * noise.poisson) * scale**2
        kept = (values - centre) ** 2 < k**2 * var
        weight = np.where(kept, 1 / var, 0)
        with np.errstate(invalid="ignore"):
            total = np.where(kept, values - centre, 0)
            centre = centre + (weight * total).sum(axis=0) / weight.sum(axis=0)
    with np.errstate(divide="ignore"):
        variance = 1 / (weight.sum(axis=0) * clip_variance_factor(k))
    return centre, np.where(kept.any(axis=0), variance, np.nan), kept.sum(axis=0)


def naive_sample(values, k, rounds):
    kept = np.isfinite(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(rounds):
            left = np.where(kept, values, np.nan)
            mean, sigma = np.nanmean(left, axis=0), np.nanstd(left, axis=0)
            kept &= np.abs(values - mean) <= min(k, 1e18) * sigma + 2.4e-7 * np.abs(mean)
        left = np.where(kept, values, np.nan)
        count = kept.sum(axis=0)
        spread = np.where(count > 1, np.nanvar(left, axis=0, ddof=1) / np.maximum(count, 1), np.nan)
        return np.nanmean(left, axis=0), spread / clip_variance_factor(k) ** 2, count


@st.composite
def stacks(draw):
    """Draw a stack, its calibration or None, and the generator's seed; NaN only where the dtype has one."""
    n, ny = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    nx = draw(st.sampled_from([1, 3, 63, 64, 65, 130, 255, 256, 257, 509]))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pedestal = draw(st.sampled_from([0.0, 100.0, 25000.0]))
    stack = rng.normal(pedestal + 50, 4, (n, ny, nx))
    stack[rng.random(stack.shape) < 0.02] += 400
    if dtype is np.float32:
        stack[rng.random(stack.shape) < draw(st.sampled_from([0.0, 0.1, 0.6]))] = np.nan
        stack[:, 0, 0] = np.nan if draw(st.booleans()) else stack[:, 0, 0]
        stack = stack.astype(np.float32)
    else:
        stack = np.rint(np.maximum(stack, 0)).astype(dtype)
    calibration = None
    if draw(st.booleans()):
        plane = rng.normal(20, 5, (ny, nx)).astype(np.float32) if draw(st.booleans()) else None
        offset = (pedestal + rng.normal(0, 1, (n, ny))).astype(np.float32)
        if draw(st.booleans()):
            offset[rng.integers(n), 0] = np.nan
        calibration = Calibration(offset, plane, rng.uniform(0.5, 2, n).astype(np.float32))
    return stack, calibration, pedestal


def close(found, expected, pedestal):
    """Equal to a few roundings of float32 at the pedestal that the arithmetic passed through."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * (pedestal + 100), equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_median_is_the_naive_one(case):
    stack, calibration, pedestal = case
    value, frames = median(stack, calibration)
    expected, count = naive_median(calibrated(stack, calibration))
    assert (value.dtype, frames.dtype) == (np.float32, np.uint16)
    close(value, expected, pedestal)
    np.testing.assert_array_equal(frames, count)


@settings(max_examples=40, deadline=None)
@given(stacks(), st.integers(1, 6))
def test_median_of_sums_is_the_naive_one(case, group):
    stack, calibration, pedestal = case
    group = min(group, len(stack))
    value, frames = median_of_sums(stack, group, calibration)
    expected, count = naive_sums(calibrated(stack, calibration), group)
    close(value, expected, pedestal)
    np.testing.assert_array_equal(frames, count)


@settings(max_examples=60, deadline=None)
@given(stacks(), st.sampled_from([2.5, 4.0, math.inf]), st.integers(0, 2), st.sampled_from([0.0, 0.7]))
def test_model_clip_is_the_naive_one(case, k, iterations, poisson):
    stack, calibration, pedestal = case
    n = len(stack)
    read = np.linspace(14, 20, n).astype(np.float32)
    scale = np.ones(n) if calibration is None else calibration.scale.astype(float)
    value, variance, frames = clipped_mean(stack, calibration, Noise(read, poisson), k=k, iterations=iterations)
    expected = naive_model(calibrated(stack, calibration), scale, Noise(read, poisson), k, iterations)
    same = frames == expected[2]  # a value within a rounding of the limit may fall on either side
    assert same.mean() >= 0.995 or (~same).sum() <= 1
    close(value[same], expected[0][same], pedestal)
    np.testing.assert_allclose(variance[same], expected[1][same], rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(stacks(), st.sampled_from([2.0, 3.0, math.inf]), st.integers(0, 3))
def test_sample_clip_is_the_naive_one(case, k, rounds):
    stack, calibration, pedestal = case
    value, variance, frames = clipped_mean(stack, calibration, k=k, iterations=rounds)
    expected = naive_sample(calibrated(stack, calibration), k, rounds)
    same = frames == expected[2]
    assert same.mean() >= 0.995 or (~same).sum() <= 1
    close(value[same], expected[0][same], pedestal)
    floor = (2e-6 * (pedestal + 100)) ** 2
    np.testing.assert_allclose(variance[same], expected[1][same], rtol=2e-3, atol=floor)


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("rounds", [1, 3])
def test_sample_clip_is_astropys(n, rounds):
    rng = np.random.default_rng(n)
    stack = rng.normal(1000, 4, (n, 20, 150)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.01] += 200
    value, _, frames = clipped_mean(stack, k=3.0, iterations=rounds)
    kept = sigma_clip(stack.astype(float), sigma=3, maxiters=rounds, cenfunc="mean", stdfunc="std", axis=0)
    np.testing.assert_array_equal(frames, kept.count(axis=0))
    np.testing.assert_allclose(value, kept.mean(axis=0), rtol=3e-7)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 60),
    st.sampled_from([1, 16, 37, 200]),
    st.sampled_from([0.02, 0.1, 0.35]),
    st.sampled_from([1.5, 2.5]),
    st.integers(1, 5),
    st.integers(0, 2**16),
)
def test_many_outliers_on_both_sides(n, nx, fraction, k, rounds, seed):
    """Pixels are clipped again and again, in vectors that hold pixels of different rows."""
    rng = np.random.default_rng(seed)
    stack = rng.normal(1000, 4, (n, 7, nx))
    odd = rng.random(stack.shape) < fraction
    stack[odd] += rng.choice([-1, 1], odd.sum()) * rng.uniform(15, 3000, odd.sum())
    stack = stack.astype(np.float32)
    value, variance, frames = clipped_mean(stack, k=k, iterations=rounds)
    expected = naive_sample(stack.astype(float), k, rounds)
    same = frames == expected[2]
    assert same.mean() >= 0.995 or (~same).sum() <= 1
    close(value[same], expected[0][same], 1000)
    np.testing.assert_allclose(variance[same], expected[1][same], rtol=2e-3, atol=(2e-6 * 1000) ** 2)
    noise = Noise(rng.uniform(14, 18, n).astype(np.float32), 0.0)
    value, variance, frames = clipped_mean(stack, None, noise, k=k, iterations=rounds)
    expected = naive_model(stack.astype(float), np.ones(n), noise, k, rounds)
    same = frames == expected[2]
    assert same.mean() >= 0.995 or (~same).sum() <= 1
    close(value[same], expected[0][same], 1000)
    np.testing.assert_allclose(variance[same], expected[1][same], rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("known", [True, False])
def test_a_pixel_is_the_same_among_clean_and_among_clipped_ones(dtype, known):
    """Odd columns have an outlier each: by themselves all are clipped, together every second pixel is."""
    rng = np.random.default_rng(8)
    stack = np.rint(rng.normal(1000, 4, (20, 6, 301))).astype(dtype)
    stack[rng.integers(20, size=150), :, np.arange(1, 301, 2)] += dtype(300)
    noise = Noise(np.full(20, 16, np.float32), 0.0) if known else None
    whole = clipped_mean(stack, None, noise, k=3.5, iterations=3)
    assert (whole[2][:, 1::2] < 20).all()
    assert (whole[2][:, ::2] == 20).mean() > 0.95
    for start in (0, 1):
        for found, expected in zip(
            clipped_mean(stack[:, :, start::2], None, noise, k=3.5, iterations=3), whole, strict=True
        ):
            np.testing.assert_array_equal(found, expected[:, start::2])


# --- hand-computed pixels -------------------------------------------------------------------------------


def test_pixels_by_hand():
    nan = np.nan
    stack = np.array([[1, nan, nan, 4], [3, 5, nan, 4], [100, nan, nan, 4], [4, 8, nan, nan]], np.float32)
    value, frames = median(stack[:, None])
    np.testing.assert_array_equal(value, [[3.5, 6.5, nan, 4]])
    np.testing.assert_array_equal(frames, [[4, 2, 0, 3]])
    noise = Noise(np.ones(4, np.float32), 0.0)
    value, variance, frames = clipped_mean(stack[:, None], None, noise, k=4.0)
    np.testing.assert_allclose(value, [[8 / 3, 6.5, nan, 4]], rtol=1e-6)
    factor = clip_variance_factor(4.0)
    np.testing.assert_allclose(variance * factor, [[1 / 3, 1 / 2, nan, 1 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(frames, [[3, 2, 0, 3]])


def test_weights_are_inverse_variances_at_the_centre():
    stack = np.array([10, 12], np.float32).reshape(2, 1, 1)
    value, variance, _ = clipped_mean(stack, None, Noise(np.array([1, 3], np.float32), 0.0), k=math.inf)
    assert value[0, 0] == pytest.approx((10 + 12 / 3) / (1 + 1 / 3), rel=1e-6)
    assert variance[0, 0] == pytest.approx(0.75, rel=1e-6)


def test_two_values_that_exclude_each_other_leave_nothing():
    stack = np.array([0, 100], np.float32).reshape(2, 1, 1)
    value, variance, frames = clipped_mean(stack, None, Noise(np.ones(2, np.float32), 0.0))
    assert np.isnan(value[0, 0])
    assert np.isnan(variance[0, 0])
    assert frames[0, 0] == 0


def test_a_far_pivot_costs_no_digits():
    """First frames far off: the sums about them would lose the variance of the rest in float32."""
    rng = np.random.default_rng(3)
    stack = rng.normal(50000, 1, (30, 2, 100)).astype(np.float32)
    stack[:3] = -60000
    value, variance, frames = clipped_mean(stack, k=2.5, iterations=3)
    assert (frames <= 27).all()
    expected = naive_sample(stack.astype(float), 2.5, 3)
    np.testing.assert_allclose(value, expected[0], atol=0.05)
    np.testing.assert_allclose(np.median(variance / expected[1]), 1, atol=1e-3)


def test_exposures_out_of_use_leave_no_trace():
    rng = np.random.default_rng(4)
    stack = rng.integers(100, 200, (9, 4, 70)).astype(np.uint16)
    use = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
    noise = Noise(np.linspace(1, 2, 9).astype(np.float32), 0.1)
    kept = Noise(noise.read_variance[use], 0.1)
    for found, expected in (
        (median(stack, use=use), median(stack[use])),
        (median_of_sums(stack, 2, use=use), median_of_sums(stack[use], 2)),
        (clipped_mean(stack, None, noise, use=use), clipped_mean(stack[use], None, kept)),
    ):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    value, variance, frames = clipped_mean(stack, None, noise, use=np.zeros(9, bool))
    assert np.isnan(value).all()
    assert np.isnan(variance).all()
    assert not frames.any()


def test_views_are_read_in_place_and_inputs_are_left_alone():
    rng = np.random.default_rng(5)
    whole = rng.integers(0, 1000, (12, 3, 4, 5, 66)).astype(np.uint16)
    before = whole.copy()
    flat, starts, step = lines(whole[:, 1, 2, 1:4, 2:60])
    assert np.shares_memory(flat, whole)
    assert (starts[1], step) == (3 * 4 * 5 * 66, 66)
    for view in (
        whole[:, 1, 2],
        whole[::2, 0, 0],
        whole[::-1, 0, 0],
        whole[:, 0, 0, :, ::2],
        whole[:, 0, 0, ::2],
        whole[:, 0, 0, ::-1, 3:40],
        whole[:, 0, 0, 2:3, 3:40],
        whole[:1, 2, 3],
    ):
        np.testing.assert_array_equal(median(view)[0], np.median(view, axis=0))
    np.testing.assert_array_equal(whole, before)


@pytest.mark.parametrize("shape", [(1, 5000), (3, 4097), (700, 3), (1, 1)])
@pytest.mark.parametrize("n", [4, 30])
def test_images_of_any_shape(n, shape):
    """Wider than a tile of the kernel, narrower than a vector."""
    stack = np.random.default_rng(1).integers(0, 60000, (n, *shape)).astype(np.uint16)
    np.testing.assert_array_equal(median(stack)[0], np.median(stack, axis=0).astype(np.float32))
    np.testing.assert_allclose(clipped_mean(stack, k=np.inf)[0], stack.mean(axis=0), rtol=1e-6)


def test_a_minority_of_good_exposures_is_not_clipped():
    """Six good ones among nine noisy ones: where eight of nine fall on one side, the median of all is far off."""
    rng = np.random.default_rng(4)
    sigma = np.array([80.0] * 9 + [4.0] * 6, np.float32)
    stack = rng.normal(1000, sigma[:, None, None], (15, 100, 100)).astype(np.float32)
    noise = Noise(sigma**2, 0.0)
    everyone, _, _ = clipped_mean(stack, None, noise)
    value, variance, _ = clipped_mean(stack, None, noise, start=sigma < 10)
    assert np.std((value - 1000) / np.sqrt(variance)) == pytest.approx(1, abs=0.03)
    assert np.std(everyone) > 2 * np.std(value)
    stack[9:, 0] = np.nan  # where none of them is there, the others start
    assert np.isfinite(clipped_mean(stack, None, noise, start=sigma < 10)[0]).all()
    everyone, _, _ = clipped_mean(stack, None, noise)
    alone, _, _ = clipped_mean(stack, None, noise, start=np.ones(15, bool))
    np.testing.assert_array_equal(alone, everyone)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 100, 101, 257])
def test_network_finds_the_middle_of_any_number(n):
    rng = np.random.default_rng(n)
    stack = rng.integers(0, 60000, (n, 1, 64)).astype(np.uint16)
    np.testing.assert_array_equal(median(stack)[0], np.median(stack, axis=0).astype(np.float32))


@pytest.mark.parametrize("n", [5, 20, 70])
def test_a_pixel_depends_on_its_own_values_alone(n):
    """Cut out of the image at any row and column a pixel keeps every bit: no rounding is a neighbour's."""
    rng = np.random.default_rng(n)
    stack = rng.normal(30000, 3, (n, 5, 300)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.02] = -60000
    stack[rng.random(stack.shape) < 0.02] = np.nan
    noise = Noise(np.linspace(9, 10, n).astype(np.float32), 0.1)

    def everything(part):
        return (
            *median(part),
            *clipped_mean(part, None, noise),
            *clipped_mean(part, k=2.5, iterations=3),
        )

    whole = everything(stack)
    for y, x in ((slice(1, 3), slice(None)), (slice(4, 5), slice(37, 201)), (slice(0, 5), slice(291, 300))):
        for found, expected in zip(everything(stack[:, y, x]), whole, strict=True):
            np.testing.assert_array_equal(found, expected[y, x])


# --- errors ---------------------------------------------------------------------------------------------


def test_errors_name_what_disagrees():
    stack = np.zeros((3, 2, 5), np.uint16)
    ones, offset = np.ones(3, np.float32), np.zeros((3, 2), np.float32)
    with pytest.raises(InsufficientInputs, match="empty stack"):
        median(stack[:0])
    with pytest.raises(InconsistentGeometry, match="expected \\(exposure, y, x\\)"):
        median(stack[0])
    with pytest.raises(InconsistentGeometry, match="float64"):
        median(stack.astype(float))
    with pytest.raises(InconsistentGeometry, match="65536 exposures"):
        median(np.zeros((65536, 1, 1), np.uint16))
    with pytest.raises(InconsistentGeometry, match=r"offset has shape \(2, 2\)"):
        median(stack, Calibration(offset[:2], None, ones))
    with pytest.raises(InconsistentGeometry, match=r"scale has shape \(2,\)"):
        median(stack, Calibration(offset, None, ones[:2]))
    with pytest.raises(InconsistentGeometry, match=r"plane has shape \(3, 2\)"):
        median(stack, Calibration(offset, offset, ones))
    with pytest.raises(InconsistentGeometry, match="read_variance"):
        clipped_mean(stack, None, Noise(ones[:1], 0.0))
    with pytest.raises(InconsistentGeometry, match="use has shape"):
        median(stack, use=[True])
    with pytest.raises(InconsistentGeometry, match="k=0"):
        clipped_mean(stack, k=0)
    with pytest.raises(InconsistentGeometry, match="iterations=-1"):
        clipped_mean(stack, iterations=-1)
    with pytest.raises(InsufficientInputs, match="sums of 4 exposures from 3"):
        median_of_sums(stack, 4)


# --- closed loops of Sec. 2.1 ---------------------------------------------------------------------------

SIGMAS = (0.4, 1.0, 3.6)
N_PIXELS = 64 * 1500


def bias_frames(n, sigma, glitches, seed=7):
    """Digitised bias frames of one row each 64 pixels, the truth spread evenly over a digitisation step."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(24990, 25010, (1500, 64)).astype(np.float32)
    frames = rng.normal(truth, sigma, (n, 1500, 64))
    if glitches:
        frames[rng.random(frames.shape) < 0.01] += 50 * sigma
    stack = np.rint(frames).astype(np.uint16)
    offset = np.full((n, 1500), 24990, np.float32)
    return stack, Calibration(offset, None, np.ones(n, np.float32)), truth - np.float32(24990)


def model(n, sigma):
    return Noise(np.full(n, sigma**2 + 1 / 12, np.float32), 0.0)


@pytest.mark.parametrize("n", [25, 100])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_clipped_mean_reaches_the_bound(n, sigma):
    stack, calibration, truth = bias_frames(n, sigma, glitches=True)
    value, variance, frames = clipped_mean(stack, calibration, model(n, sigma))
    error = value - truth
    bound = math.sqrt((sigma**2 + 1 / 12) / n)
    assert np.sqrt(np.mean(error**2)) <= 1.05 * bound
    assert abs(error.mean()) < 0.05 * sigma
    assert 0.97 < np.std(error / np.sqrt(variance)) < 1.03
    assert abs(frames.mean() / n - 0.99) < 0.002


@pytest.mark.parametrize("sigma", SIGMAS)
def test_without_a_clip_the_glitches_bias(sigma):
    """The step that does nothing is caught: 1 % of 50 sigma is half a sigma."""
    stack, calibration, truth = bias_frames(25, sigma, glitches=True)
    value, _, _ = clipped_mean(stack, calibration, model(25, sigma), k=math.inf)
    assert abs((value - truth).mean()) > 0.4 * sigma


def expected_rms(n, sigma, group):
    """Median of sums: noise and the floor of the steps.

    Below one unit the digitisation variance of the single frames, 1/12, is not small against sigma**2
    and enters the sums as noise: no estimator made of sums escapes it.
    """
    digitisation = 1 / 12 if sigma < 1 and group > 1 else 0
    return math.sqrt(1.57 * (sigma**2 + digitisation) / n + 0.083 / group**2)


@pytest.mark.parametrize("n", [25, 100])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("group", [1, 3, 5])
def test_sums_make_the_digitisation_finer(n, sigma, group):
    stack, calibration, truth = bias_frames(n, sigma, glitches=False)
    value, _ = median_of_sums(stack, group, calibration)
    rms = np.sqrt(np.mean((value - truth) ** 2))
    assert rms <= 1.05 * expected_rms(n, sigma, group)


@pytest.mark.parametrize("n", [25, 100])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("group", [1, 3])
def test_glitches_do_not_bias_a_median(n, sigma, group):
    stack, calibration, truth = bias_frames(n, sigma, glitches=True)
    value, _ = median_of_sums(stack, group, calibration)
    assert abs((value - truth).mean()) < 0.05 * sigma
    rms = np.sqrt(np.mean((value - truth) ** 2))
    assert rms <= 1.05 * expected_rms(n, sigma, group)


@pytest.mark.parametrize("k", [3.0, 4.0])
@pytest.mark.parametrize("known", [True, False])
def test_variance_accounts_for_the_clip(k, known):
    """Pulls of 96,000 pixels: the width is known to 1/sqrt(192,000) = 0.23 %."""
    rng = np.random.default_rng(11)
    stack = rng.normal(0, 4, (60, 1500, 64)).astype(np.float32)
    noise = Noise(np.full(60, 16, np.float32), 0.0) if known else None
    value, variance, _ = clipped_mean(stack, None, noise, k=k, iterations=3)
    if known:
        assert 0.98 < np.std(value / np.sqrt(variance)) < 1.02
    else:  # of the mean variance, for that of 60 values scatters by itself
        assert 0.98 < np.std(value) / np.sqrt(variance.mean()) < 1.02


def test_poisson_pulls_and_no_weighting_bias():
    """Flats of unequal exposure at 500 electrons: weights at each noisy value would be low by 1/500."""
    rng = np.random.default_rng(12)
    n, gain, rate = 20, 1.5, 500.0
    exposure = np.linspace(0.5, 1.5, n)
    electrons = rng.poisson(rate * exposure[:, None, None], (n, 1500, 64)) + rng.normal(0, 6, (n, 1500, 64))
    stack = (electrons / gain).astype(np.float32)
    scale = (gain / exposure).astype(np.float32)
    calibration = Calibration(np.zeros((n, 1500), np.float32), None, scale)
    noise = Noise(np.full(n, (6 / gain) ** 2, np.float32), 1 / gain)
    value, variance, _ = clipped_mean(stack, calibration, noise)
    error = value - rate
    assert 0.97 < np.std(error / np.sqrt(variance)) < 1.03
    # skewness of the Poisson part, cut at +-4 sigma, is left; weights at the pixel would give -1
    assert abs(error.mean()) < 0.1


# --- robust helpers -------------------------------------------------------------------------------------


def test_robust_helpers():
    rng = np.random.default_rng(13)
    a = rng.normal(1000, 4, (300, 400))
    a[rng.random(a.shape) < 0.02] = 5000
    a[rng.random(a.shape) < 0.02] = np.nan
    # a MAD of 392 values scatters by 1.17/sqrt(784) = 4.2 %, 2 % of outliers raise it by 2.5 %
    assert np.abs(robust_sigma(a, axis=1).mean() / 4 - 1) < 0.035
    assert robust_sigma(a) == pytest.approx(4, rel=0.035)
    mean = robust_mean(a, 4.0, 4.0, axis=1)
    assert mean.shape == (300,)
    assert np.std(mean) < 1.1 * 4 / math.sqrt(384)
    np.testing.assert_allclose(robust_mean(a, np.full(400, 4.0), 4.0, axis=0), 1000, atol=1.2)
    assert robust_mean(a, 4.0) == pytest.approx(1000, abs=0.1)
    assert robust_mean(np.array([1.0, 2.0, 3.0, 100.0]), 1.0, 2.0) == pytest.approx(2.0)
    empty = np.full((2, 3), np.nan)
    assert np.isnan(robust_sigma(empty, axis=1)).all()
    assert np.isnan(robust_mean(empty, 1.0, axis=1)).all()


def test_clip_variance_factor_is_the_published_one():
    low = [round(100 * (1 - math.sqrt(clip_variance_factor(k))), 2) for k in (2, 3, 4)]
    assert low == pytest.approx([12.0, 1.34, 0.05], abs=0.06)
    assert clip_variance_factor(math.inf) == 1


# --- labelled wrapper -----------------------------------------------------------------------------------


def amplifiers(n=6):
    rng = np.random.default_rng(21)
    counts = xr.DataArray(
        rng.integers(900, 1100, (n, 2, 3, 4, 70)).astype(np.uint16),
        dims=("exposure", "detector", "amplifier", "y", "x"),
        coords={"amplifier": ["C00", "C01", "C02"], "exposure": np.arange(n)},
        attrs={"units": "adu"},
    )
    accepted = np.ones((n, 2, 3), bool)
    accepted[2, 1, 1] = False
    terms = xr.Dataset(
        {
            "overscan": (("exposure", "detector", "amplifier", "y"), rng.normal(900, 1, (n, 2, 3, 4))),
            "plane": (("detector", "amplifier", "y", "x"), rng.normal(0, 1, (2, 3, 4, 70))),
            "scale": (("exposure",), np.linspace(1, 2, n)),
            "read_variance": (("exposure", "amplifier"), np.full((n, 3), 3000.0)),
            "poisson": (("detector", "amplifier"), np.full((2, 3), 0.5)),
            "accepted": (("exposure", "detector", "amplifier"), accepted),
        }
    )
    return counts, terms


def refuse(*args, **kwargs):
    raise AssertionError("building the graph computed something")


@pytest.mark.parametrize("method", ["clipmean", "median", "sums"])
@pytest.mark.parametrize("chunks", [{"amplifier": 1}, {"detector": 1}, {"detector": 1, "amplifier": 2}, {}])
def test_any_chunking_equals_numpy(method, chunks):
    counts, terms = amplifiers()
    expected = combine(counts, method, terms, "electron/s")
    with dask.config.set(scheduler=refuse):
        lazy = combine(counts.chunk(chunks), method, terms.chunk(), "electron/s")
    assert lazy.chunks
    xr.testing.assert_identical(lazy.compute(scheduler="sync"), expected)
    assert expected.image.dims == ("detector", "amplifier", "y", "x")
    assert expected.variance.attrs["units"] == "(electron/s)**2"
    assert (expected.image.dtype, expected.frames.dtype) == (np.float32, np.uint16)
    assert np.isfinite(expected.variance).all()
    assert expected.frames[1, 1].max() == 5


def test_wrapper_is_the_kernel():
    counts, terms = amplifiers()
    calibration = Calibration(terms.overscan[:, 1, 1].data, terms["plane"][1, 1].data, terms.scale.data)
    noise = Noise(terms.read_variance[:, 1].data, 0.5)
    value, variance, frames = clipped_mean(
        counts.data[:, 1, 1], calibration, noise, k=3.0, iterations=2, use=terms.accepted.data[:, 1, 1]
    )
    found = combine(counts, terms=terms, k=3.0, iterations=2)[{"detector": 1, "amplifier": 1}]
    np.testing.assert_array_equal(found.image, value)
    np.testing.assert_array_equal(found.variance, variance)
    np.testing.assert_array_equal(found.frames, frames)


def test_wrapper_without_terms_and_without_leading_dimensions():
    counts, _ = amplifiers()
    one = counts[:, 0, 0]
    found = combine(one, "median")
    np.testing.assert_array_equal(found.image, np.median(one, axis=0))
    assert np.isnan(found.variance).all()
    dead = combine(counts, "median", xr.Dataset({"accepted": ("exposure", np.zeros(6, bool))}))
    assert np.isnan(dead.image).all()


@pytest.mark.parametrize(("group", "n"), [(1, 31), (3, 33)])
def test_variance_of_medians(group, n):
    """Against the scatter of 96,000 pixels; the formula is asymptotic, good to a few per cent."""
    sigma = 3.6
    stack, calibration, truth = bias_frames(n, sigma, glitches=False)
    counts = xr.DataArray(stack, dims=("exposure", "y", "x"))
    terms = xr.Dataset(
        {
            "overscan": (("exposure", "y"), calibration.offset),
            "read_variance": ("exposure", np.full(n, sigma**2 + 1 / 12)),
        }
    )
    found = combine(counts, *(("median", terms) if group == 1 else ("sums", terms)))
    pulls = (found.image.values - truth) / np.sqrt(found.variance.values)
    assert 0.95 < np.std(pulls) < 1.03


def test_wrapper_errors_name_the_remedy():
    counts, terms = amplifiers()
    for dim in ("exposure", "y", "x"):
        with pytest.raises(InconsistentGeometry, match=rf"{dim}: call \.chunk\(exposure=-1, y=-1, x=-1\)"):
            combine(counts.chunk({dim: 2}))
    with pytest.raises(InconsistentGeometry, match="overscan is split along y"):
        combine(counts, terms=terms.chunk({"y": 2}))
    with pytest.raises(InconsistentGeometry, match="counts lacks dimensions"):
        combine(counts.rename(exposure="time"))
    with pytest.raises(InconsistentGeometry, match="method 'mode'"):
        combine(counts, "mode")
    with pytest.raises(InconsistentGeometry, match=r"\['gian'\]"):
        combine(counts, terms=xr.Dataset({"gian": 1.0}))
    with pytest.raises(InconsistentGeometry, match=r"options \['k'\]"):
        combine(counts, "median", k=3)


# --- compilation ----------------------------------------------------------------------------------------


def test_nothing_is_compiled_on_import_and_the_loops_are_vectors(tmp_path):
    """Read the machine code of a fresh compilation: packed minima, no masked stores."""
    program = """
import numpy as np
from lsstcal_dask.statistics import kernels as s, median
assert not s.run.signatures
median(np.zeros((9, 1, 64), np.uint16))
clips = "_moments", "_whole_sample", "_clip_sample", "_whole_model", "_clip_model", "_store_some"
for name in ("_calibrate", "middle", "fill", *clips, "_store", "run"):
    f = getattr(s, name)
    print("==", name)
    print("\\n".join(f.inspect_asm().values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    parts = dict(zip(*[iter(re.split(r"== (\w+)\n", result.stdout)[1:])] * 2, strict=True))
    if "ymm" not in result.stdout:
        pytest.skip("not an x86 with AVX")
    assert len(re.findall(r"\bvminps\b", parts["middle"])) >= 5 + 19 + 63  # sorters of 4, 8 and 16
    assert re.search(r"\bvcvtdq2ps\b.*%[yz]mm", parts["_calibrate"])
    assert re.search(r"\bvfmadd\w*ps\b.*%[yz]mm", parts["_moments"])
    assert re.search(r"\bvcmp\w*ps\b.*%[yz]mm", parts["_moments"])
    assert re.search(r"\bvsqrtps\b", parts["_clip_sample"])
    assert re.search(r"\bvdivps\b", parts["_clip_model"])
    for name, code in parts.items():
        assert not re.search(r"vmaskmovps\s+%ymm\d+, %ymm\d+, ", code), f"masked store in {name}"


def test_compiles_where_no_cache_folder_is_writable(monkeypatch):
    genuine = numba.njit

    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return genuine(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert vectors.compiled(lambda a: a + 1)(2) == 3


@pytest.mark.parametrize("columns", [1, 2, 7, 100])
def test_row_medians_are_numpys(columns):
    values = np.random.default_rng(columns).normal(size=(4, columns))
    values[2, 0] = np.nan
    np.testing.assert_array_equal(row_medians(values), np.median(values, axis=1))
