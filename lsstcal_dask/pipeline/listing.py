"""What is in a store: lists."""

from typing import Any

import numpy as np

from lsstcal_dask.errors import StoreFailure
from lsstcal_dask.pipeline.cubehistory import cube_row, lines_of_slice
from lsstcal_dask.pipeline.recipes import RECIPES
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.storage.compressed import check_compressed, list_compressed
from lsstcal_dask.storage.cubelayout import list_cubes
from lsstcal_dask.storage.cubes import check_cube, read_cube
from lsstcal_dask.storage.products import (
    CAMERA_TEAM,
    Pointer,
    check_product,
)
from lsstcal_dask.storage.raw import check_frame
from lsstcal_dask.storage.tables import input_names

__all__ = ["list_contents", "print_contents"]


def list_contents(store: Store, *, check: bool = False) -> dict[str, Any]:
    """Exposures, inputs and products of a store; ``damaged`` has a line for all pixels that changed on disk."""
    exposures: dict[str, dict[str, Any]] = {}
    known = read_upstream(store.url)
    records = known.records
    for (name, _), record in sorted(records.items()):
        row = exposures.setdefault(name, {"exposure": name, **record.header, "detectors": 0})
        row["detectors"] += 1
    for row in exposures.values():
        row.update({k: None for k, v in row.items() if isinstance(v, float) and not np.isfinite(v)})
    products: list[dict[str, Any]] = []
    damaged = [
        f"exposure {record.exposure} {record.detector}: its pixels changed on disk: delete {record.path}, "
        f"then ingest its file again"
        for record in records.values()
        if check and not check_frame(store.url, record)
    ]
    for pointer in sorted(known.pointers, key=lambda p: [*RECIPES, p.name].index(p.name)):
        if check:
            damaged += [
                f"{pointer.name} {pointer.version}: {det}: its values changed on disk: delete "
                f"products/{pointer.name}/published/{pointer.version}.json and products/{pointer.name}/"
                f"{pointer.version}, then build it again"
                for det in check_product(store.url, pointer)
            ]
        products.append(_product_row(pointer, known.outdated.get(pointer.version, "")))
    cubes = [cube_row(store, name, known) for name in list_cubes(store.url)]
    for row in cubes if check else ():
        damaged += _damage_of_cube(store.url, row["cube"]) if row["number"] else []
        damaged += [why for one in list_compressed(store.url, row["cube"]) for why in check_compressed(store.url, one)]
    ordered = sorted(exposures.values(), key=lambda row: (row["time"], row["exposure"]))
    return {
        "store": store.url,
        "camera": store.camera.name,
        "exposures": ordered,
        "inputs": input_names(store.url),
        "products": products,
        "cubes": cubes,
        "damaged": damaged,
    }


def _damage_of_cube(url: str, name: str) -> list[str]:
    try:
        return check_cube(read_cube(url, name))
    except StoreFailure as error:
        return [str(error)]


def _product_row(pointer: Pointer, stale: str) -> dict[str, Any]:
    return {
        "product": pointer.name,
        "version": pointer.version,
        "exposure": pointer.inputs.get("exposure", ""),
        "valid_from": pointer.valid_from,
        "valid_until": pointer.valid_until,
        "detectors": len(pointer.detectors),
        "verdict": pointer.verdict,
        "origin": pointer.origin,
        "outdated": stale,
        "created": pointer.created,
        "remarks": pointer.remarks,
    }


