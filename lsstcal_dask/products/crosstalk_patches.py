"""Patches of raw pixels in which the crosstalk of some sources is seen: of one exposure, the same for every target.

Sources whose spots are read together share a patch. Each has a column of signal there, and one of its square; of
many that are all but alike a few are fitted, which stand for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from lsstcal_dask.products.crosstalk_kernels import stand_ins

__all__ = ["SCALE", "Patch", "Stamp", "patches"]

SCALE: Final = 1e5  # electron; matrices hold signals in this unit, so that Q and Q**2 are alike
_HEART: Final = 0.5  # of its level: spots whose parts above it overlap are fitted together
_MANY: Final = 4  # columns, beyond which some stand for all
_ALIKE: Final = 0.01  # of a column, which need not be described: 1e-4 of what it tells of its source


@dataclass(frozen=True)
class Stamp:
    """The spot of one source in one exposure."""

    source: int  # place of the source along the amplifiers of the camera
    y: int  # raw index of its first pixel
    x: int
    values: np.ndarray  # (y, x) float32, electron; NaN off the spot
    level: float  # electron
    used: bool = True  # False: it hides pixels and is no source

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns in raw pixels."""
        return slice(self.y, self.y + self.values.shape[0]), slice(self.x, self.x + self.values.shape[1])

    @property
    def centre(self) -> tuple[float, float]:
        """Raw index of its centre of light."""
        light = np.nan_to_num(self.values)
        y, x = (light.sum(axis) @ np.arange(light.shape[1 - axis]) / light.sum() for axis in (1, 0))
        return self.y + float(y), self.x + float(x)


