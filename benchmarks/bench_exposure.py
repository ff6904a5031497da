"""Full correction of one LSSTCam exposure, 189 science CCDs, by the ``calibrate`` that users run, on two processes.

Run ``python benchmarks/bench_exposure.py [--ccds N] [--resume] [--folder DIR] [--json FILE]``. A store gets one science
exposure and the products bias, linearity, gain, dark, defects, saturation, crosstalk (all pairs within a CCD, and two
amplifiers of each other CCD of its board) and deferred. The pixels of an e2v and of an ITL CCD are made; what the store
holds of all others are copies of their files, each read and corrected like any. Then ``lsstcal calibrate`` runs in a
process of its own: wall and processor time, and the memory of each worker after a third, two thirds and all of the
CCDs. It takes 0.2 GB of disk for each CCD, which are removed.

``--resume`` kills a second run half-way by SIGKILL, starts it again, and compares the hashes with those of the first.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.sequence import IsrConfig
from lsstcal_dask.mapping import Output
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.products import bias, crosstalk, dark, defects, deferred, gain, linearity, saturation
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.products import Pointer, Template, create_template, list_products, publish, write_detector
from lsstcal_dask.storage.raw import write_frame
from lsstcal_dask.variables import MASK_BITS

WORKERS = 2
EXPOSURE, TIME = "s0001", "2026-01-01T06:00:00"
VERSION = "benchmark"
WELL = 1.3e5  # electron
USED: dict[str, tuple[dict[str, Output], tuple[str, ...]]] = {
    "bias": (bias.OUTPUTS, ("image", "variance", "row_variance", "mask", "level")),
    "linearity": (linearity.OUTPUTS, ("linearity_level", "linearity_correction", "linearity_ceiling")),
    "gain": (gain.OUTPUTS, ("gain",)),
    "dark": (dark.OUTPUTS, ("image", "variance", "row_variance", "mask")),
    "defects": (defects.OUTPUTS, ("mask",)),
    "saturation": (saturation.OUTPUTS, ("well_bloom",)),
    "crosstalk": (crosstalk.OUTPUTS, ("crosstalk", "crosstalk_quadratic")),
    "deferred": (deferred.OUTPUTS, ("serial_cti", "offset_amplitude", "offset_decay")),
}
PIXELS = ("bias", "dark", "defects")


def science(store: Store, most: int | None) -> list[Detector]:
    """The science CCDs of the camera, raft by raft."""
    return [d for d in store.camera.detectors if re.fullmatch(r"R\d\d_S\d\d", d.name)][:most]


def plane(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """An image of noise, its variance and mask; rounded to a sixteenth of its noise, for the disk's sake."""
    image = np.rint(rng.standard_normal(shape, np.float32) * 16) * np.float32(scale / 16)
    variance = np.full(shape, scale**2, np.float32) * rng.choice(np.array([1, 1, 1, 20 / 19], np.float32), shape)
    return {
        "image": image,
        "variance": variance,
        "mask": np.zeros(shape, np.uint16),
        "row_variance": np.full(shape[0], 0.01 * scale**2, np.float32),
    }


def amplifier_values(store: Store, name: str, detector: Detector, i: int, board: list[str]) -> dict[str, Any]:
    """What a product says of one amplifier."""
    rng, shape = np.random.default_rng(1000 * i + len(name)), store.camera.image_shape
    node = np.linspace(0, 1.2e5, 40)
    if name == "bias":
        return plane(shape, 1.0, rng) | {"level": np.zeros(1)}
    if name == "dark":
        return plane(shape, 0.02, rng)
    if name == "linearity":
        return {"linearity_level": node, "linearity_correction": 1e-8 * node**2, "linearity_ceiling": 9e4}
    if name == "defects":
        mask = np.where(rng.random(shape) < 1e-4, MASK_BITS["BAD"], 0).astype(np.uint16)
        mask[:, rng.integers(5, 500)] |= MASK_BITS["BAD"] if i % 4 == 0 else 0
        return {"mask": mask}
    if name == "deferred":
        return {"serial_cti": 1e-6, "offset_amplitude": 2e-5, "offset_decay": 3.0}
    if name == "crosstalk":
        return _row_of_crosstalk(store, detector, i, board)
    return {"gain": {"gain": 1.5 + 0.01 * i}, "saturation": {"well_bloom": WELL}}[name]


def _row_of_crosstalk(store: Store, detector: Detector, i: int, board: list[str]) -> dict[str, np.ndarray]:
    sources = crosstalk.source_names(store.camera).tolist()
    c = np.zeros(len(sources), np.float32)
    own = [sources.index(f"{detector.name}/{a.name}") for a in detector.amplifiers]
    c[own] = 1e-4 / (1 + np.abs(np.arange(len(own)) - i))
    c[own[i]] = 0
    for other in board:
        for k in (0, 8):
            if i in (k, k + 1):
                c[sources.index(f"{other}/{detector.amplifiers[k].name}")] = 2e-6
    return {"crosstalk": c, "crosstalk_quadratic": 1e-10 * (c > 5e-6)}


