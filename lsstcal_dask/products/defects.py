"""Bad and suspect pixels: hot, cold, columns, traps, what does not scale with the light (Lupton 2016, Sec. 2.4; §3).

A pixel is flagged where its departure is significant *and* large. Significant is 5.6 sigma of the noise model, one
false alarm in a CCD of 16 million pixels; what is large stands in `DefectConfig`:

- hot: dark rate above the amplifier's own by more than a limit;
- cold: response below that of its surroundings by more than a fifth, in flats of all levels;
- column: so many bad pixels in a column, the gaps between them closed, or a column that is off as a whole;
- trap: a pixel that lacks charge, followed by pixels, in the order of reading, that have it too much;
- inconsistent: faint and bright flats disagree on its response.

Hot and cold pixels and columns are BAD, the others SUSPECT. Known defects of a list are kept, whatever is measured.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import uniform_filter

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.statistics import Calibration, Noise, clipped_mean
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

__all__ = [
    "OUTPUTS",
    "DefectConfig",
    "Flat",
    "check_defects",
    "close_gaps",
    "defect_amplifiers",
    "find_cold",
    "find_columns",
    "find_defects",
    "find_hot",
    "find_inconsistent",
    "find_traps",
    "flag_defects",
    "merge_lists",
]

OUTPUTS: Final = {"mask": Output("uint16"), "defect_kind": Output("uint16")}

_TRAIL: Final = np.array([0.5, 0.25, 0.125, 0.125])  # share of a trap's charge in the next pixels, as far as is known
_SUSPECT: Final = DEFECT_KINDS["TRAP"] | DEFECT_KINDS["INCONSISTENT"]


class DefectConfig(BaseModel):
    """How large a departure must be, and how significant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: float = Field(
        5.6,
        gt=3,
        description="of the noise model: one false alarm in a CCD of 16 million pixels, by all tests",
    )
    hot: float = Field(5.0, gt=0, description="electron/s above the amplifier's dark rate")
    cold: float = Field(0.8, gt=0, lt=1, description="response over that of the surroundings, below which it is cold")
    inconsistent: float = Field(0.02, gt=0, description="difference of the response to faint and to bright light")
    trap: float = Field(100.0, gt=0, description="electrons a trap holds")
    column_hot: float = Field(0.5, gt=0, description="electron/s of a column as a whole")
    column_cold: float = Field(0.05, gt=0, lt=1, description="loss of response of a column as a whole")
    column_pixels: int = Field(50, ge=3, description="bad pixels that make a column, or half of it if that is less")
    column_gap: int = Field(30, ge=0, description="good pixels between bad ones of a column that are closed")
    surroundings: int = Field(31, ge=5, description="px, box whose mean a pixel is compared with")
    most: float = Field(0.01, gt=0, le=1, description="part of a CCD beyond which the input is suspected")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True)
class Flat:
    """Combined flats of one amplifier, each divided by its own mean."""

    response: np.ndarray  # (y, x) float32, near 1
    variance: np.ndarray  # (y, x) float32
    level: float  # electron, mean of the flats' means, weighted as they are
    read: float = 0.0  # electron**2, mean variance of their read noise, weighted likewise


def check_defects(raw: xr.Dataset, config: DefectConfig) -> None:
    """Refuse exposures that tell nothing of the response.

    Raises
    ------
    InsufficientInputs
        Fewer than three flats.
    """
    if raw.sizes["exposure"] < 3:
        raise InsufficientInputs(
            f"defects: {raw.sizes['exposure']} flats, at least 3 are needed, for cosmic rays: ingest more (--type flat)"
        )


def find_hot(rate: np.ndarray, variance: np.ndarray, config: DefectConfig) -> np.ndarray:
    """Pixels (y, x) whose dark rate, electron/s, is above the median by the limit, significantly."""
    above = rate - np.nanmedian(rate)
    return np.asarray((above > config.hot) & (above > config.sigma * np.sqrt(variance)))


def find_cold(flat: Flat, config: DefectConfig) -> np.ndarray:
    """Pixels (y, x) that respond less than their surroundings."""
    ratio, variance = _over_surroundings(flat, config)
    return np.asarray((ratio < config.cold) & (1 - ratio > config.sigma * np.sqrt(variance)))


