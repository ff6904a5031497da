"""Bad pixels: as many as promised, where a camera team's list says, and traps by hand."""

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import defects
from lsstcal_dask.simulate.defects import (
    DEFECT,
    KINDS,
    BadPixels,
    apply_traps,
    bright_columns_rate,
    defect_list,
    sensitivity,
)

SEED = 2
MANY = BadPixels(cold=2e-3, dark_columns=0.02, bright_columns=0.03, traps=1e-3)


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


def lists(detector, settings=MANY, n=40):
    return np.concatenate([defect_list(seed, settings, detector) for seed in range(n)])


def test_as_many_as_promised(detector):
    found = lists(detector)
    pixels, columns = 128 * 128, 4 * 64
    for kind, mean in zip(KINDS, (2e-3 * pixels, 0.02 * columns, 0.03 * columns, 1e-3 * pixels), strict=True):
        assert abs((found["kind"] == kind).sum() - 40 * mean) < 4 * np.sqrt(40 * mean)


def test_boxes_lie_in_one_amplifier(detector):
    found = lists(detector)
    for start, size in (("x0", "width"), ("y0", "height")):
        assert found[start].min() >= 0
        assert found[size].min() >= 1
        assert np.all(found[start] // 64 == (found[start] + found[size] - 1) // 64)


def test_columns_reach_the_middle_of_the_ccd(detector):
    found = lists(detector)
    found = found[np.char.endswith(found["kind"], "column")]
    below = found["y0"] < 64
    assert 0 < below.sum() < len(found)
    assert np.all(found["y0"] + found["height"] == np.where(below, 64, 64 + found["height"]))
    assert np.all(found["y0"][~below] == 64)
    whole = (found["height"] == 64).mean()
    p = 0.3 + 0.7 / 64
    assert abs(whole - p) < 4 * np.sqrt(p * (1 - p) / len(found))


def test_sizes_and_values(detector):
    found = lists(detector)
    cold = found[found["kind"] == "cold"]
    n = len(cold)
    assert abs(cold["value"].mean() - 0.4) < 4 * 0.8 / np.sqrt(12 * n)
    assert cold["value"].min() >= 0
    assert cold["value"].max() <= 0.8
    inner = cold[(cold["x0"] % 64 < 50) & (cold["x0"] < 64) & (cold["y0"] < 64)]  # not cut, C00 is not flipped
    assert abs(inner["width"].mean() - 1.3) < 4 * np.sqrt(1.3 * 0.3 / len(inner))  # variance of a geometric
    trap = found[found["kind"] == "trap"]["value"]
    assert abs(trap.mean() - 300) < 4 * 300 / np.sqrt(len(trap))
    bright = np.log(found[found["kind"] == "bright column"]["value"] / 20)
    assert abs(bright.mean()) < 4 / np.sqrt(len(bright))


def test_maps_are_those_of_the_list(detector):
    factor, rate = np.ones(detector.shape), np.zeros(detector.shape)
    for x0, y0, width, height, kind, value in defect_list(SEED, MANY, detector):
        for y in range(y0, y0 + height):
            for x in range(x0, x0 + width):
                if kind in ("cold", "dark column"):
                    factor[y, x] *= value
                elif kind == "bright column":
                    rate[y, x] += value
    assert (factor < 1).any()
    assert (rate > 0).any()
    for made, expected in ((sensitivity, factor), (bright_columns_rate, rate)):
        image = made(SEED, MANY, detector)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, expected, rtol=1e-6)


@pytest.fixture
def traps(monkeypatch):
    """Puts traps (x, y, size) into the CCD."""

    def put(*rows):
        made = np.array([(x, y, 1, 1, "trap", size) for x, y, size in rows], DEFECT)
        monkeypatch.setattr(defects, "defect_list", lambda *_: made)

    return put


def test_a_trap_by_hand(detector, traps):
    charge = np.full(detector.shape, 1000, np.float32)
    charge[20, 9] = 30
    # in the middle; of a packet smaller than it; in the upper half; one row before the last, in the last row
    traps((5, 10, 100), (9, 20, 100), (7, 100, 80), (70, 62, 50), (71, 63, 50))
    after = apply_traps(SEED, MANY, detector, charge)
    assert after[9:17, 5].tolist() == [1000, 900, 1050, 1025, 1012.5, 1012.5, 1000, 1000]
    assert after[20:25, 9].tolist() == [0, 1015, 1007.5, 1003.75, 1003.75]
    assert after[95:102, 7].tolist() == [1000, 1010, 1010, 1020, 1040, 920, 1000]
    assert after[61:65, 70].tolist() == [1000, 950, 1050, 1000]
    assert after[61:65, 71].tolist() == [1000] * 4
    assert after.sum(dtype=float) == charge.sum(dtype=float)
    assert charge[10, 5] == 1000


def test_traps_keep_charge_and_show_where_the_list_says(detector):
    charge = np.full(detector.shape, 2000, np.float32)
    after = apply_traps(SEED, MANY, detector, charge)
    assert after.dtype == np.float32
    assert after.sum(dtype=float) == pytest.approx(charge.sum(dtype=float), rel=1e-7)
    listed = [d for d in defect_list(SEED, MANY, detector) if d["kind"] == "trap"]
    assert len(listed) > 5
    assert all(after[d["y0"], d["x0"]] != 2000 for d in listed if d["y0"] not in (63, 64))


def test_a_trap_outside_every_amplifier_has_no_next_row(detector):
    assert defects._after(detector, 500, 3) == []


def test_off_is_nothing(detector):
    off = MANY.model_copy(update={"on": False})
    charge = np.ones(detector.shape, np.float32)
    assert len(defect_list(SEED, off, detector)) == 0
    assert np.array_equal(sensitivity(SEED, off, detector), charge)
    assert not bright_columns_rate(SEED, off, detector).any()
    assert apply_traps(SEED, off, detector, charge) is charge


def test_same_list_again_and_another_elsewhere():
    camera = load_camera("mini9")
    first = defect_list(SEED, MANY, camera.detectors[0])
    assert not first.flags.writeable
    again = defect_list.__wrapped__(SEED, MANY, camera.detectors[0])
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != defect_list(SEED, MANY, camera.detectors[2]).tobytes()
    assert first.tobytes() != defect_list(SEED + 1, MANY, camera.detectors[0]).tobytes()


def test_traps_refuse_another_shape(detector):
    with pytest.raises(InconsistentGeometry, match=r"R22_S11: charge is \(64, 64\)"):
        apply_traps(SEED, MANY, detector, np.ones((64, 64), np.float32))


@pytest.mark.real
def test_delivered_lists_are_empty(real_data):
    """Which is why the densities come from the electro-optical runs."""
    from astropy.table import Table

    files = sorted((real_data / "lsstcam" / "defects").glob("*/*.ecsv"))
    assert len(files) == 4
    for file in files:
        table = Table.read(file, format="ascii.ecsv")
        assert table.colnames == list(DEFECT.names[:4])
        assert len(table) == 0
