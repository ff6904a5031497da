"""Weights of slices: integrals by hand and by brute force, places, gaps, and everything that is refused."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import CalibrationError, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband, Surface
from lsstcal_dask.physics.spectra import Curve, Spectrum, check_cover, from_energy_wavelength
from lsstcal_dask.products.weights import Scan, WeightsConfig, local_weights, make_weights, without

ALL = WeightsConfig(negligible=0)


def scan_of(wavelength, response=1.0, bandwidth=1.0) -> Scan:
    nm = np.asarray(wavelength, float)
    return Scan(nm, response + 0 * nm, bandwidth + 0 * nm, np.zeros(1), np.zeros(1))


def surface_of(wavelength, coefficients, powers, scale=100.0) -> Surface:
    none = np.zeros(len(wavelength))
    return Surface("r", wavelength, np.array(powers), scale, np.array(coefficients), np.eye(len(powers)), none)


def raw(weights):
    """Weights before they were normalised, of a single term."""
    return weights.values[0] * weights.scale


def test_integrals_by_hand():
    scan = scan_of([500, 501, 502])
    flat = make_weights(Spectrum(np.array([500.0, 502]), np.ones(2)), None, scan, config=ALL)
    np.testing.assert_allclose(flat.values, [[0.25, 0.5, 0.25]])
    assert flat.scale == pytest.approx(2)
    rising = make_weights(Spectrum(np.array([500.0, 502]), np.array([0.0, 2])), None, scan, config=ALL)
    np.testing.assert_allclose(raw(rising), [1 / 6, 1, 5 / 6])


def test_a_line_counts_where_it_is():
    spectrum = Spectrum(np.array([500.0, 502]), np.zeros(2), "sky", np.array([500.25]), np.array([4.0]))
    found = make_weights(spectrum, None, scan_of([500, 501, 502]), config=ALL)
    np.testing.assert_allclose(raw(found), [3, 1, 0], atol=1e-12)


@settings(max_examples=25, deadline=None)
@example(425, "linear")  # two points of a table so near that between them there is none of a fine grid
@given(st.integers(0, 2**16), st.sampled_from(["linear", "spline"]))
def test_agrees_with_brute_force(seed, interpolation):
    """Three tables on grids of their own; the trapezoid rule on 2e5 points and all of theirs is good to 1e-7."""
    rng = np.random.default_rng(seed)
    centroids = 500 + np.cumsum(rng.uniform(0.5, 1.5, 12))
    low, high = centroids[[0, -1]]
    own = [np.concatenate([[low], np.sort(rng.uniform(low, high, n)), [high]]) for n in (7, 30, 4)]
    spectrum = Spectrum(own[0], rng.uniform(0, 5, 9))
    passband, air = Curve(own[1], rng.uniform(0, 1, 32)), Curve(own[2], rng.uniform(0.5, 1, 6))
    config = WeightsConfig(negligible=0, interpolation=interpolation, gap=0.99)  # some steps are thrice the others
    found = make_weights(spectrum, passband, scan_of(centroids), air, config)
    at = np.unique(np.concatenate([np.linspace(low, high, 200_001), centroids, *own]))
    light = spectrum.at(at) * passband.at(at) * air.at(at)
    response = rng.uniform(0.5, 1, 12)
    if interpolation == "linear":
        f = np.interp(at, centroids, response)
    else:
        from scipy.interpolate import CubicSpline

        f = CubicSpline(centroids, response)(at)
    assert raw(found) @ response == pytest.approx(np.trapezoid(light * f, at), rel=1e-6)


def test_is_exact_for_what_the_interpolation_can_follow():
    centroids = np.array([600.0, 601.3, 602, 604.1, 605, 606.2, 607])
    spectrum = Spectrum(np.array([600.0, 603.7, 607]), np.array([1.0, 4, 2]))
    nodes, share = np.polynomial.legendre.leggauss(6)

    def truth(f):
        parts = [(600, 603.7), (603.7, 607)]
        points = [(b + a) / 2 + (b - a) / 2 * nodes for a, b in parts]
        return sum((b - a) / 2 * share @ (spectrum.at(p) * f(p)) for (a, b), p in zip(parts, points, strict=True))

    straight, curved = (lambda nm: nm - 599), (lambda nm: (nm - 603) ** 3 + 30)
    linear = make_weights(spectrum, None, scan_of(centroids), config=ALL)
    assert raw(linear) @ straight(centroids) == pytest.approx(truth(straight), rel=1e-12)
    spline = make_weights(
        spectrum, None, scan_of(centroids), config=WeightsConfig(negligible=0, interpolation="spline")
    )
    assert raw(spline) @ curved(centroids) == pytest.approx(truth(curved), rel=1e-11)
    assert abs(raw(linear) @ curved(centroids) / truth(curved) - 1) > 1e-3


def test_photons_are_counted_and_not_their_energy():
    """A flat energy spectrum has photons in proportion to the wavelength: 20 % of tilt over this band."""
    nm = np.linspace(500, 600, 101)
    photons = make_weights(from_energy_wavelength(nm, np.ones(101)), None, scan_of(nm), config=ALL)
    energy = make_weights(Spectrum(nm, np.ones(101)), None, scan_of(nm), config=ALL)
    ratio = (photons.values / energy.values)[0, 1:-1]
    np.testing.assert_allclose(ratio / ratio[0], nm[1:-1] / nm[1], rtol=1e-9)


def test_the_width_of_the_line_is_taken_out_in_second_order():
    nm, sigma = 900 + np.cumsum(np.array([0, 1.1, 0.9, 1, 1.2, 0.8, 1, 1])), 0.45
    true = 1 + 0.01 * (nm - 904) ** 2
    measured = true + 0.01 * sigma**2  # mean of a parabola over a line
    spectrum = Spectrum(nm[[1, -2]], np.array([1.0, 3.0]))
    scan = scan_of(nm, bandwidth=sigma * np.sqrt(8 * np.log(2)))
    plain, sharp = (
        raw(make_weights(spectrum, None, scan, config=WeightsConfig(negligible=0, sharpen=s, uncovered=0.9)))
        for s in (False, True)
    )
    assert sharp @ measured == pytest.approx(plain @ true, rel=1e-9)
    assert abs(plain @ measured / (plain @ true) - 1) > 1e-3


def test_the_gauge_is_the_mean_of_the_focal_plane():
    nm = np.linspace(500.0, 520, 21)
    scan = Scan(nm, 2 + np.sin(nm / 5), np.ones(21), np.array([-50.0, 50, 0]), np.array([0.0, 0, 90]))
    surface = surface_of(nm, np.stack([0.5 + 0 * nm, 0.1 * np.sin(nm)]), [(0, 0), (1, 0)])
    found = make_weights(Spectrum(nm, nm), surface, scan, config=ALL)
    assert np.mean(found.at(scan.x, scan.y) @ scan.response) == pytest.approx(1)
    bright = make_weights(Spectrum(nm, 7 * nm), surface, scan, config=ALL)
    np.testing.assert_allclose(bright.values, found.values)
    assert bright.scale == pytest.approx(7 * found.scale)


def test_a_plane_stands_for_weights_within_an_amplifier():
    """The error reported at the nodes holds at any pixel: between nodes a cubic exceeds it by less than a tenth."""
    camera = load_camera("mini9")
    detector = camera.detectors[0]
    amplifier = detector.amplifiers[3]
    nm = np.linspace(500.0, 520, 21)
    powers = [(i, t - i) for t in range(5) for i in range(t + 1)]
    rng = np.random.default_rng(5)
    values = np.concatenate([np.full((1, 21), 0.8), rng.normal(0, 0.1, (len(powers) - 1, 21))])
    weights = make_weights(Spectrum(nm, nm), surface_of(nm, values, powers, 20.0), scan_of(nm), config=ALL)
    ny, nx = amplifier.data.shape
    x, y = rng.uniform(0, nx - 1, 200), rng.uniform(0, ny - 1, 200)
    truth = weights.at(*ccd_to_focal(detector, *amplifier_to_ccd(amplifier, x, y)))
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        local = local_weights(weights, detector, amplifier, tolerance)
        found = local.at(2 * x / (nx - 1) - 1, 2 * y / (ny - 1) - 1)
        worst = np.abs(found - truth).sum(axis=1).max()
        assert worst <= 1.1 * local.error
        errors.append((len(local.powers), local.error))
    assert [n for n, _ in errors] == sorted({n for n, _ in errors})  # finer ones take more terms
    assert errors[-1][1] <= 1e-6


def test_without_a_filter_one_term_is_enough():
    camera = load_camera("mini1")
    weights = make_weights(Spectrum(np.array([500.0, 502]), np.ones(2)), None, scan_of([500, 501, 502]), config=ALL)
    local = local_weights(weights, camera.detectors[0], camera.detectors[0].amplifiers[0], 1e-5)
    np.testing.assert_allclose(local.values, weights.values)
    assert local.error < 1e-15


@pytest.mark.parametrize("gone", [[3], [0], [2, 6], [7]])
def test_missing_slices_leave_their_weight_to_their_neighbours(gone):
    nm = 500 + np.cumsum(np.array([1, 1.1, 0.9, 1, 1, 1.2, 1, 0.9]))
    spectrum = Spectrum(nm[[1, -2]] + 0.1, np.array([1.0, 2.0]))
    there = ~np.isin(np.arange(8), gone)
    config = WeightsConfig(negligible=0, gap=0.9, uncovered=0.9)
    found = without(make_weights(spectrum, None, scan_of(nm), config=config), there, config)
    expected = make_weights(spectrum, None, scan_of(nm[there]), config=config)
    np.testing.assert_allclose(found.values[:, there] * found.scale, expected.values * expected.scale, atol=1e-12)
    assert not found.values[:, ~there].any()


def test_slices_that_do_not_matter_are_not_read():
    nm = np.linspace(400.0, 700, 301)
    leak = Curve(nm, np.where((nm > 500) & (nm < 550), 0.9, 1e-7))
    found = make_weights(Spectrum(nm, 1 + 0 * nm), leak, scan_of(nm))
    assert 45 < (found.values != 0).sum() < 60
    assert 0 < found.uncovered < 1e-4
    every = make_weights(Spectrum(nm, 1 + 0 * nm), leak, scan_of(nm), config=ALL)
    assert (every.values != 0).all()


@pytest.mark.parametrize(
    ("spectrum", "passband", "nm", "error", "message"),
    [
        ((500, 510), None, [500, 502, 501, 510], CalibrationError, "do not ascend"),
        ((500, 510), None, [500, 501, 501, 510], CalibrationError, "501 nm is there twice"),
        ((500, 505), (500, 510), np.arange(500, 511), CalibrationError, "leaves up to 0.5 of the light"),
        ((500, 510), None, np.arange(500, 510), InsufficientInputs, "beyond the cube, 500.0 to 509.0 nm"),
        ((500, 510), None, [500, 501, 502, 506, 507, 508, 509, 510], InsufficientInputs, "502.0-506.0 nm"),
        ((500, 660), None, [500, 660], InsufficientInputs, "500.0-660.0 nm"),
        ((500, 510), (600, 610), np.arange(500, 611), CalibrationError, "light behind"),
        ((505, 507), None, np.arange(500, 511), CalibrationError, "leaves up to 0.8 of the light behind no filter"),
    ],
)
def test_what_is_not_known_is_refused(spectrum, passband, nm, error, message):
    curve = None if passband is None else Curve(np.array(passband, float), np.ones(2))
    with pytest.raises(error, match=message):
        make_weights(Spectrum(np.array(spectrum, float), np.ones(2)), curve, scan_of(nm))


@pytest.mark.parametrize(
    ("air", "message"),
    [((500, 505), "behind atmosphere air: .* leaves up to 0.5 of the light"), ((600, 605), "curve air from 600")],
)
def test_a_short_atmosphere_is_named(air, message):
    spectrum, short = Spectrum(np.array([500.0, 510]), np.ones(2)), Curve(np.array(air, float), np.ones(2), "air")
    with pytest.raises(CalibrationError, match=message):
        make_weights(spectrum, Curve(np.array([500.0, 510]), np.ones(2)), scan_of(np.arange(500, 511)), short)


def test_wide_steps_are_gaps_of_any_cube():
    """Of steps of 45 and 51 nm, all alike, only the wider ones are."""
    for step, message in ((45, ""), (51, "1 of its light lies in gaps of the cube, 500.0-551.0, 551.0-602.0")):
        slices = 500.0 + step * np.arange(5)
        even = Spectrum(slices[[0, -1]], np.ones(2))
        if message:
            with pytest.raises(InsufficientInputs, match=message):
                make_weights(even, None, scan_of(slices))
        else:
            make_weights(even, None, scan_of(slices))


def test_darkness_is_refused():
    with pytest.raises(InsufficientInputs, match="no light passes"):
        make_weights(Spectrum(np.array([500.0, 502]), np.zeros(2)), None, scan_of([500, 501, 502]))


def test_too_few_slices_are_refused():
    weights = make_weights(Spectrum(np.array([500.0, 502]), np.ones(2)), None, scan_of([500, 501, 502]))
    with pytest.raises(InsufficientInputs, match="1 slices of the cube are there"):
        without(weights, np.array([True, False, False]))
    assert without(weights, np.ones(3, bool)) is weights


def test_a_small_part_beyond_the_cube_is_bounded():
    found = make_weights(Spectrum(np.array([500.0, 510.0005]), np.ones(2)), None, scan_of(np.arange(500, 511)))
    assert found.uncovered == pytest.approx(0.0005 / 10.0005, rel=1e-6)


def test_curves_of_the_ccds_nearby_give_the_weights_of_the_polynomial_that_they_follow():
    """Even powers of the radius, of which there are as many as there are 25 places for each, besides their mean."""
    camera, nm = load_camera("raft"), np.linspace(500.0, 520, 41)
    corner = camera.detectors[8].center_mm
    x, y = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1.5, 1.5, 5) * corner[0]] * 2))
    terms = np.stack([0.7 + 0 * nm, 0.02 * np.cos(nm), 0.02 * np.cos(nm)])
    fitted = surface_of(nm, terms, [(0, 0), (0, 2), (2, 0)], 50.0)
    names = tuple(f"P{i}" for i in range(25))
    measured = Passband("r", names, x, y, nm, fitted.at(x, y), np.zeros((25, 41)))
    scan = Scan(nm[::2], 1 + 0 * nm[::2], 1 + 0 * nm[::2], x, y)
    spectrum = Spectrum(np.array([500.0, 520]), np.array([1.0, 2]))
    one, other = (make_weights(spectrum, band, scan, config=ALL) for band in (fitted, Nearby(measured)))
    assert other.scale == pytest.approx(one.scale)
    detector = camera.detectors[8]
    for amplifier in detector.amplifiers[::5]:
        found = [local_weights(weights, detector, amplifier, 1e-9) for weights in (one, other)]
        u, v = np.random.default_rng(2).uniform(-1, 1, (2, 20))
        np.testing.assert_allclose(found[1].at(u, v), found[0].at(u, v), atol=1e-9)


def test_the_noise_of_a_filter_is_no_light_beyond_the_cube():
    """Sums of n values of noise grow as sqrt(n): 4 of them stay below 1e-4; their sizes add up to ten times that."""
    nm = np.arange(300.0, 1151.0)
    inside = (nm > 560) & (nm < 680)
    noise = 2.5e-5 * np.random.default_rng(7).normal(size=len(nm))
    curve, grid = Curve(nm, np.where(inside, 0.9, noise)), np.arange(540.0, 701.0)
    out = (nm < 540) | (nm > 700)
    assert np.abs(noise[out]).sum() / (0.9 * inside.sum()) > 1e-4
    limit = 4 * 2.5e-5 * np.sqrt(out.sum()) / (0.9 * inside.sum())
    found = make_weights(Spectrum(nm, np.ones(len(nm))), curve, scan_of(grid))
    assert found.uncovered < limit + 1e-4  # negligible slices
    leak = Curve(nm, curve.value + 1e-3 * ((nm > 900) & (nm < 920)))
    with pytest.raises(InsufficientInputs, match="beyond the cube"):
        make_weights(Spectrum(nm, np.ones(len(nm))), leak, scan_of(grid))
    short = Spectrum(nm[200:400], np.ones(200))
    assert check_cover(short, curve) < limit
