"""The light of lamps and projector on a CCD: levels, lines, fringes, ghosts, spots, each against a hand calculation."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal, focal_to_field
from lsstcal_dask.simulate.dust import Dust
from lsstcal_dask.simulate.etalon import Fringing, fringe_at
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Projection, XRays
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.frames import charge
from lsstcal_dask.simulate.ghosts import Scatter, ghost
from lsstcal_dask.simulate.illumination import lamp_spectrum
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.one_thread import one_thread
from lsstcal_dask.simulate.optics import admitted, mirrors, pupil_rays, vignetting
from lsstcal_dask.simulate.projector import Projector, footprint, shot
from lsstcal_dask.simulate.response import quantum_efficiency, response_at
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spots import spot_table
from lsstcal_dask.simulate.throughput import mesh_step

CAMERA = load_camera("mini9")
ITL, E2V = CAMERA.detectors[1], CAMERA.detectors[0]
TIME = np.datetime64("2026-07-02T03:00:00", "ms")
SEED = 3
THIN = Fringing(epoxy=10.0)  # glue of which the pupil leaves fringes of 3 %


def site(*names, **changed):
    return Observatory(SEED, CAMERA, Settings(**changed).only(names))


def flat(wavelength=float("nan"), band="none", bandwidth=1.0, rate=1000.0, number=1):
    return Exposure("F", number, "flat", TIME, 10.0, 10.0, band, Lamp(rate, wavelength, bandwidth))


def cbp(wavelength=500.0, band="none", where=(3.0, 0.0), mask="grid", rate=1e5):
    return Exposure(
        "C", 1, "cbp", TIME, 10.0, 10.0, band, Projection(mask, wavelength, 1.0, 0.0, 0.0, 0.0, where, rate)
    )


def profile(centre, bandwidth=1.0, n=2001):
    """Fine wavelengths of a Gaussian line and their shares, cut where the scene cuts it."""
    nm = centre + bandwidth * np.linspace(-1.5, 1.5, n)
    share = np.exp(-4 * np.log(2) * ((nm - centre) / bandwidth) ** 2)
    return nm, share / share.sum()


def test_without_any_effect_every_pixel_gets_the_rate_of_the_lamp():
    found = light(site(), flat(633.0), E2V)
    np.testing.assert_array_equal(found.rate, np.float32(1000.0))
    assert found.rate.dtype == np.float32
    assert found.points.shape == (0, 5)


def test_the_broadband_lamp_gives_its_photons_within_the_range_of_the_model():
    nm = np.linspace(300, 1100, 80_001)
    wanted = 1000.0 * np.trapezoid(lamp_spectrum(nm), nm)
    assert light(site(), flat(), E2V).rate.mean() == pytest.approx(wanted, rel=1e-5)


def test_dark_sources_give_no_light():
    for source in (None, XRays(1e-3)):
        found = light(site(), replace(flat(), source=source), E2V)
        assert not found.rate.any()
        assert found.points.shape == (0, 5)


@pytest.mark.parametrize("band", ["g", "i"])
def test_a_broadband_flat_is_the_integral_of_lamp_mirrors_filter_and_silicon(band):
    real = site("mirrors", "filters", "vignetting", "quantum_efficiency", "fringing")
    nm = np.arange(300.25, 1100, 0.5)
    x, y = np.array([5.0, 200.0, 400.0]), np.array([30.0, 128.0, 250.0])
    place = ccd_to_focal(E2V, x, y)
    s = real.settings
    passed = transmission(SEED, s.filters, CAMERA, band, nm, *place, None, s.vignetting)
    silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, E2V, x, y, nm)
    share = lamp_spectrum(nm) * 0.5 * mirrors(s.mirrors, nm)
    wanted = (passed * silicon * share).sum(axis=1) * vignetting(s.vignetting, CAMERA, *place) * 1000
    found = light(real, flat(band=band), E2V).rate[y.astype(int), x.astype(int)]
    np.testing.assert_allclose(found, wanted, rtol=5e-4)  # bins of 2 nm over edges 4 to 8 nm wide


@pytest.mark.parametrize(("band", "wavelength"), [("r", 562.0), ("none", 400.0), ("z", 925.0)])
def test_a_monochromatic_flat_integrates_its_line_and_the_filter_in_the_beam(band, wavelength):
    real = site("filters", "mirrors", "quantum_efficiency")
    s = real.settings
    nm, share = profile(wavelength, 2.0)
    x, y = np.array([10.0, 300.0]), np.array([20.0, 200.0])
    # with vignetting off, the whole pupil is averaged
    passed = transmission(SEED, s.filters, CAMERA, band, nm, *ccd_to_focal(E2V, x, y), None, s.vignetting)
    silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, E2V, x, y, nm)
    wanted = (passed * silicon * share * mirrors(s.mirrors, nm)).sum(axis=1) * 1000
    found = light(real, flat(wavelength, band, 2.0), E2V).rate[y.astype(int), x.astype(int)]
    np.testing.assert_allclose(found, wanted, rtol=2e-4)
    if band == "r":
        assert 0.2 < wanted.mean() / 1000 < 0.7  # an edge of the filter, where it matters


def test_the_line_of_the_laser_lies_where_it_really_is():
    jitter = Settings().laser.model_copy(update={"jitter": 5.0})
    moved = light(site("laser", "mirrors", laser=jitter), flat(340.0), E2V).rate[0, 0]
    asked = light(site("mirrors"), flat(340.0), E2V).rate[0, 0]
    assert abs(moved / asked - 1) > 1e-3


@pytest.mark.parametrize("detector", [E2V, ITL])
@pytest.mark.parametrize("bandwidth", [0.1, 1.0])
def test_fringes_of_a_monochromatic_flat_are_those_of_the_etalon(detector, bandwidth):
    real, wavelength = site("fringing", fringing=THIN), 980.0
    found = light(real, flat(wavelength, bandwidth=bandwidth), detector).rate / 1000
    random = np.random.default_rng(1)
    y, x = (random.integers(n, size=120) for n in detector.shape)
    nm, share = profile(wavelength, bandwidth, 241)
    wanted = fringe_at(SEED, real.settings.fringing, detector, x, y, nm, width=np.zeros(nm.size)) @ share
    seen = np.ptp(wanted)
    # tables of the map: 5e-4 of the amplitude; 24 bins of the line against 241
    np.testing.assert_allclose(found[y, x], wanted, atol=5e-3 * seen + 3e-5)
    visibility = (found.max() - found.min()) / (found.max() + found.min())
    assert visibility == pytest.approx((wanted.max() - wanted.min()) / (wanted.max() + wanted.min()), rel=0.2)
    assert seen > (0.02 if detector is E2V else 0.003)  # black glue reflects little


def test_a_broad_line_blurs_the_fringes():
    real = site("fringing", fringing=THIN)
    spread = [np.std(light(real, flat(980.0, bandwidth=w), E2V).rate) for w in (0.2, 2.0, 40.0)]
    assert spread[0] > spread[1] > 2 * spread[2] > 0


def test_scattered_light_is_its_share():
    smooth = Scatter(level=0.004, texture=0.0, slope=-0.5)
    found = light(site("scatter", scatter=smooth), flat(500.0), E2V).rate / 1000
    np.testing.assert_allclose(found - 1, 0.004 * (500 / 700) ** -0.5, rtol=1e-3)


def test_ghosts_are_their_share():
    real = site("ghosts")
    maps = [light(real, flat(700.0), d).rate / 1000 - 1 for d in CAMERA.detectors]
    for found, d in zip(maps[:2], CAMERA.detectors, strict=False):
        x, y = ccd_to_focal(d, *np.meshgrid(np.arange(d.shape[1]), np.arange(d.shape[0])))
        wanted = ghost(SEED, real.settings.ghosts, CAMERA, "none", x, y, 700.0, real.settings.filters)
        np.testing.assert_allclose(found, wanted, atol=0.03 * np.max(wanted))  # sharp edges between nodes
    # some of the light falls beside the camera, and the hole of the pupil stays dark
    assert 0.5 < np.mean([m.mean() for m in maps]) / 0.015 < 1.1


def test_vignetting_and_screen_multiply_the_focused_light():
    real = site("vignetting", "screen")
    found = light(real, flat(500.0), E2V).rate / 1000
    bare = light(site("screen"), flat(500.0), E2V).rate / 1000
    x, y = ccd_to_focal(E2V, *np.meshgrid(np.arange(E2V.shape[1]), np.arange(E2V.shape[0])))
    bend = 2e-3  # of straight lines between nodes 8 pixels apart, where the light falls by half over 200
    np.testing.assert_allclose(found / bare, vignetting(real.settings.vignetting, CAMERA, x, y), rtol=bend)
    assert found.min() < 0.9 < found.max()


# The projector


PERFECT = ["mirrors", "quantum_efficiency", "filters", "vignetting"]


@cache
def quiet_projector():
    """The real one without halos, which reach out of the apertures."""
    return Projector(diffraction=0.0)


def test_spots_bring_their_photons_through_mirrors_filter_stops_and_silicon():
    s = Settings(projector=quiet_projector()).only([*PERFECT, "projector", "shot_noise"])
    real, e, d = Observatory(SEED, CAMERA, s), cbp(690.0, "r", rate=3e6), CAMERA.detectors[4]
    image = charge(real, e, d)
    table = spot_table(real, e)
    mine = table[table["detector"] == d.name]
    assert len(mine) >= 2
    yy, xx = np.mgrid[: d.shape[0], : d.shape[1]]
    for spot in mine:
        disc = np.hypot(xx - spot["x"], yy - spot["y"]) < spot["radius"]
        nm, share = profile(float(spot["wavelength"]), n=61)
        ray = spot["footprint_x"], spot["footprint_y"]
        place = spot["x_mm"], spot["y_mm"]
        passed = transmission(SEED, s.filters, CAMERA, e.filter, nm, *place, ray, s.vignetting)
        stop = admitted(s.vignetting, CAMERA, *place, *ray)
        y, x = np.nonzero(disc)
        silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, d, x, y, nm).mean(axis=0)
        wanted = spot["photons"] * 10 * stop * (passed * silicon * share * mirrors(s.mirrors, nm)).sum()
        around = np.hypot(xx - spot["x"], yy - spot["y"]) < spot["radius"] + 8
        # 1e-3: the filter at the centre of the spot for all of it, 24 bins of the line against 61
        assert image[around].sum() == pytest.approx(wanted, abs=4.5 * float(np.sqrt(wanted)) + 1e-3 * wanted)
    assert 0.1 < (passed * share).sum() < 0.9


def test_the_filter_sees_the_one_angle_of_the_beam():
    real = site("filters", "projector", projector=quiet_projector())
    wavelength, d = 550.0, CAMERA.detectors[4]
    nm, share = profile(wavelength, n=61)
    found = []
    for where in ((2.7, 0.0), (4.0, 0.0)):
        with_filter, without = (light(real, cbp(wavelength, band, where), d).rate for band in ("r", "none"))
        passed = transmission(SEED, real.settings.filters, CAMERA, "r", nm, *d.center_mm, where, Settings().vignetting)
        bright = without > 0.5 * without.max()
        found.append(float(np.median(with_filter[bright] / without[bright])))
        assert found[-1] == pytest.approx(float((passed * share).sum()), rel=0.02)
    assert found[1] > found[0] + 0.1  # steeper, so the blue edge lies further to the blue


def test_stops_cut_a_beam_and_their_average_over_footprints_is_the_vignetting_of_a_flat():
    s = Settings().only(["vignetting"])
    corner = CAMERA.detectors[0]
    rays_x, rays_y, parts = pupil_rays(48)
    flat_there = vignetting(s.vignetting, CAMERA, *corner.center_mm)
    axis = (admitted(s.vignetting, CAMERA, 0, 0, rays_x, rays_y) * parts).sum()
    kept = []
    for x, y in zip(rays_x, rays_y, strict=True):
        e = cbp(where=(float(x), float(y)), mask="single/1")
        at = focal_to_field(CAMERA, *corner.center_mm)
        e = replace(e, source=replace(e.source, azimuth=np.rad2deg(at[0]), elevation=np.rad2deg(at[1])))
        if len(kept) < 6:  # the scene itself, for some
            whole, free = (light(Observatory(SEED, CAMERA, k), e, corner).rate.sum() for k in (s, Settings().only([])))
            assert whole / free == pytest.approx(
                admitted(s.vignetting, CAMERA, *corner.center_mm, x, y) / axis, rel=0.03
            )
        kept.append(admitted(s.vignetting, CAMERA, *corner.center_mm, x, y) / axis)
    assert (np.array(kept) * parts).sum() == pytest.approx(float(flat_there), rel=2e-3)


def test_beams_of_a_ccd_meet_the_mirror_where_that_of_its_centre_does():
    camera = load_camera("lsstcam")
    d = camera.detector("R14_S22")
    e = cbp(where=(3.0, 0.5), mask="grid")
    settings = Projector(pointing_jitter=0.0)
    real = shot(SEED, settings, e)
    where = e.source.footprint
    centre = footprint(settings, where, real, *focal_to_field(camera, *d.center_mm))
    corner = footprint(settings, where, real, *focal_to_field(camera, *ccd_to_focal(d, 0, 0)))
    assert np.hypot(*np.subtract(centre, where)) > 0.1  # far from what was asked for the pattern's centre
    assert np.hypot(*np.subtract(centre, corner)) < 0.04


def test_dust_takes_from_flats_and_spots():
    dirty = Dust(window_motes=5000)
    assert light(site("dust", dust=dirty), flat(500.0), E2V).rate.min() < 1000
    d = CAMERA.detectors[4]
    clean, dusty = (light(site(*names, dust=dirty), cbp(), d).rate for names in ([], ["dust"]))
    assert 0.5 < dusty.sum() / clean.sum() < 1


# Wrong requests


@pytest.mark.parametrize("make", [flat, cbp])
@pytest.mark.parametrize("wavelength", [299.0, 301.4, 1098.6, 1100.5])
def test_lines_that_reach_outside_the_model_are_refused(make, wavelength):
    says = (
        rf"exposure [FC]: a line 1 nm wide at {wavelength:g} nm reaches beyond the model, 300 to 1100 nm: use 301.5 to"
    )
    with pytest.raises(WrongUse, match=says) as caught:
        light(site(), make(wavelength), E2V)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wavelength", [301.5, 1098.5])
def test_lines_that_just_fit_keep_their_photons_though_the_laser_jitters(wavelength):
    found = light(site("laser"), flat(wavelength), E2V)
    np.testing.assert_allclose(found.rate, 1000.0, rtol=1e-6)


def test_lines_without_width_filters_and_masks_that_there_are_not_are_refused():
    with pytest.raises(WrongUse, match="0 nm wide"):
        light(site(), flat(500.0, bandwidth=0.0), E2V)
    with pytest.raises(WrongUse, match="no filter 'x'"):
        light(site("filters"), flat(500.0, band="x"), E2V)
    with pytest.raises(WrongUse, match="99999 spots cannot be made"):
        light(site(), cbp(mask="grid/99999"), E2V)


# What is kept, and bits


def test_the_lamp_of_another_exposure_uses_what_was_kept():
    real = Observatory(SEED, CAMERA, Settings().only(["mirrors", "filters"]))
    first = light(real, flat(band="r", rate=10.0), E2V).rate
    again = light(Observatory(SEED, CAMERA, Settings().only(["mirrors", "filters"])), flat(band="r", rate=20.0), E2V)
    np.testing.assert_allclose(again.rate, 2 * first, rtol=1e-6)
    assert light(real, flat(band="i", rate=10.0), E2V).rate[0, 0] != first[0, 0]
    assert not real.sensitivity(E2V).flags.writeable


def test_linear_algebra_is_limited_while_any_thread_needs_it():
    pools = pytest.importorskip("threadpoolctl")
    random = np.random.default_rng(2)
    a, b = random.random((2145, 12)), random.random((12, 700))
    threads = []

    @one_thread
    def inner():
        threads.append({p["num_threads"] for p in pools.threadpool_info() if p["user_api"] == "blas"})
        return a @ b

    @one_thread
    def outer():
        inside = inner()
        inner()  # the first one's end has not lifted the limit
        return inside

    before = {p["num_threads"] for p in pools.threadpool_info() if p["user_api"] == "blas"}
    with pools.threadpool_limits(1, "blas"):
        wanted = a @ b
    np.testing.assert_array_equal(outer(), wanted)
    assert threads == [{1}, {1}]
    assert {p["num_threads"] for p in pools.threadpool_info() if p["user_api"] == "blas"} == before


def test_the_mesh_is_finer_on_small_ccds():
    assert mesh_step(E2V) == 8
    assert mesh_step(load_camera("lsstcam").detectors[0]) == 64


def test_the_curve_of_a_ccd_reaches_the_flat():
    quantum = quantum_efficiency(SEED, Settings().quantum_efficiency, ITL, np.array([500.0]))
    found = light(site("quantum_efficiency"), flat(500.0, bandwidth=0.1), ITL).rate
    assert np.median(found) / 1000 == pytest.approx(float(quantum[0]), rel=3e-3)
