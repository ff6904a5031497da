"""Closed loop of the crosstalk matrix of a whole camera: every amplifier of LSSTCam on every other (Sec. 2.6, ¶10f).

The 189 science CCDs of LSSTCam where they are, with their rafts, boards, makers and flips; only their amplifiers are
small, for what counts is which sources are read at the same time: 98 x 98 pixels, 49 cells of 14 pixels. A mask puts
one spot on each amplifier, and no two of a board in one cell, so that every exposure tells 48 combinations of sources
for each target: 3024 of them need 63 exposures at least. Were all 63 boards lit every time, it would be the same 48
in each exposure. So in each 8 of them are lit, as lines of the affine plane of order 8 go through its 64 points:
72 exposures, each board lit in 9, any two of them together in one. That tells each source of a cell from the
62 others, with the worth of 8 exposures of it alone, and also where the target's own spot hides the cell whenever its
board is lit, which half of the boards lit at a time, the shortest plan otherwise, would not. Every other bundle of
parallel lines is taken with fainter spots: they tell the quadratic terms, of pairs of a CCD.

Spots have 1/400 of the area that those of LSSTCam have. The read noise is a quarter of its own, so that an exposure
tells a coefficient five times worse, not twenty. Frames are simulated when they are read and kept for a few CCDs
only: memory is that of the spots (0.2 GB), of the frames of these CCDs, and of their normal equations, 1 GB in all for
two threads. The whole camera takes some 25 minutes of one core, three rafts one.
"""

from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.pipeline.closed.discs import true_matrix
from lsstcal_dask.pipeline.closed.lit_boards import CELL, SIDE, Plan, cell, plan, raw_frames, shape, small_camera, spot
from lsstcal_dask.pipeline.closed.raw import place, true_gains
from lsstcal_dask.pipeline.closed.target import Target, pulls
from lsstcal_dask.products.crosstalk import CrosstalkConfig, crosstalk_amplifiers, measure_crosstalk
from lsstcal_dask.products.spots import SpotConfig, find_spots
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.boards import boards
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.electronics import channel

__all__ = ["SEEDS", "matrix", "measure", "site_of"]

SEEDS = 1
EFFECTS: Final = ["gain", "read_noise", "crosstalk", "digitisation", "overscan_drift"]


def site_of(seed: int, rafts: int) -> Observatory:
    """An observatory with such a camera, its amplifiers coupled."""
    effect = Crosstalk(nearest=1e-4, decay=0.1, decay_itl=0.1)
    settings = Settings().only(EFFECTS).model_copy(update={"crosstalk": effect})
    return Observatory(seed, small_camera(rafts), settings)


def matrix(site: Observatory, how: Plan, workers: int, targets: slice = slice(None)) -> tuple[xr.Dataset, float]:
    """The product of the CCDs that are ``targets``, measured with so many threads, and the worst condition of one."""
    names = [d.name for d in site.camera.detectors]
    # each row is levelled by its own pixels: the smooth level would cost more than all that follows
    raw, gain, rows = raw_frames(site, how, workers), true_gains(site, names), OverscanConfig(method="row")
    run = {"scheduler": "threads" if workers > 1 else "sync", "num_workers": workers}
    found = find_spots(raw, site.camera, {"gain": gain}, SpotConfig(overscan=rows), SIDE).compute(**run)
    config = CrosstalkConfig(quadratic="within", overscan=rows)
    first, products = site.camera.detectors[0], {"gain": gain.isel(detector=0), "spots": found}
    one = crosstalk_amplifiers(raw.isel(detector=0), first, site.camera, config, products)
    worst = max(result.attrs["summary"]["condition"] or np.inf for _, result in one)
    made = measure_crosstalk(raw.isel(detector=targets), site.camera, {"gain": gain, "spots": found}, config)
    return made.compute(**run), float(worst)


def bound(site: Observatory, how: Plan, target: tuple[Detector, int], other: tuple[int, int]) -> np.ndarray:
    """Cramer-Rao bounds (board,) of the linear coefficients of the sources in one cell; NaN of the target itself.

    Per exposure a polynomial of order 2 over the cell and half a spot round it is unknown, the noise of rows is known.

    Parameters
    ----------
    other : slot and amplifier of the sources on their boards.
    """
    (detector, own), (slot, k) = target, other
    true = channel(site.seed, site.settings.electronics, site.camera, detector, own)
    variance = true.read_noise**2 + true.gain**2 / 12
    members = [group[slot] for group in boards(site.camera).values()]
    there = np.array([d is not detector or k != own for d in members])
    curved = np.array([d is detector for d in members]) & there
    side, n = CELL + 8, len(members)
    common = true.row_noise**2 / (variance + side * true.row_noise**2)
    v, u = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    smooth = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], -1)
    first = np.array(cell(site.camera, members[0], k)) - (side - 1) / 2
    m = n + int(curved.sum())
    total = np.zeros((m, m))
    for e, level in enumerate(how.level):
        q = np.zeros((side, side, n))
        for i in np.flatnonzero(how.lit[e] & there):
            y, x = np.subtract(spot(site, members[i], k, e), first)
            q[..., i] = level / 1e5 * shape((side, side), y, x)
        a = np.concatenate([q, q[..., curved] ** 2, smooth], -1)
        sums, flat = a.sum(1), a.reshape(side * side, -1)
        f = (flat.T @ flat - common * sums.T @ sums) / variance
        total += f[:m, :m] - f[:m, m:] @ np.linalg.solve(f[m:, m:], f[m:, :m])
    known = np.diag(total) > 0
    out = np.full(m, np.nan)
    out[known] = np.sqrt(np.diag(np.linalg.inv(total[np.ix_(known, known)]))) / 1e5
    return out[:n]


