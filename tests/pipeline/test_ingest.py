import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import SEED, make_files, small_plans

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera, read_frame, write_frame
from lsstcal_dask.pipeline.ingest import IngestReport, ingest
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.simulate.simple import simulate_frame
from lsstcal_dask.storage.raw import open_raw, read_records


def files_under(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def store(ingested, tmp_path):
    shutil.copytree(ingested.url, tmp_path / "s")
    return open_store(tmp_path / "s")


@pytest.fixture
def frame():
    camera = load_camera("mini1")
    return simulate_frame(SEED, replace(small_plans()[0], index=90), camera, camera.detectors[0])


def test_ingesting_twice_changes_nothing(store, raw_files, threads):
    before = files_under(store.url)
    report = ingest(store, raw_files, threads)
    assert (len(report.ingested), len(report.unchanged), report.errors) == (0, len(raw_files), [])
    assert files_under(store.url) == before


def test_same_pixels_in_another_file_change_nothing(store, raw_files, threads, tmp_path):
    frame = read_frame(raw_files[0], store.camera)
    write_frame(tmp_path / "again.fits.gz", store.camera, frame, compress=False)
    report = ingest(store, [str(tmp_path / "again.fits.gz")], threads)
    assert (len(report.ingested), len(report.unchanged), report.errors) == (0, 1, [])


def test_duplicate_with_other_pixels_is_named_and_refused(store, raw_files, threads, tmp_path):
    frame = read_frame(raw_files[0], store.camera)
    counts = frame.counts.copy()
    counts[0, 5, 5] += 1
    write_frame(tmp_path / "other.fits", store.camera, replace(frame, counts=counts))
    before = open_raw(store.url, store.camera)["counts"].values
    report = ingest(store, [str(tmp_path / "other.fits")], threads)
    assert not report.ingested
    (error,) = report.errors
    assert "other.fits" in error
    assert frame.exposure in error
    assert "different pixels" in error
    np.testing.assert_array_equal(open_raw(store.url, store.camera)["counts"].values, before)


def test_of_two_conflicting_files_the_first_named_wins(store, frame, threads, tmp_path):
    counts = frame.counts.copy()
    counts[1, 3, 3] += 7
    write_frame(tmp_path / "a.fits", store.camera, frame)
    write_frame(tmp_path / "b.fits", store.camera, replace(frame, counts=counts))
    report = ingest(store, [str(tmp_path / "a.fits"), str(tmp_path / "b.fits")], threads)
    assert [r.file for r in report.ingested] == ["a.fits"]
    assert "b.fits" in report.errors[0]


def test_bad_files_are_named_and_the_rest_goes_in(store, frame, threads, tmp_path):
    good = tmp_path / "good.fits"
    write_frame(good, store.camera, frame)
    blob = good.read_bytes()
    (tmp_path / "truncated.fits").write_bytes(blob[: len(blob) // 2])
    (tmp_path / "notfits.fits").write_bytes(b"hello")
    other = make_files(tmp_path / "m9", "mini9", small_plans()[:1], detectors={"R22_S00"})
    nan = tmp_path / "nan.fits"
    nan.write_bytes(blob.replace(b"EXPTIME = ", b"EXPTIMEX= "))
    files = [str(tmp_path / name) for name in ("truncated.fits", "notfits.fits", "missing.fits", "nan.fits")]
    report = ingest(store, [*files, *other, str(good)], threads)
    assert [record.file for record in report.ingested] == ["good.fits"]
    assert len(report.errors) == 5
    for name, error in zip(["truncated", "notfits", "missing", "nan", "R22_S00"], report.errors, strict=True):
        assert name in error
        assert "\n" not in error
    assert "xposure time" in report.errors[3]


def test_header_that_contradicts_its_exposure_is_refused(tmp_path, threads):
    plan = small_plans()[5]
    camera = load_camera("mini9")
    store = create_store(tmp_path / "s", "mini9")
    files = make_files(tmp_path / "raw", "mini9", [plan], detectors={"R22_S00"})
    wrong = simulate_frame(SEED, plan, camera, camera.detector("R22_S01"))
    wrong = replace(wrong, header={**wrong.header, "exposure_time": 99.0})
    path = tmp_path / "raw" / "wrong.fits"
    write_frame(path, camera, wrong)
    report = ingest(store, [*files, str(path)], threads)
    assert len(report.ingested) == 1
    assert "wrong.fits" in report.errors[0]
    assert "exposure_time 99.0" in report.errors[0]


def test_type_given_by_the_user_overrules_the_header_but_not_what_is_stored(store, raw_files, threads):
    report = ingest(store, raw_files[:1], threads, exposure_type="dark")
    assert "exposure_type 'dark'" in report.errors[0]
    assert {r.header["exposure_type"] for r in read_records(store.url).values()} >= {"bias", "dark"}


def test_a_store_keeps_its_camera(store):
    with pytest.raises(CalibrationError, match="holds camera mini1, not mini9"):
        create_store(store.url, "mini9")
    with pytest.raises(CalibrationError, match="is not a store"):
        open_store(Path(store.url) / "nowhere")


def test_ingest_of_nothing_is_nothing(store, threads):
    report = ingest(store, [], threads)
    assert report == IngestReport()


def test_interrupted_ingest_is_invisible_and_resumes_without_decoding_again(
    store, frame, threads, tmp_path, monkeypatch
):
    path = tmp_path / "new.fits"
    write_frame(path, store.camera, frame)
    before = read_records(store.url)
    module = "lsstcal_dask.pipeline.ingest"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.publish_frames", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(store, [str(path)], threads)
    assert read_records(store.url) == before
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.read_frame", killed)
        report = ingest(store, [str(path)], threads)
    assert [record.exposure for record in report.ingested] == [frame.exposure]
    found = open_raw(store.url, store.camera, exposures=[frame.exposure])["counts"].values[0, 0]
    np.testing.assert_array_equal(found, frame.counts)


@pytest.mark.parametrize("name", ["../../evil", "..", "/abs", "a/b", "a b", ""])
def test_an_exposure_id_cannot_lead_out_of_the_store(store, frame, threads, tmp_path, name):
    path = tmp_path / "in" / "bad.fits"
    path.parent.mkdir()
    write_frame(path, store.camera, frame, compress=False)
    card = f"OBSID   = '{frame.exposure}'".encode()
    blob = path.read_bytes()
    assert card in blob
    path.write_bytes(blob.replace(card, f"OBSID   = '{name}'".encode().ljust(len(card))))
    before = files_under(tmp_path)
    report = ingest(store, [str(path)], threads)
    assert "bad.fits" in report.errors[0]
    assert files_under(tmp_path) == before
