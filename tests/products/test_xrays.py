"""55Fe gains: hits drawn electron by electron, never from the fitted model."""

from functools import cache

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import exponnorm, norm

from lsstcal_dask.errors import DegenerateSolution, InconsistentGeometry, InsufficientInputs, UnitsError
from lsstcal_dask.products.spectrum import _cost, fit_spectrum, kalpha_electrons
from lsstcal_dask.products.xrays import (
    fe55_gain,
    find_hits,
    fit_hits,
    select_hits,
)

GAIN, READ_NOISE = 1.5, 5.0
ELECTRONS = 1591.4
FANO = 0.116
THETA = np.array([ELECTRONS / GAIN, 19.0, 0.12, 0.15, 80.0, 0.05])
"""Position, sigma, K-beta, lossy fraction, mean loss and flat fraction of a spectrum; adu."""


def expose(rng, hits=300, shape=(512, 512), gain=GAIN, read_noise=READ_NOISE, widest=0.45, lossy=0.12):
    """An exposure in adu, and (y, x, electrons collected) of its X-rays.

    Each electron diffuses on its own, by a width that falls with the depth of the conversion.
    """
    energy = np.where(rng.random(hits) < 0.12, 6490 / 5889, 1.0)
    freed = rng.normal(ELECTRONS * energy, np.sqrt(FANO * ELECTRONS * energy))
    freed -= np.where(rng.random(hits) < lossy, rng.exponential(0.06 * ELECTRONS, hits), 0)
    freed = np.maximum(np.rint(freed), 1).astype(int)
    centre = rng.uniform(-0.5, np.array(shape) - 0.5, (hits, 2))
    width = widest * np.sqrt(np.clip(1 - rng.exponential(0.28, hits), 0.02, 1))
    scatter = rng.normal(size=(freed.sum(), 2)) * np.repeat(width, freed)[:, None]
    landed = np.rint(np.repeat(centre, freed, axis=0) + scatter).astype(int)
    landed = landed[np.all((landed >= 0) & (landed < shape), axis=1)]
    electrons = np.zeros(shape)
    np.add.at(electrons, tuple(landed.T), 1)
    image = np.rint(electrons / gain + rng.normal(0, read_noise, shape)).astype(np.float32)
    return image, np.column_stack([centre, freed])


def matched(peaks, truth):
    """Electrons of the X-ray at each peak, nan where there is more than one within 6 px."""
    near = np.max(np.abs(peaks[:, None, :] - truth[None, :, :2]), axis=2) < 6
    return np.where(near.sum(axis=1) == 1, near @ truth[:, 2], np.nan)


def spectrum_pdf(x, theta):
    """The spectrum of SCIENCE 2.2a, normalised to 0.75-1.22 K-alpha; scipy's own exponnorm."""
    position, sigma, kbeta, lossy, tail, flat = theta
    limits = np.array([0.75, 1.22]) * ELECTRONS / GAIN

    def line(t, centre, cumulative):
        mirrored = exponnorm(tail / sigma, loc=-centre, scale=sigma)
        if cumulative:
            return (1 - lossy) * norm.cdf(t, centre, sigma) + lossy * mirrored.sf(-t)
        return (1 - lossy) * norm.pdf(t, centre, sigma) + lossy * mirrored.pdf(-t)

    def both(t, cumulative):
        return (1 - kbeta) * line(t, position, cumulative) + kbeta * line(t, position * 6490 / 5889, cumulative)

    return (1 - flat) * both(x, False) / np.diff(both(limits, True)) + flat / np.diff(limits)


def cramer_rao(theta, hits):
    """Smallest error of the position of K-alpha, all six parameters free."""
    x = np.linspace(0.75, 1.22, 4001) * ELECTRONS / GAIN
    step = np.array(theta) * 1e-4
    slopes = [(spectrum_pdf(x, theta + s) - spectrum_pdf(x, theta - s)) / (2 * s.sum()) for s in np.diag(step)]
    p = spectrum_pdf(x, theta)
    information = [[np.trapezoid(a * b / p, x) for b in slopes] for a in slopes]
    return np.sqrt(np.linalg.inv(information)[0, 0] / hits)


@cache
def _distribution():
    x = np.linspace(0.75, 1.22, 20001) * ELECTRONS / GAIN
    cumulative = np.cumsum(spectrum_pdf(x, THETA))
    return x, cumulative / cumulative[-1]


def draw_charges(rng, n):
    x, cumulative = _distribution()
    return np.interp(rng.random(n), cumulative, x)


