# mypy: allow-untyped-defs
"""Charge that was read late goes back to its pixel: serial transfers and output (Lupton 2016, ¶2; Sec. 3.1).

The law is that of Snyder et al. (2021, JATIS 7, 048002), in the order in which it is undone:

- The output adds an offset that fades: with r the row as read, a its ``offset_amplitude`` and f = exp(-1 / decay),

      o(x) = max(a r(x), f o(x - 1)),    u(x) = r(x) if a r(x) >= f o(x - 1), else (r(x) - f o(x - 1)) / (1 - a).

  A pixel's own share a scales all pixels alike. No measurement of the gain can tell it from the gain, and it stays.
- Each of the n = x + 1 transfers of raw column x leaves the share b behind for the packet that follows:

      s(x) = (u(x) - n(x - 1) b s(x - 1)) (1 + n(x) b).

  This is first order: of a packet (n b)**2 is missed, 5e-9 for LSSTCam's median and 3e-7 for b = 1e-6.

Not undone are traps, which depend on what came before, and parallel transfers, a hundredth of the serial ones.

The level of a row comes from reference pixels that still hold some of this: after the three that are skipped
a / 60 of the flux of the last column for LSSTCam (2e-6 to 6e-6, or 0.2 to 0.6 electrons of 100 000). It is
subtracted before there are electrons to work out the trail from, and what it costs is left in the image.
The variance, which it changes by a part in a thousand at most, is left as it is.
"""

from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from numba import njit

from lsstcal_dask.instrument.camera import Detector

__all__ = ["Registers", "registers", "restore_row"]

_NONE: Final = np.empty(0, np.float32)


class Registers(NamedTuple):
    """How the serial registers of a CCD lose charge; all (amplifier,) float32."""

    loss: np.ndarray = _NONE  # b, per transfer
    first: np.ndarray = _NONE  # transfers that the first light-sensitive pixel needs
    offset: np.ndarray = _NONE  # a, of the charge of a pixel
    fade: np.ndarray = _NONE  # what is left of an offset a pixel later


def registers(product: xr.Dataset, detector: Detector) -> Registers:
    """Registers of a CCD, in the order of its amplifiers, from the product ``deferred`` of this detector.

    What was not measured, or came out negative, corrects nothing.
    """
    part = product.sel(amplifier=[a.name for a in detector.amplifiers])
    loss, offset, decay = (part[name].values for name in ("serial_cti", "offset_amplitude", "offset_decay"))
    known = np.isfinite(loss) & np.isfinite(offset) & (decay > 0)
    return Registers(
        loss=np.where(known, np.maximum(loss, 0), 0).astype(np.float32),
        first=np.array([a.data.x0 + 1 for a in detector.amplifiers], np.float32),
        offset=np.where(known, np.maximum(offset, 0), 0).astype(np.float32),
        fade=np.exp(-1 / np.where(known, decay, 1.0)).astype(np.float32),
    )


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def restore_row(values, loss, first, offset, fade):
    """Undo offset and transfers in a row (x,) float32, in place; NaN gives nothing to the pixels after it.

    Parameters
    ----------
    values : signal of the light-sensitive pixels, in the order in which they were read.
    loss, first, offset, fade : float32, see `Registers`.
    """
    zero, one = np.float32(0), np.float32(1)
    back, held, late = one / (one - offset), zero, zero
    for x in range(values.size):
        read = values[x]
        faded, own = held * fade, offset * read
        held = own if own > faded else faded
        charge = (read - faded) * back if own < faded else read
        lost = loss * (first + np.float32(x))
        packet = (charge - late) * (one + lost)
        late = zero if np.isnan(packet) else lost * packet
        values[x] = packet
