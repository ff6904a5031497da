"""Commands that make, apply, list and judge products: build, calibrate, ls, verify, show."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lsstcal_dask.cli.app import (
    ConfigOption,
    JsonOption,
    MemoryOption,
    SchedulerOption,
    StoreArgument,
    WorkersOption,
    app,
    compute_with,
    finish,
    iso,
    report,
    say,
    shows_progress,
)

__all__: list[str] = []


@app.command()
def build(
    store: StoreArgument,
    products: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRODUCT", help="As bias, gain or crosstalk; every one by default."),
    ] = None,
    exposure: Annotated[list[str] | None, typer.Option(help="Use only this exposure; may be repeated.")] = None,
    by_night: Annotated[bool, typer.Option("--by-night", help="One product for each night of exposures.")] = False,
    valid_from: Annotated[str, typer.Option(help="Start of validity, ISO UTC; noon before the first exposure.")] = "",
    valid_until: Annotated[str, typer.Option(help="End of validity, ISO UTC; open by default.")] = "",
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build products in dependency order.

    A build that was killed goes on where it stopped.
    """
    from lsstcal_dask.pipeline import build as module  # noqa: PLC0415
    from lsstcal_dask.pipeline.recipes import RECIPES  # noqa: PLC0415

    names = products or []
    if unknown := sorted(set(names) - set(RECIPES)):
        raise typer.BadParameter(f"unknown product {unknown[0]!r}: choose from {', '.join(RECIPES)}")
    validity = module.Validity(iso(valid_from), iso(valid_until))
    if validity.valid_until and validity.valid_until <= validity.valid_from:
        raise typer.BadParameter("--valid-until must be later than --valid-from")

    def make(opened: Any, settings: Any, compute: Any) -> Iterator[tuple[str, Any]]:
        return module.build(
            opened,
            names,
            settings,
            compute,
            exposures=exposure,
            validity=validity,
            by_night=by_night,
            progress=shows_progress(),
        )

    _make(make, store, config, (scheduler, workers, memory), as_json)


def _make(
    make: Callable[[Any, Any, Any], Iterator[tuple[str, Any]]],
    store: str,
    config: Path | None,
    where: tuple[str, int | None, str | None],
    as_json: bool,
) -> None:
    """Run what makes products in a store, given configuration and workers, and report each."""
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    settings, opened = read_config(config), open_store(store)
    with compute_with(*where) as compute:
        report(opened, make(opened, settings, compute), as_json)


@app.command()
def calibrate(
    store: StoreArgument,
    exposures: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPOSURE", help="Exposure ids; all science exposures by default."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out a correction, as dark or crosstalk; may be repeated."),
    ] = None,
    undo_flattening: Annotated[
        bool,
        typer.Option(
            "--undo-flattening", help="Take the flat field out of frames that are corrected already: 'unflattened'."
        ),
    ] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct exposures: image in electrons, variance, mask.

    Settings are the table [calibrate] of --config. parallel_overscan = true takes off what changed along the rows since
    the bias was taken, as the rows read after the last one show it. It adds their noise: switch it on where the sky or
    a dark shows bands of columns that its bias does not have. An amplifier is left alone, with a remark, where bleeding
    stars flood more than half of its columns.
    """
    from lsstcal_dask.pipeline.calibrate import calibrate as run  # noqa: PLC0415
    from lsstcal_dask.pipeline.unflatten import undo_flattening as undo  # noqa: PLC0415

    if undo_flattening and (skip or config):
        raise typer.BadParameter("--undo-flattening takes frames as they are: leave --skip and --config out")

    def make(opened: Any, settings: Any, compute: Any) -> Iterator[tuple[str, Any]]:
        chosen = exposures or []
        if undo_flattening:
            return undo(opened, chosen, compute, progress=shows_progress())
        return run(opened, chosen, settings.calibrate, compute, skip=skip or [], progress=shows_progress())

    _make(make, store, config, (scheduler, workers, memory), as_json)


@app.command("ls")
def list_store(
    store: StoreArgument,
    remarks: Annotated[bool, typer.Option("--remarks", help="Show every remark of every product.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every product again and compare with its hashes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List exposures, external inputs, products and cubes."""
    from lsstcal_dask.pipeline.listing import list_contents, print_contents  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    found = list_contents(open_store(store), check=check)
    if not as_json:
        print_contents(found, remarks=remarks)
    finish(found, found.pop("damaged"), as_json)


