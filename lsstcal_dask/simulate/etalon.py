"""Interference in the silicon of a CCD and in the glue below it (¶9, ¶10; §13, backup of fringes).

The absorbed fraction is a Fourier series in the phase of a round trip (see `layers`): its constant varies with the
thickness h of the glue (fringes 22 nm apart), its harmonics with that of the silicon, d (1 nm apart). A beam is an
average over angles, a spectral bin one over phases: a factor sinc in each harmonic. Light below 700 nm (amplitude of
the fringes < 1e-5) and above 1125 nm (no absorption left) is taken to have none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera, Detector
from lsstcal_dask.simulate.layers import Finish, Slab, absorptance, constant, harmonic, slab, turn
from lsstcal_dask.simulate.silicon import EPOXY, index
from lsstcal_dask.simulate.thickness import Fringing, Table, look_up, spans, thickness, thickness_maps

__all__ = [
    "Beam",
    "Fringing",
    "Table",
    "absorptance",
    "bin_widths",
    "fringe_at",
    "fringe_map",
    "fringe_table",
    "look_up",
]

Beam = tuple[float] | None
"""Angle of incidence (deg) of a collimated beam; None for the whole pupil."""

_FRINGED: Final = (700.0, 1125.0)  # nm
_ANGLES: Final = 12, 24  # nodes over the pupil, in which m fringes pass of the m-th harmonic of glue, 3 m of silicon
_PUPIL_ORDERS: Final = 4  # harmonics that so many nodes resolve; a pupil leaves at most 0.1/m of the m-th
# Samples of a table per fringe of silicon and of glue. Cubic interpolation loses 2e-4 and 6e-5 of a sine's amplitude,
# 16 times as much of its second harmonic, of which glue makes more.
_SAMPLES: Final = 20, 28
_FINEST: Final = 800.0  # nm: fringes of shorter light are too weak to set the sampling
_WIDEST: Final = 1.0, 0.25  # nm: wider bins are split, lest the fringes of the glue move within one; for harmonics
_NEGLIGIBLE: Final = 1e-5  # of the light: harmonics that sum to less are left out
_FAINT: Final = 5e-5  # of the light: so much, in the faintest bins, is taken without fringes
_Angles = tuple[np.ndarray, np.ndarray]  # squared sines and weights
_BLOCK: Final = 1_000_000  # values worked on at a time


def bin_widths(wavelength: np.ndarray) -> np.ndarray:
    """Width (nm) of bins that meet half-way between their centres; 0, a line, for a single one."""
    if len(wavelength) == 1:
        return np.zeros(1)
    return np.gradient(wavelength) if len(wavelength) > 1 else np.zeros(0)


def _angles(settings: Fringing, beam: Beam, fine: bool) -> _Angles:
    """Squared sines and weights of the directions of a beam; a pupil is evenly bright in squared sine."""
    if beam is not None:
        if not 0 <= beam[0] < 90:
            raise WrongUse(f"beam at {beam[0]} degrees from the normal of the CCD: use 0 to less than 90")
        return np.sin(np.deg2rad([beam[0]])) ** 2, np.ones(1)
    inner, outer = np.sin(np.deg2rad([settings.inner_angle, settings.outer_angle])) ** 2
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLES[fine])
    return inner + (outer - inner) * (nodes + 1) / 2, weights / 2


@lru_cache(maxsize=64)
def _smooth_of(settings: Fringing, finish: Finish, beam: Beam, wavelength: bytes) -> np.ndarray:
    nm = np.frombuffer(wavelength)
    sine2, weights = _angles(settings, beam, False)
    period = nm / 1e3 / (2 * np.sqrt(EPOXY**2 - sine2.mean()))
    epoxy = settings.epoxy + period[:, None, None] * (np.arange(16) / 16)
    total = np.zeros(len(nm))
    for parallel in (False, True):
        s = slab(nm[:, None, None], sine2[:, None], epoxy, finish, parallel)
        total += constant(s, np.abs(np.exp(1j * s.wave * settings.silicon)))[0].mean(axis=-1) @ weights / 2
    total.flags.writeable = False
    return total


def _smooth(settings: Fringing, detector: Detector, beam: Beam, wavelength: np.ndarray) -> np.ndarray:
    """Absorbed fraction of the nominal CCD without its fringes: the mean over the phases of both layers."""
    return _smooth_of(
        settings, settings.finish(detector.vendor), beam, np.ascontiguousarray(wavelength, float).tobytes()
    )


def _orders(s: Slab, silicon: float, angles: int) -> int:
    """Harmonics after which what is left of the series is below 1e-5; over a pupil no more than its nodes resolve."""
    ratio = np.max(np.abs(s.top * s.bottom * np.exp(1j * s.wave * silicon)))
    most = _PUPIL_ORDERS if angles > 1 else 12
    return int(np.clip(np.ceil(np.log(1e-5) / np.log(ratio)), 1, most))


def _split(wavelength: np.ndarray, width: np.ndarray, widest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins cut into pieces of at most ``widest`` nm: centre, width, and the bin each piece belongs to."""
    count = np.maximum(np.ceil(width / widest - 1e-9), 1).astype(int)
    of = np.repeat(np.arange(len(count)), count)
    piece = width[of] / count[of]
    place = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    return wavelength[of] + (place - (count[of] - 1) / 2) * piece, piece, of


