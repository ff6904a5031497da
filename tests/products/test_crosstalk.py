from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.special import erfc
from scipy.stats import norm

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import Entries
from lsstcal_dask.pipeline.closed.discs import dataset, disc, expose, true_matrix
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.products import crosstalk_fit, crosstalk_patches
from lsstcal_dask.products.crosstalk import (
    CrosstalkConfig,
    _dataset,
    check_crosstalk,
    crosstalk_amplifiers,
    measure_crosstalk,
    significant,
    source_names,
)
from lsstcal_dask.products.crosstalk_check import crosstalk_slope
from lsstcal_dask.products.crosstalk_fit import Targets, add_patch, enlarged, merge, solve
from lsstcal_dask.products.crosstalk_patches import Stamp, patches
from lsstcal_dask.products.spots import SpotConfig, find_spot, find_spots, spot_amplifiers, stamp_size
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.crosstalk import Crosstalk

NAMES = ("R22_S00", "R22_S01")  # e2v and ITL of one board
TARGET = "R22_S01"
SHAPE = (60, 60)


def _stamp(source, y, x, radius=8, level=1e5, **more):
    whole = disc(SHAPE, y, x, radius, 0.1) * level
    inside = np.argwhere(whole > 1)
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0) + 1
    values = np.where(whole > 1, whole, np.nan)[y0:y1, x0:x1].astype(np.float32)
    return Stamp(source, int(y0), int(x0), values, level, **more)


def _full(stamp):
    out = np.zeros(SHAPE)
    out[stamp.box] = np.nan_to_num(stamp.values)
    return out


def _target(image, noise=5.0, row_variance=0.0, common=0.0):
    """One dark target."""
    numbers = (np.array([value]) for value in (noise, row_variance, common))
    image = image.astype(np.float32)[None]
    return Targets(np.array([99]), image, np.ones(image.shape, bool), *numbers, np.full((1, 2), np.nan))


def _solved(stamps, image, number=4, quadratic=None, **more):
    normal = {}
    for patch in patches(stamps, SHAPE):
        add_patch(normal, patch, _target(image, **more))
    return solve(normal, number, np.zeros(number, bool) if quadratic is None else quadratic, 1e4)


def test_one_source_is_a_textbook_least_squares_fit():
    """Against least squares over the same pixels; the background costs some of 1 / sqrt(sum Q**2)."""
    stamp = _stamp(1, 30, 28)
    random = np.random.default_rng(1)
    y, x = np.mgrid[:60, :60]
    image = 3e-4 * _full(stamp) + 2 + 0.02 * x - 1e-3 * (y - 30) ** 2 + random.normal(0, 5, SHAPE)
    found = _solved([stamp], image)
    (patch,) = patches([stamp], SHAPE)
    part = np.s_[patch.rows, patch.columns]
    terms = [_full(stamp), np.ones(SHAPE), x, y, x * x, x * y, y * y]
    design = np.stack([term[part].ravel() for term in terms], 1)
    plain = np.linalg.lstsq(design / design.std(0).clip(1), image[part].ravel(), rcond=None)[0][0] / design[:, 0].std()
    assert found.linear[1] == pytest.approx(plain, abs=0.15 * found.linear_error[1])  # pixels beyond 3 sigma count less
    assert found.linear_error[1] > 5 / np.sqrt((_full(stamp) ** 2).sum())
    assert abs(found.linear[1] - 3e-4) < 4 * found.linear_error[1]
    assert np.isnan(found.linear[[0, 2, 3]]).all()


