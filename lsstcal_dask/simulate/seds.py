"""Spectra of what the telescope looks at (¶12, ¶15; App. D): a grid of templates, as photon flux densities.

A spectrum is a function of wavelength (nm in vacuum) that returns photon s-1 m-2 nm-1 above the atmosphere for
an AB magnitude of 0 in the reference band, a top hat in photons from 550 to 690 nm. The normalisation belongs
to the template, not to the grid it is asked on: a part of the wavelengths gets the same values, to rounding.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.physics.units import photons_from_ab

__all__ = ["RANGE", "REFERENCE", "Template", "ab_magnitude", "flat", "sed", "spectra", "templates"]

RANGE: Final = (290.0, 1200.0)
"""nm, vacuum: where the templates are defined."""

REFERENCE: Final = (550.0, 690.0)
"""nm: the band in which a template has magnitude 0."""

_C2: Final = 1.438776877e7  # nm K, second radiation constant
_LIGHT: Final = 299792.458  # km/s


@dataclass(frozen=True)
class Template:
    """What an object is; fields that its kind does not use stay at 0."""

    kind: str  # star, white_dwarf, binary, supernova, emission or flat
    temperature: float = 0.0  # K, effective
    metallicity: float = 0.0  # dex from solar
    companion: float = 0.0  # K, second star of a binary
    share: float = 0.0  # of the companion in the photons of the reference band
    redshift: float = 0.0
    phase: float = 0.0  # days after the maximum of a supernova, in its own time


# Absorption lines: (wavelength in vacuum, nm; relative depth). Hydrogen by Rydberg's formula.
_BALMER: Final = (
    *((656.47, 0.75), (486.27, 1.0), (434.17, 1.05), (410.29, 1.05), (397.12, 1.0), (389.02, 0.9)),
    *((383.65, 0.75), (379.9, 0.55), (377.2, 0.4)),
)
_PASCHEN: Final = (
    *((1094.1, 1.0), (1005.2, 1.0), (954.9, 1.0), (923.2, 0.9), (901.8, 0.85), (886.5, 0.75)),
    *((875.3, 0.65), (866.7, 0.55), (860.1, 0.45)),
)
# Ca H and K, CN, G band with Fe and Ca I, Ca II triplet: (nm, width in nm, depth).
_METALS: Final = (
    *((393.5, 2.2, 0.5), (396.95, 2.2, 0.5), (386.0, 4.0, 0.35), (382.0, 3.0, 0.35), (430.6, 2.2, 0.4)),
    *((438.4, 1.5, 0.24), (422.8, 1.5, 0.28), (850.0, 1.4, 0.1), (854.4, 1.4, 0.2), (866.5, 1.4, 0.16)),
)
# Molecular bands degraded to the red: (head, nm; extent, nm; depth).
_MGH: Final = ((476.3, 18.0, 0.35), (495.6, 18.0, 0.9), (516.8, 26.0, 1.0))
_TIO: Final = (
    *((544.9, 30.0, 0.5), (584.9, 30.0, 0.95), (615.9, 40.0, 1.0), (665.3, 33.0, 0.75), (705.6, 38.0, 0.6)),
    *((638.3, 16.0, 0.12), (675.0, 25.0, 0.18)),
)
_TIO_VO: Final = (
    *((758.0, 50.0, 0.8), (843.4, 28.0, 0.5), (885.9, 40.0, 0.4)),
    *((737.0, 30.0, 0.6), (786.0, 30.0, 0.5), (932.0, 50.0, 0.4)),
)

# Amplitudes, at these temperatures, of the shapes by which ln(flux) of a main-sequence star differs from that of
# a black body. Fitted to the dwarfs of Pickles (1998, PASP 110, 863) on the temperature scale of Pecaut & Mamajek
# (2013, ApJS 208, 9), their ultraviolet first moved to the u-g of the stellar locus (Covey et al. 2007, AJ 134, 2398).
_NODES: Final = (3000, 3400, 3800, 4300, 5000, 5800, 6600, 7600, 9000, 11000, 15000, 20000)
_AMPLITUDES: Final = {
    "tilt": (-0.94, -0.71, 0.08, -0.10, 0.20, 0.25, 0.26, 0.44, 0.49, 0.25, 0.25, 0.20),
    "curve": (2.32, 0.85, 0.25, 0.12, 0.10, 0.12, 0.05, -0.01, -0.06, 0.00, 0.20, 0.28),
    "cube": (1.79, 0.84, 0.08, 0.10, -0.01, -0.08, -0.12, -0.29, -0.26, -0.12, -0.02, 0.10),
    "break_400": (-1.92, -0.66, -0.66, -0.77, -0.68, -0.27, -0.09, -0.17, -0.27, -0.14, -0.26, -0.09),
    "blue": (0.41, -0.17, -0.51, -0.58, -0.33, -0.07, -0.02, 0.01, 0.15, 0.09, 0.13, 0.02),
    "near_uv": (-5.80, -3.60, -1.94, -1.14, -0.67, -0.37, -0.17, 0.05, 0.02, -0.21, -0.48, -0.71),
    "balmer_jump": (0, 0, 0, 0, 0, -0.23, -0.45, -0.92, -1.14, -1.04, -0.77, -0.61),
    "balmer": (0, 0, 0, 0, -0.02, -0.09, -0.26, -0.53, -0.66, -0.41, -0.39, -0.26),
    "paschen": (0, 0, 0, 0, 0, 0, -0.02, -0.01, -0.04, -0.16, 0, -0.06),
    "metals": (-0.26, -0.53, -0.79, -1.03, -1.09, -0.85, -0.46, -0.18, 0, 0, 0, 0),
    "mgh": (0, -0.13, -0.49, -0.61, -0.22, -0.03, -0.05, -0.05, 0, 0, 0, 0),
    "sodium": (-0.90, -0.49, -0.40, -0.37, -0.27, -0.13, -0.05, -0.02, 0, 0, 0, 0),
    "tio": (-1.80, -1.06, -0.16, -0.02, 0, 0, 0, 0, 0, 0, 0, 0),
    "tio_vo": (-0.50, -0.30, -0.06, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}
_METALLIC: Final = ("break_400", "near_uv", "metals", "mgh", "sodium")  # grow with the metallicity

# Resonance and strong lines of a type Ia supernova near maximum, as identified by Filippenko (1997, ARA&A 35,
# 309): (rest wavelength, nm; depth at maximum; growth of the depth per day).
_SUPERNOVA: Final = (
    *((394.5, 1.0, 0.01), (413.0, 0.35, -0.01), (448.1, 0.5, 0.012), (501.8, 0.45, 0.02), (545.4, 0.35, -0.015)),
    *((563.9, 0.3, -0.015), (597.2, 0.25, 0.005), (635.5, 0.9, -0.02), (777.3, 0.3, 0.005), (857.9, 0.6, 0.03)),
)
# Emission lines of a star-forming galaxy: (rest wavelength, nm; equivalent width, nm).
_EMISSION: Final = ((372.8, 10.0), (486.27, 5.0), (496.03, 5.0), (500.82, 15.0), (656.47, 20.0), (671.8, 2.0))
_EMISSION_WIDTH: Final = 300.0  # km/s, full width at half maximum


def sed(template: Template, wavelength: np.ndarray) -> np.ndarray:
    """Photon flux density (wavelength,) of a template, photon s-1 m-2 nm-1 at AB = 0 in the reference band.

    Parameters
    ----------
    template : what the object is.
    wavelength : (wavelength,) nm in vacuum, as seen by the observer.

    Raises
    ------
    WrongUse
        The kind is unknown, a parameter or a wavelength is outside the model.
    """
    wavelength = np.asarray(wavelength, float)
    if not (np.all(wavelength >= RANGE[0]) and np.all(wavelength <= RANGE[1])):
        raise WrongUse(f"spectrum of a {template.kind}: wavelengths outside {RANGE[0]:g} to {RANGE[1]:g} nm: cut them")
    return np.asarray(_shape(template, wavelength) * _scale(template))


def spectra(wavelength: np.ndarray) -> np.ndarray:
    """`sed` of every template of the grid, (template, wavelength) float64."""
    return np.stack([sed(template, wavelength) for template in templates()])


@cache
def templates() -> tuple[Template, ...]:
    """The grid: stars, white dwarfs, binaries, supernovae, emission-line objects and a flat spectrum, in this order."""
    hot = [float(t) for t in np.round(np.geomspace(3000, 20000, 40), -1)]
    stars = [Template("star", t, m) for m in (0.0, -0.5, -1.5) for t in hot]
    dwarfs = [Template("white_dwarf", t) for t in (7e3, 9e3, 12e3, 16e3, 22e3, 30e3, 45e3)]
    pairs = [Template("binary", t, 0.0, c, s) for t in (4200.0, 5000.0, 5800.0, 6600.0) for c, s in _companions(t)]
    supernovae = [Template("supernova", redshift=z / 10, phase=p) for z in range(11) for p in (-7.0, 0.0, 12.0, 25.0)]
    lines = [Template("emission", redshift=z) for z in (0.0, 0.1, 0.25, 0.4, 0.6)]
    return (*stars, *dwarfs, *pairs, *supernovae, *lines, Template("flat"))


def _companions(temperature: float) -> list[tuple[float, float]]:
    """Temperature (K) and share of the light of the second star of some binaries."""
    return [(0.95 * temperature, 0.4), (0.8 * temperature, 0.2), (3200.0, 0.08)]


def flat(wavelength: np.ndarray, magnitude: float = 0.0) -> np.ndarray:
    """Spectrum of constant F_nu (the AB reference), photon s-1 m-2 nm-1."""
    return photons_from_ab(wavelength, np.asarray(magnitude))


def ab_magnitude(spectrum: np.ndarray, wavelength: np.ndarray, passband: np.ndarray) -> np.ndarray:
    """AB magnitude -2.5 log10(int S T / int S_AB T) of spectra (..., wavelength) in photons.

    Parameters
    ----------
    spectrum : photon s-1 m-2 nm-1.
    wavelength : (wavelength,) nm, ascending.
    passband : (wavelength,) electron per photon, of any scale.

    Raises
    ------
    WrongUse
        The passband lets nothing through on these wavelengths.
    """
    reference = np.trapezoid(flat(wavelength) * passband, wavelength)
    if not reference > 0:
        raise WrongUse("AB magnitude in a passband that is 0 at all wavelengths given: give its own wavelengths")
    with np.errstate(divide="ignore"):
        return np.asarray(-2.5 * np.log10(np.trapezoid(spectrum * passband, wavelength) / reference))


@lru_cache(maxsize=4096)
def _scale(template: Template) -> float:
    """Factor that gives a shape AB = 0 in the reference band."""
    grid = np.arange(REFERENCE[0], REFERENCE[1] + 0.05, 0.1)
    return float(np.trapezoid(flat(grid), grid) / np.trapezoid(_shape(template, grid), grid))


def _shape(template: Template, wavelength: np.ndarray) -> np.ndarray:
    """Photon spectrum of a template in any scale."""
    rest = wavelength / (1 + _within(template.redshift, 0, 1, "redshift of a template"))
    match template.kind:
        case "star":
            temperature = _within(template.temperature, 3000, 20000, "temperature of a star")
            return _star(temperature, _within(template.metallicity, -3, 0.5, "metallicity of a star"), wavelength)
        case "white_dwarf":
            return _white_dwarf(_within(template.temperature, 5000, 80000, "temperature of a white dwarf"), wavelength)
        case "binary":
            share = _within(template.share, 0, 1, "share of a companion")
            first, second = (
                Template("star", t, template.metallicity) for t in (template.temperature, template.companion)
            )
            return (1 - share) * sed(first, wavelength) + share * sed(second, wavelength)
        case "supernova":
            return _supernova(rest, _within(template.phase, -15, 50, "phase of a supernova"))
        case "emission":
            return _emission(rest)
        case "flat":
            return 1 / wavelength
    raise WrongUse(
        f"spectrum of a '{template.kind}': the kinds are star, white_dwarf, binary, supernova, emission, flat"
    )


def _within(value: float, low: float, high: float, what: str) -> float:
    if not low <= value <= high:
        raise WrongUse(f"{what} is {value:g}: use {low:g} to {high:g}")
    return value


def _planck(wavelength: np.ndarray, temperature: float) -> np.ndarray:
    """Photon spectrum of a black body, any scale."""
    with np.errstate(over="ignore"):
        return np.asarray((500 / wavelength) ** 4 / np.expm1(_C2 / (wavelength * temperature)))


def _step(distance: np.ndarray) -> np.ndarray:
    """1 far below 0, 0 far above."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance, -50, 50))))


