"""Combination of labelled exposures of any number of amplifiers, lazily where they are (Sec. 2.1)."""

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.statistics.stacks import Calibration, Noise, clipped_mean, median_of_sums
from lsstcal_dask.variables import attributes

__all__ = ["combine"]

_TERMS: Final = {
    "overscan": ("exposure", "y"),
    "plane": ("y", "x"),
    "scale": ("exposure",),
    "read_variance": ("exposure",),
    "poisson": (),
    "accepted": ("exposure",),
}
_METHODS: Final = {"clipmean": {"k", "iterations"}, "median": set(), "sums": {"group"}}


def combine(
    counts: xr.DataArray,
    method: str = "clipmean",
    terms: xr.Dataset | None = None,
    units: str = "adu",
    **options: Any,
) -> xr.Dataset:
    """Combine exposures of any number of amplifiers, lazily where ``counts`` is.

    Crosses exposures: each task takes all of them, for the amplifiers of one chunk.

    Parameters
    ----------
    counts : (exposure, ..., y, x), adu; if chunked, only over the other dimensions.
    method : "clipmean" (`clipped_mean`), "median" or "sums" (`median_of_sums`).
    terms : any of ``overscan`` (exposure, ..., y) adu, ``plane`` (..., y, x) adu, ``scale`` (exposure, ...)
        ``units`` per adu, ``read_variance`` (exposure, ...) adu**2, ``poisson`` (...,) adu per electron and
        ``accepted`` (exposure, ...) bool; further dimensions as those of ``counts``.
    units : unit of the calibrated counts.
    options : ``k`` and ``iterations`` of `clipped_mean`, ``group`` of `median_of_sums`.

    Returns
    -------
    ``image`` (..., y, x) float32, ``variance`` float32 and ``frames`` uint16. The variance of a median of
    N values of variance v is ``pi/2 v / (N + pi/2 - 1)`` plus, for integers, that of its steps,
    ``(scale/group)**2 / 12``; without ``read_variance`` it is not known: NaN.

    Raises
    ------
    InsufficientInputs, InconsistentGeometry
        As the kernels do; or no dimension ``exposure``, split pixels or exposures, an unknown method, term
        or option.
    """
    given = {} if terms is None else {str(name): terms[name] for name in terms.data_vars}
    if method not in _METHODS:
        raise InconsistentGeometry(f"method {method!r}: use one of {', '.join(_METHODS)}")
    if unknown := set(given) - set(_TERMS):
        raise InconsistentGeometry(f"terms {sorted(unknown)} are not known: use {', '.join(_TERMS)}")
    if unknown := set(options) - _METHODS[method]:
        raise InconsistentGeometry(f"options {sorted(unknown)} are not known to method {method!r}")
    core = {"counts": ("exposure", "y", "x"), **{name: _TERMS[name] for name in given}}
    arrays = {"counts": counts, **given}
    for name, array in arrays.items():
        if missing := set(core[name]) - set(array.dims):
            raise InconsistentGeometry(f"{name} lacks dimensions {sorted(missing)}: it has {array.dims}")
        for dim in core[name]:
            if len(dict(array.chunksizes).get(dim, (0,))) > 1:
                remedy = ", ".join(f"{each}=-1" for each in core[name])
                raise InconsistentGeometry(f"{name} is split along {dim}: call .chunk({remedy}) first")
    results = xr.apply_ufunc(
        _combine_amplifiers,
        *arrays.values(),
        input_core_dims=list(core.values()),
        output_core_dims=[("y", "x")] * 3,
        dask="parallelized",
        output_dtypes=[np.float32, np.float32, np.uint16],
        kwargs={"names": tuple(given), "method": method, "options": options},
    )
    square = f"({units})**2" if "/" in units else f"{units}**2"
    kinds = {"image": units, "variance": square, "frames": ""}
    return xr.Dataset(
        {
            name: result.assign_attrs(attributes(name, unit))
            for (name, unit), result in zip(kinds.items(), results, strict=True)
        }
    )


def _combine_amplifiers(
    counts: NDArray[Any], *terms: NDArray[Any], names: tuple[str, ...], method: str, options: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    """Run the kernel on every (exposure, y, x) of ``counts`` (..., exposure, y, x)."""
    *lead, n, ny, nx = counts.shape
    sizes = {"exposure": n, "y": ny, "x": nx}
    broad = {
        name: np.broadcast_to(array, (*lead, *(sizes[dim] for dim in _TERMS[name])))
        for name, array in zip(names, terms, strict=True)
    }
    image, variance = (np.empty((*lead, ny, nx), np.float32) for _ in range(2))
    frames = np.empty((*lead, ny, nx), np.uint16)
    for at in np.ndindex(*lead):
        here = {name: array[at] for name, array in broad.items()}
        image[at], variance[at], frames[at] = _combine_one(counts[at], here, method, options)
    return image, variance, frames


def _combine_one(
    stack: NDArray[Any], terms: dict[str, NDArray[Any]], method: str, options: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    n, ny, _ = stack.shape
    scale = terms.get("scale", np.ones(n, np.float32))
    offset = terms.get("overscan", np.zeros((n, ny), np.float32))
    calibration = Calibration(offset, terms.get("plane"), scale)
    noise = None
    if "read_variance" in terms:
        noise = Noise(terms["read_variance"], float(terms.get("poisson", np.float64(0))))
    use = terms.get("accepted")
    if method == "clipmean":
        return clipped_mean(stack, calibration, noise, use=use, **options)
    group = options.get("group", 3 if method == "sums" else 1)
    value, frames = median_of_sums(stack, group, calibration, use=use)
    kept = scale if use is None else scale[use]
    if noise is None or kept.size == 0:
        return value, np.full_like(value, np.nan), frames
    read = np.mean(noise.read_variance if use is None else noise.read_variance[use])
    typical = np.mean(kept)
    single = (read + noise.poisson * np.maximum(value / typical, 0)) * typical**2 / group
    step = (typical / group) ** 2 / 12 if stack.dtype.kind in "iu" else 0.0
    return value, (np.pi / 2 * single / (frames / group + np.pi / 2 - 1) + step).astype(np.float32), frames
