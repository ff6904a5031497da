"""Speed of broadband flats from a flat cube: kernels, from storage, against xarray and Dask, memory, graphs.

Run ``python benchmarks/bench_synthesis.py [--quick] [--json FILE] [--plot FILE.png]``. All times of a table come from
one interleaved run, median of several rounds; the roof is a one-thread read of contiguous float32 in the same run.
They are processor time of one thread, which on an idle machine is that of the clock, for nothing waits for a disk: a
stored CCD of LSSTCam has few distinct slices, to which the others are links, all of it warm. Rates count four bytes
per pixel and wavelength, whatever is stored.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from bench_combine import _read
from bench_disk import as_worker
from bench_focalplane import memory_mb
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.synthesis import CubeOpener, block_for, scan_of
from lsstcal_dask.products.synthesis import SynthesisConfig, Task, synthesis_amplifiers, synthesize
from lsstcal_dask.products.weights import Scan, WeightsConfig, make_weights
from lsstcal_dask.statistics.weighted import add_slices
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot, base, shard_path
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice

DETECTOR = "R22_S11"
SHAPE = (2002, 512)
DISTINCT = 8  # slices that lie in the store
SPECTRA = (1, 6, 32)
ALL = SynthesisConfig(  # a spectrum of the first slices alone leaves the light of the others unknown
    weights=WeightsConfig(negligible=0, uncovered=0.99), variance=False
)

TARGETS: tuple[tuple[str, str, str, float], ...] = (  # what, of what, at least this ratio of their times
    ("kernel float32, 1 spectrum", "roof", "of the roof", 0.75),
    ("kernel float32, 6 spectra", "roof", "of the roof", 0.4),
    ("kernel int16, 1 spectrum", "roof", "of the roof", 0.75),
    ("kernel int16, 6 spectra", "roof", "of the roof", 0.4),
    ("Zarr i2, 1 spectrum", "xarray (cube * w).sum(), f4", "times as fast", 5.0),
    ("Zarr i1, 1 spectrum", "xarray (cube * w).sum(), f4", "times as fast", 12.0),
    ("Zarr i2, 32 spectra", "Zarr i2, 1 spectrum", "of a single pass", 1 / 3),
)


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor of each function, called in turn; one call of each first, to compile and warm."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def kernels(slices: int, rounds: int) -> dict[str, float]:
    """Nanoseconds per pixel and wavelength of an amplifier in memory."""
    pixels = int(np.prod(SHAPE))
    line = np.ones(slices * pixels, np.float32)
    functions: dict[str, Callable[[], Any]] = {"roof": lambda: _read(line)}
    for kind in ("float32", "int16", "int8"):
        codes = (np.arange(slices * pixels) % 101).astype(kind).reshape(slices, pixels)
        for spectra in SPECTRA:
            weights = np.random.default_rng(spectra).uniform(0, 1, (spectra, slices))
            sums = np.zeros((spectra, pixels), np.float32)
            plural = "spectrum" if spectra == 1 else "spectra"
            functions[f"kernel {kind}, {spectra} {plural}"] = partial(add_slices, sums, codes, weights)
    return {name: taken / slices / pixels * 1e9 for name, taken in interleaved(functions, rounds).items()}


def make_store(folder: Path, form: str, nm: np.ndarray) -> str:
    """A store with one CCD of a cube, of few distinct slices."""
    store = create_store(folder / form, "lsstcam")
    camera = store.camera
    names = tuple(detector.name for detector in camera.detectors)
    create_cube(store.url, "c", CubeLayout(form, names, camera.amplifier_names, camera.image_shape))
    index, slots, markers = names.index(DETECTOR), [], []
    for k, wavelength in enumerate(nm):
        number = claim_slot(store.url, "c", {"wavelength": float(wavelength)})
        if k < DISTINCT:
            markers.append(write_slice(store.url, "c", (number, DETECTOR), flat(k), {"total": 1.0, "pixels": 1}))
        else:
            link(store.url, index, number, k % DISTINCT, markers)
        slots.append(Slot(number, float(wavelength), 0.01, 1.0, "2026-07-11", 1.0, 1e-3))
    publish_cube(store.url, "c", slots, {})
    return store.url


def flat(k: int) -> Slice:
    """A CCD with 0.5 % of pixel response, and noise of 40,000 electrons."""
    rng = np.random.default_rng(1)
    shape = (16, *SHAPE)
    value = rng.standard_normal(shape, dtype=np.float32) * 0.005 + 1
    noise = np.random.default_rng(k + 2).standard_normal(SHAPE, dtype=np.float32) * 0.005
    value += np.stack([np.roll(noise, a, axis=0) for a in range(16)])
    mask, repeats = np.zeros(shape, np.uint16), np.full(shape, 4, np.uint8)
    return Slice(value, mask, repeats, repeats[:, 0, 0], np.full(16, 2.5e-5), np.full(16, 1e-7))


def link(url: str, index: int, slot: int, like: int, markers: list[dict[str, Any]]) -> None:
    """Let a slot have the pixels of another."""
    place = Path(url, shard_path("c", "codes", index, slot))
    place.parent.mkdir(parents=True)
    place.symlink_to(Path(url, shard_path("c", "codes", index, like)).resolve())
    odd = Path(url, base("c"), "exceptions", f"{slot:05d}", f"{DETECTOR}.npy")
    odd.parent.mkdir(parents=True)
    odd.symlink_to(Path(url, base("c"), "exceptions", f"{like:05d}", f"{DETECTOR}.npy").resolve())
    objects.write_json(url, f"{base('c')}/done/{slot:05d}/{DETECTOR}.json", markers[like])


def run_ccd(url: str, spectra: int, amplifiers: int, slices: int, config: SynthesisConfig = ALL) -> float:
    """Make flats of some amplifiers of a CCD from some of its slices, all but the writing; a number that needs them."""
    store = open_store(url)
    cube = read_cube(url, "c")
    nm = cube.column("wavelength")
    part = nm[[0, slices - 1]]
    sources = [Spectrum(part, np.array([1.0, 1 + i / 10]), str(i)) for i in range(spectra)]
    weights = tuple(make_weights(one, None, scan_of(cube, store.camera), config=config.weights) for one in sources)
    opener = CubeOpener(url, "c", 1, block_for(spectra, cube.layout))
    task = Task(weights, store.camera, cube.layout.amplifiers, opener, config)
    detector = store.camera.detector(DETECTOR)
    found = synthesis_amplifiers(task.open_slices(DETECTOR), detector, task)
    return sum(float(one["image"].values[0, 0, 0]) for _, (_, one) in zip(range(amplifiers), found, strict=False))


def plain_zarr(folder: Path, slices: int, amplifiers: int) -> str:
    """The same kind of cube as anyone would store it: float32, a chunk for each amplifier and wavelength."""
    array = zarr.create_array(
        folder / "plain",
        shape=(amplifiers, slices, *SHAPE),
        chunks=(1, 1, *SHAPE),
        dtype="float32",
        compressors=None,
        dimension_names=("amplifier", "wavelength", "y", "x"),
    )
    values = np.random.default_rng(3).standard_normal((amplifiers, *SHAPE), dtype=np.float32)
    for k in range(slices):
        array[:, k] = values
    return str(folder / "plain")


def naive(path: str, weights: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What one writes without thinking, on one thread."""
    lazy = da.from_zarr(path)
    cube = xr.DataArray(lazy, dims=("amplifier", "wavelength", "y", "x"))
    one = xr.DataArray(weights[0].astype(np.float32), dims="wavelength")

    def compute(what: Any) -> Any:
        with dask.config.set(scheduler="synchronous"):
            return what.compute()

    return {
        "xarray (cube * w).sum(), f4": lambda: compute((cube * one).sum("wavelength")),
        "da.tensordot, f4": lambda: compute(da.tensordot(weights[:1].astype(np.float32), lazy, axes=(1, 1))),
        "da.tensordot, f4, 6 spectra": lambda: compute(da.tensordot(weights[:6].astype(np.float32), lazy, axes=(1, 1))),
    }


