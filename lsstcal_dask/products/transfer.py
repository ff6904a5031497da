"""Photon transfer of every amplifier: gain, noise and brighter-fatter coefficients from a ladder of pairs of flats.

Lupton 2016, Sec. 2.2b; `pairs` measures variances and covariances, `covariance_model` explains them. The gain needs
linear counts: a slope of the converter and the gain cannot be told apart, so that of `linearity` is 1 at zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.covariance_model import LEVELS, Curve, Points, fit_covariances
from lsstcal_dask.products.flats import ReadNoise, amplifier_images, find_pairs, present_pairs
from lsstcal_dask.products.pairs import PairGain, combine_pairs, pair_gain

__all__ = [
    "LAGS",
    "OUTPUTS",
    "Transfer",
    "TransferConfig",
    "check_transfer",
    "find_turnoff",
    "photon_transfer",
    "transfer_amplifiers",
    "transfer_curve",
]

LAGS: Final = 9
"""Lags, 0 to 8 pixels, of the matrices of the product; NaN beyond those that were fitted."""

_MATRICES: Final = {"a_matrix": "1/electron", "c_matrix": "1/electron**2", "noise_matrix": "electron**2"}

OUTPUTS: Final = {
    name + ending: Output("float64", unit)
    for name, unit in {
        "gain": "electron/adu",
        "read_noise": "electron",
        "gain_summed": "electron/adu",
        "ptc_turnoff": "electron",
        **_MATRICES,
    }.items()
    for ending in ("", "_error")
} | {"ptc_chi2": Output("float64"), "ptc_dof": Output("float64"), "ptc_pairs": Output("float64")}


class TransferConfig(BaseModel):
    """How the photon transfer curve is measured and fitted (Sec. 2.2b)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_lag: int = Field(LAGS - 1, ge=1, le=LAGS - 1, description="pixel, longest lag of the covariances fitted")
    quadratic: bool = Field(
        False, description="fit also the part of the boundary shifts that grows with charge squared"
    )
    clip: float = Field(5.0, gt=3, description="sigma of a pair's variance beyond which it is left out")
    plausible: tuple[float, float] = Field(
        (0.3, 10.0), description="gains, electron/adu, beyond which there is a remark"
    )
    disagreement: float = Field(4.0, gt=0, description="sigma between the fit and the sum of covariances for a remark")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True)
class Transfer:
    """Photon transfer of one amplifier; ``turnoff`` and its error in electron, NaN where there is none."""

    curve: Curve
    turnoff: float
    turnoff_error: float
    used: np.ndarray  # (n,) bool, pairs that were fitted
    remarks: tuple[str, ...]


def check_transfer(raw: xr.Dataset, config: TransferConfig) -> None:
    """Refuse flats that are no ladder, by their headers alone.

    Raises
    ------
    InsufficientInputs
        Pairs of equal flats at fewer than six exposure times, all through one filter.
    """
    ladder = _ladder(raw)
    pairs = find_pairs(ladder)
    levels = len({f"{float(ladder['exposure_time'].values[first]):.4g}" for first, _ in pairs})
    if levels < LEVELS:
        raise InsufficientInputs(
            f"ptc: {len(pairs)} pairs of equal flats at {levels} levels, at least {LEVELS} levels are needed: "
            "take two flats at each of more exposure times"
        )


def _ladder(raw: xr.Dataset) -> xr.Dataset:
    """Flats of one filter and wavelength: of those with the most exposure times, for the effect depends on colour."""
    columns = (raw[name].values for name in ("exposure_type", "filter", "wavelength", "exposure_time"))
    light = [
        (str(band), f"{float(wavelength):.1f}", f"{float(seconds):.4g}") if kind == "flat" else ("", "", "")
        for kind, band, wavelength, seconds in zip(*columns, strict=True)
    ]
    times: dict[tuple[str, str], set[str]] = {}
    for band, wavelength, seconds in light:
        if seconds:
            times.setdefault((band, wavelength), set()).add(seconds)
    best = max(times, key=lambda key: len(times[key]), default=("", ""))
    return raw.isel(exposure=[i for i, row in enumerate(light) if row[2] and row[:2] == best])


