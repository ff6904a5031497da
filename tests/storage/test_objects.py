"""Small objects: one writer wins, a reader never sees a part."""

import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects

WRITERS = 8


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "s")


def _create(arguments):
    url, path, writer, rounds = arguments
    return [objects.create(url, path.format(i), {"writer": writer}) for i in range(rounds)]


def test_of_eight_threads_that_create_the_same_object_one_succeeds(url):
    barrier = threading.Barrier(WRITERS)

    def write(writer):
        won = []
        for i in range(50):
            barrier.wait()
            won.append(objects.create(url, f"a/{i}.json", {"writer": writer}))
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = np.array(list(pool.map(write, range(WRITERS))))
    assert (outcomes.sum(axis=0) == 1).all()
    for i, winner in enumerate(outcomes.argmax(axis=0)):
        assert objects.read_json(url, f"a/{i}.json") == {"writer": int(winner)}


def test_of_eight_processes_that_create_the_same_object_one_succeeds(url):
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(WRITERS, mp_context=context) as pool:
        jobs = [(url, "a/{}.json", writer, 100) for writer in range(WRITERS)]
        outcomes = np.array(list(pool.map(_create, jobs)))
    assert (outcomes.sum(axis=0) == 1).all()
    for i, winner in enumerate(outcomes.argmax(axis=0)):
        assert objects.read_json(url, f"a/{i}.json") == {"writer": int(winner)}


def test_create_keeps_what_stands(url):
    assert objects.create(url, "x.json", 1)
    assert not objects.create(url, "x.json", 2)
    assert objects.read_json(url, "x.json") == 1
    objects.write_json(url, "x.json", 3)
    assert objects.read_json(url, "x.json") == 3


def test_a_reader_never_sees_a_part_of_an_object_that_is_rewritten(url):
    values = [{"number": i, "filling": [i] * (20_000 if i % 2 else 3)} for i in range(2)]
    objects.write_json(url, "x.json", values[0])
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            found = json.loads(Path(url, "x.json").read_bytes())
            seen.append(found["number"])
            assert found == values[found["number"]]

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for i in range(300):
            objects.write_json(url, "x.json", values[i % 2])
        stop.set()
        for reader in readers:
            reader.result()
    assert len(seen) > 20
    assert set(seen) == {0, 1}
    assert objects.list_names(url, "") == ["x.json"]


def test_what_is_not_there(url):
    assert not objects.exists(url, "a/x.json")
    assert objects.list_names(url, "a") == []
    with pytest.raises(FileNotFoundError, match=r"a/x\.json"):
        objects.read_json(url, "a/x.json")


def test_names_are_sorted_and_only_those_directly_below(url):
    for path in ("b/2.json", "b/1.json", "b/deep/3.json", "c.json"):
        objects.write_json(url, path, {})
    assert objects.list_names(url, "b") == ["1.json", "2.json", "deep"]
    assert objects.list_names(url, "c.json") == []
    assert objects.exists(url, "b/1.json")
    assert not objects.exists(url, "b/deep")


def test_addresses_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    here = os.path.realpath(tmp_path)
    assert objects.normalise("a/../s/") == f"{here}/s"
    assert objects.normalise("~/s") == f"{here}/s"
    assert objects.normalise(tmp_path / "s") == f"{here}/s"
    assert objects.normalise("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert objects.is_remote("s3://bucket")
    assert not objects.is_remote(here)


def test_an_address_of_no_known_kind_is_named():
    with pytest.raises(CalibrationError, match="nowhere://x: cannot open this store"):
        objects.exists("nowhere://x", "a.json")


def test_left_over_parts_of_a_killed_writer_are_swept(url):
    objects.write_json(url, "a/x.json", {})
    Path(url, "a", "c.0.partial").write_bytes(b"...")
    objects.sweep(url, "a")
    objects.sweep(url, "nowhere")
    assert objects.list_names(url, "a") == ["x.json"]


def test_a_second_writer_of_an_array_opens_that_of_the_first(url):
    settings = {"name": "v", "shape": (4,), "chunks": (2,), "dtype": "int32"}
    first = objects.create_or_open(url, "d", **settings)
    first[:2] = [1, 2]
    second = objects.create_or_open(url, "d", **settings)
    second[2:] = [3, 4]
    found = zarr.open_array(objects.zarr_store(url, "d", read_only=True), path="v", mode="r")
    assert found[:].tolist() == [1, 2, 3, 4]


def test_a_buffer_grows_to_what_is_read_into_it(tmp_path):
    url, buffer = str(tmp_path), bytearray()
    for content in (b"long enough", b"short", b"", b"longer than any before"):
        objects.write_bytes(url, "x", content)
        assert objects.read_into(url, "x", buffer).tobytes() == content
    assert len(buffer) == len(b"longer than any before")
    with pytest.raises(FileNotFoundError):
        objects.read_into(url, "y", buffer)
