import numpy as np
import pytest
from scipy.special import chndtr

from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal, focal_to_field
from lsstcal_dask.simulate.exposure import Exposure, Projection
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre
from lsstcal_dask.simulate.masks import mask
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.projector import Projector, illumination, transmission
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spots import _profile, beams, blur_px, disc_light, wing_px
from lsstcal_dask.simulate.spots import spot_light as focused
from lsstcal_dask.simulate.spots import spot_table as table

PERFECT = Projector(on=False)
BLURRED = Projector(diffraction=0, blur=1.5)
LSST, MINI, ONE = (load_camera(name) for name in ("lsstcam", "mini9", "mini1"))


def taken(number=1, **asked):
    known = {"mask": "grid", "wavelength": 700.0, "bandwidth": 1.0, "azimuth": 0.0, "elevation": 0.0, "rotation": 0.0}
    source = Projection(**{**known, "footprint": (3.4, 0.0), "rate": 1e6, **asked})
    return Exposure(f"e{number}", number, "cbp", np.datetime64("2026-07-01"), 10.0, 10.0, source=source)


def at(camera, x_mm, y_mm, **asked):
    """The single spot sent to a place of the focal plane."""
    u, v = np.rad2deg(focal_to_field(camera, x_mm, y_mm))
    return taken(mask="single", azimuth=float(u), elevation=float(v), **asked)


def site(seed, settings, camera):
    """With the lasers of a real projector, and a steady one for a perfect one."""
    lasers = ["laser", "lamp_drift"] if settings.on else []
    return Observatory(seed, camera, Settings(projector=settings).only([*lasers, *["projector"] * settings.on]))


def spot_table(seed, settings, camera, exposure):
    return table(site(seed, settings, camera), exposure)


def spot_light(seed, settings, camera, detector, exposure, response_at=None):
    spots = beams(site(seed, settings, camera), exposure)
    return focused(settings, camera, detector, spots, response_at)


def total(image):
    return image.sum(dtype=np.float64)


def test_a_spot_lands_on_the_pixel_it_is_sent_to():
    spot = spot_table(1, PERFECT, MINI, at(MINI, 5.4 + 0.3, -2.8 - 0.2))[0]
    assert spot["detector"] == "R22_S02"
    np.testing.assert_allclose([spot["x"], spot["y"]], [255.5 + 30, 127.5 - 20], atol=1e-6)
    image = spot_light(1, PERFECT, MINI, MINI.detector("R22_S02"), at(MINI, 5.4 + 0.3, -2.8 - 0.2))
    y, x = np.mgrid[:256, :512]
    np.testing.assert_allclose([total(image * x), total(image * y)] / total(image), [285.5, 107.5], atol=1e-3)


def test_a_pattern_turned_by_90_degrees_is_seen_turned():
    asked = {"mask": "grid", "elevation": 0.0}
    straight, turned = spot_table(1, PERFECT, ONE, taken(**asked)), spot_table(1, PERFECT, ONE, taken(rotation=90.0))
    np.testing.assert_allclose(turned["x_mm"], -straight["y_mm"], atol=1e-12)
    np.testing.assert_allclose(turned["y_mm"], straight["x_mm"], atol=1e-12)


def test_a_hole_of_100_um_makes_a_spot_of_165_px():
    spot = spot_table(1, PERFECT, LSST, at(LSST, 0.0, 0.0))[0]
    um = mask(1, PERFECT, LSST, "single").diameter_um[0]
    assert 2 * spot["radius"] * 100 / um == pytest.approx(165.0, rel=1e-3)


def test_spots_grow_with_the_local_plate_scale():
    """Area of a hole's image: dr / dr_mask along the radius times r / r_mask across it, r from the radial curve."""
    spots, holes = (
        spot_table(1, PERFECT, LSST, taken()),
        mask(1, PERFECT, LSST, "grid"),
    )
    r = np.hypot(spots["x_mm"], spots["y_mm"])
    curve = np.polynomial.Polynomial(LSST.radial) * np.deg2rad(LSST.plate_scale / 3600)
    angle = curve(r)
    place = 625 * np.tan(angle)
    area = (1 + np.tan(angle) ** 2) * 625 * curve.deriv()(r) * place / r  # of the mask, per area of the camera
    expected = holes.diameter_um / 2e3 / np.sqrt(area) / 0.01
    np.testing.assert_allclose(spots["radius"], expected, rtol=1e-6)
    assert np.ptp(expected) > 0.05


