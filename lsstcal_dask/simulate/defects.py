"""Bad pixels: cold pixels, dark and bright columns, charge traps (¶6, SCIENCE 2.4).

A bad column begins where something blocks or feeds the channel, and extends from there away from the readout: charge
from beyond has to pass it. A trap keeps charge of the packet above it and releases it into the packets that follow.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.grids import check_image
from lsstcal_dask.simulate.random import stream

__all__ = ["DEFECT", "KINDS", "BadPixels", "apply_traps", "bright_columns_rate", "defect_list", "sensitivity"]

KINDS: Final = ("cold", "dark column", "bright column", "trap")
"""Kinds of defects."""

DEFECT: Final = np.dtype(
    [
        ("x0", np.int32),  # px, lower-left pixel of the box on the CCD
        ("y0", np.int32),
        ("width", np.int32),
        ("height", np.int32),
        ("kind", "U13"),  # one of KINDS
        # cold, dark column: factor on the sensitivity; bright column: electron/s/px; trap: electrons it holds
        ("value", np.float32),
    ]
)

_TAIL: Final = 4  # packets into which a trap releases its charge


class BadPixels(Effect):
    """How many pixels are bad.

    The hand-made defect lists of the LSST camera that were at hand (R01_S11, R22_S11, R22_S12, R43_S01) are
    empty, so densities are from the counts of Run 6: 2.1 % (e2v) and 3.6 % (ITL) of the amplifiers have bright
    columns, 3 and 2 in the median, thus 1.3e-4 per column; 0.7 % of the ITL amplifiers have dark ones, nearly
    always one, thus 1.4e-5. Its dark pixels are nearly all at the edges; what is left in ITL amplifiers is of
    the order of ten each. Numbers of traps and the values of all defects are illustrative.
    """

    cold: float = Field(1e-5, ge=0, le=1)  # cold spots per pixel
    cold_size: float = Field(1.3, ge=1)  # px, mean width and height of a spot, geometric
    cold_most: float = Field(0.8, ge=0, le=1)  # highest sensitivity of a spot; uniform from 0
    dark_columns: float = Field(1.4e-5, ge=0, le=1)  # per column of an amplifier
    dark_most: float = Field(0.5, ge=0, le=1)  # highest sensitivity of a dark column; uniform from 0
    bright_columns: float = Field(1.3e-4, ge=0, le=1)  # per column of an amplifier
    bright_rate: float = Field(20.0, ge=0)  # electron/s in each pixel, median; the logarithm scatters by 1
    partial: float = Field(0.7, ge=0, le=1)  # share of the columns that begin at some row and not at the first
    traps: float = Field(1e-6, ge=0, le=1)  # per pixel
    trap_size: float = Field(300.0, ge=0)  # electrons, mean of an exponential
    release: float = Field(0.5, gt=0, le=1)  # share of what a trap still holds that the next packet takes


@lru_cache(maxsize=256)
def defect_list(seed: int, settings: BadPixels, detector: Detector) -> np.ndarray:
    """Defects of a CCD, as a camera team would deliver them; boxes may overlap.

    Returns
    -------
    (defect,) of dtype `DEFECT`, read-only.
    """
    amplifiers = range(len(detector.amplifiers)) if settings.on else ()
    parts = [_amplifier_defects(seed, settings, detector, i) for i in amplifiers]
    found = np.concatenate([np.empty(0, DEFECT), *parts])
    found.flags.writeable = False
    return found


def _amplifier_defects(seed: int, settings: BadPixels, detector: Detector, index: int) -> np.ndarray:
    amplifier = detector.amplifiers[index]
    ny, nx = amplifier.data.shape
    random = stream(seed, "bad_pixels", detector=detector.id, amplifier=index)
    rows: list[tuple[int, int, int, int, str, float]] = []
    for x, y in _places(random, settings.cold, ny, nx):
        width, height = random.geometric(1 / settings.cold_size, 2)
        rows.append((x, y, min(width, nx - x), min(height, ny - y), "cold", settings.cold_most * random.random()))
    for kind, density in (("dark column", settings.dark_columns), ("bright column", settings.bright_columns)):
        for x in map(int, np.flatnonzero(random.random(nx) < density)):
            start = int(random.integers(ny)) if random.random() < settings.partial else 0
            dim, bright = settings.dark_most * random.random(), settings.bright_rate * random.lognormal(0, 1)
            rows.append((x, start, 1, ny - start, kind, dim if kind == "dark column" else bright))
    for x, y in _places(random, settings.traps, ny, nx):
        rows.append((x, y, 1, 1, "trap", random.exponential(settings.trap_size)))
    return _to_ccd(np.array(rows, DEFECT), amplifier)


def _places(random: np.random.Generator, density: float, ny: int, nx: int) -> list[tuple[int, int]]:
    """(x, y) of so many pixels, in readout orientation."""
    flat = random.integers(ny * nx, size=random.poisson(density * ny * nx))
    return [(int(i) % nx, int(i) // nx) for i in flat]


def _to_ccd(found: np.ndarray, amplifier: Amplifier) -> np.ndarray:
    """Boxes in readout orientation to boxes on the CCD."""
    (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
    if amplifier.flip_x:
        found["x0"] = nx - found["x0"] - found["width"]
    if amplifier.flip_y:
        found["y0"] = ny - found["y0"] - found["height"]
    found["x0"] += x0
    found["y0"] += y0
    return found


def _boxes(found: np.ndarray, *kinds: str) -> list[tuple[tuple[slice, slice], np.float32]]:
    """Pixels and value of every defect of those kinds."""
    return [
        ((slice(d["y0"], d["y0"] + d["height"]), slice(d["x0"], d["x0"] + d["width"])), d["value"])
        for d in found
        if d["kind"] in kinds
    ]


def sensitivity(seed: int, settings: BadPixels, detector: Detector) -> np.ndarray:
    """Factor on the light that a pixel detects; factors of overlapping defects multiply.

    Returns
    -------
    (y, x) float32 over ``detector.shape``; 1 where nothing is wrong.
    """
    factor = np.ones(detector.shape, np.float32)
    for box, value in _boxes(defect_list(seed, settings, detector), "cold", "dark column"):
        factor[box] *= value
    return factor


def bright_columns_rate(seed: int, settings: BadPixels, detector: Detector) -> np.ndarray:
    """Charge that bright columns add, also in the dark.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron/s.
    """
    rate = np.zeros(detector.shape, np.float32)
    for box, value in _boxes(defect_list(seed, settings, detector), "bright column"):
        rate[box] += value
    return rate


def apply_traps(seed: int, settings: BadPixels, detector: Detector, charge: np.ndarray) -> np.ndarray:
    """Charge after the traps: what one keeps of its pixel appears in the next pixels to be read.

    Of the charge it holds, at most its size, a trap gives the share ``release`` to the next packet, the same
    share of the rest to the one after, and all that is left to the fourth or the last row. Charge is conserved.

    Parameters
    ----------
    seed, settings, detector : whose traps they are.
    charge : (y, x) over ``detector.shape``, electron.

    Returns
    -------
    As ``charge``, a copy; ``charge`` itself if there are no traps.

    Raises
    ------
    InconsistentGeometry
        ``charge`` has not the shape of the CCD.
    """
    check_image(detector, charge)
    traps = [d for d in defect_list(seed, settings, detector) if d["kind"] == "trap"]
    if not traps:
        return charge
    charge = charge.copy()
    for trap in traps:
        column, held = charge[:, trap["x0"]], float(trap["value"])
        after = _after(detector, int(trap["x0"]), int(trap["y0"]))
        held = min(held, max(float(column[trap["y0"]]), 0.0)) if after else 0.0
        column[trap["y0"]] -= held
        for i, row in enumerate(after):
            given = held if i == len(after) - 1 else held * settings.release
            column[row] += given
            held -= given
    return charge


def _after(detector: Detector, x: int, y: int) -> list[int]:
    """Rows of the CCD that the same amplifier reads next after row y of column x."""
    for amplifier in detector.amplifiers:
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        if x0 <= x < x0 + nx and y0 <= y < y0 + ny:
            step = -1 if amplifier.flip_y else 1
            return [y + step * i for i in range(1, _TAIL + 1) if y0 <= y + step * i < y0 + ny]
    return []
