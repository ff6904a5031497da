"""The sky full of stars and the image of a point (¶13, ¶15; science visits).

The sphere is cut into declination bands and these into cells of nearly equal area; a cell's stars are a function
of (seed, settings, cell). A field collects the cells that it touches, so a star is the same in every field.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from pydantic import Field, model_validator

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.seds import sed, templates

__all__ = ["PSF", "STAR", "Stars", "bright_star", "known_spectrum", "magnitude_at", "psf", "separation", "stars_in"]

STAR: Final = np.dtype(
    [
        ("id", "i8"),  # cell * 2**24 + number in the cell
        ("ra", "f8"),  # deg
        ("dec", "f8"),  # deg
        ("magnitude", "f8"),  # AB in the reference band of `seds`, mean over time
        ("template", "i4"),  # place in `seds.templates()`
        ("is_binary", "?"),
        ("is_variable", "?"),
        ("amplitude", "f8"),  # mag, half of the range; 0 if it does not vary
        ("period", "f8"),  # days
        ("phase", "f8"),  # in periods, at 2000-01-01
    ]
)
"""One row of `stars_in`."""

NUMBER_BITS: Final = 24
"""Low bits of an id: the number of the star in its cell; those above it number the cell."""

_BRIGHT_CELL: Final = 1.0  # deg; one star of known spectrum in each: about as many as there are to V = 8
_BRIGHT_ID: Final = 1 << 56
_EPOCH: Final = np.datetime64("2000-01-01", "ms")
_DAY: Final = np.timedelta64(86_400_000, "ms")
# Temperatures of the stars seen at high latitude: (part, median in K, scatter of the logarithm): red dwarfs,
# turn-off stars of disc and halo, earlier and later types in between.
_POPULATION: Final = ((0.48, 3600.0, 0.08), (0.42, 5900.0, 0.08), (0.10, 5600.0, 0.30))
_OTHERS: Final = ("binary", "white_dwarf", "supernova", "emission")  # kinds that are not single stars
_METALLICITIES: Final = (0.5, 0.3, 0.2)  # parts with the three metallicities of the grid


class Stars(Effect):
    """Point sources of the sky, and what catalogues say of them.

    Counts grow by 0.3 dex/mag and reach 4000 deg-2 at 21 mag: the order of those at middle Galactic latitudes
    (Bahcall & Soneira 1980, ApJS 44, 73), without their dependence on it. Catalogue errors are those of Gaia DR3
    (Riello et al. 2021, A&A 649, A3).
    """

    density: float = Field(4000.0, ge=0)  # deg-2 brighter than `limit`
    limit: float = 21.0  # mag, of `density`
    density_scale: float = Field(1.0, ge=0)  # crowds small cameras: 100 for 160 stars to 21 mag on 0.02 x 0.02 deg
    slope: float = Field(0.3, gt=0)  # dex/mag
    bright: float = 15.0  # mag, brightest
    faint: float = 24.0  # mag, faintest
    binaries: float = Field(0.15, ge=0, le=1)  # part of the stars
    white_dwarfs: float = Field(0.01, ge=0, le=1)  # part
    supernovae: float = Field(0.001, ge=0, le=1)  # part
    emission: float = Field(0.004, ge=0, le=1)  # part that are emission-line objects
    variables: float = Field(0.02, ge=0, le=1)  # part
    variability: float = Field(0.1, ge=0)  # mag, median half range of a variable
    known_bright: float = 4.0  # mag, brightest star of known spectrum
    known_faint: float = 8.0  # mag, faintest
    catalogue_limit: float = 21.0  # mag, faintest in the photometric catalogue
    catalogue_floor: float = Field(0.002, ge=0)  # mag, error of the brightest in it
    standards: float = Field(0.02, ge=0, le=1)  # part of the stable stars to 19 mag that are standards
    standard_error: float = Field(0.005, ge=0)  # mag, of each band of a standard

    @model_validator(mode="after")
    def _ordered(self) -> "Stars":
        if self.faint <= self.bright:
            raise ValueError(f"stars from {self.bright:g} to {self.faint:g} mag: `faint` must be the larger number")
        if self.known_faint <= self.known_bright:
            raise ValueError(f"known spectra to {self.known_faint:g} mag: `known_faint` must exceed `known_bright`")
        if self.binaries + self.white_dwarfs + self.supernovae + self.emission > 1:
            raise ValueError("binaries, white_dwarfs, supernovae and emission together are more than all stars")
        return self

    @property
    def total(self) -> float:
        """Stars per square degree between `bright` and `faint`."""
        to_faint, to_bright = (10 ** (self.slope * (m - self.limit)) for m in (self.faint, self.bright))
        return self.density * self.density_scale * (to_faint - to_bright)

    @property
    def cell(self) -> float:
        """Height of a cell of the sky, deg: so that a cell has about 1000 stars."""
        return float(np.clip(np.sqrt(1000 / max(self.total, 1.0)), 0.005, 0.5))


class PSF(Effect):
    """Image of a point: a Moffat profile.

    Median seeing and its spread as at Cerro Pachon (Ivezic et al. 2019, ApJ 873, 111: 0.65 arcsec at 500 nm in the
    zenith, 0.4 arcsec from telescope and camera); powers of airmass and wavelength from Kolmogorov turbulence.
    """

    seeing: float = Field(0.65, gt=0)  # arcsec, median full width at half maximum of the air, zenith, 500 nm
    system: float = Field(0.4, ge=0)  # arcsec, of telescope and camera, added in quadrature
    scatter: float = Field(0.25, ge=0)  # of ln(seeing)
    correlation_time: float = Field(60.0, gt=0)  # min
    beta: float = Field(3.0, gt=1)  # exponent of the Moffat profile


def stars_in(seed: int, settings: Stars, ra: float, dec: float, radius_deg: float) -> np.ndarray:
    """Stars within a cone, rows of `STAR` in the order of their ids.

    Parameters
    ----------
    seed : of the observatory.
    settings : which stars there are.
    ra, dec : deg, axis of the cone.
    radius_deg : deg, half of its opening angle.

    Raises
    ------
    WrongUse
        The declination or the radius does not exist, or there are too many stars to number.
    """
    if not (-90 <= dec <= 90 and 0 < radius_deg <= 90):
        raise WrongUse(f"stars around declination {dec:g} within {radius_deg:g} deg: use -90 to 90, and 0 to 90 deg")
    if not settings.on:
        return np.empty(0, STAR)
    if settings.total * settings.cell**2 > 1 << (NUMBER_BITS - 1):
        raise WrongUse(f"{settings.total:.3g} stars in a square degree are too many: lower their `density_scale`")
    found = np.concatenate([_stars(seed, settings, *cell) for cell in _cells(settings.cell, ra, dec, radius_deg)])
    return found[separation(found["ra"], found["dec"], ra, dec) <= radius_deg]


def bright_star(seed: int, settings: Stars, ra: float, dec: float) -> np.void:
    """Star of known spectrum that is nearest to a place of the sky, one row of `STAR` (¶13): within 2 deg.

    It is there whether `settings` is on or not: the calibration telescope looks at it, not the camera.
    """
    limits = settings.known_bright, settings.known_faint
    found = np.concatenate([_bright(seed, *limits, *cell) for cell in _cells(_BRIGHT_CELL, ra, dec, 2 * _BRIGHT_CELL)])
    nearest: np.void = found[np.argmin(separation(found["ra"], found["dec"], ra, dec))]
    return nearest


def known_spectrum(star: np.void, wavelength: np.ndarray) -> np.ndarray:
    """Spectrum of one row of `STAR` above the atmosphere, mean over time, photon s-1 m-2 nm-1."""
    return sed(templates()[int(star["template"])], wavelength) * 10 ** (-0.4 * float(star["magnitude"]))


def magnitude_at(stars: np.ndarray, time: np.datetime64) -> np.ndarray:
    """Magnitude of each star at one time: a sine about its mean."""
    days = float((time.astype("datetime64[ms]") - _EPOCH) / _DAY)
    turns = days / np.where(stars["period"] > 0, stars["period"], np.inf) + stars["phase"]
    return np.asarray(stars["magnitude"] + stars["amplitude"] * np.sin(2 * np.pi * turns))


def separation(ra: Any, dec: Any, ra0: float, dec0: float) -> np.ndarray:
    """Angle between directions, deg, by the haversine (exact where it is small)."""
    ra, dec, ra0, dec0 = (np.deg2rad(a) for a in (ra, dec, ra0, dec0))
    square = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
    return np.asarray(np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(square, 0, 1)))))


@lru_cache(maxsize=8)
def _bands(height: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower edges in declination (band + 1,), deg, and number of the first cell (band + 1,) of every band."""
    edges = np.linspace(-90, 90, max(1, round(180 / height)) + 1)
    widest = np.where(edges[:-1] * edges[1:] <= 0, 1, np.cos(np.deg2rad(np.minimum(abs(edges[:-1]), abs(edges[1:])))))
    count = np.maximum(1, np.ceil(360 * widest / height).astype(np.int64))
    first = np.concatenate([[0], np.cumsum(count)])
    for array in (edges, first):
        array.flags.writeable = False
    return edges, first


