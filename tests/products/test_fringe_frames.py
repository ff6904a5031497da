"""Fringe frames, principal components and the test of uniformity, on frames made by hand."""

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.products.fringe_modes import choose_modes, coefficients, fringe_modes
from lsstcal_dask.products.fringes import (
    Sky,
    amplitude,
    background,
    fringe_frame,
    relative,
    uniformity,
    usable,
)

SHAPE = 48, 64


def waves(period=9.0, angle=0.3, phase=0.0):
    y, x = np.indices(SHAPE)
    found = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
    return found - found.mean()


def frames(count, size=0.01, level=4e4, seed=1):
    """Images (frame, y, x) of a tilted sky with fringes of one pattern, and masks of 3 % of the area."""
    random = np.random.default_rng(seed)
    y, x = np.indices(SHAPE) / 50
    smooth = level * (1 + 0.02 * random.normal(size=(count, 1, 1)) * x + 0.02 * y)
    images = random.poisson(smooth * (1 + size * waves())).astype(np.float32)
    masks = np.zeros(images.shape, bool)
    for image, mask in zip(images, masks, strict=True):
        j, i = random.integers(0, 40, 2)
        mask[j : j + 8, i : i + 12] = True
        image[mask] *= 5
    return images, masks


def sky(n=12, **columns):
    values = {"moon": np.full(n, -20.0), "sun": np.full(n, -40.0), "crowded": np.full(n, 0.01)}
    values |= {k: np.where(np.arange(n) < v[1], v[0], values[k]) for k, v in columns.items()}
    return Sky([f"e{i}" for i in range(n)], **values)


def test_frames_of_a_dark_empty_sky_are_used():
    good, remarks = usable(sky(14, moon=(10.0, 2), sun=(-12.0, 1), crowded=(0.06, 3)))
    assert good.tolist() == [False] * 3 + [True] * 11
    assert [r.split(":")[0] for r in remarks] == ["e0", "e0", "e1", "e0", "e1", "e2"]
    assert "twilight" in remarks[0]


@pytest.mark.parametrize(("column", "why"), [("moon", "moon"), ("sun", "twilight"), ("crowded", "5% of the area")])
def test_too_few_frames_are_refused_with_the_reason(column, why):
    value = {"moon": 5.0, "sun": -10.0, "crowded": 0.2}[column]
    with pytest.raises(InsufficientInputs, match=f"9 frames of a dark, empty sky .e0: .*{why}"):
        usable(sky(12, **{column: (value, 3)}))
    with pytest.raises(InsufficientInputs, match="4 frames of a dark, empty sky: give"):
        usable(sky(4))


def test_background_is_the_polynomial_beside_objects():
    y, x = np.indices(SHAPE)
    smooth = 100 + 0.3 * x - 0.2 * y + 0.01 * x * y
    mask = np.zeros(SHAPE, bool)
    mask[:8, :8] = True
    found = background(np.where(mask, 1e5, smooth), mask)
    np.testing.assert_allclose(found, smooth, rtol=1e-5)
    assert np.isnan(relative(smooth, mask)[mask]).all()
    with pytest.raises(InsufficientInputs, match="0 pixels without objects"):
        background(smooth, np.ones(SHAPE, bool))


def test_a_fringe_frame_is_the_median_of_skies():
    """Noise of a median of 24 frames: sqrt(pi / 2 / 24) of 1 / sqrt(level)."""
    images, masks = frames(24)
    frame, used = fringe_frame(images, masks)
    noise = np.sqrt(np.pi / 2 / 24 / 4e4)
    left = frame - 0.01 * waves()
    assert np.std(left) < 1.1 * noise
    assert used.min() >= 12
    assert used.max() == 24
    # without the masks objects are in the median of their places
    assert np.std(fringe_frame(images, np.zeros_like(masks))[0] - 0.01 * waves()) > 1.3 * np.std(left)


def test_bad_stacks_are_refused():
    images, masks = frames(10)
    with pytest.raises(InsufficientInputs, match="9 frames"):
        fringe_frame(images[:9], masks[:9])
    with pytest.raises(InconsistentGeometry, match=r"give .frame, y, x"):
        fringe_frame(images, masks[:9])


