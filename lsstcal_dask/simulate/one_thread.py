"""Products of matrices on one thread: how many threads share a sum decides how it is rounded.

A rate that differs in its last bit changes, now and then, the Poisson number drawn from it.
"""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

__all__ = ["one_thread"]

P = ParamSpec("P")
R = TypeVar("R")


class _Limit:
    """Limit on the libraries of the process, which lasts while any thread needs it."""

    def __init__(self) -> None:
        self._lock, self._users, self._held = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0 and importlib.util.find_spec("threadpoolctl"):
                self._held.enter_context(importlib.import_module("threadpoolctl").threadpool_limits(1, "blas"))
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._held.close()


_LIMIT = _Limit()


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function's linear algebra use one thread, whichever threads call it and whatever they were given."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LIMIT:
            return function(*args, **kwargs)

    return limited
