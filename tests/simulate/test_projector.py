import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Projection
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.illumination import lamp_brightness, laser_centre
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.photodiode import photodiode_charge
from lsstcal_dask.simulate.projector import (
    Projector,
    Shot,
    directions,
    footprint,
    hole_position,
    illumination,
    pattern_radius,
    projection,
    shot,
    telescope_mm,
    transmission,
)
from lsstcal_dask.simulate.settings import Settings

PERFECT = Projector(on=False)
LSST = load_camera("lsstcam")
MINI = load_camera("mini9")


def exposure(number=1, source=None, **asked):
    known = {"mask": "grid", "wavelength": 700.0, "bandwidth": 1.0, "azimuth": 0.0, "elevation": 0.0, "rotation": 0.0}
    source = source or Projection(**{**known, "footprint": (3.4, 0.0), "rate": 1e6, **asked})
    return Exposure(f"e{number}", number, "cbp", np.datetime64("2026-07-01"), 10.0, 10.0, source=source)


def aimed(azimuth=0.0, elevation=0.0, rotation=0.0):
    return Shot(azimuth, elevation, rotation)


def vector(u, v):
    """Direction of a field angle, an arc along a bearing."""
    angle, bearing = np.hypot(u, v), np.arctan2(v, u)
    return np.array([np.sin(angle) * np.cos(bearing), np.sin(angle) * np.sin(bearing), np.cos(angle)])


def test_centre_of_the_pattern_lands_where_it_is_sent():
    u, v = directions(Projector(), LSST, aimed(1.1, -0.7, 33.0), 0.0, 0.0)
    np.testing.assert_allclose([u, v], np.deg2rad([1.1, -0.7]), rtol=1e-14)


def test_a_hole_off_the_centre_by_spherical_trigonometry():
    """Right-angled triangle: the beam lies beside a centre 1 degree up, perpendicular to the great circle to it."""
    u, v = directions(PERFECT, LSST, aimed(elevation=1.0), 10.0, 0.0)
    side, up = np.arctan(10 / 625), np.deg2rad(1.0)
    angle, bearing = np.arccos(np.cos(up) * np.cos(side)), np.arctan2(np.tan(side), np.sin(up))
    np.testing.assert_allclose([u, v], [angle * np.sin(bearing), angle * np.cos(bearing)], rtol=1e-12)
    assert np.rad2deg(up - v) * 3600 > 0.2  # in the plane v would be up; a pixel of LSSTCam is 0.2 arcsec


def test_small_angles_are_magnified_by_the_ratio_of_focal_lengths():
    assert telescope_mm(LSST) / 625 == pytest.approx(16.5, rel=1e-3)
    u, v = directions(PERFECT, LSST, aimed(), 0.1, -0.2)
    np.testing.assert_allclose([u, v], [0.1 / 625, -0.2 / 625], rtol=1e-7)  # next term is angle**2 / 3


def test_rotation_by_90_degrees_takes_x_to_y():
    x, y = np.array([1.0, -3.0]), np.array([2.0, 5.0])
    turned = directions(PERFECT, LSST, aimed(0.5, 0.8, 90.0), x, y)
    np.testing.assert_allclose(turned, directions(PERFECT, LSST, aimed(0.5, 0.8), -y, x), atol=1e-16)


def test_pointing_and_rotation_leave_the_pattern_rigid():
    x, y = np.array([-15.0, 12.0]), np.array([3.0, 9.0])
    apart = []
    for real in aimed(), aimed(1.2, -0.9, 77.0):
        u, v = directions(Projector(), LSST, real, x, y)
        apart.append(vector(u[0], v[0]) @ vector(u[1], v[1]))
    assert apart[1] == pytest.approx(apart[0], abs=1e-15)


def test_distortion_moves_the_edge_by_its_own_amount():
    edge = pattern_radius(Projector(), LSST)
    bent, _ = directions(Projector(distortion=1e-3), LSST, aimed(), np.array([edge, edge / 2]), 0.0)
    straight, _ = directions(Projector(distortion=0), LSST, aimed(), np.array([edge, edge / 2]), 0.0)
    np.testing.assert_allclose(np.tan(bent) / np.tan(straight) - 1, [1e-3, 1e-3 / 4], rtol=1e-10)


def test_hole_position_is_where_a_perfect_projector_lights_that_place():
    from lsstcal_dask.instrument.geometry import field_to_focal

    x, y = np.array([0.0, 250.0, -120.0]), np.array([0.0, -90.0, 200.0])
    back = field_to_focal(LSST, *directions(PERFECT, LSST, aimed(), *hole_position(PERFECT, LSST, x, y)))
    np.testing.assert_allclose(back, [x, y], atol=1e-9)


