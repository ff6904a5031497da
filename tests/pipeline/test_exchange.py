"""What the camera team delivers becomes products; what was remeasured is compared with it, and used if accepted."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy import units
from astropy.table import Table
from making import observatory
from scipy.special import erf

from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.mapping import Output
from lsstcal_dask.pipeline.build import Validity
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.disagreement import LIMIT, accept, as_dict, compare, curve_difference, worst
from lsstcal_dask.pipeline.exchange import EXCHANGED, import_files, import_inputs
from lsstcal_dask.pipeline.export import export_product
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.upstream import find_upstream, read_upstream
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.truth import at
from lsstcal_dask.storage.deliveries import source_names
from lsstcal_dask.storage.products import (
    CAMERA_TEAM,
    Pointer,
    Template,
    accept_version,
    create_template,
    list_accepted,
    list_products,
    open_product,
    publish,
    write_detector,
)
from lsstcal_dask.storage.tables import read_input, write_table
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

SITE = Observatory(3, load_camera("mini9"), Settings())
TIME = "2026-07-02T00:00:00"
STEP = ("calibrate", Config().overscan)
ALWAYS = "1970-01-01T00:00:00"

has_crosstalk = pytest.mark.skipif(
    importlib.util.find_spec("lsstcal_dask.storage.rubin_crosstalk") is None, reason="its format is not here"
)


def with_inputs(folder, site):
    store = create_store(folder, site.camera.name)
    for name, make in deliveries("calibration-day", ()).items():
        if name in EXCHANGED:
            write_table(store.url, f"inputs/{name}", make(site))
    return store


@pytest.fixture(scope="module")
def delivered(tmp_path_factory, threads):
    """A store of nine CCDs whose inputs were imported; not to be changed."""
    store = with_inputs(tmp_path_factory.mktemp("delivered") / "s", SITE)
    found = dict(import_inputs(store, threads))
    assert list(found) == list(EXCHANGED)
    assert not [error for one in found.values() for error in one.errors]
    return store


@pytest.fixture
def one_ccd(tmp_path):
    """A store of one CCD with inputs, nothing imported."""
    return with_inputs(tmp_path / "one", observatory("mini1"))


def product(store, name, version=None):
    pointers = [p for p in list_products(store.url, name) if version in (None, p.version)]
    return open_product(store.url, name, max(pointers, key=lambda p: p.created).version, chunked=False).load()


def same(a, b):
    return set(a.data_vars) == set(b.data_vars) and all(
        np.array_equal(a[n].values, b[n].values, equal_nan=a[n].dtype.kind == "f") for n in a.data_vars
    )


def remeasure(store, name, values, version, valid_from=ALWAYS):
    """Publish values (detector, amplifier, ...) as a build would."""
    outputs = {str(n): Output(v.dtype.name, v.attrs.get("units", "")) for n, v in values.data_vars.items()}
    coords = {n: ((n,), values[n].values) for n in ("detector", "amplifier", "source") if n in values.coords}
    create_template(store.url, name, version, Template(outputs, dict(values.sizes), coords))
    marks = {}
    for i, det in enumerate(map(str, values["detector"].values)):
        own = values.sel(detector=det)
        results = ((str(a), own.sel(amplifier=a, drop=True).reset_coords(drop=True)) for a in own["amplifier"].values)
        marks[det] = write_detector(store.url, name, version, (i, det), results)["hash"]
    created = f"2026-08-01T00:00:{len(list_products(store.url)):02d}"
    publish(store.url, Pointer(name, valid_from, {}, {}, {}, {}, [], version=version, detectors=marks, created=created))


def in_use(store, name, detector="R22_S11", time=TIME):
    return find_upstream(read_upstream(store.url), name, detector, time, STEP)


def test_gains_and_wells_are_those_of_the_table(delivered):
    gains, wells = (product(delivered, name) for name in ("gain", "saturation"))
    for name, table in {"gain": gains["gain"], "full_well": wells["well_bloom"]}.items():
        rows = read_input(delivered.url, "gain" if name == "gain" else "saturation")
        for row in rows:
            assert float(table.sel(detector=row["detector"], amplifier=row["amplifier"])) == row[name]
    assert np.isnan(wells["well_serial"]).all()
    pointer = in_use(delivered, "gain")
    assert (pointer.origin, pointer.valid_from) == (CAMERA_TEAM, ALWAYS)
    ((file),) = pointer.inputs["files"]
    assert file["name"] == "inputs/gain.ecsv"
    assert len(file["hash"]) == 16


def test_the_curve_leads_to_the_true_signal(delivered):
    """Within the error of a node, 1e-4 of the signal: 4.5 sigma of 144 amplifiers with 60 nodes are never passed."""
    found = product(delivered, "linearity")
    for detector in SITE.camera.detectors[:2]:
        for a in detector.amplifiers[::5]:
            own = found.sel(detector=detector.name, amplifier=a.name)
            level = own["linearity_level"].values[1:]
            true = at(SITE, "linearity", detector=detector.name, amplifier=a.name, measured=level)
            pulls = (level + own["linearity_correction"].values[1:] - true) / own["linearity_error"].values[1:]
            assert np.abs(pulls).max() < 4.5
            assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.5
            left = (level - true) / own["linearity_error"].values[1:]
            assert np.abs(left).max() > 20  # without the correction


def test_crosstalk_is_by_target_and_source_and_zero_elsewhere(delivered):
    found, table = product(delivered, "crosstalk"), read_input(delivered.url, "crosstalk")
    assert list(map(str, found["source"].values)) == source_names(SITE.camera)
    for row in table[::17]:
        place = {"detector": row["target_detector"], "amplifier": row["target_amplifier"]}
        own = found.sel(place, drop=True).sel(source=f"{row['source_detector']}/{row['source_amplifier']}")
        assert float(own["crosstalk"]) == row["c"]
        assert float(own["crosstalk_quadratic"]) == row["c2"]
        assert float(own["crosstalk_error"]) == row["c_error"]
    assert int((found["crosstalk"] != 0).sum()) == len(table)
    assert np.isfinite(found["crosstalk"]).all()
    assert int(np.isfinite(found["crosstalk_error"]).sum()) == len(table)


def test_defects_cover_the_boxes_of_the_list(delivered):
    found, table = product(delivered, "defects"), read_input(delivered.url, "defects")
    for detector in SITE.camera.detectors:
        ccd = np.zeros(detector.shape, bool)
        for row in table[table["detector"] == detector.name]:
            ccd[row["y0"] : row["y0"] + row["height"], row["x0"] : row["x0"] + row["width"]] = True
        own = found.sel(detector=detector.name)
        flagged = own["mask"].values & (MASK_BITS["BAD"] | MASK_BITS["SUSPECT"]) > 0
        assert flagged.sum() == ccd.sum()
        assert np.array_equal(own["defect_kind"].values & DEFECT_KINDS["LISTED"] > 0, flagged)


@pytest.mark.parametrize(
    ("name", "form"),
    [(n, f) for n in ("gain", "linearity", "defects") for f in ("ecsv", "fits", "yaml")]
    + [("saturation", "ecsv"), ("saturation", "fits"), pytest.param("crosstalk", "ecsv", marks=has_crosstalk)],
)
def test_what_is_exported_comes_back_to_the_last_bit(delivered, tmp_path, threads, name, form):
    """Of two CCDs, one of each vendor; and the files are the same then, too."""
    names = ["R22_S10", "R22_S11"]
    done = export_product(delivered, name, tmp_path / "out", form)
    files = [p for p in done.files if name == "saturation" or p.parent.name.upper() in names]
    store = create_store(tmp_path / "s", "mini9")
    built = import_files(store, name, [str(path) for path in files], threads)
    assert not built.errors
    assert built.pointer.valid_from == ALWAYS
    some = {"detector": list(built.pointer.detectors)}
    assert len(some["detector"]) == (9 if name == "saturation" else 2)
    assert same(product(store, name), product(delivered, name).sel(some))
    again = export_product(store, name, tmp_path / "again", form)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in files]


def test_what_was_remeasured_comes_back_too(one_ccd, tmp_path, threads):
    """With variables that Rubin's files do not know, and masks that they tell apart by file."""
    random = np.random.default_rng(1)
    camera = one_ccd.camera
    (detector,) = camera.detectors
    coords = {"detector": [detector.name], "amplifier": list(camera.amplifier_names)}
    gains = {n: random.uniform(1, 2, (1, 4)) for n in ("gain", "gain_error", "gain_fe55", "gain_pair", "read_noise")}
    values = xr.Dataset({n: (("detector", "amplifier"), v) for n, v in gains.items()}, coords=coords)
    for n in values.data_vars:
        values[n].attrs["units"] = "adu" if n == "read_noise" else "electron/adu"
    shape = (1, 4, *camera.image_shape)
    mask = random.choice(np.array([0, 0, 0, 2, 4], np.uint16), shape)
    kinds = np.where(mask > 0, random.choice(np.array([1, 2, 8, 16], np.uint16), shape), 0).astype(np.uint16)
    dims = ("detector", "amplifier", "y", "x")
    defects = xr.Dataset({"mask": (dims, mask), "defect_kind": (dims, kinds)}, coords=coords)
    for name, dataset in {"gain": values, "defects": defects}.items():
        remeasure(one_ccd, name, dataset, "a" * 16)
        done = export_product(one_ccd, name, tmp_path / "out")
        assert done.pointer.origin == "remeasured"
        store = create_store(tmp_path / name, "mini1")
        assert not import_files(store, name, [str(path) for path in done.files], threads).errors
        found = product(store, name)
        if name == "gain":
            assert same(found[list(values.data_vars)], values)
        else:
            assert np.array_equal(found["mask"], mask)
            assert np.array_equal(found["defect_kind"], np.where(mask > 0, kinds | DEFECT_KINDS["LISTED"], 0))


