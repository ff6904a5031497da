"""What a file of the camera team says of each of its CCDs: Rubin's files and plain tables (¶2, ¶3, ¶5-¶7)."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import CalibrationError, StaleCalibration, UnitsError
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.storage.deliveries import DELIVERED
from lsstcal_dask.storage.products import lookup, open_product
from lsstcal_dask.storage.rubin.coupling import read_crosstalk
from lsstcal_dask.storage.rubin.covariance import read_transfer
from lsstcal_dask.storage.rubin.defects import read_defects
from lsstcal_dask.storage.rubin.files import RubinFile, read_file
from lsstcal_dask.storage.rubin.linearizer import read_linearizer
from lsstcal_dask.storage.rubin.ptc import labelled, read_eo_summary, read_ptc

__all__ = ["read_delivery", "start_of"]


def start_of(text: str, path: str) -> str:
    """A time as products hold it: UTC, with or without dashes, a fraction and an offset."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise CalibrationError(f"{path}: CALIBDATE {text!r} is no time: correct it, or give --valid-from") from None
    return (found.astimezone(UTC) if found.tzinfo else found).strftime("%Y-%m-%dT%H:%M:%S")


def read_delivery(
    product: str, path: str, store: Store, upstream: dict[str, dict[str, str]]
) -> Iterator[tuple[str, Any, RubinFile]]:
    """What a file says of each of its CCDs; products of the store that it took are added to ``upstream``."""
    camera = store.camera
    if product == "gain" and Path(path).suffix == ".parquet":
        found, file = read_eo_summary(path, camera)
        yield from ((name, value, file) for name, value in found.items())
    elif (table := _plain_table(path)) is not None:
        if product not in DELIVERED:
            raise CalibrationError(f"{path}: has no OBSTYPE: {product} is read from files of Rubin's software alone")
        yield from ((name, value, table) for name, value in DELIVERED[product](table, camera).items())
    elif product == "crosstalk":
        yield read_crosstalk(path, camera, lambda *of: _gains(store, upstream, path, *of))
    else:
        yield from _RUBIN[product](path, camera)


def _gains(store: Store, upstream: dict[str, dict[str, str]], path: str, detector: Detector, date: str) -> np.ndarray:
    """Gains of the store for crosstalk per adu: those in use at its date, or when the first are."""
    found = read_upstream(store.url)
    starts = [p.valid_from for p in found.pointers if p.name == "gain" and detector.name in p.detectors]
    time = max(start_of(date, path) if date else "", min(starts, default=""))
    try:
        used = lookup(found.pointers, "gain", detector.name, time, found.outdated, found.accepted)
    except StaleCalibration as error:
        raise UnitsError(f"{path}: {detector.name}: crosstalk is per adu and names no gains: {error}") from None
    upstream[detector.name] = {"gain": f"{used.version}/{used.hash}"}
    own = {a.name for a in detector.amplifiers}
    names = [name for name in store.camera.amplifier_names if name in own]
    product = open_product(store.url, "gain", used.version, chunked=False)
    return np.asarray(product["gain"].sel(detector=detector.name, amplifier=names).values, np.float64)


def _plain_table(path: str) -> RubinFile | None:
    """The file, if it is a table that is not one of Rubin's: those say what they are."""
    if Path(path).suffix.lower() == ".yaml":
        return None
    file = read_file(path)
    return file if file.entry("OBSTYPE") is None else None


def _rubin_gain(path: str, camera: Camera) -> Iterator[tuple[str, Any, RubinFile]]:
    found = read_ptc(path, camera)
    assert found.file is not None
    yield found.detector, found.gains, found.file


def _rubin_saturation(path: str, camera: Camera) -> Iterator[tuple[str, Any, RubinFile]]:
    """Turnoff of the photon transfer curve, electron: that of the file times its gain."""
    found = read_ptc(path, camera)
    assert found.file is not None
    gain = found.gains["gain"].values
    values = {"ptc_turnoff": found.turnoff * gain, "ptc_turnoff_error": found.turnoff_error * gain}
    yield found.detector, labelled(values, camera.detector(found.detector)), found.file


def _rubin_defects(path: str, camera: Camera) -> Iterator[tuple[str, Any, RubinFile]]:
    found = read_defects(path, camera)
    assert found.file is not None
    yield found.detector, [found], found.file


def _one(read: Callable[[str, Camera], Any]) -> Callable[[str, Camera], Iterator[tuple[str, Any, RubinFile]]]:
    def reads(path: str, camera: Camera) -> Iterator[tuple[str, Any, RubinFile]]:
        yield read(path, camera)

    return reads


_RUBIN: Final = {
    "gain": _rubin_gain,
    "linearity": _one(read_linearizer),
    "defects": _rubin_defects,
    "saturation": _rubin_saturation,
    "ptc": _one(read_transfer),
}
