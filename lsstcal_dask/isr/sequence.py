"""The order of the corrections, as data (Lupton 2016, Sec. 3).

The orders differ in where linearity, crosstalk, the flat and brighter-fatter
stand. Of the corrections that exist so far - overscan, bias, gain, dark - none of
them moves, so there is one order yet.
"""

from collections.abc import Mapping
from typing import Final

import xarray as xr

from lsstcal_dask.isr.bias import subtract_bias, subtract_overscan
from lsstcal_dask.isr.dark import subtract_dark
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.gain import apply_gain
from lsstcal_dask.isr.overscan import OverscanConfig

__all__ = ["NEEDED", "ORDERS", "correct"]

ORDERS: Final[dict[str, tuple[str, ...]]] = {"lupton2016": ("overscan", "bias", "gain", "dark")}
"""Corrections in the order in which they are applied."""

NEEDED: Final = {"bias": "bias", "gain": "gain", "dark": "dark"}
"""The product that a correction applies."""

_CORRECTIONS: Final = {"bias": subtract_bias, "gain": apply_gain, "dark": subtract_dark}


def correct(
    frame: Frame,
    products: Mapping[str, xr.Dataset],
    config: OverscanConfig = OverscanConfig(),
    order: str = "lupton2016",
) -> Frame:
    """Apply the corrections of an order whose products are given; overscan needs none.

    Parameters
    ----------
    frame : a new frame of one CCD.
    products : by name, of this detector; a correction without its product is left out,
        which is for the caller to allow.

    Returns
    -------
    Frame in electrons (adu where the gain was left out). Pixels with NO_DATA are NaN.
    """
    for step in ORDERS[order]:
        if step == "overscan":
            frame = subtract_overscan(frame, config)
        elif step in products:
            frame = _CORRECTIONS[step](frame, products[step])
    return frame