def test_photons_are_the_product_of_what_makes_them():
    settings, exposure = Projector(), taken(footprint=(4.15, 0.0))
    spots, holes = spot_table(2, settings, MINI, exposure), mask(2, settings, MINI, "grid")
    s = site(2, settings, MINI).settings
    nm = laser_centre(2, s.laser, exposure)
    lossless = 1e6 * lamp_brightness(2, s.lamp_drift, exposure) * transmission(2, settings, nm)
    expected = lossless * holes.area * illumination(settings, MINI, holes.x_mm, holes.y_mm) * spots["passed"]
    np.testing.assert_allclose(spots["photons"], expected, rtol=1e-12)
    assert np.all((spots["passed"] > 0.5) & (spots["passed"] < 0.9))  # the beam hangs over the edge at 4.18 m
    np.testing.assert_allclose(spots["wavelength"], nm)
    # the larger of two holes makes the larger spot, of the same surface brightness
    ideal = spot_table(2, PERFECT, MINI, exposure)
    np.testing.assert_allclose((spots["radius"] / ideal["radius"]) ** 2, holes.area, rtol=2e-3)


def test_a_perfect_projector_makes_equal_spots():
    spots = spot_table(1, PERFECT, MINI, taken())
    np.testing.assert_array_equal(spots["photons"], 1e6)
    assert np.ptp(spot_table(1, Projector(), MINI, taken())["photons"]) > 1e4
    assert np.all(spots["detector"] != "")


@pytest.mark.parametrize("settings", [PERFECT, BLURRED], ids=["sharp", "blurred"])
def test_light_of_a_spot_is_conserved_wherever_in_a_pixel_it_lies(settings):
    rng = np.random.default_rng(3)
    settings = settings if not settings.on else settings.model_copy(update={"pointing_jitter": 0.0})
    for dx, dy in rng.uniform(-0.005, 0.005, (5, 2)):
        exposure = at(ONE, dx, dy)
        photons = spot_table(1, settings, ONE, exposure)["photons"][0]
        image = spot_light(1, settings, ONE, ONE.detectors[0], exposure)
        assert total(image) == pytest.approx(photons, rel=1e-6)


def test_response_weighs_the_light_pixel_by_pixel():
    """A disc that is symmetric about its centre takes the value of a plane there."""
    detector, exposure = ONE.detectors[0], at(ONE, 0.003, -0.002)
    seen = []

    def plane(y0, y1, x0, x1, spot):
        seen.append((spot["wavelength"], spot["footprint_x"], spot["x"]))
        return 0.5 + 1e-3 * np.arange(x0, x1) + 2e-3 * np.arange(y0, y1)[:, None]

    image = spot_light(1, PERFECT, ONE, detector, exposure, plane)
    assert total(image) == pytest.approx(1e6 * (0.5 + 1e-3 * 63.8 + 2e-3 * 63.3), rel=1e-6)
    np.testing.assert_allclose(seen, [(700.0, 3.4, 63.8)], rtol=1e-9)


def test_a_disc_with_a_gaussian_edge_is_the_noncentral_chi_square():
    for radius, sigma in (2.0, 1.0), (10.0, 0.25), (20.0, 2.0):
        values, start, step = _profile(radius, sigma)
        r = start + step * np.arange(len(values))
        exact = chndtr((radius / sigma) ** 2, 2, (r / sigma) ** 2)
        np.testing.assert_allclose(values, exact, atol=1e-7)


def test_surface_brightness_and_second_moment_of_a_spot():
    """Blur adds its variance, a pixel 1/12 in each coordinate; the disc itself has a quarter of its radius squared."""
    settings = BLURRED.model_copy(update={"pointing_jitter": 0.0})
    exposure = at(ONE, 0.0, 0.0)
    spot = spot_table(1, settings, ONE, exposure)[0]
    image = spot_light(1, settings, ONE, ONE.detectors[0], exposure).astype(float)
    assert image.max() == pytest.approx(spot["photons"] / (np.pi * spot["radius"] ** 2), rel=1e-6)
    offset = np.arange(128) - 63.5
    moment = (image.sum(0) @ offset**2) / image.sum()
    assert moment == pytest.approx(spot["radius"] ** 2 / 4 + 1.5**2 + 1 / 12, rel=1e-5)


def test_diffraction_widens_edges_and_wings_with_the_wavelength():
    """lambda f / D is 3.01 px at 700 nm: 700 nm x 10.31 m / 0.24 m / 10 um."""
    airy = 700e-9 * 10.3102 / 0.24 / 10e-6
    settings = Projector(blur=0.5)
    assert blur_px(settings, LSST, 700.0) == pytest.approx(np.hypot(0.5, 0.42 * airy), rel=1e-4)
    assert wing_px(settings, LSST, 700.0) == pytest.approx(2 * airy / np.pi**2, rel=1e-4)
    assert wing_px(settings, LSST, 1000.0) == pytest.approx(2 * wing_px(settings, LSST, 500.0))
    assert (blur_px(PERFECT, LSST, 700.0), wing_px(PERFECT, LSST, 700.0)) == (0.25, 0.0)


