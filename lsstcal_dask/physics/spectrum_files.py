"""Spectra and curves from files: FITS tables, ECSV and two-column text (SCIENCE section 0).

Nothing is guessed: the unit of both columns stands in the file or is given, and whether the flux counts photons or
energy follows from it. Wavelengths in air become those in vacuum.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy import units
from astropy.table import Table
from astropy.utils.data import get_readable_fileobj

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.physics.spectra import Curve, Spectrum, air_stretch, check_wavelengths
from lsstcal_dask.physics.tables import numbers
from lsstcal_dask.physics.units import air_to_vacuum, in_air

__all__ = [
    "SILICON_NM",
    "curve_from_table",
    "photon_density",
    "read_curve",
    "read_spectrum",
    "read_table",
    "spectrum_from_table",
]

PHOTONS: Final = units.photon / units.s / units.m**2 / units.nm
SILICON_NM: Final = (300.0, 1150.0)
"""Shortest and longest wavelength that the sensors see."""

_ALIASES: Final = {
    "ANGSTROMS": "Angstrom",
    "FLAM": "erg / (s cm2 Angstrom)",
    "FNU": "erg / (s cm2 Hz)",
    "PHOTLAM": "photon / (s cm2 Angstrom)",
    "PERCENT": "%",
    "unitless": "",
}
# What a flux may lack, or have besides, in steps that leave its shape: a radiance, and a relative flux
_SCALES: Final = (units.one, units.arcsec**2, units.s**-1 * units.m**-2, units.m**-2)
_PER_NM: Final = (PHOTONS, units.W / units.m**2 / units.nm)
_PER_HZ: Final = (PHOTONS * units.nm / units.Hz, units.W / units.m**2 / units.Hz)


def read_spectrum(path: str | Path, **given: Any) -> Spectrum:
    """Spectrum in a file; see `spectrum_from_table` for what can be given, and for what it raises."""
    return spectrum_from_table(read_table(path), **{"name": str(path), **given})


def read_curve(path: str | Path, **given: Any) -> Curve:
    """Transmission or quantum efficiency in a file; see `curve_from_table`."""
    return curve_from_table(read_table(path), **{"name": str(path), **given})


def read_table(path: str | Path) -> Table:
    """Table of a FITS file, of an ECSV file, or of text with two columns and lines that begin with #.

    A first line of text that holds no number is its header, and left out: the units it may tell are not read.

    Raises
    ------
    CalibrationError
        There is none, or it is none of these.
    """
    kind = "fits" if ".fit" in Path(path).name.lower() else "ascii.ecsv" if str(path).endswith(".ecsv") else "ascii"
    options: dict[str, Any] = {"format": kind}
    if kind == "ascii":
        options = {"format": "ascii.no_header", "comment": "#", "names": ["wavelength", "value"]}
    elif kind == "fits":
        options["unit_parse_strict"] = "silent"  # other columns may be in anything
    try:
        return Table.read(_text(path) if kind == "ascii" else path, **options)
    except FileNotFoundError:
        raise CalibrationError(f"{path}: there is no such file: give the path of one") from None
    except Exception as error:  # of parsers anything may come
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CalibrationError(f"{path}: is no FITS table, ECSV or two-column text ({why}): convert it") from error


def _text(path: str | Path) -> list[str]:
    """Lines of a text without its header."""
    with get_readable_fileobj(path, encoding="utf-8-sig") as file:
        lines: list[str] = file.read().splitlines()
    told = [i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    if told and not any(map(_is_number, re.split(r"[\s,;|]+", lines[told[0]]))):
        del lines[told.pop(0)]
    if not told:
        raise ValueError("no line of numbers")
    return lines


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def spectrum_from_table(
    table: Table,
    columns: tuple[str, str] | None = None,
    unit: tuple[str, str] | None = None,
    medium: str | None = None,
    within: tuple[float, float] | None = None,
    name: str = "",
) -> Spectrum:
    """Spectrum in a table with a column of wavelengths and one of flux.

    Noise below zero counts as zero beyond `SILICON_NM`, where no CCD sees it: standard stars reach from 90 nm to 30 um.

    Parameters
    ----------
    columns : names of the two; the first two columns if None.
    unit : of both, as astropy writes them; needed where the table does not say, and must agree with it where it does.
        Photons or energy per wavelength or frequency, per solid angle too; "photon / nm" or "W / nm" if relative. Per
        frequency names it, as Hz or Jy: J and W s / m2 are energies of bins of which nobody says how wide they are.
    medium : "air" or "vacuum"; what the table's ``medium``, ``AIRORVAC`` or ``CTYPE1`` says, else vacuum, if None.
    within : shortest and longest wavelength (nm) to keep.

    Raises
    ------
    UnitsError
        A unit is not said, said differently in two places or not one of a spectrum; or so with the medium. A column is
        not of numbers.
    CalibrationError
        There is no such column, it has several numbers in each row, or as `Spectrum`.
    """
    wavelength, flux, flux_unit = _columns(table, columns, unit, name)
    keep = slice(None) if within is None else (wavelength >= within[0]) & (wavelength <= within[1])
    check_wavelengths(f"spectrum {name}".strip(), wavelength[keep])
    air = _is_air(table, medium, name)
    given, (flux, flux_unit) = wavelength[keep], _linear(flux[keep], flux_unit)
    vacuum = air_to_vacuum(given) if air else given
    density = photon_density(vacuum, flux, flux_unit, name)
    if air and _flux_density(flux_unit, _PER_NM) is not None:
        density = density / air_stretch(given)
    far = (vacuum < SILICON_NM[0]) | (vacuum > SILICON_NM[1])
    return Spectrum(vacuum, np.where(far & (density < 0), 0.0, density), name)


def curve_from_table(
    table: Table,
    columns: tuple[str, str] | None = None,
    unit: tuple[str, str] | None = None,
    medium: str | None = None,
    name: str = "",
) -> Curve:
    """Transmission or quantum efficiency in a table; the unit of its values is "" (fractions) or "%".

    Parameters and errors as those of `spectrum_from_table`.
    """
    wavelength, value, found = _columns(table, columns, unit, name)
    if found.physical_type != "dimensionless":
        raise UnitsError(f"{name}: values of a curve in {found}: give fractions ('') or '%'")
    check_wavelengths(f"curve {name}".strip(), wavelength)
    if _is_air(table, medium, name):
        wavelength = air_to_vacuum(wavelength)
    return Curve(wavelength, value * found.to(units.one), name)


def photon_density(wavelength: np.ndarray, flux: np.ndarray, unit: Any, name: str = "") -> np.ndarray:
    """Photon flux density (photon s-1 m-2 nm-1) of a flux in any unit of photons or energy.

    A radiance becomes one per arcsec2, a relative flux stays relative.

    Raises
    ------
    UnitsError
        The unit does not say whether photons or energy are meant, and per what.
    """
    at = np.asarray(wavelength, float) * units.nm
    flux, unit = _linear(flux, unit)
    kinds = (*_PER_NM, *_PER_HZ) if _names_frequency(unit) else _PER_NM
    if (full := _flux_density(unit, kinds)) is not None:
        return np.asarray((flux * full).to_value(PHOTONS, units.spectral_density(at)))
    raise UnitsError(
        f"spectrum {name}: flux in {str(unit)!r} says neither photons nor energy per wavelength or frequency: "
        f"give a unit as 'photon / (s m2 nm)', 'erg / (s cm2 Angstrom)' or 'Jy'"
    )


def _linear(flux: np.ndarray, unit: Any) -> tuple[np.ndarray, Any]:
    """What magnitudes and other logarithms stand for, and its unit."""
    if not isinstance(unit, units.function.FunctionUnitBase):
        return flux, unit
    return (np.asarray(flux, float) * unit).physical.value, unit.physical_unit


def _names_frequency(unit: Any) -> bool:
    """Whether Hz is written in a unit, or in those it is made of, as in Jy: 1 / Hz alone has the dimension of s."""
    if unit.is_equivalent(units.Hz):
        return True
    parts = getattr(unit, "represents", unit).bases
    return any(_names_frequency(part) for part in parts if part is not unit)


def _flux_density(unit: Any, kinds: Sequence[Any]) -> Any | None:
    """Unit of a flux density that is one of these kinds, but for what a radiance or a relative flux has or lacks."""
    scaled = (unit * scale for scale in _SCALES)
    return next((full for full in scaled if any(full.is_equivalent(kind) for kind in kinds)), None)


def _columns(
    table: Table, names: tuple[str, str] | None, given: tuple[str, str] | None, name: str
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Wavelengths in nm, values, and their unit."""
    names = names or tuple(table.colnames[:2])
    if len(names) < 2 or any(n not in table.colnames for n in names):
        raise CalibrationError(f"{name}: has columns {table.colnames}, not {list(names)}: name the two to read")
    first, second = (_unit(table, column, i, given, name) for i, column in enumerate(names))
    if first.physical_type != "length":
        raise UnitsError(f"{name}: column {names[0]} in {str(first)!r} is no wavelength: give its unit, as 'nm'")
    wavelength, value = (_row(table, column, name) for column in names)
    if len(wavelength) != len(value):
        raise CalibrationError(f"{name}: {len(value)} values for {len(wavelength)} wavelengths: give one each")
    return wavelength * first.to(units.nm), value, second


