"""The simple virtual camera: the same frame wherever it is made, with the noise it promises."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from lsstcal_dask.instrument import load_camera, write_frame
from lsstcal_dask.simulate.simple import (
    _FANO,
    _K_ALPHA,
    _K_BETA,
    Plan,
    _xrays,
    amplifier_truth,
    default_plan,
    files,
    simulate_frame,
    sky,
)

SEED = 3
RATE = 0.005  # 55Fe hits per pixel of an exposure


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini1")


def stack(camera, plans):
    """Counts (exposure, amplifier, y, x) float64 of the only CCD."""
    (detector,) = camera.detectors
    frames = [simulate_frame(SEED, plan, camera, detector).counts for plan in plans]
    return np.stack(frames).astype(np.float64)


def data_of(counts, camera, amplifier):
    place = camera.amplifier_names.index(amplifier.name)
    return counts[(..., place, *amplifier.data.slices)]


def reference_of(counts, camera, amplifier):
    place = camera.amplifier_names.index(amplifier.name)
    return counts[(..., place, *amplifier.overscan.slices)]


def above_overscan(counts, camera, amplifier):
    level = reference_of(counts, camera, amplifier).mean(axis=-1, keepdims=True)
    return data_of(counts, camera, amplifier) - level


_HASH = """
import hashlib
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.simple import Plan, simulate_frame
camera = load_camera("mini1")
frame = simulate_frame({seed}, Plan(5, "fe55", 10.0), camera, camera.detectors[0])
print(hashlib.sha256(frame.counts.tobytes()).hexdigest())
"""


def test_a_frame_is_the_same_in_any_order_and_in_any_process(camera):
    (detector,) = camera.detectors
    plans = [Plan(5, "fe55", 10.0), Plan(6, "science", 30.0, 500.0), Plan(7, "bias", 0.0)]
    forward = {p.name: simulate_frame(SEED, p, camera, detector).counts for p in plans}
    np.random.default_rng(0).random(100)
    for plan in reversed(plans):
        np.testing.assert_array_equal(simulate_frame(SEED, plan, camera, detector).counts, forward[plan.name])
    code = _HASH.format(seed=SEED)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == hashlib.sha256(forward[plans[0].name].tobytes()).hexdigest()


def test_frames_differ_between_seeds_exposures_and_detectors():
    camera = load_camera("mini9")
    first, second = camera.detector("R22_S00"), camera.detector("R22_S02")  # of the same type
    plan = Plan(1, "bias", 0.0)
    frames = [
        simulate_frame(SEED, plan, camera, first).counts,
        simulate_frame(SEED + 1, plan, camera, first).counts,
        simulate_frame(SEED, replace(plan, index=2), camera, first).counts,
        simulate_frame(SEED, plan, camera, second).counts,
    ]
    for i, one in enumerate(frames):
        for other in frames[:i]:
            equal = (one == other).mean()
            assert equal < 0.2  # equal by chance: about 1 / (noise * sqrt(4 pi))


def test_truth_of_an_amplifier_depends_on_nothing_but_its_place(camera):
    (detector,) = camera.detectors
    one, two = detector.amplifiers[:2]
    again = amplifier_truth(SEED, detector, one)
    amplifier_truth(SEED, detector, two)
    assert amplifier_truth(SEED, detector, one).gain == again.gain
    np.testing.assert_array_equal(amplifier_truth(SEED, detector, one).dark, again.dark)
    assert amplifier_truth(SEED, detector, two).gain != again.gain


def test_bias_has_its_mean_and_its_noise(camera):
    (detector,) = camera.detectors
    n = 24
    counts = stack(camera, [Plan(i, "bias", 0.0) for i in range(1, n + 1)])
    for amplifier in detector.amplifiers:
        truth = amplifier_truth(SEED, detector, amplifier)
        sigma = np.hypot(truth.read_noise / truth.gain, np.sqrt(1 / 12))
        image = above_overscan(counts, camera, amplifier)
        columns = amplifier.overscan.shape[1]
        error = sigma * np.sqrt((1 + image.shape[-1] / columns) / image.size)
        assert abs((image - truth.bias).mean()) < 4 * error
        noise = reference_of(counts, camera, amplifier).std(axis=-1, ddof=1)
        found, freedom = (noise**2).mean(), noise.size * (columns - 1)
        assert abs(found / sigma**2 - 1) < 4 * np.sqrt(2 / freedom)


def test_flat_has_the_mean_and_variance_of_its_photons(camera):
    """Half the variance of a difference is (level + dark) / gain**2 + read noise**2; the bias drops out."""
    (detector,) = camera.detectors
    plan = Plan(31, "flat", 4.0, 2e4)
    counts = stack(camera, [plan, replace(plan, index=32)])
    for amplifier in detector.amplifiers:
        truth = amplifier_truth(SEED, detector, amplifier)
        charge = plan.level + truth.dark.mean() * plan.dark_time
        images = above_overscan(counts, camera, amplifier)
        difference = images[1] - images[0]
        read2 = (truth.read_noise / truth.gain) ** 2 + 1 / 12
        expected = charge / truth.gain**2 + read2 * (1 + 1 / amplifier.overscan.shape[1])
        found = difference.var(ddof=1) / 2
        assert abs(found / expected - 1) < 4 * np.sqrt(2 / difference.size)
        mean = (images.mean(axis=0) - truth.bias).mean()
        assert abs(mean - charge / truth.gain) < 4 * np.sqrt(expected / images.size)


def test_gain_of_a_simulated_pair_is_the_truth(camera):
    """Mean over variance, the textbook formula: right within the error of a variance."""
    (detector,) = camera.detectors
    flat, bias = Plan(41, "flat", 4.0, 3e4), Plan(43, "bias", 0.0)
    flats = stack(camera, [flat, replace(flat, index=42)])
    biases = stack(camera, [bias, replace(bias, index=44)])
    for amplifier in detector.amplifiers:
        pair, dark = (above_overscan(part, camera, amplifier) for part in (flats, biases))
        mean = pair.mean() - dark.mean()
        variance = ((pair[1] - pair[0]).var(ddof=1) - (dark[1] - dark[0]).var(ddof=1)) / 2
        gain = amplifier_truth(SEED, detector, amplifier).gain
        assert abs(mean / variance / gain - 1) < 4 * np.sqrt(2 / pair[0].size)


def test_dark_gathers_charge_in_its_dark_time(camera):
    (detector,) = camera.detectors
    plan = Plan(51, "dark", 1000.0)
    assert plan.dark_time == 1000.5
    counts = stack(camera, [plan])
    amplifier = detector.amplifiers[0]
    truth = amplifier_truth(SEED, detector, amplifier)
    electrons = (above_overscan(counts, camera, amplifier)[0] - truth.bias) * truth.gain
    expected = truth.dark * plan.dark_time
    read2 = truth.read_noise**2 * (1 + amplifier.data.shape[1] / amplifier.overscan.shape[1])
    error = np.sqrt((expected.mean() + read2) / expected.size)
    assert abs((electrons - expected).mean()) < 4 * error


def test_fe55_hits_carry_their_charge(camera):
    """Hits at a known rate per pixel free 1624 electrons on average, K-alpha and K-beta."""
    (detector,) = camera.detectors
    exposures = [Plan(i, "fe55", 10.0) for i in range(61, 67)]
    counts = stack(camera, exposures)
    hits, charge = 0, 0.0
    for amplifier in detector.amplifiers:
        truth = amplifier_truth(SEED, detector, amplifier)
        electrons = (above_overscan(counts, camera, amplifier) - truth.bias) * truth.gain
        charge += (electrons - truth.dark * exposures[0].dark_time).sum()
        hits += electrons.size
    mean = 1590.9 * (0.88 + 0.12 * 6.490 / 5.889)
    expected = RATE * hits * mean
    scatter = np.sqrt(RATE * hits * mean**2 + hits * 200)  # of the number of hits; of the pixels' noise
    assert -5 * scatter < charge - expected < 4 * scatter  # a little charge leaves at the edges


def test_science_has_sky_and_stars_and_a_flat_has_none(camera):
    (detector,) = camera.detectors
    amplifier = detector.amplifiers[0]
    assert (sky(SEED, Plan(1, "flat", 1.0, 777.0), detector, amplifier) == 777.0).all()
    light = sky(SEED, Plan(1, "science", 30.0, 500.0), detector, amplifier)
    assert light.min() >= 500
    assert light.max() > 520


def test_plans_are_named_and_ordered_in_time():
    plans = default_plan()
    assert len({p.name for p in plans}) == len(plans)
    assert [p.time for p in plans] == sorted(p.time for p in plans)
    assert plans[0].dark_time == 0
    assert {p.kind for p in plans} == {"bias", "dark", "flat", "fe55", "science"}


def test_files_are_those_of_every_detector():
    camera = load_camera("mini9")
    plans = default_plan()[:2]
    found = list(files(SEED, camera, plans))
    assert len(found) == 2 * len(camera.detectors)
    name, frame = found[0]
    assert name == f"{plans[0].name}_{camera.detectors[0].name}.fits.fz"
    assert frame.counts.shape == (len(camera.amplifier_names), *camera.raw_shape)
    assert frame.header["exposure_type"] == "bias"


def test_electrons_of_hits_fall_where_they_would_one_hit_after_the_other():
    """The plain way with the same random numbers: each hit added to the image by itself."""
    shape = (40, 30)
    random = np.random.default_rng(4)
    image = np.zeros(shape)
    count = random.poisson(RATE * image.size)
    charge = np.where(random.random(count) < 0.12, _K_BETA, _K_ALPHA)
    charge = np.rint(random.normal(charge, np.sqrt(_FANO * charge))).astype(int)
    sigma = random.uniform(0.3, 0.45, count)
    centres = [random.uniform(0, size, count) for size in shape]
    for n, s, y0, x0 in zip(charge, sigma, *centres, strict=True):
        y, x = (np.floor(random.normal(centre, s, n)).astype(int) for centre in (y0, x0))
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        np.add.at(image, (y[inside], x[inside]), 1)
    np.testing.assert_array_equal(_xrays(np.random.default_rng(4), shape), image)
    assert image.sum() > 0
    assert _xrays(np.random.default_rng(0), (1, 1)).shape == (1, 1)  # no hit at all


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_plain_files_are_what_astropy_would_write(camera, tmp_path, dtype):
    (detector,) = camera.detectors
    frame = simulate_frame(SEED, Plan(71, "flat", 1.0, 100.0), camera, detector)
    own = replace(camera, dtype=dtype)
    path = tmp_path / "frame.fits"
    write_frame(path, own, replace(frame, counts=frame.counts.astype(dtype)), compress=False)
    with fits.open(path) as opened:
        opened.verify("exception")
        units = [fits.PrimaryHDU(header=opened[0].header)]
        for amplifier in detector.amplifiers:
            ny, nx = amplifier.raw_shape
            place = camera.amplifier_names.index(amplifier.name)
            unit = fits.ImageHDU(frame.counts[place, :ny, :nx].astype(dtype), name=amplifier.hdu)
            unit.header["EXTNAME"] = amplifier.hdu
            unit.header["DATASEC"] = opened[amplifier.hdu].header["DATASEC"]
            units.append(unit)
        fits.HDUList(units).writeto(tmp_path / "astropy.fits")
    assert path.read_bytes() == (tmp_path / "astropy.fits").read_bytes()
