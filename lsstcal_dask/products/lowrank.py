"""A flat cube of low rank in wavelength, of which the largest error is known and not estimated (SCIENCE 2.8.5).

The response of the pixels of an amplifier is a gray pattern times curves that differ in a few ways only, so

    f_k(x, y) = sum_r maps_r(x, y) coefficients[r, k] + residual,

with few maps for all of some hundred slices. Maps and coefficients come from the singular vectors of a sample of the
pixels; then every pixel of every slice is compared with what the maps say. Where a difference exceeds what was asked
for it is kept in a list, so that no residual does: that is the proof. A cube has noise, which no map can hold and none
should: the residual of a pixel may be as large as ``noise`` times its own error, or ``bound`` times the response,
whichever is larger. Of a broadband flat of weights w two bounds hold, and the smaller counts:

    |error| <= sum_k |w_k| worst_k,    |error| <= sum_k |w_k - w_(k+1)| running_k,

``running_k`` being the largest |sum_(l <= k) residual_l| of all pixels (summation by parts). The first is near for a
few lines, the second for a smooth spectrum behind a filter, for whose flat noise averages down.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.products.sums import Slices, exceptions_of, sum_slices
from lsstcal_dask.statistics.weighted import weighted_sums

__all__ = ["LowRank", "LowRankConfig", "compress_amplifier", "sum_maps"]


class LowRankConfig(BaseModel):
    """How far a compressed cube may be from the cube."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bound: float = Field(1e-4, gt=0, lt=1, description="largest residual, of the response of the slice")
    noise: float = Field(6.0, ge=0, description="largest residual in errors of the pixel, where that is more")
    most: float = Field(0.01, gt=0, lt=1, description="largest share of values in the list")
    rank: int = Field(24, ge=1, description="largest number of maps")
    sample: int = Field(20_000, ge=100, description="pixels from which the maps are found")


@dataclass(frozen=True, eq=False)
class LowRank:
    """One amplifier of a compressed cube."""

    maps: np.ndarray  # (r, y x) float32
    coefficients: np.ndarray  # (r, k) float64; 0 where the amplifier holds nothing
    worst: np.ndarray  # (k,) largest |residual| of all pixels, in the unit of the cube
    rms: np.ndarray  # (k,) of the residuals, in the unit of the cube
    running: np.ndarray  # (k,) largest |sum of the residuals of a pixel up to this slice|, in the unit of the cube
    unit: np.ndarray  # (k,) what was allowed over `LowRankConfig.noise`: a pixel's noise; 0 without slice
    at: np.ndarray  # (n,) y nx + x of the values that the maps do not give
    slice: np.ndarray  # (n,) places along the wavelengths, ascending
    change: np.ndarray  # (n,) float32, to be added there; NaN where nothing is known

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = (
            self.maps,
            self.coefficients,
            self.worst,
            self.rms,
            self.running,
            self.unit,
            self.at,
            self.slice,
            self.change,
        )
        return sum(one.nbytes for one in arrays)

    def values(self, k: int) -> np.ndarray:
        """Values (y x) float32 of a slice."""
        found = _product(self.maps, self.coefficients[:, k])
        own = slice(*np.searchsorted(self.slice, [k, k + 1]))
        found[self.at[own]] += self.change[own]
        return found

    def error_bound(self, weights: np.ndarray) -> np.ndarray:
        """Largest error (v,) of weighted sums with ``weights`` (v, k) against those of the cube, rounding aside."""
        steps = np.abs(np.diff(weights[:, self.unit > 0], axis=1, append=0.0))
        return np.asarray(np.minimum(np.abs(weights) @ self.worst, steps @ self.running[self.unit > 0]))

    def typical_error(self, weights: np.ndarray) -> np.ndarray:
        """The same (v,) as rms over the pixels, where residuals are noise.

        Those of a pixel are, in ``unit``, perpendicular to the curves of the maps, and even in all other directions:
        what of the weights lies along the curves adds nothing.
        """
        there = self.unit > 0
        curves, own = self.coefficients[:, there] / self.unit[there], weights[:, there] * self.unit[there]
        across = own - own @ curves.T @ curves
        left = np.sum((self.rms[there] / self.unit[there]) ** 2) / max(int(there.sum()) - len(curves), 1)
        return np.asarray(np.sqrt(left) * np.linalg.norm(across, axis=1))


def sum_maps(low: LowRank, vectors: np.ndarray, *, unknown: bool = True) -> np.ndarray:
    """Sums (v, y x) float32 of ``vectors`` (v, k) times the values, like `sums.sum_slices`, from the maps alone.

    Parameters
    ----------
    unknown : take of values of which nothing is known what the maps say; False to leave them out as `sum_slices` does.
    """
    totals = weighted_sums(low.maps, vectors @ low.coefficients.T)
    more = low.change.astype(float)
    lost = np.isnan(more)
    more[lost] = 0.0
    if not unknown:
        at, place = low.at[lost], low.slice[lost]
        more[lost] = -np.einsum("rn,rn->n", low.maps[:, at].astype(float), low.coefficients[:, place])
    for total, vector in zip(totals, vectors, strict=True):
        np.add.at(total, low.at, (vector[low.slice] * more).astype(np.float32))
    return totals


