"""Numbers of tables that others deliver: columns, where nothing is known NaN, and entries of ``meta``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, UnitsError

__all__ = ["entry", "names", "numbers"]


def numbers(table: Table, column: str, what: str, dims: int | None = 1) -> np.ndarray:
    """Column as float64 in its own unit, NaN where it is masked: what lies under a mask is no measurement.

    Parameters
    ----------
    what : begins the message.
    dims : of the column, 1 for a number and 2 for a vector in each row; None for any.

    Raises
    ------
    UnitsError
        It holds something else than real numbers.
    CalibrationError
        It has other dimensions.
    """
    values = table[column]
    try:
        if np.asarray(values).dtype.kind not in "biufUSO":  # dates and complex numbers would lose what they are
            raise TypeError
        found = np.array(getattr(values, "unmasked", values), float)
    except (TypeError, ValueError):
        wanted = f"numbers in {table[column].unit}" if getattr(values, "unit", None) else "numbers"
        raise UnitsError(f"{what}: column {column} holds what is no number: give {wanted}") from None
    found[np.asarray(getattr(values, "mask", False))] = np.nan
    if dims is not None and found.ndim != dims:
        wanted = "one number" if dims == 1 else "several numbers"
        raise CalibrationError(f"{what}: column {column} of {found.shape}: give {wanted} in each row")
    return found


def names(table: Table, column: str, what: str) -> list[str]:
    """Column of names; ``what`` begins the message.

    Raises
    ------
    CalibrationError
        An entry is masked.
    """
    values = table[column]
    if np.any(getattr(values, "mask", False)):
        raise CalibrationError(f"{what}: column {column} has empty entries: name each row")
    return [str(name) for name in values]


def entry(meta: Mapping[str, Any], name: str, what: str, unit: str, default: float | None = None) -> float:
    """Number in the ``meta`` of a table, or ``default`` where there is none; ``what`` begins the message.

    Raises
    ------
    UnitsError
        It is not a number.
    """
    said = meta.get(name, default)
    try:
        found = float(said)
    except (TypeError, ValueError):
        found = np.nan
    if not np.isfinite(found):
        raise UnitsError(f"{what}: {name} is {said!r}: give a number in {unit}")
    return found
