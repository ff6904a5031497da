"""Products out as files of Rubin's software, to the last bit what an import makes of them (§2-§5).

What was imported from such files comes out as it was delivered.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.pipeline.exchange import BESIDE, check_product
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.storage.delivered import kept
from lsstcal_dask.storage.products import Pointer, list_products, open_product
from lsstcal_dask.storage.rubin.coupling import write_crosstalk
from lsstcal_dask.storage.rubin.covariance import write_transfer
from lsstcal_dask.storage.rubin.defects import write_defects
from lsstcal_dask.storage.rubin.files import FORMATS, location, redate, write_file
from lsstcal_dask.storage.rubin.linearizer import write_linearizer
from lsstcal_dask.storage.rubin.ptc import PhotonTransfer, write_ptc

__all__ = ["Exported", "export_product"]


@dataclass(frozen=True)
class Exported:
    """What was written of which version."""

    pointer: Pointer
    files: list[Path]
    remarks: list[str] = field(default_factory=list)


def export_product(store: Store, product: str, folder: str | Path, form: str = "ecsv", version: str = "") -> Exported:
    """Write a product as Rubin's files, where Rubin's repositories have them: ``<kind>/<detector>/<date>.<form>``.

    Gains are in files as those of photon transfer curves, without matrices; their kind is ``gain``, so that both have a
    place in one folder.

    Parameters
    ----------
    product : of `exchange.EXCHANGED` or `exchange.OF_FILES`.
    form : of `FORMATS`; crosstalk has ECSV only, saturation, which Rubin has no file for, a plain table.
    version : the one that was made last by default.

    Raises
    ------
    WrongUse
        No such product or format.
    CalibrationError
        The product is not there.
    """
    check_product(product)
    if form not in FORMATS:
        raise WrongUse(f"unknown format {form!r}: choose from {', '.join(FORMATS)}")
    if form != "ecsv" and product == "crosstalk":
        raise WrongUse("crosstalk is written as ecsv only")
    found = [p for p in list_products(store.url, product) if version in ("", p.version)]
    if not found:
        which = f"version {version} of {product}" if version else f"product {product}"
        raise CalibrationError(f"{store.url} has no {which}: see 'lsstcal ls {store.url}'")
    pointer = max(found, key=lambda p: p.created)
    dataset = open_product(store.url, product, pointer.version, chunked=False)
    if product == "saturation":
        path = Path(folder, f"saturation.{form}")
        _write_channels(path, dataset, store.camera, pointer)
        return Exported(pointer, [path])
    files, remarks = [], []
    for name in pointer.detectors:
        place = (store.camera, store.camera.detector(name))
        if given := _delivered(store, pointer, place, (Path(folder), form)):
            files += given
            continue
        files += _write(product, dataset.sel(detector=name), place, (Path(folder), pointer.valid_from, form))
    if any(path.name.endswith(BESIDE[1]) for path in files):
        remarks.append(f"what Rubin's files of crosstalk have no place for is in files {BESIDE[1]} beside them")
    return Exported(pointer, files, remarks)


def _write(product: str, own: xr.Dataset, place: tuple[Camera, Detector], where: tuple[Path, str, str]) -> list[Path]:
    """Write one CCD."""
    camera, detector = place
    folder, date, form = where
    if product == "defects":
        return write_defects(folder, own["mask"].values, own["defect_kind"].values, place, date, form)
    path = _path(folder, product, detector, date, form)
    if product == "gain":
        names = sorted(str(name) for name, array in own.data_vars.items() if array.dims == ("amplifier",))
        count = len(detector.amplifiers)
        unknown = np.full(count, np.nan)
        nothing = np.full((count, 1, 1), np.nan)
        write_ptc(path, PhotonTransfer(detector.name, own[names], unknown, unknown, nothing), camera, date)
    elif product == "ptc":
        write_transfer(path, own, place, date)
    elif product == "linearity":
        write_linearizer(path, own, place, date)
    else:
        return write_crosstalk(path, own, place, date)
    return [path]


def _path(folder: Path, product: str, detector: Detector, date: str, form: str) -> Path:
    return location(folder, "linearizer" if product == "linearity" else product, detector.name, date, form)


def _delivered(store: Store, pointer: Pointer, place: tuple[Camera, Detector], where: tuple[Path, str]) -> list[Path]:
    """Write the files of one CCD that were delivered in this format, as they are; none where none were kept.

    A file whose product was given another start of validity than it says gets that date; where another file says
    that it belongs to it, it cannot.
    """
    (_, detector), (folder, form) = place, where
    rows = [row for row in pointer.inputs.get("files", []) if row.get("detector") == detector.name]
    if not rows or rows[0]["kept"][0].lower() != f".{form}":
        return []
    same = rows[0]["date"] == pointer.valid_from
    if not same and (form == "yaml" or len(rows[0]["kept"]) > 1):
        return []
    path = _path(folder, pointer.name, detector, pointer.valid_from, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in BESIDE if pointer.name == "crosstalk" else ():
        path.with_suffix(ending).unlink(missing_ok=True)
    written = []
    for ending, data in kept(store.url, pointer.name, rows[0]).items():
        written.append(path.with_suffix(ending.lower()))
        written[-1].write_bytes(data)
    if not same:
        redate(path, pointer.valid_from)
    return written


def _write_channels(path: Path, dataset: xr.Dataset, camera: Camera, pointer: Pointer) -> None:
    """Write a table with one row for each channel."""
    places = [(d, a.name) for d in pointer.detectors for a in camera.detector(d).amplifiers]
    table = Table({"detector": [d for d, _ in places], "amplifier": [a for _, a in places]})
    at = {
        "detector": xr.DataArray([d for d, _ in places], dims="row"),
        "amplifier": xr.DataArray([a for _, a in places], dims="row"),
    }
    for name in sorted(map(str, dataset.data_vars)):
        table[name] = dataset[name].sel(at).values
        table[name].unit = dataset[name].attrs.get("units") or None
    table.meta = {"input": "¶7", "CALIBDATE": pointer.valid_from}
    write_file(path, table)
