"""What a camera team delivers as plain tables (¶2, ¶3, ¶5-¶7): one row for each channel, pair or box, with units.

These are the tables ``inputs/<name>.ecsv`` of a store, and files of the same columns. Each becomes what the product of
that name holds, CCD by CCD; what the table does not say is NaN.

    gain        detector, amplifier, gain, gain_error (electron/adu)
    linearity   detector, amplifier, measured (adu) at the true signals of meta["true_adu"]
    crosstalk   target_ and source_detector, target_ and source_amplifier, c, c_error, c2, c2_error (1/electron);
                pairs that are not listed do not couple
    defects     detector, x0, y0, width, height (pixels of the CCD), kind
    saturation  detector, amplifier, full_well, full_well_error (electron)

A column that has the name of a variable of the product (as ``well_serial``) is that variable.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.storage.rubin.defects import DefectList, check_boxes
from lsstcal_dask.storage.rubin.files import RubinFile, amplifier_rows, column, numbers
from lsstcal_dask.storage.rubin.ptc import check_gains, labelled
from lsstcal_dask.variables import DEFECT_KINDS, VARIABLES, attributes

__all__ = ["DELIVERED", "channel_table", "crosstalk_table", "defect_table", "linearity_table", "source_names"]

_GAIN: Final = ("electron/adu", "electron/ADU", "electronadu-1")
_SUSPECT: Final = ("trap",)
_KINDS: Final = {
    "hot": "HOT",
    "cold": "COLD",
    "dark column": "COLUMN",
    "bright column": "COLUMN",
    "column": "COLUMN",
    "trap": "TRAP",
}
_ALIASES: Final = {"full_well": "well_bloom", "full_well_error": "well_bloom_error"}

Curves = dict[str, xr.Dataset]
"""By CCD, a Dataset over its amplifiers."""


def _unit(file: RubinFile, name: str) -> str:
    """Unit of a column as the dictionary writes it."""
    found = str(file.tables[0][name].unit or "").replace(" ", "")
    return "electron/adu" if found in _GAIN else found


def _detectors(file: RubinFile, camera: Camera, name: str = "detector") -> dict[Detector, np.ndarray]:
    """Rows of each CCD that is there."""
    names = column(file, name).astype(str)
    known = {d.name: d for d in camera.detectors}
    if strange := sorted(set(names.tolist()) - set(known)):
        raise InconsistentGeometry(f"{file.path}: camera {camera.name} has no detector {strange[0]}: correct its name")
    return {d: np.flatnonzero(names == d.name) for d in camera.detectors if (names == d.name).any()}


def _rows(file: RubinFile, detector: Detector, own: np.ndarray) -> np.ndarray:
    """Rows of the amplifiers of a CCD, in their order."""
    return own[amplifier_rows(file, list(column(file, "amplifier")[own]), detector)]


def channel_table(file: RubinFile, camera: Camera, needs: str) -> Curves:
    """Numbers of channels: every column that is a variable of an amplifier, in its unit.

    Parameters
    ----------
    needs : variable that must be there.

    Raises
    ------
    CalibrationError
        It is not there.
    InconsistentGeometry
        An unknown CCD, or an amplifier without a row.
    UnitsError
        A column in another unit, or a gain that is not above zero.
    """
    table = file.tables[0]
    columns = {_ALIASES.get(name, name): name for name in table.colnames}
    names = {k: v for k, v in columns.items() if k in VARIABLES and VARIABLES[k].dims == ("detector", "amplifier")}
    if needs not in names:
        alias = next((old for old, new in _ALIASES.items() if new == needs), needs)
        raise CalibrationError(f"{file.path}: has no column {alias}: is it the right table?")
    found: Curves = {}
    for detector, own in _detectors(file, camera).items():
        rows = _rows(file, detector, own)
        values = {k: _values(file, v, VARIABLES[k].units[:1])[rows] for k, v in names.items()}
        if needs == "gain":
            check_gains(values["gain"], file.path, detector)
        found[detector.name] = labelled(values, detector)
    return found


def _values(file: RubinFile, name: str, units: tuple[str, ...]) -> np.ndarray:
    """Numbers of a column whose unit is said and is one of these."""
    values = numbers(file, name)
    unit = _unit(file, name)
    if unit not in units:
        raise UnitsError(f"{file.path}: column {name} is in {unit!r}, expected {' or '.join(map(repr, units))}")
    return values


def linearity_table(file: RubinFile, camera: Camera) -> Curves:
    """Curves from signals measured at known true ones: nodes (measured, true - measured), adu.

    The curve is taken to be reliable up to its last node. Raises as `channel_table`, and CalibrationError where
    the measured signals do not ascend from zero.
    """
    measured = _values(file, "measured", ("adu",))
    true, relative = np.asarray(file.meta.get("true_adu", ()), np.float64), file.meta.get("relative_error", np.nan)
    if measured.ndim != 2 or measured.shape[1] != len(true) or len(true) < 3:
        raise CalibrationError(f"{file.path}: meta true_adu has {len(true)} signals, measured is {measured.shape}")
    found = {}
    for detector, own in _detectors(file, camera).items():
        level = measured[_rows(file, detector, own)]
        for amplifier, values in zip(detector.amplifiers, level, strict=True):
            if values[0] != 0 or true[0] != 0 or not np.all(np.diff(values) > 0):
                raise CalibrationError(
                    f"{file.path}: {detector.name} {amplifier.name}: measured signals do not ascend from 0 adu: "
                    f"correct them"
                )
        nodes = ("amplifier", "node")
        values = {
            "linearity_level": (nodes, level),
            "linearity_correction": (nodes, true - level),
            "linearity_error": (nodes, float(relative) * level),
            "linearity_ceiling": ("amplifier", level[:, -1]),
        }
        found[detector.name] = _named(values, detector)
    return found


def _named(values: Mapping[str, Any], detector: Detector) -> xr.Dataset:
    found = xr.Dataset(dict(values), coords={"amplifier": [a.name for a in detector.amplifiers]})
    for name in values:
        found[name].attrs = attributes(name)
    return found


def source_names(camera: Camera) -> list[str]:
    """Names of all amplifiers of the camera, as ``R22_S11/C10``: by CCD, in the order of storage."""
    own = {d.name: {a.name for a in d.amplifiers} for d in camera.detectors}
    return [f"{name}/{a}" for name, amplifiers in own.items() for a in camera.amplifier_names if a in amplifiers]


def crosstalk_table(file: RubinFile, camera: Camera) -> Curves:
    """Coefficients of every CCD as target, over the sources that are listed for it.

    Pairs that are not listed are zero (attribute ``unlisted``), with an error of NaN.
    Raises as `channel_table`; InconsistentGeometry also where a pair is listed twice.
    """
    ends = [_places(file, camera, end) for end in ("target", "source")]
    pairs = np.stack(ends, axis=1)
    unique, count = np.unique(pairs, axis=0, return_counts=True)
    names = source_names(camera)
    if np.any(count > 1):
        target, source = (names[i] for i in unique[np.argmax(count > 1)])
        raise InconsistentGeometry(f"{file.path}: {target}: its coupling to {source} is listed twice: remove one")
    columns = {
        "crosstalk": ("c", ("",)),
        "crosstalk_error": ("c_error", ("",)),
        "crosstalk_quadratic": ("c2", ("1/electron", "electron-1")),
        "crosstalk_quadratic_error": ("c2_error", ("1/electron", "electron-1")),
    }
    numbers = {name: _values(file, *which) for name, which in columns.items() if which[0] in file.tables[0].colnames}
    if "crosstalk" not in numbers:
        raise CalibrationError(f"{file.path}: has no column c: is it a table of crosstalk?")
    at, found = {name: i for i, name in enumerate(names)}, {}
    for detector in camera.detectors:
        rows = [at[f"{detector.name}/{a.name}"] for a in detector.amplifiers]
        own = np.isin(ends[0], rows)
        sources, place = np.unique(ends[1][own], return_inverse=True)
        target = np.array([rows.index(t) for t in ends[0][own].tolist()], np.int64)
        values = {}
        for name in columns:
            matrix = np.full((len(rows), len(sources)), np.nan if name.endswith("error") else 0.0)
            if name in numbers:
                matrix[target, place] = numbers[name][own]
            values[name] = (("amplifier", "source"), matrix)
        labels = np.array([names[i] for i in sources], object)
        found[detector.name] = (
            _named(values, detector).assign_coords(source=("source", labels)).assign_attrs(unlisted=0.0)
        )
    return found


def _places(file: RubinFile, camera: Camera, end: str) -> np.ndarray:
    """Place of the amplifier at an end of each pair along `source_names`."""
    _detectors(file, camera, f"{end}_detector")
    at = {name: i for i, name in enumerate(source_names(camera))}
    found = []
    for detector, amplifier in zip(column(file, f"{end}_detector"), column(file, f"{end}_amplifier"), strict=True):
        name = f"{detector}/{amplifier}"
        if name not in at:
            raise InconsistentGeometry(f"{file.path}: {detector} has no amplifier {amplifier}: correct its name")
        found.append(at[name])
    return np.array(found, np.int64)


def defect_table(file: RubinFile, camera: Camera) -> dict[str, list[DefectList]]:
    """Lists of every CCD of the camera, empty ones too; traps are SUSPECT, all others BAD.

    Raises InconsistentGeometry for an unknown CCD or a box that is not within it.
    """
    rows = _detectors(file, camera)
    boxes = np.stack([numbers(file, name, ("pix", "pixel", "")) for name in ("x0", "y0", "width", "height")], axis=1)
    named = "kind" in file.tables[0].colnames
    kinds = column(file, "kind").astype(str) if named else np.full(len(boxes), "")
    bits = np.array([DEFECT_KINDS[_KINDS[k]] if k in _KINDS else 0 for k in kinds.tolist()], np.uint16)
    bits |= np.uint16(DEFECT_KINDS["LISTED"])
    found = {}
    for detector in camera.detectors:
        own = rows.get(detector, np.zeros(0, np.int64))
        checked = check_boxes(boxes[own], detector, file.path)
        doubtful = np.isin(kinds[own], _SUSPECT)
        lists = [("BAD", ~doubtful), ("SUSPECT", doubtful)]
        found[detector.name] = [DefectList(detector.name, checked[at], bits[own][at], plane) for plane, at in lists]
    return found


DELIVERED: Final[dict[str, Callable[[RubinFile, Camera], Any]]] = {
    "gain": lambda file, camera: channel_table(file, camera, "gain"),
    "linearity": linearity_table,
    "crosstalk": crosstalk_table,
    "defects": defect_table,
    "saturation": lambda file, camera: channel_table(file, camera, "well_bloom"),
}
"""What reads the table of each product."""
