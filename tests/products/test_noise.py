"""Error of the read noise against repetitions, and a median of sums of too few exposures."""

import numpy as np
import pytest
from making import SEED

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.stack import StackConfig, Transform, combine_amplifier

AMPLIFIER = load_camera("mini1").detectors[0].amplifiers[0]
NOISE = 4.0


def biases(seed, frames, noise=NOISE):
    """Raw frames (n, y, x) of nothing but noise about a level, adu."""
    rng = np.random.default_rng([SEED, seed])
    return np.rint(1000 + rng.normal(0, noise, (frames, *AMPLIFIER.raw_shape))).astype(np.uint16)


def combine(counts, **settings):
    return combine_amplifier(counts, AMPLIFIER, Transform(np.ones(len(counts))), StackConfig(**settings))


@pytest.mark.parametrize("frames", [3, 8])
def test_read_noise_error_is_the_scatter_over_repetitions(frames):
    """The standard deviation of n repetitions is itself known to 1 / sqrt(2 (n - 1))."""
    n = 100
    found = [combine(biases(seed, frames)) for seed in range(n)]
    values = np.array([one.read_noise for one in found])
    error = np.mean([one.read_noise_error for one in found])
    assert np.std(values, ddof=1) / error == pytest.approx(1, abs=3.5 / np.sqrt(2 * (n - 1)))
    expected = np.hypot(NOISE, 1 / np.sqrt(12))
    assert np.mean(values) == pytest.approx(expected, abs=4 * error / np.sqrt(n))


@pytest.mark.parametrize(("frames", "group"), [(14, 3), (9, 2)])
def test_sums_of_too_few_exposures_are_refused(frames, group):
    with pytest.raises(InsufficientInputs, match=f"5 sums of {group}, {5 * group} exposures, and there are {frames}"):
        combine(biases(0, frames), method="sums", group=group)


@pytest.mark.parametrize(("frames", "group"), [(15, 3), (10, 2), (30, 5)])
def test_variance_of_sums_is_the_scatter_of_the_pixels(frames, group):
    """Little noise, so that the lattice of the integers counts; 4 sigma of the scatter of all pixels."""
    pulls = []
    for seed in range(6):
        found = combine(biases(seed, frames, noise=1.5), method="sums", group=group)
        assert found.method == "sums"
        pulls.append((found.value - found.value.mean()) / np.sqrt(found.variance))
    # the formula of the median's variance is good to some per cent for so few sums
    assert np.std(pulls) == pytest.approx(1, abs=0.05 + 4 / np.sqrt(2 * np.size(pulls)))
