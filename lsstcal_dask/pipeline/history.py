"""How the gains of a store changed from product to product: jumps and drifts of every amplifier (Sec. 2.2)."""

from dataclasses import dataclass

import numpy as np

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.history import find_changes
from lsstcal_dask.storage.products import Pointer, open_product

__all__ = ["GainChange", "gain_history"]


@dataclass(frozen=True)
class GainChange:
    """One change of one amplifier; ``size`` is relative."""

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


def gain_history(
    store: Store, *, product: str = "gain", variable: str = "gain", threshold: float = 5.0
) -> list[GainChange]:
    """Jumps and drifts of ``threshold`` sigma or more, in the order of detectors and amplifiers.

    Parameters
    ----------
    product : any with ``variable`` and its error: gain, ptc, or continuity with ``gain_relative``.

    Raises
    ------
    InsufficientInputs
        Fewer than two epochs of the product are published.
    """
    epochs = _epochs(store.url, product)
    if len(epochs) < 2:
        raise InsufficientInputs(
            f"{product}: {len(epochs)} epochs are published, two are needed to compare: build more (--by-night)"
        )
    opened = [open_product(store.url, product, p.version, chunked=False) for p in epochs]
    start = [np.datetime64(p.valid_from) for p in epochs]
    days = [(when - start[0]) / np.timedelta64(1, "D") for when in start]
    found = []
    for detector in store.camera.detectors:
        there = [detector.name in pointer.detectors for pointer in epochs]
        parts = [one.sel(detector=detector.name) if here else None for one, here in zip(opened, there, strict=True)]
        for amplifier in detector.amplifiers:
            value, error = (
                [np.nan if part is None else float(part[name].sel(amplifier=amplifier.name)) for part in parts]
                for name in (variable, f"{variable}_error")
            )
            found += [
                GainChange(detector.name, amplifier.name, c.kind, epochs[c.at].valid_from, c.size, c.error)
                for c in find_changes(days, value, error, threshold)
            ]
    return found


def _epochs(url: str, product: str) -> list[Pointer]:
    """Versions of a product by their start, the last made of each, none that is outdated."""
    upstream = read_upstream(url)
    latest: dict[str, Pointer] = {}
    for pointer in sorted(upstream.pointers, key=lambda p: p.created):
        if pointer.name == product and pointer.version not in upstream.outdated:
            latest[pointer.valid_from] = pointer
    return [latest[start] for start in sorted(latest)]
