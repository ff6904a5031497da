"""From charge to counts: gain, noise and conversion of each readout channel (¶1, ¶2, Secs. 2.1, 2.2 and 3.1).

The last stages of the forward model, for raw amplifiers in readout orientation:

    A = (Q_t + crosstalk) / g_t
    counts = round(m_t(A) + bias(y, x) + pedestal + drift(y) + noise), within the range of the converter

with m_t the non-linear channel (`linearity`). Published medians of gain and read noise are in the camera
descriptions; how they scatter was read off the summary of LSSTCam's Run 6 (medians of CCDs by vendor).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numba import njit
from pydantic import Field

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate.bias import BiasStructure, OverscanDrift, bias_terms, drift
from lsstcal_dask.simulate.crosstalk import Crosstalk, add_crosstalk, couplings
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.linearity import Nonlinearity, Table, table
from lsstcal_dask.simulate.random import stream, tiles

__all__ = ["Channel", "Digitisation", "Electronics", "Gain", "ReadNoise", "channel", "read_out"]

_PATTERN: Final = 1024  # codes after which the errors of the converter's steps repeat


class Gain(Effect):
    """Electrons per adu about the nominal gain of the camera description; 1 without the effect."""

    scatter_ccd: float = Field(0.03, ge=0, le=0.3)  # from CCD to CCD, ln
    scatter: float = Field(0.017, ge=0, le=0.3)  # from channel to channel of a CCD, ln
    temperature: float = Field(6.5e-4, ge=-0.01, le=0.01)  # 1/K, of electrons per adu against the camera's nominal


class ReadNoise(Effect):
    """Gaussian noise: of every pixel by itself, and one more number common to the pixels of a row."""

    scatter_ccd: float = Field(0.05, ge=0, le=0.5)  # of the nominal read noise from CCD to CCD, ln
    scatter: float = Field(0.03, ge=0, le=0.5)  # from channel to channel of a CCD, ln
    row: float = Field(0.3, ge=0)  # electrons, common to a row of one channel


class Digitisation(Effect):
    """The converter: 18 bits in int32 files, 16 in uint16. Without the effect, rounding within the file's range."""

    pedestal: float = Field(0.095, ge=0, le=1)  # level without signal, of full scale: 25 kadu of 18 bits
    pedestal_scatter: float = Field(0.05, ge=0, le=0.5)  # from channel to channel, of itself
    steps: float = Field(0.0, ge=0, le=0.2)  # adu rms of the edges between codes: differential non-linearity


@dataclass(frozen=True)
class Electronics:
    """Settings of everything between charge and counts."""

    gain: Gain = field(default_factory=Gain)
    read_noise: ReadNoise = field(default_factory=ReadNoise)
    nonlinearity: Nonlinearity = field(default_factory=Nonlinearity)
    crosstalk: Crosstalk = field(default_factory=Crosstalk)
    bias_structure: BiasStructure = field(default_factory=BiasStructure)
    overscan_drift: OverscanDrift = field(default_factory=OverscanDrift)
    digitisation: Digitisation = field(default_factory=Digitisation)


@dataclass(frozen=True)
class Channel:
    """What one readout channel is."""

    gain: float  # electron/adu, for little light (see the gauge of `linearity`)
    read_noise: float  # electron, of a pixel
    row_noise: float  # electron, common to a row
    pedestal: float  # adu, without signal, before drift and structure
    full_scale: float  # adu, largest count


def channel(
    seed: int,
    electronics: Electronics,
    camera: Camera,
    detector: Detector,
    amplifier_index: int,
    temperature: float | None = None,
) -> Channel:
    """Truth of one channel.

    Parameters
    ----------
    amplifier_index : place in ``detector.amplifiers``.
    temperature : K; default, the camera's nominal one.
    """
    ours = stream(seed, "channel", detector=detector.id, amplifier=amplifier_index).standard_normal(3)
    ccds = stream(seed, "channel_ccd", detector=detector.id).standard_normal(2)
    amplifier, gain, noise = detector.amplifiers[amplifier_index], electronics.gain, electronics.read_noise
    warm = 0.0 if temperature is None else temperature - camera.temperature
    value = amplifier.gain * np.exp(gain.scatter_ccd * ccds[0] + gain.scatter * ours[0])
    rms = amplifier.read_noise * np.exp(noise.scatter_ccd * ccds[1] + noise.scatter * ours[1])
    full = 2.0**16 - 1 if np.dtype(camera.dtype).itemsize == 2 else 2.0**18 - 1
    converter = electronics.digitisation
    return Channel(
        gain=float(value * (1 + gain.temperature * warm)) if gain.on else 1.0,
        read_noise=float(rms) if noise.on else 0.0,
        row_noise=noise.row if noise.on else 0.0,
        pedestal=float(full * converter.pedestal * np.exp(converter.pedestal_scatter * ours[2])),
        full_scale=full if converter.on else float(np.iinfo(camera.dtype).max),
    )


