"""The corrections of one CCD, pixel by pixel, against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.instrument import Amplifier, Box, Detector
from lsstcal_dask.isr.bias import subtract_bias, subtract_overscan
from lsstcal_dask.isr.dark import subtract_dark
from lsstcal_dask.isr.frame import new_frame
from lsstcal_dask.isr.gain import apply_gain
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.sequence import NEEDED, ORDERS, correct
from lsstcal_dask.variables import MASK_BITS

NO_DATA, BAD = MASK_BITS["NO_DATA"], MASK_BITS["BAD"]
NY = 12
SHAPE = (NY, 4)  # of the padded image
OVERSCAN = np.array([99, 101, 99, 101])  # mean 100, variance 4 / 3
ROWS = OverscanConfig(method="row", skip=0)


def amplifier(name, nx=3, overscan=4):
    return Amplifier(
        name=name,
        raw_shape=(NY, nx + 4),
        data=Box(0, nx, 0, NY),
        overscan=Box(nx, nx + overscan, 0, NY) if overscan else Box(0, 0, 0, 0),
        parallel_overscan=Box(0, 0, 0, 0),
        position=(0, 0),
        flip_x=False,
        flip_y=False,
        gain=2.0,
        read_noise=6.0,
    )


def detector(*amplifiers):
    return Detector("R22_S11", 0, "e2v", "e2v", "", amplifiers, SHAPE, 0.01, (0.0, 0.0), 0.0)


def raw_counts(nx=3, light=50):
    """(1, y, x): data 100 + 10 y + light, reference pixels 100 + 10 y, columns of nothing beyond."""
    counts = np.zeros((1, NY, 8), np.int32)
    row = np.arange(NY)[:, None] * 10
    counts[0, :, :nx] = 100 + row + light
    counts[0, :, nx : nx + 4] = OVERSCAN + row
    return counts


@pytest.fixture
def frame():
    return new_frame("e1", detector(amplifier("A")), 10.0, raw_counts(), SHAPE)


def images(value, names=("A",), **more):
    """A product: constant image; variance, mask and row variance unless given."""
    shape = (len(names), *SHAPE)
    values = {
        "image": np.full(shape, value, np.float32),
        "variance": np.full(shape, more.get("variance", 0.0), np.float32),
        "mask": np.full(shape, more.get("mask", 0), np.uint16),
    }
    found = {name: (("amplifier", "y", "x"), array) for name, array in values.items()}
    rows = np.full(shape[:2], more.get("row_variance", 0.0), np.float32)
    found["row_variance"] = (("amplifier", "y"), rows)
    level = np.asarray(more.get("level", [[0.0] * len(names)]))
    found["level"] = (("exposure", "amplifier"), level)
    return xr.Dataset(found, coords={"amplifier": list(names)})


def gains(*values, names=("A",)):
    return xr.Dataset({"gain": ("amplifier", np.array(values))}, coords={"amplifier": list(names)})


def untouched(frame, copy):
    for name in ("raw", "image", "variance", "row_variance", "mask"):
        np.testing.assert_array_equal(getattr(frame, name), getattr(copy, name))


def copy_of(frame):
    names = ("raw", "image", "variance", "row_variance", "mask")
    return replace(frame, **{name: getattr(frame, name).copy() for name in names})


def test_new_frame_trims_and_pads(frame):
    np.testing.assert_array_equal(frame.image[0, :, :3], [[150 + 10 * y] * 3 for y in range(NY)])
    assert np.isnan(frame.image[0, :, 3]).all()
    assert (frame.mask[0, :, 3] == NO_DATA).all()
    assert not frame.mask[0, :, :3].any()
    assert not frame.variance.any()
    assert not frame.row_variance.any()
    assert (frame.image.dtype, frame.variance.dtype, frame.row_variance.dtype) == (np.float32,) * 3
    assert frame.mask.dtype == np.uint16
    assert frame.units == "adu"


def test_new_frame_keeps_the_order_of_amplifiers():
    raw = np.concatenate([raw_counts(3, 10), raw_counts(2, 20)])
    found = new_frame("e1", detector(amplifier("A"), amplifier("B", 2)), 0.0, raw, SHAPE)
    assert found.image[0, 0, 0] == 110
    assert found.image[1, 0, 0] == 120
    assert (found.mask[1, :, 2:] == NO_DATA).all()


def test_overscan_is_subtracted_row_by_row(frame):
    before = copy_of(frame)
    found = subtract_overscan(frame, ROWS)
    np.testing.assert_allclose(found.image[0, :, :3], 50)
    # Each row: 4 pixels, squares of deviations 4, 3 degrees of freedom; all rows alike.
    np.testing.assert_allclose(found.variance[0, :, :3], 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, 4 / 3 / 4, rtol=1e-6)
    assert np.isnan(found.image[0, :, 3]).all()
    np.testing.assert_array_equal(found.mask, before.mask)
    assert found.image.dtype == np.float32
    untouched(frame, before)


def test_mean_overscan_is_one_level_for_the_frame(frame):
    found = subtract_overscan(frame, OverscanConfig(method="mean", skip=0))
    np.testing.assert_allclose(found.image[0, :, 0], [150 + 10 * y - 155 for y in range(NY)])
    # Standard error of a median of twelve row means: 1.57 (pi / 2) of that of their mean.
    np.testing.assert_allclose(found.row_variance, 1.57 * (4 / 3 / 4) / NY, rtol=1e-6)


@pytest.mark.parametrize("config", [ROWS, OverscanConfig()])
def test_without_overscan_nothing_is_subtracted_and_the_nominal_noise_counts(config):
    bare = new_frame("e1", detector(amplifier("A", overscan=0)), 0.0, raw_counts(), SHAPE)
    found = subtract_overscan(bare, config)
    np.testing.assert_array_equal(found.image, bare.image)
    np.testing.assert_allclose(found.variance[0, :, :3], (6.0 / 2.0) ** 2)
    assert not found.row_variance.any()


def test_overscan_left_out_on_request(frame):
    found = subtract_overscan(frame, OverscanConfig(method="none"))
    np.testing.assert_array_equal(found.image, frame.image)
    np.testing.assert_allclose(found.variance[0, :, :3], 9.0)


def test_a_row_without_a_level_is_no_data():
    raw = raw_counts()
    raw[0, 5, 3:7] = [0, 0, 9000, 9000]  # none of them is near their median
    found = subtract_overscan(new_frame("e1", detector(amplifier("A")), 0.0, raw, SHAPE), ROWS)
    assert np.isnan(found.image[0, 5]).all()
    assert (found.mask[0, 5] & NO_DATA).all()
    np.testing.assert_allclose(found.image[0, 4, :3], 50)


def test_bias_is_subtracted_and_its_errors_added(frame):
    before = copy_of(frame)
    found = subtract_bias(frame, images(5, variance=0.25, row_variance=0.5, mask=BAD))
    np.testing.assert_array_equal(found.image[0, :, :3], before.image[0, :, :3] - 5)
    assert (found.variance == 0.25).all()
    assert (found.row_variance == 0.5).all()
    assert (found.mask[0, :, :3] == BAD).all()
    assert (found.mask[0, :, 3] == BAD | NO_DATA).all()
    untouched(frame, before)


def test_level_jitter_counts_only_without_overscan():
    level = [[1.0, 1.0], [2.0, 2.0], [6.0, 6.0], [np.nan, np.nan]]  # variance 7
    two = detector(amplifier("A"), amplifier("B", overscan=0))
    frame = new_frame("e1", two, 0.0, np.concatenate([raw_counts()] * 2), SHAPE)
    found = subtract_bias(frame, images(0, ("A", "B"), level=level, row_variance=0.5))
    np.testing.assert_allclose(found.row_variance[0], 0.5)
    np.testing.assert_allclose(found.row_variance[1], 0.5 + 7.0)


def test_jitter_of_a_single_level_is_unknown_and_taken_as_none():
    bare = new_frame("e1", detector(amplifier("A", overscan=0)), 0.0, raw_counts(), SHAPE)
    found = subtract_bias(bare, images(0, level=[[3.0], [np.nan]]))
    assert not found.row_variance.any()


def test_products_are_matched_by_the_name_of_the_amplifier():
    two = detector(amplifier("A"), amplifier("B"))
    frame = new_frame("e1", two, 1.0, np.concatenate([raw_counts()] * 2), SHAPE)
    swapped = images(0, ("B", "A"))
    swapped["image"][0] = 7
    assert (subtract_bias(frame, swapped).image[:, 0, 0] == [150, 143]).all()
    assert (subtract_dark(frame, swapped).image[:, 0, 0] == [150, 143]).all()
    assert (apply_gain(frame, gains(3, 2, names=("B", "A"))).image[:, 0, 0] == [300, 450]).all()
    with pytest.raises(KeyError):
        subtract_bias(frame, images(0, ("A",)))


@pytest.mark.parametrize("jittery_first", [True, False])
def test_jitter_goes_to_its_amplifier_whatever_the_order(jittery_first):
    bare = detector(amplifier("A", overscan=0), amplifier("B", overscan=0))
    frame = new_frame("e1", bare, 0.0, np.concatenate([raw_counts()] * 2), SHAPE)
    names = ("A", "B") if jittery_first else ("B", "A")
    level = [[0.0, 5.0], [2.0, 5.0]] if jittery_first else [[5.0, 0.0], [5.0, 2.0]]
    found = subtract_bias(frame, images(0, names, level=level))
    assert found.row_variance[:, 0].tolist() == [2.0, 0.0]


def test_gain_makes_electrons_and_photon_noise(frame):
    frame = subtract_overscan(frame, ROWS)
    frame = frame.with_(image=np.where(np.arange(NY)[:, None] == 3, np.float32(-10), frame.image))
    before = copy_of(frame)
    found = apply_gain(frame, gains(1.5))
    np.testing.assert_allclose(found.image[0, :3, :3], 75)
    np.testing.assert_allclose(found.variance[0, :3, :3], 4 / 3 * 2.25 + 75, rtol=1e-6)
    # A negative signal has no photon noise.
    np.testing.assert_allclose(found.image[0, 3, :3], -15)
    np.testing.assert_allclose(found.variance[0, 3, :3], 4 / 3 * 2.25, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, 4 / 3 / 4 * 2.25, rtol=1e-6)
    assert found.units == "electron"
    assert {found.image.dtype, found.variance.dtype, found.row_variance.dtype} == {np.dtype(np.float32)}
    untouched(frame, before)


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_amplifier_without_a_gain_is_no_data_and_the_other_is_not(bad):
    two = detector(amplifier("A"), amplifier("B"))
    frame = new_frame("e1", two, 0.0, np.concatenate([raw_counts()] * 2), SHAPE)
    found = apply_gain(frame, gains(bad, 1.0, names=("A", "B")))
    assert (found.mask[0] & NO_DATA).all()
    assert not found.mask[1, :, :3].any()
    np.testing.assert_array_equal(found.image[1, :, :3], frame.image[1, :, :3])


def test_dark_scales_with_time_and_its_variance_with_the_square(frame):
    before = copy_of(frame)
    found = subtract_dark(frame, images(0.5, variance=0.01, row_variance=0.02, mask=BAD))
    np.testing.assert_allclose(found.image[0, :, :3], before.image[0, :, :3] - 5)
    np.testing.assert_allclose(found.variance, 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, 2.0, rtol=1e-6)
    assert (found.mask & BAD).all()
    assert found.image.dtype == np.float32
    untouched(frame, before)


def test_no_dark_time_is_no_dark(frame):
    found = subtract_dark(frame.with_(dark_time=0.0), images(0.5, variance=0.01))
    np.testing.assert_array_equal(found.image[0, :, :3], frame.image[0, :, :3])
    assert not found.variance.any()


@pytest.mark.parametrize("time", [np.nan, -1.0])
def test_dark_time_must_be_known(frame, time):
    with pytest.raises(UnitsError, match=r"exposure e1 R22_S11: dark time is .* --skip dark"):
        subtract_dark(frame.with_(dark_time=time), images(0.5))


def test_nan_of_a_product_stays_nan_and_its_mask_says_so(frame):
    product = images(1.0)
    product["image"][0, 1, 1] = np.nan
    product["mask"][0, 1, 1] = NO_DATA
    for found in (subtract_bias(frame, product), subtract_dark(frame, product)):
        assert np.isnan(found.image[0, 1, 1])
        assert found.mask[0, 1, 1] == NO_DATA
        assert np.isfinite(found.image[0, :, :3]).sum() == 3 * NY - 1


def test_the_whole_chain_by_hand(frame):
    products = {
        "bias": images(5, variance=0.1, row_variance=0.2),
        "gain": gains(2.0),
        "dark": images(0.3, variance=0.001, row_variance=0.002),
    }
    before = copy_of(frame)
    found = correct(frame, products, ROWS)
    np.testing.assert_allclose(found.image[0, :, :3], (50 - 5) * 2 - 3, rtol=1e-6)
    # Photon noise: of all electrons above the bias, those of the dark current included.
    np.testing.assert_allclose(found.variance[0, :, :3], (4 / 3 + 0.1) * 4 + 90 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, (1 / 3 + 0.2) * 4 + 0.2, rtol=1e-6)
    assert np.isnan(found.image[0, :, 3]).all()
    assert found.units == "electron"
    untouched(frame, before)


def test_a_correction_without_its_product_is_left_out(frame):
    found = correct(frame, {"bias": images(5)}, ROWS)
    np.testing.assert_allclose(found.image[0, :, :3], 45)
    assert found.units == "adu"


def test_an_unknown_order_is_refused(frame):
    with pytest.raises(KeyError, match="nonsense"):
        correct(frame, {}, order="nonsense")


def test_every_correction_of_every_order_exists(frame):
    products = {"bias": images(0), "gain": gains(1.0), "dark": images(0)}
    assert set(products) == set(NEEDED)
    for order, steps in ORDERS.items():
        assert set(steps) == {"overscan", *NEEDED}
        assert correct(frame, products, ROWS, order).units == "electron"
