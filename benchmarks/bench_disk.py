"""From disk to a master bias: our store and tasks against ccdproc on Rice-compressed FITS.

Run ``python benchmarks/bench_disk.py [--quick] [--json FILE]``. N bias frames of one LSSTCam CCD lie in the
store, and the same frames of one amplifier in Rice-compressed FITS files, all warm in the page cache. ccdproc
combines the files of that amplifier, as its users do; per pixel this scales to the CCD. Ours is everything
that a task does: opening the store, reading, overscan, combination, the search for misfit frames. The
process has the environment of our workers, whose allocator decides what reading costs and whose BLAS has one
thread. Both are timed on one core; as `WORKERS` processes work at once, as a build does, ours are timed too, and
ccdproc then as it is, for it knows no workers. Times come from one interleaved run, median of several rounds; the
breakdown times the parts one by one.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ccdproc
import numcodecs
import numpy as np
import xarray as xr
from astropy.io import fits
from bench_combine import interleaved
from rich.console import Console
from rich.table import Table

from lsstcal_dask.compute import _WORKER_ENVIRONMENT
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.overscan import reference_pixels, row_levels
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import StackConfig, combine_amplifier
from lsstcal_dask.statistics import Calibration, Noise, clipped_mean
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.raw import open_raw, write_frame

TARGET = 75.0
WORKERS = 2
NUMBER = 20
HEADER = {"exposure_type": "bias", "filter": "", "exposure_time": 0.0, "dark_time": 0.0, "wavelength": np.nan}


def as_worker() -> None:
    """Start this script again in the environment of a worker, which must be set before a process begins."""
    if not _WORKER_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_WORKER_ENVIRONMENT})


def bias_frame(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Counts of one amplifier: pedestal 25000 adu, 4 adu of noise, levels that drift from row to row."""
    rng = np.random.default_rng(seed)
    rows = 25000 + 3 * np.sin(np.arange(shape[0]) / 300)[:, None]
    return np.rint(rng.standard_normal(shape, dtype=np.float32) * 4 + rows).astype(np.uint16)


def record(exposure: int, detector: str) -> FrameRecord:
    """Record of a bias that was never a file."""
    header = {**HEADER, "photodiode": np.nan, "time": f"2026-01-01T00:{exposure // 60:02d}:{exposure % 60:02d}"}
    return FrameRecord(f"b{exposure:04d}", detector, "", "made", f"{exposure}", "uint16", header)


def make_data(folder: Path, camera: Any, detector: str, n: int) -> list[Path]:
    """Write and publish n frames of a CCD, every amplifier alike, and one amplifier of each as Rice FITS."""
    records, files = [], []
    for exposure in range(n):
        counts = bias_frame(camera.raw_shape, exposure)
        ccd = np.ascontiguousarray(np.broadcast_to(counts, (len(camera.amplifier_names), *counts.shape)))
        records.append(write_frame(str(folder / "store"), record(exposure, detector), ccd, {}))
        files.append(folder / f"{exposure}.fits")
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(counts, compression_type="RICE_1")]).writeto(files[-1])
    publish_frames(str(folder / "store"), records)
    return files


def ours(url: str, camera: Any, name: str, method: str, amplifiers: int) -> None:
    """What a task does for the first amplifiers of one CCD, opening the store included."""
    raw = open_raw(url, camera, chunked=False).sel(detector=name)
    results = bias_amplifiers(raw, camera.detector(name), camera.image_shape, StackConfig(method=method))
    for _ in range(amplifiers):
        next(results)


def ours_at_once(pool: ProcessPoolExecutor, *arguments: Any) -> None:
    """What `WORKERS` tasks do at once."""
    for future in [pool.submit(ours, *arguments) for _ in range(WORKERS)]:
        future.result()


def theirs(files: list[Path], **options: Any) -> None:
    """Combine the files with ccdproc, in single precision and with memory to spare."""
    ccdproc.combine([str(file) for file in files], unit="adu", hdu=1, dtype=np.float32, mem_limit=8e9, **options)


