"""Gains compared across amplifiers and through time."""

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.products.history import common_series, compare_gains, find_changes


def series(seed, n=40, error=1e-3):
    rng = np.random.default_rng(seed)
    return np.arange(n, dtype=float), 1.5 * (1 + rng.normal(0, error, n)), np.full(n, 1.5 * error)


def test_nothing_is_found_in_noise():
    """Forty epochs have 40 places for a step; 5 sigma are passed by chance in one of 40,000 series."""
    assert not any(find_changes(*series(seed)) for seed in range(200))


def test_a_jump_of_three_per_mille_is_found_at_its_place():
    for seed in range(40):
        time, value, error = series(seed)
        value[25:] *= 1.003
        (found,) = find_changes(time, value, error)
        assert found.kind == "jump"
        assert abs(found.at - 25) <= 2  # a step of three errors of an epoch can be misplaced
        assert abs(found.size - 0.003) < 4 * found.error
        assert found.sigma > 5
        # errors of the means of 25 and of 15 epochs
        assert found.error == pytest.approx(1e-3 * np.sqrt(1 / 25 + 1 / 15), rel=0.05)


def test_two_jumps_and_missing_epochs():
    time, value, error = series(3)
    value[10:30] *= 0.99
    value[[0, 15]], error[7] = np.nan, 0.0
    found = find_changes(time, value, error)
    assert [(c.kind, c.at) for c in found] == [("jump", 10), ("jump", 30)]
    assert found[0].size == pytest.approx(-0.01, abs=4 * found[0].error)


def test_a_drift_is_no_jump():
    time, value, error = series(4)
    value *= 1 + 0.005 * time / time[-1]
    (found,) = find_changes(time, value, error)
    assert (found.kind, found.at) == ("drift", 0)
    assert found.size == pytest.approx(0.005, abs=4 * found.error)
    assert found.error == pytest.approx(1e-3 * np.sqrt(12 / 40), rel=0.1)


def test_two_epochs_can_only_jump():
    (found,) = find_changes([0, 1], [1.5, 1.52], [1e-3, 1e-3])
    assert (found.kind, found.at) == ("jump", 1)
    assert find_changes([0], [1.5], [1e-3]) == []
    with pytest.raises(InconsistentGeometry, match="in order"):
        find_changes([1, 0], [1, 1], [1, 1])
    with pytest.raises(InconsistentGeometry, match="one series"):
        find_changes([0, 1], [1.0], [1.0])


def test_amplifiers_of_a_ccd_in_common_by_hand():
    value = np.array([[1.0, 2.0, np.nan], [1.1, 2.2, 3.0], [np.nan, np.nan, np.nan], [1.1, 2.2, 3.3]])
    found, error = common_series(value, 0.01 * value)
    np.testing.assert_allclose(found[[1, 3]] / found[0], 1.1)  # the third amplifier has no first epoch
    np.testing.assert_allclose(error[[0, 1, 3]], 0.01 / np.sqrt(2))
    assert np.isnan(found[2])
    assert np.isnan(common_series(value[:, 2:] * np.nan, value[:, 2:])).all()


def ratios(seed, n=16, scatter=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(1.5, 0.05, n)
    second = truth * 1.01 * (1 + rng.normal(0, scatter, n))
    return truth * (1 + rng.normal(0, 1e-3, n)), truth * 1e-3, second * (1 + rng.normal(0, 2e-3, n)), second * 2e-3


def test_a_common_factor_is_no_disagreement():
    found = [compare_gains(*ratios(seed)) for seed in range(200)]
    pulls = np.array([(f.ratio - 1 / 1.01) / f.error for f in found])
    assert abs(pulls.mean()) < 3.5 / np.sqrt(200)
    assert pulls.std() == pytest.approx(1, abs=3.5 / np.sqrt(400))
    assert np.mean([f.chi2 / f.dof for f in found]) == pytest.approx(1, abs=3.5 * np.sqrt(2 / 15 / 200))
    more = [compare_gains(*ratios(seed, scatter=0.01)).scatter for seed in range(200)]
    assert np.mean(more) == pytest.approx(0.01, rel=0.1)


def test_one_amplifier_that_differs_is_named():
    first, a, second, b = ratios(1)
    second[6] *= 1.05
    first[2] = np.nan
    found = compare_gains(first, a, second, b)
    assert found.worst == 6
    assert found.sigma < -10
    assert found.dof == 14
    with pytest.raises(InsufficientInputs, match="1 amplifiers have both"):
        compare_gains(first[2:4], a[2:4], second[2:4], b[2:4])
