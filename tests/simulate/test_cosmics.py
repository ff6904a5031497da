"""Cosmic rays: rates, directions, charge per path and widths against closed forms."""

import numpy as np
import pytest
from scipy import stats

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import cosmics
from lsstcal_dask.simulate.cosmics import KINDS, LANDAU_WIDTH, CosmicRays, cosmic_rays, landau, muon_charge
from lsstcal_dask.simulate.random import stream

SEED = 11
AREA = 128 * 128 * 1e-6  # cm2 of the small CCD
LANDAU = stats.landau(loc=np.log(np.pi / 2), scale=np.pi / 2)  # scipy's scale is another than Landau's
KOLMOGOROV = 1.95  # D sqrt(n) that one sample in 1000 exceeds


@pytest.fixture(scope="module")
def detector():
    return load_camera("mini1").detectors[0]


def hits_of(settings, detector, exposures, dark_time, row_time=0.0):
    return [cosmic_rays(SEED, settings, detector, i, dark_time, row_time) for i in range(1, exposures + 1)]


def test_rate_is_that_of_the_area_and_the_time(detector):
    time = 60 * 2 / AREA  # two events at 1 / cm2 / min
    taken = hits_of(CosmicRays(), detector, 400, time)
    counts = np.array([len(hits) for _, hits in taken])
    assert abs(counts.sum() - 800) < 4 * np.sqrt(800)
    assert abs(counts.var() - 2) < 4 * np.sqrt((2 + 2 * 2**2) / 400)  # of a Poisson variance
    kinds = np.bincount(np.concatenate([hits["kind"] for _, hits in taken]), minlength=3)
    for found, share in zip(kinds, (0.5, 0.3, 0.2), strict=True):
        assert abs(found - share * counts.sum()) < 4 * np.sqrt(share * (1 - share) * counts.sum())
    twice = hits_of(CosmicRays(rate=2.0), detector, 200, time)
    assert abs(sum(len(hits) for _, hits in twice) - 800) < 4 * np.sqrt(800)


def test_pixels_read_later_are_hit_longer(detector):
    row_time = 60 * 20 / AREA / 64
    settings = CosmicRays(spots=1.0, worms=0.0)
    taken = hits_of(settings, detector, 60, 0.0, row_time)
    rows = np.concatenate([np.rint(hits["y"]) for _, hits in taken])
    before = np.where(rows < 64, rows, 127 - rows)
    mean = 60 * 20 / 64 * 31.5
    assert abs(len(rows) - mean) < 4 * np.sqrt(mean)
    # density proportional to the rows before: its mean is sum k**2 / sum k = 42.33, its variance 223
    assert abs(before.mean() - (2 * 63 + 1) / 3) < 4 * np.sqrt(223 / len(rows))


def test_muons_come_from_above(detector):
    settings = CosmicRays(worms=0.0, spots=0.0)
    taken = hits_of(settings, detector, 40, 60 * 40 / AREA)
    hits = np.concatenate([h for _, h in taken])
    assert set(hits["kind"]) == {KINDS.index("muon")}
    fourth = np.cos(np.deg2rad(hits["zenith"].astype(float))) ** 4  # so that P(tan > z) = (1 + z**2)**-2
    assert stats.kstest(fourth, "uniform").statistic < KOLMOGOROV / np.sqrt(len(hits))
    assert stats.kstest(hits["azimuth"] / 360, "uniform").statistic < KOLMOGOROV / np.sqrt(len(hits))
    for axis in ("x", "y"):
        assert stats.kstest((hits[axis] + 0.5) / 128, "uniform").statistic < KOLMOGOROV / np.sqrt(len(hits))


def test_tracks_are_as_long_as_the_silicon_is_deep(detector, monkeypatch):
    """Without delta rays and diffusion a track covers thickness x tan(zenith), to the pixels at its ends."""
    monkeypatch.setattr(cosmics, "_HARDEST", cosmics._DELTA)
    settings = CosmicRays(worms=0.0, spots=0.0, diffusion=0.0)
    seen = 0
    for image, hits in hits_of(settings, detector, 400, 60 / AREA):
        if len(hits) != 1:
            continue
        (hit,) = hits
        reach = 10 * np.tan(np.deg2rad(hit["zenith"]))  # px
        azimuth = np.deg2rad(hit["azimuth"])
        end = hit["x"] + reach * np.cos(azimuth), hit["y"] + reach * np.sin(azimuth)
        if min(end) < 0 or max(end) > 127:
            continue
        rows, columns = np.nonzero(image)
        for pixels, a, b in ((columns, hit["x"], end[0]), (rows, hit["y"], end[1])):
            # the outer pieces are half a step, 0.1 px, within the ends
            assert min(a, b) - 0.5 <= pixels.min() <= min(a, b) + 0.6
            assert max(a, b) - 0.6 <= pixels.max() <= max(a, b) + 0.5
        pieces = 50 / np.cos(np.deg2rad(hit["zenith"]))
        assert abs(image.sum() - hit["electrons"]) < 4 * np.sqrt(pieces / 6) + 1  # each is rounded at random
        seen += 1
    assert seen > 80


