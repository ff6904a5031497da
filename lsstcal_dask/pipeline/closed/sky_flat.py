"""Closed loop of sky flats: raw visits of an empty sky, corrected and divided by the flat of their own spectrum (3.6).

Two CCDs of mini9. The flat comes from a cube, from the filter's curve of each CCD, and from the lines that are rebuilt
from what the calibration telescope saw; the frames are those of the simulator's electronics, corrected by biases, by
gains and by this flat as `lsstcal calibrate` does. What is as wide as 100 pixels is left aside: a plane of each block
of 48. In y the flat is that of the slices alone, which in the beam of f/1.23 follow the fringes (Sec. 2.9).
"""

import warnings
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import Frame, RawFrame
from lsstcal_dask.isr.sequence import Site, correct
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import passband_from_table
from lsstcal_dask.pipeline.closed.calibration_day import one_day
from lsstcal_dask.pipeline.closed.flat_scan import Flat, expected, flat_of, store_scan
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.pipeline.closed.target import Target, mean
from lsstcal_dask.pipeline.synthesis import Source
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.sky import fit_sky
from lsstcal_dask.products.sky_model import measured_from_table
from lsstcal_dask.products.sky_time import sky_spectrum
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.products.synthesis import SynthesisConfig
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.filters import wavelength_range
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.recipes import Night, Plan, exposures

__all__ = ["SEEDS", "frame_of", "measure", "product_of_flat", "sky_source"]

SEEDS = 3
_WITHOUT: Final = ("nonlinearity", "crosstalk", "brighter_fatter", "deferred", "stars", "cosmic_rays", "bad_pixels")
_DARK: Final = ("dark_current", "hot_pixels", "blinking_pixels", "persistence", "clouds", "temperature")
_BLOCK, _CELL, _EDGE = 48, 8, 8  # px
_CONFIG: Final = SynthesisConfig.model_validate({"weights": {"uncovered": 0.02, "gap": 0.02}})
_Y: Final = (905.0, 1085.0)  # nm: of y what CCDs see


def measure(seeds: int, bands: str = "ry", ccds: tuple[int, ...] = (0, 1), step: float = 1.0) -> list[Target]:
    """Every target of Sec. 3.6, of a visit of 100 s in each band, and a cube in steps of so many nm."""
    found = []
    for band in bands:
        rows = [_seed(seed, band, ccds, step) for seed in range(1, seeds + 1)]

        def row(key: str, name: str, low: float, high: float) -> Target:
            values = [getattr(one, key) for one in rows]  # noqa: B023
            return Target("3.6", f"{band}, {name}", "", low, high, *mean(values), seeds)  # noqa: B023

        found += [
            row("pixels", "pixels: noise over that of the photons", 0.0, 1.05),
            row("cells", "blocks of 8 pixels: noise over that of the photons", 0.0, 1.05),
            row("left", "blocks of 8 pixels, no noise of the sky: rms of what is left", 0.0, 2e-4),
            row("signal", "signal to noise: change", -1e-3, 1e-3),
            row("cells_without", "without the flat: noise of blocks over that of the photons", 1.15, np.inf),
            row("left_without", "without the flat, no noise of the sky: rms over that with it", 5.0, np.inf),
        ]
    return found


@dataclass(frozen=True)
class _Row:
    pixels: float
    cells: float
    left: float
    signal: float
    cells_without: float
    left_without: float


def site_of_sky(seed: int) -> Observatory:
    """The observatory under an empty sky without clouds, its frames without what has loops of its own."""
    return Observatory(seed, load_camera("mini9"), Settings().without([*_WITHOUT, *_DARK, "dust"]))


def _seed(seed: int, band: str, ccds: tuple[int, ...], step: float) -> _Row:
    site = site_of_sky(seed)
    own = [site.camera.detectors[i] for i in ccds]
    plan = Plan(night=Night(visits=1, filters=band, exposure_time=100.0, fields=1))
    (visit,) = exposures("night", plan, site.settings, site.camera)
    first, last = _Y if band == "y" else wavelength_range(band)
    with TemporaryDirectory() as folder:
        store = store_scan(site, folder, np.arange(first, last + step, step), own, 1e6 * step)
        source = sky_source(site, visit)
        flats = [flat_of(store, source, one, _CONFIG) for one in own]
    level = np.nanmean([one.image for one in flats])
    rows = [_ccd(site, visit, one, _scaled(flat, float(level))) for one, flat in zip(own, flats, strict=True)]
    return _Row(*np.mean(rows, axis=0).tolist())


def _scaled(flat: Flat, level: float) -> Flat:
    return Flat(flat.image / level, flat.variance / level**2)


