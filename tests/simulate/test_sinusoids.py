"""Projected sinusoids: integrals over displaced pixels against closed forms, and what can be measured from them."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal, focal_to_field
from lsstcal_dask.simulate.beams import passed
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter
from lsstcal_dask.simulate.charge import ShotNoise, accumulate, on_quadrilaterals
from lsstcal_dask.simulate.dust import Beam, Dust, dust
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Light, Sinusoid
from lsstcal_dask.simulate.frames import charge
from lsstcal_dask.simulate.illumination import lamp_brightness
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.pixels import PixelJitter, areas, centroids
from lsstcal_dask.simulate.projector import Projector, Shot, footprint
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.sinusoids import (
    Sinusoids,
    Wave,
    fringes,
    on_pixels,
    on_squares,
    plane_wave,
)

CAMERA = load_camera("mini1")
DETECTOR = CAMERA.detectors[0]
SEED = 3
TIME = np.datetime64("2026-07-02T03:00:00", "ms")
K = 2.0  # rad/px, the largest
WHERE = (3.0, 0.5)


def site(*names, **changed):
    return Observatory(SEED, CAMERA, Settings(**changed).only(names))


def taken(step=0, number=None, angle=0.0, k=K, rate=1e3, seconds=10.0):
    """Fringes moved by so many quarters of a period."""
    source = Sinusoid(rate, 550.0, 1.0, 2 * np.pi / k, angle, 90.0 * step, WHERE)
    return Exposure("W", number or step + 1, "sinusoid", TIME, seconds, seconds, source=source)


def demodulated(images):
    """Mean, modulation and phase of each pixel, from images at four phases a quarter of a period apart."""
    wave = (images[0] - images[2]) / 2 - 1j * (images[1] - images[3]) / 2 * -1
    mean = np.mean(images, axis=0)
    return mean, np.abs(wave) / mean, -np.angle(wave)


def placed(angle=0.0, k=K):
    """Phase at the middle of every ideal pixel; the axis lies in the middle of this CCD."""
    y, x = np.indices(DETECTOR.shape) - np.array([63.5, 63.5])[:, None, None]
    turn = np.deg2rad(angle)
    return k * (np.cos(turn) * x + np.sin(turn) * y)


def turns(phase):
    """Phase within half a period of zero."""
    return np.angle(np.exp(1j * phase))


# Integrals


def by_quadrature(corner, wave, x, y, n=16):
    """Integral over one quadrilateral (4, 2): Gauss and Legendre on the square that it is a bilinear picture of."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    s, t = np.meshgrid((nodes + 1) / 2, (nodes + 1) / 2)
    a, b, c, d = corner  # lower left, lower right, upper right, upper left
    place = [(1 - s) * (1 - t) * a[i] + s * (1 - t) * b[i] + s * t * c[i] + (1 - s) * t * d[i] for i in (0, 1)]
    along_s = [(1 - t) * (b[i] - a[i]) + t * (c[i] - d[i]) for i in (0, 1)]
    along_t = [(1 - s) * (d[i] - a[i]) + s * (c[i] - b[i]) for i in (0, 1)]
    area = along_s[0] * along_t[1] - along_s[1] * along_t[0]
    value = 1 + wave.contrast * np.cos(wave.kx * (x + place[0]) + wave.ky * (y + place[1]) + wave.phase)
    return (value * area * np.outer(weights, weights)).sum() / 4


