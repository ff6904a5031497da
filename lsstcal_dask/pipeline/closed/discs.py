"""Exposures of discs of light on chosen raw pixels of a few CCDs, read out by the virtual observatory's electronics."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from scipy.special import erf

from lsstcal_dask.pipeline.closed.raw import place
from lsstcal_dask.simulate import Observatory
from lsstcal_dask.simulate.crosstalk import couplings
from lsstcal_dask.simulate.electronics import read_out

__all__ = ["Disc", "dataset", "disc", "expose", "true_matrix"]

SKY = 5.0  # electrons in every pixel

Disc = tuple[float, float, float, float]
"""Raw y and x, radius (px), electrons."""


def disc(shape: tuple[int, int], y: float, x: float, radius: float, blur: float = 0.8) -> np.ndarray:
    """A disc (y, x) of height 1 with an edge blurred by a Gaussian."""
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(0.5 * (1 - erf((np.hypot(yy - y, xx - x) - radius) / blur / np.sqrt(2))))


def expose(
    site: Observatory, names: Sequence[str], number: int, lit: Mapping[tuple[str, str], Disc], sky: float = SKY
) -> np.ndarray:
    """Counts (detector, amplifier, y, x); ``lit``: the disc of a detector and amplifier."""
    random = np.random.default_rng([site.seed, number])
    camera, charge = site.camera, {}
    for name in names:
        raw = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
        for a in camera.detector(name).amplifiers:
            mean = np.full(a.data.shape, sky)
            if (name, a.name) in lit:
                y, x, radius, level = lit[name, a.name]
                mean += level * disc(camera.raw_shape, y, x, radius)[a.data.slices]
            raw[(place(site, a.name), *a.data.slices)] = random.poisson(mean)
        charge[name] = raw
    dark = {d.name: np.zeros_like(raw) for d in camera.detectors if d.name not in charge}
    electronics = site.settings.electronics
    return np.stack(
        [read_out(site.seed, electronics, camera, camera.detector(n), number, charge[n], charge | dark) for n in names]
    )


def dataset(site: Observatory, names: Sequence[str], counts: Sequence[np.ndarray], kind: str = "cbp") -> xr.Dataset:
    """Exposures (exposure, detector, amplifier, y, x) as `open_raw` gives them."""
    n = len(counts)
    return xr.Dataset(
        {
            "counts": (("exposure", "detector", "amplifier", "y", "x"), np.asarray(counts), {"units": "adu"}),
            "present": (("exposure", "detector"), np.ones((n, len(names)), bool)),
        },
        coords={
            "exposure": [f"e{i}" for i in range(n)],
            "detector": list(names),
            "amplifier": list(site.camera.amplifier_names),
            "exposure_type": ("exposure", np.array([kind] * n, object)),
        },
    )


def true_matrix(site: Observatory, target: str, sources: Sequence[str]) -> np.ndarray:
    """C and c2 (2, target amplifier, source), along ``camera.amplifier_names`` of the CCDs named."""
    camera = site.camera
    n = len(camera.amplifier_names)
    found = couplings(site.seed, site.settings.crosstalk, camera, camera.detector(target))
    out = np.zeros((2, n, n * len(sources)))
    first = {camera.detector(name).id: i * n for i, name in enumerate(sources)}
    for i in range(len(found.c)):
        if int(found.source_detector[i]) in first:
            at = found.target[i], first[int(found.source_detector[i])] + found.source[i]
            out[:, at[0], at[1]] = found.c[i], found.c2[i]
    return out