def test_electrons_of_kalpha():
    assert kalpha_electrons(173) == pytest.approx(1591.4, abs=0.1)
    assert kalpha_electrons(270) == pytest.approx(5889 / 3.654)


def test_one_pixel_hit_by_hand():
    image = np.zeros((15, 15), np.float32)
    image[7, 6] = 1000
    peaks = find_hits(image, 5.0)
    hit = fit_hits(image, peaks, 5.0, gain=1.5)
    np.testing.assert_array_equal(peaks, [[7, 6]])
    assert hit.charge[0] == pytest.approx(1000, rel=1e-3)
    assert hit.background[0] == pytest.approx(0, abs=1e-2)
    assert (hit.y[0], hit.x[0]) == pytest.approx((7, 6), abs=0.1)


def test_noiseless_cloud_by_hand():
    edge = np.arange(16) - 0.5
    shares = [np.diff(norm.cdf(edge, centre, 0.5)) for centre in (7.2, 6.6)]
    image = 800 * np.outer(*shares) + 12.0
    hit = fit_hits(image, find_hits(image, 5.0), 5.0, gain=1.5)
    found = [hit.y[0], hit.x[0], hit.sigma[0], hit.charge[0], hit.background[0]]
    np.testing.assert_allclose(found, [7.2, 6.6, 0.5, 800, 12], rtol=2e-4)


def cloud(p):
    """Model (7, 7) of (y0, x0, sigma, charge, background), by scipy's normal distribution."""
    fy, fx = (np.diff(norm.cdf(np.arange(8) - 3.5, centre, p[2])) for centre in p[:2])
    return p[3] * np.outer(fy, fx) + p[4]


def test_compiled_fit_finds_the_least_squares_of_scipy():
    """Three rounds of weighted least squares, by an independent minimiser with differences for slopes."""
    image, _ = expose(np.random.default_rng(12), 60, (256, 256))
    peaks = find_hits(image, READ_NOISE)
    hits = fit_hits(image, peaks, READ_NOISE, gain=GAIN)
    assert len(peaks) > 30
    bounds = ((-1.5, -1.5, 0.08, -np.inf, -np.inf), (1.5, 1.5, 2.5, np.inf, np.inf))
    for n, (y, x) in enumerate(peaks):
        data = image[y - 3 : y + 4, x - 3 : x + 4].astype(float)
        p, variance = np.array([0.0, 0.0, 0.4, data.sum(), 0.0]), np.full((7, 7), READ_NOISE**2)
        for turn in range(3):
            if turn:
                variance = READ_NOISE**2 + np.maximum(cloud(p), 0) / GAIN
            p = least_squares(_deviation, p, bounds=bounds, x_scale=(0.1, 0.1, 0.1, 10, 1), args=(data, variance)).x
        chi2 = np.sum(_deviation(p, data, variance) ** 2)
        # where a cloud lies within one pixel, chi2 is flat and its weights settle less closely
        assert hits.chi2[n] == pytest.approx(chi2, rel=1e-3)
        if hits.sigma[n] > 0.2:
            assert hits.charge_error[n] / READ_NOISE == pytest.approx(charge_error(p), rel=1e-4)
            np.testing.assert_allclose([hits.y[n] - y, hits.x[n] - x, hits.sigma[n]], p[:3], atol=1e-3)


def _deviation(p, data, variance):
    return ((data - cloud(p)) / np.sqrt(variance)).ravel()


def charge_error(p):
    """Error, per read noise, of the inner 9 pixels less 9/40 of the others, over its share of the cloud."""
    unit = cloud([*p[:3], 1.0, 0.0])
    inner = unit[2:5, 2:5].sum()
    return np.sqrt(9 * (1 + 9 / 40)) / (inner - 9 / 40 * (unit.sum() - inner))


def test_a_window_that_cannot_be_fitted_keeps_the_others_right():
    image, _ = expose(np.random.default_rng(13), 40, (256, 256))
    peaks = find_hits(image, READ_NOISE)
    alone = fit_hits(image, peaks[1:], READ_NOISE, gain=GAIN)
    image[tuple(peaks[0])] = np.nan
    both = fit_hits(image, peaks, READ_NOISE, gain=GAIN)
    assert np.isnan(both.chi2[0])
    np.testing.assert_array_equal(both.charge[1:], alone.charge)


def test_overlapping_edge_and_masked_hits_are_dropped():
    image = np.zeros((60, 60), np.float32)
    for y, x in [(10, 10), (10, 16), (30, 30), (30, 37), (1, 50), (50, 20), (50, 40)]:
        image[y, x] = 500
    image[30, 35] = 200  # a fragment between two that would be clean
    image[48, 42] = np.nan
    mask = np.zeros(image.shape, np.uint8)
    mask[50, 22] = 2
    np.testing.assert_array_equal(find_hits(image, 5.0), [[50, 20]])
    assert len(find_hits(image, 5.0, mask=mask)) == 0
    assert len(find_hits(image, 5.0, mask=np.ones(image.shape, bool))) == 0
    image[30, 35] = 0
    assert len(find_hits(image, 5.0)) == 3


