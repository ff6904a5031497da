"""Maps of fringes from the visits of a store, published, and subtracted from frames."""

import json

import numpy as np
import pytest
import xarray as xr
from making import run_command as run
from stores_of_monochromatic_flats import observatory, put_truth

from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.isr.fringes import _between, block_places, fit_sky, sky_blocks, sky_terms
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.fringe_frames import make_fringe_frames
from lsstcal_dask.pipeline.orders import order_differences
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.products.fringe_frames import FringeFrameConfig
from lsstcal_dask.products.synthesis import OUTPUTS
from lsstcal_dask.simulate.truth import amplifiers, at
from lsstcal_dask.storage.manifests import FrameRecord, publish_frames
from lsstcal_dask.storage.products import (
    Pointer,
    Template,
    create_template,
    list_products,
    open_product,
    publish,
    write_detector,
)
from lsstcal_dask.storage.raw import write_frame

CAMERA = load_camera("mini1")
(CCD,) = CAMERA.detectors
SKY, COUNT, BIN = 2e4, 14, 8
DARK, MOON = "2026-08-12", "2026-07-28"  # new moon, and full
PLAIN = Config().calibrate
MADE = FringeFrameConfig(block=BIN)


def pattern(period, angle):
    y, x = np.indices(CCD.shape)
    return np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)


FLAT = 1 + 0.02 * np.random.default_rng(2).normal(size=CCD.shape)
FIRST, SECOND = 0.01 * pattern(37.0, 0.3), 0.01 * pattern(29.0, 1.2)
RATIO = np.r_[np.random.default_rng(3).uniform(-1, 1, COUNT), 0.0]  # of the second pattern, visit by visit


def counts_of(k, random):
    """Raw counts of a visit: a tilted sky with fringes and a few objects, behind a flat."""
    y, x = np.indices(CCD.shape)
    sky = SKY * (1 + 0.1 * random.normal() + 2e-4 * x) * (1 + FIRST + RATIO[k] * SECOND)
    for j, i in random.integers(8, 120, (2, 2)):
        sky += 4e3 * np.exp(-((y - j) ** 2 + (x - i) ** 2) / (2 * 1.5**2))
    light = split(random.poisson(sky * FLAT).astype(np.float32), CCD, CAMERA)
    dark = split(observatory().dark_rate(CCD), CCD, CAMERA)
    out = np.full((len(CCD.amplifiers), *CAMERA.raw_shape), 1000.0)
    for amplifier, known in zip(CCD.amplifiers, amplifiers(observatory(), CCD), strict=True):
        a = CAMERA.amplifier_names.index(amplifier.name)
        electrons = light[a] + 30.5 * dark[a]
        out[a] += 4 * random.normal(size=out[a].shape)
        bias = at(observatory(), "bias", detector=CCD, amplifier=amplifier.name)
        out[a][amplifier.data.slices] += bias + electrons / known["gain"]
    return np.rint(out).astype(np.uint16)


def put_visits(store, day, count=COUNT, first=0):
    """Visits through y, eight minutes apart."""
    records = []
    for k in range(first, first + count):
        time = np.datetime64(f"{day}T01:00:00") + np.timedelta64(8 * (k - first), "m")
        name = f"MC_S_{day.replace('-', '')}_{k:06d}"
        header = {"exposure_type": "science", "time": f"{time}.000000", "exposure_time": 30.0, "dark_time": 30.5}
        header |= {"filter": "y", "wavelength": float("nan"), "photodiode": float("nan")}
        record = FrameRecord(name, CCD.name, "", "made", name, "", header)
        counts = counts_of(k % (COUNT + 1), np.random.default_rng([k, len(day)]))
        records.append(write_frame(store.url, record, counts, {}))
    publish_frames(store.url, records)
    return [record.exposure for record in records]


def put_flat(store):
    names = list(CAMERA.amplifier_names)
    coords = {"detector": (("detector",), [CCD.name]), "amplifier": (("amplifier",), names)}
    sizes = {"detector": 1, "amplifier": len(names), **dict(zip(("y", "x"), CAMERA.image_shape, strict=True))}
    create_template(store.url, "sky_flat-y", "truth", Template(OUTPUTS, sizes, coords))
    planes = split(FLAT.astype(np.float32), CCD, CAMERA)
    results = ((name, flat_of(plane)) for name, plane in zip(names, planes, strict=True))
    marker = write_detector(store.url, "sky_flat-y", "truth", (0, CCD.name), results)
    nothing = {"inputs": {}, "configuration": {}, "software": {}, "failed": {}, "remarks": []}
    about = {**nothing, "version": "truth", "detectors": {CCD.name: marker["hash"]}, "created": "2026-07-01T12:00:00"}
    publish(store.url, Pointer("sky_flat-y", "2026-07-01T12:00:00", **about))


