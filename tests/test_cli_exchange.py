"""import, export, compare and accept as a person meets them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import zarr
from making import observatory, run_command
from test_cli import run

from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.storage.tables import read_input, write_table


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Address of a store with the tables of a camera team, imported."""
    opened = create_store(tmp_path_factory.mktemp("cli") / "s", "mini1")
    for name, make in deliveries("calibration-day", ()).items():
        write_table(opened.url, f"inputs/{name}", make(observatory()))
    code, out, err = run("import", opened.url, "--inputs")
    assert (code, out) == (0, ""), err
    for name in ("gain", "linearity", "crosstalk", "defects", "saturation"):
        assert re.search(rf"^{name} [0-9a-f]{{16}} imported: 1 of 1 detectors, (PASS|WARN)$", err, re.MULTILINE)
    return opened.url


def test_help_says_that_saturation_is_no_file_of_rubins():
    assert "saturation, of which it has none, as a plain table" in " ".join(run("export", "--help")[1].split())


@pytest.mark.parametrize("command", ["import", "export", "compare", "accept"])
def test_every_command_has_help(command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: lsstcal {command} [OPTIONS]" in out
    assert "gain, linearity, crosstalk, defects, saturation or ptc" in " ".join(out.lower().split())


def test_what_was_imported_can_be_verified(store):
    """It holds the numbers in use alone; what they were found from is not measured, and that is no failure."""
    code, out, err = run("verify", store, "--json")
    assert err == ""
    found = json.loads(out)
    assert code == (found["verdict"] == "FAIL")
    measured = {f"{row['product']}: {row['metric']}" for row in found["metrics"]}
    assert {"gain: value", "linearity: slope", "crosstalk: largest", "saturation: full well"} <= measured
    assert found["not_measured"]["gain: flats against 55Fe"] == "gain has no gain_pair"
    assert found["not_measured"]["linearity: residual"] == "linearity has no record of residual"
    code, out, _ = run("verify", store, "--product", "gain")
    assert code == 0
    assert "gain: flats against 55Fe (gain has no gain_pair)" in " ".join(out.split())


def test_there_and_back(store, tmp_path):
    code, out, err = run("export", store, "gain", "--output", tmp_path, "--format", "fits", "--json")
    assert code == 0, err
    (path,) = json.loads(out)["files"]
    assert Path(path) == tmp_path / "gain/r22_s11/19700101T000000.fits"
    shutil.copytree(store, tmp_path / "s")
    code, out, err = run("import", tmp_path / "s", "gain", path, "--valid-from", "2026-07-01", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["products"]
    assert (row["product"], row["new"]) == ("gain", True)
    found = json.loads(run("ls", tmp_path / "s", "--json")[1])["products"]
    assert {r["origin"] for r in found} == {"camera_team"}
    assert "2026-07-01T00:00:00" in [r["valid_from"] for r in found]
    assert "gain (camera team)" in run("ls", tmp_path / "s")[1]
    code, out, err = run("import", tmp_path / "s", "gain", path, "--valid-from", "2026-07-01")
    assert (code, out) == (0, "")
    assert "is up to date" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "{store}"], "name a PRODUCT and its FILEs, or give --inputs"),
        (["import", "{store}", "gain"], "gain: name files to import"),
        (["import", "{store}", "ptc", "--inputs"], "unknown product 'ptc' to exchange: choose from gain, linearity"),
        (["import", "{store}", "gain", "x.fits", "--inputs"], "name a PRODUCT and its FILEs, or give --inputs"),
        (["import", "{store}", "flat", "x.fits"], "unknown product 'flat' to exchange: choose from gain, linearity"),
        (["import", "{store}", "gain", "x.fits", "--valid-from", "soon"], "'soon' is not a time"),
        (["export", "{store}", "gain"], "Missing option '--output'"),
        (["export", "{store}", "gain", "-o", "x", "--format", "csv"], "unknown format 'csv': choose from ecsv, fits"),
        (["compare", "{store}", "bias"], "unknown product 'bias' to exchange"),
        (["accept", "{store}"], "Missing argument 'PRODUCT'"),
    ],
)
def test_wrong_use_is_exit_2(store, arguments, says):
    code, out, err = run(*[a.format(store=store) for a in arguments])
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "{tmp}/none", "--inputs"], "is not a store"),
        (["import", "{store}", "gain", "{tmp}/none.fits"], "error: {tmp}/none.fits: there is no such file"),
        (["export", "{store}", "gain", "-o", "{tmp}", "--version", "0"], "has no version 0 of gain"),
        (["compare", "{store}", "gain"], "has no remeasured gain: build it with 'lsstcal build"),
        (["accept", "{store}", "gain"], "has no remeasured gain: build it with 'lsstcal build"),
    ],
)
def test_a_failed_run_is_exit_1_and_one_line(store, tmp_path, arguments, says):
    code, out, err = run(*[a.format(store=store, tmp=tmp_path) for a in arguments])
    assert (code, out) == (1, "")
    assert says.format(tmp=tmp_path) in err
    assert len(err.splitlines()) == 1


