"""Robust combination of a stack of exposures, and robust statistics of small samples (Secs. 0, 2.1, 2.7, 2.8)."""

from lsstcal_dask.statistics.covariances import covariances
from lsstcal_dask.statistics.labelled import combine
from lsstcal_dask.statistics.robust import clip_variance_factor, robust_mean, robust_sigma
from lsstcal_dask.statistics.stacks import Calibration, Noise, clipped_mean, median, median_of_sums

__all__ = [
    "Calibration",
    "Noise",
    "clip_variance_factor",
    "clipped_mean",
    "combine",
    "covariances",
    "median",
    "median_of_sums",
    "robust_mean",
    "robust_sigma",
]
