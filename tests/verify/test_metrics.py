"""Every acceptance metric on made-up products: values worked out by hand, and both sides of its limits."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import chi2 as chi2_distribution
from scipy.stats import norm

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.variables import DEFECT_KINDS, MASK_BITS
from lsstcal_dask.verify.acceptance import METRICS, judge, measure
from lsstcal_dask.verify.metric import ANY, Absent, Case, Metric, Result, each
from lsstcal_dask.verify.pixels import chi2_sigma, neighbour_scatter, scatter

CAMERA = load_camera("mini9")
E2V = CAMERA.detector("R22_S11")  # gain 1.5, read noise 5.5, 128 x 64 pixels an amplifier
NAMES = [a.name for a in E2V.amplifiers]
SHAPE = E2V.amplifiers[0].data.shape
N = len(NAMES)
BY_KEY = {metric.key: metric for metric in METRICS}


def dataset(**variables):
    """Product of one detector: numbers of amplifiers (n,), planes (n, y, x), or given with their dims."""
    dims = {1: ("amplifier",), 2: ("amplifier", "y"), 3: ("amplifier", "y", "x")}
    found = {}
    for name, value in variables.items():
        found[name] = value if isinstance(value, tuple) else (dims[np.ndim(value)], np.asarray(value))
    return xr.Dataset(found, coords={"amplifier": NAMES})


def same(value):
    return np.full(N, float(value))


def stack(image, variance, **more):
    """Planes of a combined stack; a scalar stands for every pixel."""
    shape = (N, *SHAPE)
    planes = {
        "image": np.broadcast_to(np.asarray(image, np.float32), shape).copy(),
        "variance": np.broadcast_to(np.asarray(variance, np.float32), shape).copy(),
        "mask": np.zeros(shape, np.uint16),
        "row_variance": np.zeros(shape[:2], np.float32),
    }
    return dataset(**(planes | more))


def case(products, summary=None, detector=E2V):
    noted = {name: {a: dict(values) for a in NAMES} for name, values in (summary or {}).items()}
    return Case(detector, products, noted)


def value(key, products, summary=None, detector=E2V):
    """What a metric finds, and its verdict if the whole camera were like this."""
    with np.errstate(all="ignore"):
        found = BY_KEY[key].measure(case(products, summary, detector))
    result = each(BY_KEY[key], {detector.name: found}, {detector.name: NAMES})
    return (None, "") if result is None else (result.values, result.verdict)


BIAS = {"read_noise": same(4.0), "read_noise_error": same(0.01)}


@pytest.mark.parametrize(("mean", "verdict"), [(3.9, "PASS"), (-3.9, "PASS"), (4.1, "FAIL"), (-4.1, "FAIL")])
def test_level_of_the_bias_in_units_of_the_noise(mean, verdict):
    found, says = value("bias: level", {"bias": stack(mean, 0.1, **BIAS)})
    np.testing.assert_allclose(found, mean / 4, rtol=1e-5)
    assert says == verdict


@pytest.mark.parametrize(
    ("noise", "gain", "expected", "verdict"),
    [
        (5.5 / 1.5, 1.5, 0.0, "PASS"),
        (5.5 * 1.06 / 1.5, 1.5, 0.06, "WARN"),
        (5.5 * 0.94 / 1.5, 1.5, -0.06, "WARN"),
        (5.5 * 1.3 / 1.5, 1.5, 0.3, "FAIL"),
        (5.5 * 0.7 / 1.5, 1.5, -0.3, "FAIL"),
        (5.5 / 1.5, 1.65, 0.1, "WARN"),  # the measured gain counts, not that of the camera
    ],
)
def test_read_noise_against_the_camera(noise, gain, expected, verdict):
    products = {"bias": stack(0, 0.1, read_noise=same(noise)), "gain": dataset(gain=same(gain))}
    found, says = value("bias: read noise over nominal", products)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert says == verdict


@pytest.mark.parametrize(("frames", "verdict"), [(19, "FAIL"), (20, "PASS"), (100, "PASS")])
def test_noise_that_a_bias_adds(frames, verdict):
    """A mean of N frames has the variance 16/N: 2.5 % is reached by 20."""
    found, says = value("bias: noise it adds", {"bias": stack(0, 16 / frames, **BIAS)})
    np.testing.assert_allclose(found, np.sqrt(1 + 1 / frames) - 1, rtol=1e-5)
    assert says == verdict
    rows = {"row_variance": np.full((N, SHAPE[0]), 8 / frames, np.float32)}  # half of it common to rows
    both, _ = value("bias: noise it adds", {"bias": stack(0, 8 / frames, **BIAS, **rows)})
    np.testing.assert_allclose(both, found, rtol=1e-5)


def test_chi2_of_the_frames():
    """Levels of +-2 errors about their mean: chi2 = 4 for each of 9 frames, with 8 degrees of freedom."""
    level = np.tile([2.0, -2.0, 2.0, -2.0, 0.0, 2.0, -2.0, 2.0, -2.0, 900.0], (N, 1)).T * 0.1
    accepted = np.ones((10, N), bool)
    accepted[9] = False  # what was left out does not count
    frames = {
        "level": (("exposure", "amplifier"), level),
        "level_error": (("exposure", "amplifier"), np.full((10, N), 0.1)),
        "accepted": (("exposure", "amplifier"), accepted),
    }
    found, says = value("bias: frames", {"bias": stack(0, 1, **BIAS, **frames)})
    np.testing.assert_allclose(found, chi2_sigma(np.array([32.0]), np.array([8.0]))[0])
    exact = norm.isf(chi2_distribution.sf(32.0, 8))
    assert found[0] == pytest.approx(exact, abs=0.1)
    assert says == "PASS"
    for scale, verdict in ((1.5, "WARN"), (20.0, "FAIL")):
        frames["level"] = (("exposure", "amplifier"), level * scale)
        assert value("bias: frames", {"bias": stack(0, 1, **BIAS, **frames)})[1] == verdict


def test_chi2_as_sigma_has_two_sides():
    dof = np.array([20.0, 200.0])
    for sigma in (-3.0, 0.0, 3.0):
        chi2 = chi2_distribution.isf(norm.sf(sigma), dof)
        np.testing.assert_allclose(chi2_sigma(chi2, dof), sigma, atol=0.05)
    assert np.isnan(chi2_sigma(1.0, 0.0))


def test_masked_pixels_and_dead_amplifiers():
    bias = stack(0, 1, **BIAS)
    bias["mask"][0, :64] = MASK_BITS["BAD"]  # half of one amplifier
    bias["mask"][1] = MASK_BITS["NO_DATA"]
    found, says = value("bias: masked", {"bias": bias})
    assert found[0] == 0.5
    assert np.isnan(found[1])
    assert (found[2:] == 0).all()
    assert says == "FAIL"
    bias["mask"][0] = 0
    assert value("bias: masked", {"bias": bias})[1] == "WARN"  # one dead amplifier does not stop a focal plane
    assert np.isnan(value("bias: level", {"bias": bias})[0][1])


@pytest.mark.parametrize(
    ("rate", "key", "expected", "verdict"),
    [
        (0.02, "dark: rate", 0.02, "PASS"),
        (0.2, "dark: rate", 0.2, "WARN"),
        (0.6, "dark: rate", 0.6, "FAIL"),
        (0.02, "dark: rate below zero", 20.0, "PASS"),
        (-0.0029, "dark: rate below zero", -2.9, "PASS"),
        (-0.0031, "dark: rate below zero", -3.1, "FAIL"),
    ],
)
def test_rate_of_the_dark(rate, key, expected, verdict):
    """The rows' variance of 1e-6 is the error, 1e-3: that of 8192 pixels is made negligible."""
    rows = np.full((N, SHAPE[0]), 1e-6, np.float32)
    found, says = value(key, {"dark": stack(rate, 1e-9, row_variance=rows)})
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert says == verdict


