"""Closed loop of fringes: the sky of the simulator divided by what its monochromatic flats predict (Sec. 2.9).

One CCD of mini9, y, with the spectrum of the sky given, in the beam of the telescope (f/1.23) and in a parallel one.
Fringes are ratios of the same light with and without layers, so that dust, screen and noise of pixels take no part; the
layers are fitted to flats of 4e5 electrons. The flat is ``sum_k w_k f_k`` of the flats times `fringe_factor`.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from lsstcal_dask.physics.etalon import COLLIMATED, PUPIL
from lsstcal_dask.pipeline.closed.fringe_sky import amplitudes, flats, fringe_site, hats, night, sky_map
from lsstcal_dask.pipeline.closed.fringe_store import left_by_store
from lsstcal_dask.pipeline.closed.target import Target
from lsstcal_dask.products.etalon_fit import EtalonFit, fit_scan
from lsstcal_dask.products.etalon_start import Blocks
from lsstcal_dask.products.fringe_flat import Light, fringe_factor, fringe_pattern, response_of
from lsstcal_dask.products.fringe_modes import coefficients, fringe_modes
from lsstcal_dask.products.fringes import amplitude, fringe_frame
from lsstcal_dask.simulate.truth import at

__all__ = ["SEEDS", "left_by", "measure"]

SEEDS = 3
_E2V, _ITL = "R22_S00", "R22_S01"
_BEAMS: Final = {"f/1.23": False, "parallel beam": True}
_SHIFT: Final = {0: 0.8, 1: 1.2, 5: 1.2, 6: 0.8}  # OH from v' = 3, 4, 8, 9: those in y, 20 % up or down
_FLATS: Final = 1.2e5  # electrons of all flats of a wavelength, of a store
_FRAMES, _TESTED = 40, 10
_SKY: Final = 6000.0  # electrons of a frame
_BIN: Final = 8  # px, of frames for principal components


def measure(seeds: int) -> list[Target]:
    """Every target of Sec. 2.9, over seeds."""
    rows = [_seed(seed) for seed in range(1, seeds + 1)]

    def target(key: str, name: str, low: float, high: float, unit: str = "") -> Target:
        values = np.array([row[key] for row in rows])
        error = float(values.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else float("nan")
        return Target("2.9", name, unit, low, high, float(values.mean()), error, seeds)

    return [
        target("f/1.23 left", "fringes left of the sky in y, f/1.23", 0.0, 2e-4),
        target("store left", "the same by a store's flat, of 3 exposures of 40,000 electrons each nm", 0.0, 2e-4),
        target("store floor", "what of it photons of these flats leave by themselves", -np.inf, np.inf),
        target("parallel beam share", "fringes left of those injected, parallel beam", 0.0, 0.15),
        target("parallel beam shifted", "OH ratios changed by 20 %: fringes left of those injected", 0.0, 0.15),
        target("f/1.23 change", "change of the fringes missed when OH ratios change, f/1.23", 0.0, 0.15),
        target("parallel beam change", "change of the fringes missed, parallel beam", 0.0, 0.15),
        target("classical", "the same by a classical fringe frame: must fail", 0.15, np.inf),
        target("empirical", "silicon alone, flats interpolated: fringes left of those injected", 0.96, np.inf),
        target("modes", "fringes left by principal components over those left by an oracle", 0.0, 1.2),
        target("modes of truth", "the same over those left by components without noise", -np.inf, np.inf),
    ]


def _seed(seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for beam, collimated in _BEAMS.items():
        found |= {f"{beam} {name}": value for name, value in _synthesis(seed, collimated).items()}
    store = left_by_store(seed, _E2V, _FLATS)
    found |= {"store left": store.fringes, "store floor": store.floor}
    found["classical"] = _classical(seed)
    found["empirical"] = _empirical(seed)
    found["modes"], found["modes of truth"] = _modes(seed)
    return found


def _even(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.float64)
    return image / image.mean() - 1


def _true(seed: int, collimated: bool, name: str, photons: np.ndarray) -> np.ndarray:
    """Fringes (y, x) of the sky, relative."""
    return sky_map(seed, collimated, name, photons) / sky_map(seed, collimated, name, photons, fringes=False)


def _interpolated(seed: int, collimated: bool, name: str, photons: np.ndarray) -> np.ndarray:
    """Fringes (y, x) of the flat that is interpolated from monochromatic ones."""
    on, off = (flats(seed, collimated, name, fringes) for fringes in (True, False))
    weights = hats(on.line.wavelength, night(seed).line.wavelength, photons)
    return np.tensordot(weights, on.exact, 1) / np.tensordot(weights, off.exact, 1)


@lru_cache(maxsize=4)
def _fit(seed: int, collimated: bool, name: str) -> tuple[EtalonFit, Blocks]:
    scan = flats(seed, collimated, name)
    return fit_scan(scan.line, scan.value, scan.variance, COLLIMATED if collimated else PUPIL)


def _synthesis(seed: int, collimated: bool) -> dict[str, float]:
    """What dividing by the synthesised flat leaves, before and after the lines changed."""
    (fit, blocks), parts = _fit(seed, collimated, _E2V), night(seed).parts
    y, x = (np.arange(n) for n in blocks.size)
    injected, left, predicted = {}, {}, {}
    for name, scale in {"share": {}, "shifted": _SHIFT}.items():
        photons = np.array([scale.get(i, 1.0) for i in range(len(parts))]) @ parts
        seen, _ = _lights(fit, blocks, photons, seed)
        injected[name] = _even(_true(seed, collimated, _E2V, photons))
        predicted[name] = _even(fringe_pattern(fit, y, x, seen))
        left[name] = left_by(fit, blocks, (seed, collimated), photons)
    changes = injected["shifted"] - injected["share"], predicted["shifted"] - predicted["share"]
    shares = {name: float(left[name] / injected[name].std()) for name in injected}
    return {**shares, "left": float(left["share"]), "change": float((changes[0] - changes[1]).std() / changes[0].std())}


def _lights(fit: EtalonFit, blocks: Blocks, photons: np.ndarray, seed: int) -> tuple[Light, Light]:
    """The sky as the CCD sees it, and the flats of which its flat is made."""
    response, sky, scan = response_of(fit, blocks), night(seed).line, blocks.line
    seen = Light(sky, photons * np.interp(sky.wavelength, scan.wavelength, response))
    return seen, Light(scan, hats(scan.wavelength, sky.wavelength, photons) * response)


def left_by(fit: EtalonFit, blocks: Blocks, where: tuple[int, bool], photons: np.ndarray) -> float:
    """Fringes of a sky that its flat leaves, rms relative to the sky, with layers that were fitted.

    Parameters
    ----------
    where : seed, and whether the beam is parallel.
    photons : (bin,) of the sky, in the bins of `fringe_sky.night`.
    """
    seed, collimated = where
    y, x = (np.arange(n) for n in blocks.size)
    factor = fringe_factor(fit, y, x, *_lights(fit, blocks, photons, seed))
    flat = _interpolated(seed, collimated, _E2V, photons) * factor
    return float(_even(_true(seed, collimated, _E2V, photons) / flat).std())


def _frames(seed: int, scale: np.ndarray, per_part: tuple[np.ndarray, np.ndarray], level: float) -> np.ndarray:
    """Flat-fielded frames (visit, y, x) with fringes and photon noise, of brightness ``scale`` (visit, component)."""
    random = np.random.default_rng([seed, 9])
    on, off = (np.tensordot(scale, maps, 1) for maps in per_part)
    smooth = on / off * (level / np.mean(on / off, axis=(1, 2), keepdims=True))
    return random.poisson(smooth).astype(np.float32)


@lru_cache(maxsize=2)
def _parts(seed: int, collimated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Electrons (component, y, x) of each component with and without fringes."""
    return tuple(  # type: ignore[return-value]
        np.stack([sky_map(seed, collimated, _E2V, part, fringes) for part in night(seed).parts])
        for fringes in (True, False)
    )


