"""Thickness of the silicon of each CCD and of the glue below it, and tables against both (¶9; §13, fringes)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import numba
import numpy as np
from pydantic import Field, model_validator

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.layers import Finish
from lsstcal_dask.simulate.random import stream

__all__ = [
    "Fringing",
    "Table",
    "draw_waves",
    "look_up",
    "spans",
    "thickness",
    "thickness_maps",
    "waves_at",
    "waves_map",
]

_MODES: Final = 24  # random waves of a map


class Fringing(Effect):
    """The layers of a CCD as optics see them.

    Layers of the e2v CCD250 after Guo et al. (2023, PASP 135, 034503), who also report that ITL's have a black coating
    below the glue and show no fringes of it. Their glue is 14 um thick, as here, or 14-22 um over one CCD: fringes
    22 nm apart, 0.15 strong in a collimated beam of 960 nm and 0.01 in the pupil, in which just one fringe passes;
    10 um of it have fringes 30 nm apart, 0.03 strong in the pupil. Scatter and rms are chosen, not measured: 2.8 um of
    silicon are 20 fringes. Each thickness is a sum of random waves, longer ones stronger.

    Flats of Guo et al. at 960 nm, 2 nm wide, have fringes of 2 % (here: 14 %), a prototype on the sky at f/4 also 2 %
    (here: 0.5 %): the back is not known better than that. ``gloss`` scales what it reflects; 0.15 makes the 2 % of the
    flats. ``coating = [0, 0]`` leaves silicon bare: its fringes reach 0.56 at 1000 nm (see `layers`), but its
    efficiency remains the vendor's.
    """

    silicon: float = Field(100.0, ge=20, le=1000)  # um, mean of all CCDs
    silicon_scatter: float = Field(1.0, ge=0)  # um rms, from CCD to CCD
    silicon_rms: float = Field(0.7, ge=0)  # um, within a CCD
    epoxy: float = Field(14.0, ge=2)  # um
    epoxy_scatter: float = Field(1.0, ge=0)  # um rms
    epoxy_rms: float = Field(0.5, ge=0)  # um
    wave: tuple[float, float] = (6.0, 80.0)  # mm, shortest and longest of the waves
    black: tuple[str, ...] = ("ITL",)  # vendors whose CCDs absorb what passes the glue
    gloss: float = Field(1.0, ge=0, le=1)  # amplitude the support reflects, over that of polished silicon
    coating: tuple[float, float] = Finish().coating  # um of MgF2 and Ta2O5
    inner_angle: float = Field(14.2, ge=0, lt=90)  # deg, edges of the pupil seen from a pixel: f/1.23 with a
    outer_angle: float = Field(23.6, gt=0, lt=90)  # deg, central obstruction of 0.61

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.inner_angle >= self.outer_angle:
            raise ValueError(
                f"inner_angle {self.inner_angle} is not below outer_angle {self.outer_angle}: exchange them"
            )
        if not 0.1 <= self.wave[0] <= self.wave[1]:
            raise ValueError(f"wave {self.wave}: give the shortest first, 0.1 mm or more")
        if not 0 <= min(self.coating) <= max(self.coating) <= 10:
            raise ValueError(f"coating {self.coating}: give two thicknesses of 0 to 10 um")
        return self

    def finish(self, vendor: str) -> Finish:
        """Coating and support of the CCDs of a vendor."""
        return Finish(self.coating, 0.0 if vendor in self.black else self.gloss)


@lru_cache(maxsize=512)
def _waves(seed: int, settings: Fringing, detector: Detector, layer: str) -> tuple[float, np.ndarray]:
    """Mean thickness of a layer, um, and its waves."""
    random = stream(seed, f"thickness of {layer}", detector=detector.id)
    nominal, scatter, rms = (getattr(settings, layer + suffix) for suffix in ("", "_scatter", "_rms"))
    waves = draw_waves(random, settings.wave, rms, detector)
    return max(nominal + scatter * random.standard_normal(), nominal / 2), waves


def draw_waves(random: np.random.Generator, length: tuple[float, float], rms: float, detector: Detector) -> np.ndarray:
    """Random plane waves whose sum is a smooth map of a CCD, read-only.

    Parameters
    ----------
    length : mm, shortest and longest; a wave is as strong as it is long.
    rms : of the sum, over many CCDs.

    Returns
    -------
    (4, n): wave numbers x and y (rad/px), phase, amplitude.
    """
    lengths = np.exp(random.uniform(np.log(length[0]), np.log(length[1]), _MODES))
    angle, phase = random.uniform(0, 2 * np.pi, (2, _MODES))
    k = 2 * np.pi / lengths * detector.pixel_mm
    amplitude = rms * lengths / np.sqrt(np.sum(lengths**2) / 2)
    waves = np.stack([k * np.cos(angle), k * np.sin(angle), phase, amplitude])
    waves.flags.writeable = False
    return waves


def waves_at(waves: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of `draw_waves` at CCD pixels (x, y), of any shapes that broadcast."""
    total = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)))
    for kx, ky, phase, amplitude in waves.T:
        total += amplitude * np.cos(kx * np.asarray(x) + ky * np.asarray(y) + phase)
    return total


