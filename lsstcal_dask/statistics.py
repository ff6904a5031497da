# ruff: noqa: PLR0917 - kernels take arrays one by one
# mypy: allow-untyped-defs
"""Robust combination of a stack of exposures of one amplifier (Secs. 2.1, 2.7 and 2.8).

A pixel's N values are combined by their median, by a clipped mean, or by the median of sums of
consecutive exposures. The kernels read the raw counts once, at their own width, and calibrate them on the
way: 256 pixels of a row at a time are laid out as blocks of 64 pixels by N exposures that stay in the
cache, where every step is one vector instruction per eight pixels and no step branches on a pixel.

Two rules keep the generated code so, and a test reads it: the distance between two rows of a block is a
constant of the compilation (one-dimensional buffers, unsigned indices, which numba does not wrap), and a
value chosen by comparison is not stored where one of the two came from, for LLVM makes that a masked store,
which costs tens of cycles on some processors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numba
import numpy as np
import xarray as xr
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.variables import attributes

__all__ = [
    "Calibration",
    "Noise",
    "clip_variance_factor",
    "clipped_mean",
    "combine",
    "median",
    "median_of_sums",
    "robust_mean",
    "robust_sigma",
]

_DTYPES: Final = ("uint16", "int32", "float32")
_W: Final = 64  # pixels of a block: 8 vectors of 8, and 32 exposures of it fill half a first-level cache
_STRIP: Final = 256  # pixels read at once from one exposure: shorter runs read slower
_STRIDE: Final = _STRIP + 16  # of an exposure in the buffer; a power of two would crowd one set of the cache
_SORTED: Final = 8  # exposures sorted in registers before the merge network takes over
_HUGE: Final = 1e18  # stands for k = inf: its square is still a float32
_MAD_TO_SIGMA: Final = 1.482602218505602
_MEDIAN, _SAMPLE, _MODEL = 0, 1, 2


@dataclass(frozen=True)
class Calibration:
    """How counts become the value combined: ``((counts - offset[n, y]) - plane[y, x]) * scale[n]``.

    A NaN takes its row, pixel or frame out of the combination.
    """

    offset: NDArray[np.float32]  # (n, y), adu: overscan level of each row
    plane: NDArray[np.float32] | None  # (y, x), adu: bias image, or None
    scale: NDArray[np.float32]  # (n,), unit of the value per adu; ones where it is to stay adu


@dataclass(frozen=True)
class Noise:
    """Variance of a value about ``c``: ``(read_variance[n] + max(c/scale[n], 0) poisson) scale[n]**2``.

    ``read_variance`` includes the 1/12 adu**2 of digitisation; a frame whose variance is not positive
    takes no part.
    """

    read_variance: NDArray[np.float32]  # (n,), adu**2
    poisson: float  # adu per electron, 1/gain; 0 for biases


def median(
    stack: NDArray[Any], calibration: Calibration | None = None, *, use: ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Median over exposures of every pixel.

    Parameters
    ----------
    stack : (n, y, x) uint16, int32 or float32 counts, adu; NaN takes no part. A view over exposures is
        read in place if each image is contiguous.
    calibration : offset, plane and scale of the counts; None combines them as they are.
    use : (n,) bool, exposures that take part; all by default.

    Returns
    -------
    value : (y, x) float32, unit of the calibrated counts; NaN where no exposure takes part.
    frames : (y, x) uint16, exposures that took part.

    Raises
    ------
    InsufficientInputs
        The stack is empty.
    InconsistentGeometry
        A dtype or shape disagrees with the stack.
    """
    value, _, frames = _combine(stack, calibration, use)
    return value, frames


