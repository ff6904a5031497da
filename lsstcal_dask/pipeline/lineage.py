"""What a published cube was made from, so that products made of it are found outdated when that changes.

A cube keeps the exposures of its slices. The products that corrected them are those that were to be used when a slice
was published first: the last made until then that is valid at the time of its exposures.
"""

from typing import Any

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.sequence import BY_FILTER, NEEDED, ORDERS
from lsstcal_dask.pipeline.upstream import Upstream
from lsstcal_dask.storage.cubelayout import Cube, Slot, list_pointers
from lsstcal_dask.storage.manifests import read_records, record_digests
from lsstcal_dask.storage.products import Pointer, lookup

__all__ = ["cube_inputs", "superseded"]


def cube_inputs(cube: Cube, upstream: Upstream) -> dict[str, Any]:
    """Inputs of a product made of a cube: headers of the exposures as they are now, and products, by CCD.

    Returns
    -------
    ``headers`` {exposure: hash} and ``upstream`` {detector: {"gain 0": "version/hash"}}, as `storage.products.outdated`
    reads them.
    """
    headers = record_digests(read_records(cube.url))
    first = _first_published(cube)
    order = cube.pointer.configuration.get("calibrate", {}).get("order", next(iter(ORDERS)))
    steps = [step for step in ORDERS[order] if step in NEEDED and step not in BY_FILTER]
    known = [p for p in upstream.pointers if p.name in {NEEDED[step] for step in steps}]
    used: dict[str, dict[str, str]] = {}
    for one, row in zip(cube.pointer.slots, cube.present.T, strict=True):
        before = [p for p in known if _moment(p.created) <= _moment(first[one.slot])]
        for detector in (name for name, there in zip(cube.layout.detectors, row, strict=True) if there):
            mine = used.setdefault(detector, {})
            for name in (NEEDED[step] for step in steps):
                pointer = _used(before, name, detector, one, upstream)
                text = f"{pointer.version}/{pointer.hash}" if pointer else ""
                if text and text not in mine.values():
                    mine[f"{name} {len(mine)}"] = text
    names = {exposure for one in cube.pointer.slots for exposure in one.exposures}
    return {"headers": {name: headers[name] for name in sorted(names & set(headers))}, "upstream": used}


def superseded(pointer: Pointer, detector: str, name: str, upstream: Upstream) -> tuple[str, str]:
    """Version of a product with which another was made, and the one that has replaced it since; empty if none has.

    One for another time does not replace it: flats of last month are right with gains of last month.
    """
    with_it = {text.partition("/")[0] for text in pointer.inputs.get("upstream", {}).get(detector, {}).values()}
    for old in (p for p in upstream.pointers if p.name == name and p.version in with_it):
        now = lookup(upstream.pointers, name, detector, old.valid_from, accepted=upstream.accepted)
        if now.version not in with_it:
            return old.version, now.version
    return "", ""


def _first_published(cube: Cube) -> dict[int, str]:
    """Time at which each slot was published first."""
    found: dict[int, str] = {}
    for pointer in sorted(list_pointers(cube.url, cube.name), key=lambda one: one.number):
        for one in pointer.slots:
            found.setdefault(one.slot, pointer.created)
    return found


def _used(before: list[Pointer], name: str, detector: str, slot: Slot, upstream: Upstream) -> Pointer | None:
    try:
        return lookup(before, name, detector, slot.time, accepted=upstream.accepted)
    except CalibrationError:
        return None  # left out of the slices


def _moment(text: str) -> np.datetime64:
    """UTC; products say it without an offset, cubes with one."""
    return np.datetime64(text.removesuffix("+00:00"), "us")
