"""Broadband flats from a flat cube, for any source behind any filter, many in one pass (Secs. 2.8.1, 2.8.3, §7).

A pixel of a flat is a weighted sum of the slices (`weights`), and as the variance of a slice is a line in its value,
that of the flat is another. An amplifier's codes are read once, some wavelengths at a time into the same buffer, and
go into all sums (`sums`). The bits depend neither on how many are read at once nor on the other flats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.mapping import AmplifierResults, Output, empty_values, map_detectors
from lsstcal_dask.products.lowrank import LowRank, sum_maps
from lsstcal_dask.products.sums import Exceptions, Slices, exceptions_of, sum_slices
from lsstcal_dask.products.weights import Local, Weights, WeightsConfig, local_weights, without
from lsstcal_dask.variables import MASK_BITS, attributes

__all__ = ["COMPRESSION", "OUTPUTS", "SynthesisConfig", "Task", "outputs_of", "synthesis_amplifiers", "synthesize"]

OUTPUTS: Final = {"image": Output("float32", "1"), "variance": Output("float32", "1"), "mask": Output("uint16")}
"""Variables of synthetic flats, each with the dim ``spectrum``; `outputs_of` tells which there are."""

_MODE: Final = {"common_mode": Output("float32", "1")}

COMPRESSION: Final = ("compression_error", "compression_rms")
"""Attributes (spectrum) of flats made of maps: largest and typical difference to those of the slices."""


_NAMED: Final = 6  # wavelengths that a remark names


class SynthesisConfig(BaseModel):
    """How flats are synthesised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: WeightsConfig = WeightsConfig()
    variance: bool = Field(True, description="work out the variance too, which takes a sum more for each flat")
    modes: bool = Field(
        False, description="work out too what the error of the photodiode that all wavelengths share does to the pixels"
    )
    lost: float = Field(
        0.05, ge=0, lt=1, description="largest share of a pixel's light that may come from slices where it is unusable"
    )


def outputs_of(config: SynthesisConfig) -> dict[str, Output]:
    """Variables of the flats that are worked out."""
    plain = {var: out for var, out in OUTPUTS.items() if config.variance or var != "variance"}
    return plain | (_MODE if config.modes else {})


