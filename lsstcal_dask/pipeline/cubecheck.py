"""What acceptance looks at of a cube: numbers of each slice of a CCD, from markers and small arrays (¶9, Sec. 2.8)."""

from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import Detector
from lsstcal_dask.pipeline.lineage import outdated_slices
from lsstcal_dask.pipeline.upstream import Upstream
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.cubearrays import read_sums
from lsstcal_dask.storage.cubelayout import Cube, base, list_cubes, list_pointers, read_cube
from lsstcal_dask.storage.cubes import CubeReader
from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.acceptance import Product
from lsstcal_dask.verify.flats import CUBE

__all__ = ["cube_product", "cube_table", "published_cubes"]

_UNUSABLE = MASK_BITS["NO_DATA"] | MASK_BITS["BAD"]


def published_cubes(url: str) -> dict[str, int]:
    """Number of the last publication of every cube of a store, by its name among products."""
    return {f"{CUBE} {name}": found[-1].number for name in list_cubes(url) if (found := list_pointers(url, name))}


def cube_product(url: str, name: str, upstream: Upstream) -> Product:
    """What is to be known of a cube, as of a product."""
    cube = read_cube(url, name.removeprefix(f"{CUBE} "))
    pointer, old = cube.pointer, outdated_slices(url, cube.name, cube.pointer.slots, upstream)
    there = np.asarray(cube.present.any(axis=1))
    told = [f"{one.wavelength:.1f} nm: {remark}" for one in pointer.slots for remark in one.remarks]
    told += [f"{one.wavelength:.1f} nm: {det}: {why}" for one in pointer.slots for det, why in one.missing.items()]
    times = sorted(one.time for one in pointer.slots)
    why = f"{len(old)} slices, as one {next(iter(old.values()))}" if old else ""
    return Product(
        name=name,
        version=str(pointer.number),
        verdict="PASS" if all(one.verdict == "PASS" for one in pointer.slots) else "WARN",
        created=pointer.created,
        valid_from=times[0] if times else "",
        valid_until="",
        detectors=tuple(det for det, any_slice in zip(cube.layout.detectors, there, strict=True) if any_slice),
        failed={},
        remarks=(*pointer.remarks, *told),
        outdated=why,
        exposures=tuple(sorted({exposure for one in pointer.slots for exposure in one.exposures})),
        made_with=(),
        configuration=pointer.configuration,
        software=pointer.software,
    )


def cube_table(url: str, name: str, number: int, detector: Detector) -> xr.Dataset:
    """Numbers of the slices of a CCD.

    Returns
    -------
    ``present``, ``signal_to_noise``, ``chi2``, ``photodiode_scatter`` and ``wavelength_offset`` (amplifier,
    wavelength), and ``masked`` (amplifier), with the amplifiers of the CCD in its own order; NaN where not known.
    """
    cube = read_cube(url, name.removeprefix(f"{CUBE} "), number)
    reader = CubeReader(cube, detector.name, block=1)
    names = [a.name for a in detector.amplifiers]
    own = [cube.layout.amplifiers.index(one) for one in names]
    markers = [_marker(cube, int(slot), detector.name) for slot in cube.slots]
    shape = (len(own), len(cube.slots))
    scatter = np.array([_scatter(marker.get("ratios", {})) for marker in markers])
    offset = np.array([one.wavelength - one.nominal for one in cube.pointer.slots])
    columns = {
        "present": np.isfinite(reader.scale[:, own]).T,
        "signal_to_noise": _signal_to_noise(cube, reader)[own],
        "chi2": np.array([_numbers(marker.get("chi2"), len(cube.layout.amplifiers)) for marker in markers])[:, own].T,
        "photodiode_scatter": np.broadcast_to(scatter, shape),
        "wavelength_offset": np.broadcast_to(offset, shape),
    }
    found: dict[str, Any] = {key: (("amplifier", "wavelength"), values) for key, values in columns.items()}
    found["masked"] = (("amplifier",), _masked(reader, detector, own))
    return xr.Dataset(found, coords={"amplifier": names})


def _marker(cube: Cube, slot: int, detector: str) -> dict[str, Any]:
    try:
        return dict(objects.read_json(cube.url, f"{base(cube.name)}/done/{slot:05d}/{detector}.json"))
    except FileNotFoundError:
        return {}


def _numbers(given: list[float | None] | None, size: int) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in given or [None] * size], float)


def _scatter(ratios: dict[str, float]) -> float:
    """Relative standard deviation of level over photodiode among repeats; NaN of one."""
    values = np.array(list(ratios.values()), float)
    return float(np.std(values, ddof=1) / np.mean(values)) if values.size > 1 else float("nan")


def _signal_to_noise(cube: Cube, reader: CubeReader) -> np.ndarray:
    """Mean value of the good pixels over the error of one, (amplifier, wavelength)."""
    total, pixels = (values[reader.index] for values in read_sums(cube.url, cube.name, cube.slots.tolist()))
    value = np.divide(total, pixels, out=np.full(total.shape, np.nan), where=pixels > 0)
    variance = reader.variance_slope.T * value + reader.variance_floor.T
    return np.divide(value, np.sqrt(variance), out=np.full(value.shape, np.nan), where=variance > 0)


def _masked(reader: CubeReader, detector: Detector, own: list[int]) -> np.ndarray:
    """Part of the pixels of each amplifier that are bad, or nothing, at all wavelengths."""
    found = []
    for place, amplifier in zip(own, detector.amplifiers, strict=True):
        ny, nx = amplifier.data.shape
        found.append(float((reader.mask([place])[0][:ny, :nx] & _UNUSABLE != 0).mean()))
    return np.array(found)
