"""Closed loop of crosstalk: what is measured on the virtual observatory's readout against its truth (SCIENCE 2.6).

Run ``python benchmarks/closed_crosstalk.py [--seeds N] [--quick]``. Two parts:

- the readout boards of mini9, 48 amplifiers each, every one of them target and source, one lit at a time as ¶10f
  describes it: pulls, found and false entries, over seeds;
- one board of amplifiers of LSSTCam, spots of 160 pixels (100 um holes) at 50 and 150 ke- in the middle of an
  amplifier: whether the ghost of a 150 ke- source that is left is below 0.15 electrons.

Truth is that of `simulate.crosstalk`, noise and gains those of `simulate.electronics`; the light is made here.
"""

import argparse

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.closed.discs import dataset, disc, expose, true_matrix
from lsstcal_dask.pipeline.closed.raw import true_gains as gains
from lsstcal_dask.products.crosstalk import CrosstalkConfig, measure_crosstalk
from lsstcal_dask.products.spots import find_spots
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.electronics import channel

LEVELS = (5e4, 1.1e5)  # electron
EFFECTS = ["gain", "read_noise", "crosstalk", "digitisation", "overscan_drift"]


def _site(camera: str, seed: int, **effect) -> Observatory:
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
        sums, share = a.sum(1), true.row_noise**2 / (variance + a.shape[1] * true.row_noise**2)
        f = (np.einsum("yxi,yxj->ij", a, a) - share * sums.T @ sums) / variance
        total += f[:2, :2] - f[:2, 2:] @ np.linalg.solve(f[2:, 2:], f[2:, :2])
    return float(np.sqrt(np.linalg.inv(total)[0, 0] if quadratic else 1 / total[0, 0])) / 1e5


