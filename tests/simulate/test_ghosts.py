"""Ghosts: their light, their colour, and that those of all spots add up to those of the screen."""

import numpy as np
import pytest
from scipy.stats import qmc

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.filters import Filters, transmission
from lsstcal_dask.simulate.ghosts import _SURFACES, Ghosts, Scatter, ghost, scatter, spot_ghosts
from lsstcal_dask.simulate.optics import OBSCURATION, PUPIL_RADIUS, edge_mm

SEED = 4


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


def mesh(edge, reach, n):
    """Centres of n x n squares over [-reach, reach] radii of the field, mm."""
    at = edge * reach * ((np.arange(n) + 0.5) * 2 / n - 1)
    return np.meshgrid(at, at)


def test_all_ghosts_hold_their_fraction_of_the_light(camera):
    edge = edge_mm(camera)
    x, y = mesh(edge, 1.4, 700)
    light = ghost(SEED, Ghosts(fraction=0.02), camera, "none", x, y, 700.0)
    # in units of the light focused on the field, pi edge**2; the squares at edges err by 1 / 700 of each at most
    assert light.mean() * 2.8**2 / np.pi == pytest.approx(0.02, rel=2e-3)
    assert light.max() > 0.02
    assert light.min() == 0


def test_brightness_of_one_picture_of_the_pupil(camera):
    edge = edge_mm(camera)
    large = _SURFACES[0]
    # the second picture ends 0.87 from its centre; from there to the rim of the first is only the first, 1.15 wide
    x = edge * (large.centre[0] + 1.0)
    expected = 0.015 * large.share / (large.radius**2 * (1 - OBSCURATION**2))
    assert ghost(SEED, Ghosts(), camera, "none", x, edge * large.centre[1], 700.0) == pytest.approx(expected)
    assert expected == pytest.approx(0.0090, abs=1e-4)


def test_edges_of_a_picture_are_as_wide_as_its_walk(camera):
    edge = edge_mm(camera)
    large = _SURFACES[0]
    rim = large.centre[0] + large.radius
    x = edge * (rim + large.walk * np.array([-1.01, 0.0, 1.01]))
    light = ghost(SEED, Ghosts(), camera, "none", x, edge * large.centre[1], 700.0)
    assert light[2] == 0
    assert light[1] / light[0] == pytest.approx(0.5, abs=0.03)  # the rim, almost straight, cuts a disc in two


def test_ghosts_of_spots_add_up_to_the_ghost_of_the_screen(camera):
    """Spots spread evenly over the field, each lit through a random footprint: positions counted in squares."""
    edge, n, cells, reach = edge_mm(camera), 2**18, 40, 1.4
    settings, band, w = Ghosts(), "r", 690.0
    draws = qmc.Sobol(4, seed=1).random(n)
    spot = edge * np.sqrt(draws[:, 0])
    ray = PUPIL_RADIUS * np.sqrt(OBSCURATION**2 + (1 - OBSCURATION**2) * draws[:, 2])
    angles = 2 * np.pi * draws[:, [1, 3]]
    found = spot_ghosts(
        SEED,
        settings,
        camera,
        band,
        spot * np.cos(angles[:, 0]),
        spot * np.sin(angles[:, 0]),
        (ray * np.cos(angles[:, 1]), ray * np.sin(angles[:, 1])),
        w,
        beam=0.12,
    )
    sides = edge * reach * np.linspace(-1, 1, cells + 1)
    area = (2 * reach / cells) ** 2 / np.pi  # of a square over that of the field
    summed, noise = np.zeros((cells, cells)), np.zeros((cells, cells))
    for x, y, _, fraction in found:
        count = np.histogram2d(y, x, (sides, sides))[0]
        summed += fraction * count / (n * area)
        noise += (fraction / (n * area)) ** 2 * count
    x, y = mesh(edge, reach, cells * 12)
    screen_ghost = ghost(SEED, settings, camera, band, x, y, w).reshape(cells, 12, cells, 12).mean(axis=(1, 3))
    # counts of a low-discrepancy sequence scatter less than random ones, so Poisson's is an upper limit
    lit = noise > 0
    pull = (summed - screen_ghost)[lit] / np.sqrt(noise[lit])
    assert np.mean(pull**2) < 1
    assert np.abs(summed - screen_ghost).max() < 0.05 * screen_ghost.max()
    assert summed.sum() == pytest.approx(screen_ghost.sum(), rel=1e-3)


