"""Cosmic rays in a single frame, by their edges, which are sharper than those of any star (Lupton 2016, Sec. 2.7).

The Laplacian of van Dokkum (2001, PASP 113, 1420), as `astroscrappy` computes it. Where there are several exposures
of the same, comparing them is better and faster: see `products.cosmics`.
"""

import numpy as np
from astroscrappy import detect_cosmics
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["CosmicConfig", "flag_cosmics", "single_frame_hits"]

_UNUSABLE = MASK_BITS["NO_DATA"] | MASK_BITS["BAD"] | MASK_BITS["SATURATED"]


class CosmicConfig(BaseModel):
    """How sharp and how bright a hit is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: float = Field(5.0, gt=2, description="of the noise, that the Laplacian of a hit exceeds")
    neighbours: float = Field(0.3, gt=0, le=1, description="of `sigma`: enough for pixels beside a hit")
    contrast: float = Field(4.0, gt=0, description="of Laplacian and fine structure, below which it is a star")


def single_frame_hits(
    image: np.ndarray, variance: np.ndarray, unusable: np.ndarray, config: CosmicConfig = CosmicConfig()
) -> np.ndarray:
    """Pixels (y, x) bool of one image that a cosmic ray hit.

    Parameters
    ----------
    image, variance : (y, x) electron and electron**2.
    unusable : (y, x) bool, pixels that are neither judged nor used to judge.
    """
    fill = float(np.median(image[~unusable])) if not unusable.all() else 0.0
    clean = np.ascontiguousarray(np.where(unusable, fill, image), np.float32)
    hits, _ = detect_cosmics(
        clean,
        inmask=unusable,
        invar=np.ascontiguousarray(np.where(unusable, np.nanmedian(variance), variance), np.float32),
        sigclip=config.sigma,
        sigfrac=config.neighbours,
        objlim=config.contrast,
        gain=1.0,
        satlevel=np.inf,
        niter=4,
        sepmed=True,
        cleantype="medmask",
        fsmode="median",
    )
    return np.asarray(hits & ~unusable)


def flag_cosmics(frame: Frame, config: CosmicConfig = CosmicConfig()) -> Frame:
    """Flag COSMIC_RAY in every amplifier of a frame in electrons; values stay."""
    mask = frame.mask.copy()
    for i, amplifier in enumerate(frame.detector.amplifiers):
        ny, nx = amplifier.data.shape
        box = i, slice(0, ny), slice(0, nx)
        hits = single_frame_hits(frame.image[box], frame.variance[box], mask[box] & _UNUSABLE > 0, config)
        mask[box][hits] |= MASK_BITS["COSMIC_RAY"]
    return frame.with_(mask=mask)
