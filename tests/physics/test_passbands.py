import numpy as np
import pytest
from astropy import units as u
from astropy.table import Column, MaskedColumn, Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, InsufficientInputs, UnitsError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.passbands import (
    Passband,
    passband_from_curves,
    passband_from_table,
    radial_curve,
    rebin,
    resample,
    surface,
)
from lsstcal_dask.physics.spectra import Curve, bin_means
from lsstcal_dask.physics.units import vacuum_to_air
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.storage.rubin.transmission import read_transmission

WAVELENGTH = np.linspace(500.0, 700.0, 201)


def passband(shape=(5, 5), noise=0.0, band="r"):
    """An edge that moves as a parabola with the radius, in a camera of even places."""
    rng = np.random.default_rng(4)
    x, y = (grid.ravel() for grid in np.meshgrid(*(np.linspace(-100, 100, n) if n > 1 else [0.0] for n in shape)))
    found = edge(x, y) + noise * rng.standard_normal((x.size, WAVELENGTH.size))
    names = tuple(f"D{i}" for i in range(x.size))
    return Passband(band, names, x, y, WAVELENGTH, found, np.full(found.shape, noise))


def edge(x, y):
    place = 600 + 1e-3 * (np.asarray(x) ** 2 + np.asarray(y) ** 2)
    return np.clip((WAVELENGTH - place[..., None] + 250) / 500, 0, 1)  # linear in the place, so a parabola of x and y


def test_a_surface_gives_back_a_polynomial():
    found = surface(passband(), 2)
    x, y = np.array([3.0, -70.0]), np.array([11.0, 40.0])
    np.testing.assert_allclose(found.at(x, y), edge(x, y), atol=1e-12)
    slope = -2e-3 / 500 * np.array([30.0, -20.0])
    np.testing.assert_allclose(found.gradient(30.0, -20.0), np.broadcast_to(slope[:, None], (2, 201)), atol=1e-12)
    np.testing.assert_allclose(found.terms(x, y) @ found.coefficients, found.at(x, y))
    assert found.misfit.max() < 1e-12


@pytest.mark.parametrize(("shape", "degree"), [((1, 1), 0), ((3, 3), 2), ((5, 5), 4)])
def test_the_degree_follows_from_the_camera(shape, degree):
    assert surface(passband(shape)).powers.sum(axis=1).max() == degree


def test_the_error_of_a_surface_is_that_of_its_noise():
    noise = 1e-3
    given = passband(noise=noise)
    found = surface(given, 2)
    # 19 degrees of freedom for each of 201 wavelengths: the mean variance scatters by sqrt(2 / 19 / 201)
    assert np.mean(found.misfit**2) == pytest.approx(noise**2, rel=4 * np.sqrt(2 / 19 / 201))
    x, y = np.array([0.0, 90.0]), np.array([10.0, -60.0])
    pull = (found.at(x, y) - edge(x, y)) / found.error(x, y)
    assert np.mean(pull**2) == pytest.approx(1, abs=4 * np.sqrt(2 / pull.size) + 2 / 19)  # of a t distribution
    # one CCD has no misfit: what its own error says
    single = passband((1, 1), noise)
    np.testing.assert_allclose(surface(single).error(0.0, 0.0), noise)


def test_a_radial_curve_averages_over_a_circle():
    noise = 1e-3
    found = radial_curve(passband(noise=noise), 50.0)
    pull = (found.value - edge(50.0, 0.0)) / found.error
    assert found.error.max() < noise
    assert np.mean(pull**2) == pytest.approx(1, abs=4 * np.sqrt(2 / 201) + 2 / 21)
    alone = radial_curve(passband((1, 1), noise), 0.0)
    np.testing.assert_allclose(alone.error, noise)


def test_resampling_reads_between_and_rebinning_averages():
    given = passband(noise=1e-3)
    half = resample(given, WAVELENGTH[:-1] + 0.5)
    np.testing.assert_allclose(half.transmission, (given.transmission[:, 1:] + given.transmission[:, :-1]) / 2)
    np.testing.assert_allclose(half.error, 1e-3 / np.sqrt(2))
    same = resample(given, WAVELENGTH)
    np.testing.assert_allclose(same.transmission, given.transmission, atol=1e-15)
    np.testing.assert_allclose(same.error, given.error)
    edges = np.linspace(480, 720, 13)
    np.testing.assert_allclose(rebin(given, edges)[3], bin_means(WAVELENGTH, given.transmission[3], edges))
    with pytest.raises(CalibrationError, match="filter r: known from 500 to 700 nm, asked for 499 to 650: extend it"):
        resample(given, np.array([499.0, 650.0]))


