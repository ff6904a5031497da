"""Pictures that are no map of the focal plane: curves of amplifiers, and the matrix of crosstalk."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_picture", "matrix_picture", "save", "spectrum_picture"]

_MISSING = "#d9d9d9"
_NAMED = 40  # amplifiers beyond which their names do not fit
_ABOVE = 99.0  # percentile of the couplings at which the colours end


def _figure(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: "Figure", path: str | Path) -> Path:
    """Write a figure.

    Raises
    ------
    CalibrationError
        It cannot be written there.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot write a picture there ({str(error).splitlines()[0]})") from error
    return Path(path)


def spectrum_picture(values: xr.DataArray, errors: xr.DataArray, path: str | Path, title: str) -> Path:
    """Write a PNG of numbers (wavelength,) with their errors against wavelength; raises as `save`."""
    figure, axes = _figure((9, 5))
    at = values["wavelength"].values
    axes.fill_between(at, (values - errors).values, (values + errors).values, alpha=0.3, label="standard error")
    axes.plot(at, values.values, ".-", markersize=4, linewidth=1)
    axes.set_xlabel("wavelength in vacuum [nm]")
    axes.set_ylabel(f"{values.attrs.get('long_name', values.name)} [{values.attrs.get('units', '')}]")
    axes.set_title(title, fontsize=11)
    axes.legend()
    return save(figure, path)


def curves_picture(level: xr.DataArray, correction: xr.DataArray, path: str | Path, title: str) -> Path:
    """Write a PNG of the linearity curves of amplifiers: correction over level against level, both (amplifier, node).

    Parameters
    ----------
    level, correction : (detector, amplifier, node) adu, padded with NaN. Raises as `save`.
    """
    figure, axes = _figure((9, 6))
    names = [f"{det} {a}" for det in level["detector"].values for a in level["amplifier"].values]
    lines = zip(names, *(v.values.reshape(len(names), -1) for v in (level, correction)), strict=True)
    drawn = [(name, at, value) for name, at, value in lines if np.isfinite(value).any()]
    for name, at, value in drawn:
        lit = at > 0
        axes.plot(at[lit], 100 * value[lit] / at[lit], linewidth=1 if len(drawn) <= _NAMED else 0.3, label=name)
    axes.set_xlabel("measured signal [adu]")
    axes.set_ylabel("true less measured signal, % of it")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_title(f"{title}\n{len(drawn)} of {len(names)} amplifiers", fontsize=11)
    if 0 < len(drawn) <= _NAMED:
        axes.legend(fontsize=6, ncols=2)
    return save(figure, path)


def matrix_picture(values: xr.DataArray, path: str | Path, title: str) -> Path:
    """Write a PNG of couplings (detector, amplifier, source): targets downwards, sources across, grey unmeasured.

    The colours end where 99 % of the couplings lie that are not zero. Raises as `save`.
    """
    figure, axes = _figure((10, 9))
    targets = [f"{det}/{a}" for det in values["detector"].values for a in values["amplifier"].values]
    sources = [str(name) for name in values["source"].values]
    matrix = values.values.reshape(len(targets), -1).astype(float)
    seen = np.abs(matrix[np.isfinite(matrix) & (matrix != 0)])
    most = float(np.percentile(seen, _ABOVE)) if seen.size else 1.0
    axes.set_facecolor(_MISSING)
    drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
    for axis, names in ((axes.yaxis, targets), (axes.xaxis, sources)):
        if len(names) <= _NAMED:
            axis.set_ticks(range(len(names)), names, fontsize=6, rotation=90 if axis is axes.xaxis else 0)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    label = str(values.attrs.get("long_name", values.name))
    figure.colorbar(drawn, ax=axes, extend="both", label=f"{label} [{values.attrs.get('units', '')}]")
    unmeasured = float(np.isnan(matrix).mean())
    axes.set_title(f"{title}\n{seen.size} couplings other than zero, {unmeasured:.0%} unmeasured", fontsize=11)
    return save(figure, path)
