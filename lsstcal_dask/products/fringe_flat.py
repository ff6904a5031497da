"""Fringes of the night sky from the layers of a CCD (Lupton 2016, Sec. 2.9).

A flat synthesised from monochromatic flats, ``B = sum_k w_k f_k``, holds the fringes that their wavelengths happen to
have, those of the silicon aliased. Where the layers are known, both the true fringes of the spectrum and those of B are
predicted: B times their ratio is the flat of that spectrum.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.physics.etalon import Cone, Mirrors, Tuning
from lsstcal_dask.physics.etalon_table import Line, Span, evaluate, pattern_table, span_of, tabulate
from lsstcal_dask.products.etalon_fit import EtalonFit
from lsstcal_dask.products.etalon_start import Blocks

__all__ = ["FringeTable", "Layers", "Light", "fringe_factor", "fringe_pattern", "fringe_table", "response_of"]

Floats = NDArray[np.float64]

_SAMPLES: Final = 20  # of a table per fringe; cubic interpolation loses 2e-4 of the fringe
_ORDERS: Final = 3


@dataclass(frozen=True, eq=False)
class Light:
    """A spectrum as a CCD sees it."""

    line: Line  # elements: lines (width 0), bins (``tophat``), flats of a laser
    electrons: Floats  # (n,) that each frees without fringes, of any scale
    plain: float = 0.0  # electrons of other light, whose fringes are not looked at


@dataclass(frozen=True, eq=False)
class Layers:
    """What all pixels of a CCD have in common, for `fringe_table`."""

    cone: Cone
    mirrors: Mirrors
    tuning: Tuning


@dataclass(frozen=True, eq=False)
class FringeTable:
    """Fringes on a mesh of thicknesses of silicon and glue."""

    mesh: NDArray[np.float32]  # (p, q)
    silicon: Floats  # (p,) um, equally spaced
    glue: Floats  # (q,)

    def at(self, silicon: Any, glue: Any) -> NDArray[np.float32]:
        """Fringes (...) of pixels of these thicknesses (...), um; NaN where these are."""
        known = np.isfinite(silicon) & np.isfinite(glue)
        places = [
            (np.where(known, m, a[0]) - a[0]) / (a[1] - a[0]) for m, a in ((silicon, self.silicon), (glue, self.glue))
        ]
        found = map_coordinates(self.mesh, places, order=3, mode="nearest")
        return np.asarray(np.where(known, found, np.nan), np.float32)


def fringe_table(layers: Layers, span: Span, light: Light) -> FringeTable:
    """Fringes of some light, relative to what it would be without, for all thicknesses of a CCD.

    Raises
    ------
    WrongUse
        No light, or electrons that do not fit the wavelengths.
    """
    electrons = np.asarray(light.electrons, float)
    if electrons.shape != light.line.wavelength.shape or not np.isfinite(electrons).all() or not electrons.sum() > 0:
        raise WrongUse(f"fringes: {electrons.shape} electrons for {light.line.wavelength.shape} wavelengths: give some")
    table = tabulate(light.line, span, layers.cone, layers.mirrors, layers.tuning, _ORDERS)
    shortest = float(light.line.wavelength.min()) / 2e3
    axes = [
        np.linspace(*ends, max(4, int((ends[1] - ends[0]) / (shortest / index / _SAMPLES)) + 2))
        for ends, index in (
            (span.silicon, float(layers.mirrors.silicon(shortest * 2e3))),
            (span.glue, layers.mirrors.glue),
        )
    ]
    share = electrons.sum() / (electrons.sum() + light.plain)
    mesh = 1 + share * (pattern_table(table, electrons, *axes) - 1)
    return FringeTable(mesh.astype(np.float32), *axes)


def fringe_pattern(fit: EtalonFit, y: Any, x: Any, light: Light) -> NDArray[np.float32]:
    """Fringes of some light, relative to what it would be without.

    Parameters
    ----------
    fit : layers of the CCD.
    y, x : (ny,), (nx,) rows and columns of the CCD, px.

    Returns
    -------
    (y, x) about 1.

    Raises
    ------
    WrongUse
        No light, or electrons that do not fit the wavelengths.
    """
    silicon, glue = fit.thickness(y, x)
    return fringe_table(Layers(fit.cone, fit.mirrors, fit.tuning), span_of(silicon, glue), light).at(silicon, glue)


def fringe_factor(fit: EtalonFit, y: Any, x: Any, light: Light, flats: Light) -> NDArray[np.float32]:
    """What a flat synthesised from monochromatic flats is to be multiplied by to have the fringes of ``light``.

    Parameters
    ----------
    light : the spectrum for which the flat was synthesised.
    flats : the monochromatic flats, with what each contributes to it.

    Returns
    -------
    (y, x), `fringe_pattern` of the light over that of the flats.
    """
    return fringe_pattern(fit, y, x, light) / fringe_pattern(fit, y, x, flats)


def response_of(fit: EtalonFit, blocks: Blocks) -> Floats:
    """Mean response of a CCD (wavelength,) to the flats of its scan with its fringes taken out.

    What each flat contributes to a synthesised one is its weight times this.
    """
    silicon, glue = fit.thickness_at(*blocks.centre)
    table = tabulate(blocks.line, span_of(silicon, glue), fit.cone, fit.mirrors, fit.tuning)
    fringes = evaluate(table, silicon, glue)[0] @ blocks.share
    return np.exp(blocks.value) @ blocks.share / fringes
