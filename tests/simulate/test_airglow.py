import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, get_body
from astropy.io import fits
from astropy.time import Time
from pydantic import ValidationError
from scipy.special import j0

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.physics.units import air_to_vacuum, photons_from_ab
from lsstcal_dask.simulate import hydroxyl
from lsstcal_dask.simulate.airglow import (
    COMPONENTS,
    RAYLEIGH,
    Airglow,
    Moon,
    family_amplitudes,
    mean_bands,
    rotational_temperature,
    sky_components,
    sky_spectrum,
    temperature_components,
    zenith_factor,
)
from lsstcal_dask.simulate.atmosphere import Air, band_average
from lsstcal_dask.simulate.lines import oxygen_glow
from lsstcal_dask.simulate.moon import SITE, _nanolamberts, moonlight, place

NIGHT = np.datetime64("2026-07-14T04:00")  # new moon
FULL = np.datetime64("2026-07-29T04:00")
EDGES = np.arange(300, 1150.5, 1.0)
SETTINGS = Airglow()
WAVES = Airglow(slow_rms=0.0, wave_rms=0.1)
DARK_SKY = {"u": 22.96, "g": 22.26, "r": 21.20, "i": 20.48, "z": 19.60, "y": 18.61}  # AB arcsec-2, LSST SMTN-002


def later(minutes: float) -> np.datetime64:
    return NIGHT + np.timedelta64(round(minutes * 6e7), "us")


@pytest.mark.parametrize(
    ("band", "wavelength"),
    [
        ((8, 3), 7316.28),  # P1(2)
        ((8, 3), 7340.89),  # P1(3)
        ((9, 4), 7750.64),  # Q1(1)
        ((9, 4), 7794.11),  # P1(2)
        ((9, 4), 7821.50),  # P1(3)
        ((5, 1), 7964.65),  # P1(2)
        ((5, 1), 7993.33),  # P1(3)
        ((6, 2), 8344.60),  # Q1(1)
        ((6, 2), 8399.17),  # P1(2)
        ((6, 2), 8430.17),  # P1(3)
        ((7, 3), 8827.10),  # Q1(1)
        ((7, 3), 8885.85),  # P1(2)
        ((7, 3), 8919.64),  # P1(3)
    ],
)
def test_well_known_lines_are_where_they_are(band, wavelength):
    """Angstrom in air: Osterbrock et al. 1996, 1997."""
    found, share = hydroxyl.band(*band, 190.0)
    strong = found[share > 0.04]
    assert np.abs(strong - air_to_vacuum(wavelength / 10)).min() < 0.015  # nm; Lambda doublets are 0.01 nm wide


def test_a_band_shares_out_its_photons_by_the_temperature():
    energy, _ = hydroxyl.term(8)
    assert np.all(np.diff(energy[1:, 0]) > 0)
    cold, warm = (hydroxyl.band(8, 3, t) for t in (180.0, 220.0))
    assert cold[1].sum() == pytest.approx(1)
    assert np.array_equal(cold[0], warm[0])
    low, high = (np.argmin(np.abs(cold[0] - at)) for at in (731.830, 740.388))  # P1 of J' = 3/2 and 9/2
    ratio = (warm[1][high] / cold[1][high]) / (warm[1][low] / cold[1][low])
    expected = np.exp(-1.438777 * (energy[4, 0] - energy[1, 0]) * (1 / 220 - 1 / 180))
    assert ratio == pytest.approx(expected, rel=1e-6)


def siblings(upper, lower, j):
    """Wavelengths of the R and the P line from J = j + 1/2, F1."""
    high, low = hydroxyl.term(upper)[0][j, 0], hydroxyl.term(lower)[0]
    return 1e7 / (high - low[[j - 1, j + 1], 0])


def shared(upper, lower, j, temperature=190.0):
    """Share of the P over that of the R line from one level."""
    wavelength, share = hydroxyl.band(upper, lower, temperature)
    r, p = (np.argmin(np.abs(wavelength - at)) for at in siblings(upper, lower, j))
    return share[p] / share[r]


