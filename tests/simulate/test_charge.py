"""Charge gathered on moving pixels: flats against the closed form of their covariance, stars, displaced pixels."""

from functools import cache

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import brighter_fatter as model
from lsstcal_dask.simulate import charge
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter, area_coefficients, quadrants
from lsstcal_dask.simulate.charge import ShotNoise, accumulate, on_quadrilaterals
from lsstcal_dask.simulate.exposure import Light

DETECTOR = load_camera("mini1").detectors[0]
SHAPE = DETECTOR.shape
NY, NX = SHAPE
ON, OFF = BrighterFatter(), BrighterFatter(on=False)
QUIET = ShotNoise(on=False)
NONE = np.zeros((0, 5))
EDGE = 10  # pixels within the reach of what is beyond the edge


def flat(rate):
    return Light(np.full(SHAPE, rate, np.float32), NONE)


def star(total, x=64.2, y=63.7, fwhm=3.0, beta=4.0):
    return Light(np.zeros(SHAPE, np.float32), np.array([[x, y, total, fwhm, beta]]))


def take(light, number=1, noise=None, fatter=ON, duration=1.0, **more):
    return accumulate(5, noise or ShotNoise(), fatter, DETECTOR, number, light, duration, **more)


@cache
def covariance(level, exposures, fatter):
    """C_ij [j, i] / level of flats for lags up to 2, electrons, their number of pixels, and their mean."""
    total, mean, n = np.zeros((3, 3)), 0.0, 0
    for i in range(exposures):
        off = take(flat(level), i, fatter=fatter)[EDGE:-EDGE, EDGE:-EDGE].astype(np.float64) - level
        mean, n = mean + off.sum(), n + off.size
        for j in range(3):
            for k in range(3):
                a = off[: off.shape[0] - j, : off.shape[1] - k] * off[j:, k:]
                total[j, k] += a.mean() * off.size
    return total / n / level, n, level + mean / n


def closed_form(level, fatter, size=64):
    """(exp(2 a(k) level) - 1) / (2 a(k) level) for every wave, back in pixels (Astier et al. 2019, b = 0)."""
    spectrum = spectrum_of(fatter, size) * level
    each = np.where(np.abs(spectrum) > 1e-9, np.expm1(2 * spectrum) / np.where(spectrum == 0, 1, 2 * spectrum), 1)
    return np.fft.ifft2(each).real[:3, :3]


