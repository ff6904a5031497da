"""Pixel borders: polygons against hand calculation, each distortion against its closed form."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import convolve2d

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.pixels import (
    EdgeDistortion,
    PixelJitter,
    TreeRings,
    areas,
    centroids,
    corners,
    rings,
    rings_truth,
)

SEED = 5
NO_RINGS, NO_EDGES, NO_JITTER = TreeRings(on=False), EdgeDistortion(on=False), PixelJitter(on=False)


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini9").detectors[0]


def test_area_and_centroid_of_one_pixel_by_hand():
    xi = np.zeros((2, 2, 2), np.float32)
    xi[:, 1, 1] = 0.5, 0.25  # upper right corner to (1, 0.75): the square gains triangles of 0.25 and 0.125
    assert areas(xi)[0, 0] == pytest.approx(1.375, rel=1e-6)
    shifted = np.ones((2, 2, 2), np.float32) * np.array([0.25, -0.5], np.float32)[:, None, None]
    assert areas(shifted)[0, 0] == 1
    np.testing.assert_allclose(centroids(shifted)[:, 0, 0], [0.25, -0.5], rtol=1e-6)
    wide = np.zeros((2, 2, 2), np.float32)
    wide[0, 1] = -0.25, 0.25  # trapezium of parallel sides 1 and 1.5, height 1: centre (1 + 2 * 1.5) / (3 * 2.5)
    np.testing.assert_allclose(centroids(wide)[:, 0, 0], [0, 4 / 7.5 - 0.5], atol=1e-7)


def test_polygons_agree_with_their_triangles():
    xi = np.random.default_rng(1).uniform(-0.2, 0.2, (2, 5, 6)).astype(np.float32)
    y, x = np.mgrid[:5, :6]
    at = np.stack([x, y]) + xi.astype(float)
    a, b, c, d = at[:, :-1, :-1], at[:, :-1, 1:], at[:, 1:, 1:], at[:, 1:, :-1]

    def triangle(p, q, r):
        return ((q - p)[0] * (r - p)[1] - (q - p)[1] * (r - p)[0]) / 2, (p + q + r) / 3

    (one, at_one), (two, at_two) = triangle(a, b, c), triangle(a, c, d)
    np.testing.assert_allclose(areas(xi), one + two, rtol=1e-6)
    centre = (one * at_one + two * at_two) / (one + two) - np.stack([x, y])[:, :-1, :-1] - 0.5
    np.testing.assert_allclose(centroids(xi), centre, atol=1e-6)


def test_areas_sum_to_the_outline(detector):
    xi = corners(SEED, TreeRings(), EdgeDistortion(), PixelJitter(displacement=0.05), detector)
    ny, nx = detector.shape
    y, x = np.mgrid[: ny + 1, : nx + 1] + xi[::-1].astype(float)
    border = [np.s_[0, :-1], np.s_[:-1, -1], np.s_[-1, :0:-1], np.s_[:0:-1, 0]]
    px, py = (np.concatenate([v[s] for s in border]) for v in (x, y))
    outline = (px * np.roll(py, -1) - py * np.roll(px, -1)).sum() / 2
    assert areas(xi).sum(dtype=float) == pytest.approx(outline, abs=6e-8 * ny * nx)
    assert abs(outline - ny * nx) > 10


def test_rings_make_the_area_of_their_closed_form(detector):
    """A wave of wave number k loses at most k**2 / 8 of its amplitude in a pixel."""
    settings = TreeRings(far=(1e-3, 2e-3))
    area = areas(corners(SEED, settings, NO_EDGES, NO_JITTER, detector))
    truth = rings(SEED, settings, detector)
    y, x = np.mgrid[: detector.shape[0], : detector.shape[1]]
    r = np.hypot(x - truth.center[0], y - truth.center[1])
    step = 1e-3
    flow = [(r + side) * rings_truth(SEED, settings, detector, r + side) for side in (-step, step)]
    expected = 1 + (flow[1] - flow[0]) / (2 * step) / r
    amplitude = truth.near + truth.far
    allowed = amplitude * ((2 * np.pi / truth.period) ** 2 / 8).sum() + amplitude**2 * len(truth.period) + 1e-6
    assert np.abs(area - expected).max() < allowed
    assert area.std() > 5 * allowed


def test_rings_grow_with_the_distance_from_a_centre_beyond_a_corner(detector):
    sides = detector.shape[::-1]
    for number in range(20):
        one = replace(detector, id=number)
        truth = rings(SEED, TreeRings(), one)
        assert all(c < -0.2 * n or c > 1.2 * n for c, n in zip(truth.center, sides, strict=True))
        assert 1e-4 <= truth.far <= 2e-4
        far = np.abs(rings_truth(SEED, TreeRings(near=0), one, truth.reach - np.arange(200)))
        near = np.abs(rings_truth(SEED, TreeRings(near=0), one, 0.5 * truth.reach - np.arange(200)))
        assert far.std() > 4 * near.std()
        assert rings(SEED, TreeRings(strong_fraction=1), one).far == pytest.approx(10 * truth.far)
    assert len({rings(SEED, TreeRings(), replace(detector, id=i)).center for i in range(20)}) == 20


def test_edges_and_mid_line_by_hand(detector):
    settings = EdgeDistortion(inward=0.3, length=5, midline=0.02, midline_length=3)
    area = areas(corners(SEED, NO_RINGS, settings, NO_JITTER, detector))
    ny, nx = detector.shape
    lost = 0.3 * (1 - np.exp(-1 / 5))
    np.testing.assert_allclose(area[60, [0, -1]], 1 - lost, rtol=1e-6)
    np.testing.assert_allclose(area[[0, -1], 200], 1 - lost, rtol=1e-6)
    gained = 0.02 * np.exp(-1 / 3)
    np.testing.assert_allclose(area[ny // 2 - 1 : ny // 2 + 1, 200], 1 + gained, rtol=1e-5)
    np.testing.assert_allclose(area[ny // 2 + 1, 200], 1 - gained + 0.02 * np.exp(-2 / 3), rtol=1e-5)
    np.testing.assert_allclose(area[64, nx // 2], 1, atol=1e-5)


def _energies(xi):
    """Divergence and curl of each pixel, from its four corners."""
    xi = xi.astype(float)
    across = (xi[:, :-1, 1:] + xi[:, 1:, 1:] - xi[:, :-1, :-1] - xi[:, 1:, :-1]) / 2
    along = (xi[:, 1:, :-1] + xi[:, 1:, 1:] - xi[:, :-1, :-1] - xi[:, :-1, 1:]) / 2
    return across[0] + along[1], across[1] - along[0]


def _error(kernel, n):
    """Relative error of the variance of n values of white noise smoothed by a kernel."""
    correlation = convolve2d(kernel, kernel[::-1, ::-1])
    return np.sqrt(2 * (correlation**2).sum() / correlation.max() ** 2 / n)


@pytest.mark.parametrize("curl", [0.0, 0.3, 1.0])
def test_jitter_has_its_size_and_its_curl(detector, curl):
    size = 2e-3
    xi = corners(SEED, NO_RINGS, NO_EDGES, PixelJitter(displacement=size, curl=curl), detector)
    n = xi[0].size
    corner = np.array([[1.0, -1.0], [1.0, -1.0]]) / 2
    for part in xi:
        assert abs(part.var() / size**2 - 1) < 4 * _error(corner, n)
    pixel = np.array([[-1.0, 0, -1], [0, 4, 0], [-1, 0, -1]]) / 2
    for found, share in zip(_energies(xi), (1 - curl, curl), strict=True):
        if share:
            assert abs(found.var() / (5 * share * size**2) - 1) < 4 * _error(pixel, n)
        else:
            assert np.abs(found).max() < 1e-8
    area = areas(xi)
    assert area.std() == pytest.approx(size * np.sqrt(5 * (1 - curl)), rel=4 * _error(pixel, n), abs=10 * size**2)


def test_default_jitter_is_that_of_the_literature(detector):
    area = areas(corners(SEED, NO_RINGS, NO_EDGES, PixelJitter(), detector))
    assert area.std() == pytest.approx(3e-3, rel=0.03)


def test_corners_are_the_same_whoever_asks(detector):
    settings = TreeRings(), EdgeDistortion(), PixelJitter()
    one = corners(SEED, *settings, detector)
    corners(SEED + 1, *settings, detector)
    again = corners(SEED, *settings, detector)
    np.testing.assert_array_equal(one, again)
    for other in (corners(SEED + 1, *settings, detector), corners(SEED, *settings, replace(detector, id=77))):
        assert (other != one).mean() > 0.99
    assert one.dtype == np.float32
    assert one.shape == (2, detector.shape[0] + 1, detector.shape[1] + 1)


def test_without_distortion_pixels_are_squares(detector):
    xi = corners(SEED, NO_RINGS, NO_EDGES, NO_JITTER, detector)
    assert not xi.any()
    assert (areas(xi) == 1).all()
    assert not centroids(xi).any()
    assert not rings_truth(SEED, NO_RINGS, detector, np.arange(9.0)).any()