def counts(store: Store, detector: Detector, seed: int) -> np.ndarray:
    """An exposure of a CCD: sky, stars, some of them beyond the full well, and the bias level."""
    rng, camera = np.random.default_rng(seed), store.camera
    out = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.uint16)
    for amplifier in detector.amplifiers:
        i = camera.amplifier_names.index(amplifier.name)
        values = 25000 + rng.standard_normal(camera.raw_shape, np.float32) * 4
        sky = np.zeros(amplifier.data.shape, np.float32) + 1000
        y, x = rng.integers(4, sky.shape[0] - 4, 200), rng.integers(4, sky.shape[1] - 4, 200)
        for dy, dx in np.ndindex(7, 7):
            sky[y + dy - 3, x + dx - 3] += (
                rng.pareto(1, 200).clip(0, 400) * 300 * np.exp(-((dy - 3) ** 2 + (dx - 3) ** 2) / 4)
            )
        sky = np.minimum(sky, 9e4)
        values[amplifier.data.slices] += sky + np.sqrt(sky / 1.5) * rng.standard_normal(sky.shape, np.float32)
        out[i] = np.rint(values).clip(0, 65535)
    return out


def make_product(store: Store, name: str, detectors: list[Detector]) -> None:
    """Write and publish one product of these detectors; pixels once for each vendor, then as copies of its files."""
    outputs, names = USED[name]
    ny, nx = store.camera.image_shape
    sizes = {"detector": len(detectors), "amplifier": 16}
    sizes |= {"y": ny, "x": nx} if name in PIXELS else {}
    sizes |= {"exposure": 1} if name == "bias" else {"node": 40} if name == "linearity" else {}
    coords: dict[str, Any] = {"detector": (("detector",), [d.name for d in detectors])}
    coords["amplifier"] = (("amplifier",), list(store.camera.amplifier_names))
    if name == "bias":
        coords["exposure"] = (("exposure",), ["b0001"])
    if name == "crosstalk":
        coords["source"] = (("source",), crosstalk.source_names(store.camera))
        sizes["source"] = len(coords["source"][1])
    create_template(store.url, name, VERSION, Template({k: outputs[k] for k in names}, sizes, coords))
    first: dict[str, int] = {}
    hashes = {}
    for i, detector in enumerate(detectors):
        if name in PIXELS and detector.vendor in first:
            hashes[detector.name] = _copy(store, name, (first[detector.vendor], detectors), i)
            continue
        first[detector.vendor] = i
        board = [d.name for d in detectors if d.name[:6] == detector.name[:6] and d.name != detector.name]
        results = _results(store, name, detector, board)
        hashes[detector.name] = write_detector(store.url, name, VERSION, (i, detector.name), results)["hash"]
    publish(store.url, Pointer(name, "2025-01-01T00:00:00", {}, {}, {}, {}, [], version=VERSION, detectors=hashes))


def _results(store: Store, name: str, detector: Detector, board: list[str]) -> Iterator[tuple[str, xr.Dataset]]:
    dims = {2: ("y", "x"), 0: ()}
    for i, amplifier in enumerate(detector.amplifiers):
        values = amplifier_values(store, name, detector, i, board)
        yield amplifier.name, xr.Dataset({k: (dims.get(np.ndim(v), (f"{k}_",)), v) for k, v in values.items()})


def _copy(store: Store, name: str, source: tuple[int, list[Detector]], to: int) -> str:
    """Copy the files of a detector to another; returns the hash of its values."""
    base, (at, detectors) = Path(store.url, "products", name, VERSION), source
    for variable in USED[name][1]:
        chunks = base / "data" / variable / "c" / ("0" if variable == "level" else "")
        shutil.copytree(chunks / str(at), chunks / str(to))
    marker = base / "done" / f"{detectors[at].name}.json"
    shutil.copyfile(marker, marker.with_name(f"{detectors[to].name}.json"))
    return str(json.loads(marker.read_text())["hash"])


def make_store(folder: Path, most: int | None) -> Store:
    """A store with one exposure and every product that corrects it."""
    store = create_store(folder / "store", "lsstcam")
    detectors = science(store, most)
    header = {"exposure_type": "science", "filter": "r", "exposure_time": 30.0, "dark_time": 31.0}
    header |= {"wavelength": np.nan, "photodiode": np.nan, "time": TIME}
    pixels = {vendor: counts(store, d, 1) for vendor, d in {d.vendor: d for d in detectors}.items()}
    records = [FrameRecord(EXPOSURE, d.name, "", "made", d.name, "uint16", header) for d in detectors]
    frames = [write_frame(store.url, r, pixels[d.vendor], {}) for r, d in zip(records, detectors, strict=True)]
    publish_frames(store.url, frames)
    for name in USED:
        make_product(store, name, detectors)
    return store


class _Catch:
    """Takes the place of `Compute` and keeps the tasks instead of running them."""

    def run(self, tasks: list[Any], **options: Any) -> tuple[()]:
        self.tasks = tasks
        return ()


