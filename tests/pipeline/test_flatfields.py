"""Flats of a store: synthesised, measured through a filter, compared for dust and drift, applied to frames."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from making import run_command as run
from stores_of_monochromatic_flats import flats, later, new_store, observatory, take

from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import (
    CalibrationError,
    InsufficientInputs,
    OutsideValidity,
    StaleCalibration,
    UnitsError,
    WrongUse,
)
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.spectra import from_photons
from lsstcal_dask.pipeline import flatratios
from lsstcal_dask.pipeline.broadband import BROADBAND, _brightest, choose_flats, make_broadband, night_of, start_of
from lsstcal_dask.pipeline.build import Validity, unusable
from lsstcal_dask.pipeline.calibrate import _NAME as CALIBRATED
from lsstcal_dask.pipeline.calibrate import calibrate, find_calibrated
from lsstcal_dask.pipeline.compressed import compress_cube
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.contamination import CONTAMINATION, find_contamination
from lsstcal_dask.pipeline.cubes import make_cube
from lsstcal_dask.pipeline.epochs import choose_reference, epoch_of
from lsstcal_dask.pipeline.flatdust import dust_for
from lsstcal_dask.pipeline.flatfields import (
    RESERVED,
    Wanted,
    _of_holes,
    flat_name,
    make_flat,
    product_of,
    read_lamp,
    read_passband,
    source_of,
)
from lsstcal_dask.pipeline.fringe_frames import SKY_BLOCKS
from lsstcal_dask.pipeline.inputs import corrected
from lsstcal_dask.pipeline.lineage import superseded
from lsstcal_dask.pipeline.pictures import show_picture
from lsstcal_dask.pipeline.recipes import RECIPES
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.pipeline.synthesis import Source
from lsstcal_dask.pipeline.unflatten import UNFLATTENED, undo_flattening
from lsstcal_dask.pipeline.upstream import Upstream, read_upstream, usable
from lsstcal_dask.pipeline.verify import print_acceptance, verify
from lsstcal_dask.products.monochromatic import MonochromaticConfig, Repeat
from lsstcal_dask.products.weights import Scan, make_weights
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.recipes import CalibrationDay, Plan, exposures
from lsstcal_dask.storage.cubes import open_cube, read_cube
from lsstcal_dask.storage.manifests import read_records, record_digests
from lsstcal_dask.storage.products import Pointer, finished, lookup, open_product, outdated
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.storage.tables import read_input, write_table
from lsstcal_dask.verify.acceptance import as_json
from lsstcal_dask.verify.report import report

CONFIG = Config.model_validate({"synthesis": {"weights": {"uncovered": 0.01}}})  # the wings of r reach beyond the cube
LAMP = np.arange(300.0, 1150.5)


def broadband(number=4, bands="r"):
    plan = {"biases": 0, "darks": 0, "xrays": 0, "pairs": 0, "flats": number, "filters": bands}
    site = observatory()
    return exposures("calibration-day", Plan(calibration_day=CalibrationDay(**plan)), site.settings, site.camera)


@pytest.fixture(scope="module")
def compute():
    with cluster("threads", 2) as found:
        yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory, compute):
    """Flats each 10 nm over filter r, broadband flats through it, and a cube."""
    found = new_store(str(tmp_path_factory.mktemp("flats")))
    lamp = broadband()
    take(found, lamp, without=("dust",))  # that of a filter is on no slice of a cube
    take(found, flats(510.0, 740.0, 10.0, each=2), without=("dust",))
    for name, make in deliveries("calibration-day", lamp).items():
        write_table(found.url, f"inputs/{name}", make(observatory()))
    made = make_cube(found, "flats", "f4", CONFIG, compute)
    assert not made.errors
    return found


def lamp():
    return from_photons(LAMP, lamp_spectrum(LAMP), "lamp")


def image(store, built, variable="image"):
    assert not built.errors
    product = open_product(store.url, built.pointer.name, built.pointer.version, chunked=False)
    return product.isel(detector=0)[variable].values


def wanted(store, kind="photometric_flat", spectrum=None, **options):
    source = replace(source_of(store, "r", "flat-fnu"), spectrum=spectrum or read_lamp("flat-fnu"))
    return Wanted(kind, "r", source, **options)


def test_a_flat_is_the_weighted_sum_of_its_slices(store, compute):
    """Trapezia over the slices, of even energy per frequency; the quadrature of steps of 10 nm agrees to a percent."""
    flat = image(store, make_flat(store, wanted(store), CONFIG.synthesis, compute, Validity()))
    cube = open_cube(store.url, "flats", chunked=False)
    nm = cube["wavelength"].values
    weight = read_passband(store, "r").at(0.0, 0.0)
    weight = np.interp(nm, read_passband(store, "r").wavelength, weight) / nm
    plain = np.tensordot(weight, cube["flat"].isel(detector=0).values, (0, 1))
    ratio = flat / plain
    good = np.isfinite(ratio)
    assert np.std(ratio[good]) < 1e-2 * np.mean(ratio[good])
    assert np.nanmean(flat) == pytest.approx(1, abs=0.02)


def test_the_flat_of_the_lamp_is_what_is_measured(store, compute):
    """Pixel by pixel to the noise of both; without the slices' pattern it is not."""
    synthetic = make_flat(store, wanted(store, "dome", lamp()), CONFIG.synthesis, compute, Validity())
    measured = make_broadband(store, "r", CONFIG, compute)
    a, b = image(store, measured), image(store, synthetic)
    va, vb = image(store, measured, "variance"), image(store, synthetic, "variance")
    good = (image(store, measured, "mask") == 0) & (image(store, synthetic, "mask") == 0)
    ratio = np.where(good, a / b, np.nan)
    noise = np.sqrt(va / b**2 + (a / b**2) ** 2 * vb)
    # one curve stands for the filter of a CCD as wide as the field: what is wide is not compared
    relative = np.nanmedian(noise / ratio)  # smooth: a pixel's own noise must not weigh it
    pulls, plain = (_narrow(values / np.nanmedian(values)) / relative for values in (ratio, a))
    assert pulls.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pulls.size) + 0.01)  # and fringes between slices
    assert np.nanstd(plain) > 1.5


