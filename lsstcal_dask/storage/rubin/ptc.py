"""Gains as Rubin's software stores them (¶2): the photon transfer curve, schema ``Gen3 Photon Transfer Curve`` to 2.6.

One row for each amplifier: GAIN (electron/adu), NOISE (electron), PTC_TURNOFF (adu), and the matrices of the model of
covariances, Eq. 20 of Astier et al. 2019, as public ip_isr (``ptcDataset``) and cp_pipe (``cpPtcSolve``) write them:
A_MATRIX, the change of a pixel's area per electron; B_MATRIX, the c of that model over a (1/electron); NOISE_MATRIX
(electron**2); each of COV_MATRIX_SIDE_FULL_COV_FIT**2 values, flattened with the lag in x first; ours have the lag in y
first. Before 1.9 NOISE was in electron**2 in some of the fits: those are refused. Our own names (``read_noise`` in adu,
``c_matrix`` ..., flattened as theirs) stand in further columns, which Rubin's reader passes over, so that what was
measured here comes back to the last bit.
Also read: ``run6_eo_summary.parquet``, the table of the electro-optical tests of the LSST camera, gains only.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.storage.provenance import hash_file
from lsstcal_dask.storage.rubin.files import (
    RubinFile,
    amplifier_rows,
    check_units,
    check_version,
    column,
    find_detector,
    header,
    numbers,
    read_file,
    write_file,
)
from lsstcal_dask.variables import VARIABLES, attributes

__all__ = ["PhotonTransfer", "check_gains", "labelled", "read_eo_summary", "read_ptc", "write_ptc"]

_KIND: Final = ("PTC", "Gen3 Photon Transfer Curve", 2.6)
_VERSIONS: Final = (1.9, 2.6)

_YAML: Final = {
    "GAIN": "gain",
    "GAIN_ERR": "gainErr",
    "GAIN_UNADJUSTED": "gainUnadjusted",
    "NOISE": "noise",
    "NOISE_ERR": "noiseErr",
    "PTC_TURNOFF": "ptcTurnoff",
    "PTC_TURNOFF_SAMPLING_ERROR": "ptcTurnoffSamplingError",
    "A_MATRIX": "aMatrix",
    "B_MATRIX": "bMatrix",
    "NOISE_MATRIX": "noiseMatrix",
}
_UNITS: Final = {  # of matrices, and how astropy writes them
    "a": ("1/electron", "electron-1"),
    "c": ("1/electron**2", "1/electron2", "electron-2"),
    "noise": ("electron**2", "electron2"),
}
_OWN_MATRICES: Final = ("c_matrix", "a_matrix_error", "c_matrix_error", "noise_matrix_error")
_NUMBERS: Final = (  # what Rubin's reader wants of an amplifier besides, and we do not have
    "OVERSCAN_MEDIAN",
    "OVERSCAN_MEDIAN_SIGMA",
    "PTC_FIT_CHI_SQ",
    "PTC_ROLLOFF",
    "PTC_ROLLOFF_ERROR",
    "PTC_ROLLOFF_TAU",
    "PTC_ROLLOFF_TAU_ERROR",
)
_LISTS: Final = (  # the same, one value for each pair of flats: there is one pair, of nothing
    "RAW_EXP_TIMES",
    "RAW_MEANS",
    "RAW_VARS",
    "RAW_DELTAS",
    "ROW_MEAN_VARIANCE",
    "GAIN_LIST",
    "OVERSCAN_MEDIAN_LIST",
    "NOISE_LIST",
    "HIST_VARS",
    "HIST_CHI2_DOFS",
    "KS_PVALUES",
    "PHOTO_CHARGE",
    "PHOTO_CHARGE_DELTAS",
    "AMP_OFFSETS",
    "COVARIANCES",
    "COVARIANCES_MODEL",
    "COVARIANCES_SQRT_WEIGHTS",
    "FINAL_VARS",
    "FINAL_MODEL_VARS",
    "FINAL_MEANS",
    "INPUT_EXP_PAIR_MJD_START",
    "PTC_FIT_PARS",
    "PTC_FIT_PARS_ERROR",
)


@dataclass(frozen=True, eq=False)
class PhotonTransfer:
    """What a file says of one CCD; NaN where it says nothing."""

    detector: str
    gains: xr.Dataset  # (amplifier,): gain, gain_error, electron/adu; read_noise ..., adu; and our own further ones
    turnoff: np.ndarray  # (amplifier,) adu
    turnoff_error: np.ndarray
    a_matrix: np.ndarray  # (amplifier, lag_y, lag_x) 1/electron
    file: RubinFile | None = None
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)  # c_matrix, noise_matrix, errors, as `a_matrix`


def _from_yaml(content: Mapping[str, Any]) -> Table:
    names = [str(name) for name in content["ampNames"]]
    table = Table({"AMPLIFIER_NAME": names}, meta=dict(content["metadata"]))
    for name, key in _YAML.items():
        if key in content:
            table[name] = np.array([np.ravel(content[key][a]) for a in names], np.float64)
            if not name.endswith("_MATRIX"):
                table[name] = table[name][:, 0]
    for name in VARIABLES:
        if name in content:
            table[name] = [content[name][a] for a in names]
    return table


def _to_yaml(table: Table) -> dict[str, Any]:
    names = [str(name) for name in table["AMPLIFIER_NAME"]]
    keys = {**_YAML, **{name: name for name in table.colnames if name in VARIABLES}}
    found: dict[str, Any] = {"ptcFitType": "FULLCOVARIANCE", "ampNames": names, "badAmps": []}
    for name, key in keys.items():
        found[key] = dict(zip(names, np.asarray(table[name]).tolist(), strict=True))
    return found


def read_ptc(path: str | Path, camera: Camera) -> PhotonTransfer:
    """Read the gains of a CCD.

    Raises
    ------
    CalibrationError
        No such file, or a schema that is not known.
    InconsistentGeometry
        The CCD is not the one it should be, or an amplifier is missing.
    UnitsError
        A column is in another unit, or a gain is not above zero.
    """
    file = read_file(path, _from_yaml)
    check_version(file, _KIND[:1], _VERSIONS)
    detector = find_detector(file, camera)
    rows = amplifier_rows(file, list(column(file, "AMPLIFIER_NAME")), detector)

    def values(name: str, *units: str) -> np.ndarray:
        if name not in file.tables[0].colnames:
            return np.full(len(rows), np.nan)
        return numbers(file, name, units, where=detector.name)[rows]

    column(file, "GAIN", where=detector.name)
    gain = values("GAIN", "electron/adu", "electron/ADU")
    check_gains(gain, file.path, detector)
    found = {"gain": gain, "gain_error": values("GAIN_ERR", "electron/adu", "electron/ADU")}
    noise = {"read_noise": values("NOISE", "electron"), "read_noise_error": values("NOISE_ERR", "electron")}
    found |= {name: array / gain for name, array in noise.items() if np.isfinite(array).any()}
    turnoff, error = (values(name, "adu") for name in ("PTC_TURNOFF", "PTC_TURNOFF_SAMPLING_ERROR"))
    found |= _own(file, rows)
    area = _matrix(file, rows, "A_MATRIX", _UNITS["a"])
    area = np.full((len(rows), 1, 1), np.nan) if area is None else area
    found_gains = labelled(found, detector)
    return PhotonTransfer(detector.name, found_gains, turnoff, error, area, file, _matrices(file, rows, area))


def _own(file: RubinFile, rows: list[int]) -> dict[str, np.ndarray]:
    """Columns in our own names: variables of an amplifier."""
    table, found = file.tables[0], {}
    for name in table.colnames:
        if name in VARIABLES and VARIABLES[name].dims == ("detector", "amplifier"):
            check_units(file, name, str(table[name].unit or ""), VARIABLES[name].units[:1])
            found[name] = numbers(file, name)[rows]
    return found


def _matrices(file: RubinFile, rows: list[int], area: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices besides that of the areas; of the errors only those in our own columns."""
    found = {name: _matrix(file, rows, name, _UNITS[name.partition("_")[0]]) for name in _OWN_MATRICES}
    found["noise_matrix"] = _matrix(file, rows, "NOISE_MATRIX", _UNITS["noise"])
    ratio = _matrix(file, rows, "B_MATRIX", _UNITS["a"])
    if found["c_matrix"] is None and ratio is not None and ratio.shape == area.shape:
        found["c_matrix"] = ratio * area
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def _matrix(file: RubinFile, rows: list[int], name: str, units: tuple[str, ...]) -> np.ndarray | None:
    """A matrix of each amplifier (amplifier, lag_y, lag_x); None where the file has none."""
    if name not in file.tables[0].colnames:
        return None
    flat = numbers(file, name, units)[rows].reshape(len(rows), -1)
    side = round(flat.shape[1] ** 0.5)
    if side**2 != flat.shape[1]:
        raise InconsistentGeometry(f"{file.path}: {name} has {flat.shape[1]} values, which make no square")
    return np.ascontiguousarray(flat.reshape(-1, side, side).transpose(0, 2, 1))


