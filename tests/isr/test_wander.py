"""What row means hold besides noise: nothing, jitter, a wander, and rows that have no mean."""

import numpy as np
import pytest
from scipy.fft import idct

from lsstcal_dask.isr import wander as module
from lsstcal_dask.isr.wander import follow_wander

ROWS, NOISE = 1000, 0.5


K = np.arange(1, ROWS)
POWER = ROWS * 6 / np.pi**2 / K**2  # of the modes of a wander of variance 1, near to a random walk


def made(seed, wander=0.0, jitter=0.0, frames=12):
    """True levels (frame, row), and means with noise."""
    random = np.random.default_rng(seed)
    modes = np.zeros((frames, ROWS))
    modes[:, 1:] = wander * np.sqrt(POWER) * random.standard_normal((frames, ROWS - 1))
    true = idct(modes, norm="ortho", axis=1) + jitter * random.standard_normal((frames, ROWS))
    return true, true + NOISE * random.standard_normal(true.shape)


def follow(mean, good=None, freedom=1):
    good = np.ones(mean.shape, bool) if good is None else good
    return follow_wander(mean, good, np.full(mean.shape, NOISE**2), freedom, ROWS)


def test_noise_alone_is_not_followed():
    """At most a percent of its variance: one of a hundred degrees of freedom."""
    _, mean = made(1)
    value, variance = follow(mean)
    assert (value**2).mean() < 0.01 * NOISE**2
    assert variance.mean() < 0.02 * NOISE**2


@pytest.mark.parametrize("jitter", [0.3, 1.0, 20.0])
def test_jitter_is_weighed_against_noise(jitter):
    """The best estimate of independent numbers keeps jitter**2 / (jitter**2 + noise**2) of each; 12 000 tell 1 %."""
    true, mean = made(2, jitter=jitter)
    value, variance = follow(mean)
    best = jitter**2 * NOISE**2 / (jitter**2 + NOISE**2)
    assert ((value - true) ** 2).mean() < 1.05 * best
    assert variance.mean() == pytest.approx(best, rel=0.1)


def test_a_wander_is_followed_and_its_error_known():
    """Within a tenth of the filter that knows the powers, which leaves of each mode P N / (P + N).

    12 x 77 modes tell that to 5 %. The error it states is right to an eighth. Not followed, all of the wander is left.
    """
    true, mean = made(3, wander=1.0)
    value, variance = follow(mean)
    left, best = ((value - true) ** 2).mean(), (POWER * NOISE**2 / (POWER + NOISE**2)).sum() / ROWS
    assert left < 1.1 * best
    assert (true**2).mean() > 20 * left
    assert variance.mean() == pytest.approx(left, rel=0.25)


def test_rows_without_a_mean_are_filled_from_their_neighbours():
    """The best prediction of 40 rows from all others is that of a Gaussian process that knows the powers.

    Each of 48 gaps has two or three independent errors, whose mean square is known to 12 %: 1.5 is four of that.
    """
    true, mean = made(4, wander=1.0, frames=48)
    good = np.ones(mean.shape, bool)
    good[:, 500:540] = False
    value, variance = follow(np.where(good, mean, 1e6), good)
    modes = idct(np.eye(ROWS), norm="ortho", axis=1)[1:]
    covariance = (modes.T * POWER) @ modes
    gap, rest = ~good[0], good[0]
    noisy = covariance[np.ix_(rest, rest)] + NOISE**2 * np.eye(rest.sum())
    cross = covariance[np.ix_(gap, rest)]
    best = np.diag(covariance[np.ix_(gap, gap)] - cross @ np.linalg.solve(noisy, cross.T)).mean()
    assert ((value - true)[:, gap] ** 2).mean() < 1.5 * best
    assert (variance[:, 500:540] > variance[:, 300:301]).all()
    again, _ = follow(np.where(good, mean, np.nan), good)
    np.testing.assert_array_equal(again, value)


def test_the_variance_of_a_gap_is_that_of_its_nearest_row():
    """1 - cos**2 of one mode, of power 1 over the noise, at 1 and 2 rows from rows that are used."""
    powers, use = np.zeros((1, 20)), np.ones(20, bool)
    powers[0, 3], use[[9, 10, 18, 19]] = 20.0, False
    found = module._unknown(powers, use)
    assert not found[0, use].any()
    far = 1 - np.cos(3 * np.pi / 20 * np.array([1, 1, 1, 2])) ** 2
    np.testing.assert_allclose(found[0, ~use], far)


def test_frames_without_noise_or_rows_are_left_alone():
    _, mean = made(5, frames=3)
    good = np.ones(mean.shape, bool)
    good[1, 3:] = False
    own = np.full(mean.shape, NOISE**2)
    own[0] = 0
    value, variance = follow_wander(mean, good, own, 4, ROWS)
    assert not value[:2].any()
    assert not variance[:2].any()
    assert np.isfinite(value).all()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_models_are_chosen_in_single_precision_as_in_double(size):
    """However large the powers, whose rounding in float32 is then more than what models differ by."""
    power = (size * np.random.default_rng(3).normal(size=(5, 2002)) / np.arange(1, 2003)) ** 2 + 1e-3
    own = np.full(5, 1e-4)
    models, edges = module._models(2002, 8), module._blocks(2002, 8)
    cost = np.column_stack([np.add.reduceat(power, edges[:-1], axis=1) / own[:, None], np.ones(5)]) @ models.inverse.T
    weight = np.exp(-0.5 * (cost - cost.min(axis=1, keepdims=True)))
    weight /= weight.sum(axis=1, keepdims=True)
    found = module._likely(power, own, 8)
    np.testing.assert_allclose(found.smooth, weight @ (models.wander * models.inverse[:, :-1]), rtol=1e-3)
    np.testing.assert_allclose(found.wander, weight @ models.wander, rtol=1e-2)
