"""Acceptance of cubes and flats on made-up numbers: values by hand, and both sides of their limits."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.cubecheck import _scatter
from lsstcal_dask.pipeline.verify import _with_mean
from lsstcal_dask.products.monochromatic import Repeat, combine_repeats, repeat_chi2
from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.acceptance import judge, measure, metrics_for
from lsstcal_dask.verify.flats import metrics_of
from lsstcal_dask.verify.metric import ANY, Absent, Case, each

E2V = load_camera("mini9").detector("R22_S11")
NAMES = [a.name for a in E2V.amplifiers]
N, SHAPE = len(NAMES), E2V.amplifiers[0].data.shape
SLICES = 5


def value(product, name, dataset, noted=None):
    """What a metric finds, and its verdict if the whole camera were like this."""
    (metric,) = [one for one in metrics_of(product) if one.name == name]
    case = Case(E2V, {product: dataset}, {product: {a: dict(noted or {}) for a in NAMES}})
    with np.errstate(all="ignore"):
        found = metric.measure(case)
    return found, each(metric, {E2V.name: found}, {E2V.name: NAMES}).verdict


def cube(**changes):
    columns = {"signal_to_noise": 1200.0, "chi2": 1.0, "photodiode_scatter": 2e-4, "wavelength_offset": 0.02}
    found = {key: np.full((N, SLICES), number) for key, number in columns.items()}
    found["present"] = np.ones((N, SLICES), bool)
    for key, (where, number) in changes.items():
        found[key][..., where] = number
    data = {key: (("amplifier", "wavelength"), values) for key, values in found.items()}
    return xr.Dataset({**data, "masked": ("amplifier", np.full(N, 0.002))}, coords={"amplifier": NAMES})


ALL = slice(None)


@pytest.mark.parametrize(
    ("metric", "changes", "expected", "verdict"),
    [
        ("slices missing", {}, 0.0, "PASS"),
        ("slices missing", {"present": (2, False)}, 0.2, "WARN"),
        ("slices missing", {"present": (slice(3), False)}, 0.6, "FAIL"),
        ("signal to noise", {}, 1200, "PASS"),
        ("signal to noise", {"signal_to_noise": (ALL, 800)}, 800, "WARN"),
        ("signal to noise", {"signal_to_noise": (ALL, 4000)}, 4000, "WARN"),
        ("signal to noise", {"signal_to_noise": (ALL, 50)}, 50, "FAIL"),
        ("signal to noise", {"signal_to_noise": (ALL, 2e4)}, 2e4, "FAIL"),
        ("chi2 of repeats", {}, 1.0, "PASS"),
        ("chi2 of repeats", {"chi2": (ALL, 1.2)}, 1.2, "WARN"),
        ("chi2 of repeats", {"chi2": (ALL, 0.8)}, 0.8, "WARN"),
        ("chi2 of repeats", {"chi2": (ALL, 3.0)}, 3.0, "FAIL"),
        ("chi2 of repeats", {"chi2": (ALL, 0.3)}, 0.3, "FAIL"),
        ("worst chi2 of repeats", {"chi2": (1, 6.0)}, 6.0, "FAIL"),
        ("worst chi2 of repeats", {"chi2": (1, 0.1)}, 0.1, "FAIL"),
        ("worst chi2 of repeats", {"chi2": (1, 1.5)}, 1.5, "WARN"),
        ("photodiode scatter", {}, 2e-4, "PASS"),
        ("photodiode scatter", {"photodiode_scatter": (ALL, 5e-3)}, 5e-3, "WARN"),
        ("photodiode scatter", {"photodiode_scatter": (ALL, 0.0)}, 0.0, "WARN"),
        ("photodiode scatter", {"photodiode_scatter": (ALL, 0.04)}, 0.04, "FAIL"),
        ("wavelength off nominal", {}, 0.02, "PASS"),
        ("wavelength off nominal", {"wavelength_offset": (3, -0.25)}, -0.25, "WARN"),
        ("wavelength off nominal", {"wavelength_offset": (3, -0.4)}, -0.4, "FAIL"),
        ("wavelength off nominal", {"wavelength_offset": (3, 0.4)}, 0.4, "FAIL"),
        ("masked", {}, 0.002, "PASS"),
    ],
)
def test_a_cube(metric, changes, expected, verdict):
    found, says = value("cube flats", metric, cube(**changes))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert says == verdict


def test_single_flats_have_no_repeats():
    with pytest.raises(Absent, match="single flats only"):
        value("cube flats", "chi2 of repeats", cube(chi2=(ALL, np.nan)))
    assert np.isnan(_scatter({"a": 1.0}))
    assert _scatter({"a": 0.99, "b": 1.01}) == pytest.approx(0.02 / np.sqrt(2))


def flat(level=1.0, error=1e-4, masked=0, bits=0, **attrs):
    image = np.full((N, *SHAPE), level, np.float32)
    mask = np.zeros(image.shape, np.uint16)
    mask.reshape(N, -1)[:, :masked] = bits
    planes = {"image": image, "variance": np.full(image.shape, error**2, np.float32), "mask": mask}
    data = {key: (("amplifier", "y", "x"), values) for key, values in planes.items()}
    return xr.Dataset(data, coords={"amplifier": NAMES}, attrs=attrs)


SIZE = SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize(
    ("metric", "dataset", "noted", "expected", "verdict"),
    [
        ("mean", flat(), {"focal_plane_mean": 1.001}, 1.001, "PASS"),
        ("mean", flat(), {"focal_plane_mean": 1.05}, 1.05, "WARN"),
        ("mean", flat(), {"focal_plane_mean": 0.95}, 0.95, "WARN"),
        ("mean", flat(), {"focal_plane_mean": 1.2}, 1.2, "FAIL"),
        ("mean", flat(), {"focal_plane_mean": 0.8}, 0.8, "FAIL"),
        ("masked", flat(masked=SIZE // 4, bits=MASK_BITS["EDGE"]), None, 0.25, "WARN"),
        ("unusable", flat(masked=SIZE // 4, bits=MASK_BITS["EDGE"]), None, 0.0, "PASS"),
        ("unusable", flat(masked=SIZE // 32, bits=MASK_BITS["BAD"]), None, 1 / 32, "WARN"),
        ("unusable", flat(masked=SIZE // 4, bits=MASK_BITS["BAD"]), None, 0.25, "FAIL"),
        ("noise", flat(), None, 1e-4, "PASS"),
        ("noise", flat(error=3e-3), None, 3e-3, "WARN"),
        ("noise", flat(error=5e-6), None, 5e-6, "WARN"),
        ("noise", flat(error=0.05), None, 0.05, "FAIL"),
        ("noise", flat(error=1e-7), None, 1e-7, "FAIL"),
        ("scale error", flat(scale=2.0, scale_error=0.002), None, 0.001, "PASS"),
        ("scale error", flat(scale=2.0, scale_error=0.1), None, 0.05, "WARN"),
        ("compression error", flat(), {"compression_error": 1e-3}, 1e-3, "PASS"),
        ("compression error", flat(), {"compression_error": 0.02}, 0.02, "WARN"),
        ("chi2 of the sky's spectrum", flat(sky_chi2=1.1), None, 1.1, "PASS"),
        ("chi2 of the sky's spectrum", flat(sky_chi2=2.0), None, 2.0, "WARN"),
        ("chi2 of the sky's spectrum", flat(sky_chi2=0.1), None, 0.1, "FAIL"),
        ("age of the sky's spectrum", flat(sky_age_min=3.0), None, 3.0, "PASS"),
        ("age of the sky's spectrum", flat(sky_age_min=45.0), None, 45.0, "WARN"),
    ],
)
def test_a_flat(metric, dataset, noted, expected, verdict):
    found, says = value("sky_flat-r", metric, dataset, noted)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert says == verdict


@pytest.mark.parametrize(
    ("metric", "level", "part", "attrs", "expected", "verdict"),
    [
        ("dusty", 0.99, 0.01, {}, 0.01, "PASS"),
        ("dusty", 0.99, 0.1, {}, 0.1, "WARN"),
        ("deepest dust", 0.9, 0.01, {}, -0.1, "WARN"),
        ("deepest dust", 1.2, 0.01, {}, 0.2, "FAIL"),
        ("deepest dust", 0.98, 0.01, {}, -0.02, "PASS"),
        ("filter drift", 1.0, 0.0, {"drift_nm": 0.6}, 0.6, "WARN"),
        ("filter drift", 1.0, 0.0, {"drift_nm": -0.6}, -0.6, "WARN"),
        ("filter drift", 1.0, 0.0, {"drift_nm": -3.0}, -3.0, "FAIL"),
    ],
)
def test_dust(metric, level, part, attrs, expected, verdict):
    dataset = flat(**attrs)
    count = round(part * SIZE)
    dataset["image"].values.reshape(N, -1)[:, :count] = level
    found, says = value("contamination-r", metric, dataset)
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert says == verdict


@pytest.mark.parametrize(("silicon", "verdict"), [(100.0, "PASS"), (60.0, "WARN"), (30.0, "FAIL"), (400.0, "FAIL")])
def test_layers(silicon, verdict):
    dataset = xr.Dataset({"silicon_thickness": (("amplifier", "y", "x"), np.full((N, 4, 4), silicon))})
    found, says = value("fringes", "silicon", dataset)
    np.testing.assert_allclose(found, silicon)
    assert says == verdict


def test_what_is_not_recorded_is_not_measured():
    found = measure(Case(E2V, {"sky_flat-r": flat()}, {}), ["sky_flat-r"])
    assert found["sky_flat-r: age of the sky's spectrum"] == "sky_flat-r has no record of sky_age_min"
    results, without = judge({E2V.name: found}, {E2V.name: NAMES}, ["sky_flat-r"])
    assert "sky_flat-r: scale error" in without
    assert {one.metric.name for one in results} == {"masked", "unusable", "noise"}
    assert metrics_of("bias") == metrics_of("broadband-r") == ()


def test_every_metric_has_limits_prose_and_a_source():
    kinds = ("cube c", "sky_flat-r", "photometric_flat-r", "contamination-r", "fringes")
    found = [metric for metric in metrics_for(kinds) if metric.product in kinds]
    assert len({metric.key for metric in found}) == len(found) == 26
    for metric in found:
        assert metric.prose
        assert metric.source
        assert metric.limits != ANY
        assert metric.limits[0] <= metric.aim[0] <= metric.aim[1] <= metric.limits[1]


def test_the_mean_of_the_focal_plane_counts_pixels():
    noted = {"A": {"C0": {"mean": 1.0, "pixels": 30.0}, "C1": {}}, "B": {"C0": {"mean": 2.0, "pixels": 10.0}}}
    found = _with_mean(noted)
    assert found["A"]["C0"]["focal_plane_mean"] == found["B"]["C0"]["focal_plane_mean"] == 1.25
    assert found["A"]["C1"] == {}
    assert _with_mean({"A": {"C0": {}}}) == {"A": {"C0": {}}}


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (np.sqrt(2.0), 2.0)])
def test_chi2_of_repeats_is_that_of_their_noise(factor, expected):
    """Noise of twice the variance that the model says has twice the chi2; a lamp of other power changes nothing."""
    rng = np.random.default_rng(5)
    repeats, shape, light = [], (2, 300, 300), 40_000.0
    pattern = 1 + 0.01 * rng.standard_normal(shape)
    for k, power in enumerate((1.0, 1.02, 0.97)):
        level = light * power
        image = level * pattern + factor * np.sqrt(level * pattern + 25) * rng.standard_normal(shape)
        mask = np.zeros(shape, np.uint16)
        mask[0, :20] = MASK_BITS["BAD"]
        repeats.append(Repeat(f"E{k}", image.astype(np.float32), mask, level, np.full(2, level), np.full(2, 25.0), 0.0))
    made = combine_repeats(repeats, [])
    found = repeat_chi2(repeats, made.value, made.mask)
    np.testing.assert_allclose(found, expected, rtol=4 * np.sqrt(2 / (2 * 2800)))
    assert np.isnan(repeat_chi2(repeats[:1], made.value, made.mask)).all()


def fringe_maps(size, modes=2, frames=30, noise=0.0):
    """Maps with fringes of a relative rms ``size`` in every frame, and noise in all of them."""
    x = 2 * np.pi * np.arange(400.0) / 400
    waves = np.stack([np.sin(9 * x), np.cos(9 * x)])[:modes].reshape(modes, 20, 20) * np.sqrt(2 / modes)
    shape = (N, modes, 20, 20)
    rows = ("amplifier", "mode", "block_y", "block_x")
    random = np.random.default_rng(1)
    maps = waves + random.normal(0, noise, shape)
    counts = np.full((N, 20, 20), frames)
    counts[:, :3] = 0  # beyond the amplifier
    amplitude = np.full((frames, N, modes), size)
    return xr.Dataset(
        {
            "fringe_map": (rows, maps),
            "fringe_map_variance": (rows, np.full(shape, noise**2)),
            "fringe_frames": (("amplifier", "block_y", "block_x"), counts),
            "fringe_amplitude": (("exposure", "amplifier", "mode"), amplitude),
        },
        coords={"amplifier": NAMES},
    )


@pytest.mark.parametrize(
    ("metric", "dataset", "expected", "verdict"),
    [
        ("frames", fringe_maps(1e-3), 30, "PASS"),
        ("frames", fringe_maps(1e-3, frames=12), 12, "WARN"),
        ("frames", fringe_maps(1e-3, frames=3), 3, "FAIL"),
        ("strength", fringe_maps(1e-3), 1e-3, "PASS"),
        ("strength", fringe_maps(1e-3, modes=1), 1e-3, "PASS"),
        ("strength", fringe_maps(1e-3, noise=0.7), 1e-3, "PASS"),
        ("strength", fringe_maps(0.05), 0.05, "WARN"),
        ("strength", fringe_maps(0.0), 0.0, "WARN"),
        ("strength", fringe_maps(0.2), 0.2, "FAIL"),
    ],
)
@pytest.mark.parametrize("product", ["fringe_frame-y", "fringe_modes-y"])
def test_maps_of_fringes(product, metric, dataset, expected, verdict):
    found, says = value(product, metric, dataset)
    # two maps of noise 0.7 have in 400 blocks a mean square of 1 + 0.98, known to 0.98 (2 / 400)**0.5 and 2 0.99 / 20:
    # 0.12 together, 0.06 of the rms; 4 sigma
    np.testing.assert_allclose(found, expected, rtol=0.24 if np.ptp(found) > 1e-9 else 1e-6, atol=1e-12)
    assert says == verdict


def test_maps_of_nothing_have_no_strength():
    empty = fringe_maps(1e-3)
    empty["fringe_map"][:] = np.nan
    assert np.isnan(value("fringe_frame-y", "strength", empty)[0]).all()
