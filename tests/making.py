"""Exposures of simulated cameras for the tests: their raw files and the truth they were made from."""

import sys
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from lsstcal_dask.cli import main
from lsstcal_dask.instrument import Frame, load_camera, write_frame
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.dark import ROW_TIME, HotPixels
from lsstcal_dask.simulate.exposure import Lamp, Pointing
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.stars import Stars
from lsstcal_dask.simulate.truth import at

SEED = 7
MISSING = ("nonlinearity", "crosstalk")  # nothing corrects them yet
CROWDED = Settings(hot_pixels=HotPixels(density=1e-3), stars=Stars(density=4e4))  # a small CCD has some of each
SETTINGS = CROWDED.without(MISSING)
START = np.datetime64("2026-07-01T20:00:00", "ms")
LAMP = Lamp(1.26e5)  # in band r 1e4 electron/s
FIELD = Pointing(ra=149.996, dec=-30.0, altitude=70.0, azimuth=60.0)


@lru_cache
def observatory(camera="mini1") -> Observatory:
    return Observatory(SEED, load_camera(camera), SETTINGS)


def exposure(number: int, kind: str, seconds: float = 0.0) -> Exposure:
    """One exposure of the night; flats have 1e4 electron/s, science exposures a field of stars."""
    source = {"flat": LAMP, "science": FIELD}.get(kind)
    time = START + np.timedelta64(6 * number, "m")
    dark_time = seconds + 0.5 if seconds else 0.0
    name = f"MC_S_20260701_{number:06d}"
    return Exposure(name, number, kind, time, seconds, dark_time, "r" if source else "none", source)


def small_day() -> list[Exposure]:
    """Five biases, four darks, two flats each of 15, 30 and 45 thousand electrons, and a visit."""
    kinds = [("bias", 0.0)] * 5 + [("dark", 300.0)] * 4
    kinds += [("flat", seconds) for seconds in (1.5, 1.5, 3.0, 3.0, 4.5, 4.5)] + [("science", 30.0)]
    return [exposure(i + 1, *row) for i, row in enumerate(kinds)]


def make_frame(taken: Exposure, camera="mini1", detector: str | None = None) -> Frame:
    """Raw frame of one CCD, the first by default."""
    site = observatory(camera)
    (frame,) = frames(site, taken, [site.camera.detector(detector) if detector else site.camera.detectors[0]])
    return frame


def make_files(
    folder: Path, camera: str, taken: Sequence[Exposure], detectors: Collection[str] | None = None, *, compress=False
) -> list[str]:
    """Raw files of some CCDs, all by default; plain ones are written much faster than compressed ones."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in taken:
        for detector in load_camera(camera).detectors:
            if detectors is None or detector.name in detectors:
                path = folder / f"{one.name}_{detector.name}.fits"
                write_frame(path, load_camera(camera), make_frame(one, camera, detector.name), compress=compress)
                paths.append(str(path))
    return paths


def truth(quantity: str, amplifier: str):
    """What an amplifier of the one-CCD camera really is; maps are (y, x) in readout orientation."""
    site = observatory()
    (detector,) = site.camera.detectors
    if quantity == "dark":
        maps = split(site.dark_rate(detector), detector, site.camera)
        return maps[site.camera.amplifier_names.index(amplifier)]
    return at(site, quantity, detector=detector.name, amplifier=amplifier)


def expected_light(taken: Exposure) -> dict[str, np.ndarray]:
    """Electrons (y, x) of light that each amplifier of the one-CCD camera should show.

    NaN where the truth is not the light: in pixels that are defective, hit by a cosmic ray or saturated.
    """
    site = observatory()
    (detector,) = site.camera.detectors
    without = ("shot_noise", "cosmic_rays", "dark_current", "hot_pixels", "blinking_pixels")
    light = charge(Observatory(SEED, site.camera, SETTINGS.without(without)), taken, detector)
    hits, _ = cosmic_rays(SEED, SETTINGS.cosmic_rays, detector, taken.number, taken.dark_time, ROW_TIME)
    light[(hits != 0) | (light > 1e5) | (site.sensitivity(detector) < 1)] = np.nan
    return dict(zip(site.camera.amplifier_names, split(light, detector, site.camera), strict=True))


def run_command(capsys, *arguments):
    """Exit status of ``lsstcal`` with these arguments, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lsstcal", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as error:
            status = error.code or 0
    return status, capsys.readouterr()
