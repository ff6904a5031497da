"""Pictures of an amplifier, a CCD or the whole focal plane, in field orientation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import Camera, Detector, assemble, bin_ccd, mosaic
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS
from lsstcal_dask.verify.charts import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture", "robust_limits"]

_SIDE = 1500  # binned pixels along the longer side of a picture, at most
_MISSING = "#d9d9d9"
_FLAGS = {"mask": MASK_BITS, "defect_kind": DEFECT_KINDS}
_MANY = 50  # CCDs beyond which a focal plane gets a larger picture and smaller names


def robust_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of a colour scale that a few wild pixels do not move: the 0.5 and 99.5 percentiles, widened a little.

    Examples
    --------
    >>> low, high = robust_limits(np.append(np.arange(1000.0), 1e9))
    >>> high < 1100
    True
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    margin = 0.05 * (high - low) or max(abs(low) * 1e-3, 0.5)
    return float(low - margin), float(high + margin)


def picture(
    data: xr.DataArray,
    camera: Camera,
    path: str | Path,
    *,
    title: str,
    detector: str | None = None,
    amplifier: str | None = None,
) -> Path:
    """Write a PNG of one amplifier, one assembled CCD or the whole focal plane.

    Parameters
    ----------
    data : (detector, amplifier, y, x) pixels or (detector, amplifier) values; detectors may be missing.
        Of flags, as ``mask`` or ``defect_kind``, the highest of each pixel is shown by a colour of its own.
    title : first line above the picture.
    detector, amplifier : what to show; the focal plane without a detector, the CCD without an amplifier.

    Returns
    -------
    The path.

    Raises
    ------
    CalibrationError
        No such detector or amplifier in ``data``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    present = [str(name) for name in data["detector"].values]
    if detector is not None and detector not in present:
        raise CalibrationError(
            f"{title} has no detector {detector}: it has {', '.join(present[:9])}{' ...' if len(present) > 9 else ''}"
        )
    crowded = detector is None and len(camera.detectors) > _MANY
    figure = Figure(figsize=(12, 11) if crowded else (9, 8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_MISSING)
    if detector is None:
        values, text = _draw_focal_plane(axes, data, camera)
    elif amplifier is None:
        values, text = _draw_ccd(axes, data.sel(detector=detector), camera)
    else:
        values, text = _draw_amplifier(axes, data.sel(detector=detector), camera, amplifier)
    if str(data.name) in _FLAGS:
        _name_flags(figure, axes, _FLAGS[str(data.name)])
    else:
        _finish(figure, axes, values, data)
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", va="bottom", fontsize=14)
    axes.set_title(f"{title}\n{text}", fontsize=11)
    return save(figure, path)


def _finish(figure: "Figure", axes: "Axes", values: np.ndarray, data: xr.DataArray) -> None:
    image = axes.images[0]
    image.set_cmap("viridis")
    image.set_clim(*robust_limits(values))
    units = data.attrs.get("units", "")
    label = str(data.attrs.get("long_name", data.name))
    across, up = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    width = figure.get_figwidth()  # the size follows from what is shown, with room for title and labels
    figure.set_figheight(min(max(0.82 * width * up / across + 1.4, 3.0), width))
    if up > 1.3 * across:
        figure.set_figwidth(0.75 * width)
    bar = figure.colorbar(
        image, ax=axes, fraction=0.046, pad=0.02, extend="both", label=f"{label} [{units}]" if units else label
    )
    bar.formatter.set_useOffset(False)  # type: ignore[attr-defined]
    finite = values[np.isfinite(values)]
    if finite.size:
        spread = 1.4826 * np.median(np.abs(finite - np.median(finite)))
        axes.set_xlabel(
            f"{axes.get_xlabel()}\nas shown: median {np.median(finite):.5g}, robust sigma {spread:.3g}, "
            f"from {finite.min():.5g} to {finite.max():.5g} {units}"
        )


def _name_flags(figure: "Figure", axes: "Axes", flags: dict[str, int]) -> None:
    """Colour of each flag, and a legend for it."""
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.colors import ListedColormap, to_hex  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    colours = ["#f4f4f4", *(to_hex(colormaps["tab10"](i)) for i in range(len(flags)))]
    image = axes.images[0]
    image.set_cmap(ListedColormap(colours))
    image.set_clim(-0.5, len(flags) + 0.5)
    names = ["none", *(name.lower().replace("_", " ") for name in flags)]
    patches = [Patch(facecolor=c, edgecolor="grey", label=name) for c, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)


def _numbers_of(values: np.ndarray, flags: dict[str, int]) -> np.ndarray:
    """Place of the highest flag of each pixel among ``flags``, from 1; 0 without any."""
    found = np.zeros(values.shape)
    for i, bit in enumerate(flags.values(), 1):
        found[values & bit > 0] = i
    return found


def _binned(ccd: np.ndarray, bin: int, name: str) -> np.ndarray:
    """Mean of the pixels of each square; of flags the highest, for a single bad pixel is to be seen."""
    if name not in _FLAGS or bin == 1:
        return bin_ccd(ccd, bin)
    for axis, n in enumerate(ccd.shape):
        ccd = np.fmax.reduceat(ccd, np.arange(0, n, bin), axis=axis)
    return ccd


def _values(data: xr.DataArray) -> np.ndarray:
    flags = _FLAGS.get(str(data.name))
    return np.asarray(data.values, dtype=float) if flags is None else _numbers_of(data.values, flags)


def _assembled(data: xr.DataArray, detector: Detector, camera: Camera) -> np.ndarray:
    """CCD image (y, x), NaN where there are no data; values of whole amplifiers are spread over their pixels."""
    values = _values(data)
    if "y" not in data.dims:
        values = np.broadcast_to(values[:, None, None], (*values.shape, *camera.image_shape))
    names = [str(name) for name in data["amplifier"].values]
    return np.asarray(assemble(values, detector, camera, amplifiers=names))


def _draw_amplifier(axes: "Axes", data: xr.DataArray, camera: Camera, amplifier: str) -> tuple[np.ndarray, str]:
    detector = camera.detector(str(data["detector"].values))
    names = [a.name for a in detector.amplifiers]
    if amplifier not in names:
        raise CalibrationError(f"{detector.name} has no amplifier {amplifier}: it has {', '.join(names)}")
    if "y" not in data.dims:
        raise CalibrationError(f"{data.name} has one value for each amplifier: show it without --amplifier")
    values = _values(data.sel(amplifier=amplifier))
    ny, nx = next(a for a in detector.amplifiers if a.name == amplifier).data.shape
    values = values[:ny, :nx] if values.shape == camera.image_shape else values
    axes.imshow(values, origin="lower", interpolation="nearest", aspect="equal")
    axes.set_xlabel("x, pixels from the readout corner")
    axes.set_ylabel("y, pixels from the readout corner")
    return values, f"{detector.name} {amplifier}, readout orientation"


def _draw_ccd(axes: "Axes", data: xr.DataArray, camera: Camera) -> tuple[np.ndarray, str]:
    detector = camera.detector(str(data["detector"].values))
    bin = max(1, -(-max(detector.shape) // _SIDE))
    values = _binned(_assembled(data, detector, camera), bin, str(data.name))
    ny, nx = detector.shape
    axes.imshow(values, origin="lower", interpolation="nearest", extent=(0, nx, 0, ny))
    for amplifier in detector.amplifiers:
        (x0, y0), (height, width) = amplifier.position, amplifier.data.shape
        axes.text(
            x0 + width / 2,
            y0 + height / 2,
            amplifier.name,
            ha="center",
            va="center",
            color="white",
            fontsize=7,
        ).set_path_effects(_outline())
    axes.set_xlabel("x, pixels")
    axes.set_ylabel("y, pixels")
    return values, f"{detector.name} ({detector.vendor}), {nx} x {ny} pixels" + (f", binned {bin}" if bin > 1 else "")


def _draw_focal_plane(axes: "Axes", data: xr.DataArray, camera: Camera) -> tuple[np.ndarray, str]:
    across = [d.center_mm[0] for d in camera.detectors]
    pitch = camera.detectors[0].pixel_mm
    width = (max(across) - min(across)) / pitch + max(d.shape[1] for d in camera.detectors)
    bin = max(1, round(width / _SIDE))
    images = {}
    for name in (str(value) for value in data["detector"].values):
        images[name] = _binned(_assembled(data.sel(detector=name), camera.detector(name), camera), bin, str(data.name))
    values, extent = mosaic(images, camera, bin)
    axes.imshow(values, origin="lower", interpolation="nearest", extent=extent)
    many = len(camera.detectors) > _MANY
    for detector in camera.detectors:
        seen = detector.name in images
        text = axes.text(
            *detector.center_mm,
            detector.name.replace("_", "\n") if many else detector.name,
            ha="center",
            va="center",
            color="white" if seen else "#707070",
            fontsize=5 if many else 8,
        )
        if seen:
            text.set_path_effects(_outline(0.7 if many else 1.5))
    axes.set_xlabel("focal plane x, mm")
    axes.set_ylabel("focal plane y, mm")
    return values, f"{camera.name}, {len(images)} of {len(camera.detectors)} CCDs" + (
        f", binned {bin}" if bin > 1 else ""
    )


def _outline(width: float = 1.5) -> list[Any]:
    from matplotlib.patheffects import withStroke  # noqa: PLC0415

    return [withStroke(linewidth=width, foreground="black")]
