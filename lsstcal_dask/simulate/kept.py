"""Maps that many exposures share, kept in a process up to so many bytes: see `MEMORY`."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Final

import numpy as np
from dask.utils import format_bytes, parse_bytes

from lsstcal_dask.errors import WrongUse

__all__ = ["DEFAULT", "MEMORY", "Maps", "allowed", "kept"]

MEMORY: Final = "LSSTCAL_MAPS_MEMORY"
"""Variable of the environment: the most memory for maps in each process, as ``2 GB``; all threads share it."""

DEFAULT: Final = 1_100_000_000
"""Without it, bytes: an LSST CCD has 0.26 GB of corners, dark rate and response, a readout board three of them."""


def allowed() -> int:
    """Bytes that maps may take in this process.

    Raises
    ------
    WrongUse
        The environment holds no size.
    """
    asked = os.environ.get(MEMORY)
    try:
        return parse_bytes(asked) if asked else DEFAULT
    except ValueError:
        raise WrongUse(f"{MEMORY}={asked}: use a size, as {format_bytes(DEFAULT).replace('i', '')!r}") from None


class _Key:
    """A key that is hashed once: a camera of 189 CCDs takes milliseconds."""

    def __init__(self, key: Hashable) -> None:
        self._key, self._hash = key, hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


class Maps:
    """Arrays by key. The one that was asked for least recently goes first; one in the making is waited for."""

    def __init__(self, limit: Callable[[], int] = allowed) -> None:
        self._limit, self._lock = limit, Lock()
        self._made: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._making: dict[Hashable, Future[np.ndarray]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept."""
        return sum(found.nbytes for found in self._made.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._made.clear()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What ``make`` returns, read-only; it is called once for threads that ask at the same time."""
        key = _Key(key)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
            coming = self._making.get(key)
            if mine := coming is None:
                coming = self._making[key] = Future()
        return self._make(key, make, coming) if mine else coming.result()

    def _make(self, key: Hashable, make: Callable[[], np.ndarray], promise: "Future[np.ndarray]") -> np.ndarray:
        try:
            limit, found = self._limit(), make()
            found.flags.writeable = False
        except BaseException as error:
            with self._lock:
                del self._making[key]
            promise.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._made[key] = found
            while self.nbytes > limit:
                self._made.popitem(last=False)
        promise.set_result(found)
        return found


kept: Final = Maps()
"""Those of this process."""
