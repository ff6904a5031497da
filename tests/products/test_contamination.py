"""Lamp, drift of a filter and dust in the ratio of two flats, told apart (Sec. 2.8.2)."""

import numpy as np
import pytest

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.products.contamination import ContaminationConfig, compare_bands, find_dust
from lsstcal_dask.products.drift import fit_lamp, make_cells

CONFIG = ContaminationConfig()
SHAPE = (256, 320)
SIGMA = 1.4e-3  # two flats of a million electrons in a pixel
WIDTH = 4.0  # mm, of a CCD


def places(k):
    """Places (y, x) mm of the pixels of CCD k of a row of four."""
    y, x = np.indices(SHAPE) / 80
    return x + WIDTH * (k - 2), y


def soft(centre, radius, depth):
    """A shadow (y, x) with soft edges."""
    y, x = np.indices(SHAPE)
    return -depth / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) / (radius / 10)))


def template(k):
    """Of the drift, 1/nm: CCDs of two vendors, and a slope that the lamp's polynomial has too."""
    return np.full(SHAPE, (2e-3, -1e-3, 2.5e-3, -2e-3)[k]) + 1e-4 * places(k)[0]


def lamp(k):
    x, y = places(k)
    return 0.01 * x / 8 - 0.006 * (y / 8) ** 2 + 0.003


def ratio(k, seed, drift=0.0, dust=0.0):
    noise = SIGMA * np.random.default_rng([seed, k]).standard_normal(SHAPE)
    return np.exp(lamp(k) + drift * template(k)) * (1 + dust) + noise


def fitted(ratios, **options):
    variance = np.full(SHAPE, SIGMA**2)
    cells = [make_cells(r, variance, template(k), places(k), CONFIG.cell) for k, r in enumerate(ratios)]
    return fit_lamp(cells, CONFIG, **options)


def changes(ratios, found):
    for k, r in enumerate(ratios):
        expected = found.at(*places(k), template(k))
        yield find_dust(r, np.full(SHAPE, SIGMA**2), expected, CONFIG)


def test_lamp_and_drift_are_told_apart():
    pulls = []
    for seed in range(20):
        found = fitted([ratio(k, seed, drift=0.5) for k in range(4)])
        pulls.append((found.drift - 0.5) / found.drift_error)
        assert found.drift > 4 * found.drift_error  # the 0.5 nm that must be seen
        assert found.chi2 == pytest.approx(1, abs=0.1)
    assert abs(np.mean(pulls)) < 4 / np.sqrt(20)
    assert np.std(pulls) == pytest.approx(1, abs=4 / np.sqrt(40))


def test_without_a_drift_none_is_reported():
    pulls = [(f := fitted([ratio(k, seed) for k in range(4)])).drift / f.drift_error for seed in range(100, 130)]
    assert np.max(np.abs(pulls)) < CONFIG.drift


def test_a_mote_is_recovered_and_nothing_else_changes():
    """0.5 % to 5e-4 of the light; elsewhere the factor is one, so the noise is that of the flats."""
    dust = [np.zeros(SHAPE), soft((120, 150), 60, 5e-3), np.zeros(SHAPE), np.zeros(SHAPE)]
    ratios = [ratio(k, 7, dust=dust[k]) for k in range(4)]
    found = list(changes(ratios, fitted(ratios)))
    change, where = found[1]
    shade = dust[1] < -2.5e-3
    assert np.sqrt(np.mean((change - dust[1])[shade] ** 2)) < 5e-4
    assert abs((change - dust[1])[shade].mean()) < 1e-4
    assert where[shade].mean() > 0.99
    clear = dust[1] > -1e-5
    assert np.sqrt(np.mean(change[clear] ** 2)) < 0.2 * SIGMA  # 1.02 of the noise, all in all
    assert not any(where.any() for i, (_, where) in enumerate(found) if i != 1)


def test_a_speck_of_a_few_pixels_is_found():
    y, x = np.indices(SHAPE)
    dust = np.where(np.hypot(y - 50, x - 60) < 3, -0.03, 0.0)
    ratios = [ratio(k, 8, dust=dust if k == 2 else 0) for k in range(4)]
    change, where = list(changes(ratios, fitted(ratios)))[2]
    assert where[dust != 0].all()
    assert change[dust != 0].mean() == pytest.approx(-0.03, abs=4 * SIGMA / np.sqrt((dust != 0).sum()) + 1e-3)


