"""Charge that is read late: inefficient transfers, traps of the serial register, a tired output (SCIENCE 3.1, 6).

The model is that of Snyder et al. (2021, JATIS 7, 048002), three effects in the order in which a row meets them:

- **Transfers.** Each leaves the share b of a packet behind, for the one that follows. A packet of column x needs
  n = x + 1 of them (prescan included) and so delivers ``C(n - 1 + k, k) b**k (1 - b)**n`` of its charge k pixels late.
  Rows on their way to the register do the same, with n = y + 1 and a b of their own.
- **Traps.** One in column c sees every packet of x >= c. Of what a packet holds above a threshold it takes a share,
  until it is full, and gives back ``1 - exp(-1 / emission)`` of what it holds to each packet that follows.
- **Output.** A pixel leaves an offset behind that decays: ``max_j A s(x - j) exp(-j / decay)``, j >= 0, is added to
  pixel x. This is no charge, and the pixel's own share (j = 0) makes a flat brighter by A.

Deferral is a mean: the shot noise of some electrons in a thousand pixels is not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["TRAP", "Deferred", "Transfer", "defer", "transfers"]

TRAP: Final = np.dtype(
    [
        ("column", np.int32),  # raw column whose place in the register it has
        ("size", np.float32),  # electrons it holds
        ("emission", np.float32),  # transfers after which it has given back all but 1/e
        ("threshold", np.float32),  # electrons that a packet can hold without touching it
    ]
)

_LATEST: Final = 3  # pixels by which charge comes late; it is 1e-6 of a packet, at most, that would be later
_LEAST: Final = 1e-8  # of a packet: a smaller share is not followed, and stays where it is
_FORGOTTEN: Final = 1e-6  # of an offset: what is left of it no longer counts


class Deferred(Effect):
    """How much charge is late.

    ``serial`` and the offset together are the medians of the LSST camera's Run 6 from the first two overscan pixels of
    bright flats, 3.8e-7 (e2v) and 1.19e-6 (ITL) per transfer, as are the scatters; how they share it follows the
    sizes used by Rubin's own software for such an amplifier (A = 1.8e-4 and 2.8e-4, decay 3.1, b = 1.4e-7).
    ``parallel`` is Run 6's median of the same kind, 1.3e-8 (e2v) and 1e-9 (ITL). Number and size of traps are of the
    order of Run 6's excess at 1000 electrons: in 7 % of the ITL and 1 % of the e2v amplifiers the two pixels hold more
    than 4 electrons. Their emission time is that of Rubin's tests; threshold and share are illustrative.
    """

    serial_e2v: float = Field(1.35e-7, ge=0, le=2e-5)  # per transfer, median; also of vendors that are not named here
    serial_itl: float = Field(3.5e-7, ge=0, le=2e-5)
    parallel_e2v: float = Field(1.3e-8, ge=0, le=2e-5)
    parallel_itl: float = Field(1e-9, ge=0, le=2e-5)
    offset_e2v: float = Field(1.0e-4, ge=0, le=0.01)  # A, of the charge of a pixel
    offset_itl: float = Field(3.4e-4, ge=0, le=0.01)
    decay: float = Field(3.1, gt=0, le=50)  # pixels after which an offset has fallen by e
    scatter_detector: float = Field(0.2, ge=0, le=1)  # of the logarithm of b and A, from CCD to CCD
    scatter_amplifier: float = Field(0.25, ge=0, le=1)  # from amplifier to amplifier
    traps_e2v: float = Field(0.015, ge=0, le=100)  # in the register of an amplifier, mean
    traps_itl: float = Field(0.1, ge=0, le=100)
    trap_size: float = Field(20.0, ge=0)  # electrons, median
    trap_scatter: float = Field(1.5, ge=0, le=3)  # of the logarithm of their size
    emission: float = Field(3.0, gt=0)  # transfers
    threshold: float = Field(500.0, ge=0)  # electrons, mean: each trap has 0.5 to 1.5 times that
    share: float = Field(0.05, ge=0, le=1)  # of the charge above the threshold that a trap takes


@dataclass(frozen=True, eq=False)
class Transfer:
    """Truth of one amplifier."""

    serial_cti: float  # b per transfer
    parallel_cti: float  # per transfer of a row
    offset: float  # A
    traps: np.ndarray  # (n,) of dtype `TRAP`


@lru_cache(maxsize=256)
def transfers(seed: int, settings: Deferred, detector: Detector) -> tuple[Transfer, ...]:
    """Truth of the amplifiers of a CCD, in the order of ``detector.amplifiers``; zeros if switched off."""
    return tuple(_transfer(seed, settings, detector, i) for i in range(len(detector.amplifiers)))


def _transfer(seed: int, settings: Deferred, detector: Detector, index: int) -> Transfer:
    if not settings.on:
        return Transfer(0.0, 0.0, 0.0, np.empty(0, TRAP))
    vendor = "itl" if detector.vendor == "ITL" else "e2v"
    medians = np.array([getattr(settings, f"{name}_{vendor}") for name in ("serial", "parallel", "offset")])
    common = stream(seed, "deferred_detector", detector=detector.id).standard_normal(3)
    random = stream(seed, "deferred", detector=detector.id, amplifier=index)
    own = random.standard_normal(3)
    found = medians * np.exp(settings.scatter_detector * common + settings.scatter_amplifier * own)
    traps = np.empty(random.poisson(getattr(settings, f"traps_{vendor}")), TRAP)
    traps["column"] = random.integers(detector.amplifiers[index].data.x1, size=len(traps))
    traps["size"] = settings.trap_size * np.exp(settings.trap_scatter * random.standard_normal(len(traps)))
    traps["emission"] = settings.emission
    traps["threshold"] = settings.threshold * random.uniform(0.5, 1.5, len(traps))
    traps.sort(order="column")
    traps = traps[::-1].copy()  # the last one to be passed is the one nearest to the output
    traps.flags.writeable = False
    return Transfer(float(found[0]), float(found[1]), float(found[2]), traps)


def defer(
    seed: int, settings: Deferred, detector: Detector, charge: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Packets as they are measured.

    Parameters
    ----------
    seed, settings, detector : whose registers they pass.
    charge : (amplifier, y, x) float32, electron, readout orientation, over the raw amplifiers with overscan.
    names : of the amplifiers along the first axis; those the detector does not have stay as they are.

    Returns
    -------
    As ``charge``, a copy; ``charge`` itself if the effect is off.
    (amplifier,) electron that come after the last pixel of a row or after the last row; with them charge is
    conserved, but for the offset of the output.

    Raises
    ------
    InconsistentGeometry
        As many names as amplifiers are needed.
    """
    if charge.ndim != 3 or len(names) != len(charge):
        raise InconsistentGeometry(
            f"{detector.name}: charge is {charge.shape} with {len(names)} amplifier names: pass (amplifier, y, x)"
        )
    left = np.zeros(len(charge))
    if not settings.on:
        return charge, left
    charge = np.ascontiguousarray(charge, np.float32)
    read = np.zeros_like(charge)
    fading = _fading(settings.decay)
    found = dict(zip((a.name for a in detector.amplifiers), transfers(seed, settings, detector), strict=True))
    for i, name in enumerate(names):
        if name not in found:
            read[i] = charge[i]
            continue
        own = found[name]
        rows, columns = (late(b, n) for b, n in zip((own.parallel_cti, own.serial_cti), charge.shape[1:], strict=True))
        left[i] = _read(charge[i], rows, columns, own.traps, settings.share, own.offset, fading, read[i])
    return read, left