@pytest.mark.parametrize("product", ["dark", "calibrated"])
@pytest.mark.parametrize(
    ("true", "verdict"), [(1.0, "PASS"), (1.15, "WARN"), (0.9, "WARN"), (1.5, "FAIL"), (0.7, "FAIL")]
)
def test_noise_against_the_variance(product, true, verdict):
    """Noise of ``true`` times what the variance says, with rows, a gradient, hot pixels and cosmic rays in it."""
    random = np.random.default_rng(5)
    image = true * 2 * random.standard_normal((N, *SHAPE))
    image += random.standard_normal((N, SHAPE[0], 1)) * 9 + np.arange(SHAPE[1]) * 0.01
    image[:, ::17, ::13] += 500
    key = {"dark": "dark: noise over model", "calibrated": "calibrated: sky noise over model"}[product]
    found, says = value(key, {product: stack(image, 4)})
    np.testing.assert_allclose(found, true, atol=5 * true / np.sqrt(2 * 0.9 * N * 256))  # 4096 pairs, 5 sigma
    assert says == verdict


def test_scatter_of_few_or_no_values():
    assert np.isnan(scatter(np.arange(19.0)))
    assert np.isnan(neighbour_scatter(np.full((9, 9), np.nan), np.ones((9, 9))))
    assert scatter(np.append(np.random.default_rng(1).standard_normal(20_000), 1e9)) == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize(("hits", "verdict"), [(30.0, "PASS"), (0.5, "WARN"), (400.0, "WARN")])
