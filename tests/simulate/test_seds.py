"""Spectral templates: their photons by hand, their colours against the sky's."""

from itertools import pairwise

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.catalogue import smooth_passband
from lsstcal_dask.simulate.seds import REFERENCE, Template, ab_magnitude, flat, sed, spectra, templates

GRID = np.arange(300, 1150.01, 0.25)

# Edges of the SDSS (Doi et al. 2010) and Pan-STARRS1 (Tonry et al. 2012) bands with their atmospheres: synthetic
# colours of dwarfs within 3 mmag of those of the published curves, 0.05 mag in u.
SDSS = {
    "u": (318.49, 8.64, 380.65, 16.34, 1.66),
    "g": (402.43, 18.16, 532.71, 9.55, 0.41),
    "r": (558.90, 12.54, 674.78, 10.28, 0.18),
    "i": (691.14, 12.75, 821.72, 7.60, -0.48),
    "z": (835.82, 26.11, 853.36, 150.0, -0.05),
}
PS1 = {
    "g": (413.83, 20.04, 550.68, 4.13, 0.42),
    "r": (548.78, 5.66, 689.53, 8.57, 0.20),
    "i": (689.87, 5.33, 820.26, 4.70, -0.05),
    "z": (818.55, 6.93, 923.03, 6.26, -0.32),
    "y": (918.54, 4.84, 1020.03, 44.47, -0.81),
}
# Covey et al. 2007: median colours of the stellar locus as polynomials of g - i, dispersion 0.02 to 0.2 mag.
COVEY = {
    "ug": (1.0636113, -1.6267818, 4.9389572, -3.2809081, 0.8725109, -0.0828035),
    "gr": (0.4290263, -0.8852323, 2.0740616, -1.1091553, 0.2397461, -0.0183195),
    "ri": (-0.4113500, 1.8229991, -1.9989772, 1.0662075, -0.2284455, 0.0172212),
    "iz": (-0.2270331, 0.7794558, -0.7350749, 0.3727802, -0.0735412, 0.0049808),
}
# Tonry et al. 2012: r - i against g - r, i - z, z - y of the locus.
TONRY = np.array(
    [
        *((-0.2, -0.19, -0.11, -0.05), (0.0, 0.15, -0.03, -0.025), (0.2, 0.55, 0.09, 0.035), (0.4, 0.97, 0.2, 0.095)),
        *((0.6, 1.16, 0.295, 0.14), (1.0, 1.2, 0.47, 0.195), (2.0, 1.26, 0.94, 0.47)),
    ]
)


def colours(template, bands):
    spectrum = sed(template, GRID)
    magnitudes = {name: float(ab_magnitude(spectrum, GRID, smooth_passband(GRID, *p))) for name, p in bands.items()}
    names = list(bands)
    return {a + b: magnitudes[a] - magnitudes[b] for a, b in pairwise(names)}


def test_ab_zero_in_photons():
    frequency_density = 10 ** (-48.6 / 2.5) * 1e-3  # W m-2 Hz-1, of AB = 0 (Oke & Gunn 1983)
    wavelength = 500e-9
    energy = frequency_density * 299792458 / wavelength**2  # W m-2 per m
    photons = energy / (6.62607015e-34 * 299792458 / wavelength) * 1e-9
    np.testing.assert_allclose(flat(np.array([500.0])), photons, rtol=1e-9)
    np.testing.assert_allclose(flat(np.array([500.0]), 2.5), photons / 10, rtol=1e-9)


def test_magnitude_of_two_photon_bands():
    wavelength = np.linspace(400, 900, 2001)
    spectrum = 3 * flat(wavelength)
    band = np.where(wavelength < 700, 0.4, 0.1)
    np.testing.assert_allclose(ab_magnitude(spectrum, wavelength, band), -2.5 * np.log10(3), rtol=1e-12)
    twice = np.stack([spectrum, spectrum * 100])
    np.testing.assert_allclose(np.diff(ab_magnitude(twice, wavelength, band)), -5, rtol=1e-12)


