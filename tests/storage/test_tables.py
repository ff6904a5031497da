import numpy as np
import pytest
from astropy import units
from astropy.table import MaskedColumn, Table

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage.tables import input_names, read_input, read_table, write_table


@pytest.fixture
def table():
    columns = {
        "name": ["R22_S00", "R22_S01"],
        "gain": np.array([1 / 3, 2.5e-300]) * units.electron / units.adu,
        "curve": np.array([[1.0, np.nan], [0.1, 1e300]]),
        "time": np.array(["2026-07-01T20:00:00.000001", "NaT"], "datetime64[us]"),
        "bad": [True, False],
        "id": np.array([1 << 62, 3]),
    }
    return Table(columns, meta={"input": "¶2", "step_nm": 1.0, "true_adu": [0.0, 0.1]})


def test_a_table_comes_back_to_the_last_bit(tmp_path, table):
    write_table(str(tmp_path), "inputs/gain", table)
    found = read_input(str(tmp_path), "gain")
    assert found.colnames == table.colnames
    assert dict(found.meta) == table.meta
    for name in table.colnames:
        assert found[name].unit == table[name].unit
        assert found[name].dtype == table[name].dtype
        np.testing.assert_array_equal(found[name], table[name])


def test_a_time_that_is_empty_is_none(tmp_path):
    table = Table({"time": MaskedColumn(["2026-07-01T20:00:00"] * 2, mask=[False, True])}, meta={"times": ["time"]})
    write_table(str(tmp_path), "inputs/x", table)
    np.testing.assert_array_equal(np.isnat(read_input(str(tmp_path), "x")["time"]), [False, True])


@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_an_empty_table_keeps_its_columns(tmp_path, names):
    empty = Table({name: np.zeros(0) for name in names}, meta={"kinds": ["cold"]})
    write_table(str(tmp_path), "truth/defects", empty)
    found = read_table(str(tmp_path), "truth/defects")
    assert (found.colnames, len(found), list(found.meta["kinds"])) == (list(names), 0, ["cold"])


def test_writing_replaces_and_leaves_nothing_behind(tmp_path, table):
    write_table(str(tmp_path), "inputs/gain", table)
    write_table(str(tmp_path), "inputs/gain", table[:1])
    assert len(read_input(str(tmp_path), "gain")) == 1
    assert [p.name for p in (tmp_path / "inputs").iterdir()] == ["gain.ecsv"]


def test_names_are_those_of_the_inputs(tmp_path, table):
    assert input_names(str(tmp_path)) == []
    for name in ("filter-u", "gain"):
        write_table(str(tmp_path), f"inputs/{name}", table)
    write_table(str(tmp_path), "truth/amplifiers", table)
    (tmp_path / "inputs" / "note.txt").write_text("x")
    assert input_names(str(tmp_path)) == ["filter-u", "gain"]


def test_what_is_not_there_or_damaged_is_named(tmp_path, table):
    with pytest.raises(CalibrationError, match=r"has no table inputs/gain: see 'lsstcal ls"):
        read_input(str(tmp_path), "gain")
    write_table(str(tmp_path), "inputs/gain", table)
    path = tmp_path / "inputs" / "gain.ecsv"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 3], b"\xff\xfe\x00", b"", whole.replace(b"R22_S01", b""), whole + b"1 2\n"):
        path.write_bytes(damaged)
        with pytest.raises(
            CalibrationError, match=r"inputs/gain.ecsv: is damaged .*: restore it from a copy"
        ) as caught:
            read_input(str(tmp_path), "gain")
        assert "\n" not in str(caught.value)
