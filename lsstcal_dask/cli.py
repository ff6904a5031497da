"""The command ``lsstcal``: arguments in, lines and JSON out; everything else is in `lsstcal_dask.pipeline`."""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lsstcal_dask.errors import CalibrationError, WrongUse

__all__ = ["app", "main"]

app = typer.Typer(
    name="lsstcal",
    help="Make and apply the calibration products of a CCD mosaic telescope.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def main() -> None:
    """Run the command line; errors end in one line and exit status 1 (2 for wrong use)."""
    try:
        app()
    except CalibrationError as error:
        print(f"lsstcal: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, WrongUse) else 1)
    except KeyboardInterrupt:
        print("lsstcal: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        print(f"lsstcal: {error}: check the disk and its permissions", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _compute(scheduler: str, workers: int | None, memory: str | None) -> Iterator[Any]:
    from lsstcal_dask.compute import cluster  # noqa: PLC0415

    with cluster(scheduler, workers, memory_limit=memory) as compute:
        yield compute


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _finish(result: dict[str, Any], errors: list[str], as_json: bool) -> None:
    """Print errors, one line each, and the result; exit 1 if there were errors."""
    for error in errors:
        _say(f"error: {error}")
    if as_json:
        print(json.dumps({**result, "errors": errors}, indent=1))
    if errors:
        raise typer.Exit(1)


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

    with _compute(scheduler, workers, None) as compute:
        result = run_demo(folder, seed, compute, say=_say)
    _finish(result, result.pop("failures"), as_json)


@app.command()
def simulate(
    store: StoreArgument,
    camera: Annotated[str, typer.Option(help="Camera by name, or a YAML file that describes it.")] = "mini9",
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
    from lsstcal_dask.pipeline.store import create_store  # noqa: PLC0415

    settings = read_settings(config, observatory.SimulateConfig)
    effects = settings.effects.only(only) if only else settings.effects
    settings = settings.model_copy(update={"effects": effects.without(without or [])})
    observatory.check(camera, recipe, settings, seed, detector or [])
    with _compute(scheduler, workers, memory) as compute:
        opened = create_store(store, camera)
        report = observatory.simulate(
            opened,
            recipe,
            settings,
            compute,
            seed=seed,
            detectors=detector or [],
            fits=fits,
            maps=maps,
            progress=_shows_progress(),
        )
    _say(f"{len(report.exposures)} exposures: {report.made} frames made, {report.unchanged} were there")
    if report.inputs:
        _say(f"external inputs: {len(report.inputs)} tables in {opened.url}/inputs")
    if fits:
        _say(f"raw files are in {fits}: put them into a store with 'lsstcal ingest'")
    counts = {"exposures": len(report.exposures), "made": report.made, "unchanged": report.unchanged}
    _finish({"store": opened.url, **counts, "inputs": report.inputs}, report.errors, as_json)


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
    with _compute(scheduler, workers, memory) as compute:
        report = run(opened, files, compute, exposure_type=exposure_type, correct=correct, progress=_shows_progress())
    counts = {name: len(getattr(report, name)) for name in ("ingested", "corrected", "unchanged")}
    corrected = f"{counts['corrected']} corrected, " if correct else ""
    _say(f"{opened.url}: {counts['ingested']} frames ingested, {corrected}{counts['unchanged']} already there")
    _finish({"store": opened.url, **counts}, report.errors, as_json)


def _shows_progress() -> bool:
    return sys.stderr.isatty()


@app.command()
def build(
    store: StoreArgument,
    products: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRODUCT", help="bias, gain, dark; all of them by default."),
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
    validity = module.Validity(_iso(valid_from), _iso(valid_until))
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
            progress=_shows_progress(),
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
    with _compute(*where) as compute:
        _report(opened, make(opened, settings, compute), as_json)


def _iso(text: str) -> str:
    """A time as products hold it."""
    import numpy as np  # noqa: PLC0415

    if not text:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns of the offset of a time zone
            found = np.datetime64(text.removesuffix("Z"))
        if np.isnat(found):
            raise ValueError(text)
        return str(np.datetime_as_string(found, unit="s"))
    except (ValueError, Warning):
        raise typer.BadParameter(f"{text!r} is not a time: write it in UTC as 2026-07-01T12:00:00") from None


def _report(store: Any, built: Iterator[tuple[str, Any]], as_json: bool, verb: str = "built") -> None:
    """Say what became of each product as it is done, its remarks in brief."""
    rows, errors = [], []
    for name, one in built:
        errors += one.errors
        if one.note:
            _say(f"{one.note} (skipped)")
        if one.pointer is None:
            continue
        pointer = one.pointer
        state = verb if one.new else "is up to date"
        coverage = f"{len(pointer.detectors)} of {len(store.camera.detectors)} detectors"
        _say(f"{name} {pointer.version} {state}: {coverage}, {pointer.verdict}")
        for remark in pointer.remarks[:5]:
            _say(f"  {remark}")
        if len(pointer.remarks) > 5:
            _say(f"  ... and {len(pointer.remarks) - 5} more remarks: see 'lsstcal ls {store.url} --remarks'")
        rows.append({"product": name, "version": pointer.version, "verdict": pointer.verdict, "new": one.new})
    _finish({"store": store.url, "products": rows}, errors, as_json)


@app.command()
def calibrate(
    store: StoreArgument,
    exposures: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPOSURE", help="Exposure ids; all science exposures by default."),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave out a correction: bias, gain or dark.")] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct exposures: image in electrons, variance, mask."""
    from lsstcal_dask.pipeline.calibrate import calibrate as run  # noqa: PLC0415

    def make(opened: Any, settings: Any, compute: Any) -> Iterator[tuple[str, Any]]:
        chosen = exposures or []
        return run(opened, chosen, settings.calibrate, compute, skip=skip or [], progress=_shows_progress())

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
    """List exposures, external inputs and products."""
    from lsstcal_dask.pipeline.listing import list_contents, print_contents  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    found = list_contents(open_store(store), check=check)
    if not as_json:
        print_contents(found, remarks=remarks)
    _finish(found, found.pop("damaged"), as_json)


@app.command()
def verify(
    store: StoreArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML report to write, with pictures; one file.")
    ] = None,
    product: Annotated[str, typer.Option(help="Judge only this product, or 'calibrated'; everything by default.")] = "",
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge products by acceptance metrics, each with limits and their source.

    The newest product of each name, and the newest corrected frame. Exit status 1 if a metric fails; what is not in the
    store is not measured, which is no failure.
    """
    from lsstcal_dask.pipeline import verify as module  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415
    from lsstcal_dask.verify.acceptance import as_json as plain  # noqa: PLC0415

    opened = open_store(store)
    with _compute(scheduler, workers, memory) as compute:
        found = module.verify(opened, compute, product=product, progress=_shows_progress())
    if not as_json:
        module.print_acceptance(found)
    if output:
        _say(f"report: {module.write_report(found, opened, output)}")
    if as_json:
        print(json.dumps(plain(found), indent=1))
    if found.verdict == "FAIL":
        raise typer.Exit(1)


@app.command()
def show(
    store: StoreArgument,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A product (bias, gain, dark) or an exposure id.")],
    variable: Annotated[
        str | None, typer.Option(help="Variable, as variance or gain_pair; the main one by default.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of a product; the latest by default.")] = None,
    detector: Annotated[str | None, typer.Option(help="One CCD; the focal plane by default.")] = None,
    amplifier: Annotated[str | None, typer.Option(help="One amplifier of the CCD.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Of an exposure, the raw counts, not the calibrated image.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG to write.")] = None,
) -> None:
    """Write a picture (PNG) of a product or an exposure."""
    from lsstcal_dask.pipeline.listing import show_picture  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    if amplifier and not detector:
        raise typer.BadParameter("--amplifier needs --detector")
    choice = {
        "variable": variable,
        "version": version,
        "detector": detector,
        "amplifier": amplifier,
        "raw": raw,
    }
    print(show_picture(open_store(store), what, output, choice))


_EXCHANGED = "gain, linearity, crosstalk, defects or saturation"
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

    Files are those of Rubin's software, one for each CCD: a photon transfer curve (gain, saturation), a linearizer,
    crosstalk, or defects, as ECSV, FITS or YAML; or a plain table with the columns of STORE/inputs. If anything is
    wrong with one of them, nothing is imported. What is imported is used instead of what was built here, until
    'lsstcal accept' says otherwise.
    """
    from lsstcal_dask.pipeline import exchange  # noqa: PLC0415
    from lsstcal_dask.pipeline.build import Validity  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    if inputs == bool(product or files):
        raise typer.BadParameter("name a PRODUCT and its FILEs, or give --inputs")
    validity, opened = Validity(_iso(valid_from), _iso(valid_until)), open_store(store)
    settings: dict[str, Any] = {"validity": validity, "progress": _shows_progress()}
    with _compute(scheduler, workers, memory) as compute:
        made = exchange.import_all(opened, product, files or [], compute, **settings)
        _report(opened, made, as_json, verb="imported")


@app.command()
def export(
    store: StoreArgument,
    product: ExchangedArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write into.")],
    form: Annotated[str, typer.Option("--format", help="ecsv, fits or yaml; crosstalk is always ecsv.")] = "ecsv",
    version: Annotated[str, typer.Option(help="Version of the product; the one that was made last by default.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a product as files that Rubin's software reads.

    One for each CCD, as FOLDER/linearizer/r22_s11/20260701T120000.ecsv; imported again they give the same values.
    """
    from lsstcal_dask.pipeline.export import export_product  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    opened = open_store(store)
    done = export_product(opened, product, output, form, version)
    _say(f"{product} {done.pointer.version} ({done.pointer.origin}): {len(done.files)} files written to {output}")
    for remark in done.remarks:
        _say(f"  {remark}")
    files = [str(path) for path in done.files]
    _finish({"store": opened.url, "product": product, "version": done.pointer.version, "files": files}, [], as_json)


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
    _say(f"{product} {found.remeasured} against the camera team's {found.team}: {beyond} of {len(found.rows)} differ")
    _finish({"store": opened.url, **disagreement.as_dict(found)}, [], as_json)


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
    with _compute("threads", None, None) as compute:
        done = run(opened, product, compute, version)
    state = "accepted" if done.new else "was accepted before"
    _say(f"{product} {done.version} {state} over the camera team's {done.over} for {len(done.detectors)} CCDs")
    _finish({"store": opened.url, "product": product, **vars(done)}, [], as_json)
