"""Relative gains from the steps of flats at the boundaries of amplifiers."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.continuity import (
    ContinuityConfig,
    Edge,
    check_continuity,
    continuity_amplifiers,
    edge_step,
    find_edges,
    gain_changes,
    gain_ratios,
    relative_gains,
    solve_steps,
)

CAMERA = load_camera("mini9")
CCD = CAMERA.detectors[0]


def lamp(shape, level, seed, response=0.001):
    """Electrons of a smooth flat with shot noise, some pixel response, and smaller pixels near the middle row."""
    rng = np.random.default_rng(seed)
    y, x = np.arange(shape[0])[:, None] / shape[0], np.arange(shape[1]) / shape[1]
    light = 1 + 0.1 * x - 0.15 * y + 0.1 * x * y - 0.1 * (x - 0.4) ** 2 + 0.05 * x**3
    light *= 1 + response * np.random.default_rng(99).normal(size=shape)
    edge = np.abs(np.arange(shape[0]) + 0.5 - shape[0] / 2)
    light *= 1 - 0.02 * np.exp(-edge / 1.0)[:, None]
    return rng.poisson(level * light).astype(float)


def amplifiers(ccd, gains, detector=CCD):
    found = []
    for amplifier, gain in zip(detector.amplifiers, gains, strict=True):
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        part = ccd[y : y + ny, x : x + nx][:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
        found.append(part / gain)
    return found


def true_gains(seed):
    gains = np.random.default_rng(seed).normal(1.5, 0.05, len(CCD.amplifiers))
    return gains, gains / np.exp(np.mean(np.log(gains)))


def test_sixteen_amplifiers_have_22_boundaries():
    edges = find_edges(CCD)
    assert len(edges) == 22
    assert sum(edge.along_x for edge in edges) == 8
    for edge in edges:
        low, high = (CCD.amplifiers[i].position for i in (edge.low, edge.high))
        assert high[edge.along_x] > low[edge.along_x]
        assert high[not edge.along_x] == low[not edge.along_x]


def test_step_of_a_polynomial_is_exact():
    """A cubic across and anything along, with a step of 0.7 % and pixels next to the boundary that are wrong."""
    across, along = np.arange(-40, 40) + 0.5, np.linspace(1, 2, 30)[:, None]
    flat = 1e4 * along**2 * np.exp(1e-3 * across - 2e-5 * across**2 + 1e-7 * across**3)
    low, high = flat[:, :40].copy(), 1.007 * flat[:, 40:]
    low[:, -3:] *= 0.9
    high[:, :3] *= 1.2
    step, error = edge_step(low, high)
    assert step == pytest.approx(np.log(1.007), abs=1e-9)
    assert error < 1e-6
    assert abs(edge_step(low, high, ContinuityConfig(skip=0))[0] - np.log(1.007)) > 0.01


def test_defects_do_not_move_a_step():
    rng = np.random.default_rng(1)
    flat = rng.poisson(4e4, (200, 80)).astype(float)
    clean, error = edge_step(flat[:, :40], flat[:, 40:])
    flat[rng.random(flat.shape) < 0.01] = 0.0
    flat[50, 45:60] = 1e6
    flat[3, 7] = np.nan
    flat[:, 60] *= 0.7  # a bad column
    assert edge_step(flat[:, :40], flat[:, 40:])[0] == pytest.approx(clean, abs=error)


def test_errors_of_steps_are_right():
    pulls = []
    for seed in range(150):
        flat = np.random.default_rng(seed).poisson(5e4, (60, 64)).astype(float)
        step, error = edge_step(flat[:, :32], flat[:, 32:])
        pulls.append(step / error)
    assert abs(np.mean(pulls)) < 3.5 / np.sqrt(150)
    # errors are only ever enlarged, by up to 1.2: the square root of chi2 of 54 degrees of freedom
    assert 0.75 < np.std(pulls) < 1 + 3.5 / np.sqrt(300)


def test_graph_by_hand():
    """Three in a row: steps 0.1 and 0.3; then a third one that contradicts them counts less."""
    edges = [Edge(0, 1, False), Edge(1, 2, False)]
    value, error = solve_steps(3, edges, np.array([0.1, 0.3]), np.array([0.01, 0.01]))
    np.testing.assert_allclose(value, [0.5 / 3, 0.2 / 3, -0.7 / 3], rtol=1e-12)
    # ln g_0 = (2 s_1 + s_2) / 3 of independent steps
    np.testing.assert_allclose(error, 0.01 * np.sqrt([5 / 9, 2 / 9, 5 / 9]), rtol=1e-12)
    value, _ = solve_steps(4, edges, np.array([0.1, np.nan]), np.full(2, 0.01))
    np.testing.assert_allclose(value, [0.05, -0.05, np.nan, np.nan])
    with pytest.raises(DegenerateSolution, match="no boundary"):
        solve_steps(3, edges, np.full(2, np.nan), np.full(2, 0.01))


def test_one_wrong_step_is_outvoted():
    gains = np.log(true_gains(2)[1])
    edges = find_edges(CCD)
    step = np.array([gains[e.low] - gains[e.high] for e in edges])
    step[5] += 0.05
    value, error = solve_steps(16, edges, step, np.full(len(edges), 1e-4))
    # its weight has fallen to 3 errors of the 500 it is off, shared with the loops it closes
    assert np.abs(value - gains).max() < 3e-4
    assert error.max() > 2e-4


def test_gains_of_a_ccd_are_recovered():
    """Light with a cubic, odd pixels at the mid-line, 20 flats of 50 ke-: within errors of 2e-4, the target."""
    pulls = []
    for seed in range(6):
        gains, truth = true_gains(seed)
        value, error, remarks = gain_ratios(amplifiers(lamp(CCD.shape, 1e6, seed), gains), CCD)
        assert remarks == []
        assert np.prod(value) == pytest.approx(1, abs=1e-12)
        assert np.median(error) < 2e-4
        pulls.append((value / truth - 1) / error)
    assert np.std(pulls) < 1 + 3.5 / np.sqrt(2 * 6 * 15)
    assert np.std(true_gains(0)[1]) > 100 * np.median(error)  # what assuming equal gains would miss


def test_a_jump_of_three_per_mille_is_seen_at_five_sigma():
    """Twenty flats of 50 ke- before and after: what the pixels are cancels, the errors are those of photons."""
    gains, _ = true_gains(7)
    jumped = gains.copy()
    jumped[3] *= 1.003
    before = amplifiers(lamp(CCD.shape, 1e6, 7, 0.02), gains)
    after = amplifiers(lamp(CCD.shape, 1e6, 8, 0.02), jumped)
    value, error, _ = gain_changes(before, after, CCD)
    assert (value - 1)[3] == pytest.approx(0.003, abs=4 * error[3])
    assert ((value - 1) / error)[3] > 5
    assert np.abs(np.delete((value - 1) / error, 3)).max() < 4
    # taken by themselves the two epochs have errors of the pixels, and tell nothing
    first, second = gain_ratios(before, CCD), gain_ratios(after, CCD)
    assert 5 * np.hypot(first[1], second[1])[3] > 0.003


def test_a_missing_amplifier_leaves_the_others():
    gains, truth = true_gains(4)
    images = amplifiers(lamp(CCD.shape, 1e6, 4), gains)
    images[2] = np.empty((0, 0))
    images[12] = images[12] * 0
    value, error, remarks = gain_ratios(images, CCD)
    left = np.isfinite(value)
    assert np.flatnonzero(~left).tolist() == [2, 12]
    assert len(remarks) == 6
    expected = truth[left] / np.exp(np.mean(np.log(truth[left])))
    assert np.abs((value[left] / expected - 1) / error[left]).max() < 4.5


def raw_flats(count, gains, level=5e4):
    ny, nx = CAMERA.raw_shape
    counts = np.full((count, 16, ny, nx), 1000, np.int32)
    names = [a.name for a in CCD.amplifiers]
    for i in range(count):
        for name, image, amplifier in zip(
            names, amplifiers(lamp(CCD.shape, level, i), gains), CCD.amplifiers, strict=True
        ):
            counts[(i, CAMERA.amplifier_names.index(name), *amplifier.data.slices)] += np.rint(image).astype(np.int32)
    coords = {"amplifier": list(CAMERA.amplifier_names), "exposure_type": ("exposure", ["flat"] * count)}
    variables = {"counts": (("exposure", "amplifier", "y", "x"), counts), "present": ("exposure", np.ones(count, bool))}
    return xr.Dataset(variables, coords)


def test_the_product_reads_raw_flats(no_compute):
    gains, truth = true_gains(5)
    raw = raw_flats(3, gains)
    raw["counts"][:, CAMERA.amplifier_names.index("C17")] = 1000
    config = ContinuityConfig(minimum=3, brightest=6e4)
    found = dict(continuity_amplifiers(raw, CCD, None, config, {}))
    value = np.array([float(found[a.name]["gain_relative"]) for a in CCD.amplifiers])
    error = np.array([float(found[a.name]["gain_relative_error"]) for a in CCD.amplifiers])
    left = np.isfinite(value)
    assert left.sum() == 15
    assert any("no boundary leads to this amplifier" in r for r in found["C17"].attrs["remarks"])
    expected = truth[left] / np.exp(np.mean(np.log(truth[left])))
    assert np.abs((value[left] / expected - 1) / error[left]).max() < 5
    dim = dict(continuity_amplifiers(raw, CCD, None, ContinuityConfig(brightest=100.0), {}))
    assert "no usable flat" in dim["C00"].attrs["remarks"][0] + dim["C00"].attrs["remarks"][-1]
    with pytest.raises(InsufficientInputs, match="continuity: 3 flats, at least 8"):
        check_continuity(raw, ContinuityConfig())
    lazy = relative_gains(
        raw.expand_dims(detector=[CCD.name], axis=1).assign(present=raw["present"]), CAMERA, {}, config
    )
    assert lazy["gain_relative"].dims == ("detector", "amplifier")


def test_too_little_for_a_step():
    with pytest.raises(InsufficientInputs, match="no light on one side"):
        edge_step(np.zeros((50, 40)), np.zeros((50, 40)))
    with pytest.raises(InsufficientInputs, match="too narrow"):
        edge_step(np.ones((50, 8)), np.ones((50, 8)))
