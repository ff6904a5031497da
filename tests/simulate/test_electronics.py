from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.bias import BiasStructure, OverscanDrift, bias_terms, drift
from lsstcal_dask.simulate.crosstalk import Crosstalk, coupled, couplings
from lsstcal_dask.simulate.electronics import Digitisation, Electronics, Gain, ReadNoise, channel, read_out
from lsstcal_dask.simulate.linearity import Nonlinearity, true_to_measured

SEED = 21
OFF = Electronics(
    gain=Gain(on=False),
    read_noise=ReadNoise(on=False),
    nonlinearity=Nonlinearity(on=False),
    crosstalk=Crosstalk(on=False),
    bias_structure=BiasStructure(on=False),
    overscan_drift=OverscanDrift(on=False),
    digitisation=Digitisation(pedestal=0),
)


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini1")


@pytest.fixture(scope="module")
def detector(camera):
    return camera.detectors[0]


def _flat(camera, level):
    return np.full((len(camera.amplifier_names), *camera.raw_shape), level, np.float32)


def _index(camera, detector, place):
    return [a.name for a in detector.amplifiers].index(camera.amplifier_names[place])


def _with(camera, **numbers):
    """The camera with other nominal numbers in all amplifiers."""
    detectors = tuple(
        replace(d, amplifiers=tuple(replace(a, **numbers) for a in d.amplifiers)) for d in camera.detectors
    )
    return replace(camera, detectors=detectors)


def test_all_off_counts_are_rounded_electrons(camera, detector):
    charge = np.random.default_rng(0).uniform(0, 2e5, _flat(camera, 0).shape).astype(np.float32)
    before = charge.copy()
    counts = read_out(SEED, OFF, camera, detector, 1, charge)
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, np.floor(charge + np.float64(0.5)))
    np.testing.assert_array_equal(charge, before)


def test_gain_by_hand(camera, detector):
    electronics = replace(OFF, gain=Gain())
    counts = read_out(SEED, electronics, camera, detector, 1, _flat(camera, 30_000))
    gains = []
    for place in range(4):
        gains.append(channel(SEED, electronics, camera, detector, _index(camera, detector, place)).gain)
        assert (counts[place] == np.floor(30_000 / gains[-1] + 0.5)).all()
    assert 0 < np.std(gains) < 0.1
    assert channel(SEED, electronics, camera, detector, 0).read_noise == 0
    assert channel(SEED, OFF, camera, detector, 0).gain == 1


def test_gains_scatter_about_the_nominal():
    """ln(gain / nominal) over LSSTCam: 205 CCDs of 0.03, 16 channels of 0.017 in each."""
    camera = load_camera("lsstcam")
    chosen = camera.detectors[:100]
    found = np.array(
        [[channel(SEED, Electronics(), camera, d, i).gain / d.amplifiers[i].gain for i in range(8)] for d in chosen]
    )
    logs = np.log(found)
    assert np.sqrt(np.mean(logs.var(axis=1, ddof=1))) == pytest.approx(0.017, rel=5 / np.sqrt(2 * 700))
    expected = np.hypot(0.03, 0.017 / np.sqrt(8))
    assert logs.mean(axis=1).std(ddof=1) == pytest.approx(expected, rel=5 / np.sqrt(2 * 99))
    assert abs(logs.mean()) < 5 * expected / np.sqrt(100)


def test_gain_follows_temperature(camera, detector):
    electronics = Electronics()
    cold = channel(SEED, electronics, camera, detector, 0)
    assert channel(SEED, electronics, camera, detector, 0, camera.temperature) == cold
    warm = channel(SEED, electronics, camera, detector, 0, camera.temperature + 10)
    assert warm.gain / cold.gain == pytest.approx(1 + 6.5e-3, rel=1e-12)
    quiet = replace(OFF, gain=Gain())
    counts = [read_out(SEED, quiet, camera, detector, 1, _flat(camera, 1e5), None, t) for t in (None, 183.15)]
    assert counts[0].mean() / counts[1].mean() == pytest.approx(1 + 6.5e-3, abs=1e-5)  # half a count in 66,000


