"""Photon transfer: the closed form against its differential equation, its fit on made-up and on simulated flats."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.recipes import RECIPES
from lsstcal_dask.products import covariance_model
from lsstcal_dask.products.covariance_model import Model, Points, fisher, fit_covariances, model_covariances
from lsstcal_dask.products.pairs import pair_gain
from lsstcal_dask.products.transfer import (
    LAGS,
    TransferConfig,
    check_transfer,
    find_turnoff,
    photon_transfer,
    transfer_amplifiers,
    transfer_curve,
)
from lsstcal_dask.simulate import Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.recipes import CalibrationDay
from lsstcal_dask.simulate.truth import at

GAIN, READ = 1.5, 5.5  # electron/adu, electron
LADDER = np.geomspace(500, 90e3, 12) / GAIN


def areas(lags, a00=-3.1e-6):
    """A pixel's own loss, given to its neighbours by the inverse cube of the distance; none is lost."""
    y, x = np.indices((lags, lags))
    found = np.where(y + x > 0, np.hypot(y, x) + (y + x == 0), 1.0) ** -3.0 * np.where(y > x, 1.3, 1.0)
    found[0, 0] = 0
    share = np.where(y > 0, 2, 1) * np.where(x > 0, 2, 1)
    found *= -a00 / np.sum(share * found)
    found[0, 0] = a00
    return found


def model(lags=LAGS, curvature=0.0):
    noise = np.zeros((lags, lags))
    noise[0, 0] = READ**2
    return Model(GAIN, noise, areas(lags), areas(lags) * curvature)


def counts(pixels, lags=LAGS):
    both = np.where(np.multiply.outer(np.arange(lags), np.arange(lags)) > 0, 2.0, 1.0)
    return np.broadcast_to(pixels * both, (len(LADDER), lags, lags))


def noisy(seed, truth, pixels, mean=LADDER):
    """Covariances with the errors that the covariances of Gaussian pixels have."""
    exact = model_covariances(mean, truth)
    number = counts(pixels, len(truth.area))
    sigma = exact[:, :1, :1] / np.sqrt(number)
    sigma[:, 0, 0] *= np.sqrt(2)
    return Points(mean, exact + sigma * np.random.default_rng(seed).normal(size=exact.shape), number)


@pytest.mark.parametrize("curvature", [0.0, 3e-6])
def test_closed_form_solves_the_differential_equation(curvature):
    """dC/dmu = 1 + 2 (a + c mu) C, by Runge-Kutta on a plane four times as wide as the lags."""
    truth, lags, size, steps = model(5, curvature), 5, 20, 200
    lag = np.minimum(np.arange(size), size - np.arange(size))

    def spectrum(quadrant):
        plane = np.where(np.maximum.outer(lag, lag) < lags, np.pad(quadrant, (0, 6))[np.ix_(lag, lag)], 0.0)
        return np.fft.fft2(plane).real

    a, c, top = spectrum(truth.area), spectrum(truth.curvature), 1e5
    growth, h = np.zeros((size, size)), top / steps

    def rate(mu, value):
        return 1 + 2 * (a + c * mu) * value

    for i in range(steps):
        mu = i * h
        k1 = rate(mu, growth)
        k2 = rate(mu + h / 2, growth + h / 2 * k1)
        k3 = rate(mu + h / 2, growth + h / 2 * k2)
        k4 = rate(mu + h, growth + h * k3)
        growth = growth + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    expected = (np.fft.ifft2(growth).real[:lags, :lags] + truth.noise) / GAIN**2
    np.testing.assert_allclose(model_covariances(np.array([top / GAIN]), truth)[0], expected, rtol=1e-9)


def test_closed_form_without_curvature_is_an_exponential():
    alone = Model(1.0, np.zeros((1, 1)), np.full((1, 1), -2e-6), np.zeros((1, 1)))
    found = model_covariances(np.array([5e4, 1e5]), alone)[:, 0, 0]
    np.testing.assert_allclose(found, -np.expm1([-0.2, -0.4]) / 4e-6, rtol=1e-13)


def test_the_series_of_four_terms_is_biased_and_the_closed_form_is_not():
    """Eq. 20 cut after (a mu)^3 lacks 2/15 (a mu)^4 and what follows: 0.3 % of the variance at 120 ke-."""
    top, a = 1.2e5 / GAIN, areas(2)[0, 0]
    x = a * GAIN * top
    series = top / GAIN * (1 + x + 2 / 3 * x**2 + 1 / 3 * x**3)
    alone = Model(GAIN, np.zeros((1, 1)), np.full((1, 1), a), np.zeros((1, 1)))
    exact = model_covariances(np.array([top]), alone)[0, 0, 0]
    missing = 2 / 15 * x**4 + 2 / 45 * x**5 + 4 / 315 * x**6
    assert series / exact - 1 == pytest.approx(-missing / (np.expm1(2 * x) / (2 * x)), rel=0.01)
    assert missing > 2e-3


