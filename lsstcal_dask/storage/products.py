"""Calibration products in Zarr: immutable versions, resumed after a kill, published by one small pointer (§1-§13).

    products/<name>/<version>/data/           Zarr group of the whole product, one chunk per amplifier
    products/<name>/<version>/done/<det>.json a detector is whole: hashes of its values, its QA record
    products/<name>/published/<version>.json  the pointer: validity, provenance, verdict
    products/<name>/accepted/<version>.json   a remeasured version that is used instead of the camera team's
    products/<name>/delivered/                files of the camera team that were imported, see `storage.delivered`

The version is a hash of everything that determines the bits (inputs,
configuration, software), so a build that was killed finds its own half-finished
version again and completes it. Nothing is visible before the pointer is.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.core import indexing

from lsstcal_dask.errors import CalibrationError, OutsideValidity, StaleCalibration
from lsstcal_dask.mapping import AmplifierResults, Output, empty_values, output_attributes, output_dims
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.chunks import PRODUCT, ChunkArray
from lsstcal_dask.storage.conditions import Records, changed_condition
from lsstcal_dask.storage.provenance import digest, hash_arrays
from lsstcal_dask.variables import MASK_BITS, NOTE, VARIABLES, attributes

__all__ = [
    "CAMERA_TEAM",
    "Pointer",
    "Template",
    "accept_version",
    "check_product",
    "create_template",
    "finished",
    "list_accepted",
    "list_products",
    "lookup",
    "open_product",
    "outdated",
    "publish",
    "write_detector",
]

CAMERA_TEAM = "camera_team"
"""Origin of a product that was delivered; all others are ``remeasured``."""

_SYNTHESISED = ("sky_flat", "photometric_flat")
"""What 'synthesize' makes, for each filter."""

_FRINGE_METHODS = {"fringe_frame": "classical", "fringe_modes": "pca"}
"""What 'fringes' makes of frames of the sky, for each filter, by which method."""

_NAMED = 3
"""Validities that a message names: a sky has one for each visit."""

_LARGE = frozenset({"source", "block_x"})
"""Dimensions of variables that are read when they are used, though they have no pixels."""

_MAIN = ("image", "gain", "sky_level", "fringe_map")
"""Variables without which an amplifier of a product that has them is of no use."""


@dataclass(frozen=True)
class Template:
    """Shape of a product before any of it is computed."""

    outputs: Mapping[str, Output]
    sizes: Mapping[str, int]
    coords: Mapping[str, tuple[tuple[str, ...], Sequence[Any]]]  # name: (dims, values)
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pointer:
    """What is published of a product: everything about it but the pixels."""

    name: str
    valid_from: str  # ISO, UTC
    inputs: dict[str, Any]  # exposures and upstream products with their hashes
    configuration: dict[str, Any]
    software: dict[str, str]
    failed: dict[str, str]  # detectors that could not be made, with the reason
    remarks: list[str]  # what a person should know, one line each
    valid_until: str = ""  # ISO, UTC, exclusive; empty while open-ended
    version: str = ""
    detectors: dict[str, str] = field(default_factory=dict)  # name: hash of its values
    verdict: str = "PASS"  # PASS, WARN or FAIL
    created: str = ""
    origin: str = "remeasured"  # or CAMERA_TEAM

    @property
    def hash(self) -> str:
        """Hash of the values: what a product made from this one records."""
        return digest(self.detectors)


def _base(name: str, version: str) -> str:
    return f"products/{name}/{version}"


def create_template(url: str, name: str, version: str, template: Template) -> None:
    """Create the empty arrays of a version; does nothing where they exist already."""
    base = _base(name, version)
    if objects.exists(url, f"{base}/template.json"):
        return
    objects.sweep(url, f"{base}/data")
    objects.create_group(url, f"{base}/data", dict(template.attrs))
    for var, output in template.outputs.items():
        _create_variable((url, f"{base}/data"), var, output, template.sizes)
    for coord, (dims, values) in template.coords.items():
        array = np.asarray(values)
        text = array.dtype.kind in "OU"
        if array.dtype.kind == "M":
            array = array.astype("datetime64[ns]").astype(np.int64)
        target = objects.create_or_open(
            url,
            f"{base}/data",
            name=coord,
            shape=array.shape,
            dtype="string" if text else array.dtype,
            dimension_names=dims,
            attributes=_coordinate_attributes(coord, np.asarray(values)),
        )
        objects.fill(url, target, array.astype(object) if text else array)
    objects.write_json(url, f"{base}/template.json", {"variables": sorted(template.outputs)})


def _coordinate_attributes(coord: str, values: np.ndarray) -> dict[str, Any]:
    if values.dtype.kind == "M":
        return {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    return attributes(coord) if coord in VARIABLES else {}


def _create_variable(place: tuple[str, str], var: str, output: Output, sizes: Mapping[str, int]) -> None:
    dims = output_dims(var, output, sizes)
    single = {"exposure", "detector", "amplifier"} if _is_image(dims) else {"detector"}
    objects.create_or_open(
        *place,
        name=var,
        shape=tuple(sizes[dim] for dim in dims),
        chunks=tuple(1 if dim in single else max(sizes[dim], 1) for dim in dims),
        dtype=output.dtype,
        fill_value=empty_values(var, output, ()).item(),
        compressors=PRODUCT.compressors if _is_image(dims) else "auto",
        dimension_names=dims,
        attributes=output_attributes(var, output),
    )


def finished(url: str, name: str, version: str) -> dict[str, dict[str, Any]]:
    """Records of the detectors of a version that are whole."""
    found = {}
    markers = objects.list_names(url, f"{_base(name, version)}/done")
    for marker in (marker for marker in markers if marker.endswith(".json")):
        found[marker.removesuffix(".json")] = objects.read_json(url, f"{_base(name, version)}/done/{marker}")
    return found


def write_detector(
    url: str, name: str, version: str, place: tuple[int, str], results: AmplifierResults
) -> dict[str, Any]:
    """Write one detector, amplifier by amplifier as they come, and then its marker.

    Parameters
    ----------
    place : position and name of the detector along the product's detector axis.
    results : name and values of each amplifier; the attrs ``remarks`` (list of str), ``of_detector`` (those that
        concern all of it) and ``summary`` (dict of numbers) of each are kept in the marker.

    Returns
    -------
    The marker: ``hash`` of the values, number of ``usable`` amplifiers, ``remarks``, and ``summary`` by amplifier.
    """
    index, detector = place
    writer = _Writer(url, f"{_base(name, version)}/data", index)
    hashes, remarks, summary, usable = {}, [], {}, 0
    for amplifier, result in results:
        arrays = {str(var): writer.put(amplifier, str(var), result[var].values) for var in result.data_vars}
        hashes[amplifier] = hash_arrays(arrays)
        usable += _usable(arrays)
        remarks += [_placed(f"{detector}: ", remark) for remark in result.attrs.get("of_detector", [])]
        remarks += [_placed(f"{detector} {amplifier}: ", remark) for remark in result.attrs.get("remarks", [])]
        summary[amplifier] = result.attrs.get("summary", {})
    writer.finish()
    marker = {"hash": digest(hashes), "usable": usable, "remarks": remarks, "summary": summary}
    objects.write_json(url, f"{_base(name, version)}/done/{detector}.json", marker)
    return marker


def _usable(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether an amplifier has anything to apply: a number, or of a mask alone a pixel that is looked at."""
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    main = {name: array for name, array in numbers.items() if name in _MAIN} or numbers
    if main:
        return any(bool(np.isfinite(array).any()) for array in main.values())
    return bool((arrays["mask"] & MASK_BITS["NO_DATA"] == 0).any()) if "mask" in arrays else True


