"""Removal of crosstalk, within a CCD row by row and between CCDs as a sparse product (Lupton 2016, Sec. 3.3; §5).

Seen is ``v = Q + C Q + C2 Q**2``, pixels that are read at the same time, in electrons; Q follows from two
fixed-point sweeps ``Q <- v - C Q - C2 Q**2`` from Q = v, which leave of it ``|C|**3``, 1e-11. Rows of targets without
sources are not touched. Sources above ``ceiling`` count as the ceiling, and mark the pixels they reach.
The noise of the sources adds ``C**2 var``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numba import njit
from scipy.sparse import csr_array

from lsstcal_dask.errors import InconsistentGeometry, StaleCalibration
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.variables import MASK_BITS

__all__ = [
    "Entries",
    "between",
    "coupled",
    "crosstalk_image",
    "crosstalk_rows",
    "from_others",
    "own_entries",
    "raw_frame",
    "unmeasured",
]


@dataclass(frozen=True, eq=False)
class Entries:
    """Non-zero coefficients of some sources in some targets, ordered by target and then source."""

    targets: np.ndarray  # (n,) int64, place of the target amplifier
    sources: np.ndarray  # (n,) int64, place of the source amplifier
    linear: np.ndarray  # (n,) float32, electron/electron
    quadratic: np.ndarray  # (n,) float32, 1/electron

    def __len__(self) -> int:
        return len(self.targets)


def _entries(product: xr.Dataset, targets: list[str], sources: list[str]) -> Entries:
    """Coefficients of sources (``R22_S11/C10``) in amplifiers of the detector of ``product``."""
    known = [str(name) for name in product["source"].values]
    if missing := [name for name in sources if name not in known]:
        raise StaleCalibration(f"crosstalk does not know {missing[0]}, it is of another camera: build it again")
    part = product.sel(amplifier=targets).isel(source=[known.index(name) for name in sources])
    c, c2 = (np.nan_to_num(part[name].values).astype(np.float32) for name in ("crosstalk", "crosstalk_quadratic"))
    for place, target in enumerate(targets):
        if (name := f"{part['detector'].item()}/{target}") in sources:
            c[place, sources.index(name)] = c2[place, sources.index(name)] = 0
    t, s = np.nonzero((c != 0) | (c2 != 0))
    return Entries(np.ascontiguousarray(t), np.ascontiguousarray(s), c[t, s], c2[t, s])


def own_entries(product: xr.Dataset, detector: Detector) -> Entries:
    """Coefficients within a CCD, places along ``detector.amplifiers``; what is unmeasured counts as zero.

    Parameters
    ----------
    product : §5 of this detector: ``crosstalk``, ``crosstalk_quadratic`` (amplifier, source).

    Raises
    ------
    StaleCalibration
        The product was made for another camera.
    """
    names = [a.name for a in detector.amplifiers]
    return _entries(product, names, [f"{detector.name}/{name}" for name in names])


def coupled(product: xr.Dataset, detector: Detector, camera: Camera) -> dict[str, Entries]:
    """Coefficients from other CCDs, by name; places along ``amplifiers`` of either CCD. CCDs without are left out."""
    part = product["crosstalk"].values, product["crosstalk_quadratic"].values
    lit = np.nan_to_num(part[0]).any(axis=0) | np.nan_to_num(part[1]).any(axis=0)
    wanted = {str(name).rpartition("/")[0] for name in product["source"].values[lit]} - {detector.name}
    names = [a.name for a in detector.amplifiers]
    return {
        other.name: _entries(product, names, [f"{other.name}/{a.name}" for a in other.amplifiers])
        for other in camera.detectors
        if other.name in wanted
    }


def unmeasured(product: xr.Dataset, detector: Detector) -> int:
    """Pairs of one CCD whose coefficient is unknown."""
    own = np.char.startswith(product["source"].values.astype(str), f"{detector.name}/")
    return int(np.isnan(product["crosstalk"].values[:, own]).sum()) - len(detector.amplifiers)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _sum_sources(signal, first, end, sources, linear, quadratic, total):  # type: ignore[no-untyped-def]
    """What the entries from ``first`` to ``end``, those of one target, make of the signals of their sources.

    Five at a time: a sum is stored once for five products, and the compiler can still check that it overlaps none.
    """
    zero, last = np.float32(0), end - 1
    total[:] = zero
    for e in range(first, end, 5):
        f, g, h, i = min(e + 1, last), min(e + 2, last), min(e + 3, last), min(e + 4, last)
        p, q, r = signal[sources[e]], signal[sources[f]], signal[sources[g]]
        s, t = signal[sources[h]], signal[sources[i]]
        a, a2 = linear[e], quadratic[e]
        b, b2 = (linear[f], quadratic[f]) if e + 1 < end else (zero, zero)
        c, c2 = (linear[g], quadratic[g]) if e + 2 < end else (zero, zero)
        d, d2 = (linear[h], quadratic[h]) if e + 3 < end else (zero, zero)
        k, k2 = (linear[i], quadratic[i]) if e + 4 < end else (zero, zero)
        if a2 == zero and b2 == zero and c2 == zero and d2 == zero and k2 == zero:
            for x in range(total.size):
                total[x] += a * p[x] + b * q[x] + c * r[x] + d * s[x] + k * t[x]
        else:
            for x in range(total.size):
                one, two = p[x] * (a + a2 * p[x]), q[x] * (b + b2 * q[x])
                total[x] += one + two + r[x] * (c + c2 * r[x]) + s[x] * (d + d2 * s[x]) + t[x] * (k + k2 * t[x])


@njit(nogil=True, cache=True)
def _source(given, taken, kept, ceiling):  # type: ignore[no-untyped-def]
    """Signal less ``taken`` with which the pixels of a row disturb others; how many of them are above the ceiling."""
    high, zero, over = np.float32(ceiling), np.float32(0), np.int32(0)
    for x in range(len(given)):
        v = given[x] - taken[x]
        v = zero if np.isnan(v) else v
        over += np.int32(v >= high)
        kept[x] = v if v < high else high
    return over


@njit(nogil=True, cache=True)
def _positive(given, kept):  # type: ignore[no-untyped-def]
    for x in range(len(given)):
        kept[x] = given[x] if given[x] > 0 else np.float32(0)  # nor NaN


@njit(nogil=True, cache=True)
def _add(row, total):  # type: ignore[no-untyped-def]
    for x in range(row.size):
        row[x] += total[x]


@njit(nogil=True, cache=True)
def _take(row, total):  # type: ignore[no-untyped-def]
    for x in range(row.size):
        row[x] -= total[x]


@njit(nogil=True, cache=True)
def _mark(flags, signal, ceiling, bit):  # type: ignore[no-untyped-def]
    for x in range(len(flags)):
        flags[x] |= bit if signal[x] >= ceiling else np.uint16(0)


@njit(nogil=True, cache=True)
def _groups(targets, count):  # type: ignore[no-untyped-def]
    """Where the entries of each of ``count`` targets begin and end (count + 1,)."""
    edges = np.zeros(count + 1, np.int64)
    for t in targets:
        edges[t + 1] += 1
    return np.cumsum(edges)


@njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
def crosstalk_rows(  # type: ignore[no-untyped-def]
    values, variance, targets, sources, linear, quadratic, scratch, ceiling=None, mask=None, bit=np.uint16(0)
):
    """Remove crosstalk from one row of all amplifiers of a CCD, in place.

    Parameters
    ----------
    values : (amplifier, x) float32, electron, contiguous; NaN counts as no signal in its targets.
    variance : (amplifier, x) float32, electron**2; grows by ``C**2`` times that of the sources.
    targets, sources : (n,) int, places of the entries that are not zero, ordered by target.
    linear, quadratic : (n,) float32, electron/electron and 1/electron.
    scratch : (3, amplifier, x) float32, of any content.
    ceiling : (amplifier,) float32, electron: a source above it counts as it; none if left out.
    mask, bit : (amplifier, x) uint16, and what is set in the targets of such a source.

    A target without entries is left as it is, to the bit.
    """
    if len(targets) == 0:
        return
    n = len(values)
    signal, better, total = scratch[0], scratch[1], scratch[2, 0]
    edges, square, none = _groups(targets, n), linear * linear, np.zeros_like(linear)
    over, high = np.zeros(n, np.int32), np.full(n, np.inf, np.float32)
    for a in range(n):
        _positive(variance[a], signal[a])
        high[a] = np.inf if ceiling is None else ceiling[a]
    for t in range(n):
        if edges[t] < edges[t + 1]:
            _sum_sources(signal, edges[t], edges[t + 1], sources, square, none, total)
            _add(variance[t], total)
    total[:] = 0
    for a in range(n):
        _source(values[a], total, signal[a], high[a])
    for t in range(n):
        _sum_sources(signal, edges[t], edges[t + 1], sources, linear, quadratic, total)
        over[t] = _source(values[t], total, better[t], high[t])
    for t in range(n):
        if edges[t] < edges[t + 1]:
            _sum_sources(better, edges[t], edges[t + 1], sources, linear, quadratic, total)
            _take(values[t], total)
    if mask is not None and ceiling is not None:
        for e in range(len(targets)):
            if over[sources[e]] > 0:
                _mark(mask[targets[e]], better[sources[e]], ceiling[sources[e]], bit)


@njit(nogil=True, cache=True)
def _all_rows(values, variance, mask, entries, ceiling, bit):  # type: ignore[no-untyped-def]
    """Rows are copied to where they lie together: of a slice the compiler would not know that it can go in vectors."""
    targets, sources, linear, quadratic = entries
    na, ny, nx = values.shape
    row, noise, flags = np.empty((na, nx), np.float32), np.empty((na, nx), np.float32), np.empty((na, nx), np.uint16)
    scratch = np.empty((3, na, nx), np.float32)
    for y in range(ny):
        row[:], noise[:], flags[:] = values[:, y], variance[:, y], mask[:, y]
        crosstalk_rows(row, noise, targets, sources, linear, quadratic, scratch, ceiling, flags, bit)
        values[:, y], variance[:, y], mask[:, y] = row, noise, flags


def crosstalk_image(
    values: np.ndarray,
    variance: np.ndarray,
    mask: np.ndarray,
    entries: Entries,
    ceiling: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Remove the crosstalk within a CCD.

    Parameters
    ----------
    values, variance, mask : (amplifier, y, x) electron, electron**2, bits; readout orientation, all amplifiers
        from the same raw index on, overscan included or not.
    entries : `own_entries`.
    ceiling : (amplifier,) electron, saturation; none by default.

    Returns
    -------
    New values, variance and mask, with CROSSTALK where the source was saturated.
    """
    values, variance, mask = (np.array(a, d) for a, d in ((values, "f4"), (variance, "f4"), (mask, "u2")))
    high = np.full(len(values), np.inf, np.float32) if ceiling is None else np.asarray(ceiling, np.float32)
    parts = entries.targets, entries.sources, entries.linear, entries.quadratic
    lists = tuple(np.ascontiguousarray(part) for part in parts)
    _all_rows(values, variance, mask, lists, high, np.uint16(MASK_BITS["CROSSTALK"]))
    return values, variance, mask


