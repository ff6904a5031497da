# mypy: allow-untyped-defs
"""Weighted sums of the slices of a cube, many weight vectors in one pass over its codes (Secs. 2.8.1, 2.8.3).

Every pixel of every sum is one chain of fused multiply-adds in float32, slice after slice in the order given. So
neither the slices that are read at once, nor the number of weight vectors, nor the place of a pixel changes a bit.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba.core import cgutils, types
from numpy.typing import NDArray

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.statistics import vectors
from lsstcal_dask.statistics.vectors import (
    CODES,
    FLOATS,
    LANES,
    LINE,
    address,
    compiled,
    converted,
    define,
    fetch,
    get,
    inlined,
    load_counts,
    prefetch,
    put,
    splat,
)

__all__ = ["CODES", "WIDEST", "add_slices", "rounding_bound", "weighted_sums"]

WIDEST: Final = 6
"""Sums that are added to in one go: they, a slice and a weight fill the registers of a processor with AVX2."""

_VERSION: Final = zlib.crc32(Path(__file__).read_bytes(), vectors.VERSION)
_STEP: Final = 4 * LANES  # pixels; the end of a row that is not a multiple is copied
_STEPS: Final = 1024  # of all sums that lie in the second-level cache: a quarter of a MB
_LONGEST: Final = 256  # steps of a tile, at most
_SLICES: Final = 8  # read side by side: memory follows no more streams
_CONVERTED: Final = 16  # that are converted to float32 once, for many sums
_AHEAD: Final = 1024  # pixels between those being read and those that memory is asked for
_CACHE_LINE: Final = 64  # bytes
_U = np.uint64


def _chains(width: int, code: str) -> Callable[..., Any]:
    """Write the instructions for ``width`` sums of `_STEP` pixels, in registers from the first slice to the last."""
    abreast = 4 if width == 1 else 2 if width <= WIDEST // 2 else 1  # vectors; one chain alone would wait for itself

    def emit(builder, codes, at, row, count, weights, first, stride, sums, to, line):
        whole = at.type

        def place(start, i, v):
            return address(
                builder, sums, builder.add(builder.add(start, builder.mul(line, whole(i))), whole(v * LANES))
            )

        with cgutils.for_range(builder, whole(_STEP // (abreast * LANES))) as part:
            x = builder.mul(part.index, whole(abreast * LANES))
            start, own = builder.add(to, x), builder.add(at, x)
            held = {(i, v): cgutils.alloca_once(builder, FLOATS) for i in range(width) for v in range(abreast)}
            for (i, v), register in held.items():
                builder.store(builder.load(place(start, i, v), align=4), register)
            with cgutils.for_range(builder, count) as loop:
                pixel = builder.add(own, builder.mul(loop.index, row))
                w = builder.add(first, builder.mul(loop.index, stride))
                for v in range(0, abreast, _CACHE_LINE // (np.dtype(code).itemsize * LANES)):
                    prefetch(builder, codes, builder.add(pixel, whole(_AHEAD + v * LANES)))
                values = [converted(code)(builder, codes, builder.add(pixel, whole(v * LANES))) for v in range(abreast)]
                shares = [
                    splat(builder, builder.load(builder.gep(weights, [builder.add(w, whole(i))]))) for i in range(width)
                ]
                for (i, v), register in held.items():
                    builder.store(vectors.fused(builder, values[v], shares[i], builder.load(register)), register)
            for (i, v), register in held.items():
                builder.store(builder.load(register), place(start, i, v), align=4)

    return emit


def _operation(width: int) -> Callable[..., None]:
    """What a kernel calls to add slices to ``width`` sums."""

    def add(codes, at, row, count, weights, first, stride, sums, to, line):
        """Add ``count`` slices, ``row`` apart, to sums ``line`` apart; weights of a slice are ``stride`` apart."""

    index, values = types.uint64, types.Array(types.float32, 1, "C", readonly=True)
    for code in CODES:
        kind = types.Array(getattr(types, code), 1, "C", readonly=True)
        takes = kind, index, index, index, values, index, index, LINE, index, index
        define(add, _chains(width, code), types.void, *takes)
    return add


_ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX = (_operation(width) for width in range(1, WIDEST + 1))


@inlined
def _add(width, codes, at, row, count, weights, first, stride, sums, to, line):
    """Add slices to ``width`` sums of `_STEP` pixels."""
    if width == _U(6):
        _SIX(codes, at, row, count, weights, first, stride, sums, to, line)
    elif width == _U(1):
        _ONE(codes, at, row, count, weights, first, stride, sums, to, line)
    elif width == _U(2):
        _TWO(codes, at, row, count, weights, first, stride, sums, to, line)
    elif width == _U(3):
        _THREE(codes, at, row, count, weights, first, stride, sums, to, line)
    elif width == _U(4):
        _FOUR(codes, at, row, count, weights, first, stride, sums, to, line)
    else:
        _FIVE(codes, at, row, count, weights, first, stride, sums, to, line)


@inlined
def _convert(codes, at, row, count, size, values, line):
    """Put pixels of some slices side by side as float32."""
    for i in range(_U(0), count):
        for x in range(_U(0), size, _U(LANES)):
            fetch(codes, at + i * row + x + _U(_AHEAD))
            put(values, i * line + x, load_counts(codes, at + i * row + x))


@inlined
def _copy(source, at, row, target, to, line, count, size):
    """Copy ``size`` values of each of some rows."""
    for i in range(_U(0), count):
        for x in range(_U(0), size, _U(LANES)):
            put(target, to + i * line + x, get(source, at + i * row + x))


def _compile(version: int) -> Callable[..., Any]:
    """Give the kernel; its cache on disk notices another ``version`` of its parts, being a closure of it."""

    @compiled
    def run(codes, row, slices, weights, sums, line, spectra, size):
        """Add slices to all sums, tile by tile; ``size`` is a multiple of `_STEP`.

        A tile of the sums, and for many of them of the slices, is copied: rows a power of two apart would compete
        for the same few places of the first-level cache.
        """
        _ = version
        tile = min(max(_U(_STEPS) // spectra, _U(1)), _U(_LONGEST)) * _U(_STEP)
        own, many = tile + _U(_STEP), spectra > _U(WIDEST)
        held = np.empty(spectra * own, np.float32)
        together = _U(_CONVERTED) if many else _U(_SLICES)
        values = np.empty(together * own if many else _U(0), np.float32)
        for start in range(_U(0), size, tile):
            part = min(size - start, tile)
            _copy(sums, start, line, held, _U(0), own, spectra, part)
            for group in range(_U(0), slices, together):
                count, at = min(slices - group, together), group * row + start
                if many:
                    _convert(codes, at, row, count, part, values, own)
                for k in range(_U(0), spectra, _U(WIDEST)):
                    width, first = min(spectra - k, _U(WIDEST)), group * spectra + k
                    for x in range(_U(0), part, _U(_STEP)):
                        to = k * own + x
                        if many:
                            _add(width, values, x, own, count, weights, first, spectra, held, to, own)
                        else:
                            _add(width, codes, at + x, row, count, weights, first, spectra, held, to, own)
            _copy(held, _U(0), own, sums, start, line, spectra, part)

    return run


_run = _compile(_VERSION)


def add_slices(sums: NDArray[np.float32], codes: np.ndarray, weights: np.ndarray) -> None:
    """Add ``sum_l weights[k, l] codes[l]`` to sums that the caller holds.

    Parameters
    ----------
    sums : (k, n) float32, contiguous; changed.
    codes : (l, n) int8, int16 or float32, contiguous.
    weights : (k, l), rounded to float32; scale and step of the codes are folded into them.

    Raises
    ------
    InconsistentGeometry
        Shapes that do not belong together, another type, or an array that is not contiguous.
    """
    _check(sums, codes, weights)
    spectra, size = sums.shape
    slices = len(codes)
    even = np.ascontiguousarray(weights.T, np.float32).ravel()
    whole = size // _STEP * _STEP
    flat, line = codes.reshape(-1), sums.reshape(-1)
    _run(flat, _U(size), _U(slices), even, line, _U(size), _U(spectra), _U(whole))
    if whole < size:
        end = np.zeros((slices, _STEP), codes.dtype)
        end[:, : size - whole] = codes[:, whole:]
        rest = np.zeros((spectra, _STEP), np.float32)
        rest[:, : size - whole] = sums[:, whole:]
        _run(end.reshape(-1), _U(_STEP), _U(slices), even, rest.reshape(-1), _U(_STEP), _U(spectra), _U(_STEP))
        sums[:, whole:] = rest[:, : size - whole]


def weighted_sums(codes: np.ndarray, weights: np.ndarray) -> NDArray[np.float32]:
    """Sums (k, ...) float32 of ``weights[k, l] codes[l]`` over slices.

    Parameters
    ----------
    codes : (l, ...) int8, int16 or float32.
    weights : (k, l).

    Raises
    ------
    InconsistentGeometry
        As `add_slices`.
    """
    sums = np.zeros((len(weights), *codes.shape[1:]), np.float32)
    add_slices(sums.reshape(len(weights), -1), np.ascontiguousarray(codes).reshape(len(codes), -1), weights)
    return sums


def rounding_bound(slices: int) -> float:
    """Largest error of a sum in units of ``sum |w c|``.

    ``(n + 1) u / (1 - (n + 1) u)`` with u = 2**-24: one rounding of each weight and one of each step of the chain.
    That is 5e-5 for 800 slices; roundings that are as often up as down make ``u sqrt(n)``, 2e-6.
    """
    steps = (slices + 1) * 2.0**-24
    return steps / (1 - steps)


def _check(sums: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> None:
    if codes.dtype.name not in CODES:
        raise InconsistentGeometry(f"codes of type {codes.dtype}: a cube has one of {', '.join(CODES)}")
    if sums.shape[1:] != codes.shape[1:] or weights.shape != (len(sums), len(codes)):
        raise InconsistentGeometry(
            f"sums {sums.shape}, codes {codes.shape} and weights {weights.shape} do not belong together: give (k, n), "
            f"(l, n) and (k, l)"
        )
    if not (codes.flags.c_contiguous and sums.flags.c_contiguous and sums.dtype == np.float32):
        raise InconsistentGeometry("weighted sums need contiguous codes and contiguous float32 sums")