def test_turnoff_of_a_photon_transfer_curve(delivered, tmp_path, threads):
    """In adu there, in electrons here."""
    from lsstcal_dask.storage.rubin.ptc import read_ptc, write_ptc

    path = export_product(delivered, "gain", tmp_path / "out").files[0]
    found = read_ptc(path, SITE.camera)
    turnoff = np.linspace(6e4, 9e4, 16)
    write_ptc(path, replace(found, turnoff=turnoff, turnoff_error=turnoff / 100), SITE.camera, TIME)
    store = create_store(tmp_path / "s", "mini9")
    built = import_files(store, "saturation", [str(path)], threads)
    assert built.pointer.valid_from == TIME
    own = product(store, "saturation").sel(detector=found.detector, amplifier=found.gains["amplifier"].values)
    assert np.array_equal(own["ptc_turnoff"].values, turnoff * found.gains["gain"].values)
    assert np.isnan(own["well_bloom"]).all()


def transfer(camera, lags=4):
    """Product ``ptc`` of two CCDs, as built."""
    names, random = ["R22_S10", "R22_S11"], np.random.default_rng(5)
    built = xr.Dataset(coords={"detector": names, "amplifier": list(camera.amplifier_names)})
    shape = (2, len(built["amplifier"]))
    for name in (
        "gain",
        "gain_error",
        "read_noise",
        "read_noise_error",
        "ptc_turnoff",
        "ptc_turnoff_error",
        "ptc_chi2",
    ):
        units = {"units": "electron"} if name.startswith("read_noise") else {}
        built[name] = (("detector", "amplifier"), random.uniform(1, 2, shape), units)
    for name, scale in {"a_matrix": 1e-6, "c_matrix": 1e-12, "noise_matrix": 1.0}.items():
        for end in ("", "_error"):
            matrix = np.abs(random.normal(0, scale, (*shape, 6, 6)))[..., :lags, :lags]
            built[name + end] = (("detector", "amplifier", "lag_y", "lag_x"), matrix)
    return built


