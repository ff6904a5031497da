"""Repeats of a monochromatic flat combined: mean, variance line, hits; which flats are left out and why."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.physics.units import vacuum_to_air
from lsstcal_dask.products.monochromatic import (
    MonochromaticConfig,
    Repeat,
    choose_repeats,
    combine_repeats,
    combine_without_doubt,
    gaps,
    make_repeat,
    railed_count,
)
from lsstcal_dask.products.photodiode import Photodiode, useless_charges
from lsstcal_dask.products.repeats import Terms, combine, find_hits, leave_out
from lsstcal_dask.products.slices import Line, air_remarks, group_flats, jumps, mean_response
from lsstcal_dask.variables import MASK_BITS

SHAPE = (2, 150, 100)
NOISE = 30.0  # electron**2
BRIGHT = 1e9  # photons


def pattern() -> np.ndarray:
    return 4e-5 * (1 + 0.01 * np.random.default_rng(0).standard_normal(SHAPE))


def repeat(seed: int, photons: float = BRIGHT, flat: np.ndarray | None = None, noisy: bool = True) -> Repeat:
    rng = np.random.default_rng(seed)
    light = photons * (pattern() if flat is None else flat)
    image = light + noisy * rng.standard_normal(SHAPE) * np.sqrt(light + NOISE)
    level, noise = np.median(image, axis=(1, 2)), np.full(2, NOISE)
    return Repeat(f"e{seed}", image.astype(np.float32), np.zeros(SHAPE, np.uint16), photons, level, noise, 0.0)


def test_the_mean_is_that_of_weights_of_model_counts():
    taken = [repeat(1, BRIGHT), repeat(2, BRIGHT / 50), repeat(3, 2 * BRIGHT)]
    found = combine_repeats(taken, [])
    photons = np.array([one.photons for one in taken])
    model = np.mean([one.level[0] / one.photons for one in taken])
    weight = photons**2 / (model * photons + NOISE)
    values = np.stack([one.image[0] / one.photons for one in taken])
    assert_allclose(found.value[0], np.tensordot(weight, values, 1) / weight.sum(), rtol=1e-6)
    assert_array_equal(found.repeats, 3)
    assert_allclose(found.slope[0], np.sum(weight**2 / photons) / weight.sum() ** 2)
    assert_allclose(found.floor[0], NOISE * np.sum(weight**2 / photons**2) / weight.sum() ** 2)
    assert_array_equal(found.pixels, found.value[0].size)
    assert_allclose(found.total, found.value.sum(axis=(1, 2), dtype=float))


@pytest.mark.parametrize("photons", [[BRIGHT], [BRIGHT, BRIGHT / 3], [BRIGHT / 100] * 5])
def test_scatter_is_that_of_the_line_and_of_the_bound(photons):
    found = combine_repeats([repeat(i, p) for i, p in enumerate(photons)], [])
    truth = pattern()
    variance = found.slope[:, None, None] * truth + found.floor[:, None, None]
    pull = (found.value - truth) / np.sqrt(variance)
    n = pull.size
    assert abs(pull.std() - 1) < 4 / np.sqrt(2 * n)
    assert abs(pull.mean()) < 4 / np.sqrt(n)  # weights of noisy counts would draw it down
    light = np.array(photons)[:, None, None, None]
    bound = 1 / np.sum(light**2 / (light * truth + NOISE), axis=0)
    assert np.mean(variance / bound) < 1.001


def _hit(one: Repeat, where: tuple[slice, slice], by: float) -> Repeat:
    one.image[0][where] += np.float32(by)
    return one


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_hits_are_rejected_among_repeats_or_by_flats_nearby(n):
    track = np.s_[40:42, 30:60]
    taken = [repeat(i) for i in range(n)]
    _hit(taken[0], track, 3000.0)  # 15 sigma
    nearby = [repeat(20), repeat(21)] if n == 1 else []
    _hit(nearby[0], np.s_[80:82, 30:60], 3000.0) if nearby else None
    found = combine_repeats(taken, nearby)
    assert_array_equal(found.repeats[0][track], n - 1)
    assert found.hits[0] >= 60
    assert sum(found.hits[1:]) == 0
    # beside the track what charge may have diffused into is left out too, and nothing else; of the 68 pixels that
    # touch the track one in a thousand lies above 3 sigma by itself and adds its own neighbours, fewer than 16
    assert (found.repeats < n).sum() == found.hits[0] < 4 * 32 + 16
    away = (found.value[0] - pattern()[0])[track] / np.sqrt(pattern()[0][track] * found.slope[0])
    if n == 1:
        flags = MASK_BITS["COSMIC_RAY"] | MASK_BITS["INTERPOLATED"]
        assert np.all(found.mask[0][track] == flags)
        assert abs(away.mean()) < 4 / np.sqrt(60) * np.sqrt(1 / 2)  # the mean of two
    else:
        assert np.all(found.mask == 0)
        assert abs(away.mean()) < 4 / np.sqrt(60) * np.sqrt(n / (n - 1))
    unrejected = combine_repeats(taken, nearby, MonochromaticConfig(clip=1e3))
    assert abs((unrejected.value[0] - pattern()[0])[track].mean()) * BRIGHT > 0.9 * 3000 / n


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_only_suspects_need_a_look(n):
    rng = np.random.default_rng(n)
    images = np.stack([repeat(i).image[0] for i in range(n)])
    for k, y, x in zip(rng.integers(0, n, 40), rng.integers(0, 150, 40), rng.integers(0, 100, 40), strict=True):
        images[k, y, x] += rng.uniform(0, 3000)
    masks = np.where(rng.random(images.shape) < 0.02, MASK_BITS["SATURATED"], 0).astype(np.uint16)
    ones = np.ones(n, np.float32)
    terms = Terms(ones, NOISE * ones, ones / n, np.float32(6), np.float32(0), np.float32(4e4 * np.pi / 2 / n))
    guide = repeat(9).image[0] if n == 1 else np.zeros((0, 0), np.float32)
    value, counts = np.empty((150, 100), np.float32), np.empty((150, 100), np.uint8)
    suspect = np.zeros((150, 100), bool)
    combine(images, masks, terms, guide, value, counts, suspect)
    found, every = np.zeros(images.shape, bool), np.zeros(images.shape, bool)
    find_hits(images, masks, terms, guide, value, np.argwhere(suspect), found)
    find_hits(images, masks, terms, guide, value, np.argwhere(np.ones_like(suspect)), every)
    assert found.sum() > 50
    assert_array_equal(found, every)
    assert suspect.mean() < 0.05
    leave_out(images, masks, terms, every, np.argwhere(np.ones_like(suspect)), value, counts)
    good = ~every & (masks == 0)
    assert_array_equal(counts, good.sum(axis=0))
    with np.errstate(invalid="ignore"):
        assert_allclose(value, np.where(good, images, 0).sum(axis=0) / good.sum(axis=0), rtol=1e-5)


def test_moving_fringes_are_no_hits():
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    fringed = [pattern() * (1 + 0.05 * np.cos((x + y) / 5 + turn)) for turn in (0, 1, 2)]
    one, *nearby = (repeat(i, flat=flat) for i, flat in enumerate(fringed))
    found = combine_repeats([one], nearby)
    assert sum(found.hits) == 0
    _hit(one, np.s_[40:42, 30:60], 40_000.0)
    assert combine_repeats([one], nearby).hits[0] >= 60


def test_a_single_flat_without_others_is_taken_as_it_is():
    one = _hit(repeat(1), np.s_[40:42, 30:60], 3000.0)
    found = combine_repeats([one], [])
    assert_allclose(found.value, one.image / np.float32(BRIGHT), rtol=1e-6)
    assert np.all(found.mask == 0)


def test_saturated_pixels_of_one_repeat_are_left_out_and_of_all_are_unknown():
    taken = [repeat(i) for i in range(3)]
    taken[0].mask[0, 3, 4] = MASK_BITS["SATURATED"]
    for one in taken:
        one.mask[0, 5, 6] = MASK_BITS["SATURATED"]
        one.mask[1, 7, 8] = MASK_BITS["BAD"]
    found = combine_repeats(taken, [])
    assert (found.repeats[0, 3, 4], found.mask[0, 3, 4]) == (2, 0)
    assert (found.repeats[0, 5, 6], found.mask[0, 5, 6]) == (0, MASK_BITS["SATURATED"])
    assert np.isnan(found.value[0, 5, 6])
    assert (found.repeats[1, 7, 8], found.mask[1, 7, 8]) == (3, MASK_BITS["BAD"])
    assert_array_equal(found.pixels, found.value[0].size - 1)


@pytest.mark.parametrize("level", [np.nan, 3.0])
def test_a_dead_amplifier_is_nan_and_does_not_touch_the_others(level):
    taken = [repeat(i) for i in range(3)]
    alive = combine_repeats(taken, [])
    for one in taken[1:]:
        one.image[1], one.level[1] = level, level
    once = combine_repeats(taken, [])
    assert_array_equal(once.full, [3, 1])
    assert_allclose(once.value[1], taken[0].image[1] / np.float32(BRIGHT), rtol=1e-6)
    assert_allclose(once.slope, alive.slope * [1, 3], rtol=0.01)
    taken[0].image[1], taken[0].level[1] = level, level
    found = combine_repeats(taken, [])
    assert_array_equal(found.value[0], alive.value[0])
    assert np.isnan(found.value[1]).all()
    assert np.isnan(found.slope[1])
    assert np.all(found.mask[1] == MASK_BITS["NO_DATA"])
    assert_array_equal(found.full, [3, 0])


def test_noise_without_light_is_found_in_a_frame():
    light = np.full(SHAPE, 5000.0, np.float32)
    image = (light + 70 * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint16)
    mask[0, :9] = MASK_BITS["SATURATED"]
    image[0, :9] = 1e6
    variance = image + np.float32(NOISE)
    one = make_repeat(Frame("e", None, image, variance, np.full(SHAPE[:2], 2.0), mask, "electron"), BRIGHT)
    assert_allclose(one.noise, NOISE + 2, rtol=1e-3)
    assert_allclose(one.level, 5000, rtol=0.01)
    assert one.saturated == pytest.approx(9 / 150 / 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"level": np.full(2, 50.0)}, "too low, level 50 electron: did the lamp fail"),
        (
            {"level": np.full(2, 2e5)},
            "too bright, level 200000 electron, more than 150000: take it with less light, or raise",
        ),
        ({"saturated": 0.3}, "saturated: 30.0 % of the pixels, more than 2 %, .*: take it with less light, or raise"),
        ({"level": np.full(2, np.nan)}, "no usable pixel"),
        ({"photons": 0.8 * BRIGHT}, r"\+25.0% off what its photodiode says"),
    ],
)
def test_flats_that_cannot_be_used_are_told_by_name(change, says):
    taken = [repeat(i, noisy=False) for i in range(3)]
    taken[1] = Repeat(**{**vars(taken[1]), **change})
    kept, reasons = choose_repeats(taken, MonochromaticConfig())
    assert [one.exposure for one in kept] == ["e0", "e2"]
    assert list(reasons) == ["e1"]
    with pytest.raises(CalibrationError, match=says):
        raise CalibrationError(reasons["e1"])


def table(rows):
    """Header table of flats: name, wavelength, filter, photodiode, day."""
    names, asked, labels, charge, days = zip(*rows, strict=True)
    start = np.datetime64("2026-07-01T20:00:00", "ns")
    times = [start + np.timedelta64(86400 * day + i, "s") for i, day in enumerate(days)]
    columns = {
        "exposure_type": np.full(len(rows), "flat", object),
        "wavelength": np.array(asked, float),
        "filter": np.array(labels, object),
        "photodiode": np.array(charge, float),
        "exposure_time": np.full(len(rows), 10.0),
        "time": np.array(times),
    }
    coords = {key: ("exposure", value) for key, value in columns.items()}
    return xr.Dataset(coords={"exposure": list(names), **coords})


IDEAL = Photodiode.ideal()
CONFIG = MonochromaticConfig()


def test_wavelengths_are_sorted_repeats_joined_and_measured_ones_used():
    raw = table([("a", 620, "none", 1e-9, 0), ("b", 600, "none", 2e-9, 0), ("c", 620.03, "none", 3e-9, 0)])
    lines = {name: Line(w, 0.01, 1.2) for name, w in {"a": 620.1, "b": 600.2, "c": 620.2}.items()}
    groups, reasons = group_flats(raw, lines, IDEAL, CONFIG)
    assert [one.exposures for one in groups] == [["b"], ["a", "c"]]
    assert groups[0].wavelength == 600.2
    photons = np.array([1e-9, 3e-9]) / 1.602176634e-19
    assert_allclose(groups[1].photons, photons, rtol=1e-9)
    assert groups[1].wavelength == pytest.approx(620.1 + 0.1 * 0.75)
    assert groups[1].wavelength_error == pytest.approx(0.01 * np.hypot(0.25, 0.75))
    assert groups[1].bandwidth == pytest.approx(1.2)
    light = np.array(groups[1].photons)  # by which exposures are weighted
    error = CONFIG.photodiode_error * np.linalg.norm(light) / light.sum()
    assert groups[1].photon_error == groups[1].single_error == pytest.approx(error)
    assert groups[1].common_error == 0  # of a photodiode without error
    assert reasons == {}


def test_the_last_night_of_a_wavelength_counts():
    raw = table([("a", 600, "none", 1e-9, 0), ("b", 601, "none", 2e-9, 0), ("c", 600, "none", 3e-9, 1)])
    groups, _ = group_flats(raw, {}, IDEAL, CONFIG)
    assert [one.exposures for one in groups] == [["c"], ["b"]]
    assert groups[0].remarks == ["note: its wavelength was not measured: that asked for is used"]
    assert np.isnan(groups[0].wavelength_error)


def test_a_single_flat_is_compared_with_those_beside_it_in_its_night():
    rows = [("a", 600), ("b", 601), ("c", 602.5), ("d", 610)]
    raw = table([(n, w, "none", 1e-9 + 1e-12 * i, 0) for i, (n, w) in enumerate(rows)])
    groups, _ = group_flats(raw, {}, IDEAL, CONFIG)
    assert [one.compared for one in groups] == [["b"], ["a", "c"], ["b"], []]
    raw = table([(n, w, "none", 1e-9 + 1e-12 * i, i) for i, (n, w) in enumerate(rows)])
    assert [one.compared for one in group_flats(raw, {}, IDEAL, CONFIG)[0]] == [[], [], [], []]


def test_flats_are_left_out_by_their_headers_with_the_reason():
    rows = [(f"e{i}", 600 + i, "none", (1 + i / 10) * 1e-9, 0) for i in range(9)]
    rows[1] = ("e1", 601, "r", 1e-9, 0)
    rows[2] = ("e2", 602, "none", np.nan, 0)
    rows[3] = ("e3", 603, "none", 0.0, 0)
    for i in (4, 5, 6):
        rows[i] = (f"e{i}", 600 + i, "none", 3.3e-9, 0)
    groups, reasons = group_flats(table(rows), {"e7": Line(607.4, 0.01, 1.0)}, IDEAL, CONFIG)
    assert [one.exposures for one in groups] == [["e0"], ["e8"]]
    assert reasons == {
        "e1": "filter r is in the beam",
        "e2": "its photodiode charge is missing: add it to the header",
        "e3": "its photodiode charge is 0 C: did the lamp fail?",
        "e4": "its photodiode charge 3.3e-09 C is to the last digit that of others: a stale value",
        "e5": "its photodiode charge 3.3e-09 C is to the last digit that of others: a stale value",
        "e6": "its photodiode charge 3.3e-09 C is to the last digit that of others: a stale value",
        "e7": "its measured wavelength, 607.40 nm, is +0.40 nm off 607 nm",
    }


def test_a_wavelength_that_is_off_may_be_flagged_instead():
    raw = table([("a", 600, "none", 1e-9, 0), ("b", 600, "none", 2e-9, 0)])
    config = CONFIG.model_copy(update={"mismatch": "flag"})
    groups, reasons = group_flats(raw, {"b": Line(600.5, 0.01, 1.0)}, IDEAL, config)
    assert [(one.exposures, one.wavelength) for one in groups] == [(["a"], 600.0), (["b"], 600.5)]
    assert groups[1].remarks == ["exposure b: its measured wavelength, 600.50 nm, is +0.50 nm off 600 nm"]
    assert reasons == {}


def test_without_usable_flats_nothing_can_be_made():
    with pytest.raises(InsufficientInputs, match="cube: there are no flats with a wavelength"):
        group_flats(table([("a", np.nan, "none", 1e-9, 0)]), {}, IDEAL, CONFIG)
    with pytest.raises(InsufficientInputs, match="none of 1 monochromatic flats can be used: exposure a: filter g is"):
        group_flats(table([("a", 600, "g", 1e-9, 0)]), {}, IDEAL, CONFIG)


def test_a_wavelength_of_which_the_photodiode_knows_nothing_is_left_out_with_the_likely_reason():
    diode = Photodiode(np.array([290.0, 1110.0]), np.array([0.2, 0.4]), np.array([0.002, 0.002]))
    asked = {"a": 608, "b": 6080, "c": 0.608, "d": 6.08e-7, "e": 1200}
    raw = table([(name, nm, "none", (1 + i) * 1e-9, 0) for i, (name, nm) in enumerate(asked.items())])
    groups, reasons = group_flats(raw, {"d": Line(608.1, 0.01, 1.0)}, diode, CONFIG)
    assert [one.exposures for one in groups] == [["a"]]
    assert reasons["d"].startswith("its measured wavelength, 608.10 nm, is +608.10 nm off")
    for name, unit in (("b", "is it in Angstrom? C"), ("c", "is it in um? C"), ("e", "c")):
        told = f"its wavelength, {asked[name]:g} nm, is beyond 290 to 1110 nm of the photodiode's responsivity: {unit}"
        assert reasons[name] == told + "orrect the header, or give a longer table inputs/photodiode.ecsv"


def test_offsets_of_a_laser_are_not_taken_for_air_and_those_of_air_are():
    asked = np.linspace(350, 1100, 40)
    raw = table([(f"e{i}", nm, "none", 1e-9, 0) for i, nm in enumerate(asked)])
    rng, told = np.random.default_rng(5), []
    for _ in range(300):  # by chance less than one in 10,000 would be told
        measured = asked + 0.1 * rng.standard_normal(40)
        told += air_remarks(raw, {f"e{i}": Line(nm, 0.01, 1.0, silent=True) for i, nm in enumerate(measured)})
    assert told == []
    measured = vacuum_to_air(measured)  # by 0.10 to 0.30 nm: the mean is ten standard errors from none
    lines = {f"e{i}": Line(nm, 0.01, 1.0, silent=True) for i, nm in enumerate(measured)}
    assert len(air_remarks(raw, lines)) == 1
    assert air_remarks(raw, {name: replace(line, silent=False) for name, line in lines.items()}) == []
    with pytest.raises(InsufficientInputs, match=r"none of 40 .* nm off .*; the measured wavelengths of 40 flats are"):
        group_flats(raw, lines, IDEAL, CONFIG.model_copy(update={"mismatch_nm": 1e-3}))


def test_one_count_in_all_pixels_is_told():
    counts = np.random.default_rng(0).integers(20_000, 20_300, (2, 60, 70)).astype(np.int32)
    assert railed_count(counts) == 0
    assert railed_count(np.zeros_like(counts)) == 0  # dead
    counts[:, :, :60] = [[[65535]], [[65530]]]
    assert railed_count(counts) == 0  # the overscan has a level
    counts[:, :, 60:] = [[[65535]], [[65530]]]
    assert railed_count(counts) == 65535


def test_photons_follow_from_charge_responsivity_and_dark_current():
    diode = Photodiode(np.array([400.0, 800.0]), np.array([0.2, 0.4]), np.array([0.002, 0.002]), 1e-12)
    # at 600 nm 0.3 A/W; a photon has h c / 600 nm = 3.3107e-19 J
    assert diode.photons(1e-9 + 1e-11, 10.0, 600.0) == pytest.approx(1e-9 / (0.3 * 3.310743e-19), rel=1e-6)
    assert diode.relative_error(600.0) == pytest.approx(0.002 / 0.3)
    assert_allclose(IDEAL.photons(1.602176634e-19, 1.0, [300.0, 900.0]), 1)
    with pytest.raises(CalibrationError, match="known from 400 to 800 nm, not at 900 nm: give a longer table"):
        diode.photons(1e-9, 1.0, [500.0, 900.0])


def test_light_no_more_than_without_it_is_no_light():
    dark = np.full(2, 1e-12)
    assert list(useless_charges(["a", "b"], np.array([1.05e-12, 2e-12]), dark)) == ["a"]


def test_gaps_are_steps_well_above_the_typical_one():
    assert gaps([600, 601, 602, 604.5, 605.5]) == [(602.0, 604.5)]
    assert gaps([600, 601.2, 602, 603.1]) == []
    assert gaps([600.0]) == gaps([]) == []


def test_the_mean_response_does_not_jump_where_amplifiers_are_missing():
    wavelength = np.arange(600.0, 606)
    spectrum = np.linspace(1, 2, 6)
    own = np.array([[1.0], [0.8], [1.3]]) * spectrum
    pixels = np.repeat([[100.0], [100.0], [50.0]], 6, axis=1)
    whole = mean_response(own * pixels, pixels, wavelength)
    assert_allclose(whole, (own * pixels).sum(0) / pixels.sum(0))
    pixels[2, 3] = pixels[0, 5] = pixels[1, 5] = 0
    assert_allclose(mean_response(own * pixels, pixels, wavelength), whole)
    pixels[:, 1] = 0
    found = mean_response(own * pixels, pixels, wavelength)
    assert np.isnan(found[1])
    assert_allclose(np.delete(found, 1), np.delete(whole, 1))


@pytest.mark.parametrize(("factor", "says"), [(2.0, r"-50\.0% off that of exposure e0"), (0.95, r"\+5\.3% off")])
def test_two_repeats_that_disagree_are_both_named_and_none_is_preferred(factor, says):
    taken = [repeat(0), repeat(1)]
    taken[1] = Repeat(**{**vars(taken[1]), "photons": factor * BRIGHT})
    kept, reasons = choose_repeats(taken, CONFIG)
    assert kept == []
    assert list(reasons) == ["e0", "e1"]
    with pytest.raises(CalibrationError, match=says):
        raise CalibrationError(reasons["e1"])
    assert "take a third, or leave one out" in reasons["e0"]
    assert choose_repeats([repeat(0), repeat(1)], CONFIG)[1] == {}


@pytest.mark.parametrize("n", [2, 3])
def test_a_flat_of_which_every_pixel_would_be_a_hit_is_told_and_no_pixel_is_rejected(n):
    # 140,000 electrons: 2.8 % is 10 sigma of a pixel, and less than disagree
    taken = [repeat(i, 3.5 * BRIGHT) for i in range(n)]
    taken[-1] = Repeat(**{**vars(taken[-1]), "photons": 3.5 * BRIGHT * 0.973})
    kept, reasons = choose_repeats(taken, CONFIG)
    assert (len(kept), reasons) == (n, {})
    assert max(combine_repeats(kept, [], CONFIG).hits) > 0.5 * np.prod(SHAPE)
    found, remarks = combine_without_doubt(kept, [], CONFIG)
    assert sum(found.hits) == 0
    assert_array_equal(found.repeats, n)
    assert len(remarks) == 1
    assert f"exposure e{n - 1}: " in remarks[0]
    assert "too many for cosmic rays" in remarks[0]
    assert combine_without_doubt([repeat(0), repeat(1)], [], CONFIG)[1] == []


@pytest.mark.parametrize("odd", [0, 1, 2, 5, 10, 11])
@pytest.mark.parametrize("by", [0.5, 1.08, 1.43])
def test_a_jump_of_the_mean_response_is_found_where_it_is(odd, by):
    wavelength = np.arange(600.0, 612)
    smooth = 0.8 - 0.3 * ((wavelength - 650) / 300) ** 2
    smooth *= 1 + 1e-3 * np.random.default_rng(odd).standard_normal(12)
    assert jumps(smooth, wavelength, 0.03) == {}
    r = smooth.copy()
    r[odd] *= by
    found = jumps(r, wavelength, 0.03)
    assert list(found) == [odd]
    # a line beyond the last two scatters by sqrt(1 + 4 + 1) times 1e-3
    assert found[odd] == pytest.approx(by - 1, abs=4 * 2.5e-3 * by)


def test_jumps_of_a_noisy_response_are_no_jumps_and_unknown_ones_do_not_matter():
    wavelength = np.arange(600.0, 700)
    r = 1 + 0.02 * np.random.default_rng(3).standard_normal(100)
    assert jumps(r, wavelength, 0.03) == {}
    r[[0, 50]] = np.nan
    assert jumps(r, wavelength, 0.03) == {}
    assert jumps([1.0, 2.0, 1.0], [1, 2, 3], 0.03) == {}
    wide = np.concatenate([np.arange(500.0, 510), np.arange(700.0, 710)])  # r bends in between
    assert jumps(np.exp(-(((wide - 600) / 1000) ** 2)), wide, 1e-4) == {}


def test_a_hit_of_a_neighbour_is_not_filled_into_a_hit():
    track = np.s_[40:42, 30:60]
    taken, nearby = repeat(0), [repeat(20), repeat(21)]
    _hit(taken, track, 6000.0)
    _hit(nearby[0], np.s_[40:42, 30:45], 3000.0)
    found = combine_repeats([taken], nearby)
    assert np.all(found.mask[0][track] & MASK_BITS["INTERPOLATED"])
    away = (found.value[0] - pattern()[0])[track] / np.sqrt(pattern()[0][track] * found.slope[0])
    assert abs(away.mean()) < 4 / np.sqrt(60)


def test_wavelengths_without_numbers_count_as_not_measured_and_are_told():
    raw = table([("a", 600, "none", 1e-9, 0), ("b", 601, "none", 2e-9, 0), ("c", 602, "none", 3e-9, 0)])
    lines = {"a": Line(np.nan, 0.01, 1.2), "b": Line(601.1, 0.01, np.nan), "c": Line(602.1, 0.01, 1.2)}
    groups, reasons = group_flats(raw, lines, IDEAL, CONFIG)
    assert reasons == {}
    assert [one.wavelength for one in groups] == [600, 601.1, 602.1]
    assert [one.bandwidth for one in groups] == [CONFIG.bandwidth, CONFIG.bandwidth, 1.2]
    assert groups[0].remarks[0] == (
        "exposure a: the spectrograph gives no number for its wavelength: that asked for is used"
    )
    assert groups[1].remarks == ["exposure b: the spectrograph gives nan nm for its bandwidth: 1 is used"]
    assert groups[2].remarks == []


def test_a_night_that_lacks_ccds_replaces_none_that_has_them():
    raw = table([("a", 600, "none", 1e-9, 0), ("b", 600, "none", 2e-9, 1), ("c", 600, "none", 3e-9, 2)])
    there = np.array([[True, True], [True, False], [True, True]])
    raw["present"] = ("exposure", "detector"), there
    assert [one.exposures for one in group_flats(raw, {}, IDEAL, CONFIG)[0]] == [["c"]]
    groups, reasons = group_flats(raw.isel(exposure=[0, 1]), {}, IDEAL, CONFIG)
    assert [one.exposures for one in groups] == [["a"]]
    assert reasons == {"b": "its night lacks CCDs of exposure a of an earlier one, which stays: take all"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wavelength": [400.0, 500, 500, 600]}, "has two rows at 500 nm: keep one"),
        ({"wavelength": [400.0, np.nan, 500, 600]}, "wavelengths .* are fewer than two or no numbers"),
        ({"responsivity": [0.2, 0.0, 0.3, 0.4]}, "responsivity .* is 0 A/W at 500 nm: give positive"),
        ({"responsivity": [0.2, 0.3, -0.1, 0.4]}, "responsivity .* is -0.1 A/W at 600 nm: give positive"),
        ({"responsivity": [0.2, 0.3, np.nan, 0.4]}, "responsivity .* is nan A/W at 600 nm"),
        ({"responsivity_error": [0.0, 0.0, np.nan, 0.0]}, "responsivity_error .* is nan A/W at 600 nm"),
        ({"responsivity_error": [0.0, -1.0, 0.0, 0.0]}, "responsivity_error .* is -1 A/W at 500 nm"),
        ({"dark_current": np.nan}, "dark current .* is nan A: give a number"),
    ],
)
def test_a_photodiode_of_bad_numbers_is_refused(change, says):
    good = {"wavelength": [400.0, 500, 600, 700], "responsivity": [0.2, 0.3, 0.3, 0.4], "responsivity_error": [0.0] * 4}
    arrays = {key: np.array(value) for key, value in (good | change).items()}
    with pytest.raises(CalibrationError, match=says):
        Photodiode(**arrays)