def sky_source(site: Observatory, visit: Exposure) -> Source:
    """Light of a visit's sky: its lines, and its filter as it is delivered."""
    tables = deliveries("all", [visit])
    measured = measured_from_table(tables[f"spectrum-sky-{visit.name}"](site), visit.name, visit.time)
    glass = Nearby(passband_from_table(tables[f"filter-{visit.filter}"](site)))
    return Source(sky_spectrum(visit.time, [fit_sky(measured)]), glass)


def product_of_flat(site: Observatory, flat: Flat) -> xr.Dataset:
    """A flat of a CCD as the product of a store."""
    planes = {"image": flat.image, "variance": flat.variance}
    names = {"amplifier": list(site.camera.amplifier_names)}
    return xr.Dataset({name: (("amplifier", "y", "x"), plane) for name, plane in planes.items()}, names)


def frame_of(site: Observatory, visit: Exposure, detector: Detector, **flats: xr.Dataset) -> Frame:
    """A visit's frame of a CCD, as read by the simulator's electronics, corrected."""
    counts = next(iter(frames(site, visit, [detector]))).counts
    places = [site.camera.amplifier_names.index(a.name) for a in detector.amplifiers]
    raw = RawFrame(visit.name, detector, visit.dark_time, counts[places])
    gain = true_gains(site, [detector.name]).isel(detector=0)
    products: dict[str, Any] = {"bias": _bias(site, detector), "gain": gain, **flats}
    return correct(raw, Site(site.camera.image_shape), products)


def _bias(site: Observatory, detector: Detector) -> xr.Dataset:
    """Bias of a dozen exposures of a CCD."""
    raw = one_day(site, detector, biases=12)
    made = dict(bias_amplifiers(raw, detector, site.camera.image_shape, StackConfig()))
    return xr.concat([made[a] for a in raw["amplifier"].values], raw["amplifier"], combine_attrs="drop")


def _ccd(site: Observatory, visit: Exposure, detector: Detector, flat: Flat) -> tuple[float, ...]:
    """The numbers of `_Row` of one CCD."""
    plain = frame_of(site, visit, detector)
    even = frame_of(site, visit, detector, sky_flat=product_of_flat(site, flat))
    places = [site.camera.amplifier_names.index(a.name) for a in detector.amplifiers]
    true = expected(site, visit, detector)[places]
    (pixels, cells), (_, without) = _over_noise(even), _over_noise(plain)
    left, before = (_cells(image / np.nanmean(image)) for image in (true / flat.image[places], true))
    with np.errstate(invalid="ignore"):
        ratio = (even.image**2 / even.variance) / (plain.image**2 / plain.variance)
    rms = [float(np.sqrt(np.mean(one**2))) for one in (left, before)]
    return pixels, cells, rms[0], float(np.sqrt(np.nanmedian(ratio)) - 1), without, rms[1] / rms[0]


def _over_noise(frame: Frame) -> tuple[float, float]:
    """Rms of pixels and of cells, less what is wide, over their stated noise."""
    image, variance = (np.where(frame.mask == 0, one, np.nan) for one in (frame.image, frame.variance))
    rows = np.where(frame.mask == 0, frame.row_variance[..., None], np.nan)
    found = []
    for cell in (1, _CELL):
        noise = _in_blocks(variance, cell).mean() / cell**2 + _in_blocks(rows, cell).mean() / cell
        found.append(float(np.sqrt(np.mean(_without_plane(_in_blocks(image, cell)) ** 2) / noise)))
    return found[0], found[1]


def _cells(image: np.ndarray) -> np.ndarray:
    return _without_plane(_in_blocks(image, _CELL))


def _in_blocks(image: np.ndarray, cell: int) -> np.ndarray:
    """Means of cells (block, cell) of an image (amplifier, y, x), of blocks that are whole to a twentieth."""
    image, count = image[:, _EDGE:-_EDGE, _EDGE:-_EDGE], _BLOCK // cell
    ny, nx = (size // _BLOCK * _BLOCK for size in image.shape[1:])
    cut = image[:, :ny, :nx].reshape(len(image), ny // _BLOCK, count, cell, nx // _BLOCK, count, cell)
    parts = np.moveaxis(cut, (3, 6), (-2, -1)).swapaxes(2, 3).reshape(-1, count * count, cell * cell)
    kept = np.isfinite(parts).mean(axis=(1, 2)) > 0.95
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of a cell without a pixel
        whole = np.nanmean(parts[kept], axis=2)
    return np.asarray(np.where(np.isfinite(whole), whole, np.nanmedian(whole, axis=1)[:, None]))


def _without_plane(cells: np.ndarray) -> np.ndarray:
    """Cells (block, cell) less a plane, as large as they would be without it."""
    side = int(np.sqrt(cells.shape[1]))
    y, x = (axis.ravel() / side - 0.5 for axis in np.indices((side, side)))
    design = np.stack([np.ones_like(x), x, y], axis=1)
    rest = cells - cells @ design @ np.linalg.pinv(design)
    return np.asarray(rest / np.sqrt(1 - 3 / side**2))
