"""What a worker does for a flat: a CCD synthesised, with the dust of now and the fringes of its source (3.6, 3.10)."""

import numpy as np
import xarray as xr

from lsstcal_dask.mapping import AmplifierResults
from lsstcal_dask.pipeline.fringes import Fringed
from lsstcal_dask.products.synthesis import COMPRESSION, Task, synthesis_amplifiers
from lsstcal_dask.storage.products import open_product
from lsstcal_dask.variables import NOTE

__all__ = ["flat_of"]


def flat_of(
    source: xr.Dataset, task: Task, dust: tuple[str, str, str] | None, fringed: Fringed | None
) -> AmplifierResults:
    """What a worker does for one CCD."""
    detector = task.camera.detector(str(source["detector"].values))
    factor = None
    if dust is not None:
        product = open_product(*dust, chunked=False)
        known = detector.name in product["detector"].values
        factor = product["image"].sel(detector=detector.name) if known else None
    slices = task.open_slices(detector.name)
    fringes = fringed.open(detector, np.isfinite(slices.scale)) if fringed else None
    remarks = [f"{NOTE}fringes are those of the slices: its layers are not known"] if fringed and not fringes else []
    for amplifier, flat in synthesis_amplifiers(slices, detector, task):
        one = flat.isel(spectrum=0, drop=True)
        if factor is not None:
            one = _times(one, factor.sel(amplifier=amplifier).values)
        if fringes is not None:
            one = _times(one, fringes.factor(amplifier))
        yield amplifier, one.assign_attrs(remarks=remarks + flat.attrs.get("remarks", []), summary=_summary(one))
        remarks = []


def _summary(flat: xr.Dataset) -> dict[str, float]:
    """Numbers of an amplifier: mean of its good pixels, how many there are, and what maps in place of slices change."""
    image = flat["image"].values[flat["mask"].values == 0]
    good = image[np.isfinite(image)]
    found = {"pixels": float(good.size), "mean": float(good.mean(dtype=float)) if good.size else float("nan")}
    more = {key: float(values[0]) for key, values in flat.attrs.items() if key in COMPRESSION}
    return {key: value for key, value in (found | more).items() if np.isfinite(value)}


def _times(flat: xr.Dataset, factor: np.ndarray) -> xr.Dataset:
    """A flat with the dust of now, one factor for all wavelengths, for it is gray (2.8.2), or with other fringes."""
    share = np.where(np.isfinite(factor), factor, 1).astype(np.float32)
    more = {"image": flat["image"] * share}
    if "variance" in flat:
        more["variance"] = flat["variance"] * share**2
    if "common_mode" in flat:
        more["common_mode"] = flat["common_mode"] * share
    most = float(share.max())
    grown = {key: [most * value for value in values] for key, values in flat.attrs.items() if key in COMPRESSION}
    return flat.assign(more).assign_attrs(grown)
