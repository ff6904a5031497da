"""What the Collimated Beam Projector is asked to do for the sets ¶10a-¶10f and for Sec. 2.11 (Lupton 2016, A).

Every function returns projections in the order in which they are to be taken, and nothing of exposure times or
repeats. Defaults are the document's; a camera of a few pixels needs fewer wavelengths, dithers and footprints.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal, focal_to_field
from lsstcal_dask.simulate.exposure import Projection, Sinusoid
from lsstcal_dask.simulate.filters import FILTERS, wavelength_range
from lsstcal_dask.simulate.masks import MASKS
from lsstcal_dask.simulate.projector import MIRROR, Projector

__all__ = [
    "Spectrum",
    "dithers",
    "each_amplifier",
    "footprints",
    "scan_wavelength",
    "sinusoids",
    "sparse_sequence",
    "wavelengths",
    "with_filters",
]


@dataclass(frozen=True)
class Spectrum:
    """Wavelengths of a scan, and the light at each of them."""

    first: float = 350.0  # nm
    last: float = 1100.0  # nm, included if the steps meet it
    step: float = 1.0  # nm
    bandwidth: float = 1.0  # nm, full width at half maximum
    rate: float = 1e7  # photons/s in a spot of a typical hole


def wavelengths(spectrum: Spectrum) -> np.ndarray:
    """Wavelengths (nm) of a scan.

    Raises
    ------
    WrongUse
        The step, bandwidth or rate is not positive, or the scan ends before it begins.
    """
    for name in ("first", "step", "bandwidth", "rate"):
        if not getattr(spectrum, name) > 0:
            raise WrongUse(f"wavelength scan: {name} is {getattr(spectrum, name)}: use a positive number")
    if spectrum.last < spectrum.first:
        raise WrongUse(f"wavelength scan from {spectrum.first} to {spectrum.last} nm: the last must not be the smaller")
    steps = int(np.floor((spectrum.last - spectrum.first) / spectrum.step + 1e-9))
    return spectrum.first + spectrum.step * np.arange(steps + 1)


def scan_wavelength(
    spectrum: Spectrum | None = None, *, mask: str = "grid", footprint: tuple[float, float] | None = None
) -> list[Projection]:
    """¶10a: one pattern and one footprint at every wavelength, 1 nm wide and 1 nm apart."""
    spectrum = spectrum or Spectrum()
    place = _ring(Projector(), 1, 1)[0] if footprint is None else footprint
    return [
        Projection(mask, float(w), spectrum.bandwidth, 0.0, 0.0, 0.0, place, spectrum.rate)
        for w in wavelengths(spectrum)
    ]


def dithers(
    camera: Camera,
    spectrum: Spectrum | None = None,
    *,
    number: int = 5,
    span: float = 1.5,
    rotations: Iterable[float] = (0.0, 90.0, 180.0, 270.0),
    mask: str = "grid",
) -> list[Projection]:
    """¶10b: the pattern moved and turned over the camera for a fixed footprint, every 100 nm, 20 nm wide.

    Parameters
    ----------
    camera : whose CCDs the dithers are measured in.
    spectrum : default 400 to 1000 nm.
    number : of dithers, the first in the middle, the others round it on an ellipse.
    span : from the leftmost to the rightmost and the lowest to the highest dither, in sizes of the largest CCD.
    rotations : deg; every dither is taken at each.
    mask : see `masks`.
    """
    if number < 1:
        raise WrongUse(f"{number} dithers of the projector: use at least 1")
    around = np.linspace(0, 2 * np.pi, number - 1, endpoint=False) + 0.3  # no two in a line with the axes
    places = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(around), np.sin(around)], 1)])
    spread = np.ptp(places, axis=0)
    places = np.divide(places, spread, out=np.zeros_like(places), where=spread > 0) * span * _largest_ccd(camera)
    u, v = (np.rad2deg(a) for a in focal_to_field(camera, *places.T))
    base = scan_wavelength(spectrum or Spectrum(400.0, 1000.0, 100.0, 20.0), mask=mask)
    return [
        replace(one, rotation=float(turn), azimuth=float(x), elevation=float(y))
        for one, turn, (x, y) in product(base, list(rotations), zip(u, v, strict=True))
    ]


def _largest_ccd(camera: Camera) -> np.ndarray:
    """Width and height, mm, as they lie on the focal plane."""
    sizes = [(d.shape[:: 1 if round(d.yaw_deg / 90) % 2 else -1], d.pixel_mm) for d in camera.detectors]
    return np.max([np.multiply(shape, pixel) for shape, pixel in sizes], axis=0)


def footprints(
    settings: Projector | None = None,
    spectrum: Spectrum | None = None,
    *,
    number: int = 6,
    rings: int = 1,
    mask: str = "grid",
) -> list[Projection]:
    """¶10c: one pattern seen through ``number`` places on each of so many rings of the primary mirror.

    The rings divide the annulus that a beam can meet whole; wavelengths default to 400 to 1000 nm in steps of 100.
    """
    if number < 1 or rings < 1:
        raise WrongUse(f"{number} footprints on each of {rings} rings of the mirror: use at least 1 of both")
    places = _ring(settings or Projector(), number, rings)
    base = scan_wavelength(spectrum or Spectrum(400.0, 1000.0, 100.0, 20.0), mask=mask)
    return [replace(one, footprint=place) for one, place in product(base, places)]


def _ring(settings: Projector, number: int, rings: int) -> list[tuple[float, float]]:
    """Places, m, evenly spread on rings of the mirror; every other ring is turned by half a step."""
    inner, outer = MIRROR[0] + settings.aperture / 2, MIRROR[1] - settings.aperture / 2
    if inner > outer:
        raise WrongUse(
            f"projector: a beam of {settings.aperture} m is too wide for the mirror, {MIRROR[0]:.2f}-{MIRROR[1]:.2f} m"
        )
    found = []
    for ring, i in product(range(rings), range(number)):
        radius = inner + (outer - inner) * (ring + 0.5) / rings
        angle = 2 * np.pi * (i + ring % 2 / 2) / number
        found.append((float(radius * np.cos(angle)), float(radius * np.sin(angle))))
    return found


def with_filters(
    bands: Mapping[str, tuple[float, float]] | None = None,
    spectrum: Spectrum | None = None,
    *,
    whole: bool = False,
    mask: str = "grid",
) -> dict[str, list[Projection]]:
    """¶10d: each filter scanned in steps of 1 nm where it passes light; ¶10e: all wavelengths, for leaks.

    Parameters
    ----------
    bands : filter -> first and last wavelength, nm; default what `wavelength_range` gives. The first of a scan is on
        the grid of ``spectrum``, so that each has a partner without a filter.
    spectrum : default 350 to 1100 nm; 1 nm wide in steps of 1, or 20 and 20 if ``whole``.
    whole : scan all wavelengths with every filter.
    mask : see `masks`.
    """
    spectrum = spectrum or (Spectrum(step=20.0, bandwidth=20.0) if whole else Spectrum())
    scan = scan_wavelength(spectrum, mask=mask)
    found = {}
    for name, (blue, red) in ({band: wavelength_range(band) for band in FILTERS} if bands is None else bands).items():
        found[name] = [one for one in scan if whole or blue <= one.wavelength <= red]
        if not found[name]:
            raise WrongUse(f"filter {name}: no wavelength of the scan lies in {blue} to {red} nm: widen the scan")
    return found


def sparse_sequence(
    camera: Camera, *, number: int = 2, moves: int = 5, reach: float = 0.2, wavelength: float = 700.0, rate: float = 1e7
) -> list[Projection]:
    """¶10f with the sparse mask: a spot in every amplifier at once, in a few places that differ a little.

    Every readout board has its spots at the same moments, so that sources of two boards are always lit together: the
    whole pattern is moved by rows of CCDs too, which lights an amplifier with the hole of another.

    Parameters
    ----------
    camera : the mask is made for.
    number : of pointings that differ a little.
    moves : by 0, 1, -1, 2, -2 ... rows of CCDs; no more than the camera has.
    reach : farthest pointing from the axis in each coordinate, diameters of a spot. Where readout is mirrored
        the spots move against each other, and at 0.33 the first would be read at the same time.
    wavelength : nm.
    rate : photons/s in a spot.
    """
    if min(number, moves) < 1 or not 0 <= reach < 0.33:
        raise WrongUse(
            f"{number} pointings of the sparse mask, {moves} moves, within {reach} spots: use 1 or more, and 0 to 0.33"
        )
    _, _, diameter = MASKS["sparse"](camera)
    shift = np.linspace(-1, 1, number) * reach * diameter[0] * camera.detectors[0].pixel_mm if number > 1 else 0.0
    rows = np.unique([detector.center_mm[1] for detector in camera.detectors])
    pitch = float(np.median(np.diff(rows))) if len(rows) > 1 else 0.0
    far = pitch * np.array([(-1) ** (k + 1) * ((k + 1) // 2) for k in range(min(moves, len(rows)))])
    away = np.atleast_1d(shift) + 0 * far[:, None], far[:, None] - np.atleast_1d(shift)
    u, v = (np.rad2deg(a).ravel() for a in focal_to_field(camera, *away))
    base = scan_wavelength(Spectrum(wavelength, wavelength, rate=rate), mask="sparse")[0]
    return [replace(base, azimuth=float(x), elevation=float(y)) for x, y in zip(u, v, strict=True)]


def each_amplifier(
    camera: Camera, *, detectors: Iterable[str] | None = None, wavelength: float = 700.0, rate: float = 1e7
) -> list[Projection]:
    """¶10f as in the document: a single spot in the middle of each amplifier in turn, of all or some CCDs."""
    base = scan_wavelength(Spectrum(wavelength, wavelength, rate=rate), mask="single")[0]
    found = []
    for detector in camera.detectors if detectors is None else map(camera.detector, detectors):
        for amplifier in detector.amplifiers:
            ny, nx = amplifier.data.shape
            place = ccd_to_focal(detector, *amplifier_to_ccd(amplifier, (nx - 1) / 2, (ny - 1) / 2))
            u, v = focal_to_field(camera, *place)
            found.append(replace(base, azimuth=float(np.rad2deg(u)), elevation=float(np.rad2deg(v))))
    return found


def sinusoids(
    periods: Iterable[float],
    orientations: Iterable[float],
    phases: int,
    *,
    wavelength: float = 550.0,
    bandwidth: float = 1.0,
    rate: float = 1e4,
) -> list[Sinusoid]:
    """Sec. 2.11: fringes of every period (px) and orientation (deg), moved by so many even steps over a period.

    Parameters
    ----------
    phases : at least 3, below which level, modulation and phase of a pixel cannot be told apart; 4 leave one to check.
    wavelength, bandwidth : nm.
    rate : photons/s in a pixel, mean.
    """
    if phases < 3:
        raise WrongUse(f"{phases} phases of a sinusoid: use at least 3")
    place = _ring(Projector(), 1, 1)[0]
    return [
        Sinusoid(rate, wavelength, bandwidth, float(period), float(angle), 360 * step / phases, place)
        for period, angle, step in product(periods, orientations, range(phases))
    ]
