"""Filters whose transmission depends on the place in the focal plane (Lupton 2016, ¶11; SCIENCE 2.8.1, 2.10).

A curve is measured for the beam that a CCD sees. Between CCDs the filter is smooth: for each wavelength a polynomial
of the place,

    T(wavelength; x, y) = sum_m c_m(wavelength) P_m(x, y),

so that whatever is linear in the transmission, as a synthetic flat, takes as many sums as there are terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, InsufficientInputs, UnitsError
from lsstcal_dask.physics.spectra import Curve, bin_means, check_fractions, check_wavelengths
from lsstcal_dask.physics.tables import entry, names, numbers
from lsstcal_dask.physics.units import air_to_vacuum, in_air

__all__ = [
    "Passband",
    "Surface",
    "passband_from_curves",
    "passband_from_table",
    "radial_curve",
    "rebin",
    "resample",
    "surface",
]

_DEGREES: Final = 6  # of a surface, at most
_RADIAL_TERMS: Final = 4  # even powers of the radius, at most


@dataclass(frozen=True, eq=False)
class Passband:
    """Transmission of a filter for the beam of each CCD.

    Raises
    ------
    UnitsError, CalibrationError
        As `Curve`; a place that is not a number; shapes that do not match.
    InconsistentGeometry
        A CCD has two curves.
    """

    band: str
    detector: tuple[str, ...]  # (place,) names
    x: np.ndarray  # (place,) mm in the focal plane
    y: np.ndarray  # (place,) mm
    wavelength: np.ndarray  # (n,) nm, vacuum, ascending
    transmission: np.ndarray  # (place, n)
    error: np.ndarray  # (place, n) independent; NaN where unknown

    def __post_init__(self) -> None:
        what, count = f"filter {self.band}", len(self.detector)
        check_wavelengths(what, self.wavelength)
        shape = (count, len(self.wavelength))
        if not (np.shape(self.transmission) == np.shape(self.error) == shape):
            raise CalibrationError(
                f"{what}: transmission of {np.shape(self.transmission)}, expected {shape}: give it so"
            )
        if len(self.x) != count or len(self.y) != count or not np.all(np.isfinite([self.x, self.y])):
            raise UnitsError(f"{what}: the place of a CCD is not a number or missing: give x and y of each, mm")
        if bad := [d for d, row in zip(self.detector, self.transmission, strict=True) if not np.all(np.isfinite(row))]:
            raise UnitsError(f"{what}: {bad[0]}: its transmission is not a number somewhere: take the curve out")
        check_fractions(what, self.transmission)
        if len(set(self.detector)) != count:
            twice = next(d for d in self.detector if self.detector.count(d) > 1)
            raise InconsistentGeometry(f"{what}: {twice} has two curves: keep one")

    def of(self, detector: str) -> Curve:
        """Curve of a CCD as measured.

        Raises
        ------
        InsufficientInputs
            There is none.
        """
        if detector not in self.detector:
            raise InsufficientInputs(f"filter {self.band}: no curve of {detector}: add it, or take that of a surface")
        i = self.detector.index(detector)
        return Curve(self.wavelength, self.transmission[i], f"{self.band} {detector}", self.error[i])


@dataclass(frozen=True, eq=False)
class Surface:
    """Polynomial of the place that stands for a filter."""

    band: str
    wavelength: np.ndarray  # (n,) nm
    powers: np.ndarray  # (term, 2) of x and of y
    scale: float  # mm that count as 1 in the polynomial
    coefficients: np.ndarray  # (term, n)
    covariance: np.ndarray  # (term, term), of coefficients over the square of the error of a curve
    misfit: np.ndarray  # (n,) rms of measured minus fitted curves, corrected for the degrees of freedom

    def terms(self, x: Any, y: Any) -> np.ndarray:
        """Values of the polynomial's terms at places (mm): (..., term)."""
        u, v = (np.asarray(place, float)[..., None] / self.scale for place in (x, y))
        return u ** self.powers[:, 0] * v ** self.powers[:, 1]

    def slopes(self, x: float, y: float) -> np.ndarray:
        """Change of the terms with x and with y, 1/mm: (2, term)."""
        u, v = x / self.scale, y / self.scale
        i, j = self.powers.T
        along_x = i * u ** np.maximum(i - 1, 0) * v**j
        along_y = j * u**i * v ** np.maximum(j - 1, 0)
        return np.stack([along_x, along_y]) / self.scale

    def at(self, x: Any, y: Any) -> np.ndarray:
        """Transmission at places (mm): (..., n); a little below 0 or above 1 where noise makes it so."""
        return np.asarray(self.terms(x, y) @ self.coefficients)

    def gradient(self, x: float, y: float) -> np.ndarray:
        """Change of the transmission with x and with y, 1/mm: (2, n)."""
        return np.asarray(self.slopes(x, y) @ self.coefficients)

    def error(self, x: Any, y: Any) -> np.ndarray:
        """Error of the transmission at places, from the misfit: (..., n), one wavelength apart from another."""
        terms = self.terms(x, y)
        return np.sqrt(np.einsum("...i,ij,...j->...", terms, self.covariance, terms))[..., None] * self.misfit


