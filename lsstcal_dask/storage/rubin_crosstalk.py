"""Crosstalk as Rubin's software stores it (¶5): ECSV, schema ``Gen3 Crosstalk`` 1.2, read and written back exactly.

One file for a CCD. Matrices are flattened [source, target], ours are [target, source]; coefficients are per
electron or per adu, as ``CROSSTALK_RATIOS_UNITS`` says: ``c_adu = c_electron g_source / g_target`` with g in
electron/adu, and ``c2_adu = c2_electron g_source**2 / g_target``. Couplings between CCDs, where there are any,
are a second table with IC_SOURCE_DET and IC_COEFFS.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.storage.rubin.files import filled

__all__ = ["RubinCrosstalk", "in_electrons", "read_rubin_crosstalk", "write_rubin_crosstalk"]

_SQUARE: Final = {
    "linear": "CT_COEFFS",
    "linear_error": "CT_ERRORS",
    "counts": "CT_COUNTS",
    "valid": "CT_VALID",
    "quadratic": "CT_COEFFS_SQR",
    "quadratic_error": "CT_ERRORS_SQR",
    "gain_ratios": "CT_AMP_GAIN_RATIOS",
}


@dataclass(frozen=True, eq=False)
class RubinCrosstalk:
    """Crosstalk of one CCD; matrices (target, source)."""

    linear: np.ndarray
    linear_error: np.ndarray
    counts: np.ndarray
    valid: np.ndarray  # bool
    quadratic: np.ndarray
    quadratic_error: np.ndarray
    gain_ratios: np.ndarray
    gains: np.ndarray  # (amplifier,) electron/adu, with which the coefficients were found
    meta: dict[str, Any]
    others: dict[str, np.ndarray] = field(default_factory=dict)  # by source CCD, (target, source)

    @property
    def units(self) -> str:
        """``electron`` or ``adu``."""
        return str(self.meta["CROSSTALK_RATIOS_UNITS"])


def read_rubin_crosstalk(path: str | Path) -> RubinCrosstalk:
    """Read a file of Rubin's; its table of couplings between CCDs is the file ``<name>.ic.ecsv`` beside it, if any.

    Raises
    ------
    CalibrationError
        The file cannot be read, or is no such table.
    InconsistentGeometry
        Its matrices do not have the size it says.
    UnitsError
        Its coefficients are neither per electron nor per adu.
    """
    path = Path(path)
    table = _read(path)
    meta = dict(table.meta)
    missing = [name for name in (*_SQUARE.values(), "CT_FIT_GAINS") if name not in table.colnames]
    if missing or len(table) != 1:
        raise CalibrationError(f"{path}: is no crosstalk of schema 1.2 ({missing[0] if missing else 'not one row'})")
    if meta.get("CROSSTALK_RATIOS_UNITS") not in ("electron", "adu"):
        raise UnitsError(f"{path}: CROSSTALK_RATIOS_UNITS is {meta.get('CROSSTALK_RATIOS_UNITS')!r}: electron or adu")
    n = _count(meta.get("NAMP", 0), path)
    values = {}
    for name, column in _SQUARE.items():
        row = _row(table, column, path)
        if row.shape != (n * n,):
            raise InconsistentGeometry(f"{path}: {column} has {row.size} values, NAMP = {n} needs {n * n}")
        values[name] = row.reshape(n, n).T
    other = path.with_suffix(".ic.ecsv")
    return RubinCrosstalk(**values, gains=_row(table, "CT_FIT_GAINS", path), meta=meta, others=_others(other, n))


def _count(value: Any, path: Path) -> int:
    if not str(value).isdecimal():
        raise CalibrationError(f"{path}: NAMP is {value!r}: write the number of amplifiers")
    return int(value)


def _row(table: Table, column: str, path: Path) -> np.ndarray:
    row = filled(table[column], f"{path}: {column}")[0]
    if row.dtype.kind not in "fiub":
        raise CalibrationError(f"{path}: {column} holds what is no number: correct it")
    return row


def _read(path: Path) -> Table:
    try:
        return Table.read(path, format="ascii.ecsv")
    except FileNotFoundError:
        raise CalibrationError(f"{path}: there is no such file") from None
    except Exception as error:  # of a parser of parsers anything may come
        raise CalibrationError(f"{path}: cannot be read as ECSV ({str(error).splitlines()[0]})") from error


def _others(path: Path, n: int) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    table = _read(path)
    if {"IC_SOURCE_DET", "IC_COEFFS"} - set(table.colnames):
        raise CalibrationError(f"{path}: has no IC_SOURCE_DET and IC_COEFFS: is it a table of couplings between CCDs?")
    sizes = np.shape(table["IC_COEFFS"])
    if len(sizes) != 2 or not n or sizes[1] % n or table["IC_COEFFS"].dtype.kind not in "fi":
        raise InconsistentGeometry(f"{path}: IC_COEFFS are not numbers for {n} amplifiers of the target in each row")
    names, rows = (filled(table[key], f"{path}: {key}") for key in ("IC_SOURCE_DET", "IC_COEFFS"))
    return {str(name): row.reshape(-1, n).T for name, row in zip(names, rows, strict=True)}


def write_rubin_crosstalk(path: str | Path, crosstalk: RubinCrosstalk) -> None:
    """Write it as `read_rubin_crosstalk` reads it, to the last bit."""
    path = Path(path)
    table = Table(meta=dict(crosstalk.meta))
    for name, column in _SQUARE.items():
        table[column] = getattr(crosstalk, name).T.reshape(1, -1)
    table["CT_FIT_GAINS"] = crosstalk.gains.reshape(1, -1)
    table.write(path, format="ascii.ecsv", overwrite=True)
    if crosstalk.others:
        rows = Table({"IC_SOURCE_DET": list(crosstalk.others)})
        rows["IC_COEFFS"] = np.stack([matrix.T.ravel() for matrix in crosstalk.others.values()])
        rows.write(path.with_suffix(".ic.ecsv"), format="ascii.ecsv", overwrite=True)


def in_electrons(crosstalk: RubinCrosstalk, gains: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Coefficients per electron: linear, its error, quadratic, its error, each (target, source); invalid ones are NaN.

    Parameters
    ----------
    gains : (amplifier,) electron/adu for coefficients per adu; those of the file if absent. What couples to an
        amplifier whose gain is NaN is unknown.
    """
    g = crosstalk.gains if gains is None else np.asarray(gains, float)
    ratio = square = np.ones_like(crosstalk.linear)
    if crosstalk.units == "adu":
        lost = np.isnan(g) if gains is not None and (g > 0).any() else np.zeros(g.shape, bool)
        if not (np.isfinite(g) & (g > 0) | lost).all():
            raise UnitsError("crosstalk per adu needs gains above zero, and there are none in the file: pass them")
        ratio = g[:, None] / g[None, :]
        square = ratio / g[None, :]
    good = np.where(crosstalk.valid | np.eye(len(g), dtype=bool), 1.0, np.nan)
    linear = (crosstalk.linear * ratio * good, crosstalk.linear_error * ratio * good)
    return *linear, crosstalk.quadratic * square * good, crosstalk.quadratic_error * square * good
