"""Known bad and suspect pixels say so (Lupton 2016, Sec. 3.5)."""

import xarray as xr

from lsstcal_dask.isr.frame import Frame

__all__ = ["flag_defects"]


def flag_defects(frame: Frame, defects: xr.Dataset) -> Frame:
    """Add the mask bits of the defects (§3): ``mask`` (amplifier, y, x) of this detector; values stay."""
    own = defects["mask"].sel(amplifier=[a.name for a in frame.detector.amplifiers]).values
    return frame.with_(mask=frame.mask | own)
