"""Coordinates: hand-computed pixels, and every function against its inverse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import (
    amplifier_to_ccd,
    ccd_to_amplifier,
    ccd_to_focal,
    field_to_focal,
    focal_to_ccd,
    focal_to_field,
)

CAMERA = load_camera("lsstcam")
ARCSEC = np.pi / 648000


def amplifier(detector, name):
    return next(a for a in CAMERA.detector(detector).amplifiers if a.name == name)


@pytest.mark.parametrize(
    ("detector", "name", "corner"),
    [  # the pixel read first lies at the outer end of its segment
        ("R22_S11", "C00", (0, 0)),
        ("R22_S11", "C10", (511, 4003)),
        ("R22_S11", "C17", (4095, 4003)),
        ("R01_S00", "C00", (508, 0)),
        ("R01_S00", "C10", (508, 3999)),
        ("R44_SW0", "C17", (508, 1999)),
    ],
)
def test_first_pixel(detector, name, corner):
    assert amplifier_to_ccd(amplifier(detector, name), 0, 0) == corner


def test_focal_plane_by_hand():
    x, y = ccd_to_focal(CAMERA.detector("R22_S11"), 2047.5, 2001.5)
    assert (x, y) == (0.0, 0.0)
    x, y = ccd_to_focal(CAMERA.detector("R44_SG0"), 0, 0)  # turned by 270: (u, v) -> (v, -u)
    assert (x, y) == pytest.approx((212.24 - 19.995, 258.74 + 20.355), abs=1e-12)


def test_field_angle_by_hand():
    x, y = focal_to_field(CAMERA, 0.0, 100.0)
    r = 100 - 8.33713991e-09 * 1e6 - 1.41389858e-15 * 1e10
    assert (x, y) == pytest.approx((0.0, 20.005867576692737 * ARCSEC * r), rel=1e-14)
    assert focal_to_field(load_camera("latiss"), 1.0, 0.0)[0] == pytest.approx(-9.5695 * ARCSEC, rel=1e-14)


pixel = st.integers(-100, 5000)
place = st.floats(-350, 350)


@given(which=st.integers(0, 15), name=st.sampled_from(["R22_S11", "R01_S00"]), x=pixel, y=pixel)
def test_amplifier_inverse(which, name, x, y):
    a = CAMERA.detector(name).amplifiers[which]
    assert ccd_to_amplifier(a, *amplifier_to_ccd(a, x, y)) == (x, y)


@given(which=st.integers(0, 204), x=pixel, y=pixel, yaw=st.none() | st.floats(-360, 360))
def test_focal_inverse(which, x, y, yaw):
    d = CAMERA.detectors[which]
    d = d if yaw is None else replace(d, yaw_deg=yaw)
    # 500 mm to 16 digits is 6e-14 mm, 6e-12 pixels
    assert focal_to_ccd(d, *ccd_to_focal(d, x, y)) == pytest.approx((x, y), abs=1e-10)


@settings(max_examples=60)
@given(st.lists(st.tuples(place, place), min_size=1, max_size=5), st.sampled_from(["lsstcam", "latiss"]))
def test_field_inverse(points, name):
    camera = load_camera(name)
    x, y = np.array(points).T
    back = field_to_focal(camera, *focal_to_field(camera, x, y))
    np.testing.assert_allclose(back, (x, y), rtol=1e-12, atol=1e-12)


def test_scalars_and_nan():
    x, y = field_to_focal(CAMERA, 0.0, 0.0)
    assert (x, y) == (0.0, 0.0)
    assert np.isnan(field_to_focal(CAMERA, np.array([np.nan, 0.0]), np.zeros(2))[0][0])


def test_no_inverse():
    folded = replace(CAMERA, radial=(0.0, 1.0, 0.0, -1e-5))  # turns back at 183 mm
    with pytest.raises(CalibrationError, match=r"LSSTCam: no focal plane position at 1\.11 degrees"):
        field_to_focal(folded, np.array([0.0, 200 * 20.0058675 * ARCSEC]), np.zeros(2))
