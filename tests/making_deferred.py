"""Flats whose charge is read late, made by the simulator's registers and channels from light made here."""

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.deferred import Deferred, defer
from lsstcal_dask.simulate.electronics import channel, read_out
from lsstcal_dask.simulate.truth import at

EFFECTS = ("deferred", "gain", "read_noise", "digitisation", "overscan_drift")
LEVELS = np.geomspace(5e3, 8e4, 12)  # electron
TRUTHS = {"serial_cti": "serial_cti", "parallel_cti": "parallel_cti", "offset_amplitude": "offset"}


def site(camera, seed, effects=EFFECTS, **numbers):
    settings = Settings().only(effects)
    if "deferred" in effects:
        settings = settings.model_copy(update={"deferred": Deferred(**numbers)})
    return Observatory(seed, load_camera(camera), settings)


def flat(site, detector, level, number):
    """Counts (amplifier, y, x) of a flat with photon noise."""
    camera = site.camera
    random = np.random.default_rng([site.seed, number])
    charge = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
    for amplifier in detector.amplifiers:
        place = (camera.amplifier_names.index(amplifier.name), *amplifier.data.slices)
        charge[place] = random.normal(level, np.sqrt(level), amplifier.data.shape)
    return read(site, detector, charge, number)


def read(site, detector, charge, number):
    late, _ = defer(site.seed, site.settings.deferred, detector, charge, site.camera.amplifier_names)
    return read_out(site.seed, site.settings.electronics, site.camera, detector, number, late)


def gains(site, detector):
    names = site.camera.amplifier_names
    own = [a.name for a in detector.amplifiers]
    values = [channel(site.seed, site.settings.electronics, site.camera, detector, own.index(n)).gain for n in names]
    return xr.Dataset({"gain": ("amplifier", values)}, coords={"amplifier": list(names)})


def ladder(site, detector, levels=LEVELS):
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


def true(site, detector, name, amplifier):
    """What an estimate is of: the offset is of the pixel with its own share, which is not the charge alone."""
    if name == "offset_decay":
        return site.settings.deferred.decay
    value = float(at(site, TRUTHS[name], detector=detector.name, amplifier=amplifier))
    return value / (1 + value) if name == "offset_amplitude" else value
