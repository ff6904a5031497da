"""Weights of the slices of a flat cube for a source, a filter and an atmosphere (Secs. 2.8.1, 2.8.3).

The response of a pixel is taken to be straight between the measured centroids of the slices, or a cubic spline through
them. Then a broadband flat is a weighted sum of slices,

    B(x, y) = sum_k w_k f_k(x, y),    w_k = integral S(l) T(l; x, y) A(l) h_k(l) dl,

h_k being one at slice k and zero at the others. S, T and A are straight between their own wavelengths: the integral is
exact, and a line without width counts where it is. T is linear in some curves with shares that depend on the place
(`physics.passbands.Surface`, `physics.nearby`), so w is too; within an amplifier a plane or a little more stands for
it.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.interpolate import BSpline, make_interp_spline

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.physics.spectra import Curve, Spectrum, check_cover, check_wavelengths, multiply

__all__ = ["Local", "Scan", "Weights", "WeightsConfig", "local_weights", "make_weights", "quadrature", "without"]

_FWHM: Final = float(2 * np.sqrt(2 * np.log(2)))  # of a Gaussian, in units of its rms
_WIDE: Final = 2.5  # times the median step: a gap
_NODES: Final = 9  # along each side of an amplifier, at which its polynomial is fitted and its error measured
_DEGREES: Final = 4


class WeightsConfig(BaseModel):
    """How weights are made, and what is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interpolation: Literal["linear", "spline"] = Field("linear", description="of the response between the slices")
    sharpen: bool = Field(
        False, description="take out what the width of the laser's line does to a curved response, in second order"
    )
    uncovered: float = Field(1e-4, gt=0, lt=1, description="largest share of the light where nothing is known")
    gap: float = Field(0.01, gt=0, lt=1, description="largest share of the light between slices that lie far apart")
    wide: float = Field(
        50.0,
        gt=0,
        description="nm, a wider step is a gap in any cube: a straight line over it misses a smooth response by 0.2 %, "
        "and by more with the square of the step",
    )
    negligible: float = Field(1e-4, ge=0, lt=1e-2, description="share of the light whose slices are not read")
    tolerance: float = Field(1e-5, gt=0, lt=1e-2, description="of the weights of an amplifier, as a share of the light")


@dataclass(frozen=True, eq=False)
class Scan:
    """Where a cube was measured, and what the focal plane saw there."""

    wavelength: np.ndarray  # (k,) nm, vacuum, ascending: measured centroids
    response: np.ndarray  # (k,) mean of the focal plane, in the unit of the cube
    bandwidth: np.ndarray  # (k,) nm, full width at half maximum of the line
    x: np.ndarray  # (place,) mm, where the weights are normalised: centres of the CCDs
    y: np.ndarray  # (place,) mm
    common: np.ndarray | None = None  # (k,) relative error of the response that all wavelengths share
    single: np.ndarray | None = None  # (k,) and that of each alone


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights at any place: the terms of ``surface`` there times ``values``.

    Their gauge: mean weights of the places times the response of the focal plane sum to 1, so the mean of the flat is
    1; ``scale`` is the sum before, in the unit of the spectrum times that of the cube.
    """

    name: str
    wavelength: np.ndarray  # (k,) nm
    response: np.ndarray  # (k,)
    values: np.ndarray  # (term, k)
    surface: Surface | Nearby | None  # None: one term, 1
    scale: float
    uncovered: float  # bound of the share of the light where spectrum or cube are not known, or slices not read
    light: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (k,) share of each slice in the mean flat, of 1

    def at(self, x: Any, y: Any) -> np.ndarray:
        """Weights at places (mm): (..., k)."""
        return np.asarray(self.terms(x, y) @ self.values)

    def terms(self, x: Any, y: Any) -> np.ndarray:
        """What the rows of ``values`` are multiplied with at places (mm): (..., term)."""
        return np.ones((*np.shape(x), 1)) if self.surface is None else self.surface.terms(x, y)


@dataclass(frozen=True, eq=False)
class Local:
    """Weights within an amplifier: ``sum_t u**powers[t, 0] v**powers[t, 1] values[t]``, u and v from -1 to 1 in it."""

    values: np.ndarray  # (term, k)
    powers: np.ndarray  # (term, 2) of u and of v
    error: float  # largest sum over slices of |error of the weight| times response, of 1

    def at(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Weights (..., k) at places of the amplifier."""
        return np.asarray(_monomials(u, v, self.powers) @ self.values)