@pytest.mark.parametrize("form", ["ecsv", "fits", "yaml"])
def test_photon_transfer_with_its_covariances(tmp_path, threads, form):
    """What was built goes out as Rubin's files and comes back to the last bit; what was imported goes out as it was."""
    store = create_store(tmp_path / "a", "mini9")
    remeasure(store, "ptc", transfer(store.camera), "v1", TIME)
    out = export_product(store, "ptc", tmp_path / "out", form)
    other = create_store(tmp_path / "b", "mini9")
    made = import_files(other, "ptc", [str(path) for path in out.files], threads)
    assert not made.errors
    assert same(product(other, "ptc"), product(store, "ptc"))
    again = export_product(other, "ptc", tmp_path / "again", form)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in out.files]


def test_photon_transfer_is_compared_and_accepted(tmp_path, threads):
    """Matrices of more lags than the camera team's by those that both have."""
    store = create_store(tmp_path / "s", "mini9")
    remeasure(store, "ptc", transfer(store.camera), "v1", TIME)
    files = export_product(store, "ptc", tmp_path / "out").files
    assert not import_files(store, "ptc", [str(path) for path in files], threads).errors
    longer = transfer(store.camera, 6)
    remeasure(store, "ptc", longer, "v2", TIME)
    rows = compare(store, "ptc").rows
    assert {row.dof for row in rows if row.quantity == "a_matrix"} == {16}
    assert all(row.significance == 0 for row in rows)
    at = {"detector": "R22_S11", "amplifier": "C04"}
    longer["a_matrix"].loc[at] += 9 * longer["a_matrix_error"].loc[at]
    remeasure(store, "ptc", longer, "v3", TIME)
    found = [(r.detector, r.amplifier, r.quantity) for r in compare(store, "ptc").rows if r.exceeds]
    assert found == [("R22_S11", "C04", "a_matrix")]
    assert in_use(store, "ptc", "R22_S11", TIME).origin == CAMERA_TEAM
    assert list(accept(store, "ptc", threads).detectors) == ["R22_S11"]
    assert in_use(store, "ptc", "R22_S11", TIME).version == "v3"
    assert in_use(store, "ptc", "R22_S10", TIME).origin == CAMERA_TEAM


def test_gains_and_photon_transfer_have_a_place_in_one_folder(tmp_path):
    store = create_store(tmp_path / "s", "mini9")
    built = transfer(store.camera)
    remeasure(store, "ptc", built, "v1", TIME)
    remeasure(store, "gain", built[["gain", "gain_error"]], "v1", TIME)
    made = [path for name in ("ptc", "gain") for path in export_product(store, name, tmp_path / "out").files]
    assert len(set(made)) == 4
    assert {path.parts[-3] for path in made} == {"ptc", "gain"}


def test_photon_transfer_of_plain_tables_is_refused(one_ccd, threads):
    made = import_files(one_ccd, "ptc", [f"{one_ccd.url}/inputs/gain.ecsv"], threads)
    assert made.pointer is None
    assert "has no OBSTYPE: ptc is read from files of Rubin's software alone" in made.errors[0]


