"""Synthetic flats: pixels by hand, numpy on the opened cube, what is missing or unusable, graphs that build nothing."""

import time
from dataclasses import dataclass, replace

import dask
import numpy as np
import pytest
from cubes_of_known_response import FLOOR, FULL, SLOPE, make_cube, response, true_flat

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.synthesis import CubeOpener, Source, scan_of, synthetic_flats
from lsstcal_dask.products.synthesis import SynthesisConfig, Task, synthesis_amplifiers, synthesize
from lsstcal_dask.products.weights import Scan, WeightsConfig, make_weights
from lsstcal_dask.storage.coding import EXCEPTION, FORMS
from lsstcal_dask.storage.cubes import open_cube, read_cube
from lsstcal_dask.variables import MASK_BITS, validate

NM = np.arange(600.0, 700.1, 10)
SOME = [0, 4]  # detectors that numpy works out
EXACT = WeightsConfig(negligible=0, tolerance=1e-7)


def spectra():
    nm = np.linspace(600, 700, 501)
    lines = np.array([622.2, 671.3])
    return [
        Spectrum(nm, nm, "warm"),
        Spectrum(nm, 1e3 / nm, "cold"),
        Spectrum(nm, 0 * nm + 0.01, "sky", lines, np.array([1.0, 3.0])),
    ]


