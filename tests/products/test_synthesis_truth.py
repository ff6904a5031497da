"""Closed loop: the broadband flat of a monochromatic scan against what the simulator's lamp gives in that filter."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.physics.passbands import passband_from_curves, surface
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.pipeline.synthesis import Source, synthetic_flats
from lsstcal_dask.products.synthesis import SynthesisConfig
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.exposure import Lamp
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.illumination import lamp_brightness, lamp_spectrum, laser_centre
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice

SITE = Observatory(7, load_camera("mini9"), Settings().without(["dust", "ghosts", "scatter"]))
NM = np.arange(505.0, 746.0)
SOME = (0, 4)  # a corner of the focal plane and its middle
ELECTRONS = 1e6  # of a slice: ten exposures (SCIENCE 2.8.1)
BLOCK = 16  # pixels of the large scale
pytestmark = pytest.mark.slow


def exposure(number, lamp, band="none") -> Exposure:
    return Exposure(f"e{number}", number, "flat", np.datetime64("2026-07-01", "ms"), 1.0, 1.0, band, lamp)


def amplifiers_of(image, detector):
    return np.asarray(split(image.astype(np.float32), detector, SITE.camera, fill=np.nan))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A scan of the r band in steps of 1 nm, its lines where the laser really was to 0.01 nm."""
    made = create_store(tmp_path_factory.mktemp("scan") / "s", "mini9")
    camera, rng, slots = made.camera, np.random.default_rng(1), []
    layout = CubeLayout("i2", tuple(d.name for d in camera.detectors), camera.amplifier_names, camera.image_shape)
    create_cube(made.url, "c", layout)
    for k, nominal in enumerate(NM):
        taken = exposure(k + 1, Lamp(1.0, float(nominal)))
        photons = lamp_brightness(SITE.seed, SITE.settings.lamp_drift, taken)
        number = claim_slot(made.url, "c", {"wavelength": float(nominal)})
        means = []
        for detector in (camera.detectors[i] for i in SOME):
            value = amplifiers_of(light(SITE, taken, detector).rate, detector) / photons
            slope = np.float32(np.nanmean(value) / ELECTRONS)
            noisy = value + np.sqrt(slope * value) * rng.standard_normal(value.shape, np.float32)
            lines = np.full(len(value), slope), np.zeros(len(value))
            mask, repeats = np.isnan(value).astype(np.uint16), np.full(value.shape, 10, np.uint8)
            sums = {"total": float(np.nansum(noisy)), "pixels": int(np.isfinite(noisy).sum())}
            write_slice(
                made.url, "c", (number, detector.name), Slice(noisy, mask, repeats, repeats[:, 0, 0], *lines), sums
            )
            means.append(np.nanmean(noisy))
        centre = laser_centre(SITE.seed, SITE.settings.laser, taken) + 0.01 * rng.standard_normal()
        slots.append(Slot(number, centre, 0.01, 1.0, "2026-07-01", float(np.mean(means)), 1e-3))
    publish_cube(made.url, "c", slots, {})
    return made


@pytest.fixture(scope="module")
def bands():
    """Polynomials through the filter's curve at 81 places of each CCD: this camera has too few for one of all."""
    found, nm = [], np.arange(480.0, 780, 0.5)
    for detector in (SITE.camera.detectors[i] for i in SOME):
        nodes = [np.linspace(0, size - 1, 9) for size in reversed(detector.shape)]
        x, y = ccd_to_focal(detector, *(axis.ravel() for axis in np.meshgrid(*nodes)))
        values = transmission(SITE.seed, SITE.settings.filters, SITE.camera, "r", nm, x, y)
        curves = {f"P{i}": Curve(nm, value) for i, value in enumerate(values)}
        places = {f"P{i}": place for i, place in enumerate(zip(x, y, strict=True))}
        found.append(surface(passband_from_curves("r", curves, places)))
    return found


def spectrum() -> Spectrum:
    nm = np.arange(460.0, 800, 0.5)
    return Spectrum(nm, lamp_spectrum(nm), "lamp")


@pytest.fixture(scope="module")
def truth():
    """The lamp through the filter (detector, amplifier, y, x)."""
    taken = exposure(999, Lamp(1.0), "r")
    ccds = [SITE.camera.detectors[i] for i in SOME]
    return np.stack([amplifiers_of(light(SITE, taken, one).rate, one) for one in ccds])


def misses(store, truth, spectrum, bands, **weights):
    """Rms of synthetic over true flat, over their mean: of pixels, and of blocks of 16; and the noise of the former."""
    config = SynthesisConfig.model_validate({"weights": weights})
    flats = synthetic_flats(store, "c", [Source(spectrum, band) for band in bands], config)
    own = [flats.isel(spectrum=i, detector=ccd).compute() for i, ccd in enumerate(SOME)]
    found = np.stack([one["image"].values * scale for one, scale in zip(own, flats.attrs["scale"], strict=True)])
    ratio = found / truth
    ratio = ratio / np.nanmean(ratio) - 1
    floor = np.sqrt(np.nanmean([one["variance"].values / one["image"].values ** 2 for one in own]))
    ny, nx = (size // BLOCK * BLOCK for size in ratio.shape[2:])
    parts = ratio[..., :ny, :nx].reshape(*ratio.shape[:2], ny // BLOCK, BLOCK, nx // BLOCK, BLOCK)
    large = np.nanmean(parts, axis=(3, 5))
    return np.sqrt(np.nanmean(ratio**2)), np.sqrt(np.nanmean(large**2)), floor


def test_the_broadband_flat_is_that_of_the_lamp(store, truth, bands):
    """SCIENCE 2.8.1: pixels to 2e-4 and to 1.2 times the noise of the photons, large scales to 3e-4."""
    pixel, large, floor = misses(store, truth, spectrum(), bands)
    assert floor < 2e-4 / 1.2
    assert pixel < 1.2 * floor
    assert large < 3e-4


def test_without_places_or_photons_it_is_not(store, truth, bands):
    good = misses(store, truth, spectrum(), bands)[1]
    middle = [Curve(band.wavelength, np.clip(band.at(0.0, 0.0), 0, 1)) for band in bands[1:] * 2]
    tilted = replace(spectrum(), density=spectrum().density / spectrum().wavelength)
    assert misses(store, truth, spectrum(), middle)[1] > 5 * good
    assert misses(store, truth, tilted, bands)[1] > 5 * good


@pytest.mark.parametrize("weights", [{"interpolation": "spline"}, {"sharpen": True}])
def test_finer_weights_change_nothing_that_this_noise_shows(store, truth, bands, weights):
    pixel, large, floor = misses(store, truth, spectrum(), bands, **weights)
    assert pixel < 1.2 * floor
    assert large < 3e-4