def test_ghosts_of_one_spot(camera):
    edge = edge_mm(camera)
    found = spot_ghosts(SEED, Ghosts(), camera, "none", 2.0, -1.0, (3.0, 1.0), 700.0, beam=0.12)
    assert len(found) == len(_SURFACES)
    for (x, y, radius, fraction), s in zip(found, _SURFACES, strict=True):
        assert x == pytest.approx(edge * s.centre[0] + 2 * s.walk + edge * s.radius * 3 / 4.18)
        assert y == pytest.approx(edge * s.centre[1] - s.walk + edge * s.radius / 4.18)
        assert radius == pytest.approx(edge * s.radius * 0.12 / 4.18)
        assert fraction == pytest.approx(0.015 * s.share)
    assert sum(row[3] for row in found) == pytest.approx(0.015)


def test_colour_of_ghosts(camera):
    x = np.array([0.5, 1.0]) * edge_mm(camera)
    light = ghost(SEED, Ghosts(color=0.2), camera, "none", x, 0 * x, [300.0, 500.0, 700.0])
    np.testing.assert_allclose(light / light[:, 2:], [[1.2, 1.05, 1.0]] * 2)


def test_the_filter_reflects_what_it_does_not_pass(camera):
    filters = Filters(wander=0)
    for w in (620.0, 690.0):
        passed = float(transmission(SEED, filters, camera, "r", w, 0.0, 0.0))
        found = spot_ghosts(SEED, Ghosts(color=0), camera, "r", 0.0, 0.0, (3.0, 0.0), w, filters, beam=0.12)
        # 0.65 of the light is in the two ghosts of the filter
        expected = 0.015 * (0.35 + 0.65 * (1 + 4 * (1 - passed)))
        assert sum(row[3] for row in found) == pytest.approx(expected)


def test_ghosts_switched_off_or_impossible(camera):
    x = np.zeros((2, 3))
    off = Ghosts(on=False)
    np.testing.assert_array_equal(ghost(SEED, off, camera, "r", x, x, [500.0, 600.0]), np.zeros((2, 3, 2)))
    assert spot_ghosts(SEED, off, camera, "r", 0.0, 0.0, (3.0, 0.0), 600.0, beam=0.12) == []
    with pytest.raises(WrongUse, match="no filter 'w'"):
        ghost(SEED, Ghosts(), camera, "w", x, x, 500.0)
    with pytest.raises(WrongUse, match="no filter 'w'"):
        spot_ghosts(SEED, off, camera, "w", 0.0, 0.0, (3.0, 0.0), 600.0, beam=0.12)


def test_scattered_floor(camera):
    x, y = mesh(edge_mm(camera), 0.7, 9)
    floors = np.array([scatter(seed, Scatter(), camera, x, y, 700.0) for seed in range(300)])
    assert floors.mean(axis=0) == pytest.approx(0.004, abs=5 * 0.2 * 0.004 / np.sqrt(300))
    np.testing.assert_allclose(floors.std(axis=0), 0.2 * 0.004, rtol=5 / np.sqrt(2 * 300))
    assert floors.min() >= 0
    both = scatter(SEED, Scatter(), camera, x, y, [400.0, 900.0])
    np.testing.assert_allclose(both[..., 0] / both[..., 1], 1.5)  # (9 / 4)**0.5
    off = scatter(SEED, Scatter(on=False), camera, x, y, [400.0, 900.0])
    np.testing.assert_array_equal(off, np.zeros((9, 9, 2)))
