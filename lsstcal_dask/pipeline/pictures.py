"""Pictures of what is in a store, each product by what says most of it."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import trim
from lsstcal_dask.pipeline.calibrate import find_calibrated
from lsstcal_dask.pipeline.lineage import outdated_slices
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.storage.cubelayout import list_cubes
from lsstcal_dask.storage.cubes import open_cube, read_cube
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.products import Pointer, list_products, open_product
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.verify.charts import curves_picture, matrix_picture, spectrum_picture
from lsstcal_dask.verify.display import picture

__all__ = ["show_picture"]

_MAIN: Final = {
    "gain": ("gain",),
    "ptc": ("gain",),
    "continuity": ("gain_relative",),
    "muons": ("gain_muons",),
    "linearity": ("linearity_correction",),
    "defects": ("defect_kind",),
    "deferred": ("serial_cti", "offset_amplitude"),
    "saturation": ("well_bloom", "well_serial", "well_adc", "ptc_turnoff", "linearity_turnoff"),
    "spots": ("spot_level",),
    "crosstalk": ("crosstalk",),
}
"""Variables that a product is shown by, the first that has a value; ``image`` where nothing is said."""

_MATRIX: Final = {"detector", "amplifier", "source"}
_SHOWN: Final = ({"detector", "amplifier"}, {"detector", "amplifier", "y", "x"}, _MATRIX)
_CURVES: Final = ("linearity_correction",)
_STEP: Final = 1.0  # nm, of a cube that has one slice
_OF_EXPOSURES: Final = ("spot_level", "background")  # of which the largest is shown


def show_picture(store: Store, what: str, output: Path | None, choice: dict[str, Any]) -> Path:
    """Write a picture of a product or an exposure.

    Parameters
    ----------
    what : name of a product or of a cube, or an exposure id.
    output : path; named after what is shown by default.
    choice : ``variable``, ``version``, ``detector``, ``amplifier`` (str or None), ``raw`` (bool), and ``wavelength``
        (nm or None) of the slice of a cube.

    Raises
    ------
    CalibrationError
        There is no such product, exposure or variable.
    """
    if what in list_cubes(store.url):
        if choice["variable"] == "response":
            return _spectrum(store, what, output)
        dataset, title = _slice(store, what, choice.get("wavelength"))
    elif what in {record[0] for record in read_records(store.url)}:
        dataset, title = _exposure(store, what, choice["raw"])
    else:
        dataset, title = _product(store, what, choice["version"])
    name = choice["variable"] or _main(what, dataset)
    good = sorted(str(v) for v in dataset.data_vars if _can_be_shown(dataset[v]))
    if name not in good:
        raise CalibrationError(f"{title} has no picture of {name!r}: choose --variable from {', '.join(good)}")
    parts = [what, None if name == "image" else name, choice["detector"], choice["amplifier"]]
    path = output or Path("_".join(str(part) for part in parts if part) + ".png")
    return _draw(store, dataset, name, path, f"{title}, {name}", choice)


def _main(what: str, dataset: xr.Dataset) -> str:
    """Variable by which something is shown; one that has a value, if there is one."""
    wanted = (*_MAIN.get(what, ()), "image", "counts", "flat")
    there = [name for name in wanted if name in dataset]
    known = [name for name in there if name in _MAIN.get(what, ()) and bool(dataset[name].notnull().any())]
    return next(iter([*known, *there]), "")


def _can_be_shown(values: xr.DataArray) -> bool:
    special = (*_CURVES, *_OF_EXPOSURES)
    return values.name in special or (set(values.dims) in _SHOWN and values.dtype.kind in "iuf")


def _draw(store: Store, dataset: xr.Dataset, name: str, path: Path, title: str, choice: dict[str, Any]) -> Path:
    """Picture of a variable, as what it is: a map, curves or a matrix."""
    values, dims = dataset[name], set(dataset[name].dims)
    if name in _OF_EXPOSURES:
        values = values.max("exposure", keep_attrs=True).assign_attrs(long_name=f"largest of the exposures: {name}")
    if name not in _CURVES and dims != _MATRIX:
        own = {key: choice[key] for key in ("detector", "amplifier")}
        return picture(values, store.camera, path, title=title, **own)
    dataset = _of_detector(dataset, choice, title)
    if dims == _MATRIX:
        return matrix_picture(dataset[name], path, title)
    return curves_picture(dataset["linearity_level"], dataset["linearity_correction"], path, title)


def _of_detector(dataset: xr.Dataset, choice: dict[str, Any], title: str) -> xr.Dataset:
    """What belongs to the CCD or amplifier that was chosen; couplings to sources of the CCD itself."""
    name = choice["detector"]
    if name is None:
        return dataset
    if name not in dataset["detector"].values:
        raise CalibrationError(f"{title} has no detector {name}: see 'lsstcal ls'")
    dataset = dataset.sel(detector=[name])
    if choice["amplifier"] is not None:
        if choice["amplifier"] not in dataset["amplifier"].values:
            raise CalibrationError(f"{name} has no amplifier {choice['amplifier']}: leave --amplifier out")
        dataset = dataset.sel(amplifier=[choice["amplifier"]])
    if "source" in dataset.dims:
        dataset = dataset.sel(source=[s for s in dataset["source"].values if str(s).startswith(f"{name}/")])
    return dataset


def _product(store: Store, name: str, version: str | None) -> tuple[xr.Dataset, str]:
    found = [p for p in list_products(store.url, name) if version in (None, p.version)]
    if not found:
        which = f"version {version} of {name}" if version else f"product or exposure {name!r}"
        raise CalibrationError(f"{store.url} has no {which}: see 'lsstcal ls {store.url}'")
    pointer = max(found, key=lambda p: p.created)
    dataset = open_product(store.url, name, pointer.version, chunked=False)
    dataset = dataset.sel(detector=list(pointer.detectors))
    title = f"{name} {pointer.version} ({_verdict(store, pointer)}), valid from {pointer.valid_from}"
    return dataset, title


def _slice(store: Store, name: str, wavelength: float | None) -> tuple[xr.Dataset, str]:
    """The slice of a cube that is nearest to a wavelength (nm); the middle one where none is said.

    Raises
    ------
    CalibrationError
        The wavelength is more than a step beyond the cube.
    """
    found = open_cube(store.url, name)
    at = found["wavelength"].values
    step = float(np.median(np.diff(at))) if len(at) > 1 else _STEP
    if wavelength is not None and not at[0] - step <= wavelength <= at[-1] + step:
        raise CalibrationError(
            f"cube {name} has no slice near {wavelength:g} nm: choose --wavelength from {at[0]:.1f} to {at[-1]:.1f}"
        )
    k = len(at) // 2 if wavelength is None else int(np.argmin(np.abs(at - wavelength)))
    slot = read_cube(store.url, name).pointer.slots[k]
    found = found[["flat", "mask"]].isel(wavelength=k)
    found = found.sel(detector=[d for d in found["detector"].values if str(d) not in slot.missing])
    old = outdated_slices(store.url, name, [slot], read_upstream(store.url)).get(slot.slot, "")
    return found, f"cube {name} at {slot.wavelength:.2f} nm ({f'OUTDATED, {old}' if old else slot.verdict})"


def _spectrum(store: Store, name: str, output: Path | None) -> Path:
    found = open_cube(store.url, name)
    title = f"cube {name}, mean response of the focal plane"
    return spectrum_picture(found["response"], found["response_error"], output or Path(f"{name}_response.png"), title)


def _verdict(store: Store, pointer: Pointer) -> str:
    return "OUTDATED" if pointer.version in read_upstream(store.url).outdated else pointer.verdict


def _exposure(store: Store, exposure: str, raw: bool) -> tuple[xr.Dataset, str]:
    if not raw:
        pointer = find_calibrated(store, exposure)
        dataset = open_product(store.url, pointer.name, pointer.version, chunked=False)
        title = f"{exposure}, calibrated ({_verdict(store, pointer)})"
        return dataset.sel(detector=list(pointer.detectors)), title
    # Dask arrays, so that a picture of the focal plane reads one CCD at a time.
    frames = open_raw(store.url, store.camera, exposures=[exposure]).isel(exposure=0)
    frames = frames.isel(detector=np.flatnonzero(frames["present"].values))
    parts = []
    for name in (str(value) for value in frames["detector"].values):
        counts = frames["counts"].sel(detector=name).astype(np.float32)
        parts.append(trim(counts, store.camera.detector(name), store.camera))
    counts = xr.concat(parts, "detector", coords="minimal", compat="override").assign_attrs(frames["counts"].attrs)
    return xr.Dataset({"counts": counts}), f"{exposure}, {frames['exposure_type'].values}, raw"
