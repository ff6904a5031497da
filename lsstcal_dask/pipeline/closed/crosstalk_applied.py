"""Closed loop of the applied crosstalk: couplings added to light, and removed with the true matrix (Sec. 3.3).

A readout board of mini9, bright discs on some amplifiers of each CCD, no noise: couplings within a CCD and between
CCDs, linear and quadratic, in the analogue domain of the virtual observatory, and the removal of `isr.crosstalk`. What
is left is compared with the brightest source.

Every fourth amplifier, of whose couplings the product is told nothing, must not change by a bit.
"""

from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import coupled, crosstalk_image, from_others, own_entries
from lsstcal_dask.pipeline.closed.discs import disc, true_matrix
from lsstcal_dask.pipeline.closed.raw import place
from lsstcal_dask.pipeline.closed.target import Target, largest
from lsstcal_dask.products.crosstalk import source_names
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.crosstalk import Crosstalk, add_crosstalk, couplings

__all__ = ["SEEDS", "measure"]

SEEDS = 9
BRIGHT = 1.5e5  # electron
SKY = 300.0
FREE = 4  # every so many amplifiers the product has no coupling


def light(site: Observatory, names: list[str]) -> dict[str, np.ndarray]:
    """Charge (amplifier, y, x) of each CCD: sky, and a disc on every third amplifier."""
    random, found = np.random.default_rng([site.seed, 33]), {}
    for name in names:
        raw = np.zeros((len(site.camera.amplifier_names), *site.camera.raw_shape), np.float32)
        for k, amplifier in enumerate(site.camera.detector(name).amplifiers):
            (ny, nx), box = amplifier.data.shape, amplifier.data
            shape = SKY + random.gamma(2.0, 50.0, amplifier.data.shape)
            if k % 3 == 0:
                y, x = random.uniform(0.3, 0.7, 2) * (ny, nx) + (box.y0, box.x0)
                shape += BRIGHT * disc(site.camera.raw_shape, y, x, 12.0)[box.slices]
            raw[(place(site, amplifier.name), *box.slices)] = shape
        found[name] = raw
    return found


def product(site: Observatory, names: list[str]) -> xr.Dataset:
    """True couplings of some CCDs as the product ``crosstalk``, but for the amplifiers that have none there."""
    camera = site.camera
    sources = list(source_names(camera))
    columns = [sources.index(f"{n}/{a}") for n in names for a in camera.amplifier_names]
    linear, quadratic = np.zeros((2, len(names), len(camera.amplifier_names), len(sources)))
    for i, name in enumerate(names):
        linear[i][:, columns], quadratic[i][:, columns] = true_matrix(site, name, names)
    linear[:, ::FREE], quadratic[:, ::FREE] = 0, 0
    dims = ("detector", "amplifier", "source")
    return xr.Dataset(
        {"crosstalk": (dims, linear), "crosstalk_quadratic": (dims, quadratic)},
        {"detector": names, "amplifier": list(camera.amplifier_names), "source": sources},
    )


def remove(site: Observatory, seen: dict[str, np.ndarray], crosstalk: xr.Dataset, name: str) -> np.ndarray:
    """Charge (amplifier, y, x) of a CCD without crosstalk, first from other CCDs, as a calibrated frame has it."""
    camera, detector = site.camera, site.camera.detector(name)
    own, image = crosstalk.sel(detector=name), seen[name].copy()
    order = {n: [place(site, a.name) for a in camera.detector(n).amplifiers] for n in seen}
    entries = coupled(own, detector, camera)
    mine = image[order[name]]
    if entries:
        mine = mine - from_others({n: seen[n][order[n]] for n in entries}, entries, detector)
    mine, _, _ = crosstalk_image(mine, np.ones_like(mine), np.zeros(mine.shape, np.uint16), own_entries(own, detector))
    image[order[name]] = mine
    return image


def measure(seeds: int, *, correct: bool = True, **effect: Any) -> list[Target]:
    """What is left of the brightest source, and pixels that changed though nothing couples to them."""
    left, changed, untouched = [], 0, 0
    for seed in range(1, seeds + 1):
        update = {"crosstalk": Crosstalk(per_board=40, **effect)}
        settings = Settings().only(["crosstalk"]).model_copy(update=update)
        site = Observatory(seed, load_camera("mini9"), settings)
        names = [f"R22_S{seed % 3}{i}" for i in range(3)]
        true, crosstalk = light(site, names), product(site, names)
        seen = {}
        for name in names:
            own = couplings(seed, site.settings.crosstalk, site.camera, site.camera.detector(name))
            seen[name] = add_crosstalk(site.camera, site.camera.detector(name), own, true[name], true)
        for name in names:
            found = remove(site, seen, crosstalk, name) if correct else seen[name]
            free = np.arange(len(found)) % FREE == 0
            left.append((found - true[name])[~free])
            changed += int((found[free].view(np.uint32) != seen[name][free].view(np.uint32)).sum())
            untouched += int(free.sum())
    residual = largest(np.array(left) / BRIGHT)
    name = f"{untouched} amplifiers without coupling: pixels changed by a bit"
    return [
        Target("3.3", "largest residual over the brightest source", "", -np.inf, 1e-6, *residual, seeds),
        Target("3.3", name, "", 0.0, 0.0, float(changed), 0.0, seeds),
    ]
