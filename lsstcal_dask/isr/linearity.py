"""Non-linearity of each readout channel: the law of its curve, and its correction (Lupton 2016, Secs. 2.3, 3.2; §2).

The curve of an amplifier is a list of nodes ``(level, correction)`` in adu above the bias, from (0, 0) up:

    true = measured + S(measured)

with S the Akima spline through the nodes, zero at and below 0 adu and frozen beyond the last node: nothing is
extrapolated. Its slope at zero is zero, so the gain keeps its meaning (L'(0) = 1).

`Curve` is that law and `linearize` applies it, both as plain as can be. `Tables` are the same curve at evenly spaced
levels, with straight lines between, for `linearize_row`, which costs a small part of the time.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import xarray as xr
from numba import njit
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry

__all__ = ["Curve", "Tables", "curve", "linearize", "linearize_row", "measured_signal", "tables"]

ACCURACY: Final = 1e-3
"""adu, by which a table may be off the spline."""

_WIDEST: Final = 32.0  # adu, cells of a table
_NARROWEST: Final = 0.25  # adu: a curve that needs narrower ones has nodes on top of each other
_INVERSE_STEPS: Final = 100


@dataclass(frozen=True, eq=False)
class Curve:
    """S of one amplifier: ``curve(measured)`` in adu, of any shape."""

    level: np.ndarray  # (node,) float64, adu, ascending from 0
    correction: np.ndarray  # (node,) float64, adu, 0 at first

    @cached_property
    def spline(self) -> Akima1DInterpolator:
        """S between the first and the last node."""
        return Akima1DInterpolator(self.level, self.correction, method="akima")

    def __call__(self, measured: Any) -> np.ndarray:
        """True less measured signal, adu."""
        return np.asarray(self.spline(np.clip(np.asarray(measured, np.float64), 0.0, self.level[-1])))

    def slope(self, measured: Any) -> np.ndarray:
        """dS/dm; zero where the curve is constant."""
        measured = np.asarray(measured, np.float64)
        inside = (measured > 0) & (measured < self.level[-1])
        return np.where(inside, self.spline(np.clip(measured, 0.0, self.level[-1]), nu=1), 0.0)


def curve(level: Any, correction: Any, who: str = "") -> Curve:
    """Curve of one amplifier from its nodes.

    Parameters
    ----------
    level, correction : (node,) adu, padded with NaN at the end.
    who : detector and amplifier, for the message.

    Raises
    ------
    CalibrationError
        Fewer than three nodes, or they do not ascend from (0, 0).
    """
    level, correction = np.asarray(level, np.float64), np.asarray(correction, np.float64)
    known = np.isfinite(level) & np.isfinite(correction)
    level, correction = level[known], correction[known]
    if len(level) < 3 or level[0] != 0 or correction[0] != 0 or np.any(np.diff(level) <= 0):
        raise CalibrationError(
            f"{who or 'curve'}: a linearity curve needs three nodes or more that ascend from level 0, correction 0: "
            f"build linearity again"
        )
    return Curve(level, correction)


def measured_signal(curve: Curve, true: Any) -> np.ndarray:
    """Measured signal of a true one: the inverse of ``m + S(m)``.

    The fixed point of ``m = true - S(m)``, whose error shrinks by |S'| at every step.

    Parameters
    ----------
    true : adu, any shape.

    Raises
    ------
    CalibrationError
        The curve is so steep that it has no inverse (|S'| near 1).
    """
    true = np.asarray(true, np.float64)
    found = true.copy()
    for _ in range(_INVERSE_STEPS):
        last, found = found, true - curve(found)
        if np.all(np.abs(found - last) <= 1e-13 * np.abs(true) + 1e-10):
            return found
    raise CalibrationError("a linearity curve has no inverse: its correction changes as fast as the signal")


@dataclass(frozen=True, eq=False)
class Tables:
    """Curves of the amplifiers of a CCD at the levels ``0, 1 / per_adu, 2 / per_adu ...``; NaN without a curve.

    The last node, where a curve breaks off to stay what it is, lies on the edge of a cell.

    Straight between them it is within `ACCURACY` of the spline, of which float32 takes 1e-4 adu.
    """

    table: np.ndarray  # (amplifier, cell, 2) float32, adu: S where a cell begins, and its step to the next
    per_adu: np.ndarray  # (amplifier,) float32, cells per adu
    ceiling: np.ndarray  # (amplifier,) float32, adu of measured signal; NaN without a curve


def tables(product: xr.Dataset, accuracy: float = ACCURACY) -> Tables:
    """Tables of the curves of one CCD, their cells as wide as ``accuracy`` allows, as many for every amplifier.

    Parameters
    ----------
    product : ``linearity_level`` and ``linearity_correction`` (amplifier, node), ``linearity_ceiling`` (amplifier,).
    accuracy : adu.

    Raises
    ------
    CalibrationError
        A curve bends too sharply for any table.
    """
    curves = _curves(product)
    top = max((one.level[-1] for one in curves if one is not None), default=0.0)
    cells = max([1, int(np.ceil(top / _WIDEST)), *(_cells(one, accuracy) for one in curves if one is not None)])
    if cells > 1 and cells * _NARROWEST > top:
        raise CalibrationError("a linearity curve bends too sharply: its nodes nearly coincide: build it again")
    ends = np.array([top if one is None else one.level[-1] for one in curves])
    level = ends[:, None] / cells * np.arange(cells + 2)  # the last cell is level: the slope there is zero
    rows = [np.full(cells + 2, np.nan) if one is None else one(at) for one, at in zip(curves, level, strict=True)]
    nodes = np.array(rows, np.float32).reshape(len(curves), -1)
    ceiling = product["linearity_ceiling"].values.astype(np.float32)
    pairs = np.stack([nodes[:, :-1], np.diff(nodes, axis=1)], axis=-1)
    return Tables(pairs, (cells / ends).astype(np.float32), ceiling)


def _curves(product: xr.Dataset) -> list[Curve | None]:
    """Curve of each amplifier; None for one without."""
    level, correction = product["linearity_level"].values, product["linearity_correction"].values
    names = product["amplifier"].values if "amplifier" in product.coords else range(len(level))
    return [
        curve(a, b, f"amplifier {name}") if np.isfinite(a).any() else None
        for name, a, b in zip(names, level, correction, strict=True)
    ]


def _cells(one: Curve, accuracy: float) -> int:
    """Cells of width w that keep straight lines within ``accuracy`` of the spline: they are off by w**2 |S''| / 8."""
    third, second = one.spline.c[:2]  # of the powers 3 and 2 in each interval, over which S'' is straight
    bend = np.abs([2 * second, 2 * second + 6 * third * np.diff(one.level)]).max()
    return int(np.ceil(one.level[-1] * np.sqrt(bend / (8 * 0.9 * accuracy))))


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"}, forceinline=True)
def linearize_row(values, variance, mask, table_row, per_adu, ceiling, suspect_bit):  # type: ignore[no-untyped-def]
    """Correct one row of one amplifier in place: ``values += S``, ``variance *= (1 + S')**2``.

    values, variance (x,) float32, adu and adu**2; mask (x,) uint16, which gains ``suspect_bit`` where the measured
    value is above ``ceiling``; table_row (cell, 2) float32; per_adu, ceiling float32. NaN stays NaN.

    The look-up, which no processor does abreast, stands alone so that everything else is done in vectors: the two
    numbers of a cell are moved as one of 64 bits.
    """
    n, one, zero = len(values), np.float32(1), np.float32(0)
    end = np.float32(len(table_row) - 1)  # the last cell is level: where it begins all stays as it is
    flag, none = np.uint16(suspect_bit), np.uint16(0)
    cells, cell, found = table_row.reshape(-1).view(np.int64), np.empty(n, np.int32), np.empty(n, np.int64)
    for x in range(n):
        node = values[x] * per_adu
        node = node if node > zero else zero
        cell[x] = np.int32(node if node < end else end)
    for x in range(n):
        found[x] = cells[np.uint32(cell[x])]
    pair = found.view(np.float32)
    for x in range(n):
        mask[x] |= flag if values[x] > ceiling else none
    for x in range(n):
        node = values[x] * per_adu
        node = node if node > zero else zero
        shift = (node if node < end else end) - np.float32(cell[x])
        grown = one + pair[2 * x + 1] * per_adu
        values[x] += pair[2 * x] + shift * pair[2 * x + 1]
        variance[x] *= grown * grown


def linearize(images: np.ndarray, product: xr.Dataset) -> np.ndarray:
    """Add S to the images of one CCD, straight from the splines.

    Parameters
    ----------
    images : (amplifier, y, x) adu above the bias, in the order of ``product``.
    product : of this CCD, see `tables`.

    Returns
    -------
    As ``images``, of the same dtype; NaN where an amplifier has no curve.

    Raises
    ------
    InconsistentGeometry
        Images and product have different numbers of amplifiers.
    """
    curves = _curves(product)
    if len(images) != len(curves):
        raise InconsistentGeometry(f"{len(images)} images for {len(curves)} linearity curves: give one to each")
    out = np.full_like(images, np.nan)
    for image, one, into in zip(images, curves, out, strict=True):
        if one is not None:
            into[...] = image + one(image)
    return out
