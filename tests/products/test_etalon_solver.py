"""The least squares of layers against dense ones with all unknowns written out, and blocks on a wrong fringe."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.etalon import COLLIMATED, PIVOT, PUPIL, Mirrors, Tuning, silicon_index
from lsstcal_dask.physics.etalon_table import Line, Span, evaluate, places, tabulate, values
from lsstcal_dask.products.etalon_bins import Binned, chosen
from lsstcal_dask.products.etalon_fit import _settled, _solve, fit_binned, needed
from lsstcal_dask.products.etalon_problem import _STEPS, Prior, Problem
from lsstcal_dask.products.etalon_settle import moves_of
from lsstcal_dask.products.etalon_start import Blocks, Start, polynomials
from lsstcal_dask.products.fringe_flat import Layers, Light, fringe_table
from lsstcal_dask.simulate.etalon import Fringing, look_up
from lsstcal_dask.simulate.etalon import fringe_table as true_table
from lsstcal_dask.simulate.thickness import spans, thickness

LINE = Line(950 + np.arange(0, 90, 1.5) + 0.2 * np.random.default_rng(1).normal(size=60), np.ones(60))
PRIOR = Prior(scale=64.0)
NOISE = 3e-4  # of a block
TRUE = Tuning(0.9, 0.02, (0.1, 0.0), (2e-4, 0.0), 1.0)
FRINGE = PIVOT / 2e3 / float(silicon_index(PIVOT))


def small():
    """Blocks of a CCD of 128 px whose layers are planes and a bow, with noise; some shared with bad pixels."""
    random = np.random.default_rng(4)
    y, x = (c.ravel() for c in np.meshgrid(np.arange(7.5, 128, 16), np.arange(7.5, 128, 16), indexing="ij"))
    d, h = 100 + 2e-3 * x + 1e-5 * (y - 64) ** 2, 14 + 1e-3 * y
    table = tabulate(LINE, Span((99.9, 100.4), (13.9, 14.3)), COLLIMATED, Mirrors(), TRUE)
    share = np.where(random.random(64) < 0.2, 0.5, 1.0)
    noise = NOISE / np.sqrt(share) * random.normal(size=(60, 64))
    value = np.log(values(table, places(table.span, d, h))) + noise + 0.01 * random.normal(size=(60, 1))
    weight = np.full(60, NOISE**-2)
    return Blocks(LINE, value, weight, share, (8, 8), (y, x), (128, 128)), Start(d, h, TRUE)


def logarithms(problem, vector, span):
    """Of fringes (wavelength, block), from thicknesses that dense splines make; the span says what is 1."""
    n, basis = problem.basis.shape[1], problem.basis.toarray()
    d, h, (_, _, tuning) = basis @ vector[:n], basis @ vector[n : 2 * n], problem.maps(vector)
    table = tabulate(LINE, span, COLLIMATED, problem.mirrors, tuning)
    return np.log(evaluate(table, d, h)[0])


def slopes(problem, vector):
    """Differences (wavelength, block, parameter): to both sides for thickness, to one as the solver's for the tuning."""
    n, span = 2 * problem.basis.shape[1], problem.between(vector)[0].span
    columns, now = [], logarithms(problem, vector, span)
    for i, one in enumerate(np.eye(len(vector))):
        step = 1e-4 if i < n else _STEPS[i - n]
        back = logarithms(problem, vector - step * one, span) if i < n else now
        columns.append((logarithms(problem, vector + step * one, span) - back) / (2 * step if i < n else step))
    return np.stack(columns, axis=-1)


def nuisances(blocks, prior):
    """Columns (wavelength, block, ...) of polynomials of each block, of all, and of an error of each flat."""
    n, count = len(LINE.wavelength), len(blocks.share)
    own = np.einsum("lk,bc->lbck", polynomials(LINE.wavelength, 2), np.eye(count)).reshape(n, count, -1)
    shared = [np.repeat(one[:, None], count, axis=1) for one in (polynomials(LINE.wavelength, prior.smooth), np.eye(n))]
    return np.concatenate([own, *shared], axis=2)