def passband_from_curves(
    band: str, curves: Mapping[str, Curve], centres: Mapping[str, tuple[float, float]]
) -> Passband:
    """Passband of curves by CCD, on the wavelengths that all of them reach.

    Parameters
    ----------
    centres : place of each CCD in the focal plane, mm.

    Raises
    ------
    InsufficientInputs
        There is no curve, or no wavelength that all have.
    InconsistentGeometry
        A CCD of the curves has no place.
    """
    if not curves:
        raise InsufficientInputs(f"filter {band}: no curves: give one for each CCD")
    if strange := [name for name in curves if name not in centres]:
        raise InconsistentGeometry(f"filter {band}: the place of {strange[0]} is not known: is it of this camera?")
    first = max(curve.wavelength[0] for curve in curves.values())
    last = min(curve.wavelength[-1] for curve in curves.values())
    every = np.unique(np.concatenate([curve.wavelength for curve in curves.values()]))
    wavelength = every[(every >= first) & (every <= last)]
    if len(wavelength) < 2:
        raise InsufficientInputs(f"filter {band}: its curves have no wavelengths in common: correct them")
    values = np.stack([curve.at(wavelength) for curve in curves.values()])
    none = np.full(len(wavelength), np.nan)
    errors = [none if c.error is None else np.interp(wavelength, c.wavelength, c.error) for c in curves.values()]
    x, y = np.array([centres[name] for name in curves], float).T
    return Passband(band, tuple(curves), x, y, wavelength, values, np.stack(errors))


def passband_from_table(table: Table) -> Passband:
    """Passband of a store's table ``inputs/filter-BAND``: a row for each CCD.

    Columns detector, x, y (mm), transmission (n) and transmission_error (n) at the wavelengths first_nm + i step_nm
    of ``meta``, which also names the ``filter``. With the entry ``medium: air`` they are those in air.

    Raises
    ------
    CalibrationError
        A column or an entry of ``meta`` is missing, a column has other dimensions, or there is no row.
    UnitsError
        Places are not in mm, or transmissions are not fractions; what should be a number is none, or empty.
    """
    meta, wanted = table.meta, ("detector", "x", "y", "transmission", "transmission_error")
    missing = [f"column {name}" for name in wanted if name not in table.colnames]
    missing += [f"entry {name} of meta" for name in ("filter", "first_nm", "step_nm") if name not in meta]
    missing += [] if len(table) else ["row"]
    if missing:
        raise CalibrationError(f"table of filter {meta.get('filter', '?')}: has no {missing[0]}: is it a filter's?")
    what = f"table of filter {meta['filter']}"
    for name, unit in (("x", "mm"), ("y", "mm"), ("transmission", "None"), ("transmission_error", "None")):
        found = str(table[name].unit)
        if found != unit and not (unit == "None" and found == ""):
            raise UnitsError(f"{what}: column {name} is in {found}, expected {unit}")
    value, error = (numbers(table, name, what, dims=2) for name in wanted[3:])
    first, step = (entry(meta, name, what, "nm") for name in ("first_nm", "step_nm"))
    wavelength = first + step * np.arange(value.shape[-1])
    if in_air(meta, what):
        wavelength = air_to_vacuum(wavelength)
    x, y = (numbers(table, name, what) for name in ("x", "y"))
    return Passband(str(meta["filter"]), tuple(names(table, "detector", what)), x, y, wavelength, value, error)


