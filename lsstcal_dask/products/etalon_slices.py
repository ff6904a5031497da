"""Layers of a CCD from the slices of a flat cube: thickness of silicon and glue of every pixel (Lupton 2016, Sec. 2.9).

The product holds what `fringe_flat` needs: maps of both thicknesses, the tuning of the layers, and the response of the
CCD without fringes at each wavelength that was fitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument.assembly import assemble, split
from lsstcal_dask.instrument.camera import Amplifier, Camera, Detector
from lsstcal_dask.instrument.geometry import amplifier_to_ccd
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.physics.etalon import COLLIMATED, PUPIL, Cone, Tuning
from lsstcal_dask.physics.etalon_table import Line
from lsstcal_dask.products.etalon_bins import Binned, bin_slices
from lsstcal_dask.products.etalon_fit import EtalonFit, fit_binned, needed
from lsstcal_dask.products.etalon_problem import Prior, to_tuning, to_vector
from lsstcal_dask.products.fringe_flat import response_of
from lsstcal_dask.products.sums import UNUSABLE, Slices
from lsstcal_dask.variables import NOTE

__all__ = ["BEAMS", "OUTPUTS", "TUNING", "EtalonConfig", "Scanned", "etalon_amplifiers", "tuning_of"]

BEAMS: Final[dict[str, Cone]] = {"pupil": PUPIL, "parallel": COLLIMATED}
"""Directions of light: of the telescope's pupil, f/1.23, or of a beam without angles."""

TUNING: Final = (
    "etalon_support",
    "etalon_visibility",
    "etalon_absorption",
    "etalon_absorption_slope",
    "etalon_dispersion",
    "etalon_dispersion_bend",
    "etalon_cone",
)
"""Variables of the product that hold the numbers of a `physics.etalon.Tuning`, in its order."""

OUTPUTS: Final = {
    "silicon_thickness": Output("float32", "um"),
    "glue_thickness": Output("float32", "um"),
    "silicon_thickness_error": Output("float32", "um"),
    "glue_thickness_error": Output("float32", "um"),
    **{name: Output("float64") for name in (*TUNING, "etalon_chi2", "etalon_dof")},
    "fringeless_response": Output("float64", "electron/photon"),
}

_UNTOLD: Final = 0.3  # chi2 that is left, of what the fringes of silicon take away: 0.02 where the fit is right
_MISFIT: Final = 30.0  # chi2 of a degree of freedom: 13 in a parallel beam and right, 120 with wrong gates
_BLACK: Final = 0.2  # amplitude that a black coat may reflect, over that of polished silicon: 1 % of the light
_ORDER: Final = 9.0  # chi2 by which silicon one fringe off has to be worse


