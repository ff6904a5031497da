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
import zarr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import NUMBERS, Coded, Slice, encode_slice
from lsstcal_dask.storage.cubelayout import (
    SLOT_COORDS,
    SUMS,
    CubeLayout,
    CubePointer,
    Slot,
    base,
    exception_bytes,
    list_pointers,
    load_layout,
    read_mask,
    shard_path,
)
from lsstcal_dask.storage.provenance import digest, hash_arrays
from lsstcal_dask.storage.shards import ShardCodec, ShardFile, shard_settings
from lsstcal_dask.variables import MASK_BITS, VARIABLES, attributes, mask_attributes

__all__ = ["claim_slot", "create_cube", "publish_cube", "read_markers", "read_sums", "write_slice"]

_SLOTS = 64  # of numbers in a chunk: few files to open, and not much to write again when one is added


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
        _create_arrays(url, name, layout)
        objects.write_json(url, f"{base(name)}/arrays.json", sorted(objects.list_names(url, f"{base(name)}/data")))
    return found


def _create_arrays(url: str, name: str, layout: CubeLayout) -> None:
    where, sizes = f"{base(name)}/data", {**layout.sizes, "wavelength": 0}
    cube = ("detector", "amplifier", "wavelength", "y", "x")
    images: dict[str, tuple[ShardCodec, tuple[str, ...], float]] = {
        "codes": (layout.codec, cube, 0),
        "mask": (layout.mask_codec, (*cube[:2], *cube[3:]), 1),
    }
    if layout.form == "i1":
        images["reference"] = (layout.reference_codec, cube, np.nan)
    for var, (codec, dims, fill) in images.items():
        extra = {"attributes": mask_attributes() if var == "mask" else {"form": layout.form}, "fill_value": fill}
        objects.create_or_open(url, where, name=var, **shard_settings(codec, dims, sizes), **extra)
    for var in NUMBERS:
        _create_small(url, where, var, ("detector", "amplifier", "wavelength"), sizes, np.nan)
    for var in SUMS:
        _create_small(url, where, var, ("detector", "amplifier", "wavelength"), sizes, 0.0)
    _create_small(url, where, "reference_slot", ("detector", "wavelength"), sizes, -1)
    for var in SLOT_COORDS:
        _create_small(url, where, var, ("wavelength",), sizes, np.nan)
    for var, names in (("detector", layout.detectors), ("amplifier", layout.amplifiers)):
        target = objects.create_or_open(
            url, where, name=var, shape=(len(names),), dtype="string", dimension_names=(var,)
        )
        objects.fill(url, target, np.array(names, dtype=object))
    _consolidate(url, where, layout)


def _create_small(url: str, where: str, var: str, dims: tuple[str, ...], sizes: Mapping[str, int], fill: float) -> None:
    objects.create_or_open(
        url,
        where,
        name=var,
        shape=tuple(sizes[dim] for dim in dims),
        chunks=tuple(_SLOTS if dim == "wavelength" else sizes[dim] for dim in dims),
        dtype="int32" if isinstance(fill, int) else "float64",
        fill_value=fill,
        dimension_names=dims,
        attributes=attributes(var) if var in VARIABLES else {},
    )


def _consolidate(url: str, where: str, layout: CubeLayout) -> None:
    """Metadata of all arrays in that of the group: a reader sees the old size of all of them or the new one."""
    names = [name for name in objects.list_names(url, where) if name != "zarr.json" and not name.endswith(".partial")]
    found = {name: objects.read_json(url, f"{where}/{name}/zarr.json") for name in sorted(names)}
    inline = {"kind": "inline", "must_understand": False, "metadata": found}
    meaning = "value = offset + scale * codes + level * reference[reference_slot], but for the exceptions"
    group = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": inline}
    objects.write_json(url, f"{where}/zarr.json", {**group, "attributes": {"form": layout.form, "meaning": meaning}})


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
        passing = MASK_BITS["COSMIC_RAY"] | MASK_BITS["SATURATED"] | MASK_BITS["CROSSTALK"]
        filled = np.uint16(MASK_BITS["INTERPOLATED"]) * ((given.mask & np.uint16(MASK_BITS["COSMIC_RAY"])) != 0)
        found = given.mask & np.uint16(~passing & 0xFFFF) & ~filled  # a hit is filled in its own slice only
        dead = ~np.isfinite(given.value).any(axis=(1, 2))
        found[dead] &= np.uint16(~MASK_BITS["NO_DATA"] & 0xFFFF)
        objects.write_bytes(url, shard_path(name, "mask", index), layout.mask_codec.encode(found))
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


