"""How each frame differs from the combination: its level, and whether it belongs there (Lupton 2016, Sec. 2.1)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lsstcal_dask.products.exposures import Exposures
from lsstcal_dask.statistics.robust import row_medians
from lsstcal_dask.statistics.stacks import lines
from lsstcal_dask.statistics.vectors import (
    LANES,
    VERSION,
    choose,
    compiled,
    fetch,
    get,
    inlined,
    load_counts,
    put,
    spread,
)

__all__ = ["Residuals", "frame_levels", "misfits", "residual_blocks"]

_BLOCK: Final = 32  # pixels on a side of the blocks in which a frame's structure is compared
_SAMPLE: Final = 1024  # pixels whose median is the level of a frame, to a twenty-fifth of their noise


@dataclass(frozen=True)
class Residuals:
    """Frames less their combination, in blocks; adu."""

    blocks: np.ndarray  # (n, by, bx) mean of the pixels of a block, outliers cut
    pixels: np.ndarray  # (by, bx) pixels of a block
    sigma: np.ndarray  # (n,) noise of a pixel


@inlined
def _cut(flat, at, level, plane, value, p, factor, limit):  # type: ignore[no-untyped-def]
    """Residuals of a vector of pixels, cut to the limit on both sides."""
    residual = load_counts(flat, at) - level
    if plane.size:
        residual = residual - get(plane, p)
    residual = residual - get(value, p) * factor
    low = spread(np.float32(0)) - limit
    residual = choose(low < residual, residual, low)
    return choose(residual < limit, residual, limit)


def _compile(version: int) -> Any:
    """Give the kernel; its cache on disk notices another ``version`` of its parts, being a closure of it."""

    @compiled
    def sums(flat, starts, step, shape, offset, plane, value, inverse, limits):  # type: ignore[no-untyped-def]
        """Sum the residuals (n, by, bx) of each frame in each block."""
        _ = version
        (ny, nx), n = shape, len(starts)
        total = np.zeros((n, (ny + _BLOCK - 1) // _BLOCK, (nx + _BLOCK - 1) // _BLOCK), np.float32)
        columns = np.empty(nx, np.float32)
        for b in range(total.shape[1]):  # what is common to the exposures stays in the cache
            y0, end = b * _BLOCK, min((b + 1) * _BLOCK, ny)
            for i in range(n):
                factor, limit = spread(inverse[i]), spread(limits[i])
                ahead = np.uint64(starts[i + 1] - starts[i] if i + 1 < n else starts[0] + _BLOCK * step - starts[i])
                for x0 in range(0, nx, _BLOCK):
                    x = min(x0, nx - _BLOCK)  # the last columns once more, rather than pixels beyond
                    left, right = spread(np.float32(0)), spread(np.float32(0))
                    for y in range(y0, end):
                        at, p, level = np.uint64(starts[i] + y * step + x), np.uint64(y * nx + x), spread(offset[i, y])
                        fetch(flat, at + ahead)
                        fetch(flat, at + ahead + np.uint64(LANES))
                        left += _cut(flat, at, level, plane, value, p, factor, limit)
                        at, p = at + np.uint64(LANES), p + np.uint64(LANES)
                        right += _cut(flat, at, level, plane, value, p, factor, limit)
                    put(columns, np.uint64(x), left)
                    put(columns, np.uint64(x + LANES), right)
                for x in range(nx):
                    total[i, b, x // _BLOCK] += columns[x]
        return total

    return sums


_sums = _compile(VERSION)


def _block_means(
    counts: np.ndarray,
    corner: tuple[int, int],
    offset: np.ndarray,
    plane: np.ndarray,
    value: np.ndarray,
    inverse: np.ndarray,
    limits: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean residual (n, by, bx) in adu of each frame against ``value * inverse``, and pixels per block (by, bx).

    ``counts`` are raw, and ``corner`` is where the data begin in them. Residuals are cut to
    ``limits``: one cosmic ray moves a block by next to nothing, a change of the whole block still shows.
    The rows of a block are added column by column, a vector of columns at a time.
    """
    ny, nx = value.shape
    rows, columns = (np.arange(0, size, _BLOCK) for size in (ny, nx))
    pixels = np.outer(np.minimum(_BLOCK, ny - rows), np.minimum(_BLOCK, nx - columns)).astype(np.float32)
    data = counts[:, corner[0] : corner[0] + ny, corner[1] : corner[1] + nx]
    if nx < _BLOCK:  # narrower than the vectors
        residual = data - offset[:, :, None] - plane - value * inverse[:, None, None]
        cut = np.clip(residual, -limits[:, None, None], limits[:, None, None]).sum(axis=2, keepdims=True)
        return np.add.reduceat(cut, rows, axis=1) / pixels, pixels
    flat, starts, step = lines(data)
    plane = plane.reshape(-1) if plane.shape == value.shape else np.empty(0, np.float32)
    return _sums(flat, starts, step, (ny, nx), offset, plane, value.reshape(-1), inverse, limits) / pixels, pixels