def make_weights(
    spectrum: Spectrum,
    passband: Surface | Nearby | Curve | None,
    scan: Scan,
    atmosphere: Curve | None = None,
    config: WeightsConfig = WeightsConfig(),
) -> Weights:
    """Weights of the slices for a source behind a filter and an atmosphere.

    Raises
    ------
    UnitsError, CalibrationError
        The centroids do not ascend, one is there twice, or they are not nm; the spectrum does not cover the passband.
    InsufficientInputs
        Too much of the light is beyond the cube or in a gap of it; there is no light at all.
    """
    what = f"spectrum {spectrum.name}".strip()
    check_wavelengths("cube", scan.wavelength)
    middle = _curve_in_the_middle(passband) or _sensitivity(scan)
    missing = _unknown(spectrum, middle, atmosphere, config.uncovered)
    grid = quadrature(spectrum, passband, atmosphere, scan.wavelength)
    terms = Weights("", scan.wavelength, scan.response, grid[1], _surface(passband), 1.0, 0.0).terms(scan.x, scan.y)
    light = terms.mean(axis=0) @ grid[1] * np.interp(grid[0], scan.wavelength, scan.response)
    if not light.sum() > 0:
        raise InsufficientInputs(f"{what}: no light passes the filter where the cube was measured: are both right?")
    missing += _beyond(what, grid[0], light, scan.wavelength, config)
    _check_gaps(what, grid[0], light, scan.wavelength, config)
    values = _shares(*grid, scan.wavelength, config.interpolation)
    if config.sharpen:
        values = _sharpened(values, scan)
    values, dropped = _without_negligible(values, terms, scan.response, config.negligible)
    scale = float((terms.mean(axis=0) @ values) @ scan.response)
    light = (terms.mean(axis=0) @ values) * scan.response / scale
    known = (scan.wavelength, scan.response, values / scale, _surface(passband), scale, missing + dropped, light)
    return Weights(spectrum.name, *known)


def _unknown(spectrum: Spectrum, curve: Curve, atmosphere: Curve | None, limit: float) -> float:
    """`check_cover` of a source behind an atmosphere, which is named where the source alone reaches far enough."""
    missing = check_cover(spectrum, curve, limit)
    if atmosphere is None:
        return missing
    both = multiply(spectrum, atmosphere)
    return check_cover(replace(both, name=f"{spectrum.name} behind atmosphere {atmosphere.name}"), curve, limit)


def _surface(passband: Surface | Nearby | Curve | None) -> Surface | Nearby | None:
    return passband if isinstance(passband, Surface | Nearby) else None


def _curve_in_the_middle(passband: Surface | Nearby | Curve | None) -> Curve | None:
    if isinstance(passband, Surface | Nearby):
        return Curve(passband.wavelength, passband.at(0.0, 0.0), passband.band)
    return passband


def _sensitivity(scan: Scan) -> Curve:
    """What a cube sees where nothing but itself says which light counts, relative to its highest."""
    seen = np.clip(scan.response, 0, None)
    return Curve(scan.wavelength, seen / max(seen.max(), 1e-300), "no filter, where the cube was measured,")


