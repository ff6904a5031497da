"""X-rays of a 55Fe source (SCIENCE 2.2a).

A photon enters from the back, is absorbed after an exponential depth and frees its energy divided by the pair
energy in electrons, with a variance reduced by the Fano factor. They spread on the way to the gates (`diffusion`).
"""

from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.diffusion import diffuse, pair_energy
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import TILE_ROWS, stream, tiles

__all__ = [
    "FANO",
    "HIT",
    "K_ALPHA_ELECTRONS",
    "K_ALPHA_ENERGY",
    "K_BETA_ELECTRONS",
    "K_BETA_ENERGY",
    "XRayHits",
    "xray_electrons",
    "xray_hits",
]

K_ALPHA_ENERGY: Final = 5889.0
"""Energy of the manganese K-alpha line, eV."""
K_BETA_ENERGY: Final = 6490.0
"""Energy of the manganese K-beta line, eV."""
FANO: Final = 0.12
"""Variance of the electrons that a photon frees, over their mean, in silicon."""
K_ALPHA_ELECTRONS: Final = K_ALPHA_ENERGY / pair_energy(173.15)
"""Mean charge of a K-alpha photon at LSSTCam's temperature of 173.15 K, electron."""
K_BETA_ELECTRONS: Final = K_BETA_ENERGY / pair_energy(173.15)
"""Mean charge of a K-beta photon at 173.15 K, electron."""

_SILICON_K: Final = 1740.0  # eV, the fluorescence photon that escapes

HIT: Final = np.dtype(
    [
        ("x", np.float64),  # px
        ("y", np.float64),  # px
        ("depth", np.float32),  # um below the back side
        ("beta", np.bool_),  # of the K-beta line
        ("escape", np.bool_),  # a silicon K photon was lost
        ("electrons", np.int32),
    ]
)


class XRayHits(Effect):
    """Lines of 55Fe in silicon.

    Attenuation lengths from tabulated photoabsorption; the share of K-beta is that of the decay's emission
    behind a thin window; escapes from thick silicon are a few per mille.
    """

    beta: float = Field(0.12, ge=0, le=1)  # share of the hits in the K-beta line
    attenuation_alpha: float = Field(28.8, gt=0)  # um
    attenuation_beta: float = Field(38.0, gt=0)  # um
    thickness: float = Field(100.0, gt=0)  # um
    diffusion: float = Field(0.45, ge=0)  # px, standard deviation of a cloud freed at the back side
    escape: float = Field(0.004, ge=0, le=1)  # share of the hits that lose a silicon K photon
    temperature: float = Field(173.15, gt=0)  # K, sets the pair energy


def xray_hits(
    seed: int,
    settings: XRayHits,
    detector: Detector,
    exposure_number: int,
    rate_per_pixel_s: float,
    exposure_time: float,
) -> np.ndarray:
    """Every photon that was absorbed in a CCD.

    Parameters
    ----------
    seed, settings, detector, exposure_number : what is simulated.
    rate_per_pixel_s : absorbed photons per second in a pixel.
    exposure_time : s.

    Returns
    -------
    (hit,) of dtype `HIT`; x and y are CCD pixels.

    Raises
    ------
    WrongUse
        Rate or time is negative.
    """
    parts = [part for _, part in _tiles(seed, settings, detector, exposure_number, rate_per_pixel_s * exposure_time)]
    return np.concatenate([np.empty(0, HIT), *parts])


def _tiles(
    seed: int, settings: XRayHits, detector: Detector, number: int, hits: float
) -> list[tuple[np.random.Generator, np.ndarray]]:
    """Hits of each tile, and the generator that goes on with their electrons; ``hits`` per pixel."""
    if not hits >= 0:
        raise WrongUse(f"X-rays on {detector.name}: {hits:g} hits per pixel: use a rate and a time of at least 0")
    found = []
    for i, amplifier in enumerate(detector.amplifiers if settings.on and hits > 0 else ()):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        for tile, rows in tiles(ny):
            random = stream(seed, "xrays", exposure=number, detector=detector.id, amplifier=i, tile=tile)
            n = rows.stop - rows.start
            one = _photons(random, settings, random.poisson(hits * n * nx))
            one["x"] = x0 - 0.5 + nx * random.random(len(one))
            one["y"] = y0 + tile * TILE_ROWS - 0.5 + n * random.random(len(one))
            found.append((random, one))
    return found


def _photons(random: np.random.Generator, settings: XRayHits, count: int) -> np.ndarray:
    """Depth, line and charge of so many photons."""
    hits = np.zeros(count, HIT)
    hits["beta"] = random.random(count) < settings.beta
    hits["escape"] = random.random(count) < settings.escape
    length = np.where(hits["beta"], settings.attenuation_beta, settings.attenuation_alpha)
    # exponential, given that the photon does not leave at the other side
    absorbed = -np.expm1(-settings.thickness / length)
    hits["depth"] = -length * np.log1p(-absorbed * random.random(count))
    energy = np.where(hits["beta"], K_BETA_ENERGY, K_ALPHA_ENERGY) - _SILICON_K * hits["escape"]
    mean = energy / pair_energy(settings.temperature)
    hits["electrons"] = np.rint(mean + np.sqrt(FANO * mean) * random.standard_normal(count))
    return hits


def xray_electrons(
    seed: int,
    settings: XRayHits,
    detector: Detector,
    exposure_number: int,
    rate_per_pixel_s: float,
    exposure_time: float,
) -> np.ndarray:
    """Charge of the X-rays of one exposure.

    Parameters
    ----------
    seed, settings, detector, exposure_number, rate_per_pixel_s, exposure_time : as for `xray_hits`.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron, whole numbers.

    Raises
    ------
    WrongUse
        Rate or time is negative.
    """
    image = np.zeros(detector.shape, np.float32)
    for random, hits in _tiles(seed, settings, detector, exposure_number, rate_per_pixel_s * exposure_time):
        sigma = settings.diffusion * np.sqrt(np.maximum(1 - hits["depth"] / settings.thickness, 0)).astype(float)
        index, electrons = diffuse(random, detector.shape, hits["x"], hits["y"], sigma, hits["electrons"])
        np.add.at(image.reshape(-1), index, electrons.astype(np.float32))
    return image
