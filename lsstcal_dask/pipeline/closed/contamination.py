"""Closed loop of contamination: dust and drifts of filters in broadband flats of a later night (Sec. 2.8.2).

Some CCDs of mini9, r and i: a cube each 5 nm, flats of its epoch, and those of four later nights, in the simulator's
light and with the noise of 1e6 electrons in a pixel, in a store as any build leaves them; `find_contamination` does
the rest. In the first night the screen is lit otherwise and there are three shadows of motes, annuli as the pupil's
picture is: one gray, one in r alone, one that is not gray. In the next two the filters have moved by half a nm.

Before all that, the two references must agree: flats of the cube's epoch and those of the cube. In another store there
is a mote on the former that no slice has, which is an alarm. That the filters moved between the measurement of their
curves and the cube is none on mini9: 3 nm change its flats less than nine curves leave unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import xarray as xr

from lsstcal_dask.compute import Compute
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.mapping import Output
from lsstcal_dask.physics.spectra import from_photons
from lsstcal_dask.pipeline.build import Built, image_template
from lsstcal_dask.pipeline.closed.flat_scan import lamp_light, store_scan
from lsstcal_dask.pipeline.closed.target import Target, mean, ratio, share
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.contamination import Drift, find_contamination
from lsstcal_dask.pipeline.store import Store
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.optics import OBSCURATION, disc_in_annulus
from lsstcal_dask.storage.products import Pointer, create_template, open_product, publish, write_detector
from lsstcal_dask.storage.tables import write_table
from lsstcal_dask.variables import MASK_BITS

__all__ = ["SEEDS", "measure"]

SEEDS = 10
_BANDS: Final = "ri"
_CCDS: Final = (0, 1, 3, 8)  # two of each vendor
_ELECTRONS: Final = 1e6  # of a broadband flat
_DRIFT: Final = 0.5  # nm
_DEPTH: Final = 5e-3
_MOTES: Final = {"gray": (0, 60.0, (1.0, 1.0)), "filter": (1, 100.0, (1.0, 0.0)), "chromatic": (2, 80.0, (1.0, 0.4))}
"""Place of a CCD among `_CCDS`, outer radius of the shadow (px), and its strength in each band."""
_STAIN: Final = {"stain": (1, 100.0, (1.0, 1.0))}
_NIGHTS: Final = {"epoch": "2026-07-01", "dust": "2026-09-01", "red": "2026-09-02", "blue": "2026-09-03"}
_SHIFTS: Final = {"red": _DRIFT, "blue": -_DRIFT}
_PLANES: Final = {
    "image": Output("float32", "electron"),
    "variance": Output("float32", "electron**2"),
    "mask": Output("uint16"),
}


@dataclass(frozen=True)
class _Row:
    values: dict[str, list[float]]


def measure(seeds: int, step: float = 5.0, stained: int = 1, nights: Sequence[str] = tuple(_NIGHTS)) -> list[Target]:
    """Every target of Sec. 2.8.2 of a cube in steps of so many nm.

    Parameters
    ----------
    stained : further seeds, with dust on the flats of the cube's epoch alone.
    nights : that are compared; without some, what they tell has no value.
    """
    spoilt = [_seed(seed, step, nights[:2], stain=True) for seed in range(1, stained + 1)]
    return _targets([_seed(seed, step, nights) for seed in range(1, seeds + 1)], spoilt)


def _targets(rows: Sequence[_Row], spoilt: Sequence[_Row]) -> list[Target]:
    """What the seeds tell together; in the last there was dust on the flats of the cube's epoch."""

    def row(name: str, limits: tuple[float, float], found: tuple[float, float], seeds: int = len(rows)) -> Target:
        return Target("2.8.2", name, "", *limits, *found, seeds)

    def all_of(key: str) -> list[float]:
        return [value for one in rows for value in one.values[key]]

    def part(key: str) -> tuple[float, float]:
        return share(sum(all_of(key)), len(all_of(key)))

    missed, pull = (ratio(np.array(all_of(key))[:, None], np.ones(1)) for key in ("missed", "pull"))
    silent = [1 - value for one in spoilt for value in one.values["alarm"]]
    return [
        row("a mote of 0.5 %: rms of what is left of its shadow", (0.0, 5e-4), missed),
        row("elsewhere: noise over that of the flats", (0.0, 1.2), mean(all_of("elsewhere"))),
        row("a drift of 0.5 nm: flagged", (0.95, np.inf), part("flagged")),
        row("no drift: flagged", (-np.inf, 0.05), part("false")),
        row("a drift of 0.5 nm: share that is taken for dust", (0.0, 0.1), mean(all_of("absorbed"))),
        row("gray, filter and chromatic motes: told apart", (0.95, np.inf), part("kinds")),
        row("drift: error over that which is stated", (0.0, 1.1), pull),
        row("references that agree: alarms", (-np.inf, 0.05), part("alarm")),
        row(
            "filters moved by 3 nm before the cube: references without alarm",
            (0.0, 0.0),
            (sum(silent), 0.0),
            len(spoilt),
        ),
    ]


