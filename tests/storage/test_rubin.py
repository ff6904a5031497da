"""Files of Rubin's software: boxes by hand, round trips to the last bit, real files, one clear line per mistake."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
import yaml
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd
from lsstcal_dask.isr.linearity import linearize
from lsstcal_dask.storage.rubin.coupling import read_crosstalk, write_crosstalk
from lsstcal_dask.storage.rubin.covariance import read_transfer, write_transfer
from lsstcal_dask.storage.rubin.defects import (
    DefectList,
    boxes_to_mask,
    defect_masks,
    mask_to_boxes,
    read_defects,
    write_defects,
)
from lsstcal_dask.storage.rubin.files import FORMATS, header, read_file, write_file
from lsstcal_dask.storage.rubin.linearizer import read_linearizer, write_linearizer
from lsstcal_dask.storage.rubin.ptc import PhotonTransfer, labelled, read_eo_summary, read_ptc, write_ptc
from lsstcal_dask.storage.rubin.transmission import Transmission, read_transmission, write_transmission
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

MINI = load_camera("mini9")
E2V, ITL = MINI.detector("R22_S11"), MINI.detector("R22_S10")
DATE = "2026-07-01T12:00:00"
BAD, SUSPECT, LISTED = MASK_BITS["BAD"], MASK_BITS["SUSPECT"], DEFECT_KINDS["LISTED"]
has_crosstalk = pytest.mark.skipif(
    importlib.util.find_spec("lsstcal_dask.storage.rubin_crosstalk") is None, reason="its format is not here"
)


def edit(path, **changes):
    """Change columns (None removes one) and entries (in capitals) of an ECSV file."""
    table = Table.read(path, format="ascii.ecsv")
    for name, value in changes.items():
        if (name.isupper() and name in table.meta) or name in ("MASK_PLANE", "LINEARITY_UNITS"):
            table.meta[name] = value
        elif value is None:
            table.remove_column(name)
        else:
            table[name] = value
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


def some_curves(detector, seed=1):
    random, count = np.random.default_rng(seed), len(detector.amplifiers)
    level = np.cumsum(random.uniform(1e3, 1e4, (count, 9)), axis=1)
    correction, error = random.normal(0, 30, (count, 9)), random.uniform(0, 1, (count, 9))
    level[:, 0] = correction[:, 0] = error[:, 0] = 0
    values = {"linearity_level": level, "linearity_correction": correction, "linearity_error": error}
    found = xr.Dataset({k: (("amplifier", "node"), v) for k, v in values.items()})
    found["linearity_ceiling"] = ("amplifier", random.uniform(5e4, 9e4, count))
    return found.assign_coords(amplifier=[a.name for a in detector.amplifiers])


def some_gains(detector, seed=1):
    random, count = np.random.default_rng(seed), len(detector.amplifiers)
    names = ("gain", "gain_error", "gain_fe55", "gain_pair", "read_noise", "read_noise_error")
    gains = labelled({name: random.uniform(1, 2, count) for name in names}, detector)
    turnoff = random.uniform(5e4, 1e5, (2, count))
    return PhotonTransfer(detector.name, gains, *turnoff, random.normal(0, 1e-6, (count, 4, 4)))


def same(a, b):
    """Whether two Datasets have the same variables, to the last bit."""
    return set(a.data_vars) == set(b.data_vars) and all(
        np.array_equal(a[name].values, b[name].values, equal_nan=True) for name in a.data_vars
    )


def test_boxes_by_hand():
    mask = np.zeros((6, 8), np.uint16)
    mask[:, 2:4] = 1  # two columns: one box
    mask[1, 6] = mask[2, 6] = 1
    mask[4, 5:8] = 4
    mask[4, 3] = 4  # another value splits the column beside it
    boxes, values = mask_to_boxes(mask)
    assert boxes.tolist() == [[2, 0, 1, 6], [3, 0, 1, 4], [6, 1, 1, 2], [3, 4, 1, 1], [5, 4, 3, 1], [3, 5, 1, 1]]
    assert values.tolist() == [1, 1, 1, 4, 4, 1]
    assert np.array_equal(boxes_to_mask(boxes, mask.shape, values), mask)


@given(arrays(np.uint16, (9, 7), elements=st.sampled_from([0, 0, 1, 2])))
def test_boxes_cover_each_pixel_once(mask):
    boxes, values = mask_to_boxes(mask)
    assert np.array_equal(boxes_to_mask(boxes, mask.shape, values), mask)
    assert sum(width * height for _, _, width, height in boxes.tolist()) == np.count_nonzero(mask)
    assert boxes.tolist() == sorted(boxes.tolist(), key=lambda box: (box[1], box[0]))


@pytest.mark.parametrize("detector", [E2V, ITL], ids=lambda d: d.vendor)
def test_defects_lie_where_the_geometry_says(detector):
    mask, kinds = defect_masks(
        [DefectList(detector.name, np.array([[100, 200, 1, 1]]), np.array([LISTED], np.uint16))], detector, MINI
    )
    found = []
    for i, name in enumerate(MINI.amplifier_names):
        for y, x in np.argwhere(mask[i] == BAD):
            amplifier = next(a for a in detector.amplifiers if a.name == name)
            found.append(tuple(int(v) for v in amplifier_to_ccd(amplifier, x, y)))
    assert found == [(100, 200)]
    assert kinds.sum() == LISTED
    ny, nx = detector.amplifiers[0].data.shape
    assert (mask[:, ny:] == MASK_BITS["NO_DATA"]).all()
    assert (mask[:, :, nx:] == MASK_BITS["NO_DATA"]).all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("detector", [E2V, ITL], ids=lambda d: d.vendor)
def test_defects_round_trip(tmp_path, detector, form):
    boxes = np.array([[3, 4, 1, 20], [60, 0, 5, detector.shape[0]], [0, detector.shape[0] - 1, detector.shape[1], 1]])
    kinds = np.array([1, 4, 0], np.uint16) | np.uint16(LISTED)
    lists = [
        DefectList(detector.name, boxes, kinds),
        DefectList(detector.name, boxes + np.array([9, 0, 0, 0]), kinds, "SUSPECT"),
    ]
    lists[1] = replace(lists[1], boxes=lists[1].boxes[:2], kinds=kinds[:2])
    mask, kind = defect_masks(lists, detector, MINI)
    paths = write_defects(tmp_path, mask, kind, (MINI, detector), DATE, form)
    assert [p.relative_to(tmp_path).parts[0] for p in paths] == ["defects", "suspect"]
    again = [read_defects(path, MINI) for path in paths]
    for one, other in zip(defect_masks(again, detector, MINI), (mask, kind), strict=True):
        assert np.array_equal(one, other)


def test_defects_of_fits_regions_count_from_one(tmp_path):
    table = Table({"X": [11.0, 21.0], "Y": [6.0, 30.5], "SHAPE": ["POINT", "BOX"], "R": [[1.0, 1.0], [3.0, 2.0]]})
    table.meta = header(MINI, E2V, ("defects", "", 2.0), DATE)
    write_file(tmp_path / "d.fits", table)
    assert read_defects(tmp_path / "d.fits", MINI).boxes.tolist() == [[10, 5, 1, 1], [19, 29, 3, 2]]
    table["SHAPE"] = ["POINT", "CIRCLE"]
    write_file(tmp_path / "d.fits", table)
    with pytest.raises(CalibrationError, match=r"d.fits: a region of shape CIRCLE: only BOX and POINT"):
        read_defects(tmp_path / "d.fits", MINI)


@pytest.mark.parametrize("form", FORMATS)
def test_linearizer_round_trip(tmp_path, form):
    curves = some_curves(E2V)
    curves["linearity_level"][3] = curves["linearity_correction"][3] = curves["linearity_error"][3] = np.nan
    curves["linearity_level"][5, 7:] = curves["linearity_correction"][5, 7:] = curves["linearity_error"][5, 7:] = np.nan
    write_linearizer(tmp_path / f"l.{form}", curves, (MINI, E2V), DATE)
    name, again, file = read_linearizer(tmp_path / f"l.{form}", MINI)
    assert (name, file.entry("CALIBDATE"), file.entry("DET_SER")) == (E2V.name, DATE, E2V.serial)
    assert same(again, curves)


def rubin_linearizer(path, kind, coefficients, **columns):
    """A file as Rubin's software writes it: the same curve for every amplifier."""
    count = len(E2V.amplifiers)
    table = Table({"AMPLIFIER_NAME": [a.name for a in E2V.amplifiers], "TYPE": [kind] * count})
    table["COEFFS"] = np.tile(coefficients, (count, 1))
    for name, value in columns.items():
        table[name] = [value] * count
    table.meta = header(MINI, E2V, ("LINEARIZER", "Gen3 Linearizer", 1.8), DATE)
    write_file(path, table)
    return path