@pytest.mark.parametrize(("kx", "ky"), [(2.0, 0.0), (0.0, 1.3), (-1.4, 1.4), (0.01, 0.003), (6e-4, 0.0)])
def test_integral_over_a_displaced_pixel_is_that_of_a_quadrature(kx, ky):
    random = np.random.default_rng(7)
    corners = random.normal(0, 0.1, (2, 6, 8)).astype(np.float32)
    wave = Wave(kx, ky, 0.7, 0.9)
    found = on_pixels(corners, wave)
    for y in range(5):
        for x in range(7):
            ring = [(i, j) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
            corner = [
                (j - 0.5 + float(corners[0, y + i, x + j]), i - 0.5 + float(corners[1, y + i, x + j])) for i, j in ring
            ]
            # 32 bit of the result, and 1e-16 / k**2 lost where the wave is long
            assert found[y, x] == pytest.approx(by_quadrature(corner, wave, x, y), rel=2e-7, abs=1e-9)


def test_a_pixel_of_known_corners_has_the_modulation_and_phase_of_its_sides():
    """From a to b in x: phase k (a + b) / 2, modulation sin(k w / 2) / (k w / 2) with w = b - a, and area w."""
    corners = np.zeros((2, 2, 3), np.float32)
    corners[0] = [0.125, -0.0625, 0.25]  # exact in binary; the second side is shared by both pixels
    images = [on_pixels(corners, Wave(K, 0.0, np.pi / 2 * m, 0.8)) for m in range(4)]
    mean, modulation, phase = demodulated(np.array(images, float))
    for i, (left, right) in enumerate(((-0.375, 0.4375), (0.4375, 1.75))):
        width = right - left
        assert mean[0, i] == pytest.approx(width, rel=1e-6)
        assert modulation[0, i] == pytest.approx(0.8 * np.sin(K * width / 2) / (K * width / 2), rel=1e-6)
        assert phase[0, i] == pytest.approx(K * (left + right) / 2, rel=1e-6)


def test_squares_are_pixels_without_displacement():
    wave = Wave(1.1, -0.8, 2.0, 1.0)
    np.testing.assert_allclose(
        on_squares((20, 30), wave), on_pixels(np.zeros((2, 21, 31), np.float32), wave), atol=3e-7
    )


def test_light_expanded_to_first_order_would_not_do():
    """Why there is a way of their own for fringes: what flats are good enough for errs by tenths of them."""
    corners = site("pixel_jitter", pixel_jitter=PixelJitter(displacement=0.02)).corners(DETECTOR)
    wave = Wave(K, 0.0, 0.3, 1.0)
    exact, expanded = on_pixels(corners, wave), on_quadrilaterals(on_squares(DETECTOR.shape, wave), corners)
    moved = exact - on_squares(DETECTOR.shape, wave)
    error = (expanded - exact)[1:-1, 1:-1]
    assert error.std() > 0.2 * moved.std() > 1e-3


@pytest.mark.parametrize("yaw", [0.0, 90.0, 30.0])
def test_fringes_run_on_from_ccd_to_ccd(yaw):
    """Phase at a pixel is k . r of its place on the focal plane, however its CCD is turned."""
    turned = replace(load_camera("mini9").detectors[2], yaw_deg=yaw)
    source = taken(angle=25.0).source
    wave = plane_wave(source, fringes(SEED, Sinusoids(on=False), taken()), turned)
    x, y = np.array([0.0, 511.0, 40.0]), np.array([0.0, 3.0, 255.0])
    x_mm, y_mm = ccd_to_focal(turned, x, y)
    turn = np.deg2rad(25.0)
    wanted = K / 0.01 * (np.cos(turn) * x_mm + np.sin(turn) * y_mm)
    np.testing.assert_allclose(wave.kx * x + wave.ky * y + wave.phase, wanted, atol=1e-9)
    assert np.hypot(wave.kx, wave.ky) == pytest.approx(K)


# The scene


def test_light_is_the_closed_form_where_nothing_disturbs_it():
    found = light(site(), taken(1, angle=90.0), DETECTOR)
    blur = np.sin(K / 2) / (K / 2)
    wanted = 1e3 * (1 + blur * np.cos(placed(90.0) + np.pi / 2))
    np.testing.assert_allclose(found.rate, wanted, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.whole, wanted, rtol=1e-5, atol=1e-3)
    assert len(found.points) == 0


def test_fringes_come_through_mirrors_and_silicon_as_an_even_field_does():
    names = ["mirrors", "quantum_efficiency", "lamp_drift"]
    real, flat = site(*names), replace(taken(), source=Lamp(1e3, 550.0))
    seen = light(real, taken(), DETECTOR).whole / light(site(), taken(), DETECTOR).whole
    np.testing.assert_allclose(seen, light(real, flat, DETECTOR).rate / 1e3, rtol=1e-4)
    brightness = lamp_brightness(SEED, real.settings.lamp_drift, taken())
    assert abs(brightness - 1) > 1e-3
    assert lamp_brightness(SEED, real.settings.lamp_drift, flat) == brightness  # one laser


def test_fringes_come_through_filter_stops_and_dust_as_a_beam_does():
    dirty = Dust(filter_motes=3000, window_motes=0, filter_size=(3.0, 3.0), arriving=0.0)
    exposure = replace(taken(), filter="r", source=replace(taken().source, wavelength=565.0))
    place = ccd_to_focal(DETECTOR, *np.meshgrid(np.arange(128), np.arange(128)))
    rays = footprint(Projector(), WHERE, Shot(0, 0, 0), *focal_to_field(CAMERA, *place))
    left = dust(SEED, dirty, CAMERA, "r", *place, TIME, Beam(*rays, 0.12))
    assert np.ptp(left) > 0.3
    nm = 565 + np.linspace(-1.5, 1.5, 61)
    share = np.exp(-4 * np.log(2) * (nm - 565) ** 2)
    glass = passed(site("filters", "vignetting"), "r", nm, *place, rays) @ (share / share.sum())
    assert 0.2 < glass.mean() < 0.98
    seen, bare = (
        light(site(*names, dust=dirty), exposure, DETECTOR).rate for names in (["filters", "vignetting", "dust"], [])
    )
    bend = sum(np.abs(np.diff(glass, 2, axis=axis)).max() for axis in (0, 1)) * 4**2 / 8  # of straight lines over 4 px
    assert bend < 0.1 * np.ptp(left)
    np.testing.assert_allclose(seen / bare, left * glass, atol=bend + 1e-5)


def test_real_fringes_have_less_contrast_and_a_phase_of_their_own():
    settings = Sinusoids(contrast=0.8, contrast_scatter=0.02, phase_jitter=5.0)
    n = 1000
    found = [fringes(SEED, settings, taken(number=i + 1)) for i in range(n)]
    for value, wanted in (
        (np.array([f.contrast for f in found]) / 0.8 - 1, 0.02),
        (np.array([f.phase for f in found]), 5.0),
    ):
        assert abs(value.mean()) < 5 * wanted / np.sqrt(n)
        assert value.std() == pytest.approx(wanted, rel=5 / np.sqrt(2 * n))
    exact = fringes(SEED, Sinusoids(on=False), taken(1))
    assert (exact.contrast, exact.phase) == (1.0, 90.0)
    asked, real = (light(site(*names), taken(1), DETECTOR).whole for names in ([], ["sinusoids"]))
    assert np.std(asked - real) > 0.05 * np.std(asked)


# Measured from them


@pytest.mark.parametrize("angle", [0.0, 90.0])
def test_phases_of_pixels_are_their_centroids_along_the_fringes(angle):
    """A displaced pixel of centroid c has the phase k c, but for the third power of k times the displacement."""
    k, jitter = 0.5, PixelJitter(displacement=0.02)
    real = site("tree_rings", "edge_distortion", "pixel_jitter", pixel_jitter=jitter)
    images = np.array([light(real, taken(step, angle=angle, k=k), DETECTOR).whole for step in range(4)], float)
    mean, modulation, phase = demodulated(images)
    shift = turns(phase - placed(angle, k)) / k
    true = centroids(real.corners(DETECTOR))[0 if angle == 0 else 1]
    # sides that turn by a displacement d give a skewed profile: k**2 d / 24 of a pixel, here 0.01 d
    np.testing.assert_allclose(shift, true, atol=0.01 * np.abs(true).max() + 1e-6)
    assert np.corrcoef(shift.ravel(), true.ravel())[0, 1] > 0.9999
    assert true.std() > 0.01
    np.testing.assert_allclose(mean, 1e3 * areas(real.corners(DETECTOR)), rtol=1e-5)
    assert modulation.mean() == pytest.approx(np.sin(k / 2) / (k / 2), rel=1e-3)


def test_noise_of_centroids_is_that_of_the_photons():
    """sigma = 1 / (k M sqrt(N_photons N_phases / 2)), M the modulation of a pixel (SCIENCE 2.11)."""
    real = site("shot_noise", "pixel_jitter", pixel_jitter=PixelJitter(displacement=0.01))
    images = np.array([charge(real, taken(step, rate=4e3), DETECTOR) for step in range(4)], float)
    _, _, phase = demodulated(images)
    clean = np.array([light(real, taken(step, rate=4e3), DETECTOR).whole for step in range(4)], float)
    _, modulation, true = demodulated(clean)
    sigma = 1 / (K * modulation.mean() * np.sqrt(4e4 * 4 / 2))
    off = turns(phase - true) / K
    n = off.size
    # modulations that scatter by the jitter of sides change sigma in second order, 1e-4
    assert abs(off.mean()) < 5 * sigma / np.sqrt(n)
    assert off.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * n) + 1e-3)
    moved = turns(true - placed()) / K
    assert moved.std() > 2 * sigma  # the displacements stand out of the noise


