"""Commands that put exposures into a store: demo, simulate, ingest."""

from pathlib import Path
from typing import Annotated

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
    say,
    shows_progress,
)

__all__: list[str] = []


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make; it must not exist.")] = Path(
        "lsstcal-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the simulated night.")] = 1,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run everything once on made-up data and compare with the truth."""
    from lsstcal_dask.pipeline.demo import run_demo  # noqa: PLC0415

    with compute_with(scheduler, workers, None) as compute:
        result = run_demo(folder, seed, compute, say=say)
    finish(result, result.pop("failures"), as_json)


@app.command()
def simulate(
    store: StoreArgument,
    camera: Annotated[
        str | None,
        typer.Option(help="Camera by name, or a YAML file that describes it; that of the store, mini9 for a new one."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="calibration-day, flat-cube, cbp, sinusoids, night or all of them.")
    ] = "calibration-day",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    without: Annotated[list[str] | None, typer.Option(help="Leave out an effect, as dust; may be repeated.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Leave out all effects but this; may be repeated.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Make only this CCD; may be repeated.")] = None,
    fits: Annotated[
        Path | None, typer.Option(help="Write raw FITS files to this folder instead of frames to the store.")
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Store the maps of truth, 0.3 GB for an LSST CCD.")
    ] = True,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take exposures with the virtual observatory.

    calibration-day: biases, darks, 55Fe, pairs of flats, flats through every filter, and what a camera team delivers.
    flat-cube: monochromatic flats. cbp: the Collimated Beam Projector. sinusoids: projected fringes. night: visits,
    with weather, spectra of stars and sky, and catalogues.

    How many and how bright is said in the file of --config, as visits = 60 under [recipe.night], and so are the
    numbers of an effect, as density = 8000 under [effects.stars].

    The truth is kept in STORE/truth, where nothing that calibrates looks. What is there already is kept: the same
    command again makes what is missing.
    """
    from lsstcal_dask.pipeline import observatory  # noqa: PLC0415
    from lsstcal_dask.pipeline.config import read_settings  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import camera_for, create_store  # noqa: PLC0415

    settings = read_settings(config, observatory.SimulateConfig)
    effects = settings.effects.only(only) if only else settings.effects
    settings = settings.model_copy(update={"effects": effects.without(without or [])})
    found = camera_for(store, camera, "mini9")
    observatory.check(found, recipe, settings, seed, detector or [])
    with compute_with(scheduler, workers, memory) as compute:
        opened = create_store(store, found)
        report = observatory.simulate(
            opened,
            recipe,
            settings,
            compute,
            seed=seed,
            detectors=detector or [],
            fits=fits,
            maps=maps,
            progress=shows_progress(),
        )
    say(f"{len(report.exposures)} exposures: {report.made} frames made, {report.unchanged} were there")
    if report.inputs:
        say(f"external inputs: {len(report.inputs)} tables in {opened.url}/inputs")
    if fits:
        say(f"raw files are in {fits}: put them into a store with 'lsstcal ingest'")
    counts = {"exposures": len(report.exposures), "made": report.made, "unchanged": report.unchanged}
    finish({"store": opened.url, **counts, "inputs": report.inputs}, report.errors, as_json)


@app.command()
def ingest(
    store: StoreArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Raw FITS files.")],
    camera: Annotated[
        str | None, typer.Option(help="Camera by name, or a YAML file that describes it; for a new store.")
    ] = None,
    exposure_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="bias, dark, flat, fe55, science, cbp, spot, ppump or sinusoid, where headers do not say."
        ),
    ] = None,
    correct: Annotated[
        bool,
        typer.Option(
            "--correct",
            help="Let headers and --type of files that are stored already replace what is stored.",
        ),
    ] = False,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy raw FITS files into a store.

    What is wrong with a file is said in one line; the others go in.
    """
    from lsstcal_dask.pipeline.ingest import check_type  # noqa: PLC0415
    from lsstcal_dask.pipeline.ingest import ingest as run  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import create_store, open_store  # noqa: PLC0415

    check_type(exposure_type)
    opened = create_store(store, camera) if camera else open_store(store)
    with compute_with(scheduler, workers, memory) as compute:
        report = run(opened, files, compute, exposure_type=exposure_type, correct=correct, progress=shows_progress())
    counts = {name: len(getattr(report, name)) for name in ("ingested", "corrected", "unchanged")}
    corrected = f"{counts['corrected']} corrected, " if correct else ""
    say(f"{opened.url}: {counts['ingested']} frames ingested, {corrected}{counts['unchanged']} already there")
    for line in report.remarks[:5]:
        say(line)
    if len(report.remarks) > 5:
        say(f"... and {len(report.remarks) - 5} more exposures like these: see 'remarks' of --json")
    finish({"store": opened.url, **counts, "remarks": report.remarks}, report.errors, as_json)