def test_lines_from_one_level_know_no_temperature():
    """One level has one population: only the strengths of its lines count, close to (J + 1) / J times the tilt."""
    for j in (2, 3, 4):
        assert shared(8, 3, j, 170.0) == pytest.approx(shared(8, 3, j, 230.0), rel=1e-9)
        big, r, p = j + 0.5, *siblings(8, 3, j)
        strength = ((big + 1) ** 2 - 2.25) / (big + 1) / ((big**2 - 2.25) / big)
        tilt = np.exp(2 * hydroxyl._HERMAN_WALLIS * (2 * big + 1))
        # F1 is no pure case a: its Omega = 1/2 part, 4 to 17 % of it, has other strengths by up to half
        assert shared(8, 3, j) == pytest.approx(strength * tilt * (r / p) ** 3, rel=0.15)


@pytest.mark.real
def test_p_and_r_lines_share_as_over_paranal(real_data):
    """Five pairs of which neither line has a neighbour; a line of the spectrum is off by 7 %, a pair by 10 %.

    Their mean is known to 4.5 %, and to 3 % by the tilt (0.002 times 14, twice the orders between the lines); the
    limit is two of that.
    """
    with fits.open(real_data / "sky" / "paranal_sky.fits") as file:
        flux, wavelength = file[0].data.astype(float), file[1].data / 10

    def photons(at):
        near, beside = np.abs(wavelength - at) < 0.06, np.abs(np.abs(wavelength - at) - 0.2) < 0.1
        return at * (flux[near] - np.percentile(flux[beside], 30)).sum()

    found = []
    for upper, lower, j in ((5, 1, 2), (5, 1, 3), (6, 2, 2), (6, 2, 3), (7, 3, 2)):
        r, p = siblings(upper, lower, j)
        found.append(np.log(photons(p) / photons(r) / shared(upper, lower, j)))
    assert abs(np.mean(found)) < 0.11


def test_oxygen_glows_in_two_branches_around_864_and_866_nm():
    wavelength, share = oxygen_glow(190.0)
    assert share.sum() == pytest.approx(1)
    assert np.sum(share[(wavelength > 860) & (wavelength < 871)]) > 0.99
    # the gap between the branches: 13120.9 - 1556.4 cm-1
    assert np.sum(share[np.abs(wavelength - 1e7 / (13120.91 - 1556.385)) < 0.15]) < 0.02


def test_atoms_have_their_rayleighs():
    assert pytest.approx(1e10 / (4 * np.pi) / 206264.806**2) == RAYLEIGH
    found = sky_components(SETTINGS, np.array([557.0, 558.0, 629.0, 631.0]))
    assert found[COMPONENTS.index("OI green")] == pytest.approx([250 * RAYLEIGH, 0, 0])
    assert found[COMPONENTS.index("OI red")] == pytest.approx([0, 0, 190 * RAYLEIGH])


def test_bins_add_up():
    fine = sky_components(SETTINGS, EDGES)
    assert fine.shape == (len(COMPONENTS), len(EDGES) - 1)
    np.testing.assert_allclose(sky_components(SETTINGS, EDGES[::10]), fine.reshape(len(fine), -1, 10).sum(axis=2))
    outside = sky_components(SETTINGS, np.array([200.0, 250.0, 1150.0, 1200.0]))[-1]
    assert outside[[0, 2]] == pytest.approx([0.15 * 50, 0.4 * 50])  # constant beyond its ends
    doubled = sky_components(Airglow(scale=2.0, continuum=3.0), EDGES)
    np.testing.assert_allclose(doubled[:-1], 2 * fine[:-1])
    np.testing.assert_allclose(doubled[-1], 3 * fine[-1])


def test_a_temperature_moves_photons_but_makes_none():
    change = temperature_components(SETTINGS, EDGES)
    rayleighs = sky_components(SETTINGS, EDGES).sum(axis=1)
    whole = [COMPONENTS.index(name) for name in ("OH7", "OH8", "OH9", "O2")]  # no band of these leaves the range
    np.testing.assert_allclose(change[whole].sum(axis=1) / rayleighs[whole], 0, atol=1e-12)
    warmer = sky_components(Airglow(temperature=193.0), EDGES) - sky_components(SETTINGS, EDGES)
    size = np.abs(warmer[:8]).max(axis=1)
    # curvature: a Boltzmann factor changes by (E / kT) (3 K / T) = 2-10 % at most, its square is left out
    assert np.all(np.abs(warmer - 3 * change)[:8].max(axis=1) < 0.05 * size)
    assert np.all(change[8:] == 0)


