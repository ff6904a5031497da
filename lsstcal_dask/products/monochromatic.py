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
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.products.repeats import Terms, combine, find_hits, leave_out
from lsstcal_dask.variables import MASK_BITS

__all__ = [
    "Combined",
    "MonochromaticConfig",
    "Repeat",
    "choose_repeats",
    "combine_repeats",
    "combine_without_doubt",
    "gaps",
    "make_repeat",
    "railed_count",
    "repeat_chi2",
]

_IDLE: Final = MASK_BITS["BAD"] | MASK_BITS["EDGE"] | MASK_BITS["VIGNETTED"] | MASK_BITS["SUSPECT"]
_SPARSE: Final = 29  # of so many pixels one is enough for a level
_ALL: Final = 0.95  # of the pixels: more than any that are lit
_GAP: Final = 1.5  # typical steps


class MonochromaticConfig(BaseModel):
    """How monochromatic flats become slices of a cube: table ``[cube]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: float = Field(6.0, gt=3, description="sigma of the noise model beyond which a pixel of an exposure is a hit")
    faintest: float = Field(200.0, ge=0, description="electrons, level of a CCD below which a flat is left out")
    brightest: float = Field(150_000.0, gt=0, description="electrons, level of a CCD above which a flat is left out")
    saturated: float = Field(0.02, ge=0, le=1, description="part of the pixels that may be saturated")
    dead: float = Field(0.05, ge=0, lt=1, description="level of an amplifier, of that of its CCD, at which it is dead")
    disagree: float = Field(0.03, gt=0, description="relative, between level and photodiode of repeats")
    hit_share: float = Field(0.03, gt=0, le=1, description="part of the pixels of a flat beyond which they are no hits")
    jump: float = Field(0.03, gt=0, description="relative, of the mean response against wavelengths nearby, least")
    mismatch_nm: float = Field(0.3, gt=0, description="between the wavelength asked for and the measured one")
    mismatch: Literal["refuse", "flag"] = Field("refuse", description="what becomes of a flat beyond mismatch_nm")
    repeat_nm: float = Field(0.05, ge=0, description="wavelengths asked for that differ by less are repeats")
    compare_nm: float = Field(3.0, ge=0, description="a single flat is searched for hits with others so near")
    structure: float = Field(0.002, ge=0, description="relative change of the pixels' pattern from flat to flat, least")
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
    railed: float = 0.0  # adu, the count that all pixels read, with the overscan; 0 where they differ

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
    total: np.ndarray  # (amplifier,) sum of the values of good pixels
    pixels: np.ndarray  # (amplifier,) number of these
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


def railed_count(counts: np.ndarray) -> float:
    """The count (adu) that all pixels of a CCD read, its overscan too, so that it has no level; 0 where they differ.

    Parameters
    ----------
    counts : (amplifier, y, x) adu, as they were read.
    """
    some = counts.reshape(len(counts), -1)[:, ::_SPARSE]
    top = some.max(axis=1, keepdims=True)
    return float(top.max()) if np.mean((some == top) & (top > 0)) > _ALL else 0.0


def choose_repeats(repeats: Sequence[Repeat], config: MonochromaticConfig) -> tuple[list[Repeat], dict[str, str]]:
    """Exposures of a CCD that can be used, and why others cannot, by exposure."""
    reasons = {}
    for one in repeats:
        level = one.mean_level
        if one.railed:
            reasons[one.exposure] = f"saturated: all pixels read {one.railed:.0f} adu: take it with less light"
        elif not np.isfinite(level):
            reasons[one.exposure] = "no usable pixel"
        elif one.saturated > config.saturated:
            reasons[one.exposure] = (
                f"saturated: {100 * one.saturated:.1f} % of the pixels, more than {100 * config.saturated:g} %, "
                f"level {level:.0f} electron: take it with less light, or raise [cube] saturated"
            )
        elif level > config.brightest:
            reasons[one.exposure] = (
                f"too bright, level {level:.0f} electron, more than {config.brightest:.0f}: take it with less light, "
                f"or raise [cube] brightest"
            )
        elif level < config.faintest:
            reasons[one.exposure] = f"too low, level {level:.0f} electron: did the lamp fail?"
    kept = [one for one in repeats if one.exposure not in reasons]
    reasons |= _disagreeing(kept, config)
    return [one for one in kept if one.exposure not in reasons], reasons


def _disagreeing(kept: Sequence[Repeat], config: MonochromaticConfig) -> dict[str, str]:
    """Repeats whose level is not as their photodiode says: of three or more the odd one, of two both."""
    ratio = np.array([one.mean_level / one.photons for one in kept])
    if len(kept) == 2:
        by = ratio[1] / ratio[0] - 1
        told = "its level over its photodiode is {:+.1%} off that of exposure {}; of two none says which is wrong: {}"
        remedy = "take a third, or leave one out"
        both = [(kept[0], kept[1], 1 / (1 + by) - 1), (kept[1], kept[0], by)]
        far = max(abs(off) for *_, off in both) > config.disagree
        return {one.exposure: told.format(off, other.exposure, remedy) for one, other, off in both if far}
    away = ratio / np.median(ratio) - 1 if len(kept) > 2 else np.zeros(len(kept))
    return {
        one.exposure: f"its level is {by:+.1%} off what its photodiode says, compared with its repeats"
        for one, by in zip(kept, away, strict=True)
        if abs(by) > config.disagree
    }


def repeat_chi2(repeats: Sequence[Repeat], value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Chi2 per degree of freedom (amplifier,) of repeats about their combination; NaN of a single one.

    Of some pixels that are good in all of them; what the level of a whole amplifier scatters is taken out.

    Parameters
    ----------
    value, mask : (amplifier, y, x) of the combination.
    """
    found = np.full(len(value), np.nan)
    for i in range(len(value) if len(repeats) > 1 else 0):
        own = [one for one in repeats if np.isfinite(one.level[i]) and one.level[i] > 0]
        some = [one.mask[i].reshape(-1)[::_SPARSE] == 0 for one in own]
        mean = value[i].reshape(-1)[::_SPARSE].astype(float)
        good = (mask[i].reshape(-1)[::_SPARSE] == 0) & np.logical_and.reduce(some) & np.isfinite(mean)
        if len(own) < 2 or not good.any():
            continue
        mean = mean[good]
        chi2 = 0.0
        for one in own:
            image = one.image[i].reshape(-1)[::_SPARSE][good].astype(float)
            light = np.sum(image) / np.sum(mean)  # of the pixels themselves: they tell it better than a photodiode
            chi2 += float(np.sum((image - light * mean) ** 2 / (light * mean + one.noise[i])))
        found[i] = chi2 / ((len(own) - 1) * (len(mean) - 1))
    return found


