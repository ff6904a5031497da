import numpy as np
import pytest

from lsstcal_dask.isr import overscan as module
from lsstcal_dask.isr import transient, wander
from lsstcal_dask.isr.overscan import OverscanConfig, row_levels
from lsstcal_dask.statistics.stacks import lines

ROWS, COLUMNS = 1024, 48


def reference_pixels(seed, n=8, sigma=4.0, jitter=0.0, rows=ROWS):
    random = np.random.default_rng(seed)
    y = np.arange(rows)
    level = 25000 + 0.002 * y + 3 * np.exp(-y / 12.0) + 0.8 * np.sin(y / 180.0)
    level = level + random.normal(0, jitter, (n, rows))
    pixels = level[:, :, None] + random.normal(0, sigma, (n, rows, COLUMNS + 3))
    return np.rint(pixels).astype(np.uint16), level


def test_level_is_found_within_its_error():
    pixels, level = reference_pixels(1)
    found = row_levels(pixels)
    pull = (found.level - level) / np.sqrt(found.variance)
    assert 0.85 < pull.std() < 1.15  # levels of one frame have about 17 degrees of freedom
    assert np.abs((found.level - level).mean()) < 0.05
    # Far better than row means: 17 numbers instead of 1024.
    assert (found.level - level).std() < 0.25 * 4 / np.sqrt(COLUMNS)


def test_read_noise_is_that_of_the_pixels_with_rounding():
    pixels, _ = reference_pixels(2, n=16)
    expected = np.sqrt(4.0**2 + 1 / 12)
    error = expected / np.sqrt(2 * 16 * ROWS * (COLUMNS - 1))
    assert abs(np.sqrt(np.mean(row_levels(pixels).read_noise ** 2)) - expected) < 4 * error


def test_jittering_rows_pull_the_level_towards_their_own_means():
    pixels, level = reference_pixels(3, jitter=1.0)
    found = row_levels(pixels)
    error = (found.level - level).std()
    spline_only = 1.0  # leaves the whole jitter
    row_only = 4 / np.sqrt(COLUMNS)
    best = 1 / np.sqrt(1 / spline_only**2 + 1 / row_only**2)
    assert error < 1.1 * best
    assert 0.9 < ((found.level - level) / np.sqrt(found.variance)).std() < 1.1


@pytest.mark.parametrize("method", ["spline", "mean", "row"])
def test_cosmic_rays_and_a_bleeding_star_do_not_move_it(method):
    """Five cosmic rays and one star bleeding into the reference pixels (Sec. 3.1: largest error 0.3 electron)."""
    clean, level = reference_pixels(4, n=1)
    dirty = clean.astype(np.int32)
    random = np.random.default_rng(5)
    for y, x in zip(random.integers(0, ROWS - 4, 5), random.integers(0, COLUMNS - 8, 5), strict=True):
        dirty[0, y : y + 3, x : x + 8] += 3000
    dirty[0, 400:460] += (2000 * np.exp(-np.arange(COLUMNS + 3) / 20.0)).astype(np.int32)
    found = row_levels(dirty, OverscanConfig(method=method))
    error = np.abs(found.level[0] - level[0]).max()
    if method == "spline":
        assert error < 0.3 * 1.5  # 0.3 electron would be 0.2 adu; a bridge over 60 rows has its own noise
        assert found.rejected[0] >= 60
    elif method == "row":
        assert np.isnan(error)  # a row under the bleed has no level of its own: what the spline is for


def test_a_frame_without_a_usable_row_has_no_level():
    pixels, _ = reference_pixels(6, n=2)
    pixels[1] = 65535
    found = row_levels(pixels)
    assert np.isfinite(found.level[0]).all()
    assert found.read_noise[1] == 0


def test_no_reference_pixels_is_no_level_and_no_noise():
    found = row_levels(np.zeros((3, 10, 0), np.uint16))
    assert found.level.shape == (3, 10)
    assert (found.level == 0).all()
    assert np.isnan(found.read_noise).all()


