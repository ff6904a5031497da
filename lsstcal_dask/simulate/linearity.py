"""Non-linearity of each readout channel, from true to measured signal (Lupton 2016, ¶3, Sec. 2.3).

With A the true signal above the bias in adu (electrons over gain), the channel delivers
``m(A) = A (1 + s(A) + l(A)) - d max(0, A - A_b)``, whose inverse is the curve L that a calibration looks for:

- s, smooth: some random Fourier modes in ``1 - exp(-A / scale)``, less their value at zero;
- l, low light: ``bump x exp(1 - x)``, x = A / bump_level, greatest there, or least;
- d, a change of slope at A_b.

Gauge: m(0) = 0 and m'(0) = 1 exactly, so the gain is the slope of electrons against adu for little light.
Below zero m(A) = A. The bounds of the settings keep m' above one half: L exists everywhere.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["Nonlinearity", "Table", "linearity_truth", "table", "true_to_measured"]

_STEEPEST: Final = 0.25  # most that the smooth part may add to or take from the slope
_SPACING: Final = 32.0  # adu between the nodes of the table, at most: its error is below 2e-3 adu
_REACH: Final = 2.0**18  # adu to which the table goes: beyond, every converter is at its end
_INVERSE_STEPS: Final = 80  # each halves the error at least


class Nonlinearity(Effect):
    """How far channels are from linear: the sizes asked of the calibration's closed loop (Sec. 2.3 of SCIENCE)."""

    smooth: float = Field(0.01, ge=0, le=0.05)  # greatest |s| of every channel
    modes: int = Field(3, ge=1, le=8)
    scale: float = Field(60e3, gt=100)  # adu
    break_level: float = Field(40e3, gt=100)  # adu
    break_slope: float = Field(0.002, ge=0, le=0.1)  # d, median of the channels: each has 0.5 to 1.5 times that
    bump: float = Field(2e-4, ge=-0.01, le=0.01)  # l where it is greatest, or least
    bump_level: float = Field(1000.0, gt=1)  # adu


@dataclass(frozen=True, eq=False)
class Table:
    """Measured less true signal at evenly spaced true signals from zero, to be interpolated linearly."""

    deviation: np.ndarray  # (node,) float32, adu
    step: float  # adu


def _waves(settings: Nonlinearity, amplitudes: np.ndarray, phases: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Sum of the smooth modes at u = 1 - exp(-A / scale), zero at u = 0."""
    total = np.zeros_like(u)
    for k in range(settings.modes):
        total += amplitudes[k] * (np.cos(phases[k] + np.pi * (k + 1) * u) - np.cos(phases[k]))
    return total


def _numbers(
    seed: int, settings: Nonlinearity, detector: Detector, amplifier_index: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Amplitudes and phases of the smooth modes, and the change of slope, of one channel."""
    random = stream(seed, "nonlinearity", detector=detector.id, amplifier=amplifier_index)
    orders = np.arange(1, settings.modes + 1)
    amplitudes = random.standard_normal(settings.modes) / orders
    phases = random.uniform(0, 2 * np.pi, settings.modes)
    largest = np.abs(_waves(settings, amplitudes, phases, np.linspace(0, 1, 2001))).max()
    # A ds/dA is at most sum |a_k| pi k times the greatest value of t exp(-t), which is 1 / e
    slope = np.pi * np.sum(np.abs(amplitudes) * orders) / np.e
    amplitudes = amplitudes * min(settings.smooth / largest, _STEEPEST / slope)
    return amplitudes, phases, settings.break_slope * random.uniform(0.5, 1.5)


def _deviation(
    seed: int, settings: Nonlinearity, detector: Detector, amplifier_index: int, true: np.ndarray
) -> np.ndarray:
    """Measured less true signal, adu."""
    amplitudes, phases, slope = _numbers(seed, settings, detector, amplifier_index)
    signal = np.maximum(true, 0.0)
    x = signal / settings.bump_level
    relative = _waves(settings, amplitudes, phases, -np.expm1(-signal / settings.scale))
    relative += settings.bump * x * np.exp(1 - x)
    return signal * relative - slope * np.maximum(0.0, signal - settings.break_level)


def true_to_measured(
    seed: int, settings: Nonlinearity, detector: Detector, amplifier_index: int, true: Any
) -> np.ndarray:
    """Signal that a channel delivers, m(A).

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.
    true : electrons / gain, adu, any shape.

    Returns
    -------
    float64, adu above the bias, same shape.
    """
    true = np.asarray(true, np.float64)
    if not settings.on:
        return true.copy()
    return true + _deviation(seed, settings, detector, amplifier_index, true)


def linearity_truth(
    seed: int, settings: Nonlinearity, detector: Detector, amplifier_index: int, measured: Any
) -> np.ndarray:
    """True signal behind a measured one, L(m): what a perfect linearity product returns.

    The fixed point of ``A = m - (m(A) - A)``, which halves the error at every step because m' is within a
    half of one.

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.
    measured : adu above the bias, noise-free, any shape.

    Returns
    -------
    float64, adu, same shape, exact to 1e-8 adu or 1e-13 of the signal.
    """
    measured = np.asarray(measured, np.float64)
    true = measured.copy()
    if not settings.on:
        return true
    for _ in range(_INVERSE_STEPS):
        last, true = true, measured - _deviation(seed, settings, detector, amplifier_index, true)
        if np.all(np.abs(true - last) <= 1e-14 * np.abs(true) + 1e-10):
            break
    return true


def table(seed: int, settings: Nonlinearity, detector: Detector, amplifier_index: int) -> Table:
    """The curve as the readout evaluates it: straight between nodes, one of them at the change of slope.

    Beyond the last node it goes on straight.
    """
    if not settings.on:
        return Table(np.zeros(2, np.float32), _SPACING)
    step = settings.break_level / np.ceil(settings.break_level / _SPACING)
    nodes = np.arange(0.0, _REACH + 2 * step, step)
    values = _deviation(seed, settings, detector, amplifier_index, nodes)
    return Table(values.astype(np.float32), float(step))