def _narrow(images):
    """What of images (amplifier, y, x) is narrower than eight pixels: less the plane of each block."""
    blocks = images[:, :64, :64].reshape(-1, 8, 8, 8, 8).swapaxes(2, 3).reshape(-1, 64)
    y, x = (axis.ravel() for axis in np.indices((8, 8)) / 3.5 - 1)
    found = []
    for block in blocks[np.isfinite(blocks).all(axis=1)]:
        design = np.stack([np.ones(64), x, y], axis=1)
        found.append((block - design @ np.linalg.lstsq(design, block, rcond=None)[0]) / np.sqrt(1 - 3 / 64))
    return np.array(found)


def test_calibrate_applies_the_flats_of_the_filter(store, compute):
    frame = broadband(1)[0].name
    own = Config().calibrate
    valid = Validity("2026-07-01T12:00:00")  # the broadband flats are older than the cube
    flat = image(store, make_flat(store, wanted(store, spectrum=lamp()), CONFIG.synthesis, compute, valid))
    before = dict(calibrate(store, [frame], own, compute, skip=["sky_flat", "photometric_flat"]))[frame]
    plain = open_product(store.url, "calibrated", before.pointer.version, chunked=False)["image"].values
    assert not before.errors
    after = dict(calibrate(store, [frame], own, compute))[frame]
    assert not after.errors
    flattened = open_product(store.url, "calibrated", after.pointer.version, chunked=False)["image"].values
    good = np.isfinite(flattened[0])
    np.testing.assert_allclose(flattened[0][good], (plain[0] / flat)[good], rtol=1e-6)
    assert any("sky_flat-r" in remark for remark in after.pointer.remarks)
    assert find_calibrated(store, frame).version == after.pointer.version


def test_flattening_is_undone_to_the_rounding_and_can_be_done_again(store, compute, capsys):
    """I S / P, and I again; of a photometric flat alone, of both flats, and of none."""
    (one,) = broadband(1)
    own, valid = Config().calibrate, Validity("2026-07-01T12:00:00")
    sky = make_flat(store, wanted(store, "sky_flat", spectrum=lamp()), CONFIG.synthesis, compute, valid)
    standard = make_flat(store, wanted(store), CONFIG.synthesis, compute, valid)
    both = ["sky_flat", "photometric_flat"]
    for skip, flat in (([], standard), (["photometric_flat"], sky)):
        flattened = frame_of(store, dict(calibrate(store, [one.name], own, compute, skip=skip))[one.name])
        plain = frame_of(store, dict(calibrate(store, [one.name], own, compute, skip=both))[one.name])
        dict(calibrate(store, [one.name], own, compute, skip=skip))  # the last one counts
        made = dict(undo_flattening(store, [one.name], compute))[one.name]
        assert not made.errors
        undone = frame_of(store, made)
        for variable in ("image", "variance", "row_variance"):
            there, wanted_there = undone[variable].values, plain[variable].values
            good = np.isfinite(there)
            assert good.mean() > 0.9
            np.testing.assert_allclose(there[good], wanted_there[good], rtol=1e-6)
        response = image(store, flat)
        again, before = undone["image"].values / response, flattened["image"].values
        good = np.isfinite(before)
        np.testing.assert_allclose(again[good], before[good], rtol=1e-6)
        assert np.std(before[good] / plain["image"].values[good]) > 0.01  # a flat does something
        assert made.pointer.inputs["upstream"]["R22_S11"]["calibrated"].startswith(flattened.attrs["version"])
        assert "taken out of" in made.pointer.remarks[0]
    dict(calibrate(store, [one.name], own, compute, skip=both))
    (told,) = dict(undo_flattening(store, [one.name], compute))[one.name].errors
    assert f"exposure {one.name}" in told
    assert "was not divided by a flat" in told
    status, said = run(capsys, "calibrate", store.url, "--undo-flattening", "--skip", "dark")
    assert status == 2
    status, said = run(capsys, "calibrate", store.url, "--undo-flattening")
    assert status == 1
    assert "no corrected science exposure" in said.err


def frame_of(store, built):
    product = open_product(store.url, built.pointer.name, built.pointer.version, chunked=False)
    return product.isel(detector=0).load()