@dataclass(frozen=True, eq=False)
class Patch:
    """Raw pixels about the spots of some sources that are read together."""

    rows: slice
    columns: slice
    sources: tuple[int, ...]  # that are measured here
    squared: np.ndarray  # (k,) bool, of which the square is, too
    signals: np.ndarray  # (k, y, x) of them, `SCALE`
    nuisance: np.ndarray  # (m, y, x): sources beside them, background
    free: np.ndarray  # (y, x) bool: no pixel of other spots

    @cached_property
    def members(self) -> frozenset[int]:
        """The sources."""
        return frozenset(self.sources)

    @cached_property
    def index(self) -> np.ndarray:
        """(k,) sources."""
        return np.array(self.sources)

    @cached_property
    def measured(self) -> np.ndarray:
        """(2k,) bool: every linear term, and the squares that are."""
        return np.concatenate([np.ones(len(self.sources), bool), self.squared])

    @cached_property
    def core(self) -> np.ndarray:
        """(y, x) bool, pixels with a signal."""
        return (self.signals != 0).any(axis=0)

    @cached_property
    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns (r, y, x) that stand for all signals and their squares, and the parts (r, q) they have in these.

        What is left out is at right angles to them and to the nuisances, in pixels that are free: it moves nothing.
        """
        whole = np.concatenate([self.signals, self.signals[self.squared] ** 2])
        if len(whole) <= _MANY:
            return whole, np.eye(len(whole))
        flat = (whole * self.free).reshape(len(whole), -1)
        known, _ = np.linalg.qr((self.nuisance * self.free).reshape(len(self.nuisance), -1).T)
        chosen, parts = stand_ins(flat - (flat @ known) @ known.T, _ALIKE)
        return whole[chosen], parts

    @property
    def parts(self) -> np.ndarray:
        """(r, q) parts that what is fitted has in each signal, then in each square."""
        return self._fitted[1]

    @cached_property
    def terms(self) -> np.ndarray:
        """(column, y, x) of the fit: signals, nuisances, the signals half a patch off: a source that was not there."""
        half = tuple(size // 2 for size in self.core.shape)
        wrong = np.roll(self.signals.sum(0), half, (0, 1))
        return np.concatenate([self._fitted[0], self.nuisance, wrong[None]])

    def without(self, kept: np.ndarray, given_up: np.ndarray) -> "Patch":
        """Only the ``kept`` (k,) sources are measured; those ``given_up`` are nuisances, others not there."""
        sources = tuple(s for s, keep in zip(self.sources, kept, strict=True) if keep)
        nuisance = np.concatenate([self.nuisance, self.signals[given_up]])
        return Patch(self.rows, self.columns, sources, self.squared[kept], self.signals[kept], nuisance, self.free)


def patches(stamps: Sequence[Stamp], shape: tuple[int, int], squared: np.ndarray | None = None) -> list[Patch]:
    """Patches of one exposure.

    Parameters
    ----------
    stamps : of all sources that are lit, also those that are of no use.
    shape : (y, x) of the raw amplifiers.
    squared : (source,) bool, of which the square is measured, too; None: of all.
    """
    used = [stamp for stamp in stamps if stamp.used]
    if not used:
        return []
    owner = np.full(shape, -1)
    groups = _overlapping(used, shape)
    drawn = [_drawn([used[i] for i in members], shape) for members in groups]
    shared: set[int] = set()
    for number, (place, signals) in enumerate(drawn):
        core, part = (signals != 0).any(axis=0), owner[place]
        if (met := np.unique(part[core & (part >= 0)])).size:
            shared |= {number, *met.tolist()}
        part[core] = number
    for stamp in (stamp for stamp in stamps if not stamp.used):
        owner[stamp.box][np.isfinite(stamp.values)] = len(groups)
    refused = owner == len(groups)
    found = []
    for number, (members, (place, signals)) in enumerate(zip(groups, drawn, strict=True)):
        free = (owner[place] < 0) | (owner[place] == number)
        beside = np.zeros((0, *free.shape))
        if number in shared:
            others = [used[i] for i in sorted(set(range(len(used))) - set(members))]
            beside, free = _beside(others, place, (signals != 0).any(axis=0), ~refused[place])
        sources = tuple(used[i].source for i in members)
        square = np.ones(len(sources), bool) if squared is None else squared[list(sources)]
        nuisance = np.concatenate([beside, _background(free.shape)])
        found.append(Patch(*place, sources, square, signals, nuisance, free))
    return found


def _overlapping(stamps: Sequence[Stamp], shape: tuple[int, int]) -> list[list[int]]:
    """Places of stamps whose hearts overlap, directly or through others."""
    pixels = []
    for stamp in stamps:
        flat, nx = np.flatnonzero(stamp.values > _HEART * stamp.level), stamp.values.shape[1]
        pixels.append(flat + flat // nx * (shape[1] - nx) + stamp.y * shape[1] + stamp.x)
    place = np.repeat(np.arange(len(stamps)), [len(one) for one in pixels])
    size = len(stamps) + shape[0] * shape[1]
    joined = csr_matrix((np.ones(len(place), bool), (place, np.concatenate(pixels) + len(stamps))), (size, size))
    _, part = connected_components(joined, directed=False)
    found: dict[int, list[int]] = {}
    for i, own in enumerate(part[: len(stamps)].tolist()):
        found.setdefault(own, []).append(i)
    return list(found.values())


def _drawn(stamps: Sequence[Stamp], shape: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns of a patch about some stamps, and their signals (k, y, x) there."""
    first = np.array([(s.y, s.x) for s in stamps])
    last = (first + [s.values.shape for s in stamps]).max(0)
    margin = max(4, round(0.25 * (last - first.min(0)).max()))
    start, stop = np.maximum(first.min(0) - margin, 0).tolist(), np.minimum(last + margin, shape).tolist()
    place = slice(start[0], stop[0]), slice(start[1], stop[1])
    signals = np.zeros((len(stamps), stop[0] - start[0], stop[1] - start[1]))
    for one, stamp, (y, x) in zip(signals, stamps, (first - start).tolist(), strict=True):
        ny, nx = stamp.values.shape
        one[y : y + ny, x : x + nx] = stamp.values[: shape[0] - stamp.y, : shape[1] - stamp.x]
    signals[np.isnan(signals)] = 0.0
    signals /= SCALE
    return place, signals


def _beside(
    others: Sequence[Stamp], place: tuple[slice, slice], core: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (m, y, x) of sources that share pixels with those that are measured; pixels free of all others."""
    found = [np.zeros((0, *core.shape))]
    for stamp in others:
        if all(a.start < b.stop and b.start < a.stop for a, b in zip(stamp.box, place, strict=True)):
            laid = _laid(stamp, place)
            if (core & (laid != 0)).any():
                found.append(laid[None])
            else:
                free = free & (laid == 0)
    return np.concatenate(found), free


def _laid(stamp: Stamp, place: tuple[slice, slice]) -> np.ndarray:
    """Signal (y, x) of a source on a patch, `SCALE`; zero off the spot."""
    rows, columns = place
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
    ny, nx = stamp.values.shape
    y0, y1 = max(stamp.y, rows.start), min(stamp.y + ny, rows.stop)
    x0, x1 = max(stamp.x, columns.start), min(stamp.x + nx, columns.stop)
    part = stamp.values[y0 - stamp.y : y1 - stamp.y, x0 - stamp.x : x1 - stamp.x]
    out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = np.where(
        np.isnan(part), 0.0, part / SCALE
    )
    return out


def _background(shape: tuple[int, ...]) -> np.ndarray:
    """(6, y, x) polynomial of order 2."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v])
