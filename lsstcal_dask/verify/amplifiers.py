"""Acceptance of what amplifiers are: gain, photon transfer, linearity, wells, crosstalk (Lupton 2016, Sec. 2)."""

from typing import Final

import numpy as np

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.linearity import curve
from lsstcal_dask.verify.metric import OURS, Case, Measure, Metric
from lsstcal_dask.verify.pixels import chi2_sigma

__all__ = ["METRICS"]

_DMTN: Final = "DMTN-101"
_PLAUSIBLE: Final = (1.2, 2.0)  # electron/adu, outside which Rubin calls an amplifier dead or noisy
_PROBES: Final = 512  # levels at which a linearity curve is looked at
_MET: Final = "the aim is met by {} of the amplifiers of LSSTCam (electro-optical tests, Run 6, flats of high flux)"
_LATE: Final = f"failing: {OURS}, where the light read last is late by {{}}"


def _plausible(case: Case) -> bool:
    """Whether the detector is one for which Rubin's range of gains is meant."""
    low, high = _PLAUSIBLE
    return all(low < a.gain < high for a in case.detector.amplifiers)


def _gain(case: Case) -> np.ndarray | None:
    return case.values("gain", "gain") if _plausible(case) else None


def _gain_of_nominal(case: Case) -> np.ndarray | None:
    nominal = np.array([a.gain for a in case.detector.amplifiers])
    return None if _plausible(case) else case.values("gain", "gain") / nominal - 1


def _relative_error(case: Case) -> np.ndarray:
    return case.values("gain", "gain_error") / case.values("gain", "gain")


def _pull(case: Case, first: tuple[str, str], second: tuple[str, str]) -> np.ndarray | None:
    """Difference of two independent measurements over its error; None where one of them was not made at all."""
    (a, da), (b, db) = ((case.values(p, v), case.values(p, f"{v}_error")) for p, v in (first, second))
    pulls = (a - b) / np.hypot(da, db)
    return pulls if np.isfinite(pulls).any() else None


def _pair_against_fe55(case: Case) -> np.ndarray | None:
    return _pull(case, ("gain", "gain_pair"), ("gain", "gain_fe55"))


def _ratio(case: Case) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Gain of pairs over that of 55Fe, its error, and the weighted mean of the sensor; None without both."""
    pair, iron = case.values("gain", "gain_pair"), case.values("gain", "gain_fe55")
    ratio = pair / iron
    error = ratio * np.hypot(
        case.values("gain", "gain_pair_error") / pair, case.values("gain", "gain_fe55_error") / iron
    )
    use = np.isfinite(ratio) & np.isfinite(error)
    if not use.any():
        return None
    return ratio, error, float(np.average(ratio[use], weights=error[use] ** -2.0))


def _ratio_constant(case: Case) -> np.ndarray | None:
    """Departure of the ratio from the sensor's mean over its error, which the mean has a share in."""
    found = _ratio(case)
    if found is None:
        return None
    ratio, error, mean = found
    weight = error**-2.0
    rest = np.sqrt(np.maximum(error**2 - 1 / np.nansum(weight), 0))
    return np.where(rest > 0, (ratio - mean) / np.where(rest > 0, rest, 1), np.nan)


def _ratio_scale(case: Case) -> np.ndarray | None:
    found = _ratio(case)
    return None if found is None else np.where(np.isfinite(found[0]), found[2] - 1, np.nan)


def _noise_of(product: str, unit_gain: bool) -> Measure:
    """Read noise of a product against that of the bias, relative; in electrons where ``unit_gain`` is wanted."""

    def measure(case: Case) -> np.ndarray:
        own = case.values(product, "read_noise")
        scale = case.values(product, "gain") if unit_gain else 1.0
        return own / (case.values("bias", "read_noise") * scale) - 1

    return measure


def _continuity(case: Case) -> np.ndarray | None:
    """Gain over the geometric mean of the sensor: from boundaries less from `gain`, over the error."""
    gain, error = case.values("gain", "gain"), case.values("gain", "gain_error")
    relative = case.values("continuity", "gain_relative")
    use = np.isfinite(gain) & np.isfinite(relative)
    if not use.any():
        return None
    step = np.log(gain / relative)
    part = (error / gain) ** 2 + (case.values("continuity", "gain_relative_error") / relative) ** 2
    return np.where(use, (step.mean(where=use) - step) / np.sqrt(part), np.nan)


