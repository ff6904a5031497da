"""From the inputs of a store to the spectrum of a visit's sky and the filter in its beam."""

import re

import numpy as np
import pytest
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, InsufficientInputs, StaleCalibration, UnitsError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.spectra import Curve, photons
from lsstcal_dask.pipeline.flatfields import sky_of
from lsstcal_dask.pipeline.observatory import SimulateConfig, simulate
from lsstcal_dask.pipeline.passbands import rubin_passband, rubin_quantum_efficiency, store_passband, told_of_curves
from lsstcal_dask.pipeline.sky import Skies, measured_skies
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.products.sky_time import SkyConfig
from lsstcal_dask.simulate import Observatory
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.recipes import Night, Plan
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.storage.tables import read_input, write_table

VISITS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory, threads):
    """A short night of the smallest camera, of which only the sky matters."""
    found = create_store(tmp_path_factory.mktemp("night") / "s", "mini1")
    effects = Settings().only(["airglow", "spectrograph"])
    report = simulate(found, "night", SimulateConfig(recipe=Plan(night=Night(visits=VISITS)), effects=effects), threads)
    assert report.errors == []
    return found


def test_spectra_are_found_by_the_time_of_their_visits(store):
    found = measured_skies(store)
    assert len(found) == VISITS
    assert np.all(np.diff([m.time for m in found]) > np.timedelta64(0))
    table = read_input(store.url, f"spectrum-sky-{found[0].name}")
    np.testing.assert_allclose(found[0].flux, np.asarray(table["flux"]) / table.meta["slit_arcsec2"])
    assert [m.name for m in measured_skies(store, found[0].time)] == [m.name for m in found]


def test_the_sky_of_a_visit_comes_from_its_own_spectrum(store):
    visit = measured_skies(store)[1]
    spectrum, fits = Skies(store).of_visit(visit.name)
    assert len(fits) == VISITS
    own = fits[1].spectrum
    assert fits[1].measured.name == visit.name
    red = Curve(np.array([700.0, 701.0, 899.0, 900.0]), np.array([0.0, 1.0, 1.0, 0.0]))
    # its neighbours, 2 min away, have a tenth of the weight, and differ by a tenth
    assert photons(spectrum, red) == pytest.approx(photons(own, red), rel=0.03)
    assert str(visit.time)[:19] in spectrum.name


def test_what_is_missing_is_named(store, tmp_path):
    with pytest.raises(CalibrationError, match="has no exposure V9"):
        Skies(store).of_visit("V9")
    empty = create_store(tmp_path / "s", "mini1")
    with pytest.raises(InsufficientInputs, match="has no spectrum of the sky of a visit that it holds"):
        measured_skies(empty)


@pytest.mark.parametrize("mode", ["nearest", "interpolated"])
def test_a_spectrum_that_ends_within_the_filter_is_refused(store, monkeypatch, mode):
    """In the blue it is enough."""
    from lsstcal_dask.pipeline import sky

    def cut(*asked):
        return read_input(*asked)[:250]

    monkeypatch.setattr(sky, "read_input", cut)
    visit = measured_skies(store)[1].name
    skies = Skies(store, SkyConfig(mode=mode))
    with pytest.raises(InsufficientInputs, match=r"measured from 340\.5 to 589\.5 nm, it leaves up to .* of no filter"):
        skies.of_visit(visit)
    with pytest.raises(InsufficientInputs, match="of no filter"):
        sky_of(skies, "none", visit)
    sky_of(skies, "none", visit, limit=0.999)
    spectrum, _ = Skies(store, SkyConfig(mode="nearest", reach=(340, 590))).of_visit(visit)
    assert spectrum.density.max() > 0


def test_a_visit_whose_spectrum_is_far_is_refused(store, monkeypatch):
    from lsstcal_dask.pipeline import sky

    visits = [m.name for m in measured_skies(store)]
    names = [name for name in sky.input_names(store.url) if not name.endswith(tuple(visits[:2]))]
    monkeypatch.setattr(sky, "input_names", lambda url: names)
    late = sky._times(store)
    monkeypatch.setattr(sky, "_times", lambda store: late | {visits[0]: late[visits[0]] - np.timedelta64(40, "m")})
    with pytest.raises(StaleCalibration, match=f"the nearest spectrum, {visits[2]}, is 4. min away, more than 20"):
        Skies(store).of_visit(visits[0])
    source, _ = sky_of(Skies(store), "none", visits[0], stale=True)
    assert source.spectrum.line_flux.sum() > 0