@dataclass(frozen=True, eq=False)
class Task:
    """What all CCDs of a synthesis have in common; called with what tells one of them."""

    weights: tuple[Weights, ...]
    camera: Camera
    amplifiers: tuple[str, ...]  # of the cube, in its order
    open_slices: Callable[[str], Slices]
    config: SynthesisConfig
    common: np.ndarray | None = None  # (k,) relative error of the response that all wavelengths share, for its mode
    maps: Callable[[str, int], LowRank | None] | None = None  # by detector and amplifier, in place of codes

    def __call__(self, source: xr.Dataset) -> AmplifierResults:
        """Flats of the amplifiers of one CCD, one after the other."""
        detector = self.camera.detector(str(source["detector"].values))
        return synthesis_amplifiers(self.open_slices(detector.name), detector, self)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The sums that an amplifier needs."""

    vectors: np.ndarray  # (sum, k) float64: first terms of the flats, further ones, variances, modes
    local: tuple[Local, ...]
    middle: np.ndarray  # (spectrum, k) weights in the middle of the amplifier
    share: np.ndarray  # (spectrum, k) of each slice in the light of a flat
    floor: np.ndarray  # (k,) of the variance of a slice, and of the variance of a pixel of typical response
    typical: np.ndarray  # (k,)


def synthesize(
    weights: Sequence[Weights],
    camera: Camera,
    amplifiers: Sequence[str],
    open_slices: Callable[[str], Slices],
    config: SynthesisConfig = SynthesisConfig(),
    *,
    common: np.ndarray | None = None,
    maps: Callable[[str, int], LowRank | None] | None = None,
) -> xr.Dataset:
    """Synthetic flats of the focal plane, lazily: one task for each CCD, whatever the number of wavelengths.

    Parameters
    ----------
    weights : one for each flat.
    amplifiers : of the cube, in its order.
    open_slices : gives the codes of the detector of a name; it goes to the workers.
    common : (k,) relative error of the response that all wavelengths share, for the mode of each flat.
    maps : gives what stands for the codes of an amplifier, if anything does, by detector and place in ``amplifiers``.

    Returns
    -------
    ``image`` (spectrum, detector, amplifier, y, x), of mean 1 over the focal plane, ``mask``, and if wanted
    ``variance`` and ``common_mode``.
    A task holds 10 bytes per pixel of its CCD and flat, and of one amplifier a block of codes and 4 bytes per pixel
    and sum, for any number of wavelengths. `synthesis_amplifiers` holds one amplifier only.
    """
    names = {
        "spectrum": [one.name or f"spectrum {i}" for i, one in enumerate(weights)],
        "detector": [detector.name for detector in camera.detectors],
        "amplifier": list(amplifiers),
    }
    source = xr.Dataset(coords={dim: (dim, np.array(n, dtype=object), attributes(dim)) for dim, n in names.items()})
    ny, nx = camera.image_shape
    sizes = {"spectrum": len(weights), "amplifier": len(amplifiers), "y": ny, "x": nx}
    task = Task(tuple(weights), camera, tuple(amplifiers), open_slices, config, common, maps)
    found = map_detectors(task, source, outputs_of(config), sizes, lambda name: ())
    return found.assign_attrs(
        gauge="the mean of the focal plane is 1",
        scale=[one.scale for one in weights],
        uncovered=[one.uncovered for one in weights],
    )


def synthesis_amplifiers(slices: Slices, detector: Detector, task: Task) -> AmplifierResults:
    """Flats of one CCD, amplifier after amplifier.

    Yields
    ------
    Name and Dataset ``image``, ``variance``, ``mask`` (spectrum, y, x) of an amplifier; NaN with a remark where slices
    that matter are missing, and a remark where others stand for some. Flats made of maps have attrs `COMPRESSION`.
    """
    usual = slices.mask()
    padding = [np.flatnonzero(bits & MASK_BITS["NO_DATA"]) for bits in usual]
    if slices.scale.shape != (task.weights[0].values.shape[1], len(task.amplifiers)):
        raise InconsistentGeometry(f"{detector.name}: weights and cube do not belong together: make them for this cube")
    lacking = np.isnan(slices.scale).all(axis=1)
    of_ccd = _absent("the CCD", task.weights, lacking)
    for amplifier in detector.amplifiers:
        a = task.amplifiers.index(amplifier.name)
        try:
            plan = _plan(slices, a, (detector, amplifier), task)
        except InsufficientInputs as error:
            yield amplifier.name, _nothing(len(task.weights), slices.shape, task.config, str(error))
            continue
        used = np.flatnonzero(plan.vectors.any(axis=0)).tolist()
        own = {k: exceptions_of(slices, k, a) for k in used}
        low = task.maps(detector.name, a) if task.maps else None
        totals = sum_slices(slices, a, plan.vectors, own) if low is None else sum_maps(low, plan.vectors, unknown=False)
        image, variance, mode = _flats(totals, plan, amplifier, slices.shape, task)
        _few_repeats(variance, plan, own, slices.repeats[:, a])
        mask = _masks(plan, own, usual[a])
        _without_unusable(image, variance, mask, _losses(plan, own), task.config.lost)
        mode[np.isnan(image[: len(mode)])] = np.nan
        for values in (image, variance, mode):
            values[:, padding[a]] = np.nan
        found = _dataset({"image": image, "variance": variance, "common_mode": mode, "mask": mask}, slices.shape)
        own_gaps = _absent("the amplifier", task.weights, np.isnan(slices.scale[:, a]) & ~lacking)
        found, of_ccd = found.assign_attrs(remarks=[text for text in (of_ccd, own_gaps) if text]), ""
        yield (
            amplifier.name,
            found if low is None else found.assign_attrs(_compression(low, plan, own, task.config.lost)),
        )


def _plan(slices: Slices, a: int, place: tuple[Detector, Amplifier], task: Task) -> _Plan:
    config, there = task.config.weights, np.isfinite(slices.scale[:, a])
    weights = [without(one, there, config) for one in task.weights]
    local = tuple(local_weights(one, *place, config.tolerance) for one in weights)
    middle = np.stack([one.at(np.zeros(()), np.zeros(())) for one in local])
    light = middle * task.weights[0].response
    slope, floor = (np.where(there, n[:, a], 0.0) for n in (slices.variance_slope, slices.variance_floor))
    rows = [one.values[:1] for one in local] + [one.values[1:] for one in local]
    rows += [middle**2 * slope] if task.config.variance else []
    rows += [middle * _common(task)] if task.config.modes else []
    typical = slope * task.weights[0].response + floor
    return _Plan(np.concatenate(rows), local, middle, light / light.sum(axis=1, keepdims=True), floor, typical)


def _common(task: Task) -> np.ndarray:
    """Relative error (k,) of the response that all wavelengths share; zero where it is not known."""
    return np.zeros(task.weights[0].values.shape[1]) if task.common is None else task.common


def _flats(
    totals: np.ndarray, plan: _Plan, amplifier: Amplifier, shape: tuple[int, int], task: Task
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flats (spectrum, y x), variances and modes (spectrum or none, y x).

    A mode is ``sum_k c_k w_k f_k - B sum_k c_k l_k``: what one sigma of the common error c of the response does to a
    flat B of mean 1, whose light l the slices share.
    """
    ny, nx = amplifier.data.shape
    v, u = (2 * np.arange(n, dtype=np.float32) / max(own - 1, 1) - 1 for n, own in zip(shape, (ny, nx), strict=True))
    image, term = totals[: len(plan.local)], len(plan.local)
    for one, own in zip(plan.local, image, strict=True):
        for i, j in one.powers[1:]:
            np.add(own, totals[term] * (v[:, None] ** int(j) * u ** int(i)).ravel(), out=own)
            term += 1
    variance = totals[term : term + len(image) * task.config.variance]
    variance += (plan.middle**2 @ plan.floor).astype(np.float32)[: len(variance), None]
    mode = totals[term + len(variance) :]
    light = np.array([weights.light @ _common(task) for weights in task.weights], np.float32)[: len(mode)]
    mode -= light[:, None] * image[: len(mode)]
    return image, variance, mode


