from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.bias import BiasStructure, OverscanDrift, after_idle, bias_terms, bias_truth, drift
from lsstcal_dask.simulate.electronics import Electronics, ReadNoise, channel, read_out

SEED = 5
NOTHING = {"ramp": 0, "columns": 0, "waves": 0, "corner": 0, "edge": 0, "transient": 0}
STILL = {"level": 0, "rows": 0, "transient": 0, "jumps": 0}


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini1")


@pytest.fixture(scope="module")
def detector(camera):
    return camera.detectors[0]


def _only(**kept):
    return BiasStructure(**{**NOTHING, **kept})


def _map(settings, detector, i, exposure_number=None):
    rows, columns = bias_terms(SEED, settings, detector, i, exposure_number)
    return rows.T @ columns


def test_zero_in_the_serial_overscan_only(detector):
    amplifier = detector.amplifiers[0]
    whole = _map(BiasStructure(), detector, 0)
    assert whole.shape == amplifier.raw_shape
    assert not whole[:, amplifier.overscan.x0 :].any()
    assert whole[:, : amplifier.data.x0].any()  # prescan
    assert np.abs(whole[amplifier.parallel_overscan.slices]).min() > 0
    truth = bias_truth(SEED, BiasStructure(), detector, 0)
    assert truth.shape == amplifier.data.shape
    assert truth.dtype == np.float32
    np.testing.assert_allclose(truth, whole[amplifier.data.slices], atol=1e-5)


def test_without_overscan_the_structure_is_everywhere():
    detector = load_camera("ohp").detectors[0]
    rows, columns = bias_terms(SEED, BiasStructure(), detector, 0)
    assert np.count_nonzero(rows.T @ columns) == 100 * 2048


def test_ramp_is_a_plane(detector):
    truth = bias_truth(SEED, _only(ramp=5.3), detector, 1).astype(float)
    for axis in (0, 1):
        steps = np.diff(truth, axis=axis)
        assert np.ptp(steps) < 1e-5  # float32
        assert 5.3 / 2 <= abs(steps.mean() * 64) <= 5.3  # 64 rows and columns


def test_transient_corner_and_edge_by_hand(detector):
    """Data start at raw column 4 and are 64 x 64: the corner glow falls by 1/e in 0.12 x 64 = 7.68 pixels."""
    transient = bias_truth(SEED, _only(transient=4.0), detector, 0)
    np.testing.assert_allclose(transient[30, [0, 6]], 4 * np.exp([-4 / 6, -10 / 6]), rtol=1e-6)
    corner = bias_truth(SEED, _only(corner=5.0), detector, 0)
    assert corner[2, 3] == pytest.approx(5 * np.exp(-2 / 7.68 - 7 / 7.68), rel=1e-6)
    edge = bias_truth(SEED, _only(edge=2.0), detector, 0)
    np.testing.assert_allclose(edge[7, [-1, -4]], [2, 2 / np.e], rtol=1e-6)


def test_columns_and_waves_have_their_size(detector):
    many = replace(detector, amplifiers=detector.amplifiers * 16)
    columns = np.concatenate([bias_truth(SEED, _only(columns=0.5), many, i)[0] for i in range(64)])
    assert columns.std() == pytest.approx(0.5, rel=5 / np.sqrt(2 * len(columns)))
    # two products of cosines of random phase: over channels the variance of a pixel is size**2, its kurtosis below 3
    pixel = np.array([bias_truth(SEED, _only(waves=0.5), many, i)[20, 40] for i in range(64)])
    assert np.mean(pixel**2) == pytest.approx(0.25, rel=5 * np.sqrt(2 / 64))


def test_idle_exposures_glow(detector):
    settings = BiasStructure(idle_share=0.3)
    found = np.array([after_idle(SEED, settings, n) for n in range(1, 1001)])
    assert abs(found.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1000)
    quiet, idle = (1 + int(np.argmax(found == wanted)) for wanted in (False, True))
    fixed = _map(settings, detector, 0)
    np.testing.assert_array_equal(_map(settings, detector, 0, quiet), fixed)
    more = _map(settings, detector, 0, idle) - fixed
    assert more[0, 0] == pytest.approx(20, abs=1e-9)
    assert more[3, 5] == pytest.approx(20 * np.exp(-8 / 7.68), abs=1e-9)


