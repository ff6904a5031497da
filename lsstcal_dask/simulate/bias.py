"""The electronic zero of each channel: its fixed two-dimensional structure and its drift (¶1, Secs. 2.1 and 3.1).

Gauge: the structure is zero in the serial overscan, so that it is what a perfect master bias holds, and
whatever moves the reference pixels moves the whole row with them and belongs to the drift. Channels without
serial overscan have their structure relative to the pedestal.
"""

from typing import Final

import numpy as np
from pydantic import Field
from scipy.fft import irfft

from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["BiasStructure", "OverscanDrift", "after_idle", "bias_terms", "bias_truth", "drift"]

_WAVES: Final = 2  # random Fourier modes of the structure
_WAVE_NUMBER: Final = 1.5  # cycles over the amplifier, at most
_MODES: Final = 64  # of the drift; the shortest period is a 32nd of the rows


class BiasStructure(Effect):
    """Sizes of the parts of the fixed structure, adu; the closed loop of Sec. 2.1 of SCIENCE asks for 8-electron ramps.

    A share of the exposures is taken after an idle time; their corner glows more (the "yellow corner").
    """

    ramp: float = Field(5.3, ge=0)  # adu over the amplifier along x and along y; each has 0.5 to 1 times that
    columns: float = Field(0.5, ge=0)  # adu rms from column to column
    waves: float = Field(0.5, ge=0)  # adu rms of the smooth random part
    corner: float = Field(5.0, ge=0)  # adu in the pixel read first
    corner_size: float = Field(0.12, gt=0)  # of the amplifier's width and height, 1/e
    edge: float = Field(2.0, ge=0)  # adu in the last light-sensitive column
    edge_width: float = Field(3.0, gt=0)  # px, 1/e
    transient: float = Field(4.0, ge=0)  # adu in the first column of a row, as the serial register starts
    transient_columns: float = Field(6.0, gt=0)  # px, 1/e
    idle_share: float = Field(0.0, ge=0, le=1)  # of the exposures
    idle_glow: float = Field(20.0, ge=0)  # adu in the pixel read first, on top of `corner`


class OverscanDrift(Effect):
    """What the level of a channel does from exposure to exposure and from row to row, adu."""

    level: float = Field(5.0, ge=0)  # adu rms from one exposure to the next
    rows: float = Field(0.5, ge=0)  # adu rms of the slow wander within an exposure
    colour: float = Field(1.5, ge=0, le=3)  # its power goes as frequency**-colour: 1 is 1/f, 2 a random walk
    transient: float = Field(2.0, ge=0)  # adu at row 0, each channel 0.5 to 1.5 times that
    transient_rows: float = Field(10.0, gt=0)  # px, 1/e
    jumps: float = Field(0.02, ge=0)  # mean number in an exposure of a channel
    jump: float = Field(2.0, ge=0)  # adu rms of their size


def after_idle(seed: int, settings: BiasStructure, exposure_number: int) -> bool:
    """Whether the exposure is one of those taken after an idle time."""
    draw = stream(seed, "idle", exposure=exposure_number).random()
    return bool(settings.on and draw < settings.idle_share)