def test_noise_of_a_pixel_includes_rounding(camera):
    """0.8 adu: sigma**2 + 1/12; the ripple of rounding is exp(-2 pi**2 sigma**2) = 3e-6 of it."""
    quiet = _with(camera, read_noise=0.8)
    detector = quiet.detectors[0]
    electronics = replace(
        OFF, read_noise=ReadNoise(scatter=0, scatter_ccd=0, row=0), digitisation=Digitisation(pedestal_scatter=0)
    )
    frames = np.array([read_out(SEED, electronics, quiet, detector, n, _flat(camera, 0)) for n in range(1, 7)])
    level = channel(SEED, electronics, quiet, detector, 0).pedestal
    residual = frames - level
    variance = 0.64 + 1 / 12
    assert np.mean(residual**2) == pytest.approx(variance, rel=5 * np.sqrt(2 / residual.size))
    assert abs(residual.mean()) < 5 * np.sqrt(variance / residual.size)
    # nothing is common to two exposures, channels, rows or columns
    for pairs in (
        residual[..., 1:] * residual[..., :-1],
        residual[:, 1:] * residual[:, :-1],
        residual[1:] * residual[:-1],
    ):
        assert abs(pairs.mean()) < 5 * variance / np.sqrt(pairs.size)


def test_noise_common_to_a_row(camera, detector):
    electronics = replace(OFF, read_noise=ReadNoise(row=3.0), digitisation=Digitisation())
    means = []
    for place in range(4):
        index = _index(camera, detector, place)
        truth = channel(SEED, electronics, camera, detector, index)
        assert truth.row_noise == 3
        frames = [read_out(SEED, electronics, camera, detector, n, _flat(camera, 0))[place] for n in range(1, 21)]
        means.append(np.mean(frames, axis=-1) - truth.pedestal)
        expected = 9 + (truth.read_noise**2 + 1 / 12) / 80
        assert np.mean(means[-1] ** 2) == pytest.approx(expected, rel=5 * np.sqrt(2 / 1400))
    assert abs(np.mean(means[0] * means[1])) < 5 * 9 / np.sqrt(1400)


@pytest.mark.parametrize(("dtype", "highest"), [("int32", 2**18 - 1), ("uint16", 2**16 - 1)])
def test_range_of_the_converter(camera, detector, dtype, highest):
    camera = replace(camera, dtype=dtype)
    charge = _flat(camera, 1000)
    charge[:, 3, 5], charge[:, 3, 6], charge[:, 3, 7] = 1e6, -40, highest - 1
    counts = read_out(SEED, OFF, camera, detector, 1, charge)
    assert counts.dtype == dtype
    assert (counts[:, 3, 5] == highest).all()
    assert (counts[:, 3, 6] == 0).all()
    assert (counts[:, 3, 7] == highest - 1).all()
    assert (counts[:, 4] == 1000).all()
    ideal = replace(OFF, digitisation=Digitisation(on=False, pedestal=0))
    without = read_out(SEED, ideal, camera, detector, 1, charge)
    assert (without[:, 3, 5] == (1_000_000 if dtype == "int32" else highest)).all()
    assert (without[:, 3, 6] == 0).all()


def test_pedestal(camera, detector):
    truth = channel(SEED, Electronics(), camera, detector, 0)
    assert truth.pedestal == pytest.approx(0.095 * (2**18 - 1), rel=0.25)
    small = channel(SEED, Electronics(), replace(camera, dtype="uint16"), detector, 0)
    assert small.pedestal / truth.pedestal == pytest.approx((2**16 - 1) / (2**18 - 1))
    counts = read_out(SEED, replace(OFF, digitisation=Digitisation()), camera, detector, 1, _flat(camera, 0))
    assert (counts[_index(camera, detector, 0)] != 0).all()
    assert counts[camera.amplifier_names.index(detector.amplifiers[0].name), 0, 0] == round(truth.pedestal)


def test_uneven_steps_of_the_converter(camera, detector):
    """A ramp of 80 steps per code: widths of codes scatter by sqrt(2) x 0.1 adu, and no code is out of order."""
    electronics = replace(OFF, digitisation=Digitisation(pedestal=0, steps=0.1))
    ramp = (100 + np.arange(70)[:, None] + (np.arange(80) + 0.25) / 80).astype(np.float32)
    counts = read_out(SEED, electronics, camera, detector, 1, np.broadcast_to(ramp, (4, 70, 80)))
    assert (np.diff(counts.reshape(4, -1)) >= 0).all()
    widths = np.array([np.bincount(c.ravel(), minlength=171)[102:169] for c in counts]) / 80
    # neighbours share an edge: 268 widths weigh as about 268 / 1.5
    assert widths.std() == pytest.approx(np.sqrt(2) * 0.1, rel=5 * np.sqrt(1.5 / (2 * widths.size)))
    even = read_out(SEED, OFF, camera, detector, 1, np.broadcast_to(ramp, (4, 70, 80)))
    assert np.abs(counts - even).max() == 1