def combine_without_doubt(
    repeats: Sequence[Repeat], compared: Sequence[Repeat], config: MonochromaticConfig
) -> tuple[Combined, list[str]]:
    """As `combine_repeats`, but no pixel is rejected where so many would be that they are no cosmic rays; remarks."""
    made = combine_repeats(repeats, compared, config)
    share = [count / repeats[0].image.size for count in made.hits]
    many = [(one.exposure, part) for one, part in zip(repeats, share, strict=True) if part > config.hit_share]
    if not many:
        return made, []
    remarks = [
        f"exposure {name}: {part:.0%} of its pixels are not as those of its repeats or of flats nearby: too many for "
        f"cosmic rays, none is rejected: is it another flat?"
        for name, part in many
    ]
    return combine_repeats(repeats, [], config.model_copy(update={"clip": np.inf})), remarks


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
        expected = _expected(i, own, compared, config) if len(alive) == 1 else None
        value[i], counts[i], mask[i], line[:, i], found = _combine_amplifier(own, expected, config)
        hits[alive] += found
    good = (mask == 0) & np.isfinite(value)
    total, pixels = np.where(good, value, 0).sum(axis=(1, 2), dtype=float), good.sum(axis=(1, 2))
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


def _expected(
    i: int, own: _Amplifier, compared: Sequence[Repeat], config: MonochromaticConfig
) -> tuple[np.ndarray, np.ndarray] | None:
    """Electrons (y, x) of an amplifier that flats nearby let expect; None without any.

    What is searched for hits is compared with the larger of two, so that fringes that move are none. What is filled
    in is their mean, or the lower where they differ by more than a hit would.
    """
    usable = [one for one in compared if one.level[i] > config.dead * one.mean_level]
    if not usable:
        return None
    scale = [np.float32(own.level[0] / one.level[i]) for one in usable]
    images = [one.image[i] * by for one, by in zip(usable, scale, strict=True)]
    larger, lower = np.fmax.reduce(images), np.fmin.reduce(images)
    noise = [by * np.maximum(lower, 0) + float(by**2 * one.noise[i]) for one, by in zip(usable, scale, strict=True)]
    middle = (larger + lower) / 2
    some, by = ((a.reshape(-1)[::_SPARSE]) for a in (middle, larger - lower))
    lit = some > 0
    structure = 1.4826 * float(np.median(by[lit] / some[lit])) if lit.any() else 0.0  # fringes, or noise
    agree = (larger - lower) ** 2 <= config.clip**2 * np.maximum(np.sum(noise, axis=0), (structure * middle) ** 2)
    fill = np.where(agree, middle, lower)
    return np.asarray(larger, np.float32), np.asarray(fill, np.float32)