def flat_of(plane):
    values = {"image": plane, "variance": 0 * plane, "mask": np.zeros(plane.shape, np.uint16)}
    return xr.Dataset({name: (("y", "x"), values[name]) for name in OUTPUTS})


@pytest.fixture(scope="module")
def compute():
    with cluster("threads", 2) as found:
        yield found


@pytest.fixture(scope="module")
def store(tmp_path_factory, compute):
    """Fourteen visits that are calibrated, and one beside them that is not."""
    found = create_store(tmp_path_factory.mktemp("sky") / "s", "mini1")
    put_truth(found, observatory())
    put_flat(found)
    for _, built in calibrate(found, put_visits(found, DARK, COUNT + 1)[:COUNT], PLAIN, compute):
        assert not built.errors
    return found


@pytest.fixture(scope="module")
def maps(store, compute):
    return {m: dict(make_fringe_frames(store, "y", m, MADE, compute)) for m in ("classical", "pca")}


def frame_of(store, built):
    product = open_product(store.url, "calibrated", built.pointer.version, chunked=False)
    product = product.sel(detector=CCD.name, amplifier=[one.name for one in CCD.amplifiers])
    planes = [product[name].values for name in ("image", "variance", "row_variance", "mask")]
    return Frame("e", CCD, *planes, "electron")


def left(frame):
    """Pulls of the blocks of a sky about a polynomial, and their rms relative to the sky without noise."""
    sky = sky_blocks(frame, BIN)
    y, x = block_places(CCD, sky.value.shape[1:], BIN)
    good = np.isfinite(sky.value)
    terms = sky_terms(y[good], x[good])
    smooth = fit_sky(sky.value[good], terms) @ terms
    return (sky.value[good] - smooth) / np.sqrt(sky.variance[good])


def test_maps_are_published_with_what_they_were_made_of(store, maps):
    sky, classical = (maps["classical"][name] for name in ("sky_blocks-y", "fringe_frame-y"))
    assert sky.new
    assert not maps["pca"]["sky_blocks-y"].new  # the same sky
    assert classical.pointer.verdict == "PASS"
    assert len(classical.pointer.inputs["exposures"]) == COUNT
    assert classical.pointer.inputs["upstream"]["sky"]["sky_blocks-y"].startswith(sky.pointer.version)
    assert any("is not calibrated with a sky_flat-y" in one for one in classical.pointer.remarks)
    assert any("by one CCD" in one for one in classical.pointer.remarks)
    pca = maps["pca"]["fringe_modes-y"].pointer
    assert any("2 maps" in one for one in pca.remarks)
    assert pca.verdict == "PASS"


