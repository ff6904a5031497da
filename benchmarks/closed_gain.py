"""Gains of the virtual observatory against their truth: the targets of closed loop of Sec. 2.2.

Run ``python benchmarks/closed_gain.py [transfer|continuity|jump|muons ...] [--seeds N] [--json FILE]``. Every row of
the table is target, what was measured with its error, and the seeds behind it. A seed is one CCD of ``mini9``.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.continuity import ContinuityConfig, continuity_amplifiers, gain_changes, mean_flats
from lsstcal_dask.products.covariance_model import Model, fisher
from lsstcal_dask.products.gain import GainConfig, gain_amplifiers
from lsstcal_dask.products.muons import Tracks, compare_tracks, dark_tracks
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.products.transfer import LAGS, TransferConfig, transfer_amplifiers
from lsstcal_dask.simulate import Exposure, Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter
from lsstcal_dask.simulate.cosmics import CosmicRays
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.recipes import CalibrationDay
from lsstcal_dask.simulate.truth import at

CAMERA = load_camera("mini9")
WITHOUT = ("nonlinearity", "crosstalk")  # their own products correct them
Row = tuple[str, str, str]


def make_raw(site: Observatory, taken: list[Exposure], name: str) -> xr.Dataset:
    """Raw exposures of one CCD as the pipeline reads them."""
    detector = site.camera.detector(name)
    counts = np.stack([frame.counts for e in taken for frame in frames(site, e, [detector])])
    columns: dict[str, list[Any]] = {
        "exposure": [e.name for e in taken],
        "time": [e.time for e in taken],
        "exposure_type": [e.kind for e in taken],
        "exposure_time": [e.exposure_time for e in taken],
        "dark_time": [e.dark_time for e in taken],
        "filter": [e.filter for e in taken],
        "wavelength": [np.nan] * len(taken),
    }
    coords: dict[str, Any] = {key: ("exposure", value) for key, value in columns.items()}
    variables = {
        "counts": (("exposure", "amplifier", "y", "x"), counts),
        "present": ("exposure", np.ones(len(taken), bool)),
    }
    return xr.Dataset(variables, {**coords, "amplifier": list(site.camera.amplifier_names)})


def day(site: Observatory, **numbers: Any) -> list[Exposure]:
    """Exposures of a calibration day with only what is asked for."""
    plan = dict.fromkeys(("biases", "darks", "xrays", "pairs", "flats"), 0) | numbers
    return exposures("calibration-day", Plan(calibration_day=CalibrationDay(**plan)), site.settings, site.camera)


def cases(seeds: int, *without: str) -> Iterator[tuple[Observatory, str]]:
    """Observatory and CCD of every seed; both vendors."""
    # steps so short that what they leave of the variance, 1e-4, moves gains by 7e-5; by default 4e-4
    exact = BrighterFatter(error=1e-4)
    settings = Settings(brighter_fatter=exact).without([*WITHOUT, *without])
    for seed in range(seeds):
        detector = CAMERA.detectors[seed % len(CAMERA.detectors)].name
        yield Observatory(1000 + seed, CAMERA, settings), detector


def true_gains(site: Observatory, detector: str) -> np.ndarray:
    """Gains (amplifier,), electron/adu, in the order of the detector's amplifiers."""
    amplifiers = site.camera.detector(detector).amplifiers
    return np.array([at(site, "gain", detector=detector, amplifier=a.name) for a in amplifiers])


def bias_product(raw: xr.Dataset, detector: Detector) -> xr.Dataset:
    """Master bias of the biases among the exposures of a CCD."""
    biases = raw.isel(exposure=np.flatnonzero(raw["exposure_type"].values == "bias"))
    made = dict(bias_amplifiers(biases, detector, CAMERA.image_shape, StackConfig()))
    return xr.concat(
        [made[name][["image", "read_noise"]] for name in raw["amplifier"].values],
        raw["amplifier"],
        combine_attrs="drop",
    )