def test_amplitudes_and_their_errors():
    """60 frames: the width of pulls is known to 9 %, their mean to 0.13; hits of 1 % of the pixels move none."""
    images, masks = frames(60, size=0.004)
    random = np.random.default_rng(3)
    pulls = []
    for image, mask in zip(images, masks, strict=True):
        noisy = image + 3e3 * (random.random(SHAPE) < 0.01)
        value, error = amplitude(noisy, mask, waves(), image)
        pulls.append((value - 0.004) / error)
    assert abs(np.mean(pulls)) < 4 * 0.13
    assert np.std(pulls) == pytest.approx(1, abs=4 * 0.09)
    with pytest.raises(InsufficientInputs, match="flat"):
        amplitude(images[0], masks[0], np.zeros(SHAPE), images[0])


def modes_of(frames_=24, noise=0.002, seed=2):
    """Two CCDs with two maps each, coefficients in common, a tenth of the pixels masked."""
    random = np.random.default_rng(seed)
    c = random.normal(size=(frames_, 2)) * [1.0, 0.4] + [1.0, 0.0]
    maps = [np.stack([0.01 * waves(9, a), 0.01 * waves(7, a + 1)])[:, :30, :30].reshape(2, -1) for a in (0.2, 0.9)]
    data = [c @ m + noise * random.normal(size=(frames_, m.shape[1])) for m in maps]
    weight = [np.where(random.random(d.shape) < 0.1, 0.0, noise**-2) for d in data]
    return c, maps, [np.where(w > 0, d, np.nan) for d, w in zip(data, weight, strict=True)], weight


def test_modes_find_maps_and_their_number():
    """Error of the maps: noise / sqrt(frames) for each of two, 10 % masked; coefficients add sqrt(1 / pixels)."""
    c, maps, data, weight = modes_of()
    count, errors = choose_modes(data, weight, most=3)
    assert count == 2
    assert errors[0] > 2 * errors[1]
    found = fringe_modes(data, weight, 2)
    left = np.concatenate([found.coefficients @ f - c @ m for f, m in zip(found.maps, maps, strict=True)], axis=1)
    assert np.std(left) < 1.1 * 0.002 * np.sqrt(2 / 24 / 0.9)
    whole = np.concatenate(found.maps, axis=1)
    np.testing.assert_allclose(whole @ whole.T, np.eye(2), atol=1e-9)
    # one map is not enough
    assert fringe_modes(data, weight, 1).chi2 > 3 * found.chi2


def test_coefficients_have_honest_errors():
    c, maps, data, weight = modes_of(frames_=200)
    found, covariance = coefficients(maps, data, weight)
    pulls = (found - c) / np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert np.std(pulls) == pytest.approx(1, abs=4 / np.sqrt(2 * 400))
    with pytest.raises(InsufficientInputs, match="frame 3 has no good pixel"):
        coefficients(maps, data, [np.where(np.arange(200)[:, None] == 3, 0.0, w) for w in weight])
    with pytest.raises(InsufficientInputs, match="9 frames for 2 maps"):
        fringe_modes([d[:9] for d in data], [w[:9] for w in weight], 2)


def test_uniform_coefficients_are_not_rejected():
    """At 0.001, none of 40 tries but with a probability of 4 %."""
    x, y = (a.ravel() for a in np.meshgrid(np.arange(6.0), np.arange(6.0)))
    random = np.random.default_rng(5)
    level = random.normal(size=(12, 1))
    tries = [uniformity(level + 0.1 * random.normal(size=(12, 36)), np.full((12, 36), 0.1), x, y) for _ in range(40)]
    assert sum(one.rejected for one in tries) <= 1
    assert tries[0].dof == 12 * 35
    assert (tries[0].zones == 0).all()


def test_waves_over_the_field_ask_for_more_flats():
    x, y = (a.ravel() for a in np.meshgrid(np.arange(6.0), np.arange(6.0)))
    random = np.random.default_rng(6)
    steps = random.normal(size=(12, 1)) * np.where(x < 3, 1.0, -1.0)
    values = steps + 0.1 * random.normal(size=(12, 36))
    values[0, 0] = np.nan
    found = uniformity(values, np.full((12, 36), 0.1), x, y)
    assert found.rejected
    assert found.zones.max() == 3
    right = found.zones[x >= 3]
    assert not set(right) & set(found.zones[x < 3])
    np.testing.assert_allclose(found.values[:, right], np.where(x >= 3, steps, np.nan)[:, x >= 3], atol=0.2)
