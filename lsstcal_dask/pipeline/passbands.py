"""Filters of a camera, from a store's tables or from Rubin's files (¶11)."""

from pathlib import Path

import numpy as np

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import Camera
from lsstcal_dask.physics.passbands import Passband, passband_from_curves, passband_from_table
from lsstcal_dask.physics.spectra import Curve
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.storage.rubin.transmission import read_transmission
from lsstcal_dask.storage.tables import read_input

__all__ = ["rubin_passband", "rubin_quantum_efficiency", "store_passband"]


def store_passband(store: Store, band: str) -> Passband:
    """Filter as the camera team has delivered it to the store, ``inputs/filter-BAND``.

    Raises
    ------
    CalibrationError
        There is none, or as `passband_from_table`.
    InconsistentGeometry
        It is of a CCD that the camera does not have.
    """
    found = passband_from_table(read_input(store.url, f"filter-{band}"))
    known = {detector.name for detector in store.camera.detectors}
    if strange := [name for name in found.detector if name not in known]:
        raise InconsistentGeometry(
            f"filter {band}: camera {store.camera.name} has no detector {strange[0]}: correct it"
        )
    return found


def rubin_passband(path: str | Path, camera: Camera) -> Passband:
    """Filter in a file of Rubin's, one curve for each CCD; raises as `read_transmission` and `passband_from_curves`."""
    found = read_transmission(path, camera)
    curves = {c.detector: _fraction(c.wavelength, c.efficiency, f"{path} {c.detector}") for c in found}
    return passband_from_curves(found[0].band, curves, {d.name: d.center_mm for d in camera.detectors})


def rubin_quantum_efficiency(path: str | Path, camera: Camera) -> dict[str, Curve]:
    """Quantum efficiency of each amplifier of a CCD in a file of Rubin's; raises as `read_transmission`."""
    found = read_transmission(path, camera)
    return {c.amplifier: _fraction(c.wavelength, c.efficiency, f"{c.detector} {c.amplifier}") for c in found}


def _fraction(wavelength: np.ndarray, percent: np.ndarray, name: str) -> Curve:
    return Curve(np.asarray(wavelength, float), np.asarray(percent, float) / 100, name)
