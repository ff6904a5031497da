"""Acceptance of corrected frames: sky noise, rows, boundaries of amplifiers (Lupton 2016, Secs. 3.1 to 3.5)."""

from typing import Final

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.products.offsets import amplifier_offsets
from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.metric import OURS, Case, Measure, Metric
from lsstcal_dask.verify.pixels import neighbour_scatter, planes, row_steps, scatter, sky

__all__ = ["METRICS"]


def _sky_noise(case: Case) -> np.ndarray:
    return np.array([neighbour_scatter(sky(one), one.variance) for one in planes(case, "calibrated")])


def _rows(case: Case) -> np.ndarray:
    """One number for a sensor: the rows of a small amplifier are too few to tell a tenth."""
    steps = [row_steps(one) for one in planes(case, "calibrated")]
    whole = scatter(np.concatenate(steps))
    return np.array([whole if np.isfinite(one).any() else np.nan for one in steps])


def _offsets(case: Case) -> np.ndarray | None:
    if len(case.detector.amplifiers) < 2:
        return None
    pixels = planes(case, "calibrated")
    shape = np.max([one.image.shape for one in pixels], axis=0)
    images, variances = np.full((2, len(pixels), *shape), np.nan, np.float32)
    for image, variance, one in zip(images, variances, pixels, strict=True):
        ny, nx = one.image.shape
        image[:ny, :nx], variance[:ny, :nx] = one.image, one.variance
    mask = np.where(np.isfinite(images), 0, MASK_BITS["NO_DATA"]).astype(np.uint16)
    rows = np.zeros(images.shape[:2], np.float32)
    frame = Frame("", case.detector, images, variances, rows, mask, "electron")
    try:
        found = amplifier_offsets(frame)["amplifier_offset"].values
    except CalibrationError:  # no boundary with sky on both sides
        return np.full(len(pixels), np.nan)
    return np.asarray(found / np.sqrt([np.nanmedian(v) if np.isfinite(v).any() else np.nan for v in variances]))


def _noted(key: str) -> Measure:
    def measure(case: Case) -> np.ndarray:
        return case.noted("calibrated", key)

    return measure


def _order_metric(order: str, plane: str = "") -> Metric:
    """How far the frame of another order is from that of `lupton2016`: measured, not assumed."""
    return Metric(
        "calibrated",
        f"order {order}{f', {plane}' if plane else ''}",
        _noted(f"order_{order}_{plane}" if plane else f"order_{order}"),
        f"{OURS}; Lupton 2016, Sec. 3: orders are expected to differ by less than 1e-4 of the image",
        f"{plane or 'image'} corrected in the order {order} against lupton2016: mean difference over mean value",
        limits=(0, 1e-2),
        aim=(0, 1e-3 if plane else 1e-4),
        sparse=True,
    )


METRICS: Final = (
    Metric(
        "calibrated",
        "sky noise over model",
        _sky_noise,
        f"{OURS}; after DMTN-101, whose test has one side",
        "scatter of neighbouring pixels of sky over what the variance says",
        limits=(0.8, 1.25),
        aim=(0.95, 1.05),
    ),
    Metric(
        "calibrated",
        "steps of rows over model",
        _rows,
        f"{OURS}: a tenth more than an optimal smoother leaves",
        "scatter of the steps from row to row over what pixels and overscan say",
        limits=(0.5, 1.5),
        aim=(0.5, 1.1),
    ),
    Metric(
        "calibrated",
        "offsets of amplifiers",
        _offsets,
        OURS,
        "level of the sky against the mean of the sensor, from the boundaries, over the noise of a pixel",
        limits=(-1, 1),
        aim=(-0.25, 0.25),
    ),
    Metric(
        "calibrated",
        "crosstalk of bright sources",
        _noted("crosstalk_of_bright"),
        f"{OURS}; Lupton 2016, Sec. 2.6: bleed trails and cosmic rays check the slope alone",
        "what bright sources leave in dark amplifiers against what the coefficients say, over the error",
        limits=(-10, 10),
        aim=(-4, 4),
        unit="sigma",
        sparse=True,
    ),
    _order_metric("physical"),
    _order_metric("physical", "variance"),
    _order_metric("rubin"),
    _order_metric("rubin", "variance"),
)
