import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.physics.spectra import photons
from lsstcal_dask.physics.spectrum_files import (
    curve_from_table,
    photon_density,
    read_curve,
    read_spectrum,
    spectrum_from_table,
)
from lsstcal_dask.physics.units import air_to_vacuum, photons_from_ab, photons_from_flambda

WAVELENGTH = np.array([500.0, 600.0, 700.0])
FLUX = np.array([1e-15, 2e-15, 3e-15])
FLAM = "erg / (s cm2 Angstrom)"


def table(unit=FLAM, wave="nm", **meta):
    return Table({"wavelength": WAVELENGTH * u.Unit(wave), "flux": FLUX * u.Unit(unit)}, meta=meta)


@pytest.mark.parametrize("suffix", ["ecsv", "fits"])
def test_a_table_that_says_its_units_reads_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"star.{suffix}"
    table().write(path, format="ascii.ecsv" if suffix == "ecsv" else "fits")
    found = read_spectrum(path)
    np.testing.assert_array_equal(found.wavelength, WAVELENGTH)
    np.testing.assert_allclose(found.density, photons_from_flambda(WAVELENGTH, 0.01 * FLUX), rtol=1e-12)
    assert found.name == str(path)


def test_text_needs_its_units(tmp_path):
    path = tmp_path / "sky.txt"
    path.write_text("# a comment\n5000 1e-15\n6000 2e-15\n7000 3e-15\n")
    found = read_spectrum(path, unit=("Angstrom", FLAM))
    np.testing.assert_allclose(found.density, photons_from_flambda(WAVELENGTH, 0.01 * FLUX), rtol=1e-12)
    with pytest.raises(UnitsError, match="column wavelength has no unit"):
        read_spectrum(path)
    path.write_text("500 99\n600 50\n")
    np.testing.assert_allclose(read_curve(path, unit=("nm", "%")).value, [0.99, 0.5])
    with pytest.raises(UnitsError, match="give fractions, not percent"):
        read_curve(path, unit=("nm", ""))


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("a.txt", "# by hand\n\nwavelength flux\n", "{} {}\n"),
        ("a.csv", '"Wavelength (nm)","flux"\r\n', "{},{}\r\n"),
        ("a.csv", "\ufeffwavelength,flux\n", "{},{}\n"),
        ("a.csv", "\ufeff", "{},{}\n"),
    ],
)
def test_a_text_may_have_a_header(tmp_path, name, header, row):
    path = tmp_path / name
    path.write_bytes((header + "".join(row.format(*pair) for pair in ((500, 1), (600, 2), (700, 1)))).encode())
    found = read_spectrum(path, unit=("nm", "photon / nm"))
    np.testing.assert_array_equal(found.wavelength, WAVELENGTH)
    np.testing.assert_array_equal(found.density, [1, 2, 1])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("500 1\nhalf 2\n600 1\n", UnitsError, "column wavelength holds what is no number"),
        ("wavelength flux\num W\n500 1\n600 1\n", UnitsError, "column wavelength holds what is no number"),
        ("wavelength flux\n", CalibrationError, r"two-column text \(no line of numbers\)"),
    ],
)
def test_a_text_of_words_is_refused_in_a_line(tmp_path, text, error, message):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(error, match=message) as found:
        read_spectrum(path, unit=("nm", "photon / nm"))
    assert "\n" not in str(found.value)


def test_vectors_in_one_row_are_a_spectrum_and_in_many_none():
    one = Table({"w": WAVELENGTH[None] * u.nm, "f": FLUX[None] * u.Unit(FLAM)})
    np.testing.assert_array_equal(spectrum_from_table(one).density, spectrum_from_table(table()).density)
    many = Table({"w": WAVELENGTH * u.nm, "f": np.ones((3, 2)) * u.Unit(FLAM)})
    with pytest.raises(CalibrationError, match=r"s: column f of \(3, 2\): give one number in each row"):
        spectrum_from_table(many, name="s")
    odd = Table({"w": WAVELENGTH[None] * u.nm, "f": FLUX[None, :2] * u.Unit(FLAM)})
    with pytest.raises(CalibrationError, match="s: 2 values for 3 wavelengths: give one each"):
        spectrum_from_table(odd, name="s")


