"""Closed loop of the linearity curves: inject, measure, compare (Sec. 2.3 of SCIENCE).

Run ``python benchmarks/closed_linearity.py [--seeds N] [--pixels N]``. Curves, photodiode and lamp are those of the
virtual observatory. For many seeds the mean signals of an LSST amplifier are drawn directly from its noise; for some
(``--pixels``) whole flats of a small camera are simulated and measured. Curves are compared up to a common scale, which
a ladder of flats does not know, and the scale is compared with its error on its own.
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.curvefit import Ladder, solve
from lsstcal_dask.products.linearity import Fitted, LinearityConfig, fit_ladder, measure_linearity
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, true_to_measured
from lsstcal_dask.simulate.photodiode import Photodiode, photodiode_charge
from lsstcal_dask.simulate.truth import amplifiers

GAIN, NOISE, PIXELS = 1.5, 3.6, 2002 * 512  # electron/adu, adu, of an LSST amplifier
OVERSCAN = 2002 * 60
START = np.datetime64("2026-07-01T20:00:00", "ms")
DIODE = 1e5  # pixels that receive as much light as the photodiode


@dataclass(frozen=True)
class Case:
    """One ladder drawn from a seed."""

    ladder: Ladder
    true: np.ndarray  # (n,) adu
    variance: np.ndarray  # (n,) relative, of light and signal together, without the drift
    well: float  # adu measured


def draw(seed: int, levels: np.ndarray, apart: float = 12.0) -> Case:
    """Pairs of flats at levels (adu, true) in random order, ``apart`` seconds from start to start."""
    detector, random = load_camera("mini9").detectors[0], np.random.default_rng(seed)
    true = random.permutation(np.repeat(levels, 2)) * (1 + 1e-3 * random.standard_normal(2 * len(levels)))
    seconds, settings = true / 20e3, Photodiode(dark_current=0.0)
    light, days = [], []
    for number, (signal, duration) in enumerate(zip(true, seconds, strict=True), 1):
        time = START + np.timedelta64(int(1e3 * apart * number), "ms")
        taken = Exposure("", number, "flat", time, duration, duration, "r", Lamp(1.0))
        light.append(photodiode_charge(seed, settings, taken, [signal * GAIN * DIODE / 0.7], [620.0]))
        days.append((time - START) / np.timedelta64(1, "D"))
    well = 110e3
    shot = np.where(true < well, true, well) / GAIN / PIXELS
    floor = NOISE * np.sqrt(1 / PIXELS + 1 / OVERSCAN)
    kept = np.minimum(true + np.sqrt(shot) * random.standard_normal(len(true)), well)
    signal = true_to_measured(seed, Nonlinearity(), detector, 0, kept) + floor * random.standard_normal(len(true))
    unit = np.median(np.array(light) / true)
    variance = settings.noise**2 + (settings.zero_noise / unit / true) ** 2 + (shot + floor**2) / true**2
    ladder = Ladder(
        signal, np.array(light), seconds, np.array(days), np.full(len(true), np.nan), np.zeros(len(true), np.int64),
        np.full(len(true), floor),
    )  # fmt: skip
    return Case(ladder, true, variance, float(true_to_measured(seed, Nonlinearity(), detector, 0, well)))


def compare(seed: int, fitted: Fitted) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Relative residuals on a grid, up to scale; their errors; the scale's error, and its standard error."""
    top = fitted.solution.model.top
    level = np.linspace(1000, 0.97 * top, 300)
    truth = linearity_truth(seed, Nonlinearity(), load_camera("mini9").detectors[0], 0, level)
    correction, covariance = fitted.solution.correction(level)
    ratio, relative = (level + correction) / truth - 1, covariance / truth / truth[:, None]
    project = np.eye(len(level)) - 1 / len(level)
    return project @ ratio, np.sqrt(np.diag(project @ relative @ project)), ratio.mean(), np.sqrt(relative.mean())


def bound(case: Case, fitted: Fitted) -> np.ndarray:
    """Cramer-Rao bound of the same residuals for the fitted spline, had the noise been known."""
    variance = case.variance[fitted.used]
    known = replace(fitted, solution=solve(fitted.ladder, fitted.solution.model, variance, LinearityConfig().nuisance))
    return known.solution


