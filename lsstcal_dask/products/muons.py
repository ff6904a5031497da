"""Gains from cosmic-ray muons in darks, to be compared from epoch to epoch (Lupton 2016, Sec. 2.2e).

Muons of the sea level lose nearly the same energy in every micrometre of silicon, whatever the epoch. The charge of
a track over its length, in adu/um, has a Landau distribution; what it is stretched by from one epoch to another is
the inverse of what the gain is. Its steep side is 20 % wide: four hundred tracks tell the gain to 1 %. How many
electrons a micrometre yields is known to some per cent, so this gain is to be compared with itself alone.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import binary_dilation, find_objects, label

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.mapping import AmplifierResults, Output, map_detectors
from lsstcal_dask.products.flats import ReadNoise, amplifier_images
from lsstcal_dask.variables import NOTE

__all__ = [
    "OUTPUTS",
    "MuonConfig",
    "Tracks",
    "check_muons",
    "dark_tracks",
    "find_tracks",
    "measure_muons",
    "muon_amplifiers",
    "typical_loss",
]

OUTPUTS: Final = {
    "gain_muons": Output("float64", "electron/adu"),
    "gain_muons_error": Output("float64", "electron/adu"),
    "muon_tracks": Output("float64"),
}

MINIMUM: Final = 20
"""Tracks below which nothing is said."""

_LOWEST: Final = 0.05  # part of the tracks, of lowest loss, that is left out
_HIGHEST: Final = 0.5  # and of highest

_EIGHT: Final = np.ones((3, 3), bool)  # neighbours, diagonal ones too
_HALO: Final = 2  # px around a track that hold the rest of its charge
_WIDTH: Final = 1.5  # px rms across a track: worms bend, showers are wide


class MuonConfig(BaseModel):
    """How muons are found (Sec. 2.2e)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thickness: float = Field(100.0, gt=0, description="um of silicon that a track crosses from face to face")
    shortest: float = Field(8.0, gt=1, description="pixel, from end to end of a track")
    loss: float = Field(80.0, gt=0, description="electron/um, typical of muons; the same in all epochs")
    overscan: OverscanConfig = OverscanConfig()


@dataclass(frozen=True)
class Tracks:
    """Straight tracks: ``path`` (n,) um in the silicon, ``charge`` (n,) adu."""

    path: NDArray[np.float64]
    charge: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """Charge per length (n,), adu/um."""
        return self.charge / self.path


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


def typical_loss(tracks: Tracks) -> tuple[float, float]:
    """Typical charge per length, adu/um, and its error.

    The mean of ln(loss) from the twentieth lowest to the median: there Landau's distribution is steep, and neither
    delta rays nor electrons taken for muons reach it. Its error is that of the sample with its ends drawn in (Tukey &
    McLaughlin 1963): a fifth for one track.

    Raises
    ------
    InsufficientInputs
        Fewer than twenty tracks.
    """
    n = len(tracks.path)
    if n < MINIMUM:
        raise InsufficientInputs(f"{n} muon tracks, {MINIMUM} are needed: add darks")
    ordered = np.sort(np.log(tracks.loss))
    low, high = int(_LOWEST * n), n - int(_HIGHEST * n)
    drawn_in = np.clip(ordered, ordered[low], ordered[high - 1])
    loss = float(np.exp(ordered[low:high].mean()))
    return loss, loss * float(drawn_in.std(ddof=1) / ((high - low) / n) / np.sqrt(n))


def dark_tracks(
    raw: xr.Dataset,
    amplifier: Amplifier,
    pixel_mm: float,
    products: dict[str, xr.Dataset],
    config: MuonConfig = MuonConfig(),
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
    images = amplifier_images(raw, where, amplifier, config.overscan, products, noise)
    common = np.median(images, axis=0) if len(images) > 2 else np.median(images)
    size = {"pitch": 1e3 * pixel_mm, "thickness": config.thickness, "shortest": config.shortest}
    found = [find_tracks(image - common, noise.value(), **size) for image in images]
    return Tracks(*(np.concatenate([getattr(part, name) for part in found]) for name in ("path", "charge")))


def check_muons(raw: xr.Dataset, config: MuonConfig) -> None:
    """Refuse a set of exposures without darks.

    Raises
    ------
    InsufficientInputs
        There is none.
    """
    if not (raw["exposure_type"].values == "dark").any():
        raise InsufficientInputs("muons: no dark exposures: ingest some (--type dark)")


def muon_amplifiers(
    raw: xr.Dataset, detector: Detector, context: Any, config: MuonConfig, products: dict[str, xr.Dataset]
) -> AmplifierResults:
    """Gain of each amplifier of one detector from its muons, ``config.loss`` over their typical charge per length.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu, ``present`` (exposure,); darks.
    products : ``bias`` and ``linearity`` of this detector; either may be absent.

    Yields
    ------
    Name and Dataset (`OUTPUTS`, scalars) of an amplifier; NaN where there are too few tracks, with a remark.
    """
    for amplifier in detector.amplifiers:
        values, remarks = dict.fromkeys(OUTPUTS, np.nan), []
        try:
            tracks = dark_tracks(raw, amplifier, detector.pixel_mm, products, config)
            loss, error = typical_loss(tracks)
            gain = config.loss / loss
            values |= {"gain_muons": gain, "gain_muons_error": gain * error / loss, "muon_tracks": len(tracks.path)}
        except CalibrationError as reason:
            remarks.append(f"{NOTE}{reason}")
        yield (
            amplifier.name,
            xr.Dataset({k: ((), v) for k, v in values.items()}, attrs={"remarks": remarks, "summary": dict(values)}),
        )


def measure_muons(
    raw: xr.Dataset, camera: Camera, products: dict[str, xr.Dataset], config: MuonConfig = MuonConfig()
) -> xr.Dataset:
    """Measure gains from muons, lazily: one task per detector.

    Parameters
    ----------
    raw : ``counts`` (exposure, detector, amplifier, y, x), adu; ``present``; darks.
    products : ``bias`` and ``linearity`` with a detector dim, or nothing.

    Returns
    -------
    Dataset with `OUTPUTS` (detector, amplifier).

    Raises
    ------
    InsufficientInputs
        See `check_muons`.
    """
    check_muons(raw, config)

    def arguments(name: str) -> tuple:
        parts = {key: product.sel(detector=name) for key, product in products.items()}
        return camera.detector(name), None, config, parts

    return map_detectors(muon_amplifiers, raw, OUTPUTS, {"amplifier": raw.sizes["amplifier"]}, arguments)
