"""Smooth maps: nodes, straight lines between them, and the error that leaves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.simulate.grids import on_detector, stretch

DETECTOR = replace(load_camera("mini9").detectors[4], yaw_deg=30.0)


def pixels(detector=DETECTOR):
    ny, nx = detector.shape
    return ccd_to_focal(detector, *np.meshgrid(np.arange(nx), np.arange(ny)))


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_straight_functions_are_exact(step):
    def plane(x, y):
        return 3 + 0.2 * x - 0.7 * y

    found = on_detector(plane, DETECTOR, step)
    assert found.shape == DETECTOR.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plane(*pixels()), atol=2e-6)


@pytest.mark.parametrize("step", [4, 8, 16])
def test_what_bends_is_off_by_an_eighth_of_the_square_of_the_step(step):
    width = 0.4  # mm: 40 pixels

    def wave(x, y):
        return np.sin(x / width)

    off = np.abs(on_detector(wave, DETECTOR, step) - wave(*pixels()))
    # nodes are at most `step` apart along both axes, which are turned by 30 degrees against the wave
    bound = (step * DETECTOR.pixel_mm / width) ** 2 / 8
    assert 0.5 * bound < off.max() < 1.01 * bound + 1e-6


def test_the_function_is_called_on_the_mesh_alone():
    seen = []
    on_detector(lambda x, y: seen.append(np.size(x)) or np.zeros(np.shape(x)), DETECTOR, 64)
    assert seen == [5 * 9]  # 256 x 512 pixels


def test_leading_axes_stay_in_front():
    def two(x, y):
        return np.stack([x, 10 * y])

    found = on_detector(two, DETECTOR, 16)
    assert found.shape == (2, *DETECTOR.shape)
    np.testing.assert_array_equal(found[1], on_detector(lambda x, y: 10 * y, DETECTOR, 16))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 4))
def test_stretch_equals_interpolation_along_one_axis_after_the_other(n, m, seed):
    shape = 3 * n + 1, 2 * m + 3
    rows, columns = np.linspace(0, shape[0] - 1, n), np.linspace(0, shape[1] - 1, m)
    values = np.random.default_rng(seed).random((n, m))
    tall = np.stack([np.interp(np.arange(shape[0]), rows, v) for v in values.T], axis=1)
    wanted = np.stack([np.interp(np.arange(shape[1]), columns, v) for v in tall])
    np.testing.assert_allclose(stretch(values, rows, columns, shape), wanted, atol=1e-6)


def test_a_single_row_is_the_same_everywhere():
    found = stretch(np.array([[1.0, 3.0]]), np.zeros(1), np.array([0.0, 4.0]), (3, 5))
    np.testing.assert_array_equal(found, np.tile([1, 1.5, 2, 2.5, 3], (3, 1)))
