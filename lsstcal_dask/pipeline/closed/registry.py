"""The closed loops by name, and how they are run: one task each."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Final

import dask

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.pipeline.closed.target import Target

__all__ = ["LOOPS", "chosen", "run_loops"]

LOOPS: Final[tuple[str, ...]] = (
    "bias",
    "gain",
    "transfer",
    "continuity",
    "muons",
    "linearity",
    "defects",
    "saturation",
    "crosstalk",
    "crosstalk_camera",
    "darks",
    "synthesis",
    "contamination",
    "sky",
    "fringes",
    "overscan",
    "deferred",
    "linearity_applied",
    "crosstalk_applied",
    "interpolation",
    "sky_flat",
    "photometric_flat",
)
"""Names of the loops, which are modules here, in the order of the document."""


def chosen(names: Sequence[str]) -> list[str]:
    """The loops that ``names`` name, each once, in their own order; "all" names all.

    Raises
    ------
    WrongUse
        There is no loop of a name.
    """
    if unknown := [name for name in names if name not in (*LOOPS, "all")]:
        raise WrongUse(f"there is no closed loop {unknown[0]!r}: choose from {', '.join(LOOPS)}, or all")
    return [name for name in LOOPS if name in names or "all" in names]


def run_loops(
    names: Sequence[str], seeds: int, compute: Compute, *, progress: bool = False
) -> Iterator[tuple[str, list[Target]]]:
    """Name and targets of each loop as it is done.

    Parameters
    ----------
    seeds : how many; 0 for as many as each loop takes to tell.

    Raises
    ------
    CalibrationError
        A loop could not be run.
    """
    task = dask.delayed(_run, pure=False)
    tasks = [task(name, seeds) for name in names]
    for name, result in compute.run(tasks, labels=list(names), describe="closed loops", progress=progress):
        if isinstance(result, Exception):
            raise CalibrationError(f"closed loop {name}: {result}") from result
        yield str(name), result


def _run(name: str, seeds: int) -> list[Target]:
    loop = import_module(f"{__package__}.{name}")
    return list(loop.measure(seeds or loop.SEEDS))
