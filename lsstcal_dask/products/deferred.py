"""Charge-transfer inefficiency from the overscan of flats: extended pixel edge response (Sec. 3.1; ¶2).

The first overscan pixels of a row hold what the row left behind. The law is that of Snyder et al. (2021, JATIS 7,
048002): with S the signal of the last data column, raw column x, overscan column k = 1, 2 ... has

    S ((x + 1) b [k = 1] + a exp(-k / decay)) + c(k)

with b the share that each of x + 1 transfers leaves behind, and a the offset of the output, of the charge of a
pixel. c, which does not grow with the light, holds the bias structure of the column and what traps release.

Signals are above the mean of the later columns of the same row, which also have some of the trail: the model has it
subtracted as the data have. Their slopes against S, from a ladder of flats, are fitted. The same with the rows of
the parallel overscan gives the inefficiency of parallel transfers, of which only the first row sees anything.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import least_squares

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.linearity import Curve, curve
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.flats import check_flats
from lsstcal_dask.statistics import robust_sigma
from lsstcal_dask.variables import NOTE

__all__ = [
    "OUTPUTS",
    "DeferredConfig",
    "Trail",
    "check_deferred",
    "deferred_amplifiers",
    "fit_offset",
    "measure_deferred",
    "slopes",
    "trail",
]

_UNITS: Final = {"serial_cti": "", "parallel_cti": "", "offset_amplitude": "", "offset_decay": "pixel"}
OUTPUTS: Final = {f"{name}{end}": Output("float64", units) for name, units in _UNITS.items() for end in ("", "_error")}

_CLIP: Final = 6.0  # sigma of a column beyond which a row is left out: cosmic rays, bleeding, hot pixels
_FEWEST_LATER: Final = 4  # overscan columns that must be left for the level
_SPREAD: Final = 2.0  # highest over lowest signal that makes a ladder
_DECAY: Final = (3.0, 1.0)  # pixels and ln: what is assumed of a decay of which the data say nothing
_UNLIKELY: Final = 4.0  # sigma of chi2 beyond which a fit is bad


class DeferredConfig(BaseModel):
    """How late charge is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum: int = Field(8, ge=3, description="fewest flats")
    columns: int = Field(8, ge=3, description="first overscan columns, whose trail is fitted; the later ones are level")
    faintest: float = Field(3e3, gt=0, description="electron; fainter flats may not have filled the traps")
    brightest: float = Field(1e5, gt=0, description="electron; brighter flats may not fit the serial register")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True, eq=False)
class Trail:
    """What one flat shows beyond the end of its rows (or columns)."""

    signal: float  # adu, mean of the last data pixels
    late: np.ndarray  # (k,) adu, mean of the first overscan pixels above the later ones
    covariance: np.ndarray  # (k, k) adu**2


def trail(last: np.ndarray, beyond: np.ndarray, count: int) -> Trail:
    """Means over rows; a row with an outlier anywhere is left out.

    Parameters
    ----------
    last : (n,) signal of the last data pixel of each row, adu above level and bias.
    beyond : (n, m) overscan pixels of these rows, in the order in which they were read, adu.
    count : of them the first, whose means are wanted; those after them are level.

    Returns
    -------
    Trail, whose covariance is that of the scatter of the rows.

    Raises
    ------
    InsufficientInputs
        Fewer than four of the pixels are level, or fewer rows than twice ``count`` are without outliers.
    """
    if beyond.shape[1] < count + _FEWEST_LATER:
        raise InsufficientInputs(f"{beyond.shape[1]} overscan pixels, at least {count + _FEWEST_LATER} are needed")
    later = beyond[:, count:]
    level = later.mean(axis=1, keepdims=True)
    late = beyond[:, :count] - level
    noise = float(robust_sigma(later - level)) + 0.5  # adu: the step of the converter
    good = (np.abs(later - level) < _CLIP * noise).all(axis=1)
    for values in (*late.T, last):
        away = np.abs(values - np.median(values))
        good &= away <= _CLIP * (float(robust_sigma(values)) + 0.5)
    if good.sum() <= 2 * count:
        raise InsufficientInputs(f"of {len(good)} rows all but {good.sum()} have outliers: check the flats")
    late = late[good]
    covariance = np.atleast_2d(np.cov(late.T)) / len(late)
    return Trail(float(last[good].mean()), late.mean(axis=0), covariance)