def test_every_template_is_positive_and_has_magnitude_0():
    wavelength = np.linspace(*REFERENCE, 7001)
    magnitudes = ab_magnitude(spectra(wavelength), wavelength, np.ones_like(wavelength))
    # The emission lines (sigma 0.25 nm) on a 0.1 nm grid are integrated to better than 1e-4.
    np.testing.assert_allclose(magnitudes, 0, atol=2e-4)
    everywhere = spectra(np.arange(300.0, 1151.0))
    assert np.all(everywhere > 0)
    assert np.isfinite(everywhere).all()


@pytest.mark.parametrize("place", [0, 60, 121, 130, 150, 185])
def test_a_part_of_the_wavelengths_gets_the_same_values(place):
    template = templates()[place]
    np.testing.assert_allclose(sed(template, GRID[100:130]), sed(template, GRID)[100:130], rtol=1e-13)


@pytest.mark.parametrize("temperature", [3300, 3500, 3700, 4000, 4400, 4800, 5200, 5600, 6000, 6400])
def test_dwarfs_lie_on_the_stellar_locus(temperature):
    found = colours(Template("star", temperature), SDSS)
    g_i = found["gr"] + found["ri"]
    for name, tolerance in {"ug": 0.17, "gr": 0.1, "ri": 0.1, "iz": 0.1}.items():
        expected = np.polynomial.polynomial.polyval(g_i, COVEY[name])
        assert abs(found[name] - expected) < tolerance, (name, found[name], expected)


@pytest.mark.parametrize("temperature", [3300, 3600, 4200, 5000, 5800, 7000, 8500, 10000])
def test_dwarfs_lie_on_the_locus_to_the_y_band(temperature):
    found = colours(Template("star", temperature), PS1)
    for column, (name, tolerance) in enumerate({"gr": 0.12, "iz": 0.1, "zy": 0.06}.items(), start=1):
        expected = np.interp(found["ri"], TONRY[:, 0], TONRY[:, column])
        assert abs(found[name] - expected) < tolerance, (name, found[name], expected)


def test_vega():
    # AB magnitudes of Vega in SDSS: 0.91, -0.08, 0.16, 0.37, 0.54 (Blanton & Roweis 2007, AJ 133, 734).
    found = colours(Template("star", 9600), SDSS)
    for name, expected in {"ug": 0.99, "gr": -0.24, "ri": -0.21, "iz": -0.17}.items():
        assert abs(found[name] - expected) < 0.12, (name, found[name])


def test_cool_stars_have_bands_that_black_bodies_have_not():
    spectrum = sed(Template("star", 3200), np.array([703.0, 710.0]))
    exact = np.array([703.0, 710.0]) ** -4.0 / np.expm1(1.438776877e7 / (np.array([703.0, 710.0]) * 3200))
    assert spectrum[1] / spectrum[0] < 0.7 * exact[1] / exact[0]
    hot = sed(Template("star", 6500), np.array([703.0, 710.0]))
    assert abs(hot[1] / hot[0] - 1) < 0.03


def test_balmer_jump_of_an_a_star():
    below, above = sed(Template("star", 9600), np.array([355.0, 405.5]))
    assert 0.2 < below / above < 0.5
    below, above = sed(Template("star", 4300), np.array([366.0, 370.0]))
    assert 0.9 < below / above < 1.1


def test_few_metals_are_blue():
    rich, poor = (colours(Template("star", 5900, metallicity), SDSS) for metallicity in (0.0, -1.5))
    assert 0.1 < rich["ug"] - poor["ug"] < 0.35
    assert abs(rich["gr"] - poor["gr"]) < 0.03


def test_white_dwarf():
    # Colours of DA models of log g = 8 at 12 000 K: Holberg & Bergeron 2006, AJ 132, 1221.
    found = colours(Template("white_dwarf", 12000), SDSS)
    for name, expected in {"ug": 0.4, "gr": -0.17, "ri": -0.22}.items():
        assert abs(found[name] - expected) < 0.15, (name, found[name])
    core, wings = sed(Template("white_dwarf", 12000), np.array([486.27, 515.0]))
    assert core / wings < 0.75
    core, wings = sed(Template("white_dwarf", 45000), np.array([486.27, 515.0]))
    assert core / wings > 0.9


