"""Bleed trails and serial clamp: by hand, against toppling pixel by pixel, and conserved."""

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.saturation import (
    Saturation,
    SerialClamp,
    bloom,
    clamp_serial,
    full_well,
    serial_full_well,
)

SEED = 4
W = 1000.0
EVEN = Saturation(e2v=W, itl=W, scatter_detector=0, scatter_amplifier=0)
CLAMP = SerialClamp(e2v=100, itl=100, scatter_detector=0, scatter_amplifier=0)


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


def bled(detector, *pixels, background=0.0):
    """Charge after bleeding, and what fell into the registers, of an image with those pixels (y, x, charge)."""
    charge = np.full(detector.shape, background, np.float32)
    for y, x, value in pixels:
        charge[y, x] = value
    before = charge.copy()
    image, drained = bloom(SEED, EVEN, detector, charge)
    assert np.array_equal(charge, before)
    return image, drained


def test_a_pixel_of_five_wells_fills_five(detector):
    image, drained = bled(detector, (30, 10, 5 * W))
    assert np.flatnonzero(image[:, 10]).tolist() == [28, 29, 30, 31, 32]
    assert np.all(image[28:33, 10] == W)
    assert not drained.any()
    assert image.sum() == 5 * W


def test_a_pixel_of_four_wells_has_half_filled_ends(detector):
    image, _ = bled(detector, (30, 10, 4 * W))
    assert image[27:34, 10].tolist() == [0, W / 2, W, W, W, W / 2, 0]


def test_background_shortens_nothing_but_its_share(detector):
    # 4 W too much; each neighbour has room for W / 2: four on either side
    image, _ = bled(detector, (30, 10, 5 * W), background=W / 2)
    assert image[25:36, 10].tolist() == [W / 2, *[W] * 9, W / 2]
    assert np.all(image[:, 11] == W / 2)


def test_trails_stop_at_the_middle(detector):
    image, drained = bled(detector, (63, 10, 4 * W), (64, 90, 3 * W))
    assert image[59:65, 10].tolist() == [0, W, W, W, W, 0]
    assert image[63:68, 90].tolist() == [0, W, W, W, 0]
    assert not drained.any()


