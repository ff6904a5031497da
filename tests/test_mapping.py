"""One task per detector, whatever the chunking of what goes in."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.mapping import (
    _MANY_BLOCKS,
    Opaque,
    Output,
    empty_values,
    map_detectors,
    output_attributes,
    output_dims,
)
from lsstcal_dask.variables import MASK_BITS

OUTPUTS = {
    "image": Output("float32", "adu"),
    "mask": Output("uint16"),
    "frames": Output("uint16"),
    "level": Output("float64", "adu", per_exposure=True),
    "gain": Output("float64", "electron/adu"),
}


def source(exposures=4, detectors=3, amplifiers=2, ny=5, nx=6):
    shape = (exposures, detectors, amplifiers, ny, nx)
    counts = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    return xr.Dataset(
        {"counts": (("exposure", "detector", "amplifier", "y", "x"), counts)},
        coords={
            "exposure": [f"e{i}" for i in range(exposures)],
            "detector": [f"d{i}" for i in range(detectors)],
            "amplifier": [f"a{i}" for i in range(amplifiers)],
            "exposure_time": ("exposure", np.arange(float(exposures)), {"units": "s"}),
        },
    )


def sizes_of(raw):
    return {dim: raw.sizes[dim] for dim in ("exposure", "amplifier", "y", "x")}


def estimate(raw, offset):
    """Some numbers of every amplifier of one detector but the last, which is dead."""
    for name in raw["amplifier"].values[:-1]:
        counts = raw["counts"].sel(amplifier=name).values.astype(np.float64)
        yield (
            str(name),
            xr.Dataset(
                {
                    "image": (("y", "x"), counts.mean(axis=0) + offset),
                    "mask": (("y", "x"), np.zeros(counts.shape[1:], np.uint16)),
                    "frames": (("y", "x"), np.full(counts.shape[1:], len(counts))),
                    "level": ("exposure", counts.mean(axis=(1, 2))),
                    "gain": ((), counts.std()),
                }
            ),
        )


def run(raw):
    offsets = {str(name): float(i) for i, name in enumerate(raw["detector"].values)}
    return map_detectors(estimate, raw, OUTPUTS, sizes_of(raw), lambda name: (offsets[name],))


def check(found, raw):
    """Every detector and amplifier equals the function's own result."""
    for i, detector in enumerate(raw["detector"].values):
        expected = dict(estimate(raw.sel(detector=detector), float(i)))
        for name in raw["amplifier"].values[:-1]:
            part = found.sel(detector=detector, amplifier=name)
            for variable in OUTPUTS:
                wanted = expected[name][variable].values.astype(part[variable].dtype)
                np.testing.assert_array_equal(part[variable].values, wanted)
        dead = found.sel(detector=detector, amplifier=raw["amplifier"].values[-1])
        assert (dead["mask"] == MASK_BITS["NO_DATA"]).all()
        assert (dead["frames"] == 0).all()
        assert np.isnan(dead["image"]).all()
        assert np.isnan(dead["level"]).all()
        assert np.isnan(dead["gain"])


def cuts(size):
    return (
        st.lists(st.integers(1, size - 1), unique=True).map(
            lambda points: tuple(b - a for a, b in pairwise([0, *sorted(points), size]))
        )
        if size > 1
        else st.just((1,))
    )


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_chunking_equals_the_function_itself(data):
    raw = source()
    chunks = {dim: data.draw(cuts(size), label=dim) for dim, size in raw.sizes.items()}
    check(run(raw.chunk(chunks)).compute(scheduler="synchronous"), raw)


def test_in_memory_input_equals_the_function_itself():
    raw = source()
    check(run(raw).compute(scheduler="threads"), raw)


def test_labels_units_and_chunks_of_the_result():
    raw = source()
    found = run(raw)
    assert found["image"].dims == ("detector", "amplifier", "y", "x")
    assert found["level"].dims == ("exposure", "detector", "amplifier")
    assert found["gain"].dims == ("detector", "amplifier")
    assert found["image"].chunks == ((1, 1, 1), (2,), (5,), (6,))
    assert {name: found[name].dtype for name in OUTPUTS} == {n: np.dtype(o.dtype) for n, o in OUTPUTS.items()}
    assert found["gain"].attrs["units"] == "electron/adu"
    assert found["mask"].attrs["flag_masks"] == list(MASK_BITS.values())
    assert list(found["detector"].values) == ["d0", "d1", "d2"]
    assert found["exposure_time"].attrs["units"] == "s"  # of the exposures that remain along `level`


