"""Raw FITS frames in and out (Appendix A, ¶1): one file is one CCD of one exposure.

The bytes are read once; the headers are parsed without astropy (`blocks`), Rice tiles are decoded in one
compiled loop (`rice`), both without the interpreter lock or warnings; astropy decodes what remains.
"""

import gzip
import os
import re
import uuid
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from astropy.io import fits

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument.blocks import CardValue, Hdu, split_blocks
from lsstcal_dask.instrument.camera import Amplifier, Box, Camera, Detector
from lsstcal_dask.instrument.headers import HeaderRules, exposure_table, fill_template, odd_wavelength, table_cards
from lsstcal_dask.instrument.rice import decode_rice, is_plain_rice

__all__ = ["Frame", "FrameHeader", "header_remark", "read_frame", "read_header", "write_frame"]

_IDENTITY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SECTION: Final = re.compile(r"\[(\d+):(\d+),(\d+):(\d+)\]")
_SUFFIXES: Final = (".gz", ".fz", ".fits", ".fit", ".fts")
_TYPES: Final = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_PACKINGS: Final = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS")
_STRUCTURE: Final = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|EXTEND|BZERO|BSCALE|CHECKSUM|DATASUM|END|Z?(TFORM|TTYPE).*"
)


@dataclass(frozen=True, eq=False)
class FrameHeader:
    """What the headers of a raw frame say."""

    exposure: str
    detector: str
    header: dict[str, Any]  # as `headers.exposure_table` makes it
    cards: dict[str, CardValue]  # of the primary header


@dataclass(frozen=True, eq=False)
class Frame(FrameHeader):
    """One CCD of one exposure."""

    counts: np.ndarray  # (amplifier, y, x), adu, camera.dtype, camera.raw_shape, readout orientation
    present: tuple[str, ...]  # amplifiers that the frame holds; the others are zero


def read_header(
    data: bytes | str | Path, camera: Camera, *, name: str = "", exposure_type: str | None = None
) -> FrameHeader:
    """Exposure, detector and header table of a raw frame, without decoding its pixels.

    Parameters
    ----------
    data, camera, name, exposure_type : see `read_frame`.

    Raises
    ------
    CalibrationError
        See `read_frame`; pixels and amplifiers are not looked at.
    """
    return _read_header(_units(data, name), camera, name or _name(data), exposure_type)[0]


def header_remark(head: FrameHeader, camera: Camera) -> str:
    """What a person should know of a header that was read, or nothing: a flat whose wavelength is none."""
    odd = odd_wavelength(_rules(camera), head.cards) if head.header["exposure_type"] == "flat" else ""
    return odd and (
        f"exposure {head.exposure}: {odd}, no wavelength in nm: it counts as a flat without one; if it is "
        f"monochromatic, correct the header and ingest it with --correct"
    )


def read_frame(data: bytes | str | Path, camera: Camera, *, name: str = "", exposure_type: str | None = None) -> Frame:
    """Raw frame of one CCD.

    Parameters
    ----------
    data : the bytes of the file, gzipped or not, or its path.
    camera : it belongs to.
    name : of the file, for errors and for identities made from the file name; default, that of the path.
    exposure_type : overrules the header; needed where that says none.

    Returns
    -------
    Frame with counts (amplifier, y, x), adu, in readout orientation, amplifiers in the order of
    ``camera.amplifier_names``, padded with zeros to ``camera.raw_shape``.

    Raises
    ------
    CalibrationError
        Truncated, not FITS, or of unknown type or time.
    InconsistentGeometry
        Detector, amplifiers, their shapes or DATASEC are not the camera's.
    UnitsError
        A time is no number >= 0, or pixels are not counts of the camera's dtype.
    """
    blob, units = _units(data, name)
    found, detector, where = _read_header((blob, units), camera, name or _name(data), exposure_type)
    counts = np.zeros((len(camera.amplifier_names), *camera.raw_shape), camera.dtype)
    reader = {"amplifiers": _read_amplifiers, "taps": _read_taps}[camera.file_format]
    rows = {a: i for i, a in enumerate(camera.amplifier_names)}
    for amplifier, pixels in reader(blob, units, detector, where):
        ny, nx = amplifier.raw_shape
        counts[rows[amplifier.name], :ny, :nx] = _counts(pixels, camera.dtype, f"{where}, amplifier {amplifier.name}")
    has = {a.name for a in detector.amplifiers}
    return Frame(**vars(found), counts=counts, present=tuple(a for a in camera.amplifier_names if a in has))


