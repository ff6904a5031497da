"""Acceptance of flat cubes, synthetic flats and dust (Lupton 2016, ¶8, ¶9, Secs. 2.8, 3.6); of fringes by `fringes`.

There is a flat for each filter and each kind of light, and a cube by any name: metrics are made for those that are
there, by `metrics_of`.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.fringes import OF_LAYERS, OF_MAPS
from lsstcal_dask.verify.metric import OURS, Absent, Case, Metric, Of, of_any, rowwise
from lsstcal_dask.verify.pixels import planes

__all__ = ["CUBE", "metrics_of"]

CUBE: Final = "cube"
"""Kind of the name of a cube among those of products: ``cube flats``."""

_SCIENCE: Final = "Lupton Sec. 2.8"
_UNUSABLE: Final = MASK_BITS["NO_DATA"] | MASK_BITS["BAD"]
_DUSTY: Final = 1e-3  # change of the light that counts as dust


def metrics_of(name: str) -> tuple[Metric, ...]:
    """Metrics of a product by the kind that its name begins with, as sky_flat-r, or ``cube flats``; empty of others."""
    kind = CUBE if name.startswith(f"{CUBE} ") else name.partition("-")[0]
    return tuple(make(name) for make in _KINDS.get(kind, ()))


def _per_slice(case: Case, name: str, variable: str) -> np.ndarray:
    """(amplifier, wavelength) of the table of a cube, NaN where there is no slice."""
    return np.where(_present(case, name), case.values(name, variable), np.nan)


def _present(case: Case, name: str) -> np.ndarray:
    return np.asarray(case.products[name]["present"].values, bool)


def _missing(case: Case, name: str) -> np.ndarray:
    return 1 - _present(case, name).mean(axis=1)


def _signal_to_noise(case: Case, name: str) -> np.ndarray:
    return rowwise(_per_slice(case, name, "signal_to_noise"), np.median)


def _of_repeats(variable: str, of: Callable[[np.ndarray], float]) -> Of:
    """A number of what repeats tell of the slices."""

    def measure(case: Case, name: str) -> np.ndarray:
        found = _per_slice(case, name, variable)
        if not np.isfinite(found).any():
            raise Absent(f"{name} has single flats only: none repeats another")
        return rowwise(found, of)

    return measure


def _farthest(values: np.ndarray, scale: Callable[[np.ndarray], np.ndarray] = np.abs) -> float:
    """The value that is largest on a scale."""
    return float(values[np.argmax(scale(values))])


def _wavelength(case: Case, name: str) -> np.ndarray:
    return rowwise(_per_slice(case, name, "wavelength_offset"), _farthest)


def _cube_masked(case: Case, name: str) -> np.ndarray:
    return case.values(name, "masked")


def _mean(case: Case, name: str) -> np.ndarray:
    return case.noted(name, "focal_plane_mean")


def _image_masked(case: Case, name: str) -> np.ndarray:
    return np.array([float((one.mask != 0).mean()) for one in planes(case, name)])


def _unusable(case: Case, name: str) -> np.ndarray:
    found = [(one.mask & _UNUSABLE != 0) | ((one.mask == 0) & np.isnan(one.image)) for one in planes(case, name)]
    return np.array([float(one.mean()) for one in found])


def _noise(case: Case, name: str) -> np.ndarray:
    if "variance" not in case.products[name]:
        raise Absent(f"{name} was made without variance")
    found = []
    for one in planes(case, name):
        good = one.good & (one.image > 0)
        found.append(float(np.median(np.sqrt(one.variance[good]) / one.image[good])) if good.any() else np.nan)
    return np.array(found)


def _attribute(case: Case, name: str, key: str) -> float:
    """Number that a product has of the whole focal plane."""
    value = case.products[name].attrs.get(key)
    if value is None or not np.isfinite(value):
        raise Absent(f"{name} has no record of {key}")
    return float(value)


def _everywhere(case: Case, value: float) -> np.ndarray:
    return np.full(len(case.detector.amplifiers), value)


def _scale_error(case: Case, name: str) -> np.ndarray:
    return _everywhere(case, _attribute(case, name, "scale_error") / _attribute(case, name, "scale"))


def _attribute_of(key: str) -> Of:
    return lambda case, name: _everywhere(case, _attribute(case, name, key))


def _noted_of(key: str) -> Of:
    return lambda case, name: case.noted(name, key)


def _factors(case: Case, name: str) -> list[np.ndarray]:
    images = case.products[name]["image"]
    return [images.sel(amplifier=a.name).values[tuple(map(slice, a.data.shape))] for a in case.detector.amplifiers]


def _dusty(case: Case, name: str) -> np.ndarray:
    found = [one[np.isfinite(one)] for one in _factors(case, name)]
    return np.array([float((np.abs(one - 1) > _DUSTY).mean()) if one.size else np.nan for one in found])


def _deepest(case: Case, name: str) -> np.ndarray:
    found = [one[np.isfinite(one)] - 1 for one in _factors(case, name)]
    return np.array([_farthest(one) if one.size else np.nan for one in found])


_OF_CUBE: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "slices missing",
        _missing,
        f"{_SCIENCE}: of half the CCDs allowed, told; {OURS}",
        "part of the wavelengths of the cube that an amplifier lacks",
        limits=(0, 0.5),
        aim=(0, 0),
    ),
    of_any(
        "signal to noise",
        _signal_to_noise,
        f"{_SCIENCE}: ten flats make 1000 nominally; beyond 3000 no well holds so much: {OURS}",
        "median over the slices of value over error of a pixel",
        limits=(100, 10_000),
        aim=(1000, 3000),
    ),
    of_any(
        "chi2 of repeats",
        _of_repeats("chi2", np.median),
        f"{OURS}: errors of 5 % are seen by 400 pixels",
        "median over the slices of chi2 per degree of freedom of repeats about their mean, levels apart",
        limits=(0.5, 2),
        aim=(0.9, 1.1),
    ),
    of_any(
        "worst chi2 of repeats",
        _of_repeats("chi2", lambda row: _farthest(row, lambda chi2: np.abs(np.log(chi2)))),
        OURS,
        "that of the slice where it is farthest from 1",
        limits=(0.2, 5),
        aim=(0.7, 1.4),
    ),
    of_any(
        "photodiode scatter",
        _of_repeats("photodiode_scatter", lambda row: float(np.sqrt(np.mean(row**2)))),
        f"{OURS}: 3 % is where a flat is left out, [cube] disagree; none at all is a value that was not read anew",
        "relative rms of level over photodiode among repeats",
        limits=(0, 0.03),
        aim=(1e-6, 1e-3),
    ),
    of_any(
        "wavelength off nominal",
        _wavelength,
        f"{_SCIENCE}: 0.3 nm is refused; 0.2 nm: {OURS}",
        "measured centroid less the wavelength that was asked for, where it is farthest",
        limits=(-0.3, 0.3),
        aim=(-0.2, 0.2),
        unit="nm",
    ),
    of_any(
        "masked",
        _cube_masked,
        f"OSS PixFrac (1 %); failing at 10 %: {OURS}, for vignetted corners count",
        "part of the pixels that are bad, or nothing, at all wavelengths",
        limits=(0, 0.1),
        aim=(0, 0.01),
    ),
)

_OF_FLAT: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "mean",
        _mean,
        f"{_SCIENCE}: 1 by definition; CCDs that are missing change it: {OURS}",
        "mean of the good pixels of the focal plane",
        limits=(0.9, 1.1),
        aim=(0.99, 1.01),
    ),
    of_any(
        "masked",
        _image_masked,
        f"{OURS}: edges and pixels that a hit in one slice interpolates count",
        "part of the pixels with a mask",
        limits=(0, 0.5),
        aim=(0, 0.2),
    ),
    of_any(
        "unusable",
        _unusable,
        f"OSS PixFrac (1 %); failing at 10 %: {OURS}, for vignetted corners count",
        "part of the pixels that are bad or of which nothing is known",
        limits=(0, 0.1),
        aim=(0, 0.01),
    ),
    of_any(
        "noise",
        _noise,
        f"{_SCIENCE}: 2e-4 of flats through a filter of some hundred slices; more of few: {OURS}",
        "median error of a pixel over its value",
        limits=(1e-6, 0.02),
        aim=(1e-5, 2e-3),
    ),
    of_any(
        "scale error",
        _scale_error,
        f"{OURS}: tables of national laboratories are good to 0.1-0.3 %",
        "relative error of the scale of the flat before its mean was brought to 1",
        limits=(0, 0.1),
        aim=(0, 0.01),
        sparse=True,
    ),
    of_any(
        "compression error",
        _noted_of("compression_error"),
        "SCIENCE 2.8.5: 1e-4 without noise; noise that maps leave out counts too, as 1e-3: ours",
        "largest difference to the flat of the slices, proved, of one made of a compressed cube",
        limits=(0, 0.05),
        aim=(0, 1e-2),
        sparse=True,
    ),
)

_OF_SKY: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "chi2 of the sky's spectrum",
        _attribute_of("sky_chi2"),
        f"{OURS}: the model of the air's lines is not perfect",
        "chi2 per degree of freedom of the worst spectrum that the sky of the visit rests on",
        limits=(0.2, 10),
        aim=(0.7, 1.5),
    ),
    of_any(
        "age of the sky's spectrum",
        _attribute_of("sky_age_min"),
        "Lupton Sec. 3.6: the sky of this visit; 20 min: ours",
        "time from the visit to the nearest spectrum of the sky",
        limits=(0, 720),
        aim=(0, 20),
        unit="min",
    ),
)

_OF_DUST: Final[tuple[Callable[[str], Metric], ...]] = (
    of_any(
        "dusty",
        _dusty,
        f"{OURS}: clean the window when a twentieth is dusty",
        f"part of the pixels whose light dust changes by more than {_DUSTY:g}",
        limits=(0, 0.5),
        aim=(0, 0.05),
    ),
    of_any(
        "deepest dust",
        _deepest,
        f"{_SCIENCE}: pieces of 0.5 % are usual; {OURS}",
        "largest change of the light by dust",
        limits=(-0.5, 0.1),
        aim=(-0.05, 0.01),
    ),
    of_any(
        "filter drift",
        _attribute_of("drift_nm"),
        f"{_SCIENCE}: 0.5 nm is to be found",
        "shift of the edges of the filter since its curve, or the flat it is compared with, was measured",
        limits=(-2, 2),
        aim=(-0.5, 0.5),
        unit="nm",
        sparse=True,
    ),
)

_KINDS: Final = {
    CUBE: _OF_CUBE,
    "sky_flat": (*_OF_FLAT, *_OF_SKY),
    "photometric_flat": _OF_FLAT,
    "contamination": _OF_DUST,
    "fringes": OF_LAYERS,
    "fringe_frame": OF_MAPS,
    "fringe_modes": OF_MAPS,
}
