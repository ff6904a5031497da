"""How the CCDs of exposures were run (sequencer, temperature, voltage), as products remember it.

Digests of it, by exposure and by detector, are inputs of a product: where a header was corrected since, the two that
differ name the frame.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lsstcal_dask.storage.manifests import OF_DETECTOR, FrameRecord, is_absent
from lsstcal_dask.storage.provenance import digest

__all__ = ["Records", "changed_condition", "conditions"]

Records = Mapping[tuple[str, str], FrameRecord]


def conditions(records: Records, frames: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Digests of what is known of some frames; nothing where no header tells anything.

    Parameters
    ----------
    records : what `read_records` found.
    frames : exposures by detector.

    Returns
    -------
    ``exposures`` and ``detectors``, a digest for each, and ``absent``, exposures that detectors have not.
    """
    exposures = sorted({exposure for own in frames.values() for exposure in own})
    known = {(e, d): _told(records.get((e, d))) for d, own in frames.items() for e in own}
    if not any(known.values()):
        return {}
    missing = {d: sorted(set(exposures) - set(own)) for d, own in frames.items()}
    return {
        "exposures": {e: digest([known.get((e, d), "") for d in sorted(frames)]) for e in exposures},
        "detectors": {d: digest([known.get((e, d), "") for e in exposures]) for d in sorted(frames)},
        "absent": {d: own for d, own in missing.items() if own},
    }


def changed_condition(inputs: Mapping[str, Any], records: Records) -> tuple[str, str] | None:
    """Exposure and detector of a frame that was run otherwise than a product remembers, by its headers of now."""
    then = inputs.get("conditions")
    if not then:
        return None
    absent = {detector: set(own) for detector, own in then["absent"].items()}
    frames = {d: [e for e in then["exposures"] if e not in absent.get(d, ())] for d in then["detectors"]}
    now = conditions(records, frames) or {"exposures": {}, "detectors": {}}
    other = [
        [name for name, text in then[key].items() if now[key].get(name) != text] for key in ("exposures", "detectors")
    ]
    return (other[0][0], other[1][0]) if all(other) else None


def _told(record: FrameRecord | None) -> str:
    """What the header of a frame says, as text; empty where it says nothing."""
    if record is None:
        return ""
    header = record.own or record.header
    found = {key: header.get(key, unknown) for key, unknown in OF_DETECTOR.items()}
    known = {key: value for key, value in found.items() if value != "" and not is_absent(value)}
    texts = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in known.items()}
    return " ".join(f"{key} {text}" for key, text in texts.items())
