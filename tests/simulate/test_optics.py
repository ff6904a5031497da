"""Throughput, vignetting and pupil against hand calculations and the tables they describe."""

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import focal_to_field
from lsstcal_dask.simulate.optics import (
    EDGE,
    OBSCURATION,
    PUPIL_RADIUS,
    Mirrors,
    Vignetting,
    admitted,
    disc_in_annulus,
    edge_mm,
    effective_area,
    field_radius,
    incidence,
    mirrors,
    pupil_rays,
    vignetting,
    waves,
)
from lsstcal_dask.simulate.random import stream


@pytest.fixture(scope="module")
def lsstcam():
    return load_camera("lsstcam")


def test_the_field_of_lsstcam_is_its_own(lsstcam):
    x, y = np.array([0.0, 100.0, -300.0]), np.array([0.0, -50.0, 20.0])
    np.testing.assert_allclose(field_radius(lsstcam, x, y), np.rad2deg(focal_to_field(lsstcam, x, y)), rtol=1e-14)
    assert edge_mm(lsstcam) == pytest.approx(315.2, abs=0.1)  # 6300 arcsec at 20.006 arcsec/mm, less 0.08 % distortion


@pytest.mark.parametrize("name", ["mini1", "mini9", "esis"])
def test_the_farthest_corner_of_a_small_camera_is_at_the_edge(name):
    camera = load_camera(name)
    corners = [
        np.hypot(abs(d.center_mm[0]) + d.shape[1] * d.pixel_mm / 2, abs(d.center_mm[1]) + d.shape[0] * d.pixel_mm / 2)
        for d in camera.detectors  # none of them is turned
    ]
    assert edge_mm(camera) == pytest.approx(max(corners), rel=1e-9)
    assert np.hypot(*field_radius(camera, 0.0, max(corners))) == pytest.approx(EDGE, rel=1e-9)


def test_area_of_the_pupil():
    assert effective_area() == pytest.approx(np.pi * (4.18**2 - 2.5498**2))


def test_mirrors():
    w = np.array([300.0, 633.0, 1150.0])
    assert np.all(mirrors(Mirrors(), [345, 500, 800, 1000]) > 0.25)
    assert mirrors(Mirrors(), 310.0) < 0.01
    # 633 nm by hand: silver 0.9494 - 0.0870 (400/633)**6.61 = 0.9452, cubed 0.8445; lenses 0.8563 (1 + 0.0083 cos(2 pi
    # 1.1333)) = 0.8611
    assert mirrors(Mirrors(), 633.0) == pytest.approx(0.8445 * 0.8611, abs=2e-4)
    np.testing.assert_allclose(mirrors(Mirrors(gray=0.9), w), 0.9 * mirrors(Mirrors(), w))
    np.testing.assert_array_equal(mirrors(Mirrors(on=False, gray=0.9), w), np.ones(3))


@pytest.mark.real
def test_mirrors_against_the_tables(real_data):
    names = ("m1", "m2", "m3", "lens1", "lens2", "lens3")
    tables = [np.loadtxt(real_data / "throughputs" / f"{name}.dat", unpack=True) for name in names]
    w = np.arange(305.0, 1095.0)
    product = np.prod([np.interp(w, *table) for table in tables], axis=0)
    assert np.sqrt(np.mean((mirrors(Mirrors(), w) - product) ** 2)) < 0.01  # 0.0084


def test_vignetting_falls_from_the_axis_and_agrees_with_published_values(lsstcam):
    settings = Vignetting()
    r = np.linspace(0, 369, 200)
    light = vignetting(settings, lsstcam, r, 0 * r)
    assert light[0] == 1
    assert np.all(np.diff(light) < 0)
    # imSim's fit of ray-traced fluxes at 100, 200, 280, 320 and 350 mm; this description is within 0.006 rms of it
    places = np.array([100.0, 200.0, 280.0, 320.0, 350.0])
    published = [0.998, 0.986, 0.946, 0.848, 0.501]
    np.testing.assert_allclose(vignetting(settings, lsstcam, 0 * places, -places), published, atol=0.03)
    small = load_camera("mini9")
    np.testing.assert_allclose(
        vignetting(settings, small, edge_mm(small), 0.0), vignetting(settings, lsstcam, edge_mm(lsstcam), 0.0)
    )


def test_a_straight_stop_through_the_middle_hides_half_the_pupil(lsstcam):
    stops = Vignetting(radius=(1e4, 1e6), walk=(1e4, 0.0), blur=(1e-3, 1.0))
    x = float(np.interp(1.0, np.hypot(*field_radius(lsstcam, np.arange(300.0), 0.0)), np.arange(300.0)))
    assert vignetting(stops, lsstcam, x, 0.0) == pytest.approx(0.5, abs=0.02)
    assert admitted(stops, lsstcam, x, 0.0, 3.0, 0.0) == pytest.approx(1)
    assert admitted(stops, lsstcam, x, 0.0, -3.0, 0.0) == pytest.approx(0)


def test_vignetting_is_the_average_of_its_rays(lsstcam):
    X, Y, weight = pupil_rays(300)
    for x, y in ((0.0, 0.0), (200.0, -150.0), (330.0, 90.0)):
        light, axis = (np.sum(weight * admitted(Vignetting(), lsstcam, *p, X, Y)) for p in ((x, y), (0.0, 0.0)))
        assert light / axis == pytest.approx(float(vignetting(Vignetting(), lsstcam, x, y)), abs=2e-5)


