"""A store: one camera, its raw frames and its products, in a folder or a bucket."""

import os
from dataclasses import dataclass
from functools import lru_cache

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Camera, from_mapping, load_camera, to_mapping
from lsstcal_dask.storage import objects

__all__ = ["Store", "camera_for", "create_store", "open_store"]

_MARKER = "lsstcal.json"
_FORMAT = 1


@dataclass(frozen=True)
class Store:
    """Address and camera."""

    url: str
    camera: Camera


def camera_for(url: str | os.PathLike[str], name: str | None, default: str) -> Camera:
    """Give the camera that is named; without a name that of a store that is there, and ``default`` for a new one."""
    url = objects.normalise(url)
    if name is None and objects.exists(url, _MARKER):
        return open_store(url).camera
    return load_camera(name or default)


def create_store(url: str | os.PathLike[str], camera: str | Camera) -> Store:
    """Create a store for a camera, by name or described, or open the one that is there.

    Raises
    ------
    CalibrationError
        The store holds another camera.
    """
    url = objects.normalise(url)
    wanted = camera if isinstance(camera, Camera) else load_camera(camera)
    objects.create(url, _MARKER, {"format": _FORMAT, "camera": to_mapping(wanted)})
    found = open_store(url)
    if found.camera != wanted:
        raise CalibrationError(
            f"{url} holds camera {found.camera.name}, not {wanted.name} (or an older description of it): "
            f"use another store"
        )
    return found


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open an existing store.

    Raises
    ------
    CalibrationError
        There is none, or it was written by a later version.
    """
    return _open(objects.normalise(url))


@lru_cache(maxsize=8)
def _open(url: str) -> Store:
    try:
        found = objects.read_json(url, _MARKER)
    except FileNotFoundError:
        raise CalibrationError(
            f"{url} is not a store: make one with 'lsstcal ingest {url} --camera NAME FILES'"
        ) from None
    if not {"format", "camera"} <= set(found):
        raise CalibrationError(f"{url}/{_MARKER}: is damaged: restore it from a copy")
    if found["format"] > _FORMAT:
        raise CalibrationError(f"{url} was written by a later version of lsstcal_dask: upgrade")
    return Store(url, from_mapping(found["camera"]))
