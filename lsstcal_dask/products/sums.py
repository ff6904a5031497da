"""Weighted sums of the slices of one amplifier of a cube, read once for all of them (Secs. 2.8.1, 2.8.3, §7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from lsstcal_dask.statistics.weighted import add_slices
from lsstcal_dask.variables import MASK_BITS

__all__ = ["UNUSABLE", "Exceptions", "Slices", "exceptions_of", "sum_slices"]

UNUSABLE: Final = MASK_BITS["NO_DATA"] | MASK_BITS["BAD"] | MASK_BITS["SATURATED"]
"""Bits of a pixel of whose value nothing may be made."""


class Slices(Protocol):
    """What streams the codes of one CCD: `storage.cubes.CubeReader`.

    Numbers are (k, amplifier): ``value = offset + scale code + level reference``, plus the change of an exception, and
    ``variance = variance_slope value + variance_floor`` where as many exposures entered as ``repeats`` says.
    """

    shape: tuple[int, int]
    scale: np.ndarray
    offset: np.ndarray
    level: np.ndarray
    variance_slope: np.ndarray
    variance_floor: np.ndarray
    repeats: np.ndarray

    def blocks(self, amplifier: int, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places (n,) along the wavelengths, and codes (n, y, x) that are good until the next."""

    def references(self, amplifier: int, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places (n,) of slices that refer to an image, and the image (y, x), for the slices that matter."""

    def exceptions(self, k: int, amplifier: int | None = None) -> np.ndarray:
        """Records ``amplifier``, ``y``, ``x``, ``repeats``, ``mask``, ``change`` of pixels of a slice."""

    def mask(self) -> np.ndarray:
        """Bits (amplifier, y, x) at all wavelengths."""


@dataclass(frozen=True, eq=False)
class Exceptions:
    """Pixels of one amplifier that are not as the codes of a slice say."""

    at: np.ndarray  # (n,) y nx + x
    change: np.ndarray  # (n,) to be added to the value
    mask: np.ndarray  # (n,) bits in this slice only
    repeats: np.ndarray  # (n,) exposures that entered
    unusable: np.ndarray  # (n,) bool


def exceptions_of(slices: Slices, k: int, amplifier: int) -> Exceptions:
    """Exceptions of one amplifier in a slice."""
    own = slices.exceptions(k, amplifier)
    unusable = ~np.isfinite(own["change"]) | ((own["mask"] & UNUSABLE) != 0)
    at = own["y"].astype(np.intp) * slices.shape[1] + own["x"]
    return Exceptions(at, own["change"].astype(float), own["mask"], own["repeats"].astype(float), unusable)


def sum_slices(slices: Slices, amplifier: int, vectors: np.ndarray, odd: dict[int, Exceptions]) -> np.ndarray:
    """Sums (sum, y x) float32 of ``vectors`` (sum, k) times the values of one amplifier, unusable pixels left out.

    Parameters
    ----------
    vectors : zero where the amplifier holds nothing.
    odd : exceptions of every slice that has a weight.
    """
    there = np.isfinite(slices.scale[:, amplifier])
    scale, offset, level = (np.where(there, n[:, amplifier], 0.0) for n in (slices.scale, slices.offset, slices.level))
    totals = np.empty((len(vectors), slices.shape[0] * slices.shape[1]), np.float32)
    totals[...] = (vectors @ offset)[:, None]
    wrong: dict[int, np.ndarray] = {}  # values that the codes give to unusable pixels
    used = np.flatnonzero(vectors.any(axis=0))
    for places, codes in slices.blocks(amplifier, used):
        rows = codes.reshape(len(places), -1)
        add_slices(totals, rows, vectors[:, places] * scale[places])
        for k, row in zip(places.tolist(), rows, strict=True):
            wrong[k] = offset[k] + scale[k] * row[odd[k].at[odd[k].unusable]].astype(float)
    for places, image in slices.references(amplifier, used):
        own = image.reshape(-1)
        add_slices(totals, own[None], vectors[:, places] @ level[places, None])
        for k in set(places.tolist()) & set(wrong):
            wrong[k] += level[k] * own[odd[k].at[odd[k].unusable]]
    for k, value in wrong.items():
        one = odd[k]
        _add(totals, one.at[one.unusable], -vectors[:, k], value)
        _add(totals, one.at[~one.unusable], vectors[:, k], one.change[~one.unusable])
    return totals


def _add(totals: np.ndarray, at: np.ndarray, vector: np.ndarray, values: np.ndarray) -> None:
    if at.size:
        totals[:, at] += np.outer(vector, values).astype(np.float32)
