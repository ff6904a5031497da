"""Trimming, assembling and mosaics: hand-placed pixels, inverses, laziness."""

from dataclasses import replace
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import (
    assemble,
    bin_ccd,
    load_camera,
    mosaic,
    no_data,
    read_frame,
    split,
    trim,
)
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.variables import MASK_BITS

MINI9 = load_camera("mini9")
E2V, ITL = MINI9.detector("R22_S00"), MINI9.detector("R22_S01")


def random_raw(seed=0, lead=()):
    return np.random.default_rng(seed).integers(0, 2**17, (*lead, 16, *MINI9.raw_shape), dtype=np.int32)


def refuse(*_args, **_kwargs):
    raise AssertionError("computed while the graph was built")


@pytest.mark.parametrize("detector", [E2V, ITL])
def test_every_amplifier_where_geometry_says(detector):
    """A pixel of each amplifier, by its raw coordinates, turns up at its CCD pixel."""
    raw = np.zeros((16, *MINI9.raw_shape), np.int32)
    names = list(MINI9.amplifier_names)
    for k, a in enumerate(detector.amplifiers):
        raw[names.index(a.name), a.data.y0 + 5, a.data.x0 + 2] = k + 1
    ccd = assemble(trim(raw, detector, MINI9), detector, MINI9)
    assert ccd.shape == detector.shape
    for k, a in enumerate(detector.amplifiers):
        x, y = amplifier_to_ccd(a, 2, 5)
        assert ccd[y, x] == k + 1
    assert np.count_nonzero(ccd) == 16


def test_padding():
    mask = no_data(ITL, MINI9)
    assert mask.dtype == np.uint8
    assert (mask[:, :126, :62] == 0).all()
    assert (mask[:, 126:] == MASK_BITS["NO_DATA"]).all()
    assert (mask[:, :, 62:] == MASK_BITS["NO_DATA"]).all()
    image = trim(random_raw() + 1, ITL, MINI9)
    assert (image[mask > 0] == 0).all()
    assert (image[mask == 0] > 0).all()
    wavefront = load_camera("lsstcam").detector("R00_SW0")
    flagged = no_data(wavefront, load_camera("lsstcam")).all(axis=(1, 2))
    assert flagged.tolist() == [False] * 8 + [True] * 8  # C00 to C07 do not exist


@given(seed=st.integers(0, 99), name=st.sampled_from([d.name for d in MINI9.detectors]))
@settings(max_examples=10, deadline=None)
def test_split_undoes_assemble(seed, name):
    detector = MINI9.detector(name)
    image = trim(random_raw(seed), detector, MINI9).astype(np.float32)
    ccd = assemble(image, detector, MINI9)
    assert np.isfinite(ccd).all()
    np.testing.assert_array_equal(split(ccd, detector, MINI9, fill=0), image)
    assert np.isnan(split(ccd, ITL, MINI9)[:, 126:]).all() if detector.shape == ITL.shape else True


@given(
    amplifiers=st.lists(st.integers(1, 15), max_size=3, unique=True).map(sorted),
    exposures=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=8, deadline=None)
def test_any_chunking_equals_numpy(amplifiers, exposures):
    raw = random_raw(lead=(3,))
    edges = [0, *amplifiers, 16]
    chunks = (exposures, tuple(b - a for a, b in pairwise(edges)), -1, -1)
    lazy = xr.DataArray(
        da.from_array(raw, chunks),
        dims=("exposure", "amplifier", "y", "x"),
        coords={"exposure": ["a", "b", "c"], "amplifier": list(MINI9.amplifier_names)},
        attrs={"units": "adu"},
    )
    with dask.config.set(scheduler=refuse):
        image = trim(lazy, ITL, MINI9)
        ccd = assemble(image, ITL, MINI9)
        back = split(ccd, ITL, MINI9)
    expected = trim(raw, ITL, MINI9)
    assert image.chunks[:2] == lazy.chunks[:2]
    assert (image.dtype, ccd.dtype, ccd.attrs, ccd.dims) == (
        raw.dtype,
        raw.dtype,
        {"units": "adu"},
        ("exposure", "y", "x"),
    )
    assert list(back.exposure.values) == ["a", "b", "c"]
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(ccd, assemble(expected, ITL, MINI9))
    np.testing.assert_array_equal(back, expected)


