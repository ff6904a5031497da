"""What the calibration files of Rubin's software have in common: ECSV, FITS and YAML, and who they belong to.

``meta`` names the kind (OBSTYPE, ``<OBSTYPE>_SCHEMA``, ``<OBSTYPE>_VERSION``), the CCD (INSTRUME, RAFTNAME, SLOTNAME,
DETECTOR, DET_NAME, DET_SER), FILTER, CALIBDATE and CALIB_ID. YAML holds ``meta`` under a tag of Rubin's own, a list of
(name, type, value, comment), which the safe loader of YAML refuses: here it gets a constructor that makes a dict.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from astropy.io import fits
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.storage.provenance import hash_file

__all__ = [
    "FORMATS",
    "RubinFile",
    "amplifier_rows",
    "as_numbers",
    "check_units",
    "check_version",
    "column",
    "filled",
    "find_detector",
    "header",
    "location",
    "numbers",
    "read_file",
    "redate",
    "write_file",
]

FORMATS: Final = ("ecsv", "fits", "yaml")

_TAG: Final = "lsst.daf.base.PropertyList"
_HEADER_CARDS: Final = frozenset({"COMMENT", "HISTORY", "EXTNAME", ""})


@dataclass(frozen=True, eq=False)
class RubinFile:
    """One file as it is: its tables, and what tells it from others."""

    path: str
    tables: list[Table]
    hash: str = ""

    @property
    def meta(self) -> dict[str, Any]:
        """Entries of its first table."""
        return dict(self.tables[0].meta)

    def entry(self, name: str) -> Any:
        """An entry of ``meta``, capitals or not (FITS has only capitals); None where it is absent or empty."""
        found = next((v for k, v in self.meta.items() if k.upper() == name.upper()), None)
        return None if found is None or str(found).strip() in ("", "None") else found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, and the containers of Rubin's software as plain ones."""


