"""Commands that exchange products with the camera team: import, export, compare, accept."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lsstcal_dask.cli.app import (
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
from lsstcal_dask.errors import WrongUse

__all__: list[str] = []


_EXCHANGED = "gain, linearity, crosstalk, defects, saturation or ptc"
RemeasuredOption = Annotated[str, typer.Option("--version", help="Remeasured version; the last by default.")]
ExchangedArgument = Annotated[str, typer.Argument(metavar="PRODUCT", help=f"{_EXCHANGED[0].upper()}{_EXCHANGED[1:]}.")]


@app.command("import")
def import_(
    store: StoreArgument,
    product: Annotated[str | None, typer.Argument(metavar="PRODUCT", help=f"What the files are: {_EXCHANGED}.")] = None,
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Files of the camera team.")] = None,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Import the tables that are in STORE/inputs instead of files.")
    ] = False,
    valid_from: Annotated[str, typer.Option(help="Start of validity, ISO UTC; CALIBDATE of the files.")] = "",
    valid_until: Annotated[str, typer.Option(help="End of validity, ISO UTC; open by default.")] = "",
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make products of what the camera team delivers.

    Files are those of Rubin's software, one for each CCD: a photon transfer curve (gain, saturation, and ptc for its
    covariance matrices), a linearizer, crosstalk (per adu, without gains of its own, with those of the store), or
    defects, as ECSV, FITS or YAML; or a plain table with the columns of STORE/inputs. If anything is wrong with one of
    them, nothing is imported. What is imported is used instead of what was built here, until 'lsstcal accept' says
    otherwise.
    """
    from lsstcal_dask.pipeline import exchange  # noqa: PLC0415
    from lsstcal_dask.pipeline.build import Validity  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    if (inputs and files) or not (inputs or product):
        raise typer.BadParameter("name a PRODUCT and its FILEs, or give --inputs")
    if not inputs and not files:
        raise WrongUse(f"{product}: name files to import, or give --inputs")
    validity, opened = Validity(iso(valid_from), iso(valid_until)), open_store(store)
    settings: dict[str, Any] = {"validity": validity, "progress": shows_progress()}
    with compute_with(scheduler, workers, memory) as compute:
        made = exchange.import_all(opened, product, files or [], compute, **settings)
        report(opened, made, as_json, verb="imported")


@app.command()
def export(
    store: StoreArgument,
    product: ExchangedArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write into.")],
    form: Annotated[str, typer.Option("--format", help="ecsv, fits or yaml; crosstalk is always ecsv.")] = "ecsv",
    version: Annotated[str, typer.Option(help="Version of the product; the one that was made last by default.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a product as files that Rubin's software reads; saturation, of which it has none, as a plain table.

    One for each CCD, as FOLDER/linearizer/r22_s11/20260701T120000.ecsv; imported again they give the same values, and
    what was imported from such files comes out as it was. Files in FOLDER/gain are photon transfer curves without
    matrices, those in FOLDER/ptc have them. The table is FOLDER/saturation.ecsv, one row a channel.
    """
    from lsstcal_dask.pipeline.export import export_product  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    opened = open_store(store)
    done = export_product(opened, product, output, form, version)
    say(f"{product} {done.pointer.version} ({done.pointer.origin}): {len(done.files)} files written to {output}")
    for remark in done.remarks:
        say(f"  {remark}")
    files = [str(path) for path in done.files]
    finish({"store": opened.url, "product": product, "version": done.pointer.version, "files": files}, [], as_json)


@app.command()
def compare(
    store: StoreArgument,
    product: ExchangedArgument,
    version: RemeasuredOption = "",
    as_json: JsonOption = False,
) -> None:
    """Compare what was remeasured with what the camera team delivered.

    For each amplifier: the difference, its standard error, chi2, and how many sigma it is; the worst come first.
    More than 4 sigma is a difference that 'lsstcal accept' can put into use.
    """
    from lsstcal_dask.pipeline import disagreement  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    opened = open_store(store)
    found = disagreement.compare(opened, product, version)
    if not as_json:
        disagreement.print_differences(found)
    beyond = sum(row.exceeds for row in found.rows)
    say(f"{product} {found.remeasured} against the camera team's {found.team}: {beyond} of {len(found.rows)} differ")
    finish({"store": opened.url, **disagreement.as_dict(found)}, [], as_json)


@app.command()
def accept(
    store: StoreArgument,
    product: ExchangedArgument,
    version: RemeasuredOption = "",
    as_json: JsonOption = False,
) -> None:
    """Use what was remeasured instead of what the camera team delivered, for the CCDs that differ.

    Only what differs by more than 4 sigma can be accepted; see 'lsstcal compare'. New defects are added to the camera
    team's list. When the camera team delivers again, its new version is used until it is compared and accepted over.
    """
    from lsstcal_dask.pipeline.disagreement import accept as run  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    opened = open_store(store)
    with compute_with("threads", None, None) as compute:
        done = run(opened, product, compute, version)
    state = "accepted" if done.new else "was accepted before"
    say(f"{product} {done.version} {state} over the camera team's {done.over} for {len(done.detectors)} CCDs")
    finish({"store": opened.url, "product": product, **vars(done)}, [], as_json)