def test_missing_amplifiers():
    some = xr.DataArray(
        np.ones((1, *MINI9.image_shape), np.float32),
        dims=("amplifier", "y", "x"),
        coords={"amplifier": ["C00"]},
    )
    ccd = assemble(some, E2V, MINI9)
    assert np.isfinite(ccd.values[:128, :64]).all()
    assert np.isfinite(ccd.values).sum() == 128 * 64
    assert (assemble(some, E2V, MINI9, fill=7).values[128:] == 7).all()
    assert (assemble(some.values.astype(int), E2V, MINI9, amplifiers=["C00"])[128:] == 0).all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: trim(random_raw()[:3], E2V, MINI9), "3 amplifiers, but 16 names"),
        (lambda: trim(random_raw()[:1], E2V, MINI9, ["Z9"]), "mini9 has no amplifier Z9: use C10"),
        (lambda: trim(random_raw()[..., 1:], E2V, MINI9), r"R22_S00: raw amplifier is .*\(136, 87\)"),
        (
            lambda: trim(da.from_array(random_raw(), (1, 68, 88)), E2V, MINI9),
            "R22_S00.*split into chunks: rechunk",
        ),
        (lambda: trim(xr.DataArray(random_raw(), dims=("amplifier", "x", "y")), E2V, MINI9), "transpose"),
        (lambda: assemble(random_raw(), E2V, MINI9), "R22_S00: amplifier image"),
        (lambda: split(np.zeros((3, 3)), E2V, MINI9), "R22_S00: CCD image"),
    ],
)
def test_wrong_arrays(call, told):
    with pytest.raises(InconsistentGeometry, match=told):
        call()


def test_bin_by_hand():
    ccd = np.array([[1, 2, 10], [3, np.nan, 20], [np.nan, np.nan, 7]])
    np.testing.assert_array_equal(bin_ccd(ccd, 2), [[2, 15], [np.nan, 7]])


@pytest.mark.parametrize("yaw", [0.0, 90.0, 180.0, 270.0])
def test_mosaic_follows_the_focal_plane(yaw):
    """The brightest pixel of a turned CCD lies where `ccd_to_focal` puts it."""
    turned = replace(MINI9.detectors[0], yaw_deg=yaw, center_mm=(-20.0, 3.0))
    camera = replace(MINI9, detectors=(turned, *MINI9.detectors[1:]))
    ccd = np.zeros(turned.shape)
    ccd[8:16, 40:48] = 1.0
    plane, (left, right, bottom, top) = mosaic({turned.name: bin_ccd(ccd, 8)}, camera, 8)
    assert (right - left) / plane.shape[1] == pytest.approx(0.08)
    assert (top - bottom) / plane.shape[0] == pytest.approx(0.08)
    assert np.isfinite(plane).sum() == ccd.size / 64
    y, x = np.argwhere(plane == 1)[0]
    expected = ccd_to_focal(turned, 43.5, 11.5)
    # placed to the nearest binned pixel
    assert (left + (x + 0.5) * 0.08, bottom + (y + 0.5) * 0.08) == pytest.approx(expected, abs=0.0401)


def test_mosaic_refuses():
    image = {E2V.name: bin_ccd(np.zeros(E2V.shape), 4)}
    with pytest.raises(InconsistentGeometry, match="mini9 has no detector Q"):
        mosaic({"Q": np.zeros((2, 2))}, MINI9, 4)
    with pytest.raises(InconsistentGeometry, match=r"R22_S00: image is \(64, 128\), binned by 8 it must be \(32, 64\)"):
        mosaic(image, MINI9, 8)
    skew = replace(MINI9, detectors=(replace(E2V, yaw_deg=10.0),))
    with pytest.raises(InconsistentGeometry, match=r"R22_S00: yaw 10\.0 is no multiple of 90"):
        mosaic(image, skew, 4)
    mixed = replace(MINI9, detectors=(E2V, replace(ITL, pixel_mm=0.02)))
    with pytest.raises(InconsistentGeometry, match=r"mini9: pixels of \[0.01, 0.02\] mm"):
        mosaic(image, mixed, 4)


@pytest.mark.real
@pytest.mark.parametrize("vendor", ["e2v", "itl"])
def test_real_spot(real_data, vendor):
    """Rubin's own software assembled the same raw: equal pixel for pixel."""
    camera = load_camera("lsstcam")
    frame = read_frame(real_data / "lsst_raw" / f"{vendor}_spot.fits.gz", camera)
    detector = camera.detector(frame.detector)
    assert detector.vendor.lower() == vendor
    expected = fits.getdata(real_data / "lsst_raw" / f"{vendor}_expected_assembled.fits.gz")
    np.testing.assert_array_equal(assemble(trim(frame.counts, detector, camera), detector, camera), expected)
    assert expected.any()
