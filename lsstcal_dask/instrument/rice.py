"""Rice decoding of tile-compressed images (FITS standard 4.0, Secs. 10.1-10.2 and 10.4.1).

A raw LSST file holds 32768 one-row tiles; decoding them one by one from Python costs five times the
decoding itself and holds the interpreter lock throughout. One compiled loop does not.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from lsstcal_dask.instrument.blocks import CardValue

__all__ = ["decode_rice", "is_plain_rice"]

_LEADING: Final = np.array([8 - n.bit_length() for n in range(256)], dtype=np.uint8)
_CODE_BITS: Final = {8: (3, 6), 16: (4, 14), 32: (5, 25)}  # bits of a block's code, code of "not compressed"
_SIZES: Final = {8: np.uint8, 16: np.int16, 32: np.int32}


@njit(nogil=True)
def _refill(heap, window, held, at, end):  # type: ignore[no-untyped-def]
    """Fill the window with whole bytes below the bits it holds."""
    while held <= 56 and at < end:
        window |= np.uint64(heap[at]) << np.uint64(56 - held)
        held += 8
        at += 1
    return window, held, at


@njit(nogil=True)
def _decode(  # type: ignore[no-untyped-def]  # noqa: PLR0912 (helpers would hide the one state)
    heap, starts, lengths, tiles, block, bits, code_bits, verbatim, leading
):
    """Fill ``tiles`` (tile, pixel) from the bytes of each tile; index of the first damaged one, or -1.

    ``window`` holds the next ``held`` bits, first bit on top. A zero code is a run of equal pixels.
    Differences are folded to 0, -1, 1, -2, 2 ... before coding.
    """
    n_pixels = tiles.shape[1]
    low = np.uint64((1 << bits) - 1)
    sign = np.int64(1) << (bits - 1)
    for t in range(tiles.shape[0]):
        at, end = starts[t], starts[t] + lengths[t]
        if lengths[t] < bits // 8:
            return t
        value = np.int64(0)
        for _ in range(bits // 8):
            value = (value << 8) | np.int64(heap[at])
            at += 1
        window, held = np.uint64(0), 0
        for first in range(0, n_pixels, block):
            window, held, at = _refill(heap, window, held, at, end)
            code = np.int64(window >> np.uint64(64 - code_bits)) - 1
            window <<= np.uint64(code_bits)
            held -= code_bits
            if held < 0:
                return t
            last = min(first + block, n_pixels)
            for i in range(first, last):
                if code >= 0:
                    if held < 40:  # a pixel takes up to 32 bits, or 7 zeros, a one and 25; eight zeros refill
                        window, held, at = _refill(heap, window, held, at, end)
                    if code == verbatim:
                        folded = window >> np.uint64(64 - bits)
                        window <<= np.uint64(bits)
                        held -= bits
                    else:
                        zeros = np.int64(0)
                        step = np.int64(leading[window >> np.uint64(56)])
                        while step == 8:
                            zeros += 8
                            window <<= np.uint64(8)
                            held -= 8
                            if held <= 0 and at >= end:
                                return t
                            window, held, at = _refill(heap, window, held, at, end)
                            step = np.int64(leading[window >> np.uint64(56)])
                        zeros += step
                        window <<= np.uint64(step + 1)
                        held -= step + 1
                        folded = np.uint64(zeros) << np.uint64(code)
                        if code > 0:
                            folded |= window >> np.uint64(64 - code)
                            window <<= np.uint64(code)
                            held -= code
                    if held < 0:
                        return t
                    half = np.int64(folded >> np.uint64(1))
                    value += half if folded & np.uint64(1) == 0 else -half - 1
                    value = np.int64(np.uint64(value) & low)
                tiles[t, i] = value if value < sign else value - (sign << 1)
    return -1


def is_plain_rice(cards: dict[str, CardValue]) -> bool:
    """Whether a table holds an image of integers in whole-row Rice tiles and nothing else."""
    return (
        cards.get("ZIMAGE") is True
        and cards.get("ZCMPTYPE") in ("RICE_1", "RICE_ONE")
        and cards.get("TFIELDS") == 1
        and str(cards.get("TFORM1"))[:2] in ("1P", "1Q")
        and cards.get("ZNAXIS") == 2
        and cards.get("ZBITPIX") in _SIZES
        and cards.get("ZTILE1", cards.get("ZNAXIS1")) == cards.get("ZNAXIS1")
        and cards.get("ZTILE2", 1) == 1
        and "ZBLANK" not in cards
    )


def decode_rice(table: memoryview, cards: dict[str, CardValue]) -> np.ndarray:
    """Image (y, x) of integers before BSCALE and BZERO; releases the interpreter lock.

    Parameters
    ----------
    table : bytes of the table, its heap included.
    cards : of its header, for which `is_plain_rice` holds.

    Raises
    ------
    ValueError
        A tile is damaged; the message says which row.
    """
    sizes: Any = {k: cards.get(k) for k in ("NAXIS1", "NAXIS2", "PCOUNT", "THEAP", "ZNAXIS1", "ZNAXIS2")}
    options = {cards.get(f"ZNAME{k}"): cards.get(f"ZVAL{k}") for k in range(1, 10)}
    bits = int(options.get("BYTEPIX") or 4) * 8
    block = int(options.get("BLOCKSIZE") or 32)
    rows = sizes["NAXIS2"]
    word = ">i4" if str(cards["TFORM1"])[1] == "P" else ">i8"
    places = np.frombuffer(table, np.uint8, rows * sizes["NAXIS1"]).reshape(rows, -1)
    length, start = places[:, : 2 * np.dtype(word).itemsize].copy().view(word).astype(np.int64).T
    heap = np.frombuffer(table, np.uint8)[sizes["THEAP"] or rows * sizes["NAXIS1"] :]
    bad = np.flatnonzero((length < 0) | (start < 0) | (start + length > len(heap)))
    if rows != sizes["ZNAXIS2"] or bits not in _CODE_BITS or block < 1 or bad.size:
        raise ValueError(f"compressed row {bad[0] if bad.size else 0} is damaged")
    image = np.empty((rows, sizes["ZNAXIS1"]), np.int32)  # one type, so that the loop is compiled once
    failed = _decode(heap, start, length, image, block, bits, *_CODE_BITS[bits], _LEADING)
    if failed >= 0:
        raise ValueError(f"compressed row {failed} is damaged")
    return image.astype(_SIZES[int(cards["ZBITPIX"])], copy=False)  # type: ignore[arg-type]
