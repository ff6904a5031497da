"""Relative gains in a CCD, from flats that must go on across the boundaries of its amplifiers (Lupton 2016, Sec. 2.2d).

The light and the silicon know nothing of the boundary between two amplifiers: a step of the flat there is the ratio
of their gains. The steps of all boundaries, 22 of them for 16 amplifiers, give the gains but for one common factor,
so their product is set to one. From CCD to CCD nothing is learnt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.flats import ReadNoise, amplifier_images, check_flats
from lsstcal_dask.statistics import robust_mean, robust_sigma

__all__ = [
    "OUTPUTS",
    "ContinuityConfig",
    "Edge",
    "check_continuity",
    "continuity_amplifiers",
    "edge_step",
    "edge_steps",
    "find_edges",
    "fit_step",
    "gain_changes",
    "gain_ratios",
    "mean_flats",
    "relative_gains",
    "solve_steps",
]

OUTPUTS: Final = {"gain_relative": Output("float64"), "gain_relative_error": Output("float64")}

_BLOCK: Final = 8  # flats of an amplifier in memory at once
_HUBER: Final = 3.0  # errors beyond which a step counts less
_CAUCHY: Final = 4.0  # errors at which a column counts half
_LEAST: Final = 1e-6  # scatter of a flat, so that one without noise has weights


class ContinuityConfig(BaseModel):
    """How the steps at the boundaries of amplifiers are measured (Sec. 2.2d)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: int = Field(8, ge=1, description="fewest flats")
    reach: int = Field(50, ge=8, description="pixels on each side of a boundary; half an amplifier at most")
    skip: int = Field(3, ge=0, description="pixels next to a boundary left out: their sizes differ")
    order: int = Field(3, ge=1, le=5, description="degree of the polynomial across a boundary")
    brightest: float | None = Field(None, gt=0, description="adu; flats with a higher median are left out")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True)
class Edge:
    """A boundary: places of two amplifiers in ``detector.amplifiers``, and whether it runs along x (or along y)."""

    low: int  # the amplifier on its left, or below
    high: int
    along_x: bool


def find_edges(detector: Detector) -> list[Edge]:
    """Boundaries of the amplifiers of a CCD that touch along their whole side."""
    boxes = [(*a.position, *a.data.shape[::-1]) for a in detector.amplifiers]
    found = []
    for i, (x, y, nx, ny) in enumerate(boxes):
        for j, (u, v, mx, my) in enumerate(boxes):
            if (u, v, my) == (x + nx, y, ny):
                found.append(Edge(i, j, along_x=False))
            if (u, v, mx) == (x, y + ny, nx):
                found.append(Edge(i, j, along_x=True))
    return found


