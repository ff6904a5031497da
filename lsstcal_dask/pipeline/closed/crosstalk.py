"""Closed loop of crosstalk: what is measured on the virtual observatory's readout against its truth (Sec. 2.6).

Two parts:

- the readout boards of mini9, 48 amplifiers each, every one of them target and source, one lit at a time as the
  document describes it (its input 10f): pulls, found and false entries, over seeds;
- one CCD of LSSTCam, spots of 160 pixels (100 um holes) at 50 and 150 ke- in the middle of an
  amplifier: whether the ghost of a 150 ke- source that is left is below 0.15 electrons.

Truth is that of `simulate.crosstalk`, noise and gains those of `simulate.electronics`; the light is made here.
"""

from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.closed.discs import Disc, dataset, disc, expose, true_matrix
from lsstcal_dask.pipeline.closed.raw import place, true_gains
from lsstcal_dask.pipeline.closed.target import Target, largest, pulls, rms
from lsstcal_dask.products.crosstalk import measure_crosstalk
from lsstcal_dask.products.spots import find_spots
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.electronics import channel

__all__ = ["SEEDS", "measure"]

SEEDS = 4
LEVELS = (5e4, 1.1e5)  # electron
EFFECTS = ["gain", "read_noise", "crosstalk", "digitisation", "overscan_drift"]


def _site(camera: str, seed: int, **effect: Any) -> Observatory:
    settings = Settings().only(EFFECTS).model_copy(update={"crosstalk": Crosstalk(**effect)})
    return Observatory(seed, load_camera(camera), settings)


def _bound(site: Observatory, target: str, amplifier: int, light: np.ndarray, quadratic: bool) -> float:
    """Cramer-Rao bound of c from all exposures, whose light (exposure, y, x) is of one source.

    Per exposure, the polynomial of order 2 over the same pixels is unknown, the row noise is known to the fit.
    """
    detector = site.camera.detector(target)
    true = channel(site.seed, site.settings.electronics, site.camera, detector, amplifier)
    variance = true.read_noise**2 + 5.0 + true.gain**2 / 12
    total = np.zeros((2, 2))
    for one in light:
        y, x = np.nonzero(one > 0.002 * one.max())
        margin = 1 + max(4, round(0.25 * max(np.ptp(y) + 3, np.ptp(x) + 3)))
        part = np.s_[y.min() - margin : y.max() + margin + 1, x.min() - margin : x.max() + margin + 1]
        q = one[part] / 1e5
        v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in q.shape), indexing="ij")
        terms = [q, q**2, np.ones_like(u), u, v, u * u, u * v, v * v]
        a = np.stack(terms, -1)
        sums, common = a.sum(1), true.row_noise**2 / (variance + a.shape[1] * true.row_noise**2)
        f = (np.einsum("yxi,yxj->ij", a, a) - common * sums.T @ sums) / variance
        total += f[:2, :2] - f[:2, 2:] @ np.linalg.solve(f[2:, 2:], f[2:, :2])
    return float(np.sqrt(np.linalg.inv(total)[0, 0] if quadratic else 1 / total[0, 0])) / 1e5


def small(seed: int, repeats: int) -> dict[str, np.ndarray]:
    """A board of mini9: estimates, errors, truth (target, source) of 48 amplifiers, and Cramer-Rao bounds."""
    site = _site("mini9", seed, per_board=8, inter_low=3e-6, inter_high=1e-4)
    camera, names = site.camera, [f"R22_S{seed % 3}{i}" for i in range(3)]
    keys = [(name, a) for name in names for a in camera.amplifier_names]
    random = np.random.default_rng([seed, 1])
    counts: list[np.ndarray] = []
    light: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in keys}
    for k in range(repeats):
        for name in names:
            for a in camera.detector(name).amplifiers:
                ny, nx = a.data.shape
                y, x = a.data.y0 + ny / 2 + random.normal(), a.data.x0 + nx / 2 + random.normal()
                level = LEVELS[k % 2]
                counts.append(expose(site, names, len(counts) + 1, {(name, a.name): (y, x, 10.0, level)}))
                light[name, a.name].append(level * disc(camera.raw_shape, y, x, 10.0))
    found = _measured(site, names, counts)
    part = found.sel(source=[f"{n}/{a}" for n, a in keys])
    true = np.concatenate([true_matrix(site, name, names) for name in names], 1)
    bounds = np.full(true[0].shape, np.nan)
    for t in range(0, len(keys), 5):  # some targets tell
        detector = camera.detector(keys[t][0])
        index = [a.name for a in detector.amplifiers].index(keys[t][1])
        for s, key in enumerate(keys):
            if s != t:
                bounds[t, s] = _bound(site, detector.name, index, np.array(light[key]), True)
    values = [part[v].values.reshape(len(keys), len(keys)) for v in part.data_vars]
    return dict(zip(("c", "e", "c2", "e2"), values, strict=True)) | {"true": true[0], "true2": true[1], "bound": bounds}


