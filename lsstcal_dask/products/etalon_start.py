"""First thicknesses of silicon and glue: matched filters and unwrapping (Lupton 2016, Sec. 2.9).

A block of pixels sees a fringe pattern in wavelength that is known but for two thicknesses. How much chi2 falls with
each thickness of a grid has many peaks, a fringe apart; the right one is the one that continues those of the
neighbours, because thickness varies slowly: blocks are taken in order of how clear they are, each beside one that is
known (a phase unwrap in all wavelengths at once). Which fringe the whole map is on follows from the sum of all blocks.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.physics.etalon import Cone, Mirrors, Tuning, series
from lsstcal_dask.physics.etalon_table import Line, Span, mean_constant

__all__ = ["Blocks", "Start", "first_thickness", "follow", "polynomials", "projector"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Complex = NDArray[np.complex128]

_SOME: Final = 24  # blocks on which dispersion and cone are searched
_SLOPES: Final = np.linspace(-1e-3, 1e-3, 21)
_BENDS: Final = np.linspace(-2e-4, 2e-4, 5)
_CONES: Final = (0.94, 0.97, 1.0, 1.03)
_SILICON_STEP: Final = 0.01  # um, 1/14 of a fringe
_GLUE_STEP: Final = 0.02  # um, 1/16 of a fringe
_PLANE: Final = 5  # known blocks that make a plane
_SLOW: Final = 6.0  # nm, of what is left out when silicon is searched: brightness and glue
_ORDERS: Final = 8  # fringes by which all blocks together may be off the right one
_TOGETHER: Final = 2048  # blocks whose scores are worked out at a time
_STIFF: Final = 5.0  # chi2 of a block that is a fifth of a fringe off its neighbours, of what its best fringe gains


@dataclass(frozen=True, eq=False)
class Blocks:
    """A scan in wavelength of the blocks of one CCD, as logarithms."""

    line: Line
    value: Floats  # (wavelength, block) logarithm of the response
    weight: Floats  # (wavelength,) 1 / variance for a whole block
    share: Floats  # (block,) part of its pixels that are good
    shape: tuple[int, int]  # blocks along y and x
    centre: tuple[Floats, Floats]  # (block,) y and x of their middles, px
    size: tuple[int, int]  # of the CCD along y and x, px


@dataclass(frozen=True, eq=False)
class Start:
    """Where the fit begins."""

    silicon: Floats  # (block,) um
    glue: Floats  # (block,) um
    tuning: Tuning


def polynomials(wavelength: Floats, degree: int) -> Floats:
    """Legendre polynomials (wavelength, degree + 1) over the scan."""
    middle, half = (wavelength.max() + wavelength.min()) / 2, np.ptp(wavelength) / 2
    return np.polynomial.legendre.legvander((wavelength - middle) / half, degree)


def projector(weight: Floats, columns: Floats) -> Floats:
    """Metric (n, n) of residuals with ``columns`` fitted freely: ``W - W V (V' W V)**-1 V' W``."""
    scaled = columns * np.sqrt(weight)[:, None]
    q = np.linalg.qr(scaled)[0] * np.sqrt(weight)[:, None]
    return np.diag(weight) - q @ q.T


def _levelled(blocks: Blocks, degree: int) -> Floats:
    """Values less the smooth curve of the CCD, a polynomial through the mean of its blocks."""
    columns, root = polynomials(blocks.line.wavelength, degree), np.sqrt(blocks.weight)
    mean = blocks.value @ blocks.share / blocks.share.sum()
    fitted = np.linalg.lstsq(columns * root[:, None], mean * root, rcond=None)[0]
    return np.asarray(blocks.value - (columns @ fitted)[:, None])


def follow(score: Floats | Singles, grid: Floats, fringe: float, shape: tuple[int, int]) -> Floats:
    """Thickness of each block on the branch that continues its neighbours.

    Parameters
    ----------
    score : (block, grid) by how much chi2 falls.
    grid : (n,) um.
    fringe : um of thickness.
    shape : blocks along y and x.

    Returns
    -------
    (block,) um.
    """
    count = len(score)
    best = score.max(axis=1)
    first = int(np.argmax(best))
    total = score.sum(axis=0)
    width = max(1, int(fringe / (grid[1] - grid[0])))
    allowed = np.abs(np.arange(len(grid)) - int(np.argmax(_smooth(total, width)))) <= 4 * width
    found = np.full(count, np.nan)
    queue: list[tuple[float, int, float]] = []

    def settle(block: int, value: float) -> None:
        found[block] = value
        y, x = divmod(block, shape[1])
        for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= j < shape[0] and 0 <= i < shape[1] and np.isnan(found[j * shape[1] + i]):
                heapq.heappush(queue, (-best[j * shape[1] + i], j * shape[1] + i, value))

    settle(first, float(grid[np.argmax(np.where(allowed, score[first], -np.inf))]))
    while queue:
        _, block, _ = heapq.heappop(queue)
        if np.isnan(found[block]):
            near = _beside(found, block, shape)
            tension = _STIFF * max(best[block], 1.0) * ((grid - near) / fringe) ** 2
            settle(block, float(grid[np.argmax(score[block] - tension)]))
    return found + _order(score, grid, found, fringe)


def _order(score: Floats | Singles, grid: Floats, found: Floats, fringe: float) -> float:
    """By how much to move all blocks, whole fringes, so that the sum of their scores is largest."""
    moves = fringe * np.arange(-_ORDERS, _ORDERS + 1)
    at = np.rint((found + moves[:, None] - grid[0]) / (grid[1] - grid[0])).astype(int)
    inside = (at >= 0) & (at < len(grid))
    total = np.where(inside, score[np.arange(len(found)), np.where(inside, at, 0)], 0.0).sum(axis=1)
    return float(moves[np.argmax(total)])


def _smooth(total: Floats, width: int) -> Floats:
    return np.convolve(total, np.hanning(2 * width + 3), mode="same")


def _beside(found: Floats, block: int, shape: tuple[int, int]) -> float:
    """What a plane through the known blocks within three of this one has there; their mean if they are few."""
    y, x = divmod(block, shape[1])
    first = max(y - 3, 0), max(x - 3, 0)
    around = found.reshape(shape)[first[0] : y + 4, first[1] : x + 4]
    known = np.argwhere(np.isfinite(around))
    values = around[tuple(known.T)]
    away = known + first - np.array([y, x])
    if len(values) < _PLANE or min(np.ptp(away, axis=0)) == 0:
        near = np.abs(away).max(axis=1) == np.abs(away).max(axis=1).min()
        return float(values[near].mean())
    weight = np.exp(-np.sum(away**2, axis=1) / 8)
    columns = np.column_stack([np.ones(len(away)), away]) * weight[:, None]
    return float(np.linalg.lstsq(columns, values * weight, rcond=None)[0][0])


def first_thickness(blocks: Blocks, span: Span, cone: Cone, mirrors: Mirrors, smooth: int) -> Start:
    """Find thicknesses of all blocks, and the tuning of dispersion and cone, by search.

    Parameters
    ----------
    span : in which thicknesses are searched.
    smooth : degree of the polynomial in wavelength that the CCD follows without fringes.
    """
    residual = _levelled(blocks, smooth)
    metric = projector(blocks.weight, polynomials(blocks.line.wavelength, 2))
    glue, left = _glue(residual, metric, blocks, span, cone, mirrors)
    some = np.argsort(-blocks.share, kind="stable")[:: max(1, len(blocks.share) // _SOME)]
    grid, nm = np.arange(*span.silicon, _SILICON_STEP), blocks.line.wavelength
    quick = projector(blocks.weight, polynomials(nm, min(int(np.ptp(nm) / _SLOW), len(nm) // 3)))
    weighted = quick @ left
    tunings = [Tuning(cone=width) for width in _CONES]
    phasors = [_phasor(blocks.line, span, glue[some], cone, mirrors, tried) for tried in tunings]
    found: list[tuple[float, Tuning]] = []
    for slope, bend in product(_SLOPES, _BENDS):
        law = float(slope), float(bend)
        turn = np.exp(1j * np.outer(_waves(blocks.line, cone, mirrors, Tuning(dispersion=law)), grid))
        found += [
            (float(_score(weighted[:, some], one, quick, turn).max(axis=1).sum()), replace(tried, dispersion=law))
            for tried, one in zip(tunings, phasors, strict=True)
        ]
    tuning = max(found, key=lambda pair: pair[0])[1]
    wave = _waves(blocks.line, cone, mirrors, tuning)
    terms, turn = _phasor(blocks.line, span, glue, cone, mirrors, tuning), np.exp(1j * np.outer(wave, grid))
    score = _by_block(lambda at: _score(weighted[:, at], terms[:, at], quick, turn), blocks.share, len(grid))
    fringe = 2 * np.pi / float(wave.mean())
    return Start(follow(score, grid, fringe, blocks.shape), glue, tuning)


def _by_block(score: Callable[[slice], Floats], share: Floats, count: int) -> Singles:
    """Scores (block, grid), some blocks at a time; 0 of those without a good pixel."""
    found = np.empty((len(share), count), np.float32)
    for first in range(0, len(share), _TOGETHER):
        at = slice(first, first + _TOGETHER)
        found[at] = score(at) * (share[at] > 0)[:, None]
    return found


def _glue(
    residual: Floats, metric: Floats, blocks: Blocks, span: Span, cone: Cone, mirrors: Mirrors
) -> tuple[Floats, Floats]:
    """Thickness (block,) of the glue, and residuals less its fringes."""
    grid, nm = np.arange(*span.glue, _GLUE_STEP), blocks.line.wavelength
    constant = series(nm[:, None], np.mean(span.silicon), grid, cone, mirrors, Tuning(), orders=0).constant
    template = np.log(constant / mean_constant(blocks.line, span, cone, mirrors, Tuning())[:, None])
    heavy = metric @ template
    power = np.einsum("lg,lg->g", template, heavy)
    score = _by_block(lambda some: np.maximum(residual[:, some].T @ heavy, 0) ** 2 / power, blocks.share, len(grid))
    found = follow(score, grid, float(nm.mean()) / 2e3 / mirrors.glue, blocks.shape)
    at = np.clip(np.rint((found - grid[0]) / _GLUE_STEP).astype(int), 0, len(grid) - 1)
    part = np.einsum("lb,lb->", residual, heavy[:, at]) / np.sum(power[at])
    return found, residual - part * template[:, at]


def _phasor(line: Line, span: Span, glue: Floats, cone: Cone, mirrors: Mirrors, tuning: Tuning) -> Complex:
    """First harmonic (wavelength, block) over the smooth response, for silicon of the middle of the span."""
    nodes = np.linspace(glue.min() - 0.01, glue.max() + 0.01, int(np.ptp(glue) / 0.01) + 3)
    terms = series(
        line.wavelength[:, None],
        np.mean(span.silicon),
        nodes,
        cone,
        mirrors,
        tuning,
        line.width[:, None],
        line.shape,
        1,
    )
    values = terms.harmonics[0] / mean_constant(line, span, cone, mirrors, tuning)[:, None]
    at = np.clip(np.rint((glue - nodes[0]) / (nodes[1] - nodes[0])).astype(int), 0, len(nodes) - 1)
    return np.asarray(values[:, at])


def _waves(line: Line, cone: Cone, mirrors: Mirrors, tuning: Tuning) -> Floats:
    return series(line.wavelength, 100.0, 14.0, cone, mirrors, tuning, orders=0).wave


def _score(weighted: Floats, phasor: Complex, metric: Floats, turn: Complex) -> Floats:
    """By how much chi2 falls (block, grid) with the fringes of silicon of each thickness, of free strength.

    ``turn`` (wavelength, grid) is the phase of a round trip.
    """
    match = ((weighted * phasor).T @ turn).real
    power = np.diag(metric) @ (np.abs(phasor) ** 2) / 2
    return np.asarray(np.maximum(match, 0) ** 2 / power[:, None])
