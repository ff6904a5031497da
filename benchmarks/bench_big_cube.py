"""A flat from a cube that no memory holds, killed half-way and resumed: the ``synthesize`` that users run.

Run ``python benchmarks/bench_big_cube.py [--ccds N] [--wavelengths K] [--folder DIR] [--json FILE]``. A cube of LSSTCam
gets K slices of N CCDs, form i2, 20 GB as float32 by default; the pixels of one CCD are made, and each other has a copy
of its files, which are read like any. Then ``lsstcal synthesize`` runs in a process of its own with two workers: once
undisturbed, and once killed by SIGKILL with all its workers when half of the CCDs are done, and started again. The
hashes of the two are compared. Wall and processor time, and the largest memory of a worker, are told.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from bench_exposure import _memory, _workers
from rich.console import Console

from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import NUMBERS, Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot, base, shard_path
from lsstcal_dask.storage.cubenumbers import SUMS
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice
from lsstcal_dask.storage.products import list_products

SHAPE = (2002, 512)
AMPLIFIERS = 16
NOISE = 0.005  # of 40,000 electrons


def make_slice(k: int, pixels: np.ndarray) -> Slice:
    """A CCD whose pixels (amplifier, y, x) differ by half a percent, with the noise of a flat."""
    noise = np.random.default_rng(k + 1).standard_normal(SHAPE, dtype=np.float32) * np.float32(NOISE)
    value = pixels * np.float32(1 + 0.1 * np.sin(k / 9))
    for a in range(AMPLIFIERS):
        value[a] += np.roll(noise, a, axis=0)
    mask, repeats = np.zeros(value.shape, np.uint16), np.full(value.shape, 4, np.uint8)
    return Slice(
        value, mask, repeats, np.full(AMPLIFIERS, 4.0), np.full(AMPLIFIERS, NOISE**2), np.full(AMPLIFIERS, 1e-8)
    )


def make_store(folder: Path, ccds: int, wavelengths: int) -> tuple[Store, float]:
    """A store with a cube, and the gigabytes that it takes on disk."""
    store = create_store(folder / "store", "lsstcam")
    names = tuple(d.name for d in store.camera.detectors)
    some = [d.name for d in store.camera.detectors if len(d.amplifiers) == AMPLIFIERS and d.vendor == "e2v"][:ccds]
    create_cube(store.url, "flats", CubeLayout("i2", names, store.camera.amplifier_names, store.camera.image_shape))
    pixels = 1 + 0.005 * np.random.default_rng(0).standard_normal((AMPLIFIERS, *SHAPE), dtype=np.float32)
    slots = []
    for k in range(wavelengths):
        nm = 550.0 + k
        number = claim_slot(store.url, "flats", {"wavelength": nm})
        write_slice(store.url, "flats", (number, some[0]), make_slice(k, pixels), {"total": 1.0, "pixels": 1})
        for name in some[1:]:
            copy(store.url, number, (names.index(some[0]), some[0]), (names.index(name), name))
        slots.append(Slot(number, nm, 0.01, 1.0, "2026-07-11", 1.0, 1e-3))
    share_numbers(store.url, [names.index(name) for name in some])
    publish_cube(store.url, "flats", slots, {})
    return store, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9


def copy(url: str, slot: int, source: tuple[int, str], to: tuple[int, str]) -> None:
    """Give a CCD the files of a slice of another."""
    marker = objects.read_json(url, f"{base('flats')}/done/{slot:05d}/{source[1]}.json")
    odd = [Path(url, base("flats"), "exceptions", f"{slot:05d}", f"{one[1]}.npy") for one in (source, to)]
    codes = [Path(url, shard_path("flats", "codes", one[0], slot)) for one in (source, to)]
    for old, new in (odd, codes):
        if old.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
    objects.write_json(url, f"{base('flats')}/done/{slot:05d}/{to[1]}.json", marker)


def share_numbers(url: str, places: list[int]) -> None:
    """Give all CCDs the mask and the small arrays of the first."""
    group = zarr.open_group(objects.zarr_store(url, f"{base('flats')}/data"), mode="r+")
    for name in (*NUMBERS, *SUMS, "reference_slot"):
        for at in places[1:]:
            group[name][at] = group[name][places[0]]
    for at in places[1:]:
        new = Path(url, shard_path("flats", "mask", at))
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(url, shard_path("flats", "mask", places[0])), new)


def done(store: Store, name: str) -> int:
    """CCDs of a product, published or not, that are whole."""
    folder = Path(store.url, "products", name)
    return len(list(folder.glob("*/done/*.json")))


def run(store: Store, kind: str, kill_at: int | None = None) -> dict[str, float]:
    """Make a flat; with all its workers killed once so many CCDs are done."""
    command = [sys.executable, "-c", "from lsstcal_dask.cli import main; main()", "synthesize", store.url, kind]
    command += ["--filter", "none", "--scheduler", "local", "--workers", "2"]
    settings = Path(store.url).parent / "settings.toml"
    settings.write_text("[synthesis.weights]\nuncovered = 0.999\n")  # even light far beyond the cube
    start, before, most = time.perf_counter(), os.times(), 0.0
    process = subprocess.Popen([*command, "--config", str(settings)], start_new_session=True)
    while process.poll() is None:
        for pid in _workers(process.pid):
            most = max(most, _memory(pid)[0])
        if kill_at is not None and done(store, f"{kind}-none") >= kill_at:
            os.killpg(process.pid, signal.SIGKILL)
            for pid in _workers(process.pid):
                os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    process.wait()
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - start, "processor": used, "megabytes": most, "status": process.returncode}


def measure(folder: Path, ccds: int, wavelengths: int) -> dict[str, Any]:
    """Times, memory, and whether the bits are the same."""
    store, stored = make_store(folder, ccds, wavelengths)
    size = ccds * wavelengths * AMPLIFIERS * SHAPE[0] * SHAPE[1] * 4 / 1e9
    whole = run(store, "whole")
    killed = run(store, "again", kill_at=ccds // 2)
    kept = done(store, "again-none")
    published = bool(list_products(store.url, "again-none"))
    resumed = run(store, "again")
    hashes = [list_products(store.url, f"{kind}-none")[-1].detectors for kind in ("whole", "again")]
    return {
        "gigabytes as float32": size,
        "gigabytes on disk": stored,
        "undisturbed": whole,
        "killed": killed,
        "CCDs kept": kept,
        "published when killed": published,
        "resumed": resumed,
        "same bits": hashes[0] == hashes[1] and len(hashes[0]) == ccds,
    }


def main() -> None:
    """Measure, print, and write JSON if asked; exit 1 where the bits differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ccds", type=int, default=8)
    parser.add_argument("--wavelengths", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where the cube goes for the time; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.ccds, arguments.wavelengths)
    Console(width=120).print(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    sys.exit(0 if found["same bits"] and not found["published when killed"] else 1)


if __name__ == "__main__":
    main()