def test_a_spline_of_rubins_is_subtracted(tmp_path):
    """corrected = x - spline(x), by its nodes."""
    path = rubin_linearizer(
        tmp_path / "l.ecsv", "Spline", [0.0, 1e3, 2e3, 5e3, 0.0, 2.0, -3.0, 7.0], LINEARITY_TURNOFF=4e3
    )
    _, curves, _ = read_linearizer(path, MINI)
    assert curves["linearity_level"].values[0].tolist() == [0, 1e3, 2e3, 5e3]
    assert curves["linearity_correction"].values[0].tolist() == [0, -2, 3, -7]
    assert not np.signbit(curves["linearity_correction"].values[:, 0]).any()
    assert (curves["linearity_ceiling"] == 4e3).all()
    assert np.isnan(curves["linearity_error"]).all()


@pytest.mark.parametrize(
    ("kind", "coefficients"),
    [("Squared", [3e-7]), ("Polynomial", [3e-7, -2e-12]), ("Polynomial", [1e-7, 1e-12, 1e-17])],
)
def test_polynomials_become_nodes_close_enough(tmp_path, kind, coefficients):
    path = rubin_linearizer(tmp_path / "l.ecsv", kind, coefficients, LINEARITY_MAX_SIGNAL=1.2e5)
    _, curves, _ = read_linearizer(path, MINI)
    from scipy.interpolate import Akima1DInterpolator

    own = curves.isel(amplifier=0)
    x = np.linspace(0, 1.2e5, 10_001)
    expected = sum(c * x ** (2 + i) for i, c in enumerate(coefficients))
    got = Akima1DInterpolator(own["linearity_level"].values, own["linearity_correction"].values)(x)
    assert np.abs(got - expected).max() < 2e-3  # it is checked to 1e-3 adu in the middles of its cells
    assert float(own["linearity_ceiling"]) == 1.2e5


