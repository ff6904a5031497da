"""Exposures of the virtual observatory written to a store or as raw FITS files, and their truth beside them.

    truth/observatory.json   seed and settings: with them the truth is a pure function, see `open_observatory`
    truth/<table>.ecsv       amplifiers, defects, crosstalk, exposures
    truth/maps/<map>/<CCD>   bias, dark, sensitivity, pixel corners

Nothing but the demo, the verification and tests reads ``truth/``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dask
from pydantic import BaseModel, ConfigDict

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import Camera, load_camera, write_frame
from lsstcal_dask.pipeline.store import Store, open_store
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.observatory import Observatory, boards
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.recipes import Plan, exposures
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.truth import truth_maps, truth_tables
from lsstcal_dask.storage import objects, raw
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames, read_records
from lsstcal_dask.storage.provenance import digest
from lsstcal_dask.storage.tables import write_table

__all__ = ["SimulateConfig", "Simulated", "check", "open_observatory", "simulate"]

_MARKER = "truth/observatory.json"
_BLOCK = 2e8
"""Raw pixels a task makes: enough to outweigh Dask, few enough that a kill loses little."""


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
    inputs: list[str] = field(default_factory=list)  # external inputs written
    errors: list[str] = field(default_factory=list)


def open_observatory(store: Store) -> Observatory:
    """The observatory whose exposures a store holds, and with it all truth.

    Raises
    ------
    CalibrationError
        Nothing in this store was simulated.
    """
    try:
        found = objects.read_json(store.url, _MARKER)
    except FileNotFoundError:
        raise CalibrationError(f"{store.url} holds no simulation: make one with 'lsstcal simulate'") from None
    return Observatory(int(found["seed"]), store.camera, Settings.model_validate(found["settings"]))


def check(camera: str, recipe: str, config: SimulateConfig, seed: int, detectors: Sequence[str]) -> None:
    """Refuse what cannot be simulated before anything is made; raises as `simulate`."""
    found = load_camera(camera)
    stream(seed, "check")
    _boards(found, detectors)
    exposures(recipe, config.recipe, config.effects, found)


def simulate(
    store: Store,
    recipe: str,
    config: SimulateConfig,
    compute: Compute,
    *,
    seed: int = 1,
    detectors: Sequence[str] = (),
    fits: Path | None = None,
    progress: bool = False,
) -> Simulated:
    """Take the exposures of a recipe.

    Parameters
    ----------
    recipe : a key of `recipes.RECIPES`, or ``all``.
    seed : of everything random; a store has one.
    detectors : names of the CCDs to make; all by default.
    fits : folder for raw files in the camera's own format; frames then do not go to the store.

    Returns
    -------
    Simulated. What is there already is left as it is, so a simulation that was killed goes on where it stopped. A
    worker holds the charge of the CCDs of one board and the maps of one: about 1.5 GB for three LSST CCDs.

    Raises
    ------
    WrongUse
        No such recipe, filter, mask or detector, or a number that cannot be.
    CalibrationError
        The store holds the simulation of another seed or other settings.
    """
    site = Observatory(seed, store.camera, config.effects)
    planned = exposures(recipe, config.recipe, config.effects, store.camera)
    chosen = _boards(store.camera, detectors)
    _claim(store, site)
    known = {} if fits else read_records(store.url)
    jobs, there = _jobs(store.camera, planned, chosen, known, fits)
    if fits:
        fits.mkdir(parents=True, exist_ok=True)
    task = dask.delayed(_make, pure=False)
    tasks = [task(store.url, site, *job, None if fits is None else str(fits)) for job in jobs]
    report = Simulated([e.name for e in planned], unchanged=there)
    made: list[FrameRecord] = []
    for _, result in compute.run(tasks, labels=range(len(tasks)), describe="simulate", progress=progress):
        if isinstance(result, Exception):
            report.errors.append(str(result))
        elif fits:
            report.files.extend(result)
        else:
            publish_frames(store.url, result)
            made += result
    names = _tables(store, site, recipe, planned, report)
    report = Simulated(report.exposures, len(made) + len(report.files), there, report.files, names, report.errors)
    _maps(store, site, chosen, compute, report, progress)
    return report


def _boards(camera: Camera, detectors: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of the CCDs to make, by board."""
    names = {d.name for d in camera.detectors}
    if unknown := sorted(set(detectors) - names):
        raise WrongUse(
            f"camera {camera.name} has no detector {unknown[0]}: name some of {', '.join(sorted(names)[:9])}"
        )
    wanted = set(detectors) or names
    found = [tuple(d.name for d in group if d.name in wanted) for group in boards(camera)]
    return [group for group in found if group]


