"""Pixels under objects, so that the sky between them can be looked at (Secs. 2.9, 3.9).

A pixel belongs to an object where the image above a coarse background, smoothed, stands out of its own scatter; what
is found is grown, for wings reach farther than that. Fringes are part of the scatter and are not found.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["find_objects"]

_MESH: Final = 32  # px of the background
_SCALES: Final = (1.5, 5.0)  # px, of what is smoothed: stars, and wings and galaxies
_CLEAR: Final = 4.5  # sigma
_GROWN: Final = 1.0  # scales, beyond what smoothing has spread already
_TO_SIGMA: Final = 1.4826  # of a median of absolute deviations


def find_objects(image: NDArray[np.floating], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (y, x) of an amplifier that are under objects.

    Parameters
    ----------
    image : (y, x), of any unit.
    good : (y, x) pixels that can be looked at; the others are never found.
    """
    found = np.zeros(image.shape, bool)
    if not good.any():
        return found
    for _ in range(2):  # the second time without objects in the background
        above = np.where(good, image - _background(image, good & ~found), 0.0).astype(np.float32)
        found = np.zeros(image.shape, bool)
        for scale in _SCALES:
            smooth = ndimage.gaussian_filter(above, scale)
            centre = np.median(smooth[good])
            sigma = _TO_SIGMA * np.median(np.abs(smooth[good] - centre))
            found |= _grown(smooth - centre > _CLEAR * max(float(sigma), 1e-30), _GROWN * scale)
    return found & good


def _grown(found: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    return np.asarray(ndimage.distance_transform_edt(~found) <= radius) if found.any() else found


def _background(image: NDArray[np.floating], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Medians of the good pixels of a mesh, straight between."""
    counts = [max(1, round(n / _MESH)) for n in image.shape]
    rows, columns = (np.array_split(np.arange(n), c) for n, c in zip(image.shape, counts, strict=True))
    mesh = np.array([[_median(image, good, r, c) for c in columns] for r in rows])
    whole = np.nanmedian(image[good]) if good.any() else 0.0
    mesh = np.where(np.isfinite(mesh), mesh, whole)
    at = [
        np.interp(np.arange(n), [part.mean() for part in parts], np.arange(len(parts)))
        for n, parts in zip(image.shape, (rows, columns), strict=True)
    ]
    return ndimage.map_coordinates(mesh, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")


def _median(image: NDArray[np.floating], good: NDArray[np.bool_], rows: np.ndarray, columns: np.ndarray) -> float:
    place = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    own = image[place][good[place]]
    return float(np.median(own)) if own.size else float("nan")
