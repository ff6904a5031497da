"""Gain and read noise of every amplifier, from 55Fe X-rays and from pairs of flats (Lupton 2016, Sec. 2.2; ¶2)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.pairs import CombinedGain, PairGain, combine_pairs, pair_gain
from lsstcal_dask.products.xrays import XrayGain, fe55_gain

__all__ = ["OUTPUTS", "GainConfig", "check_gains", "find_pairs", "gain_amplifiers", "measure_gain"]

OUTPUTS = {
    name: Output("float64", "electron/adu")
    for name in ("gain", "gain_error", "gain_fe55", "gain_fe55_error", "gain_pair", "gain_pair_error")
} | {"read_noise": Output("float64", "adu"), "read_noise_error": Output("float64", "adu")}


class GainConfig(BaseModel):
    """How gains are measured and which measurement is used (Sec. 2.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["auto", "fe55", "pair"] = Field(
        "auto", description="auto: of those that could be measured, the one with the smaller error"
    )
    pairs: Literal["auto", "extrapolated", "summed", "variance"] = Field(
        "auto", description="how pairs of flats deal with the brighter-fatter effect; see combine_pairs"
    )
    temperature: float | None = Field(None, gt=100, lt=320, description="K, of the silicon; the camera's if absent")
    diffusion: float = Field(1.0, gt=0, description="widest 55Fe charge cloud used, pixels: wider ones lose charge")
    disagreement: float = Field(4.0, gt=0, description="sigma between the methods that earns a remark")
    overscan: OverscanConfig = OverscanConfig()


def find_pairs(raw: xr.Dataset) -> list[tuple[int, int]]:
    """Positions of flats to be paired: successive in time, with the same exposure time, filter and wavelength.

    Examples
    --------
    Four flats of 1, 1, 2 and 2 s make the pairs (0, 1) and (2, 3).
    """
    columns = (raw[name].values for name in ("exposure_type", "exposure_time", "filter", "wavelength"))
    groups: dict[tuple, list[int]] = {}
    for i, (kind, seconds, band, wavelength) in enumerate(zip(*columns, strict=True)):
        if kind == "flat":
            groups.setdefault((f"{float(seconds):.4g}", str(band), f"{float(wavelength):.1f}"), []).append(i)
    return sorted((a, b) for found in groups.values() for a, b in zip(found[::2], found[1::2], strict=False))


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
    temperature : K, of the silicon.
    products : ``bias`` of this detector; may be absent, its structure then stays in the frames.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN where a method could not be used.
    """
    for amplifier in detector.amplifiers:
        yield amplifier.name, _amplifier_gain(raw, amplifier, temperature, config, products)


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
    known, plane = float("nan"), None
    if "bias" in products:
        bias = products["bias"].sel(amplifier=amplifier.name)
        known, plane = float(bias["read_noise"]), bias["image"].values
    noise = _Noise(known)
    try:
        xrays = _from_xrays(raw, amplifier, temperature, config, plane, noise)
        if xrays is not None:
            values["gain_fe55"], values["gain_fe55_error"] = xrays.gain, xrays.error
            summary["hits"] = xrays.spectrum.hits
    except CalibrationError as error:
        remarks.append(f"55Fe: {error}")
    try:
        pair, plain = _from_pairs(raw, amplifier, config, plane, noise, remarks)
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


class _Noise:
    """Collects the read noise seen in the reference pixels of every frame that is read."""

    def __init__(self, known: float) -> None:
        self.known = known  # adu, used where no frame has reference pixels
        self.squares: list[float] = []
        self.pixels = 0

    def add(self, noise: np.ndarray, pixels: int) -> None:
        self.squares += [float(value) ** 2 for value in noise if np.isfinite(value)]
        self.pixels += pixels * len(noise)

    def result(self) -> tuple[float, float]:
        """Read noise and its error, adu."""
        if not self.squares:
            return self.known, float("nan")
        value = float(np.sqrt(np.mean(self.squares)))
        return value, value / np.sqrt(2 * max(self.pixels, 1))

    def value(self) -> float:
        found = self.result()[0]
        if not found > 0:
            raise InsufficientInputs("the read noise is unknown (no reference pixels): build bias first")
        return found


def _images(
    raw: xr.Dataset,
    where: np.ndarray,
    amplifier: Amplifier,
    config: GainConfig,
    plane: np.ndarray | None,
    noise: _Noise,
) -> np.ndarray:
    """Frames (n, y, x) float32, adu, above overscan and ``plane``, the bias; adds their read noise to ``noise``."""
    counts = raw["counts"].isel(exposure=where).sel(amplifier=amplifier.name).values
    reference = reference_pixels(counts, amplifier)
    found = row_levels(reference, config.overscan)
    ny, nx = reference.shape[1:]
    noise.add(found.read_noise, ny * max(nx - 1 - config.overscan.skip, 0))
    images = counts[(slice(None), *amplifier.data.slices)] - found.level[:, :, None]
    if plane is not None:
        images -= plane[: images.shape[1], : images.shape[2]]
    return images.astype(np.float32, copy=False)


def _from_xrays(
    raw: xr.Dataset,
    amplifier: Amplifier,
    temperature: float,
    config: GainConfig,
    plane: np.ndarray | None,
    noise: _Noise,
) -> XrayGain | None:
    where = np.flatnonzero((raw["exposure_type"].values == "fe55") & raw["present"].values)
    if not len(where):
        return None
    images = _images(raw, where, amplifier, config, plane, noise)
    return fe55_gain(images, noise.value(), temperature_k=temperature, diffusion_px=(0.0, config.diffusion))


def _from_pairs(
    raw: xr.Dataset,
    amplifier: Amplifier,
    config: GainConfig,
    plane: np.ndarray | None,
    noise: _Noise,
    remarks: list[str],
) -> tuple[CombinedGain | None, float]:
    """Gain from all good pairs, and from their variances alone; a pair that is none is left out with a remark."""
    found: list[PairGain] = []
    for first, second, names in _present_pairs(raw):
        images = _images(raw, np.array([first, second]), amplifier, config, plane, noise)
        try:
            found.append(pair_gain(images[0], images[1], noise.value(), names=names))
        except CalibrationError as error:
            remarks.append(f"pair left out: {error}")
    if not found:
        return None, float("nan")
    return _combined(found, config.pairs, remarks), combine_pairs(found, method="variance").gain


def _combined(found: list[PairGain], method: str, remarks: list[str]) -> CombinedGain:
    """Gain from all pairs; where a lamp that changed shape spoils the sums of covariances, from variances alone."""
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


def _present_pairs(raw: xr.Dataset) -> Iterator[tuple[int, int, tuple[str, str]]]:
    present = raw["present"].values
    names = [str(name) for name in raw["exposure"].values]
    for first, second in find_pairs(raw):
        if present[first] and present[second]:
            yield first, second, (names[first], names[second])


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
        return camera.detector(name), config.temperature or camera.temperature, config, parts

    return map_detectors(gain_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
