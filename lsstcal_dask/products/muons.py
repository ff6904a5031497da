"""Drift of the gain from cosmic-ray muons in darks (Lupton 2016, Sec. 2.2e).

Muons of the sea level lose nearly the same energy in every micrometre of silicon, whatever the epoch. The charge of
a track over its length, in adu/um, has a Landau distribution; what it is stretched by from one epoch to another is
the inverse of what the gain is. A thousand tracks tell it to half a per cent.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, label

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.products.flats import ReadNoise, amplifier_images

__all__ = ["Drift", "Tracks", "compare_tracks", "dark_tracks", "find_tracks"]

MINIMUM: Final = 10
"""Tracks of an epoch below which nothing is said."""

_EIGHT: Final = np.ones((3, 3), bool)  # neighbours, diagonal ones too
_HALO: Final = 2  # px around a track that hold the rest of its charge
_WIDTH: Final = 1.5  # px rms across a track: worms bend, showers are wide


@dataclass(frozen=True)
class Tracks:
    """Straight tracks: ``path`` (n,) um in the silicon, ``charge`` (n,) adu."""

    path: NDArray[np.float64]
    charge: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """Charge per length (n,), adu/um."""
        return self.charge / self.path


@dataclass(frozen=True)
class Drift:
    """Gain of the second epoch over that of the first, its error, and the tracks of both."""

    ratio: float
    error: float
    tracks: tuple[int, int]


def find_tracks(
    image: NDArray[np.floating], noise: float, *, pitch: float = 10.0, thickness: float = 100.0, shortest: float = 8.0
) -> Tracks:
    """Muon tracks of an image: straight connected groups of pixels above five sigma.

    A track crosses the silicon from face to face, so its path follows from its ends, ``sqrt(projected**2 +
    thickness**2)``. Short ones are left out, for soft electrons are short and of the ends half a pixel is unsure; so
    are those that touch the edge.

    Parameters
    ----------
    image : (y, x), adu, of mean zero between the tracks.
    noise : adu, of a pixel.
    pitch, thickness : um, of the pixels and of the silicon.
    shortest : pixel, from end to end.
    """
    groups, _ = label(image > 5 * noise, structure=_EIGHT)
    found = []
    for i, box in enumerate(find_objects(groups), 1):
        (y0, y1), (x0, x1) = ((s.start - _HALO, s.stop + _HALO) for s in box)
        inside = y0 >= 0 and x0 >= 0 and y1 <= image.shape[0] and x1 <= image.shape[1]
        if not inside or max(y1 - y0, x1 - x0) - 2 * _HALO < shortest / np.sqrt(2):
            continue
        part, own = image[y0:y1, x0:x1], groups[y0:y1, x0:x1] == i
        halo = binary_dilation(own, _EIGHT, iterations=_HALO)
        if np.any(groups[y0:y1, x0:x1][halo & ~own]):
            continue  # two tracks that nearly touch
        length, width = _ends(own)
        if length >= shortest and width <= _WIDTH:
            found.append((np.hypot(length * pitch, thickness), float(part[halo].sum())))
    path, charge = np.array(found).reshape(-1, 2).T
    return Tracks(path, charge)


def _ends(own: NDArray[np.bool_]) -> tuple[float, float]:
    """Length from end to end and rms width, pixel, along and across the main axis of a group of pixels."""
    at = np.argwhere(own).astype(float)
    at -= at.mean(axis=0)
    _, axes = np.linalg.eigh(at.T @ at)
    across, along = at @ axes[:, 0], at @ axes[:, 1]
    return float(np.ptp(along)), float(np.sqrt(np.mean(across**2)))


def compare_tracks(first: Tracks, second: Tracks) -> Drift:
    """Gain of the second epoch over that of the first.

    The shift of one distribution of ln(loss) against the other is the median of all differences of their members
    (Hodges & Lehmann 1963), which delta rays and electrons taken for muons hardly move; its error is that of
    Wilcoxon's rank statistic, whatever the distribution.

    Raises
    ------
    InsufficientInputs
        Fewer than ten tracks in an epoch.
    """
    n, m = len(first.path), len(second.path)
    if min(n, m) < MINIMUM:
        raise InsufficientInputs(f"{n} and {m} muon tracks in the two epochs, {MINIMUM} are needed: add darks")
    shift = np.sort(np.subtract.outer(np.log(first.loss), np.log(second.loss)), axis=None)
    ranks = np.sqrt(n * m * (n + m + 1) / 12)
    low, high = (shift[int(np.clip(n * m / 2 + s * ranks, 0, n * m - 1))] for s in (-1, 1))
    ratio = float(np.exp(np.median(shift)))
    return Drift(ratio, ratio * float(high - low) / 2, (n, m))


def dark_tracks(
    raw: xr.Dataset,
    amplifier: Amplifier,
    pixel_mm: float,
    products: dict[str, xr.Dataset],
    overscan: OverscanConfig = OverscanConfig(),
) -> Tracks:
    """Muon tracks in the darks of one amplifier; what is the same in all of them, three or more, is no track.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` (exposure,).
    products : ``bias`` and ``linearity`` of the detector; what is absent is not applied.

    Raises
    ------
    InsufficientInputs
        There is no dark.
    """
    where = np.flatnonzero((raw["exposure_type"].values == "dark") & raw["present"].values)
    if not len(where):
        raise InsufficientInputs("no dark exposures to find muons in: ingest some (--type dark)")
    noise = ReadNoise.known(products, amplifier)
    images = amplifier_images(raw, where, amplifier, overscan, products, noise)
    common = np.median(images, axis=0) if len(images) > 2 else np.median(images)
    found = [find_tracks(image - common, noise.value(), pitch=1e3 * pixel_mm) for image in images]
    return Tracks(*(np.concatenate([getattr(part, name) for part in found]) for name in ("path", "charge")))
