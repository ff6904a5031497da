"""Boundaries that charge moves: electrostatics by brute force, symmetry, sums, and the number of time steps."""

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.simulate import brighter_fatter as module
from lsstcal_dask.simulate.brighter_fatter import (
    BrighterFatter,
    area_coefficients,
    boundary_coefficients,
    boundary_shifts,
    margin,
    quadrants,
    steps,
    weights,
)

ON = BrighterFatter()
VENDORS = ("e2v", "ITL")


def at(area, x, y):
    middle = len(area) // 2
    return area[middle + y, middle + x]


def shifts(charge, settings=ON, box=None):
    """Shifts of the boundaries of a rectangle (y0, y1, x0, x1) of an image that goes on beyond its edges."""
    y0, y1, x0, x1 = box or (0, charge.shape[0], 0, charge.shape[1])
    pad = margin(settings)
    tables = [np.pad(q, (0, pad - len(q))).astype(np.float32) for q in quadrants(settings, "e2v")]
    east, north = np.empty((y1 - y0, x1 - x0 + 1), np.float32), np.empty((y1 - y0 + 1, x1 - x0), np.float32)
    boundary_shifts(np.pad(charge, pad, mode="edge"), *tables, (y0, x0), east, north)
    return east, north


@pytest.mark.parametrize("vendor", VENDORS)
def test_areas_are_as_measured(vendor):
    area = area_coefficients(ON, vendor)
    assert at(area, 0, 0) == pytest.approx(-{"e2v": 3.49e-6, "ITL": 1.70e-6}[vendor])
    assert abs(area.sum()) < 1e-14 * abs(at(area, 0, 0))
    np.testing.assert_allclose(area, area[::-1], atol=1e-20)
    np.testing.assert_allclose(area, area[:, ::-1], atol=1e-20)
    assert at(area, 0, 1) > 1.5 * at(area, 1, 0) > 1.5 * at(area, 2, 0) > 0
    inner = area[1:-1, 1:-1].copy()
    inner[len(inner) // 2, len(inner) // 2] = 1
    assert (inner > 0).all()  # every other pixel gains


@pytest.mark.parametrize("vendor", VENDORS)
def test_tail_falls_as_a_dipole(vendor):
    area = area_coefficients(ON, vendor)
    distance = np.array([3, 4, 5, 6])
    mean = [np.sqrt(at(area, r, 0) * at(area, 0, r)) for r in distance]
    slope = np.polyfit(np.log(distance), np.log(mean), 1)[0]
    assert -3.5 < slope < -2.5  # r**-3 between conductors that are not yet felt


def test_other_vendor_strength_and_switch():
    assert at(area_coefficients(ON, "Andor"), 0, 0) == pytest.approx(-2.5e-6)
    double = BrighterFatter(strength=2.0, area_loss_e2v=1e-6)
    np.testing.assert_allclose(area_coefficients(double, "e2v"), area_coefficients(ON, "e2v") * 2e-6 / 3.49e-6)
    off = BrighterFatter(on=False)
    assert not area_coefficients(off, "e2v").any()
    np.testing.assert_array_equal(steps(off, "e2v", 1e5), [1.0])
    with pytest.raises(ValidationError):
        BrighterFatter(area_loss_e2v=-1e-6)


@pytest.mark.parametrize(("d", "m"), [(0, 0), (0, 1), (2, 0), (3, 5)])
def test_electrostatics_by_brute_force(d, m):
    """Follow drifts through the field of a cloud and its images: sums over a grid, a sum over the depth."""
    depth, end = 0.10, 0.32
    n = 12
    grid = (np.arange(n) + 0.5) / n - 0.5
    z = depth + np.geomspace(end - depth, 10 - depth, 300)
    along, cloud_x, cloud_y = (g.ravel()[:, None] for g in np.meshgrid(grid, 0.6 * grid, 0.6 * grid))
    x, y = d + 0.5 - cloud_x, m + along - cloud_y
    total = 0.0
    for i in range(-3, 4):
        for sign in (1, -1):
            cube = (x**2 + y**2 + (z - 20 * i - sign * depth) ** 2) ** 1.5
            total += sign * np.trapezoid((x / cube).mean(axis=0), z)
    found = module._attraction(depth, end, 8)[m, d]
    assert found == pytest.approx(total, rel=0.01)  # a grid of twelve: (1 / 12)**2 of a curvature of order one


def test_areas_follow_from_the_four_boundaries():
    east, north = boundary_coefficients(ON, "e2v")
    reach = ON.reach
    assert east.shape == (2 * reach + 1, 2 * reach + 2)
    assert north.shape == (2 * reach + 2, 2 * reach + 1)
    assert east[reach, reach] < 0 < east[reach, reach + 1]  # towards the pixel that holds the charge
    right = quadrants(ON, "e2v")[0]
    area = area_coefficients(ON, "e2v")
    # the pixel to the east: its western boundary is shared, its eastern one is one pixel farther
    up = quadrants(ON, "e2v")[1]
    assert at(area, 1, 0) == pytest.approx(right[0, 0] - right[0, 1] - 2 * up[1, 0])


def test_shifts_equal_the_plain_sum():
    charge = np.random.default_rng(1).poisson(5e4, (40, 45)).astype(np.float32)
    east, north = shifts(charge)
    table_east, table_north = boundary_coefficients(ON, "e2v")
    r = ON.reach
    # to the rounding of float32: 1e-7 of the largest sums, which are 5e4 * 1e-6
    for y, x in ((10, 12), (20, 20), (28, 30)):
        wide = charge[y - r : y + r + 1, x - r : x + r + 2].astype(float)
        tall = charge[y - r : y + r + 2, x - r : x + r + 1].astype(float)
        assert east[y, x + 1] == pytest.approx((table_east * wide).sum(), abs=1e-7)
        assert north[y + 1, x] == pytest.approx((table_north * tall).sum(), abs=1e-7)


@pytest.mark.parametrize("reach", [1, 3, 8])
def test_any_rectangle_equals_the_whole(reach):
    settings = BrighterFatter(reach=reach)
    charge = np.random.default_rng(2).poisson(5e4, (40, 45)).astype(np.float32)
    east, north = shifts(charge, settings)
    part_east, part_north = shifts(charge, settings, (7, 19, 3, 44))
    np.testing.assert_allclose(part_east, east[7:19, 3:45], atol=1e-8)
    np.testing.assert_allclose(part_north, north[7:20, 3:44], atol=1e-8)


def test_boundaries_never_pass_each_other():
    charge = np.zeros((30, 30), np.float32)
    charge[15, 15] = 1e7
    east, north = shifts(charge)
    assert east.max() == np.float32(0.45)
    assert north.min() == np.float32(-0.45)


def test_steps_follow_their_error():
    numbers = [len(steps(ON, "e2v", level)) for level in (10, 1e3, 1e4, 1e5)]
    assert numbers[0] == 1
    assert numbers == sorted(numbers)
    assert numbers[-1] >= 20
    fine = len(steps(BrighterFatter(error=5e-6), "e2v", 1e5))
    assert fine == pytest.approx(10 * numbers[-1], rel=0.06)  # second order, to one step in twenty
    np.testing.assert_array_equal(steps(ON, "e2v", 1e9), steps(ON, "e2v", ON.ceiling))
    loose = BrighterFatter(error=10 * ON.error)
    np.testing.assert_array_equal(steps(ON, "e2v", 0.0, 1e5), steps(loose, "e2v", 1e5))
    np.testing.assert_array_equal(steps(ON, "e2v", 1e5, 1.0), steps(ON, "e2v", 1e5))
    parts = steps(ON, "e2v", 1e5)
    assert parts.sum() == pytest.approx(1)
    np.testing.assert_allclose(parts[:-1], 2 * parts[-1])


@pytest.mark.parametrize("level", [1e3, 1e4, 5e4, 1e5])
def test_bound_holds_for_every_wave(level):
    spectrum = np.fft.fft2(area_coefficients(ON, "e2v"), (32, 32))
    number = len(steps(ON, "e2v", level))
    for growth in -np.unique(np.abs(spectrum).round(9)) * level:
        assert module._error(growth, number) < 1.01 * ON.error


def test_march_by_hand():
    """Two steps, one twice as long: charge 1 + noise, its weights, and the variance that follows."""
    growth = -0.3
    first = 2 / 3
    # a unit that came in the first step is added once more, having waited for half of that step, then moves for 1/3
    late = 1 + growth * (1 / 3) * (1 + 1)
    assert module._variance(growth, 2) == pytest.approx(first * late**2 + (1 - first))
    assert weights(1.0, 1.0) == (0.5, 0.5)
    assert weights(2.0, 1.0) == (0.25, 1.0)