@pytest.mark.parametrize("chunks", [None, {"detector": 1, "amplifier": 1}])
def test_building_the_graph_computes_nothing(no_compute, chunks):
    raw = source() if chunks is None else source().chunk(chunks)

    def refuse(raw, offset):
        raise AssertionError("called while the graph was built")

    found = map_detectors(refuse, raw, OUTPUTS, sizes_of(raw), lambda name: (0.0,))
    assert found["image"].chunks is not None


def test_a_focal_plane_is_a_few_hundred_tasks_for_any_number_of_exposures():
    tasks = []
    for exposures in (2, 300):
        like = source(1, 1, 1, 1, 1)["counts"]
        counts = np.broadcast_to(np.zeros((), np.uint16), (exposures, 205, 16, 64, 32))
        raw = xr.Dataset(
            {"counts": (like.dims, counts)},
            coords={
                "exposure": [f"e{i}" for i in range(exposures)],
                "detector": [f"d{i}" for i in range(205)],
                "amplifier": [f"a{i}" for i in range(16)],
            },
        )
        found = map_detectors(estimate, raw, OUTPUTS, sizes_of(raw), lambda name: (0.0,))
        tasks.append(len(found["image"].__dask_graph__()))
    assert tasks[0] == tasks[1]
    assert 2 * 205 <= tasks[0] <= 2 * 205 + 3


def test_each_detector_is_made_once_for_all_variables():
    calls = []

    def count(raw, offset):
        calls.append(str(raw["detector"].values))
        yield from estimate(raw, offset)

    raw = source()
    map_detectors(count, raw, OUTPUTS, sizes_of(raw), lambda name: (0.0,)).compute(scheduler="synchronous")
    assert sorted(calls) == ["d0", "d1", "d2"]


def test_an_error_of_one_detector_comes_through():
    def fail(raw, offset):
        raise ValueError(f"{raw['detector'].values} is bad")
        yield

    raw = source()
    found = map_detectors(fail, raw, OUTPUTS, sizes_of(raw), lambda name: (0.0,))
    with pytest.raises(ValueError, match=r"d\d is bad"):
        found["gain"].isel(detector=1).compute(scheduler="synchronous")


def test_two_calls_never_share_results():
    raw = source()
    names = [run(raw)["image"].data.name for _ in range(2)]
    assert names[0] != names[1]


def test_outputs_follow_the_dictionary():
    sizes = {"exposure": 4, "detector": 3, "amplifier": 2, "y": 5, "x": 6}
    assert output_dims("level", OUTPUTS["level"], sizes) == ("exposure", "detector", "amplifier")
    assert output_dims("image", OUTPUTS["image"], sizes) == ("detector", "amplifier", "y", "x")
    assert output_dims("image", OUTPUTS["image"], {"y": 5, "x": 6}) == ("y", "x")
    assert output_attributes("image", OUTPUTS["image"])["units"] == "adu"
    assert empty_values("mask", OUTPUTS["mask"], (2,)).tolist() == [MASK_BITS["NO_DATA"]] * 2
    assert np.isnan(empty_values("gain", OUTPUTS["gain"], ())).all()
    assert Opaque(raw := source()).value is raw


def wide(exposures, chunks=None):
    """As many exposures as wanted, of one pixel each; ``None`` leaves them in memory."""
    counts = np.broadcast_to(np.zeros((), np.uint16), (exposures, 1, 1, 1, 1))
    coords = {"exposure": np.arange(exposures), "detector": ["d0"], "amplifier": ["a0"]}
    raw = xr.Dataset({"counts": (("exposure", "detector", "amplifier", "y", "x"), counts)}, coords=coords)
    return raw if chunks is None else raw.chunk(chunks)


def test_more_chunks_than_can_be_searched_are_refused(no_compute):
    too_many = wide(_MANY_BLOCKS + 1, {"exposure": 1})
    with pytest.raises(CalibrationError, match=f"{_MANY_BLOCKS + 1} Dask chunks .*chunked=False"):
        run(too_many)
    assert run(wide(_MANY_BLOCKS + 1, {"exposure": 2}))["gain"].chunks is not None
    assert run(wide(_MANY_BLOCKS + 1))["gain"].chunks is not None  # no chunks, any number of exposures
