"""Closed loop of saturation levels and bleed trails: inject, measure, compare (Sec. 2.5 of SCIENCE).

Run ``python benchmarks/closed_saturation.py [--seeds N]``. Spots of the projector, one on each amplifier of
the one-CCD camera, in a ladder of brightness, and stars, of the virtual observatory.
"""

import argparse
from dataclasses import replace

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.isr.bleed import bleed_mask
from lsstcal_dask.products.saturation import measure_saturation
from lsstcal_dask.simulate import Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.recipes import Projections
from lsstcal_dask.simulate.saturation import SerialClamp, full_well, serial_full_well
from lsstcal_dask.simulate.truth import amplifiers

LEVELS = np.arange(40e3, 330e3, 15e3)  # electron in a pixel of a spot, were there no full well
RATE_OF = 40e3  # electron, of the recipe's own level


def ladder(site: Observatory, mask: str = "sparse") -> list:
    """Exposures of one mask in rising brightness."""
    plan = Plan(cbp=Projections(sets="a", mask=mask, first=620.0, last=620.5, fine_step=1.0))
    (first, *_) = exposures("cbp", plan, site.settings, site.camera)
    return [
        replace(
            first,
            name=f"MC_S_20260721_{i:06d}",
            number=first.number + i,
            source=replace(first.source, rate=first.source.rate * level / RATE_OF),
        )
        for i, level in enumerate(LEVELS)
    ]


def raw_of(site: Observatory, taken: list) -> xr.Dataset:
    """Raw frames of the first CCD."""
    detector = site.camera.detectors[0]
    rows = [header(site, one) for one in taken]
    counts = [next(iter(frames(site, one, [detector]))).counts for one in taken]
    coords = {name: ("exposure", np.array([row[name] for row in rows])) for name in rows[0] if name != "time"}
    coords |= {"exposure": [one.name for one in taken], "time": ("exposure", [one.time for one in taken])}
    names = {"detector": [detector.name], "amplifier": list(site.camera.amplifier_names)}
    present = (("exposure", "detector"), np.ones((len(taken), 1), bool))
    dims = ("exposure", "detector", "amplifier", "y", "x")
    return xr.Dataset({"counts": (dims, np.array(counts)[:, None]), "present": present}, {**coords, **names})


def noisy_gains(site: Observatory) -> xr.Dataset:
    """Product ``gain``: the truth with an error of 0.1 %."""
    rows = amplifiers(site, site.camera.detectors[0])
    names = [row["amplifier"] for row in rows]
    values = np.array([row["gain"] for row in rows])
    values = values * (1 + 1e-3 * np.random.default_rng(site.seed).standard_normal(len(values)))
    dims = ("detector", "amplifier")
    found = xr.Dataset(
        {"gain": (dims, values[None], {"units": "electron/adu"}), "gain_error": (dims, 1e-3 * values[None])},
        {"detector": [site.camera.detectors[0].name], "amplifier": names},
    )
    return found.sel(amplifier=list(site.camera.amplifier_names))


def footprints(site: Observatory, taken: list) -> tuple[float, float]:
    """Recall of spilled flux and precision of the footprints of trails."""
    detector, camera = site.camera.detectors[0], site.camera
    dry = Observatory(site.seed, camera, site.settings.without(["saturation"]))
    names = [a.name for a in detector.amplifiers]
    true = full_well(site.seed, site.settings.saturation, detector)
    wells = np.array([true[names.index(name)] for name in camera.amplifier_names])
    spilled = inside = flagged = right = 0.0
    for one in taken:
        wet, before = (split(charge(s, one, detector), detector, camera, fill=0.0) for s in (site, dry))
        noise = np.random.default_rng(one.number).normal(0, 5.5, wet.shape)
        mask = bleed_mask((wet + noise).astype(np.float32), wells, 5.5)
        gained = np.maximum(wet - before, 0)
        spilled += gained.sum()
        inside += gained[mask].sum()
        flagged += mask.sum()
        right += (mask & ((gained > 0) | (before >= wells[:, None, None]))).sum()
    return inside / spilled, right / flagged


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    wells, pulls, serial, recall, precision = [], [], [], [], []
    for seed in range(1, asked.seeds + 1):
        site = Observatory(seed, load_camera("mini1"), Settings().without(["crosstalk", "nonlinearity"]))
        detector = site.camera.detectors[0]
        taken = ladder(site)
        found = measure_saturation(raw_of(site, taken), site.camera, {"gain": noisy_gains(site)}).isel(detector=0)
        names = [a.name for a in detector.amplifiers]
        truth = full_well(seed, site.settings.saturation, detector)
        found = found.sel(amplifier=names).compute()
        register = serial_full_well(seed, site.settings.serial_clamp, detector)
        truth = truth[first := truth < register]  # in the others the register is full before the pixels
        found = found.isel(amplifier=first)
        wells += list(found["well_bloom"].values / truth - 1)
        pulls += list((found["well_bloom"].values - truth) / found["well_bloom_error"].values)
        low = site.settings.model_copy(update={"serial_clamp": SerialClamp(e2v=120e3)})
        other = Observatory(seed, site.camera, low)
        found = measure_saturation(raw_of(other, taken), site.camera, {"gain": noisy_gains(site)}).isel(detector=0)
        found = found.sel(amplifier=names).compute()
        serial += list(found["well_serial"].values / serial_full_well(seed, low.serial_clamp, detector) - 1)
        one, two = footprints(site, taken[::3])
        recall.append(one)
        precision.append(two)
    table = Table("saturation", "target", "measured", "seeds")
    n, half = asked.seeds, 7.5e3 / 167e3
    rows = [
        ("W_bloom, rms error", f"0.01 or half a step, {half:.3f}", f"{np.sqrt(np.nanmean(np.square(wells))):.4f}"),
        ("W_bloom, largest error", "", f"{np.nanmax(np.abs(wells)):.4f}"),
        ("W_bloom, found", "all", f"{np.isfinite(wells).sum()} of {len(wells)}"),
        ("W_bloom, width of pulls", "0.90-1.10", f"{np.sqrt(np.nanmean(np.square(pulls))):.2f}"),
        ("W_serial, rms error", "0.01", f"{np.sqrt(np.nanmean(np.square(serial))):.4f}"),
        ("W_serial, found", "all", f"{np.isfinite(serial).sum()} of {len(serial)}"),
        ("bleed mask: recall of spilled flux, worst", "0.999", f"{min(recall):.5f}"),
        ("bleed mask: precision, worst", "0.90", f"{min(precision):.3f}"),
    ]
    for row in rows:
        table.add_row(*row, str(n))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
