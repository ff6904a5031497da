"""Which CCDs one readout board reads: they are clocked together and may couple (Lupton 2016, Sec. 2.6)."""

import re
from typing import Final

from lsstcal_dask.instrument.camera import Camera, Detector

__all__ = ["board", "boards"]

_RAFT: Final = re.compile(r".+_S\d\d")


def board(detector: Detector) -> str:
    """Name of the board of a CCD: a row of three CCDs of a raft, ``R22_S1`` for ``R22_S12``; else the CCD's own."""
    return detector.name[:-1] if _RAFT.fullmatch(detector.name) else detector.name


def boards(camera: Camera) -> dict[str, tuple[Detector, ...]]:
    """CCDs by board: between boards nothing couples, so each is simulated by itself."""
    found: dict[str, tuple[Detector, ...]] = {}
    for detector in camera.detectors:
        found[board(detector)] = (*found.get(board(detector), ()), detector)
    return found