def slopes(trails: list[Trail]) -> tuple[np.ndarray, np.ndarray, float]:
    """Growth of each pixel of the trail with the signal, by weighted least squares with a constant.

    Returns
    -------
    (k,) slopes, their covariance (k, k), enlarged where the trails scatter by more than their noise, and by how much.

    Raises
    ------
    DegenerateSolution
        All flats have the same signal.
    """
    signal = np.array([one.signal for one in trails])
    late = np.array([one.late for one in trails])
    covariance = np.array([one.covariance for one in trails])
    if not signal.max() > _SPREAD * signal.min():
        raise DegenerateSolution(
            f"the usable flats go from {signal.min():.0f} to {signal.max():.0f} adu: take a ladder of flats"
        )
    weight = 1 / np.trace(covariance, axis1=1, axis2=2)  # one for all pixels of a flat: the propagation is exact
    centred = signal - np.average(signal, weights=weight)
    share = weight * centred / np.sum(weight * centred**2)
    found = share @ late
    constant = np.average(late - np.outer(signal, found), axis=0, weights=weight)
    away = late - np.outer(signal, found) - constant
    freedom = away.size - 2 * away.shape[1]
    chi2 = float(np.sum(away**2 / np.diagonal(covariance, axis1=1, axis2=2))) / freedom
    excess = chi2 if chi2 > 1 + _UNLIKELY * np.sqrt(2 / freedom) else 1.0
    return found, excess * np.einsum("i,ijk->jk", share**2, covariance), excess


@dataclass(frozen=True, eq=False)
class Offset:
    """Solution of `fit_offset`: b, a, decay, in this order."""

    value: np.ndarray  # (3,)
    error: np.ndarray  # (3,)
    chi2: float
    freedom: int


def fit_offset(slope: np.ndarray, covariance: np.ndarray, transfers: int, later: int) -> Offset:
    """Inefficiency and offset from the slopes of the first overscan columns.

    Parameters
    ----------
    slope, covariance : (k,), (k, k) of `slopes`.
    transfers : of the last data column.
    later : columns after those k, whose mean was subtracted.
    """
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    column = np.arange(1, len(slope) + 1)
    after = len(slope) + np.arange(1, later + 1)
    unit = float(np.sqrt(np.trace(covariance) / len(slope)))

    def residual(p: np.ndarray) -> np.ndarray:
        fade = np.exp(-p[2])
        model = p[1] * (np.exp(-column * fade) - np.exp(-after * fade).mean())
        model[0] += p[0]
        assumed = (p[2] - np.log(_DECAY[0])) / _DECAY[1]
        return np.append(whitening @ (slope - unit * model), assumed)

    start = np.array([0.0, slope[1:3].mean() / unit * 2, np.log(_DECAY[0])])
    bounds = ([-np.inf, -np.inf, np.log(0.2)], [np.inf, np.inf, np.log(100.0)])
    found = least_squares(residual, start, bounds=bounds, x_scale=np.array([1.0, 1.0, 0.1]))
    error = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    b, a, log_decay = found.x
    decay = float(np.exp(log_decay))
    return Offset(
        value=np.array([b * unit / transfers, a * unit, decay]),
        error=np.array([error[0] * unit / transfers, error[1] * unit, decay * error[2]]),
        chi2=float(2 * found.cost),
        freedom=len(slope) - 2,  # of three numbers one is also assumed
    )


def check_deferred(raw: xr.Dataset, config: DeferredConfig) -> None:
    """Refuse too few flats.

    Raises
    ------
    InsufficientInputs
        Fewer than ``config.minimum``.
    """
    check_flats("deferred", raw, config.minimum)


