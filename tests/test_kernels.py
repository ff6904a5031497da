"""Compiled kernels give the same bits whether numba compiles them or finds them in its cache.

What may be rounded in more than one way (``fastmath``) must be compiled once: a function that is called from a kernel
is inlined there, for otherwise a process has two of it, one in the kernel's own code and one of the function itself,
and calls the one that it loaded first.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.dispatcher import Dispatcher

import lsstcal_dask

ROOT = Path(lsstcal_dask.__file__).parent

CORRECT = """
import hashlib
import numpy as np, xarray as xr
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr import rows
from lsstcal_dask.isr.frame import RawFrame

camera = load_camera("mini1")
detector, shape = camera.detectors[0], camera.image_shape
n, rng = len(detector.amplifiers), np.random.default_rng(1)
raw = RawFrame("e", detector, 30.0, rng.integers(24000, 90000, (n, *camera.raw_shape)).astype(np.int32))
one, some = np.ones(n, np.float32), rng.random((n, *shape), np.float32)
plane = rows.Plane(some, some, np.zeros(some.shape, np.uint16), np.arange(n))
table = rng.random((n, 100, 2), np.float32)
pairs = np.array([(t, s) for t in range(n) for s in range(n) if s != t])
linear = 1e-4 * rng.random(len(pairs), np.float32)
terms = rows.Terms(
    rng.normal(24000, 1, (n, shape[0])).astype(np.float32), one * 26, one * np.float32(1.7), some[0, :, 0], plane,
    rows.Curves(table, one / 640, 5e4 * one), rows.Coupling(*pairs.T.copy(), linear, 1e-5 * linear, 9e4 * one),
    rows.Registers(1e-6 * one, one, 1e-4 * one, one / 2), plane,
)
found = rows.correct_rows(raw, shape, rows.STEPS, terms)
assert np.isfinite(found[0]).mean() > 0.9
print(*(hashlib.md5(part.tobytes()).hexdigest() for part in found), sum(rows._run.stats.cache_hits.values()))
"""


def _callees(kernel: Any) -> set[Any]:
    """Kernels that one calls by name."""
    function = kernel.py_func
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    named += [cell.cell_contents for cell in function.__closure__ or ()]
    return {one for one in named if isinstance(one, Dispatcher)}


def _ambiguous(kernel: Any) -> bool:
    """Whether it, or what it calls, may be rounded in more than one way."""
    return bool(kernel.targetoptions.get("fastmath")) or any(map(_ambiguous, _callees(kernel) - {kernel}))


def compiled_twice(kernels: Iterable[Any]) -> Iterator[str]:
    """Ambiguous functions that a kernel calls and that are not inlined."""
    for kernel in kernels:
        for one in _callees(kernel):
            options = one.targetoptions
            if _ambiguous(one) and not (options.get("forceinline") or options.get("inline") == "always"):
                yield f"{kernel.py_func.__module__}: {kernel.py_func.__name__} calls {one.py_func.__name__}"


def _kernels() -> set[Any]:
    """All of the package, and what they call."""
    names = [path.relative_to(ROOT.parent).with_suffix("").parts for path in ROOT.rglob("*.py")]
    modules = [importlib.import_module(".".join(name)) for name in names if not name[-1].startswith("__")]
    found, more = set(), {one for module in modules for one in vars(module).values() if isinstance(one, Dispatcher)}
    while more:
        found |= more
        more = {callee for one in more for callee in _callees(one)} - found
    return found


def test_what_may_be_rounded_in_two_ways_is_compiled_once():
    kernels = _kernels()
    assert len(kernels) > 100
    assert sorted(compiled_twice(kernels)) == []


@pytest.mark.parametrize(("options", "count"), [({"fastmath": {"contract"}}, 1), ({"forceinline": True}, 0), ({}, 0)])
def test_a_function_compiled_twice_is_found(options, count):
    part = numba.njit(lambda a, b, c: a * b + c, **options)
    whole = numba.njit(lambda a: part(a, a, a))
    assert len(list(compiled_twice([whole]))) == count


@pytest.mark.slow
def test_a_cold_cache_and_a_warm_one_give_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CORRECT]
    cold, warm = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert (cold.pop(), warm.pop()) == ("0", "1")  # found in the cache
    assert cold == warm
