"""Exposures of the virtual observatory written to a store or as raw FITS files, and their truth beside them.

    truth/observatory.json      seed and settings: with them the truth is a pure function, see `open_observatory`
    truth/recipes/<name>.json   what was asked for of each recipe
    truth/<table>.ecsv          amplifiers, defects, crosstalk, exposures of a recipe
    truth/maps/<map>/<CCD>      bias, dark, sensitivity, pixel corners

Nothing but the demo, the verification and tests reads ``truth/``.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import dask
from astropy.io import fits as astropy_fits
from astropy.table import Table
from pydantic import BaseModel, ConfigDict

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import Camera, to_mapping, write_frame
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.simulate.boards import boards
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.one_thread import one_thread
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.recipes import Plan, exposures, members
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.truth import TABLES, exposure_table, truth_maps
from lsstcal_dask.storage import objects, raw
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames, read_records
from lsstcal_dask.storage.provenance import digest
from lsstcal_dask.storage.tables import write_table

__all__ = ["SimulateConfig", "Simulated", "check", "open_observatory", "simulate"]

_MARKER: Final = "truth/observatory.json"
_BLOCK: Final = 2e8
"""Most raw pixels a task makes: enough to outweigh Dask, few enough that a kill loses little."""
_BLOCKS: Final = 8
"""Fewest tasks in which the exposures of a board are made: small cameras too are work for many, and lose little."""
_CARD: Final = "SIMULID"
"""Card of a frame that tells which simulation made it, so that files of another are not taken for its own."""


class SimulateConfig(BaseModel):
    """Configuration file of ``lsstcal simulate``: tables ``[recipe.*]`` and ``[effects.*]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Plan = Plan()
    effects: Settings = Settings()


@dataclass(frozen=True)
class Simulated:
    """What a simulation did."""

    exposures: list[str]
    made: int = 0  # frames
    unchanged: int = 0  # frames that were there
    files: list[str] = field(default_factory=list)  # raw FITS files
    inputs: list[str] = field(default_factory=list)  # external inputs that go with the recipe
    errors: list[str] = field(default_factory=list)


