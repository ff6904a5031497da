"""A filter between its measured places: exact for polynomials, and far better than one polynomial where it matters."""

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


@pytest.mark.parametrize(("side", "degree"), [(7, 4), (3, 2), (2, 0), (1, 0)])
def test_polynomials_are_followed_exactly(side, degree):
    """As far as the places determine them with half as many to spare."""
    x, y = (axis.ravel() * 42.0 for axis in np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2))
    rng = np.random.default_rng(1)
    powers = [(i, t - i) for t in range(degree + 1) for i in range(t + 1)]
    factors = rng.uniform(-0.02, 0.02, (len(powers), 3)) + np.eye(len(powers), 1) * 0.5

    def true(x, y):
        return np.stack([(x / 100) ** i * (y / 100) ** j for i, j in powers], axis=-1) @ factors

    nearby = Nearby(passband_of(x, y, true(x, y)))
    at = rng.uniform(-60, 60, (2, 4, 5))
    np.testing.assert_allclose(nearby.at(*at), true(*at), atol=1e-9)
    np.testing.assert_allclose(nearby.terms(*at).sum(axis=-1), 1, atol=1e-9)
    assert nearby.at(0.0, 0.0).shape == (3,)


def test_it_follows_a_filter_better_than_one_polynomial():
    """The light of simulated LSSTCam in r, in CCDs all over the field, from curves with the noise of a measurement."""
    camera, settings, nm = load_camera("lsstcam"), Settings().filters, np.arange(520.0, 740)
    found = filter_curves(7, settings, camera, "r", nm)
    x, y = (found[name].values for name in ("x", "y"))
    measured = Passband(
        "r", tuple(found["detector"].values), x, y, nm, found["transmission"].values, found["transmission_error"].values
    )
    misses = {"one": [], "nearby": []}
    for detector in camera.detectors[5::20]:
        own = [axis.ravel() for axis in np.meshgrid(*(np.linspace(0, n - 1, 3) for n in reversed(detector.shape)))]
        place = ccd_to_focal(detector, *own)
        true = transmission(7, settings, camera, "r", nm, *place).sum(axis=1)
        for name, what in (("one", surface(measured)), ("nearby", Nearby(measured))):
            misses[name].append(what.at(*place).sum(axis=1) / true - 1)
    one, nearby = (np.median([np.sqrt(np.mean(part**2)) for part in misses[name]]) for name in ("one", "nearby"))
    assert nearby < 3e-4
    assert one > 3 * nearby
