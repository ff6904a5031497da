"""What is to be taken: one exposure of a recipe, and the light that is sent into the telescope."""

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Exposure", "Lamp", "Light", "Pointing", "Projection", "Sinusoid", "XRays"]


@dataclass(frozen=True)
class Lamp:
    """The flat-field screen (¶8, ¶9)."""

    rate: float  # photons/s that would reach a pixel on the axis through optics without loss
    wavelength: float = float("nan")  # nm, vacuum; NaN for the broadband lamp
    bandwidth: float = 1.0  # nm, full width at half maximum of the monochromatic line


@dataclass(frozen=True)
class Projection:
    """The Collimated Beam Projector (¶10)."""

    mask: str  # name of the mask: see `projector`
    wavelength: float  # nm, vacuum
    bandwidth: float  # nm, full width at half maximum
    azimuth: float  # deg, field angle x of the centre of the pattern
    elevation: float  # deg, field angle y of it
    rotation: float  # deg, of the pattern about its centre
    footprint: tuple[float, float]  # m, where the beam meets the primary mirror
    rate: float  # photons/s in a spot of a typical hole


@dataclass(frozen=True)
class Sinusoid:
    """Fringes projected onto the CCDs (Sec. 2.11), see `sinusoids`."""

    rate: float  # photons/s, mean, that would reach a pixel on the axis through optics without loss
    wavelength: float  # nm, vacuum
    bandwidth: float  # nm, full width at half maximum
    period: float  # px
    angle: float  # deg, in which the phase grows on the focal plane, from its x towards its y
    phase: float  # deg, in the centre of the focal plane
    footprint: tuple[float, float]  # m, where the beam of that centre meets the primary mirror


@dataclass(frozen=True)
class Pointing:
    """The sky (♥2, science visits)."""

    ra: float  # deg
    dec: float  # deg
    altitude: float  # deg
    azimuth: float  # deg
    rotator: float = 0.0  # deg, of the camera against the sky

    @property
    def airmass(self) -> float:
        """Of a plane-parallel atmosphere with the curvature of the Earth, Kasten & Young 1989."""
        return float(1 / (np.sin(np.deg2rad(self.altitude)) + 0.50572 * (self.altitude + 6.07995) ** -1.6364))


@dataclass(frozen=True)
class XRays:
    """A 55Fe source (¶2)."""

    rate: float  # hits/s in a pixel


@dataclass(frozen=True)
class Exposure:
    """One exposure of the whole camera."""

    name: str  # exposure id, as MC_S_20260701_000012
    number: int  # 1, 2 ...; no two of an observatory are alike: the counter of its random numbers
    kind: str  # one of variables.EXPOSURE_TYPES
    time: np.datetime64  # UTC of its start
    exposure_time: float  # s that the shutter or lamp is open
    dark_time: float  # s over which dark charge gathers before the readout begins
    filter: str = "none"
    source: Lamp | Projection | Sinusoid | Pointing | XRays | None = None
    # what was taken before, itself without a predecessor: only persistence looks at it, so it makes no other exposure
    previous: "Exposure | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Light:
    """Expected light on one CCD, before any charge has moved.

    Attributes
    ----------
    rate : (y, x) float32 over ``detector.shape``, electron/s in a pixel of the undistorted grid.
    points : (n, 5) float64: x, y (CCD pixels), electron/s, and the two numbers of a Moffat profile, its
        full width at half maximum (px) and its exponent. Sources whose electrons fall where the pixels are then.
    whole : (y, x) float32, electron/s in the pixels of the distorted grid, of light whose change over a pixel
        cannot be told from ``rate``; None where it can.
    response : (y, x) float32, of each pixel relative to the one for which rates of ``points`` hold, which know
        nothing of the pixels they fall into; None for 1. ``rate`` holds it already.
    """

    rate: np.ndarray
    points: np.ndarray
    response: np.ndarray | None = None
    whole: np.ndarray | None = None
