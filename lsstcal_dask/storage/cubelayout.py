"""What flat cubes look like in a store: the response of every pixel at every wavelength that was taken (¶9, §7).

    cubes/NAME/cube.json                 form, camera: `CubeLayout`
    cubes/NAME/arrays.json               the arrays of data/ are all there
    cubes/NAME/slots/SLOT.json           what a slice is made from: headers, products of each CCD, settings, software;
                                         SLOT is its place along the stored axis
    cubes/NAME/data/                     Zarr group that any Zarr library opens
        codes      (detector, amplifier, wavelength, y, x)   see `coding`; a shard is one CCD of one wavelength
        reference  of the same dims, float32, form i1 only: few slices have one
        mask       (detector, amplifier, y, x)               bits that pixels have at all wavelengths
        scale, offset, level, variance_slope, variance_floor, repeats (detector, amplifier, wavelength)
        total, pixels (detector, amplifier, wavelength)      sum of the values of the good pixels, their number
        reference_slot (detector, wavelength)                slot of the reference of a slice; -1 without one
        wavelength, wavelength_error, bandwidth, response, response_error (wavelength,)
        response_common, response_single, response_photon (wavelength,): the covariance of response over its squares is
            common common', and on the diagonal single**2 + photon**2 too
    cubes/NAME/exceptions/SLOT/DET.npy   the pixels that are not as codes and mask say, of `coding.EXCEPTION`
    cubes/NAME/done/SLOT/DET.json        marker: this CCD of this slice is whole; its numbers, a checksum of the mask
    cubes/NAME/published/N.json          the pointer: which slots are in the cube, checksums of their numbers; N counts

The wavelength axis on disk is in the order of arrival, so a slice is added without touching another; what
`open_cube` and `CubeReader` give is sorted by measured wavelength and has only what the pointer names.
The variance of a pixel is ``variance_slope * value + variance_floor``, times ``repeats`` over those of
an exception.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import google_crc32c
import numpy as np

from lsstcal_dask.errors import CalibrationError, StoreFailure
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.coding import DTYPES, EXCEPTION, NUMBERS, Form
from lsstcal_dask.storage.cubenumbers import checksums, read_arrays
from lsstcal_dask.storage.shards import ShardCodec, ShardFile

__all__ = [
    "SLOT_COORDS",
    "Cube",
    "CubeLayout",
    "CubePointer",
    "Slot",
    "base",
    "exception_bytes",
    "last_number",
    "list_cubes",
    "list_pointers",
    "load_layout",
    "lost_mask",
    "mask_checksum",
    "read_claim",
    "read_cube",
    "read_exceptions",
    "read_mask",
    "read_numbers",
    "shard_path",
]

_CHECKSUM: Final = 4  # bytes

SLOT_COORDS: Final = (
    "wavelength",
    "wavelength_error",
    "bandwidth",
    "response",
    "response_error",
    "response_common",
    "response_single",
    "response_photon",
)
"""Numbers of a slice."""


@dataclass(frozen=True)
class CubeLayout:
    """What all slices of a cube have in common."""

    form: Form
    detectors: tuple[str, ...]
    amplifiers: tuple[str, ...]
    shape: tuple[int, int]  # (y, x) of an amplifier, padded

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of all dims but that of wavelength."""
        ny, nx = self.shape
        return {"detector": len(self.detectors), "amplifier": len(self.amplifiers), "y": ny, "x": nx}

    @property
    def codec(self) -> ShardCodec:
        """Of the codes."""
        return ShardCodec(DTYPES[self.form], (len(self.amplifiers), *self.shape))

    @property
    def mask_codec(self) -> ShardCodec:
        """Of the mask."""
        return ShardCodec("<u2", (len(self.amplifiers), *self.shape))

    @property
    def reference_codec(self) -> ShardCodec:
        """Of the references of form i1."""
        return ShardCodec("<f4", (len(self.amplifiers), *self.shape))