@pytest.mark.parametrize("days", [0, 40])
def test_dust_is_found_and_goes_into_what_is_synthesised_for_its_time(store, compute, tmp_path, days):
    """A shadow of 4 % on one amplifier, painted on the raw flats, 10 days before the cube or 30 after it.

    That from before the cube is not on the cube's slices, and was gone when they were taken.
    """
    dusty = new_store(str(tmp_path / "dusty"))
    taken = later(broadband(6), days)
    y, x = np.indices((64, 64))
    inside = np.hypot(y - 30, x - 34) < 12
    (detector,) = observatory().camera.detectors
    box = next(a for a in detector.amplifiers if a.name == "C10").data.slices  # the first in the store

    def painted(counts, exposure, detector):
        counts, level = counts.copy(), np.median(counts[0, :, -8:])
        counts[0][box] = np.rint(level + (counts[0][box] - level) * np.where(inside, 0.96, 1))
        return counts

    take(dusty, taken, pixels=painted, without=("dust",))
    take(dusty, flats(510.0, 740.0, 10.0, each=2), without=("dust",))
    for name, make in deliveries("calibration-day", taken).items():
        write_table(dusty.url, f"inputs/{name}", make(observatory()))
    make_cube(dusty, "flats", "f4", CONFIG, compute)
    make_broadband(dusty, "r", CONFIG, compute)
    _, made = find_contamination(dusty, ["r"], lamp(), CONFIG, compute)
    factor = image(dusty, made["contamination-r"])
    assert factor[0][inside].mean() == pytest.approx(0.96, abs=0.004)  # a tenth of it
    assert abs(np.nanmean(factor[1:]) - 1) < 1e-3
    found, cube = made["contamination-r"].pointer, "2026-07-11T12:00:00"
    assert found.valid_until == ("" if days else cube)
    lone = "note: filter r: compared with the flat of the cube, not with a lamp's of its epoch: there is none"
    assert any(remark.startswith(lone) for remark in found.remarks)
    command = f"photometric_flat --filter r --valid-from {found.valid_from}'"
    assert any(command in remark and remark.startswith("note: counts from") for remark in found.remarks)
    clean, usual, dirty = (
        make_flat(dusty, wanted(dusty, dust=dust), CONFIG.synthesis, compute, Validity(start))
        for dust, start in ((False, ""), (True, ""), (True, found.valid_from))
    )
    spans = [(one.pointer.valid_from, one.pointer.valid_until) for one in (clean, usual, dirty)]
    assert spans == [(cube, ""), (cube, "2026-08-10T12:00:00" if days else ""), (found.valid_from, found.valid_until)]
    np.testing.assert_array_equal(image(dusty, usual), image(dusty, clean))
    np.testing.assert_allclose(image(dusty, dirty)[0][inside], (image(dusty, clean) * factor)[0][inside], rtol=1e-6)


def test_an_amplifier_that_is_dead_in_the_flats_is_told_and_its_factor_is_one(store, compute, tmp_path):
    shutil.copytree(store.url, tmp_path / "s")
    mine = open_store(tmp_path / "s")

    def dead(counts, exposure, detector):
        counts = counts.copy()
        counts[1] = np.median(counts[1][:, -4:])
        return counts

    take(mine, later(broadband(), 40), pixels=dead, without=("dust",))
    name = mine.camera.amplifier_names[1]
    flat = make_broadband(mine, "r", CONFIG, compute)
    assert any(f"{name}: dead: no pixel could be measured" in one for one in flat.pointer.remarks)
    _, made = find_contamination(mine, ["r"], lamp(), CONFIG, compute, with_reference=False)
    told = [one for one in made["contamination-r"].pointer.remarks if "could not be compared" in one]
    assert len(told) == 1
    assert f"R22_S11: {name} could not be compared" in told[0]
    assert not told[0].startswith("note:")
    factor = image(mine, made["contamination-r"])
    assert (factor[1][np.isfinite(factor[1])] == 1).all()


def test_bands_are_compared_once_for_all_of_them(store, compute, tmp_path, monkeypatch):
    """Two filters with the same glass: two passes over both, whatever is published; nothing is done again."""
    shutil.copytree(store.url, tmp_path / "s")
    mine, again = open_store(tmp_path / "s"), later(broadband(), 40)
    take(mine, again, header=lambda exposure: {"filter": "s"}, without=("dust",))
    glass = read_input(mine.url, "filter-r")
    glass.meta["filter"] = "s"
    write_table(mine.url, "inputs/filter-s", glass)
    for band in "rs":
        assert not make_broadband(mine, band, CONFIG, compute).errors
    compared, ratio = [], flatratios._ratio
    monkeypatch.setattr(flatratios, "_ratio", lambda *of: compared.append(of[1].band) or ratio(*of))
    _, made = find_contamination(mine, ["r", "s"], lamp(), CONFIG, compute, with_reference=False)
    assert compared == ["r", "s"] * 2  # three times each, if every band were sought by itself
    factors = [image(mine, made[f"contamination-{band}"]) for band in "rs"]
    assert all(np.nanmedian(factor) == 1 for factor in factors)
    pointer = made["contamination-s"].pointer
    Path(mine.url, "products/contamination-s/published", f"{pointer.version}.json").unlink()
    Path(mine.url, "products/contamination-s", pointer.version, "done", "R22_S11.json").unlink()
    _, resumed = find_contamination(mine, ["r", "s"], lamp(), CONFIG, compute, with_reference=False)
    assert resumed["contamination-s"].pointer.detectors == pointer.detectors
    compared.clear()
    find_contamination(mine, ["r", "s"], lamp(), CONFIG, compute, with_reference=False)
    assert compared == ["r", "s"]  # lamp and drift only: dust is published