def test_pixels_hit(hits, verdict):
    found, says = value("dark: pixels hit", {"dark": stack(0, 1)}, {"dark": {"hit_pixels": hits}})
    np.testing.assert_allclose(found, hits)
    assert says == verdict
    assert value("dark: pixels hit", {"dark": stack(0, 1)}, {"dark": {"hit_pixels": None}}) == (None, "")
    with pytest.raises(Absent, match="dark has no record of hit_pixels"):
        value("dark: pixels hit", {"dark": stack(0, 1)})


def test_defects():
    mask, kinds = np.zeros((2, N, *SHAPE), np.uint16)
    clean = {"defects": dataset(mask=mask, defect_kind=kinds)}
    for key in ("bad, of a sensor", "suspect", "bad columns"):
        assert value(f"defects: {key}", clean)[1] == "PASS"
    mask, kinds = mask.copy(), kinds.copy()
    mask[0, :, :16] = MASK_BITS["BAD"]  # a quarter of one of 16 amplifiers: 1.6 % of the sensor
    kinds[0, :, :16] = DEFECT_KINDS["COLUMN"]
    kinds[1, :63, :] = DEFECT_KINDS["COLUMN"]  # not half of a column
    mask[2, :2, :] = MASK_BITS["SUSPECT"]
    found, says = value("defects: bad, of a sensor", {"defects": dataset(mask=mask, defect_kind=kinds)})
    np.testing.assert_allclose(found, 1 / 64)
    assert says == "FAIL"
    found, says = value("defects: suspect", {"defects": dataset(mask=mask, defect_kind=kinds)})
    assert found[2] == 2 / 128
    assert found.sum() == found[2]
    assert says == "WARN"
    found, says = value("defects: bad columns", {"defects": dataset(mask=mask, defect_kind=kinds)})
    assert found[0] == 0.25
    assert found.sum() == 0.25
    assert says == "WARN"
    kinds[0, :, :17] = DEFECT_KINDS["COLUMN"]
    assert value("defects: bad columns", {"defects": dataset(mask=mask, defect_kind=kinds)})[1] == "FAIL"


@pytest.mark.parametrize(("gain", "verdict"), [(1.5, "PASS"), (1.1, "FAIL"), (2.1, "FAIL")])
def test_gain_of_a_camera_like_that_of_lsst(gain, verdict):
    products = {"gain": dataset(gain=same(gain))}
    assert value("gain: value", products)[1] == verdict
    assert value("gain: value over nominal", products) == (None, "")


@pytest.mark.parametrize(("gain", "verdict"), [(5.0, "PASS"), (5.9, "PASS"), (6.1, "FAIL"), (3.9, "FAIL")])
def test_gain_of_another_camera(gain, verdict):
    other = replace(E2V, amplifiers=tuple(replace(a, gain=5.0) for a in E2V.amplifiers))
    products = {"gain": dataset(gain=same(gain))}
    found, says = value("gain: value over nominal", products, detector=other)
    np.testing.assert_allclose(found, gain / 5 - 1)
    assert says == verdict
    assert value("gain: value", products, detector=other) == (None, "")


