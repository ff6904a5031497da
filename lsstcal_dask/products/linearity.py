"""Linearity curve of every amplifier, from a ladder of flats and a photodiode (Lupton 2016, Sec. 2.3; ¶3, §2)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import CalibrationError, DegenerateSolution
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.bending import Model, spline_model
from lsstcal_dask.products.curvefit import (
    Ladder,
    Nuisance,
    Solution,
    choose_model,
    clusters,
    noise_model,
    solve,
    steps,
)
from lsstcal_dask.products.ladder import find_rungs, flat_means, full_level, make_ladder, plateau
from lsstcal_dask.variables import NOTE

__all__ = [
    "NODES",
    "OUTPUTS",
    "Fitted",
    "LinearityConfig",
    "check_linearity",
    "fit_ladder",
    "linearity_amplifiers",
    "measure_linearity",
]

OUTPUTS: Final = {
    name: Output("float64", "adu")
    for name in (
        "linearity_level",
        "linearity_correction",
        "linearity_error",
        "linearity_ceiling",
        "linearity_turnoff",
    )
}

NODES: Final = 96
"""Points of a curve, padded with NaN."""

_STEP: Final = 36.0  # chi2 by which two scales of the photodiode must be better than one: 6 sigma
_CURRENT: Final = 0.1  # relative, between currents of the photodiode that are different settings of the lamp
_FEWEST: Final = 4  # levels that must be left
_ROUNDS: Final = 2  # of model, noise and rejection
_MOST_SPLITS: Final = 3
_STIFF: Final = 0.8  # of the highest level, above which a curve that foretells the next level has no knot


class LinearityConfig(BaseModel):
    """How linearity curves are fitted (Sec. 2.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: int = Field(8, ge=6, description="levels of the ladder, 5 % apart, that are needed")
    clip: float = Field(5.0, gt=3, description="sigma beyond which an exposure is left out")
    turnoff_sigma: float = Field(3.0, gt=0, description="sigma of a residual that marks the turnoff, and ...")
    turnoff: float = Field(5e-4, gt=0, description="its relative size")
    leak: float = Field(0.3, ge=0, description="adu rms of light that the photodiode does not see")
    drift: float = Field(2e-4, ge=0, description="relative rms drift of the photodiode over a day")
    temperature: float = Field(2e-3, ge=0, description="1/K rms, slope of the gain with temperature")
    shutter: float = Field(1e-3, ge=0, description="s rms by which detector and photodiode see different times")
    bend: float = Field(0.02, gt=0, description="rms change of slope from dark to the brightest flat, roughly")
    overscan: OverscanConfig = OverscanConfig()

    @property
    def nuisance(self) -> Nuisance:
        """Widths of the priors."""
        return Nuisance(self.leak, self.drift, self.temperature, self.shutter, self.bend)


def check_linearity(raw: xr.Dataset, config: LinearityConfig) -> None:
    """Refuse flats that make no ladder, by their headers alone; raises as `find_rungs`."""
    find_rungs(raw, config.minimum)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The curve of one amplifier, and how its ladder was used."""

    solution: Solution
    ladder: Ladder  # what entered the fit
    used: np.ndarray  # (n,) bool, of the exposures given
    turnoff: float  # adu, measured; NaN where the ladder does not reach it
    split: list[tuple[int, float]]  # exposures from which on the photodiode had another scale, and the step


def fit_ladder(ladder: Ladder, config: LinearityConfig = LinearityConfig()) -> Fitted:
    """Fit the curve; find turnoff, outliers and changes of the photodiode's scale.

    The turnoff is the lowest level from which on all levels lie further than ``turnoff_sigma`` and ``turnoff`` from
    what the curve of those below says, straight on. What lies above takes no part.
    """
    prior = config.nuisance
    full = plateau(ladder)
    split: list[tuple[int, float]] = []
    while True:
        found, use = _fit(ladder, ~full, config.clip, prior)
        peeled = _peel(ladder, use, found, config)
        if peeled.any():
            full |= peeled
            found, use = _fit(ladder, ~full, config.clip, prior)
        step = _find_step(ladder, use, found, prior) if len(split) < _MOST_SPLITS else None
        if step is None:
            break
        index, size, group = step
        split.append((index, size))
        ladder = replace(ladder, group=group)
    top = float(ladder.signal[use].max())
    bad = full & (ladder.signal > 0.9 * top)
    return Fitted(found, ladder.take(use), use, _turnoff(ladder, bad, found) if bad.any() else np.nan, split)


def _fit(ladder: Ladder, use: np.ndarray, clip: float, prior: Nuisance) -> tuple[Solution, np.ndarray]:
    """Model, noise and outliers in turn."""
    part = ladder.take(use)
    variance = 1e-8 + (part.floor / part.signal) ** 2 + 1e-3 / part.signal / max(np.sqrt(len(part.signal)), 1)
    first = replace(spline_model(float(part.signal.max())), bend=prior.bend)
    found = solve(part, first, variance, prior)
    for _ in range(_ROUNDS):
        variance = noise_model(part, found.model, prior, variance)
        found = choose_model(part, variance, prior)
        wild = np.abs(found.pull) > clip
        if wild.any():
            use = use.copy()
            use[np.flatnonzero(use)[wild]] = False
            part, variance = ladder.take(use), variance[~wild]
            if clusters(part.signal).max() < _FEWEST:
                raise DegenerateSolution(
                    f"of {len(wild)} flats most contradict each other: photodiode and signal have nothing in common"
                )
            found = solve(part, spline_model(float(part.signal.max()), found.model), variance, prior)
    return solve(part, found.model, noise_model(part, found.model, prior, variance), prior), use


def _find_step(
    ladder: Ladder, use: np.ndarray, found: Solution, prior: Nuisance
) -> tuple[int, float, np.ndarray] | None:
    """First exposure after a change of scale, in order of time or of the photodiode's current, with the new groups."""
    part, where = ladder.take(use), np.flatnonzero(use)
    best: tuple[float, int, float, np.ndarray] | None = None
    for key, gap in ((part.days, 0.0), (part.light / np.maximum(part.seconds, 1e-9), _CURRENT)):
        order = np.argsort(key, kind="stable")
        # a current that differs by its noise alone would sort exposures by that noise
        allowed = np.diff(key[order], prepend=key[order[0]]) > gap * key[order]
        place, gain, size = steps(part, found, order, allowed, prior)
        if gain > _STEP and (best is None or gain > best[0]):
            best = gain, int(where[order[place]]), size, _split(ladder, key, part, order[place])
    return None if best is None else best[1:]


def _split(ladder: Ladder, key: np.ndarray, part: Ladder, first: int) -> np.ndarray:
    """Groups (n,) after every group is cut in two before ``key[first]``."""
    whole = ladder.days if key is part.days else ladder.light / np.maximum(ladder.seconds, 1e-9)
    group = 2 * ladder.group + (whole >= key[first])
    return np.unique(group, return_inverse=True)[1]


def _peel(ladder: Ladder, use: np.ndarray, found: Solution, config: LinearityConfig) -> np.ndarray:
    """Levels at the top that the curve of those below does not foretell: those whose amplifier begins to saturate."""
    peeled, prior = np.zeros(len(use), bool), config.nuisance
    variance = np.full(len(use), np.nan)
    variance[use] = found.variance
    while True:
        left = use & ~peeled
        number = clusters(ladder.light[left])
        if number.max() < config.minimum:
            return peeled
        last = np.flatnonzero(left)[number == number.max()]
        rest = left.copy()
        rest[last] = False
        part = ladder.take(rest)
        if not np.isin(ladder.group[last], part.group).all():
            return peeled
        model = _below(found.model, part)
        below = solve(part, model, variance[rest], prior)
        # the k of the level that is asked about are those of its group below
        scale = np.array([np.median((below.light / part.light)[part.group == g]) for g in ladder.group[last]])
        level = ladder.signal[last]
        correction, covariance = below.correction(level)
        away = float(np.mean((level + correction) / (scale * ladder.light[last]) - 1))
        error = float(np.sqrt(np.mean(np.diag(covariance) / level**2) + np.mean(variance[last]) / len(last)))
        if abs(away) < config.turnoff or abs(away) < config.turnoff_sigma * error:
            return peeled
        peeled[last] = True


def _below(model: Model, part: Ladder) -> Model:
    """The model without its highest knots, so that it cannot follow a few levels that begin to saturate."""
    top = float(part.signal.max())
    knots = tuple(knot for knot in model.knots if knot < _STIFF * top)
    corner = model.corner if model.corner < _STIFF * top else np.nan
    return replace(model, knots=knots, top=top, corner=corner)


def _turnoff(ladder: Ladder, bad: np.ndarray, found: Solution) -> float:
    """Where the straight line through the lowest two bad levels meets what the curve foretells, adu measured.

    It lies between the highest good level and the lowest bad one.
    """
    top = found.model.top
    number = clusters(ladder.light[bad])
    size = np.bincount(number)
    light, signal = (np.bincount(number, v[bad]) / size for v in (ladder.light, ladder.signal))
    scale = _scale(ladder, bad, found)
    # measured signal that was to be expected: L**-1(k D), with L straight beyond the top
    wanted = scale * light
    for _ in range(50):
        wanted = scale * light - found.correction(wanted)[0]
    lower = float(signal[0])
    if len(signal) > 1 and wanted[1] > wanted[0]:
        slope = float(np.clip((signal[1] - signal[0]) / (wanted[1] - wanted[0]), 0.0, 0.9))
        lower = float((signal[0] - slope * wanted[0]) / (1 - slope))
    return float(np.clip(lower, top, max(top, float(signal[0]))))


def _scale(ladder: Ladder, bad: np.ndarray, found: Solution) -> float:
    """True adu per coulomb near the top of the curve."""
    good = np.flatnonzero(~bad)
    near = good[np.argsort(np.abs(ladder.signal[good] - found.model.top))[:6]]
    level = ladder.signal[near]
    return float(np.median((level + found.correction(level)[0]) / ladder.light[near]))


def linearity_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: LinearityConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Curve of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` and the header table; flats.
    products : of this detector: ``bias``, whose structure otherwise stays in the flats; ``gain`` with a ``ptc_turnoff``
        and ``saturation``, which may lower the ceiling. All may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier; NaN with a remark where no curve could be fitted.
    """
    raw = raw.isel(exposure=np.flatnonzero(raw["present"].values))
    rungs = find_rungs(raw, config.minimum)
    for amplifier in detector.amplifiers:
        try:
            bias = products["bias"]["image"].sel(amplifier=amplifier.name).values if "bias" in products else None
            means = flat_means(raw, rungs, amplifier, bias, config.overscan)
            ladder, kept, remarks = make_ladder(raw, rungs, means, config.minimum)
            names = [name for name, good in zip(rungs.names, kept, strict=True) if good]
            fitted = fit_ladder(ladder, config)
        except CalibrationError as error:
            yield amplifier.name, _without_curve(str(error))
            continue
        limits = _limits(products, amplifier)
        full = full_level(ladder, means.scatter[kept])
        result = _dataset(fitted, limits | ({"full": full} if np.isfinite(full) else {}))
        left_out = [f"{NOTE}{reason}" for reason in rungs.reasons]
        result.attrs["remarks"] = left_out + remarks + _remarks(fitted, ladder, names) + result.attrs["remarks"]
        yield amplifier.name, result


def _limits(products: dict[str, xr.Dataset], amplifier: Amplifier) -> dict[str, float]:
    """Levels, adu, above which other products say that an amplifier is not to be trusted."""
    gain = np.nan
    if "gain" in products:
        gain = float(products["gain"]["gain"].sel(amplifier=amplifier.name))
    found: dict[str, float] = {}
    for product, name in (
        ("gain", "ptc_turnoff"),
        ("ptc", "ptc_turnoff"),
        ("saturation", "ptc_turnoff"),
        ("saturation", "well_bloom"),
    ):
        if product in products and name in products[product]:
            value = products[product][name].sel(amplifier=amplifier.name)
            level = float(value) / (gain if value.attrs.get("units", "electron") == "electron" else 1.0)
            if np.isfinite(level):
                found[name] = min(level, found.get(name, np.inf))
    return found


def _remarks(fitted: Fitted, ladder: Ladder, names: list[str]) -> list[str]:
    found = [
        f"photodiode changed its scale by {step:+.2e} at exposure {names[i]} (another range?): fitted as two groups"
        for i, step in fitted.split
    ]
    top = fitted.solution.model.top
    wild = np.flatnonzero(~fitted.used & (ladder.signal <= 0.999 * top))
    text = f"{len(wild)} of {len(names)} exposures left out as outliers: " + ", ".join(names[i] for i in wild[:3])
    if len(wild):
        found.append(text if len(wild) > max(2, 0.05 * len(names)) else f"{NOTE}{text}")
    return found


def _nodes(model: Model) -> np.ndarray:
    """Levels of the exported curve: between the knots as many as there is room for, crowded near zero and a corner."""
    edges = [0.0, *model.knots, model.top]
    near = model.top * np.array([-0.012, -0.006, -0.002, 0.0, 0.002, 0.006, 0.012])
    extra = model.corner + near if np.isfinite(model.corner) else np.empty(0)
    each = (NODES - len(extra) - 6) // (len(edges) - 1)
    between = [np.linspace(a, b, each + 1)[1:] for a, b in pairwise(edges)]
    start = between[0][0] * np.array([0.0, 1 / 8, 1 / 4, 1 / 2])
    return np.unique(np.concatenate([start, *between, extra]))


def _dataset(fitted: Fitted, limits: dict[str, float]) -> xr.Dataset:
    """Curve of one amplifier as stored, in the gauge L'(0) = 1."""
    solution = fitted.solution
    level = _nodes(solution.model)
    correction, covariance = solution.correction(level)
    correction[0] = 0.0
    correction[1] = correction[2] / 4  # a parabola at first: the Akima spline then has no slope at zero
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    # not the turnoff: between the highest level that was fitted and that nothing tells the curve
    ceiling = min([level[-1], *limits.values()])
    remarks = []
    if np.isnan(fitted.turnoff):
        remarks.append(f"{NOTE}the flats end at {level[-1]:.0f} adu, below the turnoff: unknown above")
    pad = (0, NODES - len(level))
    rms = float(np.sqrt(np.mean(solution.residual**2)))
    values = {
        "linearity_level": ("node", np.pad(level, pad, constant_values=np.nan)),
        "linearity_correction": ("node", np.pad(correction, pad, constant_values=np.nan)),
        "linearity_error": ("node", np.pad(error, pad, constant_values=np.nan)),
        "linearity_ceiling": ((), float(ceiling)),
        "linearity_turnoff": ((), fitted.turnoff),
    }
    summary = {
        "exposures": int(fitted.used.sum()),
        "residual": rms,
        "inverse_signal": float(np.mean(1 / fitted.ladder.signal)),  # 1/adu: what photons add to the residual goes so
        "bend": solution.model.bend,
        "corner": float(solution.model.corner) if np.isfinite(solution.model.corner) else None,
        "ceiling": float(ceiling),
        "largest_correction": float(np.abs(correction[1:] / level[1:]).max()),
    }
    return xr.Dataset(values, attrs={"remarks": remarks, "summary": summary})


def _without_curve(reason: str) -> xr.Dataset:
    nothing = np.full(NODES, np.nan)
    curves = dict.fromkeys(("linearity_level", "linearity_correction", "linearity_error"), ("node", nothing))
    numbers = dict.fromkeys(("linearity_ceiling", "linearity_turnoff"), ((), np.nan))
    return xr.Dataset(curves | numbers, attrs={"remarks": [reason], "summary": {}})


def measure_linearity(
    raw: xr.Dataset,
    camera: Camera,
    products: dict[str, xr.Dataset] | None = None,
    config: LinearityConfig = LinearityConfig(),
) -> xr.Dataset:
    """Measure linearity curves, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats with ``photodiode``, C.
    products : see `linearity_amplifiers`, with a detector dim.

    Returns
    -------
    Dataset with `OUTPUTS`: nodes of each curve (detector, amplifier, node), adu, for `isr.linearity`; the ceiling above
    which it is unreliable, and the turnoff (NaN where the flats do not reach it), (detector, amplifier), adu measured.

    Raises
    ------
    InsufficientInputs, DegenerateSolution
        See `find_rungs`.
    """
    check_linearity(raw, config)
    given = products or {}

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in given.items()}
        return camera.detector(name), None, config, parts

    sizes = {"amplifier": raw.sizes["amplifier"], "node": NODES}
    return map_detectors(linearity_amplifiers, raw, OUTPUTS, sizes, arguments)
