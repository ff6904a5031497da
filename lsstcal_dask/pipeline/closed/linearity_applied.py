"""Closed loop of the applied linearity: true signals through a channel and back (Sec. 3.2).

The channels are those of the virtual observatory on mini9; their curves, with dense nodes, become the product, and the
correction is that of a frame, from tables in float32.

- round trip: the product's own law inverted and applied again, whose error is that of tables and float32;
- channel: what the observatory's channel makes of a true signal, corrected; nodes and spline add to the error.
"""

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.linearity import curve, linearize_row, measured_signal, tables
from lsstcal_dask.pipeline.closed.target import Target, largest
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, true_to_measured
from lsstcal_dask.variables import MASK_BITS

__all__ = ["SEEDS", "measure"]

SEEDS = 9
TOP = 1.2e5  # adu
NODES = np.r_[0.0, np.geomspace(20, TOP, 600)]  # adu
TRUE = np.geomspace(100, 0.95 * TOP, 2000)  # adu


def product(seed: int, detector: Detector) -> xr.Dataset:
    """True curves of a CCD as the product ``linearity``."""
    corrections = []
    for i in range(len(detector.amplifiers)):
        found = linearity_truth(seed, Nonlinearity(), detector, i, NODES) - NODES
        corrections.append(found - found[0])
    n = len(detector.amplifiers)
    dims = ("amplifier", "node")
    return xr.Dataset(
        {
            "linearity_level": (dims, np.tile(NODES, (n, 1))),
            "linearity_correction": (dims, np.array(corrections)),
            "linearity_ceiling": ("amplifier", np.full(n, TOP)),
        },
        {"amplifier": [a.name for a in detector.amplifiers]},
    )


def corrected(measured: np.ndarray, linearity: xr.Dataset) -> np.ndarray:
    """Signals (amplifier, x), adu, corrected as those of a frame are."""
    found, out = tables(linearity), measured.astype(np.float32)
    for row, table, per_adu, ceiling in zip(out, found.table, found.per_adu, found.ceiling, strict=True):
        variance, mask = np.ones(len(row), np.float32), np.zeros(len(row), np.uint16)
        linearize_row(row, variance, mask, table, per_adu, ceiling, MASK_BITS["SUSPECT"])
    return out


def measure(seeds: int, *, correct: bool = True) -> list[Target]:
    """Largest relative errors; without correction, for comparison, those of the channel itself."""
    trips: list[np.ndarray] = []
    channels: list[np.ndarray] = []
    for seed in range(1, seeds + 1):
        camera = load_camera("mini9")
        detector = camera.detectors[seed % len(camera.detectors)]
        linearity = product(seed, detector)
        parts = [linearity.isel(amplifier=i) for i in range(linearity.sizes["amplifier"])]
        own = [measured_signal(curve(p["linearity_level"], p["linearity_correction"]), TRUE) for p in parts]
        seen = [true_to_measured(seed, Nonlinearity(), detector, i, TRUE) for i in range(len(parts))]
        for measured, errors in ((np.array(own), trips), (np.array(seen), channels)):
            errors.append((corrected(measured, linearity) if correct else measured) / TRUE - 1)
    return [
        Target("3.2", "round trip: largest error", "", -np.inf, 1e-5, *largest(np.array(trips)), seeds),
        Target("3.2", "true channel, corrected: largest error", "", -np.inf, 1e-5, *largest(np.array(channels)), seeds),
    ]