def test_error_is_that_of_the_fisher_matrix():
    stamp, sigma = _stamp(1, 30, 28), 5.0
    (patch,) = patches([stamp], SHAPE)
    y, x = np.mgrid[:60, :60] / 30 - 1
    part = np.s_[patch.rows, patch.columns]
    terms = [_full(stamp), np.ones(SHAPE), x, y, x * x, x * y, y * y]
    design = np.stack([term[part].ravel() for term in terms], 1)
    fisher = design.T @ design / sigma**2
    bound = np.sqrt(np.linalg.inv(fisher)[0, 0])
    random = np.random.default_rng(2)
    runs = [_solved([stamp], random.normal(0, sigma, SHAPE)) for _ in range(150)]
    scatter = np.std([run.linear[1] for run in runs])
    mean = np.mean([run.linear_error[1] for run in runs])
    assert mean == pytest.approx(bound, rel=0.02)  # Huber at 3 sigma costs 0.1 %
    assert 0.8 < scatter / bound < 1.2  # 3.5 times 1 / sqrt(300)


def test_rows_that_jitter_are_weighed_and_pixels_that_were_hit_left_out():
    stamp = _stamp(1, 30, 28)
    random = np.random.default_rng(3)
    (patch,) = patches([stamp], SHAPE)
    pulls = []
    for _ in range(60):
        image = 2e-4 * _full(stamp) + random.normal(0, 5, SHAPE) + random.normal(0, 8, (60, 1))
        image[25:35, 25] += 4000  # a cosmic ray across the spot: alone it would make 1e-4
        one = []
        for of_rows in (64.0, 0.0):
            normal = {}
            add_patch(normal, patch, _target(image, row_variance=of_rows))
            found = solve(normal, 2, np.zeros(2, bool), 1e4)
            one.append((found.linear[1] - 2e-4) / found.linear_error[1])
        pulls.append(one)
    aware, blind = np.sqrt(np.mean(np.square(pulls), 0))
    assert 0.65 < aware < 1.35  # 3.8 / sqrt(2 * 60)
    assert np.isnan(blind)  # (25 + 64) / 25 of the variance that is allowed for: refused


def test_bias_noise_does_not_average_down():
    """Twenty exposures with a bias as noisy as a twentieth of a frame: half of the variance stays."""
    stamp, n = _stamp(1, 30, 28), 20
    random = np.random.default_rng(4)
    (patch,) = patches([stamp], SHAPE)
    pulls, errors = [], []
    for _ in range(40):
        bias, normal = random.normal(0, 5 / np.sqrt(n), SHAPE), {}
        for _ in range(n):
            target = _target(random.normal(0, 5, SHAPE) - bias, common=25 / n)
            add_patch(normal, patch, target, n)
        found = solve(normal, 2, np.zeros(2, bool), 1e4)
        pulls.append(found.linear[1] / found.linear_error[1])
        errors.append(found.linear_error[1])
    alone = _solved([stamp], random.normal(0, 5, SHAPE)).linear_error[1]
    assert np.mean(errors) == pytest.approx(alone * np.sqrt(2 / n), rel=0.02)
    assert 0.6 < np.std(pulls) < 1.4  # 3.5 times 1 / sqrt(80)


def test_two_levels_give_the_quadratic_term():
    random = np.random.default_rng(5)
    normal = {}
    for level in (4e4, 6e4, 1.2e5):
        stamp = _stamp(1, 30, 28, level=level)
        signal = _full(stamp)
        (patch,) = patches([stamp], SHAPE)
        add_patch(normal, patch, _target(2e-4 * signal - 8e-10 * signal**2 + random.normal(0, 5, SHAPE)))
    found = solve(normal, 2, np.ones(2, bool), 1e4)
    assert abs(found.linear[1] - 2e-4) < 4 * found.linear_error[1]
    assert abs(found.quadratic[1] + 8e-10) < 4 * found.quadratic_error[1]
    assert found.quadratic_error[1] < 2e-10
    without = solve(normal, 2, np.zeros(2, bool), 1e4)
    assert abs(without.linear[1] - 2e-4) > 8 * without.linear_error[1]  # ignored, it spoils the linear one
    assert np.isnan(without.quadratic[1])
    config, within = CrosstalkConfig(), np.ones(2, bool)
    both, one = (_dataset(solution, within, config)["crosstalk_quadratic"].values for solution in (found, without))
    assert both[1] == np.float32(found.quadratic[1])
    assert np.isnan(one).all()  # not measured is not zero
    nothing = replace(found, chi2=np.zeros(2))
    assert _dataset(nothing, within, config)["crosstalk_quadratic"].values[1] == 0  # measured, and not told from zero