@pytest.mark.parametrize("noisy", [False, True])
def test_mean_of_biases_is_the_truth(camera, detector, noisy):
    """Each frame less the mean of the reference pixels of each row; tolerance from noise and rounding.

    Without noise the twelve reference pixels of a row are rounded alike; the drift makes rounding errors
    of a pixel independent between frames.
    """
    n, electronics = 60, Electronics(read_noise=ReadNoise(on=noisy))
    dark = np.zeros((4, *camera.raw_shape), np.float32)
    names = [a.name for a in detector.amplifiers]
    total = np.zeros((4, 64, 64))
    for number in range(1, n + 1):
        counts = read_out(SEED, electronics, camera, detector, number, dark).astype(float)
        total += counts[:, :64, 4:68] - counts[:, :64, 68:].mean(axis=-1, keepdims=True)
    for place, name in enumerate(camera.amplifier_names):
        i = names.index(name)
        rest = total[place] / n - bias_truth(SEED, electronics.bias_structure, detector, i)
        if noisy:
            truth = channel(SEED, electronics, camera, detector, i)
            pixel = ((truth.read_noise / truth.gain) ** 2 + 1 / 12) / n
            expected = pixel * (1 + 1 / 12)
            # chi-squared of 4096 pixels and of the 64 row levels that they share
            error = np.sqrt(2 * pixel**2 / 4096 + 2 * (pixel / 12) ** 2 / 64)
            assert abs(np.mean(rest**2) - expected) < 5 * error
        else:
            assert np.abs(rest).max() < 6 * np.sqrt((1 / 12 + 1 / 12) / n)


def test_drift_level(detector):
    settings = OverscanDrift(**{**STILL, "level": 5.0})
    found = np.array([drift(SEED, settings, detector, 0, n) for n in range(1, 801)])
    assert found.shape == (800, 70)
    assert not np.ptp(found, axis=1).any()
    assert found[:, 0].std() == pytest.approx(5, rel=5 / np.sqrt(1600))
    assert abs(found[:, 0].mean()) < 5 * 5 / np.sqrt(800)


def test_drift_wander_has_its_covariance(detector):
    """Cov at a lag of d rows: rows**2 sum_k p_k cos(pi k d / 70), p_k ~ k**-1.5, over 64 modes."""
    n = 3000
    settings = OverscanDrift(**{**STILL, "rows": 0.5})
    found = np.array([drift(SEED, settings, detector, 0, number) for number in range(1, n + 1)])
    k = np.arange(1, 65)
    power = k**-1.5 / np.sum(k**-1.5)
    for lag in (0, 1, 5, 30, 69):
        expected = 0.25 * np.sum(power * np.cos(np.pi * k * lag / 70))
        measured = np.mean(found[:, 0] * found[:, lag])
        assert abs(measured - expected) < 5 * np.sqrt((0.25**2 + expected**2) / n)


def test_drift_transient_by_hand(detector):
    found = drift(SEED, OverscanDrift(**{**STILL, "transient": 2.0}), detector, 2, 3)
    assert 1 <= found[0] <= 3
    np.testing.assert_allclose(found, found[0] * np.exp(-np.arange(70) / 10))
    again = drift(SEED, OverscanDrift(**{**STILL, "transient": 2.0}), detector, 2, 4)
    np.testing.assert_array_equal(found, again)


def test_drift_jumps(detector):
    """Their number is Poisson: with a mean of 0.5 a share exp(-0.5) of the exposures has none."""
    n = 1000
    found = np.array(
        [drift(SEED, OverscanDrift(**{**STILL, "jumps": 0.5, "jump": 2.0}), detector, 0, i) for i in range(1, n + 1)]
    )
    quiet = np.mean(~found.any(axis=1))
    assert abs(quiet - np.exp(-0.5)) < 5 * np.sqrt(np.exp(-0.5) * (1 - np.exp(-0.5)) / n)
    steps = np.diff(found, axis=1)
    assert (np.count_nonzero(steps, axis=1) <= 5).all()
    # at the last row all jumps have happened: variance = mean number x size**2, fourth moment 3 x 16 (0.5 + 0.25)
    assert abs(np.mean(found[:, -1] ** 2) - 2.0) < 5 * np.sqrt((36 - 4) / n)


def test_off_is_neutral(detector):
    off = BiasStructure(on=False, idle_share=1)
    assert not _map(off, detector, 0, 1).any()
    assert not bias_truth(SEED, off, detector, 0).any()
    assert not after_idle(SEED, off, 1)
    assert not drift(SEED, OverscanDrift(on=False), detector, 0, 1).any()


def test_same_bits_for_whoever_asks(detector):
    first = [bias_truth(SEED, BiasStructure(), detector, i) for i in range(4)]
    for i in (2, 0, 3, 1):
        np.testing.assert_array_equal(bias_truth(SEED, BiasStructure(), detector, i), first[i])
    assert np.abs(first[0] - first[1]).max() > 0.1
    later, before = (drift(SEED, OverscanDrift(), detector, 1, n) for n in (9, 2))
    assert np.abs(later - before).max() > 0.1
    np.testing.assert_array_equal(drift(SEED, OverscanDrift(), detector, 1, 9), later)