def bias_terms(
    seed: int, settings: BiasStructure, detector: Detector, amplifier_index: int, exposure_number: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The structure as a sum of products, ``B(y, x) = sum_r rows[r, y] columns[r, x]``, over the raw amplifier.

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.
    exposure_number : of the exposure whose structure it is; default, the fixed structure alone.

    Returns
    -------
    (r, raw y), (r, raw x) float64; their products are adu above the serial overscan.
    """
    amplifier = detector.amplifiers[amplifier_index]
    ny, nx = amplifier.raw_shape
    if not settings.on:
        return np.zeros((1, ny)), np.zeros((1, nx))
    random = stream(seed, "bias_structure", detector=detector.id, amplifier=amplifier_index)
    y, x = (np.arange(n) for n in (ny, nx))
    up, along = _relative(amplifier)
    ramp_y, ramp_x = settings.ramp * random.uniform(0.5, 1, 2) * random.choice([-1.0, 1.0], 2)
    steady = ramp_x * along + settings.columns * random.standard_normal(nx)
    steady += settings.transient * np.exp(-x / settings.transient_columns)
    steady += settings.edge * np.exp(-np.maximum(amplifier.data.x1 - 1 - x, 0) / settings.edge_width)
    glow = settings.corner
    if exposure_number is not None and after_idle(seed, settings, exposure_number):
        glow += settings.idle_glow
    height, width = (max(1.0, settings.corner_size * n) for n in amplifier.data.shape)
    rows = [np.ones(ny), ramp_y * up, glow * np.exp(-y / height)]
    columns = [steady, np.ones(nx), np.exp(-x / width)]
    numbers = random.uniform(-1, 1, (_WAVES, 4)) * [_WAVE_NUMBER, np.pi, _WAVE_NUMBER, np.pi]
    for wave_y, phase_y, wave_x, phase_x in numbers:
        rows.append(2 / np.sqrt(_WAVES) * settings.waves * np.cos(2 * np.pi * wave_y * up + phase_y))
        columns.append(np.cos(2 * np.pi * wave_x * along + phase_x))
    shape = np.array(columns)
    shape[:, amplifier.overscan.x0 : amplifier.overscan.x1] = 0.0
    return np.array(rows), shape


def _relative(amplifier: Amplifier) -> tuple[np.ndarray, np.ndarray]:
    """Raw rows and columns counted so that the light-sensitive pixels span -1/2 to 1/2."""
    box = amplifier.data
    (ny, nx), (height, width) = amplifier.raw_shape, box.shape
    return (np.arange(ny) - box.y0) / height - 0.5, (np.arange(nx) - box.x0) / width - 0.5


def bias_truth(seed: int, settings: BiasStructure, detector: Detector, amplifier_index: int) -> np.ndarray:
    """What a perfect master bias holds.

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.

    Returns
    -------
    (y, x) float32 over the data box, readout orientation, adu above the mean serial overscan.
    """
    rows, columns = bias_terms(seed, settings, detector, amplifier_index)
    in_y, in_x = detector.amplifiers[amplifier_index].data.slices
    total = np.zeros(detector.amplifiers[amplifier_index].data.shape, np.float32)
    # added up one by one: a matrix product would depend on how many threads it uses
    for row, column in zip(rows[:, in_y], columns[:, in_x], strict=True):
        total += np.multiply.outer(row, column).astype(np.float32)
    return total


def drift(
    seed: int, settings: OverscanDrift, detector: Detector, amplifier_index: int, exposure_number: int
) -> np.ndarray:
    """Level of every raw row of a channel in one exposure, less the pedestal.

    Level of the exposure + a Gaussian wander with power frequency**-colour, made of 64 Fourier modes over
    twice the rows (so that its ends need not meet) + a transient at row 0 + jumps.

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.
    exposure_number : of the exposure.

    Returns
    -------
    (raw y,) float64, adu.
    """
    n = detector.amplifiers[amplifier_index].raw_shape[0]
    if not settings.on:
        return np.zeros(n)
    fixed = stream(seed, "overscan_transient", detector=detector.id, amplifier=amplifier_index)
    random = stream(seed, "overscan_drift", exposure=exposure_number, detector=detector.id, amplifier=amplifier_index)
    rows = np.arange(n)
    level = settings.level * random.standard_normal() + _wander(settings, random, n)
    level += settings.transient * fixed.uniform(0.5, 1.5) * np.exp(-rows / settings.transient_rows)
    for _ in range(random.poisson(settings.jumps)):
        level += settings.jump * random.standard_normal() * (rows >= random.integers(n))
    return level


def _wander(settings: OverscanDrift, random: np.random.Generator, n: int) -> np.ndarray:
    """Gaussian noise of n rows with the wanted colour; its variance at a row is ``settings.rows**2``."""
    modes = np.arange(1, min(_MODES, n - 1) + 1)
    power = modes**-settings.colour / np.sum(modes**-settings.colour)
    real, imaginary = random.standard_normal((2, len(modes)))
    spectrum = np.zeros(n + 1, complex)
    spectrum[modes] = settings.rows * np.sqrt(power) * (real + 1j * imaginary) / 2
    return irfft(spectrum, 2 * n, norm="forward")[:n]
