"""Synthetic flats of a store's cube, lazily: the storage of the cube joined to the synthesis (Secs. 2.8.1, 2.8.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xarray as xr

from lsstcal_dask.instrument.camera import Camera
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.cubemaps import MapsOpener, compressed_of
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.products.synthesis import SynthesisConfig, synthesize
from lsstcal_dask.products.weights import Scan, make_weights
from lsstcal_dask.storage.cubelayout import CubeLayout
from lsstcal_dask.storage.cubes import Cube, CubeReader, read_cube

__all__ = ["CubeOpener", "Source", "block_for", "scan_of", "synthetic_flats"]


_BLOCK: Final = 64  # wavelengths of two bytes read at once at most: of an amplifier of LSSTCam 131 MB


@dataclass(frozen=True, eq=False)
class Source:
    """Light that a flat is wanted for."""

    spectrum: Spectrum
    passband: Surface | Nearby | Curve | None = None
    atmosphere: Curve | None = None
    about: Mapping[str, float] = field(default_factory=dict)  # numbers that are kept with a flat of it


@dataclass(frozen=True)
class CubeOpener:
    """Opens the codes of a CCD where they are wanted: a worker reads the numbers of the cube once."""

    url: str
    name: str
    number: int
    block: int = 8  # wavelengths read at once: more for many flats, whose sums take longer to fetch than to add to

    def __call__(self, detector: str) -> CubeReader:
        """Reader of a CCD."""
        return CubeReader(read_cube(self.url, self.name, self.number), detector, block=self.block)


def block_for(flats: int, layout: CubeLayout) -> int:
    """Wavelengths to read at once for so many flats: of codes of one byte twice as many take no more memory."""
    by = max(2 // layout.codec.dtype.itemsize, 1)
    return min(max(8, 2 * by * flats), by * _BLOCK)


def scan_of(cube: Cube, camera: Camera) -> Scan:
    """Where a cube was measured; weights are normalised at the centres of the camera's CCDs."""
    x, y = np.array([detector.center_mm for detector in camera.detectors]).T
    nm, response, width = (cube.column(what) for what in ("wavelength", "response", "bandwidth"))
    common, single, photon = (cube.column(f"response_{what}") for what in ("common", "single", "photon"))
    told = np.isfinite(common + single + photon)  # a cube of before says the whole error only
    alone = np.where(told, np.hypot(single, photon), cube.column("response_error") / response)
    return Scan(nm, response, width, x, y, np.where(told, common, 0.0), alone)


def synthetic_flats(
    store: Store,
    cube: str,
    sources: Sequence[Source],
    config: SynthesisConfig = SynthesisConfig(),
    number: int | None = None,
    *,
    compressed: bool = False,
) -> xr.Dataset:
    """Flats for some sources from a cube of a store, lazily; see `products.synthesis.synthesize`.

    ``flats.isel(detector=[3]).compute()`` reads that CCD and no other.

    Parameters
    ----------
    cube : its name.
    number : of its publication; the last by default.
    compressed : of its maps, in place of its slices, where a CCD has them; by how much values of slices may then be
        off, relative to the mean response, is the attribute ``compression_bound``.

    Raises
    ------
    CalibrationError
        There is no such cube, or as `products.weights.make_weights`.
    InsufficientInputs
        It was not compressed.
    """
    found = read_cube(store.url, cube, number)
    scan = scan_of(found, store.camera)
    weights = [make_weights(s.spectrum, s.passband, scan, s.atmosphere, config.weights) for s in sources]
    opener = CubeOpener(store.url, cube, found.pointer.number, block_for(len(sources), found.layout))
    maps: MapsOpener | None = None
    about: dict[str, Any] = {"cube": cube, "number": found.pointer.number}
    if compressed:
        pointer, maps = compressed_of(store, found)
        about |= {"compressed": pointer.version, "compression_bound": pointer.error}
    flats = synthesize(weights, store.camera, found.layout.amplifiers, opener, config, common=scan.common, maps=maps)
    return flats.assign_attrs(about)
