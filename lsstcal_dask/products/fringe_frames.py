"""Maps of fringes of a store's sky frames (§13, backup; Lupton 2016, Sec. 2.9): adapters to `fringes`, `fringe_modes`.

Two products. The sky of blocks of pixels of every frame, a CCD at a time: 2 MB for each frame of a CCD of LSST, so that
40 of them and what is made of them take 0.4 GB. And the maps: one, the median (classical), or several whose
coefficients are common to the focal plane (principal components). What is common is found on a sample of the blocks of
all CCDs, which tells it as well as all of them do: the maps of a CCD are then a problem of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.fringes import amplitudes, block_places, fit_sky, sky_blocks, sky_terms
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.physics.ephemeris import RUBIN
from lsstcal_dask.products.fringe_modes import choose_modes, coefficients, fringe_modes, maps_of
from lsstcal_dask.products.fringes import FEWEST, Uniformity, uniformity_of
from lsstcal_dask.statistics import median
from lsstcal_dask.variables import NOTE

__all__ = [
    "FRAME_OUTPUTS",
    "SKY_OUTPUTS",
    "Common",
    "FringeFrameConfig",
    "Sample",
    "frame_amplifiers",
    "relative_sky",
    "sample_sky",
    "share_modes",
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

_TRIED: Final = 20_000
"""Blocks on which the number of maps is found, 30 times as much work."""
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
