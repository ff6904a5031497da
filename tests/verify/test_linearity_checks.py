"""The checks of linearity: pulls without an effect, the effect found where it is, what cannot be told refused."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.continuity import find_edges
from lsstcal_dask.verify.linearity import Seen, amplifier_offsets, flux_against_background, size_against_light
from lsstcal_dask.verify.stars import STAR, amplifier_of, match_stars, measure_stars

STARS, EXPOSURES, AMPLIFIERS = 60, 12, 4


def seen(seed, common=0.0, own=(0.0, 0.0, 0.0, 0.0), air=0.01, wild=0):
    """Stars that every exposure shows, half of them in another amplifier after a dither."""
    random = np.random.default_rng(seed)
    star, exposure = np.tile(np.arange(STARS), EXPOSURES), np.repeat(np.arange(EXPOSURES), STARS)
    background = random.uniform(300, 5000, EXPOSURES)
    amplifier = (star + random.integers(0, 2, EXPOSURES)[exposure]) % AMPLIFIERS
    zero = 1 + air * random.standard_normal(EXPOSURES)
    slope = common + np.array(own)[amplifier]
    flux = random.uniform(5e4, 5e5, STARS)[star] * zero[exposure] * (1 + slope * background[exposure])
    error = np.sqrt(flux)
    flux = flux + error * random.standard_normal(len(flux))
    flux[:wild] *= 1.5
    return Seen(star, exposure, amplifier, flux, error, background[exposure])


def test_flux_against_background_knows_its_error():
    """Of amplifiers with pulls of one; of the CCD with tails no longer than those of a Gaussian at four sigma."""
    found = [flux_against_background(seen(seed), AMPLIFIERS) for seed in range(40)]
    pulls = np.array([value / error for _, value, error in found])
    # three of four slopes of mean zero are free: 120 numbers tell a scatter to 6.5 %, four times that is allowed
    assert 0.75 < pulls.std() < 1.25
    common = np.array([one.value / one.error for one, _, _ in found])
    assert np.abs(common).max() < 4
    assert 0.4 < common.std() < 1.1  # enlarged for ten degrees of freedom: 1.12 / 1.64


def test_slopes_of_amplifiers_are_found_through_the_air():
    own = np.array([2e-6, -2e-6, 1e-6, -1e-6])
    common, value, error = flux_against_background(seen(1, own=own, wild=2), AMPLIFIERS)
    assert not common.fails
    assert np.abs((value - own) / error).max() < 4
    assert np.abs(value / error).max() > 8


def test_the_slope_of_a_ccd_is_found_in_steady_air():
    found, value, error = flux_against_background(seen(2, common=3e-6, air=0.0), AMPLIFIERS)
    assert found.fails
    assert found.value == pytest.approx(3e-6, abs=4 * found.error)
    assert np.abs(value / error).max() < 4
    unsteady, _, _ = flux_against_background(seen(2, common=3e-6, air=0.02), AMPLIFIERS)
    assert unsteady.error > 5 * found.error


def test_an_amplifier_without_stars_has_no_slope():
    some = seen(3)
    keep = some.amplifier != 2
    few = Seen(*(getattr(some, name)[keep] for name in some.__dataclass_fields__))
    _, value, error = flux_against_background(few, AMPLIFIERS)
    assert np.isnan([value[2], error[2]]).all()
    assert np.isfinite(value[[0, 1, 3]]).all()
    assert value[[0, 1, 3]].sum() == pytest.approx(0.0, abs=1e-12)


def sizes(seed, slope=0.0, change=0.0):
    random = np.random.default_rng(seed)
    exposure = np.repeat(np.arange(5), 60)
    peak, place = random.uniform(0.01, 1.0, 300), random.uniform(0, 4000, (300, 2))
    background = np.linspace(0.3, 3.0, 5)[exposure]
    error = np.full(300, 2e-2)
    seeing = 0.1 * random.standard_normal(5)[exposure] + 1e-5 * place[:, 0] * (exposure - 2)
    size = seeing + (slope + change * (background - background.mean())) * peak
    return size + error * random.standard_normal(300), error, peak, exposure, background, place


def test_size_against_brightness_and_background():
    bright, changed = size_against_light(*sizes(3, slope=0.1))
    assert bright.fails
    assert bright.value == pytest.approx(0.1, abs=4 * bright.error)
    assert not changed.fails
    # 300 stars of peaks from 0.01 to 1
    assert bright.error == pytest.approx(2e-2 / np.sqrt(300) / (0.99 / np.sqrt(12)), rel=0.2)
    bright, changed = size_against_light(*sizes(4, change=0.05))
    assert not bright.fails
    assert changed.fails
    assert changed.value == pytest.approx(0.05, abs=4 * changed.error)


def test_backgrounds_that_are_alike_tell_no_change():
    size, error, peak, exposure, background, place = sizes(5)
    bright, changed = size_against_light(size, error, peak, exposure, np.full_like(background, 2.0), place)
    assert not bright.fails
    assert changed is None


def flats(seed, bend):
    """Logarithms of steps of a CCD whose amplifiers are off linear by ``bend`` at level 1."""
    random = np.random.default_rng(seed)
    edges = find_edges(load_camera("mini9").detector("R22_S11"))
    level = np.repeat(np.geomspace(0.02, 0.9, 12)[:, None], len(edges), axis=1)
    error = 2e-4 / np.sqrt(level / 0.5)
    step = np.array([[(bend[e.high] - bend[e.low]) * one for e in edges] for one in level[:, 0]])
    gains = random.normal(0, 0.01, len(edges))  # wrong gains are steps at every level
    return gains + step + error * random.standard_normal(step.shape), error, level, edges


def test_levels_of_amplifiers_in_flats():
    bend = np.zeros(16)
    value, error = amplifier_offsets(*flats(4, bend), 16)
    assert np.abs(value / error).max() < 4
    bend[[3, 9]] = 0.01, -0.005
    value, error = amplifier_offsets(*flats(5, bend), 16)
    truth = bend - bend.mean()
    assert np.abs((value - truth) / error).max() < 4
    assert np.abs(value / error)[[3, 9]].min() > 8


def test_what_cannot_be_told_is_refused():
    some = seen(1)
    few = Seen(*(getattr(some, name)[some.exposure < 3] for name in some.__dataclass_fields__))
    with pytest.raises(InsufficientInputs, match="3 exposures of the same stars, at least 4 are needed"):
        flux_against_background(few, AMPLIFIERS)
    alike = Seen(some.star, some.exposure, some.amplifier, some.flux, some.error, np.full(len(some.star), 500.0))
    with pytest.raises(InsufficientInputs, match="backgrounds are alike: they differ by 0 %, 20 % are needed"):
        flux_against_background(alike, AMPLIFIERS)
    size, error, peak, exposure, background, _ = sizes(1)
    with pytest.raises(InsufficientInputs, match="size of stars against brightness: 5 measurements, at least 10"):
        size_against_light(size[:5], error[:5], peak[:5], exposure[:5], background[:5])
    with pytest.raises(InsufficientInputs, match="all measurements have the same level"):
        size_against_light(size, error, np.ones_like(peak), exposure, background)
    step, error, level, edges = flats(1, np.zeros(16))
    with pytest.raises(InsufficientInputs, match="levels of amplifiers: 9 measurements"):
        amplifier_offsets(step[:9], error[:9], level[:9], edges, 16)
    with pytest.raises(InsufficientInputs, match="the same level"):
        amplifier_offsets(step, error, np.full_like(level, 0.5), edges, 16)


def sky(places, fluxes, width=1.6, shape=(220, 300), level=400.0, seed=6):
    """Gaussian stars on a sky, with noise."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, level)
    for (x0, y0), flux in zip(places, fluxes, strict=True):
        image += flux / (2 * np.pi * width**2) * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * width**2))
    return image + np.sqrt(image) * np.random.default_rng(seed).standard_normal(shape), image


