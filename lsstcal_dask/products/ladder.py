"""A ladder of flats: which exposures it has, and the mean signal of an amplifier in each (Lupton 2016, Sec. 2.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels
from lsstcal_dask.products.curvefit import Ladder, clusters
from lsstcal_dask.statistics import robust_mean, robust_sigma

__all__ = [
    "Leveled",
    "Means",
    "Rungs",
    "find_rungs",
    "flat_means",
    "full_level",
    "level_images",
    "make_ladder",
    "plateau",
]

_REFERENCES: Final = 5  # flats of middle levels that say which pixels are good and how bright each is
_ODD: Final = 6.0  # sigma of the pixels' scatter beyond which a pixel is left out of all flats
_HIT: Final = 5.0  # sigma of its noise beyond which a pixel of one flat is replaced: cosmic rays
_EVEN: Final = 0.2  # scatter of full pixels over that of pixels with nearly as much light, at most
_STALE: Final = 3  # exposures of different times that report the very same charge
_DISAGREE: Final = 0.1  # relative, between photodiode and signal: far more than any amplifier bends
_LEVEL: Final = 0.05  # relative, between levels that count as different
_FLAT: Final = 0.9  # growth of signal with light, relative to that of the faint ones: less is a full well
_SAME: Final = 5.0  # known errors of the signal, by which two that are the same may differ


@dataclass(frozen=True)
class Rungs:
    """Exposures of a ladder by their headers alone."""

    place: np.ndarray  # (n,) index along ``exposure``
    names: list[str]
    light: np.ndarray  # (n,) C
    group: np.ndarray  # (n,) number of the lamp setting
    reasons: list[str]  # why others were left out, one line each


def find_rungs(raw: xr.Dataset, minimum: int) -> Rungs:
    """Flats with a photodiode charge, grouped by filter, wavelength and (where it is known) current of the lamp.

    A group of one level says nothing of linearity and is left out.

    Parameters
    ----------
    raw : ``photodiode`` (C), ``exposure_time``, ``filter``, ``wavelength`` and, where there is one, ``lamp_current``
        (A), all (exposure,).
    minimum : number of levels, 5 % apart, that are needed.

    Raises
    ------
    InsufficientInputs
        Fewer levels, or the photodiode is missing, stale or saturated in so many exposures that fewer remain.
    DegenerateSolution
        All flats have the same level.
    """
    flats = np.flatnonzero(raw["exposure_type"].values == "flat")
    names = np.array([str(name) for name in raw["exposure"].values])
    charge = np.asarray(raw["photodiode"].values, np.float64)
    reasons = _useless(names, charge, raw["exposure_time"].values, flats)
    use = np.array([i for i in flats if i not in reasons], int)
    setting = [_setting(raw, i) for i in use]
    keys = [key for key in dict.fromkeys(setting) if _levels(charge[use], [key == own for own in setting]) > 1]
    kept = np.array([key in keys for key in setting], bool)
    group = np.array([keys.index(key) for key in setting if key in keys], int)
    place = use[kept]
    found = max((_levels(charge[place], group == i) for i in range(len(keys))), default=0)
    why = f" ({next(iter(reasons.values()))})" if reasons else ""
    if found == 0 and len(use) > 1:
        raise DegenerateSolution(
            f"linearity: all {len(use)} flats of a lamp setting have the same level{why}: take {minimum} levels"
        )
    if found < minimum:
        raise InsufficientInputs(
            f"linearity: {found} levels of flats with a photodiode charge, at least {minimum} are needed{why}: "
            f"take a ladder of flats"
        )
    return Rungs(place, list(names[place]), charge[place], group, list(reasons.values()))


def _setting(raw: xr.Dataset, i: int) -> tuple[str, str, str]:
    current = float(raw["lamp_current"].values[i]) if "lamp_current" in raw.coords else np.nan
    return str(raw["filter"].values[i]), f"{float(raw['wavelength'].values[i]):.1f}", f"{current:.4g}"


def _levels(charge: np.ndarray, where: Sequence[bool] | np.ndarray) -> int:
    values = charge[np.asarray(where, bool)]
    return int(clusters(values, _LEVEL).max()) + 1 if len(values) else 0


def _useless(names: np.ndarray, charge: np.ndarray, seconds: np.ndarray, flats: np.ndarray) -> dict[int, str]:
    """Reason, by index, for which the charge of an exposure cannot be used."""
    found = {
        int(i): f"exposure {names[i]} left out: its photodiode charge is {charge[i]:g} C"
        for i in flats
        if not (np.isfinite(charge[i]) and charge[i] > 0)
    }
    values, counts = np.unique(charge[flats], return_counts=True)
    for value in values[(counts >= _STALE) & (values > 0)]:
        same = flats[charge[flats] == value]
        if np.ptp(seconds[same]) > 0.01 * seconds[same].max() or len(same) > 2 * _STALE:
            kind = "saturated" if value > 0.99 * values.max() else "stale"
            for i in same:
                found[int(i)] = (
                    f"exposure {names[i]} left out: its photodiode charge, {value:g} C, is {kind}: {len(same)} "
                    f"exposures have the very same"
                )
    return found


@dataclass(frozen=True, eq=False)
class Leveled:
    """One frame of an amplifier above its overscan."""

    image: np.ndarray  # (y, x) float32, adu above overscan and bias
    counts: np.ndarray  # (raw y, raw x), adu
    level: np.ndarray  # (y,) adu, of the overscan
    noise: float  # adu, read noise; NaN without overscan
    error: float  # adu, of the mean of the image, from noise of image and overscan


def level_images(
    raw: xr.Dataset, place: np.ndarray, amplifier: Amplifier, bias: np.ndarray | None, overscan: OverscanConfig
) -> Iterator[Leveled]:
    """Frames of an amplifier, read one after the other."""
    counts = raw["counts"].sel(amplifier=amplifier.name)
    for i in place:
        frame = counts.isel(exposure=int(i)).values
        reference = reference_pixels(frame[None], amplifier)
        found = row_levels(reference, overscan)
        image = (frame[amplifier.data.slices] - found.level[0][:, None]).astype(np.float32)
        if bias is not None:
            image -= bias[: image.shape[0], : image.shape[1]]
        noise = float(found.read_noise[0])
        pixels = max(reference.size - reference.shape[1] * overscan.skip, 1)
        known = noise if np.isfinite(noise) else 0.0
        yield Leveled(image, frame, found.level[0], noise, known * float(np.sqrt(1 / image.size + 1 / pixels)))


@dataclass(frozen=True, eq=False)
class Means:
    """Mean signals of an amplifier in the exposures of a ladder."""

    signal: np.ndarray  # (n,) adu
    floor: np.ndarray  # (n,) adu, error from read noise and overscan
    pixels: int  # that entered
    scatter: np.ndarray  # (n,) adu, of the pixels of an exposure: small where all are full


def flat_means(
    raw: xr.Dataset, rungs: Rungs, amplifier: Amplifier, bias: np.ndarray | None, overscan: OverscanConfig
) -> Means:
    """Mean of the good pixels of every flat of a ladder.

    The same pixels enter at every level, for a pixel that came and went would bend the curve: those whose share of
    the light in flats of middle levels is not odd. A pixel of one flat hit by a cosmic ray is replaced by its share.

    Raises
    ------
    InsufficientInputs
        The amplifier sees no light.
    """
    middle = np.argsort(np.abs(np.log(rungs.light / np.median(rungs.light))), kind="stable")[:_REFERENCES]
    shape, good = _reference([one.image for one in level_images(raw, rungs.place[middle], amplifier, bias, overscan)])
    signal, floor, scatter = np.empty((3, len(rungs.place)))
    for k, one in enumerate(level_images(raw, rungs.place, amplifier, bias, overscan)):
        values, share = one.image[good].astype(np.float64), shape[good]
        level = float(np.median(values)) / float(np.median(share))
        away = values - level * share
        spread = max(float(robust_sigma(away)), one.noise if one.noise > 0 else 0.0, 1e-6)
        hit = away > _HIT * spread
        values[hit] = level * share[hit]
        signal[k], floor[k], scatter[k] = values.mean(), one.error, float(robust_sigma(values))
    return Means(signal, floor, int(good.sum()), scatter)


def full_level(ladder: Ladder, scatter: np.ndarray) -> float:
    """Lowest reading of a pixel that is full, adu: 5 sigma below the flats in which all are; NaN without such.

    Of a plateau the pixels scatter by their noise alone, by less than a fifth of what the light makes of the brightest
    flat below it.

    Parameters
    ----------
    scatter : (n,) adu, of the pixels of each exposure of the ladder.
    """
    full = plateau(ladder)
    if not full.any() or full.all():
        return np.nan
    lit = scatter[~full][np.argmax(ladder.signal[~full])]
    level = (ladder.signal - _HIT * scatter)[full & (scatter < _EVEN * lit)]
    return float(level.min()) if level.size else np.nan


def _reference(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the light of each pixel (y, x) float64, of median one, and whether it is a good one."""
    levels = [float(np.median(image)) for image in images]
    if not min(levels) > 0:
        raise InsufficientInputs("it sees no light in the flats: its signal is zero or negative")
    shape = np.median([image / level for image, level in zip(images, levels, strict=True)], axis=0)
    rows, columns = np.median(shape, axis=1, keepdims=True), np.median(shape, axis=0, keepdims=True)
    away = shape - rows * columns / np.median(shape)
    good = np.abs(away) < _ODD * robust_sigma(away)
    return shape.astype(np.float64), good


