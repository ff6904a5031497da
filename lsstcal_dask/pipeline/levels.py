"""Levels of saturation from several deliveries: each stays until it is delivered again (¶7, §4).

A table of full wells knows nothing of the turnoff of the photon transfer curves, and the other way round. A version
of the product has for each level of a CCD what was delivered last of it and is valid at its start.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.storage.products import CAMERA_TEAM, Pointer, open_product

__all__ = ["LEVELS", "complete_levels"]

LEVELS: Final = ("well_bloom", "well_serial", "well_adc", "linearity_turnoff", "ptc_turnoff")
"""What the product `saturation` holds in any case, each with an error."""

Delivered = dict[str, list[str]]
"""CCDs of which a delivery itself knows a level, by level."""


def complete_levels(
    url: str, pointers: Sequence[Pointer], values: Mapping[str, xr.Dataset], start: str
) -> tuple[dict[str, xr.Dataset], Delivered, dict[str, dict[str, str]]]:
    """Add the levels that a delivery does not speak of, from those before.

    Parameters
    ----------
    pointers : what is published in the store.
    values : (amplifier,) by CCD, electron, as they were delivered.
    start : ISO, UTC, from which on the new version is valid.

    Returns
    -------
    The same with all that is known; what the delivery itself says; and where the rest is from, by CCD and level.
    """
    delivered = {
        level: found for level in LEVELS if (found := [name for name, own in values.items() if _speaks(own, level)])
    }
    team = [p for p in pointers if p.name == "saturation" and p.origin == CAMERA_TEAM and p.verdict != "FAIL"]
    valid = [p for p in team if p.valid_from <= start and (not p.valid_until or start < p.valid_until)]
    complete: dict[str, xr.Dataset] = {}
    sources: dict[str, dict[str, str]] = {}
    for name, own in values.items():
        complete[name] = own.copy()
        for level in LEVELS:
            before = [p for p in valid if name in p.detectors and name in p.inputs.get("delivers", {}).get(level, ())]
            if name in delivered.get(level, ()) or not before:
                continue
            last = max(before, key=lambda p: p.created)
            product = open_product(url, "saturation", last.version, chunked=False).sel(detector=name)
            sources.setdefault(name, {})[level] = f"{last.version}/{last.hash}"
            for key in (level, f"{level}_error"):
                complete[name][key] = product[key].sel(amplifier=own["amplifier"].values).drop_vars("detector")
    return complete, delivered, sources


def _speaks(own: xr.Dataset, level: str) -> bool:
    return level in own and bool(np.isfinite(own[level].values).any())