def test_what_is_missing_is_named(store, compute, tmp_path):
    with pytest.raises(InsufficientInputs, match="filter y: its transmission is not known"):
        read_passband(new_store(str(tmp_path / "empty")), "y")
    with pytest.raises(InsufficientInputs, match="no flats of a lamp through filter z"):
        choose_flats(open_raw(store.url, store.camera, chunked=False), "z")
    with pytest.raises(InsufficientInputs, match="no broadband flat of filter g"):
        find_contamination(store, ["g"], lamp(), CONFIG, compute)
    with pytest.raises(WrongUse, match="is no name of a flat"):
        product_of("../flat", "r")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        *((one, f"{one} is reserved for another product") for one in (CONTAMINATION, BROADBAND, "fringes", "bias")),
        ("contamination-x", "contamination is reserved for another product: choose another name"),
        *(
            (one, "use letters, digits, dashes and underscores")
            for one in ("my flat: x?", "../flat", "", "a/b", "flät")
        ),
    ],
)
def test_a_flat_is_not_named_as_another_product_is(tmp_path, capsys, kind, says):
    """A flat named contamination would be the dust of all later ones."""
    code, told = run(capsys, "synthesize", new_store(str(tmp_path / "s")).url, kind, "--filter", "r")
    assert (code, told.out) == (2, "")
    assert says in told.err
    assert len(told.err.splitlines()) == 1


def test_names_of_flats_are_not_those_of_other_products():
    assert {BROADBAND, CONTAMINATION, SKY_BLOCKS, CALIBRATED, UNFLATTENED, *RECIPES} <= RESERVED
    for kind in ("sky_flat", "photometric_flat", "dome", "my-flat_2"):
        assert flat_name(kind, "r") == f"{kind}-r"


def test_a_lamp_comes_from_a_file(tmp_path):
    path = tmp_path / "lamp.ecsv"
    flux = lamp_spectrum(LAMP) * units.photon / units.s / units.m**2 / units.nm
    Table({"wavelength": LAMP * units.nm, "flux": flux}).write(path)
    found = read_lamp(path)
    np.testing.assert_allclose(found.density, lamp_spectrum(LAMP))


def republished(pointer, **changes):
    """A pointer as another version."""
    return replace(pointer, **{"version": "another", **changes})


def test_a_flat_follows_the_exposures_and_the_products_of_its_cube(store, compute):
    """A header of a slice's exposure, or of one that the gain came from, that changes makes it outdated."""
    flat = make_flat(store, wanted(store, "followed"), CONFIG.synthesis, compute, Validity()).pointer
    upstream, headers = read_upstream(store.url), record_digests(read_records(store.url))
    assert not outdated(upstream.pointers, headers)
    slot = read_cube(store.url, "flats").pointer.slots[0]
    assert flat.version in outdated(upstream.pointers, headers | {slot.exposures[0]: "other"})
    pointers = [replace(p, inputs={"headers": {"X1": "then"}}) if p.name == "gain" else p for p in upstream.pointers]
    found = outdated(pointers, headers | {"X1": "now"})
    assert "made with truth" in found[flat.version]


def test_what_was_made_with_a_filter_is_not_used_once_its_table_is_corrected(store, compute, tmp_path, capsys):
    """Flats, dust, and frames divided by the flats; another order of a table's entries is no correction."""
    shutil.copytree(store.url, tmp_path / "s")
    mine, (frame,) = open_store(tmp_path / "s"), broadband(1)
    make_broadband(mine, "r", CONFIG, compute)
    _, dust = find_contamination(mine, ["r"], lamp(), CONFIG, compute, with_reference=False)
    valid = Validity("2026-07-01T12:00:00")
    flat = make_flat(mine, wanted(mine, "sky_flat", lamp()), CONFIG.synthesis, compute, valid).pointer
    done = dict(calibrate(mine, [frame.name], Config().calibrate, compute))[frame.name].pointer
    made = {flat.version, dust["contamination-r"].pointer.version, done.version}
    assert list(flat.inputs["filters"]) == ["r"]
    assert not made & set(read_upstream(mine.url).outdated)
    table = read_input(mine.url, "filter-r")
    table.meta = {"about": "the same", **dict(reversed(table.meta.items()))}
    write_table(mine.url, "inputs/filter-r", table)
    assert not made & set(read_upstream(mine.url).outdated)
    table.meta["first_nm"] += 0.5
    write_table(mine.url, "inputs/filter-r", table)
    old = read_upstream(mine.url).outdated
    assert made <= set(old)
    assert old[flat.version] == "made with inputs/filter-r.ecsv, which has changed since"
    rows = run(capsys, "ls", mine.url)[1].out.splitlines()
    assert all(any(version in row and "OUTDATED" in row for row in rows) for version in made)
    (told,) = dict(calibrate(mine, [frame.name], Config().calibrate, compute))[frame.name].errors
    assert (
        f"sky_flat-r {flat.version} was made with inputs/filter-r.ecsv, which has changed since: run 'lsstcal" in told
    )
    before = replace(flat, inputs={key: value for key, value in flat.inputs.items() if key != "filters"})
    assert corrected(mine.url, [before]) == {}  # it does not say with which
    again = make_flat(mine, wanted(mine, "sky_flat", lamp()), CONFIG.synthesis, compute, valid).pointer
    assert again.version != flat.version
    assert not {again.version} & set(read_upstream(mine.url).outdated)
    write_table(mine.url, "inputs/filter-r", read_input(store.url, "filter-r"))
    same = make_flat(mine, wanted(mine, "sky_flat", lamp()), CONFIG.synthesis, compute, valid).pointer
    assert same.version == flat.version
    assert again.version in read_upstream(mine.url).outdated
    path = Path(mine.url, "inputs/filter-r.ecsv")
    path.write_text("no table")
    assert corrected(mine.url, [flat])[flat.version].endswith("which has changed since")
    path.unlink()
    assert corrected(mine.url, [flat])[flat.version].endswith("which is not in the store any more")