def edge_step(low: np.ndarray, high: np.ndarray, config: ContinuityConfig = ContinuityConfig()) -> tuple[float, float]:
    """Logarithm of the step of a flat at a boundary, and its error.

    The flat is divided by its mean along the boundary, so that its shape there does not matter. What is left is
    averaged along the boundary, outliers clipped, and a polynomial of the distance is fitted with a step in it.
    The error is that of the scatter of the pixels, enlarged where the polynomial does not describe the average.

    Parameters
    ----------
    low, high : (along, across), any unit; ``low[:, -1]`` and ``high[:, 0]`` touch.

    Returns
    -------
    ``ln(high / low)`` and its error.

    Raises
    ------
    InsufficientInputs
        There are too few pixels, or no light.
    """
    reach = min(config.reach, low.shape[1] // 2, high.shape[1] // 2)
    distance = np.arange(config.skip, reach) + 0.5
    if len(distance) < config.order + 2:
        raise InsufficientInputs(f"amplifiers too narrow: {len(distance)} pixels on a side: lower [continuity] skip")
    sides = low[:, -1 - config.skip : -1 - reach : -1], high[:, config.skip : reach]
    if not all(np.isfinite(side).any() and np.nanmedian(side) > 0 for side in sides):
        raise InsufficientInputs("no light on one side: check the flats")
    flat = np.concatenate(sides, axis=1).astype(float)
    flat /= robust_mean(flat, robust_sigma(flat, axis=1), axis=1)[:, None]
    scatter = np.maximum(robust_sigma(flat, axis=0), _LEAST)
    level = robust_mean(flat, scatter, axis=0)
    error = scatter / np.sqrt(np.isfinite(flat).sum(axis=0)) / level
    side = np.repeat([-1.0, 1.0], len(distance))
    scaled = side * np.tile(distance, 2) / reach
    terms = np.stack([side / 2, *(scaled**power for power in range(config.order + 1))], axis=1)
    return fit_step(terms, np.log(level), error)


def fit_step(terms: np.ndarray, target: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """First coefficient of a least-squares fit and its error; columns that miss it, as bad ones do, count less.

    Parameters
    ----------
    terms : (column, term).
    target, error : (column,) what is fitted, and the standard error of each.
    """
    weight = np.ones(len(target))
    for _ in range(20):
        scaled = terms * (np.sqrt(weight) / error)[:, None]
        inverse = np.linalg.inv(scaled.T @ scaled)
        found = inverse @ (terms.T @ (weight * target / error**2))
        pull = (target - terms @ found) / error
        width = max(float(robust_sigma(pull)), 1.0)
        weight = 1 / (1 + (pull / (_CAUCHY * width)) ** 2)
    misfit = float(np.sum(weight * pull**2) / (np.sum(weight) - terms.shape[1]))
    return float(found[0]), float(np.sqrt(inverse[0, 0] * max(misfit, 1.0)))


def solve_steps(count: int, edges: list[Edge], step: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of relative gains, of mean zero, from the steps at the boundaries, by robust least squares.

    A step is ``ln g_low - ln g_high``. Steps that the others contradict by more than three errors count less (Huber),
    and all errors grow as much as the steps contradict each other.

    Parameters
    ----------
    count : amplifiers.
    step, error : (edge,); NaN where a boundary could not be measured.

    Returns
    -------
    (count,) each: logarithms and errors; NaN for amplifiers without a path to the largest group.

    Raises
    ------
    DegenerateSolution
        No boundary was measured.
    """
    usable = np.isfinite(step) & np.isfinite(error)
    group = _largest_group(count, [edge for edge, good in zip(edges, usable, strict=True) if good])
    if len(group) < 2:
        raise DegenerateSolution("no boundary between amplifiers could be measured")
    chosen = [i for i in np.flatnonzero(usable) if edges[i].low in group]
    incidence = np.zeros((len(chosen), count))
    for row, i in enumerate(chosen):
        incidence[row, edges[i].low], incidence[row, edges[i].high] = 1.0, -1.0
    incidence = incidence[:, group]
    step, error = step[chosen], error[chosen]
    weight = np.ones(len(chosen))
    for _ in range(20):
        scaled = incidence * (np.sqrt(weight) / error)[:, None]
        inverse = np.linalg.pinv(scaled.T @ scaled)  # of all solutions that of mean zero
        found = inverse @ (incidence.T @ (weight * step / error**2))
        pull = np.abs(step - incidence @ found) / error
        weight = np.minimum(1.0, _HUBER / np.maximum(pull, 1e-12))
    spare = len(chosen) - len(group) + 1
    excess = max(1.0, float(np.sum(weight * pull**2)) / spare) if spare > 0 else 1.0
    value, doubt = np.full(count, np.nan), np.full(count, np.nan)
    value[group], doubt[group] = found, np.sqrt(np.diag(inverse) * excess)
    return value, doubt


def _largest_group(count: int, edges: list[Edge]) -> list[int]:
    """Amplifiers of the largest group that boundaries connect, ascending."""
    label = np.arange(count)
    for _ in range(count):
        for edge in edges:
            label[[edge.low, edge.high]] = min(label[edge.low], label[edge.high])
    return np.flatnonzero(label == np.bincount(label).argmax()).tolist()


def gain_ratios(
    images: list[np.ndarray], detector: Detector, config: ContinuityConfig = ContinuityConfig()
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Gains over their geometric mean (amplifier,), errors, and remarks about boundaries that gave nothing.

    Parameters
    ----------
    images : (y, x) of each amplifier, readout orientation, adu above the bias; empty where there is none.
    """
    edges, measured, remarks = edge_steps(images, detector, lambda low, high: edge_step(low, high, config))
    value, error = solve_steps(len(images), edges, measured[:, 0], measured[:, 1])
    return np.exp(value), np.exp(value) * error, remarks


def edge_steps(
    images: list[np.ndarray], detector: Detector, measure: Callable[[np.ndarray, np.ndarray], tuple[float, float]]
) -> tuple[list[Edge], np.ndarray, list[str]]:
    """Boundaries of a CCD, their steps with errors (edge, 2), and remarks about those that gave nothing: NaN.

    Parameters
    ----------
    images : (y, x) of each amplifier, readout orientation; empty where there is none.
    measure : step and error from the images of both sides, (along, across), ``low[:, -1]`` and ``high[:, 0]`` touch.
    """
    pairs = zip(images, detector.amplifiers, strict=True)
    turned = [image[:: -1 if a.flip_y else 1, :: -1 if a.flip_x else 1] for image, a in pairs]
    edges, remarks = find_edges(detector), []
    measured = np.full((len(edges), 2), np.nan)
    for i, edge in enumerate(edges):
        low, high = (turned[k].T if edge.along_x else turned[k] for k in (edge.low, edge.high))
        try:
            if not (low.size and high.size):
                raise InsufficientInputs("no flat of one of them")
            measured[i] = measure(low, high)
        except InsufficientInputs as reason:
            names = (detector.amplifiers[k].name for k in (edge.low, edge.high))
            remarks.append(f"boundary of {' and '.join(names)} not used: {reason}")
    return edges, measured, remarks


def gain_changes(
    before: list[np.ndarray],
    after: list[np.ndarray],
    detector: Detector,
    config: ContinuityConfig = ContinuityConfig(order=1),
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Relative gains of one epoch over those of another (amplifier,), errors, remarks: as `gain_ratios`.

    The steps are those of the quotient of the mean flats, in which the sizes of pixels, dust and the shape of the
    lamp cancel: only photon noise is left, and a change of a per mille stands out. The median amplifier is taken not
    to have changed: with a product of one, a jump of one amplifier would be a change of all the others.

    Parameters
    ----------
    before, after : (y, x) of each amplifier, the mean flats of two epochs, adu above the bias.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = [second / first for first, second in zip(before, after, strict=True)]
    value, error, remarks = gain_ratios(quotients, detector, config)
    middle = np.nanmedian(value)
    return value / middle, error / middle, remarks


def check_continuity(raw: xr.Dataset, config: ContinuityConfig) -> None:
    """Refuse too few flats.

    Raises
    ------
    InsufficientInputs
        Fewer than ``config.minimum``.
    """
    check_flats("continuity", raw, config.minimum)


def continuity_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: ContinuityConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Relative gain of each amplifier of one detector; crosses amplifiers, so all of them are read first.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,); flats.
    products : ``bias`` and ``linearity`` of this detector; either may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN where no boundary leads to it, with a remark.
    """
    images, missing = mean_flats(raw, detector, config, products)
    try:
        value, error, remarks = gain_ratios(images, detector, config)
    except DegenerateSolution as nothing:
        value = error = np.full(len(images), np.nan)
        remarks = [str(nothing)]
    for i, amplifier in enumerate(detector.amplifiers):
        own = [missing[amplifier.name]] if amplifier.name in missing else []
        own += [] if np.isfinite(value[i]) else ["no relative gain: no boundary leads to this amplifier"]
        yield (
            amplifier.name,
            xr.Dataset(
                {"gain_relative": ((), value[i]), "gain_relative_error": ((), error[i])},
                attrs={"remarks": own + (remarks if i == 0 else []), "summary": {"gain_relative": float(value[i])}},
            ),
        )


def mean_flats(
    raw: xr.Dataset, detector: Detector, config: ContinuityConfig, products: dict[str, xr.Dataset]
) -> tuple[list[np.ndarray], dict[str, str]]:
    """Mean flat (y, x) of each amplifier, adu, empty where there is none, and by name the reason why there is none.

    Arguments are those of `continuity_amplifiers`.
    """
    where = np.flatnonzero((raw["exposure_type"].values == "flat") & raw["present"].values)
    images, missing = [], {}
    for amplifier in detector.amplifiers:
        try:
            images.append(_mean_flat(raw, where, amplifier, config, products))
        except CalibrationError as reason:
            images.append(np.empty((0, 0)))
            missing[amplifier.name] = str(reason)
    return images, missing


def _mean_flat(
    raw: xr.Dataset,
    where: np.ndarray,
    amplifier: Amplifier,
    config: ContinuityConfig,
    products: dict[str, xr.Dataset],
) -> np.ndarray:
    """Mean (y, x) of the flats of an amplifier, adu."""
    total, number = np.zeros(amplifier.data.shape), 0
    for first in range(0, len(where), _BLOCK):
        noise = ReadNoise(np.nan)
        for image in amplifier_images(raw, where[first : first + _BLOCK], amplifier, config.overscan, products, noise):
            middle = np.nanmedian(image)
            if np.isfinite(middle) and (config.brightest is None or middle < config.brightest):
                total += image
                number += 1
    if not number:
        raise InsufficientInputs("no usable flat")
    return total / number


def relative_gains(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: ContinuityConfig = ContinuityConfig()
) -> xr.Dataset:
    """Relative gains in each CCD, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats.
    camera : its camera.
    products : ``bias`` and ``linearity`` with a detector dim, or nothing.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier): of every CCD the product of all gains is one.

    Raises
    ------
    InsufficientInputs
        See `check_continuity`.
    """
    check_continuity(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), None, config, parts

    return map_detectors(continuity_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
