import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry, UnitsError
from lsstcal_dask.variables import DIMS, MASK_BITS, VARIABLES, attributes, mask_attributes, nights, validate


def dataset(name="image", dims=("detector", "amplifier", "y", "x"), dtype="float32", **attrs):
    return xr.Dataset({name: (dims, np.zeros((1,) * len(dims), dtype), attrs)})


def test_what_keeps_to_the_dictionary_comes_back_itself():
    good = dataset(units="electron")
    assert validate(good) is good
    one_amplifier = dataset(dims=("y", "x"), units="adu")
    assert validate(one_amplifier) is one_amplifier
    unknown = dataset("my_own", dims=("x", "y"), dtype="complex64")
    assert validate(unknown) is unknown


def test_other_dimensions_are_refused():
    with pytest.raises(InconsistentGeometry, match=r"image: dimensions .*'x', 'y'.*, expected"):
        validate(dataset(dims=("x", "y"), units="adu"))
    with pytest.raises(InconsistentGeometry, match=r"gain: dimensions \('filter',\)"):
        validate(dataset("gain", dims=("filter",), units="electron/adu"))


def test_another_kind_of_dtype_is_refused():
    with pytest.raises(InconsistentGeometry, match="counts: dtype float32, expected a kind of 'iu'"):
        validate(dataset("counts", units="adu"))


@pytest.mark.parametrize(("attrs", "found"), [({}, "'none'"), ({"units": "volt"}, "'volt'")])
def test_missing_or_wrong_units_are_refused(attrs, found):
    with pytest.raises(UnitsError, match=f"image: unit {found}, expected one of"):
        validate(dataset(**attrs))


def test_coordinates_are_checked_too():
    raw = xr.Dataset(coords={"exposure_time": ("exposure", np.zeros(2), {"units": "ms"})})
    with pytest.raises(UnitsError, match="exposure_time: unit 'ms'"):
        validate(raw)


def test_attributes_refuse_a_unit_that_the_variable_cannot_have():
    assert attributes("gain") == {"long_name": "gain in use (Sec. 2.2)", "units": "electron/adu"}
    assert attributes("variance", "electron**2")["units"] == "electron**2"
    assert "units" not in attributes("mask")
    with pytest.raises(UnitsError, match="gain: unit 'adu' is not one of"):
        attributes("gain", "adu")
    with pytest.raises(KeyError):
        attributes("nonsense")


def test_every_entry_of_the_dictionary_is_whole():
    for name, entry in VARIABLES.items():
        places = [DIMS.index(dim) for dim in entry.dims]
        assert places == sorted(set(places)), name
        assert entry.units, name
        assert entry.prose, name


def test_mask_bits_are_single_and_described():
    values = list(MASK_BITS.values())
    assert all(value.bit_count() == 1 for value in values)
    assert len(set(values)) == len(values)
    found = mask_attributes()
    assert found["flag_masks"] == values
    assert found["flag_meanings"].split() == list(MASK_BITS)


def test_a_night_lasts_from_noon_to_noon():
    times = ["2026-07-01T11:59:59", "2026-07-01T12:00:00", "2026-07-02T03:00:00", "2026-07-02T12:00:00"]
    raw = xr.Dataset(coords={"time": ("exposure", np.array(times, "datetime64[ns]"))})
    expected = np.array(["2026-06-30", "2026-07-01", "2026-07-01", "2026-07-02"], "datetime64[D]")
    np.testing.assert_array_equal(nights(raw), expected)
