"""Offsets between the amplifiers of a calibrated frame, from the sky on both sides of their boundaries (Sec. 3.1).

The sky knows nothing of amplifiers: a step of the background where two of them meet is an error of their levels (or,
in proportion to the sky, of their gains, which one frame cannot tell from it). The steps of all boundaries give the
offset of each amplifier but for what is common to a CCD, so their mean is zero.
"""

from typing import Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.products.continuity import edge_steps, fit_step, solve_steps
from lsstcal_dask.statistics import robust_mean, robust_sigma
from lsstcal_dask.variables import attributes

__all__ = ["OffsetConfig", "amplifier_offsets", "sky_step"]

_SOURCE: Final = 3.0  # sigma above the sky, of the mean of `_GROUP` pixels, from which these belong to a source
_GROUP: Final = 5  # pixels along and across a boundary
_GROWN: Final = 2  # groups to each side of such pixels that are left out too: the wings of stars
_FEWEST: Final = 0.3  # of the pixels along a boundary that must be left
_LEAST: Final = 1e-3  # of the unit, scatter of a sky without noise


class OffsetConfig(BaseModel):
    """How the steps of the sky are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: int = Field(50, ge=8, description="pixels on each side of a boundary; half an amplifier at most")
    skip: int = Field(1, ge=0, description="pixels next to a boundary left out")
    order: int = Field(1, ge=1, le=3, description="degree of the polynomial across a boundary")


def sky_step(low: np.ndarray, high: np.ndarray, config: OffsetConfig = OffsetConfig()) -> tuple[float, float]:
    """Step of the sky at a boundary, and its error.

    Sources are left out, with what surrounds them. What is left is averaged along the boundary, and a polynomial of
    the distance is fitted with a step in it. The error is that of the scatter, enlarged where the fit is bad.

    Parameters
    ----------
    low, high : (along, across), any unit, NaN where unusable; ``low[:, -1]`` and ``high[:, 0]`` touch.

    Returns
    -------
    high less low, and its error.

    Raises
    ------
    InsufficientInputs
        There are too few pixels, or too few that are good and without a source.
    """
    reach = min(config.reach, low.shape[1] // 2, high.shape[1] // 2)
    distance = np.arange(config.skip, reach) + 0.5
    if len(distance) < config.order + 2:
        raise InsufficientInputs(f"amplifiers too narrow: {len(distance)} pixels on a side")
    sides = low[:, -1 - config.skip : -1 - reach : -1], high[:, config.skip : reach]
    if not all(np.isfinite(side).any() for side in sides):
        raise InsufficientInputs("no usable pixel on one side")
    sky = np.concatenate([np.where(_sources(side), np.nan, side) for side in sides], axis=1).astype(float)
    used = np.isfinite(sky).sum(axis=0)
    if np.median(used) < _FEWEST * len(sky):
        raise InsufficientInputs("sources or bad pixels nearly everywhere")
    columns = used >= _FEWEST * len(sky) / 2
    scatter = np.maximum(robust_sigma(sky[:, columns], axis=0), _LEAST)
    level = robust_mean(sky[:, columns], scatter, axis=0)
    side = np.repeat([-1.0, 1.0], len(distance))
    scaled = side * np.tile(distance, 2) / reach
    terms = np.stack([side / 2, *(scaled**power for power in range(config.order + 1))], axis=1)[columns]
    return fit_step(terms, level, scatter / np.sqrt(used[columns]))


def _sources(side: np.ndarray) -> np.ndarray:
    """Pixels (along, across) of one side that are of sources or close to one.

    Groups of pixels are compared with the groups along the boundary: a step changes all of them alike.
    """
    ny, nx = (n // _GROUP for n in side.shape)
    if not (ny and nx):
        return np.zeros(side.shape, bool)
    blocks = side[: ny * _GROUP, : nx * _GROUP].reshape(ny, _GROUP, nx, _GROUP).swapaxes(1, 2).reshape(ny, nx, -1)
    counted = np.isfinite(blocks).sum(axis=2)
    mean = np.where(counted > 0, np.nansum(blocks, axis=2) / np.maximum(counted, 1), np.nan)
    mean[:, ~counted.any(axis=0)] = 0.0  # nothing there is used anyway
    sigma = np.maximum(robust_sigma(mean, axis=0), _LEAST)
    bright = mean - np.nanmedian(mean, axis=0, keepdims=True) > _SOURCE * sigma
    grown = np.zeros_like(bright)
    padded = np.pad(bright, _GROWN)
    for dy, dx in np.ndindex(2 * _GROWN + 1, 2 * _GROWN + 1):
        grown |= padded[dy : dy + ny, dx : dx + nx]
    grown = np.repeat(np.repeat(grown, _GROUP, axis=0), _GROUP, axis=1)
    return np.pad(grown, [(0, side.shape[0] - grown.shape[0]), (0, side.shape[1] - grown.shape[1])], mode="edge")


def amplifier_offsets(frame: Frame, config: OffsetConfig = OffsetConfig()) -> xr.Dataset:
    """Offset of each amplifier of a calibrated frame from the mean of its CCD.

    Parameters
    ----------
    frame : corrected pixels of one CCD; those with any bit of the mask take no part.

    Returns
    -------
    ``amplifier_offset`` and ``amplifier_offset_error`` (amplifier,) in the unit of the image, NaN for amplifiers to
    which no boundary leads; the remarks are an attribute.

    Raises
    ------
    DegenerateSolution
        No boundary was measured.
    """
    images = []
    for i, amplifier in enumerate(frame.detector.amplifiers):
        box = tuple(slice(size) for size in amplifier.data.shape)
        images.append(np.where(frame.mask[i][box] == 0, frame.image[i][box], np.nan))
    edges, measured, remarks = edge_steps(images, frame.detector, lambda low, high: sky_step(low, high, config))
    value, error = solve_steps(len(images), edges, -measured[:, 0], measured[:, 1])
    return xr.Dataset(
        {
            name: ("amplifier", values, attributes(name, frame.units))
            for name, values in (("amplifier_offset", value), ("amplifier_offset_error", error))
        },
        coords={"amplifier": [a.name for a in frame.detector.amplifiers]},
        attrs={"exposure": frame.exposure, "remarks": remarks},
    )
