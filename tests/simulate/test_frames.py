"""Whole frames: the same bits however the work is cut, statistics against closed forms, order of what happens."""

import hashlib
from dataclasses import replace
from functools import cache

import dask
import numpy as np
import pytest
from scipy import ndimage

from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import assemble, split, trim
from lsstcal_dask.simulate import frames as module
from lsstcal_dask.simulate.boards import boards
from lsstcal_dask.simulate.brighter_fatter import area_coefficients
from lsstcal_dask.simulate.crosstalk import Crosstalk, coupled
from lsstcal_dask.simulate.dark import ROW_TIME, HotPixels, dark_electrons
from lsstcal_dask.simulate.defects import BadPixels
from lsstcal_dask.simulate.electronics import channel
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing, Projection, XRays
from lsstcal_dask.simulate.frames import charge, frames, lazy_counts, packets
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.pixels import PixelJitter, areas
from lsstcal_dask.simulate.saturation import Saturation, full_well
from lsstcal_dask.simulate.settings import Settings

TIME = np.datetime64("2026-07-02T03:00:00", "ms")
NINE = load_camera("mini9")
BOARD = replace(NINE, detectors=NINE.detectors[:3])
EVERY = Settings(crosstalk=Crosstalk(per_board=40.0))
SIGMAS = 4.5


def exposure(number, kind="flat", seconds=10.0, dark=None, band="none", source=None):
    return Exposure(f"E{number}", number, kind, TIME, seconds, seconds if dark is None else dark, band, source)


RECIPE = [
    exposure(1, "bias", 0.0),
    exposure(2, "dark", 0.0, 300.0),
    exposure(3, "flat", 5.0, band="g", source=Lamp(4e3, 500.0)),
    exposure(4, "cbp", 5.0, source=Projection("grid", 620.0, 1.0, 0.0, 0.0, 3.0, (3.0, 0.5), 1e6)),
    exposure(5, "science", 30.0, band="u", source=Pointing(50.0, -30.0, 70.0, 30.0)),
]


def digest(counts):
    assert counts.dtype == np.int32
    return hashlib.sha256(np.ascontiguousarray(counts).tobytes()).hexdigest()


@cache
def whole():
    """Counts of each exposure, a board after the other."""
    site = Observatory(7, BOARD, EVERY)
    assert any(coupled(7, EVERY.crosstalk, BOARD, d) for d in BOARD.detectors)
    return [np.stack([f.counts for f in frames(site, e, BOARD.detectors)]) for e in RECIPE]


def digests(exposures):
    return [digest(one) for one in exposures]


def lazy():
    return lazy_counts(Observatory(7, BOARD, EVERY), RECIPE)


def test_exposures_differ_and_so_do_seeds():
    assert len(set(digests(whole()))) == len(RECIPE)
    other = next(frames(Observatory(8, BOARD, EVERY), RECIPE[0], BOARD.detectors[:1]))
    assert digest(other.counts) != digest(whole()[0][0])


def test_the_same_bits_ccd_by_ccd_backwards():
    site = Observatory(7, BOARD, EVERY)
    for i, e in reversed(list(enumerate(RECIPE))):
        for k in (2, 0):
            assert digest(next(frames(site, e, [BOARD.detectors[k]])).counts) == digest(whole()[i][k])


def test_the_same_bits_amplifier_by_amplifier():
    for e, d, a in [(2, 0, 3), (3, 1, 15), (0, 2, 0), (1, 2, 7)]:
        one = lazy()[e, d, a].compute(scheduler="synchronous").values
        assert digest(one) == digest(whole()[e][d, a])


