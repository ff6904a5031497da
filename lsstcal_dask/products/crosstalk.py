"""Crosstalk between every two amplifiers of the camera, from spots of the projector (Lupton 2016, Sec. 2.6; ¶10f, §5).

Two passes. `spots` cuts the stamps of all sources out of their frames, detector by detector; here the frames of
one target detector are read, exposure after exposure, with the stamps of all sources lit in it. Normal equations
add up over exposures. Nothing is done for a source that is dark: time goes with the lit pairs.
Memory of a task: the frames of one detector of one exposure as counts and in electrons, the stamps of one exposure,
and for its amplifiers the normal equations of sources that are ever read together: of 3024 spots of 80 pixels 150 +
80 MB, and 1 MB where each is lit alone, 100 MB where the same 63 boards share each of 48 cells in some exposure.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import binary_dilation
from scipy.special import erfc
from scipy.stats import chi2 as chi2_distribution

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.crosstalk_fit import Normal, Solution, Targets, add_patch, enlarged, solve
from lsstcal_dask.products.crosstalk_patches import Stamp, patches
from lsstcal_dask.products.crosstalk_sources import levels, lit_spots, source_names, stamps_of
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
    quadratic: bool | Literal["within"] = Field(
        True, description="measure a quadratic term where the levels of a source allow it; 'within': of one CCD only"
    )
    ratio: float = Field(1.5, gt=1, description="of the brightest to the faintest spot of a source: allows it")
    lit: float = Field(500.0, gt=0, description="electrons above the background that no crosstalk makes")
    condition: float = Field(1e4, gt=1, description="condition number from which on sources cannot be told apart")
    significance: Literal["sigma", "fdr"] = Field("sigma", description="fixed limits, or false discovery rate")
    within: float = Field(4.5, gt=0, description="sigma that tells a pair of one CCD from zero")
    between: float = Field(5.5, gt=0, description="the same, a pair of two CCDs")
    rate: float = Field(1e-3, gt=0, lt=1, description="false discovery rate q (Benjamini & Hochberg 1995)")
    overscan: OverscanConfig = OverscanConfig()


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


@dataclass(frozen=True)
class _Target:
    """A target amplifier that can be measured."""

    amplifier: Amplifier
    channel: Channel
    source: int  # its place along the sources
    stored: int  # along the amplifiers of the frames


@dataclass(frozen=True)
class _Sums:
    """What the targets of a CCD have gathered."""

    targets: list[_Target]
    normal: Normal
    nulls: list[np.ndarray]  # (target, 2), of each patch: see `add_patch`


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
    spots = lit_spots(products["spots"], camera)
    names = source_names(camera)
    within = np.array([name.rpartition("/")[0] == detector.name for name in names])
    faintest, brightest, repeats = levels(spots)
    curved = (brightest > config.ratio * faintest) & _may_curve(config.quadratic, within)
    sums, remarks = _targets(raw, detector, names, products)
    for i in np.flatnonzero(raw["present"].values & of_masks(raw, config.masks)):
        stamps = stamps_of(spots, str(raw["exposure"].values[i]))
        if stamps and sums.targets:
            seen = _seen(raw["counts"].variable[i].values, sums.targets, stamps, config)
            for patch in patches(stamps, camera.raw_shape, curved):
                sums.nulls.append(add_patch(sums.normal, patch, seen, int(repeats[patch.index].max())))
    nulls = np.stack(sums.nulls) if sums.nulls else np.zeros((0, len(sums.targets), 2))
    for t, target in enumerate(sums.targets):
        solution = solve(sums.normal, len(names), curved, config.condition, t)
        yield target.amplifier.name, _result(solution, (target, nulls[:, t]), names, within, config)
    for name, remark in remarks.items():
        result = _dataset(solve({}, len(names), curved, config.condition), within, config)
        result.attrs["remarks"] = [remark]
        yield name, result


def _targets(
    raw: xr.Dataset, detector: Detector, names: np.ndarray, products: dict[str, xr.Dataset]
) -> tuple[_Sums, dict[str, str]]:
    """Nothing gathered yet by the targets of a CCD; by name, why an amplifier can be none."""
    own = {name: product for name, product in products.items() if name != "spots"}
    stored = [str(name) for name in raw["amplifier"].values]
    places, found, remarks = names.tolist(), [], {}
    for one in detector.amplifiers:
        try:
            ours = channel(one, own)
        except InsufficientInputs as error:
            remarks[one.name] = str(error)
        else:
            found.append(_Target(one, ours, places.index(f"{detector.name}/{one.name}"), stored.index(one.name)))
    return _Sums(found, {}, []), remarks


def _may_curve(quadratic: bool | str, within: np.ndarray) -> np.ndarray:
    """(source,) bool: a quadratic term is asked for."""
    return within if quadratic == "within" else np.full(within.shape, bool(quadratic))


def _seen(counts: np.ndarray, targets: list[_Target], stamps: list[Stamp], config: CrosstalkConfig) -> Targets:
    """The targets in one exposure, ``counts`` (amplifier, y, x)."""
    lit = {stamp.source: stamp for stamp in stamps}
    electrons = np.zeros((len(targets), *counts.shape[1:]), np.float32)
    usable, numbers = np.zeros(electrons.shape, bool), []
    for t, target in enumerate(targets):
        box, own = target.amplifier.data, lit.get(target.source)
        seen = signal(counts[target.stored], target.channel, config.overscan)
        electrons[(t, *box.slices)] = seen.electrons
        good = np.isfinite(seen.electrons)
        if target.channel.bad is not None:
            good &= ~target.channel.bad
        usable[(t, *box.slices)] = good
        if own is not None:
            usable[(t, *box.slices)] &= ~_round(own, counts.shape[1:])[box.slices]
        bright = usable[t] & (electrons[t] > np.median(seen.electrons[::3, ::3]) + config.lit)
        if bright.any():
            usable[t] &= ~binary_dilation(bright, iterations=_WIDE)
        centre = (np.nan, np.nan) if own is None else own.centre
        numbers.append((target.source, seen.noise, seen.row_variance, target.channel.plane_variance, *centre))
    source, noise, rows, common, y, x = np.array(numbers).T
    return Targets(source.astype(int), electrons, usable, noise, rows, common, np.stack([y, x], 1))


def _round(own: Stamp, shape: tuple[int, ...]) -> np.ndarray:
    """(y, x) bool: a spot and a few pixels round it."""
    hidden = np.zeros(shape, bool)
    hidden[own.box] = np.isfinite(own.values)
    return binary_dilation(hidden, iterations=_GUARD)


def _result(
    solution: Solution,
    seen: tuple[_Target, np.ndarray],
    names: np.ndarray,
    within: np.ndarray,
    config: CrosstalkConfig,
) -> xr.Dataset:
    """The product of one target, and what it says of itself; its nulls (patch, 2) are those of `add_patch`."""
    target, nulls = seen
    rough, nulls = int(np.isnan(nulls[:, 0]).sum()), nulls[np.isfinite(nulls[:, 1])]
    solution, factor = enlarged(solution, nulls)
    result = _dataset(solution, within, config)
    result.attrs["remarks"] = _remarks(solution, target, names, (rough, len(nulls)))
    if factor > 1:
        result.attrs["remarks"].append(
            f"sources that were not there scatter {factor:.2f} times their errors: errors enlarged by that"
        )
    result.attrs["summary"] |= _quality(solution, nulls)
    return result


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


def _quality(solution: Solution, nulls: np.ndarray) -> dict[str, Any]:
    """Numbers for the record: condition, and scatter over error of sources that were not there."""
    scatter = float(np.sqrt(np.mean((nulls[:, 0] / nulls[:, 1]) ** 2))) if len(nulls) else None
    condition = solution.condition if np.isfinite(solution.condition) else None
    return {"condition": condition, "null_pulls": scatter, "nulls": len(nulls)}


def _remarks(solution: Solution, target: _Target, names: np.ndarray, patches_seen: tuple[int, int]) -> list[str]:
    others = np.arange(len(names)) != target.source
    lost = others & ~np.isfinite(solution.linear)
    found = []
    if not solution.seen.any():
        return ["no source was lit while this amplifier was dark: nothing measured"]
    together = np.flatnonzero(lost & solution.seen)
    dark = int(lost.sum()) - len(together)
    if dark:
        found.append(f"note: {dark} sources were never lit while this amplifier was dark: unmeasured")
    if len(together):
        error = DegenerateSolution(
            f"{len(together)} sources ({names[together[0]]} ...) are lit together in every exposure: unmeasured: "
            f"light them apart (single mask, or the pattern moved by CCDs)"
        )
        found.append(str(error))
    rough, fitted = patches_seen
    if rough > 0.1 * (rough + fitted):
        found.append(f"{rough} of {rough + fitted} patches left out: the background is not smooth there")
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