def _cells(height: float, ra: float, dec: float, radius: float) -> list[tuple[int, float, float, float, float]]:
    """Cells that a cone may touch: (number, ra0, ra1, dec0, dec1), deg, by rising number."""
    edges, first = _bands(height)
    half = 180.0
    if abs(dec) + radius < 90:
        half = float(np.rad2deg(np.arcsin(np.sin(np.deg2rad(radius)) / np.cos(np.deg2rad(dec)))))
    found = []
    for band in np.flatnonzero((edges[1:] >= dec - radius) & (edges[:-1] <= dec + radius)):
        count = int(first[band + 1] - first[band])
        width = 360 / count
        low, high = np.floor((ra - half) / width), np.floor((ra + half) / width)
        columns = range(count) if high - low + 1 >= count else sorted(int(k) % count for k in np.arange(low, high + 1))
        box = float(edges[band]), float(edges[band + 1])
        found += [(int(first[band]) + k, k * width, (k + 1) * width, *box) for k in columns]
    return found


def _even(
    rng: np.random.Generator, n: int, ra0: float, ra1: float, dec0: float, dec1: float
) -> tuple[np.ndarray, np.ndarray]:
    """Even positions in a cell: ra, dec in deg."""
    low, high = (float(np.sin(np.deg2rad(edge))) for edge in (dec0, dec1))
    ra = rng.uniform(ra0, ra1, n)
    return ra, np.rad2deg(np.arcsin(np.clip(rng.uniform(low, high, n), -1, 1)))


