"""Shards of Zarr arrays: the amplifiers of one CCD of one wavelength in one file, written and read in one step.

A shard (codec ``sharding_indexed`` of Zarr v3) begins with an index, the place and the length of each inner chunk,
with its checksum; then come the chunks, each compressed and with a checksum of its own. Any Zarr library reads it.
Here one amplifier is read by one `os.preadv` into a buffer that is used again and again: general machinery is bound
by its own overhead and by fresh memory, this by the processor's caches.

Values of two bytes are compressed by Blosc with lz4 and *bytes* shuffled. Codes of a step of sigma/4 are noise in the
lower byte and nearly constant in the upper one: this takes a quarter of float32, where bits shuffled take a fifth, and
decodes four times faster. Codes of one byte are noise alone, and float32 would be read at half the speed for a third
less of bytes: neither is compressed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from lsstcal_dask.storage import objects

__all__ = ["ShardCodec", "ShardFile", "shard_settings"]

_CHECKSUM: Final = 4  # bytes of a CRC-32C
_ABSENT: Final = 2**64 - 1  # place and length of an inner chunk that is not there
_BLOCK: Final = 1 << 18  # bytes that Blosc shuffles at once: a share of the second-level cache


def _checksum(values: np.ndarray) -> int:
    return int(google_crc32c.value(values))  # of an array without a copy, which its own stubs do not say


class ShardCodec:
    """Encodes and decodes the shards of one array.

    Parameters
    ----------
    dtype : of the array; compressed if of two bytes.
    shape : (amplifier, y, x) of a shard.
    """

    def __init__(self, dtype: Any, shape: tuple[int, int, int]) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.chunk_bytes = int(self.dtype.itemsize * shape[1] * shape[2])
        self.index_bytes = 16 * shape[0] + _CHECKSUM
        self.packed = self.dtype.itemsize == 2
        self.most_bytes = self.chunk_bytes + _CHECKSUM + (blosc.MAX_OVERHEAD if self.packed else 0)
        self._blosc = Blosc("lz4", 1, Blosc.SHUFFLE, _BLOCK)

    @property
    def compressors(self) -> tuple[Any, ...]:
        """The codecs of the inner chunks, for the metadata of the array."""
        size = self.dtype.itemsize
        packer = BloscCodec(typesize=size, cname="lz4", clevel=1, shuffle="shuffle", blocksize=_BLOCK)
        return (packer, Crc32cCodec()) if self.packed else (Crc32cCodec(),)

    def encode(self, values: np.ndarray, there: np.ndarray | None = None) -> bytes:
        """The bytes of a shard.

        Parameters
        ----------
        values : (amplifier, y, x).
        there : (amplifier,) bool, the amplifiers that are stored; others read as the fill value. All by default.
        """
        index = np.full((self.shape[0], 2), _ABSENT, "<u8")
        parts, at = [b""], self.index_bytes
        for i in range(self.shape[0]) if there is None else np.flatnonzero(there):
            body = self._encode_chunk(values[i])
            index[i] = at, len(body)
            parts.append(body)
            at += len(body)
        head = index.view(np.uint8).ravel()
        parts[0] = head.tobytes() + _checksum(head).to_bytes(_CHECKSUM, "little")
        return b"".join(parts)

    def _encode_chunk(self, values: np.ndarray) -> bytes:
        little = np.ascontiguousarray(values, dtype=self.dtype.newbyteorder("<"))
        body = np.frombuffer(self._blosc.encode(little) if self.packed else little.tobytes(), np.uint8)
        return body.tobytes() + _checksum(body).to_bytes(_CHECKSUM, "little")

    def read_index(self, head: np.ndarray) -> np.ndarray:
        """Place and length (amplifier, 2) uint64 of the chunks; ValueError where the index is damaged."""
        if _checksum(head[:-_CHECKSUM]) != int.from_bytes(head[-_CHECKSUM:].tobytes(), "little"):
            raise ValueError("the checksum of its index is wrong")
        return head[:-_CHECKSUM].view("<u8").reshape(-1, 2)

    def decode(self, body: np.ndarray, out: np.ndarray) -> None:
        """Decode one inner chunk with its checksum (uint8) into a contiguous array; ValueError where it is damaged."""
        content = body[:-_CHECKSUM]
        if _checksum(content) != int.from_bytes(body[-_CHECKSUM:].tobytes(), "little"):
            raise ValueError("its checksum is wrong")
        if self.packed:
            blosc.decompress(content, out)
        else:
            out.reshape(-1).view(np.uint8)[:] = content


class ShardFile:
    """Reads chunks of the shards of one array into arrays of the caller, through buffers that are kept.

    Not for several threads at once: each wants its own.
    """

    def __init__(self, url: str, codec: ShardCodec) -> None:
        self.url, self.codec = url, codec
        self._head = np.empty(codec.index_bytes, np.uint8)
        self._body = np.empty(codec.most_bytes, np.uint8)
        self._tail = np.empty(_CHECKSUM, np.uint8)

    def read(self, path: str, amplifiers: Any, out: np.ndarray) -> None:
        """Read some amplifiers of a shard.

        Parameters
        ----------
        path : of the shard in the store.
        amplifiers : (n,) places of the amplifiers.
        out : (n, y, x) C-contiguous, of the codec's dtype; zero where an amplifier is not stored.

        Raises
        ------
        FileNotFoundError
            There is no such shard.
        ValueError
            It is damaged.
        """
        if objects.is_remote(self.url):
            self._read_remote(path, amplifiers, out)
            return
        with _opened(Path(self.url, path)) as file:
            self._fill(file, 0, [self._head])
            index = self.codec.read_index(self._head)
            for place, target in zip(amplifiers, out, strict=True):
                self._read_chunk(file, index[place], target)

    def _read_chunk(self, file: int, place: np.ndarray, target: np.ndarray) -> None:
        start, size = int(place[0]), int(place[1])
        if start == _ABSENT:
            target[...] = 0
        elif self.codec.packed:
            body = self._body[: self._checked(size)]
            self._fill(file, start, [body])
            self.codec.decode(body, target)
        else:  # straight to where it is wanted
            self._checked(size)
            plain = target.reshape(-1).view(np.uint8)
            self._fill(file, start, [plain, self._tail])
            if _checksum(plain) != int.from_bytes(self._tail.tobytes(), "little"):
                raise ValueError("its checksum is wrong")

    def _checked(self, size: int) -> int:
        if not _CHECKSUM < size <= self.codec.most_bytes:
            raise ValueError(f"a chunk of {size} bytes cannot be")
        return size

    @staticmethod
    def _fill(file: int, start: int, buffers: list[np.ndarray]) -> None:
        wanted = sum(buffer.nbytes for buffer in buffers)
        if os.preadv(file, [buffer.data for buffer in buffers], start) != wanted:
            raise ValueError("it is cut short")

    def _read_remote(self, path: str, amplifiers: Any, out: np.ndarray) -> None:
        head = objects.read_ranges(self.url, path, [(0, self.codec.index_bytes)])[0]
        index = self.codec.read_index(np.frombuffer(head, np.uint8))
        there = [(int(index[i, 0]), int(index[i, 1])) for i in amplifiers if index[i, 0] != _ABSENT]
        bodies = iter(objects.read_ranges(self.url, path, there) if there else [])
        for place, target in zip(amplifiers, out, strict=True):
            if index[place, 0] == _ABSENT:
                target[...] = 0
            else:
                self.codec.decode(np.frombuffer(next(bodies), np.uint8), target)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def shard_settings(codec: ShardCodec, dims: tuple[str, ...], sizes: dict[str, int]) -> dict[str, Any]:
    """What `storage.objects.create_or_open` wants for an array of such shards: one for each index of other dims."""
    inner = {"y": codec.shape[1], "x": codec.shape[2]}
    outer = {**inner, "amplifier": codec.shape[0]}
    return {
        "shape": tuple(sizes[dim] for dim in dims),
        "chunks": tuple(inner.get(dim, 1) for dim in dims),
        "shards": {"shape": tuple(outer.get(dim, 1) for dim in dims), "index_location": "start"},
        "dtype": codec.dtype,
        "compressors": codec.compressors,
        "dimension_names": dims,
    }