def transfer(seeds: int) -> list[Row]:
    """Photon transfer of twelve pairs up to 90 ke-, and its ratio to 55Fe."""
    found = []
    for turn, (site, name) in enumerate(cases(seeds)):
        raw = make_raw(site, day(site, biases=10, pairs=12, xrays=6), name)
        detector, truth = site.camera.detector(name), true_gains(site, name)
        products = {"bias": bias_product(raw, detector)}
        curves = dict(transfer_amplifiers(raw, detector, None, TransferConfig(), products))
        xrays = raw.isel(exposure=np.flatnonzero(raw["exposure_type"].values == "fe55"))
        gains = dict(gain_amplifiers(xrays, detector, site.camera.temperature, GainConfig(), products))
        area = at(site, "area_coefficients", detector=name)
        middle = len(area) // 2
        area = area[middle : middle + LAGS, middle : middle + LAGS]
        bound = crb(site, name, area)
        for gain, (key, curve) in zip(truth, curves.items(), strict=True):
            fe55 = gains[key]
            numbers = curve["gain"], curve["gain_error"], fe55["gain_fe55"], fe55["gain_fe55_error"]
            a = curve["a_matrix"].values, curve["a_matrix_error"].values
            found.append([*(float(v) / gain for v in numbers), bound, ((a[0] - area) / a[1])[0, 0]])
        if turn % 10 == 9:
            print(turn + 1, rows_of_transfer(np.array(found)), flush=True)
    return rows_of_transfer(np.array(found))


def crb(site: Observatory, name: str, area: np.ndarray) -> float:
    """Bound of the relative error of the gain of the ladder, from the model's Fisher matrix."""
    amplifier = site.camera.detector(name).amplifiers[0]
    y, x = np.indices((LAGS, LAGS))
    ny, nx = amplifier.data.shape
    pairs = (ny - y) * (nx - x) * np.where((y > 0) & (x > 0), 2.0, 1.0)
    mean = np.geomspace(500, 90e3, 12) / amplifier.gain
    noise = np.zeros_like(area)
    noise[0, 0] = amplifier.read_noise**2
    return fisher(mean, np.broadcast_to(pairs, (12, LAGS, LAGS)), Model(amplifier.gain, noise, area, 0 * area))


def rows_of_transfer(found: np.ndarray) -> list[Row]:
    """Targets of photon transfer from (n, 6): gain, error, 55Fe, error, all over truth, bound, and pull of a_00."""
    n, behind = len(found), f"{len(found)} amplifiers"
    gain, error, fe55, fe55_error, bound, area = found.T
    off, eta = gain - 1, np.std(gain - 1) / np.sqrt(np.mean(bound**2))
    ratio, expected = gain / fe55, np.hypot(error, fe55_error)
    keep = np.isfinite(ratio)
    excess = np.var(ratio[keep]) - np.mean(expected[keep] ** 2)
    doubt = np.mean(expected[keep] ** 2) * np.sqrt(2 / keep.sum())
    common = f"{np.mean(ratio[keep]):.5f} +- {np.std(ratio[keep]) / np.sqrt(keep.sum()):.5f}"
    return [
        ("PTC gain, bias <= 2e-4", f"{off.mean():+.1e} +- {off.std() / np.sqrt(n):.1e}", behind),
        ("PTC gain, eta <= 1.10", f"{eta:.3f} +- {eta / np.sqrt(2 * n):.3f}", behind),
        ("PTC gain, pull 0.90-1.10", f"{np.std(off / error):.3f} +- {1 / np.sqrt(2 * n):.3f}", behind),
        ("PTC a_00, pull 0.90-1.10, mean < 0.3", f"{area.std():.3f}, {area.mean():+.3f}", behind),
        ("PTC over 55Fe, mean", common, behind),
        (
            "PTC over 55Fe, scatter beyond errors <= 1e-3",
            f"{np.sign(excess) * np.sqrt(abs(excess)):.1e} (variance {excess:.1e} +- {doubt:.1e})",
            behind,
        ),
    ]


def flats_of(site: Observatory, name: str, count: int) -> xr.Dataset:
    """Flats of 50 ke- of one CCD; its mean is all that matters, so without the brighter-fatter effect."""
    return make_raw(site, day(site, biases=10, flats=count, filters="r", level=50e3), name)


