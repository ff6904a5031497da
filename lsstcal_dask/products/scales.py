"""Scales of synthetic flats of one cube, and how their errors hang together (Sec. 2.8.1).

The mean of a flat is brought to 1; what it was before is its scale, by which flats of several sources are compared. An
error e_k of the mean response at wavelength k moves the logarithm of a scale by ``sum_k l_k e_k``, l_k being the share
of the light. The errors are of two kinds: the table of the photodiode is wrong at all wavelengths at once, by one
number times c_k, and the photodiode and the electrons of a few exposures by s_k at each wavelength for itself.
"""

from collections.abc import Sequence

import numpy as np

from lsstcal_dask.products.weights import Scan, Weights

__all__ = ["common_error", "scale_covariance", "scale_errors"]


def scale_covariance(weights: Sequence[Weights], scan: Scan) -> np.ndarray:
    """Covariance (flat, flat) of the logarithms of the scales of some flats of one cube.

    With L the shares of light (flat, k), c and s the relative errors of the response that all wavelengths share and of
    each alone, it is (L c)(L c)' + L diag(s**2) L'. What is common to all wavelengths to the same part falls out of the
    ratio of two flats; none of it is in the variance of a pixel, for it is the same in all.
    """
    light = np.stack([one.light for one in weights])
    common = light @ common_error(scan)
    alone = light * (0.0 if scan.single is None else scan.single)
    return np.asarray(np.outer(common, common) + alone @ alone.T)


def common_error(scan: Scan) -> np.ndarray:
    """Relative error (k,) of the mean response that all wavelengths share; zero where it is not known."""
    return np.zeros(len(scan.wavelength)) if scan.common is None else scan.common


def scale_errors(one: Weights, scan: Scan) -> tuple[float, float]:
    """Relative error of the scale of a flat: its part of what all wavelengths share, and all of it."""
    return float(one.light @ common_error(scan)), float(np.sqrt(scale_covariance([one], scan)[0, 0]))
