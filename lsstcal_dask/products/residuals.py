"""How each frame differs from the combination: its level, and whether it belongs there (Lupton 2016, Sec. 2.1)."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit

from lsstcal_dask.products.exposures import Exposures

__all__ = ["Residuals", "frame_levels", "misfits", "residual_blocks"]

_BLOCK: Final = 32  # pixels on a side of the blocks in which a frame's structure is compared
_SAMPLE: Final = 1024  # pixels whose median is the level of a frame, to a twenty-fifth of their noise


@dataclass(frozen=True)
class Residuals:
    """Frames less their combination, in blocks; adu."""

    blocks: np.ndarray  # (n, by, bx) mean of the pixels of a block, outliers cut
    pixels: np.ndarray  # (by, bx) pixels of a block
    sigma: np.ndarray  # (n,) noise of a pixel


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _block_means(counts, corner, offset, plane, value, inverse, limits):  # type: ignore[no-untyped-def]
    """Mean residual (n, by, bx) in adu of each frame against ``value * inverse``, and pixels per block (by, bx).

    ``counts`` are raw, contiguous, and ``corner`` is where the data begin in them. Residuals are cut to
    ``limits``: one cosmic ray moves a block by next to nothing, a change of the whole block still shows.
    The rows of a block are added column by column, which takes one vector instruction for eight pixels.
    """
    n = len(counts)
    ny, nx = value.shape
    by, bx = (ny + _BLOCK - 1) // _BLOCK, (nx + _BLOCK - 1) // _BLOCK
    total = np.zeros((n, by, bx), np.float32)
    count = np.zeros((by, bx), np.float32)
    columns = np.empty(nx, np.float32)
    for b in range(by):  # what is common to the exposures stays in the cache
        for i in range(n):
            limit, factor = limits[i], inverse[i]
            columns[:] = 0
            for y in range(b * _BLOCK, min((b + 1) * _BLOCK, ny)):
                row = counts[i, corner[0] + y, corner[1] : corner[1] + nx]
                base, signal, level = plane[y if len(plane) > 1 else 0], value[y], offset[i, y]
                for x in range(nx):
                    residual = np.float32(row[x]) - level - base[x] - signal[x] * factor
                    columns[x] += min(max(residual, -limit), limit)
            for x in range(nx):
                total[i, b, x // _BLOCK] += columns[x]
    for y in range(ny):
        for x in range(nx):
            count[y // _BLOCK, x // _BLOCK] += 1
    return total / count, count


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
    offset = np.nan_to_num(levels.level)
    data, box = exposures.data, exposures.amplifier.data
    some = _sample(value.shape)
    base, signal = np.broadcast_to(plane, value.shape)[some], value[some]
    centre = np.zeros(len(data), np.float32)
    for i in range(len(data)):  # a frame off as a whole must not lose its pixels to the limits
        residual = data[i][some] - offset[i][some[0]] - (base + signal * inverse[i])
        centre[i] = np.median(residual)
    typical = max(float(np.median(value[some])), 0.0) * inverse / np.float32(transform.gain)
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
    level = blocks.mean(axis=(1, 2))
    sigma2 = np.maximum(residuals.sigma[:, None, None], 1e-3) ** 2 / residuals.pixels
    sigma2 = sigma2 + np.nan_to_num(exposures.levels.variance.mean(axis=1))[:, None, None]
    chi2 = ((blocks - level[:, None, None]) ** 2 / sigma2).mean(axis=(1, 2))
    freedom = max(blocks[0].size - 1, 1)
    # Pattern noise common to all frames raises their chi2 and its scatter: judge each against the others.
    typical = max(1.0, float(np.median(chi2)))
    scatter = 1.4826 * float(np.median(np.abs(chi2 - np.median(chi2))))
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
    rows = exposures.levels.variance.mean(axis=1) / blocks.shape[1]
    level = (blocks * share).sum(axis=(1, 2))
    if not exposures.rows_known:
        level = level + exposures.levels.level.mean(axis=1)  # what was taken out of whole frames
    return level, np.sqrt(exposures.noise**2 / residuals.pixels.sum() + rows)
