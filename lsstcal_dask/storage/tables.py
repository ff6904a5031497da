"""Tables of a store: external inputs (¶2, ¶3, ¶5-¶7, ¶11-¶15, ♥2) and the truth of a simulation, as ECSV text.

    inputs/<name>.ecsv    what camera team, calibration telescope and weather station deliver
    truth/<name>.ecsv     what only tests, the demo and the verification may read

Each is one small object, so it is there whole or not at all, and a person can read it.
"""

from io import StringIO
from typing import Final

import numpy as np
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects

__all__ = ["input_names", "read_input", "read_table", "write_table"]

_INPUTS: Final = "inputs"
_TIMES: Final = "times"  # entry of ``meta`` that names the columns of times


def write_table(url: str, path: str, table: Table) -> None:
    """Write a table (columns with units, ``meta``) at a path of the store, over what may stand there.

    ECSV has no times: columns of datetime64 are written as ISO text and named in ``meta``.
    """
    times = [column.name for column in table.columns.values() if column.dtype.kind == "M"]
    written = table.copy(copy_data=False)
    for name in times:
        written[name] = np.datetime_as_string(table[name])
    if times:
        written.meta[_TIMES] = times
    text = StringIO()
    written.write(text, format="ascii.ecsv")
    objects.write_bytes(url, f"{path}.ecsv", text.getvalue().encode())


def read_table(url: str, path: str) -> Table:
    """Read a table of the store.

    Raises
    ------
    CalibrationError
        There is none, or it is damaged.
    """
    try:
        data = objects.read_bytes(url, f"{path}.ecsv")
    except FileNotFoundError:
        raise CalibrationError(f"{url} has no table {path}: see 'lsstcal ls {url}'") from None
    try:
        table = Table.read(data.decode().splitlines(), format="ascii.ecsv")
        for name in table.meta.pop(_TIMES, ()):
            table[name] = np.array(np.ma.filled(table[name], "NaT"), "datetime64[us]")
    except Exception as error:  # of a parser of parsers anything may come
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise CalibrationError(f"{url}/{path}.ecsv: is damaged ({why}): restore it from a copy") from error
    return table


def input_names(url: str) -> list[str]:
    """Names of the external inputs, for `read_input`."""
    return [name.removesuffix(".ecsv") for name in objects.list_names(url, _INPUTS) if name.endswith(".ecsv")]


def read_input(url: str, name: str) -> Table:
    """Read an external input by its name; raises as `read_table`."""
    return read_table(url, f"{_INPUTS}/{name}")
