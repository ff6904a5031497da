"""The virtual observatory: every input of the calibration, ¶1-¶15 and ♥1-♥2, and its truth (Lupton 2016, App. A, C)."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Exposure": "exposure",
    "Observatory": "observatory",
    "Plan": "recipes",
    "Settings": "settings",
    "exposures": "recipes",
    "lazy_counts": "frames",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
