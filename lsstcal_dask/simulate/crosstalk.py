"""Crosstalk between readout channels, in the analogue domain (¶5, ¶10f, Secs. 2.6 and 3.3).

Pixels read at the same moment disturb each other: the channel t that should see Q_t electrons sees
``Q_t + sum_s c[t,s] Q_s + c2[t,s] Q_s**2`` electrons, before its own non-linearity and conversion. Sources
count with all their charge, overscan and what no converter could show included. The same index of two raw
amplifiers in readout orientation is the same moment.

What the truth is like was read off the laboratory coefficients of the 197 full-sized CCDs that come with the
obs_lsst package (medians over CCDs and amplifiers at equal distance; row = target, column = source):

- neighbours in the same half, in the order C10 ... C17, C07 ... C00: +-1 place 1.9e-4 (e2v) and 2.0e-4
  (ITL), +-2 3e-5 and 6.5e-5, +-3 1e-5 and 3e-5: geometric, on top of a tail that is positive (6e-6) from sources
  before the target and negative (-3e-6) from those after it; entries scatter by 0.25 of themselves;
- the other half of the CCD: 6e-6 in e2v, none seen in ITL: here, a share of the pairs;
- c2: -3.3e-10 per electron for neighbours, falling by 1/e over 2.5 places, -5e-11 from the other half.

Between CCDs a few pairs couple, of those that one board reads: R22_S00, R22_S01 and R22_S02. Nothing
is published of them; 3e-6 to 3e-5 is what Sec. 2.6 of SCIENCE asks to find.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import InconsistentGeometry, WrongUse
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate.boards import board, boards
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["Couplings", "Crosstalk", "add_crosstalk", "coupled", "couplings", "crosstalk_truth"]

_SLOTS: Final = 3  # CCDs on a board
_CHANNELS: Final = 16  # of a CCD, at most, on a board


class Crosstalk(Effect):
    """Sizes of the coefficients, electron per electron unless said otherwise; their source is in the module's text."""

    nearest: float = Field(1.85e-4, ge=0, le=0.01)
    decay: float = Field(0.15, ge=0, le=1)  # from one place to the next
    decay_itl: float = Field(0.37, ge=0, le=1)  # the same, CCDs of ITL
    reach: int = Field(7, ge=0)  # places; nothing couples further within its half
    before: float = Field(6e-6, ge=-1e-3, le=1e-3)  # tail from sources before the target
    after: float = Field(-3e-6, ge=-1e-3, le=1e-3)  # tail from sources after it
    opposite: float = Field(6e-6, ge=-1e-3, le=1e-3)  # from the other half
    opposite_share: float = Field(0.6, ge=0, le=1)  # of the pairs across the halves that couple
    scatter: float = Field(0.25, ge=0, le=1)  # of every coefficient, ln
    quadratic: float = Field(-3.3e-10, ge=-1e-8, le=1e-8)  # per electron, of neighbours
    quadratic_reach: float = Field(2.5, gt=0)  # places, 1/e
    quadratic_opposite: float = Field(-5e-11, ge=-1e-8, le=1e-8)  # per electron
    per_board: float = Field(3.2, ge=0)  # mean number of couplings between the CCDs of a board: 200 in LSSTCam
    inter_low: float = Field(3e-6, gt=0, le=1e-3)  # least |c| between CCDs: uniform in ln
    inter_high: float = Field(3e-5, gt=0, le=1e-3)  # greatest
    inter_negative: float = Field(0.3, ge=0, le=1)  # share of those that are negative


@dataclass(frozen=True, eq=False)
class Couplings:
    """Non-zero coefficients, arrays of one length; channels are counted along ``camera.amplifier_names``."""

    target_detector: np.ndarray  # id of the CCD
    target: np.ndarray  # channel
    source_detector: np.ndarray  # id of the CCD
    source: np.ndarray  # channel
    c: np.ndarray  # float64, electron per electron
    c2: np.ndarray  # float64, electron per electron**2


def _make(rows: list[tuple[int, int, int, int, float, float]]) -> Couplings:
    columns = list(zip(*rows, strict=True)) or [()] * len(fields(Couplings))
    return Couplings(*(np.array(c, np.int64) for c in columns[:4]), *(np.array(c, float) for c in columns[4:]))