def find_inconsistent(faint: Flat, bright: Flat, config: DefectConfig) -> np.ndarray:
    """Pixels (y, x) whose response to faint light is not that to bright light."""
    (low, low_variance), (high, high_variance) = (_over_surroundings(flat, config) for flat in (faint, bright))
    difference = np.abs(low - high)
    return np.asarray(
        (difference > config.inconsistent) & (difference > config.sigma * np.sqrt(low_variance + high_variance))
    )


def find_traps(flat: Flat, config: DefectConfig) -> np.ndarray:
    """Pixels (y, x), in the order of reading, that keep charge back which the next ones in the column get.

    The charge that fits both lack and trail best, by least squares with the weights of the noise.
    """
    ratio, variance = _over_surroundings(flat, config)
    electrons, noise = np.nan_to_num(1 - ratio) * flat.level, np.where(variance > 0, variance, np.inf) * flat.level**2
    shape = np.concatenate([[1.0], -_TRAIL])
    total, weight = np.zeros_like(ratio), np.zeros_like(ratio)
    for step, part in enumerate(shape):
        rows = slice(step, len(ratio))
        total[: len(ratio) - step] += part * electrons[rows] / noise[rows]
        weight[: len(ratio) - step] += part**2 / noise[rows]
    size = total / np.maximum(weight, 1e-30)
    lacks = electrons > 0.5 * size  # the trail alone would be a dent of its own
    trail = electrons[1:] < 0.25 * -_TRAIL[0] * size[:-1]
    dipole = lacks & np.pad(trail, ((0, 1), (0, 0)))
    return np.asarray((size > config.trap) & (size > config.sigma / np.sqrt(np.maximum(weight, 1e-30))) & dipole)


