"""Flat fields of the sky and of a standard source, pixel by pixel (Secs. 3.6 and 3.10)."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import Amplifier, Box, Detector
from lsstcal_dask.isr.flat import divide_by_flat, multiply_by_flat, to_photometric_flat, to_sky_flat
from lsstcal_dask.isr.frame import Frame, RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct
from lsstcal_dask.variables import MASK_BITS

BAD, NO_DATA = MASK_BITS["BAD"], MASK_BITS["NO_DATA"]
SHAPE = (40, 50)


def detector(shape, names="A", overscan=0):
    """CCD of a row of amplifiers of that (y, x), with columns of overscan."""
    ny, nx = shape
    over = Box(nx, nx + overscan, 0, ny) if overscan else Box(0, 0, 0, 0)
    own = {
        "data": Box(0, nx, 0, ny),
        "overscan": over,
        "parallel_overscan": Box(0, 0, 0, 0),
        "gain": 2.0,
        "read_noise": 6.0,
    }
    where = {
        "raw_shape": (ny, nx + overscan),
        "position": (0, 0),
        "flip_x": False,
        "flip_y": False,
    }
    amplifiers = tuple(Amplifier(name=name, **own, **where) for name in names)
    return Detector("R22_S11", 0, "e2v", "e2v", "", amplifiers, shape, 0.01, (0.0, 0.0), 0.0)


def frame(image, variance=None, rows=None):
    image = np.asarray(image, np.float32)
    variance = np.ones_like(image) if variance is None else np.asarray(variance, np.float32)
    rows = np.zeros(image.shape[:2], np.float32) if rows is None else np.asarray(rows, np.float32)
    own = detector(image.shape[1:], "ABCD"[: len(image)])
    return Frame("e1", own, image, variance, rows, np.zeros(image.shape, np.uint16), "electron")


def flat(values, variance=0.0, names="A"):
    values = np.asarray(values, np.float32)
    planes = {"image": values, "variance": np.broadcast_to(np.float32(variance), values.shape)}
    return xr.Dataset(
        {name: (("amplifier", "y", "x"), plane) for name, plane in planes.items()}, {"amplifier": list(names)}
    )


def random_frame(seed, level=1000.0):
    """Light of one level seen by pixels of unlike response, and the flats of two spectra."""
    rng = np.random.default_rng(seed)
    sky, stars = (flat(rng.normal(1, 0.05, (2, *SHAPE)), 1e-6, "AB") for _ in range(2))
    expected = level * sky["image"].values.astype(float)
    image = rng.poisson(expected).astype(np.float32)
    return frame(image, expected, np.full((2, SHAPE[0]), 2.0)), sky, stars


def test_pixels_by_hand():
    found = divide_by_flat(frame([[[10.0, 40.0]]], [[[4.0, 16.0]]], [[3.0]]), flat([[[0.5, 2.0]]], 0.25))
    np.testing.assert_allclose(found.image, [[[20.0, 20.0]]])
    np.testing.assert_allclose(found.variance, [[[(4 + 400 * 0.25) / 0.25, (16 + 400 * 0.25) / 4]]])
    np.testing.assert_allclose(found.row_variance, [[3 * (4 + 0.25) / 2]])
    assert not found.mask.any()


def test_amplifiers_are_matched_by_name():
    found = divide_by_flat(frame([[[10.0]], [[10.0]]]), flat([[[5.0]], [[2.0]]], names="BA"))
    np.testing.assert_allclose(found.image[:, 0, 0], [5.0, 2.0])


def test_an_amplifier_that_the_flat_lacks_is_named():
    with pytest.raises(InconsistentGeometry, match="exposure e1: R22_S11 B: is not in the flat field"):
        divide_by_flat(frame([[[1.0]], [[1.0]]]), flat([[[1.0]]]))


@pytest.mark.parametrize("nothing", [np.nan, 0.0, -0.1])
def test_pixels_without_response_are_bad_and_not_a_number(nothing):
    found = divide_by_flat(frame([[[10.0, 10.0]]], rows=[[2.0]]), flat([[[nothing, 1.0]]]))
    np.testing.assert_array_equal(found.image, [[[np.nan, 10.0]]])
    assert np.isnan(found.variance[0, 0, 0])
    np.testing.assert_array_equal(found.mask, [[[BAD, 0]]])
    np.testing.assert_allclose(found.row_variance, [[2.0]])  # of the pixel that is left


def test_padding_stays_padding():
    before = frame([[[10.0, np.nan]]]).with_(mask=np.array([[[0, NO_DATA]]], np.uint16))
    found = divide_by_flat(before, flat([[[1.0, np.nan]]]))
    np.testing.assert_array_equal(found.mask, [[[0, NO_DATA]]])


def test_the_sky_becomes_smooth_and_keeps_its_noise():
    before, sky, _ = random_frame(1)
    found = divide_by_flat(before, sky)
    pulls = (found.image - 1000.0) / np.sqrt(found.variance)
    assert abs(pulls.std() - 1) < 4 / np.sqrt(2 * pulls.size)
    signal_to_noise = [
        f.image**2 / f.variance for f in (before, divide_by_flat(before, sky.assign(variance=0 * sky.image)))
    ]
    np.testing.assert_allclose(*signal_to_noise, rtol=1e-5)
    # without the flat, its scatter of 5 % is 1.6 times the noise
    undivided = (before.image - 1000.0) / np.sqrt(before.variance)
    assert undivided.std() > 1.5


def test_the_photometric_flat_takes_the_place_of_the_sky_flat_and_is_undone():
    before, sky, stars = random_frame(2)
    smooth = divide_by_flat(before, sky)
    flattened = to_photometric_flat(smooth, stars, sky)
    direct = divide_by_flat(before, stars)
    for name in ("image", "variance", "row_variance"):
        # one and two roundings of 6e-8 each way, and 1e-3 of the variance taken out again
        np.testing.assert_allclose(getattr(flattened, name), getattr(direct, name), rtol=1e-6)
        np.testing.assert_allclose(getattr(to_sky_flat(flattened, stars, sky), name), getattr(smooth, name), rtol=1e-6)
        np.testing.assert_allclose(getattr(multiply_by_flat(smooth, sky), name), getattr(before, name), rtol=1e-6)
    np.testing.assert_array_equal(to_photometric_flat(before, stars).image, direct.image)
    np.testing.assert_allclose(to_sky_flat(direct, stars).image, before.image, rtol=1e-6)


@pytest.mark.parametrize("order", ["lupton2016", "physical", "rubin"])
def test_flats_are_steps_of_every_order(order):
    shape = (12, 3)
    counts = np.full((1, 12, 7), 150, np.int32)
    counts[..., 3:] = [99, 101, 99, 101]
    raw = RawFrame("e1", detector(shape, overscan=4), 1.0, counts)
    config = IsrConfig(overscan=OverscanConfig(method="row", skip=0), order=order, edge=0)
    steps = ((), ("sky_flat",), ("photometric_flat",), ("sky_flat", "photometric_flat"))
    own = flat(np.full((1, *shape), 2.0))
    found = [correct(raw, Site(shape), dict.fromkeys(some, own), config).image[0, 0, 0] for some in steps]
    np.testing.assert_allclose(found, [50.0, 25.0, 25.0, 25.0])


def test_a_flat_without_variance_counts_as_exact():
    light, sky, _ = random_frame(3)
    exact = sky.assign(variance=0 * sky["variance"])
    for step in (divide_by_flat, multiply_by_flat):
        wanted, found = step(light, exact), step(light, exact.drop_vars("variance"))
        np.testing.assert_array_equal(found.image, wanted.image)
        np.testing.assert_array_equal(found.variance, wanted.variance)
