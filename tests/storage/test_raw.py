import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import xarray as xr
from making import make_frame, small_day

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames, read_records
from lsstcal_dask.storage.raw import check_frame, open_raw, write_frame


def expected_counts(index):
    return make_frame(small_day()[index]).counts


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
    publish_frames(url, [record])
    other = replace(record, pixels="0" * 16)
    row = {k: v for k, v in asdict(other).items() if k != "header"}
    objects.create(url, "raw/manifests/99991231T000000-x.json", {"exposures": {key[0]: other.header}, "frames": [row]})
    assert read_records(url)[key].pixels == record.pixels


def test_stored_integers_are_as_narrow_as_they_can_be(ingested):
    dtypes = {record.dtype for record in read_records(ingested.url).values()}
    assert "uint16" in dtypes  # biases of an int32 camera fit
    assert open_raw(ingested.url, ingested.camera, exposure_type="bias")["counts"].dtype == np.uint16


def changed_frame(ingested, folder, change):
    """A copy of the store in which one file of the first bias has been changed."""
    shutil.copytree(ingested.url, folder)
    record = next(r for r in read_records(str(folder)).values() if r.header["exposure_type"] == "bias")
    change(folder / record.path / "c" / "1" / "0" / "0")
    return str(folder), record


def flip(file):
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 4
    file.write_bytes(blob)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda file: file.unlink(), "a part is missing"), (flip, "its checksum is wrong")],
    ids=["missing", "one bit"],
)
def test_damaged_pixels_are_never_read_as_numbers(ingested, tmp_path, change, reason):
    url, record = changed_frame(ingested, tmp_path / "s", change)
    raw = open_raw(url, ingested.camera, chunked=False).sel(exposure=record.exposure)
    assert raw["counts"].isel(amplifier=0).values.any()
    with pytest.raises(CalibrationError, match=f"exposure {record.exposure} {record.detector}: .*{reason}.*ingest"):
        raw["counts"].values  # noqa: B018
    assert not check_frame(url, record)
    assert check_frame(ingested.url, record)


def test_an_amplifier_that_reads_zero_is_data(tmp_path):
    counts = np.zeros((2, 5, 4), np.uint16)
    counts[1] = 7
    written = write_frame(str(tmp_path), FrameRecord("e", "d", "", "f", "h", "", {}), counts, {})
    assert check_frame(str(tmp_path), written)
    assert (tmp_path / written.path / "c/0/0/0").is_file()


def test_frames_of_two_widths_make_one_array(ingested, tmp_path):
    """An exposure whose counts need 32 bits among those that need 16."""
    shutil.copytree(ingested.url, tmp_path / "s")
    url = str(tmp_path / "s")
    first = next(iter(read_records(url).values()))
    counts = open_raw(url, ingested.camera, exposures=[first.exposure], chunked=False)["counts"].values[0, 0]
    wide = counts.astype(np.int32) + 100_000
    publish_frames(url, [write_frame(url, replace(first, exposure="WIDE", pixels=""), wide, {})])
    raw = open_raw(url, ingested.camera, exposures=[first.exposure, "WIDE"], chunked=False)["counts"]
    assert raw.dtype == np.int32
    for choice in ((), (slice(None), 0, 1, slice(3, 9), slice(2, 30, 3))):
        got = raw[choice].sel(exposure="WIDE").values.squeeze()
        expected = wide if choice == () else wide[1, 3:9, 2:30:3]
        np.testing.assert_array_equal(got, expected)