def median_of_sums(
    stack: NDArray[Any], group: int, calibration: Calibration | None = None, *, use: ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Median of the means of ``group`` consecutive exposures: digitisation steps ``group`` times finer.

    The exposures used are cut into ``n // group`` runs of equal length; a remainder makes some runs one
    or more longer, so that no exposure is left out and no step is coarser than 1/group. A NaN takes its
    whole run out. Each offset is subtracted from its counts before they are added, an exact difference
    of float32 wherever counts and offset agree within a factor of two, so that the fraction of every
    offset is carried into the sum (Sec. 2.1). ``rms**2 = 1.57 sigma**2/n + 0.083/group**2``.

    Parameters
    ----------
    group : exposures to a sum, at least 1; they must not straddle a reset of the camera.
    stack, calibration, use, returns : as for `median`.

    Raises
    ------
    InsufficientInputs
        Fewer exposures are in use than ``group``.
    InconsistentGeometry
        A dtype or shape disagrees with the stack.
    """
    value, _, frames = _combine(stack, calibration, use, group=group)
    return value, frames


def clipped_mean(
    stack: NDArray[Any],
    calibration: Calibration | None = None,
    noise: Noise | None = None,
    *,
    k: float = 4.0,
    iterations: int = 1,
    use: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    """Mean of the values within ``k`` sigma of a robust centre.

    With ``noise`` the first centre is the median and sigma is the model's, evaluated at the centre
    common to all exposures (at each noisy value it would bias the mean by -1/N). The survivors are
    averaged with weights 1/sigma**2; then ``iterations`` times the mean becomes the centre and all
    values are judged again.

    Without ``noise`` it is the classical iteration: ``iterations`` rounds of clipping at ``k`` sample
    standard deviations (ddof = 0) about the mean, as `astropy.stats.sigma_clip` with ``cenfunc="mean"``
    and ``maxiters=iterations``.

    Parameters
    ----------
    k : half-width of the interval kept, in sigma; ``math.inf`` clips nothing.
    stack, calibration, use : as for `median`.

    Returns
    -------
    value : (y, x) float32; NaN where nothing survives.
    variance : (y, x) float32, unit of ``value`` squared: of the weighted mean, ``1/(sum(1/sigma**2) f)``,
        or ``s**2/(n f**2)`` with ``s`` the sample deviation of the n survivors (NaN for n = 1);
        ``f = clip_variance_factor(k)``, once for what the clip does to the mean and once for what it does
        to ``s``. Good to 1 % for k >= 3.
    frames : (y, x) uint16, survivors.

    Raises
    ------
    InsufficientInputs
        The stack is empty.
    InconsistentGeometry
        A dtype or shape disagrees with the stack, ``k`` is not positive or ``iterations`` negative.
    """
    if not k > 0 or iterations < 0:
        raise InconsistentGeometry(f"clip with k={k}, iterations={iterations}: k > 0 and iterations >= 0")
    return _combine(stack, calibration, use, noise=noise, k=k, rounds=iterations)


def clip_variance_factor(k: float) -> float:
    """Variance of a unit Gaussian cut at +-k: ``1 - 2 k phi(k) / (2 Phi(k) - 1)``.

    Dividing a clipped sample's variance by it removes the bias of the clip (Sec. 0); the variance of a
    clipped mean is larger than sigma**2/n by the same factor.

    Examples
    --------
    >>> round(1 - clip_variance_factor(3.0) ** 0.5, 3)
    0.013
    """
    density = math.exp(-0.5 * k * k) / math.sqrt(2 * math.pi)
    return 1.0 - (2 * k * density / math.erf(k / math.sqrt(2)) if density > 0 else 0.0)


def robust_sigma(a: ArrayLike, axis: int | None = None) -> NDArray[np.float64]:
    """Estimate a standard deviation by 1.4826 times the median absolute deviation; NaN takes no part.

    Parameters
    ----------
    a : values, any shape; returns them reduced over ``axis`` in their unit, NaN where all are NaN.
    """
    values = np.asarray(a, dtype=np.float64)
    return _MAD_TO_SIGMA * _nanmedian(np.abs(values - _nanmedian(values, axis, keepdims=True)), axis)


def robust_mean(
    a: ArrayLike, sigma: ArrayLike, k: float = 4.0, axis: int | None = None
) -> NDArray[np.float64]:
    """Mean of the values within ``k`` sigma of their median; NaN takes no part.

    Parameters
    ----------
    a : values, any shape; returns them reduced over ``axis`` in their unit, NaN where none is left.
    sigma : standard deviation of one value, unit of ``a``: a scalar or the shape of the result.
    """
    values = np.asarray(a, dtype=np.float64)
    centre = _nanmedian(values, axis, keepdims=True)
    reach = k * np.reshape(np.broadcast_to(sigma, np.squeeze(centre, axis).shape), centre.shape)
    kept = np.abs(values - centre) <= reach
    count = kept.sum(axis=axis)
    total = np.where(kept, values - centre, 0.0).sum(axis=axis)
    return np.squeeze(centre, axis) + total / np.where(count > 0, count, np.nan)


def _nanmedian(values: NDArray[np.float64], axis: int | None, keepdims: bool = False) -> NDArray[np.float64]:
    """`numpy.nanmedian` without its warning for all-NaN slices, and several times faster."""
    flat = values.reshape(-1) if axis is None else np.moveaxis(values, axis, -1)
    ordered = np.sort(flat, axis=-1)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
    pair = np.concatenate([np.maximum(count - 1, 0) // 2, count // 2], axis=-1)
    result = np.take_along_axis(ordered, np.minimum(pair, flat.shape[-1] - 1), axis=-1).mean(axis=-1)
    if not keepdims:
        return result
    return result.reshape((1,) * values.ndim) if axis is None else np.expand_dims(result, axis)


_TERMS: Final = {
    "overscan": ("exposure", "y"),
    "plane": ("y", "x"),
    "scale": ("exposure",),
    "read_variance": ("exposure",),
    "poisson": (),
    "accepted": ("exposure",),
}


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


_METHODS: Final = {"clipmean": {"k", "iterations"}, "median": set(), "sums": {"group"}}


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


def _combine(
    stack: NDArray[Any],
    calibration: Calibration | None,
    use: ArrayLike | None,
    *,
    noise: Noise | None = None,
    k: float | None = None,
    rounds: int = 0,
    group: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    """Check the arguments, run the kernel; median unless ``k`` is given."""
    _check(stack, calibration, noise)
    n, ny, nx = stack.shape
    kept = np.arange(n) if use is None else np.flatnonzero(_shaped("use", use, (n,)))
    value = np.empty((ny, nx), np.float32)
    variance = np.empty((ny if k is not None else 0, nx), np.float32)
    frames = np.empty((ny, nx), np.uint16)
    if kept.size == 0:
        value[:], variance[:], frames[:] = np.nan, np.nan, 0
        return value, variance, frames
    if not 1 <= group <= kept.size:
        raise InsufficientInputs(f"sums of {group} exposures from {kept.size}: use sums of 1 to {kept.size}")
    runs = kept.size // group
    edges = np.arange(runs + 1) * kept.size // runs
    terms = calibration or Calibration(np.zeros((n, ny), np.float32), None, np.ones(n, np.float32))
    plane = np.zeros((1, nx), np.float32) if terms.plane is None else terms.plane
    scale = _f4(terms.scale)[kept]
    model = np.ones((2, -(-runs // _SORTED) * _SORTED), np.float32)
    if noise is not None:
        model[0, : kept.size] = _f4(noise.read_variance)[kept] * scale**2
        model[1, : kept.size] = noise.poisson * scale
    method = _MEDIAN if k is None else _SAMPLE if noise is None else _MODEL
    reach = min(k or 0.0, _HUGE)
    shrink = clip_variance_factor(reach) if k else 1.0
    flat, starts = _flatten(stack)
    _run(
        (flat, starts[kept], edges),
        (_f4(terms.offset)[kept], _f4(plane).reshape(-1), scale),
        _network(runs),
        model,
        method,
        (np.float32(reach), rounds, np.float32(1 / shrink)),
        nx,
        (value.reshape(-1), variance.reshape(-1), frames.reshape(-1)),
    )
    return value, variance, frames


def _check(stack: NDArray[Any], calibration: Calibration | None, noise: Noise | None) -> None:
    """Raise unless dtypes and shapes agree with a stack (n, y, x)."""
    if stack.ndim != 3:
        raise InconsistentGeometry(f"stack has shape {stack.shape}, expected (exposure, y, x)")
    if stack.dtype not in _DTYPES:
        raise InconsistentGeometry(f"stack is {stack.dtype}: convert it to one of {', '.join(_DTYPES)}")
    n, ny, nx = stack.shape
    if stack.size == 0:
        raise InsufficientInputs(f"empty stack of shape {stack.shape}: give at least one exposure")
    if n > np.iinfo(np.uint16).max:
        raise InconsistentGeometry(f"{n} exposures: combine at most 65535 at once")
    if calibration is not None:
        _shaped("offset", calibration.offset, (n, ny))
        _shaped("scale", calibration.scale, (n,))
        if calibration.plane is not None:
            _shaped("plane", calibration.plane, (ny, nx))
    if noise is not None:
        _shaped("read_variance", noise.read_variance, (n,))


def _shaped(name: str, array: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
    if np.shape(array) != shape:
        raise InconsistentGeometry(f"{name} has shape {np.shape(array)}, the stack needs {shape}")
    return array


def _f4(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _flatten(stack: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pixels as one read-only line, and where each exposure starts on it; no copy of contiguous images."""
    n, ny, nx = stack.shape
    item = stack.itemsize
    step = stack.strides[0] if n > 1 else ny * nx * item
    if not stack[0].flags.c_contiguous or step < ny * nx * item or step % item:
        return _flatten(np.ascontiguousarray(stack))
    length = (n - 1) * step // item + ny * nx
    flat = np.lib.stride_tricks.as_strided(stack, (length,), (item,), writeable=False)
    return flat, np.arange(n) * (step // item)


@cache
def _network(n: int) -> NDArray[np.uint64]:
    """List the comparators of Batcher's merge sort that decide the middle of n rows sorted by eights."""
    pairs: list[tuple[int, int]] = []
    block = _SORTED
    while block < n:
        for low in range(0, n, 2 * block):
            _merge(pairs, low, 2 * block, 1)
        block *= 2
    needed = {n // 2 - 1, n // 2}
    kept = []
    for i, j in reversed(pairs):
        if j < n and (i in needed or j in needed):  # rows from n on are +inf, already in place
            kept.append((i, j))
            needed |= {i, j}
    return np.array(kept[::-1], dtype=np.uint64).reshape(-1, 2)


def _merge(pairs: list[tuple[int, int]], low: int, length: int, step: int) -> None:
    """Append the odd-even merge of the two sorted halves of rows ``low + step*i`` of ``length`` rows."""
    if 2 * step >= length:
        pairs.append((low, low + step))
        return
    _merge(pairs, low, length, 2 * step)
    _merge(pairs, low + step, length, 2 * step)
    pairs.extend((i, i + step) for i in range(low + step, low + length - step, 2 * step))


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call: once per machine if a cache folder is writable, else once per process.

    Division by zero gives inf or NaN, as in numpy: a check per pixel would prevent vectors.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's own can be written
        return numba.njit(**options)(function)


@intrinsic
def _prefetch(context: Any, array: types.Array, index: types.Integer) -> Any:
    """Ask for the cache line of ``array[index]``, which may lie beyond its end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        hint = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(hint, [address, word(0), word(3), word(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


def _extremum(name: str) -> Any:
    """Give the smaller or larger of two float32 that are not NaN, by one instruction.

    Written as a comparison it becomes a masked store wherever one of the two goes back to its place.
    """

    @intrinsic
    def choose(context: Any, a: types.Float, b: types.Float) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            f4 = ir.FloatType()
            function = builder.module.declare_intrinsic(name, [f4], ir.FunctionType(f4, [f4, f4]))
            return builder.call(function, args, fastmath=("nnan",))

        return types.float32(types.float32, types.float32), generate

    return choose


_least, _most = _extremum("llvm.minnum"), _extremum("llvm.maxnum")
_U = np.uint64
_F = np.float32
# Rows of a block's scratch: interval kept, sign of the next filling, centre or pivot, survivors, sums.
_LOW, _HIGH, _SIGN, _PIVOT, _COUNT, _SUM, _SQUARES = (np.uint64(_W * row) for row in range(7))


@_jit
def _low(a, b):
    return a if a < b else b


@_jit
def _high(a, b):
    return b if a < b else a


@_jit
def _fill(v, sign, count, size):
    """Replace NaN by an infinity of alternating sign, so that they cancel out of the median."""
    good = not np.isnan(v)
    return v if good else sign, sign if good else -sign, count + (size if good else _F(0))


@_jit
def _load(flat, starts, edges, offset, planes, scale, y, nx, strip, rows):
    """Calibrate a strip of row ``y`` of every exposure into ``rows``, averaging the exposures of a run."""
    width, first = _U(min(_STRIP, nx - strip)), y * nx + strip
    p = _U(first if planes.size > nx else strip)
    for run in range(len(edges) - 1):
        at, size = _U(run * _STRIDE), _F(edges[run + 1] - edges[run])
        for i in range(edges[run], edges[run + 1]):
            f, o, c = _U(starts[i] + first), offset[i, y], scale[i] / size
            if i == edges[run]:
                for x in range(width):
                    rows[at + x] = ((_F(flat[f + x]) - o) - planes[p + x]) * c
            else:
                for x in range(width):
                    rows[at + x] += ((_F(flat[f + x]) - o) - planes[p + x]) * c


@_jit
def _presort(rows, at, sizes, work, s):
    """Copy a block, its NaN filled and its rows sorted by eights (19 comparators, 6 steps)."""
    s[_SIGN : _SIGN + _U(_W)] = np.inf
    s[_COUNT : _COUNT + _U(_W)] = 0
    for first in range(0, sizes.size, _SORTED):
        r, o = at + _U(first * _STRIDE), _U(first * _W)
        q = sizes[first : first + _SORTED]
        for x in range(_U(_W)):
            sign, m = s[_SIGN + x], s[_COUNT + x]
            a, sign, m = _fill(rows[r + x], sign, m, q[0])
            b, sign, m = _fill(rows[r + _U(_STRIDE) + x], sign, m, q[1])
            c, sign, m = _fill(rows[r + _U(2 * _STRIDE) + x], sign, m, q[2])
            d, sign, m = _fill(rows[r + _U(3 * _STRIDE) + x], sign, m, q[3])
            e, sign, m = _fill(rows[r + _U(4 * _STRIDE) + x], sign, m, q[4])
            f, sign, m = _fill(rows[r + _U(5 * _STRIDE) + x], sign, m, q[5])
            g, sign, m = _fill(rows[r + _U(6 * _STRIDE) + x], sign, m, q[6])
            h, sign, m = _fill(rows[r + _U(7 * _STRIDE) + x], sign, m, q[7])
            s[_SIGN + x], s[_COUNT + x] = sign, m
            a, c, b, d = _least(a, c), _most(a, c), _least(b, d), _most(b, d)
            e, g, f, h = _least(e, g), _most(e, g), _least(f, h), _most(f, h)
            a, e, b, f = _least(a, e), _most(a, e), _least(b, f), _most(b, f)
            c, g, d, h = _least(c, g), _most(c, g), _least(d, h), _most(d, h)
            a, b, c, d = _least(a, b), _most(a, b), _least(c, d), _most(c, d)
            e, f, g, h = _least(e, f), _most(e, f), _least(g, h), _most(g, h)
            c, e, d, f = _least(c, e), _most(c, e), _least(d, f), _most(d, f)
            b, e, d, g = _least(b, e), _most(b, e), _least(d, g), _most(d, g)
            b, c, d, e = _least(b, c), _most(b, c), _least(d, e), _most(d, e)
            f, g = _least(f, g), _most(f, g)
            work[o + x], work[o + _U(_W) + x] = a, b
            work[o + _U(2 * _W) + x], work[o + _U(3 * _W) + x] = c, d
            work[o + _U(4 * _W) + x], work[o + _U(5 * _W) + x] = e, f
            work[o + _U(6 * _W) + x], work[o + _U(7 * _W) + x] = g, h


@_jit
def _middle(work, n, network, s):
    """Run the network; the middle value, or the mean of the middle two of an even number of values."""
    for pair in range(len(network)):
        i, j = network[pair, 0] * _U(_W), network[pair, 1] * _U(_W)
        for x in range(_U(_W)):
            a, b = work[i + x], work[j + x]
            work[i + x] = _least(a, b)
            work[j + x] = _most(a, b)
    below, above, single = _U(max(n // 2 - 1, 0) * _W), _U(n // 2 * _W), _U((n - 1) // 2 * _W)
    odd = _F(1) if n % 2 == 1 else _F(-1)  # an odd number of NaN leaves the sign negative
    for x in range(_U(_W)):
        middle, mean = work[single + x], _F(0.5) * (work[below + x] + work[above + x])
        s[_PIVOT + x] = middle if s[_SIGN + x] * odd > 0 else mean


@_jit
def _add(v, low, high, pivot, count, total, squares):
    kept = (low <= v) & (v <= high)
    d = v - pivot if kept else _F(0)
    return count + (_F(1) if kept else _F(0)), total + d, squares + d * d


@_jit
def _moments(rows, at, n, s):
    """Move the pivots to the mean of what lies in the interval; whether a pivot was too far for float32.

    Afterwards ``s[_SQUARES]`` is the sum of squares about the mean.
    """
    s[_COUNT : _SQUARES + _U(_W)] = 0
    for first in range(0, n, 4):
        r = at + _U(first * _STRIDE)
        for x in range(_U(_W)):
            low, high, p = s[_LOW + x], s[_HIGH + x], s[_PIVOT + x]
            c, t, q = s[_COUNT + x], s[_SUM + x], s[_SQUARES + x]
            c, t, q = _add(rows[r + x], low, high, p, c, t, q)
            c, t, q = _add(rows[r + _U(_STRIDE) + x], low, high, p, c, t, q)
            c, t, q = _add(rows[r + _U(2 * _STRIDE) + x], low, high, p, c, t, q)
            c, t, q = _add(rows[r + _U(3 * _STRIDE) + x], low, high, p, c, t, q)
            s[_COUNT + x], s[_SUM + x], s[_SQUARES + x] = c, t, q
    far, survivors = 0, 0
    for x in range(_U(_W)):
        count, total = s[_COUNT + x], s[_SUM + x]
        shift = total / count
        left = s[_SQUARES + x] - shift * total
        far += shift * total > _F(1e3) * left  # left has lost three of its digits; empty pixels are false
        survivors += np.int32(count)
        s[_SQUARES + x] = _high(_F(0), left)
        s[_PIVOT + x] += shift
    return far > 0, survivors


@_jit
def _clip_sample(rows, at, n, k, rounds, s):
    """Clip at ``k`` sample deviations about the mean, ``rounds`` times; leaves the mean in ``s``."""
    for x in range(_U(_W)):
        a, b, c = rows[at + x], rows[at + _U(_STRIDE) + x], rows[at + _U(2 * _STRIDE) + x]
        guess = _high(_low(a, b), _low(_high(a, b), c))  # rarely an outlier
        s[_PIVOT + x] = guess if abs(guess) < _F(1e30) else _F(0)
        s[_LOW + x], s[_HIGH + x] = _F(-3e38), _F(3e38)
    before = -1
    for step in range(rounds + 1):
        far, survivors = _moments(rows, at, n, s)
        if far:
            _moments(rows, at, n, s)
        if step == rounds or survivors == before:
            break
        before = survivors
        for x in range(_U(_W)):
            mean = s[_PIVOT + x]
            half = k * np.sqrt(s[_SQUARES + x] / s[_COUNT + x]) + _F(2.4e-7) * abs(mean)  # two roundings
            s[_LOW + x] = _high(mean - half, s[_LOW + x]) + _F(0)  # + 0: not a masked store
            s[_HIGH + x] = _low(mean + half, s[_HIGH + x]) + _F(0)


@_jit
def _clip_model(rows, at, model, k, rounds, s):
    """Weighted mean within ``k`` model sigma of ``s[_PIVOT]``, then of that mean; 1/variance in _SQUARES."""
    for _ in range(rounds + 1):
        s[_COUNT : _SQUARES + _U(_W)] = 0
        for i in range(model.shape[1]):
            r = at + _U(i * _STRIDE)
            read, poisson = model[0, i], model[1, i]
            for x in range(_U(_W)):
                centre = s[_PIVOT + x]
                variance = read + poisson * _high(_F(0), centre)
                d = rows[r + x] - centre
                kept = d * d < k * k * variance
                weight = _F(1) / variance if kept else _F(0)
                s[_COUNT + x] += _F(1) if kept else _F(0)
                s[_SUM + x] += weight * d if kept else _F(0)
                s[_SQUARES + x] += weight
        for x in range(_U(_W)):
            s[_PIVOT + x] += s[_SUM + x] / s[_SQUARES + x]


@_jit
def _store(s, method, unclip, nx, y, first, value, variance, frames):
    """Write a block's centre, variance of the mean and survivors."""
    width, out = _U(min(_W, nx - first)), _U(y * nx + first)
    for x in range(width):
        count = s[_COUNT + x]
        value[out + x] = s[_PIVOT + x] if count > 0 else _F(np.nan)
        frames[out + x] = np.int32(count)
    if method == _SAMPLE:
        for x in range(width):
            count = s[_COUNT + x]
            square = unclip * unclip * s[_SQUARES + x] / ((count - _F(1)) * count)
            variance[out + x] = square if count > 1 else _F(np.nan)
    elif method == _MODEL:
        for x in range(width):
            variance[out + x] = unclip / s[_SQUARES + x] if s[_COUNT + x] > 0 else _F(np.nan)


@_jit
def _run(counts, calibration, network, model, method, clip, nx, results):
    """Combine one amplifier, strip by strip; see `_combine` for the arguments."""
    flat, starts, edges = counts
    offset, plane, scale = calibration
    k, rounds, unclip = clip
    value, variance, frames = results
    n, padded = len(edges) - 1, model.shape[1]
    rows = np.full(_STRIDE * padded, np.inf, np.float32)  # exposures from n on stay +inf
    work = np.empty(_W * padded, np.float32)
    s = np.empty(7 * _W, np.float32)
    sizes = np.zeros(padded, np.float32)
    for run in range(n):
        sizes[run] = edges[run + 1] - edges[run]
    for y in range(value.size // nx):
        for strip in range(0, nx, _STRIP):
            _load(flat, starts, edges, offset, plane, scale, y, nx, strip, rows)
            for x in range(strip, min(strip + _STRIP, nx), _W):
                at = _U(x - strip)
                for i in range(starts.size):  # the next strip comes in while this block is worked on
                    for ahead in range(_STRIP, _STRIP + _W, 64 // flat.itemsize):
                        _prefetch(flat, _U(starts[i] + y * nx + x + ahead))
                if method == _SAMPLE:
                    _clip_sample(rows, at, n, k, rounds, s)
                else:
                    _presort(rows, at, sizes, work, s)
                    _middle(work, n, network, s)
                    if method == _MODEL:
                        _clip_model(rows, at, model, k, rounds, s)
                _store(s, method, unclip, nx, y, x, value, variance, frames)