@dataclass(frozen=True)
class Slot:
    """What is published of a slice: everything but its pixels."""

    slot: int
    wavelength: float  # nm, vacuum, measured centroid
    wavelength_error: float  # nm
    bandwidth: float  # nm, full width at half maximum
    time: str  # ISO, UTC, of its first exposure
    response: float  # r: mean of the focal plane, in the unit of the values
    response_error: float
    nominal: float = float("nan")  # nm, what was asked for
    exposures: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # detectors that it lacks, with the reason
    hash: str = ""
    remarks: list[str] = field(default_factory=list)
    verdict: str = "PASS"
    response_common: float = float("nan")  # relative error of r that all wavelengths share
    response_single: float = float("nan")  # the same, of the photodiode in these exposures
    response_photon: float = float("nan")  # the same, of their electrons
    numbers: int | None = None  # checksum of its numbers, see `cubenumbers`


@dataclass(frozen=True)
class CubePointer:
    """What a cube holds, from the publication of this pointer on."""

    number: int
    slots: list[Slot]  # by wavelength
    created: str
    configuration: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def base(name: str) -> str:
    """Folder of a cube in its store."""
    if {"/", "\\", ".."} & {*name, name} or not name:  # never outside the store
        raise CalibrationError(f"{name!r} is no name of a cube: use letters, digits and dashes")
    return f"cubes/{name}"


def shard_path(name: str, variable: str, detector: int, slot: int | None = None) -> str:
    """Path of the shard of a CCD, at a slot where the variable has that dim."""
    at = "" if slot is None else f"{slot}/"
    return f"{base(name)}/data/{variable}/c/{detector}/0/{at}0/0"


def exception_bytes(exceptions: np.ndarray) -> bytes:
    """A list of exceptions as a NumPy file, with a CRC-32C of all of it behind, which NumPy does not mind."""
    out = io.BytesIO()
    np.save(out, exceptions, allow_pickle=False)
    return out.getvalue() + google_crc32c.value(out.getvalue()).to_bytes(_CHECKSUM, "little")


def read_exceptions(blob: bytes) -> np.ndarray:
    """What `exception_bytes` wrote; ValueError where it is damaged."""
    if google_crc32c.value(blob[:-_CHECKSUM]) != int.from_bytes(blob[-_CHECKSUM:], "little"):
        raise ValueError("the checksum of its exceptions is wrong")
    return np.frombuffer(blob[blob.index(b"\n") + 1 : -_CHECKSUM], EXCEPTION)


@lru_cache(maxsize=64)
def load_layout(url: str, name: str) -> CubeLayout:
    """Layout of a cube, which never changes.

    Raises
    ------
    CalibrationError
        There is no such cube.
    """
    try:
        found = objects.read_json(url, f"{base(name)}/cube.json")
    except FileNotFoundError:
        raise CalibrationError(f"{url} has no cube {name}: make it with 'lsstcal cube {url} --name {name}'") from None
    return CubeLayout(found["form"], tuple(found["detectors"]), tuple(found["amplifiers"]), tuple(found["shape"]))


def list_cubes(url: str) -> list[str]:
    """Names of the cubes of a store, also of those of which nothing is published."""
    return objects.list_names(url, "cubes")


def list_pointers(url: str, name: str) -> list[CubePointer]:
    """What was published of a cube, the last one last."""
    folder = f"{base(name)}/published"
    found = [one for one in objects.list_names(url, folder) if one.endswith(".json")]
    return [_read_pointer(url, f"{folder}/{one}") for one in found]


def last_number(url: str, name: str) -> int:
    """Number of what was published last of a cube; 0 for nothing."""
    pointers = list_pointers(url, name)
    return pointers[-1].number if pointers else 0


@lru_cache(maxsize=2048)
def read_claim(url: str, name: str, slot: int) -> dict[str, Any]:
    """What a slot was claimed for, and what its slice was made from, which never changes; empty where it is lost."""
    try:
        return dict(objects.read_json(url, f"{base(name)}/slots/{slot:05d}.json"))
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=64)
def _read_pointer(url: str, path: str) -> CubePointer:
    found = objects.read_json(url, path)
    try:
        return CubePointer(**{**found, "slots": [Slot(**one) for one in found["slots"]]})
    except (KeyError, TypeError):
        raise CalibrationError(f"{url}/{path}: is damaged: restore it from a copy, or delete it") from None