@dataclass(frozen=True, eq=False)
class _Line:
    """All that turns the charge of one channel into the counts of one exposure."""

    place: int  # along camera.amplifier_names
    shape: tuple[int, int]
    channel: Channel
    curve: Table
    rows: np.ndarray  # (r, raw y) float32, adu: see `bias_terms`
    columns: np.ndarray  # (r, raw x) float32
    level: np.ndarray  # (raw y,) float64, adu
    edges: np.ndarray  # (code,) float32, adu, errors of the lower edges of codes; empty: none


def _line(
    seed: int,
    electronics: Electronics,
    camera: Camera,
    detector: Detector,
    amplifier_index: int,
    exposure_number: int,
    temperature: float | None,
) -> _Line:
    amplifier = detector.amplifiers[amplifier_index]
    found = channel(seed, electronics, camera, detector, amplifier_index, temperature)
    rows, columns = bias_terms(seed, electronics.bias_structure, detector, amplifier_index, exposure_number)
    level = drift(seed, electronics.overscan_drift, detector, amplifier_index, exposure_number)
    return _Line(
        place=camera.amplifier_names.index(amplifier.name),
        shape=amplifier.raw_shape,
        channel=found,
        curve=_curves(seed, electronics.nonlinearity, detector)[amplifier_index],
        rows=rows.astype(np.float32),
        columns=columns.astype(np.float32),
        level=found.pedestal + level,
        edges=_edges(seed, electronics.digitisation, detector, amplifier_index),
    )


@lru_cache(maxsize=16)  # the CCDs of a test camera, half a megabyte of a real one
def _curves(seed: int, settings: Nonlinearity, detector: Detector) -> tuple[Table, ...]:
    """Curves of the channels of a CCD, the same in every exposure."""
    found = tuple(table(seed, settings, detector, i) for i in range(len(detector.amplifiers)))
    for curve in found:
        curve.deviation.flags.writeable = False
    return found


def _edges(seed: int, settings: Digitisation, detector: Detector, amplifier_index: int) -> np.ndarray:
    """Errors of the edges between codes, within 0.45 adu so that no code is ever lost or out of order."""
    if not settings.on or settings.steps == 0:
        return np.zeros(0, np.float32)
    random = stream(seed, "converter", detector=detector.id, amplifier=amplifier_index)
    return np.clip(settings.steps * random.standard_normal(_PATTERN), -0.45, 0.45).astype(np.float32)


@njit(nogil=True, cache=True)
def _code(value, code, edges):  # type: ignore[no-untyped-def]
    """Code whose edges, each displaced by its own error, enclose the value; next to the ideal one at most."""
    if value < code - 0.5 + edges[int(code) % len(edges)]:
        return code - 1
    if value >= code + 0.5 + edges[int(code + 1) % len(edges)]:
        return code + 1
    return code


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _convert(charge, noise, level, rows, columns, deviation, numbers, edges, counts):  # type: ignore[no-untyped-def]
    """Counts of some rows of one channel.

    charge (y, x) electrons and noise (y, x) in sigmas, float32; level (y,) adu; bias as rows (r, y) times
    columns (r, x); deviation (node,) of `linearity.Table`; numbers: adu/electron, nodes/adu, sigma of the
    noise in adu, largest count; edges as `_edges`.
    """
    ny, nx = charge.shape
    per_electron, per_adu, sigma, highest = numbers
    # All but the signal itself is small: float32 keeps it to 1e-4 adu, and twice the pixels fit a register.
    zero, rms = np.float32(0), np.float32(sigma)
    to_node, last = np.float32(per_electron * per_adu), np.float32(len(deviation) - 2)
    small = np.empty(nx, np.float32)
    for y in range(ny):
        small[:] = zero
        for r in range(0, len(rows) - 1, 2):  # two at a time: a sum is stored less often
            a, b, one, two = rows[r, y], rows[r + 1, y], columns[r], columns[r + 1]
            for x in range(nx):
                small[x] = (small[x] + a * one[x]) + b * two[x]
        if len(rows) % 2:
            a, one = rows[-1, y], columns[-1]
            for x in range(nx):
                small[x] += a * one[x]
        line, deviate, out = charge[y], noise[y], counts[y]
        for x in range(nx):
            node = line[x] * to_node
            node = node if node > zero else zero
            k = np.uint32(np.int32(node if node < last else last))
            low = deviation[k]
            small[x] += low + (node - np.float32(k)) * (deviation[k + np.uint32(1)] - low) + rms * deviate[x]
        for x in range(nx):
            value = line[x] * per_electron + level[y] + small[x]
            if len(edges) == 0:
                value += 0.5  # what follows cuts off the fraction
                value = value if value > 0.0 else 0.0
                out[x] = np.int32(value if value < highest else highest)
            else:
                code = _code(value, np.floor(value + 0.5), edges)
                out[x] = np.int32(min(max(code, 0.0), highest))


