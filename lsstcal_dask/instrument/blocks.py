"""The blocks of a FITS file, straight from its bytes (FITS standard 4.0, Secs. 3, 4 and 10).

One pass, no warnings and no global state, so that many threads can read at once.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from lsstcal_dask.errors import CalibrationError

__all__ = ["CardValue", "Hdu", "split_blocks"]

CardValue = str | int | float | bool | None
_BLOCK: Final = 2880
_STRING: Final = re.compile(r"\s*'((?:[^']|'')*)'")
_INTEGER: Final = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Hdu:
    """Header of one unit of a FITS file and where its data are."""

    cards: dict[str, CardValue] = field(repr=False)  # the first of each keyword
    start: int  # byte of the first data value
    size: int  # bytes of data, without the fill of the last block

    @property
    def name(self) -> str:
        """EXTNAME, or an empty string."""
        return str(self.cards.get("EXTNAME") or "")


def split_blocks(blob: bytes, name: str) -> list[Hdu]:
    """Every header of a FITS file with the place of its data.

    Parameters
    ----------
    blob : the whole file, not gzipped.
    name : of the file, for errors.

    Raises
    ------
    CalibrationError
        Not a FITS file, or it ends within a header or within data.
    """
    if blob[:9] != b"SIMPLE  =":
        raise CalibrationError(f"{name}: not a FITS file: it does not start with SIMPLE; remove it from the input")
    found: list[Hdu] = []
    at = 0
    while blob[at : at + 8] in (b"SIMPLE  ", b"XTENSION"):
        cards, start = _header(blob, at, name)
        size = _data_size(cards, name)
        if start + size > len(blob):
            raise CalibrationError(
                f"{name}: truncated: {start + size - len(blob)} bytes of extension {len(found)} "
                f"({cards.get('EXTNAME') or 'primary'}) are missing; copy the file again"
            )
        found.append(Hdu(cards, start, size))
        at = start + -(-size // _BLOCK) * _BLOCK
    return found


def _header(blob: bytes, at: int, name: str) -> tuple[dict[str, CardValue], int]:
    """Cards of the header that starts at byte ``at``, and the byte after it."""
    cards: dict[str, CardValue] = {}
    open_string = ""
    for here in range(at, len(blob) - 79, 80):
        line = blob[here : here + 80].decode("ascii", "replace")
        keyword = line[:8].rstrip()
        if keyword == "END" and not line[8:].strip():
            return cards, at + -(-(here + 80 - at) // _BLOCK) * _BLOCK
        if keyword == "CONTINUE" and open_string and (more := _STRING.match(line[8:])):
            cards[open_string] = str(cards[open_string])[:-1] + more[1].replace("''", "'").rstrip()
            keyword = open_string
        elif line[8:10] == "= ":
            cards.setdefault(keyword, _value(line[10:]))
        elif keyword == "HIERARCH" and "=" in line:
            keyword, _, text = (part.strip() for part in line[8:].partition("="))
            cards.setdefault(keyword, _value(text))
        value = cards.get(keyword)
        open_string = keyword if isinstance(value, str) and value.endswith("&") else ""
    raise CalibrationError(f"{name}: truncated: it ends within a header; copy the file again")


def _value(text: str) -> CardValue:
    """Value of a card, from the text after its equals sign; what is no FITS value stays text."""
    if string := _STRING.match(text):
        return string[1].replace("''", "'").rstrip()
    text = text.split("/", 1)[0].strip()
    if text in ("T", "F", ""):
        return {"T": True, "F": False, "": None}[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        return float(text.upper().replace("D", "E"))
    except ValueError:
        return text


def _data_size(cards: dict[str, CardValue], name: str) -> int:
    """Bytes of data that a header announces (Eq. 2 of the standard)."""
    try:
        axes = [_integer(cards, f"NAXIS{k + 1}") for k in range(_integer(cards, "NAXIS"))]
        pixels = 1 if axes else 0
        for n in axes:
            pixels *= n
        groups, extra = _integer(cards, "GCOUNT", 1), _integer(cards, "PCOUNT", 0)
        return abs(_integer(cards, "BITPIX")) // 8 * groups * (extra + pixels)
    except (TypeError, ValueError, KeyError) as error:
        raise CalibrationError(f"{name}: damaged header ({error}); copy the file again") from None


def _integer(cards: dict[str, CardValue], keyword: str, default: int | None = None) -> int:
    value = cards.get(keyword, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{keyword} = {value!r}")
    return value
