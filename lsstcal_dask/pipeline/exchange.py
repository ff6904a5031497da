"""Deliverables of the camera team become products: Rubin's files and plain tables (¶2, ¶3, ¶5-¶7; §2-§5).

An import publishes a version of a product with ``origin`` camera_team, valid from the CALIBDATE of its files on; their
names and hashes are its inputs. Nothing is published if anything is wrong with one of the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from scipy.interpolate import Akima1DInterpolator

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, WrongUse
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.pipeline.build import Built, Validity, run_version
from lsstcal_dask.pipeline.levels import LEVELS, complete_levels
from lsstcal_dask.pipeline.plausible import check_numbers, doubts
from lsstcal_dask.pipeline.reading import read_delivery, start_of
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.delivered import keep
from lsstcal_dask.storage.deliveries import DELIVERED, source_names
from lsstcal_dask.storage.products import CAMERA_TEAM, Pointer, Template, list_products
from lsstcal_dask.storage.provenance import hash_file, software
from lsstcal_dask.storage.rubin.coupling import read_together
from lsstcal_dask.storage.rubin.defects import DefectList, defect_masks
from lsstcal_dask.storage.rubin.files import RubinFile
from lsstcal_dask.storage.tables import input_names, read_input
from lsstcal_dask.variables import DEFECT_KINDS, NOTE

__all__ = ["BESIDE", "EXCHANGED", "KEPT", "OF_FILES", "check_product", "import_all", "import_files", "import_inputs"]

EXCHANGED: Final = tuple(DELIVERED)
"""Products that can be imported of plain tables, too."""

OF_FILES: Final = ("ptc",)
"""Products that can be imported from Rubin's files alone."""

KEPT: Final = ("gain", "linearity", "crosstalk", "ptc")
"""Products of which Rubin's files, one for each CCD, are kept as they were delivered."""

BESIDE: Final = (".ic.ecsv", ".sources.fits")
"""Files of crosstalk that are read with the one they stand beside."""

_ALWAYS: Final = "1970-01-01T00:00:00"
"""Start of validity of the tables of a store, which name no date."""

_SLOPE: Final = 1e-3
"""Slope of a curve at zero beyond which a gain of another gauge is off by more than is allowed (0.1 %, ¶2)."""


@dataclass
class _Delivery:
    """What files say, by CCD, and what tells these files from others."""

    values: dict[str, Any] = field(default_factory=dict)  # Dataset over amplifiers, or lists of defects
    files: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, list[Path]] = field(default_factory=dict)  # by hash, of files of one CCD that are to be kept
    dates: set[str] = field(default_factory=set)
    upstream: dict[str, dict[str, str]] = field(default_factory=dict)  # products of the store that were used

    def add(self, name: str, value: Any, file: RubinFile) -> None:
        """Take what a file says of a CCD, if it can be; several lists of defects of a CCD add up."""
        if isinstance(value, xr.Dataset):
            check_numbers(value, file.path, name)
        if isinstance(value, list) and name in self.values:
            self.values[name] += value
        elif name in self.values:
            raise InconsistentGeometry(f"{file.path}: {name} is in another file too: name one of them")
        else:
            self.values[name] = value

    def record(self, file: RubinFile, product: str = "", detector: str = "") -> None:
        """Remember a file: the end of its path, its hash, its date; where it is of one CCD, which, to keep it."""
        row: dict[str, Any] = {"name": "/".join(Path(file.path).parts[-2:]), "hash": file.hash}
        date = start_of(str(file.entry("CALIBDATE")), file.path) if file.entry("CALIBDATE") else ""
        if detector:
            row |= {"detector": detector, "date": date}
            self.paths[file.hash] = read_together(file.path) if product == "crosstalk" else [Path(file.path)]
        self.files.append(row)
        if date:
            self.dates.add(date)


def check_product(product: str, known: Sequence[str] = EXCHANGED + OF_FILES) -> None:
    """Refuse a product that cannot be imported, exported or compared; raises WrongUse."""
    if product not in known:
        raise WrongUse(f"unknown product {product!r} to exchange: choose from {', '.join(known)}")


