"""Raw exposures of a small camera with simple noise, and the truth they were made from.

Gain, read noise, overscan drift, two-dimensional bias, dark current with hot pixels,
Poisson light and 55Fe X-rays; nothing yet that makes one pixel depend on another.
Every frame is a pure function of (seed, exposure, detector).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np

from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.instrument.rawfits import Frame

__all__ = ["AmplifierTruth", "Plan", "amplifier_truth", "default_plan", "files", "simulate_frame", "sky"]

_PEDESTAL: Final = 25000.0  # adu
_K_ALPHA: Final = 1590.9  # electrons freed by a K-alpha X-ray in silicon at 173 K
_K_BETA: Final = _K_ALPHA * 6.490 / 5.889
_FANO: Final = 0.12
_MARGIN: Final = 8  # px around the image for electrons that leave it: 17 sigma of the widest cloud
_START: Final = datetime(2026, 7, 1, 20, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """One exposure to be made."""

    index: int
    kind: str  # bias, dark, flat, fe55 or science
    exposure_time: float  # s
    level: float = 0.0  # electrons of light in a flat or of sky

    @property
    def name(self) -> str:
        """Exposure id in the manner of the LSST camera."""
        return f"MC_S_20260701_{self.index:06d}"

    @property
    def time(self) -> str:
        """UTC of the readout, ISO."""
        return (_START + timedelta(minutes=2 * self.index)).strftime("%Y-%m-%dT%H:%M:%S.000")

    @property
    def dark_time(self) -> float:
        """Seconds over which dark charge gathers."""
        return self.exposure_time + 0.5 if self.exposure_time else 0.0


@dataclass(frozen=True)
class AmplifierTruth:
    """What one amplifier is."""

    gain: float  # electron/adu
    read_noise: float  # electron
    bias: np.ndarray  # (y, x) adu, above the overscan
    dark: np.ndarray  # (y, x) electron/s


def default_plan() -> tuple[Plan, ...]:
    """A short calibration afternoon and one science exposure."""
    kinds: list[tuple[str, float, float]] = [("bias", 0.0, 0.0)] * 8 + [("dark", 300.0, 0.0)] * 6
    for level in (5e3, 20e3, 45e3):
        kinds += [("flat", level / 5e3, level)] * 2
    kinds += [("fe55", 10.0, 0.0)] * 6 + [("science", 30.0, 800.0)]
    return tuple(Plan(i + 1, *row) for i, row in enumerate(kinds))


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))


def _number(detector: Detector, amplifier: Amplifier) -> int:
    return detector.id * 64 + detector.amplifiers.index(amplifier)


def amplifier_truth(seed: int, detector: Detector, amplifier: Amplifier) -> AmplifierTruth:
    """Truth of one amplifier, a pure function of its arguments."""
    random = _random(seed, 1, _number(detector, amplifier))
    ny, nx = amplifier.data.shape
    slope, columns = random.normal(0, 3), random.normal(0, 0.5, nx)
    bias = (slope * np.arange(ny) / ny)[:, None] + 4 * np.exp(-np.arange(nx) / 6.0) + columns
    dark = np.full((ny, nx), 0.02) * random.normal(1, 0.1)
    hot = random.random((ny, nx)) < 1e-3
    dark[hot] += random.lognormal(0.0, 1.0, int(hot.sum()))
    return AmplifierTruth(
        amplifier.gain * random.normal(1, 0.03), amplifier.read_noise * random.normal(1, 0.05), bias, dark
    )


def sky(seed: int, plan: Plan, detector: Detector, amplifier: Amplifier) -> np.ndarray:
    """Expected electrons of light (y, x) in an exposure: a flat, or sky and stars."""
    ny, nx = amplifier.data.shape
    light = np.full((ny, nx), plan.level)
    if plan.kind == "science":
        random = _random(seed, 2, plan.index, _number(detector, amplifier))
        for _ in range(12):
            y0, x0, flux = random.uniform(0, ny), random.uniform(0, nx), 10 ** random.uniform(3, 5)
            rows, columns = (np.exp(-((np.arange(n) - at) ** 2) / (2 * 2.0**2)) for n, at in ((ny, y0), (nx, x0)))
            light += flux / (2 * np.pi * 2.0**2) * rows[:, None] * columns
    return light


def _xrays(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Electrons (y, x) of 55Fe hits, each electron diffused by itself."""
    count = random.poisson(0.005 * shape[0] * shape[1])
    beta = random.random(count) < 0.12
    charge = np.where(beta, _K_BETA, _K_ALPHA)
    charge = np.rint(random.normal(charge, np.sqrt(_FANO * charge))).astype(int)
    sigma = random.uniform(0.3, 0.45, count)
    centres = np.stack([random.uniform(0, size, count) for size in shape], axis=1)[:, :, None]
    padded = shape[0] + 2 * _MARGIN, shape[1] + 2 * _MARGIN
    landed = [np.empty(0)]
    for n, s, centre in zip(charge, sigma, centres, strict=True):
        y, x = np.floor(random.standard_normal((2, n)) * s + centre) + _MARGIN
        landed.append(y * padded[1] + x)
    image = np.bincount(np.concatenate(landed).astype(int), minlength=padded[0] * padded[1]).reshape(padded)
    return image[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _counts(seed: int, plan: Plan, detector: Detector, amplifier: Amplifier) -> np.ndarray:
    truth = amplifier_truth(seed, detector, amplifier)
    random = _random(seed, 3, plan.index, _number(detector, amplifier))
    electrons = random.poisson(sky(seed, plan, detector, amplifier) + truth.dark * plan.dark_time).astype(float)
    if plan.kind == "fe55":
        electrons += _xrays(random, electrons.shape)
    raw_y, raw_x = amplifier.raw_shape
    drift = np.cumsum(random.normal(0, 0.02, raw_y)) + 2 * np.exp(-np.arange(raw_y) / 10.0)
    adu = np.full((raw_y, raw_x), _PEDESTAL + random.normal(0, 20)) + drift[:, None]
    adu[amplifier.data.slices] += truth.bias + electrons / truth.gain
    adu += random.normal(0, truth.read_noise / truth.gain, adu.shape)
    return np.rint(adu)


def simulate_frame(seed: int, plan: Plan, camera: Camera, detector: Detector) -> Frame:
    """Raw frame of one CCD.

    Returns
    -------
    Frame with counts (amplifier, y, x) in adu, readout orientation.
    """
    counts = np.zeros((len(camera.amplifier_names), *camera.raw_shape), camera.dtype)
    for amplifier in detector.amplifiers:
        ny, nx = amplifier.raw_shape
        place = camera.amplifier_names.index(amplifier.name)
        counts[place, :ny, :nx] = _counts(seed, plan, detector, amplifier)
    header: dict[str, Any] = {
        "exposure_type": plan.kind,
        "time": plan.time,
        "exposure_time": plan.exposure_time,
        "dark_time": plan.dark_time,
        "filter": "r" if plan.kind in ("flat", "science") else "none",
        "wavelength": float("nan"),
        "photodiode": float("nan"),
    }
    present = tuple(amplifier.name for amplifier in detector.amplifiers)
    return Frame(plan.name, detector.name, header, {}, counts, present)


def files(seed: int, camera: Camera, plans: tuple[Plan, ...]) -> Iterator[tuple[str, Frame]]:
    """File name and frame of every CCD of every exposure."""
    for plan in plans:
        for detector in camera.detectors:
            yield f"{plan.name}_{detector.name}.fits.fz", simulate_frame(seed, plan, camera, detector)
