"""What others deliver: camera team, calibration telescope, weather station, catalogues (¶2-¶7, ¶11-¶15, ♥2)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from astropy import units
from astropy.table import Table

from lsstcal_dask.simulate.airglow import sky_spectrum
from lsstcal_dask.simulate.atmosphere import band_average
from lsstcal_dask.simulate.catalogue import photometric_catalogue, standards
from lsstcal_dask.simulate.crosstalk import crosstalk_truth
from lsstcal_dask.simulate.exposure import Exposure, Pointing
from lsstcal_dask.simulate.filters import filter_curves, transmission
from lsstcal_dask.simulate.linearity import true_to_measured
from lsstcal_dask.simulate.night import true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import edge_mm, mirrors
from lsstcal_dask.simulate.random import stream
from lsstcal_dask.simulate.settings import RANGE
from lsstcal_dask.simulate.spectrograph import observe
from lsstcal_dask.simulate.stars import bright_star, known_spectrum, stars_in
from lsstcal_dask.simulate.truth import amplifiers, defect_table
from lsstcal_dask.simulate.weather import weather

__all__ = ["deliveries"]

_GAIN_ERROR: Final = 1e-3  # relative: the source document's requirement
_CROSSTALK_ERROR: Final = 1e-6  # electron per electron
_FULL_WELL_ERROR: Final = 0.01  # relative
_CURVE: Final = np.linspace(0, 1.2e5, 61)  # adu, signals at which linearity is tabulated
_CURVE_ERROR: Final = 1e-4  # relative
_SLIT: Final = 25.0  # arcsec2 of sky that falls into a pixel row of the spectrograph
_CADENCE: Final = np.timedelta64(5, "m")  # of the weather station

Named = Iterator[tuple[str, Table]]


def deliveries(site: Observatory, recipe: str, exposures: Sequence[Exposure]) -> Named:
    """Name and table of each external input that goes with a recipe; nothing here is exact."""
    if recipe in ("calibration-day", "all"):
        yield from _camera_team(site)
    if recipe in ("calibration-day", "cbp", "all"):
        yield from _filters(site)
    visits = [e for e in exposures if isinstance(e.source, Pointing)]
    if visits:
        yield "weather", _weather(site, visits)
        yield from _catalogues(site, visits)
        for visit in visits:
            yield from _spectra(site, visit)


def _camera_team(site: Observatory) -> Named:
    """¶2, ¶3, ¶5, ¶6, ¶7."""
    random = stream(site.seed, "camera_team")
    rows = [(d, i, row) for d in site.camera.detectors for i, row in enumerate(amplifiers(site, d))]
    names = {key: [row[key] for _, _, row in rows] for key in ("detector", "amplifier")}
    gain = np.array([row["gain"] for _, _, row in rows])
    gain = gain * (1 + _GAIN_ERROR * random.standard_normal(len(gain)))
    yield (
        "gain",
        Table({**names, "gain": gain * units.electron / units.adu, "gain_error": _GAIN_ERROR * gain}, meta=_is("¶2")),
    )
    curves = np.array([true_to_measured(site.seed, site.settings.nonlinearity, d, i, _CURVE) for d, i, _ in rows])
    curves = curves * (1 + _CURVE_ERROR * random.standard_normal(curves.shape))
    yield (
        "linearity",
        Table({**names, "measured": curves * units.adu}, meta={**_is("¶3"), "true": _CURVE.tolist()}),
    )
    found = crosstalk_truth(site.seed, site.settings.crosstalk, site.camera)
    noise = _CROSSTALK_ERROR * random.standard_normal(len(found.c))
    yield (
        "crosstalk",
        Table({**vars(found), "c": found.c + noise, "c_error": np.full(len(noise), _CROSSTALK_ERROR)}, meta=_is("¶5")),
    )
    defects = defect_table(site)
    defects.remove_column("value")
    defects.meta |= _is("¶6")
    yield "defects", defects
    well = np.array([row["full_well"] for _, _, row in rows])
    well = well * (1 + _FULL_WELL_ERROR * random.standard_normal(len(well)))
    yield "saturation", Table({**names, "full_well": well * units.electron}, meta=_is("¶7"))


def _is(paragraph: str) -> dict[str, Any]:
    return {"input": paragraph}


def _filters(site: Observatory) -> Named:
    """¶11."""
    wavelength = np.arange(RANGE[0], RANGE[1] + 0.5)
    for band in "ugrizy":
        found = filter_curves(site.seed, site.settings.filters, site.camera, band, wavelength)
        columns: dict[str, Any] = {"detector": found["detector"].values}
        columns |= {name: found[name].values * units.mm for name in ("x", "y")}
        columns |= {name: found[name].values for name in ("transmission", "transmission_error")}
        meta = {**_is("¶11"), "filter": band, "first_nm": RANGE[0], "step_nm": 1.0}
        yield f"filter-{band}", Table(columns, meta=meta)


def _weather(site: Observatory, visits: Sequence[Exposure]) -> Table:
    """¶14."""
    first, last = (extreme(v.time for v in visits) for extreme in (min, max))
    table = weather(
        site.seed, site.settings.weather, site.settings.atmosphere, np.arange(first, last + _CADENCE, _CADENCE)
    )
    table.meta |= _is("¶14")
    return table


def _catalogues(site: Observatory, visits: Sequence[Exposure]) -> Named:
    """¶15, of every field that is visited."""
    camera, settings = site.camera, site.settings
    radius = edge_mm(camera) * camera.plate_scale / 3600
    fields = sorted({(v.source.ra, v.source.dec) for v in visits if isinstance(v.source, Pointing)})
    found = [stars_in(site.seed, settings.stars, ra, dec, radius) for ra, dec in fields]
    stars = np.unique(np.concatenate(found))
    yield "photometry", Table(photometric_catalogue(site.seed, settings.stars, stars), meta=_is("¶15"))
    wavelength = np.arange(RANGE[0], RANGE[1])
    glass = mirrors(settings.mirrors, wavelength)
    bands = {
        band: glass * transmission(site.seed, settings.filters, camera, band, wavelength, 0.0, 0.0) for band in "ugrizy"
    }
    yield (
        "standards",
        Table(standards(site.seed, settings.stars, stars, wavelength, bands), meta=_is("¶15")),
    )


def _spectra(site: Observatory, visit: Exposure) -> Named:
    """¶12 and ¶13 of the bright star near a visit, and ♥2 of its sky."""
    pointing, settings = visit.source, site.settings
    assert isinstance(pointing, Pointing)
    star = bright_star(site.seed, settings.stars, pointing.ra, pointing.dec)
    edges = np.arange(RANGE[0] + 20, RANGE[1], 0.05)
    fine = (edges[1:] + edges[:-1]) / 2
    above = band_average(true_air(site, visit), pointing.airmass, edges)
    where = (pointing.altitude, pointing.azimuth)
    sky = sky_spectrum(
        site.seed, settings.airglow, settings.moon, visit.time, where, edges, visit.exposure_time
    ) / np.diff(edges)
    known = known_spectrum(star, fine)
    make: dict[str, Callable[[], Any]] = {
        "star": lambda: observe(
            site.seed,
            settings.spectrograph,
            visit.number,
            fine,
            known * above,
            visit.exposure_time,
            sky * above * _SLIT,
        ),
        "sky": lambda: observe(
            site.seed, settings.spectrograph, visit.number + _SKY, fine, sky * above * _SLIT, 10 * visit.exposure_time
        ),
    }
    for kind, observed in make.items():
        data = observed()
        columns = {name: data[name].values for name in ("wavelength", "flux", "variance")}
        if kind == "star":
            columns["known"] = np.interp(columns["wavelength"], fine, known)
        meta = {**_is("¶12, ¶13" if kind == "star" else "♥2"), "exposure": visit.name, "airmass": pointing.airmass}
        meta["flux_unit"] = "photon s-1 m-2 nm-1" if kind == "star" else f"photon s-1 m-2 nm-1 in {_SLIT:g} arcsec2"
        if kind == "star":
            meta |= {"star": int(star["id"]), "ra": float(star["ra"]), "dec": float(star["dec"])}
        yield f"spectrum-{kind}-{visit.name}", Table(columns, meta=meta)


_SKY: Final = 1_000_000
"""Added to the number of a visit for the exposure of its sky, which has noise of its own."""
