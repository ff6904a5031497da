"""Streams of random numbers: one for each place, the same whoever asks, and no two alike."""

import re
import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lsstcal_dask.simulate
from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.random import TILE_ROWS, stream, tiles

PLACE = {"exposure": 12, "detector": 94, "amplifier": 15, "tile": 7, "step": 3}


def test_a_stream_is_philox_at_its_place():
    key = np.array([5, zlib.crc32(b"read_noise")], np.uint64)
    counter = np.array([0, 3 << 32 | 7, 94 << 16 | 15, 12], np.uint64)
    wanted = np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(5)
    np.testing.assert_array_equal(stream(5, "read_noise", **PLACE).standard_normal(5), wanted)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
def test_a_stream_does_not_depend_on_when_it_is_asked_for(seed, exposure, detector, amplifier):
    place = {"exposure": exposure, "detector": detector, "amplifier": amplifier}
    first = stream(seed, "a", **place).random(3)
    stream(seed, "b", **place).random(100)
    np.testing.assert_array_equal(stream(seed, "a", **place).random(3), first)


def test_no_two_streams_are_correlated():
    changed = [PLACE, *({**PLACE, name: value + 1} for name, value in PLACE.items())]
    n = 40_000
    numbers = [stream(5, "a", **place).standard_normal(n) for place in changed]
    numbers += [stream(6, "a", **PLACE).standard_normal(n), stream(5, "b", **PLACE).standard_normal(n)]
    for one, other in combinations(numbers, 2):
        assert abs(np.mean(one * other)) < 4.5 / np.sqrt(n)


def test_neighbours_never_run_into_each_other():
    far = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.array([2**64 - 1, 0, 0, 0], np.uint64))
    far.random_raw(8)  # two blocks of four
    assert far.state["state"]["counter"][1] == 1  # only after 2**64 blocks does a stream reach the next tile's


def test_every_effect_has_a_key_of_its_own():
    folder = Path(lsstcal_dask.simulate.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    names = set(re.findall(r"stream\(\s*(?:site\.)?seed, f?\"([^\"]+)\"", text))
    assert len(names) > 30
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "value"),
    [("exposure", -1), ("exposure", 2**64), ("detector", 2**32), ("amplifier", 2**16), ("tile", 2**32), ("step", -1)],
)
def test_places_that_could_be_confused_are_refused(name, value):
    with pytest.raises(WrongUse, match=rf"a: {name} number {value} is not in"):
        stream(5, "a", **{name: value})


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed):
    with pytest.raises(WrongUse, match="seed"):
        stream(seed, "a")


@given(st.integers(0, 5000))
def test_tiles_cover_the_rows_once(rows):
    found = list(tiles(rows))
    assert [i for _, s in found for i in range(s.start, s.stop)] == list(range(rows))
    assert [number for number, _ in found] == list(range(len(found)))
    assert all(s.stop - s.start == TILE_ROWS for _, s in found[:-1])
