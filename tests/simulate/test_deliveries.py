"""What others deliver agrees with the truth within the errors that are told."""

import numpy as np
import pytest
from astropy import units

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import truth
from lsstcal_dask.simulate.catalogue import true_magnitudes
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.illumination import laser_centre
from lsstcal_dask.simulate.linearity import true_to_measured
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import mirrors
from lsstcal_dask.simulate.photodiode import responsivity
from lsstcal_dask.simulate.recipes import CalibrationDay, Night, Plan, Projections, exposures
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.stars import Stars, stars_in

CAMERA = load_camera("mini9")
SITE = Observatory(5, CAMERA, Settings(stars=Stars(density_scale=20.0, standards=0.5)))
PLAN = Plan(calibration_day=CalibrationDay(pairs=1), cbp=Projections(sets="f"), night=Night(visits=3, fields=2))


def made(recipe, site=SITE):
    found = deliveries(recipe, exposures(recipe, PLAN, site.settings, CAMERA))
    return {name: make(site) for name, make in found.items()}


@pytest.fixture(scope="module")
def day():
    return made("calibration-day")


@pytest.fixture(scope="module")
def night():
    return made("night")


def pulls(found, true, error):
    """Of Gaussian errors, rms 1 +- 1 / sqrt(2 n); five times that is allowed."""
    pull = (np.asarray(found, float) - true) / np.asarray(error, float)
    n = pull.size
    assert abs(pull.mean()) < 5 / np.sqrt(n)
    assert abs(np.sqrt((pull**2).mean()) - 1) < 5 / np.sqrt(2 * n)


def test_each_recipe_delivers_what_goes_with_it(day, night):
    filters = [f"filter-{band}" for band in "ugrizy"]
    assert list(day) == ["gain", "linearity", "crosstalk", "defects", "saturation", *filters]
    assert list(made("cbp")) == filters
    assert list(made("flat-cube")) == ["photodiode", "wavelengths"]
    visits = [e.name for e in exposures("night", PLAN, SITE.settings, CAMERA)]
    spectra_of = [f"spectrum-{kind}-{name}" for name in visits for kind in ("star", "sky")]
    assert list(night) == ["weather", "photometry", "standards", *spectra_of]
    taken = exposures("all", PLAN, SITE.settings, CAMERA)
    assert set(deliveries("all", taken)) == {*day, *night, "photodiode", "wavelengths"}


def test_lines_of_the_laser_are_measured_within_their_errors():
    table = made("flat-cube")["wavelengths"]
    flats = exposures("flat-cube", PLAN, SITE.settings, CAMERA)
    assert list(table["exposure"]) == [one.name for one in flats]
    true = [laser_centre(SITE.seed, SITE.settings.laser, one) for one in flats]
    pulls(table["wavelength"], true, table["wavelength_error"])
    assert set(table["bandwidth"]) == {1.0}
    assert str(table["wavelength"].unit) == "nm"


def test_the_responsivity_of_the_photodiode_is_delivered_with_a_smooth_error():
    sites = [Observatory(seed, CAMERA, SITE.settings) for seed in range(40)]
    tables = [deliveries("flat-cube", [])["photodiode"](site) for site in sites]
    true = responsivity(np.asarray(tables[0]["wavelength"]))
    pull = np.array([(np.asarray(t["responsivity"]) - true) / np.asarray(t["responsivity_error"]) for t in tables])
    assert abs(np.sqrt(np.mean(pull[:, ::60] ** 2)) - 1) < 5 / np.sqrt(
        2 * 40 * 4
    )  # some four of a seed are independent
    assert np.abs(np.diff(pull, axis=1)).max() < 0.3  # within 2 nm
    away = [t.meta["dark_current_A"] / SITE.settings.photodiode.dark_current - 1 for t in tables]
    assert 0 < np.std(away) < 0.04
    off = Observatory(1, CAMERA, SITE.settings.without(["photodiode"]))
    assert deliveries("flat-cube", [])["photodiode"](off).meta["dark_current_A"] == 0