def print_contents(found: dict[str, Any], *, remarks: bool = False) -> None:
    """Print the lists as tables."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    console = Console(width=max(console.width, 130))  # a narrow terminal wraps lines; ids are never cut
    console.print(f"{found['store']}  camera {found['camera']}", soft_wrap=True, highlight=False)
    table = _table("exposure", "type", "time (UTC)", "exposure s", "dark s", "filter", "nm", "CCDs")
    for row in found["exposures"]:
        numbers = [_number(row[key]) for key in ("exposure_time", "dark_time")]
        time = row["time"].replace("T", " ")[:19]
        nm = _number(row["wavelength"])
        table.add_row(row["exposure"], row["exposure_type"], time, *numbers, row["filter"], nm, str(row["detectors"]))
    console.print(table if found["exposures"] else "no exposures")
    if found["inputs"]:
        line = ", ".join(_brief(found["inputs"], {row["exposure"] for row in found["exposures"]}))
        console.print(f"\nexternal inputs: {line}", highlight=False, markup=False, soft_wrap=True)
    table = _table("product", "version", "valid from", "until", "CCDs", "verdict", "remarks")
    for row in found["products"]:
        given = "(camera team)" if row["origin"] == CAMERA_TEAM else row["exposure"]
        name = f"{row['product']} {given}".strip()
        until = row["valid_until"] or ("" if row["exposure"] else "open")
        row_remarks = str(len(row["remarks"]) or "")
        verdict = "OUTDATED" if row["outdated"] else row["verdict"]
        table.add_row(name, row["version"], row["valid_from"], until, str(row["detectors"]), verdict, row_remarks)
    console.print()
    console.print(table if found["products"] else "no products")
    _print_cubes(console, found["cubes"], remarks)
    for row in found["products"]:
        if row["outdated"]:
            line = f"{row['product']} {row['version']} was {row['outdated']}: it is not used; build again"
            console.print(line, highlight=False, soft_wrap=True)
        for remark in row["remarks"] if remarks else ():
            console.print(f"{row['product']} {row['version']}: {remark}", highlight=False, soft_wrap=True)


def _print_cubes(console: Any, cubes: list[dict[str, Any]], remarks: bool) -> None:
    table = _table(
        "cube", "form", "publication", "wavelengths", "from nm", "to nm", "gaps", "with warnings", "outdated", "remarks"
    )
    for row in cubes:
        nm = row["wavelengths"]
        ends = [f"{nm[0]:.1f}", f"{nm[-1]:.1f}"] if nm else ["", ""]
        counts = len(row["gaps"]), row["warnings"], sum(bool(one["outdated"]) for one in row["slices"])
        numbers = [str(number or "") for number in (*counts, len(row["remarks"]))]
        table.add_row(row["cube"], row["form"], str(row["number"] or "none"), str(len(nm)), *ends, *numbers)
    if cubes:
        console.print()
        console.print(table)
    for row in cubes:
        if old := [one for one in row["slices"] if one["outdated"]]:
            line = f"cube {row['cube']}: {len(old)} slices are outdated: {old[0]['wavelength']:.1f} nm was"
            console.print(
                f"{line} {old[0]['outdated']}: run 'lsstcal cube' again", highlight=False, markup=False, soft_wrap=True
            )
        for one in row["compressed"][-1:]:
            state = "OUTDATED, " + one["outdated"] if one["outdated"] else f"values within {one['error']:.1e}"
            line = (
                f"cube {row['cube']} compressed {one['version']}: {one['detectors']} CCDs, {one['rank']} maps, {state}"
            )
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    for row in cubes if remarks else ():
        told = [line for one in row["slices"] for line in lines_of_slice(one)]
        for remark in [*told, *row["remarks"]]:
            console.print(f"cube {row['cube']}: {remark}", highlight=False, soft_wrap=True)


def _brief(names: list[str], exposures: set[str]) -> list[str]:
    """Names with those of many exposures told once, and those of filters in one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kind, _, which = name.rpartition("-")
        several = kind == "filter" or which in exposures
        kinds.setdefault(kind if several else name, []).append(which)
    return [_counted(kind, which, exposures) for kind, which in kinds.items()]


def _counted(kind: str, which: list[str], exposures: set[str]) -> str:
    if kind == "filter":
        return f"filter ({''.join(sorted(which, key='ugrizy'.find))})"
    return f"{kind} ({len(which)} exposures)" if which[0] in exposures else kind


def _table(*columns: str) -> Any:
    from rich.table import Column, Table  # noqa: PLC0415

    return Table(*(Column(name, no_wrap=True, min_width=len(name)) for name in columns), box=None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