@lru_cache(maxsize=8)
def _sample(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `_SAMPLE` pixels all over an image, in runs that are fetched from memory as one."""
    ny, nx = shape
    run = min(16, nx)
    place = np.arange(max(_SAMPLE // run, 1))
    rows = (place + 0.5) / len(place) * ny
    columns = place * 0.618034 % 1 * (nx - run + 1)
    return np.repeat(rows.astype(int), run), (columns.astype(int)[:, None] + np.arange(run)).reshape(-1)


def residual_blocks(exposures: Exposures, value: np.ndarray) -> Residuals:
    """Mean of each block of each frame less the combined ``value`` (y, x; unit of the product), adu."""
    levels, noise, transform = exposures.levels, exposures.noise, exposures.transform
    value = np.nan_to_num(value) if np.isnan(value.sum()) else value
    plane = np.zeros((1, value.shape[1]), np.float32) if transform.plane is None else transform.plane
    inverse = (1 / transform.scale).astype(np.float32)
    offset = np.nan_to_num(levels.level) if np.isnan(levels.level.sum()) else levels.level
    data, box = exposures.data, exposures.amplifier.data
    some = _sample(value.shape)
    base, signal = np.broadcast_to(plane, value.shape)[some], value[some]
    # A frame off as a whole must not lose its pixels to the limits.
    residual = data[:, *some] - offset[:, some[0]] - (base + signal * inverse[:, None])
    centre = row_medians(residual).astype(np.float32)
    typical = max(float(np.median(signal)), 0.0) * inverse / np.float32(transform.gain)
    limits = (6 * np.sqrt(np.nan_to_num(noise) ** 2 + typical)).astype(np.float32)
    blocks, counted = _block_means(
        exposures.counts, (box.y0, box.x0), offset + centre[:, None], plane, value, inverse, limits
    )
    return Residuals(blocks + centre[:, None, None], counted, limits / 6)


def misfits(exposures: Exposures, residuals: Residuals, reject: float) -> dict[int, str]:
    """Frames that do not belong with the others, with the reason."""
    return _odd_structure(exposures, residuals, reject) | _odd_levels(exposures, residuals, reject)


def _odd_structure(exposures: Exposures, residuals: Residuals, reject: float) -> dict[int, str]:
    """Frames whose two-dimensional structure is unlike the others'."""
    blocks = residuals.blocks
    if len(blocks) < 3:
        return {}
    flat, noise2 = blocks.reshape(len(blocks), -1), np.maximum(residuals.sigma[:, None], 1e-3) ** 2
    variance = noise2 / residuals.pixels.reshape(-1) + np.nan_to_num(exposures.row_variance)[:, None]
    off = flat - flat.mean(axis=1, keepdims=True)
    chi2 = (off * off / variance).mean(axis=1)
    freedom = max(flat.shape[1] - 1, 1)
    # Pattern noise common to all frames raises their chi2 and its scatter: judge each against the others.
    middle = float(np.median(chi2))
    typical, scatter = max(1.0, middle), 1.4826 * float(np.median(np.abs(chi2 - middle)))
    limit = typical + reject * max(typical * float(np.sqrt(2 / freedom)), scatter)
    return {
        int(i): f"its structure differs from the others' (chi2 {chi2[i]:.1f}, limit {limit:.1f})"
        for i in np.flatnonzero(chi2 > limit)
    }


def _odd_levels(exposures: Exposures, residuals: Residuals, reject: float) -> dict[int, str]:
    """Frames whose level above the overscan is unlike that of the others of their group."""
    if not exposures.rows_known:
        return _far_off(exposures, residuals, reject)
    level = residuals.blocks.mean(axis=(1, 2))
    group = np.zeros(len(level)) if exposures.transform.group is None else exposures.transform.group
    found = {}
    for one in np.unique(group):
        where = np.flatnonzero(group == one)
        off = level[where] - np.median(level[where])
        spread = max(1.4826 * float(np.median(np.abs(off))), float(np.median(residuals.sigma)) * 0.1)
        for i in np.flatnonzero(np.abs(off) > reject * spread) if len(where) > 2 else ():
            found[int(where[i])] = f"its level above the overscan is {off[i]:+.2f} adu off: light leak or idle camera"
    return found


def _far_off(exposures: Exposures, residuals: Residuals, reject: float) -> dict[int, str]:
    """Frames far off as a whole, of a sensor without overscan whose exposures are alike and jitter.

    The spread of n frames is itself known to one part in sqrt(n): few of them must be further off.
    """
    taken_out = exposures.levels.level.mean(axis=1)
    if not taken_out.any():  # exposures that are not alike
        return {}
    alive = exposures.noise > 0
    off, _ = frame_levels(exposures, residuals)
    off = off - np.median(off[alive])
    spread = max(1.4826 * float(np.median(np.abs(off[alive]))), float(np.median(residuals.sigma[alive])) * 0.1)
    limit = reject * spread * (1 + 5 / alive.sum())
    return {
        int(i): f"its level is {off[i]:+.1f} adu off the others': light leak, idle camera, or another setting"
        for i in np.flatnonzero(alive & (np.abs(off) > limit))
    }


def frame_levels(exposures: Exposures, residuals: Residuals) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each frame less the combination, and its error (n,), adu."""
    blocks, share = residuals.blocks, residuals.pixels / residuals.pixels.sum()
    rows = exposures.row_variance / blocks.shape[1]
    level = (blocks * share).sum(axis=(1, 2))
    if not exposures.rows_known:
        level = level + exposures.levels.level.mean(axis=1)  # what was taken out of whole frames
    return level, np.sqrt(exposures.noise**2 / residuals.pixels.sum() + rows)
