"""Saturation: charge beyond the full well bleeds along its column; the serial register clamps (¶7, SCIENCE 2.5).

**Bleeding.** A pixel above its full well W gives what is too much in equal parts to its neighbours in the column, and
so do they, until no pixel is above W. The result does not depend on the order (the divisible sandpile of Levine &
Peres 2009): runs of pixels filled to W, each with a partly filled pixel at either end, such that charge *and centre
of charge* of a run are those it began with. At the far end of an amplifier's columns, the mid-line of the CCD, charge
is turned back; at the other end it falls into the serial register and is gone from the image.

**Serial clamp.** A packet of the register holds at most W_ser; what is too much joins the next one to be read.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.grids import check_image
from lsstcal_dask.simulate.random import stream

__all__ = ["Saturation", "SerialClamp", "bloom", "clamp_serial", "full_well", "serial_full_well"]


class Saturation(Effect):
    """Charge at which a pixel spills into its column.

    Medians and the scatter between CCDs: turnoff of linearity times photon-transfer gain of the LSST camera's
    Run 6. Within a CCD they agree to 1 % (e2v) and 5 % (ITL).
    """

    e2v: float = Field(167e3, gt=0)  # electron, median; also of vendors that are not named here
    itl: float = Field(177e3, gt=0)  # electron, median
    scatter_detector: float = Field(0.10, ge=0)  # of the logarithm, from CCD to CCD
    scatter_amplifier: float = Field(0.02, ge=0)  # of the logarithm, from amplifier to amplifier


class SerialClamp(Effect):
    """Charge that a packet of the serial register can hold; illustrative: a little above the pixels'."""

    e2v: float = Field(200e3, gt=0)  # electron, median; also of vendors that are not named here
    itl: float = Field(210e3, gt=0)  # electron, median
    scatter_detector: float = Field(0.10, ge=0)  # of the logarithm, from CCD to CCD
    scatter_amplifier: float = Field(0.02, ge=0)  # of the logarithm, from amplifier to amplifier


def full_well(seed: int, settings: Saturation, detector: Detector) -> np.ndarray:
    """Charge at which the pixels of each amplifier spill: (amplifier,) electron, infinite if switched off."""
    return _wells(seed, settings, "full_well", detector)


def serial_full_well(seed: int, settings: SerialClamp, detector: Detector) -> np.ndarray:
    """Charge that each serial register holds in a packet: (amplifier,) electron, infinite if switched off."""
    return _wells(seed, settings, "serial_full_well", detector)


def _wells(seed: int, settings: Saturation | SerialClamp, effect: str, detector: Detector) -> np.ndarray:
    count = len(detector.amplifiers)
    if not settings.on:
        return np.full(count, np.inf)
    common, *own = stream(seed, effect, detector=detector.id).standard_normal(1 + count)
    spread = settings.scatter_detector * common + settings.scatter_amplifier * np.array(own)
    # whole electrons, which float32 holds exactly: a bled image does not bleed again
    return np.rint((settings.itl if detector.vendor == "ITL" else settings.e2v) * np.exp(spread))