def test_every_table_says_what_it_is(day, night):
    expected = {"gain": "¶2", "linearity": "¶3", "crosstalk": "¶5", "defects": "¶6", "saturation": "¶7"}
    expected |= {"weather": "¶14", "photometry": "¶15", "standards": "¶15"}
    for name, table in (day | night).items():
        kinds = {"filter": "¶11", "spectrum-star": "¶12, ¶13", "spectrum-sky": "♥2"}
        by_kind = next((k for kind, k in kinds.items() if name.startswith(kind)), "")
        assert table.meta["input"] == expected.get(name, by_kind)
        plain = {"id", "c", "c_error", "transmission", "transmission_error"}  # of dimension one
        for column in table.columns.values():
            if column.dtype.kind in "iuf" and column.name not in plain:
                assert column.unit is not None, f"{name}: {column.name}"


def test_gains_and_full_wells_are_right_within_their_errors(day):
    true = truth.amplifier_table(SITE)
    for table, column in (("gain", "gain"), ("saturation", "full_well")):
        assert list(day[table]["amplifier"]) == list(true["amplifier"])
        assert list(day[table]["detector"]) == list(true["detector"])
        pulls(day[table][column], true[column], day[table][f"{column}_error"])
    assert np.median(day["gain"]["gain_error"] / day["gain"]["gain"]) == pytest.approx(1e-3)


def test_linearity_curves_are_right_within_their_errors(day):
    table = day["linearity"]
    signal = np.array(table.meta["true_adu"])
    assert table["measured"].unit == units.adu
    rows = [(d, i) for d in CAMERA.detectors for i in range(len(d.amplifiers))]
    true = np.array([true_to_measured(5, SITE.settings.nonlinearity, d, i, signal) for d, i in rows])
    positive = signal > 0
    error = table.meta["relative_error"] * true
    pulls(table["measured"].value[:, positive], true[:, positive], error[:, positive])
    assert np.abs(true - signal).max() > 100  # there is something to correct


def test_crosstalk_is_right_within_its_errors(day):
    true = truth.crosstalk_table(SITE)
    names = [c for c in true.colnames if c.endswith(("detector", "amplifier"))]
    assert all((day["crosstalk"][n] == true[n]).all() for n in names)
    pulls(day["crosstalk"]["c"], true["c"], day["crosstalk"]["c_error"])
    pulls(day["crosstalk"]["c2"], true["c2"], day["crosstalk"]["c2_error"])


def test_defects_are_those_that_a_survey_finds(day):
    """Nearly all of the strong ones, and some that are none; without its errors, all there are."""
    defects = truth.defect_table(SITE)
    assert len(defects) > 0
    assert "value" not in day["defects"].colnames  # the camera team knows where, not how bad
    names = day["defects"].colnames
    true, told = ({tuple(row) for row in table[names]} for table in (defects, day["defects"]))
    assert len(true & told) > 0.5 * len(true)
    assert true - told
    assert day["defects"].meta["thresholds"]["electron_per_s"] == 5.0
    exact = made("calibration-day", Observatory(5, CAMERA, SITE.settings.without(["defect_survey"])))["defects"]
    assert "thresholds" not in exact.meta
    for name in names:
        assert (exact[name] == defects[name]).all()


@pytest.mark.parametrize("band", "ugrizy")
def test_filter_curves_are_right_within_their_errors(day, band):
    table = day[f"filter-{band}"]
    assert list(table["detector"]) == [d.name for d in CAMERA.detectors]
    curve = table["transmission"]
    wavelength = table.meta["first_nm"] + table.meta["step_nm"] * np.arange(curve.shape[1])
    place = np.array([d.center_mm for d in CAMERA.detectors])
    np.testing.assert_allclose(np.stack([table["x"].value, table["y"].value], 1), place)
    true = transmission(5, SITE.settings.filters, CAMERA, band, wavelength, *place.T)
    pulls(curve, true, table["transmission_error"])
    assert true.max() > 0.5


def test_weather_covers_the_night_and_tells_the_air(night):
    table = night["weather"]
    visits = exposures("night", PLAN, SITE.settings, CAMERA)
    assert table["time"].min() <= visits[0].time
    assert table["time"].max() >= visits[-1].time
    for row in table:
        air = truth.at(SITE, "air", time=row["time"])
        assert abs(row["pressure"] - air.pressure) < 5 * row["pressure_error"]
        then = truth.at(SITE, "air", time=row["ozone_time"])
        assert abs(row["ozone"] - then.ozone) < 5 * row["ozone_error"]


