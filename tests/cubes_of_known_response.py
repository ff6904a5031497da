"""Small flat cubes with known response, written as any cube is."""

import numpy as np

from lsstcal_dask.instrument import no_data
from lsstcal_dask.pipeline.store import Store, create_store
from lsstcal_dask.storage.coding import Slice
from lsstcal_dask.storage.cubelayout import CubeLayout, Slot
from lsstcal_dask.storage.cubewriting import claim_slot, create_cube, publish_cube, write_slice
from lsstcal_dask.variables import MASK_BITS

__all__ = ["SLOPE", "make_cube", "response", "true_flat"]

SLOPE, FLOOR, FULL = 2.5e-5, 1e-7, 4  # of the variance of a slice: 40,000 electrons


def response(nm):
    """Mean response of the focal plane."""
    return 0.8 - 0.3 * ((np.asarray(nm, float) - 650) / 300) ** 2


def true_flat(camera, detector, nm):
    """Response (amplifier, y, x) of a CCD, without noise: gray pixels, and a tilt with wavelength over the CCD."""
    rng = np.random.default_rng(detector.id)
    shape = (len(camera.amplifier_names), *camera.image_shape)
    gray = 1 + 0.01 * rng.standard_normal(shape)
    tilt = 0.05 * (np.linspace(-1, 1, shape[2]) + rng.uniform(-1, 1, (shape[0], 1, 1)))
    return response(nm) * gray * (1 + tilt * (nm - 650) / 100)


def make_cube(url, camera: str, nm, *, form="i2", noise=False, change=lambda detector, k, one: one, only=None) -> Store:
    """Store with a cube named ``c``, of all CCDs or of some (places).

    ``change`` may spoil the slice of a CCD, or return None where there is none.
    """
    store = create_store(url, camera)
    own = store.camera
    create_cube(
        store.url, "c", CubeLayout(form, tuple(d.name for d in own.detectors), own.amplifier_names, own.image_shape)
    )
    slots = []
    for k, wavelength in enumerate(nm):
        number = claim_slot(store.url, "c", {"wavelength": float(wavelength)})
        for detector in own.detectors if only is None else [own.detectors[i] for i in only]:
            value = true_flat(own, detector, wavelength).astype(np.float32)
            if noise:
                rng = np.random.default_rng([k, detector.id])
                value += np.sqrt(SLOPE * value + FLOOR).astype(np.float32) * rng.standard_normal(
                    value.shape, np.float32
                )
            mask = np.where(no_data(detector, own), MASK_BITS["NO_DATA"], 0).astype(np.uint16)
            value[mask != 0] = np.nan
            count = np.full(value.shape, FULL, np.uint8)
            lines = np.full(len(value), SLOPE), np.full(len(value), FLOOR)
            one = change(detector, k, Slice(value, mask, count, np.full(len(value), FULL), *lines))
            if one is not None:
                good = one.value[np.isfinite(one.value)]
                sums = {"total": float(good.sum()), "pixels": good.size}
                write_slice(store.url, "c", (number, detector.name), one, sums)
        names = [f"e{number}-{i}" for i in range(FULL)]
        slots.append(
            Slot(number, float(wavelength), 0.01, 1.0, "2026-07-11", float(response(wavelength)), 1e-3, exposures=names)
        )
    publish_cube(store.url, "c", slots, {})
    return store
