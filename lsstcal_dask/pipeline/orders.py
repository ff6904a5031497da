"""What a frame that was calibrated says of its corrections: of their order, and of the crosstalk (Secs. 2.6, 3)."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.bleed import full_wells
from lsstcal_dask.isr.crosstalk import Entries, own_entries
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.sequence import ORDERS, IsrConfig, Site, correct
from lsstcal_dask.pipeline.calibrate import product_names, read_frame
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.products.crosstalk_check import crosstalk_slope
from lsstcal_dask.statistics import robust_sigma
from lsstcal_dask.storage.products import Pointer, open_product
from lsstcal_dask.storage.raw import open_raw

__all__ = ["compare_orders", "crosstalk_of_bright", "order_differences"]

_FIRST: Final = "lupton2016"
_BEFORE: Final = ("bias", "linearity", "gain")  # what makes electrons in which crosstalk is still to be seen
_SATURATED: Final = 1e5  # electron, where no full well is known


def order_differences(url: str, pointer: Pointer, detector: Detector) -> dict[str, dict[str, float]]:
    """Numbers of each amplifier, by name, as `compare_orders` gives them for a calibrated frame of a store.

    The frame is corrected again in every order, with the products that it was corrected with; what other CCDs leave in
    it is left in, which is the same in all. Before its crosstalk is removed, `crosstalk_of_bright` looks at it.
    """
    camera = open_store(url).camera
    raw = open_raw(url, camera, exposures=[pointer.inputs["exposure"]], chunked=False).isel(exposure=0)
    config = IsrConfig.model_validate(pointer.configuration)
    names = product_names(str(raw["filter"].values), config.fringes)
    versions = {step: text.partition("/")[0] for step, text in pointer.inputs["upstream"][detector.name].items()}
    products = {
        step: open_product(url, names[step], version, chunked=False).sel(detector=detector.name)
        for step, version in versions.items()
    }
    counts = read_frame(raw.sel(detector=detector.name), detector)
    site = Site(camera.image_shape, camera.vignetting_mm)
    frames = {o: correct(counts, site, products, config.model_copy(update={"order": o})) for o in ORDERS}
    found = compare_orders(frames)
    if {"crosstalk", "gain"} <= set(products):
        before = {step: product for step, product in products.items() if step in _BEFORE}
        seen = correct(counts, site, before, config.model_copy(update={"order": _FIRST, "find_cosmics": False}))
        pull = crosstalk_of_bright(seen.image, own_entries(products["crosstalk"], detector), _wells(products, detector))
        found = {name: values | {"crosstalk_of_bright": pull} for name, values in found.items()}
    return found


def _wells(products: Mapping[str, xr.Dataset], detector: Detector) -> float:
    """Lowest full well of a CCD, electron; what is above it is saturated."""
    wells = full_wells(products["saturation"], detector) if "saturation" in products else np.full(1, np.nan)
    return float(np.nanmin(wells)) if np.isfinite(wells).any() else _SATURATED


def crosstalk_of_bright(image: np.ndarray, entries: Entries, brightest: float) -> float:
    """How far what trails and cosmic rays leave in other amplifiers is from what the coefficients say, in errors.

    Parameters
    ----------
    image : (amplifier, y, x) electron, crosstalk not removed. What is above the median of an amplifier is looked at.
    brightest : electron, from which a source is saturated.

    Returns
    -------
    One number for a CCD: 0 of right coefficients; NaN where nothing is bright while others are dark.
    """
    alive = np.isfinite(image).any(axis=(1, 2))
    sky = np.array([np.nanmedian(part) if lit else 0.0 for part, lit in zip(image, alive, strict=True)])
    above = image - sky[:, None, None]
    noise = np.array(
        [float(robust_sigma(part[np.isfinite(part)])) if lit else 1.0 for part, lit in zip(above, alive, strict=True)]
    )
    try:
        return float(crosstalk_slope(above, np.maximum(noise, 1e-3), entries, brightest).pull)
    except InsufficientInputs:
        return float("nan")


def compare_orders(frames: Mapping[str, Frame]) -> dict[str, dict[str, float]]:
    """How far images and variances are from those of `lupton2016`, relative.

    Parameters
    ----------
    frames : by order; the same counts.

    Returns
    -------
    By amplifier ``order_NAME`` and ``order_NAME_variance``: the mean of the differences over that of the values, both
    without sign, of pixels without a mask; NaN where there is none.
    """
    first, found = frames[_FIRST], {}
    for i, amplifier in enumerate(first.detector.amplifiers):
        found[amplifier.name] = {
            f"order_{order}{ending}": _relative(first, other, i, plane)
            for order, other in frames.items()
            if order != _FIRST
            for ending, plane in (("", "image"), ("_variance", "variance"))
        }
    return found


def _relative(first: Frame, other: Frame, i: int, plane: str) -> float:
    use = (first.mask[i] == 0) & (other.mask[i] == 0)
    if not use.any():
        return float("nan")
    a, b = (np.asarray(getattr(one, plane)[i][use], np.float64) for one in (first, other))
    return float(np.abs(b - a).mean() / np.abs(a).mean())
