"""Speed of the combination of exposures against the memory roof and against other packages.

Run ``python benchmarks/bench_combine.py [--quick] [--json FILE]``. All times of a row are processor time and come
from one interleaved run, median of several rounds, so that a neighbour's load falls on all of them alike. The slow
alternatives run on a crop of the amplifier and are scaled per pixel.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bottleneck
import ccdproc
import numba
import numpy as np
from astropy.nddata import CCDData
from astropy.stats import sigma_clip
from rich.console import Console
from rich.table import Table

from lsstcal_dask.statistics import Calibration, Noise, clipped_mean, median, median_of_sums

SHAPE = (2002, 512)
CROP = (40, 512)  # of the slow alternatives
KINDS = ("uint16", "int32", "float32")

# (ours, other, at least this ratio of times other / ours); N = None for any number of exposures
TARGETS: tuple[tuple[str, str, int | None, float], ...] = (
    ("median", "roof", 20, 0.3),
    ("median", "roof", 50, 0.2),
    ("median", "bottleneck nanmedian", None, 12.0),
    ("median", "ccdproc median", None, 100.0),
    ("clipped mean, 3 it", "roof", None, 0.3),
    ("clipped mean, 3 it", "astropy sigma_clip, 3 it", None, 15.0),
    ("clipped mean, 3 it", "ccdproc sigma clip", None, 20.0),
)


@dataclass(frozen=True)
class Timing:
    """Median time of one function, ns per pixel per exposure, and its ratio to the roof of the same run."""

    name: str
    n: int
    dtype: str
    nanoseconds: float
    cropped: bool


@numba.njit(fastmath=True)
def _read(line):
    total = np.float32(0)
    for i in range(line.size):
        total += line[i]
    return total


def make_stack(n: int, dtype: str, seed: int = 1) -> np.ndarray:
    """Exposures of one amplifier: pedestal 25000 adu, sigma 4, 1 % outliers, for floats 0.1 % NaN."""
    rng = np.random.default_rng(seed)
    stack = rng.standard_normal((n, *SHAPE), dtype=np.float32) * 4 + 25000
    stack[rng.random(stack.shape, dtype=np.float32) < 0.01] += 500
    if dtype == "float32":
        stack[rng.random(stack.shape, dtype=np.float32) < 0.001] = np.nan
        return stack
    return np.rint(stack).astype(dtype)


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each function, called in turn; one call of each first, to compile and to warm."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if turn:
                times[name].append(clock() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def ours(stack: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Kernels of the package, the offset of each row subtracted on the way."""
    n = len(stack)
    calibration = Calibration(np.full((n, SHAPE[0]), 24990, np.float32), None, np.ones(n, np.float32))
    noise = Noise(np.full(n, 16 + 1 / 12, np.float32), 0.0)
    return {
        "median": lambda: median(stack, calibration),
        "clipped mean, 3 it": lambda: clipped_mean(stack, calibration, k=3.0, iterations=3),
        "clipped mean, noise model": lambda: clipped_mean(stack, calibration, noise),
        "median of sums of 3": lambda: median_of_sums(stack, 3, calibration),
    }


def others(stack: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Other packages on a crop, given float32, which is what they combine."""
    crop = np.ascontiguousarray(stack[:, : CROP[0], : CROP[1]], dtype=np.float32)
    images = [CCDData(image, unit="adu", mask=np.isnan(image)) for image in crop]

    def ccd(**options: Any) -> Any:
        return ccdproc.combine(images, dtype=np.float32, **options)

    return {
        "bottleneck nanmedian": lambda: bottleneck.nanmedian(crop, axis=0),
        "numpy nanmedian": lambda: np.nanmedian(crop, axis=0),
        "astropy sigma_clip, 3 it": lambda: sigma_clip(
            crop, sigma=3, maxiters=3, cenfunc="mean", stdfunc="std", axis=0
        ).mean(axis=0),
        "ccdproc median": lambda: ccd(method="median"),
        "ccdproc sigma clip": lambda: ccd(
            method="average", sigma_clip=True, sigma_clip_low_thresh=3, sigma_clip_high_thresh=3
        ),
    }


def measure(n: int, dtype: str, rounds: int) -> list[Timing]:
    """Time everything for one number of exposures and one type; the roof reads as many float32."""
    stack = make_stack(n, dtype)
    line = np.ones(stack.size, np.float32)
    slow = others(stack)
    fast = {"roof": lambda: _read(line), **ours(stack)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = interleaved({**fast, **slow}, rounds, time.process_time)  # all on one thread
    cropped = n * CROP[0] * CROP[1]
    return [
        Timing(name, n, dtype, taken / (cropped if name in slow else stack.size) * 1e9, name in slow)
        for name, taken in seconds.items()
    ]


def verdicts(timings: list[Timing]) -> list[dict[str, Any]]:
    """Ratio of each pair in `TARGETS`, and whether it was met."""
    table = {(t.name, t.n, t.dtype): t.nanoseconds for t in timings}
    found = []
    for ours_, other, only, target in TARGETS:
        for n, dtype in sorted({(t.n, t.dtype) for t in timings}):
            if only in (None, n):
                ratio = table[other, n, dtype] / table[ours_, n, dtype]
                row = {"ours": ours_, "other": other, "n": n, "dtype": dtype}
                found.append({**row, "ratio": ratio, "target": target, "met": bool(ratio >= target)})
    return found


def report(timings: list[Timing], console: Console) -> None:
    """Print the times and the ratios against the targets."""
    columns = sorted({(t.n, t.dtype) for t in timings}, key=lambda c: (c[0], KINDS.index(c[1])))
    times = Table(title=f"ns per pixel per exposure, {SHAPE[0]} x {SHAPE[1]}, one thread (* cropped, scaled)")
    times.add_column("")
    for n, dtype in columns:
        times.add_column(f"{n}\n{dtype}", justify="right")
    table = {(t.name, t.n, t.dtype): t for t in timings}
    for name in dict.fromkeys(t.name for t in timings):
        cells = [table[name, *column] for column in columns]
        label = name + ("*" if cells[0].cropped else "")
        times.add_row(label, *(f"{cell.nanoseconds:.2f}" for cell in cells))
    console.print(times)
    ratios = Table(title="times of the other / ours")
    for column in ("ours", "other", "n", "dtype", "ratio", "target", ""):
        ratios.add_column(column)
    for v in verdicts(timings):
        cells = (str(v["n"]), v["dtype"], f"{v['ratio']:.2f}", f"{v['target']:g}")
        ratios.add_row(v["ours"], v["other"], *cells, "pass" if v["met"] else "FAIL")
    console.print(ratios)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="N = 20 only, 3 rounds")
    parser.add_argument("--json", type=Path, help="file for times and ratios")
    arguments = parser.parse_args()
    numbers, rounds = ((20,), 3) if arguments.quick else ((10, 20, 50), 7)
    timings = [t for n in numbers for dtype in KINDS for t in measure(n, dtype, rounds)]
    report(timings, Console(width=110))
    if arguments.json:
        data = {"timings": [vars(t) for t in timings], "ratios": verdicts(timings)}
        arguments.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
