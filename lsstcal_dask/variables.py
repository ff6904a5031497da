"""The data dictionary: every dimension, variable, unit and mask bit, with its section of the source document.

A name is defined here once. `validate` refuses a Dataset that breaks the dictionary.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InconsistentGeometry, UnitsError

__all__ = [
    "DEFECT_KINDS",
    "DIMS",
    "EXPOSURE_TYPES",
    "MASK_BITS",
    "NOTE",
    "NO_FILTER",
    "VARIABLES",
    "Variable",
    "attributes",
    "mask_attributes",
    "nights",
    "validate",
]

DIMS: Final = (
    "exposure",
    "spectrum",
    "mode",
    "detector",
    "amplifier",
    "wavelength",
    "y",
    "x",
    "lag_y",
    "lag_x",
    "node",
    "source",
    "block_y",
    "block_x",
)
"""Dimension names, singular, in the order they have in every array."""

EXPOSURE_TYPES: Final = ("bias", "dark", "flat", "fe55", "science", "cbp", "spot", "ppump", "sinusoid")
"""Types an exposure can have, whatever a camera's headers call them."""

NO_FILTER: Final = ("none", "empty", "clear", "")
"""Names, in small letters, that headers have for a beam without a filter."""

MASK_BITS: Final = {
    "NO_DATA": 1,  # padding, missing detector, dead amplifier: takes part in nothing
    "BAD": 2,  # §3, unusable pixel
    "SUSPECT": 4,  # §3 and Sec. 3.2, flagged but usable
    "SATURATED": 8,  # §4
    "COSMIC_RAY": 16,  # Sec. 2.7
    "INTERPOLATED": 32,  # Sec. 3.5
    "CROSSTALK": 64,  # Sec. 3.3
    "EDGE": 128,  # Sec. 2.11, outer pixels of a sensor
    "VIGNETTED": 256,  # behind the edge of the field: only a part of the pupil is seen
}
"""Bits of a ``mask``; pixels without any bit are good."""


DEFECT_KINDS: Final = {
    "HOT": 1,  # charge without light
    "COLD": 2,  # little response
    "COLUMN": 4,  # part of a bad column
    "TRAP": 8,  # keeps charge back
    "INCONSISTENT": 16,  # response depends on the level
    "LISTED": 32,  # on the list of the camera team, or of an epoch before
}
"""Bits of a ``defect_kind`` (§3)."""


NOTE: Final = "note: "
"""A remark of a product that begins so informs and does not lower its verdict."""


@dataclass(frozen=True)
class Variable:
    """One entry of the data dictionary."""

    dims: tuple[str, ...]
    kind: str  # numpy dtype kinds allowed: "u", "i", "f", "b", "O", "U", "M"
    units: tuple[str, ...]  # units allowed; "" where the quantity has none
    prose: str


_PIXELS = ("amplifier", "y", "x")
_AMPLIFIER = ("detector", "amplifier")
_LAGS = (*_AMPLIFIER, "lag_y", "lag_x")
_PER_EXPOSURE = ("exposure", "detector", "amplifier")
_PAIR = ("detector", "amplifier", "source")  # target, target, source
_BLOCKS = ("detector", "amplifier", "block_y", "block_x")
_SLICE = ("detector", "amplifier", "wavelength")
_SLICES = (*_SLICE, "y", "x")
_IMAGE_UNITS = ("adu", "electron", "electron/s", "1")  # 1: a flat whose mean is 1

