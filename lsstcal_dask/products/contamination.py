"""What has settled on filter, window and CCDs since a flat cube was taken (Lupton 2016, Sec. 2.8.2).

A broadband flat of now over the same flat synthesised from the cube, or over one taken at the epoch of the cube, is one
where nothing changed. Three things do change it, and are told apart:

- the lamp lights the screen in another way than the laser: a polynomial of the place, of at most second order;
- the filter moved in wavelength: by ``s`` nm it changes the flat by ``s D(x, y)``, with D known from the cube, for the
  response of pixels differs at the edge of the band;
- dust: what is left above its noise, at any scale. It is gray, one factor for every wavelength, if another band
  shows the same; what one band alone shows lies on its filter; what both show in unlike strength is not gray.

The cube stays as it was measured: the factor of the dust multiplies what is synthesised from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import label, sum_labels

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.statistics.starlet import bin_weighted, significant, spread

__all__ = ["Cells", "ContaminationConfig", "Lamp", "Mote", "compare_bands", "find_dust", "fit_lamp", "make_cells"]

_USELESS: Final = 2.0  # nm, error of a drift that says nothing
_ROUNDS: Final = 20  # of the clipped fit: each takes out dust that the one before still followed
_FIELDS: Final = ("x", "y", "change", "variance", "drift")
_ALIKE: Final = 0.03  # of a shadow's depth: what smoothing it in each band by itself leaves
_CLIP: Final = 3.0  # sigma, beyond which a cell is taken to be shaded


class ContaminationConfig(BaseModel):
    """What counts as dust, as a lamp, as a drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: int = Field(8, ge=2, description="pixels on a side of the cells in which wide structure is sought")
    degree: int = Field(2, ge=0, le=2, description="of the polynomial that stands for the lamp")
    reject: float = Field(5.5, gt=3, description="sigma above which structure counts: one false in a CCD of 16 Mpx")
    floor: float = Field(3e-4, gt=0, lt=0.1, description="least change that counts as dust")
    drift: float = Field(4.0, gt=2, description="sigma above which a drift of the filter is reported")
    least_drift: float = Field(
        0.25, ge=0, description="nm, least drift that is reported: dust all over the field looks like one of 0.1 nm"
    )
    references: float = Field(
        1e-3, gt=0, description="relative rms by which the flats of the cube's epoch and of the cube may differ"
    )


@dataclass(frozen=True, eq=False)
class Cells:
    """Means of cells, of one CCD or of many together."""

    x: np.ndarray  # (n,) mm in the focal plane
    y: np.ndarray  # (n,) mm
    change: np.ndarray  # (n,) logarithm of measured over expected
    variance: np.ndarray  # (n,)
    drift: np.ndarray  # (n,) 1/nm: what a filter moved by one nm does to the logarithm of the flat


@dataclass(frozen=True, eq=False)
class Lamp:
    """What changes everywhere: the polynomial of the lamp, and a drift of the filter."""

    coefficients: np.ndarray  # of x**i y**j / scale**(i + j), in the order of `_powers`
    scale: float  # mm
    drift: float  # nm, of the filter, towards the red; NaN where it was not asked for
    drift_error: float  # nm
    chi2: float  # per degree of freedom, of the cells that were kept
    kept: float  # share of the cells

    def at(self, x: np.ndarray, y: np.ndarray, drift: np.ndarray) -> np.ndarray:
        """Logarithm of the change at a place (mm), where a drift by one nm does ``drift``."""
        found = _design(x, y, self.scale, _degree(len(self.coefficients))) @ self.coefficients
        return np.asarray(found + (self.drift * drift if np.isfinite(self.drift) else 0.0))


@dataclass(frozen=True)
class Mote:
    """One piece of dust, as the bands see it."""

    y: float  # pixel of the CCD, middle of what it shades
    x: float
    area: int  # pixels
    change: tuple[float, ...]  # mean of each band, as a share of the light
    error: tuple[float, ...]
    kind: str  # gray, filter (seen by one band alone), chromatic, or single (one band is all there is)


