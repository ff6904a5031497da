"""Broadband flats and slices of a cube in time: which flat is of the cube's epoch, and how long dust counts (2.8.2).

Dust comes and stays. A flat stands for the slices only if it was taken near to them. And of what is found in a flat
that is older than the slices, they have it themselves or it went before they were taken: it ends where they begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.pipeline.broadband import start_of
from lsstcal_dask.storage.cubes import Cube
from lsstcal_dask.storage.products import Pointer

__all__ = ["NEAR", "Epoch", "choose_reference", "epoch_of"]

NEAR: Final = 14
"""Days from half of the slices within which a flat counts as of their epoch: dust takes months to come."""

_RUN: Final = 2  # nights, no more of which lie between slices of one run
_LIT: Final = 0.01  # of the light of the slice with most of it: less is of no weight


@dataclass(frozen=True, eq=False)
class Epoch:
    """When the slices were taken that have the light of a band."""

    nights: np.ndarray  # (n,) datetime64[D], one a slice
    start: str  # ISO, UTC: noon before the run of slices, of whatever light, in which the first of them was taken

    def days(self, flat: Pointer) -> float:
        """Days from the night of a flat to half of the slices."""
        return float(np.median(np.abs((self.nights - _night(flat)).astype(int))))

    def end(self, measured: Pointer) -> str:
        """End of validity of what a flat tells, ISO, UTC: the beginning of slices that are newer; empty if none is."""
        return self.start if measured.valid_from < self.start else ""


def epoch_of(cube: Cube, light: np.ndarray) -> Epoch:
    """Epoch of the slices of a cube whose shares of the light of a band are ``light`` (k,)."""
    taken = np.array([one.time for one in cube.pointer.slots], "datetime64[s]")
    every = (taken - np.timedelta64(12, "h")).astype("datetime64[D]")
    own = every[light > _LIT * light.max()]
    before = np.unique(every[every <= own.min()])
    run = np.split(before, np.flatnonzero(np.diff(before).astype(int) > _RUN) + 1)[-1]
    return Epoch(own, start_of(run[0]))


def choose_reference(measured: Pointer, known: Sequence[Pointer], epoch: Epoch) -> tuple[Pointer | None, str]:
    """Of the flats that are ``known``, in the order of time, the one of the epoch; or None, and why there is none.

    One that was taken after both the measured one and the slices is none: dust that came after them would be in what
    is divided by, and be turned into light.
    """
    if not any(_night(one) != _night(measured) for one in known):
        return None, "there is none of another night"
    earlier = [one for one in known if one.valid_from <= max(measured.valid_from, epoch.start)]
    nearest = min(reversed(earlier), key=epoch.days)
    if _night(nearest) == _night(measured):
        return None, "none of another night is nearer to its slices, unless it was taken after both"
    if (days := epoch.days(nearest)) > NEAR:
        return None, f"the nearest, of {_night(nearest)}, is {days:.0f} days off its slices, more than {NEAR}"
    return nearest, ""


def _night(flat: Pointer) -> np.datetime64:
    """Night of a flat: the date of the noon at which its validity begins."""
    return np.datetime64(flat.valid_from, "D")
