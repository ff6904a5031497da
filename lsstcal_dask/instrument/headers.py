"""Rules that turn the cards of a raw file into the exposure header table, and back (Appendix A, ¶1-¶10)."""

import math
import re
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from lsstcal_dask.errors import CalibrationError, UnitsError
from lsstcal_dask.instrument.blocks import CardValue

__all__ = ["OPTIONAL_NUMBERS", "HeaderRules", "exposure_table", "fill_template", "odd_wavelength", "table_cards"]

_MJD_ZERO: Final[np.datetime64] = np.datetime64("1858-11-17", "us")
_NO_TIME: Final[np.datetime64] = np.datetime64("NaT", "us")
_FIELD: Final = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
Cards = dict[str, CardValue]

OPTIONAL_NUMBERS: Final = ("temperature", "voltage", "lamp_current")
"""Numbers that the header table has where the camera's description names a card, and it is there: K, V, A."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Source(_Strict):
    """One card that may hold a value: ``card / divide + add``, times the exposure time where it is a mean rate."""

    card: str
    divide: float = Field(1.0, gt=0)
    add: float = 0.0
    absolute: bool = False
    times_exposure: bool = False


class _Types(_Strict):
    cards: list[str] = []
    types: dict[str, str] = {}


class HeaderRules(_Strict):
    """The ``headers`` section of a camera description, see cameras/README.md."""

    exposure: str
    detector: str
    exposure_type: _Types = _Types()
    time: list[_Source]
    exposure_time: list[_Source]
    dark_time: list[_Source] = []
    filter: list[_Source] = []
    wavelength: list[_Source] = []
    photodiode: list[_Source] = []
    sequencer: list[_Source] = []
    temperature: list[_Source] = []
    voltage: list[_Source] = []
    lamp_current: list[_Source] = []

    @field_validator(
        "time",
        "exposure_time",
        "dark_time",
        "filter",
        "wavelength",
        "photodiode",
        "sequencer",
        *OPTIONAL_NUMBERS,
        mode="before",
    )
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Let a bare keyword stand for a source."""
        rows = value if isinstance(value, list) else [value]
        return [{"card": row} if isinstance(row, str) else row for row in rows]


def fill_template(template: str, cards: Cards, where: str) -> str:
    """Text of a template as ``{RAFTBAY}_{CCDSLOT}`` with the cards' values.

    Raises
    ------
    CalibrationError
        A card of the template is missing, or does not suit its format.

    Examples
    --------
    >>> fill_template("{CAM_ID}_{IMG_ISN:05d}", {"CAM_ID": "ESIS1", "IMG_ISN": 99}, "a.fit")
    'ESIS1_00099'
    """

    def value(match: re.Match[str]) -> str:
        keyword, spec = match[1], match[2] or ""
        found = cards.get(keyword)
        if found is None or found == "":
            raise CalibrationError(f"{where}: no card {keyword}: is this a raw frame of the camera that was named?")
        try:
            return format(found, spec)
        except (ValueError, TypeError):
            raise CalibrationError(f"{where}: card {keyword} = {found!r} is not a number: correct the header") from None

    return _FIELD.sub(value, template)


def _template_cards(template: str, text: str, where: str) -> Cards:
    """Cards from which `fill_template` makes ``text``."""
    fields = _FIELD.findall(template)
    pattern, at = "", 0
    for match in _FIELD.finditer(template):
        pattern += re.escape(template[at : match.start()]) + "(.+?)"
        at = match.end()
    found = re.fullmatch(pattern + re.escape(template[at:]), text)
    if found is None:
        raise CalibrationError(f"{where}: {text!r} does not have the form {template!r}: rename it")
    try:
        cards: Cards = {
            keyword: int(value) if spec.endswith("d") else value
            for (keyword, spec), value in zip(fields, found.groups(), strict=True)
        }
    except ValueError:
        raise CalibrationError(f"{where}: {text!r} does not have the form {template!r}: rename it") from None
    if fill_template(template, cards, where) != text:
        raise CalibrationError(f"{where}: {text!r} does not have the form {template!r}: rename it")
    return cards


def exposure_table(rules: HeaderRules, cards: Cards, where: str, exposure_type: str | None) -> dict[str, Any]:
    """Exposure-level header: exposure_type, time, exposure_time, dark_time, filter, wavelength, photodiode.

    Times in s, wavelength in nm, photodiode in C; ``time`` is ISO text, UTC. With a ``sequencer``, the program by which
    the detector was read, where a card tells it, and `OPTIONAL_NUMBERS` where the camera has cards for them.

    Raises
    ------
    UnitsError
        A time is missing, not a number or negative.
    CalibrationError
        The type of the exposure or the time of observation cannot be told.
    """
    seconds = _duration(rules.exposure_time, cards, where, "exposure time")
    dark = _first(rules.dark_time, cards)
    label = _first(rules.filter, cards)
    wavelength = _number(rules.wavelength, cards, seconds)
    program = _first(rules.sequencer, cards)
    table = {
        "exposure_type": exposure_type or _type(rules.exposure_type, cards, where),
        "time": _time(rules.time, cards, where),
        "exposure_time": seconds,
        "dark_time": seconds if dark is None else _duration(rules.dark_time, cards, where, "dark time"),
        "filter": "none" if label is None else str(label[1]),
        "wavelength": wavelength if wavelength > 0 else math.nan,
        "photodiode": _number(rules.photodiode, cards, seconds),
    }
    more = {key: _number(getattr(rules, key), cards, seconds) for key in OPTIONAL_NUMBERS}
    known = {key: value for key, value in more.items() if math.isfinite(value)}
    return {**table, **({} if program is None else {"sequencer": str(program[1])}), **known}


