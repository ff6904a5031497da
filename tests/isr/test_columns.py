"""Columns that change between bias and frame, made up."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.instrument import Box, load_camera
from lsstcal_dask.isr.columns import column_changes
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig, parallel_means, parallel_pixels
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.stack import StackConfig

CAMERA = load_camera("raft")  # amplifiers of LSST's size
WHOLE = CAMERA.detectors[0]
AMPLIFIER = WHOLE.amplifiers[0]
NY = 100
SIGMA = 4.0  # adu
SMALL = replace(
    AMPLIFIER,
    raw_shape=(NY + 46, 576),
    data=Box(10, 522, 0, NY),
    overscan=Box(522, 576, 0, NY),
    parallel_overscan=Box(10, 522, NY, NY + 46),
)
DETECTOR = replace(WHOLE, amplifiers=(SMALL,))
X = np.arange(512)
STRUCTURE = 30 * np.random.default_rng(0).standard_normal(512)  # adu, of single columns
CHANGE = 6 * np.sin(X / 90)  # adu


def frame(seed, columns=0.0):
    random = np.random.default_rng(seed)
    counts = random.normal(20000, SIGMA, (1, *SMALL.raw_shape))
    counts[0, :, 10:522] += STRUCTURE + columns
    counts += random.normal(0, 5, (1, SMALL.raw_shape[0], 1))  # rows jitter
    return np.round(counts).astype(np.int32)


@pytest.fixture(scope="module")
def bias():
    raw = xr.Dataset(
        {"counts": (("exposure", "amplifier", "y", "x"), np.stack([frame(i) for i in range(20)]))},
        coords={
            "exposure": [f"b{i}" for i in range(20)],
            "time": ("exposure", np.datetime64("2026-01-01T00:00:00", "ns") + np.arange(20) * np.timedelta64(60, "s")),
            "present": ("exposure", np.ones(20, bool)),
            "amplifier": [SMALL.name],
        },
    )
    ((_, made),) = bias_amplifiers(raw, DETECTOR, (NY, 512), StackConfig())
    return made.expand_dims("amplifier").assign_coords(amplifier=[SMALL.name])


def image(counts, bias, on=True):
    config = IsrConfig(overscan=OverscanConfig(method="row"), parallel_overscan=on, edge=0)
    return correct(RawFrame("e1", DETECTOR, 0.0, counts), Site((NY, 512)), {"bias": bias}, config)


def test_pixels_by_hand():
    counts = np.zeros((1, *SMALL.raw_shape))
    counts[0, NY:] += np.arange(46)[:, None] * 10 + 100  # levels of rows
    counts[0, NY:, 10:522] += X
    counts[0, NY:, 522:525] += 1000  # the first columns of the overscan, which are left out
    counts[0, NY : NY + 3, 10:522] += 1000  # and its first rows
    found = parallel_pixels(counts, SMALL, OverscanConfig())
    assert found.shape == (1, 512, 43)
    np.testing.assert_allclose(found[0], np.broadcast_to(X[:, None], (512, 43)), atol=1e-3)


@pytest.mark.parametrize("use", [[True, True, True], [True, False, True]])
def test_means_of_the_parallel_overscan_are_those_of_its_pixels(use):
    counts = np.random.default_rng(4).integers(24980, 25020, (3, NY + 60, 600)).astype(np.uint16)
    expected = parallel_pixels(counts, SMALL, OverscanConfig())[use].mean(axis=(0, 2), dtype=float)
    found = parallel_means(counts, SMALL, OverscanConfig(), np.array(use))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_bias_knows_its_columns(bias):
    rows = 20 * 43
    sigma = SIGMA * np.sqrt((1 + 1 / 51) / rows)
    found = bias["column_level"].values[0] - STRUCTURE
    assert np.abs(found).max() < 5 * sigma
    assert found.std() < 1.2 * sigma


def test_a_change_of_the_columns_is_removed(bias):
    counts = frame(99, CHANGE)
    left = {on: image(counts, bias, on).image[0].mean(axis=0) for on in (True, False)}
    # a column of the image, its bias, and a smooth curve of some ten numbers through 512 columns of 43 rows
    sigma = SIGMA * np.sqrt(1 / NY + 1 / (20 * NY) + 12 / (512 * 43) + 1 / (20 * 43) + 1 / (51 * 43) + 1 / (51 * NY))
    assert left[True].std() < 1.1 * sigma
    assert np.abs(left[True]).max() < 5 * sigma
    assert left[False].std() > 5 * sigma
    assert image(counts, bias).remarks == ()


def test_a_flooded_column_leaves_no_dip(bias):
    counts, width = frame(99, CHANGE), slice(10 + 200, 10 + 240)
    clean = image(counts, bias).image[0].mean(axis=0)
    counts[0, NY:, width] += np.linspace(9000, 3000, 46).astype(int)[:, None]
    found = image(counts, bias).image[0].mean(axis=0)
    # what 40 columns of 512 would have told, and how far the change is from a straight line across them
    bow = 6 / 90**2 * 40**2 / 8
    assert np.abs(found - clean).max() < 5 * SIGMA * np.sqrt(12 / (472 * 43)) + bow


def test_a_frame_that_is_flooded_is_left_alone(bias):
    counts = frame(99)
    before = image(counts, bias, on=False).image
    counts[0, NY:, 10:400] += 5000
    found = image(counts, bias)
    assert found.remarks == ((SMALL.name, "parallel overscan not used: 76% of its columns are flooded"),)
    np.testing.assert_array_equal(found.image, before)
    counts[0, NY:, 10:522] += 5000
    assert "100% of its columns are flooded" in image(counts, bias).remarks[0][1]


def test_what_cannot_be_told_is_remarked(bias):
    counts = frame(99)
    old = bias.drop_vars("column_level")
    assert "build bias again, it has no levels of it" in image(counts, old).remarks[0][1]
    without = replace(DETECTOR, amplifiers=(replace(SMALL, parallel_overscan=Box(0, 0, 0, 0)),))
    change, variance, remarks = column_changes(RawFrame("e", without, 0.0, counts), bias, OverscanConfig())
    assert not change.any()
    assert not variance.any()
    assert "there is none, or none in the bias" in remarks[0][1]


def test_nothing_is_done_unless_it_is_wanted():
    assert not IsrConfig().parallel_overscan