def test_a_map_is_the_mean_pattern_within_its_error(store, maps):
    """The median over frames of which each has the first pattern, and the second in another share."""
    product = open_product(store.url, "fringe_frame-y", maps["classical"]["fringe_frame-y"].pointer.version)
    own = product.isel(detector=0).load()
    true = split((FIRST + np.median(RATIO[:COUNT]) * SECOND).astype(np.float32), CCD, CAMERA)
    true = true.reshape(len(true), 64 // BIN, BIN, 64 // BIN, BIN).mean(axis=(2, 4))
    found, error = own["fringe_map"].values[0], np.sqrt(own["fringe_map_variance"].values[0])
    known = np.isfinite(found)
    assert known.mean() > 0.9
    # photons, and the scatter of the second pattern in the median of 14
    scatter = np.hypot(np.median(error[known]), np.sqrt(np.pi / 2 / COUNT) * np.std(RATIO) * np.std(SECOND))
    assert np.std(found[known] - true[known]) < 1.2 * scatter
    assert np.std(true) > 3 * scatter
    size = own["fringe_amplitude"].values[:, 0, 0]
    assert np.mean(size) == pytest.approx(1, abs=0.1)


def test_calibrate_subtracts_the_maps_that_are_chosen(store, maps, compute):
    """Two maps leave noise, one leaves the second pattern, none leaves both; a fifteenth visit is no part of them."""
    name = f"MC_S_20260812_{COUNT:06d}"
    odd = "MC_S_20260812_000000"
    rms = {}
    for method in ("none", "classical", "pca"):
        config = PLAIN.model_copy(update={"fringes": method})
        for exposure, built in calibrate(store, [name, odd], config, compute):
            assert not built.errors
            rms[method, exposure] = np.std(left(frame_of(store, built)))
            assert any("times the maps taken out" in one for one in built.pointer.remarks) is (method != "none")
    number = (128 // BIN) ** 2
    assert rms["pca", name] == pytest.approx(1, abs=4 / np.sqrt(2 * number) + 0.05)  # and those of a few faint wings
    assert rms["none", name] > 5
    assert rms["classical", odd] > 1.3 * rms["pca", odd]
    orders = order_differences(store.url, built.pointer, CCD)
    assert all(np.isfinite(one["order_physical"]) for one in orders.values())


def test_what_is_subtracted_is_part_of_the_variance(store, maps, compute):
    config = PLAIN.model_copy(update={"fringes": "pca"})
    name = "MC_S_20260812_000001"
    before, after = (frame_of(store, dict(calibrate(store, [name], one, compute))[name]) for one in (PLAIN, config))
    product = open_product(store.url, "fringe_modes-y", maps["pca"]["fringe_modes-y"].pointer.version)
    size = product["fringe_amplitude"].sel(exposure=name).isel(detector=0, amplifier=0).values
    noise = size**2 @ product["fringe_map_variance"].median(["detector", "amplifier", "block_y", "block_x"]).values
    noise = float(noise) * np.median(after.image[after.mask == 0]) ** 2
    spread = np.sum(_between(64, BIN) ** 2, axis=1)
    grown = np.median((after.variance - before.variance)[before.mask == 0])
    assert grown == pytest.approx(noise * np.median(np.outer(spread, spread)), rel=0.15)  # and of the shares
    assert np.nanmedian(np.abs(after.image - before.image)) > 0.3 * SKY * np.std(FIRST)


def test_without_the_flat_of_the_sky_there_is_nothing_to_subtract_from(store, maps, compute):
    config = PLAIN.model_copy(update={"fringes": "pca"})
    name = "MC_S_20260812_000002"
    built = dict(calibrate(store, [name], config, compute, skip=["sky_flat"]))[name]
    assert "leave them out too" in built.errors[0]
    skipped = dict(calibrate(store, [name], config, compute, skip=["sky_flat", "fringes"]))[name]
    assert not skipped.errors


def test_a_map_that_was_never_made_is_left_out_with_a_remark(tmp_path, compute):
    found = create_store(tmp_path / "s", "mini1")
    put_truth(found, observatory())
    put_flat(found)
    (name,) = put_visits(found, DARK, 1)
    built = dict(calibrate(found, [name], PLAIN.model_copy(update={"fringes": "pca"}), compute))[name]
    assert any("there is no fringe_modes-y" in one for one in built.pointer.remarks)


@pytest.mark.parametrize(
    ("day", "why"),
    [(MOON, "with the moon above the horizon"), (DARK, "is not calibrated with a sky_flat-y and nothing after it")],
)
def test_bad_skies_are_refused(tmp_path, compute, day, why):
    found = create_store(tmp_path / "s", "mini1")
    put_visits(found, day, 10)
    with pytest.raises(InsufficientInputs, match=why):
        list(make_fringe_frames(found, "y", "pca", MADE, compute))
    with pytest.raises(InsufficientInputs, match="no science exposures through filter z"):
        list(make_fringe_frames(found, "z", "pca", MADE, compute))


def test_few_frames_are_refused(store, compute, capsys):
    names = [f"MC_S_20260812_{k:06d}" for k in range(9)]
    with pytest.raises(InsufficientInputs, match="9 frames of a dark, empty sky"):
        list(make_fringe_frames(store, "y", "classical", MADE, compute, exposures=names))
    status, said = run(capsys, "fringes", store.url, "--method", "pca", "--filter", "y", "--exposure", names[0])
    assert status == 1
    assert "give at least 10" in said.err
    assert run(capsys, "fringes", store.url, "--method", "pca")[0] == 2


def test_the_command_publishes_maps(store, maps, capsys):
    """What was made is known again; frames that are subtracted from since are no frames of it."""
    status, said = run(capsys, "fringes", store.url, "--method", "classical", "--filter", "y", "--json")
    assert status == 0
    rows = json.loads(said.out)["products"]
    assert [row["product"] for row in rows] == ["sky_blocks-y", "fringe_frame-y"]
    used = {p.version for p in list_products(store.url, "calibrated") if "fringes" in p.inputs["upstream"][CCD.name]}
    (sky,) = [p for p in list_products(store.url, "sky_blocks-y") if p.version == rows[0]["version"]]
    assert used
    assert not used & {text.partition("/")[0] for text in sky.inputs["upstream"]["calibrated"].values()}


def test_what_was_made_is_read_again_as_it_was_written(store, maps, capsys):
    status, said = run(capsys, "ls", store.url, "--check", "--json")
    assert status == 0
    assert all(name in said.out for name in ("sky_blocks-y", "fringe_frame-y", "fringe_modes-y"))
    assert "PASS" in run(capsys, "verify", store.url, "--product", "calibrated")[1].out