def parts(url: str, camera: Any, name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The steps of one amplifier, each on the result of those before it."""
    amplifier = camera.detector(name).amplifiers[0]
    raw = open_raw(url, camera, chunked=False)
    lazy: xr.DataArray = raw["counts"].sel(detector=name, amplifier=amplifier.name)
    counts = lazy.values
    n = len(counts)
    data = np.ascontiguousarray(counts[(slice(None), *amplifier.data.slices)])
    reference = reference_pixels(counts, amplifier)
    levels = row_levels(reference)
    one = np.ones(n, np.float32)
    calibration = Calibration(levels.level, None, one)
    noise = Noise((levels.read_noise**2).astype(np.float32), 0.0)
    yield "open the store", lambda: open_raw(url, camera, chunked=False)
    yield "read and decode", lambda: lazy.values
    yield "copy the data box", lambda: np.ascontiguousarray(counts[(slice(None), *amplifier.data.slices)])
    yield "row levels", lambda: row_levels(reference)
    yield "clipped mean", lambda: clipped_mean(data, calibration, noise)
    yield "all after reading", lambda: combine_amplifier(counts, amplifier, Transform(one), StackConfig())


def compressors(counts: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Size and decoding time of one amplifier under several compressors of Zarr."""
    found = []
    shuffles = {"bytes": numcodecs.Blosc.SHUFFLE, "bits": numcodecs.Blosc.BITSHUFFLE}
    out = np.empty_like(counts)
    for name, level, shuffle in itertools.product(("lz4", "zstd"), (1, 5), shuffles):
        codec = numcodecs.Blosc(name, level, shuffles[shuffle])
        packed = codec.encode(counts)
        seconds = interleaved({"decode": lambda c=codec, p=packed: c.decode(p, out)}, rounds)["decode"]
        ratio = counts.nbytes / len(packed)
        found.append({"codec": f"{name} {level} {shuffle} shuffled", "ratio": ratio, "ns": seconds / counts.size * 1e9})
    seconds = interleaved({"copy": lambda: np.copyto(out, counts)}, rounds)["copy"]
    return [{"codec": "none (copy)", "ratio": 1.0, "ns": seconds / counts.size * 1e9}, *found]


def measure(folder: Path, rounds: int, amplifiers: int) -> dict[str, Any]:
    """Times in ns per raw pixel and frame, ratios, breakdown and compressors."""
    camera = load_camera("lsstcam")
    name = camera.detectors[0].name
    files, url = make_data(folder, camera, name, NUMBER), str(folder / "store")
    pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"))
    job = (url, camera, name)
    functions = {
        "ours, clipped mean": lambda: ours(*job, "clipmean", amplifiers),
        "ours, median": lambda: ours(*job, "median", amplifiers),
        "workers, clipped mean": lambda: ours_at_once(pool, *job, "clipmean", amplifiers),
        "workers, median": lambda: ours_at_once(pool, *job, "median", amplifiers),
        "ccdproc, sigma clip": lambda: theirs(files, method="average", sigma_clip=True),
        "ccdproc, median": lambda: theirs(files, method="median"),
    }
    frames = NUMBER * int(np.prod(camera.raw_shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = interleaved(functions, max(rounds // 2, 1))
    pool.shutdown()
    shares = {"ours": amplifiers, "workers": amplifiers * WORKERS, "ccdproc": 1}
    times = {k: s / frames / shares[k.partition(",")[0]] * 1e9 for k, s in seconds.items()}
    split = {k: s / frames * 1e9 for k, s in interleaved(dict(parts(url, camera, name)), rounds).items()}
    pairs = (("clipped mean", "sigma clip"), ("median", "median"))
    ratios = {
        f"{who}, {a}": times[f"ccdproc, {b}"] / times[f"{who}, {a}"]
        for a, b in pairs
        for who in shares
        if who != "ccdproc"
    }
    shrunk = compressors(bias_frame(camera.raw_shape, 0), rounds)
    return {"times": times, "ratios": ratios, "parts": split, "compressors": shrunk}


def report(found: dict[str, Any], console: Console) -> None:
    """Print what `measure` found."""
    for title in ("times", "parts"):
        table = Table("", "ns", title=f"{title}: ns per raw pixel and frame, N = {NUMBER}")
        for name, value in found[title].items():
            table.add_row(name, f"{value:.2f}")
        console.print(table)
    table = Table("codec", "times smaller", "decode, ns per pixel", title="one amplifier of a bias")
    for row in found["compressors"]:
        table.add_row(row["codec"], f"{row['ratio']:.2f}", f"{row['ns']:.2f}")
    console.print(table)
    for name, ratio in found["ratios"].items():
        verdict = "pass" if ratio >= TARGET else "FAIL"
        console.print(f"{name}: {ratio:.0f} times faster than ccdproc, target {TARGET:g}: {verdict}")


def main() -> None:
    """Measure in a temporary folder, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 amplifiers, 3 rounds")
    parser.add_argument("--json", type=Path, help="file for times and ratios")
    arguments = parser.parse_args()
    as_worker()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), *((3, 2) if arguments.quick else (7, 16)))
    report(found, Console(width=110))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