def _claim(store: Store, site: Observatory) -> None:
    """Write seed and settings, or find the same ones."""
    ours = {"seed": site.seed, "settings": site.settings.model_dump(mode="json")}
    if not objects.create(store.url, _MARKER, ours) and objects.read_json(store.url, _MARKER) != ours:
        raise CalibrationError(
            f"{store.url} holds a simulation with another seed or other effects: use another store for this one"
        )


def _jobs(
    camera: Camera,
    planned: Sequence[Exposure],
    groups: Sequence[tuple[str, ...]],
    known: dict[tuple[str, str], FrameRecord],
    fits: Path | None,
) -> tuple[list[tuple[list[Exposure], tuple[str, ...]]], int]:
    """Blocks of exposures of a board that are still to be made, and the number of frames that need not be."""
    jobs, there = [], 0
    size = int(len(camera.amplifier_names) * camera.raw_shape[0] * camera.raw_shape[1])
    for group in groups:
        block = max(1, int(_BLOCK / (size * len(group))))
        missing = []
        for exposure in planned:
            done = [_exists(exposure, name, known, fits) for name in group]
            there += sum(done)
            if not all(done):
                missing.append(exposure)
        jobs += [(missing[i : i + block], group) for i in range(0, len(missing), block)]
    return jobs, there


def _exists(exposure: Exposure, detector: str, known: dict[tuple[str, str], FrameRecord], fits: Path | None) -> bool:
    if fits is not None:
        return _file(fits, exposure.name, detector).exists()
    return (exposure.name, detector) in known


def _file(folder: str | Path, exposure: str, detector: str) -> Path:
    return Path(folder, f"{exposure}_{detector}.fits.fz")


def _make(
    url: str, site: Observatory, block: Sequence[Exposure], names: Sequence[str], fits: str | None
) -> list[FrameRecord] | list[str]:
    """Make the frames of a board in some exposures; records to publish, or names of files."""
    records: list[FrameRecord] = []
    files: list[str] = []
    detectors = [site.camera.detector(name) for name in names]
    origin = digest({"seed": site.seed, "settings": site.settings.model_dump(mode="json")})
    for exposure in block:
        for frame in frames(site, exposure, detectors):
            path = _file(fits or "", frame.exposure, frame.detector)
            if fits is not None:
                write_frame(path, site.camera, frame)
                files.append(str(path))
            else:
                record = FrameRecord(frame.exposure, frame.detector, "", path.name, origin, "", frame.header)
                records.append(raw.write_frame(url, record, frame.counts, frame.cards))
    return files if fits is not None else records


def _tables(store: Store, site: Observatory, recipe: str, planned: Sequence[Exposure], report: Simulated) -> list[str]:
    """Write the tables of truth and the external inputs; names of the latter."""
    for name, table in truth_tables(site, recipe, planned).items():
        write_table(store.url, f"truth/{name}", table)
    names = []
    for name, table in deliveries(site, recipe, planned):
        write_table(store.url, f"inputs/{name}", table)
        names.append(name)
    return names


def _maps(
    store: Store, site: Observatory, groups: Sequence[tuple[str, ...]], compute: Compute, report: Simulated, bar: bool
) -> None:
    """Write the maps of truth of every CCD that was made and has none yet."""
    names = [name for group in groups for name in group]
    missing = [name for name in names if not objects.exists(store.url, f"truth/maps/{name}.json")]
    task = dask.delayed(_write_maps, pure=False)
    tasks = [task(store.url, site, name) for name in missing]
    for _, result in compute.run(tasks, labels=missing, describe="truth", progress=bar):
        if isinstance(result, Exception):
            report.errors.append(str(result))


def _write_maps(url: str, site: Observatory, name: str) -> None:
    detector = open_store(url).camera.detector(name)
    found = truth_maps(site, detector)
    for variable, values, units in found:
        array = objects.create_or_open(
            url,
            f"truth/maps/{variable}/{name}",
            shape=values.shape,
            chunks=(*([1] * (values.ndim - 2)), *values.shape[-2:]),
            dtype=values.dtype,
            attributes={"units": units},
        )
        objects.fill(url, array, values)
    objects.write_json(url, f"truth/maps/{name}.json", [variable for variable, _, _ in found])
