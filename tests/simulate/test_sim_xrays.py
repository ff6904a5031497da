"""55Fe and the spread of charge: line, depth and width against closed forms."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.diffusion import diffuse, pair_energy
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.xrays import (
    FANO,
    K_ALPHA_ELECTRONS,
    K_BETA_ELECTRONS,
    XRayHits,
    xray_electrons,
    xray_hits,
)

SEED = 6
RATE, TIME = 0.02, 5.0  # 0.1 hits in a pixel
KOLMOGOROV = 1.95  # D sqrt(n) that one sample in 1000 exceeds


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


@pytest.fixture(scope="module")
def hits(detector):
    return np.concatenate([xray_hits(SEED, XRayHits(), detector, i, RATE, TIME) for i in range(1, 31)])


def test_lines_are_where_they_were_measured():
    assert pair_energy(270.0) == 3.654
    assert pair_energy(173.0) == pytest.approx(3.700, abs=1e-3)
    assert pytest.approx(1591, abs=1) == K_ALPHA_ELECTRONS
    assert pytest.approx(1754, abs=1) == K_BETA_ELECTRONS


def test_as_many_hits_as_promised(hits):
    mean = 30 * 0.1 * 128 * 128
    assert abs(len(hits) - mean) < 4 * np.sqrt(mean)
    for name, share in (("beta", 0.12), ("escape", 0.004)):
        assert abs(hits[name].mean() - share) < 4 * np.sqrt(share * (1 - share) / len(hits))
    for axis in ("x", "y"):
        assert stats.kstest((hits[axis] + 0.5) / 128, "uniform").statistic < KOLMOGOROV / np.sqrt(len(hits))


@pytest.mark.parametrize(("beta", "mean"), [(False, K_ALPHA_ELECTRONS), (True, K_BETA_ELECTRONS)])
def test_mean_and_variance_of_the_lines(hits, beta, mean):
    charge = hits["electrons"][(hits["beta"] == beta) & ~hits["escape"]]
    variance = FANO * mean + 1 / 12  # whole electrons
    assert abs(charge.mean() - mean) < 4 * np.sqrt(variance / len(charge))
    assert abs(charge.var() / variance - 1) < 4 * np.sqrt(2 / len(charge))


def test_escapes_lack_a_silicon_photon(hits):
    charge = hits["electrons"][hits["escape"] & ~hits["beta"]]
    mean = (5889 - 1740) / pair_energy(173.15)
    assert len(charge) > 100
    assert abs(charge.mean() - mean) < 4 * np.sqrt(FANO * mean / len(charge))


def test_depth_is_exponential(hits):
    for beta, length in ((False, 28.8), (True, 38.0)):
        depth = hits["depth"][hits["beta"] == beta]
        law = stats.truncexpon(100 / length, scale=length)
        assert stats.kstest(depth, law.cdf).statistic < KOLMOGOROV / np.sqrt(len(depth))


def test_warmer_silicon_frees_more(detector):
    cold, warm = (xray_hits(SEED, XRayHits(temperature=t), detector, 1, RATE, TIME) for t in (173.15, 273.15))
    ratio = warm["electrons"].mean() / cold["electrons"].mean()
    assert ratio == pytest.approx(pair_energy(173.15) / pair_energy(273.15), abs=1e-3)


def test_electrons_land_where_a_gaussian_puts_them():
    sigma, n = 0.4, 1_000_000
    at = np.array([3.3]), np.array([5.8])
    index, electrons = diffuse(stream(SEED, "test"), (12, 8), *at, np.array([sigma]), np.array([n]))
    image = np.bincount(index, electrons, 96).reshape(12, 8)
    assert image.sum() == n
    columns, rows = (np.diff(ndtr((np.arange(k + 1) - 0.5 - c[0]) / sigma)) for k, c in zip((8, 12), at, strict=True))
    expected = n * np.outer(rows, columns)
    pull = (image - expected) / np.sqrt(np.maximum(expected, 1))
    assert np.abs(pull[expected > 1]).max() < 5
    assert image[expected < 1e-3].sum() <= 1


def test_electrons_beyond_the_edge_are_lost():
    ends = np.array([-0.5, 3.5, 50.0])
    index, electrons = diffuse(stream(SEED, "test"), (4, 4), ends, np.ones(3), np.full(3, 0.4), np.full(3, 10000))
    image = np.bincount(index, electrons, 16).reshape(4, 4)
    inside = 10000 * (ndtr(2.5 / 0.4) - ndtr(-1.5 / 0.4))  # of the rows, which reach from -0.5 to 3.5
    for half in (image[:, :2], image[:, 2:]):
        assert abs(half.sum() - inside / 2) < 4 * np.sqrt(inside / 4)


def test_no_diffusion_is_a_histogram_of_the_hits(detector):
    settings = XRayHits(diffusion=0)
    image = xray_electrons(SEED, settings, detector, 3, RATE, TIME)
    hits = xray_hits(SEED, settings, detector, 3, RATE, TIME)
    expected = np.zeros(detector.shape)
    np.add.at(expected, (np.rint(hits["y"]).astype(int), np.rint(hits["x"]).astype(int)), hits["electrons"])
    assert image.dtype == np.float32
    assert np.array_equal(image, expected)


def test_only_the_edges_of_the_ccd_lose_charge(detector):
    """Clouds cross from amplifier to amplifier: what is missing is what the Gaussians put outside the CCD."""
    image = xray_electrons(SEED, XRayHits(), detector, 3, RATE, TIME)
    hits = xray_hits(SEED, XRayHits(), detector, 3, RATE, TIME)
    sigma = 0.45 * np.sqrt(1 - hits["depth"] / 100)
    inside = np.ones(len(hits))
    for axis in ("x", "y"):
        inside *= ndtr((127.5 - hits[axis]) / sigma) - ndtr((-0.5 - hits[axis]) / sigma)
    missing = hits["electrons"].sum() - image.sum(dtype=float)
    expected = (hits["electrons"] * (1 - inside)).sum()
    assert expected > 1000
    assert abs(missing - expected) < 5 * np.sqrt(expected)


def test_width_grows_with_the_way_to_the_gates(detector):
    """Variance of a lone cloud about its hit: diffusion plus 1/12 of the pixel."""
    shallow = XRayHits(attenuation_alpha=0.5, beta=0)
    deep = XRayHits(attenuation_alpha=1e5, beta=0)  # any depth alike
    for settings, variance in ((shallow, 0.45**2 * 0.995), (deep, 0.45**2 / 2)):
        found = []
        for number in range(1, 61):
            image = xray_electrons(SEED, settings, detector, number, 2e-3, 1.0)
            for hit in xray_hits(SEED, settings, detector, number, 2e-3, 1.0):
                y, x = int(np.rint(hit["y"])), int(np.rint(hit["x"]))
                if not (4 <= x < 124 and 4 <= y < 124):
                    continue
                part = image[y - 4 : y + 5, x - 4 : x + 5]
                if part.sum() == hit["electrons"]:  # no other hit near
                    at = np.arange(-4, 5)
                    found.append(part.sum(axis=0) @ (x + at - hit["x"]) ** 2 / part.sum())
        assert len(found) > 500
        assert abs(np.mean(found) - variance - 1 / 12) < 4 * np.std(found) / np.sqrt(len(found))
        assert np.std(found) / np.sqrt(len(found)) < 0.005


def test_off_is_nothing(detector):
    assert not xray_electrons(SEED, XRayHits(on=False), detector, 1, RATE, TIME).any()
    assert not xray_electrons(SEED, XRayHits(), detector, 1, 0.0, TIME).any()
    assert len(xray_hits(SEED, XRayHits(), detector, 1, RATE, 0.0)) == 0


def test_same_bits_again_and_others_next_time(detector):
    one, same, other = (xray_electrons(SEED, XRayHits(), detector, n, RATE, TIME) for n in (4, 4, 5))
    assert one.any()
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("rate", "time"), [(-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_negative_rates_are_refused(detector, rate, time):
    with pytest.raises(WrongUse, match="X-rays on R22_S11"):
        xray_electrons(SEED, XRayHits(), detector, 1, rate, time)
    with pytest.raises(WrongUse, match="X-rays on R22_S11"):
        xray_hits(SEED, XRayHits(), detector, 1, rate, time)
