"""The responsivity of the photodiode in a store, from which the photons of every slice of a cube follow (¶3)."""

from functools import cached_property
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import CalibrationError, InsufficientInputs, UnitsError
from lsstcal_dask.physics.tables import entry, numbers
from lsstcal_dask.products.monochromatic import MonochromaticConfig
from lsstcal_dask.products.photodiode import Photodiode
from lsstcal_dask.storage.tables import input_names, read_input

__all__ = ["PhotodiodeNow", "number_column", "read_photodiode"]

_COLUMNS: Final = {"wavelength": "nm", "responsivity": "A / W", "responsivity_error": "A / W"}


def read_photodiode(url: str, config: MonochromaticConfig) -> Photodiode:
    """The photodiode of the input of that name.

    Raises
    ------
    InsufficientInputs
        There is none.
    UnitsError
        A column has another unit or holds no numbers, or the dark current is no number.
    """
    if config.responsivity == "none":
        return Photodiode.ideal()
    if "photodiode" not in input_names(url):
        raise InsufficientInputs(
            f"cube: the responsivity of the photodiode is not known: put a table into {url}/inputs/photodiode.ecsv "
            f'(wavelength in nm, responsivity and responsivity_error in A/W), or set [cube] responsivity = "none"'
        )
    table = read_input(url, "photodiode")
    wavelength, *currents = (number_column(table, "photodiode", *one) for one in _COLUMNS.items())
    order = np.argsort(wavelength)
    value, error = (column[order] for column in currents)
    dark = entry(table.meta, "dark_current_A", "inputs/photodiode.ecsv", "A", 0.0)
    return Photodiode(wavelength[order], value, error, dark)


class PhotodiodeNow:
    """What the table of a store says now; it is read when it is asked first."""

    def __init__(self, url: str) -> None:
        self.url = url

    def at(self, wavelength: float) -> dict[str, float]:
        """As `Photodiode.told` of a wavelength (nm); nothing where the table is missing, wrong or too short."""
        try:
            return self._known.told(wavelength) if self._known else {}
        except CalibrationError:
            return {}

    @cached_property
    def _known(self) -> Photodiode | None:
        try:
            return read_photodiode(self.url, MonochromaticConfig())
        except CalibrationError:
            return None


def number_column(table: Any, what: str, name: str, unit: str) -> np.ndarray:
    """Column of a table ``inputs/what`` as float, NaN where nothing is; UnitsError where it is in another unit."""
    if name not in table.colnames or str(table[name].unit) != unit:
        found = f"in {table[name].unit}" if name in table.colnames else "not there"
        raise UnitsError(f"inputs/{what}.ecsv: column {name} is {found}: give it in {unit}")
    return numbers(table, name, f"inputs/{what}.ecsv")