def spectrum_of(fatter, size):
    area = area_coefficients(fatter, DETECTOR.vendor)
    plane = np.zeros((size, size))
    plane[: len(area), : len(area)] = area
    return np.fft.fft2(np.roll(plane, (-(len(area) // 2),) * 2, (0, 1))).real


def error_of(n):
    """One standard deviation of C_ij / level in n pixels: sqrt(2 / n) of the variance, sqrt(1 / n) elsewhere."""
    error = np.full((3, 3), np.sqrt(1 / n))
    error[0, 0] = np.sqrt(2 / n)
    return error


@pytest.mark.parametrize(("level", "exposures"), [(1e4, 30), (5e4, 40), (1e5, 40)])
def test_flats_follow_the_closed_form(level, exposures):
    found, n, mean = covariance(level, exposures, ON)
    wanted = closed_form(level, ON)
    assert np.abs((found - wanted) / (4.5 * error_of(n) + ON.error)).max() < 1
    assert abs(mean - level) < 4.5 * np.sqrt(level / n)  # areas add up: the mean knows nothing of it
    if level > 4e4:
        assert found[0, 0] < 1 - 20 * error_of(n)[0, 0]
        assert found[1, 0] > found[0, 1] + 5 * error_of(n)[1, 0]
    if level > 9e4:
        assert found[0, 1] > 4.5 * error_of(n)[0, 1]


def test_variance_of_few_steps_is_as_computed(monkeypatch):
    """The error that `steps` computes for a coarse march is that of the march: it is understood, not only small."""
    strong, number = BrighterFatter(strength=2.0), 3
    monkeypatch.setattr(charge, "steps", lambda *_: np.array([1.0, 1.0, 0.5]) / 2.5)
    found, n, _ = covariance(1e5, 40, strong)
    each = [model._variance(growth, number) for growth in (spectrum_of(strong, 32) * 1e5).ravel()]
    assert abs(found[0, 0] - np.mean(each)) < 4.5 * error_of(n)[0, 0]
    assert abs(np.mean(each) - closed_form(1e5, strong)[0, 0]) > 9 * error_of(n)[0, 0]


def test_flat_without_the_effect_is_poisson():
    found, n, mean = covariance(5e4, 20, OFF)
    assert np.abs((found - np.eye(3)[0][:, None] * np.eye(3)[0]) / error_of(n)).max() < 4.5
    assert abs(mean - 5e4) < 4.5 * np.sqrt(5e4 / n)


def test_without_noise_and_charge_there_is_only_light():
    light = Light(np.random.default_rng(0).uniform(0, 50, SHAPE).astype(np.float32), NONE)
    np.testing.assert_array_equal(take(light, noise=QUIET, fatter=OFF, duration=3.0), light.rate * np.float32(3))
    np.testing.assert_array_equal(take(light, duration=0.0), 0)


def test_electrons_are_whole_and_the_same_again():
    light = Light(flat(3e4).rate, star(2e4).points)
    first = take(light)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, np.round(first))
    np.testing.assert_array_equal(first, take(light))
    assert (first != take(light, number=2)).mean() > 0.9


def test_nothing_is_lost_between_pixels():
    y, x = np.indices(SHAPE)
    bright = (1e5 * np.exp(-((x - 60.0) ** 2 + (y - 64.0) ** 2) / 50) + 100).astype(np.float32)
    quiet, still = (take(Light(bright, NONE), noise=QUIET, fatter=f).astype(float) for f in (ON, OFF))
    assert quiet.sum() == pytest.approx(still.sum(), rel=1e-6)
    # the brightest pixel shrinks, to first order, by half of what its area has lost in the end
    area = area_coefficients(ON, DETECTOR.vendor)
    half = len(area) // 2
    loss = (area * still[64 - half : 65 + half, 60 - half : 61 + half]).sum() / 2
    assert loss < -0.01
    assert quiet[64, 60] / still[64, 60] - 1 == pytest.approx(loss, rel=0.1)  # of an order: 5 loss


def test_charge_that_was_there_makes_its_pixel_small():
    start = np.zeros(SHAPE, np.float32)
    start[50, 70] = 1e4
    found = take(flat(1.0), noise=QUIET, start=start) - 1
    area = area_coefficients(ON, DETECTOR.vendor)
    half = len(area) // 2
    np.testing.assert_allclose(
        found[50 - half : 51 + half, 70 - half : 71 + half], area * 1e4, atol=2e-7
    )  # float32 next to one


def test_charge_that_gathers_beside_the_light():
    """A hot pixel of 50 ke in a flat of 50 ke: charge of a wave grows by dq/dt = a level (q + h t) in a time of 1."""
    dark, level = np.zeros(SHAPE, np.float32), 5e4
    dark[64, 64] = 5e4
    found = (take(flat(level), noise=QUIET, dark=dark).astype(np.float64) - level)[32:96, 32:96]
    growth = level * spectrum_of(ON, 64)
    safe = np.where(growth == 0, 1, growth)
    each = np.where(growth == 0, 0, np.expm1(safe) / safe - 1)
    wanted = 5e4 * np.roll(np.fft.ifft2(each).real, (32, 32), (0, 1))
    # the middle of a step of 1 / n is foreseen to half of (1 / n)**2 times the second derivative, of the order of
    # a level h; that grows by a level. float32 holds 1 / 256 of an electron, in every step.
    number = len(model.steps(ON, DETECTOR.vendor, level))
    bound = 5e4 * np.mean(growth**2) / number**2 / 2
    assert bound < 0.005 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=bound + number / 256)
    assert wanted[32, 32] < -3000
    assert wanted[33, 32] > wanted[32, 33] > 150
    # without time for it to act, as before: only the first order, half of what `start` does
    weak = take(flat(1.0), noise=QUIET, dark=dark) - 1
    np.testing.assert_allclose(weak, (take(flat(1.0), noise=QUIET, start=dark) - 1) / 2, atol=2e-7)


def test_areas_of_displaced_pixels():
    corners = np.random.default_rng(3).normal(0, 0.03, (2, NY + 1, NX + 1)).astype(np.float32)
    x = np.arange(NX + 1) + corners[0].astype(float)
    y = np.arange(NY + 1)[:, None] + corners[1].astype(float)
    # half the cross product of the diagonals
    area = (x[1:, 1:] - x[:-1, :-1]) * (y[1:, :-1] - y[:-1, 1:]) - (x[1:, :-1] - x[:-1, 1:]) * (y[1:, 1:] - y[:-1, :-1])
    found = take(flat(1000.0), noise=QUIET, fatter=OFF, corners=corners)
    np.testing.assert_allclose(found, 500 * area, rtol=1e-5)
    noisy = np.mean([take(flat(1000.0), i, fatter=OFF, corners=corners) for i in range(30)], axis=0) / 1000
    slope = np.sum((noisy - 1) * (found / 1000 - 1)) / np.sum((found / 1000 - 1) ** 2)
    assert abs(slope - 1) < 4.5 * np.sqrt(1 / 30e3) / np.sqrt(np.sum((found / 1000 - 1) ** 2))


def test_displaced_pixels_on_a_slope():
    y, x = np.indices(SHAPE)
    light = (1000 + 3 * x - 2 * y).astype(np.float32)
    corners = np.empty((2, NY + 1, NX + 1), np.float32)
    corners[0], corners[1] = 0.25, -0.125
    np.testing.assert_allclose(on_quadrilaterals(light, corners), light + 3 * 0.25 + 2 * 0.125, rtol=1e-6)


def centroid(image):
    y, x = np.indices(image.shape)
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


def test_star_in_displaced_pixels():
    corners = np.empty((2, NY + 1, NX + 1), np.float32)
    corners[0], corners[1] = 0.3, -0.2
    light = star(1e6, fwhm=2.5, beta=8.0)
    error = 4.5 * 1.2 / np.sqrt(1e6)  # pixel: widths of less than 1.2 pixels, pixels included
    here, there = (take(light, fatter=OFF, corners=c) for c in (None, corners))
    assert np.abs(centroid(here) - [64.2, 63.7]).max() < error
    assert np.abs(centroid(there) - [63.9, 63.9]).max() < error


def test_star_is_its_profile():
    fine = 51
    light = star(1.0, x=64.0, y=64.0, fwhm=3.0, beta=3.0)
    radius = 3.0 / (2 * np.sqrt(2 ** (1 / 3) - 1))
    grid = (np.arange(11 * fine) + 0.5) / fine - 5.5
    density = 2 / (np.pi * radius**2) * (1 + (grid[:, None] ** 2 + grid**2) / radius**2) ** -3
    wanted = density.reshape(11, fine, 11, fine).mean(axis=(1, 3))
    found = take(light, noise=QUIET)[59:70, 59:70]
    np.testing.assert_allclose(found, wanted, atol=3e-4)  # 65536 points: one in 200 of the spacing at an edge
    n = 4e6
    noisy = take(star(n, x=64.0, y=64.0, fwhm=3.0, beta=3.0), fatter=OFF)[59:70, 59:70]
    assert np.abs((noisy - n * wanted) / np.sqrt(n * wanted)).max() < 4.8


def profile(total, x, y, fwhm, beta, size=41, fine=25):
    """Electrons (size, size) of a star in the pixels around (64, 64), from a fine grid."""
    radius = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    grid = (np.arange(size * fine) + 0.5) / fine - size / 2 + 64
    density = (1 + ((grid[:, None] - y) ** 2 + (grid - x) ** 2) / radius**2) ** -beta
    density *= (beta - 1) / (np.pi * radius**2)
    return total * density.reshape(size, fine, size, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("way", ["stamp", "electrons"])
@pytest.mark.parametrize("fatter", [OFF, ON])
def test_stars_see_the_response_of_each_pixel(monkeypatch, way, fatter):
    """Profile times response, hand-computed; and with so much noise as is left of a thinned Poisson number."""
    if way == "electrons":
        monkeypatch.setattr(charge, "half_sizes", lambda points, _: np.full(len(points), -1))
    response = np.random.default_rng(4).normal(1, 0.1, SHAPE).astype(np.float32)
    light = star(2e4, fwhm=4.0, beta=3.0)  # at most 900 electrons in a pixel: boundaries move by less than 1e-3
    seen, box, n = Light(light.rate, light.points, response), (slice(44, 85), slice(44, 85)), 40
    plain = profile(2e4, 64.2, 63.7, 4.0, 3.0)
    wanted = n * plain * response[box]
    found = sum(take(seen, i, fatter=fatter)[box].astype(np.float64) for i in range(n))
    bright = wanted > 50
    chi = (found - wanted)[bright] / np.sqrt(wanted[bright])
    assert bright.sum() > 300
    assert abs(chi.var() - 1) < 4.5 * np.sqrt(2 / chi.size) + 0.05 * (fatter.on)  # (5e-4 of 36e3 electrons) / sigma
    assert abs(found.sum() - wanted.sum()) < 4.5 * np.sqrt(wanted.sum())
    without = sum(take(light, i, fatter=fatter)[box].astype(np.float64) for i in range(n))
    chi = (without - wanted)[bright] / np.sqrt(wanted[bright])
    assert (chi**2).mean() > 1 + 20 * np.sqrt(2 / chi.size)
    assert abs(without.sum() - n * plain.sum()) < 4.5 * np.sqrt(n * plain.sum())
    quiet = take(seen, noise=QUIET, fatter=OFF)[box]
    np.testing.assert_allclose(quiet, plain * response[box], atol=1e-4 * plain.max())  # of the grid: 1 / (24 fine**2)


def test_boundaries_move_with_what_pixels_detect():
    """A star in pixels that see half of it grows as one of half the flux."""
    light = star(4e5, x=64.0, y=64.0, fwhm=3.5, beta=20.0)
    half = take(Light(light.rate, light.points, np.full(SHAPE, 0.5, np.float32)), noise=QUIET)
    np.testing.assert_allclose(
        half, take(star(2e5, x=64.0, y=64.0, fwhm=3.5, beta=20.0), noise=QUIET), rtol=2e-3, atol=1
    )


@pytest.mark.parametrize("total", [3e3, 1e5])
def test_stamps_leave_what_electrons_leave(monkeypatch, total):
    light, corners = star(total, fwhm=2.5, beta=3.0), np.random.default_rng(7).normal(0, 0.05, (2, NY + 1, NX + 1))
    corners, n = corners.astype(np.float32), 12
    short = [take(light, i, corners=corners) for i in range(n)]
    monkeypatch.setattr(charge, "half_sizes", lambda points, _: np.full(len(points), -1))
    long = [take(light, i, corners=corners) for i in range(n)]
    a, b = (np.sum(one, axis=0, dtype=np.float64) for one in (short, long))
    many = a + b > 100
    chi = (a - b)[many] / np.sqrt((a + b)[many])
    assert abs((chi**2).mean() - 1) < 4.5 * np.sqrt(2 / chi.size)
    assert abs(a.sum() - b.sum()) < 4.5 * np.sqrt(a.sum() + b.sum())


def test_flux_of_stars_is_poisson():
    totals = np.array([take(star(900.0, fwhm=2.0, beta=6.0), i).sum() for i in range(400)], np.float64)
    assert abs(totals.mean() - 900) < 4.5 * 30 / 20
    assert abs(totals.var() / 900 - 1) < 4.5 * np.sqrt(2 / 400)


def test_stars_do_not_know_their_neighbours():
    one, two = star(5e3, x=30.0), star(5e3, x=100.0)
    both = take(Light(one.rate, np.concatenate([one.points, two.points])), fatter=OFF)
    np.testing.assert_array_equal(both[:, :50], take(one, fatter=OFF)[:, :50])


def growth(total):
    """Change of a star's second moments x2, y2 by the effect."""
    light = star(total, x=64.0, y=64.0, fwhm=3.5, beta=20.0)
    quiet, still = (take(light, noise=QUIET, fatter=f).astype(np.float64) for f in (ON, OFF))
    y, x = np.indices(SHAPE) - 64
    return np.array([((quiet - still) * x**2).sum(), ((quiet - still) * y**2).sum()]) / total


def test_star_grows_with_its_flux(monkeypatch):
    """To first order charge crosses a boundary in proportion to the square of time: half of flux times final shift."""
    monkeypatch.setattr(charge, "_POINTS", 1 << 20)  # a thousand of them cross each of the inner boundaries
    total = 4e5
    found = growth(total)
    fine, half = 20, 12
    width = 3.5 / (2 * np.sqrt(2 ** (1 / 20) - 1))
    grid = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5

    def light(x, y):
        return total * 19 / (np.pi * width**2) * (1 + (x**2 + y**2) / width**2) ** -20

    n = 2 * half + 1
    image = light(grid, grid[:, None]).reshape(n, fine, n, fine).mean(axis=(1, 3))
    wanted = []
    for table, picture in zip(quadrants(ON, DETECTOR.vendor), (image, image.T), strict=True):
        sums = 0.0
        for x in range(-5, 6):  # boundary between x and x + 1
            on_line = light(x + 0.5, grid).reshape(n, fine).mean(axis=1)
            for y in range(-5, 6):
                shift = sum(
                    table[abs(m), d] * (picture[y + m + half, x + 1 + d + half] - picture[y + m + half, x - d + half])
                    for m in range(-6, 7)
                    for d in range(6)
                )
                # what crosses joins pixel x and leaves x + 1
                sums += 0.5 * shift * on_line[y + half] * (x**2 - (x + 1) ** 2)
        wanted.append(sums / total)
    # second order: shifts of 2 % of a pixel times light that halves in one; as much from 1 / sqrt(points) that cross
    np.testing.assert_allclose(found, wanted, rtol=0.04)
    assert found[1] > found[0] > 0
    np.testing.assert_allclose(growth(2 * total), 2 * found, rtol=0.04)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"light": Light(np.zeros((3, 3), np.float32), NONE)}, InconsistentGeometry, "the rate has shape"),
        ({"corners": np.zeros((2, NY, NX), np.float32)}, InconsistentGeometry, "corners has shape"),
        ({"start": np.zeros((3, NX), np.float32)}, InconsistentGeometry, "start has shape"),
        ({"dark": np.zeros((3, NX), np.float32)}, InconsistentGeometry, "dark has shape"),
        (
            {"light": Light(flat(1.0).rate, NONE, np.ones((3, NX), np.float32))},
            InconsistentGeometry,
            "the response has shape",
        ),
        ({"light": Light(flat(1.0).rate, np.zeros((2, 4)))}, InconsistentGeometry, "point sources have shape"),
        ({"light": flat(-1.0)}, WrongUse, "negative or infinite rate"),
        ({"light": flat(np.nan)}, WrongUse, "negative or infinite rate"),
        ({"duration": -1.0}, WrongUse, "zero or more"),
        ({"light": star(-5.0)}, WrongUse, "point source 0"),
        ({"light": star(5.0, beta=1.0)}, WrongUse, "point source 0"),
    ],
)
def test_what_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        take(**{"light": flat(1.0), **change})


def test_star_beside_the_ccd():
    assert take(star(1e4, x=-40.0, y=-500.0, fwhm=2.0, beta=10.0)).sum() == 0
    assert take(star(1e4, x=-0.5, y=64.0, fwhm=3.0, beta=10.0)).sum() == pytest.approx(5e3, abs=4.5 * np.sqrt(5e3))
