"""Cosmic rays: muons, worms and spots (SCIENCE 6, stage 6; Groom 2002).

A muon crosses the silicon straight. Its charge over a path s is Landau distributed, with width ``xi s`` and most
probable value ``s (m + xi ln(s / 100 um))``. Because such distributions are stable, path cut into pieces gives the
same total, so the charge is drawn piece by piece; an electron hit so hard that it leaves the track (a delta ray) is
followed by itself. Worms are electrons of natural radioactivity, multiply scattered until they stop or leave. Spots
are electrons and photons too soft to move. Charge then spreads on its way to the gates (`diffusion`).

Heights z are in um above the gates; the back side, where light enters, is at z = thickness.
"""

from typing import Final

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_amplifier
from lsstcal_dask.simulate.diffusion import diffuse, pair_energy
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["HIT", "KINDS", "LANDAU_WIDTH", "CosmicRays", "cosmic_rays", "landau", "muon_charge"]

KINDS: Final = ("muon", "worm", "spot")
"""What the numbers in a hit's ``kind`` mean."""

LANDAU_WIDTH: Final = 4.818
"""Landau's xi of a fast muon, electron/um: 0.1535 MeV cm2/g x 0.4985 x 2.329 g/cm3 / 3.70 eV."""

HIT: Final = np.dtype(
    [
        ("x", np.float64),  # px, where it enters (muon), is born (worm) or stops (spot)
        ("y", np.float64),  # px
        ("kind", np.int8),  # index in KINDS
        ("zenith", np.float32),  # deg from the normal of the CCD; NaN for a spot
        ("azimuth", np.float32),  # deg from x towards y
        ("electrons", np.float32),  # freed in the silicon, also beyond the edge of the CCD
    ]
)

_MODE: Final = -0.22278  # most probable value of the standard Landau distribution
_PAIR: Final = pair_energy(173.15) / 1e3  # keV/electron
_HARDEST: Final = 1000.0  # keV, the most that a muon gives to one electron; harder ones are rarer than 1 in 500
_DELTA: Final = 20.0  # keV, above which an electron leaves the track: its range is 3 um
_STEP: Final = 2.0  # um, pieces of a path
_MASS: Final = 511.0  # keV
_RADIATION_LENGTH: Final = 93700.0  # um of silicon


class CosmicRays(Effect):
    """Ionising particles.

    About one event per cm2 and minute is what thick CCDs see at sea level; muons and Compton electrons have
    similar parts in it and the latter depend on the surroundings (Groom 2002). Energies of worms and spots are
    illustrative. The camera looks at the zenith: muons come with cos**2 of the angle to the normal per solid angle.
    """

    rate: float = Field(1.0, ge=0)  # events / cm2 / min, all kinds
    worms: float = Field(0.3, ge=0, le=1)  # share of the events
    spots: float = Field(0.2, ge=0, le=1)  # share of the events; the rest are muons
    thickness: float = Field(100.0, gt=0)  # um
    most_probable: float = Field(80.0, gt=50)  # electron/um over 100 um of path
    diffusion: float = Field(4.0, ge=0)  # um, standard deviation of charge freed at the back side
    worm_energy: float = Field(200.0, gt=0)  # keV, mean
    spot_energy: float = Field(8.0, gt=0)  # keV, mean


