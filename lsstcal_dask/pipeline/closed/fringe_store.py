"""Fringes of a store's flat: slices are written to a cube, layers fitted to it, and a flat of the sky made (Sec. 2.9).

What the other loops of fringes do in memory goes here through everything between: codes of two bytes, the reader, and
what the commands 'fringes' and 'synthesize' do. The flat holds the noise of its slices, pixel by pixel; fringes are
wider than eight pixels, and of the mean of 8 x 8 the noise is an eighth.
"""

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from lsstcal_dask.compute import Compute, cluster
from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument.assembly import assemble, split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.build import Built, Validity
from lsstcal_dask.pipeline.closed.fringe_sky import flats, hats, night, sky_map, sky_spectrum
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.flatfields import Wanted, make_flat
from lsstcal_dask.pipeline.fringes import make_fringes
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.pipeline.synthesis import Source
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice
from lsstcal_dask.storage.products import open_product
from lsstcal_dask.variables import MASK_BITS

__all__ = ["Left", "left_by_store"]

_CUBE: Final = "c"
_BIN: Final = 8  # px
_DARK: Final = 0.02  # of the light of the sky that lies beyond the slices, and is none of these fringes
_DIODE: Final = 1e-3
_TIME: Final = "2026-07-11T20:00:00"


@dataclass(frozen=True)
class Left:
    """What dividing by the flat of a store leaves of the sky, rms relative to it, of means of 8 x 8 pixels."""

    fringes: float
    floor: float  # by the noise of the slices alone, as the flat's variance has it
    injected: float
    plain: float  # by a flat with the fringes of its slices


def left_by_store(seed: int, name: str, level: float) -> Left:
    """Fringes of the sky in y, f/1.23, left by a flat that a store has made.

    Parameters
    ----------
    name : CCD of mini9.
    level : electrons of a pixel in all exposures of a wavelength.

    Raises
    ------
    CalibrationError
        A step has failed.
    """
    photons, line = night(seed).parts.sum(axis=0), night(seed).line
    even, sky = flats(seed, False, name, False), sky_spectrum(line, photons)
    with TemporaryDirectory() as folder, cluster("threads", 1) as compute:
        store = create_store(f"{folder}/s", "mini9")
        detector = store.camera.detector(name)
        _write(store, detector, seed, level)
        plain, _ = _flat(store, detector, sky, compute)
        _published(make_fringes(store, Config().fringes, compute, cube=_CUBE))
        flat, variance = _flat(store, detector, sky, compute)
    smooth = np.tensordot(hats(even.line.wavelength, line.wavelength, photons), even.exact, 1)
    true = sky_map(seed, False, name, photons) / sky_map(seed, False, name, photons, fringes=False)
    floor = float(np.sqrt(np.nanmean(variance / np.square(flat)))) / _BIN
    return Left(_rms(flat / smooth / true), floor, _rms(true), _rms(plain / smooth / true))


def _write(store: Store, detector: Detector, seed: int, level: float) -> None:
    """A cube of one CCD, whose slices have the noise of so many electrons and of the photodiode."""
    scan, random = flats(seed, False, detector.name), np.random.default_rng([seed, 21])
    names, shape = store.camera.amplifier_names, store.camera.image_shape
    create_cube(store.url, _CUBE, CubeLayout("i2", tuple(d.name for d in store.camera.detectors), names, shape))
    slots = []
    for nm, width, exact in zip(scan.line.wavelength, scan.line.width, scan.exact, strict=True):
        number = claim_slot(store.url, _CUBE, {"wavelength": float(nm)})
        per_photon = level / exact.mean()
        value = random.poisson(exact * per_photon) / per_photon * (1 + _DIODE * random.standard_normal())
        one = _slice(np.asarray(split(value.astype(np.float32), detector, store.camera)), 1 / per_photon)
        sums = {"total": float(np.nansum(one.value)), "pixels": int(np.isfinite(one.value).sum())}
        write_slice(store.url, _CUBE, (number, detector.name), one, sums)
        mean = float(exact.mean())
        slots.append(Slot(number, float(nm), 0.01, float(width), _TIME, mean, 1e-3 * mean, exposures=[f"e{number}"]))
    publish_cube(store.url, _CUBE, slots, {})


def _slice(value: np.ndarray, slope: float) -> Slice:
    known, ones = np.isfinite(value) & (value > 0), np.ones(len(value))
    mask = np.where(known, 0, MASK_BITS["NO_DATA"]).astype(np.uint16)
    filled = np.where(known, value, np.nan).astype(np.float32)
    return Slice(filled, mask, known.astype(np.uint8), ones.astype(np.uint8), slope * ones, 0 * ones)


def _flat(store: Store, detector: Detector, sky: Spectrum, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """The flat (y, x) of a sky and its variance."""
    settings = Config.model_validate({"synthesis": {"weights": {"uncovered": _DARK, "gap": _DARK}}}).synthesis
    wanted = Wanted("sky_flat", "y", Source(sky), _CUBE, dust=False)
    version = _published(make_flat(store, wanted, settings, compute, Validity()))
    product = open_product(store.url, "sky_flat-y", version, chunked=False).sel(detector=detector.name)
    image, variance = (assemble(product[name].values, detector, store.camera) for name in ("image", "variance"))
    return np.asarray(image, float), np.asarray(variance, float)


def _published(built: Built) -> str:
    if built.pointer is None or built.errors:
        raise CalibrationError("; ".join(built.errors))
    return built.pointer.version


def _rms(ratio: np.ndarray) -> float:
    """Relative rms of the means of blocks."""
    ny, nx = (n // _BIN * _BIN for n in ratio.shape)
    means = ratio[:ny, :nx].reshape(ny // _BIN, _BIN, nx // _BIN, _BIN).mean(axis=(1, 3))
    return float(means.std() / means.mean())
