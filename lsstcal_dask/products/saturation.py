"""Saturation levels of every amplifier: of pixels, serial register, converter (Lupton 2016, Sec. 2.5; ¶7, §4)."""

from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.linearity import Curve, curve
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.ladder import Leveled, level_images
from lsstcal_dask.products.wells import (
    clipped_counts,
    full_frame,
    lowest_frame,
    lowest_level,
    plateau_runs,
    register_spills,
    row_lean,
    spot_break,
)
from lsstcal_dask.statistics import robust_sigma
from lsstcal_dask.variables import NOTE

__all__ = ["OUTPUTS", "SaturationConfig", "check_saturation", "measure_saturation", "saturation_amplifiers"]

_NAMES: Final = ("well_bloom", "well_serial", "well_adc", "linearity_turnoff", "ptc_turnoff")

OUTPUTS: Final = {f"{name}{end}": Output("float64", "electron") for name in _NAMES for end in ("", "_error")}

_TYPES: Final = ("flat", "cbp", "spot", "science")
_CENTRE: Final = 1  # pixels to either side of a spot's centre that make its peak
_ROWS: Final = 3  # whose charge goes on into the overscan: fewer may be cosmic rays
_LEAST: Final = 4  # exposures of a spot that make a ladder


class SaturationConfig(BaseModel):
    """How saturation levels are measured (Sec. 2.5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(30e3, gt=0, description="electron, below which no full well lies")
    plateaus: int = Field(3, ge=2, description="bleed trails that must agree")
    spread: float = Field(0.05, gt=0, description="relative scatter of the full wells of a CCD that is no remark")
    overscan: OverscanConfig = OverscanConfig()


def check_saturation(raw: xr.Dataset, config: SaturationConfig) -> None:
    """Refuse a set of exposures without flats, spots or stars.

    Raises
    ------
    InsufficientInputs
        There is none.
    """
    if not np.isin(raw["exposure_type"].values.astype(str), _TYPES).any():
        raise InsufficientInputs(f"saturation: no exposures of type {', '.join(_TYPES)}: ingest some (--type)")


def saturation_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: SaturationConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Saturation levels of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` and the header table.
    products : of this detector: ``gain``; ``bias`` and ``linearity`` may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN where a level was not seen.
    """
    use = raw["present"].values & np.isin(raw["exposure_type"].values.astype(str), _TYPES)
    raw = raw.isel(exposure=np.flatnonzero(use))
    found: dict[str, dict[str, float]] = {}
    remarks: dict[str, list[str]] = {}
    for amplifier in detector.amplifiers:
        remarks[amplifier.name] = []
        try:
            found[amplifier.name] = _levels(raw, amplifier, config, products, remarks[amplifier.name])
        except CalibrationError as error:
            found[amplifier.name] = dict.fromkeys(OUTPUTS, np.nan)
            remarks[amplifier.name].append(str(error))
    for name, remark in _inconsistent(found, config.spread).items():
        remarks[name].append(remark)
    for name, values in found.items():
        yield (
            name,
            xr.Dataset(
                {key: ((), value) for key, value in values.items()},
                attrs={
                    "remarks": remarks[name],
                    "summary": {key: value if np.isfinite(value) else None for key, value in values.items()},
                },
            ),
        )


