"""A filter between the places where its curve is measured (Lupton 2016, ¶11; SCIENCE 2.8.1, 2.10).

The coating of a filter changes with the radius, and smoothly besides: a sum of even powers of the radius, and a
random field whose values at two places hang together as

    k(d) = (1 + s + 2 s**2 / 5 + s**3 / 15) exp(-s),   s = 7**0.5 d / length

(Matern's covariance of 7/2). What is expected between places is a sum of the measured curves, whose shares make the
powers exact and the expected error least (universal kriging; Rasmussen & Williams 2006, Sec. 2.7). Of the simulated
light of LSSTCam in r that leaves 6e-5 in most CCDs and 1.6e-4 all over, most of it in corners at the rim where stops
cut the beam; of its measured curves one is predicted from the others to 4e-4 in z and 9e-4 in u.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from lsstcal_dask.physics.passbands import Passband

__all__ = ["Nearby"]

_LENGTH: Final = 0.8  # over which the random field changes, in distances of the farthest place from the axis
_NOISE: Final = 3e-3  # of a curve, over the size of the random field
_POWERS: Final = 6  # of the square of the radius, from the zeroth on, at most
_SPARE: Final = 25  # places for each power


@dataclass(frozen=True, eq=False)
class Nearby:
    """Transmission at any place as a sum of measured curves, of which those nearby count most."""

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
        at = np.stack([x.ravel(), y.ravel()], axis=1) / self._scale
        count = len(self._places)
        return np.asarray(self._known(at) @ self._inverse[:, :count]).reshape(*x.shape, count)

    def at(self, x: Any, y: Any) -> np.ndarray:
        """Transmission at places (mm): (..., n)."""
        return np.asarray(self.terms(x, y) @ self.coefficients)

    def missed(self, light: np.ndarray) -> np.ndarray:
        """Value (place,) at each place less what the others predict of it, of values at the places (place,).

        ``e_i = (A v)_i / A_ii``, A being the inverse of the system of kriging (Dubrule 1983, Math. Geol. 15, 687).
        Zero where there is but one place, for which no other says anything.
        """
        count = len(self._places)
        if count == 1:
            return np.zeros(1)
        return np.asarray((self._inverse[:count, :count] @ light) / np.diag(self._inverse)[:count])

    def unknown(self) -> np.ndarray:
        """Sums (mode, place) of the measured curves, of which what is not known between these is made.

        There a curve is off by ``sum_k z_k(x, y) (unknown @ coefficients)_k``, where the z are random fields, each by
        itself, with the `covariance` of their places. Their size is that of what each place misses of the others, and
        larger by what is uncertain in the size itself, as Student's t is wider than a Gaussian.
        """
        count = len(self._places)
        if count == 1:
            return np.zeros((1, 1))
        freedom = count - self._powers
        size = count * max(freedom - 2, 1) / max(freedom, 1)
        inverse = self._inverse[:count, :count]
        return np.asarray(inverse / np.sqrt(size * np.diag(inverse))[:, None])

    def covariance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Covariance (n, n), at places (n,) mm, of the random field less what the curves tell of it; of variance 1."""
        at = np.stack([x, y], axis=1) / self._scale
        known = self._known(at)
        return np.asarray(_alike(at, at) - known @ self._inverse @ known.T)

    def _known(self, at: np.ndarray) -> np.ndarray:
        """How places (m, 2) hang together with those of the curves, and their powers of the radius."""
        return np.concatenate([_alike(at, self._places), _radial(at, self._powers)], axis=1)

    @property
    def _scale(self) -> float:
        """Distance of the farthest place from the axis, mm; 1 if all are on it."""
        return float(np.hypot(self.measured.x, self.measured.y).max()) or 1.0

    @property
    def _places(self) -> np.ndarray:
        return np.stack([self.measured.x, self.measured.y], axis=1) / self._scale

    @property
    def _powers(self) -> int:
        return min(_POWERS, 1 + len(self.measured.x) // _SPARE)

    @cached_property
    def _inverse(self) -> np.ndarray:
        """Of the system of kriging (place and power, place and power)."""
        places, radial = self._places, _radial(self._places, self._powers)
        among = _alike(places, places) + _NOISE**2 * np.eye(len(places))
        return np.linalg.inv(np.block([[among, radial], [radial.T, np.zeros((self._powers,) * 2)]]))


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Covariance (m, n) of the random field at places (m, 2) and (n, 2), over its variance."""
    s = np.hypot(*(a.T[:, :, None] - b.T[:, None])) * (np.sqrt(7) / _LENGTH)
    return np.asarray((1 + s + 0.4 * s**2 + s**3 / 15) * np.exp(-s))


def _radial(at: np.ndarray, powers: int) -> np.ndarray:
    """Even powers (m, power) of the distance from the axis."""
    return np.asarray(np.square(at).sum(axis=1)[:, None] ** np.arange(powers))
