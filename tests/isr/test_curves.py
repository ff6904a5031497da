import numpy as np
import pytest

from lsstcal_dask.isr.curves import basis, curve, spline


@pytest.mark.parametrize("start", [True, False])
def test_spline_equals_dense_least_squares(start):
    rng = np.random.default_rng(11)
    mean, weight = rng.normal(0, 1, (3, 150)), rng.uniform(0.5, 2, (3, 150))
    weight[1, 40:60] = 0
    value, variance, freedom = spline(mean, weight, 40, start)
    np.testing.assert_allclose(curve(mean, weight, 40, start), value, atol=1e-12)
    local, first, unit, rough = basis(150, 40, start)
    dense = np.zeros((150, freedom))
    for y in range(150):
        dense[y, first[y] : first[y] + 4] = local[y]
    np.testing.assert_allclose(dense.sum(axis=1), 1)
    np.testing.assert_allclose(unit, dense.T @ dense, atol=1e-12)
    for i in range(3):
        normal = dense.T @ np.diag(weight[i]) @ dense
        covariance = np.linalg.inv(normal + 1e-3 * np.trace(normal) / freedom * rough)
        np.testing.assert_allclose(value[i], dense @ covariance @ dense.T @ (weight[i] * mean[i]), atol=1e-9)
        np.testing.assert_allclose(variance[i], np.diag(dense @ covariance @ dense.T), rtol=1e-9)


def test_knots_are_denser_at_the_start():
    """Knots at rows 3, 8, 20 and 50, and from there as far apart as without them."""
    assert len(basis(1000, 200)[3]) == len(basis(1000, 200, False)[3]) + 4