def late(b: float, count: int) -> np.ndarray:
    """Share of a packet that comes 1, 2, 3 pixels late, after 1 to ``count`` transfers: (k, count) float32."""
    n = np.arange(1, count + 1, dtype=float)
    share, found = (1 - b) ** n, []
    for k in range(1, _LATEST + 1):
        share = share * b * (n + k - 1) / k
        if share[-1] > _LEAST:
            found.append(share)
    return np.array(found, np.float32).reshape(len(found), count)


def _fading(decay: float) -> np.ndarray:
    """What is left of an offset after 1, 2, 4 ... pixels: (steps,) float32, until nothing is."""
    found = [np.exp(-1 / decay)]
    while found[-1] > _FORGOTTEN:
        found.append(found[-1] ** 2)
    return np.array(found, np.float32)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _read(charge, rows, columns, traps, share, offset, fading, read):  # type: ignore[no-untyped-def]
    """Fill ``read`` (y, x) with what is measured of ``charge``; electrons that come out after the end.

    rows (k, y) and columns (k, x): shares that come k + 1 pixels late.
    """
    ny, nx = charge.shape
    one, other = np.empty(nx, np.float32), np.empty(nx, np.float32)
    left = 0.0
    for y in range(ny):
        left += _shift_rows(charge, rows, y, one)
        out = read[y]
        left += _shift_columns(one, columns, out)
        for trap in traps:
            left += _pass_trap(out, trap, share)
        if offset > 0:
            _add_offset(out, one, other, offset, fading)
    return left


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _shift_rows(charge, rows, y, line):  # type: ignore[no-untyped-def]
    """Fill ``line`` (x,) with the packets of row y as they reach the register; what comes after the last row."""
    ny, nx = charge.shape
    here, left = charge[y], 0.0
    line[:] = here
    for k in range(len(rows)):
        lost = rows[k, y]
        if y > k:
            given, before = rows[k, y - k - 1], charge[y - k - 1]
            for x in range(nx):
                line[x] += given * before[x] - lost * here[x]
        else:
            for x in range(nx):
                line[x] -= lost * here[x]
        if y + k + 1 >= ny:
            left += lost * here.sum()
    return left


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _shift_columns(line, columns, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (x,) with what the register delivers of the packets of ``line``; what comes after the last pixel."""
    nx, left = len(line), 0.0
    out[:] = line
    for k in range(len(columns)):
        by, given = k + 1, columns[k]
        for x in range(by):
            out[x] -= given[x] * line[x]
            left += given[nx - by + x] * line[nx - by + x]
        late, lost, here, shares, before = out[by:], given[by:], line[by:], given[: nx - by], line[: nx - by]
        for x in range(nx - by):
            late[x] += shares[x] * before[x] - lost[x] * here[x]
    return left


@njit(cache=True, nogil=True, error_model="numpy")
def _pass_trap(line, trap, share):  # type: ignore[no-untyped-def]
    """Let the packets of a row (x,) pass a trap, in place; what it holds after the last."""
    held, size, threshold = 0.0, np.float64(trap.size), np.float64(trap.threshold)
    gives = -np.expm1(-1.0 / trap.emission)
    for x in range(trap.column, len(line)):
        packet = line[x] + held * gives
        held -= held * gives
        taken = max(min(size, share * (packet - threshold)) - held, 0.0)
        held += taken
        line[x] = packet - taken
    return held


@njit(cache=True, nogil=True, error_model="numpy")
def _widen(one, step, fade, other):  # type: ignore[no-untyped-def]
    """Fill ``other`` (x,) with the greater of each pixel and the faded one ``step`` before."""
    here, before, found = one[step:], one[: len(one) - step], other[step:]
    for x in range(step):
        other[x] = one[x]
    for x in range(len(found)):
        faded = fade * before[x]
        found[x] = faded if faded > here[x] else here[x]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def _add_offset(out, one, other, offset, fading):  # type: ignore[no-untyped-def]
    """Add to a row (x,) the greatest of the faded offsets of its pixels; ``one`` and ``other`` (x,) are overwritten.

    The maximum over twice as many pixels is that of two maxima: a few passes without a chain from pixel to pixel.
    """
    nx, scale, zero, step = len(out), np.float32(offset), np.float32(0), 1
    for x in range(nx):
        charge = scale * out[x]
        one[x] = charge if charge > zero else zero
    for fade in fading:
        if step >= nx:
            break
        _widen(one, step, fade, other)
        one, other = other, one
        step *= 2
    for x in range(nx):
        out[x] += one[x]
