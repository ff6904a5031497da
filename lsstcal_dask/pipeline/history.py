"""How the gains of a store changed from product to product: jumps and drifts (Sec. 2.2).

Of every amplifier by a product that measures its gain; of every CCD by its muons, which no lamp or source can fool.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.errors import InsufficientInputs, WrongUse
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.history import Change, common_series, find_changes
from lsstcal_dask.storage.products import CAMERA_TEAM, Pointer, open_product

__all__ = ["HISTORIES", "GainChange", "MuonCheck", "gain_history", "muon_history"]

HISTORIES: Final = {"gain": "gain", "ptc": "gain", "continuity": "gain_relative", "muons": "gain_muons"}
"""The variable, with an error, by which the gains of a product are followed."""


@dataclass(frozen=True)
class GainChange:
    """One change of one amplifier, or of a CCD as a whole where there is no name of one; ``size`` is relative."""

    detector: str
    amplifier: str
    kind: str  # jump or drift
    since: str  # ISO, UTC: from when on the changed product is valid, or the drift began
    size: float
    error: float

    @property
    def sigma(self) -> float:
        """Significance."""
        return self.size / self.error


@dataclass(frozen=True)
class MuonCheck:
    """What muons say of the gain of a CCD: its change from the first epoch to the last, relative, and all changes."""

    detector: str
    epochs: int
    size: float
    error: float
    changes: tuple[GainChange, ...]

    @property
    def verdict(self) -> str:
        """Fail where the gain has changed, pass where it has not."""
        return "fail" if self.changes else "pass"


@dataclass(frozen=True)
class _Series:
    """Values and errors (epoch, amplifier) of a CCD, in the order of its amplifiers."""

    detector: str
    amplifiers: tuple[str, ...]
    starts: list[str]  # ISO, of each epoch
    value: np.ndarray
    error: np.ndarray

    @property
    def days(self) -> np.ndarray:
        """Time of each epoch (n,)."""
        start = np.array(self.starts, "datetime64[s]")
        return np.asarray((start - start[0]) / np.timedelta64(1, "D"))

    def named(self, amplifier: str, change: Change) -> GainChange:
        """A change with its place and time."""
        since = self.starts[change.at]
        return GainChange(self.detector, amplifier, change.kind, since, change.size, change.error)


def gain_history(store: Store, *, product: str = "gain", threshold: float = 5.0) -> list[GainChange]:
    """Jumps and drifts of ``threshold`` sigma or more, in the order of detectors and amplifiers.

    Parameters
    ----------
    product : one of `HISTORIES`.

    Raises
    ------
    InsufficientInputs
        Fewer than two epochs of the product are published.
    WrongUse
        It has no gains.
    """
    if product not in HISTORIES:
        raise WrongUse(f"there is no history of {product!r}: choose from {', '.join(HISTORIES)}, or a cube")
    variable = HISTORIES[product]
    return [
        one.named(amplifier, change)
        for one in _series(store, product, variable)
        for i, amplifier in enumerate(one.amplifiers)
        for change in find_changes(one.days, one.value[:, i], one.error[:, i], threshold)
    ]


def muon_history(store: Store, *, threshold: float = 5.0) -> list[MuonCheck]:
    """What muons say of every CCD that has two epochs of them; the amplifiers of a CCD are taken together.

    Raises
    ------
    InsufficientInputs
        Fewer than two epochs of muons are published.
    """
    found = []
    for one in _series(store, "muons", "gain_muons"):
        value, error = common_series(one.value, one.error)
        there = np.flatnonzero(np.isfinite(value))
        if len(there) < 2:
            continue
        first, last = there[0], there[-1]
        size = float(value[last] / value[first] - 1)
        changes = tuple(one.named("", change) for change in find_changes(one.days, value, error, threshold))
        found.append(MuonCheck(one.detector, len(there), size, float(np.hypot(error[first], error[last])), changes))
    return found


def _series(store: Store, product: str, variable: str) -> Iterator[_Series]:
    """A variable of each detector through the epochs of a product."""
    epochs = _epochs(store.url, product)
    if len(epochs) < 2:
        raise InsufficientInputs(
            f"{product}: {len(epochs)} epochs are published, two are needed to compare: build more (--by-night)"
        )
    opened = [open_product(store.url, product, p.version, chunked=False) for p in epochs]
    for detector in store.camera.detectors:
        names = tuple(amplifier.name for amplifier in detector.amplifiers)
        table = np.full((2, len(epochs), len(names)), np.nan)
        for k, (one, pointer) in enumerate(zip(opened, epochs, strict=True)):
            if detector.name in pointer.detectors:
                part = one.sel(detector=detector.name, amplifier=list(names))
                table[:, k] = part[variable].values, part[f"{variable}_error"].values
        yield _Series(detector.name, names, [p.valid_from for p in epochs], *table)


def _epochs(url: str, product: str) -> list[Pointer]:
    """Versions of a product by their start, the last made of each, none that is outdated.

    All were measured here, or else delivered: what the two differ by is no jump.
    """
    upstream = read_upstream(url)
    there = [p for p in upstream.pointers if p.name == product and p.version not in upstream.outdated]
    measured = [p for p in there if p.origin != CAMERA_TEAM]
    latest: dict[str, Pointer] = {p.valid_from: p for p in sorted(measured or there, key=lambda p: p.created)}
    return [latest[start] for start in sorted(latest)]
