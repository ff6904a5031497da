"""The maps that stand for the slices of a store's cube where it is compressed, found and opened (SCIENCE 2.8.5)."""

from dataclasses import dataclass

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.products.lowrank import LowRank
from lsstcal_dask.storage.compressed import CompressedPointer, list_compressed, read_amplifier
from lsstcal_dask.storage.cubelayout import Cube

__all__ = ["MapsOpener", "compressed_of"]


@dataclass(frozen=True)
class MapsOpener:
    """Gives the maps of an amplifier where they are wanted; None for a CCD that was not compressed."""

    url: str
    cube: str
    version: str
    amplifiers: tuple[str, ...]
    detectors: frozenset[str]

    def __call__(self, detector: str, amplifier: int) -> LowRank | None:
        """Maps of an amplifier, by its place in the cube; raises `StoreFailure` where they are damaged."""
        if detector not in self.detectors:
            return None
        arrays = read_amplifier(self.url, (self.cube, self.version, detector, self.amplifiers[amplifier]))
        if arrays is None:
            return None
        maps = arrays.pop("maps")
        return LowRank(maps=maps.reshape(len(maps), -1), **arrays)


def compressed_of(store: Store, cube: Cube) -> tuple[CompressedPointer, MapsOpener]:
    """The compressed form of a cube as it is now, asked for last, and what gives its maps to workers.

    Raises
    ------
    InsufficientInputs
        There is none, or only of an earlier publication of the cube.
    """
    known = list_compressed(store.url, cube.name)
    own = [one for one in known if one.number == cube.pointer.number]
    if not own:
        there = f"only of its publication {known[-1].number}, and slices have come since" if known else "none"
        raise InsufficientInputs(
            f"cube {cube.name}, publication {cube.pointer.number}, has no compressed form ({there}): run 'lsstcal "
            f"compress {store.url} --cube {cube.name}'"
        )
    pointer = own[-1]
    names = frozenset(pointer.detectors)
    return pointer, MapsOpener(store.url, cube.name, pointer.version, cube.layout.amplifiers, names)
