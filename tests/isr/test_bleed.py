import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.isr.bleed import bleed_mask, flag_bleeding, full_wells, trail_charges
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.simulate.saturation import Saturation, bloom, full_well

CAMERA = load_camera("mini1")
DETECTOR = CAMERA.detectors[0]
SETTINGS = Saturation()
NOISE = 5.5


def test_pixels_by_hand():
    image = np.zeros((1, 6, 4), np.float32)
    image[0, 1:3, 1] = 100  # a run of two
    image[0, 5, 3] = 99.5  # within slack, at the far end: grows to one side only
    image[0, 3, 0] = np.nan
    found = bleed_mask(image, np.array([100.0]), 0.0, slack=0.01)[0]
    expected = np.zeros((6, 4), bool)
    expected[0:4, 1] = expected[4:6, 3] = True
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 200), min_size=1, max_size=30), st.integers(0, 3))
def test_kernel_is_a_dilation_of_the_threshold(column, grow):
    full = np.array(column) >= np.float32(99)
    wanted = np.array([full[max(y - grow, 0) : y + grow + 1].any() for y in range(len(full))])
    image = np.array(column, np.float32)[None, :, None]
    np.testing.assert_array_equal(bleed_mask(image, np.array([100.0]), grow=grow)[0, :, 0], wanted)


def test_unknown_wells_mark_nothing_and_wrong_shapes_are_refused():
    image = np.full((2, 3, 3), 1e6, np.float32)
    found = bleed_mask(image, np.array([np.nan, 1e5]))
    assert not found[0].any()
    assert found[1].all()
    with pytest.raises(InconsistentGeometry, match=r"image \(2, 3, 3\) and wells \(1,\)"):
        bleed_mask(image, np.array([1.0]))


def stars(seed):
    """A field of saturated stars (y, x) over the CCD on 300 electrons of sky, bled and not."""
    random = np.random.default_rng(seed)
    ny, nx = DETECTOR.shape
    y, x = np.mgrid[:ny, :nx]
    image = np.full((ny, nx), 300.0)
    for _ in range(8):
        flux, (cy, cx) = 10 ** random.uniform(6, 7.2), random.uniform(8, ny - 8, 2)
        image += flux / (2 * np.pi * 4) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    bled, drained = bloom(seed, SETTINGS, DETECTOR, image.copy())
    return image, bled, drained


def test_footprint_of_bled_stars_is_complete_and_pure():
    wells = full_well(1, SETTINGS, DETECTOR)
    names = [a.name for a in DETECTOR.amplifiers]
    spilled = inside = flagged = right = 0.0
    for seed in range(5):
        before, after, _ = stars(seed)
        wells = full_well(seed, SETTINGS, DETECTOR)
        order = np.array([wells[names.index(name)] for name in CAMERA.amplifier_names])
        before, after = (split(image, DETECTOR, CAMERA, fill=0.0) for image in (before, after))
        noisy = after + np.random.default_rng(seed).normal(0, NOISE, after.shape)
        found = bleed_mask(noisy.astype(np.float32), order, NOISE)
        gained = np.maximum(after - before, 0)
        spilled, inside = spilled + gained.sum(), inside + gained[found].sum()
        flagged += found.sum()
        right += (found & ((gained > 0) | (before >= order[:, None, None]))).sum()
    assert spilled > 1e6
    assert inside / spilled >= 0.999
    assert right / flagged >= 0.90


def test_trails_hold_the_charge_of_their_stars():
    """One star on a dark sky: what its trail holds is what the star had in those pixels, to a thousandth."""
    ny, nx = DETECTOR.shape
    image = np.zeros((ny, nx), np.float32)
    image[ny // 4, nx // 4] = 3e6  # far from register and mid-line
    bled, drained = bloom(1, SETTINGS, DETECTOR, image)
    assert drained.sum() == 0
    wells = full_well(1, SETTINGS, DETECTOR)
    names = [a.name for a in DETECTOR.amplifiers]
    after = split(bled, DETECTOR, CAMERA, fill=0.0)
    noisy = after + np.random.default_rng(0).normal(0, NOISE, after.shape)
    found = bleed_mask(
        noisy.astype(np.float32), np.array([wells[names.index(n)] for n in CAMERA.amplifier_names]), NOISE
    )
    (place,) = np.flatnonzero(found.any(axis=(1, 2)))
    (charge,) = trail_charges(noisy[place], found[place])
    assert abs(charge / 3e6 - 1) < 1e-3
    bare = noisy[place][noisy[place] > 0.99 * wells.min()].sum()  # without the ends, which are filled in part
    assert abs(bare / 3e6 - 1) > 5e-3


def wells(**given):
    """Saturation of the four amplifiers, electron, in the order of the CCD."""
    names = [a.name for a in DETECTOR.amplifiers]
    return xr.Dataset({name: ("amplifier", np.asarray(v, float)) for name, v in given.items()}, {"amplifier": names})


def test_what_is_full_first_counts():
    """Of pixel, register and converter, whichever is known; lowered by its error where that is asked for."""
    nan = np.nan
    product = wells(
        well_bloom=[150e3, nan, nan, 100e3],
        well_serial=[140e3, 130e3, nan, nan],
        well_adc=[nan, 90e3, nan, nan],
        well_bloom_error=[nan, nan, nan, 2e3],
        ptc_turnoff=[50e3] * 4,
    )
    np.testing.assert_array_equal(full_wells(product, DETECTOR), [140e3, 90e3, nan, 100e3])
    np.testing.assert_array_equal(full_wells(product, DETECTOR, 3.0), [140e3, 90e3, nan, 94e3])


def test_a_dead_amplifier_raises_no_warning():
    image = np.full((4, 64, 64), 1e5, np.float32)
    image[2] = np.nan
    mask = np.zeros(image.shape, np.uint16)
    rows = np.zeros(image.shape[:2], np.float32)
    frame = Frame("e1", DETECTOR, image, np.where(np.isfinite(image), np.float32(30), image), rows, mask, "electron")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = flag_bleeding(frame, np.full(4, 9e4))
    assert (found.mask > 0).all(axis=(1, 2)).tolist() == [True, True, False, True]