class _Writer:
    """Writes the values of one detector into the arrays of a version.

    Pixels go to the store as they come; amplifiers share a chunk of anything smaller, which is written at the end.
    """

    def __init__(self, url: str, path: str, index: int) -> None:
        self.url, self.path, self.index = url, path, index
        group = zarr.open_group(objects.zarr_store(url, path), mode="r+")
        self.arrays = dict(group.arrays())
        self.amplifiers = [str(name) for name in np.asarray(self.arrays["amplifier"][...])]
        self.small: dict[str, np.ndarray] = {}

    def put(self, amplifier: str, var: str, values: np.ndarray) -> np.ndarray:
        """Take the values of a variable of an amplifier; gives them as they are stored."""
        target, at = self.arrays[var], self.amplifiers.index(amplifier)
        values, dims = np.asarray(values, dtype=target.dtype), _dims(target)
        if _is_image(dims):
            planes = enumerate(values) if "exposure" in dims else [(0, values)]
            for exposure, plane in planes:
                if "exposure" in dims and not np.isfinite(plane).any():
                    continue  # most amplifiers have no spot in most exposures
                place = {"exposure": exposure, "detector": self.index, "amplifier": at}
                chunk = "/".join(str(place.get(dim, 0)) for dim in dims)
                objects.write_bytes(self.url, f"{self.path}/{var}/c/{chunk}", PRODUCT.encode(plane))
        else:
            empty = np.full(target.chunks, target.fill_value, target.dtype)
            part = self.small.setdefault(var, empty)
            key = tuple(slice(at, at + 1) if dim == "amplifier" else slice(None) for dim in dims)
            part[key] = values.reshape(part[key].shape)
        return values

    def finish(self) -> None:
        """Write what the amplifiers share."""
        for var, values in self.small.items():
            key = tuple(
                slice(self.index, self.index + 1) if dim == "detector" else slice(None)
                for dim in _dims(self.arrays[var])
            )
            objects.fill(self.url, self.arrays[var], values, key)


