import numpy as np
import pytest
import xarray as xr
from making import SEED, small_plans

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.simple import simulate_frame
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.raw import open_raw, read_records


def expected_counts(index):
    camera = load_camera("mini1")
    return simulate_frame(SEED, small_plans()[index], camera, camera.detectors[0]).counts


def test_focal_plane_is_lazy_with_one_chunk_per_amplifier(ingested, no_compute):
    raw = open_raw(ingested.url, ingested.camera)
    assert raw["counts"].dims == ("exposure", "detector", "amplifier", "y", "x")
    ny, nx = ingested.camera.raw_shape
    assert raw["counts"].data.chunksize == (1, 1, 1, ny, nx)
    assert list(raw["exposure_type"].values[:6]) == ["bias"] * 5 + ["dark"]
    assert raw["dark_time"].attrs["units"] == "s"


@pytest.mark.parametrize("chunked", [True, False])
def test_counts_come_back_bit_for_bit(ingested, chunked):
    raw = open_raw(ingested.url, ingested.camera, chunked=chunked)
    for index in (0, 7, 13):
        np.testing.assert_array_equal(raw["counts"].values[index, 0], expected_counts(index))


def test_any_indexing_equals_numpy(ingested):
    raw = open_raw(ingested.url, ingested.camera, chunked=False)
    everything = raw["counts"].values
    lazy = raw["counts"]
    choices = [
        {"exposure": [3, 1, 8], "amplifier": slice(1, 3)},
        {"exposure": 2, "detector": 0, "amplifier": 3, "y": slice(5, 60, 7), "x": [4, 2, 60]},
        {"y": 11, "x": slice(None, None, 3)},
        {"amplifier": [2], "x": 5},
    ]
    dense = xr.DataArray(everything, dims=lazy.dims)
    for choice in choices:
        np.testing.assert_array_equal(lazy.isel(choice).values, dense.isel(choice).values)


def test_selection_by_type_and_by_name(ingested):
    biases = open_raw(ingested.url, ingested.camera, exposure_type="bias")
    assert biases.sizes["exposure"] == 5
    name = str(biases["exposure"].values[2])
    assert open_raw(ingested.url, ingested.camera, exposures=[name])["exposure"].values.tolist() == [name]
    with pytest.raises(CalibrationError, match="exposure NOPE is not in"):
        open_raw(ingested.url, ingested.camera, exposures=["NOPE"])


def test_first_published_wins_over_a_later_manifest(ingested, tmp_path):
    records = read_records(ingested.url)
    key, record = next(iter(records.items()))
    url = str(tmp_path)
    from dataclasses import asdict, replace

    from lsstcal_dask.storage.raw import publish_frames

    publish_frames(url, [record])
    other = replace(record, pixels="0" * 16)
    row = {k: v for k, v in asdict(other).items() if k != "header"}
    objects.create(url, "raw/manifests/99991231T000000-x.json", {"exposures": {key[0]: other.header}, "frames": [row]})
    assert read_records(url)[key].pixels == record.pixels


def test_stored_integers_are_as_narrow_as_they_can_be(ingested):
    dtypes = {record.dtype for record in read_records(ingested.url).values()}
    assert "uint16" in dtypes  # biases of an int32 camera fit
    assert open_raw(ingested.url, ingested.camera, exposure_type="bias")["counts"].dtype == np.uint16
