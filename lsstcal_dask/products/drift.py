"""What changed all over the field between two broadband flats: the lamp, and a filter that moved (Sec. 2.8.2).

The lamp is a polynomial of the place. A filter that moved by ``s`` nm changes the logarithm of the flat by
``s D(x, y)``. Two errors of ``s`` are known: the noise of the flats, and that of D itself, for between its measured
curves a filter is known only so far (`physics.nearby`). Dust and ghosts make what the fit leaves alike within a CCD: if
the CCDs differ by more than the two together, what they differ by is the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.weights import Scan, Weights, WeightsConfig, make_weights
from lsstcal_dask.statistics.starlet import bin_weighted

__all__ = ["PLAIN", "Cells", "Lamp", "drift_maps", "drift_weights", "fit_lamp", "make_cells"]

PLAIN: Final = 3
"""Of `drift_weights`, as many tell what a move of the filter does; the others what is not known of that."""

_STEP: Final = 0.5  # nm, by which a filter is moved to either side to see what that does
_NEGLIGIBLE: Final = 1e-6  # share of the light whose slices are not read: half a nm changes 1e-4 of some flats
_MODES: Final = 3  # of what is not known of a filter: the first makes 0.97 of the error of its drift, the rest 1e-3

_USELESS: Final = 2.0  # nm, error of a drift that says nothing
_ROUNDS: Final = 20  # of the clipped fit: each takes out dust that the one before still followed
_FIELDS: Final = ("x", "y", "change", "variance", "drift")
_CLIP: Final = 3.0  # sigma, beyond which a cell is taken to be shaded
_ALONE: Final = 1e-6  # of what is known, without a CCD: it alone tells the parameter, and nothing that it is off
_BLOCKS: Final = 4  # along each side of a CCD, over which what is not known of a filter stays as it is


@dataclass(frozen=True, eq=False)
class Cells:
    """Means of cells, of one CCD or of many together."""

    x: np.ndarray  # (n,) mm in the focal plane
    y: np.ndarray  # (n,) mm
    change: np.ndarray  # (n,) logarithm of measured over expected
    variance: np.ndarray  # (n,)
    drift: np.ndarray  # (n,) 1/nm: what a filter moved by one nm does to the logarithm of the flat
    unknown: np.ndarray  # (n, mode) 1/nm: what each mode of `drift_maps` would change in ``drift``


@dataclass(frozen=True, eq=False)
class Lamp:
    """What changes everywhere: the polynomial of the lamp, and a drift of the filter."""

    coefficients: np.ndarray  # of x**i y**j / scale**(i + j), in the order of `_powers`
    scale: float  # mm
    drift: float  # nm, of the filter, towards the red; NaN where it was not asked for
    drift_error: float  # nm
    chi2: float  # per degree of freedom, of the cells that were kept
    kept: float  # share of the cells
    gains: float = np.nan  # relative rms of changes of CCDs' gains, each by itself, that make such a drift

    def at(self, x: np.ndarray, y: np.ndarray, drift: np.ndarray) -> np.ndarray:
        """Logarithm of the change at a place (mm), where a drift by one nm does ``drift``."""
        found = _design(x, y, self.scale, _degree(len(self.coefficients))) @ self.coefficients
        return np.asarray(found + (self.drift * drift if np.isfinite(self.drift) else 0.0))


def drift_weights(lamp: Spectrum, curves: Nearby, scan: Scan, config: WeightsConfig) -> tuple[Weights, ...]:
    """Weights of the flats of a filter that tell what its move does, for `drift_maps`.

    Those of the filter where it is, and moved to either side; then of a filter that is everywhere the mean of its
    curves, moved to either side, and of that with some of `Nearby.unknown` added: mixed so that each changes the
    drift in another way, those that change it most.

    Raises
    ------
    CalibrationError
        As `make_weights`.
    """
    exact = config.model_copy(update={"negligible": min(config.negligible, _NEGLIGIBLE)})
    moved = [Nearby(replace(curves.measured, wavelength=curves.wavelength + by)) for by in (0.0, -_STEP, _STEP)]
    middle, blue, red = (make_weights(lamp, one, scan, None, exact) for one in moved)
    sums = curves.unknown()
    mixed = np.linalg.svd(sums @ (red.values - blue.values) * middle.response, full_matrices=False)[0].T @ sums
    added = [np.zeros(len(sums)), *mixed[:_MODES]]
    unknown = [
        replace(one, surface=None, values=one.values.mean(axis=0, keepdims=True) + mode[None] @ one.values)
        for mode in added
        for one in (blue, red)
    ]
    return middle, blue, red, *unknown


def drift_maps(flats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a move of the filter does to each pixel.

    Parameters
    ----------
    flats : (weights, y, x) of all `drift_weights`, or of the first `PLAIN`.

    Returns
    -------
    What a move by one nm does to the logarithm of the flat (y, x), 1/nm, and what each mode of what is not known of
    the filter would change in that (mode, y, x); NaN where a flat is not above zero.
    """
    moved = flats[1:].astype(float)
    change = np.divide(moved[1::2], moved[::2], out=np.full_like(moved[1::2], np.nan), where=(moved > 0).all(axis=0))
    drift, *unknown = np.log(change) / (2 * _STEP)
    return drift, np.stack(unknown[1:]) - unknown[0] if unknown else np.zeros((0, *drift.shape))