def waves_map(waves: np.ndarray, rows: np.ndarray, columns: int) -> np.ndarray:
    """The same in all pixels of some rows, (y, x) float32: cos(a + b) as a product of matrices."""
    kx, ky, phase, amplitude = waves
    across, along = np.outer(kx, np.arange(columns)), np.outer(rows, ky) + phase
    left = np.concatenate([np.cos(along) * amplitude, -np.sin(along) * amplitude], axis=1).astype(np.float32)
    return left @ np.concatenate([np.cos(across), np.sin(across)]).astype(np.float32)


def thickness(
    seed: int, settings: Fringing, detector: Detector, layer: str, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Thickness of a layer, um.

    Parameters
    ----------
    layer : ``silicon`` or ``epoxy``.
    x, y : CCD pixels, of any shapes that broadcast.
    """
    mean, waves = _waves(seed, settings, detector, layer)
    return np.maximum(mean + waves_at(waves, x, y), mean / 4)


def thickness_maps(
    seed: int, settings: Fringing, detector: Detector, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Thickness of silicon and epoxy in all pixels of some rows (default: of all), (y, x) float32, um."""
    ny, nx = detector.shape
    maps = []
    for layer in ("silicon", "epoxy"):
        mean, waves = _waves(seed, settings, detector, layer)
        total = waves_map(waves, np.arange(ny) if rows is None else rows, nx)
        total += np.float32(mean)
        maps.append(np.maximum(total, np.float32(mean / 4), out=total))
    return maps[0], maps[1]


def spans(seed: int, settings: Fringing, detector: Detector) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest thickness of silicon and epoxy on a CCD, um, from a mesh of 1/8 of the shortest wave.

    The margin covers what lies between the nodes of the mesh.
    """
    ny, nx = detector.shape
    step = max(1, int(settings.wave[0] / 8 / detector.pixel_mm))
    y, x = (np.unique(np.append(np.arange(0, n, step), n - 1)) for n in (ny, nx))
    out = []
    for layer, rms in (("silicon", settings.silicon_rms), ("epoxy", settings.epoxy_rms)):
        found = thickness(seed, settings, detector, layer, x, y[:, None])
        out.append((float(found.min()) - 0.1 * rms, float(found.max()) + 0.1 * rms))
    return out[0], out[1]


@dataclass(frozen=True, eq=False)
class Table:
    """Weighted sums of the absorbed fraction over wavelength, against the two thicknesses."""

    values: np.ndarray  # (spectrum, silicon, epoxy) float32
    start: tuple[float, float]  # um, thicknesses of the first node
    step: tuple[float, float]  # um


@numba.njit(nogil=True, cache=True)
def _cubic(place: float, weights: np.ndarray) -> int:
    """First of four nodes around a place in steps, and their weights in the cubic through them."""
    node = int(place)
    p = place - node
    weights[0] = -p * (p - 1) * (p - 2) / 6
    weights[1] = (p + 1) * (p - 1) * (p - 2) / 2
    weights[2] = -(p + 1) * p * (p - 2) / 2
    weights[3] = (p + 1) * p * (p - 1) / 6
    return node - 1


@numba.njit(nogil=True, cache=True)
def look_up(
    values: np.ndarray,
    start: tuple[float, float],
    step: tuple[float, float],
    silicon: np.ndarray,
    epoxy: np.ndarray,
    factors: np.ndarray,
) -> np.ndarray:
    """Interpolate a `Table` at thicknesses (y, x), um, and sum over its spectra with ``factors`` (spectrum, y, x)."""
    ny, nx = silicon.shape
    out = np.empty((ny, nx), np.float32)
    wide, tall = np.empty(4, np.float32), np.empty(4, np.float32)
    for i in range(ny):
        for j in range(nx):
            a = min(max(_cubic((silicon[i, j] - start[0]) / step[0], tall), 0), values.shape[1] - 4)
            b = min(max(_cubic((epoxy[i, j] - start[1]) / step[1], wide), 0), values.shape[2] - 4)
            value = np.float32(0)
            for k in range(values.shape[0]):
                total = np.float32(0)
                for p in range(4):
                    row = values[k, a + p]
                    part = wide[0] * row[b] + wide[1] * row[b + 1] + wide[2] * row[b + 2] + wide[3] * row[b + 3]
                    total += tall[p] * part
                value += total * factors[k, i, j]
            out[i, j] = value
    return out
