"""Photo-electrons gathered in one exposure: shot noise on pixels that are displaced and move (Sec. 6, stages 4 and 5).

Time runs in steps. In each the boundaries stand where the charge in the middle of the step puts them. A pixel
gathers the light on its displaced quadrilateral and on the strips that its boundaries have swept since, of which
every tile draws its own Poisson numbers; what one pixel gains by a strip its neighbour loses. Point sources bring
each of the pixels around them a Poisson number of electrons too, and single ones to those far away; what falls into
a pixel counts as its response says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from lsstcal_dask.errors import InconsistentGeometry, WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter, boundary_shifts, margin, quadrants, steps, weights
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.electrons import EMPTY, Ground, land, moffat, peak, sunflower
from lsstcal_dask.simulate.exposure import Light
from lsstcal_dask.simulate.poisson import poisson
from lsstcal_dask.simulate.random import stream, tiles
from lsstcal_dask.simulate.stamps import Stamp, half_sizes, integrable, moved, stamp

__all__ = ["ShotNoise", "accumulate", "on_quadrilaterals"]

_BATCH: Final = 1 << 18  # electrons of a point source in memory at once
_POINTS: Final = 1 << 16  # that stand for a source without noise that is too sharp to be integrated
_FEW: Final = 1 << 12  # that stand for its wings, and for it where only the first boundaries depend on them
_QUIET: Final = 24  # px, half of the stamp of a source without noise
_ALL: Final = np.zeros(0)


class ShotNoise(Effect):
    """Whether light comes in electrons; without, every pixel gathers what is expected of it."""


class _Tile(NamedTuple):
    amplifier: int
    number: int
    rows: slice
    columns: slice


class _Step(NamedTuple):
    number: int
    time: float  # s
    later: float  # s from the beginning to the middle of the next one
    expected: float  # of its charge that is added again to foresee the middle of the next one: see `weights`
    noise: float


@dataclass(frozen=True, eq=False)
class _Run:
    """One exposure of one CCD; maps are (y, x) float32."""

    seed: int
    exposure: int
    detector: Detector
    noise: bool
    rate: np.ndarray  # electron/s, in undistorted pixels
    whole: np.ndarray  # electron/s, in displaced pixels without charge
    corners: np.ndarray  # pixel
    response: np.ndarray  # of single pixels, for point sources
    start: np.ndarray  # electrons
    dark: np.ndarray  # electron/s
    charge: np.ndarray  # electrons gathered; filled


class _Source(NamedTuple):
    """A point source."""

    profile: np.ndarray  # a row of `Light.points`
    at: Stamp
    random: np.random.Generator


@dataclass(frozen=True, eq=False)
class _Moving:
    """Boundaries that move with the charge."""

    right: np.ndarray
    up: np.ndarray
    pad: int
    middle: np.ndarray  # padded map of electrons in the middle of this step
    ahead: np.ndarray  # of the next step; filled
    east: np.ndarray  # shifts over the CCD; filled where there are point sources
    north: np.ndarray


def accumulate(
    seed: int,
    shot_noise: ShotNoise,
    brighter_fatter: BrighterFatter,
    detector: Detector,
    exposure_number: int,
    light: Light,
    duration: float,
    corners: np.ndarray | None = None,
    start: np.ndarray | None = None,
    dark: np.ndarray | None = None,
) -> np.ndarray:
    """Photo-electrons that the light of one exposure leaves in the pixels of a CCD.

    Parameters
    ----------
    seed, exposure_number : of the random numbers.
    shot_noise, brighter_fatter : settings; without the latter there is a single step.
    detector : the tiles of its amplifiers draw the numbers; pixels of no amplifier gather none.
    light : rates, electron/s.
    duration : s.
    corners : (2, ny + 1, nx + 1) float32, pixel: displacement (x, y) of the pixels' corners; None for none.
    start : (ny, nx) float32, electrons there before; they move boundaries and are not returned.
    dark : (ny, nx) float32, electron/s that gather without light from the beginning on; likewise.

    Returns
    -------
    (ny, nx) float32, electrons; whole numbers if there is shot noise. What falls beside the CCD is lost.

    Raises
    ------
    InconsistentGeometry
        A map has not the shape of the CCD.
    WrongUse
        A rate or the duration is negative or no number, or a source has no profile.
    """
    _check(detector, light, duration, corners, start, dark)
    levels = float(light.rate.max()) * duration, peak(light.points) * duration
    parts = steps(brighter_fatter, detector.vendor, *levels) if brighter_fatter.on else np.ones(1)
    whole = light.whole
    if whole is None:
        whole = light.rate if corners is None else on_quadrilaterals(light.rate, corners)
    response, before, slow = (EMPTY if one is None else one for one in (light.response, start, dark))
    run = _Run(
        seed, exposure_number, detector, shot_noise.on, light.rate, whole,
        np.zeros((2, 0, 0), np.float32) if corners is None else corners,
        response, before, slow, np.zeros(detector.shape, np.float32),
    )  # fmt: skip
    times = [float(part) * duration for part in parts]
    sources = _sources(run, light.points, times[0])
    moving = _begin(brighter_fatter, run, sources, times[0]) if brighter_fatter.on else None
    for number, time in enumerate(times):
        following = min(number + 1, len(times) - 1)
        later = sum(times[:following]) + times[following] / 2
        step = _Step(number, time, later, *weights(parts[number], parts[following]))
        for tile in _tiles(detector):
            _diffuse(run, moving, tile, step)
        _points(run, moving, sources, step)
        if moving and number < following:
            moving = _advance(moving, brighter_fatter.ceiling)
    return run.charge


def _check(
    detector: Detector, light: Light, duration: float, corners: np.ndarray | None, *maps: np.ndarray | None
) -> None:
    ny, nx = detector.shape
    alike = {"the rate": light.rate, "the response": light.response, "start": maps[0], "dark": maps[1]}
    alike |= {"the light on displaced pixels": light.whole}
    wanted = {name: (found, (ny, nx)) for name, found in alike.items()} | {"corners": (corners, (2, ny + 1, nx + 1))}
    for name, (found, shape) in wanted.items():
        if found is not None and found.shape != shape:
            raise InconsistentGeometry(f"{detector.name}: {name} has shape {found.shape}: it must be {shape}")
    if not 0 <= duration < np.inf:
        raise WrongUse(f"{detector.name}: exposure of {duration} s: it must be zero or more")
    if not (light.rate.min() >= 0 and light.rate.max() < np.inf):
        raise WrongUse(f"{detector.name}: light with a negative or infinite rate, or none: check what made it")
    points = light.points
    if points.ndim != 2 or points.shape[1] != 5:
        raise InconsistentGeometry(f"{detector.name}: point sources have shape {points.shape}: it must be (n, 5)")
    good = np.isfinite(points).all(axis=1) & (points[:, 2] >= 0) & (points[:, 3] > 0) & (points[:, 4] > 1)
    if not good.all():
        raise WrongUse(
            f"{detector.name}: point source {int(np.argmin(good))} needs a position, a rate of zero or more, "
            "a width above zero and an exponent above one"
        )


def _tiles(detector: Detector) -> Iterator[_Tile]:
    """All tiles of a CCD, in its own orientation."""
    for i, amplifier in enumerate(detector.amplifiers):
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        for number, rows in tiles(ny):
            yield _Tile(i, number, slice(y + rows.start, y + rows.stop), slice(x, x + nx))


def _sources(run: _Run, points: np.ndarray, time: float) -> list[_Source]:
    """Point sources and the stamps with which a step of so many seconds costs least."""
    halves = half_sizes(points, time) if run.noise else np.where(integrable(points), _QUIET, -1)
    place = {"exposure": run.exposure, "detector": run.detector.id}
    return [
        _Source(
            profile,
            stamp(profile, int(half), run.corners, run.detector.shape),
            stream(run.seed, "point_sources", tile=index, **place),
        )
        for index, (profile, half) in enumerate(zip(points, halves, strict=True))
    ]


def _begin(settings: BrighterFatter, run: _Run, sources: list[_Source], time: float) -> _Moving:
    """Boundaries of the first step, in whose middle half of its light is expected."""
    pad = margin(settings)
    room = pad - settings.reach - 1
    right, up = (np.pad(q, (0, room)).astype(np.float32) for q in quadrants(settings, run.detector.vendor))
    ny, nx = run.detector.shape
    middle = np.zeros((ny + 2 * pad, nx + 2 * pad), np.float32)
    half = middle[pad:-pad, pad:-pad]
    np.multiply(run.whole, np.float32(time / 2), out=half)
    ground = Ground(run.corners, EMPTY, EMPTY, run.response)
    for source in sources:
        electrons = source.profile[2] * time / 2
        half[source.at.box] += electrons * source.at.shares * _response(run, source)
        _land_evenly(run, source, ground, electrons, _FEW, 0, half)
    for there, part in ((run.start, 1.0), (run.dark, time / 2)):
        if there.size:
            half += there * np.float32(part)
    _border(middle, pad, settings.ceiling)
    shifts = [np.zeros(shape if sources else (0, 0), np.float32) for shape in ((ny, nx + 1), (ny + 1, nx))]
    return _Moving(right, up, pad, middle, np.zeros_like(middle), *shifts)


def _response(run: _Run, source: _Source) -> np.ndarray | float:
    """Response of the pixels of a source's stamp."""
    return run.response[source.at.box] if run.response.size else 1.0


