"""Drift of the gain from muon tracks: straight lines by hand, and simulated particles."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import moyal

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.history import common_series, find_changes
from lsstcal_dask.products.muons import (
    MuonConfig,
    Tracks,
    check_muons,
    dark_tracks,
    find_tracks,
    measure_muons,
    muon_amplifiers,
    typical_loss,
)
from lsstcal_dask.simulate.cosmics import CosmicRays, cosmic_rays

CAMERA = load_camera("mini9")


def test_one_straight_track_by_hand():
    """Thirty pixels along a row, each of 100 adu: ends 29 pixels apart, 0.31 mm of silicon."""
    image = np.zeros((40, 60))
    image[20, 10:40] = 100.0
    image[21, 10:40] = 3.0  # below the threshold, but charge of the track
    found = find_tracks(image, 1.0)
    assert found.charge == pytest.approx(30 * 103)
    assert found.path == pytest.approx(np.hypot(290, 100))
    assert found.loss == pytest.approx(3090 / np.hypot(290, 100))


def test_what_is_no_muon_is_left_out():
    image = np.zeros((80, 80))
    image[5:8, 5:8] = 1e3  # a spot
    image[0, 20:60] = 100.0  # touches the edge
    turn = np.linspace(0, np.pi, 200)
    image[(40 + 15 * np.sin(turn)).astype(int), (40 + 15 * np.cos(turn)).astype(int)] = 100.0  # a worm
    image[65, 10:35] = image[67, 10:35] = 100.0  # two that share their halo
    assert len(find_tracks(image, 1.0).path) == 0


def losses(seed, n, gain=1.0):
    """Moyal's distribution, like Landau's: skewed, and here 20 % wide."""
    return Tracks(np.ones(n), moyal.rvs(loc=80, scale=8, size=n, random_state=seed) / gain)


def test_typical_loss_and_its_error():
    """Of 300 samples of 100: scatter of ln(loss) as told; the truth is that of large samples."""
    truth = np.log(np.mean([typical_loss(losses(1000 + s, 10_000))[0] for s in range(40)]))
    found = np.array([typical_loss(losses(s, 100)) for s in range(300)])
    pulls = (np.log(found[:, 0]) - truth) / (found[:, 1] / found[:, 0])
    # the median of 100 is moved by some hundredths of its error, and that is known to some per cent
    assert abs(pulls.mean()) < 3.5 / np.sqrt(300) + 0.1
    assert pulls.std() == pytest.approx(1, abs=3.5 / np.sqrt(600) + 0.05)
    many = losses(1, 200)
    wild = Tracks(many.path, np.where(np.arange(200) < 20, 30 * many.charge, many.charge))  # delta rays
    assert typical_loss(wild)[0] == pytest.approx(typical_loss(many)[0], rel=0.03)
    with pytest.raises(InsufficientInputs, match="19 muon tracks, 20 are needed"):
        typical_loss(losses(1, 19))


def test_a_jump_of_five_per_cent_is_found_by_enough_muons():
    """Sixteen amplifiers of 140 tracks an epoch, whose gains rise by 5 %."""
    own = 1 + 0.03 * np.random.default_rng(0).standard_normal(16)
    found = np.array(
        [
            [typical_loss(losses(100 * epoch + i, 140, gain=own[i] * (1.05 if epoch >= 3 else 1))) for i in range(16)]
            for epoch in range(6)
        ]
    )
    gain, relative = 1 / found[..., 0], found[..., 1] / found[..., 0]
    value, error = common_series(gain * 1e3, gain * relative * 1e3)
    assert (error < 0.2 / np.sqrt(16 * 140)).all()  # narrower than that of muons
    (change,) = find_changes(np.arange(6), 1 / value, error / value**2)
    assert (change.kind, change.at) == ("jump", 3)
    assert change.sigma < -5
    assert change.size == pytest.approx(1 / 1.05 - 1, abs=4 * change.error)
    assert find_changes(np.arange(3), value[:3], error[:3]) == []


def simulated(exposure, gain):
    """Darks with a year's particles: (amplifier, y, x) raw counts of one CCD, 1000 adu of pedestal."""
    detector = CAMERA.detectors[0]
    hits, _ = cosmic_rays(5, CosmicRays(rate=200.0, worms=0.1, spots=0.1), detector, exposure, 300.0)
    rng = np.random.default_rng(exposure)
    counts = rng.normal(1000, 4, (16, *CAMERA.raw_shape))
    for amplifier in detector.amplifiers:
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        part = hits[y : y + ny, x : x + nx][:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
        counts[(CAMERA.amplifier_names.index(amplifier.name), *amplifier.data.slices)] += part / gain
    return np.rint(counts).astype(np.int32)


def epoch(first, count, gain):
    counts = np.stack([simulated(first + i, gain) for i in range(count)])
    coords = {"amplifier": list(CAMERA.amplifier_names), "exposure_type": ("exposure", ["dark"] * count)}
    variables = {"counts": (("exposure", "amplifier", "y", "x"), counts), "present": ("exposure", np.ones(count, bool))}
    return xr.Dataset(variables, coords)


def all_tracks(raw):
    detector = CAMERA.detectors[0]
    found = [dark_tracks(raw, amplifier, detector.pixel_mm, {}) for amplifier in detector.amplifiers]
    return Tracks(*(np.concatenate([getattr(f, name) for f in found]) for name in ("path", "charge")))


def test_a_drift_of_simulated_gains_is_found():
    """Of a CCD: the ratio within its error, and a loss of some 80 electrons per um; amplifiers as far as they can."""
    raw = epoch(1, 8, 1.5)
    first, second = all_tracks(raw), all_tracks(epoch(101, 8, 1.8))
    (before, a), (after, b) = typical_loss(first), typical_loss(second)
    error = np.hypot(a / before, b / after)
    assert min(len(first.path), len(second.path)) > 100
    assert 0.15 < a / before * np.sqrt(len(first.path)) < 0.3  # a fifth for one track
    assert abs(np.log(before / after) - np.log(1.2)) < 4 * error
    assert np.log(before / after) > 3 * error
    assert 70 < 1.5 * before < 95
    made = dict(muon_amplifiers(raw, CAMERA.detectors[0], None, MuonConfig(), {}))
    told = [one for one in made.values() if np.isfinite(one["gain_muons"])]
    assert told
    assert all(float(one["muon_tracks"]) >= 20 and float(one["gain_muons_error"]) > 0 for one in told)
    silent = [one.attrs["remarks"][0] for one in made.values() if not np.isfinite(one["gain_muons"])]
    assert silent
    assert all("muon tracks, 20 are needed: add darks" in remark for remark in silent)


def test_without_darks_there_are_no_muons(no_compute):
    raw = epoch(1, 1, 1.5)
    with pytest.raises(InsufficientInputs, match="no dark exposures"):
        dark_tracks(raw.isel(exposure=[]), CAMERA.detectors[0].amplifiers[0], 0.01, {})
    with pytest.raises(InsufficientInputs, match="muons: no dark exposures"):
        check_muons(raw.isel(exposure=[]), MuonConfig())
    lazy = measure_muons(raw.expand_dims(detector=["R22_S00"]), CAMERA, {})
    assert lazy["gain_muons"].attrs["units"] == "electron/adu"
