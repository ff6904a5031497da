"""The Zarr arrays of a cube: created, grown, and filled with the numbers that the markers tell (¶9, §7)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import NUMBERS
from lsstcal_dask.storage.cubelayout import SLOT_COORDS, CubeLayout, CubePointer, Slot, base, list_pointers, load_layout
from lsstcal_dask.storage.cubenumbers import FILL, SUMS, checksums, numbers_of, read_arrays, read_part
from lsstcal_dask.storage.shards import ShardCodec, shard_settings
from lsstcal_dask.variables import VARIABLES, attributes, mask_attributes

__all__ = ["create_arrays", "every_slot", "mend_numbers", "read_markers", "read_sums", "with_checksum", "write_numbers"]

_SLOTS = 64  # of numbers in a chunk: few files to open, and not much to write again when one is added


def create_arrays(url: str, name: str, layout: CubeLayout) -> None:
    """Create what is not there yet of the arrays of a cube."""
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


def read_markers(url: str, name: str, slot: int) -> dict[str, dict[str, Any]]:
    """Markers of the CCDs of a slot that are whole, by name."""
    folder = f"{base(name)}/done/{slot:05d}"
    names = [one for one in objects.list_names(url, folder) if one.endswith(".json")]
    return {one.removesuffix(".json"): objects.read_json(url, f"{folder}/{one}") for one in names}


def read_sums(url: str, name: str, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """``total`` and ``pixels`` (detector, amplifier, slot) of slots as they were published; zero where not."""
    found = read_arrays(url, f"{base(name)}/data", slots)
    return found["total"], found["pixels"]


def with_checksum(url: str, name: str, slot: Slot) -> Slot:
    """A slice with the checksum of its numbers, which its markers tell, unless it has one."""
    if slot.numbers is not None:
        return slot
    return replace(slot, numbers=checksums(_told(url, name, load_layout(url, name), slot.slot))[0])


def _told(url: str, name: str, layout: CubeLayout, slot: int) -> dict[str, np.ndarray]:
    return numbers_of(read_markers(url, name, slot), layout.detectors, len(layout.amplifiers))


def mend_numbers(url: str, name: str) -> None:
    """Write numbers of published slices anew, from their markers, where the arrays do not hold them any more."""
    layout, where = load_layout(url, name), f"{base(name)}/data"
    seen: list[CubePointer] = []
    while len(pointers := list_pointers(url, name)) > len(seen):  # again if another writer published meanwhile
        seen, published = pointers, every_slot(pointers)
        if not all(objects.exists(url, f"{where}/{var}/zarr.json") for var in (*FILL, *SLOT_COORDS, "codes", "mask")):
            create_arrays(url, name, layout)
        write_numbers(url, name, layout, [with_checksum(url, name, one) for one in published])


def every_slot(pointers: Sequence[CubePointer]) -> list[Slot]:
    """All slices that were ever published, each as it was last."""
    return list({one.slot: one for pointer in pointers for one in pointer.slots}.values())


def write_numbers(url: str, name: str, layout: CubeLayout, slots: Sequence[Slot]) -> list[Slot]:
    """Numbers of slices in the arrays along the stored axis, which grow; what they hold already stays as it is.

    Parameters
    ----------
    slots : with checksums; their markers are read where the arrays hold other numbers.

    Returns
    -------
    Those of which neither the arrays nor the markers hold what the checksum says.
    """
    where = f"{base(name)}/data"
    size = 1 + max((one.slot for one in slots), default=-1)
    size = max(size, int(zarr.open_array(objects.zarr_store(url, where), path="wavelength", mode="r").shape[0]))
    small = (*FILL, *SLOT_COORDS)
    for var in (*small, "codes", *(["reference"] if layout.form == "i1" else [])):
        _grow(url, f"{where}/{var}/zarr.json", size)
    arrays = {var: zarr.open_array(objects.zarr_store(url, where), path=var, mode="r+") for var in small}
    lost: list[Slot] = []
    for chunk in sorted({one.slot // _SLOTS for one in slots}):
        part = slice(chunk * _SLOTS, min(size, (chunk + 1) * _SLOTS))
        before = {var: read_part(arrays[var], part) for var in small}
        values = {var: array.copy() for var, array in before.items()}
        known = checksums(values)
        for one in (one for one in slots if one.slot // _SLOTS == chunk):
            at = one.slot - part.start
            told = {} if known[at] == one.numbers else _told(url, name, layout, one.slot)
            if told and checksums(told) != [one.numbers]:
                told, lost = {}, [*lost, one]
            for var, value in (told | {var: np.array([getattr(one, var)]) for var in SLOT_COORDS}).items():
                values[var][..., at] = value[..., 0]
        for var, array in values.items():
            if array.tobytes() != before[var].tobytes():
                objects.fill(url, arrays[var], array, (..., part))
    _consolidate(url, where, layout)
    return lost


def _grow(url: str, path: str, size: int) -> None:
    """Let an array have so many places along ``wavelength``: one small file, written whole or not at all."""
    found = objects.read_json(url, path)
    at = found["dimension_names"].index("wavelength")
    if found["shape"][at] < size:
        found["shape"][at] = size
        objects.write_json(url, path, found)