def many(seeds: int) -> list[tuple[str, str, str, int]]:
    """Rows of the table from ladders drawn from the noise."""
    levels = np.unique(np.r_[np.geomspace(150, 5e3, 14), np.linspace(8e3, 125e3, 40)])
    residuals, errors, bounds, scales, turn, high = [], [], [], [], [], []
    for seed in range(1, seeds + 1):
        case = draw(seed, levels)
        fitted = fit_ladder(case.ladder)
        residual, error, scale, scale_error = compare(seed, fitted)
        ideal = compare(seed, replace(fitted, solution=bound(case, fitted)))[1]
        residuals.append(residual)
        errors.append(error)
        bounds.append(ideal)
        scales.append(scale / scale_error)
        turn.append(fitted.turnoff / case.well - 1)
        inside = np.linspace(1000, 0.97 * fitted.solution.model.top, 300) / case.well
        high.append(np.abs(residual[(inside > 0.5) & (inside < 0.9)]).max())
    r, e, b = np.array(residuals), np.array(errors), np.array(bounds)
    rms = np.sqrt((r**2).mean(axis=1))
    return [
        ("residual rms, median of seeds", "1e-4", f"{np.median(rms):.1e}", seeds),
        ("residual rms, all seeds together", "1e-4", f"{np.sqrt((r**2).mean()):.1e}", seeds),
        ("largest residual at 0.5-0.9 of the turnoff, median", "3e-4", f"{np.median(high):.1e}", seeds),
        ("the same, worst seed", "3e-4", f"{max(high):.1e}", seeds),
        ("turnoff, rms error", "0.02", f"{np.sqrt(np.mean(np.square(turn))):.4f}", seeds),
        ("turnoff, largest error", "0.02", f"{np.abs(turn).max():.4f}", seeds),
        ("eta: rms over bound", "1.15", f"{np.sqrt((r**2).mean() / (b**2).mean()):.2f}", seeds),
        ("width of pulls", "0.90-1.10", f"{np.sqrt((r**2 / e**2).mean()):.2f}", seeds),
        ("scale L'(0) = 1: width of pulls", "0.90-1.10", f"{np.sqrt(np.mean(np.square(scales))):.2f}", seeds),
    ]


def flats(site: Observatory, levels: np.ndarray) -> xr.Dataset:
    """Raw pairs of flats of the first CCD at levels in electrons."""
    detector, rate = site.camera.detectors[0], 1.26e5  # of the lamp: 1e4 electron/s in band r
    taken, time = [], START
    for number, level in enumerate(np.repeat(levels, 2), 1):
        seconds = level / 1e4
        taken.append(Exposure(f"MC_S_20260701_{number:06d}", number, "flat", time, seconds, seconds, "r", Lamp(rate)))
        time = time + np.timedelta64(int(1e3 * (seconds + 5)), "ms")
    rows = [header(site, one) for one in taken]
    counts = [next(iter(frames(site, one, [detector]))).counts for one in taken]
    coords = {name: ("exposure", np.array([row[name] for row in rows])) for name in rows[0] if name != "time"}
    coords |= {"exposure": [one.name for one in taken], "time": ("exposure", [one.time for one in taken])}
    names = {"detector": [detector.name], "amplifier": list(site.camera.amplifier_names)}
    dims = ("exposure", "detector", "amplifier", "y", "x")
    present = (("exposure", "detector"), np.ones((len(taken), 1), bool))
    return xr.Dataset({"counts": (dims, np.array(counts)[:, None]), "present": present}, {**coords, **names})


def from_pixels(seeds: int) -> list[tuple[str, str, str, int]]:
    """Rows of the table from simulated flats of the one-CCD camera, whose few pixels set the noise."""
    levels = np.unique(np.r_[np.geomspace(300, 6e3, 8), np.linspace(10e3, 230e3, 34)])
    rms, turn = [], []
    for seed in range(1, seeds + 1):
        site = Observatory(seed, load_camera("mini1"), Settings().without(["crosstalk"]))
        found = measure_linearity(flats(site, levels), site.camera).isel(detector=0).compute()
        detector = site.camera.detectors[0]
        for i, (amplifier, own) in enumerate(zip(detector.amplifiers, amplifiers(site, detector), strict=True)):
            one = found.sel(amplifier=amplifier.name)
            level, correction = one["linearity_level"].values, one["linearity_correction"].values
            use = (level > 2000) & (level <= float(one["linearity_ceiling"]))
            truth = linearity_truth(seed, site.settings.nonlinearity, detector, i, level[use])
            ratio = (level + correction)[use] / truth
            rms.append(np.std(ratio))
            true_turn = true_to_measured(seed, site.settings.nonlinearity, detector, i, own["full_well"] / own["gain"])
            turn.append(float(one["linearity_turnoff"]) / float(true_turn) - 1)
    return [
        ("pixels: residual rms, median of amplifiers", "1e-4", f"{np.median(rms):.1e}", seeds),
        ("pixels: turnoff, rms error", "0.02", f"{np.sqrt(np.nanmean(np.square(turn))):.4f}", seeds),
        ("pixels: turnoff, largest error", "0.02", f"{np.nanmax(np.abs(turn)):.4f}", seeds),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=4)
    asked = parser.parse_args()
    table = Table("linearity", "target", "measured", "seeds")
    for row in [*many(asked.seeds), *(from_pixels(asked.pixels) if asked.pixels else [])]:
        table.add_row(*(str(cell) for cell in row))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