def raw_frame(image: np.ndarray, detector: Detector, shape: tuple[int, int]) -> np.ndarray:
    """Trimmed images (amplifier, y, x) where they lie in raw amplifiers of ``shape``, zero elsewhere and for NaN.

    Prescans differ between vendors: only in raw pixels does the same index mean the same time.
    """
    out = np.zeros((len(detector.amplifiers), *shape), np.float32)
    for i, amplifier in enumerate(detector.amplifiers):
        ny, nx = amplifier.data.shape
        out[(i, *amplifier.data.slices)] = np.nan_to_num(image[i, :ny, :nx])
    return out


def from_others(
    others: Mapping[str, np.ndarray],
    entries: Mapping[str, Entries],
    detector: Detector,
    ceilings: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """What other CCDs leave in one, to be subtracted: ``sum C Q + C2 Q**2``, a sparse product for each CCD.

    Parameters
    ----------
    others : by name (amplifier, y, x) electron over raw amplifiers, or the same block of rows of each.
    entries : `coupled`.
    ceilings : by name (amplifier,) electron, at which sources are clipped.

    Raises
    ------
    InconsistentGeometry
        A CCD that couples to this one is missing, or its pixels are others than those of the first.
    """
    total: np.ndarray | None = None
    for name, own in entries.items():
        if name not in others:
            raise InconsistentGeometry(f"crosstalk of {detector.name}: the image of {name} is missing: pass it too")
        image = np.asarray(others[name], np.float32)
        if total is None:
            total = np.zeros((len(detector.amplifiers), *image.shape[1:]), np.float32)
        if image.shape[1:] != total.shape[1:]:
            raise InconsistentGeometry(
                f"crosstalk of {detector.name}: pixels of {name} are {image.shape[1:]}, not {total.shape[1:]}: "
                f"pass raw frames of one camera"
            )
        lit = np.unique(own.sources)
        flat = image[lit].reshape(len(lit), -1)
        if ceilings is not None:
            flat = np.minimum(flat, np.asarray(ceilings[name], np.float32)[lit][:, None])
        at = own.targets, np.searchsorted(lit, own.sources)
        size = len(total), len(lit)
        seen = csr_array((own.linear, at), size) @ flat
        if own.quadratic.any():
            seen += csr_array((own.quadratic, at), size) @ (flat * flat)
        total += seen.reshape(total.shape)
    if total is None:
        raise InconsistentGeometry(f"crosstalk of {detector.name}: no other CCD couples to it: there is nothing to sum")
    return total


def between(images: xr.DataArray, product: xr.Dataset, camera: Camera) -> xr.DataArray:
    """Remove from each CCD what other CCDs leave in it, lazily: one task a CCD, which reads those that couple to it.

    Parameters
    ----------
    images : (detector, amplifier, y, x) electron over raw amplifiers, corrected within each CCD; Dask arrays.
    product : §5: ``crosstalk``, ``crosstalk_quadratic`` (detector, amplifier, source).

    Returns
    -------
    The same; a CCD to which no other couples keeps its very chunks.
    """
    whole = {
        str(name): images.sel(detector=name).chunk(amplifier=-1, y=-1, x=-1).data for name in images["detector"].values
    }
    order = [str(name) for name in images["amplifier"].values]
    parts = []
    for name, data in whole.items():
        detector = camera.detector(name)
        entries = {k: v for k, v in coupled(product.sel(detector=name), detector, camera).items() if k in whole}
        if not entries:
            parts.append(images.sel(detector=name).data)
            continue
        lists = {k: [order.index(a.name) for a in camera.detector(k).amplifiers] for k in (name, *entries)}
        task = dask.delayed(_corrected, pure=False)(data, {k: whole[k] for k in entries}, entries, detector, lists)
        parts.append(da.from_delayed(task, data.shape, np.float32))
    return images.copy(data=da.stack(parts))


def _corrected(
    image: np.ndarray,
    others: Mapping[str, np.ndarray],
    entries: Mapping[str, Entries],
    detector: Detector,
    lists: Mapping[str, list[int]],
) -> np.ndarray:
    out = np.array(image, np.float32)
    own = {name: np.nan_to_num(np.asarray(other)[lists[name]]) for name, other in others.items()}
    seen = from_others(own, entries, detector)
    for i in np.unique(np.concatenate([e.targets for e in entries.values()])):
        out[lists[detector.name][i]] -= seen[i]
    return out