def from_zarr(folder: Path, urls: dict[str, str], slices: int, rounds: int) -> dict[str, float]:
    """Nanoseconds per pixel and wavelength from storage."""
    amplifiers, few = 4, 1
    path = plain_zarr(folder, slices, few)
    weights = np.random.default_rng(4).uniform(0, 1, (6, slices))
    functions = {}
    for form, url in urls.items():
        for spectra in SPECTRA:
            plural = "spectrum" if spectra == 1 else "spectra"
            functions[f"Zarr {form}, {spectra} {plural}"] = partial(run_ccd, url, spectra, amplifiers, slices)
        both = SynthesisConfig(weights=ALL.weights)
        functions[f"Zarr {form}, 1 spectrum, variance"] = partial(run_ccd, url, 1, amplifiers, slices, both)
    slow = naive(path, weights)
    seconds = interleaved({**functions, **slow}, rounds)
    pixels = int(np.prod(SHAPE)) * slices
    return {name: t / pixels / (few if name in slow else amplifiers) * 1e9 for name, t in seconds.items()}


def linear(url: str, slices: int, rounds: int) -> list[dict[str, float]]:
    """Seconds for some numbers of wavelengths and of amplifiers."""
    cases = [(4, n) for n in (slices // 4, slices // 2, slices)] + [(n, slices // 2) for n in (1, 2, 8)]
    functions = {str(case): partial(run_ccd, url, 1, *case) for case in cases}
    seconds = interleaved(functions, rounds)
    return [{"amplifiers": a, "wavelengths": n, "s": seconds[str((a, n))]} for a, n in cases]


def peak(url: str, spectra: int, slices: int) -> dict[str, Any]:
    """Peak memory of a new process that makes the flats of a CCD, amplifier after amplifier."""
    code = f"import bench_synthesis as b; b.report_peak({url!r}, {spectra}, {slices})"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return {"spectra": spectra, "wavelengths": slices, **json.loads(found.stdout)}


def report_peak(url: str, spectra: int, slices: int) -> None:
    """Print what this process takes, before and at most."""
    run_ccd(url, spectra, 1, slices // 4)  # of fewer, a spectrum may have no light at all
    before = memory_mb("VmRSS")
    run_ccd(url, spectra, 3, slices, SynthesisConfig(weights=ALL.weights))
    print(json.dumps({"before": before, "peak": memory_mb("VmHWM")}))


def graph() -> dict[str, float]:
    """Time to build and tasks of the graph of 189 CCDs, 3024 amplifiers, 800 wavelengths."""
    camera = load_camera("lsstcam")
    nm = np.linspace(350.0, 1100, 800)
    scan = Scan(nm, np.ones(800), np.ones(800), np.zeros(1), np.zeros(1))
    weights = [make_weights(Spectrum(nm, nm, "a"), None, scan)]
    start = time.perf_counter()
    lazy = synthesize(weights, camera, camera.amplifier_names, CubeOpener("none", "c", 1))
    return {"s": time.perf_counter() - start, "tasks": len(lazy.__dask_graph__()), "detectors": len(camera.detectors)}


def verdicts(times: dict[str, float]) -> list[dict[str, Any]]:
    """Ratio of each pair in `TARGETS`, and whether it was met."""
    rows = []
    for what, other, how, target in TARGETS:
        ratio = times[other] / times[what]
        rows.append(
            {"what": what, "other": other, "how": how, "ratio": ratio, "target": target, "met": ratio >= target}
        )
    return rows


def report(found: dict[str, Any], console: Console) -> None:
    """Print everything against its target."""
    table = Table("", "ns per pixel and wavelength", "GB/s f4eq", title="one thread")
    for name, taken in found["times"].items():
        table.add_row(name, f"{taken:.3f}", f"{4 / taken:.1f}")
    console.print(table)
    table = Table("", "against", "ratio", "target", "")
    for row in verdicts(found["times"]):
        cells = f"{row['ratio']:.2f} {row['how']}", f"{row['target']:.2f}"
        table.add_row(row["what"], row["other"], *cells, "pass" if row["met"] else "FAIL")
    console.print(table)
    table = Table("amplifiers", "wavelengths", "s", "ns per pixel and wavelength", title="cost")
    for row in found["linear"]:
        each = row["s"] / row["amplifiers"] / row["wavelengths"] / np.prod(SHAPE) * 1e9
        table.add_row(str(row["amplifiers"]), str(row["wavelengths"]), f"{row['s']:.2f}", f"{each:.2f}")
    console.print(table)
    table = Table(
        "spectra", "wavelengths", "peak, MB", "before, MB", title="memory of a process, amplifier by amplifier"
    )
    for row in found["memory"]:
        table.add_row(*(f"{row[key]:.0f}" for key in ("spectra", "wavelengths", "peak", "before")))
    console.print(table)
    row = found["graph"]
    console.print(f"{row['detectors']} CCDs, 800 wavelengths: {row['tasks']} tasks (< 1000), {row['s']:.3f} s (< 0.1)")


def draw(found: dict[str, Any], path: Path) -> None:
    """Cost against the number of wavelengths and of amplifiers."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, other in zip(axes, ("wavelengths", "amplifiers"), ("amplifiers", "wavelengths"), strict=True):
        fixed = max({row[other] for row in found["linear"]}, key=[row[other] for row in found["linear"]].count)
        rows = sorted((row[key], row["s"]) for row in found["linear"] if row[other] == fixed)
        x, y = np.array(rows).T
        axis.plot(x, y, "o")
        axis.plot([0, x[-1]], [0, np.sum(x * y) / np.sum(x * x) * x[-1]])
        axis.set(xlabel=f"{key} ({fixed} {other})", ylabel="s", ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure in a temporary folder, print, and write JSON and a plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 wavelengths, 3 rounds")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--plot", type=Path, help="file for the plot of the cost")
    arguments = parser.parse_args()
    as_worker()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    slices, rounds = (40, 3) if arguments.quick else (100, 5)
    found: dict[str, Any] = {"graph": graph(), "times": kernels(slices, rounds)}
    with tempfile.TemporaryDirectory() as name:
        folder, nm = Path(name), np.linspace(600.0, 699, slices)
        urls = {form: make_store(folder, form, nm) for form in ("i2", "i1")}
        found["times"] |= from_zarr(folder, urls, slices, rounds)
        found["linear"] = linear(urls["i2"], slices, rounds)
        found["memory"] = [
            peak(urls["i2"], *case) for case in ((1, slices // 4), (1, slices), (6, slices), (32, slices))
        ]
    report(found, Console(width=110))
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "ratios": verdicts(found["times"])}, indent=1, default=float))
    if arguments.plot:
        draw(found, arguments.plot)


if __name__ == "__main__":
    main()
