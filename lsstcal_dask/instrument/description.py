"""Read and check the description of a camera: a YAML file whose schema is in ``cameras/README.md``."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument.camera import Amplifier, Box, Camera, Detector
from lsstcal_dask.instrument.headers import HeaderRules

__all__ = ["camera_names", "from_mapping", "load_camera", "to_mapping"]

_EMPTY = Box(0, 0, 0, 0)
_BoxRow = tuple[int, int, int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Channel(_Strict):
    """One amplifier written out in full; what is left out is taken from its detector type."""

    name: str
    position: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    extension: str | None = None
    tap: _BoxRow | None = None
    data: _BoxRow | None = None
    overscan: _BoxRow | None = None
    parallel_overscan: _BoxRow | None = None
    gain: float | None = Field(default=None, gt=0)
    read_noise: float | None = Field(default=None, ge=0)


class _Row(_Strict):
    """Amplifiers side by side, named from left to right as they lie in the assembled CCD."""

    names: list[str]
    flip_x: bool = False
    flip_y: bool = False


class _Type(_Strict):
    vendor: str
    pixel_mm: float = Field(gt=0)
    raw_shape: tuple[int, int]
    data: _BoxRow
    overscan: _BoxRow = (0, 0, 0, 0)
    parallel_overscan: _BoxRow = (0, 0, 0, 0)
    row_time: float = Field(0.0, ge=0)
    gain: float = Field(gt=0)
    read_noise: float = Field(ge=0)
    extension: str = ""
    shape: tuple[int, int] | None = None
    rows: list[_Row] = []
    amplifiers: list[_Channel] = []


class _Place(_Strict):
    id: int = Field(ge=0)
    type: str
    center: tuple[float, float]
    yaw: float = 0.0
    serial: str = ""


class _Description(_Strict):
    name: str
    source: str = ""
    file_format: Literal["amplifiers", "taps"]
    dtype: str
    plate_scale: float = Field(gt=0)
    radial: tuple[float, ...] = (0.0, 1.0)
    mirrored: bool = False
    vignetting_mm: tuple[float, float] | None = None
    temperature: float = Field(gt=0)
    amplifiers: list[str]
    types: dict[str, _Type]
    detectors: dict[str, _Place]
    headers: HeaderRules

    @field_validator("vignetting_mm")
    @classmethod
    def _radii(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("must be two radii, the smaller one first")
        return value

    @field_validator("dtype")
    @classmethod
    def _counts(cls, value: str) -> str:
        if value not in ("uint16", "int32"):
            raise ValueError("must be uint16 or int32")
        return value


def camera_names() -> tuple[str, ...]:
    """Names of the cameras that are shipped, for `load_camera`."""
    folder = resources.files("lsstcal_dask.instrument") / "cameras"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


@lru_cache(maxsize=32)
def load_camera(name_or_path: str | Path) -> Camera:
    """Camera of that name, or described by that YAML file.

    Parameters
    ----------
    name_or_path : one of `camera_names`, or the path of a file with the schema of ``cameras/README.md``.
        The answer is remembered: a file changed afterwards is not read again.

    Raises
    ------
    CalibrationError
        No such camera or file, not YAML, or an entry is missing, unknown or of the wrong kind.
    InconsistentGeometry
        Boxes overlap or leave the amplifier, amplifiers overlap or leave the CCD, CCDs overlap.

    Examples
    --------
    >>> load_camera("lsstcam").detector("R22_S11").shape
    (4004, 4096)
    """
    source = str(name_or_path)
    if source in camera_names():
        text = (resources.files("lsstcal_dask.instrument") / "cameras" / f"{source}.yaml").read_text("utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text("utf-8")
    else:
        shipped = ", ".join(camera_names())
        raise CalibrationError(
            f"no camera {source!r}: give a YAML file that exists or one of the shipped cameras ({shipped})"
        )
    return _build(_parse(text, source), source)


def _parse(text: str, source: str) -> _Description:
    try:
        return _Description.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise CalibrationError(f"{source}: not valid YAML{where}: correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise CalibrationError(
            f"{source}: {where}: {first['msg']}; see the schema in instrument/cameras/README.md"
        ) from None


def _build(found: _Description, source: str) -> Camera:
    layouts = {key: _amplifiers(kind, found.file_format) for key, kind in found.types.items()}
    shapes = {key: found.types[key].shape or _extent(layout) for key, layout in layouts.items()}
    for key, layout in layouts.items():
        _check_type(f"{source}: detector type {key!r}", layout, shapes[key], found)
    detectors = []
    for name, place in found.detectors.items():
        if place.type not in found.types:
            known = ", ".join(found.types)
            raise InconsistentGeometry(
                f"{source}: detector {name}: no detector type {place.type!r}: use one of {known}"
            )
        kind = found.types[place.type]
        detectors.append(
            Detector(
                name=name,
                id=place.id,
                vendor=kind.vendor,
                type=place.type,
                serial=place.serial,
                amplifiers=layouts[place.type],
                shape=shapes[place.type],
                pixel_mm=kind.pixel_mm,
                center_mm=place.center,
                yaw_deg=place.yaw,
                row_time=kind.row_time,
            )
        )
    everything = [a for d in detectors for a in d.amplifiers]
    camera = Camera(
        name=found.name,
        detectors=tuple(detectors),
        amplifier_names=tuple(found.amplifiers),
        raw_shape=_largest(a.raw_shape for a in everything),
        image_shape=_largest(a.data.shape for a in everything),
        dtype=found.dtype,
        plate_scale=found.plate_scale,
        radial=found.radial,
        temperature=found.temperature,
        file_format=found.file_format,
        headers=found.headers.model_dump(mode="json"),
        mirrored=found.mirrored,
        vignetting_mm=found.vignetting_mm,
    )
    _check_camera(source, camera)
    return camera


def _amplifiers(kind: _Type, file_format: str) -> tuple[Amplifier, ...]:
    data = _box(kind.data)
    ny, nx = data.shape
    raw_ny, raw_nx = kind.raw_shape
    channels = list(kind.amplifiers)
    for j, row in enumerate(kind.rows):
        channels += [
            _Channel(
                name=name,
                position=(i * nx, j * ny),
                flip_x=row.flip_x,
                flip_y=row.flip_y,
                tap=(i * raw_nx, (i + 1) * raw_nx, j * raw_ny, (j + 1) * raw_ny),
            )
            for i, name in enumerate(row.names)
        ]
    return tuple(
        Amplifier(
            name=c.name,
            raw_shape=kind.raw_shape,
            data=_box(c.data or kind.data),
            overscan=_box(c.overscan or kind.overscan),
            parallel_overscan=_box(c.parallel_overscan or kind.parallel_overscan),
            position=c.position,
            flip_x=c.flip_x,
            flip_y=c.flip_y,
            gain=c.gain or kind.gain,
            read_noise=kind.read_noise if c.read_noise is None else c.read_noise,
            hdu=(c.extension or kind.extension).format(name=c.name, digits=c.name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
            if file_format == "amplifiers"
            else "",
            tap=_box(c.tap) if c.tap and file_format == "taps" else None,
        )
        for c in channels
    )


def _box(row: _BoxRow) -> Box:
    return Box(*row) if (row[1] - row[0]) * (row[3] - row[2]) else _EMPTY


def _largest(shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    ny, nx = zip(*shapes, strict=True)
    return max(ny), max(nx)


def _extent(layout: tuple[Amplifier, ...]) -> tuple[int, int]:
    """(ny, nx) of the smallest CCD that holds the images of all amplifiers."""
    if not layout:
        return 0, 0
    return _largest((a.position[1] + a.data.shape[0], a.position[0] + a.data.shape[1]) for a in layout)


def _inside(box: Box, shape: tuple[int, int]) -> bool:
    return 0 <= box.x0 <= box.x1 <= shape[1] and 0 <= box.y0 <= box.y1 <= shape[0]


def _overlap(a: Box, b: Box) -> bool:
    return max(a.x0, b.x0) < min(a.x1, b.x1) and max(a.y0, b.y0) < min(a.y1, b.y1)


def _footprint(amplifier: Amplifier) -> Box:
    (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
    return Box(x, x + nx, y, y + ny)


def _check_type(where: str, layout: tuple[Amplifier, ...], shape: tuple[int, int], found: _Description) -> None:
    """Raise unless the boxes of every amplifier and the amplifiers in the CCD are where they can be."""
    if not layout:
        raise InconsistentGeometry(f"{where}: it has no amplifiers: give `rows` or `amplifiers`")
    for amplifier in layout:
        _check_amplifier(f"{where}, amplifier {amplifier.name}", amplifier, shape, found)
    for a, b in combinations(layout, 2):
        pair = f"{where}, amplifiers {a.name} and {b.name}"
        if a.name == b.name:
            raise InconsistentGeometry(f"{where}, amplifier {a.name}: it is described twice: remove one")
        if _overlap(_footprint(a), _footprint(b)):
            raise InconsistentGeometry(f"{pair}: their images overlap in the CCD: correct their `position`")
        if a.tap and b.tap and _overlap(a.tap, b.tap):
            raise InconsistentGeometry(f"{pair}: their taps overlap in the file: correct their `tap`")
        if found.file_format == "amplifiers" and a.hdu == b.hdu:
            raise InconsistentGeometry(f"{pair}: both are in extension {a.hdu!r}: correct their `extension`")


def _check_amplifier(where: str, amplifier: Amplifier, shape: tuple[int, int], found: _Description) -> None:
    boxes = {k: getattr(amplifier, k) for k in ("data", "overscan", "parallel_overscan")}
    for key, box in boxes.items():
        if not _inside(box, amplifier.raw_shape):
            raise InconsistentGeometry(
                f"{where}: its {key} box leaves the raw pixels (ny, nx) = {amplifier.raw_shape}: correct it"
            )
    for a, b in combinations(boxes, 2):
        if _overlap(boxes[a], boxes[b]):
            raise InconsistentGeometry(f"{where}: its {a} and {b} boxes overlap: correct one of them")
    if boxes["data"] == _EMPTY:
        raise InconsistentGeometry(f"{where}: its data box is empty: correct `data`")
    if not _inside(_footprint(amplifier), shape):
        raise InconsistentGeometry(
            f"{where}: its image leaves the CCD (ny, nx) = {shape}: correct its `position` or the `shape`"
        )
    if amplifier.name not in found.amplifiers:
        raise InconsistentGeometry(f"{where}: not in the camera's list `amplifiers`: add it there")
    if found.file_format == "taps" and (amplifier.tap is None or amplifier.tap.shape != amplifier.raw_shape):
        raise InconsistentGeometry(f"{where}: its tap has not the size of raw_shape: correct its `tap`")


def _check_camera(source: str, camera: Camera) -> None:
    """Raise if detector ids repeat or two CCDs cover the same place on the focal plane."""
    seen: dict[int, str] = {}
    for d in camera.detectors:
        if d.id in seen:
            raise InconsistentGeometry(f"{source}: detectors {seen[d.id]} and {d.name} both have id {d.id}: change one")
        seen[d.id] = d.name
    reach = [math.hypot(*d.shape) * d.pixel_mm / 2 for d in camera.detectors]
    for (i, a), (j, b) in combinations(enumerate(camera.detectors), 2):
        near = math.dist(a.center_mm, b.center_mm) < reach[i] + reach[j]
        if near and _touch(_corners(a), _corners(b)):
            raise InconsistentGeometry(
                f"{source}: detectors {a.name} and {b.name} overlap on the focal plane: correct their places"
            )


def _corners(detector: Detector) -> np.ndarray:
    """(4, 2) corners of the CCD on the focal plane, mm, in turn."""
    ny, nx = detector.shape
    half = np.array([[-nx, -ny], [nx, -ny], [nx, ny], [-nx, ny]]) * detector.pixel_mm / 2
    yaw = np.deg2rad(detector.yaw_deg)
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return half @ turn + np.array(detector.center_mm)


def _touch(a: np.ndarray, b: np.ndarray, slack: float = 1e-6) -> bool:
    """Whether two rectangles overlap: no side of either separates them."""
    for sides in (a, b):
        for axis in (sides[1] - sides[0], sides[3] - sides[0]):
            unit = axis / np.hypot(*axis)
            p, q = a @ unit, b @ unit
            if p.max() <= q.min() + slack or q.max() <= p.min() + slack:
                return False
    return True


def to_mapping(camera: Camera) -> dict[str, Any]:
    """Everything about a camera as plain lists, dicts, strings and numbers, to freeze it as JSON.

    Detectors with the same amplifiers share one entry of ``layouts``.
    """
    layouts: list[tuple[Amplifier, ...]] = []
    rows = []
    for detector in camera.detectors:
        if detector.amplifiers not in layouts:
            layouts.append(detector.amplifiers)
        row = {k: v for k, v in vars(detector).items() if k != "amplifiers"}
        rows.append({**row, "layout": layouts.index(detector.amplifiers)})
    rest = {k: v for k, v in vars(camera).items() if k != "detectors"}
    return _plain({**rest, "detectors": rows, "layouts": [[asdict(a) for a in layout] for layout in layouts]})


def from_mapping(mapping: Mapping[str, Any]) -> Camera:
    """Camera that `to_mapping` made plain; equal to the original, also after a trip through JSON.

    Raises
    ------
    CalibrationError
        The mapping is not one that `to_mapping` made.
    """
    try:
        layouts = [tuple(_amplifier(a) for a in layout) for layout in mapping["layouts"]]
        detectors = []
        for row in mapping["detectors"]:
            fields = {k: _tuple(v) for k, v in row.items() if k != "layout"}
            detectors.append(Detector(**fields, amplifiers=layouts[row["layout"]]))
        rest = {k: _tuple(v) for k, v in mapping.items() if k not in ("detectors", "layouts", "headers")}
        return Camera(**rest, detectors=tuple(detectors), headers=_plain(mapping["headers"]))
    except (KeyError, TypeError, IndexError) as error:
        raise CalibrationError(
            f"not a frozen camera ({type(error).__name__}: {error}): make it again with to_mapping"
        ) from None


def _amplifier(fields: Mapping[str, Any]) -> Amplifier:
    boxes = {k: Box(**v) for k, v in fields.items() if isinstance(v, Mapping)}
    return Amplifier(**{**{k: _tuple(v) for k, v in fields.items()}, **boxes})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Tuples to lists, so that the value equals itself after JSON."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