@pytest.fixture(scope="module")
def skies(store):
    """Skies that have fitted every spectrum of the night."""
    found = Skies(store)
    found.of_visit(measured_skies(store)[0].name)
    return found


def test_each_spectrum_is_fitted_once_for_all_visits(store, skies, monkeypatch):
    from lsstcal_dask.pipeline import sky

    fitted: list[str] = []
    monkeypatch.setattr(sky, "fit_sky", lambda one, *more: fitted.append(one.name) or skies._fits[one.name])
    visits = [m.name for m in measured_skies(store)]
    fresh = Skies(store)
    for visit in visits:
        found, fits = fresh.of_visit(visit)
        assert len(fits) == VISITS
        np.testing.assert_array_equal(found.line_flux, skies.of_visit(visit)[0].line_flux)
    assert sorted(fitted) == sorted(visits)


def test_the_nearest_spectrum_alone_stands_for_a_visit_if_that_is_asked_for(store, skies, monkeypatch):
    from lsstcal_dask.pipeline import sky

    monkeypatch.setattr(sky, "fit_sky", lambda one, *more: skies._fits[one.name])
    visits = [m.name for m in measured_skies(store)]
    nearest = Skies(store, SkyConfig(mode="nearest"))
    spectrum, (only,) = nearest.of_visit(visits[1])
    assert only.measured.name == visits[1]
    np.testing.assert_allclose(spectrum.line_flux, np.clip(only.spectrum.line_flux, 0, None))
    mixed, _ = skies.of_visit(visits[1])
    lit = spectrum.line_flux > 0
    assert np.abs(mixed.line_flux[lit] / spectrum.line_flux[lit] - 1).max() > 1e-3
    source, _ = sky_of(nearest, "none", visits[1])
    assert source.about["sky_age_min"] == 0
    assert source.about["sky_chi2"] == pytest.approx(only.chi2 / only.degrees)


def test_spectra_in_air_that_do_not_say_so_are_told_so(store):
    """At 800 nm, wavelengths in air are 0.22 nm shorter than those in vacuum."""
    plain, moved = (measured_skies(store, medium=medium)[0].wavelength for medium in (None, "air"))
    at = np.argmin(np.abs(plain - 800))
    silent = "medium" not in read_input(store.url, f"spectrum-sky-{measured_skies(store)[0].name}").meta
    assert silent
    assert moved[at] - plain[at] == pytest.approx(0.22, abs=0.005)
    with pytest.raises(UnitsError, match="say air or vacuum"):
        measured_skies(store, medium="glass")


def test_a_filter_of_a_store_is_that_of_its_camera(tmp_path):
    store = create_store(tmp_path / "s", "mini1")
    name = store.camera.detectors[0].name
    wavelength = np.arange(300.0, 1151.0)

    def write(detector):
        columns = {"detector": [detector], "x": [0.0], "y": [0.0], "transmission": [0 * wavelength + 0.5]}
        columns["transmission_error"] = [0 * wavelength + 1e-3]
        table = Table(columns, meta={"filter": "r", "first_nm": 300.0, "step_nm": 1.0})
        table["x"].unit = table["y"].unit = "mm"
        write_table(store.url, "inputs/filter-r", table)

    write(name)
    np.testing.assert_array_equal(store_passband(store, "r").of(name).value, 0.5)
    write("R99_S99")
    with pytest.raises(InconsistentGeometry, match="filter r: camera mini1 has no detector R99_S99"):
        store_passband(store, "r")


def glass(store):
    """The table of filter r that the camera team delivers."""
    return deliveries("cbp", ())["filter-r"](Observatory(7, store.camera, Settings()))


def mirrored(table):
    table["x"] = -table["x"]


def centimetres(table):
    table["x"], table["y"] = table["x"] / 10, table["y"] / 10


def at_one_place(table):
    table["x"][:], table["y"][:] = 0.0, 0.0


