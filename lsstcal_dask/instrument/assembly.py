"""Trim raw amplifiers, assemble them into CCDs and CCDs into the focal plane (Secs. 2.1 and 3.1).

`trim`, `assemble` and `split` take and return NumPy arrays, Dask arrays or DataArrays; what is lazy stays so.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument.camera import Amplifier, Box, Camera, Detector
from lsstcal_dask.variables import MASK_BITS

__all__ = ["assemble", "bin_ccd", "mosaic", "no_data", "split", "trim"]

Array = Any  # numpy.ndarray, dask.array.Array or xarray.DataArray


def _layout(detector: Detector, names: Sequence[str]) -> list[Amplifier | None]:
    """Amplifiers of the detector in that order; None where it has none of the name."""
    by_name = {a.name: a for a in detector.amplifiers}
    return [by_name.get(str(name)) for name in names]


def _trim(raw: np.ndarray, layout: list[Amplifier | None], shape: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*raw.shape[:-2], *shape), raw.dtype)
    for i, amplifier in enumerate(layout):
        if amplifier is not None:
            ny, nx = amplifier.data.shape
            image[..., i, :ny, :nx] = raw[(..., i, *amplifier.data.slices)]
    return image


def _assemble(image: np.ndarray, layout: list[Amplifier | None], shape: tuple[int, int], fill: float) -> np.ndarray:
    ccd = np.full((*image.shape[:-3], *shape), fill, image.dtype)
    for i, amplifier in enumerate(layout):
        if amplifier is not None:
            ny, nx = amplifier.data.shape
            ccd[(..., *_footprint(amplifier).slices)] = _flip(image[..., i, :ny, :nx], amplifier)
    return ccd


def _split(ccd: np.ndarray, layout: list[Amplifier | None], shape: tuple[int, int], fill: float) -> np.ndarray:
    image = np.full((*ccd.shape[:-2], len(layout), *shape), fill, ccd.dtype)
    for i, amplifier in enumerate(layout):
        if amplifier is not None:
            ny, nx = amplifier.data.shape
            image[..., i, :ny, :nx] = _flip(ccd[(..., *_footprint(amplifier).slices)], amplifier)
    return image


def _flip(image: np.ndarray, amplifier: Amplifier) -> np.ndarray:
    """Readout orientation to that of the CCD, or back."""
    return image[..., :: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]


def _footprint(amplifier: Amplifier) -> Box:
    (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
    return Box(x, x + nx, y, y + ny)


def _unpack(array: Array, dims: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """Bare array and, of a DataArray, its other dims."""
    if not isinstance(array, xr.DataArray):
        return array, ()
    if array.dims[-len(dims) :] != dims:
        raise InconsistentGeometry(f"dimensions are {array.dims}: transpose so that they end in {dims}")
    return array.data, tuple(str(d) for d in array.dims[: -len(dims)])


def _repack(array: Array, data: Any, dims: tuple[str, ...], coords: Mapping[str, Any]) -> Array:
    if not isinstance(array, xr.DataArray):
        return data
    kept = {k: v for k, v in array.coords.items() if not {"amplifier", "y", "x"} & set(map(str, v.dims))}
    return xr.DataArray(data, dims=dims, coords={**kept, **coords}, name=array.name, attrs=array.attrs)


def _names(array: Array, camera: Camera, amplifiers: Sequence[str] | None, axis: int = -3) -> tuple[str, ...]:
    """Names along the amplifier axis: as given, or the DataArray's, or the camera's."""
    if amplifiers is None and isinstance(array, xr.DataArray) and "amplifier" in array.coords:
        amplifiers = [str(a) for a in np.atleast_1d(array["amplifier"].values)]
    names = tuple(camera.amplifier_names if amplifiers is None else amplifiers)
    if len(names) != array.shape[axis]:
        raise InconsistentGeometry(
            f"{array.shape[axis]} amplifiers, but {len(names)} names ({', '.join(names)}): pass `amplifiers`"
        )
    unknown = [n for n in names if n not in camera.amplifier_names]
    if unknown:
        raise InconsistentGeometry(
            f"camera {camera.name} has no amplifier {unknown[0]}: use {', '.join(camera.amplifier_names)}"
        )
    return names


def _check_pixels(array: Array, shape: tuple[int, int], what: str) -> None:
    """Raise unless the last two axes have that shape and are one chunk."""
    if tuple(array.shape[-2:]) != shape:
        raise InconsistentGeometry(f"{what} is (y, x) = {array.shape[-2:]}, expected {shape}: name the right camera")
    if isinstance(array, da.Array) and array.numblocks[-2:] != (1, 1):
        raise InconsistentGeometry(f"{what}: y or x is split into chunks: rechunk with {{'y': -1, 'x': -1}}")


def no_data(detector: Detector, camera: Camera) -> np.ndarray:
    """Mask of the padding: (amplifier, y, x) uint8 over ``camera.image_shape``, bit NO_DATA.

    Set beyond the image of an amplifier and all over the amplifiers that the detector does not have.
    """
    mask = np.full((len(camera.amplifier_names), *camera.image_shape), MASK_BITS["NO_DATA"], np.uint8)
    for i, amplifier in enumerate(_layout(detector, camera.amplifier_names)):
        if amplifier is not None:
            ny, nx = amplifier.data.shape
            mask[i, :ny, :nx] = 0
    return mask


def trim(raw: Array, detector: Detector, camera: Camera, amplifiers: Sequence[str] | None = None) -> Array:
    """Light-sensitive pixels of raw amplifiers, lazily and chunk by chunk.

    Parameters
    ----------
    raw : (..., amplifier, y, x) over ``camera.raw_shape``, readout orientation, adu.
    detector, camera : whose boxes are used.
    amplifiers : names along that axis; default, the DataArray's coordinate, else the camera's.

    Returns
    -------
    (..., amplifier, y, x) over ``camera.image_shape``, same dtype and unit, zero where `no_data` is set.

    Raises
    ------
    InconsistentGeometry
        Shape or names are not the camera's, or ``y``/``x`` is split.
    """
    data, lead = _unpack(raw, ("amplifier", "y", "x"))
    names = _names(raw, camera, amplifiers)
    _check_pixels(data, camera.raw_shape, f"{detector.name}: raw amplifier")
    layout = _layout(detector, names)
    if isinstance(data, da.Array):
        starts = np.concatenate([[0], np.cumsum(data.chunks[-3])])
        parts = [
            data[..., a:b, :, :].map_blocks(
                _trim,
                layout[a:b],
                camera.image_shape,
                chunks=(*data.chunks[:-3], (b - a,), *((n,) for n in camera.image_shape)),
                meta=np.empty((0,) * data.ndim, data.dtype),
            )
            for a, b in pairwise(starts)
        ]
        trimmed = da.concatenate(parts, axis=data.ndim - 3)
    else:
        trimmed = _trim(np.asarray(data), layout, camera.image_shape)
    return _repack(raw, trimmed, (*lead, "amplifier", "y", "x"), {"amplifier": list(names)})


def assemble(
    image: Array,
    detector: Detector,
    camera: Camera,
    *,
    fill: float | None = None,
    amplifiers: Sequence[str] | None = None,
) -> Array:
    """Amplifiers put in their places in the CCD; crosses the chunks of the amplifiers, lazily.

    Parameters
    ----------
    image : (..., amplifier, y, x) over ``camera.image_shape``, readout orientation.
    detector, camera : whose amplifiers they are.
    fill : value where an amplifier is missing; default NaN, 0 for integers.
    amplifiers : names along that axis; default, the DataArray's coordinate, else the camera's.

    Returns
    -------
    (..., y, x) over ``detector.shape``, same dtype and unit; y up, x along the serial direction.

    Raises
    ------
    InconsistentGeometry
        Shape or names are not the camera's, or ``y``/``x`` is split.
    """
    data, lead = _unpack(image, ("amplifier", "y", "x"))
    layout = _layout(detector, _names(image, camera, amplifiers))
    _check_pixels(data, camera.image_shape, f"{detector.name}: amplifier image")
    value = _fill(fill, data.dtype)
    ccd = _whole(data, 3, detector.shape, partial(_assemble, layout=layout, shape=detector.shape, fill=value))
    return _repack(image, ccd, (*lead, "y", "x"), {})


def split(ccd: Array, detector: Detector, camera: Camera, *, fill: float | None = None) -> Array:
    """Amplifiers cut out of an assembled CCD: the inverse of `assemble`, lazily.

    Parameters
    ----------
    ccd : (..., y, x) over ``detector.shape``.
    detector, camera : whose amplifiers they are.
    fill : value of the padding and of amplifiers the detector does not have; default NaN, 0 for integers.

    Returns
    -------
    (..., amplifier, y, x) over ``camera.image_shape``, readout orientation, same dtype and unit.

    Raises
    ------
    InconsistentGeometry
        Shape is not the detector's, or ``y``/``x`` is split.
    """
    data, lead = _unpack(ccd, ("y", "x"))
    _check_pixels(data, detector.shape, f"{detector.name}: CCD image")
    layout = _layout(detector, camera.amplifier_names)
    value, shape = _fill(fill, data.dtype), (len(layout), *camera.image_shape)
    image = _whole(data, 2, shape, partial(_split, layout=layout, shape=camera.image_shape, fill=value))
    return _repack(ccd, image, (*lead, "amplifier", "y", "x"), {"amplifier": list(camera.amplifier_names)})


def _fill(fill: float | None, dtype: np.dtype) -> float:
    return fill if fill is not None else (np.nan if dtype.kind == "f" else 0)


def _whole(data: Any, old: int, shape: tuple[int, ...], kernel: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Apply a kernel that turns the last ``old`` axes, whole, into axes of that shape."""
    if not isinstance(data, da.Array):
        return kernel(np.asarray(data))
    lead = data.ndim - old
    data = data.rechunk(dict.fromkeys(range(lead, data.ndim), -1))
    last = list(range(lead, data.ndim))
    return data.map_blocks(
        kernel,
        drop_axis=last,
        new_axis=list(range(lead, lead + len(shape))),
        chunks=(*data.chunks[:lead], *((n,) for n in shape)),
        meta=np.empty((0,) * (lead + len(shape)), data.dtype),
    )