def test_a_drift_is_not_taken_for_dust():
    """At most a tenth of it: without the template, all of it is."""
    ratios = [ratio(k, 9, drift=0.5) for k in range(4)]
    told = [change for change, _ in changes(ratios, fitted(ratios))]
    taken = [change for change, _ in changes(ratios, fitted(ratios, with_drift=False))]
    size = np.sqrt(np.mean([np.mean((0.5 * template(k)) ** 2) for k in range(4)]))
    assert np.sqrt(np.mean(np.square(told))) < 0.1 * size
    assert np.sqrt(np.mean(np.square(taken))) > 0.5 * size


def two_bands(depths, seed=11):
    dust = [soft((120, 150), 50, depth) for depth in depths]
    noise = [SIGMA * np.random.default_rng([seed, b]).standard_normal(SHAPE) for b in range(2)]
    change = np.array([d + n for d, n in zip(dust, noise, strict=True)])
    variance = np.full(change.shape, SIGMA**2)
    found = np.array([find_dust(c + 1, v, np.zeros(SHAPE), CONFIG)[0] for c, v in zip(change, variance, strict=True)])
    factor, motes = compare_bands(change, variance, found, CONFIG)
    return np.array(dust), factor - 1, max(motes, key=lambda mote: mote.area)


@pytest.mark.parametrize(
    ("depths", "kind"), [((5e-3, 5e-3), "gray"), ((0.0, 5e-3), "filter"), ((5e-3, 2.5e-3), "chromatic")]
)
def test_two_bands_tell_what_is_gray(depths, kind):
    dust, found, mote = two_bands(depths)
    assert mote.kind == kind
    assert np.hypot(mote.y - 120, mote.x - 150) < 5
    shade = dust.min(axis=0) < -1e-3
    if kind == "chromatic":
        assert np.abs(found[:, shade]).max() < 5e-3
        assert np.abs(found[:, shade].mean()) < 1e-4
    else:
        assert np.sqrt(np.mean((found - dust)[:, shade] ** 2)) < 5e-4
    if kind == "gray":
        np.testing.assert_array_equal(found[0], found[1])


def test_one_band_cannot_tell():
    dust = soft((120, 150), 50, 5e-3)
    variance = np.full((1, *SHAPE), SIGMA**2)
    factor, motes = compare_bands(dust[None], variance, dust[None], CONFIG)
    assert [mote.kind for mote in motes] == ["single"]
    np.testing.assert_allclose(factor[0] - 1, dust, atol=1e-7)


@pytest.mark.parametrize("lacks", [0, 1])
def test_a_band_that_saw_nothing_there_does_not_keep_the_other_from_its_factor(lacks):
    dust = soft((120, 150), 50, 5e-3)
    change, variance, found = (np.stack([one, one]) for one in (dust, np.full(SHAPE, SIGMA**2), dust))
    change[lacks], found[lacks] = np.nan, 0
    factor, motes = compare_bands(change, variance, found, CONFIG)
    assert [mote.kind for mote in motes] == ["single"]
    np.testing.assert_allclose(factor[1 - lacks] - 1, dust, atol=1e-7)
    assert (factor[lacks] == 1).all()


def test_unknown_pixels_and_too_few_cells():
    nothing = np.full(SHAPE, np.nan)
    cells = make_cells(nothing, nothing, None, places(0), CONFIG.cell)
    assert cells.x.size == 0
    with pytest.raises(InsufficientInputs, match="0 cells are known, too few to fit the lamp"):
        fit_lamp([cells], CONFIG)


def test_a_drift_that_looks_like_the_lamp_is_refused():
    variance = np.full(SHAPE, SIGMA**2)
    even = make_cells(ratio(0, 1), variance, np.full(SHAPE, 2e-3), places(0), CONFIG.cell)
    with pytest.raises(DegenerateSolution, match="changes every pixel alike or as the lamp does"):
        fit_lamp([even], CONFIG)
    assert np.isnan(fit_lamp([even], CONFIG, with_drift=False).drift)
