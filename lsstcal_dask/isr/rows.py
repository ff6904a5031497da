# mypy: allow-untyped-defs
"""The corrections that act on rows, in one pass over the pixels of a CCD (Lupton 2016, Secs. 3.1 to 3.4).

All amplifiers of a CCD read their pixels in step, so the rows of one number, of every amplifier, are all that a
correction up to the dark wants to see at once. A few of them stay in cache while one correction after the other
goes over them in the order given, and memory is read and written once, whatever their number.

With the bias subtracted, L the linearity, g the gain, C the crosstalk, R what brings late charge back, D the dark:

    image = R (1 + C)**-1 g L(counts - level - bias) - D t(y)

The variance begins with the read noise, takes the square of each slope on the way, and the photon noise where values
have become the electrons that were counted; those of bias and dark are added.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from lsstcal_dask.isr.crosstalk import crosstalk_rows
from lsstcal_dask.isr.deferred import Registers, restore_row
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.linearity import linearize_row
from lsstcal_dask.variables import MASK_BITS

__all__ = ["STEPS", "Coupling", "Curves", "Plane", "Terms", "correct_rows"]

STEPS: Final = ("bias", "linearity", "gain", "crosstalk", "deferred", "dark")
"""Corrections that act on rows; the place of each is its number in the kernel."""

_ROWS: Final = 8  # in work at a time: as many as share the cost of a call, and still fit into the second-level cache
_LINE: Final = 32  # pixels of mask in a cache line

_BIAS, _LINEARITY, _GAIN, _CROSSTALK, _DEFERRED, _DARK = range(len(STEPS))
_NO_DATA: Final = np.uint16(MASK_BITS["NO_DATA"])
_SUSPECT: Final = np.uint16(MASK_BITS["SUSPECT"])
_REACHED: Final = np.uint16(MASK_BITS["CROSSTALK"])
_NONE: Final = np.empty((0, 0, 0), np.float32)


class Plane(NamedTuple):
    """An image to subtract; all (amplifier, y, x), empty where there is none, in an order of their own."""

    image: np.ndarray = _NONE  # float32
    variance: np.ndarray = _NONE  # float32
    mask: np.ndarray = np.empty((0, 0, 0), np.uint16)
    places: np.ndarray = np.empty(0, np.int64)  # (amplifier,) of the counts' amplifiers in it


class Curves(NamedTuple):
    """Linearity: see `isr.linearity.Tables`."""

    table: np.ndarray = _NONE  # (amplifier, cell, 2) float32, adu
    per_adu: np.ndarray = np.empty(0, np.float32)  # (amplifier,), cells per adu
    ceiling: np.ndarray = np.empty(0, np.float32)  # (amplifier,), adu


class Coupling(NamedTuple):
    """Crosstalk: see `isr.crosstalk.Entries`."""

    targets: np.ndarray = np.empty(0, np.int64)
    sources: np.ndarray = np.empty(0, np.int64)
    linear: np.ndarray = np.empty(0, np.float32)  # electron/electron
    quadratic: np.ndarray = np.empty(0, np.float32)  # 1/electron
    ceiling: np.ndarray = np.empty(0, np.float32)  # (amplifier,) electron, at which a source is clipped
    others: np.ndarray = _NONE  # (amplifier, y, x) float32, electron, that other CCDs leave; empty if none do


class Terms(NamedTuple):
    """What the corrections of one CCD take, by amplifier in the order of its counts."""

    level: np.ndarray  # (amplifier, y) float32, adu
    noise: np.ndarray  # (amplifier,) float32, adu**2
    gain: np.ndarray  # (amplifier,) float32, electron/adu
    seconds: np.ndarray  # (y,) float32, s, of dark charge
    bias: Plane = Plane()  # adu
    curves: Curves = Curves()
    coupling: Coupling = Coupling()
    registers: Registers = Registers()
    dark: Plane = Plane()  # electron/s


def correct_rows(
    raw: RawFrame, shape: tuple[int, int], steps: Sequence[str], terms: Terms
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trim the counts of a CCD and apply corrections to them.

    Parameters
    ----------
    shape : (ny, nx) of the padded image.
    steps : names of `STEPS`, in the order in which they are applied; those that are absent are left out.
    terms : of these corrections.

    Returns
    -------
    image, variance : (amplifier, y, x) float32, electron if there is a gain, else adu; NaN where there is no data.
    mask : (amplifier, y, x) uint16.
    """
    image, variance = np.empty((2, len(raw.counts), *shape), np.float32)
    mask = np.empty(image.shape, np.uint16)
    boxes = np.array([(a.data.y0, a.data.x0, *a.data.shape) for a in raw.detector.amplifiers])
    numbers = np.array([STEPS.index(step) for step in steps], np.int64)
    _run(raw.counts, boxes, numbers, terms, image, variance, mask, _workspace(len(image), shape[1]))
    return image, variance, mask


