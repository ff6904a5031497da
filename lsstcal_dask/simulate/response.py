"""Electrons per photon of a CCD: quantum efficiency, coating, pixel to pixel response, fringes (¶8-¶10, Sec. 3).

``q(l; x, y) = Q(l) (1 + t(x, y) b(l)) g(x, y) f(l; d(x, y), h(x, y))``: Q is the smooth curve of the CCD, t the
relative excess of its anti-reflection coating, b what that changes, g gray and white, f the fringes of `etalon`. All
of it is separable or has few dimensions, so that a map for any spectrum needs no cube.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from pydantic import Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.etalon import Beam, Fringing, Table, fringe_at, fringe_table, look_up
from lsstcal_dask.simulate.grids import stretch
from lsstcal_dask.simulate.kept import kept
from lsstcal_dask.simulate.random import TILE_ROWS, stream, tiles
from lsstcal_dask.simulate.silicon import absorption
from lsstcal_dask.simulate.thickness import draw_waves, spans, thickness_maps, waves_at, waves_map

__all__ = ["QuantumEfficiency", "Weights", "gray_map", "quantum_efficiency", "response_at", "response_map"]

Weights = np.ndarray | Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Photons per bin: (n,), or a function of focal plane x and y (mm, of any shape) that returns (..., n)."""

# Q = p(u) (1 - exp(-150 um * absorption)), p a Legendre series in u, linear in 1 / wavelength from -1 at 1100 nm to 1
# at 320 nm. Fitted to the 36 wavelengths of R22_S11 and R22_S12 (e2v), R01_S11 and R43_S01 (ITL) in lsst/obs_lsst_data
# (transmission_sensor of 2025-03, amplifiers averaged) times 0.95, for some of them free more than one electron per
# photon. Within 2.3 % from 320 to 950 nm, 7 % to 1050 nm, 0.4 % of a photon beyond. The depth is more than the 100 um
# of silicon because part of the light passes twice.
_DEPTH: Final = 150.0  # um
_CURVES: Final = {
    "e2v": (0.8363, -0.1655, -0.1471, -0.0352, -0.0669, -0.0381, 0.0173, 0.0078),
    "ITL": (0.8223, -0.2226, -0.0104, -0.1132, 0.0269, -0.0470, 0.1145, -0.0628),
}
_BLUE, _RED = 320.0, 1100.0  # nm; beyond, p stays as it is there
_PIVOT, _SWING = 650.0, 350.0  # nm
_COATING: Final = (15.0, 150.0)  # mm, waves of its thickness
_ROWS: Final = 256  # worked on at a time
_RANK_ERROR: Final = 1e-5  # of the photons, by which spectra that vary with place may be off


class QuantumEfficiency(Effect):
    """How CCDs and pixels differ; the curve itself is the vendor's.

    Amplifiers of one CCD, of the four that `_CURVES` was fitted to, scatter by 0.2-2.4 % rms at 320-375 nm and by
    0.1-0.5 % from 500 to 900 nm: coatings that vary by 0.1-0.4 % do that. The default rms of the coating lies within;
    steps and slopes between CCDs are chosen. Pixels: 0.4 % in all (Baumer et al. 2017), of which size takes 0.3 %.
    """

    scatter: float = Field(0.015, ge=0, le=0.3)  # rms of a factor, CCD to CCD
    tilt: float = Field(0.005, ge=0, le=0.3)  # rms, what it gains from 650 to 1000 nm
    coating: float = Field(0.003, ge=0, le=0.05)  # rms, relative thickness of the coating within a CCD
    prnu: float = Field(0.003, ge=0, le=0.1)  # rms of white, gray pixel response
    edge: float = Field(0.02, ge=0, lt=1)  # lost at the edge of the CCD
    edge_length: float = Field(3.0, gt=0)  # px, over which that fades


def _unit(wavelength: np.ndarray) -> np.ndarray:
    nm = np.clip(np.asarray(wavelength, float), _BLUE, _RED)
    return (2 / nm - 1 / _BLUE - 1 / _RED) / (1 / _BLUE - 1 / _RED)


def _series(vendor: str) -> np.polynomial.Legendre:
    """The p of a vendor; the mean of the known ones for one without a curve."""
    curve = np.array(_CURVES[vendor]) if vendor in _CURVES else np.mean(list(_CURVES.values()), axis=0)
    return np.polynomial.Legendre(curve)


def quantum_efficiency(seed: int, qe: QuantumEfficiency, detector: Detector, wavelength: np.ndarray) -> np.ndarray:
    """Smooth curve of one CCD, electron/photon, at wavelengths (n,) in nm."""
    nm = np.asarray(wavelength, float)
    if not qe.on:
        return np.ones_like(nm)
    random = stream(seed, "quantum_efficiency", detector=detector.id)
    gray, tilt = random.standard_normal(2) * (qe.scatter, qe.tilt)
    absorbed = -np.expm1(-absorption(nm) * _DEPTH)
    return _series(detector.vendor)(_unit(nm)) * absorbed * (1 + gray + tilt * np.clip((nm - _PIVOT) / _SWING, -1, 2))


