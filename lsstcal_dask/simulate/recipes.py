"""What is taken: lists of exposures for the inputs ¶1-¶10 and for science visits (Lupton 2016, Appendix A)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.simulate import filters, scans
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing, Projection, XRays
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.masks import MASKS, mask
from lsstcal_dask.simulate.optics import mirrors
from lsstcal_dask.simulate.response import quantum_efficiency
from lsstcal_dask.simulate.settings import RANGE, Settings
from lsstcal_dask.simulate.sinusoids import LONGEST
from lsstcal_dask.simulate.throughput import LINE_REACH

__all__ = [
    "RECIPES",
    "CalibrationDay",
    "FlatCube",
    "Night",
    "Plan",
    "Projections",
    "SinusoidScan",
    "exposures",
    "members",
]

_WEAK: Final = 0.02  # electrons per photon below which the laser cannot make up for what silicon does not see
_DAY: Final = np.datetime64("2026-07-01T20:00:00", "ms")
_READOUT: Final = 5.0  # s, from the end of an exposure to the start of the next
_PLACES: Final = {
    "calibration-day": (1, 0),
    "flat-cube": (100_001, 10),
    "cbp": (200_001, 20),
    "sinusoids": (300_001, 30),
    "night": (400_001, 40),
}
"""Number of the first exposure of each recipe and the days after `_DAY` on which it begins.

