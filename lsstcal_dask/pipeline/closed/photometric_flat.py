"""Closed loop of photometric flats: exact where they are put for the sky's, and what stars then tell (Sec. 3.10).

Stars of the reference spectrum, so bright that their noise is 0.1 mmag, are seen at places all over mini9 in some
visits. Frames of theirs are divided by the flat of the sky, and the photometric flat is put in its place; star by star
and visit by visit, whose zero points are fitted, the residuals tell how even the focal plane is.

Both flats are those of the cube itself, with the true filter. A cube has the screen's gradients, ghosts and scattered
light in it, which no star sees: what they do to the stars is given as the best, and a cube without them, as only the
simulator has it, leaves far less. What takes them out are the spots of a projector (2.8.4). Pixels are of one size and
there is no air: these have their own loops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import assemble, split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.flat import divide_by_flat, multiply_by_flat, to_photometric_flat, to_sky_flat
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.pipeline.closed.flat_scan import Flat, exact_passband, flat_of, lamp, store_scan
from lsstcal_dask.pipeline.closed.sky_flat import product_of_flat
from lsstcal_dask.pipeline.closed.target import Target, largest, mean
from lsstcal_dask.pipeline.flatfields import FLAT_FNU, read_lamp
from lsstcal_dask.pipeline.synthesis import Source
from lsstcal_dask.products.synthesis import SynthesisConfig
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.filters import wavelength_range
from lsstcal_dask.simulate.night import band_edges, star_rates
from lsstcal_dask.simulate.recipes import Night, Plan, exposures
from lsstcal_dask.simulate.seds import templates
from lsstcal_dask.simulate.stars import STAR
from lsstcal_dask.variables import MASK_BITS

__all__ = ["SEEDS", "measure"]

SEEDS = 3
_BAND: Final = "r"
_WITHOUT: Final = ("atmosphere", "clouds", "dust", "tree_rings", "edge_distortion", "pixel_jitter", "fringing")
_ILLUMINATION: Final = ("screen", "ghosts", "scatter")
_CONFIG: Final = SynthesisConfig.model_validate({"weights": {"uncovered": 0.01}})
_ELECTRONS: Final = 1e8
_WIDTH, _REACH = 1.6, 8  # px: of the image of a star, and of the aperture
_APART: Final = 36  # px, of stars
_MMAG: Final = 2500 / np.log(10)


def measure(seeds: int, stars: int = 80, visits: int = 16, step: float = 8.0, ccds: Sequence[int] = ()) -> list[Target]:
    """Every target of Sec. 3.10, on some CCDs or on all of mini9, from a cube in steps of so many nm."""
    rows = [_seed(seed, (stars, visits), step, ccds) for seed in range(1, seeds + 1)]

    def row(name: str, high: float, found: tuple[float, float], unit: str = "", best: float = float("nan")) -> Target:
        return Target("3.10", name, unit, 0.0, high, *found, seeds, best)

    bound = float(np.mean([one.bound for one in rows]))
    return [
        row("identity: largest relative error", 1e-6, largest(np.array([one.identity for one in rows]))),
        row("undone: largest relative error", 1e-6, largest(np.array([one.undone for one in rows]))),
        row("star flat, flats of the cube itself: rms", 2.0, mean([one.stars for one in rows]), "mmag", bound),
        row("star flat, without screen, ghosts, scatter: rms", 2.0, mean([one.clean for one in rows]), "mmag"),
        Target("3.10", "star flat, no flat: rms", "mmag", 10.0, np.inf, *mean([one.plain for one in rows]), seeds),
    ]


@dataclass(frozen=True)
class _Row:
    identity: float
    undone: float
    stars: float  # mmag
    clean: float
    plain: float
    bound: float


@dataclass(frozen=True, eq=False)
class _Flats:
    """Flats of a CCD."""

    sky: Flat
    photometric: Flat


def _seed(seed: int, numbers: tuple[int, int], step: float, ccds: Sequence[int]) -> _Row:
    site = Observatory(seed, load_camera("mini9"), Settings().without(_WITHOUT))
    own = [site.camera.detectors[i] for i in ccds] or list(site.camera.detectors)
    clear = Observatory(seed, site.camera, site.settings.without(_ILLUMINATION))
    flats, even = (_flats(one, own, step) for one in (site, clear))
    identity, undone = _identity(site, own[0], flats[0])
    seen = _observe(site, own, numbers, [flats, even])
    residuals = [_residuals(values, seen.star, seen.visit) for values in (*seen.magnitudes, seen.plain)]
    # what the flats of the cube hold that no star sees, at the places of the stars
    bound = float(np.std(_residuals(seen.difference, seen.star, seen.visit)))
    noise = _MMAG / np.sqrt(_ELECTRONS)
    left = [float(np.sqrt(max(np.mean(one**2) - noise**2, 0.0))) for one in residuals]
    return _Row(identity, undone, left[0], left[1], left[2], bound)


def _flats(site: Observatory, ccds: Sequence[Detector], step: float) -> list[_Flats]:
    """Flats of the sky, here a lamp, and of the reference spectrum, each of mean 1 over the CCDs."""
    first, last = wavelength_range(_BAND)
    glass = exact_passband(site, _BAND, np.arange(first + 2, last - 1.5, 0.5))
    with TemporaryDirectory() as folder:
        store = store_scan(site, folder, np.arange(first, last + step, step), ccds, 1e6 * step)
        found = [
            [flat_of(store, Source(spectrum, glass), one, _CONFIG) for one in ccds]
            for spectrum in (lamp(), read_lamp(FLAT_FNU))
        ]
    levels = [np.nanmean([flat.image for flat in own]) for own in found]
    scaled = [
        [Flat(flat.image / level, flat.variance / level**2) for flat in own]
        for own, level in zip(found, levels, strict=True)
    ]
    return [_Flats(*pair) for pair in zip(*scaled, strict=True)]


def _frame(site: Observatory, detector: Detector, image: np.ndarray) -> Frame:
    """A frame of an image (y, x), electrons, without any noise of a readout."""
    camera = site.camera
    places = [camera.amplifier_names.index(a.name) for a in detector.amplifiers]
    planes = np.asarray(split(image.astype(np.float32), detector, camera, fill=np.nan))[places]
    mask = np.where(np.isnan(planes), MASK_BITS["NO_DATA"], 0).astype(np.uint16)
    rows = np.zeros(planes.shape[:2], np.float32)
    return Frame("visit", detector, planes, np.maximum(planes, 1), rows, mask, "electron")


def _flattened(site: Observatory, frame: Frame, flats: _Flats) -> Frame:
    """Divided by the flat of the sky, and that by the photometric flat, as `lsstcal calibrate` does."""
    sky, photometric = (product_of_flat(site, one) for one in (flats.sky, flats.photometric))
    return to_photometric_flat(divide_by_flat(frame, sky), photometric, sky)


def _identity(site: Observatory, detector: Detector, flats: _Flats) -> tuple[float, float]:
    """Largest relative error of ``I F / P`` after ``I / F`` against ``I / P``, and of all of it undone."""
    random = np.random.default_rng([site.seed, 310])
    before = _frame(site, detector, random.poisson(5000, detector.shape).astype(float))
    sky, photometric = (product_of_flat(site, one) for one in (flats.sky, flats.photometric))
    after, direct = _flattened(site, before, flats), divide_by_flat(before, photometric)
    back = multiply_by_flat(to_sky_flat(after, photometric, sky), sky)
    pairs = ((after, direct), (back, before))
    identity, undone = (float(np.nanmax(np.abs(a.image / b.image - 1))) for a, b in pairs)
    return identity, undone


@dataclass(frozen=True, eq=False)
class _Seen:
    star: np.ndarray  # (n,) its number
    visit: np.ndarray
    magnitudes: list[np.ndarray]  # mmag, by flats
    plain: np.ndarray  # mmag, without any
    difference: np.ndarray  # mmag, between the first flats and the second


def _observe(
    site: Observatory, ccds: Sequence[Detector], numbers: tuple[int, int], flats: Sequence[Sequence[_Flats]]
) -> _Seen:
    """Magnitudes of stars at places at random in visits of unlike transparency."""
    stars, visits = numbers
    random = np.random.default_rng([site.seed, 311])
    plan = Plan(night=Night(visits=1, filters=_BAND, exposure_time=1.0, fields=1))
    (taken,) = exposures("night", plan, site.settings, site.camera)
    sizes, clear = 1 + 0.3 * random.random(stars), 1 - 0.2 * random.random(visits)
    star, visit = (axis.ravel() for axis in np.meshgrid(np.arange(stars), np.arange(visits)))
    ccd = random.integers(len(ccds), size=star.size)
    fluxes = np.zeros((len(flats) + 1, star.size))
    for i, detector in enumerate(ccds):
        own = np.flatnonzero(ccd == i)
        at = np.concatenate([_places(detector, int(np.sum(visit[own] == k)), random) for k in range(visits)], axis=1)
        own = own[np.argsort(visit[own], kind="stable")]
        light = _rates(site, taken, detector, at) * sizes[star[own]] * clear[visit[own]]
        for k in range(visits):
            here = visit[own] == k
            image = _image(site, detector, at[:, here], light[here], random)
            frame = _frame(site, detector, image)
            for m, one in enumerate([None, *(group[i] for group in flats)]):
                done = frame if one is None else _flattened(site, frame, one)
                fluxes[m, own[here]] = _apertures(site, done, at[:, here])
    magnitudes = -_MMAG * np.log(fluxes)
    return _Seen(star, visit, list(magnitudes[1:]), magnitudes[0], magnitudes[1] - magnitudes[2])


def _places(detector: Detector, count: int, random: np.random.Generator) -> np.ndarray:
    """Pixels (2, n), x and y, that are nowhere near each other."""
    middles = [np.arange(_APART, n - _APART, _APART) for n in reversed(detector.shape)]
    cells = np.stack([axis.ravel() for axis in np.meshgrid(*middles)]).astype(float)
    chosen = random.choice(cells.shape[1], count, replace=False)
    return np.asarray(cells[:, chosen] + random.uniform(-6, 6, (2, count)))


def _rates(site: Observatory, visit: Exposure, detector: Detector, at: np.ndarray) -> np.ndarray:
    """Electrons of stars of the reference spectrum at pixels (2, n) x and y, `_ELECTRONS` in a mean place."""
    rows = np.zeros(at.shape[1], STAR)
    rows["template"] = len(templates()) - 1
    edges = band_edges(visit.filter)
    found = star_rates(site, visit, detector, edges, np.ones(len(edges) - 1))
    middle = star_rates(site, visit, site.camera.detectors[0], edges, np.ones(len(edges) - 1))
    one = middle(rows[:1], np.full(1, 100.0), np.full(1, 100.0))
    return np.asarray(found(rows, *at) / one * _ELECTRONS)


def _image(
    site: Observatory, detector: Detector, at: np.ndarray, light: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Electrons (y, x) of stars at pixels, with their noise."""
    image, window = np.zeros(detector.shape), np.arange(-_REACH - 4, _REACH + 5)
    for x, y, electrons in zip(*at, light, strict=True):
        rows, columns = (round(place) + window for place in (y, x))
        shape = [np.exp(-0.5 * ((one - place) / _WIDTH) ** 2) for one, place in ((rows, y), (columns, x))]
        stamp = np.outer(*shape)
        image[np.ix_(rows, columns)] += electrons * stamp / stamp.sum()
    return np.asarray(random.poisson(image * site.response(detector)), float)


