from dataclasses import replace

import numpy as np
import pytest
from astropy import units

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.simulate import truth
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.dark import ROW_TIME
from lsstcal_dask.simulate.deferred import Deferred
from lsstcal_dask.simulate.exposure import Exposure, Pointing
from lsstcal_dask.simulate.night import true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.recipes import CalibrationDay, FlatCube, Plan, Projections, exposures
from lsstcal_dask.simulate.settings import Settings

CAMERA = load_camera("mini9")
SITE = Observatory(5, CAMERA)
PLAN = Plan(calibration_day=CalibrationDay(pairs=1), flat_cube=FlatCube(step=200.0), cbp=Projections(sets="f"))


def taken(recipe):
    return exposures(recipe, PLAN, SITE.settings, CAMERA)


@pytest.mark.parametrize("name", ["R22_S00", "R22_S01"])
def test_numbers_of_an_amplifier_are_those_of_the_table(name):
    table = truth.amplifier_table(SITE)
    assert len(table) == 9 * 16
    assert table["gain"].unit == "electron / adu"
    late = np.array([[row[name] for name in ("serial_cti", "parallel_cti", "offset")] for row in table])
    assert (late > 0).all()
    assert (late < [5e-6, 1e-7, 1e-2]).all()
    assert {str(table[c].unit) for c in ("read_noise", "row_noise", "full_well", "serial_full_well")} == {"electron"}
    row = table[(table["detector"] == name) & (table["amplifier"] == "C03")][0]
    numbers = ("gain", "read_noise", "row_noise", "pedestal", "full_well", "serial_full_well")
    for quantity in (*numbers, "serial_cti", "parallel_cti", "offset"):
        assert truth.at(SITE, quantity, detector=name, amplifier="C03") == row[quantity]
    nominal = {"e2v": (1.5, 5.5), "ITL": (1.7, 6.5)}[CAMERA.detector(name).vendor]
    assert row["gain"] == pytest.approx(nominal[0], rel=0.15)
    assert row["read_noise"] == pytest.approx(nominal[1], rel=0.3)


@pytest.mark.parametrize("name", ["R22_S00", "R22_S01"])
def test_maps_are_the_truth_in_readout_orientation(name):
    detector = CAMERA.detector(name)
    maps = {variable: (values, units) for variable, values, units in truth.truth_maps(SITE, detector)}
    assert {k: units for k, (_, units) in maps.items()} == {
        "bias": "adu",
        "dark": "electron/s",
        "sensitivity": "",
        "corners": "pixel",
    }
    ny, nx = detector.amplifiers[0].data.shape
    for amplifier in ("C10", "C07"):
        place = CAMERA.amplifier_names.index(amplifier)
        expected = truth.at(SITE, "bias", detector=name, amplifier=amplifier)
        np.testing.assert_array_equal(maps["bias"][0][place, :ny, :nx], expected)
        assert expected.std() > 0
    dark = truth.at(SITE, "dark", detector=name)
    np.testing.assert_array_equal(maps["dark"][0], split(dark, detector, CAMERA, fill=0.0))
    np.testing.assert_array_equal(maps["sensitivity"][0], truth.at(SITE, "sensitivity", detector=name))
    np.testing.assert_array_equal(maps["corners"][0], truth.at(SITE, "corners", detector=name))
    assert maps["corners"][0].shape == (2, detector.shape[0] + 1, detector.shape[1] + 1)