def test_sources_always_lit_together_are_unmeasured_until_one_is_lit_alone():
    random = np.random.default_rng(6)
    one, two, alone = _stamp(0, 30, 28), _stamp(1, 30, 28), _stamp(2, 30, 28)
    together = _solved([one, two], 1e-4 * _full(one) + random.normal(0, 5, SHAPE))
    assert np.isnan(together.linear[:2]).all()
    assert together.condition > 1e4
    normal = {}
    truth = {0: 1e-4, 1: -3e-4, 2: 0.0}
    for lit in ([one, two], [one], [alone]):
        image = sum(truth[s.source] * _full(s) for s in lit) + random.normal(0, 5, SHAPE)
        for patch in patches(lit, SHAPE):
            add_patch(normal, patch, _target(image))
    found = solve(normal, 4, np.zeros(4, bool), 1e4)
    for source, true in truth.items():
        assert abs(found.linear[source] - true) < 4 * found.linear_error[source]
    assert np.isnan(found.linear[3])
    assert found.linear_error[1] > 1.3 * found.linear_error[0]  # what is left when the one is known


def test_neighbours_are_fitted_or_hidden_and_refused_spots_hide_their_pixels():
    random = np.random.default_rng(7)
    near, beside, bad = _stamp(0, 30, 20), _stamp(1, 30, 35), _stamp(2, 48, 24, radius=5, used=False)
    image = 1e-4 * _full(near) + 5e-3 * _full(beside) + 0.1 * _full(bad) + random.normal(0, 5, SHAPE)
    found = _solved([near, beside, bad], image)
    assert len(patches([near, beside, bad], SHAPE)) == 2
    for source, true in ((0, 1e-4), (1, 5e-3)):
        assert abs(found.linear[source] - true) < 4 * found.linear_error[source]
    assert np.isnan(found.linear[2])


def test_some_sources_stand_for_many_that_are_alike(monkeypatch):
    """Twelve sources that lie within a tenth of a pixel, in thirty exposures of some of them, without noise.

    Of no column more than 1 % are left out, and what is left out is at right angles to what is fitted: coefficients
    move by a few times the square of that, of the largest.
    """
    random = np.random.default_rng(12)
    lit = random.random((30, 12)) < 0.6
    true = random.normal(0, 2e-4, 12)
    found = []
    for most in (4, 100):
        monkeypatch.setattr(crosstalk_patches, "_MANY", most)
        normal, places = {}, np.random.default_rng(13)
        for one in lit:
            stamps = [_stamp(int(s), *places.uniform(29.95, 30.05, 2)) for s in np.flatnonzero(one)]
            (patch,) = patches(stamps, SHAPE, np.zeros(12, bool))
            add_patch(normal, patch, _target(sum(true[s.source] * _full(s) for s in stamps)))
        assert (len(patch.parts) < len(patch.sources)) == (most == 4)
        found.append(solve(normal, 12, np.zeros(12, bool), 1e4))
    few, exact = found
    np.testing.assert_allclose(exact.linear, true, atol=1e-9)
    np.testing.assert_allclose(few.linear, true, rtol=0, atol=4e-4 * np.abs(true).max())
    np.testing.assert_allclose(few.linear_error, exact.linear_error, rtol=2e-3)


def test_more_sources_than_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(crosstalk_fit, "_MOST", 1)
    with pytest.raises(CalibrationError, match="crosstalk: 2 sources are read together, directly or through others"):
        _solved([_stamp(0, 30, 28), _stamp(1, 30, 28)], np.zeros(SHAPE))


