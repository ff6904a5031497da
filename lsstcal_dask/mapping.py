"""One Dask task per detector: the unit of work of everything that streams stacks of exposures.

A task gets the lazily read data of one CCD and goes through its amplifiers one
by one, so the graph of a focal plane has a few hundred tasks for any number of
exposures, and a task holds one amplifier's stack at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.variables import MASK_BITS, VARIABLES, attributes, mask_attributes

__all__ = [
    "AmplifierResults",
    "Opaque",
    "Output",
    "empty_values",
    "map_detectors",
    "output_attributes",
    "output_dims",
]

_MANY_BLOCKS = 20_000
"""Chunks of a Dask-backed source beyond which its graph costs more than the work."""

AmplifierResults = Iterator[tuple[str, xr.Dataset]]
"""Name and result of one amplifier after the other; a result has no detector or amplifier dim."""


@dataclass(frozen=True)
class Output:
    """A variable of a product; its dims are those of the data dictionary that have a size."""

    dtype: str
    units: str = ""
    per_exposure: bool = False  # one value for each exposure that went in; otherwise they are combined


def output_attributes(name: str, output: Output) -> dict[str, Any]:
    """Attributes of an output variable."""
    return mask_attributes() if name == "mask" else attributes(name, output.units)


def output_dims(name: str, output: Output, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Dims of an output variable: those of the data dictionary that have a size."""
    gone = () if output.per_exposure else ("exposure",)
    return tuple(dim for dim in VARIABLES[name].dims if dim in sizes and dim not in gone)


def empty_values(name: str, output: Output, shape: tuple[int, ...]) -> np.ndarray:
    """Values of an amplifier that was not made: NaN, the mask bit NO_DATA, zero frames."""
    fill: Any = np.nan if np.dtype(output.dtype).kind == "f" else 0
    return np.full(shape, MASK_BITS["NO_DATA"] if name == "mask" else fill, output.dtype)


class Opaque:
    """Carries an object through a graph, so that neither Dask nor a token ever looks inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


def map_detectors(
    function: Callable[..., AmplifierResults],
    source: xr.Dataset,
    outputs: Mapping[str, Output],
    sizes: Mapping[str, int],
    arguments: Callable[[str], tuple],
) -> xr.Dataset:
    """Lazy Dataset of ``function(source.sel(detector=name), *arguments(name))`` for every detector.

    Parameters
    ----------
    function : takes one detector's Dataset, yields the results of its amplifiers.
    source : has ``detector`` and ``amplifier`` dims; read lazily, in memory, or Dask arrays of any chunking.
    outputs : variables of the result.
    sizes : size of every dimension of the result but ``detector``.
    arguments : further arguments for one detector; among them a dict of Datasets may hold Dask arrays.

    Returns
    -------
    Dask arrays: of pixels one chunk per detector, of anything smaller one chunk for all;
    coordinates of ``source`` along the dims that remain.
    """
    names = [str(name) for name in source["detector"].values]
    amplifiers = [str(name) for name in source["amplifier"].values]
    plan = (function, outputs, dict(sizes), amplifiers)
    calls = _calls(plan, source, {name: arguments(name) for name in names})
    full = {**sizes, "detector": len(names)}
    variables = {}
    for var, output in outputs.items():
        dims, data = _stack(var, output, calls, full)
        variables[var] = xr.Variable(dims, data, output_attributes(var, output))
    kept = {dim for variable in variables.values() for dim in variable.dims} - {"y", "x"}
    coords = {name: coord for name, coord in source.coords.items() if set(coord.dims) <= kept}
    return xr.Dataset(variables, coords=coords)


@dataclass(frozen=True)
class _Calls:
    """The part of the graph that calls the function: one key per detector."""

    name: str
    graph: HighLevelGraph
    keys: list[Any]


def _calls(plan: tuple, source: xr.Dataset, arguments: Mapping[str, tuple]) -> _Calls:
    token = tokenize(object())
    name = f"{getattr(plan[0], '__name__', 'map')}-{token}"
    if _uses_dask(source) or any(_uses_dask(d) for extra in arguments.values() for d in _datasets(extra)):
        blocks = sum(math.prod(map(len, v.chunks)) for v in source.variables.values() if v.chunks is not None)
        if blocks > _MANY_BLOCKS:
            raise CalibrationError(
                f"{blocks} Dask chunks would be searched for every detector: open the exposures with "
                f"chunked=False, tasks then read what they need"
            )
        collect = dask.delayed(_collect, pure=False)
        found = [collect(Opaque(plan), source.sel(detector=[det]), det, [*extra]) for det, extra in arguments.items()]
        return _Calls(name, HighLevelGraph.merge(*(call.dask for call in found)), [call.key for call in found])
    # By hand, for `delayed` would search every argument of every call.
    whole, shared = f"source-{token}", f"plan-{token}"
    layer: dict[Any, Any] = {whole: Opaque(source), shared: Opaque(plan)}
    keys = [(name, i) for i in range(len(arguments))]
    for key, (det, extra) in zip(keys, arguments.items(), strict=True):
        layer[key] = (_collect, shared, whole, det, Opaque(extra))
    return _Calls(name, HighLevelGraph({name: MaterializedLayer(layer)}, {name: set()}), keys)


def _uses_dask(dataset: xr.Dataset) -> bool:
    return any(variable.chunks is not None for variable in dataset.variables.values())


def _datasets(extra: tuple) -> Iterator[xr.Dataset]:
    for argument in extra:
        if isinstance(argument, dict):
            yield from (value for value in argument.values() if isinstance(value, xr.Dataset))


def _open(argument: Any) -> Any:
    return argument.value if isinstance(argument, Opaque) else argument


def _collect(plan: Opaque, source: Opaque | xr.Dataset, name: str, extra: Any) -> dict[str, np.ndarray]:
    function, outputs, sizes, amplifiers = plan.value
    found, axes = {}, {}
    for var, output in outputs.items():
        dims = output_dims(var, output, sizes)
        found[var] = empty_values(var, output, tuple(sizes[dim] for dim in dims))
        axes[var] = dims.index("amplifier")
    part = _open(source).sel(detector=name)
    for amplifier, result in function(part, *_open(extra)):
        for var, axis in axes.items():
            found[var][(slice(None),) * axis + (amplifiers.index(amplifier),)] = result[var].values
    return found


def _stack(var: str, output: Output, calls: _Calls, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], da.Array]:
    dims = output_dims(var, output, sizes)
    axis = dims.index("detector")
    name = f"{var}-{calls.name}"
    layer: dict[Any, Any] = {}
    if "x" in dims:
        for i, key in enumerate(calls.keys):
            layer[(name, *(i if dim == "detector" else 0 for dim in dims))] = (_values, key, var, axis)
        along: tuple[int, ...] = (1,) * len(calls.keys)
    else:
        layer[(name, *(0 for _ in dims))] = (_gather, list(calls.keys), var, axis)
        along = (len(calls.keys),)
    chunks = tuple(along if dim == "detector" else (sizes[dim],) for dim in dims)
    layers = {**calls.graph.layers, name: MaterializedLayer(layer)}
    needs = {**calls.graph.dependencies, name: set(calls.graph.layers)}
    return dims, da.Array(HighLevelGraph(layers, needs), name, chunks, dtype=output.dtype)


def _values(found: dict[str, np.ndarray], var: str, axis: int) -> np.ndarray:
    return np.expand_dims(found[var], axis)


def _gather(found: list[dict[str, np.ndarray]], var: str, axis: int) -> np.ndarray:
    return np.stack([values[var] for values in found], axis)
