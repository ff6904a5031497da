import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import i0e, i1e, j0

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate import lines
from lsstcal_dask.simulate.atmosphere import (
    Air,
    Atmosphere,
    Clouds,
    _clouds,
    air,
    band_average,
    cloud_extinction,
    transmission,
)
from lsstcal_dask.simulate.processes import kolmogorov, minutes, night, noon, ornstein_uhlenbeck, sky_plane

NIGHT = np.datetime64("2026-07-02T03:00")
SITE = Air(pressure=733.0, ozone=320.0, water=4.0, aerosol=0.045, aerosol_index=1.0)
GRID = np.arange(300.5, 1150, 1.0)


def after(hours: float) -> np.datetime64:
    return NIGHT + np.timedelta64(round(hours * 3.6e9), "us")


def test_no_air_lets_everything_through():
    assert np.array_equal(transmission(Air(), 1.3, GRID), np.ones(len(GRID)))


def test_clouds_are_gray():
    np.testing.assert_allclose(transmission(Air(cloud=0.7), 2.0, GRID), 10 ** (-0.4 * 0.7), rtol=1e-12)


def test_aerosols_follow_their_power_law():
    found = transmission(Air(aerosol=0.05, aerosol_index=1.4), 1.5, GRID)
    # the mean over a bin of 1 nm is not the value in its middle: T'' / T < 6e-6 nm-2 here, over 24
    np.testing.assert_allclose(found, np.exp(-1.5 * 0.05 * (GRID / 500) ** -1.4), rtol=6e-6 / 24)


def test_rayleigh_scattering_is_that_of_an_independent_formula():
    wavelength = np.arange(400.5, 520)
    found = -np.log(transmission(Air(pressure=1013.25), 1.0, wavelength))
    square = (wavelength / 1000) ** 2
    hansen_travis = 0.008569 / square**2 * (1 + 0.0113 / square + 0.00013 / square**2)  # 1974, Eq. 2.29
    np.testing.assert_allclose(found, hansen_travis, rtol=0.01)  # published formulae agree to 1 %
    other = -np.log(transmission(Air(pressure=700.0), 1.7, wavelength))
    np.testing.assert_allclose(other, found * 1.7 * 700 / 1013.25, rtol=1e-6)  # of means over 1 nm


def test_ozone_has_its_known_cross_section_and_the_airmass_of_a_high_layer():
    wavelength = np.arange(580.5, 620)
    depth = -np.log(transmission(Air(ozone=300.0), 1.0, wavelength))
    assert depth.max() == pytest.approx(5.1e-21 * 2.687e16 * 300, rel=0.08)  # cm2 at the Chappuis peak, 1 DU in cm-2
    slant = -np.log(transmission(Air(ozone=300.0), 2.0, wavelength))  # 60 deg from the zenith
    inside = np.arcsin(np.sin(np.pi / 3) * 6371 / (6371 + 22))  # law of sines at the layer
    np.testing.assert_allclose(slant, depth / np.cos(inside), rtol=1e-6)


@pytest.mark.parametrize("wavenumber", [13118.04, 13126.39, 13112.02], ids=["PP1", "RR1", "PP3"])
def test_oxygen_lines_are_where_they_are(wavenumber):
    energy, strength = lines._oxygen_band(0)
    nearest = np.argmin(np.abs(energy - wavenumber))
    assert abs(energy[nearest] - wavenumber) < 0.05  # cm-1: 0.003 nm
    assert strength[nearest] > 0.1 * strength.max()


@pytest.mark.parametrize("head", [686.92, 759.59], ids=["B", "A"])
def test_oxygen_bands_begin_at_their_heads(head):
    """Fraunhofer's B and A: heads at 686.72 and 759.37 nm in air."""
    wavelength = np.arange(head - 1, head + 1, 0.05)
    deep = transmission(dataclasses.replace(SITE, water=0.0), 1.0, wavelength) < 0.75
    assert wavelength[deep][0] == pytest.approx(head, abs=0.11)