def import_files(
    store: Store,
    product: str,
    files: Sequence[str],
    compute: Compute,
    *,
    validity: Validity = Validity(),
    progress: bool = False,
) -> Built:
    """Publish what files of the camera team say as a version of a product.

    Parameters
    ----------
    product : of `EXCHANGED` or `OF_FILES`.
    files : Rubin's files, one for each CCD, or plain tables; see `lsstcal_dask.storage`.
    validity : from the latest CALIBDATE of the files on, unless said otherwise.

    Raises
    ------
    WrongUse
        No such product, or no file.
    """
    check_product(product)
    if not files:
        raise WrongUse(f"{product}: name files to import")
    delivery, errors = _Delivery(), []
    for path in (path for path in map(str, files) if not path.endswith(BESIDE)):
        try:
            file = None
            for name, value, file in read_delivery(product, path, store, delivery.upstream):
                delivery.add(name, value, file)
            if file is not None:
                delivery.record(file, product, name if product in KEPT and file.entry("OBSTYPE") else "")
        except CalibrationError as error:
            errors.append(str(error))
    if errors:
        return Built(None, errors=errors)
    start = validity.valid_from or max(delivery.dates, default="")
    if not start:
        return Built(None, errors=[f"{product}: the files have no CALIBDATE: give --valid-from"])
    return _publish(store, product, delivery, Validity(start, validity.valid_until), (compute, progress))


def import_inputs(
    store: Store,
    compute: Compute,
    *,
    names: Sequence[str] = EXCHANGED,
    validity: Validity = Validity(),
    progress: bool = False,
) -> Iterator[tuple[str, Built]]:
    """Publish what the tables ``inputs/`` of a store say of products, of those named that are there.

    Raises
    ------
    WrongUse
        One of them is made of no table.
    CalibrationError
        There is none.
    """
    for name in names:
        check_product(name, EXCHANGED)
    wanted = [name for name in EXCHANGED if name in names]
    there = [name for name in wanted if name in input_names(store.url)]
    if not there:
        raise CalibrationError(f"{store.url} has no tables {', '.join(wanted)} among its inputs: import files")
    for name in there:
        try:
            yield name, _import_input(store, name, validity, (compute, progress))
        except CalibrationError as error:
            yield name, Built(None, errors=[str(error)])


def import_all(
    store: Store, product: str | None, files: Sequence[str], compute: Compute, **settings: Any
) -> Iterator[tuple[str, Built]]:
    """Import files of a product, or without files the inputs of the store, all or of that product; see there."""
    if product is None or not files:
        yield from import_inputs(store, compute, names=(product,) if product else EXCHANGED, **settings)
    else:
        yield product, import_files(store, product, files, compute, **settings)


def _import_input(store: Store, name: str, validity: Validity, run: tuple[Compute, bool]) -> Built:
    data = objects.read_bytes(store.url, f"inputs/{name}.ecsv")
    file = RubinFile(f"inputs/{name}.ecsv", [read_input(store.url, name)], hash_file(data))
    delivery = _Delivery()
    for detector, value in DELIVERED[name](file, store.camera).items():
        delivery.add(detector, value, file)
    delivery.record(file)
    start = validity.valid_from or max(delivery.dates, default=_ALWAYS)
    return _publish(store, name, delivery, Validity(start, validity.valid_until), run)


def _publish(store: Store, product: str, delivery: _Delivery, validity: Validity, run: tuple[Compute, bool]) -> Built:
    if validity.valid_until and validity.valid_until <= validity.valid_from:
        raise WrongUse(f"{product}: --valid-until {validity.valid_until} is not later than {validity.valid_from}")
    values = {d.name: delivery.values[d.name] for d in store.camera.detectors if d.name in delivery.values}
    inputs: dict[str, Any] = {"upstream": delivery.upstream} if delivery.upstream else {}
    if product == "saturation":
        values, inputs["delivers"], upstream = complete_levels(
            store.url, list_products(store.url), values, validity.valid_from
        )
        inputs |= {"upstream": upstream} if upstream else {}
    template = _template(store, product, values)
    files = [
        row
        | ({"kept": keep(store.url, product, delivery.paths[row["hash"]], row["hash"])} if "detector" in row else {})
        for row in delivery.files
    ]
    pointer = Pointer(
        name=product,
        valid_from=validity.valid_from,
        valid_until=validity.valid_until,
        inputs={"files": sorted(files, key=lambda row: (row["name"], row["hash"])), **inputs},
        configuration={},
        software=software(),
        failed={},
        remarks=[f"{NOTE}of the camera team: {len(delivery.files)} {'file' if len(delivery.files) == 1 else 'files'}"],
        origin=CAMERA_TEAM,
    )
    source = xr.Dataset(coords={"detector": list(values), "amplifier": list(store.camera.amplifier_names)})
    make = _defects if product == "defects" else _numbers
    work = {
        name: (make, (store.camera.detector(name), store.camera, value, template)) for name, value in values.items()
    }
    compute, progress = run
    return run_version(store.url, pointer, template, source, work, compute, progress)