VARIABLES: Final[dict[str, Variable]] = {
    # Coordinates of a set of exposures (¶1, ¶4, ¶8-¶10; header table)
    "exposure": Variable(("exposure",), "OUT", ("",), "exposure id"),
    "detector": Variable(("detector",), "OUT", ("",), "detector name, as R22_S11"),
    "spectrum": Variable(("spectrum",), "OUT", ("",), "name of the source of a synthetic flat (Secs. 2.8.1, 2.8.3)"),
    "amplifier": Variable(("amplifier",), "OUT", ("",), "amplifier name, as C10"),
    "exposure_type": Variable(("exposure",), "OUT", ("",), "one of EXPOSURE_TYPES"),
    "time": Variable(("exposure", "wavelength"), "M", ("",), "UTC of the start of readout or of the exposure"),
    "exposure_time": Variable(("exposure",), "f", ("s",), "time the shutter or lamp was open"),
    "dark_time": Variable(("exposure",), "f", ("s",), "time over which dark charge gathered (Sec. 2.7)"),
    "filter": Variable(("exposure",), "OUT", ("",), "filter in the beam; 'none' without one"),
    "wavelength": Variable(
        ("exposure", "wavelength"), "f", ("nm",), "vacuum wavelength of a monochromatic source (¶9)"
    ),
    "photodiode": Variable(("exposure",), "f", ("C",), "charge of the monitoring photodiode (¶3)"),
    "sequencer": Variable(("exposure", "detector"), "OUT", ("",), "program by which the detector was read"),
    "present": Variable(("exposure", "detector"), "b", ("",), "the frame of this detector was ingested"),
    "pixels": Variable(("exposure", "detector"), "S", ("",), "hash of the raw counts; empty if missing"),
    # Images
    "counts": Variable(("exposure", "detector", *_PIXELS), "iu", ("adu",), "raw counts"),
    "image": Variable(("exposure", "spectrum", "detector", *_PIXELS), "f", _IMAGE_UNITS, "pixel values"),
    "variance": Variable(
        ("exposure", "spectrum", "detector", *_PIXELS),
        "f",
        ("adu**2", "electron**2", "(electron/s)**2", "1"),
        "variance of `image`, without the part common to a row",
    ),
    "mask": Variable(("exposure", "spectrum", "detector", *_PIXELS), "u", ("",), "bit flags, see MASK_BITS"),
    "row_variance": Variable(
        ("exposure", "detector", "amplifier", "y"),
        "f",
        ("adu**2", "electron**2", "(electron/s)**2"),
        "variance common to the pixels of a row, left by its overscan level (Sec. 3.1)",
    ),
    "frames": Variable(
        ("detector", *_PIXELS), "iu", ("",), "exposures that entered a pixel: its degrees of freedom + 1"
    ),
    "column_level": Variable(("detector", "amplifier", "x"), "f", ("adu",), "parallel overscan above the serial one"),
    "defect_kind": Variable(("detector", *_PIXELS), "u", ("",), "bit flags, see DEFECT_KINDS (Sec. 2.4)"),
    "overscan": Variable(("exposure", "detector", "amplifier", "y"), "f", ("adu",), "overscan level of a row"),
    "level": Variable(("exposure", "detector", "amplifier"), "f", ("adu", "electron/s"), "mean residual of one frame"),
    "level_error": Variable(
        ("exposure", "detector", "amplifier"), "f", ("adu", "electron/s"), "standard error of `level`"
    ),
    "accepted": Variable(("exposure", "detector", "amplifier"), "b", ("",), "the frame entered the stack"),
    # Flat cubes (Sec. 2.8, §7); `flat` counts in the electrons of a photon of the photodiode, up to one factor for all
    "flat": Variable(_SLICES, "f", ("electron/photon",), "response to a photon of each wavelength, not normalised"),
    "variance_slope": Variable(_SLICE, "f", ("electron/photon",), "of the line variance = slope * flat + floor"),
    "variance_floor": Variable(_SLICE, "f", ("(electron/photon)**2",), "of the line variance = slope * flat + floor"),
    "wavelength_error": Variable(("wavelength",), "f", ("nm",), "standard error of `wavelength`"),
    "bandwidth": Variable(("wavelength",), "f", ("nm",), "full width at half maximum of a monochromatic source (¶9)"),
    "response": Variable(("wavelength",), "f", ("electron/photon",), "mean of `flat` over the focal plane: r"),
    "response_error": Variable(("wavelength",), "f", ("electron/photon",), "standard error of `response`"),
    "response_common": Variable(
        ("wavelength",), "f", ("1",), "relative error of `response` that all wavelengths share: the photodiode's table"
    ),
    "response_single": Variable(
        ("wavelength",), "f", ("1",), "relative error of `response` by the photodiode in the exposures of a wavelength"
    ),
    "response_photon": Variable(
        ("wavelength",), "f", ("1",), "relative error of `response` by the electrons of its exposures"
    ),
    "common_mode": Variable(
        ("spectrum", "detector", *_PIXELS), "f", ("1",), "what one sigma of `response_common` does to a synthetic flat"
    ),
    # Layers that make fringes (Sec. 2.9)
    "silicon_thickness": Variable(("detector", *_PIXELS), "f", ("um",), "thickness of the silicon"),
    "glue_thickness": Variable(("detector", *_PIXELS), "f", ("um",), "thickness of the glue below the silicon"),
    "silicon_thickness_error": Variable(
        _AMPLIFIER, "f", ("um",), "standard error of `silicon_thickness`, in its middle"
    ),
    "glue_thickness_error": Variable(_AMPLIFIER, "f", ("um",), "standard error of `glue_thickness`, in its middle"),
    "etalon_support": Variable(_AMPLIFIER, "f", ("",), "amplitude reflected below the glue, over polished silicon's"),
    "etalon_visibility": Variable(_AMPLIFIER, "f", ("",), "logarithm of what the mirrors reflect more than modelled"),
    "etalon_absorption": Variable(_AMPLIFIER, "f", ("",), "logarithm of the factor of silicon's absorption, 1000 nm"),
    "etalon_absorption_slope": Variable(_AMPLIFIER, "f", ("",), "change of that logarithm over 100 nm"),
    "etalon_dispersion": Variable(_AMPLIFIER, "f", ("",), "relative change of silicon's phase over 100 nm"),
    "etalon_dispersion_bend": Variable(_AMPLIFIER, "f", ("",), "the same, with the square of the wavelength"),
    "etalon_cone": Variable(_AMPLIFIER, "f", ("",), "width of the cone of light over that of the telescope"),
    "etalon_chi2": Variable(_AMPLIFIER, "f", ("",), "chi2 of the layers of its CCD"),
    "etalon_dof": Variable(_AMPLIFIER, "f", ("",), "degrees of freedom of `etalon_chi2`"),
    "fringeless_response": Variable(_SLICE, "f", ("electron/photon",), "mean of a CCD's `flat` without its fringes"),
    # Fringes of the sky, of frames of it (§13)
    "sky_level": Variable(("exposure", *_BLOCKS), "f", ("electron",), "mean of a block of pixels without objects"),
    "sky_level_variance": Variable(("exposure", *_BLOCKS), "f", ("electron**2",), "variance of `sky_level`"),
    "crowded": Variable(_PER_EXPOSURE, "f", ("",), "part of the good pixels that are under objects"),
    "fringe_map": Variable(("mode", *_BLOCKS), "f", ("",), "fringes of blocks of pixels, relative to a smooth sky"),
    "fringe_map_variance": Variable(("mode", *_BLOCKS), "f", ("",), "variance of `fringe_map`"),
    "fringe_frames": Variable(_BLOCKS, "iu", ("",), "exposures in which a block of `fringe_map` was seen"),
    "fringe_amplitude": Variable(
        ("exposure", "mode", *_AMPLIFIER), "f", ("",), "how much of `fringe_map` the CCD has in an exposure"
    ),
    "fringe_amplitude_error": Variable(
        ("exposure", "mode", *_AMPLIFIER), "f", ("",), "standard error of `fringe_amplitude`"
    ),
    "fringe_zone": Variable(_AMPLIFIER, "f", ("",), "part of the field whose CCDs share amplitudes; 0 where all do"),
    # Amplifier properties (¶2)
    "gain": Variable(_AMPLIFIER, "f", ("electron/adu",), "gain in use (Sec. 2.2)"),
    "gain_error": Variable(_AMPLIFIER, "f", ("electron/adu",), "standard error of `gain`"),
    "gain_fe55": Variable(_AMPLIFIER, "f", ("electron/adu",), "gain from 55Fe X-rays (Sec. 2.2a)"),
    "gain_fe55_error": Variable(_AMPLIFIER, "f", ("electron/adu",), "standard error of `gain_fe55`"),
    "gain_pair": Variable(_AMPLIFIER, "f", ("electron/adu",), "gain from pairs of flats (Sec. 2.2b)"),
    "gain_pair_error": Variable(_AMPLIFIER, "f", ("electron/adu",), "standard error of `gain_pair`"),
    "gain_summed": Variable(_AMPLIFIER, "f", ("electron/adu",), "gain from sums of covariances (Sec. 2.2c)"),
    "gain_summed_error": Variable(_AMPLIFIER, "f", ("electron/adu",), "standard error of `gain_summed`"),
    "gain_relative": Variable(_AMPLIFIER, "f", ("",), "gain over the geometric mean of its CCD (Sec. 2.2d)"),
    "gain_relative_error": Variable(_AMPLIFIER, "f", ("",), "standard error of `gain_relative`"),
    "gain_muons": Variable(_AMPLIFIER, "f", ("electron/adu",), "gain from cosmic-ray muons, to a factor (Sec. 2.2e)"),
    "gain_muons_error": Variable(_AMPLIFIER, "f", ("electron/adu",), "standard error of `gain_muons`"),
    "muon_tracks": Variable(_AMPLIFIER, "f", ("",), "tracks behind `gain_muons`"),
    "read_noise": Variable(_AMPLIFIER, "f", ("adu", "electron"), "read noise from the overscan"),
    "read_noise_error": Variable(_AMPLIFIER, "f", ("adu", "electron"), "standard error of `read_noise`"),
    # Photon transfer of flats (Sec. 2.2b) and the brighter-fatter effect in it (Sec. 2.12)
    "a_matrix": Variable(_LAGS, "f", ("1/electron",), "change of a pixel's area per electron at a lag"),
    "a_matrix_error": Variable(_LAGS, "f", ("1/electron",), "standard error of `a_matrix`"),
    "c_matrix": Variable(_LAGS, "f", ("1/electron**2",), "what of it grows with the square of the charge"),
    "c_matrix_error": Variable(_LAGS, "f", ("1/electron**2",), "standard error of `c_matrix`"),
    "noise_matrix": Variable(_LAGS, "f", ("electron**2",), "covariance of the read noise at a lag"),
    "noise_matrix_error": Variable(_LAGS, "f", ("electron**2",), "standard error of `noise_matrix`"),
    "ptc_chi2": Variable(_AMPLIFIER, "f", ("",), "chi2 of the photon transfer fit"),
    "ptc_dof": Variable(_AMPLIFIER, "f", ("",), "degrees of freedom of `ptc_chi2`"),
    "ptc_pairs": Variable(_AMPLIFIER, "f", ("",), "pairs of flats that were fitted"),
    # Linearity (¶3, §2)
    "lamp_current": Variable(("exposure",), "f", ("A",), "current of the flat-field lamp (¶3)"),
    "temperature": Variable(("exposure", "detector"), "f", ("K",), "temperature of the CCD, by its thermometer"),
    "voltage": Variable(("exposure", "detector"), "f", ("V",), "voltage of the substrate of the CCD"),
    "linearity_level": Variable((*_AMPLIFIER, "node"), "f", ("adu",), "measured signal above the bias (Sec. 2.3)"),
    "linearity_correction": Variable((*_AMPLIFIER, "node"), "f", ("adu",), "true less measured signal; Akima between"),
    "linearity_error": Variable((*_AMPLIFIER, "node"), "f", ("adu",), "standard error of `linearity_correction`"),
    "linearity_ceiling": Variable(_AMPLIFIER, "f", ("adu",), "measured signal above which the curve is unreliable"),
    "linearity_turnoff": Variable(
        _AMPLIFIER, "f", ("electron", "adu"), "signal above which no curve follows the light (Sec. 2.3)"
    ),
    "amplifier_offset": Variable(_AMPLIFIER, "f", ("electron", "adu"), "sky of an amplifier above that of its CCD"),
    "amplifier_offset_error": Variable(_AMPLIFIER, "f", ("electron", "adu"), "standard error of `amplifier_offset`"),
    # Saturation (¶7, §4)
    "well_bloom": Variable(_AMPLIFIER, "f", ("electron",), "lowest charge that spills to a neighbour (Sec. 2.5)"),
    "well_serial": Variable(_AMPLIFIER, "f", ("electron",), "charge that a packet of the serial register holds"),
    "well_adc": Variable(_AMPLIFIER, "f", ("electron",), "charge at which the converter reads its largest count"),
    "ptc_turnoff": Variable(_AMPLIFIER, "f", ("electron", "adu"), "signal at which the variance of flats stops rising"),
    **{
        f"{name}_error": Variable(_AMPLIFIER, "f", ("electron", "adu"), f"standard error of `{name}`")
        for name in ("well_bloom", "well_serial", "well_adc", "linearity_turnoff", "ptc_turnoff")
    },
    # Charge that is read late (¶2; Sec. 3.1)
    "serial_cti": Variable(_AMPLIFIER, "f", ("",), "share of a packet that a serial transfer leaves behind"),
    "serial_cti_error": Variable(_AMPLIFIER, "f", ("",), "standard error of `serial_cti`"),
    "parallel_cti": Variable(_AMPLIFIER, "f", ("",), "share of a packet that a parallel transfer leaves behind"),
    "parallel_cti_error": Variable(_AMPLIFIER, "f", ("",), "standard error of `parallel_cti`"),
    "offset_amplitude": Variable(_AMPLIFIER, "f", ("",), "offset that a pixel leaves at the output, of its signal"),
    "offset_amplitude_error": Variable(_AMPLIFIER, "f", ("",), "standard error of `offset_amplitude`"),
    "offset_decay": Variable(_AMPLIFIER, "f", ("pixel",), "pixels after which that offset has fallen by e"),
    "offset_decay_error": Variable(_AMPLIFIER, "f", ("pixel",), "standard error of `offset_decay`"),
    # Crosstalk (¶5, ¶10f, §5)
    "source": Variable(("source",), "OUT", ("",), "amplifier of the camera, as R22_S11/C10"),
    "mask_id": Variable(("exposure",), "OUT", ("",), "mask of the projector (¶10)"),
    "spot": Variable(("exposure", "detector", *_PIXELS), "f", ("electron",), "stamp of the spot; NaN off it"),
    "spot_y": Variable(_PER_EXPOSURE, "f", ("pixel",), "raw row of the first pixel of `spot`; NaN without a spot"),
    "spot_x": Variable(_PER_EXPOSURE, "f", ("pixel",), "raw column of the first pixel of `spot`"),
    "spot_level": Variable(_PER_EXPOSURE, "f", ("electron",), "signal of the brightest tenth of a spot"),
    "spot_used": Variable(_PER_EXPOSURE, "b", ("",), "the spot can serve as a source: it is whole and not saturated"),
    "background": Variable(_PER_EXPOSURE, "f", ("electron",), "median signal beside the spot"),
    "crosstalk": Variable(_PAIR, "f", ("electron/electron",), "part of a source in a target; NaN unmeasured, 0 none"),
    "crosstalk_error": Variable(_PAIR, "f", ("electron/electron",), "standard error of `crosstalk`, of zeros too"),
    "crosstalk_quadratic": Variable(
        _PAIR, "f", ("1/electron",), "part of a source squared in a target; NaN unmeasured"
    ),
    "crosstalk_quadratic_error": Variable(_PAIR, "f", ("1/electron",), "standard error of `crosstalk_quadratic`"),
}


