"""Commands of flat cubes and of flats made from them: cube, compress, fringes, synthesize, contamination."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

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

WavelengthUnitOption = Annotated[str | None, typer.Option(help="Of files that do not say it themselves.")]
FluxUnitOption = Annotated[
    str | None, typer.Option(help="Of a spectrum's file that does not say it, as 'erg / (s cm2 Angstrom)'.")
]
MediumOption = Annotated[
    Literal["air", "vacuum"] | None,
    typer.Option(help="Of the wavelengths of files that do not say it themselves; vacuum by default."),
]
SkyOption = Annotated[
    Literal["interpolated", "nearest"] | None,
    typer.Option(help="Sky of a visit: of all spectra of its night, or of the nearest alone; [sky] mode by default."),
]


@app.command()
def cube(
    store: StoreArgument,
    name: Annotated[str, typer.Option(help="Name of the cube.")] = "flats",
    form: Annotated[
        Literal["i2", "i1", "f4"] | None,
        typer.Option(
            help="How pixels are stored: codes of two bytes, of one byte beside references, or float32.",
            show_default="that of the cube, i2 of a new one",
        ),
    ] = None,
    exposure: Annotated[list[str] | None, typer.Option(help="Use only this exposure; may be repeated.")] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add monochromatic flats to a cube: one slice for each wavelength that is not in it yet.

    Flats of a wavelength that is in it replace its slice, unless they are fewer repeats or lack CCDs of it.
    Needs gains, and the responsivity of the photodiode (inputs/photodiode.ecsv); measured wavelengths come from
    inputs/wavelengths*.ecsv. A run that was killed goes on where it stopped.
    """
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.cubes import make_cube  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    settings, opened = read_config(config), open_store(store)
    with compute_with(scheduler, workers, memory) as compute:
        made = make_cube(opened, name, form, settings, compute, exposures=exposure, progress=shows_progress())
    for told in made.remarks:
        say(f"cube {name}: {told}")
    for one, why in list(made.left_out.items())[:5]:
        say(f"exposure {one} left out: {why}")
    if len(made.left_out) > 5:
        say(f"... and {len(made.left_out) - 5} more: see 'lsstcal ls {opened.url} --remarks'")
    result = {"store": opened.url, "cube": name, "made": made.made, "left_out": made.left_out, "remarks": made.remarks}
    if made.pointer is not None:
        nm = [one.wavelength for one in made.pointer.slots]
        warned = sum(one.verdict != "PASS" for one in made.pointer.slots)
        say(
            f"cube {name}, publication {made.pointer.number}: {len(nm)} wavelengths from {nm[0]:.1f} to "
            f"{nm[-1]:.1f} nm, {warned} of them with warnings; {made.made} slices of a CCD were made"
        )
        result |= {"number": made.pointer.number, "wavelengths": nm}
    finish(result, made.errors, as_json)


