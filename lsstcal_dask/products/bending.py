"""What linearity curves are like: a spline, and how it may bend (Lupton 2016, Sec. 2.3; Wahba 1983, JRSS B 45, 133).

The slope of S wanders from dark to the top, as fast at all levels, and no faster than over a reach: the second
derivative is a Gaussian process of correlation ``exp(-|t(m) - t(m')|)`` and variance ``rate / reach``, with

    dt / dm = 1 / reach,    1 / reach = 1 / (length top) + 1 / (m + 0.015 top).

What a readout channel does at faint levels (a feature of its preamplifier) is narrow, what it does near saturation is
wide: at no level is the reach more than that level and 1.5 % of the top. That is as narrow as a ladder with a feature
of 0.02 % at 1000 adu asks for, if the error of the slope for no light is to be neither too large nor too small (the
closed loop of linearity). Of curves without any reach, the slope a random walk, it is told too large by half.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

__all__ = ["Model", "log_width", "penalty", "spline_columns", "spline_model"]

Floats = NDArray[np.float64]

_KNOTS: Final = 48  # they crowd towards the faint end: between them no curve wanders by a tenth of its error
_FAINT: Final = 0.015  # of the top: reach of the faintest levels


@dataclass(frozen=True)
class Model:
    """Where the spline has knots, to which level it goes, and where its corner is, in adu; no corner: NaN.

    ``bend`` is the rms change of the slope of S from dark to ``top``, ``length`` the reach of bright levels, of the
    top.
    """

    knots: tuple[float, ...]
    top: float
    corner: float = float("nan")
    bend: float = 0.02
    length: float = 0.3

    @property
    def edges(self) -> Floats:
        """Knots (k + 2,) with both ends, adu."""
        return np.r_[0.0, self.knots, self.top]

    @property
    def _ends(self) -> Floats:
        return np.r_[[0.0] * 4, self.knots, [self.top] * 4]


def spline_model(top: float, like: Model | None = None) -> Model:
    """Spline up to a level ``top``, adu, with all its knots; corner, bend and length are those of another."""
    knots = tuple(top * (np.arange(1, _KNOTS + 1) / (_KNOTS + 1)) ** 2)
    return Model(knots, top) if like is None else Model(knots, top, like.corner, like.bend, like.length)


def spline_columns(model: Model, level: Any) -> Floats:
    """Cubic B-splines (n, k) that are zero at level 0, the corner after them; straight beyond the top."""
    ends = model._ends
    inside = np.clip(level, 0.0, model.top)
    columns = BSpline.design_matrix(inside, ends, 3).toarray()[:, 1:]
    if np.any(level > model.top):
        last = BSpline(ends, np.eye(len(ends) - 4), 3).derivative()(model.top)[1:]
        columns += np.maximum(level - model.top, 0.0)[:, None] * last
    if np.isfinite(model.corner):
        columns = np.column_stack([columns, np.maximum(level - model.corner, 0.0)])
    return np.asarray(columns)


def _process(model: Model) -> tuple[Floats, Floats]:
    """Rms of S'' at ``edges`` (k + 2,), 1/adu, and its correlation between neighbours (k + 1,)."""
    edges = model.edges
    far, faint = model.length * model.top, _FAINT * model.top
    rms = np.sqrt(1 / far + 1 / (edges + faint))
    place = edges / far + np.log1p(edges / faint)
    width = np.convolve(np.diff(edges), [0.5, 0.5])  # of the trapezoids, S'' being straight between knots
    slope = (rms * width) @ np.exp(-np.abs(place[:, None] - place)) @ (rms * width)
    return model.bend / np.sqrt(slope) * rms, np.exp(-np.diff(place))


def penalty(model: Model) -> Floats:
    """Rows (k + 2, spline) whose products with the spline's parameters are independent and of unit variance.

    Each is what S'' at a knot has that does not follow from S'' at the knot before. A corner takes no part.
    """
    ends = model._ends
    rms, alike = _process(model)
    rows = BSpline(ends, np.eye(len(ends) - 4), 3).derivative(2)(model.edges)[:, 1:] / rms[:, None]
    rows[1:] = (rows[1:] - alike[:, None] * rows[:-1]) / np.sqrt(1 - alike**2)[:, None]
    return np.column_stack([rows, np.zeros(len(rows))]) if np.isfinite(model.corner) else rows


def log_width(model: Model) -> float:
    """Logarithm of the determinant of the covariance of S'' at the knots: twice that of all widths of `penalty`."""
    rms, alike = _process(model)
    return float(2 * np.log(rms).sum() + np.log(1 - alike**2).sum())
