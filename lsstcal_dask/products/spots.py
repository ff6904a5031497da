"""Spots of the Collimated Beam Projector on each amplifier, as stamps: the sources of crosstalk (¶10f, Sec. 2.6).

One spot an amplifier is looked for, which is what sparse masks give. A stamp holds the electrons of the pixels
that belong to the spot, and NaN elsewhere; where it lies is counted in raw pixels, which are what is read at once.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import binary_dilation, find_objects, label

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.electrons import channel, signal

__all__ = [
    "OUTPUTS",
    "Spot",
    "SpotConfig",
    "check_spots",
    "find_spot",
    "find_spots",
    "of_masks",
    "spot_amplifiers",
    "spot_sizes",
    "stamp_size",
]

OUTPUTS = {
    "spot": Output("float32", "electron", per_exposure=True),
    "spot_y": Output("float32", "pixel", per_exposure=True),
    "spot_x": Output("float32", "pixel", per_exposure=True),
    "spot_level": Output("float32", "electron", per_exposure=True),
    "spot_used": Output("bool", per_exposure=True),
    "background": Output("float32", "electron", per_exposure=True),
}

_BLOCK: Final = 3  # px: the least of a block is bright in a spot and dark under the track of a cosmic ray
_STAMP: Final = 0.75  # side of a stamp, of the shorter side of the smallest amplifier


class SpotConfig(BaseModel):
    """Which exposures hold spots, and what counts as one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: tuple[str, ...] = Field(("sparse", "single"), description="masks of the projector whose exposures are used")
    faintest: float = Field(2000.0, gt=0, description="electrons in a pixel: what is fainter is a ghost, not a spot")
    brightest: float = Field(120_000.0, gt=0, description="electrons: brighter spots are taken to be saturated")
    edge: float = Field(0.002, gt=0, lt=0.5, description="of its level, down to which a pixel belongs to a spot")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True)
class Spot:
    """A spot in an image: the electrons of its pixels above the background, NaN off it."""

    y: int
    x: int
    values: np.ndarray  # (y, x) float32
    level: float  # electron, 90th percentile of its pixels' brighter half
    peak: float  # electron
    others: int  # further spots in the image


def stamp_size(camera: Camera) -> int:
    """Side of a stamp, pixels."""
    return ceil(_STAMP * min(min(a.data.shape) for d in camera.detectors for a in d.amplifiers))


def spot_sizes(raw: xr.Dataset, side: int) -> dict[str, int]:
    """Sizes of the dims of the product."""
    return {"exposure": raw.sizes["exposure"], "amplifier": raw.sizes["amplifier"], "y": side, "x": side}


def of_masks(raw: xr.Dataset, masks: tuple[str, ...]) -> np.ndarray:
    """(exposure,) bool: taken through one of the masks (``sparse/48`` is some holes of ``sparse``).

    All of them where the exposures carry no ``mask_id`` at all.

    Raises
    ------
    CalibrationError
        An exposure of the projector does not say through which mask it was taken.
    """
    if "mask_id" not in raw.coords:
        return np.ones(raw.sizes["exposure"], bool)
    names = [str(name) for name in raw["mask_id"].values]
    for exposure, kind, name in zip(raw["exposure"].values, raw["exposure_type"].values, names, strict=True):
        if kind == "cbp" and name in ("", "none"):
            raise CalibrationError(f"exposure {exposure} has no mask id: correct its header, or leave it out")
    is_spot = raw["exposure_type"].values == "spot"
    return is_spot | np.array([name.partition("/")[0] in masks for name in names], bool)


def check_spots(raw: xr.Dataset, config: SpotConfig) -> None:
    """Refuse exposures that cannot hold spots of a sparse mask; raises InsufficientInputs, or as `of_masks`."""
    if not of_masks(raw, config.masks).any():
        raise InsufficientInputs(
            f"spots: no exposure was taken through mask {' or '.join(config.masks)}: ingest such (¶10f), "
            f"or name others in [spots] masks"
        )


