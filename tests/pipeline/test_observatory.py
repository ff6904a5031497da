"""The command that simulates: what it writes, that it resumes, and that only truth's readers see the truth."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

import lsstcal_dask
from lsstcal_dask import cli
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline import observatory
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.observatory import SimulateConfig, check, open_observatory, simulate
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.recipes import CalibrationDay, FlatCube, Night, Plan, Projections, SinusoidScan, exposures
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.truth import truth_maps
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.raw import check_frame, open_raw
from lsstcal_dask.storage.tables import input_names, read_input, read_table

PLAN = Plan(
    calibration_day=CalibrationDay(biases=2, darks=1, xrays=1, pairs=1, flats=1, filters="r"),
    flat_cube=FlatCube(first=500.0, last=500.0),
    cbp=Projections(sets="f"),
    sinusoids=SinusoidScan(periods=(4.0,)),
    night=Night(visits=1, filters="r"),
)
# what takes long is left out; the bits of everything are tested where it is made
EFFECTS = Settings().without(["fringing", "brighter_fatter", "ghosts", "airglow"])
CONFIG = SimulateConfig(recipe=PLAN, effects=EFFECTS)
PAIR = ("R22_S00", "R22_S01")  # of both vendors
BIAS = CalibrationDay(biases=1, darks=0, xrays=0, pairs=0, filters="")
TOML = """
[recipe.calibration_day]
biases = 2
darks = 0
xrays = 0
pairs = 0
flats = 0
[effects.dark_current]
on = false
"""


def pixels(store):
    return {key: record.pixels for key, record in read_records(store.url).items()}


def files_under(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def run(*arguments):
    """Exit code, stdout and stderr of the command."""
    result = CliRunner().invoke(cli.app, ["simulate", *map(str, arguments)])
    if isinstance(result.exception, CalibrationError):
        return 2 if isinstance(result.exception, WrongUse) else 1, result.stdout, f"lsstcal: {result.exception}\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory, threads):
    """A store with every recipe; not to be changed."""
    store = create_store(tmp_path_factory.mktemp("made") / "s", "mini1")
    report = simulate(store, "all", CONFIG, threads)
    assert report.errors == []
    assert report.made == len(report.exposures) == len(exposures("all", PLAN, EFFECTS, store.camera))
    return store


def test_a_store_holds_the_frames_inputs_and_truth(made):
    taken = exposures("all", PLAN, EFFECTS, made.camera)
    raw = open_raw(made.url, made.camera)
    assert list(raw["exposure"].values) == [e.name for e in taken]
    assert list(raw["exposure_type"].values) == [e.kind for e in taken]
    assert raw["present"].values.all()
    assert all(check_frame(made.url, record) for record in read_records(made.url).values())
    assert open_observatory(made) == Observatory(1, made.camera, EFFECTS)
    assert list_contents(made)["inputs"] == input_names(made.url)
    for name in input_names(made.url):
        assert read_input(made.url, name).meta["input"][0] in "¶♥"
    assert len(read_table(made.url, "truth/amplifiers")) == 4
    for name in ("defects", "crosstalk", "exposures-night", "exposures-cbp", "exposures-flat-cube"):
        assert read_table(made.url, f"truth/{name}").colnames
    assert list(read_table(made.url, "truth/exposures-calibration-day")["exposure"]) == [e.name for e in taken[:7]]


def test_stored_maps_are_the_truth_of_the_observatory(made):
    site, detector = open_observatory(made), made.camera.detectors[0]
    import zarr

    for variable, values, units in truth_maps(site, detector):
        stored = zarr.open_array(objects.zarr_store(made.url, f"truth/maps/{variable}/{detector.name}"), mode="r")
        np.testing.assert_array_equal(stored[...], values)
        assert stored.attrs["units"] == units


def test_the_photodiode_and_lamps_are_in_the_header(made):
    raw = open_raw(made.url, made.camera)
    lit = raw["exposure_type"].isin(["flat", "cbp", "sinusoid"])
    assert (np.isfinite(raw["photodiode"]) == lit).all()
    assert (raw["photodiode"].values[lit] > 0).all()
    assert raw["wavelength"].values[raw["exposure_type"].values == "cbp"][0] == 700
    frames = zip(raw["exposure_type"].values, raw["counts"].values, strict=True)
    light = {kind: np.median(counts) for kind, counts in frames}
    assert light["flat"] > light["bias"] + 1000


def test_the_same_command_again_makes_nothing(made, threads):
    before = files_under(made.url)
    report = simulate(made, "all", CONFIG, threads)
    assert (report.made, report.unchanged, report.errors) == (0, len(report.exposures), [])
    assert files_under(made.url) == before
    alone = simulate(made, "cbp", CONFIG, threads)
    assert (alone.made, alone.unchanged) == (0, len(alone.exposures))
    assert files_under(made.url) == before


def changed(**recipe):
    return CONFIG.model_copy(update={"recipe": PLAN.model_copy(update=recipe)})


@pytest.mark.parametrize(
    ("config", "seed", "says"),
    [
        (CONFIG, 2, r"seed = 1, not 2: use another store, or the same numbers"),
        (SimulateConfig(recipe=PLAN, effects=EFFECTS.without(["dust"])), 1, r"effects.dust.on = true, not false"),
        (changed(night=Night(visits=2, filters="r")), 1, r"recipe.night.visits = 1, not 2"),
    ],
)
def test_a_store_has_one_truth(made, threads, config, seed, says):
    before = files_under(made.url)
    with pytest.raises(CalibrationError, match=says) as caught:
        simulate(made, "all", config, threads, seed=seed)
    assert "\n" not in str(caught.value)
    assert files_under(made.url) == before


def test_recipes_add_to_each_other(made, tmp_path, threads):
    store = create_store(tmp_path / "s", "mini1")
    for recipe in ("cbp", "calibration-day"):
        simulate(store, recipe, CONFIG, threads)
    both = pixels(store)
    kinds = open_raw(store.url, store.camera)["exposure_type"].values
    assert set(kinds) == {"bias", "dark", "fe55", "flat", "cbp"}
    assert both == {key: value for key, value in pixels(made).items() if key in both}
    for name in input_names(store.url):
        path = f"inputs/{name}.ecsv"
        assert objects.read_bytes(store.url, path) == objects.read_bytes(made.url, path)


def test_an_error_loses_nothing_but_its_block(made, tmp_path, monkeypatch, threads):
    store = create_store(tmp_path / "s", "mini1")
    real = observatory.frames

    def some(site, exposure, detectors):
        if exposure.number == 3:
            raise OSError("the disk is full")
        return real(site, exposure, detectors)

    with monkeypatch.context() as patch:
        patch.setattr(observatory, "frames", some)
        report = simulate(store, "calibration-day", CONFIG, threads)
    (error,) = report.errors
    assert error == (
        "R22_S11, MC_S_20260701_000003: OSError: the disk is full; the same command again makes what is missing"
    )
    assert report.made == 6
    report = simulate(store, "calibration-day", CONFIG, threads)
    assert (report.made, report.unchanged, report.errors) == (1, 6, [])
    found = pixels(store)
    assert len(found) == 7
    assert found == {key: value for key, value in pixels(made).items() if key in found}


def test_a_kill_loses_only_what_was_not_published(made, tmp_path, monkeypatch, threads):
    store = create_store(tmp_path / "s", "mini1")
    real, count = observatory.publish_frames, []

    def killed(url, records):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(len(records))
        real(url, records)

    with monkeypatch.context() as patch:
        patch.setattr(observatory, "publish_frames", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate(store, "calibration-day", CONFIG, threads)
    report = simulate(store, "calibration-day", CONFIG, threads)
    assert report.unchanged == sum(count) == 2
    found = pixels(store)
    assert found == {key: value for key, value in pixels(made).items() if key in found}
    assert len(found) == 7


@pytest.fixture(scope="module")
def pair(tmp_path_factory, threads):
    """Folder of stores of two CCDs, straight to Zarr (z) and through files (f), and their report."""
    folder = tmp_path_factory.mktemp("pair")
    config = changed(calibration_day=BIAS, cbp=Projections(sets="c", coarse_step=700.0, footprints=1))
    straight, through = (create_store(folder / name, "mini9") for name in "zf")
    report = simulate(straight, "all", config, threads, detectors=PAIR)
    assert (report.made, report.errors) == (2 * len(report.exposures), [])
    report = simulate(through, "all", config, threads, detectors=PAIR, fits=folder / "raw")
    assert (report.made, report.errors) == (2 * len(report.exposures), [])
    return folder, config, sorted(report.files)


def test_files_and_store_hold_the_same(pair, threads):
    folder, config, files = pair
    straight, through = (open_store(folder / name) for name in "zf")
    assert len(files) == len(list((folder / "raw").iterdir()))
    assert pixels(through) == {}
    found = ingest(through, files, threads)
    assert (len(found.ingested), found.errors) == (len(files), [])
    assert pixels(through) == pixels(straight)
    one, other = (open_raw(s.url, s.camera).drop_attrs() for s in (straight, through))
    assert one.identical(other)
    ours, theirs = (read_records(s.url) for s in (straight, through))
    assert {k: repr(r.header) for k, r in ours.items()} == {k: repr(r.header) for k, r in theirs.items()}
    import zarr

    for key, record in ours.items():
        cards, read = (
            zarr.open_array(objects.zarr_store(s.url, r[key].path), mode="r").attrs["header"]
            for s, r in ((straight, ours), (through, theirs))
        )
        assert cards.items() <= read.items()
        assert record.header["exposure_type"] in {"bias", "flat", "cbp", "sinusoid", "science"}
    assert simulate(through, "all", config, threads, detectors=PAIR).made == 0
    found = ingest(straight, files, threads)  # the same frames from files change nothing
    assert (found.ingested, len(found.unchanged), found.errors) == ([], len(files), [])


def test_files_are_compressed_and_say_where_the_light_came_from(pair):
    _, _, files = pair
    asked = {e.name: e for e in exposures("all", pair[1].recipe, EFFECTS, load_camera("mini9"))}
    kinds = set()
    for path in files:
        with fits.open(path) as opened:
            card = opened[0].header
            assert all(
                unit.header["ZCMPTYPE"] == "RICE_1" for unit in opened[1:].__iter__() if "ZCMPTYPE" in unit.header
            )
            assert all(isinstance(unit, fits.CompImageHDU) for unit in opened[1:])
            assert len(opened) == 17
        exposure = asked[card["OBSID"]]
        kinds.add(exposure.kind)
        if exposure.kind == "science":
            assert (card["RA"], card["DEC"]) == (exposure.source.ra, exposure.source.dec)
            assert card["AMSTART"] == pytest.approx(exposure.source.airmass, abs=1e-6)
        if exposure.kind == "cbp":
            assert (card["CBPMASK"], card["CBPAZ"]) == ("grid", exposure.source.azimuth)
            assert (card["CBPM1X"], card["CBPM1Y"]) == exposure.source.footprint
        if exposure.kind == "sinusoid":
            source = exposure.source
            assert (card["SINPER"], card["SINANG"], card["SINPHASE"]) == (source.period, source.angle, source.phase)
        if exposure.kind == "flat":
            assert card["BANDWID"] == exposure.source.bandwidth
    assert kinds == {"bias", "flat", "cbp", "sinusoid", "science"}


def test_files_of_another_simulation_are_not_taken_for_ones_own(pair, tmp_path, threads):
    folder, config, _ = pair
    again = simulate(open_store(folder / "f"), "all", config, threads, detectors=PAIR, fits=folder / "raw")
    assert (again.made, again.unchanged) == (0, 2 * len(again.exposures))
    other = create_store(tmp_path / "o", "mini9")
    with pytest.raises(CalibrationError, match=r"fits.fz is of another simulation: name another folder, or delete it"):
        simulate(other, "all", config, threads, seed=2, detectors=PAIR, fits=folder / "raw")
    with pytest.raises(CalibrationError, match="holds no simulation: make one with 'lsstcal simulate'"):
        open_observatory(other)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "MC_S_20260701_000001_R22_S00.fits.fz").write_bytes(b"half a file")
    with pytest.raises(CalibrationError, match=r"000001_R22_S00.fits.fz: is damaged .*: delete it"):
        simulate(other, "all", config, threads, detectors=PAIR, fits=tmp_path / "raw")


def test_one_ccd_first_and_the_others_later_make_the_same_store(pair, tmp_path, threads):
    folder, config, _ = pair
    store = create_store(tmp_path / "s", "mini9")
    config = changed(calibration_day=BIAS)
    first = simulate(store, "calibration-day", config, threads, detectors=["R22_S01"])
    assert (first.made, objects.list_names(store.url, "truth/maps/bias")) == (1, ["R22_S01"])
    both = simulate(store, "calibration-day", config, threads, detectors=PAIR)
    assert (both.made, both.unchanged) == (1, 1)
    expected = pixels(open_store(folder / "z"))
    assert pixels(store) == {key: expected[key] for key in pixels(store)}
    assert {name for _, name in pixels(store)} == set(PAIR)
    assert objects.list_names(store.url, "truth/maps/bias") == list(PAIR)


def test_workers_elsewhere_get_the_observatory_and_what_to_make_of_it(made):
    """All that a task takes travels to another process, and makes the same there."""
    site = open_observatory(made)
    taken = {"night": exposures("night", PLAN, EFFECTS, made.camera)}
    work = observatory.deliveries("all", taken["night"]) | observatory._truth(site, taken, [("R22_S11",)])
    there, makers = pickle.loads(pickle.dumps((site, work)))
    assert there == site
    assert observatory._origin(there, taken["night"][0]) == observatory._origin(site, taken["night"][0])
    assert (makers["gain"](there)["gain"] == work["gain"](site)["gain"]).all()


def test_damaged_truth_is_named(made, tmp_path):
    store = create_store(tmp_path / "s", "mini1")
    for wrong in ({"seed": 1}, {"seed": 1, "effects": {"nonsense": 1}}, {"seed": "x", "effects": {}}):
        objects.write_json(store.url, "truth/observatory.json", wrong)
        with pytest.raises(CalibrationError, match=r"truth/observatory.json: is damaged or of another version"):
            open_observatory(store)


def test_an_input_that_cannot_be_made_is_named_and_the_others_are_written(tmp_path, threads, monkeypatch):
    real = observatory.write_table

    def some(url, path, table):
        if path == "inputs/gain":
            raise OSError("the disk is full")
        real(url, path, table)

    store = create_store(tmp_path / "s", "mini1")
    bias = changed(calibration_day=BIAS)
    with monkeypatch.context() as patch:
        patch.setattr(observatory, "write_table", some)
        report = simulate(store, "calibration-day", bias, threads)
    assert report.errors == ["inputs/gain: OSError: the disk is full; the same command again makes what is missing"]
    assert "gain" not in input_names(store.url)
    assert "crosstalk" in input_names(store.url)
    assert simulate(store, "calibration-day", bias, threads).errors == []
    assert "gain" in input_names(store.url)


def test_only_the_room_that_keeps_it_names_the_truth():
    """Estimators cannot see what they are to find: its path stands in the sources where it is written and compared."""
    root = Path(lsstcal_dask.__file__).parent
    sources = {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*.py")}
    naming = {name for name, text in sources.items() if re.search(r"\btruth/|STORE/truth", text)}
    assert naming - {name for name in naming if name.startswith("verify/")} <= {
        "pipeline/observatory.py",
        "pipeline/demo.py",
        "storage/tables.py",  # in its docstring, for the reader
        "cli/exposures.py",  # in a help text
    }
    assert '"truth' not in sources["storage/tables.py"] + sources["cli/exposures.py"]
    for name, text in sources.items():
        if name.partition("/")[0] in {"isr", "products", "photometry", "statistics", "physics", "instrument"}:
            assert not re.search(r"truth_tables|truth_maps|pipeline.observatory|[\"'/]truth", text), name


def test_the_command_takes_a_file_and_switches(tmp_path):
    (tmp_path / "c.toml").write_text(TOML)
    options = ["--camera", "mini1", "--config", tmp_path / "c.toml", "--seed", 9, "--without", "dust"]
    code, out, err = run(tmp_path / "s", *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["exposures"], found["made"], found["unchanged"], found["errors"]) == (2, 2, 0, [])
    assert "2 exposures: 2 frames made, 0 were there\nexternal inputs: 11 tables in" in err
    site = open_observatory(open_store(tmp_path / "s"))
    assert site.seed == 9
    assert [name for name, effect in site.settings if not effect.on] == ["dark_current", "persistence", "dust"]
    code, _, err = run(tmp_path / "s", *options, "--fits", tmp_path / "raw")
    assert f"raw files are in {tmp_path / 'raw'}: put them into a store with 'lsstcal ingest'" in err
    assert len(list((tmp_path / "raw").glob("*.fits.fz"))) == 2
    code, _, err = run(tmp_path / "t", *options[:4], "--only", "read_noise", "--only", "gain")
    assert code == 0, err
    settings = open_observatory(open_store(tmp_path / "t")).settings
    assert [name for name, effect in settings if effect.on] == ["read_noise", "gain"]


def test_errors_of_a_simulation_end_in_exit_status_one(tmp_path, monkeypatch):
    def fails(site, exposure, detectors):
        raise OSError("the disk is full")

    monkeypatch.setattr(observatory, "frames", fails)
    (tmp_path / "c.toml").write_text(TOML)
    code, _, err = run(tmp_path / "s", "--camera", "mini1", "--config", tmp_path / "c.toml")
    assert code == 1
    assert "error: R22_S11, MC_S_20260701_000001: OSError: the disk is full; the same command" in err


@pytest.mark.parametrize(
    ("arguments", "toml", "code", "says"),
    [
        (["--camera", "nope"], "", 1, "no camera 'nope': give a YAML file that exists or one of the shipped cameras"),
        (["--recipe", "nope"], "", 2, "no recipe 'nope': use calibration-day, flat-cube, cbp, sinusoids, night, all"),
        (["--without", "dark"], "", 2, "no effect 'dark': use dark_current"),
        (["--only", "zzz"], "", 2, "no effect 'zzz': use bias_structure, overscan_drift"),
        (["--detector", "R99_S00"], "", 2, "camera mini1 has no detector 'R99_S00': it has R22_S11"),
        (["--seed", "-1"], "", 2, "seed -1 of the simulation: use 0 to"),
        (["--scheduler", "nope"], "", 2, "scheduler 'nope' is unknown"),
        ([], "[recipe.calibration_day]\ndark_exposure = -3", 1, "recipe.calibration_day.dark_exposure = -3: should be"),
        ([], "[recipe.calibration_day]\nlevel = -1.0", 1, "recipe.calibration_day.level = -1.0: should be greater"),
        (
            [],
            "[recipe.flat_cube]\nfirst = 250",
            1,
            "recipe.flat_cube.first = 250: should be greater",
        ),
        ([], "[recipe.flat_cube]\nfirst = 900\nlast = 400", 1, "recipe.flat_cube: last 400 nm lies below first 900 nm"),
        ([], '[recipe.calibration_day]\nfilters = "x"', 2, "no filter 'x' in the simulation: use one of none, u, g"),
        (["--recipe", "cbp"], "[recipe.cbp]\nspots = 4", 2, "mask grid has 3 holes: 4 spots cannot be made"),
        (
            [],
            "[recipe.calibration_day]\nbiasses = 1",
            1,
            "calibration_day.biasses: there is no such entry: use biases",
        ),
        ([], "[effects.dark]\non = false", 1, "effects.dark: there is no such entry: use dark_current"),
        ([], "[effects]\nstars = 3", 1, "effects.stars: must be a table, written [effects.stars]"),
        ([], "seed = 3", 1, "seed: there is no such entry: use recipe, effects"),
        ([], "[recipe", 1, "is not TOML"),
        ([], "[recipe.calibration_day]\ndark_exposure = inf", 1, "calibration_day.dark_exposure = inf: "),
        ([], "[recipe.calibration_day]\npairs = 10000000000", 1, "calibration_day.pairs = 10000000000: should be less"),
        ([], "[recipe.flat_cube]\nlevel = inf", 1, "flat_cube.level = inf: "),
        ([], "[recipe.flat_cube]\nstep = 1e-10", 1, "flat_cube.step = 1e-10: should be greater"),
        ([], "[recipe.cbp]\nfine_step = 1e-10", 1, "cbp.fine_step = 1e-10: should be greater"),
        ([], '[recipe.cbp]\nmask = "grid/3"\nspots = 2', 1, "mask 'grid/3' and spots 2 both say how many holes"),
        (["--recipe", "cbp"], '[recipe.cbp]\nmask = "grid/4"', 2, "mask grid has 3 holes: 4 spots cannot be made"),
        ([], "[effects.gain]\nscatter = nan", 1, "effects.gain.scatter = nan: "),
    ],
)
def test_bad_recipes_fail_in_one_line_before_anything_is_made(tmp_path, arguments, toml, code, says):
    (tmp_path / "c.toml").write_text(toml)
    given = [*arguments, *([] if "--camera" in arguments else ["--camera", "mini1"]), "--config", tmp_path / "c.toml"]
    found, out, err = run(tmp_path / "s", *given)
    assert (found, out) == (code, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    if toml and code == 1:
        assert f"{tmp_path / 'c.toml'}: " in err
    assert not (tmp_path / "s").exists()


def test_a_check_makes_nothing():
    check(load_camera("lsstcam"), "calibration-day", SimulateConfig(), 1, ["R22_S11"])
    with pytest.raises(WrongUse, match=r"camera LSSTCam has no detector 'R99_S00': it has R01_S00 ... R44_SW1"):
        check(load_camera("lsstcam"), "calibration-day", SimulateConfig(), 1, ["R99_S00"])


def test_maps_of_truth_can_be_left_out_and_be_made_later(tmp_path, threads):
    store, config = create_store(tmp_path / "s", "mini1"), changed(calibration_day=BIAS)
    assert not simulate(store, "calibration-day", config, threads, maps=False).errors
    assert objects.list_names(store.url, "truth/maps") == []
    assert objects.exists(store.url, "truth/amplifiers.ecsv")
    simulate(store, "calibration-day", config, threads)
    assert "bias" in objects.list_names(store.url, "truth/maps")
