"""The two references of a broadband flat must agree: that of the cube's epoch, and that of the cube (Sec. 2.8.2).

What a flat of now is compared with is one taken when the cube was, or the cube's own for the lamp's light. Their ratio
is one but for the lamp's place, a polynomial of the place, and for what a filter reflects. Anything else is an alarm:
slices, curves of the filter, or flats are not what they are taken for. Over the field, light between the curves is
known no better than one curve is predicted from the others, so twice that much is no alarm. Within a CCD, where a
polynomial of the place stands for that, it is dust that came or went between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lsstcal_dask.errors import DegenerateSolution
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.drift import Cells, fit_lamp
from lsstcal_dask.products.weights import Weights
from lsstcal_dask.variables import NOTE

__all__ = ["Difference", "difference", "known_to", "told_difference"]

_DEGREE = 5  # of the polynomial of the place within a CCD
_TIMES = 2.0  # what is known of the light between curves, beyond which a difference is an alarm


@dataclass(frozen=True)
class Difference:
    """How far the references of a band are apart, the lamp's polynomial taken out; relative."""

    band: str
    rms: float  # of cells, their noise taken out
    known: float  # to which the light between the filter's curves is known
    worst: str  # CCD
    worst_rms: float
    rough: str  # CCD within which they differ most, a polynomial of the place taken out, and by how much
    rough_rms: float
    drift: float  # nm, of the filter from its curves to the flat of the cube's epoch; NaN if it cannot be told
    drift_error: float
    drift_rms: float  # what such a drift changes that the lamp does not


def known_to(weights: Weights) -> float:
    """Relative rms to which the light behind a filter is predicted at one curve's place from the other curves."""
    if not isinstance(weights.surface, Nearby):
        return 0.0
    light = weights.values @ weights.response
    return float(np.sqrt(np.mean(np.square(weights.surface.missed(light) / light))))


def difference(band: str, cells: Mapping[str, Cells], known: float, config: ContaminationConfig) -> Difference:
    """Difference of the references of a band.

    Parameters
    ----------
    cells : by CCD, of the flat of the cube's epoch over that of the cube.
    known : see `known_to`.

    Raises
    ------
    InsufficientInputs
        As `fit_lamp`.
    """
    own = list(cells.values())
    plain = fit_lamp(own, config, with_drift=False)
    try:
        moved = fit_lamp(own, config)
        change = [moved.at(one.x, one.y, one.drift) - plain.at(one.x, one.y, one.drift) for one in own]
        drift = moved.drift, moved.drift_error, float(np.std(np.concatenate(change)))
    except DegenerateSolution:
        drift = float("nan"), float("nan"), 0.0
    rest = {name: one.change - plain.at(one.x, one.y, one.drift) for name, one in cells.items() if len(one.x)}
    size = {name: _excess([values], [cells[name]]) for name, values in rest.items()}
    within = {name: _excess([_without_smooth(values, cells[name])], [cells[name]]) for name, values in rest.items()}
    worst, rough = (max(one, key=lambda name: one[name]) for one in (size, within))
    total = _excess(list(rest.values()), [cells[name] for name in rest])
    return Difference(band, total, known, worst, size[worst], rough, within[rough], *drift)


def _without_smooth(values: np.ndarray, cells: Cells) -> np.ndarray:
    """Values (n,) less a polynomial of the place within a CCD, as large as they would be without the fit."""
    x, y = ((one - one.mean()) / (np.ptp(one) or 1.0) for one in (cells.x, cells.y))
    design = np.stack([x**i * y**j for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)], axis=1)
    if len(values) <= 2 * design.shape[1]:
        return np.zeros_like(values)
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return np.asarray(rest / np.sqrt(1 - design.shape[1] / len(values)))


def _excess(rest: Sequence[np.ndarray], cells: Sequence[Cells]) -> float:
    """Rms of cells beyond their noise."""
    square, noise = np.concatenate(rest) ** 2, np.concatenate([one.variance for one in cells])
    return float(np.sqrt(max(np.mean(square) - np.mean(noise), 0.0))) if len(square) else 0.0


def told_difference(found: Difference, config: ContaminationConfig) -> list[str]:
    """What a person should know of it: alarms, or a note that there is none."""
    size = f"{found.rms:.1e} rms, most in {found.worst} ({found.worst_rms:.1e})"
    text = f"filter {found.band}: flats of the cube's epoch and those of the cube differ by {size}"
    remarks = []
    if found.rms > max(config.references, _TIMES * found.known):
        remarks.append(f"REFERENCES_DISAGREE: {text}: look at their ratio, and at the filter's curves")
    if found.rough_rms > config.references:
        remarks.append(
            f"REFERENCES_DISAGREE: filter {found.band}: flats of the cube's epoch and those of the cube differ by "
            f"{found.rough_rms:.1e} rms within {found.rough}: did dust come or go between them?"
        )
    moved = abs(found.drift) > max(config.drift * found.drift_error, config.least_drift)
    if moved and found.drift_rms > found.known:  # or it is the curves that do not tell the light between them
        by = f"{found.drift:+.3f} +- {found.drift_error:.3f} nm"
        remarks.append(
            f"REFERENCES_DISAGREE: filter {found.band} moved by {by} from its curves to the cube: measure its "
            f"transmission again"
        )
    return remarks or [f"{NOTE}{text}, which the curves of the filter do not tell better than {found.known:.1e}"]
