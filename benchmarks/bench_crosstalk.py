"""Speed of the removal of crosstalk: rows within a CCD, a sparse product between CCDs.

Run ``python benchmarks/bench_crosstalk.py [--rounds N] [--json FILE]``. All times come from one interleaved run,
median of the rounds; a CCD of LSSTCam, 16 raw amplifiers of 2048 x 576 pixels, float32. The traffic is what a
correction cannot do without: values, variance and mask read once and written once, by copies of these arrays.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import Entries, crosstalk_image, from_others

SHAPE = (16, 2048, 576)


def _entries(random: np.random.Generator, number: int) -> tuple[Entries, np.ndarray, np.ndarray]:
    """That many of the 240 pairs, and the same as dense matrices."""
    place = np.flatnonzero(~np.eye(16, dtype=bool).ravel())
    keep = np.zeros(256, bool)
    keep[random.choice(place, number, replace=False)] = True
    c = np.where(keep, random.normal(0, 5e-5, 256), 0).astype(np.float32).reshape(16, 16)
    c2 = (c * 1e-6).astype(np.float32)
    t, s = np.nonzero(c)
    return Entries(t, s, c[t, s], c2[t, s]), c, c2


def _dense(values: np.ndarray, variance: np.ndarray, c: np.ndarray, c2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same correction written with einsum over all pairs."""
    q = values
    for _ in range(2):
        q = values - np.einsum("ts,syx->tyx", c, q) - np.einsum("ts,syx->tyx", c2, q * q)
    return q, variance + np.einsum("ts,syx->tyx", c * c, variance)


def _matmul(values: np.ndarray, variance: np.ndarray, c: np.ndarray, c2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by dense BLAS products."""
    flat, var = values.reshape(16, -1), variance.reshape(16, -1)
    q = flat
    for _ in range(2):
        q = flat - c @ q - c2 @ (q * q)
    return q.reshape(values.shape), (var + (c * c) @ var).reshape(values.shape)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    random = np.random.default_rng(1)
    values = random.gamma(0.2, 1e4, SHAPE).astype(np.float32)
    variance, mask = values + np.float32(36), np.zeros(SHAPE, np.uint16)
    full, c, c2 = _entries(random, 240)
    few, _, _ = _entries(random, 44)
    detector = load_camera("lsstcam").detectors[0]
    pairs = Entries(np.array([3, 9, 12]), np.array([0, 5, 7]), np.full(3, 1e-5, "f4"), np.zeros(3, "f4"))
    dense = np.zeros((16, 16), np.float32)
    dense[pairs.targets, pairs.sources] = pairs.linear
    runs = {
        "memory traffic": lambda: (values.copy(), variance.copy(), mask.copy()),
        "rows, 240 pairs": lambda: crosstalk_image(values, variance, mask, full),
        "rows, 44 pairs": lambda: crosstalk_image(values, variance, mask, few),
        "einsum, dense": lambda: _dense(values, variance, c, c2),
        "BLAS, dense": lambda: _matmul(values, variance, c, c2),
        "other CCD, 3 pairs, sparse": lambda: from_others({"R22_S12": values}, {"R22_S12": pairs}, detector),
        "other CCD, einsum": lambda: np.einsum("ts,syx->tyx", dense, values),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(found)) for name, found in times.items()}
    table = Table("what", "ms", "of the memory traffic", "einsum takes")
    for name, seconds in medians.items():
        other = medians["other CCD, einsum" if name.startswith("other") else "einsum, dense"]
        table.add_row(
            name, f"{1e3 * seconds:.0f}", f"{seconds / medians['memory traffic']:.1f}", f"{other / seconds:.1f} x"
        )
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
