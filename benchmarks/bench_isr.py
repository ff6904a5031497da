"""Speed of the corrections of one CCD against its memory traffic, numpy step by step, and Dask chunked by amplifier.

Run ``python benchmarks/bench_isr.py [--rounds 5] [--json FILE]``. Overscan, bias, linearity, gain, crosstalk of all 240
pairs and dark of one LSSTCam CCD (16 amplifiers of 576 x 2048), one thread; processor time, interleaved, medians.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numba
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.bias import overscan_levels
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct

TARGETS = {"numpy, step by step": 7.0, "Dask, chunks of amplifiers": 25.0}
NODES = np.linspace(0, 1.5e5, 40)


@numba.njit(fastmath=True)
def _read(line):
    total = np.float32(0)
    for i in range(line.size):
        total += line[i]
    return total


def inputs() -> tuple[RawFrame, Site, dict[str, xr.Dataset]]:
    """One CCD of random counts and random products."""
    camera = load_camera("lsstcam")
    detector = camera.detector("R22_S11")
    rng, names = np.random.default_rng(1), [a.name for a in detector.amplifiers]
    n, shape = len(names), camera.image_shape
    counts = rng.integers(24000, 90000, (n, *camera.raw_shape)).astype(np.int32)
    for i, amplifier in enumerate(detector.amplifiers):
        box = amplifier.overscan
        counts[i, :, box.x0 : box.x1] = rng.integers(23990, 24010, (camera.raw_shape[0], box.x1 - box.x0))

    def plane(scale: float) -> xr.Dataset:
        dims = ("amplifier", "y", "x")
        values = {
            "image": (dims, scale * rng.standard_normal((n, *shape), np.float32)),
            "variance": (dims, np.full((n, *shape), scale**2, np.float32)),
            "mask": (dims, np.zeros((n, *shape), np.uint16)),
            "row_variance": (dims[:2], np.zeros((n, shape[0]), np.float32)),
            "level": (("exposure", "amplifier"), np.zeros((1, n))),
        }
        return xr.Dataset(values, coords={"amplifier": names})

    c = 1e-4 * rng.random((n, n)) * (1 - np.eye(n))
    own = [f"{detector.name}/{name}" for name in names]
    products = {
        "bias": plane(3.0),
        "dark": plane(0.02),
        "gain": xr.Dataset({"gain": ("amplifier", 1.5 + 0.1 * rng.random(n))}, coords={"amplifier": names}),
        "linearity": xr.Dataset(
            {
                "linearity_level": (("amplifier", "node"), np.tile(NODES, (n, 1))),
                "linearity_correction": (("amplifier", "node"), 1e-8 * np.tile(NODES, (n, 1)) ** 2),
                "linearity_ceiling": ("amplifier", np.full(n, 1e5)),
            },
            coords={"amplifier": names},
        ),
        "crosstalk": xr.Dataset(
            {"crosstalk": (("amplifier", "source"), c), "crosstalk_quadratic": (("amplifier", "source"), 0 * c)},
            coords={"amplifier": names, "source": own, "detector": detector.name},
        ),
    }
    return RawFrame("e", detector, 30.0, counts), Site(shape), products


def step_by_step(raw: RawFrame, site: Site, products: dict[str, xr.Dataset]) -> tuple[np.ndarray, ...]:
    """The same in numpy, float32, a correction after the other on the whole CCD."""
    box = raw.detector.amplifiers[0].data
    level, _, noise = overscan_levels(raw, site.shape, OverscanConfig())
    image = raw.counts[:, box.y0 : box.y1, box.x0 : box.x1].astype(np.float32) - level[:, :, None]
    variance = np.broadcast_to(noise[:, None, None], image.shape) + products["bias"]["variance"].values
    image -= products["bias"]["image"].values
    mask = products["bias"]["mask"].values | products["dark"]["mask"].values
    for i, part in enumerate(image):
        spline = Akima1DInterpolator(NODES, products["linearity"]["linearity_correction"].values[i])
        grid = np.arange(0, NODES[-1], 32.0)
        mask[i] |= np.where(part > 1e5, 4, 0).astype(np.uint16)
        image[i] += np.interp(part, grid, spline(grid)).astype(np.float32)
    gain = products["gain"]["gain"].values[:, None, None].astype(np.float32)
    image *= gain
    variance = variance * gain**2 + np.maximum(image, 0)
    c = products["crosstalk"]["crosstalk"].values.astype(np.float32)
    flat = image.reshape(len(c), -1)
    image = image - (c @ (flat - c @ flat)).reshape(image.shape)
    variance += (c**2 @ variance.reshape(len(c), -1)).reshape(image.shape)
    image -= 30 * products["dark"]["image"].values
    variance += 900 * products["dark"]["variance"].values
    return image, variance, mask


def by_dask(raw: RawFrame, site: Site, products: dict[str, xr.Dataset]) -> tuple[np.ndarray, ...]:
    """The same on Dask arrays of one chunk per amplifier, one thread."""
    box = raw.detector.amplifiers[0].data
    level, _, noise = overscan_levels(raw, site.shape, OverscanConfig())

    def chunked(array: np.ndarray) -> da.Array:
        return da.from_array(array, chunks=(1, *array.shape[1:]))

    bias, dark = ({k: chunked(products[p][k].values) for k in ("image", "variance", "mask")} for p in ("bias", "dark"))
    image = chunked(raw.counts)[:, box.y0 : box.y1, box.x0 : box.x1].astype(np.float32) - level[:, :, None]
    variance = noise[:, None, None] + bias["variance"]
    image = image - bias["image"]
    mask = bias["mask"] | dark["mask"] | da.where(image > 1e5, 4, 0).astype(np.uint16)
    grid = np.arange(0, NODES[-1], 32.0)
    values = Akima1DInterpolator(NODES, products["linearity"]["linearity_correction"].values[0])(grid)
    image = image + image.map_blocks(lambda part: np.interp(part, grid, values).astype(np.float32), dtype=np.float32)
    gain = products["gain"]["gain"].values[:, None, None].astype(np.float32)
    image = image * gain
    variance = variance * gain**2 + da.maximum(image, 0)
    c = products["crosstalk"]["crosstalk"].values.astype(np.float32)
    image = image - da.tensordot(c, image - da.tensordot(c, image, 1), 1)
    variance = variance + da.tensordot(c**2, variance, 1) + 900 * dark["variance"]
    image = image - 30 * dark["image"]
    with dask.config.set(scheduler="synchronous"):
        found: tuple[np.ndarray, ...] = dask.compute(image, variance, mask)
    return found


def measure(rounds: int) -> dict[str, float]:
    """Median processor seconds of each."""
    raw, site, products = inputs()
    planes = (products["bias"], products["dark"])
    traffic = sum(p[k].values.nbytes for p in planes for k in ("image", "variance", "mask"))
    traffic += raw.counts.nbytes + int(np.prod(raw.counts.shape[:1] + site.shape)) * 10
    line = np.ones(traffic // 4, np.float32)
    config = IsrConfig(edge=0)
    functions: dict[str, Callable[[], Any]] = {
        "ours": lambda: correct(raw, site, products, config),
        "memory traffic": lambda: _read(line),
        "numpy, step by step": lambda: step_by_step(raw, site, products),
        "Dask, chunks of amplifiers": lambda: by_dask(raw, site, products),
    }
    ours, plain = functions["ours"](), functions["numpy, step by step"]()
    inner = (slice(None), slice(None), slice(None))
    np.testing.assert_allclose(ours.image[inner], plain[0][inner], rtol=1e-4, atol=0.5)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for times and ratios")
    arguments = parser.parse_args()
    seconds = measure(arguments.rounds)
    table = Table(title="corrections of one LSSTCam CCD, one thread")
    for column in ("", "ms", "over ours", "target", ""):
        table.add_column(column, justify="right")
    for name, taken in seconds.items():
        ratio, target = taken / seconds["ours"], TARGETS.get(name)
        verdict = "" if target is None else "pass" if ratio >= target else "FAIL"
        table.add_row(name, f"{1e3 * taken:.0f}", f"{ratio:.2f}", "" if target is None else f"{target:g}", verdict)
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()
