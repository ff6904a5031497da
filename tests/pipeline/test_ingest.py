import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from making import exposure, make_files, make_frame, run_command, small_day

from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import load_camera, read_frame, write_frame
from lsstcal_dask.pipeline.ingest import IngestReport, ingest
from lsstcal_dask.pipeline.store import camera_for, create_store, open_store
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.variables import EXPOSURE_TYPES

UNLIT = replace(small_day()[9], source=None)  # a flat whose header tells nothing of the lamp


def files_under(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def store(ingested, tmp_path):
    shutil.copytree(ingested.url, tmp_path / "s")
    return open_store(tmp_path / "s")


@pytest.fixture
def frame():
    return make_frame(exposure(90, "bias"))


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
    other = make_files(tmp_path / "m9", "mini9", small_day()[:1], detectors={"R22_S00"})
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


def test_a_flat_whose_wavelength_is_none_is_told_and_goes_in(tmp_path, threads, capsys):
    mine, paths = create_store(tmp_path / "s", "mini1"), []
    for number, (kind, said) in enumerate(
        [("flat", "abc"), ("flat", -1.0), ("flat", 0.0), ("flat", 600.0), ("dark", -1.0)]
    ):
        paths += make_files(tmp_path / "raw", "mini1", [exposure(number + 1, kind, 1.0)])
        fits.setval(paths[-1], "MONOWL", value=said)
    report = ingest(mine, [str(path) for path in paths], threads)
    assert (len(report.ingested), report.errors) == (5, [])
    assert len(report.remarks) == 2
    for number, (line, said) in enumerate(zip(report.remarks, ("'abc'", "-1.0"), strict=True)):
        assert line.startswith(
            f"exposure MC_S_20260701_00000{number + 1}: card MONOWL is {said}, no wavelength in nm: it"
        )
        assert line.endswith("correct the header and ingest it with --correct")
    code, told = run_command(capsys, "ingest", mine.url, *paths)
    assert code == 0
    assert all(told.err.count(line) == 1 for line in report.remarks)


def test_header_that_contradicts_its_exposure_is_refused(tmp_path, threads):
    camera, dark = load_camera("mini9"), small_day()[5]
    store = create_store(tmp_path / "s", "mini9")
    files = make_files(tmp_path / "raw", "mini9", [dark], detectors={"R22_S00"})
    wrong = make_frame(dark, "mini9", "R22_S01")
    wrong = replace(wrong, header={**wrong.header, "exposure_time": 99.0})
    path = tmp_path / "raw" / "wrong.fits"
    write_frame(path, camera, wrong)
    report = ingest(store, [*files, str(path)], threads)
    assert len(report.ingested) == 1
    assert "wrong.fits" in report.errors[0]
    assert "exposure_time 99.0" in report.errors[0]


def test_type_given_by_the_user_overrules_the_header_but_not_what_is_stored(store, raw_files, threads):
    before = files_under(store.url)
    report = ingest(store, raw_files[:2], threads, exposure_type="dark")
    assert (report.ingested, report.unchanged) == ([], [])
    for path, error in zip(raw_files, report.errors, strict=False):
        assert error == (
            f"{Path(path).name}: exposure {Path(path).name[:-13]} R22_S11 has exposure_type 'dark', but is stored with "
            f"'bias': nothing was changed; to replace the stored header ingest it with --correct"
        )
    assert files_under(store.url) == before


def test_what_is_no_type_is_refused_before_anything_is_read(store):
    with pytest.raises(WrongUse, match="unknown type of exposure 'nonsense': choose --type from bias, dark, flat"):
        ingest(store, ["nowhere.fits"], None, exposure_type="nonsense")


def test_every_camera_names_only_known_types():
    for name in ("lsstcam", "latiss", "esis", "ohp", "mini1", "mini9", "raft"):
        assert set(load_camera(name).headers["exposure_type"]["types"].values()) <= set(EXPOSURE_TYPES)


def types(store):
    return {key[0]: record.header["exposure_type"] for key, record in read_records(store.url).items()}


def test_a_correction_replaces_the_header_and_nothing_else(store, raw_files, threads):
    before, counts = files_under(store.url), open_raw(store.url, store.camera)["counts"].values
    known = types(store)
    report = ingest(store, raw_files[:1], threads, exposure_type="dark", correct=True)
    assert (len(report.ingested), len(report.corrected), report.unchanged, report.errors) == (0, 1, [], [])
    name = small_day()[0].name
    assert types(store) == known | {name: "dark"}
    after = files_under(store.url)
    (new,) = set(after) - set(before)
    assert new.parent.as_posix() == "raw/manifests"
    assert {path: after[path] for path in before} == before  # old manifests and frames remain
    np.testing.assert_array_equal(open_raw(store.url, store.camera)["counts"].values, counts)
    report = ingest(store, raw_files[:1], threads, exposure_type="dark", correct=True)
    assert (report.corrected, len(report.unchanged)) == ([], 1)
    assert ingest(store, raw_files[:1], threads, exposure_type="dark").errors == []
    assert files_under(store.url) == after


def test_the_last_correction_counts(store, raw_files, threads):
    name = small_day()[0].name
    for kind in ("dark", "flat", None):
        report = ingest(store, raw_files[:1], threads, exposure_type=kind, correct=True)
        assert len(report.corrected) == 1
        assert types(store)[name] == (kind or "bias")
    assert ingest(store, raw_files, threads).errors == []


def test_a_correction_does_not_touch_other_pixels(store, raw_files, threads, tmp_path):
    frame = read_frame(raw_files[0], store.camera)
    counts = frame.counts.copy()
    counts[0, 5, 5] += 1
    write_frame(tmp_path / "other.fits", store.camera, replace(frame, counts=counts))
    before = files_under(Path(store.url) / "raw" / "manifests")
    report = ingest(store, [str(tmp_path / "other.fits")], threads, exposure_type="dark", correct=True)
    assert "different pixels" in report.errors[0]
    assert files_under(Path(store.url) / "raw" / "manifests") == before


def detector_files(folder, taken, headers):
    """Files of one exposure of the nine-CCD camera, by detector, with some header entries replaced."""
    camera = load_camera("mini9")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, changes in headers.items():
        frame = make_frame(taken, "mini9", name)
        path = folder / f"{name}.fits"
        write_frame(path, camera, replace(frame, header={**frame.header, **changes}), compress=False)
        paths.append(str(path))
    return paths


@pytest.fixture
def three(tmp_path, threads):
    """A store with one dark of three CCDs, whose clocks differ a little."""
    store = create_store(tmp_path / "s", "mini9")
    clocks = {"R22_S00": {}, "R22_S01": {"dark_time": 300.25}, "R22_S02": {"dark_time": 299.5}}
    files = detector_files(tmp_path / "raw", small_day()[5], clocks)
    assert ingest(store, files, threads).errors == []
    return store, files


def test_detectors_of_an_exposure_are_corrected_together(three, threads, tmp_path):
    store, _ = three
    right = {"R22_S00": {"dark_time": 303.0}, "R22_S01": {"dark_time": 303.25}}
    files = detector_files(tmp_path / "right", small_day()[5], right)
    report = ingest(store, files, threads)
    assert [("has dark_time 303" in line, "--correct" in line) for line in report.errors] == [(True, True)] * 2
    report = ingest(store, files, threads, correct=True)
    assert (len(report.corrected), report.errors) == (2, [])
    assert {record.header["dark_time"] for record in read_records(store.url).values()} == {303.0}
    before = files_under(store.url)
    for correct in (True, False):
        report = ingest(store, files, threads, correct=correct)
        assert (len(report.unchanged), report.corrected, report.errors) == (2, [], [])
    assert files_under(store.url) == before


def test_files_that_disagree_correct_nothing(three, threads, tmp_path):
    store, _ = three
    wrong = {"R22_S00": {"exposure_type": "flat"}, "R22_S01": {"exposure_type": "flat"}, "R22_S02": {}}
    files = detector_files(tmp_path / "wrong", small_day()[5], wrong)
    before = files_under(store.url)
    report = ingest(store, files, threads, correct=True)
    (error,) = report.errors
    assert "R22_S02.fits: exposure" in error
    assert "has exposure_type 'dark', but another file given has 'flat': nothing of this exposure was changed" in error
    assert (report.corrected, files_under(store.url)) == ([], before)


def test_a_new_detector_joins_the_corrected_exposure(three, threads, tmp_path):
    store, _ = three
    flat = {"exposure_type": "flat"}
    files = detector_files(tmp_path / "more", small_day()[5], {"R22_S10": flat, "R22_S00": flat})
    assert "correct the header or --type" in ingest(store, files[:1], threads).errors[0]
    report = ingest(store, files, threads, correct=True)
    assert [r.detector for r in report.ingested] == ["R22_S10"]
    assert [r.detector for r in report.corrected] == ["R22_S00"]
    assert set(types(store).values()) == {"flat"}
    assert ingest(store, files, threads).errors == []


@pytest.mark.parametrize(
    ("key", "close", "far"),
    [("dark_time", 304.9, 305.1), ("time", "2026-07-01T20:00:59", "2026-07-01T20:01:01"), ("exposure_time", 0, 0.1)],
)
def test_clocks_of_the_detectors_may_differ_a_little(tmp_path, threads, key, close, far):
    """Dark times by 5 s and times by a minute, for each CCD is read by its own clock; nothing else."""
    start = {"time": "2026-07-01T20:00:00", "dark_time": 300.0, "exposure_time": 0.0}
    given = {"R22_S00": start, "R22_S01": start | {key: close}, "R22_S02": start | {key: far}}
    store = create_store(tmp_path / "s", "mini9")
    report = ingest(store, detector_files(tmp_path / "raw", small_day()[5], given), threads)
    assert [record.detector for record in report.ingested] == ["R22_S00", "R22_S01"]
    (error,) = report.errors
    assert f"R22_S02 has {key} " in error
    assert "but R22_S00 of the same exposure is stored with" in error
    assert {record.header[key] for record in read_records(store.url).values()} == {report.ingested[0].header[key]}


@pytest.mark.parametrize("key", ["wavelength", "photodiode"])
def test_lamps_are_compared_among_the_detectors_of_an_exposure(tmp_path, threads, key):
    """One lamp lights them all: two values contradict each other; what one file lacks another tells.

    A controller that does not write the card must not keep its CCD out of the store, nor hide from
    the exposure what the other controllers wrote, whichever file comes first.
    """
    given = {"R22_S00": {}, "R22_S01": {key: 500.0}, "R22_S02": {key: 600.0}, "R22_S10": {key: 500.0}, "R22_S11": {}}
    files = detector_files(tmp_path / "raw", UNLIT, given)
    store = create_store(tmp_path / "s", "mini9")
    report = ingest(store, files[:4], threads)
    (error,) = report.errors
    assert f"R22_S02 has {key} 600.0, but R22_S01 of the same exposure is stored with 500.0" in error
    assert len(report.ingested) == 3
    assert {record.header[key] for record in read_records(store.url).values()} == {500.0}
    assert ingest(store, files[4:], threads).errors == []
    assert {record.header[key] for record in read_records(store.url).values()} == {500.0}
    report = ingest(store, [files[0], files[1], files[4]], threads)
    assert (len(report.unchanged), report.errors) == (3, [])


def test_what_was_stored_without_a_lamp_learns_of_it(tmp_path, threads):
    files = detector_files(tmp_path / "raw", UNLIT, {"R22_S00": {}, "R22_S01": {"wavelength": 500.0}})
    store = create_store(tmp_path / "s", "mini9")
    for path in files:
        assert ingest(store, [path], threads).errors == []
    assert open_raw(store.url, store.camera)["wavelength"].values.tolist() == [500.0]


def test_a_store_keeps_its_camera(store):
    with pytest.raises(CalibrationError, match="holds camera mini1, not mini9"):
        create_store(store.url, "mini9")
    with pytest.raises(CalibrationError, match="is not a store"):
        open_store(Path(store.url) / "nowhere")
    assert camera_for(store.url, None, "mini9") == store.camera
    assert camera_for(store.url, "mini9", "mini1").name == "mini9"
    assert camera_for(Path(store.url) / "nowhere", None, "mini9").name == "mini9"


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
