"""Random numbers that depend on what they are for, never on who draws them or when.

Every draw comes from Philox, a generator that turns a counter into noise: its key is (seed, effect), its
counter starts at (0, tile and step, detector and amplifier, exposure). Two chunkings, two orders of work
or a retry therefore see the same bits. The atom is a *tile*: 128 rows of one amplifier in CCD orientation.
"""

import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np

from lsstcal_dask.errors import WrongUse

__all__ = ["TILE_ROWS", "stream", "tiles"]

TILE_ROWS: Final = 128
"""Rows of a tile, the smallest piece that has its own random numbers."""

_WIDTHS: Final = {"exposure": 64, "detector": 32, "amplifier": 16, "tile": 32, "step": 32}


def stream(
    seed: int, effect: str, *, exposure: int = 0, detector: int = 0, amplifier: int = 0, tile: int = 0, step: int = 0
) -> np.random.Generator:
    """Generator of the random numbers of one effect in one place.

    Parameters
    ----------
    seed : of the whole observatory, 0 to 2**64 - 1.
    effect : name of what the numbers are for; any two names are independent.
    exposure : number of the exposure; 0 for what does not change from one to the next.
    detector : its id.
    amplifier : its place in ``detector.amplifiers``.
    tile : as numbered by `tiles`.
    step : for effects that draw more than once for a tile.

    Raises
    ------
    WrongUse
        A number is negative or too large to be told from another.
    """
    if not 0 <= seed < 2**64:
        raise WrongUse(f"seed {seed} of the simulation: use 0 to 2**64 - 1")
    found = {"exposure": exposure, "detector": detector, "amplifier": amplifier, "tile": tile, "step": step}
    for name, value in found.items():
        if not 0 <= value < 2 ** _WIDTHS[name]:
            raise WrongUse(f"simulation of {effect}: {name} number {value} is not in 0 to 2**{_WIDTHS[name]} - 1")
    words = [0, step << 32 | tile, detector << 16 | amplifier, exposure]
    key = np.array([seed, zlib.crc32(effect.encode())], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(words, np.uint64)))


def tiles(rows: int) -> Iterator[tuple[int, slice]]:
    """Number and rows of each tile of an image of so many rows.

    Examples
    --------
    >>> list(tiles(200))
    [(0, slice(0, 128, None)), (1, slice(128, 200, None))]
    """
    for tile, start in enumerate(range(0, rows, TILE_ROWS)):
        yield tile, slice(start, min(start + TILE_ROWS, rows))