@pytest.mark.parametrize("extra", [u.arcsec**-2, u.s * u.m**2, u.m**2], ids=["radiance", "relative", "rate"])
def test_a_radiance_and_a_relative_flux_keep_their_shape(extra):
    found = photon_density(WAVELENGTH, FLUX, u.W / u.m**2 / u.nm * extra)
    np.testing.assert_allclose(found, photons_from_flambda(WAVELENGTH, FLUX), rtol=1e-12)
    found = photon_density(WAVELENGTH, FLUX, u.photon / u.s / u.m**2 / u.nm * extra)
    np.testing.assert_allclose(found, FLUX, rtol=1e-12)


def test_a_radiance_per_steradian_becomes_one_per_square_arcsecond():
    found = photon_density(WAVELENGTH, FLUX, u.photon / u.s / u.m**2 / u.nm / u.sr)
    np.testing.assert_allclose(found, FLUX * (np.pi / 648000) ** 2, rtol=1e-12)


def test_magnitudes_and_janskys():
    np.testing.assert_allclose(
        photon_density(WAVELENGTH, np.array([20.0, 21.0, 22.0]), u.ABmag),
        photons_from_ab(WAVELENGTH, np.array([20.0, 21.0, 22.0])),
        rtol=1e-4,  # astropy's AB zero is a rounding
    )
    np.testing.assert_allclose(
        photon_density(WAVELENGTH, FLUX, u.Jy), FLUX * 1e-26 / (6.62607015e-34 * WAVELENGTH), rtol=1e-9
    )


@pytest.mark.parametrize("unit", ["J", "erg", "eV", "W s", "J / m2", "N / m", "kg / s2", "erg / cm2", "mag(J)"])
def test_energy_of_bins_is_not_taken_as_energy_per_frequency(unit):
    with pytest.raises(UnitsError, match="says neither photons nor energy per wavelength or frequency: give a unit as"):
        spectrum_from_table(table(unit), name="s")


@pytest.mark.parametrize(
    ("unit", "power"),
    [
        *(
            (unit, 1)
            for unit in ("W / (m2 Hz)", "erg / (s cm2 Hz)", "mJy", "MJy / sr", "W / Hz", "J / (s m2 GHz)", "AB")
        ),
        *((unit, 2) for unit in ("photon / (s cm2 Hz)", "photon / Hz")),
    ],
)
def test_a_flux_per_frequency_names_it(unit, power):
    found = photon_density(WAVELENGTH, np.ones(3), u.Unit(unit))
    # dnu = c dlambda / lambda**2, and a photon has h c / lambda
    np.testing.assert_allclose(found / found[0], (WAVELENGTH[0] / WAVELENGTH) ** power, rtol=1e-12)
    if unit == "photon / (s cm2 Hz)":
        assert found[0] == pytest.approx(1e4 * 299792458.0 / 500e-9**2 * 1e-9, rel=1e-12)


@pytest.mark.parametrize("unit", ["mag(AB)", "mag(ST)"])
def test_magnitudes_in_air_are_fluxes_in_air(unit):
    magnitudes = Table({"w": WAVELENGTH * u.nm, "f": np.full(3, 20.0)}, meta={"medium": "air"})
    magnitudes["f"].unit = unit
    linear = Table({"w": WAVELENGTH * u.nm, "f": np.full(3, 1e-8) * u.Unit(unit[4:-1])}, meta={"medium": "air"})
    np.testing.assert_allclose(spectrum_from_table(magnitudes).density, spectrum_from_table(linear).density, rtol=1e-9)


@pytest.mark.parametrize("unit", ["photon / (s cm2 Angstrom)", FLAM, "Jy"])
def test_air_in_a_file_becomes_vacuum(unit):
    wavelength = np.linspace(600.0, 610.0, 201)
    flux = np.full(201, 1.0)
    air = Table({"w": wavelength * u.nm, "f": flux * u.Unit(unit)}, meta={"medium": "air"})
    vacuum = Table({"w": air_to_vacuum(wavelength) * u.nm, "f": flux * u.Unit(unit)})
    found, expected = spectrum_from_table(air), spectrum_from_table(vacuum)
    np.testing.assert_array_equal(found.wavelength, expected.wavelength)
    stretch = 1 if unit == "Jy" else np.gradient(air_to_vacuum(wavelength), wavelength)
    np.testing.assert_allclose(found.density * stretch, expected.density, rtol=1e-8)
    assert spectrum_from_table(air, name="a").wavelength[0] - wavelength[0] == pytest.approx(0.166, abs=1e-3)


