import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.utils.masked import Masked

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.physics.tables import entry, names, numbers


def test_what_is_masked_is_not_a_number():
    table = Table({"a": MaskedColumn([1, 2, 3], mask=[False, True, False]), "b": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(numbers(table, "a", "t"), [1, np.nan, 3])
    np.testing.assert_array_equal(numbers(table, "b", "t"), [1, 2, 3])
    np.testing.assert_array_equal(table["a"].data.data, [1, 2, 3])
    vectors = Table({"v": MaskedColumn(np.ones((2, 2)), mask=[[False, True], [False, False]])})
    np.testing.assert_array_equal(numbers(vectors, "v", "t", dims=2), [[1, np.nan], [1, 1]])
    quantities = QTable({"a": Masked([1.0, 2.0] * u.nm, mask=[True, False])})
    np.testing.assert_array_equal(numbers(quantities, "a", "t"), [np.nan, 2])


@pytest.mark.parametrize(
    "values", [["5.4mm", "1"], [1j, 2], np.array(["2026-01-01"] * 2, "M8[s]"), Time([2026.0, 2027.0], format="jyear")]
)
def test_what_is_no_number_is_told_in_one_line(values):
    with pytest.raises(UnitsError, match=r"^t: column a holds what is no number: give numbers$"):
        numbers(Table({"a": values}), "a", "t")


def test_other_dimensions_are_refused():
    table = Table({"a": np.ones((3, 2)), "b": np.ones(3)})
    with pytest.raises(CalibrationError, match=r"t: column a of \(3, 2\): give one number in each row"):
        numbers(table, "a", "t")
    with pytest.raises(CalibrationError, match=r"t: column b of \(3,\): give several numbers in each row"):
        numbers(table, "b", "t", dims=2)
    assert numbers(table, "a", "t", dims=None).shape == (3, 2)


def test_a_row_without_its_name_is_refused():
    assert names(Table({"n": ["a", "b"]}), "n", "t") == ["a", "b"]
    with pytest.raises(CalibrationError, match="t: column n has empty entries: name each row"):
        names(Table({"n": MaskedColumn(["a", "b"], mask=[False, True])}), "n", "t")


def test_an_entry_is_a_number():
    assert entry({"step": "2.5"}, "step", "t", "nm") == 2.5
    assert entry({}, "step", "t", "nm", 1.0) == 1.0
    for bad in ("one", float("nan"), None, [1.0]):
        with pytest.raises(UnitsError, match=r"t: step is .*: give a number in nm"):
            entry({"step": bad}, "step", "t", "nm")