def measure(seeds: int, rafts: int = 21, workers: int = 2) -> list[Target]:
    """Targets of the matrix of the camera, or of its first rafts."""
    runs = [_run(seed, rafts, workers) for seed in range(1, seeds + 1)]
    c, e, c2, e2, true, true2, other, eta = (np.stack(v) for v in zip(*(run.values for run in runs), strict=True))
    measured, found = np.isfinite(c), np.isfinite(c) & (c != 0)
    strong, off = measured & (np.abs(true) >= 8 * e), ~np.eye(c.shape[1], dtype=bool)
    pairs = int(off.sum()) * seeds
    certain = found & strong

    def row(name: str, high: float, value: float, error: float = 0.0, unit: str = "") -> Target:
        low = -np.inf if high in (1.15, np.inf) else 0.0
        return Target("2.6", f"camera: {name}", unit, low, high, value, error, seeds)

    return [
        row("eta: error over Cramer-Rao bound, median of pairs", 1.15, float(np.nanmedian(eta)), _scatter(eta)),
        *pulls("2.6", "camera: c of 8 sigma", np.where(certain, (c - true) / e, np.nan)),
        *pulls("2.6", "camera: c2 of the same CCD", np.where(certain & ~other, (c2 - true2) / e2, np.nan)),
        row(f"pairs unmeasured of {pairs}", 0.0, float((~measured & off).sum())),
        row(f"entries missed of {int(strong.sum())} of 8 sigma", 0.0, float((strong & ~found).sum())),
        row(f"of these between CCDs, {int((strong & other).sum())}", 0.0, float((strong & ~found & other).sum())),
        row(f"false entries among {int(measured.sum())} pairs", 1.0, float((found & (true == 0) & (true2 == 0)).sum())),
        row("worst condition number of sources lit together", np.inf, max(run.condition for run in runs)),
        row("error of a pair of two CCDs, median", np.inf, float(np.nanmedian(e[other])), unit="electron/electron"),
        row("time", np.inf, sum(run.seconds for run in runs), unit="s"),
        row("peak memory of the process", np.inf, getrusage(RUSAGE_SELF).ru_maxrss / 1e6, unit="GB"),
    ]


def _scatter(values: np.ndarray) -> float:
    """Error of a median."""
    return float(1.25 * np.nanstd(values) / np.sqrt(np.isfinite(values).sum()))


@dataclass(frozen=True)
class _Run:
    values: tuple[np.ndarray, ...]  # c, e, c2, e2, c and c2 that are true, pair of two CCDs (target, source); eta
    condition: float
    seconds: float


def _run(seed: int, rafts: int, workers: int) -> _Run:
    site = site_of(seed, rafts)
    camera, how, start = site.camera, plan(site.camera), perf_counter()
    names = [d.name for d in camera.detectors]
    found, condition = matrix(site, how, workers)
    seconds = perf_counter() - start
    n = len(names) * len(camera.amplifier_names)
    values = [found[v].values.reshape(n, n) for v in found.data_vars]
    true = np.concatenate([true_matrix(site, name, names) for name in names], 1).astype(np.float32)
    ccd = np.repeat(np.arange(len(names)), len(camera.amplifier_names))
    return _Run((*values, *true, ccd[:, None] != ccd, _eta(site, how, values[1])), condition, seconds)


def _eta(site: Observatory, how: Plan, error: np.ndarray, number: int = 6) -> np.ndarray:
    """Errors over bounds (some cells, board) of some targets."""
    camera, found = site.camera, []
    random = np.random.default_rng([site.seed, 3])
    groups, n = list(boards(camera).values()), len(camera.amplifier_names)
    row = {d.name: i * n for i, d in enumerate(camera.detectors)}
    for _ in range(number):
        detector = camera.detectors[random.integers(len(camera.detectors))]
        own, slot, k = random.integers(n), random.integers(3), random.integers(n)
        sources = [row[g[slot].name] + place(site, g[slot].amplifiers[k].name) for g in groups]
        target = row[detector.name] + place(site, detector.amplifiers[own].name)
        found.append(error[target, sources] / bound(site, how, (detector, int(own)), (int(slot), int(k))))
    return np.array(found)