def test_standards_are_right_within_their_errors(night):
    table = night["standards"]
    stars = {row["id"]: row for row in stars_of_the_fields()}
    assert len(table) > 20
    wavelength = np.arange(300.0, 1100.0)
    glass = mirrors(SITE.settings.mirrors, wavelength)
    for band in "ugrizy":
        seen = glass * transmission(5, SITE.settings.filters, CAMERA, band, wavelength, 0.0, 0.0)
        own = np.array([stars[i] for i in table["id"]])
        true = true_magnitudes(own, wavelength, {band: seen})[:, 0]
        pulls(table[band].value, true, table[f"{band}_error"].value)
        assert table[band].unit == units.mag


def stars_of_the_fields():
    visits = exposures("night", PLAN, SITE.settings, CAMERA)
    fields = {(v.source.ra, v.source.dec) for v in visits}
    return np.concatenate([stars_in(5, SITE.settings.stars, ra, dec, 0.2) for ra, dec in fields])


def test_the_catalogue_holds_the_stars_of_every_field(night):
    table = night["photometry"]
    stars = {row["id"]: row for row in stars_of_the_fields()}
    assert len(table) > 100
    assert set(table["id"]) <= set(stars)
    visits = exposures("night", PLAN, SITE.settings, CAMERA)
    for visit in visits:
        assert (np.hypot(table["ra"].value - visit.source.ra, table["dec"].value - visit.source.dec) < 0.2).any()
    brightness = np.array([stars[i]["magnitude"] for i in table["id"]])
    assert np.abs(table["g"].value - brightness).max() < 2.5  # another band, the same stars


def test_spectra_of_stars_show_what_the_air_leaves(night):
    """The air of a visit at its airmass passes between a third and all; the known spectrum is that above it."""
    for name, table in night.items():
        if not name.startswith("spectrum-star"):
            continue
        assert table["flux"].unit == units.Unit("photon / (s m2 nm)")
        assert table["variance"].unit == table["flux"].unit ** 2
        clear = (table["wavelength"].value > 500) & (table["wavelength"].value < 680)
        share = (table["flux"] / table["known"]).value[clear]
        assert 0.5 < np.median(share) < 1
        noise = np.sqrt(table["variance"].value[clear]) / table["flux"].value[clear]
        assert np.median(noise) < 0.05
        zero = 5.48e10 / 590  # photons / (s m2 nm) of a star of magnitude 0; those of known spectrum have 4 to 8
        magnitude = -2.5 * np.log10(table["known"].value[clear].mean() / zero)
        assert 3.5 < magnitude < 8.5
        assert {"exposure", "airmass", "star", "ra_deg", "dec_deg", "exposure_time_s"} <= set(table.meta)


def test_spectra_of_the_sky_are_as_bright_as_a_moonless_night(night):
    """21.2 mag in V and 20 in the i band of a square arcsec, give or take one: airglow changes by that much."""
    for name, table in night.items():
        if not name.startswith("spectrum-sky"):
            continue
        wavelength = table["wavelength"].value
        for low, high, magnitude in ((510, 590, 21.4), (700, 820, 20.0)):
            inside = (wavelength > low) & (wavelength < high)
            mean = table["flux"].value[inside].mean() / table.meta["slit_arcsec2"]
            ab = 5.48e10 / np.mean([low, high]) * 10 ** (-0.4 * magnitude)  # photons / (s m2 nm)
            assert 0.3 < mean / ab < 3


def test_noise_of_a_spectrum_is_that_of_its_variance(night):
    """Where no line is strong, neighbours differ by noise alone: its rms within 5 / sqrt(2 n) of 100 pixels."""
    table = next(t for n, t in night.items() if n.startswith("spectrum-sky"))
    flux, variance = table["flux"].value, table["variance"].value
    smooth = (table["wavelength"].value > 400) & (table["wavelength"].value < 500)  # no strong lines
    step = np.diff(flux[smooth], 2) / np.sqrt(6 * variance[smooth][1:-1])
    assert abs(step.std() - 1) < 5 / np.sqrt(2 * len(step)) * np.sqrt(2)  # neighbours share values


def test_without_noise_sources_the_night_is_seen_as_it_is():
    off = Observatory(5, CAMERA, SITE.settings.without(["spectrograph", "atmosphere", "weather"]))
    table = made("night", off)
    star = next(t for n, t in table.items() if n.startswith("spectrum-star"))
    np.testing.assert_allclose(star["flux"], star["known"])
    assert not star["variance"].any()
    assert not table["weather"]["pressure_error"].any()
