import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, table, true_to_measured

SEED = 11
LEVELS = np.concatenate([-np.geomspace(1, 100, 20), [0.0], np.geomspace(1e-3, 3e5, 4000)])


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


def test_inverse_is_exact(detector):
    for i in range(4):
        measured = true_to_measured(SEED, Nonlinearity(), detector, i, LEVELS)
        assert np.abs(measured - LEVELS).max() > 50  # there is something to invert
        found = linearity_truth(SEED, Nonlinearity(), detector, i, measured)
        np.testing.assert_allclose(found, LEVELS, rtol=1e-13, atol=1e-8)
        again = true_to_measured(
            SEED, Nonlinearity(), detector, i, linearity_truth(SEED, Nonlinearity(), detector, i, LEVELS)
        )
        np.testing.assert_allclose(again, LEVELS, rtol=1e-13, atol=1e-8)


def test_gauge(detector):
    """m(0) = 0 and m'(0) = 1; nothing happens to what is below zero."""
    for i in range(4):
        step = 1e-3
        below, zero, above = true_to_measured(SEED, Nonlinearity(), detector, i, [-step, 0.0, step])
        assert zero == 0
        assert below == -step
        # the curvature at zero is 2 x (0.01 x 3 pi / 6e4 x a few + 2e-4 e / 1e3): below 2e-5 per adu
        assert abs(above / step - 1) < 2e-5 * step


def test_smooth_part_is_one_percent(detector):
    settings = Nonlinearity(break_slope=0, bump=0)
    signal = np.linspace(1, 2e6, 400_000)
    for i in range(4):
        relative = true_to_measured(SEED, settings, detector, i, signal) / signal - 1
        # steps of 5 adu miss the extreme by nothing that matters
        assert np.abs(relative).max() == pytest.approx(0.01, rel=1e-3)
        # a smooth curve, not noise: no second difference above (3 pi / scale)**2 of the amplitude, generously
        assert np.abs(np.diff(relative, 2)).max() < 0.1 * (10 * 5 / 6e4) ** 2


def test_slope_breaks_where_it_should(detector):
    settings = Nonlinearity(smooth=0, bump=0)
    found = true_to_measured(SEED, settings, detector, 0, [39_000.0, 40_000.0, 41_000.0, 42_000.0])
    assert found[0] == 39_000
    assert found[1] == 40_000
    change = 1 - (found[2] - found[1]) / 1000
    assert 0.001 <= change <= 0.003
    assert found[3] == pytest.approx(40_000 + 2000 * (1 - change), abs=1e-9)


def test_low_light_bump_by_hand(detector):
    settings = Nonlinearity(smooth=0, break_slope=0)
    found = true_to_measured(SEED, settings, detector, 0, [500.0, 1000.0, 2000.0])
    expected = 1 + 2e-4 * np.array([0.5 * np.exp(0.5), 1.0, 2 * np.exp(-1)])
    np.testing.assert_allclose(found / [500, 1000, 2000], expected, rtol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_worst_settings_are_monotonic(detector, seed):
    settings = Nonlinearity(smooth=0.05, modes=8, scale=2e4, break_slope=0.1, break_level=2e4, bump=0.01)
    signal = np.linspace(0, 5e5, 20_001)
    slope = np.diff(true_to_measured(seed, settings, detector, 0, signal)) / np.diff(signal)
    assert slope.min() > 0.5
    measured = true_to_measured(seed, settings, detector, 0, signal)
    np.testing.assert_allclose(linearity_truth(seed, settings, detector, 0, measured), signal, rtol=1e-13, atol=1e-8)


@pytest.mark.parametrize("level", [40e3, 33_333.3])
def test_table_follows_the_curve(detector, level):
    """Straight between nodes 32 adu apart: step**2 / 8 of the curvature of 1e-5 per adu, and float32."""
    settings = Nonlinearity(break_level=level)
    curve = table(SEED, settings, detector, 1)
    assert curve.deviation.dtype == np.float32
    signal = np.linspace(0, 2.6e5, 300_001)
    nodes = np.arange(len(curve.deviation)) * curve.step
    exact = true_to_measured(SEED, settings, detector, 1, signal) - signal
    assert np.abs(np.interp(signal, nodes, curve.deviation) - exact).max() < 2e-3


def test_channels_differ_and_stay_what_they_are(detector):
    curves = [true_to_measured(SEED, Nonlinearity(), detector, i, LEVELS) for i in (3, 2, 1, 0)]
    assert all(np.abs(a - b).max() > 1 for a, b in zip(curves[1:], curves, strict=False))
    np.testing.assert_array_equal(curves[0], true_to_measured(SEED, Nonlinearity(), detector, 3, LEVELS))
    assert np.abs(true_to_measured(SEED + 1, Nonlinearity(), detector, 3, LEVELS) - curves[0]).max() > 1


def test_off_is_neutral(detector):
    off = Nonlinearity(on=False)
    np.testing.assert_array_equal(true_to_measured(SEED, off, detector, 0, LEVELS), LEVELS)
    np.testing.assert_array_equal(linearity_truth(SEED, off, detector, 0, LEVELS), LEVELS)
    assert not table(SEED, off, detector, 0).deviation.any()
