"""Raw frames in Zarr (¶1, ¶4, ¶8-¶10): one immutable array per exposure and detector, one chunk per amplifier.

A frame is written under the hash of its pixels, so writers never collide and
nothing stored is ever overwritten. It becomes visible when one of the `manifests` names it:

    raw/frames/<exposure>/<detector>/<pixels>/   Zarr array (amplifier, y, x) and frame.json, its record

Any Zarr library reads the frames. Ours decodes a chunk, which is one file and one
amplifier, straight into the stack that asked for it, at a third of the cost of
going through the general machinery, and refuses one that is missing or whose
checksum is wrong, where Zarr would answer zeros for the first.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from numcodecs import blosc
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.manifests import HEADER_FLOATS, HEADER_TEXTS, FrameRecord, frame_path, read_records
from lsstcal_dask.storage.objects import create_or_open
from lsstcal_dask.storage.provenance import hash_counts
from lsstcal_dask.variables import attributes, validate

__all__ = ["check_frame", "find_frame", "open_raw", "write_frame"]

_CHECKSUM = 4  # bytes of a CRC-32C at the end of a chunk
_READ_THREADS = 8  # requests under way at once from a bucket, whose latency exceeds the transfer


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
        compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=("amplifier", "y", "x"),
        attributes={"units": "adu", "header": cards},
        config={"write_empty_chunks": True},  # an amplifier that reads zero is not a missing one
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


def check_frame(url: str, record: FrameRecord) -> bool:
    """Whether the stored pixels of a frame are those that were ingested; read through Zarr, not by our own reader."""
    try:
        array = zarr.open_array(objects.zarr_store(url, record.path, read_only=True), mode="r")
        return hash_counts(np.asarray(array[...])) == record.pixels
    except (RuntimeError, ValueError, OSError, KeyError):  # a chunk that cannot even be decoded
        return False


def _decode(blob: bytes, out: np.ndarray) -> None:
    """Decode the stored chunk of one amplifier (y, x) into a contiguous array of its own type."""
    body, checksum = memoryview(blob)[:-_CHECKSUM], blob[-_CHECKSUM:]
    if google_crc32c.value(bytes(body)) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum is wrong")
    blosc.decompress(body, out)


class _FrameArray(BackendArray):
    """Counts (exposure, detector, amplifier, y, x) read frame by frame, amplifier by amplifier, when indexed."""

    def __init__(
        self, url: str, axes: tuple[list[str], list[str]], pixels: np.ndarray, kinds: np.ndarray, like: np.ndarray
    ) -> None:
        self.url = url
        self.exposures, self.detectors = axes
        self.pixels = pixels  # (exposure, detector) hash of each frame as bytes; b"" where it is missing
        self.kinds = kinds  # (exposure, detector) stored type of each frame as bytes
        self.shape = (*pixels.shape, *like.shape)
        self.dtype = like.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        exposures, detectors, amplifiers, rows, columns = (
            np.atleast_1d(np.arange(size)[k]) for size, k in zip(self.shape, key, strict=True)
        )
        sizes = (len(exposures), len(detectors), len(amplifiers), len(rows), len(columns))
        whole = sizes[3:] == self.shape[3:]
        out = np.empty(sizes, self.dtype)

        def fill(place: tuple[int, int]) -> None:
            i, j = exposures[place[0]], detectors[place[1]]
            if not self.pixels[i, j]:
                out[place] = 0
                return
            kind = self.kinds[i, j].decode()
            scratch = None if whole and kind == self.dtype else np.empty(self.shape[3:], kind)
            for position, amplifier in enumerate(amplifiers):
                target = out[*place, position]
                self._read_amplifier((i, j, int(amplifier)), target if scratch is None else scratch)
                if scratch is not None:
                    target[:] = scratch[key[3]][..., key[4]].reshape(target.shape)

        places = [(i, j) for i in range(len(exposures)) for j in range(len(detectors))]
        if objects.is_remote(self.url):
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                list(pool.map(fill, places))
        else:
            for place in places:
                fill(place)
        return out[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]

    def _read_amplifier(self, place: tuple[int, int, int], out: np.ndarray) -> None:
        i, j, amplifier = place
        path = frame_path(self.exposures[i], self.detectors[j], self.pixels[i, j].decode())
        try:
            _decode(objects.read_bytes(self.url, f"{path}/c/{amplifier}/0/0"), out)
        except Exception as error:
            reason = "a part is missing" if isinstance(error, FileNotFoundError) else error
            raise CalibrationError(
                f"exposure {self.exposures[i]} {self.detectors[j]}: its stored pixels cannot be read "
                f"({reason}): delete {path} and ingest its file again"
            ) from error


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
    for i, name in enumerate(names):
        for j, detector in enumerate(detectors):
            if record := records.get((name, detector)):
                pixels[i, j] = record.pixels
                kinds[i, j] = record.dtype
    dtypes = [kind.decode() for kind in np.unique(kinds[pixels != b""])]
    dtype = np.result_type(*dtypes) if dtypes else np.dtype(camera.dtype)
    like = np.broadcast_to(np.zeros((), dtype), (len(camera.amplifier_names), *camera.raw_shape))
    lazy = indexing.LazilyIndexedArray(_FrameArray(url, (names, detectors), pixels, kinds, like))
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
        for key in HEADER_TEXTS
    }
    for key, unit in HEADER_FLOATS.items():
        values = np.array([headers[n][key] for n in names], dtype=float)
        found[key] = xr.Variable("exposure", values, attributes(key, unit))
    times = np.array([np.datetime64(headers[n]["time"], "ns") for n in names], dtype="datetime64[ns]")
    found["time"] = xr.Variable("exposure", times, attributes("time"))
    return found
