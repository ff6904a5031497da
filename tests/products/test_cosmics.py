"""Darks with cosmic rays of the virtual observatory, whose truth is known pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.dark import DarkConfig, dark_amplifiers
from lsstcal_dask.simulate.cosmics import CosmicRays, cosmic_rays

CAMERA = load_camera("mini9")
DETECTOR = replace(CAMERA.detectors[4], amplifiers=CAMERA.detectors[4].amplifiers[:4])
GAIN, NOISE, RATE, SECONDS = 1.5, 4.0, 0.05, 300.0  # electron/adu, adu, electron/s, s
DENSE = CosmicRays(rate=60.0)  # events per cm2 and minute: 200 in an amplifier of 0.7 mm2, on 20 frames


def darks(seed, n, settings=DENSE, rate=RATE):
    """Raw darks of some amplifiers, and the electrons of cosmic rays in them."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n, len(DETECTOR.amplifiers), *CAMERA.raw_shape), np.int32)
    truth = np.zeros((n, len(DETECTOR.amplifiers), *CAMERA.image_shape))
    for i in range(n):
        charge, _ = cosmic_rays(seed, settings, CAMERA.detectors[4], i + 1, SECONDS)
        for j, amplifier in enumerate(DETECTOR.amplifiers):
            (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
            part = charge[y0 : y0 + ny, x0 : x0 + nx][
                :: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1
            ]
            truth[i, j, :ny, :nx] = part
            seconds = SECONDS + DETECTOR.row_time * np.arange(ny)[:, None]
            signal = np.zeros(CAMERA.raw_shape)
            signal[amplifier.data.slices] = (rng.poisson(rate * seconds, (ny, nx)) + part) / GAIN
            counts[i, j] = np.rint(1000 + signal + rng.normal(0, NOISE, CAMERA.raw_shape))
    names = [a.name for a in DETECTOR.amplifiers]
    raw = xr.Dataset(
        {
            "counts": (("exposure", "amplifier", "y", "x"), counts),
            "present": ("exposure", np.ones(n, bool)),
            "dark_time": ("exposure", np.full(n, SECONDS)),
        },
        coords={"exposure": [f"e{i}" for i in range(n)], "amplifier": names},
    )
    return raw, truth


def made(raw, **options):
    names = [a.name for a in DETECTOR.amplifiers]
    gain = xr.Dataset({"gain": ("amplifier", np.full(len(names), GAIN))}, coords={"amplifier": names})
    config = DarkConfig(**options)
    return [result for _, result in dark_amplifiers(raw, DETECTOR, CAMERA.image_shape, config, {"gain": gain})]


def pulls(results, where=None):
    """Errors over their sigma, of the pixels chosen."""
    found = []
    for j, (amplifier, result) in enumerate(zip(DETECTOR.amplifiers, results, strict=True)):
        ny, nx = amplifier.data.shape
        variance = result["variance"].values + result["row_variance"].values[:, None]
        pull = ((result["image"].values - RATE) / np.sqrt(variance))[:ny, :nx]
        found.append(pull[where[j, :ny, :nx]] if where is not None else pull.ravel())
    return np.concatenate(found)


def test_hit_pixels_are_as_good_as_the_others():
    """All pulls of unit width, and those of pixels that a track touched; clipping alone leaves the rims in."""
    n, clipped, clean, everything = 20, [], [], []
    for seed in range(4):
        raw, truth = darks(seed, n)
        touched = (truth > 0).any(axis=0)
        clean.append(pulls(made(raw), touched))
        clipped.append(pulls(made(raw, cosmic_rays="clip"), touched))
        everything.append(pulls(made(raw)))
    clean, clipped, everything = map(np.concatenate, (clean, clipped, everything))
    assert len(clean) > 3000
    # The mean pull of n pixels is known to 1/sqrt(n), their width to 1/sqrt(2 n).
    assert abs(everything.mean()) < 0.02 + 4 / np.sqrt(len(everything))
    assert np.std(everything) == pytest.approx(1, abs=0.02)
    assert abs(clean.mean()) < 0.5 * abs(clipped.mean())
    assert np.std(clean) == pytest.approx(1, abs=0.05)


def test_most_of_the_charge_of_cosmic_rays_is_found():
    """98 % of the pixels with more than 6 sigma of charge are left out, and few without any."""
    n = 20
    raw, truth = darks(11, n)
    sigma = np.sqrt(NOISE**2 * GAIN**2 + RATE * SECONDS)
    for j, result in enumerate(made(raw)):
        ny, nx = DETECTOR.amplifiers[j].data.shape
        hit = truth[:, j, :ny, :nx] > 8 * sigma  # beyond 6 whatever the noise, but for 2 %
        out = n - result["frames"].values[:ny, :nx].astype(int)
        at_least = np.minimum(hit.sum(axis=0), n)
        assert np.minimum(out, at_least).sum() >= 0.98 * at_least.sum()
        assert result.attrs["summary"]["hit_pixels"] > 0


def test_two_darks_are_cleaned_each_by_itself():
    raw, truth = darks(5, 2, CosmicRays(rate=10.0))
    touched = (truth > 200).any(axis=0)
    single, clip = (pulls(made(raw, minimum=2, cosmic_rays=c), touched) for c in ("temporal", "clip"))
    # Of two values apart neither is near their middle: clipping leaves nothing.
    assert np.isnan(clip).mean() > 0.9
    good = np.isfinite(single)
    assert good.mean() > 0.7  # a compact spot, a fifth of the events, looks like a star
    assert np.median(np.abs(single[good])) < 1
    assert np.mean(single[good] > 10) < 0.05


def test_without_rejection_it_says_how_many_more_are_needed():
    """What it says is what the scatter of means of clean and of spoilt darks is."""
    n = 10
    raw, _ = darks(3, n)
    (result, *_) = made(raw, cosmic_rays="none")
    remark = next(r for r in result.attrs["remarks"] if "would be needed" in r)
    needed = int(remark.split("; ")[1].split()[0])
    ny, nx = DETECTOR.amplifiers[0].data.shape
    image = result["image"].values[:ny, :nx]
    clean = made(darks(3, n, CosmicRays(on=False))[0], cosmic_rays="none")[0]["image"].values[:ny, :nx]
    measured = n * np.var(image) / np.var(clean)
    assert needed > 3 * n
    assert needed == pytest.approx(measured, rel=0.15)


def test_later_rows_gather_for_longer():
    """A bright dark current shows the time of the readout: the rate is that of one second in every row."""
    rate = 100.0
    slow = replace(DETECTOR, row_time=0.5)
    names = [a.name for a in slow.amplifiers]
    ny, nx = slow.amplifiers[0].data.shape
    counts = np.full((5, len(names), *CAMERA.raw_shape), 1000, np.int32)
    rng = np.random.default_rng(1)
    for amplifier in slow.amplifiers:
        seconds = SECONDS + 0.5 * np.arange(ny)[:, None]
        counts[(slice(None), names.index(amplifier.name), *amplifier.data.slices)] += rng.poisson(
            rate * seconds, (5, ny, nx)
        )
    counts = counts + np.rint(rng.normal(0, NOISE, counts.shape)).astype(np.int32)
    raw = darks(1, 5, CosmicRays(on=False))[0].assign(counts=(("exposure", "amplifier", "y", "x"), counts))
    gain = xr.Dataset({"gain": ("amplifier", np.ones(len(names)))}, coords={"amplifier": names})
    for row_time, limit in ((0.5, 4.0), (0.0, np.inf)):
        camera_side = replace(slow, row_time=row_time)
        (_, result), *_ = dark_amplifiers(raw, camera_side, CAMERA.image_shape, DarkConfig(), {"gain": gain})
        rows = result["image"].values[:ny, :nx].mean(axis=1)
        error = np.sqrt(rate * SECONDS / 5 / nx) / SECONDS
        slope = np.polyfit(np.arange(ny), rows, 1)[0]
        pull = slope / (error * np.sqrt(12 / ny**3))
        assert abs(pull) < limit
        assert (abs(pull) > 50) == (row_time == 0)