def test_curves_of_ccds_with_other_wavelengths_meet_on_those_of_all():
    first = Curve(np.array([500.0, 600.0, 700.0]), np.array([0.0, 1.0, 0.0]))
    second = Curve(np.array([510.0, 650.0, 690.0]), np.array([0.5, 0.5, 0.1]), error=np.full(3, 0.01))
    found = passband_from_curves("r", {"A": first, "B": second}, {"A": (0, 0), "B": (42, 0), "C": (84, 0)})
    np.testing.assert_array_equal(found.wavelength, [510, 600, 650, 690])
    np.testing.assert_allclose(found.of("A").value, [0.1, 1, 0.5, 0.1])
    assert np.isnan(found.error[0]).all()
    np.testing.assert_array_equal(found.of("B").error, 0.01)
    with pytest.raises(InsufficientInputs, match="filter r: no curve of C: add it"):
        found.of("C")
    with pytest.raises(InconsistentGeometry, match="the place of B is not known"):
        passband_from_curves("r", {"A": first, "B": second}, {"A": (0, 0)})
    with pytest.raises(InsufficientInputs, match="filter r: no curves"):
        passband_from_curves("r", {}, {})
    apart = Curve(np.array([710.0, 720.0]), np.ones(2))
    with pytest.raises(InsufficientInputs, match="no wavelengths in common"):
        passband_from_curves("r", {"A": first, "B": apart}, {"A": (0, 0), "B": (42, 0)})


def test_too_few_ccds_for_a_degree_are_refused():
    with pytest.raises(InsufficientInputs, match="filter r: 9 CCDs do not determine degree 4: take a lower one"):
        surface(passband((3, 3)), 4)


def test_bad_passbands_are_refused_by_name():
    good = passband((1, 2))
    value, nan = good.transmission, np.full_like(good.transmission, np.nan)
    with pytest.raises(CalibrationError, match=r"filter r: transmission of \(2, 200\), expected \(2, 201\)"):
        Passband("r", good.detector, good.x, good.y, WAVELENGTH, value[:, 1:], good.error)
    with pytest.raises(UnitsError, match="filter r: D0: its transmission is not a number"):
        Passband("r", good.detector, good.x, good.y, WAVELENGTH, nan, good.error)
    with pytest.raises(UnitsError, match="filter r: the place of a CCD is not a number"):
        Passband("r", good.detector, good.x * np.nan, good.y, WAVELENGTH, value, good.error)
    with pytest.raises(InconsistentGeometry, match="filter r: D0 has two curves"):
        Passband("r", ("D0", "D0"), good.x, good.y, WAVELENGTH, value, good.error)
    with pytest.raises(UnitsError, match=r"filter r: .*give fractions, not percent"):
        Passband("r", good.detector, good.x, good.y, WAVELENGTH, 100 * value, good.error)


@pytest.fixture(scope="module")
def delivered():
    site = Observatory(camera=load_camera("mini9"), seed=5, settings=Settings())
    return site, deliveries("cbp", ())["filter-i"](site)


def test_the_table_of_a_store_becomes_a_passband(delivered):
    site, table = delivered
    found = passband_from_table(table)
    assert found.band == "i"
    assert found.wavelength[0] == 300
    for i, detector in enumerate(site.camera.detectors):
        assert found.detector[i] == detector.name
        true = transmission(site.seed, site.settings.filters, site.camera, "i", found.wavelength, *detector.center_mm)
        pull = (found.of(detector.name).value - true) / found.error[i]
        assert np.mean(pull**2) == pytest.approx(1, abs=4 * np.sqrt(2 / pull.size))


