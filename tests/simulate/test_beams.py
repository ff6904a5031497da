"""Light of the projector on a CCD: the energy budget of an exposure, and what dims light that goes astray."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal, focal_to_ccd, focal_to_field
from lsstcal_dask.simulate.dust import Beam, Dust, dust
from lsstcal_dask.simulate.exposure import Exposure, Projection
from lsstcal_dask.simulate.filters import transmission
from lsstcal_dask.simulate.ghosts import _SURFACES, Ghosts, Scatter, scatter, spot_ghosts
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import admitted, edge_mm, mirrors, pupil_rays
from lsstcal_dask.simulate.projector import Projector
from lsstcal_dask.simulate.response import gray_map, quantum_efficiency, response_at
from lsstcal_dask.simulate.scene import light
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spots import spot_table

CAMERA = load_camera("mini9")
MIDDLE = CAMERA.detector("R22_S11")
EDGE_MM = edge_mm(CAMERA)
PIXEL_MM = 0.01
SEED = 3
TIME = np.datetime64("2026-07-02T03:00:00", "ms")
BARE = Exposure("C", 1, "cbp", TIME, 10.0, 10.0, "none", Projection("grid", 690.0, 1.0, 0.0, 0.0, 0.0, (3.0, 0.5), 1e6))


def site(*names, **changed):
    return Observatory(SEED, CAMERA, Settings(projector=Projector(diffraction=0.0), **changed).only(names))


def aimed(x_mm, y_mm, band="none", where=(3.0, 0.5), wavelength=690.0):
    """A single spot sent to a place of the focal plane."""
    u, v = (float(np.rad2deg(a)) for a in focal_to_field(CAMERA, x_mm, y_mm))
    source = Projection("single", wavelength, 1.0, u, v, 0.0, where, 1e6)
    return replace(BARE, filter=band, source=source)


def total(real, exposure, detectors=CAMERA.detectors):
    return sum(float(light(real, exposure, d).rate.sum(dtype=float)) for d in detectors)


def line(spot, n=61):
    """Wavelengths of a Gaussian line of 1 nm and the shares of its photons."""
    nm = spot["wavelength"] + np.linspace(-1.5, 1.5, n)
    share = np.exp(-4 * np.log(2) * (nm - spot["wavelength"]) ** 2)
    return nm, share / share.sum()


def passing(settings, band, spot):
    """Wavelengths, and the part of a spot's photons in each that comes through mirrors, filter and stops."""
    nm, share = line(spot)
    place, ray = (spot["x_mm"], spot["y_mm"]), (spot["footprint_x"], spot["footprint_y"])
    pupil_x, pupil_y, weight = pupil_rays(48)
    stop = admitted(settings.vignetting, CAMERA, *place, *ray)
    stop = stop / (admitted(settings.vignetting, CAMERA, 0, 0, pupil_x, pupil_y) * weight).sum()
    glass = transmission(SEED, settings.filters, CAMERA, band, nm, *place, ray, settings.vignetting)
    return nm, share * stop * glass * mirrors(settings.mirrors, nm)


def seen_over(settings, detector, x_mm, y_mm, radius_mm, wavelength):
    """Mean quantum efficiency over the disc times the part of it on this CCD, pixel by pixel, without coating."""
    (x, y), radius = focal_to_ccd(detector, x_mm, y_mm), radius_mm / PIXEL_MM
    (y0, y1), (x0, x1) = ((max(int(c - radius), 0), max(int(c + radius) + 2, 0)) for c in (y, x))
    gray, curve = pixels_of(settings.quantum_efficiency, detector, wavelength)
    part = gray[y0:y1, x0:x1]
    yy, xx = np.indices(part.shape)
    disc = np.hypot(xx + x0 - x, yy + y0 - y) < radius
    return float(curve * part[disc].sum(dtype=float) / (np.pi * radius**2))


@cache
def pixels_of(settings, detector, wavelength):
    """Response of the pixels of a CCD (y, x), and its curve at one wavelength."""
    curve = quantum_efficiency(SEED, settings, detector, np.array([wavelength]))[0]
    return gray_map(SEED, settings, detector), float(curve)


