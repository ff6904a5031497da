"""Speed of the virtual observatory: pixels per second of each kind of exposure, and where the time goes.

Run ``python benchmarks/bench_simulate.py [--quick] [--json FILE]``. One LSSTCam CCD with every effect but crosstalk
from its neighbours, on one core, in the environment of our workers. Times are those of the processor, medians of
several rounds in turn, so that a neighbour's load falls on all alike; a stage is without the stages that it calls.
The hot loops are then compared, also in turn, with numpy drawing the random numbers that they need from the same
generator, into buffers that stay in the cache.
"""

import argparse
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from bench_disk import as_worker
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate import charge, electronics, frames, pixels
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.kept import kept
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.poisson import poisson
from lsstcal_dask.simulate.random import stream, tiles
from lsstcal_dask.simulate.recipes import CalibrationDay, FlatCube, Night, Plan, Projections, exposures
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.settings import Settings

TARGET = 0.5  # of the speed of drawing the random numbers
LEVEL = 50_000.0  # electrons in a pixel of the flats
WAVELENGTH = 700.0  # nm, of the flat and the spots that have one
FIRST = "flat, first"  # of its CCD, so that all that exposures share is made as well

STAGES: tuple[tuple[str, Any, str], ...] = (
    ("expected light", frames, "light"),
    ("corners of pixels", pixels, "corners"),
    ("light on displaced pixels", charge, "on_quadrilaterals"),
    ("moving boundaries", charge, "boundary_shifts"),
    ("shot noise", charge, "poisson"),
    ("stars", charge, "_points"),
    ("other light to charge", frames, "accumulate"),
    ("insensitive pixels", frames, "_detected"),
    ("dark charge", frames, "_dark"),
    ("cosmic rays", frames, "cosmic_rays"),
    ("bleeding", frames, "bloom"),
    ("traps", frames, "apply_traps"),
    ("cut into amplifiers", frames, "split"),
    ("serial clamp", frames, "clamp_serial"),
    ("crosstalk", electronics, "add_crosstalk"),
    ("read noise", electronics, "_normals"),
    ("conversion", electronics, "_digitise"),
    ("other read-out", frames, "read_out"),
)
REST = "everything else"


def place(camera: str) -> tuple[Observatory, Detector]:
    """Observatory with every effect, and a CCD to which no other one couples."""
    found = load_camera(camera)
    settings = Settings(crosstalk=Crosstalk(per_board=0))
    return Observatory(1, found, settings), found.detectors[len(found.detectors) // 2]


def planned(site: Observatory) -> dict[str, Exposure]:
    """One exposure of each kind."""
    plan = Plan(
        calibration_day=CalibrationDay(biases=1, darks=1, xrays=0, pairs=0, flats=1, filters="r", level=LEVEL),
        flat_cube=FlatCube(first=WAVELENGTH, last=WAVELENGTH, level=LEVEL),
        cbp=Projections(sets="b", dithers=1),
        night=Night(visits=1, fields=1, filters="r"),
    )
    made = {
        name: exposures(name, plan, site.settings, site.camera)
        for name in ("calibration-day", "flat-cube", "cbp", "night")
    }
    bias, dark, flat = made["calibration-day"]
    spots = next(e for e in made["cbp"] if e.source.wavelength == WAVELENGTH)  # type: ignore[union-attr]
    return {
        "bias": bias,
        "dark": dark,
        FIRST: flat,
        "flat": flat,
        "flat at 700 nm": made["flat-cube"][0],
        "projector": spots,
        "sky": made["night"][0],
    }


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Processor seconds of every stage while the block runs; a stage's own, without those that it calls."""
    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]
    with ExitStack() as stack:
        for label, module, name in STAGES:
            stack.enter_context(patch.object(module, name, _timed(getattr(module, name), label, spent, inner)))
        start = time.thread_time()
        yield spent
        spent[REST] = time.thread_time() - start - inner[0]


def _timed(function: Callable, label: str, spent: dict[str, float], inner: list[float]) -> Callable:
    def call(*args: Any, **options: Any) -> Any:
        inner.append(0.0)
        start = time.thread_time()
        try:
            return function(*args, **options)
        finally:
            taken = time.thread_time() - start
            spent[label] += taken - inner.pop()
            inner[-1] += taken

    return call


def forget() -> None:
    """Forget the maps that exposures share."""
    kept.clear()


