"""A flat cube of low rank in wavelength, of which the largest error is known and not estimated (SCIENCE 2.8.5).

The response of the pixels of an amplifier is a gray pattern times curves that differ in a few ways only, so

    f_k(x, y) = sum_r maps_r(x, y) coefficients[r, k] + residual,

with few maps for all of some hundred slices. Maps and coefficients come from the singular vectors of a sample of the
pixels; then every pixel of every slice is compared with what the maps say. Where a difference exceeds what was asked
for it is kept in a list, so that no residual does: that is the proof. A cube has noise, which no map can hold and none
should: the residual of a pixel may be as large as ``noise`` times its own error, or ``bound`` times the response,
whichever is larger. Of a broadband flat, |error| <= sum_k |w_k| worst_k; noise that is left out averages down instead.
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
    at: np.ndarray  # (n,) y nx + x of the values that the maps do not give
    slice: np.ndarray  # (n,) places along the wavelengths, ascending
    change: np.ndarray  # (n,) float32, to be added there; NaN where nothing is known

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(one.nbytes for one in (self.maps, self.coefficients, self.worst, self.at, self.slice, self.change))

    def values(self, k: int) -> np.ndarray:
        """Values (y x) float32 of a slice."""
        found = _product(self.maps, self.coefficients[:, k])
        own = slice(*np.searchsorted(self.slice, [k, k + 1]))
        found[self.at[own]] += self.change[own]
        return found

    def error_bound(self, weights: np.ndarray) -> np.ndarray:
        """Largest error (v,) of weighted sums with ``weights`` (v, k) against those of the cube, rounding aside."""
        return np.asarray(np.abs(weights) @ self.worst)


def sum_maps(low: LowRank, vectors: np.ndarray) -> np.ndarray:
    """Sums (v, y x) float32 of ``vectors`` (v, k) times the values, like `sums.sum_slices`, from the maps alone.

    Of values of which nothing is known it takes what the maps say.
    """
    totals = weighted_sums(low.maps, vectors @ low.coefficients.T)
    known = np.isfinite(low.change)
    for total, vector in zip(totals, vectors, strict=True):
        np.add.at(total, low.at[known], (vector[low.slice[known]] * low.change[known]).astype(np.float32))
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
    worst, lists = np.zeros(len(response)), []
    for k, value, known in _values(slices, amplifier, there):
        residual = value - _product(maps, coefficients[:, k])
        far = np.abs(residual) > limit(k, value)
        listed = good[(far | ~known)[good]]
        kept = good[~(far | ~known)[good]]
        worst[k] = np.abs(residual[kept]).max(initial=0.0)
        lists.append((listed, np.full(len(listed), k), np.where(known, residual, np.nan)[listed]))
    at, place, change = (np.concatenate(column) for column in zip(*lists, strict=True))
    share = np.isfinite(change).sum() / size / len(there)
    if share > config.most:
        raise DegenerateSolution(
            f"low rank: {share:.2g} of the values are not within {config.bound:g} of {len(curves)} maps: allow more "
            f"maps, or a larger bound"
        )
    return LowRank(maps, coefficients, worst, at.astype(np.int32), place.astype(np.int32), change.astype(np.float32))


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
    """Curves (r, k) of unit length in units (k,) of a third of what is allowed, as few as the sample permits.

    Noise of one unit in n pixels and k slices has singular values up to sqrt(n) + sqrt(k); what exceeds that is
    signal and kept, and so is what brings the values not within the limit to a tenth of the share allowed.
    """
    allowed = np.stack([limit(int(k), column) for k, column in zip(there, sample.T, strict=True)], axis=1)
    unit = np.median(allowed, axis=0) / max(config.noise, 1.0)
    _, sizes, curves = np.linalg.svd(sample / unit, full_matrices=False)
    signal = int((sizes > 1.02 * (np.sqrt(len(sample)) + np.sqrt(len(there)))).sum()) if config.noise else 0
    for rank in range(max(1, min(signal, config.rank)), min(config.rank, len(sizes)) + 1):
        own = curves[:rank]
        residual = sample - (sample / unit) @ own.T @ (own * unit)
        if (np.abs(residual) > allowed).mean() <= config.most / 10:
            break
    return own, unit
