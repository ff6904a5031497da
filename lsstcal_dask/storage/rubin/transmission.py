"""Curves of quantum efficiency and of filters as Rubin's software stores them (¶11): wavelength in nm, efficiency in %.

``transmission_sensor`` has a curve for each amplifier (column ``amp_name``), ``transmission_filter`` one for the beam
at a CCD. Also read: the FITS files from which the latter are made, one table with one row for each CCD, in fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.table import Table, vstack

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import Camera
from lsstcal_dask.storage.rubin.files import (
    RubinFile,
    amplifier_rows,
    column,
    find_detector,
    header,
    numbers,
    read_file,
    write_file,
)

__all__ = ["Transmission", "read_transmission", "write_transmission"]

_KINDS: Final = ("transmission_sensor", "transmission_filter")
_CLASSES: Final = {
    "transmission_sensor": "lsst.ip.isr.IntermediateSensorTransmissionCurve",
    "transmission_filter": "lsst.ip.isr.IntermediateFilterTransmissionCurve",
}
_PERCENT: Final = ("%", "0.01")  # FITS has no sign for it and writes its value
_TARGET: Final = "TARGET_SENSOR"
_FRACTION: Final = "integ_transmission"


@dataclass(frozen=True, eq=False)
class Transmission:
    """One curve."""

    kind: str  # transmission_sensor or transmission_filter
    detector: str
    amplifier: str  # empty where one curve serves the CCD
    band: str  # of a filter
    wavelength: np.ndarray  # (n,) nm, ascending
    efficiency: np.ndarray  # (n,) percent
    file: RubinFile | None = None


def read_transmission(path: str | Path, camera: Camera) -> list[Transmission]:
    """Curves of a file: of the amplifiers of a CCD in their order, of a CCD, or of all CCDs.

    Raises
    ------
    CalibrationError
        No such file, another kind, or wavelengths that do not ascend.
    InconsistentGeometry
        The CCD is not the one it should be, or an amplifier is missing.
    UnitsError
        Wavelengths are not in nm, or efficiencies not in percent.
    """
    file = read_file(path)
    if _TARGET in {key.upper() for key in file.meta}:
        return [_of_beam(RubinFile(file.path, [table], file.hash), camera) for table in file.tables]
    kind = str(file.entry("OBSTYPE") or file.entry("TYPE"))
    if kind not in _KINDS:
        raise CalibrationError(
            f"{file.path}: OBSTYPE is {kind}, expected {' or '.join(_KINDS)}: import it as what it is"
        )
    detector = find_detector(file, camera)
    _unit(file, "wavelength", ("nm",))
    _unit(file, "efficiency", _PERCENT)
    wavelength, efficiency = (column(file, name, where=detector.name) for name in ("wavelength", "efficiency"))
    band = str(file.entry("FILTER") or "")
    if "amp_name" not in file.tables[0].colnames:
        return [_curve((kind, detector.name, "", band), wavelength, efficiency, file)]
    names = column(file, "amp_name").astype(str)
    amplifier_rows(file, sorted(set(names.tolist())), detector)
    own = [(a.name, names == a.name) for a in detector.amplifiers]
    return [_curve((kind, detector.name, name, band), wavelength[at], efficiency[at], file) for name, at in own]


def _of_beam(file: RubinFile, camera: Camera) -> Transmission:
    """Curve of a CCD out of a file with one table for each."""
    name = str(file.entry(_TARGET)).strip()
    detector = find_detector(file, camera, name)
    _unit(file, "wavelength", ("nm",))
    _unit(file, _FRACTION, ("", "unitless"))
    wavelength, part = (np.ravel(column(file, key, where=name)) for key in ("wavelength", _FRACTION))
    words = str(file.entry("EXTNAME") or "").split()
    band = words[1] if len(words) > 1 and words[0] == "filter" else ""
    percent = 100 * part.astype(np.float64)
    return _curve(("transmission_filter", detector.name, "", band), wavelength, percent, file)


def _unit(file: RubinFile, name: str, units: Sequence[str]) -> None:
    """Refuse another unit than these, and none where it is not among them: a factor of 100 or 10 would not be seen."""
    numbers(file, name)
    found = str(file.tables[0][name].unit or "")
    if found not in units:
        raise UnitsError(f"{file.path}: column {name} is in {found!r}, expected {' or '.join(map(repr, units))}")


def _curve(what: tuple[str, str, str, str], wavelength: Any, efficiency: Any, file: RubinFile) -> Transmission:
    kind, detector, amplifier, band = what
    if len(wavelength) < 2 or not np.all(np.diff(wavelength) > 0):
        where = f"{detector} {amplifier}".strip()
        raise CalibrationError(f"{file.path}: {where}: its wavelengths do not ascend: sort them, each once")
    return Transmission(kind, detector, amplifier, band, np.asarray(wavelength), np.asarray(efficiency), file)


def write_transmission(path: str | Path, curves: Sequence[Transmission], camera: Camera, date: str) -> None:
    """Write the curves of one CCD; ``date`` (ISO, UTC) is from which on they are valid.

    Raises
    ------
    InconsistentGeometry
        They are of several CCDs, or of several kinds.
    """
    if len({(curve.kind, curve.detector, curve.band) for curve in curves}) != 1:
        raise InconsistentGeometry(f"{path}: curves of one kind and CCD go into a file: write one for each")
    first = curves[0]
    parts = []
    for curve in curves:
        part = Table({"wavelength": curve.wavelength, "efficiency": curve.efficiency})
        if curve.amplifier:
            part.add_column([curve.amplifier] * len(part), name="amp_name", index=0)
        parts.append(part)
    table = vstack(parts)
    table["wavelength"].unit, table["efficiency"].unit = "nm", "%"
    detector = camera.detector(first.detector)
    meta = header(camera, detector, (first.kind, "", 1.0), date, first.band) | {"CALIBCLS": _CLASSES[first.kind]}
    mode = "AMP" if first.amplifier else "DETECTOR"
    table.meta = {"MODE": mode, "TYPE": first.kind, **meta}
    write_file(path, table)
