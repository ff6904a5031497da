"""How a CCD was run when frames were taken: what must be alike in a product and in what it is applied to (Sec. 2).

Another sequencer or another substrate voltage makes other levels, noise, wells and gains: frames are then not mixed,
and no product of one is applied to the other. A CCD of another temperature has another gain (6.5e-4 per kelvin) and
another dark current (twice as much after 3 K): that is told, for a product may be meant for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError

__all__ = ["Readout", "noted", "readout", "readouts", "warm_remarks"]

_VOLTS: Final = 1.0
"""By which readings of the same voltage may differ: a tenth of what changes anything."""
_KELVIN: Final = 1.0
"""Within which a product holds: the gain changes by 6.5e-4."""


@dataclass(frozen=True)
class Readout:
    """What is known of it."""

    sequencer: str = ""  # program; empty where it is not known
    voltage: float | None = None  # V, to a tenth

    def differs(self, other: "Readout") -> str:
        """How another one is not the same, in words, where both are known; empty if it is."""
        if self.sequencer and other.sequencer and self.sequencer != other.sequencer:
            return f"sequencer {self.sequencer} and sequencer {other.sequencer}"
        if self.voltage is not None and other.voltage is not None and abs(self.voltage - other.voltage) > _VOLTS:
            return f"a voltage of {self.voltage:g} V and a voltage of {other.voltage:g} V"
        return ""

    def filled(self, other: "Readout") -> "Readout":
        """With what is not known taken from another."""
        return Readout(self.sequencer or other.sequencer, other.voltage if self.voltage is None else self.voltage)


def readout(raw: xr.Dataset, detector: str) -> Readout:
    """That of a detector in one exposure."""
    own = {key: raw[key].sel(detector=detector).values for key in ("sequencer", "voltage") if key in raw.coords}
    voltage = float(own.get("voltage", np.nan))
    return Readout(str(own.get("sequencer", "")), round(voltage, 1) if np.isfinite(voltage) else None)


def readouts(product: str, raw: xr.Dataset) -> dict[str, Readout]:
    """That of each detector in the exposures of a product.

    Raises
    ------
    CalibrationError
        Exposures of a detector were read in different ways: levels, noise, and overscan are not the same.
    """
    if not {"sequencer", "voltage"} & set(raw.coords):
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
            found[det] = found.get(det, Readout()).filled(one)
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
    return {**({"sequencers": sequencers} if sequencers else {}), **({"voltages": voltages} if voltages else {})}


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
