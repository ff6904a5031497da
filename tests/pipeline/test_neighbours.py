"""Crosstalk between CCDs in calibrated frames: a spot in one CCD leaves its ghosts in those of its readout board."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from making import SEED, START, exposure

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import Entries
from lsstcal_dask.isr.frame import RawFrame
from lsstcal_dask.isr.neighbours import Source, seen
from lsstcal_dask.isr.sequence import IsrConfig, Site, correct, source
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.closed.discs import disc, expose, true_matrix
from lsstcal_dask.pipeline.closed.raw import true_gains
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.levels import LEVELS
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.products import crosstalk, gain
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.products import (
    Pointer,
    Template,
    create_template,
    open_product,
    publish,
    write_detector,
)
from lsstcal_dask.storage.raw import write_frame
from lsstcal_dask.variables import MASK_BITS

BOARD = ["R22_S10", "R22_S11", "R22_S12"]
LEVEL = 9e4  # electrons
TAKEN = exposure(1, "science", 10.0)


@pytest.fixture(scope="module")
def site():
    """Only read noise, gain and crosstalk, that between CCDs thirty times as strong as it is."""
    settings = Settings().only(["read_noise", "gain", "crosstalk", "digitisation"])
    strong = Crosstalk(inter_low=1e-4, inter_high=1e-3)
    return Observatory(SEED, load_camera("mini9"), settings.model_copy(update={"crosstalk": strong}))


def sources_between(site):
    """Couplings of the board that lead from one CCD to another: target CCD and place, source CCD and place, c."""
    names = site.camera.amplifier_names
    found = []
    for target in BOARD:
        linear, _ = true_matrix(site, target, BOARD)
        for t, s in np.argwhere(linear):
            if BOARD[s // len(names)] != target:
                found.append((target, names[t], BOARD[s // len(names)], names[s % len(names)], linear[t, s]))
    return found


def put(store, name, outputs, sizes, coords, datasets):
    """Publish a product by hand."""
    full = {"detector": (("detector",), BOARD), "amplifier": (("amplifier",), list(store.camera.amplifier_names))}
    template = Template(outputs, {**sizes, "detector": len(BOARD)}, {**full, **coords})
    create_template(store.url, name, "byhand", template)
    hashes = {}
    for i, (detector, parts) in enumerate(datasets.items()):
        hashes[detector] = write_detector(store.url, name, "byhand", (i, detector), iter(parts))["hash"]
    night = str(START)[:10] + "T12:00:00"
    publish(store.url, Pointer(name, night, {}, {}, {}, {}, [], version="byhand", detectors=hashes))


@pytest.fixture(scope="module")
def store(tmp_path_factory, site):
    """One exposure of the board, the source of the first coupling lit, and the true gain and crosstalk."""
    store = create_store(tmp_path_factory.mktemp("neighbours") / "s", "mini9")
    camera, names = store.camera, list(store.camera.amplifier_names)
    lit = {source[2:4]: (60.0, 50.0, 15.0, LEVEL) for source in sources_between(site)[:1]}
    records = []
    for detector, counts in zip(BOARD, expose(site, BOARD, TAKEN.number, lit), strict=True):
        header = {"exposure_type": "science", "time": str(TAKEN.time), "exposure_time": 10.0, "dark_time": 10.5}
        header |= {"filter": "r", "wavelength": float("nan"), "photodiode": float("nan")}
        record = FrameRecord(TAKEN.name, detector, "", "made.fits", "", "", header)
        records.append(write_frame(store.url, record, counts, {}))
    publish_frames(store.url, records)
    true = true_gains(site, BOARD)
    numbers = {}
    for detector in BOARD:
        own = true.sel(detector=detector)
        numbers[detector] = [
            (
                a,
                xr.Dataset(
                    {v: ((), float(own["gain"].sel(amplifier=a)) if v == "gain" else np.nan) for v in gain.OUTPUTS}
                ),
            )
            for a in names
        ]
    put(store, "gain", gain.OUTPUTS, {"amplifier": len(names)}, {}, numbers)
    sources = crosstalk.source_names(camera)
    pairs = {}
    for detector in BOARD:
        linear, quadratic = true_matrix(site, detector, [d.name for d in camera.detectors])
        values = {"crosstalk": linear, "crosstalk_quadratic": quadratic}
        pairs[detector] = [
            (a, xr.Dataset({v: ("source", values[v][i] if v in values else 0 * linear[i]) for v in crosstalk.OUTPUTS}))
            for i, a in enumerate(names)
        ]
    sizes = crosstalk.pair_sizes(camera)
    put(store, "crosstalk", crosstalk.OUTPUTS, sizes, {"source": (("source",), sources)}, pairs)
    return store


def ghost(store, site, threads, skip):
    """Amplitude of the ghost of the spot in another CCD, by its shape, over its true one; and the error of that."""
    target, amplifier, _, _, c = sources_between(site)[0]
    ((_, one),) = calibrate(store, [TAKEN.name], Config().calibrate, threads, skip=["bias", "dark", *skip])
    assert one.errors == []
    frame = open_product(store.url, "calibrated", one.pointer.version).sel(detector=target, amplifier=amplifier).load()
    here = next(a for a in store.camera.detector(target).amplifiers if a.name == amplifier)
    ny, nx = here.data.shape
    shape = LEVEL * disc(store.camera.raw_shape, 60.0, 50.0, 15.0)[here.data.slices]
    image, variance = frame["image"].values[:ny, :nx], frame["variance"].values[:ny, :nx]
    weight = (shape - shape.mean()) / variance.mean()
    return float((weight * image).sum() / (weight * shape).sum() / c), float(
        1 / np.sqrt((weight * shape).sum()) / abs(c)
    )


def test_the_ghost_of_another_ccd_is_removed(store, site, threads):
    """Its amplitude is that of the truth without the correction, and zero with it, within the noise."""
    there, error = ghost(store, site, threads, ["crosstalk"])
    assert error < 0.1
    assert abs(there - 1) < 4 * error
    gone, error = ghost(store, site, threads, [])
    assert abs(gone) < 4 * error


def test_a_ccd_whose_neighbour_is_missing_goes_on(store, site, threads, tmp_path):
    """Only what is there is subtracted, and it is said what is not."""
    other = create_store(tmp_path / "s", "mini9")
    target, _, _, _, _ = sources_between(site)[0]
    ((counts),) = expose(site, [target], 2, {})
    taken = exposure(2, "science", 10.0)
    header = {"exposure_type": "science", "time": str(taken.time), "exposure_time": 10.0, "dark_time": 10.5}
    header |= {"filter": "r", "wavelength": float("nan"), "photodiode": float("nan")}
    record = FrameRecord(taken.name, target, "", "made.fits", "", "", header)
    publish_frames(other.url, [write_frame(other.url, record, counts, {})])
    shutil.copytree(f"{store.url}/products", f"{other.url}/products")
    ((_, one),) = calibrate(other, [taken.name], Config().calibrate, threads, skip=["bias", "dark"])
    assert one.errors == []
    absent = {row[2] for row in sources_between(site) if row[0] == target}
    (remark,) = [text for text in one.pointer.remarks if "crosstalk from" in text]
    assert remark.startswith(f"{target}: crosstalk from ")
    assert {name for name in BOARD if name in remark} == absent | {target}
    assert one.pointer.verdict == "WARN"


def test_a_saturated_source_in_another_ccd_is_clipped_flagged_and_its_noise_kept(site):
    """By hand: of 43 ke- in a well of 20 ke-, c = 1e-3 leaves 20 e-; its variance adds c**2 times that."""
    target, other = (site.camera.detector(name) for name in BOARD[:2])
    part = replace(other, amplifiers=other.amplifiers[:1])
    image = np.full((1, *site.camera.image_shape), 43e3, np.float32)
    image[0, :, :10] = 1e3
    entries = Entries(np.array([3]), np.array([0]), np.float32([1e-3]), np.float32([0]))
    lit = Source(image, image, np.array([20e3], np.float32))
    found = seen({other.name: (lit, part, entries)}, target, site.camera.image_shape)
    assert found.places.tolist() == [3]
    there, here = other.amplifiers[0].data, target.amplifiers[3].data
    ny, nx = (min(a, b) for a, b in zip(there.shape, here.shape, strict=True))
    shift = there.x0 - here.x0  # the same raw column is read at the same time
    bright = np.s_[:ny, max(shift, 0) + 10 : nx + min(shift, 0)]
    assert np.allclose(found.charge[3][bright], 20.0)
    assert not found.charge[:3].any()
    counts = np.zeros((16, *site.camera.raw_shape), np.int32)
    unit = xr.Dataset({"gain": ("amplifier", np.ones(16))}, coords={"amplifier": [a.name for a in target.amplifiers]})
    none = np.zeros((16, 16))
    own = [f"{target.name}/{a.name}" for a in target.amplifiers]
    pairs = xr.Dataset(
        dict.fromkeys(("crosstalk", "crosstalk_quadratic"), (("amplifier", "source"), none)),
        coords={"amplifier": unit["amplifier"], "source": own, "detector": target.name},
    )
    raw, where = RawFrame("e1", target, 0.0, counts), Site(site.camera.image_shape)
    products = {"gain": unit, "crosstalk": pairs}
    without, frame = (correct(raw, where, products, IsrConfig(), others) for others in (None, found))
    assert np.allclose((without.image - frame.image)[3][bright], 20.0)
    assert np.allclose((frame.variance - without.variance)[3][bright], 0.043, rtol=1e-3)
    wells = {f"{name}{end}": ("amplifier", np.full(16, np.nan)) for name in LEVELS for end in ("", "_error")}
    wells["well_bloom"] = ("amplifier", np.linspace(1e5, 2e5, 16))
    full = xr.Dataset(wells, coords={"amplifier": unit["amplifier"]})
    assert np.isinf(source(raw, where, products).ceiling).all()
    assert np.array_equal(
        source(raw, where, products | {"saturation": full}).ceiling, np.float32(wells["well_bloom"][1])
    )
    flagged = frame.mask & ~without.mask & MASK_BITS["CROSSTALK"] > 0
    assert flagged[3][bright].all()
    assert not flagged[3][:ny, : 10 + min(shift, 0)].any()
    assert not flagged[[0, 1, 2, *range(4, 16)]].any()