def _check(wavelength: np.ndarray, width: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths and widths of the bins as arrays of float64."""
    nm = np.atleast_1d(np.asarray(wavelength, float))
    if np.any(np.diff(nm) <= 0) or not np.all(np.isfinite(nm)):
        raise WrongUse("wavelengths of the fringes do not ascend: sort them and drop repeated ones")
    widths = bin_widths(nm) if width is None else np.asarray(width, float)
    if widths.shape != nm.shape or not np.all(widths >= 0):
        raise WrongUse(f"bin widths {widths.shape} for {nm.shape} wavelengths: give one of 0 nm or more for each")
    return nm, widths


def _fringed(wavelength: np.ndarray) -> np.ndarray:
    return (wavelength >= _FRINGED[0]) & (wavelength <= _FRINGED[1])


def fringe_at(
    seed: int,
    settings: Fringing,
    detector: Detector,
    x: np.ndarray,
    y: np.ndarray,
    wavelength: np.ndarray,
    beam: Beam = None,
    width: np.ndarray | None = None,
    fine: bool = True,
) -> np.ndarray:
    """Absorbed fraction at some places over what it is without fringes.

    Parameters
    ----------
    x, y : (n,) CCD pixels.
    wavelength : (m,) nm, bin centres, ascending.
    beam : None for the pupil, or (angle of incidence,) in deg.
    width : (m,) nm of the bins, 0 for lines; default, bins that touch.
    fine : without, the fringes of the silicon are left out, which cancel in any smooth spectrum.

    Returns
    -------
    (n, m) float64.

    Raises
    ------
    WrongUse
        Wavelengths that do not ascend, widths that do not fit them, a beam from below.
    """
    nm, widths = _check(wavelength, width)
    angles = _angles(settings, beam, fine)
    out = np.ones((len(x), len(nm)))
    chosen = np.flatnonzero(_fringed(nm))
    if not settings.on or not len(chosen) or not len(x):
        return out
    d, h = (thickness(seed, settings, detector, layer, x, y) for layer in ("silicon", "epoxy"))
    pieces, width_of, of = _split(nm[chosen], widths[chosen], _WIDEST[fine])
    smooth = _smooth(settings, detector, beam, pieces)
    sums = np.zeros((len(chosen), len(x)))
    step = max(1, _BLOCK // (len(x) * len(angles[0])))
    finish = settings.finish(detector.vendor)
    for start in range(0, len(pieces), step):
        at = slice(start, start + step)
        value = _absorbed(pieces[at], width_of[at], d, h, angles, finish, fine)
        np.add.at(sums, of[at], value / smooth[at, None])
    out[:, chosen] = (sums / np.bincount(of)[:, None]).T
    return out


def _absorbed(
    nm: np.ndarray, width: np.ndarray, d: np.ndarray, h: np.ndarray, angles: _Angles, finish: Finish, fine: bool
) -> np.ndarray:
    """Absorbed fraction (wavelength, place) of a beam, by its series."""
    sine2, weights = angles[0][:, None], angles[1]
    total = np.zeros((len(nm), len(d)))
    for parallel in (False, True):
        s = slab(nm[:, None, None], sine2, h, finish, parallel)
        x = np.exp(1j * s.wave * d)
        value, lost = constant(s, np.abs(x))
        if fine:
            phase = turn(nm[:, None, None], sine2, width[:, None, None], d)
            for m in range(1, _orders(s, float(d.min()), len(weights)) + 1):
                value = value + np.real(harmonic(s, lost, m) * x**m) * np.sinc(m * phase)
        total += np.einsum("lap,a->lp", value, weights) / 2
    return total


def fringe_table(
    settings: Fringing,
    detector: Detector,
    wavelength: np.ndarray,
    spectra: np.ndarray,
    span: tuple[tuple[float, float], tuple[float, float]],
    beam: Beam = None,
    width: np.ndarray | None = None,
) -> Table:
    """Sums ``sum_l spectra[l, k] f(l; d, h)`` over a mesh of thicknesses, f as in `fringe_at`.

    Parameters
    ----------
    spectra : (wavelength, spectrum), photons in each bin.
    span : lowest and highest thickness of the silicon and of the epoxy, um.
    """
    nm, widths = _check(wavelength, width)
    spectra = np.asarray(spectra, float)
    inside = _fringed(nm) & _bright(spectra) & settings.on
    finest = max(_FINEST, float(nm[inside][0]) if inside.any() else 0.0)
    steps = finest / 2e3 / _SAMPLES[0] / float(index(np.array(finest))), finest / 2e3 / _SAMPLES[1] / EPOXY
    d, h = (
        lo - 2 * step + step * np.arange(int((hi - lo) / step) + 6) for (lo, hi), step in zip(span, steps, strict=True)
    )
    values = np.zeros((spectra.shape[1], len(d), len(h)), np.float32)
    values += spectra[~inside].sum(axis=0).astype(np.float32)[:, None, None]
    if inside.any():
        for fine in (False, True):
            pieces, piece_width, of = _split(nm[inside], widths[inside], _WIDEST[fine])
            share = spectra[inside][of] / np.bincount(of)[of, None]
            share /= _smooth(settings, detector, beam, pieces)[:, None]
            light = _Light(pieces, piece_width, share, _angles(settings, beam, fine), settings.finish(detector.vendor))
            if fine:
                needed = _needed(light, d, h)
                for part in _sum_harmonics(light, d, h, needed) if needed else ():
                    values += part
            else:
                values += _sum_constant(light, d, h)
    return Table(values, (float(d[0]), float(h[0])), steps)


def _bright(spectra: np.ndarray) -> np.ndarray:
    """Bins (wavelength,) but for the faintest, whose light is in all a part `_FAINT` and fringes by a tenth at most."""
    light = np.abs(spectra).max(axis=1, initial=0)
    order = np.argsort(light, kind="stable")
    faint = np.cumsum(light[order]) <= _FAINT * light.sum()
    found = np.ones(len(light), bool)
    found[order[faint]] = False
    return found


@dataclass(frozen=True, eq=False)
class _Light:
    """What the sums over wavelength and angle run over."""

    nm: np.ndarray
    width: np.ndarray
    spectra: np.ndarray  # (wavelength, spectrum), divided by the smooth absorbed fraction
    angles: _Angles
    finish: Finish

    def blocks(self, depth: int) -> Iterator["_Light"]:
        """Pieces of at most `_BLOCK` (wavelength, angle, ``depth``) values."""
        step = max(1, _BLOCK // (len(self.angles[0]) * depth))
        for start in range(0, len(self.nm), step):
            at = slice(start, start + step)
            yield _Light(self.nm[at], self.width[at], self.spectra[at], self.angles, self.finish)

    def waves(self) -> tuple[float, float]:
        """Middle and half of the range of the wave numbers of a round trip, 1/um."""
        ends = self.nm[[0, -1]][:, None]
        found = 4e3 * np.pi / ends * np.sqrt(index(ends) ** 2 - self.angles[0])
        return float(found.max() + found.min()) / 2, float(np.ptp(found)) / 2

    def slabs(self, h: np.ndarray) -> list[Slab]:
        """Reflections in both polarisations, over (wavelength, angle, epoxy)."""
        return [slab(self.nm[:, None, None], self.angles[0][:, None], h, self.finish, p) for p in (False, True)]


def _between(anchors: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Weights (anchor, place) of the polynomial through the anchors."""
    gaps = [np.delete(anchors, c) for c in range(len(anchors))]
    return np.stack([np.prod((at[:, None] - g) / (a - g), axis=1) for a, g in zip(anchors, gaps, strict=True)])


def _sum_constant(light: _Light, d: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Sum of the constant terms of the series, (spectrum, silicon, epoxy).

    It follows d only through absorption, e**(-a few %) over a CCD: exact at three anchors, quadratic between.
    """
    anchors = np.linspace(d[0], d[-1], 3)
    sums = np.zeros((3, light.spectra.shape[1], len(h)))
    for part in light.blocks(len(h)):
        for s in part.slabs(h):
            for c, anchor in enumerate(anchors):
                value = constant(s, np.exp(-s.wave.imag * anchor))[0]
                sums[c] += np.einsum("lah,a,lk->kh", value, light.angles[1] / 2, part.spectra, optimize=True)
    return np.einsum("cd,ckh->kdh", _between(anchors, d), sums).astype(np.float32)


def _nodes(at: np.ndarray, phase: float) -> np.ndarray:
    """Places (Chebyshev's) between which a polynomial follows ``exp(i phase t)``, t from -1 to 1 over ``at``.

    Its coefficients fall as Bessel functions J_n(phase), which are below 1e-6 for more than so many n.
    """
    count = int(phase + 4 * np.cbrt(phase)) + 8
    if count >= len(at):
        return at
    places = np.cos(np.pi * (np.arange(count)[::-1] + 0.5) / count)
    return at[0] + (at[-1] - at[0]) * (places + 1) / 2


def _sum_harmonics(light: _Light, d: np.ndarray, h: np.ndarray, orders: list[int]) -> list[np.ndarray]:
    """Sums of the terms x**m of some orders, each (spectrum, silicon, epoxy).

    As functions of d they turn with the mean wave number and change slowly beside that: they are summed at few
    thicknesses, by products of matrices (silicon, light) and (light, epoxy). What depends on d beside x (the loss
    within the slab, the blur of a bin) is linear between two anchors.
    """
    mean, half = light.waves()
    places = [_nodes(d, m * half * (d[-1] - d[0]) / 2) for m in orders]
    sums = [np.zeros((light.spectra.shape[1], len(place), len(h)), np.complex64) for place in places]
    for part in light.blocks(max(len(h), *map(len, places))):
        slabs = part.slabs(h)
        lost = [[constant(s, np.exp(-s.wave.imag * end))[1] for s in slabs] for end in (d[0], d[-1])]
        for m, place, total in zip(orders, places, sums, strict=True):
            around = np.exp(1j * m * np.outer(place, slabs[0].wave.ravel() - mean))
            for end, share, losses in zip((d[0], d[-1]), _between(d[[0, -1]], place), lost, strict=True):
                across, along = (harmonic(s, loss, m) for s, loss in zip(slabs, losses, strict=True))
                blur = np.sinc(m * turn(part.nm[:, None], light.angles[0], part.width[:, None], end))
                blurred = part.spectra.T[:, :, None] * (blur * light.angles[1] / 2)
                left = (share[:, None] * around * blurred.reshape(-1, 1, around.shape[1])).astype(np.complex64)
                total[...] += left @ (across + along).reshape(-1, len(h)).astype(np.complex64)
    return [_turned(total, m * mean, place, d) for m, place, total in zip(orders, places, sums, strict=True)]


def _turned(sums: np.ndarray, wave: float, places: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Real part of what was summed at a few places, interpolated and turned with the mean wave."""
    between = _between(places, d) if len(places) < len(d) else np.eye(len(d))
    weights = (between * np.exp(1j * wave * d)).T.astype(np.complex64)
    return np.stack([weights.real @ s.real - weights.imag @ s.imag for s in sums])


def _needed(light: _Light, d: np.ndarray, h: np.ndarray) -> list[int]:
    """Harmonics that do not cancel over wavelengths and angles, found on a sample of the mesh."""
    some_d, some_h = d[:: max(1, len(d) // 61)], h[:: max(1, len(h) // 2)]
    s = slab(light.nm[:, None, None], light.angles[0][:, None], some_h, light.finish, False)
    floor = _NEGLIGIBLE * np.abs(light.spectra).sum(axis=0).max()
    candidates = list(range(1, _orders(s, float(d[0]), len(light.angles[0])) + 1))
    found = _sum_harmonics(light, some_d, some_h, candidates)
    return [m for m, values in zip(candidates, found, strict=True) if np.abs(values).max() > floor]


def fringe_map(
    seed: int,
    settings: Fringing,
    camera: Camera,
    detector: Detector,
    wavelength: np.ndarray,
    weights: np.ndarray,
    beam: Beam = None,
    width: np.ndarray | None = None,
) -> np.ndarray:
    """Fringes of some light all over a CCD: ``sum_l w f / sum_l w``, f as in `fringe_at`.

    Parameters
    ----------
    camera : of the detector.
    wavelength, weights : (n,) nm, ascending, and photons in each bin.
    beam, width : as for `fringe_at`.

    Returns
    -------
    (y, x) float32; error below 5e-4 of the fringes' amplitude, from the interpolation.
    """
    if not settings.on:
        return np.ones(detector.shape, np.float32)
    spectra = (np.asarray(weights, float) / np.sum(weights))[:, None]
    table = fringe_table(settings, detector, wavelength, spectra, spans(seed, settings, detector), beam, width)
    if np.ptp(table.values) == 0:  # no light that fringes
        return np.ones(detector.shape, np.float32)
    silicon, epoxy = thickness_maps(seed, settings, detector)
    return look_up(table.values, table.start, table.step, silicon, epoxy, np.ones((1, *detector.shape), np.float32))
