"""Dark charge: closed forms with the scatters off, moments with them on."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Box
from lsstcal_dask.simulate.dark import (
    ROW_TIME,
    BlinkingPixels,
    DarkCurrent,
    HotPixels,
    blinking_rate,
    dark_electrons,
    dark_rate,
)

SEED = 5
EVEN = DarkCurrent(scatter_detector=0, scatter_amplifier=0, scatter_pixel=0, glow=0)
NO_HOT = HotPixels(on=False)


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


def test_vendors_have_their_medians(detector):
    itl = load_camera("mini9").detector("R22_S01")
    assert itl.vendor == "ITL"
    for one, median in ((detector, 0.023), (itl, 0.021)):
        rate = dark_rate(SEED, EVEN, NO_HOT, one)
        assert rate.shape == one.shape
        assert rate.dtype == np.float32
        assert np.array_equal(rate, np.full(one.shape, median, np.float32))


def test_glow_falls_from_the_pixel_read_first(detector):
    rate = dark_rate(SEED, EVEN.model_copy(update={"glow": 0.5, "glow_length": 10.0}), NO_HOT, detector)
    glow = rate - 0.023
    assert glow[0, 0] == pytest.approx(0.5, rel=1e-5)  # C00: lower left, read from there
    assert glow[0, 10] == pytest.approx(0.5 / np.e, rel=1e-5)
    assert glow[7, 3] == pytest.approx(0.5 / np.e, rel=1e-5)
    assert glow[0, 64] == pytest.approx(0.5, rel=1e-5)  # C01, the next to the right
    assert glow[127, 63] == pytest.approx(0.5, rel=1e-5)  # C10: both axes flipped
    assert glow[127, 53] == pytest.approx(0.5 / np.e, rel=1e-5)
    assert glow[64, 0] == pytest.approx(0.5 * np.exp(-12.6), abs=2e-9)


@pytest.mark.parametrize(("warmer", "factor"), [(0.0, 1.0), (3.0, 2.0), (-6.0, 0.25), (1.5, np.sqrt(2))])
def test_rates_double_every_few_kelvin(detector, warmer, factor):
    dark, hot = DarkCurrent(), HotPixels(density=1e-3)
    cold, warm = (dark_rate(SEED, dark, hot, detector, t) for t in (None, dark.reference + warmer))
    np.testing.assert_allclose(warm, cold * factor, rtol=1e-6)


def test_scatter_from_ccd_to_ccd_and_within(detector):
    dark = EVEN.model_copy(update={"scatter_detector": 0.3, "scatter_amplifier": 0.05})
    n = 300
    levels = np.empty((n, 4))
    for seed in range(n):
        rate = dark_rate(seed, dark, NO_HOT, detector)
        levels[seed] = rate[0, 0], rate[0, 64], rate[64, 0], rate[64, 64]
    logs = np.log(levels / 0.023)
    assert np.ptp(levels, axis=1).min() > 0
    total = np.hypot(0.3, 0.05)
    assert abs(logs.mean()) < 4 * total / np.sqrt(n)
    assert abs(logs.mean(axis=1).std() - np.hypot(0.3, 0.025)) < 4 * 0.3 / np.sqrt(2 * n)
    within = np.sqrt(logs.var(axis=1, ddof=1).mean())
    assert abs(within - 0.05) < 4 * 0.05 / np.sqrt(2 * 3 * n)


def test_pixels_scatter_about_the_level(detector):
    rate = dark_rate(SEED, EVEN.model_copy(update={"scatter_pixel": 0.2}), NO_HOT, detector) / 0.023
    assert abs(rate.mean() - 1) < 4 * 0.2 / np.sqrt(rate.size)
    assert abs(rate.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * rate.size)
    assert dark_rate(SEED, EVEN.model_copy(update={"scatter_pixel": 5.0}), NO_HOT, detector).min() == 0


def test_hot_pixels_are_as_many_and_as_hot_as_promised(detector):
    hot = HotPixels(density=2e-3)
    off = DarkCurrent(on=False)
    rates = np.concatenate([r[r > 0] for r in (dark_rate(s, off, hot, detector) for s in range(60))])
    mean = 60 * 2e-3 * 128 * 128
    # a fraction density of them shares its pixel, far within the error
    assert abs(len(rates) - mean) < 4 * np.sqrt(mean) + 1e-3 * mean
    logs = np.log(rates / hot.median)
    assert abs(logs.mean()) < 4 * hot.scatter / np.sqrt(len(rates)) + 2e-3
    assert abs(logs.std() - hot.scatter) < 4 * hot.scatter / np.sqrt(2 * len(rates))
    inside = np.mean((rates > 0.1) & (rates < 50))
    assert abs(inside - 0.95) < 4 * np.sqrt(0.95 * 0.05 / len(rates))


def test_hot_pixels_fall_everywhere(detector):
    struck = sum(dark_rate(s, DarkCurrent(on=False), HotPixels(density=0.01), detector) > 0 for s in range(40))
    counts = struck.reshape(8, 16, 8, 16).sum(axis=(1, 3))
    mean = 40 * 0.01 * 256
    assert stats.chi2.sf(((counts - mean) ** 2 / mean).sum(), 64) > 1e-4


def test_later_rows_gather_longer(detector):
    rate = np.full(detector.shape, 2, np.float32)
    electrons = dark_electrons(rate, detector, 10.0, 0.5)
    assert electrons.dtype == np.float32
    assert electrons[0, 5] == 20  # first row of the lower half
    assert electrons[63, 5] == 2 * (10 + 63 * 0.5)
    assert electrons[127, 5] == 20  # the upper half is read from its top
    assert electrons[64, 5] == 2 * (10 + 63 * 0.5)
    assert np.all(np.diff(electrons[:64], axis=0) == 1)
    assert np.all(rate == 2)
    assert dark_electrons(rate, detector, 0.0)[1, 0] == pytest.approx(2 * ROW_TIME)


def test_rows_before_the_image_take_their_time(detector):
    late = tuple(replace(a, data=Box(4, 68, 2, 66)) for a in detector.amplifiers)
    electrons = dark_electrons(np.ones(detector.shape, np.float32), replace(detector, amplifiers=late), 3.0, 1.0)
    assert electrons[0, 0] == 5
    assert electrons[127, 0] == 5


BLINKING = BlinkingPixels(density=0.02, scatter=0.5)


def test_blinking_pixels_keep_duty_and_memory(detector):
    n = 60
    rates = np.stack([blinking_rate(SEED, BLINKING, detector, 1000 + i) for i in range(n)])
    ever = rates.max(axis=0) > 0
    on = rates[:, ever] > 0
    pixels = on.shape[1]
    expected = 0.02 * 128 * 128
    assert abs(pixels - expected) < 4 * np.sqrt(expected) + 0.01 * expected
    memory = 1 - BLINKING.renewal
    error = np.sqrt(0.25 / (n * pixels) * (1 + memory) / (1 - memory))
    assert abs(on.mean() - 0.5) < 4 * error + 0.01  # 1 % of them share a pixel with another
    # with duty 1/2 a pixel flips with probability renewal / 2, independently each time
    flips = (on[1:] != on[:-1]).mean()
    p = BLINKING.renewal / 2
    assert abs(flips - p) < 4 * np.sqrt(p / ((n - 1) * pixels)) + 0.01 * p


def test_blinking_pixels_are_always_the_same(detector):
    rates = [blinking_rate(SEED, BLINKING, detector, i) for i in (1, 2, 3, 50)]
    for one in rates[1:]:
        both = (one > 0) & (rates[0] > 0)
        alike = one[both] == rates[0][both]
        assert both.sum() > 50
        assert alike.mean() > 0.9  # unlike only where two share a pixel
        assert not np.array_equal(one, rates[0])


@pytest.mark.parametrize("duty", [0.0, 1.0])
def test_duty_at_its_ends(detector, duty):
    rate = blinking_rate(SEED, BLINKING.model_copy(update={"duty": duty}), detector, 7)
    assert (rate > 0).any() == bool(duty)


def test_off_is_nothing(detector):
    assert not dark_rate(SEED, DarkCurrent(on=False), HotPixels(on=False), detector).any()
    assert not blinking_rate(SEED, BLINKING.model_copy(update={"on": False}), detector, 3).any()
    hot = HotPixels(density=0.01)
    both, alone = dark_rate(SEED, EVEN, hot, detector), dark_rate(SEED, DarkCurrent(on=False), hot, detector)
    np.testing.assert_allclose(both, alone + np.float32(0.023), rtol=1e-6)


def test_same_bits_again_and_others_elsewhere(detector):
    camera = load_camera("mini9")
    dark, hot = DarkCurrent(), HotPixels(density=1e-3)
    first = dark_rate(SEED, dark, hot, camera.detectors[0])
    dark_rate(SEED, dark, hot, camera.detectors[2])
    assert np.array_equal(first, dark_rate(SEED, dark, hot, camera.detectors[0]))
    assert not np.array_equal(first, dark_rate(SEED, dark, hot, camera.detectors[2]))
    assert not np.array_equal(first, dark_rate(SEED + 1, dark, hot, camera.detectors[0]))
    assert np.array_equal(blinking_rate(SEED, BLINKING, detector, 9), blinking_rate(SEED, BLINKING, detector, 9))
