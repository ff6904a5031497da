"""Apply the products to exposures: one task per detector, written as it comes, published per exposure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, OutsideValidity, StoreFailure
from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.crosstalk import Entries, coupled
from lsstcal_dask.isr.edges import position_flags
from lsstcal_dask.isr.frame import Frame, RawFrame
from lsstcal_dask.isr.neighbours import Seen, Source, seen
from lsstcal_dask.isr.sequence import (
    BY_FILTER,
    FRINGE_PRODUCTS,
    IN_ELECTRONS,
    NEEDED,
    OPTIONAL,
    ORDERS,
    IsrConfig,
    Site,
    check_steps,
    correct,
    source,
)
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.pipeline.build import UNLIT, Built, failures, run_conditions, run_version
from lsstcal_dask.pipeline.lineage import superseded
from lsstcal_dask.pipeline.readout import readout, warm_products
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Upstream, built, find_upstream, read_upstream
from lsstcal_dask.storage.manifests import header_digests
from lsstcal_dask.storage.products import Pointer, Template, list_products, open_product
from lsstcal_dask.storage.provenance import software
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import MASK_BITS, NOTE

__all__ = [
    "Sensor",
    "calibrate",
    "couplings",
    "find_calibrated",
    "find_neighbours",
    "frame_dataset",
    "product_names",
    "read_frame",
    "seen_of_neighbours",
]

_NAME = "calibrated"


def calibrate(
    store: Store,
    exposures: Sequence[str],
    config: IsrConfig,
    compute: Compute,
    *,
    skip: Sequence[str] = (),
    progress: bool = False,
) -> Iterator[tuple[str, Built]]:
    """Correct exposures; yields each as it is done.

    Parameters
    ----------
    exposures : ids; every science exposure if empty.
    skip : corrections left out, of those that apply a product.

    Raises
    ------
    CalibrationError
        An unknown correction or exposure.
    """
    check_steps(frozenset(skip))
    skip = sorted(IN_ELECTRONS.union(skip)) if "gain" in skip else skip
    chosen = {"exposures": exposures} if exposures else {"exposure_type": "science"}
    raw = open_raw(store.url, store.camera, chunked=False, **chosen)
    if not raw.sizes["exposure"]:
        raise CalibrationError("there are no science exposures: name the exposures to calibrate, or ingest some")
    upstream = read_upstream(store.url)
    for i, name in enumerate(str(value) for value in raw["exposure"].values):
        yield name, _calibrate_one(store, raw.isel(exposure=i), config, compute, (upstream, skip, progress))


def _calibrate_one(
    store: Store,
    raw: xr.Dataset,
    config: IsrConfig,
    compute: Compute,
    extra: tuple[Upstream, Sequence[str], bool],
) -> Built:
    upstream, skip, progress = extra
    raw = raw.isel(detector=np.flatnonzero(raw["present"].values))
    exposure, time = str(raw["exposure"].values), str(np.datetime_as_string(raw["time"].values, unit="s"))
    names = product_names(str(raw["filter"].values), config.fringes)
    steps = [step for step in ORDERS[config.order] if step in names and step not in skip]
    without = [step for step in steps if step in OPTIONAL and not built(upstream, names[step])]
    steps = [step for step in steps if step not in without]
    found, failed, outside = _products(
        raw, steps, names, partial(find_upstream, upstream, step=("calibrate", config.overscan))
    )
    if not found:
        return Built(None, errors=failures(f"exposure {exposure}", failed))
    raw = raw.sel(detector=list(found))
    pixels = zip(raw["detector"].values, raw["pixels"].values, strict=True)
    pointer = Pointer(
        name=_NAME,
        valid_from=time,
        failed=failed,
        remarks=_left_out(skip, {step: names[step] for step in without})
        + [f"without {which}: {why}" for why, which in outside.items()]
        + _mixed(found, upstream)
        + _warm(found, raw),
        inputs={
            "exposure": exposure,
            "headers": header_digests(raw),
            "pixels": {str(det): value.decode() for det, value in pixels},
            "upstream": {d: {k: f"{p.version}/{p.hash}" for k, p in use.items()} for d, use in found.items()},
            **run_conditions(upstream.records, raw),
        },
        configuration=config.model_dump(mode="json"),
        software=software(),
    )
    template = _template(store, raw, "electron" if "gain" in steps else "adu", config.order)
    context = (store.url, Site(store.camera.image_shape, store.camera.vignetting_mm), config)
    sensors = {
        det: Sensor(store.camera.detector(det), {step: (p.name, p.version) for step, p in use.items()})
        for det, use in found.items()
    }
    coupling = {det: couplings(store, sensor) for det, sensor in sensors.items()}
    pointer = replace(pointer, remarks=pointer.remarks + _left_in(coupling))
    work = {
        det: (_results, (context, sensor, find_neighbours(raw, coupling[det], sensors)))
        for det, sensor in sensors.items()
    }
    return run_version(store.url, pointer, template, raw, work, compute, progress)


def _products(
    raw: xr.Dataset, steps: Sequence[str], names: Mapping[str, str], look: Callable[..., Pointer]
) -> tuple[dict[str, dict[str, Pointer]], dict[str, str], dict[str, str]]:
    """Products of each CCD by correction; why a CCD has none; and of what is left out, by the reason, where it was."""
    found: dict[str, dict[str, Pointer]] = {}
    failed: dict[str, str] = {}
    outside: dict[str, str] = {}
    time = str(np.datetime_as_string(raw["time"].values, unit="s"))
    for det in (str(name) for name in raw["detector"].values):
        try:
            found[det], missed = _pointers(steps, names, partial(look, detector=det, time=time, way=readout(raw, det)))
            outside |= {why: f"{step}: {det}" for step, why in missed.items() if why not in outside}
        except CalibrationError as error:
            failed[det] = f"{error}, or leave it out with --skip"
        if "fringes" in found.get(det, {}) and "sky_flat" not in found[det]:
            del found[det]
            failed[det] = (
                "fringes lie on the flat of the sky, which is left out: leave them out too, with --skip fringes"
            )
    return found, failed, outside


@dataclass(frozen=True)
class Sensor:
    """A CCD and the versions of the products that correct it, by correction: name and version."""

    detector: Detector
    versions: Mapping[str, tuple[str, str]]

    def products(self, url: str) -> dict[str, xr.Dataset]:
        """The products of the CCD, read when they are used."""
        return {
            step: open_product(url, name, version, chunked=False).sel(detector=self.detector.name)
            for step, (name, version) in self.versions.items()
        }


@dataclass(frozen=True)
class Neighbour:
    """Another CCD whose charge is seen in this one."""

    sensor: Sensor
    raw: xr.Dataset  # its exposure, read lazily
    entries: Entries


def couplings(store: Store, sensor: Sensor) -> dict[str, Entries]:
    """Coefficients of the other CCDs that couple to one, by name."""
    if "crosstalk" not in sensor.versions:
        return {}
    return coupled(sensor.products(store.url)["crosstalk"], sensor.detector, store.camera)


def _left_in(found: Mapping[str, Mapping[str, Entries]]) -> list[str]:
    """Remarks on crosstalk from CCDs that are not there; ``found`` are the couplings of each CCD that is."""
    remarks = []
    for name, sources in found.items():
        if absent := [other for other in sources if other not in found]:
            remarks.append(
                f"{name}: crosstalk from {', '.join(absent)}, missing or failed in this exposure, is left in"
            )
    return remarks


def find_neighbours(raw: xr.Dataset, found: Mapping[str, Entries], present: Mapping[str, Sensor]) -> list[Neighbour]:
    """The CCDs, of those that are there, that couple to one by its `couplings`."""
    return [Neighbour(present[name], raw.sel(detector=name), own) for name, own in found.items() if name in present]


def product_names(band: str, fringes: str = "none") -> dict[str, str]:
    """Name of the product that each correction applies to exposures through a filter; `IsrConfig.fringes`."""
    names = {step: name for step, name in NEEDED.items() if step != "fringes" or fringes != "none"}
    if "fringes" in names:
        names["fringes"] = FRINGE_PRODUCTS[fringes]
    return {step: f"{name}-{band}" if step in BY_FILTER else name for step, name in names.items()}


def _pointers(
    steps: Sequence[str], names: Mapping[str, str], look: Callable[[str], Pointer]
) -> tuple[dict[str, Pointer], dict[str, str]]:
    """Products of a CCD by correction; what is left out, with the reason, for none is valid at the time.

    That is said and not silently done: whether crosstalk or defects of a later night hold for this one is for a person
    to know, who then widens the validity. A flat of the sky is never left out so, nor what every frame needs.
    """
    found, missed = {}, {}
    for step in steps:
        try:
            found[step] = look(names[step])
        except OutsideValidity as error:
            if step not in OPTIONAL - BY_FILTER:
                raise
            missed[step] = str(error)
    return found, missed


def _left_out(skip: Sequence[str], without: Mapping[str, str]) -> list[str]:
    """Remarks on what was not corrected: a warning where it was wanted so, a note where nothing was built for it."""
    remarks = [f"without {', '.join(sorted(skip))}"] if skip else []
    return remarks + [f"{NOTE}without {step}: there is no {name} in the store" for step, name in without.items()]


def _mixed(found: Mapping[str, Mapping[str, Pointer]], upstream: Upstream) -> list[str]:
    """Remarks on flats that were made with a gain which another has replaced since; once for each flat."""
    told: dict[str, str] = {}
    for det, use in found.items():
        for flat in (use[step] for step in sorted(BY_FILTER) if step in use and "gain" in use):
            old, new = superseded(flat, det, "gain", upstream)
            if old:
                again = f"{new} has replaced it: run 'lsstcal cube' and 'lsstcal synthesize' again"
                told.setdefault(
                    flat.version, f"{det}: {flat.name} {flat.version} was made with gain {old}, but {again}"
                )
    return list(told.values())


def _warm(found: Mapping[str, Mapping[str, Pointer]], raw: xr.Dataset) -> list[str]:
    """Remarks on products that were made at another temperature than that of the frame."""
    remarks = []
    for det, use in found.items():
        made = {pointer.name: (pointer.version, pointer.inputs) for pointer in use.values()}
        remarks += warm_products(made, det, readout(raw, det))
    return remarks


def _template(store: Store, raw: xr.Dataset, units: str, order: str) -> Template:
    ny, nx = store.camera.image_shape
    coords: dict[str, tuple[tuple[str, ...], Any]] = {
        name: ((name,), raw[name].values) for name in ("detector", "amplifier")
    }
    return Template(
        outputs={
            "image": Output("float32", units),
            "variance": Output("float32", f"{units}**2"),
            "row_variance": Output("float32", f"{units}**2"),
            "mask": Output("uint16"),
        },
        sizes={"detector": raw.sizes["detector"], "amplifier": raw.sizes["amplifier"], "y": ny, "x": nx},
        coords=coords,
        attrs={"exposure": str(raw["exposure"].values), "order": order},
    )


def _results(
    raw: xr.Dataset,
    context: tuple[str, Site, IsrConfig],
    sensor: Sensor,
    neighbours: Sequence[Neighbour],
) -> AmplifierResults:
    """What a worker does for one detector."""
    url, site, config = context
    detector, products = sensor.detector, sensor.products(url)
    others, lost = _seen_of_some(url, site, config, detector, neighbours)
    frame = correct(read_frame(raw, detector), site, products, config, others)
    for i, amplifier in enumerate(detector.amplifiers):
        result = frame_dataset(frame, i)
        result.attrs["remarks"] += [text for name, text in frame.remarks if name == amplifier.name]
        if result.attrs["summary"]["median"] is None:
            result.attrs["remarks"].insert(0, _why_unusable(frame, i, site, config, products))
        result.attrs["remarks"] += lost if i == 0 else []
        yield amplifier.name, result


def _why_unusable(frame: Frame, i: int, site: Site, config: IsrConfig, products: Mapping[str, xr.Dataset]) -> str:
    """Why an amplifier has no usable pixel: a note where it lies in the dark, which is no fault of anything."""
    amplifier = frame.detector.amplifiers[i]
    ny, nx = amplifier.data.shape
    flags = position_flags(frame.detector, site.shape, config.edge, site.vignetting_mm)[i, :ny, :nx]
    if (flags & MASK_BITS["NO_DATA"] > 0).all():
        return f"{NOTE}{UNLIT}"
    if (flags & (MASK_BITS["NO_DATA"] | MASK_BITS["VIGNETTED"]) > 0).all():
        return f"{NOTE}vignetted all over: less light"
    reasons = _reasons(products, amplifier.name)
    return f"no usable pixel{': ' if reasons else ''}{' and '.join(reasons)}"


def _reasons(products: Mapping[str, xr.Dataset], amplifier: str) -> list[str]:
    """What of the products makes an amplifier useless."""
    found = []
    if "gain" in products and not float(products["gain"]["gain"].sel(amplifier=amplifier)) > 0:
        found.append("its gain could not be measured")
    if "linearity" in products and products["linearity"]["linearity_level"].sel(amplifier=amplifier).isnull().all():
        found.append("it has no linearity curve (build or import one, or leave it out with --skip linearity)")
    return found


def read_frame(raw: xr.Dataset, detector: Detector) -> RawFrame:
    """Counts of a CCD in one exposure, which ``raw`` reads lazily."""
    counts = raw["counts"].sel(amplifier=[a.name for a in detector.amplifiers]).values
    return RawFrame(str(raw["exposure"].values), detector, float(raw["dark_time"]), counts)


def seen_of_neighbours(
    url: str, site: Site, config: IsrConfig, detector: Detector, neighbours: Sequence[Neighbour]
) -> Seen:
    """What other CCDs leave in one: their amplifiers that couple are read."""
    sources = {one.sensor.detector.name: _source_of(url, site, config, one) for one in neighbours}
    return seen(sources, detector, site.shape)


def _seen_of_some(
    url: str, site: Site, config: IsrConfig, detector: Detector, neighbours: Sequence[Neighbour]
) -> tuple[Seen | None, list[str]]:
    """The same of those that can be corrected themselves; remarks on the others."""
    sources, remarks = {}, []
    for one in neighbours:
        try:
            sources[one.sensor.detector.name] = _source_of(url, site, config, one)
        except StoreFailure:
            raise
        except CalibrationError as error:
            remarks.append(f"crosstalk from {one.sensor.detector.name} is left in: {error}")
    return seen(sources, detector, site.shape) if sources else None, remarks


def _source_of(url: str, site: Site, config: IsrConfig, one: Neighbour) -> tuple[Source, Detector, Entries]:
    """Amplifiers of a CCD that couple, the CCD with only these, and the coefficients with places among them."""
    lit = np.unique(one.entries.sources)
    part = replace(one.sensor.detector, amplifiers=tuple(one.sensor.detector.amplifiers[i] for i in lit))
    products = {k: v.sel(amplifier=[a.name for a in part.amplifiers]) for k, v in one.sensor.products(url).items()}
    own = source(read_frame(one.raw, part), site, products, config)
    return own, part, replace(one.entries, sources=np.searchsorted(lit, one.entries.sources))


def frame_dataset(frame: Frame, i: int) -> xr.Dataset:
    """One amplifier of a frame."""
    good = frame.image[i][frame.mask[i] == 0]
    return xr.Dataset(
        {
            "image": (("y", "x"), frame.image[i]),
            "variance": (("y", "x"), frame.variance[i]),
            "row_variance": ("y", frame.row_variance[i]),
            "mask": (("y", "x"), frame.mask[i]),
        },
        attrs={
            "remarks": [],
            "summary": {"median": float(np.median(good)) if good.size else None},
        },
    )


def find_calibrated(store: Store, exposure: str) -> Pointer:
    """The calibrated frame of an exposure that was made last.

    Raises
    ------
    CalibrationError
        There is none.
    """
    found = [p for p in list_products(store.url, _NAME) if p.inputs["exposure"] == exposure]
    if not found:
        raise CalibrationError(f"exposure {exposure} is not calibrated: run 'lsstcal calibrate {store.url} {exposure}'")
    return max(found, key=lambda p: p.created)
