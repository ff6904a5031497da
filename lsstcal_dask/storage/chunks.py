"""Chunks of Zarr arrays of pixels, encoded and decoded in one step: what a stack of frames spends its time on.

Any Zarr library reads what is written here. Going through the general machinery costs about two milliseconds
for each chunk, which is one amplifier, and a copy; an own step costs neither, and refuses a chunk that is
missing or whose checksum is wrong, where Zarr would answer the fill value for the first.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, Protocol

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import objects

__all__ = ["PRODUCT", "RAW", "ChunkArray", "ChunkSource", "Codec"]

_CHECKSUM: Final = 4  # bytes of a CRC-32C at the end of a chunk
_RESIDUE: Final = 0x48674BC7  # CRC-32C of anything with its own CRC-32C behind it
_HALF: Final = 0.55  # of the bytes of a chunk: what is left where all high bytes are alike, and a little
_SIZE: Final = slice(4, 8)  # where a Blosc buffer says how many bytes it holds
_READ_THREADS: Final = 8  # requests under way at once from a bucket, whose latency exceeds the transfer


class Codec:
    """Blosc with bits shuffled, or bytes where these suffice, then a checksum.

    Counts of little noise vary in their low byte alone: with bytes shuffled the high ones vanish, and what is left
    is copied rather than decoded, four times as fast. A chunk says itself how it was shuffled, to any reader.
    """

    def __init__(self, name: Literal["lz4", "zstd"], *, bytes_first: bool = False) -> None:
        self._bits, self._bytes = (Blosc(name, 1, shuffle) for shuffle in (Blosc.BITSHUFFLE, Blosc.SHUFFLE))
        self._bytes_first = bytes_first
        self.compressors: tuple[Any, ...] = (BloscCodec(cname=name, clevel=1, shuffle="bitshuffle"), Crc32cCodec())

    def encode(self, values: np.ndarray) -> bytes:
        """The bytes that stand for one chunk in the store."""
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        body = bytes(self._bytes.encode(little)) if self._bytes_first else b""
        if not body or len(body) > _HALF * little.nbytes:
            body = bytes(self._bits.encode(little))
        return body + google_crc32c.value(body).to_bytes(_CHECKSUM, "little")

    def decode(self, blob: bytes | np.ndarray, out: np.ndarray) -> None:
        """Decode one chunk into a contiguous array of its own type.

        Raises
        ------
        ValueError
            The bytes are not those that were written.
        """
        body = np.frombuffer(blob, np.uint8)[:-_CHECKSUM]
        if google_crc32c.value(blob) != _RESIDUE:
            raise ValueError("its checksum is wrong")
        if (size := int.from_bytes(body[_SIZE].tobytes(), "little")) != out.nbytes:
            raise ValueError(f"it holds {size} bytes instead of {out.nbytes}")
        blosc.decompress(body, out)


RAW: Final = Codec("lz4", bytes_first=True)
"""Read often, by every build: a third of the time of zstd for a tenth more bytes, or a tenth of it for half as many
again where the noise is low."""

PRODUCT: Final = Codec("zstd")


class ChunkSource(Protocol):
    """Where the chunks of an array are."""

    def locate(self, index: tuple[int, ...]) -> tuple[str, str] | None:
        """Path and type of the chunk of an index of the dims before (y, x); None where there is none."""

    def damaged(self, index: tuple[int, ...], reason: str) -> str:
        """One line for a person if that chunk cannot be read."""


class ChunkArray(BackendArray):
    """Array (..., y, x) that is read when indexed, of one chunk for each index of the dims before (y, x)."""

    def __init__(self, url: str, codec: Codec, source: ChunkSource, like: np.ndarray, fill: float) -> None:
        self.url, self.codec, self.source, self.fill = url, codec, source, fill
        self.shape, self.dtype = like.shape, like.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        axes = [np.atleast_1d(np.arange(size)[k]) for size, k in zip(self.shape, key, strict=True)]
        sizes = tuple(len(axis) for axis in axes)
        out = np.empty(sizes, self.dtype)
        whole = sizes[-2:] == self.shape[-2:]
        remote, buffer = objects.is_remote(self.url), bytearray()

        def read(place: tuple[int, ...]) -> None:
            index = tuple(int(axis[i]) for axis, i in zip(axes, place, strict=False))
            found = self.source.locate(index)
            if found is None:
                out[place] = self.fill
                return
            path, kind = found
            target = out[place]
            chunk = target if whole and kind == self.dtype else np.empty(self.shape[-2:], kind)
            try:
                if remote:
                    self.codec.decode(objects.read_bytes(self.url, path), chunk)
                else:
                    self.codec.decode(objects.read_into(self.url, path, buffer), chunk)
            except (FileNotFoundError, RuntimeError, ValueError) as error:
                if isinstance(error, CalibrationError):
                    raise
                reason = "a part is missing" if isinstance(error, FileNotFoundError) else str(error)
                raise StoreFailure(self.source.damaged(index, reason)) from error
            if chunk is not target:
                target[:] = chunk[key[-2]][..., key[-1]].reshape(target.shape)

        places = itertools.product(*(range(size) for size in sizes[:-2]))
        if remote:
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                list(pool.map(read, places))
        else:
            for place in places:
                read(place)
        return out[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]