def test_the_centre_keeps_its_footprint_and_the_others_cross_in_the_pupil():
    asked, settings = (2.0, -2.5), Projector(distance=10.0)
    for real in aimed(), aimed(1.0, 0.5), aimed(1.0, 0.5, 120.0):
        centre = directions(settings, LSST, real, 0.0, 0.0)
        np.testing.assert_allclose(footprint(settings, asked, real, *centre), (2.0, -2.5), atol=1e-14)
    x, y = footprint(settings, asked, aimed(), np.arctan(0.03), 0.0)
    np.testing.assert_allclose((x, y), (2.0 - 0.3, -2.5), atol=1e-14)
    x, y = footprint(Projector(distance=0), asked, aimed(), np.array([0.01, 0.02]), np.zeros(2))
    np.testing.assert_array_equal(x, 2.0)


def test_jitter_of_exposures_has_the_widths_that_were_set():
    settings = Projector(pointing_jitter=2.0, rotation_error=0.3)
    n = 1000
    shots = [shot(7, settings, exposure(i)) for i in range(1, n + 1)]
    draws = {
        "azimuth": np.array([s.azimuth for s in shots]) * 3600 / 2.0,
        "elevation": np.array([s.elevation for s in shots]) * 3600 / 2.0,
        "rotation": np.array([s.rotation for s in shots]) / 0.3,
    }
    for name, z in draws.items():
        assert abs(z.mean()) < 5 / np.sqrt(n), name
        assert abs(z.std() - 1) < 5 / np.sqrt(2 * n), name
    correlation = np.corrcoef(list(draws.values()))
    assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(n)


def test_shots_are_reproducible_and_exact_when_switched_off():
    assert shot(3, Projector(), exposure(4)) == shot(3, Projector(), exposure(4))
    assert shot(3, Projector(), exposure(4)) != shot(3, Projector(), exposure(5))
    assert shot(3, Projector(), exposure(4)) != shot(4, Projector(), exposure(4))
    assert shot(3, PERFECT, exposure(azimuth=0.3, rotation=9.0)) == Shot(0.3, 0.0, 9.0)


def test_photodiode_sees_the_laser_before_the_optics():
    """Photons at the mask, of the laser's brightness and wavelength, whatever the optics let through."""
    taken = exposure(2, rate=2e6)
    for effects in ["projector"], ["projector", "laser", "lamp_drift"]:
        settings = Settings(projector=Projector(diode_share=50.0)).only(effects)
        photons = 50 * 2e6 * 10 * lamp_brightness(1, settings.lamp_drift, taken)
        nm = laser_centre(1, settings.laser, taken)
        charge = photodiode_charge(1, settings.photodiode, taken, photons, nm)
        assert header(Observatory(1, MINI, settings), taken)["photodiode"] == pytest.approx(charge)
    assert abs(photons / (50 * 2e6 * 10) - 1) > 1e-3
    assert nm != 700


def test_transmission_is_smooth_with_ripples_of_the_set_size():
    grid = np.linspace(350, 1100, 751)
    value = transmission(1, Projector(), grid)
    assert np.all((value > 0.2) & (value < 0.9))
    assert np.abs(np.diff(np.log(value[grid > 400]))).max() < 0.005  # per nm
    np.testing.assert_array_equal(transmission(1, PERFECT, grid), 1.0)
    plain = transmission(1, Projector(ripple=0), 600.0)
    n = 400
    waves = [np.log(transmission(seed, Projector(ripple=0.02), 600.0) / plain) / 0.02 for seed in range(n)]
    # a sum of six cosines of random phase is narrower than a Gaussian of the same rms
    assert abs(np.std(waves) - 1) < 5 / np.sqrt(2 * n)


def test_illumination_falls_from_its_brightest_point():
    settings = Projector(roll_off=0.2, roll_off_center=(0.5, 0.0))
    edge = pattern_radius(settings, MINI)
    np.testing.assert_allclose(illumination(settings, MINI, np.array([0.5, 1.5, -0.5]) * edge, 0.0), [1, 0.8, 0.8])
    np.testing.assert_array_equal(illumination(PERFECT, MINI, np.array([0.0, edge]), edge), 1.0)


def test_wrong_settings_and_wrong_sources_are_refused():
    with pytest.raises(ValidationError):
        Projector(area_scatter=-0.1)
    with pytest.raises(WrongUse, match="e1: its source is no projector"):
        projection(exposure(source=Lamp(1.0)))
