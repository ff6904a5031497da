"""The whole way on made-up data: raw files in, products and a calibrated frame out, compared with the truth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Amplifier, Detector
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.pipeline.build import Built, build
from lsstcal_dask.pipeline.calibrate import calibrate, find_calibrated
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.exchange import import_inputs
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.observatory import SimulateConfig, open_observatory, simulate
from lsstcal_dask.pipeline.pictures import show_picture
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.pipeline.verify import verify, write_report
from lsstcal_dask.simulate import truth
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.dark import ROW_TIME
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.frames import charge
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.recipes import CalibrationDay, Night, Plan, exposures
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.storage.products import list_products, open_product

__all__ = ["Comparison", "compare", "run_demo"]

_CAMERA = "mini9"
_PLAN = Plan(
    calibration_day=CalibrationDay(biases=20, darks=6, xrays=6, pairs=4, faintest=5e3, brightest=45e3, flats=0),
    night=Night(visits=1, filters="r"),
)
_DELIVERED = ("linearity", "crosstalk")
"""Products that would take many more exposures to measure: those of the camera team are used."""

_COMPARED = 2
"""CCDs of the science frame that are compared with the truth, which takes seconds to work out for each."""

_RECIPES = ("calibration-day", "night")


@dataclass(frozen=True)
class Comparison:
    """How well one quantity was recovered."""

    quantity: str
    found: float
    low: float
    high: float

    @property
    def good(self) -> bool:
        """Whether the quantity is within its limits."""
        return self.low <= self.found <= self.high

    def line(self) -> str:
        """One line for a person."""
        mark = "ok" if self.good else "OUT OF LIMITS"
        return f"  {self.quantity:<58} {self.found:>8.4f}   ({self.low:g} to {self.high:g})  {mark}"


def run_demo(folder: Path, seed: int, compute: Compute, say: Callable[[str], None]) -> dict[str, Any]:
    """Make raw files of a small camera in ``folder`` and do with them what a user would.

    Parameters
    ----------
    say : called with each line for the user.

    Returns
    -------
    Where everything is, the comparisons with the truth, and ``failures``: those out of their limits.

    Raises
    ------
    CalibrationError
        The folder exists, or a step failed.
    """
    if folder.exists():
        raise CalibrationError(f"{folder} exists: name another folder, or remove it")
    raw, url = folder / "raw", str(folder / "store")
    raw.mkdir(parents=True)
    store = create_store(url, _CAMERA)
    settings = SimulateConfig(recipe=_PLAN, effects=Settings())
    files: list[str] = []
    for recipe in _RECIPES:
        made = simulate(store, recipe, settings, compute, seed=seed, fits=raw, compress=False, maps=False)
        if made.errors:
            raise CalibrationError(f"demo: {made.errors[0]}")
        files += made.files
    say(f"{len(files)} raw files of camera {_CAMERA} (9 CCDs of 16 amplifiers), simulated -> {raw}")
    say(f"$ lsstcal ingest {url} --camera {_CAMERA} {raw}/*.fits")
    report = ingest(store, sorted(files), compute)
    if report.errors:
        raise CalibrationError(report.errors[0])
    say(f"  {len(report.ingested)} frames ingested")
    for name in _DELIVERED:
        say(f"$ lsstcal import {url} {name} --inputs")
        for _, built in import_inputs(store, compute, names=(name,)):
            say(f"  {name} {_pointer(built).version}: {_pointer(built).verdict}")
    say(f"$ lsstcal build {url}")
    for name, built in build(store, [], Config(), compute):
        say(
            f"  not built: {built.note}"
            if built.note
            else f"  {name} {_pointer(built).version}: {_pointer(built).verdict}"
        )
    site = open_observatory(store)
    (science,) = exposures("night", _PLAN, site.settings, site.camera)
    say(f"$ lsstcal calibrate {url} {science.name}")
    for name, built in calibrate(store, [science.name], Config().calibrate, compute):
        say(f"  {name} {_pointer(built).version}: {_pointer(built).verdict}")
    say(f"$ lsstcal verify {url} -o {folder / 'report.html'}")
    judged = verify(store, compute)
    write_report(judged, store, folder / "report.html")
    say(f"  {judged.verdict}: " + ", ".join(f"{judged.count(v)} {v}" for v in ("FAIL", "WARN", "PASS")))
    pictures = [_show(store, folder, what, say) for what in ("bias", "gain", "dark", science.name)]
    found = compare(store, science)
    say("how well the truth was recovered:")
    for one in found:
        say(one.line())
    say(
        f"everything is in {folder}: raw/ the FITS files, store/ what was made, report.html the verdict, *.png pictures"
    )
    return {
        "folder": str(folder),
        "store": url,
        "pictures": pictures,
        "comparisons": [{"quantity": c.quantity, "found": c.found, "low": c.low, "high": c.high} for c in found],
        "failures": [f"{c.quantity}: {c.found:.4f}, expected {c.low:g} to {c.high:g}" for c in found if not c.good],
    }


def _pointer(built: Built) -> Any:
    if built.pointer is None or built.errors:
        raise CalibrationError((built.errors or [built.note])[0])
    return built.pointer


def _show(store: Store, folder: Path, what: str, say: Callable[[str], None]) -> str:
    path = folder / f"{what}.png"
    say(f"$ lsstcal show {folder / 'store'} {what} -o {path}")
    choice = dict.fromkeys(("variable", "version", "detector", "amplifier", "raw"))
    return str(show_picture(store, what, path, choice))


def _amplifiers(site: Observatory) -> Iterator[tuple[Detector, Amplifier]]:
    for detector in site.camera.detectors:
        for amplifier in detector.amplifiers:
            yield detector, amplifier


def _expected(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Electrons (amplifier, y, x) of light that an exposure should show: what the sensor collects without noise.

    NaN where the truth is not the light: at defects, cosmic rays and saturated pixels.
    """
    settings = site.settings.without(("shot_noise", "cosmic_rays", "dark_current", "hot_pixels", "blinking_pixels"))
    light = charge(Observatory(site.seed, site.camera, settings), exposure, detector)
    hit, _ = cosmic_rays(site.seed, site.settings.cosmic_rays, detector, exposure.number, exposure.dark_time, ROW_TIME)
    wells = truth.at(site, "full_well", detector=detector.name, amplifier=detector.amplifiers[0].name)
    light[(hit != 0) | (light > 0.9 * wells) | (site.sensitivity(detector) < 1)] = np.nan
    return np.asarray(split(light, detector, site.camera))


