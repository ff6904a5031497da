"""Spectra as photon flux densities, and curves of transmission or quantum efficiency (SCIENCE section 0).

Both are straight between their wavelengths. A spectrum may also hold lines, which have no width: a sum over
wavelengths adds them where they are instead of spreading them over a grid.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.physics.units import air_to_vacuum, photons_from_flambda, photons_from_fnu

__all__ = [
    "Curve",
    "Spectrum",
    "air_stretch",
    "bin_means",
    "check_cover",
    "check_fractions",
    "check_wavelengths",
    "from_energy_frequency",
    "from_energy_wavelength",
    "from_photons",
    "joint_wavelengths",
    "multiply",
    "photons",
]

_LOWEST, _HIGHEST = -0.1, 1.5  # of a curve: measured ones have noise, but none is in percent


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Photons of a source: a continuum, straight between its wavelengths, plus lines without width.

    Its errors are independent modes of one standard deviation each: any sum over the spectrum, taken over each mode,
    gives by root sum of squares the error of that sum.

    Raises
    ------
    UnitsError
        Wavelengths or densities that are not numbers, or wavelengths that cannot be nm.
    CalibrationError
        Wavelengths unsorted or doubled, densities negative, or shapes that do not match.
    """

    wavelength: np.ndarray  # (n,) nm, vacuum, ascending
    density: np.ndarray  # (n,) photon s-1 m-2 nm-1, or relative
    name: str = ""
    line_wavelength: np.ndarray = field(default_factory=_none)  # (line,) nm, vacuum, in any order
    line_flux: np.ndarray = field(default_factory=_none)  # (line,) photon s-1 m-2, in the scale of the density
    density_modes: np.ndarray | None = None  # (mode, n)
    line_modes: np.ndarray | None = None  # (mode, line)

    def __post_init__(self) -> None:
        what = f"spectrum {self.name}".strip()
        check_wavelengths(what, self.wavelength)
        _check_values(what, self.wavelength, self.density)
        _check_values(what, self.line_wavelength, self.line_flux)
        for values, at in ((self.density, self.wavelength), (self.line_flux, self.line_wavelength)):
            if np.any(values < 0):
                raise CalibrationError(
                    f"{what}: is negative at {at[np.argmin(values)]:g} nm: set it to zero, or smooth its noise"
                )
        for modes, values in ((self.density_modes, self.density), (self.line_modes, self.line_flux)):
            if modes is not None and np.shape(modes)[1:] != values.shape:
                raise CalibrationError(
                    f"{what}: modes of {np.shape(modes)} for {len(values)} values: give one for each"
                )

    def at(self, wavelength: Any, outside: float | None = None) -> np.ndarray:
        """Density at wavelengths (nm), lines left out; ``outside`` is its value beyond the ends, an error if None."""
        return _interpolated(f"spectrum {self.name}", (self.wavelength, self.density), wavelength, outside)


@dataclass(frozen=True, eq=False)
class Curve:
    """A transmission, or a quantum efficiency in electrons per photon, straight between its wavelengths.

    Raises
    ------
    UnitsError
        Wavelengths or values that are not numbers, wavelengths that cannot be nm, or values in percent.
    CalibrationError
        Wavelengths unsorted or doubled, or shapes that do not match.
    """

    wavelength: np.ndarray  # (n,) nm, vacuum, ascending
    value: np.ndarray  # (n,)
    name: str = ""
    error: np.ndarray | None = None  # (n,) independent from wavelength to wavelength

    def __post_init__(self) -> None:
        what = f"curve {self.name}".strip()
        check_wavelengths(what, self.wavelength)
        _check_values(what, self.wavelength, self.value)
        check_fractions(what, self.value)
        if self.error is not None and np.shape(self.error) != np.shape(self.value):
            raise CalibrationError(f"{what}: {np.size(self.error)} errors for {len(self.value)} values: give one each")

    def at(self, wavelength: Any, outside: float | None = None) -> np.ndarray:
        """Value at wavelengths (nm); ``outside`` is its value beyond the ends, an error if None."""
        return _interpolated(f"curve {self.name}", (self.wavelength, self.value), wavelength, outside)


