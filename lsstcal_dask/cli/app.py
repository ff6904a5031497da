"""What the commands share: the application, its common arguments, and how they speak."""

import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lsstcal_dask.variables import NOTE

__all__ = [
    "ConfigOption",
    "JsonOption",
    "MemoryOption",
    "SchedulerOption",
    "StoreArgument",
    "WorkersOption",
    "app",
    "compute_with",
    "finish",
    "iso",
    "report",
    "say",
    "shows_progress",
]

app = typer.Typer(
    name="lsstcal",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    """Print what can change the bits of a result: versions of the software, and the hash of the source."""
    if asked:
        from lsstcal_dask.storage.provenance import software  # noqa: PLC0415

        print("  ".join(f"{name} {version}" for name, version in software().items()))
        raise typer.Exit


@app.callback()
def _lsstcal(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Make and apply the calibration products of a CCD mosaic telescope."""


StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder or bucket (s3://...) of the store.")]
SchedulerOption = Annotated[
    str,
    typer.Option(
        help="threads, local, slurm, pbs, sge, htcondor, lsf, tcp://host:port of a scheduler, or its file.json."
    ),
]
WorkersOption = Annotated[int | None, typer.Option(help="Number of workers; as many as cores by default.")]
MemoryOption = Annotated[str | None, typer.Option(help="Memory of each worker, as '4GiB'.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a machine-readable result on stdout.")]


@contextlib.contextmanager
def compute_with(scheduler: str, workers: int | None, memory: str | None) -> Iterator[Any]:
    """Workers for as long as a command needs them."""
    from lsstcal_dask.compute import cluster  # noqa: PLC0415

    with cluster(scheduler, workers, memory_limit=memory) as compute:
        yield compute


def say(line: str) -> None:
    """Tell a person, on stderr: stdout is for results."""
    print(line, file=sys.stderr)


def finish(result: dict[str, Any], errors: list[str], as_json: bool) -> None:
    """Print errors, one line each, and the result; exit 1 if there were errors."""
    for error in errors:
        say(f"error: {error}")
    if as_json:
        print(json.dumps({**result, "errors": errors}, indent=1))
    if errors:
        raise typer.Exit(1)


def shows_progress() -> bool:
    """Whether there is somebody to see a progress bar."""
    return sys.stderr.isatty()


def iso(text: str) -> str:
    """A time as products hold it."""
    if not text:
        return ""
    try:
        found = datetime.fromisoformat(text)
        if found.utcoffset():
            raise ValueError(text)
        return found.strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time: write it in UTC as 2026-07-01T12:00:00") from None


def report(store: Any, built: Iterator[tuple[str, Any]], as_json: bool, verb: str = "built") -> None:
    """Say what became of each product as it is done, its remarks in brief: warnings before notes."""
    rows, errors = [], []
    for name, one in built:
        errors += one.errors
        if one.note:
            say(f"{one.note} (skipped)")
        if one.pointer is None:
            continue
        pointer = one.pointer
        state = verb if one.new else "is up to date"
        coverage = f"{len(pointer.detectors)} of {len(store.camera.detectors)} detectors"
        say(f"{name} {pointer.version} {state}: {coverage}, {pointer.verdict}")
        for remark in sorted(pointer.remarks, key=lambda one: one.startswith(NOTE))[:5]:
            say(f"  {remark}")
        if len(pointer.remarks) > 5:
            say(f"  ... and {len(pointer.remarks) - 5} more remarks: see 'lsstcal ls {store.url} --remarks'")
        rows.append({"product": name, "version": pointer.version, "verdict": pointer.verdict, "new": one.new})
    finish({"store": store.url, "products": rows}, errors, as_json)