def make_cells(
    ratio: np.ndarray,
    variance: np.ndarray,
    drift: np.ndarray | None,
    place: tuple[np.ndarray, np.ndarray],
    cell: int,
    unknown: Sequence[np.ndarray] = (),
) -> Cells:
    """Means of cells of one CCD.

    Parameters
    ----------
    ratio, variance : (y, x) measured flat over expected flat, of the CCD; NaN where it is unknown.
    drift : (y, x), 1/nm, see `Cells`; None if it is not known.
    place : x and y (y, x) mm of the pixels in the focal plane.
    unknown : (y, x), 1/nm, of each mode, see `Cells`; none if all of the filter is known.

    Returns
    -------
    Cells that are known.
    """
    mean, error = bin_weighted(ratio, variance, cell)
    good = np.isfinite(mean) & (mean > 0)
    ones = np.where(np.isfinite(ratio), 1.0, np.nan)

    def cells(values: np.ndarray) -> np.ndarray:
        return np.asarray(bin_weighted(values * ones, variance, cell)[0][good])

    x, y, moved = (cells(one) for one in (*place, np.zeros(ratio.shape) if drift is None else drift))
    change, noise = np.log(mean[good]), error[good] / mean[good] ** 2
    modes = np.array([cells(one) for one in unknown]).reshape(len(unknown), len(x)).T
    return Cells(x, y, change, noise, moved, modes)


def fit_lamp(
    cells: Sequence[Cells], config: ContaminationConfig, *, with_drift: bool = True, curves: Nearby | None = None
) -> Lamp:
    """Fit what changes everywhere, with the dust clipped.

    Parameters
    ----------
    cells : of every CCD.
    with_drift : False where the templates of the drift are not known.
    curves : of the filter, if the cells tell what of it is unknown.

    Raises
    ------
    InsufficientInputs
        Fewer cells than the polynomial has terms.
    DegenerateSolution
        The drift cannot be told from the lamp: its template is a polynomial too.
    """
    x, y, change, variance, moved = (np.concatenate([getattr(c, name) for c in cells]) for name in _FIELDS)
    scale = float(np.max(np.hypot(x, y))) if len(x) else 1.0
    design = _design(x, y, scale, config.degree)
    if len(x) <= design.shape[1] + 1:
        raise InsufficientInputs(f"contamination: {len(x)} cells are known, too few to fit the lamp: check the flats")
    if with_drift:
        outside = moved - design @ np.linalg.lstsq(design, moved, rcond=None)[0]
        if np.sqrt(np.mean(outside**2)) < 1e-9 + 1e-6 * np.abs(moved).max():
            raise _cannot_tell("none that the lamp could not make")
        design = np.column_stack([design, moved])
    weight = 1 / variance
    keep = np.ones(len(x), bool)
    found, covariance = _solve(design, change, weight)
    for _ in range(_ROUNDS):
        pull = np.abs(change - design @ found) * np.sqrt(weight)
        inside = pull < _CLIP * max(1.0, float(np.median(pull[keep])) / 0.6745)
        found, covariance = _solve(design[inside], change[inside], weight[inside])
        if (inside == keep).all():
            break
        keep = inside
    rest = change - design @ found
    chi2 = float(np.sum(rest[keep] ** 2 * weight[keep]) / max(keep.sum() - design.shape[1], 1))
    if not with_drift:
        return Lamp(found, scale, np.nan, np.nan, chi2, float(keep.mean()))
    formal = np.sqrt(covariance[-1, -1] * max(chi2, 1.0))
    share = np.where(keep, _share(design, np.where(keep, weight, 0.0)), 0.0)
    ccd = np.repeat(np.arange(len(cells)), [len(c.x) for c in cells])
    curved = found[-1] * _of_template(cells, share, curves)
    error = float(max(np.hypot(formal, curved), _of_ccds(share, rest, weight, ccd)))
    if error > _USELESS:
        raise _cannot_tell(f"known to {error:.1f} nm only")
    gains = np.abs(found[-1]) / max(float(np.sqrt(np.sum(np.bincount(ccd, share) ** 2))), 1e-300)
    return Lamp(found[:-1], scale, float(found[-1]), error, chi2, float(keep.mean()), float(gains))


