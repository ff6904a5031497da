"""Light of a source as its fringes want it: the adapter from spectra and weights to `fringe_flat` (Lupton 2016, 2.9).

A flat synthesised from a cube is ``B = sum_k w_k r_k F_k``, r the response of a CCD without fringes and F_k the fringes
of a flat 1 nm wide. What is wanted is ``integral S T A r F``, F the fringes of each wavelength, r straight between the
slices as it is in the weights: without fringes both are the same light, and B times the ratio of their fringes is it.
Light beyond the wavelengths at which layers were fitted keeps the fringes that its slices have.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsstcal_dask.physics.etalon import empirical_suffices, group_index, silicon_index
from lsstcal_dask.physics.etalon_table import Line
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.products.fringe_flat import Light
from lsstcal_dask.products.weights import Scan, Weights, quadrature

__all__ = ["Response", "fringing_share", "light_of", "light_of_flats", "slices_suffice"]

Floats = NDArray[np.float64]

_BIN: Final = 0.2  # nm of the continuum: a sixth of the distance of fringes of silicon, and it is even within


@dataclass(frozen=True, eq=False)
class Response:
    """Response of a CCD without its fringes at the slices of a cube, and between which wavelengths layers are known."""

    wavelength: Floats  # (k,) nm
    value: Floats  # (k,)
    ends: tuple[float, float]  # nm

    @classmethod
    def of(cls, scan: Scan, wavelength: Floats, fringeless: Floats) -> "Response":
        """From what layers were fitted to (n,), NaN where a slice lacked; elsewhere the focal plane's, scaled."""
        known = np.isfinite(fringeless)
        at, own = wavelength[known], fringeless[known]
        scale = float(np.mean(own / np.interp(at, scan.wavelength, scan.response)))
        inside = (scan.wavelength >= at[0]) & (scan.wavelength <= at[-1])
        value = np.where(inside, np.interp(scan.wavelength, at, own), scale * scan.response)
        return cls(scan.wavelength, value, (float(at[0]), float(at[-1])))

    def inside(self, wavelength: Floats) -> NDArray[np.bool_]:
        """Whether layers are known there."""
        return np.asarray((wavelength >= self.ends[0]) & (wavelength <= self.ends[1]))


def light_of(
    spectrum: Spectrum,
    passband: Surface | Nearby | Curve | None,
    atmosphere: Curve | None,
    response: Response,
    terms: Floats,
) -> Light:
    """Light of a source behind filter and air at a place: its lines, and its continuum in bins.

    Parameters
    ----------
    terms : (term,) of the filter at the place, `Weights.terms`.
    """
    dark = replace(spectrum, line_wavelength=np.zeros(0), line_flux=np.zeros(0), density_modes=None, line_modes=None)
    only = replace(spectrum, density=np.zeros_like(spectrum.density), density_modes=None, line_modes=None)
    low, high = response.ends
    edges = np.r_[np.arange(low, high, _BIN), high]
    at, photons = quadrature(dark, passband, atmosphere, np.unique(np.r_[edges, response.wavelength]))
    lines, strength = quadrature(only, passband, atmosphere, edges)
    seen, bright = (
        (terms @ n) * np.interp(nm, response.wavelength, response.value) for nm, n in ((at, photons), (lines, strength))
    )
    own, line = response.inside(at), response.inside(lines) & (bright != 0)
    bins, moment = (np.histogram(at[own], edges, weights=one[own])[0] for one in (seen, seen * at))
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    # a step or a slope within a bin moves its light, and the phase of fringes with it
    centre = np.divide(moment, bins, out=middles.copy(), where=bins > 0)
    middles = np.clip(centre, edges[:-1], edges[1:])
    elements = Line(np.r_[middles, lines[line]], np.r_[widths, np.zeros(int(line.sum()))], "tophat")
    plain = seen[~own].sum() + bright[~response.inside(lines)].sum()
    return Light(elements, np.r_[bins, bright[line]], float(plain))


def light_of_flats(weights: Floats, scan: Scan, response: Response) -> Light:
    """Light of the slices of a flat, of weights (k,) at a place."""
    electrons, own = weights * response.value, response.inside(scan.wavelength)
    return Light(Line(scan.wavelength[own], scan.bandwidth[own]), electrons[own], float(electrons[~own].sum()))


def fringing_share(weights: Weights, place: tuple[float, float], ends: tuple[float, float]) -> float:
    """Share of the light of a flat at a place (mm) that lies between the wavelengths at which layers are known."""
    light = weights.at(*place) * weights.response
    own = (weights.wavelength >= ends[0]) & (weights.wavelength <= ends[1])
    return float(light[own].sum() / light.sum())


def slices_suffice(scan: Scan, ends: tuple[float, float], silicon: float) -> bool:
    """Whether slices are narrow and near enough to tell the fringes of so much silicon (um) for any spectrum."""
    own = (scan.wavelength >= ends[0]) & (scan.wavelength <= ends[1])
    nm = scan.wavelength[own]
    step = np.maximum(np.gradient(nm), scan.bandwidth[own])
    return bool(empirical_suffices(nm, silicon, group_index(silicon_index, nm), step).all())
