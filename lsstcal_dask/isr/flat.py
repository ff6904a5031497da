"""Flat fields: divided by that of the sky, and then that of the sky put in place of a standard one (Secs. 3.6, 3.10).

A flat field F is the response of every pixel to light of one spectrum, over its mean. Of light that looks like that,
``I / F`` is what a camera of even response would have seen: the sky of a visit becomes smooth when it is divided by the
flat of its own spectrum S. Stars want the flat P of a standard spectrum, without the ghosts of the sky's: once the
sky is subtracted, ``I S / P``.

The flats are known to their own noise, which is part of the variance; multiplying by S again takes out what it brought.
"""

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["divide_by_flat", "multiply_by_flat", "to_photometric_flat", "to_sky_flat"]


def divide_by_flat(frame: Frame, flat: xr.Dataset) -> Frame:
    """Divide a CCD by a flat field: ``I / F``, with ``(V + (I/F)**2 V_F) / F**2``.

    Parameters
    ----------
    flat : ``image`` (amplifier, y, x), of mean 1 over the focal plane, and its ``variance``, of this detector; without
        a variance it counts as exact.

    Returns
    -------
    The frame; pixels of which the flat knows nothing are NaN and BAD. What is common to a row before is so no more,
    for the pixels of a row respond differently: ``row_variance`` is that of their mean square.

    Raises
    ------
    InconsistentGeometry
        An amplifier is not in the flat.
    """
    response, noise = _planes(frame, flat)
    image = frame.image / response
    variance = (frame.variance + np.square(image) * noise) / np.square(response)
    return _with(frame, image, variance, frame.row_variance * _row_share(response), response)


def multiply_by_flat(frame: Frame, flat: xr.Dataset) -> Frame:
    """Undo `divide_by_flat`: ``I F``, with ``V F**2 - I**2 V_F``, to the rounding of float32."""
    response, noise = _planes(frame, flat)
    image = frame.image * response
    variance = frame.variance * np.square(response) - np.square(frame.image) * noise
    return _with(frame, image, variance, frame.row_variance / _row_share(response), response)


def to_photometric_flat(frame: Frame, photometric: xr.Dataset, sky: xr.Dataset | None = None) -> Frame:
    """Put the flat field of a standard source in the place of the sky's: ``I S / P``; ``I / P`` where none was used."""
    return divide_by_flat(multiply_by_flat(frame, sky) if sky is not None else frame, photometric)


def to_sky_flat(frame: Frame, photometric: xr.Dataset, sky: xr.Dataset | None = None) -> Frame:
    """Undo `to_photometric_flat`."""
    undone = multiply_by_flat(frame, photometric)
    return divide_by_flat(undone, sky) if sky is not None else undone


def _planes(frame: Frame, flat: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Response and its variance (amplifier, y, x) float32, in the frame's order; NaN where there is no response."""
    known = [str(name) for name in flat["amplifier"].values]
    names = [a.name for a in frame.detector.amplifiers]
    if missing := sorted(set(names) - set(known)):
        raise InconsistentGeometry(
            f"exposure {frame.exposure}: {frame.detector.name} {missing[0]}: is not in the flat field: make it again"
        )
    places = [known.index(name) for name in names]
    response = np.asarray(flat["image"].values, np.float32)[places]
    noise = np.asarray(flat["variance"].values, np.float32)[places] if "variance" in flat else np.zeros_like(response)
    return np.where(response > 0, response, np.float32(np.nan)), noise


def _with(frame: Frame, image: np.ndarray, variance: np.ndarray, rows: np.ndarray, response: np.ndarray) -> Frame:
    """The frame with new values, and BAD where there is no response."""
    unknown = np.isnan(response) & (frame.mask & MASK_BITS["NO_DATA"] == 0)
    return frame.with_(
        image=image,
        variance=variance,
        row_variance=rows.astype(np.float32),
        mask=frame.mask | unknown * np.uint16(MASK_BITS["BAD"]),
    )


def _row_share(response: np.ndarray) -> np.ndarray:
    """Mean (amplifier, y) of ``F**-2`` over the pixels of a row; 1 in a row without response."""
    known = np.isfinite(response)
    square = np.divide(1.0, np.square(response, dtype=np.float64), out=np.zeros(response.shape), where=known)
    count = known.sum(axis=2)
    return np.where(count > 0, square.sum(axis=2) / np.maximum(count, 1), 1.0)
