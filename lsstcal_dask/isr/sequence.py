"""The corrections in their order, which is data (Lupton 2016, Sec. 3).

Three orders: that of the source document, `lupton2016`; `physical`, which undoes what happened to the charge in
the reverse of the order in which it happened; and `rubin`, that of Rubin's own pipeline, which multiplies by the
gain first, takes crosstalk from signals that are not linear yet, the bias off at the end, and divides by the flat
before bad pixels are interpolated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.isr import rows
from lsstcal_dask.isr.bias import bias_jitter, overscan_levels
from lsstcal_dask.isr.bleed import flag_bleeding, full_wells
from lsstcal_dask.isr.columns import column_changes
from lsstcal_dask.isr.cosmics import CosmicConfig, flag_cosmics
from lsstcal_dask.isr.crosstalk import own_entries
from lsstcal_dask.isr.dark import dark_seconds
from lsstcal_dask.isr.defects import flag_defects
from lsstcal_dask.isr.deferred import Registers, registers
from lsstcal_dask.isr.edges import flag_edges
from lsstcal_dask.isr.flat import divide_by_flat, to_photometric_flat
from lsstcal_dask.isr.frame import Frame, RawFrame
from lsstcal_dask.isr.fringes import subtract_fringes
from lsstcal_dask.isr.gain import gains_of
from lsstcal_dask.isr.interpolation import InterpolationConfig, interpolate
from lsstcal_dask.isr.linearity import tables
from lsstcal_dask.isr.neighbours import Seen, Source, add_noise
from lsstcal_dask.isr.overscan import OverscanConfig

__all__ = [
    "BY_FILTER",
    "FRINGE_PRODUCTS",
    "IN_ELECTRONS",
    "NEEDED",
    "OPTIONAL",
    "ORDERS",
    "IsrConfig",
    "Site",
    "check_steps",
    "correct",
    "source",
]

_FLAGS: Final = ("saturation", "defects", "edges", "cosmics")
_DOUBT: Final = 3.0  # errors of a full well below it from which a pixel is taken for full
_FLATS: Final = ("sky_flat", "fringes", "photometric_flat")  # fringes lie on a flat sky

FRINGE_PRODUCTS: Final = {"classical": "fringe_frame", "pca": "fringe_modes"}
"""Maps of fringes that a method subtracts, one product for each filter."""

_ROWS: Final = ("overscan", "bias", "linearity", "gain", "crosstalk", "deferred", "dark")
_ROWS_OF_RUBIN: Final = ("overscan", "gain", "crosstalk", "linearity", "deferred", "bias", "dark")

ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "lupton2016": (*_ROWS, *_FLAGS, "interpolation", *_FLATS),
    "physical": (*_ROWS, *_FLAGS, "interpolation", *_FLATS),
    "rubin": (*_ROWS_OF_RUBIN, *_FLAGS, *_FLATS, "interpolation"),
}
"""Corrections in the order in which they are applied: first those of rows, then those of whole frames."""

NEEDED: Final = {
    step: FRINGE_PRODUCTS["classical"] if step == "fringes" else step
    for step in ("bias", "linearity", "gain", "crosstalk", "deferred", "dark", "saturation", "defects", *_FLATS)
}
"""The product that a correction applies."""

BY_FILTER: Final = frozenset(_FLATS)
"""Corrections of which every filter has a product of its own: ``sky_flat-r``."""

OPTIONAL: Final = frozenset({"linearity", "crosstalk", "deferred", "saturation", "defects", *_FLATS})
"""Corrections that are left out, with a remark, where their product was never built."""

IN_ELECTRONS: Final = frozenset({"crosstalk", "dark", "saturation"})
"""Corrections that cannot be without the gain."""


class IsrConfig(BaseModel):
    """How frames are corrected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Literal["lupton2016", "physical", "rubin"] = "lupton2016"
    overscan: OverscanConfig = OverscanConfig()
    parallel_overscan: bool = Field(
        False, description="follow what changed along the rows since the bias, from the rows read after the last"
    )
    edge: int = Field(5, ge=0, description="outer pixels of a sensor that are flagged EDGE")
    find_cosmics: bool = Field(False, description="look for cosmic rays in the frame by itself")
    cosmics: CosmicConfig = CosmicConfig()
    interpolation: InterpolationConfig = InterpolationConfig()
    fringes: Literal["none", "classical", "pca"] = Field(
        "none", description="maps of fringes that are subtracted after the flat of the sky, where it does not suffice"
    )


