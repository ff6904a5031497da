"""The pixels of one CCD at one wavelength as codes of one or two bytes, without a loss that matters (¶9, §7).

    value = offset + scale * code + level * reference + change

``offset``, ``scale`` and ``level`` are numbers of an amplifier, ``change`` is zero but in the few pixels of a list of
exceptions, and ``reference`` is there in form i1 only. The step ``scale`` is a quarter of the noise of the faint
pixels of an amplifier: rounding adds at most 1/192 to the variance, 0.26 % to the noise, and no bias.

    i2   code 128 is the amplifier's median, so that the upper bytes of most pixels are alike and compress to nothing
    i1   the residual to an earlier slice of a near wavelength; what does not fit its 32 sigma is an exception, and
         a slice of which more than 1 % does not fit becomes a reference itself
    f4   the values
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from lsstcal_dask.variables import MASK_BITS

__all__ = ["DTYPES", "EXCEPTION", "FORMS", "NUMBERS", "Coded", "Form", "Slice", "encode_slice"]

Form = Literal["i2", "i1", "f4"]
FORMS: Final[tuple[str, ...]] = get_args(Form)
DTYPES: Final[dict[str, np.dtype[Any]]] = {"i2": np.dtype("<i2"), "i1": np.dtype("i1"), "f4": np.dtype("<f4")}
"""Stored type of each form."""

NUMBERS: Final = ("scale", "offset", "level", "variance_slope", "variance_floor", "repeats")
"""Numbers of every amplifier of a slice: NaN where it holds nothing."""

EXCEPTION: Final = np.dtype(
    [("amplifier", "<u2"), ("y", "<u2"), ("x", "<u2"), ("repeats", "u1"), ("mask", "<u2"), ("change", "<f4")]
)
"""A pixel that is not as its neighbours: what to add to what the codes say (NaN where nothing is known), the exposures
that entered it, and mask bits that it has in this slice only."""

_STEP: Final = 0.25  # of the noise
_FAINT: Final = 1.0  # percentile of the signal whose noise sets the step
_SPARSE: Final = 31  # of so many pixels one is enough for medians and percentiles: prime to the lengths of rows
_REST: Final[dict[str, int]] = {"i2": 128, "i1": 0}  # the code of a typical pixel
_MOST_EXCEPTIONS: Final = 0.01  # of an amplifier: beyond it a slice is better its own reference
_REACH: Final = {"i2": 32_767, "i1": 127}


@dataclass(frozen=True)
class Slice:
    """One CCD at one wavelength before it is stored."""

    value: np.ndarray  # (amplifier, y, x) float32; NaN where unknown, a whole amplifier if it is dead
    mask: np.ndarray  # (amplifier, y, x) uint16
    repeats: np.ndarray  # (amplifier, y, x) uint8, exposures that entered a pixel
    full: np.ndarray  # (amplifier,) exposures that enter a pixel if nothing befell it
    slope: np.ndarray  # (amplifier,) variance = slope * value + floor of a pixel that all exposures entered
    floor: np.ndarray  # (amplifier,)


@dataclass(frozen=True)
class Coded:
    """What is stored of a slice."""

    codes: np.ndarray  # (amplifier, y, x)
    numbers: dict[str, np.ndarray]  # see `NUMBERS`, each (amplifier,) float64
    exceptions: np.ndarray  # (n,) of `EXCEPTION`, by amplifier, y and x
    reference: np.ndarray | None = None  # (amplifier, y, x) float32 if the slice becomes one itself

    @property
    def there(self) -> np.ndarray:
        """(amplifier,) bool: those that hold anything."""
        return np.isfinite(self.numbers["scale"])


def encode_slice(given: Slice, form: Form, usual: np.ndarray, reference: np.ndarray | None = None) -> Coded:
    """Codes, numbers and exceptions of a slice.

    Parameters
    ----------
    usual : (amplifier, y, x) uint16, mask bits that pixels have at all wavelengths, which make no exceptions.
    reference : (amplifier, y, x) float32, finite: an earlier slice, for form i1.
    """
    if form == "i1" and reference is not None:
        coded = _encode(given, form, usual, reference)
        share = np.bincount(coded.exceptions["amplifier"][_misfits(coded)], minlength=len(given.value))
        if share.max(initial=0) <= _MOST_EXCEPTIONS * given.value[0].size:
            return coded
    if form == "i1":
        return _own_reference(given, usual)
    return _encode(given, form, usual, None)


def _misfits(coded: Coded) -> np.ndarray:
    change = coded.exceptions["change"]
    return np.isfinite(change) & (change != 0)


def _own_reference(given: Slice, usual: np.ndarray) -> Coded:
    """A slice that is stored as it is: its codes are zero."""
    filled = np.zeros(given.value.shape, np.float32)
    for i, value in enumerate(given.value):
        unknown = ~np.isfinite(value)
        typical = np.median(_sample(value)) if not unknown.all() else 0.0
        filled[i] = np.where(unknown, np.float32(typical), value)
    coded = _encode(given, "i1", usual, filled)
    level = np.where(coded.there, 1.0, np.nan)
    return Coded(np.zeros_like(coded.codes), {**coded.numbers, "level": level}, coded.exceptions, filled)


def _encode(given: Slice, form: Form, usual: np.ndarray, reference: np.ndarray | None) -> Coded:
    codes = np.zeros(given.value.shape, DTYPES[form])
    numbers = {name: np.full(len(codes), np.nan) for name in NUMBERS}
    found = []
    for i, value in enumerate(given.value):
        good = _sample(value)
        if not good.size:
            continue
        line = float(given.slope[i]), float(given.floor[i])
        base = None if reference is None else reference[i]
        codes[i], own, change = _encode_amplifier(value, good, form, line, base)
        for name, number in zip(NUMBERS, (*own, *line, float(given.full[i])), strict=True):
            numbers[name][i] = number
        found.append(_exceptions(i, given, usual[i], change))
    return Coded(codes, numbers, np.concatenate(found) if found else np.zeros(0, EXCEPTION))


def _sample(values: np.ndarray) -> np.ndarray:
    """Known values of some pixels all over an image; of all, where these are few."""
    some = values.reshape(-1)[::_SPARSE]
    some = some[np.isfinite(some)]
    return some if some.size > 300 else values[np.isfinite(values)]


def _encode_amplifier(
    value: np.ndarray, good: np.ndarray, form: Form, line: tuple[float, float], reference: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """Codes, (scale, offset, level), and what is to be added to what they say."""
    middle = float(np.median(good))
    known = np.isfinite(value)
    if form == "f4":
        return np.where(known, value, np.float32(middle)), (1.0, 0.0, 0.0), np.where(known, 0, np.float32(np.nan))
    step, rest = _step(good, middle, line), _REST[form]
    level, offset = 0.0, step * (round(middle / step) - rest)
    wanted = value - np.float32(offset)  # float32: of some thousand steps it keeps a thousandth of one
    if reference is not None:
        level, offset = float(np.median(_sample(value / reference))), 0.0
        wanted = value - np.float32(level) * reference
    wanted *= np.float32(1 / step)
    code = np.rint(wanted)
    misfit = ~(np.abs(code) <= _REACH[form])  # True where unknown
    change = np.zeros(value.shape, np.float32)
    if misfit.any():
        code[misfit] = rest
        change[misfit] = (wanted[misfit] - rest) * np.float32(step)
    return code.astype(DTYPES[form]), (step, offset, level), change


def _step(good: np.ndarray, middle: float, line: tuple[float, float]) -> float:
    """A quarter of the noise of faint pixels."""
    slope, floor = line
    faint = max(float(np.percentile(good, _FAINT)), 0.0)
    variance = slope * faint + floor
    if not (np.isfinite(variance) and variance > 0):  # no noise is known: as fine as two bytes can
        return max(abs(middle), float(np.abs(good).max())) / 3e4 or 1.0
    return float(_STEP * np.sqrt(variance))


def _exceptions(amplifier: int, given: Slice, usual: np.ndarray, change: np.ndarray) -> np.ndarray:
    padding = (usual & MASK_BITS["NO_DATA"]) != 0
    extra = given.mask[amplifier] & ~usual
    odd = (change != 0) | (extra != 0) | (given.repeats[amplifier] < given.full[amplifier])  # NaN is not 0
    y, x = np.divmod(np.flatnonzero(odd & ~padding), change.shape[1])
    found = np.zeros(len(y), EXCEPTION)
    columns: dict[str, Any] = {
        "amplifier": amplifier,
        "y": y,
        "x": x,
        "repeats": given.repeats[amplifier][y, x],
        "mask": extra[y, x],
        "change": change[y, x],
    }
    for name, column in columns.items():
        found[name] = column
    return found
