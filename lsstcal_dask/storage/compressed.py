"""Compressed forms of flat cubes in a store, beside the measured slices, which stay as they are (SCIENCE 2.8.5).

    cubes/NAME/compressed/VERSION/data/DET/  Zarr group of a CCD; rank and largest error are among its attributes
        AMPLIFIER/                           group of an amplifier, with the same of its own
            maps (map, y, x), coefficients (map, wavelength), worst, rms, running, unit (wavelength,)
            at, slice, change (entry,)       the values that the maps do not give
    cubes/NAME/compressed/VERSION/done/DET.json   marker: this CCD is whole
    cubes/NAME/compressed/published/VERSION.json  the pointer

The version is a hash of the slices, the configuration and the software, so a run that was killed finds what it has
made and goes on. Wavelengths are those of one publication of the cube, in its order: of another one there is no
compressed form before it is made again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import zarr

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.chunks import PRODUCT
from lsstcal_dask.storage.cubelayout import base
from lsstcal_dask.storage.provenance import digest, hash_arrays

__all__ = [
    "COLUMNS",
    "CompressedPointer",
    "check_compressed",
    "finish_ccd",
    "finished_ccds",
    "list_compressed",
    "publish_again",
    "publish_compressed",
    "read_amplifier",
    "write_amplifier",
]

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "maps": ("map", "y", "x"),
    "coefficients": ("map", "wavelength"),
    "worst": ("wavelength",),
    "rms": ("wavelength",),
    "running": ("wavelength",),
    "unit": ("wavelength",),
    "at": ("entry",),
    "slice": ("entry",),
    "change": ("entry",),
}
"""Arrays of an amplifier, with their dims; see `products.lowrank.LowRank`."""


@dataclass(frozen=True)
class CompressedPointer:
    """What is published of the compressed form of a cube: everything but its maps."""

    cube: str
    number: int  # publication of the cube of whose slices it is made
    version: str
    created: str  # or asked for again
    detectors: dict[str, dict[str, Any]]  # markers: hash, rank, error, nbytes
    failed: dict[str, str] = field(default_factory=dict)  # CCDs whose slices no few maps give, with the reason
    configuration: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Largest number of maps of an amplifier."""
        return max((one["rank"] for one in self.detectors.values()), default=0)

    @property
    def error(self) -> float:
        """Largest error of a value of a slice, of the mean response of that slice."""
        return max((one["error"] for one in self.detectors.values()), default=0.0)


def _folder(cube: str, version: str) -> str:
    return f"{base(cube)}/compressed/{version}"


def write_amplifier(
    url: str, place: tuple[str, str, str, str], arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]
) -> str:
    """Write one amplifier; gives the hash of its values.

    Parameters
    ----------
    place : cube, version, detector and amplifier.
    arrays : of `COLUMNS`.
    """
    cube, version, detector, amplifier = place
    path = f"{_folder(cube, version)}/data/{detector}/{amplifier}"
    objects.create_group(url, path, dict(attrs))
    for name, dims in COLUMNS.items():
        values = np.asarray(arrays[name])
        whole = [max(n, 1) for n in values.shape]
        target = objects.create_or_open(
            url,
            path,
            name=name,
            shape=values.shape,
            chunks=(1, *whole[1:]) if name == "maps" else tuple(whole),
            dtype=values.dtype,
            dimension_names=dims,
            compressors=PRODUCT.compressors,
        )
        objects.fill(url, target, values)
    return hash_arrays({name: np.asarray(arrays[name]) for name in COLUMNS})


def finish_ccd(url: str, place: tuple[str, str, str], marker: Mapping[str, Any]) -> dict[str, Any]:
    """Write the marker of a CCD whose amplifiers are there.

    Parameters
    ----------
    place : cube, version and detector.
    marker : ``hashes`` by amplifier, ``rank``, ``error``, ``nbytes``.
    """
    cube, version, detector = place
    folder = _folder(cube, version)
    own = {key: marker[key] for key in ("rank", "error", "nbytes")}
    objects.create_group(url, f"{folder}/data/{detector}", {"cube": cube, "version": version, **own})
    found = {**marker, "hash": digest(marker["hashes"])}
    objects.write_json(url, f"{folder}/done/{detector}.json", found)
    return found


