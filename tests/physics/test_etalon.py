"""Airy series of a CCD against a matrix method, closed forms and direct sums."""

import numpy as np
import pytest

from lsstcal_dask.physics import etalon
from lsstcal_dask.physics.etalon import (
    COLLIMATED,
    PUPIL,
    Cone,
    Mirrors,
    Tuning,
    absorbed,
    empirical_suffices,
    free_range,
    group_index,
    line_factor,
    series,
    silicon_absorption,
    silicon_index,
)
from lsstcal_dask.physics.etalon_table import Line, Span, evaluate, pattern_table, tabulate
from lsstcal_dask.simulate.layers import absorptance
from lsstcal_dask.simulate.silicon import absorption, index

NM = np.array([910.0, 960.0, 1000.0, 1050.0])


def test_fringes_are_as_far_apart_as_published():
    """SCIENCE 2.9 for 100 um of silicon, of a warmer index: 1-3 % less."""
    found = free_range(np.array([900.0, 1000.0]), 100.0, group_index(silicon_index, np.array([900.0, 1000.0])))
    np.testing.assert_allclose(found, [0.98, 1.27], rtol=0.04)
    assert 1.0 / (2 * silicon_index(1000.0)) == pytest.approx(0.140, rel=0.01)


def test_index_and_absorption_follow_their_table():
    """300 K: Green 2008 to its rounding; cold silicon is more transparent, as its gap is wider."""
    assert silicon_index(1000.0) - etalon._COLD == pytest.approx(3.572, abs=5e-4)
    warm = 4e3 * np.pi * 5.093e-4 / 1000
    assert silicon_absorption(1000.0, 300.0) == pytest.approx(warm, rel=1e-6)
    assert silicon_absorption(1000.0) < 0.7 * warm


def test_flats_suffice_where_fringes_are_wide():
    group = group_index(silicon_index, NM)
    assert not empirical_suffices(NM, 100.0, group, 1.0).any()
    assert empirical_suffices(NM, 14.0, 1.5, 1.0).all()
    assert empirical_suffices(1000.0, 100.0, group[2], 0.3)


@pytest.mark.parametrize("shape", ["gaussian", "tophat"])
def test_a_line_leaves_its_fourier_transform(shape):
    x = (np.arange(8000) - 3999.5) * 1e-3
    profile = np.exp(-4 * np.log(2) * x**2) if shape == "gaussian" else (np.abs(x) <= 0.5).astype(float)
    for fringes in (0.0, 0.4, 0.9):
        direct = (profile * np.cos(2 * np.pi * fringes * x)).sum() / profile.sum()
        assert line_factor(fringes, shape) == pytest.approx(direct, abs=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_series_is_the_absorbed_fraction_of_layers(monkeypatch, degrees):
    """An independent matrix method with the same constants; left out: 4e-4 where both ways cross."""
    mirrors = Mirrors(silicon=lambda nm: index(np.asarray(nm, float)))
    monkeypatch.setattr(etalon, "silicon_absorption", lambda nm: absorption(np.asarray(nm, float)))
    h, d = 14 + np.arange(8) / 8 * 0.33, 100 + np.arange(40)[:, None] / 40 * 0.28
    sine2 = np.sin(np.deg2rad(degrees)) ** 2
    for nm in NM:
        terms = series(nm, d, h, Cone(sine2, sine2, 1), mirrors, Tuning(), orders=8)
        expected = absorptance(np.array(nm), d, h, np.sqrt(1 - sine2))
        assert np.abs(absorbed(terms, d) - expected).max() < 6e-4 * expected.mean()


def test_the_pupil_blurs_silicon():
    """Three fringes pass over the pupil: of 0.2 to 0.3 in a ray at most 0.05 is left (SCIENCE 2.9)."""
    seen = {}
    for name, cone in (("ray", COLLIMATED), ("pupil", PUPIL)):
        terms = series(NM[2:], 100.0, 14.0, cone, Mirrors(), Tuning(), orders=1)
        seen[name] = np.abs(terms.harmonics[0] / terms.constant)
    assert (seen["pupil"] < 0.05).all()
    assert (seen["ray"] > 2 * seen["pupil"]).all()


@pytest.fixture(scope="module")
def table():
    line = Line(np.linspace(950, 1040, 12), np.linspace(0, 1, 12))
    tuning = Tuning(0.8, -0.1, (0.1, 0.2), (3e-4, -1e-4), 0.98)
    return tabulate(line, Span((99.0, 101.0), (13.7, 14.4)), PUPIL, Mirrors(), tuning), line, tuning


def test_tables_are_the_series(table):
    """Between nodes, against the series worked out there; slopes against differences. Fringes are 0.04."""
    tabulated, line, tuning = table
    d, h = np.array([99.1, 100.03, 100.9]), np.array([13.75, 14.02, 14.37])
    terms = series(line.wavelength[:, None], d, h, PUPIL, Mirrors(), tuning, line.width[:, None])
    value, by_d, by_h = evaluate(tabulated, d, h)
    np.testing.assert_allclose(value, absorbed(terms, d) / tabulated.mean[:, None], atol=2e-5)
    step = 1e-4
    for slope, at in ((by_d, lambda s: (d + s, h)), (by_h, lambda s: (d, h + s))):
        numeric = (evaluate(tabulated, *at(step))[0] - evaluate(tabulated, *at(-step))[0]) / (2 * step)
        np.testing.assert_allclose(slope, numeric, atol=1e-5 + 1e-3 * np.abs(numeric).max())


def test_patterns_are_sums_over_the_spectrum(table):
    tabulated, line, _ = table
    light = np.linspace(1, 3, len(line.wavelength))
    d, h = np.linspace(99.2, 100.8, 7), np.linspace(13.8, 14.3, 5)
    every = np.array(np.meshgrid(d, h, indexing="ij")).reshape(2, -1)
    direct = light / light.sum() @ evaluate(tabulated, *every)[0]
    np.testing.assert_allclose(pattern_table(tabulated, light, d, h).ravel(), direct, rtol=1e-10)
