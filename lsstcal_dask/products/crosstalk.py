"""Crosstalk between every two amplifiers of the camera, from spots of the projector (Lupton 2016, Sec. 2.6; ¶10f, §5).

Two passes. `spots` cuts the stamps of all sources out of their frames, detector by detector; here the frames of
one target detector are read, exposure after exposure, with the stamps of all sources lit in it. Normal equations
add up over exposures. Nothing is done for a source that is dark: time goes with the lit pairs.
Memory of a task: the frames of one detector of one exposure in electrons, the stamps of one exposure, and for
each amplifier the normal equations; for 3024 spots of 80 pixels 75 + 80 + 100 MB.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import binary_dilation
from scipy.special import erfc
from scipy.stats import chi2 as chi2_distribution

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.crosstalk_fit import (
    Normal,
    Patch,
    Solution,
    Stamp,
    Target,
    add_patch,
    enlarged,
    patches,
    solve,
)
from lsstcal_dask.products.electrons import Channel, channel, signal
from lsstcal_dask.products.spots import of_masks

__all__ = [
    "OUTPUTS",
    "CrosstalkConfig",
    "check_crosstalk",
    "crosstalk_amplifiers",
    "measure_crosstalk",
    "pair_sizes",
    "significant",
    "source_names",
]

OUTPUTS = {
    "crosstalk": Output("float32", "electron/electron"),
    "crosstalk_error": Output("float32", "electron/electron"),
    "crosstalk_quadratic": Output("float32", "1/electron"),
    "crosstalk_quadratic_error": Output("float32", "1/electron"),
}

_GUARD = 2  # px round a target's own spot that are not used
_WIDE = 4  # px round other light of its own: cosmic rays, a second spot


class CrosstalkConfig(BaseModel):
    """How coefficients are measured and which are told from zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: tuple[str, ...] = Field(("sparse", "single"), description="masks of the projector whose exposures are used")
    quadratic: bool = Field(True, description="measure a quadratic term where the levels of a source allow it")
    ratio: float = Field(1.5, gt=1, description="of the brightest to the faintest spot of a source: allows it")
    lit: float = Field(500.0, gt=0, description="electrons above the background that no crosstalk makes")
    condition: float = Field(1e4, gt=1, description="condition number from which on sources cannot be told apart")
    significance: Literal["sigma", "fdr"] = Field("sigma", description="fixed limits, or false discovery rate")
    within: float = Field(4.5, gt=0, description="sigma that tells a pair of one CCD from zero")
    between: float = Field(5.5, gt=0, description="the same, a pair of two CCDs")
    rate: float = Field(1e-3, gt=0, lt=1, description="false discovery rate q (Benjamini & Hochberg 1995)")
    overscan: OverscanConfig = OverscanConfig()


def _sources(camera: Camera) -> list[tuple[str, str]]:
    """Detector and amplifier of each source: detectors in turn, their amplifiers in the order of storage."""
    owned = {d.name: {a.name for a in d.amplifiers} for d in camera.detectors}
    return [(name, a) for name, own in owned.items() for a in camera.amplifier_names if a in own]


def source_names(camera: Camera) -> np.ndarray:
    """(source,) names of all amplifiers of the camera, as ``R22_S11/C10``."""
    return np.array([f"{detector}/{amplifier}" for detector, amplifier in _sources(camera)], dtype=object)


def pair_sizes(camera: Camera) -> dict[str, int]:
    """Sizes of the dims of the product."""
    return {"amplifier": len(camera.amplifier_names), "source": len(source_names(camera))}


def check_crosstalk(raw: xr.Dataset, config: CrosstalkConfig) -> None:
    """Refuse exposures that cannot hold spots of a sparse mask; raises InsufficientInputs, or as `spots.of_masks`."""
    if not of_masks(raw, config.masks).any():
        raise InsufficientInputs(
            f"crosstalk: no exposure was taken through mask {' or '.join(config.masks)}: ingest such (¶10f), "
            f"or name others in [crosstalk] masks"
        )


