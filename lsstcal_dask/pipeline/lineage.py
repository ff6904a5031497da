"""What a published cube was made from, so that products made of it are found outdated when that changes.

Each slot of a cube says it in clear: the headers of the exposures, the products of each CCD, the settings, what the
photodiode's table said. Slots that were claimed before they did so have lost it: then the exposures count as they are
now, and the products that were to be used when the slice was published first; what the table said is not compared.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.sequence import BY_FILTER, NEEDED, ORDERS
from lsstcal_dask.pipeline.photodiode import PhotodiodeNow
from lsstcal_dask.pipeline.upstream import Upstream
from lsstcal_dask.storage.cubelayout import Cube, Slot, list_pointers, read_claim
from lsstcal_dask.storage.manifests import read_records, record_digests, record_headers, same_entry
from lsstcal_dask.storage.products import Pointer, lookup
from lsstcal_dask.storage.provenance import digest

__all__ = ["cube_inputs", "outdated_slices", "superseded"]


def cube_inputs(cube: Cube, upstream: Upstream) -> dict[str, Any]:
    """Inputs of a product made of a cube: what its slices were made of.

    Returns
    -------
    ``headers`` {exposure: hash} and ``upstream`` {detector: {"gain 0": "version/hash"}}, as `storage.products.outdated`
    reads them, and ``photodiode`` {wavelength: hash}, as `pipeline.inputs.corrected` does.
    """
    told = {one.slot: read_claim(cube.url, cube.name, one.slot).get("made_of") for one in cube.pointer.slots}
    headers, used = _guessed_inputs(cube, {slot for slot, own in told.items() if own is None}, upstream)
    hashes = {p.version: p.hash for p in upstream.pointers}
    diode: dict[str, str] = {}
    for one in cube.pointer.slots:
        own = told[one.slot]
        if own is None:
            continue
        headers |= {exposure: digest(header) for exposure, header in own["headers"].items()}
        diode |= {str(one.wavelength): digest(own["photodiode"])} if "photodiode" in own else {}
        for group in own["products"]:
            pairs = {f"{version}/{hashes.get(version, '')}": name for name, version in group["versions"].values()}
            for detector in group["detectors"]:
                mine = used.setdefault(detector, {})
                for text, name in pairs.items():
                    if text not in mine.values():
                        mine[f"{name} {len(mine)}"] = text
    return {"headers": dict(sorted(headers.items())), "upstream": used, "photodiode": diode}


def _guessed_inputs(
    cube: Cube, slots: set[int], upstream: Upstream
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Headers and products of slices that do not say what they were made from."""
    if not slots:
        return {}, {}
    headers = record_digests(read_records(cube.url))
    first = _first_published(cube)
    order = cube.pointer.configuration.get("calibrate", {}).get("order", next(iter(ORDERS)))
    steps = [step for step in ORDERS[order] if step in NEEDED and step not in BY_FILTER]
    known = [p for p in upstream.pointers if p.name in {NEEDED[step] for step in steps}]
    used: dict[str, dict[str, str]] = {}
    own = [(one, row) for one, row in zip(cube.pointer.slots, cube.present.T, strict=True) if one.slot in slots]
    for one, row in own:
        before = [p for p in known if _moment(p.created) <= _moment(first[one.slot])]
        for detector in (name for name, there in zip(cube.layout.detectors, row, strict=True) if there):
            mine = used.setdefault(detector, {})
            for name in (NEEDED[step] for step in steps):
                pointer = _used(before, name, detector, one, upstream)
                text = f"{pointer.version}/{pointer.hash}" if pointer else ""
                if text and text not in mine.values():
                    mine[f"{name} {len(mine)}"] = text
    names = {exposure for one, _ in own for exposure in one.exposures}
    return {name: headers[name] for name in names & set(headers)}, used


def outdated_slices(url: str, name: str, slots: Sequence[Slot], upstream: Upstream) -> dict[int, str]:
    """Slots of a cube whose exposures or products are others now, and why; 'lsstcal cube' makes them again."""
    headers = record_headers(read_records(url))
    now, diode = _Now(upstream), PhotodiodeNow(url)
    found = {}
    for one in slots:
        made_of = read_claim(url, name, one.slot).get("made_of")
        if made_of is not None and (why := next(_changes(made_of, one, headers, now, diode), "")):
            found[one.slot] = why
    return found


def _changes(
    made_of: Mapping[str, Any],
    slot: Slot,
    headers: Mapping[str, Mapping[str, Any]],
    products: "_Now",
    diode: PhotodiodeNow,
) -> Iterator[str]:
    """What has changed since a slice was made, one after the other."""
    for exposure, then in made_of["headers"].items():
        if exposure not in headers:
            yield f"made from exposure {exposure}, which is not in the store any more"
            continue
        now = headers[exposure]
        other = [key for key in {**then, **now} if not same_entry(then.get(key), now.get(key))]
        if other:
            told = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in other)
            yield f"made from exposure {exposure}, whose header has changed since: {told}"
    if (said := made_of.get("photodiode")) and (says := diode.at(slot.wavelength)) != said:
        other = [key for key in said if says.get(key) != said[key]]
        told = ", ".join(f"{key} was {said[key]!r} and is {says.get(key)!r}" for key in other)
        yield f"made with inputs/photodiode.ecsv, which has changed since: {told}"
    for group in made_of["products"]:
        for name, version in group["versions"].values():
            for detector in group["detectors"]:
                if why := products.replaced(name, version, detector, slot.time):
                    yield why


class _Now:
    """Products as they are now; each is looked up once between two changes of validity."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._changes = sorted({t for p in upstream.pointers for t in (p.valid_from, p.valid_until)})
        self._known: dict[tuple[str, str, int], str] = {}

    def replaced(self, name: str, version: str, detector: str, time: str) -> str:
        """Why a CCD would be corrected with another product now; empty if it would not."""
        upstream = self.upstream
        if version in upstream.outdated:
            return f"made with {name} {version}, which was {upstream.outdated[version]}"
        key = (name, detector, bisect_right(self._changes, time))
        if key not in self._known:
            try:
                self._known[key] = lookup(
                    upstream.pointers, name, detector, time, upstream.outdated, upstream.accepted
                ).version
            except CalibrationError:
                self._known[key] = ""
        now = self._known[key]
        if not now:
            return f"{detector}: made with {name} {version}, and none is valid at its time now"
        return "" if now == version else f"{detector}: made with {name} {version}, which {now} has replaced"


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
