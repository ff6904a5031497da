"""The night sky of a visit, from the spectra that the calibration telescope has left in a store (♥2, SCIENCE 3.6)."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.products.sky import SkyFit, SkySettings, fit_sky
from lsstcal_dask.products.sky_model import Measured, Spectrograph, measured_from_table
from lsstcal_dask.products.sky_time import SkyVariation, sky_spectrum
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.tables import input_names, read_input

__all__ = ["measured_skies", "sky_of_visit"]

_PREFIX: Final = "spectrum-sky-"
_NEAR: Final = 4
"""Spectra before a visit and after it that are fitted for it: more add nothing, `kriging` gives them no weight."""


def _middle(header: dict[str, Any]) -> np.datetime64:
    """Middle of an exposure, UTC."""
    seconds = float(header.get("exposure_time") or 0.0)
    start = np.datetime64(str(header["time"]).removesuffix("Z"), "us")
    return np.datetime64(start + np.timedelta64(round(5e5 * seconds), "us"))


def _times(store: Store) -> dict[str, np.datetime64]:
    """Middle of every exposure of the store."""
    return {record.exposure: _middle(record.header) for record in read_records(store.url).values()}


def measured_skies(store: Store, near: np.datetime64 | None = None) -> list[Measured]:
    """Spectra of the sky in a store, by time; the few next to ``near`` (UTC) of its night if it is given.

    Raises
    ------
    InsufficientInputs
        There is none whose visit is in the store.
    """
    times = _times(store)
    names = [name for name in input_names(store.url) if name.startswith(_PREFIX)]
    there = [(times[visit], visit) for visit in (name.removeprefix(_PREFIX) for name in names) if visit in times]
    if not there:
        raise InsufficientInputs(
            f"{store.url} has no spectrum of the sky of a visit that it holds: ingest the visits, and write their "
            f"spectra to inputs/{_PREFIX}VISIT.ecsv"
        )
    there.sort()
    if near is not None:
        after = sum(time < near for time, _ in there)
        there = there[max(after - _NEAR, 0) : after + _NEAR]
    return [measured_from_table(read_input(store.url, f"{_PREFIX}{visit}"), visit, time) for time, visit in there]


def sky_of_visit(
    store: Store,
    visit: str,
    known: Spectrograph = Spectrograph(),
    settings: tuple[SkySettings, SkyVariation] = (SkySettings(), SkyVariation()),
    air: Callable[[str], Curve | None] = lambda visit: None,
) -> tuple[Spectrum, list[SkyFit]]:
    """Spectrum of the sky that a visit saw, lines as such with modes of its error, and the fits it rests on.

    Parameters
    ----------
    air : transmission of the air towards a visit (♥1), None where it is not known.

    Raises
    ------
    CalibrationError
        The store has no such visit.
    InsufficientInputs, StaleCalibration
        As `measured_skies` and `sky_spectrum`.
    """
    times = _times(store)
    if visit not in times:
        raise CalibrationError(f"{store.url} has no exposure {visit}: see 'lsstcal ls {store.url}'")
    fits = [fit_sky(m, known, settings[0], air(m.name)) for m in measured_skies(store, times[visit])]
    return sky_spectrum(times[visit], fits, settings[1]), fits