def gains_from(raw: xr.Dataset, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Relative gains and errors (amplifier,) from continuity."""
    made = dict(continuity_amplifiers(raw, detector, None, ContinuityConfig(), {"bias": bias_product(raw, detector)}))
    value, error = (
        np.array([float(made[a.name][name]) for a in detector.amplifiers])
        for name in ("gain_relative", "gain_relative_error")
    )
    return value, error


def continuity(seeds: int) -> list[Row]:
    """Relative gains in a CCD from 40 flats, with all effects of the pixels and without."""
    rows = []
    for what, without in (("all effects", ()), ("no tree rings, no pixel jitter", ("tree_rings", "pixel_jitter"))):
        off, pulls = [], []
        for site, name in cases(seeds, "brighter_fatter", *without):
            truth = true_gains(site, name)
            value, error = gains_from(flats_of(site, name, 40), site.camera.detector(name))
            off.append(value / (truth / np.exp(np.mean(np.log(truth)))) - 1)
            pulls.append(off[-1] / error)
        label = f"continuity, 40 flats, {what}: rms <= 2e-4"
        rows.append((label, f"{np.std(off):.1e}, pulls {np.std(pulls):.2f}", f"{np.size(off)} amplifiers"))
    return rows


def jump(seeds: int) -> list[Row]:
    """A gain that changes by 0.3 % between two epochs of 20 flats, and all the others that do not."""
    seen, quiet = [], []
    for site, name in cases(seeds, "brighter_fatter"):
        detector, raw = site.camera.detector(name), flats_of(site, name, 40)
        flats = np.flatnonzero(raw["exposure_type"].values == "flat")
        others = np.flatnonzero(raw["exposure_type"].values != "flat")
        epochs = [raw.isel(exposure=np.concatenate([others, part])) for part in (flats[:20], flats[20:])]
        place = CAMERA.amplifier_names.index(detector.amplifiers[5].name)
        counts = epochs[1]["counts"].values.copy()
        amplifier = detector.amplifiers[5]
        level = np.median(counts[(slice(None), place, *amplifier.overscan.slices)], axis=(1, 2))[:, None, None]
        counts[len(others) :, place] = np.rint(((counts[:, place] - level) / 1.003 + level)[len(others) :])
        epochs[1] = epochs[1].assign(counts=(epochs[1]["counts"].dims, counts))
        products = {"bias": bias_product(raw, detector)}
        before, after = (mean_flats(epoch, detector, ContinuityConfig(), products)[0] for epoch in epochs)
        value, error, _ = gain_changes(before, after, detector)
        sigma = (value - 1) / error
        seen.append(sigma[5])
        quiet += [*np.delete(sigma, 5)]
    return [
        ("jump of 0.3 % >= 5 sigma", f"{np.min(seen):.1f} to {np.max(seen):.1f}", f"{len(seen)} CCDs"),
        ("no jump elsewhere < 5 sigma", f"{np.max(np.abs(quiet)):.1f} at most", f"{len(quiet)} amplifiers"),
    ]


def muons(seeds: int) -> list[Row]:
    """Epochs of tracks in 20 darks of 300 s, at thirty times the rate of the sea level."""
    pulls, errors = [], []
    for seed in range(seeds):
        settings = Settings().without(WITHOUT)
        site = Observatory(2000 + seed, CAMERA, settings.model_copy(update={"cosmic_rays": CosmicRays(rate=30.0)}))
        name = CAMERA.detectors[seed % 9].name
        detector, raw = site.camera.detector(name), make_raw(site, day(site, biases=10, darks=40), name)
        products = {"bias": bias_product(raw, detector)}
        darks, halves = np.flatnonzero(raw["exposure_type"].values == "dark"), []
        for half in (darks[:20], darks[20:]):
            part = raw.isel(exposure=half)
            found = [dark_tracks(part, a, detector.pixel_mm, products) for a in detector.amplifiers]
            halves.append(Tracks(*(np.concatenate([getattr(f, key) for f in found]) for key in ("path", "charge"))))
        drift = compare_tracks(*halves)
        pulls.append((drift.ratio - 1) / drift.error)
        errors.append(drift.error)
    found = f"{np.mean(errors):.3f}, pulls {np.std(pulls):.2f}"
    return [("muons, error of the ratio of two epochs ~ 1 %", found, f"{seeds} CCDs")]


PARTS = {"transfer": (transfer, 150), "continuity": (continuity, 9), "jump": (jump, 9), "muons": (muons, 9)}


def main() -> None:
    """Print the table of the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=[*PARTS])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[Row] = []
    for part in asked.parts:
        function, seeds = PARTS[part]
        rows += function(asked.seeds or seeds)
    table = Table("target", "measured", "of")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
