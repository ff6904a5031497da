"""Files of the camera team come back as they were delivered; files that belong together stay together."""

import importlib.util

import numpy as np
import pytest
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.build import Validity
from lsstcal_dask.pipeline.exchange import import_files
from lsstcal_dask.pipeline.export import export_product
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.storage.delivered import hash_together, keep
from lsstcal_dask.storage.products import list_products, open_product
from lsstcal_dask.storage.rubin.coupling import read_crosstalk, write_crosstalk
from lsstcal_dask.storage.rubin_crosstalk import RubinCrosstalk, read_rubin_crosstalk, write_rubin_crosstalk

CAMERA = load_camera("mini1")
(CCD,) = CAMERA.detectors
DATE = "2026-07-01T12:00:00"
has_crosstalk = pytest.mark.skipif(
    importlib.util.find_spec("lsstcal_dask.storage.rubin_crosstalk") is None, reason="its format is not here"
)
FIELDS = ("linear", "linear_error", "counts", "valid", "quadratic", "quadratic_error", "gain_ratios", "gains")


def rubins(path, others=(), **meta):
    """A file with entries and numbers that no product holds."""
    random, n = np.random.default_rng(3), len(CCD.amplifiers)
    matrices = {name: random.normal(0, 1e-4, (n, n)) for name in FIELDS[:7]}
    matrices |= {"counts": random.integers(1, 99, (n, n)), "valid": ~np.eye(n, dtype=bool)}
    entries = {"OBSTYPE": "CROSSTALK", "CROSSTALK_VERSION": 1.2, "CROSSTALK_RATIOS_UNITS": "electron", "NAMP": n}
    entries |= {"DET_NAME": CCD.name, "INSTRUME": "mini1", "CALIBDATE": DATE, "SEQNAME": "FP_E2V_2s_v30.seq", **meta}
    gains = random.uniform(1.4, 1.7, n)
    write_rubin_crosstalk(path, RubinCrosstalk(**matrices, gains=gains, meta=entries, others=dict(others)))
    return path


def same(one, other, but=()):
    """Whether two files of crosstalk say the same, but for some entries."""
    one, other = read_rubin_crosstalk(one), read_rubin_crosstalk(other)
    left, right = ({k: v for k, v in f.meta.items() if k not in but} for f in (one, other))
    return left == right and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@has_crosstalk
def test_a_file_of_crosstalk_comes_back_to_the_byte(tmp_path, threads):
    path, store = rubins(tmp_path / "c.ecsv"), create_store(tmp_path / "s", "mini1")
    assert not import_files(store, "crosstalk", [path], threads).errors
    (out,) = export_product(store, "crosstalk", tmp_path / "out").files
    assert out.read_bytes() == path.read_bytes()
    later = Validity("2026-08-01T00:00:00")
    assert not import_files(store, "crosstalk", [path], threads, validity=later).errors
    (out,) = export_product(store, "crosstalk", tmp_path / "later").files
    assert read_rubin_crosstalk(out).meta["CALIBDATE"] == later.valid_from
    assert same(out, path, but=["CALIBDATE"])


@has_crosstalk
@pytest.mark.real
def test_real_files_of_crosstalk_come_back_to_the_byte(real_data, tmp_path, threads):
    store = create_store(tmp_path / "s", "lsstcam")
    names = ("r01_s11", "r03_s21")
    paths = [next((real_data / "lsstcam/crosstalk" / name).glob("*.ecsv")) for name in names]
    assert not import_files(store, "crosstalk", paths, threads).errors
    files = export_product(store, "crosstalk", tmp_path / "out").files
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in paths]
    assert read_rubin_crosstalk(files[0]).gains[0] == pytest.approx(1.442, abs=1e-3)


@has_crosstalk
def test_what_was_measured_is_not_valid_on_the_diagonal(tmp_path):
    """As in Rubin's files: nothing was measured there."""
    _, found, _ = read_crosstalk(rubins(tmp_path / "c.ecsv"), CAMERA)
    write_crosstalk(tmp_path / "d.ecsv", found, (CAMERA, CCD), DATE)
    assert np.array_equal(read_rubin_crosstalk(tmp_path / "d.ecsv").valid, ~np.eye(4, dtype=bool))


@has_crosstalk
def test_a_file_that_was_changed_is_not_read_with_the_one_beside_it(tmp_path, threads):
    _, found, _ = read_crosstalk(rubins(tmp_path / "c.ecsv"), CAMERA)
    found["crosstalk"][0, 0] = np.nan  # which Rubin's file cannot say
    paths = write_crosstalk(tmp_path / "d.ecsv", found, (CAMERA, CCD), DATE)
    assert [path.name for path in paths] == ["d.ecsv", "d.sources.fits"]
    _, _, whole = read_crosstalk(paths[0], CAMERA)
    assert whole.hash == hash_together(paths)
    table = Table.read(paths[0], format="ascii.ecsv")
    table["CT_COEFFS"][0][1] = 0.5
    table.write(paths[0], format="ascii.ecsv", overwrite=True)
    store = create_store(tmp_path / "s", "mini1")
    (error,) = import_files(store, "crosstalk", [paths[0]], threads).errors
    assert error.startswith(f"{paths[0]}: is another file than the one d.sources.fits was written for: remove that")
    paths[1].unlink()
    assert not import_files(store, "crosstalk", [paths[0]], threads).errors
    (pointer,) = list_products(store.url, "crosstalk")
    assert 0.5 in open_product(store.url, "crosstalk", pointer.version)["crosstalk"].values


@has_crosstalk
def test_couplings_between_ccds_tell_one_delivery_from_another(tmp_path):
    """Their table is a part of what is read: another one makes another version."""
    camera = load_camera("mini9")
    path = tmp_path / "c.ecsv"
    hashes = []
    for value in (1e-6, 2e-6):
        meta = {"INSTRUME": "mini9", "DET_NAME": "R22_S11"}
        n = 16
        zero = np.zeros((n, n))
        made = RubinCrosstalk(zero, zero, zero.astype(int), zero == 0, zero, zero, zero, np.ones(n), {}, {})
        entries = {"OBSTYPE": "CROSSTALK", "CROSSTALK_VERSION": 1.2, "CROSSTALK_RATIOS_UNITS": "electron", "NAMP": n}
        made.meta.update(entries | meta)
        made.others["R22_S12"] = np.full((n, n), value)
        write_rubin_crosstalk(path, made)
        _, found, file = read_crosstalk(path, camera)
        assert float(found["crosstalk"].sel(source="R22_S12/C10")[0]) == value
        hashes.append(file.hash)
    assert hashes[0] != hashes[1]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    store = create_store(tmp_path / "s", "mini1")
    (tmp_path / "c.ecsv").write_text("one")
    hashed = hash_together([tmp_path / "c.ecsv"])
    assert keep(store.url, "gain", [tmp_path / "c.ecsv"], hashed) == [".ecsv"]
    (tmp_path / "c.ecsv").write_text("two")
    with pytest.raises(CalibrationError, match=r"c.ecsv: changed while it was read"):
        keep(store.url, "gain", [tmp_path / "c.ecsv"], hashed)
    assert not list_products(store.url)
