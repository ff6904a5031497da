"""Filters of a camera, from a store's tables or from Rubin's files (¶11)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument import Camera, Detector
from lsstcal_dask.instrument.geometry import focal_to_ccd
from lsstcal_dask.physics.passbands import Passband, passband_from_curves, passband_from_table
from lsstcal_dask.physics.spectra import Curve
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.storage.rubin.transmission import read_transmission
from lsstcal_dask.storage.tables import read_input
from lsstcal_dask.variables import NOTE

__all__ = ["rubin_passband", "rubin_quantum_efficiency", "store_passband", "told_of_curves"]

_STRAIGHT: Final = 0.05  # rad: by so much the outline of the places of curves may bend inwards at a CCD on it
_REACH: Final = 1.5  # times the distance of a curve's place to the next: amid four in a rectangle it is less
_NAMED: Final = 3  # CCDs that a remark names


def store_passband(store: Store, band: str) -> Passband:
    """Filter as the camera team has delivered it to the store, ``inputs/filter-BAND``.

    Raises
    ------
    CalibrationError
        There is none, or it says that it is of another filter, or as `passband_from_table`.
    InconsistentGeometry
        It is of a CCD that the camera does not have, or that lies elsewhere.
    """
    found = passband_from_table(read_input(store.url, f"filter-{band}"))
    if found.band != band:
        raise CalibrationError(
            f"filter {band}: {store.url}/inputs/filter-{band}.ecsv says that it is of filter {found.band}: put that of "
            f"{band} there, or correct the entry filter of its meta"
        )
    known = {detector.name: detector for detector in store.camera.detectors}
    if strange := [name for name in found.detector if name not in known]:
        raise InconsistentGeometry(
            f"filter {band}: camera {store.camera.name} has no detector {strange[0]}: correct it"
        )
    for name, x, y in zip(found.detector, found.x, found.y, strict=True):
        if not _on(known[name], x, y):
            raise InconsistentGeometry(
                f"filter {band}: the place of {name} is ({x:g}, {y:g}) mm, but camera {store.camera.name} has that CCD "
                f"at ({known[name].center_mm[0]:g}, {known[name].center_mm[1]:g}) mm: correct x and y of the table"
            )
    return found


def _on(detector: Detector, x: float, y: float) -> bool:
    """Whether a place (mm) is on a CCD."""
    ny, nx = detector.shape
    column, row = focal_to_ccd(detector, x, y)
    return bool(-0.5 <= column <= nx - 0.5 and -0.5 <= row <= ny - 0.5)


def told_of_curves(passband: Passband, detectors: Sequence[Detector]) -> list[str]:
    """A remark on CCDs without a curve of their own: a warning where those of others do not surround or reach them."""
    without = [one for one in detectors if one.name not in passband.detector]
    if not without:
        return []
    own, count = len(detectors) - len(without), len(passband.detector)
    told = f"filter {passband.band}: curves of {own} of {len(detectors)} CCDs are known"
    if count == 1:
        return [f"{NOTE}{told}, that of {passband.detector[0]} is used for all"]
    places = np.stack([passband.x, passband.y], axis=1)
    far = [one.name for one in without if _beyond(places, one)]
    if not far:
        return [f"{NOTE}{told}, and the others lie between the {count} that have one"]
    more = f" and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
    return [
        f"{told}, and extrapolated to {', '.join(far[:_NAMED])}{more}, outside the places of the {count} "
        f"that have one or far from them: measure the filter there too"
    ]


def _beyond(places: np.ndarray, detector: Detector) -> bool:
    """Whether a CCD lies outside the places (n, 2) of curves, or far more from all of them than they lie apart."""
    away = places - np.array(detector.center_mm)
    apart = np.hypot(*(places.T[:, :, None] - places.T[:, None]))
    spacing = np.where(np.eye(len(places), dtype=bool), np.inf, apart).min(axis=1).max()
    angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    gap = np.diff(angles, append=angles[0] + 2 * np.pi).max()  # from within the places are seen all round
    return bool(np.hypot(*away.T).min() > _REACH * spacing or gap > np.pi + _STRAIGHT)


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
