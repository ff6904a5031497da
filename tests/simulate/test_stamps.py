"""Profiles integrated over pixels: against plain quadrature, displaced pixels, and boundaries that move."""

import numpy as np
import pytest

from lsstcal_dask.simulate import stamps as module
from lsstcal_dask.simulate.stamps import farther, half_sizes, moved, scale, stamp

SHAPE = NY, NX = 40, 44
NONE = np.zeros((2, 0, 0), np.float32)
STAR = np.array([20.3, 19.6, 1e5, 2.5, 3.0])


def profile(x, y, source=STAR):
    radius = source[3] / (2 * np.sqrt(2 ** (1 / source[4]) - 1))
    square = (x - source[0]) ** 2 + (y - source[1]) ** 2
    return (source[4] - 1) / (np.pi * radius**2) * (1 + square / radius**2) ** -source[4]


def integral(x0, x1, y0, y1, source=STAR):
    """Of the profile over a rectangle: 24 nodes each way, exact to rounding."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    x, y = (x0 + x1 + nodes * (x1 - x0)) / 2, (y0 + y1 + nodes * (y1 - y0)) / 2
    return float((weights[:, None] * weights * profile(x, y[:, None], source)).sum() * (x1 - x0) * (y1 - y0) / 4)


@pytest.mark.parametrize("fwhm", [2.0, 3.0, 6.0])
@pytest.mark.parametrize("beta", [1.2, 3.0, 20.0])
def test_shares_are_integrals(fwhm, beta):
    source = np.array([20.3, 19.6, 1.0, fwhm, beta])
    at = stamp(source, 4, NONE, SHAPE)
    assert at.box == (slice(16, 25), slice(16, 25))
    wanted = [[integral(x - 0.5, x + 0.5, y - 0.5, y + 0.5, source) for x in range(16, 25)] for y in range(16, 25)]
    np.testing.assert_allclose(at.shares, wanted, atol=1e-5 * np.max(wanted))  # the bound of `stamps`
    assert at.nearest == pytest.approx(min(20.3 - 15.5, 24.5 - 20.3, 19.6 - 15.5, 24.5 - 19.6) - 0.45)


def test_displaced_pixels_are_quadrilaterals():
    """The source moves the other way if all corners move alike; pixels that share corners leave no gaps."""
    corners = np.zeros((2, NY + 1, NX + 1), np.float32)
    corners[0], corners[1] = 0.25, -0.125
    found, other = stamp(STAR, 6, corners, SHAPE), STAR - [0.25, -0.125, 0, 0, 0]
    np.testing.assert_allclose(found.shares, stamp(other, 6, NONE, SHAPE).shares, atol=1e-7)
    wild = np.random.default_rng(0).normal(0, 0.1, (2, NY + 1, NX + 1)).astype(np.float32)
    wild[:, [14, 27]] = wild[:, :, [14, 27]] = 0  # the border of the stamp
    assert stamp(STAR, 6, wild, SHAPE).shares.sum() == pytest.approx(integral(13.5, 26.5, 13.5, 26.5), abs=1e-5)
    # a corner moved by (d, e) gives its pixels what lies on two triangles, of half d and half e
    one = np.zeros((2, NY + 1, NX + 1), np.float32)
    one[:, 20, 21] = 0.02, 0.01  # corner at (20.5, 19.5)
    gain = stamp(STAR, 6, one, SHAPE).shares - stamp(STAR, 6, NONE, SHAPE).shares
    here = profile(20.5, 19.5)
    wanted = np.array([[0.015, -0.005], [0.005, -0.015]]) * here  # (d + e) / 2, (-d + e) / 2 ...
    # middles of the triangles are a third of a pixel away, over which the profile changes by a sixth of itself
    np.testing.assert_allclose(gain[5:7, 6:8], wanted, atol=0.015 / 6 * here)
    outside = gain.copy()
    outside[5:7, 6:8] = 0
    assert np.abs(outside).max() < 1e-12


def test_boundaries_that_move_by_hand():
    random = np.random.default_rng(1)
    east, north = (random.normal(0, 0.05, shape).astype(np.float32) for shape in ((NY, NX + 1), (NY + 1, NX)))
    at = stamp(STAR, 5, NONE, SHAPE)
    found = moved(STAR, at, NONE, east, north)
    rows, columns = (range(s.start, s.stop) for s in at.box)
    for y in rows:
        for x in columns:
            left, right = x - 0.5 + float(east[y, x]), x + 0.5 + float(east[y, x + 1])
            wanted = 0.0
            for column in (x - 1, x, x + 1):  # in each stands its own floor and roof
                low, high = max(left, column - 0.5), min(right, column + 0.5)
                if low < high:
                    ground = y - 0.5 + float(north[y, column]), y + 0.5 + float(north[y + 1, column])
                    wanted += integral(low, high, *ground)
            assert found[y - rows[0], x - columns[0]] == pytest.approx(wanted, abs=1e-5 * at.shares.max())
    assert np.abs(found - at.shares).max() > 0.03 * at.shares.max()


def test_what_a_boundary_sweeps_is_not_lost():
    random = np.random.default_rng(2)
    east, north = (random.normal(0, 0.1, shape).astype(np.float32) for shape in ((NY, NX + 1), (NY + 1, NX)))
    at = stamp(STAR, 60, NONE, SHAPE)
    assert at.box == (slice(0, NY), slice(0, NX))
    east[:, [0, -1]] = north[[0, -1]] = 0
    assert moved(STAR, at, NONE, east, north).sum() == pytest.approx(at.shares.sum(), rel=1e-9)
    assert moved(STAR, at, NONE, np.zeros((0, 0), np.float32), north) is at.shares
    assert at.nearest == np.inf  # whatever is not in it is beside the CCD


def test_parts_that_arrive_far_away():
    radius = scale(3.0, 3.0)
    assert radius == pytest.approx(3.0 / (2 * np.sqrt(2 ** (1 / 3) - 1)))
    source = np.array([0.0, 0.0, 1.0, 3.0, 3.0])
    r = np.linspace(0, 5, 20001)
    inside = np.trapezoid(2 * np.pi * r * profile(r, 0.0, source), r)
    assert float(farther(source, 5.0)) == pytest.approx(1 - inside, abs=1e-7)


@pytest.mark.parametrize(("x", "y", "distance"), [(-30.5, 20.0, 30.0), (-3.5, -4.5, 5.0), (20.0, 20.0, 0.0)])
def test_sources_without_stamp(x, y, distance):
    at = stamp(np.array([x, y, 1.0, 3.0, 3.0]), -1, NONE, SHAPE)
    assert at.shares.size == 0
    assert at.nearest == pytest.approx(distance)


def test_stamps_grow_with_the_flux_and_stop_where_they_do_not_pay():
    points = np.tile(STAR, (5, 1))
    points[:, 2] = 1.0, 300.0, 1e5, 1e9, 1e5
    points[4, 3] = 1.9  # too sharp
    halves = half_sizes(points, 1.0)
    assert halves[0] == halves[4] == -1
    assert 0 < halves[1] < halves[2] < halves[3] == module._LARGEST
    assert len(half_sizes(points[:0], 1.0)) == 0