def magnitudes(response: dict[str, np.ndarray]) -> dict[str, float]:
    radiance = sky_components(SETTINGS, EDGES).sum(axis=0)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    seen = radiance * band_average(Air(733.0, 280.0, 3.0, 0.045, 1.0), 1.0, EDGES)
    zero = photons_from_ab(middle, 0.0) * np.diff(EDGES)
    return {b: float(-2.5 * np.log10(np.sum(seen * r) / np.sum(zero * r))) for b, r in response.items()}


def test_the_sky_is_as_dark_as_over_cerro_pachon():
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    limits = {"u": (330, 400), "g": (405, 550), "r": (555, 690), "i": (695, 815), "z": (820, 920), "y": (925, 1030)}
    found = magnitudes({band: ((middle > low) & (middle < high)).astype(float) for band, (low, high) in limits.items()})
    for band, expected in DARK_SKY.items():
        assert abs(found[band] - expected) < 0.3, band


@pytest.mark.real
def test_the_sky_is_dark_through_the_filters_of_lsst(real_data):
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    response = {}
    for band in DARK_SKY:
        wavelength, value = np.loadtxt(real_data / "throughputs" / f"hardware_{band}.dat").T
        response[band] = np.interp(middle, wavelength, value)
    found = magnitudes(response)
    for band, expected in DARK_SKY.items():
        assert abs(found[band] - expected) < 0.1, band


@pytest.mark.real
def test_the_lines_are_those_of_a_sky_of_paranal(real_data):
    """At 2 nm, between 700 and 1100 nm: shape of the lines against the model to which the bands were scaled."""
    wavelength, flux = np.loadtxt(real_data / "sky" / "galsim_lsst_sky_sed.txt").T
    edges = np.arange(700, 1100.5, 2.0)
    photons = np.histogram(wavelength, edges, weights=flux * wavelength * 0.1)[0]
    found = sky_components(SETTINGS, edges).sum(axis=0) * band_average(Air(740.0, 260.0, 2.5, 0.04), 1.0, edges)
    assert np.corrcoef(np.log(photons), np.log(found))[0, 1] > 0.9


def test_a_sky_switched_off_is_black_and_still():
    off = Airglow(on=False)
    x = np.linspace(0, 1, 5)
    assert not sky_components(off, EDGES).any()
    assert not temperature_components(off, EDGES).any()
    assert np.array_equal(family_amplitudes(1, off, NIGHT, x, x), np.ones((len(COMPONENTS), 5)))
    assert np.array_equal(rotational_temperature(1, off, NIGHT, x, x), np.full(5, 190.0))
    black = sky_spectrum(1, off, Moon(on=False), FULL, (60.0, 0.0), EDGES)
    assert np.array_equal(black, np.zeros(len(EDGES) - 1))


@pytest.fixture(scope="module")
def amplitudes():
    """(seed, component, point) at x = 0, 0.2, 0.4, 0.7 deg of waves of exactly 1 deg."""
    settings = WAVES.model_copy(update={"wavelength_spread": 0.0})
    x = np.array([0.0, 0.2, 0.4, 0.7])
    return np.array([family_amplitudes(seed, settings, NIGHT, x, 0 * x) for seed in range(400)])


