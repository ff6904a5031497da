import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.physics.spectra import (
    Curve,
    Spectrum,
    bin_means,
    check_cover,
    from_energy_frequency,
    from_energy_wavelength,
    from_photons,
    multiply,
    photons,
)
from lsstcal_dask.physics.units import air_to_vacuum, vacuum_to_air

GRID = np.array([400.0, 500.0, 700.0, 1000.0])


def test_photons_per_nanometre_of_energies_by_hand():
    # a photon of 500 nm has h c / 500 nm = 3.97289e-19 J
    flat = from_energy_wavelength(np.array([400.0, 500.0, 1000.0]), np.full(3, 3.9728917e-19))
    np.testing.assert_allclose(flat.density, [0.8, 1.0, 2.0], rtol=1e-7)
    # 1 W m-2 Hz-1 is 1/(6.62607e-34 * 500) photons per nm
    fnu = from_energy_frequency(np.array([500.0, 1000.0]), np.full(2, 6.62607015e-34))
    np.testing.assert_allclose(fnu.density, [1 / 500, 1 / 1000], rtol=1e-12)


def test_a_missing_factor_of_wavelength_tilts_a_band_by_a_quarter():
    wavelength = np.linspace(550, 700, 151)
    energy = from_energy_wavelength(wavelength, np.ones(151))
    wrong = from_photons(wavelength, np.ones(151))
    ratio = energy.density / wrong.density
    assert ratio[-1] / ratio[0] == pytest.approx(700 / 550, rel=1e-12)


def test_air_becomes_vacuum_and_photons_are_kept():
    air = np.linspace(600.0, 601.0, 1001)
    found = from_photons(air, np.ones(1001), air=True)
    np.testing.assert_array_equal(found.wavelength, air_to_vacuum(air))
    # a line of 1 photon/nm over 1 nm of air still has 1 photon
    assert np.trapezoid(found.density, found.wavelength) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("make", [from_energy_wavelength, from_energy_frequency])
def test_energies_in_air_are_those_of_vacuum(make):
    vacuum = np.linspace(600.0, 610.0, 101)
    air = vacuum_to_air(vacuum)
    flux = 1e-18 * (1 + np.sin(vacuum) ** 2)
    per_nm = np.gradient(vacuum, air) if make is from_energy_wavelength else 1.0
    found, expected = make(air, flux * per_nm, air=True), make(vacuum, flux)
    np.testing.assert_allclose(found.wavelength, vacuum, rtol=1e-12)
    # the index changes by 2e-9 per nm, which is what differences of it know of the stretch
    np.testing.assert_allclose(found.density, expected.density, rtol=1e-8)


heights = arrays(np.float64, 4, elements=st.floats(0, 1))


@given(heights, heights)
def test_photons_behind_a_curve_are_those_of_a_fine_sum(density, value):
    spectrum, curve = Spectrum(GRID, density), Curve(np.array([350.0, 450.0, 800.0, 1100.0]), value)
    edges = np.linspace(400, 1000, 6001)
    middle = (edges[1:] + edges[:-1]) / 2
    fine = np.sum(np.interp(middle, GRID, density) * np.interp(middle, curve.wavelength, value)) * 0.1
    # the midpoint rule is wrong by step**2 / 24 times the change of the slope of the product
    assert photons(spectrum, curve) == pytest.approx(fine, abs=1e-4)


@given(arrays(np.float64, 4, elements=st.floats(-1, 1)))
def test_means_over_bins_are_those_of_a_fine_sum(value):
    edges = np.array([380.0, 420.0, 690.0, 705.0, 1010.0])
    fine = np.linspace(380, 1010, 6301)
    middle = (fine[1:] + fine[:-1]) / 2
    density = np.interp(middle, GRID, value, left=0, right=0)
    sums = np.histogram(middle, edges, weights=density * 0.1)[0]
    np.testing.assert_allclose(
        bin_means(GRID, value, edges) * np.diff(edges), sums, atol=2e-3
    )  # kinks: 0.1**2 / 8 * slopes


def test_lines_count_where_they_are():
    curve = Curve(np.array([500.0, 600.0]), np.array([0.0, 1.0]))
    lines = Spectrum(GRID, np.zeros(4), "", np.array([525.0, 900.0, 575.0]), np.array([4.0, 7.0, 4.0]))
    assert photons(lines, curve) == pytest.approx(4 * 0.25 + 4 * 0.75, rel=1e-14)


def test_a_product_keeps_photons_lines_and_modes():
    rng = np.random.default_rng(1)
    air = Curve(np.linspace(300, 1100, 4001), rng.uniform(0.5, 1, 4001), "air")
    modes, line_modes = rng.normal(size=(2, 4)), rng.normal(size=(2, 1))
    before = Spectrum(GRID, np.ones(4), "sky", np.array([650.0]), np.array([3.0]), modes, line_modes)
    after = multiply(before, air)
    assert photons(after, Curve(np.array([300.0, 1100.0]), np.ones(2))) == pytest.approx(
        photons(before, air), rel=1e-12
    )
    np.testing.assert_allclose(after.line_flux, 3 * air.at(650.0))
    np.testing.assert_allclose(after.line_modes, line_modes * air.at(650.0))
    np.testing.assert_allclose(after.density_modes[:, -1], modes[:, -1] * air.at(1000.0))


