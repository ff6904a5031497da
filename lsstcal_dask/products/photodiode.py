"""The photodiode beside the flat-field screen: photons from its charge (Lupton 2016, ¶9; Sec. 2.8).

P = (Q - I t) wavelength / (h c R(wavelength)): Q its charge in a flat of t seconds, I its current without light, and R
its responsivity, which a national laboratory has measured.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import CalibrationError

__all__ = ["Photodiode", "useless_charges"]

_VOLT_NM: Final = 1239.8419843320026  # h c / e: wavelength, nm, of a photon of 1 eV (SI 2019)
_ELECTRON: Final = 1.602176634e-19  # C
_STALE: Final = 3  # exposures with the very same charge: a reading that was not renewed


@dataclass(frozen=True)
class Photodiode:
    """Responsivity and its errors.

    Attributes
    ----------
    wavelength : (n,) nm, ascending.
    responsivity : (n,) A/W.
    responsivity_error : (n,) A/W.
    dark_current : A, counted with the light.

    Raises
    ------
    CalibrationError
        Wavelengths do not rise, or a number is none, or not positive.
    """

    wavelength: np.ndarray
    responsivity: np.ndarray
    responsivity_error: np.ndarray
    dark_current: float = 0.0

    def __post_init__(self) -> None:
        at, value, error = self.wavelength, self.responsivity, self.responsivity_error
        told = "of the photodiode (inputs/photodiode.ecsv)"
        if len(at) < 2 or not np.all(np.isfinite(at)):
            raise CalibrationError(f"the wavelengths {told} are fewer than two or no numbers: correct the table")
        if not np.all(np.diff(at) > 0):
            twice = at[1:][~(np.diff(at) > 0)][0]
            raise CalibrationError(f"the responsivity {told} has two rows at {twice:g} nm: keep one")
        if np.any(bad := ~(np.isfinite(value) & (value > 0))):
            raise CalibrationError(
                f"the responsivity {told} is {value[bad][0]:g} A/W at {at[bad][0]:g} nm: give positive numbers"
            )
        if np.any(bad := ~(np.isfinite(error) & (error >= 0))):
            raise CalibrationError(
                f"the responsivity_error {told} is {error[bad][0]:g} A/W at {at[bad][0]:g} nm: give numbers from 0 on"
            )
        if not np.isfinite(self.dark_current):
            raise CalibrationError(f"the dark current {told} is {self.dark_current:g} A: give a number")

    @classmethod
    def ideal(cls) -> "Photodiode":
        """One electron for every photon."""
        wavelength = np.array([100.0, 2000.0])
        return cls(wavelength, wavelength / _VOLT_NM, np.zeros(2))

    def photons(self, charge: Any, seconds: Any, wavelength: Any) -> np.ndarray:
        """Photons that the photodiode received.

        Parameters
        ----------
        charge : C.
        seconds : exposure time.
        wavelength : nm, of the monochromatic light.

        Raises
        ------
        CalibrationError
            The responsivity is not known at a wavelength.
        """
        current = self._at(wavelength, self.responsivity)
        light = np.asarray(charge, float) - self.dark_current * np.asarray(seconds, float)
        return np.asarray(light * np.asarray(wavelength, float) / (_ELECTRON * _VOLT_NM * current))

    def relative_error(self, wavelength: Any) -> np.ndarray:
        """Relative standard error of the photons at a wavelength (nm), that of the responsivity."""
        return self._at(wavelength, self.responsivity_error) / self._at(wavelength, self.responsivity)

    def told(self, wavelength: float) -> dict[str, float]:
        """All that counts of it for light of a wavelength (nm); raises as `photons`."""
        return {
            "responsivity": float(self._at(wavelength, self.responsivity)),
            "responsivity_error": float(self._at(wavelength, self.responsivity_error)),
            "dark_current": float(self.dark_current),
        }

    @property
    def range(self) -> tuple[float, float]:
        """First and last wavelength, nm, of which the responsivity is known."""
        return float(self.wavelength[0]), float(self.wavelength[-1])

    def _at(self, wavelength: Any, values: np.ndarray) -> np.ndarray:
        at = np.asarray(wavelength, float)
        low, high = self.range
        if np.any((at < low) | (at > high)):
            wrong = float(at.ravel()[np.argmax(((at < low) | (at > high)).ravel())])
            raise CalibrationError(
                f"the responsivity of the photodiode is known from {low:g} to {high:g} nm, not at {wrong:g} nm: "
                f"give a longer table inputs/photodiode.ecsv"
            )
        return np.interp(at, self.wavelength, values)


def useless_charges(names: list[str], charge: np.ndarray, dark: np.ndarray) -> dict[str, str]:
    """Why an exposure cannot be used, by name: its charge is missing, is without light, or was not read anew.

    Parameters
    ----------
    charge, dark : (n,) C, measured, and what of it is there without light.
    """
    found = {}
    values, counts = np.unique(charge[np.isfinite(charge)], return_counts=True)
    stale = set(values[(counts >= _STALE) & (values > 0)].tolist())
    for name, value, idle in zip(names, charge.tolist(), dark.tolist(), strict=True):
        if not np.isfinite(value):
            found[name] = "its photodiode charge is missing: add it to the header"
        elif not value > max(1.1 * idle, 0.0):
            found[name] = f"its photodiode charge is {value:g} C: did the lamp fail?"
        elif value in stale:
            found[name] = f"its photodiode charge {value:g} C is to the last digit that of others: a stale value"
    return found