def remeasured(store, factor, version="b" * 16):
    """Make of the imported gain one that was measured here, so much larger."""
    folder = Path(store, "products/gain")
    (pointer,) = folder.glob("published/*.json")
    found = json.loads(pointer.read_text())
    shutil.copytree(folder / found["version"], folder / version)
    group = zarr.open_group(folder / version / "data", mode="r+")
    group["gain"][...] = group["gain"][...] * factor
    found |= {"version": version, "origin": "remeasured", "created": "2099-01-01T00:00:00", "inputs": {}}
    (folder / f"published/{version}.json").write_text(json.dumps(found))


def test_compare_and_accept(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    remeasured(tmp_path / "s", 1.1)
    code, out, err = run("compare", tmp_path / "s", "gain")
    assert code == 0
    assert out.count("differs") == 4
    assert "R22_S11" in out
    assert err.startswith(f"gain {'b' * 16} against the camera team's ")
    assert err.endswith("4 of 4 differ\n")
    rows = json.loads(run("compare", tmp_path / "s", "gain", "--json")[1])["differences"]
    assert {row["amplifier"] for row in rows} == {"C00", "C01", "C10", "C11"}
    assert all(row["exceeds"] and row["significance"] > 50 for row in rows)  # 10 % of 0.14 %
    code, out, err = run("accept", tmp_path / "s", "gain", "--json")
    assert (code, json.loads(out)["new"], list(json.loads(out)["detectors"])) == (0, True, ["R22_S11"])
    assert re.search(r"^gain b{16} accepted over the camera team's [0-9a-f]{16} for 1 CCDs$", err, re.MULTILINE)
    assert "was accepted before" in run("accept", tmp_path / "s", "gain")[2]


def test_a_product_that_agrees_is_not_accepted(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    remeasured(tmp_path / "s", 1.0)
    code, out, err = run("accept", tmp_path / "s", "gain")
    assert (code, out) == (1, "")
    assert "there is nothing to accept, the camera team's stays in use" in err


def test_every_bad_file_has_its_line(store, tmp_path):
    for name, amplifier in {"a": "C99", "b": "C00"}.items():
        table = read_input(store, "gain")
        table["amplifier"][0] = amplifier
        table.meta["CALIBDATE"] = "2026-07-01T00:00:00"
        table.write(tmp_path / f"{name}.ecsv", format="ascii.ecsv")
    code, out, err = run(
        "import", store, "gain", tmp_path / "a.ecsv", tmp_path / "b.ecsv", tmp_path / "b.ecsv", "--json"
    )
    errors = json.loads(out)["errors"]
    assert (code, json.loads(out)["products"]) == (1, [])
    assert errors[0].startswith(f"{tmp_path}/a.ecsv: R22_S11 C00: has no row")
    assert "R22_S11 is in another file too: name one of them" in errors[1]
    assert err.splitlines() == [f"error: {line}" for line in errors]


@pytest.mark.parametrize("name", ["gain", "saturation"])
def test_a_file_in_the_way_of_a_folder_is_named(store, tmp_path, capsys, name):
    (tmp_path / "there").write_text("")
    status, printed = run_command(capsys, "export", store, name, "-o", tmp_path / "there")
    assert status == 1
    line = printed.err.strip()
    assert line.startswith(f"lsstcal: {tmp_path / 'there'}")
    assert line.endswith("a file is where a folder is wanted: name another place")
    assert "\n" not in line