def significant(chi2: np.ndarray, freedom: np.ndarray, within: np.ndarray, config: CrosstalkConfig) -> np.ndarray:
    """(source,) bool: pairs told from zero; NaN never is.

    Parameters
    ----------
    chi2 : (source,) of all coefficients of a pair being zero, with ``freedom`` (source,) degrees of freedom.
    within : (source,) bool, pairs of one CCD.
    """
    chance = np.where(np.isfinite(chi2), chi2_distribution.sf(chi2, freedom), 1.0)
    if config.significance == "sigma":
        limit = np.where(within, config.within, config.between)
        return chance < erfc(limit / np.sqrt(2))
    order = np.sort(chance[np.isfinite(chi2)])
    passed = np.flatnonzero(order <= config.rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    return chance <= (order[passed[-1]] if len(passed) else -1.0)


@dataclass
class _Sums:
    """What one target amplifier has gathered."""

    amplifier: Amplifier
    channel: Channel
    place: int  # along the sources
    normal: Normal = field(default_factory=dict)
    nulls: list[tuple[float, float]] = field(default_factory=list)
    rough: int = 0  # patches refused


def crosstalk_amplifiers(
    raw: xr.Dataset, detector: Detector, camera: Camera, config: CrosstalkConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Coefficients of each amplifier of one detector as target, after all exposures have been read once.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,) of the target detector.
    products : ``gain`` and others of this detector; ``spots`` of all detectors.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier. NaN: unmeasured; 0: measured, and not told from zero.

    Raises
    ------
    InsufficientInputs
        No amplifier of the camera has a spot that can be used.
    """
    spots = _lit(products["spots"], camera)
    own = {name: product for name, product in products.items() if name != "spots"}
    names, remarks = source_names(camera), {}
    targets = []
    for amplifier in detector.amplifiers:
        try:
            ours = channel(amplifier, own)
            targets.append(_Sums(amplifier, ours, names.tolist().index(f"{detector.name}/{amplifier.name}")))
        except InsufficientInputs as error:
            remarks[amplifier.name] = str(error)
    counts = raw["counts"].variable
    stored = [str(name) for name in raw["amplifier"].values]
    bright = _levels(spots)
    for i in np.flatnonzero(raw["present"].values & of_masks(raw, config.masks)):
        stamps = _stamps(spots, str(raw["exposure"].values[i]))
        lying = patches(stamps, camera.raw_shape)
        for target in targets if lying else []:
            one = counts[i, stored.index(target.amplifier.name)].values
            _gather(target, one, stamps, lying, (config, bright[2]))
    curved = (bright[1] > config.ratio * bright[0]) & config.quadratic
    within = np.array([name.rpartition("/")[0] == detector.name for name in names])
    for amplifier in detector.amplifiers:
        own_sums = next((t for t in targets if t.amplifier is amplifier), None)
        solution = solve(own_sums.normal if own_sums else {}, len(names), curved, config.condition)
        solution, factor = enlarged(solution, own_sums.nulls if own_sums else [])
        result = _dataset(solution, within, config)
        result.attrs["remarks"] = _remarks(solution, own_sums, names) if own_sums else [remarks[amplifier.name]]
        if factor > 1:
            result.attrs["remarks"].append(
                f"sources that were not there scatter {factor:.2f} times their errors: errors enlarged by that"
            )
        result.attrs["summary"] |= _quality(solution, own_sums) if own_sums else {}
        yield amplifier.name, result


@dataclass(frozen=True)
class _Spots:
    """Numbers of all spots (exposure, source), and where their stamps are read when they are wanted."""

    exposures: list[str]
    names: np.ndarray  # (source,)
    numbers: dict[str, np.ndarray]  # spot_y, spot_x, spot_level, spot_used: NaN or False where there is none
    stamps: xr.Variable  # (exposure, detector, amplifier, y, x)
    places: list[tuple[int, int] | None]  # detector and amplifier of a source along `stamps`


def _lit(spots: xr.Dataset, camera: Camera) -> _Spots:
    """What ``spots`` holds, by source; raises InsufficientInputs if it is nothing."""
    there = [[str(name) for name in spots[dim].values] for dim in ("detector", "amplifier")]
    places = [(there[0].index(d), there[1].index(a)) if d in there[0] else None for d, a in _sources(camera)]
    numbers = {}
    for name in ("spot_y", "spot_x", "spot_level", "spot_used"):
        values = spots[name].values
        empty = np.zeros(len(values), bool) if values.dtype == bool else np.full(len(values), np.nan)
        numbers[name] = np.stack([empty if p is None else values[:, p[0], p[1]] for p in places], 1)
    if not numbers["spot_used"].any():
        raise InsufficientInputs(
            f"crosstalk: no spots found in {spots.sizes['exposure']} exposures: were they taken with the laser on? "
            f"See the remarks of 'spots'"
        )
    exposures = [str(name) for name in spots["exposure"].values]
    return _Spots(exposures, source_names(camera), numbers, spots["spot"].variable, places)


def _stamps(spots: _Spots, exposure: str) -> list[Stamp]:
    """Stamps of all sources that are lit in an exposure."""
    if exposure not in spots.exposures:
        return []
    i, found = spots.exposures.index(exposure), []
    y, x, level, used = (spots.numbers[name][i] for name in ("spot_y", "spot_x", "spot_level", "spot_used"))
    for source in np.flatnonzero(np.isfinite(level)).tolist():
        values = spots.stamps[(i, *spots.places[source])].values  # type: ignore[misc]
        inside = np.isfinite(values)
        if not inside.any():
            raise CalibrationError(
                f"spots of {spots.names[source]}, exposure {exposure}: the stamp is missing: build spots again"
            )
        ny, nx = (int(np.flatnonzero(inside.any(axis=axis))[-1]) + 1 for axis in (1, 0))
        cut = values[:ny, :nx]
        found.append(Stamp(source, int(y[source]), int(x[source]), cut, float(level[source]), bool(used[source])))
    return found


def _levels(spots: _Spots) -> np.ndarray:
    """Level of the faintest and the brightest spot of each source, electron, and how many it has (3, source)."""
    used = spots.numbers["spot_used"]
    level = spots.numbers["spot_level"]
    faintest = np.where(used, level, np.inf).min(0)
    return np.stack([faintest, np.where(used, level, 0.0).max(0), used.sum(0)])


def _gather(
    target: _Sums,
    counts: np.ndarray,
    stamps: list[Stamp],
    lying: list[Patch],
    context: tuple[CrosstalkConfig, np.ndarray],
) -> None:
    """Add one exposure of one target."""
    config, repeats = context
    seen = signal(counts, target.channel, config.overscan)
    box = target.amplifier.data
    usable = np.isfinite(seen.electrons)
    if target.channel.bad is not None:
        usable &= ~target.channel.bad
    own = next((s for s in stamps if s.source == target.place), None)
    if own is not None:
        hidden = np.zeros(target.amplifier.raw_shape, bool)
        hidden[own.box] = np.isfinite(own.values)
        usable &= ~binary_dilation(hidden, iterations=_GUARD)[box.slices]
    lit = usable & (seen.electrons > np.median(seen.electrons[::3, ::3]) + config.lit)
    if lit.any():
        usable &= ~binary_dilation(lit, iterations=_WIDE)
    one = Target(
        target.place,
        seen.electrons,
        box.y0,
        box.x0,
        usable,
        seen.noise,
        seen.row_variance,
        target.channel.plane_variance,
        None if own is None else own.centre,
    )
    for patch in lying:
        null = add_patch(target.normal, patch, one, int(max(repeats[list(patch.sources)])))
        if null is None:
            continue
        if np.isnan(null[0]):
            target.rough += 1
        else:
            target.nulls.append(null)


def _dataset(solution: Solution, within: np.ndarray, config: CrosstalkConfig) -> xr.Dataset:
    real = significant(solution.chi2, solution.freedom, within, config)
    measured = np.isfinite(solution.linear)
    linear = np.where(real, solution.linear, np.where(measured, 0.0, np.nan))
    # Spots of one brightness tell the sum of both terms: the linear one takes all, the quadratic stays unknown.
    quadratic = np.where(measured & ~real & np.isfinite(solution.quadratic), 0.0, solution.quadratic)
    values = {
        "crosstalk": linear,
        "crosstalk_error": solution.linear_error,
        "crosstalk_quadratic": quadratic,
        "crosstalk_quadratic_error": solution.quadratic_error,
    }
    summary = {"pairs": int(real.sum()), "measured": int(measured.sum())}
    variables = {name: ("source", value.astype(np.float32)) for name, value in values.items()}
    return xr.Dataset(variables, attrs={"remarks": [], "summary": summary})


def _quality(solution: Solution, target: _Sums) -> dict[str, Any]:
    """Numbers for the record: condition, and scatter over error of sources that were not there."""
    pulls = np.array([value / error for value, error in target.nulls])
    scatter = float(np.sqrt(np.mean(pulls**2))) if len(pulls) else None
    condition = solution.condition if np.isfinite(solution.condition) else None
    return {"condition": condition, "null_pulls": scatter, "nulls": len(pulls)}


def _remarks(solution: Solution, target: _Sums, names: np.ndarray) -> list[str]:
    others = np.arange(len(names)) != target.place
    lost = others & ~np.isfinite(solution.linear)
    found = []
    seen = {source for key in target.normal for source in key}
    if not seen:
        return ["no source was lit while this amplifier was dark: nothing measured"]
    together = [i for i in np.flatnonzero(lost) if i in seen]
    dark = int(lost.sum()) - len(together)
    if dark:
        found.append(f"note: {dark} sources were never lit while this amplifier was dark: unmeasured")
    if together:
        error = DegenerateSolution(
            f"{len(together)} sources ({names[together[0]]} ...) are lit together in every exposure: unmeasured: "
            f"light them apart (single mask, or the pattern moved by CCDs)"
        )
        found.append(str(error))
    patches_seen = target.rough + len(target.nulls)
    if target.rough > 0.1 * patches_seen:
        found.append(f"{target.rough} of {patches_seen} patches left out: the background is not smooth there")
    return found


def measure_crosstalk(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: CrosstalkConfig = CrosstalkConfig()
) -> xr.Dataset:
    """Measure crosstalk between all amplifiers of the camera, lazily: one task per target detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``.
    camera : its camera.
    products : ``gain`` and ``spots`` of the same exposures, ``bias`` and others if there are, with a detector dim.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier, source): electrons in the target per electron of the source.
    NaN where a pair, or its quadratic term, is unmeasured, exactly zero where it was measured and not told from zero;
    errors of both.

    Raises
    ------
    InsufficientInputs, CalibrationError
        See `check_crosstalk`, `crosstalk_amplifiers`.
    """
    check_crosstalk(raw, config)

    def arguments(name: str) -> tuple:
        parts = {k: p if k == "spots" else p.sel(detector=name) for k, p in products.items()}
        return camera, config, parts

    def run(part: xr.Dataset, *extra: Any) -> AmplifierResults:
        return crosstalk_amplifiers(part, camera.detector(str(part["detector"].values)), *extra)

    found = map_detectors(run, raw, OUTPUTS, pair_sizes(camera), arguments)
    return found.assign_coords(source=("source", source_names(camera)))
