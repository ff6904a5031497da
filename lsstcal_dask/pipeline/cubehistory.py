"""What the slices of a store's cubes were made from, what has become of that since, and how a cube grew (¶9)."""

from typing import Any

from lsstcal_dask.pipeline.lineage import outdated_slices
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Upstream, read_upstream
from lsstcal_dask.products.monochromatic import gaps
from lsstcal_dask.storage.compressed import CompressedPointer, list_compressed
from lsstcal_dask.storage.cubelayout import Slot, list_pointers, load_layout, read_claim
from lsstcal_dask.storage.manifests import is_absent

__all__ = ["cube_history", "cube_row", "lines_of_slice"]


def cube_row(store: Store, name: str, upstream: Upstream) -> dict[str, Any]:
    """What is published of a cube; ``number`` is 0 where nothing is."""
    pointers, form = list_pointers(store.url, name), load_layout(store.url, name).form
    slots = pointers[-1].slots if pointers else []
    wavelengths = [one.wavelength for one in slots]
    told = [f"{one.wavelength:.1f} nm: {remark}" for one in slots for remark in one.remarks]
    told += [f"{one.wavelength:.1f} nm: {det}: {why}" for one in slots for det, why in one.missing.items()]
    old = outdated_slices(store.url, name, slots, upstream)
    number = pointers[-1].number if pointers else 0
    return {
        "cube": name,
        "form": form,
        "number": number,
        "compressed": [_compressed_row(one, number) for one in list_compressed(store.url, name)],
        "wavelengths": wavelengths,
        "gaps": gaps(wavelengths),
        "slices": [_slice_row(store.url, name, one, old.get(one.slot, "")) for one in slots],
        "warnings": sum(one.verdict != "PASS" for one in slots),
        "created": pointers[-1].created if pointers else "",
        "remarks": [*(pointers[-1].remarks if pointers else []), *told],
    }


def _compressed_row(pointer: CompressedPointer, number: int) -> dict[str, Any]:
    """What is published of the compressed form of a cube; it serves the publication it was made of."""
    gone = "" if pointer.number == number else f"made of publication {pointer.number}, before slices came or went"
    own = {key: getattr(pointer, key) for key in ("version", "number", "rank", "error", "failed", "created")}
    return {**own, "detectors": len(pointer.detectors), "outdated": gone}


def _slice_row(url: str, name: str, slot: Slot, outdated: str) -> dict[str, Any]:
    """A slice: its exposures with their headers, products by CCD, and why it is outdated."""
    made_of = read_claim(url, name, slot.slot).get("made_of", {})
    versions: dict[str, list[str]] = {}
    for group in made_of.get("products", []):
        for product, version in group["versions"].values():
            known = versions.setdefault(product, [])
            known += [version] if version not in known else []
    return {
        "wavelength": slot.wavelength,
        "time": slot.time,
        "exposures": slot.exposures,
        "headers": {
            exposure: {key: None if is_absent(value) else value for key, value in header.items()}
            for exposure, header in made_of.get("headers", {}).items()
        },
        "products": versions,
        "outdated": outdated,
    }


def lines_of_slice(row: dict[str, Any]) -> list[str]:
    """What a slice was made from, for a person: one line, and one that says why it is outdated."""
    products = ", ".join(f"{name} {'/'.join(versions)}" for name, versions in row["products"].items())
    found = [
        f"{row['wavelength']:.2f} nm: of {', '.join(row['exposures'])}" + (f" with {products}" if products else "")
    ]
    return found + ([f"{row['wavelength']:.2f} nm is OUTDATED: {row['outdated']}"] if row["outdated"] else [])


def cube_history(store: Store, name: str) -> list[dict[str, Any]]:
    """Every publication of a cube: what was added, replaced or taken out, and what its slices were made from.

    Raises
    ------
    CalibrationError
        There is no such cube.
    """
    load_layout(store.url, name)
    upstream, before, found = read_upstream(store.url), dict[int, Slot](), []
    for pointer in list_pointers(store.url, name):
        now = {one.slot: one for one in pointer.slots}
        old = outdated_slices(store.url, name, pointer.slots, upstream)
        new = [one for slot, one in now.items() if slot not in before]
        gone = [one for slot, one in before.items() if slot not in now]
        replaced = {one.nominal for one in gone} & {one.nominal for one in new}
        found.append(
            {
                "number": pointer.number,
                "created": pointer.created,
                "wavelengths": len(now),
                "added": [one.wavelength for one in new if one.nominal not in replaced],
                "replaced": [one.wavelength for one in new if one.nominal in replaced],
                "removed": [one.wavelength for one in gone if one.nominal not in replaced],
                "slices": [_slice_row(store.url, name, one, old.get(one.slot, "")) for one in new],
            }
        )
        before = now
    return found
