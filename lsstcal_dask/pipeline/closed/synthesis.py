"""Closed loop of synthetic broadband flats: weighted sums of a scan against the lamp behind a filter (Sec. 2.8.1).

The light is the simulator's, without dust and ghosts, which a scan without filter does not have as the lamp behind one
has them. Slices of 1e6 electrons, 1 nm apart over i, with the laser where it really was to 0.01 nm.

How well a flat is known at large scales is how well the filter is. With its true curves there is nothing but noise.
One measured curve for each CCD tells what is between them, as the filter is smooth: enough on LSSTCam, whose CCDs are a
fifteenth of the field. On mini9 a CCD is a third of it, and the edges of the filter wander by 0.3 nm, within a sixth:
nine curves do not tell it. What is given as the best is left by one who knows the curves without error, how far and
over which distance the edges wander, and how much they change with the radius.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from scipy.special import j1

from lsstcal_dask.instrument import Camera, load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.closed.flat_scan import CUBE, exact_passband, flat_of, lamp, lamp_light, places, store_scan
from lsstcal_dask.pipeline.closed.target import Target, mean, pulls
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.synthesis import Source
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.filters import filter_curves, transmission, wavelength_range
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.optics import EDGE, edge_mm, field_radius
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.cubewriting import publish_cube

__all__ = ["SEEDS", "measure"]

SEEDS = 3
_BLOCK: Final = 16  # pixels of the large scale
_BAND, _BANDS = "i", "ugrizy"
_FEW: Final = 20  # CCDs
_CYCLES: Final = 1.5  # over the radius of the field, of the shortest wave of a filter's edges
_RADIAL: Final = 2.0  # times those waves, what changes with the radius: what serves the oracle best


def measure(
    seeds: int, ccds: Sequence[int] = (0, 1), step: float = 1.0, delivered: Mapping[str, str] | None = None
) -> list[Target]:
    """Every target of Sec. 2.8.1, of some CCDs of mini9 and a scan in steps of so many nm.

    Parameters
    ----------
    delivered : cameras, with bands, whose filters are known by a measured curve for each CCD.
    """
    known = {"lsstcam": _BANDS, "mini9": "r"} if delivered is None else delivered
    rows = [_seed(seed, ccds, step) for seed in range(1, seeds + 1)]

    def target(key: str, name: str, low: float, high: float) -> Target:
        return Target("2.8.1", name, "", low, high, *mean([row.numbers[key] for row in rows]), seeds)

    found = [
        target("pixel", "true filter: rms of pixels", 0.0, 2e-4),
        target("over noise", "true filter: rms of pixels over the noise of the photons", 0.0, 1.2),
        target("large", "true filter: rms of blocks of 16 pixels", 0.0, 3e-4),
        *pulls("2.8.1", "pixels", np.array([row.pull for row in rows])),
    ]
    for key in _SPOILT:
        found.append(target(key, f"{key}: large scales over those without that error", *_SPOILT[key]))
    for name, bands in known.items():
        for one in bands:
            found += _delivered(load_camera(name), one, seeds)
    return found


_SPOILT: Final = {
    "energies for photons": (5.0, np.inf),
    "response over wavelength left out": (5.0, np.inf),
    "one filter curve for all places": (5.0, np.inf),
    "wavelengths 3 nm off": (5.0, np.inf),
    "wavelengths as asked of the laser": (-np.inf, np.inf),
}
"""What is done wrong, and by how much large scales must be worse; 0.1 nm of jitter hardly shows in one flat."""


@dataclass(frozen=True, eq=False)
class _Row:
    numbers: dict[str, float]
    pull: np.ndarray  # (pixel,)


def _seed(seed: int, ccds: Sequence[int], step: float) -> _Row:
    """Scan, flats and their errors of one observatory; as many photons in all, whatever the steps."""
    camera = load_camera("mini9")
    site = Observatory(seed, camera, Settings().without(["dust", "ghosts", "scatter"]))
    first, last = wavelength_range(_BAND)
    own, nm = [camera.detectors[i] for i in ccds], np.arange(first, last + step, step)
    truth = np.stack([lamp_light(site, _BAND, one) for one in own])
    glass = exact_passband(site, _BAND, np.arange(first + 2, last - 1.5, 0.5))
    with TemporaryDirectory() as folder:
        store = store_scan(site, folder, nm, own, 1e6 * step)
        right = Source(lamp(), glass)
        pixel, large, floor, pull = _misses(store, right, own, truth)
        numbers = {"pixel": pixel, "over noise": pixel / floor, "large": large}
        for what, source in _wrong(store, right).items():
            numbers[what] = _misses(store, source, own, truth)[1] / large
        for what, shift in {"wavelengths 3 nm off": 3.0, "wavelengths as asked of the laser": None}.items():
            _move(store, shift)
            numbers[what] = _misses(store, right, own, truth)[1] / large
    return _Row(numbers, pull)


def _wrong(store: Store, right: Source) -> dict[str, Source]:
    """Sources with one ingredient wrong."""
    light, glass = right.spectrum, right.passband
    assert isinstance(glass, Nearby)
    cube = read_cube(store.url, CUBE)
    seen = np.interp(light.wavelength, cube.column("wavelength"), cube.column("response"))
    middle = Curve(glass.wavelength, np.clip(glass.at(0.0, 0.0), 0, 1))
    return {
        "energies for photons": replace(right, spectrum=_times(light, 1 / light.wavelength)),
        "response over wavelength left out": replace(right, spectrum=_times(light, 1 / seen)),
        "one filter curve for all places": replace(right, passband=middle),
    }


def _times(spectrum: Spectrum, factor: np.ndarray) -> Spectrum:
    return replace(spectrum, density=spectrum.density * factor)


def _move(store: Store, by: float | None) -> None:
    """Publish the cube again with wavelengths longer by some nm than asked for, or (None) as asked for."""
    slots = read_cube(store.url, CUBE).pointer.slots
    publish_cube(store.url, CUBE, [replace(one, wavelength=one.nominal + (by or 0.0)) for one in slots], {})


def _misses(
    store: Store, source: Source, ccds: Sequence[Detector], truth: np.ndarray
) -> tuple[float, float, float, np.ndarray]:
    """Rms of synthetic over true flat: of pixels, and of blocks; the noise of the former; and pulls (pixel,)."""
    flats = [flat_of(store, source, one) for one in ccds]
    image, variance = (np.stack([getattr(one, name) for one in flats]) for name in ("image", "variance"))
    level = np.nanmean(image / truth)
    ratio, noise = image / truth / level - 1, np.sqrt(variance) / truth / level
    pull = (ratio / noise)[np.isfinite(ratio)]
    ny, nx = (size // _BLOCK * _BLOCK for size in ratio.shape[2:])
    parts = ratio[..., :ny, :nx].reshape(*ratio.shape[:2], ny // _BLOCK, _BLOCK, nx // _BLOCK, _BLOCK)
    whole = parts.mean(axis=(3, 5))  # of blocks without a gap
    pixel, large, floor = (float(np.sqrt(np.nanmean(one**2))) for one in (ratio, whole, noise))
    return pixel, large, floor, pull


def _delivered(camera: Camera, band: str, seeds: int) -> list[Target]:
    """Light behind a filter of which a measured curve is known for each CCD, at places all over these."""
    few = len(camera.detectors) < _FEW
    count = seeds * (4 if few else 1)
    found = np.array([_of_curves(camera, band, seed) for seed in range(1, count + 1)])
    name = f"{camera.name}, {band}, a measured curve for each CCD: rms"
    best = float(found[:, 2].mean()) if few else float("nan")
    within = Target("2.8.1", f"{name} within {EDGE} degrees", "", 0.0, 3e-4, *mean(found[:, 0]), count, best)
    if few:
        return [within]
    return [within, Target("2.8.1", f"{name} to the last corner", "", -np.inf, np.inf, *mean(found[:, 1]), count)]


def _of_curves(camera: Camera, band: str, seed: int) -> tuple[float, float, float]:
    """Rms of light over the true one within the field and all over the CCDs, and the best there could be."""
    settings = Settings().filters
    first, last = wavelength_range(band)
    nm = np.arange(first - 10, last + 10, 2.0)
    lit = lamp_spectrum(nm)
    x, y = (np.concatenate(axis) for axis in zip(*[places(d, 5) for d in camera.detectors], strict=True))
    centres = np.array([d.center_mm for d in camera.detectors])
    curves = filter_curves(seed, settings, camera, band, nm)["transmission"].values
    names = tuple(d.name for d in camera.detectors)
    measured = Passband(band, names, centres[:, 0], centres[:, 1], nm, curves, np.zeros_like(curves))
    true = [np.log(transmission(seed, settings, camera, band, nm, *at) @ lit) for at in ((x, y), centres.T)]
    miss = np.log(Nearby(measured).at(x, y) @ lit) - true[0]
    inside = np.hypot(*field_radius(camera, x, y)) <= EDGE
    share = _oracle(centres / edge_mm(camera), np.stack([x, y], 1) / edge_mm(camera))
    return float(np.std(miss[inside])), float(np.std(miss)), float(np.std((true[0] - true[1] @ share)[inside]))


def _oracle(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Shares (m, n) of exact values at places in those at others, by one who knows the covariance of what changes.

    It is that of the waves, and of a change as the square and as the fourth power of the radius, `_RADIAL` as large.
    """

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        radial = np.square(a).sum(axis=1)[:, None] * np.square(b).sum(axis=1)
        return _waves(a, b) + _RADIAL**2 * (radial + radial**2)

    ones = np.ones((len(known), 1))
    system = np.block([[alike(known, known), ones], [ones.T, np.zeros((1, 1))]])
    right = np.concatenate([alike(known, wanted), np.ones((1, len(wanted)))])
    return np.asarray(np.linalg.solve(system, right)[: len(known)])


def _waves(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation (m, n), at places over the radius of the field, of waves of every direction and up to a shortest."""
    z = 2 * np.pi * _CYCLES * np.hypot(*(a.T[:, :, None] - b.T[:, None]))
    return np.asarray(np.where(z > 1e-9, 2 * j1(z) / np.maximum(z, 1e-9), 1.0))