def test_electrons_of_an_exposure_are_the_photons_of_each_hole_on_all_their_ways():
    """Spots, ghosts and scattered light, each through the optics of its beam and with the silicon where it lands."""
    names = ["mirrors", "filters", "vignetting", "quantum_efficiency", "projector", "laser", "lamp_drift"]
    real, exposure = site(*names, "ghosts", "scatter"), replace(BARE, filter="r")
    s = real.settings
    focused = ghosts = floor = 0.0
    for spot in spot_table(real, exposure):
        nm, through = passing(s, "r", spot)
        detector = CAMERA.detector(str(spot["detector"]))
        yy, xx = np.indices(detector.shape)
        y, x = np.nonzero(np.hypot(xx - spot["x"], yy - spot["y"]) < spot["radius"])
        silicon = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, detector, x, y, nm).mean(axis=0)
        focused += spot["photons"] * (through * silicon).sum()
        photons, w = spot["photons"] * through.sum(), float(spot["wavelength"])
        ray = (spot["footprint_x"], spot["footprint_y"])
        place = spot["x_mm"], spot["y_mm"]
        for gx, gy, radius, part in spot_ghosts(
            SEED, s.ghosts, CAMERA, "r", *place, ray, w, s.filters, beam=s.projector.aperture / 2
        ):
            ghosts += photons * part * sum(seen_over(s, d, gx, gy, radius, w) for d in CAMERA.detectors)
        for d in CAMERA.detectors:
            x_mm, y_mm = ccd_to_focal(d, *np.meshgrid(np.arange(0, d.shape[1], 16), np.arange(0, d.shape[0], 16)))
            level = scatter(SEED, s.scatter, CAMERA, x_mm, y_mm, w).mean() * PIXEL_MM**2 / (np.pi * EDGE_MM**2)
            gray, curve = pixels_of(s.quantum_efficiency, d, w)
            floor += photons * level * curve * gray.sum(dtype=float)
    parts = {name: total(real_of, exposure) for name, real_of in _without(real).items()}
    # 24 bins of the line against 61, at a plateau of the filter that ripples; float32 sums: 2e-4
    assert parts["spots"] == pytest.approx(focused, rel=2e-4)
    # 108 discs of 8 to 27 px counted in whole pixels, 1 to 3 % each; the coating is 3e-3
    assert parts["ghosts"] - parts["spots"] == pytest.approx(ghosts, rel=1e-2)
    assert parts["all"] - parts["ghosts"] == pytest.approx(floor, rel=1e-2)
    assert parts["all"] == pytest.approx(focused + ghosts + floor, rel=5e-4)
    assert 0.005 < ghosts / focused < 0.1
    assert 5e-4 < floor / focused < 0.01


def _without(real):
    """The same observatory without scattered light, and without ghosts either."""
    unscattered = replace(real, settings=real.settings.without(["scatter"]))
    focused = replace(real, settings=real.settings.without(["ghosts", "scatter"]))
    return {"all": real, "ghosts": unscattered, "spots": focused}


@pytest.fixture
def one_ghost(monkeypatch):
    """Only the picture of the pupil that no filter makes, 0.35 wide: far from a spot at the rim of the field."""
    small = replace(_SURFACES[3], share=1.0)
    monkeypatch.setattr("lsstcal_dask.simulate.ghosts._SURFACES", (small,))
    return small


CORNER = CAMERA.detectors[0].center_mm
AT_EDGE = aimed(*CORNER, "z", (-3.0, 1.0), 823.0)
STOPPED = aimed(*CORNER, "z", (3.6, 1.5), 823.0)


def ghost_light(real, exposure):
    """Electrons/s on the CCD in the middle, which the spot itself does not reach."""
    assert total(replace(real, settings=real.settings.without(["ghosts"])), exposure, [MIDDLE]) == 0
    return total(real, exposure, [MIDDLE])


def test_a_ghost_has_passed_the_filter_where_its_beam_did(one_ghost):
    real = site("filters", "ghosts")
    spot = spot_table(real, AT_EDGE)[0]
    nm, share = line(spot)
    rays = spot["footprint_x"], spot["footprint_y"]

    def through(x, y):
        return float(transmission(SEED, real.settings.filters, CAMERA, "z", nm, x, y, rays) @ share)

    ghost = one_ghost.centre[0] + one_ghost.radius * spot["footprint_x"] / 4.18
    assert abs(ghost) < 0.5  # of the radius of the field: the spot lies at 0.75, where the edge is elsewhere
    own, there = through(spot["x_mm"], spot["y_mm"]), through(ghost * EDGE_MM, 0.0)
    assert abs(own / there - 1) > 0.05
    found = ghost_light(real, AT_EDGE) / ghost_light(site("ghosts"), AT_EDGE)
    assert found == pytest.approx(own, rel=1e-3)  # bins of the line


def test_a_ghost_has_passed_the_stops_and_the_dust_where_its_beam_did(one_ghost):
    dirty = Dust(filter_motes=9000, window_motes=0, filter_size=(3.0, 3.0), arriving=0.0)
    free = ghost_light(site("ghosts"), STOPPED)
    spot = spot_table(site(), STOPPED)[0]
    x_mm, y_mm = spot["x_mm"], spot["y_mm"]
    rays = spot["footprint_x"], spot["footprint_y"]
    s = site("vignetting").settings.vignetting
    pupil_x, pupil_y, weight = pupil_rays(48)
    stop = admitted(s, CAMERA, x_mm, y_mm, *rays) / (admitted(s, CAMERA, 0, 0, pupil_x, pupil_y) * weight).sum()
    assert stop < 0.99
    assert ghost_light(site("ghosts", "vignetting"), STOPPED) / free == pytest.approx(float(stop), rel=1e-5)
    random = np.random.default_rng(1)
    radius, turn = spot["radius"] * PIXEL_MM * np.sqrt(random.random(4000)), 2 * np.pi * random.random(4000)
    place = x_mm + radius * np.cos(turn), y_mm + radius * np.sin(turn)
    left = dust(SEED, dirty, CAMERA, "z", *place, TIME, Beam(*rays, 0.12))
    assert left.mean() < 0.95
    found = ghost_light(site("ghosts", "dust", dust=dirty), STOPPED) / free
    # an even spread of 16 points over the disc, where shadows vary by their rms
    assert found == pytest.approx(left.mean(), abs=2 * left.std() / np.sqrt(16))