def passband() -> Surface:
    """Filter whose edges move by 6 nm over the little focal plane."""
    nm = np.linspace(600, 700, 201)
    edge = np.clip((nm - 610) / 5, 0, 1) * np.clip((690 - nm) / 5, 0, 1)
    move = np.gradient(edge, nm)
    powers, terms = np.array([(0, 0), (2, 0), (0, 2), (1, 0)]), np.stack([edge, -4 * move, -4 * move, move])
    return Surface("r", nm, powers, 8.0, terms, np.eye(4), 0 * nm)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store whose cube lacks nothing."""
    return make_cube(tmp_path_factory.mktemp("whole"), "mini9", NM)


def task_of(store, *weights, block=8):
    """Weights and what else a CCD needs."""
    weights = weights or (make_weights(spectra()[0], None, scan_of(read_cube(store.url, "c"), store.camera)),)
    opener = CubeOpener(store.url, "c", 1, block)
    return Task(weights, store.camera, store.camera.amplifier_names, opener, SynthesisConfig())


def amplifiers_of(task, i):
    """Results of the amplifiers of a CCD by name."""
    detector = task.camera.detectors[i]
    return dict(synthesis_amplifiers(task.open_slices(detector.name), detector, task))


@dataclass
class Made:
    """Codes held in memory, as `storage.cubes.CubeReader` streams them."""

    codes: np.ndarray  # (k, amplifier, y, x)
    scale: np.ndarray
    offset: np.ndarray
    odd: dict
    block: int = 2

    def __post_init__(self):
        self.shape = self.codes.shape[2:]
        self.level = 0 * self.scale
        self.variance_slope, self.variance_floor = SLOPE + 0 * self.scale, FLOOR + 0 * self.scale
        self.repeats = FULL + 0 * self.scale

    def blocks(self, amplifier, which=None):
        places = which[np.isfinite(self.scale[which, amplifier])]
        for start in range(0, len(places), self.block):
            own = places[start : start + self.block]
            yield own, np.ascontiguousarray(self.codes[own, amplifier])

    def references(self, amplifier, which=None):
        return iter(())

    def exceptions(self, k, amplifier=None):
        found = self.odd.get(k, np.zeros(0, EXCEPTION))
        return found[found["amplifier"] == amplifier]

    def mask(self):
        return np.zeros(self.codes.shape[1:], np.uint16)


def by_hand(codes, odd=None, scale=0.01, config=None):
    """Flats of the first amplifier of mini1 with weights 1/4, 1/2, 1/4."""
    camera = load_camera("mini1")
    full = np.zeros((3, 4, *camera.image_shape), np.int16)
    full[:, :, : codes.shape[1], : codes.shape[2]] = codes[:, None]
    nm = np.array([500.0, 501, 502])
    weights = make_weights(Spectrum(nm, np.ones(3)), None, Scan(nm, np.ones(3), np.ones(3), np.zeros(1), np.zeros(1)))
    one = np.ones((3, 4))
    slices = Made(full, scale * one, 1 + 0 * one, odd or {})
    task = Task((weights,), camera, camera.amplifier_names, lambda name: slices, config or SynthesisConfig())
    return dict(synthesis_amplifiers(slices, camera.detectors[0], task))[camera.amplifier_names[0]].isel(spectrum=0)


def test_a_pixel_by_hand():
    found = by_hand(np.array([[[10, 0]], [[-20, 0]], [[40, 0]]]))
    # values 1.1, 0.8, 1.4: 0.275 + 0.4 + 0.35
    assert found["image"].values[0, :2].tolist() == pytest.approx([1.025, 1.0])
    variance = SLOPE * (1.1 / 16 + 0.8 / 4 + 1.4 / 16) + FLOOR * 6 / 16
    assert found["variance"].values[0, 0] == pytest.approx(variance, rel=1e-6)
    assert not found["mask"].values.any()


def test_pixels_that_are_not_as_the_codes_say_by_hand():
    def one(y, x, repeats, bits, change):
        return np.array([(0, y, x, repeats, bits, change)], EXCEPTION)

    sun, ray = MASK_BITS["SATURATED"], MASK_BITS["COSMIC_RAY"]
    odd = {
        0: np.concatenate([one(0, 0, 4, 0, 0.2), one(0, 1, 2, ray, 0.0)]),
        1: one(1, 0, 0, sun, np.nan),
        2: np.concatenate([one(0, 2, 4, sun, 0.5), one(1, 0, 0, sun, np.nan)]),
    }
    codes = np.array([np.full((2, 3), n) for n in (10, -20, 40)])
    found = by_hand(codes, odd, config=SynthesisConfig(lost=0.3))
    image, variance, mask = (found[v].values for v in ("image", "variance", "mask"))
    assert image[0, 0] == pytest.approx(1.025 + 0.05)
    assert mask[0, 0] == 0
    assert (image[0, 1], mask[0, 1]) == (pytest.approx(1.025), ray)
    few = 1 / 16 * (SLOPE + FLOOR)  # one slice of half the exposures: once more its variance at response 1
    assert variance[0, 1] == pytest.approx(variance[1, 1] + few, rel=1e-5)
    assert image[0, 2] == pytest.approx((0.275 + 0.4) / 0.75)  # the last slice saturated, whatever its value
    assert mask[0, 2] == MASK_BITS["INTERPOLATED"]
    assert np.isnan(image[1, 0])
    assert np.isnan(variance[1, 0])
    assert mask[1, 0] & MASK_BITS["NO_DATA"]


def naive(store, sources, weights_config=EXACT):
    """Flats and variances in float64 from the opened cube, the weights evaluated in every pixel."""
    cube = open_cube(store.url, "c", chunked=False)
    scan = scan_of(read_cube(store.url, "c"), store.camera)
    flat = cube["flat"].isel(detector=SOME).values.astype(float)
    found = []
    for source in sources:
        weights = make_weights(source.spectrum, source.passband, scan, source.atmosphere, weights_config)
        w = np.zeros((*flat.shape[:2], *flat.shape[3:], len(NM)))
        for i, detector in enumerate(store.camera.detectors[i] for i in SOME):
            for amplifier in detector.amplifiers:
                y, x = np.indices(amplifier.data.shape)
                place = ccd_to_focal(detector, *amplifier_to_ccd(amplifier, x, y))
                ny, nx = amplifier.data.shape
                w[i, store.camera.amplifier_names.index(amplifier.name), :ny, :nx] = weights.at(*place)
        w = np.moveaxis(w, -1, 2)
        found.append((np.sum(w * flat, axis=2), np.sum(w**2 * (SLOPE * flat + FLOOR), axis=2)))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_numpy_in_every_pixel(tmp_path, form):
    """Weights of an amplifier are good to 1e-7 here; sums of 11 roundings of float32 to 12 u, 7e-7."""
    store = make_cube(tmp_path, "mini9", NM, form=form, only=SOME)
    sources = [Source(s, passband()) for s in spectra()[1:]]
    flats = synthetic_flats(store, "c", sources, SynthesisConfig(weights=EXACT))
    assert flats["image"].dims == ("spectrum", "detector", "amplifier", "y", "x")
    validate(flats)
    found = dask.compute(flats.isel(detector=SOME))[0]
    for i, (image, variance) in enumerate(naive(store, sources)):
        np.testing.assert_allclose(found["image"].values[i], image, rtol=1e-6)
        known = np.isfinite(image)
        # the weights of the middle of an amplifier stand for all of it: the edges of the filter move by 1 nm within
        ratio = found["variance"].values[i][known] / variance[known]
        assert abs(ratio.mean() - 1) < 0.02
        assert np.array_equal(np.isnan(image), (found["mask"].values[i] & MASK_BITS["NO_DATA"]) != 0)


def test_the_mean_of_the_focal_plane_is_one(whole):
    """Of 9 x 16 x 8192 pixels of 1 %, tilts of the amplifiers of 3 % and a little falling out of step: 2 %."""
    flats = synthetic_flats(whole, "c", [Source(s) for s in spectra()]).compute()
    np.testing.assert_allclose(np.nanmean(flats["image"], axis=(1, 2, 3, 4)), 1, atol=0.02)


def test_bits_depend_on_neither_blocks_nor_other_flats_nor_chunks(whole):
    cube = read_cube(whole.url, "c")
    weights = [make_weights(s, passband(), scan_of(cube, whole.camera)) for s in spectra()]

    def made(weights, block):
        opener = CubeOpener(whole.url, "c", 1, block)
        return synthesize(weights, whole.camera, cube.layout.amplifiers, opener)["image"].isel(detector=SOME)

    all_ = made(weights, 8).values
    assert made(weights, 1).values.tobytes() == all_.tobytes()
    assert made(weights[1:2], 3).values.tobytes() == all_[1:2].tobytes()
    assert made(weights, 5).chunk({"detector": 1, "y": 20}).values.tobytes() == all_.tobytes()
    with dask.config.set(scheduler="synchronous"):
        assert made(weights, 8).values.tobytes() == all_.tobytes()


def test_an_error_that_all_wavelengths_share_is_a_mode_and_no_variance(whole, monkeypatch):
    """One sigma of it, put into the slices, changes the flat by the mode; to the second order in an error of 1 %."""
    cube = read_cube(whole.url, "c")
    common = 0.01 * (NM - 640) / 50
    scan = replace(scan_of(cube, whole.camera), common=common)
    weights = make_weights(spectra()[0], None, scan, config=EXACT)
    shifted = make_weights(spectra()[0], None, replace(scan, response=scan.response * (1 + common)), config=EXACT)
    opener = CubeOpener(whole.url, "c", 1)
    task = Task((weights,), whole.camera, whole.camera.amplifier_names, opener, SynthesisConfig(modes=True), common)
    plain = replace(task, config=SynthesisConfig())
    name = whole.camera.amplifier_names[1]
    found, before = (amplifiers_of(one, 4)[name].isel(spectrum=0) for one in (task, plain))
    np.testing.assert_array_equal(found["variance"], before["variance"])
    np.testing.assert_array_equal(found["image"], before["image"])
    reader = opener(whole.camera.detectors[4].name)
    wrong = sum((shifted.values[0, k] * (1 + common[k])) * reader.values(k, 1).astype(float) for k in range(len(NM)))
    np.testing.assert_allclose(found["common_mode"], wrong - found["image"], atol=0.5e-4)
    assert 1e-4 < np.abs(found["common_mode"]).max() < 0.01
    monkeypatch.setattr("lsstcal_dask.pipeline.synthesis.scan_of", lambda *_: scan)
    lazy = synthetic_flats(whole, "c", [Source(spectra()[0])], SynthesisConfig(weights=EXACT, modes=True))
    own = lazy["common_mode"].isel(spectrum=0, detector=4).sel(amplifier=name).values
    np.testing.assert_array_equal(own, found["common_mode"])


def test_noise_is_as_the_variance_says(tmp_path):
    """63,000 pixels: chi2 per pixel is 1 within 4 sqrt(2 / n) and the 2 % of the weights of the middle."""
    store = make_cube(tmp_path, "mini1", NM, noise=True)
    quiet = make_cube(tmp_path / "quiet", "mini1", NM)
    noisy, truth = (synthetic_flats(s, "c", [Source(spectra()[0])]).compute() for s in (store, quiet))
    pull = ((noisy["image"] - truth["image"]) / np.sqrt(noisy["variance"])).values
    assert abs(np.mean(pull**2) - 1) < 4 * np.sqrt(2 / pull.size) + 0.01  # rounding of the codes: 0.5 %


def test_a_missing_slice_is_worked_round_and_a_missing_ccd_is_nan(tmp_path, whole):
    def spoil(detector, k, one):
        if detector.id == 0 or (detector.id == 1 and k == 5):
            return None
        if detector.id == 2 and 2 < k < 8:
            one.value[3], one.mask[3] = np.nan, MASK_BITS["NO_DATA"]
        return one

    store = make_cube(tmp_path, "mini9", NM, change=spoil, only=[0, 1, 2])
    assert [d.id for d in store.camera.detectors[:3]] == [0, 1, 2]
    task, good = task_of(store), task_of(whole)
    assert all(np.isnan(one[v]).all() for one in amplifiers_of(task, 0).values() for v in ("image", "variance"))
    found, truth = amplifiers_of(task, 1), amplifiers_of(good, 1)
    # A line between its neighbours stands for the slice in the middle, where the response bends by 0.3 (10 / 300)**2
    # of 0.8. Codes are rounded to an eighth of the noise, of this slice and of the others. It has 10 % of the light.
    bend, rounding = 0.3 / 0.8 * (10 / 300) ** 2, np.sqrt(SLOPE / 0.8) / 8
    for name, one in found.items():
        assert 0 < np.nanmax(np.abs(one["image"] / truth[name]["image"] - 1)) < 0.11 * (bend + 2 * rounding)
    told = [one.attrs.get("remarks", []) for one in found.values()]  # of the CCD, once
    assert told == [
        [
            "the CCD has no slices at 650.0 nm, where 10.0% of the light is: those nearby stand for them: take these "
            "flats again"
        ],
        *[[]] * (len(told) - 1),
    ]
    assert not any(one.attrs.get("remarks") for one in truth.values())
    bad = store.camera.amplifier_names[3]
    third = amplifiers_of(task, 2)
    assert np.isnan(third[bad]["image"]).all()
    assert third[bad].attrs["remarks"] == ["spectrum warm: 0.6 of its light lies in gaps of the cube, 620.0-680.0 nm: "
                                           "take these wavelengths again"]  # fmt: skip
    assert sum(bool(one.attrs.get("remarks")) for one in third.values()) == 1
    assert np.isfinite(third[store.camera.amplifier_names[2]]["image"]).any()


def test_a_graph_is_small_and_builds_nothing(no_compute):
    """3024 amplifiers and 800 wavelengths; nothing is opened before a task runs."""
    camera = load_camera("lsstcam")
    camera = replace(camera, detectors=tuple(d for d in camera.detectors if len(d.amplifiers) == 16)[:189])
    nm = np.linspace(350.0, 1100, 800)
    scan = Scan(nm, response(nm), np.ones(800), np.zeros(1), np.zeros(1))
    weights = [make_weights(Spectrum(nm, nm, "warm"), None, scan)]

    def refuse(name):
        raise AssertionError("opened while a graph was built")

    start = time.perf_counter()
    flats = synthesize(weights, camera, camera.amplifier_names, refuse)
    seconds = time.perf_counter() - start
    assert len(flats.__dask_graph__()) < 1000
    assert seconds < 0.5  # a fifth of it on a machine that is not busy: `benchmarks/bench_synthesis.py`
    assert flats["image"].shape == (1, 189, 16, *camera.image_shape)
    assert flats["image"].data.numblocks == (1, 189, 1, 1, 1)


def test_one_ccd_is_read_where_one_is_asked_for(whole):
    cube, opened = read_cube(whole.url, "c"), []

    def note(name):
        opened.append(name)
        return CubeOpener(whole.url, "c", 1)(name)

    weights = [make_weights(spectra()[0], None, scan_of(cube, whole.camera))]
    flats = synthesize(weights, whole.camera, cube.layout.amplifiers, note, SynthesisConfig(variance=False))
    assert set(flats.data_vars) == {"image", "mask"}
    flats["image"].isel(detector=[5]).compute(scheduler="synchronous")
    assert opened == [whole.camera.detectors[5].name]


def test_weights_of_another_cube_are_refused(whole):
    nm = NM[::2]
    scan = Scan(nm, response(nm), np.ones(len(nm)), np.zeros(1), np.zeros(1))
    with pytest.raises(InconsistentGeometry, match="weights and cube do not belong together"):
        amplifiers_of(task_of(whole, make_weights(spectra()[0], None, scan)), 0)


def test_the_response_of_a_test_cube_is_what_it_says():
    camera = load_camera("mini9")
    mean = np.mean([true_flat(camera, d, 650.0).mean() for d in camera.detectors])
    assert mean == pytest.approx(response(650.0), rel=1e-3)