def _name(data: bytes | str | Path) -> str:
    return "frame" if isinstance(data, bytes) else str(data)


def _units(data: bytes | str | Path, name: str) -> tuple[bytes, list[Hdu]]:
    """Bytes of the file, unzipped, and its headers."""
    name = name or _name(data)
    try:
        blob = data if isinstance(data, bytes) else Path(data).read_bytes()
        if blob[:2] == b"\x1f\x8b":
            blob = gzip.decompress(blob)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise CalibrationError(f"{name}: truncated or damaged gzip file; copy the file again") from None
    except OSError as error:
        raise CalibrationError(f"{name}: cannot be read ({error.strerror}): check the path") from None
    return blob, split_blocks(blob, name)


@lru_cache(maxsize=16)
def _rules(camera: Camera) -> HeaderRules:
    return HeaderRules.model_validate(camera.headers)


def _stem(name: str) -> str:
    stem = Path(name).name
    while stem.lower().endswith(_SUFFIXES):
        stem = stem.rpartition(".")[0]
    return stem


def _read_header(
    opened: tuple[bytes, list[Hdu]], camera: Camera, name: str, exposure_type: str | None
) -> tuple[FrameHeader, Detector, str]:
    rules = _rules(camera)
    cards = {**opened[1][0].cards, "stem": _stem(name)}
    exposure = fill_template(rules.exposure, cards, name)
    if not _IDENTITY.fullmatch(exposure):
        raise CalibrationError(
            f"{name}: {exposure!r} cannot be an exposure id: letters, digits, and . _ + - after the first, no more"
        )
    detector = fill_template(rules.detector, cards, f"{name}: exposure {exposure}")
    where = f"{name}: exposure {exposure}, detector {detector}"
    try:
        known = camera.detector(detector)
    except KeyError:
        ends = dict.fromkeys(camera.detectors[i].name for i in (0, -1))
        raise InconsistentGeometry(
            f"{where}: camera {camera.name} has no such detector (it has {' ... '.join(ends)}): name the right camera"
        ) from None
    header = exposure_table(rules, cards, where, exposure_type)
    kept = {k: v for k, v in cards.items() if k != "stem" and not _STRUCTURE.fullmatch(k)}
    return FrameHeader(exposure, detector, header, kept), known, where


def _read_amplifiers(
    blob: bytes, units: list[Hdu], detector: Detector, where: str
) -> list[tuple[Amplifier, np.ndarray]]:
    """Every amplifier of a file that has one extension for each; case does not count, for astropy writes capitals."""
    by_name = {a.hdu.upper(): a.hdu for a in detector.amplifiers}
    images: dict[str, tuple[int, Hdu]] = {}
    for index, unit in enumerate(units[1:], 1):
        if unit.cards.get("XTENSION") != "IMAGE" and unit.cards.get("ZIMAGE") is not True:
            continue
        name = unit.name.upper()
        if name not in by_name or name in images:
            told = "is there twice" if name in images else f"is none of {', '.join(by_name.values())}"
            raise InconsistentGeometry(f"{where}: image extension {unit.name!r} {told}: is this a raw frame?")
        images[name] = (index, unit)
    missing = [a.name for a in detector.amplifiers if a.hdu.upper() not in images]
    if missing:
        raise InconsistentGeometry(
            f"{where}, amplifier {missing[0]}: {len(missing)} of {len(by_name)} amplifiers are missing "
            f"({', '.join(missing)}): copy the file again or leave it out"
        )
    found = []
    for amplifier in detector.amplifiers:
        index, unit = images[amplifier.hdu.upper()]
        place = f"{where}, amplifier {amplifier.name}"
        _check_section(unit.cards.get("DATASEC"), amplifier.data, place, detector)
        found.append((amplifier, _shaped(_pixels(blob, unit, index, place), amplifier.raw_shape, place)))
    return found


