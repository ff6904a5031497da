"""What the order of corrections makes of a frame, measured on one that was calibrated (Sec. 3)."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.sequence import ORDERS, IsrConfig, Site, correct
from lsstcal_dask.pipeline.calibrate import product_names, read_frame
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.storage.products import Pointer, open_product
from lsstcal_dask.storage.raw import open_raw

__all__ = ["compare_orders", "order_differences"]

_FIRST: Final = "lupton2016"


def order_differences(url: str, pointer: Pointer, detector: Detector) -> dict[str, dict[str, float]]:
    """Numbers of each amplifier, by name, as `compare_orders` gives them for a calibrated frame of a store.

    The frame is corrected again in every order, with the products that it was corrected with; what other CCDs leave in
    it is left in, which is the same in all.
    """
    camera = open_store(url).camera
    raw = open_raw(url, camera, exposures=[pointer.inputs["exposure"]], chunked=False).isel(exposure=0)
    names = product_names(str(raw["filter"].values))
    versions = {step: text.partition("/")[0] for step, text in pointer.inputs["upstream"][detector.name].items()}
    products = {
        step: open_product(url, names[step], version, chunked=False).sel(detector=detector.name)
        for step, version in versions.items()
    }
    counts = read_frame(raw.sel(detector=detector.name), detector)
    config, site = IsrConfig.model_validate(pointer.configuration), Site(camera.image_shape, camera.vignetting_mm)
    frames = {o: correct(counts, site, products, config.model_copy(update={"order": o})) for o in ORDERS}
    return compare_orders(frames)


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