def test_normal_equations_add_up_in_any_order():
    random = np.random.default_rng(8)
    parts = []
    for source in (0, 1, 0, 1):
        normal, stamp = {}, _stamp(source, 30, 28)
        for patch in patches([stamp], SHAPE):
            add_patch(normal, patch, _target(random.normal(0, 5, SHAPE)))
        parts.append(normal)
    whole = solve(merge(parts), 2, np.zeros(2, bool), 1e4)
    other = solve(merge([merge(parts[2:]), merge(parts[:2])]), 2, np.zeros(2, bool), 1e4)
    np.testing.assert_allclose(whole.linear, other.linear, rtol=1e-12)
    alone = solve(parts[0], 2, np.zeros(2, bool), 1e4)
    assert whole.linear_error[0] == pytest.approx(alone.linear_error[0] / np.sqrt(2), rel=0.02)


def test_sources_that_were_not_there_scatter_by_their_errors():
    random = np.random.default_rng(9)
    stamp = _stamp(1, 30, 28)
    (patch,) = patches([stamp], SHAPE)
    nulls = [add_patch({}, patch, _target(1e-3 * _full(stamp) + random.normal(0, 5, SHAPE))) for _ in range(200)]
    pulls = np.array([value / error for ((value, error),) in nulls])
    assert abs(pulls.mean()) < 0.3  # 4 / sqrt(200)
    assert 0.8 < pulls.std() < 1.2  # 4 / sqrt(400)


def test_significance_at_camera_scale():
    freedom, within = np.array([1, 1, 1, 1, 2]), np.array([True, False, True, True, True])
    chi2 = np.array([4.6, 5.4, 4.4, np.nan, 4.6]) ** 2
    np.testing.assert_array_equal(significant(chi2, freedom, within, CrosstalkConfig())[:4], [1, 0, 0, 0])
    assert erfc(4.5 / np.sqrt(2)) == pytest.approx(2 * norm.sf(4.5))
    assert not significant(chi2, freedom, within, CrosstalkConfig())[4]  # two numbers have more ways to be large
    config = CrosstalkConfig(significance="fdr", rate=0.1)
    chance = np.array([0.001, 0.04, 0.06, 0.5])  # limits 0.025, 0.05, 0.075, 0.1: the third passes, and all below it
    found = significant(norm.isf(chance / 2) ** 2, np.ones(4), np.ones(4, bool), config)
    np.testing.assert_array_equal(found, [1, 1, 1, 0])
    assert not significant(np.full(3, np.nan), np.ones(3), np.ones(3, bool), config).any()


