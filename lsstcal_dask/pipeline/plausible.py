"""What of a delivery cannot be, and what is unlikely: the first is refused, the second remarked (¶2, ¶3, ¶5, ¶7)."""

from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Amplifier

__all__ = ["check_numbers", "doubts"]

_RATIO: Final = 1.42
"""Of a gain to that of the camera's description: 1.2 to 2.0 electron/adu about Rubin's 1.476 and 1.671 lie within."""

_BEND: Final = 0.1  # of the signal that a linearity curve may change: real ones change a few percent
_COUPLING: Final = 0.02  # of a source in a target: the strongest of 205 measured CCDs of LSST is below 0.01
_POSITIVE: Final = ("read_noise", "well_bloom", "well_serial", "well_adc", "linearity_turnoff", "ptc_turnoff")


def check_numbers(value: xr.Dataset, path: str, detector: str) -> None:
    """Refuse numbers that cannot be, naming file, CCD, amplifier and variable.

    Parameters
    ----------
    value : (amplifier, ...), as it was read.

    Raises
    ------
    CalibrationError
        A value is infinite, an error or a level below zero, a curve does not rise, or an amplifier sees as much of
        another as that holds.
    """
    for name, array in value.data_vars.items():
        for amplifier in map(str, value["amplifier"].values):
            own = array.sel(amplifier=amplifier).values.astype(np.float64)
            if problem := _problem(str(name), own):
                raise CalibrationError(f"{path}: {detector} {amplifier}: {problem}: write nan where nothing is known")
    if "linearity_level" in value:
        rise = np.diff(value["linearity_level"].values + value["linearity_correction"].values, axis=1)
        for amplifier, own in zip(map(str, value["amplifier"].values), rise, strict=True):
            if (own <= 0).any():
                raise CalibrationError(f"{path}: {detector} {amplifier}: its curve does not rise: correct COEFFS")


def _problem(name: str, values: np.ndarray) -> str:
    negative = name.endswith("_error") or name in _POSITIVE
    if negative and np.nanmin(values, initial=0.0) < 0:
        return f"{name} {np.nanmin(values):g} is below zero"
    if not name.endswith(("_error", "_ceiling")) and np.isinf(values).any():
        return f"{name} is infinite"
    if name == "crosstalk" and np.nanmax(np.abs(values), initial=0.0) >= 1:
        return f"{name} {np.nanmax(np.abs(values)):g} is no part of a source"
    return ""


def doubts(own: xr.Dataset, amplifier: Amplifier) -> list[str]:
    """Remarks on what an amplifier can hardly have."""
    found = []
    if "gain" in own:
        gain = float(own["gain"])
        if np.isnan(gain):
            found.append("it has no gain: it cannot be calibrated")
        elif not 1 / _RATIO <= gain / amplifier.gain <= _RATIO:
            found.append(
                f"its gain of {gain:.3g} electron/adu is far from {amplifier.gain:.3g}, that of the camera's "
                f"description: is it adu/electron?"
            )
    if "linearity_level" in own:
        level, change = own["linearity_level"].values[1:], np.abs(own["linearity_correction"].values[1:])
        if np.nanmax(change / level, initial=0.0) > _BEND:
            found.append(f"its curve changes a signal by {np.nanmax(change / level):.2g} of it: are COEFFS per adu?")
    if "crosstalk" in own:
        worst = np.nanmax(np.abs(own["crosstalk"].values), initial=0.0)
        found += [f"crosstalk of {worst:.2g} is more than any CCD was seen to have"] if worst > _COUPLING else []
    return found
