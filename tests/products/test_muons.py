"""Drift of the gain from muon tracks: straight lines by hand, and simulated particles."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import ndtri

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.muons import Tracks, compare_tracks, dark_tracks, find_tracks
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
    rng = np.random.default_rng(seed)
    return Tracks(np.ones(n), np.exp(0.2 * ndtri(rng.random(n))) / gain)


def test_ratio_and_error_of_normal_logarithms():
    """Hodges and Lehmann's shift of normal samples: unbiased, error sqrt(pi / 3) of that of means."""
    found = [compare_tracks(losses(2 * s, 150), losses(2 * s + 1, 100, gain=1.02)) for s in range(150)]
    pulls = np.array([(f.ratio - 1.02) / f.error for f in found])
    assert abs(pulls.mean()) < 3.5 / np.sqrt(150)
    assert pulls.std() == pytest.approx(1, abs=3.5 / np.sqrt(300))
    expected = 1.02 * 0.2 * np.sqrt(np.pi / 3 * (1 / 150 + 1 / 100))
    assert np.mean([f.error for f in found]) == pytest.approx(expected, rel=0.03)
    assert found[0].tracks == (150, 100)
    with pytest.raises(InsufficientInputs, match="9 and 150 muon tracks"):
        compare_tracks(losses(1, 9), losses(2, 150))


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
    """Of a CCD: the ratio within its error, and a loss of some 80 electrons per um."""
    raw = epoch(1, 6, 1.5)
    first, second = all_tracks(raw), all_tracks(epoch(101, 6, 1.65))
    found = compare_tracks(first, second)
    assert min(found.tracks) > 100
    # Landau's distribution is about 20 % wide
    assert found.error == pytest.approx(0.2 * np.sqrt(1 / found.tracks[0] + 1 / found.tracks[1]), rel=0.5)
    assert abs(found.ratio - 1.1) < 4 * found.error
    assert abs(found.ratio - 1) > 3 * found.error
    assert 70 < 1.5 * np.median(first.loss) < 110
    with pytest.raises(InsufficientInputs, match="no dark exposures"):
        dark_tracks(raw.isel(exposure=[]), CAMERA.detectors[0].amplifiers[0], 0.01, {})