def test_levels_of_saturation_add_up(delivered, tmp_path, threads):
    """Turnoffs after full wells, and full wells again: what is not delivered anew stays, and is not doubled."""
    from lsstcal_dask.storage.rubin.ptc import read_ptc, write_ptc

    store = create_store(tmp_path / "s", "mini9")
    write_table(store.url, "inputs/saturation", read_input(delivered.url, "saturation"))
    table = dict(import_inputs(store, threads))["saturation"].pointer
    path = export_product(delivered, "gain", tmp_path / "out").files[4]
    found = read_ptc(path, SITE.camera)
    turnoff = np.linspace(6e4, 9e4, 16)
    write_ptc(path, replace(found, turnoff=turnoff, turnoff_error=turnoff / 100), SITE.camera, TIME)
    built = import_files(store, "saturation", [str(path)], threads)
    own = {"detector": found.detector, "amplifier": found.gains["amplifier"].values}
    first, both = (product(store, "saturation", p.version).sel(own) for p in (table, built.pointer))
    assert np.isfinite(both["well_bloom"]).all()
    for name in ("well_bloom", "well_bloom_error"):
        assert np.array_equal(both[name], first[name])
    assert np.array_equal(both["ptc_turnoff"].values, turnoff * found.gains["gain"].values)
    assert in_use(store, "saturation", found.detector, "2026-07-03T00:00:00").version == built.pointer.version
    assert not import_files(store, "saturation", [str(path)], threads).new
    edited(store, "saturation", full_well=read_input(store.url, "saturation")["full_well"] * 0.9)
    again = dict(import_inputs(store, threads, validity=Validity("2026-07-04T00:00:00")))["saturation"].pointer
    third = product(store, "saturation", again.version)
    assert np.allclose(third["well_bloom"].sel(own), 0.9 * first["well_bloom"], rtol=1e-12)
    assert np.array_equal(third["ptc_turnoff"].sel(own), both["ptc_turnoff"])
    assert int(np.isfinite(third["ptc_turnoff"]).sum()) == 16


def test_bad_files_are_all_named_and_nothing_is_published(delivered, tmp_path, threads):
    done = export_product(delivered, "gain", tmp_path / "out")
    files = [str(path) for path in done.files[:3]]
    table = Table.read(files[1], format="ascii.ecsv")
    table.meta["DET_SER"] = "MINI-999"
    table.write(files[1], format="ascii.ecsv", overwrite=True)
    store = create_store(tmp_path / "s", "mini9")
    built = import_files(store, "gain", [*files, files[0], str(tmp_path / "none.fits")], threads)
    assert built.pointer is None
    assert [error.split(": ")[0] for error in built.errors] == [files[1], files[0], str(tmp_path / "none.fits")]
    assert "is of CCD MINI-999, in R22_S01 is MINI-001" in built.errors[0]
    assert "R22_S00 is in another file too" in built.errors[1]
    assert not list_products(store.url)
    with pytest.raises(WrongUse, match="unknown product 'bias' to exchange: choose from gain, linearity"):
        import_files(store, "bias", files, threads)
    with pytest.raises(WrongUse, match="gain: name files to import"):
        import_files(store, "gain", [], threads)
    with pytest.raises(CalibrationError, match="has no tables gain, linearity, crosstalk, defects, saturation among"):
        dict(import_inputs(store, threads))
    with pytest.raises(WrongUse, match="is not later than"):
        import_files(store, "gain", files[:1], threads, validity=Validity(TIME, TIME))
    with pytest.raises(CalibrationError, match="has no product gain: see 'lsstcal ls"):
        export_product(store, "gain", tmp_path)
    with pytest.raises(WrongUse, match="unknown format 'csv'"):
        export_product(delivered, "gain", tmp_path, "csv")
    with pytest.raises(WrongUse, match="crosstalk is written as ecsv only"):
        export_product(delivered, "crosstalk", tmp_path, "fits")


def edited(store, name, **columns):
    table = read_input(store.url, name)
    for key, value in columns.items():
        if value is None:
            table.remove_column(key)
        elif isinstance(value, tuple):
            table[key][value[0]] = value[1]
        else:
            table[key] = value
    write_table(store.url, f"inputs/{name}", table)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gain", {"gain": None}, "has no column gain: is it the right table?"),
        ("gain", {"gain": (1, -2.0)}, "R22_S11 C01: gain -2 electron/adu is not above zero"),
        ("gain", {"gain": np.ones(4) * units.adu}, "column gain is in 'adu', expected 'electron/adu'"),
        ("gain", {"detector": ["R22_S12"] * 4}, "camera mini1 has no detector R22_S12"),
        ("gain", {"amplifier": ["C00", "C00", "C10", "C11"]}, "R22_S11 C00: has several rows"),
        ("saturation", {"full_well": None}, "has no column full_well"),
        ("saturation", {"full_well": np.ones(4)}, "column full_well is in '', expected 'electron'"),
        ("linearity", {"measured": (0, np.zeros(61))}, "R22_S11 C00: measured signals do not ascend from 0 adu"),
        ("linearity", {"measured": np.ones((4, 5)) * units.adu}, "meta true_adu has 61 signals, measured is (4, 5)"),
        ("defects", {"x0": np.array([500])}, "R22_S11: box 0 [500.0, 1.0, 1.0, 1.0]"),
        ("crosstalk", {"c": None}, "has no column c: is it a table of crosstalk?"),
        ("crosstalk", {"source_amplifier": ["C99"]}, "R22_S11 has no amplifier C99"),
        ("crosstalk", {"target_detector": ["R99"]}, "camera mini1 has no detector R99"),
    ],
)
def test_bad_tables_are_named(one_ccd, threads, name, change, says):
    if name == "defects":
        box = {key: [1] for key in ("x0", "y0", "width", "height")}
        write_table(one_ccd.url, "inputs/defects", Table({"detector": ["R22_S11"], **box, "kind": ["cold"]}))
    if name == "crosstalk":
        write_table(one_ccd.url, "inputs/crosstalk", pair_table(["C10"], ["C11"]))
    edited(one_ccd, name, **change)
    built = dict(import_inputs(one_ccd, threads))
    (error,) = built[name].errors
    assert error.startswith(f"inputs/{name}.ecsv: ")
    assert says in error
    assert [n for n in built if built[n].errors] == [name]


