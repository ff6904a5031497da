"""Raw exposures of one CCD of the virtual observatory, as the pipeline reads them, and its true gains as a product."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate import Exposure, Observatory
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.truth import at

__all__ = ["START", "place", "plain_exposure", "raw_exposures", "raw_of", "true_gains"]

START = np.datetime64("2026-07-01T20:00:00", "ms")


def plain_exposure(number: int, kind: str, seconds: float = 0.0, source: Any = None) -> Exposure:
    """An exposure of the first night, six minutes after the one before."""
    time = START + np.timedelta64(6 * number, "m")
    dark_time = seconds + 0.5 if seconds else 0.0
    name = f"MC_S_20260701_{number:06d}"
    return Exposure(name, number, kind, time, seconds, dark_time, "r" if source else "none", source)


def raw_exposures(site: Observatory, taken: Sequence[Exposure], detector: Detector) -> xr.Dataset:
    """``counts`` (exposure, detector, amplifier, y, x), adu, of one CCD, and what its headers tell."""
    counts = np.stack([next(iter(frames(site, one, [detector]))).counts for one in taken])
    return raw_of(site, taken, detector, counts)


def raw_of(site: Observatory, taken: Sequence[Exposure], detector: Detector, counts: np.ndarray) -> xr.Dataset:
    """The same of counts (exposure, amplifier, y, x) that were made before."""
    rows = [header(site, one) for one in taken]
    told = [name for name in rows[0] if name != "time"]
    coords: dict[str, Any] = {name: ("exposure", np.array([row[name] for row in rows])) for name in told}
    coords |= {"exposure": [one.name for one in taken], "time": ("exposure", [one.time for one in taken])}
    names = {"detector": [detector.name], "amplifier": list(site.camera.amplifier_names)}
    dims = ("exposure", "detector", "amplifier", "y", "x")
    present = (("exposure", "detector"), np.ones((len(taken), 1), bool))
    return xr.Dataset({"counts": (dims, counts[:, None]), "present": present}, {**coords, **names})


def place(site: Observatory, amplifier: str) -> int:
    """Index of an amplifier in raw frames."""
    return site.camera.amplifier_names.index(amplifier)


def true_gains(site: Observatory, names: Sequence[str], error: float = 0.0) -> xr.Dataset:
    """True gains of some CCDs as the product ``gain`` (detector, amplifier), wrong by a relative error at random."""
    camera = site.camera
    values = np.full((len(names), len(camera.amplifier_names)), np.nan)
    for i, name in enumerate(names):
        for amplifier in camera.detector(name).amplifiers:
            values[i, place(site, amplifier.name)] = at(site, "gain", detector=name, amplifier=amplifier.name)
    if error:
        values = values * (1 + error * np.random.default_rng(site.seed).standard_normal(values.shape))
    dims, units = ("detector", "amplifier"), {"units": "electron/adu"}
    variables = {"gain": (dims, values, units), "gain_error": (dims, error * values, units)}
    return xr.Dataset(variables, {"detector": list(names), "amplifier": list(camera.amplifier_names)})
