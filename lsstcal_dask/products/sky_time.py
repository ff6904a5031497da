"""Spectrum of the sky at the time of a visit, from those taken before and after it (♥2, SCIENCE 2.8.3).

The brightness of each group of families is a random process about an unknown mean: waves of 2 km that pass at 60 km/h
(Lupton 2016, Sec. 2.9), so that a place changes within a minute, and a slow change over hours. Both have covariances
rms**2 exp(-|t| / scale). The spectrum of a visit is the sum of the night's spectra with the least expected error
(ordinary kriging), and that error is a mode of its own for each group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import InsufficientInputs, StaleCalibration
from lsstcal_dask.physics.airglow import line_list
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.products.sky import SkyFit

__all__ = ["SkyConfig", "SkyVariation", "kriging", "nearest_of_night", "same_night", "sky_spectrum"]


class SkyConfig(BaseModel):
    """How the sky of a visit is told from spectra of its night."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["interpolated", "nearest"] = Field(
        "interpolated", description="of all spectra of the night, or the one of these that is nearest in time alone"
    )
    stale: float = Field(20.0, gt=0, description="minutes from a visit beyond which a spectrum says too little of it")
    medium: Literal["air", "vacuum"] | None = Field(
        None, description="of the wavelengths of spectra whose tables do not say it; vacuum if nobody does"
    )
    reach: tuple[float, float] = Field(
        (340.0, 1060.0),
        description="nm, what the spectrograph can see: light of a filter within it is to be measured, beyond it the "
        "model tells",
    )


@dataclass(frozen=True)
class SkyVariation:
    """How the sky changes at a place; standard deviations are relative, times in minutes."""

    waves: float = 0.08
    passing: float = 0.7  # a third of what a wave takes to pass
    slow: float = 0.08
    lasting: float = 120.0
    noise: float = 0.01  # of the brightness of a family in a spectrum
    stale: float = 20.0  # from a visit, beyond which a spectrum says too little of it

    def covariance(self, minutes: np.ndarray) -> np.ndarray:
        """Of the relative brightness at two times."""
        away = np.abs(minutes)
        return np.asarray(self.waves**2 * np.exp(-away / self.passing) + self.slow**2 * np.exp(-away / self.lasting))


def kriging(minutes: np.ndarray, variation: SkyVariation = SkyVariation()) -> tuple[np.ndarray, float]:
    """Weights of the best sum of values at times (min from where it is wanted), and its relative error.

    Minimises w'(K + noise**2)w - 2 w'k + K(0) under sum(w) = 1, K and k the covariances among times and with the
    wanted one. The error is without the noise, which the values bring along.
    """
    size = len(minutes)
    among, wanted = variation.covariance(minutes[:, None] - minutes), variation.covariance(minutes)
    matrix = np.ones((size + 1, size + 1))
    matrix[:size, :size] = among + variation.noise**2 * np.eye(size)
    matrix[size, size] = 0.0
    weights = np.linalg.lstsq(matrix, np.append(wanted, 1.0), rcond=None)[0][:size]
    variance = weights @ among @ weights - 2 * weights @ wanted + variation.covariance(np.zeros(1))[0]
    return weights, float(np.sqrt(max(variance, 0.0)))


def sky_spectrum(
    time: Any,
    fits: Sequence[SkyFit],
    variation: SkyVariation = SkyVariation(),
    stale: bool = False,
) -> Spectrum:
    """Spectrum of the sky at a time, with lines as such and modes of its error.

    Parameters
    ----------
    time : UTC, of the middle of the visit.
    fits : of spectra of any time; only those of the same night count.
    stale : whether spectra from farther away than ``variation.stale`` minutes are allowed.

    Raises
    ------
    InsufficientInputs
        There is no spectrum.
    StaleCalibration
        None is of that night, or the nearest is too far away.
    """
    wanted = np.datetime64(time)
    if not fits:
        raise InsufficientInputs(f"sky at {wanted}: no spectrum of the sky: take one near the visit")
    times = np.array([fit.measured.time for fit in fits])
    minutes = (times - wanted) / np.timedelta64(1, "m")
    near, same = nearest_of_night(times, wanted), same_night(times, wanted)
    if not same.any():
        raise StaleCalibration(
            f"sky at {wanted}: spectrum {fits[near].measured.name} is of another night: take one in the same night"
        )
    if abs(minutes[near]) > variation.stale and not stale:
        raise StaleCalibration(
            f"sky at {wanted}: the nearest spectrum, {fits[near].measured.name}, is {abs(minutes[near]):.0f} min away, "
            f"more than {variation.stale:g}: take one nearer, or allow stale ones with --stale"
        )
    weights, error = kriging(minutes[same], variation)
    own = [fit for fit, count in zip(fits, same, strict=True) if count]
    return _combined(f"sky at {wanted}", [fit.spectrum for fit in own], weights, error)


def nearest_of_night(times: np.ndarray, wanted: np.datetime64) -> int:
    """Place of the time that is nearest to the wanted one, of those of its night if there are any.

    A night begins at noon UTC, as a Rubin day of observation does: 8 or 9 in the morning in Chile.
    """
    same = same_night(times, wanted)
    away = np.abs(times - wanted) / np.timedelta64(1, "m")
    return int(np.argmin(np.where(same | ~same.any(), away, np.inf)))


def same_night(times: np.ndarray, wanted: np.datetime64) -> np.ndarray:
    """Whether (n,) times are of the night of another: the dates of the noons before are the same."""
    nights = (np.append(times, wanted) - np.timedelta64(12, "h")).astype("datetime64[D]")
    return np.asarray(nights[:-1] == nights[-1])


def _combined(name: str, spectra: Sequence[Spectrum], weights: np.ndarray, error: float) -> Spectrum:
    """Weighted sum of spectra of the same lines and grid."""
    first = spectra[0]
    density = np.clip(sum(w * s.density for w, s in zip(weights, spectra, strict=True)), 0, None)
    flux = np.clip(sum(w * s.line_flux for w, s in zip(weights, spectra, strict=True)), 0, None)
    of_density, of_lines = _changes(density, flux, error)
    for weight, spectrum in zip(weights, spectra, strict=True):
        if abs(weight) > 1e-3 and spectrum.density_modes is not None and spectrum.line_modes is not None:
            of_density.append(weight * spectrum.density_modes)
            of_lines.append(weight * spectrum.line_modes)
    return replace(
        first,
        name=name,
        density=density,
        line_flux=flux,
        density_modes=np.concatenate(of_density),
        line_modes=np.concatenate(of_lines),
    )


def _changes(density: np.ndarray, flux: np.ndarray, error: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Modes of the change of each group of families, and of the continuum, since the spectra were taken."""
    lines = line_list()
    groups = np.array(lines.groups)[lines.family]
    own = np.array([groups == group for group in dict.fromkeys(lines.groups)])
    of_lines = np.concatenate([error * flux * own, np.zeros((1, len(flux)))])
    of_density = np.concatenate([np.zeros((len(own), len(density))), error * density[None]])
    return [of_density], [of_lines]