def small(seed: int, repeats: int) -> dict[str, np.ndarray]:
    """A board of mini9: estimates, errors, truth (target, source) of 48 amplifiers, and Cramer-Rao bounds."""
    site = _site("mini9", seed, per_board=8, inter_low=3e-6, inter_high=1e-4)
    camera, names = site.camera, [f"R22_S{seed % 3}{i}" for i in range(3)]
    random = np.random.default_rng([seed, 1])
    counts, light = [], {}
    for k in range(repeats):
        for name in names:
            for a in camera.detector(name).amplifiers:
                ny, nx = a.data.shape
                y, x = a.data.y0 + ny / 2 + random.normal(), a.data.x0 + nx / 2 + random.normal()
                level = LEVELS[k % 2]
                counts.append(expose(site, names, len(counts) + 1, {(name, a.name): (y, x, 10.0, level)}))
                light.setdefault((name, a.name), []).append(level * disc(camera.raw_shape, y, x, 10.0))
    raw, gain = dataset(site, names, counts), gains(site, names)
    spots = find_spots(raw, camera, {"gain": gain}).compute(scheduler="sync")
    found = measure_crosstalk(raw, camera, {"gain": gain, "spots": spots}).compute(scheduler="sync")
    sources = [f"{n}/{a}" for n in names for a in camera.amplifier_names]
    part = found.sel(source=sources)
    true = np.concatenate([true_matrix(site, name, names) for name in names], 1)
    bounds = np.full(true[0].shape, np.nan)
    for t in range(0, 48, 5):  # some targets tell
        detector = camera.detector(names[t // 16])
        place = [a.name for a in detector.amplifiers].index(camera.amplifier_names[t % 16])
        for s, key in enumerate((n, a) for n in names for a in camera.amplifier_names):
            if s != t:
                bounds[t, s] = _bound(site, detector.name, place, np.array(light[key]), True)
    values = [part[v].values.reshape(48, 48) for v in part.data_vars]
    return dict(zip(("c", "e", "c2", "e2"), values, strict=True), true=true[0], true2=true[1], bound=bounds)


def large(seed: int, exposures: int) -> tuple[np.ndarray, np.ndarray]:
    """Ghosts (pair,) in electrons that a 150 ke- source leaves after correction, and before.

    One source of R22_S11; targets are all its amplifiers.
    """
    site, name = _site("lsstcam", seed), "R22_S11"
    camera = site.camera
    detector, counts = camera.detector(name), []
    lit = [detector.amplifiers[5]]
    for k in range(exposures):
        for a in lit:
            place = a.data.y0 + 1000.0, a.data.x0 + 255.0, 80.0, (5e4, 1.15e5)[k % 2]
            counts.append(expose(site, [name], len(counts) + 1, {(name, a.name): place}))
    raw, gain = dataset(site, [name], counts), gains(site, [name])
    config = CrosstalkConfig()
    spots = find_spots(raw, camera, {"gain": gain}).compute(scheduler="sync")
    found = measure_crosstalk(raw, camera, {"gain": gain, "spots": spots}, config).compute(scheduler="sync")
    part = found.sel(detector=name, source=[f"{name}/{a.name}" for a in lit])
    true, true2 = true_matrix(site, name, [name])
    columns = [camera.amplifier_names.index(a.name) for a in lit]
    q = 1.5e5
    ghost = true[:, columns] * q + true2[:, columns] * q**2
    taken = part["crosstalk"].values * q + part["crosstalk_quadratic"].values * q**2
    good = np.isfinite(taken)
    return (ghost - taken)[good], ghost[good]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=4)
    options.add_argument("--repeats", type=int, default=4, help="exposures of each amplifier of mini9")
    options.add_argument("--exposures", type=int, default=32, help="of an amplifier of LSSTCam")
    options.add_argument("--quick", action="store_true")
    args = options.parse_args()
    if args.quick:
        args.seeds, args.repeats, args.exposures = 1, 2, 4
    runs = [small(seed, args.repeats) for seed in range(1, args.seeds + 1)]
    all_of = {key: np.stack([run[key] for run in runs]) for key in runs[0]}
    c, e, true = (all_of[k] for k in ("c", "e", "true"))
    measured, found = np.isfinite(c), np.isfinite(c) & (c != 0)
    pulls = (c - true)[found] / e[found]
    pulls2 = (all_of["c2"] - all_of["true2"])[found] / all_of["e2"][found]
    same = measured & np.isfinite(all_of["bound"])
    eta = (e / all_of["bound"])[same]
    strong = measured & (np.abs(true) >= 8 * e)
    false = found & (true == 0)
    pairs = int(measured.sum())
    left, before = (
        np.concatenate(one) for one in zip(*(large(s, args.exposures) for s in range(1, args.seeds + 1)), strict=True)
    )
    table = Table("what", "target", "measured", "seeds")
    rows = [
        ("error / Cramer-Rao bound, median of pairs", "<= 1.15", f"{np.median(eta):.3f}"),
        ("scatter of c / error (found entries)", "0.90-1.10", f"{pulls.std():.3f} of {len(pulls)}"),
        ("mean of c / error", "|.| < 0.3", f"{pulls.mean():+.3f}"),
        ("scatter, mean of c2 / error", "0.90-1.10, |.| < 0.3", f"{pulls2.std():.3f}, {pulls2.mean():+.3f}"),
        ("entries of at least 8 sigma found", "all", f"{int((strong & found).sum())} of {int(strong.sum())}"),
        ("negative entries found", "", str(int((found & (true < 0)).sum()))),
        ("false entries", "<= 1 in 3024**2", f"{int(false.sum())} in {pairs} pairs"),
        (
            "ghost of 150 ke- left, rms",
            "< 0.15 e-",
            f"{np.sqrt(np.mean(left**2)):.3f} (before {np.abs(before).max():.1f})",
        ),
        ("ghost of 150 ke- left, worst", "< 0.15 e-", f"{np.abs(left).max():.3f} of {len(left)} pairs"),
    ]
    for row in rows:
        table.add_row(*row, str(args.seeds))
    Console().print(table)


if __name__ == "__main__":
    xr.set_options(keep_attrs=True)
    main()
