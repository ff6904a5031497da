"""Which raw frames are visible and what their headers say: small files that are written once, each whole or not at all.

    raw/manifests/<time>-<digest>.json   the frames that one ingest published, the headers it corrected

What is visible follows from reading all of them in the order of their names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.provenance import digest

__all__ = [
    "HEADER_FLOATS",
    "HEADER_TEXTS",
    "OF_DETECTOR",
    "OPTIONAL_FLOATS",
    "FrameRecord",
    "filled",
    "frame_path",
    "header_digests",
    "header_entries",
    "is_absent",
    "publish_frames",
    "read_records",
    "record_digests",
    "record_headers",
    "same_entry",
]

HEADER_FLOATS = {"exposure_time": "s", "dark_time": "s", "wavelength": "nm", "photodiode": "C"}
HEADER_TEXTS = ("exposure_type", "filter")
OPTIONAL_FLOATS = {"lamp_current": "A"}
"""Of an exposure, where a card tells it."""
OF_DETECTOR = {"sequencer": "", "temperature": math.nan, "voltage": math.nan}
"""Entries that each detector of an exposure has for itself, where a card tells them, and what stands for unknown."""


@dataclass(frozen=True)
class FrameRecord:
    """What the store knows of one frame without touching its pixels."""

    exposure: str
    detector: str
    pixels: str  # hash of the counts
    file: str  # name of the file it came from
    file_hash: str
    dtype: str
    header: dict[str, Any]  # of its exposure, once it is published
    own: dict[str, Any] | None = None  # as its own file had it; None where that is not known

    @property
    def path(self) -> str:
        """Path of its Zarr array within the store."""
        return frame_path(self.exposure, self.detector, self.pixels)


def frame_path(exposure: str, detector: str, pixels: str) -> str:
    """Path of a frame's Zarr array within the store."""
    if {"/", "\\", ".."} & {*exposure, *detector, exposure, detector}:  # never outside the store
        raise CalibrationError(f"{exposure!r} {detector!r}: not an exposure id and a detector")
    return f"raw/frames/{exposure}/{detector}/{pixels}"


def publish_frames(url: str, records: Sequence[FrameRecord], corrected: Sequence[FrameRecord] = ()) -> None:
    """Make frames visible and correct headers, all at once.

    Parameters
    ----------
    records : new frames, with the headers of their files.
    corrected : frames that are visible already; ``header`` is what their exposure has from now on,
        ``own`` what their files say.
    """
    if not (records or corrected):
        return
    headers: dict[str, dict[str, Any]] = {}
    for record in records:
        headers[record.exposure] = filled(headers.get(record.exposure, record.header), record.header)
    rows = []
    for record in records:
        row = asdict(record)
        row["own"] = _differences(row.pop("header"), headers[record.exposure])
        rows.append(row)
    manifest: dict[str, Any] = {"exposures": headers, "frames": rows}
    if corrected:
        manifest["corrections"] = _corrections(corrected)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    objects.create(url, f"raw/manifests/{stamp}-{digest(manifest)}.json", manifest)


