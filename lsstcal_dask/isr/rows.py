# mypy: allow-untyped-defs
"""The corrections that act on rows, in one pass over the pixels of a CCD (Lupton 2016, Secs. 3.1 to 3.4).

All amplifiers of a CCD read their pixels in step, so the rows of one number, of every amplifier, are all that a
correction up to the dark wants to see at once. They stay in the nearest cache while one correction after the other
goes over them in the order given, and memory is read and written once, whatever their number.

With the bias subtracted, L the linearity, g the gain, C the crosstalk, R what brings late charge back, D the dark:

    image = R (1 + C)**-1 g L(counts - level - bias) - D t(y)

The variance begins with the read noise, takes the photon noise where the gain makes electrons, and the square of
each slope on the way; those of bias and dark are added.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

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

    table: np.ndarray = np.empty((0, 0), np.float32)  # (amplifier, cell + 1) float32, adu
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
    _run(raw.counts, boxes, numbers, terms, image, variance, mask)
    return image, variance, mask


def _inline(function):
    return njit(function, nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_inline
def _load(counts, level, noise, values, variance, mask):
    """Trim a row and subtract its level."""
    for x in range(values.size):
        values[x] = np.float32(counts[x]) - level
        variance[x] = noise
        mask[x] = 0


@_inline
def _subtract(values, variance, mask, plane, a, y, factor):
    """Subtract ``factor`` times a row of a plane."""
    place, nx, square = plane.places[a], values.size, factor * factor
    image, error, flags = plane.image[place, y, :nx], plane.variance[place, y, :nx], plane.mask[place, y, :nx]
    for x in range(values.size):
        values[x] -= factor * image[x]
        variance[x] += square * error[x]
        mask[x] |= flags[x]


@_inline
def _multiply(values, factor):
    for x in range(values.size):
        values[x] *= factor


@_inline
def _to_electrons(values, variance, gain):
    """Multiply by the gain and add the photon noise of the electrons; a negative signal has none."""
    square = gain * gain
    for x in range(values.size):
        electrons = values[x] * gain
        values[x] = electrons
        variance[x] = square * variance[x] + (electrons if electrons > 0 else np.float32(0))


@_inline
def _finish(values, variance, mask, image, error, flags):
    """Store a row; what has no value says so, and what says so has none."""
    for x in range(values.size):
        lost = (mask[x] & _NO_DATA) != 0 or values[x] != values[x]
        flags[x] = mask[x] | _NO_DATA if lost else mask[x]
        image[x] = np.float32(np.nan) if lost else values[x]
        error[x] = np.float32(np.nan) if lost else variance[x]


@_inline
def _one_row(step, terms, scale, a, y, values, variance, mask):
    """Apply a correction that looks at one amplifier; ``scale`` is what made the units of ``values`` of adu."""
    if step == _BIAS:
        _subtract(values, variance, mask, terms.bias, a, y, scale)
    elif step == _LINEARITY:
        curves, one = terms.curves, np.float32(1)
        if scale != one:
            _multiply(values, one / scale)
        linearize_row(values, variance, mask, curves.table[a], curves.per_adu[a], curves.ceiling[a], _SUSPECT)
        if scale != one:
            _multiply(values, scale)
    elif step == _GAIN:
        _to_electrons(values, variance, terms.gain[a])
    elif step == _DEFERRED:
        own = terms.registers
        restore_row(values, own.loss[a], own.first[a], own.offset[a], own.fade[a])
    elif step == _DARK:
        _subtract(values, variance, mask, terms.dark, a, y, terms.seconds[y])


@_inline
def _all_amplifiers(coupling, y, values, variance, mask, scratch):
    """Remove crosstalk from the rows of all amplifiers."""
    if coupling.others.size:
        for a in range(len(values)):
            row, others = values[a], coupling.others[a, y]
            for x in range(row.size):
                row[x] -= others[x]
    crosstalk_rows(
        values, variance, coupling.targets, coupling.sources, coupling.linear, coupling.quadratic,
        scratch, coupling.ceiling, mask, _REACHED,
    )  # fmt: skip


@_inline
def _run(counts, boxes, steps, terms, image, variance, mask):
    """Correct all rows; boxes (amplifier, 4) are y0, x0, ny, nx of the light-sensitive pixels."""
    n, rows, columns = image.shape
    scale = np.ones(n, np.float32)
    values, error, flags = np.empty((n, columns), np.float32), np.empty((n, columns), np.float32), mask[:, 0, :].copy()
    scratch = np.empty((3, n, columns), np.float32)
    for y in range(rows):
        scale[:], values[:], error[:], flags[:] = 1, np.nan, np.nan, _NO_DATA
        for a in range(n):
            y0, x0, ny, nx = boxes[a]
            if y < ny:
                row = counts[a, y0 + y, x0 : x0 + nx]
                _load(row, terms.level[a, y], terms.noise[a], values[a, :nx], error[a, :nx], flags[a, :nx])
        for step in steps:
            if step == _CROSSTALK:
                _all_amplifiers(terms.coupling, y, values, error, flags, scratch)
                continue
            for a in range(n):
                nx = boxes[a, 3] if y < boxes[a, 2] else 0
                _one_row(step, terms, scale[a], a, y, values[a, :nx], error[a, :nx], flags[a, :nx])
                scale[a] = terms.gain[a] if step == _GAIN else scale[a]
        for a in range(n):
            _finish(values[a], error[a], flags[a], image[a, y], variance[a, y], mask[a, y])
