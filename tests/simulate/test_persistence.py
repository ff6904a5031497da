import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.observatory import _origin
from lsstcal_dask.simulate.dark import ROW_TIME
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.persistence import Persistence, released
from lsstcal_dask.simulate.recipes import RECIPES, CalibrationDay, FlatCube, Night, Plan, Projections, exposures
from lsstcal_dask.simulate.settings import Settings

CAMERA = load_camera("mini9")
E2V, ITL = CAMERA.detector("R22_S00"), CAMERA.detector("R22_S01")
TIME = np.datetime64("2026-07-02T06:00:00", "ms")
FLAT = Exposure("F", 1, "flat", TIME, 10.0, 10.0, source=Lamp(16e3, 600.0))
DARK = Exposure("D", 2, "dark", TIME + np.timedelta64(15, "s"), 0.0, 15.0, previous=FLAT)
ON = Settings(persistence=Persistence(on=True))


def dark(settings, detector=E2V, exposure=DARK):
    return charge(Observatory(1, CAMERA, settings), exposure, detector)


def test_the_vendors_are_what_these_tests_take_them_for():
    assert (E2V.vendor, ITL.vendor) == ("e2v", "ITL")


def test_charge_that_comes_back_by_hand():
    """1.6e5 electrons leave 1e-3 x 6e4 = 60, from 5 s after they were read (less the wait of their row) to 20 s."""
    found = dark(ON.only(["persistence"]))
    for amplifier in E2V.amplifiers:
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        part = found[y0 : y0 + ny, x0 : x0 + nx][:: -1 if amplifier.flip_y else 1]
        for row in (0, 100):
            wanted = 60 * (np.exp(-(5 - row * ROW_TIME) / 20) - np.exp(-1.0))
            np.testing.assert_allclose(part[row], wanted, rtol=1e-4)
    assert found.max() == pytest.approx(60 * (np.exp(-0.25 + 127 * ROW_TIME / 20) - np.exp(-1)), rel=1e-4)  # 24.9
    assert not dark(ON.only(["persistence"]), ITL).any()
    assert not dark(ON.without(["persistence"]).only(["shot_noise"])).any()


def test_off_by_default():
    assert not Settings().persistence.on
    assert not dark(Settings().only([])).any()


def test_only_what_exceeds_the_threshold_and_fades():
    given = Persistence(on=True, e2v=0.5, threshold=100.0, tau=10.0)
    image = np.zeros(E2V.shape, np.float32)
    image[5, 7], image[6, 7] = 300.0, 100.0
    soon, later = (released(given, E2V, image, idle, 30.0, 0.0) for idle in (0.0, 10.0))
    assert soon[5, 7] == pytest.approx(100 * (1 - np.exp(-3)), rel=1e-6)
    assert later[5, 7] == pytest.approx(soon[5, 7] / np.e, rel=1e-6)
    assert np.count_nonzero(soon) == 1
    assert image[5, 7] == 300.0
    assert released(given, E2V, image, 0.0, 1e9, 0.0)[5, 7] == pytest.approx(100.0)  # all that was kept, no more
    with pytest.raises(InconsistentGeometry, match="the CCD"):
        released(given, E2V, image[1:], 0.0, 1.0, 0.0)


def test_it_comes_in_electrons_and_leaves_other_numbers_alone():
    noisy = ON.only(["persistence", "shot_noise", "dark_current"])
    both, alone = dark(noisy), dark(noisy.without(["persistence"]))
    extra = both - alone
    mean = dark(ON.only(["persistence"]))
    assert np.array_equal(extra, np.rint(extra))
    # the flat's own noise moves the mean by 1e-3 sqrt(1.6e5) = 0.4 of 25 electrons
    size = extra.size
    assert abs(extra.mean() - mean.mean()) < 4.5 * np.sqrt(mean.mean() / size)
    assert np.var(extra - mean) == pytest.approx(mean.mean(), rel=4.5 * np.sqrt(2 / size) + 0.01)


def test_the_same_bits_in_any_order_and_from_the_exposure_before_alone():
    day = CalibrationDay(biases=1, darks=1, xrays=0, pairs=2, faintest=1.4e5, brightest=1.5e5, flats=0)
    on = ["persistence", "shot_noise", "dark_current", "saturation", "deferred", "gain", "read_noise", "digitisation"]
    site = Observatory(3, CAMERA, Settings(persistence=Persistence(on=True, threshold=1e4)).only(on))
    taken = exposures("calibration-day", Plan(calibration_day=day), site.settings, CAMERA)
    forth = [next(frames(site, e, [E2V])).counts for e in taken]
    back = [next(frames(site, e, [E2V])).counts for e in reversed(taken)][::-1]
    for one, other in zip(forth, back, strict=True):
        np.testing.assert_array_equal(one, other)
    after = taken[-1]
    without = next(frames(site, replace(after, previous=None), [E2V])).counts
    image = E2V.amplifiers[0].data.slices
    assert (without != forth[-1])[:, *image].mean() > 0.9
    deeper = replace(after, previous=replace(taken[-2], previous=taken[-3]))
    np.testing.assert_array_equal(next(frames(site, deeper, [E2V])).counts, forth[-1])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_was_taken_before_one_step_deep(name):
    plan = Plan(flat_cube=FlatCube(step=100.0), cbp=Projections(sets="bf"), night=Night(visits=30))
    taken = exposures(name, plan, Settings(), CAMERA)
    assert taken[0].previous is None
    for before, one in pairwise(taken):
        assert one.previous == before
        assert one.previous.previous is None
    sizes = [len(pickle.dumps(one)) for one in taken]
    assert max(sizes) < 2 * sizes[0] + 600  # whatever their number
    assert "previous" not in repr(taken[-1])


def test_what_came_before_counts_for_the_origin_of_a_frame_only_if_it_matters():
    off, on = Observatory(1, CAMERA), Observatory(1, CAMERA, ON)
    alone, other = replace(DARK, previous=None), replace(DARK, previous=replace(FLAT, number=9))
    assert _origin(off, DARK) == _origin(off, alone)
    assert len({_origin(on, e) for e in (DARK, alone, other)}) == 3
