"""Commands of flat cubes: cube."""

from typing import Annotated, Literal

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
def cube(
    store: StoreArgument,
    name: Annotated[str, typer.Option(help="Name of the cube.")] = "flats",
    form: Annotated[
        Literal["i2", "i1", "f4"],
        typer.Option(help="How pixels are stored: codes of two bytes, of one byte beside references, or float32."),
    ] = "i2",
    exposure: Annotated[list[str] | None, typer.Option(help="Use only this exposure; may be repeated.")] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add monochromatic flats to a cube: one slice for each wavelength that is not in it yet.

    Needs gains, and the responsivity of the photodiode (inputs/photodiode.ecsv); measured wavelengths come from
    inputs/wavelengths*.ecsv. A run that was killed goes on where it stopped.
    """
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.cubes import make_cube  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    settings, opened = read_config(config), open_store(store)
    with compute_with(scheduler, workers, memory) as compute:
        made = make_cube(opened, name, form, settings, compute, exposures=exposure, progress=shows_progress())
    for one, why in list(made.left_out.items())[:5]:
        say(f"exposure {one} left out: {why}")
    if len(made.left_out) > 5:
        say(f"... and {len(made.left_out) - 5} more: see 'lsstcal ls {opened.url} --remarks'")
    result = {"store": opened.url, "cube": name, "made": made.made, "left_out": made.left_out}
    if made.pointer is not None:
        nm = [one.wavelength for one in made.pointer.slots]
        warned = sum(one.verdict != "PASS" for one in made.pointer.slots)
        say(
            f"cube {name}, publication {made.pointer.number}: {len(nm)} wavelengths from {nm[0]:.1f} to "
            f"{nm[-1]:.1f} nm, {warned} of them with warnings; {made.made} slices of a CCD were made"
        )
        result |= {"number": made.pointer.number, "wavelengths": nm}
    finish(result, made.errors, as_json)