@app.command()
def verify(
    store: StoreArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML report to write, with pictures; one file.")
    ] = None,
    product: Annotated[str, typer.Option(help="Judge only this product, or 'calibrated'; everything by default.")] = "",
    closed_loop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this closed loop first, or 'all' of them; may be repeated."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Of closed loops; 0: as many as each takes to tell.", show_default=False)
    ] = 0,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge products by acceptance metrics, each with limits and their source.

    The newest product of each name, and the newest corrected frame; linearity also with the stars of up to twelve
    visits, and with as many flats, of one filter. Exit status 1 if a metric fails; what is not in the store is not
    measured, which is no failure.

    A closed loop measures the targets of a product or a correction on the virtual observatory, against its truth. Its
    rows are kept in the store and shown with the metrics from then on; a target that is missed is a failure.
    """
    from lsstcal_dask.pipeline import closed  # noqa: PLC0415
    from lsstcal_dask.pipeline import verify as module  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415
    from lsstcal_dask.verify.acceptance import as_json as plain  # noqa: PLC0415

    opened, loops = open_store(store), closed.chosen(closed_loop or [])
    with compute_with(scheduler, workers, memory) as compute:
        for name, targets in closed.run_loops(loops, seeds, compute, progress=shows_progress()):
            closed.keep(opened.url, name, targets)
            say(f"closed loop {name}: {closed.verdict_of(targets)}")
        found = module.verify(opened, compute, product=product, loops=loops, progress=shows_progress())
    if not as_json:
        module.print_acceptance(found)
    if output:
        say(f"report: {module.write_report(found, opened, output)}")
    if as_json:
        print(json.dumps(plain(found), indent=1))
    if found.verdict == "FAIL":
        raise typer.Exit(1)


@app.command()
def show(
    store: StoreArgument,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A product (as bias), a cube or an exposure id.")],
    variable: Annotated[
        str | None, typer.Option(help="Variable, as variance or gain_pair; the main one by default.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of a product; the latest by default.")] = None,
    detector: Annotated[str | None, typer.Option(help="One CCD; the focal plane by default.")] = None,
    amplifier: Annotated[str | None, typer.Option(help="One amplifier of the CCD.")] = None,
    wavelength: Annotated[float | None, typer.Option(help="Of a cube, nm; the middle one by default.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Of an exposure, the raw counts, not the calibrated image.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG to write.")] = None,
) -> None:
    """Write a picture (PNG) of a product, a slice of a cube (or --variable response, its mean), or an exposure."""
    from lsstcal_dask.pipeline.pictures import show_picture  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    if amplifier and not detector:
        raise typer.BadParameter("--amplifier needs --detector")
    choice = {
        "variable": variable,
        "version": version,
        "detector": detector,
        "amplifier": amplifier,
        "raw": raw,
        "wavelength": wavelength,
    }
    print(show_picture(open_store(store), what, output, choice))


@app.command()
def history(
    store: StoreArgument,
    product: Annotated[str, typer.Option(help="gain, ptc or continuity; muons alone; or a cube.")] = "gain",
    sigma: Annotated[float, typer.Option(help="Significance from which a change is told.")] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Tell how gains changed from epoch to epoch: jumps and drifts of amplifiers, and what muons say of each CCD.

    Of a cube, what came with each publication, what its slices were made from, and why some are outdated.
    """
    from lsstcal_dask.errors import InsufficientInputs  # noqa: PLC0415
    from lsstcal_dask.pipeline.history import gain_history, muon_history  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415
    from lsstcal_dask.storage.cubelayout import list_cubes  # noqa: PLC0415

    opened, alone = open_store(store), product == "muons"
    if product in list_cubes(opened.url):
        _history_of_cube(opened, product, as_json)
        return
    found = [] if alone else gain_history(opened, product=product, threshold=sigma)
    for one in found:
        say(
            f"{one.detector} {one.amplifier}: {one.kind} of {one.size:+.2%} +- {one.error:.2%} "
            f"({abs(one.sigma):.1f} sigma) since {one.since}"
        )
    if not alone:
        say(f"{len(found)} changes of {product} of {sigma:g} sigma or more")
    try:
        checks = muon_history(opened, threshold=sigma)
    except InsufficientInputs:
        if alone:
            raise
        checks = []  # few stores have muons of several epochs
    for check in checks:
        since = f", changed since {', '.join(c.since for c in check.changes)}" if check.changes else ", no change"
        say(
            f"{check.detector}: muons say {check.size:+.2%} +- {check.error:.2%} over {check.epochs} epochs{since}: "
            f"{check.verdict}"
        )
    muons = [vars(c) | {"changes": [vars(o) for o in c.changes], "verdict": c.verdict} for c in checks]
    finish({"changes": [vars(one) | {"sigma": one.sigma} for one in found], "muons": muons}, [], as_json)


def _history_of_cube(opened: Any, name: str, as_json: bool) -> None:
    """Tell how a cube grew, and what its slices were made from."""
    from lsstcal_dask.pipeline.cubehistory import cube_history, lines_of_slice  # noqa: PLC0415

    found = cube_history(opened, name)
    for one in found:
        what = ", ".join(f"{len(one[key])} {key}" for key in ("added", "replaced", "removed") if one[key])
        say(f"cube {name}, publication {one['number']} of {one['created'][:19]}: {one['wavelengths']} slices, {what}")
        for row in one["slices"]:
            for line in lines_of_slice(row):
                say(f"  {line}")
    finish({"cube": name, "publications": found}, [], as_json)
