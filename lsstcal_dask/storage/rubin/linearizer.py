"""Linearity as Rubin's software stores it (¶3): the linearizer, schema ``Gen3 Linearizer`` to 1.8.

One row for each amplifier. A Spline has COEFFS = [nodes, values] in adu and ``corrected = x - spline(x)``, an Akima
spline; our curve is ``true = measured + S(measured)``, so ``S = -values`` at the same nodes, to the last bit.
``Squared`` is ``x + c0 x**2`` and ``Polynomial`` ``x + sum_i c_i x**(2 + i)``: they become nodes, so close that the
spline between them is within 1e-3 adu. ``None`` corrects nothing: a level curve. Tables and proportional factors are
refused. Further columns in our own names (``linearity_error`` ...) are for our reader; Rubin's passes over them;
in a file that has them, ``None`` is an amplifier whose curve is not known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from astropy.table import Table
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.instrument import Amplifier, Camera, Detector
from lsstcal_dask.storage.rubin.files import (
    RubinFile,
    amplifier_rows,
    as_numbers,
    check_version,
    column,
    find_detector,
    header,
    numbers,
    read_file,
    write_file,
)
from lsstcal_dask.variables import attributes

__all__ = ["read_linearizer", "write_linearizer"]

_KIND: Final = ("LINEARIZER", "Gen3 Linearizer", 1.8)
_VERSIONS: Final = (1.0, 1.8)
_ACCURACY: Final = 1e-3  # adu, of a polynomial as a spline
_ZERO: Final = 1e-3  # adu that the first value of a fitted spline may be off zero: it is set to zero
_MOST: Final = 4097  # nodes
_COUNTS: Final = {"uint16": 2.0**16 - 1, "int32": 2.0**18 - 1}  # full scale of the converter, where no limit is said

_YAML: Final = {
    "TYPE": "linearityType",
    "COEFFS": "linearityCoeffs",
    "FIT_PARAMS": "fitParams",
    "FIT_PARAMS_ERR": "fitParamsErr",
    "RED_CHI_SQ": "fitChiSq",
    "FIT_RES": "fitResiduals",
    "FIT_RES_SIGMAD": "fitResidualsSigmaMad",
    "LIN_FIT": "linearFit",
    "LINEARITY_TURNOFF": "linearityTurnoff",
    "LINEARITY_MAX_SIGNAL": "linearityMaxSignal",
    "INPUT_GAIN": "inputGain",
}
_OWN: Final = ("linearity_error", "linearity_ceiling")


def _from_yaml(content: Mapping[str, Any]) -> Table:
    amplifiers = content["amplifiers"]
    first = next(iter(amplifiers.values()))
    table = Table({"AMPLIFIER_NAME": list(amplifiers)}, meta=dict(content["metadata"]))
    for name, key in {**_YAML, **{own: own for own in _OWN}}.items():
        if key in first:
            table[name] = _stack([a[key] for a in amplifiers.values()])
    return table


def _to_yaml(table: Table) -> dict[str, Any]:
    rows = {}
    for row in table:
        values = {key: row[name] for name, key in _YAML.items() if name in table.colnames}
        values |= {name: row[name] for name in _OWN}
        rows[str(row["AMPLIFIER_NAME"])] = {key: np.asarray(value).tolist() for key, value in values.items()}
    known = {"detectorName": "DET_NAME", "detectorSerial": "DET_SER", "detectorId": "DETECTOR"}
    return {key: table.meta[name] for key, name in known.items()} | {"amplifiers": rows}


def _stack(values: list[Any]) -> np.ndarray:
    """Column of numbers, texts or vectors; of vectors of several lengths one of objects."""
    if isinstance(values[0], str) or np.ndim(values[0]) == 0:
        return np.array(values)
    vectors = [np.asarray(value, np.float64) for value in values]
    if len({v.shape for v in vectors}) == 1:
        return np.stack(vectors)
    found = np.empty(len(vectors), object)
    found[:] = vectors
    return found


def read_linearizer(path: str | Path, camera: Camera) -> tuple[str, xr.Dataset, RubinFile]:
    """Read the curves of a CCD.

    Returns
    -------
    Name of the CCD; ``linearity_level``, ``linearity_correction``, ``linearity_error`` (amplifier, node), adu, NaN
    where there is none, and ``linearity_ceiling`` (amplifier,), adu; the file.

    Raises
    ------
    CalibrationError
        No such file, a schema or a type of curve that is not read, nodes that do not ascend from (0, 0).
    InconsistentGeometry
        The CCD is not the one it should be, or an amplifier is missing.
    UnitsError
        The curve is not in adu.
    """
    file = read_file(path, _from_yaml)
    check_version(file, _KIND[:1], _VERSIONS)
    detector = find_detector(file, camera)
    units = str(file.entry("LINEARITY_UNITS") or "adu")
    if units != "adu":
        raise UnitsError(f"{file.path}: LINEARITY_UNITS is {units!r}, expected 'adu': ask for the curve in adu")
    rows = amplifier_rows(file, list(column(file, "AMPLIFIER_NAME")), detector)
    ours = _OWN[0] in file.tables[0].colnames
    types, coefficients = column(file, "TYPE"), column(file, "COEFFS", ("adu",), where=detector.name)
    curves = []
    for i, amplifier in zip(rows, detector.amplifiers, strict=True):
        limit, kind = _limit(file, i, camera), str(types[i]).strip()
        values = as_numbers(coefficients[i], f"{_who(file, detector, amplifier)}: COEFFS")
        unknown = kind == "None" and ours
        curves.append(
            (np.zeros(0), np.zeros(0)) if unknown else _nodes(kind, values, limit, _who(file, detector, amplifier))
        )
    return detector.name, _dataset(file, rows, detector, curves), file


def _who(file: RubinFile, detector: Detector, amplifier: Amplifier) -> str:
    return f"{file.path}: {detector.name} {amplifier.name}"


def _limit(file: RubinFile, row: int, camera: Camera) -> float:
    """Signal to which a polynomial is tabulated, adu."""
    for name in ("LINEARITY_MAX_SIGNAL", "LINEARITY_TURNOFF"):
        if name in file.tables[0].colnames:
            value = float(numbers(file, name)[row])
            if np.isfinite(value) and value > 0:
                return value
    return _COUNTS[camera.dtype]


def _nodes(kind: str, coefficients: np.ndarray, limit: float, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels and corrections of one curve, adu."""
    if kind == "None":
        return np.linspace(0.0, limit, 3), np.zeros(3)
    if kind == "Spline":
        return _spline_nodes(coefficients, who)
    if kind not in ("Squared", "Polynomial"):
        raise CalibrationError(
            f"{who}: a linearizer of type {kind!r} is not read: convert it to Spline, Squared or Polynomial"
        )
    powers = coefficients[:1] if kind == "Squared" else coefficients
    if not np.isfinite(powers).all():
        raise CalibrationError(f"{who}: COEFFS has a value that is no number: leave TYPE None where there is no curve")

    def polynomial(x: np.ndarray) -> np.ndarray:
        return x**2 * np.polynomial.polynomial.polyval(x, powers)

    count = 17
    while True:
        level = np.linspace(0.0, limit, count)
        middle = (level[1:] + level[:-1]) / 2
        off = np.abs(Akima1DInterpolator(level, polynomial(level))(middle) - polynomial(middle)).max()
        if off <= _ACCURACY:
            return level, polynomial(level)
        if count >= _MOST:
            raise CalibrationError(f"{who}: {count} nodes miss its {kind} by {off:.1g} adu: are COEFFS per adu?")
        count = 2 * count - 1


