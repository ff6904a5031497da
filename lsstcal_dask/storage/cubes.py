"""Flat cubes as they are read: lazily by names, or streamed by heavy jobs (¶9, §7); see `cubelayout` for the files.

`open_cube` is for people; `CubeReader` for kernels: it decodes the codes of one CCD into buffers that it keeps.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.cubelayout import (
    SLOT_COORDS,
    Cube,
    base,
    lost_mask,
    mask_checksum,
    read_cube,
    read_exceptions,
    read_mask,
    read_numbers,
    shard_path,
)
from lsstcal_dask.storage.provenance import hash_arrays
from lsstcal_dask.storage.shards import ShardFile
from lsstcal_dask.variables import MASK_BITS, attributes, mask_attributes

__all__ = ["Cube", "CubeReader", "check_cube", "open_cube", "read_cube"]


class CubeReader:
    """Streams the codes of one CCD, block after block of wavelengths, into buffers that are used again.

    For kernels that fold scale and offset into their weights. With weights w over the slices, an amplifier a has

        sum w value = sum w (offset[:, a] + scale[:, a] codes) + sum_r u_r reference_r + sum w change

    where u_r is the sum of w level over the slices of reference r; `references` and `exceptions` give the last two.
    Not for several threads at once: each wants its own.

    Parameters
    ----------
    cube : what `read_cube` gives.
    detector : name of the CCD.
    block : wavelengths at once; the buffer is as large as so many amplifiers (i1 8 MB for LSST's).
    """

    def __init__(self, cube: Cube, detector: str, *, block: int = 8) -> None:
        self.cube, self.detector = cube, detector
        self.index, self.block = _detector_index(cube, detector), block
        layout = cube.layout
        self.form, self.shape = layout.form, layout.shape
        self.wavelength = cube.column("wavelength")
        own = {var: np.ascontiguousarray(values[self.index].T) for var, values in cube.numbers.items()}
        self.scale, self.offset, self.level = own["scale"], own["offset"], own["level"]  # (K, amplifier)
        self.variance_slope, self.variance_floor = own["variance_slope"], own["variance_floor"]
        self.repeats = own["repeats"]  # (K, amplifier) exposures in most pixels
        self.present = cube.present[self.index]  # (K,) bool
        self._file = ShardFile(cube.url, layout.codec)
        self._exceptions: dict[int, np.ndarray] = {}
        self._buffer = np.empty((block, *layout.shape), layout.codec.dtype)

    def blocks(self, amplifier: int, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Codes of an amplifier, some wavelengths at a time.

        Parameters
        ----------
        which : places along the wavelengths; all by default. Those at which the amplifier holds nothing are left out.

        Yields
        ------
        Places (n,) along the wavelengths, and codes (n, y, x): a view that the next block overwrites.

        Raises
        ------
        StoreFailure
            A shard is missing or damaged; the message says what to do.
        """
        places = np.arange(len(self.wavelength)) if which is None else np.asarray(which)
        places = places[np.isfinite(self.scale[places, amplifier])]
        for start in range(0, len(places), self.block):
            own = places[start : start + self.block]
            for i, k in enumerate(own):
                self.load("codes", self._file, int(self.cube.slots[k]), (amplifier,), self._buffer[i : i + 1])
            yield own, self._buffer[: len(own)]

    def load(self, what: str, file: ShardFile, slot: int, amplifiers: Sequence[int], out: np.ndarray) -> None:
        """Read some amplifiers (n, y, x) of a slot from the shards of a variable; raises as `blocks`."""
        try:
            file.read(shard_path(self.cube.name, what, self.index, slot), amplifiers, out)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise _damaged(self.cube, self.detector, slot, error) from error

    def read(self, k: int, out: np.ndarray) -> None:
        """Codes (amplifier, y, x) of the whole CCD at one wavelength; zero where an amplifier holds nothing."""
        self.load("codes", self._file, int(self.cube.slots[k]), range(len(out)), out)

    def references(self, amplifier: int, which: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of form i1, the places (n,) of the slices that refer to a reference, and its image (y, x) float32.

        Parameters
        ----------
        which : places of the slices that matter; all by default.
        """
        own, layout = self.cube.reference_slot[self.index], self.cube.layout
        file, out = ShardFile(self.cube.url, layout.reference_codec), np.empty((1, *self.shape), np.float32)
        usable = self.present & np.isfinite(self.scale[:, amplifier])
        usable &= np.isin(np.arange(len(usable)), which) if which is not None else True
        for slot in np.unique(own[usable & (own >= 0)]):
            self.load("reference", file, int(slot), (amplifier,), out)
            yield np.flatnonzero(usable & (own == slot)), out[0]

    def exceptions(self, k: int, amplifier: int | None = None) -> np.ndarray:
        """Pixels of a slice that differ, of `coding.EXCEPTION`; of one amplifier or of all, in their order.

        They are kept once they were read: 13 bytes each, 0.2 MB of a slice of an LSST CCD with the hits of one flat.
        """
        if k not in self._exceptions:
            slot = int(self.cube.slots[k])
            path = f"{base(self.cube.name)}/exceptions/{slot:05d}/{self.detector}.npy"
            try:
                self._exceptions[k] = read_exceptions(objects.read_bytes(self.cube.url, path))
            except (FileNotFoundError, ValueError) as error:
                if isinstance(error, CalibrationError):
                    raise
                raise _damaged(self.cube, self.detector, slot, error) from error
        found = self._exceptions[k]
        if amplifier is None or not found.size:
            return found
        first, last = np.searchsorted(found["amplifier"], [amplifier, amplifier + 1])
        return found[first:last]

    def mask(self, amplifiers: Sequence[int] | None = None) -> np.ndarray:
        """Bits (amplifier, y, x) that the pixels have at all wavelengths; of some amplifiers or of all.

        Raises
        ------
        StoreFailure
            It is missing or damaged; the message says what to do.
        """
        found = read_mask(self.cube.url, self.cube.name, self.cube.layout, self.index, amplifiers)
        if found is None and self.present.any():
            raise lost_mask(self.cube.url, self.cube.name, self.cube.layout, self.index, "it is missing")
        number = len(self.cube.layout.amplifiers) if amplifiers is None else len(amplifiers)
        return np.full((number, *self.shape), MASK_BITS["NO_DATA"], np.uint16) if found is None else found

    def values(self, k: int, amplifier: int) -> np.ndarray:
        """Values (y, x) float32 of an amplifier at one wavelength; NaN where nothing is known."""
        out = np.full(self.shape, np.nan, np.float32)
        for _, codes in self.blocks(amplifier, np.array([k])):
            out[...] = self.offset[k, amplifier] + self.scale[k, amplifier] * codes[0].astype(np.float64)
        for _, image in self.references(amplifier, np.array([k])) if self.form == "i1" else ():
            out += np.float32(self.level[k, amplifier]) * image
        if np.isfinite(self.scale[k, amplifier]):
            odd = self.exceptions(k, amplifier)
            out[odd["y"], odd["x"]] += odd["change"]
        return out


def _detector_index(cube: Cube, detector: str) -> int:
    if detector not in cube.layout.detectors:
        raise CalibrationError(f"cube {cube.name} has no detector {detector!r}: see 'lsstcal ls {cube.url}'")
    return cube.layout.detectors.index(detector)


def _damaged(cube: Cube, detector: str, slot: int, error: Exception) -> StoreFailure:
    reason = "a part is missing" if isinstance(error, FileNotFoundError) else str(error)
    marker = f"{base(cube.name)}/done/{slot:05d}/{detector}.json"
    one = next(s for s in cube.pointer.slots if s.slot == slot)
    return StoreFailure(
        f"cube {cube.name} {detector} at {one.wavelength:.2f} nm: its stored pixels cannot be read ({reason}): delete "
        f"{marker}, then run 'lsstcal cube {cube.url} --name {cube.name}' again"
    )


def check_cube(cube: Cube) -> list[str]:
    """One line for each CCD of a slice whose stored values do not have the hash of its marker, or for its numbers."""
    try:
        read_numbers(cube.url, cube.name, cube.pointer)  # as they are now, not when the cube was opened
    except StoreFailure as error:
        return [str(error)]
    bad = []
    for detector in cube.layout.detectors:
        reader = CubeReader(cube, detector, block=1)
        try:
            mask = mask_checksum(reader.mask())
        except StoreFailure as error:
            bad.append(str(error))
            continue
        bad += [line for k in np.flatnonzero(reader.present) if (line := _check(reader, int(k), mask))]
    return list(dict.fromkeys(bad))


def _check(reader: CubeReader, k: int, mask: int) -> str:
    cube, slot = reader.cube, int(reader.cube.slots[k])
    try:
        marker = objects.read_json(cube.url, f"{base(cube.name)}/done/{slot:05d}/{reader.detector}.json")
        arrays = {var: values[reader.index, :, k] for var, values in cube.numbers.items()}
        arrays["codes"] = np.empty(cube.layout.codec.shape, cube.layout.codec.dtype)
        reader.read(k, arrays["codes"])
        arrays["exceptions"] = reader.exceptions(k).view(np.uint8)
        if cube.reference_slot[reader.index, k] == slot:
            arrays["reference"] = np.empty(cube.layout.reference_codec.shape, np.float32)
            file = ShardFile(cube.url, cube.layout.reference_codec)
            reader.load("reference", file, slot, range(len(arrays["codes"])), arrays["reference"])
        if marker.get("mask", mask) != mask:
            why = "it is not the one that was written"
            return str(lost_mask(cube.url, cube.name, cube.layout, reader.index, why))
        if hash_arrays(arrays) == marker["hash"]:
            return ""
        return str(_damaged(cube, reader.detector, slot, ValueError("they are not those that were written")))
    except FileNotFoundError:
        return str(_damaged(cube, reader.detector, slot, FileNotFoundError()))
    except StoreFailure as error:
        return str(error)


class _Values(BackendArray):
    """Values (detector, amplifier, wavelength, y, x) of a cube, decoded when they are indexed."""

    def __init__(self, cube: Cube) -> None:
        self.cube = cube
        sizes = {**cube.layout.sizes, "wavelength": len(cube.slots)}
        self.shape = tuple(sizes[dim] for dim in ("detector", "amplifier", "wavelength", "y", "x"))
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        axes = [np.atleast_1d(np.arange(size)[k]) for size, k in zip(self.shape, key, strict=True)]
        out = np.empty(tuple(len(axis) for axis in axes), np.float32)
        for i, detector in enumerate(axes[0]):
            reader = CubeReader(self.cube, self.cube.layout.detectors[detector], block=1)
            for j, amplifier in enumerate(axes[1]):
                padding = (reader.mask([amplifier])[0] & MASK_BITS["NO_DATA"]) != 0
                for n, k in enumerate(axes[2]):
                    found = reader.values(int(k), int(amplifier))
                    found[padding] = np.nan
                    out[i, j, n] = found[np.ix_(axes[3], axes[4])]
        return out[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]


class _Masks(BackendArray):
    """Mask (detector, amplifier, y, x) of a cube, read when it is indexed."""

    def __init__(self, cube: Cube) -> None:
        self.cube = cube
        self.shape = tuple(cube.layout.sizes[dim] for dim in ("detector", "amplifier", "y", "x"))
        self.dtype = np.dtype(np.uint16)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        names = self.cube.layout.detectors
        at = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        own = (slice(i, i + 1) if isinstance(i, int | np.integer) else i for i in key[1:])
        out = np.stack([CubeReader(self.cube, names[d], block=1).mask() for d in at])
        for axis, k in enumerate(own, 1):
            out = out[(slice(None),) * axis + (k,)]
        return out[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]


def open_cube(url: str, name: str, number: int | None = None, *, chunked: bool = True) -> xr.Dataset:
    """Open a cube lazily: nothing but small arrays is read.

    Parameters
    ----------
    number : of the publication; the last by default.
    chunked : Dask arrays of one chunk per CCD and wavelength, a shard, or (False) arrays that are read when indexed:
        the faster way to some amplifiers, for even a part of a graph of all of LSST's shards costs half a second.
        What goes over a whole cube uses `CubeReader`, one task per CCD.

    Returns
    -------
    ``flat`` (detector, amplifier, wavelength, y, x), electrons per photon of the photodiode up to a factor, NaN where
    nothing is known; ``mask`` (detector, amplifier, y, x) at all wavelengths; ``variance_slope`` and
    ``variance_floor`` (detector, amplifier, wavelength); ascending measured ``wavelength`` with its error,
    ``bandwidth``, ``time`` and ``response`` r.
    """
    cube = read_cube(url, name, number)
    dims, small = ("detector", "amplifier", "wavelength", "y", "x"), ("detector", "amplifier", "wavelength")
    times = np.array([np.datetime64(one.time, "ns") for one in cube.pointer.slots], "datetime64[ns]")
    flat = xr.Variable(dims, indexing.LazilyIndexedArray(_Values(cube)), attributes("flat"))
    mask = xr.Variable((*dims[:2], *dims[3:]), indexing.LazilyIndexedArray(_Masks(cube)), mask_attributes())
    return xr.Dataset(
        {
            "flat": flat.chunk(detector=1, wavelength=1) if chunked else flat,
            "mask": mask.chunk(detector=1) if chunked else mask,
            **{v: xr.Variable(small, cube.numbers[v], attributes(v)) for v in ("variance_slope", "variance_floor")},
        },
        coords={
            "detector": ("detector", np.array(cube.layout.detectors, dtype=object), attributes("detector")),
            "amplifier": ("amplifier", np.array(cube.layout.amplifiers, dtype=object), attributes("amplifier")),
            **{var: ("wavelength", cube.column(var), attributes(var)) for var in SLOT_COORDS},
            "time": ("wavelength", times, attributes("time")),
        },
        attrs={"cube": name, "number": cube.pointer.number, "form": cube.layout.form},
    )
