"""What a camera is: amplifiers, detectors and where they sit on the focal plane.

A camera is data: a YAML file shipped in ``cameras/`` or written by the user.
"""

from dataclasses import dataclass, field

__all__ = ["Amplifier", "Box", "Camera", "Detector"]


@dataclass(frozen=True)
class Box:
    """Half-open pixel box ``[x0, x1) x [y0, y1)``; empty where the sensor has no such region."""

    x0: int
    x1: int
    y0: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an array (..., y, x)."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


@dataclass(frozen=True)
class Amplifier:
    """One readout channel. All boxes are in readout orientation: pixel (0, 0) is read first."""

    name: str
    raw_shape: tuple[int, int]  # (ny, nx) of the raw amplifier
    data: Box  # light-sensitive pixels within the raw amplifier
    overscan: Box  # serial reference pixels that set the level of each row; empty if there are none
    parallel_overscan: Box  # rows read after the last light-sensitive one; may be empty
    position: tuple[int, int]  # (x0, y0) of the lower-left pixel of its image in the assembled CCD
    flip_x: bool  # readout -> CCD orientation
    flip_y: bool
    gain: float  # nominal, electron/adu; never used where a measured gain exists
    read_noise: float  # nominal, electron
    hdu: str = ""  # FITS extension that holds it, in files with one amplifier per extension
    tap: Box | None = None  # its box in files with one image for all; flip_x, flip_y lead to readout


@dataclass(frozen=True)
class Detector:
    """One CCD. The centre of its first pixel is CCD pixel (0, 0); x runs along the serial direction."""

    name: str
    id: int
    vendor: str  # e2v, ITL ...
    type: str  # key of the camera description's detector types
    serial: str
    amplifiers: tuple[Amplifier, ...]
    shape: tuple[int, int]  # (ny, nx) of the assembled image
    pixel_mm: float
    center_mm: tuple[float, float]  # of the CCD on the focal plane
    yaw_deg: float  # rotation on the focal plane, counter-clockwise
    row_time: float = 0.0  # s to read a row: pixels of later rows gather dark charge for longer


@dataclass(frozen=True)
class Camera:
    """A mosaic of detectors; `raw_shape`, `image_shape` are the padded sizes common to all amplifiers."""

    name: str
    detectors: tuple[Detector, ...]
    amplifier_names: tuple[str, ...]  # the amplifier axis of every array, in storage order
    raw_shape: tuple[int, int]
    image_shape: tuple[int, int]
    dtype: str  # of raw counts: uint16 or int32
    plate_scale: float  # arcsec/mm
    radial: tuple[float, ...]  # field-angle radius = plate_scale * sum_i radial[i] * r**i, r in mm
    temperature: float  # nominal, K
    file_format: str  # "amplifiers" (one extension each) or "taps" (one image)
    headers: dict[str, object] = field(hash=False)  # how the header table is read: see cameras/README
    mirrored: bool = False  # field angle x runs against focal plane x
    vignetting_mm: tuple[float, float] | None = None  # from the axis: where vignetting begins, and where it is whole

    def detector(self, name: str) -> Detector:
        """Detector of that name; KeyError if the camera has none."""
        for detector in self.detectors:
            if detector.name == name:
                return detector
        raise KeyError(name)
