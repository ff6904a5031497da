"""Flats that are applied: synthesised from a cube for the light of a source, published for one filter (3.6, 3.10)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from lsstcal_dask.compute import Compute
from lsstcal_dask.errors import CalibrationError, InsufficientInputs, WrongUse
from lsstcal_dask.isr.sequence import FRINGE_PRODUCTS
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.spectra import Curve, Spectrum, from_photons
from lsstcal_dask.physics.spectrum_files import curve_from_table, read_spectrum, read_table
from lsstcal_dask.physics.units import in_air
from lsstcal_dask.pipeline.build import Built, Validity, image_template, run_version
from lsstcal_dask.pipeline.cubemaps import compressed_of
from lsstcal_dask.pipeline.flatdust import dust_for
from lsstcal_dask.pipeline.flatwork import flat_of
from lsstcal_dask.pipeline.fringes import FRINGES, fringes_for, noon_before
from lsstcal_dask.pipeline.inputs import filter_inputs
from lsstcal_dask.pipeline.lineage import cube_inputs, outdated_slices
from lsstcal_dask.pipeline.passbands import store_passband, told_of_curves
from lsstcal_dask.pipeline.recipes import RECIPES
from lsstcal_dask.pipeline.sky import Skies
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.pipeline.synthesis import CubeOpener, Source, scan_of
from lsstcal_dask.pipeline.upstream import Upstream, read_upstream, usable
from lsstcal_dask.products.scales import scale_errors
from lsstcal_dask.products.synthesis import SynthesisConfig, Task, outputs_of
from lsstcal_dask.products.weights import Scan, Weights, make_weights
from lsstcal_dask.storage.compressed import CompressedPointer
from lsstcal_dask.storage.cubes import Cube, read_cube
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.storage.provenance import digest, software
from lsstcal_dask.storage.raw import open_raw
from lsstcal_dask.storage.tables import input_names
from lsstcal_dask.variables import NO_FILTER, NOTE

__all__ = [
    "FLAT_FNU",
    "RESERVED",
    "Wanted",
    "flat_name",
    "make_flat",
    "product_of",
    "read_lamp",
    "read_passband",
    "sky_of",
    "source_of",
]

FLAT_FNU: Final = "flat-fnu"
"""Name of the reference spectrum of even energy per frequency: photons as 1/wavelength (2.8.5)."""

RESERVED: Final = frozenset(
    {
        *RECIPES,
        FRINGES,
        *FRINGE_PRODUCTS.values(),
        "sky_blocks",
        "broadband",
        "contamination",
        "calibrated",
        "unflattened",
    }
)
"""Names of what other commands make: a flat of such a name would be taken for it."""

_WHOLE_NM: Final = (250.0, 1300.0)
_HOLE: Final = 10.0  # typical steps of a spectrum without any value
_LIT: Final = 0.01  # share of the light in it that is worth a warning


@dataclass(frozen=True)
class Wanted:
    """A flat that is asked for."""

    kind: str  # sky_flat, photometric_flat, or another name
    band: str  # filter
    source: Source
    cube: str = "flats"
    dust: bool = True  # with that of the time at which it begins to be valid, where it is known, until that changes
    compressed: bool = False  # of the maps of the compressed cube, where a CCD has them


def product_of(kind: str, band: str) -> str:
    """Name of the product: one for each filter.

    Raises
    ------
    WrongUse
        A name of other letters, or one that could leave its folder.
    """
    name = f"{kind}-{band}"
    if not re.fullmatch("[A-Za-z0-9_-]+", kind) or not band or {"/", "\\"} & set(name) or ".." in name:
        raise WrongUse(f"{name!r} is no name of a flat: use letters, digits, dashes and underscores")
    return name


def flat_name(kind: str, band: str) -> str:
    """Name of a flat that is synthesised, see `product_of`.

    Raises
    ------
    WrongUse
        As `product_of`, or another command makes products of this name.
    """
    name = product_of(kind, band)
    if (taken := kind.partition("-")[0]) in RESERVED:
        raise WrongUse(f"{name!r} is no name of a flat: {taken} is reserved for another product: choose another name")
    return name


def read_passband(store: Store, band: str) -> Nearby | None:
    """Transmission of a filter all over the focal plane, from the store's input; None without a filter.

    Raises
    ------
    InsufficientInputs
        The store has no curves of it.
    """
    if band.lower() in NO_FILTER:
        return None
    known = [name.removeprefix("filter-") for name in input_names(store.url) if name.startswith("filter-")]
    if band not in known:
        raise InsufficientInputs(
            f"filter {band}: its transmission is not known (there is {', '.join(known) or 'none'}): put a table into "
            f"{store.url}/inputs/filter-{band}.ecsv"
        )
    return Nearby(store_passband(store, band))


def read_lamp(given: str | Path, unit: tuple[str, str | None] | None = None, medium: str | None = None) -> Spectrum:
    """Spectrum in a file, or `FLAT_FNU`.

    Parameters
    ----------
    unit : of wavelength and flux where the file does not say them; without one of flux it says nothing.
    medium : of its wavelengths, air or vacuum, where the file does not say it.

    Raises
    ------
    UnitsError, CalibrationError
        As `physics.spectrum_files.read_spectrum`.
    """
    if str(given) != FLAT_FNU:
        both = (unit[0], unit[1]) if unit and unit[1] else None
        return read_spectrum(given, unit=both, medium=medium)
    wavelength = np.arange(_WHOLE_NM[0], _WHOLE_NM[1] + 0.5)
    return from_photons(wavelength, _WHOLE_NM[0] / wavelength, FLAT_FNU)


def source_of(
    store: Store,
    band: str,
    spectrum: str | Path,
    atmosphere: str | Path | None = None,
    unit: tuple[str, str | None] | None = None,
    medium: str | None = None,
) -> Source:
    """Light of a spectrum in a file, or of `FLAT_FNU`, behind a filter of the store and an atmosphere in a file.

    ``unit`` and ``medium`` as for `read_lamp`; those of wavelengths count for the atmosphere's file too, and for it
    alone where there is no unit of flux. An atmosphere's file that says its medium itself is believed where the medium
    is of a spectrum's file.
    """
    alone = str(spectrum) == FLAT_FNU
    air = None if atmosphere is None else _read_air(atmosphere, unit and unit[0], medium, alone=alone)
    return Source(read_lamp(spectrum, unit, medium), read_passband(store, band), air)


def _read_air(path: str | Path, unit: str | None, medium: str | None, *, alone: bool) -> Curve:
    """Transmission in a file: its wavelengths in ``unit``, its values fractions, where it does not say it.

    What is ``alone`` is meant by ``medium``, which must not contradict it.
    """
    table = read_table(path)
    if not alone and in_air(table.meta, str(path)) is not None:
        medium = None
    for column, given in zip(table.colnames, (unit, ""), strict=False):
        if table[column].unit is None and given is not None:
            table[column].unit = given
    return curve_from_table(table, medium=medium, name=str(path))


def sky_of(skies: Skies, band: str, visit: str, stale: bool = False, limit: float = 1e-4) -> tuple[Source, Validity]:
    """Light of the sky that a visit saw, and the time for which it counts: that of the visit.

    The spectra of the calibration telescope are of light that has passed the air. ``stale`` allows those of any time
    of its night; they may leave ``limit`` of the light of the filter unmeasured.
    """
    store = skies.store
    passband = read_passband(store, band)
    spectrum, fits = skies.of_visit(visit, stale, passband, limit)
    start = open_raw(store.url, store.camera, exposures=[visit], chunked=False)["time"].values[0]
    first, last = (str(np.datetime_as_string(at, unit="s")) for at in (start, start + np.timedelta64(1, "s")))
    source = Source(spectrum, passband, about=skies.about(visit, fits))
    return source, Validity(first, last)


def make_flat(
    store: Store, wanted: Wanted, config: SynthesisConfig, compute: Compute, validity: Validity, progress: bool = False
) -> Built:
    """Synthesise a flat of the whole focal plane and publish it: one task for each CCD.

    Raises
    ------
    CalibrationError
        There is no such cube, or as `products.weights.make_weights`.
    WrongUse
        As `flat_name`, or its validity ends before it begins.
    """
    name = flat_name(wanted.kind, wanted.band)
    cube = read_cube(store.url, wanted.cube)
    source, scan = wanted.source, scan_of(cube, store.camera)
    weights = make_weights(source.spectrum, source.passband, scan, source.atmosphere, config.weights)
    upstream = read_upstream(store.url)
    made_of, start = cube_inputs(cube, upstream), validity.start(name, noon_before(cube))
    remarks = _of_old_slices(cube, upstream) + _of_holes(source, weights)
    layers = usable(upstream, FRINGES, start)[-1:]
    fringed, told = fringes_for(store, layers[0] if layers else None, source, weights, scan)
    dust, until = None, validity.valid_until
    if wanted.dust:
        product, this = product_of("contamination", wanted.band), (wanted.cube, cube.pointer.number)
        dust, until, of_dust = dust_for(usable(upstream, product), product, this, Validity(start, until))
        remarks += of_dust
    if dust:
        made_of["upstream"]["contamination"] = {dust.name: f"{dust.version}/{dust.hash}"}
    if fringed:
        made_of["upstream"]["fringes"] = {FRINGES: f"{fringed.version}/"}
    opener = CubeOpener(store.url, wanted.cube, cube.pointer.number)
    task = Task((weights,), store.camera, tuple(cube.layout.amplifiers), opener, config, scan.common)
    short = compressed_of(store, cube) if wanted.compressed else None
    if short:
        task = replace(task, maps=short[1])
        remarks.append(_of_maps(short[0]))
    detectors = _measured(cube)
    remarks += _of_curves(source, store, detectors)
    pointer = Pointer(
        name=name,
        valid_from=start,
        valid_until=until,
        inputs={
            "cube": f"{wanted.cube}/{cube.pointer.number}",
            "slices": digest([one.hash for one in cube.pointer.slots]),
            "source": _digest_source(source),
            "spectrum": source.spectrum.name,
            "contamination": f"{dust.name}/{dust.version}" if dust else "",
            "filters": filter_inputs(store.url, wanted.band, source.passband),
            **made_of,
            "fringes": fringed.version if fringed else "",
            **({"compressed": short[0].version} if short else {}),
        },
        configuration=config.model_dump(mode="json"),
        software=software(),
        failed={},
        remarks=[told] * bool(told) + remarks,
    )
    attrs = _attributes(name, wanted, weights, scan)
    template, places = image_template(store.camera, detectors, outputs_of(config), attrs)
    found = (store.url, dust.name, dust.version) if dust else None
    work = dict.fromkeys(detectors, (flat_of, (task, found, fringed)))
    return run_version(store.url, pointer, template, places, work, compute, progress)


def _of_old_slices(cube: Cube, upstream: Upstream) -> list[str]:
    """A warning of slices that were made from what has changed since: a flat of them is outdated from the start."""
    old = outdated_slices(cube.url, cube.name, cube.pointer.slots, upstream)
    if not old:
        return []
    slot = next(one for one in cube.pointer.slots if one.slot in old)
    told = f"{len(old)} slices of cube {cube.name} are outdated, that of {slot.wavelength:.1f} nm was {old[slot.slot]}"
    return [f"{told}: run 'lsstcal cube {cube.url} --name {cube.name}' first"]


def _of_curves(source: Source, store: Store, detectors: list[str]) -> list[str]:
    """A remark on CCDs of which the filter has no curve."""
    glass = source.passband
    if not isinstance(glass, Nearby):
        return []
    return told_of_curves(glass.measured, [store.camera.detector(name) for name in detectors])


def _of_holes(source: Source, weights: Weights) -> list[str]:
    """A warning of stretches without any value in a spectrum or an atmosphere, where much of the light is."""
    found = []
    for what, one in (("spectrum", source.spectrum), ("atmosphere", source.atmosphere)):
        if one is None:
            continue
        steps = np.diff(one.wavelength)
        for i in np.flatnonzero(steps > _HOLE * np.median(steps)):
            first, last = one.wavelength[i : i + 2]
            part = float(weights.light[(weights.wavelength > first) & (weights.wavelength < last)].sum())
            if part > _LIT:
                found.append(
                    f"{what} {one.name} has no values from {first:g} to {last:g} nm, where {part:.0%} of the light is: "
                    f"it is taken to be straight there"
                )
    return found


def _attributes(name: str, wanted: Wanted, weights: Weights, scan: Scan) -> dict[str, Any]:
    """Numbers of a flat: its scale before its mean was brought to 1, and what errors of ratios of scales need."""
    common, error = scale_errors(weights, scan)
    scale = {"scale": weights.scale, "scale_error": weights.scale * error, "scale_common": weights.scale * common}
    about = {"product": name, "uncovered": weights.uncovered, "filter": wanted.band, "light": weights.light.tolist()}
    return {**about, **scale, **wanted.source.about}


def _of_maps(pointer: CompressedPointer) -> str:
    """What a flat of a compressed cube is made of."""
    told = (
        f"of the compressed form {pointer.version} of cube {pointer.cube}/{pointer.number}: {pointer.rank} maps at "
        f"most, values of slices within {pointer.error:.1e} of the response"
    )
    if pointer.failed:
        return f"{NOTE}{told}; {', '.join(sorted(pointer.failed))} are not compressed and made of their slices"
    return NOTE + told


def _measured(cube: Cube) -> list[str]:
    """CCDs of which there is any slice."""
    found = np.asarray(cube.present.any(axis=1))
    if not found.any():
        raise CalibrationError(f"cube {cube.name}: holds nothing: add monochromatic flats with 'lsstcal cube'")
    return [name for name, there in zip(cube.layout.detectors, found, strict=True) if there]


def _digest_source(source: Source) -> str:
    """Hash of everything that determines the weights."""
    return digest([_plain(one) for one in (source.spectrum, source.passband, source.atmosphere)])


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON holds them."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return np.asarray(value).tolist()
