"""Fringes of a store: layers of its CCDs from a cube, published, and what they do to a synthesised flat (Sec. 2.9)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.mapping import AmplifierResults
from lsstcal_dask.physics.etalon import Mirrors
from lsstcal_dask.physics.etalon_table import Line, Span
from lsstcal_dask.pipeline.build import Built, run_version
from lsstcal_dask.pipeline.lineage import cube_inputs
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.synthesis import CubeOpener, Source
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.products.etalon_fit import FEWEST
from lsstcal_dask.products.etalon_slices import (
    BEAMS,
    OUTPUTS,
    EtalonConfig,
    Scanned,
    etalon_amplifiers,
    tuning_of,
)
from lsstcal_dask.products.fringe_flat import FringeTable, Layers, fringe_table
from lsstcal_dask.products.fringe_light import Response, fringing_share, light_of, light_of_flats, slices_suffice
from lsstcal_dask.products.weights import Scan, Weights, without
from lsstcal_dask.storage.cubes import Cube, read_cube
from lsstcal_dask.storage.products import Pointer, Template, open_product
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.variables import NOTE

__all__ = ["FRINGES", "Fringed", "fringes_for", "make_fringes", "noon_before"]

FRINGES: Final = "fringes"
"""Name of the product."""

_DARK: Final = 1e-3  # share of the light of a flat that may fringe and is not looked at
_MARGIN: Final = 0.02  # um


def noon_before(cube: Cube) -> str:
    """Noon (UTC) before the first flat of a cube, as of a product of its night."""
    first = np.array([one.time for one in cube.pointer.slots], "datetime64[s]").min()
    noon = (first - np.timedelta64(12, "h")).astype("datetime64[D]") + np.timedelta64(12, "h")
    return str(np.datetime_as_string(noon, unit="s"))


def make_fringes(
    store: Store, config: EtalonConfig, compute: Compute, *, cube: str = "flats", progress: bool = False
) -> Built:
    """Fit the layers of every CCD of a cube and publish them: one task for each CCD.

    Raises
    ------
    CalibrationError
        There is no such cube.
    DegenerateSolution
        It has too few wavelengths where silicon fringes.
    """
    found = read_cube(store.url, cube)
    scanned = _scanned(found, store, config)
    there = np.asarray(found.present[:, scanned.places].any(axis=1))
    detectors = [name for name, one in zip(found.layout.detectors, there, strict=True) if one]
    opener = CubeOpener(store.url, cube, found.pointer.number, block=1)
    pointer = Pointer(
        name=FRINGES,
        valid_from=noon_before(found),
        inputs={
            "cube": f"{cube}/{found.pointer.number}",
            "slices": digest([found.pointer.slots[k].hash for k in scanned.places]),
            **cube_inputs(found, read_upstream(store.url)),
        },
        configuration=config.model_dump(mode="json"),
        software=software(),
        failed={},
        remarks=[],
    )
    ny, nx = store.camera.image_shape
    names = {"detector": np.array(detectors, object), "amplifier": np.array(store.camera.amplifier_names, object)}
    sizes = {"detector": len(detectors), "amplifier": len(names["amplifier"]), "wavelength": len(scanned.places)}
    coords: dict[str, Any] = {dim: ((dim,), values) for dim, values in names.items()}
    coords |= {"wavelength": (("wavelength",), scanned.line.wavelength)}
    template = Template(OUTPUTS, {**sizes, "y": ny, "x": nx}, coords, {"product": FRINGES, "beam": config.beam})
    source = xr.Dataset(coords={dim: (dim, values) for dim, values in names.items()})
    work: Mapping[str, Any] = dict.fromkeys(detectors, (_layers_of, (opener, scanned, config)))
    return run_version(store.url, pointer, template, source, work, compute, progress)


def _scanned(cube: Cube, store: Store, config: EtalonConfig) -> Scanned:
    nm, width = cube.column("wavelength"), cube.column("bandwidth")
    places = np.flatnonzero(nm >= config.first)
    if len(places) < FEWEST:
        there = f"{nm[0]:.0f} to {nm[-1]:.0f} nm" if len(nm) else "nothing"
        raise DegenerateSolution(
            f"cube {cube.name}: {len(places)} of its wavelengths ({there}) lie beyond {config.first:g} nm, where "
            f"silicon fringes: at least {FEWEST} tell its layers: add monochromatic flats, as of 905 to 1080 nm, with "
            f"'lsstcal cube'"
        )
    return Scanned(places, Line(nm[places], width[places]), store.camera)


def _layers_of(source: xr.Dataset, opener: CubeOpener, scanned: Scanned, config: EtalonConfig) -> AmplifierResults:
    """What a worker does for one CCD."""
    detector = scanned.camera.detector(str(source["detector"].values))
    return etalon_amplifiers(opener(detector.name), detector, scanned, config)


@dataclass(frozen=True, eq=False)
class Fringed:
    """How workers give a flat the fringes of its source in place of those of its slices."""

    url: str
    version: str
    beam: str
    source: Source
    scan: Scan
    weights: Weights

    def open(self, detector: Any, there: np.ndarray) -> "CcdFringes | None":
        """Fringes of a CCD, None where its layers are not known.

        Parameters
        ----------
        there : (k, amplifier) slices that each amplifier has.
        """
        product = open_product(self.url, FRINGES, self.version, chunked=False)
        if detector.name not in product["detector"].values:
            return None
        own = product.sel(detector=detector.name)
        fringeless = own["fringeless_response"].values
        known = fringeless[np.isfinite(fringeless).any(axis=1)]
        response = Response.of(self.scan, own["wavelength"].values, known[0])
        layers = Layers(BEAMS[self.beam], Mirrors(), tuning_of(own))
        span = Span(*(_ends(own[name]) for name in ("silicon_thickness", "glue_thickness")))
        place = detector.center_mm
        terms = self.weights.terms(*(np.asarray(one) for one in place))
        light = light_of(self.source.spectrum, self.source.passband, self.source.atmosphere, response, terms)
        wanted = fringe_table(layers, span, light)
        slices: list[FringeTable | None] = []
        patterns, index = np.unique(there, axis=1, return_inverse=True)
        for one in patterns.T:
            try:
                flats = light_of_flats(without(self.weights, one).at(*place), self.scan, response)
            except InsufficientInputs:  # nor is there a flat
                slices.append(None)
            else:
                slices.append(fringe_table(layers, span, flats))
        names = [str(name) for name in own["amplifier"].values]
        found = {name: slices[i] for name, i in zip(names, np.ravel(index), strict=True)}
        return CcdFringes(own, wanted, found)


@dataclass(frozen=True, eq=False)
class CcdFringes:
    """Fringes of a CCD: of a source, and of the slices that its flat is made of."""

    layers: xr.Dataset
    wanted: FringeTable
    slices: Mapping[str, FringeTable | None]  # by amplifier

    def factor(self, amplifier: str) -> np.ndarray:
        """By what (y, x) a flat is to be multiplied; NaN where nothing is known."""
        own = self.layers.sel(amplifier=amplifier)
        silicon, glue = (own[name].values.astype(float) for name in ("silicon_thickness", "glue_thickness"))
        table = self.slices[amplifier]
        if table is None:
            return np.full(silicon.shape, np.nan, np.float32)
        return np.asarray(self.wanted.at(silicon, glue) / table.at(silicon, glue))


def _ends(maps: xr.DataArray) -> tuple[float, float]:
    """Lowest and highest value of a CCD with a little margin, read amplifier after amplifier."""
    found = [maps.isel(amplifier=i).values for i in range(maps.sizes["amplifier"])]
    known = [one for one in found if np.isfinite(one).any()]
    low, high = min(float(np.nanmin(one)) for one in known), max(float(np.nanmax(one)) for one in known)
    return low - _MARGIN, high + _MARGIN


def fringes_for(
    store: Store, layers: Pointer | None, source: Source, weights: Weights, scan: Scan
) -> tuple[Fringed | None, str]:
    """What gives a flat of weights its fringes by layers, and a remark that says what is done; empty if nothing.

    None where the light does not fringe, where its slices tell the fringes themselves, or where layers are not known.
    """
    config = EtalonConfig.model_validate(layers.configuration) if layers else EtalonConfig()
    ends = (config.first, float(scan.wavelength[-1]))
    place = float(np.mean(scan.x)), float(np.mean(scan.y))
    if fringing_share(weights, place, ends) < _DARK:
        return None, ""
    if slices_suffice(scan, ends, float(np.mean(config.silicon))):
        return None, f"{NOTE}fringes are those of the slices of the cube, near enough to tell them for any spectrum"
    if layers is None:
        return None, (
            f"{NOTE}fringes are those that the slices of the cube happen to have: 'lsstcal fringes {store.url}' finds "
            "the layers that make them"
        )
    found = Fringed(store.url, layers.version, config.beam, source, scan, weights)
    return found, f"{NOTE}fringes are those of the source, by {FRINGES}/{layers.version}, not those of the slices"