def _seed(seed: int, step: float, nights: Sequence[str] = tuple(_NIGHTS), *, stain: bool = False) -> _Row:
    """One observatory: its cube, flats of four nights, and what is found in them."""
    nothing = Settings().without(["dust", "fringing"])
    config = Config.model_validate({"synthesis": {"weights": {"uncovered": 0.01}}})
    site = Observatory(seed, load_camera("mini9"), nothing)
    with TemporaryDirectory() as folder:
        store = store_scan(site, folder, np.arange(515.0, 855 + step, step), _detectors(site), 1e6 * step)
        for band in _BANDS:
            write_table(store.url, f"inputs/filter-{band}", deliveries("calibration-day", [])[f"filter-{band}"](site))
        shifts = {night: _SHIFTS.get(night, 0.0) for night in nights}
        light = {(b, by): _light(_moved(site, by), b) for b in _BANDS for by in set(shifts.values())}
        shadows = _shadows(site)
        extra = {"dust": shadows * _screen(site)} | ({"epoch": _shadows(site, _STAIN)} if stain else {})
        for i, (night, by) in enumerate(shifts.items()):
            for k, band in enumerate(_BANDS):
                seen = light[band, by] * (extra[night][k] if night in extra else 1)
                _put(store, band, _NIGHTS[night], seen, np.random.default_rng([seed, 282, i, k]))
        lamp = from_photons(nm := np.arange(300.0, 1150.5), lamp_spectrum(nm), "lamp")
        found = {
            night: find_contamination(store, list(_BANDS), lamp, config, Compute("threads", 1), night=_NIGHTS[night])
            for night in nights
            if night != "epoch"
        }
        return _Row(_numbers(store, found, light, shadows))


def _moved(site: Observatory, by: float) -> Observatory:
    filters = site.settings.filters.model_copy(update={"moved": by})
    return Observatory(site.seed, site.camera, site.settings.model_copy(update={"filters": filters}))


def _detectors(site: Observatory) -> list[Detector]:
    return [site.camera.detectors[i] for i in _CCDS]


def _light(site: Observatory, band: str) -> np.ndarray:
    """The lamp behind a filter (detector, amplifier, y, x)."""
    return np.stack([lamp_light(site, band, one) for one in _detectors(site)])


def _shadows(site: Observatory, motes: Mapping[str, tuple[int, float, tuple[float, float]]] = _MOTES) -> np.ndarray:
    """What the motes leave of the light (band, detector, amplifier, y, x)."""
    out = []
    for k in range(len(_BANDS)):
        planes = []
        for i, detector in enumerate(_detectors(site)):
            left = np.ones(detector.shape)
            for place, outer, strength in motes.values():
                if place == i:
                    left = left - _DEPTH * strength[k] * _annulus(detector.shape, outer)
            planes.append(split(left.astype(np.float32), detector, site.camera, fill=np.nan))
        out.append(np.stack(planes))
    return np.stack(out)


def _annulus(shape: tuple[int, int], outer: float) -> np.ndarray:
    """Shadow (y, x), of depth one, of a small mote in the middle of a CCD: the picture of the pupil."""
    y, x = np.indices(shape)
    away = np.hypot(y - shape[0] / 2, x - shape[1] / 2)
    mote = outer / 10
    return np.asarray(disc_in_annulus(away, mote, OBSCURATION * outer, outer))


def _screen(site: Observatory) -> np.ndarray:
    """Light (detector, amplifier, y, x) of a lamp that has moved: a percent over the field, of second order."""
    planes = []
    for detector in _detectors(site):
        ny, nx = detector.shape
        x, y = np.broadcast_arrays(*ccd_to_focal(detector, np.arange(nx), np.arange(ny)[:, None]))
        light = 1 + 0.01 * x / 8 - 0.006 * (y / 8) ** 2
        planes.append(split(light.astype(np.float32), detector, site.camera, fill=np.nan))
    return np.stack(planes)


