import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import expected_light, exposure, make_files, small_day, truth

from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera, read_frame, write_frame
from lsstcal_dask.pipeline.build import Validity, build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config, read_config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.storage.products import check_product, list_products, lookup, open_product

NOON = "2026-07-01T12:00:00"
MADE = ["bias", "gain", "dark", "defects"]  # of the day of the tests; other products have no exposures there


@pytest.fixture(scope="module")
def built(ingested, tmp_path_factory, threads):
    """A store with every product and the science frame calibrated."""
    folder = tmp_path_factory.mktemp("built") / "s"
    shutil.copytree(ingested.url, folder)
    store = open_store(folder)
    found = dict(build(store, [], Config(), threads))
    assert [name for name in found if found[name].pointer] == MADE
    assert not [e for one in found.values() for e in one.errors]
    found |= dict(calibrate(store, [], Config().calibrate, threads))
    return store, found


def product(store, name):
    (pointer,) = list_products(store.url, name)
    return open_product(store.url, name, pointer.version, chunked=False).load()


def pulls(part, expected):
    ny, nx = expected.shape
    variance = part["variance"].values[:ny, :nx] + part["row_variance"].values[:ny, None]
    good = (part["mask"].values[:ny, :nx] == 0) & np.isfinite(expected)
    return ((part["image"].values[:ny, :nx] - expected) / np.sqrt(variance))[good]


@pytest.mark.parametrize("name", ["bias", "dark"])
def test_products_recover_the_truth_within_their_errors(built, name):
    store, _ = built
    detector = store.camera.detectors[0]
    found = product(store, name).sel(detector=detector.name)
    values = np.concatenate([pulls(found.sel(amplifier=a.name), truth(name, a.name)) for a in detector.amplifiers])
    assert 0.95 < np.sqrt(np.mean(values**2)) < 1.05
    assert abs(values.mean()) < 0.15  # the level of the rows is common to many pixels


def scaled_light(store):
    """Light by amplifier, scaled to the measured gain: its error is common to an amplifier, not one of pixels."""
    gains = product(store, "gain")["gain"].isel(detector=0)
    light = expected_light(small_day()[-1])
    return {name: image * float(gains.sel(amplifier=name)) / truth("gain", name) for name, image in light.items()}


def calibrated(store, threads, skip=()):
    ((_, one),) = calibrate(store, [small_day()[-1].name], Config().calibrate, threads, skip=skip)
    assert not one.errors
    return open_product(store.url, "calibrated", one.pointer.version).isel(detector=0).load()


def test_science_frame_recovers_the_light_within_its_errors(built, threads):
    store, _ = built
    light = scaled_light(store)
    assert max(map(np.nanmax, light.values())) > 5000  # stars as well as sky
    frame = calibrated(store, threads)
    values = np.concatenate([pulls(frame.sel(amplifier=name), image) for name, image in light.items()])
    assert 0.95 < np.sqrt(np.mean(values**2)) < 1.05
    assert frame["image"].attrs["units"] == "electron"


@pytest.mark.parametrize("step", ["bias", "dark"])
def test_every_correction_removes_its_own_pattern(built, threads, step):
    """How much of the true pattern is left: none of it with the correction, all of it without."""
    store, _ = built
    light = scaled_light(store)

    def left(frame):
        top, bottom = 0.0, 0.0
        for name, image in light.items():
            scale = truth("gain", name) if step == "bias" else small_day()[-1].dark_time
            pattern = scale * truth(step, name)
            ny, nx = pattern.shape
            part = frame.sel(amplifier=name)
            good = np.isfinite(image)
            weight = 1 / part["variance"].values[:ny, :nx][good]
            pattern = pattern[good] - np.average(pattern[good], weights=weight)
            top += np.sum(weight * pattern * (part["image"].values[:ny, :nx] - image)[good])
            bottom += np.sum(weight * pattern**2)
        return top / bottom, 1 / np.sqrt(bottom)

    # a hot pixel is a defect, and filled in: most of the pattern of a dark would be gone with it
    good, error = left(calibrated(store, threads, skip=["defects"]))
    assert abs(good) < 5 * error
    worse, error = left(calibrated(store, threads, skip=[step, "defects"]))
    assert abs(worse - 1) < 5 * error
    assert worse > 5 * error


