"""Closed loop of defects: pixels made hot, cold and off as columns, found in biases, darks and flats (Sec. 2.4).

Two parts:

- a CCD of mini9 with known defects at their thresholds, and 1.3 times as far off: light is drawn here, read out by the
  virtual observatory's electronics, and goes through bias, dark and defects as an exposure does;
- flats of amplifiers of LSSTCam, with noise alone, through the same tests: false alarms.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.pipeline.closed.raw import place, plain_exposure, raw_of, true_gains
from lsstcal_dask.pipeline.closed.target import Target, share
from lsstcal_dask.products.bias import bias_amplifiers
from lsstcal_dask.products.dark import DarkConfig, dark_amplifiers
from lsstcal_dask.products.defects import DefectConfig, defect_amplifiers, merge_lists
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.electronics import read_out
from lsstcal_dask.simulate.response import QuantumEfficiency
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS

__all__ = ["SEEDS", "measure"]

SEEDS = 24
CONFIG = DefectConfig(most=0.2)  # far more pixels are spoilt here than a real CCD may have
DENSITY = 0.005  # of the pixels, of each kind and size
SIZES = (1.0, 1.3)  # of the threshold
EFFECTS = ("gain", "read_noise", "digitisation", "overscan_drift", "bias_structure", "quantum_efficiency")
DARK = 0.02  # electron/s
SECONDS, DARKS, BIASES = 300.0, 10, 10
LEVELS = (3e3,) * 4 + (4e4,) * 4  # electron, of the flats
CCD = 1.6e7  # pixels


@dataclass(frozen=True)
class Spoilt:
    """What is wrong with the pixels of a CCD: (amplifier, y, x), padded."""

    excess: np.ndarray  # electron/s above the dark current
    response: np.ndarray  # relative to that without the defect
    kind: np.ndarray  # index of a kind and size; -1 good, -2 in a column, -3 no pixel
    columns: tuple[tuple[int, int, int], ...]  # amplifier, first row, column


def spoil(site: Observatory, detector: Detector) -> Spoilt:
    """Spoil pixels of a CCD at random, and one column in each of four ways of each amplifier."""
    camera = site.camera
    random = np.random.default_rng([site.seed, 24])
    shape = (len(camera.amplifier_names), *camera.image_shape)
    excess, response, kind = np.zeros(shape), np.ones(shape), np.full(shape, -3)
    columns: list[tuple[int, int, int]] = []
    for amplifier in detector.amplifiers:
        i, (ny, nx) = place(site, amplifier.name), amplifier.data.shape
        pick = random.choice(2 * len(SIZES) + 1, (ny, nx), p=[DENSITY] * 4 + [1 - 4 * DENSITY])
        kind[i, :ny, :nx] = np.where(pick < 4, pick, -1)
        for k, size in enumerate(SIZES):
            excess[i][kind[i] == k] = size * CONFIG.hot
            response[i][kind[i] == len(SIZES) + k] = 1 - size * (1 - CONFIG.cold)
        ways = random.choice(np.arange(4, nx - 4, 3), 4, replace=False)
        for way, x in enumerate(ways):
            first = int(random.integers(0, ny // 3)) if way % 2 else 0
            kind[i, :first, x], kind[i, first:ny, x] = -1, -2  # what is before it is good: gaps are closed
            excess[i, :first, x], response[i, :first, x] = 0, 1
            columns.append((i, first, int(x)))
            excess[i, first:ny, x] = (1.3 * CONFIG.column_hot, 1.3 * CONFIG.hot, 0, 0)[way]
            response[i, first:ny, x] = 1 - (0, 0, 1.3 * CONFIG.column_cold, 1.3 * (1 - CONFIG.cold))[way]
    return Spoilt(excess, response, kind, tuple(columns))


def _exposures(site: Observatory, detector: Detector, spoilt: Spoilt) -> dict[str, xr.Dataset]:
    """Raw biases, darks and flats."""
    random = np.random.default_rng([site.seed, 25])
    gray = split(site.response(detector), detector, site.camera, fill=0.0) * spoilt.response
    kinds = ["bias"] * BIASES + ["dark"] * DARKS + ["flat"] * len(LEVELS)
    light: list[np.ndarray | float] = [0.0] * BIASES
    waited = SECONDS + 0.5 + detector.row_time * np.arange(site.camera.image_shape[0])[:, None]
    light += [(DARK + spoilt.excess) * waited] * DARKS
    lamp = np.linspace(0.98, 1.02, site.camera.image_shape[1])
    light += [level * gray * lamp for level in LEVELS]
    counts, taken = [], []
    for number, (kind, mean) in enumerate(zip(kinds, light, strict=True), 1):
        charge = np.zeros((len(site.camera.amplifier_names), *site.camera.raw_shape), np.float32)
        drawn = random.poisson(np.broadcast_to(mean, gray.shape))
        for amplifier in detector.amplifiers:
            i, (ny, nx) = place(site, amplifier.name), amplifier.data.shape
            charge[(i, *amplifier.data.slices)] = drawn[i, :ny, :nx]
        counts.append(read_out(site.seed, site.settings.electronics, site.camera, detector, number, charge))
        taken.append(plain_exposure(number, kind, {"bias": 0.0, "dark": SECONDS, "flat": 1.0}[kind]))
    raw = raw_of(site, taken, detector, np.array(counts)).isel(detector=0)
    types = np.array(kinds)
    return {kind: raw.isel(exposure=np.flatnonzero(types == kind)) for kind in dict.fromkeys(kinds)}


def found_defects(site: Observatory, detector: Detector, spoilt: Spoilt, config: DefectConfig = CONFIG) -> xr.Dataset:
    """The product ``defects`` (amplifier, y, x) of one CCD, along ``camera.amplifier_names``."""
    raw, shape = _exposures(site, detector, spoilt), site.camera.image_shape
    names = [a.name for a in detector.amplifiers]

    def together(results: object) -> xr.Dataset:
        made = dict(results)  # type: ignore[call-overload]
        return xr.concat([made[n].drop_attrs() for n in names], "amplifier").assign_coords(amplifier=names)

    products = {"gain": true_gains(site, [detector.name]).isel(detector=0)}
    products["bias"] = together(bias_amplifiers(raw["bias"], detector, shape, StackConfig()))
    products["dark"] = together(dark_amplifiers(raw["dark"], detector, shape, DarkConfig(), products))
    found = together(defect_amplifiers(raw["flat"], detector, shape, config, products))
    return found.sel(amplifier=list(site.camera.amplifier_names))


@dataclass
class Count:
    """Numbers of pixels, summed over seeds."""

    there: np.ndarray  # (kind,)
    found: np.ndarray  # (kind,)
    columns: int = 0
    columns_found: int = 0
    flagged: int = 0
    false: int = 0
    clean: int = 0
    changed: int = 0

    def add(self, spoilt: Spoilt, product: xr.Dataset) -> None:
        """Count those of a CCD."""
        mask, kinds = product["mask"].values, product["defect_kind"].values
        bad, some = mask & MASK_BITS["BAD"] > 0, kinds > 0
        for k in range(len(self.there)):
            self.there[k] += (spoilt.kind == k).sum()
            self.found[k] += (bad & (spoilt.kind == k)).sum()
        column = kinds & DEFECT_KINDS["COLUMN"] > 0
        for i, first, x in spoilt.columns:
            rows = slice(first, (spoilt.kind[i, :, x] > -3).sum())
            self.columns += 1
            self.columns_found += bool(column[i, rows, x].mean() > 0.9)
        good = spoilt.kind == -1
        self.clean += int(good.sum())
        self.false += int((some & good).sum())
        self.flagged += int((some & (spoilt.kind > -3)).sum())
        self.changed += merged_again(mask, kinds)


def merged_again(mask: np.ndarray, kinds: np.ndarray) -> int:
    """Pixels that change where a list is merged with an older one, and the union with both again; that must be none."""
    older = np.where(mask & MASK_BITS["NO_DATA"] > 0, mask, np.roll(mask, 3, axis=-1) & MASK_BITS["BAD"]).astype(
        np.uint16
    )
    changed = 0
    for own, own_kinds, other in zip(mask, kinds, older, strict=True):
        listed = np.where(other > 0, DEFECT_KINDS["LISTED"], 0).astype(np.uint16)
        union, union_kinds = merge_lists(np.stack([other, own]), np.stack([listed, own_kinds]), 1)
        again, _ = merge_lists(np.stack([union, own]), np.stack([union_kinds, own_kinds]), 1)
        changed += int((again != union).sum() + ((union & own) != own).sum() + ((union & other) != other).sum())
    return changed


def noise_alone(seed: int, camera: str = "raft") -> tuple[int, int]:
    """Pixels that are flagged in flats of an amplifier without defects, and how many there are.

    Without a dark: a limit of 5 electron/s is hundreds of times its noise.
    """
    random, detector = np.random.default_rng([seed, 26]), load_camera(camera).detectors[0]
    amplifier, pedestal = detector.amplifiers[0], 25000
    lamp, counts = np.linspace(0.98, 1.02, amplifier.data.shape[1]), []
    for level in LEVELS:
        charge = amplifier.read_noise * random.standard_normal(amplifier.raw_shape, np.float32)
        charge[amplifier.data.slices] += random.poisson(level * lamp, amplifier.data.shape)
        counts.append(np.rint(pedestal + charge / amplifier.gain).astype(np.int32))
    raw = xr.Dataset(
        {
            "counts": (("exposure", "amplifier", "y", "x"), np.array(counts)[:, None]),
            "present": ("exposure", np.ones(len(counts), bool)),
        },
        {"amplifier": [amplifier.name]},
    )
    gain = xr.Dataset({"gain": ("amplifier", [amplifier.gain])}, {"amplifier": [amplifier.name]})
    one = replace(detector, amplifiers=(amplifier,))
    ((_, found),) = defect_amplifiers(raw, one, amplifier.data.shape, CONFIG, {"gain": gain})
    return int((found["mask"].values > 0).sum()), found["mask"].size


def measure(seeds: int, config: DefectConfig = CONFIG, noise: int = 7) -> list[Target]:
    """Completeness, purity, false alarms, columns, and merging of lists; ``noise`` LSST amplifiers of each seed."""
    camera, count = load_camera("mini9"), Count(np.zeros(4, int), np.zeros(4, int))
    for seed in range(1, seeds + 1):
        # Without the fall of the response at the edges, which would take much of a CCD as small as this.
        response = {"quantum_efficiency": QuantumEfficiency(edge=0.0)}
        site = Observatory(seed, camera, Settings().only(EFFECTS).model_copy(update=response))
        detector = camera.detectors[seed % len(camera.detectors)]
        spoilt = spoil(site, detector)
        count.add(spoilt, found_defects(site, detector, spoilt, config))
    alone = [noise_alone(seed) for seed in range(1, seeds * noise + 1)]
    rate, error = share(count.false + sum(n for n, _ in alone), count.clean + sum(n for _, n in alone))

    def row(name: str, low: float, high: float, value: tuple[float, float]) -> Target:
        return Target("2.4", name, "", low, high, *value, seeds)

    shares = [share(*pair) for pair in zip(count.found, count.there, strict=True)]
    return [
        row("hot pixels at the threshold: found", 0.48, 0.52, shares[0]),
        row("hot pixels at 1.3 thresholds: found", 0.995, np.inf, shares[1]),
        row("cold pixels at the threshold: found", 0.48, 0.52, shares[2]),
        row("cold pixels at 1.3 thresholds: found", 0.995, np.inf, shares[3]),
        row("purity", 0.99, np.inf, share(count.flagged - count.false, count.flagged)),
        row("false alarms in a CCD of 16 million pixels", -np.inf, 1.0, (rate * CCD, error * CCD)),
        row(f"columns missed of {count.columns}", 0, 0, (float(count.columns - count.columns_found), 0.0)),
        row("pixels that merging lists again changes", 0, 0, (float(count.changed), 0.0)),
    ]
