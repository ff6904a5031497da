import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.exposure import Lamp, Pointing, Projection, Sinusoid, XRays
from lsstcal_dask.simulate.masks import mask
from lsstcal_dask.simulate.recipes import (
    RECIPES,
    CalibrationDay,
    FlatCube,
    Night,
    Plan,
    Projections,
    SinusoidScan,
    exposures,
    members,
)
from lsstcal_dask.simulate.settings import RANGE, Settings
from lsstcal_dask.variables import EXPOSURE_TYPES

SETTINGS = Settings()
CAMERA = load_camera("mini9")


def taken(name, camera=CAMERA, **parts):
    return exposures(name, Plan(**parts), SETTINGS, camera)


@pytest.mark.parametrize("camera", ["mini1", "mini9", "raft", "lsstcam"])
@pytest.mark.parametrize("name", [*RECIPES, "all"])
def test_exposures_have_names_numbers_and_times_of_their_own(name, camera):
    found = taken(name, load_camera(camera), flat_cube=FlatCube(step=5.0), cbp=Projections(fine_step=5.0))
    assert len({e.name for e in found}) == len({e.number for e in found}) == len(found)
    assert all(str(e.number) in e.name and e.number > 0 for e in found)
    assert [e.number for e in found] == sorted(e.number for e in found)
    assert {e.kind for e in found} <= set(EXPOSURE_TYPES)
    starts = np.array([e.time for e in found])
    ends = starts + np.array([np.timedelta64(round(1e3 * e.dark_time), "ms") for e in found])
    assert (starts[1:] - ends[:-1] >= np.timedelta64(2, "s")).all()  # a readout takes two
    assert all(e.dark_time >= e.exposure_time >= 0 for e in found)
    for exposure in found:
        wavelength = getattr(exposure.source, "wavelength", np.nan)
        reach = 1.5 * getattr(exposure.source, "bandwidth", 0.0)
        assert np.isnan(wavelength) or RANGE[0] + reach <= wavelength <= RANGE[1] - reach


def test_all_is_every_recipe_as_it_is_alone():
    together = taken("all")
    assert together == [e for name in RECIPES for e in taken(name)]
    assert members("all") == tuple(RECIPES)
    assert members("cbp") == ("cbp",)


def test_the_name_tells_the_day_of_observation():
    for exposure in taken("all"):
        noon = exposure.time - np.timedelta64(12, "h")
        assert exposure.name == f"MC_S_{str(noon)[:10].replace('-', '')}_{exposure.number:06d}"


def test_a_calibration_day_is_what_was_asked_for():
    day = CalibrationDay(biases=3, darks=2, xrays=1, pairs=4, flats=2, filters="gi", dark_exposure=77.0)
    found = taken("calibration-day", calibration_day=day)
    assert [e.kind for e in found] == ["bias"] * 3 + ["dark"] * 2 + ["fe55"] + ["flat"] * (2 * 4 + 2 * 2)
    assert [e.exposure_time for e in found[:5]] == [0, 0, 0, 77, 77]
    assert [e.source for e in found[:5]] == [None] * 5
    assert found[5].source == XRays(day.xray_rate)
    ladder = found[6:14]
    assert {e.filter for e in ladder} == {"r"}
    assert len({e.source for e in ladder}) == 1  # one lamp
    seconds = np.array([e.exposure_time for e in ladder])
    np.testing.assert_array_equal(seconds[::2], seconds[1::2])
    levels = seconds[::2] / day.flat_exposure * day.brightest
    np.testing.assert_allclose(levels, np.geomspace(day.faintest, day.brightest, 4), rtol=2e-5)  # whole microseconds
    assert [e.filter for e in found[14:]] == list("ggii")


def test_a_flat_cube_scans_the_wavelengths_without_a_filter():
    found = taken("flat-cube", flat_cube=FlatCube(first=400, last=420, step=5, each=2, bandwidth=3))
    assert [e.source.wavelength for e in found] == [400, 400, 405, 405, 410, 410, 415, 415, 420, 420]
    assert {(e.kind, e.filter, e.source.bandwidth) for e in found} == {("flat", "none", 3)}
    assert len(taken("flat-cube")) == 761  # 320 to 1080 nm
    # the lamp makes up for what silicon does not see: more photons where fewer are turned into electrons
    rate = {e.source.wavelength: e.source.rate for e in taken("flat-cube")}
    assert rate[1050.0] > 5 * rate[700.0]
    assert rate[1080.0] / rate[700.0] <= 50  # but not without end


