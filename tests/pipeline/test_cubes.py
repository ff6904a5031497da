"""Cubes from simulated flats: the truth within the noise, bad input told by name, runs resumed, slices added."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Column, MaskedColumn, Table, vstack
from making import run_command as run
from stores_of_monochromatic_flats import expected_light, flats, later, new_store, observatory, take

from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import CalibrationError, InsufficientInputs, StoreFailure, UnitsError
from lsstcal_dask.physics.units import vacuum_to_air
from lsstcal_dask.pipeline import cubes as cubes_module
from lsstcal_dask.pipeline.config import Config, read_config
from lsstcal_dask.pipeline.cubeplan import Job, Plan, read_lines
from lsstcal_dask.pipeline.cubes import _waves, make_cube
from lsstcal_dask.pipeline.inputs import corrected
from lsstcal_dask.pipeline.lineage import cube_inputs, outdated_slices
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.photodiode import read_photodiode
from lsstcal_dask.pipeline.pictures import show_picture
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.slices import Group, air_remarks
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre
from lsstcal_dask.simulate.truth import amplifiers
from lsstcal_dask.storage.cubes import CubeReader, open_cube, read_cube
from lsstcal_dask.storage.manifests import publish_frames, read_records
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.storage.provenance import digest
from lsstcal_dask.storage.raw import open_raw, write_frame
from lsstcal_dask.storage.tables import read_input, write_table
from lsstcal_dask.variables import MASK_BITS

CONFIG = Config()
EACH = 2
CCD = "R22_S11"


@pytest.fixture(scope="module")
def taken():
    return flats(each=EACH)


@pytest.fixture(scope="module")
def store(tmp_path_factory, taken):
    """Five wavelengths, two flats of each, of one CCD; not to be changed."""
    store = new_store(tmp_path_factory.mktemp("cubes") / "s")
    take(store, taken)
    return store


@pytest.fixture(scope="module")
def cubes(store, threads):
    """One in each form."""
    made = {form: make_cube(store, form, form, CONFIG, threads) for form in ("f4", "i2", "i1")}
    assert all(one.errors == [] and one.made == 5 and one.left_out == {} for one in made.values())
    return {form: read_cube(store.url, form) for form in made}


def copied(store, tmp_path):
    shutil.copytree(store.url, tmp_path / "s", ignore=shutil.ignore_patterns("cubes"))
    from lsstcal_dask.pipeline.store import open_store

    return open_store(tmp_path / "s")


def true_slice(store, slot, taken):
    """What a slice should be without noise (amplifier, y, x), and the least variance that it can have."""
    diode, lines = read_photodiode(store.url, CONFIG.cube), read_lines(store.url)
    raw = open_raw(store.url, store.camera)
    noise = np.array([row["read_noise"] for row in amplifiers(observatory(), store.camera.detector(CCD))])
    light, photons = [], []
    for one in (one for one in taken if one.name in slot.exposures):
        header = raw.sel(exposure=one.name)
        seconds, nm = float(header["exposure_time"]), lines[one.name].wavelength
        photons.append(float(diode.photons(float(header["photodiode"]), seconds, nm)))
        light.append(expected_light(one, CCD))
    light, photons = np.stack(light), np.array(photons)[:, None, None, None]
    bound = 1 / np.sum(photons**2 / (light + noise[:, None, None] ** 2), axis=0)
    return light.sum(axis=0) / photons.sum(), bound


@pytest.mark.parametrize("form", ["f4", "i2", "i1"])
def test_slices_are_the_truth_within_the_noise(store, cubes, taken, form):
    cube = cubes[form]
    reader, pulls, etas = CubeReader(cube, CCD), [], []
    assert len(cube.slots) == 5
    for k, slot in enumerate(cube.pointer.slots):
        truth, bound = true_slice(store, slot, taken)
        for a in range(4):
            good = (reader.mask()[a] == 0) & np.isfinite(truth[a])
            variance = reader.variance_slope[k, a] * truth[a] + reader.variance_floor[k, a]
            pulls.append(((reader.values(k, a) - truth[a]) / np.sqrt(variance))[good])
            etas.append((variance / bound[a])[good].mean())
    pulls = np.concatenate(pulls)
    # all pixels of a row share the error of its level, read noise of 9 pixels: 1.8 of 150 electrons
    assert abs(pulls.mean()) < 4 * np.hypot(1 / np.sqrt(pulls.size), 0.012 / np.sqrt(5 * 4 * 64) * np.sqrt(64))
    assert abs(pulls.std() - 1) < 4 / np.sqrt(2 * pulls.size) + 0.003
    assert np.all(np.array(etas) < 1.02)


@pytest.mark.parametrize("form", ["i2", "i1"])
def test_codes_add_little_noise_and_no_bias(cubes, form):
    plain, coded = CubeReader(cubes["f4"], CCD), CubeReader(cubes[form], CCD)
    away = []
    for k in range(5):
        for a in range(4):
            value = plain.values(k, a)
            sigma = np.sqrt(plain.variance_slope[k, a] * value + plain.variance_floor[k, a])
            away.append((coded.values(k, a) - value) / sigma)
    away = np.concatenate(away).ravel()
    away = away[np.isfinite(away)]
    assert 0 < np.sqrt(1 + np.mean(away**2)) - 1 < 0.003
    # errors are even over a step of a quarter sigma: their mean scatters by 0.25 / sqrt(12 n)
    assert abs(away.mean()) < 4 * 0.25 / np.sqrt(12 * away.size)


def test_the_mean_response_is_the_true_one_within_its_error(store, cubes, taken):
    site = observatory()
    for slot in cubes["f4"].pointer.slots:
        own = [one for one in taken if one.name in slot.exposures]
        photons = sum(
            o.source.rate * o.exposure_time * 1e5 * lamp_brightness(11, site.settings.lamp_drift, o) for o in own
        )
        light = np.sum([expected_light(one, CCD) for one in own], axis=0)
        truth = np.nanmean(light[:, 5:-5, 5:-5]) / photons
        assert abs(slot.response - truth) < 4 * slot.response_error
        assert 2e-4 < slot.response_error / slot.response < 2e-3
        parts = slot.response_common, slot.response_single, slot.response_photon
        assert np.linalg.norm(parts) == pytest.approx(slot.response_error / slot.response)
        assert slot.response_single == pytest.approx(2e-4 / np.sqrt(EACH), rel=1e-3)
        # 150 electrons of noise in 16,384 pixels of 22,500, twice
        assert slot.response_photon == pytest.approx(1 / np.sqrt(2 * 16384 * 22500), rel=0.4)
        centre = np.mean([laser_centre(11, site.settings.laser, one) for one in own])
        assert abs(slot.wavelength - centre) < 4 * slot.wavelength_error
        assert slot.wavelength_error == pytest.approx(0.01 / np.sqrt(EACH), rel=0.05)


def test_without_responsivity_and_measured_wavelengths_r_is_wrong(store, cubes, tmp_path, threads):
    mine = copied(store, tmp_path)
    (Path(mine.url) / "inputs" / "wavelengths.ecsv").unlink()
    config = Config.model_validate({"cube": {"responsivity": "none"}})
    bare = make_cube(mine, "c", "f4", config, threads).pointer.slots
    good = cubes["f4"].pointer.slots
    errors = [
        abs(a.response / b.response - 1) / (b.response_error / b.response) for a, b in zip(bare, good, strict=True)
    ]
    assert min(errors) > 100
    assert [one.wavelength for one in bare] == [600, 601, 602, 603, 604]
    assert max(abs(a.wavelength - b.wavelength) for a, b in zip(bare, good, strict=True)) > 5 * good[0].wavelength_error
    assert all("was not measured" in " ".join(one.remarks) for one in bare)


def content(store, name):
    """Bytes of all that is stored of a cube but times."""
    root = Path(store.url, "cubes", name)
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for path in [path for path in files if path.startswith("published")]:
        files[path] = json.dumps({**json.loads(files[path]), "created": ""}).encode()
    return files


def test_the_bytes_do_not_depend_on_the_workers(store, cubes):
    for form in ("i2", "i1"):
        with cluster("threads", 1) as compute:
            make_cube(store, f"{form}-again", form, CONFIG, compute)
        assert content(store, f"{form}-again") == content(store, form)


def test_what_is_bad_at_all_wavelengths_is_told_by_the_first_slice(tmp_path, monkeypatch):
    """Of many workers none begins with another slice of that CCD; blocks of one slice each make it hard."""
    monkeypatch.setattr("lsstcal_dask.pipeline.cubes._BLOCK", 1)
    found = []
    for workers in (1, 4):
        mine = new_store(tmp_path / str(workers))
        take(mine, flats(each=1, last=603.0))
        with cluster("threads", workers) as compute:
            make_cube(mine, "c", "i2", CONFIG, compute)
        found.append(content(mine, "c"))
    assert found[0] == found[1]


def test_the_first_slice_of_a_ccd_goes_ahead(store, cubes, tmp_path):
    run = Plan(store, "i2", CONFIG, open_raw(store.url, store.camera, chunked=False), read_upstream(store.url))
    job = Job(Group(600.0, ["a"], [1.0], 600.0, 0.01, 1.0, "", 0.0), 0, {CCD: None}, {}, {}, None)
    jobs = [replace(job, slot=slot) for slot in range(20)]
    assert list(_waves(run, "i2", jobs)) == [[(CCD, list(range(n, min(n + 8, 20)))) for n in (0, 8, 16)]]
    run.name = "new"
    waves = _waves(run, "i2", jobs)
    assert next(waves) == [(CCD, list(range(8)))]
    assert next(waves) == [(CCD, list(range(8, 20)))]  # none of the first could be made: the rest one by one
    assert list(_waves(run, "i1", jobs)) == [[(CCD, list(range(20)))]]


def test_the_same_command_again_makes_nothing(store, cubes, threads):
    before = content(store, "i2")
    made = make_cube(store, "i2", "i2", CONFIG, threads)
    assert (made.made, made.pointer.number) == (0, 1)
    assert content(store, "i2") == before


@pytest.mark.parametrize("form", ["i2", "i1"])
def test_wavelengths_are_added_in_any_order(store, cubes, taken, tmp_path, threads, form):
    mine = new_store(tmp_path / "a")
    middle = [one for one in taken if one.source.wavelength in (602, 604)]
    rest = [one for one in taken if one not in middle]
    take(mine, middle)
    first = make_cube(mine, "c", form, CONFIG, threads)
    before = content(mine, "c")
    assert [round(one.wavelength) for one in first.pointer.slots] == [602, 604]
    take(mine, rest, inputs="-later")
    second = make_cube(mine, "c", form, CONFIG, threads)
    assert (second.made, second.pointer.number) == (3, 2)
    after = content(mine, "c")
    kept = {k: v for k, v in before.items() if "/done/" in k or "/c/" in k or k.startswith(("exceptions", "published"))}
    codes = {k: v for k, v in kept.items() if "data/codes" in k or not k.startswith("data")}
    assert {k: after[k] for k in codes} == codes
    whole, here = open_cube(store.url, form, chunked=False), open_cube(mine.url, "c", chunked=False)
    np.testing.assert_array_equal(here["wavelength"], whole["wavelength"])
    step = float(read_cube(mine.url, "c").numbers["scale"].max())
    np.testing.assert_allclose(here["flat"].values, whole["flat"].values, atol=(1.01 if form == "i1" else 0) * step)
    np.testing.assert_allclose(here["response"], whole["response"], rtol=1e-12)


def test_a_wavelength_taken_again_replaces_the_old_one(store, taken, tmp_path, threads):
    mine = copied(store, tmp_path)
    make_cube(mine, "c", "i2", CONFIG, threads)
    again = later([one for one in taken if one.source.wavelength == 602], 3)
    take(mine, again, inputs="-z")
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert (made.made, len(made.pointer.slots)) == (1, 5)
    assert made.pointer.slots[2].exposures == [one.name for one in again]
    old = read_cube(mine.url, "c", 1)
    assert old.pointer.slots[2].exposures != made.pointer.slots[2].exposures
    np.testing.assert_array_equal(
        CubeReader(old, CCD).values(1, 0), CubeReader(read_cube(mine.url, "c"), CCD).values(1, 0)
    )


def test_a_frame_that_was_ingested_twice_counts_once(store, cubes, taken, tmp_path, threads):
    mine = copied(store, tmp_path)
    raw = open_raw(mine.url, mine.camera, chunked=False)
    records, records_of = [], {r.exposure: r for r in read_records(mine.url).values()}
    for one in taken[:EACH]:
        counts = raw["counts"].sel(exposure=one.name, detector=CCD).values
        again = replace(records_of[one.name], exposure=f"{one.name}-copy", file="again", file_hash="again")
        records.append(write_frame(mine.url, again, counts, {}))
    publish_frames(mine.url, records)
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert made.left_out == {r.exposure: f"its pixels are those of {r.exposure.removesuffix('-copy')}" for r in records}
    assert made.pointer.slots[0].exposures == [one.name for one in taken[:EACH]]
    assert any("-copy left out: its pixels are those of" in remark for remark in made.pointer.remarks)
    whole, here = (CubeReader(cube, CCD) for cube in (cubes["i2"], read_cube(mine.url, "c")))
    np.testing.assert_array_equal(here.repeats, whole.repeats)  # 2, not 4
    np.testing.assert_array_equal(here.variance_slope, whole.variance_slope)
    np.testing.assert_array_equal(here.values(0, 0), whole.values(0, 0))


def test_a_slice_says_what_it_was_made_from_and_why_it_is_outdated(store, taken, tmp_path, threads, capsys):
    mine = copied(store, tmp_path)
    make_cube(mine, "c", "i2", CONFIG, threads)
    (row,) = list_contents(mine)["cubes"]
    first = row["slices"][0]
    assert first["exposures"] == [one.name for one in taken[:EACH]]
    assert first["products"] == {name: ["truth"] for name in ("bias", "gain", "dark")}
    header = open_raw(mine.url, mine.camera).sel(exposure=taken[0].name)
    assert first["headers"][taken[0].name]["photodiode"] == float(header["photodiode"])
    assert [one["outdated"] for one in row["slices"]] == [""] * 5
    records = [r for r in read_records(mine.url).values() if r.exposure == taken[0].name]
    publish_frames(mine.url, [], [replace(r, header={**r.header, "photodiode": 1e-9}) for r in records])
    upstream = read_upstream(mine.url)
    gain = next(p for p in upstream.pointers if p.name == "gain")
    slots = read_cube(mine.url, "c").pointer.slots
    old = outdated_slices(mine.url, "c", slots, upstream)
    assert list(old) == [slots[0].slot]
    assert f"exposure {taken[0].name}, whose header has changed since: photodiode was" in old[slots[0].slot]
    newer = replace(upstream, pointers=[*upstream.pointers, replace(gain, version="w", created="2099-01-01T00:00:00")])
    told = outdated_slices(mine.url, "c", slots[1:], newer)
    assert set(told.values()) == {f"{CCD}: made with gain truth, which w has replaced"}
    status, said = run(capsys, "history", mine.url, "--product", "c")
    assert status == 0
    assert f"of {taken[0].name}, {taken[1].name} with " in said.err
    assert "nm is OUTDATED: made from exposure" in said.err
    status, said = run(capsys, "ls", mine.url)
    assert "cube c: 1 slices are outdated: 600.0 nm was made from exposure" in said.out
    assert cube_inputs(read_cube(mine.url, "c"), upstream)["headers"][taken[0].name] == digest(
        first["headers"][taken[0].name]
    )
    make_cube(mine, "c", "i2", CONFIG, threads)  # without the disagreeing two
    assert not any(one["outdated"] for one in list_contents(mine)["cubes"][0]["slices"][1:])


def test_slices_and_what_is_made_of_them_follow_the_table_of_the_photodiode(store, taken, tmp_path, threads):
    """At their own wavelengths: what is corrected elsewhere is none of their business."""
    mine = copied(store, tmp_path)
    make_cube(mine, "c", "i2", CONFIG, threads)
    table = read_input(mine.url, "photodiode")

    def outdated_now():
        upstream, cube = read_upstream(mine.url), read_cube(mine.url, "c")
        return outdated_slices(mine.url, "c", cube.pointer.slots, upstream)

    flat = Pointer("flat", "2026-07-01", cube_inputs(read_cube(mine.url, "c"), read_upstream(mine.url)), {}, {}, {}, [])
    flat = replace(flat, version="v")
    assert len(flat.inputs["photodiode"]) == 5
    assert (outdated_now(), corrected(mine.url, [flat])) == ({}, {})
    far = table["wavelength"] > 620
    table["responsivity"][far] *= 1.1
    write_table(mine.url, "inputs/photodiode", table)
    assert (outdated_now(), corrected(mine.url, [flat])) == ({}, {})
    table["responsivity"] *= 1.01
    write_table(mine.url, "inputs/photodiode", table)
    old = outdated_now()
    assert len(old) == 5
    says = r"made with inputs/photodiode.ecsv, which has changed since: responsivity was 0\.\d+ and is 0\.\d+"
    assert all(re.match(says, why) for why in old.values())
    (why,) = corrected(mine.url, [flat]).values()
    assert why == "made with inputs/photodiode.ecsv, which has changed since at 600.0 nm"
    make_cube(mine, "c", "i2", CONFIG, threads)
    assert outdated_now() == {}
    Path(mine.url, "inputs/photodiode.ecsv").unlink()
    assert len(outdated_now()) == 5
    make_cube(mine, "c", "i2", Config.model_validate({"cube": {"responsivity": "none"}}), threads)
    assert outdated_now() == {}
    assert cube_inputs(read_cube(mine.url, "c"), read_upstream(mine.url))["photodiode"] == {}


def test_another_product_makes_the_slices_again(store, tmp_path, threads):
    mine = copied(store, tmp_path)
    make_cube(mine, "c", "i2", CONFIG, threads)
    config = Config.model_validate({"cube": {"clip": 7.0}})
    made = make_cube(mine, "c", "i2", config, threads)
    assert (made.made, made.pointer.number, len(made.pointer.slots)) == (5, 2, 5)


def test_what_a_run_was_told_to_use_is_added_and_the_rest_stays(store, taken, tmp_path, threads):
    mine = copied(store, tmp_path)
    names = [one.name for one in taken]
    make_cube(mine, "c", "i2", CONFIG, threads, exposures=names[:4])
    made = make_cube(mine, "c", "i2", CONFIG, threads, exposures=names[8:])
    assert [round(one.wavelength) for one in made.pointer.slots] == [600, 601, 604]
    assert made.pointer.remarks[-1] == f"note: no flats from {made.pointer.slots[1].wavelength:g} to " + (
        f"{made.pointer.slots[2].wavelength:g} nm"
    )


def test_what_another_run_publishes_meanwhile_stays(store, taken, tmp_path, threads, monkeypatch):
    mine, names = copied(store, tmp_path), [one.name for one in taken]
    make, parts, made = cubes_module._make_slices, [names[4:6], names[8:]], []

    def meanwhile(*given):
        outcome = make(*given)
        if parts:
            made.append(make_cube(mine, "c", "i2", CONFIG, threads, exposures=parts.pop()))
        return outcome

    monkeypatch.setattr(cubes_module, "_make_slices", meanwhile)
    made.append(make_cube(mine, "c", "i2", CONFIG, threads, exposures=names[:4]))
    told = [[round(one.wavelength) for one in one.pointer.slots] for one in made]
    assert told == [[602], [602, 604], [600, 601, 602, 604]]
    assert [one.pointer.number for one in made] == [1, 2, 3]
    assert list_contents(mine, check=True)["damaged"] == []


def test_the_command_writes_numbers_anew_and_refuses_a_ccd_without_its_mask(store, tmp_path, threads):
    mine = copied(store, tmp_path)
    make_cube(mine, "c", "i2", CONFIG, threads)
    right = content(mine, "c")
    Path(mine.url, "cubes/c/data/scale/c/0/0/0").write_bytes(b"short")
    Path(mine.url, "cubes/c/data/total/c/0/0/0").unlink()
    (line,) = list_contents(mine, check=True)["damaged"]
    assert "cubes/c/data/scale cannot be read" in line
    assert (made := make_cube(mine, "c", "i2", CONFIG, threads)).made == 0
    assert (made.pointer.number, content(mine, "c")) == (1, right)
    Path(mine.url, "cubes/c/data/mask/c/0/0/0/0").unlink()
    with pytest.raises(StoreFailure, match=f"{CCD}: its mask cannot be read"):
        make_cube(mine, "c", "i2", CONFIG, threads)
    for marker in Path(mine.url).glob(f"cubes/c/done/*/{CCD}.json"):
        marker.unlink()
    assert make_cube(mine, "c", "i2", CONFIG, threads).made == 5
    assert content(mine, "c") == right


def bad_store(tmp_path, each=3, camera="mini1", last=601.0, **how):
    mine = new_store(tmp_path / "bad", camera)
    taken = flats(each=each, last=last)
    take(mine, taken, **how)
    return mine, taken


def charges(store, factor):
    """Headers of the exposures of a store with charges of the photodiode times a factor by exposure."""
    known = open_raw(store.url, store.camera)["photodiode"]
    return lambda name: {"photodiode": float(known.sel(exposure=name)) * factor(name)}


def test_two_flats_whose_photodiodes_disagree_are_both_told_and_make_no_slice(store, taken, tmp_path, threads):
    names = [one.name for one in taken if one.source.wavelength == 602]
    mine = new_store(tmp_path / "d")
    take(mine, taken, header=charges(store, lambda name: 2.0 if name == names[1] else 1.0))
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert [round(one.wavelength) for one in made.pointer.slots] == [600, 601, 603, 604]
    assert len(made.errors) == 1
    assert all(name in made.errors[0] for name in names)
    assert "of two none says which is wrong" in made.errors[0]


def test_a_jump_of_r_is_told_and_forgotten_once_it_is_mended(store, taken, tmp_path, threads):
    names = [one.name for one in taken if one.source.wavelength == 602]
    mine = new_store(tmp_path / "d")
    take(mine, taken, header=charges(store, lambda name: 0.7 if name in names else 1.0))
    slots = make_cube(mine, "c", "i2", CONFIG, threads).pointer.slots
    assert [one.verdict for one in slots] == ["PASS", "PASS", "WARN", "PASS", "PASS"]
    (told,) = [text for text in slots[2].remarks if "off what its neighbours in wavelength say" in text]
    assert "its mean response is +4" in told
    assert all(name in told for name in names)
    take(mine, later([one for one in taken if one.name in names], 1), inputs="-z")
    assert all(one.verdict == "PASS" for one in make_cube(mine, "c", "i2", CONFIG, threads).pointer.slots)


def test_a_table_that_tells_an_exposure_twice_is_refused_unless_it_says_the_same(store, tmp_path):
    mine = copied(store, tmp_path)
    table = read_input(mine.url, "wavelengths")
    right, name = read_lines(mine.url), str(table["exposure"][0])
    write_table(mine.url, "inputs/wavelengths", vstack([table, table[:1]]))
    assert read_lines(mine.url) == right
    other = vstack([table, table[:1]])
    other["wavelength"][-1] += 0.2
    write_table(mine.url, "inputs/wavelengths", other)
    with pytest.raises(CalibrationError, match=f"inputs/wavelengths.ecsv: exposure {name} has two rows, .* keep one"):
        read_lines(mine.url)


def test_inputs_that_are_no_numbers_or_name_no_exposures_are_told(tmp_path):
    mine = new_store(tmp_path / "n", truth=False)
    diode = Table({key: [300.0, 900.0] for key in ("wavelength", "responsivity", "responsivity_error")})
    diode["wavelength"].unit, diode["responsivity"].unit, diode["responsivity_error"].unit = "nm", "A / W", "A / W"
    diode.meta["dark_current_A"] = "many"
    write_table(mine.url, "inputs/photodiode", diode)
    with pytest.raises(UnitsError, match="dark_current_A is 'many': give a number in A"):
        read_photodiode(mine.url, CONFIG.cube)
    lines = Table({key: [600.0] for key in ("wavelength", "wavelength_error", "bandwidth")})
    for name in lines.colnames:
        lines[name].unit = "nm"
    write_table(mine.url, "inputs/wavelengths", lines)
    with pytest.raises(CalibrationError, match="column exposure is not there: give the name"):
        read_lines(mine.url)
    lines["exposure"], lines["bandwidth"] = ["a"], Column(["wide"], unit="nm")
    write_table(mine.url, "inputs/wavelengths", lines)
    with pytest.raises(UnitsError, match="column bandwidth holds what is no number: give numbers in"):
        read_lines(mine.url)
    lines["exposure"], lines["bandwidth"] = MaskedColumn(["a"], mask=[True]), Column([1.0], unit="nm")
    write_table(mine.url, "inputs/wavelengths", lines)
    with pytest.raises(CalibrationError, match="column exposure has empty entries: name each row"):
        read_lines(mine.url)


def test_measured_wavelengths_in_air_become_those_in_vacuum(store, tmp_path):
    mine = copied(store, tmp_path)
    table = read_input(mine.url, "wavelengths")
    right = read_lines(mine.url)
    table["wavelength"] = vacuum_to_air(np.asarray(table["wavelength"])) * table["wavelength"].unit
    table.meta["medium"] = "air"
    write_table(mine.url, "inputs/wavelengths", table)
    for name, line in read_lines(mine.url).items():
        assert line.wavelength == pytest.approx(right[name].wavelength, abs=1e-6)
        low, high = vacuum_to_air(line.wavelength + np.array([-0.5, 0.5]))
        assert line.bandwidth == pytest.approx(right[name].bandwidth / (high - low), rel=1e-7)
    table["wavelength"][0] = np.nan
    write_table(mine.url, "inputs/wavelengths", table)
    assert np.isnan(read_lines(mine.url)[str(table["exposure"][0])].wavelength)


def test_wavelengths_in_air_that_pass_as_those_in_vacuum_are_told_once(tmp_path, threads, capsys):
    mine = new_store(tmp_path / "a")
    take(mine, flats(each=4))
    with_laser = open_raw(mine.url, mine.camera, chunked=False)
    assert air_remarks(with_laser, read_lines(mine.url)) == []
    table = read_input(mine.url, "wavelengths")
    table.meta.pop("medium", None)
    table["wavelength"] = vacuum_to_air(np.asarray(table["wavelength"])) * table["wavelength"].unit
    write_table(mine.url, "inputs/wavelengths", table)
    (told,) = air_remarks(with_laser, read_lines(mine.url))
    assert "as those in air would be (-0.17 nm): put 'medium: air' into" in told
    made = make_cube(mine, "c", "f4", CONFIG, threads)
    assert made.remarks == [told]
    assert told in made.pointer.remarks
    status, said = run(capsys, "cube", mine.url, "--name", "c", "--form", "f4")
    assert status == 0
    assert said.err.count(told) == 1
    for medium in ("air", "vacuum"):  # whoever says which is believed
        table.meta["medium"] = medium
        write_table(mine.url, "inputs/wavelengths", table)
        assert air_remarks(with_laser, read_lines(mine.url)) == []


def test_a_later_slice_of_fewer_ccds_does_not_replace_one_of_more(tmp_path, threads):
    mine = new_store(tmp_path / "p", "mini9")
    first = flats(each=1, last=602.0)
    two = (CCD, "R22_S10")
    take(mine, first, missing=lambda exposure, detector: detector not in two)
    before = make_cube(mine, "c", "i2", CONFIG, threads).pointer
    again = later(first[1:2], 1)
    take(mine, again, missing=lambda exposure, detector: detector != CCD, inputs="-z")
    for exposures in (None, [one.name for one in again]):  # together with the first, and by itself
        made = make_cube(mine, "c", "i2", CONFIG, threads, exposures=exposures)
        assert made.pointer.slots == before.slots
        assert again[0].name in made.left_out
    assert made.left_out[again[0].name].startswith(f"without R22_S10 it does not replace {first[1].name}: take all")
    whole = later(first[1:2], 2)
    take(mine, whole, missing=lambda exposure, detector: detector not in two, inputs="-zz")
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert made.pointer.slots[1].exposures == [whole[0].name]


def test_a_slice_of_fewer_repeats_does_not_replace_one_of_more(store, cubes, taken, tmp_path, threads):
    mine = copied(store, tmp_path)
    before = make_cube(mine, "c", "f4", CONFIG, threads).pointer
    own = [one for one in taken if one.source.wavelength == 602]
    told = f"with fewer repeats, 1, it does not replace {own[0].name}, {own[1].name}: take 2, or make another cube"
    again = later(own[:1], 3)
    take(mine, again, inputs="-z")
    for name, exposures in ((own[0].name, [own[0].name]), (again[0].name, None)):
        made = make_cube(mine, "c", "f4", CONFIG, threads, exposures=exposures)
        assert made.pointer.slots == before.slots
        assert made.left_out[name].startswith(told)
    headers = [replace(r, header={**r.header, "filter": "r"}) for r in read_records(mine.url).values()]
    publish_frames(mine.url, [], [r for r in headers if r.exposure == own[1].name])
    made = make_cube(mine, "c", "f4", CONFIG, threads)  # of the two one cannot be used any more
    assert made.pointer.slots[2].exposures == [again[0].name]


FIRST, SECOND = (flats(each=3)[i].name for i in (0, 1))


def saturate(counts, exposure, detector):
    """Light-sensitive pixels at full scale, where it is the second exposure."""
    box = observatory().camera.detector(CCD).amplifiers[0].data
    out = counts.copy()
    out[(slice(None), *box.slices)] = 262_000
    return out if exposure == SECOND else counts


def darken(counts, exposure, detector):
    """No more than the overscan, where it is the second exposure."""
    level = np.median(counts[:, :, 70:], axis=(1, 2), keepdims=True).astype(counts.dtype)
    return np.minimum(counts, level + 9) if exposure == SECOND else counts


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"header": lambda e: {"filter": "r"} if e == SECOND else {}}, "filter r is in the beam"),
        ({"header": lambda e: {"photodiode": 0.0} if e == SECOND else {}}, "photodiode charge is 0 C: did the lamp"),
        ({"header": lambda e: {"photodiode": float("nan")} if e == SECOND else {}}, "photodiode charge is missing"),
        ({"header": lambda e: {"wavelength": 601.0} if e == SECOND else {}}, "measured wavelength, .* nm off 601 nm"),
        ({"header": lambda e: {"photodiode": 7e-10} if e == SECOND else {}}, "off what its photodiode says"),
        (
            {"pixels": saturate},
            f"{CCD}: exposure {SECOND} left out: too bright, level .* more than 150000: take it with",
        ),
        (
            {"pixels": lambda counts, e, d: np.full_like(counts, 65535) if e == SECOND else counts},
            f"{CCD}: exposure {SECOND} left out: saturated: all pixels read 65535 adu: take it with less light",
        ),
        ({"pixels": darken}, f"{CCD}: exposure {SECOND} left out: too low, level .* electron: did the lamp fail"),
    ],
)
def test_a_bad_flat_is_left_out_and_told(tmp_path, threads, how, says):
    mine, _ = bad_store(tmp_path, **how)
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert made.errors == []
    first = made.pointer.slots[0]
    told = [f"exposure {name} left out: {why}" for name, why in made.left_out.items()] + first.remarks
    with pytest.raises(CalibrationError, match=says):
        raise CalibrationError("\n".join(told))
    assert all("\n" not in line for line in told)
    assert SECOND in "".join(told)
    reader = CubeReader(read_cube(mine.url, "c"), CCD)
    good = reader.mask()[0] == 0
    # two exposures are left of three
    ratio = reader.variance_slope[0, 0] / reader.variance_slope[1, 0]
    assert ratio == pytest.approx(1.5, rel=0.15)  # lamps differ by 2 %, wavelengths hardly
    assert np.median(reader.values(0, 0)[good]) == pytest.approx(np.median(reader.values(1, 0)[good]), rel=0.02)


def test_a_stale_photodiode_is_told(tmp_path, threads):
    mine, taken = bad_store(tmp_path, last=602.0, header=lambda e: {"photodiode": 9e-10} if e != FIRST else {})
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert set(made.left_out) == {one.name for one in taken} - {FIRST}
    assert all("a stale value" in why for why in made.left_out.values())
    assert len(made.pointer.slots) == 1


def test_a_wavelength_without_any_usable_flat_is_an_error_and_the_others_are_made(tmp_path, threads):
    names = [one.name for one in flats(each=3)[:3]]
    mine, _ = bad_store(tmp_path, pixels=lambda c, e, d: saturate(c, SECOND, d) if e in names else c)
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert len(made.errors) == 1
    assert f"cube c: 600 nm: no CCD could be made: exposure {names[0]}: too bright" in made.errors[0]
    assert [round(one.wavelength) for one in made.pointer.slots] == [601]


def test_a_missing_ccd_and_a_dead_amplifier_are_told_and_leave_r_alone(tmp_path, threads):
    gone, dead = "R22_S02", "R22_S10"
    there = (gone, dead, CCD)
    second = {one.name for one in flats(each=1, last=602.0) if one.source.wavelength == 601}

    def kill(counts, exposure, detector):
        if detector == dead and exposure in second:
            counts = counts.copy()
            counts[1] = 0
        return counts

    def missing(exposure, detector):
        return detector not in there or (detector == gone and exposure in second)

    mine, _ = bad_store(tmp_path, 1, "mini9", 602.0, missing=missing, pixels=kill)
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert made.errors == []
    slots = made.pointer.slots
    assert slots[1].missing == {**slots[0].missing, gone: "no frames"}
    assert slots[1].verdict == "WARN"
    assert f"{dead} C11: dead" in slots[1].remarks
    assert slots[0].missing == slots[2].missing
    assert {d.name for d in mine.camera.detectors} - set(slots[0].missing) == set(there)
    found = open_cube(mine.url, "c", chunked=False)
    assert np.isnan(found["flat"].sel(detector=gone)[:, 1]).all()
    assert np.isnan(found["flat"].sel(detector=dead, amplifier="C11")[1]).all()
    assert np.isfinite(found["flat"].sel(detector=dead, amplifier="C10")[1]).any()
    r = found["response"].values
    plain = found["flat"].isel(wavelength=1).mean(("amplifier", "y", "x")).mean("detector")
    line = np.interp(slots[1].wavelength, [slots[0].wavelength, slots[2].wavelength], r[[0, 2]])
    assert abs(r[1] / line - 1) < 5e-4  # the photodiode repeats to 2e-4
    assert abs(r[1] / line - 1) < 0.2 * abs(float(plain) / line - 1) + 5e-4


def test_hits_of_a_single_flat_are_found_with_its_neighbours(tmp_path, threads):
    second = flats(each=1, last=602.0)[1].name
    track = np.s_[0, 20:22, 20:40]

    def hit(counts, exposure, detector):
        counts = counts.copy()
        if exposure == second:
            counts[track] += 4000
        return counts

    mine, _ = bad_store(tmp_path, 1, last=602.0, pixels=hit)
    assert make_cube(mine, "c", "i1", CONFIG, threads).errors == []
    reader = CubeReader(read_cube(mine.url, "c"), CCD)
    box = mine.camera.detector(CCD).amplifiers[0].data
    odd = reader.exceptions(1, 0)
    rows, columns = np.mgrid[20 - box.y0 : 22 - box.y0, 20 - box.x0 : 40 - box.x0]
    told = set(zip(odd["y"].tolist(), odd["x"].tolist(), strict=True))
    assert set(zip(rows.ravel().tolist(), columns.ravel().tolist(), strict=True)) <= told
    assert np.all(odd["mask"] == MASK_BITS["COSMIC_RAY"] | MASK_BITS["INTERPOLATED"])
    assert len(odd) < 150
    before, after = (reader.values(k, 0)[rows, columns] for k in (0, 1))
    assert np.abs(after / before - 1).max() < 0.05  # with the hit 0.15
    assert [len(reader.exceptions(k)) for k in (0, 2)] == [0, 0]


def test_a_cube_needs_flats_a_photodiode_and_products(tmp_path, threads):
    mine = new_store(tmp_path / "none", truth=False)
    with pytest.raises(InsufficientInputs, match="responsivity of the photodiode is not known: put a table into"):
        make_cube(mine, "c", "i2", CONFIG, threads)
    take(mine, flats(each=1, last=601.0))
    made = make_cube(mine, "c", "i2", CONFIG, threads)
    assert made.pointer is None
    assert "cube c: 600 nm: no CCD could be made: there is no bias: build it first" in made.errors[0]
    table = read_input(mine.url, "photodiode")
    table["responsivity"].unit = "mA / W"
    write_table(mine.url, "inputs/photodiode", table)
    with pytest.raises(UnitsError, match="column responsivity is in mA / W: give it in A / W"):
        make_cube(mine, "c", "i2", CONFIG, threads)


def test_the_command_makes_lists_and_shows(store, tmp_path, capsys):
    mine = copied(store, tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("[cube]\nclip = 6.5\n[overscan]\nskip = 2\n")
    assert read_config(config).cube.clip == 6.5
    status, said = run(capsys, "cube", mine.url, "--name", "n", "--form", "i1", "--config", config, "--json")
    assert status == 0, said.err
    assert json.loads(said.out)["made"] == 5
    assert "cube n, publication 1: 5 wavelengths from 600.0 to 604.0 nm, 0 of them with warnings" in said.err
    status, said = run(capsys, "cube", mine.url, "--name", "n", "--form", "i2", "--config", config)
    assert (status, said.err.count("\n")) == (1, 1)
    assert "has form 'i1', not 'i2': give the new one another --name" in said.err
    status, said = run(capsys, "ls", mine.url)
    assert status == 0
    assert "publication" in said.out
    row = list_contents(mine)["cubes"][0]
    assert (row["cube"], row["form"], len(row["wavelengths"]), row["gaps"], row["warnings"]) == ("n", "i1", 5, [], 0)
    for extra in ([], ["--wavelength", "601"], ["--variable", "response"], ["--detector", CCD]):
        path = tmp_path / f"{len(extra)}.png"
        status, said = run(capsys, "show", mine.url, "n", "-o", path, *extra)
        assert status == 0, said.err
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CalibrationError, match="choose --variable from flat, mask"):
        show_picture(mine, "n", None, dict.fromkeys(("variable", "detector", "amplifier"), None) | {"variable": "gain"})
    assert run(capsys, "cube", mine.url, "--form", "f8")[0] == 2
    status, said = run(capsys, "cube", mine.url, "--name", "n", "--config", config)  # of the form it has
    assert (status, "0 slices of a CCD were made" in said.err) == (0, True)


@pytest.mark.parametrize("form", ["i2", "i1"])
def test_what_is_damaged_is_found_and_made_again_with_the_same_bytes(store, tmp_path, threads, form):
    mine = copied(store, tmp_path)
    make_cube(mine, "c", form, CONFIG, threads)
    right = content(mine, "c")
    assert list_contents(mine, check=True)["damaged"] == []
    shard = Path(mine.url, "cubes/c/data/codes/c/0/0/0/0/0")
    blob = bytearray(shard.read_bytes())
    blob[-9] ^= 4
    shard.write_bytes(blob)
    np.save(Path(mine.url, f"cubes/c/exceptions/00001/{CCD}.npy"), np.ones(3))
    Path(mine.url, f"cubes/c/done/00002/{CCD}.json").unlink()
    told = list_contents(mine, check=True)["damaged"]
    assert len(told) == 3
    for line, slot in zip(told, (0, 1, 2), strict=True):
        assert "\n" not in line
        assert f"delete cubes/c/done/0000{slot}/{CCD}.json, then run 'lsstcal cube {mine.url} --name c' again" in line
        Path(mine.url, f"cubes/c/done/0000{slot}/{CCD}.json").unlink(missing_ok=True)
    made = make_cube(mine, "c", form, CONFIG, threads)
    assert (made.made, made.pointer.number) == (3, 1)
    assert content(mine, "c") == right


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("step", "moments", "kills"), [(90, 1, 2), pytest.param(1, 60, 200, marks=pytest.mark.slow)])
def test_killed_at_writes_and_at_random_moments(tmp_path, step, moments, kills):
    mine = new_store(tmp_path / "k")
    take(mine, flats(each=1, last=601.0))
    script = Path(__file__).parents[1] / "storage" / "kill_server.py"
    command = [sys.executable, str(script), mine.url, str(step), str(moments), "cube"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    right, found = rows[0]["right"], rows[1:]
    assert len(right) == 1
    assert len(found) >= kills
    for row in found:
        assert row["seen"] in ([], right), row
        assert row["resumed"] == right, row
    assert any(row["seen"] == [] for row in found)
