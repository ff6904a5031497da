"""Blocks of a sky, and maps of fringes from blocks to pixels."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.fringes import _between, block_counts, block_places, sky_blocks, subtract_fringes
from lsstcal_dask.isr.objects import find_objects
from lsstcal_dask.variables import MASK_BITS

CAMERA = load_camera("mini1")
(CCD,) = CAMERA.detectors
NAMES = [a.name for a in CCD.amplifiers]
LEVEL, STEP = 1e4, 8


def frame(image, mask=0):
    shape = (len(NAMES), *CAMERA.image_shape)
    planes = np.broadcast_to(image, shape).astype(np.float32), np.full(shape, LEVEL, np.float32)
    bits = np.broadcast_to(np.asarray(mask, np.uint16), shape).copy()
    return Frame("e1", CCD, *planes, np.zeros(shape[:2], np.float32), bits, "electron")


def places():
    """CCD row and column (amplifier, y, x) of every pixel."""
    y, x = np.indices(CAMERA.image_shape)
    found = [amplifier_to_ccd(a, x, y) for a in CCD.amplifiers]
    return np.stack([one[1] for one in found]), np.stack([one[0] for one in found])


def product(maps, variance=0.0):
    dims = ("mode", "amplifier", "block_y", "block_x")
    data = {"fringe_map": (dims, maps), "fringe_map_variance": (dims, np.full(maps.shape, variance))}
    return xr.Dataset(data, coords={"amplifier": NAMES}, attrs={"block": STEP})


def means(values):
    n, ny, nx = values.shape
    return values.reshape(n, ny // STEP, STEP, nx // STEP, STEP).mean(axis=(2, 4))


def test_blocks_are_means_of_good_pixels_with_their_variance():
    image = np.random.default_rng(1).normal(LEVEL, 100, (len(NAMES), *CAMERA.image_shape))
    mask = np.zeros(image.shape, np.uint16)
    mask[1, 8:16, 16:20] = MASK_BITS["BAD"]
    mask[2, 0:8, 0:7] = MASK_BITS["COSMIC_RAY"]
    rows = frame(image, mask).with_(row_variance=np.full(image.shape[:2], 4.0, np.float32))
    sky = sky_blocks(rows, STEP)
    assert sky.value[1, 1, 2] == pytest.approx(image[1, 8:16, 20:24].mean(), rel=1e-6)
    assert sky.variance[1, 1, 2] == pytest.approx(LEVEL / 32 + 4 / 8)  # what is common to a row averages over rows
    assert np.isnan(sky.value[2, 0, 0])  # an eighth of its pixels
    assert sky.variance[0, 0, 0] == pytest.approx(LEVEL / 64 + 4 / 8)
    assert np.max(sky.crowded) == 0


def test_places_are_those_of_the_pixels():
    y, x = places()
    up, across = block_places(CCD, block_counts(CAMERA.image_shape, STEP), STEP)
    np.testing.assert_allclose(up, 2 * means(y.astype(float)) / (CCD.shape[0] - 1) - 1)
    np.testing.assert_allclose(across, 2 * means(x.astype(float)) / (CCD.shape[1] - 1) - 1)


@pytest.mark.parametrize("length", [64, 61, 8, 5])
def test_maps_of_blocks_keep_their_means(length):
    """And follow a wave of nine blocks within what is left of the slope of a cubic spline, (k h)**3 / 24."""
    weights = _between(length, 8)
    values = np.random.default_rng(1).normal(size=weights.shape[1])
    found = weights @ values
    for i, value in enumerate(values):
        assert np.mean(found[8 * i : 8 * i + 8]) == pytest.approx(value)
    at = np.arange(1000)
    wave = np.sin(2 * np.pi * at / 72)
    smooth = _between(1000, 8) @ wave.reshape(-1, 8).mean(axis=1)
    assert np.abs(smooth - wave)[48:-48].max() < (2 * np.pi / 9) ** 3 / 24


def test_what_is_subtracted_is_the_map_times_the_sky():
    """With two maps of other shares, on a sky with a slope; no noise, so but for the curve of the maps all of it."""
    y, x = places()
    waves = np.stack([0.02 * np.cos(2 * np.pi * x / 70), 0.02 * np.cos(2 * np.pi * (x + y) / 90)])
    sky = LEVEL * (1 + 1e-3 * x - 5e-4 * y)
    seen = frame(sky * (1 + 0.7 * waves[0] - 0.3 * waves[1]))
    maps = np.stack([means(one) for one in waves])
    found = subtract_fringes(seen, product(maps))
    assert np.std(found.image / sky) < 0.02 * np.std(seen.image / sky)
    assert any("0.7" in text and "-0.3" in text for _, text in found.remarks)
    assert seen.remarks == ()
    noisy = subtract_fringes(seen, product(maps, 1e-6))
    grown = (noisy.variance - found.variance) / sky**2
    spread = np.sum(_between(64, STEP) ** 2, axis=1)
    expected = 1e-6 * (0.7**2 + 0.3**2) * np.outer(spread, spread)
    np.testing.assert_allclose(grown[0], expected, rtol=0.02)


def test_unknown_blocks_are_suspect():
    y, x = places()
    maps = means(0.02 * np.cos(2 * np.pi * x / 70) + 0 * y)[None]
    maps[0, 1, 2, 3] = np.nan
    seen = frame(LEVEL * (1 + 0.02 * np.cos(2 * np.pi * x / 70)))
    found = subtract_fringes(seen, product(maps))
    assert (found.mask[1, 16:24, 24:32] == MASK_BITS["SUSPECT"]).all()
    assert (found.mask != 0).sum() == STEP**2
    assert np.isfinite(found.image).all()


def test_frames_that_tell_nothing_are_refused():
    with pytest.raises(InsufficientInputs, match=r"exposure e1: R22_S11: .*fringe frame is flat.*--skip fringes"):
        subtract_fringes(frame(LEVEL), product(np.zeros((1, len(NAMES), 8, 8))))
    dark = frame(LEVEL, MASK_BITS["BAD"])
    with pytest.raises(InsufficientInputs, match=r"exposure e1: R22_S11: .*too few.*--skip fringes"):
        subtract_fringes(dark, product(np.random.default_rng(1).normal(size=(1, len(NAMES), 8, 8))))
    with pytest.raises(InconsistentGeometry, match="R22_S11 C11: is not in the maps"):
        subtract_fringes(frame(LEVEL), product(np.ones((1, len(NAMES), 8, 8))).isel(amplifier=slice(0, 3)))


def test_objects_are_found_and_fringes_are_not():
    random = np.random.default_rng(4)
    y, x = np.indices((128, 128))
    fringes = 1e4 * (1 + 0.003 * np.cos(2 * np.pi * x / 40))
    star = 600 * np.exp(-((y - 60) ** 2 + (x - 40) ** 2) / 8.0)
    wing = 80 * np.exp(-((y - 20) ** 2 + (x - 90) ** 2) / 128.0)
    empty, lit = (random.poisson(fringes + one).astype(float) for one in (0 * star, star))
    good = np.ones(empty.shape, bool)
    assert find_objects(empty, good).mean() < 5e-3
    found = find_objects(lit, good)
    assert found[(star > 100)].all()
    assert 0.005 < found.mean() < 0.03
    assert find_objects(random.poisson(1e4 + wing).astype(float), good)[18:23, 88:93].all()  # faint and wide
    assert not find_objects(lit, ~good).any()