def pair_table(targets, sources):
    table = Table()
    for end, names in {"target": targets, "source": sources}.items():
        table[f"{end}_detector"], table[f"{end}_amplifier"] = ["R22_S11"] * len(names), names
    table["c"], table["c_error"] = np.full(len(targets), 1e-4), np.full(len(targets), 1e-6)
    return table


def test_a_pair_that_is_listed_twice(one_ccd, threads):
    write_table(one_ccd.url, "inputs/crosstalk", pair_table(["C10", "C10"], ["C11", "C11"]))
    (error,) = dict(import_inputs(one_ccd, threads))["crosstalk"].errors
    assert "R22_S11/C10: its coupling to R22_S11/C11 is listed twice" in error


def test_a_plain_table_without_a_date_needs_one(one_ccd, threads, tmp_path):
    read_input(one_ccd.url, "gain").write(tmp_path / "g.ecsv", format="ascii.ecsv")
    assert import_files(one_ccd, "gain", [tmp_path / "g.ecsv"], threads).errors == [
        "gain: the files have no CALIBDATE: give --valid-from"
    ]
    built = import_files(one_ccd, "gain", [tmp_path / "g.ecsv"], threads, validity=Validity(TIME))
    assert (built.pointer.valid_from, built.new) == (TIME, True)
    assert not import_files(one_ccd, "gain", [tmp_path / "g.ecsv"], threads, validity=Validity(TIME)).new
    table = read_input(one_ccd.url, "gain")
    table.meta["CALIBDATE"] = "yesterday"
    table.write(tmp_path / "g.ecsv", format="ascii.ecsv", overwrite=True)
    (error,) = import_files(one_ccd, "gain", [tmp_path / "g.ecsv"], threads).errors
    assert "CALIBDATE 'yesterday' is no time" in error


def test_a_curve_of_another_gauge_is_remarked(one_ccd, threads):
    table = read_input(one_ccd.url, "linearity")
    table["measured"] = np.asarray(table["measured"]) * 1.01 * units.adu
    write_table(one_ccd.url, "inputs/linearity", table)
    built = dict(import_inputs(one_ccd, threads))["linearity"]
    assert built.pointer.verdict == "WARN"
    slopes = [r for r in built.pointer.remarks if "its curve has the slope -0.0" in r]
    assert len(slopes) == 4


def gains(values, errors, names=("C10", "C11", "C01", "C00")):
    coords = {"detector": ["R22_S11"], "amplifier": list(names)}
    attrs = {"units": "electron/adu"}
    pairs = {"gain": values, "gain_error": errors}
    return xr.Dataset(
        {n: (("detector", "amplifier"), np.array([v], float), attrs) for n, v in pairs.items()}, coords=coords
    )


def test_significance_by_hand():
    assert worst(np.array([3.0]), np.array([1.5])) == (0, 2.0)
    place, value = worst(np.array([1.0, -6.0, 2.0]), np.array([1.0, 2.0, 1.0]))
    assert place == 1
    assert erf(value / np.sqrt(2)) == pytest.approx(erf(3 / np.sqrt(2)) ** 3, rel=1e-12)
    assert worst(np.array([100.0, 0.0]), np.ones(2)) == (0, 100.0)


def test_gains_compared_by_hand(one_ccd, threads):
    dict(import_inputs(one_ccd, threads))
    team = product(one_ccd, "gain").sel(detector="R22_S11", amplifier=["C10", "C11", "C01", "C00"])
    shift = np.array([0.0, 3.0, -5.0, np.nan])
    sigma = team["gain_error"].values * 0.75
    values = team["gain"].values + shift * np.hypot(sigma, team["gain_error"].values)
    remeasure(one_ccd, "gain", gains(values, sigma), "b" * 16)
    found = compare(one_ccd, "gain")
    assert [row.amplifier for row in found.rows] == ["C00", "C01", "C10", "C11"][1:]
    rows = {row.amplifier: row for row in found.rows}
    for name, expected in {"C10": 0.0, "C11": 3.0, "C01": 5.0}.items():
        assert rows[name].significance == pytest.approx(expected, abs=1e-9)
        assert rows[name].chi2 == pytest.approx(expected**2, abs=1e-9)
        assert rows[name].exceeds == (expected > LIMIT)
    assert list(found.exceeding) == ["R22_S11"]
    assert as_dict(found)["differences"][0]["units"] == "electron/adu"