@app.command()
def compress(
    store: StoreArgument,
    cube: Annotated[str, typer.Option(help="Name of the cube.")] = "flats",
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compress a cube to few maps of each CCD, with their largest error; its slices stay as they are.

    'synthesize --compressed' makes flats of the maps, and tells by how much they may differ from those of the slices.
    When slices are added to the cube it is to be compressed again. How far maps may be off is said in the table
    [compress] of the file of --config.
    """
    from lsstcal_dask.pipeline.compressed import compress_cube  # noqa: PLC0415
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    settings, opened = read_config(config).compress, open_store(store)
    with compute_with(scheduler, workers, memory) as compute:
        made = compress_cube(opened, cube, settings, compute, progress=shows_progress())
    result: dict[str, Any] = {"store": opened.url, "cube": cube, "made": made.made}
    if (found := made.pointer) is not None:
        size = sum(one["nbytes"] for one in found.detectors.values())
        say(
            f"cube {cube}, publication {found.number}, compressed as {found.version}: {len(found.detectors)} CCDs, "
            f"{found.rank} maps at most, {size / 1e6:.3g} MB, values within {found.error:.1e} of the response"
        )
        for why in found.failed.values():
            say(f"not compressed: {why}")
        result |= {"version": found.version, "number": found.number, "rank": found.rank, "error": found.error}
        result |= {"detectors": found.detectors, "failed": found.failed}
    finish(result, made.errors, as_json)


@app.command()
def fringes(
    store: StoreArgument,
    method: Annotated[
        Literal["etalon", "classical", "pca"],
        typer.Option(help="Layers from flats; or a median, or principal components, of frames of the sky."),
    ] = "etalon",
    band: Annotated[str, typer.Option("--filter", help="Filter of the frames of the sky.")] = "",
    exposure: Annotated[list[str] | None, typer.Option(help="Use only this frame of the sky; may be repeated.")] = None,
    cube: Annotated[str | None, typer.Option(help="Name of the cube, of method etalon; flats by default.")] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the layers that make fringes, silicon and glue of each CCD, from the red slices of a cube.

    'synthesize' gives flats in red filters the fringes of their source by it, and not those of the slices.

    Where such flats do not suffice, classical and pca make maps of the fringes of a filter: of ten or more of its
    visits with a dark, empty sky that 'calibrate' has divided by sky_flat-FILTER (--skip photometric_flat --skip
    fringes). 'calibrate' subtracts them where [calibrate] has fringes = "classical" or "pca".
    """
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.fringe_frames import make_fringe_frames  # noqa: PLC0415
    from lsstcal_dask.pipeline.fringes import FRINGES, make_fringes  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    if (method == "etalon") == bool(band):
        raise typer.BadParameter("--filter belongs to methods classical and pca, and they need it")
    if (name := "--exposure" if method == "etalon" else "--cube") in _said({"--exposure": exposure, "--cube": cube}):
        raise typer.BadParameter(f"{name} is nothing to method {method}: leave it out")
    settings, opened = read_config(config), open_store(store)

    def make(compute: Any) -> Iterator[tuple[str, Any]]:
        if method == "etalon":
            yield (
                FRINGES,
                make_fringes(opened, settings.fringes, compute, cube=cube or "flats", progress=shows_progress()),
            )
        else:
            yield from make_fringe_frames(
                opened, band, method, settings.fringe_frames, compute, exposures=exposure, progress=shows_progress()
            )

    with compute_with(scheduler, workers, memory) as compute:
        report(opened, make(compute), as_json)


@app.command()
def synthesize(
    store: StoreArgument,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sky_flat or photometric_flat; or another name.")],
    band: Annotated[str, typer.Option("--filter", help="Filter: the product is KIND-FILTER.")],
    spectrum: Annotated[
        str | None,
        typer.Option(
            help="File of the source's spectrum (FITS, ECSV, text); flat-fnu, even energy per frequency, by default."
        ),
    ] = None,
    wavelength_unit: WavelengthUnitOption = None,
    flux_unit: FluxUnitOption = None,
    visit: Annotated[
        list[str] | None, typer.Option(help="Exposure whose sky is the source, for that exposure; may be repeated.")
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Use spectra of the sky that are far from the visit.")] = False,
    sky: SkyOption = None,
    medium: MediumOption = None,
    atmosphere: Annotated[str | None, typer.Option(help="File of the air's transmission; none by default.")] = None,
    cube: Annotated[str, typer.Option(help="Name of the cube.")] = "flats",
    valid_from: Annotated[str, typer.Option(help="Start of validity, ISO UTC; noon before the cube's first.")] = "",
    valid_until: Annotated[str, typer.Option(help="End of validity, ISO UTC; open until dust changes.")] = "",
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Make it of the maps of 'compress', and tell by how much they differ.")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Leave out the dust that 'contamination' found.")] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the flat of a source from a cube, for one filter.

    'calibrate' divides science frames by sky_flat-FILTER, and puts photometric_flat-FILTER in its place.
    """
    from lsstcal_dask.pipeline import flatfields  # noqa: PLC0415
    from lsstcal_dask.pipeline.build import Validity  # noqa: PLC0415
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.sky import Skies  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    said = {"--spectrum": spectrum, "--wavelength-unit": wavelength_unit, "--flux-unit": flux_unit}
    said |= {"--atmosphere": atmosphere, "--valid-from": valid_from, "--valid-until": valid_until}
    unit = _units(wavelength_unit, flux_unit, of_air=bool(atmosphere))
    _only_one_source(visit, {"--stale": stale, "--sky": sky}, said)
    file = spectrum not in (None, flatfields.FLAT_FNU)
    _only_of_a_file(file, "a file of --spectrum", flux_unit, None if visit or atmosphere else medium)
    every, opened = read_config(config), open_store(store)
    settings = every.synthesis
    skies = Skies(opened, every.sky.model_copy(update=_given(mode=sky, medium=medium)))
    name, given = flatfields.flat_name(kind, band), Validity(iso(valid_from), iso(valid_until))

    def make(compute: Any) -> Iterator[tuple[str, Any]]:
        lamp = spectrum or flatfields.FLAT_FNU
        sources = [flatfields.sky_of(skies, band, one, stale, settings.weights.uncovered) for one in visit or []]
        sources = sources or [(flatfields.source_of(opened, band, lamp, atmosphere, unit, medium), given)]
        for source, validity in sources:
            wanted = flatfields.Wanted(kind, band, source, cube, dust=not clean, compressed=compressed)
            yield name, flatfields.make_flat(opened, wanted, settings, compute, validity, shows_progress())

    with compute_with(scheduler, workers, memory) as compute:
        report(opened, make(compute), as_json, "synthesised")


def _units(wavelength: str | None, flux: str | None, *, of_air: bool = False) -> tuple[str, str | None] | None:
    """Units of a spectrum, both or none; that of wavelengths may stand alone for the file of an atmosphere."""
    if (wavelength is None) != (flux is None) and not (of_air and wavelength):
        raise typer.BadParameter("--wavelength-unit and --flux-unit belong together: give both")
    return None if wavelength is None else (wavelength, flux)


def _said(options: dict[str, Any]) -> list[str]:
    """Names of options that are given."""
    return [name for name, value in options.items() if value]


def _given(**options: Any) -> dict[str, Any]:
    """Those options that are said."""
    return {name: value for name, value in options.items() if value is not None}


def _only_one_source(visit: list[str] | None, of_sky: dict[str, Any], said: dict[str, str | None]) -> None:
    """Refuse what the sky of a visit would silently overrule, and what is said of no source."""
    if visit and (other := _said(said)):
        raise typer.BadParameter(f"{other[0]} cannot be with --visit, whose sky and time count: leave one of them out")
    if not visit and (alone := _said(of_sky)):
        raise typer.BadParameter(f"{alone[0]} needs --visit")


def _only_of_a_file(there: bool, what: str, unit: str | None, medium: str | None) -> None:
    """Refuse what is said of a file that is not given: flat-fnu says everything itself."""
    if unit and not there:
        raise typer.BadParameter(f"--wavelength-unit and --flux-unit are of a file: give {what}")
    if medium and not there:
        raise typer.BadParameter(f"--medium is of the wavelengths of a file: give {what}")


@app.command()
def contamination(
    store: StoreArgument,
    band: Annotated[list[str], typer.Option("--filter", help="Filter; two or more tell what dust is gray.")],
    lamp: Annotated[str, typer.Option(help="File of the broadband lamp's spectrum (FITS, ECSV, text), or flat-fnu.")],
    wavelength_unit: WavelengthUnitOption = None,
    flux_unit: FluxUnitOption = None,
    medium: MediumOption = None,
    cube: Annotated[str, typer.Option(help="Name of the cube.")] = "flats",
    night: Annotated[str, typer.Option(help="Night of the flats, as 2026-07-01; the last of each filter.")] = "",
    reference: Annotated[
        bool, typer.Option(help="Compare with broadband flats of the cube's epoch, where there are any.")
    ] = True,
    config: ConfigOption = None,
    scheduler: SchedulerOption = "threads",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find dust, and filters that drifted, since a cube was taken: its flats against those of a lamp.

    The flats of each filter are combined to broadband-FILTER; contamination-FILTER is the factor of the dust, by which
    'synthesize' multiplies flats that are --valid-from that night on.
    """
    from lsstcal_dask.pipeline.broadband import make_broadband  # noqa: PLC0415
    from lsstcal_dask.pipeline.config import read_config  # noqa: PLC0415
    from lsstcal_dask.pipeline.contamination import check_bands, find_contamination  # noqa: PLC0415
    from lsstcal_dask.pipeline.flatfields import FLAT_FNU, product_of, read_lamp  # noqa: PLC0415
    from lsstcal_dask.pipeline.store import open_store  # noqa: PLC0415

    check_bands(band)
    unit = _units(wavelength_unit, flux_unit)
    _only_of_a_file(lamp != FLAT_FNU, "a file of --lamp", flux_unit, medium)
    settings, opened, spectrum = read_config(config), open_store(store), read_lamp(lamp, unit, medium)

    def make(compute: Any) -> Iterator[tuple[str, Any]]:
        there = True
        for one in band:
            made = make_broadband(opened, one, settings, compute, night=night, progress=shows_progress())
            there &= made.pointer is not None
            yield product_of("broadband", one), made
        if not there:
            return  # the errors of the flats say why
        _, found = find_contamination(
            opened,
            band,
            spectrum,
            settings,
            compute,
            cube=cube,
            night=night,
            with_reference=reference,
            progress=shows_progress(),
        )
        yield from found.items()

    with compute_with(scheduler, workers, memory) as compute:
        report(opened, make(compute), as_json)
