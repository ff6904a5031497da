"""Monochromatic flats of one wavelength combined: what every pixel makes of a photon (Lupton 2016, ¶9, §7, Sec. 2.8).

With I_k the electrons of exposure k after ISR without a flat, P_k the photons on the photodiode and m the level of an
amplifier per photon,

    f = sum w_k I_k / P_k / sum w_k,    w_k = P_k**2 / (m P_k + s_k**2)

s_k is the noise without light. Weights are those of an amplifier, of model counts: those of a pixel's own counts would
draw the mean to its low values. Without hits the variance of a pixel is a line in its value,

    variance = slope f + floor,    slope = sum w**2 / P / (sum w)**2,    floor = sum w**2 s**2 / P**2 / (sum w)**2

and all pixels share the error of the photodiode, sigma_P f, which is kept apart as that of the mean response r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.products.cosmics import grow_hits
from lsstcal_dask.variables import MASK_BITS

__all__ = ["Combined", "MonochromaticConfig", "Repeat", "choose_repeats", "combine_repeats", "gaps", "make_repeat"]

_UNUSABLE: Final = MASK_BITS["NO_DATA"] | MASK_BITS["SATURATED"] | MASK_BITS["COSMIC_RAY"]
_IDLE: Final = MASK_BITS["BAD"] | MASK_BITS["EDGE"] | MASK_BITS["VIGNETTED"] | MASK_BITS["SUSPECT"]
_LOW: Final = 0.5  # of the limit of a hit, for pixels that touch one
_SPARSE: Final = 29  # of so many pixels one is enough for a level
_GAP: Final = 1.5  # typical steps


class MonochromaticConfig(BaseModel):
    """How monochromatic flats become slices of a cube: table ``[cube]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: float = Field(6.0, gt=3, description="sigma of the noise model beyond which a pixel of an exposure is a hit")
    faintest: float = Field(200.0, ge=0, description="electrons, level of a CCD below which a flat is left out")
    brightest: float = Field(150_000.0, gt=0, description="electrons, level of a CCD above which a flat is left out")
    saturated: float = Field(0.02, ge=0, le=1, description="part of the pixels that may be saturated")
    dead: float = Field(0.05, ge=0, lt=1, description="level of an amplifier, of that of its CCD, at which it is dead")
    disagree: float = Field(0.03, gt=0, description="relative, between level and photodiode of repeats: 3 are needed")
    mismatch_nm: float = Field(0.3, gt=0, description="between the wavelength asked for and the measured one")
    mismatch: Literal["refuse", "flag"] = Field("refuse", description="what becomes of a flat beyond mismatch_nm")
    repeat_nm: float = Field(0.05, ge=0, description="wavelengths asked for that differ by less are repeats")
    compare_nm: float = Field(3.0, ge=0, description="a single flat is searched for hits with others so near")
    structure: float = Field(0.01, ge=0, description="relative change of the pixels' pattern over compare_nm")
    bandwidth: float = Field(1.0, gt=0, description="nm, of exposures of which it is not known")
    photodiode_error: float = Field(2e-4, ge=0, description="relative, of one exposure, beside its responsivity's")
    responsivity: Literal["table", "none"] = Field(
        "table", description="of the photodiode: of the input 'photodiode', or an ideal one where there is none"
    )


@dataclass(frozen=True)
class Repeat:
    """One exposure of one CCD, corrected."""

    exposure: str
    image: np.ndarray  # (amplifier, y, x) float32, electron
    mask: np.ndarray  # (amplifier, y, x) uint16
    photons: float  # on the photodiode
    level: np.ndarray  # (amplifier,) electron: median of the good pixels; NaN of a dead one
    noise: np.ndarray  # (amplifier,) electron**2, variance of a pixel without light
    saturated: float  # part of the pixels of the CCD

    @property
    def mean_level(self) -> float:
        """Electrons, median of the amplifiers that live."""
        alive = self.level[np.isfinite(self.level)]
        return float(np.median(alive)) if alive.size else float("nan")


