"""What a low-resolution spectrograph makes of lines and a continuum (♥2, SCIENCE 2.8.3).

Light is kept on a fine grid, a line shared between its two neighbours so that its place is kept. The pixel at the
stated wavelength p receives

    F(p) = sum_j S_j t(w_j) / t(p) < G(p + e(p) - w_j; w_j / R) >,   e(p) = shift + stretch (p - middle) / half,

the mean over the pixel of Gaussians of full width w_j / R, t the throughput; and the same again of light of w_j where
2 w_j belongs, if there is a second order.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from astropy import units
from astropy.table import Table
from scipy.interpolate import BSpline
from scipy.sparse import csr_array

from lsstcal_dask.errors import CalibrationError, InsufficientInputs, UnitsError
from lsstcal_dask.physics.spectra import Curve, check_wavelengths
from lsstcal_dask.physics.spectrum_files import spectrum_from_table
from lsstcal_dask.physics.tables import entry, numbers

__all__ = [
    "FINE",
    "Measured",
    "Spectrograph",
    "first_order",
    "line_grid",
    "measured_from_table",
    "pixel_response",
    "spline_basis",
]

FINE: Final = np.arange(300.0, 1155.05, 0.1)
"""Wavelengths (nm, vacuum) on which light is kept."""

_STEP: Final = FINE[1] - FINE[0]
_WIDTH: Final = np.sqrt(8 * np.log(2))  # full width at half maximum over standard deviation
_REACH: Final = 5.0  # standard deviations to which a line is followed
# Three points of Gauss and Legendre in a pixel: exact to 1e-4 of a line's peak where it is as narrow as a pixel
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(3)


@dataclass(frozen=True)
class Spectrograph:
    """What is known of the spectrograph; errors are standard deviations."""

    resolution: float = 200.0  # wavelength / full width at half maximum
    resolution_error: float = 0.03  # relative
    shift_error: float = 0.1  # nm, of the wavelength scale
    stretch_error: float = 0.05  # nm, of its ends against the middle
    calibration_error: float = 0.003  # relative, of the flux scale
    calibration_scale: float = 30.0  # nm, over which it changes
    throughput: Curve | None = None  # electrons per photon, relative
    second_order: float = 0.0  # efficiency of the second order over that of the first at the same wavelength
    second_order_error: float = 0.1  # relative


@dataclass(frozen=True, eq=False)
class Measured:
    """A spectrum as the spectrograph delivers it.

    Raises
    ------
    UnitsError, CalibrationError
        Wavelengths as `check_wavelengths` says.
    InsufficientInputs
        Fewer than half of the pixels have a flux and a variance.
    CalibrationError
        Shapes that do not match.
    """

    name: str  # of the visit
    time: np.datetime64  # of its middle, UTC
    wavelength: np.ndarray  # (pixel,) nm, vacuum
    flux: np.ndarray  # (pixel,) photon s-1 m-2 nm-1, NaN where there is none
    variance: np.ndarray  # (pixel,)

    def __post_init__(self) -> None:
        what = f"sky spectrum {self.name}"
        check_wavelengths(what, self.wavelength)
        if not (np.shape(self.flux) == np.shape(self.variance) == np.shape(self.wavelength)):
            raise CalibrationError(
                f"{what}: flux of {np.shape(self.flux)}, variance of {np.shape(self.variance)}: one each"
            )
        if self.good.mean() < 0.5:
            raise InsufficientInputs(f"{what}: {self.good.sum()} of {len(self.good)} pixels are usable: take it again")

    @property
    def good(self) -> np.ndarray:
        """(pixel,) with a flux and a positive variance."""
        return np.isfinite(self.flux) & np.isfinite(self.variance) & (self.variance > 0)


def measured_from_table(table: Table, name: str, time: Any, medium: str | None = None) -> Measured:
    """Measured spectrum of a store's table ``inputs/spectrum-sky-VISIT``, per arcsec2 if ``slit_arcsec2`` is known.

    Wavelengths in air, where ``medium`` of ``meta`` says so, become those in vacuum, and the flux one per nm of these.
    Where flux or variance is masked there is none.

    Parameters
    ----------
    time : of the middle of the exposure, UTC.
    medium : of the wavelengths, air or vacuum, where the table does not say it.

    Raises
    ------
    UnitsError
        A column has no unit, or one of something else; the variance is in the square of the flux's. A column, or the
        area of the slit, is not of numbers.
    CalibrationError
        A column is missing, or as `Measured`.
    """
    missing = [column for column in ("wavelength", "flux", "variance") if column not in table.colnames]
    if missing:
        raise CalibrationError(f"sky spectrum {name}: has no column {missing[0]}: is it a spectrum of the sky?")
    unit = {column: table[column].unit for column in ("wavelength", "flux", "variance")}
    if silent := [column for column, one in unit.items() if one is None]:
        raise UnitsError(f"sky spectrum {name}: column {silent[0]} has no unit: say it, as wavelength in 'nm'")
    square = _square(unit["flux"], name)
    what, wavelength = f"sky spectrum {name}", _converted(table, name, "wavelength", units.nm)
    ones = Table(
        {"wavelength": wavelength * units.nm, "flux": np.ones(len(wavelength)) * unit["flux"]}, meta=table.meta
    )
    scale = spectrum_from_table(ones, name=name, medium=medium)  # in vacuum, too
    wavelength, one = scale.wavelength, scale.density / entry(table.meta, "slit_arcsec2", what, "arcsec2", 1.0)
    flux, variance = numbers(table, "flux", what), _converted(table, name, "variance", square)
    return Measured(name, np.datetime64(time), wavelength, flux * one, variance * one**2)


def _square(unit: Any, name: str) -> Any:
    """Unit of the variance of what is in a unit."""
    try:
        return unit**2
    except (ValueError, units.UnitsError):  # what astropy does not know, and magnitudes
        raise UnitsError(
            f"sky spectrum {name}: column flux in {str(unit)!r}: give it as 'photon / (s m2 nm arcsec2)'"
        ) from None


def _converted(table: Table, name: str, column: str, wanted: Any) -> np.ndarray:
    """Column in a unit, NaN where it is masked."""
    found = table[column].unit
    try:
        return numbers(table, column, f"sky spectrum {name}") * found.to(wanted)
    except (units.UnitConversionError, AttributeError):
        raise UnitsError(f"sky spectrum {name}: column {column} in {str(found)!r}: give it in '{wanted}'") from None


def line_grid(wavelength: np.ndarray) -> csr_array:
    """Matrix (`FINE`, line) that spreads lines over the grid, photons per nm for one photon each."""
    place = (wavelength - FINE[0]) / _STEP
    left = np.floor(place).astype(np.int64)
    inside = np.flatnonzero((left >= 0) & (left < len(FINE) - 1))
    left, part = left[inside], place[inside] - left[inside]
    share = np.concatenate([1 - part, part]) / _STEP
    rows, columns = np.concatenate([left, left + 1]), np.concatenate([inside, inside])
    return csr_array((share, (rows, columns)), shape=(len(FINE), len(wavelength)))


def spline_basis(first: float, last: float, spacing: float, wavelength: np.ndarray) -> np.ndarray:
    """Cubic B splines, (spline, wavelength), with knots a ``spacing`` apart from ``first`` to ``last`` nm.

    Beyond these they stay as they are there. They are not negative, so that a sum of them is not if its
    coefficients are not.
    """
    count = max(2, round((last - first) / spacing) + 1)
    knots = np.concatenate([[first] * 3, np.linspace(first, last, count), [last] * 3])
    at = np.clip(wavelength, first, last)
    return np.asarray(BSpline.design_matrix(at, knots, 3).toarray().T)


def pixel_response(pixels: np.ndarray, known: Spectrograph, nuisance: np.ndarray) -> list[csr_array]:
    """Matrices (pixel, `FINE`) of each order, whose sum makes a measured spectrum of light in photons per nm.

    Parameters
    ----------
    pixels : stated wavelengths, nm.
    nuisance : shift (nm), stretch (nm), logarithms of resolution and of second order over the nominal ones.
    """
    first = first_order(pixels, known, nuisance)
    if known.second_order == 0:
        return [first, csr_array(first.shape)]
    return [first, known.second_order * np.exp(nuisance[3]) * _order(pixels, known, nuisance, 2)]


def first_order(pixels: np.ndarray, known: Spectrograph, nuisance: np.ndarray) -> csr_array:
    """Matrix (pixel, `FINE`) of the first order alone, see `pixel_response`."""
    return _order(pixels, known, nuisance, 1)


def _order(pixels: np.ndarray, known: Spectrograph, nuisance: np.ndarray, order: int) -> csr_array:
    width = np.gradient(pixels)
    middle, half = (pixels[0] + pixels[-1]) / 2, (pixels[-1] - pixels[0]) / 2
    true = pixels + nuisance[0] + nuisance[1] * (pixels - middle) / half
    at = order * FINE
    sigma = at / (known.resolution * np.exp(nuisance[2])) / _WIDTH
    reach = _REACH * sigma + width.max()
    start, stop = (np.searchsorted(true, at + sign * reach) for sign in (-1, 1))
    offset = np.arange((stop - start).max())
    row = start[:, None] + offset
    inside = row < stop[:, None]
    row, column = row[inside], np.broadcast_to(np.arange(len(FINE))[:, None], inside.shape)[inside]
    share = np.zeros(len(row))
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        away = (true[row] + point * width[row] / 2 - at[column]) / sigma[column]
        share += weight / 2 * np.exp(-0.5 * away**2)
    share *= _STEP / (np.sqrt(2 * np.pi) * sigma[column])
    if known.throughput is not None:
        passed, seen = (_throughput(known.throughput, w) for w in (FINE, pixels))
        share *= passed[column] / seen[row]
    return csr_array((share, (row, column)), shape=(len(pixels), len(FINE)))


def _throughput(curve: Curve, wavelength: np.ndarray) -> np.ndarray:
    """Throughput, that of the nearest end beyond its ends."""
    return curve.at(np.clip(wavelength, curve.wavelength[0], curve.wavelength[-1]))
