"""The command line as a person meets it: help, one clear line per mistake, exit codes, JSON, pictures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from making import make_files, small_day
from matplotlib import image as png
from typer.testing import CliRunner

from lsstcal_dask import cli
from lsstcal_dask.cli.app import report
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.pipeline.flatfields import read_lamp
from lsstcal_dask.storage.provenance import software

SCIENCE = small_day()[-1].name
COMMANDS = ["demo", "ingest", "build", "calibrate", "ls", "verify", "show"]


def run(*arguments):
    """Exit code, stdout and stderr of the command, as `main` gives them, without a new process."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if isinstance(result.exception, CalibrationError):
        code = 2 if isinstance(result.exception, WrongUse) else 1
        return code, result.stdout, f"{result.stderr}lsstcal: {result.exception}\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def process(*arguments, **options):
    """The same by the installed command, in a process of its own."""
    command = [sys.executable, "-c", "from lsstcal_dask.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def store(ingested, tmp_path_factory):
    """A store in which everything was built by the command line."""
    folder = tmp_path_factory.mktemp("cli") / "s"
    shutil.copytree(ingested.url, folder)
    code, out, err = run("build", folder, "--workers", 2)
    assert (code, out) == (0, ""), err
    for name in ("bias", "gain", "dark"):
        assert re.search(rf"^{name} [0-9a-f]{{16}} built: .*PASS", err, re.MULTILINE)
    code, out, err = run("calibrate", folder)
    assert (code, out) == (0, ""), err
    assert err.startswith(f"{SCIENCE} ")
    return folder


def test_the_version_is_that_of_the_provenance_of_products():
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.split() == [word for pair in software().items() for word in pair]


def test_warnings_are_said_before_notes(capsys):
    remarks = [*(f"note: {i}" for i in range(6)), "R22_S11 C00: dead"]
    pointer = SimpleNamespace(version="v", detectors={}, verdict="WARN", remarks=remarks)
    built = SimpleNamespace(errors=[], note="", pointer=pointer, new=True)
    report(SimpleNamespace(url="s", camera=SimpleNamespace(detectors=())), iter([("flat", built)]), as_json=False)
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "  R22_S11 C00: dead"
    assert said[-2:] == ["  note: 3", "  ... and 2 more remarks: see 'lsstcal ls s --remarks'"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: lsstcal {command}" in out or f"{command} [OPTIONS]" in out
    assert len(out.splitlines()) > 8
    if command in ("ingest", "build", "calibrate"):
        assert "--scheduler" in out
        assert "slurm" in out


def test_help_lists_the_commands():
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    listed = re.findall(r"^  ([a-z]+) ", out, re.MULTILINE)
    assert [name for name in listed if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "{store}", "nonsense"], "unknown product 'nonsense': choose from bias, linearity, gain, dark"),
        (["build", "{store}", "bias", "--valid-from", "yesterday"], "'yesterday' is not a time"),
        (["build", "{store}", "bias", "--valid-until", "2026-13-01"], "'2026-13-01' is not a time"),
        (["build", "{store}", "bias", "--valid-until", "NaT"], "'NaT' is not a time: write it in UTC as"),
        (["build", "{store}", "bias", "--valid-from", "2026-07-01T12:00:00+02:00"], "is not a time: write it in UTC"),
        (["build", "{store}", "bias", "--valid-from", "2026-07-01T12:00:00-05:00"], "is not a time: write it in UTC"),
        (
            ["build", "{store}", "bias", "--valid-from", "2026-07-02", "--valid-until", "2026-07-02T00:00:00Z"],
            "--valid-until must be later than --valid-from",
        ),
        (["show", "{store}", "bias", "--amplifier", "C10"], "--amplifier needs --detector"),
        (["build", "{store}", "--workers", "many"], "Invalid value for '--workers'"),
        (
            ["ingest", "{store}", "x.fits", "--type", "nonsense"],
            "choose --type from bias, dark, flat, fe55, science, cbp",
        ),
        (["ingest", "{store}/new", "x.fits", "--camera", "mini1", "--type", "Bias"], "unknown type of exposure 'Bias'"),
        (["build", "{store}", "--scheduler", "cloud"], "scheduler 'cloud' is unknown: use threads, local, slurm"),
        (["build", "{store}", "--workers", "0"], "give at least 1"),
        (
            ["history", "{store}", "--product", "dark"],
            "no history of 'dark': choose from gain, ptc, continuity, muons, or a cube",
        ),
        (["calibrate", "{store}", "--skip", "flat"], "unknown correction 'flat' to skip"),
        (["build"], "Missing argument 'STORE'"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_wrong_use_is_exit_2(store, arguments, says):
    code, out, err = run(*[a.format(store=store) for a in arguments])
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls", "foo://x/y"], "lsstcal: foo://x/y: cannot open this store (Generic URL error"),
        (["ls", "{tmp}/none"], "is not a store: make one with 'lsstcal ingest"),
        (["build", "{tmp}/none"], "is not a store"),
        (["ingest", "{tmp}/none", "x.fits"], "is not a store"),
        (["ingest", "{tmp}/new", "x.fits", "--camera", "hubble"], "no camera 'hubble'"),
        (["ingest", "{store}", "x.fits", "--camera", "mini9"], "holds camera mini1, not mini9"),
        (["ingest", "{store}", "{tmp}/missing.fits"], "missing.fits: cannot be read"),
        (["calibrate", "{store}", "NOPE"], "exposure NOPE is not in"),
        (["build", "{store}", "bias", "--exposure", "NOPE"], "exposure NOPE is not in"),
        (["show", "{store}", "NOPE", "-o", "{tmp}/x.png"], "no product or exposure 'NOPE'"),
        (["show", "{store}", small_day()[0].name, "-o", "{tmp}/x.png"], "is not calibrated: run 'lsstcal calibrate"),
        (["show", "{store}", "bias", "--version", "0", "-o", "{tmp}/x.png"], "no version 0 of bias"),
        (["show", "{store}", "bias", "--detector", "R99", "-o", "{tmp}/x.png"], "has no detector R99"),
        (["show", "{store}", "gain", "--variable", "level", "-o", "{tmp}/x.png"], "choose --variable from"),
        (
            ["show", "{store}", "bias", "--variable", "colour", "-o", "{tmp}/x.png"],
            "has no picture of 'colour': choose --variable from frames, image, mask, read_noise, read_noise_error",
        ),
        (
            ["show", "{store}", "bias", "--detector", "R22_S11", "--amplifier", "C99", "-o", "{tmp}/x.png"],
            "R22_S11 has no amplifier C99: it has C00, C01, C10, C11",
        ),
        (
            ["show", "{store}", "gain", "--detector", "R22_S11", "--amplifier", "C10", "-o", "{tmp}/x.png"],
            "one value for each amplifier: show it without --amplifier",
        ),
        (["show", "{store}", SCIENCE, "--raw", "--variable", "image", "-o", "{tmp}/x.png"], "--variable from counts"),
        (
            ["build", "{store}", "bias", "--valid-until", "2026-07-01"],
            "bias: --valid-until 2026-07-01T00:00:00 is not later than its start 2026-07-01T12:00:00",
        ),
        (["build", "{store}", "--config", "{tmp}/none.toml"], "none.toml: cannot be read"),
        (["build", "{store}", "--config", "{tmp}/broken.toml"], "broken.toml: is not TOML"),
        (["build", "{store}", "--config", "{tmp}/unknown.toml"], "unknown.toml: bias.colour"),
        (["build", "{store}", "--config", "{tmp}/value.toml"], "value.toml: dark.k"),
        (["demo", "{tmp}"], "exists: name another folder"),
    ],
)
def test_a_failed_run_is_exit_1_and_one_line(store, tmp_path, arguments, says):
    (tmp_path / "broken.toml").write_text("[bias\n")
    (tmp_path / "unknown.toml").write_text("[bias]\ncolour = 1\n")
    (tmp_path / "value.toml").write_text("[dark]\nk = 'wide'\n")
    code, out, err = run(*[a.format(store=store, tmp=tmp_path) for a in arguments])
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith(("lsstcal: ", "error: "))]
    assert says in line
    assert len(err.splitlines()) <= 2  # an ingest also says how many went in
    assert not (tmp_path / "x.png").exists()