@pytest.mark.parametrize("quadratic", [False, True])
def test_fit_is_unbiased_with_right_errors(quadratic):
    """Forty ladders: means within 3 sigma of the mean, widths within 3 of theirs, chi2 as it should be."""
    truth, n = model(4, 1e-6 if quadratic else 0.0), 40
    pulls, chi2 = [], []
    for seed in range(n):
        found = fit_covariances(noisy(seed, truth, 1e5), READ / GAIN, quadratic=quadratic)
        one = [(found.model.gain - GAIN) / found.error.gain]
        parts = ["area", "noise", *(["curvature"] if quadratic else [])]
        for part in parts:
            pull = (getattr(found.model, part) - getattr(truth, part)) / getattr(found.error, part)
            one += [pull[0, 1], pull[1, 0]] + ([pull[0, 0]] if part != "noise" else [])
        pulls.append(one)
        chi2.append((found.chi2 - found.dof) / np.sqrt(2 * found.dof))
    pulls = np.array(pulls)
    assert np.all(np.abs(pulls.mean(axis=0)) < 3.5 / np.sqrt(n))
    assert np.all(np.abs(pulls.std(axis=0) - 1) < 3.5 / np.sqrt(2 * n))
    assert abs(np.mean(chi2)) < 3.5 / np.sqrt(n)


@pytest.mark.parametrize("quadratic", [False, True])
def test_what_noise_of_the_parameters_does_is_taken_out(quadratic):
    """Parameters drawn from their errors raise the model's mean; the step that makes up for it, by Monte Carlo."""
    truth = model(3, 1e-6 if quadratic else 0.0)
    points = Points(LADDER, model_covariances(LADDER, truth), counts(8192, 3))
    matrix, right, _, _ = covariance_model._normal(points, truth, quadratic, READ / GAIN)
    _, inverse = covariance_model._solve(matrix, right)
    _, slope, variance = covariance_model._linear(points, truth, quadratic)
    spread, rng, n = np.linalg.cholesky(inverse), np.random.default_rng(0), 600
    draws = []
    for _ in range(n):
        step = spread @ rng.normal(size=len(inverse))
        ends = [model_covariances(LADDER, covariance_model._moved(truth, sign * step)) for sign in (1, -1)]
        raised = (sum(ends) / 2 - points.covariances).reshape(slope.shape[:2])
        draws.append(inverse @ np.einsum("nlp,nl->p", slope, raised / variance))
    found = covariance_model._noise_bias(points, truth, inverse)
    for place in (0, 1, 10, 11, 13):  # ln g, n_00, a_00, a_01, a_10
        error = np.std([draw[place] for draw in draws]) / np.sqrt(n)
        assert found[place] == pytest.approx(np.mean([draw[place] for draw in draws]), abs=4 * error)
    if not quadratic:
        assert found[10] > 0.04 * np.sqrt(inverse[10, 10])  # of a_00, with the few coefficients that there are here


def test_error_is_the_bound():
    """The error a fit reports is that of the Fisher matrix, and sixty pairs of a megapixel beat 0.1 %."""
    found = fit_covariances(noisy(1, model(4), 1e5), READ / GAIN)
    bound = fisher(LADDER, counts(1e5, 4), model(4))
    assert found.error.gain / GAIN == pytest.approx(bound, rel=0.02)
    many = np.linspace(1e3, 8e4, 60) / GAIN
    assert fisher(many, np.broadcast_to(counts(1e6, 4)[0], (60, 4, 4)), model(4)) < 5e-4


def test_ignoring_the_effect_is_much_worse():
    truth = model(4)
    points = noisy(2, truth, 1e6)
    found = fit_covariances(points, READ / GAIN)
    shot = points.covariances[:, 0, 0] - (READ / GAIN) ** 2
    naive = np.sum(points.mean) / np.sum(shot)
    assert abs(found.model.gain - GAIN) < 4 * found.error.gain
    assert naive - GAIN > 50 * found.error.gain


