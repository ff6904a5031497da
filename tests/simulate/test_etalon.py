"""Fringes: layers against an independent matrix method, periods and sums against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import layers
from lsstcal_dask.simulate.airglow import sky_spectrum
from lsstcal_dask.simulate.etalon import Fringing, absorptance, bin_widths, fringe_at, fringe_map
from lsstcal_dask.simulate.exposure import Exposure, Pointing
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.layers import Finish, slab
from lsstcal_dask.simulate.night import band_edges, transmission_of
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import Vignetting
from lsstcal_dask.simulate.response import QuantumEfficiency, quantum_efficiency
from lsstcal_dask.simulate.settings import Settings
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


def _interface_matrices(nm, d, h, theta, finish, parallel):
    """Absorbed fraction by interface and propagation matrices of the forward and backward waves."""
    silicon = index(np.array(nm)) + 1j * absorption(np.array(nm)) * nm / (4e3 * np.pi)
    poly = index(np.array(nm))
    media = [1.0, 1.38, 2.10, silicon, 1.45, poly, 1.45, 1.5, 1.5 if finish.gloss == 0 else poly]
    depth = [*finish.coating, d, 0.1, 0.3, 1.0, h]
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


@pytest.mark.parametrize("finish", [Finish(), Finish(gloss=0.0), Finish(coating=(0.0, 0.0))])
def test_absorptance_is_that_of_the_layers(finish):
    for nm, d, h, degrees in ((400.0, 100, 10, 0), (850.0, 20, 7, 23), (960.0, 97.3, 11.2, 14.2), (1080.0, 101, 9, 40)):
        theta = np.deg2rad(degrees)
        expected = sum(_interface_matrices(nm, d, h, theta, finish, p) for p in (False, True)) / 2
        found = absorptance(np.array(nm), np.array(d), np.array(h), np.cos(theta), finish)
        assert found == pytest.approx(expected, abs=1e-9)


def _visibility(values):
    return (values.max() - values.min()) / (values.max() + values.min())


@pytest.mark.parametrize(("nm", "period"), [(900.0, 0.98), (1000.0, 1.27)])
def test_silicon_fringes_are_a_group_free_range_apart(nm, period):
    """wavelength**2 / (2 n_g d), d longer by the layers, 1 um of 100.

    SCIENCE 2.9 has 0.98 and 1.27 nm at room temperature, 1-3 % less than at 173 K.
    """
    at = np.linspace(nm - 4, nm + 4, 8001)
    fringes = absorptance(at, 100.0, 10.0, 1.0, Finish(gloss=0.0))
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


def _over_fringes(nm, h, finish, n=400):
    """Absorbed fraction along a fringe of silicon about 100 um thick, light from straight above."""
    return absorptance(np.array(nm), 100 + np.arange(n) / n * nm / 2e3 / index(np.array(nm)), h, np.array(1.0), finish)


@pytest.mark.parametrize("nm", [900.0, 960.0, 1000.0, 1050.0])
def test_a_slab_between_two_mirrors_is_airys(monkeypatch, nm):
    """Silicon on glue, Fresnel's coefficients and the loss by hand.

    Left out: light absorbed where both ways cross, 2 sqrt(R2) / (wave d) < 2e-4, and phases of absorbing mirrors,
    k / n < 3e-4.
    """
    monkeypatch.setattr(layers, "_GATES", ())
    n = index(np.array(nm))
    front, back = (n - 1) / (n + 1), (n - 1.5) / (n + 1.5)
    d = 100 + np.arange(400) / 400 * nm / 2e3 / n
    kept = np.exp(-absorption(np.array(nm)) * d)
    q = front * back * kept
    expected = (1 - front**2) * (1 - kept) * (1 + back**2 * kept)
    expected /= np.abs(1 - q * np.exp(4e3j * np.pi * n * d / nm)) ** 2
    bare = Finish((0.0, 0.0), 0.0)
    found = _over_fringes(nm, 10.0, bare)
    np.testing.assert_allclose(found, expected, rtol=5e-4)
    # over a fringe the loss itself grows by a part of 1 / 700
    assert _visibility(found) == pytest.approx(2 * q.mean() / (1 + q.mean() ** 2), abs=2e-3)


def test_how_strong_fringes_can_be():
    """With V = 2 q / (1 + q**2), a visibility of 0.5 takes q = 2 - sqrt(3), or R1 R2 = (q / (1 - A))**2."""
    nm, h = np.array([900.0, 950.0, 1000.0, 1050.0]), 14 + np.arange(16) / 16 * 0.33
    need = ((2 - np.sqrt(3)) / np.exp(-100 * absorption(nm))) ** 2
    np.testing.assert_allclose(need, [1.41, 0.27, 0.11, 0.076], rtol=0.03)
    strongest = {}
    for name, finish in {"coated": Finish(), "bare": Finish(coating=(0.0, 0.0))}.items():
        s = slab(nm[:, None], np.zeros(1), h, finish, False)
        q = np.abs(s.top * s.bottom) * np.exp(-100 * absorption(nm))[:, None]
        seen = np.array([[_visibility(_over_fringes(one, thickness, finish)) for thickness in h] for one in nm])
        np.testing.assert_allclose(seen, 2 * q / (1 + q**2), atol=3e-3)
        strongest[name] = seen.max(axis=1)
    assert 0.25 < strongest["coated"][2] < 0.3
    assert strongest["coated"][0] < 0.1
    assert strongest["bare"][2] > 0.5 > strongest["bare"][0]
    # coated silicon keeps what CCDs of LSST do at 800 nm, 0.95; bare silicon cannot
    lost = [1 - _over_fringes(800.0, 14.0, f).mean() for f in (Finish(), Finish(coating=(0.0, 0.0)))]
    assert lost[0] < 0.1
    assert lost[1] > 0.3


def test_bare_silicon_makes_strong_fringes_of_the_simulation(detector):
    """The setting reaches a visibility of 0.5 in a beam of the projector, which a coated CCD cannot."""
    at, zero = np.linspace(999, 1001.6, 261), np.zeros(1)
    even = {"silicon_rms": 0, "epoxy_rms": 0, "silicon_scatter": 0, "epoxy_scatter": 0}
    seen = {}
    for coating in (Finish().coating, (0.0, 0.0)):
        settings = [Fringing(coating=coating, epoxy=h, **even) for h in (14.0, 14.1, 14.2, 14.3)]
        fringes = [fringe_at(SEED, s, detector, zero, zero, at, (0.0,), np.zeros(261))[0] for s in settings]
        seen[coating] = max(map(_visibility, fringes))
    assert seen[0.0, 0.0] > 0.5
    assert 0.2 < seen[Finish().coating] < 0.31


@pytest.mark.parametrize("nm", [960.0, 1000.0, 1040.0])
def test_the_pupil_leaves_a_sinc_of_the_fringes_that_pass(detector, nm):
    """First harmonic over the pupil to that of a ray, against sinc(fringes) and against an integral over rays.

    The squared sine is even over the pupil and the phase almost linear in it. The ray is that of the mean: to the edges
    coating and gates change the fringe by 5 % and 0.05 rad, each worth as much of 1 / (pi fringes).
    """
    settings = Fringing(silicon_rms=0, silicon_scatter=0, black=("e2v",))
    free = nm**2 / 2 / 3.68 / 1e5
    at, zero = nm + 2 * free * np.linspace(-0.5, 0.5, 200, endpoint=False), np.zeros(1)
    inner, outer = np.sin(np.deg2rad([14.2, 23.6])) ** 2
    passed = 2e5 / nm * (np.sqrt(index(np.array(nm)) ** 2 - inner) - np.sqrt(index(np.array(nm)) ** 2 - outer))

    def first(values):
        return abs((values - values.mean()) @ np.exp(2j * np.pi * (at - nm) / free)) / len(at)

    ray = np.rad2deg(np.arcsin(np.sqrt((inner + outer) / 2)))
    beams = [first(fringe_at(SEED, settings, detector, zero, zero, at, b, np.zeros(200))[0]) for b in (None, (ray,))]
    assert 2.6 < passed < 3.1
    assert beams[0] / beams[1] == pytest.approx(abs(np.sinc(passed)), abs=0.1 / (np.pi * passed))
    cosine = np.sqrt(1 - inner - (outer - inner) * (np.arange(400)[:, None] + 0.5) / 400)
    rays = absorptance(at, np.array(100.0), np.array(14.0), cosine, Finish(gloss=0.0)).mean(axis=0)
    whole = fringe_at(SEED, settings, detector, zero, zero, at, None, np.zeros(200))[0]
    slope = np.polyfit(at, rays / whole, 3)
    np.testing.assert_allclose(rays / whole / np.polyval(slope, at), 1, atol=2e-4)


def test_a_dull_support_makes_the_fringes_of_the_laboratory():
    """Flats of 960 nm, 2 nm wide: 2 % in CCDs of LSST (Guo et al. 2023, table 2), to the half of the last digit."""
    nm = 960 + np.linspace(-3, 3, 301)
    line = np.exp(-4 * np.log(2) * ((nm - 960) / 2) ** 2)
    h = np.linspace(14, 14.4, 41)[:, None]
    seen = {g: _visibility(absorptance(nm, 100.0, h, 1.0, Finish(gloss=g)) @ line) for g in (0.0, 0.15, 1.0)}
    assert seen[0.0] < 1e-6
    assert seen[0.15] == pytest.approx(0.02, abs=0.005)
    assert 0.12 < seen[1.0] < 0.16


@pytest.fixture(scope="module")
def sky(camera):
    """Wavelengths, electrons of the dark sky in y from each bin, and widths."""
    site = Observatory(SEED, camera, Settings())
    time = np.datetime64("2026-07-14T04:00:00", "ms")
    visit = Exposure("S", 1, "science", time, 30.0, 30.0, "y", Pointing(50.0, -30.0, 70.0, 30.0))
    edges = band_edges("y")
    nm = (edges[1:] + edges[:-1]) / 2
    light = sky_spectrum(SEED, site.settings.airglow, site.settings.moon, time, (70.0, 30.0), edges, 30.0)
    light *= transmission_of(site, visit, edges)
    middle = np.zeros(1)
    light *= transmission(SEED, site.settings.filters, camera, "y", nm, middle, middle, None, Vignetting())[0]
    return nm, light * quantum_efficiency(SEED, QuantumEfficiency(), camera.detector("R22_S11"), nm), np.diff(edges)


def _sky_fringes(camera, name, sky, fringing):
    """Half the range of the sky's fringes over a CCD, with what is smooth in the silicon's thickness taken out."""
    detector, (nm, light, width) = camera.detector(name), sky
    seen = fringe_map(SEED, fringing, camera, detector, nm, light, None, width).astype(float)
    d = thickness_maps(SEED, fringing, detector)[0].astype(float) - 100
    terms = np.stack([np.ones(d.size), d.ravel(), d.ravel() ** 2])
    return np.ptp(seen.ravel() - terms.T @ np.linalg.solve(terms @ terms.T, terms @ seen.ravel())) / 2


def test_fringes_of_the_sky_are_as_published(camera, sky):
    """Airglow in y: 0.04 to 0.2 % of the sky (Guo et al. 2023, table 2; peaks of 0.26 % in their curve).

    The glue of R22_S20 is 11 um thick here, thinner than any of theirs. ITL's have a black support.
    """
    found = {n: _sky_fringes(camera, n, sky, Fringing()) for n in ("R22_S00", "R22_S11", "R22_S20", "R22_S01")}
    assert all(4e-4 < found[name] < 2e-3 for name in ("R22_S00", "R22_S11"))
    assert 2e-3 < found["R22_S20"] < 3e-3
    assert found["R22_S01"] < 0.5 * found["R22_S00"]


def test_it_is_the_lines_of_the_sky_that_fringe(camera, sky):
    nm, light, width = sky
    smooth = np.interp(nm, nm[::40], [light[i : i + 40].mean() for i in range(0, len(nm), 40)])
    seen = [_sky_fringes(camera, "R22_S11", (nm, spectrum, width), Fringing()) for spectrum in (light, smooth)]
    assert seen[1] < 0.1 * seen[0]
    assert _sky_fringes(camera, "R22_S11", sky, Fringing(on=False)) < 1e-6


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
        mean = absorptance(np.array(sub), 100 + phases[:, None] * per_fringe, 14 + phases * 0.32, cosine).mean()
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
    with pytest.raises(ValueError, match="two thicknesses"):
        Fringing(coating=(-0.1, 0.0))
