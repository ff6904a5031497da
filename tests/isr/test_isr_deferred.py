"""Late charge that goes back: numbers worked out by hand, the law run forwards, and the simulator's registers."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.deferred import registers, restore_row
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct
from lsstcal_dask.pipeline.closed import late_charge as making
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.products.deferred import DeferredConfig, deferred_amplifiers

LARGE = {"serial_e2v": 2e-6, "offset_e2v": 1e-3, "parallel_e2v": 0.0, "traps_e2v": 0.0}
ULP = 2.0**-24
ROUNDED = 1.0  # adu: of a pixel, and of the level of its row


def restored(row, loss=0.0, first=1, offset=0.0, fade=0.5):
    values = np.array(row, np.float32)
    restore_row(values, np.float32(loss), np.float32(first), np.float32(offset), np.float32(fade))
    return values


def test_transfers_by_hand():
    # 10 000 electrons in the third pixel, 4 of the prescan before: 7 transfers of 1e-5 each leave 0.7 behind.
    found = restored([0, 0, 9999.3, 0.7, 0], loss=1e-5, first=5)
    np.testing.assert_allclose(found, [0, 0, 10000, 0, 0], atol=1e-3)


def test_offset_by_hand():
    # 1 % of 10 000 is left at the output, and half of it a pixel later; its own share is in the 10 000.
    found = restored([0, 10000, 50, 25, 112.5], offset=0.01)
    np.testing.assert_allclose(found, [0, 10000, 0, 0, 100 / 0.99], atol=2e-3)


def test_a_pixel_that_leaves_more_than_is_left_is_as_it_was_read():
    np.testing.assert_array_equal(restored([10000, 6000, 3000], offset=0.01), [10000, 6000, 3000])
    np.testing.assert_array_equal(restored([-5, 3, -7], offset=0.01)[1], 3)


def test_what_has_no_value_gives_nothing():
    found = restored([10000, np.nan, 25, 0], loss=1e-5, offset=0.01)
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[2:], [0, -12.5 / 0.99], atol=1e-3)


def test_nothing_is_done_where_nothing_is_known():
    detector = load_camera("mini1").detectors[0]
    names = [a.name for a in detector.amplifiers]
    values = {
        "serial_cti": [np.nan, 1e-6, -1e-6, 1e-6],
        "offset_amplitude": [1e-4, 1e-4, -1e-4, np.nan],
        "offset_decay": [3.0, np.nan, 3.0, 3.0],
    }
    found = registers(
        xr.Dataset({k: ("amplifier", v) for k, v in values.items()}, coords={"amplifier": names}), detector
    )
    assert not found.loss.any()
    assert not found.offset.any()
    assert (found.first == 5).all()
    row = np.random.default_rng(0).normal(100, 1000, 50).astype(np.float32)
    np.testing.assert_array_equal(restored(row, found.loss[0], 5, found.offset[0], found.fade[0]), row)


def test_the_law_run_forwards_is_undone():
    """A row of stars on sky, read out in double precision as SCIENCE's law says."""
    b, a, fade, first = 2e-6, 2e-3, 0.7, 11
    charge = np.random.default_rng(1).uniform(0, 1e5, 500) ** 2 / 1e5
    read, held, late = np.empty(500), 0.0, 0.0
    for x, s in enumerate(charge):
        packet = s * (1 - (first + x) * b) + late
        late = s * (first + x) * b
        held = max(a * packet / (1 - a), held * fade)  # of a packet without its own share
        read[x] = packet + held
    found = restored(read, b, first, a, fade) * (1 - a)
    bound = 1e5 * ((510 * b) ** 2 + 8 * ULP)
    assert np.abs(found - charge).max() < bound
    assert np.abs(read * (1 - a) - charge).max() > 100 * bound


def truths(site, detector):
    names = [a.name for a in detector.amplifiers]
    values = {
        name: ("amplifier", [making.true(site, detector, name, n) for n in names])
        for name in ("serial_cti", "offset_amplitude", "offset_decay")
    }
    return xr.Dataset(values, coords={"amplifier": names})