def test_gains_are_right_within_errors(built):
    store, _ = built
    detector = store.camera.detectors[0]
    gains = product(store, "gain").sel(detector=detector.name)
    for a in detector.amplifiers:
        part = gains.sel(amplifier=a.name)
        assert abs(part["gain"] - truth("gain", a.name)) < 4 * part["gain_error"]
        assert np.isnan(part["gain_fe55"])


def test_a_second_build_finds_everything_done(built, threads):
    store, first = built
    for name, one in build(store, MADE, Config(), threads):
        assert not one.new
        assert (one.pointer and one.pointer.version) == (first[name].pointer and first[name].pointer.version)


def test_provenance_names_inputs_configuration_and_software(built):
    store, _ = built
    (dark,) = list_products(store.url, "dark")
    assert dark.inputs["exposures"] == [one.name for one in small_day()[5:9]]
    (bias,) = list_products(store.url, "bias")
    assert dark.inputs["upstream"][store.camera.detectors[0].name]["bias"] == f"{bias.version}/{bias.hash}"
    assert dark.configuration["method"] == "auto"
    assert "numpy" in dark.software
    assert dark.valid_from == NOON


def test_damage_on_disk_is_found(built, tmp_path):
    store, _ = built
    shutil.copytree(store.url, tmp_path / "s")
    (bias,) = list_products(str(tmp_path / "s"), "bias")
    assert check_product(str(tmp_path / "s"), bias) == []
    chunk = next((tmp_path / "s" / "products" / "bias" / bias.version / "data" / "image" / "c").rglob("0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.unlink()
    assert check_product(str(tmp_path / "s"), bias) == [store.camera.detectors[0].name]


def test_lookup_by_time(built, threads):
    store, _ = built
    det = store.camera.detectors[0].name
    later = Validity("2026-08-01T00:00:00", "2026-09-01T00:00:00")
    ((_, one),) = build(store, ["bias"], Config(), threads, validity=later)
    pointers = list_products(store.url)
    assert lookup(pointers, "bias", det, "2026-08-15T00:00:00").version == one.pointer.version
    assert lookup(pointers, "bias", det, "2026-07-02T00:00:00").version != one.pointer.version
    assert lookup(pointers, "bias", det, "2026-09-01T00:00:00").version != one.pointer.version
    with pytest.raises(CalibrationError, match=r"no bias is valid at 2020.*there is 2026-07-01T12:00:00 to open"):
        lookup(pointers, "bias", det, "2020-01-01T00:00:00")


def test_same_bits_on_processes_with_a_worker_killed_on_the_way(ingested, built, tmp_path):
    _, first = built
    shutil.copytree(ingested.url, tmp_path / "s")
    other = open_store(tmp_path / "s")
    with cluster("local", 2) as compute:
        pids = list(compute.client.run(__import__("os").getpid).values())
        killer = __import__("threading").Timer(0.3, lambda: __import__("os").kill(pids[0], 9))
        killer.start()
        for name, one in build(other, MADE, Config(), compute):
            assert one.pointer.hash == first[name].pointer.hash, name
        killer.cancel()


def test_errors_name_the_culprit(built, threads, tmp_path):
    store, _ = built
    name = small_day()[9].name
    ((_, one),) = build(store, ["dark"], Config(), threads, exposures=[name])
    assert "no exposures of type dark" in one.errors[0]
    with pytest.raises(ValueError, match="'lupton2016', 'physical' or 'rubin'"):
        Config(calibrate={"order": "x"})
    with pytest.raises(CalibrationError, match="unknown correction 'flat'"):
        list(calibrate(store, [name], Config().calibrate, threads, skip=["flat"]))
    with pytest.raises(CalibrationError, match="exposure NOPE is not in"):
        list(calibrate(store, ["NOPE"], Config().calibrate, threads))


def test_one_dead_amplifier_does_not_stop_the_others(tmp_path, threads):
    camera = load_camera("mini1")
    files = make_files(tmp_path / "raw", "mini1", small_day())
    for path in files:
        frame = read_frame(path, camera)
        frame.counts[1] = 7
        write_frame(path, camera, frame, compress=False)
    store = create_store(tmp_path / "s", "mini1")
    assert not ingest(store, files, threads).errors
    dead, alive = camera.amplifier_names[1], camera.amplifier_names[0]
    for name, one in build(store, ["bias", "gain", "dark"], Config(), threads):
        assert one.pointer.verdict == "WARN"
        assert any(f"{camera.detectors[0].name} {dead}" in remark for remark in one.pointer.remarks)
        values = product(store, name)["gain" if name == "gain" else "image"].isel(detector=0)
        assert np.isnan(values.sel(amplifier=dead)).all()
        assert np.isfinite(values.sel(amplifier=alive)).any()
    ((_, one),) = calibrate(store, [], Config().calibrate, threads)
    frame = open_product(store.url, "calibrated", one.pointer.version).isel(detector=0).load()
    assert (frame["mask"].sel(amplifier=dead) & 1 == 1).all()
    assert np.isfinite(frame["image"].sel(amplifier=alive)).any()


def test_wrong_biases_are_named(tmp_path, threads):
    taken = [*small_day()[:5], exposure(6, "bias", 5.0)]
    store = create_store(tmp_path / "s", "mini1")
    ingest(store, make_files(tmp_path / "raw", "mini1", taken), threads)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert f"exposure {taken[5].name}" in one.errors[0]
    assert "5 s" in one.errors[0]


def test_too_few_exposures(tmp_path, threads):
    store = create_store(tmp_path / "s", "mini1")
    ingest(store, make_files(tmp_path / "raw", "mini1", small_day()[:2]), threads)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert "2 bias exposures, at least 3" in one.errors[0]


def test_a_frame_that_does_not_belong_is_left_out_and_named(tmp_path, threads):
    camera = load_camera("mini1")
    taken = [exposure(i + 1, "bias") for i in range(8)]
    files = make_files(tmp_path / "raw", "mini1", taken)
    frame = read_frame(files[3], camera)
    frame.counts[0, :, : frame.counts.shape[2] // 2] += 60  # a yellow corner
    write_frame(files[3], camera, frame, compress=False)
    store = create_store(tmp_path / "s", "mini1")
    ingest(store, files, threads)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert any(f"exposure {taken[3].name} left out" in remark for remark in one.pointer.remarks)
    accepted = product(store, "bias")["accepted"].isel(detector=0)
    assert not accepted.isel(exposure=3, amplifier=0)
    assert accepted.isel(exposure=4).all()


def test_a_dark_with_the_shutter_open_is_left_out_and_named(tmp_path, threads):
    camera = load_camera("mini1")
    taken = [*small_day()[:-1], *(exposure(20 + i, "dark", 300.0) for i in range(4))]
    files = make_files(tmp_path / "raw", "mini1", taken)
    bright = taken[6]
    assert bright.kind == "dark"
    path = next(f for f in files if bright.name in f)
    frame = read_frame(path, camera)
    for i, amplifier in enumerate(camera.detectors[0].amplifiers):
        frame.counts[i][amplifier.data.slices] += 40
    write_frame(path, camera, frame, compress=False)
    store = create_store(tmp_path / "s", "mini1")
    ingest(store, files, threads)
    dark = dict(build(store, [], Config(), threads))["dark"].pointer
    assert dark.verdict == "WARN"
    left_out = [remark for remark in dark.remarks if "left out" in remark]
    assert len(left_out) == 4
    assert all(f"exposure {bright.name}" in remark and "light leak" in remark for remark in left_out)
    rates = product(store, "dark")["image"].median()
    expected = np.median([truth("dark", name) for name in camera.amplifier_names])
    assert abs(float(rates) - expected) < 0.01


def test_half_the_detectors_missing_is_allowed_and_counted(tmp_path, threads):
    some = {"R22_S00", "R22_S11"}
    store = create_store(tmp_path / "s", "mini9")
    files = make_files(tmp_path / "raw", "mini9", small_day()[:4], detectors=some)
    files = [f for f in files if "000001_R22_S11" not in f]  # and one frame of one of them
    ingest(store, files, threads)
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert set(one.pointer.detectors) == some
    frames = product(store, "bias")["frames"]
    assert frames.sel(detector="R22_S00").max() == 4
    assert frames.sel(detector="R22_S11").max() == 3


def test_configuration_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[bias]\nmethod = "median"\n[bias.overscan]\nmethod = "row"\n')
    assert read_config(path).bias.method == "median"
    path.write_text('[overscan]\nmethod = "row"\n[dark]\nk = 5\n[dark.overscan]\nmethod = "mean"\n')
    shared = read_config(path)
    found = [getattr(shared, name).overscan.method for name in ("bias", "gain", "calibrate", "dark")]
    assert found == ["row", "row", "row", "mean"]
    path.write_text("[overscan]\nclipp = 3\n")
    with pytest.raises(CalibrationError, match=r"c.toml: .*overscan.clipp: there is no such entry"):
        read_config(path)
    path.write_text("bias = 3\n")
    with pytest.raises(CalibrationError, match=r"c.toml: bias: must be a table"):
        read_config(path)
    path.write_text("[bias]\nmethods = 3\n")
    with pytest.raises(CalibrationError, match=r"c.toml: bias.methods"):
        read_config(path)
    path.write_text("[bias\n")
    with pytest.raises(CalibrationError, match="is not TOML"):
        read_config(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def bias_store(folder, threads, change, nights=(5, 5)):
    """Biases of two nights, each changed by ``change(index, counts of one CCD)``; the store and its bias."""
    camera = load_camera("mini1")
    numbers = [*range(1, 1 + nights[0]), *range(1001, 1001 + nights[1])]
    files = make_files(folder / "raw", "mini1", [exposure(number, "bias") for number in numbers])
    for i, path in enumerate(files):
        frame = read_frame(path, camera)
        change(i, frame.counts)
        write_frame(path, camera, frame, compress=False)
    store = create_store(folder / "s", "mini1")
    assert not ingest(store, files, threads).errors
    ((_, one),) = build(store, ["bias"], Config(), threads)
    return store, one.pointer


@pytest.mark.parametrize("shift", [0, 3, 30])
def test_a_drift_between_nights_is_reported_as_it_is(tmp_path, threads, shift):
    box = load_camera("mini1").detectors[0].amplifiers[0].data

    def change(i, counts):
        if i >= 5:
            counts[(slice(None), *box.slices)] += shift

    _, pointer = bias_store(tmp_path, threads, change)
    assert pointer.verdict == ("WARN" if shift else "PASS")
    found = [remark for remark in pointer.remarks if "level changed by" in remark]
    assert len(found) == 4
    for remark in found:
        change, error = (float(word) for word in remark.split("changed by ")[1].split(" adu")[0].split(" +- "))
        assert abs(change - shift) < 5 * error
        assert error < 0.5
    assert not [remark for remark in pointer.remarks if "left out" in remark]


def test_frames_without_data_are_left_out_and_do_not_dilute_the_noise(tmp_path, threads):
    def change(i, counts):
        if i in (2, 7):
            counts[:] = i  # two that are alike would be one exposure twice

    store, pointer = bias_store(tmp_path, threads, change)
    assert pointer.verdict == "WARN"
    assert sum("no data" in remark for remark in pointer.remarks) == 8
    camera = store.camera
    for a in camera.detectors[0].amplifiers:
        part = product(store, "bias").isel(detector=0).sel(amplifier=a.name)
        expected = np.hypot(truth("read_noise", a.name) / truth("gain", a.name), 1 / np.sqrt(12))
        assert abs(part["read_noise"] - expected) < 5 * part["read_noise_error"]
        assert part["frames"].max() == 8


def test_darks_of_unequal_times_all_enter(tmp_path, threads):
    taken = [one for one in small_day() if one.kind in ("bias", "flat")]
    taken += [exposure(30 + i, "dark", t) for i, t in enumerate((100.0, 300.0, 300.0, 900.0, 900.0))]
    store = create_store(tmp_path / "s", "mini1")
    ingest(store, make_files(tmp_path / "raw", "mini1", taken), threads)
    dark = dict(build(store, [], Config(), threads))["dark"].pointer
    assert dark.verdict == "PASS"
    assert product(store, "dark")["accepted"].all()


def test_a_product_without_a_usable_amplifier_is_not_published(tmp_path, threads):
    def change(i, counts):
        counts[:] = 0

    with pytest.raises(AttributeError):  # nothing was published
        assert bias_store(tmp_path, threads, change)[1].verdict
    assert not list_products(str(tmp_path / "s"), "bias")


def test_the_version_asked_for_last_is_the_one_in_use(ingested, tmp_path, threads):
    shutil.copytree(ingested.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    other = Config(bias={"method": "median"})
    versions = []
    for config in (Config(), other, Config()):
        ((_, one),) = build(store, ["bias"], config, threads)
        versions.append(one.pointer.version)
        in_use = lookup(list_products(store.url), "bias", store.camera.detectors[0].name, "2026-07-02T00:00:00")
        assert in_use.version == versions[-1]
    assert versions[0] == versions[2] != versions[1]


@pytest.fixture
def copy(built, tmp_path):
    """A store with everything built, to be changed."""
    shutil.copytree(built[0].url, tmp_path / "copy")
    return open_store(tmp_path / "copy")


def exposure_files(folder, taken, **changes):
    """File of one exposure with some header entries replaced."""
    camera = load_camera("mini1")
    (path,) = make_files(folder, "mini1", [taken])
    frame = read_frame(path, camera)
    write_frame(path, camera, replace(frame, header={**frame.header, **changes}), compress=False)
    return [path]


def test_another_dark_time_makes_another_dark(copy, built, threads, tmp_path):
    """Same exposures, same pixels: only the header tells that the dark is another."""
    before = built[1]["dark"].pointer
    files = exposure_files(tmp_path / "raw", small_day()[5], dark_time=360.0)
    assert len(ingest(copy, files, threads, correct=True).corrected) == 1
    found = dict(build(copy, [], Config(), threads))
    assert [name for name, one in found.items() if one.new] == ["dark", "defects"]
    after = found["dark"].pointer
    assert (after.inputs["exposures"], after.inputs["pixels"]) == (before.inputs["exposures"], before.inputs["pixels"])
    assert after.hash != before.hash
    ((_, frame),) = calibrate(copy, [], Config().calibrate, threads)
    assert frame.new
    assert frame.pointer.inputs["upstream"]["R22_S11"]["dark"].startswith(after.version)


def test_what_is_corrected_back_finds_its_products_again(copy, built, threads, tmp_path):
    before = built[1]["bias"].pointer
    files = make_files(tmp_path / "raw", "mini1", small_day()[:1])
    for kind, new in (("spot", True), ("bias", False)):
        ingest(copy, files, threads, exposure_type=kind, correct=True)
        ((_, one),) = build(copy, ["bias"], Config(), threads)
        assert one.new is new
    assert one.pointer.version == before.version
    upstream = read_upstream(copy.url)
    assert before.version not in upstream.outdated
    assert lookup(upstream.pointers, "bias", "R22_S11", NOON, upstream.outdated).version == before.version


def test_a_product_whose_last_exposures_turned_out_wrong_is_not_used(copy, threads, tmp_path):
    """Nothing can be built in its place, and still it must not be applied."""
    files = make_files(tmp_path / "raw", "mini1", small_day()[:5])
    ingest(copy, files, threads, exposure_type="spot", correct=True)
    ((_, one),) = build(copy, ["bias"], Config(), threads)
    assert "no exposures of type bias" in one.errors[0]
    ((_, frame),) = calibrate(copy, [], Config().calibrate, threads)
    assert frame.pointer is None
    assert "whose header has changed since: build bias again, or leave it out with --skip" in frame.errors[0]


ROW = {"overscan": {"method": "row"}}


@pytest.mark.parametrize("name", ["gain", "dark"])
def test_a_bias_of_another_overscan_is_not_subtracted(copy, built, threads, name):
    bias = built[1]["bias"].pointer
    ((_, one),) = build(copy, [name], Config(**{name: ROW}), threads)
    assert one.errors == [
        f"{name}: R22_S11: bias {bias.version} was made with overscan method = 'spline', but {name} is to use "
        f"'row': write one of them in [overscan] for both, and build bias again if it is not its own"
    ]
    assert len(list_products(copy.url, name)) == 1


def test_a_frame_of_another_overscan_is_not_calibrated(copy, threads):
    config = Config(calibrate=ROW).calibrate
    ((_, one),) = calibrate(copy, [], config, threads)
    (error,) = one.errors
    assert "bias" in error
    assert "overscan method = 'spline', but calibrate is to use 'row'" in error
    list(build(copy, ["bias"], Config(bias=ROW), threads))
    ((_, one),) = calibrate(copy, [], config, threads)
    assert re.search(r"dark [0-9a-f]{16} was made with overscan method = 'spline'", one.errors[0])
    everything = Config(**ROW)
    assert not [e for _, one in build(copy, [], everything, threads) for e in one.errors]
    ((_, one),) = calibrate(copy, [], config, threads)
    assert one.errors == []
    with_spline = calibrate(copy, [], Config().calibrate, threads, skip=["bias", "dark"])
    assert [one.errors for _, one in with_spline] == [[]]  # a gain is a number of the amplifier, whatever the overscan


def test_validity_that_ends_and_validity_that_does_not(copy, threads):
    """The end is exclusive; without one a product is valid until another starts."""
    late = Validity(valid_until="2026-07-10T00:00:00")
    ((_, ends),) = build(copy, ["bias"], Config(bias={"method": "median"}), threads, validity=late)
    assert (ends.pointer.valid_from, ends.pointer.valid_until) == (NOON, "2026-07-10T00:00:00")
    pointers = [p for p in list_products(copy.url, "bias") if p.valid_from == NOON]
    for time, chosen in (
        ("2026-07-01T11:59:59", None),
        (NOON, ends),
        ("2026-07-09T23:59:59", ends),
        ("2026-07-10T00:00:00", "open"),
        ("2099-01-01T00:00:00", "open"),
    ):
        if chosen is None:
            with pytest.raises(CalibrationError, match="to 2026-07-10T00:00:00"):
                lookup(pointers, "bias", "R22_S11", time)
        else:
            found = lookup(pointers, "bias", "R22_S11", time)
            assert found.valid_until == ("" if chosen == "open" else ends.pointer.valid_until)


def test_a_frame_that_was_ingested_twice_counts_once_and_is_named(tmp_path, threads):
    """Under another name it looks like another exposure, and a variance of six would be claimed of three."""
    camera, taken = load_camera("mini1"), [exposure(i + 1, "bias") for i in range(3)]
    files = make_files(tmp_path / "raw", "mini1", taken)
    for i, path in enumerate(files[:2]):
        frame = read_frame(path, camera)
        again = tmp_path / f"again{i}.fits"
        write_frame(again, camera, replace(frame, exposure=exposure(11 + i, "bias").name), compress=False)
        files.append(str(again))
    store = create_store(tmp_path / "s", "mini1")
    assert not ingest(store, files, threads).errors
    ((_, one),) = build(store, ["bias"], Config(), threads)
    assert one.pointer.verdict == "WARN"
    for i in range(2):
        name = exposure(11 + i, "bias").name
        assert f"exposure {name} left out: its pixels are those of {taken[i].name}" in one.pointer.remarks
    assert product(store, "bias")["frames"].max() == 3
    assert one.pointer.inputs["exposures"] == [one.name for one in taken]


def test_an_optional_correction_that_is_not_valid_yet_is_left_out_with_a_warning(copy, threads):
    """A store without it only notes that; one that gets it later must not fail what came before."""
    for path in Path(copy.url, "products/defects/published").glob("*.json"):
        path.unlink()
    shutil.rmtree(Path(copy.url, "products/calibrated"))  # a frame without defects on request has the same bits
    ((_, made),) = build(copy, ["defects"], Config(), threads, validity=Validity("2026-07-20T12:00:00"))
    assert made.pointer
    ((_, one),) = calibrate(copy, [], Config().calibrate, threads)
    assert not one.errors
    assert one.pointer.verdict == "WARN"
    (remark,) = [text for text in one.pointer.remarks if text.startswith("without defects")]
    assert remark.startswith("without defects: R22_S11: no defects is valid at 2026-07-01T")
    assert "widen one with --valid-from" in remark
    assert "defects" not in one.pointer.inputs["upstream"]["R22_S11"]
