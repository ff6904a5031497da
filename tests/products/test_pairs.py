"""Gains from pairs of flats: Poisson flats with a structured lamp, and a toy brighter-fatter."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import (
    CalibrationError,
    DegenerateSolution,
    InconsistentGeometry,
    InsufficientInputs,
    UnitsError,
)
from lsstcal_dask.products.pairs import combine_pairs, pair_gain, shot_curve

GAIN = 1.5
READ = 5.0
READ_NOISE = float(np.hypot(READ, 1 / np.sqrt(12)))  # with the rounding
SHAPE = (192, 160)


def lamp(shape, structure):
    """Smooth illumination times 1 % pixel response, of mean 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = 1 + structure * np.cos(2 * np.pi * x / shape[1]) * np.sin(3 * y / shape[0])
    light = smooth * (1 + 0.01 * np.random.default_rng(5).normal(size=shape))
    return light / light.mean()


def flats(seed, mean=20000.0, *, shape=SHAPE, ratio=0.0, gradient=0.0, structure=0.2):
    """Two flats in adu whose ratio is ``1 + ratio`` with a slope ``gradient`` along x."""
    rng = np.random.default_rng(seed)
    change = (ratio + gradient * np.linspace(-0.5, 0.5, shape[1])) / 2
    members = []
    for sign in (1, -1):
        electrons = rng.poisson(mean * GAIN * lamp(shape, structure) * (1 + sign * change))
        members.append(np.rint(electrons / GAIN + rng.normal(0, READ, shape)).astype(np.float32))
    return tuple(members)


def brighter_fatter(seed, mean, a00=-3e-6, shape=SHAPE):
    """Two flats whose pixels grow and shrink with their own charge while it gathers.

    A step moves ``-a00 Q dQ / 4`` electrons across each of the four sides, from the fuller
    pixel: the areas always add up, so the sum of all covariances stays that of Poisson.
    """
    rng = np.random.default_rng(seed)
    members = []
    steps = 40
    for _ in range(2):
        charge = np.zeros(shape)
        for _ in range(steps):
            light = mean * GAIN / steps
            area = 1 + a00 * sum(charge - np.roll(charge, s, ax) for s in (1, -1) for ax in (0, 1)) / 4
            charge = charge + rng.poisson(light * area)
        members.append((charge / GAIN + rng.normal(0, READ, shape)).astype(np.float32))
    return tuple(members)


def study(seeds, *args, noise=READ_NOISE, **kwargs):
    """Pulls of 1/gain and 1/gain_summed, whose errors are Gaussian."""
    found = [pair_gain(*flats(s, *args, **kwargs), noise) for s in seeds]
    return np.array(
        [
            [
                (GAIN / p.gain - 1) * p.gain / p.gain_error,
                (GAIN / p.gain_summed - 1) * p.gain_summed / p.gain_summed_error,
                *(p.covariances / p.covariance_errors)[[0, 1, 1, 2], [1, 0, 1, 3]],
            ]
            for p in found
        ]
    )


def assert_unbiased(pulls, width=0.1):
    n = len(pulls)
    assert np.all(np.abs(pulls.mean(axis=0)) < 0.3 + 1 / np.sqrt(n))
    assert np.all(np.abs(pulls.std(axis=0) - 1) < width + 2.5 / np.sqrt(2 * n))


