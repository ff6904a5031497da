"""Make and apply the calibration products of a CCD mosaic telescope (Lupton 2016).

The names below are the public interface; each is imported when it is first used, so
importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Source": "pipeline.synthesis",
    "CalibrationError": "errors",
    "build": "pipeline.build",
    "calibrate": "pipeline.calibrate",
    "cluster": "compute",
    "create_store": "pipeline.store",
    "find_defects": "products.defects",
    "ingest": "pipeline.ingest",
    "list_products": "storage.products",
    "load_camera": "instrument",
    "make_cube": "pipeline.cubes",
    "make_flat": "pipeline.flatfields",
    "master_bias": "products.bias",
    "master_dark": "products.dark",
    "measure_crosstalk": "products.crosstalk",
    "measure_deferred": "products.deferred",
    "measure_gain": "products.gain",
    "measure_linearity": "products.linearity",
    "measure_saturation": "products.saturation",
    "open_cube": "storage.cubes",
    "open_product": "storage.products",
    "open_raw": "storage.raw",
    "open_store": "pipeline.store",
    "picture": "verify.display",
    "from_photons": "physics.spectra",
    "read_config": "pipeline.config",
    "read_passband": "pipeline.flatfields",
    "synthetic_flats": "pipeline.synthesis",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
