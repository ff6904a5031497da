"""Builds a product or a cube again and again in forked children and kills each at another moment.

Run as a script: ``kill_server.py URL STEP RANDOM [bias|cube]``: a kill at every STEP-th write and at
RANDOM other moments. It prints one JSON line per kill with what a reader saw afterwards.
Forking keeps each attempt short: the parent imports and compiles everything and never
touches storage, so it has no threads.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import numpy as np
from zarr.storage import LocalStore

from lsstcal_dask.compute import cluster
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.build import build as run
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.cubes import make_cube
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.products.exposures import Transform
from lsstcal_dask.products.stack import StackConfig, combine_amplifier
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.cubelayout import list_pointers
from lsstcal_dask.storage.cubes import CubeReader, open_cube, read_cube
from lsstcal_dask.storage.products import check_product, list_products
from lsstcal_dask.storage.provenance import digest, hash_arrays

WHAT = sys.argv[4] if len(sys.argv) > 4 else "bias"


def compile_kernels():
    amplifier = load_camera("mini1").detectors[0].amplifiers[0]
    counts = np.random.default_rng(1).normal(1000, 4, (5, *amplifier.raw_shape)).astype(np.uint16)
    combine_amplifier(counts, amplifier, Transform(np.ones(5)), StackConfig())


def build(url, kill_at):
    """Build the bias or the cube; at its ``kill_at``-th write to storage the process kills itself."""
    if kill_at:
        arm(kill_at)
    with cluster("threads", 1) as compute:
        if WHAT == "cube":
            assert not make_cube(open_store(url), "c", "i1", Config(), compute).errors
            return
        for _, built in run(open_store(url), ["bias"], Config(), compute):
            assert not built.errors, built.errors


def arm(kill_at):
    count = [0]

    def tick():
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    put, store_set, replace = objects._put, LocalStore.set, Path.replace

    def counted_put(*args):
        tick()
        put(*args)
        tick()

    def counted_replace(self, target):
        tick()  # written beside its place, not yet in it
        found = replace(self, target)
        tick()
        return found

    async def counted_set(self, key, value, *args, **kwargs):
        tick()
        await store_set(self, key, value, *args, **kwargs)
        tick()

    objects._put, LocalStore.set, Path.replace = counted_put, counted_set, counted_replace


def look(url):
    """What a reader sees: nothing, or the hash of what is published and whether its pixels agree."""
    if WHAT == "cube":
        return [look_at_cube(url, pointer) for pointer in list_pointers(url, "c")]
    found = list_products(url, "bias")
    return [[p.hash, p.verdict, check_product(url, p)] for p in found]


def look_at_cube(url, pointer):
    """Hash of all that a publication tells and of all its pixels; verdict; remarks, none."""
    found = open_cube(url, "c", pointer.number, chunked=False)
    cube = read_cube(url, "c", pointer.number)
    odd = [CubeReader(cube, d, block=1).exceptions(k) for d in cube.layout.detectors for k in range(len(cube.slots))]
    pixels = hash_arrays({"flat": found["flat"].values, "odd": np.concatenate(odd).view(np.uint8)})
    return [digest([pixels, [asdict(slot) for slot in pointer.slots]]), pointer.slots[0].verdict, []]


def child(function, *args):
    """Run in a fork; the pid and a pipe on which it reports."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    try:
        result = function(*args)
        os.write(write, json.dumps(result).encode())
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def outcome(pid, read):
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    return os.WIFSIGNALED(status), (json.loads(text) if text else None)


def wipe(url):
    shutil.rmtree(os.path.join(url, {"bias": "products", "cube": "cubes"}[WHAT]), ignore_errors=True)


def attempts(url, step, moments):
    compile_kernels()
    start = time.monotonic()
    outcome(*child(build, url, 0))
    duration = time.monotonic() - start
    _, right = outcome(*child(look, url))
    yield {"right": right}
    chance = random.Random(1)
    for kill_at in range(1, 1000, step):
        wipe(url)
        killed, _ = outcome(*child(build, url, kill_at))
        yield from after_kill(url, f"write {kill_at}")
        if not killed:
            break
    for _ in range(moments):
        wipe(url)
        pid, read = child(build, url, 0)
        delay = chance.uniform(0, duration)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        outcome(pid, read)
        yield from after_kill(url, f"after {delay:.3f} s")


def after_kill(url, moment):
    _, (seen, resumed) = outcome(*child(look_resume_look, url))
    yield {"moment": moment, "seen": seen, "resumed": resumed}


def look_resume_look(url):
    seen = look(url)
    build(url, 0)
    return seen, look(url)


if __name__ == "__main__":
    for row in attempts(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps(row), flush=True)