@dataclass(frozen=True)
class Cube:
    """A published cube: everything but its pixels, of K wavelengths in ascending order."""

    url: str
    name: str
    layout: CubeLayout
    pointer: CubePointer
    slots: np.ndarray  # (K,)
    numbers: dict[str, np.ndarray]  # see `coding.NUMBERS`, each (detector, amplifier, K) float64
    reference_slot: np.ndarray  # (detector, K)

    def column(self, what: str) -> np.ndarray:
        """(K,) numbers of `SLOT_COORDS`."""
        return np.array([getattr(one, what) for one in self.pointer.slots], float)

    @property
    def present(self) -> np.ndarray:
        """(detector, K) bool: there is such a slice of this CCD."""
        return np.isfinite(self.numbers["scale"]).any(axis=1)


@lru_cache(maxsize=4)
def _read(url: str, name: str, number: int) -> Cube:
    layout = load_layout(url, name)
    pointer = next(one for one in list_pointers(url, name) if one.number == number)
    slots = np.array([one.slot for one in pointer.slots], np.int64)
    numbers = read_numbers(url, name, pointer)
    mine = {var: numbers[var] for var in NUMBERS}
    return Cube(url, name, layout, pointer, slots, mine, numbers["reference_slot"])


def read_numbers(url: str, name: str, pointer: CubePointer) -> dict[str, np.ndarray]:
    """Numbers of the published slices, see `cubenumbers`, each (detector, amplifier, K) or (detector, K).

    Raises
    ------
    StoreFailure
        They are not those that were published.
    """
    remedy = f"run 'lsstcal cube {url} --name {name}' again: it writes them anew from {base(name)}/done"
    try:
        found = read_arrays(url, f"{base(name)}/data", [one.slot for one in pointer.slots])
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise StoreFailure(f"cube {name}: its numbers are damaged ({reason}): {remedy}") from error
    sums = checksums(found)
    bad = [one for one, own in zip(pointer.slots, sums, strict=True) if one.numbers not in (None, own)]
    if bad:
        where = ", ".join(f"{one.wavelength:.2f}" for one in bad[:3]) + (" ..." if len(bad) > 3 else "")
        raise StoreFailure(
            f"cube {name} at {where} nm: its numbers in {base(name)}/data are not those that were published: {remedy}"
        )
    return found


def read_cube(url: str, name: str, number: int | None = None) -> Cube:
    """Open a cube as it was published last, or by its number; what is published never changes.

    Raises
    ------
    CalibrationError
        There is no such cube, or nothing of it is published.
    """
    load_layout(url, name)
    known = [one.number for one in list_pointers(url, name)]
    if not known or number not in (None, *known):
        which = "" if number is None else f" under number {number}"
        raise CalibrationError(f"cube {name} of {url} is not published{which}: run 'lsstcal cube {url} --name {name}'")
    return _read(url, name, known[-1] if number is None else number)


def read_mask(
    url: str, name: str, layout: CubeLayout, detector: int, amplifiers: Sequence[int] | None = None
) -> np.ndarray | None:
    """Bits (amplifier, y, x) that pixels of a CCD have at all wavelengths; None where no slice of it is.

    Parameters
    ----------
    amplifiers : places of those to read; all by default.

    Raises
    ------
    StoreFailure
        It is damaged.
    """
    codec, own = layout.mask_codec, range(len(layout.amplifiers)) if amplifiers is None else amplifiers
    out = np.empty((len(own), *layout.shape), codec.dtype)
    try:
        ShardFile(url, codec).read(shard_path(name, "mask", detector), own, out)
    except FileNotFoundError:
        return None
    except (RuntimeError, ValueError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise lost_mask(url, name, layout, detector, str(error)) from error
    return out


def lost_mask(url: str, name: str, layout: CubeLayout, detector: int, why: str) -> StoreFailure:
    """What to say of a mask that is damaged or missing: codes and exceptions mean nothing without it."""
    det = layout.detectors[detector]
    return StoreFailure(
        f"cube {name} {det}: its mask cannot be read ({why}): delete {shard_path(name, 'mask', detector)} and "
        f"{base(name)}/done/*/{det}.json, then run 'lsstcal cube {url} --name {name}' again"
    )


def mask_checksum(mask: np.ndarray) -> int:
    """CRC-32C of a mask (amplifier, y, x), which the markers of its slices tell."""
    return int(google_crc32c.value(np.ascontiguousarray(mask, "<u2").reshape(-1).view(np.uint8)))
