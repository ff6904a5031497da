"""Graphs, memory and scheduling of a master bias of LSSTCam: 205 detectors, up to 800 exposures.

Run ``python benchmarks/bench_focalplane.py [--quick] [--json FILE]``. The graphs are built from a table of
headers without pixels. Memory and overhead come from full-size CCDs: a few stored frames stand for every
exposure, so that the disk holds megabytes, while a task reads and combines all of them.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
from bench_disk import as_worker, bias_frame, record
from rich.console import Console
from rich.table import Table

from lsstcal_dask.compute import Compute, cluster
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.products.bias import OUTPUTS, bias_amplifiers, master_bias
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.storage.manifests import publish_frames
from lsstcal_dask.storage.raw import open_raw, write_frame

LIMIT = 600  # MB that a worker should need
WORKERS = 2
DISTINCT = 4  # frames of a detector that really lie in the store


class _Catch:
    """Takes the place of `Compute` and keeps the tasks instead of running them."""

    def run(self, tasks: list[Any], **options: Any) -> Iterable[Any]:
        self.tasks = tasks
        return ()


def graph(folder: Path, n: int) -> list[dict[str, Any]]:
    """Time to build, number of tasks and size of the graphs for n biases of the whole focal plane."""
    store = create_store(folder / f"graph{n}", "lsstcam")
    rows = [
        replace(record(i, detector.name), pixels=f"{i:016d}") for i in range(n) for detector in store.camera.detectors
    ]
    publish_frames(store.url, rows)
    raw = open_raw(store.url, store.camera, chunked=False)
    found = []
    start = time.perf_counter()
    lazy = master_bias(raw, store.camera)
    found.append(("master_bias", time.perf_counter() - start, lazy.__dask_graph__()))
    catch = _Catch()
    start = time.perf_counter()
    list(build(store, ["bias"], Config(), catch))  # type: ignore[arg-type]
    whole = time.perf_counter() - start
    layers: dict[Any, Any] = {}
    for task in catch.tasks:
        layers.update(task.__dask_graph__())
    found.append(("pipeline.build, with reading the headers", whole, layers))
    return [
        {"what": name, "n": n, "s": seconds, "tasks": len(tasks), "MB": len(cloudpickle.dumps(dict(tasks))) / 1e6}
        for name, seconds, tasks in found
    ]


def make_store(url: str, detectors: list[str], n: int) -> None:
    """Publish n exposures of some detectors, all links to a few stored frames."""
    camera = load_camera("lsstcam")
    records = []
    for detector in detectors:
        stored = []
        for i in range(DISTINCT):
            counts = bias_frame(camera.raw_shape, i)
            ccd = np.ascontiguousarray(np.broadcast_to(counts, (len(camera.amplifier_names), *counts.shape)))
            stored.append(write_frame(url, record(i, detector), ccd, {}))
        records += stored
        for i in range(DISTINCT, n):
            same = replace(record(i, detector), pixels=stored[i % DISTINCT].pixels)
            place = Path(url, same.path)
            place.parent.mkdir(parents=True)
            os.symlink(Path(url, stored[i % DISTINCT].path), place)
            records.append(same)
    publish_frames(url, records)


def memory_mb(field: str) -> float:
    """A field of this process's status: VmRSS now, VmHWM its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def combine_detector(url: str, name: str, n: int) -> dict[str, Any]:
    """Do what a task does for one CCD, all but the writing; its peak memory and what the process held before."""
    start = time.perf_counter()
    camera = load_camera("lsstcam")
    names = [record(i, name).exposure for i in range(n)]
    before = memory_mb("VmRSS")
    raw = open_raw(url, camera, exposures=names, chunked=False).sel(detector=name)
    for _ in bias_amplifiers(raw, camera.detector(name), camera.image_shape, StackConfig()):
        pass
    return {"peak": memory_mb("VmHWM"), "before": before, "s": time.perf_counter() - start}