def _combine_amplifier(
    own: _Amplifier, nearby: tuple[np.ndarray, np.ndarray] | None, config: MonochromaticConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value, repeats, mask (y, x), slope and floor (2,), hits (n,)."""
    photons, shape = own.photons, own.images.shape[1:]
    model = max(float(np.mean(own.level / photons)), 0.0)
    sigma = np.sqrt(model / photons + own.noise / photons**2)
    weight = sigma**-2 / np.sum(sigma**-2)
    expected, fill = (None, None) if nearby is None else nearby
    guide = np.zeros((0, 0), np.float32) if expected is None else expected / np.float32(photons[0])
    structure = config.structure if expected is None else max(config.structure, _structure(own, expected))
    terms = _terms(own, weight, sigma, (config.clip, structure))
    value, counts, suspect = np.empty(shape, np.float32), np.empty(shape, np.uint8), np.zeros(shape, bool)
    combine(own.images, own.masks, terms, guide, value, counts, suspect)
    hit = np.zeros(own.images.shape, bool)
    total = find_hits(own.images, own.masks, terms, guide, value, np.argwhere(suspect), hit)
    if total:
        leave_out(own.images, own.masks, terms, hit, np.argwhere(hit.any(axis=0)), value, counts)
    line = np.array([np.sum(weight**2 / photons), np.sum(weight**2 * own.noise / photons**2)])
    mask = _combined_mask(own.masks, hit if total else hit[:0], counts)
    if fill is not None:
        _fill(value, mask, fill / np.float32(photons[0]))
    return value, counts, mask, line, hit.sum(axis=(1, 2)) if total else np.zeros(len(hit), int)


def _structure(own: _Amplifier, expected: np.ndarray) -> float:
    """Relative rms by which a flat differs from what is expected, beside the noise of both: fringes move."""
    image, guide = own.images[0].reshape(-1)[::_SPARSE], expected.reshape(-1)[::_SPARSE]
    good = (own.masks[0].reshape(-1)[::_SPARSE] == 0) & (guide > 0)
    away = image[good] / guide[good] - 1
    if not away.size:
        return 0.0
    sigma = 1.4826 * float(np.median(np.abs(away - np.median(away))))
    noise = 2 * (own.level[0] + own.noise[0]) / own.level[0] ** 2
    return float(np.sqrt(max(sigma**2 - noise, 0.0)))


def _terms(own: _Amplifier, weight: np.ndarray, sigma: np.ndarray, limits: tuple[float, float]) -> Terms:
    """What the kernels want, in single precision."""
    return Terms(
        scale=(1 / own.photons).astype(np.float32),
        noise=own.noise.astype(np.float32),
        weight=weight.astype(np.float32),
        limit=np.float32(limits[0]),
        structure=np.float32(limits[1]),
        median_noise=np.float32(np.pi / 2 * len(sigma) / np.sum(1 / sigma) ** 2),  # densities at the centre add up
    )


def _combined_mask(masks: np.ndarray, hit: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bits (y, x): those of every exposure; of pixels that no exposure entered, whatever befell them."""
    some = np.bitwise_or.reduce(masks)
    mask = np.bitwise_and.reduce(masks) | (some & np.uint16(_IDLE))
    lost = counts == 0
    befell = some[lost] | np.where(hit[:, lost].any(axis=0), MASK_BITS["COSMIC_RAY"], 0).astype(np.uint16)
    mask[lost] = befell
    return np.asarray(mask)


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
