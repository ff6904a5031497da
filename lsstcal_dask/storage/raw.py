"""Raw frames in Zarr (¶1, ¶4, ¶8-¶10): one immutable array per exposure and detector, one chunk per amplifier.

A frame is written under the hash of its pixels, so writers never collide and
nothing stored is ever overwritten. It becomes visible when one of the `manifests` names it:

    raw/frames/<exposure>/<detector>/<pixels>/   Zarr array (amplifier, y, x) and frame.json, its record
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.core import indexing

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.chunks import RAW, ChunkArray
from lsstcal_dask.storage.manifests import (
    HEADER_FLOATS,
    HEADER_TEXTS,
    OPTIONAL_FLOATS,
    FrameRecord,
    frame_path,
    read_records,
)
from lsstcal_dask.storage.objects import create_or_open
from lsstcal_dask.storage.provenance import hash_counts
from lsstcal_dask.variables import attributes, validate

__all__ = ["check_frame", "find_frame", "open_raw", "write_frame"]


def _narrowest(counts: np.ndarray) -> np.ndarray:
    """The same integers as uint16 where they fit: half the bytes to read and to sort."""
    if counts.dtype != np.uint16 and counts.min() >= 0 and counts.max() <= np.iinfo(np.uint16).max:
        return counts.astype(np.uint16)
    return counts


def write_frame(url: str, record: FrameRecord, counts: np.ndarray, cards: dict[str, Any]) -> FrameRecord:
    """Write the pixels (amplifier, y, x) of one frame; it stays invisible until it is published.

    Returns the record with its pixel hash and dtype filled in. Writing the same
    frame again, or after a kill, ends in the same bytes.
    """
    narrow = _narrowest(counts)
    record = replace(record, pixels=hash_counts(counts), dtype=narrow.dtype.name)
    if objects.exists(url, f"{record.path}/frame.json"):
        return record
    create_or_open(
        url,
        record.path,
        shape=narrow.shape,
        chunks=(1, *narrow.shape[1:]),
        dtype=narrow.dtype,
        compressors=RAW.compressors,
        dimension_names=("amplifier", "y", "x"),
        attributes={"units": "adu", "header": cards},
    )
    for amplifier, values in enumerate(narrow):
        objects.write_bytes(url, f"{record.path}/c/{amplifier}/0/0", RAW.encode(values))
    objects.write_json(url, f"{record.path}/frame.json", asdict(record))
    return record


def find_frame(url: str, exposure: str, detector: str, file_hash: str) -> FrameRecord | None:
    """The stored frame that came from this very file, published or not."""
    for pixels in objects.list_names(url, f"raw/frames/{exposure}/{detector}"):
        path = f"raw/frames/{exposure}/{detector}/{pixels}/frame.json"
        if objects.exists(url, path):
            record = FrameRecord(**objects.read_json(url, path))
            if record.file_hash == file_hash:
                return record
    return None


def check_frame(url: str, record: FrameRecord) -> bool:
    """Whether the stored pixels of a frame are those that were ingested; read through Zarr, not by our own reader."""
    try:
        array = zarr.open_array(objects.zarr_store(url, record.path, read_only=True), mode="r")
        return hash_counts(np.asarray(array[...])) == record.pixels
    except (RuntimeError, ValueError, OSError, KeyError):  # a chunk that cannot even be decoded
        return False


@dataclass(frozen=True)
class _Frames:
    """Where the chunks of ``counts`` (exposure, detector, amplifier, y, x) are."""

    exposures: list[str]
    detectors: list[str]
    pixels: np.ndarray  # (exposure, detector) hash of each frame as bytes; b"" where it is missing
    kinds: np.ndarray  # (exposure, detector) stored type of each frame as bytes

    def _path(self, i: int, j: int) -> str:
        return frame_path(self.exposures[i], self.detectors[j], self.pixels[i, j].decode())

    def locate(self, index: tuple[int, ...]) -> tuple[str, str] | None:
        i, j, amplifier = index
        if not self.pixels[i, j]:
            return None
        return f"{self._path(i, j)}/c/{amplifier}/0/0", self.kinds[i, j].decode()

    def damaged(self, index: tuple[int, ...], reason: str) -> str:
        i, j, _ = index
        return (
            f"exposure {self.exposures[i]} {self.detectors[j]}: its stored pixels cannot be read "
            f"({reason}): delete {self._path(i, j)} and ingest its file again"
        )


def open_raw(
    url: str,
    camera: Camera,
    *,
    exposure_type: str | None = None,
    exposures: Iterable[str] | None = None,
    chunked: bool = True,
) -> xr.Dataset:
    """Open the raw focal plane lazily; nothing but manifests is read.

    Parameters
    ----------
    url : folder or bucket of the store.
    camera : the camera of the store.
    exposure_type : keep only exposures of this type.
    exposures : keep only these exposure ids.
    chunked : a Dask array of one chunk per amplifier, or (False) an array that is read when
        indexed, for tasks that stream their own chunks; the values are the same.

    Returns
    -------
    ``counts`` (exposure, detector, amplifier, y, x), adu, readout orientation, ordered by
    time; ``present`` (exposure, detector); the header table as coordinates. Missing frames
    read as zero and are not ``present``.

    Raises
    ------
    CalibrationError
        One of ``exposures`` is not in the store.
    """
    records = read_records(url)
    headers = {record.exposure: record.header for record in records.values()}
    if exposures is not None:
        exposures = list(exposures)
        if missing := sorted(set(exposures) - set(headers)):
            raise CalibrationError(f"exposure {missing[0]} is not in {url}: see 'lsstcal ls', or ingest its files")
        headers = {name: headers[name] for name in exposures}
    if exposure_type is not None:
        headers = {k: v for k, v in headers.items() if v["exposure_type"] == exposure_type}
    names = sorted(headers, key=lambda name: (headers[name]["time"], name))
    found = _dataset(url, camera, names, headers, records)
    if not (chunked and names):
        return found
    return found.assign(counts=found["counts"].variable.chunk(exposure=1, detector=1, amplifier=1))


def _dataset(
    url: str,
    camera: Camera,
    names: list[str],
    headers: dict[str, dict[str, Any]],
    records: dict[tuple[str, str], FrameRecord],
) -> xr.Dataset:
    detectors = [detector.name for detector in camera.detectors]
    pixels = np.zeros((len(names), len(detectors)), dtype="S16")
    kinds = np.zeros(pixels.shape, dtype="S8")
    placed = _placed(names, detectors, records)
    for place, record in placed.items():
        pixels[place], kinds[place] = record.pixels, record.dtype
    dtypes = [kind.decode() for kind in np.unique(kinds[pixels != b""])]
    dtype = np.result_type(*dtypes) if dtypes else np.dtype(camera.dtype)
    shape = (*pixels.shape, len(camera.amplifier_names), *camera.raw_shape)
    frames = _Frames(names, detectors, pixels, kinds)
    like = np.broadcast_to(np.zeros((), dtype), shape)
    lazy = indexing.LazilyIndexedArray(ChunkArray(url, RAW, frames, like, 0))
    dims = ("exposure", "detector", "amplifier", "y", "x")
    dataset = xr.Dataset(
        {
            "counts": xr.Variable(dims, lazy, attributes("counts")),
            "present": xr.Variable(dims[:2], pixels != b"", attributes("present")),
            "pixels": xr.Variable(dims[:2], pixels, attributes("pixels")),
        },
        coords={
            "exposure": ("exposure", np.array(names, dtype=object), attributes("exposure")),
            "detector": ("detector", np.array(detectors, dtype=object), attributes("detector")),
            "amplifier": (
                "amplifier",
                np.array(camera.amplifier_names, dtype=object),
                attributes("amplifier"),
            ),
            **_header_coordinates(names, headers),
            **_sequencers(placed, pixels.shape),
            **_numbers(placed, pixels.shape),
        },
        attrs={"camera": camera.name},
    )
    return validate(dataset)


def _placed(
    names: list[str], detectors: list[str], records: dict[tuple[str, str], FrameRecord]
) -> dict[tuple[int, int], FrameRecord]:
    """The records of these exposures and detectors, by their places among them."""
    row, column = ({name: i for i, name in enumerate(given)} for given in (names, detectors))
    return {(row[e], column[d]): record for (e, d), record in records.items() if e in row and d in column}


def _sequencers(placed: dict[tuple[int, int], FrameRecord], shape: tuple[int, int]) -> dict[str, xr.Variable]:
    """Program by which each frame was read, as its own file said; nothing where no file says so."""
    found = np.full(shape, "", dtype=object)
    for place, record in placed.items():
        found[place] = str((record.own or record.header).get("sequencer", ""))
    known = bool((found != "").any())
    return {"sequencer": xr.Variable(("exposure", "detector"), found, attributes("sequencer"))} if known else {}


_BY_DETECTOR = {"temperature": "K", "voltage": "V"}


def _numbers(placed: dict[tuple[int, int], FrameRecord], shape: tuple[int, int]) -> dict[str, xr.Variable]:
    """Numbers that each detector has for itself, as its own file said; nothing where no file says so."""
    found = {key: np.full(shape, np.nan) for key in _BY_DETECTOR}
    for place, record in placed.items():
        for key, values in found.items():
            values[place] = (record.own or record.header).get(key, np.nan)
    return {
        key: xr.Variable(("exposure", "detector"), values, attributes(key, _BY_DETECTOR[key]))
        for key, values in found.items()
        if np.isfinite(values).any()
    }


def _header_coordinates(names: list[str], headers: dict[str, dict[str, Any]]) -> dict[str, xr.Variable]:
    found = {
        key: xr.Variable("exposure", np.array([headers[n][key] for n in names], dtype=object), attributes(key))
        for key in HEADER_TEXTS
    }
    for key, unit in HEADER_FLOATS.items():
        values = np.array([headers[n][key] for n in names], dtype=float)
        found[key] = xr.Variable("exposure", values, attributes(key, unit))
    for key, unit in OPTIONAL_FLOATS.items():
        values = np.array([headers[n].get(key, np.nan) for n in names], dtype=float)
        if np.isfinite(values).any():
            found[key] = xr.Variable("exposure", values, attributes(key, unit))
    times = np.array([np.datetime64(headers[n]["time"], "ns") for n in names], dtype="datetime64[ns]")
    found["time"] = xr.Variable("exposure", times, attributes("time"))
    return found
