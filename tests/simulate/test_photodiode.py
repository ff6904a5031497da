"""The photodiode's charge against a hand calculation, and its errors against their promised size."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.photodiode import Photodiode, photodiode_charge, responsivity

SEED = 8
QUIET = Photodiode(noise=0, drift=0, dark_current=0, zero_noise=0)
EXPOSURE = Exposure("MC_1", 1, "flat", np.datetime64("2026-07-01T20:00:00"), 10.0, 10.5)


def charges(settings, photons, n=400):
    return np.array(
        [photodiode_charge(SEED, settings, replace(EXPOSURE, number=k), photons, 633.0) for k in range(1, n + 1)]
    )


def test_responsivity_is_that_of_silicon():
    w = np.arange(200.0, 1151.0)
    curve = responsivity(w)
    assert responsivity(633.0) == pytest.approx(0.33, abs=0.01)
    assert curve.max() == pytest.approx(0.5, abs=0.015)
    assert 930 < w[curve.argmax()] < 990
    assert np.all(curve < w / 1239.84)  # never more than one electron a photon
    assert responsivity(150.0) == 0


@pytest.mark.parametrize("settings", [QUIET, Photodiode(on=False)])
def test_charge_of_a_line(settings):
    # 1e12 photons of 633 nm: 6.62607e-34 x 2.99792e8 / 633e-9 J each
    joules = 1e12 * 6.62607015e-34 * 299792458 / 633e-9
    found = photodiode_charge(SEED, settings, EXPOSURE, 1e12, 633.0)
    assert found == pytest.approx(joules * responsivity(633.0))
    assert found == pytest.approx(1.03e-7, rel=0.02)


def test_charge_of_the_lamp_is_weighted_with_photons():
    w = np.linspace(300, 1150, 1701)
    photons = 1e12 * lamp_spectrum(w) * 0.5
    whole = photodiode_charge(SEED, QUIET, EXPOSURE, photons, w)
    few = photodiode_charge(SEED, QUIET, EXPOSURE, photons[::100], w[::100])
    parts = [photodiode_charge(SEED, QUIET, EXPOSURE, n, v) for n, v in zip(photons[::100], w[::100], strict=True)]
    assert few == pytest.approx(sum(parts))
    electrons = 1e12 * np.trapezoid(lamp_spectrum(w) * responsivity(w) * 1239.84198 / w, w)
    assert whole == pytest.approx(electrons * 1.602176634e-19, rel=1e-3)


def test_noise():
    found = charges(Photodiode(drift=0, dark_current=0, zero_noise=0), 1e12)
    mean = photodiode_charge(SEED, QUIET, EXPOSURE, 1e12, 633.0)
    assert found.std() / mean == pytest.approx(1e-4, rel=4 / np.sqrt(2 * 400))
    assert found.mean() / mean == pytest.approx(1, abs=4e-4 / np.sqrt(400))
    np.testing.assert_array_equal(found[:3], charges(Photodiode(drift=0, dark_current=0, zero_noise=0), 1e12, 3))


def test_zero():
    found = charges(Photodiode(), 0.0)
    assert found.mean() == pytest.approx(1e-13 * 10.0, abs=4 * 2e-14 / np.sqrt(400))
    assert found.std() == pytest.approx(2e-14, rel=4 / np.sqrt(2 * 400))


def test_drift():
    settings = Photodiode(noise=0, dark_current=0, zero_noise=0)
    times = EXPOSURE.time + np.arange(1500) * np.timedelta64(6, "h")
    found = [photodiode_charge(SEED, settings, replace(EXPOSURE, time=t), 1e12, 633.0) for t in times]
    drift = np.array(found) / photodiode_charge(SEED, QUIET, EXPOSURE, 1e12, 633.0) - 1
    # 375 days hold many periods of most of the 12 waves, each of which has a twelfth of the variance
    assert drift.std() == pytest.approx(2e-4, rel=0.3)
    # a cycle a day at most: 6 hours turn a wave by a quarter and 15 minutes by 0.066 rad
    soon = photodiode_charge(SEED, settings, replace(EXPOSURE, time=times[0] + np.timedelta64(15, "m")), 1e12, 633.0)
    assert 0 < abs(soon / found[0] - 1) < 0.066 * 2e-4 * np.sqrt(2 * 12)


def test_photons_without_wavelength():
    with pytest.raises(InconsistentGeometry, match=r"exposure MC_1: photons of shape \(2,\)"):
        photodiode_charge(SEED, QUIET, EXPOSURE, [1.0, 2.0], 633.0)