def _advance(moving: _Moving, ceiling: float) -> _Moving:
    """Turn the next step into this one."""
    _border(moving.ahead, moving.pad, ceiling)
    return _Moving(**{**vars(moving), "middle": moving.ahead, "ahead": moving.middle})


def _border(padded: np.ndarray, pad: int, ceiling: float) -> None:
    """Cut what has bloomed; beyond the edge charge is as in the last pixel, so that a flat has no edges of its own."""
    np.minimum(padded, np.float32(ceiling), out=padded)
    padded[:, :pad], padded[:, -pad:] = padded[:, pad : pad + 1], padded[:, -pad - 1 : -pad]
    padded[:pad], padded[-pad:] = padded[pad], padded[-pad - 1]


def _diffuse(run: _Run, moving: _Moving | None, tile: _Tile, step: _Step) -> None:
    """Gather the light of a step in one tile."""
    y, x = tile.rows, tile.columns
    gained = run.whole[y, x] * np.float32(step.time)
    if moving:
        shape = gained.shape
        east, north = np.empty((shape[0], shape[1] + 1), np.float32), np.empty((shape[0] + 1, shape[1]), np.float32)
        boundary_shifts(moving.middle, moving.right, moving.up, (y.start, x.start), east, north)
        _fix_edges(east, north, tile, run.detector.shape)
        _sweep(run.rate, (y.start, x.start), east, north, step.time, gained)
        if moving.east.size:
            moving.east[y, x.start : x.stop + 1] = east
            moving.north[y.start : y.stop + 1, x] = north
    expected = gained
    if run.noise:
        place = {"detector": run.detector.id, "amplifier": tile.amplifier, "tile": tile.number, "step": step.number}
        gained = poisson(stream(run.seed, "shot_noise", exposure=run.exposure, **place), expected)
    if not moving:
        run.charge[y, x] += gained
        return
    pad = moving.pad
    ahead = moving.ahead[y.start + pad : y.stop + pad, x.start + pad : x.stop + pad]
    start, dark = (there[y, x] if there.size else EMPTY for there in (run.start, run.dark))
    _gather(run.charge[y, x], expected, gained, start, dark, (step.expected, step.noise, step.later), ahead)


