"""A filter between its measured places: exact for what is radial, and far better than one polynomial."""

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband, surface
from lsstcal_dask.simulate import Settings
from lsstcal_dask.simulate.filters import filter_curves, transmission


def passband_of(x, y, values) -> Passband:
    nm = np.linspace(600.0, 610, values.shape[1])
    return Passband("r", tuple(f"P{i}" for i in range(len(x))), x, y, nm, values, 0 * values)


def grid(side):
    return [axis.ravel() * 42.0 for axis in np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2)]


@pytest.mark.parametrize(("side", "powers"), [(13, 6), (7, 2), (3, 1), (1, 1)])
def test_even_powers_of_the_radius_are_followed_exactly(side, powers):
    """As many as there are 25 places for each, besides their mean."""
    x, y = grid(side)
    factors = np.random.default_rng(1).uniform(-0.02, 0.02, (powers, 3)) + np.eye(powers, 1) * 0.5

    def true(x, y):
        return ((x**2 + y**2) / 360**2)[..., None] ** np.arange(powers) @ factors

    nearby = Nearby(passband_of(x, y, true(x, y)))
    at = np.random.default_rng(2).uniform(-60, 60, (2, 4, 5))
    np.testing.assert_allclose(nearby.at(*at), true(*at), atol=1e-9)
    np.testing.assert_allclose(nearby.terms(*at).sum(axis=-1), 1, atol=1e-9)
    assert nearby.at(0.0, 0.0).shape == (3,)


def test_the_measured_curves_come_back_and_what_is_between_them_is_smooth():
    """To what is taken for noise, 3e-3 of their differences, of a wave as long as the field is wide."""
    x, y = grid(9)

    def wave(x, y):
        return 0.5 + 0.01 * np.sin(2 * np.pi * (x + 0.5 * y) / 400)[..., None] * np.ones(3)

    nearby = Nearby(passband_of(x, y, wave(x, y)))
    np.testing.assert_allclose(nearby.at(x, y), wave(x, y), atol=3e-5)
    at = np.random.default_rng(3).uniform(-130, 130, (2, 50))
    np.testing.assert_allclose(nearby.at(*at), wave(*at), atol=3e-5)


def test_what_the_other_curves_miss_is_found_without_taking_each_out():
    """Against a fit without it, of a place inside, so that the field is as large."""
    rng = np.random.default_rng(4)
    x, y = rng.uniform(-100, 100, (2, 30))
    light = rng.normal(1, 0.01, 30)
    i = int(np.argmin(np.hypot(x, y)))
    others = np.arange(30) != i
    left = Nearby(passband_of(x[others], y[others], np.full((29, 3), 0.5)))
    expected = light[i] - left.terms(x[i], y[i]) @ light[others]
    assert Nearby(passband_of(x, y, np.full((30, 3), 0.5))).missed(light)[i] == pytest.approx(float(expected), abs=1e-9)


def test_a_single_curve_misses_nothing():
    one = Nearby(passband_of(np.array([3.0]), np.array([4.0]), np.full((1, 3), 0.5)))
    assert one.missed(np.array([0.5])).tolist() == [0.0]
    assert one.at(50.0, 0.0) == pytest.approx(np.full(3, 0.5))


def test_it_follows_a_filter_better_than_one_polynomial():
    """The light of simulated LSSTCam in r, in CCDs all over the field, from curves with the noise of a measurement."""
    camera, settings, nm = load_camera("lsstcam"), Settings().filters, np.arange(520.0, 740)
    found = filter_curves(7, settings, camera, "r", nm)
    x, y = (found[name].values for name in ("x", "y"))
    measured = Passband(
        "r", tuple(found["detector"].values), x, y, nm, found["transmission"].values, found["transmission_error"].values
    )
    misses = {"one": [], "nearby": []}
    for detector in camera.detectors[5::10]:  # with some at the rim
        own = [axis.ravel() for axis in np.meshgrid(*(np.linspace(0, n - 1, 3) for n in reversed(detector.shape)))]
        place = ccd_to_focal(detector, *own)
        true = transmission(7, settings, camera, "r", nm, *place).sum(axis=1)
        for name, what in (("one", surface(measured)), ("nearby", Nearby(measured))):
            misses[name].append(what.at(*place).sum(axis=1) / true - 1)
    one, nearby = (np.sqrt([np.mean(part**2) for part in misses[name]]) for name in ("one", "nearby"))
    assert np.median(nearby) < 1.5e-4
    assert np.sqrt(np.mean(nearby**2)) < 3e-4
    assert np.median(one) > 3 * np.median(nearby)


def drawn(seed, x, y, at, curves=1.0):
    """Light at places and at others, of the random field of which curves are taken to be made, with their noise."""
    places = np.concatenate([np.stack([x, y], axis=1), at])
    apart = np.hypot(*(places.T[:, :, None] - places.T[:, None])) * np.sqrt(7) / (0.8 * np.hypot(x, y).max())
    among = (1 + apart + 0.4 * apart**2 + apart**3 / 15) * np.exp(-apart)
    rng = np.random.default_rng(seed)
    field = 0.5 + 0.01 * np.linalg.cholesky(among + 1e-10 * np.eye(len(among))) @ rng.normal(size=(len(among), 3))
    noise = 3e-5 * rng.normal(size=(len(x), 3))
    return curves * field[: len(x)] + noise, field[len(x) :]


def test_what_is_not_known_between_curves_is_stated():
    """Weighted means of places between nine curves, of drawn fields of three wavelengths each by itself."""
    x, y = grid(3)
    at = np.random.default_rng(5).uniform(-60, 60, (12, 2))
    weight = np.random.default_rng(6).normal(size=12)
    pulls = []
    for seed in range(300):
        measured, true = drawn(seed, x, y, at)
        nearby = Nearby(passband_of(x, y, measured))
        missed = weight @ (true - nearby.at(*at.T))
        modes = nearby.unknown() @ nearby.coefficients
        variance = np.square(modes).sum(axis=0) * (weight @ nearby.covariance(*at.T) @ weight)
        pulls.append(missed / np.sqrt(variance))
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1.0, abs=0.15)  # of nine curves: Student's


def test_nothing_is_unknown_where_a_curve_is_and_of_a_single_one_nothing_can_be_said():
    x, y = grid(3)
    nearby = Nearby(passband_of(x, y, drawn(1, x, y, np.zeros((0, 2)))[0]))
    assert np.diag(nearby.covariance(x, y)).max() < 1e-5 < 1e-2 < nearby.covariance(x + 21, y)[0, 0]
    one = Nearby(passband_of(np.array([3.0]), np.array([4.0]), np.full((1, 3), 0.5)))
    assert not one.unknown().any()
