"""Subtraction of the scaled master dark (Lupton 2016, Sec. 3.4)."""

import numpy as np
import xarray as xr

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.isr.frame import Frame

__all__ = ["subtract_dark"]


def subtract_dark(frame: Frame, dark: xr.Dataset) -> Frame:
    """Subtract the dark (§6, electron/s) times the dark time; its variance times the square is added.

    Parameters
    ----------
    dark : ``image``, ``variance``, ``mask`` (amplifier, y, x), ``row_variance`` (amplifier, y).

    Raises
    ------
    UnitsError
        The dark time is missing or negative.
    """
    time = np.float32(frame.dark_time)
    if not time >= 0:
        raise UnitsError(
            f"exposure {frame.exposure} {frame.detector.name}: dark time is {time:g} s: "
            f"correct its header and ingest it again, or leave the dark out with --skip dark"
        )
    dark = dark.sel(amplifier=[a.name for a in frame.detector.amplifiers])
    return frame.with_(
        image=frame.image - dark["image"].values * time,
        variance=frame.variance + dark["variance"].values * time**2,
        row_variance=frame.row_variance + dark["row_variance"].values * time**2,
        mask=frame.mask | dark["mask"].values,
    )