def _few_repeats(variance: np.ndarray, plan: _Plan, odd: dict[int, Exceptions], full: np.ndarray) -> None:
    """Raise the variance of pixels that fewer exposures entered, by what a pixel of typical response gains."""
    for k, one in odd.items():
        few = ~one.unusable & (one.repeats > 0) & (one.repeats < full[k])
        if few.any() and len(variance):
            more = np.outer(plan.middle[:, k] ** 2 * plan.typical[k], full[k] / one.repeats[few] - 1)
            variance[:, one.at[few]] += more.astype(np.float32)


def _masks(plan: _Plan, odd: dict[int, Exceptions], usual: np.ndarray) -> np.ndarray:
    """Bits (spectrum, y x): those at all wavelengths, and those of values that went into a flat."""
    bits = np.repeat(usual.reshape(1, -1), len(plan.middle), axis=0)
    for k, one in odd.items():
        good = ~one.unusable & (one.mask != 0)
        weighs = (plan.middle[:, k] != 0)[:, None]
        bits[:, one.at[good]] |= np.where(weighs, one.mask[good], 0).astype(bits.dtype)
    return bits


def _losses(plan: _Plan, odd: dict[int, Exceptions]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n,) that were unusable in some slices, and the share (spectrum, n) of their light in these."""
    lost = {k: one.at[one.unusable] for k, one in odd.items()}
    at = np.unique(np.concatenate([np.zeros(0, np.intp), *lost.values()]))
    share = np.zeros((len(plan.share), len(at)))
    for k, own in lost.items():
        share[:, np.searchsorted(at, own)] += np.abs(plan.share[:, k, None])
    return at, share


def _without_unusable(
    image: np.ndarray, variance: np.ndarray, mask: np.ndarray, losses: tuple[np.ndarray, np.ndarray], most: float
) -> None:
    """Bring what is left of a pixel's light to all of it; say nothing where too much is lost."""
    at, share = losses
    kept = 1 - np.minimum(share, most)
    image[:, at] /= kept.astype(np.float32)
    if len(variance):
        variance[:, at] /= (kept**2).astype(np.float32)
    mask[:, at] |= np.where(share > 0, MASK_BITS["INTERPOLATED"], 0).astype(mask.dtype)
    mask[:, at] |= np.where(share > most, MASK_BITS["NO_DATA"], 0).astype(mask.dtype)
    for values in (image, variance):
        for own, part in zip(values, share, strict=False):
            own[at[part > most]] = np.nan


def _absent(what: str, weights: Sequence[Weights], absent: np.ndarray) -> str:
    """A remark on slices that are not there and whose light counts; empty where none is missing."""
    matter = absent & np.any([(one.values != 0).any(axis=0) for one in weights], axis=0)
    if not matter.any():
        return ""
    light = [np.abs(one.at(0.0, 0.0) * one.response) for one in weights]
    share = max(float(own[matter].sum() / own.sum()) for own in light)
    nm = ", ".join(f"{at:.1f}" for at in weights[0].wavelength[matter][:_NAMED])
    more = f" and {matter.sum() - _NAMED} more" if matter.sum() > _NAMED else ""
    return (
        f"{what} has no slices at {nm}{more} nm, where {share:.1%} of the light is: those nearby stand "
        f"for them: take these flats again"
    )


def _compression(low: LowRank, plan: _Plan, odd: dict[int, Exceptions], most: float) -> dict[str, list[float]]:
    """Largest and typical error of the flats that maps make.

    A place in the amplifier multiplies each term of the weights with 1 at most, so that the errors of the terms add;
    a pixel that lost a share of its light, ``most`` at most, is brought to all of it, and its error with it.
    """
    grown = 1 - np.minimum(np.max(_losses(plan, odd)[1], axis=1, initial=0.0), most)
    bound = [float(low.error_bound(one.values).sum()) for one in plan.local] / grown
    return dict(zip(COMPRESSION, (bound.tolist(), low.typical_error(plan.middle).tolist()), strict=True))


def _dataset(found: dict[str, np.ndarray], shape: tuple[int, int]) -> xr.Dataset:
    kept = {var: values for var, values in found.items() if len(values)}
    return xr.Dataset({var: (("spectrum", "y", "x"), values.reshape(-1, *shape)) for var, values in kept.items()})


def _nothing(spectra: int, shape: tuple[int, int], config: SynthesisConfig, reason: str) -> xr.Dataset:
    """Result of an amplifier that could not be made."""
    dims = ("spectrum", "y", "x")
    found = {var: (dims, empty_values(var, output, (spectra, *shape))) for var, output in outputs_of(config).items()}
    return xr.Dataset(found, attrs={"remarks": [reason]})