def test_a_polynomial_without_a_limit_goes_to_full_scale(tmp_path):
    _, curves, _ = read_linearizer(rubin_linearizer(tmp_path / "l.ecsv", "Squared", [1e-8]), MINI)
    assert float(curves["linearity_level"].max()) == 2**18 - 1


def test_a_linearizer_that_corrects_nothing_is_a_level_curve(tmp_path):
    _, curves, _ = read_linearizer(rubin_linearizer(tmp_path / "l.ecsv", "None", [0.0]), MINI)
    assert curves["linearity_level"].values[0].tolist() == [0, (2**18 - 1) / 2, 2**18 - 1]
    assert not curves["linearity_correction"].values.any()
    counts = np.linspace(-10, 1e5, 7, dtype=np.float32)[None, None].repeat(16, 0)
    assert np.array_equal(linearize(counts, curves), counts)


@pytest.mark.parametrize("form", FORMATS)
def test_gains_round_trip(tmp_path, form):
    gains = some_gains(E2V)
    write_ptc(tmp_path / f"p.{form}", gains, MINI, DATE)
    again = read_ptc(tmp_path / f"p.{form}", MINI)
    assert same(again.gains, gains.gains)
    assert again.gains["gain"].attrs["units"] == "electron/adu"
    for name in ("turnoff", "turnoff_error", "a_matrix"):
        assert np.array_equal(getattr(again, name), getattr(gains, name))


def test_a_photon_transfer_curve_of_rubins(tmp_path):
    """Noise is in electrons there and in adu here; lags have x first there and y first here."""
    count = len(E2V.amplifiers)
    names = [a.name for a in E2V.amplifiers][::-1]  # rows in any order
    table = Table({"AMPLIFIER_NAME": names, "GAIN": np.linspace(1, 2, count), "NOISE": np.full(count, 6.0)})
    table["A_MATRIX"] = np.tile([1.0, 2.0, 3.0, 4.0], (count, 1))
    table.meta = header(MINI, E2V, ("PTC", "Gen3 Photon Transfer Curve", 2.6), DATE)
    write_file(tmp_path / "p.fits", table)
    found = read_ptc(tmp_path / "p.fits", MINI)
    assert np.array_equal(found.gains["gain"].values, np.linspace(1, 2, count)[::-1])
    assert np.array_equal(found.gains["read_noise"].values, 6.0 / np.linspace(1, 2, count)[::-1])
    assert found.a_matrix[0].tolist() == [[1, 3], [2, 4]]
    assert np.isnan(found.turnoff).all()


