"""Corrected frames as they were before their flat field was applied: ``unflattened`` (Sec. 3.10, App. D of SCIENCE).

Exact photometry of an object divides by the response to the object's own spectrum, and wants the electrons that came.
A frame says which flats were applied to each CCD, and those very versions are taken out of it again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.flat import multiply_by_flat
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.sequence import BY_FILTER
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.pipeline.build import Built, run_version
from lsstcal_dask.pipeline.calibrate import find_calibrated, frame_dataset, product_names
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.storage.products import Pointer, Template, open_product
from lsstcal_dask.storage.provenance import software
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import NOTE

__all__ = ["UNFLATTENED", "undo_flattening"]

UNFLATTENED: Final = "unflattened"
"""Name of the product; there is one for each exposure, as of corrected frames."""

_LAST: Final = ("photometric_flat", "sky_flat")
"""A photometric flat has taken the place of the sky's, so that the first of these that was applied is the one."""


def undo_flattening(
    store: Store, exposures: Sequence[str], compute: Compute, *, progress: bool = False
) -> Iterator[tuple[str, Built]]:
    """Take the flat field out of the corrected frames of some exposures; yields each as it is done.

    Parameters
    ----------
    exposures : ids; those of every corrected science exposure if empty.
    """
    if not exposures:
        pointers = read_upstream(store.url).pointers
        science = open_raw(store.url, store.camera, exposure_type="science", chunked=False)["exposure"].values
        there = {p.inputs["exposure"] for p in pointers if p.name == "calibrated"}
        exposures = [str(name) for name in science if str(name) in there]
    if not exposures:
        raise CalibrationError(
            f"{store.url} has no corrected science exposure: run 'lsstcal calibrate {store.url}' first, or name some"
        )
    for exposure in exposures:
        try:
            yield exposure, _undo_one(store, find_calibrated(store, exposure), compute, progress)
        except CalibrationError as error:
            yield exposure, Built(None, errors=[str(error)])


def _undo_one(store: Store, frame: Pointer, compute: Compute, progress: bool) -> Built:
    exposure = frame.inputs["exposure"]
    header = open_raw(store.url, store.camera, exposures=[exposure], chunked=False)
    names = product_names(str(header["filter"].values[0]))
    flats = {det: flat for det in frame.detectors if (flat := _applied(frame, det, names))}
    if not flats:
        raise InsufficientInputs(
            f"exposure {exposure}: {frame.version} was not divided by a flat: there is none to undo"
        )
    plain = sorted(set(frame.detectors) - set(flats))
    own = frame.inputs["upstream"]
    pointer = Pointer(
        name=UNFLATTENED,
        valid_from=frame.valid_from,
        failed=dict.fromkeys(plain, "was not divided by a flat"),
        remarks=[f"{NOTE}{' and '.join(sorted({name for name, _ in flats.values()}))} taken out of {frame.version}"],
        inputs={
            "exposure": exposure,
            "headers": frame.inputs["headers"],
            "upstream": {det: {"calibrated": f"{frame.version}/{frame.hash}", **own[det]} for det in flats},
        },
        configuration=frame.configuration,
        software=software(),
    )
    product = open_product(store.url, frame.name, frame.version, chunked=False)
    template, source = _template(product, list(flats))
    context = (store.url, frame.version, exposure)
    work = {det: (_undone, (context, store.camera.detector(det), flat)) for det, flat in flats.items()}
    return run_version(store.url, pointer, template, source, work, compute, progress)


def _applied(frame: Pointer, detector: str, names: dict[str, str]) -> tuple[str, str] | None:
    """Name and version of the flat by which a CCD of a frame is divided."""
    used = frame.inputs["upstream"].get(detector, {})
    step = next((step for step in _LAST if step in used and step in BY_FILTER), None)
    return None if step is None else (names[step], used[step].partition("/")[0])


def _template(product: xr.Dataset, detectors: list[str]) -> tuple[Template, xr.Dataset]:
    """Shape of the result, that of the frame, and its CCDs."""
    planes = ("image", "variance", "row_variance", "mask")
    outputs = {name: Output(product[name].dtype.name, product[name].attrs.get("units", "")) for name in planes}
    sizes = {str(dim): size for dim, size in product["image"].sizes.items()} | {"detector": len(detectors)}
    names: dict[str, Any] = {"detector": detectors, "amplifier": list(product["amplifier"].values)}
    coords = {dim: ((dim,), values) for dim, values in names.items()}
    source = xr.Dataset(coords={"detector": ("detector", detectors)})
    return Template(outputs, sizes, coords, {"product": UNFLATTENED}), source


def _undone(
    source: xr.Dataset, context: tuple[str, str, str], detector: Detector, flat: tuple[str, str]
) -> AmplifierResults:
    """What a worker does for one CCD."""
    url, version, exposure = context
    names = [a.name for a in detector.amplifiers]
    own = open_product(url, "calibrated", version, chunked=False).sel(detector=detector.name, amplifier=names)
    image, variance, rows, mask = (own[name].values for name in ("image", "variance", "row_variance", "mask"))
    frame = Frame(exposure, detector, image, variance, rows, mask, own["image"].attrs["units"])
    product = open_product(url, *flat, chunked=False).sel(detector=detector.name, amplifier=names)
    undone = multiply_by_flat(frame, product)
    for i, name in enumerate(names):
        yield name, frame_dataset(undone, i)