def test_the_same_bits_exposure_by_exposure():
    counts = lazy()
    found = [counts[i].compute(scheduler="synchronous").values for i in (3, 0)]
    assert digests(found) == [digest(whole()[i]) for i in (3, 0)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_bits_with_any_number_of_threads(workers):
    found = lazy().compute(scheduler="threads", num_workers=workers).values
    assert digests(found) == digests(whole())


def test_the_same_bits_in_fresh_processes():
    with cluster("local", 2) as compute:
        found = compute.client.compute(lazy().data).result()
    assert digests(found) == digests(whole())


@pytest.mark.usefixtures("no_compute")
def test_building_the_graph_computes_nothing_and_stays_small():
    counts = lazy()
    assert counts.dims == ("exposure", "detector", "amplifier", "y", "x")
    assert counts.shape == (len(RECIPE), 3, 16, *BOARD.raw_shape)
    assert counts.data.chunksize == (1, 1, 1, *BOARD.raw_shape)
    assert list(counts.detector.values) == [d.name for d in BOARD.detectors]
    camera = load_camera("lsstcam")
    flat = lazy_counts(Observatory(7, camera), [exposure(1, source=Lamp(1e3))])
    (small,) = dask.optimize(flat.data)
    amplifiers = len(camera.detectors) * 16
    assert len(small.__dask_graph__()) < 2.1 * amplifiers  # one to cut each from its board, one to name it
    assert list(flat.detector.values) == [d.name for d in camera.detectors]


def test_boards_that_are_apart_come_back_in_the_order_of_the_camera():
    order = [0, 3, 1, 4]
    camera = replace(NINE, detectors=tuple(NINE.detectors[i] for i in order))
    site = Observatory(7, camera, Settings().only(["read_noise"]))
    assert [len(b) for b in boards(camera).values()] == [2, 2]
    found = lazy_counts(site, RECIPE[:1]).compute(scheduler="synchronous")
    for d in camera.detectors:
        wanted = next(frames(site, RECIPE[0], [d])).counts
        np.testing.assert_array_equal(found.sel(detector=d.name)[0], wanted)


def test_no_exposure_is_refused():
    with pytest.raises(WrongUse, match="no exposure"):
        lazy_counts(Observatory(7, BOARD), [])


# Statistics, each through the whole chain and for the amplifiers of one CCD


def amplifier_counts(site, e, detector=0, trimmed=True):
    d = site.camera.detectors[detector]
    counts = next(frames(site, e, [d])).counts
    return (trim(counts, d, site.camera) if trimmed else counts).astype(np.float64)


def channels(site, detector=0):
    d = site.camera.detectors[detector]
    by_name = {a.name: i for i, a in enumerate(d.amplifiers)}
    electronics = site.settings.electronics
    return [channel(site.seed, electronics, site.camera, d, by_name[name]) for name in site.camera.amplifier_names]


def test_bias_has_the_pedestal_the_noise_of_pixels_and_rows_and_that_of_rounding():
    site = Observatory(3, NINE, Settings().only(["read_noise", "gain", "digitisation"]))
    stack = np.stack([amplifier_counts(site, exposure(i, "bias", 0.0), trimmed=False) for i in range(1, 21)])
    n, _, ny, nx = stack.shape
    for a, truth in enumerate(channels(site)):
        frames_, pixel = stack[:, a], (truth.read_noise / truth.gain) ** 2 + 1 / 12
        row = (truth.row_noise / truth.gain) ** 2
        of_rows = row + pixel / nx  # variance of the mean of a row
        assert abs(frames_.mean() - truth.pedestal) < SIGMAS * np.sqrt(of_rows / (n * ny))
        within = frames_ - frames_.mean(axis=2, keepdims=True)
        freedom = n * ny * (nx - 1)
        assert abs((within**2).sum() / freedom / pixel - 1) < SIGMAS * np.sqrt(2 / freedom)
        rows = ((frames_.mean(axis=2) - truth.pedestal) ** 2).sum() / (n * ny)
        assert abs(rows / of_rows - 1) < SIGMAS * np.sqrt(2 / (n * ny))


def test_the_mean_of_a_flat_is_light_times_area_over_gain():
    jitter = PixelJitter(displacement=0.02)
    names = ["shot_noise", "pixel_jitter", "gain", "read_noise", "digitisation"]
    site = Observatory(3, NINE, Settings(pixel_jitter=jitter).only(names))
    electrons, n = 5e4, 4
    mean = sum(amplifier_counts(site, exposure(i, source=Lamp(electrons / 10, 500.0))) for i in range(n)) / n
    d = NINE.detectors[0]
    area = split(areas(site.corners(d)) - 1, d, NINE, fill=0.0)
    for a, truth in enumerate(channels(site)):
        signal = (mean[a] - truth.pedestal) * truth.gain / electrons - 1
        noise = np.sqrt((1 / electrons + (truth.read_noise / electrons) ** 2 + (truth.gain / electrons) ** 2 / 12) / n)
        common = truth.row_noise / electrons / np.sqrt(n * signal.shape[0])
        assert abs(signal.mean() - area[a].mean()) < SIGMAS * np.hypot(noise / np.sqrt(signal.size), common)
        off, size = area[a] - area[a].mean(), area[a].std() * np.sqrt(signal.size)
        assert size > 50 * noise
        slope = (signal * off).sum() / size**2
        assert abs(slope - 1) < SIGMAS * noise / size


def closed_form(level, settings, vendor, size=64):
    """C_ij / level of a flat by Astier et al. 2019 with b = 0, from the true area coefficients."""
    area = area_coefficients(settings, vendor)
    plane = np.zeros((size, size))
    plane[: len(area), : len(area)] = area
    spectrum = level * np.fft.fft2(np.roll(plane, (-(len(area) // 2),) * 2, (0, 1))).real
    safe = np.where(np.abs(spectrum) > 1e-9, spectrum, 1)
    each = np.where(np.abs(spectrum) > 1e-9, np.expm1(2 * safe) / (2 * safe), 1)
    return np.fft.ifft2(each).real[:3, :3]


def test_covariances_of_flat_pairs_follow_the_closed_form():
    names = ["shot_noise", "brighter_fatter", "gain", "digitisation"]
    site = Observatory(3, NINE, Settings().only(names))
    level, pairs, d = 8e4, 6, NINE.detectors[0]
    gain = np.array([truth.gain for truth in channels(site)])[:, None, None]
    total, n = np.zeros((3, 3)), 0
    for i in range(pairs):
        one, other = (
            amplifier_counts(site, exposure(2 * i + k, source=Lamp(level / 10, 500.0))) * gain for k in (1, 2)
        )
        off = assemble(one - other, d, NINE)[9:-9, 9:-9] / np.sqrt(2)
        n += off.size
        for j in range(3):
            for k in range(3):
                total[j, k] += (off[: off.shape[0] - j, : off.shape[1] - k] * off[j:, k:]).mean() * off.size
    found, wanted = total / n / level, closed_form(level, site.settings.brighter_fatter, d.vendor)
    wanted[0, 0] += np.mean(gain**2) / 12 / level
    error = np.full((3, 3), np.sqrt(1 / n))
    error[0, 0] *= np.sqrt(2)
    assert np.abs((found - wanted) / (SIGMAS * error + site.settings.brighter_fatter.error)).max() < 1
    assert found[0, 0] < 0.85
    assert found[1, 0] > 10 * error[1, 0]


def test_cosmic_rays_come_at_their_rate():
    cosmics = Settings().cosmic_rays.model_copy(update={"rate": 120.0})
    site = Observatory(3, NINE, Settings(cosmic_rays=cosmics).only(["cosmic_rays"]))
    d, seconds, found, n = NINE.detectors[0], 200.0, 0, 12
    for i in range(n):
        image = charge(site, exposure(i, "dark", 0.0, seconds), d)
        found += ndimage.label(image > 0, np.ones((3, 3)))[1]
    mean_wait = ROW_TIME * (d.amplifiers[0].data.shape[0] - 1) / 2
    expected = n * 120.0 * np.prod(d.shape) * d.pixel_mm**2 / 100 * (seconds + mean_wait) / 60
    # two events in 131 000 pixels that touch are one; one that is broken by an empty pixel is two: a few per cent
    assert abs(found / expected - 1) < SIGMAS / np.sqrt(expected) + 0.03


def test_dark_charge_grows_with_the_dark_time():
    names = ["dark_current", "hot_pixels", "shot_noise", "digitisation"]
    site, d = Observatory(3, NINE, Settings().only(names)), NINE.detectors[0]
    for i, seconds in enumerate((0.0, 200.0, 2000.0)):
        dark = exposure(i, "dark", 0.0, seconds)
        expected = split(dark_electrons(site.dark_rate(d), d, seconds), d, NINE, fill=0.0).sum(axis=(1, 2))
        gained = charge(site, dark, d)
        counts = amplifier_counts(site, dark)
        for a, truth in enumerate(channels(site)):
            signal = (counts[a] - np.rint(truth.pedestal)).sum()  # whole electrons on a level of its own: no rounding
            assert abs(signal - expected[a]) < SIGMAS * np.sqrt(expected[a]) + 1
        assert gained.sum() == pytest.approx(expected.sum(), abs=SIGMAS * float(np.sqrt(expected.sum())))
    assert expected.sum() > 1e6


# How the parts are put together


def test_light_darks_and_cosmic_rays_are_drawn_independently():
    on = ["shot_noise", "dark_current", "hot_pixels", "cosmic_rays"]
    d, lamp = NINE.detectors[0], Lamp(2e3, 500.0)
    both = charge(Observatory(3, NINE, Settings().only(on)), exposure(1, source=lamp), d)
    dark = charge(Observatory(3, NINE, Settings().only(on)), exposure(1, "dark"), d)
    light = charge(Observatory(3, NINE, Settings().only(["shot_noise"])), exposure(1, source=lamp), d)
    np.testing.assert_array_equal(both, dark + light)
    assert min(dark.sum(), light.sum()) > 0


def test_hot_pixels_take_light_from_their_own_pixels():
    """What gathers evenly in the dark moves boundaries, on average, by half of what it is in the end."""
    hot = HotPixels(density=3e-5, median=3e3, scatter=0.0)
    names, d, lamp = ["hot_pixels", "brighter_fatter"], NINE.detectors[0], exposure(1, source=Lamp(100.0, 500.0))
    site = Observatory(3, NINE, Settings(hot_pixels=hot).only(names))
    gathered = charge(site, lamp, d) - charge(site, exposure(1, "dark", 0.0, 10.0), d)
    rate = site.dark_rate(d)
    area, half = area_coefficients(site.settings.brighter_fatter, d.vendor), 9
    found = 0
    for y, x in zip(*np.nonzero(rate), strict=True):
        box = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
        if rate[box].shape == (19, 19) and np.count_nonzero(rate[box]) == 1 and min(y, x) >= half:
            change = gathered[box] / 1000 - 1
            # 30 000 electrons: float32 beside them, and light that follows 1000 electrons of light, a00 of it
            atol = 4e-3 / 1000 + 0.005 * np.abs(area) * 15e3
            assert (np.abs(change - area * 15e3) < atol).all()
            found += 1
    assert found > 1
    assert area[half, half] * 15e3 < -0.02
    still = Observatory(3, NINE, Settings(hot_pixels=hot).only(["hot_pixels"]))
    dark = charge(still, exposure(1, "dark", 0.0, 10.0), d)
    np.testing.assert_allclose(charge(still, lamp, d) - dark, 1000, atol=4e-3)


def test_charge_blooms_then_is_trapped_then_read(monkeypatch):
    calls, d = [], NINE.detectors[0]
    for name in ("accumulate", "cosmic_rays", "bloom", "apply_traps", "clamp_serial", "defer", "read_out"):

        def spy(*args, _name=name, _real=getattr(module, name), **kwargs):
            calls.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    next(frames(Observatory(3, NINE, Settings().without(["crosstalk"])), exposure(1, source=Lamp(1.0, 500.0)), [d]))
    assert calls == ["accumulate", "cosmic_rays", "bloom", "apply_traps", "clamp_serial", "defer", "read_out"]


def test_bleeding_and_traps_conserve_charge():
    d, lamp = NINE.detectors[0], Lamp(3e4, 500.0)
    base = Settings(bad_pixels=BadPixels(cold=0, dark_columns=0, bright_columns=0, traps=1e-3))
    sun = ["shot_noise", "xrays"]
    free = charge(Observatory(3, NINE, base.only(sun)), exposure(1, source=lamp), d)
    trapped = charge(Observatory(3, NINE, base.only([*sun, "bad_pixels"])), exposure(1, source=lamp), d)
    assert (trapped != free).sum() > 100
    assert trapped.sum(dtype=float) == pytest.approx(free.sum(dtype=float), rel=1e-7)
    bright = exposure(1, "cbp", source=Projection("single", 500.0, 1.0, 0.0, 0.0, 0.0, (3.0, 0.0), 1e7))
    middle = NINE.detectors[4]
    settings = Settings(saturation=Saturation(e2v=1e5, itl=1e5))
    full = charge(Observatory(3, NINE, settings.only([*sun, "saturation"])), bright, middle)
    free = charge(Observatory(3, NINE, settings.only(sun)), bright, middle)
    wells = full_well(3, settings.saturation, middle)
    assert free.max() > 2 * wells.max()
    assert full.max() <= wells.max()
    rows = np.flatnonzero((full != free).any(axis=1))
    assert rows[0] > 0  # none has reached the register, so none is gone
    assert full.sum(dtype=float) == pytest.approx(free.sum(dtype=float), rel=1e-7)


def test_insensitive_pixels_thin_the_light():
    bad = BadPixels(cold=0.05, cold_size=1.0, dark_columns=0, bright_columns=0, traps=0)
    site = Observatory(3, NINE, Settings(bad_pixels=bad).only(["shot_noise", "bad_pixels"]))
    d, level, n = NINE.detectors[0], 2000.0, 30
    images = np.stack([charge(site, exposure(i, source=Lamp(level / 10, 500.0)), d) for i in range(n)])
    factor = site.sensitivity(d)
    dull = (factor < 1) & (factor > 0.02)
    mean = level * factor[dull]
    seen = images[:, dull]
    assert dull.sum() > 5000
    assert abs((seen.sum(0) - n * mean).sum()) < SIGMAS * np.sqrt(n * mean.sum())
    # a thinned Poisson number is one again: its variance is its mean, not the square of the factor times it
    spread = ((seen - mean) ** 2 / mean).mean()
    assert abs(spread - 1) < SIGMAS * np.sqrt((2 + (1 / mean).mean()) / seen.size)
    assert np.array_equal(images, np.rint(images))
    quiet = Observatory(3, NINE, Settings(bad_pixels=bad).only(["bad_pixels"]))
    np.testing.assert_allclose(charge(quiet, exposure(1, source=Lamp(level / 10, 500.0)), d), level * factor, rtol=1e-6)


def test_charge_lies_in_the_light_sensitive_pixels_alone():
    site, d = Observatory(3, NINE, Settings().only(["shot_noise"])), NINE.detectors[1]
    raw = packets(site, exposure(1, source=Lamp(1e3, 500.0)), d)
    assert raw.shape == (16, *NINE.raw_shape)
    inside = np.zeros(raw.shape, bool)
    for amplifier in d.amplifiers:
        inside[(NINE.amplifier_names.index(amplifier.name), *amplifier.data.slices)] = True
    assert raw[inside].min() > 9000
    assert not raw[~inside].any()
    assert raw.sum(dtype=float) == charge(site, exposure(1, source=Lamp(1e3, 500.0)), d).sum(dtype=float)


def test_a_source_of_xrays_sends_no_light():
    site, d = Observatory(3, NINE, Settings().only(["xrays", "shot_noise"])), NINE.detectors[0]
    image = charge(site, exposure(1, "fe55", source=XRays(1e-3)), d)
    hits = 1e-3 * 10 * image.size
    assert abs(image.sum() / 1620 / hits - 1) < SIGMAS / np.sqrt(hits) + 0.02  # 1612 electrons, a tenth has 1777


def test_the_charge_of_a_board_is_made_once(monkeypatch):
    made = []
    real = module.packets
    monkeypatch.setattr(module, "packets", lambda s, e, d: made.append(d.name) or real(s, e, d))
    site = Observatory(7, BOARD, EVERY.only(["crosstalk"]))
    list(frames(site, exposure(1, "bias", 0.0), BOARD.detectors))
    assert sorted(made) == sorted({d.name for d in BOARD.detectors})
