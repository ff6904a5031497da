"""Acceptance of what is in a store: reads the newest product of each name, measures, judges, prints, reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import Detector
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline.closed import from_json, kept, print_targets
from lsstcal_dask.pipeline.cubecheck import cube_product, cube_table, published_cubes
from lsstcal_dask.pipeline.linearity_checks import Checks, Numbers, choose_checks, flat_numbers, star_numbers
from lsstcal_dask.pipeline.orders import order_differences
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Upstream, read_upstream
from lsstcal_dask.storage.products import Pointer, finished, open_product
from lsstcal_dask.storage.provenance import software
from lsstcal_dask.verify.acceptance import Acceptance, Product, judge, measure, metrics_for
from lsstcal_dask.verify.metric import Case, Found, Result, limits_of, number, with_error
from lsstcal_dask.verify.report import report

__all__ = ["print_acceptance", "verify", "write_report"]

_ROWS = 32
"""Lines of the table in a terminal; of the metrics that pass, only as many are shown as there is room for."""


def verify(
    store: Store, compute: Compute, *, product: str = "", loops: Sequence[str] = (), progress: bool = False
) -> Acceptance:
    """Measure every acceptance metric that the products of a store allow; what closed loops found is told again.

    Parameters
    ----------
    product : judge only this one; those it is compared with are read all the same.
    loops : closed loops whose rows are told beside a single product; beside all products all are.

    Raises
    ------
    WrongUse
        No metric is defined for ``product``.
    CalibrationError
        There is no product, or what is stored of one cannot be read.
    """
    upstream, cubes = read_upstream(store.url), published_cubes(store.url)
    there = sorted({pointer.name for pointer in upstream.pointers} | set(cubes))
    wanted = list(dict.fromkeys(metric.product for metric in metrics_for(there)))
    if product and product not in wanted:
        raise WrongUse(f"there are no metrics of {product!r}: choose from {', '.join(wanted)}")
    newest = _newest(upstream, wanted)
    names = [product] if product else wanted
    told = kept(store.url).items()
    closed = {loop: [one.as_json() for one in rows] for loop, rows in told if loop in loops or not product}
    cubes = {name: number for name, number in cubes.items() if name in names}
    if not set(names) & {*newest, *cubes} and not closed:
        what = f"{store.url} has no {product}" if product else f"{store.url} has no products"
        step = f"lsstcal calibrate {store.url}" if product == "calibrated" else f"lsstcal build {store.url}"
        raise CalibrationError(f"{what} to verify: make some with '{step}'")
    judged = [cube_product(store.url, name, upstream) for name in cubes]
    seen = {det for pointer in newest.values() for det in pointer.detectors}
    seen |= {det for one in judged for det in one.detectors}
    detectors = [d for d in store.camera.detectors if d.name in seen]
    checks = choose_checks(store, upstream, newest.get("linearity"))
    measured = _measure_all(store, (newest, cubes), detectors, names, compute, (progress, checks))
    amplifiers = {detector.name: [a.name for a in detector.amplifiers] for detector in detectors}
    results, without = judge(measured, amplifiers, names)
    return Acceptance(
        store=store.url,
        camera=store.camera.name,
        products=(*(_product(newest[name], upstream) for name in names if name in newest), *judged),
        results=results,
        not_measured=without,
        software=software(),
        closed=closed,
    )


def _newest(upstream: Upstream, names: Sequence[str]) -> dict[str, Pointer]:
    """Of each product the one made last, of frames that of the last exposure; outdated ones where there is no other."""
    found = {}
    for name in names:
        there = [pointer for pointer in upstream.pointers if pointer.name == name]
        current = [pointer for pointer in there if pointer.version not in upstream.outdated]
        if current or there:
            key = "valid_from" if name == "calibrated" else "created"
            found[name] = max(current or there, key=lambda pointer: (getattr(pointer, key), pointer.created))
    return found


def _measure_all(
    store: Store,
    there: tuple[dict[str, Pointer], dict[str, int]],
    detectors: list[Detector],
    names: list[str],
    compute: Compute,
    extra: tuple[bool, Checks],
) -> dict[str, dict[str, Found]]:
    """What `measure` finds of products and cubes, by detector, one task for each.

    ``there`` is products and cubes, ``extra`` whether progress is shown, and the checks of linearity.
    """
    (newest, cubes), (progress, checks) = there, extra
    needed = {
        need for metric in metrics_for(names) if metric.product in names for need in (metric.product, *metric.needs)
    }
    needed |= {"gain"}  # which turns adu into electrons wherever it is there
    needed |= {"bias"} if "linearity" in names else set()  # for the flats that check the curves
    read = {name: pointer for name, pointer in newest.items() if name in needed}
    summary = {name: _with_mean(_summaries(store.url, pointer)) for name, pointer in read.items()}
    task = dask.delayed(_measure_one, pure=False)
    tasks, types = [], set[str]()  # of CCDs of which a frame was corrected in every order: one of each is enough
    for detector in detectors:
        here = {name: pointer.version for name, pointer in read.items() if detector.name in pointer.detectors}
        noted = {name: summary[name].get(detector.name, {}) for name in here}
        again = newest["calibrated"] if "calibrated" in here and detector.type not in types else None
        types |= {detector.type} if again else set()
        tasks.append(task(store.url, Opaque(detector), (here, cubes), Opaque(noted), names, Opaque((again, checks))))
    labels = [detector.name for detector in detectors]
    found: dict[str, dict[str, Found]] = {}
    for label, result in compute.run(tasks, labels=labels, describe="verify", progress=progress):
        if isinstance(result, Exception):
            raise CalibrationError(f"verify: {label}: {result}") from result
        found[str(label)] = result
    return {label: found[label] for label in labels}


def _summaries(url: str, pointer: Pointer) -> dict[str, dict[str, dict[str, Any]]]:
    """Numbers noted when a product was made, by detector and amplifier."""
    markers = finished(url, pointer.name, pointer.version)
    return {detector: marker.get("summary", {}) for detector, marker in markers.items()}


def _with_mean(noted: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Numbers of amplifiers with the mean of the focal plane, where each has a mean and a number of pixels."""
    every = [one for amplifiers in noted.values() for one in amplifiers.values() if {"mean", "pixels"} <= set(one)]
    if not (count := sum(one["pixels"] for one in every)):
        return noted
    mean = sum(one["mean"] * one["pixels"] for one in every) / count
    whole = {"focal_plane_mean": mean}
    return {
        det: {name: one | (whole if "mean" in one else {}) for name, one in own.items()} for det, own in noted.items()
    }