def _table(passband: Surface | Nearby | Curve | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Wavelengths (n,) and transmission (term, n)."""
    if passband is None:
        return None
    values = passband.coefficients if isinstance(passband, Surface | Nearby) else passband.value[None]
    return passband.wavelength, values


def quadrature(
    spectrum: Spectrum, passband: Surface | Nearby | Curve | None, atmosphere: Curve | None, breaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points (p,) nm and the photons (term, p) that they stand for, so that sums over the points are the integrals.

    Gauss's rule between any two wavelengths of any table and of ``breaks`` (n,), of as many points as make products
    with a cubic exact; the lines of the spectrum are points too. Where a table ends nothing is known, and nothing
    counted. Terms are those of `Weights.terms`.
    """
    table, curves = _table(passband), [] if atmosphere is None else [atmosphere]
    known = [spectrum.wavelength, *(curve.wavelength for curve in curves), *([] if table is None else [table[0]])]
    low, high = max(one[0] for one in known), min(one[-1] for one in known)
    breaks = np.unique(np.concatenate([*known, breaks]))
    breaks = breaks[(breaks >= low) & (breaks <= high)]
    nodes, share = np.polynomial.legendre.leggauss((len(known) + 3) // 2 + 1)
    half = np.diff(breaks)[:, None] / 2
    points = ((breaks[:-1, None] + half) + half * nodes).ravel()
    photons = (half * share).ravel() * spectrum.at(points, outside=0.0)
    lines = (spectrum.line_wavelength >= low) & (spectrum.line_wavelength <= high)
    points = np.concatenate([points, spectrum.line_wavelength[lines]])
    photons = np.concatenate([photons, spectrum.line_flux[lines]])
    for curve in curves:
        photons = photons * curve.at(points, outside=0.0)
    passed = np.ones((1, len(points))) if table is None else _between(points, *table)
    return points, photons * passed


def _between(at: np.ndarray, wavelength: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (term, p) straight between wavelengths that reach as far as the points."""
    right = np.clip(np.searchsorted(wavelength, at, side="right"), 1, len(wavelength) - 1)
    part = (at - wavelength[right - 1]) / np.diff(wavelength)[right - 1]
    return np.asarray(values[:, right - 1] * (1 - part) + values[:, right] * part)


def _shares(points: np.ndarray, photons: np.ndarray, centroids: np.ndarray, interpolation: str) -> np.ndarray:
    """Weights (term, k) of the slices that photons (term, p) at points make.

    The response between slices is a sum of B-splines whose coefficients solve a linear system; beyond the first and
    the last slice it stays as it is there.
    """
    degree = 3 if interpolation == "spline" and len(centroids) > 3 else 1
    knots = make_interp_spline(centroids, np.zeros(len(centroids)), k=degree).t
    inside = BSpline.design_matrix(np.clip(points, centroids[0], centroids[-1]), knots, degree)
    system = BSpline.design_matrix(centroids, knots, degree).toarray()
    return np.asarray(np.linalg.solve(system.T, inside.T @ photons.T).T)


def _beyond(what: str, points: np.ndarray, light: np.ndarray, centroids: np.ndarray, config: WeightsConfig) -> float:
    """Share of the light beyond the cube, where its response is taken to stay as at the end.

    Light is summed with its sign over each side: a measured transmission of zero is as often below as above it.
    """
    sides = (light[points < centroids[0]].sum(), light[points > centroids[-1]].sum())
    share = float(np.abs(sides).sum() / light.sum())
    if share > config.uncovered:
        raise InsufficientInputs(
            f"{what}: {share:.2g} of its light lies beyond the cube, {centroids[0]:.1f} to {centroids[-1]:.1f} nm: "
            f"take more wavelengths, or give a filter that blocks it"
        )
    return share


def _check_gaps(what: str, points: np.ndarray, light: np.ndarray, centroids: np.ndarray, config: WeightsConfig) -> None:
    """Refuse light between slices that lie far apart, where a straight line is no measurement."""
    steps = np.diff(centroids)
    place = np.searchsorted(centroids, points, side="right") - 1
    inside = (place >= 0) & (place < len(steps))
    share = np.bincount(place[inside], light[inside], len(steps)) / light.sum()
    wide = (steps > config.wide) | (steps > _WIDE * np.median(steps))
    if share[wide].sum() > config.gap:
        named = [f"{centroids[i]:.1f}-{centroids[i + 1]:.1f}" for i in np.flatnonzero(wide & (share > config.gap / 10))]
        raise InsufficientInputs(
            f"{what}: {share[wide].sum():.2g} of its light lies in gaps of the cube, {', '.join(named)} nm: take these "
            f"wavelengths again"
        )


def _sharpened(values: np.ndarray, scan: Scan) -> np.ndarray:
    """Weights of what the slices would be if the line of the laser had no width.

    A slice is the mean of f over the line, ``f + sigma**2 f'' / 2``; f'' is the second difference of three slices.
    """
    left, right = np.diff(scan.wavelength)[:-1], np.diff(scan.wavelength)[1:]
    amount = values[:, 1:-1] * (scan.bandwidth[1:-1] / _FWHM) ** 2 / 2
    found = values.copy()
    found[:, :-2] -= amount * 2 / (left * (left + right))
    found[:, 1:-1] += amount * 2 / (left * right)
    found[:, 2:] -= amount * 2 / (right * (left + right))
    return found


def _without_negligible(
    values: np.ndarray, terms: np.ndarray, response: np.ndarray, limit: float
) -> tuple[np.ndarray, float]:
    """Weights without the slices that matter least, and the share of the light that these have at most."""
    size = np.abs(terms @ values).max(axis=0) * np.abs(response)
    order = np.argsort(size, kind="stable")
    total = np.cumsum(size[order]) / size.sum()
    few = order[total <= limit]
    kept = values.copy()
    kept[:, few] = 0.0
    return kept, float(size[few].sum() / size.sum())


def without(weights: Weights, there: np.ndarray, config: WeightsConfig = WeightsConfig()) -> Weights:
    """Weights of the slices that are ``there`` (k,), the response being straight between these.

    Exact for a response that is straight between slices: what a missing slice would be is then a sum of its two
    neighbours.

    Raises
    ------
    InsufficientInputs
        None is there, or those that are missing leave gaps with too much of the light.
    """
    gone = ~there & (weights.values != 0).any(axis=0)
    if not gone.any():
        return weights
    what, known = f"spectrum {weights.name}".strip(), weights.wavelength[there]
    if len(known) < 2:
        raise InsufficientInputs(f"{what}: {len(known)} slices of the cube are there: take more wavelengths")
    light = weights.at(0.0, 0.0) * weights.response
    _beyond(what, weights.wavelength, light, known, config)
    _check_gaps(what, weights.wavelength, light, known, config)
    values = np.zeros_like(weights.values)
    values[:, there] = _shares(weights.wavelength, weights.values, known, "linear")
    return replace(weights, values=values)


def local_weights(weights: Weights, detector: Detector, amplifier: Amplifier, tolerance: float) -> Local:
    """Polynomial of lowest degree that stands for the weights within an amplifier.

    It is fitted at 9 x 9 places, and its error is the largest there; degree 3 is the last resort.
    """
    ny, nx = amplifier.data.shape
    v, u = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, _NODES)] * 2, indexing="ij"))
    ccd = amplifier_to_ccd(amplifier, (u + 1) * (nx - 1) / 2, (v + 1) * (ny - 1) / 2)
    terms = weights.terms(*ccd_to_focal(detector, *ccd))
    for degree in range(_DEGREES):
        powers = np.array([(total - j, j) for total in range(degree + 1) for j in range(total + 1)])
        matrix = _monomials(u, v, powers)
        share = np.linalg.lstsq(matrix, terms, rcond=None)[0]
        wrong = np.abs((terms - matrix @ share) @ weights.values) @ np.abs(weights.response)
        if wrong.max() <= tolerance:
            break
    return Local(share @ weights.values, powers, float(wrong.max()))


def _monomials(u: np.ndarray, v: np.ndarray, powers: np.ndarray) -> np.ndarray:
    return np.asarray(u[..., None] ** powers[:, 0] * v[..., None] ** powers[:, 1])
