"""Defects as Rubin's software stores them (¶6): boxes x0, y0, width, height in pixels of the assembled CCD, from 0.

Rubin's list holds what must not be used (BAD). What is only doubtful goes into a second file with MASK_PLANE =
SUSPECT in ``meta``, beside the first. A further column ``kind`` (bits of DEFECT_KINDS), which Rubin's reader passes
over, says what is wrong with each box. Also read: the table of FITS regions (X, Y, SHAPE, R: centres, from 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument import Camera, Detector, assemble, no_data, split
from lsstcal_dask.storage.rubin.files import (
    RubinFile,
    check_version,
    find_detector,
    header,
    location,
    numbers,
    read_file,
    write_file,
)
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

__all__ = [
    "DefectList",
    "boxes_to_mask",
    "check_boxes",
    "defect_masks",
    "mask_to_boxes",
    "read_defects",
    "write_defects",
]

_KIND: Final = ("defects", "", 2.0)
_OBSTYPES: Final = ("defects", "manual_defects")
_VERSIONS: Final = (1.0, 2.0)
_BOX: Final = ("x0", "y0", "width", "height")


@dataclass(frozen=True, eq=False)
class DefectList:
    """Defects of one CCD: boxes, what they are, and the mask bit they set."""

    detector: str
    boxes: np.ndarray  # (defect, 4) int, x0, y0, width, height
    kinds: np.ndarray  # (defect,) uint16, bits of DEFECT_KINDS
    plane: str = "BAD"  # or SUSPECT
    file: RubinFile | None = None


def boxes_to_mask(boxes: np.ndarray, shape: tuple[int, int], values: np.ndarray | None = None) -> np.ndarray:
    """Mask (y, x) uint16 over a CCD of that shape: bits of ``values``, 1 by default, set in each box.

    Examples
    --------
    >>> boxes_to_mask(np.array([[1, 0, 2, 1]]), (2, 4))
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]], dtype=uint16)
    """
    mask = np.zeros(shape, np.uint16)
    bits = np.ones(len(boxes), np.uint16) if values is None else values
    for (x0, y0, width, height), bit in zip(boxes.tolist(), bits.tolist(), strict=True):
        mask[y0 : y0 + height, x0 : x0 + width] |= np.uint16(bit)
    return mask


def mask_to_boxes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the pixels that are not zero, each of one value: runs along columns, equal neighbours merged.

    Parameters
    ----------
    mask : (y, x) unsigned.

    Returns
    -------
    (defect, 4) int64 x0, y0, width, height, by y0 and then x0, without overlaps; (defect,) their values.

    Examples
    --------
    >>> mask_to_boxes(np.array([[0, 1, 1], [2, 1, 1]]))[0].tolist()
    [[1, 0, 2, 2], [0, 1, 1, 1]]
    """
    edge = np.zeros((1, mask.shape[1]), bool)
    first = (mask != 0) & np.concatenate([~edge, mask[1:] != mask[:-1]])
    last = (mask != 0) & np.concatenate([mask[1:] != mask[:-1], ~edge])
    x0, y0 = np.nonzero(first.T)
    _, end = np.nonzero(last.T)
    runs = np.stack([y0, end - y0 + 1, mask[y0, x0].astype(np.int64), x0], axis=1)  # in order of x, then y
    # Of runs with the same rows and value, those in neighbouring columns are one box.
    runs = runs[np.lexsort(runs.T[::-1])]
    new = np.ones(len(runs), bool)
    new[1:] = (runs[1:, :3] != runs[:-1, :3]).any(axis=1) | (runs[1:, 3] != runs[:-1, 3] + 1)
    starts = np.flatnonzero(new)
    width = np.diff(np.append(starts, len(runs)))
    y, height, value, x = runs[starts].T
    boxes = np.stack([x, y, width, height], axis=1)
    order = np.lexsort((x, y))
    return boxes[order], value[order].astype(mask.dtype)


def _from_yaml(content: Mapping[str, Any]) -> Table:
    names = [*_BOX, *(["kind"] if "kind" in content else [])]
    return Table({name: content[name] for name in names}, meta=dict(content["metadata"]))


def _to_yaml(table: Table) -> dict[str, Any]:
    return {name: table[name].tolist() for name in table.colnames}