def test_landau_is_landau():
    drawn = landau(stream(SEED, "test"), 5000)
    assert stats.kstest(drawn, LANDAU.cdf).statistic < KOLMOGOROV / np.sqrt(5000)


@pytest.mark.parametrize("pieces", [1, 50])
def test_most_probable_charge_whatever_the_pieces(pieces):
    """Of 100 um 8000 electrons, of 200 um 16000 + 200 xi ln 2."""
    for path, probable in ((100.0, 8000.0), (200.0, 16000 + 200 * LANDAU_WIDTH * np.log(2))):
        random = stream(SEED, "test", step=pieces)
        charge = np.array([muon_charge(random, CosmicRays(), path, pieces).sum() for _ in range(3000)])
        standard = (charge - probable) / (path * LANDAU_WIDTH) - 0.22278
        assert stats.kstest(standard, LANDAU.cdf).statistic < KOLMOGOROV / np.sqrt(3000)


def test_mean_charge_of_a_path():
    """Mean of Landau's distribution cut at the hardest electron, from its survival function."""
    width = 100 * LANDAU_WIDTH
    cut = (1e6 / 3.7004 - 8000) / width - 0.22278
    nodes = np.concatenate([np.linspace(-5, 20, 2000), np.geomspace(20.01, cut, 2000)])
    mean = 8000 + width * (-5 + np.trapezoid(LANDAU.sf(nodes), nodes) + 0.22278)
    assert 95 < mean / 100 < 120  # electron/um; a minimum ionising particle loses 105 on average
    random = stream(SEED, "test")
    charge = np.array([muon_charge(random, CosmicRays(), 100.0, 1)[0] for _ in range(20000)])
    assert abs(charge.mean() - mean) < 4 * charge.std() / np.sqrt(len(charge))


def test_charge_spreads_with_the_root_of_its_height(detector):
    """Over heights that are even the variance is half of that at the back side, plus 1/12 of the pixel."""
    settings = CosmicRays(worms=0.0, spots=1.0, spot_energy=200.0)
    found = []
    for image, hits in hits_of(settings, detector, 1500, 60 / AREA):
        if len(hits) == 1 and min(hits["x"][0], hits["y"][0]) > 4 and max(hits["x"][0], hits["y"][0]) < 123:
            rows, columns = np.nonzero(image)
            weight = image[rows, columns] / image.sum()
            found += [np.sum(weight * (columns - hits["x"][0]) ** 2), np.sum(weight * (rows - hits["y"][0]) ** 2)]
    assert len(found) > 500
    error = np.std(found) / np.sqrt(len(found) / 2)  # x and y of a spot share its height
    assert abs(np.mean(found) - (0.4**2 / 2 + 1 / 12)) < 4 * error
    assert error < 0.02 * 4


def test_truth_adds_up_to_the_image(detector):
    image, hits = cosmic_rays(SEED, CosmicRays(), detector, 3, 60 * 100 / AREA)
    assert image.dtype == np.float32
    assert np.array_equal(image, np.rint(image))
    assert len(hits) > 60
    assert 0.8 * hits["electrons"].sum() < image.sum() <= hits["electrons"].sum() + 60 * np.sqrt(len(hits))


THICK = CosmicRays(thickness=1e5)


def one_electron(random, energy):
    return cosmics._electron(random, THICK, np.array([0.0, 0.0, 5e4]), np.array([1.0, 0.0, 0.0]), energy)