@pytest.mark.parametrize(("error", "verdict"), [(1e-3, "PASS"), (3e-3, "WARN"), (0.04, "FAIL")])
def test_error_of_the_gain(error, verdict):
    assert value("gain: relative error", {"gain": dataset(gain=same(1.5), gain_error=same(error))})[1] == verdict


def two_gains(pair, iron=1.5, error=0.003):
    return {
        "gain": dataset(
            gain=same(iron),
            gain_pair=same(0) + pair,
            gain_fe55=same(iron),
            gain_pair_error=same(0.6 * error),
            gain_fe55_error=same(0.8 * error),  # 3, 4, 5: the error of the difference is ``error``
        )
    }


@pytest.mark.parametrize(("sigma", "verdict"), [(4, "PASS"), (6, "WARN"), (-6, "WARN"), (9, "FAIL"), (-9, "FAIL")])
def test_flats_against_fe55(sigma, verdict):
    found, says = value("gain: flats against 55Fe", two_gains(1.5 + 0.003 * sigma))
    np.testing.assert_allclose(found, sigma)
    assert says == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(1.01, "PASS"), (1.02, "WARN"), (0.98, "WARN"), (0.96, "FAIL")])
def test_scale_of_fe55(ratio, verdict):
    found, says = value("gain: flats over 55Fe, scale", two_gains(1.5 * ratio))
    np.testing.assert_allclose(found, ratio - 1)
    assert says == verdict
    assert value("gain: flats over 55Fe, constant", two_gains(1.5 * ratio))[1] == "PASS"


@pytest.mark.parametrize(("sigma", "verdict"), [(4.5, "PASS"), (6.5, "WARN"), (-6.5, "WARN"), (12, "FAIL")])
def test_ratio_of_gains_is_constant_in_a_sensor(sigma, verdict):
    """One amplifier of 16 off by s errors: 15/16 s from the mean, which takes 1/16 of its variance: s sqrt(15/16)."""
    pair = same(1.5)
    pair[3] += 0.003 * sigma
    found, says = value("gain: flats over 55Fe, constant", two_gains(pair))
    assert found[3] == pytest.approx(sigma * np.sqrt(15 / 16), rel=0.02)
    assert says == verdict


def test_gains_without_fe55():
    nothing = two_gains(1.5, iron=np.nan)
    for name in ("against 55Fe", "over 55Fe, constant", "over 55Fe, scale"):
        assert value(f"gain: flats {name}", nothing) == (None, "")


@pytest.mark.parametrize(("part", "verdict"), [(1.04, "PASS"), (0.96, "PASS"), (1.06, "FAIL"), (0.94, "FAIL")])
def test_read_noise_of_other_frames(part, verdict):
    bias = stack(0, 1, **BIAS)  # 4 adu
    products = {"bias": bias, "gain": dataset(read_noise=same(4 * part), gain=same(1.5))}
    assert value("gain: read noise over bias", products)[1] == verdict
    products = {"bias": bias, "ptc": dataset(read_noise=same(4 * 1.5 * part), gain=same(1.5))}
    found, says = value("ptc: read noise over bias", products)
    np.testing.assert_allclose(found, part - 1)
    assert says == verdict


@pytest.mark.parametrize(("sigma", "verdict"), [(4, "PASS"), (7, "WARN"), (-7, "WARN"), (14, "FAIL"), (-14, "FAIL")])
def test_continuity_against_the_gain(sigma, verdict):
    gain = 1.5 * np.exp(np.linspace(-0.1, 0.1, N))
    relative = gain / np.exp(np.log(gain).mean())
    relative[5] *= np.exp(5e-4 * sigma)  # errors of 3e-4 and 4e-4
    products = {
        "gain": dataset(gain=gain, gain_error=3e-4 * gain),
        "continuity": dataset(gain_relative=relative, gain_relative_error=4e-4 * relative),
    }
    found, says = value("continuity: against gain", products)
    assert found[5] == pytest.approx(sigma * 15 / 16)  # it moves the mean of 16 by a sixteenth
    assert says == verdict
    products["continuity"]["gain_relative"][:] = np.nan
    assert value("continuity: against gain", products) == (None, "")