@dataclass(frozen=True)
class Site:
    """What of the camera the corrections of a CCD want to know."""

    shape: tuple[int, int]  # (ny, nx) of the padded image
    vignetting_mm: tuple[float, float] | None = None  # see `instrument.Camera`


def check_steps(skip: frozenset[str]) -> None:
    """Refuse to leave out what others need; optional corrections of electrons go with the gain.

    Raises
    ------
    WrongUse
        There is no such correction, or one that works on electrons would get adu.
    """
    if unknown := sorted(skip - set(NEEDED)):
        raise WrongUse(f"unknown correction {unknown[0]!r} to skip: choose from {', '.join(NEEDED)}")
    if "gain" in skip and "dark" not in skip:
        raise WrongUse("without gain there are no electrons to subtract a dark from: skip dark too")


def correct(
    raw: RawFrame,
    site: Site,
    products: Mapping[str, xr.Dataset],
    config: IsrConfig = IsrConfig(),
    others: Seen | None = None,
) -> Frame:
    """Apply the corrections of an order whose products are given; those without a product always.

    Parameters
    ----------
    raw : counts of one CCD.
    products : by name, of this detector; a correction without its product is left out,
        which is for the caller to allow.
    others : what other CCDs leave in this one: see `source` and `isr.neighbours.seen`.

    Returns
    -------
    Frame in electrons (adu where the gain was left out). Pixels with NO_DATA are NaN.
    Holds the counts, the frame and the images of bias and dark: 0.6 GB of a CCD of LSST.

    Raises
    ------
    UnitsError
        The dark time is missing or negative, and there is a dark.
    """
    steps = [step for step in ORDERS[config.order] if step not in NEEDED or step in products]
    charge = None if others is None else others.charge
    frame = _correct_rows(raw, site, [step for step in steps if step in rows.STEPS], products, config, charge)
    if others is not None and "crosstalk" in steps:
        frame = add_noise(frame, others)
    for step in steps:
        if step in _FRAME_STEPS:
            frame = _FRAME_STEPS[step](frame, site, products, config)
    return frame


def source(raw: RawFrame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig = IsrConfig()) -> Source:
    """Amplifiers of a CCD before their crosstalk is removed: what others see of them."""
    order = ORDERS[config.order]
    steps = [step for step in order[: order.index("crosstalk")] if step in rows.STEPS and step in products]
    frame = _correct_rows(raw, site, steps, products, config, None)
    return Source(frame.image, frame.variance, _coupling(raw, products, None).ceiling)


def _correct_rows(
    raw: RawFrame,
    site: Site,
    steps: list[str],
    products: Mapping[str, xr.Dataset],
    config: IsrConfig,
    others: np.ndarray | None,
) -> Frame:
    bias, remarks = _bias(raw, products, config) if "bias" in steps else (rows.Plane(), ())
    level, row_variance, noise = overscan_levels(raw, site.shape, config.overscan)
    terms = rows.Terms(
        level=level,
        noise=noise,
        gain=_gain(raw, products.get("gain")),
        seconds=dark_seconds(raw, site.shape[0]) if "dark" in steps else np.zeros(site.shape[0], np.float32),
        bias=bias,
        curves=_curves(raw, products["linearity"]) if "linearity" in steps else rows.Curves(),
        coupling=_coupling(raw, products, others) if "crosstalk" in steps else rows.Coupling(),
        registers=registers(products["deferred"], raw.detector) if "deferred" in steps else Registers(),
        dark=_plane(raw, products["dark"]) if "dark" in steps else rows.Plane(),
    )
    image, variance, mask = rows.correct_rows(raw, site.shape, steps, terms)
    row_variance = _row_variance(raw, row_variance, steps, products, terms)
    units = "electron" if "gain" in steps else "adu"
    return Frame(raw.exposure, raw.detector, image, variance, row_variance, mask, units, remarks)