def _placed(where: str, remark: str) -> str:
    return NOTE + where + remark.removeprefix(NOTE) if remark.startswith(NOTE) else where + remark


def _dims(array: zarr.Array) -> tuple[str, ...]:
    return tuple(str(dim) for dim in array.metadata.dimension_names)  # type: ignore[union-attr]


def publish(url: str, pointer: Pointer) -> bool:
    """Make a version visible; False if it already was."""
    return objects.create(url, f"products/{pointer.name}/published/{pointer.version}.json", asdict(pointer))


def list_products(url: str, name: str | None = None) -> list[Pointer]:
    """Published products, by name, start of validity and time of creation."""
    names = [name] if name else objects.list_names(url, "products")
    found = []
    for product in names:
        published = objects.list_names(url, f"products/{product}/published")
        for pointer in (name for name in published if name.endswith(".json")):
            found.append(_read_pointer(url, f"products/{product}/published/{pointer}"))
    return sorted(found, key=lambda p: (p.name, p.valid_from, p.created, p.version))


def _read_pointer(url: str, path: str) -> Pointer:
    found = objects.read_json(url, path)
    try:
        return Pointer(**found)
    except TypeError:
        raise CalibrationError(
            f"{url}/{path}: is damaged: restore it from a copy, or delete it and build again"
        ) from None