def check_wavelengths(what: str, wavelength: np.ndarray) -> None:
    """Refuse wavelengths that do not ascend, that are not numbers or that cannot be nm; ``what`` begins the message.

    Raises
    ------
    UnitsError, CalibrationError
    """
    if np.ndim(wavelength) != 1 or len(wavelength) < 2:
        raise CalibrationError(f"{what}: has {np.size(wavelength)} wavelengths: give a row of two or more")
    if not np.all(np.isfinite(wavelength)):
        raise UnitsError(f"{what}: a wavelength is not a number: take it out")
    steps = np.diff(wavelength)
    if np.any(steps == 0):
        raise CalibrationError(f"{what}: {wavelength[np.argmin(np.abs(steps))]:g} nm is there twice: keep one")
    if np.any(steps < 0):
        raise CalibrationError(f"{what}: wavelengths do not ascend at {wavelength[np.argmin(steps)]:g} nm: sort them")
    if wavelength[0] <= 0 or wavelength[-1] < 200 or wavelength[0] > 2000:
        raise UnitsError(f"{what}: wavelengths from {wavelength[0]:g} to {wavelength[-1]:g}: give them in nm")


def check_fractions(what: str, value: np.ndarray) -> None:
    """Refuse what cannot be a fraction, as percent.

    Raises
    ------
    UnitsError
    """
    if np.any(value > _HIGHEST) or np.any(value < _LOWEST):
        raise UnitsError(f"{what}: values from {np.min(value):g} to {np.max(value):g}: give fractions, not percent")


def _check_values(what: str, wavelength: np.ndarray, value: np.ndarray) -> None:
    if np.shape(value) != np.shape(wavelength):
        raise CalibrationError(
            f"{what}: {np.shape(value)} values for {np.shape(wavelength)} wavelengths: give one each"
        )
    if not (np.all(np.isfinite(value)) and np.all(np.isfinite(wavelength))):
        bad = wavelength[~np.isfinite(value)]
        raise UnitsError(f"{what}: is not a number at {bad[0] if len(bad) else np.nan:g} nm: take it out")


def _interpolated(
    what: str, table: tuple[np.ndarray, np.ndarray], wavelength: Any, outside: float | None
) -> np.ndarray:
    at, (known, value) = np.asarray(wavelength, float), table
    if outside is None and at.size and (at.min() < known[0] or at.max() > known[-1]):
        raise CalibrationError(
            f"{what.strip()}: known from {known[0]:g} to {known[-1]:g} nm, asked for {at.min():g} to {at.max():g} nm: "
            f"extend it, or ask for less"
        )
    return np.asarray(np.interp(at, known, value, left=outside, right=outside))


def from_photons(wavelength: Any, density: Any, name: str = "", air: bool = False) -> Spectrum:
    """Spectrum of a photon flux density (photon s-1 m-2 nm-1, or relative), wavelengths in nm.

    A flux per nm in air becomes one per nm in vacuum (a part in 3600 less), so photons are kept.
    Raises as `Spectrum`, and UnitsError where wavelengths in air are beyond 185-3000 nm.
    """
    given, flux = np.asarray(wavelength, float), np.asarray(density, float)
    if not air:
        return Spectrum(given, flux, name)
    check_wavelengths(f"spectrum {name}".strip(), given)
    return Spectrum(air_to_vacuum(given), flux / air_stretch(given), name)


def air_stretch(wavelength: np.ndarray) -> np.ndarray:
    """Nanometres in vacuum of one nanometre in air at wavelengths in air: 1.0003."""
    step = 0.01
    return (air_to_vacuum(wavelength + step) - air_to_vacuum(wavelength - step)) / (2 * step)


def from_energy_wavelength(wavelength: Any, flux: Any, name: str = "", air: bool = False) -> Spectrum:
    """Spectrum of an energy flux density per wavelength (W m-2 nm-1): S = wavelength F / (h c); see `from_photons`."""
    given = np.asarray(wavelength, float)
    return from_photons(given, photons_from_flambda(_in_vacuum(given, air), flux), name, air)


def from_energy_frequency(wavelength: Any, flux: Any, name: str = "", air: bool = False) -> Spectrum:
    """Spectrum of an energy flux density per frequency (W m-2 Hz-1): S = F / (h wavelength); see `from_photons`."""
    given = np.asarray(wavelength, float)
    found = photons_from_fnu(_in_vacuum(given, air), flux)  # per nm of vacuum: as it should be
    return Spectrum(_in_vacuum(given, air), found, name)


def _in_vacuum(wavelength: np.ndarray, air: bool) -> np.ndarray:
    return air_to_vacuum(wavelength) if air else wavelength


