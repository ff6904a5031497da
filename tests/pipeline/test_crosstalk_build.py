"""Spots and crosstalk of a store: stamps are stored by exposure, coefficients with the names of their sources."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from making import SEED, exposure, observatory

from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.closed.discs import expose, true_matrix
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.verify import verify
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.products import check_product, list_products, open_product
from lsstcal_dask.storage.raw import write_frame

EFFECT = Crosstalk(nearest=5e-4)


@pytest.fixture(scope="module")
def site():
    found = observatory()
    return Observatory(SEED, found.camera, found.settings.model_copy(update={"crosstalk": EFFECT}))


@pytest.fixture(scope="module")
def store(tmp_path_factory, ingested, site):
    """The day's store with four exposures of the projector, one amplifier lit in each."""
    url = tmp_path_factory.mktemp("spots") / "s"
    shutil.copytree(ingested.url, url)
    store = Store(str(url), ingested.camera)
    (detector,) = site.camera.detectors
    records = []
    for k, a in enumerate(detector.amplifiers):
        taken = exposure(100 + k, "cbp", 10.0)
        lit = {(detector.name, a.name): (a.data.y0 + 30.0, a.data.x0 + 32.0, 9.0, 6e4)}
        (counts,) = expose(site, [detector.name], taken.number, lit)
        header = {"exposure_type": "cbp", "time": str(taken.time), "exposure_time": 10.0, "dark_time": 10.5}
        header |= {"filter": "none", "wavelength": 700.0, "photodiode": float("nan")}
        record = FrameRecord(taken.name, detector.name, "", f"{taken.name}.fits", "", "", header)
        records.append(write_frame(store.url, record, counts, {}))
    publish_frames(store.url, records)
    return store


@pytest.fixture(scope="module")
def built(store, threads):
    return dict(build(store, ["bias", "gain", "spots", "crosstalk"], Config(), threads))


def scale(store, site):
    """Measured gains over the true ones (amplifier,): those of so few flats are off by some per cent."""
    (pointer,) = list_products(store.url, "gain")
    measured = open_product(store.url, "gain", pointer.version)["gain"].values[0]
    return measured / true_gains(site, [site.camera.detectors[0].name])["gain"].values[0]


def test_products_are_published_whole(store, built):
    assert [one.errors for one in built.values()] == [[]] * 4
    for name in ("spots", "crosstalk"):
        assert check_product(store.url, built[name].pointer) == []


def test_stamps_are_stored_where_there_is_a_spot(store, built, site):
    spots = open_product(store.url, "spots", built["spots"].pointer.version)
    assert spots["spot"].dims == ("exposure", "detector", "amplifier", "y", "x")
    lit = np.isfinite(spots["spot"].values).any(axis=(-2, -1))
    np.testing.assert_array_equal(lit, np.isfinite(spots["spot_level"].values))
    assert lit.sum() == 4
    level = np.nanmax(spots["spot_level"].values[:, 0], axis=0) / scale(store, site)
    np.testing.assert_allclose(level, 6e4, rtol=0.01)  # of 250 pixels the one in ten that has 1.3 sigma more, 0.5 %


def test_coefficients_of_the_store_are_true(store, built, site):
    """Errors hold the noise of a bias from five frames, which one exposure adds a fifth to."""
    (detector,) = site.camera.detectors
    found = open_product(store.url, "crosstalk", built["crosstalk"].pointer.version)
    assert list(found["source"].values) == [f"{detector.name}/{a}" for a in site.camera.amplifier_names]
    c, error = (found[name].values[0] for name in ("crosstalk", "crosstalk_error"))
    true, true2 = true_matrix(site, detector.name, [detector.name])
    itself = np.eye(len(c), dtype=bool)
    assert np.isnan(c[itself]).all()
    assert np.isfinite(error[~itself]).all()
    real = ~itself & (c != 0)
    assert real.sum() >= 4
    of_gains = scale(store, site)[:, None] / scale(store, site)[None, :]
    expected = (true + true2 * 6e4) * of_gains  # of one level: the slope at that level
    assert np.abs((c - expected)[real] / error[real]).max() < 4
    assert (np.abs(expected) < 9 * error)[~itself & (c == 0)].all()


def test_coefficients_are_accepted(store, built, threads):
    """Every pair of the four amplifiers was lit, neighbours have 5e-4, and sources that are not there show nothing."""
    found = {result.metric.name: result for result in verify(store, threads, product="crosstalk").results}
    assert {name: result.verdict for name, result in found.items()} == {
        "largest": "PASS",
        "absent sources": "PASS",
        "unmeasured in the sensor": "PASS",
        "unmeasured in the camera": "PASS",
        "asymmetry": "PASS",
    }
    assert 3e-4 < found["largest"].median < 9e-4  # 25 % scatter
    assert np.isfinite(found["absent sources"].values).all()


def test_a_stamp_that_is_lost_is_noticed(store, built, threads):
    path = next(Path(store.url).rglob("products/spots/*/data/spot/c/*/*/*/0/0"))
    kept = path.read_bytes()
    path.unlink()
    assert check_product(store.url, built["spots"].pointer) != []
    path.write_bytes(kept)
    assert check_product(store.url, built["spots"].pointer) == []


def test_without_spots_there_is_a_line(store, threads, tmp_path, ingested):
    copy = Store(str(tmp_path / "s"), ingested.camera)
    shutil.copytree(ingested.url, copy.url)
    ((_, bad),) = build(copy, ["spots"], Config(), threads)
    assert bad.errors == ["spots: no exposures of type cbp or spot: ingest some (--type)"]
    assert bad.pointer is None