@dataclass(frozen=True)
class Combined:
    """One CCD at one wavelength."""

    value: np.ndarray  # (amplifier, y, x) float32, electron/photon; NaN where nothing is known
    mask: np.ndarray  # (amplifier, y, x) uint16
    repeats: np.ndarray  # (amplifier, y, x) uint8, exposures that entered
    full: np.ndarray  # (amplifier,) exposures in which it lives: what enters a pixel that nothing befell
    slope: np.ndarray  # (amplifier,), see above
    floor: np.ndarray  # (amplifier,)
    total: float  # sum of the values of good pixels
    pixels: int  # number of these
    hits: list[int]  # pixels of each exposure that a cosmic ray hit


def make_repeat(frame: Frame, photons: float) -> Repeat:
    """Keep of a corrected frame (electrons) what the combination needs."""
    amplifiers = len(frame.image)
    level, noise = np.full(amplifiers, np.nan), np.full(amplifiers, np.nan)
    for i in range(amplifiers):
        good = frame.mask[i].reshape(-1)[::_SPARSE] == 0
        image = frame.image[i].reshape(-1)[::_SPARSE][good].astype(float)
        if image.size:
            level[i] = np.median(image)
            noise[i] = np.median(frame.variance[i].reshape(-1)[::_SPARSE][good] - np.maximum(image, 0))
            noise[i] = max(noise[i] + float(np.nanmean(frame.row_variance[i])), 1e-3)
    there = (frame.mask & MASK_BITS["NO_DATA"]) == 0
    full = (frame.mask & MASK_BITS["SATURATED"]) != 0
    share = float(full.sum() / max(there.sum(), 1))
    return Repeat(frame.exposure, frame.image, frame.mask, photons, level, noise, share)


def choose_repeats(repeats: Sequence[Repeat], config: MonochromaticConfig) -> tuple[list[Repeat], dict[str, str]]:
    """Exposures of a CCD that can be used, and why others cannot, by exposure."""
    reasons = {}
    for one in repeats:
        level = one.mean_level
        if not np.isfinite(level):
            reasons[one.exposure] = "no usable pixel"
        elif one.saturated > config.saturated or level > config.brightest:
            reasons[one.exposure] = f"saturated: {100 * one.saturated:.1f} % of the pixels, level {level:.0f} electron"
        elif level < config.faintest:
            reasons[one.exposure] = f"too low, level {level:.0f} electron: did the lamp fail?"
    kept = [one for one in repeats if one.exposure not in reasons]
    if len(kept) > 2:
        ratio = np.array([one.mean_level / one.photons for one in kept])
        away = ratio / np.median(ratio) - 1
        for one, by in zip(kept, away, strict=True):
            if abs(by) > config.disagree:
                reasons[one.exposure] = (
                    f"its level is {by:+.1%} off what its photodiode says, compared with its repeats"
                )
    return [one for one in kept if one.exposure not in reasons], reasons


