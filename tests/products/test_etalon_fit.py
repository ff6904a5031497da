"""Thickness maps from scans of a small CCD: against the simulator, and what is refused."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from lsstcal_dask.errors import DegenerateSolution, InconsistentGeometry, InsufficientInputs, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.etalon import COLLIMATED, PUPIL, Mirrors
from lsstcal_dask.physics.etalon_table import Line
from lsstcal_dask.products.etalon_bins import chosen
from lsstcal_dask.products.etalon_fit import MOST, bin_scan, fit_etalon, fit_scan, needed
from lsstcal_dask.products.etalon_problem import Prior, _knots, spline_basis
from lsstcal_dask.products.etalon_slices import EtalonConfig, _remarks
from lsstcal_dask.products.etalon_start import follow
from lsstcal_dask.products.fringe_flat import Light, fringe_factor, fringe_pattern, response_of
from lsstcal_dask.simulate.etalon import Fringing, fringe_map
from lsstcal_dask.simulate.thickness import thickness, thickness_maps

SEED, LEVEL = 3, 4e5
FRINGING = Fringing(wave=(2.0, 10.0), silicon_rms=0.3, epoxy_rms=0.2, inner_angle=0.0, outer_angle=0.5)
CENTRES = 950 + np.arange(0, 90, 1.0) + 0.1 * np.random.default_rng(1).normal(size=90)
LINE = Line(CENTRES, np.ones(90))
PRIOR = Prior(scale=64.0)


def fringes(centre, width, fringing=FRINGING):
    """Simulated fringes of a line, Gaussian or, without a width, sharp."""
    camera = load_camera("mini1")
    (detector,) = camera.detectors
    nm = centre + width * (np.arange(24) - 11.5) / 8 if width else np.array([centre])
    share = np.exp(-4 * np.log(2) * ((nm - centre) / width) ** 2) if width else np.ones(1)
    return fringe_map(SEED, fringing, camera, detector, nm, share, None, np.zeros(1) if not width else None)


@lru_cache
def scan():
    """Values and variances (wavelength, y, x) of flats whose brightness falls and scatters, with photon noise."""
    random = np.random.default_rng(2)
    exact = np.stack([fringes(nm, 1.0) for nm in CENTRES])
    exact = exact * np.linspace(1, 0.3, len(exact))[:, None, None] * (1 + 0.01 * random.normal(size=(90, 1, 1)))
    value = random.poisson(exact * LEVEL) / LEVEL
    value[:, 40:44, 50:70] = np.nan
    return value, exact / LEVEL


@lru_cache
def fitted():
    return fit_scan(LINE, *scan(), COLLIMATED, (16, 4), PRIOR)


def test_thickness_maps_are_those_of_the_simulator():
    """Silicon but for whole fringes, glue with its mean: a hundredth of a fringe."""
    fit, _ = fitted()
    (detector,) = load_camera("mini1").detectors
    silicon, glue = thickness_maps(SEED, FRINGING, detector)
    y, x = (np.arange(n) for n in detector.shape)
    d, h = fit.thickness(y, x)
    assert np.ptp(silicon) > 0.2
    assert np.std(d - silicon) < 0.01 * 0.14
    assert np.abs(h - glue).max() < 0.01 * 0.33
    at = fit.thickness_at(np.array([3, 100]), np.array([70, 20]))
    np.testing.assert_allclose(at, [[d[3, 70], d[100, 20]], [h[3, 70], h[100, 20]]])
    error = fit.error(y[::16], x[::16])
    assert all((one > 0).all() for one in error)
    assert error[1].max() < 0.01


def test_fringes_of_sharp_lines_follow_from_blurred_flats():
    """Lines between the flats: at most 15 % of their fringes are left (SCIENCE 2.9), far more by the nearest flat."""
    fit, _ = fitted()
    for nm in (972.43, 1004.81, 1031.27):
        true = fringes(nm, 0.0)
        near = int(np.argmin(np.abs(CENTRES - nm)))
        flat = scan()[0][near] / np.nanmean(scan()[0][near])
        assert np.nanstd(true / flat) > 0.6 * np.std(true)
    assert max(left_of(fit, (nm,)) for nm in (972.43, 1004.81, 1031.27)) < 0.15


def test_the_factor_replaces_the_fringes_of_the_flats():
    fit, blocks = fitted()
    y, x = np.arange(128), np.arange(128)
    response = response_of(fit, blocks)
    slope = np.polyfit(CENTRES, response, 1)[0]
    assert slope == pytest.approx(-0.7 / 89, rel=0.05)
    light = Light(Line(np.array([1004.81]), np.zeros(1)), np.ones(1))
    flats = Light(LINE, response * (np.abs(CENTRES - 1004.81) < 1))
    factor = fringe_factor(fit, y, x, light, flats)
    np.testing.assert_allclose(factor * fringe_pattern(fit, y, x, flats), fringe_pattern(fit, y, x, light), rtol=1e-6)
    with pytest.raises(WrongUse, match=r"\(0,\) electrons"):
        fringe_pattern(fit, y, x, Light(LINE, np.zeros(0)))


def test_follow_keeps_to_the_branch_of_the_neighbours():
    """A slope of a third of a fringe per block: the highest peak alone may be of another one."""
    grid = np.arange(90, 110, 0.01)
    true = (100 + 0.3 * np.arange(12)[:, None] + 0.1 * np.arange(10)).ravel()
    height = np.exp(-0.5 * ((grid - true[:, None]) / 2) ** 2)
    score = 1e3 * height * np.cos(np.pi * (grid - true[:, None])) ** 2
    found = follow(score, grid, 1.0, (12, 10))
    np.testing.assert_allclose(found, true, atol=0.1)


def test_follow_ends_on_the_fringe_of_the_sum_of_all_blocks():
    """The clearest block, where it begins, may prefer a wrong one, and all others with it."""
    grid = np.arange(90, 110, 0.01)
    true = (100 + 0.1 * np.arange(12)[:, None] + 0.05 * np.arange(10)).ravel()
    height = np.exp(-0.5 * ((grid - true[:, None]) / 6) ** 2)
    height[50] = 2 * np.exp(-0.5 * ((grid - true[50] - 3) / 2) ** 2)
    score = 1e3 * height * np.cos(np.pi * (grid - true[:, None])) ** 2
    np.testing.assert_allclose(follow(score, grid, 1.0, (12, 10)), true, atol=0.1)


def test_scans_that_tell_nothing_are_refused():
    value, variance = scan()
    few = slice(0, 90, 5)
    with pytest.raises(DegenerateSolution, match=r"18 wavelengths over 8.* nm .*take at least 24"):
        fit_etalon(bin_scan(Line(CENTRES[few], np.ones(18)), value[few], variance[few], 16), COLLIMATED)
    flat = np.random.default_rng(1).normal(1, 1 / np.sqrt(LEVEL), value.shape)
    with pytest.raises(DegenerateSolution, match=r"fringes of neither silicon nor glue: a line 1 nm wide blurs"):
        fit_etalon(bin_scan(LINE, flat, np.full(value.shape, 1 / LEVEL), 32), COLLIMATED, prior=PRIOR)


def test_bad_scans_are_refused():
    value, variance = scan()
    with pytest.raises(InconsistentGeometry, match="89 wavelengths"):
        bin_scan(Line(CENTRES[1:], np.ones(89)), value, variance, 16)
    with pytest.raises(WrongUse, match="ascend"):
        bin_scan(Line(CENTRES[::-1], np.ones(90)), value, variance, 16)
    with pytest.raises(InsufficientInputs, match="without light or without a good pixel"):
        bin_scan(LINE, np.full_like(value, np.nan), variance, 16)


def test_blocks_are_means_of_good_pixels():
    value, variance = scan()
    blocks = bin_scan(LINE, value[:, :120, :100], variance[:, :120, :100], 16)
    assert blocks.shape == (8, 7)
    assert blocks.share[2 * 7 + 3] == pytest.approx(1 - 4 * 14 / 256)
    np.testing.assert_allclose(np.exp(blocks.value[5, 20]), np.nanmean(value[5, 32:48, 96:100]), rtol=1e-12)
    assert blocks.centre[1][6] == 97.5


def test_pupil_is_the_telescope():
    assert np.rad2deg(np.arcsin(np.sqrt([PUPIL.inner, PUPIL.outer]))) == pytest.approx([14.4, 24.0], abs=0.1)


def _herzberger(nm):
    """Another form of the index of silicon, of measurements beyond 2.4 um: its slope differs by 8e-4 over 90 nm."""
    square = (np.asarray(nm, float) / 1e3) ** 2
    pole = 1 / (square - 0.028)
    return 3.399 + 0.123172 * pole + 0.0265456 * pole**2


OTHERS = {
    "another dispersion": {"mirrors": Mirrors(silicon=_herzberger)},
    "films 10 % thicker": {"mirrors": Mirrors(coating=((1.38, 0.1343), (2.10, 0.0485)))},
    "silicon 3 um thicker": {"silicon": (99.0, 107.0)},
    "glue 20 % thicker": {"glue": (13.3, 20.3)},
    "glue 20 % thinner": {"glue": (7.7, 14.7)},
}
QUICK = ("another dispersion",)
SKY = (961.8, 968.3, 972.43, 978.9, 985.2, 992.6, 1001.3, 1004.81, 1008.7, 1012.2, 1021.4)  # nm


def left_of(fit, lines):
    """Share of the fringes of equally strong sharp lines that is left."""
    y, x = np.arange(128), np.arange(128)
    true = np.mean([fringes(nm, 0.0) for nm in lines], axis=0)
    light = Light(Line(np.array(lines), np.zeros(len(lines))), np.ones(len(lines)))
    found = fringe_pattern(fit, y, x, light)
    return np.std(true / found / np.mean(true / found)) / np.std(true / true.mean())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS])
def test_fringes_do_not_depend_on_the_layers_that_are_taken_as_known(name):
    """The simulator's layers are those of the table that the fit begins with: from others follow the same fringes.

    At most 15 % of those of a sky of eleven lines are left (SCIENCE 2.9).
    """
    fit, _ = fit_scan(LINE, *scan(), COLLIMATED, (16, 4), replace(PRIOR, **OTHERS[name]))
    assert left_of(fit, SKY) < 0.15


def test_nothing_comes_back_from_a_black_coat_and_a_misfit_is_told():
    """CCDs of ITL have no fringes of the glue (Guo et al. 2023)."""
    config = EtalonConfig()
    assert config.prior("ITL").nominal.support == 0
    assert config.prior("e2v").nominal.support == 1
    fit, _ = fitted()
    assert not any("fit badly" in one for one in _remarks(fit, 0))
    (told,) = [one for one in _remarks(replace(fit, chi2=100 * fit.dof), 0) if "fit badly" in one]
    assert "chi2 100 of each degree of freedom" in told
    weak = replace(fit, chi2=9 * fit.dof, gain=(20 * fit.dof, fit.gain[1]))
    assert ["take flats at most 1 nm apart, not evenly" in one for one in _remarks(weak, 0)] == [True]


def test_blocks_are_chosen_one_in_each_cell():
    """Without holes, and never one without a good pixel."""
    share = np.ones((60, 80))
    share[::2] = 0
    at = chosen(share.ravel(), share.shape, 300)
    y, x = np.divmod(at, 80)
    assert (np.histogram2d(y, x, (15, 20), ((0, 60), (0, 80)))[0] == 1).all()
    assert (share.ravel()[at] > 0).all()
    assert len(chosen(share.ravel(), share.shape, 5000)) == share.size


@pytest.mark.parametrize(("layer", "fringe"), [("silicon", 0.14), ("epoxy", 0.33)])
def test_splines_of_a_large_ccd_follow_its_thickness(layer, fringe):
    """To a hundredth of a fringe all over 4096 px: with knots 250 px apart 2 % of silicon are left."""
    detector = next(one for one in load_camera("lsstcam").detectors if one.vendor == "e2v")
    axes = [np.arange(16.0, n, 32) for n in detector.shape]
    up, across = np.meshgrid(*axes, indexing="ij")
    true = thickness(SEED, Fringing(), detector, layer, across.ravel(), up.ravel()).reshape(up.shape)
    left = {}
    for scale in (Prior().scale, Prior().fine):
        y, x = (spline_basis(_knots(n, scale), at) for n, at in zip(detector.shape, axes, strict=True))
        found = y @ np.linalg.pinv(y) @ true @ (x @ np.linalg.pinv(x)).T
        left[scale] = np.std(found - true) / fringe
    assert left[Prior().fine] < 0.01 < left[Prior().scale]


def test_blocks_are_as_many_as_splines_need():
    """Four for each coefficient; a small CCD has as many as the search."""
    assert needed((256, 512)) == MOST
    coefficients = np.prod([len(_knots(n, Prior().fine)) - 4 for n in (4004, 4096)])
    assert needed((4004, 4096)) == pytest.approx(4 * coefficients, rel=0.05)