def test_equal_neighbours_are_one_hit():
    image = np.zeros((20, 20), np.float32)
    image[9:11, 9:11] = 300
    assert len(find_hits(image, 5.0)) == 1


@pytest.fixture(scope="module")
def charges():
    """Fitted minus collected charge in adu, of hits, of their 3 x 3 sums, and the hits."""
    found = []
    for seed in range(8):
        image, truth = expose(np.random.default_rng(seed), 1000, (1024, 1024))
        peaks = find_hits(image, READ_NOISE)
        electrons = matched(peaks, truth)
        peaks, electrons = peaks[electrons > 0], electrons[electrons > 0]
        hits = fit_hits(image, peaks, READ_NOISE, gain=GAIN)
        sums = np.array([image[y - 1 : y + 2, x - 1 : x + 2].sum() for y, x in peaks])
        found.append([hits.charge - electrons / GAIN, sums - electrons / GAIN, hits.charge_error, hits.chi2])
    return np.concatenate(found, axis=1)


def test_charge_is_unbiased_and_sums_are_not(charges):
    fitted, sums, error, chi2 = charges
    # 3e-4 of K-alpha (1061 adu) is a third of the budget of 0.1 %; 3 sigma of the mean is allowed on top
    assert abs(fitted.mean()) < 0.3 + 3 * fitted.std() / np.sqrt(len(fitted))
    assert sums.mean() < -2.5  # charge diffused beyond 3 x 3 is lost to the sum
    assert (fitted / error).std() == pytest.approx(1, abs=0.1)
    assert chi2.mean() == pytest.approx(44, abs=4 * np.sqrt(88 / len(chi2)))


def test_background_error_ruins_sums_but_not_fits():
    image, truth = expose(np.random.default_rng(3), 300)
    peaks = find_hits(image, READ_NOISE)
    keep = matched(peaks, truth) > 0
    before, after = (fit_hits(i, peaks[keep], READ_NOISE, gain=GAIN) for i in (image, image + np.float32(0.5)))
    # 0.5 adu over 9 px is 4.5 adu, 0.4 % of K-alpha, for a sum; the fit moves by its weights alone
    assert np.abs(np.mean(after.charge - before.charge)) < 0.05
    assert np.mean(after.background - before.background) == pytest.approx(0.5, abs=0.01)


def test_charge_error_against_cramer_rao():
    """Free position, width, charge and background: Fisher information of one cloud, by differences."""
    edge = np.arange(8) - 3.5

    def model(theta):
        y, x, s, q, b = theta
        return q * np.outer(np.diff(norm.cdf(edge, y, s)), np.diff(norm.cdf(edge, x, s))) + b

    theta = np.array([0.1, -0.2, 0.4, 1061.0, 0.0])
    slopes = [(model(theta + d) - model(theta - d)) / 2e-4 for d in np.eye(5) * 1e-4]
    variance = READ_NOISE**2 + model(theta) / GAIN
    information = [[np.sum(a * b / variance) for b in slopes] for a in slopes]
    bound = np.sqrt(np.linalg.inv(information)[3, 3] - 1061 / GAIN)  # less the Poisson noise of the total
    rng = np.random.default_rng(8)
    image = np.zeros((40 * 9, 40 * 9))
    for y in range(40):
        for x in range(40):
            share = model(theta) / 1061
            share = np.append(share.ravel(), max(1 - share.sum(), 0))
            cloud = rng.multinomial(1591, share / share.sum())[:-1].reshape(7, 7) / GAIN
            image[9 * y + 1 : 9 * y + 8, 9 * x + 1 : 9 * x + 8] = cloud
    image += rng.normal(0, READ_NOISE, image.shape)
    charge = fit_hits(image, find_hits(image, READ_NOISE), READ_NOISE, gain=GAIN).charge
    assert len(charge) > 1500
    assert 0.95 < charge.std() / bound < 1.2