def test_light_that_is_not_known_is_bounded():
    band = Curve(np.array([500.0, 501.0, 600.0, 601.0]), np.array([0.0, 1.0, 1.0, 0.0]), "r")
    assert check_cover(Spectrum(GRID, np.ones(4)), band) == 0
    short = Spectrum(np.array([500.0, 600.95]), np.ones(2), "short")
    # a triangle 0.05 nm wide and 0.05 high of 100 nm is left
    assert check_cover(short, band) == pytest.approx(0.05**2 / 2 / 100, rel=1e-6)
    with pytest.raises(CalibrationError, match=r"short.*of the light behind r unknown: extend it"):
        check_cover(Spectrum(np.array([500.0, 590.0]), np.ones(2), "short"), band)
    with pytest.raises(CalibrationError, match="extend it"):
        check_cover(Spectrum(np.array([700.0, 800.0]), np.ones(2), "far"), band)


def test_a_spectrum_without_light_in_the_band_is_told_so():
    band = Curve(np.array([500.0, 501.0, 600.0, 601.0]), np.array([0.0, 1.0, 1.0, 0.0]), "r")
    dark = {"wavelength": np.array([550.0, 700.0, 800.0]), "density": np.array([0.0, 0.0, 1.0]), "name": "dark"}
    message = "spectrum dark: has no light behind r, from 550 to 601 nm: give one that shines there"
    with pytest.raises(CalibrationError, match=message):
        check_cover(Spectrum(**dark), band)
    beyond = Spectrum(**dark, line_wavelength=np.array([650.0]), line_flux=np.ones(1))
    with pytest.raises(CalibrationError, match=message):
        check_cover(beyond, band)
    lamp = Spectrum(**dark, line_wavelength=np.array([580.0]), line_flux=np.ones(1))
    assert check_cover(lamp, band) == 0
    with pytest.raises(CalibrationError, match="extend it"):
        check_cover(Spectrum(np.array([700.0, 800.0]), np.zeros(2), "far"), band)


def test_a_spectrum_is_read_between_its_wavelengths_only():
    ramp = Spectrum(GRID, GRID / 100, "ramp")
    np.testing.assert_allclose(ramp.at([450.0, 850.0]), [4.5, 8.5])
    np.testing.assert_array_equal(ramp.at([399.0, 1001.0], outside=0.0), 0)
    with pytest.raises(CalibrationError, match="spectrum ramp: known from 400 to 1000 nm, asked for 399 to 500 nm"):
        ramp.at([399.0, 500.0])
    with pytest.raises(CalibrationError, match="curve c: known from"):
        Curve(GRID, np.ones(4), "c").at(1001.0)


ONES = np.ones(4)


@pytest.mark.parametrize(
    ("wavelength", "density", "error", "message"),
    [
        ([400.0, 700.0, 500.0, 1000.0], ONES, CalibrationError, "do not ascend at 700 nm: sort them"),
        ([400.0, 500.0, 500.0, 1000.0], ONES, CalibrationError, "500 nm is there twice: keep one"),
        ([400.0, np.nan, 500.0, 1000.0], ONES, UnitsError, "a wavelength is not a number"),
        ([0.4, 0.5, 0.7, 1.0], ONES, UnitsError, "give them in nm"),
        ([4000.0, 5000.0, 7000.0, 10000.0], ONES, UnitsError, "give them in nm"),
        (GRID, [1.0, -1e-3, 1, 1], CalibrationError, "negative at 500 nm"),
        (GRID, [1.0, 1.0, np.nan, 1], UnitsError, "not a number at 700 nm"),
        (GRID, [1.0, 1.0], CalibrationError, "give one each"),
        ([400.0], [1.0], CalibrationError, "give a row of two or more"),
    ],
)
def test_a_bad_spectrum_is_refused_by_name(wavelength, density, error, message):
    with pytest.raises(error, match=f"spectrum lamp: .*{message}"):
        Spectrum(np.array(wavelength), np.array(density), "lamp")


def test_bad_lines_and_modes_are_refused():
    with pytest.raises(CalibrationError, match="negative at 700 nm"):
        Spectrum(GRID, ONES, "sky", np.array([700.0]), np.array([-1.0]))
    with pytest.raises(UnitsError, match="not a number"):
        Spectrum(GRID, ONES, "sky", np.array([np.nan]), np.array([1.0]))
    with pytest.raises(CalibrationError, match=r"sky: modes of \(2, 3\) for 4 values"):
        Spectrum(GRID, ONES, "sky", density_modes=np.ones((2, 3)))


@pytest.mark.parametrize("value", [[10.0, 99.0, 98.0, 3.0], [0.1, 0.9, -0.3, 0.1]])
def test_percent_are_refused_as_a_curve(value):
    with pytest.raises(UnitsError, match=r"curve QE: .*give fractions, not percent"):
        Curve(GRID, np.array(value), "QE")


def test_a_curve_has_an_error_for_each_value():
    with pytest.raises(CalibrationError, match="curve QE: 3 errors for 4 values"):
        Curve(GRID, np.full(4, 0.5), "QE", np.zeros(3))


def test_a_product_of_what_does_not_overlap_is_refused():
    with pytest.raises(
        CalibrationError, match=r"spectrum lamp: from 400 to 1000 nm, curve air from 1010 to 1100 nm: extend one"
    ):
        multiply(Spectrum(GRID, ONES, "lamp"), Curve(np.array([1010.0, 1100.0]), np.ones(2), "air"))
    with pytest.raises(CalibrationError, match="curve air: known from 450 to 800 nm, asked for 900"):
        multiply(
            Spectrum(GRID, ONES, "sky", np.array([900.0]), np.ones(1)),
            Curve(np.array([450.0, 800.0]), np.ones(2), "air"),
        )