def test_oxygen_grows_as_the_root_of_its_column():
    """Lines so strong that only their wings grow: W is proportional to pressure as well, column and width."""

    def a_band(pressure: float, airmass: float) -> float:
        full = band_average(Air(pressure=pressure), airmass, np.arange(757.0, 773))
        return float(np.sum(1 - full / np.median(full[-2:])))

    assert 1.35 < a_band(733, 2.6) / a_band(733, 1.0) < 2.6**0.5
    assert 1.03 < a_band(733 * 1.05, 1.0) / a_band(733, 1.0) < 1.05


def test_water_is_not_beer_lambert_at_a_nanometre():
    once, twice = (-np.log(transmission(Air(water=w), 1.0, GRID)) for w in (3.0, 6.0))
    strong, weak = (GRID > 930) & (GRID < 960), (GRID > 588) & (GRID < 597)
    assert twice[strong].sum() / once[strong].sum() < 1.75
    assert 1.85 < twice[weak].sum() / once[weak].sum() < 2
    assert np.all(twice <= 2 * once + 1e-12)  # Jensen: no band can grow faster than Beer's law


@pytest.mark.parametrize("column", [0.01, 1.0, 30.0])
def test_an_isolated_line_has_the_width_of_ladenburg_and_reiche(column):
    half, strength = 0.05, 1.0  # cm-1
    energy = np.array([1e7 / 800.013])
    opacity = lines._distribution(energy, np.array([strength]), half, np.zeros(1), (790.0, 810.0))
    cells = round((lines.STOP - lines.START) / lines.CELL)
    found = np.sum(1 - opacity.transmission(column, 1.0, cells)) * lines.CELL * 1e7 / 800**2  # cm-1
    x = strength * column / (2 * np.pi * half)
    expected = 2 * np.pi * half * x * (i0e(x) + i1e(x))
    # wings beyond 1.5 nm = 23 cm-1 are cut: 2 half / (pi 23) of the strength, 4 % of the width for the strongest;
    # the groups add up to 1 %
    assert found == pytest.approx(expected, rel=0.01 + 2 * half * column / (np.pi * 23) / expected)
    wider = np.sum(1 - opacity.transmission(column, 1.1, cells)) * lines.CELL * 1e7 / 800**2
    grown = strength * column / (2 * np.pi * half * 1.1)
    ratio = 1.1 * grown * (i0e(grown) + i1e(grown)) / (x * (i0e(x) + i1e(x)))
    assert wider / found == pytest.approx(ratio, abs=0.01)


