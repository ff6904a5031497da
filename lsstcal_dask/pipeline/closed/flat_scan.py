"""A scan of monochromatic flats in the simulator's light, stored as any cube is, and the lamp behind a filter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lsstcal_dask.instrument import Camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband
from lsstcal_dask.physics.spectra import Spectrum, from_photons
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.pipeline.synthesis import CubeOpener, Source, scan_of
from lsstcal_dask.products.synthesis import SynthesisConfig, Task, synthesis_amplifiers
from lsstcal_dask.products.weights import make_weights
from lsstcal_dask.simulate import Exposure, Observatory
from lsstcal_dask.simulate.exposure import Lamp
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.frames import charge
from lsstcal_dask.simulate.illumination import lamp_brightness, lamp_spectrum, laser_centre
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice

__all__ = [
    "CUBE",
    "START",
    "Flat",
    "exact_passband",
    "expected",
    "flat_of",
    "lamp",
    "lamp_light",
    "places",
    "quiet",
    "store_scan",
]

CUBE: Final = "flats"
START: Final = np.datetime64("2026-07-01T20:00:00", "ms")
_CHANCE: Final = (
    "shot_noise",
    "cosmic_rays",
    "dark_current",
    "hot_pixels",
    "blinking_pixels",
    "bad_pixels",
    "brighter_fatter",
    "saturation",
    "persistence",
)
_REPEATS: Final = 10  # exposures of a slice (SCIENCE 2.8.1)


@dataclass(frozen=True, eq=False)
class Flat:
    """A synthetic flat of a CCD, in the unit of the scan and so of the light it stands for."""

    image: np.ndarray  # (amplifier, y, x)
    variance: np.ndarray


def _exposure(number: int, source: Lamp, band: str, time: np.datetime64 = START) -> Exposure:
    return Exposure(f"e{number}", number, "flat", time, 1.0, 1.0, band, source)


def quiet(site: Observatory) -> Observatory:
    """The same without chance: what is expected of a frame."""
    return Observatory(site.seed, site.camera, site.settings.without(_CHANCE))


def expected(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Electrons (amplifier, y, x) that an exposure makes a second, over those of a lamp or laser that does not vary."""
    rate = charge(quiet(site), exposure, detector) / exposure.exposure_time
    if isinstance(exposure.source, Lamp):
        rate = rate / lamp_brightness(site.seed, site.settings.lamp_drift, exposure)
    return _planes(rate, detector, site.camera)


def _planes(image: np.ndarray, detector: Detector, camera: Camera) -> np.ndarray:
    return np.asarray(split(image.astype(np.float32), detector, camera, fill=np.nan))


def store_scan(
    site: Observatory, folder: Any, wavelengths: np.ndarray, ccds: Sequence[Detector], electrons: float = 1e6
) -> Store:
    """A store with a cube of some CCDs: a slice at each wavelength (nm) that was asked of the laser.

    Parameters
    ----------
    electrons : of a slice, in a mean pixel, of all its exposures together; its noise is Gaussian.
    """
    store, random = create_store(folder, site.camera.name), np.random.default_rng([site.seed, 281])
    camera, slots = site.camera, []
    names = tuple(d.name for d in camera.detectors)
    create_cube(store.url, CUBE, CubeLayout("i2", names, camera.amplifier_names, camera.image_shape))
    for k, nominal in enumerate(wavelengths):
        taken = _exposure(k + 1, Lamp(1.0, float(nominal)), "none")
        number, means = claim_slot(store.url, CUBE, {"wavelength": float(nominal)}), []
        for detector in ccds:
            one = _slice(expected(site, taken, detector), electrons, random)
            good = one.value[np.isfinite(one.value)]
            sums = {"total": float(good.sum(dtype=float)), "pixels": int(good.size)}
            write_slice(store.url, CUBE, (number, detector.name), one, sums)
            means.append(good.mean(dtype=float))
        centre = laser_centre(site.seed, site.settings.laser, taken) + 0.01 * random.standard_normal()
        slots.append(_slot(number, (float(nominal), centre), float(np.mean(means)), taken))
    publish_cube(store.url, CUBE, slots, {})
    return store


def _slot(number: int, wavelengths: tuple[float, float], response: float, taken: Exposure) -> Slot:
    """What is published of a slice that was asked for at one wavelength (nm) and measured at another."""
    time, (nominal, centre) = str(np.datetime_as_string(taken.time, unit="s")), wavelengths
    return Slot(number, centre, 0.01, 1.0, time, response, 1e-3, nominal=nominal, exposures=[taken.name])


def _slice(value: np.ndarray, electrons: float, random: np.random.Generator) -> Slice:
    """What is stored of an image (amplifier, y, x) without noise."""
    slope = np.float32(np.nanmean(value) / electrons)
    noisy = value + np.sqrt(slope * value) * random.standard_normal(value.shape, np.float32)
    lines = np.full(len(value), slope), np.zeros(len(value))
    repeats = np.full(value.shape, _REPEATS, np.uint8)
    return Slice(noisy, np.isnan(value).astype(np.uint16), repeats, repeats[:, 0, 0], *lines)


def lamp(first: float = 300.0, last: float = 1150.0, step: float = 0.5) -> Spectrum:
    """Spectrum of the simulator's broadband lamp."""
    wavelength = np.arange(first, last + step / 2, step)
    return from_photons(wavelength, lamp_spectrum(wavelength), "lamp")


def lamp_light(
    site: Observatory, band: str, detector: Detector, number: int = 10_000, time: np.datetime64 = START
) -> np.ndarray:
    """Electrons (amplifier, y, x) of a photon of the lamp behind a filter, without noise."""
    return expected(site, _exposure(number, Lamp(1.0), band, time), detector)


def places(detector: Detector, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (mm) in the focal plane of ``count`` by ``count`` pixels of a CCD."""
    nodes = [np.linspace(0, size - 1, count) for size in reversed(detector.shape)]
    x, y = ccd_to_focal(detector, *(axis.ravel() for axis in np.meshgrid(*nodes)))
    return np.asarray(x), np.asarray(y)


def exact_passband(site: Observatory, band: str, wavelengths: np.ndarray, count: int = 5) -> Nearby:
    """The true filter between ``count`` by ``count`` places of every CCD, where its curve is known without error."""
    at = [places(detector, count) for detector in site.camera.detectors]
    x, y = (np.concatenate(axis) for axis in zip(*at, strict=True))
    found = transmission(site.seed, site.settings.filters, site.camera, band, wavelengths, x, y)
    names = tuple(f"P{i}" for i in range(len(x)))
    return Nearby(Passband(band, names, x, y, wavelengths, found, np.zeros_like(found)))


def flat_of(store: Store, source: Source, detector: Detector, config: SynthesisConfig = SynthesisConfig()) -> Flat:
    """Synthetic flat of a CCD by what `lsstcal synthesize` runs for it."""
    cube = read_cube(store.url, CUBE)
    scan, names = scan_of(cube, store.camera), tuple(cube.layout.amplifiers)
    weights = make_weights(source.spectrum, source.passband, scan, source.atmosphere, config.weights)
    opener = CubeOpener(store.url, CUBE, cube.pointer.number)
    task = Task((weights,), store.camera, names, opener, config)
    found = dict(synthesis_amplifiers(opener(detector.name), detector, task))
    planes = [np.full((len(names), *store.camera.image_shape), np.nan) for _ in range(2)]
    for name, flat in found.items():
        for plane, variable, power in zip(planes, ("image", "variance"), (1, 2), strict=True):
            plane[names.index(name)] = flat[variable].values[0] * weights.scale**power
    return Flat(*planes)
