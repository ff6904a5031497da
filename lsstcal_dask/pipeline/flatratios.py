"""What a CCD tells of contamination: its broadband flats of now over the ones that are expected (Sec. 2.8.2).

What a worker does of `contamination`, one CCD at a time, all bands of it at once.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.instrument.assembly import assemble, split
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.mapping import AmplifierResults, Opaque
from lsstcal_dask.products.contamination import Mote, compare_bands, find_dust
from lsstcal_dask.products.drift import PLAIN, Cells, Lamp, drift_maps, make_cells
from lsstcal_dask.products.synthesis import Task, synthesis_amplifiers
from lsstcal_dask.statistics.starlet import bin_weighted, spread
from lsstcal_dask.storage.products import Pointer, open_product
from lsstcal_dask.variables import NOTE

__all__ = ["Compared", "Dust", "cells_of", "dust_of", "factor_of", "plain"]


_WIDE: Final = 0.25  # of a CCD: what is shaded has no place, it is a ghost rather than dust


@dataclass(frozen=True, eq=False)
class Compared:
    """What is compared in a band."""

    band: str
    measured: Pointer
    reference: Pointer | None  # broadband flat of the epoch of the cube
    task: Task  # flats of the cube, of `drift_weights`
    made_of: dict[str, Any]  # what the cube was made from, and the filter


def plain(one: Compared) -> Compared:
    """What is compared without what is not known of the filter."""
    return replace(one, task=replace(one.task, weights=one.task.weights[:PLAIN]))


def cells_of(shared: Opaque, det: str) -> list[Cells]:
    """What a worker does in the first pass."""
    url, compared, cell = shared.value
    found = []
    for one in compared:
        camera = one.task.camera
        detector = camera.detector(det)
        ratio, variance, drift, *unknown = _ratio(url, one, detector)
        found.append(make_cells(ratio, variance, drift, _places(detector), cell, unknown))
    return found


def _places(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = detector.shape
    x, y = ccd_to_focal(detector, np.arange(nx), np.arange(ny)[:, None])
    return np.broadcast_to(x, (ny, nx)), np.broadcast_to(y, (ny, nx))


def _ratio(url: str, one: Compared, detector: Detector) -> list[np.ndarray]:
    """Measured over synthetic flat of a CCD (y, x), its variance, and the maps of `drift_maps`."""
    camera = one.task.camera
    measured = _open(url, one.measured, detector)
    reference = _open(url, one.reference, detector) if one.reference else None
    planes: list[np.ndarray] = []  # (amplifier, y, x) of each map
    for amplifier, flats in synthesis_amplifiers(one.task.open_slices(detector.name), detector, one.task):
        synthetic = flats.isel(spectrum=0)
        expected = synthetic if reference is None else reference.sel(amplifier=amplifier)
        ratio, variance = _quotient(measured.sel(amplifier=amplifier), expected)
        drift, unknown = drift_maps(flats["image"].values)
        good = np.isfinite(ratio) & (synthetic["mask"].values == 0) & np.isfinite(drift)
        maps = (ratio, variance, drift, *unknown)
        planes = planes or [np.full((len(camera.amplifier_names), *good.shape), np.nan, np.float32) for _ in maps]
        for plane, values in zip(planes, maps, strict=True):
            plane[camera.amplifier_names.index(amplifier)] = np.where(good, values, np.nan)
    return [np.asarray(assemble(plane, detector, camera, fill=np.nan)) for plane in planes]


def _open(url: str, flat: Pointer, detector: Detector) -> xr.Dataset:
    return open_product(url, flat.name, flat.version, chunked=False).sel(detector=detector.name)


def _quotient(measured: xr.Dataset, expected: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Ratio (y, x) of two flats of an amplifier, and its variance; NaN where one of them is not good."""
    a, b = (flat["image"].values.astype(float) for flat in (measured, expected))
    good = (measured["mask"].values == 0) & (expected["mask"].values == 0) & (a > 0) & (b > 0)
    ratio = np.divide(a, b, out=np.full(good.shape, np.nan), where=good)
    noise = measured["variance"].values + ratio**2 * expected["variance"].values
    return ratio, np.divide(noise, b**2, out=np.full(good.shape, np.nan), where=good)


