"""What maps of fringes have in common all over the focal plane (§13; Lupton 2016, Sec. 2.9).

The sky of a CCD is looked at relative to a polynomial; some blocks of every CCD tell how many maps there are, how much
of each a frame has, and whether that is the same all over the field.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.fringes import block_places, fit_sky, sky_terms
from lsstcal_dask.products.fringe_modes import choose_modes, coefficients, fringe_modes
from lsstcal_dask.products.fringes import FEWEST, Uniformity, uniformity_of
from lsstcal_dask.statistics import median
from lsstcal_dask.variables import NOTE

__all__ = ["Common", "Relative", "Sample", "relative_sky", "sample_sky", "share_modes"]

Floats = NDArray[np.float64]

_TRIED: Final = 20_000
"""Blocks on which the number of maps is found, 30 times as much work."""


@dataclass(frozen=True, eq=False)
class Relative:
    """What of the sky of a CCD is not smooth."""

    value: Floats  # (frame, amplifier, block_y, block_x) relative to the sky; NaN where nothing is known
    weight: Floats  # 1 / variance, 0 there
    sky: Floats  # electron
    y: Floats  # (amplifier, block_y, block_x) from -1 to 1 over the CCD
    x: Floats


def relative_sky(product: xr.Dataset, detector: Detector, step: int) -> Relative:
    """``sky / smooth - 1`` of every frame of a CCD.

    Parameters
    ----------
    product : `SKY_OUTPUTS` of the CCD, its amplifiers in any order.
    """
    own = product.sel(amplifier=[a.name for a in detector.amplifiers])
    value, variance = (np.asarray(own[name].values, float) for name in ("sky_level", "sky_level_variance"))
    y, x = block_places(detector, (value.shape[2], value.shape[3]), step)
    found, weight, sky = np.full(value.shape, np.nan), np.zeros(value.shape), np.full(value.shape, np.nan)
    there = np.isfinite(y)
    for f in range(len(value)):
        good = np.isfinite(value[f]) & (variance[f] > 0)
        if not good.any():
            continue
        try:
            smooth = fit_sky(value[f][good], sky_terms(y[good], x[good]))
        except InsufficientInputs:
            continue  # this frame tells nothing of this CCD
        sky[f][there] = smooth @ sky_terms(y[there], x[there])
        found[f][good] = value[f][good] / sky[f][good] - 1
        weight[f][good] = sky[f][good] ** 2 / variance[f][good]
    return Relative(found, weight, sky, y, x)


@dataclass(frozen=True, eq=False)
class Sample:
    """Some blocks of a CCD."""

    value: Floats  # (frame, block), NaN where nothing is known
    weight: Floats
    crowded: Floats  # (frame,)


def sample_sky(product: xr.Dataset, detector: Detector, step: int, count: int) -> Sample:
    """At most ``count`` blocks of a CCD that most frames have, spread without a pattern."""
    sky = relative_sky(product, detector, step)
    value, weight = (a.reshape(len(a), -1) for a in (sky.value, sky.weight))
    told = np.flatnonzero((weight > 0).mean(axis=0) > 0.5)
    chosen = np.sort(np.random.default_rng(detector.id).permutation(told)[:count])
    crowded = np.asarray(product["crowded"].values, float)
    known = np.isfinite(crowded)
    share = np.where(known, crowded, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return Sample(value[:, chosen], weight[:, chosen], np.where(known.any(axis=1), share, np.nan))


@dataclass(frozen=True, eq=False)
class Common:
    """What the maps of all CCDs have in common."""

    coefficients: Floats  # (frame, mode)
    zones: NDArray[np.int64]  # (detector,)
    remarks: list[str]


def share_modes(
    samples: list[Sample], places: tuple[Floats, Floats], method: Literal["classical", "pca"], modes: int = 0
) -> Common:
    """Coefficients of each frame, common to the focal plane, and whether they are the same all over it.

    Parameters
    ----------
    samples : of the CCDs, the same frames of each.
    places : x and y (detector,) of the CCDs, mm.
    modes : maps of ``pca``; 0 for as many as predict best.

    Raises
    ------
    InsufficientInputs
        Fewer than ten frames, or none with a block.
    """
    data, weight = [one.value for one in samples], [one.weight for one in samples]
    frames = len(data[0])
    if frames < FEWEST:
        raise InsufficientInputs(f"fringes: {frames} frames: give at least {FEWEST} in one filter")
    remarks = []
    if method == "classical":
        maps = [np.nan_to_num(median(d.astype(np.float32)[:, None])[0][0].astype(float))[None] for d in data]
        c, _ = coefficients(maps, data, weight)
    else:
        if modes == 0:
            few = max(1, round(sum(d.shape[1] for d in data) / _TRIED))
            modes, _ = choose_modes([d[:, ::few] for d in data], [w[:, ::few] for w in weight])
            remarks.append(f"{NOTE}{modes} maps, the fewest that predict left-out blocks as well as any number does")
        found = fringe_modes(data, weight, modes)
        maps, c = list(found.maps), found.coefficients
    zones, told = _uniform(maps, data, weight, places)
    return Common(c, zones, remarks + told)


def _uniform(
    maps: list[Floats], data: list[Floats], weight: list[Floats], places: tuple[Floats, Floats]
) -> tuple[NDArray[np.int64], list[str]]:
    """Zone of each CCD, and what the test of uniformity says of each map (the spatial test of Sec. 2.9)."""
    zones = np.zeros(len(data), np.int64)
    if len(data) < 2:
        return zones, [f"{NOTE}whether fringes are the same all over the field is not told by one CCD"]
    single = [_alone(m, d, w) for m, d, w in zip(maps, data, weight, strict=True)]
    remarks = []
    for k in range(len(maps[0])):
        values, errors = (np.stack([one[i][:, k] for one in single], axis=1) for i in (0, 1))
        found: Uniformity = uniformity_of(values, errors, *places)
        chi2 = f"chi2 {found.chi2:.0f} of {found.dof}"
        if not found.rejected:
            remarks.append(f"{NOTE}fringes of map {k + 1} are as strong all over the field: {chi2}")
            continue
        number = int(found.zones.max()) + 1
        zones = found.zones if number > zones.max() + 1 else zones
        remarks.append(
            f"fringes of map {k + 1} are not as strong all over the field: {chi2}; {number} flats, each for a part of "
            "it (fringe_zone), capture that: 'calibrate' scales the maps to each CCD by itself"
        )
    return zones, remarks


def _alone(maps: Floats, data: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Coefficients (frame, mode) by one CCD alone, and their errors; NaN where it says nothing."""
    c, e = np.full((2, len(data), len(maps)), np.nan)
    told = (weight > 0).sum(axis=1) > len(maps)
    c[told], covariance = coefficients([maps], [data[told]], [weight[told]])
    e[told] = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return c, e