def _read_taps(blob: bytes, units: list[Hdu], detector: Detector, where: str) -> list[tuple[Amplifier, np.ndarray]]:
    """Every amplifier of a file that has one image for all, in readout orientation."""
    boxes = [a.tap for a in detector.amplifiers if a.tap is not None]
    shape = max(b.y1 for b in boxes), max(b.x1 for b in boxes)
    index = next(
        (i for i, u in enumerate(units) if u.cards.get("NAXIS") and u.cards.get("XTENSION") != "BINTABLE"),
        None,
    )
    index = next((i for i, u in enumerate(units) if u.cards.get("ZIMAGE") is True), index)
    if index is None:
        raise InconsistentGeometry(f"{where}: no image in the file: is this a raw frame?")
    image = _shaped(_pixels(blob, units[index], index, where), shape, where)
    return [
        (a, image[box.slices][:: -1 if a.flip_y else 1, :: -1 if a.flip_x else 1])
        for a, box in zip(detector.amplifiers, boxes, strict=True)
    ]


def _check_section(section: CardValue, data: Box, where: str, detector: Detector) -> None:
    """Raise if DATASEC (1-based, inclusive) is there and is not the camera's data box."""
    if section is None:
        return
    match = _SECTION.fullmatch(str(section).replace(" ", ""))
    numbers = tuple(int(n) for n in match.groups()) if match else ()
    if numbers != (data.x0 + 1, data.x1, data.y0 + 1, data.y1):
        raise InconsistentGeometry(
            f"{where}: DATASEC {section} is not the {_section(data)} of an amplifier of a {detector.vendor} "
            f"CCD of type {detector.type}: correct the camera description or the file"
        )


def _section(box: Box) -> str:
    """FITS section, from 1 and with its ends, of a box."""
    return f"[{box.x0 + 1}:{box.x1},{box.y0 + 1}:{box.y1}]"


