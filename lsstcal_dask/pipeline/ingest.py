"""Raw FITS files into the store: each file opened once, checked, written beside what is there, then published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import header_remark, read_frame, read_header
from lsstcal_dask.pipeline.store import Store, open_store
from lsstcal_dask.storage.manifests import (
    OF_DETECTOR,
    FrameRecord,
    filled,
    is_absent,
    publish_frames,
    read_records,
    same_entry,
)
from lsstcal_dask.storage.provenance import hash_file
from lsstcal_dask.storage.raw import find_frame, write_frame
from lsstcal_dask.variables import EXPOSURE_TYPES

__all__ = ["IngestReport", "check_type", "ingest"]

_CLOSE = {"time": 60.0, "dark_time": 5.0}
"""Seconds by which the detectors of an exposure may differ, which are read by their own clocks; else they agree."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    ingested: list[FrameRecord] = field(default_factory=list)
    corrected: list[FrameRecord] = field(default_factory=list)  # stored before, with another header from now on
    unchanged: list[FrameRecord] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # one line for each file that was refused
    remarks: list[str] = field(default_factory=list)  # one line for each exposure that a person should look at


def _ingest_file(url: str, path: str, exposure_type: str | None) -> tuple[FrameRecord, str]:
    """Read and check one file, write its pixels; they stay invisible until published. With a remark, or none."""
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
        return replace(known, header=head.header), header_remark(head, camera)
    frame = read_frame(data, camera, name=name, exposure_type=exposure_type)
    record = FrameRecord(frame.exposure, frame.detector, "", name, file_hash, "", frame.header)
    return write_frame(url, record, frame.counts, frame.cards), header_remark(head, camera)


def ingest(
    store: Store,
    files: Sequence[str],
    compute: Compute,
    *,
    exposure_type: str | None = None,
    correct: bool = False,
    progress: bool = False,
) -> IngestReport:
    """Ingest raw files; what is wrong with one is reported and the others go on.

    Parameters
    ----------
    store : an open store.
    files : paths that every worker can read.
    exposure_type : type of all of them, where their headers do not say or say wrong.
    correct : what the files say of exposures whose pixels are stored already replaces the stored headers.

    Returns
    -------
    IngestReport. Ingesting the same files again changes nothing. A worker holds one file:
    its bytes and its counts, twice (about 150 MB for a 16-amplifier LSST CCD).

    Raises
    ------
    WrongUse
        There is no such type of exposure.
    """
    check_type(exposure_type)
    task = dask.delayed(_ingest_file, pure=False)
    tasks = [task(store.url, str(path), exposure_type) for path in files]
    found: dict[int, FrameRecord | Exception] = {}
    told: dict[int, str] = {}
    for i, result in compute.run(tasks, labels=range(len(files)), describe="ingest", progress=progress):
        found[i], told[i] = result if isinstance(result, tuple) else (result, "")
    report = _publish(store.url, [found[i] for i in range(len(files))], files, correct)
    remarks = dict.fromkeys(told[i] for i in range(len(files)) if told[i])  # its CCDs say the same
    return replace(report, remarks=list(remarks))


def check_type(exposure_type: str | None) -> None:
    """Refuse what is no type of exposure, before anything is read or made.

    Raises
    ------
    WrongUse
        It is not one of `EXPOSURE_TYPES`.
    """
    if exposure_type is not None and exposure_type not in EXPOSURE_TYPES:
        raise WrongUse(f"unknown type of exposure {exposure_type!r}: choose --type from {', '.join(EXPOSURE_TYPES)}")


def _publish(url: str, results: Sequence[FrameRecord | Exception], files: Sequence[str], correct: bool) -> IngestReport:
    """Decide in the order of the files, so that the outcome does not depend on which worker was faster."""
    report = IngestReport()
    visible = dict(read_records(url))
    headers: dict[str, dict[str, Any]] = {}
    refused: dict[int, str] = {}
    if correct:
        headers, refused = _corrections(results, visible)
    siblings = {r.exposure: replace(r, header=headers.get(r.exposure, r.header)) for r in visible.values()}
    for i, (result, path) in enumerate(zip(results, files, strict=True)):
        if isinstance(result, Exception):
            known = isinstance(result, CalibrationError)
            report.errors.append(str(result) if known else f"{path}: {type(result).__name__}: {result}")
            continue
        key = (result.exposure, result.detector)
        same, sibling = visible.get(key), siblings.get(result.exposure)
        if problem := refused.get(i) or _conflict(result, same, sibling, correct):
            report.errors.append(problem)
        elif same is None:
            report.ingested.append(result)
            visible[key] = replace(result, own=result.header)
            siblings[result.exposure] = _told(sibling, result)
        elif result.exposure in headers:
            report.corrected.append(replace(same, header=headers[result.exposure], own=result.header))
        else:
            report.unchanged.append(result)
    publish_frames(url, report.ingested, report.corrected)
    return report


