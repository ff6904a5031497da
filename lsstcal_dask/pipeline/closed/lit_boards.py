"""Frames of a camera with LSSTCam's layout and small amplifiers, some of whose boards are lit in each exposure."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from lsstcal_dask.instrument import Camera, load_camera
from lsstcal_dask.instrument.camera import Amplifier, Box, Detector
from lsstcal_dask.pipeline.closed.discs import disc
from lsstcal_dask.pipeline.closed.raw import place
from lsstcal_dask.simulate import Observatory
from lsstcal_dask.simulate.boards import board, boards
from lsstcal_dask.simulate.crosstalk import coupled
from lsstcal_dask.simulate.electronics import read_out

__all__ = ["CELL", "SIDE", "Plan", "cell", "light", "plan", "raw_frames", "shape", "small_camera", "spot"]

_LEVELS: Final = 1.1e5, 5e4  # electron
_FIELDS: Final = {1: 0b11, 2: 0b111, 3: 0b1011}  # polynomials without factors, by degree
_QUIET: Final = 4  # times less read noise
CELL: Final = 14  # px
_CELLS: Final = 7  # in a row
_RADIUS, _BLUR, _JITTER = 4.0, 0.5, 0.1  # px, of a spot
SIDE: Final = 15  # px, of a stamp
_PRESCAN, _OVERSCAN = 4, 54  # px; LSSTCam's are 3 or 10, and 54 or 64


def small_camera(rafts: int) -> Camera:
    """LSSTCam's science CCDs, or those of its first rafts, with small amplifiers."""
    whole = load_camera("lsstcam")
    science = [d for d in whole.detectors if d.type in ("e2v", "itl")]
    names = list(dict.fromkeys(d.name[:3] for d in science))[:rafts]
    n = CELL * _CELLS
    detectors = tuple(
        replace(d, amplifiers=tuple(map(_small, d.amplifiers)), shape=(2 * n, 8 * n))
        for d in science
        if d.name[:3] in names
    )
    shape = detectors[0].amplifiers[0].raw_shape
    return replace(whole, name="small", detectors=detectors, raw_shape=shape, image_shape=(n, n))


