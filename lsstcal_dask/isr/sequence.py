"""The corrections in their order, which is data (Lupton 2016, Sec. 3).

Three orders: that of the source document, `lupton2016`; `physical`, which undoes what happened to the charge in
the reverse of the order in which it happened; and `rubin`, that of Rubin's own pipeline, which multiplies by the
gain first, takes crosstalk from signals that are not linear yet, and the bias off at the end.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.isr import rows
from lsstcal_dask.isr.bias import bias_jitter, overscan_levels
from lsstcal_dask.isr.dark import dark_seconds
from lsstcal_dask.isr.frame import Frame, RawFrame
from lsstcal_dask.isr.gain import gains_of
from lsstcal_dask.isr.overscan import OverscanConfig

__all__ = ["NEEDED", "ORDERS", "correct"]

ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "lupton2016": ("overscan", "bias", "gain", "dark"),
    "physical": ("overscan", "bias", "gain", "dark"),
    "rubin": ("overscan", "gain", "bias", "dark"),
}
"""Corrections in the order in which they are applied."""

NEEDED: Final = {"bias": "bias", "gain": "gain", "dark": "dark"}
"""The product that a correction applies."""


def correct(
    raw: RawFrame,
    shape: tuple[int, int],
    products: Mapping[str, xr.Dataset],
    config: OverscanConfig = OverscanConfig(),
    order: str = "lupton2016",
) -> Frame:
    """Apply the corrections of an order whose products are given; overscan needs none.

    Parameters
    ----------
    raw : counts of one CCD.
    shape : (ny, nx) of the padded image.
    products : by name, of this detector; a correction without its product is left out,
        which is for the caller to allow.

    Returns
    -------
    Frame in electrons (adu where the gain was left out). Pixels with NO_DATA are NaN.
    Holds the counts, the frame and the images of bias and dark: 0.6 GB of a CCD of LSST.

    Raises
    ------
    UnitsError
        The dark time is missing or negative, and there is a dark.
    """
    steps = [step for step in ORDERS[order] if step in products]
    level, row_variance, noise = overscan_levels(raw, shape, config)
    terms = rows.Terms(
        level=level,
        noise=noise,
        bias=_plane(raw, products.get("bias")),
        gain=_gain(raw, products.get("gain")),
        dark=_plane(raw, products.get("dark")),
        seconds=dark_seconds(raw, shape[0]) if "dark" in steps else np.zeros(shape[0], np.float32),
    )
    image, variance, mask = rows.correct_rows(raw, shape, steps, terms)
    row_variance = _row_variance(raw, row_variance, steps, products, terms)
    units = "electron" if "gain" in steps else "adu"
    return Frame(raw.exposure, raw.detector, image, variance, row_variance, mask, units)


def _plane(raw: RawFrame, product: xr.Dataset | None) -> rows.Plane:
    """Image, variance and mask of a product, in the order of the amplifiers."""
    if product is None:
        return rows.no_plane()
    part = product.sel(amplifier=[a.name for a in raw.detector.amplifiers])
    return rows.Plane(*(part[name].values for name in rows.Plane._fields))


def _gain(raw: RawFrame, product: xr.Dataset | None) -> np.ndarray:
    if product is None:
        return np.ones(len(raw.detector.amplifiers), np.float32)
    return gains_of(product, raw.detector)


def _row_variance(
    raw: RawFrame,
    variance: np.ndarray,
    steps: list[str],
    products: Mapping[str, xr.Dataset],
    terms: rows.Terms,
) -> np.ndarray:
    """Variance (amplifier, y) float32 common to a row: of its overscan level and of the rows of bias and dark.

    The slope of the linearity, within a few percent of one and different for each pixel, is left out.
    """
    names, scale = [a.name for a in raw.detector.amplifiers], np.ones((len(terms.gain), 1), np.float32)
    for step in steps:
        if step == "gain":
            scale = terms.gain[:, None]
            variance = variance * scale**2
        elif step == "bias":
            own = products[step]["row_variance"].sel(amplifier=names).values + bias_jitter(products[step], raw.detector)
            variance = variance + own * scale**2
        elif step == "dark":
            own = products[step]["row_variance"].sel(amplifier=names).values
            variance = variance + own * terms.seconds**2
    return np.asarray(variance, np.float32)
