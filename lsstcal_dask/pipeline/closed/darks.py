"""Closed loop of the master dark: 20 exposures with cosmic rays against the true rate of every pixel (Sec. 2.7).

A CCD of mini9 with its dark current and many hot pixels, muons, worms and soft events at 1 / cm2 / min, and the true
bias. The bound is that of exposures without cosmic rays: read noise, rounding and Poisson noise of each pixel.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.raw import place, plain_exposure, raw_exposures, true_gains
from lsstcal_dask.pipeline.closed.target import Target, mean, ratio, share
from lsstcal_dask.products.dark import DarkConfig, dark_amplifiers
from lsstcal_dask.products.stack import CosmicMethod
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.dark import ROW_TIME, HotPixels
from lsstcal_dask.simulate.truth import amplifiers, at

__all__ = ["SEEDS", "measure"]

SEEDS = 12
EXPOSURES, SECONDS = 20, 300.0
EFFECTS = (
    *("dark_current", "hot_pixels", "cosmic_rays", "shot_noise"),
    *("gain", "read_noise", "digitisation", "overscan_drift", "bias_structure"),
)
HOT = (0.1, 1.0, 10.0, 50.0)  # electron/s, edges of classes
FAINT = 0.1  # electron/s, below which a pixel is not hot
_NUMBERS = re.compile(r"(\d+) darks are as good as ([\d.]+)")


@dataclass(frozen=True)
class Dark:
    """One seed: arrays (amplifier, y, x) along ``camera.amplifier_names``, NaN where there is no pixel."""

    rate: np.ndarray  # electron/s, true
    bound: np.ndarray  # electron/s, error of the best estimate without cosmic rays
    hits: np.ndarray  # exposures in which a cosmic ray left more than 6 sigma
    found: xr.Dataset
    inflation: np.ndarray  # (amplifier,) as the product says; NaN where it rejects


def make(seed: int, method: CosmicMethod, camera_name: str = "mini9") -> Dark:
    """Darks of a CCD and their combination."""
    camera = load_camera(camera_name)
    settings = Settings().only(EFFECTS).model_copy(update={"hot_pixels": HotPixels(density=2e-3)})
    site, detector = Observatory(seed, camera, settings), camera.detectors[seed % len(camera.detectors)]
    taken = [plain_exposure(1 + i, "dark", SECONDS) for i in range(EXPOSURES)]
    raw = raw_exposures(site, taken, detector).isel(detector=0)
    products = {"gain": true_gains(site, [detector.name]).isel(detector=0), "bias": _true_bias(site, detector)}
    made = dict(
        dark_amplifiers(raw, detector, camera.image_shape, DarkConfig(cosmic_rays=method, reject=100), products)
    )
    names = list(camera.amplifier_names)
    found = xr.concat([made[name].drop_attrs() for name in names], "amplifier").assign_coords(amplifier=names)
    said = [_NUMBERS.search(" ".join(made[name].attrs["remarks"])) for name in names]
    inflation = np.array([float(s.group(1)) / float(s.group(2)) if s else np.nan for s in said])
    rate, bound, hits = _truth(site, detector, taken)
    return Dark(rate, bound, hits, found, inflation)


def _true_bias(site: Observatory, detector: Detector) -> xr.Dataset:
    names, (ny, nx) = list(site.camera.amplifier_names), site.camera.image_shape
    image = np.full((len(names), ny, nx), np.nan, np.float32)
    for a in detector.amplifiers:
        own = at(site, "bias", detector=detector.name, amplifier=a.name)
        image[place(site, a.name), : own.shape[0], : own.shape[1]] = own
    dims, zero = ("amplifier", "y", "x"), np.zeros_like(image)
    variables = {"image": (dims, image), "variance": (dims, zero), "row_variance": (dims[:2], zero[:, :, 0])}
    return xr.Dataset(variables, {"amplifier": names})


def _truth(site: Observatory, detector: Detector, taken: list[Exposure]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate, bound and number of hits of every pixel."""
    camera = site.camera
    rate = split(site.dark_rate(detector), detector, camera, fill=np.nan)
    noise = np.full((len(camera.amplifier_names), 1, 1), np.nan)
    for own in amplifiers(site, detector):
        noise[place(site, own["amplifier"])] = own["read_noise"] ** 2 + own["gain"] ** 2 / 12
    seconds = taken[0].dark_time + detector.row_time * np.arange(camera.image_shape[0])[:, None]
    variance = noise + rate * seconds
    hits = np.zeros(rate.shape, int)
    for one in taken:
        tracks, _ = cosmic_rays(site.seed, site.settings.cosmic_rays, detector, one.number, one.dark_time, ROW_TIME)
        hits += split(tracks, detector, camera, fill=0.0) > 6 * np.sqrt(variance)
    return rate, np.sqrt(variance / len(taken)) / seconds, hits


def measure(seeds: int, method: CosmicMethod = "temporal") -> list[Target]:
    """Targets of the combination by ``method``, and what it costs to reject nothing."""
    darks = [make(seed, method) for seed in range(1, seeds + 1)]

    def row(name: str, unit: str, low: float, high: float, value: tuple[float, float]) -> Target:
        return Target("2.7", name, unit, low, high, *value, seeds)

    hits = sum(int(one.hits.sum()) for one in darks)
    gone = sum(float(np.minimum(one.hits, EXPOSURES - one.found["frames"].values).sum()) for one in darks)
    pull, shift = zip(*(_errors(one) for one in darks), strict=True)
    targets = [
        row(f"{hits} pixels hit by more than 6 sigma: rejected", "", 0.98, np.inf, share(gone, hits)),
        row("eta", "", -np.inf, 1.05, ratio(_ragged(list(pull)), np.ones(1))),
        row("mean bias", "electron/s", -1e-4, 1e-4, mean(shift)),
    ]
    for low, high in pairwise(HOT):
        of_class = np.concatenate([_hot_pulls(one, low, high) for one in darks])
        value = float(of_class.mean()), float(of_class.std() / np.sqrt(of_class.size))
        targets.append(row(f"hot pixels of {low:g}-{high:g} electron/s: mean pull", "", -0.3, 0.3, value))
    plain = [make(seed, "none") for seed in range(1, seeds + 1)]
    worse = [float(np.mean(_errors(one)[0] ** 2)) for one in plain]
    said = [float(np.mean(one.inflation)) for one in plain]
    told = np.array(said) / worse
    return [
        *targets,
        row("without rejection: times as many exposures needed", "", -np.inf, np.inf, mean(worse)),
        row("the product's own estimate of that, over it", "", 0.9, 1.1, mean(told)),
    ]


def _errors(one: Dark) -> tuple[np.ndarray, float]:
    """Errors over the bound of the pixels (n,) that are not hot, and their mean in electron/s."""
    faint = one.rate < FAINT
    error = one.found["image"].values.astype(float) - one.rate
    return (error / one.bound)[faint], float(error[faint].mean())


def _ragged(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, NaN at their ends."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for into, row in zip(out, rows, strict=True):
        into[: len(row)] = row
    return out


def _hot_pulls(one: Dark, low: float, high: float) -> np.ndarray:
    """Pulls (n,) of the pixels of a class of rates."""
    found = one.found
    error = np.sqrt(found["variance"].values + found["row_variance"].values[:, :, None])
    pull = (found["image"].values - one.rate) / error
    return np.asarray(pull[(one.rate >= low) & (one.rate < high)])