def _spline_nodes(coefficients: np.ndarray, who: str) -> tuple[np.ndarray, np.ndarray]:
    if coefficients.ndim != 1 or len(coefficients) % 2 or len(coefficients) < 6:
        raise CalibrationError(f"{who}: COEFFS of a Spline are nodes and as many values, three or more of each")
    level, values = np.split(coefficients, 2)
    if not np.isfinite(coefficients).all() or np.any(np.diff(level) <= 0):
        raise CalibrationError(f"{who}: the nodes of its Spline do not ascend, or are no numbers: correct COEFFS")
    if level[0] != 0 or abs(values[0]) > _ZERO:
        raise CalibrationError(f"{who}: its Spline begins at ({level[0]:g}, {values[0]:g}) and not at (0, 0) adu")
    return level, np.concatenate([[0.0], 0.0 - values[1:]])  # without a negative zero


def _dataset(
    file: RubinFile, rows: list[int], detector: Detector, curves: list[tuple[np.ndarray, np.ndarray]]
) -> xr.Dataset:
    most = max([3, *(len(level) for level, _ in curves)])
    level, correction, error = (np.full((len(curves), most), np.nan) for _ in range(3))
    ceiling = np.full(len(curves), np.nan)
    names = file.tables[0].colnames
    for i, (row, (x, s)) in enumerate(zip(rows, curves, strict=True)):
        level[i, : len(x)], correction[i, : len(x)] = x, s
        if "linearity_error" in names:
            error[i, : len(x)] = as_numbers(
                column(file, "linearity_error", ("adu",))[row], f"{file.path}: linearity_error"
            )[: len(x)]
        ceiling[i] = _ceiling(file, row, x)
    values = {
        "linearity_level": (("amplifier", "node"), level),
        "linearity_correction": (("amplifier", "node"), correction),
        "linearity_error": (("amplifier", "node"), error),
        "linearity_ceiling": ("amplifier", ceiling),
    }
    found = xr.Dataset(values, coords={"amplifier": [a.name for a in detector.amplifiers]})
    for name in values:
        found[name].attrs = attributes(name)
    return found


