"""Dark current, hot pixels and pixels that blink (SCIENCE 2.7 and 6, stage 6).

The rate of a pixel is ``amplifier x (1 + pixel noise) + glow of the output + hot``, all of it doubled every few
kelvin. A row that waits for its turn to be read gathers charge meanwhile, hence the gradient of `dark_electrons`.
"""

from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Amplifier, Detector
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import TILE_ROWS, stream, tiles

__all__ = [
    "ROW_TIME",
    "BlinkingPixels",
    "DarkCurrent",
    "HotPixels",
    "blinking_rate",
    "dark_electrons",
    "dark_rate",
    "warming",
]

ROW_TIME: Final = 2.0 / 2048
"""Time to read a row, s: the 2048 rows of an LSSTCam amplifier take about 2 s."""

_SPARSE: Final = np.dtype([("y", np.int32), ("x", np.int32), ("rate", np.float32)])


class DarkCurrent(Effect):
    """Charge that comes without light.

    Medians as published for the LSST camera (SITCOMTN-148); scatters between and within CCDs as in the
    camera's Run 6. Generation in depleted silicon grows as T**1.5 exp(-E_g / 2kT), which near 173 K doubles
    every 3 K. Pixel scatter and glow of the output amplifiers are of the order seen in such sensors.
    """

    e2v: float = Field(0.023, ge=0)  # electron/s, median; also of vendors that are not named here
    itl: float = Field(0.021, ge=0)  # electron/s, median
    scatter_detector: float = Field(0.25, ge=0)  # of the logarithm, from CCD to CCD
    scatter_amplifier: float = Field(0.05, ge=0)  # of the logarithm, from amplifier to amplifier
    scatter_pixel: float = Field(0.1, ge=0)  # of the rate, from pixel to pixel; no rate is below 0
    glow: float = Field(0.01, ge=0)  # electron/s at the pixel that is read first
    glow_length: float = Field(100.0, gt=0)  # px along rows and columns over which the glow falls by e
    reference: float = Field(173.15, gt=0)  # K, the temperature at which the rates hold
    doubling: float = Field(3.0, gt=0)  # K, warming that doubles every rate


class HotPixels(Effect):
    """Pixels of high dark current.

    95 % of the rates are between 0.1 and 50 electron/s. With this density an LSSTCam amplifier has 1.5 pixels
    above 5 electron/s, which lies between the counts of Run 6 for ITL (2.6) and e2v (0.7) sensors, the worst
    2 % of amplifiers left out.
    """

    density: float = Field(5e-6, ge=0, le=1)  # per pixel
    median: float = Field(2.24, gt=0)  # electron/s
    scatter: float = Field(1.59, ge=0)  # of the logarithm of the rate


class BlinkingPixels(Effect):
    """Hot pixels that are on in some exposures and off in others: random telegraph noise.

    Before each exposure a pixel forgets its state with probability ``renewal`` and then is on with probability
    ``duty``: a chain of two states whose memory falls as (1 - renewal)**lag. Numbers are illustrative.
    """

    density: float = Field(1e-6, ge=0, le=1)  # per pixel
    median: float = Field(2.24, gt=0)  # electron/s while on
    scatter: float = Field(1.0, ge=0)  # of the logarithm of the rate
    duty: float = Field(0.5, ge=0, le=1)  # fraction of the exposures in which it is on
    renewal: float = Field(0.2, ge=0.01, le=1)  # per exposure


def dark_rate(
    seed: int, dark: DarkCurrent, hot: HotPixels, detector: Detector, temperature: float | None = None
) -> np.ndarray:
    """Rate of dark charge without the blinking pixels.

    Parameters
    ----------
    seed, dark, hot, detector : what is simulated.
    temperature : of the CCD, K; default, the one at which the rates of the settings hold.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron/s.
    """
    rate = np.zeros(detector.shape, np.float32)
    if dark.on:
        for i, amplifier in enumerate(detector.amplifiers):
            rate[_box(amplifier)] = _amplifier_rate(seed, dark, detector, i)
    if hot.on:
        pixels = _sparse(seed, "hot_pixels", hot, detector)
        np.add.at(rate, (pixels["y"], pixels["x"]), pixels["rate"])
    warmer = 0.0 if temperature is None else temperature - dark.reference
    return rate if warmer == 0 else rate * np.float32(warming(dark, warmer))


def warming(dark: DarkCurrent, warmer: float) -> float:
    """Factor on every dark rate of a CCD that is so many K warmer."""
    return float(2 ** (warmer / dark.doubling))


