"""What is to be made of a cube: its slices, the products of each CCD, and what is there already (¶9)."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.sequence import BY_FILTER, NEEDED, OPTIONAL, ORDERS
from lsstcal_dask.physics.spectra import air_stretch
from lsstcal_dask.physics.tables import names
from lsstcal_dask.physics.units import air_to_vacuum, in_air
from lsstcal_dask.pipeline.calibrate import Sensor
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.photodiode import number_column
from lsstcal_dask.pipeline.readout import Readout, readout
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import Upstream, built, find_upstream
from lsstcal_dask.products.photodiode import Photodiode
from lsstcal_dask.products.slices import Group, Line
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.cubearrays import read_markers
from lsstcal_dask.storage.cubelayout import Slot, base, list_pointers
from lsstcal_dask.storage.cubewriting import claim_slot
from lsstcal_dask.storage.manifests import header_entries
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.storage.tables import input_names, read_input
from lsstcal_dask.variables import NOTE

__all__ = ["Job", "Plan", "read_lines"]


def read_lines(url: str) -> dict[str, Line]:
    """What a spectrograph measured, by exposure: of all inputs ``wavelengths*``, later names over earlier ones.

    Wavelengths in air, where ``medium`` of ``meta`` says so, become those in vacuum.

    Raises
    ------
    UnitsError
        A column has another unit, or holds no numbers.
    CalibrationError
        A table does not name each exposure, or tells one twice, and not the same.
    """
    found: dict[str, Line] = {}
    for what in (name for name in input_names(url) if name.startswith("wavelengths")):
        table = read_input(url, what)
        columns = [number_column(table, what, name, "nm") for name in ("wavelength", "wavelength_error", "bandwidth")]
        air = in_air(table.meta, f"inputs/{what}.ecsv")
        if air:
            columns = _vacuum(columns)
        if "exposure" not in table.colnames:
            raise CalibrationError(f"inputs/{what}.ecsv: column exposure is not there: give the name of each exposure")
        own: dict[str, np.ndarray] = {}
        for exposure, *told in zip(names(table, "exposure", f"inputs/{what}.ecsv"), *columns, strict=True):
            if not np.array_equal(own.setdefault(exposure, np.array(told)), told, equal_nan=True):
                raise CalibrationError(
                    f"inputs/{what}.ecsv: exposure {exposure} has two rows, of {own[exposure][0]:.3f} and "
                    f"{told[0]:.3f} nm, that differ: keep one"
                )
        for exposure, (wavelength, error, bandwidth) in own.items():
            found[exposure] = Line(float(wavelength), float(error), float(bandwidth), air is None)
    return found


def _vacuum(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Wavelengths in air, their errors and widths, as they are in vacuum."""
    known = np.isfinite(columns[0])
    out = [column.copy() for column in columns]
    out[0][known] = air_to_vacuum(columns[0][known])
    for wide in out[1:]:
        wide[known] *= air_stretch(columns[0][known])
    return out


@dataclass(frozen=True)
class Job:
    """One slice: its exposures, and the products of each CCD that has frames of them."""

    group: Group
    slot: int
    sensors: Mapping[str, Sensor]
    failed: Mapping[str, str]  # CCDs that lack a product, with the reason
    done: Mapping[str, Any]  # markers of the CCDs that are whole
    published: Slot | None  # as it is in the cube already