def _saturation(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return flag_bleeding(frame, full_wells(products["saturation"], frame.detector, _DOUBT))


def _defects(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return flag_defects(frame, products["defects"])


def _edges(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return flag_edges(frame, config.edge, site.vignetting_mm)


def _cosmics(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return flag_cosmics(frame, config.cosmics) if config.find_cosmics and frame.units == "electron" else frame


def _interpolation(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return interpolate(frame, config.interpolation)


def _sky_flat(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return divide_by_flat(frame, products["sky_flat"])


def _fringes(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return subtract_fringes(frame, products["fringes"])


def _photometric_flat(frame: Frame, site: Site, products: Mapping[str, xr.Dataset], config: IsrConfig) -> Frame:
    return to_photometric_flat(frame, products["photometric_flat"], products.get("sky_flat"))


_FRAME_STEPS: Final[dict[str, Callable[[Frame, Site, Mapping[str, xr.Dataset], IsrConfig], Frame]]] = {
    "saturation": _saturation,
    "defects": _defects,
    "edges": _edges,
    "cosmics": _cosmics,
    "interpolation": _interpolation,
    "sky_flat": _sky_flat,
    "fringes": _fringes,
    "photometric_flat": _photometric_flat,
}


def _plane(raw: RawFrame, product: xr.Dataset) -> rows.Plane:
    """Image, variance and mask of a product, as they are: reading it in another order would copy it."""
    known = [str(name) for name in product["amplifier"].values]
    if missing := [a.name for a in raw.detector.amplifiers if a.name not in known]:
        raise KeyError(f"{raw.detector.name} {missing[0]}: is not in the product to subtract")
    places = np.array([known.index(a.name) for a in raw.detector.amplifiers])
    return rows.Plane(product["image"].values, product["variance"].values, product["mask"].values, places)


def _bias(
    raw: RawFrame, products: Mapping[str, xr.Dataset], config: IsrConfig
) -> tuple[rows.Plane, tuple[tuple[str, str], ...]]:
    """The bias, with the change of each column since, if that is wanted; remarks where it cannot be told."""
    plane = _plane(raw, products["bias"])
    if not config.parallel_overscan:
        return plane, ()
    change, variance, remarks = column_changes(raw, products["bias"], config.overscan)
    nx = plane.image.shape[2]
    image, own = plane.image + change[:, None, :nx], plane.variance + variance[:, None, :nx]
    return plane._replace(image=image, variance=own), remarks


def _curves(raw: RawFrame, product: xr.Dataset) -> rows.Curves:
    found = tables(product.sel(amplifier=[a.name for a in raw.detector.amplifiers]))
    return rows.Curves(found.table, found.per_adu, found.ceiling)


def _coupling(raw: RawFrame, products: Mapping[str, xr.Dataset], others: np.ndarray | None) -> rows.Coupling:
    """Coefficients within the CCD; sources count up to the full well, where that is known."""
    entries = own_entries(products["crosstalk"], raw.detector)
    ceiling = np.full(len(raw.detector.amplifiers), np.inf, np.float32)
    if "saturation" in products:
        well = full_wells(products["saturation"], raw.detector)
        ceiling = np.where(np.isfinite(well), well, np.inf).astype(np.float32)
    return rows.Coupling(
        targets=np.ascontiguousarray(entries.targets),
        sources=np.ascontiguousarray(entries.sources),
        linear=np.ascontiguousarray(entries.linear),
        quadratic=np.ascontiguousarray(entries.quadratic),
        ceiling=ceiling,
        others=rows.Coupling().others if others is None else np.ascontiguousarray(others, np.float32),
    )


def _gain(raw: RawFrame, product: xr.Dataset | None) -> np.ndarray:
    if product is None:
        return np.ones(len(raw.detector.amplifiers), np.float32)
    return gains_of(product, raw.detector)


def _row_variance(
    raw: RawFrame,
    variance: np.ndarray,
    steps: list[str],
    products: Mapping[str, xr.Dataset],
    terms: rows.Terms,
) -> np.ndarray:
    """Variance (amplifier, y) float32 common to a row: of its overscan level and of the rows of bias and dark.

    The slope of the linearity, within a few percent of one and different for each pixel, is left out.
    """
    names, scale = [a.name for a in raw.detector.amplifiers], np.ones((len(terms.gain), 1), np.float32)
    for step in steps:
        if step == "gain":
            scale = terms.gain[:, None]
            variance = variance * scale**2
        elif step == "bias":
            own = products[step]["row_variance"].sel(amplifier=names).values + bias_jitter(products[step], raw.detector)
            variance = variance + own * scale**2
        elif step == "dark":
            own = products[step]["row_variance"].sel(amplifier=names).values
            variance = variance + own * terms.seconds**2
    return np.asarray(variance, np.float32)
