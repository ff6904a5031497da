"""Compressed forms of a store's cubes: few maps of each CCD in place of its slices, with their largest error (2.8.5).

One task for each CCD, amplifier after amplifier. What is whole has a marker, so a run that was killed goes on where it
stopped. It is of one publication of the cube: another one asks for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import Detector
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.synthesis import CubeOpener
from lsstcal_dask.products.lowrank import LowRank, LowRankConfig, compress_amplifier
from lsstcal_dask.storage.compressed import (
    COLUMNS,
    CompressedPointer,
    finish_ccd,
    finished_ccds,
    list_compressed,
    publish_again,
    publish_compressed,
    write_amplifier,
)
from lsstcal_dask.storage.cubelayout import Cube
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.provenance import digest, software

__all__ = ["Compressed", "compress_cube"]


@dataclass(frozen=True)
class Compressed:
    """What became of a compressed form."""

    pointer: CompressedPointer | None  # None where it could not be published
    made: int = 0  # CCDs
    errors: list[str] = field(default_factory=list)


def compress_cube(
    store: Store, name: str, config: LowRankConfig, compute: Compute, *, progress: bool = False
) -> Compressed:
    """Compress the slices of a cube as it was published last: one task for each CCD.

    A form that is there already is not made again; as the last that was asked for it is the one that is used.

    Raises
    ------
    CalibrationError
        There is no such cube, or it holds nothing.
    """
    cube = read_cube(store.url, name)
    about = {
        "number": cube.pointer.number,
        "slices": [one.hash for one in cube.pointer.slots],
        "response": [one.response for one in cube.pointer.slots],
        "configuration": config.model_dump(mode="json"),
        "software": software(),
    }
    version = digest(about)
    forms = list_compressed(store.url, name)
    if known := [one for one in forms if one.version == version]:
        return Compressed(known[0] if known[0] == forms[-1] else publish_again(store.url, known[0]))
    there = [d for d, own in zip(cube.layout.detectors, np.asarray(cube.present.any(axis=1)), strict=True) if own]
    if not there:
        raise CalibrationError(f"cube {name}: holds nothing to compress: add monochromatic flats with 'lsstcal cube'")
    done = finished_ccds(store.url, name, version)
    todo = [d for d in there if d not in done]
    made, failed, errors = _make(store, cube, (version, config), todo, compute, progress)
    if errors:
        told = f"cube {name}: its compressed form is not published; run the same command to resume"
        return Compressed(None, len(made), [*errors, told])
    if not done | made:
        return Compressed(None, 0, [f"cube {name}: {why}" for why in failed.values()])
    markers = {d: marker for d, marker in {**done, **made}.items() if d in there}
    pointer = CompressedPointer(
        cube=name,
        number=cube.pointer.number,
        version=version,
        created=datetime.now(UTC).isoformat(),
        detectors={d: {k: one[k] for k in ("hash", "rank", "error", "nbytes")} for d, one in markers.items()},
        failed=failed,
        configuration=config.model_dump(mode="json"),
        software=software(),
    )
    publish_compressed(store.url, pointer)
    return Compressed(pointer, len(made))


def _make(
    store: Store,
    cube: Cube,
    how: tuple[str, LowRankConfig],
    todo: Sequence[str],
    compute: Compute,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Markers of the CCDs that were made, why some cannot be compressed, and what went wrong."""
    opener = CubeOpener(store.url, cube.name, cube.pointer.number)
    task = dask.delayed(_compress_ccd, pure=False)
    tasks = [task(Opaque((opener, store.camera.detector(det), *how))) for det in todo]
    made, failed, errors = {}, {}, []
    for det, result in compute.run(tasks, labels=list(todo), describe="compress", progress=progress):
        if isinstance(result, DegenerateSolution | InsufficientInputs):
            failed[str(det)] = str(result)
        elif isinstance(result, Exception):
            errors.append(f"cube {cube.name}: {det}: {result}")
        else:
            made[str(det)] = result
    return made, failed, errors


def _compress_ccd(shared: Opaque) -> dict[str, Any]:
    """What a worker does for one CCD: of an LSST CCD it holds the maps and one block of slices of an amplifier."""
    opener, detector, version, config = shared.value
    slices = opener(detector.name)
    cube: Cube = slices.cube
    response = cube.column("response")
    hashes: dict[str, str] = {}
    ranks: list[int] = []
    errors: list[float] = []
    size = 0
    for amplifier in detector.amplifiers:
        a = cube.layout.amplifiers.index(amplifier.name)
        if not np.isfinite(slices.scale[:, a]).any():
            continue  # dead at all wavelengths
        low = _compressed(slices, a, (detector, amplifier.name), response, config)
        error = float(np.max(low.worst / np.abs(response)))
        if not (np.isfinite(error) and np.isfinite(low.maps).any()):
            raise CalibrationError(
                f"{amplifier.name}: its maps are no numbers: see 'lsstcal ls {opener.url} --check' for what is damaged"
            )
        attrs = {"rank": len(low.maps), "error": error}
        arrays = {name: getattr(low, name) for name in COLUMNS}
        arrays["maps"] = low.maps.reshape(-1, *slices.shape)
        hashes[amplifier.name] = write_amplifier(
            opener.url, (opener.name, version, detector.name, amplifier.name), arrays, attrs
        )
        ranks, errors, size = [*ranks, len(low.maps)], [*errors, error], size + low.nbytes
    marker = {"hashes": hashes, "rank": max(ranks), "error": max(errors), "nbytes": size}
    return finish_ccd(opener.url, (opener.name, version, detector.name), marker)


def _compressed(
    slices: Any, a: int, place: tuple[Detector, str], response: np.ndarray, config: LowRankConfig
) -> LowRank:
    try:
        return compress_amplifier(slices, a, response, config)
    except DegenerateSolution as error:
        raise DegenerateSolution(f"{place[0].name} {place[1]}: {error}") from None