def _levels(
    raw: xr.Dataset,
    amplifier: Amplifier,
    config: SaturationConfig,
    products: dict[str, xr.Dataset],
    remarks: list[str],
) -> dict[str, float]:
    """All levels of one amplifier, electron."""
    scale = _Scale(products, amplifier)
    bias = products["bias"]["image"].sel(amplifier=amplifier.name).values if "bias" in products else None
    columns, rows, clipped = [np.empty((0, 4))], [np.empty((0, 4))], []
    leans: list[tuple[float, float]] = []
    frames: list[tuple[float, float]] = []
    overflow = False
    floor, noise = config.floor / scale.gain, 1.0
    spots = _Spots(raw, amplifier, bias, config.overscan)
    place = np.arange(raw.sizes["exposure"])
    for i, one in enumerate(level_images(raw, place, amplifier, bias, config.overscan)):
        noise = one.noise if np.isfinite(one.noise) else noise
        spots.add(i, one.image)
        if not one.image.max() > floor:
            continue
        columns.append(plateau_runs(one.image, noise, scale.gain, axis=0, floor=floor))
        rows.append(plateau_runs(one.image, noise, scale.gain, axis=1, floor=floor))
        if len(full := np.concatenate([columns[-1], rows[-1]])):
            level, wide = float(np.median(full[:, 0])), _with_overscan(one, amplifier)
            leans.append(row_lean(wide, level))
            overflow |= _goes_on(one, amplifier, level)
        cut = clipped_counts(one.counts)
        if np.isfinite(cut):
            clipped.append(cut - float(np.median(one.level)))
        even = full_frame(one.image, noise, scale.gain, floor)
        if even is not None and not np.isfinite(cut):
            frames.append(even)
            overflow |= _goes_on(one, amplifier, even[0])
    values = dict.fromkeys(OUTPUTS, np.nan)
    trails, streaks = np.concatenate(columns), np.concatenate(rows)
    from_spots = spots.level(noise, scale.gain, remarks)
    if overflow or register_spills(trails) or _leans(leans):
        whole = np.concatenate([trails, streaks])
        streaks_end = lowest_level(whole[:, 0], whole[:, 1], noise, config.plateaus)
        scale.put(values, "well_serial", *_better(streaks_end, lowest_frame(frames)))
        remarks.append(f"{NOTE}the serial register is full before the pixels are: how much they hold is not seen")
    else:
        plateau = lowest_level(trails[:, 0], trails[:, 1], noise, config.plateaus)
        scale.put(values, "well_bloom", *_better(plateau, from_spots, lowest_frame(frames)))
    if clipped:
        scale.put(values, "well_adc", float(np.median(clipped)), 0.5)
    values |= _copied(products, amplifier, scale)
    if not np.isfinite([values[name] for name in ("well_bloom", "well_serial", "well_adc")]).any():
        remarks.append(_unknown(values["linearity_turnoff"]))
    return values


def _unknown(turnoff: float) -> str:
    """Remark of an amplifier without a full well: a warning where the flats say that there is one."""
    if np.isfinite(turnoff):
        return (
            f"full well unknown: flats stop to follow the light at {turnoff:.0f} electron, but no exposure shows where "
            f"charge spills, and nothing will be flagged: take spots or stars that bleed"
        )
    return f"{NOTE}full well unknown: nothing saturates, it is above what these exposures hold"


def _goes_on(one: Leveled, amplifier: Amplifier, level: float) -> bool:
    """Whether charge goes on into the overscan, where nothing but the register brings it."""
    after = _with_overscan(one, amplifier)[:, amplifier.data.shape[1] :]
    return bool((after[:, :1] > 0.3 * level).sum() >= _ROWS)


def _with_overscan(one: Leveled, amplifier: Amplifier) -> np.ndarray:
    """Frame (y, x), adu above the level, of data and of the overscan read after them: streaks end there."""
    data, after = amplifier.data, amplifier.overscan
    end = after.x1 if after.x0 == data.x1 else data.x1
    return np.asarray(one.counts[data.y0 : data.y1, data.x0 : end] - one.level[:, None])


def _leans(found: list[tuple[float, float]]) -> bool:
    """Whether blobs lean in the order of reading: by 1 % of their width and 5 sigma, all together."""
    slopes = np.array([one for one in found if np.isfinite(one[0])]).reshape(-1, 2)
    if not len(slopes):
        return False
    weight = slopes[:, 1] ** -2
    mean = float(np.average(slopes[:, 0], weights=weight))
    return mean > 0.01 and mean > 5 / float(np.sqrt(weight.sum()))


def _better(*found: tuple[float, float]) -> tuple[float, float]:
    """The measurement of the smaller error; NaN if there is none."""
    return min(found, key=lambda one: one[1] if np.isfinite(one[1]) else np.inf)


class _Scale:
    """From adu above the bias to electrons, with the errors of gain and curve."""

    def __init__(self, products: dict[str, xr.Dataset], amplifier: Amplifier) -> None:
        gains = products["gain"].sel(amplifier=amplifier.name)
        self.gain, self.relative = float(gains["gain"]), float(gains["gain_error"] / gains["gain"])
        if not self.gain > 0:
            raise InsufficientInputs("no gain for this amplifier: see the remarks of 'gain'")
        self.relative = self.relative if np.isfinite(self.relative) else 0.0
        self.curve: Curve | None = None
        if "linearity" in products:
            own = products["linearity"].sel(amplifier=amplifier.name)
            if np.isfinite(own["linearity_level"].values).any():
                self.curve = curve(own["linearity_level"].values, own["linearity_correction"].values, amplifier.name)

    def put(self, values: dict[str, float], name: str, level: float, error: float) -> None:
        """Write a level, adu, and its error as electrons."""
        if not np.isfinite(level):
            return
        beyond = 0.0
        true = level
        if self.curve is not None:
            correction, top = float(self.curve(level)), float(self.curve.level[-1])
            true = level + correction
            # the correction is frozen above the last node, where it may have gone on as it did
            beyond = abs(correction) * max(level / top - 1, 0.0)
        values[name] = true * self.gain
        values[f"{name}_error"] = self.gain * float(np.hypot(np.hypot(error, beyond), true * self.relative))