def test_json_is_all_there_is_on_stdout(store, raw_files):
    code, out, _ = run("ls", store, "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["exposure"] for row in found["exposures"]] == [p.name for p in small_day()]
    assert {row["product"] for row in found["products"]} == {"bias", "gain", "dark", "defects", "calibrated"}
    assert found["errors"] == []
    code, out, _ = run("build", store, "--json")
    assert [row["new"] for row in json.loads(out)["products"]] == [False] * 4
    code, out, _ = run("calibrate", store, SCIENCE, "--json")
    assert json.loads(out)["products"][0]["verdict"] == "PASS"
    code, out, _ = run("ingest", store, raw_files[0], "nowhere.fits", "--json")
    found = json.loads(out)
    assert (code, found["ingested"], found["unchanged"]) == (1, 0, 1)
    assert "nowhere.fits" in found["errors"][0]


def test_json_numbers_that_are_not_numbers_are_null(store):
    _, out, _ = run("ls", store, "--json")
    assert "NaN" not in out
    assert json.loads(out)["exposures"][0]["wavelength"] is None


def test_tables_show_everything_and_never_cut_an_id(store):
    code, out, _ = run("ls", store)
    assert code == 0
    for one in small_day():
        assert one.name in out
    for row in json.loads(run("ls", store, "--json")[1])["products"]:
        assert row["version"] in out


def test_check_reads_the_pixels_again(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    assert run("ls", tmp_path / "s", "--check")[0] == 0
    chunk = next(p for p in (tmp_path / "s/products/bias").glob("*/data/image/c/0/0/**/*") if p.is_file())
    chunk.unlink()
    code, _, err = run("ls", tmp_path / "s", "--check")
    assert code == 1
    assert re.search(r"^error: bias [0-9a-f]{16}: R22_S11: its values changed on disk", err, re.MULTILINE)
    frame = next(p for p in (tmp_path / "s/raw/frames").glob("*/*/*/c/2/0/0"))
    frame.write_bytes(frame.read_bytes()[:-9])
    code, _, err = run("ls", tmp_path / "s", "--check")
    assert code == 1
    name = frame.relative_to(tmp_path / "s/raw/frames").parts[0]
    assert f"error: exposure {name} R22_S11: its pixels changed on disk" in err


@pytest.mark.parametrize(
    "what",
    [
        [SCIENCE, "--raw"],
        [SCIENCE],
        ["dark", "--variable", "variance", "--detector", "R22_S11"],
        ["bias", "--detector", "R22_S11", "--amplifier", "C10"],
        ["gain"],
    ],
)
def test_pictures_are_not_blank(store, tmp_path, what):
    path = tmp_path / "x.png"
    code, out, _ = run("show", store, *what, "-o", path)
    assert code == 0
    assert Path(out.strip()) == path
    pixels = png.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 500
    coloured = np.ptp(pixels, axis=-1) > 0.1  # the map; paper, letters and what is missing are grey
    assert coloured.mean() > 0.15
    colours = np.unique((pixels[coloured] * 255).astype(int), axis=0)
    assert len(colours) >= (4 if what[0] == "gain" else 100)


def test_raw_counts_of_several_ccds_are_shown(tmp_path):
    files = make_files(tmp_path / "raw", "mini9", small_day()[:1])
    assert run("ingest", tmp_path / "s", "--camera", "mini9", *files)[0] == 0
    code, out, err = run("show", tmp_path / "s", small_day()[0].name, "--raw", "-o", tmp_path / "x.png")
    assert (code, out, err) == (0, f"{tmp_path}/x.png\n", "")


def test_a_picture_is_named_after_what_it_shows(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run("show", store, "bias", "--variable", "variance", "--detector", "R22_S11")[1]
    assert out.strip() == "bias_variance_R22_S11.png"
    assert Path(out.strip()).is_file()


def test_processes_of_their_own(tmp_path):
    """The installed command, on relative paths: ingest and build, and a mistake."""
    make_files(tmp_path / "raw", "mini1", small_day()[:4])
    files = sorted(os.path.relpath(p, tmp_path) for p in (tmp_path / "raw").iterdir())
    code, out, err = process("ingest", "s", "--camera", "mini1", *files, "--json", cwd=tmp_path)
    assert code == 0, err
    assert json.loads(out)["ingested"] == 4
    assert "4 frames ingested" in err
    code, out, err = process("ls", "nowhere", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("lsstcal: ")
    assert len(err.splitlines()) == 1


def test_what_lacks_exposures_is_an_error_only_if_it_was_asked_for(tmp_path):
    files = make_files(tmp_path / "raw", "mini1", small_day()[:4])
    assert run("ingest", tmp_path / "s", "--camera", "mini1", *files)[0] == 0
    code, out, err = run("build", tmp_path / "s", "--json")
    assert code == 0
    assert [row["product"] for row in json.loads(out)["products"]] == ["bias"]
    assert "dark: no exposures of type dark" in err
    code, out, err = run("build", tmp_path / "s", "dark")
    assert (code, out) == (1, "")
    assert err.startswith("error: dark: no exposures of type dark")
    assert len(err.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error(store):
    command = [sys.executable, "-c", "from lsstcal_dask.cli import main; main()", "ls", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()


def test_validity_and_configuration_reach_the_product(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    (tmp_path / "c.toml").write_text("[bias]\nmethod = 'median'\n")
    code, out, _ = run(
        "build",
        tmp_path / "s",
        "bias",
        "--config",
        tmp_path / "c.toml",
        "--valid-from",
        "2026-07-03",
        "--valid-until",
        "2026-07-04T12:00:00",
        "--json",
    )
    version = json.loads(out)["products"][0]["version"]
    assert code == 0
    pointer = json.loads((tmp_path / f"s/products/bias/published/{version}.json").read_text())
    assert (pointer["valid_from"], pointer["valid_until"]) == ("2026-07-03T00:00:00", "2026-07-04T12:00:00")
    assert pointer["configuration"]["method"] == "median"


def test_a_corrected_header_is_seen_and_what_was_made_of_it_is_not_used(store, raw_files, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    name = small_day()[0].name
    code, _, err = run("ingest", tmp_path / "s", raw_files[0], "--type", "dark")
    assert (code, err.count("--correct")) == (1, 1)
    code, out, err = run("ingest", tmp_path / "s", raw_files[0], "--type", "ppump", "--correct", "--json")
    assert (code, json.loads(out)["corrected"]) == (0, 1)
    assert "0 frames ingested, 1 corrected, 0 already there" in err
    found = json.loads(run("ls", tmp_path / "s", "--json")[1])
    assert found["exposures"][0]["exposure_type"] == "ppump"
    why = {row["product"]: row["outdated"] for row in found["products"]}
    assert why["bias"] == f"made from exposure {name}, whose header has changed since"
    assert all(why[product].startswith("made with ") for product in ("gain", "dark", "defects", "calibrated"))
    out = run("ls", tmp_path / "s")[1]
    assert out.count("OUTDATED") == 5
    assert "whose header has changed since: it is not used; build again" in out
    code, _, err = run("calibrate", tmp_path / "s")
    assert code == 1
    assert f"was made from exposure {name}, whose header has changed since: build bias again" in err
    assert run("build", tmp_path / "s")[0] == 0
    assert run("calibrate", tmp_path / "s")[0] == 0
    rows = json.loads(run("ls", tmp_path / "s", "--json")[1])["products"]
    current = sorted(row["product"] for row in rows if not row["outdated"])
    assert current == ["bias", "calibrated", "dark", "defects", "gain"]
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--visit", "E1", "--spectrum", "x.ecsv"], "--spectrum cannot be with --visit"),
        (["--visit", "E1", "--atmosphere", "x.ecsv"], "--atmosphere cannot be with --visit"),
        (["--visit", "E1", "--valid-from", "2026-07-01"], "--valid-from cannot be with --visit"),
        (["--visit", "E1", "--valid-until", "2026-07-01"], "--valid-until cannot be with --visit"),
        (["--stale"], "--stale needs --visit"),
        (["--sky", "nearest"], "--sky needs --visit"),
        (["--flux-unit", "Jy"], "--wavelength-unit and --flux-unit belong together"),
        (["--flux-unit", "Jy", "--wavelength-unit", "nm"], "--wavelength-unit and --flux-unit are of a file"),
        (["--medium", "air"], "--medium is of the wavelengths of a file: give a file of --spectrum"),
        (["--medium", "air", "--spectrum", "flat-fnu"], "--medium is of the wavelengths of a file"),
    ],
)
def test_options_of_synthesize_that_would_be_ignored_are_refused(store, options, says):
    code, out, err = run("synthesize", store, "sky_flat", "--filter", "r", *options)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("\u2502", "").split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--exposure", "E1"], "--exposure is nothing to method etalon"),
        (["--method", "pca", "--filter", "y", "--cube", "other"], "--cube is nothing to method pca"),
        (["--method", "pca"], "--filter belongs to methods classical and pca"),
    ],
)
def test_options_of_fringes_that_would_be_ignored_are_refused(store, options, says):
    code, out, err = run("fringes", store, *options)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("\u2502", "").split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--medium", "air"], "--medium is of the wavelengths of a file: give a file of --lamp"),
        (["--flux-unit", "Jy"], "--wavelength-unit and --flux-unit belong together"),
        (["--flux-unit", "Jy", "--wavelength-unit", "nm"], "--wavelength-unit and --flux-unit are of a file"),
    ],
)
def test_options_of_contamination_that_would_be_ignored_are_refused(store, options, says):
    code, out, err = run("contamination", store, "--filter", "r", "--lamp", "flat-fnu", *options)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("\u2502", "").split())


def test_the_units_of_a_lamp_are_said_or_given(store, tmp_path):
    """With them the next thing that lacks is the flats; a lamp of energy in air is another than one of photons."""
    lamp = tmp_path / "lamp.txt"
    np.savetxt(lamp, np.stack([np.arange(300.0, 1150.0, 10), np.ones(85)], 1))
    asked = ("contamination", store, "--filter", "r", "--lamp", lamp)
    code, _, err = run(*asked)
    assert code != 0
    assert "has no unit: say it" in err
    code, _, err = run(*asked, "--wavelength-unit", "nm", "--flux-unit", "W / nm", "--medium", "air")
    assert "has no unit" not in err
    assert "broadband-r" in err
    energy, photons = (read_lamp(lamp, ("nm", unit)) for unit in ("W / nm", "photon / nm"))
    ratio = energy.density / photons.density
    np.testing.assert_allclose(ratio / ratio[0], energy.wavelength / energy.wavelength[0])
    shift = read_lamp(lamp, ("nm", "W / nm"), "air").wavelength - energy.wavelength
    assert shift[50] == pytest.approx(0.22, abs=0.01)  # at 800 nm


def test_a_lamp_in_a_file_of_words_is_refused_in_a_line_and_a_header_is_skipped(store, tmp_path):
    lamp = tmp_path / "lamp.csv"
    rows = "".join(f"{nm},1\n" for nm in range(300, 1150, 10))
    asked = ("contamination", store, "--filter", "r", "--lamp", lamp, "--wavelength-unit", "nm", "--flux-unit")
    lamp.write_text("wavelength,flux\n" + rows)
    code, _, err = run(*asked, "W / nm")
    assert code != 0
    assert "broadband-r" in err  # the next thing that lacks
    code, _, err = run(*asked, "J")
    assert code != 0
    assert "says neither photons nor energy" in " ".join(err.split())
    lamp.write_text(rows + "dark,dark\n")
    code, _, err = run(*asked, "W / nm")
    assert code != 0
    assert "holds what is no number" in " ".join(err.split())
    assert "Traceback" not in err


def test_filters_named_twice_are_refused_before_anything_is_made(store):
    code, _, err = run("contamination", store, "--filter", "r", "--filter", "r", "--lamp", "flat-fnu")
    assert code == 2
    assert "filter r is there twice" in err