def _small(amplifier: Amplifier) -> Amplifier:
    n, (ny, nx) = CELL * _CELLS, amplifier.data.shape
    x, y = amplifier.position
    return replace(
        amplifier,
        raw_shape=(n + 4, _PRESCAN + n + _OVERSCAN),
        data=Box(_PRESCAN, _PRESCAN + n, 0, n),
        overscan=Box(_PRESCAN + n, _PRESCAN + n + _OVERSCAN, 0, n),
        parallel_overscan=Box(_PRESCAN, _PRESCAN + n, n, n + 4),
        position=(x // nx * n, y // ny * n),
        read_noise=amplifier.read_noise / _QUIET,
    )


@dataclass(frozen=True)
class Plan:
    """Which boards are lit in each exposure, and the level of their spots."""

    lit: np.ndarray  # (exposure, board) bool
    level: np.ndarray  # (exposure,) electron
    board: dict[str, int]  # by CCD


def plan(camera: Camera, *, coded: bool = True) -> Plan:
    """Boards are points of an affine plane, exposures its lines, one bundle of parallel ones after the other.

    Not ``coded``: all boards are lit in all of them.
    """
    names = list(boards(camera))
    size = next(m for m in _FIELDS if 4**m >= len(names))
    x, y = np.divmod(np.arange(len(names)), 2**size)
    field = range(2**size)
    bundles = [np.array([_product(slope, int(one), size) for one in x]) ^ y for slope in field] + [x]
    lit = np.concatenate([[bundle == line for line in field] for bundle in bundles])
    level = np.repeat([_LEVELS[number % 2] for number in range(len(bundles))], len(field))
    return Plan(lit | (not coded), level, {d.name: names.index(board(d)) for d in camera.detectors})


def _product(a: int, b: int, size: int) -> int:
    """In the field of 2**size elements: polynomials over two, modulo one that has no factors."""
    total = 0
    for bit in range(size):
        if b >> bit & 1:
            total ^= a << bit
    for bit in range(2 * size, size - 1, -1):
        if total >> bit & 1:
            total ^= _FIELDS[size] << bit - size
    return total


def cell(camera: Camera, detector: Detector, amplifier: int) -> tuple[float, float]:
    """Raw y and x of the middle of the cell that an amplifier has for itself on its board."""
    slot = [d.name for d in boards(camera)[board(detector)]].index(detector.name)
    row, column = divmod(slot * len(detector.amplifiers) + amplifier, _CELLS)
    return (row + 0.5) * CELL - 0.5, _PRESCAN + (column + 0.5) * CELL - 0.5


def spot(site: Observatory, detector: Detector, amplifier: int, exposure: int) -> tuple[float, float]:
    """Raw y and x of its centre: the mask is not quite what it should be, and the pointing differs."""
    random = np.random.default_rng([site.seed, 1, exposure, detector.id, amplifier])
    y, x = cell(site.camera, detector, amplifier) + random.normal(0, _JITTER, 2)
    return float(y), float(x)


def shape(size: tuple[int, int], y: float, x: float) -> np.ndarray:
    """(y, x) of a spot of height 1."""
    return disc(size, y, x, _RADIUS, _BLUR)


def light(site: Observatory, how: Plan, detector: Detector, exposure: int) -> np.ndarray:
    """Charge (amplifier, y, x) of a CCD, electrons, in readout orientation."""
    charge = np.zeros((len(site.camera.amplifier_names), *site.camera.raw_shape), np.float32)
    if not how.lit[exposure, how.board[detector.name]]:
        return charge
    random = np.random.default_rng([site.seed, 2, exposure, detector.id])
    for i, a in enumerate(detector.amplifiers):
        y, x = spot(site, detector, i, exposure)
        y0, x0 = (max(0, round(centre) - SIDE // 2) for centre in (y, x))
        part = charge[place(site, a.name), y0 : y0 + SIDE, x0 : x0 + SIDE]
        mean = how.level[exposure] * shape((SIDE, SIDE), y - y0, x - x0)
        part[...] = random.poisson(mean)[: part.shape[0], : part.shape[1]]
    return charge


class Frames(BackendArray):
    """Counts (exposure, detector, amplifier, y, x), simulated when they are indexed; of the last few CCDs they stay."""

    def __init__(self, site: Observatory, how: Plan, kept: int) -> None:
        self.site, self.how = site, how
        camera = site.camera
        self.shape = (len(how.level), len(camera.detectors), len(camera.amplifier_names), *camera.raw_shape)
        self.dtype = np.dtype(camera.dtype)
        self.of_ccd = lru_cache(maxsize=kept)(self._simulated)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        if isinstance(key[1], int | np.integer):
            return self.of_ccd(int(key[1]))[key[0], *key[2:]]
        ccds = [self.of_ccd(i) for i in range(*key[1].indices(self.shape[1]))]
        return np.stack(ccds, 1)[key[0], :, *key[2:]]

    def _simulated(self, number: int) -> np.ndarray:
        camera, electronics = self.site.camera, self.site.settings.electronics
        detector, out = camera.detectors[number], []
        sources = [camera.detector(n) for n in coupled(self.site.seed, electronics.crosstalk, camera, detector)]
        for k in range(len(self.how.level)):
            charge = {d.name: light(self.site, self.how, d, k) for d in (detector, *sources)}
            out.append(read_out(self.site.seed, electronics, camera, detector, k, charge[detector.name], charge))
        return np.stack(out)


def raw_frames(site: Observatory, how: Plan, kept: int) -> xr.Dataset:
    """The exposures as the pipeline reads them."""
    n, names = len(how.level), [d.name for d in site.camera.detectors]
    lazy = xr.Variable(
        ("exposure", "detector", "amplifier", "y", "x"), indexing.LazilyIndexedArray(Frames(site, how, kept))
    )
    return xr.Dataset(
        {"counts": lazy, "present": (("exposure", "detector"), np.ones((n, len(names)), bool))},
        coords={
            "exposure": [f"e{i}" for i in range(n)],
            "detector": names,
            "amplifier": list(site.camera.amplifier_names),
            "exposure_type": ("exposure", np.array(["cbp"] * n, object)),
            "mask_id": ("exposure", np.array([f"sparse/{i}" for i in range(n)], object)),
        },
    )