def _coating_slope(detector: Detector, wavelength: np.ndarray) -> np.ndarray:
    """Relative change of Q per relative excess of the coating: -d ln p / d ln(wavelength)."""
    nm, p = np.asarray(wavelength, float), _series(detector.vendor)
    slope = p.deriv()(_unit(nm)) / p(_unit(nm)) * 2 / nm / (1 / _BLUE - 1 / _RED)
    return np.where((nm > _BLUE) & (nm < _RED), slope, 0.0)


@lru_cache(maxsize=256)
def _coating_waves(seed: int, qe: QuantumEfficiency, detector: Detector) -> np.ndarray:
    random = stream(seed, "coating", detector=detector.id)
    return draw_waves(random, _COATING, qe.coating, detector)


@lru_cache(maxsize=64)
def _prnu(seed: int, qe: QuantumEfficiency, detector: Detector, amplifier: int, tile: int, rows: int) -> np.ndarray:
    """Pixel response of one tile, (rows, x) float32; read-only."""
    random = stream(seed, "prnu", detector=detector.id, amplifier=amplifier, tile=tile)
    values = random.standard_normal((rows, detector.amplifiers[amplifier].data.shape[1]), np.float32)
    values *= np.float32(qe.prnu)
    values += 1
    values.flags.writeable = False
    return values


def _edges(qe: QuantumEfficiency, n: int) -> np.ndarray:
    near = np.minimum(np.arange(n), np.arange(n)[::-1])
    return 1 - qe.edge * np.exp(-near / qe.edge_length)


def gray_map(seed: int, qe: QuantumEfficiency, detector: Detector) -> np.ndarray:
    """Response of each pixel that is the same at all wavelengths, (y, x) float32 about 1; read-only, and kept."""
    return kept.get(("gray", seed, qe, detector), lambda: _gray(seed, qe, detector))


def _gray(seed: int, qe: QuantumEfficiency, detector: Detector) -> np.ndarray:
    out = np.ones(detector.shape, np.float32)
    if not qe.on:
        return out
    for index, amplifier in enumerate(detector.amplifiers):
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        for tile, rows in tiles(ny):
            part = _prnu(seed, qe, detector, index, tile, rows.stop - rows.start)
            out[y + rows.start : y + rows.stop, x : x + nx] = part
    along, across = (_edges(qe, n).astype(np.float32) for n in detector.shape)
    out *= along[:, None]
    out *= across
    return out


