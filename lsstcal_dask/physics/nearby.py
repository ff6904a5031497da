"""A filter between the places where its curve is measured, from those nearby (Lupton 2016, ¶11; SCIENCE 2.8.1, 2.10).

One polynomial of the whole focal plane misses what the coating of a filter does over some CCDs: of the light of the
measured curves of LSSTCam 3e-4 in g, r, i and z, 1e-3 in u and y, and 2e-3 of the simulated ones in r. Here each CCD
has a polynomial of its own, through the curves of the CCDs around it, which leaves 1e-4 of the simulated light in most.
It needs these: predicting a CCD at the rim without its own curve it is no better than the other.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lsstcal_dask.physics.passbands import Passband

__all__ = ["Nearby"]

_NUMBER: Final = 25  # places that a polynomial is fitted to
_DEGREE: Final = 4
_REACH: Final = 1.4  # rms of their weights, in distances of one place from the next
_SPARE: Final = 1.5  # places for each coefficient


@dataclass(frozen=True, eq=False)
class Nearby:
    """Transmission at any place as a sum of measured curves, of which those near the nearest one count."""

    measured: Passband

    @property
    def band(self) -> str:
        """Name of the filter."""
        return self.measured.band

    @property
    def wavelength(self) -> np.ndarray:
        """(n,) nm."""
        return self.measured.wavelength

    @property
    def coefficients(self) -> np.ndarray:
        """Curves (place, n) that the terms are multiplied with."""
        return self.measured.transmission

    def terms(self, x: Any, y: Any) -> np.ndarray:
        """Share of each curve in those at places (mm): (..., place)."""
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        own = np.argmin((x[..., None] - self.measured.x) ** 2 + (y[..., None] - self.measured.y) ** 2, axis=-1)
        found = np.zeros((*x.shape, len(self.measured.x)))
        for i in np.unique(own):
            found[own == i] = self._shares(int(i), x[own == i], y[own == i])
        return found

    def at(self, x: Any, y: Any) -> np.ndarray:
        """Transmission at places (mm): (..., n)."""
        return np.asarray(self.terms(x, y) @ self.coefficients)

    def _shares(self, i: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Shares (m, place) at places that are nearest to the curve i."""
        away = np.hypot(self.measured.x - self.measured.x[i], self.measured.y - self.measured.y[i])
        near = np.argsort(away, kind="stable")[:_NUMBER]
        reach = _REACH * self._pitch() or 1.0
        weight = np.exp(-((away[near] / reach) ** 2) / 4)  # root of that of the squares
        middle = self.measured.x[i], self.measured.y[i]
        for degree in range(_DEGREE, -1, -1):
            powers = np.array([(total - j, j) for total in range(degree + 1) for j in range(total + 1)])
            matrix = _powers(self.measured.x[near], self.measured.y[near], middle, reach, powers) * weight[:, None]
            if len(near) >= _SPARE * len(powers) and np.linalg.matrix_rank(matrix, tol=1e-6) == len(powers):
                break
        out = np.zeros((len(x), len(away)))
        out[:, near] = _powers(x, y, middle, reach, powers) @ np.linalg.pinv(matrix) * weight
        return out

    def _pitch(self) -> float:
        """Median distance from a place to the nearest other, mm."""
        far = np.hypot(*(one[:, None] - one for one in (self.measured.x, self.measured.y)))
        np.fill_diagonal(far, np.inf)
        nearest = far.min(axis=1)
        return float(np.median(nearest)) if np.isfinite(nearest).all() else 0.0


def _powers(x: np.ndarray, y: np.ndarray, middle: tuple[float, float], reach: float, powers: np.ndarray) -> np.ndarray:
    u, v = (x[:, None] - middle[0]) / reach, (y[:, None] - middle[1]) / reach
    return np.asarray(u ** powers[:, 0] * v ** powers[:, 1])
