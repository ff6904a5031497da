"""What others deliver: camera team, calibration telescope, weather station, catalogues (¶2-¶7, ¶11-¶15, ♥2)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from astropy import units
from astropy.table import Table

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.airglow import sky_spectrum
from lsstcal_dask.simulate.atmosphere import band_average
from lsstcal_dask.simulate.catalogue import photometric_catalogue, standards
from lsstcal_dask.simulate.defect_survey import listed
from lsstcal_dask.simulate.defects import defect_list
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing
from lsstcal_dask.simulate.filters import FILTERS, filter_curves, transmission
from lsstcal_dask.simulate.illumination import laser_centre
from lsstcal_dask.simulate.linearity import true_to_measured
from lsstcal_dask.simulate.night import pointing_of, true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import edge_mm, mirrors
from lsstcal_dask.simulate.photodiode import responsivity
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.spectrograph import observe
from lsstcal_dask.simulate.stars import bright_star, known_spectrum, stars_in
from lsstcal_dask.simulate.truth import amplifiers, crosstalk_table, defect_table
from lsstcal_dask.simulate.weather import weather

__all__ = ["deliveries"]

_GAIN_ERROR: Final = 1e-3  # relative: the source document's requirement
_QUADRATIC_ERROR: Final = 1e-11  # per electron
_CROSSTALK_ERROR: Final = 1e-6  # electron per electron
_FULL_WELL_ERROR: Final = 0.01  # relative
_CURVE: Final = np.linspace(0, 1.2e5, 61)  # adu, signals at which linearity is tabulated
_CURVE_ERROR: Final = 1e-4  # relative
_SLIT: Final = 25.0  # arcsec2 of sky that falls into a pixel row of the spectrograph
_CADENCE: Final = np.timedelta64(5, "m")  # of the weather station
_RESPONSIVITY_ERROR: Final = 1e-3  # relative, as of a national laboratory
_RESPONSIVITY_SCALE: Final = 120.0  # nm, over which that error changes
_DARK_ERROR: Final = 0.02  # relative, of the photodiode's dark current
_CENTROID_ERROR: Final = 0.01  # nm, of the spectrograph beside the screen
_FLUX: Final = "photon / (s m2 nm)"

Deliveries = dict[str, Callable[[Observatory], Table]]


def deliveries(recipe: str, exposures: Sequence[Exposure]) -> Deliveries:
    """External inputs that go with a recipe, by name: what makes the table of each from the observatory.

    Nothing in them is exact. Columns carry units, ``meta["input"]`` says which input of Appendix A a table is.
    """
    found: Deliveries = {}
    if recipe in ("calibration-day", "all"):
        found = {"gain": _gain, "linearity": _linearity, "crosstalk": _crosstalk}
        found |= {"defects": _defects, "saturation": _saturation}
    if recipe in ("calibration-day", "cbp", "all"):
        found |= {f"filter-{band}": partial(_filter, band=band) for band in FILTERS}
    if recipe in ("flat-cube", "all"):
        flats = tuple(e for e in exposures if isinstance(e.source, Lamp) and np.isfinite(e.source.wavelength))
        found |= {"photodiode": _photodiode, "wavelengths": partial(_wavelengths, flats=flats)}
    visits = tuple(e for e in exposures if isinstance(e.source, Pointing))
    if visits:
        makers = {"weather": _weather, "photometry": _photometry, "standards": _standards}
        found |= {name: partial(make, visits=visits) for name, make in makers.items()}
    for visit in visits:
        found[f"spectrum-star-{visit.name}"] = partial(_star, visit=visit)
        found[f"spectrum-sky-{visit.name}"] = partial(_sky, visit=visit)
    return found


def _channels(site: Observatory) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    """Names of detector and amplifier of every channel, and its true numbers."""
    rows = [row for d in site.camera.detectors for row in amplifiers(site, d)]
    return {key: [row[key] for row in rows] for key in ("detector", "amplifier")}, rows


def _noise(site: Observatory, what: str, shape: Any) -> np.ndarray:
    return stream(site.seed, f"camera_team_{what}").standard_normal(shape)


def _gain(site: Observatory) -> Table:
    """¶2."""
    names, rows = _channels(site)
    true = np.array([row["gain"] for row in rows])
    gain = true * (1 + _GAIN_ERROR * _noise(site, "gain", len(true))) * units.electron / units.adu
    return Table({**names, "gain": gain, "gain_error": _GAIN_ERROR * gain}, meta=_is("¶2"))


def _linearity(site: Observatory) -> Table:
    """¶3: measured signal at the true ones of ``meta["true_adu"]``."""
    names, _ = _channels(site)
    settings = site.settings.nonlinearity
    curves = np.array(
        [
            true_to_measured(site.seed, settings, detector, i, _CURVE)
            for detector in site.camera.detectors
            for i in range(len(detector.amplifiers))
        ]
    )
    curves = curves * (1 + _CURVE_ERROR * _noise(site, "linearity", curves.shape))
    meta = {**_is("¶3"), "true_adu": _CURVE.tolist(), "relative_error": _CURVE_ERROR}
    return Table({**names, "measured": curves * units.adu}, meta=meta)


def _crosstalk(site: Observatory) -> Table:
    """¶5."""
    table = crosstalk_table(site)
    table["c"] = table["c"] + _CROSSTALK_ERROR * _noise(site, "crosstalk", len(table))
    table["c_error"] = np.full(len(table), _CROSSTALK_ERROR)
    table["c2"] = table["c2"] + _QUADRATIC_ERROR * _noise(site, "crosstalk quadratic", len(table)) * table["c2"].unit
    table["c2_error"] = np.full(len(table), _QUADRATIC_ERROR) * table["c2"].unit
    table.meta |= _is("¶5")
    return table


def _defects(site: Observatory) -> Table:
    """¶6: what the camera team has found, and at which thresholds."""
    survey = site.settings.defect_survey

    def found(site: Observatory, detector: Detector) -> np.ndarray:
        return listed(site.seed, survey, detector, defect_list(site.seed, site.settings.bad_pixels, detector))

    table = defect_table(site, found)
    table.remove_column("value")
    limits = {"sensitivity": survey.dim, "electron_per_s": survey.bright, "trapped_electrons": survey.trap}
    table.meta |= {**_is("¶6"), **({"thresholds": limits} if survey.on else {})}
    return table


def _saturation(site: Observatory) -> Table:
    """¶7."""
    names, rows = _channels(site)
    true = np.array([row["full_well"] for row in rows])
    well = true * (1 + _FULL_WELL_ERROR * _noise(site, "saturation", len(true))) * units.electron
    return Table({**names, "full_well": well, "full_well_error": _FULL_WELL_ERROR * well}, meta=_is("¶7"))


def _is(paragraph: str) -> dict[str, Any]:
    return {"input": paragraph}


def _filter(site: Observatory, band: str) -> Table:
    """¶11: one curve for the beam that each CCD sees."""
    wavelength = np.arange(RANGE[0], RANGE[1] + 0.5)
    found = filter_curves(site.seed, site.settings.filters, site.camera, band, wavelength)
    columns: dict[str, Any] = {"detector": found["detector"].values}
    columns |= {name: found[name].values * units.mm for name in ("x", "y")}
    columns |= {name: found[name].values for name in ("transmission", "transmission_error")}
    return Table(columns, meta={**_is("¶11"), "filter": band, "first_nm": RANGE[0], "step_nm": 1.0})


def _photodiode(site: Observatory) -> Table:
    """¶9: responsivity of the photodiode beside the screen, whose error is smooth, and its current without light."""
    wavelength = np.arange(RANGE[0] - 10, RANGE[1] + 10.5, 2.0)
    waves = np.arange(1, 9)
    phase, size = _noise(site, "photodiode", (2, len(waves)))
    turns = np.multiply.outer(wavelength, waves) * (2 * np.pi / (len(waves) * _RESPONSIVITY_SCALE))
    error = (np.cos(turns + 3 * phase) * size).sum(axis=1) * np.sqrt(2 / len(waves)) * _RESPONSIVITY_ERROR
    true = responsivity(wavelength)
    unit, settings = units.A / units.W, site.settings.photodiode
    columns = {
        "wavelength": wavelength * units.nm,
        "responsivity": true * (1 + error) * unit,
        "responsivity_error": _RESPONSIVITY_ERROR * true * unit,
    }
    dark = settings.dark_current * settings.on * (1 + _DARK_ERROR * float(_noise(site, "photodiode dark", ())))
    return Table(columns, meta={**_is("¶9"), "dark_current_A": dark})


def _wavelengths(site: Observatory, flats: Sequence[Exposure]) -> Table:
    """¶9: centroid and width of each monochromatic line as a spectrograph beside the screen measures them."""
    sources = [e.source for e in flats if isinstance(e.source, Lamp)]
    true = np.array([laser_centre(site.seed, site.settings.laser, e) for e in flats])
    away = [stream(site.seed, "screen spectrograph", exposure=e.number).standard_normal() for e in flats]
    columns = {
        "exposure": np.array([e.name for e in flats], str),
        "wavelength": (true + _CENTROID_ERROR * np.array(away)) * units.nm,
        "wavelength_error": np.full(len(flats), _CENTROID_ERROR) * units.nm,
        "bandwidth": np.array([s.bandwidth for s in sources]) * units.nm,
    }
    return Table(columns, meta=_is("¶9"))


def _weather(site: Observatory, visits: Sequence[Exposure]) -> Table:
    """¶14."""
    first, last = (extreme(v.time for v in visits) for extreme in (min, max))
    table = weather(
        site.seed, site.settings.weather, site.settings.atmosphere, np.arange(first, last + _CADENCE, _CADENCE)
    )
    table.meta |= _is("¶14")
    return table


def _stars(site: Observatory, visits: Sequence[Exposure]) -> np.ndarray:
    """Stars of every field that is visited."""
    radius = edge_mm(site.camera) * site.camera.plate_scale / 3600
    fields = sorted({(v.source.ra, v.source.dec) for v in visits if isinstance(v.source, Pointing)})
    return np.unique(np.concatenate([stars_in(site.seed, site.settings.stars, ra, dec, radius) for ra, dec in fields]))


def _catalogue(rows: np.ndarray) -> Table:
    table = Table(rows, meta=_is("¶15"))
    for name in table.colnames[1:]:
        table[name].unit = "deg" if name in ("ra", "dec") else "mag"
    return table


def _photometry(site: Observatory, visits: Sequence[Exposure]) -> Table:
    """¶15: what catalogues say of all stars."""
    return _catalogue(photometric_catalogue(site.seed, site.settings.stars, _stars(site, visits)))


def _standards(site: Observatory, visits: Sequence[Exposure]) -> Table:
    """¶15: magnitudes above the air of a few stars in our own bands."""
    camera, settings = site.camera, site.settings
    wavelength = np.arange(RANGE[0], RANGE[1])
    glass = mirrors(settings.mirrors, wavelength)
    bands = {
        band: glass * transmission(site.seed, settings.filters, camera, band, wavelength, 0.0, 0.0) for band in FILTERS
    }
    return _catalogue(standards(site.seed, settings.stars, _stars(site, visits), wavelength, bands))


def _fine() -> tuple[np.ndarray, np.ndarray]:
    """Edges and middles (nm) of the bins in which the air is looked through."""
    edges = np.arange(RANGE[0] + 20, RANGE[1], 0.05)
    return edges, (edges[1:] + edges[:-1]) / 2


def _through(site: Observatory, visit: Exposure) -> tuple[np.ndarray, np.ndarray]:
    """What the air of a visit transmits, and the light of the sky in the slit, photon/(s m2 nm), in fine bins."""
    edges, _ = _fine()
    pointing, settings = pointing_of(visit), site.settings
    on = settings.atmosphere.on
    above = band_average(true_air(site, visit), pointing.airmass, edges) if on else np.ones(len(edges) - 1)
    where = (pointing.altitude, pointing.azimuth)
    sky = sky_spectrum(site.seed, settings.airglow, settings.moon, visit.time, where, edges, visit.exposure_time)
    return above, sky / np.diff(edges) * above * _SLIT


def _star(site: Observatory, visit: Exposure) -> Table:
    """¶12 and ¶13: spectrum of the bright star near a visit, and what it is above the air."""
    pointing, (_, fine) = pointing_of(visit), _fine()
    star = bright_star(site.seed, site.settings.stars, pointing.ra, pointing.dec)
    above, sky = _through(site, visit)
    known = known_spectrum(star, fine)
    seconds = visit.exposure_time
    data = observe(site.seed, site.settings.spectrograph, visit.number, fine, known * above, seconds, sky)
    table = _spectrum(visit, data, "¶12, ¶13")
    table["known"] = np.interp(data["wavelength"].values, fine, known) * units.Unit(_FLUX)
    table.meta |= {"star": int(star["id"]), "ra_deg": float(star["ra"]), "dec_deg": float(star["dec"])}
    return table


def _sky(site: Observatory, visit: Exposure) -> Table:
    """♥2: spectrum of the sky of a visit."""
    _, sky = _through(site, visit)
    seconds = _SKY_TIME * visit.exposure_time
    data = observe(site.seed, site.settings.spectrograph, visit.number + _SKY, _fine()[1], sky, seconds)
    table = _spectrum(visit, data, "♥2")
    table.meta["slit_arcsec2"] = _SLIT
    return table


def _spectrum(visit: Exposure, data: Any, paragraph: str) -> Table:
    flux = units.Unit(_FLUX)
    columns = {
        "wavelength": data["wavelength"].values * units.nm,
        "flux": data["flux"].values * flux,
        "variance": data["variance"].values * flux**2,
    }
    meta = {**_is(paragraph), "exposure": visit.name, "airmass": pointing_of(visit).airmass}
    return Table(columns, meta={**meta, "exposure_time_s": data.attrs["exposure_time"]})


_SKY_TIME: Final = 10
"""The sky is exposed so many times longer than the visit."""
_SKY: Final = 1_000_000
"""Added to the number of a visit for the exposure of its sky, which has noise of its own."""
