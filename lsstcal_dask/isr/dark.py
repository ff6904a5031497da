"""Charge that gathered without light: the dark is scaled to the time it had (Lupton 2016, Sec. 3.4)."""

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.isr.frame import RawFrame

__all__ = ["dark_seconds"]


def dark_seconds(raw: RawFrame) -> float:
    """Dark time of a frame, s, by which the master dark is multiplied.

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
    return float(raw.dark_time)