def _flat(matrix: np.ndarray) -> np.ndarray:
    """The other way round."""
    return matrix.transpose(0, 2, 1).reshape(len(matrix), -1)


def check_gains(gain: np.ndarray, where: str, detector: Detector) -> None:
    """Refuse gains that are not above zero; raises UnitsError. NaN is an amplifier without one."""
    for amplifier, value in zip(detector.amplifiers, gain.tolist(), strict=True):
        if value <= 0 or np.isinf(value):
            raise UnitsError(
                f"{where}: {detector.name} {amplifier.name}: gain {value:g} electron/adu is not above zero: "
                f"write nan for an amplifier without one"
            )


def labelled(values: Mapping[str, np.ndarray], detector: Detector) -> xr.Dataset:
    """Dataset (amplifier,) of variables of the dictionary, in their first unit."""
    found = {name: ("amplifier", array, attributes(name)) for name, array in values.items()}
    return xr.Dataset(found, coords={"amplifier": [a.name for a in detector.amplifiers]})


def write_ptc(path: str | Path, ptc: PhotonTransfer, camera: Camera, date: str) -> None:
    """Write the gains of a CCD; ``date`` (ISO, UTC) is from which on they are valid."""
    detector = camera.detector(ptc.detector)
    gains = ptc.gains.sel(amplifier=[a.name for a in detector.amplifiers])
    count, side = len(detector.amplifiers), ptc.a_matrix.shape[1]

    def values(name: str) -> np.ndarray:
        return gains[name].values.astype(np.float64) if name in gains else np.full(count, np.nan)

    gain = values("gain")
    table = Table({"AMPLIFIER_NAME": [a.name for a in detector.amplifiers]})
    table["PTC_FIT_TYPE"] = ["FULLCOVARIANCE"] * count
    for name in ("COV_MATRIX_SIDE", "COV_MATRIX_SIDE_FULL_COV_FIT"):
        table[name] = np.full(count, side)
    table["INPUT_EXP_ID_PAIRS"] = np.full((count, 1, 2), -1)
    table["EXP_ID_MASK"] = table["EXP_ID_ROLLOFF_MASK"] = np.zeros((count, 1), bool)
    for name in _LISTS:
        table[name] = np.full((count, 1 if "MATRIX" not in name and "COV" not in name else side**2), np.nan)
    for name in _NUMBERS:
        table[name] = np.full(count, np.nan)
    table["NPIXEL_COVARIANCES"] = np.full(count, -1)
    table["BAD_AMPS"] = np.full((count, 1), "", "U3")
    found = {"GAIN": gain, "GAIN_ERR": values("gain_error"), "GAIN_UNADJUSTED": gain}
    found |= {"NOISE": _noise(gains, values, "read_noise"), "NOISE_ERR": _noise(gains, values, "read_noise_error")}
    found |= {"PTC_TURNOFF": ptc.turnoff, "PTC_TURNOFF_SAMPLING_ERROR": ptc.turnoff_error}
    for name, array in found.items():
        table[name] = array
    _add_matrices(table, ptc)
    for name in map(str, gains.data_vars):
        if name not in ("gain", "gain_error") and not _in_electrons(gains, name):
            table[name] = values(name)
            table[name].unit = gains[name].attrs.get("units") or None
    table.meta = header(camera, detector, _KIND, date) | {
        "CALIBCLS": "lsst.ip.isr.ptcDataset.PhotonTransferCurveDataset",
        "PTC_FIT_TYPE": "FULLCOVARIANCE",
    }
    write_file(path, table, _to_yaml)