def test_far_wings_fall_as_the_cube_and_keep_the_light():
    settings = Projector(pointing_jitter=0, rotation_error=0)
    exposure = at(MINI, 0.0, 0.0)
    spot = spot_table(1, settings, MINI, exposure)[0]
    image = spot_light(1, settings, MINI, MINI.detector("R22_S11"), exposure, lambda *_: 0.8)
    wing, sigma = (f(settings, MINI, spot["wavelength"]) for f in (wing_px, blur_px))
    scale = spot["radius"] + 4 * sigma
    halo = 0.8 * spot["photons"] * wing / (2 * np.pi) / ((500 - 255.5) ** 2 + (200 - 127.5) ** 2 + scale**2) ** 1.5
    assert image[200, 500] == pytest.approx(halo, rel=1e-5)
    # outside a rectangle of half sides a, b lies 2/pi (angle whose tangent is scale * sqrt(a^2+b^2+scale^2) / ab)
    a, b = 256, 128
    beyond = 2 / np.pi * np.arctan(scale * np.sqrt(a**2 + b**2 + scale**2) / (a * b))
    # 1e-5: the halo is taken at the centres of pixels, not averaged over them
    assert total(image) == pytest.approx(0.8 * spot["photons"] * (1 - beyond * wing / scale), rel=1e-5)


def test_wide_discs_keep_their_light_and_reach_other_ccds():
    x, y, photons = np.array([5.0, -200.0]), np.array([1.0, 0.0]), np.array([2e4, 1e9])  # the second on no CCD
    light, pixels = 0.0, 0
    for detector in MINI.detectors:
        image = disc_light(detector, x, y, 2.0, photons, 0.8)
        light += total(image)
        x_mm, y_mm = ccd_to_focal(detector, *np.indices(detector.shape)[::-1])
        pixels += np.sum(np.hypot(x_mm - 5.0, y_mm - 1.0) < 2.0)
    level = 2e4 / (np.pi * 200**2)
    assert image.max() == pytest.approx(level, rel=1e-5)  # R22_S22, which the disc touches
    # whole pixels stand for the disc within some tens of its 125 664; the gaps between CCDs lose their part
    assert light == pytest.approx(level * pixels, rel=1e-3)
    assert 0.9 < pixels / (np.pi * 200**2) < 0.95
    inside = disc_light(MINI.detector("R22_S11"), np.array([0.5]), np.zeros(1), 1.0, photons[:1], 0.8)
    assert total(inside) == pytest.approx(2e4, rel=1e-6)


def test_a_spot_across_the_edge_of_a_ccd_is_cut_there():
    edge = 2.56  # mm from the middle of the CCD to the outer border of its last pixel
    exposure = at(MINI, edge, 0.0)
    assert spot_table(1, PERFECT, MINI, exposure)["detector"][0] in ("R22_S11", "")
    image = spot_light(1, PERFECT, MINI, MINI.detector("R22_S11"), exposure)
    assert total(image) == pytest.approx(0.5e6, rel=1e-6)
    far = at(MINI, edge + 1.0, 0.0)  # in the next CCD: only the halo is left
    settings = Projector(pointing_jitter=0, rotation_error=0)
    assert 0 < total(spot_light(1, settings, MINI, MINI.detector("R22_S11"), far)) < 1e4
    assert total(spot_light(1, PERFECT, MINI, MINI.detector("R22_S11"), far)) == 0


def test_images_are_reproducible_and_do_not_depend_on_their_order():
    first = [spot_light(9, Projector(), MINI, d, taken(4)) for d in MINI.detectors]
    again = [spot_light(9, Projector(), MINI, d, taken(4)) for d in MINI.detectors[::-1]][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert np.any(first[0] != spot_light(9, Projector(), MINI, MINI.detectors[0], taken(5)))


def test_beams_that_no_camera_could_see_are_refused():
    with pytest.raises(CalibrationError, match="no focal plane position"):
        spot_table(1, PERFECT, MINI, taken(elevation=80.0))
    with pytest.raises(WrongUse, match="no mask"):
        spot_table(1, PERFECT, MINI, taken(mask="stars"))
    with pytest.raises(WrongUse, match="28 spots"):
        spot_light(1, PERFECT, MINI, MINI.detectors[0], taken(mask="grid/28"))
