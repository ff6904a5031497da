"""What an acceptance metric is, and how one is judged: two limits, and amplifiers named that break them.

A metric has two pairs of limits. A value outside `Metric.limits` fails; one outside `Metric.aim` earns a warning, and
so does an amplifier without a value that should have one: a dead amplifier does not stop a focal plane.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import Detector

__all__ = [
    "ANY",
    "OURS",
    "VERDICTS",
    "Absent",
    "Case",
    "Found",
    "Measure",
    "Metric",
    "Of",
    "Result",
    "each",
    "limits_of",
    "number",
    "of_any",
    "rowwise",
    "span",
    "with_error",
    "worst_of",
]

VERDICTS: Final = ("FAIL", "WARN", "PASS")
"""Verdicts, worst first."""

ANY: Final = (-np.inf, np.inf)
"""Limits that nothing breaks."""

OURS: Final = "ours"
"""Source of a threshold that no document states."""


class Absent(LookupError):
    """A product lacks what a metric asks for, as one does that was imported: the metric is not measured."""


@dataclass(frozen=True)
class Case:
    """What is known of one detector: its products, and the numbers that were noted when they were made."""

    detector: Detector
    products: Mapping[str, xr.Dataset]  # by name, with the amplifiers of the detector in its own order
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]]  # by product and amplifier
    kept: dict[str, Any] = field(default_factory=dict)  # pixels that several metrics look at
    reasons: Mapping[str, str] = field(default_factory=dict)  # why a number was not noted, by its key

    def values(self, product: str, variable: str) -> np.ndarray:
        """(amplifier, ...) of a variable, float64; Absent where the product has none."""
        if variable not in self.products[product]:
            raise Absent(f"{product} has no {variable}")
        return np.asarray(self.products[product][variable].values, np.float64)

    def noted(self, product: str, key: str) -> np.ndarray:
        """(amplifier,) of a number in the summaries, NaN where there is none; Absent where nothing was noted."""
        found = self.summary.get(product, {})
        if not any(key in found.get(a.name, {}) for a in self.detector.amplifiers):
            raise Absent(self.reasons.get(key, f"{product} has no record of {key}"))
        given = [found.get(a.name, {}).get(key) for a in self.detector.amplifiers]
        return np.array([np.nan if value is None else value for value in given], np.float64)

    def gains(self) -> np.ndarray:
        """(amplifier,) electron/adu: measured ones where there are, else those of the camera's description."""
        nominal = np.array([a.gain for a in self.detector.amplifiers])
        measured = self.values("gain", "gain") if "gain" in self.products else np.full(len(nominal), np.nan)
        return np.where(np.isfinite(measured), measured, nominal)


Measure = Callable[[Case], np.ndarray | None]

Of = Callable[[Case, str], np.ndarray | None]
"""What a metric of a product of any name measures."""

Found = list[float] | str | None
"""Values of a metric for the amplifiers of a sensor, or why there are none; None where it does not apply."""


@dataclass(frozen=True)
class Metric:
    """One acceptance metric: a number of each amplifier, its limits and where they come from."""

    product: str
    name: str
    measure: Measure  # (amplifier,), NaN where there should be a value and is none; None where it does not apply
    source: str  # of the thresholds
    prose: str
    limits: tuple[float, float] = ANY  # beyond which it fails
    aim: tuple[float, float] = ANY  # beyond which it earns a warning
    unit: str = ""
    needs: tuple[str, ...] = ()  # products besides its own
    sparse: bool = False  # that an amplifier has no value is nothing to warn of
    error: Measure | None = None  # (amplifier,) standard errors of the values
    in_errors: bool = False  # limits and aim are multiples of the error

    @property
    def key(self) -> str:
        """Name that no other metric has."""
        return f"{self.product}: {self.name}"


def rowwise(values: np.ndarray, of: Callable[[np.ndarray], Any]) -> np.ndarray:
    """A number (amplifier,) of the finite values of each amplifier, of (amplifier, ...); NaN of none."""
    known = [row[np.isfinite(row)] for row in values.reshape(len(values), -1)]
    return np.array([float(of(row)) if row.size else np.nan for row in known])


def of_any(name: str, measure: Of, source: str, prose: str, **others: Any) -> Callable[[str], Metric]:
    """Give what makes a metric of a product, once its name is known; ``others`` are further fields of `Metric`."""
    return lambda product: Metric(product, name, lambda case: measure(case, product), source, prose, **others)


