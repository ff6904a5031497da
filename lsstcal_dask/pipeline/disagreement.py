"""Do remeasured products agree with the camera team's, and which is used? (§2-§5: identical to the inputs, unless
updated.)

A remeasured product differs in an amplifier where a quantity is off by more than 4 sigma of both errors. Of many
numbers of an amplifier (pairs of crosstalk, nodes of a curve) the worst is judged by the chance that any of them is
so far off. A number without an error, on either side, cannot be judged; only pairs of crosstalk that the camera team
does not list are zero without one. The camera team's is used until a remeasured version that differs is accepted, and
then only for the CCDs in which it does. Of defects, every pixel that is new counts: it was significant when it was
found; what is accepted is the union with the list of the camera team and with what was accepted before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from scipy.interpolate import Akima1DInterpolator
from scipy.special import erfc, erfcinv

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Detector
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.pipeline.build import run_version
from lsstcal_dask.pipeline.exchange import check_product
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Upstream, read_upstream
from lsstcal_dask.products.defects import merge_lists
from lsstcal_dask.storage.products import CAMERA_TEAM, Pointer, Template, accept_version, open_product
from lsstcal_dask.storage.provenance import software
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

__all__ = [
    "LIMIT",
    "Accepted",
    "Comparison",
    "Difference",
    "accept",
    "as_dict",
    "compare",
    "curve_difference",
    "print_differences",
    "worst",
]

LIMIT: Final = 4.0
"""Sigma beyond which products differ."""

_BAD: Final = MASK_BITS["BAD"] | MASK_BITS["SUSPECT"]
_LAGS: Final = ("lag_y", "lag_x")  # matrices may have more or fewer
_LEAST: Final = 2  # nodes of a curve that can differ from another: a factor between the two is free


@dataclass(frozen=True)
class Difference:
    """A quantity of an amplifier, remeasured less the camera team's; of several numbers the worst one."""

    detector: str
    amplifier: str
    quantity: str
    difference: float
    sigma: float  # standard error of the difference; NaN where neither has one
    units: str
    chi2: float
    dof: int
    significance: float  # sigma, of the worst of all numbers; NaN where nothing can be said
    exceeds: bool


@dataclass(frozen=True)
class Comparison:
    """Every difference of two versions of a product."""

    product: str
    team: str  # version
    remeasured: str
    rows: list[Difference]

    @property
    def exceeding(self) -> dict[str, float]:
        """Greatest significance of each CCD that has a difference beyond the limit."""
        found: dict[str, float] = {}
        for row in self.rows:
            if row.exceeds:
                found[row.detector] = max(found.get(row.detector, 0.0), row.significance)
        return found


def worst(difference: np.ndarray, sigma: np.ndarray) -> tuple[int, float]:
    """Place of the number that is most sigma off, and how significant that is among as many numbers.

    With p the chance of one to be so far off, that of any of n is ``1 - (1 - p)**n``.

    Parameters
    ----------
    difference, sigma : (n,), n > 0, same unit, sigma > 0.

    Examples
    --------
    >>> place, significance = worst(np.array([1.0, -5.0, 0.0]), np.ones(3))
    >>> place, round(significance, 3)
    (1, 4.784)
    """
    off = np.abs(difference) / sigma
    place = int(np.argmax(off))
    chance = float(erfc(off[place] / np.sqrt(2)))
    if len(off) == 1 or chance in (0.0, 1.0):  # the number of numbers does not matter
        return place, float(off[place])
    return place, float(np.sqrt(2) * erfcinv(-np.expm1(len(off) * np.log1p(-chance))))


