"""Made-up slices of a cube of two small CCDs, and a cube of them."""

import numpy as np

from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice
from lsstcal_dask.variables import MASK_BITS

ABOUT = {"total": [1.0, 2.0, 3.0], "pixels": [1, 2, 3]}
SHAPE = (3, 120, 100)  # amplifiers, y, x
SIGMA = 1 / np.sqrt(40_000)  # relative noise of a slice


def make_slice(seed: int, *, noise: float = SIGMA, dead: bool = False) -> Slice:
    """A structured flat with noise, a few hits, an unknown pixel, padding at the right."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    sensitivity = 1 + 0.005 * np.random.default_rng(1).standard_normal(SHAPE)
    level = (1 + 0.1 * np.cos(seed)) * (1 - 0.1 * (y / SHAPE[1]) ** 2 + 0.02 * x / SHAPE[2])
    value = level * sensitivity
    value = (value + noise * np.sqrt(value) * rng.standard_normal(SHAPE)).astype(np.float32)
    mask, repeats = np.zeros(SHAPE, np.uint16), np.full(SHAPE, 3, np.uint8)
    mask[..., -1] = MASK_BITS["NO_DATA"]
    value[..., -1] = np.nan
    repeats[..., -1] = 0
    mask[:, 5, 5] = MASK_BITS["BAD"]
    repeats[0, 7, seed % 50] = 2
    value[1, 9, 9], repeats[1, 9, 9] = np.nan, 0
    mask[1, 9, 9] = MASK_BITS["SATURATED"]
    if dead:
        value[2], mask[2], repeats[2] = np.nan, MASK_BITS["NO_DATA"], 0
    slope, floor = np.full(3, noise**2), np.full(3, 1e-3 * noise**2)
    return Slice(value, mask, repeats, np.full(3, 3), slope, floor)


def slot_of(number: int, wavelength: float) -> Slot:
    return Slot(number, wavelength, 0.01, 1.0, "2026-07-11T20:00:00", 1.0, 1e-3)


def write_cube(url, form: str, slices: dict[float, Slice], name: str = "c") -> None:
    """A cube of two CCDs, of which the second has no slice."""
    create_cube(str(url), name, CubeLayout(form, ("A", "B"), ("C0", "C1", "C2"), SHAPE[1:]))
    slots = []
    for wavelength, one in slices.items():
        number = claim_slot(str(url), name, {"wavelength": wavelength})
        write_slice(str(url), name, (number, "A"), one, ABOUT)
        slots.append(slot_of(number, wavelength))
    publish_cube(str(url), name, slots, {})