def graph(store: Store) -> dict[str, float]:
    """Tasks of the graph and seconds to build it; leaves an empty version."""
    catch, start = _Catch(), time.perf_counter()
    list(calibrate(store, [], IsrConfig(), catch))  # type: ignore[arg-type]
    keys = {key for task in catch.tasks for key in task.__dask_graph__()}
    return {"graph_s": time.perf_counter() - start, "tasks": len(keys)}


def _done(store: Store) -> int:
    return len(list(Path(store.url, "products/calibrated").glob("*/done/*.json")))


def _workers(parent: int) -> list[int]:
    """Processes below one that compute: those that were spawned, but for the watchmen of resources."""
    below, found = {parent}, []
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
        try:
            stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) in below:
            below.add(int(entry.name))
            found += [int(entry.name)] if "spawn_main" in line else []
    return found


def _memory(pid: int) -> tuple[float, float]:
    """MB of a process now and at most."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    now, most = (re.search(rf"{key}:\s+(\d+)", text) for key in ("VmRSS", "VmHWM"))
    return (int(now[1]) / 1e3, int(most[1]) / 1e3) if now and most else (0.0, 0.0)


def run(store: Store, number: int, kill_at: int | None = None) -> dict[str, Any]:
    """Run ``lsstcal calibrate`` and watch its workers; killed with all of them once ``kill_at`` CCDs are done."""
    main = "from lsstcal_dask.cli import main; main()"
    command = [sys.executable, "-c", main, "calibrate", store.url, "--scheduler", "local"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    child = subprocess.Popen([*command, "--workers", str(WORKERS)], start_new_session=True, stdout=subprocess.DEVNULL)
    marks, seen = [max(number // 3, 1), 2 * number // 3, number - 1], []
    while child.poll() is None:
        done = _done(store)
        if kill_at is not None and done >= kill_at:
            os.killpg(child.pid, signal.SIGKILL)
        if marks and done >= marks[0]:
            marks.pop(0)
            seen.append({"done": done, "mb": [_memory(pid) for pid in _workers(child.pid)]})
        time.sleep(0.1)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "memory": seen, "status": child.returncode}


def hashes(store: Store) -> dict[str, str]:
    """Hash of the values of every corrected CCD."""
    return list_products(store.url, "calibrated")[-1].detectors


def resumed(store: Store, number: int) -> dict[str, Any]:
    """Whether a run that was killed half-way and started again gives the bits of one that was not."""
    whole = hashes(store)
    shutil.rmtree(Path(store.url, "products/calibrated"))
    killed = run(store, number, kill_at=number // 2)
    kept = _done(store)
    again = run(store, number)
    return {"killed": killed["status"], "kept": kept, "again": again["status"], "same_bits": hashes(store) == whole}


def report(found: dict[str, Any], console: Console) -> None:
    """Print times, sizes and the memory of the workers."""
    rate, size = (
        found["megapixels"] / found["wall_s"],
        f"{found['input_gb']:.1f} GB in, {found['output_gb']:.1f} GB out",
    )
    console.print(
        f"{found['ccds']} CCDs, {WORKERS} processes: {found['wall_s']:.0f} s wall, {found['cpu_s']:.0f} s of cores, "
        f"{rate:.0f} Mpx/s; {found['tasks']} tasks, graph in {found['graph_s']:.1f} s; disk {size}, made in "
        f"{found['made_s']:.0f} s"
    )
    table = Table("CCDs done", *(f"worker {i + 1}: MB now (at most)" for i in range(WORKERS)))
    for row in found["memory"]:
        table.add_row(str(row["done"]), *(f"{now:.0f} ({most:.0f})" for now, most in row["mb"][:WORKERS]))
    console.print(table)
    if "resume" in found:
        console.print(f"killed half-way and run again: {found['resume']}")


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def measure(folder: Path, most: int | None, resume: bool) -> dict[str, Any]:
    """Make the store, run, and measure."""
    start = time.perf_counter()
    store = make_store(folder, most)
    made, size = time.perf_counter() - start, _gigabytes(Path(store.url))
    number = len(science(store, most))
    found = graph(store) | run(store, number)
    pixels = number * 16 * int(np.prod(store.camera.image_shape)) / 1e6
    found |= {"ccds": number, "megapixels": pixels, "made_s": made, "input_gb": size}
    found["output_gb"] = _gigabytes(Path(store.url, "products/calibrated"))
    return found | ({"resume": resumed(store, number)} if resume else {})


def main() -> None:
    """Measure in a temporary folder, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ccds", type=int, help="correct only the first N CCDs")
    parser.add_argument("--quick", action="store_true", help="9 CCDs, a raft")
    parser.add_argument("--resume", action="store_true", help="kill a second run half-way and resume it")
    parser.add_argument("--folder", type=Path, help="where the store is made for a while")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measure(Path(name), options.ccds or (9 if options.quick else None), options.resume)
    report(found, Console(width=120))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