Exposures of two recipes in one store are so never confused, and visits come after what calibrates them.
"""
_LAST: Final = "night"  # of the recipes: none begins after it
_MOST: Final = 100_000  # exposures of a recipe
_HOUR: Final = 3600.0  # s
_BRIGHTEST: Final = 1e7  # electrons, fifty times what a pixel holds
_FINEST: Final = 0.005  # nm, of steps in wavelength
_LONGEST: Final = np.timedelta64(10, "D")
_NARROW, _WIDE = 1.0, 20.0  # nm, lines of ¶10a, ¶10d and ¶10f, and of the other sets
_CADENCE: Final = 120  # s between visits
_DUSK: Final = 4 * 3600  # s after the start of a day of exposures


def _fitting(width: float) -> tuple[float, float]:
    """First and last wavelength, nm, at which a line of that width lies within the model."""
    return RANGE[0] + LINE_REACH * width, RANGE[1] - LINE_REACH * width


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CalibrationDay(_Part):
    """Biases, darks, 55Fe, a ladder of pairs of flats, broadband flats through every filter (¶1, ¶2, ¶4, ¶8)."""

    biases: int = Field(10, ge=0, le=_MOST)
    darks: int = Field(6, ge=0, le=_MOST)
    dark_exposure: float = Field(300.0, gt=0, le=_HOUR)  # s
    xrays: int = Field(6, ge=0, le=_MOST)
    xray_rate: float = Field(5e-4, ge=0, le=1)  # hits per pixel and second
    xray_exposure: float = Field(10.0, gt=0, le=_HOUR)  # s
    pairs: int = Field(12, ge=0, le=_MOST)
    faintest: float = Field(500.0, ge=1)  # electrons in a typical pixel of the first pair
    brightest: float = Field(90_000.0, gt=0, le=_BRIGHTEST)  # of the last
    ladder_filter: str = "r"
    flats: int = Field(2, ge=0, le=_MOST)  # through every filter
    level: float = Field(40_000.0, gt=0, le=_BRIGHTEST)  # electrons in a typical pixel
    flat_exposure: float = Field(5.0, gt=0, le=_HOUR)  # s, of the brightest; the others are shorter in proportion
    filters: str = filters.FILTERS

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.brightest < self.faintest:
            raise ValueError(f"brightest {self.brightest:g} electrons lies below faintest {self.faintest:g}")
        return self


class FlatCube(_Part):
    """Monochromatic flats without a filter (¶9)."""

    first: float = Field(320.0, ge=RANGE[0], le=RANGE[1])  # nm
    last: float = Field(1080.0, ge=RANGE[0], le=RANGE[1])
    step: float = Field(1.0, ge=_FINEST)  # nm
    bandwidth: float = Field(1.0, gt=0, le=50)  # nm
    each: int = Field(1, ge=1, le=_MOST)  # exposures of a wavelength
    level: float = Field(40_000.0, gt=0, le=_BRIGHTEST)  # electrons in a typical pixel, where silicon allows
    exposure_time: float = Field(10.0, gt=0, le=_HOUR)  # s

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last {self.last:g} nm lies below first {self.first:g} nm")
        low, high = _fitting(self.bandwidth)
        if self.first < low or self.last > high:
            raise ValueError(
                f"lines {self.bandwidth:g} nm wide at {self.first:g} to {self.last:g} nm reach beyond the model: "
                f"use {low:g} to {high:g} nm, or a smaller bandwidth"
            )
        return self


class Projections(_Part):
    """The Collimated Beam Projector (¶10a-¶10f)."""

    sets: str = "abcdef"
    mask: str = "grid"
    spots: int | None = Field(None, ge=1)  # holes of the mask that are open; all by default
    first: float = Field(305.0, ge=_fitting(_NARROW)[0], le=_fitting(_NARROW)[1])  # nm, of ¶10a, ¶10d and ¶10e
    last: float = Field(1098.0, ge=_fitting(_NARROW)[0], le=_fitting(_NARROW)[1])
    fine_step: float = Field(1.0, ge=_FINEST)  # nm, of ¶10a and ¶10d
    coarse_step: float = Field(100.0, ge=_FINEST)  # nm, of ¶10b and ¶10c
    filter_step: float = Field(20.0, ge=_FINEST)  # nm, of ¶10e
    filters: str = filters.FILTERS
    dithers: int = Field(5, ge=1, le=_MOST)
    footprints: int = Field(6, ge=1, le=_MOST)
    exposure_time: float = Field(10.0, gt=0, le=_HOUR)  # s
    level: float = Field(40_000.0, gt=0, le=_BRIGHTEST)  # electrons in a typical pixel of a spot

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last {self.last:g} nm lies below first {self.first:g} nm")
        if self.spots is not None and "/" in self.mask:
            raise ValueError(f"mask {self.mask!r} and spots {self.spots} both say how many holes are open: use one")
        return self


class SinusoidScan(_Part):
    """Sinusoids projected onto the CCDs (Sec. 2.11): every period and orientation at every phase."""

    phases: int = Field(4, ge=4, le=1000)  # evenly over a period
    orientations: tuple[float, ...] = (0.0, 90.0)  # deg, in which the phase grows, from x to y of the focal plane
    periods: tuple[float, ...] = (3.2, 5.0, 10.0)  # px
    each: int = Field(1, ge=1, le=_MOST)  # exposures of a phase
    wavelength: float = 550.0  # nm: far from where silicon has fringes of its own
    bandwidth: float = Field(1.0, gt=0, le=50)  # nm
    level: float = Field(40_000.0, gt=0, le=_BRIGHTEST)  # electrons in a typical pixel, mean over a period
    exposure_time: float = Field(10.0, gt=0, le=_HOUR)  # s

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.periods or not all(2 < period <= LONGEST for period in self.periods):
            raise ValueError(
                f"periods {self.periods}: give some, above the 2 px that pixels can tell apart and up to {LONGEST:g} px"
            )
        if len({round(angle % 180, 6) for angle in self.orientations}) < 2:
            raise ValueError(f"orientations {self.orientations}: give two or more that differ, not by 180 deg")
        low, high = _fitting(self.bandwidth)
        if not low <= self.wavelength <= high:
            raise ValueError(
                f"a line {self.bandwidth:g} nm wide at {self.wavelength:g} nm reaches beyond the model: "
                f"use {low:g} to {high:g} nm, or a smaller bandwidth"
            )
        return self


class Night(_Part):
    """Visits, each two minutes after the one before, through the filters in turn."""

    nights: int = Field(1, ge=1, le=400)
    visits: int = Field(12, ge=1, le=360)  # of a night, which has 12 hours
    filters: str = Field(filters.FILTERS, min_length=1)
    exposure_time: float = Field(30.0, gt=0, le=110)  # s
    fields: int = Field(3, ge=1, le=6)  # on the sky, visited in turn


class Plan(_Part):
    """Table ``[recipe]`` of a configuration: one table for each recipe."""

    calibration_day: CalibrationDay = CalibrationDay()
    flat_cube: FlatCube = FlatCube()
    cbp: Projections = Projections()
    sinusoids: SinusoidScan = SinusoidScan()
    night: Night = Night()


def exposures(name: str, plan: Plan, settings: Settings, camera: Camera) -> list[Exposure]:
    """Exposures of a recipe in the order in which they are taken.

    Parameters
    ----------
    name : a key of `RECIPES`, or ``all`` of them.
    plan : how many, how bright.
    settings : of the observatory, from which the brightness of the lamps follows.

    Raises
    ------
    WrongUse
        No such recipe, filter or mask, more spots than the mask has holes, or no exposure, or too many.
    """
    return [exposure for one in members(name) for exposure in _numbered(one, RECIPES[one](plan, settings, camera))]


def members(name: str) -> tuple[str, ...]:
    """Recipes that a name stands for; raises as `exposures`."""
    if name != "all" and name not in RECIPES:
        raise WrongUse(f"no recipe {name!r}: use {', '.join([*RECIPES, 'all'])}")
    return tuple(RECIPES) if name == "all" else (name,)


def _numbered(name: str, taken: Iterator[Exposure]) -> list[Exposure]:
    """Exposures of a recipe one after the other; visits say themselves when they are."""
    first, days = _PLACES[name]
    start: Any = _DAY + np.timedelta64(days, "D")
    time = start
    found: list[Exposure] = []
    previous = None
    for number, exposure in enumerate(taken, first):
        at = time if exposure.time == _DAY else start + (exposure.time - _DAY)
        one = replace(exposure, name=_name(at, number), number=number, time=at)
        found.append(replace(one, previous=previous))
        previous = one
        time = at + np.timedelta64(round(1000 * (exposure.dark_time + _READOUT)), "ms")
        if len(found) > _MOST:
            raise WrongUse(f"recipe {name} takes more than {_MOST} exposures: ask for fewer")
        if name != _LAST and time - start > _LONGEST:
            raise WrongUse(
                f"recipe {name} takes longer than {_LONGEST.astype(int)} days, when the next one begins: "
                f"ask for fewer exposures, or for shorter ones"
            )
    if not found:
        raise WrongUse(f"recipe {name} takes no exposure: ask for some")
    return found


def _name(time: np.datetime64, number: int) -> str:
    """Exposure id: its day of observation, which begins at noon UTC, and its number."""
    day = (time - np.timedelta64(12, "h")).astype("datetime64[D]")
    return f"MC_S_{str(day).replace('-', '')}_{number:06d}"


def _one(kind: str, exposure_time: float, source: Any = None, filter: str = "none") -> Exposure:
    """One exposure whose name, number and time are still to be given."""
    dark_time = exposure_time + 0.5 if exposure_time else 0.0
    return Exposure("", 0, kind, _DAY, exposure_time, dark_time, filter, source)


def _filters(names: Iterable[str]) -> None:
    """Refuse what is no filter."""
    for name in names:
        filters.check_band(name)


def lamp_rate(settings: Settings, camera: Camera, level: float, seconds: float, band: str) -> float:
    """Photons/s in a pixel from the broadband lamp that make a pixel on the axis ``level`` electrons."""
    wavelength = np.arange(RANGE[0], RANGE[1], 2.0)
    passed = filters.transmission(0, settings.filters, camera, band, wavelength, 0.0, 0.0, None, settings.vignetting)
    return level / seconds / float((lamp_spectrum(wavelength) * passed * _seen(settings, camera, wavelength)).sum() * 2)


def _seen(settings: Settings, camera: Camera, wavelength: np.ndarray) -> np.ndarray:
    """Electrons of a photon in front of a telescope without filter, on a nominal CCD."""
    efficiency = settings.quantum_efficiency.model_copy(update={"scatter": 0.0, "tilt": 0.0})
    return mirrors(settings.mirrors, wavelength) * quantum_efficiency(0, efficiency, camera.detectors[0], wavelength)


def _calibration_day(plan: Plan, settings: Settings, camera: Camera) -> Iterator[Exposure]:
    day = plan.calibration_day
    _filters([day.ladder_filter, *day.filters])
    yield from (_one("bias", 0.0) for _ in range(day.biases))
    yield from (_one("dark", day.dark_exposure) for _ in range(day.darks))
    yield from (_one("fe55", day.xray_exposure, XRays(day.xray_rate)) for _ in range(day.xrays))
    rate = lamp_rate(settings, camera, day.brightest, day.flat_exposure, day.ladder_filter)
    for level in np.geomspace(day.faintest, day.brightest, day.pairs):
        seconds = day.flat_exposure * float(level) / day.brightest
        yield from (_one("flat", round(seconds, 6), Lamp(rate), day.ladder_filter) for _ in range(2))
    for band in day.filters:
        rate = lamp_rate(settings, camera, day.level, day.flat_exposure, band)
        yield from (_one("flat", day.flat_exposure, Lamp(rate), band) for _ in range(day.flats))


def _flat_cube(plan: Plan, settings: Settings, camera: Camera) -> Iterator[Exposure]:
    cube = plan.flat_cube
    wavelengths = np.arange(cube.first, cube.last + 1e-6, cube.step)
    for wavelength, share in zip(wavelengths, _seen(settings, camera, wavelengths), strict=True):
        rate = cube.level / cube.exposure_time / max(float(share), _WEAK)
        lamp = Lamp(rate, min(float(wavelength), cube.last), cube.bandwidth)
        yield from (_one("flat", cube.exposure_time, lamp) for _ in range(cube.each))


def _night(plan: Plan, settings: Settings, camera: Camera) -> Iterator[Exposure]:
    night = plan.night
    _filters(night.filters)
    for day in range(night.nights):
        for visit in range(night.visits):
            place = visit % night.fields
            altitude = 40 + 45 * np.sin(np.pi * (visit + 1) / (night.visits + 1)) - 5 * place
            pointing = Pointing(150.0 + 7 * place, -30.0 + 5 * place, float(altitude), float(60 + visit), 0.0)
            one = _one("science", night.exposure_time, pointing, night.filters[visit % len(night.filters)])
            wait = np.timedelta64(86_400 * day + _DUSK + _CADENCE * visit, "s")
            yield replace(one, time=_DAY + wait)


def _projections(plan: Plan, settings: Settings, camera: Camera) -> Iterator[Exposure]:
    cbp = plan.cbp
    if unknown := sorted(set(cbp.sets) - set("abcdef")):
        raise WrongUse(f"recipe cbp: no set {unknown[0]!r} (of ¶10): use letters of abcdef")
    _filters(cbp.filters)
    grid = cbp.mask if cbp.spots is None else f"{cbp.mask}/{cbp.spots}"
    mask(0, settings.projector, camera, grid)  # refuses masks and numbers of spots that there are not
    fine = _spectrum(cbp, settings, camera, cbp.fine_step, _NARROW)
    coarse = replace(_spectrum(cbp, settings, camera, cbp.coarse_step, _WIDE), first=400.0, last=1000.0)
    leaks = _spectrum(cbp, settings, camera, cbp.filter_step, _WIDE)
    bands = {band: filters.wavelength_range(band) for band in cbp.filters}
    made: dict[str, Callable[[], dict[str, list[Projection]]]] = {
        "a": lambda: {"none": scans.scan_wavelength(fine, mask=grid)},
        "b": lambda: {"none": scans.dithers(camera, coarse, number=cbp.dithers, mask=grid)},
        "c": lambda: {"none": scans.footprints(settings.projector, coarse, number=cbp.footprints, mask=grid)},
        "d": lambda: scans.with_filters(bands, fine, mask=grid),
        "e": lambda: scans.with_filters(bands, _within(leaks), whole=True, mask=grid),
        "f": lambda: {"none": scans.sparse_sequence(camera, rate=_spot_rate(cbp, settings, camera, "sparse"))},
    }
    for one in cbp.sets:
        for band, asked in made[one]().items():
            yield from (_one("cbp", cbp.exposure_time, projection, band) for projection in asked)


def _sinusoids(plan: Plan, settings: Settings, camera: Camera) -> Iterator[Exposure]:
    scan = plan.sinusoids
    share = max(float(_seen(settings, camera, np.array([scan.wavelength]))[0]), _WEAK)
    asked = scans.sinusoids(
        scan.periods,
        scan.orientations,
        scan.phases,
        wavelength=scan.wavelength,
        bandwidth=scan.bandwidth,
        rate=scan.level / scan.exposure_time / share,
    )
    for source in asked:
        yield from (_one("sinusoid", scan.exposure_time, source) for _ in range(scan.each))


def _spectrum(cbp: Projections, settings: Settings, camera: Camera, step: float, bandwidth: float) -> scans.Spectrum:
    rate = _spot_rate(cbp, settings, camera, cbp.mask)
    return scans.Spectrum(cbp.first, cbp.last, step, bandwidth, rate)


def _within(scan: scans.Spectrum) -> scans.Spectrum:
    """Those of its wavelengths whose lines lie within the model."""
    low, high = _fitting(scan.bandwidth)
    first = scan.first + scan.step * max(0.0, np.ceil((low - scan.first) / scan.step))
    last = min(scan.last, high)
    if last < first:
        raise WrongUse(
            f"recipe cbp: no line {scan.bandwidth:g} nm wide from {scan.first:g} to {scan.last:g} nm in steps of "
            f"{scan.step:g} nm lies within the model: use {low:g} to {high:g} nm, or leave out set e"
        )
    return replace(scan, first=first, last=last)


def _spot_rate(cbp: Projections, settings: Settings, camera: Camera, name: str) -> float:
    """Photons/s in a spot that make its pixels ``level`` electrons."""
    _, _, diameter = MASKS[name.partition("/")[0]](camera)
    share = float(_seen(settings, camera, np.array([700.0]))[0]) * settings.projector.throughput
    return cbp.level * np.pi / 4 * float(np.max(diameter)) ** 2 / cbp.exposure_time / share


RECIPES: Final[dict[str, Callable[[Plan, Settings, Camera], Iterator[Exposure]]]] = {
    "calibration-day": _calibration_day,
    "flat-cube": _flat_cube,
    "cbp": _projections,
    "sinusoids": _sinusoids,
    "night": _night,
}
