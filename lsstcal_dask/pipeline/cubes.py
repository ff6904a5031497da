"""Flat cubes from the monochromatic flats of a store: what is not in the cube yet is made, then all is published (¶9).

One task makes a block of wavelengths of one CCD, from raw frames through the very corrections of science frames to
stored slices. What is whole has a marker, so a run that was killed goes on where it stopped and ends in the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dask
import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline.build import once
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.cubeplan import Job, Plan, read_lines
from lsstcal_dask.pipeline.cubework import make_block
from lsstcal_dask.pipeline.photodiode import read_photodiode
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.monochromatic import gaps
from lsstcal_dask.products.slices import air_remarks, group_flats, jumps, mean_response
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import Form
from lsstcal_dask.storage.cubearrays import mend_numbers, read_markers, read_sums
from lsstcal_dask.storage.cubelayout import (
    CubeLayout,
    CubePointer,
    Slot,
    list_cubes,
    load_layout,
    lost_mask,
    shard_path,
)
from lsstcal_dask.storage.cubewriting import create_cube, publish_after
from lsstcal_dask.storage.provenance import digest
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import NOTE

__all__ = ["CubeBuilt", "make_cube"]

_BLOCK: Final = 8
"""Slices of a CCD that a task makes: they share the products that are read; a kill loses at most one."""

_JUMP: Final = "its mean response is"
"""A remark that begins so is made anew at every publication."""

_Blocks = list[tuple[str, list[int]]]
"""CCDs and places of their jobs, by slot."""


@dataclass(frozen=True)
class CubeBuilt:
    """What became of a cube."""

    pointer: CubePointer | None  # None where nothing could be published
    made: int = 0  # slices of a CCD
    left_out: dict[str, str] = field(default_factory=dict)  # exposures, with the reason
    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # on all of it: what a person should look at


def make_cube(
    store: Store,
    name: str,
    form: Form | None,
    config: Config,
    compute: Compute,
    *,
    exposures: Sequence[str] | None = None,
    progress: bool = False,
) -> CubeBuilt:
    """Add the monochromatic flats of a store to a cube, which is created where there is none.

    Parameters
    ----------
    form : of the pixels; by default that of the cube, or i2 of a new one.
    exposures : use only these. What is in the cube already stays, unless its wavelength comes with as many repeats.

    Raises
    ------
    CalibrationError
        The cube has another form, nothing can be used, or a product is missing.
    """
    if known := name in list_cubes(store.url):
        mend_numbers(store.url, name)
    form = form or (load_layout(store.url, name).form if known else "i2")
    raw, repeated = once(open_raw(store.url, store.camera, exposures=exposures, chunked=False))
    diode = read_photodiode(store.url, config.cube)
    lines = read_lines(store.url)
    groups, left_out = group_flats(raw, lines, diode, config.cube)
    left_out |= repeated
    detectors = tuple(d.name for d in store.camera.detectors)
    create_cube(store.url, name, CubeLayout(form, detectors, store.camera.amplifier_names, store.camera.image_shape))
    run = Plan(store, name, config, raw, read_upstream(store.url))
    run.doubts = air_remarks(raw, lines)
    run.diode = diode if config.cube.responsivity == "table" else None
    jobs = [run.job(group) for group in groups]
    _check_masks(run, jobs)
    outcome = _make_slices(run, form, jobs, compute, progress)
    if outcome.errors:
        remedy = (
            f"not published; run the same command to resume; if it fails again, see 'lsstcal ls {store.url} --check'"
        )
        return CubeBuilt(None, outcome.made, left_out, [*outcome.errors, f"cube {name}: {remedy}"], run.doubts)
    return _publish(run, jobs, outcome, left_out)


@dataclass(frozen=True)
class _Outcome:
    """What tasks told."""

    markers: dict[int, dict[str, Any]]  # by slot and CCD
    failed: dict[int, dict[str, str]]  # by slot and CCD
    made: int
    errors: list[str]


def _make_slices(run: Plan, form: Form, jobs: Sequence[Job], compute: Compute, progress: bool) -> _Outcome:
    """Make what has no marker yet."""
    markers = {job.slot: dict(job.done) for job in jobs}
    failed = {job.slot: dict(job.failed) for job in jobs}
    made, errors = 0, []
    shared = dask.delayed(Opaque((run.store.url, run.name, run.raw, run.config.cube, run.isr, list(jobs))), pure=False)
    task = dask.delayed(make_block, pure=False)
    for blocks in _waves(run, form, jobs):
        tasks = [task(shared, det, Opaque(own)) for det, own in blocks]
        for label, result in compute.run(tasks, labels=_labels(blocks, jobs), describe=run.name, progress=progress):
            det = str(label).partition(",")[0]
            if isinstance(result, Exception):
                errors.append(f"cube {run.name}: {label}: {result}")
                continue
            for slot, marker in result.items():
                (failed if isinstance(marker, str) else markers)[slot][det] = marker
                made += not isinstance(marker, str)
    return _Outcome(markers, failed, made, errors)


def _labels(blocks: _Blocks, jobs: Sequence[Job]) -> list[str]:
    """Name of each block of wavelengths for a person."""
    found = []
    for det, own in blocks:
        first, last = jobs[own[0]].group.wavelength, jobs[own[-1]].group.wavelength
        found.append(f"{det}, {first:.1f} to {last:.1f} nm")
    return found


def _waves(run: Plan, form: Form, jobs: Sequence[Job]) -> Iterator[_Blocks]:
    """What may be made at once, and then the rest, whatever the number of workers with the same result.

    The first slice of a CCD says which pixels are bad at all wavelengths: it is made before others of it begin.
    A slice of form i1 refers to those before it: all of a CCD are one block.
    """
    order = sorted((i for i in range(len(jobs)) if not jobs[i].published), key=lambda i: jobs[i].slot)
    names = [d.name for d in run.store.camera.detectors]
    left = {det: [i for i in order if det in jobs[i].sensors and det not in jobs[i].done] for det in names}
    new = {det for det in names if left[det] and not _begun(run, det)}
    size = max(len(jobs), 1) if form == "i1" else _BLOCK
    yield [(d, own) for d in names for own in _cut(left[d], size)[: 1 if d in new else None]]
    if rest := {det: left[det][size:] for det in names if det in new and left[det][size:]}:
        yield [(d, part) for d, own in rest.items() for part in _cut(own, size if _begun(run, d) else len(own))]


def _begun(run: Plan, det: str) -> bool:
    """Whether a slice of a CCD was ever stored."""
    index = [d.name for d in run.store.camera.detectors].index(det)
    return objects.exists(run.store.url, shard_path(run.name, "mask", index))


def _check_masks(run: Plan, jobs: Sequence[Job]) -> None:
    """Refuse to go on with a CCD whose slices have lost their mask."""
    layout = load_layout(run.store.url, run.name)
    for i, det in enumerate(layout.detectors):
        held = (det in job.done or (job.published and det in {*job.sensors} - {*job.published.missing}) for job in jobs)
        if any(held) and not _begun(run, det):
            raise lost_mask(run.store.url, run.name, layout, i, "it is missing")


def _cut(own: list[int], size: int) -> list[list[int]]:
    return [own[start : start + size] for start in range(0, len(own), size)]


def _publish(run: Plan, jobs: Sequence[Job], outcome: _Outcome, left_out: Mapping[str, str]) -> CubeBuilt:
    """Publish the slices of the jobs, and those that are in the cube and are not replaced."""
    configuration = {"cube": run.config.cube.model_dump(mode="json"), "calibrate": run.isr.model_dump(mode="json")}
    while True:
        run.refresh()  # another run may have published its slices since this one began
        slots, errors, kept = _merged(run, jobs, outcome, left_out)
        told = {**left_out, **kept}
        if not slots:
            return CubeBuilt(None, outcome.made, told, errors, run.doubts)
        slots = _with_responses(run, slots, outcome.markers)
        remarks = [*run.remarks, *(f"exposure {name} left out: {why}" for name, why in told.items())]
        remarks += [f"{NOTE}no flats from {a:g} to {b:g} nm" for a, b in gaps([one.wavelength for one in slots])]
        about = {"configuration": configuration, "software": run.software, "remarks": remarks}
        if pointer := publish_after(run.store.url, run.name, slots, about, run.number):
            return CubeBuilt(pointer, outcome.made, told, errors, run.doubts)


def _merged(
    run: Plan, jobs: Sequence[Job], outcome: _Outcome, unusable: Mapping[str, str]
) -> tuple[list[Slot], list[str], dict[str, str]]:
    """Slices of the jobs and of the cube, what could not be made, and exposures that replace nothing, with reasons."""
    slots, errors, replaced = [], [], []
    left_out: dict[str, str] = {}
    for job in jobs:
        markers, failed = outcome.markers[job.slot], outcome.failed[job.slot]
        if job.published:
            slots.append(run.slots.get(job.slot, job.published))
        elif markers:
            slots.append(_slot(job, markers, failed))
        else:
            why = "; ".join(sorted(set(failed.values()))) or "no frames"
            errors.append(f"cube {run.name}: {job.group.nominal:g} nm: no CCD could be made: {why}")
            continue
        if kept := None if job.published else _better(run, slots[-1], markers, unusable):
            left_out |= dict.fromkeys(slots[-1].exposures, kept[1])
            slots[-1] = kept[0]
        replaced.append(job.group.nominal)
    near = run.config.cube.repeat_nm
    mine = {one.slot for one in slots}
    for one in run.slots.values():
        if one.slot not in mine and not any(abs(one.nominal - nm) <= near for nm in replaced):
            slots.append(one)
    return slots, errors, left_out


def _better(run: Plan, new: Slot, markers: Mapping[str, Any], unusable: Mapping[str, str]) -> tuple[Slot, str] | None:
    """What the cube has at that wavelength of CCDs that the new slice lacks, or of more repeats, and why it stays."""
    near = run.config.cube.repeat_nm
    now = _repeats(markers, unusable)
    for one in run.slots.values():
        if abs(one.nominal - new.nominal) > near or one.exposures == new.exposures:
            continue
        told = f"does not replace {', '.join(one.exposures)}: take"
        if lacks := sorted(set(new.missing) - set(one.missing)):
            return one, f"without {', '.join(lacks)} it {told} all CCDs, or make another cube"
        if now >= len(set(one.exposures) - set(unusable)):
            continue  # without a look at the markers
        if now < (before := _repeats(read_markers(run.store.url, run.name, one.slot), unusable)):
            return one, f"with fewer repeats, {now}, it {told} {before}, or make another cube"
    return None


def _repeats(markers: Mapping[str, Any], unusable: Mapping[str, str]) -> int:
    """Exposures that entered a CCD of a slice, at most, but those that cannot be used any more."""
    return max((len(set(one["exposures"]) - set(unusable)) for one in markers.values()), default=0)


def _slot(job: Job, markers: Mapping[str, Any], failed: Mapping[str, str]) -> Slot:
    group = job.group
    remarks = [*group.remarks, *(text for det in sorted(markers) for text in markers[det]["remarks"])]
    photon = photon_error(markers)
    return Slot(
        slot=job.slot,
        wavelength=group.wavelength,
        wavelength_error=group.wavelength_error,
        bandwidth=group.bandwidth,
        time=group.time,
        response=1.0,
        response_error=float(np.hypot(group.photon_error, photon)),
        nominal=group.nominal,
        exposures=group.exposures,
        missing=dict(sorted(failed.items())),
        hash=digest({det: marker["hash"] for det, marker in markers.items()}),
        remarks=remarks,
        verdict=_verdict(failed, remarks),
        response_common=group.common_error,
        response_single=group.single_error,
        response_photon=photon,
    )


def photon_error(markers: Mapping[str, Any]) -> float:
    """Relative error of the mean response of a slice by its electrons: sqrt(sum of variances) over the sum of values.

    Parameters
    ----------
    markers : of its CCDs, by name.
    """
    variance, total = 0.0, 0.0
    for marker in markers.values():
        slope, floor = (marker["numbers"][key] for key in ("variance_slope", "variance_floor"))
        for value, count, a, b in zip(marker["total"], marker["pixels"], slope, floor, strict=True):
            if a is not None and b is not None:
                variance, total = variance + a * value + b * count, total + value
    return float(np.sqrt(max(variance, 0.0)) / total) if total > 0 else 0.0


def _with_responses(run: Plan, slots: Sequence[Slot], markers: Mapping[int, Any]) -> list[Slot]:
    """Slices by wavelength with the mean response of the focal plane, which depends on all of them."""
    ordered = sorted(slots, key=lambda one: (one.wavelength, one.slot))
    total, pixels = read_sums(run.store.url, run.name, [one.slot for one in ordered])
    for k, one in enumerate(ordered):
        for det, marker in markers.get(one.slot, {}).items():
            i = [d.name for d in run.store.camera.detectors].index(det)
            total[i, :, k], pixels[i, :, k] = marker["total"], marker["pixels"]
    total, pixels = (values.reshape(-1, len(ordered)) for values in (total, pixels))
    wavelength = [one.wavelength for one in ordered]
    found = mean_response(total, pixels, wavelength)
    odd = jumps(found, wavelength, run.config.cube.jump)
    return [_with_response(one, float(r), odd.get(k)) for k, (one, r) in enumerate(zip(ordered, found, strict=True))]


def _with_response(slot: Slot, response: float, jump: float | None) -> Slot:
    """Slice with its mean response, and a remark where that is not as its neighbours in wavelength say."""
    remarks = [text for text in slot.remarks if not text.startswith(_JUMP)]  # its neighbours may have changed
    if jump is not None:
        remarks.append(
            f"{_JUMP} {jump:+.1%} off what its neighbours in wavelength say: is the photodiode of "
            f"{', '.join(slot.exposures)} right?"
        )
    same = response == slot.response  # to the last bit, or what is published would be published again
    error = slot.response_error if same else response * slot.response_error / slot.response
    verdict = _verdict(slot.missing, remarks)
    return replace(slot, response=response, response_error=error, remarks=remarks, verdict=verdict)


def _verdict(missing: Mapping[str, str], remarks: Sequence[str]) -> str:
    return "WARN" if missing or any(not text.startswith(NOTE) for text in remarks) else "PASS"
