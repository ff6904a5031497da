"""The small numbers of the slices of a cube: in arrays, in the markers, and told by a checksum in the pointer (¶9).

An array has no checksum of its own, and a part of it that is missing reads as if there were no slice. So each slice
is published with a CRC-32C of its numbers, and what an array tells otherwise is damage, not data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import google_crc32c
import numpy as np
import zarr

from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import NUMBERS

__all__ = ["FILL", "SUMS", "checksums", "numbers_of", "read_arrays", "read_part"]

SUMS: Final = ("total", "pixels")
"""Of the amplifiers of a slice: from them follows the mean of the focal plane."""

FILL: Final[dict[str, float]] = {**dict.fromkeys(NUMBERS, np.nan), **dict.fromkeys(SUMS, 0.0), "reference_slot": -1}
"""What the arrays hold of a CCD that is not in a slice."""


def numbers_of(markers: Mapping[str, Any], detectors: Sequence[str], amplifiers: int) -> dict[str, np.ndarray]:
    """Numbers of one slice, each (detector, amplifier, 1), ``reference_slot`` (detector, 1), from markers by CCD."""
    out: dict[str, np.ndarray] = {var: np.full((len(detectors), amplifiers, 1), fill) for var, fill in FILL.items()}
    out["reference_slot"] = np.full((len(detectors), 1), -1, np.int32)
    for det, marker in markers.items():
        i = detectors.index(det)
        out["reference_slot"][i] = marker["reference_slot"]
        for var in SUMS:
            out[var][i, :, 0] = marker[var]
        for var in NUMBERS:
            out[var][i, :, 0] = [np.nan if v is None else v for v in marker["numbers"][var]]
    return out


def checksums(numbers: Mapping[str, np.ndarray]) -> list[int]:
    """CRC-32C of the numbers of each slice, from arrays (..., slice) of all names of `FILL`."""
    columns = [np.moveaxis(numbers[var], -1, 0) for var in FILL]
    return [
        int(google_crc32c.value(b"".join(column[k].tobytes() for column in columns))) for k in range(len(columns[0]))
    ]


def read_arrays(url: str, where: str, slots: Sequence[int]) -> dict[str, np.ndarray]:
    """Numbers (..., slot) of some slots from the arrays of a cube, in their order.

    Raises
    ------
    ValueError
        An array cannot be read; the message names it.
    """
    store, at, found = objects.zarr_store(url, where, read_only=True), np.asarray(slots, np.int64), {}
    for var, fill in FILL.items():
        try:
            known = np.asarray(zarr.open_array(store, path=var, mode="r")[...])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where}/{var} cannot be read: {error}") from error
        more = max(0, 1 + int(at.max(initial=-1)) - known.shape[-1])
        wide = np.pad(known, [(0, 0)] * (known.ndim - 1) + [(0, more)], constant_values=fill)
        found[var] = wide[..., at]
    return found


def read_part(array: zarr.Array, part: slice) -> np.ndarray:
    """Values along the stored axis as far as they can be read, to be written anew; those that nothing tells if not."""
    try:
        return np.array(array[..., part])
    except (OSError, ValueError, RuntimeError):
        shape = (*array.shape[:-1], len(range(*part.indices(array.shape[-1]))))
        return np.full(shape, array.fill_value, array.dtype)
