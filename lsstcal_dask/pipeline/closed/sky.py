"""Closed loop of the night sky: its lines from spectra of R = 200 (♥2, Sec. 2.8.3).

Spectra of visits as the calibration telescope delivers them, with all their errors, are read and fitted as those of a
store are; lines that are rebuilt, and amplitudes of families, are compared with the sky that the simulator made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lsstcal_dask.errors import StaleCalibration
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.physics.spectra import Curve, Spectrum, photons
from lsstcal_dask.pipeline.closed.target import Target, mean, ratio, share
from lsstcal_dask.products.sky import SkyFit, fit_sky
from lsstcal_dask.products.sky_model import Measured, Spectrograph, measured_from_table
from lsstcal_dask.products.sky_time import sky_spectrum
from lsstcal_dask.simulate import Exposure, Observatory, Settings, airglow
from lsstcal_dask.simulate import spectrograph as simulated
from lsstcal_dask.simulate.atmosphere import band_average
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.night import pointing_of, true_air
from lsstcal_dask.simulate.recipes import Night, Plan, exposures

__all__ = ["SEEDS", "measure"]

SEEDS = 20
_STEP: Final = 0.05  # nm
_EDGES: Final = np.arange(320.0, 1150.0, _STEP)
_FINE: Final = (_EDGES[1:] + _EDGES[:-1]) / 2
_GRID: Final = np.arange(330.0, 1085.0, 10.0)
_KNOWN: Final = Spectrograph(throughput=Curve(_GRID, simulated.throughput(_GRID)), second_order=0.05)
_FAMILIES: Final = ("OH 3-0", "OH 4-0", "OH 4-1", "OH 5-1", "OH 6-1", "OH 6-2", "OH 7-2", "OH 7-3", "OH 8-3", "OH 8-4",
                    "OH 9-3", "OH 9-4", "OH 9-5", "O2 0-1", "OI green", "OI red", "Na")  # fmt: skip
"""Those with light within the reach of the spectrograph."""
_BINS: Final = ((400, 550), (550, 690), (690, 820), (820, 920), (930, 1055))
_LINES: Final = (731.83, 734.29, 782.37, 799.55, 840.15, 843.25, 888.83, 892.21, 979.38, 1037.57, 1042.12)
"""Doublets, nm, in 0.6 nm: a seventh of what the spectrograph resolves."""
_CHANGES: Final = {"OH8": 1.2, "OH5": 0.8}
_STREET: Final = {435.96: 5.0, 546.23: 8.0, 577.12: 5.0}
"""Lines of mercury lamps, nm and photon s-1 m-2 arcsec-2, a tenth of the sky's green line: on no list of airglow."""
_REJECTED: Final = 5.0  # sigma of chi2


def measure(seeds: int, visits: int = 2) -> list[Target]:
    """Every target of Sec. 2.8.3, of so many visits of each seed's night."""
    rows = [_night(seed, visits) for seed in range(1, seeds + 1)]
    followed = [_changed(seed) for seed in range(1, seeds + 1)]
    strange = [_rejected(_artificial(seed, 3, {}, _STREET)) for seed in range(1, seeds + 1)]
    right = [one for row in rows for one in row.rejected] + [one.rejected for one in followed]
    stale = [answer for row in rows for answer in row.stale]

    def row(name: str, limits: tuple[float, float], found: tuple[float, float], unit: str = "") -> Target:
        return Target("2.8.3", name, unit, *limits, *found, seeds)

    def pull(key: str) -> tuple[float, float]:
        return ratio(np.array([getattr(one, key) for one in rows]), np.ones(1))

    return [
        row("amplitudes of families: width of pulls", (0.9, 1.1), pull("pulls")),
        row("amplitudes of families: mean pull", (-0.3, 0.3), mean([one.pulls.mean() for one in rows])),
        row("chi2 over degrees of freedom", (0.9, 1.1), mean([one.chi2 for one in rows])),
        row("photons of bands of 100 nm: width of pulls", (0.0, 1.1), pull("bins")),
        row("photons of single lines: width of pulls", (0.0, 1.1), pull("lines")),
        row("photons of single lines: relative error", (0.0, 0.05), pull("line_errors")),
        row("families changed by 20 %: error of the change", (0.0, 0.05), _rms([one.missed for one in followed])),
        row("families changed by 20 %: width of pulls", (0.0, 1.1), _rms([one.pulls for one in followed])),
        row("lines that are on no list: rejected", (0.95, np.inf), share(sum(strange), len(strange))),
        row("the right list: rejected", (-np.inf, 0.05), share(sum(right), len(right))),
        row("spectra that are stale refused, others not", (0.95, np.inf), share(sum(stale), len(stale))),
    ]


def _rms(values: Sequence[np.ndarray]) -> tuple[float, float]:
    return ratio(np.array(values), np.ones(1))


@dataclass(frozen=True, eq=False)
class _Row:
    pulls: np.ndarray  # (visit * family,)
    chi2: float
    bins: np.ndarray  # pulls
    lines: np.ndarray
    line_errors: np.ndarray  # relative
    rejected: list[bool]
    stale: list[bool]  # whether the answer was right


