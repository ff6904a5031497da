"""The products a step applies: valid at its time, made from the headers of now, with the overscan of the step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsstcal_dask.errors import StaleCalibration
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.pipeline.inputs import corrected
from lsstcal_dask.pipeline.readout import FAR, WARM, Readout, made_with
from lsstcal_dask.storage.conditions import Records
from lsstcal_dask.storage.manifests import read_records, record_digests
from lsstcal_dask.storage.products import Pointer, list_accepted, list_products, lookup, outdated

__all__ = [
    "Mismatch",
    "OverscanMismatch",
    "SequencerMismatch",
    "TemperatureMismatch",
    "Upstream",
    "VoltageMismatch",
    "built",
    "find_upstream",
    "read_upstream",
]

_LEVELLED = ("bias", "dark")
"""Products of pixels above the overscan: they hold what its setting left, and only frames with the same have it."""


class Mismatch(StaleCalibration):
    """There is a valid product, but not one for these frames: nothing is made without it instead."""


class OverscanMismatch(Mismatch):
    """A product was made with another overscan setting than the frames it would be applied to."""


class SequencerMismatch(Mismatch):
    """A product was made from exposures that another program read than the frames it would be applied to."""


class VoltageMismatch(Mismatch):
    """A product was made from exposures taken at another voltage than the frames it would be applied to."""


class TemperatureMismatch(Mismatch):
    """A product was made from exposures taken at a temperature far from that of the frames."""


@dataclass(frozen=True)
class Upstream:
    """What is published, and which versions were made from what has changed since, with the reason."""

    pointers: list[Pointer]
    outdated: dict[str, str]
    accepted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see `lookup`
    records: Records = field(default_factory=dict)  # headers of the frames, see `read_records`


def read_upstream(url: str) -> Upstream:
    """Everything published in a store as it is now."""
    pointers, records = list_products(url), read_records(url)
    old = outdated(pointers, record_digests(records), records, corrected(url, pointers))
    return Upstream(pointers, old, list_accepted(url), records)


def built(upstream: Upstream, name: str) -> bool:
    """Whether there is any product of that name, for whatever detector and time."""
    return any(pointer.name == name for pointer in upstream.pointers)


def usable(upstream: Upstream, name: str, time: str = "") -> list[Pointer]:
    """Products of a name that did not fail and that nothing has outdated, valid at a time (ISO, UTC) if it is given."""
    known = [p for p in upstream.pointers if p.name == name and p.verdict != "FAIL"]
    known = [p for p in known if p.version not in upstream.outdated]
    return [p for p in known if not time or (p.valid_from <= time and (not p.valid_until or time < p.valid_until))]


def find_upstream(
    upstream: Upstream,
    name: str,
    detector: str,
    time: str,
    step: tuple[str, OverscanConfig],
    way: Readout = Readout(),
) -> Pointer:
    """The product for a detector at a time (ISO, UTC), fit for the frames of a step.

    Parameters
    ----------
    step : table of the configuration that the step reads, and the overscan setting it says.
    way : how the frames were read, as far as that is known.

    Raises
    ------
    StaleCalibration
        None is valid, or what is was made from headers that have changed since.
    OverscanMismatch
        It was made with another overscan setting.
    SequencerMismatch
        It was made from exposures that another program read.
    VoltageMismatch
        It was made from exposures that were taken at another voltage.
    TemperatureMismatch
        It follows the temperature, and was made at one that is more than 3 K off.
    """
    pointer = lookup(upstream.pointers, name, detector, time, upstream.outdated, upstream.accepted)
    table, overscan = step
    made, used = pointer.configuration.get("overscan", {}), overscan.model_dump(mode="json")
    for key in (key for key in used if name in _LEVELLED and made.get(key, used[key]) != used[key]):
        raise OverscanMismatch(
            f"{name} {pointer.version} was made with overscan {key} = {made[key]!r}, but {table} is to use "
            f"{used[key]!r}: write one of them in [overscan] for both, and build {name} again if it is not its own"
        )
    _check_readout(pointer, name, made_with(pointer.inputs, detector), way)
    return pointer


def _check_readout(pointer: Pointer, name: str, made_so: Readout, way: Readout) -> None:
    """Refuse a product of CCDs that were run otherwise; raises as `find_upstream`."""
    far = name in WARM and made_so.degrees(way) > FAR
    if not (made_so.differs(way) or far):
        return
    what, again = f"{name} {pointer.version} was made from exposures", f"take exposures for {name} with that one"
    these = f"exposure {way.exposure} was" if way.exposure else "these were"
    if made_so.sequencer and way.sequencer and made_so.sequencer != way.sequencer:
        raise SequencerMismatch(
            f"{what} read by sequencer {made_so.sequencer}, but {these} read by {way.sequencer}: {again}, and build "
            f"it again"
        )
    if made_so.differs(way):
        raise VoltageMismatch(
            f"{what} taken at {made_so.voltage:g} V, but {these} taken at {way.voltage:g} V: {again}, and build it "
            f"again"
        )
    raise TemperatureMismatch(
        f"{what} taken at {made_so.temperature:.1f} K, but {these} taken at {way.temperature:.1f} K: {again}, and "
        f"build it again"
    )