def read_out(
    seed: int,
    electronics: Electronics,
    camera: Camera,
    detector: Detector,
    exposure_number: int,
    charge: np.ndarray,
    aggressors: Mapping[str, np.ndarray] | None = None,
    temperature: float | None = None,
) -> np.ndarray:
    """Counts of one CCD in one exposure.

    Parameters
    ----------
    electronics : settings.
    exposure_number : of the exposure, for its noise and drift.
    charge : (amplifier, y, x) electrons over ``camera.raw_shape``, readout orientation, in the order of
        ``camera.amplifier_names``; what falls on no amplifier is ignored.
    aggressors : the same of the CCDs that `crosstalk.coupled` names, by name; None: those CCDs are dark.
    temperature : K, of the electronics; default, the camera's nominal one.

    Returns
    -------
    (amplifier, y, x) of ``camera.dtype``, adu; zero where the CCD has no such channel or pixel.

    Raises
    ------
    InconsistentGeometry
        The charge of this CCD or of an aggressor is not of the camera's shape.
    WrongUse
        ``aggressors`` lacks a CCD that couples to this one.
    """
    _check(camera, detector.name, charge)
    charge = np.ascontiguousarray(charge, np.float32)
    if aggressors is not None:
        aggressors = {name: np.ascontiguousarray(other, np.float32) for name, other in aggressors.items()}
    lines = [
        _line(seed, electronics, camera, detector, i, exposure_number, temperature)
        for i in range(len(detector.amplifiers))
    ]
    entries = couplings(seed, electronics.crosstalk, camera, detector)
    counts = np.zeros(charge.shape, camera.dtype)
    for tile, rows in tiles(camera.raw_shape[0]):
        signal = add_crosstalk(camera, detector, entries, charge, aggressors, rows)
        for i, line in enumerate(lines):
            normals = _normals(seed, line, exposure_number, detector, i, tile, rows)
            _digitise(line, rows, signal[line.place], *normals, counts[line.place])
    return counts


def _normals(
    seed: int, line: _Line, exposure_number: int, detector: Detector, amplifier_index: int, tile: int, rows: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Noise of the rows (y,) and pixels (y, x) of a tile, float32, in units of their sigmas."""
    shape = max(0, min(rows.stop, line.shape[0]) - rows.start), line.shape[1]
    if line.channel.read_noise == 0 and line.channel.row_noise == 0:
        return np.zeros(shape[0], np.float32), np.zeros(shape, np.float32)
    random = stream(
        seed, "read_noise", exposure=exposure_number, detector=detector.id, amplifier=amplifier_index, tile=tile
    )
    return random.standard_normal(shape[0], np.float32), random.standard_normal(shape, np.float32)


def _digitise(
    line: _Line, rows: slice, charge: np.ndarray, of_rows: np.ndarray, of_pixels: np.ndarray, counts: np.ndarray
) -> None:
    """Fill some rows of the counts of a channel; ``charge`` holds those rows alone, ``counts`` all."""
    ny, nx = of_pixels.shape
    here = slice(rows.start, rows.start + ny)
    truth, curve = line.channel, line.curve
    numbers = (1 / truth.gain, 1 / curve.step, truth.read_noise / truth.gain, truth.full_scale)
    level = line.level[here] + truth.row_noise / truth.gain * of_rows
    _convert(
        charge[:ny, :nx],
        of_pixels,
        level,
        line.rows[:, here],
        line.columns,
        curve.deviation,
        numbers,
        line.edges,
        counts[here, :nx],
    )


def _check(camera: Camera, name: str, charge: np.ndarray) -> None:
    expected = (len(camera.amplifier_names), *camera.raw_shape)
    if charge.shape != expected:
        raise InconsistentGeometry(f"{name}: charge is {charge.shape}, {camera.name} needs {expected}")
