"""Acceptance of the layers that make fringes, and of maps of fringes of the sky (Lupton 2016, Sec. 2.9; §13)."""

from collections.abc import Callable
from typing import Final

import numpy as np

from lsstcal_dask.verify.metric import OURS, Case, Metric, Of, of_any, rowwise

__all__ = ["OF_LAYERS", "OF_MAPS"]


def _layer(variable: str) -> Of:
    """Median of the thickness of a layer."""
    return lambda case, name: rowwise(case.values(name, variable), np.median)


def _frames(case: Case, name: str) -> np.ndarray:
    """Median over the blocks (amplifier,) that any frame tells."""
    found = case.values(name, "fringe_frames")
    return rowwise(np.where(found > 0, found, np.nan), np.median)


def _strength(case: Case, name: str) -> np.ndarray:
    """Rms (amplifier,) of what the frames have of the maps, the noise of these taken out; median of the frames.

    ``sum_kl a_fk a_fl mean(m_k m_l) - sum_k a_fk**2 mean(var m_k)`` is its square in frame f.
    """
    maps, variance = (case.values(name, variable) for variable in ("fringe_map", "fringe_map_variance"))
    amplitude = case.products[name]["fringe_amplitude"].transpose("amplifier", "exposure", "mode").values
    return np.array([_rms(*one) for one in zip(maps, variance, amplitude, strict=True)])


def _rms(maps: np.ndarray, variance: np.ndarray, amplitude: np.ndarray) -> float:
    """The same of one amplifier: maps (mode, block_y, block_x), amplitude (exposure, mode); NaN where none is known."""
    m, v = (values.reshape(len(values), -1) for values in (maps, variance))
    known = np.isfinite(m).all(axis=0) & np.isfinite(v).all(axis=0)
    a = amplitude[np.isfinite(amplitude).all(axis=1)]
    if not known.any() or not len(a):
        return float("nan")
    square = m[:, known] @ m[:, known].T / known.sum() - np.diag(v[:, known].mean(axis=1))
    return float(np.median(np.sqrt(np.maximum(np.einsum("fk,kl,fl->f", a, square, a), 0))))


OF_LAYERS: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "silicon",
        _layer("silicon_thickness"),
        f"Lupton Sec. 2.9: 100 um; {OURS}",
        "median thickness of the silicon by its fringes",
        limits=(50, 300),
        aim=(80, 250),
        unit="um",
    ),
    of_any(
        "glue",
        _layer("glue_thickness"),
        f"Guo et al. 2023: some ten micrometres; {OURS}",
        "median thickness of the glue below the silicon by its fringes",
        limits=(0, 100),
        aim=(1, 50),
        unit="um",
    ),
)
"""Of product ``fringes``."""

OF_MAPS: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "frames",
        _frames,
        f"SCIENCE 2.9: fewer than 10 are refused; that a block lacks half of them, and 20: {OURS}",
        "median number of frames of the sky behind a block",
        limits=(5, np.inf),
        aim=(20, np.inf),
    ),
    of_any(
        "strength",
        _strength,
        f"Guo et al. 2023: 4e-4 to 2e-3 of the sky in y, of a fast beam; beyond that {OURS}",
        "rms of what a frame has of the maps, relative to its sky and beyond their noise; median of the frames",
        limits=(0, 0.1),
        aim=(1e-5, 0.02),
    ),
)
"""Of products ``fringe_frame-FILTER`` and ``fringe_modes-FILTER``."""
