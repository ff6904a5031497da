"""Acceptance of master bias, master dark and defects (Lupton 2016, Secs. 2.1, 2.4, 2.7), after DMTN-101."""

from typing import Final

import numpy as np

from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS
from lsstcal_dask.verify.metric import OURS, Case, Measure, Metric
from lsstcal_dask.verify.pixels import chi2_sigma, neighbour_scatter, planes

__all__ = ["METRICS"]

_DMTN: Final = "DMTN-101"


def _level(case: Case) -> np.ndarray:
    """Mean of the master over the read noise; the bias is defined above the overscan, so it should be near zero."""
    means = [_mean(one.image) for one in planes(case, "bias")]
    return np.array(means) / case.values("bias", "read_noise")


def _mean(image: np.ndarray) -> float:
    good = image[np.isfinite(image)]
    return float(good.mean(dtype=np.float64)) if good.size else float("nan")


def _noise_of_nominal(case: Case) -> np.ndarray:
    """Read noise from the overscan over that of the camera's description, less one."""
    nominal = np.array([a.read_noise for a in case.detector.amplifiers])
    return case.values("bias", "read_noise") * case.gains() / nominal - 1


def _added(case: Case) -> np.ndarray:
    """Noise of a pixel with the master taken off over that without, less one: sqrt(1 + 1/N) - 1 of a mean of N."""
    found = []
    for pixels, noise in zip(planes(case, "bias"), case.values("bias", "read_noise"), strict=True):
        good = pixels.good
        variance = (pixels.variance + pixels.rows[:, None])[good]
        found.append(np.sqrt(1 + np.median(variance) / noise**2) - 1 if good.any() else np.nan)
    return np.array(found)


def _frames(case: Case) -> np.ndarray:
    """Chi2 of the levels of the frames that were combined, about their own mean, as sigma."""
    level, error = (case.values("bias", name) for name in ("level", "level_error"))
    used = np.asarray(case.products["bias"]["accepted"].values, bool)
    axis = case.products["bias"]["level"].dims.index("exposure")
    weight = np.where(used, error**-2.0, 0.0)
    level = np.where(used, level, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weight * level).sum(axis, keepdims=True) / weight.sum(axis, keepdims=True)
    chi2 = np.where(used, weight * (level - mean) ** 2, 0.0).sum(axis)
    return chi2_sigma(chi2, used.sum(axis) - 1)


def _masked(case: Case) -> np.ndarray:
    """Part of the pixels of an amplifier with any bit."""
    return np.array([_part(one.mask, one.mask != 0) for one in planes(case, "bias")])


def _part(mask: np.ndarray, flagged: np.ndarray) -> float:
    """Mean of ``flagged``; NaN where nothing is usable."""
    return float("nan") if bool((mask & MASK_BITS["NO_DATA"]).all()) else float(flagged.mean())


def _flagged(case: Case, bit: int) -> np.ndarray:
    """Part of the pixels of an amplifier that have a bit among the defects."""
    found = []
    for amplifier in case.detector.amplifiers:
        ny, nx = amplifier.data.shape
        mask = case.products["defects"]["mask"].sel(amplifier=amplifier.name).values[:ny, :nx]
        found.append(_part(mask, mask & bit > 0))
    return np.array(found)


def _rate(case: Case) -> np.ndarray:
    return np.array([_median(one.image) for one in planes(case, "dark")])


def _median(image: np.ndarray) -> float:
    good = image[np.isfinite(image)]
    return float(np.median(good)) if good.size else float("nan")


def _rate_sigma(case: Case) -> np.ndarray:
    """Median rate over its error; errors of rows count as common, so that it is not too large."""
    errors = []
    for pixels in planes(case, "dark"):
        good = pixels.good
        if not good.any():
            errors.append(np.nan)
            continue
        rows = pixels.rows[good.any(axis=1)]
        errors.append(np.sqrt(np.pi / 2 * np.median(pixels.variance[good]) / good.sum() + rows.mean()))
    return _rate(case) / np.array(errors)


def _dark_noise(case: Case) -> np.ndarray:
    return np.array([neighbour_scatter(one.image, one.variance) for one in planes(case, "dark")])


def _sizes(case: Case) -> np.ndarray:
    return np.array([np.prod(a.data.shape) for a in case.detector.amplifiers], float)


