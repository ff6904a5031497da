"""Light in the layers of a CCD: what is reflected, what is absorbed (¶9, ¶10; §13, backup of fringes).

Light that is not absorbed on its first way through the silicon comes back from the gates, the glue and the support.
With ``x = exp(i wave d)`` a round trip through d um of silicon, and ``around = top bottom`` what both sides reflect,
the amplitude reflected is ``front + passed bottom x / (1 - around x)`` and the power lost below
``leak |x| / |1 - around x|**2``; the absorbed fraction is one less both, and as a Fourier series in the phase of x has
a `constant` and a `harmonic` of each order.

How strong fringes can be: with power reflected R1 at the front and R2 at the back (seen from the silicon), loss A per
passage and ``q = sqrt(R1 R2) (1 - A)``, the absorbed fraction of a slab between two mirrors is

    (1 - R1) A (1 + R2 (1 - A)) / |1 - q exp(i phase)|**2

but for what is absorbed where the two ways cross, of order 1 / (wave d); its visibility is ``2 q / (1 + q**2)``. At
173 K 1 - A is 0.23, 0.51, 0.81 and 0.97 at 900, 950, 1000 and 1050 nm, so that a visibility of 0.5 takes R1 R2 = 0.11
at 1000 nm, 0.27 at 950 nm and more than 1 at 900 nm. R1 is 0.05 to 0.08 with the coating below, 0.31 without; R2 is
0.003 to 0.85 with the phases of glue and gates. So coated CCDs have up to 0.1 at 900 nm and 0.3 at 1000 nm, and bare
silicon up to 0.6; but it loses 0.3 of all light, where CCDs of LSST have a measured efficiency of 0.95 at 800 nm.

Fields go as exp(i k z - i omega t); a layer is described by its tilted admittance, n cos(theta) for s-polarised light
and n / cos(theta) for p. All layers but the silicon are taken as lossless.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.simulate.silicon import EPOXY, MAGNESIUM_FLUORIDE, SILICA, TANTALA, absorption, index

__all__ = ["Finish", "Slab", "absorptance", "constant", "harmonic", "slab", "turn"]

_COATING: Final = (MAGNESIUM_FLUORIDE, TANTALA)
"""Index of the layers on the window side, vacuum first."""
_GATES: Final = ((SILICA, 0.1), (None, 0.3), (SILICA, 1.0))
"""Index and um of those on the gate side, from the silicon down; None is polysilicon. Table 1 of Guo et al. (2023)."""

_NM: Final = 1e3  # nm in a um


@dataclass(frozen=True)
class Finish:
    """What the maker of a CCD puts on both sides.

    The coating is that of table 1 of Guo et al. (2023, PASP 135, 034503), found by A. Rasmussen from the efficiency of
    an LSST CCD; zeros leave bare silicon.
    """

    coating: tuple[float, float] = (0.1221, 0.0441)  # um of MgF2 and Ta2O5
    gloss: float = 1.0  # amplitude that the support below the glue reflects, over that of polished silicon


@dataclass(frozen=True, eq=False)
class Slab:
    """How a slab of silicon between its layers reflects; arrays that broadcast over what `slab` was given."""

    front: np.ndarray  # amplitude reflected by coating and silicon, from vacuum
    passed: np.ndarray  # amplitude that coating lets in and out again
    top: np.ndarray  # amplitude reflected by coating, from within
    bottom: np.ndarray  # amplitude reflected by gates, glue and support
    leak: np.ndarray  # power lost through the back per passage, without the slab
    wave: np.ndarray  # 1/um, complex: a round trip through d um of silicon multiplies by exp(i wave d)


def slab(wavelength: np.ndarray, sine2: np.ndarray, epoxy: np.ndarray, finish: Finish, parallel: bool) -> Slab:
    """Reflections on both sides of the silicon of a CCD.

    Parameters
    ----------
    wavelength : nm.
    sine2 : squared sine of the angle of incidence in vacuum.
    epoxy : um, thickness of the glue between gates and support.
    finish : coating and support; what the latter does not reflect is lost.
    parallel : the polarisation, p or s.
    """
    wavelength, sine2, epoxy = (np.asarray(a, np.float64) for a in (wavelength, sine2, epoxy))
    real = index(wavelength)
    full = real + 1j * absorption(wavelength) * wavelength / (4 * np.pi * _NM)
    cosine = np.sqrt(1 - sine2 / full**2)
    silicon = _admittance(full, cosine, parallel)
    vacuum = _admittance(np.ones_like(sine2), np.sqrt(1 - sine2), parallel)
    films = tuple(zip(_COATING, finish.coating, strict=True))
    coating = _films(films, wavelength, sine2, real, parallel)
    front, through = _reflect(vacuum, *_apply(coating, np.ones(()), silicon))
    m00, m01, m10, m11 = coating
    top, out = _reflect(silicon, *_apply((m11, m01, m10, m00), np.ones(()), vacuum))
    glue, polished = (_admittance(n, np.sqrt(1 - sine2 / n**2), parallel) for n in (np.asarray(EPOXY), real))
    mirror = finish.gloss * (glue - polished) / (glue + polished)
    gates = _films(_GATES, wavelength, sine2, real, parallel)
    m00, m01, m10, m11 = gates
    down, lost = _reflect(silicon, *_apply(gates, np.ones(()), glue))
    up, back = _reflect(glue, *_apply((m11, m01, m10, m00), np.ones(()), silicon))
    returned = mirror * np.exp(4j * np.pi * _NM / wavelength * np.sqrt(EPOXY**2 - sine2) * epoxy)
    rest = 1 - up * returned
    arriving = glue / vacuum * (1 - mirror**2) * _power(lost * through)
    return Slab(
        front,
        through * out,
        top,
        down + lost * back * returned / rest,
        arriving / _power(rest),
        4 * np.pi * _NM / wavelength * full * cosine,
    )


def _power(amplitude: np.ndarray) -> np.ndarray:
    return amplitude.real**2 + amplitude.imag**2


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


_AS_MADE: Final = Finish()


def absorptance(
    wavelength: np.ndarray, silicon: np.ndarray, epoxy: np.ndarray, cos_theta: np.ndarray, finish: Finish = _AS_MADE
) -> np.ndarray:
    """Fraction of unpolarised light that the silicon absorbs; arguments broadcast.

    Parameters
    ----------
    wavelength : nm.
    silicon, epoxy : um.
    cos_theta : cosine of the angle of incidence in vacuum.
    finish : coating and support.
    """
    total: np.ndarray = np.zeros(())
    for parallel in (False, True):
        s = slab(wavelength, 1 - np.asarray(cos_theta) ** 2, epoxy, finish, parallel)
        x = np.exp(1j * s.wave * silicon)
        rest = 1 - s.top * s.bottom * x
        reflected = s.front + s.passed * s.bottom * x / rest
        total = total + (1 - _power(reflected) - s.leak * np.abs(x) / _power(rest)) / 2
    return total


def constant(s: Slab, damping: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Constant of the Fourier series, and the power that is not absorbed but for the first reflection.

    ``damping`` is |x|. 1 / |1 - q|**2 is the sum of ``|q|**|m| exp(i m arg q) / (1 - |q|**2)`` over all m.
    """
    back = _power(s.bottom)
    lost = (_power(s.passed * damping) * back + s.leak * damping) / (1 - _power(s.top * damping) * back)
    return 1 - _power(s.front) - lost, lost


def harmonic(s: Slab, lost: np.ndarray, m: int) -> np.ndarray:
    """Factor of x**m in the series; its real part is the fringe."""
    return (np.conj(s.front) * s.passed + lost * s.top) * (-2 * s.top ** (m - 1)) * s.bottom**m


def turn(wavelength: np.ndarray, sine2: np.ndarray, width: np.ndarray, silicon: np.ndarray | float) -> np.ndarray:
    """Phase (in pi) by which the first harmonic turns within half a bin: `numpy.sinc` of it is what is left."""
    shift = 1e-3
    n = [index(wavelength + side) for side in (-shift, shift)]
    waves = [
        np.sqrt(one**2 - sine2) * 4e3 * np.pi / (wavelength + side)
        for one, side in zip(n, (-shift, shift), strict=True)
    ]
    return (waves[1] - waves[0]) / (2 * shift) * width * silicon / (2 * np.pi)
