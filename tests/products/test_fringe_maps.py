"""What the maps of all CCDs have in common, on skies made by hand."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.fringes import block_counts, block_places
from lsstcal_dask.products.fringe_common import Sample, relative_sky, sample_sky, share_modes
from lsstcal_dask.products.fringe_frames import frame_amplifiers
from lsstcal_dask.variables import NOTE

FRAMES, BLOCKS, NOISE = 16, 400, 1e-3
CAMERA = load_camera("mini9")
PLACES = tuple(np.array([d.center_mm for d in CAMERA.detectors]).T)
STEP = 8


def samples(wave=0.0, seed=1, frames=FRAMES):
    """Nine CCDs with one pattern each, whose strength follows a wave over the field in each frame."""
    random = np.random.default_rng(seed)
    strength = 1 + 0.2 * random.normal(size=frames)
    phase = random.uniform(0, 2 * np.pi, frames)
    found = []
    for x in PLACES[0]:
        c = strength * (1 + wave * np.cos(2 * np.pi * x / 15 + phase))
        value = np.outer(c, 0.01 * random.normal(size=BLOCKS)) + NOISE * random.normal(size=(frames, BLOCKS))
        found.append(Sample(value, np.full(value.shape, NOISE**-2), np.zeros(frames)))
    return found


@pytest.mark.parametrize("method", ["classical", "pca"])
def test_fringes_that_are_as_strong_everywhere_are_not_rejected(method):
    found = share_modes(samples(), PLACES, method, 1)
    assert (found.zones == 0).all()
    assert all(one.startswith(NOTE) for one in found.remarks)
    (told,) = [one for one in found.remarks if "all over the field" in one]
    assert f"of {FRAMES * 8}" in told


@pytest.mark.parametrize("method", ["classical", "pca"])
def test_a_wave_over_the_field_asks_for_more_flats(method):
    """A wave of 10 % against an error of noise / (0.01 sqrt(blocks)), half a per cent."""
    found = share_modes(samples(0.1), PLACES, method, 1)
    (told,) = [one for one in found.remarks if "not as strong all over the field" in one]
    assert not told.startswith(NOTE)
    number = found.zones.max() + 1
    assert number > 1
    assert f"{number} flats" in told


def test_few_frames_are_refused_and_one_ccd_tells_nothing_of_the_field():
    with pytest.raises(InsufficientInputs, match="9 frames"):
        share_modes(samples(frames=9), PLACES, "pca", 1)
    alone = share_modes(samples()[:1], (PLACES[0][:1], PLACES[1][:1]), "pca")
    assert any("1 maps" in one for one in alone.remarks)
    assert any("one CCD" in one for one in alone.remarks)


def sky_of(detector, size=0.01, frames=12, lacking=2):
    """Blocks of frames (exposure, amplifier, block_y, block_x) with one wave, of which a CCD lacks some frames."""
    random = np.random.default_rng(detector.id)
    counts = block_counts(CAMERA.image_shape, STEP)
    y, x = block_places(detector, counts, STEP)
    level = 6e3 * (1 + 0.05 * random.normal(size=(frames, 1, 1, 1)) + 0.03 * x)
    wave = size * np.cos(20 * x + 13 * y)
    value = level * (1 + wave)
    value += np.sqrt(level / STEP**2) * random.normal(size=value.shape)
    value[:lacking] = np.nan
    dims = ("exposure", "amplifier", "block_y", "block_x")
    data = {
        "sky_level": (dims, value),
        "sky_level_variance": (dims, level / STEP**2 + 0 * value),
        "crowded": (dims[:2], np.where(np.isfinite(value[:, :, 0, 0]), 0.02, np.nan)),
    }
    return xr.Dataset(data, coords={"amplifier": [a.name for a in detector.amplifiers]}), wave


def test_a_ccd_that_lacks_frames_has_its_map_of_the_others():
    detector = CAMERA.detectors[0]
    sky, wave = sky_of(detector)
    found = dict(frame_amplifiers(sky, detector, STEP, (np.ones((12, 1)), 3), "pca"))
    assert set(found) == {a.name for a in detector.amplifiers}
    for i, amplifier in enumerate(detector.amplifiers):
        own = found[amplifier.name]
        assert own["fringe_frames"].max() == 10
        pull = (own["fringe_map"].values[0] - wave[i]) / np.sqrt(own["fringe_map_variance"].values[0])
        assert np.nanstd(pull) == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size) + 0.05)  # and what is smooth of it
        assert np.isnan(own["fringe_amplitude"].values[:2]).all()
        assert own["fringe_amplitude"].values[2:] == pytest.approx(1, abs=0.1)
        assert own["fringe_zone"] == 3
        assert own.attrs["remarks"] == []
    sample = sample_sky(sky, detector, STEP, 50)
    assert sample.value.shape == (12, 50)
    assert np.isnan(sample.crowded[:2]).all()
    assert sample.crowded[2:] == pytest.approx(0.02)
    assert (relative_sky(sky, detector, STEP).weight[:2] == 0).all()


def test_a_sky_without_fringes_is_remarked_and_one_without_frames_refused():
    detector = CAMERA.detectors[0]
    sky, _ = sky_of(detector, size=0.0)
    remarks = [
        text
        for _, one in frame_amplifiers(sky, detector, STEP, (np.ones((12, 1)), 0), "classical")
        for text in one.attrs["remarks"]
    ]
    assert len(remarks) == 1
    assert "no fringes are seen" in remarks[0]
    short, _ = sky_of(detector, lacking=3)
    with pytest.raises(InsufficientInputs, match=f"{detector.name}: 9 of its frames show enough sky"):
        list(frame_amplifiers(short, detector, STEP, (np.ones((12, 1)), 0), "pca"))
