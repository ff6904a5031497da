import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.storage.rubin_crosstalk import (
    RubinCrosstalk,
    in_electrons,
    read_rubin_crosstalk,
    write_rubin_crosstalk,
)

N = 4
FIELDS = ("linear", "linear_error", "counts", "valid", "quadratic", "quadratic_error", "gain_ratios", "gains")


def _made(units="electron", **others):
    random = np.random.default_rng(1)
    matrices = [random.normal(0, 1e-4, (N, N)) for _ in range(5)]
    meta = {"CROSSTALK_RATIOS_UNITS": units, "NAMP": N, "DETECTOR": 94, "CROSSTALK_VERSION": 1.2, "HAS_CROSSTALK": True}
    return RubinCrosstalk(
        matrices[0],
        np.abs(matrices[1]),
        random.integers(1, 99, (N, N)),
        np.ones((N, N), bool),
        matrices[2] * 1e-6,
        np.abs(matrices[3]) * 1e-6,
        1 + matrices[4],
        random.uniform(1.4, 1.7, N),
        meta,
        others,
    )


def test_round_trip_is_exact(tmp_path):
    made = _made(R22_S12=np.random.default_rng(2).normal(0, 1e-5, (N, N)))
    made.valid[1, 2] = False
    write_rubin_crosstalk(tmp_path / "a.ecsv", made)
    found = read_rubin_crosstalk(tmp_path / "a.ecsv")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
        assert getattr(found, name).dtype == getattr(made, name).dtype
    assert found.meta == made.meta
    np.testing.assert_array_equal(found.others["R22_S12"], made.others["R22_S12"])


def test_the_file_holds_sources_before_targets(tmp_path):
    made = _made()
    write_rubin_crosstalk(tmp_path / "a.ecsv", made)
    flat = Table.read(tmp_path / "a.ecsv", format="ascii.ecsv")["CT_COEFFS"][0]
    assert flat[1 * N + 2] == made.linear[2, 1]  # source 1, target 2


def test_per_adu_becomes_per_electron():
    """1e-4 adu per adu from 2 to 1 electron/adu: 1e4 adu are 2e4 e- and make 1 adu, which is 1 e-: 5e-5."""
    made = _made("adu")
    made.linear[0, 1], made.quadratic[0, 1] = 1e-4, 1e-9
    gains = np.array([1.0, 2.0, 1.0, 1.0])
    linear, _, quadratic, _ = in_electrons(made, gains)
    assert linear[0, 1] == pytest.approx(5e-5)
    assert quadratic[0, 1] == pytest.approx(1e-9 / 4)  # 1e8 adu**2 make 0.1 adu; 4e8 e-**2 make 0.1 e-
    same = in_electrons(_made())[0]
    np.testing.assert_array_equal(same, _made().linear)
    made.valid[2, 3] = False
    assert np.isnan(in_electrons(made, gains)[0][2, 3])
    with pytest.raises(UnitsError, match="needs gains above zero"):
        in_electrons(made, np.zeros(N))


def test_bad_files(tmp_path):
    path = tmp_path / "a.ecsv"
    with pytest.raises(CalibrationError, match=r"a.ecsv: there is no such file"):
        read_rubin_crosstalk(path)
    path.write_text("what is this")
    with pytest.raises(CalibrationError, match="cannot be read as ECSV"):
        read_rubin_crosstalk(path)
    Table({"x": [1]}).write(path, format="ascii.ecsv", overwrite=True)
    with pytest.raises(CalibrationError, match=r"is no crosstalk of schema 1.2 \(CT_COEFFS\)"):
        read_rubin_crosstalk(path)
    write_rubin_crosstalk(path, _made("volt"))
    with pytest.raises(UnitsError, match="CROSSTALK_RATIOS_UNITS is 'volt'"):
        read_rubin_crosstalk(path)
    odd = _made()
    odd.meta["NAMP"] = 5
    write_rubin_crosstalk(path, odd)
    with pytest.raises(InconsistentGeometry, match="CT_COEFFS has 16 values, NAMP = 5 needs 25"):
        read_rubin_crosstalk(path)
    odd.meta["NAMP"] = "four"
    write_rubin_crosstalk(path, odd)
    with pytest.raises(CalibrationError, match="NAMP is 'four': write the number of amplifiers"):
        read_rubin_crosstalk(path)
    write_rubin_crosstalk(path, _made())
    table = Table.read(path, format="ascii.ecsv")
    table["CT_COEFFS"] = [["a"] * N * N]
    table.write(path, format="ascii.ecsv", overwrite=True)
    with pytest.raises(CalibrationError, match="CT_COEFFS holds what is no number"):
        read_rubin_crosstalk(path)
    table["CT_COEFFS"] = MaskedColumn(np.ones((1, N * N)), mask=np.arange(N * N)[None] == 3)
    table.write(path, format="ascii.ecsv", overwrite=True)
    with pytest.raises(CalibrationError, match="CT_COEFFS has empty entries: write nan"):
        read_rubin_crosstalk(path)
    write_rubin_crosstalk(path, _made())
    rows = Table({"IC_SOURCE_DET": ["R22_S12"], "IC_COEFFS": [[1.0, 2.0, 3.0]]})
    rows.write(path.with_suffix(".ic.ecsv"), format="ascii.ecsv")
    with pytest.raises(InconsistentGeometry, match="IC_COEFFS are not numbers for 4 amplifiers"):
        read_rubin_crosstalk(path)
    rows["IC_COEFFS"] = MaskedColumn(np.ones((1, N * N)), mask=np.arange(N * N)[None] == 3)
    rows.write(path.with_suffix(".ic.ecsv"), format="ascii.ecsv", overwrite=True)
    with pytest.raises(CalibrationError, match="IC_COEFFS has empty entries: write nan"):
        read_rubin_crosstalk(path)
    path.with_suffix(".ic.ecsv").unlink()
    Table({"x": [1]}).write(path.with_suffix(".ic.ecsv"), format="ascii.ecsv")
    with pytest.raises(CalibrationError, match="has no IC_SOURCE_DET and IC_COEFFS"):
        read_rubin_crosstalk(path)


@pytest.mark.real
def test_measured_matrices_of_lsstcam(real_data, tmp_path):
    """All of them, read and written; neighbours couple by about 1e-4, as their authors say."""
    paths = sorted((real_data / "lsstcam" / "crosstalk").glob("r*/*.ecsv"))
    assert len(paths) == 205
    for path in paths[::10]:
        found = read_rubin_crosstalk(path)
        write_rubin_crosstalk(tmp_path / "b.ecsv", found)
        again = read_rubin_crosstalk(tmp_path / "b.ecsv")
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        assert again.meta == found.meta
        if found.meta["NAMP"] == 16:
            assert 5e-5 < np.nanmedian(np.diag(in_electrons(found)[0], 1)) < 5e-4