@pytest.mark.parametrize("energy", [5.0, 50.0, 200.0, 800.0])
def test_a_worm_leaves_its_energy_along_its_range(energy):
    random = stream(SEED, "test")
    paths = [one_electron(random, energy) for _ in range(20)]
    for path in paths:
        assert path[3].sum() == pytest.approx(energy * 1e3 / 3.7004, rel=1e-4)
        assert np.all(path[3] > 0)
    reach = 1768 * (energy / 1e3) ** (1.265 - 0.0954 * np.log(energy / 1e3))  # um
    # energy falls in steps of 2 um, on which the loss is taken as constant
    assert abs(np.mean([2 * p.shape[1] for p in paths]) - reach) < 4 + 0.1 * reach
    if energy >= 50:
        crow = np.mean([np.linalg.norm(p[:3, -1] - p[:3, 0]) for p in paths])
        assert crow < 0.8 * reach  # it wanders
    assert cosmics._range(100.0) == pytest.approx(57.9, abs=0.1)
    assert cosmics._range(0.0) == 0


def test_a_worm_turns_by_highlands_angle():
    random = stream(SEED, "test")
    first = np.stack([one_electron(random, 200.0)[:3, 1] for _ in range(2000)]) - np.array([0, 0, 5e4])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 2.0, rtol=1e-9)
    tangent2 = (first[:, 1] ** 2 + first[:, 2] ** 2) / first[:, 0] ** 2
    angle = 13.6 / 0.34376 * np.sqrt(2 / 93700) * (1 + 0.038 * np.log(2 / 93700))  # p v = 343.76 keV at 200 keV
    # mean of the sum of two squares, whose standard deviation is its mean
    assert abs(tangent2.mean() / (2 * angle**2) - 1) < 4 / np.sqrt(2000)


def test_worms_that_leave_the_silicon_end_there(detector):
    settings = CosmicRays(worm_energy=1000.0)
    random = stream(SEED, "test")
    down = np.array([0.0, 0.0, -1.0])
    path = cosmics._electron(random, settings, np.array([0.0, 0.0, 50.0]), down, 1000.0)
    assert path[2].min() >= 0
    assert path[2].max() <= 100
    assert path[3].sum() < 0.5 * 1e6 / 3.7


def test_delta_rays_start_beside_the_track():
    random = stream(SEED, "test")
    track = np.array([0.6, 0.0, -0.8])
    for energy in (20.0, 500.0):
        way = cosmics._beside(random, track, energy)
        assert way @ way == pytest.approx(1)
        assert (way @ track) ** 2 == pytest.approx(energy / (energy + 1022))


def test_some_muons_have_delta_rays():
    """Electrons above 20 keV: xi / T per path, 0.089 in 100 um, and the usual charge of a piece helps a little."""
    random = stream(SEED, "test")
    at, down = np.array([0.0, 0.0, 100.0]), np.array([0.0, 0.0, -1.0])
    settings = CosmicRays()
    paths = [cosmics._muon(random, settings, at, down) for _ in range(3000)]
    assert all(np.all(p[:2, :50] == 0) for p in paths)
    share = np.mean([p.shape[1] > 50 for p in paths])
    threshold = 20e3 / 3.7004
    length = 2.0
    usual = length * (80 + LANDAU_WIDTH * np.log(length / 100))
    p = 50 * LANDAU.sf((threshold - usual) / (LANDAU_WIDTH * length) - 0.22278)
    assert abs(share - p) < 4 * np.sqrt(p / 3000) + p**2 / 2  # two in one track count once


def test_off_is_nothing(detector):
    image, hits = cosmic_rays(SEED, CosmicRays(on=False), detector, 1, 1e9, 1.0)
    assert image.shape == detector.shape
    assert not image.any()
    assert len(hits) == 0
    assert not cosmic_rays(SEED, CosmicRays(), detector, 1, 0.0)[0].any()


def test_same_bits_again_and_others_next_time(detector):
    time = 60 * 10 / AREA
    (one, a), (same, b), (other, _) = (cosmic_rays(SEED, CosmicRays(), detector, n, time) for n in (4, 4, 5))
    assert one.any()
    assert np.array_equal(one, same)
    assert a.tobytes() == b.tobytes()
    assert not np.array_equal(one, other)


def test_hits_outside_every_amplifier_come_before_the_readout(detector):
    hit = np.zeros((), cosmics.HIT)
    hit["x"] = 5000.0
    assert cosmics._rows_before(detector, hit) == 0


@pytest.mark.parametrize(
    ("settings", "dark_time", "row_time"),
    [(CosmicRays(), -1.0, 0.0), (CosmicRays(), 1.0, -1.0), (CosmicRays(worms=0.7, spots=0.4), 1.0, 0.0)],
)
def test_impossible_settings_are_refused(detector, settings, dark_time, row_time):
    with pytest.raises(WrongUse, match="cosmic rays on R22_S11"):
        cosmic_rays(SEED, settings, detector, 1, dark_time, row_time)
