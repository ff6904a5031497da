"""Exposures of different sequencers or voltages are not mixed, and no product of one is applied to the other."""

from dataclasses import replace

import numpy as np
import pytest
from making import exposure, make_frame

from lsstcal_dask.errors import StaleCalibration
from lsstcal_dask.instrument import load_camera, read_header, write_frame
from lsstcal_dask.instrument.headers import HeaderRules, exposure_table
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.readout import Readout, warm_products
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.pipeline.upstream import TemperatureMismatch, Upstream, find_upstream, read_upstream
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames, read_records, record_digests
from lsstcal_dask.storage.products import Pointer, list_products
from lsstcal_dask.storage.raw import open_raw

WITHOUT = ["linearity", "gain", "crosstalk", "deferred", "dark", "saturation", "defects"]


def files(folder, camera, taken, program, detectors=(None,), **more):
    """Raw files read by a program, one for all or by detector; empty: the headers do not say."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in taken:
        for detector in detectors:
            frame = make_frame(one, camera, detector)
            name = program[detector] if isinstance(program, dict) else program
            header = {k: v for k, v in frame.header.items() if k != "sequencer"} | ({"sequencer": name} if name else {})
            header |= more
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


def voltages(tmp_path, threads, *volts):
    """A store whose biases 1 to 5, 11 to 15 ... were taken at the voltages given, V, in order."""
    store = create_store(tmp_path / "s", "mini1")
    for k, value in enumerate(volts):
        paths = files(tmp_path / f"b{k}", "mini1", biases(10 * k + 1), "a.seq", voltage=value)
        assert not ingest(store, paths, threads).errors
    return store


def test_frames_of_different_voltages_are_not_mixed(tmp_path, threads):
    store = voltages(tmp_path, threads, 60.9, 45.0)
    ((_, refused),) = build(store, ["bias"], Config(), threads)
    assert refused.errors == [
        "bias: R22_S11: exposure MC_S_20260701_000001 was taken at 60.9 V, but MC_S_20260701_000011 at 45 V: "
        "build from those of one voltage (--exposure)"
    ]


def test_a_product_of_another_voltage_is_not_applied(tmp_path, threads):
    """Readings of the same voltage differ by tenths; another voltage is another CCD."""
    store = voltages(tmp_path, threads, 60.9)
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert made.pointer.inputs["voltages"] == {"R22_S11": 60.9}
    for number, volts, fits in ((40, 60.2, True), (41, 45.0, False), (42, float("nan"), True)):
        taken = [exposure(number, "science", 30.0)]
        paths = files(tmp_path / f"c{number}", "mini1", taken, "a.seq", voltage=volts)
        assert not ingest(store, paths, threads).errors
        ((_, one),) = calibrate(store, [taken[0].name], Config().calibrate, threads, skip=WITHOUT)
        assert bool(one.errors) != fits
        if not fits:
            assert f"bias {made.pointer.version} was made from exposures taken at 60.9 V" in one.errors[0]
            assert "these were taken at 45 V: take exposures for bias with that one" in one.errors[0]


def test_temperatures_and_lamp_currents_are_read(tmp_path, threads):
    """Of each CCD and of the exposure; the exposure that is warmer is named."""
    store = create_store(tmp_path / "s", "mini1")
    taken, warm = biases(1), [173.15] * 4 + [178.15]
    for i, (one, kelvin) in enumerate(zip(taken, warm, strict=True)):
        own = {"temperature": kelvin, "lamp_current": 1.5}
        assert not ingest(store, files(tmp_path / f"b{i}", "mini1", [one], "a.seq", **own), threads).errors
    raw = open_raw(store.url, store.camera)
    assert raw["temperature"].values[:, 0].tolist() == pytest.approx(warm)
    assert (raw["temperature"].attrs["units"], raw["lamp_current"].attrs["units"]) == ("K", "A")
    assert raw["lamp_current"].values.tolist() == [1.5] * 5
    ((_, made),) = build(store, ["bias"], Config(), threads)
    assert made.pointer.verdict == "WARN"
    (remark,) = [text for text in made.pointer.remarks if "temperatures" in text]
    assert f"K, exposure {taken[4].name} farthest off" in remark


HEADER = {
    "exposure_type": "flat",
    "time": "2026-07-01T00:00:00",
    "exposure_time": 1.0,
    "dark_time": 1.0,
    "filter": "r",
    "wavelength": 500.0,
    "photodiode": 1e-9,
}


def test_a_corrected_lamp_current_makes_another_product():
    digests = set()
    for more in ({}, {"lamp_current": float("nan")}, {"lamp_current": 1.0}, {"lamp_current": 2.0}):
        record = FrameRecord("e", "d", "", "", "", "", HEADER | more)
        digests |= {record_digests({("e", "d"): record})["e"]}
    assert len(digests) == 3


def test_a_detector_whose_file_does_not_tell_has_not_that_of_another(tmp_path):
    store = create_store(tmp_path / "s", "mini9")
    names = [d.name for d in store.camera.detectors[:2]]
    told = [{"temperature": 173.0, "sequencer": "a.seq"}, {}]
    frames = [
        FrameRecord("e", n, "0" * 16, "f", "h", "int32", HEADER | own) for n, own in zip(names, told, strict=True)
    ]
    publish_frames(store.url, frames)
    assert len(read_records(store.url)) == 2
    raw = open_raw(store.url, store.camera).sel(detector=names)
    np.testing.assert_array_equal(raw["temperature"].values, [[173.0, np.nan]])
    assert raw["sequencer"].values.tolist() == [["a.seq", ""]]


def corrected(store, tmp_path, threads, taken, **more):
    """Ingest an exposure again with another header."""
    paths = files(tmp_path / "again", "mini1", [taken], "a.seq", **more)
    report = ingest(store, paths, threads, correct=True)
    assert (len(report.corrected), report.errors) == (1, [])


@pytest.mark.parametrize("more", [{"voltage": 45.0}, {"temperature": 178.15}, {"sequencer": "b.seq"}])
def test_what_is_corrected_outdates_the_product(tmp_path, threads, more):
    """The line names exposure, detector and remedy; corrected back, the product is current again."""
    store = voltages(tmp_path, threads, 60.9)
    ((_, made),) = build(store, ["bias"], Config(), threads)
    third = biases(1)[2]
    assert not read_upstream(store.url).outdated
    program = more.get("sequencer", "a.seq")
    own = {"voltage": 60.9} | {key: value for key, value in more.items() if key != "sequencer"}
    paths = files(tmp_path / "again", "mini1", [third], program, **own)
    report = ingest(store, paths, threads, correct=True)
    assert (len(report.corrected), report.errors) == (1, [])
    (why,) = read_upstream(store.url).outdated.values()
    assert why == (
        f"made from exposure {third.name}, whose sequencer, temperature or voltage of R22_S11 has changed since"
    )
    place = ("bias", "R22_S11", "2026-07-02T00:00:00", ("calibrate", OverscanConfig()))
    with pytest.raises(StaleCalibration, match=f"bias {made.pointer.version} was {why}: build bias again"):
        find_upstream(read_upstream(store.url), *place)
    corrected(store, tmp_path, threads, third, voltage=60.9)
    assert not read_upstream(store.url).outdated


def test_a_detector_that_comes_later_outdates_nothing(tmp_path, threads):
    store = create_store(tmp_path / "s", "mini9")
    for name in ("R22_S00", "R22_S01"):
        paths = files(tmp_path / name, "mini9", biases(1), "a.seq", (name,), voltage=60.9)
        assert not ingest(store, paths, threads).errors
        if name == "R22_S00":
            ((_, made),) = build(store, ["bias"], Config(), threads)
            assert made.pointer.inputs["conditions"]["detectors"].keys() == {"R22_S00"}
    assert not read_upstream(store.url).outdated


def test_build_names_the_exposure_of_another_voltage(tmp_path, threads):
    store = voltages(tmp_path, threads, 60.9)
    ((_, made),) = build(store, ["bias"], Config(), threads)
    flats = [exposure(20 + i, "flat", 0.3 * (i + 1)) for i in range(9)]
    assert not ingest(store, files(tmp_path / "f", "mini1", flats, "a.seq", voltage=45.0), threads).errors
    ((_, refused),) = build(store, ["linearity"], Config(), threads)
    assert refused.errors == [
        f"linearity: R22_S11: bias {made.pointer.version} was made from exposures taken at 60.9 V, but exposure "
        f"{flats[0].name} was taken at 45 V: take exposures for bias with that one, and build it again"
    ]


def known(name, kelvin):
    """A store in which a product of that temperature is all there is."""
    inputs = {"temperatures": {"R22_S11": kelvin}}
    pointer = Pointer(name, "2026-07-01T12:00:00", inputs, {}, {}, {}, [], version="v1", detectors={"R22_S11": "h"})
    return Upstream([pointer], {})


@pytest.mark.parametrize("name", ["gain", "dark", "bias"])
@pytest.mark.parametrize(("kelvin", "fits"), [(173.0, True), (175.9, True), (177.0, False), (None, True)])
def test_what_follows_the_temperature_is_not_applied_at_another(name, kelvin, fits):
    """Three kelvins make another dark and another gain; a bias is a bias."""
    way, place = Readout(temperature=kelvin, exposure="E7"), ("R22_S11", "2026-07-02T00:00:00")
    step = ("calibrate", OverscanConfig())
    if fits or name == "bias":
        assert find_upstream(known(name, 173.0), name, *place, step, way).version == "v1"
        return
    with pytest.raises(TemperatureMismatch) as found:
        find_upstream(known(name, 173.0), name, *place, step, way)
    assert str(found.value) == (
        f"{name} v1 was made from exposures taken at 173.0 K, but exposure E7 was taken at 177.0 K: take exposures for "
        f"{name} with that one, and build it again"
    )


def test_a_temperature_that_is_a_little_off_is_told():
    used = {"gain": ("v1", {"temperatures": {"R22_S11": 173.0}}), "bias": ("v2", {"temperatures": {"R22_S11": 173.0}})}
    (remark,) = warm_products(used, "R22_S11", Readout(temperature=174.5))
    assert remark.startswith("R22_S11: taken at 174.5 K, gain v1 at 173.0 K: the gain changes by 6.5e-4 per K")
    assert "build gain from exposures of that temperature" in remark
    assert not warm_products(used, "R22_S11", Readout(temperature=173.5))
    assert not warm_products(used, "R22_S11", Readout())