def _line(wavelength: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Pseudo-Voigt profile of height 1, 60 % Lorentzian; ``width`` is its full width at half maximum."""
    square = ((wavelength - centre) / width) ** 2
    return np.asarray(0.6 / (1 + 4 * square) + 0.4 * np.exp(-4 * np.log(2) * square))


def _bands(wavelength: np.ndarray, bands: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Sum of saw teeth, steep at the head and fading to the red."""
    return np.asarray(
        sum(d * _step((h - wavelength) / 0.8) * np.clip(1 - (wavelength - h) / w, 0, 1) for h, w, d in bands)
    )


@lru_cache(maxsize=8)
def _shapes(grid: bytes) -> np.ndarray:
    """What a star can have above or below a black body, in ln(flux): (shape, wavelength), as in `_AMPLITUDES`."""
    wavelength = np.frombuffer(grid)
    u = 1000 / wavelength - 2
    paschen_jump = _step((wavelength - 835) / 6) * (wavelength / 820.4) ** 3 * _step((500 - wavelength) / 20)
    shapes = {
        "tilt": u,
        "curve": u**2,
        "cube": u**3,
        "break_400": _step((wavelength - 400) / 4),
        "blue": _step((wavelength - 445) / 14),
        "near_uv": np.exp(-0.5 * ((wavelength - 300) / 20) ** 2),
        # The last lines before the limit at 364.7 nm merge: the edge is seen at about 371 nm.
        "balmer_jump": _step((wavelength - 371) / 3) * (wavelength / 364.7) ** 3,
        "balmer": sum(depth * _line(wavelength, at, 2.4) for at, depth in _BALMER),
        "paschen": sum(depth * _line(wavelength, at, 3.5) for at, depth in _PASCHEN) + 0.6 * paschen_jump,
        "metals": sum(depth * _line(wavelength, at, width) for at, width, depth in _METALS),
        "mgh": _bands(wavelength, _MGH),
        "sodium": _line(wavelength, 589.4, 1.6),
        "tio": _bands(wavelength, _TIO),
        "tio_vo": _bands(wavelength, _TIO_VO),
    }
    result = np.stack([np.asarray(shapes[name]) for name in _AMPLITUDES])
    result.flags.writeable = False
    return result


def _star(temperature: float, metallicity: float, wavelength: np.ndarray) -> np.ndarray:
    """Main-sequence star; fewer metals weaken the blanketing of the blue by 10**(0.2 [M/H])."""
    amplitudes = [np.interp(np.log(temperature), np.log(_NODES), row) for row in _AMPLITUDES.values()]
    amplitudes *= np.where([name in _METALLIC for name in _AMPLITUDES], 10 ** (0.2 * metallicity), 1.0)
    # Not by @: its bits may depend on the number of threads.
    exponent = np.einsum("s,sw->w", amplitudes, _shapes(wavelength.tobytes()))
    return _planck(wavelength, temperature) * np.exp(exponent)


def _white_dwarf(temperature: float, wavelength: np.ndarray) -> np.ndarray:
    """Hydrogen (DA) white dwarf: Balmer lines some 10 nm wide, strongest at 12 500 K, and a smooth jump."""
    strength = np.exp(-0.5 * (np.log(temperature / 12500) / 0.55) ** 2)
    # Pressure dissolves the high levels: the last lines of the series are missing.
    lines = sum(depth * _line(wavelength, at, 9.0 if at < 600 else 6.0) for at, depth in _BALMER[:6])
    jump = _step((wavelength - 380) / 5) * (wavelength / 364.7) ** 3
    slope = 1000 / wavelength - 2  # hydrogen absorbs more in the red, by bound-free transitions
    exponent = 0.3 * slope - 0.55 * np.asarray(lines) - 0.85 * jump
    return _planck(wavelength, temperature) * np.exp(strength * exponent)


def _supernova(rest: np.ndarray, phase: float) -> np.ndarray:
    """Type Ia: a cooling photosphere, blanketed in the ultraviolet, under broad P-Cygni profiles.

    Each line absorbs at the velocity of the photosphere (12 000 km/s at maximum, falling) and emits less at rest.
    """
    temperature = 5500 + 6500 * np.exp(-max(phase + 5, 0) / 16)
    velocity = 6000 + 6000 * np.exp(-phase / 25)
    profile = -1.6 * _step((rest - 335) / 15) - 1.5 * _step((rest - 250) / 20)
    for centre, depth, growth in _SUPERNOVA:
        strength = depth * np.clip(1 + growth * phase, 0.2, 3)
        width = centre * 0.2 * velocity / _LIGHT  # standard deviation
        blue = centre * (1 - velocity / _LIGHT)
        profile = profile - strength * np.exp(-0.5 * ((rest - blue) / width) ** 2)
        profile = profile + 0.45 * strength * np.exp(-0.5 * ((rest - centre) / (1.6 * width)) ** 2)
    return _planck(rest, float(temperature)) * np.exp(profile)


def _emission(rest: np.ndarray) -> np.ndarray:
    """Lines of given equivalent width on a continuum of constant F_nu."""
    total = np.ones_like(rest)
    for centre, equivalent_width in _EMISSION:
        sigma = centre * _EMISSION_WIDTH / _LIGHT / np.sqrt(8 * np.log(2))
        total = total + equivalent_width * np.exp(-0.5 * ((rest - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return total / rest