def _apertures(site: Observatory, frame: Frame, at: np.ndarray) -> np.ndarray:
    """Sums (n,) of apertures about pixels (2, n)."""
    planes = np.full((len(site.camera.amplifier_names), *frame.image.shape[1:]), np.nan, np.float32)
    for amplifier, plane in zip(frame.detector.amplifiers, frame.image, strict=True):
        planes[site.camera.amplifier_names.index(amplifier.name)] = plane
    image = np.asarray(assemble(planes, frame.detector, site.camera, fill=np.nan), float)
    found, window = [], np.arange(-_REACH, _REACH + 1)
    for x, y in at.T:
        rows, columns = (round(place) + window for place in (y, x))
        inside = np.hypot(rows[:, None] - y, columns - x) <= _REACH
        found.append(image[np.ix_(rows, columns)][inside].sum())
    return np.array(found)


def _residuals(magnitude: np.ndarray, star: np.ndarray, visit: np.ndarray) -> np.ndarray:
    """Of magnitudes (n,) less those of stars and zero points of visits, as large as they would be without the fit."""
    design = np.concatenate([np.eye(star.max() + 1)[star], np.eye(visit.max() + 1)[visit]], axis=1)
    rest = magnitude - design @ np.linalg.lstsq(design, magnitude, rcond=None)[0]
    free = len(magnitude) - design.shape[1] + 1
    return np.asarray(rest * np.sqrt(len(magnitude) / free))