def find_columns(
    bad: np.ndarray, rate: np.ndarray | None, variance: np.ndarray | None, flat: Flat, config: DefectConfig
) -> np.ndarray:
    """Columns (x,) that are bad: for their many bad pixels, or off as a whole in darks or flats.

    Parameters
    ----------
    bad : (y, x) bool, single pixels.
    rate, variance : (y, x) of the dark, electron/s; None without one.
    """
    many = bad.sum(axis=0) >= min(config.column_pixels, max(len(bad) // 2, 3))
    ratio, noise = _over_surroundings(flat, config)
    loss, error = _column_means(1 - ratio, noise, bad)
    many |= (loss > config.column_cold) & (loss > config.sigma * error)
    if rate is not None and variance is not None:
        excess, error = _column_means(rate - np.nanmedian(rate), variance, bad)
        excess = excess - np.nanmedian(excess)
        many |= (excess > config.column_hot) & (excess > config.sigma * error)
    return many


def close_gaps(bad: np.ndarray, gap: int) -> np.ndarray:
    """Bad pixels (y, x) with runs of at most ``gap`` good ones between two bad ones of a column made bad too.

    Examples
    --------
    >>> close_gaps(np.array([[1, 0, 0, 1, 0, 0, 0, 1]], bool).T, 2)[:, 0].astype(int)
    array([1, 1, 1, 1, 0, 0, 0, 1])
    """
    rows = np.arange(len(bad))[:, None]
    last = np.maximum.accumulate(np.where(bad, rows, -len(bad) - gap), axis=0)
    following = np.minimum.accumulate(np.where(bad, rows, 3 * len(bad) + 2 * gap)[::-1], axis=0)[::-1]
    return np.asarray(bad | (following - last <= gap + 1))


def _column_means(values: np.ndarray, variance: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (x,) of the pixels of each column that are not bad by themselves, and its error; 0 where there is none."""
    good = ~bad & np.isfinite(values) & np.isfinite(variance)
    count = np.maximum(good.sum(axis=0), 1)
    mean = np.where(good, values, 0).sum(axis=0) / count
    return mean, np.sqrt(np.where(good, variance, 0).sum(axis=0)) / count


def _over_surroundings(flat: Flat, config: DefectConfig) -> tuple[np.ndarray, np.ndarray]:
    """Response over the mean of the pixels around, those that are far off left out of it; its variance.

    The variance is that of a pixel that responds as those around it: that of its own counts is the less the lower
    noise happens to have taken them, by which pixels of 5 sigma become significant twice to five times too often.

    Light that falls off to one side would make the mean around the pixels of an edge a wrong one: a parabola is
    divided out before.
    """
    good = np.isfinite(flat.response) & (np.abs(flat.response - 1) < 0.5)
    lamp, smooth = np.ones(flat.response.shape), good
    for _ in range(3):  # bad columns would tilt it
        lamp = _parabola(flat.response, smooth)
        limit = np.maximum(5 * np.sqrt(flat.variance) / lamp, 0.02)
        smooth = good & (np.abs(flat.response / lamp - 1) < limit)
    response, noise = flat.response / lamp, flat.variance / lamp**2
    for _ in range(2):
        share = uniform_filter(good.astype(np.float64), config.surroundings, mode="reflect")
        light = np.where(good, response, 0).astype(np.float64)
        around = uniform_filter(light, config.surroundings, mode="reflect")
        around = around / np.maximum(share, 1e-3)
        ratio = response / np.maximum(around, 1e-6)
        good &= np.abs(ratio - 1) < np.maximum(5 * np.sqrt(noise), 0.02)
    alike = (flat.level + flat.read) / np.maximum(flat.level * ratio + flat.read, 0.01 * flat.level)
    return ratio, np.asarray(noise * alike / np.maximum(around, 1e-6) ** 2)


def _parabola(image: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Surface (y, x) of second order through the good pixels, each fourth of them."""
    y, x = (np.linspace(-1, 1, n) for n in image.shape)

    def terms(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(1.0 + 0 * x, x, y, x * y, x**2, y**2), axis=-1)

    some = good[::4, ::4]
    matrix = terms(y[::4, None], x[None, ::4])[some]
    found = np.linalg.lstsq(matrix, image[::4, ::4][some].astype(np.float64), rcond=None)[0] if some.any() else None
    return np.ones(image.shape) if found is None else np.maximum(terms(y[:, None], x[None]) @ found, 0.05)


def flag_defects(kinds: np.ndarray) -> np.ndarray:
    """Mask bits (y, x) uint16 of kinds of defects: BAD, or SUSPECT where nothing worse is known."""
    suspect, bad = kinds & _SUSPECT > 0, kinds & ~np.uint16(_SUSPECT) > 0
    return np.where(bad, MASK_BITS["BAD"], np.where(suspect, MASK_BITS["SUSPECT"], 0)).astype(np.uint16)


def merge_lists(masks: np.ndarray, kinds: np.ndarray, latest: int) -> tuple[np.ndarray, np.ndarray]:
    """Union of lists of defects; what another list than the latest flags is LISTED. To merge again changes no mask.

    Parameters
    ----------
    masks, kinds : (list, y, x) uint16, as in `OUTPUTS`.
    latest : index of the list that was measured last.

    Returns
    -------
    mask, kind : (y, x) uint16; NO_DATA where no list has data.
    """
    nothing, listed = np.uint16(MASK_BITS["NO_DATA"]), np.uint16(DEFECT_KINDS["LISTED"])
    flags = np.uint16(MASK_BITS["BAD"] | MASK_BITS["SUSPECT"])
    older = np.arange(len(masks))[:, None, None] != latest
    kinds = kinds | np.where(older & (masks & flags > 0), listed, np.uint16(0))
    mask = np.bitwise_or.reduce(masks & ~nothing, axis=0) | (np.bitwise_and.reduce(masks, axis=0) & nothing)
    return mask, np.bitwise_or.reduce(kinds, axis=0)


def _kinds(faint: Flat, bright: Flat, both: Flat, dark: xr.Dataset | None, config: DefectConfig) -> np.ndarray:
    """Kinds (y, x) uint16 of the defects of an amplifier, bits of `DEFECT_KINDS`."""
    ny, nx = both.response.shape
    rate = variance = None
    hot = np.zeros((ny, nx), bool)
    if dark is not None:
        rate, variance = dark["image"].values[:ny, :nx], dark["variance"].values[:ny, :nx]
        hot = find_hot(rate, variance, config)
    cold = find_cold(both, config)
    kinds = np.where(hot, DEFECT_KINDS["HOT"], 0).astype(np.uint16)
    kinds |= np.where(cold, DEFECT_KINDS["COLD"], 0).astype(np.uint16)
    columns = find_columns(hot | cold, rate, variance, both, config)
    loss = 1 - _over_surroundings(both, config)[0] if columns.any() else np.empty((0, 0))
    for x in map(int, np.flatnonzero(columns)):
        off = (hot | cold)[:, x] | _part_of_column(rate, loss, x, config)
        whole = close_gaps(off[:, None], config.column_gap)[:, 0]
        kinds[whole, x] |= np.uint16(DEFECT_KINDS["COLUMN"])
    known = kinds > 0
    traps = find_traps(faint, config) & ~known
    kinds |= np.where(traps, DEFECT_KINDS["TRAP"], 0).astype(np.uint16)
    odd = find_inconsistent(faint, bright, config) & ~known
    return kinds | np.where(odd, DEFECT_KINDS["INCONSISTENT"], 0).astype(np.uint16)


def _part_of_column(rate: np.ndarray | None, loss: np.ndarray, x: int, config: DefectConfig) -> np.ndarray:
    """Pixels (y,) of a bad column that are as far off, in means over 9 rows, as half of those that are most."""
    off = _far_off(loss[:, x], config.column_cold)
    if rate is not None:
        off |= _far_off(rate[:, x] - np.nanmedian(rate), config.column_hot)
    return off


def _far_off(values: np.ndarray, limit: float) -> np.ndarray:
    running = uniform_filter(np.nan_to_num(values), 9, mode="nearest")
    return np.asarray(running > max(limit, float(np.percentile(running, 90))) / 2)


def defect_amplifiers(
    raw: xr.Dataset,
    detector: Detector,
    shape: tuple[int, int],
    config: DefectConfig,
    products: dict[str, xr.Dataset],
) -> AmplifierResults:
    """Defects of each amplifier of one detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,), of flats of several levels.
    shape : (ny, nx) of the padded image.
    products : ``gain``, ``bias`` and, or else nothing is found hot, ``dark`` of this detector.

    Raises
    ------
    CalibrationError
        So much of the CCD is flagged that the input must be wrong.
    """
    found = []
    for amplifier in detector.amplifiers:
        try:
            kinds, remarks = _amplifier_kinds(raw, amplifier, config, products), []
        except InsufficientInputs as error:
            kinds, remarks = None, [str(error)]
        found.append((amplifier, kinds, remarks))
    _check_most(detector, [kinds for _, kinds, _ in found if kinds is not None], config)
    for amplifier, kinds, remarks in found:
        yield amplifier.name, _dataset(kinds, shape, remarks)


def _amplifier_kinds(
    raw: xr.Dataset, amplifier: Amplifier, config: DefectConfig, products: dict[str, xr.Dataset]
) -> np.ndarray:
    present = np.flatnonzero(raw["present"].values)
    counts = np.ascontiguousarray(raw["counts"].isel(exposure=present).sel(amplifier=amplifier.name).values)
    gain = float(products["gain"]["gain"].sel(amplifier=amplifier.name))
    if not gain > 0:
        raise InsufficientInputs("no gain for this amplifier: see the remarks of 'gain'")
    plane = None
    if "bias" in products:
        ny, nx = amplifier.data.shape
        plane = np.ascontiguousarray(products["bias"]["image"].sel(amplifier=amplifier.name).values[:ny, :nx])
    levels, weights, means = _levels(counts, amplifier, plane, config, gain)
    use = means > 0
    if use.sum() < 3:
        raise InsufficientInputs(f"{int(use.sum())} flats with light, at least 3 are needed: was the lamp on?")
    middle = np.sqrt(means[use].min() * means[use].max())
    parts = [use & (means <= middle), use & (means >= middle), use]
    if min(part.sum() for part in parts) < 2 or means[use].max() < 1.5 * means[use].min():
        parts = [use, use, use]  # one level: nothing can be inconsistent
    flats = [_flat(counts, amplifier, plane, (levels, weights, means * gain), part, gain) for part in parts]
    dark = products["dark"].sel(amplifier=amplifier.name) if "dark" in products else None
    return _kinds(flats[0], flats[1], flats[2], dark, config)


def _levels(
    counts: np.ndarray, amplifier: Amplifier, plane: np.ndarray | None, config: DefectConfig, gain: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overscan (n, y), adu; read variance (n,), adu**2; mean signal (n,), adu, of each flat; 0 without light."""
    found = row_levels(reference_pixels(counts, amplifier), config.overscan)
    noise = np.where(np.isnan(found.read_noise), amplifier.read_noise / gain, found.read_noise)
    means = np.zeros(len(counts))
    for i, frame in enumerate(counts):
        image = frame[amplifier.data.slices][::3, ::3] - found.level[i][::3, None]
        means[i] = np.median(image if plane is None else image - plane[::3, ::3])
    dark = ~(means > 5 * noise)
    return found.level, noise**2, np.where(dark, 0.0, means)


def _flat(
    counts: np.ndarray,
    amplifier: Amplifier,
    plane: np.ndarray | None,
    terms: tuple[np.ndarray, np.ndarray, np.ndarray],
    use: np.ndarray,
    gain: float,
) -> Flat:
    """Mean of flats over their means: weights are those of their noise."""
    levels, read, electrons = terms
    scale = np.divide(gain, electrons, out=np.zeros(len(electrons)), where=electrons > 0).astype(np.float32)
    data = counts[(slice(None), *amplifier.data.slices)]
    noise = Noise(read.astype(np.float32), 1 / gain)
    value, variance, _ = clipped_mean(data, Calibration(levels, plane, scale), noise, use=use)
    weight = use * electrons**2 / np.maximum(electrons + read * gain**2, 1)
    level, noise_there = (float((weight * v).sum() / weight.sum()) for v in (electrons, read * gain**2))
    return Flat(value, variance, level, noise_there)


def _check_most(detector: Detector, kinds: list[np.ndarray], config: DefectConfig) -> None:
    if not kinds:
        return
    part = float(np.mean([np.mean(flag_defects(one) & MASK_BITS["BAD"] > 0) for one in kinds]))
    if part > config.most:
        each = {name: float(np.mean([np.mean(one & bit > 0) for one in kinds])) for name, bit in DEFECT_KINDS.items()}
        worst = max(each, key=lambda name: each[name])
        cause = {"HOT": "a light leak or a wrong bias in the darks", "COLD": "a lamp that was off, or saturated flats"}
        raise CalibrationError(
            f"{detector.name}: {100 * part:.1f} % of its pixels are bad, most of them {worst}: more than "
            f"{100 * config.most:g} %: look for {cause.get(worst, 'a wrong gain or bias')}, or raise [defects] most"
        )


def _dataset(kinds: np.ndarray | None, shape: tuple[int, int], remarks: list[str]) -> xr.Dataset:
    mask, padded = np.full(shape, MASK_BITS["NO_DATA"], np.uint16), np.zeros(shape, np.uint16)
    summary: dict[str, Any] = {}
    if kinds is not None:
        ny, nx = kinds.shape
        mask[:ny, :nx], padded[:ny, :nx] = flag_defects(kinds), kinds
        summary = {name.lower(): int(np.sum(kinds & bit > 0)) for name, bit in DEFECT_KINDS.items()}
    variables = {"mask": (("y", "x"), mask), "defect_kind": (("y", "x"), padded)}
    return xr.Dataset(variables, attrs={"remarks": remarks, "summary": summary})


def find_defects(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: DefectConfig = DefectConfig()
) -> xr.Dataset:
    """Find defects, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats.
    products : ``gain``, ``bias``, ``dark`` with a detector dim; see `defect_amplifiers`.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier, y, x): mask bits BAD and SUSPECT, and the kinds of defects.

    Raises
    ------
    InsufficientInputs
        See `check_defects`.
    """
    check_defects(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), camera.image_shape, config, parts

    sizes = {"amplifier": raw.sizes["amplifier"], "y": camera.image_shape[0], "x": camera.image_shape[1]}
    return map_detectors(defect_amplifiers, raw, OUTPUTS, sizes, arguments)