def bound_mb(n: int) -> float:
    """MB of an amplifier: its raw stack, its trimmed stack and the outputs."""
    camera = load_camera("lsstcam")
    pixels = int(np.prod(camera.image_shape))
    outputs = sum(np.dtype(OUTPUTS[name].dtype).itemsize for name in ("image", "variance", "mask", "frames"))
    return (2 * n * (int(np.prod(camera.raw_shape)) + pixels) + outputs * pixels) / 1e6


def on_dask(compute: Compute, url: str, jobs: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Run the tasks as the pipeline does."""
    task = dask.delayed(combine_detector, pure=False)
    found = dict(compute.run([task(url, *job) for job in jobs], labels=range(len(jobs)), progress=False))
    if failed := [result for result in found.values() if isinstance(result, Exception)]:
        raise failed[0]
    return list(found.values())


def memory(url: str, detectors: list[str], numbers: tuple[int, ...]) -> list[dict[str, Any]]:
    """Peak memory of new workers for each number of exposures; they may take more than `LIMIT`, to be measured."""
    found = []
    for n in numbers:
        with cluster("local", WORKERS, memory_limit="3GB") as compute:
            results = on_dask(compute, url, [(name, n) for name in detectors])
        base = min(result["before"] for result in results)
        peak = max(result["peak"] for result in results)
        found.append({"n": n, "peak": peak, "base": base, "grown": peak - base, "bound": bound_mb(n)})
    return found


def overhead(url: str, detectors: list[str], n: int, tasks: int, rounds: int) -> dict[str, Any]:
    """Seconds of the same tasks on Dask and on a plain pool of processes, in turn, both warm."""
    jobs = [(detectors[i % len(detectors)], n) for i in range(tasks)]
    times: dict[str, list[float]] = {"dask": [], "pool": []}
    spawn = multiprocessing.get_context("spawn")
    task = importlib.import_module(Path(__file__).stem).combine_detector  # workers do not import the main script
    with cluster("local", WORKERS) as compute, ProcessPoolExecutor(WORKERS, mp_context=spawn) as pool:

        def plain() -> None:
            for future in [pool.submit(task, url, *job) for job in jobs]:
                future.result()

        runs: dict[str, Callable[[], Any]] = {"dask": lambda: on_dask(compute, url, jobs), "pool": plain}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if turn:
                    times[name].append(time.perf_counter() - start)
    median = {name: float(np.median(taken)) for name, taken in times.items()}
    return {**median, "tasks": tasks, "n": n, "overhead": median["dask"] / median["pool"] - 1}


def report(found: dict[str, Any], console: Console) -> None:
    """Print graphs, memory and overhead against their targets."""
    table = Table("graph", "N", "s (< 0.1)", "tasks (< 1000)", "MB", title="LSSTCam, 205 detectors")
    for row in found["graphs"]:
        table.add_row(row["what"], str(row["n"]), f"{row['s']:.3f}", str(row["tasks"]), f"{row['MB']:.2f}")
    console.print(table)
    table = Table(
        "N", "peak", "idle", "peak - idle", "bound of the arrays", title=f"MB per worker, target {LIMIT} at N = 20"
    )
    for row in found["memory"]:
        table.add_row(str(row["n"]), *(f"{row[key]:.0f}" for key in ("peak", "base", "grown", "bound")))
    console.print(table)
    row = found["overhead"]
    console.print(
        f"{row['tasks']} CCDs of N = {row['n']}: Dask {row['dask']:.2f} s, pool of processes {row['pool']:.2f} s, "
        f"overhead {row['overhead']:+.1%} (target < 5 %)"
    )


def main() -> None:
    """Measure in a temporary folder, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 detectors, 1 round")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    as_worker()
    detectors = [detector.name for detector in load_camera("lsstcam").detectors[: 2 if arguments.quick else 4]]
    numbers = (10, 20, 40)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = [row for n in (50, 800) for row in graph(folder, n)]
        url = str(folder / "frames")
        make_store(url, detectors, max(numbers))
        found = {
            "graphs": graphs,
            "memory": memory(url, detectors, numbers),
            "overhead": overhead(url, detectors, 20, 2 * len(detectors), 1 if arguments.quick else 7),
        }
    report(found, Console(width=110))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