class Plan:
    """A store, its cube and its products as they are now."""

    def __init__(self, store: Store, name: str, config: Config, raw: xr.Dataset, upstream: Upstream) -> None:
        self.doubts: list[str] = []  # on the whole of it
        self.diode: Photodiode | None = None  # of the store's table, where slices are made with it
        self.store, self.name, self.config, self.raw, self.upstream = store, name, config, raw, upstream
        self.isr = config.calibrate.model_copy(update={"find_cosmics": False})  # repeats tell them better
        steps = [step for step in ORDERS[self.isr.order] if step in NEEDED and step not in BY_FILTER]
        self.without = [step for step in steps if step in OPTIONAL and not built(upstream, NEEDED[step])]
        self.steps = [step for step in steps if step not in self.without]
        self.software = software()
        self.number, self.slots = self._published()
        self.claims = _claims(store.url, name)
        self.headers = header_entries(raw)
        self.places = {str(e): i for i, e in enumerate(raw["exposure"].values)}
        self._changes = sorted({t for p in upstream.pointers for t in (p.valid_from, p.valid_until)})
        self._known: dict[tuple[str, int, Readout], Sensor | str] = {}
        self._shared: dict[str, Mapping[str, Sensor]] = {}  # one object for all slices with the same products

    def refresh(self) -> None:
        """See what was published since."""
        self.number, self.slots = self._published()

    def _published(self) -> tuple[int, dict[int, Slot]]:
        """Number of the last publication, 0 for none, and its slices by slot."""
        pointers = list_pointers(self.store.url, self.name)
        return (pointers[-1].number, {one.slot: one for one in pointers[-1].slots}) if pointers else (0, {})

    def job(self, group: Group) -> Job:
        """The slice of a group: where it is in the cube already, or a new slot for it."""
        own = self.raw.isel(exposure=[self.places[e] for e in group.exposures])
        sensors, failed = self.sensors(own)
        record = self._record(group, own, sensors)
        known = [slot for slot, claim in self.claims.items() if claim["identity"] == record["identity"]]
        whole = [slot for slot in known if self._whole(slot, sensors)]
        known = whole or [slot for slot in known if self.claims[slot]["software"] == self.software]
        slot = max(known) if known else claim_slot(self.store.url, self.name, record)
        kept = self.claims.get(slot, record)  # what it is compared with was decided when it was claimed
        group = replace(group, compared=kept["compared"], compared_photons=kept["compared_photons"])
        published = self.slots[slot] if whole else None
        done = {} if published else read_markers(self.store.url, self.name, slot)
        return Job(group, slot, sensors, failed, done, published)

    @property
    def remarks(self) -> list[str]:
        """Doubts on the whole, and corrections that are left out, for nothing was built for them."""
        return [
            *self.doubts,
            *(f"{NOTE}without {step}: there is no {NEEDED[step]} in the store" for step in self.without),
        ]

    def _whole(self, slot: int, sensors: Mapping[str, Sensor]) -> bool:
        """Whether a slice is published and every CCD of it is there: who deletes a marker asks for it again."""
        if slot not in self.slots:
            return False
        names = objects.list_names(self.store.url, f"{base(self.name)}/done/{slot:05d}")
        return set(sensors) - set(self.slots[slot].missing) <= {name.removesuffix(".json") for name in names}

    def _record(self, group: Group, own: xr.Dataset, sensors: Mapping[str, Sensor]) -> dict[str, Any]:
        """What determines the bits of a slice."""
        pixels = {
            str(d): [h.decode() for h in own["pixels"].values[:, j]] for j, d in enumerate(own["detector"].values)
        }
        identity = {
            "headers": {e: digest(self.headers[e]) for e in group.exposures},
            "pixels": digest(pixels),
            "group": {k: v for k, v in asdict(group).items() if k not in ("compared", "compared_photons")},
            "upstream": {det: dict(one.versions) for det, one in sensors.items()},
            "configuration": [self.config.cube.model_dump(mode="json"), self.isr.model_dump(mode="json")],
        }
        compared = {"compared": group.compared, "compared_photons": group.compared_photons}
        about = {"wavelength": group.wavelength, "exposures": group.exposures, "software": self.software}
        made_of = {
            "headers": {e: self.headers[e] for e in group.exposures},
            "products": _products(sensors),
            "group": identity["group"],
            "configuration": identity["configuration"],
            **({"photodiode": self.diode.told(group.wavelength)} if self.diode else {}),
        }
        return {"identity": digest(identity), **about, **compared, "made_of": made_of}

    def sensors(self, own: xr.Dataset) -> tuple[Mapping[str, Sensor], dict[str, str]]:
        """Products of each CCD that has frames, and why some cannot be used."""
        found, failed = {}, {}
        time = str(np.datetime_as_string(own["time"].values.min(), unit="s"))
        for j, det in enumerate(str(name) for name in own["detector"].values):
            if not own["present"].values[:, j].any():
                failed[det] = "no frames"
                continue
            first = int(np.argmax(own["present"].values[:, j]))
            sensor = self._sensor(det, time, readout(own.isel(exposure=first), det))
            if isinstance(sensor, str):
                failed[det] = sensor
            else:
                found[det] = sensor
        shared = self._shared.setdefault(digest({det: one.versions for det, one in found.items()}), found)
        return shared, failed

    def _sensor(self, det: str, time: str, way: Readout) -> Sensor | str:
        """A CCD with its products, or why it lacks one; looked up once between two changes of validity."""
        epoch = bisect_right(self._changes, time)
        if (det, epoch, way) not in self._known:
            step = ("calibrate", self.isr.overscan)
            sensor: Sensor | str
            try:
                use = {s: find_upstream(self.upstream, NEEDED[s], det, time, step, way) for s in self.steps}
                versions = {name: (p.name, p.version) for name, p in use.items()}
                sensor = Sensor(self.store.camera.detector(det), versions)
            except CalibrationError as error:
                sensor = str(error)
            self._known[det, epoch, way] = sensor
        return self._known[det, epoch, way]


def _products(sensors: Mapping[str, Sensor]) -> list[dict[str, Any]]:
    """Products by correction, with the CCDs that have the same: ``detectors`` and ``versions``."""
    found: dict[str, dict[str, Any]] = {}
    for det, one in sensors.items():
        versions = {step: list(own) for step, own in one.versions.items()}
        found.setdefault(digest(versions), {"detectors": [], "versions": versions})["detectors"].append(det)
    return list(found.values())


def _claims(url: str, name: str) -> dict[int, dict[str, Any]]:
    """Records of all slots that were ever claimed, by number."""
    folder = f"{base(name)}/slots"
    names = [one for one in objects.list_names(url, folder) if one.endswith(".json")]
    return {int(one.removesuffix(".json")): objects.read_json(url, f"{folder}/{one}") for one in names}
