"""Defects put into made-up darks and flats, and what is found of them."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument import Amplifier, Box, Detector
from lsstcal_dask.products.defects import (
    DefectConfig,
    Flat,
    check_defects,
    close_gaps,
    defect_amplifiers,
    find_cold,
    find_columns,
    find_hot,
    find_inconsistent,
    find_traps,
    flag_defects,
)
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

SHAPE = (200, 120)
CONFIG = DefectConfig()
BAD, SUSPECT = MASK_BITS["BAD"], MASK_BITS["SUSPECT"]


def flat(rng, level=20_000.0, frames=10, response=None, electrons=0.0):
    """A combined flat of ``frames`` exposures, with a gradient, and a charge that is added to each."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lamp = 1 + 0.05 * x / SHAPE[1] - 0.03 * y / SHAPE[0]
    mean = level * lamp * (1 if response is None else response) + electrons
    drawn = rng.poisson(frames * np.maximum(mean, 0)) / frames + rng.normal(0, 6 / np.sqrt(frames), SHAPE)
    variance = (np.maximum(mean, 0) + 36) / frames / level**2
    return Flat((drawn / level).astype(np.float32), variance.astype(np.float32), level)


def places(rng, n):
    flat = rng.choice(SHAPE[0] * SHAPE[1], n, replace=False)
    return np.unravel_index(flat, SHAPE)


@pytest.mark.parametrize(("factor", "low", "high"), [(1.3, 0.995, 1.0), (1.0, 0.42, 0.58), (0.8, 0.0, 0.01)])
def test_completeness_of_hot_and_cold_pixels(factor, low, high):
    """All well beyond the threshold, half of those at it (500 of them: 0.022 is one sigma), none well below."""
    rng = np.random.default_rng(1)
    where = places(rng, 500)
    noise = 0.02  # electron/s: 20 darks of 300 s
    rate = 0.03 + rng.normal(0, noise, SHAPE)
    rate[where] = 0.03 + factor * CONFIG.hot + rng.normal(0, noise, 500)
    found = find_hot(rate, np.full(SHAPE, noise**2), CONFIG)
    assert low <= found[where].mean() <= high
    response = np.ones(SHAPE)
    response[where] = 1 - factor * (1 - CONFIG.cold)
    cold = find_cold(flat(rng, response=response), CONFIG)
    assert low <= cold[where].mean() <= high
    for kind in (found, cold):
        kind[where] = False
        assert not kind.any()


def test_false_alarms_are_as_rare_as_their_sigma_says():
    """With every floor at nothing the noise alone decides: at 3.2 sigma, 6.9e-4 of pure noise is flagged."""
    rng = np.random.default_rng(2)
    config = DefectConfig(sigma=3.2, hot=1e-9, cold=1 - 1e-9)
    p = 6.87e-4
    n = SHAPE[0] * SHAPE[1] * 10
    hot = sum(find_hot(rng.normal(0, 0.02, SHAPE), np.full(SHAPE, 4e-4), config).sum() for _ in range(10))
    cold = sum(find_cold(flat(rng), config).sum() for _ in range(10))
    for found in (hot, cold):
        assert abs(found - n * p) < 5 * np.sqrt(n * p)
    # At 5.6 sigma the tail is 1.1e-8: with five of them, hot, cold, trap and both ways of the last, one in 16 million.
    assert sum(find_cold(flat(rng), DefectConfig(cold=1 - 1e-9)).sum() for _ in range(10)) == 0


def test_noise_that_takes_counts_from_a_pixel_makes_it_no_more_significant():
    """The variance that comes with a flat is that of each pixel's own counts: 0.067 less at 3 sigma below the mean.

    Of a million pixels 1350 lie below 3 sigma, to 37; by errors 0.034 less, those below 2.9 sigma: 1870.
    """
    rng, level = np.random.default_rng(9), 2000.0
    response = 1 + rng.standard_normal((1000, 1000), np.float32) / np.sqrt(level)
    one = Flat(response, (response / level).astype(np.float32), level)
    config = DefectConfig(cold=1 - 1e-9, sigma=3.0001)
    assert abs(find_cold(one, config).sum() - 1350) < 4 * 37


def test_traps_are_dipoles_in_the_order_of_reading():
    rng = np.random.default_rng(3)
    electrons = np.zeros(SHAPE)
    rows, columns = np.arange(20, 180, 20), np.arange(10, 90, 10)
    for y, x in zip(rows, columns, strict=True):
        electrons[y, x] -= 300
        electrons[y + 1 : y + 5, x] += 300 * np.array([0.5, 0.25, 0.125, 0.125])
    electrons[150, 100:105] -= 300  # cold pixels without a trail
    electrons[100, 110] += 300
    found = find_traps(flat(rng, 2000.0, 20, electrons=electrons), CONFIG)
    assert found[rows, columns].all()
    assert found.sum() == len(rows)
    backwards = find_traps(flat(rng, 2000.0, 20, electrons=electrons[::-1]), CONFIG)
    assert not backwards.any()


def test_response_that_depends_on_the_level():
    rng = np.random.default_rng(4)
    where = places(rng, 50)
    response = np.ones(SHAPE)
    response[where] = 0.9
    faint, bright = flat(rng, 2000.0, 20, response), flat(rng, 50_000.0, 20)
    found = find_inconsistent(faint, bright, CONFIG)
    assert found[where].mean() > 0.99
    assert found.sum() <= 50
    assert not find_inconsistent(flat(rng, 2000.0, 20, response), flat(rng, 5e4, 20, response), CONFIG).any()