def test_waves_have_their_mean_variance_and_wavelength(amplitudes):
    """Closed form: waves from all directions correlate as J0(2 pi r / wavelength)."""
    waves = (amplitudes[:, :-1] - 1) / 0.1
    n = 400 * 5  # seeds, and components of which half the variance is common: 11 / (1 + 10 * 0.25 ...) > 5 independent
    assert abs(waves.mean()) < 4 / np.sqrt(400 * 11 / 6)
    assert abs((waves**2).mean() - 1) < 4 * np.sqrt(2 / 400)
    correlation = (waves[:, :, 1:] * waves[:, :, :1]).mean(axis=(0, 1))
    assert np.all(np.abs(correlation - j0(2 * np.pi * np.array([0.2, 0.4, 0.7]))) < 4 / np.sqrt(n / 5))
    assert np.array_equal(amplitudes[:, -1], np.ones((400, 4)))


def test_families_share_half_of_their_variance(amplitudes):
    waves = (amplitudes[:, :-1, 0] - 1) / 0.1
    correlation = np.corrcoef(waves.T)[~np.eye(11, dtype=bool)]
    assert np.abs(correlation - 0.5).max() < 5 * (1 - 0.25) / np.sqrt(400)  # 55 pairs
    alone = Airglow(common=0.0, waves=8, slow_rms=0.0)
    single = np.array([family_amplitudes(seed, alone, NIGHT, 0.0, 0.0)[:-1] for seed in range(200)])
    assert np.abs(np.corrcoef(single.T)[~np.eye(11, dtype=bool)]).max() < 5 / np.sqrt(200)


def test_waves_have_their_periods():
    """Closed form without wind: the mean of cos(2 pi t / P) over periods from 10 to 20 min."""
    settings = WAVES.model_copy(update={"wind": 0.0})
    start = np.array([family_amplitudes(seed, settings, NIGHT, 0.0, 0.0)[:-1] for seed in range(150)]) - 1
    period = np.linspace(10, 20, 10001)
    for t in (3.0, 7.0, 15.0):
        end = np.array([family_amplitudes(seed, settings, later(t), 0.0, 0.0)[:-1] for seed in range(150)]) - 1
        expected = np.cos(2 * np.pi * t / period).mean()
        assert abs((start * end).mean() / 0.01 - expected) < 4 * np.sqrt((1 + expected**2) / 150)


def test_amplitudes_average_over_an_exposure():
    instants = [family_amplitudes(1, WAVES, later(t), 0.3, 0.1) for t in (np.arange(60) + 0.5) / 60 * 5]
    found = family_amplitudes(1, WAVES, NIGHT, 0.3, 0.1, 300.0)
    # midpoint rule in steps of 5 s: (2 pi 5 s / 300 s)**2 / 24 of 0.3
    np.testing.assert_allclose(found, np.mean(instants, axis=0), atol=2e-4)
    assert not np.allclose(found, instants[0], atol=2e-3)


def test_the_glow_changes_slowly_through_the_night():
    settings = Airglow(wave_rms=0.0, slow_rms=0.1, slow_hours=2.0)
    first, second = (
        np.array([family_amplitudes(seed, settings, t, 0.0, 0.0)[:-1] for seed in range(100)]) - 1
        for t in (NIGHT, later(60))
    )
    assert abs((first**2).mean() / 0.01 - 1) < 4 * np.sqrt(2 / 100)
    expected = np.exp(-0.5)
    assert abs((first * second).mean() / 0.01 - expected) < 4 * np.sqrt((1 + expected**2) / 100)


def test_temperature_waves():
    x = np.array([0.0, 0.5])
    found = np.array([rotational_temperature(seed, SETTINGS, NIGHT, x, x) for seed in range(500)])
    assert abs(found[:, 0].mean() - 190) < 4 * 4 / np.sqrt(500)
    assert abs(found[:, 0].std() / 4 - 1) < 4 / np.sqrt(1000)
    assert np.all(found[:, 0] != found[:, 1])


def test_the_layer_is_seen_slantwise():
    found = zenith_factor(SETTINGS, 30.0)
    inside = np.arcsin(np.sin(np.pi / 3) / (1 + 90 / 6371))
    np.testing.assert_allclose(found[:-1], 1 / np.cos(inside))
    assert found[-1] == pytest.approx(1 + 0.5 * (1 / np.cos(inside) - 1))
    np.testing.assert_allclose(zenith_factor(SETTINGS, 90.0), 1)


