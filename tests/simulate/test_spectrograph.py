"""The spectrograph of the calibration telescope: photons, lines and errors where they belong."""

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.spectrograph import Spectrograph, observe, throughput, truth

FINE = np.arange(300, 1150.01, 0.05)
QUIET = {
    "resolution_scatter": 0.0,
    "second_order": 0.0,
    "wavelength_shift": 0.0,
    "wavelength_stretch": 0.0,
    "calibration_error": 0.0,
    "read_noise": 0.0,
}
BRIGHT = 1e12  # photon s-1 m-2 nm-1: noise of 1e-5 per pixel and less


def line(center, sigma=0.1, flux=BRIGHT):
    """A narrow line of ``flux`` photons."""
    return flux * np.exp(-0.5 * ((FINE - center) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("center", [450.0, 600.3, 850.0])
def test_width_and_place_of_a_line(center):
    spectrum = observe(1, Spectrograph(**QUIET), 3, FINE, line(center), 10.0)
    at = spectrum["wavelength"].values
    electrons = spectrum["flux"].values * throughput(at)
    mean = np.average(at, weights=electrons)
    variance = np.average((at - mean) ** 2, weights=electrons)
    assert mean == pytest.approx(center, abs=2e-3)
    # Variances add: the spectrograph's, the line's, and a twelfth of a square pixel.
    sigma = center / 200 / np.sqrt(8 * np.log(2))
    np.testing.assert_allclose(variance, sigma**2 + 0.1**2 + 1 / 12, rtol=2e-3)


def test_flux_is_conserved():
    spectrum = observe(1, Spectrograph(**QUIET), 3, FINE, line(700.0), 10.0)
    electrons = (spectrum["flux"].values * throughput(spectrum["wavelength"].values)).sum()
    # Photons of 1e13 electrons: 3e-7; the tails beyond six sigma: 2e-9.
    np.testing.assert_allclose(electrons, BRIGHT * throughput(700.0), rtol=1e-5)


def test_smooth_spectrum_comes_back():
    density = BRIGHT * (1 + (FINE - 700) / 2000)
    spectrum = observe(1, Spectrograph(**QUIET), 3, FINE, density, 100.0)
    at = spectrum["wavelength"].values
    middle = (at > 400) & (at < 940)
    # What the throughput's curvature does over a resolution element: half of T''/T sigma**2, at most 1e-3 here.
    np.testing.assert_allclose(spectrum["flux"].values[middle], BRIGHT * (1 + (at[middle] - 700) / 2000), rtol=4e-3)


def test_second_order_falls_at_twice_the_wavelength():
    settings = Spectrograph(**(QUIET | {"second_order": 0.08, "second_order_scatter": 0.0}))
    spectrum = observe(1, settings, 3, FINE, line(430.0), 10.0)
    at = spectrum["wavelength"].values
    electrons = spectrum["flux"].values * throughput(at)
    ghost = at > 700
    np.testing.assert_allclose(electrons[ghost].sum() / electrons[~ghost].sum(), 0.08, rtol=1e-5)
    mean = np.average(at[ghost], weights=electrons[ghost])
    assert mean == pytest.approx(860.0, abs=5e-3)
    width = np.sqrt(np.average((at[ghost] - mean) ** 2, weights=electrons[ghost]) - 1 / 12)
    np.testing.assert_allclose(width, 2 * np.hypot(430 / 200 / np.sqrt(8 * np.log(2)), 0.1), rtol=5e-3)
    none = observe(1, Spectrograph(**QUIET), 3, FINE, line(430.0), 10.0)
    assert none["flux"].values[ghost].sum() == 0


def test_noise_is_what_the_variance_says():
    settings = Spectrograph(**(QUIET | {"read_noise": 6.0}))
    wavelength = np.arange(300, 1150.01, 0.3)
    density = 300 * (1 + 0.5 * np.sin(wavelength / 40))
    sky = np.full_like(wavelength, 200.0)
    exposures = [observe(2, settings, k, wavelength, density, 30.0, background=sky) for k in range(60)]
    flux = np.stack([e["flux"].values for e in exposures])
    variance = exposures[0]["variance"].values
    exact = observe(2, settings, 1, wavelength, density * 1e10, 30.0)["flux"].values / 1e10
    pull = (flux - exact) / np.sqrt(variance)
    n = pull.size
    assert abs(pull.mean()) < 4.5 / np.sqrt(n)
    assert abs(pull.std() - 1) < 4.5 / np.sqrt(2 * n) + 1e-3
    # By hand in the middle: photons of both and 20 rows of readout.
    middle = np.argmin(abs(exposures[0]["wavelength"].values - 600))
    scale = throughput(exposures[0]["wavelength"].values[middle]) * 30
    by_hand = ((exact[middle] + 200) * scale + 20 * 36) / scale**2
    np.testing.assert_allclose(variance[middle], by_hand, rtol=2e-3)


def test_errors_of_wavelength():
    settings = Spectrograph(**(QUIET | {"wavelength_shift": 0.1, "wavelength_stretch": 0.05}))
    for exposure in (1, 2):
        nuisance = truth(4, settings, exposure)
        spectrum = observe(4, settings, exposure, FINE, line(500.0) + line(900.0), 10.0)
        at = spectrum["wavelength"].values
        electrons = spectrum["flux"].values * throughput(at)
        for center, half in ((500.0, at < 700), (900.0, at >= 700)):
            stated = np.average(at[half], weights=electrons[half])
            assert center - stated == pytest.approx(nuisance.wavelength_error(settings, center), abs=3e-3)
            by_hand = nuisance.shift + nuisance.stretch * (center - 700) / 360
            np.testing.assert_allclose(nuisance.wavelength_error(settings, center), by_hand)
    shifts = np.array([truth(4, settings, k).shift for k in range(400)])
    assert abs(shifts.std() / 0.1 - 1) < 4.5 / np.sqrt(800)


def test_error_of_the_flux_scale():
    settings = Spectrograph(**(QUIET | {"calibration_error": 0.003}))
    nuisance = truth(4, settings, 9)
    with_error = observe(4, settings, 9, FINE, np.full_like(FINE, BRIGHT), 10.0)
    without = observe(4, Spectrograph(**QUIET), 9, FINE, np.full_like(FINE, BRIGHT), 10.0)
    at = with_error["wavelength"].values
    np.testing.assert_allclose(with_error["flux"] / without["flux"], nuisance.calibration(at), rtol=1e-12)
    # rms and correlation over many exposures, at points 30 nm apart.
    found = np.stack([truth(4, settings, k).calibration(np.array([500.0, 530.0, 800.0])) - 1 for k in range(3000)])
    n = len(found)
    # A sum of 48 waves has nearly Gaussian moments.
    assert np.all(abs(found.std(axis=0) / 0.003 - 1) < 4.5 / np.sqrt(2 * n))
    correlation = np.corrcoef(found.T)
    assert abs(correlation[0, 1] - np.exp(-0.5)) < 4.5 * (1 - np.exp(-1)) / np.sqrt(n)
    assert abs(correlation[0, 2]) < 4.5 / np.sqrt(n)


def test_same_bits_and_other_exposures():
    density = np.full_like(FINE, 1e4)
    one, again, other = (observe(1, Spectrograph(), k, FINE, density, 30.0) for k in (5, 5, 6))
    np.testing.assert_array_equal(one["flux"], again["flux"])
    assert np.all(one["flux"].values != other["flux"].values)
    assert one["flux"].attrs["units"] == "photon s-1 m-2 nm-1"
    assert one["wavelength"].attrs["units"] == "nm"
    np.testing.assert_allclose(one["wavelength"].values[[0, -1]], [340.5, 1059.5])


def test_off_is_the_input():
    density = 1e4 * (2 + np.sin(FINE))
    spectrum = observe(1, Spectrograph(on=False), 5, FINE, density, 30.0)
    np.testing.assert_array_equal(spectrum["flux"], density)
    np.testing.assert_array_equal(spectrum["wavelength"], FINE)
    assert not spectrum["variance"].any()
    nuisance = truth(1, Spectrograph(on=False), 5)
    assert (nuisance.shift, nuisance.stretch, nuisance.second_order) == (0, 0, 0)
    np.testing.assert_array_equal(nuisance.calibration(FINE[:5]), 1)


def test_bad_input():
    ones = np.ones_like(FINE)
    with pytest.raises(WrongUse, match="exposed for 0 s"):
        observe(1, Spectrograph(), 1, FINE, ones, 0.0)
    with pytest.raises(WrongUse, match="must rise"):
        observe(1, Spectrograph(), 1, FINE[::-1], ones, 1.0)
    with pytest.raises(WrongUse, match="steps of 2 nm"):
        observe(1, Spectrograph(), 1, np.arange(300.0, 1150, 2), np.ones(425), 1.0)
    with pytest.raises(WrongUse, match="cover 337"):
        observe(1, Spectrograph(), 1, FINE[FINE > 400], ones[FINE > 400], 1.0)
    with pytest.raises(ValidationError, match="room for two pixels"):
        Spectrograph(first=500, last=501)
