"""Acceptance of flat cubes, synthetic flats and dust (Lupton 2016, ¶8, ¶9, Secs. 2.8, 3.6); of fringes by `fringes`.

There is a flat for each filter and each kind of light, and a cube by any name: metrics are made for those that are
there, by `metrics_of`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.fringes import OF_LAYERS, OF_MAPS
from lsstcal_dask.verify.metric import OURS, Absent, Case, Metric, Of
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
    return tuple(_named(metric, measure, name) for metric, measure in _KINDS.get(kind, ()))


def _named(metric: Metric, measure: Of, name: str) -> Metric:
    return replace(metric, product=name, measure=lambda case: measure(case, name))


def _per_slice(case: Case, name: str, variable: str) -> np.ndarray:
    """(amplifier, wavelength) of the table of a cube, NaN where there is no slice."""
    return np.where(_present(case, name), case.values(name, variable), np.nan)


def _present(case: Case, name: str) -> np.ndarray:
    return np.asarray(case.products[name]["present"].values, bool)


def _rows(values: np.ndarray, of: Callable[[np.ndarray], float]) -> np.ndarray:
    """A number of the finite values of each row; NaN of none."""
    known = [row[np.isfinite(row)] for row in values]
    return np.array([of(row) if row.size else np.nan for row in known])


def _missing(case: Case, name: str) -> np.ndarray:
    return 1 - _present(case, name).mean(axis=1)


def _signal_to_noise(case: Case, name: str) -> np.ndarray:
    return _rows(_per_slice(case, name, "signal_to_noise"), np.median)


def _repeats(case: Case, name: str) -> np.ndarray:
    found = _per_slice(case, name, "chi2")
    if not np.isfinite(found).any():
        raise Absent(f"{name} has single flats only: none repeats another")
    return _rows(found, np.median)


def _worst_repeats(case: Case, name: str) -> np.ndarray:
    found = _per_slice(case, name, "chi2")
    if not np.isfinite(found).any():
        raise Absent(f"{name} has single flats only: none repeats another")
    return _rows(found, lambda row: float(row[np.argmax(np.abs(np.log(row)))]))


def _photodiode(case: Case, name: str) -> np.ndarray:
    found = _per_slice(case, name, "photodiode_scatter")
    if not np.isfinite(found).any():
        raise Absent(f"{name} has single flats only: none repeats another")
    return _rows(found, lambda row: float(np.sqrt(np.mean(row**2))))


def _wavelength(case: Case, name: str) -> np.ndarray:
    return _rows(_per_slice(case, name, "wavelength_offset"), lambda row: float(row[np.argmax(np.abs(row))]))


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
    return np.array([float(one[np.argmax(np.abs(one))]) if one.size else np.nan for one in found])


def _metric(name: str, source: str, prose: str, **limits: object) -> Metric:
    return Metric("", name, lambda case: None, source, prose, **limits)  # type: ignore[arg-type]


_OF_CUBE: Final[tuple[tuple[Metric, Of], ...]] = (
    (
        _metric(
            "slices missing",
            f"{_SCIENCE}: of half the CCDs allowed, told; {OURS}",
            "part of the wavelengths of the cube that an amplifier lacks",
            limits=(0, 0.5),
            aim=(0, 0),
        ),
        _missing,
    ),
    (
        _metric(
            "signal to noise",
            f"{_SCIENCE}: ten flats make 1000 nominally; beyond 3000 no well holds so much: {OURS}",
            "median over the slices of value over error of a pixel",
            limits=(100, 10_000),
            aim=(1000, 3000),
        ),
        _signal_to_noise,
    ),
    (
        _metric(
            "chi2 of repeats",
            f"{OURS}: errors of 5 % are seen by 400 pixels",
            "median over the slices of chi2 per degree of freedom of repeats about their mean, levels apart",
            limits=(0.5, 2),
            aim=(0.9, 1.1),
        ),
        _repeats,
    ),
    (
        _metric(
            "worst chi2 of repeats",
            OURS,
            "that of the slice where it is farthest from 1",
            limits=(0.2, 5),
            aim=(0.7, 1.4),
        ),
        _worst_repeats,
    ),
    (
        _metric(
            "photodiode scatter",
            f"{OURS}: 3 % is where a flat is left out, [cube] disagree; none at all is a value that was not read anew",
            "relative rms of level over photodiode among repeats",
            limits=(0, 0.03),
            aim=(1e-6, 1e-3),
        ),
        _photodiode,
    ),
    (
        _metric(
            "wavelength off nominal",
            f"{_SCIENCE}: 0.3 nm is refused; 0.2 nm: {OURS}",
            "measured centroid less the wavelength that was asked for, where it is farthest",
            limits=(-0.3, 0.3),
            aim=(-0.2, 0.2),
            unit="nm",
        ),
        _wavelength,
    ),
    (
        _metric(
            "masked",
            f"OSS PixFrac (1 %); failing at 10 %: {OURS}, for vignetted corners count",
            "part of the pixels that are bad, or nothing, at all wavelengths",
            limits=(0, 0.1),
            aim=(0, 0.01),
        ),
        _cube_masked,
    ),
)

_OF_FLAT: Final[tuple[tuple[Metric, Of], ...]] = (
    (
        _metric(
            "mean",
            f"{_SCIENCE}: 1 by definition; CCDs that are missing change it: {OURS}",
            "mean of the good pixels of the focal plane",
            limits=(0.9, 1.1),
            aim=(0.99, 1.01),
        ),
        _mean,
    ),
    (
        _metric(
            "masked",
            f"{OURS}: edges and pixels that a hit in one slice interpolates count",
            "part of the pixels with a mask",
            limits=(0, 0.5),
            aim=(0, 0.2),
        ),
        _image_masked,
    ),
    (
        _metric(
            "unusable",
            f"OSS PixFrac (1 %); failing at 10 %: {OURS}, for vignetted corners count",
            "part of the pixels that are bad or of which nothing is known",
            limits=(0, 0.1),
            aim=(0, 0.01),
        ),
        _unusable,
    ),
    (
        _metric(
            "noise",
            f"{_SCIENCE}: 2e-4 of flats through a filter of some hundred slices; more of few: {OURS}",
            "median error of a pixel over its value",
            limits=(1e-6, 0.02),
            aim=(1e-5, 2e-3),
        ),
        _noise,
    ),
    (
        _metric(
            "scale error",
            f"{OURS}: tables of national laboratories are good to 0.1-0.3 %",
            "relative error of the scale of the flat before its mean was brought to 1",
            limits=(0, 0.1),
            aim=(0, 0.01),
            sparse=True,
        ),
        _scale_error,
    ),
    (
        _metric(
            "compression error",
            "SCIENCE 2.8.5: 1e-4 without noise; noise that maps leave out counts too, as 1e-3: ours",
            "largest difference to the flat of the slices, proved, of one made of a compressed cube",
            limits=(0, 0.05),
            aim=(0, 1e-2),
            sparse=True,
        ),
        _noted_of("compression_error"),
    ),
)

_OF_SKY: Final[tuple[tuple[Metric, Of], ...]] = (
    (
        _metric(
            "chi2 of the sky's spectrum",
            f"{OURS}: the model of the air's lines is not perfect",
            "chi2 per degree of freedom of the worst spectrum that the sky of the visit rests on",
            limits=(0.2, 10),
            aim=(0.7, 1.5),
        ),
        _attribute_of("sky_chi2"),
    ),
    (
        _metric(
            "age of the sky's spectrum",
            "Lupton Sec. 3.6: the sky of this visit; 20 min: ours",
            "time from the visit to the nearest spectrum of the sky",
            limits=(0, 720),
            aim=(0, 20),
            unit="min",
        ),
        _attribute_of("sky_age_min"),
    ),
)

_OF_DUST: Final[tuple[tuple[Metric, Of], ...]] = (
    (
        _metric(
            "dusty",
            f"{OURS}: clean the window when a twentieth is dusty",
            f"part of the pixels whose light dust changes by more than {_DUSTY:g}",
            limits=(0, 0.5),
            aim=(0, 0.05),
        ),
        _dusty,
    ),
    (
        _metric(
            "deepest dust",
            f"{_SCIENCE}: pieces of 0.5 % are usual; {OURS}",
            "largest change of the light by dust",
            limits=(-0.5, 0.1),
            aim=(-0.05, 0.01),
        ),
        _deepest,
    ),
    (
        _metric(
            "filter drift",
            f"{_SCIENCE}: 0.5 nm is to be found",
            "shift of the edges of the filter since its curve, or the flat it is compared with, was measured",
            limits=(-2, 2),
            aim=(-0.5, 0.5),
            unit="nm",
            sparse=True,
        ),
        _attribute_of("drift_nm"),
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