@pytest.mark.parametrize(
    ("a00", "verdict"), [(-3e-6, "PASS"), (-6e-6, "FAIL"), (-1e-7, "FAIL"), (3e-6, "FAIL"), (np.nan, "WARN")]
)
def test_a00(a00, verdict):
    matrix = np.full((N, 3, 3), 7.0)
    matrix[:, 0, 0] = a00
    found, says = value("ptc: a00", {"ptc": dataset(a_matrix=(("amplifier", "lag_y", "lag_x"), matrix))})
    np.testing.assert_array_equal(found, a00)
    assert says == verdict


@pytest.mark.parametrize(("chi2", "verdict"), [(100, "PASS"), (40, "WARN"), (200, "WARN"), (400, "FAIL"), (5, "FAIL")])
def test_chi2_of_photon_transfer(chi2, verdict):
    assert value("ptc: chi2", {"ptc": dataset(ptc_chi2=same(chi2), ptc_dof=same(100))})[1] == verdict


@pytest.mark.parametrize(("part", "verdict"), [(1.005, "PASS"), (0.98, "WARN"), (1.06, "FAIL"), (0.94, "FAIL")])
def test_gain_of_photon_transfer(part, verdict):
    products = {"ptc": dataset(gain=same(1.5 * part)), "gain": dataset(gain=same(1.5))}
    assert value("ptc: gain over gain", products)[1] == verdict


@pytest.mark.parametrize(("sigma", "verdict"), [(4, "PASS"), (-6, "WARN"), (9, "FAIL")])
def test_photon_transfer_against_fe55(sigma, verdict):
    ptc = dataset(gain=same(1.5 + 0.005 * sigma), gain_error=same(0.003))
    products = {"ptc": ptc, "gain": dataset(gain_fe55=same(1.5), gain_fe55_error=same(0.004))}
    assert value("ptc: gain against 55Fe", products)[1] == verdict


def test_turnoff():
    assert value("ptc: turnoff", {"ptc": dataset(ptc_turnoff=same(1.1e5))})[1] == "PASS"
    assert value("ptc: turnoff", {"ptc": dataset(ptc_turnoff=same(7e4))})[1] == "FAIL"
    assert value("ptc: turnoff", {"ptc": dataset(ptc_turnoff=same(np.nan))}) == (None, "")  # flats ended below it


@pytest.mark.parametrize(("residual", "verdict"), [(5e-5, "PASS"), (3e-4, "WARN"), (2e-3, "FAIL"), (None, "WARN")])
def test_residual_of_linearity(residual, verdict):
    noted = {"residual": residual, "inverse_signal": 0.0}
    found = value("linearity: residual", {"linearity": dataset()}, {"linearity": noted})
    assert found[1] == verdict


def test_photons_are_no_residual_of_linearity():
    """Squares subtract: of 5e-4, 3e-4 and 4e-4 are of photons and of the curve; less than photons say is nothing."""
    gain, pixels = 1.5, np.prod(SHAPE)
    products = {"linearity": dataset(), "gain": dataset(gain=same(gain))}
    for total, left in ((5e-4, 4e-4), (1e-4, 0.0)):
        noted = {"residual": total, "inverse_signal": 9e-8 * gain * pixels}
        np.testing.assert_allclose(value("linearity: residual", products, {"linearity": noted})[0], left, atol=1e-12)


def parabola(k, top=8e4):
    """S = k m**2 at 40 nodes: its slope is 2 k m, its relative size k m."""
    level = np.tile(np.linspace(0, top, 40), (N, 1))
    nodes = {"linearity_level": level, "linearity_correction": k * level**2, "linearity_ceiling": same(top)}
    return {"linearity": dataset(**{k: (("amplifier", "node")[: v.ndim], v) for k, v in nodes.items()})}


