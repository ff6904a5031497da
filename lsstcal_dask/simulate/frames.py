"""From light to raw counts: charge gathers, bleeds, is clocked out, crosses over and is digitised (Secs. 2 and 3)."""

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import xarray as xr

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.rawfits import Frame
from lsstcal_dask.simulate.charge import accumulate
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.crosstalk import coupled
from lsstcal_dask.simulate.dark import ROW_TIME, blinking_rate, dark_electrons
from lsstcal_dask.simulate.defects import apply_traps
from lsstcal_dask.simulate.electronics import read_out
from lsstcal_dask.simulate.exposure import Exposure, XRays
from lsstcal_dask.simulate.headers import cards, header
from lsstcal_dask.simulate.observatory import Observatory, boards
from lsstcal_dask.simulate.poisson import poisson
from lsstcal_dask.simulate.random import stream, tiles
from lsstcal_dask.simulate.saturation import bloom, clamp_serial
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.xrays import xray_electrons

__all__ = ["charge", "frames", "lazy_counts", "packets"]


def charge(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Electrons in the pixels of a CCD when its readout begins.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron, CCD orientation; whole numbers unless shot noise is off.
    """
    settings, number = site.settings, exposure.number
    gathered = _dark(site, exposure, detector)
    if exposure.source is not None:
        seen = light(site, exposure, detector)
        if seen.rate.any() or len(seen.points):
            freed = accumulate(
                site.seed,
                settings.shot_noise,
                settings.brighter_fatter,
                detector,
                number,
                seen,
                exposure.exposure_time,
                site.corners(detector),
            )
            gathered += _detected(site, number, detector, freed)
    image, _ = cosmic_rays(site.seed, settings.cosmic_rays, detector, number, exposure.dark_time, ROW_TIME)
    gathered += image
    if isinstance(exposure.source, XRays):
        gathered += xray_electrons(
            site.seed, settings.xrays, detector, number, exposure.source.rate, exposure.exposure_time
        )
    bled, _ = bloom(site.seed, settings.saturation, detector, gathered)
    return apply_traps(site.seed, settings.bad_pixels, detector, bled)


def _detected(site: Observatory, number: int, detector: Detector, freed: np.ndarray) -> np.ndarray:
    """Photo-electrons that insensitive pixels keep: of each one the share of its sensitivity, by chance."""
    factor = site.sensitivity(detector)
    dull = np.nonzero(factor < 1)
    kept = freed[dull] * factor[dull]
    if site.settings.shot_noise.on:
        random = stream(site.seed, "insensitive_pixels", exposure=number, detector=detector.id)
        kept = random.binomial(freed[dull].astype(np.int64), factor[dull].astype(float))
    freed = freed.copy()
    freed[dull] = kept
    return freed


def _dark(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Charge (y, x) that gathered without light, drawn tile by tile."""
    blinking = blinking_rate(site.seed, site.settings.blinking_pixels, detector, exposure.number)
    mean = dark_electrons(site.dark_rate(detector) + blinking, detector, exposure.dark_time)
    if not site.settings.shot_noise.on:
        return mean
    for index, amplifier in enumerate(detector.amplifiers):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        part = mean[y0 : y0 + ny, x0 : x0 + nx]
        for tile, rows in tiles(ny):
            place = {"exposure": exposure.number, "detector": detector.id, "amplifier": index, "tile": tile}
            part[rows] = poisson(stream(site.seed, "dark_current", **place), part[rows])
    return mean


def packets(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Charge as the registers deliver it: (amplifier, y, x) float32, electron, over ``camera.raw_shape``."""
    camera, settings = site.camera, site.settings
    images = split(charge(site, exposure, detector), detector, camera, fill=0.0)
    raw = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
    for amplifier in detector.amplifiers:
        place, (ny, nx) = camera.amplifier_names.index(amplifier.name), amplifier.data.shape
        raw[(place, *amplifier.data.slices)] = images[place, :ny, :nx]
    return clamp_serial(site.seed, settings.serial_clamp, detector, raw, camera.amplifier_names)[0]


def frames(site: Observatory, exposure: Exposure, detectors: Sequence[Detector]) -> Iterator[Frame]:
    """Raw frames of some CCDs, one after the other.

    The charge of a CCD is made once, and kept while others of its board couple to it: call it for the CCDs of a
    board together (`boards`). Holds about three times the raw charge of a board.
    """
    camera, settings = site.camera, site.settings
    made: dict[str, np.ndarray] = {}
    wanted = {d.name: coupled(site.seed, settings.crosstalk, camera, d) for d in detectors}
    for i, detector in enumerate(detectors):
        for name in (detector.name, *wanted[detector.name]):
            if name not in made:
                made[name] = packets(site, exposure, camera.detector(name))
        others = {name: made[name] for name in wanted[detector.name]}
        electronics = settings.electronics
        counts = read_out(
            site.seed, electronics, camera, detector, exposure.number, made[detector.name], others, camera.temperature
        )
        present = tuple(a for a in camera.amplifier_names if a in {own.name for own in detector.amplifiers})
        yield Frame(exposure.name, detector.name, header(site, exposure), cards(exposure), counts, present)
        later = {name for left in detectors[i + 1 :] for name in (left.name, *wanted[left.name])}
        made = {name: kept for name, kept in made.items() if name in later}


_DIMS: Final = ("exposure", "detector", "amplifier", "y", "x")


def lazy_counts(site: Observatory, exposures: Sequence[Exposure]) -> xr.DataArray:
    """The raw focal plane, made when it is computed.

    Returns
    -------
    (exposure, detector, amplifier, y, x) of ``camera.dtype``, adu, readout orientation; one chunk per amplifier,
    one task for each board, whose CCDs couple.

    Raises
    ------
    WrongUse
        There is no exposure.
    """
    if not exposures:
        raise WrongUse("no exposure to simulate: give at least one")
    camera = site.camera
    amplifiers = len(camera.amplifier_names)
    # one node for all tasks; named, for a name made from what is in it takes a camera of 189 CCDs seconds
    shared = dask.delayed(site, name=f"observatory-{uuid4().hex}", traverse=False)
    make = dask.delayed(_board_counts, pure=False)
    groups = boards(camera)
    order = [d.name for group in groups for d in group]
    planes = []
    for exposure in exposures:
        parts = [
            da.from_delayed(
                make(shared, exposure, tuple(d.name for d in group)),
                (len(group), amplifiers, *camera.raw_shape),
                camera.dtype,
            ).rechunk((1, 1, *camera.raw_shape))
            for group in groups
        ]
        planes.append(da.concatenate(parts))
    coords: dict[str, Any] = {
        "exposure": [e.name for e in exposures],
        "detector": order,
        "amplifier": list(camera.amplifier_names),
    }
    found = xr.DataArray(da.stack(planes), dims=_DIMS, coords=coords, attrs={"units": "adu"})
    wanted = [d.name for d in camera.detectors]
    return found if order == wanted else found.sel(detector=wanted)


def _board_counts(site: Observatory, exposure: Exposure, names: Sequence[str]) -> np.ndarray:
    """Counts (detector, amplifier, y, x) of the CCDs of a board."""
    return np.stack([f.counts for f in frames(site, exposure, [site.camera.detector(n) for n in names])])
