"""The corrections one after the other on whole images in numpy: slow, short, and what the row kernel must equal."""

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.isr.bias import bias_jitter, overscan_levels
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

NO_DATA = MASK_BITS["NO_DATA"]
STEPS = ("overscan", "bias", "linearity", "gain", "crosstalk", "deferred", "dark")


def correct(raw, shape, products, config, steps):
    """A Frame, as `isr.sequence.correct` gives it."""
    names = [a.name for a in raw.detector.amplifiers]
    products = {name: product.sel(amplifier=names) for name, product in products.items()}
    scale = np.ones(len(names))[:, None, None]
    for step in steps:
        if step == "overscan":
            image, padding = trim(raw, shape)
            mask = padding
            level, row_variance, noise = overscan_levels(raw, shape, config)
            image -= level[:, :, None]
            variance = np.where(np.isnan(image), np.nan, noise[:, None, None]).astype(float)
        elif step == "bias":
            bias = products["bias"]
            image, variance, mask = subtract(image, variance, mask, bias, scale)
            row_variance = (
                row_variance + (bias["row_variance"].values + bias_jitter(bias, raw.detector)) * scale[..., 0] ** 2
            )
        elif step == "linearity":
            image, variance, mask = linearize(image, variance, mask, products["linearity"], scale)
        elif step == "crosstalk":
            image, variance = without_crosstalk(image, variance, products["crosstalk"])
        elif step == "deferred":
            image = without_late_charge(image, products["deferred"], raw.detector)
        elif step == "gain":
            scale = products["gain"]["gain"].values[:, None, None]
            image = image * scale
            variance = variance * scale**2
            row_variance = row_variance * scale[..., 0] ** 2
        elif step == "dark":
            dark = products["dark"]
            seconds = raw.dark_time + raw.detector.row_time * np.arange(shape[0])
            image, variance, mask = subtract(image, variance, mask, dark, seconds[:, None])
            row_variance = row_variance + dark["row_variance"].values * seconds**2
        if step == counting(steps):
            variance = variance + np.maximum(image, 0)
    lost = (mask & NO_DATA > 0) | np.isnan(image)
    image, variance = (np.where(lost, np.nan, values) for values in (image, variance))
    mask = np.where(padding, padding, np.where(lost, mask | NO_DATA, mask))
    return Frame(raw.exposure, raw.detector, image, variance, row_variance, mask, "electron")


def counting(steps):
    """The step that makes the electrons that were counted: photon noise is theirs."""
    after = steps[steps.index("gain") :] if "gain" in steps else []
    return next((step for step in reversed(after) if step in ("gain", "bias", "linearity")), None)


def linearize(image, variance, mask, product, scale):
    """Straight from the splines; a node after the last one holds its correction."""
    measured, slope = image / scale, np.zeros_like(image)
    out = np.full_like(image, np.nan)
    for i, part in enumerate(measured):
        known = np.isfinite(product["linearity_level"].values[i])
        level, correction = (product[f"linearity_{k}"].values[i][known] for k in ("level", "correction"))
        spline = Akima1DInterpolator(level, correction)
        at = np.clip(np.nan_to_num(part), 0, level[-1])
        out[i] = part + spline(at)
        slope[i] = np.where((part > 0) & (part < level[-1]), spline(at, nu=1), 0)
        mask = mask.copy()
        mask[i] |= np.where(part > product["linearity_ceiling"].values[i], MASK_BITS["SUSPECT"], 0).astype(np.uint16)
    return out * scale, variance * (1 + slope) ** 2, mask


def without_crosstalk(image, variance, product):
    """Three sweeps; what has no value gives nothing."""
    linear, quadratic = product["crosstalk"].values, product["crosstalk_quadratic"].values
    found = image
    for _ in range(3):
        signal = np.nan_to_num(found)
        found = image - np.tensordot(linear, signal, 1) - np.tensordot(quadratic, signal**2, 1)
    return found, variance + np.tensordot(linear**2, np.nan_to_num(variance), 1)


def without_late_charge(image, product, detector):
    """The forward law, pixel by pixel, solved for the packet; see `isr.deferred`."""
    found = np.full_like(image, np.nan)
    for i, amplifier in enumerate(detector.amplifiers):
        b, a, decay = (float(product[k][i]) for k in ("serial_cti", "offset_amplitude", "offset_decay"))
        for y, x in np.ndindex(amplifier.data.shape):
            earlier = [a * image[i, y, j] * np.exp((j - x) / decay) for j in range(x) if np.isfinite(image[i, y, j])]
            offset = max([0.0, *earlier])
            here = image[i, y, x]
            charge = here if a * here >= offset else (here - offset) / (1 - a)
            before = np.nan_to_num(found[i, y, x - 1]) if x else 0.0
            n = amplifier.data.x0 + x + 1
            found[i, y, x] = (charge - (n - 1) * b * before) * (1 + n * b)
    return found


def trim(raw, shape):
    image = np.full((len(raw.counts), *shape), np.nan)
    mask = np.full(image.shape, NO_DATA, np.uint16)
    for i, amplifier in enumerate(raw.detector.amplifiers):
        ny, nx = amplifier.data.shape
        image[i, :ny, :nx] = raw.counts[i][amplifier.data.slices]
        mask[i, :ny, :nx] = 0
    return image, mask


def subtract(image, variance, mask, product, factor):
    image, variance = image - product["image"].values * factor, variance + product["variance"].values * factor**2
    return image, variance, mask | product["mask"].values