def test_a_binary_is_the_sum_of_its_stars():
    pair = sed(Template("binary", 5800, companion=3200, share=0.25), GRID)
    first, second = sed(Template("star", 5800), GRID), sed(Template("star", 3200), GRID)
    np.testing.assert_allclose(pair, 0.75 * first + 0.25 * second, rtol=1e-6)


@pytest.mark.parametrize("redshift", [0.0, 0.3])
def test_supernova_absorbs_blueward_of_silicon(redshift):
    rest = np.arange(570, 680, 0.5)
    spectrum = sed(Template("supernova", redshift=redshift), rest * (1 + redshift))
    lowest = rest[np.argmin(spectrum)]
    velocity = (1 - lowest / 635.5) * 299792.458
    assert 9000 < velocity < 14000  # km/s at maximum


def test_supernova_reddens_with_time_and_has_no_ultraviolet():
    early, late = (colours(Template("supernova", phase=phase), SDSS) for phase in (-7.0, 25.0))
    assert late["gr"] - early["gr"] > 0.4
    far = colours(Template("supernova", redshift=0.7), SDSS)
    assert far["gr"] > 1


def test_equivalent_width_of_an_emission_line():
    wavelength = np.arange(645, 668, 0.01)
    spectrum = sed(Template("emission"), wavelength) * wavelength
    excess = np.trapezoid(spectrum / spectrum[0] - 1, wavelength)
    np.testing.assert_allclose(excess, 20.0, rtol=1e-3)
    moved = sed(Template("emission", redshift=0.4), np.arange(900, 940, 0.1))
    assert np.arange(900, 940, 0.1)[np.argmax(moved)] == pytest.approx(656.47 * 1.4, abs=0.1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template("galaxy"), "spectrum of a 'galaxy': the kinds are"),
        (Template("star", 2500), "temperature of a star is 2500: use 3000 to 20000"),
        (Template("star", 5000, 2.0), "metallicity"),
        (Template("white_dwarf", 100), "white dwarf"),
        (Template("binary", 5000, companion=4000, share=1.5), "share"),
        (Template("supernova", redshift=3), "redshift"),
        (Template("supernova", phase=90), "phase"),
    ],
)
def test_outside_the_model(template, message):
    with pytest.raises(WrongUse, match=message):
        sed(template, GRID)


def test_wavelengths_outside_the_model():
    with pytest.raises(WrongUse, match="wavelengths outside 290 to 1200 nm"):
        sed(Template("flat"), np.array([250.0, 300.0]))
    with pytest.raises(WrongUse, match="passband that is 0"):
        ab_magnitude(flat(GRID), GRID, np.zeros_like(GRID))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "temperature"), [("alpha_lyr_stis_011", 9550), ("hd205905_stis_009", 5850), ("hd38949_stis_007", 6000)]
)
def test_measured_spectra_in_the_bands_of_lsst(real_data, name, temperature):
    from astropy.io import fits

    table = fits.getdata(real_data / "calspec" / f"{name}.fits.gz")
    wavelength = np.asarray(table["WAVELENGTH"], float) / 10
    energy = np.interp(GRID, wavelength, np.asarray(table["FLUX"], float))
    measured, model = energy * GRID, sed(Template("star", temperature), GRID)
    difference = []
    for band in "ugrizy":
        curve = np.loadtxt(real_data / "throughputs" / f"total_{band}.dat").T
        passband = np.interp(GRID, *curve)
        difference.append(ab_magnitude(measured, GRID, passband) - ab_magnitude(model, GRID, passband))
    assert np.all(np.abs(np.diff(difference)) < [0.2, 0.1, 0.1, 0.1, 0.1]), np.diff(difference)
