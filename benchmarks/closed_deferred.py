"""Closed loop of late charge: what flats say of transfers and offset against the simulator's truth.

Run ``python benchmarks/closed_deferred.py [--seeds N] [--full]``. Pulls of small amplifiers with large effects over
seeds, by default, and with ``--full`` those of whole CCDs of LSSTCam with its own effects (minutes per CCD).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from making_deferred import gains, ladder, site, true

from lsstcal_dask.products.deferred import DeferredConfig, deferred_amplifiers

NAMES = ("serial_cti", "parallel_cti", "offset_amplitude", "offset_decay")
LARGE = {"serial_e2v": 2e-6, "offset_e2v": 1e-3, "parallel_e2v": 1e-6}


def pulls(camera: str, detector: str, seed: int, **numbers) -> dict[str, list[tuple[float, float]]]:
    """Pull and relative error of each amplifier, by name of the quantity."""
    where = site(camera, seed, **numbers)
    ccd = where.camera.detector(detector)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    raw, products = ladder(where, ccd), {"gain": gains(where, ccd)}
    for amplifier, result in deferred_amplifiers(raw, ccd, None, DeferredConfig(), products):
        for name in NAMES:
            truth, error = true(where, ccd, name, amplifier), float(result[f"{name}_error"])
            found[name].append(((float(result[name]) - truth) / error, error / truth))
    return found


def report(title: str, cases: list[tuple[str, str, int, dict]]) -> None:
    found: dict[str, list] = {name: [] for name in NAMES}
    for camera, detector, seed, numbers in cases:
        for name, rows in pulls(camera, detector, seed, **numbers).items():
            found[name] += rows
    table = Table("quantity", "width (0.9-1.1)", "bias (< 0.3)", "median relative error", "amplifiers", title=title)
    for name, rows in found.items():
        pull, error = np.array(rows).T
        table.add_row(name, f"{pull.std():.3f}", f"{pull.mean():+.3f}", f"{np.median(error):.2%}", str(len(pull)))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    still = {**LARGE, "traps_e2v": 0.0}
    report("mini9, large effects, no traps", [("mini9", "R22_S11", s, still) for s in range(given.seeds)])
    report("mini9, large effects, traps", [("mini9", "R22_S11", s, LARGE) for s in range(given.seeds)])
    if given.full:
        report("lsstcam e2v", [("lsstcam", "R22_S11", 1, {})])
        report("lsstcam ITL", [("lsstcam", "R01_S00", 1, {})])


if __name__ == "__main__":
    main()
