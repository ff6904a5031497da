"""What is damaged or does not belong is named, with the remedy, and what is whole is still read."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from making import make_files, small_day

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.storage.chunks import RAW
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.products import finished, list_products, open_product


@pytest.fixture
def store(ingested, tmp_path):
    shutil.copytree(ingested.url, tmp_path / "s")
    return open_store(tmp_path / "s")


@pytest.fixture(scope="module")
def made(ingested, tmp_path_factory, threads):
    """A store with a bias."""
    folder = tmp_path_factory.mktemp("made") / "s"
    shutil.copytree(ingested.url, folder)
    ((_, one),) = build(open_store(folder), ["bias"], Config(), threads)
    return folder, one.pointer


@pytest.fixture
def with_bias(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "s")
    return open_store(tmp_path / "s"), made[1]


def files_of(store, pattern):
    return [path for path in sorted(Path(store.url).glob(pattern)) if path.is_file()]


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_bytes(b"\0" * 40)], ids=["gone", "zeros"])
def test_a_build_over_damaged_pixels_names_frame_and_path(store, threads, harm):
    record = next(r for r in read_records(store.url).values() if r.header["exposure_type"] == "bias")
    harm(Path(store.url, record.path, "c", "1", "0", "0"))
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.pointer is None
    assert one_line(one.errors[0]).startswith(f"bias: {record.detector}: exposure {record.exposure} {record.detector}:")
    assert f"delete {record.path} and ingest its file again" in one.errors[0]
    assert not list_products(store.url, "bias")


def test_a_damaged_frame_is_ingested_again_as_the_message_says(store, raw_files, threads):
    record = next(r for r in read_records(store.url).values() if r.header["exposure_type"] == "bias")
    Path(store.url, record.path, "c", "1", "0", "0").unlink()
    shutil.rmtree(Path(store.url, record.path))
    assert not ingest(store, raw_files, threads).errors
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.new
    assert one.errors == []


@pytest.mark.parametrize("reason", ["its checksum is wrong", "a part is missing"])
def test_damaged_pixels_of_a_product_are_never_subtracted(with_bias, threads, reason):
    """A chunk that was cut short would decode to numbers, a missing one to NaN."""
    store, bias = with_bias
    chunk = files_of(store, f"products/bias/{bias.version}/data/image/c/**/*")[0]
    if reason == "a part is missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-5])
    ((_, one),) = calibrate(store, [], Config().calibrate, threads, skip=["gain", "dark"])
    assert one.pointer is None
    assert one_line(one.errors[0]).startswith(
        f"calibrated: R22_S11: bias {bias.version} R22_S11: its stored pixels cannot be read ({reason}): delete "
    )
    (damage,) = list_contents(store, check=True)["damaged"]
    assert damage.startswith(
        f"bias {bias.version}: R22_S11: its values changed on disk: delete products/bias/published"
    )


WRONG = {
    "not JSON": "{",
    "another kind": "[]",
    "empty": "{}",
    "a number": "7",
    "text": '{"exposures": 1, "frames": "x"}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_damaged_manifest_is_named(store, text):
    (path,) = files_of(store, "raw/manifests/*.json")
    path.write_text(text)
    with pytest.raises(CalibrationError, match=f"raw/manifests/{path.name}: is damaged.*restore it") as error:
        list_contents(store)
    one_line(error.value)


@pytest.mark.parametrize("change", ["frames", "exposures", "row", "corrections"])
def test_a_manifest_that_lacks_a_part_is_damaged(store, change):
    (path,) = files_of(store, "raw/manifests/*.json")
    manifest = json.loads(path.read_text())
    if change == "row":
        del manifest["frames"][0]["pixels"]
    elif change == "corrections":
        manifest["corrections"] = {"e": {"header": {}}}
    else:
        del manifest[change]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CalibrationError, match=f"{path.name}: is damaged: restore it from a copy"):
        read_records(store.url)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "bias", "colour": 1}'])
def test_a_damaged_pointer_is_named(with_bias, text):
    store, bias = with_bias
    path = Path(store.url, "products/bias/published", f"{bias.version}.json")
    path.write_text(text)
    with pytest.raises(CalibrationError, match=rf"bias/published/{path.name}: is damaged.*or delete it") as error:
        list_contents(store)
    one_line(error.value)
    path.unlink()  # as the message says
    assert list_contents(store)["products"] == []


def test_a_damaged_marker_of_a_detector_is_named(with_bias):
    store, bias = with_bias
    (path,) = files_of(store, f"products/bias/{bias.version}/done/*.json")
    path.write_text("{")
    with pytest.raises(CalibrationError, match=rf"done/{path.name}: is damaged"):
        finished(store.url, "bias", bias.version)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}'])
def test_a_damaged_store_is_no_store(store, tmp_path, text):
    shutil.copytree(store.url, tmp_path / "other")
    (tmp_path / "other" / "lsstcal.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"lsstcal\.json: is damaged"):
        open_store(tmp_path / "other")


def test_stray_files_are_left_alone(with_bias, raw_files, threads):
    """Folders that a file manager or a person has been in."""
    store, bias = with_bias
    before = list_contents(store)
    for folder in (
        *("raw/manifests", "raw/frames", f"raw/frames/{bias.inputs['exposures'][0]}/R22_S11"),
        *("products", "products/bias", "products/bias/published", f"products/bias/{bias.version}/done"),
    ):
        Path(store.url, folder, ".DS_Store").write_bytes(b"\0\1")
        Path(store.url, folder, "notes.txt").write_text("mine")
    Path(store.url, "products", "mine").mkdir()
    assert list_contents(store, check=True) == before
    assert ingest(store, raw_files, threads).errors == []
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert (one.new, one.pointer.version) == (False, bias.version)
    assert list(finished(store.url, "bias", bias.version)) == ["R22_S11"]
    ((_, frame),) = calibrate(store, [], Config().calibrate, threads, skip=["gain", "dark"])
    assert frame.new


def test_what_was_never_published_cannot_be_opened(store):
    with pytest.raises(CalibrationError, match="bias 0000 is not published in"):
        open_product(store.url, "bias", "0000")


@pytest.fixture
def two_ccds(tmp_path, threads):
    """A store with biases of two CCDs."""
    names = [detector.name for detector in load_camera("mini9").detectors[:2]]
    files = make_files(tmp_path / "raw", "mini9", small_day()[:5], names)
    store = create_store(tmp_path / "s", "mini9")
    assert not ingest(store, files, threads).errors
    return store, files


@pytest.mark.parametrize("how", ["damaged", "unreadable"])
def test_a_product_is_not_published_without_a_ccd_whose_pixels_could_not_be_read(two_ccds, threads, how):
    """What the store fails to give says nothing about a CCD: the version must not be final without it."""
    store, files = two_ccds
    record = next(iter(read_records(store.url).values()))
    chunk = Path(store.url, record.path, "c", "3", "0", "0")
    blob = chunk.read_bytes()
    chunk.unlink()
    if how == "damaged":
        chunk.write_bytes(blob[:20] + b"xx" + blob[22:])
    else:
        chunk.mkdir()
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.pointer is None
    assert record.detector in one.errors[0]
    assert ("delete" in one.errors[0]) == (how == "damaged")  # never told to delete what is only out of reach
    if how == "damaged":
        shutil.rmtree(Path(store.url, record.path))
        assert not ingest(store, files, threads).errors
    else:
        chunk.rmdir()
        chunk.write_bytes(blob)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.errors == []
    assert len(one.pointer.detectors) == 2


def test_a_write_that_fails_leaves_nothing_and_publishes_nothing(two_ccds, threads, monkeypatch):
    store, _ = two_ccds
    monkeypatch.setattr(Path, "replace", full_disk)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.pointer is None
    assert "No space left on device" in one.errors[0]
    assert "check its disk" in one.errors[0]
    monkeypatch.undo()
    assert not list(Path(store.url).rglob("*.partial"))
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert len(one.pointer.detectors) == 2


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_open_product_belongs_to_its_caller(with_bias):
    """What one caller does to a product reaches neither another nor the next build."""
    store, bias = with_bias
    mine = open_product(store.url, "bias", bias.version, chunked=False)
    before = mine["image"].values.copy()
    mine.load()
    mine["image"].values[:] = -1000
    mine.attrs["verdict"] = "mine"
    with pytest.raises(ValueError, match="read-only"):
        mine["read_noise"].values[:] = 7
    for chunked in (True, False):
        other = open_product(store.url, "bias", bias.version, chunked=chunked)
        np.testing.assert_array_equal(other["image"].values, before)
        assert other.attrs["verdict"] == "PASS"


def test_a_chunk_of_another_size_is_refused():
    with pytest.raises(ValueError, match="it holds 8 bytes instead of 32"):
        RAW.decode(RAW.encode(np.zeros((2, 2), np.uint16)), np.empty((4, 4), np.uint16))


@pytest.mark.parametrize(("noise", "least", "most"), [(4.0, 1.9, 2.1), (150.0, 1.45, 1.7)])
def test_chunks_are_shuffled_by_their_noise_and_read_back_by_zarr(tmp_path, noise, least, most):
    """Where the high bytes are alike they vanish; else bits are shuffled, of which the noise takes nine of sixteen."""
    counts = np.rint(np.random.default_rng(1).normal(25000, noise, (400, 500))).astype(np.uint16)
    blob = RAW.encode(counts)
    assert least < counts.nbytes / len(blob) < most
    array = zarr.create_array(
        str(tmp_path), shape=counts.shape, chunks=counts.shape, dtype=counts.dtype, compressors=RAW.compressors
    )
    (tmp_path / "c" / "0").mkdir(parents=True)
    (tmp_path / "c" / "0" / "0").write_bytes(blob)
    np.testing.assert_array_equal(array[:], counts)
    out = np.empty_like(counts)
    RAW.decode(blob, out)
    np.testing.assert_array_equal(out, counts)
