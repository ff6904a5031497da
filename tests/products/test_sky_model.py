import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from lsstcal_dask.errors import CalibrationError, InsufficientInputs, UnitsError
from lsstcal_dask.physics.spectra import Curve
from lsstcal_dask.products.sky_cover import check_measured
from lsstcal_dask.products.sky_model import (
    FINE,
    Measured,
    Spectrograph,
    line_grid,
    measured_from_table,
    pixel_response,
    spline_basis,
)
from lsstcal_dask.simulate import spectrograph as simulated

PIXELS = np.arange(340.5, 1060.0)
NONE = np.zeros(4)


def seen(at, known=Spectrograph(), nuisance=NONE):
    first, second = pixel_response(PIXELS, known, nuisance)
    return (first + second) @ (line_grid(np.array([at])) @ np.ones(1))


@pytest.mark.parametrize("at", [400.03, 557.88, 700.0, 1000.37])
def test_a_line_keeps_photons_place_and_width(at):
    found = seen(at)
    assert found.sum() == pytest.approx(1, abs=1e-5)  # of pixels 1 nm wide
    assert found @ PIXELS == pytest.approx(at, abs=1e-4)
    width = at / 200 / 2.3548
    expected = width**2 + 1 / 12 + 0.05**2  # line, pixel, and at most half a step of the grid
    assert found @ (PIXELS - at) ** 2 == pytest.approx(expected, abs=0.0026 + 1e-3 * width**2)


def test_nuisances_move_and_widen():
    plain = seen(900.0)
    moved = seen(900.0, nuisance=np.array([0.2, 0.0, 0.0, 0.0]))
    assert (moved - plain) @ PIXELS == pytest.approx(-0.2, abs=1e-4)  # a true wavelength is a smaller stated one
    ends = {at: seen(at, nuisance=np.array([0.0, 0.1, 0.0, 0.0])) for at in (400.0, 1000.0)}
    stretched = [found @ PIXELS / found.sum() - at for at, found in ends.items()]
    np.testing.assert_allclose(stretched, [0.1 * 300 / 359.5, -0.1 * 300 / 359.5], rtol=0.01)
    sharp = seen(900.0, nuisance=np.array([0.0, 0.0, 0.1, 0.0]))
    assert sharp.max() > 1.05 * plain.max()


def test_the_second_order_lies_at_twice_the_wavelength():
    curve = Curve(np.array([300.0, 1200.0]), np.array([0.2, 0.8]))
    known = Spectrograph(throughput=curve, second_order=0.05)
    found = seen(450.0, known)
    far = PIXELS > 700
    assert found[far] @ PIXELS[far] / found[far].sum() == pytest.approx(900, abs=1.0)
    assert found[far].sum() == pytest.approx(0.05 * curve.at(450.0) / curve.at(900.0), rel=0.01)
    double = seen(450.0, known, np.array([0.0, 0.0, 0.0, np.log(2)]))
    np.testing.assert_allclose(double[far], 2 * found[far])


def test_the_model_is_that_of_another_program():
    rng = np.random.default_rng(3)
    light = np.interp(FINE, np.arange(300, 1160, 5.0), rng.uniform(0.5, 2, 172))
    grid = np.arange(330.0, 1085.0, 10)
    known = Spectrograph(throughput=Curve(grid, simulated.throughput(grid)), second_order=0.05)
    settings = simulated.Spectrograph(
        resolution_scatter=0,
        second_order_scatter=0,
        wavelength_shift=0,
        wavelength_stretch=0,
        calibration_error=0,
        read_noise=0,
    )
    expected = simulated.observe(1, settings, 1, FINE, light, 1e12)  # photon noise of 1e-6
    found = sum(pixel_response(expected["wavelength"].values, known, NONE)) @ light
    # throughput is known every 10 nm and bends by 2e-4 per nm**2 at most: 10**2 / 8 * 2e-4 of 0.3 either way
    np.testing.assert_allclose(found, expected["flux"], rtol=0.01)
    assert np.sqrt(np.mean((found / expected["flux"].values - 1) ** 2)) < 0.003


def test_splines_sum_to_one_and_stay_constant_beyond_their_ends():
    found = spline_basis(400.0, 800.0, 40.0, FINE)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-12)
    assert found.min() >= 0
    assert len(found) == 13
    np.testing.assert_array_equal(found[:, FINE < 400][:, 0], found[:, FINE <= 400][:, -1])


def test_lines_beyond_the_grid_are_left_out():
    assert line_grid(np.array([250.0, 1200.0])).nnz == 0


def test_a_bad_spectrum_is_refused():
    flux = np.ones(len(PIXELS))
    with pytest.raises(CalibrationError, match="sky spectrum V1: flux of"):
        Measured("V1", np.datetime64("2026-07-01"), PIXELS, flux[1:], flux)
    flux[300:] = np.nan
    with pytest.raises(InsufficientInputs, match="sky spectrum V1: 300 of 720 pixels are usable: take it again"):
        Measured("V1", np.datetime64("2026-07-01"), PIXELS, flux, np.ones(len(PIXELS)))
    with pytest.raises(CalibrationError, match="V1: wavelengths do not ascend"):
        Measured("V1", np.datetime64("2026-07-01"), PIXELS[::-1], flux, flux)


def sky_table(**columns):
    density = u.photon / u.s / u.m**2 / u.nm
    known = {"wavelength": PIXELS * u.nm, "flux": np.ones(720) * density, "variance": np.ones(720) * density**2}
    return Table({**known, **columns})


@pytest.mark.parametrize("column", ["flux", "variance"])
def test_pixels_that_are_empty_in_a_table_are_not_measured(column):
    hole = (PIXELS > 555) & (PIXELS < 640)
    table = sky_table()
    table[column] = MaskedColumn(table[column], mask=hole)
    found = measured_from_table(table, "V1", np.datetime64("2026-07-01"))
    np.testing.assert_array_equal(found.good, ~hole)
    with pytest.raises(InsufficientInputs, match="of the light of no filter unknown"):
        check_measured(found, None, (400.0, 1000.0), 200.0, 1e-4)


@pytest.mark.parametrize(
    ("columns", "meta", "error", "message"),
    [
        ({}, {"slit_arcsec2": "two"}, UnitsError, "slit_arcsec2 is 'two': give a number in arcsec2"),
        ({"flux": np.ones((720, 2)) * u.Jy}, {}, CalibrationError, r"column flux of \(720, 2\): give one number"),
        ({"flux": MaskedColumn(["low"] * 720, unit="Jy")}, {}, UnitsError, "column flux holds what is no number"),
        ({"flux": MaskedColumn(np.ones(720), unit="mag(AB)")}, {}, UnitsError, r"column flux in 'mag\(AB\)': give it"),
    ],
)
def test_a_table_that_is_no_spectrum_is_refused_in_a_line(columns, meta, error, message):
    table = sky_table(**columns)
    table.meta.update(meta)
    if table["flux"].unit == u.Jy:
        table["variance"].unit = u.Jy**2
    with pytest.raises(error, match=f"sky spectrum V1: {message}"):
        measured_from_table(table, "V1", np.datetime64("2026-07-01"))