def test_the_projector_makes_the_sets_of_the_document():
    cbp = Projections(fine_step=10.0, dithers=3, footprints=4, filters="ri")
    sets = {one: taken("cbp", cbp=cbp.model_copy(update={"sets": one})) for one in "abcdef"}
    assert all(isinstance(e.source, Projection) and e.kind == "cbp" for found in sets.values() for e in found)
    assert [e.source.wavelength for e in sets["a"]] == list(np.arange(305, 1101, 10.0))
    assert len(sets["b"]) == 7 * 4 * 3  # 400 to 1000 nm, four rotations
    assert len({e.source.rotation for e in sets["b"]}) == 4
    assert len({e.source.footprint for e in sets["c"]}) == 4
    assert {e.filter for e in sets["d"]} == {e.filter for e in sets["e"]} == {"r", "i"}
    # of 305 to 1098 nm in steps of 20 those at which a line 20 nm wide, 30 nm to either side, lies in 300 to 1100 nm
    assert [e.source.wavelength for e in sets["e"]] == [*range(345, 1066, 20)] * 2
    assert len(sets["d"]) < len(sets["e"])
    assert {e.source.mask for e in sets["f"]} == {"sparse"}
    assert len(taken("cbp", cbp=cbp)) == sum(map(len, sets.values()))
    few = taken("cbp", cbp=Projections(sets="c", spots=5))
    assert {e.source.mask for e in few} == {"grid/5"}
    assert len(mask(1, SETTINGS.projector, CAMERA, few[0].source.mask)) == 5
    assert {e.source for e in taken("cbp", cbp=Projections(sets="c", mask="grid/5"))} == {e.source for e in few}


def test_sinusoids_have_every_phase_of_every_period_and_orientation():
    scan = SinusoidScan(phases=5, orientations=(0.0, 60.0), periods=(4.0, 9.0), each=2)
    found = taken("sinusoids", sinusoids=scan)
    assert {(type(e.source), e.kind, e.filter) for e in found} == {(Sinusoid, "sinusoid", "none")}
    asked = [(e.source.period, e.source.angle, e.source.phase) for e in found]
    wanted = [(p, a, 72.0 * m) for p in (4, 9) for a in (0, 60) for m in range(5)]
    assert asked[::2] == asked[1::2] == wanted
    assert len(taken("sinusoids")) == 4 * 2 * 3
    (rate,) = {e.source.rate for e in taken("sinusoids")}
    (more,) = {e.source.rate for e in taken("sinusoids", sinusoids=SinusoidScan(level=80_000.0))}
    assert more == pytest.approx(2 * rate)


def test_a_night_visits_fields_through_the_filters_in_turn():
    found = taken("night", night=Night(nights=2, visits=7, filters="riz", fields=2))
    assert [e.filter for e in found] == [*"rizrizr"] * 2
    assert {e.kind for e in found} == {"science"}
    assert all(isinstance(e.source, Pointing) for e in found)
    assert len({(e.source.ra, e.source.dec) for e in found}) == 2
    assert found[7].time - found[0].time == np.timedelta64(1, "D")
    assert found[1].time - found[0].time == np.timedelta64(120, "s")


@pytest.mark.parametrize("visits", [1, 12, 360])
def test_the_telescope_never_points_below_an_airmass_of_four(visits):
    for exposure in taken("night", night=Night(visits=visits, fields=6)):
        assert 14 < exposure.source.altitude < 90
        assert -90 <= exposure.source.dec <= 90
        assert 0.99 < exposure.source.airmass < 4


def test_lamps_are_as_bright_as_they_were_asked_to_be():
    """Twice the level, twice the photons; a filter that passes less needs more of them."""
    one, two = (
        {e.filter: e.source.rate for e in taken("calibration-day", calibration_day=CalibrationDay(level=level))[-12:]}
        for level in (1e4, 2e4)
    )
    assert set(one) == set("ugrizy")
    for band in one:
        assert two[band] == pytest.approx(2 * one[band])
    assert one["u"] > one["r"]
    (spot,) = {e.source.rate for e in taken("cbp", cbp=Projections(sets="c"))}
    (brighter,) = {e.source.rate for e in taken("cbp", cbp=Projections(sets="c", level=80_000.0))}
    assert brighter == pytest.approx(2 * spot)