def test_spectrum_closed_loop():
    """Bias, pull and efficiency of the position over 100 spectra of 300 hits."""
    found = [fit_spectrum(draw_charges(np.random.default_rng(s), 300)) for s in range(100)]
    peak, error = np.array([[f.peak, f.peak_error] for f in found]).T
    pull = (peak - THETA[0]) / error
    assert abs(pull.mean()) < 0.3
    assert pull.std() == pytest.approx(1, abs=0.1 + 2 / np.sqrt(200))
    efficiency = peak.std() / cramer_rao(THETA, 300)
    assert efficiency < 1.1 + 2 / np.sqrt(200)  # 7 % is the error of a width from 100 draws
    assert np.mean([f.ks_probability < 0.01 for f in found]) <= 0.02


@pytest.mark.parametrize("gain", [0.3001, 0.7, 4.0, 9.5])
def test_any_gain_is_found(gain):
    charges = draw_charges(np.random.default_rng(2), 400) * GAIN / gain
    low = np.random.default_rng(3).exponential(60, 300)  # noise and split hits below the line
    found = fit_spectrum(np.concatenate([charges, low]))
    assert ELECTRONS / found.peak == pytest.approx(gain, abs=5 * found.peak_error / found.peak * gain)


@pytest.mark.parametrize("resolution", [None, 0.02])
def test_gradient_of_the_likelihood_is_its_slope(resolution):
    """Central differences of 1e-5 leave 1e-10 of curvature and 1e-16 / 1e-5 of rounding."""
    scaled = draw_charges(np.random.default_rng(4), 300) * GAIN / ELECTRONS
    scaled = scaled[(scaled > 0.75) & (scaled < 1.22)]
    rng = np.random.default_rng(5)
    for _ in range(10):
        theta = np.array([0.0, -3.9, -2.0, -2.2, 1.6, -2.9]) + rng.normal(0, 0.5, 6)
        slopes = [
            (_cost(theta + d, scaled, resolution)[0] - _cost(theta - d, scaled, resolution)[0]) / 2e-5
            for d in np.eye(6) * 1e-5
        ]
        gradient = _cost(theta, scaled, resolution)[1]
        np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())


def study(seeds, **kwargs):
    found = [fe55_gain(expose(np.random.default_rng(s), **kwargs)[0], READ_NOISE) for s in seeds]
    return np.array([[(f.gain - GAIN) / f.error, f.gain, f.error] for f in found]).T


def test_gain_closed_loop():
    pull, gain, error = study(range(60))
    assert abs(pull.mean()) < 0.3
    assert pull.std() == pytest.approx(1, abs=0.1 + 2 / np.sqrt(120))
    assert gain.std() < 1.3 * error.mean()


@pytest.mark.slow
def test_gain_closed_loop_large():
    pull, gain, error = study(range(1000, 1300))
    assert abs(pull.mean()) < 0.3
    assert pull.std() == pytest.approx(1, abs=0.1)
    assert gain.std() / error.mean() == pytest.approx(1, abs=0.1)


def test_frames_are_pooled_and_scale_error_is_apart():
    images = np.stack([expose(np.random.default_rng(s), 150)[0] for s in range(3)])
    one, three = fe55_gain(images[0], READ_NOISE), fe55_gain(images, READ_NOISE)
    assert three.spectrum.hits > 2.5 * one.spectrum.hits
    assert three.error < one.error
    assert three.scale_error == pytest.approx(0.011 * three.gain)
    assert three.error < three.scale_error / 3
    assert three.diffusion_px == pytest.approx(0.4, abs=0.05)
    warm = fe55_gain(images, READ_NOISE, 183.0)
    assert warm.gain / three.gain == pytest.approx(1 + 1.31e-3 / 1.0127, abs=3e-4)


def test_gain_does_not_depend_on_blank_mask():
    image = expose(np.random.default_rng(4))[0]
    mask = np.zeros(image.shape, np.uint8)
    assert fe55_gain(image, READ_NOISE, mask=mask).gain == fe55_gain(image, READ_NOISE).gain
    mask[:, ::4] = 1
    with pytest.raises(InsufficientInputs, match=r"0 usable 55Fe hits, at least 50 needed: add 55Fe"):
        fe55_gain(image, READ_NOISE, mask=mask)


def test_selection_drops_tracks_and_wide_clouds():
    image, _ = expose(np.random.default_rng(6), 200)
    image[100, 100:104] += 900  # a track
    hits = fit_hits(image, np.array([[100, 102]]), READ_NOISE, gain=GAIN)
    assert not select_hits(hits)[0]
    hits = fit_hits(image, find_hits(image, READ_NOISE), READ_NOISE, gain=GAIN)
    assert select_hits(hits).mean() > 0.9
    assert not select_hits(hits, (0.9, 1.0)).any()