def test_bins_average_the_fine_transmission():
    fine = band_average(SITE, 1.2, np.arange(900, 980.001, 0.05))
    coarse = band_average(SITE, 1.2, np.arange(900, 980.001, 2.0))
    np.testing.assert_allclose(coarse, fine.reshape(-1, 40).mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(transmission(SITE, 1.2, np.arange(901, 980, 2.0)), coarse, rtol=1e-9)
    one = transmission(SITE, 1.2, 900.025)
    assert one.shape == (1,)
    assert one[0] == pytest.approx(fine[0], rel=1e-9)


@pytest.mark.parametrize(
    ("airmass", "wavelength", "says"),
    [
        (1.2, [500.0, 400.0], "do not ascend"),
        (1.2, [500.0, 500.0], "do not ascend"),
        (1.2, [290.0, 400.0], "beyond 295-1155 nm"),
        (1.2, [400.0, 1200.0], "beyond 295-1155 nm"),
        (0.9, [400.0, 500.0], "airmass 0.9 is not in 1 to 40"),
        (np.nan, [400.0, 500.0], "airmass nan is not"),
    ],
)
def test_impossible_requests_are_refused(airmass, wavelength, says):
    with pytest.raises(WrongUse, match=says):
        transmission(SITE, airmass, np.array(wavelength))


def test_the_process_is_ornstein_uhlenbeck():
    hours, lags = 0.1, (0.05, 0.1, 0.2)
    starts = np.arange(1500) * 1.2  # 12 correlation times apart: independent to exp(-12)
    first = np.array([ornstein_uhlenbeck(5, "test", after(t), hours) for t in starts])
    n = len(starts)
    assert abs(first.mean()) < 4 / np.sqrt(n)
    assert abs(first.var() - 1) < 4 * np.sqrt(2 / n)
    for lag in lags:
        later = np.array([ornstein_uhlenbeck(5, "test", after(t + lag), hours) for t in starts])
        expected = np.exp(-lag / hours)
        assert abs((first * later).mean() - expected) < 4 * np.sqrt((1 + expected**2) / n)


def test_the_process_is_continuous_and_asks_for_no_order():
    times = [after(h) for h in np.linspace(0, 1, 3001)]
    forward = np.array([ornstein_uhlenbeck(5, "test", t, 3.0) for t in times])
    backward = np.array([ornstein_uhlenbeck(5, "test", t, 3.0) for t in times[::-1]])[::-1]
    assert np.array_equal(forward, backward)
    # variance of a step of OU: 2 dt / hours; linear pieces make single steps of 1.2 s up to 6 times that of a node / 30
    assert np.abs(np.diff(forward)).max() < 6 * np.sqrt(2 / 300) / 30
    assert ornstein_uhlenbeck(5, "other", NIGHT, 3.0) != ornstein_uhlenbeck(5, "test", NIGHT, 3.0)
    assert ornstein_uhlenbeck(6, "test", NIGHT, 3.0) != ornstein_uhlenbeck(5, "test", NIGHT, 3.0)


def test_the_air_has_its_means_and_variances():
    settings = Atmosphere()
    found = [air(seed, settings, NIGHT) for seed in range(700)]
    root = np.sqrt(len(found))
    for name in ("pressure", "ozone", "water", "aerosol", "aerosol_index"):
        values = np.array([getattr(a, name) for a in found])
        mean, rms = getattr(settings, name), getattr(settings, f"{name}_rms")
        if name in ("water", "aerosol"):
            rms = mean * np.sqrt(np.expm1(rms**2))
        assert abs(values.mean() - mean) < 4 * rms / root
        # fourth moment of the log-normal ones: kurtosis under 6
        assert abs(values.std() / rms - 1) < 4 * np.sqrt(5 / 4) / root


def test_ozone_is_that_of_the_night():
    settings = Atmosphere()
    assert noon(NIGHT) == np.datetime64("2026-07-01T16:00")
    tonight = {air(1, settings, noon(NIGHT) + np.timedelta64(m, "m")).ozone for m in (0, 5, 700, 1439)}
    assert len(tonight) == 1
    assert air(1, settings, noon(NIGHT) + np.timedelta64(1440, "m")).ozone not in tonight
    assert air(1, settings, after(1)).water != air(1, settings, after(2)).water


def test_without_atmosphere_there_is_no_air():
    assert air(1, Atmosphere(on=False), NIGHT) == Air()


@pytest.mark.parametrize("time", ["1969-01-01T00:00", "NaT"])
def test_a_time_before_1970_is_refused(time):
    with pytest.raises(WrongUse, match="use a time after 1970"):
        air(1, Atmosphere(), np.datetime64(time, "m"))


@pytest.mark.parametrize("wrong", [{"water": -1.0}, {"pressure": 100.0}, {"water_hours": 0.0}, {"watre": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Atmosphere(**wrong)


def test_directions_have_their_place_on_the_plane_of_the_sky():
    assert sky_plane(90.0, 123.0) == pytest.approx((0.0, 0.0))
    assert sky_plane(60.0, 90.0) == pytest.approx((30.0, 0.0))
    assert sky_plane(60.0, 0.0) == pytest.approx((0.0, 30.0))


CLOUDY = Clouds(photometric=0.0, level=0.2, level_rms=0.0, contrast=0.4, waves=48)


def test_nights_without_clouds_have_none():
    x = np.zeros((2, 3))
    assert np.array_equal(cloud_extinction(1, Clouds(on=False, photometric=0), NIGHT, x, x), x)
    nights = [NIGHT + np.timedelta64(24 * i, "h") for i in range(400)]
    clear = np.mean([cloud_extinction(1, Clouds(photometric=0.3, waves=16), t, 0.0, 0.0) == 0 for t in nights])
    assert abs(clear - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_clouds_have_their_mean_and_variance():
    values = np.array([cloud_extinction(seed, CLOUDY, NIGHT, 0.0, 0.0) for seed in range(1200)])
    assert values.min() > 0
    rms = 0.2 * np.sqrt(np.expm1(0.4**2))
    assert abs(values.mean() - 0.2) < 4 * rms / np.sqrt(1200)
    assert abs(np.log(values).std() / 0.4 - 1) < 4 / np.sqrt(2 * 1200)


def test_cloud_structure_is_kolmogorov():
    """Closed form: D = 2 c**2 sum variance (1 - J0(k r)), which goes as r**(2/3) far from both scales."""
    k, variance = kolmogorov(4000, 1e-4, 1e4)
    assert variance.sum() == pytest.approx(1)
    small, large = (np.sum(variance * (1 - j0(k * r))) for r in (0.2, 2.0))
    assert np.log10(large / small) == pytest.approx(2 / 3, abs=0.01)
    separations = np.array([0.0, 0.1, 0.4, 2.0])
    seeds = 600
    fields = np.array([np.log(cloud_extinction(s, CLOUDY, NIGHT, separations, 0 * separations)) for s in range(seeds)])
    found = np.mean((fields[:, 1:] - fields[:, :1]) ** 2, axis=0)
    k, variance = kolmogorov(CLOUDY.waves, CLOUDY.inner, CLOUDY.outer)
    expected = 2 * 0.4**2 * np.array([np.sum(variance * (1 - j0(k * r))) for r in separations[1:]])
    # differences are Gaussian given the directions of the waves: their squares scatter by 2**0.5, a little more
    assert np.all(np.abs(found / expected - 1) < 4 * np.sqrt(3 / seeds))


def test_clouds_drift_with_the_wind():
    settings = CLOUDY.model_copy(update={"gusts": 0.0})
    _, waves = _clouds(3, settings, night(NIGHT))
    k = np.stack([waves.x, waves.y], axis=1)
    wind, *_ = np.linalg.lstsq(k, waves.frequency, rcond=None)
    assert np.hypot(*wind) == pytest.approx(settings.wind)
    x, y = np.random.default_rng(1).uniform(-2, 2, (2, 50))
    before = cloud_extinction(3, settings, NIGHT, x, y)
    later = cloud_extinction(3, settings, NIGHT + np.timedelta64(20, "s"), x + 20 * wind[0], y + 20 * wind[1])
    np.testing.assert_allclose(later, before, rtol=1e-6)
    assert not np.allclose(cloud_extinction(3, settings, NIGHT + np.timedelta64(20, "s"), x, y), before, rtol=1e-3)


def test_waves_average_over_an_exposure():
    _, waves = _clouds(3, CLOUDY, night(NIGHT))
    start = 60 * (minutes(NIGHT) - minutes(noon(NIGHT)))
    instants = [waves.at(start + t, 0.3, 0.1) for t in (np.arange(3000) + 0.5) * 0.01]
    # midpoint rule: error (0.01 s * highest frequency)**2 / 24
    assert waves.at(start, 0.3, 0.1, 30.0) == pytest.approx(np.mean(instants), abs=1e-3)


@pytest.fixture(scope="module")
def standard(real_data):
    """Wavelength and transmission of LSST's standard atmosphere at airmass 1.2 (MODTRAN)."""
    return np.loadtxt(real_data / "throughputs" / "atmos_std.dat").T


@pytest.mark.real
def test_the_standard_atmosphere_is_in_reach(standard):
    wavelength, expected = standard
    found = transmission(SITE, 1.2, wavelength)
    smooth = np.zeros(len(wavelength), bool)
    for low, high in ((325, 565), (608, 624), (664, 683), (748, 756), (850, 885), (1000, 1050)):
        smooth |= (wavelength > low) & (wavelength < high)
    assert np.abs(found - expected)[smooth & (wavelength > 345)].max() < 0.006
    five = np.convolve(found - expected, np.ones(50) / 50, "same")
    assert np.abs(five[smooth]).max() < 0.005  # 5 nm: the single Huggins bands are not copied
    for low, high in ((330, 400), (400, 552), (552, 691), (691, 818), (818, 922), (930, 1070)):
        band = (wavelength > low) & (wavelength < high)
        assert abs(found[band].mean() / expected[band].mean() - 1) < 0.003


@pytest.mark.real
@pytest.mark.parametrize(
    ("low", "high", "ends", "tolerance"),
    [
        (685.5, 692.0, (684, 684), 0.12),  # oxygen B, and water that the forest has not
        (711.0, 747.0, (708, 749), 0.05),
        (757.5, 772.0, (756, 775), 0.03),  # oxygen A
        (809.0, 846.0, (806, 850), 0.05),
        (890.0, 985.0, (887, 1000), 0.03),
    ],
)
def test_bands_have_the_equivalent_widths_of_the_standard_atmosphere(standard, low, high, ends, tolerance):
    wavelength, expected = standard
    inside = (wavelength >= low) & (wavelength < high)

    def missing(values: np.ndarray) -> float:
        level = [np.median(values[np.abs(wavelength - at) < 1]) for at in ends]
        return float(np.sum(1 - (values / np.interp(wavelength, ends, level))[inside]) * 0.1)

    # the level between the bands is uncertain by 0.0005
    uncertain = 0.0005 * (high - low)
    assert missing(transmission(SITE, 1.2, wavelength)) == pytest.approx(
        missing(expected), rel=tolerance, abs=uncertain
    )


@pytest.mark.real
def test_rayleigh_and_ozone_are_those_of_libradtran(real_data):
    folder = real_data / "atmosphere"
    wavelength = np.linspace(300, 1100, 800)
    rayleigh, ozone, oxygen = (
        np.load(folder / f"LSST_atmospherictransparencygrid_{name}.npy") for name in ("rayleigh", "OZabs", "O2abs")
    )
    clean = (wavelength > 350) & (wavelength < 560)
    found = transmission(Air(pressure=733.0), 1.5, wavelength)[clean]
    np.testing.assert_allclose(np.log(found), np.log(rayleigh[clean, 5]), rtol=0.005)
    visible = (wavelength > 420) & (wavelength < 1000)
    found = transmission(Air(ozone=300.0), 1.0, wavelength)
    assert np.abs(found - ozone[:, 0, 12])[visible].max() < 0.001
    edge = np.convolve(found - ozone[:, 0, 12], np.ones(5) / 5, "same")[(wavelength > 305) & (wavelength < 400)]
    assert np.abs(edge).max() < 0.015
    band = (wavelength > 756) & (wavelength < 774)
    width = np.sum(1 - oxygen[band, 0]) * 800 / 799
    mine = band_average(Air(pressure=733.0), 1.0, np.arange(756.0, 774.5))
    scattered = band_average(Air(pressure=733.0), 1.0, np.array([750.0, 752.0]))[0]
    # libRadtran's coarse bands lie 14 % below MODTRAN's, which the oxygen here follows
    assert np.sum(1 - mine / scattered) == pytest.approx(width, rel=0.16)
