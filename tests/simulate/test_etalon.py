"""Fringes: layers against an independent matrix method, periods and sums against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.etalon import Fringing, absorptance, bin_widths, fringe_at, fringe_map
from lsstcal_dask.simulate.silicon import absorption, index
from lsstcal_dask.simulate.thickness import spans, thickness, thickness_maps

SEED = 4


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


@pytest.fixture(scope="module")
def detector(camera):
    return camera.detector("R22_S00")


def test_silicon_is_that_of_the_literature():
    """Index of Franta et al. 2017 between 150 and 200 K, absorption of Green 2008 at 300 K."""
    nm = np.array([800.405, 900.14, 1000.71, 1099.79])
    franta = np.array([[3.64584, 3.65435], [3.58847, 3.59656], [3.54794, 3.55556], [3.51969, 3.52692]])
    np.testing.assert_allclose(index(nm), franta @ [0.54, 0.46], atol=1e-3)
    green = 4 * np.pi / 1e-3 * np.array([5.4113e-3, 2.1701e-3, 5.0930e-4]) / np.array([800.0, 900.0, 1000.0])
    np.testing.assert_allclose(absorption(np.array([800.0, 900.0, 1000.0]), 300.0), green, rtol=0.05)
    assert (absorption(nm) < absorption(nm, 300.0)).all()


def _interface_matrices(nm, d, h, theta, black, parallel):
    """Absorbed fraction by interface and propagation matrices of the forward and backward waves."""
    silicon = index(np.array(nm)) + 1j * absorption(np.array(nm)) * nm / (4e3 * np.pi)
    poly = index(np.array(nm))
    media = [1.0, 1.38, 2.10, silicon, 1.45, poly, 1.45, 1.5, 1.5 if black else poly]
    depth = [0.1221, 0.0441, d, 0.1, 0.3, 1.0, h]
    cosine = [np.sqrt(1 - (np.sin(theta) / n) ** 2 + 0j) for n in media]
    total, before = np.eye(2, dtype=complex), None
    for i in range(len(media) - 1):
        (n1, c1), (n2, c2) = (media[i], cosine[i]), (media[i + 1], cosine[i + 1])
        a, b = (n2 * c1, n1 * c2) if parallel else (n1 * c1, n2 * c2)
        r, t = (a - b) / (a + b), 2 * n1 * c1 / (a + b)
        total = total @ np.array([[1, r], [r, 1]]) / t
        if i < len(depth):
            phase = 2e3 * np.pi / nm * n2 * c2 * depth[i]
            total = total @ np.diag([np.exp(-1j * phase), np.exp(1j * phase)])
        before = n2 * (np.conj(c2) if parallel else c2)
    out = (before / cosine[0]).real * abs(1 / total[0, 0]) ** 2
    return 1 - abs(total[1, 0] / total[0, 0]) ** 2 - out


@pytest.mark.parametrize("black", [False, True])
def test_absorptance_is_that_of_the_layers(black):
    for nm, d, h, degrees in ((400.0, 100, 10, 0), (850.0, 20, 7, 23), (960.0, 97.3, 11.2, 14.2), (1080.0, 101, 9, 40)):
        theta = np.deg2rad(degrees)
        expected = sum(_interface_matrices(nm, d, h, theta, black, p) for p in (False, True)) / 2
        found = absorptance(np.array(nm), np.array(d), np.array(h), np.cos(theta), black)
        assert found == pytest.approx(expected, abs=1e-9)


def _visibility(values):
    return (values.max() - values.min()) / (values.max() + values.min())


@pytest.mark.parametrize(("nm", "period"), [(900.0, 0.98), (1000.0, 1.27)])
def test_silicon_fringes_are_a_group_free_range_apart(nm, period):
    """wavelength**2 / (2 n_g d), d longer by the layers, 1 um of 100.

    SCIENCE 2.9 has 0.98 and 1.27 nm at room temperature, 1-3 % less than at 173 K.
    """
    at = np.linspace(nm - 4, nm + 4, 8001)
    fringes = absorptance(at, 100.0, 10.0, 1.0, True)
    fringes -= np.polyval(np.polyfit(at - nm, fringes, 3), at - nm)
    rising = at[1:][(fringes[1:] > 0) & (fringes[:-1] <= 0)]
    found = np.diff(rising).mean()
    n = index(np.array([nm - 1, nm, nm + 1]))
    group = n[1] - nm * (n[2] - n[0]) / 2
    assert found == pytest.approx(nm**2 / (2 * group * 1e5), rel=0.015)
    assert found == pytest.approx(period, rel=0.04)


def test_one_fringe_is_0_14_um_of_silicon_and_30_nm_of_glue():
    d = np.linspace(99, 101, 4001)
    fringes = absorptance(np.array(1000.0), d, 10.0, 1.0)
    fringes -= fringes.mean()
    rising = d[1:][(fringes[1:] > 0) & (fringes[:-1] <= 0)]
    assert np.diff(rising).mean() == pytest.approx(0.140, rel=0.02)
    h = np.linspace(9, 11, 2001)
    phases = 0.141 * np.arange(8)[:, None] / 8
    slow = absorptance(np.array(960.0), 100 + phases, h, 1.0).mean(axis=0)
    slow -= slow.mean()
    rising = h[1:][(slow[1:] > 0) & (slow[:-1] <= 0)]
    per_fringe = np.diff(rising).mean()
    assert per_fringe == pytest.approx(0.96 / 3, rel=0.01)
    assert 960 * per_fringe / 10 == pytest.approx(30, rel=0.05)


def test_the_pupil_blurs_the_fringes_of_the_silicon(detector):
    """2 d (cos - cos') n / wavelength = 3 fringes pass over the f/1.23 annulus: 5 % at most are left."""
    at = np.linspace(998, 1002, 401)
    one = Fringing(silicon_rms=0, epoxy_rms=0, silicon_scatter=0, epoxy_scatter=0)
    zero = np.zeros(1)
    seen = {
        beam: _visibility(fringe_at(SEED, one, detector, zero, zero, at, beam, np.zeros(401))[0])
        for beam in (None, (0.0,), (18.0,))
    }
    assert seen[None] < 0.05
    assert all(0.15 < seen[beam] < 0.5 for beam in ((0.0,), (18.0,)))


def _direct(detector, x, y, nm, width, beam, settings):
    """Absorbed fraction integrated step by step over bin and pupil, relative to that of the mean phases."""
    d, h = (thickness(SEED, settings, detector, layer, x, y) for layer in ("silicon", "epoxy"))
    inner, outer = np.sin(np.deg2rad([14.2, 23.6])) ** 2
    sine2 = np.sin(np.deg2rad(beam)) ** 2 if beam else inner + (outer - inner) * (np.arange(150) + 0.5) / 150
    cosine = np.sqrt(1 - np.atleast_1d(sine2))[:, None, None]
    n = max(1, int(width / 0.02))
    total = 0.0
    for sub in nm + width * ((np.arange(n) + 0.5) / n - 0.5):
        per_fringe = sub / 2e3 / np.sqrt(index(np.array(sub)) ** 2 - sine2.mean())
        phases = np.arange(32) / 32
        mean = absorptance(np.array(sub), 100 + phases[:, None] * per_fringe, 10 + phases * 0.32, cosine).mean()
        total = total + absorptance(np.array(sub), d, h, cosine).mean(axis=(0, 1)) / mean / n
    return total


@pytest.mark.parametrize(
    ("nm", "width", "beam"),
    [(850.0, 0.0, None), (960.0, 0.0, None), (1000.0, 1.0, None), (1000.0, 0.0, (0.0,)), (980.0, 0.5, (19.0,))],
)
def test_maps_and_points_are_the_direct_integral(camera, detector, nm, width, beam):
    """Direct mean phases: 1 % off in the glue's period and absorption, which the fringe amplitude of 0.05-0.3 sees."""
    settings = Fringing()
    y, x = np.array([3, 100, 200, 255]), np.array([5, 300, 511, 40])
    expected = _direct(detector, x, y, nm, width, beam, settings)
    points = fringe_at(SEED, settings, detector, x, y, np.array([nm]), beam, np.array([width]))[:, 0]
    image = fringe_map(SEED, settings, camera, detector, np.array([nm]), np.ones(1), beam, np.array([width]))
    amplitude = np.ptp(image) / 2
    assert np.abs(points - expected).max() < 2e-3 * max(1, amplitude / 0.05)
    assert np.abs(image[y, x] - points).max() < 5e-4 + 2e-3 * amplitude
    assert np.ptp(points) > 1e-3
    assert image.dtype == np.float32


def test_a_bin_blurs_as_a_top_hat(detector):
    """The first harmonic of a collimated beam falls as sinc(width / free range)."""
    settings = Fringing(silicon_rms=0, epoxy_rms=0, silicon_scatter=0, epoxy_scatter=0, black=("e2v",))
    at, zero = np.linspace(999, 1001, 201), np.zeros(1)
    n = index(np.array([999.0, 1000.0, 1001.0]))
    free = 1000**2 / (2 * (n[1] - 1000 * (n[2] - n[0]) / 2) * 1e5)

    def first(width):
        values = fringe_at(SEED, settings, detector, zero, zero, at, (0.0,), np.full(201, width))[0]
        basis = np.exp(2j * np.pi * at / free)
        span = at < at[0] + free
        return abs((values - values[span].mean())[span] @ basis[span])

    for width in (0.25, 0.5, 0.75):
        assert first(width) / first(0.0) == pytest.approx(np.sinc(width / free), abs=0.02)


def test_a_smooth_spectrum_sees_no_silicon(camera, detector):
    """800-1000 nm: what is left is the glue's, coarse, and the absorption of thicker silicon."""
    settings = Fringing(epoxy_rms=0)
    nm = np.arange(800.0, 1001.0)
    image = fringe_map(SEED, settings, camera, detector, nm, np.ones(len(nm)))
    d = thickness_maps(SEED, settings, detector)[0]
    scaled = (d.astype(float) - d.mean()) / d.std()
    left = image - np.polyval(np.polyfit(scaled.ravel(), image.ravel(), 2), scaled)
    assert np.abs(left).max() < 1e-4
    narrow = fringe_map(SEED, settings, camera, detector, np.array([980.0]), np.ones(1))
    assert narrow.std() > 20 * left.std()


def test_light_without_fringes_is_left_alone(camera, detector):
    nm = np.arange(400.0, 690.0)
    assert (fringe_map(SEED, Fringing(), camera, detector, nm, np.ones(len(nm))) == 1).all()
    zero, lines = np.zeros(1), np.array([701.0, 1124.0, 1126.0])
    strong = fringe_at(SEED, Fringing(), detector, zero, zero, lines, (0.0,), np.zeros(3))
    assert abs(strong[0, 0] - 1) < 1e-5
    assert strong[0, 1] != 1
    assert strong[0, 2] == 1


def test_a_black_support_hides_the_glue(detector):
    """Collimated beams of 960 nm on the two kinds of CCD, silicon of one thickness: glue of ITL does not matter."""
    settings = Fringing(silicon_rms=0, epoxy_rms=0.5)
    x = np.linspace(0, 511, 200)
    swing = {}
    for vendor in ("e2v", "ITL"):
        one = replace(detector, vendor=vendor)
        swing[vendor] = np.ptp(fringe_at(SEED, settings, one, x, x / 2, np.array([960.0]), (0.0,))[:, 0])
    assert swing["ITL"] < 1e-6 < 1e-2 < swing["e2v"]


def test_thickness_has_its_size_and_maps_are_the_points(detector):
    settings = Fringing()
    y, x = np.array([0, 17, 255]), np.array([511, 3, 250])
    maps = thickness_maps(SEED, settings, detector)
    for layer, image, span in zip(("silicon", "epoxy"), maps, spans(SEED, settings, detector), strict=True):
        np.testing.assert_allclose(image[y, x], thickness(SEED, settings, detector, layer, x, y), atol=2e-5)
        assert span[0] < image.min() <= image.max() < span[1]
    # a sum of waves at one place over independent CCDs: variance rms**2 + scatter**2, error sqrt(2 / n)
    n = 400
    ccds = [replace(detector, id=i) for i in range(n)]
    values = np.array([thickness(SEED, settings, ccd, "silicon", 9.0, 9.0) for ccd in ccds])
    assert abs(values.mean() - 100) < 4 * values.std() / np.sqrt(n)
    assert values.var() == pytest.approx(0.7**2 + 1.0**2, rel=4 * np.sqrt(2 / n))
    part = thickness_maps(SEED, settings, detector, np.arange(30, 40))
    np.testing.assert_allclose(part[0], maps[0][30:40], atol=1e-5)


def test_fringes_are_the_same_whoever_asks(camera, detector):
    light = np.array([970.0]), np.ones(1)
    one = fringe_map(SEED, Fringing(), camera, detector, *light)
    other = fringe_map(SEED + 1, Fringing(), camera, detector, *light)
    np.testing.assert_array_equal(one, fringe_map(SEED, Fringing(), camera, detector, *light))
    assert (one != other).mean() > 0.99


def test_without_fringing_there_is_nothing(camera, detector):
    off = Fringing(on=False)
    assert (fringe_map(SEED, off, camera, detector, np.array([970.0]), np.ones(1)) == 1).all()
    assert (fringe_at(SEED, off, detector, np.zeros(2), np.zeros(2), np.array([970.0])) == 1).all()


def test_bins_touch():
    np.testing.assert_allclose(bin_widths(np.array([1.0, 2, 4, 5])), [1, 1.5, 1.5, 1])
    assert bin_widths(np.array([5.0])) == 0
    assert bin_widths(np.array([])).size == 0


def test_wrong_use_is_refused(detector):
    zero = np.zeros(1)
    with pytest.raises(WrongUse, match="do not ascend"):
        fringe_at(SEED, Fringing(), detector, zero, zero, np.array([970.0, 960.0]))
    with pytest.raises(WrongUse, match="widths"):
        fringe_at(SEED, Fringing(), detector, zero, zero, np.array([970.0]), None, np.array([-1.0]))
    with pytest.raises(WrongUse, match="beam at 95"):
        fringe_at(SEED, Fringing(), detector, zero, zero, np.array([970.0]), (95.0,))
    with pytest.raises(ValueError, match="inner_angle"):
        Fringing(inner_angle=30)
    with pytest.raises(ValueError, match="shortest first"):
        Fringing(wave=(80.0, 6.0))