def _a00(case: Case) -> np.ndarray:
    return case.values("ptc", "a_matrix")[..., 0, 0]


def _ptc_chi2(case: Case) -> np.ndarray:
    return chi2_sigma(case.values("ptc", "ptc_chi2"), case.values("ptc", "ptc_dof"))


def _ptc_of_gain(case: Case) -> np.ndarray:
    return case.values("ptc", "gain") / case.values("gain", "gain") - 1


def _ptc_against_fe55(case: Case) -> np.ndarray | None:
    return _pull(case, ("ptc", "gain"), ("gain", "gain_fe55"))


def _value(product: str, variable: str) -> Measure:
    def measure(case: Case) -> np.ndarray:
        return case.values(product, variable)

    return measure


def _residual(case: Case) -> np.ndarray:
    """Root of what the squares are more than photons say, of the pixels of an amplifier; zero of what is less."""
    residual, pixels = case.noted("linearity", "residual"), [np.prod(a.data.shape) for a in case.detector.amplifiers]
    photons = case.noted("linearity", "inverse_signal") / case.gains() / pixels
    return np.sqrt(np.maximum(residual**2 - photons, 0.0))


def _curves(case: Case, number: str) -> np.ndarray:
    """Of each curve the slope d true / d measured farthest from 1, or the largest relative correction."""
    found = []
    levels, corrections = (case.values("linearity", f"linearity_{name}") for name in ("level", "correction"))
    for level, correction in zip(levels, corrections, strict=True):
        try:
            law = curve(level, correction)
        except CalibrationError:
            found.append(np.nan)
            continue
        at = np.linspace(0, law.level[-1], _PROBES)[1:-1]
        values = law.slope(at) if number == "slope" else law(at) / at
        found.append(float(values[np.argmax(np.abs(values))]) + (number == "slope"))
    return np.array(found)


def _slope(case: Case) -> np.ndarray:
    return _curves(case, "slope")


def _correction(case: Case) -> np.ndarray:
    return _curves(case, "correction")


def _ceiling(case: Case) -> np.ndarray:
    return case.values("linearity", "linearity_ceiling") * case.gains()


def _well_spread(case: Case) -> np.ndarray:
    """Full well over the median of its sensor, less one. It is the silicon's, so that it shows gains that are off."""
    wells = case.values("saturation", "well_bloom")
    return wells / np.nanmedian(wells) - 1 if np.isfinite(wells).any() else wells


