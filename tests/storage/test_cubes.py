"""Flat cubes as they are stored: any Zarr library reads them, nothing is lost that matters, damage is told."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from made_up_slices import ABOUT, SHAPE, make_slice, slot_of, write_cube

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import cubewriting
from lsstcal_dask.storage.coding import EXCEPTION, FORMS, encode_slice
from lsstcal_dask.storage.cubearrays import mend_numbers, read_markers
from lsstcal_dask.storage.cubelayout import CubeLayout, list_pointers
from lsstcal_dask.storage.cubes import CubeReader, check_cube, open_cube, read_cube
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_after, publish_cube, write_slice
from lsstcal_dask.storage.shards import ShardCodec, ShardFile, shard_settings
from lsstcal_dask.variables import MASK_BITS, validate


@pytest.mark.parametrize("dtype", ["<i2", "i1", "<f4", "<u2"])
def test_zarr_reads_what_the_own_encoder_wrote_and_the_reverse(tmp_path, dtype):
    codec = ShardCodec(dtype, SHAPE)
    values = np.random.default_rng(3).integers(-100, 100, (2, *SHAPE)).astype(dtype)
    dims = ("detector", "amplifier", "y", "x")
    sizes = {"detector": 2, "amplifier": SHAPE[0], "y": SHAPE[1], "x": SHAPE[2]}
    array = zarr.create_array(tmp_path / "a", fill_value=0, **shard_settings(codec, dims, sizes))
    there = np.array([True, False, True])
    path = tmp_path / "a" / "c" / "0" / "0" / "0" / "0"
    path.parent.mkdir(parents=True)
    path.write_bytes(codec.encode(values[0], there))
    expected = np.where(there[:, None, None], values[0], 0)
    np.testing.assert_array_equal(array[0], expected)
    array[1] = values[1]  # by Zarr's own writer
    for detector, wanted in ((0, expected), (1, values[1])):
        out = np.full(SHAPE, 7, dtype)
        ShardFile(str(tmp_path), codec).read(f"a/c/{detector}/0/0/0", range(3), out)
        np.testing.assert_array_equal(out, wanted)
    out = np.zeros((1, *SHAPE[1:]), dtype)
    ShardFile(str(tmp_path), codec).read("a/c/1/0/0/0", [2], out)
    np.testing.assert_array_equal(out[0], values[1, 2])


@pytest.mark.parametrize("form", FORMS)
def test_any_zarr_library_reads_a_cube(tmp_path, form):
    slices = {500.0 + i: make_slice(i) for i in range(3)}
    write_cube(tmp_path, form, slices)
    found = xr.open_zarr(tmp_path / "cubes" / "c" / "data", chunks=None)
    assert found["codes"].dims == ("detector", "amplifier", "wavelength", "y", "x")
    np.testing.assert_array_equal(found["wavelength"], [500, 501, 502])
    value = found["offset"] + found["scale"] * found["codes"]
    if form == "i1":
        at = found["reference_slot"].sel(detector="A").values
        reference = found["reference"].sel(detector="A").values[:, at]
        value = value + found["level"] * xr.Variable(value.dims[1:], reference)
    own = open_cube(str(tmp_path), "c", chunked=False)
    here = np.isfinite(own["flat"].sel(detector="A").values)
    here[1, :, 9, 9] = False
    difference = (value.sel(detector="A") - own["flat"].sel(detector="A")).values[here]
    assert np.abs(difference).max() < 1e-6  # float32


@pytest.mark.parametrize("form", FORMS)
def test_rounding_costs_little_noise_and_no_bias(tmp_path, form):
    given = {500.0 + i: make_slice(i) for i in range(12)}
    write_cube(tmp_path, form, given)
    found = open_cube(str(tmp_path), "c", chunked=False)["flat"].sel(detector="A").values
    bright = []
    for k, one in enumerate(given.values()):
        np.testing.assert_array_equal(np.isnan(found[:, k]), np.isnan(one.value))
        sigma = np.sqrt(one.slope * np.nanmedian(one.value))[0]
        error = ((found[:, k] - one.value) / sigma)[np.isfinite(one.value)]
        assert np.abs(error).max() < 0.14  # half a step
        bright.append(error)
    error = np.concatenate(bright)
    assert np.sqrt(1 + np.mean(error**2)) - 1 < 0.003
    # the mean of n errors that are even over a step scatters by a twelfth of its square over n
    assert abs(error.mean()) < 4 * 0.25 / np.sqrt(12 * error.size) + 1e-6


def test_codes_of_one_byte_that_do_not_fit_are_exceptions_or_a_new_reference(tmp_path):
    first, near, far = make_slice(0), make_slice(1), make_slice(2)
    near.value[0, 50, 50] *= 3  # one pixel far off
    far.value[0, ::2] *= 1.4  # half an amplifier
    write_cube(tmp_path, "i1", {500.0: first, 501.0: near, 502.0: far, 503.0: make_slice(3)})
    cube = read_cube(str(tmp_path), "c")
    assert cube.reference_slot[0].tolist() == [0, 0, 2, 0]
    reader = CubeReader(cube, "A")
    odd = reader.exceptions(1, 0)
    assert (50, 50) in zip(odd["y"].tolist(), odd["x"].tolist(), strict=True)
    np.testing.assert_allclose(reader.values(1, 0)[50, 50], near.value[0, 50, 50], rtol=1e-6)
    np.testing.assert_allclose(reader.values(2, 0)[:, :-1], far.value[0, :, :-1], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_dead_amplifier_is_stored_as_nothing(tmp_path, form):
    given = {500.0 + i: make_slice(i) for i in range(2)}
    for one in given.values():
        one.value[1] = np.nan
    write_cube(tmp_path, form, given)
    found = open_cube(str(tmp_path), "c", chunked=False)["flat"].sel(detector="A").values
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0]).any()


def test_the_nearest_reference_is_taken(tmp_path):
    odd = make_slice(5)
    odd.value[0, ::2] *= 1.5
    near_odd = make_slice(6)
    near_odd.value[0, ::2] *= 1.5
    write_cube(tmp_path, "i1", {500.0: make_slice(0), 900.0: odd, 510.0: make_slice(1), 890.0: near_odd})
    cube = read_cube(str(tmp_path), "c")
    assert dict(zip(cube.column("wavelength"), cube.reference_slot[0], strict=True)) == {500: 0, 510: 0, 890: 1, 900: 1}


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_streams_blocks_from_which_weighted_sums_follow(tmp_path, form):
    given = {500.0 + i: make_slice(i, dead=i == 2) for i in (3, 1, 4, 0, 2)}
    write_cube(tmp_path, form, given)
    cube = read_cube(str(tmp_path), "c")
    reader = CubeReader(cube, "A", block=2)
    np.testing.assert_array_equal(reader.wavelength, [500, 501, 502, 503, 504])
    weight = np.array([0.5, 2.0, 1.0, -1.0, 0.25])
    for amplifier in range(3):
        total, seen = np.zeros(SHAPE[1:]), []
        for own, codes in reader.blocks(amplifier):
            for k, code in zip(own, codes, strict=True):
                total += weight[k] * (reader.offset[k, amplifier] + reader.scale[k, amplifier] * code)
            seen += own.tolist()
        assert seen == ([0, 1, 3, 4] if amplifier == 2 else [0, 1, 2, 3, 4])
        if form == "i1":
            for places, image in reader.references(amplifier):
                total += (weight[places] @ reader.level[places, amplifier]) * image
        for k in seen:
            odd = reader.exceptions(k, amplifier)
            total[odd["y"], odd["x"]] += weight[k] * odd["change"]
        expected = sum(weight[k] * reader.values(k, amplifier).astype(float) for k in seen)
        inside = np.isfinite(expected[:, :-1])
        assert inside.sum() >= inside.size - 1
        np.testing.assert_allclose(total[:, :-1][inside], expected[:, :-1][inside], rtol=1e-5)


def test_exceptions_tell_what_befell_a_pixel_of_one_slice(tmp_path):
    write_cube(tmp_path, "i2", {500.0: make_slice(0), 501.0: make_slice(1)})
    reader = CubeReader(read_cube(str(tmp_path), "c"), "A")
    odd = reader.exceptions(1)
    assert odd.dtype == EXCEPTION
    assert [tuple(row)[:5] for row in odd] == [(0, 7, 1, 2, 0), (1, 9, 9, 0, MASK_BITS["SATURATED"])]
    assert odd["change"][0] == 0
    assert np.isnan(odd["change"][1])
    mask = reader.mask()
    assert mask[0, 5, 5] == MASK_BITS["BAD"]
    assert mask[1, 9, 9] == 0
    assert np.all(mask[..., -1] == MASK_BITS["NO_DATA"])


def test_a_dead_amplifier_and_a_missing_ccd_are_nan_and_may_come_to_life(tmp_path):
    write_cube(tmp_path, "i2", {500.0: make_slice(0, dead=True), 501.0: make_slice(1)})
    cube = read_cube(str(tmp_path), "c")
    assert cube.present.tolist() == [[True, True], [False, False]]
    found = open_cube(str(tmp_path), "c")
    assert np.isnan(found["flat"].sel(detector="A", amplifier="C2")[0]).all()
    assert np.isfinite(found["flat"].sel(detector="A", amplifier="C2")[1, :, :-1]).all()
    assert np.isnan(found["flat"].sel(detector="B")).all()
    assert np.isnan(found["variance_slope"].sel(detector="B")).all()
    assert list(CubeReader(cube, "B").blocks(0)) == []


def test_a_cube_is_opened_without_reading_pixels(tmp_path, no_compute):
    write_cube(tmp_path, "i2", {501.0: make_slice(0), 500.0: make_slice(1)})
    shutil.rmtree(tmp_path / "cubes" / "c" / "data" / "codes" / "c")
    found = validate(open_cube(str(tmp_path), "c"))
    assert found["flat"].chunks == ((1, 1), (3,), (1, 1), (120,), (100,))
    np.testing.assert_array_equal(found["wavelength"], [500, 501])


def test_slices_are_added_and_replaced_and_what_was_published_stays(tmp_path):
    url = str(tmp_path)
    write_cube(tmp_path, "i2", {500.0: make_slice(0), 501.0: make_slice(1)})
    before = open_cube(url, "c", chunked=False)["flat"].values
    number = claim_slot(url, "c", {"wavelength": 500.5})
    write_slice(url, "c", (number, "A"), make_slice(2), ABOUT)
    assert open_cube(url, "c").sizes["wavelength"] == 2
    again = claim_slot(url, "c", {"wavelength": 501.0})
    write_slice(url, "c", (again, "A"), make_slice(3), ABOUT)
    kept = read_cube(url, "c").pointer.slots
    made = publish_cube(url, "c", [kept[0], slot_of(number, 500.5), slot_of(again, 501.02)], {})
    assert (made.number, publish_cube(url, "c", made.slots, {}).number) == (2, 2)
    now = open_cube(url, "c", chunked=False)
    np.testing.assert_array_equal(now["wavelength"], [500, 500.5, 501.02])
    np.testing.assert_array_equal(now["flat"][:, :, 0], before[:, :, 0])
    np.testing.assert_array_equal(open_cube(url, "c", 1, chunked=False)["flat"].values, before)


def test_writing_again_gives_the_same_bytes(tmp_path):
    for form in FORMS:
        write_cube(tmp_path, form, {500.0: make_slice(0), 501.0: make_slice(1)}, form)
        files = [p for p in (tmp_path / "cubes" / form).rglob("*") if p.is_file()]
        before = {p: p.read_bytes() for p in files}
        markers = [read_markers(str(tmp_path), form, slot)["A"] for slot in (0, 1)]
        for slot, seed in enumerate((0, 1)):
            assert write_slice(str(tmp_path), form, (slot, "A"), make_slice(seed), ABOUT) == markers[slot]
        assert {p: p.read_bytes() for p in files} == before


def _shard(tmp_path: Path) -> Path:
    return tmp_path / "cubes" / "c" / "data" / "codes" / "c" / "0" / "0" / "1" / "0" / "0"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["flipped", "short", "index", "gone"])
def test_damage_is_told_with_its_place_and_its_remedy(tmp_path, form, how):
    write_cube(tmp_path, form, {500.0: make_slice(0), 501.0: make_slice(1)})
    shard = _shard(tmp_path)
    content = bytearray(shard.read_bytes())
    content[20 if how == "index" else -30] ^= 1
    shard.write_bytes(content[:-50] if how == "short" else content)
    if how == "gone":
        shard.unlink()
    reader = CubeReader(read_cube(str(tmp_path), "c"), "A")
    with pytest.raises(StoreFailure, match=r"cube c A at 501\.00 nm: .*delete cubes/c/done/00001/A\.json") as error:
        list(reader.blocks(2))
    assert "\n" not in str(error.value)
    reader.read(0, np.empty(SHAPE, reader.cube.layout.codec.dtype))


def test_damage_of_exceptions_and_pointers_is_told(tmp_path):
    write_cube(tmp_path, "i2", {500.0: make_slice(0)})
    reader = CubeReader(read_cube(str(tmp_path), "c"), "A")
    path = tmp_path / "cubes" / "c" / "exceptions" / "00000" / "A.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreFailure, match=r"cube c A at 500\.00 nm"):
        reader.exceptions(0)
    (tmp_path / "cubes" / "c" / "published" / "00002.json").write_text('{"slots": []}')
    with pytest.raises(CalibrationError, match="is damaged"):
        list_pointers(str(tmp_path), "c")


def _flip(path: Path) -> None:
    """Another value of every amplifier, stored as any Zarr library would: no codec can tell."""
    array = zarr.open_array(next(p for p in path.parents if (p / "zarr.json").exists()), mode="r+")
    array[...] = np.asarray(array[...]) + 1


HARMS = {"other": _flip, "short": lambda path: path.write_bytes(path.read_bytes()[:10]), "gone": Path.unlink}


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("what", ["scale", "variance_floor", "total", "reference_slot"])
def test_numbers_that_are_not_those_published_are_told_and_written_anew_from_markers(tmp_path, what, how):
    url = str(tmp_path)
    write_cube(tmp_path, "i1", {500.0: make_slice(0), 501.0: make_slice(1)})
    publish_cube(url, "c", list_pointers(url, "c")[-1].slots[1:], {})
    whole = {p: p.read_bytes() for p in Path(url, "cubes/c/data").rglob("*") if p.is_file()}
    chunk = next(p for p in Path(url, "cubes/c/data", what, "c").rglob("*") if p.is_file())
    HARMS[how](chunk)
    for number in (1, 2):
        with pytest.raises(StoreFailure, match=r"^cube c.*: run 'lsstcal cube .* --name c' again: it writes") as error:
            read_cube(url, "c", number)
        assert "\n" not in str(error.value)
    mend_numbers(url, "c")
    read_cube(url, "c", 1)
    assert check_cube(read_cube(url, "c")) == []
    assert {p: p.read_bytes() for p in Path(url, "cubes/c/data").rglob("*") if p.is_file()} == whole
    HARMS[how](chunk)
    assert ["numbers" in line for line in check_cube(read_cube(url, "c"))] == [True]


def test_of_two_that_publish_at_once_the_later_is_told_and_neither_harms_the_other(tmp_path, monkeypatch):
    url = str(tmp_path)
    write_cube(tmp_path, "i2", {500.0: make_slice(0)})
    (first,) = list_pointers(url, "c")[-1].slots
    for slot in (1, 2):
        assert claim_slot(url, "c", {}) == slot
        write_slice(url, "c", (slot, "A"), make_slice(slot), ABOUT)
    fill = cubewriting._fill

    def meanwhile(*given):
        monkeypatch.setattr(cubewriting, "_fill", fill)
        before = {p: p.read_bytes() for p in Path(url, "cubes/c/data").rglob("*") if p.is_file()}
        assert publish_after(url, "c", [first, slot_of(1, 501.0)], {}, 1).number == 2
        for path, blob in before.items():
            path.write_bytes(blob)  # a writer who read before and writes after
        fill(*given)

    monkeypatch.setattr(cubewriting, "_fill", meanwhile)
    mine = [first, slot_of(2, 502.0)]
    assert publish_after(url, "c", mine, {}, 1) is None
    both = [*list_pointers(url, "c")[-1].slots, mine[1]]
    assert publish_after(url, "c", both, {}, 2).number == 3
    assert [check_cube(read_cube(url, "c", number)) for number in (1, 2, 3)] == [[], [], []]
    assert [one.wavelength for one in read_cube(url, "c").pointer.slots] == [500, 501, 502]


@pytest.mark.parametrize("how", ["other", "short", "gone"])
def test_a_mask_that_is_not_the_one_written_is_told_and_made_again_with_its_slices(tmp_path, how):
    url, slices = str(tmp_path), {500.0: make_slice(0), 501.0: make_slice(1)}
    write_cube(tmp_path, "i2", slices)
    shard, cube = tmp_path / "cubes/c/data/mask/c/0/0/0/0", read_cube(url, "c")
    whole = shard.read_bytes()
    if how == "other":
        shard.write_bytes(cube.layout.mask_codec.encode(np.zeros(SHAPE, np.uint16)))
    else:
        HARMS[how](shard)
        with pytest.raises(StoreFailure, match=r"^cube c A: its mask cannot be read"):
            CubeReader(cube, "A").mask([1])
        with pytest.raises(StoreFailure, match=r"^cube c A: its mask cannot be read"):
            write_slice(url, "c", (2, "A"), make_slice(2), ABOUT)
    (line,) = check_cube(cube)
    assert f"delete cubes/c/data/mask/c/0/0/0/0 and cubes/c/done/*/A.json, then run 'lsstcal cube {url}" in line
    assert "\n" not in line
    shard.unlink(missing_ok=True)
    for marker in tmp_path.glob("cubes/c/done/*/A.json"):
        marker.unlink()
    for slot, one in enumerate(slices.values()):
        write_slice(url, "c", (slot, "A"), one, ABOUT)
    assert check_cube(cube) == []
    assert shard.read_bytes() == whole


def test_numbers_that_no_marker_tells_are_never_published(tmp_path):
    url = str(tmp_path)
    write_cube(tmp_path, "i2", {500.0: make_slice(0), 501.0: make_slice(1)})
    shutil.rmtree(tmp_path / "cubes/c/data/scale")
    (tmp_path / "cubes/c/done/00001/A.json").unlink()
    mend_numbers(url, "c")
    with pytest.raises(StoreFailure, match=r"^cube c at 501\.00 nm: its numbers in"):
        read_cube(url, "c")
    with pytest.raises(StoreFailure, match=r"at 501\.00 nm.*delete cubes/c/done/00001, then run 'lsstcal cube"):
        publish_cube(url, "c", list_pointers(url, "c")[-1].slots, {})
    write_slice(url, "c", (1, "A"), make_slice(1), ABOUT)
    assert publish_cube(url, "c", list_pointers(url, "c")[-1].slots, {}).number == 1
    assert check_cube(read_cube(url, "c")) == []


def test_what_cannot_be_is_refused(tmp_path):
    url = str(tmp_path)
    with pytest.raises(CalibrationError, match="has no cube c: make it with 'lsstcal cube"):
        open_cube(url, "c")
    create_cube(url, "c", CubeLayout("i2", ("A",), ("C0", "C1", "C2"), SHAPE[1:]))
    with pytest.raises(CalibrationError, match="is not published: run 'lsstcal cube"):
        open_cube(url, "c")
    with pytest.raises(CalibrationError, match="has form 'i2', not 'i1'"):
        create_cube(url, "c", CubeLayout("i1", ("A",), ("C0", "C1", "C2"), SHAPE[1:]))
    with pytest.raises(CalibrationError, match="is no name of a cube"):
        open_cube(url, "../c")
    publish_cube(url, "c", [], {})
    with pytest.raises(CalibrationError, match="not published under number 7"):
        open_cube(url, "c", 7)
    with pytest.raises(CalibrationError, match="no detector 'Z'"):
        CubeReader(read_cube(url, "c"), "Z")


def test_no_noise_is_stored_as_finely_as_two_bytes_can():
    given = make_slice(0, noise=0.0)
    coded = encode_slice(given, "i2", given.mask)
    value = coded.numbers["offset"][0] + coded.numbers["scale"][0] * coded.codes[0].astype(float)
    assert np.nanmax(np.abs(value - given.value[0])) < 1e-4


def test_a_hit_that_was_filled_in_the_first_slice_is_good_in_the_others(tmp_path):
    first, second = make_slice(0), make_slice(1)
    first.mask[1, 20, 20:30] = MASK_BITS["COSMIC_RAY"] | MASK_BITS["INTERPOLATED"]
    first.repeats[1, 20, 20:30] = 0
    write_cube(tmp_path, "i2", {500.0: first, 501.0: second})
    reader = CubeReader(read_cube(str(tmp_path), "c"), "A")
    assert np.all(reader.mask()[1, 20, 20:30] == 0)
    odd = reader.exceptions(0, 1)
    assert np.all(odd["mask"][odd["y"] == 20] == MASK_BITS["COSMIC_RAY"] | MASK_BITS["INTERPOLATED"])
    assert not np.any(reader.exceptions(1, 1)["y"] == 20)
