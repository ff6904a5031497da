"""How a CCD was run when frames were taken: what must be alike in a product and in what it is applied to (Sec. 2).

Another sequencer or another substrate voltage makes other levels, noise, wells and gains: frames are then not mixed,
and no product of one is applied to the other. A CCD of another temperature has another gain (6.5e-4 per kelvin) and
another dark current (twice as much after 3 K): from 1 K on that is told, and what is 3 K off is not applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError

__all__ = ["FAR", "WARM", "Readout", "made_with", "noted", "readout", "readouts", "warm_products", "warm_remarks"]

_VOLTS: Final = 1.0
"""By which readings of the same voltage may differ: a tenth of what changes anything."""
_KELVIN: Final = 1.0
"""Within which a product holds: the gain changes by 6.5e-4."""
FAR: Final = 3.0
"""K, from which on a product does not: the gain is 0.2 % off, twice what is asked of it, dark current a factor of 2."""
WARM: Final = ("gain", "dark", "ptc", "defects")
"""Products that follow the temperature."""


@dataclass(frozen=True)
class Readout:
    """What is known of it."""

    sequencer: str = ""  # program; empty where it is not known
    voltage: float | None = None  # V, to a tenth
    temperature: float | None = field(default=None, compare=False)  # K; of several exposures the median
    exposure: str = field(default="", compare=False)  # the first of them

    def differs(self, other: "Readout") -> str:
        """How another one is not the same, in words, where both are known; empty if it is."""
        if self.sequencer and other.sequencer and self.sequencer != other.sequencer:
            return f"sequencer {self.sequencer} and sequencer {other.sequencer}"
        if self.voltage is not None and other.voltage is not None and abs(self.voltage - other.voltage) > _VOLTS:
            return f"a voltage of {self.voltage:g} V and a voltage of {other.voltage:g} V"
        return ""

    def filled(self, other: "Readout") -> "Readout":
        """With what is not known taken from another."""
        voltage = other.voltage if self.voltage is None else self.voltage
        return replace(self, sequencer=self.sequencer or other.sequencer, voltage=voltage)

    def degrees(self, other: "Readout") -> float:
        """Kelvins between the two; 0 where one is not known."""
        if self.temperature is None or other.temperature is None:
            return 0.0
        return abs(self.temperature - other.temperature)


def made_with(inputs: Mapping[str, Any], detector: str) -> Readout:
    """How the exposures of a product were taken, by what it noted."""
    return Readout(*(inputs.get(key, {}).get(detector) for key in ("sequencers", "voltages", "temperatures")))


def readout(raw: xr.Dataset, detector: str) -> Readout:
    """That of a detector in one exposure."""
    keys = [key for key in ("sequencer", "voltage", "temperature") if key in raw.coords]
    own = {key: raw[key].sel(detector=detector).values for key in keys}
    voltage, kelvin = (float(own.get(key, np.nan)) for key in ("voltage", "temperature"))
    return Readout(
        str(own.get("sequencer", "")),
        round(voltage, 1) if np.isfinite(voltage) else None,
        kelvin if np.isfinite(kelvin) else None,
    )


def readouts(product: str, raw: xr.Dataset) -> dict[str, Readout]:
    """That of each detector in the exposures of a product.

    Raises
    ------
    CalibrationError
        Exposures of a detector were read in different ways: levels, noise, and overscan are not the same.
    """
    if not {"sequencer", "voltage", "temperature"} & set(raw.coords):
        return {}
    found: dict[str, Readout] = {}
    for j, det in enumerate(str(name) for name in raw["detector"].values):
        names: dict[Readout, str] = {}
        for i in np.flatnonzero(raw["present"].values[:, j]):
            one = readout(raw.isel(exposure=i), det)
            for before, first in names.items():
                if before.differs(one):
                    raise CalibrationError(_mixed(product, det, (before, first), (one, str(raw["exposure"].values[i]))))
            names.setdefault(one, str(raw["exposure"].values[i]))
            found[det] = found.get(det, Readout(exposure=str(raw["exposure"].values[i]))).filled(one)
        if det in found:
            found[det] = replace(found[det], temperature=_middle(raw, j))
    return found


def _middle(raw: xr.Dataset, j: int) -> float | None:
    """Median temperature, K, of a detector in its exposures."""
    if "temperature" not in raw.coords:
        return None
    known = raw["temperature"].values[raw["present"].values[:, j], j]
    known = known[np.isfinite(known)]
    return round(float(np.median(known)), 2) if known.size else None


def warm_products(used: Mapping[str, tuple[str, Mapping[str, Any]]], detector: str, way: Readout) -> list[str]:
    """Remarks on products, of those that follow it, made at another temperature than that of a frame.

    Parameters
    ----------
    used : version and inputs by name.
    """
    found = []
    for name, (version, inputs) in used.items():
        made_so = made_with(inputs, detector)
        if name in WARM and made_so.degrees(way) > _KELVIN:
            found.append(
                f"{detector}: taken at {way.temperature:.1f} K, {name} {version} at {made_so.temperature:.1f} K: the "
                f"gain changes by 6.5e-4 per K, dark current by a factor of 2 in 3 K: build {name} from exposures of "
                f"that temperature"
            )
    return found


def _mixed(product: str, det: str, first: tuple[Readout, str], other: tuple[Readout, str]) -> str:
    (before, a), (one, b) = first, other
    if before.sequencer != one.sequencer and before.sequencer and one.sequencer:
        text = (
            f"was read by sequencer {before.sequencer}, but {b} by {one.sequencer}: build from those of one sequencer"
        )
    else:
        text = f"was taken at {before.voltage:g} V, but {b} at {one.voltage:g} V: build from those of one voltage"
    return f"{product}: {det}: exposure {a} {text} (--exposure)"


def noted(found: Mapping[str, Readout]) -> dict[str, Any]:
    """What a product records of it, by detector."""
    sequencers = {det: one.sequencer for det, one in found.items() if one.sequencer}
    voltages = {det: one.voltage for det, one in found.items() if one.voltage is not None}
    kelvins = {det: one.temperature for det, one in found.items() if one.temperature is not None}
    every = {"sequencers": sequencers, "voltages": voltages, "temperatures": kelvins}
    return {name: values for name, values in every.items() if values}


def warm_remarks(raw: xr.Dataset) -> list[str]:
    """Remark on every detector whose exposures were not taken at one temperature."""
    if "temperature" not in raw.coords:
        return []
    remarks = []
    for j, det in enumerate(str(name) for name in raw["detector"].values):
        known = raw["present"].values[:, j] & np.isfinite(raw["temperature"].values[:, j])
        warm = np.where(known, raw["temperature"].values[:, j], np.nan)
        if known.any() and np.nanmax(warm) - np.nanmin(warm) > _KELVIN:
            odd = int(np.nanargmax(np.abs(warm - np.nanmedian(warm))))
            remarks.append(
                f"{det}: taken at temperatures from {np.nanmin(warm):.1f} to {np.nanmax(warm):.1f} K, exposure "
                f"{raw['exposure'].values[odd]} farthest off: the gain changes by 6.5e-4 per K, dark current by a "
                f"factor of 2 in 3 K: build from those of one temperature (--exposure)"
            )
    return remarks