def test_integer_staircase_is_avoided():
    """A median of integers would be wrong by up to half an adu; the level is not."""
    random = np.random.default_rng(8)
    level = 1000.3
    pixels = np.rint(level + random.normal(0, 1.0, (1, 512, 50))).astype(np.uint16)
    assert abs(row_levels(pixels).level.mean() - level) < 0.03
    assert abs(np.median(pixels) - level) > 0.25


def test_frames_do_not_influence_each_other():
    pixels, _ = reference_pixels(9, n=4)
    together = row_levels(pixels)
    for i in range(4):
        alone = row_levels(pixels[i : i + 1])
        np.testing.assert_allclose(alone.level[0], together.level[i], atol=2e-3)


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="clip"):
        OverscanConfig(clip=0.5)


def test_the_start_is_as_sure_as_five_decays_may_be(monkeypatch):
    """In 10 rows, less than 1.2 of the error of five free decays and a mean in white noise, and without them twice.

    A hundred frames tell it to 7 %.
    """
    pixels, level = reference_pixels(13, n=100)
    shapes = np.exp(-np.arange(ROWS) / np.array([*transient._TIMES, np.inf])[:, None])
    free = np.einsum("iy,ij,jy->y", shapes, np.linalg.inv(shapes @ shapes.T), shapes)[:10].mean()
    bound = np.sqrt((4.0**2 + 1 / 12) / COLUMNS * free)

    def error():
        return np.sqrt(((row_levels(pixels).level - level)[:, :10] ** 2).mean())

    assert error() < 1.2 * bound
    decays = transient._decays(np.ones(ROWS, bool).tobytes(), 200)
    nothing = transient.Transient(*np.zeros((2, 100, ROWS)), np.zeros((100, 5, 5)), decays)
    monkeypatch.setattr(wander, "settle", lambda *_: nothing)
    assert error() > 2 * bound


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("columns", [9, 16, 48, 61])
def test_moments_of_all_pixels_equal_numpy(dtype, columns):
    """Rows shorter than a vector, of whole vectors, and with a rest; one far off and one whose middle is."""
    pixels = np.random.default_rng(13).normal(25000, 6, (3, 40, 70)).astype(dtype)[:, :, 5 : 5 + columns]
    pixels[0, 3, 5], pixels[1, 4], pixels[2, 7, columns // 2] = 60000, 0, 60000
    mean, squares, used = module._all_moments(pixels)
    np.testing.assert_allclose(mean, pixels.mean(axis=2, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(squares, pixels.var(axis=2, dtype=float) * columns, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(used, np.full((3, 40), columns))


def test_pixels_that_are_nan_take_no_part_in_moments():
    pixels = np.random.default_rng(14).normal(25000, 6, (2, 30, 40)).astype(np.float32)
    pixels[1, 4, 5:8] = np.nan
    mean, squares, used = module._all_moments(pixels)
    np.testing.assert_allclose(mean, np.nanmean(pixels, axis=2, dtype=float))
    np.testing.assert_allclose(squares, np.nanvar(pixels, axis=2, dtype=float) * used)
    assert used[1, 4] == 37
    assert used.sum() == 2 * 30 * 40 - 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_row_moments_equal_numpy(dtype):
    rng = np.random.default_rng(12)
    pixels = rng.normal(1000, 6, (2, 150, 70)).astype(dtype)[:, :, 5:66]
    pixels[0, 3, 5], pixels[1, 4] = 60000, 0
    centre, reach = np.full((2, 150), 1000.0), np.array([25.0, np.inf])
    mean, squares, used = module._row_moments(*lines(pixels), 61, centre, reach)
    kept = np.abs(pixels - centre[:, :, None]) <= reach[:, None, None]
    np.testing.assert_array_equal(used, kept.sum(axis=2))
    expected = np.ma.masked_array(pixels.astype(float), ~kept)
    np.testing.assert_allclose(mean, expected.mean(axis=2))
    np.testing.assert_allclose(squares, (expected.var(axis=2) * used), atol=1e-6)
    nothing = module._row_moments(*lines(pixels), 61, centre + 1e7, np.array([1.0, 1.0]))
    assert np.isnan(nothing[0]).all()
    assert not nothing[2].any()