def test_other_quantities_answer_at_their_coordinates():
    flat = taken("calibration-day")[-1]
    light = truth.at(SITE, "light", detector="R22_S11", exposure=flat)
    assert light.rate.shape == CAMERA.detector("R22_S11").shape
    assert light.rate.min() > 0
    assert truth.at(SITE, "drift", detector="R22_S11", amplifier="C00", exposure=flat).shape == (136,)
    seen = truth.at(SITE, "quantum_efficiency", detector="R22_S11", wavelength=np.array([400.0, 700.0]))
    assert ((seen > 0.1) & (seen < 1)).all()
    measured = np.array([1e3, 4e4])
    found = truth.at(SITE, "linearity", detector="R22_S11", amplifier="C00", measured=measured)
    np.testing.assert_allclose(found, measured, rtol=0.05)
    assert (found != measured).all()
    areas = truth.at(SITE, "area_coefficients", detector="R22_S11")
    assert areas.sum() == pytest.approx(0, abs=1e-2 * np.abs(areas).max())  # charge moves areas, and keeps their sum
    assert len(truth.at(SITE, "crosstalk").c) == len(truth.crosstalk_table(SITE))
    assert truth.at(SITE, "air", time=flat.time).pressure > 600
    own = truth.at(SITE, "defects", detector="R22_S11")
    table = truth.defect_table(SITE)
    assert len(own) == (table["detector"] == "R22_S11").sum()


@pytest.mark.parametrize(
    ("quantity", "coords", "says"),
    [
        ("nonsense", {}, "no truth of 'nonsense': use gain"),
        ("gain", {"detector": "R22_S11"}, "truth of gain has the coordinates detector, amplifier: given are detector"),
        ("crosstalk", {"detector": "R22_S11"}, "truth of crosstalk has the coordinates none: given are detector"),
        ("dark", {}, "truth of dark has the coordinates detector: given are none"),
        ("dark", {"detector": "R99_S00"}, "camera mini9 has no detector 'R99_S00'"),
        ("gain", {"detector": "R22_S11", "amplifier": "C99"}, "R22_S11 has no amplifier 'C99': use C"),
    ],
)
def test_what_there_is_no_truth_of_is_refused(quantity, coords, says):
    with pytest.raises(WrongUse, match=says):
        truth.at(SITE, quantity, **coords)


def test_truth_depends_on_seed_and_settings_alone():
    gain = {"detector": "R22_S11", "amplifier": "C00"}
    again, other = Observatory(5, load_camera("mini9")), Observatory(6, CAMERA)
    assert truth.at(again, "gain", **gain) == truth.at(SITE, "gain", **gain) != truth.at(other, "gain", **gain)
    off = Observatory(5, CAMERA, Settings().without(["dark_current", "hot_pixels", "bad_pixels"]))
    assert not truth.at(off, "dark", detector="R22_S11").any()
    assert (truth.at(off, "sensitivity", detector="R22_S11") == 1).all()


def test_couplings_are_between_amplifiers_by_name():
    table = truth.crosstalk_table(SITE)
    names = {(d.name, a.name) for d in CAMERA.detectors for a in d.amplifiers}
    pairs = [
        ((t, a), (s, b))
        for t, a, s, b in table["target_detector", "target_amplifier", "source_detector", "source_amplifier"]
    ]
    assert {end for pair in pairs for end in pair} <= names
    assert all(target != source for target, source in pairs)
    assert len(set(pairs)) == len(pairs)
    assert table["c2"].unit == "1 / electron"
    within = table["target_detector"] == table["source_detector"]
    assert within.any()
    assert (~within).any()
    assert all(t[:-1] == s[:-1] for t, s in table["target_detector", "source_detector"])  # of one board
    off = truth.crosstalk_table(Observatory(5, CAMERA, Settings().without(["crosstalk"])))
    assert len(off) == 0
    assert off["target_detector"].dtype.kind == "U"


def test_traps_of_the_registers_are_those_of_the_table():
    many = Observatory(5, CAMERA, Settings(deferred=Deferred(traps_e2v=2.0, traps_itl=2.0)))
    table = truth.serial_trap_table(many)
    own = truth.at(many, "serial_traps", detector="R22_S11", amplifier="C03")
    rows = table[(table["detector"] == "R22_S11") & (table["amplifier"] == "C03")]
    assert len(own) == len(rows)
    assert len(table) == pytest.approx(9 * 16 * 2, abs=4.5 * np.sqrt(9 * 16 * 2))
    for name in own.dtype.names:
        np.testing.assert_array_equal(rows[name], own[name])
    assert {table[name].unit for name in ("size", "threshold")} == {units.electron}
    none = truth.serial_trap_table(Observatory(5, CAMERA, Settings().without(["deferred"])))
    assert len(none) == 0
    assert none.colnames == table.colnames


