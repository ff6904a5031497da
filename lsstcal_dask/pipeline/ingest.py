"""Raw FITS files into the store: each file opened once, checked, written beside what is there, then published."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import read_frame, read_header
from lsstcal_dask.pipeline.store import Store, open_store
from lsstcal_dask.storage.provenance import hash_file
from lsstcal_dask.storage.raw import FrameRecord, find_frame, publish_frames, read_records, write_frame

__all__ = ["IngestReport", "ingest"]

_SHARED = ("exposure_type", "time", "exposure_time", "dark_time", "filter")
"""Header entries in which the detectors of one exposure must agree."""

_CLOSE = {"time": 60.0, "dark_time": 5.0}
"""Seconds by which they may differ: detectors are read by their own clocks."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    ingested: list[FrameRecord] = field(default_factory=list)
    unchanged: list[FrameRecord] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # one line for each file that was refused


def _ingest_file(url: str, path: str, exposure_type: str | None) -> FrameRecord:
    """Read and check one file, write its pixels; they stay invisible until published."""
    camera = open_store(url).camera
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    file_hash = hash_file(data)
    head = read_header(data, camera, name=name, exposure_type=exposure_type)
    known = find_frame(url, head.exposure, head.detector, file_hash)
    if known is not None:
        return replace(known, header=head.header)
    frame = read_frame(data, camera, name=name, exposure_type=exposure_type)
    record = FrameRecord(frame.exposure, frame.detector, "", name, file_hash, "", frame.header)
    return write_frame(url, record, frame.counts, frame.cards)


def ingest(
    store: Store,
    files: Sequence[str],
    compute: Compute,
    *,
    exposure_type: str | None = None,
    progress: bool = False,
) -> IngestReport:
    """Ingest raw files; what is wrong with one is reported and the others go on.

    Parameters
    ----------
    store : an open store.
    files : paths that every worker can read.
    exposure_type : type of all of them, where their headers do not say or say wrong.

    Returns
    -------
    IngestReport. Ingesting the same files again changes nothing. A worker holds one file:
    its bytes and its counts, twice (about 150 MB for a 16-amplifier LSST CCD).
    """
    task = dask.delayed(_ingest_file, pure=False)
    tasks = [task(store.url, str(path), exposure_type) for path in files]
    found: dict[int, FrameRecord | Exception] = {}
    for i, result in compute.run(tasks, labels=range(len(files)), describe="ingest", progress=progress):
        found[i] = result
    return _publish(store.url, [found[i] for i in range(len(files))], files)


def _publish(url: str, results: Sequence[FrameRecord | Exception], files: Sequence[str]) -> IngestReport:
    """Decide in the order of the files, so that the outcome does not depend on which worker was faster."""
    report = IngestReport()
    visible = dict(read_records(url))
    headers = {record.exposure: record for record in visible.values()}
    for result, path in zip(results, files, strict=True):
        if isinstance(result, CalibrationError):
            report.errors.append(str(result))
            continue
        if isinstance(result, Exception):
            report.errors.append(f"{path}: {type(result).__name__}: {result}")
            continue
        problem = _conflict(result, visible.get((result.exposure, result.detector)), headers.get(result.exposure))
        if problem:
            report.errors.append(problem)
        elif (result.exposure, result.detector) in visible:
            report.unchanged.append(result)
        else:
            report.ingested.append(result)
            visible[result.exposure, result.detector] = result
            headers.setdefault(result.exposure, result)
    publish_frames(url, report.ingested)
    return report


def _difference(key: str, old: Any, new: Any) -> float:
    """How far two header entries are apart, s."""
    if key == "time":
        return float(abs(np.datetime64(old) - np.datetime64(new)) / np.timedelta64(1, "s"))
    return abs(float(old) - float(new))


def _conflict(record: FrameRecord, same: FrameRecord | None, sibling: FrameRecord | None) -> str:
    """One line if a frame contradicts what is stored."""
    if same is not None and same.pixels != record.pixels:
        return (
            f"{record.file}: exposure {record.exposure} {record.detector} is already stored from {same.file} "
            f"with different pixels: nothing was changed; give the new one another exposure id"
        )
    if sibling is None:
        return ""
    for key in _SHARED:
        old, new = sibling.header[key], record.header[key]
        if old != new and not (key in _CLOSE and _difference(key, old, new) <= _CLOSE[key]):
            return (
                f"{record.file}: exposure {record.exposure} {record.detector} has {key} {new!r}, but "
                f"{sibling.detector} of the same exposure is stored with {old!r}: correct the header or --type"
            )
    return ""
