"""Maps that exposures share: what is forgotten, what is made once, and that the exposures of LSSTCam find theirs."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline import observatory as pipeline
from lsstcal_dask.simulate import observatory as module
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.kept import DEFAULT, MEMORY, Maps, allowed
from lsstcal_dask.simulate.observatory import Observatory


def hundred():
    return np.zeros(100, np.uint8)


def test_the_least_recently_used_goes_first():
    maps, made = Maps(lambda: 300), []

    def ask(key):
        return maps.get(key, lambda: (made.append(key), hundred())[1])

    first = ask("a")
    assert not first.flags.writeable
    ask("b")
    ask("c")
    assert ask("a") is first
    ask("d")  # instead of b
    assert made == ["a", "b", "c", "d"]
    assert maps.nbytes == 300
    ask("a")
    ask("c")
    assert made == ["a", "b", "c", "d"]
    ask("b")
    assert made == ["a", "b", "c", "d", "b"]
    assert maps.nbytes == 300
    maps.clear()
    assert maps.nbytes == 0


def test_what_is_larger_than_the_memory_is_made_and_not_kept():
    maps = Maps(lambda: 99)
    assert len(maps.get("a", hundred)) == 100
    assert maps.nbytes == 0


def test_threads_that_ask_together_make_it_once():
    maps, calls, go = Maps(lambda: 1000), [], Event()

    def make():
        calls.append(1)
        go.wait(10)
        return hundred()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(maps.get, "a", make) for _ in range(4)]
        assert len(maps.get("b", hundred)) == 100  # another one need not wait
        go.set()
        found = [one.result(10) for one in asked]
    assert len(calls) == 1
    assert all(one is found[0] for one in found)


def test_an_error_is_told_to_all_and_not_kept():
    maps = Maps(lambda: 1000)

    def fail():
        raise WrongUse("no")

    for _ in range(2):
        with pytest.raises(WrongUse, match="no"):
            maps.get("a", fail)
    assert len(maps.get("a", hundred)) == 100


def test_one_map_may_need_another():
    maps = Maps(lambda: 1000)
    assert len(maps.get("a", lambda: maps.get("b", hundred).copy())) == 100
    assert maps.nbytes == 200


def test_the_memory_is_that_of_the_environment(monkeypatch):
    monkeypatch.delenv(MEMORY, raising=False)
    assert allowed() == DEFAULT
    monkeypatch.setenv(MEMORY, "2 GB")
    assert allowed() == 2_000_000_000
    monkeypatch.setenv(MEMORY, "much")
    with pytest.raises(WrongUse, match="LSSTCAL_MAPS_MEMORY=much: use a size, as"):
        allowed()


def taken(monkeypatch, memory):
    """Times that each map of three LSST CCDs was made for six flats, cut into tasks as ever; most that was kept."""
    made, most, maps = Counter(), [0], Maps(lambda: memory)

    def fake(name, layers):
        def make(site, *what):
            made[name] += 1
            ny, nx = what[-1].shape
            return np.empty((layers, ny, nx), np.float32)  # nobody writes to it, so it takes no memory

        return make

    corners, dark, lamp = fake("corners", 2), fake("dark", 1), fake("lamp", 1)
    monkeypatch.setattr(module, "kept", maps)
    monkeypatch.setattr(module, "_corners", corners)
    monkeypatch.setattr(module, "_dark_rate", dark)

    def frames(site, exposure, detectors):
        for detector in detectors:
            site.dark_rate(detector)
            site.kept(lamp, detector, exposure.filter)
            site.corners(detector)
            most[0] = max(most[0], maps.nbytes)
        return iter(())

    monkeypatch.setattr(pipeline, "frames", frames)
    camera = load_camera("lsstcam")
    time = np.datetime64("2026-07-02T03:00:00", "ms")
    flats = tuple(Exposure(f"E{i}", i, "flat", time, 5.0, 5.5, "r", Lamp(1e4)) for i in range(6))
    board = next(iter(pipeline.boards(camera).values()))
    names = tuple(d.name for d in board)
    size = len(camera.amplifier_names) * np.prod(camera.raw_shape) * len(names)
    block = int(pipeline._BLOCK / size)
    site = Opaque(Observatory(1, camera))
    for i in range(0, len(flats), block):
        exposures = flats[i : i + block]
        pipeline._make("", site, Opaque(pipeline._Job(names, exposures, (names,) * len(exposures))), None)
    return made, most[0], len(names), len(flats)


def test_the_exposures_of_a_board_of_lsstcam_share_their_maps(monkeypatch):
    made, most, ccds, _ = taken(monkeypatch, DEFAULT)
    assert ccds == 3
    assert made == {"corners": ccds, "dark": ccds, "lamp": ccds}
    assert most <= DEFAULT


def test_with_little_memory_the_last_ccd_still_serves_twice(monkeypatch):
    """Room for one CCD of three: made again for each exposure, but for the CCD at which the order turns."""
    memory = 300_000_000
    made, most, ccds, flats = taken(monkeypatch, memory)
    assert most <= memory
    assert made["corners"] <= ccds * flats - flats // 2  # every other exposure, at least, begins where one ended