def _put(store: Store, band: str, date: str, light: np.ndarray, random: np.random.Generator) -> None:
    """Publish a broadband flat of a night, with noise."""
    names = [one.name for one in (store.camera.detectors[i] for i in _CCDS)]
    name, version = f"broadband-{band}", date
    template, _ = image_template(store.camera, names, _PLANES, {"product": name, "filter": band})
    create_template(store.url, name, version, template)
    flat = light * (_ELECTRONS / np.nanmean(light))
    noisy = flat + np.sqrt(flat) * random.standard_normal(flat.shape)
    mask = np.where(np.isfinite(flat), 0, MASK_BITS["NO_DATA"]).astype(np.uint16)
    hashes = {}
    for i, det in enumerate(names):
        rows = []
        for amplifier in store.camera.detector(det).amplifiers:
            k = store.camera.amplifier_names.index(amplifier.name)
            planes = (noisy[i, k].astype(np.float32), flat[i, k].astype(np.float32), mask[i, k])
            variables = {key: (("y", "x"), plane) for key, plane in zip(_PLANES, planes, strict=True)}
            rows.append((amplifier.name, xr.Dataset(variables)))
        hashes[det] = write_detector(store.url, name, version, (i, det), iter(rows))["hash"]
    pointer = Pointer(name, f"{date}T12:00:00", {"headers": {}}, {}, {}, {}, [], version=version, detectors=hashes)
    publish(store.url, replace(pointer, created=date))


def _numbers(
    store: Store,
    found: Mapping[str, tuple[list[Drift], dict[str, Built]]],
    light: Mapping[tuple[str, float], np.ndarray],
    shadows: np.ndarray,
) -> dict[str, list[float]]:
    """What a seed tells, one value or more of each kind."""
    factors = {night: [_factor(store, made, band) for band in _BANDS] for night, (_, made) in found.items()}
    drifts = {night: {one.band: one for one in own} for night, (own, _) in found.items()}
    remarks = [_pointer(made, b).remarks for _, made in found.values() for b in _BANDS]
    out: dict[str, list[float]] = {"missed": [], "elsewhere": [], "flagged": [], "pull": [], "absorbed": []}
    out["false"] = [float(_flagged(found["dust"][1], band)) for band in _BANDS]
    out["alarm"] = [float(any("REFERENCES" in text for text in own)) for own in remarks[: len(_BANDS)]]
    out["kinds"] = _kinds(found["dust"][1])
    for k in range(len(_BANDS)):
        true, factor = shadows[k], factors["dust"][k]
        for mote, (i, _, strength) in _MOTES.items():
            shade = true[i] < 1 - 0.5 * _DEPTH * strength[k]
            if mote != "chromatic" and strength[k] == 1.0:
                out["missed"].append(float(np.sqrt(np.nanmean((factor[i] - true[i])[shade] ** 2))))
        clear = np.isfinite(factor) & (shadows.min(axis=0) > 1 - 1e-5)
        noise = 2 / _ELECTRONS  # of a flat over another
        out["elsewhere"].append(float(np.sqrt(1 + np.mean((factor[clear] - 1) ** 2) / noise)))
    for night, by in ((night, by) for night, by in _SHIFTS.items() if night in found):
        for band in _BANDS:
            one = drifts[night][band]
            out["flagged"].append(float(_flagged(found[night][1], band)))
            out["pull"].append((one.shift - by) / one.error)
        effect = np.stack([np.log(light[band, by] / light[band, 0.0]) for band in _BANDS])
        out["absorbed"].append(_spread(np.stack(factors[night])) / _spread(effect))
    return out


def _spread(values: np.ndarray) -> float:
    """Rms of all bands (band, ...) together, each less its mean."""
    return float(np.sqrt(np.nanmean(np.square(values - np.nanmean(values, axis=(1, 2, 3, 4), keepdims=True)))))


def _pointer(made: Mapping[str, Built], band: str) -> Pointer:
    """What was published of a band."""
    pointer = made[f"contamination-{band}"].pointer
    assert pointer is not None
    return pointer


def _factor(store: Store, made: Mapping[str, Built], band: str) -> np.ndarray:
    """Factor of dust (detector, amplifier, y, x)."""
    pointer = _pointer(made, band)
    return open_product(store.url, pointer.name, pointer.version, chunked=False)["image"].values.astype(float)


def _flagged(made: Mapping[str, Built], band: str) -> bool:
    return _pointer(made, band).remarks[0].startswith("CHROMATIC_DRIFT")


def _kinds(made: Mapping[str, Built]) -> list[float]:
    """Whether each mote was taken for what it is: by the CCD on which it lies."""
    remarks = _pointer(made, _BANDS[0]).remarks
    names = [load_camera("mini9").detectors[i].name for i in _CCDS]
    found = []
    for kind, (i, _, _) in _MOTES.items():
        own = " ".join(text for text in remarks if names[i] in text and "dust: " in text)
        others = set(_MOTES) - {kind, "gray"}  # a speck of noise counts as gray
        found.append(float(kind in own and not any(other in own for other in others)))
    return found
