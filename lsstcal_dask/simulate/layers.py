"""Light in the layers of a CCD: what is reflected, what is absorbed (¶9, ¶10; §13, backup of fringes).

Light that is not absorbed on its first way through the silicon comes back from the gates, the glue and the support.
With ``x = exp(i wave d)`` a round trip through d um of silicon, the amplitude reflected is
``front + inside x / (1 - around x)`` and the power lost below ``leak |x| / |1 - around x|**2``; the absorbed fraction
is one less both, and as a Fourier series in the phase of x has a `constant` and a `harmonic` of each order.

Fields go as exp(i k z - i omega t); a layer is described by its tilted admittance, n cos(theta) for s-polarised light
and n / cos(theta) for p. All layers but the silicon are taken as lossless.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.simulate.silicon import EPOXY, MAGNESIUM_FLUORIDE, SILICA, TANTALA, absorption, index

__all__ = ["Slab", "absorptance", "constant", "harmonic", "slab", "turn"]

_COATING: Final = ((MAGNESIUM_FLUORIDE, 0.1221), (TANTALA, 0.0441))
"""Index and um of the layers on the window side, vacuum first: Guo et al. 2023 (PASP 135, 034503), table 1."""
_GATES: Final = ((SILICA, 0.1), (None, 0.3), (SILICA, 1.0))
"""The same on the gate side, from the silicon down, by the same table; None is polysilicon."""

_NM: Final = 1e3  # nm in a um


@dataclass(frozen=True, eq=False)
class Slab:
    """How a slab of silicon between its layers reflects; arrays that broadcast over what `slab` was given."""

    front: np.ndarray  # amplitude reflected by coating and silicon, from vacuum
    inside: np.ndarray  # amplitude of one way around: reflected at the back, let out at the front, without the slab
    around: np.ndarray  # amplitude after one round trip: reflected at the back and at the front, without the slab
    leak: np.ndarray  # power lost through the back per passage, without the slab
    wave: np.ndarray  # 1/um, complex: a round trip through d um of silicon multiplies by exp(i wave d)


def slab(wavelength: np.ndarray, sine2: np.ndarray, epoxy: np.ndarray, black: bool, parallel: bool) -> Slab:
    """Reflections on both sides of the silicon of a CCD.

    Parameters
    ----------
    wavelength : nm.
    sine2 : squared sine of the angle of incidence in vacuum.
    epoxy : um, thickness of the glue between gates and support.
    black : whether an absorber takes what enters the glue (ITL); else a support of silicon reflects.
    parallel : the polarisation, p or s.
    """
    wavelength, sine2, epoxy = (np.asarray(a, np.float64) for a in (wavelength, sine2, epoxy))
    real = index(wavelength)
    full = real + 1j * absorption(wavelength) * wavelength / (4 * np.pi * _NM)
    cosine = np.sqrt(1 - sine2 / full**2)
    silicon = _admittance(full, cosine, parallel)
    vacuum = _admittance(np.ones_like(sine2), np.sqrt(1 - sine2), parallel)
    coating = _films(_COATING, wavelength, sine2, real, parallel)
    front, through = _reflect(vacuum, *_apply(coating, np.ones(()), silicon))
    m00, m01, m10, m11 = coating
    back_out, out = _reflect(silicon, *_apply((m11, m01, m10, m00), np.ones(()), vacuum))
    support = np.full_like(wavelength, EPOXY) if black else real
    support = _admittance(support, np.sqrt(1 - sine2 / support**2), parallel)
    below = _apply(_films(((EPOXY, epoxy),), wavelength, sine2, real, parallel), np.ones(()), support)
    bottom, lost = _reflect(silicon, *_apply(_films(_GATES, wavelength, sine2, real, parallel), *below))
    return Slab(
        front,
        through * out * bottom,
        back_out * bottom,
        support / vacuum * np.abs(lost * through) ** 2,
        4 * np.pi * _NM / wavelength * full * cosine,
    )


def _admittance(n: np.ndarray, cosine: np.ndarray, parallel: bool) -> np.ndarray:
    return n / cosine if parallel else n * cosine


def _films(layers: tuple, wavelength: np.ndarray, sine2: np.ndarray, silicon: np.ndarray, parallel: bool) -> tuple:
    """Characteristic matrix of lossless layers: fields on top from fields at the bottom."""
    total: tuple = (1.0, 0.0, 0.0, 1.0)
    for material, thickness in layers:
        n = silicon if material is None else np.asarray(material)
        cosine = np.sqrt(1 - sine2 / n**2)
        phase = 2 * np.pi * _NM / wavelength * n * cosine * thickness
        eta = _admittance(n, cosine, parallel)
        cos, sin = np.cos(phase), -1j * np.sin(phase)
        a, b, c, d = total
        total = a * cos + b * sin * eta, a * sin / eta + b * cos, c * cos + d * sin * eta, c * sin / eta + d * cos
    return total


def _apply(matrix: tuple, electric: np.ndarray, magnetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d = matrix
    return a * electric + b * magnetic, c * electric + d * magnetic


def _reflect(incident: np.ndarray, electric: np.ndarray, magnetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes reflected and transmitted where a medium meets layers with these fields at their top."""
    total = incident * electric + magnetic
    return (incident * electric - magnetic) / total, 2 * incident / total


def absorptance(
    wavelength: np.ndarray, silicon: np.ndarray, epoxy: np.ndarray, cos_theta: np.ndarray, black: bool = False
) -> np.ndarray:
    """Fraction of unpolarised light that the silicon absorbs; arguments broadcast.

    Parameters
    ----------
    wavelength : nm.
    silicon, epoxy : um.
    cos_theta : cosine of the angle of incidence in vacuum.
    black : whether the support absorbs.
    """
    total: np.ndarray = np.zeros(())
    for parallel in (False, True):
        s = slab(wavelength, 1 - np.asarray(cos_theta) ** 2, epoxy, black, parallel)
        x = np.exp(1j * s.wave * silicon)
        rest = 1 - s.around * x
        reflected = np.abs(s.front + s.inside * x / rest) ** 2
        total = total + (1 - reflected - s.leak * np.abs(x) / np.abs(rest) ** 2) / 2
    return total


def constant(s: Slab, damping: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constant of the Fourier series, and the power that is not absorbed but for the first reflection.

    ``damping`` is |x|. 1 / |1 - q|**2 is the sum of ``|q|**|m| exp(i m arg q) / (1 - |q|**2)`` over all m.
    """
    lost = (np.abs(s.inside * damping) ** 2 + s.leak * damping) / (1 - np.abs(s.around * damping) ** 2)
    return 1 - np.abs(s.front) ** 2 - lost, lost


def harmonic(s: Slab, lost: np.ndarray, m: int) -> np.ndarray:
    """Factor of x**m in the series; its real part is the fringe."""
    return -2 * (np.conj(s.front) * s.inside * s.around ** (m - 1) + lost * s.around**m)


def turn(wavelength: np.ndarray, sine2: np.ndarray, width: np.ndarray, silicon: np.ndarray | float) -> np.ndarray:
    """Phase (in pi) by which the first harmonic turns within half a bin: `numpy.sinc` of it is what is left."""
    shift = 1e-3
    n = [index(wavelength + side) for side in (-shift, shift)]
    waves = [
        np.sqrt(one**2 - sine2) * 4e3 * np.pi / (wavelength + side)
        for one, side in zip(n, (-shift, shift), strict=True)
    ]
    return (waves[1] - waves[0]) / (2 * shift) * width * silicon / (2 * np.pi)