@pytest.mark.parametrize(
    ("k", "slope", "correction"),
    [
        (5e-7, "PASS", "PASS"),  # slope 1.08, correction 4 %
        (1e-6, "WARN", "WARN"),  # 1.16, 8 %
        (-1e-6, "WARN", "WARN"),
        (4e-6, "FAIL", "FAIL"),  # 1.64, 32 %
        (-7e-6, "FAIL", "FAIL"),  # -0.12: it falls
    ],
)
def test_linearity_curves(k, slope, correction):
    found, says = value("linearity: slope", parabola(k))
    np.testing.assert_allclose(found - 1, 2 * k * 8e4, rtol=0.05)
    assert says == slope
    found, says = value("linearity: correction", parabola(k))
    np.testing.assert_allclose(found, k * 8e4, rtol=0.05)
    assert says == correction


def test_linearity_without_a_curve():
    products = parabola(5e-7)
    products["linearity"]["linearity_level"][2] = np.nan
    found, says = value("linearity: slope", products)
    assert np.isnan(found[2])
    assert says == "WARN"


@pytest.mark.parametrize(("top", "verdict"), [(8e4, "PASS"), (4e4, "WARN"), (2e4, "FAIL"), (3e5, "WARN")])
def test_ceiling_in_electrons(top, verdict):
    found, says = value("linearity: ceiling", parabola(1e-8, top))
    np.testing.assert_allclose(found, 1.5 * top)  # nominal gain
    assert says == verdict


def test_full_wells():
    wells = same(1.5e5)
    assert value("saturation: full well", {"saturation": dataset(well_bloom=wells)})[1] == "PASS"
    for one, spread, whole in ((1.6e5, "PASS", "PASS"), (1.7e5, "FAIL", "PASS"), (1.3e5, "FAIL", "PASS")):
        wells[4] = one
        products = {"saturation": dataset(well_bloom=wells)}
        found, says = value("saturation: full well in a sensor", products)
        assert found[4] == pytest.approx(one / 1.5e5 - 1)
        assert (says, value("saturation: full well", products)[1]) == (spread, whole)
    for level, verdict in ((7e4, "WARN"), (3e5, "WARN"), (4e4, "FAIL"), (5e5, "FAIL")):
        assert value("saturation: full well", {"saturation": dataset(well_bloom=same(level))})[1] == verdict


def crosstalk(change=None):
    """Neighbours of the sensor have 1e-4, all others 0; ``change`` is called with the matrix (target, source)."""
    sources = [f"{d.name}/{a.name}" for d in CAMERA.detectors for a in d.amplifiers]
    own = [sources.index(f"{E2V.name}/{name}") for name in NAMES]
    matrix = np.zeros((N, len(sources)))
    for i in range(N - 1):
        matrix[i, own[i + 1]] = matrix[i + 1, own[i]] = 1e-4
    matrix[np.arange(N), own] = np.nan
    if change:
        change(matrix, own)
    found = dataset(crosstalk=(("amplifier", "source"), matrix))
    return {"crosstalk": found.assign_coords(source=sources)}


def set_one(target, source, number):
    def change(matrix, own):
        matrix[target, own[source] if source < N else 0] = number

    return change


def test_crosstalk_as_it_should_be():
    expected = {"largest": 1e-4, "unmeasured in the sensor": 0, "unmeasured in the camera": 0, "asymmetry": 0}
    for name, number in expected.items():
        found, says = value(f"crosstalk: {name}", crosstalk())
        np.testing.assert_allclose(found, number, atol=1e-12)
        assert says == "PASS"


@pytest.mark.parametrize(("c", "verdict"), [(-2e-3, "WARN"), (2e-3, "WARN"), (2e-2, "FAIL"), (-2e-2, "FAIL")])
def test_large_crosstalk(c, verdict):
    found, says = value("crosstalk: largest", crosstalk(set_one(3, 7, c)))
    assert found[3] == abs(c)
    assert says == verdict


def test_unmeasured_crosstalk():
    found, says = value("crosstalk: unmeasured in the sensor", crosstalk(set_one(3, 7, np.nan)))
    assert found[3] == pytest.approx(1 / 15)
    assert found.sum() == found[3]
    assert says == "WARN"

    def dark(matrix, own):
        matrix[3, own[3:13]] = np.nan  # 9 of 15, of the 143 of the camera

    found, says = value("crosstalk: unmeasured in the sensor", crosstalk(dark))
    assert found[3] == pytest.approx(9 / 15)
    assert says == "FAIL"
    found, says = value("crosstalk: unmeasured in the camera", crosstalk(dark))
    assert found[3] == pytest.approx(9 / 143)
    assert says == "PASS"

    def alone(matrix, own):
        matrix[:, [i for i in range(matrix.shape[1]) if i not in own]] = np.nan

    found, says = value("crosstalk: unmeasured in the camera", crosstalk(alone))
    np.testing.assert_allclose(found, 128 / 143)
    assert says == "WARN"


