"""Flat cubes as they are written: slice by slice, resumed after a kill, published by one small pointer (¶9, §7).

See `cubelayout` for what lies where. A slice of a wavelength has a *slot*, its place along the stored axis, claimed
by one small file that is never changed. Each CCD is written by itself: reference, codes, exceptions, and last the
marker that says it is whole. Nothing is visible before `publish_cube` has written the pointer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import Coded, Slice, encode_slice
from lsstcal_dask.storage.cubearrays import create_arrays, every_slot, mend_numbers, with_checksum, write_numbers
from lsstcal_dask.storage.cubelayout import (
    SLOT_COORDS,
    CubeLayout,
    CubePointer,
    Slot,
    base,
    exception_bytes,
    last_number,
    list_pointers,
    load_layout,
    lost_mask,
    mask_checksum,
    read_mask,
    shard_path,
)
from lsstcal_dask.storage.provenance import digest, hash_arrays
from lsstcal_dask.storage.shards import ShardFile
from lsstcal_dask.variables import MASK_BITS

__all__ = ["claim_slot", "create_cube", "publish_after", "publish_cube", "write_slice"]


def create_cube(url: str, name: str, layout: CubeLayout) -> CubeLayout:
    """Create an empty cube, or open the one that is there.

    Raises
    ------
    CalibrationError
        There is one of another form or camera.
    """
    objects.create(url, f"{base(name)}/cube.json", asdict(layout))
    found = load_layout(url, name)
    if found != layout:
        what = next(key for key in asdict(layout) if getattr(found, key) != getattr(layout, key))
        raise CalibrationError(
            f"cube {name} of {url} has {what} {getattr(found, what)!r}, not {getattr(layout, what)!r}: "
            f"give the new one another --name"
        )
    there = set(objects.list_names(url, f"{base(name)}/data"))
    if not (objects.exists(url, f"{base(name)}/arrays.json") and set(SLOT_COORDS) <= there):
        create_arrays(url, name, layout)
        objects.write_json(url, f"{base(name)}/arrays.json", sorted(objects.list_names(url, f"{base(name)}/data")))
    return found


def claim_slot(url: str, name: str, record: Mapping[str, Any]) -> int:
    """Number of a new slot for a slice; no two claims get the same one.

    Parameters
    ----------
    record : what determines its bits, kept as ``slots/SLOT.json``.
    """
    taken = objects.list_names(url, f"{base(name)}/slots")
    number = 1 + max((int(one.removesuffix(".json")) for one in taken if one.endswith(".json")), default=-1)
    while not objects.create(url, f"{base(name)}/slots/{number:05d}.json", dict(record)):
        number += 1
    return number


def write_slice(url: str, name: str, place: tuple[int, str], given: Slice, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write one CCD of a slice, and then its marker.

    Of one CCD write the slots in their order: form i1 chooses its reference among those before it.

    Parameters
    ----------
    place : slot, and name of the detector.
    given : its image.
    about : what else the marker is to hold, JSON: ``total`` and ``pixels``, see `cubelayout.SUMS`, and more.

    Returns
    -------
    The marker: ``hash``, ``usable`` (number of amplifiers), ``numbers``, ``reference_slot``, ``exceptions`` (their
    number), and what ``about`` holds. Writing the same slice again, or after a kill, ends in the same bytes.
    """
    slot, detector = place
    layout = load_layout(url, name)
    index = layout.detectors.index(detector)
    usual = _usual_mask(url, name, layout, index, given)
    at, coded = _encoded(url, name, (index, slot), given, usual)
    if coded.reference is not None:
        blob = layout.reference_codec.encode(coded.reference, coded.there)
        objects.write_bytes(url, shard_path(name, "reference", index, slot), blob)
    objects.write_bytes(url, shard_path(name, "codes", index, slot), layout.codec.encode(coded.codes, coded.there))
    path = f"{base(name)}/exceptions/{slot:05d}/{detector}.npy"
    objects.write_bytes(url, path, exception_bytes(coded.exceptions))
    everything = {**coded.numbers, "codes": coded.codes, "exceptions": coded.exceptions.view(np.uint8)}
    marker = {
        "hash": hash_arrays(everything | ({} if coded.reference is None else {"reference": coded.reference})),
        "usable": int(coded.there.sum()),
        "numbers": {key: [_plain(v) for v in values] for key, values in coded.numbers.items()},
        "reference_slot": at,
        "exceptions": len(coded.exceptions),
        "mask": mask_checksum(usual),
        **about,
    }
    objects.write_json(url, f"{base(name)}/done/{slot:05d}/{detector}.json", marker)
    return marker