@dataclass(frozen=True)
class Dust:
    """Dust of a CCD in one band."""

    packed: bytes  # its factor (amplifier, y, x) float32, by zlib: 1 nearly everywhere
    remarks: list[str]


def dust_of(shared: Opaque, det: str) -> list[Dust]:
    """What a worker does in the second pass, for one CCD: every band is compared once, for all of them."""
    url, compared, lamps, config = shared.value
    camera = compared[0].task.camera
    detector = camera.detector(det)
    found, changes, variances = [], [], []
    for one, lamp in zip(compared, lamps, strict=True):
        ratio, variance, drift = _ratio(url, plain(one), detector)
        expected = _expected(lamp, drift, detector, config.cell)
        found.append(find_dust(ratio, variance, expected, config)[0])
        factor = np.exp(-expected)
        changes.append(ratio * factor - 1)
        variances.append(variance * factor**2)
    factors, motes = compare_bands(np.array(changes), np.array(variances), np.array(found), config)
    bands = [one.band for one in compared]
    planes = [np.asarray(split(factor, detector, camera), np.float32) for factor in factors]
    return [
        Dust(
            zlib.compress(own.tobytes(), 1), [*_unseen(change, detector, camera), *_remarks(motes, bands, change.size)]
        )
        for i, (own, change) in enumerate(zip(planes, changes, strict=True))
    ]


def factor_of(source: xr.Dataset, camera: Camera, found: Opaque) -> AmplifierResults:
    """The factor of a CCD as it is stored; raises what kept it from being found."""
    dust = found.value
    if isinstance(dust, Exception):
        raise dust
    detector = camera.detector(str(source["detector"].values))
    planes = np.frombuffer(zlib.decompress(dust.packed), np.float32)
    planes = planes.reshape(len(camera.amplifier_names), *camera.image_shape)
    for i, amplifier in enumerate(detector.amplifiers):
        image = planes[camera.amplifier_names.index(amplifier.name)]
        result = xr.Dataset({"image": (("y", "x"), image)})
        yield amplifier.name, result.assign_attrs(of_detector=dust.remarks if i == 0 else [], summary={})


def _expected(lamp: Lamp, drift: np.ndarray, detector: Detector, cell: int) -> np.ndarray:
    """Logarithm of the change (y, x) that lamp and drift make; both are smooth over a cell."""
    ones = np.where(np.isfinite(drift), 1.0, np.nan)
    moved, _ = bin_weighted(drift, ones, cell)
    moved = np.where(np.isfinite(moved), moved, np.nanmedian(moved) if np.isfinite(moved).any() else 0.0)
    x, y = (bin_weighted(at, np.ones(at.shape), cell)[0] for at in _places(detector))
    return spread(lamp.at(x, y, moved), cell, detector.shape)


def _unseen(change: np.ndarray, detector: Detector, camera: Camera) -> list[str]:
    """Where a CCD (y, x) could not be compared at all: there the factor is one, for want of anything better."""
    known = np.isfinite(split(change, detector, camera, fill=np.nan)).any(axis=(1, 2))
    blind = [one.name for one in detector.amplifiers if not known[camera.amplifier_names.index(one.name)]]
    if not blind:
        return []
    where = "the CCD" if len(blind) == len(detector.amplifiers) else ", ".join(blind)
    return [f"{where} could not be compared, in its flat or in the cube nothing is known: taken to be clean"]


def _remarks(motes: Sequence[Mote], bands: Sequence[str], size: int) -> list[str]:
    """How many pieces of dust of each kind; those that are not gray one by one, for nothing corrects them."""
    kinds = [mote.kind for mote in motes]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    found = [f"{NOTE}dust: {told}"] if motes else []
    for mote in motes:
        if mote.kind == "chromatic":
            seen = ", ".join(f"{100 * c:+.2f} % in {b}" for c, b in zip(mote.change, bands, strict=True))
            part = mote.area / size
            where = f"over {100 * part:.0f} %" if part > _WIDE else f"at pixel ({mote.x:.0f}, {mote.y:.0f})"
            found.append(f"not gray {where} of the CCD: {seen}: left uncorrected")
    return found
