"""Maps of fringes of a store's sky frames (§13, backup; Lupton 2016, Sec. 2.9): adapters to `fringes`, `fringe_modes`.

Two products. The sky of blocks of pixels of every frame, a CCD at a time: 2 MB for each frame of a CCD of LSST, so that
40 of them and what is made of them take 0.4 GB. And the maps: one, the median (classical), or several whose
coefficients are common to the focal plane (principal components). What is common is found on a sample of the blocks of
all CCDs, which tells it as well as all of them do: the maps of a CCD are then a problem of its own.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.fringes import amplitudes, sky_blocks, sky_terms
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.physics.ephemeris import RUBIN
from lsstcal_dask.products.fringe_common import Relative, relative_sky
from lsstcal_dask.products.fringe_modes import maps_of
from lsstcal_dask.products.fringes import FEWEST
from lsstcal_dask.statistics import median

__all__ = [
    "FRAME_OUTPUTS",
    "SKY_OUTPUTS",
    "FringeFrameConfig",
    "frame_amplifiers",
    "sky_amplifiers",
]

Floats = NDArray[np.float64]

SKY_OUTPUTS: Final = {
    "sky_level": Output("float32", "electron", per_exposure=True),
    "sky_level_variance": Output("float32", "electron**2", per_exposure=True),
    "crowded": Output("float32", per_exposure=True),
}
FRAME_OUTPUTS: Final = {
    "fringe_map": Output("float32"),
    "fringe_map_variance": Output("float32"),
    "fringe_frames": Output("uint16"),
    "fringe_amplitude": Output("float64", per_exposure=True),
    "fringe_amplitude_error": Output("float64", per_exposure=True),
    "fringe_zone": Output("float64"),
}

_SEEN: Final = 5.0  # sigma by which the chi2 of a map exceeds that of noise, where fringes are seen


class FringeFrameConfig(BaseModel):
    """How maps of fringes are made of frames of the sky."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: int = Field(8, ge=1, description="px of the blocks whose means are used: a small part of a fringe")
    most: int = Field(60, ge=FEWEST, description="frames that are used; of more, some that are spread over them")
    modes: int = Field(0, ge=0, le=12, description="maps of method pca; 0: as many as predict left-out blocks best")
    site: tuple[float, float] = Field(RUBIN, description="latitude and longitude (deg) from which the moon is seen")


def sky_amplifiers(
    frames: Iterable[Frame | None], detector: Detector, counts: tuple[int, int], step: int
) -> AmplifierResults:
    """The sky of blocks in every frame, one frame at a time; None where the CCD lacks.

    Yields
    ------
    Name and Dataset of `SKY_OUTPUTS`, (exposure, block_y, block_x).
    """
    empty = np.full((len(detector.amplifiers), *counts), np.nan, np.float32)
    found = []
    for frame in frames:
        sky = None if frame is None else sky_blocks(frame, step)
        found.append(
            (empty, empty, empty[:, 0, 0])
            if sky is None
            else tuple(a.astype(np.float32) for a in (sky.value, sky.variance, sky.crowded))
        )
    value, variance, crowded = (np.stack(parts) for parts in zip(*found, strict=True))
    dims = ("exposure", "block_y", "block_x")
    for i, amplifier in enumerate(detector.amplifiers):
        data = {
            "sky_level": (dims, value[:, i]),
            "sky_level_variance": (dims, variance[:, i]),
            "crowded": (("exposure",), crowded[:, i]),
        }
        yield amplifier.name, xr.Dataset(data, attrs={"remarks": [], "summary": {}})


def frame_amplifiers(
    product: xr.Dataset, detector: Detector, step: int, common: tuple[Floats, int], method: str
) -> AmplifierResults:
    """Maps of fringes of a CCD and how much of them each of its frames has.

    Parameters
    ----------
    product : `SKY_OUTPUTS` of the CCD.
    common : coefficients (frame, mode) that hold for the focal plane, and the zone of the CCD.

    Yields
    ------
    Name and Dataset of `FRAME_OUTPUTS`.

    Raises
    ------
    InsufficientInputs
        Frames have too little sky in this CCD.
    """
    sky = relative_sky(product, detector, step)
    if (seen := int((sky.weight > 0).any(axis=(1, 2, 3)).sum())) < FEWEST:
        raise InsufficientInputs(f"{detector.name}: {seen} of its frames show enough sky: give at least {FEWEST}")
    shape = sky.value.shape[1:]
    value, weight = (a.reshape(len(a), -1) for a in (sky.value, sky.weight))
    maps, variance = _median_map(value, weight) if method == "classical" else maps_of(common[0], value, weight)
    size, error = _robust(sky, maps)
    used = (weight > 0).sum(axis=0).reshape(shape).astype(np.uint16)
    remarks = _remarks(maps, variance)
    for i, amplifier in enumerate(detector.amplifiers):
        blocks = ("mode", "block_y", "block_x")
        data = {
            "fringe_map": (blocks, maps.reshape(-1, *shape)[:, i].astype(np.float32)),
            "fringe_map_variance": (blocks, variance.reshape(-1, *shape)[:, i].astype(np.float32)),
            "fringe_frames": (blocks[1:], used[i]),
            "fringe_amplitude": (("exposure", "mode"), size),
            "fringe_amplitude_error": (("exposure", "mode"), error),
            "fringe_zone": float(common[1]),
        }
        yield amplifier.name, xr.Dataset(data, attrs={"remarks": remarks, "summary": {}})
        remarks = []


def _median_map(value: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Median over frames (1, block) and its variance, that of a median of values of different noise."""
    found = median(value.astype(np.float32)[:, None])[0][0].astype(float)
    known = weight > 0
    root, number = np.where(known, np.sqrt(weight), 0).sum(axis=0), known.sum(axis=0)
    variance = np.full(number.shape, np.nan)
    np.divide(np.pi / 2 * number, root**2, out=variance, where=number > 0)
    return np.where(number > 0, found, np.nan)[None], variance[None]


def _robust(sky: Relative, maps: Floats) -> tuple[Floats, Floats]:
    """How much of each map (frame, mode) every frame has, by robust regression in this CCD alone, and the errors."""
    found, error = np.full((2, len(sky.value), len(maps)), np.nan)
    flat = [a.ravel() for a in (sky.y, sky.x)]
    for f in range(len(sky.value)):
        good = (sky.weight[f].ravel() > 0) & np.isfinite(maps).all(axis=0)
        if not good.any():
            continue
        level, value = sky.sky[f].ravel()[good], sky.value[f].ravel()[good]
        noise = level**2 / sky.weight[f].ravel()[good]
        terms = sky_terms(flat[0][good], flat[1][good])
        found[f], covariance = amplitudes(level * (1 + value), noise, maps[:, good], terms)
        error[f] = np.sqrt(np.diag(covariance))
    return found, error


def _remarks(maps: Floats, variance: Floats) -> list[str]:
    """A warning where the first map is nothing but noise."""
    known = np.isfinite(maps[0]) & (variance[0] > 0)
    excess = float((maps[0][known] ** 2 / variance[0][known]).sum()) - known.sum()
    if excess > _SEEN * np.sqrt(2 * known.sum()):
        return []
    return [f"no fringes are seen above the noise of its {int(known.sum())} blocks: use more or longer exposures"]
