"""Closed loop of saturation levels and bleed trails: inject, measure, compare (Secs. 2.5 and 3.5).

Spots of the projector, one on each amplifier of the one-CCD camera, in a ladder of brightness.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.isr.bleed import bleed_mask, trail_charges
from lsstcal_dask.pipeline.closed.raw import raw_exposures, true_gains
from lsstcal_dask.pipeline.closed.target import Target, largest, mean, pulls, rms
from lsstcal_dask.products.saturation import measure_saturation
from lsstcal_dask.simulate import Exposure, Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.frames import charge
from lsstcal_dask.simulate.recipes import Projections
from lsstcal_dask.simulate.saturation import SerialClamp, full_well, serial_full_well

__all__ = ["SEEDS", "measure"]

SEEDS = 12
LEVELS = np.arange(40e3, 330e3, 15e3)  # electron in a pixel of a spot, were there no full well
_GAIN_ERROR = 1e-3  # relative; by far the largest of a well
RATE_OF = 40e3  # electron, of the recipe's own level


def ladder(site: Observatory, mask: str = "sparse") -> list[Exposure]:
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


@dataclass(frozen=True)
class Trails:
    """What footprints of trails hold, over some exposures."""

    spilled: float  # electron
    inside: float  # electron of these in footprints
    flagged: int  # pixels
    right: int  # pixels of these that hold spilled charge or are full
    charges: tuple[float, ...]  # of each trail over that before it bled, less one


def trails(site: Observatory, taken: list[Exposure]) -> Trails:
    """Footprints of trails against the charge that moved."""
    detector, camera = site.camera.detectors[0], site.camera
    dry = Observatory(site.seed, camera, site.settings.without(["saturation"]))
    names = [a.name for a in detector.amplifiers]
    true = full_well(site.seed, site.settings.saturation, detector)
    wells = np.array([true[names.index(name)] for name in camera.amplifier_names])
    spilled = inside = 0.0
    flagged = right = 0
    charges: list[float] = []
    for one in taken:
        wet, before = (split(charge(s, one, detector), detector, camera, fill=0.0) for s in (site, dry))
        noise = np.random.default_rng(one.number).normal(0, 5.5, wet.shape)
        mask = bleed_mask((wet + noise).astype(np.float32), wells, 5.5)
        gained = np.maximum(wet - before, 0)
        spilled += float(gained.sum())
        inside += float(gained[mask].sum())
        flagged += int(mask.sum())
        right += int((mask & ((gained > 0) | (before >= wells[:, None, None]))).sum())
        for after, first, footprint in zip(wet, before, mask, strict=True):
            drained = footprint[0].any()  # next to the register charge leaves the CCD
            if footprint.any() and not drained:
                had = trail_charges(first, footprint)
                charges += list(trail_charges(after, footprint) / had - 1)
    return Trails(spilled, inside, flagged, right, tuple(charges))


def _wells(site: Observatory, taken: list[Exposure]) -> dict[str, np.ndarray]:
    """Relative errors of the wells of the pixels, and their pulls, of amplifiers whose register is not full first."""
    detector = site.camera.detectors[0]
    names = [a.name for a in detector.amplifiers]
    found = _measured(site, taken)
    truth = full_well(site.seed, site.settings.saturation, detector)
    pixels_first = truth < serial_full_well(site.seed, site.settings.serial_clamp, detector)
    well, error = (found[name].sel(amplifier=names).values for name in ("well_bloom", "well_bloom_error"))
    apart = np.where(pixels_first, well - truth, np.nan)
    exact, given = (true_gains(site, [detector.name], e)["gain"].isel(detector=0) for e in (0.0, _GAIN_ERROR))
    drawn = (given / exact - 1).sel(amplifier=names).values / _GAIN_ERROR
    return {"relative": apart / truth, "pull": apart / error, "drawn": drawn, "there": pixels_first}


def _measured(site: Observatory, taken: list[Exposure]) -> xr.Dataset:
    detector = site.camera.detectors[0]
    gain = true_gains(site, [detector.name], _GAIN_ERROR)
    raw = raw_exposures(site, taken, detector)
    found = measure_saturation(raw, site.camera, {"gain": gain}).isel(detector=0)
    return found.compute(scheduler="sync")


def _serial(site: Observatory, taken: list[Exposure]) -> np.ndarray:
    """Relative errors of the wells of the registers, where these are full first."""
    detector = site.camera.detectors[0]
    low = site.settings.model_copy(update={"serial_clamp": SerialClamp(e2v=120e3)})
    found = _measured(Observatory(site.seed, site.camera, low), taken)
    names = [a.name for a in detector.amplifiers]
    true = serial_full_well(site.seed, low.serial_clamp, detector)
    return np.asarray(found["well_serial"].sel(amplifier=names).values / true - 1)


def measure(seeds: int) -> list[Target]:
    """Targets of levels and trails."""
    wells, serial, bled = [], [], []
    for seed in range(1, seeds + 1):
        site = Observatory(seed, load_camera("mini1"), Settings().without(["crosstalk", "nonlinearity"]))
        taken = ladder(site)
        wells.append(_wells(site, taken))
        serial.append(_serial(site, taken))
        bled.append(trails(site, taken[::3]))
    relative, pull, drawn, there = (
        np.array([one[key] for one in wells]) for key in ("relative", "pull", "drawn", "there")
    )
    registers = np.array(serial)
    half = 0.5 * (LEVELS[1] - LEVELS[0]) / 167e3

    def row(name: str, low: float, high: float, found: tuple[float, float]) -> Target:
        return Target("2.5", name, "", low, high, *found, seeds)

    charges = np.array([charge for one in bled for charge in one.charges])
    return [
        row("W_bloom: rms error, or half a step of the ladder", -np.inf, max(0.01, half), rms(relative)),
        row("W_bloom: largest error", -np.inf, max(0.01, half), largest(relative)),
        row("W_bloom: amplifiers without", 0, 0, (float((there & ~np.isfinite(relative)).sum()), 0.0)),
        *pulls("2.5", "W_bloom", pull, drawn),
        row("W_serial: rms error", -np.inf, 0.01, rms(registers)),
        row("W_serial: amplifiers without", 0, 0, (float((~np.isfinite(registers)).sum()), 0.0)),
        row("bleed mask: recall of spilled flux", 0.999, np.inf, mean([b.inside / b.spilled for b in bled])),
        row("bleed mask: precision", 0.90, np.inf, mean([b.right / b.flagged for b in bled])),
        row("charge of a trail: rms error", -np.inf, 1e-3, rms(charges[:, None])),
    ]