def _classical(seed: int) -> float:
    """Change of the fringes missed, of itself, by a frame that is the median of visits before the lines changed."""
    parts = _parts(seed, True)
    images = _frames(seed, amplitudes(seed, _FRAMES), parts, 1e6)
    nothing = np.zeros(images.shape[1:], bool)
    frame, _ = fringe_frame(images, np.broadcast_to(nothing, images.shape), degree=0)
    true, found = [], []
    for change in ({}, _SHIFT):
        scale = np.array([change.get(i, 1.0) for i in range(len(parts[0]))])
        (image,) = _frames(seed, scale[None], parts, 1e6)
        found.append(amplitude(image, nothing, frame, image, degree=0)[0] * _even(1 + frame))
        true.append(_even(np.tensordot(scale, parts[0], 1) / np.tensordot(scale, parts[1], 1)))
    changed = true[1] - true[0]
    return float((changed - (found[1] - found[0])).std() / changed.std())


def _empirical(seed: int) -> float:
    """Fringes of silicon alone left by interpolated flats, of those injected; what follows thickness smoothly apart."""
    photons = night(seed).parts.sum(axis=0)
    site = fringe_site(seed, True)
    d = np.asarray(at(site, "thickness", detector=_ITL)[0], float).ravel()
    columns = np.polynomial.legendre.legvander((d - d.mean()) / np.ptp(d) * 2, 3)

    def rough(image: np.ndarray) -> float:
        values = _even(image).ravel()
        return float(np.std(values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]))

    true = _true(seed, True, _ITL, photons)
    return rough(true / _interpolated(seed, True, _ITL, photons)) / rough(true)


def _modes(seed: int, count: int = 3) -> tuple[float, float]:
    """Fringes left in other frames by principal components over those left by what an oracle makes of the same frames.

    The oracle knows the coefficients, not the maps; over those left by maps of the truth, which have no noise.
    """
    scale, parts = amplitudes(seed, _FRAMES + _TESTED), _parts(seed, True)
    images = _frames(seed, scale, parts, _SKY)
    seen = _binned(images / images.mean(axis=(1, 2), keepdims=True)) - 1
    on, off = (np.tensordot(scale, maps, 1) for maps in parts)
    true = _binned(on / off)
    true = true / true.mean(axis=1, keepdims=True) - 1
    weight = np.full(seen.shape, _SKY * _BIN**2)
    # what an oracle knows: the coefficients of the largest modes of the truth
    u, s, exact = np.linalg.svd(true[:_FRAMES], full_matrices=False)
    c = u[:, :count] * s[:count]
    known = np.linalg.lstsq(c, seen[:_FRAMES], rcond=None)[0]
    found = fringe_modes([seen[:_FRAMES]], [weight[:_FRAMES]], count).maps[0]
    left = [
        np.std(true[_FRAMES:] - coefficients([maps], [seen[_FRAMES:]], [weight[_FRAMES:]])[0] @ maps)
        for maps in (found, known, exact[:count])
    ]
    return float(left[0] / left[1]), float(left[0] / left[2])


def _binned(images: np.ndarray) -> np.ndarray:
    """Means (frame, block)."""
    n, ny, nx = images.shape
    return images.reshape(n, ny // _BIN, _BIN, nx // _BIN, _BIN).mean(axis=(2, 4)).reshape(n, -1)