def test_a_camera_without_defects_has_an_empty_table_of_them():
    table = truth.defect_table(Observatory(5, CAMERA, Settings().without(["bad_pixels"])))
    assert len(table) == 0
    assert table["detector"].dtype.kind == table["kind"].dtype.kind == "U"


def test_the_table_of_exposures_tells_what_lamps_and_air_really_were():
    flats = truth.exposure_table(SITE, taken("flat-cube"))
    asked = np.array([e.source.wavelength for e in taken("flat-cube")])
    assert flats["wavelength"].unit == "nm"
    away = flats["wavelength"].value - asked
    assert (away != 0).all()
    assert np.abs(away).max() < 5 * SITE.settings.laser.jitter
    assert np.abs(flats["brightness"] - 1).max() < 0.2
    spots = truth.exposure_table(SITE, taken("cbp"))
    asked = np.array([e.source.azimuth for e in taken("cbp")])
    assert 0 < np.abs(spots["azimuth"].value - asked).max() < 5 * SITE.settings.projector.pointing_jitter / 3600
    waves = truth.exposure_table(SITE, taken("sinusoids"))
    asked = np.array([e.source.phase for e in taken("sinusoids")])
    assert waves["phase"].unit == "deg"
    assert 0 < np.abs(waves["phase"].value - asked).max() < 5 * SITE.settings.sinusoids.phase_jitter
    assert np.abs(waves["contrast"] / SITE.settings.sinusoids.contrast - 1).max() < 0.05
    visits = taken("night")
    sky = truth.exposure_table(SITE, visits)
    assert list(sky["airmass"]) == [v.source.airmass for v in visits]
    assert list(sky["water"]) == [true_air(SITE, v).water for v in visits]
    assert {str(sky[n].unit) for n in ("water", "pressure", "ozone")} == {"mm", "hPa", "DU"}
    assert np.isnan(sky["wavelength"]).all()
    biases = truth.exposure_table(SITE, taken("calibration-day")[:2])
    assert np.isnan(biases["brightness"]).all()


def test_truth_of_single_exposures():
    """What only an exposure has: hits, spots, stars, clouds; each is what its own module says."""
    site = Observatory(3, load_camera("mini1"), Settings())
    (detector,) = site.camera.detectors
    dark = Exposure("D", 1, "dark", np.datetime64("2026-07-01T20:00:00", "ms"), 3e4, 3e4)
    hits = truth.at(site, "cosmic_rays", detector=detector.name, exposure=dark)
    charge, _ = cosmic_rays(3, site.settings.cosmic_rays, detector, 1, 3e4, ROW_TIME)
    assert len(hits) > 1
    assert charge.sum() == pytest.approx(hits["electrons"].sum(), rel=0.05)  # some falls beside the CCD
    visit = replace(
        dark, kind="science", exposure_time=30.0, dark_time=30.0, filter="r", source=Pointing(150.0, -30.0, 70.0, 60.0)
    )
    assert truth.at(site, "stars", detector=detector.name, exposure=visit).shape[1] == 5
    assert 0 < float(truth.at(site, "clouds", exposure=visit, x=0.0, y=0.0)) <= 1
    silicon, epoxy = truth.at(site, "thickness", detector=detector.name)
    assert silicon.shape == epoxy.shape == detector.shape
    assert truth.at(site, "filter", band="r", wavelength=620.0, x=0.0, y=0.0) > 0.5
    assert truth.at(site, "screen", x=0.0, y=0.0, wavelength=620.0) == pytest.approx(1, abs=0.2)
    assert truth.at(site, "blinking_pixels", detector=detector.name, exposure=dark).shape == detector.shape
    row = truth.exposure_table(site, [visit])[0]
    assert row["clouds"] == pytest.approx(-2.5 * np.log10(truth.at(site, "clouds", exposure=visit, x=0.0, y=0.0)))