def some_transfer(detector, side=9, seed=4):
    """The product `ptc` of a CCD: 5 lags of it fitted, one amplifier without a curve."""
    random, amplifiers = np.random.default_rng(seed), [a.name for a in detector.amplifiers]
    found = xr.Dataset(coords={"amplifier": amplifiers})
    for name in ("gain", "read_noise", "gain_summed", "ptc_turnoff"):
        for end, size in (("", 2.0), ("_error", 0.01)):
            values = random.uniform(size / 2, size, len(amplifiers))
            found[name + end] = ("amplifier", values, {"units": "electron"} if name == "read_noise" else {})
    for name, scale in {"a_matrix": 1e-6, "c_matrix": 1e-12, "noise_matrix": 1.0}.items():
        for end, size in (("", scale), ("_error", scale / 30)):
            values = np.full((len(amplifiers), side, side), np.nan)
            values[:, :5, :5] = random.normal(0, size, (len(amplifiers), 5, 5)) if not end else size
            found[name + end] = (("amplifier", "lag_y", "lag_x"), values)
    for name in found.data_vars:
        found[name].values[3] = np.nan
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_photon_transfer_round_trip(tmp_path, form):
    """Every variable of the product comes back to the last bit."""
    transfer = some_transfer(E2V)
    write_transfer(tmp_path / f"p.{form}", transfer, (MINI, E2V), DATE)
    name, again, file = read_transfer(tmp_path / f"p.{form}", MINI)
    assert (name, file.entry("OBSTYPE")) == (E2V.name, "PTC")
    assert same(again, transfer)
    assert again["read_noise"].attrs["units"] == "electron"
    assert again["a_matrix"].dims == ("amplifier", "lag_y", "lag_x")


def test_matrices_of_rubins_photon_transfer(tmp_path):
    """Of a file without our columns: the curvature is B times A, lags have x first; there are no errors."""
    count, side = len(E2V.amplifiers), 3
    table = Table({"AMPLIFIER_NAME": [a.name for a in E2V.amplifiers], "GAIN": np.full(count, 1.5)})
    table["NOISE"], table["PTC_TURNOFF"] = np.full(count, 6.0), np.full(count, 8e4)
    area, ratio, noise = (np.arange(side**2) * scale for scale in (1e-6, 1e-7, 0.1))
    for column, values in (("A_MATRIX", area), ("B_MATRIX", ratio), ("NOISE_MATRIX", noise)):
        table[column] = np.tile(values, (count, 1))
    table.meta = header(MINI, E2V, ("PTC", "Gen3 Photon Transfer Curve", 2.6), DATE)
    write_file(tmp_path / "p.fits", table)
    _, found, _ = read_transfer(tmp_path / "p.fits", MINI)
    assert found["a_matrix"].values[0, 0, 1] == area[side]  # a lag in x is the first of Rubin's
    assert np.array_equal(found["c_matrix"].values[0].T.ravel(), ratio * area)
    assert np.array_equal(found["noise_matrix"].values[0].T.ravel(), noise)
    assert (found["ptc_turnoff"] == 1.2e5).all()
    assert (found["read_noise"] == 6.0).all()
    assert all(np.isnan(found[f"{name}_matrix_error"]).all() for name in ("a", "c", "noise"))
    table["NOISE_MATRIX"] = np.ones((count, 4))
    write_file(tmp_path / "p.fits", table)
    with pytest.raises(UnitsError, match="R22_S11: noise_matrix has other lags than A_MATRIX"):
        read_transfer(tmp_path / "p.fits", MINI)
    table["NOISE_MATRIX"] = np.ones((count, 5))
    write_file(tmp_path / "p.fits", table)
    with pytest.raises(InconsistentGeometry, match="NOISE_MATRIX has 5 values, which make no square"):
        read_transfer(tmp_path / "p.fits", MINI)


def some_pairs(detector, others=True, seed=2):
    random = np.random.default_rng(seed)
    amplifiers = [a.name for a in detector.amplifiers]
    sources = [f"{d.name}/{a.name}" for d in MINI.detectors for a in d.amplifiers]
    own = np.array([s.startswith(detector.name) for s in sources])
    found = xr.Dataset(coords={"amplifier": amplifiers, "source": sources})
    for name, scale in {"crosstalk": 1e-5, "crosstalk_quadratic": 1e-11}.items():
        value = random.normal(0, scale, (len(amplifiers), len(sources)))
        value[random.random(value.shape) < 0.3] = 0.0
        error = np.full(value.shape, scale / 10)
        unknown = (random.random(value.shape) < 0.1) | (~own & (not others))
        for key, array in ((name, value), (f"{name}_error", error)):
            found[key] = (("amplifier", "source"), np.where(unknown, np.nan, array))
    known = np.isfinite(found["crosstalk"]) & np.isfinite(found["crosstalk_quadratic"])
    return found.where(known)


