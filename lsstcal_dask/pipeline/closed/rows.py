"""Targets that were measured: kept in a store, one small object for each loop, and printed."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from lsstcal_dask.pipeline.closed.registry import LOOPS
from lsstcal_dask.pipeline.closed.target import Target, from_json
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.provenance import software

__all__ = ["keep", "kept", "print_targets"]

_FOLDER = "verify/closed"


def keep(url: str, name: str, targets: Iterable[Target]) -> None:
    """Keep the targets of a loop, over those of an earlier run."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [target.as_json() for target in targets]
    value = {"loop": name, "made": made, "software": software(), "targets": rows}
    objects.write_json(url, f"{_FOLDER}/{name}.json", value)


def kept(url: str) -> dict[str, list[Target]]:
    """Targets of every loop that was run for this store, by its name, in the order of the document."""
    names = [found.removesuffix(".json") for found in objects.list_names(url, _FOLDER) if found.endswith(".json")]
    order = {name: i for i, name in enumerate(LOOPS)}
    return {
        name: [from_json(row) for row in objects.read_json(url, f"{_FOLDER}/{name}.json")["targets"]]
        for name in sorted(names, key=lambda name: order.get(name, len(order)))
    }


def print_targets(found: Mapping[str, Iterable[Target]]) -> None:
    """Print the targets of some loops as a table."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    console = Console()
    console = Console(width=max(console.width, 160))
    names = ("verdict", "section", "loop", "target of", "target", "measured", "seeds")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None, title="closed loops", title_justify="left")
    for loop, targets in found.items():
        for one in targets:
            what = f"{one.name}{f' ({one.unit})' if one.unit else ''}"
            cells = (one.verdict, one.section, loop, what, one.limits, one.value, str(one.seeds))
            style = {"fail": "bold red", "pass": "", "told": ""}.get(one.verdict, "yellow")
            table.add_row(*cells, style=style)
    console.print(table)