class _Spots:
    """Follows the brightest spot of an amplifier through exposures of the projector, by their photodiode's charge."""

    def __init__(
        self, raw: xr.Dataset, amplifier: Amplifier, bias: np.ndarray | None, overscan: OverscanConfig
    ) -> None:
        projected = np.isin(raw["exposure_type"].values.astype(str), ("cbp", "spot"))
        charge = np.where(projected, raw["photodiode"].values, np.nan)
        self.light, self.peak = np.where(charge > 0, charge, np.nan), np.full(len(charge), np.nan)
        self.centre = (_CENTRE, _CENTRE)
        if np.isfinite(self.light).sum() >= _LEAST:
            brightest = np.array([np.nanargmax(self.light)])
            (one,) = level_images(raw, brightest, amplifier, bias, overscan)
            self.centre = _brightest_place(one.image)

    def add(self, index: int, image: np.ndarray) -> None:
        """Take the peak of an image if it is of the projector and has a charge."""
        if np.isfinite(self.light[index]):
            y, x = self.centre
            self.peak[index] = image[y - _CENTRE : y + _CENTRE + 1, x - _CENTRE : x + _CENTRE + 1].mean()

    def level(self, noise: float, gain: float, remarks: list[str]) -> tuple[float, float]:
        """Peak at which the spot stops to follow the light, adu; NaN without a ladder."""
        use = np.isfinite(self.peak)
        if use.sum() < _LEAST:
            return np.nan, np.nan
        peak = self.peak[use]
        sigma = np.sqrt(np.maximum(peak, 0) / gain + noise**2) / (2 * _CENTRE + 1)
        try:
            return spot_break(self.light[use], peak, sigma)
        except CalibrationError as error:
            remarks.append(f"{NOTE}spots of the projector: {error}")
            return np.nan, np.nan


def _brightest_place(image: np.ndarray) -> tuple[int, int]:
    """Middle of the widest row of the brightest part of an image (y, x): the centre even of a spot that bleeds."""
    ny, nx = image.shape
    bright = image > 0.5 * np.percentile(image, 99.9)
    across = bright.sum(axis=1)
    y = int(np.clip(np.median(np.flatnonzero(across == across.max())), _CENTRE, ny - 1 - _CENTRE))
    x = int(np.clip(np.median(np.flatnonzero(bright[y])), _CENTRE, nx - 1 - _CENTRE))
    return y, x


def _copied(products: dict[str, xr.Dataset], amplifier: Amplifier, scale: _Scale) -> dict[str, float]:
    """Turnoffs that other products found, electron."""
    values: dict[str, float] = {}
    for product, name in (("linearity", "linearity_turnoff"), ("gain", "ptc_turnoff"), ("ptc", "ptc_turnoff")):
        if product in products and name in products[product]:
            own = products[product].sel(amplifier=amplifier.name)
            error = float(own[f"{name}_error"]) if f"{name}_error" in own else 0.0
            if own[name].attrs.get("units") == "electron":
                values |= {name: float(own[name]), f"{name}_error": error}
            else:
                scale.put(values, name, float(own[name]), error)
    return values


def _inconsistent(found: dict[str, dict[str, float]], spread: float) -> dict[str, str]:
    """Amplifiers whose full well is not that of their CCD: rather their gain is wrong."""
    remarks = {}
    wells = {name: values["well_bloom"] for name, values in found.items() if np.isfinite(values["well_bloom"])}
    if len(wells) >= 3:
        middle = float(np.median(list(wells.values())))
        scatter = max(float(robust_sigma(list(wells.values()))), spread * middle)
        for name, well in wells.items():
            sigma = float(np.hypot(scatter, found[name]["well_bloom_error"]))
            if abs(well - middle) > 4 * sigma:
                remarks[name] = (
                    f"full well {well:.0f} electron is {well / middle - 1:+.0%} off that of its CCD: check its gain"
                )
    return remarks


def measure_saturation(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: SaturationConfig = SaturationConfig()
) -> xr.Dataset:
    """Measure saturation levels, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats, spots, science exposures.
    products : ``gain`` and, as far as there are, ``bias`` and ``linearity``, with a detector dim.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier), electron; NaN where a level was not seen.

    Raises
    ------
    InsufficientInputs
        See `check_saturation`.
    """
    check_saturation(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), None, config, parts

    return map_detectors(saturation_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