def _property_list(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    rows = loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
    return {str(row[0]): row[2] for row in rows}


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else node.value


_Loader.add_constructor(_TAG, _property_list)
_Loader.add_constructor(f"!{_TAG}", _property_list)
for _prefix in ("lsst.", "!lsst."):
    _Loader.add_multi_constructor(_prefix, _plain)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The safe dumper, and ``meta`` under its tag."""


class _Meta(dict[str, Any]):
    pass


def _represent(dumper: yaml.SafeDumper, meta: _Meta) -> yaml.Node:
    kinds = {bool: "Bool", int: "Int", float: "Double", str: "String"}
    rows = [[k, kinds.get(type(v), "String"), v if type(v) in kinds else str(v), ""] for k, v in meta.items()]
    return dumper.represent_sequence(_TAG, rows, flow_style=None)


_Dumper.add_representer(_Meta, _represent)


def read_file(path: str | Path, from_yaml: Callable[[Mapping[str, Any]], Table] | None = None) -> RubinFile:
    """Read the tables of a file; its name tells ECSV, FITS or YAML.

    Parameters
    ----------
    from_yaml : makes the table of the format out of what YAML holds; without it the format has no YAML.

    Raises
    ------
    CalibrationError
        There is no such file, it is of no known format, or it is damaged.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise CalibrationError(f"{path}: is none of .ecsv, .fits, .yaml: name a file of Rubin's software")
    try:
        data = path.read_bytes()
        if kind == "yaml":
            if from_yaml is None:
                raise CalibrationError(f"{path}: this kind is not read from YAML: use ECSV or FITS")
            tables = [from_yaml(yaml.load(data, Loader=_Loader))]
        else:
            tables = (
                [Table.read(data.decode().splitlines(), format="ascii.ecsv")] if kind == "ecsv" else _read_fits(path)
            )
    except CalibrationError:
        raise
    except FileNotFoundError:
        raise CalibrationError(f"{path}: there is no such file") from None
    except KeyError as missing:
        raise CalibrationError(f"{path}: has no entry {missing}: name a file of the kind that is imported") from None
    except Exception as error:  # of a parser of parsers anything may come
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise CalibrationError(f"{path}: cannot be read as {kind.upper()} ({why}): copy it again") from error
    return RubinFile(str(path), tables, hash_file(data))


def _read_fits(path: Path) -> list[Table]:
    with fits.open(path) as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units that astropy does not know
        tables = [Table.read(hdu, mask_invalid=False) for hdu in found if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise CalibrationError(f"{path}: has no table: is it an image?")
    for table in tables:
        table.convert_bytestring_to_unicode()
        for name in table.colnames:
            values = table[name]
            if values.dtype.byteorder == ">":
                table.replace_column(name, values.astype(values.dtype.newbyteorder("=")))
        undefined = {k: "" for k, v in table.meta.items() if isinstance(v, fits.card.Undefined)}
        table.meta.update(undefined)
    return tables


def write_file(
    path: str | Path, table: Table, to_yaml: Callable[[Table], Mapping[str, Any]] | None = None, *, others: Any = ()
) -> None:
    """Write a table as `read_file` reads it, to the last bit; the name of the file tells the format.

    Parameters
    ----------
    others : further tables, in FITS.

    Raises
    ------
    CalibrationError
        The format is not known, or has no place for this.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS or (kind == "yaml" and to_yaml is None):
        raise CalibrationError(f"{path}: cannot be written as .{kind}: use .ecsv or .fits")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    if kind == "ecsv":
        table.write(partial, format="ascii.ecsv", overwrite=True)
    elif kind == "yaml" and to_yaml is not None:
        content = {"metadata": _Meta(table.meta), **to_yaml(table)}
        partial.write_text(yaml.dump(content, Dumper=_Dumper, sort_keys=False))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long keywords, empty entries
            tables = [_table_hdu(one) for one in (table, *others)]
            fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(partial, overwrite=True, output_verify="silentfix")
    partial.replace(path)


def redate(path: str | Path, date: str) -> None:
    """Let an ECSV or FITS file be valid from another date (ISO, UTC) on; all else stays."""
    first, *others = read_file(path).tables
    old = str(first.meta.get("CALIBDATE", ""))
    first.meta["CALIBDATE"] = date
    if "CALIB_ID" in first.meta:
        first.meta["CALIB_ID"] = str(first.meta["CALIB_ID"]).replace(f"calibDate={old}", f"calibDate={date}")
    write_file(path, first, others=others)


def _table_hdu(table: Table) -> fits.BinTableHDU:
    """Table of a FITS file: without lists in its header, with units that are not of the standard (electron) too."""
    kept = {k: v for k, v in table.meta.items() if not isinstance(v, list | tuple | dict) and k not in _HEADER_CARDS}
    plain = table.copy(copy_data=False)
    plain.meta = kept
    hdu = fits.table_to_hdu(plain)
    for name in table.colnames:
        if table[name].unit is not None and hdu.columns[name].unit is None:
            hdu.columns[name].unit = str(table[name].unit)
    return hdu


def check_version(file: RubinFile, kinds: Sequence[str], versions: tuple[float, float]) -> None:
    """Refuse a file of another kind, or of a schema that is not known.

    Parameters
    ----------
    kinds : what OBSTYPE may be; the first gives ``<OBSTYPE>_VERSION`` its name.
    versions : oldest and newest schema.

    Raises
    ------
    CalibrationError
        It is neither.
    """
    kind = file.entry("OBSTYPE")
    if str(kind).lower() not in [name.lower() for name in kinds]:
        raise CalibrationError(
            f"{file.path}: OBSTYPE is {kind}, expected {' or '.join(kinds)}: import it as what it is"
        )
    version = file.entry(f"{kinds[0]}_VERSION")
    try:
        known = versions[0] <= float(version) <= versions[1]
    except (TypeError, ValueError):
        known = False
    if not known:
        raise CalibrationError(
            f"{file.path}: schema {kinds[0]}_VERSION is {version}, known are {versions[0]} to {versions[1]}: "
            f"write it again with a Rubin release that has one of these"
        )


def find_detector(file: RubinFile, camera: Camera, name: str = "") -> Detector:
    """The CCD a file is of: by DET_NAME, RAFTNAME and SLOTNAME, or DETECTOR; serial and camera must agree.

    Parameters
    ----------
    name : of the detector where the file says it in another way.

    Raises
    ------
    InconsistentGeometry
        The camera has no such CCD, or what the file says of it disagrees.
    """
    raft, slot = file.entry("RAFTNAME"), file.entry("SLOTNAME")
    number, serial, instrument = file.entry("DETECTOR"), file.entry("DET_SER"), file.entry("INSTRUME")
    name = name or str(file.entry("DET_NAME") or file.entry("DETECTOR_NAME") or (f"{raft}_{slot}" if raft else ""))
    if instrument and str(instrument).lower() != camera.name.lower():
        raise InconsistentGeometry(f"{file.path}: is of {instrument}, the store of {camera.name}: use another store")
    found = [d for d in camera.detectors if (d.name == name if name else str(d.id) == str(number))]
    if not found:
        raise InconsistentGeometry(
            f"{file.path}: camera {camera.name} has no detector {name or number}: name its own files"
        )
    (detector,) = found
    if number is not None and str(number) != str(detector.id):
        raise InconsistentGeometry(
            f"{file.path}: DETECTOR is {number}, {detector.name} is {detector.id}: correct DETECTOR or DET_NAME"
        )
    if serial and detector.serial and str(serial) != detector.serial:
        raise InconsistentGeometry(
            f"{file.path}: is of CCD {serial}, in {detector.name} is {detector.serial}: it is the file of another CCD"
        )
    return detector


def amplifier_rows(file: RubinFile, names: Sequence[Any], detector: Detector) -> list[int]:
    """Row of each amplifier of the CCD, in its order.

    Raises
    ------
    InconsistentGeometry
        One is missing, or is there twice, or belongs to no amplifier.
    """
    names = [str(name).strip() for name in names]
    own = [a.name for a in detector.amplifiers]
    for name in own:
        if names.count(name) != 1:
            problem = "has no row" if name not in names else "has several rows"
            raise InconsistentGeometry(f"{file.path}: {detector.name} {name}: {problem}: complete the file")
    if strange := sorted(set(names) - set(own)):
        raise InconsistentGeometry(f"{file.path}: {detector.name} has no amplifier {strange[0]}: use {', '.join(own)}")
    return [names.index(name) for name in own]


def column(file: RubinFile, name: str, units: Sequence[str] = (), *, where: str = "") -> np.ndarray:
    """Values of a column of the first table.

    Parameters
    ----------
    units : what its unit may be where it has one; a table without units is taken to be in the first.
    where : detector, for the message.

    Raises
    ------
    CalibrationError
        There is no such column.
    UnitsError
        It is in another unit.
    """
    table = file.tables[0]
    if name not in table.colnames:
        raise CalibrationError(f"{file.path}:{f' {where}:' if where else ''} has no column {name}: is it complete?")
    check_units(file, name, str(table[name].unit or ""), units)
    return filled(table[name], f"{file.path}: column {name}")


def filled(values: Any, what: str) -> np.ndarray:
    """Values of which none is masked; raises CalibrationError where one is, ``what`` begins the message."""
    if np.ma.is_masked(values):
        raise CalibrationError(f"{what} has empty entries: write nan where nothing is known")
    return np.asarray(values)


def numbers(file: RubinFile, name: str, units: Sequence[str] = (), *, where: str = "") -> np.ndarray:
    """Values of a column of numbers or vectors of one length, float64; arguments and errors as of `column`.

    CalibrationError also where there is something else than numbers.
    """
    values = column(file, name, units, where=where)
    return as_numbers(values, f"{file.path}:{f' {where}:' if where else ''} column {name}")


def as_numbers(values: Any, what: str) -> np.ndarray:
    """Numbers as float64; raises CalibrationError where there is something else, ``what`` begins the message."""
    try:
        return np.asarray(values).astype(np.float64)
    except (TypeError, ValueError):
        text = next((v for v in np.ravel(np.asarray(values, object)).tolist() if not _is_number(v)), "a list")
        raise CalibrationError(f"{what}: {str(text)!r} is no number: correct it, or write nan") from None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def check_units(file: RubinFile, name: str, unit: str, units: Sequence[str]) -> None:
    """Refuse a column in another unit; raises UnitsError."""
    if units and unit and unit.replace(" ", "") not in units:
        raise UnitsError(f"{file.path}: column {name} is in {unit!r}, expected {' or '.join(map(repr, units))}")


def header(
    camera: Camera, detector: Detector, kind: tuple[str, str, float], date: str, band: str = ""
) -> dict[str, Any]:
    """Entries of ``meta`` of a file of a CCD.

    Parameters
    ----------
    kind : OBSTYPE, schema and version.
    date : ISO, UTC, from which on it is valid.
    band : filter.
    """
    obstype, schema, version = kind
    raft, _, slot = detector.name.partition("_")
    words = {"instrument": camera.name, "raftName": raft, "detectorName": detector.name, "detector": detector.id}
    words |= {"filter": band} if band else {}
    words |= {"calibDate": date}
    return {
        "OBSTYPE": obstype,
        f"{obstype}_SCHEMA": schema,
        f"{obstype}_VERSION": version,
        "INSTRUME": camera.name,
        "RAFTNAME": raft,
        "SLOTNAME": slot,
        "DETECTOR": detector.id,
        "DET_NAME": detector.name,
        "DET_SER": detector.serial,
        "FILTER": band,
        "CALIBDATE": date,
        "CALIB_ID": " ".join(f"{key}={value}" for key, value in words.items()),
    }


def location(folder: str | Path, kind: str, detector: str, date: str, suffix: str) -> Path:
    """Where Rubin's repositories have such a file: ``crosstalk/r22_s11/19700101T000000.ecsv``."""
    stamp = date.replace("-", "").replace(":", "")
    return Path(folder, kind, detector.lower(), f"{stamp}.{suffix}")