def test_asymmetric_crosstalk():
    """C[0, 1] = 5e-4 against c[1, 0] = 1e-4: 4/6; amplifier 1 has another neighbour, alike both ways: 4/(6 + 2)."""
    found, says = value("crosstalk: asymmetry", crosstalk(set_one(0, 1, 5e-4)))
    assert found[0] == pytest.approx(4 / 6)
    assert found[1] == pytest.approx(4 / 8)
    assert says == "WARN"


@pytest.mark.parametrize(("pulls", "verdict"), [(1.0, "PASS"), (1.5, "WARN"), (0.6, "WARN"), (2.0, "FAIL")])
def test_crosstalk_of_absent_sources(pulls, verdict):
    summary = {"crosstalk": {"null_pulls": pulls, "nulls": 120}}
    assert value("crosstalk: absent sources", crosstalk(), summary)[1] == verdict


@pytest.mark.parametrize(("row_noise", "verdict"), [(0.0, "PASS"), (0.3, "WARN"), (0.6, "FAIL")])
def test_rows_of_a_frame(row_noise, verdict):
    """Median of 64 pixels of noise 2: pi/2 4/64 = 0.098; rows of r add r**2, so the steps are sqrt(1 + r**2/0.098)."""
    random = np.random.default_rng(8)
    image = 2 * random.standard_normal((N, *SHAPE)) + row_noise * random.standard_normal((N, SHAPE[0], 1))
    image[:, 40:60, 20:30] += 3000
    variance = np.full(image.shape, 4.0)
    variance[:, 40:60, 20:30] += 3000
    found, says = value("calibrated: steps of rows over model", {"calibrated": stack(image, variance)})
    assert found[0] == pytest.approx(np.sqrt(1 + row_noise**2 / (np.pi / 2 * 4 / 64)), rel=0.1)
    assert len(set(found)) == 1
    assert says == verdict
    rows = np.full((N, SHAPE[0]), row_noise**2, np.float32)  # once it is owned up to, it is no surprise
    honest, says = value(
        "calibrated: steps of rows over model", {"calibrated": stack(image, variance, row_variance=rows)}
    )
    assert honest[0] == pytest.approx(1, rel=0.1)
    assert says == "PASS"