def _corrections(corrected: Sequence[FrameRecord]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for record in corrected:
        entry = found.setdefault(record.exposure, {"header": record.header, "detectors": {}})
        entry["detectors"][record.detector] = _differences(record.own or record.header, record.header)
    return found


def is_absent(value: Any) -> bool:
    """Whether a header lacks this number."""
    return isinstance(value, float) and math.isnan(value)


def same_entry(one: Any, other: Any) -> bool:
    """Whether two header entries are alike, or both absent."""
    return bool(one == other) or (is_absent(one) and is_absent(other))


def _differences(own: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """What the header of a frame has otherwise than that of its exposure, which may be another detector's."""
    own = {key: unknown for key, unknown in OF_DETECTOR.items() if key in header} | own
    return {key: value for key, value in own.items() if not same_entry(value, header.get(key))}


def filled(header: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A header with what it lacks taken from another detector of the exposure."""
    return {key: other.get(key, value) if is_absent(value) else value for key, value in header.items()}


def record_digests(records: Mapping[tuple[str, str], FrameRecord]) -> dict[str, str]:
    """Short hash of the header of each exposure, from its records."""
    return {name: digest(header) for name, header in record_headers(records).items()}


def record_headers(records: Mapping[tuple[str, str], FrameRecord]) -> dict[str, dict[str, Any]]:
    """Entries of the header of each exposure that products depend on, from its records."""
    return {name: _entries(header) for name, header in {r.exposure: r.header for r in records.values()}.items()}


def header_digests(raw: xr.Dataset) -> dict[str, str]:
    """Short hash of the header of each exposure of what `open_raw` opened: the same as from its records."""
    return {name: digest(header) for name, header in header_entries(raw).items()}


def header_entries(raw: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Entries of the header of each exposure of what `open_raw` opened: the same as from its records."""
    keys = (*HEADER_TEXTS, *HEADER_FLOATS, *(key for key in OPTIONAL_FLOATS if key in raw.coords), "time")
    columns = {key: np.atleast_1d(raw[key].values) for key in keys}
    names = np.atleast_1d(raw["exposure"].values)
    return {str(name): _entries({k: v[i] for k, v in columns.items()}) for i, name in enumerate(names)}


def _entries(header: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: str(header[key]) for key in HEADER_TEXTS}
    numbers = {key: float(header[key]) for key in HEADER_FLOATS}
    optional = {key: float(header.get(key, math.nan)) for key in OPTIONAL_FLOATS}
    numbers |= {key: value for key, value in optional.items() if math.isfinite(value)}
    return {**texts, **numbers, "time": str(np.datetime64(header["time"], "ns"))}


def _of_frame(header: dict[str, Any], own: dict[str, Any] | None) -> dict[str, Any]:
    """Header of an exposure with what each detector has for itself, which is not that of the first of them."""
    return header | {key: own[key] for key in OF_DETECTOR if own and key in own}


_ROW = {field.name for field in fields(FrameRecord)} - {"header", "own"}


def _read_manifest(url: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Headers by exposure, rows of frames, corrections by exposure."""
    manifest = objects.read_json(url, f"raw/manifests/{name}")
    try:
        headers, rows, corrections = manifest["exposures"], manifest["frames"], manifest.get("corrections", {})
        for row in rows:
            header, own = headers[row["exposure"]], row.get("own")
            row["own"] = {**header, **own} if own else header if own is not None else None
        whole = all(set(row) == {*_ROW, "own"} for row in rows)
        whole = whole and all(set(one) == {"header", "detectors"} for one in corrections.values())
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CalibrationError(f"{url}/raw/manifests/{name}: is damaged: restore it from a copy")
    return headers, rows, corrections


def read_records(url: str) -> dict[tuple[str, str], FrameRecord]:
    """Every visible frame by (exposure, detector), with the header of its exposure.

    Of two frames with other pixels the first published stays. So does the header of an exposure, where
    later ones only add what it lacks, until it is corrected: the last correction counts.

    Raises
    ------
    CalibrationError
        A manifest is damaged.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    headers: dict[str, dict[str, Any]] = {}
    for name in (name for name in objects.list_names(url, "raw/manifests") if name.endswith(".json")):
        given, rows, corrections = _read_manifest(url, name)
        for exposure, header in given.items():
            headers[exposure] = filled(headers.get(exposure, header), header)
        for row in rows:
            found.setdefault(row["exposure"], {}).setdefault(row["detector"], row)
        for exposure, correction in corrections.items():
            headers[exposure] = header = correction["header"]
            for detector, row in found.get(exposure, {}).items():
                own = correction["detectors"].get(detector)
                row["own"] = None if own is None else {**header, **own}
    return {
        (exposure, detector): FrameRecord(**row, header=_of_frame(headers[exposure], row["own"]))
        for exposure, detectors in found.items()
        for detector, row in detectors.items()
    }
