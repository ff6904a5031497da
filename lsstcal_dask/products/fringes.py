"""Fringe frames of the night sky, the backup of synthesised flats (§13; Lupton 2016, Sec. 2.9).

Classical: with b the background of a frame, a polynomial over the CCD through its pixels without objects, the fringe
frame is the median over frames of ``image / b - 1``, and an image has ``amplitude * frame`` of it, by robust
regression. That takes the ratios of the sky's lines as given; `fringe_modes` does not. Whether one amplitude holds for
the whole field is for `uniformity` to tell: waves in the layer of hydroxyl are 2 km, or 1 deg, long, and pass within 10
to 20 min; a wind of 60 km/h (the document's km/s) smears them by 0.25-0.5 km, or 0.6-1.2 CCDs, in an exposure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2 as chi2_law

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.isr.fringes import DEGREE, amplitudes, fit_sky, sky_terms
from lsstcal_dask.statistics import median

__all__ = [
    "FEWEST",
    "Sky",
    "Uniformity",
    "amplitude",
    "background",
    "fringe_frame",
    "relative",
    "uniformity",
    "uniformity_of",
    "usable",
]

Floats = NDArray[np.float64]
Images = NDArray[np.float32]

FEWEST: Final = 10  # frames
_CROWDED: Final = 0.05  # of the area under objects
_TWILIGHT: Final = -18.0  # deg
_REJECTED: Final = 1e-3  # probability
_ZONES: Final = (1, 2, 3, 4)  # along each side of the field


@dataclass(frozen=True, eq=False)
class Sky:
    """What is known of science frames before they make a fringe frame, (frame,) each."""

    exposure: Sequence[str]
    moon: Floats  # deg, altitude of the moon
    sun: Floats  # deg, altitude of the sun
    crowded: Floats  # part of the area under objects


def usable(sky: Sky) -> tuple[NDArray[np.bool_], list[str]]:
    """Frames of a dark, empty sky, and why the others are not.

    Raises
    ------
    InsufficientInputs
        Fewer than ten are left.
    """
    reasons = {
        "taken in twilight": np.asarray(sky.sun) > _TWILIGHT,
        "with the moon above the horizon": np.asarray(sky.moon) > 0,
        f"with objects on more than {_CROWDED:.0%} of the area": np.asarray(sky.crowded) > _CROWDED,
    }
    remarks = [
        f"{name}: {why}, not used for fringes"
        for why, where in reasons.items()
        for name in np.asarray(sky.exposure)[where]
    ]
    good = ~np.any(list(reasons.values()), axis=0)
    if good.sum() < FEWEST:
        why = f" ({remarks[0]}{', and others' if len(remarks) > 1 else ''})" if remarks else ""
        raise InsufficientInputs(
            f"fringes: {good.sum()} frames of a dark, empty sky{why}: give at least {FEWEST} in one filter"
        )
    return good, remarks


def _terms(shape: tuple[int, ...], degree: int) -> Floats:
    """Polynomials over a CCD up to a total degree, (term, pixel)."""
    up, across = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sky_terms(up, across, degree)


def background(image: Any, masked: Any, degree: int = DEGREE) -> Images:
    """Smooth sky of a frame: polynomial through its pixels without objects.

    Parameters
    ----------
    image : (y, x) electron.
    masked : (y, x) bool, objects and bad pixels.
    """
    image = np.asarray(image, np.float64)
    terms, good = _terms(image.shape, degree), ~np.asarray(masked, bool).ravel()
    return (fit_sky(image.ravel()[good], terms[:, good]) @ terms).reshape(image.shape).astype(np.float32)


def relative(image: Any, masked: Any, degree: int = DEGREE) -> Images:
    """``image / background - 1``; NaN where masked."""
    found = np.asarray(image, np.float32) / background(image, masked, degree) - 1
    return np.where(masked, np.float32(np.nan), found)


def fringe_frame(images: Any, masked: Any, degree: int = DEGREE) -> tuple[Images, NDArray[np.int64]]:
    """Classical fringe frame: median over frames of what is left of the sky.

    Parameters
    ----------
    images, masked : (frame, y, x), electron and bool.

    Returns
    -------
    frame : (y, x), relative to the sky; NaN where no frame has a good pixel.
    used : (y, x), frames of each pixel.

    Raises
    ------
    InconsistentGeometry, InsufficientInputs
        Shapes differ; fewer than ten frames.
    """
    images = np.asarray(images)
    if images.shape != np.shape(masked) or images.ndim != 3:
        raise InconsistentGeometry(f"fringes: images {images.shape}, masks {np.shape(masked)}: give (frame, y, x)")
    if len(images) < FEWEST:
        raise InsufficientInputs(f"fringes: {len(images)} frames: give at least {FEWEST} in one filter")
    left = np.stack([relative(image, mask, degree) for image, mask in zip(images, masked, strict=True)])
    found = median(left)[0].astype(np.float32)
    return found, np.isfinite(left).sum(axis=0)


def amplitude(image: Any, masked: Any, frame: Any, variance: Any, degree: int = DEGREE) -> tuple[float, float]:
    """How much of a fringe frame an image has, by robust regression, and its error.

    Parameters
    ----------
    image, variance : (y, x) electron, electron**2.
    masked : (y, x) bool.
    frame : (y, x) relative to the sky.

    Returns
    -------
    Amplitude relative to the background of the image; its standard error, for a fringe frame without noise.

    Raises
    ------
    InsufficientInputs
        The frame has no fringes.
    """
    image, frame = np.asarray(image, np.float64), np.asarray(frame, np.float64)
    good = (~np.asarray(masked, bool) & np.isfinite(frame)).ravel()
    value, noise = image.ravel()[good], np.asarray(variance, np.float64).ravel()[good]
    c, covariance = amplitudes(value, noise, frame.ravel()[None, good], _terms(image.shape, degree)[:, good])
    return float(c[0]), float(np.sqrt(covariance[0, 0]))


@dataclass(frozen=True, eq=False)
class Uniformity:
    """Whether the coefficients of a frame are the same all over the field."""

    chi2: float
    dof: int
    rejected: bool
    zones: NDArray[np.int64]  # (detector,) number of the flat that each is to use: all 0 if it is not rejected
    values: Floats  # (frame, zone) coefficient of each zone


def uniformity(coefficient: Any, error: Any, x: Any, y: Any) -> Uniformity:
    """Test that coefficients of fringes do not depend on the place, and if they do, how few flats suffice.

    Parameters
    ----------
    coefficient, error : (frame, detector) of one mode, measured in each CCD alone.
    x, y : (detector,) mm, centres of the CCDs.

    Returns
    -------
    The chi2 of one coefficient for all; zones, equal parts of the field along x and y, the fewest with which chi2 is
    not rejected at 0.001, or the most that are tried.
    """
    c, e = np.asarray(coefficient, float), np.asarray(error, float)
    whole: tuple[float, int] | None = None
    for parts in _ZONES:
        zones = _zones(np.asarray(x, float), np.asarray(y, float), parts)
        values, total, dof = _within(c, e, zones)
        whole = whole or (total, dof)
        if dof == 0 or chi2_law.sf(total, dof) > _REJECTED:
            break
    assert whole is not None
    rejected = bool(whole[1] > 0 and chi2_law.sf(*whole) <= _REJECTED)
    return Uniformity(whole[0], whole[1], rejected, zones, values)


def uniformity_of(coefficient: Any, error: Any, x: Any, y: Any) -> Uniformity:
    """`uniformity` of coefficients whose scale each CCD has for itself.

    Maps that were measured are shorter than the true ones by their noise, those of a CCD by a factor of its own: every
    CCD is scaled to the mean of all first. That takes a degree of freedom for each, by which the test is too mild.
    """
    c, e = np.asarray(coefficient, float), np.asarray(error, float)
    weight = np.where(np.isfinite(c), 1 / e**2, 0.0)
    value = np.nan_to_num(c)
    mean = (weight * value).sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    norm = np.maximum((weight * mean**2).sum(axis=0), 1e-300)
    scale = (weight * value * mean).sum(axis=0) / norm
    scale = np.where(scale > 0, scale, np.nan)
    return uniformity(c / scale, e / scale, x, y)


def _zones(x: Floats, y: Floats, parts: int) -> NDArray[np.int64]:
    def part(a: Floats) -> NDArray[np.int64]:
        return np.minimum(((a - a.min()) / max(np.ptp(a), 1e-9) * parts).astype(int), parts - 1)

    return np.unique(part(x) * parts + part(y), return_inverse=True)[1]


def _within(c: Floats, e: Floats, zones: NDArray[np.int64]) -> tuple[Floats, float, int]:
    """Weighted mean (frame, zone), chi2 about it and its degrees of freedom."""
    member = (zones[:, None] == np.arange(zones.max() + 1)).astype(float)
    weight = np.where(np.isfinite(c), 1 / e**2, 0.0)
    sums = weight @ member
    values = (weight * np.nan_to_num(c)) @ member / np.maximum(sums, 1e-300)
    pull = np.where(weight > 0, c - values[:, zones], 0.0) * np.sqrt(weight)
    return values, float(np.sum(pull**2)), int((weight > 0).sum() - (sums > 0).sum())
