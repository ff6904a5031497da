"""The sky of stars, its catalogues and the image of a point."""

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.catalogue import photometric_catalogue, smooth_passband, standards, true_magnitudes
from lsstcal_dask.simulate.seds import ab_magnitude, flat, sed, templates
from lsstcal_dask.simulate.stars import (
    PSF,
    Stars,
    bright_star,
    known_spectrum,
    magnitude_at,
    psf,
    separation,
    stars_in,
)

SKY = Stars(density=3000, limit=20.0, bright=15.0, faint=22.0)
WAVELENGTH = np.arange(300.0, 1151.0)
NIGHT = np.datetime64("2026-07-02T03:00:00")


def cone_area(radius):
    """Solid angle, deg2."""
    return 2 * np.pi * (1 - np.cos(np.deg2rad(radius))) * np.rad2deg(1) ** 2


@pytest.mark.parametrize("dec", [-90.0, -89.9, -60.0, -0.1, 30.0, 90.0])
def test_counts(dec):
    found = stars_in(3, SKY, 120.0, dec, 1.0)
    # dN/dm = 10**(0.3 (m - 20)): 3000 deg-2 to 20 mag, less those brighter than 15.
    for faint in (18.0, 20.0, 22.0):
        expected = 3000 * (10 ** (0.3 * (faint - 20)) - 10 ** (0.3 * (15.0 - 20))) * cone_area(1.0)
        assert abs(np.sum(found["magnitude"] < faint) - expected) < 4.5 * np.sqrt(expected), (dec, faint)
    assert found["magnitude"].min() >= 15
    assert found["magnitude"].max() <= 22


@pytest.mark.parametrize("dec", [-89.7, -45.0, 0.0])
def test_even_within_a_cone(dec):
    found = stars_in(5, SKY, 0.1, dec, 1.5)
    inner = np.sum(separation(found["ra"], found["dec"], 0.1, dec) < 0.75)
    part = cone_area(0.75) / cone_area(1.5)
    assert abs(inner - part * len(found)) < 4.5 * np.sqrt(part * (1 - part) * len(found))
    east = np.sum((found["ra"] - 0.1) % 360 < 180)
    assert abs(east - len(found) / 2) < 4.5 * np.sqrt(len(found) / 4)


@pytest.mark.parametrize(("ra", "dec"), [(0.05, -30.0), (180.0, 60.0), (77.0, -89.8)])
def test_same_stars_from_overlapping_cones(ra, dec):
    first, second = stars_in(3, SKY, ra, dec, 0.6), stars_in(3, SKY, ra - 0.5, dec + 0.15, 0.7)
    for one, other, center in ((first, second, (ra - 0.5, dec + 0.15, 0.7)), (second, first, (ra, dec, 0.6))):
        common = one[separation(one["ra"], one["dec"], *center[:2]) <= center[2]]
        assert len(common) > 300
        np.testing.assert_array_equal(common, other[np.isin(other["id"], common["id"])])
    assert len(np.unique(first["id"])) == len(first)
    np.testing.assert_array_equal(stars_in(3, SKY, ra + 360, dec, 0.6)["id"], first["id"])
    assert not np.isin(stars_in(4, SKY, ra, dec, 0.6)["ra"], first["ra"]).any()


def test_small_fields_can_be_crowded():
    dense = stars_in(1, Stars(density_scale=300), 10.0, -30.0, 0.02)
    expected = Stars(density_scale=300).total * cone_area(0.02)
    assert expected > 1000
    assert abs(len(dense) - expected) < 4.5 * np.sqrt(expected)
    assert len(stars_in(1, Stars(density_scale=0), 10.0, -30.0, 1.0)) == 0


def test_separation_by_hand():
    np.testing.assert_allclose(separation(10.0, 0.0, 11.0, 0.0), 1, rtol=1e-12)
    np.testing.assert_allclose(separation(0.0, 90.0, 77.0, 60.0), 30, rtol=1e-12)
    np.testing.assert_allclose(separation(0.0, 60.0, 1e-6, 60.0), 0.5e-6, rtol=1e-7)


def test_kinds_and_colours():
    found = stars_in(7, SKY, 200.0, -20.0, 1.5)
    kinds = np.array([template.kind for template in templates()])[found["template"]]
    n = len(found)
    for kind, part in {"binary": 0.15, "white_dwarf": 0.01, "supernova": 0.001, "emission": 0.004}.items():
        assert abs(np.sum(kinds == kind) - part * n) < 4.5 * np.sqrt(part * n), kind
    np.testing.assert_array_equal(found["is_binary"], kinds == "binary")
    assert abs(found["is_variable"].sum() - 0.02 * n) < 4.5 * np.sqrt(0.02 * n)
    temperatures = np.array([template.temperature for template in templates()])[found["template"][kinds == "star"]]
    cool = np.mean(temperatures < 4200)
    assert 0.45 < cool < 0.52  # 48 % of red dwarfs, a few of the broad population
    assert 0.4 < np.mean((temperatures > 5000) & (temperatures < 7000)) < 0.5


