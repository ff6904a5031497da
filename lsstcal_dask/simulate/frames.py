"""From light to raw counts: charge gathers, bleeds, is clocked out, crosses over and is digitised (Secs. 2 and 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.rawfits import Frame
from lsstcal_dask.simulate.boards import boards
from lsstcal_dask.simulate.charge import accumulate
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.crosstalk import coupled
from lsstcal_dask.simulate.dark import ROW_TIME, blinking_rate, dark_electrons, warming
from lsstcal_dask.simulate.defects import apply_traps
from lsstcal_dask.simulate.deferred import defer
from lsstcal_dask.simulate.electronics import read_out
from lsstcal_dask.simulate.exposure import Exposure, XRays
from lsstcal_dask.simulate.headers import cards, header
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.persistence import released
from lsstcal_dask.simulate.poisson import poisson
from lsstcal_dask.simulate.random import stream, tiles
from lsstcal_dask.simulate.saturation import bloom, clamp_serial
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.temperature import ccd_temperature, thermometer
from lsstcal_dask.simulate.xrays import xray_electrons

__all__ = ["charge", "frames", "lazy_counts", "packets"]


def charge(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Electrons in the pixels of a CCD when its readout begins.

    Returns
    -------
    (y, x) float32 over ``detector.shape``, electron, CCD orientation; whole numbers unless shot noise is off.
    """
    settings, number = site.settings, exposure.number
    rate = site.dark_rate(detector) + blinking_rate(site.seed, settings.blinking_pixels, detector, number)
    warmer = _temperature(site, exposure, detector) - site.camera.temperature
    rate = rate * np.float32(warming(settings.dark_current, warmer))
    gathered = _dark(site, exposure, detector, rate)
    if settings.persistence.on and exposure.previous is not None:
        gathered += _persistent(site, exposure, exposure.previous, detector)
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
                dark=rate,
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
    dull = site.insensitive(detector)
    struck = freed[dull["y"], dull["x"]]
    left = struck * dull["factor"]
    if site.settings.shot_noise.on:
        random = stream(site.seed, "insensitive_pixels", exposure=number, detector=detector.id)
        left = random.binomial(struck.astype(np.int64), dull["factor"].astype(float))
    freed = freed.copy()
    freed[dull["y"], dull["x"]] = left
    return freed


def _dark(site: Observatory, exposure: Exposure, detector: Detector, rate: np.ndarray) -> np.ndarray:
    """Charge (y, x) that gathered without light, at a rate in electron/s."""
    mean = dark_electrons(rate, detector, exposure.dark_time, ROW_TIME)
    return _drawn(site, "dark_current", exposure, detector, mean)


def _persistent(site: Observatory, exposure: Exposure, previous: Exposure, detector: Detector) -> np.ndarray:
    """Charge (y, x) that the exposure before has left, worked out again without what it found itself."""
    alone = replace(previous, previous=None)
    idle = (exposure.time - previous.time) / np.timedelta64(1, "s") - previous.dark_time
    before = charge(site, alone, detector)
    mean = released(site.settings.persistence, detector, before, float(idle), exposure.dark_time, ROW_TIME)
    return _drawn(site, "persistence", exposure, detector, mean)


def _temperature(site: Observatory, exposure: Exposure, detector: Detector) -> float:
    """K, of a CCD when the exposure begins."""
    return ccd_temperature(site.seed, site.settings.temperature, site.camera, detector, exposure.time)


def _drawn(site: Observatory, effect: str, exposure: Exposure, detector: Detector, mean: np.ndarray) -> np.ndarray:
    """Poisson numbers (y, x) of these means, which are overwritten, tile by tile; the means without shot noise."""
    if not site.settings.shot_noise.on:
        return mean
    for index, amplifier in enumerate(detector.amplifiers):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        part = mean[y0 : y0 + ny, x0 : x0 + nx]
        for tile, rows in tiles(ny):
            place = {"exposure": exposure.number, "detector": detector.id, "amplifier": index, "tile": tile}
            part[rows] = poisson(stream(site.seed, effect, **place), part[rows])
    return mean