def test_refusals_of_a_fit():
    few = np.arange(12) % 5 == 0
    with pytest.raises(InsufficientInputs, match="3 flux levels, at least 6"):
        fit_covariances(noisy(1, model(2), 1e5)[few], READ / GAIN)
    points = noisy(1, model(2), 1e5)
    with pytest.raises(DegenerateSolution, match="no photon transfer curve"):
        fit_covariances(replace(points, covariances=points.covariances * np.nan), READ / GAIN)


def turning(levels):
    """Variance rises to 100e3 adu, then falls to a tenth while the next row gains what is lost."""
    variance = np.where(levels <= 100e3, levels / GAIN, 0.1 * levels)
    neighbour = np.where(levels <= 100e3, 1e-3 * levels, 0.2 * levels)
    matrix = np.zeros((len(levels), 2, 2))
    matrix[:, 0, 0], matrix[:, 1, 0] = variance, neighbour
    return matrix


def test_turnoff_is_the_highest_level_before_the_fall():
    levels = np.arange(10e3, 150e3, 10e3)
    matrix = turning(levels)
    turnoff, error, limit = find_turnoff(levels, matrix, 0.01 * np.abs(matrix) + 10)
    assert (turnoff, error, limit) == (100e3, 5e3, 100e3)
    matrix[:, 1, 0] = matrix[:, 0, 0] / 50  # a converter that is full: the neighbours fall too
    turnoff, error, limit = find_turnoff(levels, matrix, 0.01 * np.abs(matrix) + 10)
    assert np.isnan(turnoff)
    assert np.isnan(error)
    assert limit == 100e3
    below = levels < 95e3
    assert find_turnoff(levels[below], matrix[below], matrix[below] * 0.01 + 10)[2] == np.inf


def flats(seed, mean, shape=(96, 96)):
    rng = np.random.default_rng(seed)
    return tuple(rng.poisson(mean, shape) / GAIN + rng.normal(0, READ / GAIN, shape) for _ in range(2))


@pytest.fixture(scope="module")
def pairs():
    return [pair_gain(*flats(i, m), READ / GAIN, max_lag=2) for i, m in enumerate(np.geomspace(500, 5e4, 12))]


def test_a_pair_that_is_off_is_named_and_left_out(pairs):
    config = TransferConfig(max_lag=2)
    clean = photon_transfer(pairs, READ / GAIN, config)
    assert clean.used.all()
    assert clean.remarks == ()
    bad = pairs[5].covariances * np.array([[1.5, 1, 1], [1, 1, 1], [1, 1, 1]])
    spoilt = [*pairs[:5], replace(pairs[5], covariances=bad), *pairs[6:]]
    found = photon_transfer(spoilt, READ / GAIN, config, [f"pair {i}" for i in range(12)])
    assert np.flatnonzero(~found.used).tolist() == [5]
    assert found.remarks[0].startswith("pair pair 5 left out: its variance is")
    assert found.curve.model.gain == pytest.approx(clean.curve.model.gain, abs=2 * clean.curve.error.gain)


def test_levels_above_the_turnoff_are_not_fitted(pairs):
    spilt = np.array([[0.0, 0, 0], [2e3, 0, 0], [0, 0, 0]])
    fallen = replace(pairs[-1], mean=8e4, covariances=pairs[-1].covariances * 0.5 + spilt)
    found = photon_transfer([*pairs, fallen], READ / GAIN, TransferConfig(max_lag=2))
    assert found.used.tolist() == [True] * 12 + [False]
    assert found.turnoff == pytest.approx(pairs[-1].mean * found.curve.model.gain)
    assert "the variance falls there" in found.remarks[0]


def raw_flats(site, taken, name):
    detector = site.camera.detector(name)
    found = np.stack([frame.counts for e in taken for frame in frames(site, e, [detector])])
    columns = {n: ("exposure", [getattr(e, n) for e in taken]) for n in ("exposure_time", "filter")}
    columns |= {"exposure": [e.name for e in taken], "exposure_type": ("exposure", [e.kind for e in taken])}
    columns |= {"wavelength": ("exposure", [np.nan] * len(taken)), "amplifier": list(site.camera.amplifier_names)}
    present = ("exposure", np.ones(len(taken), bool))
    return xr.Dataset({"counts": (("exposure", "amplifier", "y", "x"), found), "present": present}, columns)