@njit(nogil=True, cache=True, error_model="numpy")
def _gather(
    charge: np.ndarray,
    expected: np.ndarray,
    gained: np.ndarray,
    start: np.ndarray,
    dark: np.ndarray,
    parts: tuple[float, float, float],
    ahead: np.ndarray,
) -> None:
    """Add what was gained to ``charge``; fill ``ahead`` with what the middle of the next step will have.

    ``parts`` are the two `weights`, and the seconds for which ``dark`` will have gathered.
    """
    share, part, later = np.float32(parts[0]), np.float32(parts[1]), np.float32(parts[2])
    for y in range(len(charge)):
        total, mean, drawn, out = charge[y], expected[y], gained[y], ahead[y]
        for x in range(total.size):
            total[x] += drawn[x]
            out[x] = total[x] + share * mean[x] + part * (drawn[x] - mean[x])
        if dark.size:
            slow = dark[y]
            for x in range(out.size):
                out[x] += later * slow[x]
    if start.size:
        ahead += start


def _fix_edges(east: np.ndarray, north: np.ndarray, tile: _Tile, shape: tuple[int, int]) -> None:
    """Let the edges of the CCD, beyond which there is no light to gain, stand still."""
    if tile.columns.start == 0:
        east[:, 0] = 0
    if tile.columns.stop == shape[1]:
        east[:, -1] = 0
    if tile.rows.start == 0:
        north[0] = 0
    if tile.rows.stop == shape[0]:
        north[-1] = 0


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sweep(
    rate: np.ndarray, first: tuple[int, int], east: np.ndarray, north: np.ndarray, share: float, gained: np.ndarray
) -> None:
    """Add to ``gained`` the light on the strips that boundaries have swept; at a boundary it is that of both sides."""
    ny, nx = gained.shape
    last = rate.shape[0] - 1
    middle = np.empty(nx + 2, np.float32)
    half = np.float32(share / 2)
    for y in range(ny):
        row = first[0] + y
        middle[1:-1] = rate[row, first[1] : first[1] + nx]
        middle[0] = rate[row, max(first[1] - 1, 0)]
        middle[-1] = rate[row, min(first[1] + nx, rate.shape[1] - 1)]
        below = rate[max(row - 1, 0), first[1] : first[1] + nx]
        above = rate[min(row + 1, last), first[1] : first[1] + nx]
        left, here, right = middle[:-2], middle[1:-1], middle[2:]
        west, side, floor, roof, out = east[y, :-1], east[y, 1:], north[y], north[y + 1], gained[y]
        for i in range(nx):
            swept = side[i] * (here[i] + right[i]) - west[i] * (here[i] + left[i])
            swept += roof[i] * (here[i] + above[i]) - floor[i] * (here[i] + below[i])
            out[i] = max(out[i] + half * swept, np.float32(0))


