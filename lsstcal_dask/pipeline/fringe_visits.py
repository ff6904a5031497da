"""Visits of a store that tell the fringes of its sky: dark, empty, and divided by a flat (§13; Lupton 2016, 2.9)."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.physics.ephemeris import altitudes
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream, usable
from lsstcal_dask.products.fringe_frames import FringeFrameConfig
from lsstcal_dask.products.fringes import FEWEST, Sky
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import NOTE

__all__ = ["calibrated", "sky_above", "spread", "visits"]


def visits(store: Store, band: str, exposures: Sequence[str] | None) -> xr.Dataset:
    """Science exposures through a filter, by time; raises InsufficientInputs where there are none."""
    raw = open_raw(store.url, store.camera, exposures=exposures, chunked=False)
    kinds, filters = raw["exposure_type"].values.astype(str), raw["filter"].values.astype(str)
    found = np.flatnonzero((kinds == "science") & (filters == band))
    if not found.size:
        raise InsufficientInputs(f"fringes: there are no science exposures through filter {band}: ingest some")
    return raw.isel(exposure=found)


def sky_above(raw: xr.Dataset, crowded: np.ndarray, config: FringeFrameConfig) -> Sky:
    """What is known of the sky of visits, of which a part (exposure,) is under objects."""
    middle = raw["time"].values + (5e8 * raw["exposure_time"].values).astype("timedelta64[ns]")
    sun, moon = altitudes(middle, config.site)
    return Sky([str(name) for name in raw["exposure"].values], moon, sun, crowded)


def calibrated(store: Store, raw: xr.Dataset, band: str) -> tuple[dict[str, Pointer], list[str]]:
    """Frames of visits that are divided by a flat of the sky and by nothing else, the last made of each.

    Raises
    ------
    InsufficientInputs
        Fewer than ten.
    """
    wanted = [str(name) for name in raw["exposure"].values]
    last: dict[str, Pointer] = {}
    for pointer in sorted(usable(read_upstream(store.url), "calibrated"), key=lambda p: p.created):
        if pointer.inputs["exposure"] in wanted and _flat_only(pointer):
            last[pointer.inputs["exposure"]] = pointer
    missing = [name for name in wanted if name not in last]
    remedy = (
        f"make a flat with 'lsstcal synthesize {store.url} sky_flat --filter {band}', then run 'lsstcal calibrate "
        f"{store.url} --skip photometric_flat --skip fringes'"
    )
    why = f"exposure {missing[0]} is not calibrated with a sky_flat-{band} and nothing after it" if missing else ""
    if len(last) < FEWEST:
        raise InsufficientInputs(f"fringes: {len(last)} frames that can be used; {why}: {remedy}")
    more = f", and so are {len(missing) - 1} others" if len(missing) > 1 else ""
    flats = {text.partition("/")[0] for p in last.values() for use in _upstream(p) if (text := use.get("sky_flat", ""))}
    remarks = [f"{NOTE}{why}{more}: left out"] if missing else []
    if len(flats) > 1:
        remarks.append(
            f"frames were divided by {len(flats)} flats of the sky: what fringes these had is mixed: use one flat, by "
            "'lsstcal synthesize' without --visit"
        )
    return {name: last[name] for name in wanted if name in last}, remarks


def _upstream(pointer: Pointer) -> list[dict[str, str]]:
    return list(pointer.inputs.get("upstream", {}).values())


def _flat_only(pointer: Pointer) -> bool:
    uses = _upstream(pointer)
    return bool(uses) and all("sky_flat" in use and not {"photometric_flat", "fringes"} & set(use) for use in uses)


def spread(raw: xr.Dataset, frames: dict[str, Pointer], most: int) -> tuple[xr.Dataset, dict[str, Pointer], list[str]]:
    """At most so many of the visits, spread over them."""
    names = list(frames)
    chosen = names
    if len(names) > most:
        chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]
    remarks = [f"{NOTE}{len(chosen)} of {len(names)} frames are used, spread over them"] if len(names) > most else []
    return raw.sel(exposure=chosen), {name: frames[name] for name in chosen}, remarks