def make_ladder(raw: xr.Dataset, rungs: Rungs, means: Means, minimum: int) -> tuple[Ladder, np.ndarray, list[str]]:
    """Ladder of the exposures whose photodiode and signal agree roughly.

    Returns
    -------
    The ladder, which of the rungs it holds, and remarks that name those it does not.

    Raises
    ------
    CalibrationError
        Photodiode and signal contradict each other in many exposures: one of them does not rise with the other.
    InsufficientInputs
        Fewer than ``minimum`` levels remain.
    """
    time = raw["time"].values[rungs.place]
    warm = raw["temperature"].values[rungs.place] if "temperature" in raw.coords else np.full(len(time), np.nan)
    whole = Ladder(
        signal=means.signal,
        light=rungs.light,
        seconds=raw["exposure_time"].values[rungs.place].astype(np.float64),
        days=(time - time.min()) / np.timedelta64(1, "D"),
        temperature=np.asarray(warm, np.float64),
        group=rungs.group,
        floor=means.floor,
    )
    full = plateau(whole)
    odd = _odd(whole) & ~full
    bad = [rungs.names[i] for i in np.flatnonzero(odd)]
    if len(bad) > 0.25 * len(odd):
        raise CalibrationError(
            f"photodiode and signal contradict each other in {len(bad)} of {len(odd)} flats, the first {bad[0]}: "
            f"the photodiode does not rise with the light: leave these flats out"
        )
    use = ~odd & (means.signal > 5 * np.maximum(means.floor, 1e-3))
    if _levels(means.signal, use) < minimum:
        raise InsufficientInputs(
            f"{_levels(means.signal, use)} levels of usable flats, at least {minimum} are needed: take more"
        )
    remarks = [f"exposure {name} left out: its photodiode contradicts its signal" for name in bad]
    return whole.take(use), use, remarks


