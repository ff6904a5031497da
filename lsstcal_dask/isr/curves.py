"""Penalised cubic splines through the means of rows."""

from functools import lru_cache

import numpy as np
from numba import njit
from scipy.interpolate import BSpline

__all__ = ["basis", "curve", "spline"]


@lru_cache(maxsize=8)
def basis(ny: int, spacing: int, start: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cubic B-splines: the four that reach each row (ny, 4) and the first of them (ny,).

    And, for all of them, the matrix of least squares with unit weights and their roughness, (nb, nb) each.
    With ``start``, knots are denser at the first rows, where amplifiers settle.
    """
    inner = [k for k in (3, 8, 20, 50) if start and k < min(spacing, ny / 2)]
    inner += list(np.linspace(0, ny - 1, max(2, round(ny / spacing) + 1))[1:-1])
    knots = np.concatenate([[0.0] * 4, inner, [float(ny - 1)] * 4])
    design = BSpline.design_matrix(np.arange(ny, dtype=float), knots, 3)
    second = np.diff(np.eye(design.shape[1]), 2, axis=0)
    first = design.indices.reshape(ny, 4)[:, 0].astype(np.int64)
    return design.data.reshape(ny, 4), first, (design.T @ design).toarray(), second.T @ second


@njit(nogil=True, cache=True)
def _add_four(line, at, a, b, c, d):  # type: ignore[no-untyped-def]
    """Add four numbers to a line, from a place on."""
    line[at] += a
    line[at + 1] += b
    line[at + 2] += c
    line[at + 3] += d


@njit(nogil=True, cache=True)
def _normal_equations(mean, weight, local, first, unit):  # type: ignore[no-untyped-def]
    """Matrix (n, nb, nb) and right side (n, nb) of the least squares through the row means.

    Nearly all rows of a frame have one weight: the matrix is that of equal weights, mended where they differ.
    """
    (n, ny), nb = mean.shape, len(unit)
    matrix, right = np.empty((n, nb, nb)), np.zeros((n, nb))
    for i in range(n):
        common = weight[i, 0]
        for y in range(ny):  # loops, for expressions of arrays take seconds to compile
            common = max(common, weight[i, y])
        for a in range(nb):
            for b in range(nb):
                matrix[i, a, b] = common * unit[a, b]
        here, r0, r1, r2, r3 = first[0], 0.0, 0.0, 0.0, 0.0  # in registers for the rows between two knots
        for y in range(ny):
            f, part = first[y], weight[i, y] * mean[i, y]
            if f != here:
                _add_four(right[i], here, r0, r1, r2, r3)
                here, r0, r1, r2, r3 = f, 0.0, 0.0, 0.0, 0.0
            r0 += part * local[y, 0]
            r1 += part * local[y, 1]
            r2 += part * local[y, 2]
            r3 += part * local[y, 3]
            change = weight[i, y] - common
            if change != 0:
                for a in range(4):
                    for b in range(4):
                        matrix[i, f + a, f + b] += change * local[y, a] * local[y, b]
        _add_four(right[i], here, r0, r1, r2, r3)
    return matrix, right


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _values(coefficients, local, first):  # type: ignore[no-untyped-def]
    """Values (n, y) of splines with these coefficients (n, nb)."""
    n, ny = len(coefficients), len(local)
    value = np.empty((n, ny))
    for i in range(n):
        for y in range(ny):
            here = 0.0
            for a in range(4):
                here += local[y, a] * coefficients[i, first[y] + a]
            value[i, y] = here
    return value


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _variances(covariance, local, first):  # type: ignore[no-untyped-def]
    """Variances (n, y) of splines whose coefficients have this covariance (n, nb, nb)."""
    n, ny = len(covariance), len(local)
    variance = np.empty((n, ny))
    for i in range(n):
        for y in range(ny):
            here = 0.0
            for a in range(4):
                here += local[y, a] ** 2 * covariance[i, first[y] + a, first[y] + a]
                for b in range(a):
                    here += 2 * local[y, a] * local[y, b] * covariance[i, first[y] + a, first[y] + b]
            variance[i, y] = here
    return variance


def _equations(mean: np.ndarray, weight: np.ndarray, spacing: int, start: bool) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations, with the penalty: matrix (n, nb, nb) and right side (n, nb)."""
    local, first, unit, rough = basis(mean.shape[1], spacing, start)
    normal, right = _normal_equations(mean, weight, local, first, unit)
    # A penalty a thousandth of the data's weight only bridges rows that have none.
    strength = 1e-3 * np.trace(normal, axis1=1, axis2=2) / len(rough) + 1e-300
    return normal + strength[:, None, None] * rough, right


def curve(mean: np.ndarray, weight: np.ndarray, spacing: int, start: bool = True) -> np.ndarray:
    """Values (n, y) of the penalised weighted spline through the row means (n, y).

    Without ``start``, of rows fewer than the spacing it is their weighted mean: four parameters would take
    from them what a smoother tells better from noise.
    """
    if not start and mean.shape[1] < spacing:
        return _constant(mean, weight)[0]
    matrix, right = _equations(mean, weight, spacing, start)
    local, first, _, _ = basis(mean.shape[1], spacing, start)
    return np.asarray(_values(np.linalg.solve(matrix, right[:, :, None])[:, :, 0], local, first))


def spline(
    mean: np.ndarray, weight: np.ndarray, spacing: int, start: bool = True
) -> tuple[np.ndarray, np.ndarray, int]:
    """That spline, its variance (n, y) if the weights are inverse variances, and its degrees of freedom."""
    if not start and mean.shape[1] < spacing:
        return *_constant(mean, weight), 1
    matrix, right = _equations(mean, weight, spacing, start)
    local, first, _, _ = basis(mean.shape[1], spacing, start)
    inverse = np.linalg.inv(matrix)
    value = _values(np.einsum("nbc,nc->nb", inverse, right), local, first)
    return value, _variances(inverse, local, first), matrix.shape[-1]


def _constant(mean: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (n, y) of the rows, and its variance (n, y)."""
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    value = (mean * weight).sum(axis=1, keepdims=True) / total
    return np.broadcast_to(value, mean.shape), np.broadcast_to(1 / total, mean.shape)
