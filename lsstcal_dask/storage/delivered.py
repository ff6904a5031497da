"""Files of the camera team as they were delivered, kept beside the products made of them (§2-§5).

    products/<name>/delivered/<hash><ending>   files that are read together have one hash

A product holds what is applied; a file says more: gains of the fit, counts, the sequencer. An export of what was
imported gives it back to the byte.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.provenance import hash_file

__all__ = ["hash_together", "keep", "kept"]


def hash_together(paths: Sequence[str | Path]) -> str:
    """Hash of files that are read together: of one that of its bytes, of several that of their hashes in order."""
    found = [hash_file(Path(path).read_bytes()) for path in paths]
    return found[0] if len(found) == 1 else hash_file("".join(found).encode())


def keep(url: str, product: str, paths: Sequence[str | Path], hashed: str) -> list[str]:
    """Put files that were read together into the store; their endings beyond the name that they have in common.

    Raises
    ------
    CalibrationError
        They are not what they were when they were read.
    """
    if hash_together(paths) != hashed:
        raise CalibrationError(f"{paths[0]}: changed while it was read: import it again")
    stem = Path(paths[0]).stem
    endings = [Path(path).name.removeprefix(stem) for path in paths]
    for path, ending in zip(paths, endings, strict=True):
        place = f"products/{product}/delivered/{hashed}{ending}"
        if not objects.exists(url, place):
            objects.write_bytes(url, place, Path(path).read_bytes())
    return endings


def kept(url: str, product: str, row: Mapping[str, Any]) -> dict[str, bytes]:
    """Files by ending, of a row of the ``files`` that a product was made of; empty where none were kept."""
    return {
        ending: objects.read_bytes(url, f"products/{product}/delivered/{row['hash']}{ending}")
        for ending in row.get("kept", ())
    }
