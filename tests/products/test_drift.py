"""The error of a filter's drift: what its curves do not tell between places, and CCDs that differ (Sec. 2.8.2)."""

import numpy as np
import pytest

from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.drift import fit_lamp, make_cells

CONFIG = ContaminationConfig()
SHAPE = (64, 80)
SIGMA = 1e-4  # of a pixel
WIDTH = 42.0  # mm, of a CCD
KINDS = (2e-3, -1e-3, 2.5e-3, -2e-3)  # of the drift, 1/nm, of CCDs of two vendors
GRID = [axis.ravel() * WIDTH for axis in np.meshgrid(*[np.arange(3) - 1.0] * 2)]  # mm, where curves are measured


def places(k):
    """Places (y, x) mm of the pixels of a CCD in each quadrant, between the curves."""
    y, x = np.indices(SHAPE) / np.array(SHAPE)[:, None, None] * WIDTH
    return x - WIDTH * (k % 2), y - WIDTH * (k // 2)


def nearby(values):
    nm = np.linspace(600.0, 610, values.shape[1])
    return Nearby(Passband("r", tuple(f"P{i}" for i in range(9)), *GRID, nm, values, 0 * values))


def unlike(seed):
    """Curves with a random field in them, and what of it is not known in the pixels of each CCD (y, x)."""
    at = [np.stack(places(k))[:, 4::8, 4::8].reshape(2, -1) for k in range(4)]
    all_of = np.concatenate([np.stack(GRID), *at], axis=1)
    apart = np.hypot(*(all_of[:, :, None] - all_of[:, None])) * np.sqrt(7) / (0.8 * np.hypot(*GRID).max())
    among = (1 + apart + 0.4 * apart**2 + apart**3 / 15) * np.exp(-apart)
    field = np.linalg.cholesky(among + 1e-9 * np.eye(len(among))) @ np.random.default_rng(seed).normal(size=len(among))
    curves = nearby(0.5 + 0.01 * field[:9, None] * np.array([1.0, -1]))
    missed, size = [], SHAPE[0] // 8 * (SHAPE[1] // 8)
    for k in range(4):
        off = field[9 + k * size : 9 + (k + 1) * size] - (curves.at(*at[k])[:, 0] - 0.5) / 0.01
        missed.append(np.repeat(np.repeat(off.reshape(SHAPE[0] // 8, -1), 8, axis=0), 8, axis=1))
    return curves, missed


def fitted(seed, drift, *, stated=True):
    """A drift of which the template is off by what is not known of the curves: 20 % of it for a field of one."""
    curves, missed = unlike(seed)
    sums, cells = curves.unknown(), []
    modes = 0.2 * (sums @ (curves.coefficients[:, 0] / 0.01))  # of each, of a template of one
    for k, kind in enumerate(KINDS):
        noise = SIGMA * np.random.default_rng([seed, k]).standard_normal(SHAPE)
        change = drift * kind * (1 + 0.2 * missed[k]) + noise
        unknown = np.stack([np.full(SHAPE, kind * mode) for mode in modes])
        template, variance = np.full(SHAPE, kind), np.full(SHAPE, SIGMA**2)
        cells.append(make_cells(np.exp(change), variance, template, places(k), CONFIG.cell, unknown))
    return fit_lamp(cells, CONFIG, curves=curves if stated else None)


def test_the_error_holds_what_curves_do_not_tell():
    """Pulls of 200 drawn filters."""
    found = [fitted(seed, 2.0) for seed in range(200)]
    pulls = np.array([(one.drift - 2.0) / one.drift_error for one in found])
    assert 0.85 < np.sqrt(np.mean(pulls**2)) < 1.1
    silent = [fitted(seed, 2.0, stated=False) for seed in range(40)]
    assert np.sqrt(np.mean([((one.drift - 2.0) / one.drift_error) ** 2 for one in silent])) > 1.3


def test_it_grows_with_the_drift():
    alone, much = (fitted(1, drift).drift_error for drift in (0.0, 5.0))
    assert alone == pytest.approx(fitted(1, 0.0, stated=False).drift_error, rel=0.02)
    assert much > 5 * alone


def few(seed, count, apart):
    """A drift seen by some CCDs, each off by an error of its own."""
    rng, cells = np.random.default_rng([seed, 7]), []
    for k in range(count):
        x, y = (one + WIDTH * (k // 4) for one in places(k % 4))
        kind = KINDS[k % 4] * (1 + 0.1 * (k // 4))
        change = 2.0 * kind + apart * rng.normal() + SIGMA * rng.standard_normal(SHAPE)
        flat = (np.full(SHAPE, value) for value in (SIGMA**2, kind))
        cells.append(make_cells(np.exp(change), *flat, (x, y), CONFIG.cell))
    return fit_lamp(cells, CONFIG)


@pytest.mark.parametrize(("count", "apart"), [(4, 0.0), (12, 0.0), (48, 1e-4)])
def test_the_error_holds_what_ccds_differ_by(count, apart):
    """Noise of pixels alone, in few CCDs; and errors of CCDs that are 70 times what noise leaves of one."""
    found = [few(seed, count, apart) for seed in range(100)]
    pulls = np.array([(one.drift - 2.0) / one.drift_error for one in found])
    assert 0.8 < np.sqrt(np.mean(pulls**2)) < 1.15


def test_a_single_ccd_is_left_with_the_error_of_its_noise():
    """No other tells what it is off."""
    y, x = np.indices(SHAPE)
    kind, variance = 2e-3 * np.sin(x / 5) * np.cos(y / 7), np.full(SHAPE, SIGMA**2)
    pulls = []
    for seed in range(100):
        change = 2.0 * kind + SIGMA * np.random.default_rng(seed).standard_normal(SHAPE)
        found = fit_lamp([make_cells(np.exp(change), variance, kind, places(0), CONFIG.cell)], CONFIG)
        pulls.append((found.drift - 2.0) / found.drift_error)
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1.0, abs=0.2)


def test_changes_of_gains_that_would_look_like_the_drift():
    """A tenth of what is stated, drawn 200 times, makes a tenth of the drift."""
    told = few(1, 4, 0.0).gains
    drifts = [few(seed, 4, told / 10).drift for seed in range(200)]
    assert np.std(drifts) == pytest.approx(0.2, rel=0.15)
