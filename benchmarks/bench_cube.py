"""Flat cubes: writing and reading each form against naive xarray and against the memory roof.

Run ``python benchmarks/bench_cube.py [--quick] [--json FILE]``. A cube of some amplifiers of LSSTCam's size is written
in each form, of slices as flats of 40000 electrons with ten repeats make them, and read back warm from the page cache,
on one thread, in the environment of our workers.

    read        `CubeReader`: codes of blocks of wavelengths in a reused buffer, checksums verified
    one sum     the same, and a weighted sum over wavelengths, of one spectrum
    naive       ``(flat * weight).sum("wavelength")`` in xarray over plain float32 Zarr, one chunk per amplifier
    zarr        zarr-python reads the codes of the same shards

Speeds are GB/s f4eq: pixels per second times four bytes, whatever is stored; roof is a sum over float32 in memory.
Times are of the processor, which neighbours disturb least, median of interleaved rounds.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numba import njit
from numcodecs import blosc
from rich.console import Console
from rich.table import Table

from lsstcal_dask.compute import _WORKER_ENVIRONMENT
from lsstcal_dask.storage.coding import FORMS, Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubes import CubeReader, read_cube
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice

SHAPE = (2, 2002, 512)  # amplifiers, y, x
BLOCK = 8
TARGETS = {"i2": 5.0, "i1": 12.0}  # of one sum, over naive
NOISE = 1 / np.sqrt(400_000)


def as_worker() -> None:
    """Start this script again in the environment of a worker, which must be set before a process begins."""
    if not _WORKER_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_WORKER_ENVIRONMENT})


def make_slice(k: int) -> Slice:
    """A flat with gradients that change with wavelength, pixels that differ by half a percent, and noise."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    pixels = 1 + 0.005 * np.random.default_rng(0).standard_normal(SHAPE)
    value = (1 + 0.1 * np.cos(k / 9)) * (1 - 0.05 * (y / SHAPE[1]) ** 2 + 0.02 * np.sin(k / 50) * x / SHAPE[2]) * pixels
    value += NOISE * np.sqrt(value) * np.random.default_rng(k + 1).standard_normal(SHAPE)
    n = SHAPE[0]
    return Slice(
        value=value.astype(np.float32),
        mask=np.zeros(SHAPE, np.uint16),
        repeats=np.full(SHAPE, 10, np.uint8),
        full=np.full(n, 10),
        slope=np.full(n, NOISE**2),
        floor=np.full(n, 1e-3 * NOISE**2),
    )


def write(folder: Path, number: int) -> dict[str, float]:
    """Write a cube in each form and a plain array; GB/s f4eq of writing, between the forms in turn."""
    url, spent = str(folder), dict.fromkeys(FORMS, 0.0)
    slots: dict[str, list[Slot]] = {form: [] for form in FORMS}
    layout = {form: CubeLayout(form, ("A",), tuple("ab"[: SHAPE[0]]), SHAPE[1:]) for form in FORMS}
    for form in FORMS:
        create_cube(url, form, layout[form])
    plain = zarr.create_array(
        folder / "plain", name="flat", shape=(SHAPE[0], number, *SHAPE[1:]), chunks=(1, 1, *SHAPE[1:]), dtype="f4",
        compressors=None, dimension_names=("amplifier", "wavelength", "y", "x"),
    )  # fmt: skip
    for k in range(number):
        one = make_slice(k)
        plain[:, k] = one.value
        for form in FORMS:
            start = time.process_time()
            slot = claim_slot(url, form, {"wavelength": 400.0 + k})
            write_slice(url, form, (slot, "A"), one, {"total": 1.0, "pixels": 1})
            spent[form] += time.process_time() - start
            slots[form].append(Slot(slot, 400.0 + k, 0.01, 1.0, "2026-07-11T20:00:00", 1.0, 1e-3))
    for form in FORMS:
        publish_cube(url, form, slots[form], {})
    return {form: number * np.prod(SHAPE) * 4 / 1e9 / spent[form] for form in FORMS}


@njit(nogil=True, fastmath=True)
def add(codes, weight, out):  # type: ignore[no-untyped-def]
    """Add eight weighted images (n,) of codes to a sum (n,)."""
    c0, c1, c2, c3, c4, c5, c6, c7 = codes
    w0, w1, w2, w3, w4, w5, w6, w7 = weight
    for i in range(out.size):
        first = w0 * np.float32(c0[i]) + w1 * np.float32(c1[i]) + w2 * np.float32(c2[i]) + w3 * np.float32(c3[i])
        second = w4 * np.float32(c4[i]) + w5 * np.float32(c5[i]) + w6 * np.float32(c6[i]) + w7 * np.float32(c7[i])
        out[i] += first + second


def read(reader: CubeReader) -> None:
    """All codes."""
    for a in range(SHAPE[0]):
        for _ in reader.blocks(a):
            pass