def measure(site: Observatory, detector: Detector, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each stage, by kind of exposure; those that follow the first flat share its maps."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for kind, exposure in planned(site).items():
            if kind == FIRST:
                forget()
            with stopwatch() as spent:
                list(frames.frames(site, exposure, [detector]))
            found[kind].append(spent)
    labels = [label for label, _, _ in STAGES] + [REST]
    return {k: {label: float(np.median([one[label] for one in v])) for label in labels} for k, v in found.items()}


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each function, called in turn."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def reading(site: Observatory, detector: Detector) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Read-out of pixels that are all alike, and as many normal numbers."""
    settings, camera, random = site.settings.electronics, site.camera, stream(1, "benchmark")
    packets = np.full((len(camera.amplifier_names), *camera.raw_shape), LEVEL, np.float32)
    shapes = [
        (rows.stop - rows.start, nx) for ny, nx in (a.raw_shape for a in detector.amplifiers) for _, rows in tiles(ny)
    ]
    made = {shape: np.empty(shape, np.float32) for shape in shapes}

    def draw() -> None:
        for shape in shapes:
            random.standard_normal(dtype=np.float32, out=made[shape])

    def ours() -> np.ndarray:
        return electronics.read_out(site.seed, settings, camera, detector, 1, packets)

    return ours, draw


def gathering(site: Observatory, detector: Detector, part: float) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Charge of a part of a flat: pixels displaced, boundaries that move; as many Poisson numbers, as large."""
    exposure, s = planned(site)["flat"], site.settings
    seen, corners, random = light(site, exposure, detector), site.corners(detector), stream(1, "benchmark")
    drawn: list[tuple[tuple[int, ...], float]] = []
    seconds = part * exposure.exposure_time

    def ours() -> np.ndarray:
        return charge.accumulate(
            site.seed, s.shot_noise, s.brighter_fatter, detector, exposure.number, seen, seconds, corners
        )

    def noted(generator: np.random.Generator, mean: np.ndarray) -> np.ndarray:
        drawn.append((mean.shape, float(mean.mean())))
        return poisson(generator, mean)

    with patch.object(charge, "poisson", noted):
        ours()
    means = {one: np.full(*one) for one in dict.fromkeys((shape, round(mean)) for shape, mean in drawn)}

    def draw() -> None:
        for shape, mean in drawn:
            random.poisson(means[shape, round(mean)])

    return ours, draw


def darkness(site: Observatory, detector: Detector) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Dark charge, and as many Poisson numbers with the same means."""
    exposure, random, rate = planned(site)["dark"], stream(1, "benchmark"), site.dark_rate(detector)
    mean = frames.dark_electrons(rate, detector, exposure.dark_time).astype(float)
    parts = [mean[rows, x : x + 512] for _, rows in tiles(mean.shape[0]) for x in range(0, mean.shape[1], 512)]
    parts = [np.ascontiguousarray(part) for part in parts]
    return lambda: frames._dark(site, exposure, detector, rate), lambda: [random.poisson(part) for part in parts]


def hot_loops(rounds: int, part: float) -> list[dict[str, Any]]:
    """Each loop against the draws that it needs, on an LSSTCam CCD; a flat of a part of the usual exposure."""
    site, detector = place("lsstcam")
    loops = {
        "read-out": reading(site, detector),
        "light to charge": gathering(site, detector, part),
        "dark charge": darkness(site, detector),
    }
    found = []
    for name, (ours, draw) in loops.items():
        seconds = interleaved({"ours": ours, "draws": draw}, rounds)
        ratio = seconds["draws"] / seconds["ours"]
        found.append({"loop": name, **seconds, "ratio": ratio, "target": TARGET, "met": bool(ratio >= TARGET)})
    return found


def report(table: dict[str, dict[str, float]], loops: Sequence[dict[str, Any]], megapixels: float) -> None:
    """Print speeds, stages and ratios."""
    console = Console(width=120)
    stages = Table(title=f"processor ms of a CCD of {megapixels:.1f} megapixels, by stage")
    for column in ("", *table):
        stages.add_column(column, justify="right" if column else "left")
    for label in [label for label, _, _ in STAGES] + [REST]:
        stages.add_row(label, *(f"{1e3 * kind[label]:.0f}" if kind[label] else "" for kind in table.values()))
    totals = [sum(kind.values()) for kind in table.values()]
    stages.add_row("sum", *(f"{1e3 * total:.0f}" for total in totals))
    stages.add_row("megapixels/s on a core", *(f"{megapixels / total:.2f}" for total in totals))
    console.print(stages)
    ratios = Table(title="speed of the loop / speed of drawing its random numbers")
    for column in ("loop", "ours, s", "draws, s", "ratio", "target", ""):
        ratios.add_column(column)
    for v in loops:
        cells = (f"{v['ours']:.3f}", f"{v['draws']:.3f}", f"{v['ratio']:.2f}", f"{v['target']:g}")
        ratios.add_row(v["loop"], *cells, "pass" if v["met"] else "FAIL")
    console.print(ratios)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="stages of a small CCD, where fixed costs weigh more; loops on a flat of 2,500 electrons",
    )
    parser.add_argument("--json", type=Path, help="file for times and ratios")
    arguments = parser.parse_args()
    as_worker()
    measure(*place("mini1"), rounds=1)  # compiles
    site, detector = place("mini9" if arguments.quick else "lsstcam")
    megapixels = detector.shape[0] * detector.shape[1] / 1e6
    table = measure(site, detector, rounds=3)
    loops = hot_loops(rounds=3, part=0.05 if arguments.quick else 1.0)
    report(table, loops, megapixels)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console(width=120).print(f"most memory of the process: {memory:.0f} MiB")
    if arguments.json:
        data = {"megapixels": megapixels, "seconds": table, "ratios": loops, "memory_MiB": memory}
        arguments.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
