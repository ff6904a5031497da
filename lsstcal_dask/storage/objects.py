"""Small objects and Zarr arrays in a folder or a bucket, through the same few functions.

Every write of a small object is atomic: a reader sees the old object, the new
one or none, never a part. `create` writes only where nothing stands yet, which
is all that publishing needs: published objects are never changed.
"""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.abc.store
from obstore import exceptions
from obstore.store import LocalStore, ObjectStore, from_url
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore as ZarrLocalStore
from zarr.storage import ObjectStore as ZarrObjectStore

from lsstcal_dask.errors import CalibrationError, StoreFailure

__all__ = [
    "create",
    "create_bytes",
    "create_group",
    "create_or_open",
    "exists",
    "fill",
    "is_remote",
    "list_names",
    "normalise",
    "read_bytes",
    "read_into",
    "read_json",
    "read_ranges",
    "sweep",
    "write_bytes",
    "write_json",
    "zarr_store",
]


def normalise(url: str | os.PathLike[str]) -> str:
    """Absolute path of a folder, or the address of a bucket (``s3://bucket/prefix``) without a last slash."""
    text = os.fspath(url)
    if "://" not in text:
        return str(Path(text).expanduser().resolve())
    if not text.partition("://")[2].strip("/"):
        raise CalibrationError(f"{text}: names no bucket: write s3://bucket/prefix")
    return text.rstrip("/")


def is_remote(url: str) -> bool:
    """Whether the store is a bucket."""
    return "://" in url


@lru_cache(maxsize=16)
def _connect(url: str) -> ObjectStore:
    # Credentials and endpoint of a bucket come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ...).
    if not is_remote(url):
        return LocalStore(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if endpoint.startswith("http:") else {}
    try:
        return from_url(url, **options)
    except Exception as error:
        raise CalibrationError(f"{url}: cannot open this store ({_first_line(error)}); check its address") from error


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn what a store answers, other than that something is or is not there, into one line."""
    try:
        yield
    except (FileNotFoundError, exceptions.AlreadyExistsError):
        raise
    except (exceptions.BaseError, OSError) as error:
        if is_remote(url):
            remedy = "check address, credentials and AWS_ENDPOINT_URL"
        else:
            remedy = "check its disk and its permissions, then run the same command again"
        raise StoreFailure(f"{url}: the store does not answer ({_first_line(error)}): {remedy}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def write_bytes(url: str, path: str, data: bytes) -> None:
    """Write one object, whole or not at all, over what may stand there."""
    if is_remote(url):
        _put(url, path, data, "overwrite")
        return
    with _reaching(url):
        target = Path(url, path)
        partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
        try:
            try:
                partial.write_bytes(data)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(data)
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json(url: str, path: str, value: object) -> None:
    """Write one small object, whole or not at all, over what may stand there."""
    _put(url, path, _text(value), "overwrite")


def _text(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def create(url: str, path: str, value: object) -> bool:
    """Write one small object unless it exists; False if it did. Exactly one of several writers succeeds."""
    return create_bytes(url, path, _text(value))


def create_bytes(url: str, path: str, data: bytes) -> bool:
    """Write one object unless it exists; False if it did. Exactly one of several writers succeeds."""
    try:
        _put(url, path, data, "create")
    except exceptions.AlreadyExistsError:
        return False
    return True


def _put(url: str, path: str, data: bytes, mode: Any) -> None:
    with _reaching(url):
        if not is_remote(url):
            Path(url).mkdir(parents=True, exist_ok=True)
        _connect(url).put(path, data, mode=mode)


def read_bytes(url: str, path: str) -> bytes:
    """Read one object.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    with _reaching(url):
        return bytes(_connect(url).get(path).bytes()) if is_remote(url) else Path(url, path).read_bytes()


def read_into(url: str, path: str, buffer: bytearray) -> np.ndarray:
    """Read one object of a folder into a buffer, which grows to its size: fresh memory costs as much as the reading.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    with _reaching(url), open(f"{url}/{path}", "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(buffer) < size:
            buffer.extend(bytes(size - len(buffer)))
        found = np.frombuffer(buffer, np.uint8, size)
        return found[: file.readinto(found.data)]


def read_ranges(url: str, path: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read parts of an object of a bucket, each from a first byte on and so many bytes long; raises as `read_bytes`."""
    starts, lengths = ([place[i] for place in places] for i in (0, 1))
    with _reaching(url):
        return [bytes(part) for part in _connect(url).get_ranges(path, starts=starts, lengths=lengths)]


def read_json(url: str, path: str) -> Any:
    """Read one small object.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    if not is_remote(url) and not Path(url, path).is_file():
        raise FileNotFoundError(f"{url}/{path}")
    data = read_bytes(url, path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise CalibrationError(f"{url}/{path}: is damaged ({error}): restore it from a copy, or delete it") from error


def exists(url: str, path: str) -> bool:
    """Whether a small object is there."""
    if not is_remote(url):
        return Path(url, path).is_file()
    try:
        with _reaching(url):
            _connect(url).head(path)
    except FileNotFoundError:
        return False
    return True


def list_names(url: str, path: str) -> list[str]:
    """Names of the objects and folders directly under a path, sorted; empty where there is no such path."""
    if not is_remote(url):
        folder = Path(url, path)
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    with _reaching(url):
        found = _connect(url).list_with_delimiter(path)
    objects = [str(item["path"]) for item in found["objects"]]
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in [*objects, *found["common_prefixes"]])


def zarr_store(url: str, path: str, *, read_only: bool = False) -> zarr.abc.store.Store:
    """Zarr store rooted at a path of the folder or bucket."""
    if not is_remote(url):
        return ZarrLocalStore(Path(url, path), read_only=read_only)
    return ZarrObjectStore(_connect(f"{url}/{path}"), read_only=read_only)


def sweep(url: str, path: str) -> None:
    """Remove the temporary files that a killed writer left directly in a folder."""
    if not is_remote(url):
        for left in Path(url, path).glob("*.partial"):
            left.unlink(missing_ok=True)


def create_group(url: str, path: str, attributes: dict[str, Any]) -> None:
    """Create a Zarr group, or leave the one that is there."""
    with _reaching(url):
        zarr.open_group(zarr_store(url, path), mode="a", attributes=attributes)


def fill(url: str, array: zarr.Array, values: Any, key: Any = ...) -> None:
    """Write values into a Zarr array of the store."""
    with _reaching(url):
        array[key] = values


def create_or_open(url: str, path: str, **settings: Any) -> zarr.Array:
    """Create a Zarr array, or open the one an earlier or another writer created with the same settings.

    Never deletes: a second writer of the same content cannot take away what the first has written.
    """
    store = zarr_store(url, path)
    with _reaching(url):
        try:
            return zarr.create_array(store, overwrite=False, **settings)
        except ContainsArrayError:
            found = zarr.open_array(store, path=settings.get("name") or "", mode="r+")
            assert isinstance(found, zarr.Array)
            return found
