"""Stores with monochromatic flats of a small camera, products that are the truth, and what a cube of them should be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.mapping import Output, empty_values, output_dims
from lsstcal_dask.pipeline.recipes import RECIPES
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.etalon import Fringing
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.recipes import FlatCube, Plan, exposures
from lsstcal_dask.simulate.truth import amplifiers, at
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.products import Pointer, Template, create_template, publish, write_detector
from lsstcal_dask.storage.raw import write_frame
from lsstcal_dask.storage.tables import write_table

SEED = 11
LEFT_OUT = ("nonlinearity", "crosstalk", "brighter_fatter", "deferred")  # each has tests of its own
NOISE = ("shot_noise", "cosmic_rays", "dark_current", "hot_pixels", "blinking_pixels")


@lru_cache
def observatory(camera: str = "mini1", without: tuple[str, ...] = (), fringing: Fringing | None = None) -> Observatory:
    settings = Settings(fringing=fringing or Fringing())
    return Observatory(SEED, load_camera(camera), settings.without([*LEFT_OUT, *without]))


def flats(first: float = 600.0, last: float = 604.0, step: float = 1.0, each: int = 3, **recipe: Any) -> list[Exposure]:
    plan = Plan(flat_cube=FlatCube(first=first, last=last, step=step, each=each, **recipe))
    return exposures("flat-cube", plan, observatory().settings, observatory().camera)


def later(taken: Sequence[Exposure], days: int) -> list[Exposure]:
    """The same exposures again some days later."""
    found = []
    for one in taken:
        number = one.number + 1000 * days
        name = f"{one.name[:-6]}{number:06d}"
        found.append(replace(one, name=name, number=number, time=one.time + np.timedelta64(days, "D")))
    return found


def new_store(folder: Any, camera: str = "mini1", truth: bool = True) -> Store:
    store = create_store(folder, camera)
    if truth:
        put_truth(store, observatory(camera))
    return store


def take(
    store: Store,
    taken: Sequence[Exposure],
    *,
    missing: Callable[[str, str], bool] = lambda exposure, detector: False,
    header: Callable[[str], dict[str, Any]] = lambda exposure: {},
    pixels: Callable[[np.ndarray, str, str], np.ndarray] = lambda counts, exposure, detector: counts,
    without: tuple[str, ...] = (),
    inputs: str = "",
    fringing: Fringing | None = None,
) -> None:
    """Put exposures into a store, and what goes with them.

    Parameters
    ----------
    missing : exposure and detector that get no frame.
    header : entries of the header that are to be otherwise.
    pixels : counts (amplifier, y, x) as they are to be.
    inputs : added to the name of the table of measured wavelengths.
    """
    site = observatory(store.camera.name, without, fringing)
    records = []
    for one in taken:
        for frame in frames(site, one, [d for d in store.camera.detectors if not missing(one.name, d.name)]):
            record = FrameRecord(
                one.name, frame.detector, "", "made", one.name, "", {**frame.header, **header(one.name)}
            )
            records.append(write_frame(store.url, record, pixels(frame.counts, one.name, frame.detector), frame.cards))
    publish_frames(store.url, records)
    for name, make in deliveries("flat-cube", taken).items():
        write_table(store.url, f"inputs/{name}{inputs if name == 'wavelengths' else ''}", make(site))


def put_truth(store: Store, site: Observatory) -> None:
    """Bias, gain and dark as they really are, without error."""
    names = [d.name for d in store.camera.detectors]
    for product in ("bias", "gain", "dark"):
        outputs = RECIPES[product].outputs
        ny, nx = store.camera.image_shape
        sizes = {
            "exposure": 1,
            "detector": len(names),
            "amplifier": len(store.camera.amplifier_names),
            "y": ny,
            "x": nx,
        }
        coords = {"detector": (("detector",), names), "amplifier": (("amplifier",), list(store.camera.amplifier_names))}
        create_template(store.url, product, "truth", Template(outputs, sizes, coords))
        hashes = {}
        for i, detector in enumerate(store.camera.detectors):
            results = ((a.name, _truth(site, detector, product, outputs, sizes, a.name)) for a in detector.amplifiers)
            hashes[detector.name] = write_detector(store.url, product, "truth", (i, detector.name), results)["hash"]
        start, nothing = "2026-07-01T12:00:00", {"inputs": {}, "configuration": {}, "software": {}, "failed": {}}
        about = {**nothing, "remarks": [], "version": "truth", "detectors": hashes, "created": start}
        publish(store.url, Pointer(product, start, **about))


def _truth(
    site: Observatory, detector: Any, product: str, outputs: dict[str, Output], sizes: dict[str, int], amplifier: str
) -> xr.Dataset:
    sizes = {k: v for k, v in sizes.items() if k not in ("detector", "amplifier")}
    found = {}
    for var, output in outputs.items():
        dims = output_dims(var, output, sizes)
        found[var] = (dims, empty_values(var, output, tuple(sizes[dim] for dim in dims)))
    index = [a.name for a in detector.amplifiers].index(amplifier)
    values: dict[str, Any] = {"mask": 0, "variance": 0, "row_variance": 0}
    if product == "gain":
        values = {"gain": amplifiers(site, detector)[index]["gain"], "gain_error": 0.0}
    elif product == "bias":
        image = at(site, "bias", detector=detector, amplifier=amplifier)
        values["image"] = np.pad(
            image, [(0, size - n) for size, n in zip(site.camera.image_shape, image.shape, strict=True)]
        )
    else:
        place = site.camera.amplifier_names.index(amplifier)
        values["image"] = split(site.dark_rate(detector), detector, site.camera)[place]
    for var, value in values.items():
        found[var][1][...] = value
    return xr.Dataset(found)


@lru_cache(maxsize=64)
def expected_light(taken: Exposure, detector: str, camera: str = "mini1") -> np.ndarray:
    """Electrons (amplifier, y, x) that an exposure makes without noise, NaN in defects."""
    site = observatory(camera)
    own = site.camera.detector(detector)
    light = charge(observatory(camera, NOISE), taken, own)
    light = np.where(site.sensitivity(own) < 1, np.nan, light)
    return split(light.astype(np.float32), own, site.camera)