def test_stars_are_measured_within_their_errors():
    places = [(x + 0.37, y + 0.61) for x in range(30, 290, 40) for y in range(30, 210, 40)]
    fluxes = np.geomspace(3e4, 1e6, len(places))
    image, variance = sky(places, fluxes)
    found = measure_stars(image, variance, np.ones(image.shape, bool))
    assert found.dtype == STAR
    assert len(found) == len(places)
    order = [int(np.argmin(np.hypot(*(np.array(places) - (one["x"], one["y"])).T))) for one in found]
    assert np.abs((found["flux"] - fluxes[order]) / found["flux_error"]).max() < 5
    assert np.abs(found["background"] - 400).max() < 4  # a mesh of 64 pixels with stars in it: a percent
    # forty numbers tell a scatter to 11 %
    assert 0.6 < np.std(found["size"] / found["size_error"]) < 1.4
    alike = np.ones(len(found))
    slope, _ = size_against_light(found["size"], found["size_error"], found["flux"], alike, alike)
    assert not slope.fails


def test_wide_double_and_cut_stars_are_left_out():
    places = [(60.0, 60.0), (150.0, 60.0), (156.0, 60.0), (240.0, 160.0), (60.0, 160.0)]
    image, variance = sky(places, [2e5] * 5)
    good = np.ones(image.shape, bool)
    good[162, 240] = False
    found = measure_stars(image, variance, good)
    assert sorted(found["x"].round().astype(int)) == [60, 60]
    assert len(measure_stars(image * 0, variance, good)) == 0