def compare(store: Store, science: Exposure) -> list[Comparison]:
    """Compare the products and the calibrated frame with the truth, as pulls: error over its own sigma.

    Limits of a mean pull are four of its standard errors; those of a width allow for the errors' own errors.
    """
    site = open_observatory(store)
    products = {}
    for name in ("bias", "gain", "dark"):
        _, version = max((p.created, p.version) for p in list_products(store.url, name))
        products[name] = open_product(store.url, name, version, chunked=False).load()
    frame = find_calibrated(store, science.name)
    products["frame"] = open_product(store.url, frame.name, frame.version, chunked=False).load()
    pulls: dict[str, list[np.ndarray]] = {}
    dark: dict[str, np.ndarray] = {}
    light: dict[str, np.ndarray] = {}
    for detector, amplifier in _amplifiers(site):
        here = {"detector": detector.name, "amplifier": amplifier.name}
        place = site.camera.amplifier_names.index(amplifier.name)
        if detector.name not in dark:
            dark[detector.name] = np.asarray(split(site.dark_rate(detector), detector, site.camera))
            if len(light) < _COMPARED:
                light[detector.name] = _expected(site, science, detector)
        real = {"bias": truth.at(site, "bias", **here), "dark": dark[detector.name][place]}
        if detector.name in light:
            real["frame"] = light[detector.name][place]
        parts = {name: product.sel(here) for name, product in products.items()}
        for name, values in real.items():
            pulls.setdefault(name, []).append(_image_pulls(parts[name], values, amplifier.data.shape))
        gain = truth.at(site, "gain", **here)
        for method in ("gain_fe55", "gain_pair"):
            miss = float(parts["gain"][method]) - gain
            pulls.setdefault(method, []).append(np.array([miss / float(parts["gain"][f"{method}_error"])]))
        noise = float(parts["bias"]["read_noise"]) * gain
        quantised = float(np.hypot(truth.at(site, "read_noise", **here), gain / np.sqrt(12)))
        pulls.setdefault("noise", []).append(np.array([noise / quantised - 1]))
    found = [
        _width("bias: error of a pixel over its sigma, rms", pulls["bias"], 0.03),
        _width("dark: error of a pixel over its sigma, rms", pulls["dark"], 0.03),
        _width("science, 2 CCDs: error of a pixel over its sigma, rms", pulls["frame"], 0.03),
        _width("gain from 55Fe: error over its sigma, rms of 144", pulls["gain_fe55"], 0.24),
        _width("gain from flats: error over its sigma, rms of 144", pulls["gain_pair"], 0.24),
    ]
    scatter = float(np.sqrt(np.mean(np.concatenate(pulls["noise"]) ** 2)))
    found.append(Comparison("read noise: relative error, rms of 144", scatter, 0, 0.01))
    return found


def _image_pulls(part: xr.Dataset, real: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pulls of the good pixels of one amplifier."""
    ny, nx = shape
    image, variance, real = part["image"].values[:ny, :nx], part["variance"].values[:ny, :nx], real[:ny, :nx]
    variance = variance + part["row_variance"].values[:ny, None]
    return ((image - real) / np.sqrt(variance))[(part["mask"].values[:ny, :nx] == 0) & np.isfinite(real)]


def _width(quantity: str, pulls: list[np.ndarray], tolerance: float) -> Comparison:
    values = np.concatenate(pulls)
    return Comparison(quantity, float(np.sqrt(np.mean(values**2))), 1 - tolerance, 1 + tolerance)