def _row(table: Table, column: str, name: str) -> np.ndarray:
    """Numbers of a column, or of a table of one row that holds vectors."""
    found = numbers(table, column, name, dims=None)
    if found.size != max(found.shape):
        raise CalibrationError(f"{name}: column {column} of {found.shape}: give one number in each row")
    return found.ravel()


def _unit(table: Table, column: str, place: int, given: tuple[str, str] | None, name: str) -> Any:
    said = table[column].unit
    if given is None and said is None:
        why = (
            "it makes photons or energy of a flux"
            if place
            else "in the file or with --wavelength-unit, of a spectrum with --flux-unit too"
        )
        raise UnitsError(f"{name}: column {column} has no unit: say it, {why}")
    try:
        found = units.Unit(_ALIASES.get(str(said), said)) if said is not None else None
        wanted = units.Unit(_ALIASES.get(given[place], given[place])) if given is not None else found
    except ValueError:
        what = given[place] if given is not None else said
        raise UnitsError(f"{name}: column {column} in {str(what)!r}: give a unit that astropy knows") from None
    if found is not None and wanted != found:
        raise UnitsError(f"{name}: column {column} is in {found}, given as {wanted}: one of the two is wrong")
    return wanted


def _is_air(table: Table, given: str | None, name: str) -> bool:
    """Whether wavelengths are in air: as the file says, or as is given, which must not contradict it."""
    found = in_air(table.meta, name)
    if given is None:
        return bool(found)
    if given not in ("air", "vacuum"):
        raise UnitsError(f"{name}: wavelengths in {given!r}: say air or vacuum")
    if found is not None and found != (given == "air"):
        said = "air" if found else "vacuum"
        raise UnitsError(f"{name}: wavelengths given as in {given}, the file says {said}: one of the two is wrong")
    return given == "air"