def _gray_at(seed: int, qe: QuantumEfficiency, detector: Detector, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same in some pixels, drawing only their tiles."""
    out = _edges(qe, detector.shape[0])[y] * _edges(qe, detector.shape[1])[x]
    for index, amplifier in enumerate(detector.amplifiers):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        own = np.flatnonzero((x >= x0) & (x < x0 + nx) & (y >= y0) & (y < y0 + ny))
        for i in own:
            tile, row = divmod(int(y[i]) - y0, TILE_ROWS)
            rows = min(TILE_ROWS, ny - tile * TILE_ROWS)
            out[i] *= _prnu(seed, qe, detector, index, tile, rows)[row, x[i] - x0]
    return out


def response_at(
    seed: int,
    qe: QuantumEfficiency,
    fringing: Fringing,
    camera: Camera,
    detector: Detector,
    x: np.ndarray,
    y: np.ndarray,
    wavelength: np.ndarray,
    beam: Beam = None,
    width: np.ndarray | None = None,
    pixels: bool = True,
    fine: bool = True,
) -> np.ndarray:
    """Electrons per photon at some places of a CCD.

    Parameters
    ----------
    x, y : (n,) CCD pixels, on the CCD.
    wavelength, width : (m,) nm, bins; see `etalon.fringe_at`, as for ``beam`` and ``fine``.
    pixels : with the gray response of the pixel that holds the place; else that of a mean pixel.

    Returns
    -------
    (n, m) float64.

    Raises
    ------
    WrongUse
        A place is not on the CCD, or as `etalon.fringe_at`.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    if np.any((column < 0) | (column >= detector.shape[1]) | (row < 0) | (row >= detector.shape[0])):
        raise WrongUse(f"response of {detector.name} asked for outside its {detector.shape} pixels: select those on it")
    out = fringe_at(seed, fringing, detector, x, y, wavelength, beam, width, fine)
    out *= quantum_efficiency(seed, qe, detector, wavelength)
    if qe.on:
        excess = waves_at(_coating_waves(seed, qe, detector), x, y)
        out *= 1 + excess[:, None] * _coating_slope(detector, wavelength)
    if qe.on and pixels:
        out *= _gray_at(seed, qe, detector, column, row)[:, None]
    return out


def _mesh(n: int, step: int) -> np.ndarray:
    return np.linspace(0, n - 1, max(2, -(-(n - 1) // step) + 1))


def _spectra(
    weights: Weights, detector: Detector, wavelength: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Spectra (k, wavelength) and their shares (k, row, column) at nodes, whose sum of products is the light."""
    rows, columns = _mesh(detector.shape[0], step), _mesh(detector.shape[1], step)
    if not callable(weights):
        spectra = np.asarray(weights, float)[None]
        shares = np.ones((1, len(rows), len(columns)))
    else:
        light = np.asarray(weights(*ccd_to_focal(detector, *np.meshgrid(columns, rows))), float)
        flat = light.reshape(-1, light.shape[-1])
        shares, spectra = _factors(flat)
        largest = np.maximum(np.abs(shares).max(axis=0), np.finfo(float).tiny)
        spectra = spectra * largest[:, None]
        shares = (shares / largest).T.reshape(-1, len(rows), len(columns))
    if spectra.shape[-1] != np.size(wavelength):
        raise WrongUse(f"{spectra.shape[-1]} weights for {np.size(wavelength)} wavelengths: give one for each")
    return spectra, shares, (rows, columns)


def _factors(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Light (place, wavelength) as shares (place, k) @ spectra (k, wavelength), k as small as `_RANK_ERROR` allows."""
    _, vectors = np.linalg.eigh(light.T @ light)
    limit = _RANK_ERROR * np.abs(light).sum(axis=1).max()
    for k in range(1, light.shape[1] + 1):
        spectra = vectors[:, -k:].T
        shares = light @ spectra.T
        if np.abs(light - shares @ spectra).sum(axis=1).max() <= limit:
            break
    return shares, spectra


def response_map(
    seed: int,
    qe: QuantumEfficiency,
    fringing: Fringing,
    camera: Camera,
    detector: Detector,
    wavelength: np.ndarray,
    weights: Weights,
    beam: Beam = None,
    width: np.ndarray | None = None,
    step: int = 128,
) -> np.ndarray:
    """Electrons that some light frees in each pixel: ``sum_l weights(l) q(l; x, y)``.

    Parameters
    ----------
    wavelength, width : (n,) nm, ascending: centres and widths of the bins; default, bins that touch.
    weights : photons in each bin, the same everywhere or a function of the place.
    beam : None for the pupil, or (angle of incidence,) in deg.
    step : px of the mesh on which a function of the place is evaluated; bilinear between.

    Returns
    -------
    (y, x) float32. Against `response_at`: within 5e-4 of the fringes' amplitude and 3e-5 of the light.

    Raises
    ------
    WrongUse
        As many weights as wavelengths are needed; or as `etalon.fringe_at`.
    """
    nm = np.atleast_1d(np.asarray(wavelength, float))
    spectra, shares, nodes = _spectra(weights, detector, nm, step)
    spectra = spectra * quantum_efficiency(seed, qe, detector, nm)
    table = fringe_table(fringing, detector, nm, spectra.T, spans(seed, fringing, detector), beam, width)
    moves = np.ptp(table.values, axis=(1, 2)) * np.abs(shares).max(axis=(1, 2))
    fringed = moves > _RANK_ERROR * np.abs(np.tensordot(spectra.sum(axis=1), shares, 1)).max()
    still = np.tensordot(table.values[~fringed].mean(axis=(1, 2), dtype=float), shares[~fringed], 1)
    table = Table(table.values[fringed], table.start, table.step)
    slope = _slopes(spectra, shares, _coating_slope(detector, nm))
    out = gray_map(seed, qe, detector).copy()
    for start in range(0, detector.shape[0], _ROWS):
        rows = np.arange(start, min(start + _ROWS, detector.shape[0]))
        maps = _spread(np.stack([still, slope, *shares[fringed]]), nodes[0] - start, nodes[1], (len(rows), len(out[0])))
        value = maps[0]
        if fringed.any():
            silicon, epoxy = thickness_maps(seed, fringing, detector, rows)
            value = value + look_up(table.values, table.start, table.step, silicon, epoxy, maps[2:])
        if qe.on:
            value *= 1 + waves_map(_coating_waves(seed, qe, detector), rows, len(out[0])) * maps[1]
        out[start : start + _ROWS] *= value
    return out


def _spread(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate (k, row, column); what is constant stays so to the last bit."""
    if np.ptp(values, axis=(1, 2)).max() > 0:
        return stretch(values, rows, columns, shape)
    return np.repeat(values[:, :1, :1].astype(np.float32), shape[0], axis=1).repeat(shape[1], axis=2)


def _slopes(spectra: np.ndarray, shares: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Relative change of the response per excess of the coating, at the nodes: fringes left out of the average."""
    total, changed = (np.tensordot(s.sum(axis=1), shares, 1) for s in (spectra, spectra * slope))
    return np.divide(changed, total, out=np.zeros_like(total), where=total > 0)
