"""Maps of fringes of a store's sky frames, for one filter: backup of synthesised flats (§13; Lupton 2016, Sec. 2.9).

They are made of visits that 'calibrate' has divided by a flat of the sky; ``fringe_frame-FILTER`` holds the classical
map, ``fringe_modes-FILTER`` principal components, ``sky_blocks-FILTER`` what both are made of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import dask
import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.fringes import block_counts
from lsstcal_dask.isr.sequence import FRINGE_PRODUCTS
from lsstcal_dask.mapping import AmplifierResults, Opaque
from lsstcal_dask.pipeline.build import Built, run_version
from lsstcal_dask.pipeline.fringe_visits import calibrated, sky_above, spread, visits
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.products.fringe_common import Common, Sample, sample_sky, share_modes
from lsstcal_dask.products.fringe_frames import (
    FRAME_OUTPUTS,
    SKY_OUTPUTS,
    FringeFrameConfig,
    frame_amplifiers,
    sky_amplifiers,
)
from lsstcal_dask.products.fringes import usable
from lsstcal_dask.storage.manifests import header_digests
from lsstcal_dask.storage.products import Pointer, Template, open_product
from lsstcal_dask.storage.provenance import software
from lsstcal_dask.variables import nights

__all__ = ["SKY_BLOCKS", "Method", "make_fringe_frames"]

Method = Literal["classical", "pca"]
SKY_BLOCKS: Final = "sky_blocks"
_SAMPLED: Final = 100_000  # blocks of all CCDs
_OF_A_CCD: Final = 4096


def make_fringe_frames(
    store: Store,
    band: str,
    method: Method,
    config: FringeFrameConfig,
    compute: Compute,
    *,
    exposures: Sequence[str] | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, Built]]:
    """Make maps of fringes of one filter; yields the sky they are made of, and them.

    Raises
    ------
    InsufficientInputs
        Fewer than ten visits have a dark, empty sky, or are calibrated; the message says what is wrong with the first.
    """
    raw = visits(store, band, exposures)
    dark, remarks = usable(sky_above(raw, np.zeros(raw.sizes["exposure"]), config))
    raw = raw.isel(exposure=np.flatnonzero(dark))
    frames, more = calibrated(store, raw, band)
    remarks += more
    raw, frames, more = spread(raw, frames, config.most)
    remarks += more
    name = f"{SKY_BLOCKS}-{band}"
    sky = _make_sky(store, (name, raw, frames), config, (compute, progress))
    yield name, sky
    if sky.pointer is None:
        return
    samples = _samples(store, sky.pointer, config, compute, progress)
    shares = np.stack([one.crowded for one in samples.values()])
    known = np.isfinite(shares)
    crowded = np.where(known, shares, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    empty, more = usable(sky_above(raw, crowded, config))
    remarks += more
    places = [store.camera.detector(det).center_mm for det in samples]
    x, y = np.array(places, float).T
    chosen = [Sample(s.value[empty], s.weight[empty], s.crowded[empty]) for s in samples.values()]
    common = share_modes(chosen, (x, y), method, config.modes)
    run = _Run(band, method, config, np.flatnonzero(empty), remarks)
    yield run.name, _make_maps(store, run, (raw, sky.pointer, list(samples)), common, (compute, progress))


@dataclass(frozen=True, eq=False)
class _Run:
    """What is made."""

    band: str
    method: Method
    config: FringeFrameConfig
    used: np.ndarray  # places of the frames, along those of the sky
    remarks: list[str]

    @property
    def name(self) -> str:
        return f"{FRINGE_PRODUCTS[self.method]}-{self.band}"


def _inputs(raw: xr.Dataset, upstream: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "exposures": [str(name) for name in raw["exposure"].values],
        "headers": header_digests(raw),
        "upstream": upstream,
    }


def _start(raw: xr.Dataset) -> str:
    return str(np.datetime_as_string(nights(raw).min() + np.timedelta64(12, "h"), unit="s"))


def _make_sky(
    store: Store,
    what: tuple[str, xr.Dataset, dict[str, Pointer]],
    config: FringeFrameConfig,
    where: tuple[Compute, bool],
) -> Built:
    """The sky of blocks of every frame."""
    name, raw, frames = what
    detectors = [d.name for d in store.camera.detectors if any(d.name in p.detectors for p in frames.values())]
    made = {"calibrated": {exposure: f"{p.version}/{p.hash}" for exposure, p in frames.items()}}
    pointer = Pointer(
        name=name,
        valid_from=_start(raw),
        inputs=_inputs(raw, made),
        configuration={"block": config.block},
        software=software(),
        failed={},
        remarks=[],
    )
    counts = block_counts(store.camera.image_shape, config.block)
    template, source = _template(store, detectors, raw, SKY_OUTPUTS, {"product": name, "block": config.block})
    versions = {exposure: (p.version, tuple(p.detectors)) for exposure, p in frames.items()}
    arguments = {det: (store.url, store.camera.detector(det), versions, counts, config.block) for det in detectors}
    work = {det: (_sky_of, own) for det, own in arguments.items()}
    return run_version(store.url, pointer, template, source, work, *where)


def _template(
    store: Store, detectors: list[str], raw: xr.Dataset, outputs: Any, attrs: dict[str, Any], modes: int = 1
) -> tuple[Template, xr.Dataset]:
    names = {"detector": np.array(detectors, object), "amplifier": np.array(store.camera.amplifier_names, object)}
    by, bx = block_counts(store.camera.image_shape, int(attrs["block"]))
    sizes = {**{dim: len(values) for dim, values in names.items()}, "block_y": by, "block_x": bx, "mode": modes}
    coords: dict[str, Any] = {dim: ((dim,), list(values)) for dim, values in names.items()}
    coords |= {key: (("exposure",), raw[key].values) for key in ("exposure", "time")}
    template = Template(outputs, {**sizes, "exposure": raw.sizes["exposure"]}, coords, attrs)
    return template, xr.Dataset(coords={dim: (dim, values) for dim, values in names.items()})


def _sky_of(
    source: xr.Dataset,
    url: str,
    detector: Detector,
    versions: dict[str, tuple[str, tuple[str, ...]]],
    counts: tuple[int, int],
    step: int,
) -> AmplifierResults:
    """What a worker does for one CCD: a frame at a time."""
    frames = (_frame(url, exposure, detector, *versions[exposure]) for exposure in versions)
    return sky_amplifiers(frames, detector, counts, step)


def _frame(url: str, exposure: str, detector: Detector, version: str, detectors: tuple[str, ...]) -> Frame | None:
    if detector.name not in detectors:
        return None
    product = open_product(url, "calibrated", version, chunked=False)
    own = product.sel(detector=detector.name, amplifier=[a.name for a in detector.amplifiers])
    image, variance, rows, mask = (own[name].values for name in ("image", "variance", "row_variance", "mask"))
    return Frame(exposure, detector, image, variance, rows, mask, own["image"].attrs["units"])


def _samples(
    store: Store, sky: Pointer, config: FringeFrameConfig, compute: Compute, progress: bool
) -> dict[str, Sample]:
    """Some blocks of every CCD."""
    detectors = list(sky.detectors)
    count = min(_OF_A_CCD, max(1, _SAMPLED // len(detectors)))
    task = dask.delayed(_sample, pure=False)
    tasks = [
        task(store.url, (sky.name, sky.version), Opaque(store.camera.detector(d)), config.block, count)
        for d in detectors
    ]
    found = {}
    for det, result in compute.run(tasks, labels=detectors, describe="fringes", progress=progress):
        if isinstance(result, Exception):
            raise CalibrationError(f"fringes: {det}: {result}") from result
        found[str(det)] = result
    return {det: found[det] for det in detectors}


def _sample(url: str, product: tuple[str, str], detector: Opaque, step: int, count: int) -> Sample:
    own = open_product(url, *product, chunked=False).sel(detector=detector.value.name)
    return sample_sky(own, detector.value, step, count)


def _make_maps(
    store: Store,
    run: _Run,
    what: tuple[xr.Dataset, Pointer, list[str]],
    common: Common,
    where: tuple[Compute, bool],
) -> Built:
    """The maps of every CCD."""
    raw, sky, detectors = what
    raw = raw.isel(exposure=run.used)
    pointer = Pointer(
        name=run.name,
        valid_from=_start(raw),
        inputs=_inputs(raw, {"sky": {sky.name: f"{sky.version}/{sky.hash}"}}),
        configuration=run.config.model_dump(mode="json"),
        software=software(),
        failed=dict(sky.failed),
        remarks=run.remarks + common.remarks,
    )
    modes = common.coefficients.shape[1]
    attrs = {"product": run.name, "filter": run.band, "block": run.config.block}
    template, source = _template(store, detectors, raw, FRAME_OUTPUTS, attrs, modes)
    shared = (store.url, (sky.name, sky.version), run.used, run.config.block, run.method)
    work = {
        det: (_maps_of, (shared, store.camera.detector(det), (common.coefficients, int(zone))))
        for det, zone in zip(detectors, common.zones, strict=True)
    }
    return run_version(store.url, pointer, template, source, work, *where)


def _maps_of(
    source: xr.Dataset,
    shared: tuple[str, tuple[str, str], np.ndarray, int, str],
    detector: Detector,
    common: tuple[np.ndarray, int],
) -> AmplifierResults:
    """What a worker does for one CCD."""
    url, product, used, step, method = shared
    own = open_product(url, *product, chunked=False).sel(detector=detector.name).isel(exposure=used)
    return frame_amplifiers(own, detector, step, common, method)