def _template(store: Store, product: str, values: Mapping[str, Any]) -> Template:
    camera = store.camera
    sizes = {"detector": len(values), "amplifier": len(camera.amplifier_names)}
    coords: dict[str, tuple[tuple[str, ...], Any]] = {
        "detector": (("detector",), list(values)),
        "amplifier": (("amplifier",), list(camera.amplifier_names)),
    }
    if product == "defects":
        outputs = {"mask": Output("uint16"), "defect_kind": Output("uint16")}
        sizes |= dict(zip(("y", "x"), camera.image_shape, strict=True))
        return Template(outputs, sizes, coords, {"product": product})
    found = {str(name): array for value in values.values() for name, array in value.data_vars.items()}
    outputs = {name: Output("float64", array.attrs.get("units", "")) for name, array in found.items()}
    if product == "saturation":
        outputs = {f"{name}{end}": Output("float64", "electron") for name in LEVELS for end in ("", "_error")} | outputs
    if product == "linearity":
        sizes["node"] = max(value.sizes["node"] for value in values.values())
    for lag in ("lag_y", "lag_x") if product == "ptc" else ():
        sizes[lag] = max(value.sizes[lag] for value in values.values())
    if product == "crosstalk":
        coords["source"] = (("source",), np.array(source_names(camera), object))
        sizes["source"] = len(source_names(camera))
    return Template(outputs, sizes, coords, {"product": product})


def _numbers(
    part: xr.Dataset, detector: Detector, camera: Camera, value: xr.Dataset, template: Template
) -> AmplifierResults:
    """Numbers of each amplifier: as they were delivered, padded with NaN; sources that are not listed as said."""
    if "source" in template.sizes:
        value = _all_sources(value, np.asarray(template.coords["source"][1], object))
    for dim in (dim for dim in ("node", "lag_y", "lag_x") if dim in template.sizes):
        value = value.pad({dim: (0, template.sizes[dim] - value.sizes[dim])})
    for amplifier in detector.amplifiers:
        own = value.sel(amplifier=amplifier.name, drop=True).drop_vars("source", errors="ignore")
        missing = {n: np.nan for n in template.outputs if n not in own}
        result = own.assign(missing)
        remarks = doubts(own, amplifier) + (_gauge(own) if "linearity_level" in own else [])
        result.attrs = {"remarks": remarks, "summary": {}}
        yield amplifier.name, result


def _all_sources(value: xr.Dataset, sources: np.ndarray) -> xr.Dataset:
    full = value.reindex(source=list(sources))
    unlisted = ~np.isin(sources.astype(str), [str(name) for name in value["source"].values])
    fill = float(value.attrs["unlisted"])
    for name in map(str, full.data_vars):
        if not name.endswith("error"):
            full[name] = full[name].where(~xr.DataArray(unlisted, dims="source"), fill)
    return full


def _gauge(own: xr.Dataset) -> list[str]:
    """Remark on a curve that is not level at zero: its gauge is another than L'(0) = 1."""
    level, correction = own["linearity_level"].values, own["linearity_correction"].values
    known = np.isfinite(level)
    if not known.any():
        return ["it has no curve: its pixels cannot be calibrated with linearity"]
    if not correction[known].any():
        return [f"{NOTE}its curve is level: nothing is corrected"]
    slope = float(Akima1DInterpolator(level[known], correction[known])(0.0, nu=1))
    if abs(slope) <= _SLOPE:
        return []
    return [f"its curve has the slope {slope:.2g} at 0 adu, not 0: use it with a gain that was measured with it"]


def _defects(
    part: xr.Dataset, detector: Detector, camera: Camera, value: list[DefectList], template: Template
) -> AmplifierResults:
    mask, kinds = defect_masks(value, detector, camera)
    for amplifier in detector.amplifiers:
        i = camera.amplifier_names.index(amplifier.name)
        summary = {name.lower(): int(np.sum(kinds[i] & bit > 0)) for name, bit in DEFECT_KINDS.items()}
        variables = {"mask": (("y", "x"), mask[i]), "defect_kind": (("y", "x"), kinds[i])}
        yield amplifier.name, xr.Dataset(variables, attrs={"remarks": [], "summary": summary})
