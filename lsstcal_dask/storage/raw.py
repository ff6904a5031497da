"""Raw frames in Zarr (¶1, ¶4, ¶8-¶10): one immutable array per exposure and detector, one chunk per amplifier.

A frame is written under the hash of its pixels, so writers never collide and
nothing stored is ever overwritten. It becomes visible when a manifest names it:

    raw/frames/<exposure>/<detector>/<pixels>/   Zarr array (amplifier, y, x) and frame.json, its record
    raw/manifests/<time>-<digest>.json           the frames that one ingest published
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.objects import create_or_open
from lsstcal_dask.storage.provenance import digest, hash_counts
from lsstcal_dask.variables import attributes, validate

__all__ = ["FrameRecord", "find_frame", "open_raw", "publish_frames", "read_records", "write_frame"]

_HEADER_FLOATS = {"exposure_time": "s", "dark_time": "s", "wavelength": "nm", "photodiode": "C"}
_HEADER_TEXTS = ("exposure_type", "filter")
_READ_THREADS = 8  # requests under way at once from a bucket, whose latency exceeds the transfer


@dataclass(frozen=True)
class FrameRecord:
    """What the store knows of one frame without touching its pixels."""

    exposure: str
    detector: str
    pixels: str  # hash of the counts
    file: str  # name of the file it came from
    file_hash: str
    dtype: str
    header: dict[str, Any]

    @property
    def path(self) -> str:
        """Path of its Zarr array within the store."""
        return _path(self.exposure, self.detector, self.pixels)


def _path(exposure: str, detector: str, pixels: str) -> str:
    if {"/", "\\", ".."} & {*exposure, *detector, exposure, detector}:  # never outside the store
        raise CalibrationError(f"{exposure!r} {detector!r}: not an exposure id and a detector")
    return f"raw/frames/{exposure}/{detector}/{pixels}"


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
    array = create_or_open(
        objects.zarr_store(url, record.path),
        shape=narrow.shape,
        chunks=(1, *narrow.shape[1:]),
        dtype=narrow.dtype,
        compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")],
        dimension_names=("amplifier", "y", "x"),
        attributes={"units": "adu", "header": cards},
    )
    array[:] = narrow
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


def publish_frames(url: str, records: Sequence[FrameRecord]) -> None:
    """Make frames visible, all at once."""
    if not records:
        return
    rows = [asdict(record) for record in records]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    headers = {row["exposure"]: row["header"] for row in rows}
    slim = [{key: value for key, value in row.items() if key != "header"} for row in rows]
    objects.create(url, f"raw/manifests/{stamp}-{digest(slim)}.json", {"exposures": headers, "frames": slim})


def read_records(url: str) -> dict[tuple[str, str], FrameRecord]:
    """Every visible frame by (exposure, detector); of two with other pixels the first published stays."""
    found: dict[tuple[str, str], FrameRecord] = {}
    headers: dict[str, dict[str, Any]] = {}
    for name in (name for name in objects.list_names(url, "raw/manifests") if name.endswith(".json")):
        manifest = objects.read_json(url, f"raw/manifests/{name}")
        for exposure, header in manifest["exposures"].items():
            headers.setdefault(exposure, header)
        for row in manifest["frames"]:
            key = (row["exposure"], row["detector"])
            if key not in found:
                found[key] = FrameRecord(**row, header=headers[row["exposure"]])
    return found


class _FrameArray(BackendArray):
    """Counts (exposure, detector, amplifier, y, x) read frame by frame, amplifier by amplifier, when indexed."""

    def __init__(self, url: str, axes: tuple[list[str], list[str]], pixels: np.ndarray, like: np.ndarray) -> None:
        self.url = url
        self.exposures, self.detectors = axes
        self.pixels = pixels  # (exposure, detector) hash of each frame as bytes; b"" where it is missing
        self.shape = (*pixels.shape, *like.shape)
        self.dtype = like.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        exposures, detectors, amplifiers = (
            np.atleast_1d(np.arange(size)[k]) for size, k in zip(self.shape[:3], key[:3], strict=True)
        )
        out = np.empty((len(exposures), len(detectors), len(amplifiers), *self.shape[3:]), self.dtype)

        def fill(place: tuple[int, int]) -> None:
            i, j = exposures[place[0]], detectors[place[1]]
            if pixels := self.pixels[i, j].decode():
                path = _path(self.exposures[i], self.detectors[j], pixels)
                try:
                    frame = _open_frame(self.url, path)
                    for position, amplifier in enumerate(amplifiers):
                        out[*place, position] = frame[int(amplifier)]
                except Exception as error:
                    raise CalibrationError(
                        f"exposure {self.exposures[i]} {self.detectors[j]}: its stored pixels cannot be read "
                        f"({error}): delete {path} and ingest its file again"
                    ) from error
            else:
                out[place] = 0

        places = [(i, j) for i in range(len(exposures)) for j in range(len(detectors))]
        if objects.is_remote(self.url):
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                list(pool.map(fill, places))
        else:
            for place in places:
                fill(place)
        scalar = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key[:3])
        return out[..., key[3], :][..., key[4]][scalar]


@lru_cache(maxsize=4096)
def _open_frame(url: str, path: str) -> zarr.Array:
    # Frames never change once written, so an open array can be kept.
    array = zarr.open_array(objects.zarr_store(url, path, read_only=True), mode="r")
    assert isinstance(array, zarr.Array)
    return array


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
    dtypes = set()
    for i, name in enumerate(names):
        for j, detector in enumerate(detectors):
            if record := records.get((name, detector)):
                pixels[i, j] = record.pixels
                dtypes.add(record.dtype)
    dtype = np.result_type(*dtypes) if dtypes else np.dtype(camera.dtype)
    like = np.broadcast_to(np.zeros((), dtype), (len(camera.amplifier_names), *camera.raw_shape))
    lazy = indexing.LazilyIndexedArray(_FrameArray(url, (names, detectors), pixels, like))
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
        },
        attrs={"camera": camera.name},
    )
    return validate(dataset)


def _header_coordinates(names: list[str], headers: dict[str, dict[str, Any]]) -> dict[str, xr.Variable]:
    found = {
        key: xr.Variable("exposure", np.array([headers[n][key] for n in names], dtype=object), attributes(key))
        for key in _HEADER_TEXTS
    }
    for key, unit in _HEADER_FLOATS.items():
        values = np.array([headers[n][key] for n in names], dtype=float)
        found[key] = xr.Variable("exposure", values, attributes(key, unit))
    times = np.array([np.datetime64(headers[n]["time"], "ns") for n in names], dtype="datetime64[ns]")
    found["time"] = xr.Variable("exposure", times, attributes("time"))
    return found