def bin_means(wavelength: np.ndarray, value: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means over bins of what is straight between its wavelengths and zero beyond them.

    Parameters
    ----------
    wavelength : (n,) nm, ascending.
    value : (..., n).
    edges : (bin + 1,) nm, ascending.

    Returns
    -------
    (..., bin), exact.
    """
    total = make_interp_spline(wavelength, np.moveaxis(np.asarray(value, float), -1, 0), k=1).antiderivative()
    sums = total(np.clip(edges, wavelength[0], wavelength[-1]))
    return np.asarray(np.moveaxis(np.diff(sums, axis=0), 0, -1) / np.diff(edges))


def joint_wavelengths(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """All wavelengths of two ascending rows that lie within both, each once."""
    both = np.unique(np.concatenate([first, second]))
    return both[(both >= max(first[0], second[0])) & (both <= min(first[-1], second[-1]))]


def photons(spectrum: Spectrum, curve: Curve) -> float:
    """Photons (photon s-1 m-2) of a spectrum behind a curve: the integral of S T, exact, plus the lines.

    Where either is not known the product counts as zero; `check_cover` tells whether that matters.
    """
    at = joint_wavelengths(spectrum.wavelength, curve.wavelength)
    middle = (at[1:] + at[:-1]) / 2
    ends, centre = (spectrum.at(w) * curve.at(w) for w in (at, middle))
    total = np.diff(at) @ (ends[1:] + ends[:-1] + 4 * centre) / 6  # Simpson's rule: the product is a parabola
    return float(total + spectrum.line_flux @ curve.at(spectrum.line_wavelength, outside=0.0))


def check_cover(spectrum: Spectrum, curve: Curve, limit: float = 1e-4) -> float:
    """Bound of the part of the light behind a curve that lies where the spectrum is not known.

    There the spectrum is taken to be at most as bright as anywhere within the reach of the curve.

    Raises
    ------
    CalibrationError
        It is above ``limit``.
    """
    known = photons(spectrum, curve)
    span = np.clip([spectrum.wavelength[0], spectrum.wavelength[-1]], curve.wavelength[0], curve.wavelength[-1])
    edges = np.unique([curve.wavelength[0], *span, curve.wavelength[-1]])
    light = np.abs(bin_means(curve.wavelength, curve.value, edges) * np.diff(edges))  # noise about zero cancels
    inside = (edges[:-1] >= span[0]) & (edges[1:] <= span[1])
    seen = (spectrum.wavelength >= span[0]) & (spectrum.wavelength <= span[1])
    missing = light[~inside].sum() * spectrum.density[seen].max(initial=0.0)
    part = float(missing / (known + missing)) if known > 0 else float(light[~inside].sum() > 0)
    if part > limit and light[inside].any() and _is_dark(spectrum, span):
        raise CalibrationError(
            f"spectrum {spectrum.name}: has no light behind {curve.name or 'the curve'}, from {span[0]:g} to "
            f"{span[1]:g} nm: give one that shines there"
        )
    if part > limit:
        raise CalibrationError(
            f"spectrum {spectrum.name}: from {spectrum.wavelength[0]:g} to {spectrum.wavelength[-1]:g} nm it leaves up "
            f"to {part:.2g} of the light behind {curve.name or 'the curve'} unknown: extend it"
        )
    return part


def _is_dark(spectrum: Spectrum, span: np.ndarray) -> bool:
    """Whether there is neither continuum nor line between two wavelengths (nm) within the spectrum."""
    at = np.concatenate([span, spectrum.wavelength])
    lines = spectrum.line_flux[(spectrum.line_wavelength >= span[0]) & (spectrum.line_wavelength <= span[1])]
    return not (spectrum.at(at[(at >= span[0]) & (at <= span[1])]).any() or lines.any())


def multiply(spectrum: Spectrum, curve: Curve) -> Spectrum:
    """Spectrum behind a curve, on the wavelengths of both (straight between them); lines and modes too.

    Raises
    ------
    CalibrationError
        They do not overlap, or a line is beyond the curve.
    """
    at = joint_wavelengths(spectrum.wavelength, curve.wavelength)
    if len(at) < 2:
        own, other = (f"{one[0]:g} to {one[-1]:g} nm" for one in (spectrum.wavelength, curve.wavelength))
        raise CalibrationError(f"spectrum {spectrum.name}: from {own}, curve {curve.name} from {other}: extend one")
    passed, lines = np.clip(curve.at(at), 0, None), np.clip(curve.at(spectrum.line_wavelength), 0, None)
    modes, line_modes = spectrum.density_modes, spectrum.line_modes
    if modes is not None:
        modes = np.stack([np.interp(at, spectrum.wavelength, mode) * passed for mode in modes])
    return replace(
        spectrum,
        wavelength=at,
        density=spectrum.at(at) * passed,
        line_flux=spectrum.line_flux * lines,
        density_modes=modes,
        line_modes=None if line_modes is None else line_modes * lines,
    )