def _odd(ladder: Ladder) -> np.ndarray:
    """Exposures whose signal per light is far from that of their group."""
    ratio, found = ladder.signal / ladder.light, np.zeros(len(ladder.light), bool)
    for group in np.unique(ladder.group):
        here = ladder.group == group
        middle = float(robust_mean(ratio[here], _DISAGREE * np.median(ratio[here])))
        slack = _DISAGREE * middle + 10 / ladder.light[here]  # some adu without light do not count
        found[here] = np.abs(ratio[here] - middle) > slack
    return found


def plateau(ladder: Ladder) -> np.ndarray:
    """Exposures (n,) in which the signal no longer follows the light: from a full well on.

    Of the highest level that still seems to follow it, those are full that are as bright as full ones.
    """
    found = np.zeros(len(ladder.light), bool)
    for group in np.unique(ladder.group):
        here = np.flatnonzero(ladder.group == group)
        number = clusters(ladder.light[here])
        size = np.bincount(number)
        light, signal = (np.bincount(number, v[here]) / size for v in (ladder.light, ladder.signal))
        growth, faint = np.diff(signal) / np.diff(light), np.median(signal / light)
        # signals that fall again are the fault of the photodiode
        lowest = np.minimum.accumulate(signal[:0:-1])[::-1]
        above = np.flatnonzero(
            (growth < _FLAT * faint) & (signal[1:] > 0.3 * signal.max()) & (lowest > 0.9 * signal[:-1])
        )
        if len(above):
            full = number > above[0]
            least = ladder.signal[here][full].min() - _SAME * ladder.floor[here]
            found[here] = full | (number == above[0]) & (ladder.signal[here] >= least)
    return found