def attributes(name: str, units: str = "") -> dict[str, str]:
    """Attributes of a registered variable: its prose and its unit.

    Raises
    ------
    UnitsError
        ``units`` is not one this variable may have.

    Examples
    --------
    >>> attributes("exposure_time", "s")["units"]
    's'
    """
    entry = VARIABLES[name]
    unit = units or entry.units[0]
    if unit not in entry.units:
        raise UnitsError(f"{name}: unit {unit!r} is not one of {entry.units}")
    found = {"long_name": entry.prose}
    return {**found, "units": unit} if unit else found


def mask_attributes() -> dict[str, object]:
    """CF attributes that name the bits of a mask."""
    return {
        **attributes("mask"),
        "flag_masks": list(MASK_BITS.values()),
        "flag_meanings": " ".join(MASK_BITS),
    }


def validate(dataset: xr.Dataset) -> xr.Dataset:
    """Return ``dataset`` unchanged if its variables keep to the dictionary.

    Dimensions may be missing (one detector, one exposure) but not reordered;
    names that are not registered are left alone.

    Raises
    ------
    InconsistentGeometry
        A variable has other dimensions, in another order, or another kind of dtype.
    UnitsError
        A variable has no unit, or one it may not have.
    """
    for name, array in dataset.variables.items():
        entry = VARIABLES.get(str(name))
        if entry is None:
            continue
        expected = tuple(dim for dim in entry.dims if dim in array.dims)
        if array.dims != expected:
            raise InconsistentGeometry(f"{name}: dimensions {array.dims}, expected {entry.dims}")
        if np.dtype(array.dtype).kind not in entry.kind:
            raise InconsistentGeometry(f"{name}: dtype {array.dtype}, expected a kind of {entry.kind!r}")
        if entry.units != ("",) and array.attrs.get("units") not in entry.units:
            found = array.attrs.get("units", "none")
            raise UnitsError(f"{name}: unit {found!r}, expected one of {entry.units}")
    return dataset


def nights(raw: xr.Dataset) -> np.ndarray:
    """Night (exposure,) datetime64[D] of each exposure: the date of the noon (UTC) before its ``time``."""
    return (raw["time"].values - np.timedelta64(12, "h")).astype("datetime64[D]")
