"""Darks with light or old charge in them: planes and series by hand, and stacks of the small day spoilt."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.dark import DarkConfig, dark_amplifiers
from lsstcal_dask.products.leaks import drift, leak_remarks, slope
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.storage.raw import open_raw


def test_a_plane_by_hand():
    y, x = np.mgrid[:64, :32] / np.array([64, 32])[:, None, None]
    image = 5 + 3 * x - 4 * y
    image[3, 5] = np.nan
    image[40, 20] = 1e4
    across, error = slope(image)
    assert across == pytest.approx(5 * 8 / 8, rel=0.15)  # medians of blocks lie within the image
    assert error < 0.05
    flat, error = slope(np.random.default_rng(1).normal(0, 1, (64, 64)))
    assert flat < 5 * error
    assert np.isnan(slope(np.full((8, 8), np.nan))[0])


def test_a_series_by_hand():
    size, error, order = drift(np.array([0.0, 1.0, 2.0, 3.0]), np.full(4, 0.1))
    assert (size, order) == (pytest.approx(3), 1)
    assert error == pytest.approx(0.1 / np.sqrt(np.sum(np.linspace(-0.5, 0.5, 4) ** 2)))
    assert drift(np.array([1.0, 0.0, 1.0, 0.0]), np.full(4, 0.1))[2] == pytest.approx(-2 / 6)
    assert np.isnan(drift(np.array([1.0, np.nan, 2.0, 3.0]), np.ones(4))[0])


def test_noise_raises_no_remark():
    """5 sigma and half the rate: a false alarm is one in a million amplifiers, and these are a hundred."""
    random = np.random.default_rng(2)
    for _ in range(100):
        rate, level = random.normal(0.025, 0.02, (64, 64)), random.normal(0, 1e-3, 6)
        assert leak_remarks(rate, level, np.full(6, 1e-3))[0] == []


@pytest.fixture(scope="module")
def darks(ingested):
    raw = open_raw(ingested.url, ingested.camera, exposure_type="dark").isel(detector=0).load()
    order = list(ingested.camera.amplifier_names)
    gain = xr.Dataset({"gain": ("amplifier", np.full(4, 1.5))}, {"amplifier": order})
    biases = open_raw(ingested.url, ingested.camera, exposure_type="bias").isel(detector=0).load()
    (detector,) = ingested.camera.detectors
    made = dict(bias_amplifiers(biases, detector, ingested.camera.image_shape, StackConfig()))
    bias = xr.concat([made[name] for name in order], "amplifier").assign_coords(amplifier=order)
    return raw, ingested.camera, {"gain": gain, "bias": bias}


def remarks(darks, light):
    """Remarks on the dark with ``light`` (exposure, y, x), adu, on the light-sensitive pixels of all amplifiers."""
    raw, camera, products = darks
    counts, (detector,) = raw["counts"].astype(np.int32), camera.detectors
    box = detector.amplifiers[0].data.slices
    counts.values[(slice(None), slice(None), *box)] += np.round(light).astype(np.int32)[:, None]
    made = dark_amplifiers(raw.assign(counts=counts), detector, camera.image_shape, DarkConfig(), products)
    return {name: one.attrs["remarks"] for name, one in made}


@pytest.mark.parametrize("top", [24, 400])
def test_light_that_leaks_into_every_dark(darks, top):
    shape = (4, 64, 64)
    assert not any(remarks(darks, np.zeros(shape)).values())
    found = remarks(darks, np.broadcast_to(np.linspace(0, top, 64), shape))
    for texts in found.values():
        assert any("from side to side" in text and "light leaks in?" in text for text in texts)


@pytest.mark.parametrize("first", [12, 200])
def test_charge_of_the_exposure_before(darks, first):
    decay = first * np.exp(-np.arange(4) / 2)
    found = remarks(darks, np.broadcast_to(decay[:, None, None], (4, 64, 64)))
    for texts in found.values():
        assert any("its rate falls by" in text for text in texts)


def test_a_glow_of_a_corner_is_named(darks):
    """Light of an output transistor, which falls off within twenty pixels of it, in every dark alike."""
    y, x = np.mgrid[:64, :64]
    glow = 600 * np.exp(-np.hypot(y, x) / 20)
    found = remarks(darks, np.broadcast_to(glow, (4, 64, 64)))
    for texts in found.values():
        assert any("from side to side" in text for text in texts)
        assert not any("its rate falls" in text or "its rate rises" in text for text in texts)