def test_vignetting_switched_off(lsstcam):
    off = Vignetting(on=False)
    np.testing.assert_array_equal(vignetting(off, lsstcam, np.array([0.0, 360.0]), 0.0), [1, 1])
    np.testing.assert_array_equal(admitted(off, lsstcam, 360.0, 0.0, np.array([0.0, -4.0]), 0.0), [1, 1])
    with pytest.raises(ValidationError, match="greater than 0"):
        Vignetting(blur=(0.0, 1.0))


def test_angles_at_the_filter(lsstcam):
    assert incidence(lsstcam, 0, 0, PUPIL_RADIUS, 0) == pytest.approx(23.6)
    assert incidence(lsstcam, 300, 0, 0, -PUPIL_RADIUS * OBSCURATION) == pytest.approx(14.2, abs=0.1)
    # Abbe's condition: the sine of the marginal ray of an f/1.23 beam is 1 / 2.46
    assert np.sin(np.deg2rad(incidence(lsstcam, 0, 0, 0, PUPIL_RADIUS))) == pytest.approx(1 / 2.46, rel=0.02)


@pytest.mark.parametrize("n", [12, 27, 48, 100])
def test_rays_average_over_the_pupil(n):
    X, Y, weight = pupil_rays(n)
    assert len(X) <= n
    assert weight.sum() == pytest.approx(1)
    assert np.sum(weight * X) == pytest.approx(0, abs=1e-12)
    # of an annulus: mean of r**2 and of r**4
    low, high = (PUPIL_RADIUS * OBSCURATION) ** 2, PUPIL_RADIUS**2
    assert np.sum(weight * (X**2 + Y**2)) == pytest.approx((low + high) / 2)
    assert np.sum(weight * (X**2 + Y**2) ** 2) == pytest.approx((high**3 - low**3) / (3 * (high - low)))
    assert np.sum(weight * X**2) == pytest.approx((low + high) / 4)


def test_too_few_rays():
    with pytest.raises(WrongUse, match="3 rays"):
        pupil_rays(3)


def test_area_of_a_disc_in_an_annulus():
    assert disc_in_annulus(0.0, 0.5, 0.61, 1.0) == 0
    assert disc_in_annulus(0.8, 0.1, 0.61, 1.0) == pytest.approx(1)
    assert disc_in_annulus(0.0, 2.0, 0.6, 1.0) == pytest.approx((1 - 0.36) / 4)
    assert disc_in_annulus(3.0, 1.0, 0.6, 1.0) == pytest.approx(0, abs=1e-15)
    assert disc_in_annulus(1e3, 0.5, 0.0, 1e3) == pytest.approx(0.5, abs=1e-3)  # an edge that is almost straight
    grid = np.linspace(-1, 1, 2001)
    x, y = np.meshgrid(grid * 0.3 + 0.7, grid * 0.3)
    inside = np.hypot(x - 0.7, y) < 0.3
    counted = np.mean((np.hypot(x, y)[inside] > 0.61) & (np.hypot(x, y)[inside] < 0.9))
    assert disc_in_annulus(0.7, 0.3, 0.61, 0.9) == pytest.approx(counted, abs=1e-3)


def test_waves_have_unit_variance_and_no_sharp_features():
    at = np.linspace(-1, 1, 5)
    fields = np.array([waves(stream(seed, "test"), at, 0 * at, 6, 1.0) for seed in range(400)])
    np.testing.assert_allclose(fields.var(axis=0), 1, atol=5 * np.sqrt(2 / 400))
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=5 / np.sqrt(400))
    fine = np.linspace(-1, 1, 2001)
    one = waves(stream(1, "test"), fine, 0 * fine, 6, 1.0)
    assert np.abs(np.diff(one)).max() / 1e-3 <= 2 * np.pi * np.sqrt(2 * 6)
    np.testing.assert_array_equal(one, waves(stream(1, "test"), fine, 0 * fine, 6, 1.0))


def test_disc_in_annulus_closed_forms():
    np.testing.assert_allclose(disc_in_annulus([3.0, 0.0, 9.0], 0.5, 2.0, 4.0), [1, 0, 0], atol=1e-15)
    # two unit circles, one radius apart; no hole in the middle
    assert disc_in_annulus(1.0, 1.0, 0.0, 1.0) == pytest.approx(2 / 3 - np.sqrt(3) / 2 / np.pi, rel=1e-12)
    # the disc covers the annulus
    assert disc_in_annulus(0.0, 5.0, 2.0, 4.0) == pytest.approx((16 - 4) / 25, rel=1e-12)
    # an edge so much flatter than the disc that it is a chord through its centre, but for R / 3 pi of curvature
    assert disc_in_annulus(1e4, 1.0, 0.0, 1e4) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("distance", [2.5, 2.7, 4.1, 4.25])
def test_disc_in_annulus_against_random_points(distance):
    n, rng = 200_000, np.random.default_rng(5)
    r, phi = 0.12 * np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
    at = np.hypot(distance + r * np.cos(phi), r * np.sin(phi))
    found, exact = np.mean((at > 2.558) & (at < 4.18)), float(disc_in_annulus(distance, 0.12, 2.558, 4.18))
    assert abs(found - exact) <= 5 * np.sqrt(exact * (1 - exact) / n)