@pytest.fixture(scope="module")
def simulated():
    """A ladder of the one-CCD camera, and what its bias is."""
    site = Observatory(3, load_camera("mini1"), Settings().without(["nonlinearity", "crosstalk"]))
    plan = dict.fromkeys(("biases", "darks", "xrays", "flats"), 0) | {"pairs": 12}
    taken = exposures("calibration-day", Plan(calibration_day=CalibrationDay(**plan)), site.settings, site.camera)
    (detector,) = site.camera.detectors
    bias = [at(site, "bias", detector=detector.name, amplifier=name) for name in site.camera.amplifier_names]
    product = xr.Dataset(
        {
            "image": (("amplifier", "y", "x"), np.array(bias, np.float32)),
            "read_noise": ("amplifier", np.full(4, np.nan)),
        },
        {"amplifier": list(site.camera.amplifier_names)},
    )
    return site, raw_flats(site, taken, detector.name), detector, {"bias": product}


def test_the_simulated_gains_are_recovered(simulated):
    """Four amplifiers of 64 x 64 pixels: gains and a_00 within 4 errors, and what was stored has the right shape."""
    site, raw, detector, products = simulated
    area = at(site, "area_coefficients", detector=detector.name)
    for name, found in transfer_amplifiers(raw, detector, None, TransferConfig(), products):
        gain = at(site, "gain", detector=detector.name, amplifier=name)
        assert abs(found["gain"] - gain) < 4 * found["gain_error"]
        assert found["gain_error"] < 0.015 * gain
        assert abs(found["gain_summed"] - gain) < 4 * found["gain_summed_error"]
        middle = len(area) // 2
        pull = (found["a_matrix"] - area[middle:, middle:][:LAGS, :LAGS]) / found["a_matrix_error"]
        assert abs(pull[0, 0]) < 4
        assert abs(float(np.mean(pull**2)) - 1) < 5 * np.sqrt(2 / LAGS**2)
        assert abs(found["ptc_chi2"] - found["ptc_dof"]) < 5 * np.sqrt(2 * found["ptc_dof"])
        assert abs(found["read_noise"] - at(site, "read_noise", detector=detector.name, amplifier=name)) < 1
        assert np.isnan(found["ptc_turnoff"])
        assert np.isnan(found["c_matrix"]).all()
        assert found.attrs["remarks"] == []


def test_a_short_ladder_is_refused_and_a_dead_amplifier_named(simulated):
    _, raw, detector, products = simulated
    with pytest.raises(InsufficientInputs, match="ptc: 5 pairs of equal flats at 5 levels, at least 6"):
        check_transfer(raw.isel(exposure=slice(0, 10)), TransferConfig())
    dead = raw.copy(deep=True)
    dead["counts"][:, 0] = 25000
    found = dict(transfer_amplifiers(dead, detector, None, TransferConfig(max_lag=2), products))
    first = str(raw["amplifier"].values[0])
    assert np.isnan(found[first]["gain"])
    assert found[first].attrs["remarks"][-1].startswith("no photon transfer: ")
    assert sum(np.isfinite(float(one["gain"])) for one in found.values()) == 3


def test_linearity_is_applied(simulated):
    """A curve that stretches counts by 5 % at the top changes the curve of variances far beyond its errors."""
    _, raw, detector, products = simulated
    level = np.array([0.0, 1e4, 3e4, 6e4, 9e4])
    nodes = {"linearity_level": level, "linearity_correction": 0.05 * level**2 / 6e4}
    tiled = {k: (("amplifier", "node"), np.tile(v, (4, 1))) for k, v in nodes.items()}
    curve = xr.Dataset(tiled, products["bias"].coords)
    config = TransferConfig(max_lag=2)
    name = detector.amplifiers[0].name
    plain = dict(transfer_amplifiers(raw, detector, None, config, products))[name]
    bent = dict(transfer_amplifiers(raw, detector, None, config, products | {"linearity": curve}))[name]
    assert bent["a_matrix"][0, 0] - plain["a_matrix"][0, 0] > 3 * plain["a_matrix_error"][0, 0]
    none = curve.assign(linearity_level=curve["linearity_level"] * np.nan)
    found = dict(transfer_amplifiers(raw, detector, None, config, products | {"linearity": none}))[name]
    assert "no linearity curve" in found.attrs["remarks"][-1]


def test_the_product_is_lazy(simulated, no_compute):
    site, raw, detector, _ = simulated
    lazy = transfer_curve(
        raw.expand_dims(detector=[detector.name]).transpose("exposure", "detector", ...).assign(present=raw["present"]),
        site.camera,
        {},
        TransferConfig(max_lag=1),
    )
    assert lazy["a_matrix"].dims == ("detector", "amplifier", "lag_y", "lag_x")
    assert set(lazy.data_vars) == set(RECIPES["ptc"].outputs)