def read_markers(url: str, name: str, slot: int) -> dict[str, dict[str, Any]]:
    """Markers of the CCDs of a slot that are whole, by name."""
    folder = f"{base(name)}/done/{slot:05d}"
    names = [one for one in objects.list_names(url, folder) if one.endswith(".json")]
    return {one.removesuffix(".json"): objects.read_json(url, f"{folder}/{one}") for one in names}


def read_sums(url: str, name: str, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """``total`` and ``pixels`` (detector, amplifier, slot) of slots as they were published; zero where not."""
    store = objects.zarr_store(url, f"{base(name)}/data", read_only=True)
    found = []
    for var in SUMS:
        known = np.asarray(zarr.open_array(store, path=var, mode="r")[...])
        wide = np.zeros((*known.shape[:2], max([known.shape[2], *(s + 1 for s in slots)])))
        wide[..., : known.shape[2]] = known
        found.append(wide[..., list(slots)])
    return found[0], found[1]


def publish_cube(url: str, name: str, slots: Sequence[Slot], about: Mapping[str, Any]) -> CubePointer:
    """Make slices visible, all at once; what is published already stays readable as it was.

    Parameters
    ----------
    slots : every slice that the cube is to have from now on.
    about : ``configuration``, ``software`` and ``remarks`` of the cube.

    Returns
    -------
    The new pointer, or the last one where nothing changed.
    """
    before = list_pointers(url, name)
    ordered = sorted(slots, key=lambda one: (one.wavelength, one.slot))
    if before and _same(before[-1].slots, ordered):
        return before[-1]
    layout = load_layout(url, name)
    known = {one.slot for one in before[-1].slots} if before else set()
    _write_numbers(url, name, layout, ordered, known)
    number = 1 + (before[-1].number if before else 0)
    made = CubePointer(number=number, slots=ordered, created=datetime.now(UTC).isoformat(), **about)
    while not objects.create(url, f"{base(name)}/published/{made.number:05d}.json", asdict(made)):
        made = CubePointer(**{**asdict(made), "number": made.number + 1, "slots": ordered})
    return made


def _same(one: Sequence[Slot], other: Sequence[Slot]) -> bool:
    return digest([asdict(s) for s in one]) == digest([asdict(s) for s in other])  # NaN is NaN there


def _write_numbers(url: str, name: str, layout: CubeLayout, slots: Sequence[Slot], known: set[int]) -> None:
    """Numbers of the slices in the arrays along the stored axis, which grow; known ones are written as they were."""
    where = f"{base(name)}/data"
    size = 1 + max((one.slot for one in slots), default=-1)
    size = max(size, int(zarr.open_array(objects.zarr_store(url, where), path="wavelength", mode="r").shape[0]))
    small = (*NUMBERS, *SUMS, "reference_slot", *SLOT_COORDS)
    for var in (*small, "codes", *(["reference"] if layout.form == "i1" else [])):
        _grow(url, f"{where}/{var}/zarr.json", size)
    arrays = {var: zarr.open_array(objects.zarr_store(url, where), path=var, mode="r+") for var in small}
    for chunk in sorted({one.slot // _SLOTS for one in slots if one.slot not in known}):
        part = slice(chunk * _SLOTS, min(size, (chunk + 1) * _SLOTS))
        values = {var: np.asarray(arrays[var][..., part]) for var in small}
        for one in (one for one in slots if one.slot // _SLOTS == chunk):
            _enter(values, one.slot - part.start, one, read_markers(url, name, one.slot), layout)
        for var, array in values.items():
            objects.fill(url, arrays[var], array, (..., part))
    _consolidate(url, where, layout)


def _enter(values: dict[str, np.ndarray], at: int, slot: Slot, markers: Mapping[str, Any], layout: CubeLayout) -> None:
    for var in SLOT_COORDS:
        values[var][at] = getattr(slot, var)
    for det, marker in markers.items():
        index = layout.detectors.index(det)
        values["reference_slot"][index, at] = marker["reference_slot"]
        for var in SUMS:
            values[var][index, :, at] = marker[var]
        for var in NUMBERS:
            values[var][index, :, at] = [np.nan if v is None else v for v in marker["numbers"][var]]


def _grow(url: str, path: str, size: int) -> None:
    """Let an array have so many places along ``wavelength``: one small file, written whole or not at all."""
    found = objects.read_json(url, path)
    at = found["dimension_names"].index("wavelength")
    if found["shape"][at] != size:
        found["shape"][at] = size
        objects.write_json(url, path, found)
