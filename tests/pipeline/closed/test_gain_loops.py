"""Closed loops of gains at their smallest."""

import numpy as np
import pytest

from lsstcal_dask.pipeline.closed import continuity, gain, transfer
from lsstcal_dask.pipeline.closed.fluctuations import flat_and_twin
from lsstcal_dask.pipeline.closed.transfer import Channel, twin_transfer
from lsstcal_dask.products.pairs import pair_gain
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter, area_coefficients


def by_name(targets):
    found = {one.name: one for one in targets}
    assert len(found) == len(targets)
    assert all(np.isfinite(one.measured) for one in targets)
    return found


def test_moments_of_a_flat_and_of_its_twin():
    """Of 2**18 pixels a variance is known to 0.28 % (one sigma), a mean to 0.2 % of the scatter of a pixel."""
    random, level, shape = np.random.default_rng(1), 50e3, (512, 512)
    flat, twin = flat_and_twin(random, BrighterFatter(), "e2v", level, shape)
    n = flat.size
    for image in (flat, twin):
        assert image.mean() == pytest.approx(level, abs=4 * np.sqrt(level / n))
    assert twin.var() / level == pytest.approx(1, abs=4 * np.sqrt(2 / n))
    assert np.mean((twin[1:] - level) * (twin[:-1] - level)) / level == pytest.approx(0, abs=4 / np.sqrt(n))
    # to first order the variance falls by the share a_00 of the level; half as much of it comes back at second order
    strength = area_coefficients(BrighterFatter(), "e2v").min() * level
    assert flat.var() / level == pytest.approx(1 + strength, abs=strength**2 + 4 * np.sqrt(2 / n))
    assert np.corrcoef(flat.ravel(), twin.ravel())[0, 1] > 0.99
    still, twin = flat_and_twin(random, BrighterFatter(strength=0.0), "e2v", level, (64, 64))
    np.testing.assert_allclose(still, twin, atol=0.1)  # float32 of 5e4


def test_the_twin_takes_the_scatter_of_a_gain_away():
    """Six small amplifiers: differences to the twins scatter by a third of the gains or less, about zero."""
    found = [twin_transfer(i, BrighterFatter(), Channel("e2v"), (128, 128)) for i in range(6)]
    bias = np.array([one.bias for one in found])
    own = np.array([one.own.model.gain / 1.5 - 1 for one in found])
    assert bias.std() < own.std() / 3
    # steps that leave 5e-4 of the variance may move a gain by as much
    assert abs(bias.mean()) < 5e-4 + 4 * bias.std() / np.sqrt(6)
    assert own.std() < 2 * np.mean([one.bound for one in found])


def test_without_the_covariance_model_the_gain_is_far_off():
    """Variance over mean of one bright pair, where the model knows better by far: a tenth too high."""
    random, level = np.random.default_rng(2), 80e3
    first, second = (flat_and_twin(random, BrighterFatter(), "e2v", level, (256, 256))[0] for _ in range(2))
    assert pair_gain(first, second, 0.0).gain - 1 > 0.1


def test_transfer():
    found = by_name(transfer.measure(2, large=(128, 128), many=2))
    assert len(found) == 6
    assert abs(found["photon transfer, gain: relative bias"].measured) < 2e-3
    assert all(one.verdict != "fail" for one in found.values() if "pulls" in one.name)


@pytest.mark.slow
def test_gain():
    """Eight exposures: 100 hits in an amplifier of mini9, which tell a gain to 1.4e-3 and the scatter to a fifth."""
    found = by_name(gain.measure(1, "mini9", xrays=8, shape=(64, 64), more=0))
    assert found["55Fe, gain in its CCD: width of pulls"].verdict != "fail"
    assert found["photon transfer over 55Fe: scatter in a CCD"].measured < 2 * 1.5e-3


@pytest.mark.slow
def test_continuity():
    """Eight flats of a CCD: photons tell a gain to 1.2e-4, and a jump between halves of them to 2.4e-4."""
    found = by_name(continuity.measure(1, large=0, flats=8))
    assert found["continuity, a jump of 0.3 %"].measured > 5
    assert found["continuity, largest of gains that do not jump"].verdict == "pass"
    assert found["continuity, mini9, without dust and pixels all alike: rms error of relative gains"].measured < 2.4e-4
