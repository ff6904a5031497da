"""One Dask task per detector: the unit of work of everything that streams stacks of exposures.

A task gets the lazily read data of one CCD and goes through its amplifiers one
by one, so the graph of a focal plane has a few hundred tasks for any number of
exposures, and a task holds one amplifier's stack at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

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
    """Carries a lazily read Dataset through a graph, so that neither Dask nor a token ever looks inside."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset


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
    arguments : further arguments for one detector.

    Returns
    -------
    Dask arrays with one chunk per detector; coordinates of ``source`` along the dims that remain.
    """
    names = [str(name) for name in source["detector"].values]
    amplifiers = [str(name) for name in source["amplifier"].values]
    uses_dask = any(variable.chunks is not None for variable in source.variables.values())
    token = tokenize(object())
    shared = None if uses_dask else dask.delayed(Opaque(source), name=f"source-{token}", pure=False)
    collect = dask.delayed(_collect, pure=False)
    calls = []
    for name in names:
        part = source.sel(detector=[name]) if shared is None else shared
        key = f"{getattr(function, '__name__', 'map')}-{token}-{name}"
        spec = (outputs, dict(sizes), amplifiers)
        calls.append(collect(function, part, name, arguments(name), spec, dask_key_name=key))
    variables = {
        var: xr.Variable(*_stack(var, output, calls, {**sizes, "detector": len(names)}, token))
        for var, output in outputs.items()
    }
    for var, output in outputs.items():
        variables[var].attrs = output_attributes(var, output)
    dims = {dim for variable in variables.values() for dim in variable.dims} - {"y", "x"}
    coords = {name: coord for name, coord in source.coords.items() if set(coord.dims) <= dims}
    return xr.Dataset(variables, coords=coords)


def _collect(
    function: Callable[..., AmplifierResults],
    source: Opaque | xr.Dataset,
    name: str,
    args: tuple,
    spec: tuple[Mapping[str, Output], Mapping[str, int], list[str]],
) -> dict[str, np.ndarray]:
    dataset = source.dataset if isinstance(source, Opaque) else source
    outputs, sizes, amplifiers = spec
    found, keys = {}, {}
    for var, output in outputs.items():
        dims = output_dims(var, output, sizes)
        found[var] = empty_values(var, output, tuple(sizes[dim] for dim in dims))
        keys[var] = dims.index("amplifier")
    for amplifier, result in function(dataset.sel(detector=name), *args):
        for var, axis in keys.items():
            index = (slice(None),) * axis + (amplifiers.index(amplifier),)
            found[var][index] = result[var].values
    return found


def _stack(
    var: str, output: Output, calls: list[Any], sizes: Mapping[str, int], token: str
) -> tuple[tuple[str, ...], da.Array]:
    dims = output_dims(var, output, sizes)
    axis = dims.index("detector")
    name = f"{var}-{token}"
    layer: dict[Any, Any] = {}
    for i, call in enumerate(calls):
        position = [0] * len(dims)
        position[axis] = i
        layer[name, *position] = (_values, call.key, var, axis)
    chunks = tuple((1,) * len(calls) if dim == "detector" else (sizes[dim],) for dim in dims)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=calls)
    return dims, da.Array(graph, name, chunks, dtype=output.dtype)


def _values(found: dict[str, np.ndarray], var: str, axis: int) -> np.ndarray:
    return np.expand_dims(found[var], axis)