@dataclass(frozen=True)
class Result:
    """A metric measured on a focal plane, and judged."""

    metric: Metric
    places: tuple[tuple[str, str], ...]  # detector and amplifier
    values: np.ndarray  # (place,), NaN where unmeasured
    errors: np.ndarray | None = None  # (place,), where the metric has them

    @property
    def judged(self) -> np.ndarray:
        """What limits and aim are held against: the values (place,), over their errors where the metric says so."""
        if not self.metric.in_errors or self.errors is None:
            return self.values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.values / self.errors)

    @property
    def error(self) -> float:
        """Median of the errors; NaN of none."""
        errors = np.empty(0) if self.errors is None else self.errors[np.isfinite(self.errors)]
        return float(np.median(errors)) if errors.size else float("nan")

    @property
    def measured(self) -> np.ndarray:
        """The values there are."""
        return self.values[np.isfinite(self.values)]

    @property
    def median(self) -> float:
        """Median of the values; NaN of none."""
        return float(np.median(self.measured)) if self.measured.size else float("nan")

    @property
    def unmeasured(self) -> list[str]:
        """Amplifiers that should have a value and have none."""
        if self.metric.sparse:
            return []
        return [" ".join(self.places[i]) for i in np.flatnonzero(~np.isfinite(self.values))]

    @property
    def failing(self) -> int:
        """Number of amplifiers outside the limits."""
        return int((_beyond(self.judged, self.metric.limits) > 0).sum())

    @property
    def off_aim(self) -> int:
        """Number of amplifiers outside the aim or the limits."""
        return int((self._excess() > 0).sum())

    @property
    def verdict(self) -> str:
        """PASS, WARN or FAIL."""
        if self.failing:
            return "FAIL"
        return "WARN" if self.off_aim or self.unmeasured else "PASS"

    def worst(self, most: int = 3) -> list[tuple[str, float]]:
        """Amplifiers outside limits or aim, farthest first: where and how much."""
        excess = self._excess()
        order = [i for i in np.argsort(-np.nan_to_num(excess), kind="stable") if excess[i] > 0]
        return [(" ".join(self.places[i]), float(self.values[i])) for i in order[:most]]

    def _excess(self) -> np.ndarray:
        judged = np.where(np.isfinite(self.judged), self.judged, np.nan)
        return np.fmax(_beyond(judged, self.metric.limits), _beyond(judged, self.metric.aim))


def _beyond(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """How far values lie outside limits; negative inside."""
    low, high = limits
    return np.fmax(low - values, values - high)


def worst_of(verdicts: list[str]) -> str:
    """The worst verdict; PASS of none.

    Examples
    --------
    >>> worst_of(["PASS", "FAIL", "WARN"])
    'FAIL'
    """
    return next((verdict for verdict in VERDICTS if verdict in verdicts), "PASS")


def each(
    metric: Metric,
    measured: Mapping[str, Found],
    names: Mapping[str, list[str]],
    errors: Mapping[str, Found] = MappingProxyType({}),
) -> Result | None:
    """Judge what was measured, by detector; None where it applies to none, or a sparse one has no value.

    Parameters
    ----------
    measured : by detector, one value for each of its amplifiers, or none.
    names : by detector, names of its amplifiers.
    errors : of the values, of a metric that has them.
    """
    places, values, doubts = [], [], []
    for detector, found in measured.items():
        if found is not None and not isinstance(found, str):
            places += [(detector, amplifier) for amplifier in names[detector]]
            values += list(found)
            own = errors.get(detector)
            doubts += list(own) if isinstance(own, list) else [np.nan] * len(found)
    unsure = np.array(doubts, np.float64) if metric.error else None
    result = Result(metric, tuple(places), np.array(values, np.float64), unsure)
    return None if not places or (metric.sparse and not result.measured.size) else result


def number(value: float) -> str:
    """A number as a person reads it; nothing of one that is not finite.

    Examples
    --------
    >>> number(0.0123456), number(-123456.0), number(float("inf")), number(float("nan"))
    ('0.0123', '-1.23e+05', '', '')
    """
    return f"{value:.3g}" if np.isfinite(value) else ""


def with_error(result: Result) -> str:
    """Median of a result with that of its errors, where it has any."""
    return f"{number(result.median)} ± {result.error:.2g}" if number(result.error) else number(result.median)


def limits_of(metric: Metric, limits: tuple[float, float]) -> str:
    """Limits of a metric as a person reads them."""
    text = span(limits)
    return f"{text} sigma" if text and metric.in_errors else text


def span(limits: tuple[float, float]) -> str:
    """Range between two limits as a person reads it; one of them may be missing.

    Examples
    --------
    >>> span((-0.05, 0.05)), span((8e4, np.inf)), span((-np.inf, 0.5)), span(ANY)
    ('-0.05 .. 0.05', '>= 8e+04', '<= 0.5', '')
    """
    low, high = (number(value) for value in limits)
    if low and high:
        return f"{low} .. {high}"
    return f">= {low}" if low else f"<= {high}" if high else ""
