import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs, StaleCalibration
from lsstcal_dask.physics.airglow import line_list
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.products.sky import SkyFit
from lsstcal_dask.products.sky_model import FINE, Measured
from lsstcal_dask.products.sky_time import SkyVariation, kriging, nearest_of_night, sky_spectrum
from lsstcal_dask.simulate.airglow import Airglow, family_amplitudes

START = np.datetime64("2026-08-11T03:00:00")
LINES = len(line_list().wavelength)


def fit(minutes, level):
    """Of a spectrum some minutes after START, flat and with equal lines."""
    time = START + np.timedelta64(round(60 * minutes), "s")
    pixels = np.arange(340.5, 1060.0)
    measured = Measured(f"V{minutes}", time, pixels, np.ones(720), np.ones(720))
    modes = 0.02 * level * np.ones((1, LINES))
    spectrum = Spectrum(
        FINE, np.full(len(FINE), level), "", line_list().wavelength, np.full(LINES, level),
        np.zeros((1, len(FINE))), modes,
    )  # fmt: skip
    return SkyFit(measured, spectrum, (), np.zeros(0), np.zeros((0, 0)), 1.0, 1, np.ones(720))


def relative_error(spectrum):
    """Of the first line."""
    return np.linalg.norm(spectrum.line_modes[:, 0]) / spectrum.line_flux[0]


def test_the_spectrum_of_the_visit_itself_is_taken_as_it_is():
    found = sky_spectrum(START, [fit(-15, 1.9), fit(0, 2.0), fit(15, 1.9)])
    np.testing.assert_allclose(found.line_flux, 2.0, rtol=0.02)  # but for its noise against that of the sky
    assert relative_error(found) == pytest.approx(0.02, rel=0.05)
    assert found.name == "sky at 2026-08-11T03:00:00"


def test_between_two_spectra_lies_their_mean():
    found = sky_spectrum(START, [fit(-3, 1.0), fit(3, 2.0)])
    np.testing.assert_allclose(found.density, 1.5)
    np.testing.assert_allclose(found.line_flux, 1.5)


def test_the_error_grows_with_the_gap():
    errors = [relative_error(sky_spectrum(START, [fit(gap, 1.0)])) for gap in (0, 1, 2, 5, 10, 19)]
    assert np.all(np.diff(errors) > 0)
    assert errors[0] == pytest.approx(0.02)
    # of two values of which only the slow part hangs together
    change = 2 * 0.08**2 * (2 - np.exp(-19 / 120))
    assert errors[-1] == pytest.approx(np.sqrt(0.02**2 + change), rel=1e-6)


def test_the_groups_of_families_err_on_their_own():
    found = sky_spectrum(START, [fit(10, 1.0)])
    lines = line_list()
    changing = found.line_modes[:-1]  # the last is that of the spectrum
    each = [np.unique(np.array(lines.groups)[lines.family[mode > 0]]) for mode in changing if mode.any()]
    assert sorted(group for groups in each for group in groups) == sorted(set(lines.groups))
    assert all(len(groups) == 1 for groups in each)


def test_the_weights_are_those_of_least_error():
    rng = np.random.default_rng(1)
    minutes, variation = np.array([-7.0, -2.0, 3.0, 11.0]), SkyVariation()
    weights, error = kriging(minutes, variation)
    assert weights.sum() == pytest.approx(1)
    times = np.append(minutes, 0)
    matrix = variation.covariance(times[:, None] - times)

    def variance(w):
        full = np.append(w, -1)
        return full @ matrix @ full

    assert error == pytest.approx(np.sqrt(variance(weights)), rel=1e-9)
    noisy = variance(weights) + variation.noise**2 * weights @ weights
    for _ in range(50):
        other = weights + 0.05 * (step := rng.standard_normal(4)) - 0.05 * step.mean()
        assert variance(other) + variation.noise**2 * other @ other >= noisy


def test_predicted_errors_are_those_of_a_sky_with_waves():
    settings, zero = Airglow(), np.zeros(1)

    def sky(seed, minutes):
        time = START + np.timedelta64(round(60 * minutes), "s")
        return family_amplitudes(seed, settings, time, zero, zero, 30.0)[:7, 0]

    for gap in (2.0, 30.0):
        at = gap * np.array([-1.5, -0.5, 0.5, 1.5])
        weights, error = kriging(at)
        missed = [
            sum(w * sky(seed, middle + m) for w, m in zip(weights, at, strict=True)) - sky(seed, middle)
            for seed in range(4)
            for middle in range(60, 420, 40)
        ]
        # half of the variance is common to all families: 36 places count for about 60 values; exposures of 30 s
        # smooth the waves by a tenth
        assert np.mean(np.square(missed)) / error**2 == pytest.approx(1, abs=0.1 + 4 * np.sqrt(2 / 60))


def test_a_spectrum_of_another_night_is_refused():
    with pytest.raises(StaleCalibration, match=r"spectrum V-1440 is of another night: take one in the same night"):
        sky_spectrum(START, [fit(-1440, 1.0)])
    # even where it is allowed to be stale
    with pytest.raises(StaleCalibration, match="another night"):
        sky_spectrum(START, [fit(1440, 1.0)], stale=True)
    mixed = sky_spectrum(START, [fit(-1440, 9.0), fit(1, 1.0)])
    np.testing.assert_allclose(mixed.density, 1.0)


def test_a_stale_spectrum_is_refused_unless_allowed():
    with pytest.raises(StaleCalibration, match=r"the nearest spectrum, V25, is 25 min away, more than 20"):
        sky_spectrum(START, [fit(25, 1.0), fit(40, 1.0)])
    assert relative_error(sky_spectrum(START, [fit(25, 1.0)], stale=True)) > 0.1
    late = 9 * 60 + 5  # 5 min after noon, when another night begins
    with pytest.raises(StaleCalibration, match=r"the nearest spectrum, V580, is 35 min away"):
        sky_spectrum(START + np.timedelta64(late, "m"), [fit(late - 10, 1.0), fit(late + 35, 1.0)])


def test_the_nearest_spectrum_is_of_the_same_night():
    """Noon UTC, after dawn in Chile, parts two nights: the one before it is nearer, and of the night before."""
    noon = np.datetime64("2026-07-15T12:00:00")
    minutes = np.array([-200, -5, 30, 90]).astype("timedelta64[m]")
    assert nearest_of_night(noon + minutes, noon + np.timedelta64(5, "m")) == 2
    assert nearest_of_night(noon + minutes, noon - np.timedelta64(150, "m")) == 0
    assert nearest_of_night(noon + minutes[:2], noon + np.timedelta64(5, "m")) == 1  # no other: it will be refused


def test_no_spectrum_is_refused():
    with pytest.raises(InsufficientInputs, match="no spectrum of the sky: take one near the visit"):
        sky_spectrum(START, [])
