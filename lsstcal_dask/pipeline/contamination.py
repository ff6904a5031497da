"""Dust on filter and window, and a filter that drifts: broadband flats of now against the cube (Sec. 2.8.2).

What is expected is the broadband flat of the epoch of the cube, where the store has one: ghosts and the lamp's place
were in it too. Without one it is the flat of the cube, which has no light that a filter reflects; then structure of
ghosts is left in the ratio, and a drift is relative to the filter's curve as it was measured. See `epochs` for which
flat is of that epoch, and for how long a factor counts.

The two are compared as well, and must agree: see `references`.

Two passes over the CCDs: in the first each gives the means of its cells, from which lamp and drift are fitted over the
focal plane; in the second dust is sought in every pixel, and the bands are compared, all of them at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs, WrongUse
from lsstcal_dask.mapping import Opaque, Output
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.broadband import BROADBAND, night_of, start_of
from lsstcal_dask.pipeline.build import Built, image_template, run_version, version_of
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.epochs import Epoch, choose_reference, epoch_of
from lsstcal_dask.pipeline.flatfields import product_of, read_passband
from lsstcal_dask.pipeline.flatratios import Compared, Dust, cells_of, dust_of, factor_of, plain
from lsstcal_dask.pipeline.inputs import filter_inputs
from lsstcal_dask.pipeline.lineage import cube_inputs
from lsstcal_dask.pipeline.references import difference, known_to, told_difference
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.synthesis import CubeOpener, scan_of
from lsstcal_dask.pipeline.upstream import read_upstream, usable
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.drift import Cells, Lamp, drift_weights, fit_lamp
from lsstcal_dask.products.synthesis import SynthesisConfig, Task
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.products import Pointer, finished, list_products
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.variables import NOTE

__all__ = ["CONTAMINATION", "Drift", "check_bands", "find_contamination"]

CONTAMINATION: Final = "contamination"
_OUTPUTS: Final = {"image": Output("float32", "1")}


@dataclass(frozen=True)
class Drift:
    """What a band told of lamp and filter."""

    band: str
    shift: float  # nm, towards the red, since the filter's curve was measured; NaN if it cannot be told
    error: float  # nm
    chi2: float
    since: str = ""  # start of validity of the flat that it is compared with; empty: of the filter's curve
    note: str = ""  # why there is no shift
    gains: float = np.nan  # relative rms of changes of CCDs' gains, each by itself, that make such a shift


def find_contamination(
    store: Store,
    bands: Sequence[str],
    lamp: Spectrum,
    config: Config,
    compute: Compute,
    *,
    cube: str = "flats",
    night: str = "",
    with_reference: bool = True,
    progress: bool = False,
) -> tuple[list[Drift], dict[str, Built]]:
    """Compare broadband flats of some filters with the cube, and publish the factor of dust of each.

    Parameters
    ----------
    bands : filters, two or more to tell what is gray.
    lamp : spectrum of the broadband lamp.
    night : of the flats, as 2026-07-01; the newest of each filter by default.
    with_reference : False to compare with the flat of the cube in any case.

    Returns
    -------
    What each band told of lamp and filter, and what became of its factor. The factor counts from the night of the
    flats on; that of flats older than the cube until the slices with the light of the band begin.

    Raises
    ------
    WrongUse
        A band is named twice.
    CalibrationError
        A band has no broadband flat, or as `make_weights` and `fit_lamp`.
    """
    check_bands(bands)
    found = [_band(store, (band, night), lamp, config.synthesis, cube) for band in bands]
    if not with_reference:
        found = [(replace(one, reference=None), epoch, []) for one, epoch, _ in found]
    compared = [one for one, _, _ in found]
    detectors = _common(compared)
    cells = _cells(store, compared, detectors, config.contamination, compute, progress)
    lamps, drifts = _fit(compared, cells, config.contamination)
    ends = [epoch.end(one.measured) for one, epoch, _ in found]
    told = [
        [_told(drift, config.contamination), *_references(one, cells, config.contamination), *note]
        for (one, _, note), drift in zip(found, drifts, strict=True)
    ]
    for one, end, lines in zip(compared, ends, told, strict=True):
        lines.append(_use(one, end))
    made = _publish(store, compared, detectors, (lamps, drifts, told, ends), config, compute, progress)
    return drifts, made


def check_bands(bands: Sequence[str]) -> None:
    """Refuse a filter that is named twice: with itself all dust would be gray.

    Raises
    ------
    WrongUse
    """
    if twice := next((one for one in bands if list(bands).count(one) > 1), None):
        raise WrongUse(f"contamination: filter {twice} is there twice: name each once; two or more tell what is gray")


def _band(
    store: Store, which: tuple[str, str], lamp: Spectrum, config: SynthesisConfig, cube: str
) -> tuple[Compared, Epoch, list[str]]:
    """What is compared of a filter in a night, or in the last; epoch of its slices; a remark if no flat is of it."""
    band, night = which
    upstream, name = read_upstream(store.url), product_of(BROADBAND, band)
    known = usable(upstream, name)
    own = [p for p in known if not night or p.valid_from == start_of(night_of(night))]
    if not own:
        when = f" in the night of {night}" if night else ""
        raise InsufficientInputs(
            f"contamination: there is no broadband flat of filter {band}{when}: take flats through it"
        )
    passband = read_passband(store, band)
    if passband is None:
        raise InsufficientInputs("contamination: flats without a filter have no band: name filters")
    found = read_cube(store.url, cube)
    weights = drift_weights(lamp, passband, scan_of(found, store.camera), config.weights)
    opener = CubeOpener(store.url, cube, found.pointer.number)
    task = Task(weights, store.camera, tuple(found.layout.amplifiers), opener, config)
    made_of = {**cube_inputs(found, upstream), "filters": filter_inputs(store.url, band, passband)}
    epoch = epoch_of(found, weights[0].light)
    reference, why = choose_reference(own[-1], known, epoch)
    text = f"{NOTE}filter {band}: compared with the flat of the cube, not with a lamp's of its epoch: {why}"
    return Compared(band, own[-1], reference, task, made_of), epoch, [text] * bool(why)


def _common(compared: Sequence[Compared]) -> list[str]:
    """CCDs of which every band has a flat."""
    flats = [p for one in compared for p in (one.measured, one.reference) if p is not None]
    found = [d for d in compared[0].measured.detectors if all(d in flat.detectors for flat in flats)]
    if not found:
        raise InsufficientInputs("contamination: no CCD has a broadband flat of every filter: make them again")
    return found


def _cells(
    store: Store,
    compared: Sequence[Compared],
    detectors: Sequence[str],
    config: ContaminationConfig,
    compute: Compute,
    progress: bool,
) -> dict[tuple[str, bool], dict[str, Cells]]:
    """Cells of every CCD, by band and whether they are of its reference over the flat of the cube."""
    both = {(one.band, False): one for one in compared}
    both |= {
        (one.band, True): replace(plain(one), measured=one.reference, reference=None)
        for one in compared
        if one.reference
    }
    task = dask.delayed(cells_of, pure=False)
    shared = dask.delayed(Opaque((store.url, list(both.values()), config.cell)), pure=False)
    tasks = [task(shared, det) for det in detectors]
    cells: dict[str, list[Cells]] = {}
    for det, found in compute.run(tasks, labels=list(detectors), describe="cells", progress=progress):
        if isinstance(found, Exception):
            raise CalibrationError(f"contamination: {det}: {found}")
        cells[str(det)] = found
    return {key: {det: cells[det][i] for det in detectors} for i, key in enumerate(both)}


def _fit(
    compared: Sequence[Compared], cells: Mapping[tuple[str, bool], Mapping[str, Cells]], config: ContaminationConfig
) -> tuple[list[Lamp], list[Drift]]:
    """Lamp and drift of every band, from the cells of all CCDs."""
    lamps, drifts = [], []
    for one in compared:
        own, surface, note = list(cells[one.band, False].values()), one.task.weights[0].surface, ""
        try:
            lamp = fit_lamp(own, config, curves=surface if isinstance(surface, Nearby) else None)
        except DegenerateSolution as error:
            lamp, note = fit_lamp(own, config, with_drift=False), str(error)
        lamps.append(lamp)
        since = one.reference.valid_from if one.reference else ""
        drifts.append(Drift(one.band, lamp.drift, lamp.drift_error, lamp.chi2, since, note, lamp.gains))
    return lamps, drifts


def _references(
    one: Compared, cells: Mapping[tuple[str, bool], Mapping[str, Cells]], config: ContaminationConfig
) -> list[str]:
    """Remarks on how the two references of a band agree; none where it has but one."""
    if one.reference is None:
        return []
    return told_difference(difference(one.band, cells[one.band, True], known_to(one.task.weights[0]), config), config)


def _publish(
    store: Store,
    compared: Sequence[Compared],
    detectors: Sequence[str],
    fitted: tuple[Sequence[Lamp], Sequence[Drift], Sequence[list[str]], Sequence[str]],
    config: Config,
    compute: Compute,
    progress: bool,
) -> dict[str, Built]:
    """Seek dust in every CCD, in all bands at once, and publish the factor of each."""
    lamps, drifts, told, ends = fitted
    pointers = [
        replace(_pointer(one, compared, lamps, lines, config), valid_until=end)
        for one, lines, end in zip(compared, told, ends, strict=True)
    ]
    shared = Opaque((store.url, list(compared), list(lamps), config.contamination))
    lacking = _lacking(store.url, pointers, detectors)
    task, given = dask.delayed(dust_of, pure=False), dask.delayed(shared, pure=False)
    tasks = [task(given, det) for det in lacking]
    seen = dict(compute.run(tasks, labels=lacking, describe="dust", progress=progress))
    made = {}
    for i, (pointer, drift) in enumerate(zip(pointers, drifts, strict=True)):
        band = compared[i].band
        attrs = {"product": pointer.name, "filter": band, "drift_nm": drift.shift, "drift_error_nm": drift.error}
        template, source = image_template(store.camera, detectors, _OUTPUTS, attrs)
        work = {det: (factor_of, (store.camera, Opaque(_of_band(seen.get(det), i)))) for det in detectors}
        made[pointer.name] = run_version(store.url, pointer, template, source, work, compute, progress)
    return made


def _pointer(
    one: Compared,
    compared: Sequence[Compared],
    lamps: Sequence[Lamp],
    remarks: list[str],
    config: Config,
) -> Pointer:
    """What is published of the factor of a band, which the flats of all bands determine."""
    flats = [(f"{other.band} {what}", getattr(other, what)) for other in compared for what in ("measured", "reference")]
    others = {what: f"{flat.version}/{flat.hash}" for what, flat in flats if flat is not None}
    opener = one.task.open_slices
    return Pointer(
        name=product_of(CONTAMINATION, one.band),
        valid_from=one.measured.valid_from,
        inputs={
            "filters": {key: text for other in compared for key, text in other.made_of["filters"].items()},
            "photodiode": one.made_of["photodiode"],
            "headers": one.made_of["headers"] | one.measured.inputs["headers"],
            "upstream": {**one.made_of["upstream"], "broadband": others},
            "cube": f"{opener.name}/{opener.number}" if isinstance(opener, CubeOpener) else "",
            "lamp": digest([[*lamp.coefficients.tolist(), lamp.drift] for lamp in lamps]),
        },
        configuration=config.contamination.model_dump(mode="json"),
        software=software(),
        failed={},
        remarks=remarks,
    )


def _lacking(url: str, pointers: Sequence[Pointer], detectors: Sequence[str]) -> list[str]:
    """CCDs that a version of some band, published or begun, does not have yet."""
    wanted: set[str] = set()
    for pointer in pointers:
        version = version_of(pointer)
        if not any(p.version == version for p in list_products(url, pointer.name)):
            wanted |= set(detectors) - set(finished(url, pointer.name, version))
    return [det for det in detectors if det in wanted]


def _told(drift: Drift, config: ContaminationConfig) -> str:
    """One line of what became of the filter: a warning if it drifted."""
    if not np.isfinite(drift.shift):
        return f"{NOTE}whether filter {drift.band} drifted cannot be told: {drift.note}"
    since = drift.since.partition("T")[0] or "its curve was measured"
    text = f"filter {drift.band} moved by {drift.shift:+.3f} +- {drift.error:.3f} nm since {since}"
    if abs(drift.shift) > max(config.drift * drift.error, config.least_drift):
        unless = f"unless gains of CCDs changed by {drift.gains:.1e} each"
        return f"CHROMATIC_DRIFT: {text}, {unless}: measure its transmission again"
    return f"{NOTE}{text}"


def _use(one: Compared, end: str) -> str:
    """How what is found gets into a flat, and for how long it counts: what was made before does not have it."""
    start = one.measured.valid_from
    until = f" until {end}, when the slices begin" if end else " on"
    command = f"lsstcal synthesize STORE photometric_flat --filter {one.band} --valid-from {start}"
    return f"{NOTE}counts from {start}{until}: '{command}' makes a flat with it"


def _of_band(found: Any, which: int) -> Dust | Exception | None:
    """Of what became of a CCD what concerns one band."""
    return found[which] if isinstance(found, list) else found
