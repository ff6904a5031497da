"""Inefficient transfers and offset of the output from flats: sums by hand, and pulls against the simulator."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import Box
from lsstcal_dask.pipeline.closed import late_charge as making
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.products.deferred import (
    OUTPUTS,
    DeferredConfig,
    Trail,
    check_deferred,
    deferred_amplifiers,
    fit_offset,
    measure_deferred,
    slopes,
    trail,
)
from lsstcal_dask.variables import NOTE

NAMES = ("serial_cti", "parallel_cti", "offset_amplitude", "offset_decay")
LARGE = {"serial_e2v": 2e-6, "offset_e2v": 1e-3, "parallel_e2v": 1e-6, "traps_e2v": 0.0}


@pytest.fixture(scope="module")
def flats():
    """Site, CCD with four of its amplifiers, ladder and gains."""
    return _flats(11, 4, making.EFFECTS)


def _flats(seed, amplifiers, effects):
    site = making.late_site("mini9", seed, effects, **LARGE)
    detector = site.camera.detector("R22_S11")
    ladder, gains = making.ladder(site, detector), true_gains(site, [detector.name]).isel(detector=0)
    return site, replace(detector, amplifiers=detector.amplifiers[:amplifiers]), ladder, {"gain": gains}


def measured(flats, raw=None, detector=None, products=None, config=DeferredConfig()):
    _, own, ladder, gain = flats
    return dict(
        deferred_amplifiers(
            ladder if raw is None else raw, detector or own, None, config, gain if products is None else products
        )
    )


def test_trail_by_hand():
    beyond = np.full((20, 6), 100.0)
    beyond[:, 0] += 30 + np.tile([1, -1], 10)
    beyond[:, 1] += 10
    last = np.full(20, 5000.0)
    found = trail(last, beyond, 2)
    assert found.signal == 5000
    np.testing.assert_allclose(found.late, [30, 10])
    np.testing.assert_allclose(found.covariance, [[20 / 19 / 20, 0], [0, 0]], atol=1e-12)
    beyond[3, 1], beyond[4, 5], last[5] = 400, 400, 9000  # a row each with an outlier
    last[[3, 4]] = 1e5
    found = trail(last, beyond, 2)
    assert found.signal == 5000
    np.testing.assert_allclose(found.late, [30 - 1 / 17 * np.sum(beyond[3:6, 0] - 130), 10])


def test_slopes_by_hand():
    rows = [(1000.0, [5.0, 1.0]), (2000.0, [9.0, 1.0]), (4000.0, [17.0, 1.0])]
    unit = np.array([[1.0, 0.5], [0.5, 1.0]])
    found, covariance, excess = slopes([Trail(s, np.array(late), unit) for s, late in rows])
    np.testing.assert_allclose(found, [4e-3, 0], atol=1e-15)
    spread = sum((s - 7000 / 3) ** 2 for s in (1000, 2000, 4000))
    np.testing.assert_allclose(covariance, unit / spread)
    assert excess == 1


def test_trails_that_scatter_enlarge_their_errors():
    rng = np.random.default_rng(0)
    signal = np.linspace(1e3, 1e4, 40)
    found = [Trail(s, 1e-3 * s + rng.normal(0, 3, 4), np.eye(4)) for s in signal]
    value, covariance, excess = slopes(found)
    assert excess == pytest.approx(9, rel=4 * np.sqrt(2 / 152))
    assert np.abs(value - 1e-3).max() < 4 * np.sqrt(covariance[0, 0])


def test_one_level_makes_no_ladder():
    with pytest.raises(DegenerateSolution, match="go from 1000 to 1000 adu: take a ladder"):
        slopes([Trail(1000.0, np.ones(2), np.eye(2))] * 9)


def test_an_exact_trail_gives_back_its_numbers():
    column, later = np.arange(1, 9), np.arange(9, 21)
    model = 4e-4 * (np.exp(-column / 2.5) - np.exp(-later / 2.5).mean())
    model[0] += 522 * 2e-7
    found = fit_offset(model, 1e-16 * np.eye(8), 522, 12)
    np.testing.assert_allclose(found.value, [2e-7, 4e-4, 2.5], rtol=1e-4)
    assert found.chi2 < 0.1  # what is assumed of the decay takes part


@pytest.mark.parametrize("name", NAMES)
def test_pulls_against_the_registers(name):
    """Sixteen amplifiers of each of four CCDs: the width of 64 pulls is known to 9 %."""
    pulls = _pulls()[name]
    assert len(pulls) == 64
    assert np.abs(pulls.mean()) < 0.3
    assert 0.9 - 2 * 0.09 < pulls.std() < 1.1 + 2 * 0.09


@cache
def _pulls():
    found = {name: [] for name in NAMES}
    for seed in range(4):
        flats = _flats(seed, 16, making.EFFECTS)
        for amplifier, result in measured(flats).items():
            for name in NAMES:
                away = float(result[name]) - making.true(*flats[:2], name, amplifier)
                found[name].append(away / float(result[f"{name}_error"]))
    return {name: np.array(values) for name, values in found.items()}


def test_without_late_charge_none_is_found(flats):
    found = measured(_flats(11, 4, [effect for effect in making.EFFECTS if effect != "deferred"]))
    for name in ("serial_cti", "parallel_cti", "offset_amplitude"):
        pulls = np.array([float(one[name] / one[f"{name}_error"]) for one in found.values()])
        assert np.abs(pulls).max() < 4.5
    assert any(f"{NOTE}no offset is seen" in remark for one in found.values() for remark in one.attrs["remarks"])
    seen = [float(one["offset_amplitude"] / one["offset_amplitude_error"]) for one in measured(flats).values()]
    assert min(seen) > 10


def test_structure_of_overscan_columns_does_not_count(flats):
    _, detector, ladder, _ = flats
    counts = ladder["counts"].values.copy()
    box = detector.amplifiers[0].overscan
    counts[..., box.x0] += 7
    before, after = measured(flats), measured(flats, ladder.assign(counts=(ladder["counts"].dims, counts)))
    for name, one in before.items():
        for key in ("serial_cti", "offset_amplitude"):
            assert float(after[name][key]) == pytest.approx(float(one[key]), rel=1e-6)


def test_a_trail_of_another_kind_is_remarked(flats):
    _, detector, ladder, _ = flats
    counts = ladder["counts"].values.astype(float)
    box = detector.amplifiers[0].overscan
    signal = counts[..., box.x0 - 1] - counts[..., -1]
    counts[..., box.x0 + 5] += 3e-3 * signal
    found = measured(flats, ladder.assign(counts=(ladder["counts"].dims, counts)))
    for one in found.values():
        assert any("is not that of transfers and an offset" in remark for remark in one.attrs["remarks"])


def test_bias_and_linearity_are_applied(flats):
    """A bend that halves all light doubles the signal that the trail is compared with."""
    site, _, _, gain = flats
    names, shape = gain["gain"]["amplifier"].values, (16, *site.camera.image_shape)
    bias = xr.Dataset({"image": (("amplifier", "y", "x"), np.full(shape, 100.0))}, coords={"amplifier": names})
    level = np.array([0, 1e3, 2e3, 1e5])
    curve = {"linearity_level": level, "linearity_correction": level}
    linearity = xr.Dataset(
        {k: (("amplifier", "node"), np.tile(v, (16, 1))) for k, v in curve.items()}
        | {"linearity_ceiling": ("amplifier", np.full(16, 3e4))},
        coords={"amplifier": names},
    )
    plain = measured(flats)
    bent = measured(flats, products={**gain, "linearity": linearity}, config=DeferredConfig(minimum=5, faintest=5e3))
    moved = measured(flats, products={**gain, "bias": bias})
    for name, one in plain.items():
        twice, error = (2 * float(bent[name][f"offset_amplitude{end}"]) for end in ("", "_error"))
        assert abs(twice - float(one["offset_amplitude"])) < 4 * error
        assert float(moved[name]["serial_cti"]) == pytest.approx(float(one["serial_cti"]), rel=1e-6)
    linearity["linearity_level"][:] = np.nan
    lost = measured(flats, products={**gain, "linearity": linearity})
    assert all("no linearity curve" in one.attrs["remarks"][0] for one in lost.values())


def with_amplifiers(detector, **changes):
    return replace(detector, amplifiers=tuple(replace(a, **changes) for a in detector.amplifiers))


def test_what_cannot_be_measured_is_nan_and_says_why(flats):
    _, detector, ladder, gain = flats
    box = detector.amplifiers[0].overscan
    without = with_amplifiers(detector, overscan=Box(0, 0, 0, 0))
    narrow = with_amplifiers(detector, overscan=Box(box.x0, box.x0 + 6, box.y0, box.y1))
    hit = ladder["counts"].values.copy()
    hit[..., ::2, box.x1 - 1] += 3000
    hit[..., 1::2, box.x1 - 2] += 3000
    cases = [
        ("no gain for this amplifier", {"products": {"gain": gain["gain"] * np.nan}}),
        ("no serial overscan after the last", {"detector": without}),
        ("6 overscan columns, at least 7", {"detector": narrow}),
        ("flats from 60000 to 100000 electrons, at least 8 are", {"config": DeferredConfig(faintest=6e4)}),
        ("have outliers: check the flats", {"raw": ladder.assign(counts=(ladder["counts"].dims, hit))}),
    ]
    for why, given in cases:
        for one in measured(flats, **given).values():
            assert any(why in remark for remark in one.attrs["remarks"]), (why, one.attrs)
            assert all(np.isnan(float(one[name])) for name in OUTPUTS)
            assert all(value is None for value in one.attrs["summary"].values())


def test_without_parallel_overscan_only_serial_transfers_are_measured(flats):
    for one in measured(flats, detector=with_amplifiers(flats[1], parallel_overscan=Box(0, 0, 0, 0))).values():
        assert np.isnan(float(one["parallel_cti"]))
        assert np.isfinite(float(one["serial_cti"]))
        assert f"{NOTE}parallel transfers not measured" in one.attrs["remarks"][-1]


def test_too_few_flats_are_refused(flats):
    _, _, ladder, _ = flats
    with pytest.raises(InsufficientInputs, match="deferred: 7 flats, at least 8 are needed"):
        check_deferred(ladder.isel(exposure=slice(7)), DeferredConfig())
    with pytest.raises(InsufficientInputs, match="5 overscan pixels, at least 6"):
        trail(np.ones(9), np.ones((9, 5)), 2)


def test_a_focal_plane_is_measured_lazily(flats, no_compute):
    site, detector, ladder, gain = flats
    raw = ladder.expand_dims(detector=[detector.name], axis=1)
    raw["present"] = (("exposure", "detector"), np.ones((ladder.sizes["exposure"], 1), bool))
    lazy = measure_deferred(raw, site.camera, {"gain": gain["gain"].expand_dims(detector=[detector.name])})
    assert set(lazy.data_vars) == set(OUTPUTS)
    assert lazy["offset_decay"].attrs["units"] == "pixel"