def test_columns_by_their_many_pixels_or_as_a_whole():
    rng = np.random.default_rng(5)
    bad = np.zeros(SHAPE, bool)
    bad[::4, 10] = True  # 50 pixels
    bad[::5, 20] = True  # 40
    response = np.ones(SHAPE)
    response[:, 30] = 0.93  # no pixel is cold by itself
    response[:, 40] = 0.97
    rate = rng.normal(0, 0.5, SHAPE)
    rate[:, 50] += 1.0
    found = find_columns(bad, rate, np.full(SHAPE, 0.25), flat(rng, response=response), CONFIG)
    assert np.flatnonzero(found).tolist() == [10, 30, 50]


@given(arrays(bool, st.tuples(st.integers(1, 30), st.just(2))), st.integers(0, 6))
def test_gaps_against_a_loop(bad, gap):
    wanted = bad.copy()
    for x in range(2):
        rows = np.flatnonzero(bad[:, x])
        for a, b in pairwise(rows):
            if b - a - 1 <= gap:
                wanted[a:b, x] = True
    np.testing.assert_array_equal(close_gaps(bad, gap), wanted)
    np.testing.assert_array_equal(close_gaps(wanted, gap), wanted)  # nothing more to close


def test_bad_is_worse_than_suspect():
    kinds = np.array([0, 1, 2, 4, 8, 16, 8 | 1, 16 | 8], np.uint16)
    assert flag_defects(kinds).tolist() == [0, BAD, BAD, BAD, SUSPECT, SUSPECT, BAD, SUSPECT]


NX, NY = SHAPE[1], SHAPE[0]


def amplifier(name):
    box, over = Box(0, NX, 0, NY), Box(NX, NX + 20, 0, NY)
    none = Box(0, 0, 0, 0)
    return Amplifier(name, (NY, NX + 20), box, over, none, (0, 0), False, False, 1.5, 6.0)


DETECTOR = Detector("R22_S11", 0, "e2v", "e2v", "", (amplifier("A"), amplifier("B")), SHAPE, 0.01, (0.0, 0.0), 0.0)
GAIN = 1.5


def raw_flats(rng, response, levels=(1000, 1000, 1000, 40000, 40000, 40000), hit=True):
    n = len(levels)
    counts = np.zeros((n, 2, NY, NX + 20))
    for i, level in enumerate(levels):
        for j in range(2):
            image = np.zeros((NY, NX + 20))
            image[:, :NX] = rng.poisson(level * response) / GAIN
            if hit:
                image[rng.integers(NY), rng.integers(NX)] += 5000  # a cosmic ray
            counts[i, j] = np.rint(1000 + image + rng.normal(0, 4, image.shape))
    return xr.Dataset(
        {
            "counts": (("exposure", "amplifier", "y", "x"), counts.astype(np.int32)),
            "present": ("exposure", np.ones(n, bool)),
        },
        coords={"exposure": [f"e{i}" for i in range(n)], "amplifier": ["A", "B"]},
    )


def gains(*values):
    return xr.Dataset({"gain": ("amplifier", list(values))}, coords={"amplifier": ["A", "B"]})


def test_an_amplifier_from_raw_flats_and_a_dark():
    rng = np.random.default_rng(6)
    response = np.ones(SHAPE)
    response[50, 60], response[120:, 30] = 0.5, 0.3
    rate = rng.normal(0, 0.01, (2, *SHAPE)).astype(np.float32)
    rate[:, 10, 10] = 20
    dark = xr.Dataset(
        {
            "image": (("amplifier", "y", "x"), rate),
            "variance": (("amplifier", "y", "x"), np.full_like(rate, 1e-4)),
        },
        coords={"amplifier": ["A", "B"]},
    )
    products = {"gain": gains(GAIN, np.nan), "dark": dark}
    (name, found), (_, dead) = defect_amplifiers(raw_flats(rng, response), DETECTOR, SHAPE, CONFIG, products)
    assert name == "A"
    wanted = np.zeros(SHAPE, np.uint16)
    wanted[50, 60], wanted[10, 10] = DEFECT_KINDS["COLD"], DEFECT_KINDS["HOT"]
    wanted[120:, 30] = DEFECT_KINDS["COLD"] | DEFECT_KINDS["COLUMN"]
    np.testing.assert_array_equal(found["defect_kind"].values, wanted)
    np.testing.assert_array_equal(found["mask"].values, np.where(wanted > 0, BAD, 0))
    assert found.attrs["summary"]["column"] == 80
    assert (dead["mask"].values == MASK_BITS["NO_DATA"]).all()
    assert "no gain" in dead.attrs["remarks"][0]


def test_a_ccd_that_is_mostly_bad_is_refused_with_the_suspect():
    rng = np.random.default_rng(7)
    response = np.ones(SHAPE)
    response[rng.random(SHAPE) < 0.02] = 0.1
    with pytest.raises(CalibrationError, match=r"R22_S11: 1\.. % .* most of them COLD: .* a lamp that was off"):
        list(defect_amplifiers(raw_flats(rng, response), DETECTOR, SHAPE, CONFIG, {"gain": gains(GAIN, GAIN)}))


def test_flats_without_light():
    rng = np.random.default_rng(8)
    raw = raw_flats(rng, np.zeros(SHAPE), hit=False)
    for _, found in defect_amplifiers(raw, DETECTOR, SHAPE, CONFIG, {"gain": gains(GAIN, GAIN)}):
        assert "was the lamp on" in found.attrs["remarks"][0]


def test_too_few_flats():
    raw = raw_flats(np.random.default_rng(9), np.ones(SHAPE), (100, 100))
    with pytest.raises(InsufficientInputs, match="2 flats, at least 3 are needed"):
        check_defects(raw, CONFIG)