def one_sum(reader: CubeReader) -> np.ndarray:
    """Weighted sums (amplifier, y, x) with scale, offset, references and exceptions folded in."""
    weight = 1 / (1 + np.arange(len(reader.wavelength)))
    out = np.zeros(SHAPE, np.float32)
    for a in range(SHAPE[0]):
        total, folded = out[a].reshape(-1), (weight * reader.scale[:, a]).astype(np.float32)
        for places, codes in reader.blocks(a):
            add(tuple(codes.reshape(len(codes), -1)), tuple(folded[places]), total)
        for places, image in reader.references(a) if reader.form == "i1" else ():
            out[a] += np.float32(weight[places] @ reader.level[places, a]) * image
        out[a] += np.float32(weight @ reader.offset[:, a])
        for k in range(len(weight)):
            odd = reader.exceptions(k, a)
            out[a][odd["y"], odd["x"]] += np.float32(weight[k]) * odd["change"]
    return out


def naive(folder: Path) -> np.ndarray:
    """What a user of xarray would write."""
    found = xr.open_zarr(folder / "plain", consolidated=False, chunks={})["flat"]
    weight = xr.DataArray(1 / (1 + np.arange(found.sizes["wavelength"])), dims="wavelength").astype("f4")
    return np.asarray((found * weight).sum("wavelength").compute(scheduler="synchronous"))


def by_zarr(folder: Path, form: str) -> None:
    """The codes of the same shards through the general library."""
    array = zarr.open_array(folder / "cubes" / form / "data" / "codes", mode="r")
    for k in range(array.shape[2]):
        array[0, :, k]


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor time of each job, s, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: float(np.median(found)) for name, found in times.items()}


def measure(folder: Path, number: int, rounds: int) -> dict[str, Any]:
    """Speeds in GB/s f4eq, ratios and sizes."""
    written = write(folder, number)
    readers = {form: CubeReader(read_cube(str(folder), form), "A", block=BLOCK) for form in FORMS}
    roof = np.ones(25_000_000, np.float32)
    jobs: dict[str, Callable[[], Any]] = {"roof": roof.sum, "naive": lambda: naive(folder)}
    for form in FORMS:
        jobs |= {f"{form} read": lambda f=form: read(readers[f]), f"{form} one sum": lambda f=form: one_sum(readers[f])}
        jobs |= {f"{form} zarr": lambda f=form: by_zarr(folder, f)}
    truth = naive(folder)
    worst = {form: float(np.abs(one_sum(readers[form]) / truth - 1).max()) for form in FORMS}
    seconds = interleaved(jobs, rounds)
    size = number * np.prod(SHAPE) * 4 / 1e9
    speed = {name: (roof.nbytes / 1e9 if name == "roof" else size) / spent for name, spent in seconds.items()}
    stored = {form: sum(p.stat().st_size for p in (folder / "cubes" / form / "data").rglob("*")) for form in FORMS}
    return {
        "wavelengths": number,
        "speed": speed,
        "written": written,
        "times smaller": {form: size * 1e9 / stored[form] for form in FORMS},
        "over naive": {form: seconds["naive"] / seconds[f"{form} one sum"] for form in FORMS},
        "over zarr": {form: seconds[f"{form} zarr"] / seconds[f"{form} read"] for form in FORMS},
        "of roof": {form: speed[f"{form} one sum"] / speed["roof"] for form in FORMS},
        "worst relative error": worst,
    }


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    console = Console(width=120)
    speed = found["speed"]
    console.print(f"roof {speed['roof']:.1f}, naive xarray {speed['naive']:.2f} GB/s; speeds are GB/s f4eq")
    table = Table(
        "form", "written", "read", "one sum", "/ roof", "/ naive", "target", "read / zarr", "size 1/", box=None
    )
    for form in FORMS:
        ratios = [f"{found[key][form]:.2f}" for key in ("of roof", "over naive")]
        numbers = [f"{found['written'][form]:.2f}", f"{speed[f'{form} read']:.1f}", f"{speed[f'{form} one sum']:.1f}"]
        target = f"{TARGETS[form]:g}" if form in TARGETS else ""
        more = [f"{found['over zarr'][form]:.1f}", f"{found['times smaller'][form]:.2f}"]
        table.add_row(form, *numbers, *ratios, target, *more)
    console.print(table)
    console.print(f"largest error of a sum: {max(found['worst relative error'].values()):.1e}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 wavelengths instead of 64")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    as_worker()
    blosc.use_threads = False  # as in the threads of a worker
    folder = Path(tempfile.mkdtemp())
    try:
        found = measure(folder, 16 if options.quick else 64, 5)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    missed = [form for form, target in TARGETS.items() if found["over naive"][form] < 0.7 * target]
    sys.exit(f"below 0.7 of the target: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