def test_variables_vary_about_their_mean():
    found = stars_in(7, SKY, 200.0, -20.0, 0.5)
    stable = found[~found["is_variable"]]
    np.testing.assert_array_equal(magnitude_at(stable, NIGHT), stable["magnitude"])
    star = found[found["is_variable"]][:1]
    step = np.timedelta64(round(float(star["period"][0]) * 86_400_000 / 400), "ms")
    curve = np.array([magnitude_at(star, NIGHT + k * step)[0] for k in range(400)])
    assert curve.mean() == pytest.approx(star["magnitude"][0], abs=1e-3 * star["amplitude"][0])
    assert np.ptp(curve) == pytest.approx(2 * star["amplitude"][0], rel=1e-3)


def test_off_and_out_of_range():
    off = Stars(on=False)
    assert len(stars_in(1, off, 0.0, 0.0, 1.0)) == 0
    found = stars_in(1, SKY, 0.0, 0.0, 0.3)
    assert len(photometric_catalogue(1, off, found)) == 0
    assert len(standards(1, off, found, WAVELENGTH, {"g": np.ones_like(WAVELENGTH)})) == 0
    with pytest.raises(WrongUse, match="declination 91 within 1 deg"):
        stars_in(1, SKY, 0.0, 91.0, 1.0)
    with pytest.raises(WrongUse, match="lower their `density_scale`"):
        stars_in(1, Stars(density_scale=1e10), 0.0, 0.0, 0.1)
    with pytest.raises(ValidationError, match="`faint` must be the larger"):
        Stars(bright=20, faint=19)
    with pytest.raises(ValidationError, match="more than all stars"):
        Stars(binaries=0.9, white_dwarfs=0.2)
    with pytest.raises(ValidationError, match="known_faint"):
        Stars(known_bright=8, known_faint=7)


@pytest.mark.parametrize(("ra", "dec"), [(10.0, -30.0), (359.9, 5.0), (0.0, -90.0)])
def test_bright_star_of_a_field(ra, dec):
    star = bright_star(1, SKY, ra, dec)
    assert separation(star["ra"], star["dec"], ra, dec) < 1.5
    assert 4 <= star["magnitude"] <= 8
    assert star == bright_star(1, Stars(on=False), ra, dec)
    assert star["id"] == bright_star(1, SKY, float(star["ra"]), float(star["dec"]))["id"]
    # The spectrum has the magnitude of the star in the reference band.
    reference = np.arange(550, 690.05, 0.1)
    spectrum = known_spectrum(star, reference)
    np.testing.assert_allclose(ab_magnitude(spectrum, reference, np.ones_like(reference)), star["magnitude"], atol=1e-6)
    template = templates()[star["template"]]
    assert template.kind == "star"
    np.testing.assert_allclose(
        known_spectrum(star, WAVELENGTH) / sed(template, WAVELENGTH), 10 ** (-0.4 * star["magnitude"])
    )


def test_catalogue_errors():
    found = stars_in(11, Stars(faint=20.0), 40.0, -10.0, 2.0)
    catalogue = photometric_catalogue(11, Stars(), found)
    order = np.searchsorted(found["id"], catalogue["id"])
    np.testing.assert_array_equal(found["ra"][order], catalogue["ra"])
    passbands = {"g": smooth_passband(WAVELENGTH, 395.80, 53.39, 839.65, 123.07, 0.31)}
    true = true_magnitudes(found[order], WAVELENGTH, passbands)[:, 0]
    pull = (catalogue["g"] - true) / catalogue["g_error"]
    n = len(pull)
    assert n > 5000
    assert abs(pull.mean()) < 4.5 / np.sqrt(n)
    assert abs(pull.std() - 1) < 4.5 / np.sqrt(2 * n) + 0.01  # the logarithm of a flux is not quite Gaussian
    for magnitude, expected in {17.0: np.hypot(0.002, 0.006 * 10**-0.9), 20.0: np.hypot(0.002, 0.006)}.items():
        nearest = np.argmin(abs(true - magnitude))
        assert catalogue["g_error"][nearest] == pytest.approx(expected, rel=0.02)
    assert np.nanmedian(catalogue["bp"] - catalogue["rp"]) > 0.3
    part = photometric_catalogue(11, Stars(), found[100:400:7])
    np.testing.assert_array_equal(part, catalogue[np.isin(catalogue["id"], part["id"])])


