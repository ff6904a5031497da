"""What has settled on filter, window and CCDs since a flat cube was taken (Lupton 2016, Sec. 2.8.2).

A broadband flat of now over the same flat synthesised from the cube, or over one taken at the epoch of the cube, is one
where nothing changed. Three things do change it, and are told apart:

- the lamp lights the screen in another way than the laser: a polynomial of the place, of at most second order;
- the filter moved in wavelength: by ``s`` nm it changes the flat by ``s D(x, y)``, with D known from the cube, for the
  response of pixels differs at the edge of the band;
- dust: what is left above its noise, at any scale. It is gray, one factor for every wavelength, if another band
  shows the same; what one band alone shows lies on its filter; what both show in unlike strength is not gray.

The cube stays as it was measured: the factor of the dust multiplies what is synthesised from it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import label, sum_labels

from lsstcal_dask.statistics.starlet import bin_weighted, significant, spread

__all__ = ["ContaminationConfig", "Mote", "compare_bands", "find_dust"]

_ALIKE: Final = 0.03  # of a shadow's depth: what smoothing it in each band by itself leaves


class ContaminationConfig(BaseModel):
    """What counts as dust, as a lamp, as a drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: int = Field(8, ge=2, description="pixels on a side of the cells in which wide structure is sought")
    degree: int = Field(2, ge=0, le=2, description="of the polynomial that stands for the lamp")
    reject: float = Field(5.5, gt=3, description="sigma above which structure counts: one false in a CCD of 16 Mpx")
    floor: float = Field(3e-4, gt=0, lt=0.1, description="least change that counts as dust")
    drift: float = Field(4.0, gt=2, description="sigma above which a drift of the filter is reported")
    least_drift: float = Field(
        0.25, ge=0, description="nm, least drift that is reported: dust all over the field looks like one of 0.1 nm"
    )
    references: float = Field(
        1e-3, gt=0, description="relative rms by which the flats of the cube's epoch and of the cube may differ"
    )


@dataclass(frozen=True)
class Mote:
    """One piece of dust, as the bands see it."""

    y: float  # pixel of the CCD, middle of what it shades
    x: float
    area: int  # pixels
    change: tuple[float, ...]  # mean of each band, as a share of the light
    error: tuple[float, ...]
    kind: str  # gray, filter (seen by one band alone), chromatic, or single (one band is all there is)


def find_dust(
    ratio: np.ndarray, variance: np.ndarray, expected: np.ndarray, config: ContaminationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """What of a CCD is shaded, in every pixel: narrow shadows by pixels, wide ones by cells.

    Parameters
    ----------
    ratio, variance : (y, x) measured flat over expected flat; NaN where it is unknown.
    expected : (y, x) logarithm of the change that lamp and drift make, see `Lamp.at`.

    Returns
    -------
    Change (y, x) as a share of the light, 0 without dust, and where there is any (y, x) bool.
    """
    factor = np.exp(-expected)
    change, noise = ratio * factor - 1, variance * factor**2
    limit = (config.reject, config.floor)
    narrow, where = significant(change, noise, int(np.log2(config.cell)), limit)
    mean, error = bin_weighted(change - narrow, noise, config.cell)
    planes = max(int(np.log2(max(min(mean.shape), 2))), 1)
    wide, cells = significant(mean, error, min(planes, 6), limit)
    shaded = np.repeat(np.repeat(cells, config.cell, axis=0), config.cell, axis=1)
    found = narrow + spread(wide, config.cell, ratio.shape)
    where = where | shaded[: ratio.shape[0], : ratio.shape[1]]
    return np.where(where, found, 0.0), where


def compare_bands(
    changes: np.ndarray, variances: np.ndarray, found: np.ndarray, config: ContaminationConfig
) -> tuple[np.ndarray, list[Mote]]:
    """Tell gray dust from dust on one filter, and both from what is not gray.

    Parameters
    ----------
    changes, variances : (band, y, x) measured over expected flat less one, lamp and drift taken out.
    found : (band, y, x) what `find_dust` found in each.

    Returns
    -------
    Factor (band, y, x) float32 for the flats of each band: of gray dust the same in every band, of dust on a filter in
    its own, of what is not gray in none; and the motes.
    """
    shadows, n = label((found != 0).any(axis=0), structure=np.ones((3, 3)))
    area = sum_labels(np.ones(shadows.shape), shadows, np.arange(n + 1))
    template = found[np.abs(found).sum(axis=(1, 2)).argmax()] if len(found) == 1 else _strongest(found, shadows, n)
    known = np.isfinite(changes) & np.isfinite(variances) & (variances > 0)
    weight = np.divide(1.0, variances, out=np.zeros(variances.shape), where=known)
    change = np.where(known, changes, 0.0)
    labels = np.arange(n + 1)
    norm = np.array([sum_labels(w * template**2, shadows, labels) for w in weight])
    share = np.array([sum_labels(w * c * template, shadows, labels) for w, c in zip(weight, change, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        share, error = share / norm, 1 / np.sqrt(norm)
    depth = sum_labels(template, shadows, labels) / np.maximum(area, 1)
    kinds = ["", *(_kind(share[:, i], error[:, i], config) for i in range(1, n + 1))]
    factor = np.ones(changes.shape, np.float32)
    for i in range(1, n + 1):
        here = shadows == i
        if kinds[i] == "gray":
            heavy = norm[:, i] / norm[:, i].sum()
            factor[:, here] += np.tensordot(heavy, found[:, here], 1).astype(np.float32)
        elif kinds[i] in ("filter", "single"):
            seen = int(np.nanargmax(np.abs(share[:, i])))  # a band that is not known there has no share
            factor[seen, here] += found[seen, here].astype(np.float32)
    return factor, [_mote(shadows == i, share[:, i] * depth[i], error[:, i] * depth[i], kinds[i]) for i in labels[1:]]


def _mote(here: np.ndarray, change: np.ndarray, error: np.ndarray, kind: str) -> Mote:
    y, x = (float(at.mean()) for at in np.nonzero(here))
    return Mote(y, x, int(here.sum()), tuple(change.tolist()), tuple(np.abs(error).tolist()), kind)


def _strongest(found: np.ndarray, shadows: np.ndarray, n: int) -> np.ndarray:
    """Of every shadow, as the band saw it that saw most of it."""
    power = np.array([sum_labels(band**2, shadows, np.arange(n + 1)) for band in found])
    return np.asarray(np.take_along_axis(found, power.argmax(axis=0)[shadows][None], axis=0)[0])


def _kind(share: np.ndarray, error: np.ndarray, config: ContaminationConfig) -> str:
    """What a shadow is: its strength in each band over that of the strongest, with errors."""
    known = np.isfinite(share)
    if known.sum() < 2:
        return "single"
    share, error = share[known], error[known]
    mean = np.average(share, weights=1 / error**2)
    apart = np.abs(share - mean) / np.hypot(error, _ALIKE)
    if apart.max() < config.drift:
        return "gray"
    alone = np.sort(np.abs(share) / np.hypot(error, _ALIKE))[:-1]
    return "filter" if alone.max() < config.drift else "chromatic"
