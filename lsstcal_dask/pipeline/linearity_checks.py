"""The checks of linearity on what a store holds: visits of a field, flats of several levels (Lupton 2016, Sec. 2.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError, InsufficientInputs, StoreFailure
from lsstcal_dask.instrument import Detector, assemble
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.pipeline.store import Store, open_store
from lsstcal_dask.pipeline.upstream import Upstream
from lsstcal_dask.products.continuity import edge_step, edge_steps, find_edges
from lsstcal_dask.products.flats import ReadNoise, amplifier_images
from lsstcal_dask.storage.products import Pointer, open_product
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.verify.linearity import Seen, amplifier_offsets, flux_against_background, size_against_light
from lsstcal_dask.verify.stars import STAR, amplifier_of, match_stars, measure_stars

__all__ = ["Checks", "Visit", "choose_checks", "flat_numbers", "star_numbers"]

_VISITS: Final = 12  # of one filter, the latest
_FLATS: Final = 12  # of one filter, spread over the levels
_FEWEST: Final = 10  # flats that make a slope
_BACKGROUND: Final = 1e3  # electrons, unit of a background
_PEAK: Final = 1e5  # electrons, unit of a peak and of the level of a flat

Numbers = dict[str, tuple[np.ndarray, np.ndarray]]
"""By name: values and errors (amplifier,)."""


@dataclass(frozen=True)
class Visit:
    """A corrected visit."""

    exposure: str
    version: str
    seconds: float
    detectors: tuple[str, ...]


@dataclass(frozen=True)
class Checks:
    """What the checks look at."""

    visits: tuple[Visit, ...]
    flats: tuple[str, ...]
    overscan: OverscanConfig


def choose_checks(store: Store, upstream: Upstream, linearity: Pointer | None) -> Checks:
    """Visits and flats of a store that the checks are made of; by headers alone.

    Of both those of the filter with the most; flats that did not make the curves, if there are ten.
    """
    raw = open_raw(store.url, store.camera, chunked=False)
    kinds, lasers = raw["exposure_type"].values.astype(str), np.isfinite(raw["wavelength"].values)
    flats = np.flatnonzero((kinds == "flat") & ~lasers)
    mine = set(linearity.inputs.get("exposures", ())) if linearity else set()
    others = np.array([i for i in flats if str(raw["exposure"].values[i]) not in mine], int)
    enough = len(_of_one_filter(raw, others)) >= _FEWEST
    chosen = _of_one_filter(raw, others if enough else flats)
    order = chosen[np.argsort(raw["exposure_time"].values[chosen], kind="stable")]
    spread = order[np.unique(np.linspace(0, len(order) - 1, _FLATS).round().astype(int))] if len(order) else order
    overscan = linearity.configuration.get("overscan", {}) if linearity else {}
    return Checks(
        visits=_visits(raw, upstream),
        flats=tuple(str(raw["exposure"].values[i]) for i in spread),
        overscan=OverscanConfig.model_validate(overscan),
    )


def _of_one_filter(raw: xr.Dataset, where: np.ndarray) -> np.ndarray:
    """Those exposures, positions ascending, of the filter with the most of them."""
    if not len(where):
        return where
    bands, count = np.unique(raw["filter"].values[where].astype(str), return_counts=True)
    return where[raw["filter"].values[where].astype(str) == bands[np.argmax(count)]]


def _visits(raw: xr.Dataset, upstream: Upstream) -> tuple[Visit, ...]:
    latest: dict[str, Pointer] = {}
    for pointer in sorted(upstream.pointers, key=lambda one: one.created):
        if pointer.name == "calibrated" and pointer.version not in upstream.outdated:
            latest[str(pointer.inputs["exposure"])] = pointer
    names = raw["exposure"].values.astype(str)
    science = (raw["exposure_type"].values == "science") & np.isin(names, list(latest))
    science &= raw["exposure_time"].values > 0
    where = _of_one_filter(raw, np.flatnonzero(science))[-_VISITS:]
    found = [(latest[str(names[i])], float(raw["exposure_time"].values[i])) for i in where]
    return tuple(Visit(str(p.inputs["exposure"]), p.version, t, tuple(p.detectors)) for p, t in found)


def star_numbers(url: str, detector: Detector, visits: Sequence[Visit]) -> tuple[Numbers, dict[str, str]]:
    """What stars say: numbers of each amplifier, by name, and why there are none.

    ``flux_background`` of the CCD and ``flux_background_own`` of each amplifier against it, per 1000 electrons;
    ``size_peak``, pixel**2, per 1e5 electrons of the peak, ``size_peak_background`` its change per 1000 electrons.
    """
    shown, lost = _shown(url, detector, visits)
    lists, levels, seconds = [one[0] for one in shown], [one[1] for one in shown], [one[2] for one in shown]
    found: Numbers = {}
    why: dict[str, str] = {}
    count = len(detector.amplifiers)
    try:
        common, value, error = flux_against_background(_seen(detector, lists, levels, seconds), count)
        found["flux_background"] = np.full(count, common.value), np.full(count, common.error)
        found["flux_background_own"] = value, error
    except InsufficientInputs as reason:
        why |= dict.fromkeys(("flux_background", "flux_background_own"), str(reason))
    found |= _sizes(lists, levels, count, why)
    return found, {name: "; ".join([reason, *lost]) for name, reason in why.items()}


def _shown(
    url: str, detector: Detector, visits: Sequence[Visit]
) -> tuple[list[tuple[np.ndarray, float, float]], list[str]]:
    """Stars of a CCD, its sky and the seconds of each visit; those in which none can be found, and why."""
    found, lost = [], []
    for visit in visits:
        if detector.name in visit.detectors:
            try:
                found.append((*_stars_of(url, detector, visit), visit.seconds))
            except InsufficientInputs as reason:
                lost.append(f"{visit.exposure}: {reason}")
    return found, lost


def _stars_of(url: str, detector: Detector, visit: Visit) -> tuple[np.ndarray, float]:
    """Stars of a corrected CCD, and its sky in the unit of backgrounds."""
    camera = open_store(url).camera
    product = open_product(url, "calibrated", visit.version, chunked=False)
    product = product.sel(detector=detector.name, amplifier=list(camera.amplifier_names))
    image, variance, mask = (assemble(product[key].values, detector, camera) for key in ("image", "variance", "mask"))
    good = (mask == 0) & np.isfinite(image) & np.isfinite(variance)
    if product["image"].attrs.get("units") != "electron" or not good.any():
        return measure_stars(image, variance, np.zeros_like(good)), np.nan
    return measure_stars(image, variance, good), float(np.median(image[good])) / _BACKGROUND


def _seen(detector: Detector, lists: list[np.ndarray], levels: list[float], seconds: list[float]) -> Seen:
    """Rows of stars that several frames show."""
    rows = []
    for i, (stars, number) in enumerate(zip(lists, match_stars(lists), strict=True)):
        own, time = number >= 0, seconds[i]
        place = np.full(len(stars), i)
        level = np.full(len(stars), levels[i])
        one = (number, place, amplifier_of(stars, detector), stars["flux"] / time, stars["flux_error"] / time, level)
        rows.append([column[own] for column in one])
    if not rows:
        return Seen(*(np.empty(0, int) for _ in range(3)), *(np.empty(0) for _ in range(3)))
    return Seen(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _sizes(lists: list[np.ndarray], levels: list[float], count: int, why: dict[str, str]) -> Numbers:
    """Slopes of the size; ``why`` there is none is added."""
    stars = np.concatenate([np.empty(0, STAR), *lists])
    place = [np.full(len(one), i) for i, one in enumerate(lists)]
    frame = np.concatenate(place) if place else np.empty(0, int)
    try:
        if not len(stars):
            raise InsufficientInputs("size of stars against brightness: no visit shows a star that stands alone")
        where = np.stack([stars["x"], stars["y"]], axis=1)
        sky = np.array(levels)[frame]
        slope, change = size_against_light(stars["size"], stars["size_error"], stars["peak"] / _PEAK, frame, sky, where)
    except InsufficientInputs as reason:
        why |= dict.fromkeys(("size_peak", "size_peak_background"), str(reason))
        return {}
    found = {"size_peak": slope} | ({"size_peak_background": change} if change else {})
    if not change:
        why["size_peak_background"] = "size of stars against brightness: all visits have the same background"
    return {name: (np.full(count, one.value), np.full(count, one.error)) for name, one in found.items()}


def flat_numbers(
    url: str, detector: Detector, checks: Checks, products: Mapping[str, xr.Dataset], gain: np.ndarray
) -> tuple[Numbers, dict[str, str]]:
    """``flat_level``: change of the level of each amplifier against the CCD's, per 1e5 electrons; why there is none.

    Parameters
    ----------
    products : ``bias`` and ``linearity`` of the CCD; what is absent is not applied.
    gain : (amplifier,) electron/adu.
    """
    name = "flat_level"
    raw = open_raw(url, open_store(url).camera, exposures=checks.flats, chunked=False).sel(detector=detector.name)
    there = np.flatnonzero(raw["present"].values)
    try:
        if len(there) < _FEWEST:
            raise InsufficientInputs(f"levels of amplifiers: {len(there)} flats, at least {_FEWEST} are needed")
        value, error = _offsets(raw, there, detector, checks, products, gain)
    except InsufficientInputs as reason:
        return {}, {name: str(reason)}
    return {name: (value, error)}, {}


def _offsets(
    raw: xr.Dataset,
    where: np.ndarray,
    detector: Detector,
    checks: Checks,
    products: Mapping[str, xr.Dataset],
    gain: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    steps, levels = [], []
    edges = find_edges(detector)
    for i in where:
        images = [_flat(raw, int(i), amplifier, checks.overscan, products) for amplifier in detector.amplifiers]
        _, step, _ = edge_steps(images, detector, edge_step)
        middle = gain * [np.nanmedian(image) if image.size else np.nan for image in images] / _PEAK
        steps.append(step)
        levels.append([(middle[edge.low] + middle[edge.high]) / 2 for edge in edges])
    measured = np.stack(steps)
    return amplifier_offsets(measured[..., 0], measured[..., 1], np.array(levels), edges, len(detector.amplifiers))


def _flat(
    raw: xr.Dataset, i: int, amplifier: Any, overscan: OverscanConfig, products: Mapping[str, xr.Dataset]
) -> np.ndarray:
    """A flat (y, x) of an amplifier, adu; nothing where its curve is not to be trusted, or there is none."""
    try:
        image = amplifier_images(raw, np.array([i]), amplifier, overscan, dict(products), ReadNoise(np.nan))[0]
    except StoreFailure:
        raise
    except CalibrationError:
        return np.empty((0, 0))
    ceiling = np.inf
    if "linearity" in products:
        ceiling = float(products["linearity"]["linearity_ceiling"].sel(amplifier=amplifier.name))
    return image if np.nanmedian(image) < ceiling else np.empty((0, 0))