def _night(seed: int, visits: int) -> _Row:
    site = Observatory(seed, load_camera("mini1"), Settings())
    taken = exposures("night", Plan(night=Night(visits=visits, fields=visits)), site.settings, site.camera)
    tables, fits = deliveries("night", taken), []
    for one in taken:
        measured = measured_from_table(tables[f"spectrum-sky-{one.name}"](site), one.name, one.time)
        fits.append(fit_sky(measured, _KNOWN, air=Curve(_FINE, _air(site, one))))
    pulls, bins, lines, errors = [], [], [], []
    for one, fit in zip(taken, fits, strict=True):
        pulls += [(fit.at(name)[0] - true) / fit.at(name)[1] for name, true in _amplitudes(site, one).items()]
        light = _radiance(site, one)
        bins += [_pull(fit.spectrum, light, low, high)[0] for low, high in _BINS]
        found = [_pull(fit.spectrum, light, at - 0.3, at + 0.3) for at in _LINES]
        lines += [pull for pull, _ in found]
        errors += [error for _, error in found]
    chi2 = float(np.mean([fit.chi2 / fit.degrees for fit in fits]))
    arrays = {
        "pulls": np.array(pulls),
        "bins": np.array(bins),
        "lines": np.array(lines),
        "line_errors": np.array(errors),
    }
    return _Row(chi2=chi2, rejected=[_too_large(fit) for fit in fits], stale=_stale(fits[0]), **arrays)


def _air(site: Observatory, visit: Exposure) -> np.ndarray:
    return np.asarray(band_average(true_air(site, visit), pointing_of(visit).airmass, _EDGES))


def _radiance(site: Observatory, visit: Exposure) -> np.ndarray:
    """True light that comes down, photon s-1 m-2 nm-1 arcsec-2."""
    pointing, settings = pointing_of(visit), site.settings
    where = (pointing.altitude, pointing.azimuth)
    light = airglow.sky_spectrum(
        site.seed, settings.airglow, settings.moon, visit.time, where, _EDGES, visit.exposure_time
    )
    return np.asarray(light / _STEP * _air(site, visit))


def _amplitudes(site: Observatory, visit: Exposure) -> dict[str, float]:
    """True photons of each family above the air."""
    pointing, settings = pointing_of(visit), site.settings.airglow
    x, y = (np.array(place) for place in airglow.sky_plane(pointing.altitude, pointing.azimuth))
    change = airglow.family_amplitudes(site.seed, settings, visit.time, x, y, visit.exposure_time)
    change = change * airglow.zenith_factor(settings, pointing.altitude)
    return {name: float(change[i] * size) for name, (i, size) in airglow.mean_bands().items() if name in _FAMILIES}


def _pull(spectrum: Spectrum, light: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Pull, and stated relative error, of the photons between two wavelengths."""
    true = float(light[(low < _FINE) & (high > _FINE)].sum() * _STEP)
    band = Curve(np.array([low, low + 0.01, high - 0.01, high]), np.array([0.0, 1.0, 1.0, 0.0]))
    inside = (spectrum.wavelength >= low) & (spectrum.wavelength <= high)
    there = (spectrum.line_wavelength >= low) & (spectrum.line_wavelength <= high)
    assert spectrum.density_modes is not None
    assert spectrum.line_modes is not None
    each = spectrum.density_modes[:, inside] @ np.gradient(spectrum.wavelength)[inside]
    error = float(np.linalg.norm(each + spectrum.line_modes[:, there].sum(axis=1)))
    return (photons(spectrum, band) - true) / error, error / true


def _too_large(fit: SkyFit) -> bool:
    return fit.chi2 - fit.degrees > _REJECTED * np.sqrt(2 * fit.degrees)


def _rejected(measured: Measured) -> bool:
    return _too_large(fit_sky(measured, _KNOWN))


def _stale(fit: SkyFit) -> list[bool]:
    """Whether a spectrum is used 15 minutes from a visit, and refused after 25 and in the night after."""
    time = fit.measured.time

    def refused(minutes: int, stale: bool = False) -> bool:
        try:
            sky_spectrum(time + np.timedelta64(minutes, "m"), [fit], stale=stale)
        except StaleCalibration:
            return True
        return False

    return [not refused(15), refused(25), not refused(25, stale=True), refused(1440), refused(1440, stale=True)]


def _artificial(seed: int, number: int, change: dict[str, float], more: dict[float, float]) -> Measured:
    """Spectrum of the mean sky at the zenith without air, its components changed, with further lines."""
    amplitude = np.array([change.get(name, 1.0) for name in airglow.COMPONENTS])
    density = amplitude @ airglow.sky_components(airglow.Airglow(), _EDGES) / _STEP
    for at, size in more.items():
        density[np.argmin(np.abs(_FINE - at))] += size / _STEP
    data = simulated.observe(seed, simulated.Spectrograph(), number, _FINE, 25 * density, 300.0)
    flux, variance = data["flux"].values / 25, data["variance"].values / 25**2
    return Measured(f"V{number}", np.datetime64("2026-08-10T03:00:00"), data["wavelength"].values, flux, variance)


@dataclass(frozen=True, eq=False)
class _Followed:
    missed: np.ndarray  # (family,) of the ratio of an upper level's light to that before
    pulls: np.ndarray
    rejected: bool


def _changed(seed: int) -> _Followed:
    """Spectra before and after two families have changed."""
    before, after = (fit_sky(_artificial(seed, i, c, {}), _KNOWN) for i, c in ((1, {}), (2, _CHANGES)))
    missed, pulls = [], []
    for upper in (4, 5, 7, 8):
        (old, first), (new, second) = _level(before, upper), _level(after, upper)
        off = new / old / _CHANGES.get(f"OH{upper}", 1.0) - 1
        missed.append(off)
        pulls.append(off / np.hypot(first, second))
    return _Followed(np.array(missed), np.array(pulls), _too_large(after))


def _level(fit: SkyFit, upper: int) -> tuple[float, float]:
    """Photons of the bands of an upper level, and their relative error."""
    at = [i for i, name in enumerate(fit.names) if name in _FAMILIES and name.startswith(f"OH {upper}-")]
    value = float(fit.value[at].sum())
    return value, float(np.sqrt(fit.covariance[np.ix_(at, at)].sum())) / value