def _corrections(
    results: Sequence[FrameRecord | Exception], visible: Mapping[tuple[str, str], FrameRecord]
) -> tuple[dict[str, dict[str, Any]], dict[int, str]]:
    """New header of each exposure that the files correct; lines for files that contradict others, by position.

    An exposure about whose header the files disagree keeps the one it has.
    """
    stored: dict[str, list[tuple[int, FrameRecord, FrameRecord]]] = {}
    for i, result in enumerate(results):
        same = visible.get((result.exposure, result.detector)) if isinstance(result, FrameRecord) else None
        if isinstance(result, FrameRecord) and same is not None and same.pixels == result.pixels:
            stored.setdefault(result.exposure, []).append((i, result, same))
    headers: dict[str, dict[str, Any]] = {}
    refused: dict[int, str] = {}
    for exposure, members in stored.items():
        changes: dict[str, Any] = {}
        for _, given, same in members:
            changes = {**_changes(given, same), **changes}
        header = {**members[0][2].header, **changes}
        wrong = {}
        for i, given, _ in members:
            if key := _disagreement(header, given.header):
                wrong[i] = (
                    f"{given.file}: exposure {exposure} {given.detector} has {key} {given.header[key]!r}, but another "
                    f"file given has {header[key]!r}: nothing of this exposure was changed; make its files agree"
                )
        refused |= wrong
        if changes and not wrong:
            headers[exposure] = header
    return headers, refused


def _changes(given: FrameRecord, stored: FrameRecord) -> dict[str, Any]:
    """Header entries of a stored frame that its file now gives otherwise."""
    if stored.own is None:  # what this detector's own file said is not known
        return {key: new for key, new in given.header.items() if not _agree(key, stored.header.get(key, new), new)}
    # a store made before an entry was known does not have it, and its frames are none the worse
    return {k: new for k, new in given.header.items() if k in stored.own and not same_entry(stored.own[k], new)}


def _agree(key: str, one: Any, other: Any) -> bool:
    """Whether two detectors of an exposure may have these entries; what one lacks the other may tell."""
    if one == other or is_absent(one) or is_absent(other) or key in OF_DETECTOR:
        return True
    if key == "time":
        return bool(abs(np.datetime64(one) - np.datetime64(other)) <= np.timedelta64(int(_CLOSE[key]), "s"))
    return key in _CLOSE and abs(float(one) - float(other)) <= _CLOSE[key]


def _told(sibling: FrameRecord | None, record: FrameRecord) -> FrameRecord:
    """Frame whose header stands for its exposure, once ``record`` has joined."""
    if sibling is None:
        return record
    adds = any(is_absent(old) and not is_absent(record.header.get(key, old)) for key, old in sibling.header.items())
    return replace(record, header=filled(sibling.header, record.header)) if adds else sibling


def _disagreement(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Name of the first entry in which two headers of an exposure disagree; empty if they agree."""
    return next((key for key in one if not _agree(key, one[key], other.get(key))), "")


def _conflict(record: FrameRecord, same: FrameRecord | None, sibling: FrameRecord | None, correct: bool) -> str:
    """One line if a frame contradicts what is stored."""
    where = f"{record.file}: exposure {record.exposure} {record.detector}"
    if same is not None and same.pixels != record.pixels:
        return (
            f"{where} is already stored from {same.file} with different pixels: nothing was changed; "
            f"give the new one another exposure id"
        )
    if same is not None:
        changes = {} if correct else _changes(record, same)
        for key, new in changes.items():
            old = (same.own or same.header)[key]
            return (
                f"{where} has {key} {new!r}, but is stored with {old!r}: nothing was changed; "
                f"to replace the stored header ingest it with --correct"
            )
    elif sibling is not None and (key := _disagreement(sibling.header, record.header)):
        return (
            f"{where} has {key} {record.header[key]!r}, but {sibling.detector} of the same exposure is stored with "
            f"{sibling.header[key]!r}: correct the header or --type, or ingest {sibling.detector} with --correct"
        )
    return ""
