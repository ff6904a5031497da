"""Combine the exposures of one amplifier: arguments checked, kernels called (Secs. 2.1, 2.7 and 2.8)."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsstcal_dask.errors import InconsistentGeometry, InsufficientInputs
from lsstcal_dask.statistics import kernels, medians
from lsstcal_dask.statistics.robust import clip_variance_factor

__all__ = ["Calibration", "Noise", "clipped_mean", "lines", "median", "median_of_sums"]

_HUGE: Final = 1e18  # stands for k = inf: its square is still a float32


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
        read in place if the pixels of each row touch.
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
    start: ArrayLike | None = None,
    slack: float = 0.0,
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
    start : (n,) bool, exposures whose median is the first centre, all by default: a median that half of
        them, much noisier than the others, have carried off would clip the good ones. With ``noise`` only.
    slack : variance of the first centre, by which the first clip is wider; for a median of exposures
        among which too few are good to make a centre of their own. With ``noise`` only.
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
    centre = None
    if noise is not None and start is not None:
        everything = np.ones(len(stack), bool) if use is None else np.asarray(use, bool)
        first = everything & np.asarray(_shaped("start", start, (len(stack),)), bool)
        if not first[everything].all():
            centre, _ = median(stack, calibration, use=first)
            if np.isnan(centre).any():
                centre = np.where(np.isnan(centre), median(stack, calibration, use=use)[0], centre)
    return _combine(stack, calibration, use, noise=noise, k=k, rounds=iterations, start=centre, slack=slack)


def _combine(
    stack: NDArray[Any],
    calibration: Calibration | None,
    use: ArrayLike | None,
    *,
    noise: Noise | None = None,
    k: float | None = None,
    rounds: int = 0,
    group: int = 1,
    start: NDArray[np.float32] | None = None,
    slack: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    """Check the arguments, run the kernel; median unless ``k`` is given."""
    _check(stack, calibration, noise)
    n, ny, nx = stack.shape
    kept = np.arange(n) if use is None else np.flatnonzero(_shaped("use", use, (n,)))
    if kept.size == 0:
        nothing = np.full((ny, nx), np.nan, np.float32)
        return nothing, nothing.copy(), np.zeros((ny, nx), np.uint16)
    if not 1 <= group <= kept.size:
        raise InsufficientInputs(f"sums of {group} exposures from {kept.size}: use sums of 1 to {kept.size}")
    runs = kept.size // group
    edges = np.arange(runs + 1) * kept.size // runs
    terms = calibration or Calibration(np.zeros((n, ny), np.float32), None, np.ones(n, np.float32))
    plane = np.empty(0, np.float32) if terms.plane is None else _padded(terms.plane)
    offset, scale = _f4(terms.offset)[kept], _f4(terms.scale)[kept]
    read, poisson = np.ones(kept.size, np.float32), np.empty(0, np.float32)
    if noise is not None:
        read = _f4(noise.read_variance)[kept] * scale**2
        poisson = noise.poisson * scale if noise.poisson else poisson
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.reciprocal(read)
        root = np.where(read > 0, np.sqrt(weight), np.float32(np.inf))
    if not poisson.size:
        read = np.where(read > 0, read, np.float32(-np.inf))  # takes no part
    method = kernels.MEDIAN if k is None else kernels.SAMPLE if noise is None else kernels.MODEL
    reach = min(k or 0.0, _HUGE)
    shrink = clip_variance_factor(reach) if k else 1.0
    flat, starts, step = lines(stack)
    gaps = stack.dtype.kind == "f" or any(np.isnan(part.max(initial=0)) for part in (offset, scale, plane))
    centre = np.empty(0, np.float32) if start is None else _padded(start)
    room = ny * nx + kernels.LANES  # the last vector of a row may reach beyond the image
    value, variance = np.empty(room, np.float32), np.empty(room if k is not None else 0, np.float32)
    frames = np.empty(room, np.uint16)
    kernels.run(
        (_by_type(flat), (starts[kept], edges, step), gaps),
        ((offset, plane, scale), centre),
        medians.plan(runs),
        kernels.Model(read, poisson, weight, root, weight.sum(), root.max(), np.float32(slack)),
        method,
        (np.float32(reach), rounds, np.float32(1 / shrink), np.float32(1)),
        (ny, nx),
        (value, variance, frames),
    )
    size = ny * nx
    return value[:size].reshape(ny, nx), variance[:size].reshape(-1, nx), frames[:size].reshape(ny, nx)


def _check(stack: NDArray[Any], calibration: Calibration | None, noise: Noise | None) -> None:
    """Raise unless dtypes and shapes agree with a stack (n, y, x)."""
    if stack.ndim != 3:
        raise InconsistentGeometry(f"stack has shape {stack.shape}, expected (exposure, y, x)")
    if stack.dtype not in kernels.DTYPES:
        raise InconsistentGeometry(f"stack is {stack.dtype}: convert it to one of {', '.join(kernels.DTYPES)}")
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


def _padded(image: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels as one line that the last vector of a row may reach beyond."""
    return np.pad(image.reshape(-1), (0, kernels.STRIP)).astype(np.float32, copy=False)


def lines(stack: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """Pixels as one read-only line, where each exposure starts on it and the step from row to row.

    Nothing is copied where pixels of a row touch and rows and exposures follow each other.
    """
    n, ny, nx = stack.shape
    item = stack.itemsize
    frame, row, column = (
        stride if size > 1 else whole
        for stride, size, whole in zip(stack.strides, stack.shape, (ny * nx * item, nx * item, item), strict=True)
    )
    if column != item or row < nx * item or frame < (ny - 1) * row + nx * item or row % item or frame % item:
        return lines(np.ascontiguousarray(stack))
    length = ((n - 1) * frame + (ny - 1) * row) // item + nx
    flat = np.lib.stride_tricks.as_strided(stack, (length,), (item,), writeable=False)
    return flat, np.arange(n) * (frame // item), row // item


def _by_type(flat: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """The pixels in the place of their type among empty lines, so that one compilation serves all types."""
    lines = [flat if flat.dtype == name else np.empty(0, name) for name in kernels.DTYPES]
    for line in lines:
        line.flags.writeable = False
    return tuple(lines)
