"""Spectrum of the night sky at the resolution of its lines, from one at low resolution (♥2, SCIENCE 2.8.3).

Non-negative amplitudes of the families of lines and of a spline of the continuum fit the spectrum by least squares
under bounds; what shapes the bands of hydroxyl and the errors of the spectrograph are further unknowns with priors:

    F = response(nuisances) air (sum_b a_b lines_b(shape) + sum_k c_k spline_k) + calibration + noise.

The share of a band among those of its upper level is a prior too, and all that is known of bands beyond the spectrum.
Errors of the flux calibration, and of the strengths of lines, are a part of the covariance in proportion to the model.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import lsq_linear
from scipy.sparse import csr_array

from lsstcal_dask.errors import DegenerateSolution
from lsstcal_dask.physics.airglow import BRANCHING, GUESSED, SHAPE, TEMPERATURE, TILT, line_list, shares
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.products.sky_model import (
    FINE,
    Measured,
    Spectrograph,
    first_order,
    line_grid,
    pixel_response,
    spline_basis,
)

__all__ = ["SkyFit", "SkySettings", "fit_sky"]

_INSTRUMENT: Final = ("shift", "stretch", "log resolution", "log second order")
_STEPS: Final = (0.01, 0.01, 0.002)  # of the differences that give slopes
_OTHERS: Final = len(_INSTRUMENT) + len(SHAPE)  # parameters that are no amplitudes
_TURNS: Final = 4
_USUAL: Final = np.array([TILT, 0.0, 0.0, *(TEMPERATURE for _ in BRANCHING)])


@dataclass(frozen=True)
class SkySettings:
    """How the sky is modelled; errors are standard deviations.

    Published strengths of hydroxyl's branches differ by 10-20 % (French et al. 2000, Noll et al. 2020).
    """

    spacing: float = 40.0  # nm between the knots of the continuum
    sunlight_spacing: float = 160.0  # nm between those of the share of sunlight in it
    branching_error: float = 0.5  # relative, of the share of a band among those of its upper level
    guess_error: float = 1.0  # the same where the share is a guess
    temperature_error: float = 15.0  # K, of the usual temperature
    tilt_error: float = 0.01
    branch_error: float = 0.2  # of log R/P and log Q/P
    line_error: float = 0.02  # relative: so much lines of Mies scatter about the model; alike over `line_scale`
    line_scale: float = 3.0  # nm
    beyond: float = 0.3  # relative error of the continuum 100 nm beyond the ends of the spectrum


@dataclass(frozen=True, eq=False)
class SkyFit:
    """What was found in a spectrum of the sky."""

    measured: Measured
    spectrum: Spectrum  # what comes down to the telescope, lines as such, with modes of its error
    names: tuple[str, ...]  # of the parameters: families, splines, spectrograph, shape of hydroxyl
    value: np.ndarray  # (parameter,) amplitudes above the air, photon s-1 m-2
    covariance: (
        np.ndarray
    )  # (parameter, parameter); 0 where a bound holds an amplitude at zero; times chi2 / degrees > 1
    chi2: float
    degrees: int  # of freedom
    model: np.ndarray  # (pixel,) fitted flux

    def at(self, name: str) -> tuple[float, float]:
        """Value and standard deviation of a parameter."""
        i = self.names.index(name)
        return float(self.value[i]), float(np.sqrt(self.covariance[i, i]))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What does not change while a spectrum is fitted."""

    measured: Measured
    known: Spectrograph
    settings: SkySettings
    passed: np.ndarray  # (line,) transmission of the air
    grid: csr_array  # (FINE, line), lines behind the air
    splines: np.ndarray  # (spline, FINE), continuum behind the air
    names: tuple[str, ...]
    families: int
    amplitudes: int


def fit_sky(
    measured: Measured,
    known: Spectrograph = Spectrograph(),
    settings: SkySettings = SkySettings(),
    air: Curve | None = None,
    sunlight: Spectrum | None = None,
) -> SkyFit:
    """Fit a spectrum of the sky and rebuild it at the resolution of its lines.

    Parameters
    ----------
    air : transmission of the air on the line of sight; amplitudes are then those above it, else those below.
    sunlight : spectrum, in any scale, of what the continuum holds besides the air's own glow, as zodiacal light.

    Raises
    ------
    DegenerateSolution
        There is no light in it, or the fit fails, as with an infinite flux.
    """
    if not np.median(measured.flux[measured.good]) > 0:
        raise DegenerateSolution(f"sky spectrum {measured.name}: its median flux is not positive: is it of the sky?")
    problem = _problem(measured, known, settings, air, sunlight)
    try:
        with np.errstate(all="ignore"):  # a fit that diverges is told
            value, covariance, root = _fitted(problem)
            model = _matrix(problem, value)[:, : problem.amplitudes] @ value[: problem.amplitudes]
    except np.linalg.LinAlgError:
        raise _diverges(measured) from None
    if not np.all(np.isfinite(model)):
        raise _diverges(measured)
    pull = solve_triangular(root, (measured.flux - model)[measured.good], lower=True)
    free = int(np.sum(np.diag(covariance)[: problem.amplitudes] > 0))  # the others have priors of their own
    chi2, degrees = float(pull @ pull), int(measured.good.sum()) - free
    covariance = covariance * max(1.0, chi2 / degrees)  # what the model leaves out is not less than what it has
    spectrum = _rebuilt(problem, value, covariance)
    return SkyFit(measured, spectrum, problem.names, value, covariance, chi2, degrees, model)