def surface(passband: Passband, degree: int | None = None) -> Surface:
    """Fit a polynomial of the place to the curves, each wavelength by itself and each CCD alike.

    Parameters
    ----------
    degree : total degree; by default the largest, up to 6, that the places determine with a third of the curves left
        to check it.

    Raises
    ------
    InsufficientInputs
        The places do not determine a polynomial of that degree.
    """
    scale = float(max(np.hypot(passband.x, passband.y).max(), 1.0))
    tries = [degree] if degree is not None else range(_DEGREES, -1, -1)
    for one in tries:
        powers = np.array([(i, total - i) for total in range(one + 1) for i in range(total, -1, -1)])
        matrix = (passband.x[:, None] / scale) ** powers[:, 0] * (passband.y[:, None] / scale) ** powers[:, 1]
        few = len(matrix) < 1.5 * len(powers) and degree is None and one > 0
        if not few and np.linalg.matrix_rank(matrix, tol=1e-6 * np.sqrt(len(matrix))) == len(powers):
            return _fitted(passband, powers, matrix, scale)
    raise InsufficientInputs(
        f"filter {passband.band}: {len(passband.detector)} CCDs do not determine degree {degree}: take a lower one"
    )


def _fitted(passband: Passband, powers: np.ndarray, matrix: np.ndarray, scale: float) -> Surface:
    inverse = np.linalg.pinv(matrix)
    coefficients = inverse @ passband.transmission
    free = len(matrix) - len(powers)
    residual = passband.transmission - matrix @ coefficients
    misfit = np.sqrt((residual**2).sum(axis=0) / free) if free else np.sqrt((passband.error**2).mean(axis=0))
    return Surface(passband.band, passband.wavelength, powers, scale, coefficients, inverse @ inverse.T, misfit)


def radial_curve(passband: Passband, radius: float) -> Curve:
    """Curve at a distance (mm) from the middle of the focal plane: even powers of the radius, fitted to all CCDs.

    Its error is that of the fit; what differs round a circle is in its misfit, and so in it.
    """
    square = (passband.x**2 + passband.y**2) / max(float(np.max(passband.x**2 + passband.y**2)), 1.0)
    at = radius**2 / max(float(np.max(passband.x**2 + passband.y**2)), 1.0)
    distinct = len(np.unique(np.round(square, 6)))
    terms = np.arange(max(1, min(_RADIAL_TERMS, distinct - 1)))
    matrix = square[:, None] ** terms
    weights = at**terms @ np.linalg.pinv(matrix)
    residual = passband.transmission - matrix @ np.linalg.lstsq(matrix, passband.transmission, rcond=None)[0]
    free = len(matrix) - len(terms)
    spread = np.sqrt((residual**2).sum(axis=0) / free) if free else np.sqrt((passband.error**2).mean(axis=0))
    error = np.linalg.norm(weights) * spread
    return Curve(passband.wavelength, weights @ passband.transmission, f"{passband.band} at {radius:g} mm", error)


def resample(passband: Passband, wavelength: np.ndarray) -> Passband:
    """Passband read at other wavelengths (nm), straight between its own; for steps that are no coarser.

    Raises
    ------
    CalibrationError
        A wavelength is beyond the curves: nothing is made up there.
    """
    at = np.asarray(wavelength, float)
    what = f"filter {passband.band}"
    check_wavelengths(what, at)
    low, high = passband.wavelength[[0, -1]]
    if at[0] < low or at[-1] > high:
        raise CalibrationError(
            f"{what}: known from {low:g} to {high:g} nm, asked for {at[0]:g} to {at[-1]:g}: extend it"
        )
    right = np.clip(np.searchsorted(passband.wavelength, at, side="right"), 1, len(passband.wavelength) - 1)
    part = (at - passband.wavelength[right - 1]) / np.diff(passband.wavelength)[right - 1]
    value = passband.transmission[:, right - 1] * (1 - part) + passband.transmission[:, right] * part
    error = np.hypot(passband.error[:, right - 1] * (1 - part), passband.error[:, right] * part)
    return Passband(passband.band, passband.detector, passband.x, passband.y, at, value, error)


def rebin(passband: Passband, edges: np.ndarray) -> np.ndarray:
    """Mean transmission in bins with these edges (nm), exact: (place, bin); zero beyond the curves."""
    return bin_means(passband.wavelength, passband.transmission, np.asarray(edges, float))
