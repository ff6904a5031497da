"""The whole way in a bucket, on a server of one's own: what holds in a folder holds there."""

import logging
import uuid

import numpy as np
import pytest
from made_up_slices import make_slice, write_cube

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.observatory import SimulateConfig, open_observatory, simulate
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.cubes import CubeReader, open_cube, read_cube
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.products import check_product, list_products, lookup, open_product
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.storage.tables import input_names

pytest.importorskip("moto", reason='no S3 server to test with: pip install "moto[server]"')
pytest.importorskip("flask", reason='no S3 server to test with: pip install "moto[server]"')


@pytest.fixture(scope="module")
def server():
    """Address of an S3 server in a thread; the environment names it and its credentials."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("no_proxy", host)
        objects._connect.cache_clear()
        yield f"http://{host}:{port}"
    objects._connect.cache_clear()
    server.stop()


@pytest.fixture(scope="module")
def bucket(server):
    """A new bucket."""
    import urllib.request

    name = f"b{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{server}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    return name


@pytest.fixture(scope="module")
def remote(bucket, raw_files, threads):
    """A store in the bucket with the files of `ingested`."""
    store = create_store(f"s3://{bucket}/night/one", "mini1")
    report = ingest(store, raw_files, threads)
    assert (len(report.ingested), report.errors) == (len(raw_files), [])
    return store


@pytest.fixture(scope="module")
def local(ingested, tmp_path_factory, threads):
    """The same store in a folder, everything built."""
    import shutil

    folder = tmp_path_factory.mktemp("local") / "s"
    shutil.copytree(ingested.url, folder)
    store = open_store(folder)
    found = [*build(store, [], Config(), threads), *calibrate(store, [], Config().calibrate, threads)]
    assert not [error for _, one in found for error in one.errors]
    return store


def test_raw_frames_are_the_same(remote, ingested):
    def hashes(store):
        return {key: record.pixels for key, record in read_records(store.url).items()}

    assert hashes(remote) == hashes(ingested)
    far, near = (open_raw(s.url, s.camera, exposure_type="dark") for s in (remote, ingested))
    assert far["counts"].chunks == near["counts"].chunks
    np.testing.assert_array_equal(far["counts"].values, near["counts"].values)
    some = {"exposure": [2, 0], "amplifier": [3, 1], "y": slice(5, 9)}
    chosen = (open_raw(s.url, s.camera, chunked=False)["counts"].isel(some).values for s in (remote, ingested))
    np.testing.assert_array_equal(*chosen)


def test_ingesting_again_changes_nothing(remote, raw_files, threads):
    before = objects.list_names(remote.url, "raw/manifests")
    report = ingest(remote, raw_files, threads)
    assert (len(report.ingested), len(report.unchanged), report.errors) == (0, len(raw_files), [])
    assert objects.list_names(remote.url, "raw/manifests") == before


def test_products_and_calibrated_frames_have_the_bits_of_a_folder(remote, local, threads, monkeypatch):
    """Publishing the bias is prevented once: nothing is visible, and the next run only publishes."""
    from lsstcal_dask.pipeline import build as module

    made = []
    write = module.write_detector
    monkeypatch.setattr(module, "write_detector", lambda *args: made.append(args[3][1]) or write(*args))

    def prevented(url, pointer):
        raise ConnectionError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", prevented)
        with pytest.raises(ConnectionError):
            list(build(remote, ["bias"], Config(), threads))
    assert made == ["R22_S11"]
    assert list_products(remote.url) == []
    with pytest.raises(CalibrationError, match="there is no bias"):
        lookup(list_products(remote.url), "bias", "R22_S11", "2026-07-01T20:00:00")

    found = [*build(remote, [], Config(), threads), *calibrate(remote, [], Config().calibrate, threads)]
    assert not [error for _, one in found for error in one.errors]
    assert made == ["R22_S11"] * 7  # not the bias again, but gain, dark, muons, defects, saturation and the frame

    expected = {p.name: (p.version, p.hash) for p in list_products(local.url)}
    assert {p.name: (p.version, p.hash) for p in list_products(remote.url)} == expected
    for pointer in list_products(remote.url):
        assert check_product(remote.url, pointer) == []
        far = open_product(remote.url, pointer.name, pointer.version).load()
        near = open_product(local.url, pointer.name, pointer.version).load()
        assert far.drop_attrs(deep=False).identical(near.drop_attrs(deep=False))
    assert [name for name, one in build(remote, [], Config(), threads) if one.new] == []


def test_lists_are_those_of_a_folder(remote, local):
    def brief(store):
        found = list_contents(store, check=True)
        products = [{k: v for k, v in row.items() if k != "created"} for row in found["products"]]
        return found["exposures"], products, found["damaged"]

    assert brief(remote) == brief(local)


def test_a_simulation_is_that_of_a_folder(bucket, tmp_path, threads):
    config = SimulateConfig(recipe={"calibration_day": {"biases": 2, "darks": 0, "xrays": 0, "pairs": 0, "flats": 0}})
    far, near = create_store(f"s3://{bucket}/made", "mini1"), create_store(tmp_path / "made", "mini1")
    for store in (far, near):
        report = simulate(store, "calibration-day", config, threads)
        assert (report.made, report.errors) == (2, [])
        assert simulate(store, "calibration-day", config, threads).unchanged == 2
        with pytest.raises(CalibrationError, match="seed = 1, not 2"):
            simulate(store, "calibration-day", config, threads, seed=2)
    assert open_observatory(far) == open_observatory(near)
    distant, close = ({k: r.pixels for k, r in read_records(store.url).items()} for store in (far, near))
    assert distant == close
    assert input_names(far.url) == input_names(near.url)
    for name in (*(f"inputs/{one}" for one in input_names(far.url)), "truth/amplifiers"):
        assert objects.read_bytes(far.url, f"{name}.ecsv") == objects.read_bytes(near.url, f"{name}.ecsv")
    assert objects.list_names(far.url, "truth/maps") == objects.list_names(near.url, "truth/maps")


def test_create_is_exclusive_and_writes_replace(remote):
    url = f"{remote.url}/small"
    assert objects.create(url, "a/x.json", 1)
    assert not objects.create(url, "a/x.json", 2)
    assert objects.read_json(url, "a/x.json") == 1
    objects.write_json(url, "a/x.json", 3)
    assert objects.read_json(url, "a/x.json") == 3
    assert objects.exists(url, "a/x.json")
    assert not objects.exists(url, "a/y.json")
    objects.write_json(url, "a/deep/z.json", 4)
    assert objects.list_names(url, "a") == ["deep", "x.json"]
    assert objects.list_names(url, "b") == []
    with pytest.raises(FileNotFoundError):
        objects.read_json(url, "a/y.json")


def test_a_store_keeps_its_camera_and_another_prefix_is_no_store(remote, bucket):
    with pytest.raises(CalibrationError, match="holds camera mini1, not mini9"):
        create_store(remote.url, "mini9")
    assert open_store(f"{remote.url}/") == remote
    with pytest.raises(CalibrationError, match=f"s3://{bucket}/two is not a store"):
        open_store(f"s3://{bucket}/two")


def test_a_bucket_that_does_not_exist_is_no_store(server):
    with pytest.raises(CalibrationError, match="is not a store"):
        open_store(f"s3://{uuid.uuid4().hex}/x")


@pytest.mark.parametrize("form", ["i2", "i1"])
def test_a_cube_in_a_bucket_reads_as_in_a_folder(bucket, tmp_path, form):
    far, near = f"s3://{bucket}/cubes-{form}", str(tmp_path)
    for url in (far, near):
        write_cube(url, form, {501.0: make_slice(0), 500.0: make_slice(1, dead=True)})
    there, here = (open_cube(url, "c", chunked=False)["flat"].values for url in (far, near))
    np.testing.assert_array_equal(there, here)
    for url in (far, near):
        reader = CubeReader(read_cube(url, "c"), "A")
        assert [len(own) for own, _ in reader.blocks(1)] == [2]
        assert [len(own) for own, _ in reader.blocks(2)] == [1]