def test_the_spectrum_is_the_sum_of_its_components():
    still = Airglow(wave_rms=0.0, slow_rms=0.0, temperature_rms=0.0)
    found = sky_spectrum(1, still, Moon(), NIGHT, (90.0, 0.0), EDGES, 30.0)
    np.testing.assert_allclose(found, sky_components(still, EDGES).sum(axis=0))
    moving = sky_spectrum(1, SETTINGS, Moon(), NIGHT, (50.0, 20.0), EDGES, 30.0)
    assert np.array_equal(moving, sky_spectrum(1, SETTINGS, Moon(), NIGHT, (50.0, 20.0), EDGES, 30.0))
    ratio = moving / found / zenith_factor(SETTINGS, 50.0)[0]
    assert 0.5 < ratio.min() < ratio.max() < 1.5
    assert ratio.std() > 0.01


@pytest.mark.parametrize("edges", [[500.0, 400.0], [500.0, 500.0]])
def test_edges_must_ascend(edges):
    with pytest.raises(WrongUse, match="do not ascend"):
        sky_components(SETTINGS, np.array(edges))


@pytest.mark.parametrize("wrong", [{"wave_rms": 0.3}, {"waves": 0}, {"common": 2.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Airglow(**wrong)


@pytest.mark.parametrize("day", [1, 8, 15, 22, 29])
def test_the_moon_is_where_it_is(day):
    time = np.datetime64(f"2026-07-{day:02d}T03:00")
    site = EarthLocation(lat=SITE[0] * u.deg, lon=SITE[1] * u.deg, height=0 * u.m)
    when = Time(str(time))
    expected = get_body("moon", when, site).transform_to(AltAz(obstime=when, location=site))
    altitude, azimuth, phase = place(time)
    here = AltAz(alt=altitude * u.deg, az=azimuth * u.deg, obstime=when, location=site)
    assert here.separation(expected).deg < 1.4  # parallax 1.0, formulae 0.3
    elongation = get_body("sun", when, site).separation(get_body("moon", when, site)).deg
    assert abs(180 - elongation - phase) < 1.5


def test_moonlight_of_a_worked_example():
    """Full moon and telescope at 45 deg from the zenith, 90 deg apart, by hand from the paper's equations."""
    found = _nanolamberts(45.0, 45.0, 90.0, 0.0, 0.172)
    assert found == pytest.approx(250776 * 0.02911 * 0.8028 * 0.1972, rel=1e-3)
    assert (20.7233 - np.log(found / 34.08)) / 0.92104 == pytest.approx(18.67, abs=0.01)


def test_moonlight_comes_and_goes():
    assert place(NIGHT)[2] > 170
    assert place(FULL)[2] < 10
    bright = moonlight(Moon(), FULL, 60.0, 0.0, EDGES)
    assert not moonlight(Moon(on=False), FULL, 60.0, 0.0, EDGES).any()
    assert not moonlight(Moon(), NIGHT, 60.0, 0.0, EDGES).any()  # it is down
    at = (EDGES[:-1] > 545) & (EDGES[:-1] < 556)
    magnitude = -2.5 * np.log10(bright[at].sum() / photons_from_ab(EDGES[:-1][at] + 0.5, 0.0).sum())
    assert 17.0 < magnitude < 19.5
    np.testing.assert_allclose(moonlight(Moon(scale=2.0), FULL, 60.0, 0.0, EDGES), 2 * bright, rtol=1e-4)
    blue = moonlight(Moon(blueness=3.0), FULL, 60.0, 0.0, EDGES)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    np.testing.assert_allclose(blue / bright, 551.0 / middle)


def test_bands_have_the_photons_of_their_components():
    """Of oxygen and the atoms, all of whose light is within reach."""
    edges = np.arange(300.0, 1150.0, 1.0)
    light = sky_components(Airglow(), edges).sum(axis=1)
    bands = mean_bands()
    for name in ("O2 0-1", "OI green", "OI red", "Na"):
        component, photons = bands[name]
        assert light[component] == pytest.approx(photons, rel=1e-3)
    assert {i for i, _ in bands.values()} == set(range(len(COMPONENTS) - 1))
