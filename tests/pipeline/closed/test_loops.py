"""Each closed loop at its smallest: that it measures what it says, and that a correction left out misses its target."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.interpolation import InterpolationConfig
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.pipeline.closed import (
    LOOPS,
    bias,
    crosstalk,
    crosstalk_applied,
    crosstalk_camera,
    darks,
    defects,
    deferred,
    interpolation,
    linearity,
    linearity_applied,
    lit_boards,
    overscan,
    saturation,
)
from lsstcal_dask.pipeline.closed.registry import import_module
from lsstcal_dask.products.defects import DefectConfig


def by_name(targets):
    found = {one.name: one for one in targets}
    assert len(found) == len(targets)
    assert all(np.isfinite(one.measured) for one in targets)
    return found


def near(one):
    """Whether a target is met, or could be within four errors of what one or two seeds tell; one may tell no error."""
    away = max(one.low - one.measured, one.measured - one.high)
    return away <= 4 * one.error or np.isnan(one.error)


def test_every_loop_is_a_module():
    for name in LOOPS:
        loop = import_module(f"lsstcal_dask.pipeline.closed.{name}")
        assert loop.SEEDS > 0


def test_bias():
    found = by_name(bias.measure(2, frames=(25,), amplifiers=1))
    assert len(found) == 3 * 2 * 4 - 2 * 2  # a median of low noise is one of sums, twice
    assert all(near(one) for one in found.values())
    open_wide = by_name(bias.measure(1, frames=(25,), amplifiers=1, clip=1000.0))
    spoilt = open_wide["clipmean, 1 LSB, N=25, dithered: bias by glitches"]
    assert spoilt.measured == pytest.approx(0.5, rel=0.1)  # 50 sigma in a hundredth of the values; 2000 glitches
    assert spoilt.measured > 10 * spoilt.high


def test_defects():
    found = by_name(defects.measure(1, noise=0))
    assert all(near(one) for one in found.values())
    blind = by_name(defects.measure(1, DefectConfig(most=0.2, hot=9.0), noise=0))
    assert blind["hot pixels at 1.3 thresholds: found"].verdict == "fail"
    assert defects.noise_alone(1, "mini9") == (0, 64 * 128)


def test_darks():
    found = by_name(darks.measure(1))
    assert all(near(one) for one in found.values())
    assert found["without rejection: times as many exposures needed"].measured > 2
    clipped = by_name(darks.measure(1, "none"))
    assert clipped["eta"].measured > 1.2


def test_overscan():
    found = list(overscan.measure(2))
    assert all(near(one) for one in found[:2])
    assert found[2].best > 0.3
    assert found[2].verdict == "forbidden"
    assert all(near(one) and 1 < one.best < one.measured for one in found[3:])
    constant = list(overscan.measure(1, config=OverscanConfig(method="mean")))
    assert all(one.measured > 2 for one in constant[:2])
    assert constant[2].measured > 2 * constant[2].best


def test_the_optimal_smoother_of_some_rows_is_that_of_their_covariance():
    detector = load_camera("mini9").detectors[0]
    case = overscan.make(1, detector, 0.0)
    use = np.ones(len(case.level[0]), bool)
    use[20:30] = False
    k = overscan.covariance(case.amplifier)
    means = overscan.reference_pixels(case.counts[0], case.amplifier)[:, 3:].mean(axis=1) - overscan.PEDESTAL
    noisy = k[np.ix_(use, use)] + overscan._mean_noise(case.amplifier, 3) * np.eye(use.sum())
    expected = k[:, use] @ np.linalg.solve(noisy, means[use])
    np.testing.assert_allclose(overscan.optimal_level(case, 0, 3, use), expected, atol=1e-6)


@pytest.mark.parametrize(("loop", "worse"), [(linearity_applied, 100), (crosstalk_applied, 100)])
def test_what_is_applied(loop, worse):
    found = loop.measure(1)
    assert {one.verdict for one in found} == {"pass"}
    assert loop.measure(1, correct=False)[0].measured > worse * found[0].high


def test_interpolation():
    wanted = interpolation.patterns()["cluster"]
    config = InterpolationConfig()
    ours, oracle = interpolation.errors(wanted, interpolation.response(wanted, config), config.sigma, config.noise)
    assert np.sqrt(ours.mean() / oracle.mean()) <= 1.1
    flat = np.zeros((wanted.sum(), (~wanted).sum()))  # nothing filled in
    assert interpolation.errors(wanted, flat, config.sigma, config.noise)[0].mean() > 1.2 * ours.mean()
    camera = load_camera("mini9")
    one = replace(camera.detectors[0], amplifiers=camera.detectors[0].amplifiers[:1])
    assert interpolation.unflagged(1, camera, one) == 0


def test_deferred():
    """Four amplifiers of one CCD: their pulls are known to 35 %."""
    found = by_name(deferred.measure(1, amplifiers=4))
    assert len(found) == 16
    assert all(near(one) for one in found.values())


def test_any_two_boards_are_lit_together_in_one_exposure():
    camera = lit_boards.small_camera(21)
    assert len(camera.detectors) == 189
    how = lit_boards.plan(camera)
    assert how.lit.shape == (72, 63)
    together = how.lit.T.astype(int) @ how.lit
    np.testing.assert_array_equal(together, np.where(np.eye(63, dtype=bool), 9, 1))
    for one in range(63):  # a board that is lit hides in its amplifiers the cell of each, with all sources read there
        light = np.delete(how.lit[~how.lit[:, one]] * how.level[~how.lit[:, one], None], one, axis=1)
        assert np.linalg.cond(light.T @ light) < 1e3


def test_crosstalk_camera():
    """A raft, 144 amplifiers; and one CCD of it when every board is lit in every exposure.

    What is left then are spots that do not lie quite alike: pairs are all but unmeasured.
    """
    found = by_name(crosstalk_camera.measure(1, rafts=1, workers=1))
    assert all(near(one) for one in found.values())
    assert found["camera: pairs unmeasured of 20592"].measured == 0
    site = crosstalk_camera.site_of(1, 1)
    how = lit_boards.plan(site.camera, coded=False)
    together, condition = crosstalk_camera.matrix(site, how, 1, slice(0, 1))
    assert condition > 20 * found["camera: worst condition number of sources lit together"].measured
    error = together["crosstalk_error"].sel(source=[name.startswith("R01_S2") for name in together["source"].values])
    assert np.nanmedian(error) > 5 * found["camera: error of a pair of two CCDs, median"].measured


@pytest.mark.slow
def test_crosstalk_camera_of_three_rafts():
    """On two threads, which share what is simulated."""
    found = by_name(crosstalk_camera.measure(1, rafts=3))
    assert all(near(one) for one in found.values())
    assert found["camera: pairs unmeasured of 186192"].measured == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "numbers"),
    [(linearity, {}), (saturation, {}), (crosstalk, {"repeats": 2, "exposures": 0})],
)
def test_the_longer_loops(loop, numbers):
    """Two seeds: what is correlated within one, as the 300 levels of a curve that are worth ten, sets the errors."""
    assert all(near(one) for one in by_name(loop.measure(2, **numbers)).values())
