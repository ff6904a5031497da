"""Exposures that different sequencer programs read are not mixed, and no product of one is applied to the other."""

from dataclasses import replace

import pytest
from making import exposure, make_frame

from lsstcal_dask.instrument import load_camera, read_header, write_frame
from lsstcal_dask.instrument.headers import HeaderRules, exposure_table
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.storage.products import list_products
from lsstcal_dask.storage.raw import open_raw

WITHOUT = ["linearity", "gain", "crosstalk", "deferred", "dark", "saturation", "defects"]


def files(folder, camera, taken, program, detectors=(None,)):
    """Raw files read by a program, one for all or by detector; empty: the headers do not say."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in taken:
        for detector in detectors:
            frame = make_frame(one, camera, detector)
            name = program[detector] if isinstance(program, dict) else program
            header = {k: v for k, v in frame.header.items() if k != "sequencer"} | ({"sequencer": name} if name else {})
            path = folder / f"{one.name}_{frame.detector}.fits"
            write_frame(path, load_camera(camera), replace(frame, header=header), compress=False)
            paths.append(str(path))
    return paths


def biases(first, count=5):
    return [exposure(number, "bias") for number in range(first, first + count)]


def store_with(tmp_path, threads, camera="mini1", **programs):
    """A store whose biases 1 to 5, 11 to 15 ... and science frame 40 were read by the programs given, in order."""
    store = create_store(tmp_path / "s", camera)
    for k, program in enumerate(programs.get("biases", ())):
        report = ingest(store, files(tmp_path / f"b{k}", camera, biases(10 * k + 1), program), threads)
        assert not report.errors
    if "science" in programs:
        taken = [exposure(40, "science", 30.0)]
        assert not ingest(store, files(tmp_path / "c", camera, taken, programs["science"]), threads).errors
    return store


def test_the_first_card_that_tells_counts():
    rules = HeaderRules.model_validate(load_camera("lsstcam").headers)
    cards = {"IMGTYPE": "BIAS", "DATE-OBS": "2026-01-01T00:00:00", "EXPTIME": 0.0, "SEQFILE": "FP_E2V_v26.seq"}
    assert exposure_table(rules, cards, "f", None)["sequencer"] == "FP_E2V_v26.seq"
    assert exposure_table(rules, {**cards, "SEQCKSUM": "3099412345"}, "f", None)["sequencer"] == "3099412345"
    assert "sequencer" not in exposure_table(rules, {**cards, "SEQFILE": ""}, "f", None)
    assert not HeaderRules.model_validate(load_camera("esis").headers).sequencer


def test_measured_frames_tell_it(real_data):
    (path,) = (real_data / "lsst_raw").glob("*R22-S22*")
    assert read_header(path, load_camera("lsstcam")).header["sequencer"] == "3099412345"


def test_a_product_is_made_from_one_sequencer(tmp_path, threads):
    store = store_with(tmp_path, threads, biases=("a.seq", "b.seq"))
    ((_, refused),) = build(store, ["bias"], Config(), threads)
    (error,) = refused.errors
    assert error == (
        "bias: R22_S11: exposure MC_S_20260701_000001 was read by sequencer a.seq, but MC_S_20260701_000011 by b.seq: "
        "build from those of one sequencer (--exposure)"
    )
    names = [one.name for one in biases(11)]
    ((_, made),) = build(store, ["bias"], Config(), threads, exposures=names)
    assert made.pointer.inputs["sequencers"] == {"R22_S11": "b.seq"}


def test_a_product_of_another_sequencer_is_not_applied(tmp_path, threads):
    store = store_with(tmp_path, threads, biases=("a.seq",), science="b.seq")
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert not made.errors
    ((_, refused),) = calibrate(store, [], Config().calibrate, threads, skip=WITHOUT)
    (error,) = refused.errors
    assert (
        f"bias {made.pointer.version} was made from exposures read by sequencer a.seq, but these were read by" in error
    )
    assert (
        "read by b.seq: take exposures for bias with that one, and build it again, or leave it out with --skip" in error
    )
    assert not list_products(store.url, "calibrated")


def test_nothing_is_built_with_a_product_of_another_sequencer(tmp_path, threads):
    """Linearity can do without a bias, but not where there is one that does not fit."""
    store = store_with(tmp_path, threads, biases=("a.seq",))
    flats = [exposure(20 + i, "flat", 0.3 * (i + 1)) for i in range(9)]
    assert not ingest(store, files(tmp_path / "f", "mini1", flats, "b.seq"), threads).errors
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert not made.errors
    ((_, refused),) = build(store, ["linearity"], Config(), threads)
    assert refused.errors[0].startswith("linearity: R22_S11: bias ")
    assert "take exposures for bias with that one" in refused.errors[0]


@pytest.mark.parametrize(("of_biases", "of_science"), [("a.seq", "a.seq"), ("", "a.seq"), ("a.seq", ""), ("", "")])
def test_the_same_sequencer_or_none_that_is_known_is_no_hindrance(tmp_path, threads, of_biases, of_science):
    store = store_with(tmp_path, threads, biases=(of_biases,), science=of_science)
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert ("sequencers" in made.pointer.inputs) == bool(of_biases)
    assert ("sequencer" in open_raw(store.url, store.camera).coords) == bool(of_biases or of_science)
    ((_, done),) = calibrate(store, [], Config().calibrate, threads, skip=WITHOUT)
    assert not done.errors


def test_detectors_of_an_exposure_may_be_read_by_different_ones(tmp_path, threads):
    store = create_store(tmp_path / "s", "mini9")
    program = {"R22_S00": "itl.seq", "R22_S01": "e2v.seq"}
    paths = files(tmp_path / "f", "mini9", biases(1), program, program)
    for _ in range(2):
        report = ingest(store, paths, threads)
        assert not report.errors
    assert len(report.unchanged) == 10
    raw = open_raw(store.url, store.camera)
    assert set(raw["sequencer"].sel(detector="R22_S00").values) == {"itl.seq"}
    assert set(raw["sequencer"].sel(detector="R22_S01").values) == {"e2v.seq"}
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert made.pointer.inputs["sequencers"] == program


def test_frames_of_a_store_that_does_not_know_it_stay_unchanged(tmp_path, threads):
    store = create_store(tmp_path / "s", "mini1")
    taken = biases(1, 1)
    assert len(ingest(store, files(tmp_path / "a", "mini1", taken, ""), threads).ingested) == 1
    known = files(tmp_path / "b", "mini1", taken, "a.seq")
    report = ingest(store, known, threads)
    assert (len(report.unchanged), report.errors) == (1, [])


def test_another_sequencer_of_a_stored_frame_is_a_correction(tmp_path, threads):
    store = create_store(tmp_path / "s", "mini1")
    taken = biases(1, 1)
    ingest(store, files(tmp_path / "a", "mini1", taken, "a.seq"), threads)
    other = files(tmp_path / "b", "mini1", taken, "b.seq")
    (error,) = ingest(store, other, threads).errors
    assert "has sequencer 'b.seq', but is stored with 'a.seq'" in error
    assert len(ingest(store, other, threads, correct=True).corrected) == 1
    assert open_raw(store.url, store.camera)["sequencer"].values.tolist() == [["b.seq"]]