def packets(site: Observatory, exposure: Exposure, detector: Detector) -> np.ndarray:
    """Charge as the registers deliver it: (amplifier, y, x) float32, electron, over ``camera.raw_shape``."""
    camera, settings = site.camera, site.settings
    images = split(charge(site, exposure, detector), detector, camera, fill=0.0)
    raw = np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)
    for amplifier in detector.amplifiers:
        place, (ny, nx) = camera.amplifier_names.index(amplifier.name), amplifier.data.shape
        raw[(place, *amplifier.data.slices)] = images[place, :ny, :nx]
    raw, _ = clamp_serial(site.seed, settings.serial_clamp, detector, raw, camera.amplifier_names)
    return defer(site.seed, settings.deferred, detector, raw, camera.amplifier_names)[0]


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
        electronics, warmth = settings.electronics, _temperature(site, exposure, detector)
        counts = read_out(
            site.seed, electronics, camera, detector, exposure.number, made[detector.name], others, warmth
        )
        reading = thermometer(site.seed, settings.temperature, detector, exposure.number, warmth)
        told = {**cards(exposure), "CCDTEMP": reading}
        present = tuple(a for a in camera.amplifier_names if a in {own.name for own in detector.amplifiers})
        table = header(site, exposure) | (
            {"temperature": reading + 273.15} if camera.headers.get("temperature") else {}
        )
        yield Frame(exposure.name, detector.name, table, told, counts, present)
        later = {name for left in detectors[i + 1 :] for name in (left.name, *wanted[left.name])}
        made = {name: kept for name, kept in made.items() if name in later}


_DIMS: Final = ("exposure", "detector", "amplifier", "y", "x")


def lazy_counts(site: Observatory, exposures: Sequence[Exposure]) -> xr.DataArray:
    """The raw focal plane, made when it is computed.

    Returns
    -------
    (exposure, detector, amplifier, y, x) of ``camera.dtype``, adu, readout orientation; one chunk per amplifier,
    cut out of what one task makes of a board, whose CCDs couple.

    Raises
    ------
    WrongUse
        There is no exposure.
    """
    if not exposures:
        raise WrongUse("no exposure to simulate: give at least one")
    camera = site.camera
    # named at random: a name made from what is in it would take seconds for 189 CCDs, once for every board
    name, made = f"simulated-{uuid4().hex}", f"board-{uuid4().hex}"
    graph: dict[Any, Any] = {made: site}
    places = {detector.name: i for i, detector in enumerate(camera.detectors)}
    for e, exposure in enumerate(exposures):
        for b, group in enumerate(boards(camera).values()):
            board = (made, e, b)
            graph[board] = (_board_counts, made, exposure, [d.name for d in group])
            for i, detector in enumerate(group):
                for amplifier in range(len(camera.amplifier_names)):
                    key = (name, e, places[detector.name], amplifier, 0, 0)
                    graph[key] = (_one_amplifier, board, i, amplifier)
    chunks = (
        *((1,) * n for n in (len(exposures), len(camera.detectors), len(camera.amplifier_names))),
        *((n,) for n in camera.raw_shape),
    )
    data = da.Array(HighLevelGraph.from_collections(name, graph), name, chunks, camera.dtype)
    coords: dict[str, Any] = {
        "exposure": [e.name for e in exposures],
        "detector": list(places),
        "amplifier": list(camera.amplifier_names),
    }
    return xr.DataArray(data, dims=_DIMS, coords=coords, attrs={"units": "adu"})


def _board_counts(site: Observatory, exposure: Exposure, names: Sequence[str]) -> list[np.ndarray]:
    """Counts (amplifier, y, x) of each of the CCDs of a board."""
    return [frame.counts for frame in frames(site, exposure, [site.camera.detector(n) for n in names])]


def _one_amplifier(counts: Sequence[np.ndarray], detector: int, amplifier: int) -> np.ndarray:
    """One chunk: (1, 1, 1, y, x)."""
    return counts[detector][None, None, amplifier : amplifier + 1]
