"""The night sky of a visit, from the spectra that the calibration telescope has left in a store (♥2, SCIENCE 3.6)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.products.sky import SkyFit, SkySettings, fit_sky
from lsstcal_dask.products.sky_cover import check_measured
from lsstcal_dask.products.sky_model import Measured, Spectrograph, measured_from_table
from lsstcal_dask.products.sky_time import SkyConfig, SkyVariation, nearest_of_night, same_night, sky_spectrum
from lsstcal_dask.storage.manifests import read_records
from lsstcal_dask.storage.tables import input_names, read_input

__all__ = ["Skies", "measured_skies"]

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


def measured_skies(store: Store, near: np.datetime64 | None = None, medium: str | None = None) -> list[Measured]:
    """Spectra of the sky in a store, by time; the few next to ``near`` (UTC) of its night if it is given.

    Parameters
    ----------
    medium : of wavelengths, air or vacuum, where tables do not say it.

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
    return [
        measured_from_table(read_input(store.url, f"{_PREFIX}{visit}"), visit, time, medium) for time, visit in there
    ]


class Skies:
    """The sky of the visits of a store; each spectrum is fitted once, however many visits it is near to.

    Parameters
    ----------
    config : its ``stale`` counts, not that of the variation.
    settings : how the sky is modelled, and how it changes.
    air : transmission of the air towards a visit (♥1), None where it is not known.
    """

    def __init__(
        self,
        store: Store,
        config: SkyConfig = SkyConfig(),
        known: Spectrograph = Spectrograph(),
        settings: tuple[SkySettings, SkyVariation] = (SkySettings(), SkyVariation()),
        air: Callable[[str], Curve | None] = lambda visit: None,
    ) -> None:
        self.store, self.config, self.known, self.air = store, config, known, air
        self.settings, self.variation = settings[0], replace(settings[1], stale=config.stale)
        self._fits: dict[str, SkyFit] = {}

    def time(self, visit: str) -> np.datetime64:
        """Middle of the exposure of a visit, UTC; CalibrationError where the store has no such visit."""
        times = _times(self.store)
        if visit not in times:
            raise CalibrationError(f"{self.store.url} has no exposure {visit}: see 'lsstcal ls {self.store.url}'")
        return times[visit]

    def of_visit(
        self, visit: str, stale: bool = False, passband: Nearby | None = None, limit: float = 1e-4
    ) -> tuple[Spectrum, list[SkyFit]]:
        """Spectrum of the sky that a visit saw, lines as such with modes of its error, and the fits it rests on.

        Parameters
        ----------
        stale : whether spectra of any time of its night are allowed.
        passband : of the filter for which it is wanted; None without a filter.
        limit : largest share of the light behind it that spectra may leave unmeasured, see `check_measured`.

        Raises
        ------
        CalibrationError
            The store has no such visit.
        InsufficientInputs, StaleCalibration
            As `measured_skies`, `check_measured` and `sky_spectrum`.
        """
        time = self.time(visit)
        measured = measured_skies(self.store, time, self.config.medium)
        times = np.array([one.time for one in measured])
        if self.config.mode == "nearest":
            measured = [measured[nearest_of_night(times, time)]]
        elif (own := same_night(times, time)).any():
            measured = [one for one, counts in zip(measured, own, strict=True) if counts]
        for one in measured:
            check_measured(one, passband, self.config.reach, self.known.resolution, limit)
        fits = [self._fit(one) for one in measured]
        return sky_spectrum(time, fits, self.variation, stale), fits

    def about(self, visit: str, fits: list[SkyFit]) -> dict[str, float]:
        """Numbers of the sky of a visit: minutes to the nearest spectrum, and the worst chi2 per degree of freedom."""
        time = self.time(visit)
        away = min(abs(fit.measured.time - time) / np.timedelta64(1, "m") for fit in fits)
        return {"sky_age_min": float(away), "sky_chi2": max(fit.chi2 / fit.degrees for fit in fits)}

    def _fit(self, measured: Measured) -> SkyFit:
        if measured.name not in self._fits:
            self._fits[measured.name] = fit_sky(measured, self.known, self.settings, self.air(measured.name))
        return self._fits[measured.name]