def find_turnoff(mean: np.ndarray, covariances: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """Level above which pixels no longer keep their charge: the variance falls while a neighbour's covariance rises.

    Parameters
    ----------
    mean : (n,) adu, ascending.
    covariances, errors : (n, lag y, lag x) adu**2.

    Returns
    -------
    Turnoff, the level of the highest variance, and its error, half of the way to the next level, adu; NaN if the
    variance only rises, or falls without its neighbours as it does in a converter that is full.
    Level above which no pair is to be fitted, infinite if the variance only rises.
    """
    variance, top = covariances[:, 0, 0], int(np.argmax(covariances[:, 0, 0]))
    fallen = [
        later
        for later in range(top + 1, len(mean))
        if variance[top] - variance[later] > 5 * np.hypot(errors[top, 0, 0], errors[later, 0, 0])
    ]
    if not fallen:
        return np.nan, np.nan, np.inf
    later, limit = fallen[0], float(mean[top])
    rise = max((covariances[later, y, x] - covariances[top, y, x]) / errors[later, y, x] for y, x in ((1, 0), (0, 1)))
    if rise <= 0:
        return np.nan, np.nan, limit
    return limit, float(mean[top + 1] - mean[top]) / 2, limit


def photon_transfer(
    pairs: Sequence[PairGain], read_noise: float, config: TransferConfig = TransferConfig(), names: Sequence[str] = ()
) -> Transfer:
    """Fit the photon transfer of one amplifier to its pairs of flats.

    Pairs above the turnoff are left out, and one after the other those whose variance misses the fit by more than
    ``config.clip`` sigma, as long as they are a third at most.

    Parameters
    ----------
    pairs : measured with lags up to ``config.max_lag`` or more.
    read_noise : adu, of a single frame.
    names : of the pairs, for remarks.

    Raises
    ------
    InsufficientInputs
        Pairs of fewer than six levels below the turnoff.
    DegenerateSolution
        They follow no curve.
    """
    order = np.argsort([p.mean for p in pairs], kind="stable")
    lags = config.max_lag + 1
    mean = np.array([pairs[i].mean for i in order])
    covariances = np.array([pairs[i].covariances[:lags, :lags] for i in order])
    errors = np.array([pairs[i].covariance_errors[:lags, :lags] for i in order])
    turnoff, turnoff_error, limit = find_turnoff(mean, covariances, errors)
    covariances[:, 0, 0] += read_noise**2
    points = Points(mean, covariances, np.array([pairs[i].counts[:lags, :lags] for i in order]))
    remarks = [] if limit == np.inf else [f"note: no pair above {limit:.0f} adu is fitted: the variance falls there"]
    use = mean <= limit
    allowed = int(use.sum()) // 3
    curve = fit_covariances(points[use], read_noise, quadratic=config.quadratic)
    while np.max(np.abs(curve.pull)) > config.clip and allowed:
        worst = np.flatnonzero(use)[int(np.argmax(np.abs(curve.pull)))]
        name = names[order[worst]] if names else f"at {mean[worst]:.0f} adu"
        remarks.append(f"pair {name} left out: its variance is {np.max(np.abs(curve.pull)):.1f} sigma off the curve")
        use[worst] = False
        allowed -= 1
        curve = fit_covariances(points[use], read_noise, quadratic=config.quadratic)
    used = np.zeros(len(pairs), bool)
    used[order] = use
    gain = curve.model.gain
    return Transfer(curve, turnoff * gain, turnoff_error * gain, used, tuple(remarks))


def transfer_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: TransferConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Photon transfer of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,); flats.
    products : ``bias`` and ``linearity`` of this detector; either may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`) of an amplifier; NaN where its curve could not be fitted, with a remark.
    """
    ladder = _ladder(raw)
    for amplifier in detector.amplifiers:
        yield amplifier.name, _amplifier(ladder, amplifier, config, products)


def _amplifier(
    raw: xr.Dataset, amplifier: Amplifier, config: TransferConfig, products: dict[str, xr.Dataset]
) -> xr.Dataset:
    values: dict[str, Any] = {name: _empty(name) for name in OUTPUTS}
    remarks: list[str] = []
    summary: dict[str, float | str] = {}
    try:
        noise = ReadNoise.known(products, amplifier)
        found = list(_measured(raw, amplifier, config, products, noise, remarks))
        if not found:
            raise InsufficientInputs("no usable pair of flats")
        result = photon_transfer([p for p, _ in found], noise.value(), config, [name for _, name in found])
    except CalibrationError as error:
        remarks.append(f"no photon transfer: {error}")
    else:
        remarks += result.remarks
        values |= _values(result)
        values |= _summed([p for (p, _), use in zip(found, result.used, strict=True) if use])
        remarks += _doubts(values, config)
        summary = {k: float(values[k]) for k in ("gain", "gain_error", "ptc_chi2", "ptc_dof", "ptc_turnoff")}
    dims = {name: ("lag_y", "lag_x") if name.removesuffix("_error") in _MATRICES else () for name in OUTPUTS}
    return xr.Dataset(
        {name: (dims[name], values[name]) for name in OUTPUTS}, attrs={"remarks": remarks, "summary": summary}
    )


def _empty(name: str) -> Any:
    return np.full((LAGS, LAGS), np.nan) if name.removesuffix("_error") in _MATRICES else np.nan


def _measured(
    raw: xr.Dataset,
    amplifier: Amplifier,
    config: TransferConfig,
    products: dict[str, xr.Dataset],
    noise: ReadNoise,
    remarks: list[str],
) -> Iterator[tuple[PairGain, str]]:
    """Pairs of an amplifier with their names; one that is none is left out with a remark."""
    for first, second, names in present_pairs(raw):
        images = amplifier_images(raw, np.array([first, second]), amplifier, config.overscan, products, noise)
        try:
            yield pair_gain(images[0], images[1], noise.value(), max_lag=config.max_lag, names=names), ", ".join(names)
        except CalibrationError as error:
            remarks.append(f"pair left out: {error}")


def _values(result: Transfer) -> dict[str, Any]:
    """Variables of a fit."""
    model, error = result.curve.model, result.curve.error
    noise = max(model.noise[0, 0], 0.0) ** 0.5
    found: dict[str, Any] = {
        "gain": model.gain,
        "gain_error": error.gain,
        "read_noise": noise,
        "read_noise_error": error.noise[0, 0] / (2 * noise) if noise else np.nan,
        "ptc_turnoff": result.turnoff,
        "ptc_turnoff_error": result.turnoff_error,
        "ptc_chi2": result.curve.chi2,
        "ptc_dof": float(result.curve.dof),
        "ptc_pairs": float(result.used.sum()),
    }
    fitted = {"a_matrix": "area", "noise_matrix": "noise"}
    if np.isfinite(error.curvature).any():
        fitted["c_matrix"] = "curvature"
    for name, part in fitted.items():
        for ending, source in (("", model), ("_error", error)):
            matrix = getattr(source, part)
            found[name + ending] = np.pad(matrix, (0, LAGS - len(matrix)), constant_values=np.nan)
    return found


def _summed(pairs: Sequence[PairGain]) -> dict[str, float]:
    """Gain from the sums of all covariances, as of binned flats: a check free of the model (Sec. 2.2c)."""
    good = [p for p in pairs if np.isfinite(p.gain_summed)]
    if not good:
        return {}
    both = combine_pairs(good, method="summed")
    return {"gain_summed": both.gain, "gain_summed_error": both.error}


def _doubts(values: dict[str, Any], config: TransferConfig) -> list[str]:
    """What a user should know about a fit."""
    gain, low, high = values["gain"], *config.plausible
    found = [] if low <= gain <= high else [f"gain {gain:.3f} electron/adu is outside {low:g} to {high:g}"]
    dof = values["ptc_dof"]
    if values["ptc_chi2"] > dof + 5 * np.sqrt(2 * dof):
        found.append(
            f"the covariances miss their model: chi2 {values['ptc_chi2']:.0f} for {dof:.0f} degrees of freedom"
        )
    apart = abs(values["gain_summed"] - gain) / np.hypot(values["gain_summed_error"], values["gain_error"])
    if apart > config.disagreement:
        found.append(
            f"gain {gain:.4f} and that of binned flats, {values['gain_summed']:.4f}, differ by {apart:.1f} sigma"
        )
    return found


def transfer_curve(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: TransferConfig = TransferConfig()
) -> xr.Dataset:
    """Measure photon transfer curves, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; flats.
    camera : its camera.
    products : ``bias`` and ``linearity`` with a detector dim, or nothing.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier) and, of the matrices, (lag_y, lag_x).

    Raises
    ------
    InsufficientInputs
        See `check_transfer`.
    """
    check_transfer(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), None, config, parts

    sizes = {"amplifier": raw.sizes["amplifier"], "lag_y": LAGS, "lag_x": LAGS}
    return map_detectors(transfer_amplifiers, raw, OUTPUTS, sizes, arguments)