def test_charge_at_the_register_is_lost(detector):
    """Of 4 W at the first row, the lever over two filled rows keeps W in each and W / 3 beyond."""
    image, drained = bled(detector, (0, 10, 4 * W), (127, 100, 4 * W))
    np.testing.assert_allclose(image[:4, 10], [W, W, W / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(image[:123:-1, 100], [W, W, W / 3, 0], rtol=1e-6)
    for amplifier, lost in zip(detector.amplifiers, drained, strict=True):
        assert lost == pytest.approx(5 / 3 * W if amplifier.position in ((0, 0), (64, 64)) else 0)


def test_an_image_above_the_well_drains_to_it(detector):
    image, drained = bled(detector, background=1.5 * W)
    assert np.all(image == W)
    np.testing.assert_allclose(drained, 0.5 * W * 64 * 64)


def test_two_trails_share_the_pixel_between_them(detector):
    # each fills three rows and gives W / 4 to the pixels at its ends
    image, _ = bled(detector, (28, 10, 3.5 * W), (32, 10, 3.5 * W))
    assert image[25:36, 10].tolist() == [0, W / 4, W, W, W, W / 2, W, W, W, W / 4, 0]


def test_two_trails_that_meet_are_one(detector):
    # each alone would fill 26 to 30 or 30 to 34: together 10 W over 26 to 34 and a half at either end
    image, _ = bled(detector, (28, 10, 5 * W), (32, 10, 5 * W))
    assert image[24:37, 10].tolist() == [0, W / 2, *[W] * 9, W / 2, 0]


def toppled(line, well):
    """Each pixel gives what is too much in halves to its neighbours, the far end turns it back, until it rests."""
    line, drained = line.astype(float), 0.0
    for _ in range(20000):
        more = np.maximum(line - well, 0)
        if more.max() < 1e-6:
            break
        line -= more
        line[:-1] += more[1:] / 2
        line[1:] += more[:-1] / 2
        line[-1] += more[-1] / 2
        drained += more[0] / 2
    return line, drained


def test_trails_are_those_of_toppling(detector):
    random = np.random.default_rng(1)
    charge = np.zeros(detector.shape, np.float32)
    charge[:64, :64] = random.uniform(0, 0.9 * W, (64, 64))
    for x in range(64):
        for _ in range(1 + x % 3):
            charge[random.integers(64), x] += random.uniform(0, 8 * W)
    image, drained = bloom(SEED, EVEN, detector, charge)
    lost = 0.0
    for x in range(64):
        line, one = toppled(charge[:64, x], W)
        lost += one
        np.testing.assert_allclose(image[:64, x], line, atol=0.05)  # what moves below 1e-6 a step, and float32
    assert drained[0] == pytest.approx(lost, rel=1e-4)
    assert lost > 0
    assert not drained[1:].any()


def test_charge_is_conserved_and_bleeds_once(detector):
    random = np.random.default_rng(2)
    charge = random.uniform(0, 300, detector.shape).astype(np.float32)
    for _ in range(40):
        y, x = random.integers(0, 120, 2)
        charge[y : y + 6, x : x + 4] += random.uniform(0, 2e4)
    image, drained = bloom(SEED, EVEN, detector, charge)
    assert image.max() == W
    total = image.sum(dtype=float) + drained.sum()
    assert total == pytest.approx(charge.sum(dtype=float), rel=1e-6)
    again, more = bloom(SEED, EVEN, detector, image)
    assert again is image
    assert not more.any()


def test_centre_of_charge_stays(detector):
    image, _ = bled(detector, (30, 10, 7.3 * W), (33, 10, 2.2 * W), background=0.1 * W)
    before = np.full(64, 0.1 * W)
    before[30], before[33] = 7.3 * W, 2.2 * W
    rows = np.arange(64)
    assert rows @ image[:64, 10].astype(float) == pytest.approx(rows @ before, rel=1e-6)


def test_full_wells_scatter_about_their_medians():
    camera = load_camera("mini9")
    for name, median in (("R22_S00", 167e3), ("R22_S01", 177e3)):
        detector = camera.detector(name)
        wells = np.log(np.stack([full_well(s, Saturation(), detector) for s in range(400)]) / median)
        assert wells.shape == (400, 16)
        assert abs(wells.mean()) < 4 * 0.1 / np.sqrt(400)
        within = np.sqrt(wells.var(axis=1, ddof=1).mean())
        assert abs(within - 0.02) < 4 * 0.02 / np.sqrt(2 * 15 * 400)
        assert abs(wells.mean(axis=1).std() - np.hypot(0.1, 0.02 / 4)) < 4 * 0.1 / np.sqrt(800)
        assert np.array_equal(full_well(1, Saturation(), detector), full_well(1, Saturation(), detector))
        assert np.all(serial_full_well(1, SerialClamp(), detector) != full_well(1, Saturation(), detector))


def test_off_is_nothing(detector):
    charge = np.full(detector.shape, 1e7, np.float32)
    image, drained = bloom(SEED, Saturation(on=False), detector, charge)
    assert image is charge
    assert not drained.any()
    rows = np.full((4, 64, 64), 1e7, np.float32)
    clamped, left = clamp_serial(SEED, SerialClamp(on=False), detector, rows, NAMES)
    assert clamped is rows
    assert not left.any()


NAMES = ("C10", "C11", "C01", "C00")


def clamped_rows(detector, rows, names=NAMES):
    charge = np.zeros((len(names), 2, 5), np.float32)
    charge[0] = rows
    before = charge.copy()
    clamped, left = clamp_serial(SEED, CLAMP, detector, charge, names)
    assert np.array_equal(charge, before)
    assert clamped.sum(dtype=float) + left.sum() == charge.sum(dtype=float)
    return clamped[0].tolist(), left[0].tolist()


def test_serial_clamp_by_hand(detector):
    rows, left = clamped_rows(detector, [[150, 20, 0, 90, 30], [350, 20, 0, 0, 50]])
    assert rows == [[100, 70, 0, 90, 30], [100, 100, 100, 70, 50]]
    assert left == [0, 0]


def test_serial_clamp_at_the_end_of_a_row(detector):
    rows, left = clamped_rows(detector, [[0, 0, 0, 30, 180], [100, 100, 100, 101, 100]])
    assert rows == [[0, 0, 0, 30, 100], [100, 100, 100, 100, 100]]
    assert left == [80, 1]


def test_amplifiers_the_detector_lacks_stay(detector):
    rows, left = clamped_rows(detector, [[500, 0, 0, 0, 0]] * 2, names=("elsewhere", *NAMES))
    assert rows == [[500, 0, 0, 0, 0]] * 2
    assert left == [0, 0]


def test_each_register_has_its_own_well(detector):
    settings = CLAMP.model_copy(update={"scatter_amplifier": 0.3})
    charge = np.full((4, 2, 3), 50, np.float32)
    charge[:, :, 0] = 240
    names = [a.name for a in detector.amplifiers]
    clamped, _ = clamp_serial(SEED, settings, detector, charge, names[::-1])
    wells = serial_full_well(SEED, settings, detector)[::-1]
    assert len(set(wells)) == 4
    np.testing.assert_allclose(clamped[:, 0, 0], np.minimum(wells, 240))


def test_other_shapes_are_refused(detector):
    with pytest.raises(InconsistentGeometry, match=r"R22_S11: charge is \(64, 64\)"):
        bloom(SEED, EVEN, detector, np.ones((64, 64), np.float32))
    with pytest.raises(InconsistentGeometry, match="with 3 amplifier names"):
        clamp_serial(SEED, CLAMP, detector, np.ones((4, 2, 2), np.float32), NAMES[:3])
    with pytest.raises(InconsistentGeometry, match="amplifier names"):
        clamp_serial(SEED, CLAMP, detector, np.ones((4, 2), np.float32), NAMES)
