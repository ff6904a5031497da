"""Linearity curves from ladders of flats: drawn from the noise of an LSST amplifier, and flats of a small camera."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import xarray as xr
from scipy.integrate import cumulative_trapezoid
from scipy.signal import lfilter

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.linearity import curve, tables
from lsstcal_dask.products.bending import Model, spline_columns, spline_model
from lsstcal_dask.products.curvefit import Ladder, Nuisance, clusters, noise_model, solve
from lsstcal_dask.products.ladder import find_rungs, make_ladder, plateau
from lsstcal_dask.products.linearity import (
    LinearityConfig,
    _dataset,
    check_linearity,
    fit_ladder,
    measure_linearity,
)
from lsstcal_dask.simulate import Settings
from lsstcal_dask.simulate.electronics import channel, read_out
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, true_to_measured

NINE = load_camera("mini9").detectors[0]
PIXELS, OVERSCAN = 2002 * 512, 2002 * 60
LEVELS = np.unique(np.r_[np.geomspace(150, 5e3, 14), np.linspace(8e3, 125e3, 40)])
WELL = 110e3  # adu
FLOOR = 3.6 * np.sqrt(1 / PIXELS + 1 / OVERSCAN)
UNIT = 1.6e-13  # C per adu, as the virtual observatory's


def draw(seed, levels=LEVELS, noise=1e-4, settings=Nonlinearity(), well=WELL, hours=0.4):
    """A ladder of pairs in random order; the photodiode has noise, a drift over a day and an electrometer."""
    random = np.random.default_rng(seed)
    true = random.permutation(np.repeat(levels, 2)) * (1 + 1e-3 * random.standard_normal(2 * len(levels)))
    days = np.linspace(0, hours / 24, len(true))
    drift = 2e-4 * np.sqrt(2) * np.sin(2 * np.pi * days + random.uniform(0, 7))
    light = UNIT * true * (1 + drift + noise * random.standard_normal(len(true)))
    light += 2e-14 * random.standard_normal(len(true))
    kept = np.minimum(true + np.sqrt(np.minimum(true, well) / 1.5 / PIXELS) * random.standard_normal(len(true)), well)
    signal = true_to_measured(seed, settings, NINE, 0, kept) + FLOOR * random.standard_normal(len(true))
    nothing = np.full(len(true), np.nan)
    return Ladder(
        signal, light, true / 20e3, days, nothing, np.zeros(len(true), np.int64), np.full(len(true), FLOOR)
    )  # fmt: skip


@lru_cache
def fitted(seed):
    return fit_ladder(draw(seed))


def residual(found, seed, settings=Nonlinearity()):
    """Relative residual up to scale, the covariance of it, and the error of the scale, on a grid of levels."""
    level = np.linspace(1000, 0.97 * found.solution.model.top, 200)
    truth = linearity_truth(seed, settings, NINE, 0, level)
    correction, covariance = found.solution.correction(level)
    project = np.eye(len(level)) - 1 / len(level)
    ratio, relative = (level + correction) / truth - 1, covariance / truth / truth[:, None]
    return level, project @ ratio, project @ relative @ project, ratio.mean() / np.sqrt(relative.mean())


SEEDS = range(1, 7)


def test_closed_loop_meets_the_targets():
    rms, high, pulls, scales = [], [], [], []
    for seed in SEEDS:
        found = fitted(seed)
        level, left, covariance, scale = residual(found, seed)
        rms.append(np.sqrt((left**2).mean()))
        high.append(np.abs(left[(level > 0.5 * WELL) & (level < 0.9 * WELL)]).max())
        pulls.append(left / np.sqrt(np.diag(covariance)))
        scales.append(scale)
        true_turnoff = float(true_to_measured(seed, Nonlinearity(), NINE, 0, WELL))
        assert abs(found.turnoff / true_turnoff - 1) < 0.02
        assert found.split == []
    assert np.median(rms) <= 1e-4
    assert max(high) <= 3e-4
    # about ten independent numbers in a curve: 60 in all, whose rms scatters by 9 %
    assert 0.63 < np.sqrt(np.mean(np.square(pulls))) < 1.36  # 0.9 to 1.1, and three times that
    assert np.abs(scales).max() < 4


def test_without_a_curve_the_residual_is_much_worse():
    level, left, _, _ = residual(fitted(1), 1)
    measured = level / linearity_truth(1, Nonlinearity(), NINE, 0, level)
    assert np.std(measured) > 20 * np.std(left)


def test_noise_is_recovered_and_sets_the_error():
    """The bound of the same spline with the true noise is nowhere far from the error that is told."""
    for seed in SEEDS:
        found = fitted(seed)
        part = found.ladder
        true = (1e-4) ** 2 + (2e-14 / part.light) ** 2 + 1 / 1.5 / PIXELS / part.signal + (FLOOR / part.signal) ** 2
        bright = part.signal > 10e3
        ratio = found.solution.variance[bright] / true[bright]
        # 100 exposures less 25 parameters: the noise as a whole is known to 8 %, in each of its three terms to 14 %
        assert np.sqrt(ratio.mean()) == pytest.approx(1.0, abs=4 * 0.08)
        assert np.sqrt(ratio) == pytest.approx(1.0, abs=4 * 0.14)


def test_a_corner_is_found():
    settings = Nonlinearity(smooth=0.001, break_slope=0.02, bump=0.0)
    found = fit_ladder(draw(3, settings=settings))
    assert found.solution.model.corner == pytest.approx(40e3, rel=0.05)
    _, left, _, _ = residual(found, 3, settings)
    assert np.sqrt((left**2).mean()) < 1e-4


def test_spline_by_hand():
    # Without knots and with S = c m**2 the fit is exact: D = L(m), gauge L'(0) = 1
    signal = np.repeat(np.linspace(500, 50e3, 20), 2)
    light = UNIT * (signal + 1e-7 * signal**2)
    nothing = np.full(len(signal), np.nan)
    ladder = Ladder(
        signal, light, np.ones(40), np.zeros(40), nothing, np.zeros(40, np.int64), np.zeros(40)
    )  # fmt: skip
    prior = Nuisance(leak=0.0, drift=0.0)
    found = solve(ladder, Model((), 50e3, bend=1e3), np.full(40, 1e-10), prior)
    level = np.array([0.0, 1e3, 20e3, 50e3])
    np.testing.assert_allclose(found.correction(level)[0], 1e-7 * level**2, atol=0.05)
    columns = spline_columns(Model((), 50e3), np.array([50e3, 60e3]))
    np.testing.assert_allclose(columns[0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(columns[1] - columns[0], np.array([0, -3, 3]) * 10e3 / 50e3, atol=1e-12)


def wandering(random, bend, length, top, curves, steps=2000):
    """Curves S (adu), whose slope is zero at zero and wanders by ``bend`` up to ``top``, none of it within a reach.

    Steps are even in the place, whose derivative with the level is one over the reach.
    """
    fine = np.linspace(0, top, 200_001)
    place = np.linspace(0, 1 / length + np.log1p(1 / 0.015), steps + 1)
    level = np.interp(place, fine / (length * top) + np.log1p(fine / (0.015 * top)), fine)
    rms = np.sqrt(1 / (length * top) + 1 / (level + 0.015 * top))
    alike = np.exp(-place[1])
    noise = random.standard_normal((curves, steps + 1))
    start = alike * random.standard_normal((curves, 1))
    second = rms * lfilter([np.sqrt(1 - alike**2)], [1, -alike], noise, zi=start)[0]
    share = rms * np.gradient(level)
    second *= bend / np.sqrt(share @ np.exp(-np.abs(place - place[:, None])) @ share)
    slope = cumulative_trapezoid(second, level, initial=0)
    area = cumulative_trapezoid(slope, level, initial=0)
    return [lambda at, one=one: np.interp(at, level, one) for one in area]


@pytest.mark.parametrize("length", [0.1, 1.0])
def test_errors_are_those_of_curves_that_wander_as_the_penalty_says(length):
    """Pulls of scale and shape over 300 curves: rms of one each, to 1 / sqrt(600) for the scale."""
    random, prior, top = np.random.default_rng(1), Nuisance(leak=0.3, drift=0.0, shutter=0.0), 100e3
    model = replace(spline_model(top), bend=0.01, length=length)
    grid = np.linspace(1000, 0.97 * top, 60)
    signal = np.repeat(np.r_[np.geomspace(150, 5e3, 14), np.linspace(8e3, top, 30)], 2)
    variance = 1e-8 + (0.02 / signal) ** 2
    project, scales, shapes = np.eye(60) - 1 / 60, [], []
    for curve_of in wandering(random, 0.01, length, top, 300):
        light = signal + curve_of(signal) + 0.3 * random.standard_normal()
        light = UNIT * light * (1 + np.sqrt(variance) * random.standard_normal(len(signal)))
        nothing = np.full(len(signal), np.nan)
        group, floor = np.zeros(len(signal), np.int64), np.zeros(len(signal))
        found = solve(Ladder(signal, light, nothing, nothing * 0, nothing, group, floor), model, variance, prior)
        correction, covariance = found.correction(grid)
        truth = grid + curve_of(grid)
        ratio, relative = (grid + correction) / truth - 1, covariance / truth / truth[:, None]
        scales.append(ratio.mean() / np.sqrt(relative.mean()))
        shapes.append(project @ ratio / np.sqrt(np.diag(project @ relative @ project)))
    assert np.sqrt(np.mean(np.square(scales))) == pytest.approx(1.0, abs=4 / np.sqrt(600))
    # five independent numbers or more in each shape
    assert np.sqrt(np.mean(np.square(shapes))) == pytest.approx(1.0, abs=4 / np.sqrt(3000))


def test_noise_model_finds_a_constant_relative_noise():
    ladder = draw(5, well=np.inf)
    found = solve(ladder, fitted(5).solution.model, np.full(len(ladder.signal), 1e-8), Nuisance())
    variance = noise_model(ladder, replace(found.model, top=float(ladder.signal.max())), Nuisance(), found.variance)
    assert np.sqrt(variance[ladder.signal > 3e4].mean()) == pytest.approx(1e-4, rel=0.35)


def test_a_changed_range_is_found_named_and_fitted():
    ladder = draw(2)
    late = ladder.days > np.median(ladder.days)
    whole = fit_ladder(replace(ladder, light=ladder.light * np.where(late, 1.003, 1.0)))
    ((first, step),) = whole.split
    assert first == int(np.flatnonzero(late)[0])
    assert step == pytest.approx(0.003, abs=3e-4)
    _, left, _, _ = residual(whole, 2)
    assert np.sqrt((left**2).mean()) < 1.5e-4


def test_a_group_of_which_nothing_is_left_is_no_group():
    """The rest is fitted as if its exposures had never been taken."""
    ladder = draw(5, np.geomspace(150, 9e4, 20))
    group = np.where(ladder.signal < 300, 1, 0)
    variance, left = np.full(len(group), 1e-8), group == 0
    with_gap = replace(ladder, group=2 * (1 - group) + group).take(left)
    model = spline_model(float(with_gap.signal.max()))
    found, alone = (
        solve(one, model, variance[left], Nuisance()) for one in (with_gap, replace(ladder, group=group).take(left))
    )
    assert np.array_equal(found.parameters, alone.parameters)


def test_nothing_is_trusted_above_the_highest_node():
    """Of a ladder so coarse that its brightest level is taken for the turnoff; the curve is frozen above its nodes."""
    ladder = draw(5, np.geomspace(150, 1.3e5, 11))
    fit = fit_ladder(ladder)
    assert fit.turnoff > 1.1 * fit.solution.model.top
    made = _dataset(fit, {})
    assert float(made["linearity_ceiling"]) == np.nanmax(made["linearity_level"])
    assert made.attrs["summary"]["inverse_signal"] == pytest.approx(np.mean(1 / ladder.signal[fit.used]))


def test_outliers_and_known_groups():
    ladder = draw(4)
    wrong = np.flatnonzero(ladder.signal < 90e3)[[5, 40]]
    light = ladder.light.copy()
    light[wrong] *= 1.002
    found = fit_ladder(replace(ladder, light=light))
    assert not found.used[wrong].any()
    low = ladder.signal < 60e3
    grouped = replace(ladder, light=ladder.light * np.where(low, 1.0, 0.5), group=low.astype(np.int64))
    grouped = grouped.take((ladder.signal > 20e3) & (ladder.signal < 100e3) | low)
    assert np.sqrt(np.mean(residual(fit_ladder(grouped), 4)[1] ** 2)) < 5e-4  # no level is common to both


@pytest.mark.parametrize("nuisance", ["leak", "temperature", "shutter"])
def test_what_disturbs_a_ladder_is_fitted(nuisance):
    """Each disturbance, three times its prior or less, bends the curve by much unless it is fitted."""
    ladder = draw(6)
    random = np.random.default_rng(1)
    if nuisance == "leak":
        ladder = replace(ladder, signal=ladder.signal + 0.6)
    elif nuisance == "temperature":
        warm = 173 + random.normal(size=len(ladder.signal))
        ladder = replace(ladder, signal=ladder.signal * (1 + 1e-3 * (warm - 173)), temperature=warm)
    else:
        seconds = np.where(random.random(len(ladder.signal)) < 0.5, 1.0, 10.0)  # two currents of the lamp
        ladder = replace(ladder, signal=ladder.signal * (1 + 1e-3 / seconds), seconds=seconds)
    # with one current of the lamp a leak and a shutter's error are the same: one of them is enough
    alone = {"shutter": 0.0} if nuisance == "leak" else {}
    off = fit_ladder(ladder, LinearityConfig(**{**alone, nuisance: 0.0}))
    on = fit_ladder(ladder, LinearityConfig(**alone))
    good, bad = (np.abs(residual(one, 6)[1][:20]).max() for one in (on, off))
    assert good < 4e-4
    if nuisance == "leak":  # it is taken for a slope at zero, the scale of the curve
        assert abs(residual(on, 6)[3]) < 4
        assert abs(residual(off, 6)[3]) > 5
        return
    assert bad > 1.5 * good or np.sqrt(np.mean(off.solution.residual**2)) > 2 * np.sqrt(
        np.mean(on.solution.residual**2)
    )


def test_plateau_and_clusters_by_hand():
    assert clusters(np.array([2.0, 1.0, 1.005, 4.0])).tolist() == [1, 0, 0, 2]
    signal = np.array([1.0, 2, 3, 4, 4.05, 4.05]) * 1e4
    nothing = np.full(6, np.nan)
    ladder = Ladder(
        signal, np.arange(1.0, 7), np.ones(6), np.zeros(6), nothing, np.zeros(6, np.int64), np.zeros(6)
    )  # fmt: skip
    assert plateau(ladder).tolist() == [False, False, False, False, True, True]
    # of two exposures of one level the brighter one is full
    pair = replace(
        ladder, signal=np.array([1.0, 2, 4.0, 4.05, 4.05, 4.05]) * 1e4, light=np.array([1, 2, 4, 4.03, 5, 6])
    )
    assert plateau(pair).tolist() == [False, False, False, True, True, True]


# Whole flats of the one-CCD camera ---------------------------------------------------------------------------------

ONE = load_camera("mini1")
SITE_SETTINGS = Settings().without(["crosstalk"])
DETECTOR = ONE.detectors[0]
RUNGS = np.unique(np.r_[np.geomspace(600, 20e3, 8), np.linspace(26e3, 190e3, 12)])  # electron
FULL = 150e3  # electron


@lru_cache
def raw_flats(seed=1):
    """Pairs of flats (exposure, detector, amplifier, y, x) with the electronics of the virtual observatory."""
    random = np.random.default_rng(seed)
    levels = np.repeat(RUNGS, 2)
    counts = []
    for number, level in enumerate(levels, 1):
        charge = np.zeros((4, *ONE.raw_shape), np.float32)
        box = DETECTOR.amplifiers[0].data.slices
        y, x = np.mgrid[:64, :64]
        share = 1 + 0.02 * np.sin(x / 20) * np.cos(y / 25)
        charge[(slice(None), *box)] = np.minimum(random.poisson(level * share, (4, 64, 64)), FULL)
        charge[0, 10, 20] += 20e3 * (number % 3 == 0)  # a cosmic ray
        charge[1, 30:34, 20] = 0  # dead
        counts.append(read_out(seed, SITE_SETTINGS.electronics, ONE, DETECTOR, number, charge))
    light = levels * 1e-13 * (1 + 1e-4 * random.standard_normal(len(levels)))
    names = [f"MC_S_20260701_{i:06d}" for i in range(1, len(levels) + 1)]
    time = np.datetime64("2026-07-01T20:00:00", "ns") + np.arange(len(levels)) * np.timedelta64(10, "s")
    coords = {
        "exposure": names,
        "exposure_type": ("exposure", np.full(len(names), "flat")),
        "filter": ("exposure", np.full(len(names), "r")),
        "wavelength": ("exposure", np.full(len(names), np.nan)),
        "exposure_time": ("exposure", levels / 2e4),
        "time": ("exposure", time),
        "photodiode": ("exposure", light),
        "detector": [DETECTOR.name],
        "amplifier": list(ONE.amplifier_names),
    }
    dims = ("exposure", "detector", "amplifier", "y", "x")
    present = (("exposure", "detector"), np.ones((len(names), 1), bool))
    return xr.Dataset({"counts": (dims, np.array(counts)[:, None]), "present": present}, coords)


@lru_cache
def measured():
    return measure_linearity(raw_flats(), ONE).compute()


def test_curves_of_simulated_flats():
    found = measured().isel(detector=0)
    for i, amplifier in enumerate(DETECTOR.amplifiers):
        one = found.sel(amplifier=amplifier.name)
        level, correction = one["linearity_level"].values, one["linearity_correction"].values
        use = (level > 3e3) & (level < 90e3)
        truth = linearity_truth(1, SITE_SETTINGS.nonlinearity, DETECTOR, i, level[use])
        ratio = (level + correction)[use] / truth
        # shot noise and photodiode of 2e-4 a flat, 34 flats, ten parameters
        assert np.std(ratio) < 4e-4
        assert np.std(level[use] / truth) > 5 * np.std(ratio)
        gain = channel(1, SITE_SETTINGS.electronics, ONE, DETECTOR, i).gain
        turnoff = float(true_to_measured(1, SITE_SETTINGS.nonlinearity, DETECTOR, i, FULL / gain))
        assert float(one["linearity_turnoff"]) == pytest.approx(turnoff, rel=0.02)
        assert float(one["linearity_ceiling"]) <= turnoff * 1.02
        # every pixel of a flat that is full all over is suspect; a hundredth of the pixels are dead
        brightest = raw_flats()["counts"].isel(exposure=-1, detector=0).sel(amplifier=amplifier.name).values
        above = brightest[amplifier.data.slices] - np.median(brightest[amplifier.overscan.slices])
        assert np.mean(above > float(one["linearity_ceiling"])) > 0.998
        assert level[0] == correction[0] == 0
        assert np.isfinite(one["linearity_error"].values[np.isfinite(level)]).all()
        slope = float(curve(level, correction).slope(1e-3))
        assert abs(slope) < 1e-6  # the gauge
    assert np.isfinite(tables(found).table).all()


def test_graph_is_lazy_and_settings_are_known(no_compute):
    lazy = measure_linearity(raw_flats(), ONE)
    assert lazy["linearity_level"].dims == ("detector", "amplifier", "node")
    assert lazy["linearity_level"].attrs["units"] == "adu"


def test_other_products_lower_the_ceiling():
    gain = xr.Dataset(
        {
            "gain": (("detector", "amplifier"), np.full((1, 4), 1.5), {"units": "electron/adu"}),
            "ptc_turnoff": (("detector", "amplifier"), np.full((1, 4), 60e3), {"units": "electron"}),
        },
        {"detector": [DETECTOR.name], "amplifier": list(ONE.amplifier_names)},
    )
    raw = raw_flats().isel(amplifier=[0])
    one = replace(DETECTOR, amplifiers=tuple(a for a in DETECTOR.amplifiers if a.name == ONE.amplifier_names[0]))
    camera = replace(ONE, detectors=(one,))
    found = measure_linearity(raw, camera, {"gain": gain}).compute()
    assert float(found["linearity_ceiling"].squeeze()) == pytest.approx(40e3)


def changed(**columns):
    raw = raw_flats()
    return raw.assign_coords({name: ("exposure", np.asarray(values)) for name, values in columns.items()})


def test_headers_that_make_no_ladder_are_refused_and_named():
    config = LinearityConfig()
    light = raw_flats()["photodiode"].values
    with pytest.raises(DegenerateSolution, match="all 40 flats of a lamp setting have the same level: take 8 levels"):
        check_linearity(changed(photodiode=np.linspace(1e-9, 1.0001e-9, 40)), config)
    few = np.where(np.arange(40) < 10, light, np.nan)
    with pytest.raises(InsufficientInputs, match=r"5 levels .* at least 8 .*_000011 left out: .*charge is nan C"):
        check_linearity(changed(photodiode=few), config)
    stale = np.where(np.arange(40) < 10, light, light[9])
    with pytest.raises(InsufficientInputs, match=r"000010 left out: its photodiode charge, .* C, is saturated: 31 exp"):
        check_linearity(changed(photodiode=stale), config)
    stale = np.where((np.arange(40) > 9) & (np.arange(40) < 20), light[15], light)
    assert len(find_rungs(changed(photodiode=stale), 6).names) == 30
    assert "is stale: 10 exposures" in find_rungs(changed(photodiode=stale), 6).reasons[0]
    with pytest.raises(InsufficientInputs, match="0 levels of flats"):
        check_linearity(changed(exposure_type=["dark"] * 40), config)


def test_lamp_settings_are_groups():
    current = np.where(np.arange(40) < 20, 1e-3, 2e-3)
    group = find_rungs(changed(lamp_current=current), 6).group
    np.testing.assert_array_equal(group, np.arange(40) >= 20)
    filters = np.where(np.arange(40) < 4, "g", "r")  # two levels of another filter
    assert set(find_rungs(changed(filter=filters), 6).group) == {0, 1}


def one_amplifier(raw):
    found = {}
    from lsstcal_dask.products.linearity import linearity_amplifiers

    for name, result in linearity_amplifiers(raw.isel(detector=0), DETECTOR, None, LinearityConfig(), {}):
        found[name] = result
    return found


def test_a_photodiode_that_contradicts_the_signal_is_named():
    light = raw_flats()["photodiode"].values.copy()
    light[[9, 14]] *= 1.5
    remarks = one_amplifier(changed(photodiode=light))["C00"].attrs["remarks"]
    assert sum("its photodiode contradicts its signal" in remark for remark in remarks) == 2
    assert "MC_S_20260701_000010" in remarks[0]
    random = np.random.default_rng(0)
    result = one_amplifier(changed(photodiode=random.permutation(light)))["C00"]
    assert np.isnan(result["linearity_level"].values).all()
    assert "photodiode does not rise with the light" in result.attrs["remarks"][0]


def test_a_dead_amplifier_does_not_stop_the_others():
    raw = raw_flats()
    counts = raw["counts"].values.copy()
    counts[:, :, 2] = 25_000
    found = one_amplifier(raw.assign(counts=(raw["counts"].dims, counts)))
    dead = ONE.amplifier_names[2]
    assert "no light" in found[dead].attrs["remarks"][0]
    assert np.isnan(found[dead]["linearity_ceiling"])
    assert all(np.isfinite(one["linearity_ceiling"]) for name, one in found.items() if name != dead)


def test_too_few_usable_levels():
    raw = raw_flats().isel(detector=0)
    rungs = find_rungs(raw, 6)
    faint = np.where(np.arange(40) < 30, 0.0, 1e4)
    from lsstcal_dask.products.ladder import Means

    with pytest.raises(CalibrationError):
        make_ladder(raw, rungs, Means(faint, np.full(40, 0.1), 100, faint), 6)
    with pytest.raises(InsufficientInputs, match="usable flats, at least 30"):
        make_ladder(raw, rungs, Means(rungs.light * 6e12, np.full(40, 0.1), 100, faint), 30)


@pytest.mark.parametrize("levels", [9, 11, 14])
@pytest.mark.parametrize("power", [2, 5])
def test_a_smooth_bend_is_no_turnoff_however_few_the_levels(levels, power):
    """Two per cent at the top, up or down, that steepen with the square or the fifth power of the level.

    The top grows by 0.9 of what the faint grow or more, which is where a full well is said to begin.
    """
    straight = Nonlinearity(on=False)
    for seed in range(4):
        ladder = draw(seed, np.linspace(8e3, 100e3, levels), settings=straight, well=np.inf)
        bend = 0.02 * (-1) ** seed * (ladder.signal / 100e3) ** (power - 1)
        found = fit_ladder(replace(ladder, signal=ladder.signal * (1 - bend)))
        assert np.isnan(found.turnoff)
        assert found.used.all()


@pytest.mark.parametrize("levels", [9, 14])
def test_few_levels_bracket_the_turnoff(levels):
    """Half a step of the ladder is as well as it can be known where the top is not seen to be flat."""
    straight, steps = Nonlinearity(on=False), np.linspace(8e3, 125e3, levels)
    for seed in range(4):
        found = fit_ladder(draw(seed, steps, settings=straight, well=90e3))
        assert abs(found.turnoff - 90e3) < np.diff(steps)[0] / 2