def _measured(site: Observatory, names: list[str], counts: list[np.ndarray]) -> xr.Dataset:
    """The product of some CCDs."""
    raw, gain = dataset(site, names, counts), true_gains(site, names)
    spots = find_spots(raw, site.camera, {"gain": gain}).compute(scheduler="sync")
    return measure_crosstalk(raw, site.camera, {"gain": gain, "spots": spots}).compute(scheduler="sync")


def large(seed: int, exposures: int) -> np.ndarray:
    """Ghosts (pair,) in electrons that a 150 ke- source leaves after correction.

    One source of R22_S11; targets are all its amplifiers.
    """
    site, name = _site("raft", seed), "R22_S11"
    lit = site.camera.detector(name).amplifiers[5]
    where = lit.data.y0 + 1000.0, lit.data.x0 + 255.0
    lights: list[Disc] = [(*where, 80.0, (5e4, 1.15e5)[k % 2]) for k in range(exposures)]
    counts = [expose(site, [name], k + 1, {(name, lit.name): light}) for k, light in enumerate(lights)]
    part = _measured(site, [name], counts).sel(detector=name, source=f"{name}/{lit.name}")
    true, true2 = true_matrix(site, name, [name])[:, :, place(site, lit.name)]
    q = 1.5e5
    taken = part["crosstalk"].values * q + np.nan_to_num(part["crosstalk_quadratic"].values) * q**2
    left = true * q + true2 * q**2 - taken
    return np.asarray(left[np.isfinite(taken)])


def measure(seeds: int, repeats: int = 4, exposures: int = 24) -> list[Target]:
    """Targets of the measured matrix, from ``repeats`` exposures of each amplifier of a board of mini9.

    Parameters
    ----------
    exposures : of an amplifier of LSSTCam; 0 leaves that part out.
    """
    runs = [small(seed, repeats) for seed in range(1, seeds + 1)]
    c, e, c2, e2, true, true2, bound = (
        np.stack([run[key] for run in runs]) for key in ("c", "e", "c2", "e2", "true", "true2", "bound")
    )
    measured, found = np.isfinite(c), np.isfinite(c) & (c != 0)
    strong = measured & (np.abs(true) >= 8 * e)
    eta = (e / bound)[measured & np.isfinite(bound)]
    false = float((found & (true == 0)).sum())

    def row(name: str, unit: str, low: float, high: float, value: tuple[float, float]) -> Target:
        return Target("2.6", name, unit, low, high, *value, seeds)

    middle = float(np.median(eta)), float(1.25 * eta.std() / np.sqrt(eta.size))
    targets = [
        row("eta: error over Cramer-Rao bound, median of pairs", "", -np.inf, 1.15, middle),
        *pulls("2.6", "c", np.where(found, (c - true) / e, np.nan)),
        *pulls("2.6", "c2", np.where(found, (c2 - true2) / e2, np.nan)),
        row(f"entries missed of {int(strong.sum())} of 8 sigma", "", 0.0, 0.0, (float((strong & ~found).sum()), 0.0)),
        row(f"false entries among {int(measured.sum())} pairs", "", 0.0, 1.0, (false, 0.0)),
    ]
    if exposures:
        left = np.array([large(seed, exposures) for seed in range(1, seeds + 1)])
        targets += [
            row("ghost of a 150 ke- source that is left: rms", "electron", -np.inf, 0.15, rms(left)),
            row("ghost of a 150 ke- source that is left: worst", "electron", -np.inf, 0.15, largest(left)),
        ]
    return targets
