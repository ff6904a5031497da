"""Sinusoids projected onto the CCDs, which show where each pixel is and how wide (Lupton 2016, Sec. 2.11).

Two orders of a grating that meet again make fringes 1 + contrast cos(k . r + phase) whose period is the grating's at
every wavelength. A pixel gathers their integral over its own shape, of which neither phase nor modulation can be had
from light that is expanded about its middle: k is up to 2 rad/px.

For a polygon the integral is exact. As exp(i k . r) is the divergence of -i k exp(i k . r) / k**2, it is a sum over
edges, each of which, a step (dx, dy) about its middle m, adds

    -i (kx dy - ky dx) / k**2 exp(i k . m) sin(h) / h,    h = (kx dx + ky dy) / 2.

Only the charge that moving boundaries sweep (brighter-fatter) is taken from the means of the pixels on both sides, as
it is of all light: of fringes that run along the step they see the part cos(k / 2) sin(k / 2) / (k / 2), 0.96 at
0.5 rad/px and 0.45 at 2 rad/px.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.exposure import Exposure, Sinusoid
from lsstcal_dask.simulate.random import stream

__all__ = ["LONGEST", "Fringes", "Sinusoids", "Wave", "fringes", "on_pixels", "on_squares", "plane_wave"]

LONGEST: Final = 1e4
"""Longest period, px: the sum over edges loses digits as the square of the period, here to 1e-8."""


class Sinusoids(Effect):
    """What fringes are against what is asked for. Made up; of the size that a quiet bench reaches."""

    contrast: float = Field(0.9, gt=0, le=1)  # of the light before pixels blur it
    contrast_scatter: float = Field(0.01, ge=0, lt=0.1)  # rms, relative, from exposure to exposure
    phase_jitter: float = Field(3.0, ge=0)  # deg rms, from exposure to exposure


@dataclass(frozen=True)
class Fringes:
    """What the fringes of an exposure really are."""

    contrast: float
    phase: float  # deg, in the centre of the focal plane


@dataclass(frozen=True)
class Wave:
    """Fringes on one CCD: 1 + contrast cos(x kx + y ky + phase) at its pixel (x, y)."""

    kx: float  # rad/px
    ky: float
    phase: float  # rad
    contrast: float


def fringes(seed: int, settings: Sinusoids, exposure: Exposure) -> Fringes:
    """Return what the fringes of an exposure really are; exact and of full contrast if switched off.

    Raises
    ------
    WrongUse
        The light of the exposure has no fringes.
    """
    source = exposure.source
    if not isinstance(source, Sinusoid):
        raise WrongUse(f"{exposure.name}: its source has no fringes: give a Sinusoid")
    if not settings.on:
        return Fringes(1.0, source.phase)
    draws = stream(seed, "sinusoids", exposure=exposure.number).standard_normal(2)
    contrast = settings.contrast * (1 + settings.contrast_scatter * float(draws[0]))
    return Fringes(float(np.clip(contrast, 0, 1)), source.phase + settings.phase_jitter * float(draws[1]))


def plane_wave(source: Sinusoid, real: Fringes, detector: Detector) -> Wave:
    """Fringes as they lie on a CCD, whatever its place and turn.

    Raises
    ------
    WrongUse
        The period is not positive, or longer than `LONGEST`.
    """
    if not 0 < source.period <= LONGEST:
        raise WrongUse(f"fringes with a period of {source.period:g} px: use more than 0 and up to {LONGEST:g}")
    turn, wave_number = np.deg2rad(source.angle), 2 * np.pi / (source.period * detector.pixel_mm)
    origin, right, up = (
        float(wave_number * (np.cos(turn) * x + np.sin(turn) * y))
        for x, y in (ccd_to_focal(detector, *place) for place in ((0, 0), (1, 0), (0, 1)))
    )
    return Wave(right - origin, up - origin, origin + float(np.deg2rad(real.phase)), real.contrast)


def on_squares(shape: tuple[int, int], wave: Wave) -> np.ndarray:
    """Fringes (y, x) float32 integrated over square pixels: cos times sin(k / 2) / (k / 2) in each direction."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    blur = np.sinc(wave.kx / (2 * np.pi)) * np.sinc(wave.ky / (2 * np.pi))
    return (1 + wave.contrast * blur * np.cos(wave.kx * x + wave.ky * y + wave.phase)).astype(np.float32)


def on_pixels(corners: np.ndarray, wave: Wave) -> np.ndarray:
    """Fringes integrated over pixels whose corners are displaced, exactly.

    Parameters
    ----------
    corners : (2, ny + 1, nx + 1), px: displacement (x, y).

    Returns
    -------
    (ny, nx) float32.
    """
    return _on_polygons(corners, wave.kx, wave.ky, wave.phase, wave.contrast)


@njit(nogil=True, cache=True, error_model="numpy")
def _on_polygons(corners: np.ndarray, kx: float, ky: float, phase: float, contrast: float) -> np.ndarray:
    ny, nx = corners.shape[1] - 1, corners.shape[2] - 1
    out = np.empty((ny, nx), np.float32)
    square = kx * kx + ky * ky
    for y in range(ny):
        for x in range(nx):
            area = real = imaginary = 0.0
            for i, j, k, m in ((0, 0, 0, 1), (0, 1, 1, 1), (1, 1, 1, 0), (1, 0, 0, 0)):  # counter-clockwise
                ax, ay = j - 0.5 + corners[0, y + i, x + j], i - 0.5 + corners[1, y + i, x + j]
                bx, by = m - 0.5 + corners[0, y + k, x + m], k - 0.5 + corners[1, y + k, x + m]
                area += (ax * by - bx * ay) / 2
                dx, dy = bx - ax, by - ay
                half = (kx * dx + ky * dy) / 2
                blur = np.sin(half) / half if abs(half) > 1e-6 else 1.0
                size = (kx * dy - ky * dx) / square * blur
                middle = (kx * (ax + bx) + ky * (ay + by)) / 2
                real += size * np.sin(middle)  # -i exp(i middle) is sin(middle) - i cos(middle)
                imaginary -= size * np.cos(middle)
            here = kx * x + ky * y + phase
            out[y, x] = max(area + contrast * (real * np.cos(here) - imaginary * np.sin(here)), 0.0)
    return out