def calibrated(site, detector, charge, products):
    order = [site.camera.amplifier_names.index(a.name) for a in detector.amplifiers]
    raw = RawFrame("e1", detector, 1.0, making.read_late(site, detector, charge, 99)[order])
    return correct(raw, Site(site.camera.image_shape), products, IsrConfig(overscan=OverscanConfig(method="row"))).image


def edge(site, detector, level, last):
    """Charge (amplifier, y, x) of light that ends at a data column, and that column's number in the image."""
    charge = np.zeros((len(site.camera.amplifier_names), *site.camera.raw_shape), np.float32)
    box = detector.amplifiers[0].data
    charge[:, box.y0 : box.y1, box.x0 : box.x0 + last] = level
    return charge


def test_nothing_is_left_after_bright_pixels():
    """Deferral alone: what is left is the rounding to whole adu, of a pixel and of the level of its row."""
    site = making.late_site("mini9", 3, ("deferred",), **LARGE)
    detector = site.camera.detector("R22_S11")
    charge, own = edge(site, detector, 8e4, 30), truths(site, detector)
    found = calibrated(site, detector, charge, {"deferred": own})[:, :, 30:38]
    without = calibrated(site, detector, charge, {})[:, :, 30:38]
    assert np.abs(found).max() < ROUNDED + 8e4 * ((100 * 4e-6) ** 2 + 8 * ULP)  # and the second order of transfers
    assert np.abs(without[:, :, 0]).min() > 20 * ROUNDED
    lit = calibrated(site, detector, charge, {"deferred": own})[:, :, :30]
    share = own["offset_amplitude"].values[:, None, None]
    assert np.abs(lit * (1 - share) - 8e4).max() < ROUNDED + 8e4 * ((100 * 4e-6) ** 2 + 8 * ULP)


def test_what_flats_say_of_late_charge_removes_it():
    site = making.late_site("mini9", 5, **LARGE)
    detector = site.camera.detector("R22_S11")
    gain = true_gains(site, [detector.name]).isel(detector=0)
    results = dict(deferred_amplifiers(making.ladder(site, detector), detector, None, DeferredConfig(), {"gain": gain}))
    names = list(results)
    product = xr.concat(list(results.values()), "amplifier", combine_attrs="drop")
    product = product.assign_coords(amplifier=names)
    level = 5e4
    charge = edge(site, detector, level, 40)
    gain = gain.sel(amplifier=names)
    found, without = (
        calibrated(site, detector, charge, {"gain": gain, **more})[:, :, 40:44].mean(axis=1)
        for more in ({"deferred": product}, {})
    )
    rows, read = detector.amplifiers[0].data.shape[0], detector.amplifiers[0].read_noise * 1.1
    noise = read * np.sqrt((1 + 1 / 17) / rows)  # of the mean of a column, and of the levels of its rows
    late = level * product["offset_amplitude_error"].values + 64 * level * product["serial_cti_error"].values
    sigma = np.hypot(noise, late)[:, None]
    assert np.abs(found / sigma).max() < 4.5  # of 64 numbers
    assert (without[:, 0] > 5 * sigma[:, 0]).all()
    assert np.sqrt(np.mean((found / sigma) ** 2)) < 1.3


@pytest.mark.parametrize("order", ["lupton2016", "rubin"])
def test_deferral_is_undone_in_any_order(order):
    site = making.late_site("mini9", 3, ("deferred",), **LARGE)
    detector = site.camera.detector("R22_S11")
    charge = edge(site, detector, 8e4, 30)
    names = [a.name for a in detector.amplifiers]
    counts = making.read_late(site, detector, charge, 99)[[site.camera.amplifier_names.index(n) for n in names]]
    gain = xr.Dataset({"gain": ("amplifier", np.ones(len(names)))}, coords={"amplifier": names})
    config = IsrConfig(overscan=OverscanConfig(method="row"), order=order)
    frame = correct(
        RawFrame("e1", detector, 1.0, counts),
        Site(site.camera.image_shape),
        {"gain": gain, "deferred": truths(site, detector)},
        config,
    )
    assert np.abs(frame.image[:, :, 30:38]).max() < ROUNDED + 8e4 * ((100 * 4e-6) ** 2 + 8 * ULP)