def _measure_one(
    url: str,
    detector: Opaque,
    there: tuple[dict[str, str], dict[str, int]],
    noted: Opaque,
    names: list[str],
    more: Opaque,
) -> dict[str, Found]:
    """What a worker does for one detector; ``more``: a calibrated frame to correct in every order, or None; checks."""
    one: Detector = detector.value
    again, checks = more.value
    amplifiers = [a.name for a in one.amplifiers]
    products = {
        name: open_product(url, name, version, chunked=False).sel(detector=one.name, amplifier=amplifiers)
        for name, version in there[0].items()
    }
    products |= {name: cube_table(url, name, number, one) for name, number in there[1].items()}
    summary = noted.value
    if again is not None and "calibrated" in names:
        own = summary.get("calibrated", {})
        orders = order_differences(url, again, one)
        summary = summary | {"calibrated": {a: own.get(a, {}) | values for a, values in orders.items()}}
    reasons: dict[str, str] = {}
    if "calibrated" in names and "calibrated" in products:
        numbers, why = star_numbers(url, one, checks.visits)
        summary, reasons = _with(summary, "calibrated", amplifiers, numbers), reasons | why
    if "linearity" in names and "linearity" in products:
        used = {name: product for name, product in products.items() if name in ("bias", "linearity")}
        numbers, why = flat_numbers(url, one, checks, used, Case(one, products, {}).gains())
        summary, reasons = _with(summary, "linearity", amplifiers, numbers), reasons | why
    return measure(Case(one, products, summary, reasons=reasons), names)