def odd_wavelength(rules: HeaderRules, cards: Cards) -> str:
    """What the card of the wavelength holds where that is none: text, or a negative number; else nothing.

    Examples
    --------
    >>> rules = HeaderRules(exposure="{E}", detector="{D}", time="T", exposure_time="X", wavelength="MONOWL")
    >>> odd_wavelength(rules, {"MONOWL": "abc"}), odd_wavelength(rules, {"MONOWL": 0.0})
    ("card MONOWL is 'abc'", '')
    """
    found = _first(rules.wavelength, cards)
    if found is None:
        return ""
    try:
        fine = not float(found[1]) < 0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        fine = False
    return "" if fine else f"card {found[0].card} is {found[1]!r}"


def _first(sources: list[_Source], cards: Cards) -> tuple[_Source, CardValue] | None:
    """First source whose card is there and not empty."""
    for source in sources:
        value = cards.get(source.card)
        if value is not None and value != "":
            return source, value
    return None


def _number(sources: list[_Source], cards: Cards, seconds: float) -> float:
    """Value of the first source that is there; NaN without one or if it is not a number."""
    found = _first(sources, cards)
    if found is None:
        return math.nan
    source, value = found
    try:
        number = float(value) / source.divide + source.add  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    number = abs(number) if source.absolute else number
    return number * seconds if source.times_exposure else number


def _duration(sources: list[_Source], cards: Cards, where: str, what: str) -> float:
    names = " or ".join(s.card for s in sources)
    if _first(sources, cards) is None:
        raise UnitsError(f"{where}: no {what} (card {names}): add it to the header")
    value = _number(sources, cards, math.nan)
    if not (math.isfinite(value) and value >= 0):
        found = [cards.get(s.card) for s in sources]
        raise UnitsError(f"{where}: {what} (card {names}) is {found}, not a time in seconds >= 0: correct the header")
    return value


def _time(sources: list[_Source], cards: Cards, where: str) -> str:
    """ISO text of a card that holds ISO text (UTC) or a Modified Julian Date."""
    found = _first(sources, cards)
    names = " or ".join(s.card for s in sources)
    if found is None:
        raise CalibrationError(f"{where}: no time of observation (card {names}): add it to the header")
    value = found[1]
    try:
        if isinstance(value, str):
            time: np.datetime64 = np.datetime64(value.strip().removesuffix("Z"), "us")
        else:
            time = _MJD_ZERO + round(float(value) * 86400e6)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        time = _NO_TIME
    if np.isnat(time):
        raise CalibrationError(
            f"{where}: time of observation (card {names}) is {value!r}, neither ISO text in UTC nor a "
            "Modified Julian Date: correct the header"
        )
    return str(time)


def _type(rule: _Types, cards: Cards, where: str) -> str:
    found = [str(cards[k]) for k in rule.cards if cards.get(k) not in (None, "")]
    for value in found:
        for pattern, kind in rule.types.items():
            if fnmatchcase(value.strip().upper(), pattern.upper()):
                return kind
    told = f"{found[0]!r} is unknown" if found else "is not in the header"
    raise CalibrationError(f"{where}: the type of exposure {told}: pass --type (bias, dark, flat, fe55, science ...)")


def table_cards(rules: HeaderRules, exposure: str, detector: str, header: dict[str, Any], where: str) -> Cards:
    """Cards from which `exposure_table` makes ``header`` again.

    Raises
    ------
    CalibrationError
        The camera has no card, or no value of it, that says so.
    """
    cards = {
        **_template_cards(rules.exposure, exposure, where),
        **_template_cards(rules.detector, detector, where),
    }
    kinds = {kind: pattern for pattern, kind in reversed(rules.exposure_type.types.items()) if "*" not in pattern}
    if header["exposure_type"] not in kinds:
        raise CalibrationError(
            f"{where}: this camera's headers cannot say exposure type {header['exposure_type']!r}: "
            f"use one of {', '.join(sorted(kinds))}"
        )
    if rules.exposure_type.cards:
        cards[rules.exposure_type.cards[0]] = kinds[header["exposure_type"]]
    cards[rules.time[0].card] = header["time"]
    if header["filter"] != "none" and rules.filter:
        cards[rules.filter[0].card] = header["filter"]
    if rules.sequencer and header.get("sequencer"):
        cards[rules.sequencer[0].card] = header["sequencer"]
    for key in ("exposure_time", "dark_time", "wavelength", "photodiode"):
        sources, value = getattr(rules, key), header[key]
        if sources and math.isfinite(value):
            cards[sources[0].card] = _undivide(value, sources[0].divide)
    for key in OPTIONAL_NUMBERS:
        sources, value = getattr(rules, key), header.get(key, math.nan)
        if sources and math.isfinite(value):
            cards[sources[0].card] = round((value - sources[0].add) * sources[0].divide, 9)
    cards.pop("stem", None)
    return cards


def _undivide(value: float, divide: float) -> float:
    """Multiply, to a number that gives ``value`` to the last bit when divided, where one exists."""
    near = value * divide
    choices = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next((c for c in choices if c / divide == value), near)
