"""Structure that is not noise: planes by hand, noise of white images, what is found and what is not."""

import numpy as np
import pytest

from lsstcal_dask.statistics.starlet import _noise, bin_weighted, significant, spread


def disc(shape, centre, radius, depth):
    y, x = np.indices(shape)
    return np.where(np.hypot(y - centre[0], x - centre[1]) < radius, depth, 0.0)


def test_noise_of_planes_is_that_of_white_images():
    """The rms of each plane of 300 x 300 pixels of noise; wide planes have few independent values."""
    from lsstcal_dask.statistics.starlet import _smooth

    image = np.random.default_rng(1).standard_normal((300, 300))
    middle = [float(share[150, 150]) for share in _noise(4, image.shape)]
    for scale, expected in enumerate(middle[:4]):
        smooth = _smooth(image, scale)
        found = (image - smooth).std()
        assert found == pytest.approx(expected, rel=4 * 2**scale * 2 / 300)
        image = smooth
    assert middle[0] == pytest.approx(0.8907, abs=1e-4)  # Starck & Murtagh (2006) give 0.891, 0.200, 0.086, 0.041
    assert middle[1:4] == pytest.approx((0.200, 0.086, 0.041), abs=1e-3)


def test_noise_of_planes_at_the_edges_is_that_of_white_images():
    """Pixels of 4000 images of 20 x 20, to four times what so many tell, everywhere."""
    from lsstcal_dask.statistics.starlet import _planes

    images = np.random.default_rng(4).standard_normal((4000, 20, 20))
    found = np.array([list(_planes(image, 3)) for image in images]).std(axis=0)
    expected = np.array(list(_noise(3, (20, 20))))
    assert np.abs(found / expected - 1).max() < 5 / np.sqrt(2 * 4000)
    assert expected[3, 0, 0] > 1.9 * expected[3, 10, 10]


def test_a_large_image_is_that_of_the_middle_but_for_its_edges():
    small, large = (list(_noise(2, (size, 33))) for size in (33, 60))
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(b[:16], a[:16])
        np.testing.assert_allclose(b[-17:], a[-17:])
        np.testing.assert_allclose(b[16:44], np.repeat(a[16:17], 28, axis=0))


def test_noise_alone_is_nothing():
    values = np.random.default_rng(2).normal(0, 1e-3, (200, 300))
    found, where = significant(values, np.full(values.shape, 1e-6), 5, (5.5, 0.0))
    assert not where.any()
    assert not found.any()


@pytest.mark.parametrize(("radius", "depth"), [(2.0, -0.02), (12.0, -0.005), (60.0, -0.005)])
def test_structure_is_found_at_every_scale_and_nothing_beside_it(radius, depth):
    shape, sigma = (256, 256), 1e-3
    truth = disc(shape, (120, 131), radius, depth)
    values = truth + np.random.default_rng(3).normal(0, sigma, shape)
    found, where = significant(values, np.full(shape, sigma**2), 6, (5.0, 0.0))
    inside = truth != 0
    assert abs((found - truth)[inside].mean()) < 0.1 * abs(depth)
    far = disc(shape, (120, 131), 1.5 * radius + 8, 1.0) == 0
    assert abs(found[far]).max() < 0.1 * abs(depth)
    assert where[inside].mean() > 0.8


def test_an_even_image_is_all_structure():
    found, where = significant(np.full((64, 64), 0.01), np.full((64, 64), 1e-6), 3, (5.0, 0.0))
    np.testing.assert_allclose(found, 0.01)
    assert where.all()


def test_unknown_pixels_take_part_in_nothing():
    values, variance = np.zeros((40, 40)), np.full((40, 40), 1e-6)
    values[10, 10], values[20, 20:25] = 1e6, np.nan
    variance[10, 10] = np.nan
    found, where = significant(values, variance, 3, (5.0, 0.0))
    assert not where.any()
    assert not found.any()
    assert not significant(np.full((8, 8), np.nan), variance[:8, :8], 2, (5.0, 0.0))[1].any()


def test_small_effects_are_left_alone():
    values = np.full((32, 32), 2e-4)
    assert not significant(values, np.full(values.shape, 1e-12), 2, (5.0, 3e-4))[1].any()


def test_blocks_by_hand():
    values = np.array([[1.0, 3.0, 5.0], [1.0, np.nan, 7.0], [9.0, 9.0, 2.0]])
    variance = np.array([[1.0, 0.5, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, np.nan]])
    mean, error = bin_weighted(values, variance, 2)
    np.testing.assert_allclose(mean, [[(1 + 6 + 1) / 4, 6.0], [9.0, np.nan]])
    np.testing.assert_allclose(error, [[1 / 4, 1 / 2], [1 / 2, np.nan]])


def test_blocks_of_a_plane_make_the_plane_again():
    y, x = np.indices((24, 40))
    plane = 2.0 + 0.1 * y - 0.3 * x
    again = spread(bin_weighted(plane, np.ones(plane.shape), 8)[0], 8, plane.shape)
    np.testing.assert_allclose(again[4:-4, 4:-4], plane[4:-4, 4:-4], atol=1e-14)