def _places(camera: Camera, detector: Detector) -> np.ndarray:
    """Channel of each of ``detector.amplifiers``."""
    return np.array([camera.amplifier_names.index(a.name) for a in detector.amplifiers])


def _around(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Half and place of each amplifier on the way round the CCD: along the top, back along the rows below."""
    heights = sorted({a.position[1] for a in detector.amplifiers}, reverse=True)
    half = np.array([heights.index(a.position[1]) for a in detector.amplifiers])
    across = np.array([a.position[0] for a in detector.amplifiers])
    order = np.lexsort((np.where(half == 0, across, -across), half))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return half, place


def _within(seed: int, settings: Crosstalk, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """C and c2 (target, source) within a CCD, both along ``detector.amplifiers``."""
    half, place = _around(detector)
    n = len(place)
    random = stream(seed, "crosstalk", detector=detector.id)
    spread, spread2 = np.exp(settings.scatter * random.standard_normal((2, n, n)))
    ahead = place[None, :] - place[:, None]
    distance = np.maximum(np.abs(ahead), 1)
    ratio = settings.decay_itl if detector.vendor == "ITL" else settings.decay
    c = settings.nearest * float(ratio) ** (distance - 1) + np.where(ahead > 0, settings.after, settings.before)
    c2 = settings.quadratic * np.exp((1 - distance) / settings.quadratic_reach)
    same = half[:, None] == half[None, :]
    joined = np.where(same, np.abs(ahead) <= settings.reach, random.random((n, n)) < settings.opposite_share)
    joined &= ahead != 0
    c, c2 = np.where(same, c, settings.opposite), np.where(same, c2, settings.quadratic_opposite)
    return np.where(joined, c * spread, 0.0), np.where(joined, c2 * spread2, 0.0)


def _between(seed: int, settings: Crosstalk, board: str) -> list[tuple[int, int, int, int, float]]:
    """Target slot and amplifier, source slot and amplifier, c: a pure function of seed and board."""
    random = stream(seed, f"crosstalk_board_{board}")
    low, high = np.log([settings.inter_low, settings.inter_high])
    found = {}
    for _ in range(random.poisson(settings.per_board)):
        slot, other = random.integers(_SLOTS), random.integers(1, _SLOTS)
        target, source = random.integers(_CHANNELS, size=2)
        size = np.exp(random.uniform(low, high)) * (-1 if random.random() < settings.inter_negative else 1)
        found[int(slot), int(target), int((slot + other) % _SLOTS), int(source)] = float(size)
    return [(*pair, size) for pair, size in found.items()]


def _members(camera: Camera, name: str) -> dict[int, Detector]:
    """CCDs of a board by slot; none of a board that reads but one CCD."""
    return {int(d.name[-1]): d for d in boards(camera)[name] if d.name != name}


def couplings(seed: int, settings: Crosstalk, camera: Camera, detector: Detector) -> Couplings:
    """Everything that disturbs one CCD, sources on other CCDs of the camera included.

    Returns
    -------
    Entries ordered by source CCD (its own first) and target; the sources of a target do not depend in their
    order on how the camera orders its channels, nor do sums over them.
    """
    if not settings.on:
        return _make([])
    places = _places(camera, detector)
    c, c2 = _within(seed, settings, detector)
    rows = [
        (detector.id, int(places[t]), detector.id, int(places[s]), float(c[t, s]), float(c2[t, s]))
        for t, s in zip(*np.nonzero((c != 0) | (c2 != 0)), strict=True)
    ]
    members = _members(camera, board(detector))
    for slot, t, other, s, size in _between(seed, settings, board(detector)) if members else []:
        source = members.get(other)
        present = source is not None and s < len(source.amplifiers) and t < len(places)
        if present and members.get(slot) is detector and source is not None:
            rows.append((detector.id, int(places[t]), source.id, int(_places(camera, source)[s]), size, 0.0))
    return _make(sorted(rows, key=lambda row: (row[2] != detector.id, row[2], row[1])))


def crosstalk_truth(seed: int, settings: Crosstalk, camera: Camera) -> Couplings:
    """Every coefficient of the camera that is not zero; c is in electrons of target per electron of source."""
    parts = [couplings(seed, settings, camera, detector) for detector in camera.detectors]
    return Couplings(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Couplings)))


def coupled(seed: int, settings: Crosstalk, camera: Camera, detector: Detector) -> tuple[str, ...]:
    """Names of the other CCDs whose charge reaches this one."""
    ids = set(couplings(seed, settings, camera, detector).source_detector.tolist()) - {detector.id}
    return tuple(d.name for d in camera.detectors if d.id in ids)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _couple(out, source, first, start, channel, c, c2):  # type: ignore[no-untyped-def]
    """Add to each target t, pixel by pixel, what entries start[t] to start[t + 1] make of their sources.

    out : (channel, row, x) float32 electrons, of the rows from ``first``; source : (channel, y, x), all rows.
    """
    nt, ny, nx = out.shape
    total = np.empty(nx, np.float32)
    for y in range(ny):
        for t in range(nt):
            if start[t] == start[t + 1]:
                continue
            # summed apart from the signal, which would round it
            total[:] = 0.0
            for e in range(start[t], start[t + 1] - 1, 2):  # two at a time: a sum is stored less often
                one, two = source[channel[e], first + y], source[channel[e + 1], first + y]
                a, b, f, g = c[e], c2[e], c[e + 1], c2[e + 1]
                for x in range(nx):
                    total[x] = (total[x] + one[x] * (a + b * one[x])) + two[x] * (f + g * two[x])
            if (start[t + 1] - start[t]) % 2:
                e = start[t + 1] - 1
                one, a, b = source[channel[e], first + y], c[e], c2[e]
                for x in range(nx):
                    total[x] += one[x] * (a + b * one[x])
            target = out[t, y]
            for x in range(nx):
                target[x] += total[x]


def add_crosstalk(
    camera: Camera,
    detector: Detector,
    entries: Couplings,
    charge: np.ndarray,
    aggressors: Mapping[str, np.ndarray] | None = None,
    rows: slice = slice(None),
) -> np.ndarray:
    """Charge that the channels of one CCD seem to hold.

    Parameters
    ----------
    entries : its `couplings`.
    charge : (amplifier, y, x) float32 electrons, readout orientation, along ``camera.amplifier_names``.
    aggressors : the same of the CCDs that `coupled` names, by name; None: those CCDs are dark.
    rows : that are wanted, a slice without step.

    Returns
    -------
    (amplifier, row, x) float32 electrons, those rows; what nothing couples to is unchanged to the bit.

    Raises
    ------
    WrongUse
        ``aggressors`` lacks a CCD that couples to this one.
    InconsistentGeometry
        The charge of one is of another shape.
    """
    names = {d.id: d.name for d in camera.detectors}
    first, _, _ = rows.indices(charge.shape[1])
    out = charge[:, rows].copy()
    for source in dict.fromkeys(entries.source_detector.tolist()):
        if source != detector.id and aggressors is None:
            break
        pixels = charge if source == detector.id else _aggressor(aggressors or {}, names[source], detector, charge)
        mine = entries.source_detector == source
        start = np.searchsorted(entries.target[mine], np.arange(len(charge) + 1))
        c, c2 = entries.c[mine].astype(np.float32), entries.c2[mine].astype(np.float32)
        _couple(out, np.ascontiguousarray(pixels, np.float32), first, start, entries.source[mine], c, c2)
    return out


def _aggressor(aggressors: Mapping[str, np.ndarray], name: str, detector: Detector, charge: np.ndarray) -> np.ndarray:
    if name not in aggressors:
        raise WrongUse(f"crosstalk of {detector.name}: the charge of {name} is missing: pass it as an aggressor")
    if aggressors[name].shape != charge.shape:
        raise InconsistentGeometry(
            f"crosstalk of {detector.name}: charge of {name} is {aggressors[name].shape}, "
            f"its own {charge.shape}: pass arrays of one camera"
        )
    return aggressors[name]
