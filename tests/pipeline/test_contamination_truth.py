"""Dust and a drift of filters on the virtual observatory: what is found against what is there (Sec. 2.8.2)."""

import re

import numpy as np
import pytest
from making_cubes import flats, later, new_store, observatory, take

from lsstcal_dask.compute import cluster
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.physics.spectra import from_photons
from lsstcal_dask.pipeline.broadband import make_broadband
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.contamination import find_contamination
from lsstcal_dask.pipeline.cubes import make_cube
from lsstcal_dask.simulate import dust
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.recipes import CalibrationDay, Plan, exposures
from lsstcal_dask.storage.products import open_product
from lsstcal_dask.storage.tables import read_input, write_table

CAMERA = "mini9"
BANDS = "ri"
CONFIG = Config.model_validate({"synthesis": {"weights": {"uncovered": 0.01}}})
LAMP = np.arange(300.0, 1150.5)


def lamp_flats():
    plan = {"biases": 0, "darks": 0, "xrays": 0, "pairs": 0, "flats": 6, "filters": BANDS}
    site = observatory(CAMERA)
    return later(
        exposures("calibration-day", Plan(calibration_day=CalibrationDay(**plan)), site.settings, site.camera), 60
    )


@pytest.fixture(scope="module")
def compute():
    with cluster("local", 2) as found:
        yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory, compute):
    """A cube without dust, and flats of a lamp through r and i with the dust of filter and window."""
    found = new_store(str(tmp_path_factory.mktemp("dusty")), CAMERA)
    take(found, lamp_flats())
    take(found, flats(515.0, 855.0, 5.0, each=1), without=("dust",))
    for name, make in deliveries("calibration-day", lamp_flats()).items():
        write_table(found.url, f"inputs/{name}", make(observatory(CAMERA)))
    assert not make_cube(found, "flats", "i2", CONFIG, compute).errors
    for band in BANDS:
        assert not make_broadband(found, band, CONFIG, compute).errors
    return found


def compare(store, compute):
    lamp = from_photons(LAMP, lamp_spectrum(LAMP), "lamp")
    drifts, made = find_contamination(store, list(BANDS), lamp, CONFIG, compute)
    return {one.band: one for one in drifts}, made


def true_dust(band):
    """What dust leaves of the light (detector, amplifier, y, x), over its mean."""
    site = observatory(CAMERA)
    time = lamp_flats()[0].time
    found = []
    for detector in site.camera.detectors:
        ny, nx = detector.shape
        x, y = ccd_to_focal(detector, np.arange(nx), np.arange(ny)[:, None])
        left = dust.dust(site.seed, site.settings.dust, site.camera, band, *np.broadcast_arrays(x, y), time)
        found.append(split(left.astype(np.float32), detector, site.camera))
    return np.array(found)


def shift(store, nm):
    """Let the curves that the store has of its filters be off."""
    for band in BANDS:
        table = read_input(store.url, f"filter-{band}")
        table.meta["first_nm"] += nm
        write_table(store.url, f"inputs/filter-{band}", table)


@pytest.mark.slow
def test_dust_of_the_observatory_is_found(store, compute):
    drifts, made = compare(store, compute)
    for band in BANDS:
        assert abs(drifts[band].shift) < 4 * drifts[band].error + 0.1, drifts[band]
        pointer = made[f"contamination-{band}"].pointer
        factor = open_product(store.url, pointer.name, pointer.version, chunked=False)["image"].values
        true = true_dust(band)
        good = np.isfinite(factor) & np.isfinite(true)
        depth = np.log(true[good])
        print(band, drifts[band], "true rms", depth.std(), "left", (np.log(factor[good]) - depth).std())
        assert (np.log(factor[good]) - depth).std() < 0.5 * depth.std()


@pytest.mark.slow
def test_a_filter_that_moved_is_told(store, compute):
    shift(store, 0.5)
    drifts, made = compare(store, compute)
    shift(store, -0.5)
    for band in BANDS:
        print(drifts[band])
        assert drifts[band].shift == pytest.approx(-0.5, abs=4 * drifts[band].error + 0.1)
        told = made[f"contamination-{band}"].pointer
        assert told.verdict == "WARN"
        assert re.search(rf"CHROMATIC_DRIFT: filter {band} moved by -0\.\d+ \+- 0\.\d+ nm", told.remarks[0])