@pytest.mark.parametrize(("sigma", "verdict"), [(0.1, "PASS"), (0.5, "WARN"), (-0.5, "WARN"), (1.5, "FAIL")])
def test_offsets_between_amplifiers(sigma, verdict):
    """One amplifier in the middle of a row is off; offsets have a mean of zero."""
    middle = NAMES.index("C13")
    image = np.zeros((N, *SHAPE), np.float32) + np.tile([-0.02, 0.02], SHAPE[1] // 2)
    image[middle] += 2 * sigma
    found, says = value("calibrated: offsets of amplifiers", {"calibrated": stack(image, 4)})
    assert found[middle] == pytest.approx(sigma * (1 - 1 / N), abs=0.021)
    np.testing.assert_allclose(np.delete(found, middle), -sigma / N, atol=0.021)
    assert says == verdict


def test_offsets_know_how_amplifiers_are_flipped():
    """A plane over the CCD, of 0.001 a pixel: neighbouring strips of 16 pixels, 3 left out, are 22 apart."""
    image = np.zeros((N, *SHAPE), np.float32)
    for i, a in enumerate(E2V.amplifiers):
        x = a.position[0] + np.arange(SHAPE[1])[:: -1 if a.flip_x else 1]
        image[i] = 0.001 * x
    found, _ = value("calibrated: offsets of amplifiers", {"calibrated": stack(image, 1)})
    assert np.abs(found).max() < 0.0221


def test_every_metric_says_what_it_is():
    assert len(BY_KEY) == len(METRICS)
    for metric in METRICS:
        assert metric.source
        assert metric.prose
        assert metric.limits != ANY or metric.aim != ANY
        assert metric.limits[0] <= metric.aim[1]
        assert metric.aim[0] <= metric.limits[1]


def test_worst_amplifiers_are_named():
    metric = Metric("bias", "x", lambda case: None, "ours", "a number", limits=(-1, 1), aim=(-0.5, 0.5))
    places = tuple(("R22_S11", name) for name in NAMES[:6])
    result = Result(metric, places, np.array([0.1, -3.0, 0.7, np.nan, 2.0, -0.6]))
    assert result.worst() == [(" ".join(places[i]), number) for i, number in ((1, -3.0), (4, 2.0), (2, 0.7))]
    assert (result.failing, result.off_aim, result.unmeasured) == (2, 4, [" ".join(places[3])])
    assert result.verdict == "FAIL"
    assert result.median == 0.1
    assert Result(replace(metric, sparse=True), places[:1], np.array([np.nan])).verdict == "PASS"


def test_a_product_that_lacks_what_a_metric_asks_for():
    """Gains of a camera team have no 55Fe in them."""
    found = measure(case({"gain": dataset(gain=same(1.5), gain_error=same(1e-4))}), ["gain"])
    results, without = judge({E2V.name: found}, {E2V.name: NAMES}, ["gain"])
    assert {result.metric.key for result in results} == {"gain: value", "gain: relative error"}
    assert without["gain: flats over 55Fe, scale"] == "gain has no gain_pair"


def test_judging_several_detectors():
    key, other = "gain: relative error", "gain: value over nominal"
    measured = {"R22_S00": {key: [1e-4, 1e-4], other: None}, "R22_S01": {key: [0.5, 1e-4], other: None}}
    results, without = judge(measured, {"R22_S00": ["A", "B"], "R22_S01": ["A", "B"]}, ["gain", "ptc"])
    (result,) = results
    assert result.worst() == [("R22_S01 A", 0.5)]
    assert without["ptc"] == "not in the store"
    assert without[other] == "does not apply to what was measured"
    assert without["gain: read noise over bias"] == "needs bias"
    _, without = judge({"R22_S00": {"ptc: turnoff": [np.nan]}}, {"R22_S00": ["A"]}, ["ptc"])
    assert without["ptc: turnoff"] == "no amplifier has a value"


@pytest.mark.parametrize(("slope", "drift", "verdicts"), [(5e-3, -5e-3, "PASS"), (0.02, -0.02, "WARN")])
def test_light_and_old_charge_in_darks(slope, drift, verdicts):
    noted = {"dark": {"slope": slope, "drift": drift, "median_rate": 0.025}}
    for name, expected in (("slope", slope / 0.025), ("drift", drift / 0.025)):
        found, says = value(f"dark: {name}", {"dark": stack(0.025, 1e-6)}, noted)
        np.testing.assert_allclose(found, expected)
        assert says == verdicts


@pytest.mark.parametrize(("share", "verdict"), [(2e-6, "PASS"), (6e-6, "WARN"), (-6e-6, "WARN"), (6e-5, "FAIL")])
def test_charge_that_transfers_leave_behind(share, verdict):
    own = {"deferred": dataset(serial_cti=same(share), parallel_cti=same(share), offset_amplitude=same(100 * share))}
    for name in ("serial transfer", "parallel transfer"):
        found, says = value(f"deferred: {name}", own)
        np.testing.assert_allclose(found, share)
        assert says == verdict
    assert value("deferred: offset", own)[1] == ("WARN" if share == 6e-5 else "PASS")


@pytest.mark.parametrize(("part", "verdict"), [(5e-5, "PASS"), (5e-3, "WARN"), (5e-2, "FAIL")])
def test_orders_of_corrections(part, verdict):
    noted = {"calibrated": {"order_rubin": part, "order_rubin_variance": part}}
    for name in ("order rubin", "order rubin, variance"):
        found, says = value(f"calibrated: {name}", {"calibrated": stack(1, 1)}, noted)
        np.testing.assert_allclose(found, part)
        assert says == verdict