def test_wavelengths_of_a_table_in_air_become_those_in_vacuum(delivered):
    table = Table(delivered[1], copy=True)
    plain = passband_from_table(table).wavelength
    table.meta["medium"] = "air"
    found = passband_from_table(table).wavelength
    np.testing.assert_allclose(vacuum_to_air(found), plain, rtol=1e-12)
    assert np.all(found - plain > 0.08)
    table.meta["medium"] = "water"
    with pytest.raises(UnitsError, match="table of filter i: wavelengths in medium 'water': say air or vacuum"):
        passband_from_table(table)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.remove_column("transmission_error"), CalibrationError, "has no column transmission_error"),
        (lambda t: t.meta.pop("step_nm"), CalibrationError, "has no entry step_nm of meta"),
        (lambda t: t.replace_column("x", t["x"].value * u.m), UnitsError, "column x is in m, expected mm"),
        (lambda t: t.replace_column("transmission", t["transmission"].data * u.percent), UnitsError, "is in %"),
        (lambda t: t.meta.update(step_nm="one"), UnitsError, "step_nm is 'one': give a number in nm"),
        (
            lambda t: t.replace_column("x", Column([f"{x}mm" for x in t["x"]], unit="mm")),
            UnitsError,
            "column x holds what is no number: give numbers in mm",
        ),
        (
            lambda t: t.replace_column("transmission", t["transmission"][:, 0]),
            CalibrationError,
            r"column transmission of \(9,\): give several numbers in each row",
        ),
        (
            lambda t: t.replace_column("detector", MaskedColumn(t["detector"], mask=np.arange(9) == 4)),
            CalibrationError,
            "column detector has empty entries",
        ),
        (lambda t: t.remove_rows(slice(None)), CalibrationError, "has no row"),
    ],
)
def test_another_table_is_refused(delivered, change, error, message):
    table = Table(delivered[1], copy=True)
    change(table)
    with pytest.raises(error, match=f"table of filter i: .*{message}"):
        passband_from_table(table)


def test_what_is_empty_in_a_table_is_not_known(delivered):
    table = Table(delivered[1], copy=True)
    hole = np.zeros(table["transmission"].shape, bool)
    hole[4, 300:340] = True
    table["transmission_error"] = MaskedColumn(table["transmission_error"], mask=hole)
    np.testing.assert_array_equal(np.isnan(passband_from_table(table).error), hole)
    table["transmission"] = MaskedColumn(table["transmission"], mask=hole)
    name = table["detector"][4]
    with pytest.raises(UnitsError, match=f"filter i: {name}: its transmission is not a number somewhere"):
        passband_from_table(table)
    table = Table(delivered[1], copy=True)
    table["x"] = MaskedColumn(table["x"], mask=np.arange(9) == 0)
    with pytest.raises(UnitsError, match="filter i: the place of a CCD is not a number or missing"):
        passband_from_table(table)


@pytest.mark.real
@pytest.mark.parametrize("band", "iy")
def test_real_filters_are_smooth_over_the_focal_plane(real_data, band):
    camera = load_camera("lsstcam")
    path = real_data / "lsstcam" / "filters" / f"integrated_transmission_materion_{band}band.fits"
    curves = {c.detector: Curve(c.wavelength, c.efficiency / 100) for c in read_transmission(path, camera)}
    found = passband_from_curves(band, curves, {d.name: d.center_mm for d in camera.detectors})
    assert len(found.detector) == 189
    fitted = surface(found)
    # a CCD left out is predicted as well as the misfit says: neighbours were not merely followed
    left = np.arange(189) % 10 == 4
    part = Passband(
        band,
        tuple(np.array(found.detector)[~left]),
        found.x[~left],
        found.y[~left],
        found.wavelength,
        found.transmission[~left],
        found.error[~left],
    )
    missed = surface(part).at(found.x[left], found.y[left]) - found.transmission[left]
    assert np.sqrt(np.mean(missed**2)) < 2 * np.sqrt(np.mean(fitted.misfit**2)) + 1e-4
    # photons of a flat spectrum in the band: 0.04-0.12 % from CCD to CCD is what real filters have beyond degree 6
    flux = found.transmission.sum(axis=1)
    assert np.std(fitted.at(found.x, found.y).sum(axis=1) / flux) < 1.5e-3
    assert np.std(flux) / np.mean(flux) > 2 * np.std(fitted.at(found.x, found.y).sum(axis=1) / flux)


@pytest.mark.real
def test_real_quantum_efficiencies_are_curves(real_data):
    camera = load_camera("lsstcam")
    path = real_data / "lsstcam" / "sensor_qe" / "r22_s11" / "19700101T000000.ecsv"
    curves = [Curve(c.wavelength, c.efficiency / 100, c.amplifier) for c in read_transmission(path, camera)]
    assert len(curves) == 16
    assert all(0.85 < float(c.at(620.0)) < 1 and float(c.at(1050.0)) < 0.4 for c in curves)