def bin_ccd(ccd: np.ndarray, bin: int) -> np.ndarray:
    """Mean of the finite pixels of every ``bin`` x ``bin`` square; NaN where it has none.

    Parameters
    ----------
    ccd : (ny, nx); the last squares of a row or column may be incomplete.
    bin : pixels.

    Returns
    -------
    (ceil(ny / bin), ceil(nx / bin)) float, same unit.
    """
    edges = [np.arange(0, n, bin) for n in ccd.shape]
    good = np.isfinite(ccd)
    total, count = np.where(good, ccd, 0.0), good.astype(float)
    for axis, starts in enumerate(edges):
        total, count = (np.add.reduceat(a, starts, axis=axis) for a in (total, count))
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def mosaic(
    images: Mapping[str, np.ndarray], camera: Camera, bin: int = 1
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Binned CCDs on the focal plane, x to the right and y up.

    Parameters
    ----------
    images : detector name -> assembled CCD binned by `bin_ccd`.
    camera : the detectors belong to; its whole focal plane is shown.
    bin : pixels.

    Returns
    -------
    2-D array, NaN where there is no CCD, row 0 at the bottom; each CCD is placed to the nearest binned pixel.
    (left, right, bottom, top) of it, mm, for ``imshow(..., origin="lower", extent=...)``.

    Raises
    ------
    InconsistentGeometry
        Unknown detector, wrong shape, pixel sizes that differ, or a yaw that is no multiple of 90 degrees.
    """
    pitches = {d.pixel_mm for d in camera.detectors}
    if len(pitches) > 1:
        raise InconsistentGeometry(f"camera {camera.name}: pixels of {sorted(pitches)} mm: mosaics need one size")
    step = pitches.pop() * bin
    spans = {d.name: _span(d, step) for d in camera.detectors}
    left, bottom = (min(s[i] for s in spans.values()) for i in (0, 1))
    right, top = (max(s[i] + s[i + 2] * step for s in spans.values()) for i in (0, 1))
    nx, ny = round((right - left) / step) + 1, round((top - bottom) / step) + 1
    plane = np.full((ny, nx), np.nan)
    for name, image in images.items():
        if name not in spans:
            raise InconsistentGeometry(f"camera {camera.name} has no detector {name}: name the right camera")
        detector = camera.detector(name)
        expected = tuple(-(-n // bin) for n in detector.shape)
        if image.shape != expected:
            raise InconsistentGeometry(
                f"{name}: image is {image.shape}, binned by {bin} it must be {expected}: use bin_ccd"
            )
        # rows count upwards, so a turn against the clock is one with it for np.rot90
        turned = np.rot90(image, -round(detector.yaw_deg / 90))
        i, j = round((spans[name][1] - bottom) / step), round((spans[name][0] - left) / step)
        part = plane[i : i + turned.shape[0], j : j + turned.shape[1]]
        part[...] = np.where(np.isnan(turned), part, turned)
    return plane, (left, left + nx * step, bottom, bottom + ny * step)


def _span(detector: Detector, step: float) -> tuple[float, float, int, int]:
    """Left and bottom edge of a turned CCD, mm, and its size in binned pixels."""
    if detector.yaw_deg % 90:
        raise InconsistentGeometry(
            f"{detector.name}: yaw {detector.yaw_deg} is no multiple of 90 degrees: it cannot be in a mosaic"
        )
    ny, nx = detector.shape if detector.yaw_deg % 180 == 0 else detector.shape[::-1]
    x, y = detector.center_mm
    return (
        x - nx * detector.pixel_mm / 2,
        y - ny * detector.pixel_mm / 2,
        int(np.ceil(nx * detector.pixel_mm / step - 1e-9)),
        int(np.ceil(ny * detector.pixel_mm / step - 1e-9)),
    )
