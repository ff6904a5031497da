"""Masks of the Collimated Beam Projector: where their holes are and how large (Lupton 2016, Secs. 2.6, 2.8.4, A ¶10).

A mask is designed for a camera, with the pattern on its axis and a projector without distortion. Holes are
sized by the spots they make, as parts of an amplifier, so one rule serves LSSTCam (160 px: a 100 um hole,
SITCOMTN-152) and cameras of a few pixels. Where a hole really is never differs from the design; its area does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.simulate import random
from lsstcal_dask.simulate.boards import boards
from lsstcal_dask.simulate.projector import Projector, hole_position, in_force, telescope_mm

__all__ = ["MASKS", "Mask", "choose", "mask", "mask_names"]

_SPOT: Final = 0.32  # diameter of a spot, of the shorter side of the smallest amplifier
_SLOT: Final = 0.6  # diameter of a spot, of the cell of the amplifier it has for itself
_LADDER: Final = np.geomspace(2.0, 6.0, 8)  # px, diameters of spots on the scale of a stellar image
_MANY: Final = 20  # CCDs from which on every other one has two spots, which makes 2.5 on average

Design = tuple[np.ndarray, np.ndarray, np.ndarray]  # x and y on the focal plane, mm, and diameter of the spots, px


@dataclass(frozen=True, eq=False)
class Mask:
    """Holes of a mask; arrays (hole,), not to be written to."""

    name: str
    hole: np.ndarray  # its number
    x_mm: np.ndarray  # on the mask, along field angle x
    y_mm: np.ndarray
    diameter_um: np.ndarray  # nominal
    area: np.ndarray  # true, of the nominal one
    typical_um: float  # nominal diameter of a hole that sends out the rate of a `Projection`

    def __len__(self) -> int:
        return len(self.hole)


def mask_names() -> list[str]:
    """Names that `mask` knows."""
    return list(MASKS)


@lru_cache(maxsize=16)
def mask(seed: int, settings: Projector, camera: Camera, name: str) -> Mask:
    """Make a mask.

    Parameters
    ----------
    seed : of the observatory; the areas of the holes depend on nothing else.
    settings : of the projector.
    camera : it is made for.
    name : a key of `MASKS`; ``"grid/12"`` is ``grid`` with only 12 holes open.

    Raises
    ------
    WrongUse
        Unknown name, or more open holes than there are.
    """
    kind, _, number = name.partition("/")
    if kind not in MASKS:
        raise WrongUse(f"no mask {name!r}: use {', '.join(MASKS)}, with /N for N of its holes")
    x, y, diameter = MASKS[kind](camera)
    scatter = random.stream(seed, f"projector_mask_{kind}").standard_normal(len(x))
    columns = {
        "hole": np.arange(len(x)),
        **dict(zip(("x_mm", "y_mm"), hole_position(settings, camera, x, y), strict=True)),
        "diameter_um": diameter * _hole_um(settings, camera),
        "area": np.exp(in_force(settings).area_scatter * scatter),
    }
    whole = Mask(name=kind, typical_um=float(np.max(columns["diameter_um"])), **_frozen(columns))
    return choose(whole, _count(name, number)) if number else whole


def choose(mask: Mask, n: int) -> Mask:
    """Return the mask with n of its holes open, spread over its list of holes.

    Raises
    ------
    WrongUse
        It has fewer holes, or n is less than one.
    """
    if not 1 <= n <= len(mask):
        raise WrongUse(f"mask {mask.name} has {len(mask)} holes: {n} spots cannot be made; ask for 1 to {len(mask)}")
    keep = np.arange(n) * len(mask) // n
    fields = ("hole", "x_mm", "y_mm", "diameter_um", "area")
    return replace(mask, name=f"{mask.name}/{n}", **_frozen({f: getattr(mask, f)[keep] for f in fields}))


def _count(name: str, number: str) -> int:
    if not number.isdigit():
        raise WrongUse(f"mask {name!r}: {number!r} is no number of holes: write a whole number after the slash")
    return int(number)


def _frozen(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    for values in columns.values():
        values.flags.writeable = False
    return columns


def _hole_um(settings: Projector, camera: Camera) -> float:
    """Diameter, um, of the hole whose spot on the axis is one pixel wide."""
    return 1e3 * camera.detectors[0].pixel_mm * settings.focal_length / telescope_mm(camera)


def _smallest(camera: Camera) -> tuple[int, int]:
    """(ny, nx) that every amplifier of the camera has."""
    shapes = {a.data.shape for d in camera.detectors for a in d.amplifiers}
    return min(s[0] for s in shapes), min(s[1] for s in shapes)


def _design(places: Iterable[tuple[Detector, Any, Any]], diameter: float | np.ndarray) -> Design:
    """Focal plane positions of CCD pixels, with the diameters of their spots."""
    x, y = np.concatenate([np.stack(ccd_to_focal(d, x, y)).reshape(2, -1) for d, x, y in places], axis=1)
    return x, y, np.broadcast_to(diameter, x.shape).astype(float)


def _middle(amplifier: Amplifier) -> tuple[float, float]:
    """CCD pixel of the centre of an amplifier."""
    (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
    return x + (nx - 1) / 2, y + (ny - 1) / 2


def _grid(camera: Camera) -> Design:
    """Two or three spots on each CCD, each in the middle of an amplifier, now and then upside down."""
    places = []
    for number, detector in enumerate(camera.detectors):
        two = len(camera.detectors) >= _MANY and number % 2 == 1
        parts = [(0.25, 0.25), (0.75, 0.75)] if two else [(1 / 6, 0.75), (0.5, 0.25), (5 / 6, 0.75)]
        middles = np.array([_middle(a) for a in detector.amplifiers])
        wanted = np.array([(x, 1 - y if number // 2 % 2 else y) for x, y in parts]) * detector.shape[::-1]
        nearest = np.argmin(np.hypot(*(middles[:, None] - wanted).transpose(2, 0, 1)), axis=0)
        places.append((detector, *middles[np.unique(nearest)].T))
    return _design(places, _SPOT * min(_smallest(camera)))


def _single(camera: Camera) -> Design:
    """One hole in the middle of the pattern: pointing sends it where it is wanted."""
    return np.zeros(1), np.zeros(1), np.full(1, _SPOT * min(_smallest(camera)))


def _ladder(camera: Camera) -> Design:
    """One small hole for each amplifier, of eight sizes in turn: the peak rises with the size."""
    places = [(d, *np.array([_middle(a) for a in d.amplifiers]).T) for d in camera.detectors]
    n = sum(len(d.amplifiers) for d in camera.detectors)
    return _design(places, _LADDER[np.arange(n) % len(_LADDER)])


def _sparse(camera: Camera) -> Design:
    """One hole for each amplifier such that no two amplifiers of a board read their spots at the same time.

    The raw pixels of an amplifier are cut into square cells; each amplifier of the board has a cell of its own.
    """
    groups = [[(detector, a) for detector in group for a in detector.amplifiers] for group in boards(camera).values()]
    first = max(a.data.x0 for d in camera.detectors for a in d.amplifiers)
    side, columns = _cell(camera, first, max(map(len, groups)))
    places = []
    for members in groups:
        for slot, (detector, amplifier) in enumerate(members):
            row, column = divmod(slot, columns)
            # in raw pixels, for those are what the clocks count; prescans differ between vendors
            x = first + (column + 0.5) * side - 0.5 - amplifier.data.x0
            y = (row + 0.5) * side - 0.5
            places.append((detector, *amplifier_to_ccd(amplifier, x, y)))
    return _design(places, _SLOT * side)


def _cell(camera: Camera, first: int, number: int) -> tuple[int, int]:
    """Side (px) of the largest square cell of which every amplifier holds that many, and how many in a row."""
    ny = min(a.data.shape[0] for d in camera.detectors for a in d.amplifiers)
    nx = min(a.data.x1 for d in camera.detectors for a in d.amplifiers) - first
    for side in range(min(ny, nx), 0, -1):
        if (ny // side) * (nx // side) >= number:
            return side, nx // side
    raise WrongUse(
        f"camera {camera.name}: {number} amplifiers of one board do not fit in {ny} x {nx} px: use mask single"
    )


MASKS: Final[dict[str, Callable[[Camera], Design]]] = {
    "grid": _grid,
    "sparse": _sparse,
    "single": _single,
    "ladder": _ladder,
}
"""What each mask looks like on a camera."""
