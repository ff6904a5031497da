"""The night sky on a CCD: where stars land, how bright they and the sky are, against integrals done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal, field_to_focal, focal_to_ccd
from lsstcal_dask.simulate import night
from lsstcal_dask.simulate.airglow import sky_spectrum
from lsstcal_dask.simulate.atmosphere import Clouds, cloud_extinction, transmission
from lsstcal_dask.simulate.exposure import Exposure, Pointing
from lsstcal_dask.simulate.filters import transmission as filter_transmission
from lsstcal_dask.simulate.filters import wavelength_range
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.night import band_edges, cloud_transmission, night_light, sky_place, true_air
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import effective_area, mirrors, vignetting
from lsstcal_dask.simulate.projector import Projector, Shot, directions
from lsstcal_dask.simulate.response import QuantumEfficiency, gray_map, response_at
from lsstcal_dask.simulate.seds import flat, sed, templates
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.stars import PSF, STAR, psf, separation

CAMERA = load_camera("mini9")
MIDDLE, CORNER = CAMERA.detectors[4], CAMERA.detectors[0]
ONE = load_camera("mini1")
SEED = 3
TIME = np.datetime64("2026-07-14T04:00:00", "ms")  # new moon
AT = Pointing(50.0, -30.0, 70.0, 30.0)
SKYLESS = ["airglow", "moon", "clouds", "dust", "brighter_fatter", "tree_rings", "edge_distortion", "pixel_jitter"]


def visit(band="r", pointing=AT, seconds=30.0, number=1, time=TIME):
    return Exposure("S", number, "science", time, seconds, seconds, band, pointing)


def site(*names, camera=CAMERA, **changed):
    return Observatory(SEED, camera, Settings(**changed).only(names))


def star(ra, dec, magnitude=16.0, template=5):
    found = np.zeros(1, STAR)
    found["id"], found["ra"], found["dec"], found["magnitude"], found["template"] = 7, ra, dec, magnitude, template
    return found


@pytest.fixture
def only_star(monkeypatch):
    """Make the sky hold those stars alone."""

    def put(*stars):
        monkeypatch.setattr(night, "stars_in", lambda *args: np.concatenate(stars))

    return put


# Where stars land

ARCSEC = 1 / 3600  # deg


@pytest.mark.parametrize(
    ("rotator", "north", "east"),
    [(0.0, (0, 1), (1, 0)), (90.0, (-1, 0), (0, 1)), (180.0, (0, -1), (-1, 0)), (-90.0, (1, 0), (0, -1))],
)
def test_north_and_east_of_the_pointing_land_where_the_rotator_says(only_star, rotator, north, east):
    pointing = replace(AT, rotator=rotator)
    step = 10 * ARCSEC  # 50 pixels
    middle = (np.array(ONE.detectors[0].shape[::-1]) - 1) / 2
    real = site("stars", "psf", camera=ONE)
    for (dra, ddec), towards in (((0, step), north), ((step / np.cos(np.deg2rad(AT.dec)), 0), east)):
        only_star(star(AT.ra + dra, AT.dec + ddec))
        point = night_light(real, visit(pointing=pointing), ONE.detectors[0]).points[0]
        np.testing.assert_allclose(point[:2] - middle, 50 * np.array(towards), atol=2e-2)


@pytest.mark.parametrize("dec", [-89.99, -30.0, 0.0, 89.5])
@pytest.mark.parametrize("rotator", [0.0, 33.0, 270.0])
def test_field_angles_are_arcs_and_lead_back(dec, rotator):
    pointing = Pointing(359.9, dec, 70.0, 0.0, rotator)
    random = np.random.default_rng(1)
    for u, v in np.deg2rad(1.75) * random.uniform(-1, 1, (20, 2)):
        ra, sky_dec = night._from_field(pointing, u, v)
        assert 0 <= ra < 360
        back = night._to_field(pointing, np.array([ra]), np.array([sky_dec]))
        np.testing.assert_allclose(np.ravel(back), [u, v], atol=1e-12)
        away = np.deg2rad(separation(np.array([ra]), np.array([sky_dec]), pointing.ra, pointing.dec)[0])
        assert away == pytest.approx(np.hypot(u, v), rel=1e-9)
    assert night._from_field(pointing, 0.0, 0.0) == pytest.approx((359.9, dec), abs=1e-9)


def test_a_star_and_a_beam_of_the_projector_from_one_direction_land_on_one_place():
    camera, angle = load_camera("lsstcam"), np.deg2rad(1.6)
    pointing = replace(AT, dec=0.0)
    beam = directions(Projector(distortion=0.0), camera, Shot(0, 0, 0), 625 * np.tan(angle), 0.0)
    from_star = night._to_field(pointing, np.array([AT.ra + 1.6]), np.zeros(1))
    mm = [np.ravel(field_to_focal(camera, *field)) for field in (beam, from_star)]
    np.testing.assert_allclose(mm[0], mm[1], atol=1e-6)  # a tangent plane would be 10 pixels away


def test_stars_beside_the_ccd_are_left_out_but_for_their_wings(only_star):
    real, d = site("stars", "psf", camera=ONE), ONE.detectors[0]
    pixel = ONE.plate_scale * d.pixel_mm * ARCSEC
    for beyond, kept in ((50, 1), (70, 0)):
        only_star(star(AT.ra, AT.dec + (d.shape[0] / 2 + beyond) * pixel, 12.0))
        assert len(night_light(real, visit(), d).points) == kept
    only_star(star(AT.ra, AT.dec, 40.0))
    assert len(night_light(real, visit(), d).points) == 0  # less than an electron


def test_real_fields_hold_their_stars_on_every_ccd():
    real = site("stars", "psf")
    stars = night.stars_in(SEED, real.settings.stars, AT.ra, AT.dec, 0.1)
    total = 0
    for d in CAMERA.detectors:
        x, y = focal_to_ccd(d, *field_to_focal(CAMERA, *night._to_field(AT, stars["ra"], stars["dec"])))
        inside = (x > -60) & (x < d.shape[1] + 60) & (y > -60) & (y < d.shape[0] + 60)
        bright = stars["magnitude"] < 23.5
        points = night_light(real, visit(), d).points
        for at_x, at_y in zip(x[inside & bright], y[inside & bright], strict=True):
            assert np.hypot(points[:, 0] - at_x, points[:, 1] - at_y).min() < 1e-9
        total += int((inside & bright).sum())
    assert total > 50


# How bright they are


@pytest.mark.parametrize(("band", "template"), [("u", 40), ("g", 5), ("i", 20), ("y", 5)])
def test_counts_of_a_star_are_its_spectrum_times_all_throughputs(only_star, band, template):
    only_star(star(AT.ra, AT.dec, 15.0, template))
    names = ["stars", "psf", "atmosphere", "mirrors", "filters", "vignetting", "quantum_efficiency", "fringing"]
    real, d, e = site(*names, camera=ONE), ONE.detectors[0], visit(band)
    fine = np.arange(300.025, 1100, 0.05)
    s = real.settings
    x, y = ((n - 1) / 2 for n in d.shape[::-1])
    place = ccd_to_focal(d, x, y)
    silicon = response_at(
        SEED, s.quantum_efficiency, s.fringing, ONE, d, np.array([x]), np.array([y]), fine, pixels=False, fine=False
    )[0]
    passed = filter_transmission(SEED, s.filters, ONE, band, fine, *place, None, s.vignetting)
    through = transmission(true_air(real, e), AT.airmass, fine) * mirrors(s.mirrors, fine) * passed * silicon
    wanted = np.trapezoid(sed(templates()[template], fine) * through, fine) * 10 ** (-0.4 * 15.0)
    wanted *= effective_area() * 30.0 * vignetting(s.vignetting, ONE, *place)
    image = charge(real, e, d)
    # on its own pixels, which differ by 0.3 %, and with wings beyond the CCD: (1 + (64 / 3.7)**2)**-2
    assert image.sum(dtype=float) == pytest.approx(float(wanted), rel=2e-3)
    assert light_points(real, e, d)[0, 2] * 30 == pytest.approx(float(wanted), rel=3e-4)


def light_points(real, e, d):
    return night_light(real, e, d).points


def test_the_photons_of_a_star_are_a_poisson_number(only_star):
    only_star(star(AT.ra, AT.dec, 20.0))
    real, d = site("stars", "psf", "shot_noise", camera=ONE), ONE.detectors[0]
    mean = light_points(real, visit(), d)[0, 2] * 30
    sums = np.array([charge(real, visit(number=i), d).sum(dtype=float) for i in range(12)])
    assert abs(sums.mean() / mean - 1) < 4.5 / np.sqrt(12 * mean) + 2e-4  # wings beside the CCD
    assert 0.3 < sums.var(ddof=1) / mean < 2.5


def test_a_star_sees_the_pixels_it_falls_into(only_star):
    only_star(star(AT.ra, AT.dec, 14.0))
    qe, d = QuantumEfficiency(prnu=0.1, edge=0.0), ONE.detectors[0]
    real = site("stars", "psf", "shot_noise", "quantum_efficiency", camera=ONE, quantum_efficiency=qe)
    smooth = site(
        "stars", "psf", "quantum_efficiency", camera=ONE, quantum_efficiency=qe.model_copy(update={"prnu": 0.0})
    )
    plain = charge(smooth, visit(), d).astype(float)
    image, expected = charge(real, visit(), d).astype(float), plain * gray_map(SEED, qe, d)
    bright = expected > 100
    sigma = np.sqrt(expected[bright])
    chi = ((image[bright] - expected[bright]) / sigma) ** 2
    assert abs(chi.mean() - 1) < 4.5 * np.sqrt(2 / bright.sum())
    assert (((image - plain)[bright] / sigma) ** 2).mean() > 10
    assert abs(image.sum() / expected.sum() - 1) < 4.5 / np.sqrt(expected.sum())


def test_the_image_of_a_star_has_the_width_of_the_seeing(only_star):
    only_star(star(AT.ra, AT.dec, 14.0))
    real, d, e = site("stars", "psf", camera=ONE), ONE.detectors[0], visit()
    point = light_points(real, e, d)[0]
    width, beta = psf(
        SEED, real.settings.psf, TIME + np.timedelta64(15, "s"), AT.airmass, np.mean(wavelength_range("r"))
    )
    assert point[3] == pytest.approx(float(width) / 0.2)
    assert point[4] == beta
    image = charge(real, e, d).astype(float)
    y, x = np.mgrid[: d.shape[0], : d.shape[1]]
    r = np.hypot(x - point[0], y - point[1])
    scale = point[3] / (2 * np.sqrt(2 ** (1 / beta) - 1))
    for radius in (4.0, 8.0, 16.0):
        inside = 1 - (1 + (radius / scale) ** 2) ** (1 - beta)
        # pixels on the circle: rms of the lattice points in it is 0.7 r**0.5
        slack = (
            3 * 0.7 * np.sqrt(radius) * 2 * (beta - 1) / (2 * np.pi * scale**2) * (1 + (radius / scale) ** 2) ** -beta
        )
        assert image[r < radius].sum() / image.sum() == pytest.approx(inside, abs=slack + 1e-3)


def test_without_seeing_a_star_is_in_one_pixel(only_star):
    only_star(star(AT.ra + 0.1 * ARCSEC, AT.dec + 0.1 * ARCSEC))
    image = charge(site("stars", "brighter_fatter", camera=ONE), visit(), ONE.detectors[0])
    assert image.max() > 0.9 * image.sum() > 1e4  # some of it has moved its own walls


def test_extinction_grows_with_the_airmass(only_star):
    only_star(star(AT.ra, AT.dec, 15.0))
    real, d = site("stars", "atmosphere", "filters", camera=ONE), ONE.detectors[0]
    low = replace(AT, altitude=30.0)
    for band, around in (("g", (400.0, 555.0)), ("r", (555.0, 700.0))):
        found = [light_points(real, visit(band, p), d)[0, 2] for p in (AT, low)]
        nm = np.arange(*around, 0.5)
        spectrum = sed(templates()[5], nm)
        state = true_air(real, visit())
        wanted = [(spectrum * transmission(state, p.airmass, nm)).sum() for p in (AT, low)]
        assert -2.5 * np.log10(found[1] / found[0]) == pytest.approx(-2.5 * np.log10(wanted[1] / wanted[0]), abs=3e-3)
        assert found[1] < 0.95 * found[0]


# The sky


def test_the_sky_is_the_integral_of_its_radiance():
    names = ["airglow", "atmosphere", "mirrors", "filters", "vignetting", "quantum_efficiency", "fringing"]
    real, e, d = site(*names), visit(), CORNER
    s = real.settings
    fine = np.arange(300, 1100.01, 0.1)
    middle = (fine[1:] + fine[:-1]) / 2
    where = AT.altitude, AT.azimuth
    # the radiance on the axis; over these 4 arcmin waves of a degree change by a part in a thousand
    sky = sky_spectrum(SEED, s.airglow, s.moon, TIME, where, fine, 30.0)
    x, y = np.array([20.0, 300.0]), np.array([30.0, 200.0])
    place = ccd_to_focal(d, x, y)
    passed = filter_transmission(SEED, s.filters, CAMERA, "r", middle, *place, None, s.vignetting)
    silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, d, x, y, middle, fine=False)
    above = transmission(true_air(real, e), AT.airmass, middle)
    through = above * mirrors(s.mirrors, middle) * passed * silicon
    wanted = (through * sky).sum(axis=1) * vignetting(s.vignetting, CAMERA, *place) * effective_area() * 0.2**2
    found = night_light(real, e, d).rate[y.astype(int), x.astype(int)]
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
    # as bright as the dark sky over the site: 21.2 mag arcsec-2 in r for a star's zero point through the same air
    zero = (through * flat(middle) * 0.1).sum(axis=1) * vignetting(s.vignetting, CAMERA, *place) * effective_area()
    magnitude = -2.5 * np.log10(found / 0.2**2 / zero)
    np.testing.assert_allclose(magnitude, 21.2, atol=0.3)


@pytest.mark.parametrize("band", ["u", "y"])
def test_light_beyond_the_band_is_not_lost(band):
    names = ["airglow", "mirrors", "filters", "quantum_efficiency", "fringing"]
    real, d, e = site(*names), MIDDLE, visit(band)
    edges = band_edges(band)
    x, y = np.array([20, 100, 300]), np.array([30, 60, 200])
    nm = (edges[1:] + edges[:-1]) / 2
    s = real.settings
    silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, d, x, y, nm, width=np.diff(edges))
    place = ccd_to_focal(d, x, y)
    passed = filter_transmission(SEED, s.filters, CAMERA, band, nm, *place, None, s.vignetting)
    sky = night._radiance(real, e, edges, *place)
    wanted = (silicon * passed * sky * mirrors(s.mirrors, nm)).sum(axis=1) * effective_area() * 0.2**2
    np.testing.assert_allclose(night_light(real, e, d).rate[y, x], wanted, rtol=1e-4)


def test_ghosts_and_scattered_light_add_to_the_sky():
    plain, stray = (night_light(site("airglow", *more), visit(), MIDDLE).rate.mean() for more in ([], ["scatter"]))
    assert stray / plain == pytest.approx(1.004, abs=1.5e-3)
    ghostly = night_light(site("airglow", "ghosts"), visit(), MIDDLE).rate.mean()
    assert 1.002 < ghostly / plain < 1.03


def test_a_dark_sky_gives_no_light():
    found = night_light(site(), visit(), MIDDLE)
    assert not found.rate.any()
    assert len(found.points) == 0


def test_clouds_take_from_stars_what_they_say_and_little_from_the_sky(only_star):
    only_star(star(AT.ra, AT.dec, 15.0))
    cloudy = Clouds(photometric=0.0, level=0.8)
    d = ONE.detectors[0]
    clear, veiled = (site("stars", "airglow", *more, camera=ONE, clouds=cloudy) for more in ([], ["clouds"]))
    stars = [light_points(s, visit(), d)[0, 2] for s in (clear, veiled)]
    sky = [night_light(s, visit(), d).rate.mean() for s in (clear, veiled)]
    passed = float(cloud_transmission(veiled, visit(), 0.0, 0.0))
    instants = TIME + (1000 * (np.arange(300) + 0.5) / 10).astype("timedelta64[ms]")
    place = sky_place(ONE, AT, 0.0, 0.0)
    each = [10 ** (-0.4 * float(cloud_extinction(SEED, cloudy, t, *place))) for t in instants]
    assert passed == pytest.approx(np.mean(each), abs=0.1 * np.std(each) + 1e-3)
    assert np.std(each) > 1e-3  # they pass
    assert stars[1] / stars[0] == pytest.approx(passed, rel=1e-6)
    assert passed < 0.9
    assert sky[1] / sky[0] == pytest.approx(1 - 0.15 * (1 - passed), rel=1e-3)


def test_the_sky_turns_with_the_rotator():
    x, y = np.array([1.0]), np.array([0.0])
    still, turned = sky_place(CAMERA, AT, x, y), sky_place(CAMERA, replace(AT, rotator=90.0), x, y)
    zenith = sky_place(CAMERA, AT, 0.0, 0.0)
    np.testing.assert_allclose(np.ravel(still) - np.ravel(zenith), [20 * ARCSEC, 0], atol=1e-6)
    # with the camera turned by 90 degrees its +x sees what lies south
    np.testing.assert_allclose(np.ravel(turned) - np.ravel(zenith), [0, -20 * ARCSEC], atol=1e-6)
    ra, dec = night._from_field(replace(AT, rotator=90.0), np.deg2rad(20 * ARCSEC), 0.0)
    assert (ra, dec) == pytest.approx((AT.ra, AT.dec - 20 * ARCSEC), abs=1e-7)


def test_bins_follow_the_band():
    for band in ("u", "r", "y", "none"):
        edges = band_edges(band)
        assert edges[0] == 300
        assert edges[-1] == 1100
        first, last = (300, 1100) if band == "none" else wavelength_range(band)
        width = np.diff(edges)
        inside = (edges[1:] > first) & (edges[:-1] < min(last, 1100))
        assert width[inside].max() <= 1.0
        assert width.max() <= 6.0
        assert width.min() > 0.1
        assert not edges.flags.writeable


def test_frames_of_a_visit_say_where_it_points():
    frame = next(frames(site("psf", camera=ONE), visit(), ONE.detectors))
    assert frame.header["exposure_type"] == "science"
    assert frame.counts.shape == (4, *ONE.raw_shape)
    assert PSF().on


def test_filters_that_there_are_not_are_refused():
    with pytest.raises(WrongUse, match="no filter 'x'"):
        night_light(site(), visit("x"), MIDDLE)