def _with(summary: dict[str, Any], product: str, amplifiers: list[str], numbers: Numbers) -> dict[str, Any]:
    """Summaries with further numbers of a product, each with its error."""
    own = summary.get(product, {})
    found = {
        name: {key: float(values[i]) for key, pair in numbers.items() for key, values in _pair(key, pair)}
        for i, name in enumerate(amplifiers)
    }
    return summary | {product: {name: own.get(name, {}) | values for name, values in found.items()}}


def _pair(key: str, pair: tuple[np.ndarray, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(key, pair[0]), (f"{key}_error", pair[1])]


def _product(pointer: Pointer, upstream: Upstream) -> Product:
    uses = pointer.inputs.get("upstream", {}).values()
    pairs = {f"{name} {text.partition('/')[0]}" for use in uses for name, text in use.items()}
    headers = pointer.inputs.get("headers", {})
    return Product(
        name=pointer.name,
        version=pointer.version,
        verdict=pointer.verdict,
        created=pointer.created,
        valid_from=pointer.valid_from,
        valid_until=pointer.valid_until,
        detectors=tuple(pointer.detectors),
        failed=pointer.failed,
        remarks=tuple(pointer.remarks),
        outdated=upstream.outdated.get(pointer.version, ""),
        exposures=tuple(sorted(headers)),
        made_with=tuple(sorted(pairs)),
        configuration=pointer.configuration,
        software=pointer.software,
    )


def print_acceptance(found: Acceptance) -> None:
    """Print the metrics as a table, worst first, in about forty lines."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    console = Console()
    console = Console(width=max(console.width, 150))
    counts = ", ".join(f"{found.count(v)} {v}" for v in ("FAIL", "WARN", "PASS"))
    console.print(f"{found.store}  camera {found.camera}: {found.verdict} ({counts})", soft_wrap=True, highlight=False)
    names = ("verdict", "product", "metric", "median", "worst", "limits", "out", "where")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None)
    bad = sum(result.verdict != "PASS" for result in found.results)
    shown = found.results[: max(_ROWS, bad)]
    for result in shown:
        table.add_row(*_cells(result), style={"FAIL": "bold red", "WARN": "yellow"}.get(result.verdict, ""))
    console.print(table)
    if hidden := len(found.results) - len(shown):
        console.print(f"... and {hidden} more that pass: see --output or --json", highlight=False)
    if found.not_measured:
        lines = "; ".join(f"{what} ({why})" for what, why in found.not_measured.items())
        console.print(f"not measured: {lines}", highlight=False, markup=False, soft_wrap=True)
    if found.closed:
        print_targets({loop: [from_json(row) for row in rows] for loop, rows in found.closed.items()})
    for product in found.products:
        if product.outdated:
            line = f"{product.name} {product.version} was {product.outdated}: build it again"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(result: Result) -> list[str]:
    metric, worst = result.metric, result.worst(1)
    where = f"{worst[0][0]}" if worst else ""
    if not where and result.unmeasured:
        where = f"{len(result.unmeasured)} unmeasured: {result.unmeasured[0]}"
    value = worst[0][1] if worst else float("nan")
    return [
        result.verdict,
        metric.product,
        f"{metric.name}{f' [{metric.unit}]' if metric.unit else ''}",
        with_error(result),
        number(value),
        limits_of(metric, metric.limits if result.failing else metric.aim) or limits_of(metric, metric.limits),
        str(result.off_aim or ""),
        where,
    ]


def write_report(found: Acceptance, store: Store, path: Path) -> Path:
    """Write the HTML report.

    Raises
    ------
    CalibrationError
        It cannot be written there.
    """
    if not path.parent.is_dir():  # said before pictures are drawn for nothing
        raise CalibrationError(f"{path}: cannot write a report there (no such folder)")
    try:
        path.write_text(report(found, store.camera), encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot write a report there ({error.strerror})") from error
    return path
