"""Where a product comes from: hashes of its inputs and configuration, versions of the software."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

__all__ = ["digest", "hash_arrays", "hash_counts", "hash_file", "software"]

_LENGTH = 16  # hexadecimal digits kept in names: 64 bits, no accidental collision in a survey


def digest(value: object) -> str:
    """Short hash of anything that JSON can hold; independent of the order of keys.

    Examples
    --------
    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:_LENGTH]


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """Short hash of named arrays: names, shapes, dtypes and every bit of their values."""
    found = hashlib.blake2b()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}{array.shape}{array.dtype.str}".encode())
        found.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.view(np.uint8).data)
    return found.hexdigest()[:_LENGTH]


def hash_counts(counts: np.ndarray) -> str:
    """Short hash of raw counts (amplifier, y, x): the same for any integer width that holds them."""
    found = hashlib.blake2b(str(counts.shape).encode())
    for amplifier in counts:
        found.update(np.ascontiguousarray(amplifier, dtype="<i4").data)
    return found.hexdigest()[:_LENGTH]


def hash_file(data: bytes) -> str:
    """Short hash of the bytes of a file."""
    return hashlib.blake2b(data).hexdigest()[:_LENGTH]


@lru_cache(maxsize=1)
def _source() -> str:
    """Short hash of the source of this package: between releases the version does not tell."""
    root = Path(__file__).parents[1]
    found = hashlib.blake2b()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()[:_LENGTH]


def software() -> dict[str, str]:
    """Versions that can change the bits of a result."""
    versions = {name: version(name) for name in ("lsstcal_dask", "numpy", "numba", "scipy")}
    return {**versions, "source": _source()}