def test_a_flat_says_that_a_ccd_has_the_curve_of_another(store, compute):
    """Curves that are not the store's are no input that could change."""
    own = wanted(store, "borrowed", lamp())
    other = Nearby(replace(own.source.passband.measured, detector=("R22_S00",)))
    own = replace(own, source=replace(own.source, passband=other))
    flat = make_flat(store, own, CONFIG.synthesis, compute, Validity()).pointer
    says = "note: filter r: curves of 0 of 1 CCDs are known, that of R22_S00 is used for all"
    assert [text for text in flat.remarks if "curve" in text] == [says]
    assert flat.inputs["filters"] == {}


def test_a_gain_that_was_replaced_is_told_of_flats_that_were_made_with_it(store, compute):
    flat = make_flat(store, wanted(store, "followed"), CONFIG.synthesis, compute, Validity()).pointer
    upstream = read_upstream(store.url)
    detector = store.camera.detectors[0].name
    assert superseded(flat, detector, "gain", upstream) == ("", "")
    gain = next(p for p in upstream.pointers if p.name == "gain")
    newer = [*upstream.pointers, republished(gain, created="2099-01-01T00:00:00")]
    assert superseded(flat, detector, "gain", replace(upstream, pointers=newer)) == ("truth", "another")
    other = [*upstream.pointers, republished(gain, valid_from="2098-01-01T00:00:00")]
    assert superseded(flat, detector, "gain", replace(upstream, pointers=other)) == ("", "")


@pytest.mark.parametrize(
    ("cube", "start", "until", "goes_in"),
    [
        ("flats/1", "2020-01-01T00:00:00", "", True),
        ("flats/1", "2020-01-01T00:00:00", "2020-01-02T00:00:00", False),
        ("flats/1", "2098-01-01T00:00:00", "", False),  # found after the flat begins
        ("flats/0", "2020-01-01T00:00:00", "", False),
        ("others/1", "2020-01-01T00:00:00", "", False),
    ],
)
def test_only_dust_of_this_cube_and_this_time_goes_into_a_flat(cube, start, until, goes_in):
    """None is valid from a start that is said, and none from the cube's own."""
    dust = Pointer("contamination-r", start, {"cube": cube}, {}, {}, {}, [], until, "dust", {"R22_S11": "1"})
    start = Validity("2026-07-02T12:00:00", "2026-07-02T12:00:01")
    found, _, remarks = dust_for([dust], "contamination-r", ("flats", 1), start)
    assert (found is not None) == goes_in
    assert len(remarks) == 1
    assert not goes_in or "dust" in remarks[0]


def test_dust_that_failed_or_is_outdated_is_not_used():
    dust = Pointer("contamination-r", "2020-01-01T00:00:00", {}, {}, {}, {}, [], "", "dust", {"R22_S11": "1"})
    assert usable(Upstream([dust], {}), "contamination-r") == [dust]
    assert not usable(Upstream([dust], {"dust": "old"}), "contamination-r")
    assert not usable(Upstream([replace(dust, verdict="FAIL")], {}), "contamination-r")


def test_dust_that_is_found_anew_takes_the_place_of_what_was_found_of_that_night():
    """The first had no end, the second has one."""
    first, second = (
        Pointer(
            "contamination-r", "2026-07-01T12:00:00", {"cube": "flats/1"}, {}, {}, {}, [], until, version, {"R": "1"}
        )
        for version, until in (("first", ""), ("second", "2026-07-11T12:00:00"))
    )
    for start, there in (("2026-07-02T12:00:00", second), ("2026-07-12T12:00:00", None)):
        assert dust_for([first, second], "contamination-r", ("flats", 1), Validity(start))[0] is there


