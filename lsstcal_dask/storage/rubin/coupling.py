"""Crosstalk of Rubin's files (¶5) as the product holds it: electron per electron, targets and sources by name.

The file itself is read and written by the module of its format. Couplings to CCDs that a file does not speak of are
unmeasured (NaN), not zero. Rubin's files have no room for the errors of couplings between CCDs: what they cannot say
of a product stands in ``<name>.sources.fits`` beside them, one row for each source, which our reader takes instead.
It says by their hash which files it belongs to: where those were changed since, neither is believed.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from astropy.table import Table

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.storage.delivered import hash_together
from lsstcal_dask.storage.rubin.files import (
    RubinFile,
    check_version,
    column,
    find_detector,
    header,
    read_file,
    write_file,
)
from lsstcal_dask.variables import attributes

__all__ = ["read_crosstalk", "read_together", "write_crosstalk"]

_KIND: Final = ("CROSSTALK", "Gen3 Crosstalk", 1.2)
_NAMES: Final = ("crosstalk", "crosstalk_error", "crosstalk_quadratic", "crosstalk_quadratic_error")


def _format() -> Any:
    return import_module("lsstcal_dask.storage.rubin_crosstalk")


def _amplifiers(detector: Detector, camera: Camera) -> list[str]:
    """Names in the order of Rubin's matrices, which is that of the camera's storage."""
    own = {a.name for a in detector.amplifiers}
    return [name for name in camera.amplifier_names if name in own]


def read_crosstalk(path: str | Path, camera: Camera) -> tuple[str, xr.Dataset, RubinFile]:
    """Read the coefficients of a CCD as target.

    Returns
    -------
    Name of the CCD; the variables of the product ``crosstalk`` (amplifier, source) over the sources that the file
    speaks of; the file.

    Raises
    ------
    CalibrationError
        No such file, or a schema that is not known.
    InconsistentGeometry
        The CCD is not the one it should be, or has another number of amplifiers.
    UnitsError
        Coefficients are per adu, and the file has no gains.
    """
    file = replace(read_file(path), hash=hash_together(read_together(path)))
    check_version(file, _KIND[:1], (_KIND[2], _KIND[2]))
    detector = find_detector(file, camera)
    names = _amplifiers(detector, camera)
    if _beside(path).exists():
        return detector.name, *_read_sources(file, names)
    found = _format().read_rubin_crosstalk(path)
    if found.linear.shape != (len(names), len(names)):
        raise InconsistentGeometry(
            f"{file.path}: {detector.name} has {len(names)} amplifiers, the file {found.linear.shape[0]}: it is the "
            f"file of another kind of CCD"
        )
    parts = [_dataset(_format().in_electrons(found), names, detector.name)]
    if found.others and found.units != "electron":
        raise CalibrationError(f"{file.path}: couplings between CCDs are per adu: ask for them per electron")
    for other, matrix in found.others.items():
        try:
            sources = _amplifiers(camera.detector(other), camera)
        except KeyError:
            raise InconsistentGeometry(f"{file.path}: camera {camera.name} has no detector {other}") from None
        empty = np.full(matrix.shape, np.nan)
        parts.append(_dataset((matrix, empty, empty, empty), names, other, sources))
    return detector.name, xr.concat(parts, "source").assign_attrs(unlisted=np.nan), file


def _dataset(
    values: tuple[np.ndarray, ...], names: list[str], detector: str, sources: list[str] | None = None
) -> xr.Dataset:
    labels = np.array([f"{detector}/{a}" for a in (sources or names)], object)
    found = {k: (("amplifier", "source"), v, attributes(k)) for k, v in zip(_NAMES, values, strict=True)}
    return xr.Dataset(found, coords={"amplifier": names, "source": ("source", labels)})


def _beside(path: str | Path) -> Path:
    return Path(path).with_suffix(".sources.fits")


def _of_rubin(path: str | Path) -> list[Path]:
    """A file and the couplings between CCDs beside it, if there are any."""
    between = Path(path).with_suffix(".ic.ecsv")
    return [Path(path), *([between] if between.exists() else [])]


def read_together(path: str | Path) -> list[Path]:
    """The files that `read_crosstalk` reads of a CCD: the one that is named, and those beside it."""
    return [*_of_rubin(path), *([_beside(path)] if _beside(path).exists() else [])]


def _read_sources(file: RubinFile, names: list[str]) -> tuple[xr.Dataset, RubinFile]:
    """All that is known of the targets of a CCD, from the file that only we read."""
    more = read_file(_beside(file.path))
    if more.entry("BELONGS") != hash_together(_of_rubin(file.path)):
        raise CalibrationError(
            f"{file.path}: is another file than the one {_beside(file.path).name} was written for: remove that to read "
            f"this one alone, or export both again"
        )
    labels = np.array([str(name) for name in column(more, "source")], object)
    if str(more.entry("TARGETS")).split() != names:
        raise InconsistentGeometry(f"{more.path}: its targets are {more.entry('TARGETS')}, not {' '.join(names)}")
    values = {k: (("amplifier", "source"), column(more, k).T, attributes(k)) for k in _NAMES}
    found = xr.Dataset(values, coords={"amplifier": names, "source": ("source", labels)})
    return found.assign_attrs(unlisted=np.nan), file


def _write_sources(path: Path, product: xr.Dataset, names: list[str]) -> None:
    """Write the sources of which anything is known, beside the file ``path`` that is there already."""
    values = {k: product[k].transpose("source", "amplifier").values.astype(float) for k in _NAMES}
    known = np.any([np.isfinite(array).any(axis=1) for array in values.values()], axis=0)
    table = Table({"source": [str(name) for name in product["source"].values[known]]})
    for name, array in values.items():
        table[name] = array[known]
    table.meta = {"TARGETS": " ".join(names), "BELONGS": hash_together(_of_rubin(path))}
    write_file(_beside(path), table)


def write_crosstalk(path: str | Path, product: xr.Dataset, place: tuple[Camera, Detector], date: str) -> list[Path]:
    """Write the coefficients of a CCD as target, per electron; the files that were written.

    Parameters
    ----------
    product : the variables of the product (amplifier, source) of that CCD.
    date : ISO, UTC, from which on they are valid.
    """
    camera, detector = place
    path, form = Path(path), _format()
    names = _amplifiers(detector, camera)
    product = product.sel(amplifier=names)
    at = {str(name): i for i, name in enumerate(product["source"].values)}
    own = product.isel(source=[at[f"{detector.name}/{a}"] for a in names])
    others = _others(product["crosstalk"].values.astype(np.float64), at, place)
    matrices = form.RubinCrosstalk(**_matrices(own), meta=_meta(place, date, len(names)), others=others)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (_beside(path), path.with_suffix(".ic.ecsv")):
        old.unlink(missing_ok=True)
    form.write_rubin_crosstalk(path, matrices)
    said = zip(_NAMES, form.in_electrons(matrices), strict=True)
    everything = not others and all(np.array_equal(own[k].values, v, equal_nan=True) for k, v in said)
    if everything and not _known_elsewhere(product, detector):
        return [path]
    _write_sources(path, product, names)
    return [path, *([path.with_suffix(".ic.ecsv")] if others else []), _beside(path)]


def _known_elsewhere(product: xr.Dataset, detector: Detector) -> bool:
    """Whether anything is known of sources of other CCDs, if only that they do not couple."""
    elsewhere = [str(name).partition("/")[0] != detector.name for name in product["source"].values]
    return any(bool(np.isfinite(product[name].values[:, elsewhere]).any()) for name in _NAMES)


def _matrices(own: xr.Dataset) -> dict[str, np.ndarray]:
    """Fields (target, source) of Rubin's file; zero and not valid where nothing is known."""
    linear, error, square, square_error = (own[name].values.astype(np.float64) for name in _NAMES)
    known = np.isfinite(linear)
    return {
        "linear": np.where(known, linear, 0.0),
        "linear_error": np.where(known, error, 0.0),
        "counts": np.zeros(linear.shape, np.int64),
        "valid": known & ~np.eye(len(linear), dtype=bool),  # as theirs: nothing was measured there
        "quadratic": np.where(known, np.nan_to_num(square), 0.0),
        "quadratic_error": np.where(known, square_error, 0.0),
        "gain_ratios": np.zeros(linear.shape),
        "gains": np.zeros(len(linear)),
    }


def _meta(place: tuple[Camera, Detector], date: str, count: int) -> dict[str, Any]:
    camera, detector = place
    return header(camera, detector, _KIND, date) | {
        "CALIBCLS": "lsst.ip.isr.crosstalk.CrosstalkCalib",
        "CROSSTALK_RATIOS_UNITS": "electron",
        "CROSSTALK_SHAPE": [count, count],
        "DETECTOR_NAME": detector.name,
        "DETECTOR_SERIAL": detector.serial,
        "HAS_CROSSTALK": True,
        "NAMP": count,
    }


def _others(values: np.ndarray, at: dict[str, int], place: tuple[Camera, Detector]) -> dict[str, np.ndarray]:
    """Linear coefficients (target, source) by source CCD, of those that couple; ``at`` is the place of a source."""
    camera, detector = place
    found = {}
    for other in camera.detectors:
        labels = [f"{other.name}/{a}" for a in _amplifiers(other, camera)]
        if other.name == detector.name or not all(label in at for label in labels):
            continue
        part = values[:, [at[label] for label in labels]]
        if np.nan_to_num(part).any():
            found[other.name] = part
    return found