def find_spot(image: np.ndarray, config: SpotConfig = SpotConfig(), noise: float = 6.0) -> Spot | None:
    """The brightest spot of an image (y, x), electrons; None where nothing is bright and wide enough."""
    ny, nx = (size // _BLOCK for size in image.shape)
    least = image[: ny * _BLOCK, : nx * _BLOCK].reshape(ny, _BLOCK, nx, _BLOCK).min(axis=(1, 3))
    background = float(np.median(image[::3, ::3]))
    top = float(least.max()) - background
    if not top > config.faintest:
        return None
    islands, number = label(least > background + top / 2)
    sizes = np.bincount(islands.ravel())[1:]
    main = int(islands.ravel()[np.argmax(least)])
    others = int((sizes >= sizes[main - 1] / 2).sum()) - 1
    (rows, columns) = find_objects(islands, number)[main - 1]
    seed = np.zeros(image.shape, bool)
    seed[: ny * _BLOCK, : nx * _BLOCK] = np.kron(islands == main, np.ones((_BLOCK, _BLOCK), bool))
    level = float(np.percentile(image[seed], 90)) - background
    reach = 8 + max(rows.stop - rows.start, columns.stop - columns.start) * _BLOCK
    part = tuple(
        slice(max(0, s.start * _BLOCK - reach), min(size, s.stop * _BLOCK + reach))
        for s, size in zip((rows, columns), image.shape, strict=True)
    )
    near = image[part] - np.float32(background)
    core, _ = label(near > max(5 * noise, config.edge * level))
    core = binary_dilation(np.isin(core, np.unique(core[seed[part] & (core > 0)])))
    (box,) = find_objects(core.astype(int))
    values = np.where(core, near, np.float32(np.nan))[box].astype(np.float32)
    y, x = (p.start + b.start for p, b in zip(part, box, strict=True))
    return Spot(y, x, values, level, float(np.nanmax(values)), others)


def spot_amplifiers(
    raw: xr.Dataset, detector: Detector, side: int, config: SpotConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Spots of each amplifier of one detector, one after the other, exposure after exposure.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,).
    side : of a stamp, pixels.
    products : ``gain`` of this detector, and what `electrons.channel` knows to use.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier. In memory: one stamp for each exposure, one frame of an amplifier.
    """
    wanted = np.flatnonzero(raw["present"].values & of_masks(raw, config.masks))
    names = [str(name) for name in raw["exposure"].values]
    stored = [str(name) for name in raw["amplifier"].values]
    for amplifier in detector.amplifiers:
        result = _empty(len(names), side)
        try:
            ours = channel(amplifier, products)
        except InsufficientInputs as error:
            result.attrs["remarks"] = [str(error)]
            yield amplifier.name, result
            continue
        values = {name: result[name].values for name in OUTPUTS}
        for i in wanted:
            counts = raw["counts"].variable[i, stored.index(amplifier.name)].values
            seen = signal(counts, ours, config.overscan)
            values["background"][i] = np.median(seen.electrons[::3, ::3])
            spot = find_spot(seen.electrons, config, seen.noise)
            if spot is None:
                continue
            why = _refused(spot, side, min(config.brightest, ours.ceiling))
            ny, nx = (min(size, side) for size in spot.values.shape)
            values["spot"][i, :ny, :nx] = spot.values[:ny, :nx]
            values["spot_y"][i], values["spot_x"][i] = spot.y + amplifier.data.y0, spot.x + amplifier.data.x0
            values["spot_level"][i], values["spot_used"][i] = spot.level, not why
            result.attrs["remarks"] += [f"exposure {names[i]}: spot left out: {why}"] if why else []
        result.attrs["summary"] = {"spots": int(values["spot_used"].sum())}
        yield amplifier.name, result


def _refused(spot: Spot, side: int, ceiling: float) -> str:
    """Why a spot cannot be a source; empty if it can."""
    if spot.peak > ceiling:
        return f"saturated at {spot.peak:.0f} electrons (limit {ceiling:.0f}): take it with less light"
    if max(spot.values.shape) > side:
        return f"{max(spot.values.shape)} pixels wide, more than a stamp of {side}"
    return f"{spot.others + 1} spots in this amplifier: use a mask that puts one in each" if spot.others else ""


def _empty(exposures: int, side: int) -> xr.Dataset:
    def nan(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan, np.float32)

    variables = {name: ("exposure", nan(exposures)) for name in ("spot_y", "spot_x", "spot_level", "background")}
    return xr.Dataset(
        {
            "spot": (("exposure", "y", "x"), nan(exposures, side, side)),
            **variables,
            "spot_used": ("exposure", np.zeros(exposures, bool)),
        },
        attrs={"remarks": [], "summary": {}},
    )


def find_spots(
    raw: xr.Dataset,
    camera: Camera,
    products: dict[str, xr.Dataset],
    config: SpotConfig = SpotConfig(),
    side: int | None = None,
) -> xr.Dataset:
    """Find the spots of exposures of the projector, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; ``mask_id`` if it is known.
    camera : its camera.
    products : ``gain``, and ``bias`` and others if there are, with a detector dim.
    side : of a stamp, pixels; None: `stamp_size`.

    Returns
    -------
    Dataset with `OUTPUTS`; ``spot`` (exposure, detector, amplifier, y, x), electron.

    Raises
    ------
    InsufficientInputs, CalibrationError
        See `check_spots`.
    """
    check_spots(raw, config)
    side = side or stamp_size(camera)

    def arguments(name: str) -> tuple:
        return camera.detector(name), side, config, {k: p.sel(detector=name) for k, p in products.items()}

    return map_detectors(spot_amplifiers, raw, OUTPUTS, spot_sizes(raw, side), arguments)