@njit(nogil=True, cache=True, error_model="numpy")
def _sorted(images, usable, scale, y, x, values):  # type: ignore[no-untyped-def]
    """Put the usable values of a pixel into ``values``, ascending; their number."""
    count = 0
    for k in range(images.shape[0]):
        if usable[k, y, x]:
            one, at = images[k, y, x] * scale[k], count
            while at and values[at - 1] > one:
                values[at] = values[at - 1]
                at -= 1
            values[at] = one
            count += 1
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _centre(values, count, guide):  # type: ignore[no-untyped-def]
    """What a pixel should be: the median of three or more, the lower of two, of one what others let expect."""
    if count > 2:
        return (values[(count - 1) // 2] + values[count // 2]) / 2
    return guide if count == 1 else values[0]


@njit(nogil=True, cache=True, error_model="numpy")
def _classify(images, usable, scale, noise, expected, limits, kind):  # type: ignore[no-untyped-def]
    """Class (n, y, x) of every pixel: 2 beyond the limit of a hit, 1 beyond that of its surroundings; seeds (n,).

    The noise of what a pixel is compared with counts too: of the median of three or more (``limits``), of the other of
    two, of the flat nearby, which is as bright and as noisy but for what changes of the pattern.
    """
    n, ny, nx = images.shape
    high, low, structure, median_noise = limits
    seeds, values, own = np.zeros(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
    for y in range(ny):
        for x in range(nx):
            count = _sorted(images, usable, scale, y, x, values)
            centre = _centre(values, count, expected[y, x] if expected.size else values[0])
            together = np.float32(0)
            for k in range(n):
                own[k] = (max(centre, np.float32(0)) / scale[k] + noise[k]) * scale[k] * scale[k]
                together += own[k] if usable[k, y, x] else np.float32(0)
            if count == 1:
                together += together + structure * structure * centre * centre
            for k in range(n):
                if not usable[k, y, x]:
                    continue
                away = images[k, y, x] * scale[k] - centre
                if count < 3:  # what is too low was not hit
                    away = max(away, np.float32(0))
                square, variance = away * away, own[k] + median_noise if count > 2 else together
                hit = square > high * high * variance
                kind[k, y, x] = 2 if hit else 1 if square > low * low * variance else 0
                seeds[k] += hit
    return seeds


@njit(nogil=True, cache=True, error_model="numpy")
def _mean(images, taken, factor, value, repeats):  # type: ignore[no-untyped-def]
    """Weighted mean; ``factor`` (n,) is weight / photons, then weight, in two rows."""
    n, ny, nx = images.shape
    for y in range(ny):
        for x in range(nx):
            total, weight, count = np.float32(0), np.float32(0), 0
            for k in range(n):
                if taken[k, y, x]:
                    total += factor[0, k] * images[k, y, x]
                    weight += factor[1, k]
                    count += 1
            value[y, x] = total / weight if count else np.nan
            repeats[y, x] = count


def combine_repeats(
    repeats: Sequence[Repeat], compared: Sequence[Repeat], config: MonochromaticConfig = MonochromaticConfig()
) -> Combined:
    """Combine the exposures of one CCD at one wavelength.

    Parameters
    ----------
    repeats : at least one.
    compared : flats of wavelengths nearby, with which a single exposure is searched for hits; a pixel that was hit
        then gets their value, flagged COSMIC_RAY and INTERPOLATED.
    """
    shape = repeats[0].image.shape
    value, counts = np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8)
    mask = np.full(shape, MASK_BITS["NO_DATA"], np.uint16)
    line, hits, full = np.full((2, shape[0]), np.nan), np.zeros(len(repeats), int), np.zeros(shape[0], int)
    for i in range(shape[0]):
        alive = [k for k, one in enumerate(repeats) if one.level[i] > config.dead * one.mean_level]
        full[i] = len(alive)
        if not alive:
            continue
        own = _amplifier(i, [repeats[k] for k in alive])
        expected = _expected(i, float(own.level[0]), compared, config) if len(alive) == 1 else None
        value[i], counts[i], mask[i], line[:, i], found = _combine_amplifier(own, expected, config)
        hits[alive] += found
    good = (mask == 0) & np.isfinite(value)
    total, pixels = float(value[good].sum(dtype=float)), int(good.sum())
    return Combined(value, mask, counts, full, line[0], line[1], total, pixels, hits.tolist())


@dataclass(frozen=True)
class _Amplifier:
    """Exposures of one amplifier."""

    images: np.ndarray  # (n, y, x)
    masks: np.ndarray  # (n, y, x)
    level: np.ndarray  # (n,)
    noise: np.ndarray  # (n,)
    photons: np.ndarray  # (n,)


def _amplifier(i: int, repeats: Sequence[Repeat]) -> _Amplifier:
    return _Amplifier(
        images=np.stack([one.image[i] for one in repeats]),
        masks=np.stack([one.mask[i] for one in repeats]),
        level=np.array([one.level[i] for one in repeats]),
        noise=np.array([one.noise[i] for one in repeats]),
        photons=np.array([one.photons for one in repeats]),
    )


def _expected(i: int, level: float, compared: Sequence[Repeat], config: MonochromaticConfig) -> np.ndarray | None:
    """Electrons (y, x) of an amplifier that flats nearby let expect, the larger of two; None without any."""
    usable = [one for one in compared if one.level[i] > config.dead * one.mean_level]
    if not usable:
        return None
    return np.asarray(np.fmax.reduce([one.image[i] * np.float32(level / one.level[i]) for one in usable]), np.float32)


def _combine_amplifier(
    own: _Amplifier, expected: np.ndarray | None, config: MonochromaticConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value, repeats, mask (y, x), slope and floor (2,), hits (n,)."""
    usable = ((own.masks & _UNUSABLE) == 0) & np.isfinite(own.images)
    kind = np.zeros(usable.shape, np.uint8)
    photons = own.photons
    scale = (1 / photons).astype(np.float32)
    expected = None if expected is None else expected * scale[0]
    model = float(np.mean(own.level / photons))
    sigma = np.sqrt(max(model, 0) / photons + own.noise / photons**2)
    median_noise = np.pi / 2 * len(sigma) / np.sum(1 / sigma) ** 2  # densities at the centre add up
    limits = tuple(np.float32(v) for v in (config.clip, _LOW * config.clip, config.structure, median_noise))
    guide = np.zeros((0, 0), np.float32) if expected is None else expected
    seeds = _classify(own.images, usable, scale, own.noise.astype(np.float32), guide, limits, kind)
    for k in np.flatnonzero(seeds):
        grow_hits(kind[k])
    taken = usable & (kind < 2)
    weight = sigma**-2 / np.sum(sigma**-2)
    value, counts = np.empty(usable.shape[1:], np.float32), np.empty(usable.shape[1:], np.uint8)
    _mean(own.images, taken, np.stack([weight / photons, weight]).astype(np.float32), value, counts)
    line = np.array([np.sum(weight**2 / photons), np.sum(weight**2 * own.noise / photons**2)])
    mask = _combined_mask(own.masks, kind >= 2, counts)
    if expected is not None:
        _fill(value, mask, expected)
    return value, counts, mask, line, (usable & (kind >= 2)).sum(axis=(1, 2))


def _combined_mask(masks: np.ndarray, hit: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bits (y, x): those of every exposure; of pixels that no exposure entered, whatever befell them."""
    every, some = np.bitwise_and.reduce(masks), np.bitwise_or.reduce(masks) & np.uint16(_IDLE)
    befell = np.bitwise_or.reduce(masks) | np.where(hit.any(axis=0), MASK_BITS["COSMIC_RAY"], 0)
    return np.where(counts > 0, every | some, befell).astype(np.uint16)


def _fill(value: np.ndarray, mask: np.ndarray, expected: np.ndarray) -> None:
    """Give pixels that were hit what is expected of them, in place."""
    hit = np.isnan(value) & ((mask & MASK_BITS["COSMIC_RAY"]) != 0) & np.isfinite(expected)
    value[hit] = expected[hit]
    mask[hit] |= np.uint16(MASK_BITS["INTERPOLATED"])


def gaps(wavelength: Any) -> list[tuple[float, float]]:
    """Stretches between successive wavelengths (nm, ascending) longer than one and a half typical steps.

    Examples
    --------
    >>> gaps([400, 401, 402, 405, 406])
    [(402.0, 405.0)]
    """
    at = np.asarray(wavelength, float)
    steps = np.diff(at)
    if len(steps) < 2:
        return []
    wide = np.flatnonzero(steps > _GAP * np.median(steps))
    return [(float(at[i]), float(at[i + 1])) for i in wide]
