"""Size and speed of a compressed flat cube against its slices: one amplifier of LSSTCam, with the noise of a real cube.

Run ``python benchmarks/bench_compressed.py [--slices 100]``. Times are processor time of one thread; all is read from
files that are warm. Fifteen amplifiers of the CCD are dead, so that sixteen times the numbers are those of a CCD.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lsstcal_dask.compute import cluster
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.compressed import compress_cube
from lsstcal_dask.pipeline.cubemaps import compressed_of
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.pipeline.synthesis import CubeOpener, scan_of
from lsstcal_dask.products.lowrank import LowRankConfig, compress_amplifier
from lsstcal_dask.products.synthesis import SynthesisConfig, Task, synthesis_amplifiers
from lsstcal_dask.products.weights import make_weights
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice
from lsstcal_dask.variables import MASK_BITS

DETECTOR = "R22_S11"
SHAPE = (2002, 512)
SLOPE = 1e-6  # of the variance: a million electrons, ten flats of 100,000


def response(nm: np.ndarray) -> np.ndarray:
    """Mean response of the focal plane."""
    return np.asarray(0.8 - 0.3 * ((nm - 700) / 400) ** 2)


def make_store(folder: Path, nm: np.ndarray) -> Store:
    """A store with one live amplifier: gray pixels, a tilt with wavelength, and noise."""
    store = create_store(folder / "s", "lsstcam")
    camera = store.camera
    names = tuple(detector.name for detector in camera.detectors)
    create_cube(store.url, "c", CubeLayout("i2", names, camera.amplifier_names, camera.image_shape))
    rng = np.random.default_rng(1)
    gray = 1 + 0.01 * rng.standard_normal(SHAPE, np.float32)
    tilt = 0.05 * np.linspace(-1, 1, SHAPE[1], dtype=np.float32)
    slots = []
    for wavelength in nm:
        number = claim_slot(store.url, "c", {"wavelength": float(wavelength)})
        value = np.full((16, *camera.image_shape), np.nan, np.float32)
        flat = np.float32(response(wavelength)) * gray * (1 + tilt * np.float32((wavelength - 700) / 200))
        flat += np.sqrt(np.float32(SLOPE) * flat) * rng.standard_normal(SHAPE, np.float32)
        value[0, : SHAPE[0], : SHAPE[1]] = flat
        mask = np.where(np.isfinite(value), 0, MASK_BITS["NO_DATA"]).astype(np.uint16)
        lines = np.where(np.arange(16) == 0, SLOPE, np.nan), np.where(np.arange(16) == 0, 1e-9, np.nan)
        one = Slice(value, mask, np.full(value.shape, 10, np.uint8), np.full(16, 10), *lines)
        write_slice(store.url, "c", (number, DETECTOR), one, {"total": 1.0, "pixels": 1})
        slots.append(Slot(number, float(wavelength), 0.01, 1.0, "2026-07-11", float(response(wavelength)), 1e-3))
    publish_cube(store.url, "c", slots, {})
    return store


def timed(function: Callable[[], Any], rounds: int = 3) -> float:
    """Least processor time of some calls, after one to compile and to warm."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def size(folder: Path) -> float:
    """Megabytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(folder: Path, slices: int) -> list[tuple[str, str]]:
    """Rows of what is measured."""
    nm = np.linspace(400, 1000, slices)
    store = make_store(folder, nm)
    start = time.process_time()
    with cluster("threads", 1) as compute:
        made = compress_cube(store, "c", LowRankConfig(), compute)
    assert made.pointer is not None
    taken = time.process_time() - start
    cube = read_cube(store.url, "c")
    pointer, maps = compressed_of(store, cube)
    source = Spectrum(nm[[0, -1]], np.array([1.0, 2.0]), "lamp")
    weights = (make_weights(source, None, scan_of(cube, store.camera)),)
    task = Task(weights, store.camera, cube.layout.amplifiers, CubeOpener(store.url, "c", 1), SynthesisConfig())
    short = replace(task, maps=maps)
    detector = store.camera.detector(DETECTOR)
    tracemalloc.start()
    compress_amplifier(task.open_slices(DETECTOR), 0, cube.column("response"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    def flat(how: Task) -> Any:
        found = synthesis_amplifiers(how.open_slices(DETECTOR), detector, how)
        return next(one for name, one in found if name == store.camera.amplifier_names[0])

    times = [timed(lambda: flat(task)), timed(lambda: flat(short))]
    away = flat(task)["image"].values.astype(float) - flat(short)["image"].values
    told = flat(short).attrs
    sizes = [size(Path(store.url, "cubes/c", part)) for part in ("data/codes", f"compressed/{pointer.version}/data")]
    return [
        ("slices, maps", f"{slices}, {pointer.rank}"),
        ("slices on disk, MB", f"{sizes[0]:.1f}"),
        ("maps on disk, MB", f"{sizes[1]:.1f}"),
        ("a flat of slices, s", f"{times[0]:.3f}"),
        ("a flat of maps, s", f"{times[1]:.3f}"),
        ("to compress an amplifier, s", f"{taken:.1f}"),
        ("its arrays at most, MB", f"{peak / 1e6:.0f}"),
        ("largest value of a slice off, of the response", f"{pointer.error:.1e}"),
        ("flat of maps off that of slices: proved", f"{told['compression_error'][0]:.1e}"),
        ("largest", f"{np.nanmax(np.abs(away)):.1e}"),
        ("rms", f"{np.nanstd(away):.1e}"),
        ("expected rms", f"{told['compression_rms'][0]:.1e}"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.slices)
    table = Table("one amplifier of LSSTCam", "", box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