@has_crosstalk
@pytest.mark.parametrize("others", [True, False])
def test_crosstalk_round_trip(tmp_path, others):
    pairs = some_pairs(E2V, others)
    if not others:
        places = {f"{E2V.name}/{a.name}": i for i, a in enumerate(E2V.amplifiers)}
        for name, i in places.items():  # an amplifier has no crosstalk with itself
            for key in pairs.data_vars:
                pairs[key].loc[{"source": name}] = np.where(np.arange(16) == i, 0.0, pairs[key].sel(source=name))
    written = write_crosstalk(tmp_path / "c.ecsv", pairs, (MINI, E2V), DATE)
    assert [p.name for p in written] == (["c.ecsv", "c.ic.ecsv", "c.sources.fits"] if others else ["c.ecsv"])
    name, again, _ = read_crosstalk(tmp_path / "c.ecsv", MINI)
    assert name == E2V.name
    again = again.reindex(amplifier=pairs["amplifier"].values, source=pairs["source"].values)
    assert same(again, pairs)


@has_crosstalk
def test_crosstalk_of_rubins_alone(tmp_path):
    """Without the file that only we read: pairs of the CCD with errors, linear couplings to others, NaN elsewhere."""
    pairs = some_pairs(E2V)
    for path in write_crosstalk(tmp_path / "c.ecsv", pairs, (MINI, E2V), DATE):
        if path.name.endswith(".sources.fits"):
            path.unlink()
    _, again, _ = read_crosstalk(tmp_path / "c.ecsv", MINI)
    own = [s for s in pairs["source"].values if s.startswith(E2V.name) and s != f"{E2V.name}/C10"]
    at = {"amplifier": ["C10"], "source": own}
    assert same(again.sel(at), pairs.sel(at))
    other = {"amplifier": pairs["amplifier"].values, "source": [s for s in pairs["source"].values if "S00" in s]}
    assert np.array_equal(again["crosstalk"].sel(other), pairs["crosstalk"].sel(other), equal_nan=True)
    assert np.isnan(again["crosstalk_error"].sel(other)).all()


def some_transmission(amplifiers=True):
    wavelength = np.linspace(320, 1100, 40, dtype=np.float32)
    random = np.random.default_rng(3)
    names = [a.name for a in E2V.amplifiers] if amplifiers else [""]
    kind, band = ("transmission_sensor", "") if amplifiers else ("transmission_filter", "g")
    return [Transmission(kind, E2V.name, name, band, wavelength, random.uniform(0, 100, 40)) for name in names]


