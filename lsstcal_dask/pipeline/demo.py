"""The whole way on made-up data: raw files in, products and a calibrated frame out, compared with the truth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Amplifier, Camera, Detector, load_camera, write_frame
from lsstcal_dask.pipeline.build import Built, build
from lsstcal_dask.pipeline.calibrate import calibrate, find_calibrated
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.listing import show_picture
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.simulate.simple import (
    Plan,
    amplifier_truth,
    default_plan,
    simulate_frame,
    sky,
)
from lsstcal_dask.storage.products import list_products, open_product

__all__ = ["Comparison", "compare", "run_demo"]

_CAMERA = "mini9"


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


def _make_files(folder: Path, camera: Camera, seed: int, plan: Plan) -> list[str]:
    paths = []
    for detector in camera.detectors:
        path = folder / f"{plan.name}_{detector.name}.fits"
        write_frame(path, camera, simulate_frame(seed, plan, camera, detector), compress=False)
        paths.append(str(path))
    return paths


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
    raw = folder / "raw"
    raw.mkdir(parents=True)
    camera, plans = load_camera(_CAMERA), default_plan()
    url = str(folder / "store")
    say(f"{len(plans)} exposures of camera {camera.name} (9 CCDs of 16 amplifiers) -> {raw}")
    task = dask.delayed(_make_files, pure=False)
    files: list[str] = []
    for _, made in compute.run([task(raw, camera, seed, p) for p in plans], labels=range(len(plans)), describe="make"):
        files += _checked(made)
    say(f"$ lsstcal ingest {url} --camera {_CAMERA} {raw}/*.fits")
    store = create_store(url, _CAMERA)
    report = ingest(store, sorted(files), compute)
    if report.errors:
        raise CalibrationError(report.errors[0])
    say(f"  {len(report.ingested)} frames ingested")
    say(f"$ lsstcal build {url}")
    for name, built in build(store, [], Config(), compute):
        say(f"  {name} {_pointer(built).version}: {_pointer(built).verdict}")
    science = plans[-1]
    say(f"$ lsstcal calibrate {url} {science.name}")
    for name, built in calibrate(store, [science.name], Config().calibrate, compute):
        say(f"  {name} {_pointer(built).version}: {_pointer(built).verdict}")
    pictures = [_show(store, folder, what, say) for what in ("bias", "gain", "dark", science.name)]
    found = compare(store, seed, science)
    say("how well the truth was recovered:")
    for one in found:
        say(one.line())
    say(f"everything is in {folder}: raw/ the FITS files, store/ what was made of them, *.png the pictures")
    return {
        "folder": str(folder),
        "store": url,
        "pictures": pictures,
        "comparisons": [{"quantity": c.quantity, "found": c.found, "low": c.low, "high": c.high} for c in found],
        "failures": [f"{c.quantity}: {c.found:.4f}, expected {c.low:g} to {c.high:g}" for c in found if not c.good],
    }


def _checked(result: Any) -> Any:
    if isinstance(result, Exception):
        raise CalibrationError(f"demo: {result}") from result
    return result


def _pointer(built: Built) -> Any:
    if built.pointer is None or built.errors:
        raise CalibrationError((built.errors or [built.note])[0])
    return built.pointer


def _show(store: Store, folder: Path, what: str, say: Callable[[str], None]) -> str:
    path = folder / f"{what}.png"
    say(f"$ lsstcal show {store.url} {what} -o {path}")
    choice = dict.fromkeys(("variable", "version", "detector", "amplifier", "raw"))
    return str(show_picture(store, what, path, choice))


def _amplifiers(camera: Camera) -> Iterator[tuple[Detector, Amplifier]]:
    for detector in camera.detectors:
        for amplifier in detector.amplifiers:
            yield detector, amplifier


def compare(store: Store, seed: int, science: Plan) -> list[Comparison]:
    """Compare the products and the calibrated frame with the truth, as pulls: error over its own sigma.

    Limits of a mean pull are four of its standard errors; those of a width allow for the errors' own errors.
    """
    products = {}
    for name in ("bias", "gain", "dark"):
        _, version = max((p.created, p.version) for p in list_products(store.url, name))
        products[name] = open_product(store.url, name, version, chunked=False).load()
    frame = find_calibrated(store, science.name)
    products["frame"] = open_product(store.url, frame.name, frame.version, chunked=False).load()
    pulls: dict[str, list[np.ndarray]] = {}
    for detector, amplifier in _amplifiers(store.camera):
        truth, light = amplifier_truth(seed, detector, amplifier), sky(seed, science, detector, amplifier)
        here = {"detector": detector.name, "amplifier": amplifier.name}
        parts = {name: product.sel(here) for name, product in products.items()}
        pulls.setdefault("bias", []).append(_image_pulls(parts["bias"], truth.bias))
        pulls.setdefault("dark", []).append(_image_pulls(parts["dark"], truth.dark))
        pulls.setdefault("science", []).append(_image_pulls(parts["frame"], light))
        for method in ("gain_fe55", "gain_pair"):
            miss = float(parts["gain"][method]) - truth.gain
            pulls.setdefault(method, []).append(np.array([miss / float(parts["gain"][f"{method}_error"])]))
        noise = float(parts["bias"]["read_noise"]) * truth.gain
        quantised = float(np.hypot(truth.read_noise, truth.gain / np.sqrt(12)))
        pulls.setdefault("noise", []).append(np.array([noise / quantised - 1]))
    found = [
        _width("bias: error of a pixel over its sigma, rms", pulls["bias"], 0.03),
        _width("dark: error of a pixel over its sigma, rms", pulls["dark"], 0.03),
        _width("science frame: error of a pixel over its sigma, rms", pulls["science"], 0.03),
        _width("gain from 55Fe: error over its sigma, rms of 144", pulls["gain_fe55"], 0.24),
        _width("gain from flats: error over its sigma, rms of 144", pulls["gain_pair"], 0.24),
    ]
    scatter = float(np.sqrt(np.mean(np.concatenate(pulls["noise"]) ** 2)))
    found.append(Comparison("read noise: relative error, rms of 144", scatter, 0, 0.01))
    return found


def _image_pulls(part: xr.Dataset, truth: np.ndarray) -> np.ndarray:
    """Pulls of the good pixels of one amplifier."""
    ny, nx = truth.shape
    image, variance = part["image"].values[:ny, :nx], part["variance"].values[:ny, :nx]
    variance = variance + part["row_variance"].values[:ny, None]
    return ((image - truth) / np.sqrt(variance))[part["mask"].values[:ny, :nx] == 0]


def _width(quantity: str, pulls: list[np.ndarray], tolerance: float) -> Comparison:
    values = np.concatenate(pulls)
    return Comparison(quantity, float(np.sqrt(np.mean(values**2))), 1 - tolerance, 1 + tolerance)
