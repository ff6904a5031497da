"""A target of the specification and what was measured of it: a number, its error, two limits and a verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lsstcal_dask.verify.metric import number, span

__all__ = ["VERDICTS", "Target", "from_json", "largest", "mean", "pulls", "ratio", "rms", "share", "verdict_of"]

VERDICTS: Final = ("fail", "undecided", "forbidden", "pass", "told")
"""Verdicts, worst first."""

_NEAR: Final = 1.25
"""Times the best possible value that is near it."""


@dataclass(frozen=True)
class Target:
    """One target; it is met if ``low <= measured <= high``.

    A limit that is not there is infinite. The error is one standard deviation of what was measured, from seed to seed
    or from counting; zero where nothing is left to chance. ``best`` is what no estimator can better, where that is
    known: if it misses the target, the target is forbidden.
    """

    section: str  # of the specification, as "2.1"
    name: str
    unit: str
    low: float
    high: float
    measured: float
    error: float
    seeds: int
    best: float = float("nan")

    @property
    def verdict(self) -> str:
        """pass, fail, or undecided where the error reaches over a limit; what has no value fails.

        What misses a target that is forbidden, and is near the best that is possible, does not fail: it is forbidden.
        What has no limits is only told.
        """
        if not np.isfinite(self.measured):
            return "fail"
        if np.isinf(self.low) and np.isinf(self.high):
            return "told"
        if not np.isfinite(self.error):
            return "undecided"
        inside = self.low <= self.measured <= self.high
        away = min(abs(self.measured - self.low), abs(self.measured - self.high))
        if away < self.error:
            return "undecided"
        if not inside and not np.isnan(self.best) and not self.low <= self.best <= self.high:
            return "forbidden" if abs(self.measured) <= _NEAR * abs(self.best) else "fail"
        return "pass" if inside else "fail"

    @property
    def limits(self) -> str:
        """The limits as a person reads them; of one number that must be met, that number."""
        return number(self.low) if self.low == self.high else span((self.low, self.high))

    @property
    def value(self) -> str:
        """What was measured, and its error, as a person reads them."""
        shown = number(self.measured) or "none"
        shown += f" ± {number(self.error)}" if self.error > 0 and np.isfinite(self.error) else ""
        return shown if np.isnan(self.best) else f"{shown} (best {number(self.best)})"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON holds it; a limit that is not there, or a value, is null."""
        numbers = {name: _finite(getattr(self, name)) for name in ("low", "high", "measured", "error", "best")}
        given = {"section": self.section, "name": self.name, "unit": self.unit}
        shown = {"target": self.limits, "value": self.value}
        return {**given, **numbers, "seeds": self.seeds, "verdict": self.verdict, **shown}


def from_json(row: Mapping[str, Any]) -> Target:
    """The target that `Target.as_json` wrote.

    Examples
    --------
    >>> one = Target("2.1", "eta", "", -np.inf, 1.05, 1.01, 0.01, 10, 1.0)
    >>> from_json(one.as_json()) == one
    True
    """
    absent = {"low": -np.inf, "high": np.inf, "measured": np.nan, "error": np.nan, "best": np.nan}
    numbers = {name: row[name] if row[name] is not None else value for name, value in absent.items()}
    return Target(row["section"], row["name"], row["unit"], seeds=row["seeds"], **numbers)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def verdict_of(targets: Iterable[Target]) -> str:
    """The worst verdict; pass of none."""
    found = {target.verdict for target in targets} - {"told"}
    return next((verdict for verdict in VERDICTS if verdict in found), "pass")


def rms(values: np.ndarray) -> tuple[float, float]:
    """Root mean square of the seeds together, and its error.

    Parameters
    ----------
    values : (seed, ...) deviations; those of a seed may be correlated, those of two are not.
    """
    return ratio(values, np.ones(1))


def ratio(values: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Rms of ``values`` over that of ``expected``: eta, where that is the bound; and its error, from seed to seed.

    Parameters
    ----------
    values : (seed, ...) deviations.
    expected : standard deviations that broadcast with them.

    Notes
    -----
    One seed, or values of one each, tell the error only as Gaussian and independent ones have it. Seeds without any
    value tell nothing.
    """
    values = np.asarray(values, np.float64)
    scale = np.sqrt(np.nanmean(np.square(np.broadcast_to(expected, values.shape))))
    squares = np.square(values / scale).reshape(len(values), -1)
    if np.isfinite(squares).any():
        squares = squares[np.isfinite(squares).any(axis=1)]
    found = float(np.sqrt(np.nanmean(squares)))
    if squares.shape[0] > 1 and squares.shape[1] > 1:
        error = np.nanmean(squares, axis=1).std(ddof=1) / np.sqrt(len(squares)) / (2 * found) if found else 0.0
    else:
        error = found / np.sqrt(2 * np.isfinite(squares).sum())
    return found, float(error)


def mean(values: Any) -> tuple[float, float]:
    """Mean of the seeds and its error; of one seed the error is unknown.

    Parameters
    ----------
    values : (seed,).
    """
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def largest(values: np.ndarray) -> tuple[float, float]:
    """Largest deviation of all, which has no error: it is what it is."""
    return float(np.nanmax(np.abs(values))), 0.0


def share(hit: float, of: float) -> tuple[float, float]:
    """Fraction ``hit / of`` and its error by counting; of all or nothing that of one more or one less.

    Examples
    --------
    >>> share(50, 100)
    (0.5, 0.05)
    >>> share(100, 100)
    (1.0, 0.01)
    """
    if not of:
        return float("nan"), float("nan")
    p = hit / of
    return p, float(max(np.sqrt(p * (1 - p) / of), 1 / of if hit in (0, of) else 0.0))


def pulls(section: str, name: str, values: np.ndarray, drawn: np.ndarray | None = None) -> list[Target]:
    """Width and mean of pulls (seed, ...): errors are honest to 10 %, the bias is below 0.3 of them.

    Parameters
    ----------
    drawn : as ``values``: what the seeds drew of the largest error, in units of itself. Its width is one and its mean
        zero, whatever those of a few draws are: what they are off by is taken out.
    """
    seeds = len(values)
    pull = np.asarray(values, np.float64)[np.isfinite(values)]
    known = np.zeros(pull.size) if drawn is None else np.asarray(drawn, np.float64)[np.isfinite(values)]
    n = max(pull.size, 1)
    squares = (pull - pull.mean()) ** 2 * n / max(n - 1, 1) if pull.size else np.full(1, np.nan)
    if drawn is None:
        width, centre = float(np.sqrt(squares.mean())), float(pull.mean()) if pull.size else float("nan")
        # Of a few pulls the width itself does not tell its error: that of honest ones is taken where it is more.
        errors = max(width, 1.0) / np.sqrt(2 * n), max(width, 1.0) / np.sqrt(n)
    else:
        squares, left = pull**2 - known**2 + 1, pull - known
        width, centre = float(np.sqrt(squares.mean())), float(left.mean())
        errors = float(squares.std()) / np.sqrt(n) / (2 * width), float(left.std()) / np.sqrt(n)
    if n == 1:  # one pull has no width
        errors = np.inf, np.inf if drawn is not None else errors[1]
    return [
        Target(section, f"{name}: width of pulls", "", 0.90, 1.10, width, errors[0], seeds),
        Target(section, f"{name}: mean pull", "", -0.3, 0.3, centre, errors[1], seeds),
    ]
