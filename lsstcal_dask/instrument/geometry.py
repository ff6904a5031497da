"""Pixel of an amplifier <-> pixel of its CCD <-> focal plane (mm) <-> field angle (rad).

Every function takes and returns a pair (x, y) of arrays that broadcast.
The centre of the first pixel of an amplifier or CCD is (0, 0).
"""

from typing import Any

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector

__all__ = [
    "amplifier_to_ccd",
    "ccd_to_amplifier",
    "ccd_to_focal",
    "field_to_focal",
    "focal_to_ccd",
    "focal_to_field",
]

Pair = tuple[Any, Any]
_ARCSEC = np.pi / (180 * 3600)


def amplifier_to_ccd(amplifier: Amplifier, x: Any, y: Any) -> Pair:
    """CCD pixel of a pixel of the amplifier's data box, counted in readout orientation."""
    ny, nx = amplifier.data.shape
    x, y = np.asarray(x), np.asarray(y)
    x0, y0 = amplifier.position
    return x0 + (nx - 1 - x if amplifier.flip_x else x), y0 + (ny - 1 - y if amplifier.flip_y else y)


def ccd_to_amplifier(amplifier: Amplifier, x: Any, y: Any) -> Pair:
    """Pixel of the amplifier's data box, in readout orientation, of a CCD pixel (outside if not its own)."""
    ny, nx = amplifier.data.shape
    x, y = np.asarray(x) - amplifier.position[0], np.asarray(y) - amplifier.position[1]
    return (nx - 1 - x if amplifier.flip_x else x), (ny - 1 - y if amplifier.flip_y else y)


def _turn(yaw_deg: float) -> tuple[float, float]:
    """Cosine and sine, exact for multiples of 90 degrees."""
    quarter, rest = divmod(yaw_deg, 90.0)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    angle = np.deg2rad(yaw_deg)
    return float(np.cos(angle)), float(np.sin(angle))


def ccd_to_focal(detector: Detector, x: Any, y: Any) -> Pair:
    """Focal plane position, mm, of a CCD pixel: its distance from the CCD's centre turned by the yaw."""
    ny, nx = detector.shape
    u = (np.asarray(x) - (nx - 1) / 2) * detector.pixel_mm
    v = (np.asarray(y) - (ny - 1) / 2) * detector.pixel_mm
    cos, sin = _turn(detector.yaw_deg)
    return detector.center_mm[0] + u * cos - v * sin, detector.center_mm[1] + u * sin + v * cos


def focal_to_ccd(detector: Detector, x: Any, y: Any) -> Pair:
    """CCD pixel (not rounded) of a focal plane position in mm; outside the CCD if it is not on it."""
    ny, nx = detector.shape
    u, v = np.asarray(x) - detector.center_mm[0], np.asarray(y) - detector.center_mm[1]
    cos, sin = _turn(detector.yaw_deg)
    return (
        (u * cos + v * sin) / detector.pixel_mm + (nx - 1) / 2,
        (v * cos - u * sin) / detector.pixel_mm + (ny - 1) / 2,
    )


def focal_to_field(camera: Camera, x: Any, y: Any) -> Pair:
    """Field angle, rad, of a focal plane position in mm.

    Its distance from the axis is ``plate_scale * sum_i radial[i] * r**i`` with r in mm; its direction is
    that of the position, x reversed if the camera is mirrored.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    stretch = camera.plate_scale * _ARCSEC * np.polynomial.polynomial.polyval(np.hypot(x, y), camera.radial[1:])
    return (-1 if camera.mirrored else 1) * x * stretch, y * stretch


def field_to_focal(camera: Camera, x: Any, y: Any) -> Pair:
    """Focal plane position, mm, of a field angle in rad: `focal_to_field` inverted to 1e-12 of the distance.

    Raises
    ------
    CalibrationError
        An angle is so far from the axis that the distortion of this camera has no inverse there.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    angle = np.hypot(x, y) / (camera.plate_scale * _ARCSEC)
    curve = np.asarray(camera.radial)
    slope = np.polynomial.polynomial.polyder(curve)
    value = np.polynomial.polynomial.polyval
    r = angle / curve[1]
    for _ in range(20):
        step = (value(r, curve) - angle) / value(r, slope)
        r = r - step
        if np.all(np.abs(step) <= 1e-14 * (1 + np.abs(r))):
            break
    bad = ~np.isclose(value(r, curve), angle, rtol=1e-12, atol=1e-12) | (value(r, slope) <= 0) | (r < 0)
    if np.any(bad & np.isfinite(angle)):
        worst = float(np.rad2deg(np.max(angle[bad] if np.ndim(bad) else angle) * camera.plate_scale * _ARCSEC))
        raise CalibrationError(
            f"camera {camera.name}: no focal plane position at {worst:.3g} degrees from the axis, where its "
            "distortion has no inverse: use smaller angles"
        )
    shrink = np.divide(r, angle, out=np.full_like(r, 1 / curve[1]), where=angle != 0) / (camera.plate_scale * _ARCSEC)
    return (-1 if camera.mirrored else 1) * x * shrink, y * shrink