def test_charge_gathers_what_the_displaced_pixels_do_with_and_without_moving_boundaries():
    real = site("pixel_jitter", pixel_jitter=PixelJitter(displacement=0.02))
    seen, corners = light(real, taken(), DETECTOR), real.corners(DETECTOR)
    np.testing.assert_allclose(charge(real, taken(), DETECTOR), seen.whole * 10, rtol=1e-6)
    plain = ShotNoise(on=False)
    full = [accumulate(SEED, plain, BrighterFatter(), DETECTOR, 1, seen, 100.0, corners)]
    full += [accumulate(SEED, plain, BrighterFatter(on=False), DETECTOR, 1, seen, 100.0, corners)]
    assert full[0].sum(dtype=float) == pytest.approx(full[1].sum(dtype=float), rel=1e-6)
    assert np.abs(full[0] / full[1] - 1).max() > 1e-3


# Wrong requests


def test_what_is_no_sinusoid_is_refused():
    with pytest.raises(WrongUse, match="W: its source has no fringes: give a Sinusoid"):
        fringes(SEED, Sinusoids(), replace(taken(), source=Lamp(1.0)))
    for period in (0.0, -3.0, 2e4, float("nan")):
        exposure = replace(taken(), source=replace(taken().source, period=period))
        with pytest.raises(WrongUse, match=rf"a period of {period:g} px: use more than 0 and up to 10000"):
            light(site(), exposure, DETECTOR)
    with pytest.raises(WrongUse, match=r"exposure W: a line 1 nm wide at 1100 nm reaches beyond"):
        light(site(), replace(taken(), source=replace(taken().source, wavelength=1100.0)), DETECTOR)
    wrong = Light(np.ones(DETECTOR.shape, np.float32), np.zeros((0, 5)), whole=np.ones((3, 3), np.float32))
    with pytest.raises(InconsistentGeometry, match="the light on displaced pixels has shape"):
        accumulate(SEED, ShotNoise(), BrighterFatter(), DETECTOR, 1, wrong, 1.0)
