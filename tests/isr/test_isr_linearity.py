import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.linearity import ACCURACY, curve, linearize, linearize_row, measured_signal, tables
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, true_to_measured
from lsstcal_dask.variables import MASK_BITS

SUSPECT = MASK_BITS["SUSPECT"]
LEVEL = np.r_[0.0, 50, 100, 200, 400, 700, np.arange(1e3, 4e3, 500), np.arange(4e3, 120e3, 2e3)]


def product(corrections, level=LEVEL, ceiling=110e3):
    count = len(corrections)
    return xr.Dataset(
        {
            "linearity_level": (("amplifier", "node"), np.tile(np.append(level, np.nan), (count, 1))),
            "linearity_correction": (("amplifier", "node"), [np.append(c, np.nan) for c in corrections]),
            "linearity_ceiling": ("amplifier", np.full(count, ceiling)),
        },
        {"amplifier": [f"C{i:02d}" for i in range(count)]},
    )


def true_curves(count=3):
    detector = load_camera("mini9").detectors[0]
    found = [linearity_truth(4, Nonlinearity(), detector, i, LEVEL) - LEVEL for i in range(count)]
    return [np.r_[0.0, one[1:]] for one in found]


def row(values, one, i=0, variance=4.0):
    """The kernel on one row, through its table."""
    found = tables(one)
    values = np.array(values, np.float32)
    spread, mask = np.full(len(values), variance, np.float32), np.zeros(len(values), np.uint16)
    linearize_row(values, spread, mask, found.table[i], found.per_adu[i], found.ceiling[i], SUSPECT)
    return values, spread, mask


def test_pixels_by_hand():
    # S = 1e-7 m**2 at nodes 1000 apart: Akima through a parabola is the parabola away from the ends
    level = np.arange(0.0, 60e3, 1e3)
    one = product([1e-7 * level**2], level, ceiling=50e3)
    values, variance, mask = row([-20.0, 0.0, 20e3, 55e3, np.nan, 80e3], one)
    np.testing.assert_allclose(values[:4], [-20.0, 0.0, 20e3 + 40.0, 55e3 + 302.5], atol=5e-3)
    assert np.isnan(values[4])
    assert values[5] == np.float32(80e3 + 1e-7 * 59e3**2)  # frozen at the last node
    # 1 + S' = 1 + 2e-7 m, at a cell's resolution
    np.testing.assert_allclose(variance[:4], [4.0, 4.0, 4 * 1.004**2, 4 * 1.011**2], rtol=2e-5)
    assert variance[5] == 4.0
    assert mask.tolist() == [0, 0, 0, SUSPECT, 0, SUSPECT]


def test_law_is_the_akima_spline_frozen_at_both_ends():
    correction = true_curves(1)[0]
    one = curve(np.append(LEVEL, np.nan), np.append(correction, np.nan))
    inside = np.linspace(0, LEVEL[-1], 1001)
    np.testing.assert_array_equal(one(inside), Akima1DInterpolator(LEVEL, correction)(inside))
    assert one(-5.0) == 0
    assert one(1e6) == correction[-1]
    assert one.slope(-5.0) == one.slope(1e6) == 0
    np.testing.assert_allclose(one.slope(30e3), (one(30.01e3) - one(29.99e3)) / 20, rtol=1e-4)


def test_first_nodes_of_a_parabola_leave_no_slope_at_zero():
    level = np.r_[0.0, 100.0, 200.0, np.arange(400.0, 5e3, 300)]
    one = curve(level, np.r_[0.0, 1.0, 4.0, 1e-4 * level[3:] ** 2])
    assert abs(float(one(1e-3))) < 1e-9


@given(st.lists(st.floats(-500, 200e3, width=32), min_size=1, max_size=60), st.integers(0, 2))
def test_kernel_is_the_spline_to_a_thousandth_of_an_adu(values, i):
    one = product(true_curves())
    found, _, mask = row(values, one, i)
    exact = curve(LEVEL, one["linearity_correction"].values[i, :-1])
    given_values = np.array(values, np.float32).astype(np.float64)
    rounding = np.spacing(np.abs(found).astype(np.float32)) / 2  # of the corrected value itself
    assert np.all(np.abs(found - given_values - exact(given_values)) <= ACCURACY + rounding)
    np.testing.assert_array_equal(mask > 0, given_values > 110e3)


def test_every_cell_of_the_table_keeps_the_bound():
    one = product(true_curves())
    found = tables(one)
    level = np.linspace(0, LEVEL[-1], 400_001)
    for i in range(3):
        exact = curve(LEVEL, one["linearity_correction"].values[i, :-1])(level)
        near = np.interp(level * found.per_adu[i], np.arange(found.table.shape[1]), found.table[i, :, 0])
        assert np.abs(near - exact).max() <= ACCURACY
    assert found.table.dtype == found.ceiling.dtype == np.float32


def test_round_trip_through_the_inverse():
    exact = curve(LEVEL, true_curves(1)[0])
    true = np.geomspace(1, 115e3, 500)
    measured = measured_signal(exact, true)
    np.testing.assert_allclose(measured + exact(measured), true, rtol=1e-10)
    back, _, _ = row(measured, product([exact.correction]))
    np.testing.assert_allclose(back, true, rtol=1e-5, atol=ACCURACY)


def test_undoes_what_the_channel_does_and_without_it_all_is_much_worse():
    detector = load_camera("mini9").detectors[0]
    true = np.geomspace(200, 115e3, 400).reshape(1, 20, 20)
    measured = true_to_measured(4, Nonlinearity(), detector, 0, true)
    left = linearize(measured, product(true_curves(1))) / true - 1
    assert np.abs(left).max() < 2e-5  # of the nodes, 2000 adu apart
    assert np.abs(measured / true - 1).max() > 100 * np.abs(left).max()


def test_an_amplifier_without_curve_is_nan_in_both_forms():
    one = product([*true_curves(1), np.full(len(LEVEL), np.nan)])
    one["linearity_level"][1] = np.nan
    images = np.full((2, 2, 3), 1e4)
    found = linearize(images, one)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    assert np.isnan(row([1e4], one, 1)[0]).all()


def test_wrong_curves_are_named():
    with pytest.raises(CalibrationError, match="R22 C10: a linearity curve needs three nodes"):
        curve([0.0, 10.0], [0.0, 1.0], "R22 C10")
    with pytest.raises(CalibrationError, match="ascend from level 0"):
        curve([5.0, 10.0, 20.0], [0.0, 1.0, 2.0])
    with pytest.raises(CalibrationError, match="has no inverse"):
        measured_signal(curve([0.0, 10.0, 20.0, 30.0], [0.0, 20.0, 0.0, 20.0]), [12.0, 25.0])
    with pytest.raises(CalibrationError, match="bends too sharply"):
        tables(product([np.array([0.0, 0.0, 50.0, 0.0, 0.0])], np.array([0.0, 1.0, 1.01, 1.02, 2.0])))
    with pytest.raises(InconsistentGeometry, match="2 images for 1 linearity curves"):
        linearize(np.zeros((2, 1, 1)), product(true_curves(1)))
