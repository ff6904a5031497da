"""Flats and other exposures of one amplifier as images: above overscan and bias, linear; and which flats are pairs."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Amplifier
from lsstcal_dask.isr.linearity import curve
from lsstcal_dask.isr.overscan import OverscanConfig, reference_pixels, row_levels

__all__ = ["ReadNoise", "amplifier_images", "check_flats", "find_pairs", "present_pairs"]


def find_pairs(raw: xr.Dataset) -> list[tuple[int, int]]:
    """Positions of flats to be paired: successive in time, with the same exposure time, filter and wavelength.

    Examples
    --------
    Four flats of 1, 1, 2 and 2 s make the pairs (0, 1) and (2, 3).
    """
    columns = (raw[name].values for name in ("exposure_type", "exposure_time", "filter", "wavelength"))
    groups: dict[tuple, list[int]] = {}
    for i, (kind, seconds, band, wavelength) in enumerate(zip(*columns, strict=True)):
        if kind == "flat":
            groups.setdefault((f"{float(seconds):.4g}", str(band), f"{float(wavelength):.1f}"), []).append(i)
    return sorted((a, b) for found in groups.values() for a, b in zip(found[::2], found[1::2], strict=False))


def check_flats(product: str, raw: xr.Dataset, minimum: int) -> None:
    """Refuse too few flats for a product.

    Raises
    ------
    InsufficientInputs
        Fewer than ``minimum``.
    """
    flats = int((raw["exposure_type"].values == "flat").sum())
    if flats < minimum:
        raise InsufficientInputs(
            f"{product}: {flats} flats, at least {minimum} are needed: take more, or lower [{product}] minimum"
        )


def present_pairs(raw: xr.Dataset) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """Pairs of `find_pairs` whose frames are both there (``present`` (exposure,)), with their exposure ids."""
    present = raw["present"].values
    names = [str(name) for name in raw["exposure"].values]
    for first, second in find_pairs(raw):
        if present[first] and present[second]:
            yield first, second, (names[first], names[second])


class ReadNoise:
    """Read noise of an amplifier: that of the bias; without one, what the reference pixels of bright frames show.

    These hold what came late of the charge of the last pixels, and of a trap of the serial register that is noise.
    """

    def __init__(self, known: float, error: float = np.nan) -> None:
        self._known = known, error  # adu
        self._squares: list[float] = []
        self._pixels = 0

    @classmethod
    def known(cls, products: dict[str, xr.Dataset], amplifier: Amplifier) -> "ReadNoise":
        """Begin with the one of the bias, if there is a bias."""
        bias = products.get("bias")
        if bias is None:
            return cls(np.nan)
        own = bias.sel(amplifier=amplifier.name)
        error = float(own["read_noise_error"]) if "read_noise_error" in own else np.nan
        return cls(float(own["read_noise"]), error)

    def add(self, noise: np.ndarray, pixels: int) -> None:
        """Add frames (n,), adu, each measured in so many pixels."""
        self._squares += [float(value) ** 2 for value in noise if np.isfinite(value)]
        self._pixels += pixels * len(noise)

    def result(self) -> tuple[float, float]:
        """Read noise and its error, adu; NaN where nothing is known."""
        if self._known[0] > 0 or not self._squares:
            return self._known
        value = float(np.sqrt(np.mean(self._squares)))
        return value, value / np.sqrt(2 * max(self._pixels, 1))

    def value(self) -> float:
        """Read noise, adu.

        Raises
        ------
        InsufficientInputs
            Nothing is known.
        """
        found = self.result()[0]
        if not found > 0:
            raise InsufficientInputs("the read noise is unknown (no reference pixels): build bias first")
        return found


def amplifier_images(
    raw: xr.Dataset,
    where: np.ndarray,
    amplifier: Amplifier,
    overscan: OverscanConfig,
    products: dict[str, xr.Dataset],
    noise: ReadNoise,
) -> np.ndarray:
    """Frames of one amplifier above overscan and bias, and linear.

    Parameters
    ----------
    raw : ``counts`` (exposure, amplifier, y, x), adu.
    where : (n,) positions of the exposures.
    products : ``bias`` and ``linearity`` of the detector; what is absent is not applied.
    noise : the read noise of these frames is added to it.

    Returns
    -------
    (n, y, x) float32, adu, over the data box.
    """
    counts = raw["counts"].isel(exposure=where).sel(amplifier=amplifier.name).values
    reference = reference_pixels(counts, amplifier)
    found = row_levels(reference, overscan)
    ny, nx = reference.shape[1:]
    noise.add(found.read_noise, ny * max(nx - 1 - overscan.skip, 0))
    images = counts[(slice(None), *amplifier.data.slices)] - found.level[:, :, None]
    if "bias" in products:
        plane = products["bias"]["image"].sel(amplifier=amplifier.name).values
        images -= plane[: images.shape[1], : images.shape[2]]
    if "linearity" in products:
        images = _linear(images, products["linearity"].sel(amplifier=amplifier.name))
    return images.astype(np.float32, copy=False)


def _linear(images: np.ndarray, linearity: xr.Dataset) -> np.ndarray:
    """Images, adu, plus the Akima spline through the nodes of their curve, which does not go on beyond the last."""
    level = linearity["linearity_level"].values
    if not np.isfinite(level).any():
        raise InsufficientInputs("no linearity curve for this amplifier: see the remarks of 'linearity'")
    return np.asarray(images + curve(level, linearity["linearity_correction"].values)(images))