@lru_cache(maxsize=1024)
def _stars(seed: int, settings: Stars, cell: int, ra0: float, ra1: float, dec0: float, dec1: float) -> np.ndarray:
    """All stars of a cell."""
    rng = stream(seed, "stars", tile=cell)
    area = (ra1 - ra0) * np.rad2deg(np.diff(np.sin(np.deg2rad([dec0, dec1])))[0])
    stars = np.zeros(rng.poisson(settings.total * area), STAR)
    stars["id"] = (cell << NUMBER_BITS) + np.arange(len(stars))
    stars["ra"], stars["dec"] = _even(rng, len(stars), ra0, ra1, dec0, dec1)
    low, high = (10 ** (settings.slope * (m - settings.limit)) for m in (settings.bright, settings.faint))
    stars["magnitude"] = settings.limit + np.log10(rng.uniform(low, high, len(stars))) / settings.slope
    kind = _kinds(rng, settings, len(stars))
    stars["template"] = _star_templates(rng, len(stars))
    for name in _OTHERS:
        stars["template"] = np.where(kind == name, rng.choice(_of_kind(name), len(stars)), stars["template"])
    stars["is_binary"] = kind == "binary"
    # The phase of a supernova stands still for a night: it does not vary.
    varies = (rng.random(len(stars)) < settings.variables) & (kind != "supernova")
    stars["is_variable"] = varies
    stars["amplitude"] = varies * settings.variability * np.exp(0.5 * rng.standard_normal(len(stars)))
    stars["period"] = varies * 10 ** rng.uniform(-1, 2, len(stars))
    stars["phase"] = varies * rng.random(len(stars))
    stars.flags.writeable = False
    return stars


