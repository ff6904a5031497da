"""The product ``ptc`` as Rubin's photon transfer curves, and back (¶2): gain, noise, turnoff and covariance matrices.

Matrices of fewer lags than others of a product have NaN beyond; those of a file are all of one size.
"""

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.storage.rubin.files import RubinFile, amplifier_rows, column, numbers
from lsstcal_dask.storage.rubin.ptc import PhotonTransfer, read_ptc, write_ptc
from lsstcal_dask.variables import attributes

__all__ = ["MATRICES", "read_transfer", "write_transfer"]

MATRICES: Final = tuple(f"{name}_matrix{end}" for name in ("a", "c", "noise") for end in ("", "_error"))
"""Variables of the product with lags."""

_LAGS: Final = ("amplifier", "lag_y", "lag_x")


def read_transfer(path: str | Path, camera: Camera) -> tuple[str, xr.Dataset, RubinFile]:
    """Read the photon transfer of a CCD: its name, the variables of the product, the file.

    Read noise and turnoff are in electrons. NaN stands for what the file does not say: Rubin's have no errors of the
    matrices. Raises as `read_ptc`.
    """
    found = read_ptc(path, camera)
    file, detector = found.file, camera.detector(found.detector)
    assert file is not None
    rows = amplifier_rows(file, list(column(file, "AMPLIFIER_NAME")), detector)
    gain = found.gains["gain"].values
    values = {str(name): array.values for name, array in found.gains.data_vars.items()}
    values |= _electrons(file, rows)
    for name, adu in (("ptc_turnoff", found.turnoff), ("ptc_turnoff_error", found.turnoff_error)):
        values.setdefault(name, adu * gain)
    result = xr.Dataset(
        {name: ("amplifier", array, _attributes(name)) for name, array in values.items()},
        coords={"amplifier": [a.name for a in detector.amplifiers]},
    )
    unknown = np.full_like(found.a_matrix, np.nan)
    for name in MATRICES:
        matrix = found.a_matrix if name == "a_matrix" else found.matrices.get(name, unknown)
        if matrix.shape != unknown.shape:
            raise UnitsError(f"{file.path}: {detector.name}: {name} has other lags than A_MATRIX: correct the file")
        result[name] = (_LAGS, matrix, attributes(name))
    return found.detector, result, file


def _electrons(file: RubinFile, rows: list[int]) -> dict[str, np.ndarray]:
    """Read noise and its error as the file has them."""
    there = {"read_noise": "NOISE", "read_noise_error": "NOISE_ERR"}
    known = {name: key for name, key in there.items() if key in file.tables[0].colnames}
    return {name: numbers(file, key, ("electron",))[rows] for name, key in known.items()}


def _attributes(name: str) -> dict[str, str]:
    return attributes(name, "electron") if name.startswith("read_noise") else attributes(name)


def write_transfer(path: str | Path, own: xr.Dataset, place: tuple[Camera, Detector], date: str) -> None:
    """Write the photon transfer of a CCD; ``date`` (ISO, UTC) is from which on it is valid.

    Parameters
    ----------
    own : the variables of the product (amplifier, ...).
    """
    camera, detector = place
    own = own.sel(amplifier=[a.name for a in detector.amplifiers])
    names = [str(name) for name, array in own.data_vars.items() if array.dims == ("amplifier",)]
    gain = own["gain"].values
    turnoff, error = (own[name].values / gain for name in ("ptc_turnoff", "ptc_turnoff_error"))
    matrices = {name: own[name].values for name in MATRICES if name in own and name != "a_matrix"}
    found = PhotonTransfer(detector.name, own[names], turnoff, error, own["a_matrix"].values, matrices=matrices)
    write_ptc(path, found, camera, date)