def dense(problem, vector, blocks):
    """Step of Gauss and Newton and chi2, of one least squares of all unknowns; no metric, no sparse matrix."""
    prior, n = problem.prior, len(LINE.wavelength)
    root = np.sqrt(blocks.weight[:, None] * blocks.share)
    other = nuisances(blocks, prior)
    columns = np.concatenate([slopes(problem, vector), other], axis=2) * root[..., None]
    values_ = ((blocks.value - logarithms(problem, vector, problem.between(vector)[0].span)) * root).ravel()
    flats = np.zeros((n, other.shape[2]))
    flats[:, -n:] = np.eye(n) / prior.common
    size = len(vector)
    left = np.vstack([columns.reshape(-1, columns.shape[2]), np.hstack([np.zeros((n, size)), flats])])
    rows = np.hstack([problem.rows, np.zeros((len(problem.rows), other.shape[2]))])
    pull = problem.rows @ (vector - np.r_[np.zeros(size - 7), 1.0, np.zeros(5), 1.0])
    left, right = np.vstack([left, rows]), np.r_[values_, np.zeros(n), -pull]
    step = np.linalg.lstsq(left, right, rcond=1e-13)[0][:size]
    rest = right - left[:, size:] @ np.linalg.lstsq(left[:, size:], right, rcond=1e-13)[0]
    return step, float(rest @ rest)


def test_a_step_is_that_of_dense_least_squares_of_all_unknowns():
    """Differences over 1e-4 um are wrong by (45e-4)**2 / 6, 3e-6 of the slope; harmonics and bends of splines less."""
    blocks, start = small()
    problem = Problem(blocks, COLLIMATED, PRIOR)
    state = problem.state(Start(start.silicon + 0.003, start.glue - 0.01, replace(TRUE, support=1.0)))
    step, chi2 = dense(problem, state.vector, blocks)
    assert state.chi2 == pytest.approx(chi2, rel=1e-8)
    found = np.linalg.solve(state.normal, state.gradient)
    assert state.gradient @ found > 1e3
    away = found - step
    assert away @ state.normal @ away < 1e-8 * (state.gradient @ found)
    solved = _solve(problem, state)
    assert solved.chi2 == pytest.approx(problem.dof, abs=4 * np.sqrt(2 * problem.dof))


def test_values_are_those_with_slopes():
    blocks, start = small()
    table = tabulate(LINE, Span((99.9, 100.4), (13.9, 14.3)), PUPIL, Mirrors(), TRUE)
    at = places(table.span, start.silicon, start.glue)
    np.testing.assert_allclose(values(table, at), evaluate(table, start.silicon, start.glue)[0], rtol=1e-13)


def test_a_corner_on_a_wrong_fringe_is_found():
    """Where the search starts a fringe off in a corner it ends there; blocks are searched again and all is right."""
    blocks, start = small()
    y, x = blocks.centre
    problem = Problem(blocks, COLLIMATED, replace(PRIOR, scale=32.0))
    wrong = start.silicon + FRINGE * ((y < 24) & (x < 24))
    stuck = _solve(problem, problem.state(replace(start, silicon=wrong)))
    off = np.abs(problem.maps(stuck.vector)[0] - start.silicon)
    assert (off > 0.5 * FRINGE).sum() >= 4
    moved = moves_of(problem, stuck, 25.0)
    assert (np.abs(moved.silicon - start.silicon)[off > 0.5 * FRINGE] < FRINGE / 6).all()
    state = _settled(problem, stuck)
    assert stuck.chi2 > 3 * problem.dof
    assert state.chi2 == pytest.approx(problem.dof, abs=4 * np.sqrt(2 * problem.dof))
    assert np.abs(problem.maps(state.vector)[0] - start.silicon).max() < 0.02 * FRINGE
    assert moves_of(problem, state, 25.0) is None