def open_observatory(store: Store) -> Observatory:
    """The observatory whose exposures a store holds, and with it all truth.

    Raises
    ------
    CalibrationError
        Nothing in this store was simulated, or not with these effects.
    """
    try:
        found = objects.read_json(store.url, _MARKER)
    except FileNotFoundError:
        raise CalibrationError(f"{store.url} holds no simulation: make one with 'lsstcal simulate'") from None
    try:
        return Observatory(int(found["seed"]), store.camera, Settings.model_validate(found["effects"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{store.url}/{_MARKER}: is damaged or of another version: simulate into another store"
        ) from error


def _open_folder(fits: Path) -> None:
    """Make the folder of raw files; WrongUse if something else has its name."""
    if fits.exists() and not fits.is_dir():
        raise WrongUse(f"{fits}: is no folder: give one to --fits for the raw files")
    fits.mkdir(parents=True, exist_ok=True)


def check(camera: Camera, recipe: str, config: SimulateConfig, seed: int, detectors: Sequence[str]) -> None:
    """Refuse what cannot be simulated before anything is made; raises as `simulate`."""
    stream(seed, "check")
    _boards(camera, detectors)
    exposures(recipe, config.recipe, config.effects, camera)


def simulate(
    store: Store,
    recipe: str,
    config: SimulateConfig,
    compute: Compute,
    *,
    seed: int = 1,
    detectors: Sequence[str] = (),
    fits: Path | None = None,
    compress: bool = True,
    maps: bool = True,
    progress: bool = False,
) -> Simulated:
    """Take the exposures of a recipe.

    Parameters
    ----------
    recipe : a key of `recipes.RECIPES`, or ``all``.
    seed : of everything random; a store has one.
    detectors : names of the CCDs to make; all by default.
    fits : folder for raw files in the camera's own format; frames then do not go to the store.
    compress : raw files by Rice, as the observatory does; plain ones are written ten times faster.
    maps : store the maps of truth too, 0.3 GB for an LSST CCD; without them it can still be asked for, see
        `open_observatory`.

    Returns
    -------
    Simulated. What is there already is left as it is, so a simulation that was killed goes on where it stopped. A
    worker holds the charge of the CCDs of one board and the maps of its process, see `simulate.kept`: about 2.2 GB
    for three LSST CCDs.

    Raises
    ------
    WrongUse
        No such recipe, filter, mask or detector, or a number that cannot be.
    CalibrationError
        The store or the folder holds a simulation with another seed, other effects or another plan.
    """
    site = Observatory(seed, store.camera, config.effects)
    taken = {name: exposures(name, config.recipe, config.effects, store.camera) for name in members(recipe)}
    planned = [exposure for one in taken.values() for exposure in one]
    chosen = _boards(store.camera, detectors)
    if fits:
        _open_folder(fits)
    claims = _claims(site, recipe, config.recipe)
    _agree(store.url, claims)
    folder = None if fits is None else _Folder(str(fits), compress)
    missing, there = _missing(store, site, planned, chosen, folder)
    _claim(store.url, claims)
    report = Simulated([e.name for e in planned], unchanged=there)
    made = 0
    shared = dask.delayed(Opaque(site), pure=False)
    task = dask.delayed(_make, pure=False)
    tasks = [task(store.url, shared, Opaque(job), folder) for job in missing]
    for label, result in compute.run(tasks, labels=list(map(_label, missing)), describe="simulate", progress=progress):
        if isinstance(result, Exception):
            report.errors.append(_failure(str(label), result))
            continue
        made += len(result)
        if fits:
            report.files.extend(result)
        else:
            publish_frames(store.url, result)
    inputs = deliveries(recipe, planned)
    work = {f"inputs/{name}": make for name, make in inputs.items()} | _truth(site, taken, chosen if maps else [])
    _side(store, shared, work, compute, report, progress)
    return replace(report, made=made, inputs=list(inputs))


def _failure(what: str, error: Exception) -> str:
    """One line that says what was not made."""
    why = str(error) if isinstance(error, CalibrationError) else f"{type(error).__name__}: {error}"
    return f"{what}: {why}; the same command again makes what is missing"


def _boards(camera: Camera, detectors: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of the CCDs to make, by board."""
    names = [d.name for d in camera.detectors]
    if unknown := sorted(set(detectors) - set(names)):
        known = ", ".join(names) if len(names) < 10 else f"{names[0]} ... {names[-1]}"
        raise WrongUse(f"camera {camera.name} has no detector {unknown[0]!r}: it has {known}")
    wanted = set(detectors or names)
    found = [tuple(d.name for d in group if d.name in wanted) for group in boards(camera).values()]
    return [group for group in found if group]


def _claims(site: Observatory, recipe: str, plan: Plan) -> dict[str, Any]:
    """What a store must agree to, by path: seed and effects, and what was asked for of each recipe."""
    found: dict[str, Any] = {_MARKER: {"seed": site.seed, "effects": site.settings.model_dump(mode="json")}}
    for name in members(recipe):
        part = name.replace("-", "_")
        found[f"truth/recipes/{name}.json"] = {"recipe": {part: getattr(plan, part).model_dump(mode="json")}}
    return found


def _agree(url: str, claims: Mapping[str, Any]) -> None:
    """Refuse to go on with other numbers than those a store was begun with: it has one truth."""
    for path, ours in claims.items():
        if not objects.exists(url, path):
            continue
        before, now = dict(_leaves(objects.read_json(url, path))), dict(_leaves(ours))
        for name in [*before, *now]:
            old, new = (json.dumps(one.get(name)) for one in (before, now))
            if old != new:
                raise CalibrationError(
                    f"{url} holds a simulation with {name} = {old}, not {new}: use another store, or the same numbers"
                )


def _claim(url: str, claims: Mapping[str, Any]) -> None:
    for path, ours in claims.items():
        objects.create(url, path, ours)
    _agree(url, claims)  # another process may have been faster


def _leaves(tree: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted name and value of every entry of nested dictionaries."""
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)


@dataclass(frozen=True)
class _Job:
    """What one task makes: some CCDs of one board in some exposures, and which of them in each."""

    detectors: tuple[str, ...]
    exposures: tuple[Exposure, ...]
    wanted: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Folder:
    """Where raw files go."""

    path: str
    compress: bool

    def file(self, exposure: str, detector: str) -> Path:
        return Path(self.path, f"{exposure}_{detector}.fits{'.fz' if self.compress else ''}")


def _label(job: _Job) -> str:
    first, last = job.exposures[0].name, job.exposures[-1].name
    return f"{', '.join(job.detectors)}, {first}{f' to {last}' if last != first else ''}"


def _missing(
    store: Store,
    site: Observatory,
    planned: Sequence[Exposure],
    groups: Sequence[tuple[str, ...]],
    folder: _Folder | None,
) -> tuple[list[_Job], int]:
    """Blocks of exposures of a board that are still to be made, and the number of frames that need not be."""
    known = set() if folder else set(read_records(store.url))
    size = len(store.camera.amplifier_names) * store.camera.raw_shape[0] * store.camera.raw_shape[1]
    jobs, there = [], 0
    for group in groups:
        left = []
        for exposure in planned:
            there_are = known if folder is None else _files_there(site, exposure, group, folder)
            wanted = tuple(name for name in group if (exposure.name, name) not in there_are)
            there += len(group) - len(wanted)
            if wanted:
                left.append((exposure, wanted))
        block = max(1, min(int(_BLOCK / (size * len(group))), -(-len(left) // _BLOCKS)))
        for i in range(0, len(left), block):
            taken, wanted_ones = zip(*left[i : i + block], strict=True)
            jobs.append(_Job(group, taken, wanted_ones))
    return jobs, there


def _files_there(site: Observatory, exposure: Exposure, group: Sequence[str], folder: _Folder) -> set[tuple[str, str]]:
    """Frames of an exposure that a folder holds.

    Raises
    ------
    CalibrationError
        Another simulation made one of them.
    """
    paths = {(exposure.name, name): folder.file(exposure.name, name) for name in group}
    found = {key: path for key, path in paths.items() if path.exists()}
    for path in found.values():
        try:
            card = astropy_fits.getheader(path, 0).get(_CARD)
        except OSError as error:
            raise CalibrationError(f"{path}: is damaged ({error}): delete it") from None
        if card != _origin(site, exposure):
            raise CalibrationError(f"{path} is of another simulation: name another folder, or delete it")
    return set(found)


def _origin(site: Observatory, exposure: Exposure) -> str:
    """Short hash of all that a frame follows from."""
    asked = {**asdict(replace(exposure, previous=None)), "time": str(exposure.time)}
    del asked["previous"]
    if exposure.previous is not None and site.settings.persistence.on:
        asked["previous"] = _origin(site, exposure.previous)
    return digest({"site": _site_digest(site), "exposure": asked})


@lru_cache(maxsize=8)
def _site_digest(site: Observatory) -> str:
    effects = site.settings.model_dump(mode="json")
    return digest({"seed": site.seed, "camera": to_mapping(site.camera), "effects": effects})


def _make(url: str, site: Opaque, job: Opaque, folder: _Folder | None) -> list[FrameRecord] | list[str]:
    """Make the frames of a job; records to publish, or names of files."""
    records: list[FrameRecord] = []
    files: list[str] = []
    for turn, (exposure, wanted) in enumerate(zip(job.value.exposures, job.value.wanted, strict=True)):
        # there and back: where maps of all CCDs find no room, those of the last one serve twice
        names = wanted[::-1] if turn % 2 else wanted
        origin = _origin(site.value, exposure)
        for frame in frames(site.value, exposure, [site.value.camera.detector(name) for name in names]):
            marked = replace(frame, cards={**frame.cards, _CARD: origin})
            if folder is not None:
                path = folder.file(frame.exposure, frame.detector)
                write_frame(path, site.value.camera, marked, compress=folder.compress)
                files.append(str(path))
            else:
                name = f"{frame.exposure}_{frame.detector}"
                record = FrameRecord(frame.exposure, frame.detector, "", name, origin, "", frame.header)
                records.append(raw.write_frame(url, record, marked.counts, marked.cards))
    return files if folder is not None else records


def _side(
    store: Store,
    shared: Any,
    work: Mapping[str, Callable[[Observatory], Any]],
    compute: Compute,
    report: Simulated,
    progress: bool,
) -> None:
    """Write what goes with the exposures and is not there yet, by path: tables, and maps of truth by CCD."""
    folders = {path.rpartition("/")[0] for path in work}
    there = {
        f"{folder}/{name.rpartition('.')[0]}" for folder in folders for name in objects.list_names(store.url, folder)
    }
    missing = [path for path in work if path not in there]
    task = dask.delayed(_write, pure=False)
    tasks = [task(store.url, shared, path, Opaque(work[path])) for path in missing]
    for path, result in compute.run(tasks, labels=missing, describe="inputs and truth", progress=progress):
        if isinstance(result, Exception):
            report.errors.append(_failure(str(path), result))


def _truth(
    site: Observatory, taken: Mapping[str, Sequence[Exposure]], groups: Sequence[tuple[str, ...]]
) -> dict[str, Callable[[Observatory], Any]]:
    """What makes each table and the maps of each CCD, by path."""
    found: dict[str, Callable[[Observatory], Any]] = {f"truth/{name}": make for name, make in TABLES.items()}
    for name, exposed in taken.items():
        found[f"truth/exposures-{name}"] = partial(exposure_table, exposures=tuple(exposed))
    for name in (name for group in groups for name in group):
        found[f"truth/maps/{name}"] = partial(truth_maps, detector=site.camera.detector(name))
    return found


def _write(url: str, site: Opaque, path: str, make: Opaque) -> None:
    found = one_thread(make.value)(site.value)
    if isinstance(found, Table):
        write_table(url, path, found)
        return
    folder, _, detector = path.rpartition("/")
    for variable, values, units in found:
        array = objects.create_or_open(
            url,
            f"{folder}/{variable}/{detector}",
            shape=values.shape,
            chunks=(*([1] * (values.ndim - 2)), *values.shape[-2:]),
            dtype=values.dtype,
            attributes={"units": units},
        )
        objects.fill(url, array, values)
    objects.write_json(url, f"{path}.json", [variable for variable, _, _ in found])