def _matrix(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (target, source), without the amplifiers' own: sources of the camera, and of the sensor itself."""
    all_of_them = case.values("crosstalk", "crosstalk").copy()
    sources = [str(name) for name in case.products["crosstalk"]["source"].values]
    own = [sources.index(f"{case.detector.name}/{a.name}") for a in case.detector.amplifiers]
    all_of_them[np.arange(len(own)), own] = np.nan
    return all_of_them, all_of_them[:, own]


def _largest(case: Case) -> np.ndarray:
    values = np.abs(_matrix(case)[0])
    return np.array([row[np.isfinite(row)].max() if np.isfinite(row).any() else np.nan for row in values])


def _nulls(case: Case) -> np.ndarray:
    """Chi2 of coefficients measured with sources that were not there, as sigma."""
    count = case.noted("crosstalk", "nulls")
    return chi2_sigma(case.noted("crosstalk", "null_pulls") ** 2 * count, count)


def _unmeasured(case: Case) -> np.ndarray:
    """Part of the sources that are unmeasured, the amplifier's own left out."""
    values = _matrix(case)[0]
    return 1 - np.isfinite(values).sum(axis=1) / (values.shape[1] - 1)


def _unmeasured_own(case: Case) -> np.ndarray:
    values = _matrix(case)[1]
    return 1 - np.isfinite(values).sum(axis=1) / max(values.shape[1] - 1, 1)


def _asymmetry(case: Case) -> np.ndarray:
    """Sum over sources of |c[t, s] - c[s, t]| over that of |c[t, s]| + |c[s, t]|: 0 symmetric, 1 of one side only."""
    own = _matrix(case)[1]
    both = np.isfinite(own) & np.isfinite(own.T)
    top = np.abs(own - own.T).sum(axis=1, where=both)
    bottom = (np.abs(own) + np.abs(own.T)).sum(axis=1, where=both)
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


METRICS: Final = (
    Metric(
        "gain",
        "value",
        _gain,
        "Rubin's range of live amplifiers (Lupton 2016, Sec. 2.2; cp_pipe)",
        "gain in use",
        limits=_PLAUSIBLE,
        unit="electron/adu",
    ),
    Metric(
        "gain",
        "value over nominal",
        _gain_of_nominal,
        OURS,
        "gain in use against the camera's description, relative difference",
        limits=(-0.2, 0.2),
    ),
    Metric(
        "gain",
        "relative error",
        _relative_error,
        f"Lupton 2016, Sec. 2.2 (0.1 %); failing at 2 %: {OURS}",
        "standard error over value",
        limits=(0, 0.02),
        aim=(0, 1e-3),
    ),
    Metric(
        "gain",
        "flats against 55Fe",
        _pair_against_fe55,
        OURS,
        "difference of the two gains over its error",
        limits=(-8, 8),
        aim=(-5, 5),
        unit="sigma",
    ),
    Metric(
        "gain",
        "flats over 55Fe, constant",
        _ratio_constant,
        f"{OURS}; after Sec. 2.2: the ratio does not vary in a sensor",
        "ratio of the gains less the mean of the sensor, over its error",
        limits=(-8, 8),
        aim=(-5, 5),
        unit="sigma",
    ),
    Metric(
        "gain",
        "flats over 55Fe, scale",
        _ratio_scale,
        f"error of the pair energy of silicon, 1.1 % (eotest); failing at three times that: {OURS}",
        "mean ratio of the gains in a sensor, less one",
        limits=(-0.033, 0.033),
        aim=(-0.011, 0.011),
    ),
    Metric(
        "gain",
        "read noise over bias",
        _noise_of("gain", unit_gain=False),
        f"{_DMTN}: 5 %",
        "read noise of the frames of the gain against that of the bias, relative difference",
        limits=(-0.05, 0.05),
        needs=("bias",),
    ),
    Metric(
        "continuity",
        "against gain",
        _continuity,
        OURS,
        "relative gains from boundaries and from `gain`, difference over its error",
        limits=(-10, 10),
        aim=(-5, 5),
        unit="sigma",
        needs=("gain",),
    ),
    Metric(
        "ptc",
        "a00",
        _a00,
        f"{_DMTN} asks for a range; this one, for sensors of LSST, is {OURS}",
        "change of a pixel's area by its own charge",
        limits=(-5e-6, -0.5e-6),
        unit="1/electron",
    ),
    Metric(
        "ptc",
        "chi2",
        _ptc_chi2,
        OURS,
        "chi2 of the fit, as sigma",
        limits=(-10, 10),
        aim=(-5, 5),
        unit="sigma",
    ),
    Metric(
        "ptc",
        "gain over gain",
        _ptc_of_gain,
        f"{_DMTN}: 5 %; a warning at 1 %: {OURS}",
        "gain of the photon transfer against the gain in use, relative difference",
        limits=(-0.05, 0.05),
        aim=(-0.01, 0.01),
        needs=("gain",),
    ),
    Metric(
        "ptc",
        "gain against 55Fe",
        _ptc_against_fe55,
        OURS,
        "difference of the two gains over its error",
        limits=(-8, 8),
        aim=(-5, 5),
        unit="sigma",
        needs=("gain",),
    ),
    Metric(
        "ptc",
        "read noise over bias",
        _noise_of("ptc", unit_gain=True),
        f"{_DMTN}: 5 %",
        "read noise of the photon transfer against that of the bias, relative difference",
        limits=(-0.05, 0.05),
        needs=("bias",),
    ),
    Metric(
        "ptc",
        "turnoff",
        _value("ptc", "ptc_turnoff"),
        f"{OURS}; sensors of LSST have 103 to 133 ke (SITCOMTN-148)",
        "signal at which the variance of flats stops rising",
        limits=(8e4, np.inf),
        unit="electron",
        sparse=True,
    ),
    Metric(
        "linearity",
        "residual",
        _residual,
        f"rms of 1e-4 as published (SITCOMTN-148); failing at 1e-3: {OURS}",
        "rms of flats about the curve, relative, beyond the noise of photons",
        limits=(0, 1e-3),
        aim=(0, 1e-4),
    ),
    Metric(
        "linearity",
        "slope",
        _slope,
        f"{OURS}; the curve must rise",
        "slope of true against measured signal, where it is farthest from one",
        limits=(0.5, 1.5),
        aim=(0.9, 1.1),
    ),
    Metric(
        "linearity",
        "correction",
        _correction,
        OURS,
        "largest correction over the signal",
        limits=(-0.2, 0.2),
        aim=(-0.05, 0.05),
    ),
    Metric(
        "linearity",
        "ceiling",
        _ceiling,
        OURS,
        "signal above which the curve is unreliable",
        limits=(4e4, np.inf),
        aim=(8e4, 3e5),
        unit="electron",
    ),
    Metric(
        "saturation",
        "full well in a sensor",
        _well_spread,
        f"{OURS}; Lupton 2016, Sec. 2.5: consistent over a CCD",
        "charge that spills over the median of the sensor, less one",
        limits=(-0.1, 0.1),
    ),
    Metric(
        "saturation",
        "full well",
        _value("saturation", "well_bloom"),
        OURS,
        "lowest charge that spills to a neighbour",
        limits=(5e4, 4e5),
        aim=(8e4, 2.5e5),
        unit="electron",
    ),
    Metric(
        "deferred",
        "serial transfer",
        _value("deferred", "serial_cti"),
        f"{_MET.format('98.2 %')}; {_LATE.format('576 x 5e-5 = 0.03 pixels, 6 mas')}",
        "share of a packet that a serial transfer leaves behind",
        limits=(-5e-5, 5e-5),
        aim=(-5e-6, 5e-6),
    ),
    Metric(
        "deferred",
        "parallel transfer",
        _value("deferred", "parallel_cti"),
        f"{_MET.format('99.7 %')}; {_LATE.format('2048 x 3e-5 = 0.06 pixels, 12 mas')}",
        "share of a packet that a parallel transfer leaves behind",
        limits=(-3e-5, 3e-5),
        aim=(-3e-6, 3e-6),
    ),
    Metric(
        "deferred",
        "offset",
        _value("deferred", "offset_amplitude"),
        f"{_LATE.format('1e-2 over a decay of 3 pixels = 0.03 pixels, 6 mas')}; the aim, a tenth of that, too",
        "offset that a pixel leaves at the output, over its signal",
        limits=(-1e-2, 1e-2),
        aim=(-1e-3, 1e-3),
    ),
    Metric(
        "crosstalk",
        "largest",
        _largest,
        f"{OURS}; LSSTCam has 1e-4 between neighbours",
        "largest coefficient of a target, of either sign",
        limits=(0, 1e-2),
        aim=(0, 1e-3),
    ),
    Metric(
        "crosstalk",
        "absent sources",
        _nulls,
        f"{_DMTN}: nothing significant is left",
        "chi2 of coefficients of sources that were not there, as sigma",
        limits=(-10, 10),
        aim=(-5, 5),
        unit="sigma",
    ),
    Metric(
        "crosstalk",
        "unmeasured in the sensor",
        _unmeasured_own,
        OURS,
        "part of the sources of the same sensor",
        limits=(0, 0.5),
        aim=(0, 0),
    ),
    Metric(
        "crosstalk",
        "unmeasured in the camera",
        _unmeasured,
        OURS,
        "part of the sources of the camera",
        aim=(0, 0.5),
    ),
    Metric(
        "crosstalk",
        "asymmetry",
        _asymmetry,
        f"{OURS}: couplings of a board are alike both ways",
        "differences between the two ways, over the sum of both",
        aim=(0, 0.5),
        sparse=True,
    ),
)