def test_what_agrees_cannot_be_accepted_and_changes_nothing(one_ccd, threads):
    dict(import_inputs(one_ccd, threads))
    team = in_use(one_ccd, "gain")
    values = product(one_ccd, "gain").sel(detector="R22_S11", amplifier=["C10", "C11", "C01", "C00"])
    remeasure(one_ccd, "gain", gains(values["gain"].values * 1.001, values["gain_error"].values), "b" * 16)
    with pytest.raises(CalibrationError, match=r"agrees with the camera team's .* within 4 sigma in 4 quantities"):
        accept(one_ccd, "gain", threads)
    assert in_use(one_ccd, "gain") == team
    assert not list_accepted(one_ccd.url)


def test_acceptance_decides_which_is_used(one_ccd, threads):
    """Nothing delivered: as ever. Delivered: the camera team's. Accepted: the other, until they deliver again."""
    values = gains([1.5] * 4, [1e-3] * 4)
    remeasure(one_ccd, "gain", values, "b" * 16)
    assert in_use(one_ccd, "gain").version == "b" * 16
    with pytest.raises(CalibrationError, match=r"has no gain of the camera team: import one with 'lsstcal import"):
        compare(one_ccd, "gain")
    dict(import_inputs(one_ccd, threads))
    team = in_use(one_ccd, "gain")
    assert team.origin == CAMERA_TEAM
    done = accept(one_ccd, "gain", threads)
    assert (done.version, done.over, done.new) == ("b" * 16, team.version, True)
    assert not accept(one_ccd, "gain", threads).new
    assert in_use(one_ccd, "gain").version == "b" * 16
    remeasure(one_ccd, "gain", gains([1.6] * 4, [1e-3] * 4), "c" * 16)
    assert in_use(one_ccd, "gain").version == "b" * 16  # a later one has to be accepted itself
    assert accept(one_ccd, "gain", threads, "c" * 16).version == "c" * 16
    assert in_use(one_ccd, "gain").version == "c" * 16
    edited(one_ccd, "gain", gain=(0, 1.7))
    dict(import_inputs(one_ccd, threads))
    assert in_use(one_ccd, "gain").origin == CAMERA_TEAM
    assert in_use(one_ccd, "gain").version != team.version
    rows = {r["version"]: r["origin"] for r in list_contents(one_ccd)["products"] if r["product"] == "gain"}
    assert sorted(rows.values()) == [CAMERA_TEAM, CAMERA_TEAM, "remeasured", "remeasured"]