def bloom(seed: int, settings: Saturation, detector: Detector, charge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image with the bleed trails of its saturated pixels.

    Parameters
    ----------
    seed, settings, detector : whose full wells hold.
    charge : (y, x) over ``detector.shape``, electron.

    Returns
    -------
    As ``charge``, a copy; ``charge`` itself if no pixel spills.
    (amplifier,) electron that fell into the serial register of each; with them charge is conserved.

    Raises
    ------
    InconsistentGeometry
        ``charge`` has not the shape of the CCD.
    """
    check_image(detector, charge)
    bled, drained = charge, np.zeros(len(detector.amplifiers))
    for i, (amplifier, well) in enumerate(zip(detector.amplifiers, full_well(seed, settings, detector), strict=True)):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        box = slice(y0, y0 + ny), slice(x0, x0 + nx)
        columns = np.flatnonzero(charge[box].max(axis=0) > well) if settings.on else np.empty(0, int)
        if len(columns):
            bled = charge.copy() if bled is charge else bled
            part = bled[box][:: -1 if amplifier.flip_y else 1]
            drained[i] = _spill_columns(part, columns, well)
    return bled, drained


@njit(cache=True, nogil=True)
def _spill_columns(charge, columns, well):  # type: ignore[no-untyped-def]
    """Bleed those columns of (y, x) in place, row 0 next to the register; what fell into it."""
    drained = 0.0
    line = np.empty(charge.shape[0])
    for column in columns:
        line[:] = charge[:, column]
        drained += _spill(line, well)
        charge[:, column] = line
    return drained


@njit(cache=True, nogil=True)
def _fluxes(a, b, excess, moment, rows):  # type: ignore[no-untyped-def]
    """Charge that leaves the run of pixels a to b at its lower and upper end.

    ``excess`` is the sum of (charge - well) over the run and ``moment`` the same weighted with the row: the ends
    share the excess as a lever does. At the far end of the column everything turns back.
    """
    if b == rows - 1:
        return excess, 0.0
    length = b - a + 2
    return (excess * (b + 1) - moment) / length, (moment - excess * (a - 1)) / length


@njit(cache=True, nogil=True)
def _spill(line, well):  # type: ignore[no-untyped-def]
    """Bleed one column (y,) in place, register before row 0; what fell into it.

    Runs grow by a pixel whenever the flux at an end overfills it, and merge when they meet: every pixel joins
    a run once, so the cost is that of the trails.
    """
    rows = len(line)
    first, last = np.empty(rows, np.int64), np.empty(rows, np.int64)
    excess, moment = np.empty(rows), np.empty(rows)
    runs, row = 0, 0
    while row < rows:
        if line[row] <= well:
            row += 1
            continue
        a, b, s, m = row, row, line[row] - well, (line[row] - well) * row
        growing = True
        while growing:
            growing = False
            down, up = _fluxes(a, b, s, m, rows)
            if a > 0:
                shared = runs > 0 and last[runs - 1] + 1 == a - 1
                other = 0.0
                if shared:
                    k = runs - 1
                    other = _fluxes(first[k], last[k], excess[k], moment[k], rows)[1]
                if line[a - 1] + down + other > well:
                    a, s, m, growing = a - 1, s + line[a - 1] - well, m + (line[a - 1] - well) * (a - 1), True
                    if shared:
                        runs -= 1
                        a, s, m = first[runs], s + excess[runs], m + moment[runs]
                    continue
            if b < rows - 1 and line[b + 1] + up > well:
                b, s, m, growing = b + 1, s + line[b + 1] - well, m + (line[b + 1] - well) * (b + 1), True
        first[runs], last[runs], excess[runs], moment[runs] = a, b, s, m
        runs, row = runs + 1, b + 1
    drained = 0.0
    for k in range(runs):
        down, up = _fluxes(first[k], last[k], excess[k], moment[k], rows)
        line[first[k] : last[k] + 1] = well
        if first[k] > 0:
            line[first[k] - 1] += down
        else:
            drained += down
        if last[k] < rows - 1:
            line[last[k] + 1] += up
    return drained


def clamp_serial(
    seed: int, settings: SerialClamp, detector: Detector, charge: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows as the serial registers deliver them.

    Parameters
    ----------
    seed, settings, detector : whose serial full wells hold.
    charge : (amplifier, y, x), electron, readout orientation: x is the order of reading, overscan included if
        the charge that is too much shall appear there.
    names : of the amplifiers along the first axis; those the detector does not have stay as they are.

    Returns
    -------
    As ``charge``, a copy; ``charge`` itself if no packet is too full.
    (amplifier, y) electron left over after the last pixel of each row; with them charge is conserved.

    Raises
    ------
    InconsistentGeometry
        As many names as amplifiers are needed.
    """
    if charge.ndim != 3 or len(names) != len(charge):
        raise InconsistentGeometry(
            f"{detector.name}: charge is {charge.shape} with {len(names)} amplifier names: pass (amplifier, y, x)"
        )
    wells = dict(zip((a.name for a in detector.amplifiers), serial_full_well(seed, settings, detector), strict=True))
    limits = np.array([wells.get(name, np.inf) for name in names])
    left = np.zeros(charge.shape[:2])
    full = charge.reshape(len(charge), -1).max(axis=1, initial=-np.inf) > limits
    if full.any():
        charge = charge.copy()
        for i in np.flatnonzero(full):
            _clamp(charge[i], limits[i], left[i])
    return charge, left


@njit(cache=True, nogil=True)
def _clamp(charge, well, left):  # type: ignore[no-untyped-def]
    """Clamp the packets of (y, x) in place, in the order of x; ``left`` (y,) is what remains at the end."""
    for y in range(charge.shape[0]):
        carried = 0.0
        for x in range(charge.shape[1]):
            packet = charge[y, x] + carried
            carried = max(packet - well, 0.0)
            charge[y, x] = packet - carried
        left[y] = carried