def test_refusals():
    image = expose(np.random.default_rng(7), 20)[0]
    with pytest.raises(InsufficientInputs, match="add 55Fe exposures"):
        fe55_gain(image, READ_NOISE)
    with pytest.raises(InsufficientInputs, match="30 usable 55Fe hits, at least 50"):
        fit_spectrum(np.full(30, 1000.0))
    with pytest.raises(InsufficientInputs, match="no 55Fe exposures"):
        fe55_gain(np.empty((0, 50, 50)), READ_NOISE)
    with pytest.raises(InsufficientInputs, match="0 usable 55Fe hits"):
        fe55_gain(np.zeros((50, 50)), READ_NOISE)
    with pytest.raises(UnitsError, match="read noise nan adu"):
        find_hits(image, np.nan)
    with pytest.raises(InconsistentGeometry, match=r"\(512,\)"):
        find_hits(image[0], 5.0)
    with pytest.raises(InconsistentGeometry, match=r"mask \(3, 3\)"):
        find_hits(image, 5.0, mask=np.zeros((3, 3), bool))
    with pytest.raises(DegenerateSolution, match=r"no K-alpha line in .* hits near"):
        fit_spectrum(np.exp(np.random.default_rng(9).uniform(5, 8.6, 2000)))


@pytest.fixture(scope="module")
def taps_of(msfc_taps):
    """Taps of a measured frame less the mean of their blank columns."""
    return lambda name: [tap - np.mean(tap[:, 10:50]) for tap in msfc_taps(name)]


@pytest.fixture(scope="module")
def esis3(taps_of):
    """Active pixels (tap, frame, y, x) and read noise of each tap."""
    frames = [taps_of(f"fe55/ESIS3_{n:05d}.fit.gz") for n in (5400, 5408, 5416, 5424)]
    taps = np.swapaxes(np.stack([np.stack(f) for f in frames]), 0, 1)
    return taps[..., 50:1074], taps[..., 10:50].std(axis=(1, 2, 3))


@pytest.mark.real
def test_real_layout(taps_of):
    for tap in taps_of("led/ESIS1_04803.fit.gz"):
        level = np.median(tap, axis=0)
        assert np.all(np.abs(level[10:50]) < 5)  # blank
        assert level[50:1074].min() > 500  # light
        assert np.all(np.abs(level[1075:]) < 20)  # overscan


@pytest.mark.real
def test_real_gains_of_esis3(esis3):
    """Single-pixel clouds lose no charge: gains 2.48-2.55, as flats of these cameras give (2.49-2.53)."""
    taps, noise = esis3
    assert np.all((noise > 3.5) & (noise < 4.5))
    found = [fe55_gain(tap, rn, diffusion_px=(0.0, 0.3)) for tap, rn in zip(taps, noise, strict=True)]
    for gain in found:
        assert gain.gain == pytest.approx(2.51, abs=3 * np.hypot(gain.error, gain.scale_error))
        assert gain.error < 0.04
        assert gain.spectrum.ks_probability > 0.01


@pytest.mark.real
def test_real_single_frame_of_esis1(taps_of):
    """One frame holds too few full clouds per tap; the taps together give the gain of the camera."""
    charges = []
    for tap in taps_of("fe55/ESIS1_00002.fit.gz"):
        noise, image = float(tap[:, 10:50].std()), tap[:, 50:1074]
        with pytest.raises((InsufficientInputs, DegenerateSolution)):
            fe55_gain(image, noise, diffusion_px=(0.0, 0.3))
        hits = fit_hits(image, find_hits(image, noise), noise, gain=2.5)
        charges.append(hits.charge[select_hits(hits, (0.0, 0.3))])
    found = fit_spectrum(np.concatenate(charges), resolution=0.025)
    gain, error = ELECTRONS / found.peak, ELECTRONS / found.peak**2 * found.peak_error
    assert gain == pytest.approx(2.51, abs=3 * np.hypot(error, 0.011 * gain))


@pytest.mark.real
def test_real_wide_clouds_have_lost_charge(esis3):
    """Hits that diffused far were freed near the back, where these sensors lose a tenth of the charge."""
    taps, noise = esis3
    narrow, wide = [], []
    for tap, rn in zip(taps, noise, strict=True):
        for image in tap:
            hits = fit_hits(image, find_hits(image, rn), rn, gain=2.5)
            hits = hits[select_hits(hits) & (hits.charge > 500) & (hits.charge < 670)]
            narrow.append(hits.charge[hits.sigma < 0.2])
            wide.append(hits.charge[hits.sigma > 0.4])
    narrow, wide = np.concatenate(narrow), np.concatenate(wide)
    assert np.median(wide) < np.median(narrow) - 5 * 20 / np.sqrt(min(len(narrow), len(wide)))