def _of_sensor(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean over the pixels of a sensor, the same for each of its amplifiers that has a value."""
    use = np.isfinite(values)
    whole = float((values[use] * sizes[use]).sum() / sizes[use].sum()) if use.any() else float("nan")
    return np.where(use, whole, np.nan)


def _change(key: str) -> Measure:
    """Change of the rate noted when the dark was made, over its median."""

    def measure(case: Case) -> np.ndarray:
        return case.noted("dark", key) / case.noted("dark", "median_rate")

    return measure


def _hits(case: Case) -> np.ndarray | None:
    """Of a sensor, for an amplifier of a small camera is not hit at all in a night."""
    found = _of_sensor(case.noted("dark", "hit_pixels"), _sizes(case))
    return found if np.isfinite(found).any() else None


def _bad(case: Case) -> np.ndarray:
    """Of a sensor, for that is what the requirement is made for."""
    return _of_sensor(_flagged(case, MASK_BITS["BAD"]), _sizes(case))


def _suspect(case: Case) -> np.ndarray:
    return _flagged(case, MASK_BITS["SUSPECT"])


def _columns(case: Case) -> np.ndarray:
    """Part of the columns of an amplifier in which half the pixels or more belong to a bad column."""
    found = []
    for amplifier in case.detector.amplifiers:
        ny, nx = amplifier.data.shape
        kinds = case.products["defects"]["defect_kind"].sel(amplifier=amplifier.name).values[:ny, :nx]
        found.append(float(np.mean((kinds & DEFECT_KINDS["COLUMN"] > 0).mean(axis=0) >= 0.5)))
    return np.array(found)


METRICS: Final = (
    Metric("bias", "level", _level, _DMTN, "mean of the master over the read noise", limits=(-1, 1)),
    Metric(
        "bias",
        "read noise over nominal",
        _noise_of_nominal,
        f"{_DMTN} (5 %); failing at 20 %: {OURS}, for the nominal one is that of a type of sensor",
        "read noise from the overscan against the camera's description, relative difference",
        limits=(-0.2, 0.2),
        aim=(-0.05, 0.05),
    ),
    Metric(
        "bias",
        "noise it adds",
        _added,
        f"{_DMTN}: a mean of 20 or more",
        "relative increase of the noise of a frame when the master is taken off",
        limits=(0, 0.025),
    ),
    Metric(
        "bias",
        "frames",
        _frames,
        OURS,
        "chi2 of the levels of the frames about their mean, as sigma",
        limits=(-10, 10),
        aim=(-5, 5),
        unit="sigma",
    ),
    Metric("bias", "masked", _masked, "OSS PixFrac", "part of the pixels with a mask", limits=(0, 0.01)),
    Metric(
        "dark",
        "rate",
        _rate,
        OURS,
        "median dark rate",
        limits=(-np.inf, 0.5),
        aim=(-np.inf, 0.1),
        unit="electron/s",
    ),
    Metric(
        "dark",
        "rate below zero",
        _rate_sigma,
        OURS,
        "median dark rate over its error",
        limits=(-3, np.inf),
        unit="sigma",
    ),
    Metric(
        "dark",
        "noise over model",
        _dark_noise,
        f"{OURS}; after {_DMTN}, whose test has one side; real differences of pixels add a little",
        "scatter of neighbouring pixels over what the variance says",
        limits=(0.8, 1.25),
        aim=(0.95, 1.1),
    ),
    Metric(
        "dark",
        "slope",
        _change("slope"),
        f"{OURS}; glow and noise do less, light that leaks in does more",
        "change of the rate from side to side of an amplifier, over its median",
        aim=(0, 0.5),
        sparse=True,
    ),
    Metric(
        "dark",
        "drift",
        _change("drift"),
        f"{OURS}; charge left of bright light decays from exposure to exposure",
        "change of the rate from the first exposure to the last, over its median",
        aim=(-0.5, 0.5),
        sparse=True,
    ),
    Metric(
        "dark",
        "pixels hit",
        _hits,
        OURS,
        "pixels of a sensor left out for cosmic rays, whose tracks are 1 a minute and cm2",
        aim=(1, 300),
        unit="1/(cm2 min)",
    ),
    Metric("defects", "bad, of a sensor", _bad, "OSS PixFrac", "part of the pixels that are BAD", limits=(0, 0.01)),
    Metric(
        "defects",
        "suspect",
        _suspect,
        OURS,
        "part of the pixels that are SUSPECT",
        aim=(0, 0.01),
    ),
    Metric("defects", "bad columns", _columns, OURS, "part of the columns", limits=(0, 0.25), aim=(0, 0.02)),
)
