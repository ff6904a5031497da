"""What the observatory writes about an exposure: its header table and the cards of its files."""

from functools import lru_cache
from typing import Any, Final

import numpy as np

from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing, Projection, Sinusoid
from lsstcal_dask.simulate.illumination import lamp_brightness, lamp_spectrum, laser_centre
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.photodiode import photodiode_charge
from lsstcal_dask.simulate.settings import RANGE

__all__ = ["DIODE", "cards", "header"]

_SEQUENCER: Final = "simulated.seq"
"""The program by which every CCD is read."""

DIODE: Final = 1e5
"""Pixels that would together receive as much light from the screen as the photodiode beside it."""


def header(site: Observatory, exposure: Exposure) -> dict[str, Any]:
    """Header table of an exposure: what was asked for, and what the photodiode measured."""
    source = exposure.source
    read_by = {"sequencer": _SEQUENCER} if site.camera.headers.get("sequencer") else {}
    return {
        "exposure_type": exposure.kind,
        "time": str(np.datetime_as_string(exposure.time, unit="us")),
        "exposure_time": float(exposure.exposure_time),
        "dark_time": float(exposure.dark_time),
        "filter": exposure.filter,
        "wavelength": float(getattr(source, "wavelength", np.nan)),
        "photodiode": _charge(site.seed, site.settings, exposure),
        **read_by,
    }


@lru_cache(maxsize=64)
def _charge(seed: int, settings: Any, exposure: Exposure) -> float:
    """Charge (C) of the photodiode; NaN where it is not used."""
    source = exposure.source
    if not isinstance(source, Lamp | Projection | Sinusoid):
        return float("nan")
    share = DIODE if isinstance(source, Lamp) else settings.projector.diode_share
    total = source.rate * exposure.exposure_time * share * lamp_brightness(seed, settings.lamp_drift, exposure)
    if np.isfinite(source.wavelength):
        wavelength, photons = np.array([laser_centre(seed, settings.laser, exposure)]), np.array([total])
    else:
        wavelength = np.arange(RANGE[0], RANGE[1])
        photons = total * lamp_spectrum(wavelength)
    return float(photodiode_charge(seed, settings.photodiode, exposure, photons, wavelength))


def cards(exposure: Exposure) -> dict[str, Any]:
    """Cards that the header table does not hold: where telescope or projector pointed, as asked for."""
    source = exposure.source
    found: dict[str, Any] = {}
    if isinstance(source, Pointing):
        found = {
            "RA": source.ra,
            "DEC": source.dec,
            "ELSTART": source.altitude,
            "AZSTART": source.azimuth,
            "AMSTART": round(source.airmass, 6),
            "ROTPA": source.rotator,
        }
    elif isinstance(source, Projection):
        found = {
            "CBPMASK": source.mask,
            "CBPAZ": source.azimuth,
            "CBPEL": source.elevation,
            "CBPROT": source.rotation,
            "CBPM1X": source.footprint[0],
            "CBPM1Y": source.footprint[1],
            "BANDWID": source.bandwidth,
        }
    elif isinstance(source, Sinusoid):
        found = {
            "SINPER": source.period,
            "SINANG": source.angle,
            "SINPHASE": source.phase,
            "CBPM1X": source.footprint[0],
            "CBPM1Y": source.footprint[1],
            "BANDWID": source.bandwidth,
        }
    elif isinstance(source, Lamp) and np.isfinite(source.wavelength):
        found = {"BANDWID": source.bandwidth}
    return {key: value if isinstance(value, str) else float(value) for key, value in found.items()}