def deferred_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: DeferredConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Inefficiency of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` and ``exposure_type`` (exposure,); flats.
    products : of this detector: ``gain``; ``bias`` and ``linearity`` may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN with a remark where nothing could be measured.
    """
    use = raw["present"].values & (raw["exposure_type"].values.astype(str) == "flat")
    raw = raw.isel(exposure=np.flatnonzero(use))
    for amplifier in detector.amplifiers:
        values, remarks = dict.fromkeys(OUTPUTS, np.nan), []
        try:
            serial, parallel = _trails(raw, amplifier, config, products)
            remarks = _put_serial(values, serial, amplifier)
            remarks += _put_parallel(values, parallel, amplifier)
        except CalibrationError as error:
            remarks = [str(error)]
        summary = {name: value if np.isfinite(value) else None for name, value in values.items()}
        scalars = {name: ((), value) for name, value in values.items()}
        yield amplifier.name, xr.Dataset(scalars, attrs={"remarks": remarks, "summary": summary})


def _put_serial(values: dict[str, float], serial: list[Trail], amplifier: Amplifier) -> list[str]:
    """Fill in the serial register of an amplifier; remarks."""
    slope, covariance, excess = slopes(serial)
    later = amplifier.overscan.shape[1] - len(slope)
    found = fit_offset(slope, covariance, amplifier.data.x1, later)
    for i, name in enumerate(("serial_cti", "offset_amplitude", "offset_decay")):
        values[name], values[f"{name}_error"] = float(found.value[i]), float(found.error[i])
    remarks = []
    if excess > 1:
        remarks.append(f"its trails scatter by {np.sqrt(excess):.1f} times their noise: errors enlarged")
    if found.chi2 > found.freedom + _UNLIKELY * np.sqrt(2 * found.freedom):
        remarks.append(f"trail is not that of transfers and an offset: chi2 {found.chi2:.0f} of {found.freedom}")
    if not found.value[1] > 3 * found.error[1]:
        remarks.append(f"{NOTE}no offset is seen: its decay is what was assumed")
    return remarks


def _put_parallel(values: dict[str, float], parallel: list[Trail], amplifier: Amplifier) -> list[str]:
    if not parallel:
        return [f"{NOTE}parallel transfers not measured: parallel overscan missing or too small"]
    slope, covariance, _ = slopes(parallel)
    values["parallel_cti"] = float(slope[0]) / amplifier.data.y1
    values["parallel_cti_error"] = float(np.sqrt(covariance[0, 0])) / amplifier.data.y1
    return []


def _trails(
    raw: xr.Dataset, amplifier: Amplifier, config: DeferredConfig, products: dict[str, xr.Dataset]
) -> tuple[list[Trail], list[Trail]]:
    """Serial and parallel trails of the flats within the limits; no parallel ones where there is no such overscan.

    Raises
    ------
    InsufficientInputs
        No gain, no serial overscan beside the data, or too few flats.
    """
    gain = float(products["gain"]["gain"].sel(amplifier=amplifier.name))
    if not gain > 0:
        raise InsufficientInputs("no gain for this amplifier: see the remarks of 'gain'")
    box = amplifier.overscan
    if box.x0 != amplifier.data.x1:
        raise InsufficientInputs("no serial overscan after the last data column: late charge cannot be seen")
    count = min(config.columns, box.shape[1] - _FEWEST_LATER)
    if count < 3:
        raise InsufficientInputs(f"{box.shape[1]} overscan columns, at least {_FEWEST_LATER + 3} are needed")
    bias, law = _bias(products, amplifier), _law(products, amplifier)
    ceiling = config.brightest / gain
    if "linearity" in products:
        top = float(products["linearity"]["linearity_ceiling"].sel(amplifier=amplifier.name))
        ceiling = min(ceiling, top) if np.isfinite(top) else ceiling
    serial, parallel = [], []
    counts = raw["counts"].sel(amplifier=amplifier.name)
    for i in range(counts.sizes["exposure"]):
        frame = counts.isel(exposure=i).values
        one = _serial_trail(frame, amplifier, bias, law, count)
        if not config.faintest / gain < one.signal < ceiling:
            continue
        serial.append(one)
        if (other := _parallel_trail(frame, amplifier, bias, law)) is not None:
            parallel.append(other)
    if len(serial) < config.minimum:
        raise InsufficientInputs(
            f"{len(serial)} flats from {config.faintest:.0f} to {ceiling * gain:.0f} electrons, at least "
            f"{config.minimum} are needed: take more, or change [deferred] minimum, faintest or brightest"
        )
    return serial, parallel if len(parallel) == len(serial) else []


def _bias(products: dict[str, xr.Dataset], amplifier: Amplifier) -> np.ndarray:
    """Master bias (y, x), adu; zeros without one, and where it has no value."""
    if "bias" not in products:
        return np.zeros(amplifier.data.shape)
    image = products["bias"]["image"].sel(amplifier=amplifier.name).values
    return np.nan_to_num(image[tuple(slice(size) for size in amplifier.data.shape)])


def _law(products: dict[str, xr.Dataset], amplifier: Amplifier) -> Curve | None:
    if "linearity" not in products:
        return None
    own = products["linearity"].sel(amplifier=amplifier.name)
    if not np.isfinite(own["linearity_level"].values).any():
        raise InsufficientInputs("no linearity curve for this amplifier: see the remarks of 'linearity'")
    return curve(own["linearity_level"].values, own["linearity_correction"].values, amplifier.name)


def _linear(signal: np.ndarray, law: Curve | None) -> np.ndarray:
    return signal if law is None else signal + law(signal)


def _serial_trail(frame: np.ndarray, amplifier: Amplifier, bias: np.ndarray, law: Curve | None, count: int) -> Trail:
    """Trail of raw counts (raw y, raw x) in the serial overscan."""
    data, box = amplifier.data, amplifier.overscan
    beyond = frame[data.y0 : data.y1, box.x0 : box.x1].astype(float)
    last = frame[data.y0 : data.y1, data.x1 - 1] - beyond[:, count:].mean(axis=1) - bias[:, -1]
    return trail(_linear(last, law), beyond, count)


def _parallel_trail(frame: np.ndarray, amplifier: Amplifier, bias: np.ndarray, law: Curve | None) -> Trail | None:
    """Trail of raw counts in the parallel overscan; rows are levelled by their serial overscan first.

    Both overscans are noisy: what the level of a row is off by is common to all its columns, and no scatter of
    columns shows it.
    """
    data, box, beside = amplifier.data, amplifier.parallel_overscan, amplifier.overscan
    rows, skip = box.shape[0], beside.shape[1] // 3
    if box.y0 != data.y1 or rows < 1 + _FEWEST_LATER:
        return None
    reference = frame[data.y1 - 1 : box.y1, beside.x0 + skip : beside.x1].astype(float)
    level = reference.mean(axis=1)
    columns = slice(data.x0, data.x1)
    beyond = (frame[box.y0 : box.y1, columns] - level[1:, None]).T
    last = frame[data.y1 - 1, columns] - level[0] - bias[-1]
    found = trail(_linear(last, law), beyond, 1)
    scatter = float(np.median(reference.var(axis=1, ddof=1))) / reference.shape[1]
    return Trail(found.signal, found.late, found.covariance + scatter * (1 + 1 / (rows - 1)))


def measure_deferred(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: DeferredConfig = DeferredConfig()
) -> xr.Dataset:
    """Measure late charge, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats.
    products : ``gain`` and, as far as there are, ``bias`` and ``linearity``, with a detector dim.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier).

    Raises
    ------
    InsufficientInputs
        See `check_deferred`.
    """
    check_deferred(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), None, config, parts

    return map_detectors(deferred_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