def finished_ccds(url: str, cube: str, version: str) -> dict[str, dict[str, Any]]:
    """Markers of the CCDs of a version that are whole."""
    folder = f"{_folder(cube, version)}/done"
    names = [one for one in objects.list_names(url, folder) if one.endswith(".json")]
    return {one.removesuffix(".json"): objects.read_json(url, f"{folder}/{one}") for one in names}


def publish_compressed(url: str, pointer: CompressedPointer) -> bool:
    """Make a version visible; False if it already was."""
    return objects.create(url, f"{base(pointer.cube)}/compressed/published/{pointer.version}.json", asdict(pointer))


def publish_again(url: str, pointer: CompressedPointer) -> CompressedPointer:
    """Let a published version be the one that was asked for last."""
    found = replace(pointer, created=datetime.now(UTC).isoformat())
    objects.write_json(url, f"{base(pointer.cube)}/compressed/published/{pointer.version}.json", asdict(found))
    return found


def list_compressed(url: str, cube: str) -> list[CompressedPointer]:
    """Published compressed forms of a cube, the one made or asked for last at the end."""
    folder = f"{base(cube)}/compressed/published"
    found = []
    for name in (one for one in objects.list_names(url, folder) if one.endswith(".json")):
        try:
            found.append(CompressedPointer(**objects.read_json(url, f"{folder}/{name}")))
        except TypeError:
            raise CalibrationError(
                f"{url}/{folder}/{name}: is damaged: delete it and compress the cube again"
            ) from None
    return sorted(found, key=lambda one: (one.number, one.created))


def read_amplifier(url: str, place: tuple[str, str, str, str]) -> dict[str, np.ndarray] | None:
    """Arrays of `COLUMNS` of an amplifier; None where it holds nothing.

    Parameters
    ----------
    place : cube, version, detector and amplifier.

    Raises
    ------
    StoreFailure
        They are damaged; the message says what to do.
    """
    cube, version, detector, amplifier = place
    path = f"{_folder(cube, version)}/data/{detector}/{amplifier}"
    if not objects.exists(url, f"{path}/zarr.json"):
        return None
    try:
        group = zarr.open_group(objects.zarr_store(url, path, read_only=True), mode="r", use_consolidated=False)
        return {name: np.asarray(group[name][...]) for name in COLUMNS}  # type: ignore[index]
    except (KeyError, RuntimeError, ValueError, FileNotFoundError) as error:
        raise StoreFailure(
            f"cube {cube} {detector} {amplifier}: its compressed form cannot be read ({error}): delete "
            f"{base(cube)}/compressed/published/{version}.json and {_folder(cube, version)}, then run "
            f"'lsstcal compress {url} --cube {cube}' again"
        ) from error


def check_compressed(url: str, pointer: CompressedPointer) -> list[str]:
    """CCDs of a compressed form whose values are not those that were written, or cannot be read: what to do, each."""
    done = finished_ccds(url, pointer.cube, pointer.version)
    return [_remedy(url, pointer, det) for det in pointer.detectors if not _is_whole(url, pointer, det, done.get(det))]


def _is_whole(url: str, pointer: CompressedPointer, detector: str, marker: Mapping[str, Any] | None) -> bool:
    if marker is None or marker["hash"] != pointer.detectors[detector]["hash"]:
        return False
    try:
        for amplifier, wanted in marker["hashes"].items():
            found = read_amplifier(url, (pointer.cube, pointer.version, detector, amplifier))
            if found is None or hash_arrays(found) != wanted:
                return False
    except StoreFailure:
        return False
    return True


def _remedy(url: str, pointer: CompressedPointer, detector: str) -> str:
    folder = _folder(pointer.cube, pointer.version)
    return (
        f"cube {pointer.cube} compressed {pointer.version} {detector}: delete "
        f"{base(pointer.cube)}/compressed/published/{pointer.version}.json and {folder}, then run 'lsstcal compress "
        f"{url} --cube {pointer.cube}' again"
    )
