"""Pictures of a metric for the report: amplifiers on the focal plane, and a histogram with its limits."""

import base64
import io
from typing import TYPE_CHECKING, Final

import numpy as np

from lsstcal_dask.instrument import Amplifier, Camera, Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.verify.display import robust_limits
from lsstcal_dask.verify.metric import Metric, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "png"]

_FAIL: Final = "#c62828"
_WARN: Final = "#e08e0b"
_MISSING: Final = "#d9d9d9"
_BINS: Final = 40
_NAMED: Final = 30  # CCDs beyond which their names do not fit


def draw(result: Result, camera: Camera) -> "Figure":
    """Figure of one metric: the map on the left, amplifiers that break limits or aim outlined; the histogram beside it.

    Amplifiers are drawn as polygons, so that a focal plane of LSST takes a moment and not an image of 3 gigapixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9.6, 4.2), dpi=96)
    FigureCanvasAgg(figure)
    # Places are fixed: to find them anew for each of thirty figures takes most of the time.
    _draw_map(figure.add_axes((0.06, 0.11, 0.4, 0.84)), figure.add_axes((0.475, 0.16, 0.012, 0.74)), result, camera)
    _draw_histogram(figure.add_axes((0.62, 0.11, 0.365, 0.84)), result)
    return figure


def png(figure: "Figure") -> str:
    """The figure as text: a PNG in base64."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return base64.b64encode(data.getvalue()).decode()


def _corners(detector: Detector, amplifier: Amplifier) -> np.ndarray:
    """(4, 2) focal plane position, mm, of the corners of an amplifier."""
    (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
    x, y = np.array([x0, x0 + nx, x0 + nx, x0]) - 0.5, np.array([y0, y0, y0 + ny, y0 + ny]) - 0.5
    return np.stack(ccd_to_focal(detector, x, y), axis=1)


def _draw_map(axes: "Axes", beside: "Axes", result: Result, camera: Camera) -> None:
    from matplotlib.collections import PolyCollection  # noqa: PLC0415
    from matplotlib.patheffects import withStroke  # noqa: PLC0415

    values = dict(zip(result.places, result.judged, strict=True))
    shapes, colours, edges, widths = [], [], [], []
    for detector in camera.detectors:
        for amplifier in detector.amplifiers:
            value = values.get((detector.name, amplifier.name), np.nan)
            shapes.append(_corners(detector, amplifier))
            colours.append(value)
            colour = _outline(value, result.metric)
            edges.append(colour or "white")
            widths.append(1.4 if colour else 0.3 if len(camera.detectors) <= _NAMED else 0.1)
    order = np.argsort(widths, kind="stable")  # outlines of bad amplifiers on top of their neighbours'
    patches = PolyCollection(
        [shapes[i] for i in order],
        array=np.ma.masked_invalid([colours[i] for i in order]),
        edgecolors=[edges[i] for i in order],
        linewidths=[widths[i] for i in order],
        cmap="viridis",
    )
    patches.cmap = patches.cmap.with_extremes(bad=_MISSING)
    patches.set_clim(*robust_limits(result.judged))
    axes.add_collection(patches)
    axes.autoscale_view()
    axes.set_aspect("equal")
    if len(camera.detectors) <= _NAMED:
        for detector in camera.detectors:
            text = axes.text(*detector.center_mm, detector.name, ha="center", va="center", fontsize=6, color="white")
            text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    axes.set_xlabel("focal plane x, mm", fontsize=8)
    axes.set_ylabel("y, mm", fontsize=8)
    axes.tick_params(labelsize=7)
    bar = axes.figure.colorbar(patches, cax=beside, extend="both")
    bar.set_label(_label(result.metric), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.formatter.set_useOffset(False)  # type: ignore[attr-defined]


def _outline(value: float, metric: Metric) -> str:
    if not np.isfinite(value):
        return ""
    if not metric.limits[0] <= value <= metric.limits[1]:
        return _FAIL
    return "" if metric.aim[0] <= value <= metric.aim[1] else _WARN


def _draw_histogram(axes: "Axes", result: Result) -> None:
    """Histogram over everything that was measured; limits that nothing comes near are said and not drawn."""
    values = result.judged[np.isfinite(result.judged)]
    if values.size:
        low, high = float(values.min()), float(values.max())
        margin = 0.25 * (high - low) or max(abs(low) * 0.1, 1e-12)
        near = [
            edge
            for bottom, top in (result.metric.limits, result.metric.aim)
            for edge, broken in ((bottom, low < bottom), (top, high > top))
            if broken or low - 4 * margin < edge < high + 4 * margin
        ]
        left, right = min([low - margin, *near]), max([high + margin, *near])
        rim = 0.03 * (right - left)
        counts, at = np.histogram(values, np.linspace(left, right, _BINS + 1))
        axes.stairs(counts, at, fill=True, color="#3b6ea5")  # one shape: forty bars cost a fifth of the figure
        axes.set_xlim(left - rim, right + rim)
        for (bottom, top), colour, name in (
            (result.metric.limits, _FAIL, "fails beyond"),
            (result.metric.aim, _WARN, "warns beyond"),
        ):
            edges = [edge for edge in (bottom, top) if np.isfinite(edge)]
            for edge in edges:
                if left <= edge <= right:
                    axes.axvline(edge, color=colour, lw=1.5, ls="--")
            if edges:
                axes.plot([], [], color=colour, ls="--", label=f"{name} {' and '.join(f'{e:g}' for e in edges)}")
        axes.legend(fontsize=7, loc="upper right")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlabel(_label(result.metric), fontsize=8)
    axes.set_ylabel("amplifiers", fontsize=8)
    axes.tick_params(labelsize=7)


def _label(metric: Metric) -> str:
    if metric.in_errors:
        return f"{metric.name}, over its error"
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name
