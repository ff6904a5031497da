"""Flats with exact charge dynamics and nothing else, and of the same photons a twin whose pixels stand still.

An electron too many in a step is one too many in both. The twin gathers what each step brought more than was expected,

    M = sum over steps (N_k - lambda_k),     E[M M'] = sum lambda_k where M' is M itself, zero for any other pixel,

a martingale: a flat without the brighter-fatter effect whose moments are known exactly. The fluctuations of the two are
alike to 0.99, so an estimate from the one less that from the other scatters by a seventh of either. Light is even and
the silicon closes on itself, so that there are no edges.
"""

import numpy as np

from lsstcal_dask.simulate.brighter_fatter import BrighterFatter, boundary_shifts, margin, quadrants, steps, weights
from lsstcal_dask.simulate.poisson import poisson

__all__ = ["flat_and_twin"]


def flat_and_twin(
    random: np.random.Generator, settings: BrighterFatter, vendor: str, level: float, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Charge (y, x), electron, of a flat of ``level`` electrons, and that of its twin."""
    pad = margin(settings)
    right, up = (np.pad(q, (0, pad - settings.reach - 1)).astype(np.float32) for q in quadrants(settings, vendor))
    parts = steps(settings, vendor, level)
    charge, surplus = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    middle = np.full(shape, level * parts[0] / 2, np.float32)
    east, north = np.empty((shape[0], shape[1] + 1), np.float32), np.empty((shape[0] + 1, shape[1]), np.float32)
    for number, part in enumerate(parts):
        boundary_shifts(np.pad(middle, pad, mode="wrap"), right, up, (0, 0), east, north)
        expected = np.float32(level * part) * (1 + np.diff(east, axis=1) + np.diff(north, axis=0))
        gained = poisson(random, expected)
        noise = gained - expected
        charge += gained
        surplus += noise
        of_mean, of_noise = (np.float32(w) for w in weights(part, parts[min(number + 1, len(parts) - 1)]))
        middle = charge + of_mean * expected + of_noise * noise
    return charge, np.float32(level) + surplus
