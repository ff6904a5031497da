"""Kernels that combine repeats of a flat: weighted means of rows, and the few pixels that cosmic rays hit (Sec. 2.8).

The mean of all exposures is made row by row, at the speed of memory, and tells the pixels of which any exposure lies
so far away that it might be hit, about one in a hundred. These alone are looked at one by one: an exposure is hit
where it lies beyond a limit from what the others say, and so is what touches a hit and lies beyond half of it, and
what touches these, into which charge has diffused. Where there was a hit the mean is made again without it.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from lsstcal_dask.variables import MASK_BITS

__all__ = ["UNUSABLE", "Terms", "combine", "find_hits", "leave_out"]

UNUSABLE: Final = MASK_BITS["NO_DATA"] | MASK_BITS["SATURATED"] | MASK_BITS["COSMIC_RAY"]
_SUSPECT: Final = 0.5
"""Of the limit of a hit, from the mean: where all exposures are nearer, none is beyond the limit from their median."""


class Terms(NamedTuple):
    """Numbers of the exposures of one amplifier, float32."""

    scale: np.ndarray  # (n,) 1 / photons
    noise: np.ndarray  # (n,) electron**2, without light
    weight: np.ndarray  # (n,)
    limit: np.float32  # sigma of a hit
    structure: np.float32  # relative, by which the pattern of flats nearby differs
    median_noise: np.float32  # variance of the median of the exposures


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"}, forceinline=True)
def _row_mean(images, masks, terms, y, sums, value, counts):  # type: ignore[no-untyped-def]
    """Weighted mean and number of usable exposures of a row; ``sums`` (2, x) is scratch."""
    n, _, nx = images.shape
    sums[:] = 0
    counts[:] = 0
    for k in range(n):
        row, flags, weight, factor = images[k, y], masks[k, y], terms.weight[k], terms.weight[k] * terms.scale[k]
        for x in range(nx):
            usable = (flags[x] & UNUSABLE) == 0 and row[x] == row[x]
            sums[0, x] += factor * row[x] if usable else np.float32(0)
            sums[1, x] += weight if usable else np.float32(0)
            counts[x] += 1 if usable else 0
    for x in range(nx):
        value[x] = sums[0, x] / sums[1, x]  # 0 / 0 is NaN


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"}, forceinline=True)
def _row_suspects(images, masks, terms, y, centre, above, found):  # type: ignore[no-untyped-def]
    """Mark the pixels of a row of which a usable exposure is far from the centre."""
    n, _, nx = images.shape
    square = (np.float32(_SUSPECT) * terms.limit) ** 2
    for k in range(n):
        row, flags, scale, noise = images[k, y], masks[k, y], terms.scale[k], terms.noise[k]
        for x in range(nx):
            away = row[x] * scale - centre[x]
            variance = (max(centre[x], np.float32(0)) / scale + noise) * scale * scale
            far = away * away > square * variance and (flags[x] & UNUSABLE) == 0
            found[x] |= far and (away > 0 or not above)


@njit(nogil=True, cache=True, error_model="numpy")
def combine(images, masks, terms, expected, value, counts, suspect):  # type: ignore[no-untyped-def]
    """Weighted mean of all usable exposures, their number, and the pixels that want a look, (y, x) each.

    ``expected`` (y, x), of the unit of the value, is what flats nearby say of a single exposure, or of size zero.
    """
    n, ny, nx = images.shape
    sums = np.empty((2, nx), np.float32)
    for y in range(ny):
        _row_mean(images, masks, terms, y, sums, value[y], counts[y])
        if n > 1:
            _row_suspects(images, masks, terms, y, value[y], False, suspect[y])
        elif expected.size:
            _row_suspects(images, masks, terms, y, expected[y], True, suspect[y])


@njit(nogil=True, cache=True, error_model="numpy")
def _classes(images, masks, terms, guide, y, x, work, kind):  # type: ignore[no-untyped-def]
    """Class of a pixel in each exposure: 2 beyond the limit, 1 beyond half of it, else 0; -1 where it is unusable.

    It is compared with the median of three or more exposures, with the lower of two, or with the guide; the noise of
    these counts too. What is too low among fewer than three was not hit.
    """
    n, count = len(images), 0
    values, own = work
    for k in range(n):
        usable = (masks[k, y, x] & UNUSABLE) == 0 and images[k, y, x] == images[k, y, x]
        kind[k] = 0 if usable else -1
        if usable:
            one, at = images[k, y, x] * terms.scale[k], count
            while at and values[at - 1] > one:
                values[at] = values[at - 1]
                at -= 1
            values[at] = one
            count += 1
    centre = (values[(count - 1) // 2] + values[count // 2]) / 2 if count > 2 else values[0]
    centre = guide if count == 1 else centre
    together = np.float32(0)
    for k in range(n):
        own[k] = (max(centre, np.float32(0)) / terms.scale[k] + terms.noise[k]) * terms.scale[k] ** 2
        together += own[k] if kind[k] == 0 else np.float32(0)
    if count == 1:
        together += together + (terms.structure * centre) ** 2
    for k in range(n):
        if kind[k] == 0:
            away = images[k, y, x] * terms.scale[k] - centre
            away = max(away, np.float32(0)) if count < 3 else away
            variance = own[k] + terms.median_noise if count > 2 else together
            far = away * away / (terms.limit * terms.limit * variance)
            kind[k] = 2 if far > 1 else 1 if far > np.float32(0.25) else 0


@njit(nogil=True, cache=True, error_model="numpy")
def find_hits(images, masks, terms, expected, value, suspects, hit):  # type: ignore[no-untyped-def]
    """Mark hits (n, y, x) bool, beginning with suspects (m, 2); how many there are.

    Without ``expected`` (size zero) a pixel of one usable exposure is compared with itself, and so is never hit.
    """
    n, ny, nx = images.shape
    work, kind, total = (np.empty(n, np.float32), np.empty(n, np.float32)), np.zeros(n, np.int64), 0
    stack = [(0, 0, 0)]
    stack.pop()
    for i in range(len(suspects)):
        y, x = suspects[i]
        _classes(images, masks, terms, expected[y, x] if expected.size else value[y, x], y, x, work, kind)
        for k in range(n):
            if kind[k] == 2 and not hit[k, y, x]:
                hit[k, y, x] = True
                stack.append((k, y, x))
    while stack:
        k, y, x = stack.pop()
        total += 1
        for v in range(max(y - 1, 0), min(y + 2, ny)):
            for u in range(max(x - 1, 0), min(x + 2, nx)):
                if hit[k, v, u]:
                    continue
                _classes(images, masks, terms, expected[v, u] if expected.size else value[v, u], v, u, work, kind)
                hit[k, v, u] = kind[k] >= 0
                if kind[k] > 0:
                    stack.append((k, v, u))
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def leave_out(images, masks, terms, hit, pixels, value, counts):  # type: ignore[no-untyped-def]
    """Combine some pixels (m, 2) again without hits, in place."""
    for i in range(len(pixels)):
        y, x = pixels[i]
        total, weight, count = np.float32(0), np.float32(0), 0
        for k in range(len(images)):
            usable = (masks[k, y, x] & UNUSABLE) == 0 and images[k, y, x] == images[k, y, x]
            if usable and not hit[k, y, x]:
                total += terms.weight[k] * terms.scale[k] * images[k, y, x]
                weight += terms.weight[k]
                count += 1
        value[y, x] = total / weight if count else np.float32(np.nan)
        counts[y, x] = count