@pytest.mark.parametrize(
    ("name", "parts", "says"),
    [
        ("nonsense", {}, "no recipe 'nonsense': use calibration-day, flat-cube, cbp, sinusoids, night, all"),
        ("calibration-day", {"calibration_day": {"filters": "rx"}}, "no filter 'x'"),
        ("calibration-day", {"calibration_day": {"ladder_filter": "ri"}}, "no filter 'ri'"),
        ("night", {"night": {"filters": "q"}}, "no filter 'q'"),
        ("cbp", {"cbp": {"filters": "q"}}, "no filter 'q'"),
        ("cbp", {"cbp": {"sets": "ag"}}, "no set 'g' .* use letters of abcdef"),
        ("cbp", {"cbp": {"mask": "lace"}}, "no mask 'lace': use grid"),
        ("cbp", {"cbp": {"spots": 28}}, "mask grid has 27 holes: 28 spots cannot be made"),
        ("cbp", {"cbp": {"sets": ""}}, "recipe cbp takes no exposure"),
        ("cbp", {"cbp": {"fine_step": 700.0}}, "no wavelength of the scan"),
        ("cbp", {"cbp": {"last": 320.0, "sets": "e"}}, "no line 20 nm wide from 305 to 320 nm .* use 330 to 1070 nm"),
        (
            "flat-cube",
            {"flat_cube": {"step": 0.005}},
            "recipe flat-cube takes (more than 100000 exposures|longer than 10 days)",
        ),
        ("calibration-day", {"calibration_day": {"darks": 4000}}, "recipe calibration-day takes longer than 10 days"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line(name, parts, says):
    with pytest.raises(WrongUse, match=says) as caught:
        exposures(name, Plan.model_validate(parts), SETTINGS, CAMERA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (CalibrationDay, {"biases": -1}),
        (CalibrationDay, {"dark_exposure": 0.0}),
        (CalibrationDay, {"level": -1.0}),
        (CalibrationDay, {"faintest": 2e5}),
        (CalibrationDay, {"bias": 3}),
        (FlatCube, {"first": 299.0}),
        (FlatCube, {"last": 1101.0}),
        (FlatCube, {"first": 500.0, "last": 400.0}),
        (FlatCube, {"bandwidth": 14.0}),  # 320 nm less 21 nm
        (FlatCube, {"last": 1090.0, "bandwidth": 7.0}),
        (Projections, {"first": 301.0}),
        (Projections, {"last": 1099.0}),
        (FlatCube, {"exposure_time": -5.0}),
        (Projections, {"spots": 0}),
        (Projections, {"level": 0.0}),
        (SinusoidScan, {"phases": 3}),
        (SinusoidScan, {"orientations": (0.0, 180.0)}),
        (SinusoidScan, {"orientations": (45.0,)}),
        (SinusoidScan, {"periods": ()}),
        (SinusoidScan, {"periods": (5.0, 2.0)}),
        (SinusoidScan, {"periods": (2e4,)}),
        (SinusoidScan, {"wavelength": 1090.0, "bandwidth": 10.0}),
        (SinusoidScan, {"period": 4.0}),
        (Night, {"exposure_time": 111.0}),
        (Night, {"visits": 361}),
        (Night, {"fields": 7}),
        (Night, {"filters": ""}),
    ],
)
def test_numbers_that_cannot_be_are_refused(part, wrong):
    with pytest.raises(ValidationError):
        part(**wrong)


def test_the_broadband_lamp_has_no_wavelength():
    for exposure in taken("calibration-day"):
        if isinstance(exposure.source, Lamp):
            assert np.isnan(exposure.source.wavelength)


def test_many_nights_are_no_trouble():
    """Nothing begins after the visits: twenty nights of SCIENCE's closed loop are taken."""
    site_settings, camera = Settings(), load_camera("mini9")
    taken = exposures("night", Plan(night={"nights": 20, "visits": 6}), site_settings, camera)
    assert len(taken) == 120
    assert taken[-1].time - taken[0].time > np.timedelta64(18, "D")