def _fitted(problem: _Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_solve`, after all turns."""
    value = _start(problem)
    for _ in range(_TURNS):
        value, covariance, root = _solve(problem, value, _matrix(problem, value))
    return value, covariance, root


def _diverges(measured: Measured) -> DegenerateSolution:
    return DegenerateSolution(f"sky spectrum {measured.name}: the fit diverges: look at the spectrum")


def _problem(
    measured: Measured, known: Spectrograph, settings: SkySettings, air: Curve | None, sunlight: Spectrum | None
) -> _Problem:
    lines = line_list()
    first, last = measured.wavelength[[0, -1]]
    splines = spline_basis(first, last, settings.spacing, FINE)
    passed = np.ones(len(lines.wavelength))
    if sunlight is not None:
        light = sunlight.at(np.clip(FINE, *sunlight.wavelength[[0, -1]]))
        slow = spline_basis(first, last, settings.sunlight_spacing, FINE)
        splines = np.concatenate([splines, slow * light / np.median(light)])
    if air is not None:
        ends = air.wavelength[[0, -1]]
        splines = splines * np.clip(air.at(np.clip(FINE, *ends)), 0, None)
        passed = np.clip(air.at(np.clip(lines.wavelength, *ends)), 0, None)
    names = (*lines.names, *(f"continuum {i}" for i in range(len(splines))), *_INSTRUMENT, *SHAPE)
    grid = csr_array(line_grid(lines.wavelength) * passed)
    count = len(lines.names)
    return _Problem(measured, known, settings, passed, grid, splines, names, count, count + len(splines))


def _start(problem: _Problem) -> np.ndarray:
    """Amplitudes of the size of the spectrum, nuisances as stated."""
    level = np.median(problem.measured.flux[problem.measured.good])
    size = np.full(problem.families, 20 * level)
    for _, other, ratio in _bands(problem.names):
        size[other] *= ratio
    return np.concatenate([size, np.full(problem.amplitudes - problem.families, level), np.zeros(4), _USUAL])


def _bands(names: tuple[str, ...]) -> list[tuple[int, int, float]]:
    """Numbers of the main band of each upper level and of every other one, and their ratio."""
    found = []
    for upper, bands in BRANCHING.items():
        main, *others = bands
        found += [(names.index(f"OH {upper}-{main}"), names.index(f"OH {upper}-{k}"), bands[k]) for k in others]
    return found


def _matrix(problem: _Problem, value: np.ndarray) -> np.ndarray:
    """Change of the measured spectrum with each parameter: (pixel, parameter)."""
    pixels, known = problem.measured.wavelength, problem.known
    lines, count = line_list(), problem.families
    share, slopes = shares(lines, value[-len(SHAPE) :])
    amplitude, instrument = value[: problem.amplitudes], value[problem.amplitudes : problem.amplitudes + 4]
    one = csr_array((share, (np.arange(len(share)), lines.family)), shape=(len(share), count))
    light = np.concatenate([(problem.grid @ one).toarray(), problem.splines.T], axis=1)
    first, second = pixel_response(pixels, known, instrument)
    response, total = first + second, light @ amplitude
    here, moves = first @ total, []
    for i, step in enumerate(_STEPS):  # the second order is smooth, and does not mind
        moved = first_order(pixels, known, instrument + step * (np.arange(4) == i)) @ total
        moves.append((moved - here) / step)
    moves.append(second @ total)
    shape = response @ (problem.grid @ (slopes * amplitude[lines.family][:, None]))
    return np.concatenate([response @ light, np.stack(moves, axis=1), shape], axis=1)


def _priors(problem: _Problem, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (prior, parameter) and targets, in standard deviations."""
    settings, known = problem.settings, problem.known
    widths = [known.shift_error, known.stretch_error, known.resolution_error, known.second_order_error]
    widths += [settings.tilt_error, settings.branch_error, settings.branch_error]
    width = np.maximum([*widths, *(settings.temperature_error for _ in BRANCHING)], 1e-9)
    own = np.eye(len(value))[problem.amplitudes :] / width[:, None]
    targets = np.concatenate([np.zeros(4), _USUAL]) / width
    pairs = _bands(problem.names)
    shared = np.zeros((len(pairs), len(value)))
    floor = 1e-6 * value[: problem.amplitudes].max()  # of a spectrum without lines, too
    for row, (main, other, ratio) in zip(shared, pairs, strict=True):
        error = settings.guess_error if ratio < GUESSED else settings.branching_error
        row[[other, main]] = np.array([1, -ratio]) / (error * ratio * max(value[main], floor))
    return np.concatenate([own, shared]), np.concatenate([targets, np.zeros(len(pairs))])


def _solve(problem: _Problem, value: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One turn: new parameters, their covariance, and the root of the covariance of the spectrum."""
    good, count = problem.measured.good, problem.amplitudes
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(value))):
        raise _diverges(problem.measured)
    root = _noise(problem, matrix, value)
    data = problem.measured.flux + matrix[:, count:] @ value[count:]  # nuisances enter by their change
    rows, targets = _priors(problem, value)
    design = np.concatenate([solve_triangular(root, matrix[good], lower=True), rows])
    wanted = np.concatenate([solve_triangular(root, data[good], lower=True), targets])
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    low = np.where(np.arange(len(value)) < count, 0, -np.inf)
    found = lsq_linear(design / scale, wanted, (low, np.inf), method="bvls", tol=1e-12).x / scale
    free = np.ones(len(value), bool)
    free[:count] = found[:count] > 1e-12 * found[:count].max()
    inner = np.linalg.pinv((design / scale)[:, free])
    covariance = np.zeros((len(value), len(value)))
    covariance[np.ix_(free, free)] = inner @ inner.T / np.outer(scale[free], scale[free])
    return found, covariance, root


def _noise(problem: _Problem, matrix: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Lower root of the covariance of the good pixels: counts, flux calibration, strengths of lines."""
    measured, known, settings = problem.measured, problem.known, problem.settings
    good = measured.good
    model, lines = (matrix[good, :n] @ value[:n] for n in (problem.amplitudes, problem.families))
    away = measured.wavelength[good][:, None] - measured.wavelength[good]
    covariance = np.diag(measured.variance[good])
    for part, size, scale in (
        (model, known.calibration_error, known.calibration_scale),
        (lines, settings.line_error, settings.line_scale),
    ):
        covariance = covariance + size**2 * np.outer(part, part) * np.exp(-0.5 * (away / scale) ** 2)
    if not np.all(np.isfinite(covariance)):
        raise _diverges(measured)
    return cholesky(covariance, lower=True)


def _rebuilt(problem: _Problem, value: np.ndarray, covariance: np.ndarray) -> Spectrum:
    """Spectrum that comes down, with modes of its error."""
    lines, families, count = line_list(), problem.families, problem.amplitudes
    share, change = shares(lines, value[-len(SHAPE) :])
    density, amplitude = value[families:count] @ problem.splines, value[lines.family]
    of_density, of_lines = np.zeros((len(value), len(FINE))), np.zeros((len(value), len(share)))
    of_density[families:count] = problem.splines
    of_lines[lines.family, np.arange(len(share))] = share * problem.passed
    of_lines[-len(SHAPE) :] = (change * (amplitude * problem.passed)[:, None]).T
    deviation = np.sqrt(np.diag(covariance))
    deviation[deviation == 0] = 1.0
    size, vector = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    modes = (np.sqrt(np.clip(size, 0, None)) * vector).T[size > 1e-10 * size[-1]] * deviation
    flux = amplitude * share * problem.passed
    ends, single = _beyond(problem, density), problem.settings.line_error * flux * _branches()
    return Spectrum(
        FINE,
        density,
        f"sky {problem.measured.name}",
        lines.wavelength,
        flux,
        np.concatenate([modes @ of_density, ends, np.zeros((len(single), len(FINE)))]),
        np.concatenate([modes @ of_lines, np.zeros((len(ends), len(share))), single]),
    )


def _branches() -> np.ndarray:
    """Which lines are of each branch of each group of families: (branch, line)."""
    lines = line_list()
    own = [
        f"{group} {branch:g}" for group, branch in zip(np.array(lines.groups)[lines.family], lines.branch, strict=True)
    ]
    return np.array([np.array(own) == one for one in dict.fromkeys(own)], float)


def _beyond(problem: _Problem, density: np.ndarray) -> np.ndarray:
    """Modes of the continuum's error beyond the ends of the spectrum: (2, FINE)."""
    first, last = problem.measured.wavelength[[0, -1]]
    below, above = np.clip(first - FINE, 0, None), np.clip(FINE - last, 0, None)
    return np.stack([below, above]) / 100 * problem.settings.beyond * density