@njit(nogil=True, cache=True, error_model="numpy")
def on_quadrilaterals(rate: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Light on pixels whose corners are displaced: exact areas, and the slope of the light times their first moments.

    Parameters
    ----------
    rate : (ny, nx), any unit per undistorted pixel.
    corners : (2, ny + 1, nx + 1), pixel: displacement (x, y).

    Returns
    -------
    (ny, nx) float32, same unit.
    """
    ny, nx = rate.shape
    out = np.empty((ny, nx), np.float32)
    for y in range(ny):
        down, up = max(y - 1, 0), min(y + 1, ny - 1)
        for x in range(nx):
            left, right = max(x - 1, 0), min(x + 1, nx - 1)
            slope_x = (rate[y, right] - rate[y, left]) / max(right - left, 1)
            slope_y = (rate[up, x] - rate[down, x]) / max(up - down, 1)
            area = moment_x = moment_y = 0.0
            for i, j, k, m in ((0, 0, 0, 1), (0, 1, 1, 1), (1, 1, 1, 0), (1, 0, 0, 0)):
                ax, ay = j - 0.5 + corners[0, y + i, x + j], i - 0.5 + corners[1, y + i, x + j]
                bx, by = m - 0.5 + corners[0, y + k, x + m], k - 0.5 + corners[1, y + k, x + m]
                cross = ax * by - bx * ay
                area += cross / 2
                moment_x += (ax + bx) * cross / 6
                moment_y += (ay + by) * cross / 6
            out[y, x] = max(rate[y, x] * area + slope_x * moment_x + slope_y * moment_y, 0.0)
    return out


def _points(run: _Run, moving: _Moving | None, sources: list[_Source], step: _Step) -> None:
    """Gather a step's electrons of the point sources."""
    east, north = (moving.east, moving.north) if moving else (EMPTY, EMPTY)
    ground = Ground(run.corners, east, north, run.response)
    best = float(run.response.max()) if sources and run.response.size else 1.0
    for source in sources:
        if source.at.shares.size:
            _near(run, moving, source, ground, step)
        if run.noise:
            _far(run, moving, source, ground, step, best)
        else:
            points = _FEW if source.at.shares.size else _POINTS
            ahead, pad = (moving.ahead, moving.pad) if moving else (EMPTY, 0)
            electrons = float(source.profile[2]) * step.time
            _land_evenly(run, source, ground, electrons, points, step.number, run.charge, ahead, pad, 1 + step.expected)


def _near(run: _Run, moving: _Moving | None, source: _Source, ground: Ground, step: _Step) -> None:
    """Gather what falls into the pixels of its stamp."""
    (y, x), electrons = source.at.box, float(source.profile[2]) * step.time
    expected = electrons * moved(source.profile, source.at, *ground[:3]) * _response(run, source)
    gained = poisson(source.random, expected) if run.noise else expected
    run.charge[y, x] += gained
    if moving:
        ahead = moving.ahead[y.start + moving.pad : y.stop + moving.pad, x.start + moving.pad : x.stop + moving.pad]
        ahead += gained + step.expected * expected + step.noise * (gained - expected)


def _far(run: _Run, moving: _Moving | None, source: _Source, ground: Ground, step: _Step, best: float) -> None:
    """Shoot the electrons of all other pixels, ``best`` times as many as of a mean pixel, of which some are lost."""
    profile, (y, x), nearest = source.profile, source.at.box, source.at.nearest
    ahead, pad = (moving.ahead, moving.pad) if moving else (EMPTY, 0)
    left = int(source.random.poisson(float(profile[2]) * step.time * source.at.outside * best))
    while left > 0:
        n = min(left, _BATCH)
        places = moffat(profile, source.random.random(n), 2 * np.pi * source.random.random(n), nearest)
        chances = best * source.random.random(n) if run.response.size else _ALL
        but = y.start, y.stop, x.start, x.stop
        land(profile, *places, 1.0, chances, ground, but, run.charge, ahead, pad, 1 + step.expected)
        left -= n


def _land_evenly(
    run: _Run,
    source: _Source,
    ground: Ground,
    electrons: float,
    points: int,
    step: int,
    charge: np.ndarray,
    ahead: np.ndarray = EMPTY,
    pad: int = 0,
    factor: float = 0.0,
) -> None:
    """Spread what falls beside its stamp over points, without noise."""
    profile, (y, x), nearest = source.profile, source.at.box, source.at.nearest
    part = electrons * source.at.outside / points
    places = sunflower(profile, points, step, nearest)
    but = y.start, y.stop, x.start, x.stop
    land(profile, *places, part, _ALL, ground, but, charge, ahead, pad, factor)