def test_true_magnitude_of_one_star_by_hand():
    found = stars_in(11, SKY, 40.0, -10.0, 0.2)[:3]
    band = np.where(abs(WAVELENGTH - 480) < 70, 0.5, 0)
    for star, magnitude in zip(found, true_magnitudes(found, WAVELENGTH, {"g": band})[:, 0], strict=True):
        photons = np.trapezoid(known_spectrum(star, WAVELENGTH) * band, WAVELENGTH)
        zero = np.trapezoid(flat(WAVELENGTH) * band, WAVELENGTH)
        np.testing.assert_allclose(magnitude, -2.5 * np.log10(photons / zero), rtol=1e-12)


def test_standards():
    found = stars_in(11, SKY, 40.0, -10.0, 2.0)
    bands = {"g": np.where(abs(WAVELENGTH - 480) < 70, 0.5, 0), "z": np.where(abs(WAVELENGTH - 870) < 50, 0.3, 0)}
    settings = SKY.model_copy(update={"standards": 0.5})
    table = standards(11, settings, found, WAVELENGTH, bands)
    rows = found[np.searchsorted(found["id"], table["id"])]
    assert rows["magnitude"].max() < 19
    assert not rows["is_variable"].any()
    assert not rows["is_binary"].any()
    candidates = np.sum((found["magnitude"] < 19) & ~found["is_variable"] & ~found["is_binary"])
    assert abs(len(table) - candidates / 2) < 4.5 * np.sqrt(candidates / 4) + 0.01 * candidates  # few are not stars
    error = np.stack([table["g"], table["z"]], axis=1) - true_magnitudes(rows, WAVELENGTH, bands)
    n = error.size
    assert abs(error.mean()) < 4.5 * 0.005 / np.sqrt(n)
    assert abs(error.std() / 0.005 - 1) < 4.5 / np.sqrt(2 * n)
    assert abs(np.corrcoef(error.T)[0, 1]) < 4.5 / np.sqrt(len(table))
    np.testing.assert_array_equal(standards(11, settings, found, WAVELENGTH, {"z": bands["z"]})["z"], table["z"])


def test_psf_scaling_laws():
    air = PSF(system=0)
    here, beta = psf(1, air, NIGHT, 1.0, 500.0)
    assert beta == 3
    np.testing.assert_allclose(psf(1, air, NIGHT, 2.0, 500.0)[0] / here, 2**0.6, rtol=1e-12)
    np.testing.assert_allclose(psf(1, air, NIGHT, 1.0, np.array([400.0, 1000.0]))[0] / here, [0.8**-0.2, 2**-0.2])
    np.testing.assert_allclose(psf(1, PSF(system=0.4), NIGHT, 1.0, 500.0)[0], np.hypot(here, 0.4))
    width, _ = psf(1, PSF(on=False), NIGHT, np.array([1.0, 2.0]), 500.0)
    np.testing.assert_array_equal(width, [0, 0])


def test_seeing_of_many_nights():
    settings = PSF(system=0, scatter=0.3, correlation_time=60)
    start = np.datetime64("2026-01-01T14:30:00")
    times = start + np.arange(1000)[:, None] * np.timedelta64(1, "D") + np.array([0, 60]) * np.timedelta64(1, "m")
    walk = np.array([[float(np.log(psf(5, settings, t, 1.0, 500.0)[0] / 0.65)) for t in row] for row in times]) / 0.3
    n = len(walk)
    assert np.all(abs(walk.mean(axis=0)) < 4.5 / np.sqrt(n))
    assert np.all(abs(walk.std(axis=0) - 1) < 4.5 / np.sqrt(2 * n))
    found = np.corrcoef(walk.T)[0, 1]
    expected = np.exp(-1.0)  # one correlation time later
    assert abs(found - expected) < 4.5 * (1 - expected**2) / np.sqrt(n)
    assert abs(np.corrcoef(walk[1:, 0], walk[:-1, 1])[0, 1]) < 4.5 / np.sqrt(n)


def test_seeing_in_any_order():
    times = np.datetime64("2026-07-02T01:00:00.500") + np.arange(5) * np.timedelta64(7, "m")
    forth = [float(psf(2, PSF(), t, 1.2, 600.0)[0]) for t in times]
    back = [float(psf(2, PSF(), t, 1.2, 600.0)[0]) for t in times[::-1]][::-1]
    assert forth == back
    assert len(set(forth)) == 5
    assert float(psf(3, PSF(), times[0], 1.2, 600.0)[0]) != forth[0]
    with pytest.raises(WrongUse, match="before 1970"):
        psf(2, PSF(), np.datetime64("1969-01-01T00:00:00"), 1.0, 500.0)