def outdated(
    pointers: Sequence[Pointer],
    headers: Mapping[str, str],
    records: Records = MappingProxyType({}),
    corrected: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Versions made from exposures whose header is another now, or otherwise corrected, or from such; with the reason.

    Parameters
    ----------
    headers : hash of the header of every exposure, as `record_digests` finds it.
    records : what `read_records` found: sequencer, temperature and voltage of each detector too are looked at.
    corrected : versions made with a table that was corrected since, with the reason.
    """
    found = dict(corrected)
    for pointer in pointers:
        for exposure, digest_then in pointer.inputs.get("headers", {}).items():
            if headers.get(exposure) != digest_then:
                found[pointer.version] = f"made from exposure {exposure}, whose header has changed since"
                break
        if pointer.version not in found and records and (frame := changed_condition(pointer.inputs, records)):
            exposure, detector = frame
            what = f"sequencer, temperature or voltage of {detector}"
            found[pointer.version] = f"made from exposure {exposure}, whose {what} has changed since"
    used = {p.version: _upstream_versions(p) for p in pointers}
    while new := {v: sorted(use & set(found))[0] for v, use in used.items() if v not in found and use & set(found)}:
        found |= {version: f"made with {old}, which was {found[old]}" for version, old in new.items()}
    return found


def _upstream_versions(pointer: Pointer) -> set[str]:
    return {text.partition("/")[0] for use in pointer.inputs.get("upstream", {}).values() for text in use.values()}


def lookup(
    pointers: Sequence[Pointer],
    name: str,
    detector: str,
    time: str,
    stale: Mapping[str, str] = MappingProxyType({}),
    accepted: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Pointer:
    """The product to use for a detector at a time: of those valid then, the one that starts and was made last.

    Where the camera team delivered one that is valid then, that is used, unless a remeasured one was accepted for
    this detector over it (§2-§5: identical to the inputs, unless updated).

    Parameters
    ----------
    pointers : what `list_products` found.
    time : ISO, UTC.
    stale : versions that must not be used, with the reason.
    accepted : what `list_accepted` found.

    Raises
    ------
    StaleCalibration
        There is none, or it is one of ``stale``.
    OutsideValidity
        None is valid at that time; the message says what there is.
    """
    candidates = [p for p in pointers if p.name == name and detector in p.detectors and p.verdict != "FAIL"]
    valid = [p for p in candidates if p.valid_from <= time and (not p.valid_until or time < p.valid_until)]
    if current := [p for p in valid if p.version not in stale]:
        return _preferred(current, detector, accepted)
    if valid:
        version = valid[-1].version
        again = _synthesis(name, "run 'lsstcal cube', then {}") or f"build {name} again"
        raise StaleCalibration(f"{name} {version} was {stale[version]}: {again}")
    if not candidates:
        raise StaleCalibration(f"there is no {name}: {_synthesis(name, 'run {}') or 'build it first'}")
    spans = ", ".join(f"{p.valid_from} to {p.valid_until or 'open'}" for p in candidates[-_NAMED:])
    more = f"{len(candidates) - _NAMED} more and " if len(candidates) > _NAMED else ""
    remedy = _synthesis(name, "run {}, or make one for more of them with --valid-from", " --visit EXPOSURE")
    raise OutsideValidity(
        f"no {name} is valid at {time} (there is {more}{spans}): "
        f"{remedy or 'build one for that time, or widen one with --valid-from'}"
    )


def _synthesis(name: str, text: str, more: str = "") -> str:
    """A remedy, with the command that makes a flat of a filter; empty for what is built."""
    kind, _, band = name.partition("-")
    if kind in _FRINGE_METHODS:
        return f"run 'lsstcal fringes --method {_FRINGE_METHODS[kind]} --filter {band}' with frames of that time"
    if kind not in _SYNTHESISED:
        return ""
    visit = more if kind == "sky_flat" else ""
    return text.format(f"'lsstcal synthesize {kind} --filter {band}{visit}'")


def _preferred(current: Sequence[Pointer], detector: str, accepted: Mapping[str, Mapping[str, Any]]) -> Pointer:
    """Of valid products the one whose turn it is."""
    team = [p for p in current if p.origin == CAMERA_TEAM]
    if not team:
        return current[-1]
    for pointer in reversed([p for p in current if p.origin != CAMERA_TEAM]):
        record = accepted.get(pointer.version, {})
        if record.get("over") == team[-1].version and detector in record.get("detectors", {}):
            return pointer
    return team[-1]


def accept_version(url: str, name: str, version: str, record: Mapping[str, Any]) -> None:
    """Let a remeasured version be used instead of the camera team's; atomic, over an earlier acceptance.

    Parameters
    ----------
    record : ``over``, the camera team's version; ``detectors``, those for which it is used, with how much it differs.
    """
    objects.write_json(url, f"products/{name}/accepted/{version}.json", dict(record))


def list_accepted(url: str) -> dict[str, dict[str, Any]]:
    """What `accept_version` recorded, by version."""
    found = {}
    for product in objects.list_names(url, "products"):
        names = objects.list_names(url, f"products/{product}/accepted")
        for name in (name for name in names if name.endswith(".json")):
            found[name.removesuffix(".json")] = objects.read_json(url, f"products/{product}/accepted/{name}")
    return found


@dataclass(frozen=True)
class _Pixels:
    """Where the chunks of a variable ([exposure,] detector, amplifier, y, x) of a product are."""

    url: str
    name: str
    version: str
    variable: str
    dtype: str
    made: list[str]  # by detector: its name, empty if it could not be made

    def locate(self, index: tuple[int, ...]) -> tuple[str, str] | None:
        *exposure, detector, _ = index
        if not self.made[detector]:
            return None
        place = "/".join(map(str, index))
        path = f"{_base(self.name, self.version)}/data/{self.variable}/c/{place}/0/0"
        if exposure and not objects.exists(self.url, path):  # empty planes are not written
            return None
        return path, self.dtype

    def damaged(self, index: tuple[int, ...], reason: str) -> str:
        return (
            f"{self.name} {self.version} {self.made[index[-2]]}: its stored pixels cannot be read ({reason}): delete "
            f"products/{self.name}/published/{self.version}.json and {_base(self.name, self.version)}, "
            f"then build it again"
        )


def open_product(url: str, name: str, version: str, *, chunked: bool = True) -> xr.Dataset:
    """Open a published product lazily, one chunk per amplifier (or, not ``chunked``, read when indexed).

    Raises
    ------
    CalibrationError
        That version was never published.
    """
    if not objects.exists(url, f"products/{name}/published/{version}.json"):
        raise CalibrationError(f"{name} {version} is not published in {url}: see 'lsstcal ls'")
    found = _open(url, name, version).copy()  # what the caller does to it stays with the caller
    if not chunked:
        return found
    single = {"detector": 1, "amplifier": 1}
    pixels = {v: found[v].variable.chunk(single) for v in found.data_vars if _is_image(found[v].dims)}
    return found.assign(pixels)


def _is_image(dims: Iterable[Hashable]) -> bool:
    """Whether a variable has pixels, which are stored in chunks of their own."""
    return {"y", "x"} <= set(dims)


@lru_cache(maxsize=64)
def _open(url: str, name: str, version: str) -> xr.Dataset:
    # What is published is never changed, so an open product can be kept.
    pointer = objects.read_json(url, f"products/{name}/published/{version}.json")
    store = objects.zarr_store(url, f"{_base(name, version)}/data", read_only=True)
    fills = {var: array.fill_value for var, array in zarr.open_group(store, mode="r").arrays()}
    found = xr.open_zarr(store, consolidated=False, chunks=None)
    pixels = {str(v) for v in found.data_vars if _is_image(found[v].dims)}
    made = [str(det) if det in pointer["detectors"] else "" for det in found["detector"].values]
    for var in sorted(pixels):
        old = found[var].variable
        source = _Pixels(url, name, version, var, old.dtype.name, made)
        like = np.broadcast_to(np.zeros((), old.dtype), old.shape)
        lazy = indexing.LazilyIndexedArray(ChunkArray(url, PRODUCT, source, like, fills[var]))
        found[var] = xr.Variable(old.dims, lazy, old.attrs)
    for var in (str(v) for v in found.data_vars if not (_is_image(found[v].dims) or _LARGE & set(found[v].dims))):
        found[var].load()  # small, and read again and again
        found[var].values.flags.writeable = False
    found = found.set_coords([name for name, var in found.data_vars.items() if "detector" not in var.dims])
    return found.assign_attrs({key: pointer[key] for key in ("name", "version", "valid_from", "verdict")})


def check_product(url: str, pointer: Pointer) -> list[str]:
    """Detectors whose stored values no longer have the hash they were published with."""
    dataset = open_product(url, pointer.name, pointer.version, chunked=False)
    bad = []
    for detector, expected in pointer.detectors.items():
        amplifiers = objects.read_json(url, f"{_base(pointer.name, pointer.version)}/done/{detector}.json")["summary"]
        hashes = {}
        for amplifier in amplifiers:
            part = dataset.sel(detector=detector, amplifier=amplifier)
            try:
                hashes[amplifier] = hash_arrays({str(var): part[var].values for var in part.data_vars})
            except CalibrationError:  # a chunk that cannot even be decoded
                hashes[amplifier] = "unreadable"
        if digest(hashes) != expected:
            bad.append(detector)
    return bad