def test_a_flat_ends_where_its_dust_becomes_another():
    """Where later dust begins, or its own ends; a flat that is said to be valid beyond that is a warning."""
    start, ends = "2026-07-11T12:00:00", "2026-08-20T12:00:00"

    def dust(night, cube="flats/1", until=""):
        return Pointer("contamination-r", f"{night}T12:00:00", {"cube": cube}, {}, {}, {}, [], until, night, {"R": "1"})

    def end_of(known, until=""):
        _, end, told = dust_for(known, "contamination-r", ("flats", 1), Validity(start, until))
        return end, [one for one in told if "valid until" in one]

    found = [dust("2026-08-30", "flats/2"), dust("2026-09-30")]
    end, (told,) = end_of(found)
    assert end == "2026-08-30T12:00:00"
    assert told.startswith("note: valid until 2026-08-30T12:00:00: contamination-r is another from 2026-08-30T12:00:00")
    assert told.endswith("run it again with --valid-from 2026-08-30T12:00:00")
    assert end_of([dust("2026-07-01", until=ends), *found])[0] == ends
    assert end_of(found, "2026-07-11T12:00:01") == ("2026-07-11T12:00:01", [])
    end, (told,) = end_of(found, "2027-01-01T00:00:00")
    assert end == "2027-01-01T00:00:00"
    assert told.startswith("valid until 2027-01-01T00:00:00, but contamination-r is another from 2026-08-30T12:00:00")
    assert end_of([dust("2026-08-30", "others/1"), dust("2026-07-11")]) == ("", [])


def test_nights_and_filters_that_cannot_be_are_refused(store, compute):
    with pytest.raises(WrongUse, match="'garbage' is no night: write it as 2026-07-01"):
        choose_flats(open_raw(store.url, store.camera, chunked=False), "r", "garbage")
    with pytest.raises(WrongUse, match="filter r is there twice"):
        find_contamination(store, ["r", "r"], lamp(), CONFIG, compute)


def test_of_a_ladder_the_brightest_that_do_not_saturate_are_taken():
    """Thirty flats, a rung brighter each, of which eighteen are too bright."""
    light = [float(n) for n in range(1, 31)]
    names = [f"E{n:.0f}" for n in light]

    class Ladder:
        @staticmethod
        def corrected(job, exposures, photons):
            for name, one in zip(exposures, photons, strict=True):
                image = np.full((1, 2, 2), 10_000 * one, np.float32)
                mask, level = np.zeros(image.shape, np.uint16), np.array([10_000 * one])
                yield Repeat(name, image, mask, one, level, np.ones(1), 0.0)

    job = SimpleNamespace(group=SimpleNamespace(exposures=names, photons=light))
    kept, reasons = _brightest(Ladder, job, MonochromaticConfig(brightest=150_000))
    assert [one.exposure for one in kept] == names[3:15]
    assert sorted(reasons) == sorted(names[15:])
    assert "too bright" in reasons["E30"]


def test_a_flat_that_is_missing_is_to_be_synthesised():
    """No flat is built: the message says the command that makes it, and names few of many validities."""
    times = [f"2026-07-0{day}T03:00:00" for day in range(1, 8)]
    ends = [f"{time[:-2]}01" for time in times]
    skies = [
        Pointer("sky_flat-r", a, {}, {}, {}, {}, [], b, a, {"R22_S11": "1"}) for a, b in zip(times, ends, strict=True)
    ]
    with pytest.raises(OutsideValidity, match="synthesize sky_flat --filter r --visit EXPOSURE'") as told:
        lookup(skies, "sky_flat-r", "R22_S11", "2026-07-09T03:00:00")
    assert "there is 4 more and 2026-07-05T03:00:00" in str(told.value)
    with pytest.raises(StaleCalibration, match="old: run 'lsstcal cube', then 'lsstcal synthesize sky_flat --f"):
        lookup(skies, "sky_flat-r", "R22_S11", times[0], {times[0]: "old"})
    with pytest.raises(StaleCalibration, match="there is no photometric_flat-g: run 'lsstcal synthesize photometric_"):
        lookup(skies, "photometric_flat-g", "R22_S11", times[0])


def test_a_spectrum_in_text_has_the_unit_that_is_given_and_noise_where_no_ccd_sees(tmp_path):
    """As a standard star that is negative at 174.5 nm; within the reach of CCDs that is refused."""
    path = tmp_path / "star.dat"
    path.write_text("1745 -1e-17\n4000 2e-15\n9000 1e-15\n30000 -1e-19\n")
    with pytest.raises(UnitsError, match="column wavelength has no unit"):
        read_lamp(path)
    found = read_lamp(path, ("Angstrom", "erg / (s cm2 Angstrom)"))
    np.testing.assert_allclose(found.wavelength, [174.5, 400, 900, 3000])
    assert found.density[0] == found.density[3] == 0
    assert found.density[2] / found.density[1] == pytest.approx(0.5 * 9 / 4)  # photons
    path.write_text("1745 1e-17\n4000 -2e-15\n9000 1e-15\n")
    with pytest.raises(CalibrationError, match="negative at 400 nm"):
        read_lamp(path, ("Angstrom", "erg / (s cm2 Angstrom)"))


