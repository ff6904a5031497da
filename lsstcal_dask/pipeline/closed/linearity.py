"""Closed loop of the linearity curves: inject, measure, compare (Sec. 2.3).

Curves, photodiode and lamp are those of the virtual observatory. For many seeds the mean signals of an LSST amplifier
are drawn directly from its noise; for a few whole flats of a small camera are simulated and measured. Curves are
compared up to a common scale, which a ladder of flats does not know; the scale is compared with its error on its own.

The bump at low light is one up in half of the seeds and one down in the others: what a ladder hardly shows, the slope
for no light, is wrong by as much for each, and the mean over curves would be that of one of them. How much that is, in
units of the error that is told for it, is told as well.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.closed.raw import START, raw_exposures
from lsstcal_dask.pipeline.closed.target import Target, largest, mean, pulls, ratio, rms
from lsstcal_dask.products.curvefit import Ladder, Solution, solve
from lsstcal_dask.products.linearity import Fitted, LinearityConfig, fit_ladder, measure_linearity
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.headers import DIODE
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth, true_to_measured
from lsstcal_dask.simulate.photodiode import Photodiode, photodiode_charge
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.truth import amplifiers

__all__ = ["SEEDS", "measure"]

SEEDS = 400
_WHOLE = 200
"""Seeds for each of which whole flats are simulated as well."""

GAIN, NOISE, PIXELS = 1.5, 3.6, 2002 * 512  # electron/adu, adu, of an LSST amplifier
OVERSCAN = 2002 * 60
LAMP = 12.6  # photons of the lamp, of all wavelengths, for an electron in band r


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
    wavelength = np.arange(*RANGE)
    photons = DIODE * LAMP * GAIN * lamp_spectrum(wavelength)  # for an adu
    light, days = [], []
    for number, (signal, duration) in enumerate(zip(true, seconds, strict=True), 1):
        time = START + np.timedelta64(int(1e3 * apart * number), "ms")
        taken = Exposure("", number, "flat", time, duration, duration, "r", Lamp(1.0))
        light.append(photodiode_charge(seed, settings, taken, signal * photons, wavelength))
        days.append((time - START) / np.timedelta64(1, "D"))
    well = 110e3
    shot = np.where(true < well, true, well) / GAIN / PIXELS
    floor = NOISE * np.sqrt(1 / PIXELS + 1 / OVERSCAN)
    kept = np.minimum(true + np.sqrt(shot) * random.standard_normal(len(true)), well)
    signal = true_to_measured(seed, curve(seed), detector, 0, kept) + floor * random.standard_normal(len(true))
    unit = np.median(np.array(light) / true)
    variance = settings.noise**2 + (settings.zero_noise / unit / true) ** 2 + (shot + floor**2) / true**2
    pairs = Ladder(
        signal, np.array(light), seconds, np.array(days), np.full(len(true), np.nan), np.zeros(len(true), np.int64),
        np.full(len(true), floor),
    )  # fmt: skip
    return Case(pairs, true, variance, float(true_to_measured(seed, curve(seed), detector, 0, well)))


@dataclass(frozen=True)
class Compared:
    """A curve less the true one, relative, on a grid of levels."""

    residual: np.ndarray  # (level,) up to a common scale
    error: np.ndarray  # (level,) of it
    numbers: float  # independent ones that the residuals are worth
    scale: float  # relative error of the scale of L'(0) = 1
    scale_error: float


def curve(seed: int) -> Nonlinearity:
    """Non-linearity of a seed, the bump up or down."""
    usual = Nonlinearity()
    return usual.model_copy(update={"bump": usual.bump * (-1) ** seed})


def compare(seed: int, fitted: Fitted) -> Compared:
    """Compare the curve with the true one, on 300 levels from 1000 adu.

    Squares of correlated pulls scatter about one as those of fewer independent ones: ``n**2 / sum of C**2``, C their
    correlation.
    """
    top = fitted.solution.model.top
    level = np.linspace(1000, 0.97 * top, 300)
    truth = linearity_truth(seed, curve(seed), load_camera("mini9").detectors[0], 0, level)
    correction, covariance = fitted.solution.correction(level)
    away, relative = (level + correction) / truth - 1, covariance / truth / truth[:, None]
    project = np.eye(len(level)) - 1 / len(level)
    shape = project @ relative @ project
    error = np.sqrt(np.diag(shape))
    numbers = len(level) ** 2 / np.sum((shape / error / error[:, None]) ** 2)
    return Compared(project @ away, error, float(numbers), float(away.mean()), float(np.sqrt(relative.mean())))


def bound(case: Case, fitted: Fitted) -> Solution:
    """Cramer-Rao bound of the same residuals for the fitted spline, had the noise been known."""
    variance = case.variance[fitted.used]
    return solve(fitted.ladder, fitted.solution.model, variance, LinearityConfig().nuisance)


def measure(seeds: int, knots: int = 40) -> list[Target]:
    """Targets from ladders of ``knots`` bright levels drawn from the noise, and from whole flats of some seeds."""
    levels = np.unique(np.r_[np.geomspace(150, 5e3, 14), np.linspace(8e3, 125e3, knots)])
    found, bounds, turn, high = [], [], [], []
    for seed in range(1, seeds + 1):
        case = draw(seed, levels)
        fitted = fit_ladder(case.ladder)
        found.append(compare(seed, fitted))
        bounds.append(compare(seed, replace(fitted, solution=bound(case, fitted))).error)
        turn.append(fitted.turnoff / case.well - 1)
        inside = np.linspace(1000, 0.97 * fitted.solution.model.top, 300) / case.well
        high.append(np.abs(found[-1].residual[(inside > 0.5) & (inside < 0.9)]).max())
    return [*_curves(found, bounds), *_tops(high, turn), *whole_flats(max(seeds // _WHOLE, 1))]


def _row(name: str, limits: tuple[float, float], found: tuple[float, float], seeds: int) -> Target:
    return Target("2.3", name, "", *limits, *found, seeds)


def _curves(found: list[Compared], bounds: list[np.ndarray]) -> list[Target]:
    """Targets of shapes and scales."""
    r, e, b, seeds = (
        np.array([c.residual for c in found]),
        np.array([c.error for c in found]),
        np.array(bounds),
        len(found),
    )
    few = 1 / np.sqrt(2 * sum(c.numbers for c in found))  # error of a width of one

    def honest(value: float, error: float) -> tuple[float, float]:
        return value, max(error, few)  # the scatter of a few seeds does not tell its own size

    scales = np.array([c.scale / c.scale_error for c in found])
    upward = scales * [np.sign(curve(seed).bump) for seed in range(1, seeds + 1)]
    return [
        _row("residual rms", (-np.inf, 1e-4), rms(r), seeds),
        _row("eta: rms over Cramer-Rao bound", (-np.inf, 1.15), honest(*ratio(r, b)), seeds),
        _row("width of pulls", (0.90, 1.10), honest(*rms(r / e)), seeds),
        *pulls("2.3", "scale, L'(0) = 1", scales),
        _row("scale: shift towards the bump, in errors", (-np.inf, np.inf), mean(upward), seeds),
    ]


def _tops(high: list[float], turn: list[float]) -> list[Target]:
    """Targets of the upper half of the curves, and of their ends."""
    most = "largest residual at 0.5-0.9 of the turnoff, median of seeds"
    return [
        _row(most, (-np.inf, 3e-4), middle(np.array(high)), len(high)),
        _row("turnoff, rms error", (-np.inf, 0.02), rms(np.array(turn)[:, None]), len(turn)),
        _row("turnoff, largest error", (-np.inf, 0.02), largest(np.array(turn)), len(turn)),
    ]


def middle(values: np.ndarray) -> tuple[float, float]:
    """Median and its error as that of Gaussian numbers."""
    error = 1.25 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.median(values)
    return float(np.median(values)), float(error)


def flats(site: Observatory, levels: np.ndarray) -> xr.Dataset:
    """Raw pairs of flats of the first CCD at levels in electrons."""
    rate = 1e4 * LAMP  # for 1e4 electron/s
    taken, time = [], START
    for number, level in enumerate(np.repeat(levels, 2), 1):
        seconds = level / 1e4
        taken.append(Exposure(f"MC_S_20260701_{number:06d}", number, "flat", time, seconds, seconds, "r", Lamp(rate)))
        time = time + np.timedelta64(int(1e3 * (seconds + 5)), "ms")
    return raw_exposures(site, taken, site.camera.detectors[0])


def whole_flats(seeds: int) -> list[Target]:
    """Targets from simulated flats of the one-CCD camera, whose few pixels set the noise."""
    levels = np.unique(np.r_[np.geomspace(300, 6e3, 8), np.linspace(10e3, 230e3, 34)])
    deviation, turn = [], []
    for seed in range(1, seeds + 1):
        site = Observatory(seed, load_camera("mini1"), Settings().without(["crosstalk"]))
        found = measure_linearity(flats(site, levels), site.camera).isel(detector=0).compute(scheduler="sync")
        detector, turns = site.camera.detectors[0], []
        for i, (amplifier, own) in enumerate(zip(detector.amplifiers, amplifiers(site, detector), strict=True)):
            one = found.sel(amplifier=amplifier.name)
            level, correction = one["linearity_level"].values, one["linearity_correction"].values
            use = (level > 2000) & (level <= float(one["linearity_ceiling"]))
            truth = linearity_truth(seed, site.settings.nonlinearity, detector, i, level[use])
            deviation.append(float(np.std((level + correction)[use] / truth)))
            true_turn = true_to_measured(seed, site.settings.nonlinearity, detector, i, own["full_well"] / own["gain"])
            turns.append(float(one["linearity_turnoff"]) / float(true_turn) - 1)
        turn.append(turns)
    return [
        Target("2.3", "whole flats: residual rms", "", -np.inf, 1e-4, *middle(np.array(deviation)), seeds),
        Target("2.3", "whole flats: turnoff, rms error", "", -np.inf, 0.02, *rms(np.array(turn)), seeds),
        Target("2.3", "whole flats: turnoff, largest error", "", -np.inf, 0.02, *largest(np.array(turn)), seeds),
    ]