def _ceiling(file: RubinFile, row: int, level: np.ndarray) -> float:
    """Level above which a curve is unreliable: what the file says, else its last node, adu."""
    names = file.tables[0].colnames
    if "linearity_ceiling" in names:
        return float(numbers(file, "linearity_ceiling", ("adu",))[row])
    for name in ("LINEARITY_TURNOFF", "LINEARITY_MAX_SIGNAL"):
        if name in names and np.isfinite(value := float(numbers(file, name)[row])):
            return value
    return float(level[-1]) if len(level) else np.nan


def write_linearizer(path: str | Path, curves: xr.Dataset, place: tuple[Camera, Detector], date: str) -> None:
    """Write the curves of a CCD as Splines.

    Parameters
    ----------
    curves : as `read_linearizer` gives them, over the amplifiers of the CCD at least.
    date : ISO, UTC, from which on they are valid.
    """
    camera, detector = place
    own = curves.sel(amplifier=[a.name for a in detector.amplifiers])
    level, correction = own["linearity_level"].values, own["linearity_correction"].values
    known = np.isfinite(level) & np.isfinite(correction)
    some = known.any(axis=1)
    ceiling = own["linearity_ceiling"].values
    spline = [np.concatenate([x[k], 0.0 - s[k]]) for x, s, k in zip(level, correction, known, strict=True)]
    # Amplifiers without a curve have as many numbers as the first, so that the column stays a plain one.
    size = max(len(s) for s in spline)
    count = len(spline)
    table = Table({"AMPLIFIER_NAME": [a.name for a in detector.amplifiers]})
    table["TYPE"] = np.where(some, "Spline", "None")
    table["COEFFS"] = _stack([s if len(s) else np.zeros(size) for s in spline])
    for name, values in _bbox(detector).items():
        table[name] = values
    for name in ("FIT_PARAMS", "FIT_PARAMS_ERR", "FIT_RES", "LIN_FIT"):
        table[name] = np.full((count, 2), np.nan)
    for name in ("RED_CHI_SQ", "FIT_RES_SIGMAD", "INPUT_GAIN"):
        table[name] = np.full(count, np.nan)
    table["LINEARITY_TURNOFF"] = ceiling
    table["LINEARITY_MAX_SIGNAL"] = [float(x[k][-1]) if k.any() else np.nan for x, k in zip(level, known, strict=True)]
    errors = own["linearity_error"].values
    table["linearity_error"] = _stack(
        [e[k] if k.any() else np.zeros(size // 2) for e, k in zip(errors, known, strict=True)]
    )
    table["linearity_ceiling"] = ceiling
    for name in ("linearity_error", "linearity_ceiling"):
        if table[name].dtype.kind == "f":
            table[name].unit = "adu"
    table.meta = header(camera, detector, _KIND, date) | {
        "CALIBCLS": "lsst.ip.isr.linearize.Linearizer",
        "HAS_LINEARITY": True,
        "OVERRIDE": True,
        "HAS_TABLE": False,
        "LINEARITY_UNITS": "adu",
    }
    write_file(path, table, _to_yaml)


def _bbox(detector: Detector) -> dict[str, list[int]]:
    """Boxes of the amplifiers in the assembled CCD."""
    sizes = [(*a.position, a.data.shape[1], a.data.shape[0]) for a in detector.amplifiers]
    return {f"BBOX_{name}": [box[i] for box in sizes] for i, name in enumerate(("X0", "Y0", "DX", "DY"))}