def test_an_atmosphere_in_text_has_the_unit_and_the_medium_that_are_given(tmp_path, capsys):
    store, path = new_store(str(tmp_path / "s")), tmp_path / "air.txt"
    np.savetxt(path, np.stack([np.arange(300.0, 1150.5), np.full(851, 0.5)], 1))
    with pytest.raises(
        UnitsError, match="column wavelength has no unit: say it, in the file or with --wavelength-unit"
    ):
        source_of(store, "none", "flat-fnu", path)
    plain, moved = (
        source_of(store, "none", "flat-fnu", path, ("nm", None), medium).atmosphere for medium in (None, "air")
    )
    np.testing.assert_allclose(plain.value, 0.5)
    assert moved.wavelength[500] - plain.wavelength[500] == pytest.approx(0.22, abs=0.01)  # at 800 nm
    asked = ("synthesize", store.url, "dome", "--filter", "none", "--atmosphere", path)
    code, told = run(capsys, *asked)
    assert code != 0
    assert "no unit" in told.err or "cube" in told.err
    code, told = run(capsys, *asked, "--wavelength-unit", "nm", "--medium", "air")
    assert code != 0
    assert "cube" in told.err  # which is all that lacks
    assert "unit" not in told.err


def test_a_medium_is_of_the_spectrum_where_the_atmosphere_says_its_own(tmp_path):
    """And must not contradict an atmosphere that is the only file."""
    store, air, lamp = new_store(str(tmp_path / "s")), tmp_path / "air.ecsv", tmp_path / "lamp.txt"
    nm = np.arange(300.0, 1150.5)
    Table({"wavelength": nm * units.nm, "value": np.full(851, 0.5)}, meta={"medium": "vacuum"}).write(air)
    np.savetxt(lamp, np.stack([nm, np.ones(851)], 1))
    found = source_of(store, "none", lamp, air, ("nm", "photon / nm"), "air")
    np.testing.assert_array_equal(found.atmosphere.wavelength, nm)
    assert found.spectrum.wavelength[500] - nm[500] == pytest.approx(0.22, abs=0.01)  # at 800 nm
    with pytest.raises(UnitsError, match="the file says vacuum: one of the two is wrong"):
        source_of(store, "none", "flat-fnu", air, medium="air")


def test_a_hole_in_a_spectrum_is_told_where_it_has_light():
    scan = Scan(np.arange(500.0, 601), np.ones(101), np.ones(101), np.zeros(1), np.zeros(1))
    nm = np.r_[500.0:551, 580.0:601]
    told = {}
    for dark, source in ((False, from_photons(nm, np.ones(nm.size), "S")), (True, from_photons(nm, nm < 550, "S"))):
        told[dark] = _of_holes(Source(source), make_weights(source, None, scan))
    # 29 slices of 100 nm lie between 550 and 580
    assert told[False] == [
        "spectrum S has no values from 550 to 580 nm, where 29% of the light is: it is taken to be straight there"
    ]
    assert told[True] == []


def test_reasons_and_pictures_name_what_there_is(store, tmp_path):
    assert unusable(["R22_S11 C10: dead"]) == "no usable amplifier: R22_S11 C10: dead"
    assert "none of its values is a number: look at" in unusable([])
    own = {"raw": False, "version": None, "variable": None, "detector": None, "amplifier": None}
    with pytest.raises(CalibrationError, match="cube flats has no slice near 900 nm: choose --wavelength from 51"):
        show_picture(store, "flats", tmp_path / "x.png", {**own, "wavelength": 900.0})


def broadband_of(*nights):
    return [Pointer("broadband-r", f"{night}T12:00:00", {}, {}, {}, {}, []) for night in nights]


def test_flats_of_a_night_are_compared_with_those_of_the_cubes_epoch(store):
    """The reference is the flat nearest to the cube, if it is of another night than the measured one."""
    cube = read_cube(store.url, "flats")  # of 2026-07-11
    epoch = epoch_of(cube, np.ones(len(cube.pointer.slots)))
    known = broadband_of("2026-06-01", "2026-07-10", "2026-09-01")
    assert choose_reference(known[2], known, epoch) == (known[1], "")
    assert choose_reference(known[1], known, epoch)[0] is None
    assert choose_reference(known[0], known, epoch) == (known[1], "")
    assert start_of(night_of("2026-07-10")) == known[1].valid_from
    newer = [*known[:2], replace(known[1], version="newer"), known[2]]
    assert choose_reference(known[2], newer, epoch)[0].version == "newer"  # of those of one night


@pytest.mark.parametrize(
    ("nights", "why"),
    [
        (["2026-08-30"], "there is none of another night"),
        (["2026-08-30", "2026-08-10"], "the nearest, of 2026-08-10, is 30 days off its slices, more than 14"),
        (["2026-07-13", "2026-07-01"], "none of another night is nearer to its slices, unless it was taken after both"),
        (["2026-07-06", "2026-07-12"], "none of another night is nearer to its slices, unless it was taken after both"),
    ],
)
def test_no_flat_stands_for_a_cube_that_is_far_or_that_dust_came_before(store, nights, why):
    """The first of the nights is measured."""
    cube = read_cube(store.url, "flats")  # of 2026-07-11
    known = broadband_of(*nights)
    epoch = epoch_of(cube, np.ones(len(cube.pointer.slots)))
    assert choose_reference(known[0], sorted(known, key=lambda one: one.valid_from), epoch) == (None, why)


