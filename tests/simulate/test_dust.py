"""Dust: depth, shape and arrival of motes against areas worked out by hand."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import qmc

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.dust import Beam, Dust, dust, motes
from lsstcal_dask.simulate.optics import OBSCURATION, PUPIL_RADIUS, edge_mm

SEED = 2
NOW = np.datetime64("2026-07-01T03:00:00")
ONE = Dust(filter_motes=1, window_motes=0, arriving=0, filter_size=(4.0, 4.0), opacity=0.5)


@pytest.fixture(scope="module")
def lsstcam():
    return load_camera("lsstcam")


def place(camera, settings=ONE):
    """Of the only mote on the filter, mm."""
    found = motes(SEED, settings, "r")
    return float(found.x[0]) * edge_mm(camera), float(found.y[0]) * edge_mm(camera)


def test_depth_of_a_mote(lsstcam):
    x, y = place(lsstcam)
    away = np.array([0.0, 40.0, 60.0])  # in the hole, in the annulus of 30.5 to 50 mm, outside
    found = dust(SEED, ONE, lsstcam, "r", x + away, y, NOW)
    hidden = 0.5 * 4.0**2 / (50**2 - 30.5**2)  # opacity, area of the mote over that of the footprint
    np.testing.assert_allclose(found, [1, 1 - hidden, 1], atol=1e-9)
    assert hidden == pytest.approx(0.0051, abs=1e-4)


def test_a_mote_takes_the_light_that_meets_it(lsstcam):
    x, y = place(lsstcam)
    r = np.linspace(0, 60, 6001)
    missing = 1 - dust(SEED, ONE, lsstcam, "r", x + r, y, NOW)
    assert np.trapezoid(2 * np.pi * r * missing, r) == pytest.approx(0.5 * np.pi * 4.0**2, rel=1e-3)


def test_a_small_camera_sees_the_same_dust(lsstcam):
    small = load_camera("mini9")
    ratio = edge_mm(small) / edge_mm(lsstcam)
    x, y = np.meshgrid(np.linspace(-300, 300, 50), np.linspace(-300, 300, 40))
    found = [dust(SEED, Dust(), c, "g", x * s, y * s, NOW) for c, s in ((lsstcam, 1), (small, ratio))]
    np.testing.assert_allclose(*found, rtol=1e-9)
    assert found[0].std() > 1e-4


def test_window_and_filters(lsstcam):
    x, y = np.meshgrid(np.linspace(-300, 300, 80), np.linspace(-300, 300, 80))
    every = {band: dust(SEED, Dust(), lsstcam, band, x, y, NOW) for band in ("none", "r", "i")}
    window = every["none"]
    assert window.min() < 1
    only = Dust(window_motes=0)
    for band in ("r", "i"):
        np.testing.assert_allclose(every[band], window * dust(SEED, only, lsstcam, band, x, y, NOW), rtol=1e-12)
    assert np.abs(every["r"] - every["i"]).max() > 1e-3
    np.testing.assert_array_equal(dust(SEED, only, lsstcam, "none", x, y, NOW), np.ones_like(x))
    part = dust(SEED, Dust(), lsstcam, "r", x[5:9, 60:], y[5:9, 60:], NOW)
    np.testing.assert_array_equal(part, every["r"][5:9, 60:])


def test_motes_arrive(lsstcam):
    settings = Dust(filter_motes=400, window_motes=0, arriving=0.3, days=10)
    arrival = motes(SEED, settings, "r").arrival
    days = (arrival - np.datetime64("2026-07-01T00:00", "ms")) / np.timedelta64(1, "D")
    late = days >= 0
    assert late.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 400))
    assert days.max() <= 10
    assert np.all(days[~late] < -1000)
    one = ONE.model_copy(update={"arriving": 1.0, "days": 10.0})
    x, y = place(lsstcam, one)
    arrives = motes(SEED, one, "r").arrival[0]
    before, after = (dust(SEED, one, lsstcam, "r", x + 40, y, arrives + np.timedelta64(s, "s")) for s in (-1, 1))
    assert before == 1
    assert after < 0.995


def test_sizes_and_places(lsstcam):
    found = motes(SEED, Dust(filter_motes=2000), "r")
    radius = found.radius * edge_mm(lsstcam)
    assert radius.min() >= 0.999
    assert radius.max() <= 4.001
    assert np.median(radius) == pytest.approx(2, rel=4 * 0.4 * 1.25 / np.sqrt(2000))  # evenly spread in the logarithm
    square = (found.x**2 + found.y**2) / 1.15**2
    assert square.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * 2000))
    with pytest.raises(ValueError, match="read-only"):
        found.x[0] = 0


def test_dust_switched_off_or_impossible(lsstcam):
    x = np.linspace(-300, 300, 500)
    np.testing.assert_array_equal(dust(SEED, Dust(on=False), lsstcam, "r", x, 0 * x, NOW), np.ones(500))
    with pytest.raises(WrongUse, match="no filter 'window'"):
        dust(SEED, Dust(), lsstcam, "window", x, x, NOW)
    with pytest.raises(ValidationError, match="greater than 0"):
        Dust(filter_size=(0.0, 1.0))


def test_edges_are_as_wide_as_the_mote(lsstcam):
    x, y = place(lsstcam)
    inner = OBSCURATION * 50
    step = dust(SEED, ONE, lsstcam, "r", x + inner + np.array([-4.1, 0.0, 4.1]), y, NOW)
    assert step[0] == 1
    assert (1 - step[1]) / (1 - step[2]) == pytest.approx(0.5, abs=0.05)  # an edge almost straight cuts it in half


# Beams of the projector


def lens(r, d):
    """Area that two equal circles a distance d apart share."""
    return 2 * r**2 * np.arccos(d / (2 * r)) - d / 2 * np.sqrt(4 * r**2 - d**2)


def test_a_small_beam_is_covered_by_a_mote_as_two_circles_overlap(lsstcam):
    """A beam of 0.24 m is 2.87 mm wide on the filter, 50 mm * 0.12 / 4.18 in radius, and lies as its footprint does."""
    unit = edge_mm(lsstcam) / 315.17  # 1.00001: the settings count in millimetres of the edge of the field, rounded
    small, shift = 50 * 0.12 / 4.18 * unit, 50 * np.array([3.0, -1.0]) / 4.18 * unit
    beam = Beam(3.0, -1.0, 0.12)
    away = np.array([0.0, 0.5, 1.0, 1.5, 2.1]) * small
    for mote, covered in (
        (4.0, [1, 1, 1, 1, None]),  # larger: the beam vanishes behind it (1.5 radii are 2.15 mm; 4 - 1.44 are free)
        (small, [1, lens(1, 0.5) / np.pi, lens(1, 1.0) / np.pi, lens(1, 1.5) / np.pi, 0]),
        (small / 2, [0.25, 0.25, None, 0, 0]),
    ):
        settings = ONE.model_copy(update={"filter_size": (mote / unit, mote / unit)})
        x, y = place(lsstcam, settings)
        found = dust(SEED, settings, lsstcam, "r", x - shift[0] + away, y - shift[1], NOW, beam)
        known = np.array([part is not None for part in covered])
        wanted = [1 - 0.5 * part for part in covered if part is not None]
        np.testing.assert_allclose(found[known], wanted, atol=1e-9)
        # the same place through the other side of the mirror sees nothing
        other = dust(SEED, settings, lsstcam, "r", x - shift[0] + away, y - shift[1], NOW, Beam(-3.0, 1.0, 0.12))
        np.testing.assert_array_equal(other, 1.0)


def test_beams_may_differ_from_place_to_place(lsstcam):
    x, y = np.random.default_rng(3).uniform(-200, 200, (2, 50))
    u, v = np.random.default_rng(4).uniform(-3, 3, (2, 50))
    settings = Dust(filter_motes=3000)
    together = dust(SEED, settings, lsstcam, "r", x, y, NOW, Beam(u, v, 0.12))
    alone = [dust(SEED, settings, lsstcam, "r", x[i], y[i], NOW, Beam(u[i], v[i], 0.12)) for i in range(50)]
    np.testing.assert_array_equal(together, alone)
    assert together.min() < 0.9


@pytest.mark.parametrize("radius", [0.02, 0.12])
def test_a_pupil_full_of_beams_sees_the_shadow_of_a_flat(lsstcam, radius):
    """Mean over footprints that fill the pupil evenly, of one mote; positions over its whole soft ring."""
    x, y = place(lsstcam)
    draws = qmc.Sobol(2, seed=2).random(2**14)
    ray = PUPIL_RADIUS * np.sqrt(OBSCURATION**2 + (1 - OBSCURATION**2) * draws[:, 0])
    beam = Beam(ray * np.cos(2 * np.pi * draws[:, 1]), ray * np.sin(2 * np.pi * draws[:, 1]), radius)
    away = np.array([0.0, 20.0, 29.0, 31.0, 36.0, 40.0, 44.0, 49.0, 52.0, 60.0])
    whole = dust(SEED, ONE, lsstcam, "r", x + away, y, NOW)
    mean = np.array([dust(SEED, ONE, lsstcam, "r", x + a, y, NOW, beam).mean() for a in away])
    # of 16384 beams some 170 meet the mote, which a low-discrepancy sequence counts to better than their root: 4 % of
    # a shadow of 0.5 %; beams that reach over the rim of the pupil blur it by 1.4 mm of the mote's 8
    within = np.abs(away - 40) < 5
    deepest = 1 - whole.min()
    np.testing.assert_allclose(mean[within], whole[within], atol=0.04 * deepest)
    np.testing.assert_allclose(mean, whole, atol=(0.04 + 0.25 * radius / 0.12) * deepest)
    assert np.ptp(whole) > 0.005