def make_cells(
    ratio: np.ndarray, variance: np.ndarray, drift: np.ndarray | None, place: tuple[np.ndarray, np.ndarray], cell: int
) -> Cells:
    """Means of cells of one CCD.

    Parameters
    ----------
    ratio, variance : (y, x) measured flat over expected flat, of the CCD; NaN where it is unknown.
    drift : (y, x), 1/nm, see `Cells`; None if it is not known.
    place : x and y (y, x) mm of the pixels in the focal plane.

    Returns
    -------
    Cells that are known.
    """
    mean, error = bin_weighted(ratio, variance, cell)
    ones = np.where(np.isfinite(ratio), 1.0, np.nan)
    x, y = (bin_weighted(np.broadcast_to(at, ratio.shape) * ones, variance, cell)[0] for at in place)
    moved = np.zeros(ratio.shape) if drift is None else drift
    moved = bin_weighted(moved * ones, variance, cell)[0]
    good = np.isfinite(mean) & (mean > 0)
    change, noise = np.log(mean[good]), error[good] / mean[good] ** 2
    return Cells(x[good], y[good], change, noise, moved[good])


def fit_lamp(cells: Sequence[Cells], config: ContaminationConfig, *, with_drift: bool = True) -> Lamp:
    """Fit what changes everywhere, with the dust clipped.

    Parameters
    ----------
    cells : of every CCD.
    with_drift : False where the templates of the drift are not known.

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
    chi2 = float(np.sum((change - design @ found)[keep] ** 2 * weight[keep]) / max(keep.sum() - design.shape[1], 1))
    drift = (np.nan, np.nan)
    if with_drift:
        formal = float(np.sqrt(covariance[-1, -1] * max(chi2, 1.0)))
        ccd = np.repeat(np.arange(len(cells)), [len(c.x) for c in cells])[keep]
        drift = (
            float(found[-1]),
            max(formal, _clustered(design[keep], (change - design @ found)[keep], weight[keep], ccd)),
        )
    if with_drift and drift[1] > _USELESS:
        raise _cannot_tell(f"known to {drift[1]:.1f} nm only")
    return Lamp(found[: -1 if with_drift else None], scale, *drift, chi2, float(keep.mean()))


def _clustered(design: np.ndarray, rest: np.ndarray, weight: np.ndarray, ccd: np.ndarray) -> float:
    """Error of the last parameter where the residuals ``rest`` of a CCD are alike, as those of dust and ghosts are.

    ``sqrt(sum_CCD (sum w d r)**2) / sum w d**2`` with d the part of its template that no other parameter makes.
    """
    root = np.sqrt(weight)
    others = (design[:, :-1] * root[:, None], design[:, -1] * root)
    own = others[1] - others[0] @ np.linalg.lstsq(*others, rcond=None)[0]
    sums = np.bincount(ccd, own * rest * root)
    return float(np.sqrt(np.sum(sums**2)) / np.sum(own**2))


def _cannot_tell(how: str) -> DegenerateSolution:
    return DegenerateSolution(
        f"contamination: a drift of the filter changes every pixel alike or as the lamp does ({how}): use sensors of "
        f"more than one kind, or fit without it"
    )


def find_dust(
    ratio: np.ndarray, variance: np.ndarray, expected: np.ndarray, config: ContaminationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """What of a CCD is shaded, in every pixel: narrow shadows by pixels, wide ones by cells.

    Parameters
    ----------
    ratio, variance : (y, x) measured flat over expected flat; NaN where it is unknown.
    expected : (y, x) logarithm of the change that lamp and drift make, see `Lamp.at`.

    Returns
    -------
    Change (y, x) as a share of the light, 0 without dust, and where there is any (y, x) bool.
    """
    factor = np.exp(-expected)
    change, noise = ratio * factor - 1, variance * factor**2
    limit = (config.reject, config.floor)
    narrow, where = significant(change, noise, int(np.log2(config.cell)), limit)
    mean, error = bin_weighted(change - narrow, noise, config.cell)
    planes = max(int(np.log2(max(min(mean.shape), 2))), 1)
    wide, cells = significant(mean, error, min(planes, 6), limit)
    shaded = np.repeat(np.repeat(cells, config.cell, axis=0), config.cell, axis=1)
    found = narrow + spread(wide, config.cell, ratio.shape)
    where = where | shaded[: ratio.shape[0], : ratio.shape[1]]
    return np.where(where, found, 0.0), where


def compare_bands(
    changes: np.ndarray, variances: np.ndarray, found: np.ndarray, config: ContaminationConfig
) -> tuple[np.ndarray, list[Mote]]:
    """Tell gray dust from dust on one filter, and both from what is not gray.

    Parameters
    ----------
    changes, variances : (band, y, x) measured over expected flat less one, lamp and drift taken out.
    found : (band, y, x) what `find_dust` found in each.

    Returns
    -------
    Factor (band, y, x) float32 for the flats of each band: of gray dust the same in every band, of dust on a filter in
    its own, of what is not gray in none; and the motes.
    """
    shadows, n = label((found != 0).any(axis=0), structure=np.ones((3, 3)))
    area = sum_labels(np.ones(shadows.shape), shadows, np.arange(n + 1))
    template = found[np.abs(found).sum(axis=(1, 2)).argmax()] if len(found) == 1 else _strongest(found, shadows, n)
    known = np.isfinite(changes) & np.isfinite(variances) & (variances > 0)
    weight = np.divide(1.0, variances, out=np.zeros(variances.shape), where=known)
    change = np.where(known, changes, 0.0)
    labels = np.arange(n + 1)
    norm = np.array([sum_labels(w * template**2, shadows, labels) for w in weight])
    share = np.array([sum_labels(w * c * template, shadows, labels) for w, c in zip(weight, change, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        share, error = share / norm, 1 / np.sqrt(norm)
    depth = sum_labels(template, shadows, labels) / np.maximum(area, 1)
    kinds = ["", *(_kind(share[:, i], error[:, i], config) for i in range(1, n + 1))]
    factor = np.ones(changes.shape, np.float32)
    for i in range(1, n + 1):
        here = shadows == i
        if kinds[i] == "gray":
            heavy = norm[:, i] / norm[:, i].sum()
            factor[:, here] += np.tensordot(heavy, found[:, here], 1).astype(np.float32)
        elif kinds[i] in ("filter", "single"):
            seen = int(np.argmax(np.abs(share[:, i])))
            factor[seen, here] += found[seen, here].astype(np.float32)
    return factor, [_mote(shadows == i, share[:, i] * depth[i], error[:, i] * depth[i], kinds[i]) for i in labels[1:]]


def _mote(here: np.ndarray, change: np.ndarray, error: np.ndarray, kind: str) -> Mote:
    y, x = (float(at.mean()) for at in np.nonzero(here))
    return Mote(y, x, int(here.sum()), tuple(change.tolist()), tuple(np.abs(error).tolist()), kind)


def _strongest(found: np.ndarray, shadows: np.ndarray, n: int) -> np.ndarray:
    """Of every shadow, as the band saw it that saw most of it."""
    power = np.array([sum_labels(band**2, shadows, np.arange(n + 1)) for band in found])
    return np.asarray(np.take_along_axis(found, power.argmax(axis=0)[shadows][None], axis=0)[0])


def _kind(share: np.ndarray, error: np.ndarray, config: ContaminationConfig) -> str:
    """What a shadow is: its strength in each band over that of the strongest, with errors."""
    known = np.isfinite(share)
    if known.sum() < 2:
        return "single"
    share, error = share[known], error[known]
    mean = np.average(share, weights=1 / error**2)
    apart = np.abs(share - mean) / np.hypot(error, _ALIKE)
    if apart.max() < config.drift:
        return "gray"
    alone = np.sort(np.abs(share) / np.hypot(error, _ALIKE))[:-1]
    return "filter" if alone.max() < config.drift else "chromatic"


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
