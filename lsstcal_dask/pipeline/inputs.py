"""Tables among the inputs of a store that products were made with, and which of them say otherwise now (¶3, ¶11).

A product remembers the hash of the curves of each filter, and for each slice of a cube that of what the table of the
photodiode said at its wavelength. Products of before remember neither: of these nothing is compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband, passband_from_table
from lsstcal_dask.pipeline.photodiode import PhotodiodeNow
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.storage.provenance import digest, hash_arrays
from lsstcal_dask.storage.tables import input_names, read_input

__all__ = ["corrected", "filter_inputs"]


def filter_inputs(url: str, band: str, passband: Any) -> dict[str, str]:
    """Hash of the curves of a filter, by its name, as an input of a product; none where they are not the store's."""
    if not isinstance(passband, Nearby):
        return {}
    used = _digest(passband.measured)
    return {band: used} if used == _filter_now(url, band) else {}


def corrected(url: str, pointers: Sequence[Pointer]) -> dict[str, str]:
    """Versions made with a filter or a photodiode of which the store's table says otherwise now, with the reason."""
    now = _Tables(url)
    whys = {pointer.version: next(now.changes(pointer.inputs), "") for pointer in pointers}
    return {version: why for version, why in whys.items() if why}


class _Tables:
    """Tables of a store as they are now; each is read once, when a product was made with it."""

    def __init__(self, url: str) -> None:
        self.url, self.diode = url, PhotodiodeNow(url)
        self._filters: dict[str, str] = {}
        self._numbers: dict[str, str] = {}

    def changes(self, inputs: Mapping[str, Any]) -> Iterator[str]:
        """What a product was made with that is otherwise now."""
        for band, then in inputs.get("filters", {}).items():
            if band not in self._filters:
                self._filters[band] = _filter_now(self.url, band)
            if (now := self._filters[band]) != then:
                told = "has changed since" if now else "is not in the store any more"
                yield f"made with inputs/filter-{band}.ecsv, which {told}"
        for wavelength, then in inputs.get("photodiode", {}).items():
            if wavelength not in self._numbers:
                self._numbers[wavelength] = digest(self.diode.at(float(wavelength)))
            if self._numbers[wavelength] != then:
                yield f"made with inputs/photodiode.ecsv, which has changed since at {float(wavelength):.1f} nm"


def _filter_now(url: str, band: str) -> str:
    """Hash of the curves of a filter in a store; empty where there is no table, and none's where it cannot be read."""
    if f"filter-{band}" not in input_names(url):
        return ""
    try:
        return _digest(passband_from_table(read_input(url, f"filter-{band}")))
    except CalibrationError:
        return "unreadable"


def _digest(passband: Passband) -> str:
    """Hash of all that a filter's table says, whatever its form."""
    names = ("x", "y", "wavelength", "transmission", "error")
    numbers = {name: np.asarray(getattr(passband, name), float) for name in names}
    return digest([passband.band, list(passband.detector), hash_arrays(numbers)])