def test_only_the_ccds_that_differ_are_updated(delivered, tmp_path, threads):
    shutil.copytree(delivered.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    values = product(store, "gain").copy(deep=True)
    values["gain"].loc[{"detector": "R22_S11"}] *= 1.01
    remeasure(store, "gain", values, "b" * 16)
    assert list(accept(store, "gain", threads).detectors) == ["R22_S11"]
    assert in_use(store, "gain").version == "b" * 16
    assert in_use(store, "gain", "R22_S12").origin == CAMERA_TEAM


def test_no_comparison_without_two(one_ccd, threads, tmp_path):
    dict(import_inputs(one_ccd, threads))
    with pytest.raises(CalibrationError, match=r"has no remeasured gain: build it with 'lsstcal build"):
        compare(one_ccd, "gain")
    with pytest.raises(CalibrationError, match=r"has no version 123 of gain"):
        compare(one_ccd, "gain", "123")
    with pytest.raises(WrongUse, match="unknown product 'bias'"):
        compare(one_ccd, "bias")
    store = create_store(tmp_path / "s", "mini9")
    files = export_product(one_ccd, "gain", tmp_path / "out").files
    assert import_files(store, "gain", [str(files[0])], threads).errors  # another camera
    write_table(store.url, "inputs/gain", gain_table(store.camera, "R22_S00"))
    dict(import_inputs(store, threads))
    names = [a.name for a in store.camera.detector("R22_S11").amplifiers]
    remeasure(store, "gain", gains([1.5] * 16, [1e-3] * 16, names), "b" * 16)
    with pytest.raises(CalibrationError, match="have no CCD in common"):
        compare(store, "gain")


def gain_table(camera, name):
    amplifiers = [a.name for a in camera.detector(name).amplifiers]
    table = Table({"detector": [name] * len(amplifiers), "amplifier": amplifiers})
    for column, value in {"gain": 1.5, "gain_error": 1e-3}.items():
        table[column] = np.full(len(amplifiers), value) * units.electron / units.adu
    return table


def test_two_measurements_of_the_truth_agree_and_a_jump_is_seen(delivered, tmp_path, threads):
    """Closed loop: chi2 of 144 gains is within 4 of its own sigma; 1 % is 7 sigma of two errors of 0.1 %."""
    shutil.copytree(delivered.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    values = product(store, "gain").copy(deep=True)
    noise = np.random.default_rng(5).normal(0, 1e-3, values["gain"].shape)
    for i, detector in enumerate(SITE.camera.detectors):
        for a in detector.amplifiers:
            j = list(values["amplifier"].values).index(a.name)
            true = at(SITE, "gain", detector=detector.name, amplifier=a.name)
            values["gain"][i, j], values["gain_error"][i, j] = true * (1 + noise[i, j]), true * 1e-3
    remeasure(store, "gain", values, "b" * 16)
    rows = compare(store, "gain").rows
    assert len(rows) == 144
    assert not any(row.exceeds for row in rows)
    assert abs(sum(row.chi2 for row in rows) - 144) < 4 * np.sqrt(2 * 144)
    values["gain"].loc[{"detector": "R22_S11", "amplifier": "C04"}] *= 1.01
    remeasure(store, "gain", values, "c" * 16)
    assert [(r.detector, r.amplifier) for r in compare(store, "gain").rows if r.exceeds] == [("R22_S11", "C04")]


def curve(level, correction, error=0.5, ceiling=np.inf):
    values = {"linearity_level": level, "linearity_correction": correction}
    values["linearity_error"] = np.full(len(level), error)
    found = xr.Dataset({n: ("node", np.asarray(v, float)) for n, v in values.items()})
    return found.assign(linearity_ceiling=float(ceiling))


def test_curves_are_compared_up_to_their_gauge():
    level = np.linspace(0, 5e4, 26)
    correction = 1e-7 * level**2
    factor = 1.003  # the same true signals in another unit: L -> k L
    scaled = factor * (level + correction) - level
    difference, sigma = curve_difference(curve(level, correction), curve(level, scaled))
    assert np.abs(difference).max() < 1e-6 * sigma.min()
    assert np.allclose(sigma, np.hypot(0.5, 0.5))
    bent = correction + 10 * np.sin(level / 5e3)
    difference, sigma = curve_difference(curve(level, correction), curve(level, bent))
    assert worst(difference, sigma)[1] > 8  # 10 adu in 0.7
    below, _ = curve_difference(curve(level, correction), curve(level, bent, ceiling=2e4))
    assert len(below) == 10  # only what both can be trusted with
    nothing, _ = curve_difference(curve(level[:2], correction[:2]), curve(level, bent))
    assert len(nothing) == 0
    _, unknown = curve_difference(curve(level, correction, np.nan), curve(level, bent, np.nan))
    assert np.isnan(unknown).all()
    assert worst(np.zeros(3), np.ones(3)) == (0, 0.0)


def test_curves_crosstalk_and_levels_are_compared(delivered, tmp_path, threads):
    shutil.copytree(delivered.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    for name, variable in {
        "linearity": "linearity_correction",
        "crosstalk": "crosstalk",
        "saturation": "well_bloom",
    }.items():
        values = product(store, name).copy(deep=True)
        if name == "crosstalk":
            values = values.isel(source=slice(None, None, -1))  # the order of sources does not matter
        remeasure(store, name, values, "b" * 16)
        assert not compare(store, name).exceeding
        at = {"detector": "R22_S11", "amplifier": "C10"}
        error = np.nan_to_num(values[f"{variable.removesuffix('_correction')}_error"].sel(at).values, nan=0.0)
        off = error * (np.arange(error.size).reshape(error.shape) % 2 * 20 - 10 if error.ndim else 10)
        values[variable].loc[at] = values[variable].sel(at) + off
        remeasure(store, name, values, "c" * 16)
        found = compare(store, name)
        assert list(found.exceeding) == ["R22_S11"]
        (row,) = [r for r in found.rows if r.exceeds]
        assert (row.amplifier, row.quantity) == ("C10", variable)
        assert row.chi2 > 25 * max(row.dof / 2, 1)


def test_a_number_without_an_error_is_not_judged(one_ccd, threads):
    """On either side; but a pair that the camera team does not list is zero, and one that is found there differs."""
    write_table(one_ccd.url, "inputs/crosstalk", pair_table(["C10", "C11"], ["C11", "C10"]))
    dict(import_inputs(one_ccd, threads))
    values = product(one_ccd, "crosstalk").copy(deep=True)
    values["crosstalk_error"][:] = 1e-6
    values["crosstalk_quadratic"][:] = 1e-9
    values["crosstalk_quadratic_error"][:] = np.nan
    listed = {"amplifier": "C10", "source": "R22_S11/C11"}
    values["crosstalk_quadratic_error"].loc[listed] = 1e-12
    for name in ("crosstalk_error", "crosstalk"):
        values[name].loc[{"amplifier": "C11", "source": "R22_S11/C10"}] = np.nan
    remeasure(one_ccd, "crosstalk", values, "b" * 16)
    found = compare(one_ccd, "crosstalk")
    assert {r.amplifier for r in found.rows if r.exceeds} == {"C10"}  # by its one judged quadratic, listed as zero
    values["crosstalk_quadratic"][:] = 0.0
    values["crosstalk"].loc[{"amplifier": "C01", "source": "R22_S11/C00"}] = 1e-5
    remeasure(one_ccd, "crosstalk", values, "c" * 16)
    assert [(r.amplifier, r.quantity) for r in compare(one_ccd, "crosstalk").rows if r.exceeds] == [
        ("C01", "crosstalk")
    ]
    table = read_input(one_ccd.url, "crosstalk")
    table["c"], table["c_error"] = 3e-4, np.nan
    write_table(one_ccd.url, "inputs/crosstalk", table)
    dict(import_inputs(one_ccd, threads))
    assert "C10" not in {r.amplifier for r in compare(one_ccd, "crosstalk").rows if r.exceeds}


def test_nothing_to_compare_is_not_agreement(one_ccd, threads):
    dict(import_inputs(one_ccd, threads))
    remeasure(one_ccd, "gain", gains([1.5] * 4, [np.nan] * 4), "b" * 16)
    assert np.isnan([row.significance for row in compare(one_ccd, "gain").rows]).all()
    with pytest.raises(CalibrationError, match=r"gain b{16} cannot be compared with .*: there is no number that both"):
        accept(one_ccd, "gain", threads)


def defects_of(store, places, bit="BAD", kind="HOT"):
    """A list with these pixels (amplifier, y, x)."""
    shape = (1, len(store.camera.amplifier_names), *store.camera.image_shape)
    mask, kinds = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    for place in places:
        mask[(0, *place)], kinds[(0, *place)] = MASK_BITS[bit], DEFECT_KINDS[kind]
    dims = ("detector", "amplifier", "y", "x")
    coords = {"detector": ["R22_S11"], "amplifier": list(store.camera.amplifier_names)}
    return xr.Dataset({"mask": (dims, mask), "defect_kind": (dims, kinds)}, coords=coords)


def test_lists_of_defects_grow_and_growing_again_changes_nothing(one_ccd, threads):
    boxes = {"x0": [5, 100], "y0": [3, 0], "width": [2, 1], "height": [1, 64]}
    write_table(one_ccd.url, "inputs/defects", Table({"detector": ["R22_S11"] * 2, **boxes}))
    dict(import_inputs(one_ccd, threads))
    team = product(one_ccd, "defects")
    assert int((team["mask"] == MASK_BITS["BAD"]).sum()) == 66
    listed = tuple(int(i) for i in np.argwhere(team["mask"].values[0] > 0)[0])
    assert team["mask"].values[(0, *listed)] == MASK_BITS["BAD"]
    remeasure(one_ccd, "defects", defects_of(one_ccd, [listed]), "b" * 16)
    with pytest.raises(CalibrationError, match="there is nothing to accept"):
        accept(one_ccd, "defects", threads)
    new = next((0, y, 33) for y in range(64) if not team["mask"].values[0, 0, y, 33])
    remeasure(one_ccd, "defects", defects_of(one_ccd, [listed, new]), "c" * 16)
    rows = [row for row in compare(one_ccd, "defects").rows if row.exceeds]
    assert [(row.amplifier, row.difference) for row in rows] == [("C10", 1.0)]
    done = accept(one_ccd, "defects", threads)
    union = product(one_ccd, "defects", done.version)
    assert in_use(one_ccd, "defects").version == done.version
    assert int((union["mask"] & MASK_BITS["BAD"] > 0).sum()) == 67
    kinds = union["defect_kind"].values[0]
    assert kinds[listed] == DEFECT_KINDS["HOT"] | DEFECT_KINDS["LISTED"]
    assert kinds[new] == DEFECT_KINDS["HOT"]
    again = accept(one_ccd, "defects", threads)
    assert (again.version, again.new) == (done.version, False)
    # A later epoch that does not see the first new pixel any more, and sees another: both stay.
    other = (1, 10, 11)
    remeasure(one_ccd, "defects", defects_of(one_ccd, [other], "SUSPECT", "TRAP"), "d" * 16)
    later = accept(one_ccd, "defects", threads, "d" * 16)
    union = product(one_ccd, "defects", later.version)
    assert in_use(one_ccd, "defects").version == later.version
    kinds = union["defect_kind"].values[0]
    assert kinds[new] == DEFECT_KINDS["HOT"] | DEFECT_KINDS["LISTED"]
    assert kinds[other] == DEFECT_KINDS["TRAP"]
    assert union["mask"].values[(0, *other)] == MASK_BITS["SUSPECT"]
    assert int((union["mask"] & MASK_BITS["BAD"] > 0).sum()) == 67


def test_a_remeasured_product_that_is_out_of_date_is_not_compared(one_ccd, threads):
    dict(import_inputs(one_ccd, threads))
    remeasure(one_ccd, "gain", gains([1.5] * 4, [1e-3] * 4), "b" * 16)
    path = Path(one_ccd.url, f"products/gain/published/{'b' * 16}.json")
    path.write_text(path.read_text().replace('"inputs": {}', '"inputs": {"headers": {"MC_S_1": "x"}}'))
    with pytest.raises(CalibrationError, match=r"gain b{16} was made from exposure MC_S_1.*: build gain again"):
        compare(one_ccd, "gain")


def test_acceptance_is_one_small_object(one_ccd):
    accept_version(one_ccd.url, "gain", "v", {"over": "w", "detectors": {"R22_S11": 5.0}})
    accept_version(one_ccd.url, "gain", "v", {"over": "x", "detectors": {}})
    assert list_accepted(one_ccd.url) == {"v": {"over": "x", "detectors": {}}}