def _shaped(pixels: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """``pixels`` without leading axes of length one; raise if it has not that shape."""
    while pixels.ndim > 2 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.shape != shape:
        raise InconsistentGeometry(
            f"{where}: its image is (ny, nx) = {pixels.shape}, the camera's is {shape}: name the right camera"
        )
    return pixels


def _pixels(blob: bytes, unit: Hdu, index: int, where: str) -> np.ndarray:
    """Pixel values of one image, BSCALE and BZERO applied."""
    cards = unit.cards
    try:
        if cards.get("ZIMAGE") is not True:
            kind = _TYPES[int(cards["BITPIX"])]  # type: ignore[arg-type]
            axes = [int(cards[f"NAXIS{k}"]) for k in range(int(cards["NAXIS"]), 0, -1)]  # type: ignore[arg-type]
            stored = np.frombuffer(blob, kind, int(np.prod(axes)), unit.start).reshape(axes)
        elif is_plain_rice(cards):
            stored = decode_rice(memoryview(blob)[unit.start : unit.start + unit.size], cards)
        elif (packing := cards.get("ZCMPTYPE")) not in _PACKINGS:  # astropy warns, and takes it for Rice
            raise ValueError(f"compression {packing!r} is unknown")
        else:
            with fits.open(BytesIO(blob), memmap=False) as opened:
                return np.asarray(opened[index].data)
    except (ValueError, LookupError, TypeError, OSError, RuntimeError, fits.VerifyError) as error:
        raise CalibrationError(f"{where}: its pixels cannot be decoded ({error}); copy the file again") from None
    return _scaled(stored, cards.get("BSCALE", 1), cards.get("BZERO", 0), where)


def _scaled(stored: np.ndarray, scale: CardValue, zero: CardValue, where: str) -> np.ndarray:
    """``scale * stored + zero``, in integers where all three are."""
    if not (isinstance(scale, int | float) and isinstance(zero, int | float)):
        raise CalibrationError(f"{where}: BSCALE {scale!r} or BZERO {zero!r} is no number: correct the header")
    if scale == 1 and zero == 0:
        return stored
    if scale == 1 and float(zero).is_integer() and stored.dtype.kind in "iu":
        return stored.astype(np.int64) + int(zero)
    return scale * stored.astype(np.float64) + zero


def _counts(pixels: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """``pixels`` once they are known to be whole numbers that ``dtype`` holds."""
    info = np.iinfo(dtype)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise UnitsError(f"{where}: pixels are NaN or infinite: raw counts must be whole numbers, ingest raws")
        if not (pixels == np.rint(pixels)).all():
            raise UnitsError(f"{where}: pixels are not whole numbers: raw counts are, ingest raws")
    can_hold = np.can_cast(pixels.dtype, dtype) if pixels.dtype.kind in "iu" else False
    if not can_hold and pixels.size and (pixels.min() < info.min or pixels.max() > info.max):
        raise UnitsError(
            f"{where}: counts from {pixels.min()} to {pixels.max()} do not fit {dtype} "
            f"({info.min} to {info.max}): is BZERO missing from the header?"
        )
    return pixels


def write_frame(path: str | Path, camera: Camera, frame: Frame, *, compress: bool = True) -> None:
    """Write a raw frame in the camera's own file format; it is there whole or not at all.

    `read_frame` gives it back: identical but for ``cards``, to which it adds what the header table needs.

    Parameters
    ----------
    path : of the file; gzipped if it ends in .gz.
    camera : it belongs to.
    frame : counts (amplifier, y, x), adu, as `read_frame` makes them.
    compress : Rice-compress the extensions, as the observatory does; plain ones are written ten times faster.

    Raises
    ------
    InconsistentGeometry
        The frame has not the camera's detector, amplifiers, shape or dtype.
    CalibrationError
        The camera's headers cannot say what the frame's header table says.
    """
    path = Path(path)
    where = f"{path}: exposure {frame.exposure}, detector {frame.detector}"
    detector = _check_frame(camera, frame, where)
    own = table_cards(_rules(camera), frame.exposure, frame.detector, frame.header, where)
    # a card of the frame must not contradict its header table: the table wins
    header = _fits_header({**frame.cards, **own})
    if _stem(path.name) != frame.exposure and "{stem}" in _rules(camera).exposure:
        raise CalibrationError(f"{where}: this camera takes the exposure from the file name: name it {frame.exposure}")
    planes = {a: frame.counts[i] for i, a in enumerate(camera.amplifier_names)}
    if camera.file_format == "amplifiers" and not compress:
        blob = _plain_bytes(header, detector, planes)
    else:
        make = _amplifier_units if camera.file_format == "amplifiers" else _tap_units
        buffer = BytesIO()
        fits.HDUList(make(header, detector, planes)).writeto(buffer)
        blob = buffer.getvalue()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(gzip.compress(blob, 4, mtime=0) if path.suffix == ".gz" else blob)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_frame(camera: Camera, frame: Frame, where: str) -> Detector:
    try:
        detector = camera.detector(frame.detector)
    except KeyError:
        raise InconsistentGeometry(
            f"{where}: camera {camera.name} has no such detector: name the right camera"
        ) from None
    shape = (len(camera.amplifier_names), *camera.raw_shape)
    if frame.counts.shape != shape or frame.counts.dtype != np.dtype(camera.dtype):
        raise InconsistentGeometry(
            f"{where}: counts are {frame.counts.dtype} {frame.counts.shape}, camera {camera.name} has "
            f"{camera.dtype} {shape}: name the right camera"
        )
    return detector


def _fits_header(cards: dict[str, CardValue]) -> fits.Header:
    """Header with these cards; floats keep the digits that astropy cuts at 20 characters."""
    header = fits.Header()
    for keyword, value in cards.items():
        if isinstance(value, float) and np.isfinite(value) and len(keyword) <= 8:
            header.append(fits.Card.fromstring(f"{keyword:8}= {value!r:>20}".upper()), end=True)
        else:
            long = len(keyword) > 8 or not re.fullmatch("[A-Z0-9_-]+", keyword)
            header.append(fits.Card(f"HIERARCH {keyword}" if long else keyword, value), end=True)
    return header


def _plain_bytes(header: fits.Header, detector: Detector, planes: dict[str, np.ndarray]) -> bytes:
    """Empty primary and one plain extension per amplifier, the bytes astropy would write, eight times faster."""
    primary = fits.PrimaryHDU(header=header).header
    primary.set("EXTEND", True, after="NAXIS")
    parts = [primary.tostring().encode("ascii")]
    for a in detector.amplifiers:
        ny, nx = a.raw_shape
        plane = planes[a.name][:ny, :nx]
        unsigned = plane.dtype == np.uint16
        stored = (plane.astype(np.int32) - 32768).astype(">i2") if unsigned else plane.astype(">i4")
        cards = ["XTENSION= 'IMAGE   '           / Image extension"]
        cards += [_card("BITPIX", 8 * stored.itemsize, "array data type")]
        cards += [_card("NAXIS", 2, "number of array dimensions"), _card("NAXIS1", nx), _card("NAXIS2", ny)]
        cards += [_card("PCOUNT", 0, "number of parameters"), _card("GCOUNT", 1, "number of groups")]
        cards += [_card("BSCALE", 1), _card("BZERO", 32768)] if unsigned else []
        cards += [f"EXTNAME = '{a.hdu:8}'".ljust(30) + " / extension name", f"DATASEC = '{_section(a.data):8}'"]
        parts += [_padded("".join(f"{card:80}" for card in [*cards, "END"]).encode("ascii"), b" ")]
        parts += [_padded(stored.tobytes(), b"\0")]
    return b"".join(parts)


def _card(keyword: str, value: int, comment: str = "") -> str:
    return f"{keyword:8}= {value:>20}" + (f" / {comment}" if comment else "")


def _padded(data: bytes, fill: bytes) -> bytes:
    """``data`` up to a whole number of FITS blocks."""
    return data + fill * (-len(data) % 2880)


def _amplifier_units(header: fits.Header, detector: Detector, planes: dict[str, np.ndarray]) -> list[Any]:
    """Empty primary and one extension per amplifier, Rice-compressed with a tile per row."""
    units: list[Any] = [fits.PrimaryHDU(header=header)]
    for a in detector.amplifiers:
        ny, nx = a.raw_shape
        plane = np.ascontiguousarray(planes[a.name][:ny, :nx])
        unit = fits.CompImageHDU(plane, name=a.hdu, compression_type="RICE_1", tile_shape=(1, nx))
        unit.header["EXTNAME"] = a.hdu  # astropy turns it into capitals
        unit.header["DATASEC"] = _section(a.data)
        units.append(unit)
    return units


def _tap_units(header: fits.Header, detector: Detector, planes: dict[str, np.ndarray]) -> list[Any]:
    """One image with every amplifier in its place."""
    boxes = [(a, a.tap) for a in detector.amplifiers if a.tap is not None]
    counts = planes[boxes[0][0].name]
    image = np.zeros((max(b.y1 for _, b in boxes), max(b.x1 for _, b in boxes)), counts.dtype)
    for a, box in boxes:
        ny, nx = a.raw_shape
        image[box.slices] = planes[a.name][:ny, :nx][:: -1 if a.flip_y else 1, :: -1 if a.flip_x else 1]
    return [fits.PrimaryHDU(image, header=header)]
