"""Charge that gathered without light: the dark is scaled to the time it had (Lupton 2016, Sec. 3.4)."""

import numpy as np

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.isr.frame import RawFrame

__all__ = ["dark_seconds"]


def dark_seconds(raw: RawFrame, rows: int) -> np.ndarray:
    """Time (rows,) float32, s, in which each row gathered dark charge: that before the readout, and until its turn.

    Raises
    ------
    UnitsError
        It is missing or negative.
    """
    if not raw.dark_time >= 0:
        raise UnitsError(
            f"exposure {raw.exposure} {raw.detector.name}: dark time is {raw.dark_time:g} s: "
            f"correct its header and ingest it again, or leave the dark out with --skip dark"
        )
    return np.float32(raw.dark_time) + np.float32(raw.detector.row_time) * np.arange(rows, dtype=np.float32)