def _encoded(url: str, name: str, place: tuple[int, int], given: Slice, usual: np.ndarray) -> tuple[int, Coded]:
    """Slot of the reference, and what is stored: with the first reference that fits, or as one itself."""
    layout = load_layout(url, name)
    for at, reference in _references(url, name, layout, *place):
        coded = encode_slice(given, layout.form, usual, reference)
        if coded.reference is None:
            return at, coded
    return place[1], coded


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _usual_mask(url: str, name: str, layout: CubeLayout, index: int, given: Slice) -> np.ndarray:
    """Mask (amplifier, y, x) of a CCD at all wavelengths: that of its first slice, which the first writer stores.

    Hits and saturation belong to a slice. A dead amplifier may live at other wavelengths, so it is not told here.
    """
    found = read_mask(url, name, layout, index)
    if found is None:
        det, done = layout.detectors[index], f"{base(name)}/done"
        if any(objects.exists(url, f"{done}/{slot}/{det}.json") for slot in objects.list_names(url, done)):
            raise lost_mask(url, name, layout, index, "it is missing")
        passing = MASK_BITS["COSMIC_RAY"] | MASK_BITS["SATURATED"] | MASK_BITS["CROSSTALK"]
        filled = np.uint16(MASK_BITS["INTERPOLATED"]) * ((given.mask & np.uint16(MASK_BITS["COSMIC_RAY"])) != 0)
        found = given.mask & np.uint16(~passing & 0xFFFF) & ~filled  # a hit is filled in its own slice only
        dead = ~np.isfinite(given.value).any(axis=(1, 2))
        found[dead] &= np.uint16(~MASK_BITS["NO_DATA"] & 0xFFFF)
        if not objects.create_bytes(url, shard_path(name, "mask", index), layout.mask_codec.encode(found)):
            return _usual_mask(url, name, layout, index, given)  # another run began this CCD at the same time
    return found


def _references(
    url: str, name: str, layout: CubeLayout, index: int, slot: int
) -> Iterator[tuple[int, np.ndarray | None]]:
    """References to try, slot and image: of earlier slots the two whose wavelengths are nearest, then none."""
    folder = shard_path(name, "reference", index, 0).removesuffix("/0/0/0")
    names = objects.list_names(url, folder) if layout.form == "i1" else []
    known = [int(one) for one in names if one.isdigit() and int(one) < slot]
    if known:
        wavelengths = [objects.read_json(url, f"{base(name)}/slots/{s:05d}.json")["wavelength"] for s in (slot, *known)]
        away = np.abs(np.array(wavelengths[1:]) - wavelengths[0])
        codec = layout.reference_codec
        for at in np.argsort(away, kind="stable")[:2]:
            out = np.empty(codec.shape, np.float32)
            path = shard_path(name, "reference", index, known[at])
            ShardFile(url, codec).read(path, range(codec.shape[0]), out)
            yield known[at], out
    yield -1, None


def publish_cube(url: str, name: str, slots: Sequence[Slot], about: Mapping[str, Any]) -> CubePointer:
    """Make slices visible, all at once, whatever another writer publishes meanwhile: see `publish_after`."""
    while True:
        if made := publish_after(url, name, slots, about, last_number(url, name)):
            return made


def publish_after(
    url: str, name: str, slots: Sequence[Slot], about: Mapping[str, Any], last: int
) -> CubePointer | None:
    """Make slices visible, all at once; what is published already stays readable as it was.

    Parameters
    ----------
    slots : every slice that the cube is to have from now on.
    about : ``configuration``, ``software`` and ``remarks`` of the cube.
    last : number of the publication that ``slots`` go on from, 0 for none.

    Returns
    -------
    The new pointer, or the last one where nothing changed, or None where another writer published meanwhile.
    """
    before = list_pointers(url, name)
    if last != (before[-1].number if before else 0):
        return None
    ordered = sorted((with_checksum(url, name, one) for one in slots), key=lambda one: (one.wavelength, one.slot))
    _fill(url, name, before, ordered)
    if before and _same(before[-1].slots, ordered):
        return before[-1]
    made = CubePointer(number=last + 1, slots=ordered, created=datetime.now(UTC).isoformat(), **about)
    if not objects.create(url, f"{base(name)}/published/{made.number:05d}.json", asdict(made)):
        return None
    mend_numbers(url, name)  # another writer may have written its numbers over these
    return made


def _fill(url: str, name: str, before: Sequence[CubePointer], slots: Sequence[Slot]) -> None:
    """Let the arrays hold the numbers of slices, and of those that were published before."""
    everything = {one.slot: one for one in (*every_slot(before), *slots)}
    mine = {one.slot for one in slots}
    lost = write_numbers(url, name, load_layout(url, name), list(everything.values()))
    for one in (one for one in lost if one.slot in mine):
        raise StoreFailure(
            f"cube {name} at {one.wavelength:.2f} nm: its numbers are damaged, and not in its markers either: delete "
            f"{base(name)}/done/{one.slot:05d}, then run 'lsstcal cube {url} --name {name}' again"
        )


def _same(one: Sequence[Slot], other: Sequence[Slot]) -> bool:
    return digest([asdict(s) for s in one]) == digest([asdict(s) for s in other])  # NaN is NaN there
