"""What the observatory really is: a pure function of the seed and of what is asked for, evaluated when it is."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from astropy import units
from astropy.table import Table

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.atmosphere import air
from lsstcal_dask.simulate.bias import bias_truth, drift
from lsstcal_dask.simulate.brighter_fatter import area_coefficients
from lsstcal_dask.simulate.cosmics import cosmic_rays
from lsstcal_dask.simulate.crosstalk import crosstalk_truth
from lsstcal_dask.simulate.dark import ROW_TIME, blinking_rate
from lsstcal_dask.simulate.defects import KINDS, defect_list
from lsstcal_dask.simulate.deferred import TRAP, transfers
from lsstcal_dask.simulate.electronics import channel
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing, Projection, Sinusoid
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre, screen
from lsstcal_dask.simulate.linearity import linearity_truth
from lsstcal_dask.simulate.night import cloud_transmission, true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.projector import shot
from lsstcal_dask.simulate.response import quantum_efficiency
from lsstcal_dask.simulate.saturation import full_well, serial_full_well
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.sinusoids import fringes
from lsstcal_dask.simulate.spots import spot_table
from lsstcal_dask.simulate.temperature import ccd_temperature
from lsstcal_dask.simulate.thickness import thickness_maps

__all__ = [
    "QUANTITIES",
    "TABLES",
    "amplifier_table",
    "amplifiers",
    "at",
    "crosstalk_table",
    "defect_table",
    "exposure_table",
    "serial_trap_table",
    "truth_maps",
]


_LATE: Final = ("serial_cti", "parallel_cti", "offset")  # per transfer; of a pixel's charge: see `deferred`


def amplifiers(site: Observatory, detector: Detector) -> list[dict[str, Any]]:
    """Numbers of each channel of a CCD, in the order of ``detector.amplifiers``; units as in `channel`.

    The gain is that at the camera's nominal temperature.
    """
    seed, s = site.seed, site.settings
    wells = full_well(seed, s.saturation, detector)
    serial = serial_full_well(seed, s.serial_clamp, detector)
    late = transfers(seed, s.deferred, detector)
    rows = []
    for i, amplifier in enumerate(detector.amplifiers):
        numbers = asdict(channel(seed, s.electronics, site.camera, detector, i, site.camera.temperature))
        own = {"full_well": float(wells[i]), "serial_full_well": float(serial[i])}
        own |= {name: getattr(late[i], name) for name in _LATE}
        rows.append({"detector": detector.name, "amplifier": amplifier.name, **numbers, **own})
    return rows


def _number(name: str) -> Callable[..., Any]:
    def found(site: Observatory, detector: Detector, amplifier: str) -> float:
        return float(amplifiers(site, detector)[_index(detector, amplifier)][name])

    return found


def _index(detector: Detector, amplifier: str) -> int:
    names = [a.name for a in detector.amplifiers]
    if amplifier not in names:
        raise WrongUse(f"truth: {detector.name} has no amplifier {amplifier!r}: use {', '.join(names)}")
    return names.index(amplifier)


def _bias(site: Observatory, detector: Detector, amplifier: str) -> np.ndarray:
    return bias_truth(site.seed, site.settings.bias_structure, detector, _index(detector, amplifier))


def _linearity(site: Observatory, detector: Detector, amplifier: str, measured: Any) -> np.ndarray:
    return linearity_truth(site.seed, site.settings.nonlinearity, detector, _index(detector, amplifier), measured)


def _drift(site: Observatory, detector: Detector, amplifier: str, exposure: Exposure) -> np.ndarray:
    index = _index(detector, amplifier)
    return drift(site.seed, site.settings.overscan_drift, detector, index, exposure.number)


QUANTITIES: Final[dict[str, Callable[..., Any]]] = {
    **{
        name: _number(name)
        for name in ("gain", "read_noise", "row_noise", "pedestal", "full_well", "serial_full_well", *_LATE)
    },
    "bias": _bias,  # (y, x) adu, readout orientation
    "drift": _drift,  # (raw y,) adu
    "linearity": _linearity,  # true signal (adu) behind a measured one
    "serial_traps": lambda site, detector, amplifier: (
        transfers(site.seed, site.settings.deferred, detector)[_index(detector, amplifier)].traps
    ),
    "temperature": lambda site, detector, time: ccd_temperature(  # K
        site.seed, site.settings.temperature, site.camera, detector, time
    ),
    "dark": lambda site, detector: site.dark_rate(detector),  # (y, x) electron/s, nominal; a map as those below
    "sensitivity": lambda site, detector: site.sensitivity(detector),
    "corners": lambda site, detector: site.corners(detector),  # (2, y + 1, x + 1) px
    "light": lambda site, detector, exposure: light(site, exposure, detector),
    "quantum_efficiency": lambda site, detector, wavelength: quantum_efficiency(
        site.seed, site.settings.quantum_efficiency, detector, wavelength
    ),
    "area_coefficients": lambda site, detector: area_coefficients(site.settings.brighter_fatter, detector.vendor),
    "defects": lambda site, detector: defect_list(site.seed, site.settings.bad_pixels, detector),
    "crosstalk": lambda site: crosstalk_truth(site.seed, site.settings.crosstalk, site.camera),
    "cosmic_rays": lambda site, detector, exposure: cosmic_rays(  # (hit,) of dtype `cosmics.HIT`
        site.seed, site.settings.cosmic_rays, detector, exposure.number, exposure.dark_time, ROW_TIME
    )[1],
    "blinking_pixels": lambda site, detector, exposure: blinking_rate(  # (y, x) electron/s
        site.seed, site.settings.blinking_pixels, detector, exposure.number
    ),
    "stars": lambda site, detector, exposure: light(site, exposure, detector).points,  # (n, 5): see `Light`
    "spots": spot_table,  # (hole,) of dtype `spots.SPOT`
    "thickness": lambda site, detector: thickness_maps(  # silicon and epoxy (y, x) um
        site.seed, site.settings.fringing, detector
    ),
    "screen": lambda site, x, y, wavelength: screen(  # at focal-plane places, mm: relative
        site.seed, site.settings.screen, site.camera, x, y, wavelength
    ),
    "filter": lambda site, band, wavelength, x, y: transmission(
        site.seed, site.settings.filters, site.camera, band, wavelength, x, y
    ),
    "clouds": cloud_transmission,  # at focal-plane places, mm
    "air": lambda site, time: air(site.seed, site.settings.atmosphere, time),
}
"""What `at` knows: function of the observatory and of the coordinates, by name."""


def at(site: Observatory, quantity: str, **coords: Any) -> Any:
    """Truth of one quantity at its coordinates.

    Parameters
    ----------
    quantity : a key of `QUANTITIES`.
    coords : ``detector`` and ``amplifier`` by name, ``exposure``, ``wavelength`` (nm), ``time``, ``measured`` (adu),
        ``band`` of a filter, ``x`` and ``y``.

    Raises
    ------
    WrongUse
        No such quantity, detector or amplifier, or coordinates that it does not have or that are missing.
    """
    if quantity not in QUANTITIES:
        raise WrongUse(f"no truth of {quantity!r}: use {', '.join(QUANTITIES)}")
    asked = list(inspect.signature(QUANTITIES[quantity]).parameters)[1:]
    if set(coords) != set(asked):
        told = ", ".join(sorted(coords)) or "none"
        raise WrongUse(f"truth of {quantity} has the coordinates {', '.join(asked) or 'none'}: given are {told}")
    if isinstance(name := coords.get("detector"), str):
        coords = {**coords, "detector": _detector(site, name)}
    return QUANTITIES[quantity](site, **coords)


def _detector(site: Observatory, name: str) -> Detector:
    try:
        return site.camera.detector(name)
    except KeyError:
        raise WrongUse(f"truth: camera {site.camera.name} has no detector {name!r}") from None


def truth_maps(site: Observatory, detector: Detector) -> list[tuple[str, np.ndarray, str]]:
    """Name, values and unit of the maps of a CCD.

    Bias and dark are (amplifier, y, x) in readout orientation as products are, the others over the CCD.
    """
    camera = site.camera
    bias = np.zeros((len(camera.amplifier_names), *camera.image_shape), np.float32)
    for i, amplifier in enumerate(detector.amplifiers):
        ny, nx = amplifier.data.shape
        found = bias_truth(site.seed, site.settings.bias_structure, detector, i)
        bias[camera.amplifier_names.index(amplifier.name), :ny, :nx] = found
    return [
        ("bias", bias, "adu"),
        ("dark", split(site.dark_rate(detector), detector, camera, fill=0.0), "electron/s"),
        ("sensitivity", site.sensitivity(detector), ""),
        ("corners", site.corners(detector), "pixel"),
    ]


def amplifier_table(site: Observatory) -> Table:
    """Numbers of every channel."""
    table = Table([row for detector in site.camera.detectors for row in amplifiers(site, detector)])
    for name, unit in {"gain": "electron/adu", "pedestal": "adu", "full_scale": "adu"}.items():
        table[name].unit = unit
    for name in _LATE:
        table[name].unit = ""  # shares of a packet
    for name in ("read_noise", "row_noise", "full_well", "serial_full_well"):
        table[name].unit = "electron"
    return table


def crosstalk_table(site: Observatory) -> Table:
    """Coefficients of all pairs that couple: ``c`` in electrons of the target per electron of the source."""
    found = crosstalk_truth(site.seed, site.settings.crosstalk, site.camera)
    names = {d.id: d.name for d in site.camera.detectors}
    table = Table()
    for end in ("target", "source"):
        table[f"{end}_detector"] = np.array([names[i] for i in getattr(found, f"{end}_detector").tolist()], str)
        places = getattr(found, end).tolist()
        table[f"{end}_amplifier"] = np.array([site.camera.amplifier_names[i] for i in places], str)
    table["c"] = found.c
    table["c2"] = found.c2 / units.electron
    return table


def defect_table(site: Observatory, list_of: Callable[[Observatory, Detector], np.ndarray] | None = None) -> Table:
    """Defects of every CCD, after the name of their detector: all there are, or those of the list that is given."""
    list_of = list_of or QUANTITIES["defects"]
    names: list[str] = []
    found = []
    for detector in site.camera.detectors:
        own = list_of(site, detector)
        names += [detector.name] * len(own)
        found.append(own)
    table = Table(np.concatenate(found))
    table["kind"] = np.array(table["kind"], str)
    table.add_column(np.array(names, str), name="detector", index=0)
    for name in ("x0", "y0", "width", "height"):
        table[name].unit = "pixel"
    table.meta["kinds"] = list(KINDS)
    return table


def serial_trap_table(site: Observatory) -> Table:
    """Traps of every serial register, in the order in which packets meet them."""
    rows = [
        (detector.name, amplifier.name, *trap)
        for detector in site.camera.detectors
        for amplifier, own in zip(
            detector.amplifiers, transfers(site.seed, site.settings.deferred, detector), strict=True
        )
        for trap in own.traps.tolist()
    ]
    fields = TRAP.names or ()
    table = Table(rows=rows or None, names=("detector", "amplifier", *fields), dtype=("U16", "U16", "i4", *3 * ("f4",)))
    for name, unit in zip(fields, ("pixel", "electron", "", "electron"), strict=True):
        table[name].unit = unit or None
    return table


_OWN: Final = ("wavelength", "brightness", "azimuth", "elevation", "rotation", "contrast", "phase", "airmass")
_UNITS: Final = {
    "clouds": "mag",
    "wavelength": "nm",
    "azimuth": "deg",
    "elevation": "deg",
    "rotation": "deg",
    "phase": "deg",
    "pressure": "hPa",
    "ozone": "DU",
    "water": "mm",
}


def exposure_table(site: Observatory, exposures: Sequence[Exposure]) -> Table:
    """What each exposure really was."""
    table = Table([_exposure(site, one) for one in exposures])
    for name, unit in _UNITS.items():
        table[name].unit = unit
    return table


def _exposure(site: Observatory, exposure: Exposure) -> dict[str, Any]:
    """What an exposure really was, where that differs from its header."""
    source, seed, s = exposure.source, site.seed, site.settings
    row = {"exposure": exposure.name, "number": exposure.number, "exposure_type": exposure.kind}
    real = dict.fromkeys(_OWN, np.nan)
    if isinstance(source, Lamp | Projection | Sinusoid):
        real["brightness"] = lamp_brightness(seed, s.lamp_drift, exposure)
        if np.isfinite(source.wavelength):
            real["wavelength"] = laser_centre(seed, s.laser, exposure)
    if isinstance(source, Projection):
        real |= asdict(shot(seed, s.projector, exposure))
    if isinstance(source, Sinusoid):
        real |= asdict(fringes(seed, s.sinusoids, exposure))
    sky = dict.fromkeys(("pressure", "ozone", "water", "aerosol", "aerosol_index"), np.nan)
    if isinstance(source, Pointing):
        real["airmass"] = source.airmass
        sky = {name: getattr(true_air(site, exposure), name) for name in sky}
    real["clouds"] = np.nan
    if isinstance(source, Pointing):
        real["clouds"] = float(-2.5 * np.log10(cloud_transmission(site, exposure, 0.0, 0.0)))
    return {**row, **real, **sky}


TABLES: Final[dict[str, Callable[[Observatory], Table]]] = {
    "amplifiers": amplifier_table,
    "defects": defect_table,
    "crosstalk": crosstalk_table,
    "serial_traps": serial_trap_table,
}
"""What does not fill a map and belongs to no recipe, by name."""
