"""Monochromatic flats and night skies of one CCD with their fringes, and the same without, by the simulator."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.physics.etalon_table import Line
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.airglow import family_amplitudes, sky_components
from lsstcal_dask.simulate.etalon import Fringing
from lsstcal_dask.simulate.exposure import Pointing
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre
from lsstcal_dask.simulate.night import band_edges, transmission_of
from lsstcal_dask.simulate.recipes import FlatCube, Plan, exposures
from lsstcal_dask.simulate.response import quantum_efficiency, response_map
from lsstcal_dask.simulate.scene import light

__all__ = ["Flats", "Night", "amplitudes", "flats", "fringe_site", "hats", "night", "sky_map", "sky_spectrum"]

_START = np.datetime64("2026-07-14T02:00:00", "ms")
_FIELD = Pointing(50.0, -30.0, 70.0, 30.0)
_EDGE: Final = 1e-5  # nm, between the ends of bins that touch
_DARK: Final = (850.0, 1150.0)  # nm, as far as nothing shines


def fringe_site(seed: int, collimated: bool, camera: str = "mini9", fringes: bool = True) -> Observatory:
    """An observatory in whose f/1.23 or almost parallel beam silicon and glue make fringes, or none."""
    angles = {"inner_angle": 0.0, "outer_angle": 0.5} if collimated else {}
    return Observatory(seed, load_camera(camera), Settings(fringing=Fringing(on=fringes, **angles)))


@dataclass(frozen=True, eq=False)
class Flats:
    """A scan as the cube holds it: per photon of the lamp, without noise and with that of so many electrons."""

    line: Line
    exact: np.ndarray  # (wavelength, y, x)
    value: np.ndarray
    variance: np.ndarray


@lru_cache(maxsize=4)
def flats(
    seed: int,
    collimated: bool,
    name: str,
    fringes: bool = True,
    scan: FlatCube = FlatCube(first=905.0),
    level: float = 4e5,
) -> Flats:
    """Scan of one CCD; ``level`` in electrons, of all exposures of a wavelength together."""
    site = fringe_site(seed, collimated, fringes=fringes)
    detector, taken = (
        site.camera.detector(name),
        exposures("flat-cube", Plan(flat_cube=scan), site.settings, site.camera),
    )
    random = np.random.default_rng([seed, collimated])
    found = []
    for one in taken:
        lamp = one.source.rate * lamp_brightness(seed, site.settings.lamp_drift, one)  # type: ignore[union-attr]
        found.append(light(site, one, detector).rate / lamp)
    exact = np.stack(found)
    per_photon = level / exact.mean(axis=(1, 2), keepdims=True)
    diode = 1 + site.settings.photodiode.noise * random.standard_normal((len(exact), 1, 1))
    centres = np.array([laser_centre(seed, site.settings.laser, one) for one in taken])
    line = Line(centres, np.full(len(centres), scan.bandwidth))
    return Flats(line, exact, random.poisson(exact * per_photon) / per_photon * diode, exact / per_photon)


@dataclass(frozen=True, eq=False)
class Night:
    """The sky in y above the CCD, in bins."""

    line: Line
    parts: np.ndarray  # (component, bin) photons


@lru_cache(maxsize=4)
def night(seed: int, first: float = 906.0, last: float = 1080.0) -> Night:
    """Mean sky of each component behind air and filter."""
    site = fringe_site(seed, False)
    edges = band_edges("y")
    middle, width, axis = (edges[1:] + edges[:-1]) / 2, np.diff(edges), np.zeros(1)
    visit = Exposure("S", 1, "science", _START, 30.0, 30.0, "y", _FIELD)
    glass = transmission(
        seed, site.settings.filters, site.camera, "y", middle, axis, axis, None, site.settings.vignetting
    )
    parts = sky_components(site.settings.airglow, edges) * transmission_of(site, visit, edges) * glass[0]
    fine = (width < 1) & (middle > first) & (middle < last)
    return Night(Line(middle[fine], width[fine], "tophat"), parts[:, fine])


def hats(centres: np.ndarray, wavelength: np.ndarray, photons: np.ndarray) -> np.ndarray:
    """Weights of flats between which the response is straight."""
    k = np.clip(np.searchsorted(centres, wavelength) - 1, 0, len(centres) - 2)
    part = np.clip((wavelength - centres[k]) / (centres[k + 1] - centres[k]), 0, 1)
    count = len(centres)
    return np.bincount(k, photons * (1 - part), count) + np.bincount(k + 1, photons * part, count)


def sky_map(seed: int, collimated: bool, name: str, photons: np.ndarray, fringes: bool = True) -> np.ndarray:
    """Electrons (y, x) of a sky of so many photons in each bin of `night`."""
    site = fringe_site(seed, collimated, fringes=fringes)
    detector: Detector = site.camera.detector(name)
    s, line = site.settings, night(seed).line
    return response_map(
        seed, s.quantum_efficiency, s.fringing, site.camera, detector, line.wavelength, photons, width=line.width
    )


def sky_spectrum(line: Line, photons: np.ndarray) -> Spectrum:
    """Light that is even within each bin, as that of `night`: of lines in their middles silicon would fringe more."""
    half = line.width / 2 - _EDGE
    ends = np.stack([line.wavelength - half, line.wavelength + half], axis=1).ravel()
    at = np.r_[_DARK[0], ends[0] - _EDGE, ends, ends[-1] + _EDGE, _DARK[1]]
    return Spectrum(at, np.pad(np.repeat(photons / line.width, 2), 2), "sky")


def amplitudes(seed: int, count: int) -> np.ndarray:
    """Brightness (visit, component) of the sky's components in visits of 30 s, spread over some nights."""
    settings, zero = Settings().airglow, np.zeros(1)
    times = [_START + np.timedelta64(i // 8, "D") + np.timedelta64(40 * (i % 8), "m") for i in range(count)]
    return np.stack([family_amplitudes(seed, settings, time, zero, zero, 30.0)[:, 0] for time in times])


def efficiency(seed: int, name: str) -> np.ndarray:
    """Electrons per photon (bin,) of the bins of `night`, without fringes."""
    site = fringe_site(seed, False)
    return quantum_efficiency(
        seed, site.settings.quantum_efficiency, site.camera.detector(name), night(seed).line.wavelength
    )
