"""The orders of corrections, compared by hand and on a frame of a store."""

import shutil

import numpy as np
import pytest
from making import small_day

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import Entries
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.sequence import IsrConfig
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.orders import compare_orders, crosstalk_of_bright, order_differences
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.variables import MASK_BITS

CCD = load_camera("mini1").detectors[0]


def test_differences_by_hand():
    """Means over pixels that neither order masks; of an amplifier without any there is none."""
    shape = (4, 64, 64)
    plain, mask = np.full(shape, 100, np.float32), np.zeros(shape, np.uint16)
    mask[3] = MASK_BITS["NO_DATA"]
    first = Frame("e", CCD, plain, plain, np.zeros(shape[:2], np.float32), mask, "electron")
    image, odd = plain + 1, mask.copy()
    image[0, 0, 0], odd[0, 0, 0] = 1e6, MASK_BITS["BAD"]
    frames = {"lupton2016": first, "physical": first, "rubin": first.with_(image=image, mask=odd)}
    found = compare_orders(frames)
    names = [a.name for a in CCD.amplifiers]
    assert found[names[0]]["order_rubin"] == pytest.approx(0.01)
    assert found[names[0]]["order_rubin_variance"] == 0
    assert found[names[0]]["order_physical"] == 0
    assert np.isnan(found[names[3]]["order_rubin"])


def test_a_frame_in_every_order(ingested, tmp_path, threads):
    """Orders are data; without curves and crosstalk they differ by rounding."""
    shutil.copytree(ingested.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert not [e for _, one in build(store, ["bias"], Config(), threads) for e in one.errors]
    skip = ["gain", "dark"]
    ((_, one),) = calibrate(store, [small_day()[-1].name], IsrConfig(), threads, skip=skip)
    assert not one.errors
    found = order_differences(store.url, one.pointer, store.camera.detectors[0])
    for values in found.values():
        assert set(values) == {f"order_{o}{e}" for o in ("physical", "rubin") for e in ("", "_variance")}
        assert values["order_physical"] == values["order_physical_variance"] == 0
        assert 0 <= values["order_rubin"] < 1e-6
        assert 0 <= values["order_rubin_variance"] < 1e-6


def test_bright_sources_check_the_crosstalk_of_a_frame_with_sky():
    """A trail of 80 ke- on 900 electrons of sky: coefficients twice too large are many sigma off, right ones are not.

    An amplifier is dead. The error of the slope is 30 electrons of sky over 24 electrons in 3 x 60 pixels: 0.1.
    """
    random = np.random.default_rng(2)
    image = random.normal(900, 30, (5, 128, 64))
    image[0, 30:90, 40] += 8e4
    t, s = np.nonzero(~np.eye(5, dtype=bool))
    zero = np.zeros(len(t), np.float32)
    signal, c = image - 900, np.full(len(t), 3e-4, np.float32)
    for i, j, value in zip(t, s, c, strict=True):
        image[i] += value * signal[j]
    image[4] = np.nan
    right = crosstalk_of_bright(image, Entries(t, s, c, zero), 1e5)
    wrong = crosstalk_of_bright(image, Entries(t, s, 2 * c, zero), 1e5)
    assert abs(right) < 4
    assert wrong < -6
    assert np.isnan(crosstalk_of_bright(image[:, 95:], Entries(t, s, c, zero), 1e5))