def _kinds(rng: np.random.Generator, settings: Stars, n: int) -> np.ndarray:
    """Kind of template of each object."""
    parts = np.cumsum([settings.binaries, settings.white_dwarfs, settings.supernovae, settings.emission])
    return np.array([*_OTHERS, "star"])[np.searchsorted(parts, rng.random(n), side="right")]


def _star_templates(rng: np.random.Generator, n: int) -> np.ndarray:
    """Templates of single stars, by the temperatures of the population."""
    parts, medians, scatters = np.array(_POPULATION).T
    group = rng.choice(len(parts), n, p=parts)
    temperature = medians[group] * np.exp(scatters[group] * rng.standard_normal(n))
    places = _of_kind("star").reshape(len(_METALLICITIES), -1)
    grid = np.log([templates()[i].temperature for i in places[0]])
    nearest = np.clip(np.rint((np.log(temperature) - grid[0]) / (grid[1] - grid[0])), 0, len(grid) - 1).astype(int)
    return np.asarray(places[rng.choice(len(places), n, p=_METALLICITIES), nearest])


@lru_cache(maxsize=8)
def _of_kind(kind: str) -> np.ndarray:
    """Places of a kind in the grid of templates."""
    found = np.array([i for i, template in enumerate(templates()) if template.kind == kind])
    found.flags.writeable = False
    return found


@lru_cache(maxsize=256)
def _bright(
    seed: int, brightest: float, faintest: float, cell: int, ra0: float, ra1: float, dec0: float, dec1: float
) -> np.ndarray:
    """The one star of known spectrum in a cell: single, stable, of solar composition, 5000 to 12 000 K."""
    rng = stream(seed, "bright_stars", tile=cell)
    stars = np.zeros(1, STAR)
    stars["id"] = _BRIGHT_ID + cell
    stars["ra"], stars["dec"] = _even(rng, 1, ra0, ra1, dec0, dec1)
    slope = 0.5  # dex/mag: near stars, evenly in space
    stars["magnitude"] = faintest + np.log10(rng.uniform(10 ** (slope * (brightest - faintest)), 1)) / slope
    grid = templates()
    good = [i for i in _of_kind("star") if grid[i].metallicity == 0 and 5000 <= grid[i].temperature <= 12000]
    stars["template"] = rng.choice(good)
    stars.flags.writeable = False
    return stars


def psf(seed: int, settings: PSF, time: np.datetime64, airmass: Any, wavelength: Any) -> tuple[np.ndarray, float]:
    """Full width at half maximum (arcsec) and exponent of the Moffat profile of a point.

    The air widens as ``airmass**0.6 * (wavelength / 500 nm)**-0.2``; telescope and camera add in quadrature.
    Switched off, a point stays a point: its width is 0.

    Parameters
    ----------
    time : UTC; the seeing of a night does not depend on when and in which order it is asked for.
    airmass, wavelength (nm) : numbers or arrays that broadcast.
    """
    power = np.asarray(airmass, float) ** 0.6 * (np.asarray(wavelength, float) / 500) ** -0.2
    if not settings.on:
        return np.zeros_like(power), settings.beta
    since = time.astype("datetime64[ms]") - np.timedelta64(12, "h")
    night = since.astype("datetime64[D]")
    minutes = (since - night) / np.timedelta64(60_000, "ms")
    walk = _night(seed, settings.correlation_time, int(night.astype(np.int64)))
    air = settings.seeing * np.exp(settings.scatter * np.interp(minutes, np.arange(len(walk)), walk)) * power
    return np.hypot(air, settings.system), settings.beta


@lru_cache(maxsize=64)
def _night(seed: int, correlation_time: float, night: int) -> np.ndarray:
    """Ornstein-Uhlenbeck process of unit variance, once a minute from noon to noon."""
    if night < 0:
        raise WrongUse("seeing of a night before 1970: use a later time")
    noise = stream(seed, "psf", exposure=night).standard_normal(24 * 60 + 1)
    memory = np.exp(-1 / correlation_time)
    noise[1:] *= np.sqrt(1 - memory**2)
    for k in range(1, len(noise)):
        noise[k] += memory * noise[k - 1]
    noise.flags.writeable = False
    return noise
