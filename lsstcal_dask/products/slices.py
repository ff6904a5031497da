"""Which monochromatic flats make the slices of a cube, and the mean response of the focal plane (¶9, Sec. 2.8).

Exposures that ask for the same wavelength in one night are repeats; of a wavelength taken in several nights the last
one counts that has all the CCDs of those before. Wavelengths are those that a spectrograph measured, not those that
were asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import xarray as xr
from scipy.special import stdtr

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.physics.units import vacuum_to_air
from lsstcal_dask.products.monochromatic import MonochromaticConfig
from lsstcal_dask.products.photodiode import Photodiode, useless_charges
from lsstcal_dask.variables import NO_FILTER, NOTE, nights

__all__ = ["Group", "Line", "air_remarks", "group_flats", "jumps", "mean_response"]

_SLIP: Final = 1.0  # nm: what is further off is another mistake
_CHANCE: Final = 1e-4


@dataclass(frozen=True)
class Line:
    """What a spectrograph measured of the light of an exposure."""

    wavelength: float  # nm, vacuum, centroid
    error: float  # nm
    bandwidth: float  # nm, full width at half maximum
    silent: bool = False  # whether its table does not say if wavelengths are those in air or in vacuum


@dataclass(frozen=True)
class Group:
    """Exposures that make one slice."""

    nominal: float  # nm, asked for
    exposures: list[str]
    photons: list[float]  # on the photodiode
    wavelength: float  # nm, mean of the measured ones, weighted by photons
    wavelength_error: float  # nm; NaN where nothing was measured
    bandwidth: float  # nm
    time: str  # ISO, UTC
    photon_error: float  # relative, common to all pixels: that of all wavelengths and that of this one together
    compared: list[str] = field(default_factory=list)  # flats nearby, with which a single exposure is compared
    compared_photons: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    common_error: float = 0.0  # relative, of the photodiode's responsivity: one number with that of other wavelengths
    single_error: float = 0.0  # relative, of these exposures alone


def group_flats(
    raw: xr.Dataset, lines: Mapping[str, Line], diode: Photodiode, config: MonochromaticConfig
) -> tuple[list[Group], dict[str, str]]:
    """Slices to be made, by wavelength, and why exposures were left out, by name.

    Parameters
    ----------
    raw : header table of exposures: exposure_type, wavelength, filter, photodiode, exposure_time, time; and, where
        CCDs may be missing, ``present`` (exposure, detector).
    lines : what was measured, by exposure; the wavelength asked for counts where nothing was.

    Raises
    ------
    InsufficientInputs
        There are no monochromatic flats, or none that can be used.
    """
    asked = np.asarray(raw["wavelength"].values, float)
    flats = np.flatnonzero((raw["exposure_type"].values == "flat") & np.isfinite(asked))
    raw, asked = raw.isel(exposure=flats), asked[flats]
    names = [str(name) for name in raw["exposure"].values]
    if not names:
        raise InsufficientInputs("cube: there are no flats with a wavelength: ingest monochromatic flats (¶9)")
    dark = diode.dark_current * np.asarray(raw["exposure_time"].values, float)
    reasons = useless_charges(names, np.asarray(raw["photodiode"].values, float), dark)
    for name, label in zip(names, raw["filter"].values, strict=True):
        if str(label).lower() not in NO_FILTER:
            reasons[name] = f"filter {label} is in the beam"
    lines, remarks = _with_numbers(lines, names, config)
    for name, nm in zip(names, asked, strict=True):
        away = lines[name].wavelength - nm if name in lines else 0.0
        if abs(away) > config.mismatch_nm:
            told = f"its measured wavelength, {lines[name].wavelength:.2f} nm, is {away:+.2f} nm off {nm:g} nm"
            (reasons if config.mismatch == "refuse" else remarks)[name] = told
        if name not in reasons and (told := _unknown(nm + away, diode)):
            reasons[name] = told
    use = np.array([i for i, name in enumerate(names) if name not in reasons], int)
    if not use.size:
        name, why = next(iter(reasons.items()))
        why = "; ".join([why, *air_remarks(raw, lines)])
        raise InsufficientInputs(f"cube: none of {len(names)} monochromatic flats can be used: exposure {name}: {why}")
    table = _Table(raw.isel(exposure=use), lines, diode, config, remarks)
    chosen = table.newest()
    reasons |= table.partial(chosen)
    return _with_neighbours([table.group(own) for own in chosen], config), reasons


def air_remarks(raw: xr.Dataset, lines: Mapping[str, Line]) -> list[str]:
    """A remark if wavelengths that pass as those in vacuum look like those in air; else none.

    Their mean offset from those asked for is then nearer to that of air than to none, by more than chance would have
    it: less than one in 10,000 by Student's t. Tables that say which they are, are believed.

    Parameters
    ----------
    raw : header table of exposures: exposure_type, wavelength.
    """
    flat = raw["exposure_type"].values == "flat"
    given = zip(raw["exposure"].values[flat], np.asarray(raw["wavelength"].values, float)[flat], strict=True)
    pairs = [(nm, lines[str(name)].wavelength) for name, nm in given if str(name) in lines and lines[str(name)].silent]
    asked, measured = np.array([pair for pair in pairs if abs(pair[1] - pair[0]) < _SLIP]).reshape(-1, 2).T
    if len(asked) < 3 or not 185 < asked.min() < asked.max() < 3000:  # nm, where air is known
        return []
    air = float(np.mean(vacuum_to_air(asked) - asked))
    away = float(np.mean(measured - asked))
    error = max(float(np.std(measured - asked, ddof=1)) / np.sqrt(len(asked)), np.finfo(float).tiny)
    if not 0.5 < away / air < 1.5 or stdtr(len(asked) - 1, -abs(away) / error) > _CHANCE:
        return []
    return [
        f"the measured wavelengths of {len(asked)} flats are {away:+.2f} nm off those asked for in the mean, as those "
        f"in air would be ({air:+.2f} nm): put 'medium: air' into the meta of inputs/wavelengths*.ecsv, or "
        f"'medium: vacuum' if they are right"
    ]


def _unknown(nm: float, diode: Photodiode) -> str:
    """Why the photons of a wavelength cannot be told, or nothing."""
    low, high = diode.range
    if low <= nm <= high:
        return ""
    units = {"Angstrom": 0.1, "um": 1e3, "m": 1e9}
    unit = next((unit for unit, factor in units.items() if low <= nm * factor <= high), "")
    remedy = f"is it in {unit}? Correct the header" if unit else "correct the header"
    return (
        f"its wavelength, {nm:g} nm, is beyond {low:g} to {high:g} nm of the photodiode's responsivity: {remedy}, or "
        f"give a longer table inputs/photodiode.ecsv"
    )


def _with_numbers(
    lines: Mapping[str, Line], names: Sequence[str], config: MonochromaticConfig
) -> tuple[dict[str, Line], dict[str, str]]:
    """Lines that have a wavelength and a width, and what is said of the others, by exposure."""
    found, remarks = {}, {}
    for name in (name for name in names if name in lines):
        line = lines[name]
        if not np.isfinite(line.wavelength):
            remarks[name] = "the spectrograph gives no number for its wavelength: that asked for is used"
            continue
        if not line.bandwidth > 0:
            remarks[name] = (
                f"the spectrograph gives {line.bandwidth:g} nm for its bandwidth: {config.bandwidth:g} is used"
            )
            line = replace(line, bandwidth=config.bandwidth)
        found[name] = line
    return found, remarks


class _Table:
    """Usable flats, and the groups they make."""

    def __init__(
        self,
        raw: xr.Dataset,
        lines: Mapping[str, Line],
        diode: Photodiode,
        config: MonochromaticConfig,
        remarks: Mapping[str, str],
    ) -> None:
        self.names = [str(name) for name in raw["exposure"].values]
        self.config, self.remarks, self.time, self.night = config, remarks, raw["time"].values, nights(raw)
        self.present = raw["present"].values if "present" in raw else np.ones((len(self.names), 1), bool)
        self.asked = np.asarray(raw["wavelength"].values, float)
        self.measured = np.array([name in lines for name in self.names])
        found = [lines.get(n, Line(w, np.nan, config.bandwidth)) for n, w in zip(self.names, self.asked, strict=True)]
        self.wavelength, self.error, self.bandwidth = np.array([[x.wavelength, x.error, x.bandwidth] for x in found]).T
        off = np.abs(self.wavelength - self.asked) > config.mismatch_nm
        self.nominal = np.where(off, self.wavelength, self.asked)  # a line elsewhere is no repeat
        self.photons = diode.photons(raw["photodiode"].values, raw["exposure_time"].values, self.wavelength)
        self.diode_error = diode.relative_error(self.wavelength)

    def newest(self) -> list[np.ndarray]:
        """Places of the exposures of each wavelength in the last night that has all CCDs of those before."""
        order = np.argsort(self.nominal, kind="stable")
        parts = np.split(order, 1 + np.flatnonzero(np.diff(self.nominal[order]) > self.config.repeat_nm))
        return [np.sort(own[self.night[own] == self._night(own)]) for own in parts]

    def _night(self, own: np.ndarray) -> Any:
        """The night that counts."""
        found, there = None, np.zeros(self.present.shape[1], bool)
        for night in np.unique(self.night[own]):
            here = self.present[own[self.night[own] == night]].any(axis=0)
            if found is None or not np.any(there & ~here):
                found, there = night, here
        return found

    def partial(self, chosen: Sequence[np.ndarray]) -> dict[str, str]:
        """Exposures that are later than those chosen of their wavelength, and why they do not count, by name."""
        out = {}
        for own in chosen:
            same = np.abs(self.nominal - self.nominal[own].mean()) <= self.config.repeat_nm
            for i in np.flatnonzero(same & (self.night > self.night[own[0]])):
                out[self.names[i]] = (
                    f"its night lacks CCDs of exposure {self.names[own[0]]} of an earlier one, which stays: take all"
                )
        return out

    def group(self, own: np.ndarray) -> Group:
        """The slice that some exposures make."""
        photons = self.photons[own]
        weight = photons / photons.sum()
        error = float(np.sqrt(np.sum((weight * self.error[own]) ** 2)))
        common = float(weight @ self.diode_error[own])
        single = float(self.config.photodiode_error * np.linalg.norm(weight))
        remarks = [
            f"exposure {self.names[i]}: {self.remarks[self.names[i]]}" for i in own if self.names[i] in self.remarks
        ]
        if not self.measured[own].all():
            remarks.append(f"{NOTE}its wavelength was not measured: that asked for is used")
        return Group(
            nominal=float(self.nominal[own].mean()),
            exposures=[self.names[i] for i in own],
            photons=photons.tolist(),
            wavelength=float(weight @ self.wavelength[own]),
            wavelength_error=error,
            bandwidth=float(weight @ self.bandwidth[own]),
            time=str(np.datetime_as_string(self.time[own].min(), unit="us")),
            photon_error=float(np.hypot(common, single)),
            remarks=remarks,
            common_error=common,
            single_error=single,
        )


def _with_neighbours(groups: Sequence[Group], config: MonochromaticConfig) -> list[Group]:
    """Single exposures with the nearest flat on either side, of the same night."""
    found = sorted(groups, key=lambda one: (one.wavelength, one.exposures))
    out = []
    for k, one in enumerate(found):
        near = [n for n in (k - 1, k + 1) if 0 <= n < len(found) and _near(one, found[n], config)]
        near = near if len(one.exposures) == 1 else []
        compared = [found[n].exposures[0] for n in near]
        photons = [found[n].photons[0] for n in near]
        out.append(Group(**{**vars(one), "compared": compared, "compared_photons": photons}))
    return out


def _near(one: Group, other: Group, config: MonochromaticConfig) -> bool:
    day = [(np.datetime64(g.time) - np.timedelta64(12, "h")).astype("datetime64[D]") for g in (one, other)]
    return bool(abs(one.wavelength - other.wavelength) <= config.compare_nm and day[0] == day[1])


def mean_response(total: np.ndarray, pixels: np.ndarray, wavelength: Any) -> np.ndarray:
    """Mean r (wavelength,) of the focal plane, as if every amplifier were there at every wavelength.

    One that is missing is taken to respond, relative to those that are there, as it does at the nearest wavelength at
    which it and most of these are.

    Parameters
    ----------
    total, pixels : (amplifier, wavelength) of all CCDs, sum of the values of good pixels, and their number; 0 without.
    wavelength : (wavelength,) nm.
    """
    there = pixels > 0
    mean = np.divide(total, pixels, out=np.full(total.shape, np.nan), where=there)
    weight = pixels.max(axis=1, initial=0).astype(float)
    filled, at = mean.copy(), np.asarray(wavelength, float)
    for i, k in zip(*np.nonzero(~there & (weight > 0)[:, None] & there.any(axis=0)), strict=True):
        common = (there & there[:, [k]]).sum(axis=0)
        known = np.flatnonzero(there[i] & (common >= max(common[there[i]].max(), 1)))
        if known.size:
            near = known[np.argmin(np.abs(at[known] - at[k]))]
            both = there[:, k] & there[:, near]
            scale = np.sum(weight[both] * mean[both, k]) / np.sum(weight[both] * mean[both, near])
            filled[i, k] = mean[i, near] * scale
    known = np.isfinite(filled)
    share = (known * weight[:, None]).sum(axis=0)
    sums = np.where(known, filled, 0.0).T @ weight
    return np.divide(sums, share, out=np.full(len(at), np.nan), where=share > 0)


def jumps(response: np.ndarray, wavelength: Any, least: float) -> dict[int, float]:
    """Wavelengths (ascending) at which r is not as those on either side say, and by how much, relative.

    The logarithm of r at the middle of three successive wavelengths is compared with the line through the others; the
    limit is ``least``, or 8 times the typical difference among the others, and grows with the square of a distance
    that is wider than typical, for r is curved. Of three that do not fit that one is odd without which the others fit
    best.
    """
    at, r = np.asarray(wavelength, float), np.asarray(response, float)
    left = [int(i) for i in np.flatnonzero(np.isfinite(r) & (r > 0))]
    found: dict[int, float] = {}
    while len(left) > 3:
        away = _bends(at[left], np.log(r[left]))
        worst = int(np.argmax(np.abs(away)))
        tries = [left[: worst + k] + left[worst + k + 1 :] for k in range(3)]
        rest = [np.abs(_bends(at[one], np.log(r[one]))) for one in tries]
        best = int(np.argmin([one.sum() for one in rest]))
        if abs(away[worst]) <= max(least, 8 * 1.4826 * float(np.median(rest[best]))):
            break
        odd, left = left[worst + best], tries[best]
        found[odd] = float(r[odd] / np.exp(_line(at[odd], at[left], np.log(r[left]))) - 1)
    return found


def _bends(at: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Middle of each three minus the line through the others, (n - 2,), less where they are far apart."""
    span = at[2:] - at[:-2]
    share = np.divide(at[1:-1] - at[:-2], span, out=np.full(span.shape, 0.5), where=span > 0)
    bend = value[1:-1] - (1 - share) * value[:-2] - share * value[2:]
    wide = span / max(float(np.median(span)), np.finfo(float).tiny)
    return np.asarray(bend / np.maximum(wide, 1) ** 2)


def _line(where: float, at: np.ndarray, value: np.ndarray) -> float:
    """Value on the line through the two nearest points of both sides, or of one at an end."""
    k = int(np.clip(np.searchsorted(at, where), 1, len(at) - 1))
    step = max(float(at[k] - at[k - 1]), np.finfo(float).tiny)
    return float(value[k - 1] + (value[k] - value[k - 1]) * (where - at[k - 1]) / step)
