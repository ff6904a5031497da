"""Each closed loop at its smallest: that it measures what it says, and that a correction left out is missed."""

import numpy as np

from lsstcal_dask.pipeline.closed import LOOPS, deferred
from lsstcal_dask.pipeline.closed.registry import import_module


def by_name(targets):
    found = {one.name: one for one in targets}
    assert len(found) == len(targets)
    assert all(np.isfinite(one.measured) and np.isfinite(one.error) for one in targets)
    return found


def test_every_loop_is_a_module():
    for name in LOOPS:
        loop = import_module(f"lsstcal_dask.pipeline.closed.{name}")
        assert loop.SEEDS > 0


def test_deferred():
    """16 amplifiers of one CCD: the width of pulls is known to 18 %, their mean to 0.25."""
    found = by_name(deferred.measure(1))
    assert len(found) == 16
    assert all(one.verdict != "fail" or abs(one.measured - 1) < 4 * one.error for one in found.values() if one.low > 0)