def curve_difference(team: xr.Dataset, remeasured: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Difference of two linearity curves at the nodes of the first within both, adu, and its error.

    A curve times a factor is the same curve with another gain (its gauge), so the factor that fits best is taken out.

    Parameters
    ----------
    team, remeasured : ``linearity_level``, ``linearity_correction``, ``linearity_error`` (node,), adu, and
        ``linearity_ceiling``, adu, of an amplifier.
    """
    level, correction, error = _nodes(team)
    other, other_correction, other_error = _nodes(remeasured)
    if len(level) < 3 or len(other) < 3:
        return np.zeros(0), np.zeros(0)
    tops = [x for x in (float(d["linearity_ceiling"]) for d in (team, remeasured)) if np.isfinite(x)]
    use = (level > 0) & (level <= min([level[-1], other[-1], *tops]))
    level, correction, error = level[use], correction[use], error[use]
    difference = Akima1DInterpolator(other, other_correction)(level) - correction
    sigma = np.hypot(error, np.interp(level, other, other_error))
    sigma = np.where(sigma > 0, sigma, np.nan)
    if np.isfinite(sigma).sum() < _LEAST:
        return difference, sigma
    true = level + correction
    factor = np.nansum(difference * true / sigma**2) / np.nansum((true / sigma) ** 2)
    return difference - factor * true, sigma


def _nodes(curve: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = ("linearity_level", "linearity_correction", "linearity_error")
    level, correction, error = (curve[name].values.astype(np.float64) for name in names)
    known = np.isfinite(level) & np.isfinite(correction)
    return level[known], correction[known], error[known]


def _pair(team: xr.Dataset, remeasured: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Difference of a quantity of an amplifier, and its error: (n,), of numbers that both have."""
    lags = {dim: slice(min(team.sizes[dim], remeasured.sizes[dim])) for dim in team[name].dims if dim in _LAGS}
    values, errors = (
        [np.atleast_1d(d[key].isel(lags).values).astype(np.float64) for d in (team, remeasured)]
        for key in (name, f"{name}_error")
    )
    if "source" in team[name].dims:
        errors[0] = np.where(values[0] == 0, np.nan_to_num(errors[0]), errors[0])  # a pair that is not listed
    both = np.isfinite(values[0]) & np.isfinite(values[1])
    sigma = np.hypot(*(e[both] for e in errors))
    return values[1][both] - values[0][both], np.where((sigma > 0) & np.isfinite(sigma), sigma, np.nan)


def _quantities(product: str, team: xr.Dataset, remeasured: xr.Dataset) -> list[str]:
    if product == "gain":
        return ["gain"]
    return [str(n) for n in team.data_vars if n in remeasured and f"{n}_error" in team and f"{n}_error" in remeasured]


def _differences(
    product: str, place: tuple[str, str], team: xr.Dataset, remeasured: xr.Dataset
) -> Iterator[Difference]:
    """Rows of one amplifier."""
    if product == "defects":
        yield _new_pixels(place, team, remeasured)
        return
    if product == "linearity":
        found = [("linearity_correction", *curve_difference(team, remeasured), 1)]
    else:
        found = [(n, *_pair(team, remeasured, n), 0) for n in _quantities(product, team, remeasured)]
    for name, difference, sigma, fitted in found:
        if len(difference):
            yield _judge(place, (name, team[name].attrs.get("units", "")), difference, sigma, fitted)


def _judge(
    place: tuple[str, str], what: tuple[str, str], difference: np.ndarray, sigma: np.ndarray, fitted: int
) -> Difference:
    known = np.isfinite(sigma)
    if not known.any():
        at = int(np.argmax(np.abs(difference)))
        return Difference(*place, what[0], float(difference[at]), np.nan, what[1], np.nan, 0, np.nan, False)
    difference, sigma = difference[known], sigma[known]
    at, significance = worst(difference, sigma)
    chi2, dof = float(np.sum((difference / sigma) ** 2)), int(len(sigma) - fitted)
    return Difference(
        *place, what[0], float(difference[at]), float(sigma[at]), what[1], chi2, dof, significance, significance > LIMIT
    )


def _new_pixels(place: tuple[str, str], team: xr.Dataset, remeasured: xr.Dataset) -> Difference:
    old, new = (d["mask"].values & _BAD > 0 for d in (team, remeasured))
    count = int(np.sum(new & ~old))
    significance = np.inf if count else 0.0
    return Difference(*place, "new defects", float(count), np.nan, "pixel", np.nan, 0, significance, count > 0)


def compare(store: Store, product: str, version: str = "") -> Comparison:
    """Compare a remeasured product with the camera team's, in every amplifier that both have.

    Parameters
    ----------
    version : of the remeasured one; the one that was made last by default.

    Raises
    ------
    WrongUse
        No such product.
    CalibrationError
        There is no product of the camera team, or none remeasured, or they have no CCD in common.
    """
    team, remeasured = _versions(store, read_upstream(store.url), product, version)
    common = [name for name in team.detectors if name in remeasured.detectors]
    if not common:
        raise CalibrationError(f"{product}: {team.version} and {remeasured.version} have no CCD in common")
    first, second = (open_product(store.url, product, p.version, chunked=False) for p in (team, remeasured))
    rows: list[Difference] = []
    for name in common:
        for amplifier in store.camera.detector(name).amplifiers:
            at = {"detector": name, "amplifier": amplifier.name}
            rows += _differences(product, (name, amplifier.name), *_aligned(first.sel(at), second.sel(at)))
    return Comparison(product, team.version, remeasured.version, rows)


def _aligned(team: xr.Dataset, remeasured: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Sources of crosstalk in the same order."""
    if "source" not in team.coords:
        return team, remeasured
    return team, remeasured.reindex(source=team["source"].values)


def _versions(store: Store, upstream: Upstream, product: str, version: str) -> tuple[Pointer, Pointer]:
    """The camera team's product and the remeasured one that are to be compared."""
    check_product(product)
    known = [p for p in upstream.pointers if p.name == product and p.verdict != "FAIL"]
    team = [p for p in known if p.origin == CAMERA_TEAM]
    if not team:
        raise CalibrationError(
            f"{store.url} has no {product} of the camera team: import one with 'lsstcal import {store.url} {product}'; "
            f"without it what was remeasured is used"
        )
    others = [p for p in known if p.origin != CAMERA_TEAM and version in ("", p.version)]
    if not others:
        which = f"version {version} of {product}" if version else f"remeasured {product}"
        raise CalibrationError(f"{store.url} has no {which}: build it with 'lsstcal build {store.url} {product}'")
    found = max(others, key=lambda p: p.created)
    if found.version in upstream.outdated:
        raise CalibrationError(
            f"{product} {found.version} was {upstream.outdated[found.version]}: build {product} again"
        )
    return max(team, key=lambda p: p.created), found


@dataclass(frozen=True)
class Accepted:
    """What is used from now on, and for which CCDs."""

    version: str
    over: str
    detectors: dict[str, float]  # CCD: significance of the difference
    new: bool  # False if it was accepted before


def accept(store: Store, product: str, compute: Compute, version: str = "") -> Accepted:
    """Use a remeasured version instead of the camera team's, for the CCDs in which it differs.

    Of defects, the union with the camera team's list and with what was accepted before is published and accepted.

    Parameters
    ----------
    version : see `compare`.

    Raises
    ------
    CalibrationError
        As `compare`; or nothing can be judged, or differs by more than the limit.
    """
    found = compare(store, product, version)
    if product != "defects" and all(np.isnan(row.significance) for row in found.rows):
        raise CalibrationError(
            f"{product} {found.remeasured} cannot be compared with the camera team's {found.team}: there is no number "
            f"that both have with an error: the camera team's stays in use"
        )
    if not found.exceeding:
        where = f"{len(found.rows)} quantities of {len({r.detector for r in found.rows})} CCDs"
        raise CalibrationError(
            f"{product} {found.remeasured} agrees with the camera team's {found.team} within {LIMIT:g} sigma in "
            f"{where}: there is nothing to accept, the camera team's stays in use"
        )
    detectors = {name: min(value, 1e9) for name, value in found.exceeding.items()}
    used = found.remeasured
    if product == "defects":
        used = _union(store, found, compute)
        detectors = dict.fromkeys(open_product(store.url, product, used)["detector"].values.tolist(), 1e9) | detectors
    record = {"over": found.team, "detectors": detectors}
    if read_upstream(store.url).accepted.get(used) == record:
        return Accepted(used, found.team, detectors, new=False)
    accept_version(store.url, product, used, record)
    return Accepted(used, found.team, detectors, new=True)


def _union(store: Store, found: Comparison, compute: Compute) -> str:
    """Publish the union of lists of defects; its version."""
    upstream = read_upstream(store.url)
    known = {p.version: p for p in upstream.pointers if p.name == "defects"}
    before = [p for v, p in known.items() if v in upstream.accepted]
    versions = {found.team, found.remeasured, *(p.version for p in before)}
    # A union is told by what went into it first, so that the same lists always make the same union.
    parts = sorted({part for v in versions for part in known[v].inputs.get("merged", [v])} & set(known))
    pointers = [known[part] for part in parts]
    names = [d.name for d in store.camera.detectors if any(d.name in p.detectors for p in pointers)]
    latest = max((p for p in pointers if p.origin != CAMERA_TEAM), key=lambda p: p.created, default=pointers[-1])
    own = {n: {p.version: f"{p.version}/{p.hash}" for p in pointers if n in p.detectors} for n in names}
    pointer = Pointer(
        name="defects",
        valid_from=max(p.valid_from for p in pointers),
        inputs={"merged": parts, "upstream": own},
        configuration={},
        software=software(),
        failed={},
        remarks=[],
    )
    ny, nx = store.camera.image_shape
    amplifiers = list(store.camera.amplifier_names)
    sizes = {"detector": len(names), "amplifier": len(amplifiers), "y": ny, "x": nx}
    coords: dict[str, Any] = {"detector": (("detector",), names), "amplifier": (("amplifier",), amplifiers)}
    outputs = {"mask": Output("uint16"), "defect_kind": Output("uint16")}
    source = xr.Dataset(coords={"detector": names, "amplifier": amplifiers})
    work = {n: (_merged, (store.camera.detector(n), store.url, list(own[n]), latest.version)) for n in names}
    template = Template(outputs, sizes, coords, {"product": "defects"})
    built = run_version(store.url, pointer, template, source, work, compute, False)
    if built.pointer is None:
        raise CalibrationError(built.errors[0])
    return built.pointer.version


def _merged(part: xr.Dataset, detector: Detector, url: str, versions: Sequence[str], latest: str) -> AmplifierResults:
    """Union of the lists of each amplifier; what only others than the latest have is LISTED."""
    lists = {v: open_product(url, "defects", v, chunked=False).sel(detector=detector.name) for v in versions}
    for amplifier in detector.amplifiers:
        own = [(v, product.sel(amplifier=amplifier.name)) for v, product in lists.items()]
        masks = np.stack([product["mask"].values for _, product in own])
        kinds = np.stack([product["defect_kind"].values for _, product in own])
        mask, kind = merge_lists(masks, kinds, list(lists).index(latest) if latest in lists else -1)
        summary = {name.lower(): int(np.sum(kind & bit > 0)) for name, bit in DEFECT_KINDS.items()}
        variables = {"mask": (("y", "x"), mask), "defect_kind": (("y", "x"), kind)}
        yield amplifier.name, xr.Dataset(variables, attrs={"remarks": [], "summary": summary})


def as_dict(found: Comparison) -> dict[str, Any]:
    """Comparison as JSON holds it: null where there is no number."""
    rows = []
    for row in found.rows:
        values = asdict(row)
        rows.append({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()})
    names = {"product": found.product, "camera_team": found.team, "remeasured": found.remeasured}
    return {**names, "differences": rows}


def print_differences(found: Comparison, most: int = 40) -> None:
    """Print the differences as a table, the most significant first."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    names = ("CCD", "amplifier", "quantity", "difference", "error", "unit", "chi2", "dof", "sigma", "")
    table = Table(*(Column(name, no_wrap=True, min_width=len(name)) for name in names), box=None)
    for row in sorted(found.rows, key=lambda r: -np.nan_to_num(r.significance, nan=-1.0))[:most]:
        numbers = [f"{row.difference:.4g}", f"{row.sigma:.2g}", row.units, f"{row.chi2:.4g}", str(row.dof)]
        mark = "differs" if row.exceeds else ""
        table.add_row(row.detector, row.amplifier, row.quantity, *numbers, f"{row.significance:.1f}", mark)
    console = Console()
    Console(width=max(console.width, 130)).print(table)
    if len(found.rows) > most:
        print(f"... and {len(found.rows) - most} more: see --json")