def read_defects(path: str | Path, camera: Camera) -> DefectList:
    """Read the list of a CCD.

    Raises
    ------
    CalibrationError
        It is no such file, or has a schema that is not known.
    InconsistentGeometry
        A box is not within the CCD, or is none; the CCD is not the one it should be.
    """
    file = read_file(path, _from_yaml)
    check_version(file, _OBSTYPES, _VERSIONS)
    detector = find_detector(file, camera)
    table = file.tables[0]
    if {"X", "Y", "SHAPE", "R"} <= set(table.colnames):
        boxes = _regions(file)
    else:
        boxes = np.stack([numbers(file, name, ("pix", "pixel", "")) for name in _BOX], axis=1)
    listed = np.uint16(DEFECT_KINDS["LISTED"])
    kinds = numbers(file, "kind").astype(np.uint16) if "kind" in table.colnames else np.zeros(len(boxes), np.uint16)
    plane = str(file.entry("MASK_PLANE") or "BAD")
    if plane not in ("BAD", "SUSPECT"):
        raise CalibrationError(f"{path}: MASK_PLANE is {plane}: BAD or SUSPECT")
    return DefectList(detector.name, check_boxes(boxes, detector, file.path), kinds | listed, plane, file)


def check_boxes(boxes: np.ndarray, detector: Detector, where: str) -> np.ndarray:
    """Boxes (defect, 4) as whole numbers; raises InconsistentGeometry if one is not within the CCD."""
    ny, nx = detector.shape
    whole = np.asarray(boxes, np.float64)
    x0, y0, width, height = whole.T if len(whole) else np.zeros((4, 0))
    good = (whole == np.rint(whole)).all(axis=1) if len(whole) else np.zeros(0, bool)
    good &= (x0 >= 0) & (y0 >= 0) & (width >= 1) & (height >= 1) & (x0 + width <= nx) & (y0 + height <= ny)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InconsistentGeometry(
            f"{where}: {detector.name}: box {i} {whole[i].tolist()} (x0, y0, width, height) is not within the CCD of "
            f"{nx} x {ny} pixels: correct it"
        )
    return whole.astype(np.int64).reshape(-1, 4)


def _regions(file: RubinFile) -> np.ndarray:
    """Boxes of a table of FITS regions."""
    table = file.tables[0]
    found = []
    for row in table:
        shape = str(row["SHAPE"]).strip().upper()
        if shape not in ("BOX", "POINT"):
            raise CalibrationError(f"{file.path}: a region of shape {shape}: only BOX and POINT are read")
        x, y = (float(np.ravel(row[name])[0]) - 1 for name in ("X", "Y"))
        width, height = (1.0, 1.0) if shape == "POINT" else (float(n) for n in np.ravel(row["R"])[:2])
        found.append([x - (width - 1) / 2, y - (height - 1) / 2, width, height])
    return np.array(found).reshape(-1, 4)


def defect_masks(lists: list[DefectList], detector: Detector, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """What lists of one CCD say of its pixels.

    Returns
    -------
    ``mask`` and ``defect_kind``, both (amplifier, y, x) uint16 in readout orientation over the camera's amplifiers.
    """
    found = []
    for plane in ("mask", "kind"):
        ccd = np.zeros(detector.shape, np.uint16)
        for one in lists:
            bits = np.full(len(one.boxes), MASK_BITS[one.plane], np.uint16) if plane == "mask" else one.kinds
            ccd |= boxes_to_mask(one.boxes, detector.shape, bits)
        found.append(np.asarray(split(ccd, detector, camera, fill=0)))
    return found[0] | no_data(detector, camera), found[1]


def write_defects(
    folder: str | Path, mask: np.ndarray, kinds: np.ndarray, place: tuple[Camera, Detector], date: str, suffix: str
) -> list[Path]:
    """Write the lists of a CCD: BAD, and where there are any SUSPECT.

    Parameters
    ----------
    mask, kinds : (amplifier, y, x) over the camera's amplifiers, in readout orientation.
    date : ISO, UTC, from which on it is valid.
    suffix : a format of `FORMATS`.
    """
    camera, detector = place
    bits, what = (np.asarray(assemble(a, detector, camera, fill=0)).astype(np.uint32) for a in (mask, kinds))
    written = []
    for plane in ("BAD", "SUSPECT"):
        marked = bits & MASK_BITS[plane] > 0
        # One more than the kind: pixels without a kind are boxes too.
        boxes, values = mask_to_boxes(np.where(marked, what + 1, 0))
        if plane == "SUSPECT" and not len(boxes):
            continue
        table = Table({name: boxes[:, i].astype(np.float64) for i, name in enumerate(_BOX)})
        table["kind"] = (values - 1).astype(np.int32) if len(values) else np.zeros(0, np.int32)
        table.meta = header(camera, detector, _KIND, date) | {"CALIBCLS": "lsst.ip.isr.defects.Defects"}
        name = "defects" if plane == "BAD" else "suspect"
        table.meta |= {} if plane == "BAD" else {"MASK_PLANE": plane}
        path = location(folder, name, detector.name, date, suffix)
        write_file(path, table, _to_yaml)
        written.append(path)
    return written
