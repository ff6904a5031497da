"""Covariances of a difference image to lag 8, with a mask: summed directly against the FFT of image and mask.

Run ``python benchmarks/bench_covariances.py [--quick] [--json FILE]``. Both are timed in turn on the sixteen
amplifiers of an LSST CCD; the ratio of each turn counts, and their median is printed. The FFTs are real ones, in
float64, padded with zeros to a size that has small factors.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft

from lsstcal_dask.statistics import covariances

SHAPE = (2002, 512)
LAG = 8
AMPLIFIERS = 16
TARGET = 8.0


def by_fft(image: np.ndarray, good: np.ndarray, max_lag: int) -> np.ndarray:
    """Covariances (lag y, lag x) from the correlations of the image and of its mask."""
    shape = [scipy.fft.next_fast_len(n + max_lag, real=True) for n in image.shape]
    parts = np.where(good, image, 0.0), good.astype(np.float64)
    total, pairs = (np.fft.irfft2(np.abs(np.fft.rfft2(part, shape)) ** 2, shape) for part in parts)
    lag = np.arange(max_lag + 1)
    total, pairs = ((p[: max_lag + 1, lag] + p[: max_lag + 1, -lag]) / 2 for p in (total, np.round(pairs)))
    # along an axis both signs are one lag, which half of their sum is as well
    return np.asarray(total / pairs)


def measure(rounds: int) -> dict[str, Any]:
    """Seconds a CCD of both, their ratio, and by how much they differ over the variance."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=SHAPE)
    good = rng.random(SHAPE) > 1e-3
    good[:, 77] = False
    ours, fft = covariances(image, good, LAG)[0], by_fft(image, good, LAG)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(AMPLIFIERS):
            covariances(image, good, LAG)
        middle = time.perf_counter()
        for _ in range(AMPLIFIERS):
            by_fft(image, good, LAG)
        times.append((middle - start, time.perf_counter() - middle))
    direct, naive = np.median(times, axis=0)
    ratio = float(np.median([b / a for a, b in times]))
    return {"direct": float(direct), "fft": float(naive), "ratio": ratio, "difference": float(np.abs(ours - fft).max())}


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measure(3 if asked.quick else 9)
    print(
        f"covariances to lag {LAG} of a CCD: direct {1e3 * found['direct']:.0f} ms, FFT {1e3 * found['fft']:.0f} ms, "
        f"ratio {found['ratio']:.1f} (target {TARGET:g}); they agree to {found['difference']:.1e}"
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