@pytest.mark.parametrize(
    ("wrong", "where"), [(mirrored, "(5.4, -2.8)"), (centimetres, "(-0.54, -0.28)"), (at_one_place, "(0, 0)")]
)
def test_a_filter_whose_ccds_lie_elsewhere_is_refused(tmp_path, wrong, where):
    store = create_store(tmp_path / "s", "mini9")
    table = glass(store)
    write_table(store.url, "inputs/filter-r", table)
    assert store_passband(store, "r").detector == tuple(d.name for d in store.camera.detectors)
    wrong(table)
    write_table(store.url, "inputs/filter-r", table)
    says = f"filter r: the place of R22_S00 is {where} mm, but camera mini9 has that CCD at (-5.4, -2.8) mm: correct x"
    with pytest.raises(InconsistentGeometry, match=re.escape(says)):
        store_passband(store, "r")


def test_a_filter_that_says_that_it_is_another_is_refused(tmp_path):
    store = create_store(tmp_path / "s", "mini1")
    write_table(store.url, "inputs/filter-i", glass(store))
    with pytest.raises(CalibrationError, match=r"filter-i.ecsv says that it is of filter r: put that of i there, or"):
        store_passband(store, "i")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (range(9), ""),
        ([8], "note: {}1 of 9 CCDs are known, that of R22_S22 is used for all"),
        ([0, 2, 6, 8], "note: {}4 of 9 CCDs are known, and the others lie between the 4 that have one"),
        ([1, 3, 4, 5, 7], "{}5 of 9 CCDs are known, and extrapolated to R22_S00, R22_S02, R22_S20 and 1 more, outside"),
        ([0, 3], "{}2 of 9 CCDs are known, and extrapolated to R22_S01, R22_S02, R22_S11 and 4 more, outside"),
        ([0, 3, 6], "{}3 of 9 CCDs are known, and extrapolated to R22_S01, R22_S02, R22_S11 and 3 more, outside"),
        ([0, 3, 6, 1, 7], "{}5 of 9 CCDs are known, and extrapolated to R22_S02, R22_S12, R22_S22, outside"),
    ],
)
def test_ccds_without_a_curve_of_their_own_are_told(tmp_path, rows, says):
    """A note where curves surround them, a warning where they are extrapolated."""
    store = create_store(tmp_path / "s", "mini9")
    write_table(store.url, "inputs/filter-r", glass(store)[list(rows)])
    told = told_of_curves(store_passband(store, "r"), store.camera.detectors)
    assert len(told) == bool(says)
    assert "".join(told).startswith(says.format("filter r: curves of "))


def test_a_ccd_amid_curves_that_lie_close_together_elsewhere_is_told(tmp_path):
    """Two pairs of neighbours on either side of LSSTCam: the middle is between them, and as far as can be from both."""
    store = create_store(tmp_path / "s", "lsstcam")
    table = glass(store)
    pairs = [list(table["detector"]).index(name) for name in ("R02_S01", "R02_S11", "R42_S01", "R42_S11")]
    write_table(store.url, "inputs/filter-r", table[pairs])
    middle = [store.camera.detector("R22_S11")]
    (told,) = told_of_curves(store_passband(store, "r"), middle)
    assert told.startswith("filter r: curves of 0 of 1 CCDs are known, and extrapolated to R22_S11, outside")


@pytest.mark.real
def test_rubins_files_are_read(real_data):
    camera = load_camera("lsstcam")
    folder = real_data / "lsstcam"
    found = rubin_passband(folder / "filters" / "integrated_transmission_materion_rband.fits", camera)
    assert (found.band, len(found.detector)) == ("r", 189)
    # of the file's own header for this CCD: HI_50 = 690.4963 nm, LO_50 = 547.2029 nm
    curve = found.of("R01_S00")
    half = curve.value.max() / 2
    inside = curve.wavelength[curve.value > half]
    assert inside[0] == pytest.approx(547.2, abs=1.0)
    assert inside[-1] == pytest.approx(690.5, abs=1.0)
    sensors = rubin_quantum_efficiency(folder / "sensor_qe" / "r22_s11" / "19700101T000000.ecsv", camera)
    assert len(sensors) == 16
    assert 0.85 < float(sensors["C00"].at(620.0)) < 1