def _share(design: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How much (n,) the last parameter changes with each value: ``w d / sum w d**2``.

    d is the part of its template that no other parameter makes.
    """
    root = np.sqrt(weight)
    others, last = design[:, :-1] * root[:, None], design[:, -1] * root
    own = last - others @ np.linalg.lstsq(others, last, rcond=None)[0]
    return np.asarray(own * root / np.sum(own**2))


def _of_ccds(share: np.ndarray, rest: np.ndarray, weight: np.ndarray, ccd: np.ndarray) -> float:
    """Error of the last parameter where what the fit leaves is alike in a CCD, as that of dust and ghosts is.

    A CCD draws the parameter to itself by its part h of all that tells it: what is left there is but 1 - h of what it
    is off, which matters where CCDs are few. What the other parameters take is not counted: with 50 CCDs whose own
    changes outdo the noise the error is a tenth larger than this, with 9 twice, and with no more CCDs than parameters
    they can look like the drift itself: see `Lamp.gains`.
    """
    information = np.bincount(ccd, share**2 / weight)
    left = 1 - information / information.sum()
    off = np.bincount(ccd, share * rest)
    return float(np.sqrt(np.sum(np.square(np.divide(off, left, out=np.zeros_like(off), where=left > _ALONE)))))


def _of_template(cells: Sequence[Cells], share: np.ndarray, curves: Nearby | None) -> float:
    """Relative error of a drift from what is not known of the filter between its curves.

    The template is off by ``sum_k z_k(x, y) unknown_k(x, y)`` with the random fields z of `Nearby.covariance`.
    """
    if curves is None:
        return 0.0
    blocks = np.concatenate([i * _BLOCKS**2 + _blocks(one) for i, one in enumerate(cells)])
    _, blocks, count = np.unique(blocks, return_inverse=True, return_counts=True)
    x, y = (np.bincount(blocks, np.concatenate([getattr(c, name) for c in cells])) / count for name in "xy")
    among = curves.covariance(x, y)
    unknown = np.concatenate([one.unknown for one in cells])
    sums = np.stack([np.bincount(blocks, share * mode) for mode in unknown.T])
    return float(np.sqrt(max(np.sum((sums @ among) * sums), 0.0)))


def _blocks(cells: Cells) -> np.ndarray:
    """Block (n,) of a CCD in which each of its cells lies."""
    if not len(cells.x):
        return np.zeros(0, int)
    column, row = (
        np.minimum(_BLOCKS * (one - one.min()) / (np.ptp(one) or 1.0), _BLOCKS - 1).astype(int)
        for one in (cells.x, cells.y)
    )
    return np.asarray(row * _BLOCKS + column)


def _cannot_tell(how: str) -> DegenerateSolution:
    return DegenerateSolution(
        f"contamination: a drift of the filter changes every pixel alike or as the lamp does ({how}): use sensors of "
        f"more than one kind, or fit without it"
    )


def _powers(degree: int) -> list[tuple[int, int]]:
    return [(i, n - i) for n in range(degree + 1) for i in range(n + 1)]


def _degree(terms: int) -> int:
    return {1: 0, 3: 1, 6: 2}[terms]


def _design(x: np.ndarray, y: np.ndarray, scale: float, degree: int) -> np.ndarray:
    """Powers of the place (..., term)."""
    return np.stack([(x / scale) ** i * (y / scale) ** j for i, j in _powers(degree)], axis=-1)


def _solve(design: np.ndarray, values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares and its covariance."""
    normal = (design * weight[:, None]).T @ design
    covariance = np.linalg.pinv(normal, rcond=1e-14, hermitian=True)
    return covariance @ (design.T @ (weight * values)), covariance