def test_the_epoch_of_a_band_is_that_of_its_slices():
    """A scan over four nights, the last of which has a band, and slices of it that were added in September."""
    nights = ["2026-07-11", "2026-07-12", "2026-07-13", "2026-07-14", "2026-07-14", "2026-07-14", "2026-09-01"]
    slots = [SimpleNamespace(time=f"{night}T20:00:00") for night in ["2026-06-01", *nights]]
    cube = SimpleNamespace(pointer=SimpleNamespace(slots=slots))
    epoch = epoch_of(cube, np.array([0, 0, 0, 1e-3, 0.3, 0.3, 0.2, 0.2]))
    assert epoch.start == "2026-07-11T12:00:00"
    late = epoch_of(cube, np.array([0, 0, 0, 0, 0, 0, 0, 1.0]))
    assert late.start == "2026-09-01T12:00:00"
    before, first, after = broadband_of("2026-07-10", "2026-07-11", "2026-08-30")
    assert [epoch.end(one) for one in (before, first, after)] == [epoch.start, "", ""]
    assert late.end(after) == late.start
    assert [epoch.days(one) for one in (first, after)] == [3, 47]
    assert late.days(after) == 2


def test_a_night_without_flats_is_named(store, compute):
    make_broadband(store, "r", CONFIG, compute)
    with pytest.raises(InsufficientInputs, match="no broadband flat of filter r in the night of 2026-07-02"):
        find_contamination(store, ["r"], lamp(), CONFIG, compute, night="2026-07-02")


def test_a_beam_without_a_filter_has_many_names(store):
    assert [read_passband(store, name) for name in ("none", "Clear", "empty", "")] == [None] * 4


def test_a_simulated_cube_can_be_compressed_and_its_flat_is_within_the_proved_error(store, compute):
    """Through filter r: dust, fringes and defects as the observatory has them."""
    made = compress_cube(store, "flats", CONFIG.compress, compute)
    assert not made.errors
    assert not made.pointer.failed
    whole, short = (
        make_flat(store, wanted(store, "compared", compressed=how), CONFIG.synthesis, compute, Validity())
        for how in (False, True)
    )
    away = image(store, whole).astype(float) - image(store, short)
    noise = np.sqrt(image(store, whole, "variance"))
    told = finished(store.url, "compared-r", short.pointer.version)["R22_S11"]["summary"]
    rounding = 24 * 2.0**-24
    for plane, sigma, amplifier in zip(away, noise, store.camera.amplifier_names, strict=True):
        own = told[amplifier]
        assert np.nanmax(np.abs(plane)) <= own["compression_error"] + rounding
        assert own["compression_error"] < 20 * np.nanmedian(sigma)
        assert np.nanstd(plane) < np.nanmedian(sigma)  # what maps leave out is a part of the noise


def test_cube_and_flats_are_judged_in_table_json_and_page(store, compute, capsys):
    made = make_flat(store, wanted(store, "photometric_flat"), CONFIG.synthesis, compute, Validity())
    assert not made.errors
    own = wanted(store, "sky_flat", spectrum=lamp())
    own = replace(own, source=replace(own.source, about={"sky_age_min": 3.0, "sky_chi2": 1.2}))
    night = Validity("2027-01-01T03:00:00", "2027-01-01T03:00:01")
    sky = make_flat(store, own, CONFIG.synthesis, compute, night)
    attrs = open_product(store.url, "sky_flat-r", sky.pointer.version, chunked=False).attrs
    assert sum(attrs["light"]) == pytest.approx(1)
    assert abs(attrs["scale_common"]) <= attrs["scale_error"] < 0.01 * attrs["scale"]
    found = verify(store, compute)
    by_key = {result.metric.key: result for result in found.results}
    assert by_key["cube flats: slices missing"].verdict == "PASS"
    assert by_key["cube flats: wavelength off nominal"].verdict == "PASS"
    chi2 = by_key["cube flats: chi2 of repeats"]
    assert chi2.verdict == "PASS"
    assert abs(chi2.median - 1) < 4 * np.sqrt(2 / (140 * 24))  # of 1 of 29 pixels, in 24 slices
    scatter = by_key["cube flats: photodiode scatter"].median
    assert 1e-5 < scatter < 1e-3  # of the photodiode, and of the median of 560 pixels of 40,000 electrons
    assert by_key["cube flats: signal to noise"].median == pytest.approx(np.sqrt(2 * 40_000), rel=0.05)
    assert by_key["cube flats: signal to noise"].verdict == "WARN"
    assert by_key["photometric_flat-r: mean"].median == pytest.approx(1, abs=0.01)
    assert 0 < by_key["photometric_flat-r: scale error"].median < 2e-3
    assert by_key["photometric_flat-r: noise"].verdict == "PASS"
    assert by_key["sky_flat-r: age of the sky's spectrum"].median == 3
    assert by_key["sky_flat-r: chi2 of the sky's spectrum"].median == 1.2
    names = [product.name for product in found.products]
    assert "cube flats" in names
    print_acceptance(found)
    assert "signal to noise" in capsys.readouterr().out
    metrics = as_json(found)["metrics"]
    (one,) = [row for row in metrics if row["metric"] == "signal to noise"]
    assert one["aim"] == [1000, 3000]
    assert "Lupton Sec. 2.8" in one["source"]
    page = report(found, store.camera)
    assert "cube flats: signal to noise" in page
    assert {r.metric.product for r in verify(store, compute, product="cube flats").results} == {"cube flats"}