def same_curves(a, b):
    return len(a) == len(b) and all(
        (one.kind, one.detector, one.amplifier, one.band) == (two.kind, two.detector, two.amplifier, two.band)
        and np.array_equal(one.wavelength, two.wavelength)
        and np.array_equal(one.efficiency, two.efficiency)
        for one, two in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("form", ["ecsv", "fits"])
@pytest.mark.parametrize("amplifiers", [True, False])
def test_transmission_round_trip(tmp_path, form, amplifiers):
    curves = some_transmission(amplifiers)
    write_transmission(tmp_path / f"t.{form}", curves, MINI, DATE)
    assert same_curves(read_transmission(tmp_path / f"t.{form}", MINI), curves)


def test_every_file_says_what_rubins_readers_ask_for(tmp_path):
    write_linearizer(tmp_path / "l.fits", some_curves(E2V), (MINI, E2V), DATE)
    write_ptc(tmp_path / "p.fits", some_gains(E2V), MINI, DATE)
    columns = {
        "l": ["AMPLIFIER_NAME", "TYPE", "COEFFS", "BBOX_X0", "BBOX_Y0", "BBOX_DX", "BBOX_DY", "INPUT_GAIN"],
        "p": [
            "AMPLIFIER_NAME",
            "PTC_FIT_TYPE",
            "COV_MATRIX_SIDE",
            "GAIN",
            "NOISE",
            "PTC_TURNOFF",
            "A_MATRIX",
            "B_MATRIX",
            "NOISE_MATRIX",
            "BAD_AMPS",
        ],
    }
    for name, obstype in {"l": "LINEARIZER", "p": "PTC"}.items():
        with fits.open(tmp_path / f"{name}.fits") as hdus:
            assert hdus[0].data is None
            assert set(columns[name]) <= set(hdus[1].columns.names)
            wanted = {"OBSTYPE": obstype, "RAFTNAME": "R22", "SLOTNAME": "S11", "DETECTOR": 4, "DET_NAME": "R22_S11"}
            wanted |= {"DET_SER": "MINI-004", "INSTRUME": "mini9", "CALIBDATE": DATE}
            assert {key: hdus[1].header[key] for key in wanted} == wanted
    assert f"calibDate={DATE}" in read_file(tmp_path / "p.fits").entry("CALIB_ID")


def test_yaml_of_rubins_has_a_tag_that_the_plain_loader_refuses(tmp_path):
    write_linearizer(tmp_path / "l.yaml", some_curves(E2V), (MINI, E2V), DATE)
    text = (tmp_path / "l.yaml").read_text()
    assert "metadata: !<lsst.daf.base.PropertyList>" in text
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text)
    (tmp_path / "l.yaml").write_text(text + "\nwhere: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(CalibrationError, match=r"l.yaml: cannot be read as YAML"):
        read_linearizer(tmp_path / "l.yaml", MINI)


LINES = [
    ("linearizer", {"DET_NAME": "R99_S99"}, InconsistentGeometry, "camera mini9 has no detector R99_S99"),
    ("linearizer", {"DETECTOR": 7}, InconsistentGeometry, "DETECTOR is 7, R22_S11 is 4"),
    ("linearizer", {"DET_SER": "MINI-003"}, InconsistentGeometry, "is of CCD MINI-003, in R22_S11 is MINI-004"),
    ("linearizer", {"INSTRUME": "LATISS"}, InconsistentGeometry, "is of LATISS, the store of mini9"),
    ("linearizer", {"LINEARIZER_VERSION": 9.0}, CalibrationError, "LINEARIZER_VERSION is 9.0, known are 1.0 to 1.8"),
    ("linearizer", {"LINEARIZER_VERSION": "x"}, CalibrationError, "LINEARIZER_VERSION is x, known are"),
    ("linearizer", {"OBSTYPE": "PTC"}, CalibrationError, "OBSTYPE is PTC, expected LINEARIZER"),
    ("linearizer", {"LINEARITY_UNITS": "electron"}, UnitsError, "LINEARITY_UNITS is 'electron', expected 'adu'"),
    ("linearizer", {"COEFFS": None}, CalibrationError, "R22_S11: has no column COEFFS"),
    ("ptc", {"GAIN": None}, CalibrationError, "R22_S11: has no column GAIN"),
    ("ptc", {"PTC_VERSION": 1.4}, CalibrationError, "PTC_VERSION is 1.4, known are 1.9 to 2.6"),
    ("ptc", {"GAIN": [-1.0] + 15 * [1.5]}, UnitsError, "R22_S11 C00: gain -1 electron/adu is not above zero"),
    ("ptc", {"GAIN": ["x"] + 15 * ["1.5"]}, CalibrationError, "R22_S11: column GAIN: 'x' is no number: correct it"),
    ("ptc", {"A_MATRIX": [["x"] * 4] * 16}, CalibrationError, "column A_MATRIX: 'x' is no number"),
    ("linearizer", {"linearity_ceiling": ["x"] * 16}, CalibrationError, "column linearity_ceiling: 'x' is no number"),
    ("linearizer", {"LINEARITY_MAX_SIGNAL": ["x"] * 16}, CalibrationError, "LINEARITY_MAX_SIGNAL: 'x' is no number"),
    ("linearizer", {"COEFFS": ["x"] * 16}, CalibrationError, "R22_S11 C00: COEFFS: 'x' is no number"),
    ("defects", {"x0": ["x"]}, CalibrationError, "column x0: 'x' is no number"),
    ("transmission", {"wavelength": ["x"] * 640}, CalibrationError, "column wavelength: 'x' is no number"),
    (
        "ptc",
        {"AMPLIFIER_NAME": ["C01", *[a.name for a in E2V.amplifiers[1:]]]},
        InconsistentGeometry,
        "C00: has no row",
    ),
    ("ptc", {"A_MATRIX": np.zeros((16, 3))}, InconsistentGeometry, "A_MATRIX has 3 values, which make no square"),
    ("defects", {"x0": [600.0]}, InconsistentGeometry, r"R22_S11: box 0 [600.0, 2.0, 3.0, 4.0]"),
    ("defects", {"x0": [0.5]}, InconsistentGeometry, "is not within the CCD of 512 x 256 pixels"),
    ("defects", {"width": [0.0]}, InconsistentGeometry, "is not within the CCD"),
    ("defects", {"MASK_PLANE": "SAT"}, CalibrationError, "MASK_PLANE is SAT: BAD or SUSPECT"),
    ("defects", {"y0": None}, CalibrationError, "has no column y0"),
    ("transmission", {"TYPE": "x", "OBSTYPE": "x"}, CalibrationError, "OBSTYPE is x, expected transmission_sensor"),
    ("transmission", {"wavelength": np.ones(640)}, UnitsError, "column wavelength is in '', expected 'nm'"),
    ("transmission", {"amp_name": ["C00"] * 640}, InconsistentGeometry, "R22_S11 C01: has no row"),
]


@pytest.mark.parametrize(("kind", "change", "error", "says"), LINES)
def test_a_bad_file_is_named_in_one_line(tmp_path, kind, change, error, says):
    path = tmp_path / "f.ecsv"
    if kind == "linearizer":
        write_linearizer(path, some_curves(E2V), (MINI, E2V), DATE)
    elif kind == "ptc":
        write_ptc(path, some_gains(E2V), MINI, DATE)
    elif kind == "transmission":
        write_transmission(path, some_transmission(), MINI, DATE)
    else:
        table = Table({"x0": [1.0], "y0": [2.0], "width": [3.0], "height": [4.0]})
        table.meta = header(MINI, E2V, ("defects", "", 2.0), DATE)
        write_file(path, table)
    read = {"linearizer": read_linearizer, "ptc": read_ptc, "defects": read_defects, "transmission": read_transmission}
    read[kind](path, MINI)
    with pytest.raises(error) as found:
        read[kind](edit(path, **change), MINI)
    assert says in str(found.value)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "coefficients", "says"),
    [
        ("LookupTable", [0.0, 0.0], "C00: a linearizer of type 'LookupTable' is not read"),
        ("Proportional", [1.0], "C00: a linearizer of type 'Proportional' is not read"),
        ("Spline", [0.0, 1.0, 2.0], "C00: COEFFS of a Spline are nodes and as many values"),
        ("Spline", [0.0, 2.0, 1.0, 0.0, 1.0, 2.0], "C00: the nodes of its Spline do not ascend"),
        ("Spline", [0.0, 1.0, 2.0, 5.0, 1.0, 2.0], "C00: its Spline begins at (0, 5) and not at (0, 0) adu"),
        ("Spline", [3.0, 4.0, 5.0, 0.0, 1.0, 2.0], "C00: its Spline begins at (3, 0)"),
        ("Polynomial", [np.nan], "C00: COEFFS has a value that is no number"),
        ("Polynomial", [0.0, 0.0, 0.0, 1e-3], "nodes miss its Polynomial by"),
    ],
)
def test_a_curve_that_cannot_be_read_is_named(tmp_path, kind, coefficients, says):
    path = rubin_linearizer(tmp_path / "l.ecsv", kind, coefficients)
    with pytest.raises(CalibrationError) as found:
        read_linearizer(path, MINI)
    assert str(found.value).startswith(f"{path}: R22_S11 {says}"[: len(str(path)) + 10])
    assert says in str(found.value)


