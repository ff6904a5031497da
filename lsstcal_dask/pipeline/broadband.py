"""Broadband flats as they were measured through a filter: ``broadband-FILTER`` (¶8, Sec. 2.8.1).

They go through the corrections of science frames and are combined as the exposures of a slice of a cube are, each over
its photons on the photodiode, which counts those of a broadband lamp only up to a factor.
"""

from datetime import date
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import InsufficientInputs, WrongUse
from lsstcal_dask.isr.sequence import IsrConfig
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.pipeline.build import Built, image_template, once, run_version
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.cubeplan import Job, Plan
from lsstcal_dask.pipeline.cubework import Bench
from lsstcal_dask.pipeline.flatfields import product_of
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.monochromatic import MonochromaticConfig, Repeat, choose_repeats, combine_repeats
from lsstcal_dask.products.slices import Group
from lsstcal_dask.storage.manifests import header_digests
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import MASK_BITS, nights

__all__ = ["BROADBAND", "choose_flats", "make_broadband", "night_of", "start_of"]

BROADBAND: Final = "broadband"
_MOST: Final = 12  # exposures: 0.1 GB each of an LSST CCD
_OUTPUTS: Final = {
    "image": Output("float32", "electron"),
    "variance": Output("float32", "electron**2"),
    "mask": Output("uint16"),
}


def choose_flats(raw: xr.Dataset, band: str, night: str = "") -> xr.Dataset:
    """Flats of a lamp through a filter: all of the last night, or of another.

    Raises
    ------
    WrongUse
        The night is no date.
    InsufficientInputs
        There are none.
    """
    kind, filters = raw["exposure_type"].values.astype(str), raw["filter"].values.astype(str)
    own = (kind == "flat") & (filters == band) & ~np.isfinite(raw["wavelength"].values)
    of = nights(raw)
    wanted = night_of(night) if night else of[own].max() if own.any() else None
    found = np.flatnonzero(own & (of == wanted)) if wanted is not None else np.zeros(0, int)
    if not found.size:
        when = f" in the night of {night}" if night else ""
        raise InsufficientInputs(f"broadband: there are no flats of a lamp through filter {band}{when}: take some")
    return raw.isel(exposure=found)


def start_of(night: np.datetime64) -> str:
    """Start of validity of what is measured in a night: the noon (UTC) before it, ISO."""
    return str(np.datetime_as_string(night + np.timedelta64(12, "h"), unit="s"))


def night_of(text: str) -> np.datetime64:
    """A date as a night; WrongUse if it is none."""
    try:
        return np.datetime64(date.fromisoformat(text))
    except ValueError:
        raise WrongUse(f"{text!r} is no night: write it as 2026-07-01") from None


def _brightest(bench: Bench, job: Job, config: MonochromaticConfig) -> tuple[list[Repeat], dict[str, str]]:
    """The brightest `_MOST` flats of those that a CCD can use, in the order of the job, and why brighter ones are not.

    Of a ladder of flats the brightest saturate: each is looked at by itself before one that is fainter is taken.
    """
    light = dict(zip(job.group.exposures, job.group.photons, strict=True))
    found: list[Repeat] = []
    reasons: dict[str, str] = {}
    order = sorted(light, key=lambda name: -light[name])
    for one in bench.corrected(job, order, [light[name] for name in order]):
        usable, why = choose_repeats([one], config)
        found, reasons = found + usable, reasons | why
        if len(found) == _MOST:
            break
    places = {name: i for i, name in enumerate(light)}
    kept, why = choose_repeats(sorted(found, key=lambda one: places[one.exposure]), config)
    return kept, reasons | why


def make_broadband(
    store: Store, band: str, config: Config, compute: Compute, *, night: str = "", progress: bool = False
) -> Built:
    """Combine the flats of a lamp through a filter: one task for each CCD.

    Raises
    ------
    InsufficientInputs
        There are none, or none that can be used.
    """
    raw, repeated = once(choose_flats(open_raw(store.url, store.camera, chunked=False), band, night))
    plan = Plan(store, BROADBAND, config, raw, read_upstream(store.url))
    names = [str(name) for name in raw["exposure"].values]
    charge = raw["photodiode"].values.astype(float)
    known = np.isfinite(charge).all() and (charge > 0).all()
    photons = charge / charge.mean() if known else np.ones(len(names))
    start = start_of(nights(raw).min())
    group = Group(float("nan"), names, photons.tolist(), float("nan"), float("nan"), float("nan"), start, 0.0)
    sensors, failed = plan.sensors(raw)
    if not sensors:
        raise InsufficientInputs(f"broadband: no CCD can be corrected: {next(iter(failed.values()), 'no frames')}")
    job = Job(group, 0, sensors, failed, {}, None)
    settings = config.cube.model_copy(update={"disagree": config.cube.disagree if known else np.inf})
    pixels = {det: digest([h.decode() for h in raw["pixels"].sel(detector=det).values]) for det in sensors}
    pointer = Pointer(
        name=product_of(BROADBAND, band),
        valid_from=start,
        inputs={
            "exposures": names,
            "headers": header_digests(raw),
            "pixels": pixels,
            "upstream": {det: {k: f"{v}/" for k, (_, v) in one.versions.items()} for det, one in sensors.items()},
        },
        configuration={"cube": settings.model_dump(mode="json"), "calibrate": plan.isr.model_dump(mode="json")},
        software=software(),
        failed=dict(failed),
        remarks=plan.remarks + [f"exposure {name} left out: {why}" for name, why in repeated.items()],
    )
    attrs = {"product": pointer.name, "filter": band}
    template, source = image_template(store.camera, list(sensors), _OUTPUTS, attrs)
    work = dict.fromkeys(sensors, (_combined, (raw, store.url, settings, plan.isr, job)))
    return run_version(store.url, pointer, template, source, work, compute, progress)


def _combined(
    source: xr.Dataset, raw: xr.Dataset, url: str, config: MonochromaticConfig, isr: IsrConfig, job: Job
) -> AmplifierResults:
    """What a worker does for one CCD."""
    det = str(source["detector"].values)
    bench = Bench(url, raw, config, isr, det)
    kept, reasons = _brightest(bench, job, config)
    remarks = [f"exposure {name} left out: {why}" for name, why in reasons.items()]
    if not kept:
        raise InsufficientInputs(f"no flat can be used: {'; '.join(remarks)}")
    made = combine_repeats(kept, [], config)
    for i, amplifier in enumerate(bench.detector.amplifiers):
        few = len(kept) / np.maximum(made.repeats[i], 1)
        variance = (made.slope[i] * np.maximum(made.value[i], 0) + made.floor[i]) * few
        mask = made.mask[i] | np.where(made.repeats[i] == 0, MASK_BITS["NO_DATA"], 0).astype(np.uint16)
        found = {"image": made.value[i], "variance": variance.astype(np.float32), "mask": mask}
        dead = [] if made.repeats[i].any() else ["dead: no pixel could be measured"]
        variables = {name: (("y", "x"), values) for name, values in found.items()}
        attrs = {"remarks": dead, "of_detector": remarks if i == 0 else [], "summary": {}}
        yield amplifier.name, xr.Dataset(variables, attrs=attrs)
