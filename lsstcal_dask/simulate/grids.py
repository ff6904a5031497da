"""Maps over a CCD of functions of focal-plane position that are smooth on the scale of a few pixels."""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal

__all__ = ["check_image", "on_detector", "stretch"]


def on_detector(function: Callable[[np.ndarray, np.ndarray], np.ndarray], detector: Detector, step: int) -> np.ndarray:
    """Values of a function of focal-plane position (x, y in mm) in the pixels of a CCD.

    The function is called on a mesh of ``step`` pixels and interpolated linearly: exact for step 1; for a
    feature of width w the error is about (step / w)**2 / 8 of its amplitude.

    Returns
    -------
    (y, x) float32 over ``detector.shape``; leading axes that the function returns stay in front.
    """
    rows, columns = (_nodes(n, step) for n in detector.shape)
    x, y = ccd_to_focal(detector, *np.meshgrid(columns, rows))
    return stretch(np.asarray(function(x, y), np.float64), rows, columns, detector.shape)


def check_image(detector: Detector, charge: np.ndarray) -> None:
    """Raise unless an image has the shape of the CCD.

    Raises
    ------
    InconsistentGeometry
        It has not.
    """
    if charge.shape != detector.shape:
        raise InconsistentGeometry(
            f"{detector.name}: charge is {charge.shape}, the CCD {detector.shape}: pass the assembled image"
        )


def _nodes(n: int, step: int) -> np.ndarray:
    """Evenly spaced positions from the first pixel to the last, at most ``step`` apart."""
    return np.linspace(0, n - 1, max(2, -(-(n - 1) // step) + 1)) if n > 1 else np.zeros(1)


def stretch(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of ``values`` (..., row, column) at nodes to every pixel: (..., y, x) float32."""
    tall, wide = _weights(rows, shape[0]), _weights(columns, shape[1])
    flat = np.asarray(values, np.float32).reshape(-1, *values.shape[-2:])
    out = np.empty((len(flat), *shape), np.float32)
    for i, one in enumerate(flat):
        out[i] = (wide @ (tall @ one).T).T
    return out.reshape(*values.shape[:-2], *shape)


def _weights(nodes: np.ndarray, n: int) -> sparse.csr_array:
    """(pixel, node) float32 weights of linear interpolation: two of a pixel."""
    if len(nodes) == 1:
        return sparse.csr_array(np.ones((n, 1), np.float32))
    at = np.arange(n)
    left = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    part = ((at - nodes[left]) / (nodes[left + 1] - nodes[left])).astype(np.float32)
    weights = np.stack([1 - part, part], axis=1).ravel()
    places = np.stack([left, left + 1], axis=1).ravel()
    return sparse.csr_array((weights, places, np.arange(0, 2 * n + 1, 2)), shape=(n, len(nodes)))
