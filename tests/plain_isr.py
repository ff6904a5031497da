"""The corrections one after the other on whole images in numpy: slow, short, and what the row kernel must equal."""

import numpy as np

from lsstcal_dask.isr.bias import bias_jitter, overscan_levels
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

NO_DATA = MASK_BITS["NO_DATA"]
STEPS = ("overscan", "bias", "gain", "dark")


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
            variance = np.broadcast_to(noise[:, None, None], image.shape).astype(float)
        elif step == "bias":
            bias = products["bias"]
            image, variance, mask = subtract(image, variance, mask, bias, scale)
            row_variance = (
                row_variance + (bias["row_variance"].values + bias_jitter(bias, raw.detector)) * scale[..., 0] ** 2
            )
        elif step == "gain":
            scale = products["gain"]["gain"].values[:, None, None]
            image = image * scale
            variance = variance * scale**2 + np.maximum(image, 0)
            row_variance = row_variance * scale[..., 0] ** 2
        elif step == "dark":
            dark = products["dark"]
            seconds = raw.dark_time + raw.detector.row_time * np.arange(shape[0])
            image, variance, mask = subtract(image, variance, mask, dark, seconds[:, None])
            row_variance = row_variance + dark["row_variance"].values * seconds**2
    lost = (mask & NO_DATA > 0) | np.isnan(image)
    image, variance = (np.where(lost, np.nan, values) for values in (image, variance))
    mask = np.where(padding, padding, np.where(lost, mask | NO_DATA, mask))
    return Frame(raw.exposure, raw.detector, image, variance, row_variance, mask, "electron")


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
