"""Which dust goes into a flat, and how long the flat counts then (Sec. 2.8.2)."""

from collections.abc import Sequence

from lsstcal_dask.pipeline.build import Validity
from lsstcal_dask.storage.products import Pointer
from lsstcal_dask.variables import NOTE

__all__ = ["dust_for"]


def dust_for(
    known: Sequence[Pointer], name: str, cube: tuple[str, int], validity: Validity
) -> tuple[Pointer | None, str, list[str]]:
    """Dust that is there when a flat begins to be valid, the end of its validity, and remarks.

    Parameters
    ----------
    known : dust of this ``name``, a filter's, that can be used, in the order of time.
    cube : name and publication. Dust is a change since slices were taken: against others it is another change.
    validity : of the flat, as it is asked for; without an end it ends where its dust becomes another.
    """
    last = list({(p.valid_from, _cube_of(p)): p for p in known}.values())  # what is found anew takes its place
    dust, told = _there(last, name, cube, validity.valid_from)
    end, until = _end([p for p in last if _cube_of(p) == cube[0]], name, dust, validity)
    return dust, end, told + until


def _cube_of(dust: Pointer) -> str:
    return str(dust.inputs.get("cube", "").partition("/")[0])


def _there(known: Sequence[Pointer], name: str, cube: tuple[str, int], start: str) -> tuple[Pointer | None, list[str]]:
    """Of the dust that counts at a time the last that was found against a cube."""
    valid = [p for p in known if p.valid_from <= start and (not p.valid_until or start < p.valid_until)]
    this = f"{cube[0]}/{cube[1]}"
    if own := [p for p in valid if p.inputs.get("cube") == this]:
        return own[-1], [f"{NOTE}with {name} {own[-1].version}, found from {own[-1].valid_from} on"]
    if valid:
        other = f"{name} {valid[-1].version} was found against {valid[-1].inputs.get('cube')}, not against {this}"
        return None, [f"without dust: {other}: run 'lsstcal contamination' again"]
    return None, [f"{NOTE}no {name} is known at {start}"]


def _end(known: Sequence[Pointer], name: str, dust: Pointer | None, validity: Validity) -> tuple[str, list[str]]:
    """End of validity of a flat: for visits from then on there is to be no flat rather than one without their dust."""
    start, said = validity.valid_from, validity.valid_until
    changes = [p.valid_from for p in known if p.valid_from > start] + [p.valid_until for p in [dust] if p]
    change = min(filter(None, changes), default="")
    if not change or (said and said <= change):
        return said, []
    text = f"{name} is another from {change} on: for exposures from then on run it again with --valid-from {change}"
    return (said, [f"valid until {said}, but {text}"]) if said else (change, [f"{NOTE}valid until {change}: {text}"])