class EtalonConfig(BaseModel):
    """How layers are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float = Field(900.0, ge=700, le=1200, description="nm, the shortest wavelength that is fitted")
    beam: Literal["pupil", "parallel"] = Field("pupil", description="of the flats, and of the sky")
    blocks: tuple[int, int] = Field((16, 8), description="px of the blocks of the search, and of the fit")
    knots: float = Field(250.0, gt=0, description="px between the knots of the splines of thickness, of the search")
    fine: float = Field(170.0, gt=0, description="px between those of the fit, if that is less")
    silicon: tuple[float, float] = Field((96.0, 104.0), description="um, where the thickness is searched")
    glue: tuple[float, float] = Field((10.5, 17.5), description="um, where that of the glue is searched")
    black: tuple[str, ...] = Field(("ITL",), description="vendors whose CCDs have a black coat below the glue")

    @property
    def cone(self) -> Cone:
        """Directions of the light."""
        return BEAMS[self.beam]

    def prior(self, vendor: str) -> Prior:
        """What the fit knows before of the CCDs of a vendor: of some, that nothing comes back from below the glue."""
        own = Prior(silicon=self.silicon, glue=self.glue, scale=self.knots, fine=self.fine)
        return replace(own, nominal=Tuning(support=0.0), support=_BLACK) if vendor in self.black else own


class Readable(Slices, Protocol):
    """Slices that can be read one by one: `storage.cubes.CubeReader`."""

    def values(self, k: int, amplifier: int) -> np.ndarray:
        """Values (y, x) of an amplifier in a slice; NaN where nothing is known."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """The wavelengths of a cube that are fitted."""

    places: NDArray[np.intp]  # (n,) along the wavelengths of the cube
    line: Line  # (n,)
    camera: Camera


def etalon_amplifiers(
    slices: Readable, detector: Detector, scanned: Scanned, config: EtalonConfig = EtalonConfig()
) -> AmplifierResults:
    """Layers of one CCD, amplifier after amplifier.

    Takes 1.3 GB for 181 slices of a CCD of 16 Mpx, most of it for the scores of the search.

    Yields
    ------
    Name and Dataset of `OUTPUTS` without the detector: thicknesses (y, x); numbers that hold for the whole CCD stand
    at each amplifier, errors are those in its middle; ``fringeless_response`` (wavelength,) is NaN where a slice lacks.

    Raises
    ------
    DegenerateSolution, InsufficientInputs, WrongUse
        As `fit_binned`; it names the CCD.
    """
    binned, used = _binned(slices, detector, scanned, config)
    try:
        fit, blocks = fit_binned(binned, config.cone, config.prior(detector.vendor))
    except DegenerateSolution as error:
        raise DegenerateSolution(f"{detector.name}: {error}") from error
    response = np.full(len(scanned.places), np.nan)
    response[used] = response_of(fit, blocks)
    numbers: dict[str, Any] = dict(zip(TUNING, to_vector(fit.tuning), strict=True))
    numbers |= {"etalon_chi2": fit.chi2, "etalon_dof": fit.dof}
    maps = [
        np.asarray(split(one.astype(np.float32), detector, scanned.camera))
        for one in fit.thickness(*(np.arange(n) for n in detector.shape))
    ]
    remarks = _remarks(fit, int((~used).sum()))
    for amplifier in detector.amplifiers:
        a = scanned.camera.amplifier_names.index(amplifier.name)
        errors = fit.error(*_middle(amplifier))
        found = {
            "silicon_thickness": (("y", "x"), maps[0][a]),
            "glue_thickness": (("y", "x"), maps[1][a]),
            "silicon_thickness_error": errors[0][0, 0],
            "glue_thickness_error": errors[1][0, 0],
            **numbers,
            "fringeless_response": (("wavelength",), response),
        }
        yield amplifier.name, xr.Dataset(found, attrs={"remarks": remarks, "summary": {}})
        remarks = []  # once for a CCD


def tuning_of(product: xr.Dataset) -> Tuning:
    """Tuning of the layers of a CCD from its product, of which any amplifier tells it."""
    numbers = np.stack([np.asarray(product[name].values, float).ravel() for name in TUNING])
    known = np.flatnonzero(np.isfinite(numbers).all(axis=0))
    return to_tuning(numbers[:, known[0]])


def _middle(amplifier: Amplifier) -> tuple[np.ndarray, np.ndarray]:
    """Row (1,) and column (1,) of the CCD in the middle of an amplifier."""
    ny, nx = amplifier.data.shape
    x, y = amplifier_to_ccd(amplifier, (nx - 1) / 2, (ny - 1) / 2)
    return np.atleast_1d(y), np.atleast_1d(x)


def _binned(
    slices: Readable, detector: Detector, scanned: Scanned, config: EtalonConfig
) -> tuple[tuple[Binned, Binned], NDArray[np.bool_]]:
    """Sums of the slices in which all amplifiers are that most slices have, and which (wavelength,) these are."""
    names = scanned.camera.amplifier_names
    own = np.array([names.index(one.name) for one in detector.amplifiers])
    there = np.isfinite(slices.scale[np.ix_(scanned.places, own)])
    usual = there.mean(axis=0) > 0.5
    used = there[:, usual].all(axis=1) & usual.any()
    if not used.any():
        raise InsufficientInputs(f"{detector.name}: no slice of the cube holds it whole: take its red flats again")
    live, places = own[usual], scanned.places[used]
    line = Line(scanned.line.wavelength[used], scanned.line.width[used], scanned.line.shape)
    good = np.asarray(assemble(_good(slices, live, places).astype(np.uint8), detector, scanned.camera), bool)
    images = _images(slices, (detector, scanned.camera), live, places)
    most = needed(detector.shape, config.prior(detector.vendor))
    return bin_slices(line, images, good, config.blocks, most), used


def _good(slices: Slices, live: np.ndarray, places: np.ndarray) -> NDArray[np.bool_]:
    """Pixels (amplifier, y, x) that can be used in all slices."""
    bits = slices.mask()
    good = np.zeros(bits.shape, bool)
    good[live] = (bits[live] & UNUSABLE) == 0
    for k in places:
        odd = slices.exceptions(int(k))
        bad = odd[~np.isfinite(odd["change"]) | ((odd["mask"] & UNUSABLE) != 0)]
        good[bad["amplifier"], bad["y"], bad["x"]] = False
    return good


def _images(
    slices: Readable, site: tuple[Detector, Camera], live: np.ndarray, places: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Value and variance (y, x) of the CCD in each slice."""
    number = slices.scale.shape[1]
    value, variance = np.full((2, number, *slices.shape), np.nan, np.float32)
    for k in places:
        for a in live:
            value[a] = slices.values(int(k), int(a))
            variance[a] = slices.variance_slope[k, a] * value[a] + slices.variance_floor[k, a]
        yield np.asarray(assemble(value, *site)), np.asarray(assemble(variance, *site))


def _remarks(fit: EtalonFit, missing: int) -> list[str]:
    """What a person should know of a fit."""
    found = [f"red slices left out, for some of its amplifiers lack them: {missing}"] if missing else []
    if fit.chi2 > _MISFIT * fit.dof:
        found.append(
            f"its layers fit badly, chi2 {fit.chi2 / fit.dof:.3g} of each degree of freedom: gates, oxide or coating "
            "are not those that are taken as known: look at what flats made with them leave"
        )
    if fit.gain[0] < _ORDER * max(1.0, fit.chi2 / fit.dof):
        found.append(f"{NOTE}its flats show no fringes of silicon: those of the sky are of the glue only")
    elif fit.chi2 - fit.dof > _UNTOLD * fit.gain[0]:
        left = (fit.chi2 - fit.dof) / fit.gain[0]
        found.append(
            f"silicon is told badly: the chi2 that is left is {left:.2g} of what its fringes explain: take flats at "
            "most 1 nm apart, not evenly"
        )
    elif fit.order_gain < _ORDER:
        found.append(f"{NOTE}silicon may be thicker by whole fringes, which changes nothing that the flats reach")
    return found
