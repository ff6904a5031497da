"""Screen, lamp and laser against closed forms and their promised statistics."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Projection, XRays
from lsstcal_dask.simulate.illumination import (
    LampDrift,
    Laser,
    Screen,
    lamp_brightness,
    lamp_spectrum,
    laser_centre,
    laser_line,
    screen,
)
from lsstcal_dask.simulate.optics import edge_mm

SEED = 11
LINE = Exposure("MC_1", 1, "flat", np.datetime64("2026-07-01T20:00:00"), 10.0, 10.5, "none", Lamp(1e3, 700.0))
CBP = Projection("ladder", 550.0, 1.0, 0.0, 0.0, 0.0, (3.0, 0.0), 1e4)


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


def field(camera, n=60, m=96):
    """Positions, mm, that share the disc of the field equally."""
    radius = edge_mm(camera) * np.sqrt((np.arange(n) + 0.5) / n)[:, None]
    turn = 2 * np.pi * (np.arange(m) + 0.3) / m
    return radius * np.cos(turn), radius * np.sin(turn)


def test_screen_has_mean_one_at_every_wavelength(camera):
    x, y = field(camera)
    light = screen(SEED, Screen(), camera, x, y, [350.0, 700.0, 1000.0])
    assert light.shape == (60, 96, 3)
    # positions are taken to be in proportion to field angles, of which the distortion of 8e-4 takes 3e-5 of the fall
    np.testing.assert_allclose(light.mean(axis=(0, 1)), 1, atol=1e-4)
    assert light.std() > 0.005
    np.testing.assert_array_equal(light[3, 5, 1], screen(SEED, Screen(), camera, x[3, 5], y[3, 5], 700.0))


def test_fall_of_the_screen(camera):
    settings = Screen(gradient=0, texture=0, fall=0.1)
    light = screen(SEED, settings, camera, np.array([0.0, edge_mm(camera)]), 0.0, 700.0)
    np.testing.assert_allclose(light, np.array([1, 0.9]) / 0.95, atol=1e-3)  # the mean of r**2 is one half


def test_gradients_of_screens(camera):
    settings = Screen(gradient=0.02, texture=0, fall=0, color=0)
    edge = edge_mm(camera)
    x = np.array([-edge, 0, edge, 0])
    found = np.array([screen(seed, settings, camera, x, x[[1, 2, 3, 0]], 500.0) for seed in range(300)])
    np.testing.assert_allclose(found[:, 0] + found[:, 2], 2, atol=1e-10)
    slopes = (found[:, 2:] - found[:, :2]) / 2
    np.testing.assert_allclose(slopes.std(axis=0), 0.02, rtol=4 / np.sqrt(2 * 300))
    assert abs(np.corrcoef(slopes.T)[0, 1]) < 4 / np.sqrt(300)


def test_screen_changes_linearly_with_wavelength(camera):
    x, y = field(camera, 3, 5)
    plain = screen(SEED, Screen(), camera, x, y, [500.0, 700.0, 900.0])
    np.testing.assert_allclose(plain[..., 0] + plain[..., 2], 2 * plain[..., 1], atol=1e-4)
    assert np.abs(plain[..., 0] - plain[..., 2]).max() > 1e-4
    gray = screen(SEED, Screen(color=0), camera, x, y, [500.0, 900.0])
    np.testing.assert_array_equal(gray[..., 0], gray[..., 1])


def test_screen_switched_off(camera):
    off = screen(SEED, Screen(on=False), camera, np.zeros((2, 3)), np.ones((2, 3)), [500.0, 600.0])
    np.testing.assert_array_equal(off, np.ones((2, 3, 2)))


def test_spectrum_of_the_lamp():
    w = np.linspace(300, 1150, 8501)
    assert np.trapezoid(lamp_spectrum(w), w) == pytest.approx(1, abs=1e-6)
    # Planck's photons at 3200 K, far from the glass: lambda**-4 / (exp(14387769 / (lambda 3200)) - 1), lambda in nm
    ratio = (600 / 900) ** -4 * np.expm1(14387769 / (900 * 3200)) / np.expm1(14387769 / (600 * 3200))
    assert lamp_spectrum(600.0) / lamp_spectrum(900.0) == pytest.approx(ratio, rel=1e-6)
    np.testing.assert_array_equal(lamp_spectrum([299.0, 1151.0]), 0)


def test_line_of_the_laser():
    w = np.linspace(695, 705, 10001)
    for shape, width in (("gaussian", 1.5), ("tophat", 2.0)):
        line = laser_line(Laser(shape=shape), w, 700.2, width)
        assert np.trapezoid(line, w) == pytest.approx(1, abs=1e-3)
        assert np.trapezoid(w * line, w) == pytest.approx(700.2, abs=1e-3 * 700)
        assert np.ptp(w[line >= line.max() / 2]) == pytest.approx(width, abs=2e-3)


def test_jitter_of_the_laser():
    for taken in LINE, replace(LINE, source=CBP):  # one laser lights both
        _check_jitter([replace(taken, number=n) for n in range(1, 401)])


def _check_jitter(exposures):
    away = np.array([laser_centre(SEED, Laser(), e) - e.source.wavelength for e in exposures])
    assert away.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 400))
    assert abs(away.mean()) < 4 * 0.1 / np.sqrt(400)
    asked = exposures[0].source.wavelength
    assert laser_centre(SEED, Laser(), exposures[7]) - asked == away[7]
    assert laser_centre(SEED, Laser(on=False), exposures[7]) == asked


@pytest.mark.parametrize("source", [None, XRays(1.0), Lamp(1e3)])
def test_no_laser(source):
    with pytest.raises(WrongUse, match="exposure MC_1: its light is not monochromatic"):
        laser_centre(SEED, Laser(), replace(LINE, source=source))


def test_brightness_of_the_lamp():
    for source, rms in ((Lamp(1e3), 1e-3), (LINE.source, 0.02), (CBP, 0.02)):
        taken = [replace(LINE, number=n, source=source) for n in range(1, 401)]
        quick = np.array([lamp_brightness(SEED, LampDrift(drift=0), e) for e in taken])
        assert quick.std() == pytest.approx(rms, rel=4 / np.sqrt(2 * 400))
        assert quick.mean() == pytest.approx(1, abs=4 * rms / np.sqrt(400))
    times = LINE.time + np.arange(1000) * np.timedelta64(91, "m")
    slow = np.array([lamp_brightness(SEED, LampDrift(laser_scatter=0), replace(LINE, time=t)) for t in times])
    # 63 days hold at least a few periods of most of the 12 waves, each of which has a twelfth of the variance
    assert slow.std() == pytest.approx(1e-3, rel=0.3)
    # the shortest wave has 12 cycles a day: within a minute it turns by 0.05 rad of its amplitude
    near = lamp_brightness(SEED, LampDrift(laser_scatter=0), replace(LINE, time=times[0] + np.timedelta64(1, "m")))
    assert 0 < abs(near - slow[0]) < 0.052 * 1e-3 * np.sqrt(2 * 12)
    assert lamp_brightness(SEED, LampDrift(on=False), LINE) == 1
    assert lamp_brightness(SEED, LampDrift(), LINE) == lamp_brightness(SEED, LampDrift(), LINE)