def test_the_same_stars_are_found_again_after_a_shift():
    random = np.random.default_rng(7)
    first = np.zeros(50, STAR)
    first["x"], first["y"], first["flux"] = *random.uniform(0, 500, (2, 50)), random.uniform(1e4, 1e6, 50)
    order = random.permutation(50)[:40]
    second = first[order].copy()
    second["x"], second["y"] = second["x"] + 33.3, second["y"] - 12.1
    other = first.copy()
    other["x"], other["y"] = random.uniform(0, 500, (2, 50))
    one, two, three = match_stars([first, second, other])
    assert one.tolist() == list(range(50))
    assert two.tolist() == order.tolist()
    assert (three >= 0).sum() < 8  # chance
    assert match_stars([]) == []


def test_amplifiers_of_stars_are_those_of_their_middles():
    detector = load_camera("mini9").detector("R22_S11")
    stars = np.zeros(len(detector.amplifiers), STAR)
    for i, amplifier in enumerate(detector.amplifiers):
        (x0, y0), nx = amplifier.position, amplifier.data.shape[1]
        stars["x"][i], stars["y"][i] = x0 + nx - 1, y0
    assert amplifier_of(stars, detector).tolist() == list(range(len(stars)))


def test_an_amplifier_whose_stars_are_seen_once_has_no_slope():
    """Zero would be taken for its slope, and what the others have in common for its distance from them."""
    some = seen(8, own=(2e-6, 0.0, 0.0, 2e-6))
    keep = (some.amplifier != 3) | (some.star % EXPOSURES == some.exposure)
    once = Seen(*(getattr(some, name)[keep] for name in some.__dataclass_fields__))
    star = np.where(once.amplifier == 3, STARS + once.star, once.star)  # not those of another amplifier
    assert (once.amplifier == 3).sum() >= 10
    _, value, error = flux_against_background(replace(once, star=star), AMPLIFIERS)
    assert np.isnan([value[3], error[3]]).all()
    truth = np.array([4e-6, -2e-6, -2e-6]) / 3
    assert np.abs((value[:3] - truth) / error[:3]).max() < 4


def test_an_amplifier_alone_is_compared_with_none():
    _, value, error = flux_against_background(replace(seen(9), amplifier=np.zeros(STARS * EXPOSURES, int)), AMPLIFIERS)
    assert np.isnan(value).all()
    assert np.isnan(error).all()


def test_no_background_tells_no_change():
    some = seen(1)
    with pytest.raises(InsufficientInputs, match="backgrounds are alike: they differ by less than any light"):
        flux_against_background(replace(some, background=np.zeros(len(some.star))), AMPLIFIERS)
    size, error, peak, exposure, background, place = sizes(5)
    assert size_against_light(size, error, peak, exposure, 0 * background, place)[1] is None


def test_an_image_that_is_bright_all_over_is_refused():
    """Half a million pixels of noise that the variance does not know of."""
    image = 1e3 * np.random.default_rng(1).standard_normal((1500, 1500))
    with pytest.raises(InsufficientInputs, match="stars cannot be told from what is round them, which is too bright"):
        measure_stars(image, np.ones(image.shape), np.ones(image.shape, bool))