@pytest.mark.parametrize(
    ("mean", "kwargs"),
    [
        (20000, {}),
        (20000, {"ratio": 0.008, "gradient": 0.01}),
        (20000, {"structure": 0.8}),
        (100, {}),
        (59.5, {"ratio": 0.005}),
    ],
)
def test_closed_loop(mean, kwargs):
    assert_unbiased(study(range(80), mean, **kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("mean", [60, 20000])
def test_closed_loop_large(mean):
    pulls = study(range(1000, 2000), mean, ratio=0.005, gradient=-0.01, structure=0.5)
    assert np.all(np.abs(pulls.mean(axis=0)) < 0.1)
    assert np.all(np.abs(pulls.std(axis=0) - 1) < 0.1)


def test_error_is_the_cramer_rao_bound():
    """Of N Gaussians the variance is known to 2 V**2 / N at best; a lamp of any shape loses nothing."""
    for structure in (0.0, 0.8):
        pair = pair_gain(*flats(1, structure=structure), READ_NOISE)
        shot = pair.mean / GAIN
        bound = np.sqrt(2 / (SHAPE[0] * SHAPE[1])) * (shot + READ_NOISE**2) / shot
        assert pair.gain_error / pair.gain == pytest.approx(bound, rel=0.03)


def test_constant_flats_by_hand():
    """Alternating +-d: variance 2 d**2 / 2, every odd lag minus, every even lag plus that."""
    sign = np.where(np.add.outer(np.arange(64), np.arange(64)) % 2, 1.0, -1.0)
    pair = pair_gain(1000 + 10 * sign, 1000 - 10 * sign, 0.0, max_lag=2)
    clip = 1 - 2 * 4 * np.exp(-8) / np.sqrt(2 * np.pi) / 0.99993666
    assert pair.mean == pytest.approx(1000, rel=1e-12)
    assert pair.variance == pytest.approx(200 / clip, rel=1e-3)
    assert pair.gain == pytest.approx(5 * clip, rel=1e-3)
    np.testing.assert_allclose(pair.covariances[[0, 1, 0], [1, 1, 2]], np.array([-200, 200, 200]) / clip**2, rtol=2e-3)
    assert pair.pixels == 4096


def test_lamp_that_moved_is_removed():
    first, second = flats(2, ratio=0.006, gradient=0.015, shape=(300, 300))
    pair = pair_gain(first, second, READ_NOISE)
    assert pair.ratio == pytest.approx(1.006, abs=1e-4)
    assert pair.gradient[1] == pytest.approx(0.015, abs=3e-4)
    assert pair.gain == pytest.approx(GAIN, abs=4 * pair.gain_error)
    naive = np.mean(first + second) / 2 / (np.var(first - second) / 2 - READ_NOISE**2)
    assert naive < GAIN - 10 * pair.gain_error  # the gradient passes for noise


def test_one_cosmic_ray_ruins_an_unclipped_pair():
    first, second = flats(3)
    clean = pair_gain(first, second, READ_NOISE)
    first[50, 60:63] += 40000
    pair = pair_gain(first, second, READ_NOISE)
    naive = np.mean(first + second) / 2 / (np.var(first - second) / 2 - READ_NOISE**2)
    assert abs(pair.gain - clean.gain) < 0.3 * clean.gain_error
    assert abs(naive - GAIN) > 20 * clean.gain_error
    assert pair.clipped == pytest.approx(clean.clipped + 3, abs=1)


def test_clipped_variance_is_corrected():
    """At 4 sigma the cut takes 0.107 % of the variance: as much as the whole budget of the gain."""
    found = [pair_gain(*flats(s, shape=(512, 512), structure=0.0), READ_NOISE, max_lag=0) for s in range(40)]
    inverse = np.mean([GAIN / p.gain for p in found])
    error = np.sqrt(2 / 512**2 / 40)  # 0.044 %: the shift would be 2.4 of these
    assert abs(inverse - 1) < 2 * error
    assert np.mean([p.clipped for p in found]) == pytest.approx(6.3e-5 * 512**2, rel=0.25)


def test_wrong_read_noise_shifts_by_the_computed_amount():
    members = flats(4, 500.0, structure=0.0)
    right, wrong = (pair_gain(*members, noise) for noise in (READ_NOISE, READ_NOISE + 1))
    shift = (READ_NOISE + 1) ** 2 - READ_NOISE**2
    assert right.variance - wrong.variance == pytest.approx(shift, rel=2e-3)
    assert wrong.gain / right.gain == pytest.approx(right.variance / (right.variance - shift), rel=1e-4)
    unsure = pair_gain(*members, READ_NOISE, read_noise_error=1.0)
    assert unsure.variance_error == pytest.approx(np.hypot(right.variance_error, 2 * READ_NOISE), rel=1e-3)


def test_mask_and_saturation_exclude_pixels():
    first, second = flats(5)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :20] = 8
    first[:, :20] = 1e9
    second[10, 100] = np.nan
    first[11, 100] = second[11, 100] = np.inf
    pair = pair_gain(first, second, READ_NOISE, mask=mask)
    same = pair_gain(first, second, READ_NOISE, saturation=1e8)
    assert pair.gain == same.gain == pytest.approx(GAIN, abs=4 * pair.gain_error)
    assert pair.pixels < SHAPE[0] * 140


def test_inputs_are_left_alone_and_order_does_not_matter():
    first, second = flats(6, ratio=0.005)
    copies = first.copy(), second.copy()
    one, other = pair_gain(first, second, READ_NOISE), pair_gain(second, first, READ_NOISE)
    np.testing.assert_array_equal(np.stack(copies), np.stack([first, second]))
    assert one.gain == pytest.approx(other.gain, rel=1e-9)
    assert one.ratio == pytest.approx(1 / other.ratio, rel=1e-6)


def test_implausible_gain_is_flagged():
    first, second = flats(7)
    pair = pair_gain(first, second, READ_NOISE)
    assert pair.plausible
    smooth = (first + 19 * second) / 20  # as of a sensor that averages: little noise is left
    assert not pair_gain(smooth, second, 0.0).plausible


@pytest.mark.parametrize("strength", [-0.3, -0.05, 0.0, 0.2])
def test_shot_curve(strength):
    """The solution of dC/dmu = 1 + 2 a C, by small steps."""
    c, steps = 0.0, 20000
    for _ in range(steps):
        c += (1 + 2 * strength * c) / steps
    assert shot_curve(np.array([strength]))[0] == pytest.approx(c, rel=1e-4)


@pytest.fixture(scope="module")
def ladder():
    """Six levels up to 60 ke- of a sensor with a brighter-fatter effect."""
    return [
        pair_gain(*brighter_fatter(10 * k + s, mean), READ, max_lag=2)
        for k, mean in enumerate((4e3, 8e3, 14e3, 20e3, 30e3, 40e3))
        for s in range(4)
    ]


def test_brighter_fatter_moves_variance_to_the_neighbours(ladder):
    """|a00| mu = 0.18 at the top: variance over mean is low, the sum over lags is not."""
    top = ladder[-4:]
    biased = combine_pairs(top, method="variance")
    assert biased.gain > GAIN + 20 * biased.error
    assert all(p.covariances[0, 1] > 4 * p.covariance_errors[0, 1] for p in top)
    summed = combine_pairs(top)
    assert summed.method == "summed"
    assert summed.gain == pytest.approx(GAIN, abs=3 * summed.error)


def test_extrapolation_is_free_of_brighter_fatter(ladder):
    free = combine_pairs(ladder)
    assert free.method == "extrapolated"
    assert free.gain == pytest.approx(GAIN, abs=3 * free.error + 2e-3 * GAIN)  # a00-only curve: 0.1 %
    assert free.error < 0.005
    assert free.slope == pytest.approx(-3e-6 * GAIN, rel=0.15)
    naive = combine_pairs(ladder, method="variance")
    assert naive.probability < 1e-6  # the levels disagree
    assert naive.gain > free.gain + 10 * free.error


def test_error_of_the_sum_holds_with_brighter_fatter():
    """The pixels are correlated by 20 %: the error of the sum goes with the sum, not with the variance."""
    pairs = [pair_gain(*brighter_fatter(500 + s, 4e4, shape=(80, 64)), READ, max_lag=1) for s in range(80)]
    pulls = [(GAIN / p.gain_summed - 1) * p.gain_summed / p.gain_summed_error for p in pairs]
    assert np.std(pulls) == pytest.approx(1, abs=0.1 + 2 / np.sqrt(160))
    # a pixel's own covariances end within two lags; lag 1 holds the sum to a few per cent
    assert abs(np.mean(pulls)) < 0.6


def test_equal_levels_combine_by_inverse_variance():
    pairs = [pair_gain(*flats(s), READ_NOISE) for s in range(20)]
    for method in ("summed", "variance"):
        both = combine_pairs(pairs, method=method)
        assert both.gain == pytest.approx(GAIN, abs=3 * both.error)
        assert both.probability > 1e-3
        assert (both.dof, both.pairs) == (19, 20)
    single = combine_pairs(pairs[:1], method="variance")
    assert single.gain == pytest.approx(pairs[0].gain)
    assert single.error == pytest.approx(pairs[0].gain_error)
    assert np.isnan(single.probability)
    odd = replace(pairs[0], gain=1.8)
    assert combine_pairs([*pairs, odd], method="variance").probability < 1e-6


def test_extrapolation_closed_loop():
    """Without brighter-fatter the extrapolated gain is unbiased and its error right."""
    pulls = []
    for seed in range(60):
        pairs = [
            pair_gain(*flats(5 * seed + k, m, shape=(96, 96)), READ_NOISE, max_lag=0)
            for k, m in enumerate((5e3, 1e4, 2e4, 3e4, 4e4))
        ]
        found = combine_pairs(pairs)
        pulls.append([(found.gain - GAIN) / found.error, found.slope / found.slope_error])
    assert_unbiased(np.array(pulls))


def test_refusals_of_a_pair():
    first, second = flats(8)
    names = ("flat_101", "flat_102")
    with pytest.raises(CalibrationError, match=r"flat_101 \(mean 2000.* and flat_102 \(mean 1940.*1 %"):
        pair_gain(first, second * 0.97, READ_NOISE, names=names)
    with pytest.raises(DegenerateSolution, match="flat_102: mean 0 adu, no light"):
        pair_gain(first, second * 0, READ_NOISE, names=names)
    with pytest.raises(DegenerateSolution, match=r"flat_101, flat_102: variance .* read noise 500 adu"):
        pair_gain(first, second, 500.0, names=names)
    with pytest.raises(InsufficientInputs, match="flat_101, flat_102: 0 good pixels"):
        pair_gain(first, second, READ_NOISE, mask=np.ones(SHAPE, bool), names=names)
    with pytest.raises(InsufficientInputs, match="900 good pixels, at least 1000"):
        pair_gain(first[:30, :30], second[:30, :30], READ_NOISE, names=names)
    with pytest.raises(CalibrationError, match="flat_101, flat_102: most pixels are at or above saturation, 1000"):
        pair_gain(first, second, READ_NOISE, saturation=1000.0, names=names)
    with pytest.raises(InconsistentGeometry, match=r"flat_101, flat_102: shapes"):
        pair_gain(first, second[1:], READ_NOISE, names=names)
    with pytest.raises(InconsistentGeometry, match="the mask"):
        pair_gain(first, second, READ_NOISE, mask=np.zeros((2, 2)), names=names)
    with pytest.raises(UnitsError, match="read noise nan"):
        pair_gain(first, second, np.nan, names=names)


def test_refusals_of_a_combination():
    pair = pair_gain(*flats(9), READ_NOISE)
    with pytest.raises(InsufficientInputs, match="no pairs of flats"):
        combine_pairs([])
    with pytest.raises(CalibrationError, match="method 'mean'"):
        combine_pairs([pair], method="mean")
    with pytest.raises(InsufficientInputs, match="1 flux levels"):
        combine_pairs([pair, pair], method="extrapolated")
    with pytest.raises(DegenerateSolution, match="sum of covariances is not positive"):
        combine_pairs([replace(pair, gain_summed=np.nan)])


def active_and_blank(taps):
    """Active pixels above the mean of the blank ones, and those."""
    return [(tap[:, 50:1074] - np.mean(tap[:, 10:50]), tap[:, 10:50]) for tap in taps]


@pytest.mark.real
def test_real_led_pair(msfc_taps):
    """Structured light of 12-24 kDN: others find 2.49-2.53 electron/DN with uncorrected photon transfer."""
    first, second = (active_and_blank(msfc_taps(f"led/ESIS1_0480{n}.fit.gz")) for n in (3, 4))
    for (a, blank_a), (b, blank_b) in zip(first, second, strict=True):
        noise = float(np.std(blank_a - blank_b) / np.sqrt(2))
        assert 3.5 < noise < 4.5
        pair = pair_gain(a, b, noise)
        assert pair.gain == pytest.approx(2.51, abs=0.06)
        assert pair.gain_error < 0.01
        assert pair.gain_summed == pytest.approx(pair.gain, abs=4 * pair.gain_summed_error)
        assert pair.ratio == pytest.approx(1, abs=2e-3)
