"""Gains compared: two methods across amplifiers, and amplifiers or a CCD through time (Lupton 2016, Sec. 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs

__all__ = ["Agreement", "Change", "common_series", "compare_gains", "find_changes"]


@dataclass(frozen=True)
class Agreement:
    """Ratio of two gains across amplifiers.

    ``ratio`` is the common one, which says nothing (the energy of a pair of charges is known to 1.1 %); ``scatter``
    is what the amplifiers differ by beyond their errors, zero if they do not. ``worst`` is the place of the amplifier
    that is farthest off, by ``sigma``.
    """

    ratio: float
    error: float
    scatter: float
    chi2: float
    dof: int
    worst: int
    sigma: float


def compare_gains(first: ArrayLike, first_error: ArrayLike, second: ArrayLike, second_error: ArrayLike) -> Agreement:
    """Whether ``first / second`` is the same for all amplifiers, as it is for 55Fe and photon transfer.

    Parameters
    ----------
    first, second, and their errors : (amplifier,), electron/adu; NaN takes no part.

    Raises
    ------
    InsufficientInputs
        Fewer than two amplifiers have both.
    """
    a, da, b, db = (np.asarray(v, float) for v in (first, first_error, second, second_error))
    ratio = a / b
    error = ratio * np.hypot(da / a, db / b)
    good = np.flatnonzero(np.isfinite(ratio) & (error > 0))
    if len(good) < 2:
        raise InsufficientInputs(f"{len(good)} amplifiers have both gains, two are needed to compare: build both")
    weight = 1 / error[good] ** 2
    mean = float(np.sum(weight * ratio[good]) / np.sum(weight))
    pull = (ratio[good] - mean) / error[good]
    chi2, dof = float(np.sum(pull**2)), len(good) - 1
    excess = (chi2 - dof) / float(np.sum(weight) - np.sum(weight**2) / np.sum(weight))  # DerSimonian & Laird 1986
    worst = int(np.argmax(np.abs(pull)))
    scatter, doubt = max(float(excess), 0.0) ** 0.5, float(np.sum(weight) ** -0.5)
    return Agreement(mean, doubt, scatter, chi2, dof, int(good[worst]), float(pull[worst]))


@dataclass(frozen=True)
class Change:
    """A change of a quantity: a ``jump`` before epoch ``at``, or a ``drift`` from epoch ``at`` to the end of a stretch.

    ``size`` is what it changed by, relative to its value before, with its ``error``.
    """

    kind: str
    at: int
    size: float
    error: float

    @property
    def sigma(self) -> float:
        """Significance."""
        return self.size / self.error


def find_changes(time: ArrayLike, value: ArrayLike, error: ArrayLike, threshold: float = 5.0) -> list[Change]:
    """Jumps and drifts of a series, each of ``threshold`` sigma or more.

    Of a stretch of epochs the best step and the best straight line are compared with a constant. A step splits the
    stretch, and its parts are looked at again; a line ends the search.

    Parameters
    ----------
    time : (n,) any unit, ascending.
    value, error : (n,), any unit; epochs that are not finite take no part.

    Raises
    ------
    InconsistentGeometry
        The series differ in length, or the times do not ascend.
    """
    t, v, e = (np.asarray(a, float) for a in (time, value, error))
    if not t.shape == v.shape == e.shape or t.ndim != 1 or np.any(np.diff(t) <= 0):
        raise InconsistentGeometry(f"times {t.shape}, values {v.shape}, errors {e.shape}: give one series, in order")
    good = np.flatnonzero(np.isfinite(v) & (e > 0))
    found = _changes(t[good], v[good], e[good], threshold, 0)
    return [Change(c.kind, int(good[c.at]), c.size, c.error) for c in sorted(found, key=lambda c: c.at)]


def common_series(value: ArrayLike, error: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """What all amplifiers of a CCD have in common through time: geometric means of their values over their own mean.

    An amplifier has the same weight in every epoch, so that one that is noisier, or another mean, is no change; those
    that lack an epoch in which others are there take no part.

    Parameters
    ----------
    value, error : (epoch, amplifier), any unit; NaN where there is none.

    Returns
    -------
    (epoch,) each, relative: the series about one, and its errors; NaN in epochs without amplifiers.
    """
    v, e = np.asarray(value, float), np.asarray(error, float)
    good = np.isfinite(v) & (e > 0)
    epochs = good.any(axis=1)
    whole = good[epochs].all(axis=0) if epochs.any() else np.zeros(v.shape[1], bool)
    found = np.full((2, len(v)), np.nan)
    if whole.any():
        own, relative = v[np.ix_(epochs, whole)], (e / v)[np.ix_(epochs, whole)]
        weight = 1 / np.mean(relative**2, axis=0)
        weight /= weight.sum()
        about = np.log(own) - np.log(own).mean(axis=0)
        found[:, epochs] = np.exp(about @ weight), np.sqrt(relative**2 @ weight**2)
    return found[0], found[1]


def _changes(t: np.ndarray, v: np.ndarray, e: np.ndarray, threshold: float, start: int) -> list[Change]:
    """Changes of one stretch, which begins at epoch ``start``."""
    if len(t) < 2:
        return []
    step = max((_step(v, e, k) for k in range(1, len(t))), key=lambda c: abs(c.sigma))
    line = _line(t, v, e)
    if max(abs(step.sigma), abs(line.sigma)) < threshold:
        return []
    if abs(line.sigma) > abs(step.sigma) and len(t) > 2:
        return [Change(line.kind, start, line.size, line.error)]
    k = step.at
    parts: Sequence[list[Change]] = (
        _changes(t[:k], v[:k], e[:k], threshold, start),
        [Change("jump", start + k, step.size, step.error)],
        _changes(t[k:], v[k:], e[k:], threshold, start + k),
    )
    return [change for part in parts for change in part]


def _mean(v: np.ndarray, e: np.ndarray) -> tuple[float, float]:
    weight = 1 / e**2
    return float(np.sum(weight * v) / np.sum(weight)), float(np.sum(weight) ** -0.5)


def _step(v: np.ndarray, e: np.ndarray, k: int) -> Change:
    (before, first), (after, second) = _mean(v[:k], e[:k]), _mean(v[k:], e[k:])
    return Change("jump", k, (after - before) / before, float(np.hypot(first, second)) / abs(before))


def _line(t: np.ndarray, v: np.ndarray, e: np.ndarray) -> Change:
    """Change over the stretch of the weighted straight line."""
    mean, _ = _mean(v, e)
    middle, _ = _mean(t, e)
    weight = np.sum((t - middle) ** 2 / e**2)
    slope = float(np.sum((t - middle) * v / e**2) / weight)
    span = float(t[-1] - t[0])
    return Change("drift", 0, slope * span / mean, float(weight**-0.5) * span / abs(mean))