def cosmic_rays(
    seed: int,
    settings: CosmicRays,
    detector: Detector,
    exposure_number: int,
    dark_time: float,
    row_time: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Charge of the particles that hit a CCD during an exposure and its readout.

    Parameters
    ----------
    seed, settings, detector, exposure_number : what is simulated.
    dark_time : s until the readout begins.
    row_time : s to read a row; a pixel goes on being hit until its turn.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron, whole numbers.
    (hit,) of dtype `HIT`: the truth.

    Raises
    ------
    WrongUse
        A time is negative, or the shares of worms and spots exceed 1.
    """
    image, hits, pitch = np.zeros(detector.shape, np.float32), [], detector.pixel_mm * 1e3
    for random, hit in _events(seed, settings, detector, exposure_number, dark_time, row_time):
        x, y, z, freed = _path(random, settings, hit, detector)
        hit["electrons"] = freed.sum()
        hits.append(hit)
        sigma = settings.diffusion / pitch * np.sqrt(z / settings.thickness)
        whole = np.floor(freed + random.random(len(freed))).astype(np.int64)
        index, electrons = diffuse(random, detector.shape, x / pitch, y / pitch, sigma, whole)
        np.add.at(image.reshape(-1), index, electrons.astype(np.float32))
    return image, np.array(hits, HIT) if hits else np.empty(0, HIT)


def _events(
    seed: int, settings: CosmicRays, detector: Detector, number: int, dark_time: float, row_time: float
) -> list[tuple[np.random.Generator, np.ndarray]]:
    """Generator and unfinished truth of every event that comes before its pixel is read."""
    if not (dark_time >= 0 and row_time >= 0 and settings.worms + settings.spots <= 1):
        raise WrongUse(
            f"cosmic rays on {detector.name}: dark time {dark_time:g} s, row time {row_time:g} s, worms and spots "
            f"{settings.worms + settings.spots:g}: use times of at least 0 and shares that add up to at most 1"
        )
    if not settings.on:
        return []
    ny, nx = detector.shape
    longest = dark_time + row_time * max(a.data.y0 + a.data.shape[0] for a in detector.amplifiers)
    mean = settings.rate * ny * nx * detector.pixel_mm**2 / 100 * longest / 60
    found = []
    for event in range(stream(seed, "cosmic_rays", exposure=number, detector=detector.id).poisson(mean)):
        random = stream(seed, "cosmic_rays", exposure=number, detector=detector.id, step=event + 1)
        moment, x, y, kind = random.random(4)
        hit = np.zeros((), HIT)
        hit["x"], hit["y"] = x * nx - 0.5, y * ny - 0.5
        hit["kind"] = 0 if kind >= settings.worms + settings.spots else 1 if kind < settings.worms else 2
        if moment * longest < dark_time + row_time * _rows_before(detector, hit):
            found.append((random, hit))
    return found


def _rows_before(detector: Detector, hit: np.ndarray) -> int:
    """Rows read before the one of the hit."""
    for amplifier in detector.amplifiers:
        x, y = ccd_to_amplifier(amplifier, np.rint(hit["x"]), np.rint(hit["y"]))
        ny, nx = amplifier.data.shape
        if 0 <= x < nx and 0 <= y < ny:
            return amplifier.data.y0 + int(y)
    return 0


def _path(random: np.random.Generator, settings: CosmicRays, hit: np.ndarray, detector: Detector) -> np.ndarray:
    """Positions x, y, z, um, and electrons of the pieces of one event: (4, piece). Its direction goes into ``hit``."""
    at = np.array([hit["x"], hit["y"], 0.0]) * detector.pixel_mm * 1e3
    if hit["kind"] == 2:
        energy = random.exponential(settings.spot_energy)
        hit["zenith"] = hit["azimuth"] = np.nan
        at[2] = settings.thickness * random.random()
        return np.append(at, energy / _PAIR)[:, None]
    # muons: cos**2 of the sky times cos of the area seen, so cos = u**(1/4); worms: any direction
    cosine = -(random.random() ** 0.25) if hit["kind"] == 0 else 2 * random.random() - 1
    azimuth, sine = 2 * np.pi * random.random(), np.sqrt(1 - cosine**2)
    direction = np.array([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])
    hit["zenith"], hit["azimuth"] = np.rad2deg(np.arccos(abs(cosine))), np.rad2deg(azimuth)
    if hit["kind"] == 0:
        at[2] = settings.thickness
        return _muon(random, settings, at, direction)
    at[2] = settings.thickness * random.random()
    return _electron(random, settings, at, direction, random.exponential(settings.worm_energy))


def landau(random: np.random.Generator, size: int) -> np.ndarray:
    """Standard Landau variates, most probable value -0.2228.

    The distribution is stable with index 1 and fully skewed: Chambers, Mallows & Stuck (1976) give it from
    an angle U, uniform within +-pi/2, and an exponential W as
    ``(pi/2 + U) tan U - ln(W cos U / (pi/2 + U))``.
    """
    angle = np.pi * (random.random(size) - 0.5)
    lever = np.pi / 2 + angle
    return lever * np.tan(angle) - np.log(random.standard_exponential(size) * np.cos(angle) / lever)


def muon_charge(random: np.random.Generator, settings: CosmicRays, path: float, pieces: int) -> np.ndarray:
    """Charge that a muon frees in each of so many equal pieces of a path in um: (piece,) electron.

    No piece has more than an electron of the highest energy allowed frees.
    """
    length = path / pieces
    probable = length * (settings.most_probable + LANDAU_WIDTH * np.log(length / 100.0))
    charge = probable + LANDAU_WIDTH * length * (landau(random, pieces) - _MODE)
    return np.clip(charge, 0, _HARDEST / _PAIR)


def _muon(random: np.random.Generator, settings: CosmicRays, at: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """From the back side to the gates; what is far above the usual charge of a piece is a delta ray."""
    path = settings.thickness / abs(direction[2])
    count = max(1, int(np.ceil(path / _STEP)))
    charge = muon_charge(random, settings, path, count)
    places = at[:, None] + direction[:, None] * ((np.arange(count) + 0.5) * (path / count))
    rays = []
    for i in np.flatnonzero(charge > _DELTA / _PAIR):
        energy = charge[i] * _PAIR
        rays.append(_electron(random, settings, places[:, i], _beside(random, direction, energy), energy))
        charge[i] = 0
    return np.concatenate([np.vstack([places, charge]), *rays], axis=1)


def _beside(random: np.random.Generator, direction: np.ndarray, energy: float) -> np.ndarray:
    """Direction of an electron of that energy, keV, struck by a much faster muon: cos**2 = T / (T + 2 m)."""
    cosine = np.sqrt(energy / (energy + 2 * _MASS))
    across = random.standard_normal(3)
    across -= (across @ direction) * direction
    return cosine * direction + np.sqrt(1 - cosine**2) * across / np.sqrt(across @ across)


def _electron(
    random: np.random.Generator, settings: CosmicRays, at: np.ndarray, direction: np.ndarray, energy: float
) -> np.ndarray:
    """Wandering path of an electron of that energy in keV."""
    kicks = random.standard_normal((int(2 * _range(energy) / _STEP) + 2, 3))
    pieces = _wander(at, direction, energy, kicks, settings.thickness)
    pieces[3] /= _PAIR
    return pieces


@njit(cache=True, nogil=True)
def _range(energy: float) -> float:
    """Range in silicon, um, of an electron of that energy in keV: Katz & Penfold 1952."""
    e = energy / 1e3
    return 1768.0 * e ** (1.265 - 0.0954 * np.log(e)) if energy > 1e-3 else 0.0


@njit(cache=True, nogil=True)
def _wander(start: np.ndarray, direction: np.ndarray, energy: float, kicks: np.ndarray, thickness: float) -> np.ndarray:
    """Positions, um, and energies, keV, left in the silicon: (4, steps).

    The energy falls so that the range does; each step turns by a Gaussian angle (Highland's formula).
    """
    out, steps = np.empty((4, len(kicks))), len(kicks)
    at, way = start.copy(), direction.copy()
    thin = 1 + 0.038 * np.log(_STEP / _RADIATION_LENGTH)
    for i in range(len(kicks)):
        reach = _range(energy)
        last = reach <= _STEP or i == len(kicks) - 1
        # d ln range / d ln energy of the formula above
        slope = reach / energy * (1.265 - 0.1908 * np.log(energy / 1e3)) if not last else 1.0
        loss = energy if last else min(energy, _STEP / slope)
        for j in range(3):
            out[j, i] = at[j]
        out[3, i] = loss
        momentum = energy * (energy + 2 * _MASS) / (energy + _MASS)  # p v, keV
        _turn(way, kicks[i], 13600.0 / momentum * np.sqrt(_STEP / _RADIATION_LENGTH) * thin)
        for j in range(3):
            at[j] += _STEP * way[j]
        energy -= loss
        if energy <= 0 or at[2] < 0 or at[2] > thickness:
            steps = i + 1
            break
    return out[:, :steps]


@njit(cache=True, nogil=True)
def _turn(way: np.ndarray, kick: np.ndarray, angle: float) -> None:
    """Turn the unit vector ``way`` by ``angle`` times the part of ``kick`` that is at right angles to it."""
    along, square = 0.0, 0.0
    for j in range(3):  # loops, for array expressions take seconds to compile
        along += kick[j] * way[j]
    for j in range(3):
        way[j] += angle * (kick[j] - along * way[j])
        square += way[j] * way[j]
    length = np.sqrt(square)
    for j in range(3):
        way[j] /= length
