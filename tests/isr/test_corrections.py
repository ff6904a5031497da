"""The corrections of one CCD, pixel by pixel, against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import plain_isr
import pytest
import xarray as xr

from lsstcal_dask.errors import UnitsError, WrongUse
from lsstcal_dask.instrument import Amplifier, Box, Detector
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.rows import STEPS
from lsstcal_dask.isr.sequence import NEEDED, ORDERS, IsrConfig, Site, check_steps, correct
from lsstcal_dask.variables import MASK_BITS

NO_DATA, SUSPECT = MASK_BITS["NO_DATA"], MASK_BITS["SUSPECT"]
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


def raw_frame(*amplifiers, counts=None, dark_time=10.0):
    amplifiers = amplifiers or (amplifier("A"),)
    counts = np.concatenate([raw_counts()] * len(amplifiers)) if counts is None else counts
    return RawFrame("e1", detector(*amplifiers), dark_time, counts)


def apply(raw, products=(), config=ROWS, order="lupton2016"):
    before = raw.counts.copy()
    found = correct(raw, Site(SHAPE), dict(products), IsrConfig(overscan=config, order=order, edge=0))
    np.testing.assert_array_equal(raw.counts, before)
    assert {found.image.dtype, found.variance.dtype, found.row_variance.dtype} == {np.dtype(np.float32)}
    assert found.mask.dtype == np.uint16
    lost = found.mask & NO_DATA > 0
    assert np.isnan(found.image[lost]).all()
    assert np.isfinite(found.image[~lost]).all()
    return found


READ = np.float32(4 / 3)  # variance of the reference pixels of a row: squares of deviations 4, 3 degrees of freedom


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


def test_a_frame_is_trimmed_and_padded():
    found = apply(raw_frame(), config=OverscanConfig(method="none"))
    np.testing.assert_array_equal(found.image[0, :, :3], [[150 + 10 * y] * 3 for y in range(NY)])
    assert (found.mask[0, :, 3] == NO_DATA).all()
    assert not found.mask[0, :, :3].any()
    assert not found.row_variance.any()
    assert found.units == "adu"


def test_the_order_of_amplifiers_is_kept():
    raw = np.concatenate([raw_counts(3, 10), raw_counts(2, 20)])
    found = apply(raw_frame(amplifier("A"), amplifier("B", 2), counts=raw), config=OverscanConfig(method="none"))
    assert found.image[0, 0, 0] == 110
    assert found.image[1, 0, 0] == 120
    assert (found.mask[1, :, 2:] == NO_DATA).all()


def test_overscan_is_subtracted_row_by_row():
    found = apply(raw_frame())
    np.testing.assert_allclose(found.image[0, :, :3], 50)
    np.testing.assert_allclose(found.variance[0, :, :3], READ, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, READ / 4, rtol=1e-6)


def test_mean_overscan_is_one_level_for_the_frame():
    found = apply(raw_frame(), config=OverscanConfig(method="mean", skip=0))
    np.testing.assert_allclose(found.image[0, :, 0], [150 + 10 * y - 155 for y in range(NY)])
    # Standard error of a median of twelve row means: 1.57 (pi / 2) of that of their mean.
    np.testing.assert_allclose(found.row_variance, 1.57 * (4 / 3 / 4) / NY, rtol=1e-6)


@pytest.mark.parametrize("config", [ROWS, OverscanConfig()])
def test_without_overscan_nothing_is_subtracted_and_the_nominal_noise_counts(config):
    found = apply(raw_frame(amplifier("A", overscan=0)), config=config)
    np.testing.assert_array_equal(found.image[0, :, 0], [150 + 10 * y for y in range(NY)])
    np.testing.assert_allclose(found.variance[0, :, :3], (6.0 / 2.0) ** 2)
    assert not found.row_variance.any()


def test_overscan_left_out_on_request():
    found = apply(raw_frame(), config=OverscanConfig(method="none"))
    np.testing.assert_array_equal(found.image[0, :, 0], [150 + 10 * y for y in range(NY)])
    np.testing.assert_allclose(found.variance[0, :, :3], 9.0)


def test_a_row_without_a_level_is_no_data():
    raw = raw_counts()
    raw[0, 5, 3:7] = [0, 0, 9000, 9000]  # none of them is near their median
    found = apply(raw_frame(counts=raw))
    assert (found.mask[0, 5] & NO_DATA).all()
    np.testing.assert_allclose(found.image[0, 4, :3], 50)


def test_bias_is_subtracted_and_its_errors_added():
    found = apply(raw_frame(), {"bias": images(5, variance=0.25, row_variance=0.5, mask=SUSPECT)})
    np.testing.assert_array_equal(found.image[0, :, :3], 45)
    np.testing.assert_allclose(found.variance[0, :, :3], READ + 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, READ / 4 + 0.5, rtol=1e-6)
    assert (found.mask[0, :, :3] == SUSPECT).all()
    assert (found.mask[0, :, 3] == NO_DATA).all()


def test_level_jitter_counts_only_without_overscan():
    level = [[1.0, 1.0], [2.0, 2.0], [6.0, 6.0], [np.nan, np.nan]]  # variance 7
    bias = images(0, ("A", "B"), level=level, row_variance=0.5)
    found = apply(raw_frame(amplifier("A"), amplifier("B", overscan=0)), {"bias": bias})
    np.testing.assert_allclose(found.row_variance[0], READ / 4 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance[1], 0.5 + 7.0)


def test_jitter_of_a_single_level_is_unknown_and_taken_as_none():
    found = apply(raw_frame(amplifier("A", overscan=0)), {"bias": images(0, level=[[3.0], [np.nan]])})
    assert not found.row_variance.any()


def test_products_are_matched_by_the_name_of_the_amplifier():
    raw = raw_frame(amplifier("A"), amplifier("B"), dark_time=1.0)
    swapped = images(0, ("B", "A"))
    swapped["image"][0] = 7
    assert (apply(raw, {"bias": swapped}).image[:, 0, 0] == [50, 43]).all()
    assert (apply(raw, {"dark": swapped}).image[:, 0, 0] == [50, 43]).all()
    assert (apply(raw, {"gain": gains(3, 2, names=("B", "A"))}).image[:, 0, 0] == [100, 150]).all()
    with pytest.raises(KeyError):
        apply(raw, {"bias": images(0, ("A",))})


@pytest.mark.parametrize("jittery_first", [True, False])
def test_jitter_goes_to_its_amplifier_whatever_the_order(jittery_first):
    names = ("A", "B") if jittery_first else ("B", "A")
    level = [[0.0, 5.0], [2.0, 5.0]] if jittery_first else [[5.0, 0.0], [5.0, 2.0]]
    raw = raw_frame(amplifier("A", overscan=0), amplifier("B", overscan=0))
    found = apply(raw, {"bias": images(0, names, level=level)})
    assert found.row_variance[:, 0].tolist() == [2.0, 0.0]


def test_gain_makes_electrons_and_photon_noise():
    counts = raw_counts()
    counts[0, 3, :3] -= 60  # 10 adu below the level
    found = apply(raw_frame(counts=counts), {"gain": gains(1.5)})
    np.testing.assert_allclose(found.image[0, :3, :3], 75)
    np.testing.assert_allclose(found.variance[0, :3, :3], 4 / 3 * 2.25 + 75, rtol=1e-6)
    # A negative signal has no photon noise.
    np.testing.assert_allclose(found.image[0, 3, :3], -15)
    np.testing.assert_allclose(found.variance[0, 3, :3], 4 / 3 * 2.25, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, 4 / 3 / 4 * 2.25, rtol=1e-6)
    assert found.units == "electron"


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_amplifier_without_a_gain_is_no_data_and_the_other_is_not(bad):
    found = apply(raw_frame(amplifier("A"), amplifier("B")), {"gain": gains(bad, 1.0, names=("A", "B"))})
    assert (found.mask[0] & NO_DATA).all()
    assert not found.mask[1, :, :3].any()
    np.testing.assert_allclose(found.image[1, :, :3], 50)


def test_dark_scales_with_time_and_its_variance_with_the_square():
    found = apply(raw_frame(), {"dark": images(0.5, variance=0.01, row_variance=0.02, mask=SUSPECT)})
    np.testing.assert_allclose(found.image[0, :, :3], 50 - 5)
    np.testing.assert_allclose(found.variance[0, :, :3], READ + 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, READ / 4 + 2.0, rtol=1e-6)
    assert (found.mask[0, :, :3] == SUSPECT).all()


def test_no_dark_time_is_no_dark():
    found = apply(raw_frame(dark_time=0.0), {"dark": images(0.5, variance=0.01)})
    np.testing.assert_allclose(found.image[0, :, :3], 50)
    np.testing.assert_allclose(found.variance[0, :, :3], READ, rtol=1e-6)


def test_rows_that_wait_gather_more():
    raw = raw_frame()
    raw = replace(raw, detector=replace(raw.detector, row_time=2.0))
    found = apply(raw, {"dark": images(0.5, variance=0.01, row_variance=0.02)})
    seconds = 10 + 2 * np.arange(NY)
    np.testing.assert_allclose(found.image[0, :, 1], 50 - 0.5 * seconds, rtol=1e-6)
    np.testing.assert_allclose(found.variance[0, :, 1], READ + 0.01 * seconds**2, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance[0], READ / 4 + 0.02 * seconds**2, rtol=1e-6)


@pytest.mark.parametrize("time", [np.nan, -1.0])
def test_dark_time_must_be_known(time):
    with pytest.raises(UnitsError, match=r"exposure e1 R22_S11: dark time is .* --skip dark"):
        apply(raw_frame(dark_time=time), {"dark": images(0.5)})


def test_nan_of_a_product_stays_nan_and_its_mask_says_so():
    product = images(1.0)
    product["image"][0, 1, 1] = np.nan
    product["mask"][0, 1, 1] = NO_DATA
    for name in ("bias", "dark"):
        found = apply(raw_frame(), {name: product})
        assert found.mask[0, 1, 1] == NO_DATA
        assert np.isfinite(found.image[0, :, :3]).sum() == 3 * NY - 1


CHAIN = {
    "bias": images(5, variance=0.1, row_variance=0.2),
    "gain": gains(2.0),
    "dark": images(0.3, variance=0.001, row_variance=0.002),
}


def test_the_whole_chain_by_hand():
    found = apply(raw_frame(), CHAIN)
    np.testing.assert_allclose(found.image[0, :, :3], (50 - 5) * 2 - 3, rtol=1e-6)
    # Photon noise: of all electrons above the bias, those of the dark current included.
    np.testing.assert_allclose(found.variance[0, :, :3], (4 / 3 + 0.1) * 4 + 90 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, (1 / 3 + 0.2) * 4 + 0.2, rtol=1e-6)
    assert found.units == "electron"


def test_with_the_gain_first_the_bias_is_taken_off_in_electrons():
    found = apply(raw_frame(), CHAIN, order="rubin")
    np.testing.assert_allclose(found.image[0, :, :3], (50 - 5) * 2 - 3, rtol=1e-6)
    # Photon noise is of the electrons above the bias in any order.
    np.testing.assert_allclose(found.variance[0, :, :3], (4 / 3 + 0.1) * 4 + 90 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(found.row_variance, (1 / 3 + 0.2) * 4 + 0.2, rtol=1e-6)


def test_a_correction_without_its_product_is_left_out():
    found = apply(raw_frame(), {"bias": images(5)})
    np.testing.assert_allclose(found.image[0, :, :3], 45)
    assert found.units == "adu"


def test_every_order_has_every_correction():
    for steps in ORDERS.values():
        assert set(steps) >= {"overscan", *NEEDED, *STEPS}
        assert len(set(steps)) == len(steps)
        assert set(steps) == set(ORDERS["lupton2016"])


def test_corrections_that_others_need_are_not_skipped():
    check_steps(frozenset({"gain", "dark"}))
    with pytest.raises(WrongUse, match="without gain there are no electrons to subtract a dark from: skip dark too"):
        check_steps(frozenset({"gain"}))
    with pytest.raises(WrongUse, match="unknown correction 'flat' to skip: choose from bias"):
        check_steps(frozenset({"flat", "gain"}))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_rows_at_once_equal_step_by_step(order, dtype):
    """Random counts, planes and gains of amplifiers of two widths, one of them dead."""
    rng = np.random.default_rng(3)
    three = (amplifier("A"), amplifier("B", 2), amplifier("C", overscan=0))
    counts = rng.integers(90, 60000, (3, NY, 8)).astype(dtype)
    counts[:, :, 3:] = rng.integers(95, 105, (3, NY, 5))
    names, shape = ("A", "B", "C"), (3, *SHAPE)
    bias, dark = images(0, names, level=rng.normal(size=(4, 3))), images(0, names)
    for product in (bias, dark):
        product["image"][:] = rng.normal(size=shape)
        product["variance"][:] = rng.random(shape)
        product["mask"][:] = rng.choice([0, SUSPECT, NO_DATA], shape, p=[0.8, 0.1, 0.1])
    products = {"bias": bias, "dark": dark, "gain": gains(1.5, 1.4, np.nan, names=names)}
    level = np.array([[0, 1e4, 3e4, 7e4, np.nan], [0, 2e4, 4e4, 5e4, 6e4], [0, 2e4, 4e4, 5e4, 6e4]])
    products["linearity"] = xr.Dataset(
        {
            "linearity_level": (("amplifier", "node"), level),
            "linearity_correction": (("amplifier", "node"), 1e-7 * level**2),
            "linearity_ceiling": ("amplifier", [5e4, 4e4, 3e4]),
        },
        coords={"amplifier": list(names)},
    )
    coefficients = rng.normal(0, 1e-3, (3, 3)) * (1 - np.eye(3))
    coefficients[2] = 0
    products["crosstalk"] = xr.Dataset(
        {
            "crosstalk": (("amplifier", "source"), coefficients),
            "crosstalk_quadratic": (("amplifier", "source"), 1e-9 * (coefficients != 0)),
        },
        coords={"amplifier": list(names), "source": [f"R22_S11/{name}" for name in names], "detector": "R22_S11"},
    )
    late = {"serial_cti": [1e-4, 0.0, 1e-4], "offset_amplitude": [0.0, 0.01, 0.01], "offset_decay": [3.0, 2.0, 4.0]}
    values = {name: ("amplifier", value) for name, value in late.items()}
    products["deferred"] = xr.Dataset(values, coords={"amplifier": list(names)})
    raw = raw_frame(*three, counts=counts)
    raw = replace(raw, detector=replace(raw.detector, row_time=0.3))
    found, wanted = (
        apply(raw, products, order=order),
        plain_isr.correct(raw, SHAPE, products, ROWS, [s for s in ORDERS[order] if s in plain_isr.STEPS]),
    )
    for name in ("image", "variance", "row_variance"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.mask, wanted.mask)


def test_photon_noise_is_of_the_electrons_counted_in_every_order():
    """Electrons do not know in which order what was read of them is corrected: variances agree as well as images.

    A curve that bends by 2 % at 25000 adu has a slope of 1.04 there: to scale the photon noise by it would be 8 % off.
    """
    level = np.linspace(0, 40_000, 9)
    linearity = xr.Dataset(
        {
            "linearity_level": (("amplifier", "node"), level[None]),
            "linearity_correction": (("amplifier", "node"), (8e-7 * level**2)[None]),
            "linearity_ceiling": ("amplifier", [np.inf]),
        },
        {"amplifier": ["A"]},
    )
    raw = raw_frame(counts=raw_counts(light=25_000))
    found = {order: apply(raw, CHAIN | {"linearity": linearity}, order=order) for order in ORDERS}
    first, other = found["lupton2016"], found["rubin"]
    # the bias of 5 adu is taken off before or after a slope of 1.04
    np.testing.assert_allclose(other.image[0, :, :3], first.image[0, :, :3], rtol=1e-5)
    np.testing.assert_allclose(other.variance[0, :, :3], first.variance[0, :, :3], rtol=1e-5)
    assert 0.99 < first.variance[0, 0, 0] / first.image[0, 0, 0] < 1.01
