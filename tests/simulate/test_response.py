"""Electrons per photon: curves against measured ones, maps against single pixels."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import ccd_to_focal
from lsstcal_dask.simulate.etalon import Fringing
from lsstcal_dask.simulate.response import (
    QuantumEfficiency,
    gray_map,
    quantum_efficiency,
    response_at,
    response_map,
)

SEED = 6
ALIKE = QuantumEfficiency(scatter=0, tilt=0)
OFF = Fringing(on=False)
Y, X = np.array([0, 13, 128, 200, 255]), np.array([0, 500, 70, 311, 511])


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


@pytest.fixture(scope="module")
def detector(camera):
    return camera.detector("R22_S00")


@pytest.mark.real
@pytest.mark.parametrize(("vendor", "names"), [("e2v", ("r22_s11", "r22_s12")), ("ITL", ("r01_s11", "r43_s01"))])
def test_curves_are_the_measured_ones(real_data, detector, vendor, names):
    from astropy.table import Table

    tables = [Table.read(real_data / f"lsstcam/sensor_qe/{n}/19700101T000000.ecsv") for n in names]
    nm = np.unique(tables[0]["wavelength"]).astype(float)
    measured = np.mean([np.reshape(t["efficiency"], (16, -1)).mean(axis=0) for t in tables], axis=0) / 100
    found = quantum_efficiency(SEED, ALIKE, replace(detector, vendor=vendor), nm)
    for last, allowed in ((950, 0.025), (1055, 0.08)):
        some = nm < last
        np.testing.assert_allclose(found[some], 0.95 * measured[some], rtol=allowed)
    np.testing.assert_allclose(found, 0.95 * measured, atol=0.022)


@pytest.mark.parametrize("vendor", ["e2v", "ITL", "another"])
def test_curves_are_sound(detector, vendor):
    nm = np.arange(250.0, 1300.0, 5)
    found = quantum_efficiency(SEED, ALIKE, replace(detector, vendor=vendor), nm)
    assert (found >= 0).all()
    assert (found < 1).all()
    assert found[(nm > 400) & (nm < 900)].min() > 0.75
    assert found[nm > 1150].max() < 1e-4
    assert (np.diff(found[nm > 900]) <= 0).all()


def test_ccds_differ_by_steps(detector):
    """Factors of n CCDs: their rms is known to 1 / sqrt(2 n)."""
    qe, n = QuantumEfficiency(scatter=0.02, tilt=0.01), 400
    ccds = [replace(detector, id=i) for i in range(n)]
    nm = np.array([500.0, 650.0, 1000.0])
    ratio = np.array([quantum_efficiency(SEED, qe, ccd, nm) for ccd in ccds]) / quantum_efficiency(
        SEED, ALIKE, detector, nm
    )
    allowed = 4 / np.sqrt(2 * n)
    assert ratio[:, 1].std() == pytest.approx(0.02, rel=allowed)
    assert (ratio[:, 2] - ratio[:, 1]).std() == pytest.approx(0.01, rel=allowed)
    assert abs(ratio[:, 1].mean() - 1) < 4 * 0.02 / np.sqrt(n)


def test_pixels_differ_white_and_fade_at_the_edge(detector):
    qe = QuantumEfficiency(prnu=0.004, edge=0.05, edge_length=2.0)
    gray = gray_map(SEED, qe, detector)
    inner = gray[40:-40, 40:-40]
    assert inner.std() == pytest.approx(0.004, rel=4 / np.sqrt(2 * inner.size))
    neighbours = np.corrcoef(inner[:, 1:].ravel(), inner[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(inner.size)
    smooth = gray_map(SEED, qe.model_copy(update={"prnu": 0.0}), detector)
    np.testing.assert_allclose(smooth[100, [0, 1, -2, -1]], 1 - 0.05 * np.exp([0, -0.5, -0.5, 0]), rtol=1e-6)
    assert smooth[0, 0] == pytest.approx(0.95**2)
    np.testing.assert_array_equal(gray, gray_map(SEED, qe, detector))
    assert (gray != gray_map(SEED + 1, qe, detector)).mean() > 0.99


def test_a_thicker_coating_moves_the_curve_to_the_red(camera, detector):
    """Shifting Q by one per cent of the wavelength, by hand, is what the response varies by, away from absorption."""
    qe = ALIKE.model_copy(update={"coating": 0.004, "prnu": 0.0, "edge": 0.0})
    nm = np.array([350.0, 380.0, 500.0, 600.0])
    seen = response_at(SEED, qe, OFF, camera, detector, X, Y, nm) / quantum_efficiency(SEED, qe, detector, nm) - 1
    shifted = quantum_efficiency(SEED, qe, detector, nm / 1.001) / quantum_efficiency(SEED, qe, detector, nm) - 1
    np.testing.assert_allclose(seen / seen[:, :1], np.tile(shifted / shifted[0], (len(X), 1)), atol=0.02)
    assert np.ptp(seen[:, 0]) > 1e-3


def _at(camera, detector, qe, fringing, nm, beam, width, **options):
    return response_at(SEED, qe, fringing, camera, detector, X, Y, nm, beam, width, **options)


LINE = 990 + np.linspace(-1.2, 1.2, 33)
BROAD = np.arange(320.0, 1081.0, 1.0)


@pytest.mark.parametrize(
    ("nm", "weights", "beam", "width"),
    [
        (LINE, np.exp(-(((LINE - 990) / 0.6) ** 2)), None, None),
        (LINE, np.exp(-(((LINE - 990) / 0.6) ** 2)), (17.0,), None),
        (BROAD, 1 + BROAD / 500, None, None),
        (np.array([400.0, 430.0]), np.array([3.0, 1.0]), None, None),
        (np.array([921.3, 950.7, 1012.9]), np.array([3.0, 1.0, 2.0]), None, np.zeros(3)),
    ],
)
def test_maps_are_the_sums_over_wavelength_of_single_pixels(camera, detector, nm, weights, beam, width):
    qe, fringing = QuantumEfficiency(), Fringing()
    image = response_map(SEED, qe, fringing, camera, detector, nm, weights, beam, width)
    expected = _at(camera, detector, qe, fringing, nm, beam, width) @ weights
    amplitude = 0.3 if beam else 0.05
    np.testing.assert_allclose(image[Y, X], expected, rtol=3e-5 + 5e-4 * amplitude * (nm[-1] > 700))
    assert image.shape == detector.shape
    assert image.dtype == np.float32


def test_light_may_depend_on_the_place(camera, detector):
    """A band whose edge moves by 3 nm over the CCD, linearly: bilinear interpolation of it is off by the square."""
    qe, fringing = QuantumEfficiency(), Fringing()
    nm = np.arange(800.0, 1000.0)

    def light(x, y):
        edge = 850 + 0.6 * (x - detector.center_mm[0]) + 0.3 * (y - detector.center_mm[1])
        return 1 / (1 + np.exp(-(nm - edge[..., None]) / 5))

    image = response_map(SEED, qe, fringing, camera, detector, nm, light, step=16)
    weights = light(*ccd_to_focal(detector, X, Y))
    expected = (_at(camera, detector, qe, fringing, nm, None, None) * weights).sum(axis=1)
    np.testing.assert_allclose(image[Y, X], expected, rtol=8e-5)
    uniform = response_map(SEED, qe, fringing, camera, detector, nm, light(*ccd_to_focal(detector, 255.5, 127.5)))
    assert np.abs(uniform[Y, X] / expected - 1).max() > 5e-3


def test_smooth_spectra_need_no_silicon_fringes(camera, detector):
    qe, fringing = QuantumEfficiency(), Fringing()
    nm = np.arange(900.0, 1050.0)
    whole, coarse = (_at(camera, detector, qe, fringing, nm, None, None, fine=fine) for fine in (True, False))
    weights = np.exp(-(((nm - 975) / 30) ** 2))
    np.testing.assert_allclose(coarse @ weights, whole @ weights, rtol=1e-4)
    assert np.abs(coarse / whole - 1).max() > 3e-4


def test_a_mean_pixel_has_no_gray_response(camera, detector):
    qe = QuantumEfficiency()
    nm = np.array([500.0])
    own, mean = (_at(camera, detector, qe, OFF, nm, None, None, pixels=p)[:, 0] for p in (True, False))
    np.testing.assert_allclose(own / mean, gray_map(SEED, qe, detector)[Y, X], rtol=1e-6)


def test_switched_off_all_photons_count(camera, detector):
    off, nm = QuantumEfficiency(on=False), np.array([500.0, 950.0])
    assert (quantum_efficiency(SEED, off, detector, nm) == 1).all()
    assert (gray_map(SEED, off, detector) == 1).all()
    assert (response_map(SEED, off, OFF, camera, detector, nm, np.array([1.0, 2.0])) == 3).all()
    assert (_at(camera, detector, off, OFF, nm, None, None) == 1).all()
    fringed = response_map(SEED, off, Fringing(), camera, detector, np.array([980.0]), np.ones(1))
    assert fringed.std() > 1e-3


def test_wrong_use_is_refused(camera, detector):
    qe = QuantumEfficiency()
    with pytest.raises(WrongUse, match="outside"):
        response_at(SEED, qe, OFF, camera, detector, np.array([600.0]), np.array([3.0]), np.array([500.0]))
    with pytest.raises(WrongUse, match="2 weights for 1"):
        response_map(SEED, qe, OFF, camera, detector, np.array([500.0]), np.ones(2))
