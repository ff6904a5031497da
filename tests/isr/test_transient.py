"""The transient of the first rows, in white noise of one, told by rows about a spline."""

import numpy as np
import pytest
from scipy.fft import dct

from lsstcal_dask.isr import transient as module
from lsstcal_dask.isr.transient import settle

ROWS, SPACING, FRAMES = 1000, 1000, 400
ALL = np.ones(ROWS, bool)


def found(true, seed, use=ALL):
    """What `settle` makes of (y,) or (frame, y) and noise, less what the spline takes of it."""
    noise = np.random.default_rng(seed).standard_normal((FRAMES, ROWS))
    modes = dct((true + noise) * use, norm="ortho", axis=1)
    return settle(modes, np.ones(FRAMES), use, np.ones((FRAMES, ROWS)), SPACING)


def stated(got):
    """Variance (frame, y) where nothing takes any of it away."""
    return got.variance(np.ones((FRAMES, ROWS)))


def shapes(use=ALL):
    return module._decays(use.tobytes(), SPACING).level


def best(width):
    """Mean square error (y,) of the estimate that knows that all five sizes have this width."""
    left = shapes()
    return np.einsum("iy,ij,jy->y", left, np.linalg.inv(left @ left.T + np.eye(5) / width**2), left)


def test_it_is_found_as_well_as_by_who_knows_its_size_and_its_error_is_honest():
    """Within a tenth of the best mean square error in 30 rows: some three numbers of each of 400 frames tell 4 %."""
    sizes = 10 * np.random.default_rng(1).standard_normal((FRAMES, 5))
    true = sizes @ shapes()
    got = found(true, 2)
    square = ((got.level - true)[:, :30] ** 2).mean()
    assert square < 1.12 * best(10)[:30].mean()
    assert stated(got)[:, :30].mean() == pytest.approx(square, rel=0.15)
    assert square < 0.02 * (true[:, :30] ** 2).mean()


def test_noise_is_not_taken_for_it():
    """Five free sizes would take five of the 1000 modes; it takes less than a third of that."""
    got = found(np.zeros(ROWS), 3)
    assert (got.level**2).sum(axis=1).mean() < best(1e6).sum() / 3


def test_one_decay_is_told_by_fewer_numbers_than_five():
    """A decay of 10 rows, which is none of the five, of 4 times the noise: three free numbers err as much."""
    decay = 4 * np.exp(-np.arange(ROWS) / 10.0)
    sizes, *_ = np.linalg.lstsq(shapes().T, decay - decay.mean(), rcond=None)
    true = sizes @ shapes()
    got = found(true, 4)
    assert ((got.level - true) ** 2).sum(axis=1).mean() < 0.6 * best(1e6).sum()


def test_where_no_row_tells_it_is_small_and_its_error_large():
    """A star bleeds over the first 200 rows: what is left of 36 rows' decay is 4e-3 of it, hidden by the noise."""
    use = ALL.copy()
    use[:200] = False
    got = found(np.zeros(ROWS), 5, use)
    assert np.sqrt((got.level[:, 0] ** 2).mean()) < np.sqrt(stated(got)[:, 0].mean())
    assert 1 < np.sqrt(stated(got)[:, 0].mean()) < 100
    np.testing.assert_allclose(got.modes, dct(got.level * use, norm="ortho", axis=1), atol=1e-9)