def test_files_that_are_none(tmp_path):
    for name, content, says in [
        ("x.txt", "", "is none of .ecsv, .fits, .yaml"),
        ("x.ecsv", "nonsense", "cannot be read as ECSV"),
        ("x.fits", "nonsense", "cannot be read as FITS"),
        ("x.yaml", "a: [", "cannot be read as YAML"),
        ("y.yaml", "a: 1", "has no entry '.*': name a file of the kind that is imported"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(CalibrationError, match=rf"{name}: {says}"):
            read_linearizer(tmp_path / name, MINI)
    with pytest.raises(CalibrationError, match=r"none.fits: there is no such file"):
        read_file(tmp_path / "none.fits")
    with pytest.raises(CalibrationError, match=r"x.yaml: this kind is not read from YAML"):
        read_file(tmp_path / "x.yaml")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "i.fits")
    with pytest.raises(CalibrationError, match=r"i.fits: has no table: is it an image"):
        read_file(tmp_path / "i.fits")
    with pytest.raises(CalibrationError, match=r"t.yaml: cannot be written as .yaml"):
        write_file(tmp_path / "t.yaml", Table())
    with pytest.raises(InconsistentGeometry, match="curves of one kind and CCD go into a file"):
        write_transmission(tmp_path / "t.ecsv", some_transmission() + some_transmission(False), MINI, DATE)
    table = Table({"a": [1, 2]}, masked=True)
    table["a"].mask[0] = True
    table.meta = header(MINI, E2V, ("PTC", "", 2.6), DATE)
    table["AMPLIFIER_NAME"] = table["GAIN"] = table["a"]
    write_file(tmp_path / "m.ecsv", table)
    with pytest.raises(CalibrationError, match="column AMPLIFIER_NAME has empty entries"):
        read_ptc(tmp_path / "m.ecsv", MINI)


def test_wavelengths_that_do_not_ascend(tmp_path):
    one = some_transmission(False)[0]
    write_transmission(tmp_path / "t.ecsv", [replace(one, wavelength=one.wavelength[::-1])], MINI, DATE)
    with pytest.raises(CalibrationError, match=r"t.ecsv: R22_S11: its wavelengths do not ascend"):
        read_transmission(tmp_path / "t.ecsv", MINI)


@pytest.mark.real
def test_real_defects_and_quantum_efficiency(real_data, tmp_path):
    """Every file; its CCD and serial agree with the camera's; written and read again it is the same."""
    camera = load_camera("lsstcam")
    lists = [read_defects(path, camera) for path in sorted(real_data.glob("lsstcam/defects/*/*.ecsv"))]
    assert [one.detector for one in lists] == ["R01_S11", "R22_S11", "R22_S12", "R43_S01"]
    assert sum(len(one.boxes) for one in lists) == 0  # these lists are empty
    paths = sorted(real_data.glob("lsstcam/sensor_qe/*/*.ecsv"))
    assert len(paths) == 4
    for path in paths:
        curves = read_transmission(path, camera)
        assert len(curves) == 16
        assert all(30 < curve.efficiency.max() < 101 for curve in curves)  # percent
        for form in ("ecsv", "fits"):
            write_transmission(tmp_path / f"t.{form}", curves, camera, DATE)
            assert same_curves(read_transmission(tmp_path / f"t.{form}", camera), curves)


@pytest.mark.real
def test_real_filters(real_data, tmp_path):
    camera, band = load_camera("lsstcam"), "y"
    curves = read_transmission(real_data / f"lsstcam/filters/integrated_transmission_materion_{band}band.fits", camera)
    assert len({curve.detector for curve in curves}) == len(curves) == 189
    assert {curve.band for curve in curves} == {band}
    assert all(80 < curve.efficiency.max() < 101 for curve in curves)  # percent; measured, so a little above 100 too
    write_transmission(tmp_path / "t.ecsv", curves[:1], camera, DATE)
    assert same_curves(read_transmission(tmp_path / "t.ecsv", camera), curves[:1])


@pytest.mark.real
@has_crosstalk
def test_real_crosstalk(real_data):
    """Every file belongs to the CCD of its serial; wavefront sensors have eight amplifiers."""
    camera = load_camera("lsstcam")
    paths = sorted(real_data.glob("lsstcam/crosstalk/*/*.ecsv"))
    assert len(paths) == len(camera.detectors) == 205
    for path in paths[::4]:
        name, found, file = read_crosstalk(path, camera)
        assert name == path.parent.name.upper()
        assert file.entry("DET_SER") == camera.detector(name).serial
        assert found["crosstalk"].shape == 2 * (len(camera.detector(name).amplifiers),)
        assert 1e-6 < np.abs(found["crosstalk"]).max() < 1e-2


@pytest.mark.real
def test_real_gains_of_run_6(real_data):
    pytest.importorskip("pyarrow", reason="pyarrow reads parquet")
    camera = load_camera("lsstcam")
    found, _ = read_eo_summary(real_data / "lsstcam/run6_eo_summary.parquet", camera)
    assert len(found) == 205
    for vendor, expected in {"e2v": 1.476, "ITL": 1.671}.items():  # medians as published
        gains = [found[d.name]["gain"].values for d in camera.detectors if d.vendor == vendor and "_S" in d.name]
        assert abs(np.nanmedian(np.concatenate(gains)) - expected) < 0.05


def test_parquet_that_is_none(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow reads parquet")
    with pytest.raises(CalibrationError, match="there is no such file"):
        read_eo_summary(tmp_path / "x.parquet", MINI)
    (tmp_path / "x.parquet").write_text("nonsense")
    with pytest.raises(CalibrationError, match="cannot be read as parquet"):
        read_eo_summary(tmp_path / "x.parquet", MINI)
