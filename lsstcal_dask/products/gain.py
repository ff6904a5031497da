"""Gain and read noise of every amplifier, from 55Fe X-rays and from pairs of flats (Lupton 2016, Sec. 2.2; ¶2)."""

from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import chdtrc

from lsstcal_dask.errors import CalibrationError, DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.flats import ReadNoise, amplifier_images, find_pairs, present_pairs
from lsstcal_dask.products.pairs import CombinedGain, PairGain, combine_pairs, pair_gain
from lsstcal_dask.products.transfer import TransferConfig, photon_transfer
from lsstcal_dask.products.xrays import XrayGain, fe55_gain

__all__ = ["OUTPUTS", "GainConfig", "check_gains", "gain_amplifiers", "measure_gain", "silicon_temperature"]

OUTPUTS = {
    name: Output("float64", "electron/adu")
    for name in ("gain", "gain_error", "gain_fe55", "gain_fe55_error", "gain_pair", "gain_pair_error")
} | {"read_noise": Output("float64", "adu"), "read_noise_error": Output("float64", "adu")}

_COLDEST, _WARMEST = 100.0, 320.0  # K, of a CCD: a thermometer that says otherwise is broken


class GainConfig(BaseModel):
    """How gains are measured and which measurement is used (Sec. 2.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["auto", "fe55", "pair"] = Field(
        "auto", description="auto: of those that could be measured, the one with the smaller error"
    )
    pairs: Literal["auto", "transfer", "extrapolated", "summed", "variance"] = Field(
        "auto",
        description="how pairs of flats deal with the brighter-fatter effect: by the covariance model where they have "
        "six levels; see photon_transfer and combine_pairs",
    )
    temperature: float | None = Field(
        None, gt=100, lt=320, description="K, of the silicon; its thermometer's, or the camera's, if absent"
    )
    diffusion: float = Field(1.0, gt=0, description="widest 55Fe charge cloud used, pixels: wider ones lose charge")
    disagreement: float = Field(4.0, gt=0, description="sigma between the methods that earns a remark")
    overscan: OverscanConfig = OverscanConfig()


def check_gains(raw: xr.Dataset, config: GainConfig) -> None:
    """Refuse a set of exposures from which no gain can be measured.

    Raises
    ------
    InsufficientInputs
        Neither 55Fe exposures nor a pair of flats (as far as ``config.method`` wants them).
    """
    has_fe55 = bool((raw["exposure_type"].values == "fe55").any())
    has_pairs = bool(find_pairs(raw))
    wanted = {"fe55": has_fe55, "pair": has_pairs, "auto": has_fe55 or has_pairs}[config.method]
    if not wanted:
        need = {"fe55": "55Fe exposures", "pair": "two flats of the same exposure time and filter"}
        text = need.get(config.method, f"{need['fe55']} or {need['pair']}")
        raise InsufficientInputs(f"gain: needs {text}, and there are none: ingest them (--type fe55 or flat)")


def gain_amplifiers(
    raw: xr.Dataset,
    detector: Detector,
    temperature: float,
    config: GainConfig,
    products: dict[str, xr.Dataset],
) -> AmplifierResults:
    """Gain of each amplifier of one detector, one after the other.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, and ``present`` (exposure,); 55Fe and flats.
    temperature : K, of the silicon, where neither the configuration nor a thermometer says it.
    products : ``bias`` of this detector; may be absent, its structure then stays in the frames.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN where a method could not be used.
    """
    warm = config.temperature or silicon_temperature(raw) or temperature
    for amplifier in detector.amplifiers:
        yield amplifier.name, _amplifier_gain(raw, amplifier, warm, config, products)


def silicon_temperature(raw: xr.Dataset) -> float | None:
    """Of the silicon when the 55Fe exposures were taken, K; None where no thermometer tells what can be."""
    if "temperature" not in raw.coords:
        return None
    taken = (raw["exposure_type"].values == "fe55") & raw["present"].values
    known = raw["temperature"].values[taken]
    known = known[(known > _COLDEST) & (known < _WARMEST)]
    return float(known.mean()) if known.size else None


def _amplifier_gain(
    raw: xr.Dataset,
    amplifier: Amplifier,
    temperature: float,
    config: GainConfig,
    products: dict[str, xr.Dataset],
) -> xr.Dataset:
    values = dict.fromkeys(OUTPUTS, np.nan)
    remarks: list[str] = []
    summary: dict[str, float | str] = {}
    noise = ReadNoise.known(products, amplifier)
    try:
        xrays = _from_xrays(raw, amplifier, temperature, config, products, noise)
        if xrays is not None:
            values["gain_fe55"], values["gain_fe55_error"] = xrays.gain, xrays.error
            summary["hits"] = xrays.spectrum.hits
    except CalibrationError as error:
        remarks.append(f"55Fe: {error}")
    try:
        pair, plain = _from_pairs(raw, amplifier, config, products, noise, remarks)
        if pair is not None:
            values["gain_pair"], values["gain_pair_error"] = pair.gain, pair.error
            summary |= {"pairs": pair.pairs, "pair_method": pair.method, "pair_chi2": pair.chi2}
            summary["gain_pair_variance_only"] = plain
    except CalibrationError as error:
        remarks.append(f"pairs of flats: {error}")
    values["read_noise"], values["read_noise_error"] = noise.result()
    method = _choose(values, config.method)
    if method:
        values["gain"], values["gain_error"] = values[f"gain_{method}"], values[f"gain_{method}_error"]
        remarks += _disagreement(values, config.disagreement)
    else:
        remarks.append("no gain could be measured")
    summary |= {"method": method, "gain": values["gain"], "gain_error": values["gain_error"]}
    summary["read_noise"] = values["read_noise"]
    return xr.Dataset({k: ((), v) for k, v in values.items()}, attrs={"remarks": remarks, "summary": summary})


def _from_xrays(
    raw: xr.Dataset,
    amplifier: Amplifier,
    temperature: float,
    config: GainConfig,
    products: dict[str, xr.Dataset],
    noise: ReadNoise,
) -> XrayGain | None:
    where = np.flatnonzero((raw["exposure_type"].values == "fe55") & raw["present"].values)
    if not len(where):
        return None
    images = amplifier_images(raw, where, amplifier, config.overscan, products, noise)
    return fe55_gain(images, noise.value(), temperature_k=temperature, diffusion_px=(0.0, config.diffusion))


def _from_pairs(
    raw: xr.Dataset,
    amplifier: Amplifier,
    config: GainConfig,
    products: dict[str, xr.Dataset],
    noise: ReadNoise,
    remarks: list[str],
) -> tuple[CombinedGain | None, float]:
    """Gain from all good pairs, and from their variances alone; a pair that is none is left out with a remark."""
    found: list[PairGain] = []
    for first, second, names in present_pairs(raw):
        images = amplifier_images(raw, np.array([first, second]), amplifier, config.overscan, products, noise)
        try:
            found.append(pair_gain(images[0], images[1], noise.value(), names=names))
        except CalibrationError as error:
            remarks.append(f"pair left out: {error}")
    if not found:
        return None, float("nan")
    return _combined(found, config.pairs, noise.value(), remarks), combine_pairs(found, method="variance").gain


def _combined(found: list[PairGain], method: str, read_noise: float, remarks: list[str]) -> CombinedGain:
    """Gain from all pairs; where a lamp that changed shape spoils the sums of covariances, from variances alone."""
    best = None
    if method in ("auto", "transfer"):
        best = _transferred(found, read_noise, remarks, needed=method == "transfer")
    if best is None:
        best = combine_pairs(found, method=method)
    if method == "auto" and best.dof > 0 and best.probability < 1e-3 and best.method == "summed":
        best = combine_pairs(found, method="variance")
        remarks.append("pairs of flats: covariances disagree between pairs (the lamp changed): brighter-fatter ignored")
    if best.dof > 0 and best.probability < 1e-3:
        excess = float(np.sqrt(best.chi2 / best.dof))
        remarks.append(
            f"pairs of flats: {best.pairs} pairs scatter {excess:.1f} times their errors: error enlarged by that"
        )
        return replace(best, error=best.error * excess)
    return best


def _transferred(found: list[PairGain], read_noise: float, remarks: list[str], needed: bool) -> CombinedGain | None:
    """Gain of the covariance model; None where it is not needed and the pairs do not determine it."""
    try:
        result = photon_transfer(found, read_noise, TransferConfig(max_lag=len(found[0].covariances) - 1))
    except (InsufficientInputs, DegenerateSolution):
        if needed:
            raise
        return None
    remarks += result.remarks
    curve = result.curve
    return CombinedGain(
        gain=curve.model.gain,
        error=curve.error.gain,
        method="transfer",
        slope=float(curve.model.area[0, 0]) * curve.model.gain,
        slope_error=float(curve.error.area[0, 0]) * curve.model.gain,
        chi2=curve.chi2,
        dof=curve.dof,
        probability=float(chdtrc(curve.dof, curve.chi2)),
        pairs=int(result.used.sum()),
    )


def _choose(values: dict[str, float], method: str) -> str:
    if method != "auto":
        return method if np.isfinite(values[f"gain_{method}"]) else ""
    measured = [name for name in ("fe55", "pair") if np.isfinite(values[f"gain_{name}"])]
    return min(measured, key=lambda name: values[f"gain_{name}_error"]) if measured else ""


def _disagreement(values: dict[str, float], limit: float) -> list[str]:
    sigma = float(np.hypot(values["gain_fe55_error"], values["gain_pair_error"]))
    difference = values["gain_pair"] - values["gain_fe55"]
    if np.isfinite(sigma) and abs(difference) > limit * sigma:
        return [
            f"gain from flats {values['gain_pair']:.4f} and from 55Fe {values['gain_fe55']:.4f} electron/adu "
            f"differ by {abs(difference) / sigma:.1f} sigma"
        ]
    return []


def measure_gain(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: GainConfig = GainConfig()
) -> xr.Dataset:
    """Measure gains, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; 55Fe and flat exposures.
    camera : its camera.
    products : ``bias`` with a detector dim, or nothing.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier): gains in electron/adu and read noise in adu, with errors.

    Raises
    ------
    InsufficientInputs
        See `check_gains`.
    """
    check_gains(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), camera.temperature, config, parts

    return map_detectors(gain_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
