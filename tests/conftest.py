"""Shared tools of the tests: measured data where they are, a small ingested store, a scheduler that refuses."""

import os
from pathlib import Path

import dask
import numpy as np
import pytest
from making import make_files, small_day

from lsstcal_dask.compute import cluster
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.store import create_store


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the measured data; skips where it is absent."""
    folder = Path(os.environ.get("LSSTCAL_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("measured data absent: set LSSTCAL_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def msfc_taps(real_data):
    """Function of a file's name: four taps (520, 1076) of a measured frame, each seen from its outer edge, adu."""
    from astropy.io import fits

    def read(name: str) -> list[np.ndarray]:
        image = fits.getdata(real_data / "msfc_ccd" / name).astype(np.float32)
        halves = image[:520], image[520:][::-1]
        return [half[:, columns] for half in halves for columns in (np.s_[:1076], np.s_[:1075:-1])]

    return read


@pytest.fixture
def no_compute():
    """Inside this, anything that Dask would compute raises."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was computed while a graph was built")

    with dask.config.set(scheduler=refuse):
        yield


@pytest.fixture(scope="session")
def threads():
    with cluster("threads", 2) as compute:
        yield compute


@pytest.fixture(scope="session")
def raw_files(tmp_path_factory) -> list[str]:
    """Raw files of the one-CCD camera: biases, darks, three pairs of flats, one science frame."""
    return make_files(tmp_path_factory.mktemp("raw"), "mini1", small_day(), compress=True)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory, raw_files, threads):
    """A store with those files; not to be changed (copy it to build in it)."""
    store = create_store(tmp_path_factory.mktemp("store") / "s", "mini1")
    report = ingest(store, raw_files, threads)
    assert not report.errors
    return store
