"""Spectra of the simulated sky give back what it is made of; real ones come back at the resolution of their lines."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, UnitsError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.spectra import Curve, Spectrum, photons
from lsstcal_dask.physics.spectrum_files import read_curve, read_spectrum
from lsstcal_dask.physics.units import vacuum_to_air
from lsstcal_dask.products.sky import fit_sky
from lsstcal_dask.products.sky_model import Measured, Spectrograph, measured_from_table
from lsstcal_dask.simulate import airglow
from lsstcal_dask.simulate import spectrograph as simulated
from lsstcal_dask.simulate.atmosphere import band_average
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.night import pointing_of, true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.recipes import Night, Plan, exposures
from lsstcal_dask.simulate.settings import Settings

EDGES = np.arange(320.0, 1150.0, 0.05)
FINE = (EDGES[1:] + EDGES[:-1]) / 2
GRID = np.arange(330.0, 1085.0, 10.0)
KNOWN = Spectrograph(throughput=Curve(GRID, simulated.throughput(GRID)), second_order=0.05)
SITE = Observatory(5, load_camera("mini1"), Settings())
PLAN = Plan(night=Night(visits=2, fields=2))
MEASURABLE = ("OH 3-0", "OH 4-0", "OH 4-1", "OH 5-1", "OH 6-1", "OH 6-2", "OH 7-2", "OH 7-3", "OH 8-3", "OH 8-4",
              "OH 9-3", "OH 9-4", "OH 9-5", "O2 0-1", "OI green", "OI red", "Na")  # fmt: skip
BINS = [(400, 550), (550, 690), (690, 820), (820, 920), (930, 1055)]


def above(visit):
    return band_average(true_air(SITE, visit), pointing_of(visit).airmass, EDGES)


def radiance(visit):
    """True light per arcsec2 that comes down, photon s-1 m-2 nm-1 (FINE)."""
    pointing, settings = pointing_of(visit), SITE.settings
    where = (pointing.altitude, pointing.azimuth)
    light = airglow.sky_spectrum(
        SITE.seed, settings.airglow, settings.moon, visit.time, where, EDGES, visit.exposure_time
    )
    return light / 0.05 * above(visit)


def amplitudes(visit):
    """True photons of each family above the air."""
    pointing, settings = pointing_of(visit), SITE.settings.airglow
    x, y = (np.array(place) for place in airglow.sky_plane(pointing.altitude, pointing.azimuth))
    change = airglow.family_amplitudes(SITE.seed, settings, visit.time, x, y, visit.exposure_time)
    change = change * airglow.zenith_factor(settings, pointing.altitude)
    return {name: change[i] * photons for name, (i, photons) in airglow.mean_bands().items()}


@pytest.fixture(scope="module")
def night():
    """Each visit with the fit of its spectrum."""
    visits = exposures("night", PLAN, SITE.settings, SITE.camera)
    tables = deliveries("night", visits)
    found = []
    for visit in visits:
        table = tables[f"spectrum-sky-{visit.name}"](SITE)
        measured = measured_from_table(table, visit.name, visit.time)
        found.append((visit, fit_sky(measured, KNOWN, air=Curve(FINE, above(visit)))))
    return found


def band(low, high):
    return Curve(np.array([low, low + 0.01, high - 0.01, high]), np.array([0.0, 1.0, 1.0, 0.0]))


def error(spectrum, low, high):
    """Of the photons between two wavelengths, by the modes."""
    inside = (spectrum.wavelength >= low) & (spectrum.wavelength <= high)
    lines = (spectrum.line_wavelength >= low) & (spectrum.line_wavelength <= high)
    each = np.gradient(spectrum.wavelength)[inside] @ spectrum.density_modes[:, inside].T
    return np.linalg.norm(each + spectrum.line_modes[:, lines].sum(axis=1))


def test_the_amplitudes_of_families_come_back_within_their_errors(night):
    pulls = []
    for visit, fit in night:
        true = amplitudes(visit)
        for name in MEASURABLE:
            value, sigma = fit.at(name)
            assert sigma < 0.15 * true[name]
            pulls.append((value - true[name]) / sigma)
    # errors of one visit hang together (flux scale): as 8 of 17 count, rms 1 +- 1 / sqrt(2 * 16), four times that
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=4 / np.sqrt(2 * 16))
    assert np.abs(pulls).max() < 5


def test_a_fit_is_as_good_as_its_noise(night):
    for _, fit in night:
        assert fit.chi2 / fit.degrees == pytest.approx(1, abs=4 * np.sqrt(2 / fit.degrees) + 0.1)


def test_the_errors_of_the_spectrograph_are_found(night):
    for visit, fit in night:
        true = simulated.truth(SITE.seed, SITE.settings.spectrograph, visit.number + 1_000_000)
        for name, expected in (
            ("shift", true.shift),
            ("stretch", true.stretch),
            ("log resolution", np.log(true.resolution / 200)),
        ):
            value, sigma = fit.at(name)
            assert abs(value - expected) < 4 * sigma
        assert fit.at("shift")[1] < 0.02  # a fifth of what was known before


def test_the_rebuilt_spectrum_has_the_photons_of_the_true_one(night):
    for visit, fit in night:
        true = radiance(visit)
        for low, high in BINS:
            expected = true[(low < FINE) & (high > FINE)].sum() * 0.05
            found, sigma = photons(fit.spectrum, band(low, high)), error(fit.spectrum, low, high)
            assert abs(found - expected) < 4 * sigma
            assert sigma < 0.012 * expected


def test_single_lines_of_the_rebuilt_spectrum_have_their_power(night):
    # both lines of a doublet in 0.6 nm, a seventh of what the spectrograph resolves
    for visit, fit in night:
        true = radiance(visit)
        for at in (731.83, 734.29, 782.37, 799.55, 840.15, 843.25, 888.83, 892.21, 979.38, 1037.57, 1042.12):
            expected = true[np.abs(FINE - at) < 0.3].sum() * 0.05
            found, sigma = photons(fit.spectrum, band(at - 0.3, at + 0.3)), error(fit.spectrum, at - 0.3, at + 0.3)
            assert abs(found - expected) < 4 * sigma
            assert sigma < 0.05 * expected


def artificial(change, number, known=simulated.Spectrograph()):
    """Spectrum of the mean sky at the zenith without air, its components changed by factors."""
    light = np.ones(len(airglow.COMPONENTS))
    for name, factor in change.items():
        light[airglow.COMPONENTS.index(name)] = factor
    density = light @ airglow.sky_components(airglow.Airglow(), EDGES) / 0.05
    data = simulated.observe(7, known, number, FINE, 25 * density, 300.0)
    flux, variance = data["flux"].values / 25, data["variance"].values / 25**2
    return Measured(f"V{number}", np.datetime64("2026-08-10T03:00:00"), data["wavelength"].values, flux, variance)


def level(fit, upper):
    """Photons of the well measured bands of an upper level, and their relative error."""
    at = [i for i, name in enumerate(fit.names) if name in MEASURABLE and name.startswith(f"OH {upper}-")]
    value = fit.value[at].sum()
    return value, np.sqrt(fit.covariance[np.ix_(at, at)].sum()) / value


def test_a_change_of_the_ratio_of_families_is_tracked():
    plain = fit_sky(artificial({}, 1), KNOWN)
    changed = fit_sky(artificial({"OH8": 1.2, "OH5": 0.8}, 2), KNOWN)
    for upper, factor in ((8, 1.2), (5, 0.8), (7, 1.0), (4, 1.0)):
        (before, first), (after, second) = level(plain, upper), level(changed, upper)
        sigma = np.hypot(first, second)
        assert sigma < 0.05  # so that 20 % are seen
        assert after / before == pytest.approx(factor, abs=4 * sigma * factor)


def test_a_spectrograph_taken_as_perfect_fits_badly():
    measured = artificial({}, 3)
    measured = replace(measured, wavelength=measured.wavelength - 0.3)  # three times what is usual
    perfect = replace(KNOWN, shift_error=0.0, stretch_error=0.0, resolution_error=0.0)
    found, wrong = fit_sky(measured, KNOWN), fit_sky(measured, perfect)
    assert found.chi2 < 1.3 * found.degrees
    assert wrong.chi2 - found.chi2 > 5 * np.sqrt(2 * found.degrees)
    # and its errors grow with what it cannot explain
    assert wrong.at("OH 6-2")[1] > found.at("OH 6-2")[1]


def test_absorption_lines_of_sunlight_are_fitted_if_it_is_known():
    wavelength = np.arange(320.0, 1100.0, 0.2)
    depth = sum(np.exp(-0.5 * ((wavelength - at) / 1.5) ** 2) for at in (393.4, 396.9, 430.8, 438.4, 486.3, 517.5))
    sun = Spectrum(wavelength, 3 * (1 - 0.8 * np.clip(depth, 0, 1)), "Sun")
    measured = artificial({}, 6)
    lit = replace(
        measured, flux=measured.flux + 0.2 * smoothed(wavelength, sun.density, measured.wavelength, 200.0) / 3
    )
    plain, solar = fit_sky(lit, KNOWN), fit_sky(lit, KNOWN, sunlight=sun)
    assert solar.chi2 / solar.degrees == pytest.approx(1, abs=4 * np.sqrt(2 / solar.degrees) + 0.1)
    assert plain.chi2 - solar.chi2 > 5 * np.sqrt(2 * solar.degrees)


def test_pixels_without_flux_are_left_out():
    measured = artificial({}, 4)
    holes = measured.flux.copy()
    holes[100:110] = np.nan
    found, holed = fit_sky(measured, KNOWN), fit_sky(replace(measured, flux=holes), KNOWN)
    assert holed.degrees == found.degrees - 10
    assert holed.at("OH 7-3")[0] == pytest.approx(found.at("OH 7-3")[0], rel=0.01)


def test_what_cannot_be_fitted_is_refused_by_name():
    measured = artificial({}, 5)
    nonsense = np.where(np.arange(len(measured.flux)) % 2, 1e12, 1e-12)
    for flux in (measured.flux * 1e200, nonsense):
        with pytest.raises(DegenerateSolution, match="sky spectrum V5: the fit diverges"):
            fit_sky(replace(measured, flux=flux), KNOWN)
    with pytest.raises(DegenerateSolution, match="sky spectrum V5: its median flux is not positive"):
        fit_sky(replace(measured, flux=-measured.flux), KNOWN)


def test_a_blue_spectrum_without_a_line_is_fitted():
    """To 490 nm, where no family of lines has any light."""
    measured = artificial({}, 5)
    few = measured.wavelength < 490
    blue = replace(measured, **{name: getattr(measured, name)[few] for name in ("wavelength", "flux", "variance")})
    fit = fit_sky(blue, KNOWN)
    assert fit.chi2 / fit.degrees < 2


@pytest.mark.parametrize("unit", ["photon / (s m2 nm)", "W / (m2 nm)", "Jy"])
def test_a_spectrum_in_air_becomes_that_in_vacuum(unit):
    in_air, time = vacuum_to_air(np.arange(400.0, 900.0)), np.datetime64("2026-08-10T03:00:00")
    flux = np.full(len(in_air), 2.0) * units.Unit(unit)
    table = Table({"wavelength": in_air * units.nm, "flux": flux, "variance": flux**2})
    plain = measured_from_table(table, "V1", time)
    table.meta["medium"] = "air"
    found = measured_from_table(table, "V1", time)
    np.testing.assert_allclose(found.wavelength, np.arange(400.0, 900.0), rtol=1e-9)
    # a nm in air is 1.00027 in vacuum; energy per nm makes photons as the wavelength, per Hz as one over it
    longer, wide = found.wavelength / in_air, np.gradient(found.wavelength) / np.gradient(in_air)
    expected = {"photon / (s m2 nm)": 1 / wide, "W / (m2 nm)": longer / wide, "Jy": 1 / longer}[unit]
    inside = np.s_[1:-1]  # the slope at the ends is one-sided
    np.testing.assert_allclose((found.flux / plain.flux)[inside], expected[inside], rtol=1e-7)
    np.testing.assert_allclose((found.variance / plain.variance)[inside], expected[inside] ** 2, rtol=2e-7)


def test_another_table_is_refused():
    table = deliveries("night", exposures("night", PLAN, SITE.settings, SITE.camera))
    table = next(make for name, make in table.items() if name.startswith("spectrum-sky"))(SITE)
    time = np.datetime64("2026-08-10T03:00:00")
    wrong = table.copy()
    wrong["flux"].unit = units.mag
    with pytest.raises(UnitsError, match="spectrum V1: flux in 'mag'"):
        measured_from_table(wrong, "V1", time)
    wrong = table.copy()
    wrong["flux"] = wrong["flux"].value * units.Unit("photon / (s cm2 Angstrom)")
    found = measured_from_table(wrong, "V1", time)
    np.testing.assert_allclose(found.flux, np.asarray(table["flux"]) / 25 * 1e5)
    np.testing.assert_allclose(found.variance, np.asarray(table["variance"]) / 25**2)  # its own unit counts
    wrong["variance"].unit = units.Unit("photon / (s cm2 Angstrom)") ** 2
    found = measured_from_table(wrong, "V1", time)
    np.testing.assert_allclose(found.variance, np.asarray(table["variance"]) / 25**2 * 1e10)
    for column in ("wavelength", "flux", "variance"):
        silent = table.copy()
        silent[column] = np.asarray(silent[column])
        with pytest.raises(UnitsError, match=f"sky spectrum V1: column {column} has no unit"):
            measured_from_table(silent, "V1", time)
    wrong["variance"].unit = units.nm
    with pytest.raises(UnitsError, match="sky spectrum V1: column variance in 'nm'"):
        measured_from_table(wrong, "V1", time)
    wrong.remove_column("variance")
    with pytest.raises(CalibrationError, match="sky spectrum V1: has no column variance"):
        measured_from_table(wrong, "V1", time)


def smoothed(wavelength, flux, at, resolution):
    """Gaussian means, for spectra of any sampling."""
    out = np.empty(len(at))
    step = np.gradient(wavelength)
    for i, middle in enumerate(at):
        sigma = middle / resolution / 2.3548
        near = slice(*np.searchsorted(wavelength, [middle - 5 * sigma, middle + 5 * sigma]))
        weight = np.exp(-0.5 * ((wavelength[near] - middle) / sigma) ** 2) * step[near]
        out[i] = weight @ flux[near] / weight.sum()
    return out


def sharpened(spectrum, at, resolution):
    """A rebuilt spectrum at a resolution."""
    out = smoothed(spectrum.wavelength, spectrum.density, at, resolution)
    sigma = spectrum.line_wavelength / resolution / 2.3548
    for middle, width, flux in zip(spectrum.line_wavelength, sigma, spectrum.line_flux, strict=True):
        near = slice(*np.searchsorted(at, [middle - 5 * width, middle + 5 * width]))
        out[near] += flux * np.exp(-0.5 * ((at[near] - middle) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return out


def real_sky(real_data, name, last):
    """Wavelengths and light of a real sky, and what a spectrograph of R = 200 makes of it."""
    path = real_data / "sky" / name
    if name.endswith("fits"):
        with fits.open(path) as file:
            flux, wavelength = file[0].data.astype(float), file[1].data / 10
    else:
        sky = read_spectrum(path, unit=("nm", "erg / (s cm2 nm arcsec2)"), within=(300, 1155))
        flux, wavelength = sky.density, sky.wavelength
    pixels = np.arange(340.5, last)
    low = smoothed(wavelength, flux, pixels, 200.0)
    variance = (0.003 * low) ** 2 + (0.002 * np.median(low)) ** 2
    return wavelength, flux, Measured(name, np.datetime64("2026-01-01T03:00"), pixels, low, variance)


def standard_air(real_data):
    return read_curve(real_data / "throughputs" / "atmos_std.dat", unit=("nm", ""))


@pytest.mark.real
@pytest.mark.parametrize(("name", "last"), [("galsim_lsst_sky_sed.txt", 1060.0), ("paranal_sky.fits", 990.0)])
def test_a_real_sky_is_rebuilt_from_a_smoothed_one(real_data, name, last):
    wavelength, flux, measured = real_sky(real_data, name, last)
    pixels, low = measured.wavelength, measured.flux
    fit = fit_sky(measured, Spectrograph(), air=standard_air(real_data))
    assert np.std((fit.model / low - 1)[pixels > 600]) < 0.12
    at = np.arange(620.0, last - 10, 0.2)
    true = smoothed(wavelength, flux, at, 3000.0)
    rebuilt = sharpened(fit.spectrum, at, 3000.0)
    for first, end in ((620, 700), (700, 800), (800, 900), (900, last - 10)):
        own = (at > first) & (at < end)
        assert np.corrcoef(true[own], rebuilt[own])[0, 1] > 0.95
        assert rebuilt[own].sum() == pytest.approx(true[own].sum(), rel=0.05)
        # lines that were never resolved: what is left is far below a spectrum at the resolution it was taken
        smooth = np.interp(at[own], pixels, low)
        assert np.std(true[own] - rebuilt[own]) < 0.35 * np.std(true[own] - smooth)


@pytest.mark.real
def test_sunlight_explains_the_lines_of_the_blue_sky(real_data):
    _, _, measured = real_sky(real_data, "galsim_lsst_sky_sed.txt", 1060.0)
    # a star of the Sun's kind stands for zodiacal light
    star = read_spectrum(real_data / "calspec" / "hd142331_stis_005.fits.gz", within=(300, 1155))
    plain, solar = (
        fit_sky(measured, Spectrograph(), air=standard_air(real_data), sunlight=light) for light in (None, star)
    )
    blue = (measured.wavelength > 420) & (measured.wavelength < 500)
    left = [np.std((fit.model / measured.flux - 1)[blue]) for fit in (plain, solar)]
    # what is left are bands of oxygen that no family has
    assert left[1] < 0.75 * left[0]