def test_a_spot_is_found_and_a_cosmic_ray_is_not():
    random = np.random.default_rng(1)
    image = random.normal(0, 6, (126, 62)).astype(np.float32)
    for i in range(60):
        image[20 + i, 5 + i // 2 : 7 + i // 2] += 2e4  # a track two pixels wide
    assert find_spot(image) is None
    image += (4e4 * disc(image.shape, 100, 40, 9)).astype(np.float32)
    spot = find_spot(image)
    centre = Stamp(0, spot.y, spot.x, spot.values, spot.level).centre
    assert np.hypot(centre[0] - 100, centre[1] - 40) < 0.2
    assert spot.level == pytest.approx(4e4, rel=0.02)
    assert spot.others == 0
    assert np.nansum(spot.values) == pytest.approx(4e4 * np.pi * 81, rel=0.01)
    image += (4e4 * disc(image.shape, 30, 42, 9)).astype(np.float32)
    assert find_spot(image).others == 1


# Closed loop: both CCDs lit in four shares, at two levels, such that no two amplifiers that are lit share a cell.


@pytest.fixture(scope="module")
def site():
    settings = Settings().only(["gain", "read_noise", "crosstalk", "digitisation", "overscan_drift"])
    strong = Crosstalk(per_board=60, inter_low=3e-5, inter_high=5e-4)
    return Observatory(5, load_camera("mini9"), settings.model_copy(update={"crosstalk": strong}))


def _lit(camera, share, level):
    found = {}
    members = [(n, a.name) for n in NAMES for a in camera.detector(n).amplifiers]
    for slot, key in enumerate(members[share::4]):
        row, column = divmod(slot, 3)
        found[key] = 20.0 + 32 * row, 15.0 + 20 * column, 6.0, level
    return found


@pytest.fixture(scope="module")
def raw(site):
    plan = [(share, level) for level in (5e4, 1.1e5) for share in range(4)]
    return dataset(site, NAMES, [expose(site, NAMES, i, _lit(site.camera, *one)) for i, one in enumerate(plan)])


@pytest.fixture(scope="module")
def products(site, raw):
    gain = true_gains(site, NAMES)
    return {"gain": gain, "spots": find_spots(raw, site.camera, {"gain": gain}).compute(scheduler="sync")}


@pytest.fixture(scope="module")
def measured(site, raw, products):
    only = raw.sel(detector=[TARGET])
    return measure_crosstalk(only, site.camera, products).compute(scheduler="sync").sel(detector=TARGET)


def test_every_spot_is_found(raw, products):
    assert (products["spots"]["spot_used"].sum("exposure") == 2).all()
    assert raw.sizes["exposure"] == 8


def test_closed_loop(site, measured):
    """Pulls of all pairs of a CCD, its own and those with the other, of which most are zero."""
    true, true2 = true_matrix(site, TARGET, NAMES)
    place = [measured["source"].values.tolist().index(f"{n}/{a}") for n in NAMES for a in site.camera.amplifier_names]
    c, e, c2, e2 = (v.values[:, place] for v in measured.data_vars.values())
    itself = np.zeros(c.shape, bool)
    itself[np.arange(16), 16 + np.arange(16)] = True
    assert np.isnan(c[itself]).all()
    assert np.isfinite(c[~itself]).all()
    found = ~itself & (c != 0)
    assert found.sum() > 25
    assert not (found & (true == 0)).any()
    assert not (~found & (np.abs(true) > 8 * e)).any()
    for pulls in ((c - true)[found] / e[found], (c2 - true2)[found] / e2[found]):
        assert np.sqrt(np.mean(pulls**2)) < 1 + 3.5 / np.sqrt(2 * found.sum())
    assert found[:, :16].any()  # of the other CCD
    others = np.setdiff1d(np.arange(144), place)
    assert np.isnan(measured["crosstalk"].values[:, others]).all()  # of CCDs without a frame: unmeasured, not zero


def test_quadratic_terms_of_one_ccd_only(site, raw, products, measured):
    """What is not asked for is unmeasured; the linear terms of the other CCD are known the better for it."""
    only, config = raw.sel(detector=[TARGET]), CrosstalkConfig(quadratic="within")
    found = measure_crosstalk(only, site.camera, products, config).compute(scheduler="sync").sel(detector=TARGET)
    ccd = np.array([str(name).partition("/")[0] for name in found["source"].values])
    own, other = np.flatnonzero(ccd == TARGET), np.flatnonzero(ccd == NAMES[0])
    assert np.isfinite(found["crosstalk_quadratic"][:, own]).sum() == 16 * 15
    assert np.isnan(found["crosstalk_quadratic"][:, other]).all()
    before, after = (one["crosstalk_error"].values[:, other] for one in (measured, found))
    assert (after < 0.7 * before).all()


def test_without_crosstalk_nothing_is_found(site, products, raw):
    quiet = Observatory(site.seed, site.camera, site.settings.without(["crosstalk"]))
    counts = [expose(quiet, NAMES, i, _lit(site.camera, i, 1.1e5)) for i in range(2)]
    gain = true_gains(site, NAMES)
    dark = dataset(quiet, NAMES, counts)
    spots = find_spots(dark, site.camera, {"gain": gain}).compute(scheduler="sync")
    found = measure_crosstalk(dark.sel(detector=[TARGET]), site.camera, {"gain": gain, "spots": spots})
    values = found["crosstalk"].values
    assert np.isfinite(values).sum() > 200
    assert not np.nan_to_num(values).any()


def test_building_the_graph_computes_nothing(site, raw, products, no_compute):
    measure_crosstalk(raw, site.camera, products)
    find_spots(raw, site.camera, {"gain": products["gain"]})


def test_saturated_spots_are_refused_by_name(site, raw):
    detector = site.camera.detector(TARGET)
    part = raw.sel(detector=TARGET).isel(exposure=[0])
    config = SpotConfig(brightest=3e4)
    own = {"gain": true_gains(site, NAMES).sel(detector=TARGET)}
    remarks = [r for _, one in spot_amplifiers(part, detector, 46, config, own) for r in one.attrs["remarks"]]
    assert len(remarks) == 4
    assert remarks[0].startswith("exposure e0: spot left out: saturated at ")
    assert remarks[0].endswith("(limit 30000): take it with less light")
    tiny = [r for _, one in spot_amplifiers(part, detector, 10, SpotConfig(), own) for r in one.attrs["remarks"]]
    assert "more than a stamp of 10" in tiny[0]


def test_bad_input(site, raw, products):
    camera, detector = site.camera, site.camera.detector(TARGET)
    with_ids = raw.assign_coords(mask_id=("exposure", np.array(["grid"] * 8, object)))
    with pytest.raises(InsufficientInputs, match="crosstalk: no exposure was taken through mask sparse or single"):
        check_crosstalk(with_ids, CrosstalkConfig())
    with pytest.raises(InsufficientInputs, match="spots: no exposure was taken through mask sparse or single"):
        find_spots(with_ids, camera, {"gain": products["gain"]})
    without = raw.assign_coords(mask_id=("exposure", np.array(["sparse/48"] * 7 + ["none"], object)))
    with pytest.raises(CalibrationError, match="exposure e7 has no mask id: correct its header"):
        check_crosstalk(without, CrosstalkConfig())
    own = {"gain": products["gain"].sel(detector=TARGET)}
    dark = products["spots"].assign(spot_used=xr.zeros_like(products["spots"]["spot_used"]))
    with pytest.raises(InsufficientInputs, match="crosstalk: no spots found in 8 exposures"):
        list(
            crosstalk_amplifiers(raw.sel(detector=TARGET), detector, camera, CrosstalkConfig(), {**own, "spots": dark})
        )
    lost = products["spots"].assign(spot=products["spots"]["spot"] * np.nan)
    with pytest.raises(CalibrationError, match=r"spots of R22_S0./C.., exposure e0: the stamp is missing"):
        list(
            crosstalk_amplifiers(raw.sel(detector=TARGET), detector, camera, CrosstalkConfig(), {**own, "spots": lost})
        )
    dead = {"gain": own["gain"].where(own["gain"]["amplifier"] != "C12"), "spots": products["spots"]}
    part = raw.sel(detector=TARGET).isel(exposure=[0])
    results = dict(crosstalk_amplifiers(part, detector, camera, CrosstalkConfig(), dead))
    assert results["C12"].attrs["remarks"] == ["no gain for this amplifier: see the remarks of 'gain'"]
    assert np.isnan(results["C12"]["crosstalk"]).all()
    assert np.isfinite(results["C10"]["crosstalk"]).sum() >= 7
    assert "sources were never lit while this amplifier was dark: unmeasured" in results["C10"].attrs["remarks"][0]
    finds = dict(spot_amplifiers(part, detector, 46, SpotConfig(), {"gain": dead["gain"]}))
    assert finds["C12"].attrs["remarks"] == ["no gain for this amplifier: see the remarks of 'gain'"]


def test_sources_of_all_amplifiers_of_a_camera():
    names = source_names(load_camera("lsstcam"))
    assert len(names) == len(set(names))
    assert len(source_names(load_camera("mini9"))) == 144
    assert stamp_size(load_camera("mini9")) == 47


def test_slope_of_bleed_trails_tells_right_coefficients_from_wrong_ones():
    """A trail of 80 ke- read while three others are dark: the slope is 1, 0.5 for coefficients twice too large."""
    random = np.random.default_rng(2)
    frame = random.normal(0, 6, (4, 128, 64))
    frame[0, 30:90, 40] += 8e4
    frame[1, 10:20, 12] += 3e4  # a cosmic ray
    t, s = np.nonzero(~np.eye(4, dtype=bool))
    c = np.full(len(t), 3e-4, np.float32)
    signal = frame.copy()
    for i, j, value in zip(t, s, c, strict=True):
        frame[i] += value * signal[j]
    zero = np.zeros(len(t), np.float32)
    right = crosstalk_slope(frame, np.full(4, 6.0), Entries(t, s, c, zero), 1e5)
    assert abs(right.pull) < 4
    assert right.error < 0.05
    assert right.pixels == 3 * 70 - 0
    wrong = crosstalk_slope(frame, np.full(4, 6.0), Entries(t, s, 2 * c, zero), 1e5)
    assert wrong.value == pytest.approx(right.value / 2, abs=0.02)
    assert wrong.pull < -10
    with pytest.raises(InsufficientInputs, match="no bright pixel is read while a coupled amplifier is dark"):
        crosstalk_slope(frame[:, 95:], np.full(4, 6.0), Entries(t, s, c, zero), 1e5)


def test_a_streak_across_the_patch_is_refused_not_fitted():
    """A satellite's trail three pixels wide and 60 e- bright is 12 sigma: the patch is left out, a clean one is not."""
    stamp = _stamp(1, 30, 28)
    random = np.random.default_rng(10)
    (patch,) = patches([stamp], SHAPE)
    image = random.normal(0, 5, SHAPE)
    normal = {}
    assert np.isfinite(add_patch(normal, patch, _target(image))).all()
    for i in range(60):
        image[i, max(i - 6, 0) : i + 2] += 60 + 20 * np.sin(i)
    assert np.isnan(add_patch(normal, patch, _target(image))).all()
    assert len(normal) == 1
    assert np.isfinite(solve(normal, 2, np.zeros(2, bool), 1e4).linear[1])


def test_a_gradient_of_the_sky_is_fitted_with_the_coefficients():
    """A sky that bends by a thousand electrons across the patch moves no coefficient: 40 pulls, each to be below 4."""
    stamp, random = _stamp(1, 30, 28), np.random.default_rng(12)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / max(SHAPE)
    sky = 400 + 700 * x - 500 * y + 300 * x * y - 200 * y**2
    pulls = []
    for _ in range(40):
        found = _solved([stamp], 1e-4 * _full(stamp) + sky + random.normal(0, 5, SHAPE), number=2)
        pulls.append((found.linear[1] - 1e-4) / found.linear_error[1])
    assert np.abs(pulls).max() < 4
    assert abs(np.mean(pulls)) < 4 / np.sqrt(40)


def test_errors_that_sources_not_there_disprove_are_enlarged():
    """Forty pulls of 2 and -1 in turn have a mean square of 2.5: errors grow by its root."""
    stamp = _stamp(1, 30, 28)
    solution = _solved([stamp], 1e-3 * _full(stamp) + np.random.default_rng(11).normal(0, 5, SHAPE))
    wide, factor = enlarged(solution, np.array([(2e-6, 1e-6), (-1e-6, 1e-6)] * 20))
    assert factor == pytest.approx(np.sqrt(2.5))
    assert wide.linear_error[1] == pytest.approx(solution.linear_error[1] * factor)
    assert wide.chi2[1] == pytest.approx(solution.chi2[1] / 2.5)
    assert wide.linear[1] == solution.linear[1]
    for nulls in (np.zeros((0, 2)), np.array([(1e-6, 1e-6), (-1e-6, 1e-6)] * 20)):
        same, factor = enlarged(solution, nulls)
        assert factor == 1
        assert same is solution