def _amplifier_rate(seed: int, dark: DarkCurrent, detector: Detector, index: int) -> np.ndarray:
    """(y, x) of one amplifier in CCD orientation at the reference temperature."""
    amplifier = detector.amplifiers[index]
    ny, nx = amplifier.data.shape
    common = dark.scatter_detector * stream(seed, "dark_detector", detector=detector.id).standard_normal()
    own = stream(seed, "dark_amplifier", detector=detector.id, amplifier=index).standard_normal()
    level = (dark.itl if detector.vendor == "ITL" else dark.e2v) * np.exp(common + dark.scatter_amplifier * own)
    tall, wide = (np.exp(-np.arange(n) / dark.glow_length).astype(np.float32) for n in (ny, nx))
    tall, wide = tall[:: -1 if amplifier.flip_y else 1] * np.float32(dark.glow), wide[:: -1 if amplifier.flip_x else 1]
    rate = np.empty((ny, nx), np.float32)
    for tile, rows in tiles(ny):
        random = stream(seed, "dark_pixels", detector=detector.id, amplifier=index, tile=tile)
        part = rate[rows]
        random.standard_normal(dtype=np.float32, out=part)
        part *= np.float32(level * dark.scatter_pixel)
        part += np.float32(level)
        np.maximum(part, 0, out=part)
        part += tall[rows, None] * wide
    return rate


def _box(amplifier: Amplifier) -> tuple[slice, slice]:
    """Pixels of the CCD that it reads."""
    (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
    return slice(y0, y0 + ny), slice(x0, x0 + nx)


def _sparse(seed: int, effect: str, settings: HotPixels | BlinkingPixels, detector: Detector) -> np.ndarray:
    """Pixels (y, x) of a CCD that are hot, and their log-normal rates; one may be struck twice."""
    found = [np.empty(0, _SPARSE)]
    for i, amplifier in enumerate(detector.amplifiers):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        for tile, rows in tiles(ny):
            random = stream(seed, effect, detector=detector.id, amplifier=i, tile=tile)
            size = (rows.stop - rows.start) * nx
            one = np.empty(random.poisson(settings.density * size), _SPARSE)
            place = random.integers(size, size=len(one))
            one["y"], one["x"] = y0 + tile * TILE_ROWS + place // nx, x0 + place % nx
            one["rate"] = settings.median * np.exp(settings.scatter * random.standard_normal(len(one)))
            found.append(one)
    return np.concatenate(found)


def blinking_rate(seed: int, settings: BlinkingPixels, detector: Detector, exposure_number: int) -> np.ndarray:
    """Rate of the blinking pixels in one exposure.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron/s; 0 but in the pixels that are on.
    """
    rate = np.zeros(detector.shape, np.float32)
    if settings.on:
        pixels = _sparse(seed, "blinking_pixels", settings, detector)
        pixels = pixels[_states(seed, settings, detector, exposure_number, len(pixels))]
        np.add.at(rate, (pixels["y"], pixels["x"]), pixels["rate"])
    return rate


def _states(seed: int, settings: BlinkingPixels, detector: Detector, number: int, count: int) -> np.ndarray:
    """Which of the blinking pixels are on: each as at its last renewal, which is sought backwards in time."""
    on, known = np.zeros(count, bool), np.zeros(count, bool)
    for past in range(number, -1, -1):
        if known.all():
            break
        renew, state = stream(seed, "blinking_states", exposure=past, detector=detector.id).random((2, count))
        now = ~known & ((renew < settings.renewal) | (past == 0))
        on[now] = state[now] < settings.duty
        known |= now
    return on


def dark_electrons(rate: np.ndarray, detector: Detector, dark_time: float, row_time: float = ROW_TIME) -> np.ndarray:
    """Expected dark charge: ``rate x (dark_time + rows read before x row_time)``.

    Parameters
    ----------
    rate : (y, x) over ``detector.shape``, electron/s.
    detector : whose amplifiers say in which order the rows are read.
    dark_time : s until the readout begins.
    row_time : s to read a row.

    Returns
    -------
    (y, x) float32, electron.
    """
    electrons = np.zeros(detector.shape, np.float32)
    for amplifier in detector.amplifiers:
        before = amplifier.data.y0 + np.arange(amplifier.data.shape[0])
        time = (dark_time + row_time * (before[::-1] if amplifier.flip_y else before)).astype(np.float32)
        box = _box(amplifier)
        np.multiply(rate[box], time[:, None], out=electrons[box])
    return electrons
