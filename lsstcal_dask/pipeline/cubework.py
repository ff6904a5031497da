"""What a worker does for a cube: some wavelengths of one CCD, from raw frames to stored slices (¶9)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError, InsufficientInputs, StoreFailure, WorkerLost
from lsstcal_dask.instrument import Detector
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct
from lsstcal_dask.mapping import Opaque
from lsstcal_dask.pipeline.calibrate import couplings, find_neighbours, read_frame, seen_of_neighbours
from lsstcal_dask.pipeline.cubeplan import Job
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.products.monochromatic import (
    Combined,
    MonochromaticConfig,
    Repeat,
    choose_repeats,
    combine_without_doubt,
    make_repeat,
    railed_count,
    repeat_chi2,
)
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubewriting import write_slice
from lsstcal_dask.variables import MASK_BITS

__all__ = ["Bench", "make_block"]

_KEPT: Final = 3
"""Corrected exposures that are kept: a single flat and those beside it, each of which is wanted three times."""


def make_block(shared: Opaque, det: str, own: Opaque) -> dict[int, Any]:
    """What a worker does: marker, or the reason for which there is none, of each slot.

    Takes 1.6 GB for CCDs of LSST with single flats and 1.8 GB with three of each: what `correct` needs, and 0.1 GB for
    each exposure and for three more.
    """
    url, name, raw, config, isr, jobs = shared.value
    found: dict[int, Any] = {}
    bench = Bench(url, raw, config, isr, det)
    for job in (jobs[i] for i in own.value):
        try:
            given, about = bench.slice(job)
        except CalibrationError as error:
            if isinstance(error, StoreFailure | WorkerLost):
                raise
            found[job.slot] = str(error)
            continue
        found[job.slot] = write_slice(url, name, (job.slot, det), given, about)
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON holds them."""
    return [float(value) if np.isfinite(value) else None for value in values]


class Bench:
    """Corrects and combines the exposures of one CCD; keeps its products between slices."""

    def __init__(self, url: str, raw: xr.Dataset, config: MonochromaticConfig, isr: IsrConfig, det: str) -> None:
        self.store, self.raw, self.config, self.isr, self.det = open_store(url), raw, config, isr, det
        camera = self.store.camera
        self.detector: Detector = camera.detector(det)
        self.site = Site(camera.image_shape, camera.vignetting_mm)
        self.places = {str(e): i for i, e in enumerate(raw["exposure"].values)}
        self._versions: Any = None
        self._recent: list[tuple[Any, Repeat]] = []
        self._products: dict[str, xr.Dataset] = {}

    def slice(self, job: Job) -> tuple[Slice, dict[str, Any]]:
        """The slice, and what its marker tells of it.

        Raises
        ------
        InsufficientInputs
            No exposure of it can be used; the message says why not.
        """
        group = job.group
        repeats = list(self.corrected(job, group.exposures, group.photons))
        kept, reasons = choose_repeats(repeats, self.config)
        if not kept:
            told = "; ".join(f"exposure {name}: {why}" for name, why in reasons.items()) or "no frames"
            raise InsufficientInputs(told)
        compared = list(self.corrected(job, group.compared, group.compared_photons)) if len(kept) == 1 else []
        compared, _ = choose_repeats(compared, self.config)
        made, doubts = combine_without_doubt(kept, compared, self.config)
        dead = [a.name for a, slope in zip(self.detector.amplifiers, made.slope, strict=True) if not np.isfinite(slope)]
        remarks = [f"{self.det}: exposure {name} left out: {why}" for name, why in reasons.items()]
        about = {
            "remarks": [
                *remarks,
                *(f"{self.det}: {text}" for text in doubts),
                *(f"{self.det} {name}: dead" for name in dead),
            ],
            "total": self._ordered(made.total, 0.0).tolist(),
            "pixels": self._ordered(made.pixels, 0).tolist(),
            "hits": made.hits,
            "chi2": _plain(self._ordered(repeat_chi2(kept, made.value, made.mask), np.nan)),
            "ratios": {one.exposure: one.mean_level / one.photons for one in kept},
            "exposures": [one.exposure for one in kept],
        }
        return self._stored(made), about

    def corrected(self, job: Job, exposures: Sequence[str], photons: Sequence[float]) -> Iterator[Repeat]:
        """Exposures of the CCD through the corrections, those of which there are frames."""
        for name, light in zip(exposures, photons, strict=True):
            raw = self.raw.isel(exposure=self.places[name])
            if not bool(raw["present"].sel(detector=self.det)):
                continue
            key = (name, light, job.sensors[self.det].versions)
            found = next((one for known, one in self._recent if known == key), None)
            if found is None:
                present = np.flatnonzero(raw["present"].values)
                found = self._repeat(job, raw.isel(detector=present), light)
            self._recent = [(key, found), *(entry for entry in self._recent if entry[0] != key)][:_KEPT]
            yield found

    def _repeat(self, job: Job, raw: xr.Dataset, light: float) -> Repeat:
        sensor = job.sensors[self.det]
        if sensor.versions != self._versions:
            self._versions = sensor.versions
            self._products = {step: p.load() for step, p in sensor.products(self.store.url).items()}
        present = {str(name): job.sensors[str(name)] for name in raw["detector"].values if str(name) in job.sensors}
        neighbours = find_neighbours(raw, couplings(self.store, sensor), present)
        around = (self.store.url, self.site, self.isr, self.detector, neighbours)
        others = seen_of_neighbours(*around) if neighbours else None
        frame = read_frame(raw.sel(detector=self.det), self.detector)
        made = make_repeat(correct(frame, self.site, self._products, self.isr, others), light)
        return replace(made, railed=railed_count(frame.counts))

    def _stored(self, made: Combined) -> Slice:
        """The slice with amplifiers in the order of the camera."""
        no_data = MASK_BITS["NO_DATA"]
        empty = {"value": np.nan, "mask": no_data, "repeats": 0, "full": 0, "slope": np.nan, "floor": np.nan}
        return Slice(**{key: self._ordered(getattr(made, key), fill) for key, fill in empty.items()})

    def _ordered(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Values (amplifier, ...) of the CCD in the order of the camera; ``fill`` for amplifiers that it lacks."""
        names = list(self.store.camera.amplifier_names)
        at = [names.index(a.name) for a in self.detector.amplifiers]
        if at == list(range(len(names))):
            return values
        out = np.full((len(names), *values.shape[1:]), fill, values.dtype)
        out[at] = values
        return out