def _workspace(n: int, columns: int) -> tuple[np.ndarray, ...]:
    """Values, variance and mask (amplifier, row, x) of rows in work, and scratch; each row begins a cache line.

    A vector that lies across two lines takes twice as long to load.
    """
    shape = n, _ROWS, -(-columns // _LINE) * _LINE
    scratch = _aligned((3, n, shape[1] * shape[2]), np.float32)
    return _aligned(shape, np.float32), _aligned(shape, np.float32), _aligned(shape, np.uint16), scratch


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
    line = np.zeros(bytes_ + 64, np.uint8)
    first = -line.ctypes.data % 64
    return line[first : first + bytes_].view(dtype).reshape(shape)


_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _inline(function):
    """Compile as a part of the kernel that calls it.

    Compiled by itself as well, it would be contracted in two ways, and which of them is called depends on what of
    numba's cache is there.
    """
    return njit(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)


@_inline
def _load(raw, terms, a, y, box, values, variance, mask):
    """Trim rows from number ``y`` on of an amplifier and subtract their levels; what it does not have is NaN."""
    y0, x0, ny, nx = box
    lost, noise, end = np.float32(np.nan), terms.noise[a], values.shape[1]
    for j in range(len(values)):
        if y + j < ny:
            level = terms.level[a, y + j]
            row, into = raw[y0 + y + j, x0 : x0 + nx], values[j]
            for x in range(row.size):
                into[x] = np.float32(row[x]) - level
        first = nx if y + j < ny else 0
        variance[j], mask[j] = noise, 0
        for x in range(first, end):
            values[j, x] = variance[j, x] = lost


@_inline
def _subtract(values, variance, mask, plane, a, y, factors):
    """Subtract ``factors`` (row,) times rows of a plane."""
    image, error, flags = plane.image[plane.places[a]], plane.variance[plane.places[a]], plane.mask[plane.places[a]]
    for j in range(min(len(values), len(image) - y)):
        factor, at = factors[j], y + j
        square = factor * factor
        for x in range(image.shape[1]):
            values[j, x] -= factor * image[at, x]
        for x in range(image.shape[1]):
            variance[j, x] += square * error[at, x]
        for x in range(image.shape[1]):
            mask[j, x] |= flags[at, x]


@_inline
def _multiply(values, factor):
    for x in range(values.size):
        values[x] *= factor


@_inline
def _to_electrons(values, variance, gain, photons):
    """Multiply by the gain and add ``photons`` (0 or 1) times the photon noise; a negative signal has none."""
    square = gain * gain
    for x in range(values.size):
        electrons = values[x] * gain
        values[x] = electrons
        variance[x] = square * variance[x] + photons * (electrons if electrons > 0 else np.float32(0))


@_inline
def _add_photons(values, variance):
    """Add the photon noise of electrons that were not yet those of the light when the gain made them."""
    for x in range(values.size):
        variance[x] += values[x] if values[x] > 0 else np.float32(0)


@_inline
def _counting(steps):
    """The step after which values are the electrons that were counted: the last of gain, bias and linearity.

    Their variance is their own number. Taken sooner, the slope of the linearity would scale it too.
    """
    found = -1
    for step in steps:
        if step == _GAIN or (found >= 0 and step in (_BIAS, _LINEARITY)):
            found = step
    return found


@_inline
def _finish(values, variance, mask, has, image, error, flags):
    """Store a row; what has no value says so, and what says so has none. Beyond its ``has`` pixels is nothing."""
    lost, width = np.float32(np.nan), image.size
    for x in range(has):
        mask[x] |= _NO_DATA if values[x] != values[x] else np.uint16(0)
    for x in range(has, width):
        mask[x] = _NO_DATA
    for x in range(width):
        flags[x] = mask[x]
    for x in range(width):
        image[x] = lost if (mask[x] & _NO_DATA) != 0 else values[x]
    for x in range(width):
        error[x] = lost if (mask[x] & _NO_DATA) != 0 else variance[x]


@_inline
def _one_amplifier(step, counting, terms, scale, a, y, values, variance, mask):
    """Apply a correction to rows of one amplifier; ``scale`` is what made the units of ``values`` of adu."""
    line, noise, flags = values.reshape(-1), variance.reshape(-1), mask.reshape(-1)
    if step == _BIAS:
        _subtract(values, variance, mask, terms.bias, a, y, np.full(len(values), scale))
    elif step == _LINEARITY:
        curves, one = terms.curves, np.float32(1)
        if scale != one:
            _multiply(line, one / scale)
        linearize_row(line, noise, flags, curves.table[a], curves.per_adu[a], curves.ceiling[a], _SUSPECT)
        if scale != one:
            _multiply(line, scale)
    elif step == _GAIN:
        _to_electrons(line, noise, terms.gain[a], np.float32(1 if counting == _GAIN else 0))
    elif step == _DEFERRED:
        own = terms.registers
        for j in range(len(values)):
            restore_row(values[j], own.loss[a], own.first[a], own.offset[a], own.fade[a])
    elif step == _DARK:
        _subtract(values, variance, mask, terms.dark, a, y, terms.seconds[y : y + len(values)])
    if step == counting and step != _GAIN:
        _add_photons(line, noise)


@_inline
def _all_amplifiers(coupling, y, values, variance, mask, scratch):
    """Remove crosstalk from rows of all amplifiers."""
    n, rows, _ = values.shape
    if coupling.others.size:
        for a in range(n):
            for j in range(min(rows, coupling.others.shape[1] - y)):
                row, others = values[a, j], coupling.others[a, y + j]
                for x in range(others.size):
                    row[x] -= others[x]
    lines = values.reshape(n, -1), variance.reshape(n, -1)
    crosstalk_rows(
        *lines, coupling.targets, coupling.sources, coupling.linear, coupling.quadratic,
        scratch, coupling.ceiling, mask.reshape(n, -1), _REACHED,
    )  # fmt: skip


@njit(cache=True, **_OPTIONS)
def _run(counts, boxes, steps, terms, image, variance, mask, work):
    """Correct all rows; boxes (amplifier, 4) are y0, x0, ny, nx of the light-sensitive pixels."""
    n, rows, _ = image.shape
    scale = np.ones(n, np.float32)
    values, error, flags, scratch = work
    cut, counting = len(steps), _counting(steps)
    for i in range(len(steps)):
        cut = i if steps[i] == _CROSSTALK else cut
    for y in range(0, rows, _ROWS):
        for a in range(n):
            scale[a] = 1
            _load(counts[a], terms, a, y, boxes[a], values[a], error[a], flags[a])
            for step in steps[:cut]:
                _one_amplifier(step, counting, terms, scale[a], a, y, values[a], error[a], flags[a])
                scale[a] = terms.gain[a] if step == _GAIN else scale[a]
        if cut < len(steps):
            _all_amplifiers(terms.coupling, y, values, error, flags, scratch)
        for a in range(n):
            for step in steps[cut + 1 :]:
                _one_amplifier(step, counting, terms, scale[a], a, y, values[a], error[a], flags[a])
                scale[a] = terms.gain[a] if step == _GAIN else scale[a]
            for j in range(min(_ROWS, rows - y)):
                has = boxes[a, 3] if y + j < boxes[a, 2] else 0
                _finish(
                    values[a, j], error[a, j], flags[a, j], has, image[a, y + j], variance[a, y + j], mask[a, y + j]
                )