def _in_electrons(gains: xr.Dataset, name: str) -> bool:
    """Whether this is a read noise as Rubin's file has it, who needs no column of ours."""
    return name.startswith("read_noise") and gains[name].attrs.get("units") == "electron"


def _noise(gains: xr.Dataset, values: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """Read noise or its error, electron."""
    return values(name) if name in gains and _in_electrons(gains, name) else values(name) * values("gain")


def _add_matrices(table: Table, ptc: PhotonTransfer) -> None:
    """Write Rubin's matrices, and ours in columns of their own."""
    unknown = np.full_like(ptc.a_matrix, np.nan)
    table["A_MATRIX"] = _flat(ptc.a_matrix)
    curved = ptc.matrices.get("c_matrix", unknown)
    table["B_MATRIX"] = _flat(np.divide(curved, ptc.a_matrix, out=unknown.copy(), where=ptc.a_matrix != 0))
    table["NOISE_MATRIX"] = _flat(ptc.matrices.get("noise_matrix", unknown))
    for name in (name for name in _OWN_MATRICES if name in ptc.matrices):
        table[name] = _flat(ptc.matrices[name])
        table[name].unit = VARIABLES[name].units[0]


def read_eo_summary(path: str | Path, camera: Camera) -> tuple[dict[str, xr.Dataset], RubinFile]:
    """Gains (amplifier,) of every CCD of the camera that is in the summary of the electro-optical tests.

    Raises
    ------
    CalibrationError
        pyarrow, which reads parquet, is not installed; or it is no such table.
    InconsistentGeometry
        An amplifier is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lengths of texts are not said
            table = Table.read(path, format="parquet")
    except FileNotFoundError:
        raise CalibrationError(f"{path}: there is no such file") from None
    except ImportError:
        raise CalibrationError(f"{path}: parquet needs pyarrow: pip install pyarrow") from None
    except Exception as error:  # of a parser of parsers anything may come
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise CalibrationError(f"{path}: cannot be read as parquet ({why}): copy it again") from error
    file = RubinFile(str(path), [table], hash_file(Path(path).read_bytes()))
    (places, names), gain = (column(file, name) for name in ("BAY_SLOT", "SEGMENT")), numbers(file, "PTC_GAIN")
    found = {}
    for detector in camera.detectors:
        own = np.flatnonzero(places.astype(str) == detector.name)
        if not len(own):
            continue
        rows = own[amplifier_rows(file, list(names[own]), detector)]
        check_gains(gain[rows], file.path, detector)
        found[detector.name] = labelled({"gain": gain[rows], "gain_error": np.full(len(rows), np.nan)}, detector)
    if not found:
        raise InconsistentGeometry(f"{path}: has no CCD of camera {camera.name}: use the store of its camera")
    return found, file