def _product(maps: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return weighted_sums(maps, coefficients[None])[0]


def compress_amplifier(
    slices: Slices, amplifier: int, response: np.ndarray, config: LowRankConfig = LowRankConfig()
) -> LowRank:
    """Maps, coefficients, list and proved error of one amplifier, by three passes over its slices.

    Parameters
    ----------
    response : (k,) mean of the focal plane.

    Returns
    -------
    Its memory is that of the maps, of the sample and of one block of slices, not of the cube.

    Raises
    ------
    InsufficientInputs
        The amplifier holds nothing.
    DegenerateSolution
        More than the share allowed would be in the list, for any number of maps that is allowed.
    """
    there = np.flatnonzero(np.isfinite(slices.scale[:, amplifier]))
    if not there.size:
        raise InsufficientInputs("low rank: the amplifier has no slices: compress those that have")
    size = slices.shape[0] * slices.shape[1]
    good = np.flatnonzero((slices.mask()[amplifier].reshape(-1) & 1) == 0)
    some = good[:: max(1, len(good) // config.sample)]
    limit = _limits(slices, amplifier, response, config)
    sample = np.stack([value[some] for _, value, _ in _values(slices, amplifier, there)], axis=1).astype(float)
    curves, unit = _curves(sample, limit, there, config)
    vectors, coefficients = (np.zeros((len(curves), len(response))) for _ in range(2))
    vectors[:, there], coefficients[:, there] = curves / unit, curves * unit
    odd = {int(k): exceptions_of(slices, int(k), amplifier) for k in there}
    maps = sum_slices(slices, amplifier, vectors, odd)
    scale = np.zeros(len(response))
    scale[there] = unit
    low = _compared(_values(slices, amplifier, there), (maps, coefficients, scale), good, limit)
    share = np.isfinite(low.change).sum() / size / len(there)
    if share > config.most:
        raise DegenerateSolution(
            f"low rank: {share:.2g} of the values are not within {config.bound:g} of {len(curves)} maps: allow more "
            f"maps, or a larger bound"
        )
    return low


def _compared(
    values: Iterator[tuple[int, np.ndarray, np.ndarray]],
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
    good: np.ndarray,
    limit: Callable[[int, np.ndarray], np.ndarray],
) -> LowRank:
    """Maps, coefficients and units with the list of what they do not give, and what is left of all other pixels."""
    maps, coefficients, unit = made
    worst, rms, running = np.zeros((3, len(unit)))
    total, lists = np.zeros(maps.shape[1]), []
    for k, value, known in values:
        residual = value.astype(float) - _product(maps, coefficients[:, k])
        out = ~known | (np.abs(residual) > limit(k, value))
        listed, kept = good[out[good]], good[~out[good]]
        left = residual[kept]
        worst[k], rms[k] = np.abs(left).max(initial=0.0), np.sqrt(np.mean(left**2)) if left.size else 0.0
        total[kept] += left
        running[k] = np.abs(total).max()
        lists.append((listed, np.full(len(listed), k), np.where(known, residual, np.nan)[listed]))
    at, place, change = (np.concatenate(column) for column in zip(*lists, strict=True))
    columns = at.astype(np.int32), place.astype(np.int32), change.astype(np.float32)
    return LowRank(maps, coefficients, worst, rms, running, unit, *columns)


def _limits(
    slices: Slices, amplifier: int, response: np.ndarray, config: LowRankConfig
) -> Callable[[int, np.ndarray], np.ndarray]:
    """Give the largest residual that is allowed, for a slice and the values of its pixels."""
    slope, floor = slices.variance_slope[:, amplifier], slices.variance_floor[:, amplifier]

    def limit(k: int, value: np.ndarray) -> np.ndarray:
        noise = np.sqrt(np.maximum(slope[k] * value + floor[k], 0))
        return np.maximum(config.noise * noise, config.bound * response[k])

    return limit


def _values(slices: Slices, amplifier: int, there: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Place, values (y x) float32 and whether they are known of every slice; unknown ones are what the codes say."""
    images = {int(k): i for i, (places, _) in enumerate(slices.references(amplifier)) for k in places}
    references = [image.reshape(-1).copy() for _, image in slices.references(amplifier)]
    for places, codes in slices.blocks(amplifier, there):
        for k, code in zip(places.tolist(), codes, strict=True):
            value = slices.offset[k, amplifier] + slices.scale[k, amplifier] * code.reshape(-1).astype(np.float64)
            if k in images:
                value += slices.level[k, amplifier] * references[images[k]]
            odd = exceptions_of(slices, k, amplifier)
            known = np.ones(value.size, bool)
            known[odd.at[odd.unusable]] = False
            value[odd.at[~odd.unusable]] += odd.change[~odd.unusable]
            yield k, value.astype(np.float32), known


def _curves(
    sample: np.ndarray, limit: Callable[[int, np.ndarray], np.ndarray], there: np.ndarray, config: LowRankConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Curves (r, k) of unit length in units (k,) of what is allowed over ``noise``, as few as the sample permits.

    Noise of one unit in n pixels and k slices has singular values up to sqrt(n) + sqrt(k); what exceeds that is
    signal and kept, and so is what brings the values not within the limit to a tenth of the share allowed.
    """
    allowed = np.stack([limit(int(k), column) for k, column in zip(there, sample.T, strict=True)], axis=1)
    unit = np.median(allowed, axis=0) / max(config.noise, 1.0)
    scaled = sample / unit
    squares, columns = np.linalg.eigh(scaled.T @ scaled)  # faster than singular vectors, and exact to 1e-8
    sizes, curves = np.sqrt(np.maximum(squares[::-1], 0)), columns.T[::-1]
    signal = int((sizes > 1.02 * (np.sqrt(len(sample)) + np.sqrt(len(there)))).sum()) if config.noise else 0
    for rank in range(max(1, min(signal, config.rank)), min(config.rank, len(sizes)) + 1):
        own = curves[:rank]
        residual = sample - scaled @ own.T @ (own * unit)
        if (np.abs(residual) > allowed).mean() <= config.most / 10:
            break
    return own, unit
