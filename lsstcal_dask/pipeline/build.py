"""Build products in dependency order: one task per detector, written as it comes, published last."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import dask
import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import (
    CalibrationError,
    DegenerateSolution,
    InsufficientInputs,
    StoreFailure,
    WorkerLost,
    WrongUse,
)
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.mapping import AmplifierResults, Opaque, Output
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.readout import Readout, noted, readouts, warm_products, warm_remarks
from lsstcal_dask.pipeline.recipes import RECIPES, Recipe
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Mismatch, find_upstream, read_upstream
from lsstcal_dask.storage.conditions import Records, conditions
from lsstcal_dask.storage.manifests import header_digests, read_records
from lsstcal_dask.storage.objects import write_json
from lsstcal_dask.storage.products import (
    Pointer,
    Template,
    create_template,
    finished,
    list_products,
    open_product,
    publish,
    write_detector,
)
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import NOTE, nights

__all__ = [
    "UNLIT",
    "Built",
    "Validity",
    "build",
    "failures",
    "image_template",
    "once",
    "run_conditions",
    "run_version",
    "unusable",
    "version_of",
]

UNLIT = "vignetted: no light"
"""What is said of an amplifier that lies in the dark: a detector of nothing else is left out, and did not fail."""


@dataclass(frozen=True)
class Validity:
    """When a product may be used: from the noon (UTC) before its first exposure on, unless said otherwise.

    So the exposures of one afternoon may be taken, and their products built, in any order.
    """

    valid_from: str = ""
    valid_until: str = ""

    def start(self, name: str, usual: str) -> str:
        """Start of validity of a product, ISO; WrongUse if it ends before it begins."""
        found = self.valid_from or usual
        if self.valid_until and self.valid_until <= found:
            raise WrongUse(f"{name}: --valid-until {self.valid_until} is not later than its start {found}")
        return found


@dataclass(frozen=True)
class Built:
    """What became of one product."""

    pointer: Pointer | None  # None where it could not be published
    new: bool = False  # False if this very product was there already
    errors: list[str] = field(default_factory=list)
    note: str = ""  # why nothing was attempted
    empty: bool = False  # nothing could be made of these exposures, of any detector


def build(
    store: Store,
    names: Sequence[str],
    config: Config,
    compute: Compute,
    *,
    exposures: Sequence[str] | None = None,
    validity: Validity = Validity(),
    by_night: bool = False,
    progress: bool = False,
) -> Iterator[tuple[str, Built]]:
    """Build products; yields each as it is done.

    Parameters
    ----------
    names : products to build; all of them if empty, those that lack inputs with a note.
    exposures : use only these.
    by_night : one product per night of exposures, each valid from its night on.
    """
    raw = open_raw(store.url, store.camera, exposures=exposures, chunked=False)
    run = _Run(store, config, compute, validity, progress)
    for name in [name for name in RECIPES if not names or name in names]:
        sets: list[xr.Dataset] = []
        try:
            sets = list(_input_sets(raw, RECIPES[name], by_night))
            if not sets:
                raise InsufficientInputs(
                    f"{name}: no exposures of type {' or '.join(RECIPES[name].types)}: ingest some (--type)"
                )
            for part in sets:
                made = _build_one(run, RECIPES[name], part)
                unasked = made.empty and RECIPES[name].optional and not names
                yield name, Built(None, note=made.errors[0]) if unasked else made
        except CalibrationError as error:
            short = RECIPES[name].optional and isinstance(error, InsufficientInputs | DegenerateSolution)
            unasked = not names and (short or not sets)
            yield name, Built(None, note=str(error)) if unasked else Built(None, errors=[str(error)])


@dataclass(frozen=True)
class _Run:
    """What the products of one build have in common."""

    store: Store
    config: Config
    compute: Compute
    validity: Validity
    progress: bool


def _input_sets(raw: xr.Dataset, recipe: Recipe, by_night: bool) -> Iterator[xr.Dataset]:
    """Exposures of its types; flats of a laser, whose power scatters from one to the next, make cubes only."""
    kinds = raw["exposure_type"].values.astype(str)
    lasers = (kinds == "flat") & np.isfinite(raw["wavelength"].values)
    raw = raw.isel(exposure=np.flatnonzero(np.isin(kinds, recipe.types) & ~lasers))
    if not raw.sizes["exposure"]:
        return
    if not by_night:
        yield raw
        return
    for night in np.unique(nights(raw)):
        yield raw.isel(exposure=np.flatnonzero(nights(raw) == night))


def _build_one(run: _Run, recipe: Recipe, raw: xr.Dataset) -> Built:
    raw, repeated = once(raw.isel(detector=np.flatnonzero(raw["present"].values.any(axis=0))))
    settings = getattr(run.config, recipe.name)
    night = np.datetime_as_string(nights(raw).min() + np.timedelta64(12, "h"), unit="s")
    start = run.validity.start(recipe.name, str(night))
    recipe.check(raw, settings)
    ways = noted(readouts(recipe.name, raw))
    upstream, failed, remarks = _upstream(run.store, recipe, raw, start, settings)
    pointer = Pointer(
        name=recipe.name,
        valid_from=start,
        valid_until=run.validity.valid_until,
        failed=failed,
        remarks=remarks + [f"exposure {name} left out: {why}" for name, why in repeated.items()] + warm_remarks(raw),
        inputs={**_inputs(raw, upstream), **ways, **run_conditions(read_records(run.store.url), raw)},
        configuration=settings.model_dump(mode="json"),
        software=software(),
    )
    names = [str(name) for name in raw["detector"].values if str(name) not in failed]
    if not names:
        return Built(None, errors=failures(recipe.name, failed), empty=True)
    raw = raw.sel(detector=names)
    template, work = _template(run.store, recipe, raw), _work(run.store, recipe, settings, names, upstream)
    return run_version(run.store.url, pointer, template, raw, work, run.compute, run.progress)


def once(raw: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """Each frame once, whatever the names under which it was ingested, and why others are left out, by exposure.

    Two frames with the same pixels are one measurement: to count both would halve a variance that did not change.
    """
    pixels, present = raw["pixels"].values, raw["present"].values.copy()
    names = [str(name) for name in raw["exposure"].values]
    same: dict[int, int] = {}
    for j in range(present.shape[1]):
        first: dict[bytes, int] = {}
        for i in np.flatnonzero(present[:, j]):
            if (k := first.setdefault(pixels[i, j], int(i))) != i:
                present[i, j] = False
                same[int(i)] = k
    if not same:
        return raw, {}
    raw = raw.assign(present=raw["present"].copy(data=present)).isel(exposure=np.flatnonzero(present.any(axis=1)))
    return raw, {names[i]: f"its pixels are those of {names[k]}" for i, k in same.items()}


def _inputs(raw: xr.Dataset, upstream: Mapping[str, Mapping[str, Pointer]]) -> dict[str, Any]:
    """What determines the bits, besides settings and software: exposures, their headers and pixels, products."""
    return {
        "exposures": [str(name) for name in raw["exposure"].values],
        "headers": header_digests(raw),
        "pixels": _pixel_digests(raw),
        "upstream": {det: {k: f"{p.version}/{p.hash}" for k, p in found.items()} for det, found in upstream.items()},
    }


def _template(store: Store, recipe: Recipe, raw: xr.Dataset) -> Template:
    sizes = {**recipe.sizes(raw, store.camera), "detector": raw.sizes["detector"]}
    coords = _coordinates(raw, recipe) | recipe.coords(store.camera)
    return Template(recipe.outputs, sizes, coords, {"product": recipe.name})


def _work(
    store: Store, recipe: Recipe, settings: Any, names: Sequence[str], upstream: Mapping[str, Mapping[str, Pointer]]
) -> dict[str, tuple[Any, tuple]]:
    """What a worker calls for each detector."""
    context = recipe.context(store.camera)
    return {
        det: (
            _results,
            (store.camera.detector(det), context, store.url, recipe.name, settings, _versions(upstream[det])),
        )
        for det in names
    }


def run_conditions(records: Records, raw: xr.Dataset) -> dict[str, Any]:
    """How the CCDs of (exposure, detector) frames that are ``present`` were run, as an input, where it is known."""
    present = np.atleast_2d(raw["present"].values)
    exposures = np.atleast_1d(raw["exposure"].values).astype(str)
    frames = {str(det): exposures[present[:, j]].tolist() for j, det in enumerate(raw["detector"].values)}
    found = conditions(records, frames)
    return {"conditions": found} if found else {}


def _pixel_digests(raw: xr.Dataset) -> dict[str, str]:
    """Hash of the frames of each detector that enter, in order."""
    hashes = raw["pixels"].values
    return {str(det): digest([h.decode() for h in hashes[:, j]]) for j, det in enumerate(raw["detector"].values)}


def _coordinates(raw: xr.Dataset, recipe: Recipe) -> dict[str, tuple[tuple[str, ...], Any]]:
    found: dict[str, tuple[tuple[str, ...], Any]] = {
        name: ((name,), raw[name].values) for name in ("detector", "amplifier")
    }
    if any(output.per_exposure for output in recipe.outputs.values()):
        for name in ("exposure", "time", "exposure_time", "dark_time"):
            found[name] = (("exposure",), raw[name].values)
    return found


def _upstream(
    store: Store, recipe: Recipe, raw: xr.Dataset, time: str, settings: Any
) -> tuple[dict[str, dict[str, Pointer]], dict[str, str], list[str]]:
    """Products each detector uses; the detectors that lack a required one, with the reason; remarks."""
    if not (recipe.needs or recipe.uses):
        return {str(name): {} for name in raw["detector"].values}, {}, []
    known = read_upstream(store.url)
    read_by = readouts(recipe.name, raw)
    found: dict[str, dict[str, Pointer]] = {}
    failed: dict[str, str] = {}
    without: dict[str, list[str]] = {}
    for det in (str(name) for name in raw["detector"].values):
        found[det] = {}
        for name in (*recipe.needs, *recipe.uses):
            try:
                found[det][name] = find_upstream(
                    known, name, det, time, (recipe.name, settings.overscan), read_by.get(det, Readout())
                )
            except Mismatch as error:  # never made without it instead
                raise type(error)(f"{recipe.name}: {det}: {error}") from None
            except CalibrationError as error:
                if name in recipe.needs:
                    failed[det] = str(error)
                else:
                    without.setdefault(name, []).append(str(error))
    remarks = [
        f"{NOTE if RECIPES[name].optional else ''}made without {name} for {len(why)} detectors ({why[0]})"
        for name, why in without.items()
    ]
    for det, way in read_by.items():
        used = {name: (pointer.version, pointer.inputs) for name, pointer in found[det].items()}
        remarks += warm_products(used, det, way)
    return found, failed, remarks


def _versions(found: Mapping[str, Pointer]) -> dict[str, str]:
    return {name: pointer.version for name, pointer in found.items()}


def _results(
    raw: xr.Dataset, detector: Detector, context: Any, url: str, name: str, settings: Any, versions: dict[str, str]
) -> AmplifierResults:
    """What a worker does for one detector: open what it needs lazily and stream its amplifiers."""
    whole = {k: open_product(url, k, v, chunked=False) for k, v in versions.items()}
    products = {k: p if k in RECIPES[name].whole else p.sel(detector=detector.name) for k, p in whole.items()}
    return RECIPES[name].make(raw, detector, context, settings, products)


def run_version(
    url: str,
    pointer: Pointer,
    template: Template,
    source: xr.Dataset,
    work: Mapping[str, tuple[Any, tuple]],
    compute: Compute,
    progress: bool,
) -> Built:
    """Make every detector of a version that is not there yet, and publish it when all are.

    Parameters
    ----------
    pointer : everything about the version but its results; its version is found here.
    source : lazily read exposures, with a detector dim; sent to the workers once.
    work : by detector, a function that returns its `AmplifierResults` in the worker from
        ``source.sel(detector=det)`` and the arguments that stand beside it.
    """
    pointer = replace(pointer, version=version_of(pointer))
    if known := [p for p in list_products(url, pointer.name) if p.version == pointer.version]:
        return Built(_choose_again(url, known[0]))
    create_template(url, pointer.name, pointer.version, template)
    done = finished(url, pointer.name, pointer.version)
    order = list(work)
    todo = [det for det in order if det not in done]
    task = dask.delayed(_make_detector, pure=False)
    shared = dask.delayed(Opaque(source), pure=False)
    place = {det: (i, det) for i, det in enumerate(order)}
    tasks = [task(url, pointer.name, pointer.version, place[det], shared, Opaque(work[det])) for det in todo]
    failed, errors = dict(pointer.failed), []
    for det, result in compute.run(tasks, labels=todo, describe=pointer.name, progress=progress):
        if isinstance(result, CalibrationError) and not isinstance(result, WorkerLost | StoreFailure):
            failed[str(det)] = str(result)
        elif isinstance(result, Exception):
            errors.append(f"{pointer.name}: {det}: {result}")
        else:
            done[str(det)] = result
    if errors:
        remedy = f"run the same command to resume; if it fails again, 'lsstcal ls {url} --check' finds what is damaged"
        return Built(None, errors=[*errors, f"{pointer.name}: not published; {remedy}"])
    for det in [det for det in order if det in done and not done[det]["usable"]]:
        remarks = done.pop(det)["remarks"]
        if remarks and all(remark.endswith(UNLIT) for remark in remarks):
            pointer = replace(pointer, remarks=[*pointer.remarks, f"{NOTE}{det}: {UNLIT}"])
        else:
            failed[det] = unusable(remarks)
    if not done:
        dark = [remark.removeprefix(NOTE) for remark in pointer.remarks if remark.endswith(UNLIT)]
        return Built(None, errors=failures(pointer.name, failed), note="; ".join(dark), empty=True)
    return _publish(url, pointer, {det: done[det] for det in order if det in done}, failed)


def version_of(pointer: Pointer) -> str:
    """Version of a product: a hash of everything that determines its bits."""
    identity = {
        "name": pointer.name,
        "inputs": pointer.inputs,
        "configuration": pointer.configuration,
        "software": pointer.software,
        "valid": [pointer.valid_from, pointer.valid_until],
    }
    return digest(identity)


def unusable(remarks: Sequence[str]) -> str:
    """Why nothing of a detector can be used: what its amplifiers said first, if they said anything."""
    said = next(iter(remarks), "none of its values is a number: look at what it is made of with 'lsstcal show'")
    return f"no usable amplifier: {said.removeprefix(NOTE)}"


def image_template(
    camera: Camera, detectors: Sequence[str], outputs: Mapping[str, Output], attrs: Mapping[str, Any]
) -> tuple[Template, xr.Dataset]:
    """Shape of a product of images of some CCDs, and their names as the source that `run_version` divides by CCD."""
    names = {"detector": np.array(detectors, object), "amplifier": np.array(camera.amplifier_names, object)}
    ny, nx = camera.image_shape
    sizes = {**{dim: len(values) for dim, values in names.items()}, "y": ny, "x": nx}
    template = Template(outputs, sizes, {dim: ((dim,), list(values)) for dim, values in names.items()}, attrs)
    return template, xr.Dataset(coords={dim: (dim, values) for dim, values in names.items()})


def failures(what: str, failed: Mapping[str, str]) -> list[str]:
    """One line for each reason, with the detectors it stopped.

    Examples
    --------
    >>> failures("dark", {"R01": "there is no gain", "R02": "there is no gain"})
    ['dark: R01 and 1 more: there is no gain']
    """
    reasons: dict[str, list[str]] = {}
    for det, why in failed.items():
        reasons.setdefault(why, []).append(det)
    return [
        f"{what}: {dets[0]}{f' and {len(dets) - 1} more' if len(dets) > 1 else ''}: {why}"
        for why, dets in reasons.items()
    ]


def _choose_again(url: str, known: Pointer) -> Pointer:
    """A version that was just asked for again counts as made last, so it is the one that is used."""
    later = [p for p in list_products(url, known.name) if p.created > known.created]
    rivals = [p for p in later if p.inputs.get("exposure") == known.inputs.get("exposure")]
    if not rivals:
        return known
    renewed = replace(known, created=_now())
    write_json(url, f"products/{known.name}/published/{known.version}.json", asdict(renewed))
    return renewed


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def _make_detector(
    url: str, name: str, version: str, place: tuple[int, str], source: Opaque, work: Opaque
) -> dict[str, Any]:
    function, arguments = work.value
    return write_detector(url, name, version, place, function(source.value.sel(detector=place[1]), *arguments))


def _publish(url: str, pointer: Pointer, done: dict[str, dict[str, Any]], failed: dict[str, str]) -> Built:
    remarks = pointer.remarks + [remark for marker in done.values() for remark in marker["remarks"]]
    warnings = [remark for remark in remarks if not remark.startswith(NOTE)]
    verdict = "WARN" if warnings or failed else "PASS"
    pointer = replace(
        pointer,
        detectors={det: marker["hash"] for det, marker in done.items()},
        failed=failed,
        verdict=verdict,
        remarks=remarks,
        created=_now(),
    )
    publish(url, pointer)
    return Built(pointer, new=True, errors=failures(pointer.name, failed))