def test_silicon_sees_a_ghost_where_it_lands(one_ghost):
    """On a CCD of the other vendor than that of the spot; the line is in the blue, where they differ most."""
    exposure = aimed(*CAMERA.detector("R22_S01").center_mm, wavelength=340.0)
    real = site("ghosts", "quantum_efficiency")
    parent, own = (
        quantum_efficiency(SEED, real.settings.quantum_efficiency, d, np.array([340.0]))[0]
        for d in (CAMERA.detector("R22_S01"), MIDDLE)
    )
    assert abs(parent / own - 1) > 0.02
    bright, seen = (light(one, exposure, MIDDLE).rate for one in (site("ghosts"), real))
    y, x = np.nonzero(bright > 0.5 * bright.max())
    nm, share = line(spot_table(real, exposure)[0])
    s = real.settings
    wanted = response_at(SEED, s.quantum_efficiency, s.fringing, CAMERA, MIDDLE, x, y, nm) @ share
    np.testing.assert_allclose(seen[y, x] / bright[y, x], wanted, rtol=2e-4)  # 24 bins of the line against 61


def test_scattered_light_of_spots_all_over_the_field_is_that_of_the_screen():
    """A photon/s for each pixel of the field, and what falls into a pixel of the CCD in the middle."""
    real = site("scatter", scatter=Scatter(texture=0.0))
    found = light(real, aimed(*CORNER), MIDDLE).rate
    field = np.pi * (EDGE_MM / PIXEL_MM) ** 2  # pixels
    np.testing.assert_allclose(found * field / 1e6, 0.004 * (690 / 700) ** -0.5, rtol=1e-5)
    assert light(site(), aimed(*CORNER), MIDDLE).rate.max() == 0


def test_a_filter_that_passes_nothing_leaves_no_stray_light():
    blocked = replace(BARE, filter="u", source=replace(BARE.source, rate=0.0))
    assert not light(site("filters", "ghosts", "scatter"), blocked, MIDDLE).rate.any()


def test_motes_cast_the_shadow_that_the_beam_of_a_spot_meets():
    """What is left of a spot is what dust leaves of its own small beam, which another footprint takes elsewhere."""
    dirty = Dust(filter_motes=9000, window_motes=0, filter_size=(3.0, 3.0), arriving=0.0)
    x, y = MIDDLE.center_mm
    left = []
    for where in ((3.0, 0.5), (-2.9, 0.8)):
        exposure = aimed(x, y, "r", where)
        clean, dusty = (light(site(*names, dust=dirty), exposure, MIDDLE).rate for names in ([], ["dust"]))
        spot = spot_table(site(), exposure)[0]
        inside = clean > 0.5 * clean.max()
        rows, columns = np.nonzero(inside)
        beam = Beam(spot["footprint_x"], spot["footprint_y"], 0.12)
        wanted = dust(SEED, dirty, CAMERA, "r", *ccd_to_focal(MIDDLE, columns, rows), TIME, beam)
        np.testing.assert_allclose(dusty[inside] / clean[inside], wanted, rtol=1e-5)
        left.append(wanted)
    assert min(np.ptp(part) for part in left) > 0.3  # sharp: the pupil as a whole sees 170 motes of 0.4 % each
    assert np.abs(left[0] - left[1]).max() > 0.3


def test_switching_ghosts_off_takes_their_share_only():
    real = site("ghosts", ghosts=Ghosts(color=0.0))
    parts = [total(one, BARE) for one in (real, site())]
    assert 0.3 * 0.015 < parts[0] / parts[1] - 1 < 0.015  # the rest falls beside the CCDs


def test_wavelength_and_brightness_of_spots_are_the_lasers():
    """One effect each for screen and projector: the projector's own switch changes neither."""
    for names in (["projector"], []):
        steady = spot_table(site(*names), BARE)
        assert set(steady["wavelength"]) == {690.0}
        moved = spot_table(site("laser", *names), BARE)
        assert abs(moved["wavelength"][0] - 690) > 1e-3
        flickered = spot_table(site("lamp_drift", *names), BARE)
        ratio = flickered["photons"] / steady["photons"]
        assert np.ptp(ratio) < 1e-12
        assert abs(ratio[0] - 1) > 1e-3
    assert set(steady["photons"]) == {1e6}