@pytest.mark.parametrize("meta", [{"AIRORVAC": "vac"}, {"CTYPE1": "WAVE"}, {"medium": "vacuum"}, {}])
def test_vacuum_is_taken_as_it_is(meta):
    np.testing.assert_array_equal(spectrum_from_table(table(**meta)).wavelength, WAVELENGTH)


def test_what_is_asked_for_is_cut_out():
    assert spectrum_from_table(table(), within=(550, 750)).wavelength[0] == 600


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (table(""), {}, "says neither photons nor energy"),
        (table("photon"), {}, "says neither photons nor energy"),
        (table(wave="s"), {}, "is no wavelength"),
        (table(), {"unit": ("nm", "Jy")}, "is in .*, given as Jy: one of the two is wrong"),
        (table(), {"unit": ("nm", "ergs per something")}, "give a unit that astropy knows"),
        (table(medium="air"), {"medium": "vacuum"}, "the file says air: one of the two is wrong"),
        (table(medium="water"), {}, "say air or vacuum"),
        (table(), {"medium": "glass"}, "say air or vacuum"),
    ],
)
def test_what_is_not_said_or_said_twice_is_refused(given, options, message):
    with pytest.raises(UnitsError, match=message):
        spectrum_from_table(given, **options)


def test_a_flux_without_unit_is_refused():
    bare = Table({"wavelength": WAVELENGTH * u.nm, "flux": FLUX})
    with pytest.raises(UnitsError, match="it makes photons or energy of a flux"):
        spectrum_from_table(bare)
    masked = Table({"wavelength": WAVELENGTH, "flux": np.ma.masked_greater(FLUX, 2.5e-15)}, units=["nm", FLAM])
    with pytest.raises(UnitsError, match="not a number at 700 nm"):
        spectrum_from_table(masked)


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="name the two to read"):
        spectrum_from_table(table(), columns=("wavelength", "FLUX"))
    with pytest.raises(UnitsError, match="values of a curve in Jy"):
        curve_from_table(table("Jy"))
    bad = tmp_path / "spectrum.ecsv"
    bad.write_text("no table\n")
    with pytest.raises(CalibrationError, match=r"spectrum\.ecsv: is no FITS table, ECSV or two-column text"):
        read_spectrum(bad)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CalibrationError, match=r"two-column text \(\w+"):
        read_spectrum(tmp_path / "empty.txt")
    with pytest.raises(CalibrationError, match=r"none\.fits: there is no such file"):
        read_spectrum(tmp_path / "none.fits")


def test_a_curve_in_air_moves_to_vacuum():
    curve = curve_from_table(Table({"w": WAVELENGTH * u.nm, "t": [0.1, 0.5, 0.2] * u.one}, meta={"medium": "air"}))
    np.testing.assert_array_equal(curve.wavelength, air_to_vacuum(WAVELENGTH))


@pytest.mark.real
def test_a_standard_star_reads_with_its_own_units(real_data):
    vega = read_spectrum(real_data / "calspec" / "alpha_lyr_stis_011.fits.gz", within=(300, 1150))
    # Bohlin, Hubeny & Rauch 2020: 3.47e-9 erg s-1 cm-2 A-1, with 0.5 %, at 555.75 nm in vacuum
    expected = photons_from_flambda(555.75, 0.01 * 3.47e-9)
    assert np.interp(555.75, vega.wavelength, vega.density) == pytest.approx(expected, rel=0.005)


@pytest.mark.real
def test_the_baseline_of_lsst_reads_with_units_said(real_data):
    sky = read_spectrum(real_data / "throughputs" / "darksky.dat", unit=("nm", "erg / (s cm2 nm arcsec2)"))
    curve = read_curve(real_data / "throughputs" / "filter_r.dat", unit=("nm", ""))
    # SRD: the dark sky has 21.2 mag arcsec-2 in r
    flat = photons(type(sky)(sky.wavelength, photons_from_ab(sky.wavelength, 21.2)), curve)
    assert photons(sky, curve) / flat == pytest.approx(1, abs=0.05)
