"""The acceptance of a store: every metric, measured sensor by sensor and judged together (after DMTN-101)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lsstcal_dask.verify import amplifiers, frames, slopes, stacks
from lsstcal_dask.verify.flats import metrics_of
from lsstcal_dask.verify.metric import VERDICTS, Absent, Case, Found, Measure, Metric, Result, each, worst_of

__all__ = ["METRICS", "Acceptance", "Product", "as_json", "judge", "measure", "metrics_for"]

METRICS: Final[tuple[Metric, ...]] = (*stacks.METRICS, *amplifiers.METRICS, *frames.METRICS, *slopes.METRICS)
"""Every metric of a product that any store has under the same name; a product's stand together."""


_OF_TARGET: Final = {"fail": "FAIL", "undecided": "WARN", "forbidden": "WARN", "told": "PASS", "pass": "PASS"}


@dataclass(frozen=True)
class Product:
    """What is to be known of a product that was looked at."""

    name: str
    version: str
    verdict: str
    created: str
    valid_from: str
    valid_until: str
    detectors: tuple[str, ...]
    failed: Mapping[str, str]  # detectors that could not be made, with the reason
    remarks: tuple[str, ...]
    outdated: str  # why it is not used any more; empty
    exposures: tuple[str, ...]
    made_with: tuple[str, ...]  # name and version of other products
    configuration: Mapping[str, Any]
    software: Mapping[str, str]


@dataclass(frozen=True)
class Acceptance:
    """Everything that is judged of a store."""

    store: str
    camera: str
    products: tuple[Product, ...]
    results: tuple[Result, ...]  # worst first
    not_measured: Mapping[str, str]  # key of a metric, or name of a product: why
    software: Mapping[str, str]
    closed: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # rows of each closed loop

    @property
    def verdict(self) -> str:
        """The worst verdict of a metric; a product with remarks, outdated, or without some of its sensors warns.

        A closed loop that misses a target fails; one that could not decide, or whose target nothing can meet, warns.
        """
        doubts = [
            "WARN" if product.outdated or product.failed or product.verdict == "WARN" else product.verdict
            for product in self.products
        ]
        loops = [_OF_TARGET[row["verdict"]] for rows in self.closed.values() for row in rows]
        return worst_of([result.verdict for result in self.results] + doubts + loops)

    def count(self, verdict: str) -> int:
        """Number of metrics with a verdict."""
        return sum(result.verdict == verdict for result in self.results)


def metrics_for(products: Iterable[str]) -> tuple[Metric, ...]:
    """`METRICS`, and those of flats and cubes by the names that they have in a store."""
    return (*METRICS, *(metric for name in products for metric in metrics_of(name)))


def measure(case: Case, products: Sequence[str]) -> dict[str, Found]:
    """Every metric of ``products`` that what there is of a detector allows, by key."""
    found: dict[str, Found] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for metric in metrics_for(products):
            if metric.product not in case.kept:
                case.kept.clear()  # pixels of one product at a time
            if metric.product in products and {metric.product, *metric.needs} <= set(case.products):
                found[metric.key] = _values(metric.measure, case)
                if metric.error:
                    found[_error_of(metric)] = _values(metric.error, case)
    return found


def _error_of(metric: Metric) -> str:
    """Key of the errors of a metric."""
    return f"{metric.key}, error"


def _values(measure: Measure, case: Case) -> Found:
    try:
        values = measure(case)
    except Absent as reason:
        return str(reason)
    return None if values is None else [float(value) for value in values]


def judge(
    measured: Mapping[str, Mapping[str, Found]], names: Mapping[str, list[str]], products: Sequence[str]
) -> tuple[tuple[Result, ...], dict[str, str]]:
    """Judge what was measured.

    Parameters
    ----------
    measured : by detector, what `measure` found.
    names : by detector, names of its amplifiers.
    products : those that were looked for.

    Returns
    -------
    Results, worst first, and what was not measured, with the reason: products that are not there, once, and metrics.
    """
    results, without = [], {}
    there = {key.partition(": ")[0] for found in measured.values() for key in found}
    for metric in metrics_for(products):
        if metric.product not in products:
            continue
        if metric.product not in there:
            without[metric.product] = "not in the store"
            continue
        values = {det: found[metric.key] for det, found in measured.items() if metric.key in found}
        errors = {det: found[_error_of(metric)] for det, found in measured.items() if _error_of(metric) in found}
        result = each(metric, values, names, errors)
        if result is not None:
            results.append(result)
        elif reasons := [found for found in values.values() if isinstance(found, str)]:
            without[metric.key] = reasons[0]
        elif any(found is not None for found in values.values()):
            without[metric.key] = "no amplifier has a value"
        elif values:
            without[metric.key] = "does not apply to what was measured"
        else:
            without[metric.key] = f"needs {' and '.join(metric.needs)}"
    order = sorted(results, key=lambda result: VERDICTS.index(result.verdict))
    return tuple(order), without


def as_json(found: Acceptance) -> dict[str, Any]:
    """All of it as JSON holds it; a value that is not there, or a limit that nothing breaks, is null."""
    return {
        "store": found.store,
        "camera": found.camera,
        "verdict": found.verdict,
        "software": dict(found.software),
        "products": [_product(product) for product in found.products],
        "metrics": [_result(result) for result in found.results],
        "not_measured": dict(found.not_measured),
        "closed_loops": {name: [dict(row) for row in rows] for name, rows in found.closed.items()},
    }


def _product(product: Product) -> dict[str, Any]:
    return {
        "product": product.name,
        "version": product.version,
        "verdict": product.verdict,
        "created": product.created,
        "valid_from": product.valid_from,
        "valid_until": product.valid_until,
        "outdated": product.outdated,
        "detectors": list(product.detectors),
        "failed": dict(product.failed),
        "remarks": list(product.remarks),
        "exposures": list(product.exposures),
    }


def _result(result: Result) -> dict[str, Any]:
    metric, values = result.metric, result.measured
    by_detector: dict[str, dict[str, float | None]] = {}
    errors: dict[str, dict[str, float | None]] = {}
    for i, (detector, amplifier) in enumerate(result.places):
        by_detector.setdefault(detector, {})[amplifier] = _finite(result.values[i])
        if result.errors is not None:
            errors.setdefault(detector, {})[amplifier] = _finite(result.errors[i])
    return {
        "product": metric.product,
        "metric": metric.name,
        "verdict": result.verdict,
        "prose": metric.prose,
        "unit": metric.unit,
        "limits": [_finite(value) for value in metric.limits],
        "aim": [_finite(value) for value in metric.aim],
        "limits_in": "errors" if metric.in_errors else "values",
        "source": metric.source,
        "median": _finite(result.median),
        "minimum": _finite(values.min()) if values.size else None,
        "maximum": _finite(values.max()) if values.size else None,
        "outside_limits": result.failing,
        "outside_aim": result.off_aim,
        "unmeasured": result.unmeasured,
        "worst": [{"where": where, "value": _finite(value)} for where, value in result.worst()],
        "values": by_detector,
        "errors": errors,
    }


def _finite(value: Any) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