def test_whole_chain_by_hand():
    """Every effect but noise, against the forward model in float64.

    The readout keeps charge in float32: above 131 ke- the crosstalk of each of three CCDs is added to 0.008
    electrons, at 1.3 electrons per adu or more; the table of the non-linearity is good to 0.002 adu.
    """
    camera = load_camera("mini9")
    detector = camera.detector("R22_S11")
    electronics = replace(Electronics(), read_noise=ReadNoise(on=False), crosstalk=Crosstalk(per_board=40))
    random = np.random.default_rng(4)
    names = (detector.name, *coupled(SEED, electronics.crosstalk, camera, detector))
    assert len(names) == 3
    charge = {name: random.uniform(0, 1.5e5, _flat(camera, 0).shape).astype(np.float32) for name in names}
    counts = read_out(SEED, electronics, camera, detector, 7, charge[detector.name], charge)

    ids = {camera.detector(name).id: name for name in names}
    total = charge[detector.name].astype(float)
    found = couplings(SEED, electronics.crosstalk, camera, detector)
    for t, sd, s, c, c2 in zip(found.target, found.source_detector, found.source, found.c, found.c2, strict=True):
        source = charge[ids[sd]][s].astype(float)
        total[t] += c * source + c2 * source**2
    for i, amplifier in enumerate(detector.amplifiers):
        place = camera.amplifier_names.index(amplifier.name)
        truth = channel(SEED, electronics, camera, detector, i)
        value = true_to_measured(SEED, electronics.nonlinearity, detector, i, total[place] / truth.gain)
        rows, columns = bias_terms(SEED, electronics.bias_structure, detector, i)
        value += rows.T @ columns + truth.pedestal
        value += drift(SEED, electronics.overscan_drift, detector, i, 7)[:, None]
        assert truth.gain > 1.3
        assert np.abs(counts[place] - value).max() < 0.5 + 3 * 0.008 / 1.3 + 0.002


def test_same_bits_in_any_order_of_amplifiers():
    camera = load_camera("mini9")
    detector = camera.detector("R22_S10")
    charge = np.random.default_rng(2).uniform(0, 1e5, _flat(camera, 0).shape).astype(np.float32)
    counts = read_out(SEED, Electronics(), camera, detector, 5, charge)
    turned = replace(camera, amplifier_names=camera.amplifier_names[::-1])
    other = read_out(SEED, Electronics(), turned, detector, 5, np.ascontiguousarray(charge[::-1]))
    np.testing.assert_array_equal(other[::-1], counts)


def test_exposures_and_seeds_differ_and_repeat(camera, detector):
    charge = _flat(camera, 500)
    first = read_out(SEED, Electronics(), camera, detector, 1, charge)
    np.testing.assert_array_equal(read_out(SEED, Electronics(), camera, detector, 1, charge), first)
    for seed, number in ((SEED, 2), (SEED + 1, 1)):
        other = read_out(seed, Electronics(), camera, detector, number, charge)
        assert np.mean(other != first) > 0.5


def test_channels_and_pixels_that_do_not_exist_are_zero(camera, detector):
    half = replace(detector, amplifiers=tuple(replace(a, raw_shape=(68, 75)) for a in detector.amplifiers[:2]))
    counts = read_out(SEED, Electronics(), camera, half, 1, _flat(camera, 1000))
    places = [camera.amplifier_names.index(a.name) for a in half.amplifiers]
    assert not np.delete(counts, places, axis=0).any()
    assert (counts[places, :68, :75] > 0).all()
    assert not counts[places, 68:].any()
    assert not counts[places, :, 75:].any()


def test_wrong_shape(camera, detector):
    with pytest.raises(InconsistentGeometry, match=r"R22_S11: charge is .* mini1 needs"):
        read_out(SEED, Electronics(), camera, detector, 1, _flat(camera, 0)[:, 1:])
