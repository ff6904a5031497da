"""A calibration day of one CCD of the virtual observatory: what is asked for of it, its bias, its true gains."""

from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import Camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.raw import raw_exposures
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.simulate import Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.recipes import CalibrationDay
from lsstcal_dask.simulate.truth import at

__all__ = ["bias_product", "gains_of", "of_type", "one_day", "site_of"]

WITHOUT = ("nonlinearity", "crosstalk")  # their own products correct them


def site_of(seed: int, camera: Camera, *without: str, **effects: Any) -> Observatory:
    """An observatory without non-linearity and crosstalk, and what else is named; with these effects instead of its."""
    settings = Settings().without([*WITHOUT, *without])
    return Observatory(seed, camera, settings.model_copy(update=effects))


def one_day(site: Observatory, detector: Detector, **numbers: Any) -> xr.Dataset:
    """Raw exposures (exposure, amplifier, y, x) of as many as the settings of `CalibrationDay` say; none by default."""
    plan = dict.fromkeys(("biases", "darks", "xrays", "pairs", "flats"), 0) | numbers
    taken = exposures("calibration-day", Plan(calibration_day=CalibrationDay(**plan)), site.settings, site.camera)
    return raw_exposures(site, taken, detector).isel(detector=0)


def of_type(raw: xr.Dataset, *kinds: str) -> xr.Dataset:
    """Those of some types."""
    return raw.isel(exposure=np.flatnonzero(np.isin(raw["exposure_type"].values.astype(str), kinds)))


def bias_product(site: Observatory, raw: xr.Dataset, detector: Detector) -> xr.Dataset:
    """Bias of the biases among the exposures of a CCD."""
    made = dict(bias_amplifiers(of_type(raw, "bias"), detector, site.camera.image_shape, StackConfig()))
    parts = [made[name][["image", "read_noise", "read_noise_error"]] for name in raw["amplifier"].values]
    return xr.concat(parts, raw["amplifier"], combine_attrs="drop")


def gains_of(site: Observatory, detector: Detector) -> np.ndarray:
    """True gains (amplifier,), electron/adu, in the order of the detector's amplifiers."""
    return np.array([at(site, "gain", detector=detector.name, amplifier=a.name) for a in detector.amplifiers])
