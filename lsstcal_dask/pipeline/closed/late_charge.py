"""Flats whose charge is read late, made by the simulator's registers and channels from light made here."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.raw import place
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.deferred import Deferred, defer
from lsstcal_dask.simulate.electronics import read_out
from lsstcal_dask.simulate.truth import at

__all__ = ["EFFECTS", "LEVELS", "flat", "ladder", "late_site", "read_late", "true"]

EFFECTS = ("deferred", "gain", "read_noise", "digitisation", "overscan_drift")
LEVELS = np.geomspace(5e3, 8e4, 12)  # electron
_TRUTHS = {"serial_cti": "serial_cti", "parallel_cti": "parallel_cti", "offset_amplitude": "offset"}


def late_site(camera: str, seed: int, effects: Iterable[str] = EFFECTS, **numbers: float) -> Observatory:
    """An observatory of these effects alone, its late charge with these numbers of `Deferred`."""
    settings = Settings().only(tuple(effects))
    if "deferred" in effects:
        settings = settings.model_copy(update={"deferred": Deferred(**numbers)})
    return Observatory(seed, load_camera(camera), settings)


def flat(site: Observatory, detector: Detector, level: float, number: int) -> np.ndarray:
    """Counts (amplifier, y, x) of a flat of ``level`` electrons with photon noise."""
    camera = site.camera
    random = np.random.default_rng([site.seed, number])
    charge = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
    for amplifier in detector.amplifiers:
        where = (place(site, amplifier.name), *amplifier.data.slices)
        charge[where] = random.normal(level, np.sqrt(level), amplifier.data.shape)
    return read_late(site, detector, charge, number)


def read_late(site: Observatory, detector: Detector, charge: np.ndarray, number: int) -> np.ndarray:
    """Counts of charge (amplifier, y, x), electron, that goes through registers and output."""
    late, _ = defer(site.seed, site.settings.deferred, detector, charge, site.camera.amplifier_names)
    return read_out(site.seed, site.settings.electronics, site.camera, detector, number, late)


def ladder(site: Observatory, detector: Detector, levels: np.ndarray = LEVELS) -> xr.Dataset:
    """Flats of one CCD, as `deferred_amplifiers` wants them."""
    counts = np.stack([flat(site, detector, level, i + 1) for i, level in enumerate(levels)])
    return xr.Dataset(
        {"counts": (("exposure", "amplifier", "y", "x"), counts)},
        coords={
            "exposure": [f"e{i}" for i in range(len(counts))],
            "exposure_type": ("exposure", ["flat"] * len(counts)),
            "present": ("exposure", [True] * len(counts)),
            "amplifier": list(site.camera.amplifier_names),
        },
    )


def true(site: Observatory, detector: Detector, name: str, amplifier: str) -> float:
    """What an estimate is of: the offset is of the pixel with its own share, which is not the charge alone."""
    if name == "offset_decay":
        return float(site.settings.deferred.decay)
    value = float(at(site, _TRUTHS[name], detector=detector.name, amplifier=amplifier))
    return value / (1 + value) if name == "offset_amplitude" else value
