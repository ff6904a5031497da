"""Raw frames in electrons, at the index at which they were read: overscan, bias, linearity, gain (Secs. 3.1, 3.2, 2.2).

What spots and their crosstalk are measured on: no dark, no flat, and every pixel where the clock put it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.linearity import Curve
from lsstcal_dask.isr.linearity import curve as linearity_curve
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels

__all__ = ["Channel", "Signal", "channel", "signal"]


@dataclass(frozen=True)
class Channel:
    """What turns the counts of one amplifier into electrons."""

    amplifier: Amplifier
    gain: float  # electron/adu
    plane: np.ndarray | None = None  # (y, x) bias, adu
    plane_variance: float = 0.0  # electron**2, of a typical pixel of the bias
    curve: Curve | None = None  # adu: measured signal, what is added to it
    bad: np.ndarray | None = None  # (y, x) bool, pixels not to be used
    ceiling: float = np.inf  # electron, above which a pixel is not to be trusted


@dataclass(frozen=True)
class Signal:
    """Light-sensitive pixels of one amplifier of one exposure."""

    electrons: np.ndarray  # (y, x) float32
    noise: float  # electron, of a pixel without light
    row_variance: float  # electron**2, common to a row: left by its overscan level


def channel(amplifier: Amplifier, products: Mapping[str, xr.Dataset]) -> Channel:
    """Collect what the products say of an amplifier.

    Parameters
    ----------
    products : of its detector: ``gain``; ``bias``, ``linearity``, ``saturation``, ``defects`` if they are there.

    Raises
    ------
    InsufficientInputs
        It has no gain, or a bias that could not be made.
    """
    own = {name: product.sel(amplifier=amplifier.name) for name, product in products.items()}
    gain = float(own["gain"]["gain"])
    if not gain > 0:
        raise InsufficientInputs("no gain for this amplifier: see the remarks of 'gain'")
    box = tuple(slice(size) for size in amplifier.data.shape)
    plane, variance, bad, ceilings = None, 0.0, np.zeros(amplifier.data.shape, bool), [np.inf]
    if "bias" in own:
        plane = own["bias"]["image"].values[box].astype(np.float32)
        if not np.isfinite(plane).any():
            raise InsufficientInputs("no bias for this amplifier: see the remarks of 'bias'")
        variance = float(np.nanmedian(own["bias"]["variance"].values[box])) * gain**2
        bad |= ~np.isfinite(plane)
        plane = np.nan_to_num(plane)
    curve = None
    if "linearity" in own:
        level, add = (own["linearity"][f"linearity_{name}"].values for name in ("level", "correction"))
        if np.isfinite(level).any():
            curve = linearity_curve(level, add, amplifier.name)
            ceilings.append(float(own["linearity"]["linearity_ceiling"]) * gain)
    if "saturation" in own:
        ceilings += [float(own["saturation"][name]) for name in ("well_bloom", "well_serial", "well_adc")]
    if "defects" in own:
        bad |= own["defects"]["mask"].values[box] != 0
    return Channel(amplifier, gain, plane, variance, curve, bad, float(np.nanmin(ceilings)))


def signal(counts: np.ndarray, channel: Channel, overscan: OverscanConfig) -> Signal:
    """Electrons of raw counts (y, x) of one amplifier.

    ``g (m + S(m))`` with m the counts above overscan level and bias and S the correction of linearity, which
    stays what it is at its last node beyond it.
    """
    amplifier = channel.amplifier
    found = row_levels(reference_pixels(counts[None], amplifier), overscan)
    values = counts[amplifier.data.slices].astype(np.float32) - found.level[0][:, None]
    if channel.plane is not None:
        values -= channel.plane
    if channel.curve is not None:
        values += channel.curve(values).astype(np.float32)
    noise = float(found.read_noise[0])
    noise = noise * channel.gain if np.isfinite(noise) else amplifier.read_noise
    rows = float(np.nanmedian(found.variance)) * channel.gain**2
    return Signal((values * np.float32(channel.gain)).astype(np.float32), noise, rows)
