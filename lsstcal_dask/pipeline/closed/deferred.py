"""Closed loop of late charge: what flats say of transfers and offset against the simulator's truth (Sec. 3.1).

The specification has no target of its own for it; those of every estimate hold: no bias beyond 0.3 of the error, and
errors that are honest. mini9, its effects made large, so that small amplifiers tell; with traps of the register, which
the estimator takes for part of the trail, and without.
"""

from dataclasses import replace

import numpy as np

from lsstcal_dask.pipeline.closed.late_charge import EFFECTS, ladder, late_site, true
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.pipeline.closed.target import Target, pulls
from lsstcal_dask.products.deferred import DeferredConfig, deferred_amplifiers

__all__ = ["SEEDS", "measure"]

SEEDS = 30
_DETECTOR = "R22_S11"
_NAMES = ("serial_cti", "parallel_cti", "offset_amplitude", "offset_decay")
_LARGE = {"serial_e2v": 2e-6, "offset_e2v": 1e-3, "parallel_e2v": 1e-6}
_CASES = {"no traps": {**_LARGE, "traps_e2v": 0.0}, "traps": _LARGE}


def measure(seeds: int, amplifiers: int = 16) -> list[Target]:
    """Width and mean of the pulls of each quantity over the first amplifiers of a CCD and seeds."""
    found = []
    for title, numbers in _CASES.items():
        values = np.array([_pulls(seed, numbers, amplifiers) for seed in range(1, seeds + 1)])
        for name, own in zip(_NAMES, np.moveaxis(values, 1, 0), strict=True):
            found += pulls("3.1", f"{name}, {title}", own)
    return found


def _pulls(seed: int, numbers: dict[str, float], amplifiers: int) -> list[list[float]]:
    """Pulls (quantity, amplifier)."""
    site = late_site("mini9", seed, EFFECTS, **numbers)
    whole = site.camera.detector(_DETECTOR)
    ccd = replace(whole, amplifiers=whole.amplifiers[:amplifiers])
    products = {"gain": true_gains(site, [_DETECTOR]).isel(detector=0)}
    found: list[list[float]] = [[] for _ in _NAMES]
    for amplifier, result in deferred_amplifiers(ladder(site, ccd), ccd, None, DeferredConfig(), products):
        for name, own in zip(_NAMES, found, strict=True):
            own.append((float(result[name]) - true(site, ccd, name, amplifier)) / float(result[f"{name}_error"]))
    return found
